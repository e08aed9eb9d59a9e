//! The release of pull requests, and where their refs belong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use grasp_proto::words::{Address, EventId, Identifier, Oid, RefKind, RefName, RepoId};

use super::{Release, ReleaseError, stored::StoredFor};
use crate::{
    git::GitError,
    meters,
    nip34::{
        Meaning,
        pull_request::{self, PullRequest},
    },
    policy::{related, satisfiable::Wanted},
    purgatory::pull_requests,
    repository::Standing,
    store::StoreError,
};

/// Identifiers to which the commit of one pull request is copied.
const IDENTIFIERS: usize = 16;

/// Where the refs of a pull request are now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PutRefs {
    /// The pool of one of the repositories has its commit.
    pub(crate) any: bool,
    /// Each has it to which it is to be copied.
    pub(crate) all: bool,
}

impl Release {
    /// The refs of pull requests that were served before this repository was, or before its maintainers
    /// were who they are.
    pub(crate) async fn put_known_pull_requests(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        let stored = self.stored_for([repo]).await?;
        self.put_stored_pull_requests(repo, &stored).await
    }

    /// The same of what was read.
    pub(super) async fn put_stored_pull_requests(
        &self,
        repo: &RepoId,
        stored: &StoredFor,
    ) -> Result<(), ReleaseError> {
        let address = Address::from(repo);
        let is_served = self.repositories.standing(repo) == Some(Standing::Active);
        for request in stored.requests(repo) {
            if is_served && self.purgatory.places.of(&request.id()).contains(&address) {
                continue;
            }
            let here = BTreeMap::from([(repo.identifier.clone(), BTreeSet::from([repo.clone()]))]);
            self.put_refs(request, here, None).await?;
        }
        Ok(())
    }

    /// The repositories that a pull request's ref belongs into, by identifier: those that are here and
    /// that it is offered to, or whose maintainers include an owner it is offered to; if it
    /// `is_served_only`, the served ones.
    pub(crate) fn wanting(
        &self,
        request: &PullRequest,
        is_served_only: bool,
    ) -> BTreeMap<Identifier, BTreeSet<RepoId>> {
        let mut wanting: BTreeMap<Identifier, BTreeSet<RepoId>> = BTreeMap::new();
        let is_wanting = |standing: Standing| match is_served_only {
            true => standing == Standing::Active,
            false => standing.is_here(),
        };
        for tagged in &request.repositories {
            let own = self.repositories.standing(tagged);
            let trusting = self
                .repositories
                .trusting(&tagged.identifier, &tagged.owner);
            let here = own
                .map(|standing| (tagged.clone(), standing))
                .into_iter()
                .chain(trusting)
                .filter(|(_, standing)| is_wanting(*standing));
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

    /// Whether a pull request belongs to something that is served here.
    pub async fn is_related(&self, request: &PullRequest) -> Result<bool, StoreError> {
        related::is_related(&request.event, &self.repositories, &self.store).await
    }

    /// Releases a pull request if its commit is here; says whether it is served. Commits pushed for
    /// it that it does not name, or to a space that it does not name, lose their ref.
    ///
    /// One that belongs to nothing served here is released by a push to its author's own space alone.
    /// There is only ever what was pushed there: what came in another way is not put there.
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
        if request.has_expired(self.purgatory.now()) {
            if self.take_refs_away(id, entry.pushed.into_keys()).await {
                self.purgatory.remove_pull_request(id);
            }
            return Ok(false);
        }
        self.refuse_what_differs(id, &entry, &request).await?;
        let Some(commit) = request.commit else {
            return Ok(false);
        };
        // What it was accepted for may have gone meanwhile.
        let is_related = self.is_related(&request).await?;
        if !is_related && !self.spaces.is_on() {
            return Ok(false);
        }
        // Were they still to go for an earlier end of it, they are to stay now.
        self.purgatory.refs_gone(id);
        let named = self.spaces.named_by(&request.event);
        let (mut is_here, mut source) = (false, None);
        let mut idle: BTreeSet<Address> = BTreeSet::new();
        for (address, pushed) in &entry.pushed {
            let counts = match address.is_prs() {
                true => named.contains(&address.repo),
                false => is_related,
            };
            if !counts || !pushed.contains(&commit) {
                idle.insert(address.clone());
                continue;
            }
            // Signed for now: what was staged belongs in the pool.
            let put = self.put_ref(address, id, commit).await?;
            if put {
                is_here |= address.is_prs();
                source = Some(address.identifier().clone());
            }
        }
        if !is_related && !is_here {
            return Ok(false);
        }
        let wanting = self.wanting(&request, !is_related);
        for repo in wanting.values().flatten() {
            idle.remove(&Address::from(repo));
        }
        let put = self.put_refs(&request, wanting, source).await?;
        is_here |= put.any;
        if !is_here {
            return Ok(false);
        }
        self.serve(&request.event).await?;
        // Nobody would know of them any more. What stays is tried again while this waits.
        let all_gone = self.take_pushed_away(id, idle).await?;
        if !all_gone || !put.all {
            return Ok(true);
        }
        if let Some(waited) = self.purgatory.remove_pull_request(id) {
            let now = self.purgatory.now();
            meters::released("pull_requests", now.since(waited.created));
        }
        Ok(true)
    }

    /// Puts the ref of a pull request into these repositories. Into a pool that lacks its commit, that is
    /// copied from `source`, or from whichever it is offered to and has it; one to which it cannot be
    /// copied now keeps no other from having it.
    pub(crate) async fn put_refs(
        &self,
        request: &PullRequest,
        wanting: BTreeMap<Identifier, BTreeSet<RepoId>>,
        mut source: Option<Identifier>,
    ) -> Result<PutRefs, ReleaseError> {
        let mut done = PutRefs {
            any: false,
            all: true,
        };
        let Some(commit) = request.commit else {
            return Ok(done);
        };
        let (id, mut lacking) = (request.id(), Vec::new());
        for (identifier, repos) in wanting {
            if !self.has_commit(&identifier, commit).await? {
                // Where its ref was before it went with the repository, it has its commit, and nobody else.
                let mut is_back = false;
                for repo in &repos {
                    is_back |= self.put_ref_back(&repo.into(), &id, commit).await?;
                }
                match is_back {
                    true => {
                        done.any = true;
                        source.get_or_insert(identifier);
                    }
                    false => lacking.push((identifier, repos)),
                }
                continue;
            }
            done.any |= repos.is_empty();
            for repo in repos {
                done.any |= self.put_ref(&repo.into(), &id, commit).await?;
            }
            source.get_or_insert(identifier);
        }
        if !lacking.is_empty() && source.is_none() {
            for identifier in request.identifiers().into_iter().take(IDENTIFIERS) {
                if self.has_commit(&identifier, commit).await? {
                    source = Some(identifier);
                    break;
                }
            }
        }
        let Some(source) = source else {
            return Ok(done);
        };
        for (identifier, repos) in lacking.into_iter().take(IDENTIFIERS) {
            if let Err(error) = self.git.copy(&source, &identifier, commit).await {
                tracing::warn!(%identifier, %id, %error, "a pull request is not there yet");
                done.all = false;
                continue;
            }
            done.any |= repos.is_empty();
            for repo in repos {
                done.any |= self.put_ref(&repo.into(), &id, commit).await?;
            }
        }
        Ok(done)
    }

    async fn has_commit(&self, identifier: &Identifier, commit: Oid) -> Result<bool, GitError> {
        let wanted = Wanted {
            oids: BTreeSet::new(),
            commits: BTreeSet::from([commit]),
        };
        Ok(self.absent(identifier, &wanted).await?.is_empty())
    }

    /// Puts the ref of a signed pull request; says whether it is there now. A repository that cannot
    /// take it keeps no other from having it; only a git storage that does not answer ends the release.
    pub(crate) async fn put_ref(
        &self,
        address: &Address,
        id: &EventId,
        commit: Oid,
    ) -> Result<bool, ReleaseError> {
        match self.try_to_put_ref(address, id, commit).await? {
            Err(error) if !matches!(error, GitError::NotFound) => {
                tracing::warn!(repo = %address, %id, %error, "a ref was not put");
                Ok(false)
            }
            put => Ok(put.is_ok()),
        }
    }

    /// The same where its commit is not here to others: of one that a repository had when it was moved aside.
    async fn put_ref_back(
        &self,
        address: &Address,
        id: &EventId,
        commit: Oid,
    ) -> Result<bool, ReleaseError> {
        Ok(self.try_to_put_ref(address, id, commit).await?.is_ok())
    }

    async fn try_to_put_ref(
        &self,
        address: &Address,
        id: &EventId,
        commit: Oid,
    ) -> Result<Result<(), GitError>, ReleaseError> {
        // Noted before it is there.
        let is_new = self.purgatory.keep_place(id, address).await?;
        let name = RefName::nostr(id);
        let put = self.git.put_ref(address, &name, commit, true).await;
        match &put {
            Err(GitError::Unreachable(_)) => put.map(Ok).map_err(Into::into),
            Err(GitError::NotFound | GitError::Refused(_)) => {
                if is_new {
                    self.purgatory.forget_place(id, address);
                }
                Ok(put)
            }
            _ => Ok(put),
        }
    }

    /// Takes away one ref of a pull request; one that is not there is gone.
    pub async fn take_ref_away(&self, address: &Address, id: &EventId) -> Result<(), GitError> {
        match self.git.delete_ref(address, &RefName::nostr(id)).await {
            Ok(()) | Err(GitError::NotFound) => {
                self.purgatory.forget_place(id, address);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes away the refs of a pull request that is served or waits no more: those in `places`, and
    /// all that are noted; says whether all have gone.
    pub async fn take_refs_away(
        &self,
        id: &EventId,
        places: impl IntoIterator<Item = impl Into<Address>>,
    ) -> bool {
        let mut all = true;
        let mut places: BTreeSet<Address> = places.into_iter().map(Into::into).collect();
        places.extend(self.purgatory.places.of(id));
        for address in places {
            if let Err(error) = self.take_ref_away(&address, id).await {
                tracing::warn!(repo = %address, %id, %error, "a ref is still there");
                all = false;
            }
        }
        all
    }

    /// In the queue of its identifier: a ref whose event neither waits for it nor is served goes.
    /// Whatever ended its event was interrupted before.
    pub async fn settle_place(&self, id: &EventId, address: &Address) -> Result<(), ReleaseError> {
        let waiting = self.purgatory.pull_requests.get(id);
        if waiting.is_some_and(|entry| entry.pushed.contains_key(address)) {
            return Ok(());
        }
        let is_kept = match address.is_prs() {
            // What is withheld may come back, and a space has its objects.
            true => self.store.apart().has(id).await?,
            false => self.store.has(id).await?,
        };
        if !is_kept {
            self.take_ref_away(address, id).await?;
            tracing::info!(repo = %address, %id, "a ref whose event has gone was removed");
        }
        Ok(())
    }

    /// In the queue of its identifier: a repository that was moved aside is back, and loses the refs
    /// of pull requests that went meanwhile.
    pub async fn settle_refs_in(&self, repo: &RepoId) -> Result<(), GitError> {
        let address = Address::from(repo);
        for name in self.git.refs(&address, &[]).await?.refs.keys() {
            let RefKind::Nostr(id) = name.kind() else {
                continue;
            };
            match self.settle_place(&id, &address).await {
                Ok(()) => {}
                Err(ReleaseError::Git(error)) => return Err(error),
                Err(error) => return Err(GitError::Failed(error.to_string())),
            }
        }
        Ok(())
    }

    /// The repositories here that have, or would have, the ref of a pull request.
    pub async fn repositories_of(&self, request: &PullRequest) -> Vec<RepoId> {
        let mut offered = request.clone();
        if let Ok(repositories) = self.offered_to(request).await {
            offered.repositories = repositories;
        }
        let wanting = self.wanting(&offered, false).into_values().flatten();
        // Its maintainers may be others by now, or it was pushed where it is not offered to.
        let noted = self.purgatory.places.repositories_of(&request.id());
        let all: BTreeSet<RepoId> = wanting.chain(noted).collect();
        all.into_iter().collect()
    }

    /// Commits that are not the one named lose their ref, and so does what was pushed to a space that
    /// the event does not name. Where several waited the ref is the right one's from now on.
    async fn refuse_what_differs(
        &self,
        id: &EventId,
        entry: &pull_requests::Waiting,
        request: &PullRequest,
    ) -> Result<(), ReleaseError> {
        let named = self.spaces.named_by(&request.event);
        let mut refused = BTreeSet::new();
        for (address, pushed) in &entry.pushed {
            let is_named = !address.is_prs() || named.contains(&address.repo);
            let right = request.commit.filter(|commit| pushed.contains(commit));
            match right.filter(|_| is_named) {
                None => drop(refused.insert(address.clone())),
                Some(commit) if pushed.len() > 1 => self.choose(id, address, commit).await?,
                Some(_) => {}
            }
        }
        self.take_pushed_away(id, refused).await?;
        Ok(())
    }

    /// Of the commits that wait for an event at an address this one is right.
    async fn choose(
        &self,
        id: &EventId,
        address: &Address,
        commit: Oid,
    ) -> Result<(), ReleaseError> {
        let name = RefName::nostr(id);
        match self.git.put_ref(address, &name, commit, false).await {
            Ok(()) => Ok(self
                .purgatory
                .only_pushed(id, address, Some(commit))
                .await?),
            Err(error @ GitError::Unreachable(_)) => Err(error.into()),
            Err(error) => {
                tracing::warn!(repo = %address, %id, %error, "the right commit is not shown");
                Ok(())
            }
        }
    }

    /// Takes away what was pushed there for what waits, and forgets what has gone; says whether all
    /// has. What a repository does not give up is still known to be there.
    async fn take_pushed_away(
        &self,
        id: &EventId,
        addresses: BTreeSet<Address>,
    ) -> Result<bool, ReleaseError> {
        let (mut gone, mut all) = (Vec::new(), true);
        for address in addresses {
            match self.take_ref_away(&address, id).await {
                Ok(()) => gone.push(address),
                Err(error @ GitError::Unreachable(_)) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(repo = %address, %id, %error, "a ref is still there");
                    all = false;
                }
            }
        }
        if !gone.is_empty() {
            self.purgatory.unpushed(id, &gone).await?;
        }
        Ok(all)
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
