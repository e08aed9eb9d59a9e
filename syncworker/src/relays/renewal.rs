//! Leases kept, and the relay told how remote relays do: all of them in every period, and those of
//! which there is news a moment after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use grasp_proto::contract::relay::{HeldRelay, RelayReport, RenewedRelay};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Relay, Relays, usable};
use crate::hunt::{backoff::Backoff, context::CallError};

/// How long news waits for more, so that there are no more than so many reports: what is shown of the
/// whole service is not to be older than 300 ms.
const GATHERED: Duration = Duration::from_millis(100);

impl Relays {
    /// Renews what is held, and says how it does, for ever.
    pub(super) async fn renew(&self) {
        let mut period = self.period.subscribe();
        let mut backoff = Backoff::default();
        let (mut renewed_at, mut all_due) = (Instant::now(), Instant::now());
        loop {
            let every = *period.borrow_and_update();
            let all = all_due <= Instant::now();
            let reported = self.reports(all);
            let mut answers = true;
            if all || !reported.is_empty() {
                let sent = Instant::now();
                answers = self.report(&reported, sent, every).await;
                match answers {
                    true => backoff.reset(),
                    // What was not heard is said with everything else.
                    false => all_due = Instant::now() + backoff.wait(),
                }
                if all && answers {
                    (renewed_at, all_due) = (sent, sent + every);
                }
                self.sweep();
            }
            loop {
                tokio::select! {
                    biased;
                    () = sleep_until(all_due) => break,
                    // A lease that is shorter than those before is renewed sooner.
                    _ = period.changed() => {
                        all_due = all_due.min(renewed_at + *period.borrow_and_update());
                    }
                    () = self.world.news.notified(), if answers => {
                        sleep_until(all_due.min(Instant::now() + GATHERED)).await;
                        break;
                    }
                }
            }
        }
    }

    /// How everything that is held does, or only that of which there is news.
    fn reports(&self, all: bool) -> Vec<(Arc<Relay>, RelayReport)> {
        let held = self.held();
        let relays = held.values().map(|held| &held.relay);
        let some = relays.filter(|relay| all || relay.status.has_news());
        some.map(|relay| {
            let report = relay.status.report(&relay.url, relay.token);
            (relay.clone(), report)
        })
        .collect()
    }

    /// Says how these do, and keeps their leases; whether there was an answer.
    async fn report(
        &self,
        reported: &[(Arc<Relay>, RelayReport)],
        sent: Instant,
        every: Duration,
    ) -> bool {
        let reports = reported.iter().map(|(_, report)| report.clone()).collect();
        let patience = every.max(Duration::from_secs(1));
        match timeout(patience, self.world.sync.renew(reports)).await {
            Ok(Ok(answer)) => {
                self.renewed(reported, sent, answer).await;
                true
            }
            Ok(Err(CallError::Lost)) => {
                let names = reported.iter().map(|(relay, _)| HeldRelay {
                    url: relay.url.clone(),
                    token: relay.token,
                });
                self.lose(names.collect());
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "leases of relays cannot be renewed");
                false
            }
            Err(_) => false,
        }
    }

    async fn renewed(
        &self,
        reported: &[(Arc<Relay>, RelayReport)],
        sent: Instant,
        answer: Vec<RenewedRelay>,
    ) {
        let answered: BTreeMap<(String, u64), RenewedRelay> = answer
            .into_iter()
            .map(|renewed| ((renewed.url.clone(), renewed.token), renewed))
            .collect();
        let (mut back, mut lost, mut periods) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (relay, _) in reported {
            let name = HeldRelay {
                url: relay.url.clone(),
                token: relay.token,
            };
            match answered.get(&(relay.url.clone(), relay.token)) {
                None => lost.push(name),
                Some(renewed) => {
                    let valid = Duration::from_millis(renewed.valid_millis.into());
                    periods.insert(self.period(valid));
                    let held = self.held();
                    let held = held.get(&relay.url);
                    if let Some(held) = held.filter(|held| held.relay.token == relay.token) {
                        held.end.send_replace(sent + usable(valid));
                    }
                    if renewed.give_back {
                        back.push(name);
                    }
                }
            }
        }
        if let Some(shortest) = periods.pop_first() {
            self.period.send_if_modified(|now| {
                let other = *now != shortest;
                *now = shortest;
                other
            });
        }
        self.lose(lost);
        self.give_back(back).await;
    }

    /// These are somebody else's.
    fn lose(&self, names: Vec<HeldRelay>) {
        for name in names {
            let held = self.with_held(|all| {
                let ours = all.get(&name.url)?.relay.token == name.token;
                ours.then(|| all.remove(&name.url)).flatten()
            });
            if let Some(held) = held {
                tracing::warn!(relay = name.url, "its lease is lost");
                held.stop.cancel();
            }
        }
    }

    /// Forgets what has ended by itself.
    fn sweep(&self) {
        self.with_held(|all| all.retain(|_, held| !held.stopped.is_cancelled()));
    }
}
