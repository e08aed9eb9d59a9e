//! How one remote relay does: what the relay of this service is told of it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::{SystemTime, UNIX_EPOCH},
};

use grasp_proto::contract::relay::{Method, RelayReport, RelayState};
use tokio::{sync::Notify, time::Instant};

/// The longest reason that is told, in characters.
const LONGEST_REASON: usize = 200;

/// What is true at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The connection's.
    pub state: RelayState,
    /// Nothing but failures for a day.
    pub dead: bool,
    /// Nothing is sent until then.
    pub silent_until: Option<Instant>,
    /// When it will be tried next.
    pub next_attempt: Option<Instant>,
    /// Live subscriptions that are open.
    pub subscriptions: usize,
    /// Repositories and root events whose history is complete,
    pub confirmed: usize,
    /// and all that are wanted.
    pub wanted: usize,
    /// Why the last connection ended or was not made.
    pub last_error: String,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            state: RelayState::Disconnected,
            dead: false,
            silent_until: None,
            next_attempt: None,
            subscriptions: 0,
            confirmed: 0,
            wanted: 0,
            last_error: String::new(),
        }
    }
}

/// What has been counted since the lease began.
#[derive(Debug, Default)]
struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    live: AtomicU64,
    negentropy: AtomicU64,
    paged: AtomicU64,
}

/// The state of a connection as metrics show it.
#[derive(Debug, Default)]
struct Shown(Option<RelayState>);

impl Shown {
    fn show(&mut self, state: RelayState) {
        if self.0 != Some(state) {
            self.hide();
            connections(state).increment(1.0);
            self.0 = Some(state);
        }
    }

    fn hide(&mut self) {
        if let Some(state) = self.0.take() {
            connections(state).decrement(1.0);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.hide();
    }
}

/// Remote relays whose connection is in this state.
pub fn connections(state: RelayState) -> metrics::Gauge {
    let state = match state {
        RelayState::Unspecified | RelayState::Disconnected => "disconnected",
        RelayState::Connecting => "connecting",
        RelayState::Syncing => "syncing",
        RelayState::Connected => "connected",
        RelayState::ConnectedWithFailures => "connected_with_failures",
    };
    metrics::gauge!("ngit_relays_connections", "state" => state)
}

/// How one remote relay does.
#[derive(Debug, Default)]
pub struct Status {
    facts: Mutex<Facts>,
    shown: Mutex<Shown>,
    counts: Counts,
    /// Something has changed since the last report,
    fresh: AtomicBool,
    /// and whoever reports is woken by this.
    news: Arc<Notify>,
}

/// Milliseconds since 1970 of a moment of the clock that never jumps.
fn millis(at: Option<Instant>) -> u64 {
    let Some(at) = at else { return 0 };
    let now = Instant::now();
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let wall = match at.checked_duration_since(now) {
        Some(ahead) => wall + ahead,
        None => wall.saturating_sub(now.duration_since(at)),
    };
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

impl Status {
    /// Nothing has happened yet; what does is told by `news`.
    pub fn telling(news: Arc<Notify>) -> Self {
        let status = Self {
            news,
            ..Self::default()
        };
        status.show(RelayState::Disconnected);
        status
    }

    fn show(&self, state: RelayState) {
        let shown = self.shown.lock();
        shown.unwrap_or_else(PoisonError::into_inner).show(state);
    }

    /// Whether something has changed since the last report.
    pub fn has_news(&self) -> bool {
        self.fresh.load(Acquire)
    }

    /// There is something to report.
    pub fn tell(&self) {
        self.fresh.store(true, Release);
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        // Facts are independent of each other.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is true at the moment.
    pub fn facts(&self) -> Facts {
        self.lock().clone()
    }

    /// Something is different now.
    pub fn change(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.lock();
        let before = facts.clone();
        change(&mut facts);
        if *facts != before {
            self.show(facts.state);
            self.tell();
        }
    }

    /// An attempt to connect has ended.
    pub fn attempted(&self, succeeded: bool) {
        let (which, outcome) = match succeeded {
            true => (&self.counts.succeeded, "succeeded"),
            false => (&self.counts.failed, "failed"),
        };
        which.fetch_add(1, Relaxed);
        self.tell();
        metrics::counter!("ngit_relays_attempts_total", "outcome" => outcome).increment(1);
    }

    /// An event was received that was asked for.
    pub fn received(&self, method: Method) {
        let (which, name) = match method {
            Method::Negentropy => (&self.counts.negentropy, "negentropy"),
            Method::Paged => (&self.counts.paged, "paged"),
            Method::Live | Method::Unspecified => (&self.counts.live, "live"),
        };
        which.fetch_add(1, Relaxed);
        self.tell();
        metrics::counter!("ngit_relays_events_total", "method" => name).increment(1);
    }

    /// As the relay is told, with all that was counted: what it did not hear is not lost, and what it
    /// heard without our hearing of it counts once.
    pub fn report(&self, url: &str, token: u64) -> RelayReport {
        // First: what changes from now on is news again.
        self.fresh.swap(false, AcqRel);
        let all = |which: &AtomicU64| which.load(Relaxed);
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let facts = self.facts();
        RelayReport {
            url: url.to_owned(),
            token,
            state: facts.state.into(),
            dead: facts.dead,
            silent_until_millis: millis(facts.silent_until.filter(|until| *until > Instant::now())),
            next_attempt_millis: millis(facts.next_attempt),
            subscriptions: number(facts.subscriptions),
            confirmed: number(facts.confirmed),
            wanted: number(facts.wanted),
            attempts_succeeded: all(&self.counts.succeeded),
            attempts_failed: all(&self.counts.failed),
            events_live: all(&self.counts.live),
            events_negentropy: all(&self.counts.negentropy),
            events_paged: all(&self.counts.paged),
            totals: true,
            last_error: facts.last_error.chars().take(LONGEST_REASON).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn everything_that_was_counted_is_told_each_time() {
        let status = Status::default();
        status.received(Method::Live);
        status.attempted(true);
        let first = status.report("wss://x", 1);
        status.received(Method::Live);
        status.received(Method::Paged);
        let second = status.report("wss://x", 1);
        assert!(first.totals && second.totals);
        assert_eq!((first.events_live, second.events_live), (1, 2));
        assert_eq!((second.events_paged, second.attempts_succeeded), (1, 1));
    }

    #[test]
    fn only_what_is_different_is_news() {
        let news = Arc::new(Notify::new());
        let status = Status::telling(news);
        assert!(!status.has_news());
        status.change(|facts| facts.subscriptions = 0);
        assert!(!status.has_news());
        status.change(|facts| facts.subscriptions = 1);
        assert!(status.has_news());
        status.report("wss://x", 1);
        assert!(!status.has_news());
        status.received(Method::Live);
        assert!(status.has_news());
    }

    #[test]
    fn times_are_told_by_the_wall_clock() {
        let status = Status::default();
        assert_eq!(status.report("wss://x", 1).next_attempt_millis, 0);
        let ahead = Duration::from_secs(3600);
        status.change(|facts| {
            facts.next_attempt = Some(Instant::now() + ahead);
            facts.silent_until = Some(Instant::now());
        });
        let report = status.report("wss://x", 1);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert!((now + 3595..=now + 3605).contains(&(report.next_attempt_millis / 1000)));
        assert_eq!(report.silent_until_millis, 0, "that is over");
    }
}
