//! Events that were found elsewhere and rejected: the latest whole, for as long as what they miss may
//! be on its way, and for much longer their ids, so that they are not fetched over and over. Pure:
//! every method is told the time.
//!
//! Each is entered under what it misses. When that comes ([`Rejected::wake`]), the whole ones are to
//! be judged again, and the ids are forgotten, so that they can be fetched again. Only events whose
//! id and signature are right are put in: a forged copy keeps out nobody.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
    time::Duration,
};

use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
use nostr::{Event, Timestamp};

use crate::{
    clock::Moment,
    nip34::{self, Meaning, author_of, id_of},
    policy::related,
};

/// How much is kept at most.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Whole events, and their bytes. Of more, whoever brought most loses the oldest.
    whole: usize,
    whole_bytes: usize,
    /// Ids; the oldest go first.
    ids: usize,
    /// What they miss, all together; the oldest go first.
    missed: usize,
}

const LIMITS: Limits = Limits {
    whole: 20_000,
    whole_bytes: 32 << 20,
    ids: 200_000,
    missed: 800_000,
};
/// Things that one event may miss: as many references as are followed up, of both kinds, and being
/// referred to.
const MISSED_BY_ONE: usize = 2 * related::FOLLOWED + 2;
/// How often one event is judged again.
const TRIES: u8 = 16;
/// After how long an event is judged again that could not be judged.
const LATER: Duration = Duration::from_secs(30);
/// Things that came lately, as far as is remembered.
const LATELY: usize = 16_384;

/// Something that a rejected event may miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want<'a> {
    /// Anything of this author's.
    Author(&'a Npub),
    /// Any announcement of this identifier.
    Announcement(&'a Identifier),
    /// This repository to be served.
    Repository(&'a RepoId),
    /// This event to be served.
    Event(&'a EventId),
    /// An event that refers to this one.
    ReferenceTo(&'a EventId),
    /// An event that refers to this address.
    ReferenceToAddress(&'a str),
}

/// How long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durations {
    /// Whole events.
    pub hot: Duration,
    /// Ids.
    pub cold: Duration,
}

/// In which order events are judged when there are several: what others rest on comes first.
pub fn order(event: &Event) -> (u8, Timestamp) {
    let rank = match (Meaning::of(event.kind), event.kind.as_u16()) {
        (Meaning::Announcement, _) => 0,
        (Meaning::State, _) => 1,
        (_, 1617 | 1618 | 1621) => 2,
        _ => 3,
    };
    (rank, event.created_at)
}

#[derive(Debug)]
struct Whole {
    event: Arc<Event>,
    bytes: usize,
    /// Who brought it.
    source: u64,
    tries: u8,
}

#[derive(Debug)]
struct Entry {
    id: EventId,
    /// Hashes of what it misses.
    misses: Box<[u64]>,
    since: Moment,
    whole: Option<Whole>,
}

/// The whole events that one remote relay brought.
#[derive(Debug, Default)]
struct Source {
    bytes: usize,
    entries: BTreeSet<u64>,
}

/// An event that is to be judged again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// Which.
    pub event: Arc<Event>,
    /// Who brought it.
    pub source: u64,
    /// How often it was judged again before.
    pub tries: u8,
}

/// What came of something coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Woken {
    /// Somebody is to be judged again.
    pub ready: bool,
    /// Somebody was forgotten who is not here: to be fetched again.
    pub forgot: bool,
}

/// A moment in the order of things that come: see [`Rejected::mark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

/// The index.
#[derive(Debug)]
pub struct Rejected {
    durations: Durations,
    limits: Limits,
    hasher: RandomState,
    /// By number, and so by age.
    entries: BTreeMap<u64, Entry>,
    next: u64,
    ids: HashMap<EventId, u64>,
    /// Who misses what: hash and number.
    misses: BTreeSet<(u64, u64)>,
    /// The whole ones.
    whole: BTreeSet<u64>,
    sources: HashMap<u64, Source>,
    /// Sources by what they brought.
    heaviest: BTreeSet<(usize, u64)>,
    bytes: usize,
    /// To be judged again, in order; counted among the whole ones until they are taken.
    ready: BTreeMap<(u8, Timestamp, EventId), (Again, usize)>,
    ready_bytes: usize,
    /// To be ready then, as they came; counted as if they were.
    later: VecDeque<(Moment, Again, usize)>,
    /// What came lately, and when.
    came: HashMap<u64, u64>,
    came_order: VecDeque<(u64, u64)>,
    clock: u64,
    /// What came until then may be forgotten.
    forgotten: u64,
}

impl Rejected {
    /// An empty index.
    pub fn new(durations: Durations) -> Self {
        Self {
            durations,
            limits: LIMITS,
            hasher: RandomState::new(),
            entries: BTreeMap::new(),
            next: 0,
            ids: HashMap::new(),
            misses: BTreeSet::new(),
            whole: BTreeSet::new(),
            sources: HashMap::new(),
            heaviest: BTreeSet::new(),
            bytes: 0,
            ready: BTreeMap::new(),
            ready_bytes: 0,
            later: VecDeque::new(),
            came: HashMap::new(),
            came_order: VecDeque::new(),
            clock: 0,
            forgotten: 0,
        }
    }

    /// By what a source goes in here.
    pub fn source(&self, url: &str) -> u64 {
        self.hasher.hash_one(url)
    }

    /// To be taken before an event is judged: what comes from then on is not missed by it.
    pub fn mark(&self) -> Mark {
        Mark(self.clock)
    }

    /// Whether an event was rejected lately.
    pub fn contains(&self, id: &EventId) -> bool {
        self.ids.contains_key(id)
    }

    /// Whether an event is kept whole, to be judged again.
    pub fn keeps(&self, id: &EventId) -> bool {
        let entry = self.ids.get(id).and_then(|number| self.entries.get(number));
        entry.is_some_and(|entry| entry.whole.is_some())
    }

    /// Whole events, and ids.
    pub fn sizes(&self) -> (usize, usize) {
        (self.waiting() + self.whole.len(), self.ids.len())
    }

    /// Whole events that are not in the index any more.
    fn waiting(&self) -> usize {
        self.ready.len() + self.later.len()
    }

    /// What an event that is rejected for want of something misses.
    fn misses_of(&self, event: &Event) -> Box<[u64]> {
        let hash = |want: Want| self.hasher.hash_one(want);
        if matches!(
            Meaning::of(event.kind),
            Meaning::Announcement | Meaning::State
        ) {
            let identifier = nip34::identifier_of(event).ok();
            return identifier
                .map(|identifier| hash(Want::Announcement(&identifier)))
                .into_iter()
                .collect();
        }
        if Meaning::of(event.kind) == Meaning::GraspList {
            return [hash(Want::Author(&author_of(event)))].into();
        }
        let mut misses = vec![hash(Want::ReferenceTo(&id_of(event)))];
        if let Some(address) = event.coordinate() {
            misses.push(hash(Want::ReferenceToAddress(&address.to_string())));
        }
        let repositories = related::repositories(event);
        misses.extend(repositories.iter().map(|repo| hash(Want::Repository(repo))));
        let events = related::events(event);
        misses.extend(events.iter().map(|id| hash(Want::Event(id))));
        misses.truncate(MISSED_BY_ONE);
        misses.sort_unstable();
        misses.dedup();
        misses.into()
    }

    /// Puts in an event that was rejected for good: its id.
    pub fn refuse(&mut self, id: EventId, now: Moment) {
        self.insert(id, Box::default(), None, now);
    }

    /// Puts in an event that was rejected for want of something, judged after `mark`. Says whether
    /// it will be judged again when that comes.
    pub fn keep(&mut self, again: Again, mark: Mark, now: Moment) -> bool {
        let id = id_of(&again.event);
        let misses = self.misses_of(&again.event);
        if misses.is_empty() || again.tries >= TRIES {
            self.insert(id, misses, None, now);
            return false;
        }
        let came = |hash: &u64| self.came.get(hash).is_some_and(|when| *when > mark.0);
        let bytes = size(&again.event);
        if self.forgotten > mark.0 || misses.iter().any(came) {
            let has_room = self.has_room(bytes);
            if has_room {
                let tries = again.tries + 1;
                self.make_ready(Again { tries, ..again }, bytes);
            }
            return has_room;
        }
        let whole = Whole {
            event: again.event,
            bytes,
            source: again.source,
            tries: again.tries,
        };
        self.insert(id, misses, Some(whole), now);
        self.keeps(&id)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.waiting() < self.limits.whole && self.ready_bytes + bytes <= self.limits.whole_bytes
    }

    /// Puts in an event that was to be judged again, and could not be: it will be, a while later. One
    /// that there is no room for, or that fails for ever, can be fetched again.
    pub fn put_back(&mut self, again: Again, now: Moment) {
        let bytes = size(&again.event);
        let tries = again.tries + 1;
        if tries < TRIES && self.has_room(bytes) {
            self.ready_bytes += bytes;
            let again = Again { tries, ..again };
            self.later.push_back((now + LATER, again, bytes));
        }
    }

    fn insert(&mut self, id: EventId, misses: Box<[u64]>, whole: Option<Whole>, now: Moment) {
        if self.ids.contains_key(&id) {
            return;
        }
        let number = self.next;
        self.next += 1;
        self.ids.insert(id, number);
        self.misses
            .extend(misses.iter().map(|hash| (*hash, number)));
        if let Some(whole) = &whole {
            self.whole.insert(number);
            self.weigh(whole.source, |source| {
                source.entries.insert(number);
                source.bytes += whole.bytes;
            });
            self.bytes += whole.bytes;
        }
        let entry = Entry {
            id,
            misses,
            since: now,
            whole,
        };
        self.entries.insert(number, entry);
        while self.whole.len() + self.waiting() > self.limits.whole
            || self.bytes + self.ready_bytes > self.limits.whole_bytes
        {
            if !self.drop_of_heaviest() {
                break;
            }
        }
        while self.entries.len() > self.limits.ids || self.misses.len() > self.limits.missed {
            match self.entries.first_key_value() {
                Some((oldest, _)) => drop(self.remove(*oldest)),
                None => break,
            }
        }
    }

    fn weigh(&mut self, source: u64, change: impl FnOnce(&mut Source)) {
        let known = self.sources.entry(source).or_default();
        self.heaviest.remove(&(known.bytes, source));
        change(known);
        match known.entries.is_empty() {
            true => drop(self.sources.remove(&source)),
            false => drop(self.heaviest.insert((known.bytes, source))),
        }
    }

    /// Whoever brought most keeps one event less whole.
    fn drop_of_heaviest(&mut self) -> bool {
        let heaviest = self
            .heaviest
            .last()
            .and_then(|(_, source)| self.sources.get(source));
        let Some(oldest) = heaviest.and_then(|source| source.entries.first().copied()) else {
            return false;
        };
        self.take_whole(oldest).is_some()
    }

    /// Of an entry only its id stays.
    fn take_whole(&mut self, number: u64) -> Option<Whole> {
        let whole = self.entries.get_mut(&number)?.whole.take()?;
        self.whole.remove(&number);
        self.bytes -= whole.bytes;
        self.weigh(whole.source, |source| {
            source.entries.remove(&number);
            source.bytes -= whole.bytes;
        });
        Some(whole)
    }

    fn remove(&mut self, number: u64) -> Option<Whole> {
        let whole = self.take_whole(number);
        let entry = self.entries.remove(&number)?;
        self.ids.remove(&entry.id);
        for hash in entry.misses {
            self.misses.remove(&(hash, number));
        }
        whole
    }

    fn make_ready(&mut self, again: Again, bytes: usize) {
        let (rank, at) = order(&again.event);
        let id = id_of(&again.event);
        if self.ready.insert((rank, at, id), (again, bytes)).is_none() {
            self.ready_bytes += bytes;
        }
    }

    /// Something came: who missed it is to be judged again, or may be fetched again.
    pub fn wake<'a>(&mut self, came: impl IntoIterator<Item = Want<'a>>) -> Woken {
        let mut woken = Woken::default();
        for want in came {
            let hash = self.hasher.hash_one(want);
            self.clock += 1;
            self.came.insert(hash, self.clock);
            self.came_order.push_back((hash, self.clock));
            if self.came_order.len() > LATELY
                && let Some((old, when)) = self.came_order.pop_front()
            {
                self.forgotten = when;
                if self.came.get(&old) == Some(&when) {
                    self.came.remove(&old);
                }
            }
            let waiting = self.misses.range((hash, 0)..=(hash, u64::MAX));
            let waiting: Vec<u64> = waiting.map(|(_, number)| *number).collect();
            for number in waiting {
                let whole = self.remove(number);
                woken.forgot |= whole.is_none();
                if let Some(whole) = whole {
                    let again = Again {
                        event: whole.event,
                        source: whole.source,
                        tries: whole.tries + 1,
                    };
                    self.make_ready(again, whole.bytes);
                    woken.ready = true;
                }
            }
        }
        woken
    }

    /// At most `most` events that are to be judged again, of one rank, those first that others rest
    /// on.
    pub fn ready(&mut self, most: usize) -> Vec<Again> {
        let rank = self.ready.first_key_value().map(|(key, _)| key.0);
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(first) = self.ready.first_entry()
            && Some(first.key().0) == rank
        {
            let (again, bytes) = first.remove();
            self.ready_bytes -= bytes;
            taken.push(again);
        }
        taken
    }

    /// An event is served: nothing is remembered against it.
    pub fn forget(&mut self, id: &EventId) {
        if let Some(number) = self.ids.get(id).copied() {
            self.remove(number);
        }
    }

    /// Time has passed. Says whether somebody is to be judged again.
    pub fn tick(&mut self, now: Moment) -> bool {
        let mut ready = false;
        while self.later.front().is_some_and(|(due, ..)| *due <= now)
            && let Some((_, again, bytes)) = self.later.pop_front()
        {
            self.ready_bytes -= bytes;
            self.make_ready(again, bytes);
            ready = true;
        }
        while let Some(number) = self.whole.first().copied()
            && self.entries[&number].since + self.durations.hot <= now
        {
            self.take_whole(number);
        }
        while let Some((number, entry)) = self.entries.first_key_value()
            && entry.since + self.durations.cold <= now
        {
            let number = *number;
            self.remove(number);
        }
        ready
    }

    /// Every number that is kept twice agrees.
    #[cfg(test)]
    fn is_sound(&self) -> bool {
        let whole = self
            .entries
            .values()
            .filter_map(|entry| entry.whole.as_ref());
        let bytes: usize = whole.map(|whole| whole.bytes).sum();
        let misses: usize = self.entries.values().map(|entry| entry.misses.len()).sum();
        let of_sources: usize = self.sources.values().map(|source| source.bytes).sum();
        let ready: usize = self.ready.values().map(|(_, bytes)| *bytes).sum();
        let later: usize = self.later.iter().map(|(_, _, bytes)| *bytes).sum();
        self.bytes == bytes
            && of_sources == bytes
            && self.ready_bytes == ready + later
            && self.ids.len() == self.entries.len()
            && self.misses.len() == misses
            && self.heaviest.len() == self.sources.len()
            && self.came.len() <= LATELY
    }
}

/// What an event takes, roughly.
pub fn size(event: &Event) -> usize {
    let tags = event.tags.iter().flat_map(|tag| tag.as_slice());
    let tags: usize = tags.map(|value| value.len() + size_of::<String>()).sum();
    size_of::<Event>() + event.content.len() + tags
}

/// What comes with an announcement that stands so now.
pub fn brought_by_announcement(repo: &RepoId, is_served: bool) -> Vec<Want<'_>> {
    let mut came = vec![
        Want::Announcement(&repo.identifier),
        Want::Author(&repo.owner),
    ];
    if is_served {
        came.push(Want::Repository(repo));
    }
    came
}

/// Wakes whoever missed an event that is served now.
pub fn event_came(rejected: &mut Rejected, event: &Event) -> bool {
    let id = id_of(event);
    rejected.forget(&id);
    // Requests to delete or to vanish relate nothing.
    if !related::relates(event.kind) {
        return false;
    }
    let events = related::events(event);
    let addresses: BTreeSet<&str> = ["a", "A", "q"]
        .into_iter()
        .flat_map(|name| nip34::values(event, name))
        .filter(|value| value.contains(':'))
        .take(MISSED_BY_ONE)
        .collect();
    let author = author_of(event);
    let came = [Want::Event(&id), Want::Author(&author)].into_iter();
    let came = came.chain(events.iter().map(Want::ReferenceTo));
    let woken = rejected.wake(came.chain(addresses.into_iter().map(Want::ReferenceToAddress)));
    woken.ready
}

/// Sorts events into the order in which they are to be judged.
pub fn sort<T>(events: &mut [T], event: impl Fn(&T) -> &Event) {
    events.sort_by_key(|one| {
        let event = event(one);
        (order(event), Reverse(event.id))
    });
}

#[cfg(test)]
#[path = "rejected_tests.rs"]
mod tests;
