//! What a lease is for: the next fetch, what it asks for, and how it went.

use std::{collections::HashSet, sync::Arc};

use grasp_proto::words::{Identifier, Oid};

use super::{
    Queue,
    leases::{Lost, TURN, TURNS_AN_ATTEMPT, URLS_A_TURN, Why, YIELDS_AFTER, leased, leased_mut},
};
use crate::{
    clock::Moment,
    hunt::{budget::Outcome, costly::OfUrl, urls::CloneUrl},
    journal::Write,
};

/// What is to be done next for a leased identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask this URL; the fetch has this number.
    Ask(u64, CloneUrl),
    /// Nothing, until the lease's `Notify` says so.
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

impl Said {
    /// Whether whoever was asked has had its say. Else it is waited for.
    fn answered_for_itself(self) -> bool {
        let is_there = !matches!(self.server, Outcome::Broken | Outcome::Busy);
        is_there && !matches!(self.url, OfUrl::Unwell | OfUrl::NotAsked)
    }
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

impl Queue {
    /// A fetch that nobody reports any more has ended.
    pub(super) fn abandon(&mut self, identifier: &Identifier, now: Moment) -> Option<Running> {
        let lease = self.entries.get_mut(identifier).and_then(leased_mut);
        let fetch = lease.and_then(|lease| lease.fetch.take())?;
        tracing::debug!(%identifier, url = fetch.url.url, "a fetch was never reported");
        if let Some(entry) = self.entries.get_mut(identifier) {
            entry.tries.is_out_of_reach(&fetch.url);
        }
        self.free(identifier, &fetch, Outcome::Unknown, now);
        Some(fetch)
    }

    /// What an abandoned fetch asked is asked once more in this attempt.
    pub(super) fn once_more(&mut self, identifier: &Identifier, fetch: &Running) {
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
        self.follow_servers(now);
        self.wake();
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
        let (mut left, mut out_of_reach) = (Vec::new(), Vec::new());
        for one in urls.iter().filter(|one| !entry.tried.contains(&one.url)) {
            if self.budget.is_aside(one, now) {
                out_of_reach.push(one);
            } else if !entry.costly.is_left_alone(&one.url, now) {
                left.push(one);
            } else if entry.costly.is_unwell(&one.url) {
                out_of_reach.push(one);
            }
        }
        if left.is_empty()
            && let Some(entry) = self.entries.get_mut(identifier)
        {
            for one in out_of_reach {
                entry.tries.is_out_of_reach(one);
            }
        }
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
        match said.answered_for_itself() {
            true => entry.tries.is_in_reach(&fetch.url),
            false => entry.tries.is_out_of_reach(&fetch.url),
        }
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
