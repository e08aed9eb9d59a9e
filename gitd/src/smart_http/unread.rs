//! What an answer leaves unread of its request.
//!
//! A client that is still sending when the connection is closed on it loses the answer with the
//! connection. So a body that is dropped before its end is read on for a while, into nothing.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::door::Meter;

/// How much of a body is read for its sender's sake alone.
const MOST: usize = 8 << 20;
/// How long.
const LONGEST: Duration = Duration::from_secs(10);

/// A request's body that is read to its end, if need be after its last reader has gone.
#[derive(Debug)]
pub struct Unread {
    body: Option<Incoming>,
    meter: Option<Meter>,
}

impl Unread {
    /// The body as it comes in, counted by `meter`.
    pub fn new(body: Incoming, meter: Option<Meter>) -> Self {
        let body = Some(body);
        Self { body, meter }
    }
}

impl Body for Unread {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(meter)) = (&polled, &mut self.meter) {
            meter.count(frame.data_ref().map_or(0, Bytes::len));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map(Incoming::size_hint)
            .unwrap_or_default()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        let meter = self.meter.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(LONGEST, discard(body, meter)));
        }
    }
}

async fn discard(mut body: Incoming, mut meter: Option<Meter>) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        read += bytes;
        if let Some(meter) = &mut meter {
            meter.count(bytes);
        }
        if read > MOST {
            return;
        }
    }
}
