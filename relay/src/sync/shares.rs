//! Which worker holds which remote relay: shared out evenly among the workers that are heard of, each
//! relay leased to one of them only. Pure: every method is told the time.
//!
//! A relay goes to another worker only after it was given back or its lease ran out. Who has more
//! than its share is asked to give back what is connected least; nothing else moves. What a worker
//! held under an earlier run of the relay stays its own for one lease time, or longer if it renews.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};

use super::{
    records::Write,
    reports::{Report, State},
};
use crate::{
    clock::Moment,
    targets::{
        Asked,
        relay_url::{Named, RelayUrl},
    },
};

/// Workers that have a share; more of them get nothing.
const WORKERS: usize = 256;
/// Remote relays that are synced with: those that served repositories name come first.
const RELAYS: usize = 4_096;
/// For this part of a lease nothing is leased after a worker has come: those that start together
/// share from the beginning.
const SETTLES: u32 = 40;

/// The lease is not the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease of this relay is lost")]
pub struct Lost;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    worker: String,
    token: u64,
    until: Moment,
    give_back: bool,
}

/// A remote relay.
#[derive(Debug, Clone)]
pub struct Remote {
    /// How it was written first.
    pub label: Arc<str>,
    /// Configured to sync from.
    pub bootstrap: bool,
    /// Repositories that name it.
    pub targets: usize,
    lease: Option<Lease>,
    /// What its worker says of it.
    pub report: Report,
}

impl Remote {
    fn new(label: &Arc<str>) -> Self {
        Self {
            label: label.clone(),
            bootstrap: false,
            targets: 0,
            lease: None,
            report: Report::default(),
        }
    }

    fn is_wanted(&self) -> bool {
        self.bootstrap || self.targets > 0
    }

    /// The worker that holds it.
    pub fn worker(&self) -> Option<&str> {
        self.lease.as_ref().map(|lease| lease.worker.as_str())
    }
}

/// A relay that was leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// Which.
    pub url: RelayUrl,
    /// The fencing token.
    pub token: u64,
    /// Configured to sync from, and wanted by no repository.
    pub bootstrap: bool,
}

/// A lease that still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// Of which relay.
    pub url: RelayUrl,
    /// Under which token.
    pub token: u64,
    /// To be given back.
    pub give_back: bool,
}

/// All remote relays, and who holds them.
#[derive(Debug)]
pub struct Shares {
    lease: Duration,
    relays: BTreeMap<RelayUrl, Remote>,
    /// When each worker was last heard of. At most `WORKERS`.
    workers: BTreeMap<String, Moment>,
    /// Nothing is leased before.
    settled: Moment,
    last_token: u64,
    writes: Vec<Write>,
    /// Somebody may be given more than before.
    more: bool,
    /// Relays whose report or holder changed.
    changed: BTreeSet<RelayUrl>,
}

impl Shares {
    /// Nothing is wanted yet; tokens will be greater than `first_token`.
    pub fn new(lease: Duration, first_token: u64, bootstrap: Option<&Named>) -> Self {
        let mut shares = Self {
            lease,
            relays: BTreeMap::new(),
            workers: BTreeMap::new(),
            settled: Moment::default(),
            last_token: first_token,
            writes: Vec::new(),
            more: false,
            changed: BTreeSet::new(),
        };
        if let Some(named) = bootstrap {
            let mut remote = Remote::new(&named.label);
            remote.bootstrap = true;
            shares.changed.insert(named.url.clone());
            shares.relays.insert(named.url.clone(), remote);
        }
        shares
    }

    /// How long a lease holds.
    pub fn lease_time(&self) -> Duration {
        self.lease
    }

    /// A lease of an earlier run: it may still be held.
    pub fn restore(&mut self, url: &RelayUrl, worker: &str, token: u64, now: Moment) {
        self.last_token = self.last_token.max(token);
        let label: Arc<str> = url.as_str().into();
        let remote = self.relays.entry(url.clone());
        let remote = remote.or_insert_with(|| Remote::new(&label));
        remote.lease = Some(Lease {
            worker: worker.to_owned(),
            token,
            until: now + self.lease,
            give_back: false,
        });
        self.changed.insert(url.clone());
    }

    /// What is to be on disk since this was asked last.
    pub fn writes(&mut self) -> Vec<Write> {
        mem::take(&mut self.writes)
    }

    /// Whether somebody may be given more than when this was asked last.
    pub fn more(&mut self) -> bool {
        mem::take(&mut self.more)
    }

    /// The relays that look different since this was asked last.
    pub fn changed(&mut self) -> BTreeSet<RelayUrl> {
        mem::take(&mut self.changed)
    }

    /// A relay, if it is known.
    pub fn get(&self, url: &RelayUrl) -> Option<&Remote> {
        self.relays.get(url)
    }

    /// All relays.
    pub fn all(&self) -> impl Iterator<Item = (&RelayUrl, &Remote)> {
        self.relays.iter()
    }

    /// How many workers are heard of.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// These relays are named by repositories, and no others.
    pub fn want(&mut self, asked: &BTreeMap<RelayUrl, Asked>) {
        for (url, remote) in &mut self.relays {
            remote.targets = asked.get(url).map_or(0, |asked| asked.targets);
        }
        self.forget_unwanted();
        let mut new: Vec<_> = asked
            .iter()
            .filter(|(url, _)| !self.relays.contains_key(url))
            .collect();
        new.sort_by_key(|(_, asked)| asked.full == 0);
        let room = RELAYS.saturating_sub(self.relays.len());
        if new.len() > room {
            tracing::warn!(left_out = new.len() - room, "too many relays to sync with");
        }
        for (url, asked) in new.into_iter().take(room) {
            let mut remote = Remote::new(&asked.label);
            remote.targets = asked.targets;
            self.relays.insert(url.clone(), remote);
            self.changed.insert(url.clone());
        }
        self.more = true;
        self.balance();
    }

    fn forget_unwanted(&mut self) {
        let changed = &mut self.changed;
        self.relays.retain(|url, remote| {
            let stays = remote.is_wanted() || remote.lease.is_some();
            if !stays {
                changed.insert(url.clone());
            }
            stays
        });
    }

    /// A worker is heard of.
    fn seen(&mut self, worker: &str, now: Moment) {
        if let Some(seen) = self.workers.get_mut(worker) {
            *seen = now;
        } else if self.workers.len() < WORKERS {
            self.workers.insert(worker.to_owned(), now);
            self.more = true;
            self.settled = now + self.lease / SETTLES;
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        let run_out = |remote: &Remote| {
            let lease = remote.lease.as_ref();
            lease.is_some_and(|lease| lease.until <= now)
        };
        let lost: Vec<RelayUrl> = self
            .relays
            .iter()
            .filter(|(_, remote)| run_out(remote))
            .map(|(url, _)| url.clone())
            .collect();
        for url in &lost {
            self.end(url);
        }
        if self.settled <= now && self.settled != Moment::default() {
            self.settled = Moment::default();
            self.more = true;
        }
        let (lease, before) = (self.lease, self.workers.len());
        self.workers.retain(|worker, seen| {
            // A clock that was set back would keep it for ever.
            *seen = (*seen).min(now);
            let stays = now.since(*seen) < lease;
            if !stays {
                tracing::info!(worker, "a worker is not heard of any more");
            }
            stays
        });
        self.more |= self.workers.len() < before;
        self.forget_unwanted();
        self.balance();
    }

    /// When time alone changes something.
    pub fn next_moment(&self, now: Moment) -> Option<Moment> {
        let leases = self
            .relays
            .values()
            .filter_map(|remote| remote.lease.as_ref());
        let ends = leases.map(|lease| lease.until);
        let gone = self.workers.values().map(|seen| *seen + self.lease);
        let settled = Some(self.settled).filter(|settled| *settled > now);
        ends.chain(gone).chain(settled).min()
    }

    /// A lease has ended.
    fn end(&mut self, url: &RelayUrl) {
        if let Some(remote) = self.relays.get_mut(url)
            && remote.lease.take().is_some()
        {
            remote.report.ended();
            self.writes.push(Write::unleased(url));
            self.more = true;
            self.changed.insert(url.clone());
        }
    }

    /// How many wanted relays each worker that is heard of holds.
    fn held(&self) -> BTreeMap<&str, usize> {
        let mut held: BTreeMap<&str, usize> = self
            .workers
            .keys()
            .map(|worker| (worker.as_str(), 0))
            .collect();
        for remote in self.relays.values().filter(|remote| remote.is_wanted()) {
            if let Some(count) = remote.worker().and_then(|worker| held.get_mut(worker)) {
                *count += 1;
            }
        }
        held
    }

    /// How many relays each worker may hold: the same for all within one, and the one more for
    /// those who hold more already.
    fn allowed(&self) -> BTreeMap<String, usize> {
        let wanted = self.relays.values().filter(|remote| remote.is_wanted());
        let wanted = wanted.count();
        let held = self.held();
        let Some(each) = wanted.checked_div(held.len()) else {
            return BTreeMap::new();
        };
        let more = wanted % held.len();
        let mut order: Vec<(&str, usize)> = held.into_iter().collect();
        order.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        let share = |(place, (worker, _)): (usize, (&str, usize))| {
            (worker.to_owned(), each + usize::from(place < more))
        };
        order.into_iter().enumerate().map(share).collect()
    }

    /// Says of each leased relay whether it is to be given back.
    fn balance(&mut self) {
        let allowed = self.allowed();
        let mut surplus: BTreeMap<String, usize> = BTreeMap::new();
        for (worker, held) in self.held() {
            let allowed = allowed.get(worker).copied().unwrap_or_default();
            surplus.insert(worker.to_owned(), held.saturating_sub(allowed));
        }
        let mut leased: Vec<(&RelayUrl, &mut Remote)> = self
            .relays
            .iter_mut()
            .filter(|(_, remote)| remote.lease.is_some())
            .collect();
        // What is being given back already, then what is connected least, then what came last.
        leased.sort_by_key(|(_, remote)| {
            let lease = remote.lease.as_ref();
            let order = lease.map(|lease| (!lease.give_back, u64::MAX - lease.token));
            let (stays, age) = order.unwrap_or_default();
            (stays, remote.report.state > State::Connecting, age)
        });
        for (url, remote) in leased {
            let is_wanted = remote.is_wanted();
            let Some(lease) = &mut remote.lease else {
                continue;
            };
            let give_back = match surplus.get_mut(&lease.worker) {
                _ if !is_wanted => true,
                Some(left) if *left > 0 => {
                    *left -= 1;
                    true
                }
                _ => false,
            };
            if give_back && !lease.give_back {
                tracing::debug!(%url, worker = lease.worker, "it is to be given back");
            }
            lease.give_back = give_back;
        }
    }

    /// Gives a worker what is free of its share.
    pub fn lease(&mut self, worker: &str, now: Moment) -> Vec<Leased> {
        self.seen(worker, now);
        self.tick(now);
        if now < self.settled {
            return Vec::new();
        }
        let held = self.held().get(worker).copied().unwrap_or_default();
        let allowed = self.allowed().get(worker).copied().unwrap_or_default();
        let room = allowed.saturating_sub(held);
        let mut free: Vec<(bool, RelayUrl)> = self
            .relays
            .iter()
            .filter(|(_, remote)| remote.is_wanted() && remote.lease.is_none())
            .map(|(url, remote)| (!remote.bootstrap, url.clone()))
            .collect();
        free.sort();
        let mut leased = Vec::new();
        for (_, url) in free.into_iter().take(room) {
            self.last_token += 1;
            let token = self.last_token;
            let Some(remote) = self.relays.get_mut(&url) else {
                continue;
            };
            remote.lease = Some(Lease {
                worker: worker.to_owned(),
                token,
                until: now + self.lease,
                give_back: false,
            });
            let bootstrap = remote.bootstrap && remote.targets == 0;
            self.writes.push(Write::leased(&url, token, worker));
            self.changed.insert(url.clone());
            leased.push(Leased {
                url,
                token,
                bootstrap,
            });
        }
        leased
    }

    fn holder(&mut self, url: &RelayUrl, worker: &str, token: u64) -> Result<&mut Lease, Lost> {
        let lease = self
            .relays
            .get_mut(url)
            .and_then(|remote| remote.lease.as_mut());
        lease
            .filter(|lease| lease.token == token && lease.worker == worker)
            .ok_or(Lost)
    }

    /// Whether a worker holds a relay.
    pub fn check(
        &mut self,
        url: &RelayUrl,
        worker: &str,
        token: u64,
        now: Moment,
    ) -> Result<(), Lost> {
        self.tick(now);
        self.holder(url, worker, token).map(|_| ())
    }

    /// Keeps what a worker holds; what is left out is lost.
    pub fn renew(
        &mut self,
        worker: &str,
        held: impl IntoIterator<Item = (RelayUrl, u64)>,
        now: Moment,
    ) -> Vec<Renewed> {
        self.tick(now);
        self.seen(worker, now);
        let until = now + self.lease;
        let mut kept = Vec::new();
        for (url, token) in held {
            if let Ok(lease) = self.holder(&url, worker, token) {
                lease.until = until;
                kept.push((url, token));
            }
        }
        // The worker may be new to this run: whose leases are whose share is known only now.
        self.balance();
        let renewed = |(url, token): (RelayUrl, u64)| {
            let give_back = self.holder(&url, worker, token).ok()?.give_back;
            Some(Renewed {
                url,
                token,
                give_back,
            })
        };
        kept.into_iter().filter_map(renewed).collect()
    }

    /// What a worker says of a relay that it holds.
    pub fn report(
        &mut self,
        url: &RelayUrl,
        worker: &str,
        token: u64,
        report: impl FnOnce(&mut Report),
    ) -> Result<(), Lost> {
        self.holder(url, worker, token)?;
        if let Some(remote) = self.relays.get_mut(url) {
            report(&mut remote.report);
            self.changed.insert(url.clone());
        }
        Ok(())
    }

    /// A worker gives relays back. One that gives back all it has, and more than it was asked for,
    /// stops: its share is the others' at once.
    pub fn release(
        &mut self,
        worker: &str,
        held: impl IntoIterator<Item = (RelayUrl, u64)>,
        now: Moment,
    ) {
        let mut stops = false;
        for (url, token) in held {
            if let Ok(lease) = self.holder(&url, worker, token) {
                stops |= !lease.give_back;
                self.end(&url);
            }
        }
        let holds = |remote: &Remote| remote.worker() == Some(worker);
        if stops && !self.relays.values().any(holds) {
            self.workers.remove(worker);
        }
        self.tick(now);
    }
}

#[cfg(test)]
#[path = "shares_tests.rs"]
mod tests;
