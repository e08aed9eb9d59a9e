//! The relay: the brain of graspd.
//!
//! From above: [`http`] and [`session`] are the public face, [`grpc`] the internal one. Both end in
//! [`admit`], the one door for events, and [`grpc::push`], the judge of pushes; both of these in
//! [`release`], the one way out of [`purgatory`]. What is decided about one identifier is decided in
//! its queue ([`serial`]). [`store`] and [`journal`] keep what must not be lost; [`git`] is all
//! that is known of gitd. What waits for git data is looked for by the [`hunt`], which
//! workers are sent on.
//!
//! Tasks that run as long as the process: the internal services, the sweep, what comes back, the hunt's and the sync's
//! clocks, what is judged again, what is to be synced, the operator's lists, the public face. None is
//! respawned: a panic in one of them ends the process, and its supervisor starts it anew.

pub mod admit;
pub mod clock;
pub mod config;
pub mod domain;
pub mod git;
pub mod grpc;
pub mod holding;
pub mod http;
pub mod hunt;
pub mod journal;
pub mod live;
pub mod maintainers;
mod meters;
pub mod nip34;
pub mod policy;
pub mod purgatory;
pub mod release;
pub mod repository;
pub mod requests;
pub mod restore;
pub mod retire;
pub mod serial;
pub mod session;
pub mod store;
pub mod sweep;
pub mod sync;
pub mod targets;
pub mod verdict;
pub mod withhold;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use grasp_proto::{
    contract::relay::{
        admin_server::AdminServer, hunt_server::HuntServer, push_server::PushServer,
        relay_sync_server::RelaySyncServer,
    },
    process::{self, Ready, Standing, restoring},
    transport::{self, GrantKey, Guard, Role},
};
use nostr::Filter;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

pub use config::Config;

use crate::{
    admit::Admit,
    clock::Clock,
    config::Backend,
    git::{Git, Gitd},
    grpc::{
        admin::AdminService,
        hunt::HuntService,
        push::PushService,
        relay_sync::{self, RelaySyncService},
    },
    holding::Holding,
    http::Face,
    hunt::{Hunt, Hunter, heal},
    journal::{Journal, JournalError},
    live::Live,
    purgatory::Purgatory,
    release::Release,
    repository::Repositories,
    requests::Requests,
    serial::Serial,
    session::Patience,
    store::{
        Store, StoreError,
        format::{self, Foreign},
    },
    sync::{Hooks, Overview, Syncing, judge::Judge},
    targets::{feed::Wanted, relay_url::Named},
};

/// Why the relay did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The event store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data path holds a database of another kind.
    #[error(transparent)]
    Foreign(#[from] Foreign),
    /// The purgatory journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Deletion requests that were here already.
    #[error(transparent)]
    Requests(#[from] requests::AgeingError),
    /// What was being taken out of service when the last process ended.
    #[error(transparent)]
    Retire(#[from] retire::RetireError),
    /// The data directory.
    #[error(transparent)]
    NotWhole(#[from] restoring::NotWhole),
    /// A listener.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, std::io::Error),
    /// The internal services.
    #[error("the internal services failed: {0}")]
    Internal(#[from] tonic::transport::Error),
    /// A task of the process's own.
    #[error("a task of the relay ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Room for the commands of the largest push.
const MAX_MESSAGE: usize = 64 << 20;
/// How long a start waits for the first relay to be tried.
const TRY_BOOTSTRAP: Duration = Duration::from_secs(2);
/// How long a start waits between two looks for gitd.
const LOOK_FOR_GITD: Duration = Duration::from_millis(20);

/// Runs the relay until `stop`. `ready` is told the public address once it is open: after the
/// internal services, what waited before the last end, and gitd.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<(), Error> {
    // Before anything that takes its time: whoever asks meanwhile is heard afterwards.
    let hangups = withhold::hangups();
    withhold::read_again(&config.curation).await;
    let config = Arc::new(config);
    // From the first on nothing is counted in vain.
    process::metrics();
    meters::begin();
    let standing = Standing::new(Role::Relay, stop.clone());
    let listening = standing.listen(config.metrics_address.as_ref()).await;
    let _listening =
        listening.map_err(|error| Error::Listen("the address for monitoring".to_owned(), error))?;
    if config.test {
        tracing::warn!("NGIT_TEST is set: quick clocks, for tests only");
    }
    if config.backend == Backend::Lmdb {
        let directory = config.data_path.clone();
        tokio::task::spawn_blocking(move || format::check(&directory)).await??;
        restoring::check_whole(&config.data_path)?;
    }
    let store = Store::open(config.backend, &config.data_path).await?;
    let (journal, records) = open_journal(&config).await?;
    let clock = Clock::system();
    let hunt = Hunt::open(config.hunt.rules, journal.clone(), clock.clone(), &records).await?;
    let key = GrantKey::new(&config.tokens);
    let syncing = Syncing::open(
        config.sync.lease,
        bootstrap(&config).as_ref(),
        &key,
        journal.clone(),
        clock.clone(),
        &records,
    )
    .await?;
    let purgatory = Arc::new(Purgatory::new(journal.clone(), clock.clone()));
    let repositories = Arc::new(Repositories::default());
    config.curation.rules().tell();
    withhold::load_served(&store, &repositories, &config.curation.rules()).await?;
    purgatory.restore(records);
    let gitd = Gitd::new(&config.gitd_grpc, &config.tokens.relay);
    let git: Arc<dyn Git> = Arc::new(gitd);
    let holding = Holding::open(journal.clone(), clock.clone(), config.deletions.held_for).await?;
    let requests = Requests::new(journal, clock.clone(), config.deletions.acted_on);
    if !requests.acts() {
        tracing::warn!(
            "NGIT_DELETION_REQUEST_DISRESPECTOR is set: requests to delete or to vanish are served, \
             and not acted on"
        );
    }
    requests.adopt(&store).await?;
    let release = Release {
        store: store.clone(),
        holding: Arc::new(holding),
        requests: Arc::new(requests),
        purgatory: purgatory.clone(),
        repositories,
        git: git.clone(),
        live: Arc::new(Live::new()),
        spaces: config.spaces.clone(),
        going_on: Arc::default(),
        unfinished: Arc::default(),
    };
    let serial = Serial::default();
    sweep::reconcile(&release).await?;
    // Before anybody can ask for anything.
    withhold::apply(&release, &serial, &config.curation).await?;
    let door = Arc::new(Admit::new(
        release.clone(),
        serial.clone(),
        hunt.clone(),
        config.curation.clone(),
        config.limits.max_event_bytes,
    ));
    let wanted = Wanted::new(config.domain.clone());
    let judge = Judge::new(door.clone(), config.sync.rejected, clock);
    let hooks = Arc::new(Hooks {
        wanted: wanted.clone(),
        judge: judge.clone(),
    });
    release.repositories.tell(hooks.clone());
    release.live.tell(hooks);

    let internal = CancellationToken::new();
    let guard = |roles| Guard::new(&config.tokens, roles);
    let push = PushService::new(
        release.clone(),
        serial.clone(),
        config.curation.clone(),
        hunt.clone(),
    );
    let push = PushServer::new(push)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let hunter = Hunter {
        hunt: hunt.clone(),
        release: release.clone(),
        serial: serial.clone(),
        key,
        ours: config.domain.clone(),
        max_pack_bytes: config.hunt.max_pack_bytes,
        stop: stop.clone(),
    };
    let hunting =
        HuntServer::new(HuntService::new(hunter.clone())).max_encoding_message_size(MAX_MESSAGE);
    let relay_sync = RelaySyncService::new(
        wanted.clone(),
        syncing.clone(),
        judge.clone(),
        release.clone(),
        config.keys.clone(),
        stop.clone(),
    );
    let relay_sync = RelaySyncServer::new(relay_sync)
        .max_decoding_message_size(relay_sync::MAX_MESSAGE)
        .max_encoding_message_size(relay_sync::MAX_MESSAGE);
    let admin = AdminService::new(
        release.clone(),
        serial.clone(),
        hunt.clone(),
        config.curation.clone(),
    )
    .with_sync(Overview {
        wanted: wanted.clone(),
        syncing: syncing.clone(),
        judge: judge.clone(),
    })
    .with_door(door.clone());
    let admin = AdminServer::new(admin);
    let routes = transport::standard_routes_until(&config.tokens, stop.clone())
        .await
        .add_service(InterceptedService::new(push, guard(&[Role::Gitd])))
        .add_service(InterceptedService::new(hunting, guard(&[Role::Worker])))
        .add_service(InterceptedService::new(relay_sync, guard(&[Role::Worker])))
        .add_service(InterceptedService::new(admin, guard(&[Role::Relay])));
    let listener = config
        .grpc
        .listen()
        .await
        .map_err(|error| Error::Listen(config.grpc.to_string(), error))?;
    let services = tokio::spawn(transport::serve(listener, routes, internal.clone()));
    let leasing = tokio::spawn(syncing.clone().run(internal.clone()));
    let judging = tokio::spawn(judge.clone().run(internal.clone()));
    let feeding = {
        let (release, syncing) = (release.clone(), syncing.clone());
        let changed = move |targets: &targets::Targets| syncing.want(targets);
        tokio::spawn(wanted.run(release, config.sync.window, internal.clone(), changed))
    };

    if !wait_for_gitd(&*git, &stop).await {
        internal.cancel();
        return Ok(());
    }
    let telling = tokio::spawn(withhold::tell_git(
        git.clone(),
        config.curation.clone(),
        internal.clone(),
    ));
    withhold::settle(&release, &serial, &config.curation).await;
    if let Err(error) = holding::expiry::adopt_retired(&release).await {
        tracing::error!(%error, "retired repositories of before are not looked for");
    }
    door.resume_requests().await;
    sweep::try_everything(&release, &serial).await;
    holding::give_back::resume(&release);
    let returning = tokio::spawn(holding::give_back::run(
        release.clone(),
        serial.clone(),
        config.curation.clone(),
        sweep::EVERY,
        internal.clone(),
    ));
    let sweeping = tokio::spawn(sweep::run(
        release.clone(),
        serial.clone(),
        sweep::EVERY,
        internal.clone(),
    ));

    hunter.enqueue_what_waits();
    let clockwork = tokio::spawn(hunt.clone().run(config.hunt.look_every, internal.clone()));
    let healing = tokio::spawn(heal::run(
        hunt.clone(),
        release.clone(),
        serial.clone(),
        heal::EVERY,
        internal.clone(),
    ));

    let curating = {
        let (judge, durations) = (judge, config.sync.rejected);
        tokio::spawn(withhold::run(
            hangups,
            config.curation.clone(),
            release.clone(),
            serial.clone(),
            hunt.clone(),
            move || judge.forget(durations),
            internal.clone(),
        ))
    };

    if config.sync.begins_at_once {
        syncing.bootstrap_tried(TRY_BOOTSTRAP).await;
    }
    let public = TcpListener::bind(config.bind)
        .await
        .map_err(|error| Error::Listen(config.bind.to_string(), error))?;
    let address = public
        .local_addr()
        .map_err(|error| Error::Listen(config.bind.to_string(), error))?;
    let face = Face {
        config: config.clone(),
        door,
        live: release.live.clone(),
        database: store.database(),
        ready: Arc::new(Readiness(release.clone())),
        patience: Patience::default(),
    };
    standing.is_up(face.ready.clone());
    ready(address);
    let face = tokio::spawn(http::serve(face, public, stop.clone(), config.grace));
    // The public face ends by `stop` alone; anything else that ends, ends the process.
    tokio::pin!(
        services, returning, sweeping, clockwork, healing, leasing, judging, feeding, curating,
        telling, face
    );
    tokio::select! {
        ended = &mut face => ended?,
        ended = &mut services => ended??,
        ended = &mut returning => ended?,
        ended = &mut sweeping => ended?,
        ended = &mut clockwork => ended?,
        ended = &mut healing => ended?,
        ended = &mut leasing => ended?,
        ended = &mut judging => ended?,
        ended = &mut feeding => ended?,
        ended = &mut curating => ended?,
        ended = &mut telling => ended?,
    }
    internal.cancel();
    Ok(())
}

/// The first relay to sync from, unless it is this one.
fn bootstrap(config: &Config) -> Option<Named> {
    let bootstrap = config.sync.bootstrap.clone();
    bootstrap.filter(|named| !named.url.leads_to(&config.domain))
}

async fn open_journal(
    config: &Config,
) -> Result<(Journal, Vec<(journal::Key, journal::Record)>), Error> {
    if config.backend == Backend::Memory {
        return Ok((Journal::none(), Vec::new()));
    }
    let directory = journal::directory(&config.data_path);
    let opened = tokio::task::spawn_blocking(move || Journal::open(&directory)).await?;
    Ok(opened?)
}

/// Waits until gitd answers; `false`: the process is to stop first.
async fn wait_for_gitd(git: &dyn Git, stop: &CancellationToken) -> bool {
    let mut said = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return false,
            reachable = git.reachable() => {
                if reachable {
                    return true;
                }
            }
        }
        if !said {
            tracing::info!("waiting for gitd");
            said = true;
        }
        tokio::time::sleep(LOOK_FOR_GITD).await;
    }
}

/// Ready means: gitd answers and events can be read.
struct Readiness(Release);

impl Ready for Readiness {
    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            if !self.0.git.serves().await {
                return Err("the git storage does not answer, or is being stopped".to_owned());
            }
            let probe = Filter::new().kind(nip34::ANNOUNCEMENT).limit(1);
            match self.0.store.query(probe).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}
