//! The one release from purgatory, whoever caused it: a push, a fetch, an event, a restart.
//!
//! Always in this order: refs, then the store and its subscribers, then purgatory. After a crash
//! between any two steps the same call finishes the work. To be called in the queue of the
//! identifier only (see [`crate::serial`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dashmap::DashMap;
use grasp_proto::words::{EventId, Identifier, Oid, RefName, RepoId};
use nostr::{Event, Filter};

use crate::{
    git::{Alignment, Git, GitError},
    live::Live,
    nip34::{
        self, later,
        pull_request::{self, PullRequest},
        state::State,
    },
    policy::{
        related,
        satisfiable::{Wanted, latest, satisfiable},
    },
    purgatory::{Purgatory, pull_requests},
    repository::{Repositories, Standing},
    store::{Saved, Store, StoreError},
};

/// Why something was not released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The git side.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The event store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ReleaseError {
    /// Whether the git storage did not answer, so that nothing else will succeed either.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Git(GitError::Unreachable(_)))
    }
}

/// Where a push goes, and what was seen there when it was judged.
#[derive(Debug, Clone)]
pub struct Aim {
    /// The repository pushed to.
    pub repo: RepoId,
    /// The refs the judgement rests on.
    pub expected: Vec<(RefName, Option<Oid>)>,
    /// Which incarnation of the repository.
    pub incarnation: String,
}

/// How far the release of a state came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// It is served.
    pub served: bool,
    /// More repositories want it than one turn has room for: go on behind this one.
    pub go_on_behind: Option<RepoId>,
}

/// A release that goes on in another turn of the queue.
#[derive(Debug, Clone)]
pub struct GoOn {
    /// What is being released.
    pub state: State,
    /// Behind which repository.
    pub behind: RepoId,
}

/// Repositories that one turn of the queue aligns at most, so that a push waits for no more.
const ALIGNED_A_TURN: usize = 64;
/// Objects asked for at once.
const OBJECTS_A_CALL: usize = 20_000;
/// Pull requests whose refs a repository is given when it is promoted.
const PULL_REQUESTS_OF_A_REPOSITORY: usize = 500;

/// What a release needs of the relay. Cheap to clone.
#[derive(Clone)]
pub struct Release {
    /// Events that are served.
    pub store: Store,
    /// Events that are not.
    pub purgatory: Arc<Purgatory>,
    /// What is announced.
    pub repositories: Arc<Repositories>,
    /// The git side.
    pub git: Arc<dyn Git>,
    /// Those who are told.
    pub live: Arc<Live>,
    /// Identifiers under which something failed that may succeed by itself: tried again by
    /// [`crate::sweep`]. As many as are announced.
    pub unfinished: Arc<DashMap<Identifier, ()>>,
}

impl Release {
    /// Says why something under an identifier was not done, and has it tried again if that may
    /// help.
    pub fn note(&self, identifier: &Identifier, error: &ReleaseError, what: &str) {
        use GitError::{Moved, NotFound, Refused};
        if !matches!(error, ReleaseError::Git(NotFound | Moved(_) | Refused(_))) {
            self.unfinished.insert(identifier.clone(), ());
        }
        tracing::warn!(%identifier, %error, "{what}");
    }

    /// Stores an event and tells the subscribers, unless it was stored before.
    pub async fn serve(&self, event: &Event) -> Result<Saved, StoreError> {
        let saved = self.store.save(event).await?;
        if saved == Saved::New {
            self.live.publish(event);
        }
        Ok(saved)
    }

    /// The latest stored state that is authorised for a repository.
    pub async fn latest_stored(&self, repo: &RepoId) -> Result<Option<State>, StoreError> {
        let authors = self.repositories.maintainers(repo);
        let stored = self.store.states(authors, &repo.identifier).await?;
        let stored = stored.into_iter().map(Arc::new);
        Ok(latest(stored.filter_map(|event| State::read(event).ok())))
    }

    /// Which of the wanted objects are not in an identifier's pool.
    pub async fn absent(
        &self,
        identifier: &Identifier,
        wanted: &Wanted,
    ) -> Result<BTreeSet<Oid>, GitError> {
        let mut absent = BTreeSet::new();
        let tagged = |oids: &BTreeSet<Oid>, commit| -> Vec<(Oid, bool)> {
            oids.iter().map(|oid| (*oid, commit)).collect()
        };
        let mut all = tagged(&wanted.oids, false);
        all.extend(tagged(&wanted.commits, true));
        for chunk in all.chunks(OBJECTS_A_CALL) {
            let of = |commit| {
                chunk
                    .iter()
                    .filter(|c| c.1 == commit)
                    .map(|c| c.0)
                    .collect()
            };
            let (oids, commits) = (of(false), of(true));
            let found = self.git.absent(identifier, &oids, &commits, None).await?;
            absent.extend(found.0);
        }
        Ok(absent)
    }

    /// Releases whatever waits under an identifier and can be: states oldest first, then pull
    /// requests. One that cannot be released does not hold up the next. Gives the states that more
    /// repositories want than one turn has room for.
    ///
    /// # Errors
    /// Only if the git storage cannot be reached: then nothing is known.
    pub async fn identifier(&self, identifier: &Identifier) -> Result<Vec<GoOn>, ReleaseError> {
        let states = self.purgatory.states.by_identifier(identifier);
        let mut states: Vec<State> = states.into_iter().map(|entry| entry.state).collect();
        states.sort_by(|a, b| later(&a.event, &b.event));
        let requests = self.purgatory.pull_requests.by_identifier(identifier);
        let mut wanted = Wanted::default();
        for state in &states {
            wanted.state(state);
        }
        for request in requests
            .iter()
            .filter_map(|(_, entry)| entry.request.as_ref())
        {
            wanted.pull_request(request);
        }
        let absent = self.absent(identifier, &wanted).await?;
        let mut go_on = Vec::new();
        for state in states
            .into_iter()
            .filter(|state| satisfiable(state, &absent))
        {
            match self.state(&state, None, None).await {
                Ok(released) => {
                    let behind = released.go_on_behind;
                    go_on.extend(behind.map(|behind| GoOn { state, behind }));
                }
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => self.note(identifier, &error, "a state stays in purgatory"),
            }
        }
        for (id, entry) in requests {
            let commit = entry.request.and_then(|request| request.commit);
            if commit.is_none_or(|commit| absent.contains(&commit)) && entry.pushed.is_empty() {
                continue;
            }
            match self.pull_request(&id).await {
                Ok(_) => {}
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => self.note(identifier, &error, "a pull request stays in purgatory"),
            }
        }
        Ok(go_on)
    }

    /// Releases a state whose objects are all here: aligns every repository here for which it is
    /// the latest authorised state, the one aimed at first; promotes those that wait; serves it.
    ///
    /// A repository other than the one aimed at that cannot be aligned keeps the state in
    /// purgatory, served or not, so that it is tried again.
    pub async fn state(
        &self,
        state: &State,
        aim: Option<&Aim>,
        behind: Option<&RepoId>,
    ) -> Result<Released, ReleaseError> {
        let trusting = self.repositories.trusting(&state.identifier, &state.author);
        if trusting.is_empty() {
            // Its author may be named again: authorisation is judged at release.
            return Ok(Released {
                served: false,
                go_on_behind: None,
            });
        }
        let here = trusting.iter().filter(|(_, standing)| standing.is_here());
        let mut here: Vec<(RepoId, Standing)> = here.cloned().collect();
        here.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(behind) = behind {
            here.retain(|(repo, _)| repo > behind);
        }
        let more = here.len() > ALIGNED_A_TURN;
        here.truncate(ALIGNED_A_TURN);
        let go_on_behind = match more {
            true => here.last().map(|(repo, _)| repo.clone()),
            false => None,
        };
        if let Some(aim) = aim {
            here.retain(|(repo, _)| *repo != aim.repo);
            if let Some(standing) = self.repositories.standing(&aim.repo) {
                self.settle(&aim.repo, standing, Some(state), Some(aim))
                    .await?;
            }
        }
        let mut all_settled = true;
        for (repo, standing) in here {
            match self.settle(&repo, standing, Some(state), None).await {
                Ok(()) => {}
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => {
                    all_settled = false;
                    self.note(&repo.identifier, &error, "a repository was not aligned");
                }
            }
        }
        let served = trusting.iter().any(|(repo, _)| {
            let standing = self.repositories.standing(repo);
            standing.is_some_and(Standing::is_served)
        });
        if served {
            self.serve(&state.event).await?;
            if all_settled && go_on_behind.is_none() {
                self.purgatory.remove_state(&state.id());
            }
        }
        Ok(Released {
            served,
            go_on_behind,
        })
    }

    /// Makes a repository equal to its latest authorised state, among the stored ones and the one
    /// being released, and promotes its announcement if that names something.
    async fn settle(
        &self,
        repo: &RepoId,
        standing: Standing,
        releasing: Option<&State>,
        aim: Option<&Aim>,
    ) -> Result<(), ReleaseError> {
        let stored = self.latest_stored(repo).await?;
        let Some(target) = latest(stored.into_iter().chain(releasing.cloned())) else {
            return Ok(());
        };
        let is_new = releasing.is_some_and(|state| state.id() == target.id());
        if !is_new && standing == Standing::Active {
            return Ok(());
        }
        self.align(repo, &target, aim).await?;
        if standing == Standing::Waiting && target.names_something() {
            self.promote(repo).await?;
        }
        Ok(())
    }

    async fn align(&self, repo: &RepoId, state: &State, aim: Option<&Aim>) -> Result<(), GitError> {
        let alignment = Alignment {
            refs: state
                .objects()
                .map(|(name, oid)| (name.clone(), oid))
                .collect(),
            // As soon as that branch's data is here, and no sooner.
            head: state
                .head
                .clone()
                .filter(|head| state.oid_of(head).is_some()),
            expected: aim.map(|aim| aim.expected.clone()).unwrap_or_default(),
            incarnation: aim.map(|aim| aim.incarnation.clone()).unwrap_or_default(),
        };
        match self.git.align(repo, alignment.clone()).await {
            // It was soft-expired, or never made because the git storage was away.
            Err(GitError::NotFound) if aim.is_none() => {
                self.git.create(repo).await?;
                self.git.align(repo, alignment).await
            }
            result => result,
        }
    }

    /// Its git data is here: the announcement is served.
    async fn promote(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        let Some(entry) = self.purgatory.announcements.get(repo) else {
            return Ok(());
        };
        self.serve(&entry.announcement.event).await?;
        self.repositories.set(&entry.announcement, Standing::Active);
        self.purgatory.remove_announcement(repo);
        tracing::info!(%repo, "promoted");
        self.put_known_pull_requests(repo).await
    }

    /// Promotes a waiting announcement if its data came before it, by another's address.
    pub async fn promote_if_here(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        self.settle(repo, Standing::Waiting, None, None).await
    }

    /// Makes a served repository equal to its latest stored state, after a later one went.
    pub async fn realign(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        match self.latest_stored(repo).await? {
            Some(state) => Ok(self.align(repo, &state, None).await?),
            None => Ok(()),
        }
    }

    /// The refs of pull requests that were served before this repository was.
    async fn put_known_pull_requests(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        let coordinates = self
            .repositories
            .maintainers(repo)
            .into_iter()
            .map(|owner| {
                let identifier = repo.identifier.clone();
                RepoId { owner, identifier }.coordinate()
            });
        let filter = Filter::new()
            .kinds([nip34::PULL_REQUEST, nip34::PULL_REQUEST_UPDATE])
            .custom_tags(related::TO_ADDRESSES[0], coordinates)
            .limit(PULL_REQUESTS_OF_A_REPOSITORY);
        for event in self.store.query(filter).await? {
            let Ok(request) = PullRequest::read(Arc::new(event)) else {
                continue;
            };
            let Some(commit) = request.commit else {
                continue;
            };
            let name = RefName::nostr(&request.id());
            if let Err(error) = self.git.put_ref(repo, &name, commit, true).await {
                tracing::warn!(%repo, %name, %error, "a pull request's ref was not put");
            }
        }
        Ok(())
    }

    /// The repositories here that a pull request's ref belongs into, by identifier.
    fn wanting(&self, request: &PullRequest) -> BTreeMap<Identifier, BTreeSet<RepoId>> {
        let mut wanting: BTreeMap<Identifier, BTreeSet<RepoId>> = BTreeMap::new();
        for tagged in &request.repositories {
            let trusting = self
                .repositories
                .trusting(&tagged.identifier, &tagged.owner);
            let here = trusting
                .into_iter()
                .filter(|(_, standing)| standing.is_here());
            wanting
                .entry(tagged.identifier.clone())
                .or_default()
                .extend(here.map(|(repo, _)| repo));
        }
        wanting
    }

    /// Releases a pull request if its commit is here; says whether it is served. Commits pushed for
    /// it that it does not name lose their ref.
    pub async fn pull_request(&self, id: &EventId) -> Result<bool, ReleaseError> {
        let Some(entry) = self.purgatory.pull_requests.get(id) else {
            return Ok(false);
        };
        let Some(request) = &entry.request else {
            return Ok(false);
        };
        let name = RefName::nostr(id);
        self.refuse_other_commits(id, &name, &entry, request)
            .await?;
        let Some(commit) = request.commit else {
            return Ok(false);
        };
        for (repo, pushed) in &entry.pushed {
            if *pushed == commit {
                // Signed for now: what was staged belongs in the pool.
                match self.git.put_ref(repo, &name, commit, true).await {
                    Ok(()) | Err(GitError::NotFound) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let wanted = Wanted {
            oids: BTreeSet::new(),
            commits: BTreeSet::from([commit]),
        };
        let mut is_here = false;
        for (identifier, repos) in self.wanting(request) {
            if !self.absent(&identifier, &wanted).await?.is_empty() {
                continue;
            }
            is_here = true;
            for repo in repos {
                match self.git.put_ref(&repo, &name, commit, true).await {
                    Ok(()) | Err(GitError::NotFound) => {}
                    Err(error @ GitError::Unreachable(_)) => return Err(error.into()),
                    Err(error) => tracing::warn!(%repo, %name, %error, "a ref was not put"),
                }
            }
        }
        // What it was accepted for may have gone meanwhile.
        let none = BTreeSet::new();
        let repositories = &self.repositories;
        if !is_here
            || !related::is_related(&request.event, repositories, &self.store, &none).await?
        {
            return Ok(false);
        }
        self.serve(&request.event).await?;
        self.purgatory.remove_pull_request(id);
        Ok(true)
    }

    async fn refuse_other_commits(
        &self,
        id: &EventId,
        name: &RefName,
        entry: &pull_requests::Waiting,
        request: &PullRequest,
    ) -> Result<(), GitError> {
        let mut refused = Vec::new();
        for (repo, pushed) in &entry.pushed {
            if Some(*pushed) != request.commit {
                match self.git.delete_ref(repo, name).await {
                    Ok(()) | Err(GitError::NotFound) => refused.push(repo.clone()),
                    Err(error) => return Err(error),
                }
            }
        }
        if !refused.is_empty() {
            self.purgatory.pull_requests.unpushed(id, &refused);
        }
        Ok(())
    }

    /// The repositories a pull request without `a` tags of its own is offered to: those of the
    /// events it refers to.
    pub async fn offered_to(&self, request: &PullRequest) -> Result<BTreeSet<RepoId>, StoreError> {
        if !request.repositories.is_empty() {
            return Ok(request.repositories.clone());
        }
        let mut found = BTreeSet::new();
        for id in related::events(&request.event) {
            if let Some(event) = self.store.by_id(&id).await? {
                found.extend(pull_request::repositories(&event));
            }
        }
        Ok(found)
    }
}
