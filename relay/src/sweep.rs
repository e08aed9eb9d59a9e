//! The clock of purgatory: what is due expires, after a last try to release it.
//!
//! While the git storage cannot be reached nothing expires. When it is back, what failed meanwhile is
//! tried again: nobody knew whether its data was here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use grasp_proto::words::{EventId, Identifier, RepoId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Moment,
    git::GitError,
    holding,
    hunt::{Hunt, heal},
    nip34::later,
    purgatory::kept::WaitingEntry,
    release::{Release, make_repository, release_identifier},
    repository::Standing,
    retire::RetireError,
    serial::{Serial, Turn},
    withhold,
};

/// How often what is due is looked for.
pub const EVERY: Duration = Duration::from_secs(60);
/// Nothing expires for so long after the start, or after the machine was suspended: pushes that run tell
/// the relay so once a minute, and it may have been away for longer than they were granted.
const FIRST_AFTER: Duration = Duration::from_secs(3 * 60);
/// The machine was suspended if so much time has passed since it was looked at a second ago.
const SUSPENDED: Duration = Duration::from_secs(2 * 60);
/// How often the git storage is asked whether it is there.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Entries of one store that one sweep looks at; the others are due at the next.
const A_SWEEP: usize = 10_000;

/// What is due under one identifier.
#[derive(Default)]
struct DueUnder {
    states: BTreeSet<EventId>,
    announcements: Vec<RepoId>,
}

/// One sweep. Does nothing while the git storage is away. What `hunt` has not tried is kept alive.
pub async fn sweep(release: &Release, serial: &Serial, hunt: &Hunt) {
    if !release.git.reachable().await {
        return;
    }
    let now = release.purgatory.now();
    let purgatory = &release.purgatory;
    let is_over = |entry: &WaitingEntry| {
        !purgatory.keeps_alive(entry, |identifier, since| hunt.progress(identifier, since))
    };
    let mut due: BTreeMap<Identifier, DueUnder> = BTreeMap::new();
    for id in purgatory.states.due(now, A_SWEEP) {
        if let Some(entry) = purgatory.states.get(&id) {
            let of_identifier = due.entry(entry.state.identifier).or_default();
            of_identifier.states.insert(id);
        }
    }
    for repo in purgatory.announcements.due(now, A_SWEEP) {
        let of_identifier = due.entry(repo.identifier.clone()).or_default();
        of_identifier.announcements.push(repo);
    }
    // Of one identifier together: a state is of no use without its announcement, nor this without it.
    for (identifier, of_identifier) in due {
        let DueUnder {
            mut states,
            mut announcements,
        } = of_identifier;
        states.retain(|id| is_over(&WaitingEntry::State(*id)));
        announcements.retain(|repo| is_over(&WaitingEntry::Announcement(repo.clone())));
        if states.is_empty() && announcements.is_empty() {
            continue;
        }
        let work = expire_states(release.clone(), serial.clone(), identifier.clone(), states);
        serial.run(&identifier, Turn::Normal, work).await;
        for repo in announcements {
            let work = expire_announcement(release.clone(), repo, now);
            serial.run(&identifier, Turn::Normal, work).await;
        }
    }
    let mut requests = purgatory.pull_requests.due(now, A_SWEEP);
    requests.retain(|id| is_over(&WaitingEntry::PullRequest(*id)));
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
                    .map(|address| address.identifier().clone())
            });
        let work = expire_pull_request(release.clone(), id, now);
        match queue {
            Some(identifier) => serial.run(&identifier, Turn::Normal, work).await,
            None => work.await,
        }
    }
    holding::expiry::sweep(release, serial).await;
    if let Err(error) = release.age_requests().await {
        tracing::error!(%error, "deletion requests do not age");
    }
}

fn expired(what: &'static str) {
    metrics::counter!("ngit_purgatory_expired_total", "what" => what).increment(1);
}

/// In the queue of `identifier`: releases what can be; of these states those that are due all the same
/// expire, but for those that failed though their data is here.
async fn expire_states(
    release: Release,
    serial: Serial,
    identifier: Identifier,
    due: BTreeSet<EventId>,
) {
    let failed = match release_identifier(&release, &serial, &identifier).await {
        Ok(failed) => failed,
        Err(error) if error.may_pass() => {
            tracing::warn!(%identifier, %error, "nothing expires without a try to release it");
            return;
        }
        Err(error) => {
            tracing::warn!(%identifier, %error, "what is due expires though a release failed");
            BTreeSet::new()
        }
    };
    let purgatory = &release.purgatory;
    for id in due.difference(&failed) {
        let Some(entry) = purgatory.states.get(id) else {
            continue;
        };
        // A push may have given it more time meanwhile.
        if entry.expires <= purgatory.now() {
            purgatory.remember_expired(*id, [identifier.clone()]);
            purgatory.remove_state(id);
            expired("state");
            tracing::info!(state = %id, %identifier, "expired without git data");
        }
    }
}

/// In the queue of its identifier: one step of an announcement that is due.
async fn expire_announcement(release: Release, repo: RepoId, now: Moment) {
    let purgatory = &release.purgatory;
    let Some(entry) = purgatory.announcements.get(&repo) else {
        return;
    };
    if entry.expires > now {
        return;
    }
    if entry.soft_expired {
        purgatory.remember_expired(entry.announcement.id(), [repo.identifier.clone()]);
        if let Err(error) = release.waits_no_more(&repo).await {
            tracing::error!(%repo, %error, "what was served for its sake may be left");
        }
        expired("announcement");
        tracing::info!(%repo, "an announcement expired for good");
        return;
    }
    match release.promote_if_here(&repo).await {
        Err(error) if error.may_pass() => {
            tracing::warn!(%repo, %error, "an announcement does not expire untried");
            return;
        }
        _ if purgatory.announcements.get(&repo).is_none() => return,
        _ => {}
    }
    match release.clear_away(&repo).await {
        Ok(()) | Err(GitError::NotFound) => {
            purgatory.soft_expire(&repo);
            expired("announcement, soft");
            tracing::info!(%repo, "an announcement is soft-expired");
        }
        // An upload is running: it keeps its repository, and what allowed it.
        Err(error) => tracing::info!(%repo, %error, "a repository is not deleted yet"),
    }
}

async fn expire_pull_request(release: Release, id: EventId, now: Moment) {
    match release.pull_request(&id).await {
        Err(error) if error.may_pass() => {
            tracing::warn!(pull_request = %id, %error, "it does not expire untried");
            return;
        }
        _ => {}
    }
    let Some(entry) = release.purgatory.pull_requests.get(&id) else {
        return;
    };
    if entry.expires > now {
        return;
    }
    // Served, it has its refs, and waited only for some to go that are not its.
    match release.store.apart().has(&id).await {
        Ok(true) => {
            release.purgatory.remove_pull_request(&id);
            return;
        }
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(pull_request = %id, %error, "it does not expire yet");
            return;
        }
    }
    let (is_event, identifiers) = (entry.request.is_some(), entry.identifiers());
    if !release.take_refs_away(&id, entry.pushed.into_keys()).await {
        return;
    }
    if is_event {
        release.purgatory.remember_expired(id, identifiers);
    }
    release.purgatory.remove_pull_request(&id);
    expired("pull request");
    tracing::info!(pull_request = %id, "expired");
}

/// Brings purgatory and store together after a start: what was released before the end is not
/// waiting any more, and what waits is announced.
pub async fn reconcile(release: &Release) -> Result<(), RetireError> {
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
    // What was being taken out of service when the process ended.
    for repo in release.holding.half_taken() {
        release.finish_taking(&repo).await?;
    }
    Ok(())
}

/// Whether its stored announcement is served, with its repository here or without.
fn is_served(release: &Release, repo: &RepoId) -> bool {
    let standing = release.repositories.standing(repo);
    standing.is_some_and(Standing::is_served)
}

/// Tries whatever waits under an identifier: what is to go, repositories that were not made,
/// announcements, releases.
pub async fn try_again(release: &Release, serial: &Serial, identifier: &Identifier) {
    loop {
        let (release, name) = (release.clone(), identifier.clone());
        // A turn for each lot, as below.
        let work = async move { release.judge_changed_sets(&name).await };
        if !serial.run(identifier, Turn::Normal, work).await.any {
            break;
        }
    }
    for owner in release.repositories.owners(identifier, Standing::Waiting) {
        let repo = RepoId {
            owner,
            identifier: identifier.clone(),
        };
        // A turn for each: an identifier may have very many, and others wait in its queue.
        let release = release.clone();
        let work = async move {
            make_repository(&release, &repo).await;
            if let Err(error) = release.promote_if_here(&repo).await {
                let what = "an announcement was not promoted";
                release.note(&repo.identifier, &error, what);
            }
            // Its held states may not have come with it.
            release.holding.returns(&repo);
        };
        serial.run(identifier, Turn::Normal, work).await;
    }
    let (worker, queues, queue) = (release.clone(), serial.clone(), identifier.clone());
    let work = async move {
        if let Err(error) = release_identifier(&worker, &queues, &queue).await {
            worker.note(&queue, &error, "nothing was released");
        }
    };
    serial.run(identifier, Turn::Normal, work).await;
    // What is served may have missed an alignment: its latest state was deleted, or somebody whose
    // it was is no maintainer any more.
    if let Err(error) = heal::identifier(release, serial, identifier).await {
        release.note(
            identifier,
            &error,
            "what is served was not compared with its state",
        );
    }
}

/// Removes refs whose events have gone, as an end between two steps leaves them, or a git storage
/// that was away.
async fn settle_places(release: &Release, serial: &Serial) {
    for (id, addresses) in release.purgatory.places.all() {
        if matches!(release.store.has(&id).await, Ok(true)) {
            continue;
        }
        for address in addresses {
            let (release, queue) = (release.clone(), address.identifier().clone());
            let work = async move {
                if let Err(error) = release.settle_place(&id, &address).await {
                    release.note(address.identifier(), &error, "a ref may be left");
                }
            };
            serial.run(&queue, Turn::Normal, work).await;
        }
    }
}

/// Takes away, or aside, the repositories and refs that are to go.
async fn carry_out_dooms(release: &Release, serial: &Serial) {
    for repo in release.holding.half_taken() {
        let (worker, queue) = (release.clone(), repo.identifier.clone());
        let work = async move {
            if let Err(error) = worker.finish_taking(&repo).await {
                tracing::error!(%repo, %error, "is not out of service yet");
            }
        };
        serial.run(&queue, Turn::Normal, work).await;
    }
    for (id, repo) in release.purgatory.owing_refs() {
        let worker = release.clone();
        let work = async move { worker.settle_refs(&id).await };
        match repo {
            Some(repo) => serial.run(&repo.identifier, Turn::Normal, work).await,
            None => work.await,
        };
    }
    withhold::refs::carry_out(release, serial).await;
    for repo in release.purgatory.doomed() {
        let (release, queue) = (release.clone(), repo.identifier.clone());
        let work = async move { release.carry_out_doom(&repo).await };
        serial.run(&queue, Turn::Normal, work).await;
    }
}

/// Tries everything that waits.
pub async fn try_everything(release: &Release, serial: &Serial) {
    carry_out_dooms(release, serial).await;
    settle_places(release, serial).await;
    for identifier in release.purgatory.identifiers() {
        try_again(release, serial, &identifier).await;
    }
}

/// Tries again what failed for reasons that pass: the git storage was away, an upload was running
/// into what is to go.
pub async fn try_unfinished(release: &Release, serial: &Serial) {
    carry_out_dooms(release, serial).await;
    release.holding.try_again();
    let unfinished = release.unfinished.iter().map(|one| one.key().clone());
    let mut unfinished: BTreeSet<Identifier> = unfinished.collect();
    // Whatever changed them, and whoever was to see to it.
    unfinished.extend(release.repositories.changed());
    for identifier in unfinished {
        release.unfinished.remove(&identifier);
        try_again(release, serial, &identifier).await;
    }
}

/// What waits and what is served, as it is now.
#[allow(clippy::cast_precision_loss)]
fn measure(release: &Release) {
    let purgatory = &release.purgatory;
    let now = purgatory.now();
    let waits = |store: &'static str, count: usize, oldest: Option<Moment>| {
        metrics::gauge!("ngit_purgatory_entries", "store" => store).set(count as f64);
        let age = oldest.map_or(0.0, |since| now.since(since).as_secs_f64());
        metrics::gauge!("ngit_purgatory_oldest_seconds", "store" => store).set(age);
    };
    let (announcements, states) = (&purgatory.announcements, &purgatory.states);
    waits("announcements", announcements.len(), announcements.oldest());
    waits("states", states.len(), states.oldest());
    let pull_requests = &purgatory.pull_requests;
    waits("pull_requests", pull_requests.len(), pull_requests.oldest());
    let kept_alive = purgatory.kept_alive_count();
    metrics::gauge!("ngit_purgatory_bytes").set(purgatory.memory() as f64);
    metrics::gauge!("ngit_purgatory_kept_alive_entries").set(kept_alive as f64);
    metrics::gauge!("ngit_purgatory_doomed_repositories").set(purgatory.doomed().len() as f64);
    metrics::gauge!("ngit_held_repositories").set(release.holding.len() as f64);
    metrics::gauge!("ngit_repositories_active").set(release.repositories.active() as f64);
}

/// Sweeps, and tries again what failed as soon as the git storage is there, until `stop`.
pub async fn run(
    release: Release,
    serial: Serial,
    hunt: Hunt,
    every: Duration,
    stop: CancellationToken,
) {
    let mut sweeps = tokio::time::interval_at(Instant::now() + FIRST_AFTER, every);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watch = tokio::time::interval(WATCH_EVERY);
    watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_there = true;
    let mut looked = release.purgatory.now();
    loop {
        let is_due = tokio::select! {
            () = stop.cancelled() => return,
            _ = sweeps.tick() => true,
            _ = watch.tick() => false,
        };
        let passed = release.purgatory.now().since(looked);
        if passed >= SUSPENDED {
            tracing::info!(
                ?passed,
                "time has passed unseen: nothing expires for a while"
            );
            sweeps.reset_after(FIRST_AFTER);
        } else if is_due {
            sweep(&release, &serial, &hunt).await;
        }
        if !is_due {
            measure(&release);
            let is_there = release.git.reachable().await;
            metrics::gauge!("ngit_git_storage_reachable").set(f64::from(is_there));
            if is_there {
                if !was_there {
                    tracing::info!("the git storage is back");
                    settle_places(&release, &serial).await;
                }
                try_unfinished(&release, &serial).await;
            } else if was_there && !is_there {
                tracing::warn!("the git storage cannot be reached: nothing expires");
            }
            was_there = is_there;
        }
        // What was done meanwhile took its time.
        looked = release.purgatory.now();
    }
}
