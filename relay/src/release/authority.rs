//! Whose state holds the refs of a repository, and what follows when its maintainers change.
//!
//! A loss of authority never moves refs back: a state that was applied while its author was a maintainer
//! stays, though its author is none any more, until a later one by somebody who is – also when its
//! author deletes it then. What the operator's lists withhold does not stay by that.

use std::sync::Arc;

use grasp_proto::words::{Identifier, RepoId};

use super::{ALIGNED_A_TURN, REFS_A_TURN, Release, ReleaseError, stored::StoredFor};
use crate::{
    nip34::state::State, policy::satisfiable::latest, purgatory::applied::AppliedState,
    repository::Standing, store::StoreError,
};

/// How far ahead of the clock a state may have been made to stay without its author's authority, in seconds.
const AHEAD: u64 = 15 * 60;

/// What came of sets of maintainers that have changed.
#[derive(Debug, Clone, Copy)]
pub struct ChangedSets {
    /// Some had.
    pub any: bool,
    /// A state waits that counts for one of them, perhaps since now.
    pub may_release: bool,
}

impl Release {
    /// The latest stored state that is authorised for a repository.
    pub async fn latest_stored(&self, repo: &RepoId) -> Result<Option<State>, StoreError> {
        let authors = self.repositories.maintainers(repo);
        let stored = self.store.states(authors, &repo.identifier).await?;
        let stored = stored.into_iter().map(Arc::new);
        Ok(latest(stored.filter_map(|event| State::read(event).ok())))
    }

    /// The state whose refs a served repository shows though its author is no maintainer any more.
    pub async fn retained_state(&self, repo: &RepoId) -> Result<Option<AppliedState>, StoreError> {
        if self.repositories.standing(repo) != Some(Standing::Active) {
            return Ok(None);
        }
        let Some(applied) = self.purgatory.applied_state(repo) else {
            return Ok(None);
        };
        if self.repositories.is_maintainer(repo, &applied.author) {
            return Ok(None);
        }
        // Nobody could sign a later one.
        if applied.created_at > self.purgatory.wall().as_secs().saturating_add(AHEAD) {
            return Ok(None);
        }
        let is_withheld =
            self.store.apart().has(&applied.id).await? && !self.store.has(&applied.id).await?;
        Ok((!is_withheld).then_some(applied))
    }

    /// Whether a served repository keeps the refs that it has, since they are those of such a state and
    /// `state` is not later.
    pub async fn retains_a_later_state(
        &self,
        repo: &RepoId,
        state: &State,
    ) -> Result<bool, StoreError> {
        let retained = self.retained_state(repo).await?;
        Ok(retained.is_some_and(|retained| !retained.is_before(state)))
    }

    /// Makes a served repository equal to its latest stored state, after a later one went or its
    /// maintainers changed.
    pub async fn realign(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        match self.latest_stored(repo).await? {
            Some(state) => self.realign_to(repo, &state).await.map(drop),
            None => Ok(()),
        }
    }

    /// Gives how many refs moved.
    async fn realign_to(&self, repo: &RepoId, state: &State) -> Result<u32, ReleaseError> {
        match self.retains_a_later_state(repo, state).await? {
            true => Ok(0),
            false => Ok(self.align(repo, state, None).await?),
        }
    }

    /// After a state went: those for whom it was the latest may have another now. Those there is no room
    /// for in this turn have theirs soon.
    pub async fn realign_all(&self, mut trusting: Vec<(RepoId, Standing)>) {
        trusting.retain(|(_, standing)| standing.is_here());
        if let Some((repo, _)) = trusting.get(ALIGNED_A_TURN) {
            self.unfinished.insert(repo.identifier.clone(), ());
        }
        trusting.truncate(ALIGNED_A_TURN);
        let repos: Vec<RepoId> = trusting.into_iter().map(|(repo, _)| repo).collect();
        let left = self.judge_again(&repos).await;
        if let Some(repo) = left.first() {
            self.unfinished.insert(repo.identifier.clone(), ());
        }
    }

    /// Judges every repository under an identifier again whose maintainers have changed, whatever changed
    /// them. Those there is no room for in this turn have theirs soon ([`crate::sweep`]).
    pub async fn judge_changed_sets(&self, identifier: &Identifier) -> ChangedSets {
        let (changed, mut is_more) = self.repositories.take_changed(identifier, ALIGNED_A_TURN);
        let mut may_release = false;
        let left = self.judge_again(&changed).await;
        if !left.is_empty() {
            self.repositories.leave_changed(identifier, left);
            is_more = true;
        }
        for repo in &changed {
            may_release |= self.authorises_what_waits(repo);
        }
        if is_more {
            self.unfinished.insert(identifier.clone(), ());
        }
        ChangedSets {
            any: !changed.is_empty(),
            may_release,
        }
    }

    /// The same; a state that waits and counts by that has its turn soon.
    pub async fn judge_changed_sets_and_release_later(&self, identifier: &Identifier) {
        if self.judge_changed_sets(identifier).await.may_release {
            self.unfinished.insert(identifier.clone(), ());
        }
    }

    /// Whether a state waits that counts for a repository.
    pub(crate) fn authorises_what_waits(&self, repo: &RepoId) -> bool {
        let states = &self.purgatory.states;
        if !states.waits_under(&repo.identifier) {
            return false;
        }
        let mut authors = self.repositories.maintainers(repo).into_iter();
        authors.any(|author| !states.by_author(&repo.identifier, &author).is_empty())
    }

    /// Judges repositories of one identifier again. Gives those that this turn has no room for.
    async fn judge_again<'a>(&self, repos: &'a [RepoId]) -> &'a [RepoId] {
        let Some(first) = repos.first() else {
            return &[];
        };
        let what = "a repository was not aligned";
        let stored = match self.stored_for(repos).await {
            Ok(stored) => stored,
            Err(error) => {
                self.note(&first.identifier, &error.into(), what);
                return &[];
            }
        };
        let mut moved = 0_u32;
        for (at, repo) in repos.iter().enumerate() {
            if moved >= REFS_A_TURN {
                return &repos[at..];
            }
            let result = match self.repositories.standing(repo) {
                Some(Standing::Active) => self.judge_served(repo, &stored).await,
                Some(standing @ Standing::Waiting) => {
                    self.settle(repo, standing, None, None, &stored).await
                }
                _ => Ok(0),
            };
            match result {
                Ok(refs) => moved = moved.saturating_add(refs),
                Err(error) => self.note(&repo.identifier, &error, what),
            }
        }
        &[]
    }

    async fn judge_served(&self, repo: &RepoId, stored: &StoredFor) -> Result<u32, ReleaseError> {
        let shown = self.purgatory.applied_state(repo);
        let (latest, mut moved) = (stored.latest(repo), 0);
        // Of a thousand that one announcement changes the sets of, few show other refs for it.
        if let Some(state) = latest.filter(|state| shown != Some(AppliedState::from(state))) {
            moved = self.realign_to(repo, &state).await?;
        }
        self.put_stored_pull_requests(repo, stored).await?;
        Ok(moved)
    }
}
