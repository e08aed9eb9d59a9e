//! pkt-lines (gitprotocol-common) out of an answer, as it comes.

use std::{error::Error, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use gix_packetline::{
    PacketLineRef,
    decode::{Stream, streaming},
};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tokio::time::{Instant, timeout, timeout_at};

use super::{FetchError, pace::Pace};

/// How long nothing at all may come in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the end of an answer may take whose content has come.
const END: Duration = Duration::from_secs(1);

/// The largest piece of what is in no packets.
const PIECE: usize = 64 << 10;

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line, its newline included, or a piece of a sideband.
    Data(Bytes),
    /// `0000`
    Flush,
    /// `0001`
    Delimiter,
    /// `0002`
    ResponseEnd,
}

/// The packets of one answer. Holds no more than one packet and what came behind it in one read.
pub struct Lines {
    body: UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>,
    buffer: BytesMut,
    /// What came earns its keep here, where the reader says so.
    pace: Option<Pace>,
    /// Since when we wait. Kept across calls: one that was dropped has waited all the same.
    since: Option<Instant>,
}

impl Lines {
    /// The packets of `body`.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        Self {
            body: UnsyncBoxBody::new(body.map_err(Into::into)),
            buffer: BytesMut::new(),
            pace: None,
            since: None,
        }
    }

    /// From here on, a pace has to be kept.
    pub fn keep_pace(&mut self) {
        self.pace.get_or_insert_with(Pace::new);
    }

    /// What counts of what came.
    pub fn came(&mut self, bytes: usize) {
        if let Some(pace) = &mut self.pace {
            pace.came(bytes);
        }
    }

    /// Lets the rest go by, if it is nothing: then the connection can be used again.
    pub async fn end(mut self) {
        let _ = timeout(END, self.body.frame()).await;
    }

    /// The next packet; `None` where the answer ends.
    pub async fn next(&mut self) -> Result<Option<Line>, FetchError> {
        loop {
            match streaming(&self.buffer) {
                Ok(Stream::Complete {
                    line,
                    bytes_consumed,
                }) => {
                    let line = match line {
                        PacketLineRef::Data(_) => None,
                        PacketLineRef::Flush => Some(Line::Flush),
                        PacketLineRef::Delimiter => Some(Line::Delimiter),
                        PacketLineRef::ResponseEnd => Some(Line::ResponseEnd),
                    };
                    let mut packet = self.buffer.split_to(bytes_consumed);
                    packet.advance(4);
                    return Ok(Some(line.unwrap_or_else(|| Line::Data(packet.freeze()))));
                }
                Ok(Stream::Incomplete { bytes_needed }) => self.buffer.reserve(bytes_needed),
                Err(_) => return Err(FetchError::unwell("the answer is not git's protocol")),
            }
            if !self.fill().await? {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(FetchError::unwell("the answer ends inside a packet")),
                };
            }
        }
    }

    /// Whether these bytes come next.
    pub async fn begin_with(&mut self, bytes: &[u8]) -> Result<bool, FetchError> {
        while self.buffer.len() < bytes.len() && self.fill().await? {}
        Ok(self.buffer.starts_with(bytes))
    }

    /// The next piece of what comes behind the last packet, not in packets; `None` where the answer
    /// ends.
    pub async fn rest(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.buffer.is_empty() && !self.fill().await? {
            return Ok(None);
        }
        let piece = self.buffer.len().min(PIECE);
        Ok(Some(self.buffer.split_to(piece).freeze()))
    }

    /// Waits for more; `false` where the answer ends.
    async fn fill(&mut self) -> Result<bool, FetchError> {
        loop {
            let pace = self.pace.as_ref().map_or(SILENCE, Pace::left);
            let since = *self.since.get_or_insert_with(Instant::now);
            let frame = timeout_at(since + pace.min(SILENCE), self.body.frame()).await;
            self.since = None;
            if let Some(pace) = &mut self.pace {
                pace.waited(since.elapsed());
            }
            match frame {
                Err(_) if pace < SILENCE => {
                    let floor = self.pace.as_ref().map_or(0, Pace::floor) >> 10;
                    let detail = format!("it came slower than {floor} KiB a second");
                    return Err(FetchError::slow(detail));
                }
                Err(_) => return Err(FetchError::unwell("nothing came for 60 s")),
                Ok(None) => return Ok(false),
                Ok(Some(Err(error))) => {
                    let why = deepest(error.as_ref());
                    return Err(FetchError::unwell(format!("the answer broke off: {why}")));
                }
                Ok(Some(Ok(frame))) => {
                    // Trailers are of no interest, and nothing comes behind them.
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.buffer.extend_from_slice(&data);
                        return Ok(true);
                    }
                }
            }
        }
    }
}

/// The reason at the bottom of an error, which is the one that says something.
fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A line without its newline.
pub fn text(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}
