//! When an answer may begin: once its request has ended.
//!
//! What lies between a client and us does not expect an answer to a request that is still being sent. nginx
//! stops passing the request on, or waits for ever on HTTP/2; Caddy closes the connection or breaks the
//! stream. Of all that can be answered early the status of an error survives best: most clients stop
//! sending at it, and git shows its number without a word; behind nginx on HTTP/2 it is lost now and then.
//! So an answer is held until the body has been read to its end, by whoever answers or, if that one drops
//! it, into nothing for a while ([`Patience`]); if it has not ended then, the answer is an error's.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::door::Meter;

/// How much of a body is read for its sender's sake alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Bytes.
    bytes: usize,
    /// How long.
    time: Duration,
}

impl Patience {
    /// With a request that cannot be read, or that nothing is behind.
    pub const SHORT: Self = Self {
        bytes: 8 << 20,
        time: Duration::from_secs(60),
    };
    /// With a request that is right and comes too often: its user shall read that.
    pub const LONG: Self = Self {
        bytes: 1 << 30,
        time: Duration::from_secs(600),
    };
}

/// How long it is read on behind an error: closed with something unread, the connection would take the
/// answer with it.
const LINGER: Duration = Duration::from_secs(2);

/// How a request's body has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// All of it came, it broke off, or its client does not send it before we ask for it.
    Whole,
    /// It goes on, and is not read any further.
    GivenUp,
}

/// The end of a request's body, for those who wait for it.
#[derive(Debug, Clone)]
pub struct BodyEnd {
    ended: watch::Receiver<Option<Ended>>,
    kill: CancellationToken,
}

impl BodyEnd {
    /// Whether the body has ended.
    pub fn is_reached(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits for the end. An error is the status to answer with instead of anything else.
    pub async fn reached(mut self) -> Result<(), StatusCode> {
        let ended = self.ended.wait_for(Option::is_some).await;
        match ended.map(|ended| *ended) {
            Ok(Some(Ended::Whole)) => Ok(()),
            _ if self.kill.is_cancelled() => Err(StatusCode::SERVICE_UNAVAILABLE),
            _ => Err(StatusCode::PAYLOAD_TOO_LARGE),
        }
    }
}

/// A request's body that is read to its end, if need be after its last reader has gone.
#[derive(Debug)]
pub struct Unread {
    body: Option<Incoming>,
    meter: Option<Meter>,
    /// The client waits to be told that it may send the body.
    waits: bool,
    patience: Patience,
    told: watch::Sender<Option<Ended>>,
    kill: CancellationToken,
}

impl Unread {
    /// The request as it comes in, its body counted by `meter` and given up when `kill` is cancelled, or
    /// when nobody reads it and `patience` is over.
    pub fn of(
        request: Request<Incoming>,
        meter: Option<Meter>,
        patience: Patience,
        kill: &CancellationToken,
    ) -> (Request<Self>, BodyEnd) {
        let expected = request.headers().get(header::EXPECT);
        let waits = expected
            .is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let ended = Some(Ended::Whole).filter(|_| request.body().is_end_stream());
        let (told, ended) = watch::channel(ended);
        let request = request.map(|body| Self {
            body: Some(body),
            meter,
            waits,
            patience,
            told,
            kill: kill.clone(),
        });
        let kill = kill.clone();
        (request, BodyEnd { ended, kill })
    }
}

impl Body for Unread {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        this.waits = false;
        let polled = Pin::new(&mut *body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(meter)) = (&polled, &mut this.meter) {
            meter.count(frame.data_ref().map_or(0, Bytes::len));
        }
        let is_end = match &polled {
            Poll::Ready(Some(Ok(_))) => body.is_end_stream(),
            Poll::Ready(Some(Err(_)) | None) => true,
            Poll::Pending => false,
        };
        if is_end {
            this.told.send_replace(Some(Ended::Whole));
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
        let ended = self.told.borrow().is_some();
        let Some(mut body) = self.body.take().filter(|_| !ended) else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.waits {
            self.told.send_replace(Some(Ended::Whole));
            return;
        }
        let (mut meter, patience) = (self.meter.take(), self.patience);
        let (told, kill) = (self.told.clone(), self.kill.clone());
        runtime.spawn(async move {
            let read = discard(&mut body, &mut meter, patience.bytes);
            let read = timeout(patience.time, read);
            let read = kill.run_until_cancelled(read).await;
            if let Some(Ok(true)) = read {
                told.send_replace(Some(Ended::Whole));
                return;
            }
            told.send_replace(Some(Ended::GivenUp));
            let _ = timeout(LINGER, discard(&mut body, &mut meter, usize::MAX)).await;
        });
    }
}

/// Reads a body into nothing; says whether that was all of it. More than `most` is not read.
async fn discard(body: &mut Incoming, meter: &mut Option<Meter>, most: usize) -> bool {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        read += bytes;
        if let Some(meter) = meter {
            meter.count(bytes);
        }
        if read > most {
            return false;
        }
    }
    true
}
