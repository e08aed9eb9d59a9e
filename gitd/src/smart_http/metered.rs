//! Bodies whose bytes are counted, and paid for.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use super::body::Upload;
use crate::repository::unsigned::{Over, Reservation};

/// An upload whose bytes are counted.
pub struct Counted {
    /// The upload.
    pub inner: Upload,
    /// What has come of it.
    pub bytes: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Counted {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().inner).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Pin::new(&mut self.inner).consume(count);
    }
}

/// A body that ends with an error as soon as more of it has come than there is room for.
pub struct Metered<'a, R> {
    /// The body.
    pub inner: &'a mut R,
    /// The room.
    pub reservation: &'a mut Reservation,
    /// What the body takes of it already.
    pub taken: u64,
    /// Why it ended.
    pub over: Option<Over>,
}

impl<R: AsyncBufRead + Unpin> AsyncRead for Metered<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncBufRead + Unpin> AsyncBufRead for Metered<'_, R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        let bytes = ready!(Pin::new(&mut *this.inner).poll_fill_buf(cx))?;
        match this.reservation.cover(this.taken + bytes.len() as u64) {
            Ok(()) => Poll::Ready(Ok(bytes)),
            Err(over) => {
                this.over = Some(over);
                Poll::Ready(Err(io::Error::other(over)))
            }
        }
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        self.taken += count as u64;
        Pin::new(&mut *self.inner).consume(count);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::repository::unsigned::{Limits, Unsigned};

    #[tokio::test]
    async fn a_body_ends_where_there_is_no_room_for_more() {
        let limits = Limits {
            all: 1 << 30,
            of_one: 10_000,
        };
        let unsigned = Unsigned::new(limits, [1; 32]);
        for (length, fits) in [(9_000, true), (9_001, false)] {
            let mut body =
                tokio::io::BufReader::with_capacity(100, tokio::io::repeat(7).take(length));
            let mut reservation = unsigned.reserve(unsigned.payer(None), 1_000).unwrap();
            let mut metered = Metered {
                inner: &mut body,
                reservation: &mut reservation,
                taken: 1_000,
                over: None,
            };
            let mut read = Vec::new();
            let result = metered.read_to_end(&mut read).await;
            assert_eq!(result.is_ok(), fits);
            assert_eq!(metered.over, (!fits).then_some(Over::OfOne(10_000)));
            assert!(read.len() <= 9_000);
        }
    }
}
