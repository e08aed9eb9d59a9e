//! Leases: who hunts for what, for how long, and how it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};

use grasp_proto::{transport::Trace, words::Identifier};
use tokio::sync::Notify;

use super::{Answer, Entry, ONE_IN, Place, Queue, Running, Step};
use crate::{clock::Moment, hunt::pending::Rotation, journal::Write};

/// URLs of one turn.
pub const URLS_A_TURN: usize = 16;
/// The longest turn; a fetch that runs is not cut short by it.
pub const TURN: Duration = Duration::from_secs(5 * 60);
/// When others are due, a turn is over after this: slow servers hold a worker up no longer.
pub const YIELDS_AFTER: Duration = Duration::from_secs(60);
/// Turns of one attempt: one that finds ever new URLs ends, too, and the next asks again what was
/// asked first.
pub const TURNS_AN_ATTEMPT: u32 = 16;
/// Identifiers leased by one call.
const MOST_LEASED: usize = 64;

/// The lease is not, or no more, what the caller holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease is lost")]
pub struct Lost;

/// Why a lease ended with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing waits.
    NothingPending,
    /// Every URL was tried.
    NothingLeft,
    /// It goes on at its next turn.
    TurnOver,
    /// It goes on when a domain has room.
    DomainsBusy,
}

/// A lease as its holder is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// Which identifier.
    pub identifier: Identifier,
    /// The fencing token.
    pub token: u64,
    /// What was tried already.
    pub tried: Vec<String>,
    /// The trace of the event that it was queued for.
    pub trace: Option<Trace>,
}

#[derive(Debug)]
pub(in crate::hunt) struct Lease {
    pub(in crate::hunt) token: u64,
    pub(in crate::hunt) worker: String,
    pub(in crate::hunt) until: Moment,
    /// Since when this turn lasts.
    pub(in crate::hunt) since: Moment,
    pub(in crate::hunt) fetch: Option<Running>,
    /// The fetches that were given; as many as URLs in a turn.
    pub(in crate::hunt) given: BTreeSet<u64>,
    /// The reports that were answered, of those.
    pub(in crate::hunt) answers: BTreeMap<u64, Answer>,
    pub(in crate::hunt) wake: Arc<Notify>,
}

pub(super) fn leased(entry: &Entry) -> Option<&Lease> {
    match &entry.place {
        Place::Leased(lease) => Some(lease),
        _ => None,
    }
}

pub(super) fn leased_mut(entry: &mut Entry) -> Option<&mut Lease> {
    match &mut entry.place {
        Place::Leased(lease) => Some(lease),
        _ => None,
    }
}

impl Queue {
    pub(super) fn runs_out(&mut self, identifier: &Identifier, now: Moment) {
        if let Some(lease) = self.entries.get(identifier).and_then(leased) {
            tracing::warn!(%identifier, worker = lease.worker, "a lease ran out");
        }
        if let Some(fetch) = self.abandon(identifier, now) {
            self.once_more(identifier, &fetch);
        }
        self.turn_ends(identifier, now);
    }

    /// The turn is over; the attempt goes on, behind the others that are due.
    fn turn_ends(&mut self, identifier: &Identifier, now: Moment) {
        if let Some(entry) = self.unplace(identifier) {
            entry.turns = entry.turns.saturating_add(1);
            entry.asked = 0;
            entry.timing.goes_on(now);
        }
        self.budget.leave(identifier, now);
        self.place_ready(identifier);
        self.wake();
    }

    /// Leases up to `room` identifiers that are ready to a worker.
    pub fn lease(&mut self, worker: &str, room: usize, now: Moment) -> Vec<Leased> {
        self.tick(now);
        self.workers.seen(worker, now);
        let mut leased = Vec::new();
        while leased.len() < room.min(MOST_LEASED) {
            let Some(identifier) = self.first() else {
                break;
            };
            self.given += 1;
            let token = self.number();
            let lease = Lease {
                token,
                worker: worker.to_owned(),
                until: now + self.rules.lease,
                since: now,
                fetch: None,
                given: BTreeSet::new(),
                answers: BTreeMap::new(),
                wake: Arc::default(),
            };
            leased.extend(self.place_leased(&identifier, lease));
        }
        leased
    }

    /// Whose turn it is of those that are ready.
    fn first(&self) -> Option<Identifier> {
        if self.given % ONE_IN == ONE_IN - 1 {
            let longest = self.overdue.first();
            return longest.map(|(_, identifier)| identifier.clone());
        }
        let first = self.ready.first();
        first.map(|(_, _, identifier)| identifier.clone())
    }

    pub(super) fn place_leased(&mut self, identifier: &Identifier, lease: Lease) -> Option<Leased> {
        let (until, token, worker) = (lease.until, lease.token, lease.worker.clone());
        let since = lease.since;
        let entry = self.unplace(identifier)?;
        let mut waited = Vec::new();
        if entry.timing.begin() {
            metrics::counter!("purgatory_sync_attempts_total").increment(1);
            waited = entry.tries.servers().cloned().collect();
            entry.tries.begin(since);
        }
        entry.place = Place::Leased(Box::new(lease));
        let leased = Leased {
            identifier: identifier.clone(),
            token,
            tried: entry.tried.iter().cloned().collect(),
            trace: entry.trace,
        };
        self.waits_for_servers(waited, Vec::new(), identifier);
        self.leases.insert((until, identifier.clone()));
        self.workers.leased(&worker);
        self.record(identifier);
        self.sooner.notify_one();
        Some(leased)
    }

    /// The lease of an identifier, as it is, is to be on disk.
    pub(super) fn record(&mut self, identifier: &Identifier) {
        if let Some(lease) = self.entries.get(identifier).and_then(leased) {
            self.writes.push(Write::leased(identifier, lease));
        }
    }

    pub(super) fn held(&mut self, identifier: &Identifier, token: u64) -> Result<&mut Entry, Lost> {
        let entry = self.entries.get_mut(identifier).ok_or(Lost)?;
        match leased(entry).is_some_and(|lease| lease.token == token) {
            true => Ok(entry),
            false => Err(Lost),
        }
    }

    /// Whether a lease holds; gives what tells its holder to look again.
    pub fn check(
        &mut self,
        identifier: &Identifier,
        token: u64,
        now: Moment,
    ) -> Result<Arc<Notify>, Lost> {
        self.tick(now);
        let entry = self.held(identifier, token)?;
        leased(entry).map(|lease| lease.wake.clone()).ok_or(Lost)
    }

    /// Whether some URL was asked in this attempt.
    pub fn has_asked(&self, identifier: &Identifier) -> bool {
        let entry = self.entries.get(identifier);
        entry.is_some_and(|entry| !entry.tried.is_empty())
    }

    /// Whether what is stored under an identifier lacks objects, as far as is known.
    pub fn is_healing(&self, identifier: &Identifier) -> bool {
        let entry = self.entries.get(identifier);
        entry.is_some_and(|entry| entry.healing)
    }

    /// What has had its turn under an identifier, so that the others have theirs.
    pub fn rotation(&self, identifier: &Identifier) -> Rotation {
        let entry = self.entries.get(identifier);
        entry.map(|entry| entry.rotation).unwrap_or_default()
    }

    /// Keeps a lease. Gives the fetch that is running.
    pub fn renew(
        &mut self,
        identifier: &Identifier,
        token: u64,
        now: Moment,
    ) -> Result<Option<Running>, Lost> {
        self.tick(now);
        let until = now + self.rules.lease;
        let entry = self.held(identifier, token)?;
        let lease = leased_mut(entry).ok_or(Lost)?;
        let before = mem::replace(&mut lease.until, until);
        let (fetch, worker) = (lease.fetch.clone(), lease.worker.clone());
        self.leases.remove(&(before, identifier.clone()));
        self.leases.insert((until, identifier.clone()));
        self.record(identifier);
        self.workers.seen(&worker, now);
        Ok(fetch.filter(|fetch| !fetch.wants.is_empty()))
    }

    /// Hands a lease back: the identifier is due again at once, and what was being asked when it was
    /// handed back is not counted as tried.
    pub fn release(
        &mut self,
        identifier: &Identifier,
        token: u64,
        now: Moment,
    ) -> Result<(), Lost> {
        self.tick(now);
        let entry = self.held(identifier, token)?;
        let running = leased(entry).and_then(|lease| lease.fetch.as_ref());
        let url = running.map(|fetch| fetch.url.url.clone());
        if let Some(url) = url {
            entry.tried.remove(&url);
        }
        entry.timing.goes_on(now);
        self.abandon(identifier, now);
        self.budget.leave(identifier, now);
        self.place_ready(identifier);
        self.wake();
        Ok(())
    }

    /// Ends a lease that is held.
    pub fn end_held(
        &mut self,
        identifier: &Identifier,
        token: u64,
        why: Why,
        now: Moment,
    ) -> Result<Step, Lost> {
        self.tick(now);
        self.held(identifier, token)?;
        Ok(self.end(identifier, why, now))
    }

    /// The lease ends with a step.
    pub(super) fn end(&mut self, identifier: &Identifier, why: Why, now: Moment) -> Step {
        self.abandon(identifier, now);
        match why {
            Why::NothingPending => self.completed(identifier, now),
            Why::NothingLeft => self.attempt_ends(identifier, now),
            Why::TurnOver => self.turn_ends(identifier, now),
            Why::DomainsBusy => {
                if let Some(entry) = self.unplace(identifier) {
                    entry.place = Place::Parked;
                    self.parked.insert(identifier.clone());
                }
                // There may be room by now.
                self.wake();
            }
        }
        Step::Ended(why)
    }

    /// Nothing waits any more: the entry is gone, unless an event came since that was looked at.
    fn completed(&mut self, identifier: &Identifier, now: Moment) {
        let anew = |entry: &mut Entry| entry.timing.is_wanted_anew();
        if self.entries.get_mut(identifier).is_some_and(anew) {
            self.attempt_ends(identifier, now);
            return;
        }
        self.remove(identifier);
        self.budget.leave(identifier, now);
        self.wake();
    }

    fn attempt_ends(&mut self, identifier: &Identifier, now: Moment) {
        let mut waits = Vec::new();
        if let Some(entry) = self.unplace(identifier) {
            let backoff = entry.timing.ended(now);
            entry.tries.ended();
            waits = entry.tries.servers().cloned().collect();
            entry.turns = 0;
            entry.asked = 0;
            entry.rotation.attempt_ends(entry.tried.len());
            entry.tried.clear();
            entry.interrupted.clear();
            if let Some(backoff) = backoff {
                metrics::histogram!("purgatory_sync_backoff_seconds").record(backoff);
            }
        }
        self.waits_for_servers(Vec::new(), waits, identifier);
        self.budget.leave(identifier, now);
        self.place_later(identifier);
        self.wake();
    }
}
