//! Keeps what is wanted equal to what is announced and served, and tells the changes.
//!
//! Whatever changes is only noted, by whoever changes it; once in a window that does not begin anew
//! with each change, what was noted is looked up as it is then. So a burst is one change, and
//! nothing is lost when a look-up fails: it is noted again. Watchers get a snapshot and then every
//! change; one that does not keep up is cut off and begins anew, and holds up nobody.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use grasp_proto::words::RepoId;
use nostr::{Event, Filter, Kind};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{Change, Level, Root, Target, Targets, all_of, relay_url::Named};
use crate::{
    domain::Domain,
    nip34::{self, announcement::Announcement},
    policy::related,
    release::Release,
    repository::Standing,
    store::StoreError,
};

/// The kinds whose events others are gathered around: patches, pull requests, issues.
const ROOT_KINDS: [Kind; 3] = [Kind::Custom(1617), Kind::Custom(1618), Kind::Custom(1621)];
/// Root events noted in one window; of more than that every repository's are looked up.
const NOTED: usize = 10_000;
/// Changes in one message,
const CHANGES: usize = 500;
/// and the root events in them.
const ROOTS_A_MESSAGE: usize = 10_000;
/// Messages that a watcher may be behind.
const BEHIND: usize = 256;
/// Repositories looked up at once.
const AT_ONCE: usize = 8;

/// What was noted since it was looked up last.
#[derive(Debug, Default)]
struct Noted {
    /// Bounded by what is announced, now or a window ago.
    repositories: HashSet<RepoId>,
    /// Of these: what was found of them so far does not count.
    anew: HashSet<RepoId>,
    /// Root events that came or went, as they did: at most `NOTED`.
    roots: Vec<(Root, BTreeSet<RepoId>, bool)>,
    /// More roots came than were noted.
    missed: bool,
}

/// What some changes are told as.
pub type News = Arc<Vec<Change>>;

#[derive(Debug)]
struct Shared {
    noted: Mutex<Noted>,
    wake: Notify,
    index: Mutex<Targets>,
    news: broadcast::Sender<News>,
    /// Everything has been looked up once.
    built: watch::Sender<bool>,
}

/// What is wanted, shared. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Wanted(Arc<Shared>);

/// What a look at one repository found.
struct Found {
    repo: RepoId,
    /// `None`: it is not wanted.
    wanted: Option<(Level, Vec<Named>)>,
    /// All its root events, if it is served and was not before.
    roots: Vec<Root>,
}

impl Wanted {
    /// Nothing is wanted yet; `ours` is never synced with.
    pub fn new(ours: Domain) -> Self {
        Self(Arc::new(Shared {
            noted: Mutex::default(),
            wake: Notify::new(),
            index: Mutex::new(Targets::new(ours)),
            news: broadcast::Sender::new(BEHIND),
            built: watch::Sender::new(false),
        }))
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        let lock = self.0.noted.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted, as far as it has been looked up.
    pub fn look<T>(&self, look: impl FnOnce(&Targets) -> T) -> T {
        look(&self.index())
    }

    fn index(&self) -> MutexGuard<'_, Targets> {
        let lock = self.0.index.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// The announcement of a repository came, went or changed.
    pub fn announced(&self, repo: &RepoId) {
        self.noted().repositories.insert(repo.clone());
        self.0.wake.notify_one();
    }

    /// What was found of a repository so far does not count, if it is wanted: it went, and may be
    /// back when it is looked up, or events were rejected that may be accepted now.
    pub fn anew(&self, repo: &RepoId) {
        let mut noted = self.noted();
        noted.repositories.insert(repo.clone());
        noted.anew.insert(repo.clone());
        drop(noted);
        self.0.wake.notify_one();
    }

    /// An event is served.
    pub fn served(&self, event: &Event) {
        self.note_root(event, true);
    }

    /// An event is served no more.
    pub fn removed(&self, event: &Event) {
        self.note_root(event, false);
    }

    fn note_root(&self, event: &Event, is_served: bool) {
        if !ROOT_KINDS.contains(&event.kind) {
            return;
        }
        let repositories = related::repositories(event);
        if repositories.is_empty() {
            return;
        }
        let mut noted = self.noted();
        match noted.roots.len() < NOTED {
            true => {
                let root = (event.created_at, nip34::id_of(event));
                noted.roots.push((root, repositories, is_served));
            }
            // One that went is followed up until the next start.
            false => noted.missed |= is_served,
        }
        drop(noted);
        self.0.wake.notify_one();
    }

    /// Looks up everything that is announced.
    pub async fn build(&self, release: &Release) {
        self.noted().repositories.extend(release.repositories.all());
        self.look_up(release).await;
        self.0.built.send_replace(true);
    }

    /// Looks up what was noted, and tells what changed. Says whether anything did.
    pub async fn look_up(&self, release: &Release) -> bool {
        let Noted {
            repositories,
            anew,
            roots,
            missed,
        } = mem::take(&mut *self.noted());
        let mut known: HashSet<RepoId> = HashSet::new();
        if missed {
            known = self.look(|index| index.all().map(|(repo, _)| repo.clone()).collect());
        }
        known.extend(repositories);
        let looks = stream::iter(known)
            .map(|repo| async {
                let all_roots = missed || anew.contains(&repo);
                (self.find(&repo, all_roots, release).await, repo)
            })
            .buffer_unordered(AT_ONCE);
        let results: Vec<_> = looks.collect().await;
        let mut found = Vec::new();
        for (result, repo) in results {
            match result {
                Ok(one) => found.push(one),
                Err(error) => {
                    tracing::error!(%repo, %error, "what is to be synced of it is looked up again");
                    match anew.contains(&repo) {
                        true => self.anew(&repo),
                        false => self.announced(&repo),
                    }
                }
            }
        }
        self.apply(found, &anew, roots)
    }

    async fn find(
        &self,
        repo: &RepoId,
        all_roots: bool,
        release: &Release,
    ) -> Result<Found, StoreError> {
        let found = match release.repositories.standing(repo) {
            Some(Standing::Active) => {
                let stored = release.store.announcement(repo).await?;
                let read = stored.and_then(|event| Announcement::read(Arc::new(event)).ok());
                read.map(|announcement| (Level::Full, announcement))
            }
            Some(Standing::Waiting) => {
                let waiting = release.purgatory.announcements.get(repo);
                waiting.map(|entry| (Level::StateOnly, entry.announcement))
            }
            Some(Standing::Elsewhere) | None => None,
        };
        let (wanted, before) = self.look(|index| {
            let relays = |(level, announcement)| (level, index.relays_of(&announcement));
            let before = index.get(repo).map(|target| target.level);
            (found.map(relays), before)
        });
        let is_full = wanted
            .as_ref()
            .is_some_and(|(level, _)| *level == Level::Full);
        let roots = match is_full && (all_roots || before != Some(Level::Full)) {
            true => roots_of(repo, release).await?,
            false => Vec::new(),
        };
        let repo = repo.clone();
        Ok(Found {
            repo,
            wanted,
            roots,
        })
    }

    fn apply(
        &self,
        found: Vec<Found>,
        anew: &HashSet<RepoId>,
        roots: Vec<(Root, BTreeSet<RepoId>, bool)>,
    ) -> bool {
        // Told under the lock: a snapshot is taken between two messages, never within one.
        let mut index = self.index();
        let mut changes = Vec::new();
        // Grouped, so that a repository is told once and not with each of its roots.
        let mut came: BTreeMap<RepoId, BTreeSet<Root>> = BTreeMap::new();
        for (root, repositories, is_served) in roots {
            for repo in repositories {
                if is_served {
                    came.entry(repo).or_default().insert(root);
                    continue;
                }
                if let Some(came) = came.get_mut(&repo) {
                    came.remove(&root);
                }
                index.remove_root(&repo, &root);
            }
        }
        for one in found {
            let Some((level, relays)) = one.wanted else {
                changes.extend(index.remove(&one.repo));
                continue;
            };
            let was_wanted = index.get(&one.repo).is_some();
            let set = index.set(&one.repo, level, &relays);
            let came = came.remove(&one.repo).unwrap_or_default();
            let added = index.add_roots(&one.repo, one.roots.into_iter().chain(came));
            match was_wanted && anew.contains(&one.repo) {
                true => changes.extend(index.begin_anew(&one.repo)),
                false => changes.extend(set.into_iter().chain(added)),
            }
        }
        for (repo, roots) in came {
            changes.extend(index.add_roots(&repo, roots));
        }
        let changed = !changes.is_empty();
        for message in messages(changes) {
            // Nobody may be watching.
            let _ = self.0.news.send(Arc::new(message));
        }
        changed
    }

    /// Everything that is wanted now, and each change from now on, once everything has been looked
    /// up.
    pub async fn watch(&self) -> (Vec<Vec<Change>>, broadcast::Receiver<News>) {
        // Ends with the feed only, and this is one.
        let _ = self.0.built.subscribe().wait_for(|built| *built).await;
        let index = self.index();
        let set = |(repo, target): (&RepoId, &Target)| all_of(repo, target);
        let all = index.all().map(set).collect();
        (messages(all), self.0.news.subscribe())
    }

    /// Looks up what is noted, once in a `window`, until `stop`. `changed` is called after changes.
    pub async fn run(
        self,
        release: Release,
        window: Duration,
        stop: CancellationToken,
        changed: impl Fn(&Targets) + Send,
    ) {
        self.build(&release).await;
        self.look(&changed);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.wake.notified() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(window) => {}
            }
            if self.look_up(&release).await {
                self.look(&changed);
            }
        }
    }
}

/// The ids of a repository's root events that are served.
async fn roots_of(repo: &RepoId, release: &Release) -> Result<Vec<Root>, StoreError> {
    let coordinate = repo.coordinate();
    let mut roots = Vec::new();
    for tag in related::TO_ADDRESSES {
        let filter = Filter::new().kinds(ROOT_KINDS).custom_tag(tag, &coordinate);
        let items = release.store.items(filter).await?;
        roots.extend(items.into_iter().map(|(id, at)| (at, id)));
    }
    Ok(roots)
}

/// Changes as messages of bounded size, in their order.
fn messages(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut messages = Vec::new();
    let (mut message, mut roots) = (Vec::new(), 0);
    for change in changes.into_iter().flat_map(split) {
        let more = match &change {
            Change::Set { new_roots, .. } => new_roots.len(),
            Change::Removed(_) => 0,
        };
        if message.len() == CHANGES || (roots + more > ROOTS_A_MESSAGE && !message.is_empty()) {
            messages.push(mem::take(&mut message));
            roots = 0;
        }
        roots += more;
        message.push(change);
    }
    if !message.is_empty() {
        messages.push(message);
    }
    messages
}

/// A change with more roots than one message takes, as several.
fn split(change: Change) -> Vec<Change> {
    match change {
        Change::Set {
            repo,
            level,
            relays,
            new_roots,
            generation,
        } if new_roots.len() > ROOTS_A_MESSAGE => new_roots
            .chunks(ROOTS_A_MESSAGE)
            .map(|chunk| Change::Set {
                repo: repo.clone(),
                level,
                relays: relays.clone(),
                new_roots: chunk.to_vec(),
                generation,
            })
            .collect(),
        other => vec![other],
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::EventId;

    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT,
        testing::{event, keys},
    };

    #[test]
    fn messages_are_bounded_and_leave_nothing_out() {
        let event = event(&keys(1), ANNOUNCEMENT, 1, &[&["d", "x"]]);
        let repo = Announcement::read(Arc::new(event)).unwrap().repo;
        let root = |n: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            EventId::from_bytes(bytes)
        };
        let set = |roots: std::ops::Range<u32>| Change::Set {
            repo: repo.clone(),
            level: Level::Full,
            relays: vec![],
            new_roots: roots.map(root).collect(),
            generation: 1,
        };
        let mut changes = vec![set(0..4_000), set(4_000..8_000), set(8_000..33_000)];
        changes.extend((0..1_200).map(|_| Change::Removed(repo.clone())));
        let messages = messages(changes);
        let mut next = 0;
        let mut removed = 0;
        for message in &messages {
            assert!(message.len() <= CHANGES);
            let mut roots = 0;
            for change in message {
                match change {
                    Change::Set { new_roots, .. } => {
                        roots += new_roots.len();
                        for id in new_roots {
                            assert_eq!(*id, root(next));
                            next += 1;
                        }
                    }
                    Change::Removed(_) => removed += 1,
                }
            }
            assert!(roots <= ROOTS_A_MESSAGE);
        }
        assert_eq!((next, removed), (33_000, 1_200));
        assert!(super::messages(vec![]).is_empty());
    }
}
