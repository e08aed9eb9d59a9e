//! What the operator's lists take out of service, and bring back.
//!
//! Nothing served is deleted: what a blacklist names stays where it is, and the store and
//! [`Repositories`] are as if it were not there – so is everything that was accepted only because of
//! it. What is withheld is worked out anew at every start and whenever the lists are read again
//! ([`run`]), from all that is kept, so that nothing needs to be remembered: what no list names any
//! more is back.
//!
//! What waits in purgatory and would not be accepted now is dropped; it can be sent again.
//!
//! gitd is told what the blacklists name ([`tell_git`]), since git's ways may lead past this process, and before
//! they count here ([`tell_first`]): whatever is judged by them asks gitd what is public.

pub mod refs;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use grasp_proto::words::{EventId, RepoId};
use nostr::Filter;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    git::{Git, GitError},
    hunt::{Hunt, heal},
    nip34::{self, announcement::Announcement, id_of},
    policy::curation::{Curation, Place, Rules},
    release::Release,
    repository::{Repositories, Standing},
    retire::{RetireError, fallen::Unannounced},
    serial::{Serial, Turn},
    store::{Store, StoreError, public_key},
};

/// Repositories that gitd is asked to make at once.
const AT_ONCE: usize = 4;
/// Pull requests read at once.
const REQUESTS_AT_ONCE: usize = 100;
/// Looks at what changed while it was looked at, one after the other.
const LOOKS: usize = 3;

/// How often it is looked whether gitd knows the lists as they are.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What the store holds of announcements, into memory.
pub async fn load_served(
    store: &Store,
    repositories: &Repositories,
    rules: &Rules,
) -> Result<(), StoreError> {
    for event in store.query(Filter::new().kind(nip34::ANNOUNCEMENT)).await? {
        let id = event.id;
        match Announcement::read(Arc::new(event)) {
            Ok(announcement) => repositories.set(&announcement, standing(&announcement, rules)),
            Err(error) => tracing::warn!(%id, %error, "a stored announcement is unreadable"),
        }
    }
    Ok(())
}

/// How a stored announcement stands.
fn standing(announcement: &Announcement, rules: &Rules) -> Standing {
    match rules.is_here(announcement) {
        true => Standing::Active,
        false => Standing::Elsewhere,
    }
}

/// What is to be withheld, and what is announced then.
struct Plan {
    withheld: HashSet<EventId>,
    served: Arc<Repositories>,
}

/// Works out what is to be withheld, on a copy of what is known.
async fn plan(release: &Release, rules: &Rules) -> Result<Plan, RetireError> {
    let apart = Release {
        store: release.store.apart(),
        repositories: Arc::new(Repositories::new(release.repositories.rule())),
        ..release.clone()
    };
    load_served(&apart.store, &apart.repositories, rules).await?;
    let mut withheld = HashSet::new();
    let mut blocked = Vec::new();
    for repo in apart.repositories.all() {
        if rules.blocks(&repo)
            && let Some(announcement) = apart.store.announcement(&repo).await?
        {
            apart.repositories.remove(&repo);
            withheld.insert(id_of(&announcement));
            blocked.push((repo, announcement));
        }
    }
    apart.store.withhold(withheld.iter().copied());
    for (repo, announcement) in &blocked {
        let fallen = apart
            .fallen(repo, announcement, Unannounced::Ignored)
            .await?;
        apart.announced_no_more(&fallen.repositories);
        withheld.extend(fallen.events);
        apart.store.withhold(withheld.iter().copied());
    }
    // Last, as what falls is found by following references, through these too.
    let mut theirs = HashSet::new();
    for author in rules.banned() {
        let own = Filter::new().author(public_key(*author));
        let items = apart.store.items(own).await?;
        theirs.extend(items.into_iter().map(|(id, _)| id));
    }
    theirs.extend(requests_kept_out(&apart, rules).await?);
    if !theirs.is_empty() {
        withheld.extend(apart.fallen_with(&theirs).await?);
        withheld.extend(theirs);
    }
    Ok(Plan {
        withheld,
        served: apart.repositories,
    })
}

/// The stored pull requests that belong to what is on a blacklist alone. A space of their authors' would
/// have them stand.
async fn requests_kept_out(apart: &Release, rules: &Rules) -> Result<Vec<EventId>, StoreError> {
    if rules.blocks_nothing() {
        return Ok(Vec::new());
    }
    let requests = Filter::new().kinds([nip34::PULL_REQUEST, nip34::PULL_REQUEST_UPDATE]);
    let items = apart.store.apart().items(requests).await?;
    let ids: Vec<EventId> = items.into_iter().map(|(id, _)| id).collect();
    let mut kept_out = Vec::new();
    for chunk in ids.chunks(REQUESTS_AT_ONCE) {
        let events = apart.store.apart().by_ids(chunk).await?.into_iter();
        let blocked = events.filter(|event| rules.blocks_request(event, &apart.spaces));
        kept_out.extend(blocked.map(|event| id_of(&event)));
    }
    Ok(kept_out)
}

/// Makes what is served, and what waits, what the rules allow now. Says whether anything changed
/// that is served.
pub async fn apply(
    release: &Release,
    serial: &Serial,
    curation: &Curation,
) -> Result<bool, RetireError> {
    let rules = curation.rules();
    let mut changed = false;
    // What was being judged by the rules of before may have come meanwhile.
    for _ in 0..LOOKS {
        if !once(release, serial, &rules).await? {
            break;
        }
        changed = true;
    }
    drop_waiting(release, serial, &rules).await?;
    Ok(changed)
}

async fn once(release: &Release, serial: &Serial, rules: &Rules) -> Result<bool, RetireError> {
    let Plan { withheld, served } = plan(release, rules).await?;
    let before = release.store.withheld();
    let mut changed = withheld != before;
    let (out, back) = (
        withheld.difference(&before).count(),
        before.difference(&withheld).count(),
    );
    release.store.withhold(withheld);
    if out + back > 0 {
        tracing::info!(out, back, "events are taken out of service, and are back");
    }
    let all: BTreeSet<RepoId> = release.repositories.all().into_iter().collect();
    let all = all.into_iter().chain(served.all());
    for repo in all.collect::<BTreeSet<_>>() {
        let is = release.repositories.standing(&repo);
        if is == Some(Standing::Waiting) || is == served.standing(&repo) {
            continue;
        }
        changed = true;
        let (release, queue) = (release.clone(), repo.identifier.clone());
        let rules = rules.clone();
        let work = async move { stand(&release, &rules, &repo).await };
        serial.run(&queue, Turn::Normal, work).await?;
    }
    Ok(changed)
}

/// In the queue of its identifier: a repository stands as the store says, which may say something
/// else by now than when it was looked at.
async fn stand(release: &Release, rules: &Rules, repo: &RepoId) -> Result<(), RetireError> {
    if release.repositories.standing(repo) == Some(Standing::Waiting) {
        return Ok(());
    }
    let stored = release.store.announcement(repo).await?;
    match stored.and_then(|event| Announcement::read(Arc::new(event)).ok()) {
        Some(announcement) => {
            let standing = standing(&announcement, rules);
            tracing::info!(%repo, ?standing, "by the operator's rules");
            release.repositories.set(&announcement, standing);
        }
        None => {
            tracing::info!(%repo, "out of service by the operator's rules");
            release.purgatory.note_withheld(repo).await?;
            release.repositories.remove(repo);
        }
    }
    Ok(())
}

/// What waits and would not be accepted now waits no more.
async fn drop_waiting(
    release: &Release,
    serial: &Serial,
    rules: &Rules,
) -> Result<(), RetireError> {
    let purgatory = &release.purgatory;
    for repo in purgatory.announcements.all() {
        let waiting = purgatory.announcements.get(&repo);
        let is_wanted =
            |one: &Announcement| matches!(rules.place(one), Place::Hosted | Place::Archived);
        if waiting.is_none_or(|entry| is_wanted(&entry.announcement)) {
            continue;
        }
        tracing::info!(%repo, "waits no more, by the operator's rules");
        let (release, queue) = (release.clone(), repo.identifier.clone());
        let work = async move { release.drop_waiting(&repo).await };
        serial.run(&queue, Turn::Normal, work).await?;
    }
    let mut banned = Vec::new();
    purgatory.states.each(|entry| {
        if rules.bans(&entry.state.author) {
            banned.push((entry.state.id(), entry.state.identifier.clone()));
        }
    });
    for (id, identifier) in banned {
        let purgatory = purgatory.clone();
        let work = async move { purgatory.remove_state(&id) };
        serial.run(&identifier, Turn::Normal, work).await;
    }
    Ok(purgatory.flush().await?)
}

/// Takes the pull requests that the blacklists keep out from purgatory, with their refs, and the refs of
/// those that are withheld out of repositories, or puts them back there ([`refs`]); makes the
/// repositories that are to be here by the rules of now and were not before. Needs gitd.
pub async fn settle(release: &Release, serial: &Serial, curation: &Curation) {
    let rules = curation.rules();
    let mut kept_out = Vec::new();
    release.purgatory.pull_requests.each(|entry| {
        if let Some(request) = &entry.request
            && (rules.bans(&request.author)
                || rules.blocks_request(&request.event, &release.spaces))
        {
            kept_out.push((request.id(), request.identifiers().into_iter().next()));
        }
    });
    for (id, identifier) in kept_out {
        let release = release.clone();
        let work = async move {
            let entry = release.purgatory.remove_pull_request(&id);
            let pushed = entry.into_iter().flat_map(|entry| entry.pushed.into_keys());
            release.take_refs_away(&id, pushed).await;
        };
        match identifier {
            Some(identifier) => serial.run(&identifier, Turn::Normal, work).await,
            None => work.await,
        }
    }
    if let Err(error) = release.purgatory.flush().await {
        tracing::error!(%error, "what waits no more is not forgotten yet");
    }
    if let Err(error) = refs::settle(release, serial).await {
        tracing::error!(%error, "refs of pull requests are not as the lists say");
    }
    if rules.archive().is_some() {
        make_archived(release, serial, &rules).await;
    }
}

/// One that was served for its maintainers' sake, and is archived now, has no repository yet.
async fn make_archived(release: &Release, serial: &Serial, rules: &Rules) {
    let archived = |repo: RepoId| async move {
        if release.repositories.standing(&repo) != Some(Standing::Active) {
            return;
        }
        match release.store.announcement(&repo).await {
            Ok(Some(event)) => match Announcement::read(Arc::new(event)) {
                Ok(announcement) if rules.is_archive(&announcement) => {}
                _ => return,
            },
            _ => return,
        }
        let (release, queue) = (release.clone(), repo.identifier.clone());
        let work = async move {
            match release.make(&repo).await {
                Ok(()) | Err(GitError::Unreachable(_)) => {}
                Err(error) => tracing::warn!(%repo, %error, "an archive has no repository"),
            }
        };
        serial.run(&queue, Turn::Normal, work).await;
    };
    let all = stream::iter(release.repositories.all());
    all.for_each_concurrent(AT_ONCE, archived).await;
}

/// Tells gitd what the blacklists name, whenever that has changed or gitd was away, until `stop`. It
/// remembers what it was told; but who started again may have been given another disk.
pub async fn tell_git(git: Arc<dyn Git>, curation: Curation, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told: Option<Arc<Rules>> = None;
    let mut complained = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let rules = curation.rules();
        if told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &rules)) {
            if !git.reachable().await {
                told = None;
            }
            continue;
        }
        match git.withhold(rules.blocked()).await {
            Ok(()) => {
                told = Some(rules);
                complained = false;
            }
            Err(GitError::Unreachable(_)) => {}
            Err(error) if !complained => {
                complained = true;
                tracing::error!(%error, "git paths that lead past the relay may show what is on a blacklist");
            }
            Err(_) => {}
        }
    }
}

/// Hears SIGHUP from now on.
pub fn hangups() -> Option<Signal> {
    let hangups = signal(SignalKind::hangup());
    if let Err(error) = &hangups {
        tracing::error!(%error, "lists are not read again: no signal will be heard");
    }
    hangups.ok()
}

/// The rules by the lists that are files as they are now; `None` if there are no such, or one is wrong, which is
/// told in the log.
pub async fn read_again(curation: &Curation) -> Option<Rules> {
    if !curation.has_files() {
        return None;
    }
    let reader = curation.clone();
    match tokio::task::spawn_blocking(move || reader.read_again()).await {
        Ok(Ok(rules)) => return Some(rules),
        Ok(Err(error)) => tracing::warn!("the lists stay as they were: {error}"),
        Err(error) => tracing::error!(%error, "the lists stay as they were"),
    }
    None
}

/// Tells gitd what these rules have on a blacklist, before they count here.
pub async fn tell_first(git: &dyn Git, rules: &Rules) {
    if let Err(error) = git.withhold(rules.blocked()).await {
        tracing::warn!(%error, "the git storage is told later what is on a blacklist");
    }
}

/// Reads the lists that are files again at every hangup, until `stop`; `changed` is called when they
/// have been.
pub async fn run(
    hangups: Option<Signal>,
    curation: Curation,
    release: Release,
    serial: Serial,
    hunt: Hunt,
    changed: impl Fn() + Send,
    stop: CancellationToken,
) {
    let Some(mut hangups) = hangups else {
        return stop.cancelled().await;
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hangups.recv() => {}
        }
        let Some(rules) = read_again(&curation).await else {
            continue;
        };
        tell_first(&*release.git, &rules).await;
        curation.replace(rules);
        match apply(&release, &serial, &curation).await {
            Ok(_) => {
                curation.rules().tell();
                tracing::info!("the lists were read again");
            }
            Err(error) => tracing::error!(%error, "the lists were read, and not all done by them"),
        }
        changed();
        settle(&release, &serial, &curation).await;
        // Whoever's state was the latest may not be it now.
        let work = heal::everything(&hunt, &release, &serial);
        stop.run_until_cancelled(work).await;
    }
}
