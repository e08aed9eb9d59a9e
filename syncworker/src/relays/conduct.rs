//! Whether a remote relay behaves: what it sends that nobody can use, beside what it sends that
//! somebody can.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use grasp_proto::contract::relay::submit_verdict::What;

/// So many bad messages are forgiven,
const FORGIVEN: u64 = 100;

/// and one more for so many good ones.
const GOOD_FOR_ONE: u64 = 10;

/// Answers to what was asked a moment ago weigh so much less: they may have been on their way.
const STRAYS_FOR_ONE: u64 = 20;

/// One connection's.
#[derive(Debug, Default)]
pub struct Conduct {
    good: AtomicU64,
    bad: AtomicU64,
    strays: AtomicU64,
}

impl Conduct {
    fn bad(&self, count: u64, why: &'static str) {
        self.bad.fetch_add(count, Relaxed);
        metrics::counter!("ngit_relays_bad_messages_total", "why" => why).increment(count);
    }

    /// No message that a relay may send.
    pub fn garbage(&self) {
        self.bad(1, "garbage");
    }

    /// An event that was not asked for.
    pub fn unrelated(&self) {
        self.bad(1, "unrelated");
    }

    /// Events whose id or signature is wrong.
    pub fn forged(&self, count: usize) {
        if count > 0 {
            self.bad(count as u64, "forged");
        }
    }

    /// An answer to what is not asked any more, or never was.
    pub fn stray(&self) {
        self.strays.fetch_add(1, Relaxed);
    }

    /// Messages that were too long to be taken: it may well store such events.
    pub fn overlong(&self, count: u64) {
        self.strays.fetch_add(count, Relaxed);
        metrics::counter!("ngit_relays_overlong_messages_total").increment(count);
    }

    /// What our relay said of an event.
    pub fn judged(&self, what: What) {
        let verdict = match what {
            What::Accepted => "accepted",
            What::Purgatory => "purgatory",
            What::Duplicate => "duplicate",
            What::Rejected => "rejected",
            What::KeptForLater => "kept_for_later",
            What::Forged => "forged",
            What::Failed | What::Unspecified => "failed",
        };
        metrics::counter!("ngit_relays_verdicts_total", "verdict" => verdict).increment(1);
        match what {
            What::Forged => self.bad(1, "forged"),
            _ => _ = self.good.fetch_add(1, Relaxed),
        }
    }

    /// Whether it may go on.
    pub fn is_tolerable(&self) -> bool {
        let bad = self.bad.load(Relaxed) + self.strays.load(Relaxed) / STRAYS_FOR_ONE;
        bad <= FORGIVEN + self.good.load(Relaxed) / GOOD_FOR_ONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_is_forgiven_and_much_is_not() {
        let conduct = Conduct::default();
        conduct.forged(100);
        assert!(conduct.is_tolerable());
        conduct.garbage();
        assert!(!conduct.is_tolerable());
        for _ in 0..10 {
            conduct.judged(What::Rejected);
        }
        assert!(
            conduct.is_tolerable(),
            "a relay that is useful may have its faults"
        );
        for _ in 0..STRAYS_FOR_ONE {
            conduct.stray();
        }
        assert!(!conduct.is_tolerable());
    }
}
