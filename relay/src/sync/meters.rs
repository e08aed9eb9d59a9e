//! Relay-to-relay sync as metrics show it. Whatever the rest of the world names, the number of
//! series is bounded; the series of a relay that has gone stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    judge::{Method, Outcome},
    reports::{Counts, Report},
    shares::{Remote, Shares},
};
use crate::{clock::Moment, targets::relay_url::RelayUrl};

/// Relays that have series of their own, for the process's life: a series cannot be taken back,
const RELAYS: usize = 500;
/// and of these, relays that nobody asks for but announcements that wait: anybody can make those up.
const OTHERS: usize = 200;

/// What is shown of which relay.
#[derive(Debug)]
pub struct Meters {
    named: BTreeMap<RelayUrl, Arc<str>>,
    labels: BTreeSet<Arc<str>>,
    /// Named ones that only what waits asks for.
    others: BTreeSet<RelayUrl>,
    /// Relays that were connected when they were shown last.
    connected: BTreeSet<RelayUrl>,
}

impl Meters {
    /// Everything there is, at 0.
    pub fn begin() -> Self {
        metrics::gauge!("ngit_sync_relays_tracked_total").set(0.0);
        metrics::gauge!("ngit_sync_relays_connected_total").set(0.0);
        metrics::gauge!("ngit_sync_subscriptions").set(0.0);
        metrics::counter!("ngit_sync_events_synced_total").absolute(0);
        // Being there is all it takes.
        drop(metrics::histogram!("ngit_sync_event_lag_seconds"));
        for index in ["hot", "cold"] {
            metrics::gauge!("ngit_sync_rejected_events", "index" => index).set(0.0);
        }
        for level in ["full", "state_only"] {
            metrics::gauge!("ngit_sync_targets", "level" => level).set(0.0);
        }
        for method in [
            Method::Live,
            Method::Negentropy,
            Method::Paged,
            Method::Again,
        ] {
            for outcome in [
                Outcome::Accepted,
                Outcome::Purgatory,
                Outcome::Duplicate,
                Outcome::Rejected,
                Outcome::KeptForLater,
                Outcome::Forged,
                Outcome::Failed,
            ] {
                let labels = [("outcome", outcome.as_str()), ("method", method.as_str())];
                metrics::counter!("ngit_sync_events_total", &labels).absolute(0);
            }
        }
        Self {
            named: BTreeMap::new(),
            labels: BTreeSet::new(),
            others: BTreeSet::new(),
            connected: BTreeSet::new(),
        }
    }

    /// By what a relay goes; `None`: it has no series.
    fn label(&mut self, url: &RelayUrl, remote: &Remote) -> Option<Arc<str>> {
        if remote.is_settled() {
            self.others.remove(url);
        }
        if let Some(known) = self.named.get(url) {
            return Some(known.clone());
        }
        // By what one of an earlier run goes is known when it is wanted.
        if self.named.len() >= RELAYS || !remote.is_wanted() {
            return None;
        }
        if !remote.is_settled() {
            if self.others.len() >= OTHERS {
                return None;
            }
            self.others.insert(url.clone());
        }
        // Never another's series.
        let label = &remote.label;
        let label = match self.labels.insert(label.clone()) {
            true => label.clone(),
            false => url.as_str().into(),
        };
        self.labels.insert(label.clone());
        self.named.insert(url.clone(), label.clone());
        Some(label)
    }

    /// What a worker counted at a relay since it said so last.
    pub fn counted(&mut self, url: &RelayUrl, remote: &Remote, counts: &Counts) {
        let Some(label) = self.label(url, remote) else {
            return;
        };
        for (result, count) in [("success", counts.succeeded), ("failure", counts.failed)] {
            let labels = [("relay", label.to_string()), ("result", result.to_owned())];
            metrics::counter!("ngit_sync_connection_attempts_total", &labels).increment(count);
        }
        for (method, count) in [
            (Method::Live, counts.live),
            (Method::Negentropy, counts.negentropy),
            (Method::Paged, counts.paged),
        ] {
            let labels = [
                ("relay", label.to_string()),
                ("method", method.as_str().to_owned()),
            ];
            metrics::counter!("ngit_sync_relay_events_received_total", &labels).increment(count);
        }
    }

    /// Shows what has changed.
    #[allow(clippy::cast_precision_loss)]
    pub fn show(&mut self, shares: &mut Shares, now: Moment) {
        let changed = shares.changed();
        if changed.is_empty() {
            return;
        }
        for url in changed {
            let known = shares.get(&url);
            let gone = Report::default();
            let report = known.map_or(&gone, |remote| &remote.report);
            match report.state.is_connected() {
                true => self.connected.insert(url.clone()),
                false => self.connected.remove(&url),
            };
            let label = match known {
                Some(remote) => self.label(&url, remote),
                None => self.named.get(&url).cloned(),
            };
            if let Some(label) = label {
                show_relay(&label, report, now);
            }
        }
        let (mut tracked, mut subscriptions) = (0, 0);
        for (_, remote) in shares.all() {
            tracked += 1;
            subscriptions += u64::from(remote.report.subscriptions);
        }
        let connected = self.connected.len();
        metrics::gauge!("ngit_sync_relays_tracked_total").set(f64::from(tracked));
        metrics::gauge!("ngit_sync_relays_connected_total").set(connected as f64);
        metrics::gauge!("ngit_sync_subscriptions").set(subscriptions as f64);
    }
}

/// What waits is shown as it was when that was said.
fn show_relay(label: &Arc<str>, report: &Report, now: Moment) {
    let gauge = |name: &'static str, value: f64| {
        metrics::gauge!(name, "relay" => label.to_string()).set(value);
    };
    let seconds = |until: Option<Moment>| until.map_or(0.0, |until| until.since(now).as_secs_f64());
    gauge(
        "ngit_sync_relay_connected",
        f64::from(report.state.number()),
    );
    gauge(
        "ngit_sync_relay_status",
        f64::from(report.health(now).number()),
    );
    gauge(
        "ngit_sync_relay_subscriptions",
        f64::from(report.subscriptions),
    );
    gauge(
        "ngit_sync_relay_backoff_seconds",
        seconds(report.next_attempt),
    );
    gauge(
        "ngit_sync_relay_items_confirmed",
        f64::from(report.confirmed),
    );
    gauge("ngit_sync_relay_items_wanted", f64::from(report.wanted));
}

/// How long after it was made an event arrived.
pub fn lag(seconds: u64) {
    #[allow(clippy::cast_precision_loss)]
    metrics::histogram!("ngit_sync_event_lag_seconds").record(seconds as f64);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::targets::Asked;

    fn asked(numbers: std::ops::Range<usize>, full: usize) -> BTreeMap<RelayUrl, Asked> {
        let one = |n| {
            let label: Arc<str> = format!("wss://R{n}.example/").into();
            let asked = Asked {
                label,
                targets: 1,
                full,
            };
            (RelayUrl::parse(&asked.label).unwrap(), asked)
        };
        numbers.map(one).collect()
    }

    #[test]
    fn what_strangers_make_up_leaves_room_for_what_is_served() {
        let mut meters = Meters::begin();
        let mut shares = Shares::new(Duration::from_secs(20), 0, None);
        let mut show = |asked: &BTreeMap<RelayUrl, Asked>| {
            shares.want(asked);
            meters.show(&mut shares, Moment::default());
            (meters.named.len(), meters.others.len())
        };
        assert_eq!(show(&asked(0..1_000, 0)), (OTHERS, OTHERS));
        let served = asked(2_000..2_100, 1);
        assert_eq!(show(&served), (OTHERS + 100, OTHERS));
        // One that is served from now on gives its place to another.
        let mut promoted = asked(0..1_000, 0);
        promoted
            .values_mut()
            .take(1_000)
            .for_each(|one| one.full = 1);
        assert_eq!(show(&promoted), (RELAYS, 0));
    }

    #[test]
    fn a_relay_of_an_earlier_run_goes_by_how_it_is_written() {
        let mut meters = Meters::begin();
        let mut shares = Shares::new(Duration::from_secs(20), 0, None);
        let asked = asked(1..2, 1);
        let (url, named) = asked.first_key_value().unwrap();
        shares.restore(url, "old", 1, Moment::default());
        meters.show(&mut shares, Moment::default());
        assert!(meters.named.is_empty());
        shares.want(&asked);
        meters.show(&mut shares, Moment::default());
        assert_eq!(meters.named[url], named.label);
    }
}
