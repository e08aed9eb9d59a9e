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

/// Bytes of a message that any connection may have sent without finishing it. What is more comes out of
/// the [`UnfinishedBudget`].
const UNFINISHED_FREE: u64 = 512 << 10;

/// Bytes of long messages that all connections together may have begun and not finished: they lie in
/// memory meanwhile.
const UNFINISHED_MOST: u64 = 256 << 20;

/// What is left of the room for long messages that are begun and not finished.
#[derive(Debug)]
pub struct UnfinishedBudget(AtomicU64);

impl Default for UnfinishedBudget {
    fn default() -> Self {
        Self(AtomicU64::new(UNFINISHED_MOST))
    }
}

impl UnfinishedBudget {
    fn take(&self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        let order = Ordering::Relaxed;
        self.0.fetch_update(order, order, take).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What has gone through a socket so far.
#[derive(Debug)]
pub struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
    last_words: AtomicBool,
    /// How much of what was read belongs to whole messages.
    whole: AtomicU64,
    /// What the message that is begun has of the budget.
    unfinished: AtomicU64,
    budget: Arc<UnfinishedBudget>,
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.budget.give_back(*self.unfinished.get_mut());
    }
}

impl Traffic {
    fn new(budget: Arc<UnfinishedBudget>) -> Self {
        Self {
            read: AtomicU64::default(),
            written: AtomicU64::default(),
            last_words: AtomicBool::default(),
            whole: AtomicU64::default(),
            unfinished: AtomicU64::default(),
            budget,
        }
    }

    /// How much of what was read belongs to whole messages.
    pub fn whole(&self) -> u64 {
        self.whole.load(Ordering::Relaxed)
    }

    /// So much belongs to whole messages now.
    pub fn finished(&self, whole: u64) {
        self.whole.store(whole, Ordering::Relaxed);
        if self.read().saturating_sub(whole) <= UNFINISHED_FREE {
            let charged = self.unfinished.swap(0, Ordering::Relaxed);
            self.budget.give_back(charged);
        }
    }

    /// More was read; says whether there is room for what is unfinished.
    fn has_room(&self) -> bool {
        let unfinished = self.read().saturating_sub(self.whole());
        let charge = unfinished.saturating_sub(UNFINISHED_FREE);
        let charged = self.unfinished.load(Ordering::Relaxed);
        if charge <= charged {
            return true;
        }
        let taken = self.budget.take(charge - charged);
        if taken {
            self.unfinished.store(charge, Ordering::Relaxed);
        }
        taken
    }

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
    /// Watches this connection, whose long messages share `budget` with all others.
    pub fn new(tcp: TcpStream, budget: Arc<UnfinishedBudget>) -> (Self, Arc<Traffic>) {
        let traffic = Arc::new(Traffic::new(budget));
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
        Poll::Ready(match self.traffic.has_room() {
            true => Ok(()),
            false => Err(io::ErrorKind::OutOfMemory.into()),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_that_are_begun_share_what_there_is() {
        let budget = Arc::new(UnfinishedBudget::default());
        let connection = |read: u64| {
            let traffic = Traffic::new(budget.clone());
            traffic.read.store(read, Ordering::Relaxed);
            traffic
        };
        let long = UNFINISHED_FREE + UNFINISHED_MOST;
        let greedy = connection(long);
        assert!(greedy.has_room());
        // Short ones are taken all the same.
        assert!(connection(UNFINISHED_FREE).has_room());
        let other = connection(UNFINISHED_FREE + 1);
        assert!(!other.has_room());
        greedy.finished(long);
        assert!(other.has_room() && !connection(long).has_room());
        drop(other);
        assert!(connection(long).has_room());
        assert_eq!(budget.0.load(Ordering::Relaxed), UNFINISHED_MOST);
    }
}
