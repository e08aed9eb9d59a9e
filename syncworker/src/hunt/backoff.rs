//! How long to wait before a call that failed is made again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from 200 ms to 5 s while calls keep failing; of each, a random part between half and all
/// is waited, so that workers that failed together do not come back together.
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
    /// The wait after one more failure.
    pub fn wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(LONGEST);
        whole.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// A call went well.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_a_bound_and_never_waits_for_nothing() {
        let mut backoff = Backoff::default();
        for whole in [200, 400, 800, 1600, 3200, 5000, 5000].map(Duration::from_millis) {
            let wait = backoff.wait();
            assert!(whole / 2 <= wait && wait <= whole, "{wait:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }
}
