//! How fast a server sends: what is compared where there is no place for all that takes long.
//!
//! As with a transfer's pace, only time in which we waited for the server counts: one whose pack our own
//! storage is slow to take is as fast as it sends.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Waiting up to so long ago counts, and up to as long before it.
const WINDOW: Duration = Duration::from_secs(60);

/// How long a pack must have been coming for its speed to say something.
const SETTLED: Duration = Duration::from_secs(20);

/// The least time that is counted as waited: what comes at once has no speed.
const LEAST: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Span {
    waited: Duration,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Facts {
    /// Since when the pack has been coming; nothing before, nor when it is all here.
    coming: Option<Instant>,
    /// Since when we wait for more of it.
    waiting: Option<Instant>,
    before: Span,
    now: Span,
}

/// The speed of one fetch.
#[derive(Debug, Default)]
pub struct Speed(Mutex<Facts>);

impl Speed {
    /// The pack begins to come.
    pub fn begun(&self) {
        self.facts().coming = Some(Instant::now());
    }

    /// All of it has come: what is still done for it is ours.
    pub fn ended(&self) {
        self.facts().coming = None;
    }

    /// So much came.
    pub fn came(&self, bytes: u64) {
        self.facts().now.bytes += bytes;
    }

    /// What `work` comes to, which waits for the server.
    pub async fn waiting<T>(&self, work: impl Future<Output = T>) -> T {
        self.facts().waiting = Some(Instant::now());
        let result = work.await;
        let mut facts = self.facts();
        if let Some(since) = facts.waiting.take() {
            facts.now.waited += since.elapsed();
        }
        if facts.now.waited >= WINDOW {
            facts.before = std::mem::take(&mut facts.now);
        }
        result
    }

    /// Bytes a second, of late; nothing as long as that cannot be said of the server.
    pub fn rate(&self) -> Option<u64> {
        let facts = self.facts();
        if facts.coming?.elapsed() < SETTLED {
            return None;
        }
        let waiting = facts
            .waiting
            .map_or(Duration::ZERO, |since| since.elapsed());
        let waited = (facts.before.waited + facts.now.waited + waiting).max(LEAST);
        let bytes = u128::from(facts.before.bytes) + u128::from(facts.now.bytes);
        let rate = bytes * 1000 / waited.as_millis();
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Whatever a panic left behind, no more than a figure is wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn bring(speed: &Speed, seconds: u32, bytes: u64) {
        for _ in 0..seconds {
            speed.waiting(sleep(SECOND)).await;
            speed.came(bytes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_of_late_and_of_the_server() {
        let speed = Speed::default();
        sleep(60 * SECOND).await;
        assert_eq!(speed.rate(), None);
        speed.begun();
        bring(&speed, 10, 1000).await;
        assert_eq!(speed.rate(), None);
        bring(&speed, 30, 1000).await;
        assert_eq!(speed.rate(), Some(1000));
        // We take our time.
        sleep(600 * SECOND).await;
        assert_eq!(speed.rate(), Some(1000));
        // What was is forgotten in time.
        bring(&speed, 130, 10).await;
        let rate = speed.rate().unwrap();
        assert!((9..=11).contains(&rate), "{rate}");
        speed.ended();
        assert_eq!(speed.rate(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_while_it_lasts() {
        let speed = Speed::default();
        speed.begun();
        bring(&speed, 30, 1000).await;
        let silence = speed.waiting(sleep(30 * SECOND));
        tokio::pin!(silence);
        assert!(futures::poll!(&mut silence).is_pending());
        tokio::time::advance(29 * SECOND).await;
        let rate = speed.rate().unwrap();
        assert!((500..520).contains(&rate), "{rate}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_at_once_is_fast() {
        let speed = Speed::default();
        speed.begun();
        speed.came(1 << 40);
        sleep(SETTLED).await;
        assert!(speed.rate() > Some(1 << 40));
    }
}
