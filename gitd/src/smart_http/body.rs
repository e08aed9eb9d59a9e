//! A request's body, whatever it was packed in.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use async_compression::tokio::bufread::GzipDecoder;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::io::{AsyncBufRead, AsyncRead, BufReader, ReadBuf};
use tokio_util::io::StreamReader;

use super::{
    pace::{Pace, Paced},
    read_ahead::{BodyPieces, ReadAhead},
};
use crate::repository::intake;

/// The bytes as they come over the wire.
type Raw = Paced<StreamReader<BodyPieces, Bytes>>;

/// A body that is read unpacked.
pub enum Upload {
    /// It was not packed.
    Plain(Box<Raw>),
    /// With gzip.
    Gzip(Box<BufReader<GzipDecoder<Raw>>>),
}

impl Upload {
    /// The body that `stream` carries.
    pub fn new(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static, gzip: bool) -> Self {
        let raw = Paced::new(StreamReader::new(BodyPieces::new(stream.boxed())));
        match gzip {
            false => Self::Plain(Box::new(raw)),
            true => Self::Gzip(Box::new(BufReader::with_capacity(
                32 * 1024,
                GzipDecoder::new(raw),
            ))),
        }
    }

    fn raw(&mut self) -> &mut Raw {
        match self {
            Self::Plain(raw) => raw,
            Self::Gzip(decoder) => decoder.get_mut().get_mut(),
        }
    }

    /// What reads it on while its reader is busy.
    pub fn read_ahead(&mut self) -> ReadAhead {
        self.raw().get_ref().get_ref().read_ahead()
    }

    /// The pace at which it has to come from here on.
    pub fn keep(&mut self, pace: Pace) {
        self.raw().keep(pace);
    }

    /// Throws away what is left, as it is on the wire: unpacking it would be work for nothing.
    pub async fn drain(&mut self, most: u64) {
        intake::drain(self.raw(), most).await;
    }
}

impl AsyncRead for Upload {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).poll_read(cx, buf),
            Self::Gzip(decoder) => Pin::new(decoder).poll_read(cx, buf),
        }
    }
}

impl AsyncBufRead for Upload {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).poll_fill_buf(cx),
            Self::Gzip(decoder) => Pin::new(decoder).poll_fill_buf(cx),
        }
    }

    fn consume(self: Pin<&mut Self>, count: usize) {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).consume(count),
            Self::Gzip(decoder) => Pin::new(decoder).consume(count),
        }
    }
}
