//! The first store: announcements whose git data has not come.
//!
//! An entry expires in two steps. *Soft expiry*: at its deadline its repository is deleted and it
//! is kept for a day more, in which a state revives it. *Full expiry*: it is dropped.

use std::collections::BTreeSet;

use dashmap::{DashMap, Entry as Slot};
use grasp_proto::words::{EventId, Identifier, Npub, RepoId};

use super::{SOFT_EXPIRED_FOR, WAITS_FOR, deadlines::Deadlines, kept::KeptUntil, room::Room};
use crate::{
    clock::Moment,
    nip34::{announcement::Announcement, bounds::memory},
};

/// One announcement that waits.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// What was announced.
    pub announcement: Announcement,
    /// When it came.
    pub created: Moment,
    /// Its deadline.
    pub expires: Moment,
    /// It is kept alive beyond that, until it is looked at then.
    pub kept: Option<KeptUntil>,
    /// Its repository has gone.
    pub soft_expired: bool,
    /// Its repository has been made, as far as we know.
    pub repository_made: bool,
}

impl Waiting {
    /// When it is looked at: at its deadline, or later if it is kept alive.
    fn due(&self) -> Moment {
        self.kept.map_or(self.expires, |kept| kept.until)
    }

    /// Since when it waits, unless it is only kept to be revived.
    fn waits_since(&self) -> Option<Moment> {
        (!self.soft_expired).then_some(self.created)
    }
}

/// Announcements by repository. Grows by what was admitted, shrinks by the clock.
#[derive(Debug, Default)]
pub struct Announcements {
    entries: DashMap<RepoId, Waiting>,
    ids: DashMap<EventId, RepoId>,
    owners: DashMap<Npub, BTreeSet<Identifier>>,
    deadlines: Deadlines<RepoId>,
    arrivals: Deadlines<RepoId>,
    room: Room,
}

impl Announcements {
    /// Puts an entry in, in place of the one that waits for the same repository.
    pub fn insert(&self, entry: Waiting) {
        let repo = entry.announcement.repo.clone();
        let (id, due) = (entry.announcement.id(), entry.due());
        let since = entry.waits_since();
        self.room
            .take(repo.owner, memory(&entry.announcement.event));
        // The other indexes change while the entry is held, so that all always agree.
        match self.entries.entry(repo.clone()) {
            Slot::Occupied(mut slot) => {
                let old = slot.insert(entry);
                let bytes = memory(&old.announcement.event);
                self.room.give_back(repo.owner, bytes);
                self.ids.remove(&old.announcement.id());
                self.ids.insert(id, repo.clone());
                self.deadlines.change(&repo, Some(old.due()), Some(due));
                self.arrivals.change(&repo, old.waits_since(), since);
            }
            Slot::Vacant(slot) => {
                self.ids.insert(id, repo.clone());
                self.deadlines.change(&repo, None, Some(due));
                self.arrivals.change(&repo, None, since);
                let owned = self.owners.entry(repo.owner);
                owned.or_default().insert(repo.identifier.clone());
                slot.insert(entry);
            }
        }
    }

    /// A new entry, or a newer version of one: 30 minutes from now.
    pub fn admit(&self, announcement: Announcement, now: Moment) {
        let made = self.get(&announcement.repo);
        self.insert(Waiting {
            announcement,
            created: now,
            expires: now + WAITS_FOR,
            kept: None,
            soft_expired: false,
            repository_made: made.is_some_and(|entry| entry.repository_made && !entry.soft_expired),
        });
    }

    /// The entry of a repository.
    pub fn get(&self, repo: &RepoId) -> Option<Waiting> {
        self.entries.get(repo).map(|entry| entry.value().clone())
    }

    /// Which repository the announcement of this id waits for.
    pub fn repo_of(&self, id: &EventId) -> Option<RepoId> {
        self.ids.get(id).map(|repo| repo.value().clone())
    }

    /// Those of one owner.
    pub fn by_owner(&self, owner: &Npub) -> Vec<Waiting> {
        let owned = self.owners.get(owner).map(|owned| owned.value().clone());
        let owned = owned.unwrap_or_default().into_iter();
        owned
            .filter_map(|identifier| {
                let owner = *owner;
                self.get(&RepoId { owner, identifier })
            })
            .collect()
    }

    fn change(&self, repo: &RepoId, change: impl FnOnce(&mut Waiting)) -> Option<Waiting> {
        let mut entry = self.entries.get_mut(repo)?;
        let (old, waited_since) = (entry.due(), entry.waits_since());
        change(&mut entry);
        let changed = entry.value().clone();
        self.deadlines.change(repo, Some(old), Some(changed.due()));
        self.arrivals
            .change(repo, waited_since, changed.waits_since());
        Some(changed)
    }

    /// Gives it until `until` at least; one that is soft-expired is revived.
    pub fn extend(&self, repo: &RepoId, until: Moment) -> Option<Waiting> {
        self.change(repo, |entry| {
            entry.kept = None;
            if entry.soft_expired {
                entry.soft_expired = false;
                entry.repository_made = false;
                entry.expires = until;
            } else {
                entry.expires = entry.expires.max(until);
            }
        })
    }

    /// The first deadline came: its repository has gone, it stays for a day.
    pub fn soft_expire(&self, repo: &RepoId, now: Moment) -> Option<Waiting> {
        self.change(repo, |entry| {
            entry.kept = None;
            entry.soft_expired = true;
            entry.repository_made = false;
            entry.expires = now + SOFT_EXPIRED_FOR;
        })
    }

    /// Keeps it alive beyond its deadline.
    pub fn keep_alive(&self, repo: &RepoId, kept: KeptUntil) {
        self.change(repo, |entry| entry.kept = Some(kept));
    }

    /// Its repository has been made.
    pub fn made(&self, repo: &RepoId) {
        self.change(repo, |entry| entry.repository_made = true);
    }

    /// Takes an entry out.
    pub fn remove(&self, repo: &RepoId) -> Option<Waiting> {
        let Slot::Occupied(slot) = self.entries.entry(repo.clone()) else {
            return None;
        };
        let bytes = memory(&slot.get().announcement.event);
        self.room.give_back(repo.owner, bytes);
        self.ids.remove(&slot.get().announcement.id());
        self.deadlines.change(repo, Some(slot.get().due()), None);
        self.arrivals.change(repo, slot.get().waits_since(), None);
        super::without(&self.owners, repo.owner, &repo.identifier);
        Some(slot.remove())
    }

    /// The room that they take.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// At most `most` whose deadline has come.
    pub fn due(&self, now: Moment, most: usize) -> Vec<RepoId> {
        self.deadlines.due(now, most)
    }

    /// When the oldest of those that wait came; those that are soft-expired do not.
    pub fn oldest(&self) -> Option<Moment> {
        self.arrivals.first()
    }

    /// All of them, for what runs at start or when gitd is back.
    pub fn all(&self) -> Vec<RepoId> {
        self.entries
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
        ANNOUNCEMENT,
        testing::{event, keys},
    };

    fn announcement(seed: u8, at: u64) -> Announcement {
        let event = event(&keys(seed), ANNOUNCEMENT, at, &[&["d", "x"]]);
        Announcement::read(Arc::new(event)).unwrap()
    }

    const START: Moment = Moment::from_millis(1_000_000);

    #[test]
    fn it_expires_in_two_steps() {
        let store = Announcements::default();
        let repo = announcement(1, 1).repo;
        store.admit(announcement(1, 1), START);
        let just_before = Moment::from_millis(1_000_000 + 30 * 60 * 1000 - 1);
        assert!(store.due(just_before, 9).is_empty());
        assert_eq!(store.due(START + WAITS_FOR, 9), std::slice::from_ref(&repo));
        assert_eq!(store.oldest(), Some(START));
        let soft = store.soft_expire(&repo, START + WAITS_FOR).unwrap();
        assert_eq!(store.oldest(), None);
        assert!(soft.soft_expired);
        assert_eq!(soft.expires, START + WAITS_FOR + SOFT_EXPIRED_FOR);
        assert!(store.due(START + WAITS_FOR, 9).is_empty());
        assert_eq!(store.due(soft.expires, 9), std::slice::from_ref(&repo));
        store.remove(&repo).unwrap();
        assert!(store.due(soft.expires, 9).is_empty() && store.is_empty());
        assert_eq!(store.arrivals.first(), None);
    }

    #[test]
    fn a_state_revives_it_and_makes_its_repository_anew() {
        let store = Announcements::default();
        let repo = announcement(1, 1).repo;
        store.admit(announcement(1, 1), START);
        store.made(&repo);
        store.soft_expire(&repo, START);
        let later = START + WAITS_FOR;
        let revived = store.extend(&repo, later).unwrap();
        assert!(!revived.soft_expired && !revived.repository_made);
        assert_eq!(revived.expires, later);
        assert_eq!(store.oldest(), Some(START));
        assert_eq!(store.due(later, 9), [repo]);
    }

    #[test]
    fn extending_never_shortens() {
        let store = Announcements::default();
        let repo = announcement(1, 1).repo;
        store.admit(announcement(1, 1), START);
        let kept = store
            .extend(&repo, START + Duration::from_secs(60))
            .unwrap();
        assert_eq!(kept.expires, START + WAITS_FOR);
    }

    #[test]
    fn a_newer_version_takes_its_place_and_owners_are_apart() {
        let store = Announcements::default();
        store.admit(announcement(1, 1), START);
        store.admit(announcement(2, 1), START);
        let newer = announcement(1, 2);
        store.admit(newer.clone(), START + Duration::from_secs(60));
        assert_eq!(store.len(), 2);
        assert_eq!(store.repo_of(&newer.id()), Some(newer.repo.clone()));
        assert_eq!(store.repo_of(&announcement(1, 1).id()), None);
        assert_eq!(store.due(START + WAITS_FOR, 9), [announcement(2, 1).repo]);
        store.remove(&announcement(2, 1).repo).unwrap();
        assert_eq!(store.oldest(), Some(START + Duration::from_secs(60)));
    }
}
