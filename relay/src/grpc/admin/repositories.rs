//! `Repositories`: what is announced, waits or is withheld, joined with what lies on disk.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use grasp_proto::{
    contract::{git, relay as wire, repository},
    words::{Identifier, Npub, RepoId},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    clock::Moment,
    nip34::{self, announcement::Announcement, author_of, identifier_of},
    policy::curation::Rules,
    release::Release,
    repository::Standing,
    store::StoreError,
};

/// Repositories in one message.
const BATCH: usize = 64;

/// Which are asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    owner: Option<Npub>,
    identifier: Option<Identifier>,
}

impl Asked {
    /// What a request says.
    pub(super) fn read(request: wire::RepositoriesRequest) -> Result<Self, Status> {
        let owner = match request.owner.as_slice() {
            [] => None,
            owner => Some(Npub::from_slice(owner)?),
        };
        let identifier = match request.identifier.as_str() {
            "" => None,
            identifier => Some(Identifier::parse(identifier)?),
        };
        Ok(Self { owner, identifier })
    }

    fn has(&self, repo: &RepoId) -> bool {
        self.owner.is_none_or(|owner| owner == repo.owner)
            && self.identifier.iter().all(|name| *name == repo.identifier)
    }
}

/// What is known here, git apart. Grows by what was admitted.
type Known = BTreeMap<RepoId, wire::KnownRepository>;

fn failed(error: StoreError) -> Status {
    Status::internal(error.to_string())
}

fn known_as(repo: &RepoId, standing: wire::Standing) -> wire::KnownRepository {
    wire::KnownRepository {
        repository: Some(repo.into()),
        standing: standing.into(),
        ..wire::KnownRepository::default()
    }
}

/// How a repository stands, in the words of the contract.
async fn standing(
    release: &Release,
    rules: &Rules,
    repo: &RepoId,
    standing: Standing,
) -> Result<wire::Standing, StoreError> {
    Ok(match standing {
        Standing::Elsewhere => wire::Standing::Elsewhere,
        Standing::Waiting => match release.purgatory.announcements.get(repo) {
            Some(entry) if entry.soft_expired => wire::Standing::SoftExpired,
            _ => wire::Standing::Waiting,
        },
        Standing::Active if rules.archive().is_none() => wire::Standing::Active,
        Standing::Active => {
            let event = release.store.announcement(repo).await?;
            let read = event.and_then(|event| Announcement::read(Arc::new(event)).ok());
            match read {
                Some(announcement) if rules.is_archive(&announcement) => wire::Standing::Archived,
                _ => wire::Standing::Active,
            }
        }
    })
}

/// What waits under a repository's identifier and concerns it.
fn add_what_waits(release: &Release, repo: &RepoId, known: &mut wire::KnownRepository) {
    let purgatory = &release.purgatory;
    let mut until: Option<Moment> = None;
    let mut note = |expires: Moment| until = until.max(Some(expires));
    if purgatory.states.waits_under(&repo.identifier) {
        let trusted = release.repositories.maintainers(repo);
        for entry in purgatory.states.by_identifier(&repo.identifier) {
            if trusted.contains(&entry.state.author) {
                known.states_waiting += 1;
                note(entry.expires);
            }
        }
    }
    if purgatory.pull_requests.waits_under(&repo.identifier) {
        for (_, entry) in purgatory.pull_requests.by_identifier(&repo.identifier) {
            let request = entry.request.as_ref();
            let is_offered = request.is_some_and(|request| request.repositories.contains(repo));
            if is_offered || entry.pushed.contains_key(&repo.into()) {
                known.pull_requests_waiting += 1;
                note(entry.expires);
            }
        }
    }
    let waiting = purgatory.announcements.get(repo);
    known.expires_millis = waiting.map_or(0, |entry| entry.expires.as_millis());
    known.waits_until_millis = until.map_or(0, Moment::as_millis);
    known.is_to_go = purgatory.is_doomed(repo).is_some();
}

async fn known(release: &Release, rules: &Rules, asked: &Asked) -> Result<Known, StoreError> {
    let mut all = Known::new();
    for repo in release.repositories.all() {
        if asked.has(&repo)
            && let Some(stands) = release.repositories.standing(&repo)
        {
            let stands = standing(release, rules, &repo, stands).await?;
            all.insert(repo.clone(), known_as(&repo, stands));
        }
    }
    let apart = release.store.apart();
    for id in release.store.withheld() {
        if let Some(event) = apart.by_id(&id).await?
            && event.kind == nip34::ANNOUNCEMENT
            && let Ok(identifier) = identifier_of(&event)
        {
            let owner = author_of(&event);
            let repo = RepoId { owner, identifier };
            if asked.has(&repo) {
                let withheld = known_as(&repo, wire::Standing::Withheld);
                all.entry(repo).or_insert(withheld);
            }
        }
    }
    let release = release.clone();
    let look = move || {
        for (repo, known) in &mut all {
            add_what_waits(&release, repo, known);
        }
        all
    };
    let looked = tokio::task::spawn_blocking(look).await;
    Ok(looked.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
}

/// What one description on disk belongs to.
fn join(
    all: &mut Known,
    described: git::RepositoryDescription,
) -> Result<wire::KnownRepository, Status> {
    let repo = repository(described.repository.clone())?;
    let mut known = match described.place() {
        git::Place::Retired => known_as(&repo, wire::Standing::Retired),
        _ => all
            .remove(&repo)
            .unwrap_or_else(|| known_as(&repo, wire::Standing::Unannounced)),
    };
    known.git = Some(described);
    Ok(known)
}

/// Lists what is asked for. What lies on disk comes first, as the git storage finds it; then what is
/// nowhere on disk.
pub(super) async fn list(
    release: Release,
    rules: Arc<Rules>,
    asked: Asked,
) -> Result<BoxStream<'static, Result<wire::RepositoriesResponse, Status>>, Status> {
    let described = release
        .git
        .describe(asked.owner, asked.identifier.clone())
        .await;
    let mut described = described.map_err(|error| super::git_failed(&error))?;
    let mut all = known(&release, &rules, &asked).await.map_err(failed)?;
    let (answers, receiver) = mpsc::channel(4);
    // Ends with the caller, who takes no answer any more then.
    tokio::spawn(async move {
        while let Some(batch) = described.next().await {
            let batch = batch.map_err(|error| super::git_failed(&error));
            let joined = batch.and_then(|batch| {
                let repositories = batch.into_iter().map(|one| join(&mut all, one));
                let repositories = repositories.collect::<Result<_, Status>>()?;
                Ok(wire::RepositoriesResponse { repositories })
            });
            let is_last = joined.is_err();
            if answers.send(joined).await.is_err() || is_last {
                return;
            }
        }
        let left: Vec<wire::KnownRepository> = all.into_values().collect();
        for batch in left.chunks(BATCH) {
            let repositories = batch.to_vec();
            let batch = wire::RepositoriesResponse { repositories };
            if answers.send(Ok(batch)).await.is_err() {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(receiver).boxed())
}
