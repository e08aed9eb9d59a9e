//! The hunt as metrics show it. Whatever the rest of the world names, the number of series is
//! bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{queue::Queue, workers::Worker};
use crate::clock::Moment;

/// Domains that have a series of their own; the others share one.
const DOMAINS: usize = 64;
/// Domains that ever have: a series, once made, stays in the process.
const NAMES: usize = 1_024;
/// A domain that was not asked for so long leaves its series to another.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// The label of what shares one series.
const OTHER: &str = "other";

/// What is shown of which domain.
#[derive(Debug, Default)]
pub struct Meters {
    /// Those with a series, and when they were asked last.
    named: BTreeMap<String, Moment>,
    /// Those that ever had one.
    names: BTreeSet<String>,
    /// Requests that run in the domains without a series of their own.
    others: BTreeMap<String, usize>,
}

impl Meters {
    /// Everything there is, at 0.
    pub fn begin() -> Self {
        metrics::gauge!("purgatory_sync_queue_size").set(0.0);
        metrics::gauge!("ngit_hunt_servers_set_aside").set(0.0);
        metrics::counter!("ngit_hunt_set_aside_total").absolute(0);
        metrics::counter!("purgatory_sync_attempts_total").absolute(0);
        metrics::counter!("purgatory_sync_oids_fetched_total").absolute(0);
        metrics::gauge!("purgatory_domain_in_flight", "domain" => OTHER).set(0.0);
        metrics::counter!("purgatory_domain_requests_total", "domain" => OTHER).absolute(0);
        // Being there is all it takes.
        drop(metrics::histogram!("purgatory_sync_backoff_seconds"));
        Self::default()
    }

    /// The label of a domain that is asked.
    fn label(&mut self, domain: &str, now: Moment) -> String {
        if let Some(asked) = self.named.get_mut(domain) {
            *asked = now;
            return domain.to_owned();
        }
        // While a request runs it is counted where it began.
        if self.others.contains_key(domain) {
            return OTHER.to_owned();
        }
        if self.names.len() >= NAMES && !self.names.contains(domain) {
            return OTHER.to_owned();
        }
        if self.named.len() >= DOMAINS {
            let longest = self.named.iter().min_by_key(|(_, asked)| **asked);
            match longest.map(|(name, asked)| (name.clone(), *asked)) {
                Some((idle, asked)) if now.since(asked) >= IDLE => {
                    self.named.remove(&idle);
                    in_flight(&idle, 0);
                }
                _ => return OTHER.to_owned(),
            }
        }
        self.named.insert(domain.to_owned(), now);
        self.names.insert(domain.to_owned());
        domain.to_owned()
    }

    /// A domain is asked.
    pub fn asked(&mut self, domain: &str, now: Moment) {
        let label = self.label(domain, now);
        metrics::counter!("purgatory_domain_requests_total", "domain" => label).increment(1);
    }

    /// So many requests run in a domain.
    fn runs(&mut self, domain: String, running: usize, now: Moment) {
        let label = self.label(&domain, now);
        if label != OTHER {
            in_flight(&label, running);
            return;
        }
        match running {
            0 => self.others.remove(&domain),
            _ => self.others.insert(domain, running),
        };
        in_flight(OTHER, self.others.values().sum());
    }

    /// Shows what has changed.
    #[allow(clippy::cast_precision_loss)]
    pub fn show(&mut self, queue: &mut Queue, now: Moment) {
        metrics::gauge!("purgatory_sync_queue_size").set(queue.len() as f64);
        let set_aside = queue.budget.set_aside();
        metrics::gauge!("ngit_hunt_servers_set_aside").set(set_aside as f64);
        for domain in queue.budget.changed() {
            let running = queue.budget.running(&domain);
            self.runs(domain, running, now);
        }
        for (slot, worker) in queue.workers.changed() {
            show_worker(slot, worker.as_ref());
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn in_flight(label: &str, running: usize) {
    let label = label.to_owned();
    metrics::gauge!("purgatory_domain_in_flight", "domain" => label).set(running as f64);
}

#[allow(clippy::cast_precision_loss)]
fn show_worker(slot: usize, worker: Option<&Worker>) {
    let slot = slot.to_string();
    let counts = worker.map(|worker| worker.counts).unwrap_or_default();
    let leases = worker.map_or(0, |worker| worker.leases);
    let gauge = |name: &'static str, value: f64| {
        metrics::gauge!(name, "worker" => slot.clone()).set(value);
    };
    gauge("ngit_worker_leases", leases as f64);
    gauge("ngit_worker_fetching", f64::from(counts.fetching));
    gauge("ngit_worker_bytes", counts.bytes as f64);
    let fetches = |outcome: &'static str, count: u64| {
        metrics::gauge!("ngit_worker_fetches", "worker" => slot.clone(), "outcome" => outcome)
            .set(count as f64);
    };
    fetches("succeeded", counts.succeeded);
    fetches("failed", counts.failed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_go_to_those_in_use_and_are_bounded() {
        let mut meters = Meters::default();
        let at = |seconds: u64| Moment::from_millis(1_000 * seconds);
        for n in 0..DOMAINS {
            assert_eq!(meters.label(&format!("d{n}"), at(0)), format!("d{n}"));
        }
        assert_eq!(meters.label("new", at(1)), OTHER);
        assert_eq!(meters.label("d0", at(500)), "d0");
        // All the others are idle: theirs are the new ones' now, of each as long as it is asked.
        assert_eq!(meters.label("new", at(600)), "new");
        assert_eq!(meters.named.len(), DOMAINS);
        assert_eq!(meters.label("d0", at(700)), "d0");
        // What began in the shared series ends there.
        for n in 0..DOMAINS {
            meters.label(&format!("e{n}"), at(700));
        }
        meters.runs("late".to_owned(), 2, at(700));
        assert_eq!(meters.others.len(), 1);
        assert_eq!(meters.label("late", at(9_000)), OTHER);
        meters.runs("late".to_owned(), 0, at(9_000));
        assert!(meters.others.is_empty());
        assert_eq!(meters.label("late", at(9_000)), "late");
        for n in 0..2 * NAMES as u64 {
            meters.label(&format!("f{n}"), at(10_000 + 600 * n));
        }
        assert_eq!((meters.names.len(), meters.named.len()), (NAMES, DOMAINS));
    }
}
