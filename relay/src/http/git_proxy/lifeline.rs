//! Connections to gitd over a network, which may swallow what is sent without a word.
//!
//! How long a transfer stands still says nothing: the client may be slow, or git at work. So while
//! there are connections, gitd is asked something that it answers at once; when it does not do so
//! several times in a row, what runs is ended, and clients are told instead of waiting for as
//! long as the kernel would try.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use grasp_proto::transport::{Connection, Endpoint};
use http::{Request, StatusCode};
use hyper::{client::conn::http1, rt::ReadBufCursor};
use hyper_util::{
    client::legacy::connect::{Connected, Connection as Connects},
    rt::TokioIo,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::AbortOnDropHandle,
};

/// How often gitd is asked while something runs, and how long it may take to answer.
const ASKED_EVERY: Duration = Duration::from_secs(5);
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Unanswered questions in a row after which gitd is taken for gone.
const UNANSWERED: usize = 3;

/// The way to gitd's HTTP endpoint.
#[derive(Debug, Clone)]
pub struct Lifeline {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    /// Ends with its last owner. None on a socket of this machine, whose end the kernel tells.
    _asking: Option<Arc<AbortOnDropHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    /// Connections that are open.
    open: watch::Sender<usize>,
    /// Ends those there are now.
    cut: Mutex<CancellationToken>,
}

impl Shared {
    fn cut(&self) -> CancellationToken {
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        cut.clone()
    }

    /// Ends all connections there are; those that are opened from now on are not touched.
    fn end_all(&self) {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *cut).cancel();
    }
}

impl Lifeline {
    /// To gitd at this endpoint.
    pub fn new(endpoint: &Endpoint) -> Self {
        let shared = Arc::new(Shared {
            open: watch::Sender::new(0),
            cut: Mutex::default(),
        });
        let asking = match endpoint {
            Endpoint::Unix(_) => None,
            Endpoint::Tcp(_) | Endpoint::Tls(..) => {
                let asking = tokio::spawn(keep_asking(endpoint.clone(), shared.clone()));
                Some(Arc::new(AbortOnDropHandle::new(asking)))
            }
        };
        Self {
            endpoint: endpoint.clone(),
            shared,
            _asking: asking,
        }
    }

    /// Opens one connection.
    pub async fn connect(&self) -> io::Result<Io> {
        let cut = self.shared.cut();
        let io = timeout(ANSWERS_WITHIN, self.endpoint.connect()).await??;
        self.shared.open.send_modify(|open| *open += 1);
        Ok(Io {
            inner: TokioIo::new(io),
            cut: Box::pin(cut.cancelled_owned()),
            shared: self.shared.clone(),
        })
    }
}

async fn keep_asking(endpoint: Endpoint, shared: Arc<Shared>) {
    let mut open = shared.open.subscribe();
    let mut unanswered = 0;
    loop {
        if open.wait_for(|open| *open > 0).await.is_err() {
            return;
        }
        sleep(ASKED_EVERY).await;
        match timeout(ANSWERS_WITHIN, ask(&endpoint)).await {
            Ok(Ok(())) => unanswered = 0,
            Ok(Err(_)) | Err(_) => unanswered += 1,
        }
        if unanswered == UNANSWERED {
            unanswered = 0;
            tracing::warn!("gitd does not answer: what runs there is ended");
            shared.end_all();
        }
    }
}

async fn ask(endpoint: &Endpoint) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let io = TokioIo::new(endpoint.connect().await?);
    let (mut sender, connection) = http1::handshake(io).await?;
    let request = Request::get("/healthz").header("host", "gitd.internal");
    let asked = sender.send_request(request.body(Body::empty())?);
    let answer = tokio::select! {
        answer = asked => answer?,
        ended = connection => {
            ended?;
            return Err("no answer".into());
        }
    };
    match answer.status() {
        StatusCode::OK => Ok(()),
        status => Err(status.to_string().into()),
    }
}

/// A connection to gitd, for the HTTP client.
#[derive(Debug)]
pub struct Io {
    inner: TokioIo<Connection>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    shared: Arc<Shared>,
}

impl Io {
    /// Whether the connection is to end; wakes the task when it is.
    fn is_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.shared.open.send_modify(|open| *open -= 1);
    }
}

impl Connects for Io {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Accepts every connection, keeps it, and says nothing unless it `answers`.
    async fn backend(answers: bool) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut asked = [0; 512];
                    while matches!(tcp.read(&mut asked).await, Ok(1..)) {
                        if answers {
                            let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
                            tcp.write_all(ok).await.unwrap();
                        }
                    }
                });
            }
        });
        format!("http://{address}").parse().unwrap()
    }

    async fn one_byte(io: &mut Io) -> io::Result<()> {
        let mut bytes = [0; 1];
        let mut buf = hyper::rt::ReadBuf::new(&mut bytes);
        std::future::poll_fn(|cx| {
            hyper::rt::Read::poll_read(Pin::new(&mut *io), cx, buf.unfilled())
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_ended_when_gitd_does_not_answer() {
        let lifeline = Lifeline::new(&backend(false).await);
        let mut io = lifeline.connect().await.unwrap();
        let error = one_byte(&mut io).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(io);
        assert_eq!(*lifeline.shared.open.borrow(), 0);
        // Those that come later are judged by themselves.
        let mut later = lifeline.connect().await.unwrap();
        let soon = timeout(Duration::from_secs(1), one_byte(&mut later)).await;
        assert!(soon.is_err(), "{soon:?}");
    }

    #[tokio::test]
    async fn gitd_that_answers_is_heard() {
        let endpoint = backend(true).await;
        ask(&endpoint).await.unwrap();
    }
}
