//! The third store: pull requests without their commit, and commits without their pull request
//! (placeholders). Either side may come first; an entry holds what is here of both.
//!
//! Whoever knows an event's id can push for it. So several commits may wait for one id, none takes away
//! another, and the signed event chooses. The ref shows the first of them until then.

use std::collections::{BTreeMap, BTreeSet};

use dashmap::{DashMap, Entry as Slot};
use grasp_proto::words::{Address, EventId, Identifier, Npub, Oid};

use super::{WAITS_FOR, deadlines::Deadlines, kept::KeptUntil, room::Room, without};
use crate::{
    clock::Moment,
    nip34::{bounds::memory, pull_request::PullRequest},
};

/// Commits that may wait for one event at one address.
pub const MOST_COMMITS: usize = 64;

/// What waits under one event id.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The event; `None`: git came first.
    pub request: Option<PullRequest>,
    /// The commits pushed for it before it was served, by where they were pushed to. Below `/prs/`
    /// that says whose the event must be, and under which identifier.
    pub pushed: BTreeMap<Address, BTreeSet<Oid>>,
    /// When the first of it came.
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

    /// What it waits under.
    pub fn identifiers(&self) -> BTreeSet<Identifier> {
        let pushed = self
            .pushed
            .keys()
            .map(|address| address.identifier().clone());
        let offered = self.request.iter().flat_map(PullRequest::identifiers);
        pushed.chain(offered).collect()
    }
}

/// Pull requests by event id. Grows by what was admitted and by the placeholders of each
/// repository, which gitd bounds; shrinks by the clock.
#[derive(Debug, Default)]
pub struct PullRequests {
    entries: DashMap<EventId, Waiting>,
    by_identifier: DashMap<Identifier, BTreeSet<EventId>>,
    authors: DashMap<Npub, BTreeSet<EventId>>,
    deadlines: Deadlines<EventId>,
    arrivals: Deadlines<EventId>,
    room: Room,
}

impl PullRequests {
    /// Changes or makes the entry of `id`; all indexes follow.
    fn change(&self, id: EventId, now: Moment, change: impl FnOnce(&mut Waiting)) -> Waiting {
        let mut slot = self.entries.entry(id).or_insert_with(|| Waiting {
            request: None,
            pushed: BTreeMap::new(),
            created: now,
            expires: now,
            kept: None,
        });
        let old = slot.value().clone();
        change(&mut slot);
        let new = slot.value().clone();
        // All indexes follow while the entry is held.
        self.deadlines.change(&id, Some(old.due()), Some(new.due()));
        self.arrivals
            .change(&id, Some(old.created), Some(new.created));
        let (before, after) = (old.identifiers(), new.identifiers());
        for identifier in &after {
            self.by_identifier
                .entry(identifier.clone())
                .or_default()
                .insert(id);
        }
        for identifier in before.difference(&after) {
            without(&self.by_identifier, identifier.clone(), &id);
        }
        if let Some(request) = &old.request {
            self.room.give_back(request.author, memory(&request.event));
        }
        if let Some(request) = &new.request {
            self.room.take(request.author, memory(&request.event));
            self.authors.entry(request.author).or_default().insert(id);
        }
        new
    }

    /// The event came: 30 minutes from now. Gives the entry as it is with it.
    pub fn admit(&self, request: PullRequest, now: Moment) -> Waiting {
        self.change(request.id(), now, |entry| {
            entry.request = Some(request);
            entry.expires = now + WAITS_FOR;
            entry.kept = None;
        })
    }

    /// A commit was pushed for it, beside those that wait there: 30 minutes from now. Gives the entry as it
    /// is with it.
    pub fn pushed(&self, id: EventId, to: &Address, commit: Oid, now: Moment) -> Waiting {
        self.change(id, now, |entry| {
            entry.pushed.entry(to.clone()).or_default().insert(commit);
            entry.expires = now + WAITS_FOR;
            entry.kept = None;
        })
    }

    /// Of what was pushed there this commit is the right one, or the only one that is there; or, of
    /// `None`, nothing is.
    pub fn only(&self, id: &EventId, at: &Address, commit: Option<Oid>) {
        if let Some(entry) = self.get(id).filter(|entry| entry.pushed.contains_key(at)) {
            self.change(*id, entry.created, |entry| {
                match commit {
                    Some(commit) => entry.pushed.insert(at.clone(), BTreeSet::from([commit])),
                    None => entry.pushed.remove(at),
                };
            });
        }
    }

    /// The commits that wait for it there.
    pub fn pushed_to(&self, id: &EventId, at: &Address) -> BTreeSet<Oid> {
        let entry = self.entries.get(id);
        let commits = entry.and_then(|entry| entry.pushed.get(at).cloned());
        commits.unwrap_or_default()
    }

    /// Puts an entry back as the journal had it.
    pub fn restore(&self, id: EventId, restored: Waiting) {
        self.change(id, restored.created, |entry| *entry = restored);
    }

    /// What was pushed there has been removed again.
    pub fn unpushed(&self, id: &EventId, from: &[Address]) {
        if let Some(entry) = self.get(id) {
            self.change(*id, entry.created, |entry| {
                entry.pushed.retain(|address, _| !from.contains(address));
            });
        }
    }

    /// The entry of this id.
    pub fn get(&self, id: &EventId) -> Option<Waiting> {
        self.entries.get(id).map(|entry| entry.value().clone())
    }

    /// The events of one author.
    pub fn of_author(&self, author: &Npub) -> Vec<PullRequest> {
        let ids = self.authors.get(author).map(|ids| ids.value().clone());
        let ids = ids.unwrap_or_default().into_iter();
        ids.filter_map(|id| self.get(&id)?.request).collect()
    }

    /// All that wait under one identifier, with their ids.
    pub fn by_identifier(&self, identifier: &Identifier) -> Vec<(EventId, Waiting)> {
        let ids = self
            .by_identifier
            .get(identifier)
            .map(|ids| ids.value().clone());
        ids.unwrap_or_default()
            .into_iter()
            .filter_map(|id| Some((id, self.get(&id)?)))
            .collect()
    }

    /// Of what waits under one identifier `most`, from the one at `start` on and round again. Gives
    /// how many there are, too.
    pub fn from(
        &self,
        identifier: &Identifier,
        start: u64,
        most: usize,
    ) -> (Vec<(EventId, Waiting)>, usize) {
        let (ids, count) = {
            let Some(ids) = self.by_identifier.get(identifier) else {
                return (Vec::new(), 0);
            };
            let chosen = super::from_and_round(ids.iter(), ids.len(), start, most);
            (chosen.copied().collect::<Vec<_>>(), ids.len())
        };
        let found = ids.into_iter().filter_map(|id| Some((id, self.get(&id)?)));
        (found.collect(), count)
    }

    /// Whether something waits under an identifier: an event or a commit.
    pub fn waits_under(&self, identifier: &Identifier) -> bool {
        self.by_identifier.contains_key(identifier)
    }

    /// Gives it until `until` at least.
    pub fn extend(&self, id: &EventId, until: Moment) -> Option<Waiting> {
        let mut entry = self.entries.get_mut(id)?;
        let old = entry.due();
        entry.expires = entry.expires.max(until);
        entry.kept = None;
        self.deadlines.change(id, Some(old), Some(entry.due()));
        Some(entry.value().clone())
    }

    /// Keeps it alive beyond its deadline.
    pub fn keep_alive(&self, id: &EventId, kept: KeptUntil) {
        if let Some(mut entry) = self.entries.get_mut(id) {
            let old = entry.due();
            entry.kept = Some(kept);
            self.deadlines.change(id, Some(old), Some(entry.due()));
        }
    }

    /// Takes an entry out.
    pub fn remove(&self, id: &EventId) -> Option<Waiting> {
        let Slot::Occupied(slot) = self.entries.entry(*id) else {
            return None;
        };
        self.deadlines.change(id, Some(slot.get().due()), None);
        self.arrivals.change(id, Some(slot.get().created), None);
        for identifier in slot.get().identifiers() {
            without(&self.by_identifier, identifier, id);
        }
        if let Some(request) = &slot.get().request {
            self.room.give_back(request.author, memory(&request.event));
            without(&self.authors, request.author, id);
        }
        Some(slot.remove())
    }

    /// The room that the events among them take. What is pushed is bounded by gitd.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// At most `most` whose deadline has come.
    pub fn due(&self, now: Moment, most: usize) -> Vec<EventId> {
        self.deadlines.due(now, most)
    }

    /// When the oldest of those that wait came, event or commit.
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

    use grasp_proto::words::RepoId;

    use super::*;
    use crate::nip34::{
        PULL_REQUEST, author_of,
        testing::{event, keys},
    };

    const NOW: Moment = Moment::from_millis(1_000);

    fn request(offered: &[&str]) -> PullRequest {
        let owner = "ab".repeat(32);
        let coordinates: Vec<String> = offered
            .iter()
            .map(|d| format!("30617:{owner}:{d}"))
            .collect();
        let mut tags: Vec<Vec<&str>> = vec![vec!["c", "x"]];
        tags.extend(coordinates.iter().map(|a| vec!["a", a.as_str()]));
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        PullRequest::read(Arc::new(event(&keys(1), PULL_REQUEST, 1, &tags))).unwrap()
    }

    fn named(text: &str) -> Identifier {
        Identifier::parse(text).unwrap()
    }

    #[test]
    fn either_side_may_come_first() {
        let store = PullRequests::default();
        let request = request(&["x"]);
        let repo = Address::from(RepoId {
            owner: author_of(&request.event),
            identifier: named("y"),
        });
        let oid = Oid::from_bytes([1; 20]);
        let id = request.id();
        let placeholder = store.pushed(id, &repo, oid, NOW);
        assert!(placeholder.request.is_none());
        assert_eq!(store.by_identifier(&named("y")).len(), 1);
        let whole = store.admit(request, NOW + Duration::from_secs(9));
        assert_eq!(whole.pushed[&repo], BTreeSet::from([oid]));
        assert_eq!(whole.created, NOW);
        assert_eq!(store.oldest(), Some(NOW));
        assert_eq!(whole.expires, NOW + Duration::from_secs(9) + WAITS_FOR);
        store.unpushed(&id, &[repo]);
        assert!(store.by_identifier(&named("y")).is_empty());
        assert_eq!(store.by_identifier(&named("x")).len(), 1);
        store.remove(&id).unwrap();
        assert!(store.is_empty() && store.by_identifier.is_empty());
        assert!(store.due(whole.expires, 9).is_empty());
        assert_eq!(store.oldest(), None);
    }

    #[test]
    fn several_commits_wait_for_one_event() {
        let store = PullRequests::default();
        let repo = Address::from(RepoId {
            owner: Npub::from_bytes([7; 32]),
            identifier: named("x"),
        });
        let (id, commit) = (EventId::from_bytes([1; 32]), |n| Oid::from_bytes([n; 20]));
        for n in [2, 1, 2] {
            store.pushed(id, &repo, commit(n), NOW);
        }
        assert_eq!(store.pushed_to(&id, &repo), [1, 2].map(commit).into());
        store.only(&id, &repo, Some(commit(2)));
        assert_eq!(store.pushed_to(&id, &repo), [commit(2)].into());
        store.only(&id, &repo, None);
        assert!(store.pushed_to(&id, &repo).is_empty() && !store.waits_under(&named("x")));
        // Nothing is made of what does not wait there.
        store.only(&id, &repo, Some(commit(1)));
        assert!(store.pushed_to(&id, &repo).is_empty());
    }

    #[test]
    fn one_offered_to_two_is_found_under_both() {
        let store = PullRequests::default();
        store.admit(request(&["x", "y"]), NOW);
        assert_eq!(store.by_identifier(&named("x")).len(), 1);
        assert_eq!(store.by_identifier(&named("y")).len(), 1);
        assert_eq!(store.len(), 1);
        assert_eq!(store.identifiers().len(), 2);
    }
}
