//! Healing: every repository that is served is compared with its latest authorised state, at least
//! once an hour. What lacks objects is hunted for; what shows something else is aligned.

use std::{collections::BTreeSet, time::Duration};

use grasp_proto::words::{Address, Identifier, RefKind, RefName, RepoId};
use tokio_util::sync::CancellationToken;

use super::Hunt;
use crate::{
    git::{GitError, Refs},
    nip34::state::State,
    policy::satisfiable::{Wanted, satisfiable},
    purgatory::applied::AppliedState,
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
        let found = match release.git.refs(&(&repo).into(), &[]).await {
            Err(GitError::NotFound) => {
                let (worker, gone) = (release.clone(), repo.clone());
                let work = async move { make_again(&worker, &gone).await };
                serial.run(identifier, Turn::Normal, work).await?;
                Refs::default()
            }
            found => found?,
        };
        let Some(state) = release.latest_stored(&repo).await? else {
            continue;
        };
        if release.retains_a_later_state(&repo, &state).await? {
            continue;
        }
        let mut wanted = Wanted::default();
        wanted.state(&state);
        let absent = match wanted.is_empty() {
            true => BTreeSet::new(),
            false => release.absent(identifier, &wanted).await?,
        };
        if !satisfiable(&state, &absent) {
            lacks |= !absent.is_empty();
            if !absent.is_empty() && !shows(&found, &state) {
                let work = wait_again(release.clone(), state);
                serial.run(identifier, Turn::Normal, work).await?;
            }
            continue;
        }
        if shows(&found, &state) {
            continue;
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

/// In the queue of its identifier: a served repository that somebody took from the git storage is there again,
/// and may show what it showed as far as the objects are still there. What is not is hunted for, as whatever
/// lacks objects.
async fn make_again(release: &Release, repo: &RepoId) -> Result<(), ReleaseError> {
    if release.repositories.standing(repo) != Some(Standing::Active) {
        return Ok(());
    }
    let address = Address::from(repo);
    let stored = release.stored_for([repo]).await?;
    let applied = release.purgatory.applied_state(repo);
    let mut shown_before = BTreeSet::new();
    if let Some(state) = stored.latest(repo)
        && applied == Some(AppliedState::from(&state))
    {
        shown_before.extend(state.objects().map(|(_, oid)| (oid, None)));
    }
    let mut requests = Vec::new();
    for request in stored.requests(repo) {
        let id = request.id();
        if let Some(commit) = request.commit
            && release.purgatory.places.of(&id).contains(&address)
        {
            shown_before.insert((commit, Some(id)));
            requests.push((id, commit));
        }
    }
    tracing::warn!(%repo, "a repository that is served is not in the git storage any more: it is made again");
    metrics::counter!("ngit_repositories_made_again_total").increment(1);
    release.git.make_again(repo, &shown_before).await?;
    for (id, commit) in requests {
        release.put_ref(&address, &id, commit).await?;
    }
    Ok(())
}

/// In the queue of its identifier: a served state whose refs and objects are gone waits for them once more, so
/// that whoever has them may push them.
async fn wait_again(release: Release, state: State) -> Result<(), ReleaseError> {
    let (id, purgatory) = (state.id(), &release.purgatory);
    if purgatory.states.get(&id).is_none()
        && purgatory.has_room_for(&state).is_ok()
        && purgatory.add_state(state)
    {
        purgatory.keep_state(&id).await?;
    }
    Ok(())
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
