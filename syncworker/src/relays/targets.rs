//! What is to be synced with which remote relay, as this service's relay tells it.
//!
//! Each stream of it begins with everything: it is gathered beside what is known, and takes its place
//! when it is complete. Bounded by what the relay has accepted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use grasp_proto::{
    contract::{
        self,
        relay::{Level, Target, TargetChanges},
    },
    words::{EventId, RepoId},
};
use tokio::sync::watch;

use super::filters::Item;

#[derive(Debug, Clone)]
struct Wanted {
    level: Level,
    generation: u32,
    relays: BTreeSet<String>,
    roots: BTreeSet<EventId>,
}

/// What is wanted, by repository and by relay: plain data.
#[derive(Debug, Default, Clone)]
pub struct Index {
    repositories: BTreeMap<Arc<RepoId>, Wanted>,
    by_relay: BTreeMap<String, BTreeSet<Arc<RepoId>>>,
}

impl Index {
    /// Takes changes in; the relays that are touched by them come back.
    fn apply(&mut self, changes: TargetChanges) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        for target in changes.targets {
            if let Err(error) = self.set(target, &mut touched) {
                tracing::warn!(error, "the relay told of a target that has no name");
            }
        }
        for repository in changes.removed {
            if let Ok(repo) = contract::repository(Some(repository)) {
                self.remove(&repo, &mut touched);
            }
        }
        touched
    }

    fn set(&mut self, target: Target, touched: &mut BTreeSet<String>) -> Result<(), String> {
        let (level, generation) = (target.level(), target.generation);
        let repo = contract::repository(target.repository);
        let repo = repo.map_err(|status| status.message().to_owned())?;
        let new = target.new_roots.iter();
        let new: Result<Vec<EventId>, _> = new.map(|id| EventId::from_slice(id)).collect();
        let new = new.map_err(|error| error.to_string())?;
        let old = self.remove(&repo, touched);
        // There may be far more old ones than new ones.
        let mut roots = old.map(|old| old.roots).unwrap_or_default();
        roots.extend(new);
        let repo = Arc::new(repo);
        let relays: BTreeSet<String> = target.relays.into_iter().collect();
        for relay in &relays {
            touched.insert(relay.clone());
            let repositories = self.by_relay.entry(relay.clone()).or_default();
            repositories.insert(repo.clone());
        }
        let wanted = Wanted {
            level,
            generation,
            relays,
            roots,
        };
        self.repositories.insert(repo, wanted);
        Ok(())
    }

    fn remove(&mut self, repo: &RepoId, touched: &mut BTreeSet<String>) -> Option<Wanted> {
        let old = self.repositories.remove(repo)?;
        for relay in &old.relays {
            touched.insert(relay.clone());
            if let Some(repositories) = self.by_relay.get_mut(relay) {
                repositories.remove(repo);
                if repositories.is_empty() {
                    self.by_relay.remove(relay);
                }
            }
        }
        Some(old)
    }

    /// Everything wanted of a relay: layer 1 always.
    fn wanted(&self, relay: &str) -> BTreeSet<Item> {
        let mut items = BTreeSet::from([Item::Announcements]);
        for repo in self.by_relay.get(relay).into_iter().flatten() {
            items.extend(self.items(repo));
        }
        items
    }

    /// Everything wanted of one repository.
    fn items(&self, repo: &RepoId) -> Vec<Item> {
        let Some((repo, wanted)) = self.repositories.get_key_value(repo) else {
            return Vec::new();
        };
        let mut items = vec![Item::States(repo.clone())];
        if wanted.level == Level::Full {
            items.push(Item::Mentions(repo.clone()));
            items.extend(wanted.roots.iter().copied().map(Item::Root));
        }
        items
    }

    /// The generations of a relay's repositories.
    fn generations(&self, relay: &str) -> BTreeMap<Arc<RepoId>, u32> {
        let repos = self.by_relay.get(relay).into_iter().flatten();
        repos
            .filter_map(|repo| Some((repo.clone(), self.repositories.get(repo)?.generation)))
            .collect()
    }

    /// Whether the same is wanted of a relay there.
    fn differs(&self, other: &Self, relay: &str) -> bool {
        self.wanted(relay) != other.wanted(relay)
            || self.generations(relay) != other.generations(relay)
    }
}

#[derive(Debug, Default)]
struct Known {
    index: Index,
    complete: bool,
    /// When each relay's share changed last: of those that are named, and of those that were until
    /// now. Versions only grow, so one that is gone and comes back is a new one.
    versions: BTreeMap<String, u64>,
}

/// What is wanted, shared by all connections.
#[derive(Debug)]
pub struct Targets {
    known: Mutex<Known>,
    version: watch::Sender<u64>,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Targets {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // What a panic left behind is an index with one change missing; the next stream mends it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes when something changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Everything wanted of a relay, and of which version that is.
    pub fn wanted(&self, relay: &str) -> (u64, BTreeSet<Item>) {
        let known = self.lock();
        let version = known.versions.get(relay).copied().unwrap_or_default();
        (version, known.index.wanted(relay))
    }

    /// The generations of a relay's repositories: when one is another, what was found of it does not
    /// count.
    pub fn generations(&self, relay: &str) -> BTreeMap<Arc<RepoId>, u32> {
        self.lock().index.generations(relay)
    }

    /// Everything wanted of one repository.
    pub fn items(&self, repo: &RepoId) -> Vec<Item> {
        self.lock().index.items(repo)
    }

    /// Of which version [`Targets::wanted`] would be.
    pub fn version(&self, relay: &str) -> u64 {
        self.lock().versions.get(relay).copied().unwrap_or_default()
    }

    /// Whether no repository names this relay. Unknown until all targets were told once.
    pub fn is_unwanted(&self, relay: &str) -> bool {
        let known = self.lock();
        known.complete && !known.index.by_relay.contains_key(relay)
    }

    fn change(&self, change: impl FnOnce(&mut Known) -> BTreeSet<String>) {
        self.version.send_modify(|version| {
            *version += 1;
            let mut known = self.lock();
            let touched = change(&mut known);
            let Known {
                index, versions, ..
            } = &mut *known;
            versions.retain(|relay, _| index.by_relay.contains_key(relay));
            for relay in touched {
                versions.insert(relay, *version);
            }
        });
    }
}

/// One stream of changes, taken in.
#[derive(Debug, Default)]
pub struct Gathering {
    /// What was told so far, until it is complete.
    index: Option<Index>,
    begun: bool,
}

impl Gathering {
    /// The next message of the stream.
    pub fn take(&mut self, targets: &Targets, changes: TargetChanges) {
        if !self.begun {
            self.begun = true;
            self.index = Some(Index::default());
        }
        let complete = changes.complete;
        let Some(index) = &mut self.index else {
            targets.change(|known| known.index.apply(changes));
            return;
        };
        index.apply(changes);
        if complete && let Some(index) = self.index.take() {
            targets.change(|known| {
                let named = known.index.by_relay.keys().chain(index.by_relay.keys());
                let touched = named
                    .filter(|relay| known.index.differs(&index, relay))
                    .cloned()
                    .collect();
                known.index = index;
                known.complete = true;
                touched
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::{Identifier, Npub};

    use super::*;

    fn repo(name: &str) -> RepoId {
        RepoId {
            owner: Npub::from_bytes([1; 32]),
            identifier: Identifier::parse(name).unwrap(),
        }
    }

    fn target(name: &str, level: Level, relays: &[&str], roots: &[u8]) -> Target {
        Target {
            repository: Some((&repo(name)).into()),
            level: level.into(),
            relays: relays.iter().map(|relay| (*relay).to_owned()).collect(),
            new_roots: roots.iter().map(|root| vec![*root; 32]).collect(),
            generation: 1,
        }
    }

    fn told(targets: Vec<Target>, complete: bool) -> TargetChanges {
        TargetChanges {
            targets,
            removed: vec![],
            complete,
        }
    }

    #[test]
    fn nothing_counts_before_all_of_it_is_told_and_levels_say_what_is_asked() {
        let targets = Targets::default();
        let mut stream = Gathering::default();
        let two = target("a", Level::Full, &["wss://x", "wss://y"], &[7]);
        stream.take(&targets, told(vec![two], false));
        assert_eq!(targets.wanted("wss://x").1, [Item::Announcements].into());
        assert!(!targets.is_unwanted("wss://z"));
        let state_only = target("b", Level::StateOnly, &["wss://y"], &[]);
        stream.take(&targets, told(vec![state_only], true));
        assert_eq!(targets.wanted("wss://x").1.len(), 1 + 2 + 1);
        assert_eq!(targets.wanted("wss://y").1.len(), 1 + 2 + 1 + 1);
        assert!(targets.is_unwanted("wss://z"));
        // Promoted, with one more root; the other relay has not changed.
        let x = targets.version("wss://x");
        let promoted = target("b", Level::Full, &["wss://y"], &[8]);
        stream.take(&targets, told(vec![promoted], false));
        assert_eq!(targets.wanted("wss://y").1.len(), 1 + 3 + 3);
        assert_eq!(targets.version("wss://x"), x);
        // Told again without roots: those told before stay.
        let again = target("b", Level::Full, &["wss://x"], &[]);
        stream.take(&targets, told(vec![again], false));
        assert_eq!(targets.wanted("wss://x").1.len(), 1 + 3 + 3);
        assert_eq!(targets.wanted("wss://y").1.len(), 1 + 3);
    }

    #[test]
    fn a_new_stream_takes_the_place_of_the_old() {
        let targets = Targets::default();
        let all = |names: &[&str]| {
            let targets = names
                .iter()
                .map(|name| target(name, Level::Full, &["wss://x"], &[7]));
            told(targets.collect(), true)
        };
        Gathering::default().take(&targets, all(&["a", "b"]));
        let version = targets.version("wss://x");
        Gathering::default().take(&targets, all(&["a", "b"]));
        assert_eq!(targets.version("wss://x"), version, "nothing changed");
        let mut renewed = all(&["a", "b"]);
        renewed.targets[1].generation = 2;
        Gathering::default().take(&targets, renewed);
        assert_ne!(targets.version("wss://x"), version);
        let generations = targets.generations("wss://x");
        assert_eq!(generations.into_values().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(targets.items(&repo("b")).len(), 3);
        Gathering::default().take(&targets, all(&["b"]));
        assert!(
            !targets
                .wanted("wss://x")
                .1
                .contains(&Item::States(Arc::new(repo("a"))))
        );
        let mut stream = Gathering::default();
        stream.take(&targets, all(&[]));
        assert!(targets.is_unwanted("wss://x"));
        stream.take(&targets, all(&["c"]));
        let removed = TargetChanges {
            removed: vec![(&repo("c")).into()],
            ..TargetChanges::default()
        };
        stream.take(&targets, removed);
        assert!(targets.is_unwanted("wss://x"));
    }
}
