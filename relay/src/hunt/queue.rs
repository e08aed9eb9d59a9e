//! Which identifier is hunted for when, by whom, and what its next step is. Pure: every method is
//! told the time, and what is to be on disk is left for the caller to collect, in order.
//!
//! An identifier is in one place: later (its attempt is not due), ready (a worker may take it), parked
//! (every domain it could ask is without room) or leased. It is looked for by time or by name only.

mod fetches;
mod leases;
mod restore;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};

use grasp_proto::{transport::Trace, words::Identifier};
use tokio::sync::Notify;

use super::{
    budget::{Budget, Limits},
    costly::Costly,
    entry::{Delays, Timing, Used},
    pending::Rotation,
    tries::Tries,
    workers::Workers,
};
use crate::{
    clock::Moment,
    journal::{Key, Write},
    purgatory::kept::Progress,
};

pub use fetches::{Answer, Reported, Running, Said, Step};
pub(super) use leases::Lease;
use leases::leased;
pub use leases::{Leased, Lost, TURN, TURNS_AN_ATTEMPT, URLS_A_TURN, Why, YIELDS_AFTER};

/// What the queue goes by.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long the first attempt is put off.
    pub delays: Delays,
    /// How long a lease holds unless renewed.
    pub lease: Duration,
    /// What a domain may be asked.
    pub limits: Limits,
}

/// Of so many leases one goes to whoever has been due for longest, whatever it has used: nobody is
/// put off for ever.
const ONE_IN: u64 = 4;

#[derive(Debug)]
enum Place {
    Later,
    /// Of this rank, due then.
    Ready(usize, Moment),
    Parked,
    Leased(Box<Lease>),
}

#[derive(Debug)]
struct Entry {
    timing: Timing,
    place: Place,
    /// Turns of this attempt that are over.
    turns: u32,
    /// URLs asked in this turn.
    asked: usize,
    /// URLs asked in this attempt; no more than there are URLs for an identifier.
    tried: BTreeSet<String>,
    /// URLs of fetches that nobody reported: asked once more, in case it was not their fault. Of these
    /// no more than there are, either.
    interrupted: BTreeSet<String>,
    /// No more than there are URLs for an identifier.
    costly: Costly,
    used: Used,
    tries: Tries,
    rotation: Rotation,
    /// What is stored lacks objects.
    healing: bool,
    trace: Option<Trace>,
}

/// One entry, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFigures {
    /// Which.
    pub identifier: Identifier,
    /// When its next attempt is due.
    pub due: Moment,
    /// Attempts that left something missing.
    pub attempts: u32,
    /// Who hunts for it.
    pub worker: Option<String>,
}

/// The queue as a whole, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueFigures {
    /// Identifiers in it.
    pub identifiers: usize,
    /// Of these: leased.
    pub leased: usize,
    /// Of these: ready to be leased.
    pub ready: usize,
    /// Of these: waiting for domains.
    pub waiting: usize,
    /// Those next in line.
    pub entries: Vec<EntryFigures>,
}

/// The queue of identifiers that lack git data. Grows by what waits in purgatory, and by the
/// repositories that lack what they show.
#[derive(Debug)]
pub struct Queue {
    rules: Rules,
    entries: HashMap<Identifier, Entry>,
    later: BTreeSet<(Moment, Identifier)>,
    /// By rank, then by when they were due.
    ready: BTreeSet<(usize, Moment, Identifier)>,
    /// The same by when they were due.
    overdue: BTreeSet<(Moment, Identifier)>,
    /// Leases that were given.
    given: u64,
    /// Leases by their end.
    leases: BTreeSet<(Moment, Identifier)>,
    /// Leases whose next step waits for room.
    waiting: HashSet<Identifier>,
    parked: BTreeSet<Identifier>,
    /// Who waits for a server that could not be asked; of each identifier a few servers.
    out_of_reach: HashMap<String, BTreeSet<Identifier>>,
    /// What domains are asked.
    pub budget: Budget,
    /// Who is heard of.
    pub workers: Workers,
    /// The last number given to a lease or a fetch.
    last_number: u64,
    writes: Vec<Write>,
    /// Told when somebody is ready.
    ready_wake: Arc<Notify>,
    /// Told when something may be due earlier than it was.
    sooner: Arc<Notify>,
}

impl Queue {
    /// An empty queue. Its numbers begin behind `numbers`.
    pub fn new(rules: Rules, numbers: u64) -> Self {
        Self {
            rules,
            entries: HashMap::new(),
            later: BTreeSet::new(),
            ready: BTreeSet::new(),
            overdue: BTreeSet::new(),
            given: 0,
            leases: BTreeSet::new(),
            waiting: HashSet::new(),
            parked: BTreeSet::new(),
            out_of_reach: HashMap::new(),
            budget: Budget::new(rules.limits),
            workers: Workers::default(),
            last_number: numbers,
            writes: Vec::new(),
            ready_wake: Arc::default(),
            sooner: Arc::default(),
        }
    }

    /// What is told when an identifier is ready to be leased.
    pub fn ready_wake(&self) -> Arc<Notify> {
        self.ready_wake.clone()
    }

    /// What is told when [`Queue::next_moment`] may be sooner.
    pub fn sooner(&self) -> Arc<Notify> {
        self.sooner.clone()
    }

    /// What is to be on disk, in order.
    pub fn writes(&mut self) -> Vec<Write> {
        mem::take(&mut self.writes)
    }

    /// A record is of no use any more.
    pub(super) fn forget(&mut self, key: Key) {
        self.writes.push(Write::Forget(key));
    }

    /// When time alone changes something.
    pub fn next_moment(&self) -> Option<Moment> {
        let first = |set: &BTreeSet<(Moment, Identifier)>| set.first().map(|(moment, _)| *moment);
        let moments = [
            first(&self.later),
            first(&self.leases),
            self.budget.next_moment(),
        ];
        moments.into_iter().flatten().min()
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Takes an entry out of the place it is in, which is `Later` from now on.
    fn unplace(&mut self, identifier: &Identifier) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(identifier)?;
        match mem::replace(&mut entry.place, Place::Later) {
            Place::Later => {
                let key = (entry.timing.due(), identifier.clone());
                self.later.remove(&key);
            }
            Place::Ready(rank, due) => {
                self.ready.remove(&(rank, due, identifier.clone()));
                self.overdue.remove(&(due, identifier.clone()));
            }
            Place::Parked => {
                self.parked.remove(identifier);
            }
            Place::Leased(lease) => {
                self.leases.remove(&(lease.until, identifier.clone()));
                self.waiting.remove(identifier);
                self.workers.unleased(&lease.worker);
                self.writes.push(Write::unleased(identifier));
                lease.wake.notify_one();
            }
        }
        Some(entry)
    }

    fn place_later(&mut self, identifier: &Identifier) {
        if let Some(entry) = self.unplace(identifier) {
            let due = entry.timing.due();
            self.later.insert((due, identifier.clone()));
            self.sooner.notify_one();
        }
    }

    fn place_ready(&mut self, identifier: &Identifier) {
        let Some(entry) = self.unplace(identifier) else {
            return;
        };
        let (rank, due) = (entry.used.rank(), entry.timing.due());
        entry.place = Place::Ready(rank, due);
        let is_first = self.ready.is_empty();
        self.ready.insert((rank, due, identifier.clone()));
        self.overdue.insert((due, identifier.clone()));
        self.ready_wake.notify_waiters();
        if !is_first {
            // While somebody is ready nobody begins to wait for room, and who did is told already.
            return;
        }
        // Whoever only waits for room makes room for those who can do something.
        for waiting in &self.waiting {
            if let Some(lease) = self.entries.get(waiting).and_then(leased) {
                lease.wake.notify_one();
            }
        }
    }

    /// Wakes those that domains may have room for.
    fn wake(&mut self) {
        for identifier in self.budget.woken() {
            match self.entries.get(&identifier).map(|entry| &entry.place) {
                Some(Place::Parked) => self.place_ready(&identifier),
                Some(Place::Leased(lease)) => lease.wake.notify_one(),
                _ => {}
            }
        }
    }

    /// Time has passed: what is due is ready, leases run out, domains have room again.
    pub fn tick(&mut self, now: Moment) {
        while let Some((due, identifier)) = self.later.first().cloned() {
            if due > now {
                break;
            }
            if let Some(entry) = self.entries.get_mut(&identifier) {
                entry.used.age(now);
            }
            self.place_ready(&identifier);
        }
        while let Some((until, identifier)) = self.leases.first().cloned() {
            if until > now {
                break;
            }
            self.runs_out(&identifier, now);
        }
        self.budget.tick(now);
        let quiet = self.budget.quiet().into_iter();
        self.writes
            .extend(quiet.map(|name| Write::no_requests(&name)));
        self.workers.tick(now);
        self.follow_servers(now);
        self.wake();
    }

    /// Whose server may be back, or is: one of those who wait for it probes it, and all of them ask.
    fn follow_servers(&mut self, now: Moment) {
        for server in self.budget.to_probe() {
            let waiting = self.out_of_reach.get(&server).into_iter().flatten();
            // Whoever is due anyway does it as well.
            let is_later = |one: &&Identifier| {
                let entry = self.entries.get(*one);
                entry.is_some_and(|entry| matches!(entry.place, Place::Later))
            };
            let first = waiting.filter(is_later).min_by_key(|one| {
                let entry = self.entries.get(*one);
                entry.map(|entry| entry.timing.due())
            });
            if let Some(identifier) = first.cloned() {
                self.bring_forward(&identifier, now);
            }
        }
        for server in self.budget.recovered() {
            let waiting = self.out_of_reach.get(&server).cloned();
            for identifier in waiting.unwrap_or_default() {
                self.bring_forward(&identifier, now);
            }
        }
    }

    fn bring_forward(&mut self, identifier: &Identifier, now: Moment) {
        let Some(entry) = self.entries.get_mut(identifier) else {
            return;
        };
        if matches!(entry.place, Place::Later) {
            let before = (entry.timing.due(), identifier.clone());
            entry.timing.sooner(now);
            self.later.remove(&before);
            self.place_later(identifier);
        }
    }

    /// An attempt has ended, or the identifier is hunted for no more: whom it waited for, and for whom
    /// it waits.
    fn waits_for_servers(&mut self, before: Vec<String>, after: Vec<String>, who: &Identifier) {
        for server in before {
            if let Some(waiting) = self.out_of_reach.get_mut(&server) {
                waiting.remove(who);
                if waiting.is_empty() {
                    self.out_of_reach.remove(&server);
                }
            }
        }
        for server in after {
            let waiting = self.out_of_reach.entry(server).or_default();
            waiting.insert(who.clone());
        }
    }

    /// Takes an identifier out: nothing is missing under it.
    fn remove(&mut self, identifier: &Identifier) {
        self.unplace(identifier);
        if let Some(entry) = self.entries.remove(identifier) {
            let waited = entry.tries.servers().cloned().collect();
            self.waits_for_servers(waited, Vec::new(), identifier);
        }
    }

    /// How far the hunt has come for what waits under an identifier since then.
    pub fn progress(&self, identifier: &Identifier, since: Moment) -> Progress {
        let Some(entry) = self.entries.get(identifier) else {
            return Progress::NotHunted;
        };
        if entry.tries.made_since(since) {
            return Progress::Tried;
        }
        let fetch = leased(entry).and_then(|lease| lease.fetch.as_ref());
        let domains = fetch.map(|fetch| &fetch.url.domain).into_iter();
        let domains = domains.chain(entry.tries.domains()).cloned();
        let waits = self.budget.waits_for(identifier).map(str::to_owned);
        Progress::Untried(domains.chain(waits).collect())
    }

    /// Something is missing under an identifier: its next attempt is due at `wanted`, if not before.
    pub fn enqueue(
        &mut self,
        identifier: &Identifier,
        wanted: Moment,
        healing: bool,
        trace: Option<Trace>,
    ) {
        let Some(entry) = self.entries.get_mut(identifier) else {
            let entry = Entry {
                timing: Timing::due_at(wanted),
                place: Place::Later,
                turns: 0,
                asked: 0,
                tried: BTreeSet::new(),
                interrupted: BTreeSet::new(),
                costly: Costly::default(),
                used: Used::none(wanted),
                tries: Tries::default(),
                rotation: Rotation::default(),
                healing,
                trace,
            };
            self.entries.insert(identifier.clone(), entry);
            self.place_later(identifier);
            return;
        };
        entry.healing |= healing;
        entry.trace = trace.or(entry.trace);
        match entry.place {
            Place::Later => {
                let before = (entry.timing.due(), identifier.clone());
                entry.timing.event(wanted);
                self.later.remove(&before);
                self.place_later(identifier);
            }
            Place::Ready(..) | Place::Parked | Place::Leased(_) => entry.timing.event(wanted),
        }
    }

    /// Nothing is missing under an identifier any more: unless somebody hunts for it, or what
    /// is served lacks objects, it is in the queue no more. Says when it was due.
    pub fn settled(&mut self, identifier: &Identifier) -> Option<Moment> {
        let entry = self.entries.get(identifier)?;
        let due = entry.timing.due();
        if !matches!(entry.place, Place::Later) || entry.healing {
            return None;
        }
        self.remove(identifier);
        Some(due)
    }

    /// A worker is heard of.
    pub fn seen(&mut self, worker: &str, now: Moment) {
        self.workers.seen(worker, now);
    }

    /// How many identifiers are in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What an operator wants to know; `most` entries one by one.
    pub fn figures(&self, most: usize) -> QueueFigures {
        let in_line = self.leases.iter().map(|(_, name)| name);
        let in_line = in_line.chain(self.ready.iter().map(|(_, _, name)| name));
        let in_line = in_line.chain(&self.parked);
        let in_line = in_line.chain(self.later.iter().map(|(_, name)| name));
        let entries = in_line.take(most).filter_map(|identifier| {
            let entry = self.entries.get(identifier)?;
            Some(EntryFigures {
                identifier: identifier.clone(),
                due: entry.timing.due(),
                attempts: entry.timing.attempts(),
                worker: leased(entry).map(|lease| lease.worker.clone()),
            })
        });
        QueueFigures {
            identifiers: self.entries.len(),
            leased: self.leases.len(),
            ready: self.ready.len(),
            waiting: self.parked.len() + self.waiting.len(),
            entries: entries.collect(),
        }
    }
}

#[cfg(test)]
mod tests;
