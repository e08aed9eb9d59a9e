//! What of the hunt must outlive the process, as the journal keeps it, and back: leases with the
//! fetches under them, and when each domain was asked in the last minute. The queue itself is made
//! anew from what waits.

use std::{collections::HashMap, sync::Arc};

use grasp_proto::words::{Identifier, Oid};

use super::{
    queue::{Lease, Queue, Running},
    urls::CloneUrl,
};
use crate::{
    clock::Moment,
    journal::{Fetch, Key, Record, Write, key},
};

const RUN: u8 = b'n';
const LEASE: u8 = b'l';
const WANTS: u8 = b'o';
const REQUESTS: u8 = b'r';

impl Write {
    /// The relay has started so often.
    pub fn run(number: u64) -> Self {
        Self::Keep(key(RUN, b""), Record::Run { number })
    }

    /// An identifier is leased.
    pub(super) fn leased(identifier: &Identifier, lease: &Lease) -> Self {
        let fetch = lease.fetch.as_ref().map(|running| Fetch {
            number: running.number,
            url: running.url.url.clone(),
            domain: running.url.domain.clone(),
            server: running.url.server.clone(),
        });
        let record = Record::Lease {
            identifier: identifier.to_string(),
            token: lease.token,
            worker: lease.worker.clone(),
            until: lease.until,
            fetch,
            given: lease.given.iter().copied().collect(),
        };
        Self::Keep(key(LEASE, identifier.as_str().as_bytes()), record)
    }

    /// What the fetch that runs under a lease is for.
    pub fn wants(identifier: &Identifier, fetch: u64, oids: &[Oid]) -> Self {
        let record = Record::Wants {
            identifier: identifier.to_string(),
            fetch,
            oids: oids.iter().map(Oid::to_hex).collect(),
        };
        Self::Keep(key(WANTS, identifier.as_str().as_bytes()), record)
    }

    /// No fetch runs under a lease.
    pub fn no_wants(identifier: &Identifier) -> Self {
        Self::Forget(key(WANTS, identifier.as_str().as_bytes()))
    }

    /// An identifier is leased no more.
    pub fn unleased(identifier: &Identifier) -> Self {
        Self::Forget(key(LEASE, identifier.as_str().as_bytes()))
    }

    /// A domain was asked.
    pub fn requests(domain: &str, at: Vec<Moment>) -> Self {
        let record = Record::Requests {
            domain: domain.to_owned(),
            at,
        };
        Self::Keep(key(REQUESTS, domain.as_bytes()), record)
    }

    /// A domain was not asked in the last minute.
    pub fn no_requests(domain: &str) -> Self {
        Self::Forget(key(REQUESTS, domain.as_bytes()))
    }
}

/// How often the relay had started before.
pub fn runs(records: &[(Key, Record)]) -> u64 {
    let run = |record: &Record| match record {
        Record::Run { number } => Some(*number),
        _ => None,
    };
    let runs = records.iter().filter_map(|(_, record)| run(record));
    runs.max().unwrap_or_default()
}

fn running(fetch: &Fetch, wants: &HashMap<u64, Arc<[Oid]>>, now: Moment) -> Option<Running> {
    Some(Running {
        number: fetch.number,
        url: CloneUrl {
            url: fetch.url.clone(),
            domain: fetch.domain.clone(),
            server: fetch.server.clone(),
        },
        // Without them it was never given to anybody.
        wants: wants.get(&fetch.number)?.clone(),
        since: now,
    })
}

impl Queue {
    /// Puts back what the journal had of the hunt, as far as it still matters.
    pub fn restore(&mut self, records: &[(Key, Record)], now: Moment) {
        let wants = |record: &Record| match record {
            Record::Wants { fetch, oids, .. } => {
                let oids = oids.iter().map(|hex| Oid::from_hex(hex).ok());
                Some((*fetch, oids.collect::<Option<_>>()?))
            }
            _ => None,
        };
        let all = records.iter().map(|(_, record)| record);
        let wants: HashMap<u64, Arc<[Oid]>> = all.filter_map(wants).collect();
        for (_, record) in records {
            match record {
                Record::Requests { domain, at } => {
                    self.restore_requests(domain, at.clone(), now);
                }
                Record::Lease {
                    identifier,
                    token,
                    worker,
                    until,
                    fetch,
                    given,
                } => {
                    let Ok(identifier) = Identifier::parse(identifier) else {
                        tracing::error!("a lease in the journal was left out");
                        continue;
                    };
                    let fetch = fetch.as_ref();
                    let fetch = fetch.and_then(|fetch| running(fetch, &wants, now));
                    let fetches = (fetch, given.clone());
                    self.restore_lease(&identifier, *token, worker, *until, fetches, now);
                }
                _ => {}
            }
        }
        for (key, record) in records {
            if let Record::Wants { fetch, .. } = record
                && !self.budget.is_running(*fetch)
            {
                self.forget(key.clone());
            }
        }
    }
}
