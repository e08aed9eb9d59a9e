//! Admin: what an operator's commands ask (see `admin.proto`). Figures are read as they are; what
//! needs a look at every entry is done on a blocking thread.
//!
//! - `repositories.rs`: all that is known and all that lies on disk, joined
//! - `cleanup.rs`: what is empty and unwanted goes
//! - `holding.rs`: what was taken out of service, to list, bring back, throw away
//! - `backup.rs`: everything at one moment
//! - `export.rs`: the events that are served

mod backup;
mod cleanup;
mod export;
mod holding;
mod lines;
mod repositories;

use std::sync::Arc;

use futures::stream::BoxStream;
use grasp_proto::{
    contract::relay::{self as wire, admin_server},
    words::Identifier,
};
use nostr::Timestamp;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use self::export::Wanted;
use self::holding::HoldingService;
use self::repositories::Asked;
use super::import;
use crate::{
    clock::Moment,
    git::GitError,
    hunt::{Hunt, budget::DomainFigures, queue::EntryFigures, workers::Worker},
    policy::curation::Curation,
    purgatory::Purgatory,
    release::Release,
    serial::{Serial, Turn},
    sync::{Overview, RemoteFigures, reports::State},
    targets::Level,
    verdict::Door,
};

/// Lines of a list, unless the caller says otherwise.
const LINES: usize = 20;
/// The most lines of a list.
const MOST_LINES: usize = 1_000;

/// The Admin service.
#[derive(Clone)]
pub struct AdminService {
    release: Release,
    serial: Serial,
    hunt: Hunt,
    curation: Curation,
    sync: Option<Overview>,
    door: Option<Arc<dyn Door>>,
    backups: Arc<Semaphore>,
    exports: Arc<Semaphore>,
}

/// Backups at once.
const BACKUPS: usize = 1;
/// Exports at once: each keeps a reading of the store open.
const EXPORTS: usize = 4;

impl AdminService {
    /// The service over what is served and what is hunted for.
    pub fn new(release: Release, serial: Serial, hunt: Hunt, curation: Curation) -> Self {
        Self {
            release,
            serial,
            hunt,
            curation,
            sync: None,
            door: None,
            backups: Arc::new(Semaphore::new(BACKUPS)),
            exports: Arc::new(Semaphore::new(EXPORTS)),
        }
    }

    /// What is held, which comes back by the door.
    fn held(&self) -> Result<HoldingService, Status> {
        let none = || Status::unimplemented("no event can be brought back here");
        Ok(HoldingService {
            release: self.release.clone(),
            serial: self.serial.clone(),
            curation: self.curation.clone(),
            door: self.door.clone().ok_or_else(none)?,
        })
    }

    /// Besides, over relay-to-relay sync.
    #[must_use]
    pub fn with_sync(self, overview: Overview) -> Self {
        let sync = Some(overview);
        Self { sync, ..self }
    }

    /// Besides, with the door that events go through which are handed over.
    #[must_use]
    pub fn with_door(self, door: Arc<dyn Door>) -> Self {
        let door = Some(door);
        Self { door, ..self }
    }
}

/// What one kind of entry amounts to.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    entries: u64,
    oldest: Option<Moment>,
    first_expiry: Option<Moment>,
}

impl Sum {
    fn add(&mut self, created: Moment, expires: Moment) {
        self.entries += 1;
        self.oldest = Some(self.oldest.map_or(created, |known| known.min(created)));
        let first = self
            .first_expiry
            .map_or(expires, |known| known.min(expires));
        self.first_expiry = Some(first);
    }

    fn into_kind(self, kind: &str) -> wire::PurgatoryKind {
        let millis = |moment: Option<Moment>| moment.map_or(0, Moment::as_millis);
        wire::PurgatoryKind {
            kind: kind.to_owned(),
            entries: self.entries,
            oldest_millis: millis(self.oldest),
            first_expiry_millis: millis(self.first_expiry),
        }
    }
}

fn purgatory_status(purgatory: &Purgatory) -> wire::PurgatoryStatus {
    let (mut announcements, mut soft_expired) = (Sum::default(), Sum::default());
    purgatory.announcements.each(|entry| {
        let sum = match entry.soft_expired {
            true => &mut soft_expired,
            false => &mut announcements,
        };
        sum.add(entry.created, entry.expires);
    });
    let mut states = Sum::default();
    purgatory
        .states
        .each(|entry| states.add(entry.created, entry.expires));
    let (mut requests, mut placeholders) = (Sum::default(), Sum::default());
    purgatory.pull_requests.each(|entry| {
        let sum = match entry.request {
            Some(_) => &mut requests,
            None => &mut placeholders,
        };
        sum.add(entry.created, entry.expires);
    });
    wire::PurgatoryStatus {
        kinds: vec![
            announcements.into_kind("announcements"),
            soft_expired.into_kind("soft-expired announcements"),
            states.into_kind("states"),
            requests.into_kind("pull requests"),
            placeholders.into_kind("placeholders"),
        ],
        doomed: purgatory.doomed().len() as u64,
    }
}

fn entry(entry: EntryFigures) -> wire::QueueEntry {
    wire::QueueEntry {
        identifier: entry.identifier.to_string(),
        next_attempt_millis: entry.due.as_millis(),
        attempts: entry.attempts,
        worker: entry.worker.unwrap_or_default(),
    }
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn domain(figures: DomainFigures) -> wire::DomainStatus {
    wire::DomainStatus {
        domain: figures.domain,
        in_flight: narrow(figures.running),
        last_minute: narrow(figures.last_minute),
        waiting: narrow(figures.waiting),
        set_aside_until_millis: figures.aside_until.map_or(0, Moment::as_millis),
        times_set_aside: figures.times_aside,
    }
}

fn worker((name, worker): (&str, &Worker)) -> wire::WorkerStatus {
    wire::WorkerStatus {
        worker: name.to_owned(),
        leases: narrow(worker.leases),
        counts: Some(wire::HuntCounts {
            fetches_succeeded: worker.counts.succeeded,
            fetches_failed: worker.counts.failed,
            bytes: worker.counts.bytes,
            fetching: worker.counts.fetching,
            concurrency: worker.counts.concurrency,
        }),
        seen_millis: worker.seen.as_millis(),
    }
}

fn relay_state(state: State) -> wire::RelayState {
    match state {
        State::Disconnected => wire::RelayState::Disconnected,
        State::Connecting => wire::RelayState::Connecting,
        State::Syncing => wire::RelayState::Syncing,
        State::Connected => wire::RelayState::Connected,
        State::ConnectedWithFailures => wire::RelayState::ConnectedWithFailures,
    }
}

fn remote_relay(figures: RemoteFigures) -> wire::RemoteRelayStatus {
    let millis = |moment: Option<Moment>| moment.map_or(0, Moment::as_millis);
    let report = figures.report;
    wire::RemoteRelayStatus {
        url: figures.url.to_string(),
        worker: figures.worker,
        bootstrap: figures.bootstrap,
        repositories: narrow(figures.targets),
        state: relay_state(report.state).into(),
        health: figures.health.as_str().to_owned(),
        subscriptions: report.subscriptions,
        confirmed: report.confirmed,
        wanted: report.wanted,
        attempts_succeeded: report.counts.succeeded,
        attempts_failed: report.counts.failed,
        events_live: report.counts.live,
        events_negentropy: report.counts.negentropy,
        events_paged: report.counts.paged,
        next_attempt_millis: millis(report.next_attempt),
        silent_until_millis: millis(report.silent_until),
        last_error: report.last_error,
    }
}

fn sync_status(overview: &Overview, most: usize) -> wire::SyncStatus {
    let figures = overview.syncing.figures(most);
    let (rejected_whole, rejected_ids) = overview.judge.sizes();
    let (full, state_only, roots) = overview.wanted.look(|targets| {
        let roots = targets.all().map(|(_, target)| target.roots.len());
        let count = |level| targets.count(level) as u64;
        (
            count(Level::Full),
            count(Level::StateOnly),
            roots.sum::<usize>() as u64,
        )
    });
    wire::SyncStatus {
        full,
        state_only,
        roots,
        remote_relays: figures.all as u64,
        connected: figures.connected as u64,
        more_relays: narrow(figures.all - figures.relays.len()),
        relays: figures.relays.into_iter().map(remote_relay).collect(),
        rejected_whole: rejected_whole as u64,
        rejected_ids: rejected_ids as u64,
    }
}

#[tonic::async_trait]
impl admin_server::Admin for AdminService {
    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let most = match usize::try_from(request.into_inner().most) {
            Ok(0) => LINES,
            Ok(most) => most.min(MOST_LINES),
            Err(_) => MOST_LINES,
        };
        let purgatory = self.release.purgatory.clone();
        let purgatory = tokio::task::spawn_blocking(move || purgatory_status(&purgatory));
        let purgatory = purgatory
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let (queue, mut domains, workers) = self.hunt.act(|queue, now| {
            queue.tick(now);
            let workers: Vec<wire::WorkerStatus> = queue.workers.all().map(worker).collect();
            (queue.figures(most), queue.budget.figures(now), workers)
        });
        let more_domains = domains.len().saturating_sub(most);
        domains.truncate(most);
        Ok(Response::new(wire::StatusResponse {
            purgatory: Some(purgatory),
            queue: Some(wire::QueueStatus {
                identifiers: queue.identifiers as u64,
                leased: queue.leased as u64,
                due: queue.ready as u64,
                waiting_for_domains: queue.waiting as u64,
                entries: queue.entries.into_iter().map(entry).collect(),
            }),
            domains: domains.into_iter().map(domain).collect(),
            more_domains: narrow(more_domains),
            workers,
            repositories: self.release.repositories.active() as u64,
            git_reachable: self.release.git.reachable().await,
            sync: self.sync.as_ref().map(|sync| sync_status(sync, most)),
        }))
    }

    type RepositoriesStream = BoxStream<'static, Result<wire::RepositoriesResponse, Status>>;

    async fn repositories(
        &self,
        request: Request<wire::RepositoriesRequest>,
    ) -> Result<Response<Self::RepositoriesStream>, Status> {
        let asked = Asked::read(request.into_inner())?;
        let rules = self.curation.rules();
        let listed = repositories::list(self.release.clone(), rules, asked).await?;
        Ok(Response::new(listed))
    }

    type HoldingStream = BoxStream<'static, Result<wire::HoldingResponse, Status>>;

    async fn holding(
        &self,
        request: Request<wire::HoldingRequest>,
    ) -> Result<Response<Self::HoldingStream>, Status> {
        let listed = self.held()?.list(&request.into_inner()).await?;
        Ok(Response::new(listed))
    }

    async fn restore(
        &self,
        request: Request<wire::RestoreRequest>,
    ) -> Result<Response<wire::RestoreResponse>, Status> {
        let restored = self.held()?.restore(request.into_inner()).await?;
        Ok(Response::new(restored))
    }

    async fn eject(
        &self,
        request: Request<wire::EjectRequest>,
    ) -> Result<Response<wire::EjectResponse>, Status> {
        let ejected = self.held()?.eject(request.into_inner()).await?;
        Ok(Response::new(ejected))
    }

    async fn purge(
        &self,
        request: Request<wire::PurgeRequest>,
    ) -> Result<Response<wire::PurgeResponse>, Status> {
        let identifier = Identifier::parse(&request.into_inner().identifier)?;
        let (release, queue) = (self.release.clone(), identifier.clone());
        // Nothing that is decided meanwhile rests on what goes.
        let work = async move { release.git.prune(&identifier).await };
        let pruned = self.serial.run(&queue, Turn::Normal, work).await;
        let bytes = pruned.map_err(|error| git_failed(&error))?;
        Ok(Response::new(wire::PurgeResponse { bytes }))
    }

    type CleanupEmptyRepositoriesStream =
        BoxStream<'static, Result<wire::CleanupEmptyRepositoriesResponse, Status>>;

    async fn cleanup_empty_repositories(
        &self,
        request: Request<wire::CleanupEmptyRepositoriesRequest>,
    ) -> Result<Response<Self::CleanupEmptyRepositoriesStream>, Status> {
        let dry_run = request.into_inner().dry_run;
        let (release, serial) = (self.release.clone(), self.serial.clone());
        let cleaned = cleanup::clean(release, serial, dry_run).await?;
        Ok(Response::new(cleaned))
    }

    type BackupStream = BoxStream<'static, Result<wire::BackupResponse, Status>>;

    async fn backup(
        &self,
        request: Request<Streaming<wire::BackupRequest>>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let room = Arc::clone(&self.backups).try_acquire_owned();
        let room = room.map_err(|_| {
            Status::resource_exhausted("a backup is running already; try again when it has ended")
        })?;
        let domain = self.curation.rules().ours().to_string();
        let (release, serial) = (self.release.clone(), self.serial.clone());
        let parts = backup::run(release, serial, domain, request.into_inner(), room);
        Ok(Response::new(parts))
    }

    type ExportStream = BoxStream<'static, Result<wire::ExportResponse, Status>>;

    async fn export(
        &self,
        request: Request<wire::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let room = Arc::clone(&self.exports).try_acquire_owned();
        let room = room.map_err(|_| {
            Status::resource_exhausted("several exports run already; try again when one has ended")
        })?;
        let store = &self.release.store;
        let wanted = Wanted::read(&request.into_inner(), store.withheld(), Timestamp::now())?;
        Ok(Response::new(export::run(store, wanted, room).await?))
    }

    type ImportStream = import::Answers;

    async fn import(
        &self,
        request: Request<Streaming<wire::ImportRequest>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let door = self.door.clone();
        let door = door.ok_or_else(|| unknown("take events in"))?;
        Ok(Response::new(import::judge(door, request.into_inner())))
    }
}

/// The git side's reason, for an operator.
fn git_failed(error: &GitError) -> Status {
    match error {
        GitError::Unreachable(_) => Status::unavailable(error.to_string()),
        GitError::Refused(reason) => Status::failed_precondition(reason),
        _ => Status::internal(error.to_string()),
    }
}

fn unknown(what: &str) -> Status {
    Status::unimplemented(format!("this version of the relay cannot {what}"))
}
