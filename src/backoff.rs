//! How long to wait before a child that died is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);

/// A child that lived this long was well: the next wait is a first one.
const WELL: Duration = Duration::from_secs(30);

/// Doubles from 200 ms to 10 s while the child keeps dying young.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after a child that lived for `lived`.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= WELL {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_a_bound_and_starts_anew_after_a_good_life() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8)
            .map(|_| backoff.after(Duration::ZERO).as_millis())
            .collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.after(WELL), FIRST);
        assert_eq!(backoff.after(Duration::ZERO), FIRST * 2);
    }
}
