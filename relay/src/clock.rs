//! Time that tests can set.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

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
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// `None`: the system's.
    set: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still until it is moved.
    pub fn standing_at(moment: Moment) -> Self {
        Self {
            set: Some(Arc::new(AtomicU64::new(moment.0))),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Moment {
        match &self.set {
            Some(set) => Moment(set.load(Ordering::SeqCst)),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                Moment(0) + since.unwrap_or_default()
            }
        }
    }

    /// Moves a clock that stands still; the system's clock takes no notice.
    pub fn advance(&self, by: Duration) {
        if let Some(set) = &self.set {
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
        assert!(Clock::system().now() > Moment::from_millis(1_700_000_000_000));
    }
}
