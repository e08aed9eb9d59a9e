//! What of the hunt must outlive the process, as the journal keeps it, and back: leases with the
//! fetches under them, and when each domain was asked in the last minute. The queue itself is made
//! anew from what waits.

use grasp_proto::words::{Identifier, Oid};

use super::{
    queue::{Queue, Running},
    urls::CloneUrl,
};
use crate::{
    clock::Moment,
    journal::{Fetch, Key, Record},
};

const RUN: u8 = b'n';
const LEASE: u8 = b'l';
const REQUESTS: u8 = b'r';

fn key(kind: u8, name: &str) -> Key {
    let mut key = vec![kind];
    key.extend_from_slice(name.as_bytes());
    key
}

/// Something that is to be on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// This record.
    Keep(Key, Record),
    /// No record.
    Forget(Key),
}

impl Write {
    /// The relay has started so often.
    pub fn run(number: u64) -> Self {
        Self::Keep(key(RUN, ""), Record::Run { number })
    }

    /// An identifier is leased.
    pub fn leased(
        identifier: &Identifier,
        token: u64,
        worker: &str,
        until: Moment,
        fetch: Option<&Running>,
    ) -> Self {
        let fetch = fetch.map(|running| Fetch {
            number: running.number,
            url: running.url.url.clone(),
            domain: running.url.domain.clone(),
            server: running.url.server.clone(),
            wants: running.wants.iter().map(Oid::to_hex).collect(),
        });
        let record = Record::Lease {
            identifier: identifier.to_string(),
            token,
            worker: worker.to_owned(),
            until,
            fetch,
        };
        Self::Keep(key(LEASE, identifier.as_str()), record)
    }

    /// An identifier is leased no more.
    pub fn unleased(identifier: &Identifier) -> Self {
        Self::Forget(key(LEASE, identifier.as_str()))
    }

    /// A domain was asked.
    pub fn requests(domain: &str, at: Vec<Moment>) -> Self {
        let record = Record::Requests {
            domain: domain.to_owned(),
            at,
        };
        Self::Keep(key(REQUESTS, domain), record)
    }

    /// A domain was not asked in the last minute.
    pub fn no_requests(domain: &str) -> Self {
        Self::Forget(key(REQUESTS, domain))
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

fn running(fetch: &Fetch, now: Moment) -> Option<Running> {
    let wants = fetch.wants.iter().map(|hex| Oid::from_hex(hex).ok());
    Some(Running {
        number: fetch.number,
        url: CloneUrl {
            url: fetch.url.clone(),
            domain: fetch.domain.clone(),
            server: fetch.server.clone(),
        },
        wants: wants.collect::<Option<_>>()?,
        since: now,
    })
}

impl Queue {
    /// Puts back what the journal had of the hunt, as far as it still matters.
    pub fn restore(&mut self, records: &[(Key, Record)], now: Moment) {
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
                } => {
                    let Ok(identifier) = Identifier::parse(identifier) else {
                        tracing::error!("a lease in the journal was left out");
                        continue;
                    };
                    let fetch = fetch.as_ref().and_then(|fetch| running(fetch, now));
                    self.restore_lease(&identifier, *token, worker, *until, fetch, now);
                }
                _ => {}
            }
        }
    }
}
