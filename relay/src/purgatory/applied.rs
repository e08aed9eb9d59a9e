//! Which state the refs of a repository were made equal to last. Kept so that refs are never moved back
//! because the author of that state is no maintainer any more.

use std::{cmp::Reverse, collections::BTreeSet};

use dashmap::DashMap;
use grasp_proto::words::{EventId, Npub, RepoId};

use super::{
    Purgatory,
    records::{APPLIED, RULE, repository_key},
    without,
};
use crate::{
    journal::{JournalError, Record, key},
    maintainers::MaintainerRule,
    nip34::state::State,
};

/// A state whose refs a repository shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedState {
    /// Its id.
    pub id: EventId,
    /// Its author.
    pub author: Npub,
    /// Its `created_at`, in seconds.
    pub created_at: u64,
}

impl AppliedState {
    /// Whether a state is later, by the one order ([`crate::nip34::later`]).
    pub fn is_before(&self, state: &State) -> bool {
        let other = Self::from(state);
        (self.created_at, Reverse(self.id)) < (other.created_at, Reverse(other.id))
    }
}

impl From<&State> for AppliedState {
    fn from(state: &State) -> Self {
        Self {
            id: state.id(),
            author: state.author,
            created_at: state.event.created_at.as_secs(),
        }
    }
}

/// The applied states, by repository and by id. One for each repository that is, or was, served.
#[derive(Debug, Default)]
pub(super) struct AppliedStates {
    by_repository: DashMap<RepoId, AppliedState>,
    by_id: DashMap<EventId, BTreeSet<RepoId>>,
}

impl AppliedStates {
    /// Puts one in; says whether that is new.
    pub(super) fn put(&self, repo: &RepoId, state: AppliedState) -> bool {
        let before = self.by_repository.insert(repo.clone(), state);
        if before == Some(state) {
            return false;
        }
        if let Some(before) = before {
            without(&self.by_id, before.id, repo);
        }
        let mut showing = self.by_id.entry(state.id).or_default();
        showing.insert(repo.clone());
        true
    }
}

impl Purgatory {
    /// The refs of a repository are as a state says. Kept soon: it is found again as long as the state
    /// counts.
    pub fn note_applied(&self, repo: &RepoId, state: &State) {
        let applied = AppliedState::from(state);
        if self.applied.put(repo, applied) {
            let record = Record::AppliedState {
                repository: repo.coordinate(),
                id: applied.id.to_hex(),
                author: applied.author.to_hex(),
                created_at: applied.created_at,
            };
            self.journal
                .keep_soon(repository_key(APPLIED, repo), &record);
        }
    }

    /// The state whose refs a repository shows.
    pub fn applied_state(&self, repo: &RepoId) -> Option<AppliedState> {
        self.applied.by_repository.get(repo).map(|one| *one)
    }

    /// The repositories that show the refs of a state.
    pub fn showing(&self, id: &EventId) -> BTreeSet<RepoId> {
        let showing = self.applied.by_id.get(id);
        showing.map(|all| all.value().clone()).unwrap_or_default()
    }

    /// A repository is gone.
    pub(crate) fn forget_applied(&self, repo: &RepoId) {
        if let Some((_, before)) = self.applied.by_repository.remove(repo) {
            without(&self.applied.by_id, before.id, repo);
            self.journal.forget(repository_key(APPLIED, repo));
        }
    }

    /// The rule of maintainers that what is served was decided by, if that was ever noted.
    pub fn maintainer_rule(&self) -> Option<MaintainerRule> {
        self.rule.get().copied()
    }

    /// What is served is decided by this rule from now on: durable when this returns, with all that
    /// was noted before.
    pub async fn keep_maintainer_rule(&self, rule: MaintainerRule) -> Result<(), JournalError> {
        let record = Record::MaintainerRule {
            rule: rule.word().to_owned(),
        };
        self.journal.keep(key(RULE, b""), &record).await
    }
}
