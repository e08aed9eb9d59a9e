//! The clock of purgatory: what is due expires, after a last try to release it.
//!
//! While the git storage cannot be reached nothing expires. When it is back, what failed meanwhile is
//! tried again: nobody knew whether its data was here.

use std::{collections::BTreeSet, time::Duration};

use grasp_proto::words::{EventId, Identifier, RefName, RepoId};
use tokio_util::sync::CancellationToken;

use crate::{
    admit::{make_repository, release_identifier},
    clock::Moment,
    git::GitError,
    nip34::{id_of, later},
    release::Release,
    repository::Standing,
    serial::{Serial, Turn},
    store::StoreError,
};

/// How often what is due is looked for.
pub const EVERY: Duration = Duration::from_secs(60);
/// How often the git storage is asked whether it is there.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Entries of one store that one sweep looks at; the others are due at the next.
const A_SWEEP: usize = 10_000;

/// One sweep. Does nothing while the git storage is away.
pub async fn sweep(release: &Release, serial: &Serial) {
    if !release.git.reachable().await {
        return;
    }
    let now = release.purgatory.now();
    let purgatory = &release.purgatory;
    let announcements = purgatory.announcements.due(now, A_SWEEP);
    let states = purgatory.states.due(now, A_SWEEP);
    let requests = purgatory.pull_requests.due(now, A_SWEEP);
    let mut due: BTreeSet<Identifier> = announcements.into_iter().map(|r| r.identifier).collect();
    for id in states {
        due.extend(
            purgatory
                .states
                .get(&id)
                .map(|entry| entry.state.identifier),
        );
    }
    for identifier in due {
        let work = expire(release.clone(), serial.clone(), identifier.clone(), now);
        serial.run(&identifier, Turn::Normal, work).await;
    }
    for id in requests {
        let entry = purgatory.pull_requests.get(&id);
        let of_event = entry.as_ref().and_then(|e| e.request.as_ref());
        let queue = of_event
            .and_then(|request| request.identifiers().into_iter().next())
            .or_else(|| {
                entry
                    .as_ref()?
                    .pushed
                    .keys()
                    .next()
                    .map(|r| r.identifier.clone())
            });
        let work = expire_pull_request(release.clone(), id, now);
        match queue {
            Some(identifier) => serial.run(&identifier, Turn::Normal, work).await,
            None => work.await,
        }
    }
}

/// In the queue of `identifier`: releases what can be, expires what is due all the same.
async fn expire(release: Release, serial: Serial, identifier: Identifier, now: Moment) {
    if let Err(error) = release_identifier(&release, &serial, &identifier).await {
        tracing::warn!(%identifier, %error, "nothing expires without a try to release it");
        return;
    }
    let purgatory = &release.purgatory;
    for entry in purgatory.states.by_identifier(&identifier) {
        if entry.expires <= now {
            let id = entry.state.id();
            purgatory.remove_state(&id);
            purgatory.remember_expired(id);
            tracing::info!(state = %id, %identifier, "expired without git data");
        }
    }
    for owner in release.repositories.owners(&identifier, Standing::Waiting) {
        let repo = RepoId {
            owner,
            identifier: identifier.clone(),
        };
        let Some(entry) = purgatory.announcements.get(&repo) else {
            continue;
        };
        if entry.expires > now {
            continue;
        }
        if entry.soft_expired {
            purgatory.remove_announcement(&repo);
            release.stand_as_stored(&repo).await;
            purgatory.remember_expired(entry.announcement.id());
            tracing::info!(%repo, "an announcement expired for good");
            continue;
        }
        if let Err(error) = release.promote_if_here(&repo).await {
            tracing::warn!(%repo, %error, "an announcement does not expire untried");
            continue;
        }
        if purgatory.announcements.get(&repo).is_none() {
            continue;
        }
        match release.git.delete(&repo).await {
            Ok(()) | Err(GitError::NotFound) => {
                purgatory.soft_expire(&repo);
                tracing::info!(%repo, "an announcement is soft-expired");
            }
            // An upload is running: it keeps its repository, and what allowed it.
            Err(error) => tracing::info!(%repo, %error, "a repository is not deleted yet"),
        }
    }
}

async fn expire_pull_request(release: Release, id: EventId, now: Moment) {
    match release.pull_request(&id).await {
        Ok(true) => return,
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(pull_request = %id, %error, "it does not expire untried");
            return;
        }
    }
    let Some(entry) = release.purgatory.pull_requests.get(&id) else {
        return;
    };
    if entry.expires > now {
        return;
    }
    let name = RefName::nostr(&id);
    for repo in entry.pushed.keys() {
        match release.git.delete_ref(repo, &name).await {
            Ok(()) | Err(GitError::NotFound) => {}
            Err(error) => {
                tracing::warn!(%repo, %name, %error, "a placeholder's ref is still there");
                return;
            }
        }
    }
    release.purgatory.remove_pull_request(&id);
    if entry.request.is_some() {
        release.purgatory.remember_expired(id);
    }
    tracing::info!(pull_request = %id, "expired");
}

/// Brings purgatory and store together after a start: what was released before the end is not
/// waiting any more, and what waits is announced.
pub async fn reconcile(release: &Release) -> Result<(), StoreError> {
    let purgatory = &release.purgatory;
    for repo in purgatory.announcements.all() {
        let Some(entry) = purgatory.announcements.get(&repo) else {
            continue;
        };
        let stored = release.store.announcement(&repo).await?;
        let event = &entry.announcement.event;
        if stored.is_some_and(|stored| later(&stored, event).is_ge() && is_served(release, &repo)) {
            purgatory.remove_announcement(&repo);
        } else {
            release
                .repositories
                .set(&entry.announcement, Standing::Waiting);
        }
    }
    for identifier in purgatory.pull_requests.identifiers() {
        for (id, entry) in purgatory.pull_requests.by_identifier(&identifier) {
            let stored = release.store.has(&id).await?;
            if stored
                && entry
                    .request
                    .as_ref()
                    .is_some_and(|r| id_of(&r.event) == id)
            {
                purgatory.remove_pull_request(&id);
            }
        }
    }
    Ok(())
}

fn is_served(release: &Release, repo: &RepoId) -> bool {
    release.repositories.standing(repo) == Some(Standing::Active)
}

/// Tries whatever waits under an identifier: what is to go, repositories that were not made,
/// announcements, releases.
pub async fn try_again(release: &Release, serial: &Serial, identifier: &Identifier) {
    let (worker, queues, queue) = (release.clone(), serial.clone(), identifier.clone());
    let work = async move {
        let (release, serial, identifier) = (worker, queues, queue);
        for repo in release.purgatory.doomed() {
            if repo.identifier == identifier {
                release.carry_out_doom(&repo).await;
            }
        }
        for owner in release.repositories.owners(&identifier, Standing::Waiting) {
            let repo = RepoId {
                owner,
                identifier: identifier.clone(),
            };
            make_repository(&release, &repo).await;
            if let Err(error) = release.promote_if_here(&repo).await {
                release.note(&identifier, &error, "an announcement was not promoted");
            }
        }
        if let Err(error) = release_identifier(&release, &serial, &identifier).await {
            release.note(&identifier, &error, "nothing was released");
        }
    };
    serial.run(identifier, Turn::Normal, work).await;
}

/// Tries everything that waits.
pub async fn try_everything(release: &Release, serial: &Serial) {
    let mut all = release.purgatory.identifiers();
    all.extend(release.purgatory.doomed().into_iter().map(|r| r.identifier));
    for identifier in all {
        try_again(release, serial, &identifier).await;
    }
}

/// Tries again what failed for reasons that pass: the git storage was away, an upload was running
/// into what is to go.
pub async fn try_unfinished(release: &Release, serial: &Serial) {
    for repo in release.purgatory.doomed() {
        release.unfinished.insert(repo.identifier, ());
    }
    let unfinished: Vec<Identifier> = release.unfinished.iter().map(|e| e.key().clone()).collect();
    for identifier in unfinished {
        release.unfinished.remove(&identifier);
        try_again(release, serial, &identifier).await;
    }
}

/// Sweeps, and tries again what failed as soon as the git storage is there, until `stop`.
pub async fn run(release: Release, serial: Serial, every: Duration, stop: CancellationToken) {
    let mut sweeps = tokio::time::interval(every);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watch = tokio::time::interval(WATCH_EVERY);
    watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_there = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = sweeps.tick() => sweep(&release, &serial).await,
            _ = watch.tick() => {
                let is_there = release.git.reachable().await;
                if is_there {
                    if !was_there {
                        tracing::info!("the git storage is back");
                    }
                    try_unfinished(&release, &serial).await;
                } else if was_there && !is_there {
                    tracing::warn!("the git storage cannot be reached: nothing expires");
                }
                was_there = is_there;
            }
        }
    }
}
