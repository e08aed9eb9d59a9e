//! An answer that is made while it is sent, and that cannot be mistaken for a whole one when it is not.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// The maker's end. Dropped without [`Maker::finish`], whatever the reason, the answer breaks off.
#[derive(Debug)]
pub struct Maker {
    pieces: mpsc::Sender<Bytes>,
    whole: oneshot::Sender<()>,
}

/// The pieces of an answer; an error behind the last one if its maker did not finish.
#[derive(Debug)]
pub struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    whole: Option<oneshot::Receiver<()>>,
}

/// An answer of which `room` pieces may wait.
pub fn answer(room: usize) -> (Maker, Pieces) {
    let (sender, pieces) = mpsc::channel(room);
    let (finished, whole) = oneshot::channel();
    let maker = Maker {
        pieces: sender,
        whole: finished,
    };
    let whole = Some(whole);
    (maker, Pieces { pieces, whole })
}

impl Maker {
    /// Where the pieces go.
    pub fn pieces(&self) -> &mpsc::Sender<Bytes> {
        &self.pieces
    }

    /// That was all of it.
    pub fn finish(self) {
        let _ = self.whole.send(());
    }
}

impl futures::Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(piece) = ready!(self.pieces.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(piece)));
        }
        let finished = self.whole.take().map(|mut whole| whole.try_recv());
        Poll::Ready(match finished {
            Some(Err(_)) => Some(Err(io::Error::other("the answer broke off"))),
            Some(Ok(())) | None => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn only_what_was_finished_is_whole() {
        for finished in [true, false] {
            let (maker, mut pieces) = answer(1);
            maker.pieces().send(Bytes::from_static(b"x")).await.unwrap();
            match finished {
                true => maker.finish(),
                false => drop(maker),
            }
            assert_eq!(pieces.next().await.unwrap().unwrap(), "x");
            assert_eq!(pieces.next().await.is_none(), finished);
            assert!(pieces.next().await.is_none());
        }
    }
}
