//! What this worker has done since it started, for the operator. Of it, only the speed of a fetch decides
//! something, and not here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use grasp_proto::contract::relay::{HuntCounts, failed::Why};

use super::speed::Speed;

/// Counts of all fetches.
#[derive(Debug, Default)]
pub struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    fetching: AtomicU32,
}

impl Counts {
    /// As the relay is told.
    pub fn told(&self, concurrency: usize) -> HuntCounts {
        HuntCounts {
            fetches_succeeded: self.succeeded.load(Relaxed),
            fetches_failed: self.failed.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            fetching: self.fetching.load(Relaxed),
            concurrency: u32::try_from(concurrency).unwrap_or(u32::MAX),
        }
    }

    /// A fetch has ended by itself: with a pack, or why not.
    pub fn ended(&self, failed: Option<Why>) {
        let which = match failed {
            None => &self.succeeded,
            Some(_) => &self.failed,
        };
        which.fetch_add(1, Relaxed);
        metrics::counter!("ngit_hunt_fetches_total", "outcome" => outcome(failed)).increment(1);
    }
}

/// How a fetch ended, as it stands in metrics.
fn outcome(failed: Option<Why>) -> &'static str {
    match failed {
        None => "arrived",
        Some(Why::Unspecified) => "unspecified",
        Some(Why::Server) => "server",
        Some(Why::NotThere) => "not_there",
        Some(Why::Forbidden) => "forbidden",
        Some(Why::Busy) => "busy",
        Some(Why::Slow) => "slow",
        Some(Why::Large) => "large",
        Some(Why::BadPack) => "bad_pack",
        Some(Why::Ours) => "ours",
        Some(Why::Unwell) => "unwell",
    }
}

/// What is looked at before it first happens is there, at 0.
pub fn begin() {
    for failed in [
        None,
        Some(Why::Server),
        Some(Why::NotThere),
        Some(Why::Busy),
        Some(Why::Slow),
        Some(Why::Ours),
    ] {
        metrics::counter!("ngit_hunt_fetches_total", "outcome" => outcome(failed)).absolute(0);
    }
    metrics::counter!("ngit_hunt_bytes_total").absolute(0);
    metrics::gauge!("ngit_hunt_leases").set(0.0);
    metrics::gauge!("ngit_hunt_fetching").set(0.0);
    // Being there is all it takes.
    drop(metrics::histogram!("ngit_hunt_fetch_seconds"));
}

/// One fetch, counted as running until this is dropped, the bytes of it that have come, and how fast.
#[derive(Debug)]
pub struct Meter {
    all: Arc<Counts>,
    bytes: AtomicU64,
    speed: Arc<Speed>,
    begun: Instant,
}

impl Meter {
    /// A fetch begins.
    pub fn begin(all: &Arc<Counts>) -> Self {
        all.fetching.fetch_add(1, Relaxed);
        metrics::gauge!("ngit_hunt_fetching").increment(1.0);
        Self {
            all: all.clone(),
            bytes: AtomicU64::new(0),
            speed: Arc::default(),
            begun: Instant::now(),
        }
    }

    /// How fast they come.
    pub fn speed(&self) -> &Arc<Speed> {
        &self.speed
    }

    /// So many bytes more of the pack.
    pub fn add(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.bytes.fetch_add(bytes, Relaxed);
        self.all.bytes.fetch_add(bytes, Relaxed);
        self.speed.came(bytes);
        metrics::counter!("ngit_hunt_bytes_total").increment(bytes);
    }

    /// Those that have come.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.all.fetching.fetch_sub(1, Relaxed);
        metrics::gauge!("ngit_hunt_fetching").decrement(1.0);
        metrics::histogram!("ngit_hunt_fetch_seconds").record(self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_counts_while_it_runs_and_its_bytes_for_ever() {
        let counts = Arc::new(Counts::default());
        let meter = Meter::begin(&counts);
        meter.add(7);
        meter.add(5);
        assert_eq!((counts.told(8).fetching, meter.bytes()), (1, 12));
        drop(meter);
        counts.ended(None);
        counts.ended(Some(Why::Slow));
        let told = counts.told(8);
        assert_eq!((told.fetching, told.bytes, told.concurrency), (0, 12, 8));
        assert_eq!((told.fetches_succeeded, told.fetches_failed), (1, 1));
    }
}
