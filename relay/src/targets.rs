//! What is to be synced with other relays: each repository that is served here or waits to be, with
//! the relays its announcement names, its root events, and how much of it is wanted (GRASP-02).
//!
//! [`Targets`] is the index, pure. [`feed`] keeps it equal to what is announced and served, and tells
//! every change to those who watch.

pub mod feed;
pub mod relay_url;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use grasp_proto::words::{EventId, Npub, RepoId};
use nostr::Timestamp;

use self::relay_url::{Named, RelayUrl};
use crate::{domain::Domain, nip34::announcement::Announcement};

/// Relays of one announcement that count, the first ones.
const RELAYS: usize = 20;
/// Entries of one announcement that are looked at for them.
const LOOKED_AT: usize = 100;
/// Relays that count because of one owner's announcements, all together.
const RELAYS_OF_AN_OWNER: usize = 100;
/// Root events of one repository that are followed up, the latest ones.
const ROOTS: usize = 20_000;

/// A root event, by when it was made.
pub type Root = (Timestamp, EventId);

/// How much of a repository is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It waits in purgatory: only its states.
    StateOnly,
    /// It is served: everything that belongs to it.
    Full,
}

/// A repository to be synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How much of it.
    pub level: Level,
    /// The relays it names, as far as they count.
    pub relays: Vec<RelayUrl>,
    /// Its root events: at most `ROOTS`.
    pub roots: BTreeSet<Root>,
    /// What was found of it under another one does not count.
    pub generation: u32,
    /// There were more root events than are followed up, and that was said.
    overflowed: bool,
}

/// Who wants a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// How it was written first.
    pub label: Arc<str>,
    /// Repositories that name it.
    pub targets: usize,
    /// Of these: served.
    pub full: usize,
}

/// What changed of one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is to be synced so; with roots that were not told before.
    Set {
        /// Which.
        repo: RepoId,
        /// How much of it.
        level: Level,
        /// From where.
        relays: Vec<RelayUrl>,
        /// More that belongs to it; of a new generation all of it.
        new_roots: Vec<EventId>,
        /// What was found of it under another one does not count.
        generation: u32,
    },
    /// It is not wanted any more.
    Removed(RepoId),
}

/// The index. Grows by what was announced here, which purgatory and the store bound.
#[derive(Debug)]
pub struct Targets {
    ours: Domain,
    wanted: HashMap<RepoId, Target>,
    relays: BTreeMap<RelayUrl, Asked>,
    /// Which relays whose announcements name, and how often: at most `RELAYS_OF_AN_OWNER` each.
    owners: HashMap<Npub, BTreeMap<RelayUrl, usize>>,
    /// That of what is wanted from now on. The first one again after a start, so that then only
    /// what has another is fetched anew.
    generation: u32,
}

impl Targets {
    /// Nothing is wanted yet; `ours` is never synced with.
    pub fn new(ours: Domain) -> Self {
        Self {
            ours,
            wanted: HashMap::new(),
            relays: BTreeMap::new(),
            owners: HashMap::new(),
            generation: 1,
        }
    }

    /// The relays that an announcement names, each once, without this service.
    pub fn relays_of(&self, announcement: &Announcement) -> Vec<Named> {
        let mut relays: Vec<Named> = Vec::new();
        let named = announcement
            .relays()
            .take(LOOKED_AT)
            .filter_map(Named::parse);
        for relay in named.filter(|relay| !relay.url.leads_to(&self.ours)) {
            if relays.len() < RELAYS && relays.iter().all(|known| known.url != relay.url) {
                relays.push(relay);
            }
        }
        relays
    }

    /// A repository is to be synced so.
    pub fn set(&mut self, repo: &RepoId, level: Level, relays: &[Named]) -> Option<Change> {
        let old = self.wanted.remove(repo);
        if let Some(old) = &old {
            self.leave_owner(&repo.owner, &old.relays);
        }
        let relays = self.enter_owner(&repo.owner, relays);
        let urls: Vec<RelayUrl> = relays.iter().map(|relay| relay.url.clone()).collect();
        if let Some(old) = old.as_ref()
            && old.level == level
            && old.relays == urls
        {
            self.wanted.insert(repo.clone(), old.clone());
            return None;
        }
        for relay in relays {
            let asked = self.relays.entry(relay.url.clone()).or_insert(Asked {
                label: relay.label.clone(),
                targets: 0,
                full: 0,
            });
            asked.targets += 1;
            asked.full += usize::from(level == Level::Full);
        }
        if let Some(old) = &old {
            self.let_go(old);
        }
        let target = match old {
            Some(old) => Target {
                level,
                relays: urls,
                ..old
            },
            None => Target {
                level,
                relays: urls,
                roots: BTreeSet::new(),
                generation: self.generation,
                overflowed: false,
            },
        };
        let change = told(repo, &target, Vec::new());
        self.wanted.insert(repo.clone(), target);
        Some(change)
    }

    /// Those of the relays that count, with what else the owner's announcements name.
    fn enter_owner<'a>(&mut self, owner: &Npub, relays: &'a [Named]) -> Vec<&'a Named> {
        if relays.is_empty() {
            return Vec::new();
        }
        let of_owner = self.owners.entry(*owner).or_default();
        let mut counting = Vec::new();
        for relay in relays {
            if of_owner.len() < RELAYS_OF_AN_OWNER || of_owner.contains_key(&relay.url) {
                *of_owner.entry(relay.url.clone()).or_default() += 1;
                counting.push(relay);
            }
        }
        counting
    }

    fn leave_owner(&mut self, owner: &Npub, relays: &[RelayUrl]) {
        let Some(of_owner) = self.owners.get_mut(owner) else {
            return;
        };
        for url in relays {
            if let Some(count) = of_owner.get_mut(url) {
                *count -= 1;
                if *count == 0 {
                    of_owner.remove(url);
                }
            }
        }
        if of_owner.is_empty() {
            self.owners.remove(owner);
        }
    }

    /// Events belong to a repository, if that is wanted. Of too many the oldest are let go of.
    pub fn add_roots(
        &mut self,
        repo: &RepoId,
        roots: impl IntoIterator<Item = Root>,
    ) -> Option<Change> {
        let target = self.wanted.get_mut(repo)?;
        let mut new = BTreeSet::new();
        for root in roots {
            if !target.roots.insert(root) {
                continue;
            }
            new.insert(root);
            if target.roots.len() > ROOTS {
                if let Some(oldest) = target.roots.pop_first() {
                    new.remove(&oldest);
                }
                if !target.overflowed {
                    target.overflowed = true;
                    tracing::warn!(%repo, "of its root events only the latest {ROOTS} are followed up");
                }
            }
        }
        let new: Vec<EventId> = new.into_iter().map(|(_, id)| id).collect();
        (!new.is_empty()).then(|| told(repo, target, new))
    }

    /// An event does not belong to a repository any more. Nobody is told: what is found of it is of
    /// no use, and does no harm.
    pub fn remove_root(&mut self, repo: &RepoId, root: &Root) {
        if let Some(target) = self.wanted.get_mut(repo) {
            target.roots.remove(root);
        }
    }

    /// A repository is not wanted any more.
    pub fn remove(&mut self, repo: &RepoId) -> Option<Change> {
        let target = self.wanted.remove(repo)?;
        self.leave_owner(&repo.owner, &target.relays);
        self.let_go(&target);
        // If it comes back it is not the same.
        self.next_generation();
        Some(Change::Removed(repo.clone()))
    }

    /// What was found of a repository so far does not count: all of it is told anew.
    pub fn begin_anew(&mut self, repo: &RepoId) -> Option<Change> {
        let generation = match self.wanted.contains_key(repo) {
            true => self.next_generation(),
            false => return None,
        };
        let target = self.wanted.get_mut(repo)?;
        target.generation = generation;
        Some(all_of(repo, target))
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.generation
    }

    fn let_go(&mut self, target: &Target) {
        for url in &target.relays {
            let Some(asked) = self.relays.get_mut(url) else {
                continue;
            };
            asked.targets -= 1;
            asked.full -= usize::from(target.level == Level::Full);
            if asked.targets == 0 {
                self.relays.remove(url);
            }
        }
    }

    /// How a repository is to be synced.
    pub fn get(&self, repo: &RepoId) -> Option<&Target> {
        self.wanted.get(repo)
    }

    /// All that is wanted.
    pub fn all(&self) -> impl Iterator<Item = (&RepoId, &Target)> {
        self.wanted.iter()
    }

    /// The relays that some repository names.
    pub fn relays(&self) -> &BTreeMap<RelayUrl, Asked> {
        &self.relays
    }

    /// How many repositories are wanted so.
    pub fn count(&self, level: Level) -> usize {
        let targets = self.wanted.values();
        targets.filter(|target| target.level == level).count()
    }
}

fn told(repo: &RepoId, target: &Target, new_roots: Vec<EventId>) -> Change {
    Change::Set {
        repo: repo.clone(),
        level: target.level,
        relays: target.relays.clone(),
        new_roots,
        generation: target.generation,
    }
}

/// A repository as it is told to those who know nothing of it.
pub fn all_of(repo: &RepoId, target: &Target) -> Change {
    let roots = target.roots.iter().map(|(_, id)| *id);
    told(repo, target, roots.collect())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT,
        testing::{event, keys},
    };

    fn ours() -> Domain {
        Domain::parse("grasp.example").unwrap()
    }

    fn announcement(relays: &[&str]) -> Announcement {
        let mut tag = vec!["relays"];
        tag.extend(relays);
        let event = event(&keys(1), ANNOUNCEMENT, 1, &[&["d", "x"], &tag]);
        Announcement::read(Arc::new(event)).unwrap()
    }

    fn repo(n: u8) -> RepoId {
        let event = event(&keys(n), ANNOUNCEMENT, 1, &[&["d", "x"]]);
        Announcement::read(Arc::new(event)).unwrap().repo
    }

    fn named(n: u8) -> Named {
        Named::parse(&format!("wss://r{n}.example")).unwrap()
    }

    fn id(n: u8) -> EventId {
        EventId::from_bytes([n; 32])
    }

    fn root(n: u8) -> Root {
        (Timestamp::from(u64::from(n)), id(n))
    }

    #[test]
    fn an_announcement_names_a_bounded_number_of_others() {
        let targets = Targets::new(ours());
        let mut written = vec![
            "nonsense".to_owned(),
            "https://a.example".to_owned(),
            "ws://GRASP.example:80/".to_owned(),
            "wss://a.example/".to_owned(),
            "wss://A.example:443".to_owned(),
        ];
        written.extend((0..40).map(|n| format!("wss://r{n}.example")));
        let written: Vec<&str> = written.iter().map(String::as_str).collect();
        let relays = targets.relays_of(&announcement(&written));
        assert_eq!(relays.len(), RELAYS);
        assert_eq!(relays[0].url.as_str(), "wss://a.example");
        assert_eq!(&*relays[0].label, "wss://a.example/");
        assert_eq!(relays[1].url.as_str(), "wss://r0.example");
    }

    #[test]
    fn promotion_raises_and_roots_stay() {
        let mut targets = Targets::new(ours());
        assert!(targets.add_roots(&repo(1), [root(1)]).is_none());
        targets
            .set(&repo(1), Level::StateOnly, &[named(1)])
            .unwrap();
        assert!(
            targets
                .set(&repo(1), Level::StateOnly, &[named(1)])
                .is_none()
        );
        let told = targets.add_roots(&repo(1), [root(1), root(2), root(1)]);
        let new_roots = match told {
            Some(Change::Set { new_roots, .. }) => new_roots,
            other => panic!("{other:?}"),
        };
        assert_eq!(new_roots, [id(1), id(2)]);
        let raised = targets.set(&repo(1), Level::Full, &[named(1), named(2)]);
        let expected = Change::Set {
            repo: repo(1),
            level: Level::Full,
            relays: vec![named(1).url, named(2).url],
            new_roots: vec![],
            generation: 1,
        };
        assert_eq!(raised, Some(expected));
        assert!(targets.add_roots(&repo(1), [root(2)]).is_none());
        assert_eq!(targets.get(&repo(1)).unwrap().roots.len(), 2);
        assert_eq!(targets.remove(&repo(1)), Some(Change::Removed(repo(1))));
        assert_eq!(targets.remove(&repo(1)), None);
        assert!(targets.relays().is_empty());
    }

    #[test]
    fn what_comes_back_or_begins_anew_is_of_another_generation() {
        let mut targets = Targets::new(ours());
        let generation = |targets: &Targets, n| targets.get(&repo(n)).unwrap().generation;
        for n in 1..=3 {
            targets.set(&repo(n), Level::Full, &[named(1)]);
        }
        let first = generation(&targets, 1);
        assert_eq!(first, generation(&targets, 2));
        targets.add_roots(&repo(2), [root(1), root(2)]);
        targets.remove(&repo(1));
        targets.set(&repo(1), Level::Full, &[named(1)]);
        let back = generation(&targets, 1);
        assert!(back > first);
        let anew = targets.begin_anew(&repo(2)).unwrap();
        let expected = Change::Set {
            repo: repo(2),
            level: Level::Full,
            relays: vec![named(1).url],
            new_roots: vec![id(1), id(2)],
            generation: back + 1,
        };
        assert_eq!(anew, expected);
        assert_eq!(generation(&targets, 3), first, "the others stay");
        assert!(targets.begin_anew(&repo(4)).is_none());
    }

    #[test]
    fn one_owner_brings_in_a_bounded_number_of_relays() {
        let mut targets = Targets::new(ours());
        let of_owner = |n: u8| RepoId {
            identifier: grasp_proto::words::Identifier::parse(&format!("x{n}")).unwrap(),
            ..repo(1)
        };
        let relays = |n: u8| -> Vec<Named> { (0..20).map(|k| named(n * 20 + k)).collect() };
        for n in 0..6 {
            targets.set(&of_owner(n), Level::StateOnly, &relays(n));
        }
        assert_eq!(targets.relays().len(), RELAYS_OF_AN_OWNER);
        assert!(targets.get(&of_owner(5)).unwrap().relays.is_empty());
        // Others have their own share, and what is named already costs nothing.
        targets.set(&repo(2), Level::StateOnly, &relays(5));
        assert_eq!(targets.relays().len(), RELAYS_OF_AN_OWNER + 20);
        targets.set(&of_owner(5), Level::Full, &relays(0));
        assert_eq!(targets.get(&of_owner(5)).unwrap().relays.len(), 20);
        // What one lets go of another of the same owner's may have.
        targets.set(&of_owner(1), Level::StateOnly, &relays(6));
        assert_eq!(targets.get(&of_owner(1)).unwrap().relays.len(), 20);
        for n in 0..6 {
            targets.remove(&of_owner(n));
        }
        targets.remove(&repo(2));
        assert!(targets.owners.is_empty() && targets.relays().is_empty());
    }

    #[test]
    fn of_too_many_roots_the_latest_are_kept() {
        let mut targets = Targets::new(ours());
        targets.set(&repo(1), Level::Full, &[]);
        let root = |at: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(at as u64).to_be_bytes());
            (Timestamp::from(at as u64), EventId::from_bytes(bytes))
        };
        targets.add_roots(&repo(1), (1..=ROOTS).map(root));
        let told = targets.add_roots(&repo(1), [root(0), root(ROOTS + 1)]);
        let Some(Change::Set { new_roots, .. }) = told else {
            panic!("nothing is told");
        };
        assert_eq!(
            new_roots,
            [root(ROOTS + 1).1],
            "what does not stay is not told"
        );
        let roots = |targets: &Targets| targets.get(&repo(1)).unwrap().roots.clone();
        assert_eq!(roots(&targets), (2..=ROOTS + 1).map(root).collect());
        targets.remove_root(&repo(1), &root(7));
        assert_eq!(roots(&targets).len(), ROOTS - 1);
    }

    proptest! {
        /// Who wants which relay always follows from what is wanted.
        #[test]
        fn relays_are_counted_right(steps in vec((1u8..4, 0u8..3, vec(0u8..5, 0..4)), 0..40)) {
            let mut targets = Targets::new(ours());
            for (n, what, mut relays) in steps {
                relays.sort_unstable();
                relays.dedup();
                let relays: Vec<Named> = relays.into_iter().map(named).collect();
                match what {
                    0 => drop(targets.remove(&repo(n))),
                    1 => drop(targets.set(&repo(n), Level::StateOnly, &relays)),
                    _ => drop(targets.set(&repo(n), Level::Full, &relays)),
                }
                let mut counts: BTreeMap<RelayUrl, (usize, usize)> = BTreeMap::new();
                for (_, target) in targets.all() {
                    for url in &target.relays {
                        let count = counts.entry(url.clone()).or_default();
                        count.0 += 1;
                        count.1 += usize::from(target.level == Level::Full);
                    }
                }
                let shown = targets.relays().iter();
                let shown: BTreeMap<RelayUrl, (usize, usize)> =
                    shown.map(|(url, asked)| (url.clone(), (asked.targets, asked.full))).collect();
                prop_assert_eq!(shown, counts);
            }
        }
    }
}
