//! What of the leases of remote relays must outlive the process, as the journal keeps it, and back:
//! who was given what, and from which number on tokens are new. Renewals are not written: after a
//! start every lease is taken to have been renewed at the last moment.

use grasp_proto::{contract::git::Grant, transport::GrantKey};

use super::shares::Shares;
use crate::{
    clock::Moment,
    journal::{Key, Record, Write, key},
    targets::relay_url::RelayUrl,
};

const RUN: u8 = b'm';
const LEASE: u8 = b'w';
/// Bits of a token that count within one run of the relay.
const BITS_A_RUN: u32 = 32;

impl Write {
    /// A relay is leased.
    pub fn relay_leased(url: &RelayUrl, token: u64, worker: &str) -> Self {
        let record = Record::RelayLease {
            url: url.to_string(),
            token,
            worker: worker.to_owned(),
        };
        Self::Keep(key(LEASE, url.as_str().as_bytes()), record)
    }

    /// A relay is leased no more.
    pub fn relay_unleased(url: &RelayUrl) -> Self {
        Self::Forget(key(LEASE, url.as_str().as_bytes()))
    }
}

/// What the journal says of the runs before.
#[derive(Debug)]
pub struct Before {
    /// This run's number.
    run: u64,
    /// Workers of the run before can still be heard of.
    same_workers: bool,
}

impl Before {
    /// Reads it. Where credentials are others than before – they are made for the run when all
    /// processes start together – the workers of before went with the process that started them.
    pub fn read(records: &[(Key, Record)], seal: &GrantKey, now: Moment) -> Self {
        let run = |record: &Record| match record {
            Record::SyncRun { number, sealed } => Some((*number, sealed.clone())),
            _ => None,
        };
        let last = records.iter().find_map(|(_, record)| run(record));
        let (last, same_workers) = match last {
            Some((number, sealed)) => (number, seal.open(&sealed).is_ok()),
            None => (0, false),
        };
        Self {
            // Where nothing is kept, time counts.
            run: (last + 1).max(now.as_secs()),
            same_workers,
        }
    }

    /// A number less than every token of this run, and no less than any of those before.
    pub fn first_token(&self) -> u64 {
        self.run << BITS_A_RUN
    }

    /// To be on disk before anything is leased.
    pub fn record(&self, seal: &GrantKey) -> (Key, Record) {
        let record = Record::SyncRun {
            number: self.run,
            sealed: seal.seal(&Grant::default()),
        };
        (key(RUN, b""), record)
    }

    /// Puts the leases back that may still be held; gives what is to be forgotten.
    pub fn restore(&self, records: &[(Key, Record)], shares: &mut Shares, now: Moment) -> Vec<Key> {
        let mut void = Vec::new();
        for (key, record) in records {
            let Record::RelayLease { url, token, worker } = record else {
                continue;
            };
            match RelayUrl::parse(url).filter(|_| self.same_workers) {
                Some(url) => shares.restore(&url, worker, *token, now),
                None => void.push(key.clone()),
            }
        }
        void
    }
}
