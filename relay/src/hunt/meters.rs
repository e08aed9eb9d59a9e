//! The hunt as metrics show it. Whatever the rest of the world names, the number of series is
//! bounded.

use std::collections::{BTreeMap, BTreeSet};

use super::{queue::Queue, workers::Worker};

/// Domains that have a series of their own, the first ones of the process's life; the others share
/// one.
const DOMAINS: usize = 64;
/// The label of what shares one series.
const OTHER: &str = "other";

/// What is shown of which domain.
#[derive(Debug, Default)]
pub struct Meters {
    named: BTreeSet<String>,
    /// Requests that run in the domains without a series of their own.
    others: BTreeMap<String, usize>,
}

impl Meters {
    /// Everything there is, at 0.
    pub fn begin() -> Self {
        metrics::gauge!("purgatory_sync_queue_size").set(0.0);
        metrics::counter!("purgatory_sync_attempts_total").absolute(0);
        metrics::counter!("purgatory_sync_oids_fetched_total").absolute(0);
        metrics::gauge!("purgatory_domain_in_flight", "domain" => OTHER).set(0.0);
        metrics::counter!("purgatory_domain_requests_total", "domain" => OTHER).absolute(0);
        // Being there is all it takes.
        drop(metrics::histogram!("purgatory_sync_backoff_seconds"));
        Self::default()
    }

    fn label(&mut self, domain: &str) -> String {
        if self.named.contains(domain) {
            return domain.to_owned();
        }
        if self.named.len() >= DOMAINS {
            return OTHER.to_owned();
        }
        self.named.insert(domain.to_owned());
        domain.to_owned()
    }

    /// A domain is asked.
    pub fn asked(&mut self, domain: &str) {
        let label = self.label(domain);
        metrics::counter!("purgatory_domain_requests_total", "domain" => label).increment(1);
    }

    /// Shows what has changed.
    #[allow(clippy::cast_precision_loss)]
    pub fn show(&mut self, queue: &mut Queue) {
        metrics::gauge!("purgatory_sync_queue_size").set(queue.len() as f64);
        for domain in queue.budget.changed() {
            let mut running = queue.budget.running(&domain);
            let label = self.label(&domain);
            if label == OTHER {
                match running {
                    0 => self.others.remove(&domain),
                    _ => self.others.insert(domain, running),
                };
                running = self.others.values().sum();
            }
            metrics::gauge!("purgatory_domain_in_flight", "domain" => label).set(running as f64);
        }
        for (slot, worker) in queue.workers.changed() {
            show_worker(slot, worker.as_ref());
        }
    }
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
