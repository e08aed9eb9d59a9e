//! Leases: who hunts for what, the steps of it, and how it ends.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};

use grasp_proto::{
    transport::Trace,
    words::{Identifier, Oid},
};
use tokio::sync::Notify;

use super::{Entry, ONE_IN, Place, Queue};
use crate::{
    clock::Moment,
    hunt::{budget::Outcome, costly::OfUrl, pending::Rotation, records::Write, urls::CloneUrl},
};

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
    /// The objects it is asked for; none: it has not been given yet.
    pub wants: Arc<[Oid]>,
    /// Since when.
    pub since: Moment,
}

/// What a report says of the one that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Of its server, for all identifiers.
    pub server: Outcome,
    /// Of the URL, for this one.
    pub url: OfUrl,
}

impl From<Outcome> for Said {
    fn from(server: Outcome) -> Self {
        Self {
            server,
            url: OfUrl::Nothing,
        }
    }
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

/// What a report is.
#[derive(Debug, Clone)]
pub enum Reported {
    /// The first of this fetch.
    First(Running),
    /// Made before, and answered so.
    Before(Answer),
    /// Of a fetch of this lease that has ended already, and was not answered.
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
        if let Some(lease) = self.entries.get(identifier).and_then(leased) {
            tracing::warn!(%identifier, worker = lease.worker, "a lease ran out");
        }
        if let Some(fetch) = self.abandon(identifier, now) {
            self.once_more(identifier, &fetch);
        }
        self.turn_ends(identifier, now);
    }

    /// A fetch that nobody reports any more has ended.
    fn abandon(&mut self, identifier: &Identifier, now: Moment) -> Option<Running> {
        let lease = self.entries.get_mut(identifier).and_then(leased_mut);
        let fetch = lease.and_then(|lease| lease.fetch.take())?;
        tracing::debug!(%identifier, url = fetch.url.url, "a fetch was never reported");
        self.free(identifier, &fetch, Outcome::Unknown, now);
        Some(fetch)
    }

    /// What an abandoned fetch asked is asked once more in this attempt.
    fn once_more(&mut self, identifier: &Identifier, fetch: &Running) {
        let url = &fetch.url.url;
        if let Some(entry) = self.entries.get_mut(identifier)
            && entry.interrupted.insert(url.clone())
        {
            entry.tried.remove(url);
        }
    }

    fn free(&mut self, identifier: &Identifier, fetch: &Running, outcome: Outcome, now: Moment) {
        if let Some(entry) = self.entries.get_mut(identifier) {
            entry.used.more(now.since(fetch.since), now);
        }
        self.writes.push(Write::no_wants(identifier));
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
            self.writes.push(Write::leased(identifier, lease));
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

    /// The next step for an identifier under which something is missing that may be asked for at
    /// `urls`, in this order, but not at those `tried`. What is to be asked for there is said next, by
    /// [`Queue::wants`].
    pub fn step(
        &mut self,
        identifier: &Identifier,
        token: u64,
        urls: &[CloneUrl],
        tried: &HashSet<String>,
        now: Moment,
    ) -> Result<Step, Lost> {
        self.tick(now);
        self.held(identifier, token)?;
        if let Some(fetch) = self.abandon(identifier, now)
            && !tried.contains(&fetch.url.url)
        {
            // It never reached the worker.
            self.once_more(identifier, &fetch);
        }
        let entry = self.held(identifier, token)?;
        // Only what may be asked counts: neither a worker nor events that come and go make it grow.
        let known: HashSet<&str> = urls.iter().map(|one| one.url.as_str()).collect();
        let is_known = |url: &str| known.contains(url);
        entry.tried.retain(|url| is_known(url));
        entry.interrupted.retain(|url| is_known(url));
        entry.costly.keep_only(is_known);
        entry
            .tried
            .extend(tried.iter().filter(|url| is_known(url)).cloned());
        let (asked, turns) = (entry.asked, entry.turns);
        let since = leased(entry).map_or(now, |lease| lease.since);
        let entry = &self.entries[identifier];
        let left: Vec<&CloneUrl> = urls
            .iter()
            .filter(|one| !entry.tried.contains(&one.url) && !self.budget.is_aside(one, now))
            .filter(|one| !entry.costly.is_left_alone(&one.url, now))
            .collect();
        if left.is_empty() {
            return Ok(self.end(identifier, Why::NothingLeft, now));
        }
        let lasted = now.since(since);
        let yields = lasted >= YIELDS_AFTER && !self.ready.is_empty();
        if asked >= URLS_A_TURN || lasted >= TURN || yields {
            let why = match turns + 1 >= TURNS_AN_ATTEMPT {
                true => Why::NothingLeft,
                false => Why::TurnOver,
            };
            return Ok(self.end(identifier, why, now));
        }
        let free = |one: &&&CloneUrl| self.budget.has_room_for(&one.domain, identifier, now);
        let Some(first) = left.iter().find(free) else {
            return Ok(self.no_room(identifier, &left, now));
        };
        let of_domain = left.iter().filter(|one| one.domain == first.domain);
        let of_domain: Vec<&CloneUrl> = of_domain.copied().collect();
        let url = self.budget.next_url(&first.domain, &of_domain);
        let url = url.unwrap_or(first).clone();
        Ok(self.ask(identifier, url, now))
    }

    fn ask(&mut self, identifier: &Identifier, url: CloneUrl, now: Moment) -> Step {
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
            entry.rotation.fetches = entry.rotation.fetches.wrapping_add(1);
            if let Some(lease) = leased_mut(entry) {
                lease.given.insert(number);
                lease.fetch = Some(Running {
                    number,
                    url: url.clone(),
                    wants: Arc::default(),
                    since: now,
                });
            }
        }
        self.record(identifier);
        self.wake();
        Step::Ask(number, url)
    }

    /// What a fetch that was just decided on is asked for.
    pub fn wants(
        &mut self,
        identifier: &Identifier,
        token: u64,
        number: u64,
        wants: &Arc<[Oid]>,
    ) -> Result<(), Lost> {
        let entry = self.held(identifier, token)?;
        let fetch = leased_mut(entry).and_then(|lease| lease.fetch.as_mut());
        let fetch = fetch.filter(|fetch| fetch.number == number).ok_or(Lost)?;
        fetch.wants = wants.clone();
        self.writes.push(Write::wants(identifier, number, wants));
        Ok(())
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
        if running.is_some_and(|fetch| fetch.number == number)
            && let Some(fetch) = self.abandon(identifier, now)
        {
            self.once_more(identifier, &fetch);
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
            entry.rotation.attempt_ends(entry.tried.len());
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
        said: impl Into<Said>,
        now: Moment,
    ) -> Result<Reported, Lost> {
        let said = said.into();
        self.tick(now);
        let entry = self.held(identifier, token)?;
        let lease = leased_mut(entry).ok_or(Lost)?;
        if let Some(answer) = lease.answers.get(&number) {
            return Ok(Reported::Before(*answer));
        }
        let is_this = |fetch: &mut Running| fetch.number == number;
        let Some(fetch) = lease.fetch.take_if(is_this) else {
            return Ok(match lease.given.contains(&number) {
                true => Reported::Late,
                false => Reported::Unknown,
            });
        };
        entry.costly.ended(&fetch.url.url, said.url, now);
        self.free(identifier, &fetch, said.server, now);
        self.record(identifier);
        Ok(Reported::First(fetch))
    }

    /// What was answered to a report before.
    pub fn answer(&self, identifier: &Identifier, token: u64, number: u64) -> Option<Answer> {
        let lease = self.entries.get(identifier).and_then(leased)?;
        let answer = lease.answers.get(&number).copied();
        answer.filter(|_| lease.token == token)
    }

    /// What was answered to a report, for those who ask again.
    pub fn answered(&mut self, identifier: &Identifier, token: u64, number: u64, answer: Answer) {
        if let Ok(entry) = self.held(identifier, token)
            && let Some(lease) = leased_mut(entry)
            && lease.given.contains(&number)
        {
            lease.answers.insert(number, answer);
        }
    }
}
