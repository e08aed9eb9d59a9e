//! Leases: who hunts for what, the steps of it, and how it ends.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};

use grasp_proto::{
    transport::Trace,
    words::{Identifier, Oid},
};
use tokio::sync::Notify;

use super::{Entry, Place, Queue};
use crate::{
    clock::Moment,
    hunt::{budget::Outcome, records::Write, urls::CloneUrl},
};

/// URLs of one turn.
pub const URLS_A_TURN: usize = 16;
/// The longest turn; a fetch that runs is not cut short by it.
pub const TURN: Duration = Duration::from_secs(5 * 60);
/// When others are due, a turn is over after this: slow servers hold a worker up no longer.
pub const YIELDS_AFTER: Duration = Duration::from_secs(60);
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

/// What is to be done next for a leased identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask this URL; the fetch has this number.
    Ask(u64, CloneUrl),
    /// Nothing, until the lease's [`Notify`] says so.
    Wait,
    /// The lease has ended.
    Ended(Why),
}

/// A fetch that was given and not reported.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its number.
    pub number: u64,
    /// What is asked.
    pub url: CloneUrl,
    /// The objects it is asked for.
    pub wants: Arc<[Oid]>,
    /// Since when.
    pub since: Moment,
}

/// What was answered to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answer {
    /// Events that are served because of it.
    pub released: u32,
    /// Objects still missing.
    pub missing: u32,
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
pub(super) struct Lease {
    pub(super) token: u64,
    pub(super) worker: String,
    pub(super) until: Moment,
    /// Since when this turn lasts.
    pub(super) since: Moment,
    pub(super) fetch: Option<Running>,
    /// The reports that were answered; as many as URLs in a turn.
    pub(super) answers: BTreeMap<u64, Answer>,
    pub(super) wake: Arc<Notify>,
}

/// What a report is.
#[derive(Debug, Clone)]
pub enum Reported {
    /// The first of this fetch.
    First(Running),
    /// Made before, and answered so.
    Before(Answer),
    /// Of a fetch that has ended already, or that an earlier run of the relay was told of.
    Late,
    /// Of no fetch of this lease.
    Unknown,
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
        if let Some(entry) = self.entries.get_mut(identifier)
            && let Place::Leased(lease) = &entry.place
        {
            tracing::warn!(%identifier, worker = lease.worker, "a lease ran out");
            if let Some(fetch) = &lease.fetch
                && entry.interrupted.insert(fetch.url.url.clone())
            {
                entry.tried.remove(&fetch.url.url);
            }
        }
        self.abandon(identifier, now);
        self.turn_ends(identifier, now);
    }

    /// A fetch that nobody reports any more has ended.
    fn abandon(&mut self, identifier: &Identifier, now: Moment) {
        let lease = self.entries.get_mut(identifier).and_then(leased_mut);
        if let Some(fetch) = lease.and_then(|lease| lease.fetch.take()) {
            tracing::debug!(%identifier, url = fetch.url.url, "a fetch was never reported");
            self.free(&fetch, Outcome::Unknown, now);
        }
    }

    fn free(&mut self, fetch: &Running, outcome: Outcome, now: Moment) {
        self.budget.free(fetch.number, outcome, now);
        self.wake();
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
            let Some((_, identifier)) = self.ready.first().cloned() else {
                break;
            };
            let token = self.number();
            let lease = Lease {
                token,
                worker: worker.to_owned(),
                until: now + self.rules.lease,
                since: now,
                fetch: None,
                answers: BTreeMap::new(),
                wake: Arc::default(),
            };
            leased.extend(self.place_leased(&identifier, lease));
        }
        leased
    }

    fn place_leased(&mut self, identifier: &Identifier, lease: Lease) -> Option<Leased> {
        let (until, token, worker) = (lease.until, lease.token, lease.worker.clone());
        let entry = self.unplace(identifier)?;
        if entry.timing.begin() {
            metrics::counter!("purgatory_sync_attempts_total").increment(1);
        }
        entry.place = Place::Leased(Box::new(lease));
        let leased = Leased {
            identifier: identifier.clone(),
            token,
            tried: entry.tried.iter().cloned().collect(),
            trace: entry.trace,
        };
        self.leases.insert((until, identifier.clone()));
        self.workers.leased(&worker);
        self.record(identifier);
        self.sooner.notify_one();
        Some(leased)
    }

    /// The lease of an identifier, as it is, is to be on disk.
    fn record(&mut self, identifier: &Identifier) {
        if let Some(lease) = self.entries.get(identifier).and_then(leased) {
            let fetch = lease.fetch.as_ref();
            let write = Write::leased(identifier, lease.token, &lease.worker, lease.until, fetch);
            self.writes.push(write);
        }
    }

    fn held(&mut self, identifier: &Identifier, token: u64) -> Result<&mut Entry, Lost> {
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
        Ok(fetch)
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

    /// The next step for an identifier under which something is missing that may be asked for at
    /// `urls`, in this order, but not at those `tried`.
    pub fn step(
        &mut self,
        identifier: &Identifier,
        token: u64,
        urls: &[CloneUrl],
        tried: &HashSet<String>,
        wants: &Arc<[Oid]>,
        now: Moment,
    ) -> Result<Step, Lost> {
        self.tick(now);
        self.held(identifier, token)?;
        self.abandon(identifier, now);
        let entry = self.held(identifier, token)?;
        // Only what may be asked counts: a worker cannot make this grow.
        let known = urls.iter().filter(|one| tried.contains(&one.url));
        entry.tried.extend(known.map(|one| one.url.clone()));
        let asked = entry.asked;
        let since = leased(entry).map_or(now, |lease| lease.since);
        let entry = &self.entries[identifier];
        let left: Vec<&CloneUrl> = urls
            .iter()
            .filter(|one| !entry.tried.contains(&one.url) && !self.budget.is_aside(one, now))
            .collect();
        if left.is_empty() {
            return Ok(self.end(identifier, Why::NothingLeft, now));
        }
        let lasted = now.since(since);
        let yields = lasted >= YIELDS_AFTER && !self.ready.is_empty();
        if asked >= URLS_A_TURN || lasted >= TURN || yields {
            return Ok(self.end(identifier, Why::TurnOver, now));
        }
        let free = |one: &&&CloneUrl| self.budget.has_room_for(&one.domain, identifier, now);
        let Some(first) = left.iter().find(free) else {
            return Ok(self.no_room(identifier, &left, now));
        };
        let of_domain = left.iter().filter(|one| one.domain == first.domain);
        let of_domain: Vec<&CloneUrl> = of_domain.copied().collect();
        let url = self.budget.next_url(&first.domain, &of_domain);
        let url = url.unwrap_or(first).clone();
        Ok(self.ask(identifier, url, wants, now))
    }

    fn ask(
        &mut self,
        identifier: &Identifier,
        url: CloneUrl,
        wants: &Arc<[Oid]>,
        now: Moment,
    ) -> Step {
        let number = self.number();
        // In this order: else its place would seem free for the next in line.
        self.budget.take(number, &url, now);
        self.budget.leave(identifier, now);
        let recent = self.budget.recent(&url.domain);
        self.writes.push(Write::requests(&url.domain, recent));
        self.waiting.remove(identifier);
        if let Some(entry) = self.entries.get_mut(identifier) {
            entry.asked += 1;
            entry.tried.insert(url.url.clone());
            if let Some(lease) = leased_mut(entry) {
                lease.fetch = Some(Running {
                    number,
                    url: url.clone(),
                    wants: wants.clone(),
                    since: now,
                });
            }
        }
        self.record(identifier);
        self.wake();
        Step::Ask(number, url)
    }

    /// Every domain that is left is without room: it waits there, and its worker does so only if
    /// there is nothing else to do.
    fn no_room(&mut self, identifier: &Identifier, left: &[&CloneUrl], now: Moment) -> Step {
        let domains = left.iter().map(|one| one.domain.as_str());
        self.budget.wait(identifier, domains, now);
        tracing::debug!(%identifier, urls = left.len(), "no domain has room");
        self.sooner.notify_one();
        if !self.ready.is_empty() {
            return self.end(identifier, Why::DomainsBusy, now);
        }
        self.waiting.insert(identifier.clone());
        self.wake();
        Step::Wait
    }

    /// A fetch that could not be made durable was not given.
    pub fn take_back(&mut self, identifier: &Identifier, token: u64, number: u64, now: Moment) {
        let Ok(entry) = self.held(identifier, token) else {
            return;
        };
        let running = leased(entry).and_then(|lease| lease.fetch.as_ref());
        if running.is_some_and(|fetch| fetch.number == number) {
            self.abandon(identifier, now);
        }
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
    fn end(&mut self, identifier: &Identifier, why: Why, now: Moment) -> Step {
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
        if self.unplace(identifier).is_some() {
            self.entries.remove(identifier);
        }
        self.budget.leave(identifier, now);
        self.wake();
    }

    fn attempt_ends(&mut self, identifier: &Identifier, now: Moment) {
        if let Some(entry) = self.unplace(identifier) {
            let backoff = entry.timing.ended(now);
            entry.turns = 0;
            entry.asked = 0;
            entry.tried.clear();
            entry.interrupted.clear();
            if let Some(backoff) = backoff {
                metrics::histogram!("purgatory_sync_backoff_seconds").record(backoff);
            }
        }
        self.budget.leave(identifier, now);
        self.place_later(identifier);
        self.wake();
    }

    /// The report of a fetch: frees its place, if it is the first of it.
    pub fn report(
        &mut self,
        identifier: &Identifier,
        token: u64,
        number: u64,
        outcome: Outcome,
        now: Moment,
    ) -> Result<Reported, Lost> {
        self.tick(now);
        let entry = self.held(identifier, token)?;
        let lease = leased_mut(entry).ok_or(Lost)?;
        if let Some(answer) = lease.answers.get(&number) {
            return Ok(Reported::Before(*answer));
        }
        let is_this = |fetch: &mut Running| fetch.number == number;
        let Some(fetch) = lease.fetch.take_if(is_this) else {
            let was_given = token < number && number <= self.last_number;
            return Ok(match was_given {
                true => Reported::Late,
                false => Reported::Unknown,
            });
        };
        self.free(&fetch, outcome, now);
        self.record(identifier);
        Ok(Reported::First(fetch))
    }

    /// What was answered to a report, for those who ask again.
    pub fn answered(&mut self, identifier: &Identifier, token: u64, number: u64, answer: Answer) {
        if let Ok(entry) = self.held(identifier, token)
            && let Some(lease) = leased_mut(entry)
        {
            lease.answers.insert(number, answer);
        }
    }

    /// Puts back what the journal had: a lease that still holds, with the fetch that runs under it.
    pub fn restore_lease(
        &mut self,
        identifier: &Identifier,
        token: u64,
        worker: &str,
        until: Moment,
        fetch: Option<Running>,
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
        self.workers.seen(worker, now);
        let tried = fetch.as_ref().map(|fetch| fetch.url.url.clone());
        let lease = Lease {
            token,
            worker: worker.to_owned(),
            until,
            since: now,
            fetch,
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
