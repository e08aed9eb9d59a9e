//! The workers that are heard of: shown, never believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::clock::Moment;

/// Workers that are known at once; more of them work all the same, and are not shown.
pub const WORKERS: usize = 64;
/// After how long without a word a worker is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5 * 60);

/// What a worker says it has done since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Fetches that brought something.
    pub succeeded: u64,
    /// Fetches that did not.
    pub failed: u64,
    /// Bytes of packs.
    pub bytes: u64,
    /// Fetches that are running.
    pub fetching: u32,
    /// Identifiers it can hunt for at once.
    pub concurrency: u32,
}

/// One worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// When it was last heard of.
    pub seen: Moment,
    /// Identifiers leased to it.
    pub leases: usize,
    /// What it says of itself.
    pub counts: Counts,
    /// By which of `WORKERS` numbers it goes in the metrics: the series of one that has gone are
    /// another's later.
    pub slot: usize,
}

/// The workers by name.
#[derive(Debug, Default)]
pub struct Workers {
    known: BTreeMap<String, Worker>,
    /// Numbers of those that changed, came or went since this was asked last.
    changed: BTreeSet<usize>,
    /// One was heard of, since the process began.
    was_one_seen: bool,
}

impl Workers {
    /// Whether one was ever heard of, since the process began.
    pub fn was_one_seen(&self) -> bool {
        self.was_one_seen
    }

    /// It is heard of.
    pub fn seen(&mut self, name: &str, now: Moment) {
        self.was_one_seen = true;
        if let Some(worker) = self.known.get_mut(name) {
            worker.seen = now;
            return;
        }
        if self.known.len() >= WORKERS {
            return;
        }
        let taken: BTreeSet<usize> = self.known.values().map(|worker| worker.slot).collect();
        let slot = (1..=WORKERS).find(|slot| !taken.contains(slot));
        let worker = Worker {
            seen: now,
            leases: 0,
            counts: Counts::default(),
            slot: slot.unwrap_or_default(),
        };
        self.changed.insert(worker.slot);
        tracing::info!(worker = name, metrics = worker.slot, "a worker is here");
        self.known.insert(name.to_owned(), worker);
    }

    /// It says what it has done.
    pub fn counts(&mut self, name: &str, counts: Counts) {
        if let Some(worker) = self.known.get_mut(name) {
            worker.counts = counts;
            self.changed.insert(worker.slot);
        }
    }

    /// An identifier is leased to it.
    pub fn leased(&mut self, name: &str) {
        if let Some(worker) = self.known.get_mut(name) {
            worker.leases += 1;
            self.changed.insert(worker.slot);
        }
    }

    /// One of its leases has ended.
    pub fn unleased(&mut self, name: &str) {
        if let Some(worker) = self.known.get_mut(name) {
            worker.leases = worker.leases.saturating_sub(1);
            self.changed.insert(worker.slot);
        }
    }

    /// Time has passed: those nobody has heard of are forgotten.
    pub fn tick(&mut self, now: Moment) {
        let changed = &mut self.changed;
        self.known.retain(|name, worker| {
            let stays = worker.leases > 0 || now.since(worker.seen) < FORGOTTEN_AFTER;
            if !stays {
                tracing::info!(worker = name, "a worker has gone");
                changed.insert(worker.slot);
            }
            stays
        });
    }

    /// Those that are known.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Worker)> {
        self.known
            .iter()
            .map(|(name, worker)| (name.as_str(), worker))
    }

    /// By number, those that changed since this was asked last; `None` has gone.
    pub fn changed(&mut self) -> Vec<(usize, Option<Worker>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        let of = |slot| self.known.values().find(|worker| worker.slot == slot);
        changed.map(|slot| (slot, of(slot).copied())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_bounded_and_their_numbers_used_again() {
        let mut workers = Workers::default();
        let at = |seconds: u64| Moment::from_millis(1_000 * seconds);
        for n in 0..2 * WORKERS {
            workers.seen(&format!("w{n}"), at(0));
        }
        assert_eq!(workers.all().count(), WORKERS);
        workers.seen("w0", at(200));
        workers.leased("w1");
        workers.tick(at(300));
        let left: Vec<&str> = workers.all().map(|(name, _)| name).collect();
        assert_eq!(left, ["w0", "w1"]);
        workers.seen("new", at(300));
        let slot = |workers: &Workers, name| workers.known[name].slot;
        assert_eq!(slot(&workers, "new"), 3);
        let changed = workers.changed();
        assert_eq!(changed.len(), WORKERS);
        for (slot, worker) in changed {
            assert_eq!(worker.is_some(), slot <= 3, "{slot}");
        }
        assert!(workers.changed().is_empty());
    }
}
