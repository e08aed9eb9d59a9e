//! The TCP connection below a websocket, watched.
//!
//! Whether a client still takes or sends anything can only be seen here, below the framing.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// How much the kernel may hold that it has not sent yet. What is on its way does not count, so
/// this costs no throughput; but a client that reads nothing is found out early.
const UNSENT: u32 = 64 << 10;

/// Prepares a connection that was just accepted.
pub fn prepare(tcp: &TcpStream) -> io::Result<()> {
    // Small answers must not wait for the client's delayed ACK.
    tcp.set_nodelay(true)?;
    SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT)
}

/// What has gone through a socket so far.
#[derive(Debug, Default)]
pub struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
    last_words: AtomicBool,
}

impl Traffic {
    /// Bytes that came in.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that the kernel took.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// The next writes are the last. The kernel may take all it has room for: it goes on sending
    /// them when we are gone, so that a client which reads again learns why it was dropped.
    pub fn last_words(&self) {
        self.last_words.store(true, Ordering::Relaxed);
    }
}

/// A TCP connection whose traffic is counted.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    traffic: Arc<Traffic>,
}

impl Socket {
    /// Watches this connection.
    pub fn new(tcp: TcpStream) -> (Self, Arc<Traffic>) {
        let traffic = Arc::new(Traffic::default());
        let socket = Self {
            tcp,
            traffic: traffic.clone(),
        };
        (socket, traffic)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.traffic.read.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.traffic.last_words.swap(false, Ordering::Relaxed) {
            SockRef::from(&self.tcp).set_tcp_notsent_lowat(i32::MAX.unsigned_abs())?;
        }
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, buf))?;
        self.traffic
            .written
            .fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
