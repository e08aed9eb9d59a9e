//! Releases in the turns of the queue: what one turn has no room for goes on in later ones.

use std::collections::BTreeSet;

use grasp_proto::words::{EventId, Identifier, RepoId};

use super::{GoOn, Release, ReleaseError, Released};
use crate::serial::{Serial, Turn};

/// Makes the repository of a waiting announcement that has none, after whatever of an earlier one
/// is still to go.
pub async fn make_repository(release: &Release, repo: &RepoId) {
    let waiting = release.purgatory.announcements.get(repo);
    if !waiting.is_some_and(|entry| !entry.soft_expired && !entry.repository_made) {
        return;
    }
    if !release.carry_out_doom(repo).await {
        release.unfinished.insert(repo.identifier.clone(), ());
        return;
    }
    match release.make(repo).await {
        Ok(()) => release.purgatory.announcements.made(repo),
        Err(error) => {
            let what = "a repository could not be made yet";
            release.note(&repo.identifier, &error.into(), what);
        }
    }
}

/// Releases whatever can be under an identifier, and what is too much for this turn of its queue
/// in later ones. Gives the events that could not be released though their data is here.
pub async fn release_identifier(
    release: &Release,
    serial: &Serial,
    identifier: &Identifier,
) -> Result<BTreeSet<EventId>, ReleaseError> {
    let left = release.identifier(identifier).await?;
    for more in left.go_on {
        go_on(release, serial, more);
    }
    Ok(left.failed)
}

/// Goes on with the release of a state that many repositories want, turn by turn, so that whoever
/// is at a terminal goes between.
pub fn go_on(release: &Release, serial: &Serial, from: GoOn) {
    let (release, serial) = (release.clone(), serial.clone());
    let id = from.state.id();
    if release.going_on.insert(id, ()).is_some() {
        return;
    }
    tokio::spawn(async move {
        let GoOn { state, so_far } = from;
        let identifier = state.identifier.clone();
        let mut so_far = so_far;
        loop {
            let (worker, state) = (release.clone(), state.clone());
            let work = async move {
                // It may have been deleted, or taken over by another way, since the last turn.
                match worker.is_kept(&state.id()).await? {
                    true => worker.state(&state, None, so_far.as_ref()).await,
                    false => Ok(Released::NOTHING),
                }
            };
            match serial.run(&identifier, Turn::Later, work).await {
                Ok(Released {
                    more: Some(more), ..
                }) => so_far = Some(more),
                Ok(_) => break,
                Err(error) => {
                    // It is still in purgatory: the next release begins anew.
                    release.note(&identifier, &error, "a release stopped half-way");
                    break;
                }
            }
        }
        release.going_on.remove(&id);
    });
}
