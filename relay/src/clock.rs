//! Time that tests can set.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of wall-clock time, in milliseconds since 1970: it means the same after a restart.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Moment(u64);

impl Moment {
    /// From milliseconds since 1970.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Whole seconds since 1970, as events count.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// So much earlier.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(millis))
    }

    /// How long it is since `earlier`; nothing if that is still to come.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        let millis = u64::try_from(later.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

/// Where the relay's sense of time comes from. Cheap to clone; clones tell the same time.
///
/// The system's clock is read once, when this one is made, and goes on from there as time passes, while
/// the machine is suspended too: a wall clock that is set anew, forward or back, neither ends a lease nor
/// holds a deadline up. So its moments mean the same after a restart, as near as the wall clock was right at both starts,
/// and may differ from the wall clock's by what that was corrected since: for what another process
/// compares with its own wall clock there is [`Clock::wall`].
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    /// It was this moment when the machine had been up for so long.
    Passing(Moment, Duration),
    /// Moved by hand.
    Set(Arc<AtomicU64>),
}

fn wall() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Moment(0) + since.unwrap_or_default()
}

/// How long the machine has been up, the time that it was suspended for included.
fn uptime() -> Duration {
    #[cfg(target_os = "linux")]
    const ID: ClockId = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const ID: ClockId = ClockId::Monotonic;
    let up = clock_gettime(ID);
    let seconds = u64::try_from(up.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(up.tv_nsec).unwrap_or_default())
}

impl Clock {
    /// A clock that begins at the system's time.
    pub fn system() -> Self {
        Self(Source::Passing(wall(), uptime()))
    }

    /// A clock that stands still until it is moved.
    pub fn standing_at(moment: Moment) -> Self {
        Self(Source::Set(Arc::new(AtomicU64::new(moment.0))))
    }

    /// What time it is: never earlier than it was, and later by what has passed.
    pub fn now(&self) -> Moment {
        match &self.0 {
            Source::Passing(began, since) => *began + uptime().saturating_sub(*since),
            Source::Set(set) => Moment(set.load(Ordering::SeqCst)),
        }
    }

    /// What the wall clock of this machine says, for those who look at theirs. Of a clock that
    /// stands still: where that stands.
    pub fn wall(&self) -> Moment {
        match &self.0 {
            Source::Passing(..) => wall(),
            Source::Set(_) => self.now(),
        }
    }

    /// Moves a clock that stands still; the system's clock takes no notice.
    pub fn advance(&self, by: Duration) {
        if let Source::Set(set) = &self.0 {
            let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            set.fetch_add(millis, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_clock_moves_only_when_told() {
        let clock = Clock::standing_at(Moment::from_millis(5_000));
        let same = clock.clone();
        clock.advance(Duration::from_secs(2));
        assert_eq!(same.now(), Moment::from_millis(7_000));
        assert_eq!(same.now().as_secs(), 7);
        assert_eq!(same.wall(), same.now());
    }

    #[test]
    fn the_systems_clock_begins_at_the_wall_clocks_time_and_goes_on_by_itself() {
        let clock = Clock::system();
        let apart = clock
            .wall()
            .since(clock.now())
            .max(clock.now().since(clock.wall()));
        assert!(apart < Duration::from_secs(60), "{apart:?}");
        // As if the wall clock had been set back by a day since: not looked at again.
        let Source::Passing(began, since) = clock.0 else {
            panic!("it stands still");
        };
        let day = Duration::from_secs(24 * 60 * 60);
        let ahead = Clock(Source::Passing(began + day, since));
        assert!(ahead.now() >= began + day);
        assert!(ahead.clone().now() >= ahead.now().min(began + day));
        assert!(ahead.wall() < began + day);
    }
}
