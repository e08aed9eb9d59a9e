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

use dashmap::{DashMap, DashSet, Entry};
use grasp_proto::words::{Identifier, Npub, RepoId};

use crate::{
    maintainers::{MaintainerRule, Maintainers},
    nip34::announcement::Announcement,
};

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

#[derive(Debug)]
struct Project {
    standing: BTreeMap<Npub, Standing>,
    maintainers: Maintainers,
    /// Owners whose maintainers have changed, and whose repositories were not judged again since.
    changed: BTreeSet<Npub>,
}

impl Project {
    fn new(rule: MaintainerRule) -> Self {
        Self {
            standing: BTreeMap::new(),
            maintainers: Maintainers::new(rule),
            changed: BTreeSet::new(),
        }
    }

    fn has_changed(&self) -> bool {
        !self.changed.is_empty() || self.maintainers.has_stale_views()
    }
}

/// Who is told of every announcement that comes, changes or goes. Told by whoever decides: must
/// neither wait nor ask back.
pub trait Announced: fmt::Debug + Send + Sync {
    /// The announcement of a repository stands so now, perhaps as before and in another version;
    /// `None`: there is none any more.
    fn announced(&self, repo: &RepoId, standing: Option<Standing>);

    /// Events of a repository that were not worth fetching may be by now.
    fn is_wanted_anew(&self, _repo: &RepoId) {}
}

/// All announcements, by identifier and owner.
#[derive(Debug, Default)]
pub struct Repositories {
    rule: MaintainerRule,
    projects: DashMap<Identifier, Project>,
    /// Identifiers under which somebody's maintainers have changed: taken while a project is held.
    changed: DashSet<Identifier>,
    /// In how many announcements each is owner or named: taken while a project is held.
    people: DashMap<Npub, usize>,
    told: OnceLock<Arc<dyn Announced>>,
}

impl Repositories {
    /// Nothing is announced yet; maintainers are by this rule.
    pub fn new(rule: MaintainerRule) -> Self {
        Self {
            rule,
            ..Self::default()
        }
    }

    /// The rule that maintainers are by.
    pub fn rule(&self) -> MaintainerRule {
        self.rule
    }

    /// From now on `whom` is told of every change. Only the first counts.
    pub fn tell(&self, whom: Arc<dyn Announced>) {
        // There is one, and it is told once.
        let _ = self.told.set(whom);
    }

    /// An announcement stands so from now on.
    pub fn set(&self, announcement: &Announcement, standing: Standing) {
        let RepoId { owner, identifier } = &announcement.repo;
        let mut project = self
            .projects
            .entry(identifier.clone())
            .or_insert_with(|| Project::new(self.rule));
        let is_new = project.standing.insert(*owner, standing).is_none();
        self.leave(None, project.maintainers.named(owner));
        self.enter(is_new.then_some(owner), &announcement.listing.names);
        let changed = project.maintainers.announce(*owner, &announcement.listing);
        self.note_changed(identifier, &mut project, changed);
        drop(project);
        if let Some(told) = self.told.get() {
            told.announced(&announcement.repo, Some(standing));
        }
    }

    /// Events under an identifier that were not worth fetching may be by now.
    pub fn want_anew(&self, identifier: &Identifier) {
        let Some(told) = self.told.get() else {
            return;
        };
        let owners: Vec<Npub> = self
            .projects
            .get(identifier)
            .map(|project| project.standing.keys().copied().collect())
            .unwrap_or_default();
        for owner in owners {
            let identifier = identifier.clone();
            told.is_wanted_anew(&RepoId { owner, identifier });
        }
    }

    /// There is no announcement of this repository any more.
    pub fn remove(&self, repo: &RepoId) {
        if let Entry::Occupied(mut project) = self.projects.entry(repo.identifier.clone()) {
            let was_here = project.get_mut().standing.remove(&repo.owner).is_some();
            let named = project.get().maintainers.named(&repo.owner);
            self.leave(was_here.then_some(&repo.owner), named);
            let changed = project.get_mut().maintainers.withdraw(&repo.owner);
            self.note_changed(&repo.identifier, project.get_mut(), changed);
            if project.get().standing.is_empty() {
                project.remove();
            }
        }
        if let Some(told) = self.told.get() {
            told.announced(repo, None);
        }
    }

    fn note_changed(&self, name: &Identifier, project: &mut Project, changed: BTreeSet<Npub>) {
        project.changed.extend(changed);
        if project.has_changed() {
            self.changed.insert(name.clone());
        }
    }

    /// The repositories under an identifier whose maintainers have changed and that were not judged again
    /// since, `most` of them at once; whether there are more. Whoever takes them judges them.
    pub fn take_changed(&self, identifier: &Identifier, most: usize) -> (Vec<RepoId>, bool) {
        let Some(mut project) = self.projects.get_mut(identifier) else {
            self.changed.remove(identifier);
            return (Vec::new(), false);
        };
        let more = project.maintainers.work_off();
        project.changed.extend(more);
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(owner) = project.changed.pop_first()
        {
            let identifier = identifier.clone();
            taken.push(RepoId { owner, identifier });
        }
        let is_more = project.has_changed();
        if !is_more {
            self.changed.remove(identifier);
        }
        (taken, is_more)
    }

    /// Some that were taken are still to be judged.
    pub fn leave_changed(&self, identifier: &Identifier, repos: &[RepoId]) {
        if let Some(mut project) = self.projects.get_mut(identifier) {
            let owners = repos.iter().map(|repo| repo.owner).collect();
            self.note_changed(identifier, &mut project, owners);
        }
    }

    /// For the start, which looks through everything: nothing is to be judged again for having been read.
    pub fn forget_changed(&self) {
        for identifier in self.changed() {
            while self.take_changed(&identifier, usize::MAX).1 {}
        }
    }

    /// The identifiers under which somebody's maintainers have changed and that was not seen to.
    pub fn changed(&self) -> Vec<Identifier> {
        self.changed.iter().map(|one| one.key().clone()).collect()
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
        let owners = project.maintainers.owners_trusting(author);
        owners
            .filter_map(|owner| {
                let identifier = identifier.clone();
                let standing = *project.standing.get(&owner)?;
                Some((RepoId { owner, identifier }, standing))
            })
            .collect()
    }

    /// Whether `author` is in the maintainer set of a repository.
    pub fn is_maintainer(&self, repo: &RepoId, author: &Npub) -> bool {
        let project = self.projects.get(&repo.identifier);
        project.is_some_and(|project| project.maintainers.is_in_set_of(&repo.owner, author))
    }

    /// Whether somebody else's announcement names the owner of a repository: its own announcement may be
    /// the answer.
    pub fn is_invited(&self, repo: &RepoId) -> bool {
        let project = self.projects.get(&repo.identifier);
        project.is_some_and(|project| project.maintainers.is_invited(&repo.owner))
    }

    /// Whether the owner of a repository is named by, or maintains, somebody else's that is here or may
    /// be.
    pub fn is_wanted_here(&self, repo: &RepoId) -> bool {
        let Some(project) = self.projects.get(&repo.identifier) else {
            return false;
        };
        let is_here = |owner: &Npub| project.standing.get(owner).is_some_and(|one| one.is_here());
        project.maintainers.is_wanted_by(&repo.owner, is_here)
    }

    /// The repositories elsewhere whose announcements are of use to this one.
    pub fn elsewhere_for(&self, repo: &RepoId) -> Vec<RepoId> {
        let Some(project) = self.projects.get(&repo.identifier) else {
            return Vec::new();
        };
        let wanted = project.maintainers.wanted_by(&repo.owner).into_iter();
        let is_elsewhere = |owner: &Npub| project.standing.get(owner) == Some(&Standing::Elsewhere);
        let others = wanted.filter(|owner| *owner != repo.owner && is_elsewhere(owner));
        let identifier = &repo.identifier;
        let repo = |owner| RepoId {
            owner,
            identifier: identifier.clone(),
        };
        others.map(repo).collect()
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
            announcement(2, &[1, 3]),
            announcement(3, &[2]),
        );
        known.set(&first, Standing::Active);
        known.set(&second, Standing::Waiting);
        known.set(&third, Standing::Elsewhere);
        let identifier = &first.repo.identifier;
        let author = third.repo.owner;
        assert_eq!(known.trusting(identifier, &author).len(), 3);
        assert!(known.maintainers(&first.repo).contains(&author));
        assert_eq!(
            known.owners(identifier, Standing::Waiting),
            [second.repo.owner]
        );
        let (taken, is_more) = known.take_changed(identifier, 2);
        assert!(taken.len() == 2 && is_more && known.changed() == [identifier.clone()]);
        known.take_changed(identifier, 2);
        assert!(known.changed().is_empty());
        known.remove(&second.repo);
        assert_eq!(known.trusting(identifier, &author).len(), 1);
        let (changed, is_more) = known.take_changed(identifier, 9);
        assert!(changed.contains(&first.repo) && changed.contains(&third.repo) && !is_more);
        known.remove(&third.repo);
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
