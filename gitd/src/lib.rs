//! gitd, the hands: every object and ref on disk, smart HTTP, taking packs in.
//!
//! - [`smart_http`]: what git clients and browsers ask
//! - [`grpc`]: what relay and workers ask
//! - [`relay`]: what we ask the relay
//! - [`repository`]: views, pools, staging, refs, the intake
//! - [`config`]: what we are told
//! - [`busiest`]: which repositories move the most bytes
//! - `meters`: what is counted and timed
//!
//! [`run`] starts two listeners and the consolidator of packs. On the stop the smart HTTP listener
//! closes first; pushes that run need our gRPC service to end well, so that one goes on until the
//! transfers have ended or their grace has. gitd keeps no state that is not in a repository, and
//! judges nothing: a ref moves only when the relay says so.

pub mod busiest;
pub mod clock;
pub mod config;
pub mod grpc;
mod meters;
pub mod relay;
pub mod repository;
pub mod smart_http;
mod web;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use grasp_proto::{
    contract::git::{packs_server::PacksServer, repositories_server::RepositoriesServer},
    process::{
        Ready, Standing,
        data_lock::{self, DataLock, LockError},
        disk::DiskSpace,
        drain, metrics,
    },
    transport::{self, GrantKey, Guard, Role},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::interceptor::InterceptedService;

pub use config::Config;

use busiest::Busiest;
use relay::GrpcRelay;
use repository::{
    Repositories,
    consolidate::Consolidator,
    copied::Copier,
    git::{self, BadGit},
    intake::IntakeLimits,
    places::Places,
};
use smart_http::{Server, pace::Budget};

/// Git processes for readers at once. More wait in turn, so that a flood costs time and not the
/// machine.
const READERS: usize = 64;

/// Git processes that take wanted packs in at once; a pusher that is slow keeps its own.
const WRITERS: usize = 256;

/// Git processes that take in at once what nobody has signed for.
const STAGERS: usize = 64;

/// Git processes that take in at once what workers bring: none of those that pushers have.
const FETCHED: usize = 64;

/// Copies between pools at once.
const COPIED: usize = 2;

/// Bytes that the commands of all pushes may take of memory.
const COMMANDS: usize = 64 * 1024 * 1024;

/// Bytes that may be read of the packs of all pushes before these can be taken in, besides a little of each.
const READ_AHEAD: usize = 32 * 1024 * 1024;

/// Bytes that the requests of all readers may take of the disk.
const REQUESTS: usize = 1024 * 1024 * 1024;

/// How long calls of the relay may take to end after all transfers have.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Why gitd did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Git is not there, or too old.
    #[error(transparent)]
    Git(#[from] BadGit),
    /// The data directory cannot be used.
    #[error("git data directory {path}: {error}")]
    Data {
        /// Which.
        path: String,
        /// Why.
        error: repository::Error,
    },
    /// The data directory is not ours.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// A task of the process's own.
    #[error("a task of gitd ended: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// A listener cannot be opened.
    #[error("cannot listen on {endpoint}: {error}")]
    Listen {
        /// Where.
        endpoint: transport::Endpoint,
        /// Why.
        error: std::io::Error,
    },
    /// The gRPC server broke.
    #[error("gRPC server: {0}")]
    Grpc(#[from] tonic::transport::Error),
}

/// Ready means: what was opened at the start is still there.
struct Storage {
    data: PathBuf,
    disk: DiskSpace,
}

impl Ready for Storage {
    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            match tokio::fs::metadata(&self.data).await {
                Ok(found) if found.is_dir() => Ok(()),
                Ok(_) => Err("the git data path is no directory any more".to_owned()),
                Err(error) => Err(format!("the git data path cannot be read: {error}")),
            }
        })
    }

    fn shortage(&self) -> Option<String> {
        self.disk.shortage()
    }
}

/// Whether git is there, and new enough.
pub fn check_git() -> Result<(), Error> {
    Ok(git::check()?)
}

/// Runs gitd until `stop`, then lets transfers end within their grace.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    // It begins here.
    clock::now();
    // Before anything is touched, a listener's socket included.
    let data = config.data.clone();
    let _lock =
        tokio::task::spawn_blocking(move || DataLock::take(&data, Role::Gitd, data_lock::PATIENCE))
            .await??;
    metrics();
    meters::begin();
    let standing = Standing::new(Role::Gitd, stop.clone());
    let listening = standing.listen(config.metrics.as_ref()).await;
    let _listening = listening.map_err(|error| Error::Listen {
        // Without an address nothing is listened on, and nothing fails.
        endpoint: config.metrics.clone().unwrap_or(config.grpc.clone()),
        error,
    })?;
    git::limit_processes(config.process_limits);
    check_git()?;
    let (consolidator, pools) = Consolidator::new();
    let consolidator = Arc::new(consolidator);
    let disk = DiskSpace::new(Role::Gitd, Some(config.data.clone()), config.min_free_bytes);
    let space = disk.clone();
    let repositories = {
        let (data, consolidator) = (config.data.clone(), Arc::clone(&consolidator));
        let (limits, keep, prs) = (config.unsigned, config.keep.clone(), config.prs);
        let intake = IntakeLimits::new(config.pack_limits);
        let open = move || {
            let repositories =
                Repositories::open(data, consolidator, limits, intake, keep)?.with_disk(space);
            if prs {
                repositories.prepare_prs()?;
            }
            Ok(repositories)
        };
        tokio::task::spawn_blocking(open)
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
            .map_err(|error| Error::Data {
                path: config.data.display().to_string(),
                error,
            })?
    };
    let repositories = Arc::new(repositories);
    let listen = async |endpoint: &transport::Endpoint| {
        let opened = endpoint.listen().await;
        opened.map_err(|error| Error::Listen {
            endpoint: endpoint.clone(),
            error,
        })
    };
    let grpc_listener = listen(&config.grpc).await?;
    let http_listener = listen(&config.http).await?;

    let (tasks, kill) = (TaskTracker::new(), CancellationToken::new());
    let copier = Copier {
        packing: Places::new(COPIED),
        taking_in: Places::new(COPIED),
        max_pack_bytes: config.max_pack_bytes,
    };
    let service = grpc::repositories::Service::new(Arc::clone(&repositories), copier);
    let service = RepositoriesServer::new(service)
        .max_decoding_message_size(grpc::repositories::LARGEST_MESSAGE);
    let packs = PacksServer::new(grpc::packs::Service {
        repositories: Arc::clone(&repositories),
        key: GrantKey::new(&config.tokens),
        places: Places::new(FETCHED),
        max_pack_bytes: config.max_pack_bytes,
        tasks: tasks.clone(),
        kill: kill.clone(),
    })
    .max_decoding_message_size(grpc::packs::LARGEST_MESSAGE);
    let relay_only = Guard::new(&config.tokens, &[Role::Relay]);
    let workers_only = Guard::new(&config.tokens, &[Role::Worker]);
    let routes = transport::standard_routes_until(&config.tokens, stop.clone())
        .await
        .add_service(InterceptedService::new(service, relay_only))
        .add_service(InterceptedService::new(packs, workers_only));
    let stop_grpc = CancellationToken::new();
    let mut grpc = tokio::spawn(transport::serve(grpc_listener, routes, stop_grpc.clone()));

    let server = Arc::new(Server {
        repositories: Arc::clone(&repositories),
        relay: Arc::new(GrpcRelay::new(&config.relay, &config.tokens.gitd)),
        readers: Places::new(READERS),
        writers: Places::new(WRITERS),
        stagers: Places::new(STAGERS),
        commands: Budget::new(COMMANDS),
        read_ahead: Budget::new(READ_AHEAD),
        requests: Budget::new(REQUESTS),
        tasks: tasks.clone(),
        kill: kill.clone(),
        max_pack_bytes: config.max_pack_bytes,
        max_staged_pack_bytes: config.max_staged_pack_bytes,
        prs: config.prs,
        domain: config.domain,
        door: config.door,
        busiest: Busiest::new(config.named_repositories),
    });
    let stop_http = stop.child_token();
    let http = tokio::spawn(smart_http::serve(server, http_listener, stop_http.clone()));
    // Ends with this process; what it was at is found and done again at the next start.
    let consolidating = tokio::spawn(async move { consolidator.work(pools, repositories).await });
    let watching = tokio::spawn(disk.clone().watch());
    standing.is_up(Arc::new(Storage {
        data: config.data.clone(),
        disk,
    }));
    tracing::info!(http = %config.http, grpc = %config.grpc, data = %config.data.display(), "gitd is up");

    let early = tokio::select! {
        () = stop.cancelled() => None,
        ended = &mut grpc => Some(ended),
    };
    stop_http.cancel();
    tasks.close();
    let transfers = async {
        let _ = http.await;
        tasks.wait().await;
    };
    if !drain(transfers, config.grace).await {
        tracing::warn!("transfers are cut off: their grace is over");
        kill.cancel();
        drain(tasks.wait(), LAST_CALLS).await;
    }
    watching.abort();
    consolidating.abort();
    let _ = consolidating.await;
    stop_grpc.cancel();
    let ended = match early {
        Some(ended) => Some(ended),
        None => tokio::time::timeout(LAST_CALLS, grpc).await.ok(),
    };
    match ended {
        Some(Ok(result)) => Ok(result?),
        Some(Err(_)) | None => Ok(()),
    }
}
