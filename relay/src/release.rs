//! The one release from purgatory, whoever caused it: a push, a fetch, an event, a restart.
//!
//! Always in this order: refs, then the store and its subscribers, then purgatory. After a crash
//! between any two steps the same call finishes the work. To be called in the queue of the
//! identifier only (see [`crate::serial`]).

mod authority;
mod pull_request;
mod stored;
mod turns;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use dashmap::DashMap;
use grasp_proto::{
    transport::Trace,
    words::{EventId, Identifier, Oid, RefName, RepoId},
};
use nostr::Event;

use crate::{
    git::{Alignment, Git, GitError},
    holding::Holding,
    journal::JournalError,
    live::Live,
    meters,
    nip34::{later, state::State},
    policy::{
        prs::Spaces,
        satisfiable::{Wanted, latest, satisfiable},
    },
    purgatory::Purgatory,
    repository::{Repositories, Standing},
    requests::{AgeingError, Requests},
    store::{Saved, Store, StoreError},
};

use stored::StoredFor;

pub use authority::ChangedSets;
pub use turns::{go_on, make_repository, release_identifier};

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

impl From<AgeingError> for ReleaseError {
    fn from(error: AgeingError) -> Self {
        match error {
            AgeingError::Store(error) => error.into(),
            AgeingError::Journal(error) => error.into(),
        }
    }
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
    /// Refs that it moved.
    pub moved: u32,
    /// More repositories want it than one turn has room for.
    pub more: Option<SoFar>,
}

impl Released {
    const NOTHING: Self = Self {
        served: false,
        moved: 0,
        more: None,
    };
}

/// How far the turns of a release came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoFar {
    /// The last repository that was seen to; `None`: only the one that was aimed at.
    behind: Option<RepoId>,
    /// Every one of them could be.
    all_settled: bool,
}

/// A release that goes on in another turn of the queue.
#[derive(Debug, Clone)]
pub struct GoOn {
    /// What is being released.
    pub state: State,
    /// How far it came; `None`: it is to begin.
    pub so_far: Option<SoFar>,
}

/// What a release of all that waits under an identifier leaves to be done.
#[derive(Debug, Clone, Default)]
pub struct Left {
    /// States that one turn has no room for, or whose repositories it has not.
    pub go_on: Vec<GoOn>,
    /// Events that could not be released though their data is here: they do not expire for that.
    pub failed: BTreeSet<EventId>,
}

/// Repositories that one turn of the queue aligns at most, so that a push waits for no more.
const ALIGNED_A_TURN: usize = 64;
/// Refs moved with which a turn has done enough: of a state of thousands it aligns one repository.
const REFS_A_TURN: u32 = 1000;
/// Objects asked for at once.
const OBJECTS_A_CALL: usize = 20_000;

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
    /// What is held for those who announce again.
    pub holding: Arc<Holding>,
    /// Requests to delete and to vanish.
    pub requests: Arc<Requests>,
    /// Those who are told.
    pub live: Arc<Live>,
    /// The addresses that contributors have here.
    pub spaces: Spaces,
    /// States whose release goes on in later turns, so that it does so once.
    pub going_on: Arc<DashMap<EventId, ()>>,
    /// Identifiers under which something failed that may succeed by itself: tried again by
    /// [`crate::sweep`]. As many as are announced.
    pub unfinished: Arc<DashMap<Identifier, ()>>,
}

impl Release {
    /// Something says that the data of what expired under an identifier may be there now: sync may bring
    /// it back at once.
    pub fn data_may_be_there(&self, identifier: &Identifier) {
        if self.purgatory.data_may_be_there(identifier) {
            tracing::debug!(%identifier, "what expired may come back");
            self.repositories.want_anew(identifier);
        }
    }

    /// gitd does not have a repository that was asked for. If it is served, that is seen to within seconds
    /// ([`crate::hunt::heal`]).
    pub fn is_missed(&self, repo: &RepoId) {
        if self.repositories.standing(repo) == Some(Standing::Active) {
            self.unfinished.insert(repo.identifier.clone(), ());
        }
    }

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
        if let Err(error) = self.bury_replaced(event).await {
            let id = event.id;
            tracing::error!(%id, %error, "what leans on the version before it may outlive its repository");
        }
        let saved = self.store.save(event).await?;
        if saved == Saved::New {
            self.live.publish(event);
        }
        Ok(saved)
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
            let found = self.git.absent(identifier, &oids, &commits).await?;
            absent.extend(found.0);
        }
        Ok(absent)
    }

    /// Releases whatever waits under an identifier and can be: states oldest first, then pull
    /// requests. One that cannot be released does not hold up the next. Gives the states that one turn has no
    /// room for.
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
        let (mut left, mut moved) = (Left::default(), 0_u32);
        for state in states {
            if !satisfiable(&state, &absent) {
                continue;
            }
            if moved >= REFS_A_TURN {
                let so_far = None;
                left.go_on.push(GoOn { state, so_far });
                continue;
            }
            match self.state(&state, None, None).await {
                Ok(released) => {
                    moved = moved.saturating_add(released.moved);
                    if released.more.is_some() {
                        let so_far = released.more;
                        left.go_on.push(GoOn { state, so_far });
                    }
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
    /// the latest authorised state, the one aimed at first, then its author's; promotes those that wait;
    /// serves it. What is too much for one turn is left to the next.
    ///
    /// A repository other than the one aimed at that cannot be aligned keeps the state in
    /// purgatory, served or not, so that it is tried again.
    pub async fn state(
        &self,
        state: &State,
        aim: Option<&Aim>,
        so_far: Option<&SoFar>,
    ) -> Result<Released, ReleaseError> {
        let (begun, span) = (Instant::now(), tracing::info_span!("release"));
        let released = Trace::within(span, self.release_state(state, aim, so_far)).await;
        meters::release_took(begun);
        released
    }

    async fn release_state(
        &self,
        state: &State,
        aim: Option<&Aim>,
        so_far: Option<&SoFar>,
    ) -> Result<Released, ReleaseError> {
        let trusting = self.repositories.trusting(&state.identifier, &state.author);
        if trusting.is_empty() {
            // Its author may be named again: authorisation is judged at release.
            return Ok(Released::NOTHING);
        }
        // A request that came meanwhile has its turn after this one, and no refs to move back then.
        if self.kept_out_by(&state.event).await?.is_some() {
            return Ok(Released::NOTHING);
        }
        let here = trusting.iter().filter(|(_, standing)| standing.is_here());
        let mut here: Vec<(RepoId, Standing)> = here.cloned().collect();
        let place = |repo: &RepoId| (repo.owner != state.author, repo.clone());
        here.sort_by_key(|(repo, _)| place(repo));
        if let Some(so_far) = so_far {
            let behind = so_far.behind.as_ref();
            here.retain(|(repo, _)| behind.is_none_or(|behind| place(repo) > place(behind)));
        }
        let mut is_last_turn = here.len() <= ALIGNED_A_TURN;
        here.truncate(ALIGNED_A_TURN);
        let mut moved = 0_u32;
        if let Some(aim) = aim {
            here.retain(|(repo, _)| *repo != aim.repo);
            if let Some(standing) = self.repositories.standing(&aim.repo) {
                let stored = self.stored_for([&aim.repo]).await?;
                moved = self
                    .settle(&aim.repo, standing, Some(state), Some(aim), &stored)
                    .await?;
            }
        }
        let stored = self.stored_for(here.iter().map(|(repo, _)| repo)).await?;
        let mut all_settled = so_far.is_none_or(|so_far| so_far.all_settled);
        let mut last_error = None;
        let mut settled = usize::from(aim.is_some() || so_far.is_some());
        let mut behind = so_far.and_then(|so_far| so_far.behind.clone());
        for (repo, standing) in here {
            if moved >= REFS_A_TURN {
                is_last_turn = false;
                break;
            }
            match self
                .settle(&repo, standing, Some(state), None, &stored)
                .await
            {
                Ok(refs) => {
                    settled += 1;
                    moved = moved.saturating_add(refs);
                }
                Err(error) if error.is_unreachable() => return Err(error),
                Err(error) => {
                    all_settled = false;
                    self.note(&repo.identifier, &error, "a repository was not aligned");
                    last_error = Some(error);
                }
            }
            behind = Some(repo);
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
            self.drop_superseded(state);
            if all_settled
                && is_last_turn
                && let Some(waited) = self.purgatory.remove_state(&state.id())
            {
                let now = self.purgatory.now();
                meters::released("states", now.since(waited.created));
            }
        }
        let more = (!is_last_turn).then_some(SoFar {
            behind,
            all_settled,
        });
        Ok(Released {
            served,
            moved,
            more,
        })
    }

    /// Earlier versions of a state that is served wait for nothing: they will never be served, and
    /// nothing is to be looked for on their account.
    fn drop_superseded(&self, served: &State) {
        let states = &self.purgatory.states;
        for waiting in states.by_author(&served.identifier, &served.author) {
            if later(&waiting.state.event, &served.event).is_lt() {
                self.purgatory.remove_state(&waiting.state.id());
            }
        }
    }

    /// Whether a state waits or is served.
    async fn is_kept(&self, id: &EventId) -> Result<bool, StoreError> {
        Ok(self.purgatory.states.get(id).is_some() || self.store.has(id).await?)
    }

    /// Makes a repository equal to its latest authorised state, among the stored ones and the one
    /// being released, and promotes its announcement if that names something. Gives how many refs moved.
    async fn settle(
        &self,
        repo: &RepoId,
        standing: Standing,
        releasing: Option<&State>,
        aim: Option<&Aim>,
        stored: &StoredFor,
    ) -> Result<u32, ReleaseError> {
        let latest_stored = stored.latest(repo);
        let Some(target) = latest(latest_stored.into_iter().chain(releasing.cloned())) else {
            return Ok(0);
        };
        let is_new = releasing.is_some_and(|state| state.id() == target.id());
        if !is_new && standing == Standing::Active {
            return Ok(0);
        }
        if self.retains_a_later_state(repo, &target).await? {
            return Ok(0);
        }
        let moved = self.align(repo, &target, aim).await?;
        if standing == Standing::Waiting && target.names_something() {
            self.promote(repo, stored).await?;
        }
        Ok(moved)
    }

    async fn align(
        &self,
        repo: &RepoId,
        state: &State,
        aim: Option<&Aim>,
    ) -> Result<u32, GitError> {
        let alignment = Alignment {
            refs: state
                .objects()
                .map(|(name, oid)| (name.clone(), oid))
                .collect(),
            head: state.default_branch().cloned(),
            expected: aim.map(|aim| aim.expected.clone()).unwrap_or_default(),
            incarnation: aim.map(|aim| aim.incarnation.clone()).unwrap_or_default(),
        };
        let moved = match self.git.align(repo, alignment.clone()).await {
            // It was soft-expired, or never made because the git storage was away.
            Err(GitError::NotFound) if aim.is_none() => {
                self.make(repo).await?;
                self.git.align(repo, alignment).await?
            }
            result => result?,
        };
        self.purgatory.note_applied(repo, state);
        Ok(moved)
    }

    /// Its git data is here: the announcement is served.
    async fn promote(&self, repo: &RepoId, stored: &StoredFor) -> Result<(), ReleaseError> {
        let Some(entry) = self.purgatory.announcements.get(repo) else {
            return Ok(());
        };
        self.put_stored_pull_requests(repo, stored).await?;
        // Whatever was to go under this name before, this is to stay.
        self.purgatory.undoom(repo);
        self.serve(&entry.announcement.event).await?;
        self.repositories.set(&entry.announcement, Standing::Active);
        self.purgatory.remove_announcement(repo);
        self.holding.returns(repo);
        metrics::counter!("ngit_purgatory_promoted_total").increment(1);
        let waited = self.purgatory.now().since(entry.created);
        meters::released("announcements", waited);
        tracing::info!(%repo, "promoted");
        Ok(())
    }

    /// Promotes a waiting announcement if its data came before it, by another's address.
    pub async fn promote_if_here(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        let stored = self.stored_for([repo]).await?;
        self.settle(repo, Standing::Waiting, None, None, &stored)
            .await?;
        Ok(())
    }
}
