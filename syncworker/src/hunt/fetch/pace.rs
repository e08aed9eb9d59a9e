//! How slowly a pack may come.

use std::time::Duration;

/// The slowest a transfer may be on average, in bytes a second. Slower ones hold a place that others
/// could use, and one server could hold them all.
const SLOWEST: u64 = 4 << 10;
/// How long a transfer may bring nothing at its beginning.
const GRACE: Duration = Duration::from_secs(20);
/// How long one may stand still that was faster before. Bounds what a fast beginning buys.
const CREDIT: Duration = Duration::from_secs(60);

/// Keeps a transfer at [`SLOWEST`] or above: waiting uses time up, bytes bring it back at that rate.
/// Only time in which we waited for the server counts; what we need ourselves is no fault of its.
#[derive(Debug, Clone)]
pub struct Pace {
    left: Duration,
}

impl Pace {
    /// At the beginning.
    pub fn new() -> Self {
        Self { left: GRACE }
    }

    /// How long the next bytes may take.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// So long nothing came.
    pub fn waited(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// So much came.
    pub fn came(&mut self, bytes: usize) {
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / SLOWEST;
        self.left = CREDIT.min(self.left + Duration::from_nanos(nanos));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How long a transfer lasts that brings `bytes` every `every`.
    fn lasts(bytes: usize, every: Duration) -> Duration {
        let (mut pace, mut lasted) = (Pace::new(), Duration::ZERO);
        while lasted < Duration::from_secs(86_400) {
            if pace.left() < every {
                return lasted + pace.left();
            }
            pace.waited(every);
            pace.came(bytes);
            lasted += every;
        }
        lasted
    }

    #[test]
    fn a_drip_ends() {
        assert!(lasts(1, Duration::from_millis(200)) < Duration::from_secs(21));
        assert!(lasts(4000, Duration::from_secs(1)) < Duration::from_secs(1000));
        let mut fast = Pace::new();
        fast.came(1 << 30);
        assert_eq!(fast.left(), CREDIT);
    }

    proptest! {
        #[test]
        fn what_moves_never_ends(rate in SLOWEST..1_000_000, millis in 1_u64..19_000) {
            let bytes = usize::try_from((rate * millis).div_ceil(1000)).unwrap();
            let day = Duration::from_secs(86_400);
            prop_assert!(lasts(bytes, Duration::from_millis(millis)) >= day);
        }

        #[test]
        fn what_is_slower_ends(rate in 1..SLOWEST * 9 / 10, millis in 1_u64..19_000) {
            let bytes = usize::try_from(rate * millis / 1000).unwrap();
            let lasted = lasts(bytes, Duration::from_millis(millis));
            prop_assert!(lasted <= Duration::from_secs(400), "{:?}", lasted);
        }
    }
}
