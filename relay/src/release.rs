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
    journal::JournalError,
    live::Live,
    nip34::{
        self, Meaning, later,
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
    /// The purgatory journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl ReleaseError {
    /// Whether the same may succeed by itself later.
    pub fn may_pass(&self) -> bool {
        self.is_unreachable() || !matches!(self, Self::Git(_))
    }

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
    /// More repositories want it than one turn has room for.
    pub more: Option<SoFar>,
}

/// How far the turns of a release came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoFar {
    /// The last repository that was seen to.
    behind: RepoId,
    /// Every one of them could be.
    all_settled: bool,
}

/// A release that goes on in another turn of the queue.
#[derive(Debug, Clone)]
pub struct GoOn {
    /// What is being released.
    pub state: State,
    /// How far it came.
    pub so_far: SoFar,
}

/// What a release of all that waits under an identifier leaves to be done.
#[derive(Debug, Clone, Default)]
pub struct Left {
    /// States that more repositories want than one turn has room for.
    pub go_on: Vec<GoOn>,
    /// Events that could not be released though their data is here: they do not expire for that.
    pub failed: BTreeSet<EventId>,
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
    /// States whose release goes on in later turns, so that it does so once.
    pub going_on: Arc<DashMap<EventId, ()>>,
    /// Identifiers under which something failed that may succeed by itself: tried again by
    /// [`crate::sweep`]. As many as are announced.
    pub unfinished: Arc<DashMap<Identifier, ()>>,
}

impl Release {
    /// Says why something under an identifier was not done, and has it tried again if that may
    /// help.
    pub fn note(&self, identifier: &Identifier, error: &ReleaseError, what: &str) {
        // A git storage that failed, rather than not answered, fails again: what waits is tried with
        // the next event, push or sweep.
        if error.may_pass() {
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
    pub async fn identifier(&self, identifier: &Identifier) -> Result<Left, ReleaseError> {
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
        let mut left = Left::default();
        for state in states {
            if !satisfiable(&state, &absent) {
                continue;
            }
            match self.state(&state, None, None).await {
                Ok(Released { more, .. }) => {
                    left.go_on.extend(more.map(|so_far| GoOn { state, so_far }));
                }
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => {
                    left.failed.insert(state.id());
                    self.note(identifier, &error, "a state stays in purgatory");
                }
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
                Err(error) => {
                    left.failed.insert(id);
                    self.note(identifier, &error, "a pull request stays in purgatory");
                }
            }
        }
        Ok(left)
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
        so_far: Option<&SoFar>,
    ) -> Result<Released, ReleaseError> {
        let trusting = self.repositories.trusting(&state.identifier, &state.author);
        if trusting.is_empty() {
            // Its author may be named again: authorisation is judged at release.
            return Ok(Released {
                served: false,
                more: None,
            });
        }
        let here = trusting.iter().filter(|(_, standing)| standing.is_here());
        let mut here: Vec<(RepoId, Standing)> = here.cloned().collect();
        here.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(so_far) = so_far {
            here.retain(|(repo, _)| *repo > so_far.behind);
        }
        let is_last_turn = here.len() <= ALIGNED_A_TURN;
        here.truncate(ALIGNED_A_TURN);
        let last = here.last().map(|(repo, _)| repo.clone());
        if let Some(aim) = aim {
            here.retain(|(repo, _)| *repo != aim.repo);
            if let Some(standing) = self.repositories.standing(&aim.repo) {
                self.settle(&aim.repo, standing, Some(state), Some(aim))
                    .await?;
            }
        }
        let mut all_settled = so_far.is_none_or(|so_far| so_far.all_settled);
        let mut last_error = None;
        let mut settled = usize::from(aim.is_some() || so_far.is_some());
        for (repo, standing) in here {
            match self.settle(&repo, standing, Some(state), None).await {
                Ok(()) => settled += 1,
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => {
                    all_settled = false;
                    self.note(&repo.identifier, &error, "a repository was not aligned");
                    last_error = Some(error);
                }
            }
        }
        // Served only where its refs have moved.
        if let Some(error) = last_error.filter(|_| settled == 0) {
            return Err(error);
        }
        let served = trusting.iter().any(|(repo, _)| {
            let standing = self.repositories.standing(repo);
            standing.is_some_and(Standing::is_served)
        });
        if served {
            self.serve(&state.event).await?;
            if all_settled && is_last_turn {
                self.purgatory.remove_state(&state.id());
            }
        }
        let more = last.filter(|_| !is_last_turn).map(|behind| SoFar {
            behind,
            all_settled,
        });
        Ok(Released { served, more })
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
        self.put_known_pull_requests(repo).await?;
        // Whatever was to go under this name before, this is to stay.
        self.purgatory.undoom(repo);
        self.serve(&entry.announcement.event).await?;
        self.repositories.set(&entry.announcement, Standing::Active);
        self.purgatory.remove_announcement(repo);
        metrics::counter!("ngit_purgatory_promoted_total").increment(1);
        tracing::info!(%repo, "promoted");
        Ok(())
    }

    /// Promotes a waiting announcement if its data came before it, by another's address.
    pub async fn promote_if_here(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        self.settle(repo, Standing::Waiting, None, None).await
    }

    /// Makes a served repository equal to its latest stored state, after a later one went or its
    /// maintainers changed.
    pub async fn realign(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        match self.latest_stored(repo).await? {
            Some(state) => Ok(self.align(repo, &state, None).await?),
            None => Ok(()),
        }
    }

    /// After the maintainers an owner names have changed: whoever trusts that owner may have
    /// another latest state now.
    pub async fn maintainers_changed(&self, trusting: Vec<(RepoId, Standing)>) {
        for (repo, _) in trusting {
            let result = match self.repositories.standing(&repo) {
                Some(Standing::Active) => self.realign(&repo).await,
                Some(Standing::Waiting) => self.promote_if_here(&repo).await,
                _ => Ok(()),
            };
            if let Err(error) = result {
                self.note(&repo.identifier, &error, "a repository was not aligned");
            }
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
            match self.git.put_ref(repo, &name, commit, true).await {
                Err(error @ (GitError::Unreachable(_) | GitError::Failed(_))) => {
                    return Err(error.into());
                }
                Err(error) => tracing::warn!(%repo, %name, %error, "a ref was not put"),
                Ok(()) => {}
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

    /// The event a commit waits for may be served already: released under another identifier, or
    /// just before the process ended.
    async fn served_request(&self, id: &EventId) -> Result<Option<PullRequest>, StoreError> {
        let stored = self.store.by_id(id).await?;
        let request = stored.and_then(|event| PullRequest::read(Arc::new(event)).ok());
        match request {
            Some(mut request) if Meaning::of(request.event.kind) == Meaning::PullRequest => {
                request.repositories = self.offered_to(&request).await?;
                Ok(Some(request))
            }
            _ => Ok(None),
        }
    }

    /// Releases a pull request if its commit is here; says whether it is served. Commits pushed for
    /// it that it does not name lose their ref.
    pub async fn pull_request(&self, id: &EventId) -> Result<bool, ReleaseError> {
        let Some(entry) = self.purgatory.pull_requests.get(id) else {
            return Ok(false);
        };
        let request = match &entry.request {
            Some(request) => Some(request.clone()),
            None => self.served_request(id).await?,
        };
        let Some(request) = request else {
            return Ok(false);
        };
        let name = RefName::nostr(id);
        self.refuse_other_commits(id, &name, &entry, &request)
            .await?;
        // What it was accepted for may have gone meanwhile.
        let none = BTreeSet::new();
        let is_related =
            related::is_related(&request.event, &self.repositories, &self.store, &none);
        let Some(commit) = request.commit else {
            return Ok(false);
        };
        if !is_related.await? {
            return Ok(false);
        }
        for (repo, pushed) in &entry.pushed {
            if *pushed == commit {
                // Signed for now: what was staged belongs in the pool.
                self.put_ref(repo, &name, commit).await?;
            }
        }
        let wanted = Wanted {
            oids: BTreeSet::new(),
            commits: BTreeSet::from([commit]),
        };
        let mut is_here = false;
        for (identifier, repos) in self.wanting(&request) {
            if !self.absent(&identifier, &wanted).await?.is_empty() {
                continue;
            }
            is_here = true;
            for repo in repos {
                self.put_ref(&repo, &name, commit).await?;
            }
        }
        if !is_here {
            return Ok(false);
        }
        self.serve(&request.event).await?;
        self.purgatory.remove_pull_request(id);
        Ok(true)
    }

    /// Puts the ref of a signed pull request. A repository that cannot take it keeps no other from
    /// having it; only a git storage that does not answer ends the release.
    async fn put_ref(&self, repo: &RepoId, name: &RefName, commit: Oid) -> Result<(), GitError> {
        match self.git.put_ref(repo, name, commit, true).await {
            Err(error @ GitError::Unreachable(_)) => Err(error),
            Err(GitError::NotFound) | Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(%repo, %name, %error, "a ref was not put");
                Ok(())
            }
        }
    }

    /// Takes away the refs of a pull request that is served or waits no more.
    pub async fn take_refs_away(&self, id: &EventId, repos: impl IntoIterator<Item = RepoId>) {
        let name = RefName::nostr(id);
        for repo in repos {
            match self.git.delete_ref(&repo, &name).await {
                Ok(()) | Err(GitError::NotFound) => {}
                Err(error) => tracing::warn!(%repo, %name, %error, "a ref is still there"),
            }
        }
    }

    /// The repositories here that have, or would have, the ref of a pull request.
    pub async fn repositories_of(&self, request: &PullRequest) -> Vec<RepoId> {
        let mut offered = request.clone();
        if let Ok(repositories) = self.offered_to(request).await {
            offered.repositories = repositories;
        }
        self.wanting(&offered).into_values().flatten().collect()
    }

    async fn refuse_other_commits(
        &self,
        id: &EventId,
        name: &RefName,
        entry: &pull_requests::Waiting,
        request: &PullRequest,
    ) -> Result<(), ReleaseError> {
        let mut refused = Vec::new();
        for (repo, pushed) in &entry.pushed {
            if Some(*pushed) != request.commit {
                match self.git.delete_ref(repo, name).await {
                    Err(error @ GitError::Unreachable(_)) => return Err(error.into()),
                    Ok(()) | Err(_) => refused.push(repo.clone()),
                }
            }
        }
        if !refused.is_empty() {
            self.purgatory.unpushed(id, &refused).await?;
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
