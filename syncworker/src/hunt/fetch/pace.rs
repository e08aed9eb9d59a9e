//! How slowly a pack may come.

use std::time::Duration;

/// The slowest a transfer may be on average, in bytes a second: from which age on, how slow. Age is the
/// time that the server has made us wait.
///
/// Slower ones hold a place that others could use, and an identifier that others share; one server
/// could hold them all. So what is asked of a transfer rises with what it takes: most are over before
/// the first step, and a poor line or a server that is busy costs nobody anything up to there.
const FLOORS: [(Duration, u64); 3] = [
    (Duration::ZERO, 4 << 10),
    // A few hundred kilobytes have come by now, which is a small repository, or it is none.
    (Duration::from_secs(2 * 60), 32 << 10),
    // Half a megabit: what a server at the slower end of a home line still gives. At this floor the
    // largest pack, 16 GiB, takes three days; at the first it would take 48.
    (Duration::from_secs(10 * 60), 64 << 10),
];
/// How long a transfer may bring nothing at its beginning.
const GRACE: Duration = Duration::from_secs(20);
/// How long one may stand still that was faster before. Bounds what a fast beginning buys.
const CREDIT: Duration = Duration::from_secs(60);

/// Keeps a transfer at its floor or above: waiting uses time up, bytes bring it back at that rate. How
/// long it takes in all is of no account. Only time in which we waited for the server counts; what we
/// need ourselves is no fault of its.
#[derive(Debug, Clone)]
pub struct Pace {
    age: Duration,
    left: Duration,
}

impl Pace {
    /// At the beginning.
    pub fn new() -> Self {
        Self {
            age: Duration::ZERO,
            left: GRACE,
        }
    }

    /// The slowest it may be now, in bytes a second.
    pub fn floor(&self) -> u64 {
        let reached = FLOORS.iter().filter(|(age, _)| *age <= self.age);
        reached.map(|(_, floor)| *floor).max().unwrap_or(1)
    }

    /// How long the next bytes may take.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// So long nothing came.
    pub fn waited(&mut self, time: Duration) {
        self.age += time;
        self.left = self.left.saturating_sub(time);
    }

    /// So much came.
    pub fn came(&mut self, bytes: usize) {
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.floor();
        self.left = CREDIT.min(self.left + Duration::from_nanos(nanos));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Long behind the last floor.
    const EVER: Duration = Duration::from_secs(6 * 3600);

    /// How long a transfer lasts that brings `bytes` every `every`; for ever, if it does not end.
    fn lasts(bytes: usize, every: Duration) -> Duration {
        let (mut pace, mut lasted) = (Pace::new(), Duration::ZERO);
        while lasted < EVER {
            if pace.left() < every {
                return lasted + pace.left();
            }
            pace.waited(every);
            pace.came(bytes);
            lasted += every;
        }
        EVER
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[test]
    fn a_drip_ends() {
        assert!(lasts(1, Duration::from_millis(200)) < Duration::from_secs(21));
        assert!(lasts(4000, Duration::from_secs(1)) < Duration::from_secs(200));
        let mut fast = Pace::new();
        fast.came(1 << 30);
        assert_eq!(fast.left(), CREDIT);
    }

    #[test]
    fn the_floor_rises_with_what_it_takes() {
        let mut pace = Pace::new();
        let mut floors = Vec::new();
        for _ in 0..15 {
            floors.push(pace.floor() >> 10);
            pace.waited(minutes(1));
        }
        assert_eq!(
            floors,
            [4, 4, 32, 32, 32, 32, 32, 32, 32, 32, 64, 64, 64, 64, 64]
        );
        // Just above the first floor it was let be for 48 days.
        let drip = lasts(5 << 10, Duration::from_secs(1));
        assert!(minutes(2) < drip && drip < minutes(4), "{drip:?}");
        let drip = lasts(33 << 10, Duration::from_secs(1));
        assert!(minutes(10) < drip && drip < minutes(15), "{drip:?}");
    }

    /// The highest.
    const SLOWEST: u64 = 64 << 10;

    proptest! {
        #[test]
        fn what_moves_never_ends(rate in SLOWEST..1_000_000, millis in 500_u64..19_000) {
            let bytes = usize::try_from((rate * millis).div_ceil(1000)).unwrap();
            prop_assert_eq!(lasts(bytes, Duration::from_millis(millis)), EVER);
        }

        #[test]
        fn what_is_slower_ends(rate in 1..SLOWEST * 9 / 10, millis in 100_u64..19_000) {
            let bytes = usize::try_from(rate * millis / 1000).unwrap();
            let lasted = lasts(bytes, Duration::from_millis(millis));
            // Ten minutes up to the last floor, ten for the credit to be used up, and the step it is in.
            prop_assert!(lasted <= minutes(21), "{:?}", lasted);
        }
    }
}
