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
    choice::{Known, RELAYS, choose},
    reports::{Counts, Report, State},
};
use crate::{
    clock::Moment,
    journal::Write,
    targets::{
        Asked,
        relay_url::{Named, RelayUrl},
    },
};

/// Workers that have a share; more of them get nothing.
const WORKERS: usize = 256;
/// For this part of a lease nothing is leased after a worker has come: those that start together
/// share from the beginning.
const SETTLES: u32 = 40;
/// For this part of a lease a worker that was heard of once is remembered; one that starts and falls
/// over, again and again, is not to take a share each time.
const ON_TRIAL: u32 = 10;

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
    /// What its holder said last that it counted in all; `None`: it was said to an earlier run.
    counted: Option<Counts>,
}

/// A worker that is heard of.
#[derive(Debug, Clone, Copy)]
struct Worker {
    since: Moment,
    seen: Moment,
    /// It was heard of again some time after it came.
    stays: bool,
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
    /// Of these: served.
    pub full: usize,
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
            full: 0,
            lease: None,
            report: Report::default(),
        }
    }

    /// Whether it is configured, or a repository names it that it is taken for.
    pub fn is_wanted(&self) -> bool {
        self.bootstrap || self.targets > 0
    }

    /// Whether it matters more than what waits.
    pub fn is_settled(&self) -> bool {
        self.bootstrap || self.full > 0
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
    /// At most `WORKERS`.
    workers: BTreeMap<String, Worker>,
    /// It was said what is wanted: until then nothing is unwanted.
    is_told: bool,
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
            is_told: false,
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
            counted: None,
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

    /// Of these: for how many the others make room.
    pub fn counting(&self) -> usize {
        self.workers.values().filter(|worker| worker.stays).count()
    }

    /// These relays are named by repositories, and no others. Of too many those are taken that
    /// matter most; what was taken before makes room for what served repositories name.
    pub fn want(&mut self, asked: &BTreeMap<RelayUrl, Asked>) {
        self.is_told = true;
        let chosen = choose(asked, |url| {
            let known = self.relays.get(url)?;
            Some(match known.lease {
                Some(_) => Known::Leased,
                None => Known::Free,
            })
        });
        if chosen.len() < asked.len() {
            let left_out = asked.len() - chosen.len();
            tracing::debug!(left_out, "more relays are named than are synced with");
        }
        for (url, remote) in &mut self.relays {
            let asked = chosen.get(url);
            let full = asked.map_or(0, |asked| asked.full);
            if remote.is_settled() != (remote.bootstrap || full > 0) {
                self.changed.insert(url.clone());
            }
            remote.targets = asked.map_or(0, |asked| asked.targets);
            remote.full = full;
            // One of an earlier run goes by its normal form until somebody names it.
            if let Some(asked) = asked.filter(|_| *remote.label == *url.as_str()) {
                remote.label = asked.label.clone();
                self.changed.insert(url.clone());
            }
        }
        self.forget_unwanted();
        for (url, asked) in chosen {
            if self.relays.contains_key(url) || self.relays.len() >= 2 * RELAYS {
                continue;
            }
            let mut remote = Remote::new(&asked.label);
            remote.targets = asked.targets;
            remote.full = asked.full;
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
        let settles = self.lease / SETTLES;
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.seen = now;
            if !worker.stays && now.since(worker.since) >= settles {
                worker.stays = true;
                self.more = true;
            }
        } else if self.workers.len() < WORKERS {
            let heard = Worker {
                since: now,
                seen: now,
                stays: false,
            };
            self.workers.insert(worker.to_owned(), heard);
            self.more = true;
            // Those who come meanwhile do not put it off: somebody may come all the time.
            if self.settled <= now {
                self.settled = now + settles;
            }
        }
    }

    /// Until when a worker is remembered that is not heard of again.
    fn remembered(&self, worker: &Worker) -> Moment {
        match worker.stays {
            true => worker.seen + self.lease,
            false => worker.since + self.lease / ON_TRIAL,
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
        let gone: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, worker)| self.remembered(worker) <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for worker in gone {
            tracing::info!(worker, "a worker is not heard of any more");
            self.workers.remove(&worker);
            self.more = true;
        }
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
        let gone = self.workers.values().map(|worker| self.remembered(worker));
        let settled = Some(self.settled).filter(|settled| *settled > now);
        ends.chain(gone).chain(settled).min()
    }

    /// A lease has ended.
    fn end(&mut self, url: &RelayUrl) {
        if let Some(remote) = self.relays.get_mut(url)
            && remote.lease.take().is_some()
        {
            remote.report.ended();
            self.writes.push(Write::relay_unleased(url));
            self.more = true;
            self.changed.insert(url.clone());
        }
    }

    /// How many wanted relays each worker holds that is heard of; of those that have only just come
    /// too, or not.
    fn held(&self, new_too: bool) -> BTreeMap<&str, usize> {
        let mut held: BTreeMap<&str, usize> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.stays || new_too)
            .map(|(name, _)| (name.as_str(), 0))
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
    fn allowed(&self, new_too: bool) -> BTreeMap<String, usize> {
        let wanted = self.relays.values().filter(|remote| remote.is_wanted());
        let wanted = wanted.count();
        let held = self.held(new_too);
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
        // Nobody gives anything back for one that has only just come, and may be gone already.
        let allowed = self.allowed(false);
        let mut surplus: BTreeMap<String, usize> = BTreeMap::new();
        for (worker, held) in self.held(false) {
            let allowed = allowed.get(worker).copied().unwrap_or_default();
            surplus.insert(worker.to_owned(), held.saturating_sub(allowed));
        }
        let is_told = self.is_told;
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
                _ if !is_wanted => is_told,
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
        let held = self.held(true).get(worker).copied().unwrap_or_default();
        let allowed = self.allowed(true).get(worker).copied();
        let allowed = allowed.unwrap_or_default();
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
                counted: Some(Counts::default()),
            });
            let bootstrap = remote.bootstrap && remote.targets == 0;
            self.writes.push(Write::relay_leased(&url, token, worker));
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
        // Who holds something has been here for a while, under an earlier run perhaps.
        if let Some(worker) = self.workers.get_mut(worker).filter(|_| !kept.is_empty()) {
            worker.stays = true;
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

    /// Of what a worker counted since its lease began: what it had not said before.
    pub fn more_counted(
        &mut self,
        url: &RelayUrl,
        worker: &str,
        token: u64,
        totals: Counts,
    ) -> Counts {
        let Ok(lease) = self.holder(url, worker, token) else {
            return Counts::default();
        };
        let before = lease.counted.replace(totals);
        before.map_or_else(Counts::default, |before| totals.since(&before))
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
