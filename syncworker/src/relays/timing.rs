//! How long things take with remote relays.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::health::SILENCE;

/// How long things take with remote relays. Not configured; tests shorten it.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Leases are renewed, and it is told how relays do, no more seldom.
    pub renewal: Duration,
    /// Between two questions.
    pub request: Duration,
    /// Without any answer to a question.
    pub answer: Duration,
    /// Until an answer is complete.
    pub page: Duration,
    /// Without the next step of a reconciliation.
    pub reconciliation: Duration,
    /// When one asks to be left alone.
    pub silence: Duration,
    /// Before what failed is asked for again.
    pub retry: Duration,
    /// Before a subscription that was refused is opened again.
    pub refused: Duration,
    /// Between two looks at what there is no subscription for.
    pub poll: Duration,
    /// A connection that lasts so long is a good one.
    pub well: Duration,
    /// Between pings,
    pub ping: Duration,
    /// and how long a connection may be silent in spite of them.
    pub idle: Duration,
    /// How long one message may take to be written.
    pub write: Duration,
    /// After an interruption that is not longer, what is confirmed stays so,
    pub short_interruption: Duration,
    /// and what was made so long before it is asked for again.
    pub overlap: Duration,
    /// How long a relay's document counts.
    pub document: Duration,
    /// Everything is asked for from the start again after so long,
    pub full_pass: Duration,
    /// and up to so much later.
    pub full_pass_jitter: Duration,
    /// What time it is, of the clock that events are dated by.
    pub clock: fn() -> SystemTime,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            renewal: seconds(20),
            request: seconds(1),
            answer: seconds(30),
            page: seconds(300),
            reconciliation: seconds(30),
            silence: SILENCE,
            retry: seconds(600),
            refused: seconds(60),
            poll: seconds(300),
            well: seconds(30),
            ping: seconds(50),
            idle: seconds(150),
            write: seconds(30),
            short_interruption: seconds(15 * 60 + OVERLAP),
            overlap: seconds(OVERLAP),
            document: seconds(6 * 3600),
            full_pass: seconds(23 * 3600),
            full_pass_jitter: seconds(2 * 3600),
            clock: SystemTime::now,
        }
    }
}

/// Seconds before an interruption from which on is asked again: clocks differ, and a state is served
/// as late as its git data arrives, half an hour after it was made and more.
const OVERLAP: u64 = 45 * 60;

impl Timing {
    /// Seconds since 1970, `ago` before now.
    pub fn seconds_ago(&self, ago: Duration) -> u64 {
        let now = (self.clock)()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        now.saturating_sub(ago).as_secs()
    }

    /// Since when something is asked for that may be missing from now on.
    pub(super) fn overlap_begin(&self) -> u64 {
        self.seconds_ago(self.overlap)
    }

    /// The earliest moment from which on it is asked again; what was missed before that is found by
    /// asking from the start.
    pub(super) fn oldest(&self) -> u64 {
        self.seconds_ago(self.short_interruption)
    }

    /// Until everything is asked for from the start again.
    pub(super) fn next_full_pass(&self) -> Duration {
        self.full_pass + self.full_pass_jitter.mul_f64(rand::random())
    }
}
