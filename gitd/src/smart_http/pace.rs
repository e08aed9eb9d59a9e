//! Silence must cost its sender more than us: how slowly a body may come, and how much of ours its
//! beginnings may take.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    fs::File,
    io::{
        AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt,
        ReadBuf,
    },
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};

/// How much has to come while we have waited for so long, in all. Time in which we were busy is ours.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    window: Duration,
    bytes: u64,
}

impl Pace {
    /// Requests, up to where their work begins.
    pub const REQUEST: Self = Self {
        window: Duration::from_secs(60),
        bytes: 64 * 1024,
    };
    /// Packs that nobody has signed for: 16 KiB/s.
    pub const STAGED: Self = Self {
        window: Duration::from_secs(30),
        bytes: 30 * 16 * 1024,
    };
    /// Packs that are wanted: never ended for being slow.
    pub const WANTED: Self = Self {
        window: crate::repository::intake::IDLE,
        bytes: 1,
    };
}

/// A body that has to keep a [`Pace`].
#[derive(Debug)]
pub struct Paced<R> {
    inner: R,
    pace: Pace,
    waited: Duration,
    came: u64,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<R> Paced<R> {
    /// `inner` at the pace of requests.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            pace: Pace::REQUEST,
            waited: Duration::ZERO,
            came: 0,
            waiting: None,
        }
    }

    /// What is paced.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// Another pace from here on.
    pub fn keep(&mut self, pace: Pace) {
        self.pace = pace;
        self.waited = Duration::ZERO;
        self.came = 0;
        self.waiting = None;
    }
}

impl<R: AsyncBufRead + Unpin> AsyncRead for Paced<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = std::task::ready!(self.as_mut().poll_fill_buf(cx))?;
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncBufRead + Unpin> AsyncBufRead for Paced<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_fill_buf(cx) {
            Poll::Ready(result) => {
                if let Some((since, _)) = this.waiting.take() {
                    this.waited += since.elapsed();
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let (pace, waited) = (this.pace, this.waited);
                let (_, timer) = this.waiting.get_or_insert_with(|| {
                    let now = Instant::now();
                    let left = pace.window.saturating_sub(waited);
                    (now, Box::pin(sleep_until(now + left)))
                });
                timer.as_mut().poll(cx).map(|()| {
                    Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "it came too slowly",
                    ))
                })
            }
        }
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        self.came += count as u64;
        if self.came >= self.pace.bytes {
            self.came = 0;
            self.waited = Duration::ZERO;
        }
        Pin::new(&mut self.inner).consume(count);
    }
}

/// Bytes that all requests of one kind may take together.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Semaphore>);

/// So much each request has for itself.
const FREE: usize = 64 * 1024;

/// The unit in which budgets count.
const KIB: usize = 1024;

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / KIB)))
    }

    /// A share of it, empty yet.
    pub fn share(&self) -> Share {
        Share {
            budget: Arc::clone(&self.0),
            held: None,
            bytes: FREE,
        }
    }
}

/// What one request takes of a [`Budget`], until dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Share {
    /// Makes it as small as every share is at least.
    pub fn give_back(&mut self) {
        self.held = None;
        self.bytes = FREE;
    }

    /// Sees to it that the share is of so many bytes; `false`: there is no room.
    pub fn grow_to(&mut self, bytes: usize) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        let more = (bytes - self.bytes).div_ceil(KIB);
        let Some(permits) = u32::try_from(more)
            .ok()
            .and_then(|more| Arc::clone(&self.budget).try_acquire_many_owned(more).ok())
        else {
            return false;
        };
        match &mut self.held {
            Some(held) => held.merge(permits),
            held => *held = Some(permits),
        }
        self.bytes += more * KIB;
        true
    }
}

/// A request that has all come.
#[derive(Debug)]
pub struct Kept {
    head: Vec<u8>,
    file: Option<File>,
}

impl Kept {
    /// The request from its beginning, as often as it is wanted.
    pub async fn read(&mut self) -> io::Result<impl AsyncRead + Send + Unpin> {
        let rest: Box<dyn AsyncRead + Send + Unpin> = match &mut self.file {
            None => Box::new(tokio::io::empty()),
            Some(file) => {
                file.rewind().await?;
                Box::new(file)
            }
        };
        Ok(AsyncReadExt::chain(self.head.as_slice(), rest))
    }
}

/// Reads a body to its end: what is short is kept, what is long lies in an unnamed file in `directory`.
/// An error is for the git user.
pub async fn read_to_end(
    body: &mut (impl AsyncBufRead + Unpin),
    most: u64,
    share: &mut Share,
    directory: &Path,
) -> Result<Kept, String> {
    let ours = |error: io::Error| {
        tracing::error!(%error, "a request could not be kept");
        "the server could not keep the request".to_owned()
    };
    let (mut head, mut file, mut length) = (Vec::new(), None, 0);
    loop {
        let bytes = body
            .fill_buf()
            .await
            .map_err(|error| format!("the request broke off: {error}"))?;
        let count = bytes.len();
        if count == 0 {
            break;
        }
        length += count;
        if length as u64 > most {
            return Err("the request is too large".to_owned());
        }
        if !share.grow_to(length) {
            return Err("too many large requests at once, try again in a moment".to_owned());
        }
        if length > FREE && file.is_none() {
            let unnamed = tempfile::tempfile_in(directory).map_err(ours)?;
            file = Some(File::from_std(unnamed));
        }
        match &mut file {
            None => head.extend_from_slice(bytes),
            Some(file) => file.write_all(bytes).await.map_err(ours)?,
        }
        body.consume(count);
    }
    if let Some(file) = &mut file {
        file.flush().await.map_err(ours)?;
    }
    Ok(Kept { head, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_drips_is_ended_and_our_own_time_does_not_count() {
        let (mut sender, receiver) = tokio::io::duplex(64 * 1024);
        let mut body = Paced::new(tokio::io::BufReader::with_capacity(1 << 20, receiver));
        body.keep(Pace::STAGED);
        for _ in 0..20 {
            tokio::time::sleep(Pace::STAGED.window * 2).await;
            sender.write_all(&[0; 1024]).await.unwrap();
            body.read_exact(&mut [0; 1024]).await.unwrap();
        }
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if sender.write_all(b"x").await.is_err() {
                    return;
                }
            }
        };
        let read = async {
            let begun = Instant::now();
            while body.read_u8().await.is_ok() {}
            begun.elapsed()
        };
        let lasted = tokio::select! {
            () = drip => unreachable!(),
            lasted = read => lasted,
        };
        assert!(lasted <= Pace::STAGED.window, "{lasted:?}");
    }

    #[tokio::test]
    async fn long_requests_come_back_whole_and_share_what_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let budget = Budget::new(200_000);
        for length in [10, 65_536, 200_000] {
            let sent: Vec<u8> = (0..=250).cycle().take(length).collect();
            let mut body = tokio::io::BufReader::with_capacity(1000, &sent[..]);
            let mut share = budget.share();
            let read = read_to_end(&mut body, 1 << 20, &mut share, directory.path()).await;
            let mut kept = read.unwrap();
            for _ in 0..2 {
                let mut back = Vec::new();
                let mut again = kept.read().await.unwrap();
                again.read_to_end(&mut back).await.unwrap();
                assert!(back == sent);
            }
            let (mut again, mut other) = (&sent[..], budget.share());
            let more = read_to_end(&mut again, 1 << 20, &mut other, directory.path());
            assert_eq!(more.await.is_ok(), length != 200_000);
        }
        assert!(
            read_to_end(&mut &[0; 9][..], 8, &mut budget.share(), directory.path())
                .await
                .is_err()
        );
    }
}
