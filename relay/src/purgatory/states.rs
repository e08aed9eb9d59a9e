//! The second store: states whose objects have not come.
//!
//! Several may wait under one identifier, of different authors and in different versions: which of
//! them a push or a fetch fulfils shows when it comes.

use std::collections::{BTreeMap, BTreeSet};

use dashmap::{DashMap, Entry as Slot};
use grasp_proto::words::{EventId, Identifier, Npub};

use super::{deadlines::Deadlines, kept::KeptUntil, room::Room};
use crate::{
    clock::Moment,
    nip34::{bounds::memory, later, state::State},
};

/// One state that waits.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// What it says.
    pub state: State,
    /// When it came.
    pub created: Moment,
    /// Its deadline.
    pub expires: Moment,
    /// It is kept alive beyond that, until it is looked at then.
    pub kept: Option<KeptUntil>,
}

impl Waiting {
    /// When it is looked at: at its deadline, or later if it is kept alive.
    fn due(&self) -> Moment {
        self.kept.map_or(self.expires, |kept| kept.until)
    }
}

/// Versions of one author's state of one identifier that may wait at once; the oldest give way.
const VERSIONS: usize = 32;

/// What one ref of a state takes beside its event: its name once more, and its place in a tree.
const REF: usize = 160;

/// How much memory a state takes.
pub(super) fn memory_of(state: &State) -> usize {
    memory(&state.event) + state.refs.len() * REF
}

/// States by id. Grows by what was admitted, shrinks by the clock.
#[derive(Debug, Default)]
pub struct States {
    entries: DashMap<EventId, Waiting>,
    by_identifier: DashMap<Identifier, BTreeMap<Npub, BTreeSet<EventId>>>,
    authors: DashMap<Npub, BTreeSet<EventId>>,
    deadlines: Deadlines<EventId>,
    arrivals: Deadlines<EventId>,
    room: Room,
}

impl States {
    /// Puts an entry in; gives the id of an older version of it that had to give way.
    pub fn insert(&self, entry: Waiting) -> Option<EventId> {
        let id = entry.state.id();
        let (identifier, author) = (entry.state.identifier.clone(), entry.state.author);
        let (created, due) = (entry.created, entry.due());
        self.room.take(author, memory_of(&entry.state));
        let old = self.entries.insert(id, entry);
        if let Some(old) = &old {
            self.room.give_back(author, memory_of(&old.state));
        }
        self.authors.entry(author).or_default().insert(id);
        let (old_created, old_due) = old.map(|old| (old.created, old.due())).unzip();
        self.deadlines.change(&id, old_due, Some(due));
        self.arrivals.change(&id, old_created, Some(created));
        let versions = {
            let mut authors = self.by_identifier.entry(identifier).or_default();
            let versions = authors.entry(author).or_default();
            versions.insert(id);
            match versions.len() > VERSIONS {
                true => versions.clone(),
                false => return None,
            }
        };
        let oldest = versions
            .iter()
            .filter_map(|id| self.get(id))
            .min_by(|a, b| later(&a.state.event, &b.state.event))?;
        let oldest = oldest.state.id();
        self.remove(&oldest);
        Some(oldest)
    }

    /// The entry of this id.
    pub fn get(&self, id: &EventId) -> Option<Waiting> {
        self.entries.get(id).map(|entry| entry.value().clone())
    }

    fn all_of(&self, ids: impl IntoIterator<Item = EventId>) -> Vec<Waiting> {
        let ids = ids.into_iter();
        ids.filter_map(|id| self.get(&id)).collect()
    }

    /// Those of one author under one identifier.
    pub fn by_author(&self, identifier: &Identifier, author: &Npub) -> Vec<Waiting> {
        let authors = self.by_identifier.get(identifier);
        let ids = authors.and_then(|authors| authors.get(author).cloned());
        self.all_of(ids.unwrap_or_default())
    }

    /// Those of one author, under whatever identifiers.
    pub fn of_author(&self, author: &Npub) -> Vec<Waiting> {
        let ids = self.authors.get(author).map(|ids| ids.value().clone());
        self.all_of(ids.unwrap_or_default())
    }

    /// All that wait under one identifier.
    pub fn by_identifier(&self, identifier: &Identifier) -> Vec<Waiting> {
        let authors = self.by_identifier.get(identifier);
        let ids: Vec<EventId> = authors.map_or_else(Vec::new, |authors| {
            authors.values().flatten().copied().collect()
        });
        self.all_of(ids)
    }

    /// Of the authors under one identifier, whoever they are, `most`, from the one at `start` on and
    /// round again: what waits of each. Gives how many there are, too.
    pub fn authors_from(
        &self,
        identifier: &Identifier,
        start: u64,
        most: usize,
    ) -> (Vec<Vec<Waiting>>, usize) {
        let (ids, count) = {
            let Some(authors) = self.by_identifier.get(identifier) else {
                return (Vec::new(), 0);
            };
            let count = authors.len();
            let chosen = super::from_and_round(authors.values(), count, start, most);
            (chosen.cloned().collect::<Vec<_>>(), count)
        };
        let of_authors = ids.into_iter().map(|ids| self.all_of(ids));
        (of_authors.collect(), count)
    }

    /// Whether something waits under an identifier.
    pub fn waits_under(&self, identifier: &Identifier) -> bool {
        self.by_identifier.contains_key(identifier)
    }

    fn change(&self, id: &EventId, change: impl FnOnce(&mut Waiting)) -> Option<Waiting> {
        let mut entry = self.entries.get_mut(id)?;
        let old = entry.due();
        change(&mut entry);
        self.deadlines.change(id, Some(old), Some(entry.due()));
        Some(entry.value().clone())
    }

    /// Gives it until `until` at least: its deadline is that from now on.
    pub fn extend(&self, id: &EventId, until: Moment) -> Option<Waiting> {
        self.change(id, |entry| {
            entry.expires = entry.expires.max(until);
            entry.kept = None;
        })
    }

    /// Keeps it alive beyond its deadline.
    pub fn keep_alive(&self, id: &EventId, kept: KeptUntil) {
        self.change(id, |entry| entry.kept = Some(kept));
    }

    /// Takes an entry out.
    pub fn remove(&self, id: &EventId) -> Option<Waiting> {
        let removed = {
            let Slot::Occupied(slot) = self.entries.entry(*id) else {
                return None;
            };
            self.deadlines.change(id, Some(slot.get().due()), None);
            self.arrivals.change(id, Some(slot.get().created), None);
            slot.remove()
        };
        let (identifier, author) = (removed.state.identifier.clone(), removed.state.author);
        self.room.give_back(author, memory_of(&removed.state));
        super::without(&self.authors, author, id);
        if let Slot::Occupied(mut authors) = self.by_identifier.entry(identifier) {
            if let Some(versions) = authors.get_mut().get_mut(&author) {
                versions.remove(id);
                if versions.is_empty() {
                    authors.get_mut().remove(&author);
                }
            }
            if authors.get().is_empty() {
                authors.remove();
            }
        }
        Some(removed)
    }

    /// The room that they take.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// At most `most` whose deadline has come.
    pub fn due(&self, now: Moment, most: usize) -> Vec<EventId> {
        self.deadlines.due(now, most)
    }

    /// When the oldest of those that wait came.
    pub fn oldest(&self) -> Option<Moment> {
        self.arrivals.first()
    }

    /// The identifiers under which something waits.
    pub fn identifiers(&self) -> Vec<Identifier> {
        self.by_identifier
            .iter()
            .map(|entry| entry.key().clone())
            .collect()
    }

    /// Goes through all that waits, for an operator who asks; blocks.
    pub fn each(&self, mut see: impl FnMut(&Waiting)) {
        self.entries.iter().for_each(|entry| see(entry.value()));
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::nip34::{
        STATE,
        testing::{event, keys},
    };

    fn waiting(seed: u8, at: u64, identifier: &str) -> Waiting {
        let event = event(&keys(seed), STATE, at, &[&["d", identifier]]);
        let created = Moment::from_millis(at);
        Waiting {
            state: State::read(Arc::new(event)).unwrap(),
            created,
            expires: created + Duration::from_secs(10),
            kept: None,
        }
    }

    #[test]
    fn entries_are_found_by_identifier_and_by_author() {
        let store = States::default();
        for entry in [
            waiting(1, 1, "x"),
            waiting(1, 2, "x"),
            waiting(2, 1, "x"),
            waiting(1, 1, "y"),
        ] {
            store.insert(entry);
        }
        let x = Identifier::parse("x").unwrap();
        let author = waiting(1, 1, "x").state.author;
        assert_eq!(store.by_identifier(&x).len(), 3);
        assert_eq!(store.by_author(&x, &author).len(), 2);
        assert_eq!(store.identifiers().len(), 2);
        for entry in store.by_identifier(&x) {
            store.remove(&entry.state.id()).unwrap();
        }
        assert!(store.by_identifier(&x).is_empty());
        assert_eq!(store.len(), 1);
        assert!(!store.waits_under(&x) && store.by_identifier.len() == 1);
    }

    #[test]
    fn authors_have_their_turn_wherever_one_begins() {
        let store = States::default();
        for seed in 1..=5 {
            store.insert(waiting(seed, 1, "x"));
            store.insert(waiting(seed, 2, "x"));
        }
        let x = Identifier::parse("x").unwrap();
        let mut seen = BTreeSet::new();
        for turn in 0..3 {
            let (authors, count) = store.authors_from(&x, turn * 2, 2);
            assert_eq!((authors.len(), count), (2, 5));
            for versions in authors {
                assert_eq!(versions.len(), 2);
                seen.insert(versions[0].state.author);
            }
        }
        assert_eq!(seen.len(), 5);
        assert_eq!(store.authors_from(&x, u64::MAX, 9).0.len(), 5);
        let other = Identifier::parse("y").unwrap();
        assert_eq!(store.authors_from(&other, 3, 9).1, 0);
    }

    #[test]
    fn of_too_many_versions_the_oldest_gives_way() {
        let store = States::default();
        for at in 0..VERSIONS as u64 {
            assert_eq!(store.insert(waiting(1, 100 + at, "x")), None);
        }
        let oldest = waiting(1, 100, "x").state.id();
        assert_eq!(store.insert(waiting(1, 999, "x")), Some(oldest));
        assert_eq!(store.len(), VERSIONS);
    }

    #[test]
    fn deadlines_follow() {
        let store = States::default();
        let entry = waiting(1, 1, "x");
        let id = entry.state.id();
        store.insert(entry.clone());
        assert_eq!(store.due(entry.expires, 9), [id]);
        assert_eq!(store.oldest(), Some(entry.created));
        store.extend(&id, entry.expires + Duration::from_secs(5));
        assert!(store.due(entry.expires, 9).is_empty());
        let until = entry.expires + Duration::from_secs(9);
        let is_last = false;
        store.keep_alive(&id, KeptUntil { until, is_last });
        assert!(
            store
                .due(entry.expires + Duration::from_secs(8), 9)
                .is_empty()
        );
        assert_eq!(store.due(until, 9), [id]);
        store.extend(&id, entry.expires);
        assert_eq!(store.due(entry.expires + Duration::from_secs(5), 9), [id]);
        store.remove(&id);
        assert_eq!(store.oldest(), None);
        assert!(
            store
                .due(entry.expires + Duration::from_secs(60), 9)
                .is_empty()
        );
    }
}
