//! What is stored that counts for repositories of one identifier, read once for all of them: one
//! announcement may change the sets of hundreds, each of which has hundreds of maintainers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use grasp_proto::words::{Identifier, Npub, RepoId};
use nostr::Filter;

use super::Release;
use crate::{
    nip34::{self, pull_request::PullRequest, state::State},
    policy::{related, satisfiable::latest},
    store::StoreError,
};

/// Served pull requests looked through for one repository.
const PULL_REQUESTS_OF_A_REPOSITORY: usize = 500;

/// States and pull requests that are served, for some repositories of an identifier. It is of its moment:
/// for one turn of the queue.
#[derive(Debug, Default)]
pub(crate) struct StoredFor {
    maintainers: BTreeMap<RepoId, BTreeSet<Npub>>,
    states: Vec<State>,
    requests: Vec<PullRequest>,
}

impl StoredFor {
    /// The latest state that counts for one of the repositories.
    pub(crate) fn latest(&self, repo: &RepoId) -> Option<State> {
        let authors = self.maintainers.get(repo)?;
        let states = self.states.iter();
        latest(
            states
                .filter(|state| authors.contains(&state.author))
                .cloned(),
        )
    }

    /// The pull requests that are offered to one of the repositories, or to one of its maintainers'.
    pub(crate) fn requests(&self, repo: &RepoId) -> impl Iterator<Item = &PullRequest> {
        let authors = self.maintainers.get(repo);
        let is_to_it = move |offered: &RepoId| {
            offered.identifier == repo.identifier
                && (offered.owner == repo.owner
                    || authors.is_some_and(|authors| authors.contains(&offered.owner)))
        };
        let requests = self.requests.iter();
        requests.filter(move |request| request.repositories.iter().any(is_to_it))
    }
}

impl Release {
    /// Reads what counts for these repositories, all of one identifier.
    pub(crate) async fn stored_for(
        &self,
        repos: impl IntoIterator<Item = &RepoId>,
    ) -> Result<StoredFor, StoreError> {
        let repos = repos.into_iter();
        let maintainers: BTreeMap<RepoId, BTreeSet<Npub>> = repos
            .map(|repo| (repo.clone(), self.repositories.maintainers(repo)))
            .collect();
        let Some(identifier) = maintainers.keys().next().map(|repo| &repo.identifier) else {
            return Ok(StoredFor::default());
        };
        let authors: BTreeSet<Npub> = maintainers.values().flatten().copied().collect();
        let owners = maintainers.keys().map(|repo| repo.owner);
        let requests = authors.iter().copied().chain(owners).collect();
        let requests = self.requests_to(requests, identifier, maintainers.len());
        let requests = requests.await?;
        let states = self.store.states(authors, identifier).await?;
        let states = states.into_iter().map(Arc::new);
        Ok(StoredFor {
            states: states.filter_map(|event| State::read(event).ok()).collect(),
            requests,
            maintainers,
        })
    }

    async fn requests_to(
        &self,
        owners: BTreeSet<Npub>,
        identifier: &Identifier,
        repos: usize,
    ) -> Result<Vec<PullRequest>, StoreError> {
        let coordinates = owners.into_iter().map(|owner| {
            let identifier = identifier.clone();
            RepoId { owner, identifier }.coordinate()
        });
        let filter = Filter::new()
            .kinds([nip34::PULL_REQUEST, nip34::PULL_REQUEST_UPDATE])
            .custom_tags(related::TO_ADDRESSES[0], coordinates)
            .limit(PULL_REQUESTS_OF_A_REPOSITORY.saturating_mul(repos));
        let stored = self.store.query(filter).await?.into_iter();
        let read = |event| PullRequest::read(Arc::new(event)).ok();
        Ok(stored.filter_map(read).collect())
    }
}
