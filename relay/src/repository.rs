//! What is known of the repositories of an identifier: announcements served and waiting.
//!
//! Kept in memory beside store and purgatory, so that who may do what is answered without a look
//! at the disk. Built at start from both, changed by `admit` and `release` alone. Grows by what
//! was admitted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
};

use dashmap::{DashMap, Entry};
use grasp_proto::words::{Identifier, Npub, RepoId};

use crate::{maintainers::Maintainers, nip34::announcement::Announcement};

/// How an announcement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Served, and so is its repository.
    Active,
    /// In purgatory; its repository is there to be pushed to, unless it is soft-expired.
    Waiting,
    /// Served for its maintainers' sake; its repository is elsewhere.
    Elsewhere,
}

impl Standing {
    /// Whether there is, or may be, a repository here.
    pub fn is_here(self) -> bool {
        self != Self::Elsewhere
    }

    /// Whether the announcement is served.
    pub fn is_served(self) -> bool {
        self != Self::Waiting
    }
}

#[derive(Debug, Default)]
struct Project {
    standing: BTreeMap<Npub, Standing>,
    maintainers: Maintainers,
}

/// Who is told of every announcement that comes, changes or goes. Told by whoever decides: must
/// neither wait nor ask back.
pub trait Announced: fmt::Debug + Send + Sync {
    /// The announcement of a repository stands so now, perhaps as before and in another version;
    /// `None`: there is none any more.
    fn announced(&self, repo: &RepoId, standing: Option<Standing>);
}

/// All announcements, by identifier and owner.
#[derive(Debug, Default)]
pub struct Repositories {
    projects: DashMap<Identifier, Project>,
    /// In how many announcements each is owner or named: taken while a project is held.
    people: DashMap<Npub, usize>,
    told: OnceLock<Arc<dyn Announced>>,
}

impl Repositories {
    /// From now on `whom` is told of every change. Only the first counts.
    pub fn tell(&self, whom: Arc<dyn Announced>) {
        // There is one, and it is told once.
        let _ = self.told.set(whom);
    }

    /// An announcement stands so from now on.
    pub fn set(&self, announcement: &Announcement, standing: Standing) {
        let RepoId { owner, identifier } = &announcement.repo;
        let mut project = self.projects.entry(identifier.clone()).or_default();
        let is_new = project.standing.insert(*owner, standing).is_none();
        self.leave(None, project.maintainers.named(owner));
        self.enter(is_new.then_some(owner), &announcement.maintainers);
        project
            .maintainers
            .announce(*owner, &announcement.maintainers);
        drop(project);
        if let Some(told) = self.told.get() {
            told.announced(&announcement.repo, Some(standing));
        }
    }

    /// There is no announcement of this repository any more.
    pub fn remove(&self, repo: &RepoId) {
        if let Entry::Occupied(mut project) = self.projects.entry(repo.identifier.clone()) {
            let was_here = project.get_mut().standing.remove(&repo.owner).is_some();
            let named = project.get().maintainers.named(&repo.owner);
            self.leave(was_here.then_some(&repo.owner), named);
            project.get_mut().maintainers.withdraw(&repo.owner);
            if project.get().standing.is_empty() {
                project.remove();
            }
        }
        if let Some(told) = self.told.get() {
            told.announced(repo, None);
        }
    }

    fn enter<'a>(&self, owner: Option<&'a Npub>, named: impl IntoIterator<Item = &'a Npub>) {
        for key in owner.into_iter().chain(named) {
            *self.people.entry(*key).or_default() += 1;
        }
    }

    fn leave<'a>(&self, owner: Option<&'a Npub>, named: impl IntoIterator<Item = &'a Npub>) {
        for key in owner.into_iter().chain(named) {
            if let Entry::Occupied(mut count) = self.people.entry(*key) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    /// Whether somebody announced something or is named as a maintainer of something.
    pub fn knows(&self, key: &Npub) -> bool {
        self.people.contains_key(key)
    }

    /// Every repository that is announced.
    pub fn all(&self) -> Vec<RepoId> {
        let of_project = |entry: dashmap::mapref::multiple::RefMulti<'_, Identifier, Project>| {
            let identifier = entry.key().clone();
            let owners = entry.value().standing.keys().copied();
            let repo = |owner| RepoId {
                owner,
                identifier: identifier.clone(),
            };
            owners.map(repo).collect::<Vec<_>>()
        };
        self.projects.iter().flat_map(of_project).collect()
    }

    /// How a repository stands; `None`: nobody announced it.
    pub fn standing(&self, repo: &RepoId) -> Option<Standing> {
        let project = self.projects.get(&repo.identifier)?;
        project.standing.get(&repo.owner).copied()
    }

    /// Whether anybody announced the identifier.
    pub fn is_announced(&self, identifier: &Identifier) -> bool {
        self.projects.contains_key(identifier)
    }

    /// The maintainer set of a repository; empty if nobody announced it.
    pub fn maintainers(&self, repo: &RepoId) -> BTreeSet<Npub> {
        let project = self.projects.get(&repo.identifier);
        project.map_or_else(BTreeSet::new, |project| {
            project.maintainers.set_of(&repo.owner)
        })
    }

    /// The repositories whose maintainer set `author` is in, and how they stand.
    pub fn trusting(&self, identifier: &Identifier, author: &Npub) -> Vec<(RepoId, Standing)> {
        let Some(project) = self.projects.get(identifier) else {
            return Vec::new();
        };
        let owners = project.maintainers.owners_trusting(author).into_iter();
        owners
            .filter_map(|owner| {
                let identifier = identifier.clone();
                let standing = *project.standing.get(&owner)?;
                Some((RepoId { owner, identifier }, standing))
            })
            .collect()
    }

    /// The owners who announced the identifier and stand so.
    pub fn owners(&self, identifier: &Identifier, standing: Standing) -> Vec<Npub> {
        let Some(project) = self.projects.get(identifier) else {
            return Vec::new();
        };
        let all = project.standing.iter();
        all.filter(|(_, other)| **other == standing)
            .map(|(owner, _)| *owner)
            .collect()
    }

    /// The identifiers under which some repository is served from here.
    pub fn active_identifiers(&self) -> Vec<Identifier> {
        let is_active = |project: &Project| {
            let mut standings = project.standing.values();
            standings.any(|standing| *standing == Standing::Active)
        };
        let active = self
            .projects
            .iter()
            .filter(|entry| is_active(entry.value()));
        active.map(|entry| entry.key().clone()).collect()
    }

    /// How many are served from here.
    pub fn active(&self) -> usize {
        let count = |project: &Project| {
            let standings = project.standing.values();
            standings.filter(|s| **s == Standing::Active).count()
        };
        self.projects.iter().map(|entry| count(entry.value())).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT,
        testing::{event, keys},
    };

    fn announcement(seed: u8, maintainers: &[u8]) -> Announcement {
        let keys_of = |seed: &u8| keys(*seed).public_key().to_hex();
        let named: Vec<String> = maintainers.iter().map(keys_of).collect();
        let mut tag = vec!["maintainers"];
        tag.extend(named.iter().map(String::as_str));
        let event = event(&keys(seed), ANNOUNCEMENT, 1, &[&["d", "x"], &tag]);
        Announcement::read(Arc::new(event)).unwrap()
    }

    #[test]
    fn waiting_announcements_count_for_maintainership() {
        let known = Repositories::default();
        let (first, second, third) = (
            announcement(1, &[2]),
            announcement(2, &[3]),
            announcement(3, &[]),
        );
        known.set(&first, Standing::Active);
        known.set(&second, Standing::Waiting);
        let identifier = &first.repo.identifier;
        let author = third.repo.owner;
        assert_eq!(known.trusting(identifier, &author).len(), 2);
        assert!(known.maintainers(&first.repo).contains(&author));
        assert_eq!(
            known.owners(identifier, Standing::Waiting),
            [second.repo.owner]
        );
        known.remove(&second.repo);
        assert!(known.trusting(identifier, &author).is_empty());
        known.remove(&first.repo);
        assert!(!known.is_announced(identifier));
    }

    #[test]
    fn owners_and_those_they_name_are_known_as_long_as_that_stands() {
        let known = Repositories::default();
        let knows = |known: &Repositories| -> Vec<bool> {
            let keys = (1..=4).map(|seed| announcement(seed, &[]).repo.owner);
            keys.map(|key| known.knows(&key)).collect()
        };
        known.set(&announcement(1, &[2, 3]), Standing::Waiting);
        known.set(&announcement(2, &[2]), Standing::Active);
        assert_eq!(knows(&known), [true, true, true, false]);
        known.set(&announcement(1, &[4]), Standing::Active);
        assert_eq!(knows(&known), [true, true, false, true]);
        known.remove(&announcement(2, &[]).repo);
        known.remove(&announcement(2, &[]).repo);
        assert_eq!(knows(&known), [true, false, false, true]);
        known.remove(&announcement(1, &[]).repo);
        assert_eq!(knows(&known), [false; 4]);
        assert!(known.people.is_empty());
    }
}
