//! Back from the journal.

use std::{collections::BTreeMap, sync::Arc};

use grasp_proto::words::Identifier;

use super::{Lease, Queue, Running, URLS_A_TURN};
use crate::{clock::Moment, journal::Write};

impl Queue {
    /// Puts back what the journal had: a lease that still holds, with the fetch that runs under it.
    pub fn restore_lease(
        &mut self,
        identifier: &Identifier,
        token: u64,
        worker: &str,
        until: Moment,
        (fetch, given): (Option<Running>, Vec<u64>),
        now: Moment,
    ) {
        if until <= now {
            self.writes.push(Write::unleased(identifier));
            return;
        }
        // Not further ahead than any lease: the clock may have been set back.
        let until = until.min(now + self.rules.lease);
        self.enqueue(identifier, now, false, None);
        self.last_number = self.last_number.max(token);
        if let Some(fetch) = &fetch {
            let url = &fetch.url;
            self.last_number = self.last_number.max(fetch.number);
            self.budget
                .restore(fetch.number, &url.domain, &url.server, now);
        }
        self.last_number = given.iter().copied().fold(self.last_number, u64::max);
        self.workers.seen(worker, now);
        let tried = fetch.as_ref().map(|fetch| fetch.url.url.clone());
        let lease = Lease {
            token,
            worker: worker.to_owned(),
            until,
            since: now,
            fetch,
            given: given.into_iter().take(URLS_A_TURN).collect(),
            answers: BTreeMap::new(),
            wake: Arc::default(),
        };
        self.place_leased(identifier, lease);
        if let Some(entry) = self.entries.get_mut(identifier) {
            entry.tried.extend(tried);
        }
    }

    /// Puts back when a domain was asked.
    pub fn restore_requests(&mut self, domain: &str, at: Vec<Moment>, now: Moment) {
        self.budget.restore_recent(domain, at, now);
        if self.budget.recent(domain).is_empty() {
            self.writes.push(Write::no_requests(domain));
        }
    }
}
