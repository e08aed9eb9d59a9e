//! One identifier's place in the queue: when its next attempt is due. Pure.
//!
//! An attempt is all that is tried until everything is here or every URL was asked; it may take
//! several turns.

use std::time::Duration;

use crate::{clock::Moment, verdict::Origin};

/// How long the first attempt after an event is put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delays {
    /// After a user's event: a push is expected first.
    pub user: Duration,
    /// After one that was found elsewhere: bursts become one attempt.
    pub synced: Duration,
}

impl Delays {
    /// After an event that came from there.
    pub fn after(&self, origin: Origin) -> Duration {
        match origin {
            Origin::User(_) | Origin::Operator => self.user,
            Origin::Sync => self.synced,
        }
    }
}

/// The wait after the first attempt that left something missing; doubled after each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(20);
/// The longest wait between two attempts.
const LONGEST_BACKOFF: Duration = Duration::from_secs(120);

/// After so many attempts – four hours of them – what still waits, waits for a server that is not there,
/// or was never anywhere: the wait doubles again …
const PATIENT_AFTER: u32 = 120;
/// … to this. A server that is back is asked at once, whatever the wait.
const LONGEST_PATIENT_BACKOFF: Duration = Duration::from_secs(4 * 60 * 60);

/// The wait after an attempt that left something missing, when `attempts` before it did.
pub fn backoff(attempts: u32) -> Duration {
    let doubled = |first: Duration, times: u32| {
        let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
        first.saturating_mul(factor)
    };
    match attempts.checked_sub(PATIENT_AFTER) {
        Some(late) => doubled(LONGEST_BACKOFF, late.saturating_add(1)).min(LONGEST_PATIENT_BACKOFF),
        None => doubled(FIRST_BACKOFF, attempts).min(LONGEST_BACKOFF),
    }
}

/// In this time half of what an identifier has used is forgotten …
const FORGIVEN: Duration = Duration::from_secs(30 * 60);
/// … and no more than this is held against it.
const MOST_USED: Duration = Duration::from_secs(60 * 60);
/// Those who have used less of the workers' time than this go before those who have used more: bad
/// servers hold up those who name them, not those who come new.
const RANKS: [Duration; 4] = [
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(20 * 60),
];

/// How much of the workers' time an identifier has used, of late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    time: Duration,
    /// Up to when it is forgiven.
    forgiven: Moment,
}

impl Used {
    /// None.
    pub fn none(now: Moment) -> Self {
        Self {
            time: Duration::ZERO,
            forgiven: now,
        }
    }

    /// Time has passed.
    pub fn age(&mut self, now: Moment) {
        while now.since(self.forgiven) >= FORGIVEN && !self.time.is_zero() {
            self.time /= 2;
            self.forgiven = self.forgiven + FORGIVEN;
        }
        if self.time.is_zero() {
            self.forgiven = now;
        }
    }

    /// It has used more.
    pub fn more(&mut self, time: Duration, now: Moment) {
        self.age(now);
        self.time = self.time.saturating_add(time).min(MOST_USED);
    }

    /// Who goes first: the smaller.
    pub fn rank(&self) -> usize {
        RANKS.iter().filter(|most| self.time >= **most).count()
    }
}

/// When an identifier is hunted for next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    due: Moment,
    attempts: u32,
    /// An attempt has begun and not ended.
    running: bool,
    /// When an event that came during the attempt wants the next one.
    anew: Option<Moment>,
}

impl Timing {
    /// The first attempt is due then.
    pub fn due_at(due: Moment) -> Self {
        Self {
            due,
            attempts: 0,
            running: false,
            anew: None,
        }
    }

    /// When the next attempt is due; of one that is running, when it was.
    pub fn due(&self) -> Moment {
        self.due
    }

    /// Attempts so far that left something missing, since the last event.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether an event came during the attempt.
    pub fn is_wanted_anew(&self) -> bool {
        self.anew.is_some()
    }

    /// An event came whose attempt is due at `wanted`: that may bring the next one forward, never
    /// back.
    pub fn event(&mut self, wanted: Moment) {
        self.attempts = 0;
        if self.running {
            self.anew = Some(self.anew.map_or(wanted, |anew| anew.min(wanted)));
        } else {
            self.due = self.due.min(wanted);
        }
    }

    /// The next attempt may find what the last did not: it is due at `now`, if not before.
    pub fn sooner(&mut self, now: Moment) {
        if !self.running {
            self.due = self.due.min(now);
        }
    }

    /// An attempt begins, or goes on; says whether it begins.
    pub fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.running, true)
    }

    /// The attempt goes on in another turn, at once.
    pub fn goes_on(&mut self, now: Moment) {
        self.due = now;
    }

    /// The attempt ended and something is missing still. Gives the backoff, unless an event took its
    /// place.
    pub fn ended(&mut self, now: Moment) -> Option<Duration> {
        self.running = false;
        if let Some(anew) = self.anew.take() {
            self.due = anew;
            return None;
        }
        let backoff = backoff(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        self.due = now + backoff;
        Some(backoff)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Moment = Moment::from_millis(1_000_000);

    fn at(millis: u64) -> Moment {
        NOW + Duration::from_millis(millis)
    }

    #[test]
    fn waits_double_to_two_minutes_and_grow_again_after_four_hours() {
        let seconds: Vec<u64> = (0..7).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(seconds, [20, 40, 80, 120, 120, 120, 120]);
        let four_hours: Duration = (0..PATIENT_AFTER).map(backoff).sum();
        assert!(four_hours.as_secs().abs_diff(4 * 60 * 60) < 10 * 60);
        let first = PATIENT_AFTER - 1;
        let minutes: Vec<u64> = (first..first + 9)
            .map(|n| backoff(n).as_secs() / 60)
            .collect();
        assert_eq!(minutes, [2, 4, 8, 16, 32, 64, 128, 240, 240]);
        assert_eq!(backoff(u32::MAX), LONGEST_PATIENT_BACKOFF);
    }

    #[test]
    fn events_bring_an_attempt_forward_and_never_back() {
        let mut timing = Timing::due_at(at(180_000));
        timing.event(at(500));
        assert_eq!(timing.due(), at(500));
        timing.event(at(180_100));
        assert_eq!(timing.due(), at(500));
    }

    #[test]
    fn an_event_during_an_attempt_takes_the_place_of_its_backoff() {
        let mut timing = Timing::due_at(NOW);
        for expected in [20, 40, 80] {
            timing.begin();
            assert_eq!(timing.ended(NOW), Some(Duration::from_secs(expected)));
        }
        timing.begin();
        timing.event(at(180_000));
        assert_eq!(timing.due(), NOW + Duration::from_secs(80));
        timing.event(at(9_500));
        timing.event(at(190_000));
        assert_eq!(timing.ended(at(4_000)), None);
        assert_eq!((timing.due(), timing.attempts()), (at(9_500), 0));
        timing.begin();
        assert_eq!(timing.ended(NOW), Some(FIRST_BACKOFF));
    }

    #[test]
    fn who_has_used_much_goes_behind_and_is_forgiven() {
        let mut used = Used::none(NOW);
        assert_eq!(used.rank(), 0);
        let mut ranks = Vec::new();
        for seconds in [9, 1, 50, 240, 900, 1_000_000] {
            used.more(Duration::from_secs(seconds), NOW);
            ranks.push(used.rank());
        }
        assert_eq!(ranks, [0, 1, 2, 3, 4, 4]);
        // An hour at most, halved each half hour.
        let mut now = NOW;
        let mut ranks = Vec::new();
        for _ in 0..10 {
            now = now + FORGIVEN;
            used.age(now);
            ranks.push(used.rank());
        }
        assert_eq!(ranks, [4, 3, 3, 2, 2, 1, 1, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn a_burst_becomes_one_attempt(offsets in prop::collection::vec(0u64..100, 1..10)) {
            let mut timing = Timing::due_at(at(offsets[0] + 500));
            for offset in &offsets[1..] {
                timing.event(at(offset + 500));
            }
            prop_assert_eq!(timing.due(), at(offsets.iter().min().unwrap() + 500));
        }
    }
}
