//! `CleanupEmptyRepositories`: repositories without a ref or an object that nobody announced.
//!
//! What lies on disk and is empty is found by the git storage; whether somebody wants it is decided,
//! and acted on, in the queue of its identifier. The git storage looks once more whether it is empty
//! and nothing is being uploaded into it before it deletes it.

use futures::{StreamExt, stream::BoxStream};
use grasp_proto::{
    contract::{git, relay as wire, repository},
    words::RepoId,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    git::GitError,
    release::Release,
    repository::Standing,
    serial::{Serial, Turn},
};

/// Why an empty repository stays; `None`: nobody wants it.
async fn wanted(release: &Release, repo: &RepoId) -> Result<Option<String>, Status> {
    if release.purgatory.is_doomed(repo).is_some() {
        return Ok(Some("it is to go by itself".to_owned()));
    }
    let why = match release.repositories.standing(repo) {
        Some(Standing::Active) => "its announcement is served",
        Some(Standing::Waiting) => "its announcement waits for git data",
        Some(Standing::Elsewhere) => return Ok(None),
        None => {
            let stored = release.store.apart().announcement(repo).await;
            match stored.map_err(|error| Status::internal(error.to_string()))? {
                Some(_) => "its announcement is withheld by the operator's lists",
                None => return Ok(None),
            }
        }
    };
    Ok(Some(why.to_owned()))
}

/// In the queue of its identifier: what becomes of one that is empty.
async fn judge(
    release: &Release,
    repo: &RepoId,
    incarnation: &str,
    dry_run: bool,
) -> Result<(bool, String), Status> {
    if let Some(why) = wanted(release, repo).await? {
        return Ok((false, why));
    }
    let why = match release.repositories.standing(repo) {
        Some(_) => "its announcement does not name this service",
        None => "nobody announced it",
    };
    if dry_run {
        return Ok((true, why.to_owned()));
    }
    match release.git.delete_empty(repo, incarnation).await {
        Ok(()) | Err(GitError::NotFound) => {
            tracing::info!(%repo, why, "an empty repository was deleted");
            Ok((true, why.to_owned()))
        }
        Err(GitError::Refused(reason)) => Ok((false, reason)),
        Err(error) => Err(super::git_failed(&error)),
    }
}

/// Goes through all that lies on disk.
pub(super) async fn clean(
    release: Release,
    serial: Serial,
    dry_run: bool,
) -> Result<BoxStream<'static, Result<wire::CleanupEmptyRepositoriesResponse, Status>>, Status> {
    let described = release.git.describe(None, None).await;
    let mut described = described.map_err(|error| super::git_failed(&error))?;
    let (answers, receiver) = mpsc::channel(4);
    // Ends with the caller, who takes no answer any more then: what was said to go has gone.
    tokio::spawn(async move {
        let work = async {
            while let Some(batch) = described.next().await {
                for one in batch.map_err(|error| super::git_failed(&error))? {
                    if !one.is_empty || one.place() != git::Place::Served {
                        continue;
                    }
                    let repo = repository(one.repository.clone())?;
                    let (release, queue) = (release.clone(), repo.identifier.clone());
                    let incarnation = one.incarnation.clone();
                    let turn = async move { judge(&release, &repo, &incarnation, dry_run).await };
                    let (goes, why) = serial.run(&queue, Turn::Normal, turn).await?;
                    let answer = wire::CleanupEmptyRepositoriesResponse {
                        repository: Some(one),
                        goes,
                        why,
                    };
                    if answers.send(Ok(answer)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Ok::<(), Status>(())
        };
        if let Err(error) = work.await {
            let _ = answers.send(Err(error)).await;
        }
    });
    Ok(ReceiverStream::new(receiver).boxed())
}
