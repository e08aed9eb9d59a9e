//! When a remote relay is connected to, and when it is left alone. Pure: the time, and the dice, are
//! the caller's.

use std::time::Duration;

use tokio::time::Instant;

/// A relay that has failed for so long, without anything else, is dead:
const DEAD_AFTER: Duration = Duration::from_secs(24 * 3600);

/// it is tried once in so long,
const DEAD_RETRY: Duration = Duration::from_secs(23 * 3600);

/// and up to so much later.
const DEAD_JITTER: Duration = Duration::from_secs(2 * 3600);

/// How long a relay that asks for it is left alone.
pub const SILENCE: Duration = Duration::from_secs(65);

/// A relay that forges, or floods with what nobody asked for, begins with so many failures.
const MISBEHAVIOUR: u32 = 5;

fn says(text: &str, any: &[&str]) -> bool {
    let text = text.to_lowercase();
    any.iter().any(|words| {
        let mut found = text.match_indices(words);
        // Not in "separate limits".
        found.any(|(at, _)| !text[..at].ends_with(char::is_alphabetic))
    })
}

/// Whether a relay says that it was asked too much in too short a time.
pub fn is_rate_limited(text: &str) -> bool {
    says(text, &["rate-limit", "rate limit", "ratelimit"])
}

/// Whether a relay asks, in a NOTICE or CLOSED, to be left alone.
pub fn asks_for_silence(text: &str) -> bool {
    is_rate_limited(text) || says(text, &["too many", "slow down"])
}

/// What was too much, where a relay that asks for silence says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// Subscriptions at once.
    Subscriptions,
    /// Filters in one of them.
    Filters,
}

impl TooMany {
    /// What a NOTICE or CLOSED complains of.
    pub fn of(text: &str) -> Option<Self> {
        let text = text.to_lowercase();
        let names = |words: &[&str]| text.contains("too many") && says(&text, words);
        // Requests are also what is sent in a minute.
        let subscriptions = ["subscription", "subs", "concurrent req", "open req", "reqs"];
        match (names(&["filter"]), names(&subscriptions)) {
            (true, _) => Some(Self::Filters),
            (_, true) => Some(Self::Subscriptions),
            _ => None,
        }
    }
}

/// How a remote relay has been doing.
#[derive(Debug)]
pub struct Health {
    base: Duration,
    max: Duration,
    failures: u32,
    /// Times it misbehaved: not forgotten while the lease lasts.
    strikes: u32,
    failing_since: Option<Instant>,
    /// The connection that is, or was last, worked.
    good: bool,
    next: Instant,
    silent_until: Option<Instant>,
}

impl Health {
    /// Nothing is known: to be tried at `first`. After failures it is tried again after `base`, the
    /// double of it, and so on, up to `max`.
    pub fn new(base: Duration, max: Duration, first: Instant) -> Self {
        Self {
            base,
            max: max.max(base),
            failures: 0,
            strikes: 0,
            failing_since: None,
            good: false,
            next: first,
            silent_until: None,
        }
    }

    /// When to try next.
    pub fn next_attempt(&self) -> Instant {
        self.silent_until
            .map_or(self.next, |until| until.max(self.next))
    }

    /// Until when nothing is sent.
    pub fn silent_until(&self) -> Option<Instant> {
        self.silent_until
    }

    /// Nothing but failures for a day.
    pub fn is_dead(&self, now: Instant) -> bool {
        self.failing_since
            .is_some_and(|since| now.duration_since(since) >= DEAD_AFTER)
    }

    /// Whether it failed the last time.
    pub fn has_failed(&self) -> bool {
        self.failing_since.is_some()
    }

    /// The connection works.
    pub fn well(&mut self) {
        self.failures = 0;
        self.failing_since = None;
        self.good = true;
    }

    /// It could not be connected to, or not for long. `dice` is from 0 to 1: of the wait, a part
    /// between half and all.
    pub fn failed(&mut self, now: Instant, dice: f64) {
        self.failing_since.get_or_insert(now);
        let wait = match self.is_dead(now) {
            true => DEAD_RETRY + DEAD_JITTER.mul_f64(dice),
            false => {
                let doubled = self.base.saturating_mul(1_u32 << self.failures.min(31));
                doubled.min(self.max).mul_f64(0.5 + dice / 2.0)
            }
        };
        self.failures = self.failures.saturating_add(1);
        self.next = now + wait;
    }

    /// It broke the rules: as if it had failed several times, and more often each time.
    pub fn misbehaved(&mut self, now: Instant, dice: f64) {
        self.good = false;
        self.strikes = self.strikes.saturating_add(1);
        self.failures = self.failures.max(MISBEHAVIOUR.saturating_add(self.strikes));
        self.failed(now, dice);
    }

    /// A connection has ended: one that worked is made again soon.
    pub fn ended(&mut self, now: Instant, dice: f64) {
        match self.good {
            true => self.next = now + self.base.mul_f64(0.5 + dice / 2.0),
            false => self.failed(now, dice),
        }
        self.good = false;
    }

    /// It asks to be left alone until then.
    pub fn silence(&mut self, until: Instant) {
        self.silent_until = Some(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(now: Instant) -> Health {
        Health::new(Duration::from_secs(5), Duration::from_secs(3600), now)
    }

    #[test]
    fn five_seconds_double_to_an_hour() {
        let now = Instant::now();
        let mut health = health(now);
        for seconds in [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600] {
            health.failed(now, 1.0);
            assert_eq!(health.next_attempt() - now, Duration::from_secs(seconds));
        }
        health.well();
        health.failed(now, 0.0);
        assert_eq!(health.next_attempt() - now, Duration::from_millis(2500));
    }

    #[test]
    fn after_a_day_of_failures_once_a_day_until_it_works() {
        let start = Instant::now();
        let mut health = health(start);
        health.failed(start, 0.5);
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let day_later = start + hours(24);
        assert!(!health.is_dead(start + hours(23)) && health.is_dead(day_later));
        health.failed(day_later, 0.0);
        assert_eq!(health.next_attempt() - day_later, hours(23));
        health.failed(day_later, 1.0);
        assert_eq!(health.next_attempt() - day_later, hours(25));
        health.well();
        assert!(!health.is_dead(day_later));
        health.failed(day_later, 1.0);
        assert_eq!(health.next_attempt() - day_later, Duration::from_secs(5));
    }

    #[test]
    fn silence_outlasts_every_other_wait() {
        let now = Instant::now();
        let mut health = health(now);
        health.silence(now + SILENCE);
        health.failed(now, 1.0);
        assert_eq!(health.next_attempt() - now, Duration::from_secs(65));
        for text in [
            "rate-limited: slow there, chief",
            "ERROR: Rate limited",
            "too many concurrent REQs",
            "please slow down",
            "rate limit exceeded",
        ] {
            assert!(asks_for_silence(text), "{text}");
        }
        assert!(!asks_for_silence("could not parse command"));
        assert!(!asks_for_silence("blocked: separate limits"));
        let of = TooMany::of;
        assert_eq!(
            of("ERROR: too many concurrent REQs"),
            Some(TooMany::Subscriptions)
        );
        assert_eq!(of("bad req: too many filters"), Some(TooMany::Filters));
        assert_eq!(of("too many subscriptions"), Some(TooMany::Subscriptions));
        assert_eq!(of("too many REQs"), Some(TooMany::Subscriptions));
        assert_eq!(of("rate-limited: too many messages"), None);
        assert_eq!(of("too many requests"), None);
        assert!(is_rate_limited("rate-limited: too many messages"));
        assert!(!is_rate_limited("blocked: too many sessions"));
    }

    #[test]
    fn one_that_worked_is_connected_to_again_soon_and_one_that_did_not_later() {
        let now = Instant::now();
        let mut health = health(now);
        for _ in 0..5 {
            health.ended(now, 1.0);
        }
        assert_eq!(health.next_attempt() - now, Duration::from_secs(80));
        for _ in 0..5 {
            health.well();
            health.ended(now, 1.0);
            assert_eq!(health.next_attempt() - now, Duration::from_secs(5));
        }
        health.ended(now, 1.0);
        health.ended(now, 1.0);
        assert_eq!(health.next_attempt() - now, Duration::from_secs(10));
    }

    #[test]
    fn misbehaviour_is_remembered() {
        let now = Instant::now();
        let mut health = health(now);
        health.misbehaved(now, 1.0);
        let first = health.next_attempt() - now;
        assert!(first >= Duration::from_secs(300));
        health.well();
        health.misbehaved(now, 1.0);
        assert!(health.next_attempt() - now > first);
    }
}
