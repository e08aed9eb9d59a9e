//! Lines that are read on a thread that may block, handed over in chunks as fast as they are taken.

use tokio::{sync::mpsc, task::JoinHandle};
use tonic::Status;

/// Bytes of one chunk, about.
const CHUNK: usize = 256 * 1024;
/// Chunks that wait to be taken.
const AHEAD: usize = 2;

/// Whole lines, and how reading them ended.
pub(super) struct Chunks {
    receiver: mpsc::Receiver<Vec<u8>>,
    reading: JoinHandle<Result<(), Status>>,
}

impl Chunks {
    /// Reads what `lines` shows, which stops when it is told that nobody wants more.
    pub(super) fn read(
        lines: impl FnOnce(&mut dyn FnMut(String) -> bool) -> Result<(), Status> + Send + 'static,
    ) -> Self {
        let (chunks, receiver) = mpsc::channel::<Vec<u8>>(AHEAD);
        let reading = tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::with_capacity(CHUNK);
            let mut see = |line: String| {
                chunk.extend_from_slice(line.as_bytes());
                chunk.push(b'\n');
                chunk.len() < CHUNK || chunks.blocking_send(std::mem::take(&mut chunk)).is_ok()
            };
            lines(&mut see)?;
            if !chunk.is_empty() {
                let _ = chunks.blocking_send(chunk);
            }
            Ok(())
        });
        Self { receiver, reading }
    }

    /// The next lines; `None`: that was all, or the reading failed.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        self.receiver.recv().await
    }

    /// How the reading ended, once there is nothing more.
    pub(super) async fn end(self) -> Result<(), Status> {
        let Self { receiver, reading } = self;
        drop(receiver);
        let read = reading.await;
        read.map_err(|error| Status::internal(error.to_string()))?
    }
}
