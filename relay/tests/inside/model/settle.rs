//! What follows from a step, to the end, and whether the relay shows just that. Where the rules leave room
//! – when something expires, what falls with an announcement, what comes back with one – what the relay
//! did is taken over if it is within that room.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ledger::{Ledger, SOFT_FOR, Standing, WAITS_FOR},
    rules::{self, Address, Fact, Refs},
    steps::{Commit, Kind, Label, Repo},
};

/// What is hunted for may be kept so long beyond its time: the hunt's tries, with a bound on the whole.
const KEPT_ALIVE: u64 = (3 * 24 + 1) * 60 * 60 * 1000;

/// What the relay shows.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub served: BTreeSet<Label>,
    /// Whether each is soft-expired.
    pub waiting: BTreeMap<Label, bool>,
    pub repos: BTreeMap<Repo, SeenRepo>,
}

#[derive(Debug, Clone, Default)]
pub struct SeenRepo {
    pub branches: Refs,
    pub requested: BTreeMap<Label, Commit>,
}

impl Seen {
    pub fn has(&self, label: Label) -> bool {
        self.served.contains(&label) || self.waiting.contains_key(&label)
    }
}

impl Ledger {
    /// After a step, and after `time_passed` in it.
    pub fn settle(&mut self, seen: &Seen, time_passed: bool) -> Result<(), String> {
        self.seen.clone_from(&seen.served);
        if time_passed {
            self.expire(seen)?;
            self.expire_offers(seen)?;
        }
        self.expire_while_hunted(seen);
        let held = self.held.clone();
        self.fall(seen)?;
        self.note_with_whom(&held);
        self.release();
        self.come_back(seen);
        self.align();
        self.came_back(seen)?;
        self.overlook();
        self.compare_events(seen)?;
        self.compare_repositories(seen)
    }

    /// What has waited for its time may be gone, and what was kept for its tries must be.
    fn expire(&mut self, seen: &Seen) -> Result<(), String> {
        for (label, wait) in self.waiting.clone() {
            let fact = self.fact(label).clone();
            let repo = fact.announced();
            if self.now < wait.until || seen.served.contains(&label) {
                continue;
            }
            match (seen.waiting.get(&label), repo) {
                (Some(true), Some(repo)) if !wait.is_soft => {
                    let wait = self.waiting.get_mut(&label).unwrap();
                    (wait.is_soft, wait.until) = (true, self.now + SOFT_FOR);
                    self.remove_repository(repo);
                }
                (Some(_), _) => {
                    let name = repo.map(|repo| repo.name).or(fact.state_of());
                    let name = name.or(fact.requested().map(|(to, _)| to.name));
                    let touched = name.and_then(|name| self.touched.get(&name));
                    let end = match wait.is_soft {
                        true => wait.until,
                        false => wait.until.max(touched.unwrap_or(&0) + WAITS_FOR) + KEPT_ALIVE,
                    };
                    if self.now >= end {
                        return Err(format!("{label} has not expired"));
                    }
                }
                (None, Some(_)) if !wait.is_soft => {}
                (None, _) => {
                    self.expired.insert(label);
                    self.offered.remove(&label);
                    self.waiting.remove(&label);
                    if let Some(repo) = repo {
                        self.remove_repository(repo);
                        self.fell.insert(repo.name);
                    }
                }
            }
        }
        Ok(())
    }

    /// A hunt takes its time: a pull request that has expired by its own word meanwhile may have been looked
    /// at since.
    fn expire_while_hunted(&mut self, seen: &Seen) {
        let is_over = |label: &Label| {
            let is_request = self.fact(*label).requested().is_some();
            is_request && self.has_expired(*label) && !seen.has(*label)
        };
        let waiting = self.waiting.keys().copied();
        for label in waiting.filter(is_over).collect::<Vec<_>>() {
            self.waiting.remove(&label);
            self.offered.remove(&label);
        }
    }

    /// A commit that nobody has signed for goes after its time.
    fn expire_offers(&mut self, seen: &Seen) -> Result<(), String> {
        for label in self.offered.keys().copied().collect::<Vec<_>>() {
            if self.served.contains(&label) || self.waiting.contains_key(&label) {
                continue;
            }
            let of_label = &self.offered[&label];
            let until = of_label.values().map(|one| one.until).max();
            if until.is_some_and(|until| self.now < until) {
                continue;
            }
            let is_seen = |repo: &&Repo| {
                let there = seen.repos.get(repo);
                there.is_some_and(|there| there.requested.contains_key(&label))
            };
            if let Some(repo) = of_label.keys().find(is_seen) {
                return Err(format!("what was offered for {label} is still in {repo}"));
            }
            self.offered.remove(&label);
        }
        Ok(())
    }

    fn is_shown(&self, label: Label) -> bool {
        let fact = self.fact(label);
        let version = Some((fact.version(), fact.what.by));
        let mut shown = self.shown.iter();
        shown.any(|(repo, shown)| {
            Some(repo.name) == fact.state_of()
                && shown.by == version
                && self.standing(*repo) == Some(Standing::Active)
        })
    }

    /// With an announcement goes what was accepted for its sake alone.
    fn fall(&mut self, seen: &Seen) -> Result<(), String> {
        loop {
            let falls = |label: &&Label| {
                let fact = self.fact(**label);
                let Some(repo) = fact.announced().filter(|_| !fact.is_here()) else {
                    return false;
                };
                let (words, here) = (self.words(repo.name), self.here(repo.name));
                self.fell.contains(&repo.name)
                    && !seen.served.contains(label)
                    && !rules::is_wanted(&words, repo.owner, &here)
            };
            let Some(label) = self.served.iter().find(falls).copied() else {
                break;
            };
            self.served.remove(&label);
            self.held.insert(label);
            let name = self.fact(label).announced().unwrap().name;
            self.went_out.insert(name);
        }
        for label in self.served.clone() {
            let fact = self.fact(label).clone();
            if let Some((to, _)) = fact.requested() {
                if self.stored(Address::Announcement(to)).is_none() {
                    self.served.remove(&label);
                    self.held.insert(label);
                    self.offered.remove(&label);
                }
            } else if let Some(name) = fact.state_of()
                && self.fell.contains(&name)
                && !self.is_trusted_here(name, fact.what.by)
                && !self.is_shown(label)
            {
                if !seen.served.contains(&label) {
                    self.served.remove(&label);
                    self.held.insert(label);
                } else if self.was_trusted.contains(&label) && self.went_out.contains(&name) {
                    return Err(format!("{label} outlives what it was accepted for"));
                }
            }
        }
        for label in self.waiting.keys().copied().collect::<Vec<_>>() {
            let fact = self.fact(label);
            if let Some(name) = fact.state_of()
                && self.fell.contains(&name)
                && !seen.has(label)
                && self.trusting(name, fact.what.by).is_empty()
            {
                self.waiting.remove(&label);
            }
        }
        Ok(())
    }

    fn note_with_whom(&mut self, held_before: &BTreeSet<Label>) {
        let mut gone = self.delisted_now.iter();
        let only = gone.next().copied().filter(|_| gone.next().is_none());
        for label in self.held.difference(held_before) {
            match only {
                Some(repo) => self.fell_with.insert(*label, repo),
                None => self.fell_with.remove(label),
            };
        }
    }

    fn may_return(&self, label: Label) -> bool {
        let fact = self.fact(label);
        let is_replaced = || {
            let stored = fact.address().and_then(|address| self.stored(address));
            stored.is_some_and(|stored| self.fact(stored).version() > fact.version())
        };
        if self.is_deleted(label)
            || self.has_expired(label)
            || self.is_overtaken(label)
            || is_replaced()
        {
            return false;
        }
        match fact.what.kind {
            Kind::Announcement { name, is_here, .. } => {
                let (words, here) = (self.words(name), self.here(name));
                !is_here && rules::is_wanted(&words, fact.what.by, &here)
            }
            Kind::State { name, .. } => self.is_trusted_here(name, fact.what.by),
            Kind::PullRequest { to, .. } => self.stored(Address::Announcement(to)).is_some(),
            Kind::Deletion(_) => false,
        }
    }

    /// What was held is back if it could be accepted now.
    fn come_back(&mut self, seen: &Seen) {
        loop {
            // Served announcements first: the others come by what these say.
            let is_back = |label: &&Label| seen.has(**label) && self.may_return(**label);
            let mut back: Vec<Label> = self.held.iter().filter(is_back).copied().collect();
            back.sort_by_key(|label| self.fact(*label).announced().is_none());
            let Some(label) = back.first().copied() else {
                break;
            };
            self.held.remove(&label);
            match self.fact(label).announced() {
                Some(_) => self.serve(label),
                None => self.wait(label),
            }
            if let Some((_, commit)) = self.fact(label).requested() {
                self.choose(label, commit);
            }
            // Which may be what the next one belongs to.
            self.release();
        }
    }

    /// What a repository that is announced again has to come back with.
    fn came_back(&self, seen: &Seen) -> Result<(), String> {
        for repo in self.announced.intersection(&self.delisted) {
            let members = self.view(*repo).members;
            let is_missing = |label: &&Label| {
                let fact = self.fact(**label);
                let is_of_it = match fact.requested() {
                    Some((to, _)) => to == *repo,
                    None => {
                        fact.state_of() == Some(repo.name)
                            && members.contains(&fact.what.by)
                            && self.here(repo.name).contains(&repo.owner)
                    }
                };
                let fell_with_it = self.fell_with.get(*label) == Some(repo);
                let may_return = self.may_return(**label) && !self.is_perhaps_overtaken(**label);
                is_of_it && fell_with_it && may_return && !seen.has(**label)
            };
            if let Some(label) = self.held.iter().find(is_missing) {
                return Err(format!("{label} has not come back with {repo}"));
            }
        }
        Ok(())
    }

    /// Whatever can be is served.
    fn release(&mut self) {
        loop {
            let can_be = |label: &&Label| self.can_be_released(self.fact(**label));
            let mut ready: Vec<Label> = self.waiting.keys().filter(can_be).copied().collect();
            ready.sort_by_key(|label| self.fact(*label).version());
            let Some(label) = ready.first().copied() else {
                break;
            };
            let fact = self.fact(label).clone();
            if let Some(repo) = fact.announced() {
                self.shown.entry(repo).or_default();
                self.serve(label);
            } else if let Some((to, commit)) = fact.requested() {
                self.pool.entry(to.name).or_default().insert(commit);
                self.serve(label);
            } else {
                let stored = fact.address().and_then(|address| self.stored(address));
                match stored.is_some_and(|one| self.fact(one).version() > fact.version()) {
                    true => drop(self.waiting.remove(&label)),
                    false => self.serve(label),
                }
                self.drop_superseded(&fact);
            }
        }
    }

    fn drop_superseded(&mut self, by: &Fact) {
        let is_superseded = |label: &Label| {
            let fact = self.fact(*label);
            fact.address() == by.address() && fact.version() < by.version()
        };
        let waiting = self.waiting.keys().copied();
        for label in waiting.filter(is_superseded).collect::<Vec<_>>() {
            self.waiting.remove(&label);
        }
    }

    fn overlook(&mut self) {
        let waiting = self.waiting.keys().copied();
        let is_not_served = |label: &Label| {
            let requested = self.fact(*label).requested();
            let standing = requested.and_then(|(to, _)| self.standing(to));
            matches!(standing, Some(Standing::Waiting { .. }))
        };
        let overlooked: Vec<Label> = waiting.filter(is_not_served).collect();
        self.overlooked.extend(overlooked);
    }

    fn is_seen(&self, fact: &Fact) -> bool {
        let mut seen = self.seen.iter();
        seen.any(|label| self.facts[label].id == fact.id)
    }

    fn can_be_released(&self, fact: &Fact) -> bool {
        let none = BTreeSet::new();
        let pool = |name| self.pool.get(&name).unwrap_or(&none);
        match fact.what.kind {
            Kind::Announcement { name, .. } => {
                let owner = fact.what.by;
                self.latest(Repo { owner, name }).is_some()
            }
            Kind::State { name, .. } => {
                let is_here = |commit: &Commit| pool(name).contains(commit);
                // For whoever has no repository here nothing is looked for: what has come for others is found
                // to be theirs too by whatever comes next.
                let is_seen = self.is_seen(fact);
                let author = fact.what.by;
                fact.refs().values().all(is_here)
                    && (self.is_trusted_here(name, author)
                        || is_seen && !self.trusting(name, author).is_empty())
            }
            Kind::PullRequest { to, commit } => {
                let standing = self.standing(to);
                let is_served = matches!(standing, Some(Standing::Active | Standing::Elsewhere));
                let is_seen = self.is_seen(fact);
                let label = self.facts.iter().find(|(_, one)| one.id == fact.id);
                let offered = label.and_then(|(label, _)| self.offered.get(label));
                // One that was moved aside with its repository may be back with it.
                let is_offered = offered.is_some_and(|offered| {
                    let mut all = offered.iter();
                    all.any(|(repo, one)| {
                        let is_back = is_seen && self.shown.contains_key(repo);
                        one.commits.contains(&commit) && (one.is_there || is_back)
                    })
                });
                let is_looked_at =
                    is_seen || label.is_none_or(|(label, _)| !self.overlooked.contains(label));
                // Time passes while it is looked for: it may have come before that.
                let has_expired = label.is_some_and(|(label, _)| self.has_expired(*label));
                is_served
                    && is_looked_at
                    && (!has_expired || is_seen)
                    && (pool(to.name).contains(&commit) || is_offered)
            }
            Kind::Deletion(_) => false,
        }
    }

    /// A served repository is as the latest state says that counts for it. One that was applied when its
    /// author counted stays until a later one.
    fn align(&mut self) {
        for repo in self.shown.keys().copied().collect::<Vec<_>>() {
            if self.standing(repo) != Some(Standing::Active) {
                continue;
            }
            let Some(latest) = self.latest(repo) else {
                continue;
            };
            let (members, fact) = (self.view(repo).members, self.fact(latest).clone());
            let shown = self.shown.get_mut(&repo).unwrap();
            let may_move =
                |(version, author)| members.contains(&author) || fact.version() > version;
            if shown.by.is_none_or(may_move) {
                shown.branches = fact.refs();
                shown.by = Some((fact.version(), fact.what.by));
            }
        }
    }
}
