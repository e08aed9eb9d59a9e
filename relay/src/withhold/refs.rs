//! The refs of pull requests that are withheld: out of the repositories that are served, and back
//! when they are served again. Their objects stay in the pool, as those of every view do. Refs in a
//! contributor's own space stay, too: a banned author's is not served as it is.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use grasp_proto::words::{EventId, Identifier, RepoId};
use nostr::Filter;

use crate::{
    journal::WithheldStep,
    nip34::{self, id_of, pull_request::PullRequest},
    purgatory::withheld_refs::WithheldRefs,
    release::{Release, ReleaseError},
    repository::Standing,
    retire::RetireError,
    serial::{Serial, Turn},
    store::StoreError,
};

/// Pull requests looked at, at once.
const AT_ONCE: usize = 100;

/// Notes which pull requests' refs are to go, and which are to come back, by what is withheld now;
/// and does so, or leaves it to [`carry_out`] if gitd is away.
pub async fn settle(release: &Release, serial: &Serial) -> Result<(), RetireError> {
    for repo in release.purgatory.withheld_repositories() {
        if release.store.apart().announcement(&repo).await?.is_none() {
            release.purgatory.forget_withheld(&repo);
        }
    }
    let withheld = release.store.withheld();
    let mut wanted: HashSet<EventId> = HashSet::new();
    if !withheld.is_empty() {
        let requests = Filter::new().kinds([nip34::PULL_REQUEST, nip34::PULL_REQUEST_UPDATE]);
        let items = release.store.apart().items(requests).await?;
        let ids = items.into_iter().map(|(id, _)| id);
        wanted.extend(ids.filter(|id| withheld.contains(id)));
    }
    let ids: Vec<EventId> = wanted.iter().copied().collect();
    for chunk in ids.chunks(AT_ONCE) {
        for event in release.store.apart().by_ids(chunk).await? {
            let id = id_of(&event);
            let Ok(request) = PullRequest::read(Arc::new(event)) else {
                continue;
            };
            // What it refers to may be withheld with it.
            let whole = Release {
                store: release.store.apart(),
                ..release.clone()
            };
            let places: BTreeSet<RepoId> =
                whole.repositories_of(&request).await.into_iter().collect();
            let known = release.purgatory.withheld_refs(&id);
            let is_done = known.as_ref().is_some_and(|known| {
                known.step == WithheldStep::Taken
                    && places.iter().all(|place| known.places.contains(place))
            });
            if is_done || (known.is_none() && places.is_empty()) {
                continue;
            }
            let places = places
                .into_iter()
                .chain(known.map(|known| known.places).unwrap_or_default());
            let places: BTreeSet<RepoId> = places.collect();
            let refs = WithheldRefs {
                places: places.into_iter().collect(),
                step: WithheldStep::Taking,
            };
            release.purgatory.withhold_refs(id, refs).await?;
        }
    }
    for id in release.purgatory.withholding_refs(false) {
        if wanted.contains(&id) {
            continue;
        }
        if let Some(refs) = release.purgatory.withheld_refs(&id) {
            let refs = WithheldRefs {
                step: WithheldStep::Returning,
                ..refs
            };
            release.purgatory.withhold_refs(id, refs).await?;
        }
    }
    carry_out(release, serial).await;
    Ok(())
}

/// Gives repositories that are back the refs of pull requests that were served meanwhile.
async fn catch_up(release: &Release, serial: &Serial) {
    for repo in release.purgatory.withheld_repositories() {
        match release.repositories.standing(&repo) {
            Some(Standing::Active) => {}
            // Still out of service, or deleted since.
            None => continue,
            Some(Standing::Waiting | Standing::Elsewhere) => {
                release.purgatory.forget_withheld(&repo);
                continue;
            }
        }
        let (release, queue) = (release.clone(), repo.identifier.clone());
        let work = async move {
            match release.put_known_pull_requests(&repo).await {
                Ok(()) => release.purgatory.forget_withheld(&repo),
                Err(error) => {
                    tracing::warn!(%repo, %error, "it lacks refs of pull requests yet");
                }
            }
        };
        serial.run(&queue, Turn::Normal, work).await;
    }
}

/// Does what [`settle`] noted and gitd did not do yet.
pub async fn carry_out(release: &Release, serial: &Serial) {
    catch_up(release, serial).await;
    for id in release.purgatory.withholding_refs(true) {
        let worker = release.clone();
        let work = async move {
            if let Err(error) = step(&worker, &id).await {
                tracing::warn!(pull_request = %id, %error, "its refs are not as the lists say yet");
            }
        };
        match queue(release, &id) {
            Some(identifier) => serial.run(&identifier, Turn::Normal, work).await,
            None => work.await,
        }
    }
}

fn queue(release: &Release, id: &EventId) -> Option<Identifier> {
    let refs = release.purgatory.withheld_refs(id)?;
    refs.places.first().map(|repo| repo.identifier.clone())
}

/// In the queue of its identifier.
async fn step(release: &Release, id: &EventId) -> Result<(), ReleaseError> {
    let Some(refs) = release.purgatory.withheld_refs(id) else {
        return Ok(());
    };
    match refs.step {
        WithheldStep::Taken => return Ok(()),
        WithheldStep::Taking => {
            for repo in &refs.places {
                release.take_ref_away(&repo.into(), id).await?;
            }
        }
        WithheldStep::Returning => release.put_back(id).await?,
    }
    release.purgatory.withheld_refs_done(id, &refs);
    Ok(())
}

impl Release {
    /// Puts the refs of a served pull request where they belong. Without the event there are none.
    async fn put_back(&self, id: &EventId) -> Result<(), ReleaseError> {
        let Some(event) = self.stored_request(id).await? else {
            return Ok(());
        };
        let wanting = self.wanting(&event, true);
        self.put_refs(&event, wanting, None).await?;
        Ok(())
    }

    async fn stored_request(&self, id: &EventId) -> Result<Option<PullRequest>, StoreError> {
        let stored = self.store.by_id(id).await?;
        let read = |event| PullRequest::read(Arc::new(event)).ok();
        let Some(mut request) = stored.and_then(read) else {
            return Ok(None);
        };
        request.repositories = self.offered_to(&request).await?;
        Ok(Some(request))
    }
}
