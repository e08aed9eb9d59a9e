//! The release of pull requests, and where their refs belong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use grasp_proto::words::{EventId, Identifier, Oid, RefName, RepoId};
use nostr::Filter;

use super::{Release, ReleaseError};
use crate::{
    git::GitError,
    meters,
    nip34::{
        self, Meaning,
        pull_request::{self, PullRequest},
    },
    policy::{related, satisfiable::Wanted},
    purgatory::pull_requests,
    store::StoreError,
};

/// Pull requests whose refs a repository is given when it is promoted.
const PULL_REQUESTS_OF_A_REPOSITORY: usize = 500;

impl Release {
    /// The refs of pull requests that were served before this repository was.
    pub(super) async fn put_known_pull_requests(&self, repo: &RepoId) -> Result<(), ReleaseError> {
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
        if let Some(waited) = self.purgatory.remove_pull_request(id) {
            let now = self.purgatory.now();
            meters::released("pull_requests", now.since(waited.created));
        }
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
