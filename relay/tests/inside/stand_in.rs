//! A git side of words alone: what gitd promises, without a disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use futures::{StreamExt, future::BoxFuture, stream};
use grasp_proto::{
    contract::{
        git::{self, snapshot_request::Step, snapshot_response::Answer},
        repository,
    },
    words::{Address, EventId, Identifier, Npub, Oid, RefKind, RefName, RepoId},
};
use grasp_relay::{
    clock::Moment,
    git::{Absent, Alignment, Descriptions, Git, GitError, Refs, SnapshotAnswers},
    policy::lists::Entry,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[derive(Debug, Clone, Default)]
pub struct Repo {
    pub incarnation: String,
    pub head: Option<RefName>,
    pub refs: BTreeMap<RefName, Oid>,
    /// What refs of pull requests led to when it was moved aside.
    pub offered: BTreeMap<RefName, Oid>,
}

#[derive(Debug, Default)]
pub struct World {
    pub repos: BTreeMap<Address, Repo>,
    /// Objects by identifier; whether each is a commit.
    pub pool: BTreeMap<Identifier, BTreeMap<Oid, bool>>,
    /// What pushes brought for refs of pull requests, by where to and for which.
    pub brought: BTreeSet<(Address, RefName, Oid)>,
    /// Repositories that an upload runs into.
    pub uploading: BTreeSet<RepoId>,
    /// Repositories that refuse to be aligned.
    pub broken: BTreeSet<RepoId>,
    /// Repositories that give up no ref.
    pub stuck: BTreeSet<Address>,
    /// Moved aside, by incarnation.
    pub retired: BTreeMap<(RepoId, String), Repo>,
    /// Nothing is copied between pools.
    pub uncopied: bool,
    pub aligned: u32,
    pub withheld: Vec<Entry>,
    /// What its clock says, where it is asked.
    pub clock: Option<Moment>,
}

/// The stand-in for gitd.
#[derive(Debug, Default)]
pub struct StandIn {
    world: Mutex<World>,
    away: AtomicBool,
    made: AtomicU32,
    calls: AtomicU32,
}

impl StandIn {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn goes_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// How often it was asked something.
    pub fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Commits are in the pool of an identifier.
    pub fn bring(&self, identifier: &Identifier, commits: &[Oid]) {
        let mut world = self.world();
        let pool = world.pool.entry(identifier.clone()).or_default();
        pool.extend(commits.iter().map(|oid| (*oid, true)));
    }

    /// A push to a repository has these commits in its pack.
    pub fn pushed(&self, to: &Address, commands: &[(RefName, Oid)]) {
        let brought = commands.iter();
        let brought = brought.map(|(name, oid)| (to.clone(), name.clone(), *oid));
        self.world().brought.extend(brought);
    }

    pub fn has(&self, address: impl Into<Address>) -> bool {
        self.world().repos.contains_key(&address.into())
    }

    pub fn has_retired(&self, repo: &RepoId) -> bool {
        let world = self.world();
        world.retired.keys().any(|(retired, _)| retired == repo)
    }

    pub fn refs_of(&self, address: impl Into<Address>) -> BTreeMap<RefName, Oid> {
        let world = self.world();
        world
            .repos
            .get(&address.into())
            .map(|repo| repo.refs.clone())
            .unwrap_or_default()
    }

    fn answer<'a, T: Send + 'a>(
        &'a self,
        work: impl FnOnce(&mut World) -> Result<T, GitError> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, GitError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.away.load(Ordering::SeqCst) {
                return Err(GitError::Unreachable("away".to_owned()));
            }
            work(&mut self.world())
        })
    }
}

impl Git for StandIn {
    fn create<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<String, GitError>> {
        self.answer(|world| {
            let incarnation = || format!("i{}", self.made.fetch_add(1, Ordering::SeqCst));
            let made = world.repos.entry(repo.into()).or_insert_with(|| Repo {
                incarnation: incarnation(),
                ..Repo::default()
            });
            Ok(made.incarnation.clone())
        })
    }

    fn make_again<'a>(
        &'a self,
        repo: &'a RepoId,
        _: &'a BTreeSet<(Oid, Option<EventId>)>,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        Box::pin(async move { self.create(repo).await.map(drop) })
    }

    fn retire<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<(), GitError>> {
        self.answer(|world| {
            if let Some(gone) = world.repos.remove(&repo.into()) {
                let name = (repo.clone(), gone.incarnation.clone());
                world.retired.insert(name, gone);
            }
            Ok(())
        })
    }

    fn restore<'a>(
        &'a self,
        repo: &'a RepoId,
        incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        self.answer(move |world| {
            if let Some(there) = world.repos.get(&repo.into()) {
                return match there.incarnation == incarnation {
                    true => Ok(()),
                    false => Err(GitError::Refused("another incarnation".to_owned())),
                };
            }
            let name = (repo.clone(), incarnation.to_owned());
            let mut back = world.retired.remove(&name).ok_or(GitError::NotFound)?;
            let mut offered = std::mem::take(&mut back.refs);
            offered.retain(|name, _| matches!(name.kind(), RefKind::Nostr(_)));
            (back.offered, back.head) = (offered, None);
            world.repos.insert(repo.into(), back);
            Ok(())
        })
    }

    fn purge<'a>(
        &'a self,
        repo: &'a RepoId,
        incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        self.answer(move |world| {
            world
                .retired
                .remove(&(repo.clone(), incarnation.to_owned()));
            Ok(())
        })
    }

    fn retired(&self) -> BoxFuture<'_, Result<Vec<(RepoId, String)>, GitError>> {
        self.answer(|world| Ok(world.retired.keys().cloned().collect()))
    }

    fn delete<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<(), GitError>> {
        self.answer(|world| {
            if world.uploading.contains(repo) {
                return Err(GitError::Refused("an upload is running".to_owned()));
            }
            world.repos.remove(&repo.into());
            Ok(())
        })
    }

    fn delete_empty<'a>(
        &'a self,
        repo: &'a RepoId,
        _incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        self.answer(|world| {
            if world.uploading.contains(repo) {
                return Err(GitError::Refused("an upload is running".to_owned()));
            }
            if world
                .repos
                .get(&repo.into())
                .is_some_and(|repo| !repo.refs.is_empty())
            {
                return Err(GitError::Refused("it is not empty".to_owned()));
            }
            world.repos.remove(&repo.into());
            Ok(())
        })
    }

    fn describe(
        &self,
        owner: Option<Npub>,
        identifier: Option<Identifier>,
    ) -> BoxFuture<'_, Result<Descriptions, GitError>> {
        self.answer(move |world| {
            let is_asked = |repo: &RepoId| {
                owner.is_none_or(|owner| owner == repo.owner)
                    && identifier.iter().all(|name| *name == repo.identifier)
            };
            let described =
                |place: git::Place, repo: &RepoId, refs: u64| git::RepositoryDescription {
                    repository: Some(repo.into()),
                    place: place.into(),
                    refs,
                    is_empty: refs == 0,
                    ..git::RepositoryDescription::default()
                };
            let served = world.repos.iter().filter(|(address, _)| !address.is_prs());
            let served = served.map(|(address, content)| {
                described(git::Place::Served, &address.repo, content.refs.len() as u64)
            });
            let retired = world.retired.iter();
            let retired = retired.map(|repo| described(git::Place::Retired, &repo.0.0, 1));
            let all = served
                .chain(retired)
                .filter(|described| is_asked(&repository(described.repository.clone()).unwrap()));
            Ok(stream::iter([Ok(all.collect())]).boxed())
        })
    }

    fn snapshot(
        &self,
        steps: mpsc::Receiver<git::SnapshotRequest>,
    ) -> BoxFuture<'_, Result<SnapshotAnswers, GitError>> {
        self.answer(move |world| {
            let refs = world.repos.iter().map(|(repo, content)| {
                let refs = content.refs.iter();
                let refs = refs.map(|(name, oid)| format!("{repo} {name} {oid}\n"));
                refs.collect::<String>()
            });
            let refs: String = refs.collect();
            let end = || Answer::End(git::SnapshotEnd {});
            let steps = ReceiverStream::new(steps);
            let answers = steps.flat_map(move |step| {
                let answers = match step.step.unwrap() {
                    Step::Begin(_) => vec![
                        Answer::Beginning(git::SnapshotBeginning {}),
                        Answer::Begun(git::SnapshotBegun {}),
                    ],
                    Step::Take(_) => vec![Answer::Taken(git::SnapshotTaken {
                        repositories: 1,
                        described: 1,
                    })],
                    Step::Small(_) => vec![Answer::Bytes(refs.clone().into_bytes()), end()],
                    Step::List(_) => {
                        let (name, size) = ("a pack".to_owned(), 6);
                        let files = vec![git::SnapshotFile { name, size }];
                        vec![Answer::Files(git::SnapshotFiles { files }), end()]
                    }
                    Step::Read(name) => vec![Answer::Bytes(name.into_bytes()), end()],
                };
                stream::iter(answers.into_iter().map(Ok))
            });
            Ok(answers.boxed())
        })
    }

    fn refs<'a>(
        &'a self,
        address: &'a Address,
        names: &'a [RefName],
    ) -> BoxFuture<'a, Result<Refs, GitError>> {
        self.answer(|world| {
            let repo = world.repos.get(address).ok_or(GitError::NotFound)?;
            let named = |name: &RefName| names.is_empty() || names.contains(name);
            let refs = repo.refs.iter().filter(|(name, _)| named(name));
            Ok(Refs {
                refs: refs.map(|(name, oid)| (name.clone(), *oid)).collect(),
                incarnation: repo.incarnation.clone(),
                head: repo.head.clone(),
            })
        })
    }

    fn absent<'a>(
        &'a self,
        identifier: &'a Identifier,
        oids: &'a BTreeSet<Oid>,
        commits: &'a BTreeSet<Oid>,
    ) -> BoxFuture<'a, Result<Absent, GitError>> {
        self.answer(|world| {
            let pool = world.pool.get(identifier).cloned().unwrap_or_default();
            let mut absent: BTreeSet<Oid> = oids.iter().copied().collect();
            absent.retain(|oid| !pool.contains_key(oid));
            absent.extend(commits.iter().filter(|oid| pool.get(oid) != Some(&true)));
            Ok(Absent(absent))
        })
    }

    fn align<'a>(
        &'a self,
        repo: &'a RepoId,
        alignment: Alignment,
    ) -> BoxFuture<'a, Result<u32, GitError>> {
        self.answer(move |world| {
            if world.broken.contains(repo) {
                return Err(GitError::Refused("it is broken".to_owned()));
            }
            let pool = world
                .pool
                .get(&repo.identifier)
                .cloned()
                .unwrap_or_default();
            world.aligned += 1;
            let repo = world
                .repos
                .get_mut(&repo.into())
                .ok_or(GitError::NotFound)?;
            if !alignment.incarnation.is_empty() && alignment.incarnation != repo.incarnation {
                return Err(GitError::Refused("another incarnation".to_owned()));
            }
            for (name, expected) in &alignment.expected {
                if repo.refs.get(name) != expected.as_ref() {
                    return Err(GitError::Moved(format!("{name} moved")));
                }
            }
            if let Some((name, _)) = alignment
                .refs
                .iter()
                .find(|(_, oid)| !pool.contains_key(oid))
            {
                return Err(GitError::Refused(format!("{name} has no object")));
            }
            let before = repo.refs.clone();
            repo.refs
                .retain(|name, _| matches!(name.kind(), RefKind::Nostr(_)));
            repo.refs.extend(alignment.refs);
            repo.head = alignment.head.or(repo.head.take());
            let names: BTreeSet<&RefName> = before.keys().chain(repo.refs.keys()).collect();
            let moved = names.into_iter();
            let moved = moved.filter(|name| before.get(*name) != repo.refs.get(*name));
            Ok(u32::try_from(moved.count()).unwrap_or(u32::MAX))
        })
    }

    fn put_ref<'a>(
        &'a self,
        address: &'a Address,
        name: &'a RefName,
        oid: Oid,
        signed_for: bool,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        self.answer(move |world| {
            if address.is_prs() {
                // By the upload, or because it is signed for.
                world.repos.entry(address.clone()).or_default();
            }
            let repo = world.repos.get_mut(address).ok_or(GitError::NotFound)?;
            let pool = world.pool.get(address.identifier());
            let is_here = pool.is_some_and(|pool| pool.contains_key(&oid))
                || world
                    .brought
                    .contains(&(address.clone(), name.clone(), oid))
                || [&repo.refs, &repo.offered]
                    .iter()
                    .any(|refs| refs.get(name) == Some(&oid));
            if !is_here {
                return Err(GitError::Refused(format!("not here: object {oid}")));
            }
            repo.refs.insert(name.clone(), oid);
            if signed_for {
                let pool = world.pool.entry(address.identifier().clone()).or_default();
                pool.insert(oid, true);
            }
            Ok(())
        })
    }

    fn delete_ref<'a>(
        &'a self,
        address: &'a Address,
        name: &'a RefName,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        self.answer(move |world| {
            if world.stuck.contains(address) {
                return Err(GitError::Failed("it is stuck".to_owned()));
            }
            let repo = world.repos.get_mut(address).ok_or(GitError::NotFound)?;
            repo.refs.remove(name);
            world
                .brought
                .retain(|(to, of, _)| to != address || of != name);
            if address.is_prs() && repo.refs.is_empty() {
                world.repos.remove(address);
            }
            Ok(())
        })
    }

    fn copy<'a>(
        &'a self,
        from: &'a Identifier,
        to: &'a Identifier,
        commit: Oid,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        self.answer(move |world| {
            let has = |name| {
                world
                    .pool
                    .get(name)
                    .is_some_and(|pool| pool.contains_key(&commit))
            };
            if !has(from) {
                return Err(GitError::Refused("it is not here".to_owned()));
            }
            if world.uncopied {
                return Err(GitError::Failed("it cannot be copied".to_owned()));
            }
            world
                .pool
                .entry(to.clone())
                .or_default()
                .insert(commit, true);
            Ok(())
        })
    }

    fn prune<'a>(&'a self, identifier: &'a Identifier) -> BoxFuture<'a, Result<u64, GitError>> {
        self.answer(|world| {
            Ok(world
                .pool
                .get(identifier)
                .map_or(0, |pool| pool.len() as u64))
        })
    }

    fn withhold(&self, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), GitError>> {
        self.answer(|world| {
            world.withheld = entries;
            Ok(())
        })
    }

    fn clock(&self) -> Option<Moment> {
        self.world().clock
    }

    fn reachable(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { !self.away.load(Ordering::SeqCst) })
    }
}
