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

use grasp_proto::words::{EventId, RepoId};

use self::relay_url::{Named, RelayUrl};
use crate::{domain::Domain, nip34::announcement::Announcement};

/// Relays of one announcement that count, the first ones.
const RELAYS: usize = 20;
/// Entries of one announcement that are looked at for them.
const LOOKED_AT: usize = 100;
/// Root events of one repository that are followed up, those known first.
const ROOTS: usize = 20_000;

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
    /// The relays it names.
    pub relays: Vec<RelayUrl>,
    /// Its root events: at most `ROOTS`.
    pub roots: BTreeSet<EventId>,
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
        /// More that belongs to it.
        new_roots: Vec<EventId>,
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
}

impl Targets {
    /// Nothing is wanted yet; `ours` is never synced with.
    pub fn new(ours: Domain) -> Self {
        Self {
            ours,
            wanted: HashMap::new(),
            relays: BTreeMap::new(),
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
        let urls: Vec<RelayUrl> = relays.iter().map(|relay| relay.url.clone()).collect();
        let old = self.wanted.get(repo);
        if old.is_some_and(|old| old.level == level && old.relays == urls) {
            return None;
        }
        let old = self.wanted.remove(repo);
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
        let target = Target {
            level,
            relays: urls,
            roots: old.map(|old| old.roots).unwrap_or_default(),
        };
        let change = Change::Set {
            repo: repo.clone(),
            level,
            relays: target.relays.clone(),
            new_roots: Vec::new(),
        };
        self.wanted.insert(repo.clone(), target);
        Some(change)
    }

    /// Events belong to a repository, if that is wanted.
    pub fn add_roots(
        &mut self,
        repo: &RepoId,
        roots: impl IntoIterator<Item = EventId>,
    ) -> Option<Change> {
        let target = self.wanted.get_mut(repo)?;
        let mut new_roots = Vec::new();
        for root in roots {
            if target.roots.len() >= ROOTS {
                tracing::warn!(%repo, "it has too many root events to follow all of them up");
                break;
            }
            if target.roots.insert(root) {
                new_roots.push(root);
            }
        }
        (!new_roots.is_empty()).then(|| Change::Set {
            repo: repo.clone(),
            level: target.level,
            relays: target.relays.clone(),
            new_roots,
        })
    }

    /// A repository is not wanted any more.
    pub fn remove(&mut self, repo: &RepoId) -> Option<Change> {
        let target = self.wanted.remove(repo)?;
        self.let_go(&target);
        Some(Change::Removed(repo.clone()))
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
        assert!(targets.add_roots(&repo(1), [id(1)]).is_none());
        targets
            .set(&repo(1), Level::StateOnly, &[named(1)])
            .unwrap();
        assert!(
            targets
                .set(&repo(1), Level::StateOnly, &[named(1)])
                .is_none()
        );
        let told = targets.add_roots(&repo(1), [id(1), id(2), id(1)]);
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
        };
        assert_eq!(raised, Some(expected));
        assert!(targets.add_roots(&repo(1), [id(2)]).is_none());
        assert_eq!(targets.get(&repo(1)).unwrap().roots.len(), 2);
        assert_eq!(targets.remove(&repo(1)), Some(Change::Removed(repo(1))));
        assert_eq!(targets.remove(&repo(1)), None);
        assert!(targets.relays().is_empty());
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
