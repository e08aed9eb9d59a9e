//! Healing: every repository that is served is compared with its latest authorised state, at least
//! once an hour. What lacks objects is hunted for; what shows something else is aligned.

use std::time::Duration;

use grasp_proto::words::{Identifier, RefKind, RefName, RepoId};
use tokio_util::sync::CancellationToken;

use super::Hunt;
use crate::{
    git::{GitError, Refs},
    nip34::state::State,
    policy::satisfiable::{Wanted, satisfiable},
    release::{Release, ReleaseError},
    repository::Standing,
    serial::{Serial, Turn},
};

/// How often everything is compared; with the time it takes, under an hour.
pub const EVERY: Duration = Duration::from_secs(50 * 60);
/// The wait between two repositories: the git storage has others to serve.
const PACE: Duration = Duration::from_millis(10);
/// The wait after the git storage did not answer.
const AWAY: Duration = Duration::from_secs(10);

/// Whether a repository shows just what a state says, and its HEAD is what a clone can check out.
fn shows(found: &Refs, state: &State) -> bool {
    let is_nostr = |name: &RefName| matches!(name.kind(), RefKind::Nostr(_));
    let wanted = state.default_branch();
    if wanted.is_some() && wanted != found.head.as_ref() {
        return false;
    }
    let shown = found.refs.iter().filter(|(name, _)| !is_nostr(name));
    let shown = shown.map(|(name, oid)| (name, *oid));
    shown.eq(state.objects())
}

/// Makes the served repositories of an identifier equal to their latest states as far as the objects
/// are here; says whether some are not. In no queue: takes a turn for each that is aligned.
pub async fn identifier(
    release: &Release,
    serial: &Serial,
    identifier: &Identifier,
) -> Result<bool, ReleaseError> {
    let mut lacks = false;
    for owner in release.repositories.owners(identifier, Standing::Active) {
        let repo = RepoId {
            owner,
            identifier: identifier.clone(),
        };
        tokio::time::sleep(PACE).await;
        let Some(state) = release.latest_stored(&repo).await? else {
            continue;
        };
        if release.retains_a_later_state(&repo, &state).await? {
            continue;
        }
        let mut wanted = Wanted::default();
        wanted.state(&state);
        let absent = match wanted.is_empty() {
            true => std::collections::BTreeSet::new(),
            false => release.absent(identifier, &wanted).await?,
        };
        if !satisfiable(&state, &absent) {
            lacks |= !absent.is_empty();
            continue;
        }
        match release.git.refs(&(&repo).into(), &[]).await {
            Ok(found) if shows(&found, &state) => continue,
            Ok(_) | Err(GitError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
        let (release, queue) = (release.clone(), repo.identifier.clone());
        let work = async move {
            if release.repositories.standing(&repo) != Some(Standing::Active) {
                return;
            }
            match release.realign(&repo).await {
                Ok(()) => tracing::info!(%repo, "aligned with its latest state"),
                Err(error) => release.note(&repo.identifier, &error, "a repository was not healed"),
            }
        };
        serial.run(&queue, Turn::Normal, work).await;
    }
    Ok(lacks)
}

/// Compares everything that is served, one identifier after another.
pub async fn everything(hunt: &Hunt, release: &Release, serial: &Serial) {
    for one in release.repositories.active_identifiers() {
        loop {
            match identifier(release, serial, &one).await {
                Ok(true) => {
                    tracing::info!(identifier = %one, "what is served lacks objects");
                    hunt.heal(&one);
                    break;
                }
                Ok(false) => break,
                Err(error) if error.is_unreachable() => tokio::time::sleep(AWAY).await,
                Err(error) => {
                    tracing::warn!(identifier = %one, %error, "not compared with its state");
                    break;
                }
            }
        }
    }
}

/// Heals, soon after the start and then `every` so often, until `stop`.
pub async fn run(
    hunt: Hunt,
    release: Release,
    serial: Serial,
    every: Duration,
    stop: CancellationToken,
) {
    let mut rounds = tokio::time::interval(every);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let work = async {
        loop {
            rounds.tick().await;
            everything(&hunt, &release, &serial).await;
        }
    };
    stop.run_until_cancelled(work).await;
}
