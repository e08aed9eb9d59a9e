//! How many events a connection may still send: a token bucket.

use std::time::{Duration, Instant};

/// Holds a minute's worth of events and fills at that rate. Starts full.
#[derive(Debug)]
pub struct Allowance {
    per_minute: u32,
    left: f64,
    at: Instant,
}

impl Allowance {
    /// So many events a minute.
    pub fn new(per_minute: u32, now: Instant) -> Self {
        Self {
            per_minute,
            left: f64::from(per_minute),
            at: now,
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        let rate = f64::from(self.per_minute) / Duration::from_secs(60).as_secs_f64();
        let filled = self.left + passed.as_secs_f64() * rate;
        self.left = filled.min(f64::from(self.per_minute));
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_at_once_then_at_its_rate() {
        let start = Instant::now();
        let mut allowance = Allowance::new(60, start);
        for _ in 0..60 {
            assert!(allowance.take(start));
        }
        assert!(!allowance.take(start));
        let later = start + Duration::from_secs(2);
        assert!(allowance.take(later) && allowance.take(later));
        assert!(!allowance.take(later));
        let much_later = start + Duration::from_secs(600);
        for _ in 0..60 {
            assert!(allowance.take(much_later));
        }
        assert!(!allowance.take(much_later));
    }
}
