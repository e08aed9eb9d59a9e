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
pub mod data_path;
mod disks;
pub mod domain;
pub mod event_json;
pub mod expiry;
mod former_server;
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
pub mod rule_change;
pub mod serial;
pub mod session;
pub mod store;
pub mod strangers;
pub mod sweep;
pub mod sync;
mod tally;
pub mod targets;
pub mod verdict;
pub mod withhold;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};
use grasp_proto::{
    contract::{
        event_size::MAX_MESSAGE_BYTES,
        git::RepositoryDescription,
        relay::{
            admin_server::AdminServer, hunt_server::HuntServer, push_server::PushServer,
            relay_sync_server::RelaySyncServer,
        },
    },
    process::{
        self, Ready, Standing,
        data_lock::{self, DataLock, LockError},
        restoring,
    },
    transport::{self, GrantKey, Guard, Role},
};
use nostr::Filter;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

pub use config::Config;

use crate::{
    admit::{Admit, EventBounds},
    clock::Clock,
    config::Backend,
    data_path::DataPathError,
    disks::Disks,
    former_server::TakeOverError,
    git::{Git, GitError, Gitd},
    grpc::{
        admin::AdminService, hunt::HuntService, push::PushService, relay_sync::RelaySyncService,
    },
    holding::Holding,
    http::Face,
    hunt::{Hunt, Hunter, heal},
    journal::{Journal, JournalError},
    live::Live,
    maintainers::MaintainerRule,
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
    strangers::Strangers,
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
    /// Events that expire and were here already.
    #[error(transparent)]
    Expiring(#[from] release::ReleaseError),
    /// The data directory.
    #[error(transparent)]
    NotWhole(#[from] restoring::NotWhole),
    /// The data path is another process's.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// What lies in the data path is not to be gone on with.
    #[error(transparent)]
    DataPath(#[from] DataPathError),
    /// What another server left.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The git storage, which was asked what it has.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The service's key cannot be kept.
    #[error("NGIT_RELAY_DATA_PATH is {}, where nothing can be written: {}", .0.display(), .1)]
    Key(PathBuf, std::io::Error),
    /// Another rule of maintainers.
    #[error(transparent)]
    RuleChange(#[from] rule_change::RuleChangeError),
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
    let lock = lock_data(&config).await?;
    Box::pin(run_on_locked_data(config, lock, stop, ready)).await
}

/// Makes the data path this process's own; `None`: nothing is kept in it.
pub async fn lock_data(config: &Config) -> Result<Option<DataLock>, Error> {
    if config.backend == Backend::Memory {
        return Ok(None);
    }
    let directory = config.data_path.clone();
    let take = move || DataLock::take(&directory, Role::Relay, data_lock::PATIENCE);
    Ok(Some(tokio::task::spawn_blocking(take).await??))
}

/// [`run`] with what [`lock_data`] gave, which ends with it.
pub async fn run_on_locked_data(
    config: Config,
    _lock: Option<DataLock>,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<(), Error> {
    // Before anything that takes its time: whoever asks meanwhile is heard afterwards.
    let hangups = withhold::hangups();
    if let Some(rules) = withhold::read_again(&config.curation).await {
        config.curation.replace(rules);
    }
    let config = Arc::new(config);
    nip34::set_created_at_ahead(config.limits.created_at_ahead);
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
    let git: Arc<dyn Git> = Arc::new(Gitd::new(&config.gitd_grpc, &config.tokens.relay));
    let found = look_at_own_data(&config).await?;
    if let Some(found) = &found
        && !is_first_start_or_known(&config, found, &*git, &stop).await?
    {
        return Ok(());
    }
    config
        .keep_key()
        .map_err(|error| Error::Key(config.data_path.clone(), error))?;
    let store = Store::open(config.backend, &config.data_path).await?;
    if let Some(found) = found {
        own_data(&config, &store, &found).await?;
    }
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
    let hunt = match config.hunts {
        true => hunt,
        false => hunt.without_own_workers(),
    };
    let purgatory = Purgatory::with_limits(
        journal.clone(),
        clock.clone(),
        config.kept_alive,
        config.purgatory_room,
    );
    let purgatory = Arc::new(purgatory);
    let repositories = Arc::new(Repositories::new(config.maintainer_rule));
    if config.maintainer_rule == MaintainerRule::Listed {
        tracing::warn!(
            "NGIT_MAINTAINER_RULE is listed: whoever is named as a maintainer counts without agreeing, \
             and so does whoever they name"
        );
    }
    config.curation.rules().tell();
    withhold::load_served(&store, &repositories, &config.curation.rules()).await?;
    purgatory.restore(records);
    let holding = Holding::open(journal.clone(), clock.clone(), config.deletions.held_for).await?;
    let requests = Requests::new(journal.clone(), clock.clone(), config.deletions.acted_on);
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
    // Before anything is judged by it.
    rule_change::adopt(&release, &config.curation.rules()).await?;
    sweep::reconcile(&release).await?;
    // Before anybody can ask for anything.
    withhold::apply(&release, &serial, &config.curation).await?;
    let disks = Disks::of(&config);
    let strangers = Strangers::open(journal, clock.clone(), config.strangers).await?;
    let door = Admit::new(
        release.clone(),
        serial.clone(),
        hunt.clone(),
        config.curation.clone(),
        EventBounds {
            sizes: config.limits.event_sizes,
            ahead: config.limits.created_at_ahead,
            service: config.keys.public_key(),
        },
        Arc::new(strangers),
    );
    let door = Arc::new(door.with_disks(disks.clone()));
    let wanted = Wanted::new(config.domain.clone());
    let judge = Judge::new(door.clone(), config.sync.rejected, clock);
    store.hides_expired(purgatory.expiring());
    expiry::adopt(&release).await?;
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
    )
    .with_disks(disks.clone());
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
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
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
    let admin = AdminServer::new(admin).max_decoding_message_size(MAX_MESSAGE_BYTES);
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
    withhold::tell_first(&*git, &config.curation.rules()).await;
    let telling = tokio::spawn(withhold::tell_git(
        git.clone(),
        config.curation.clone(),
        internal.clone(),
    ));
    withhold::settle(&release, &serial, &config.curation).await;
    if let Err(error) = holding::expiry::adopt_retired(&release).await {
        tracing::error!(%error, "retired repositories of before are not looked for");
    }
    if config.backend == Backend::Lmdb {
        // Before anybody can send what was deleted once more.
        let (relay_data, git_data) = (&config.data_path, &config.git_data_path);
        former_server::take_over(relay_data, git_data, &*door, &release.store).await?;
    }
    door.resume_requests().await;
    // What waits is tried next, and what is served compared.
    release.repositories.forget_changed();
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
        hunt.clone(),
        sweep::EVERY,
        internal.clone(),
    ));

    let expiring = tokio::spawn(expiry::run(
        Admit::clone(&door),
        expiry::EVERY,
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
        ready: Arc::new(Readiness {
            release: release.clone(),
            disks: disks.clone(),
        }),
        patience: Patience::default(),
        missed: {
            let release = release.clone();
            Arc::new(move |repo| release.is_missed(repo))
        },
    };
    standing.is_up(face.ready.clone());
    let joined = Standing::showing(Role::Relay, stop.clone(), http::metrics_of_all(&config));
    joined.is_up(face.ready.clone());
    let address_of_metrics = config
        .public_metrics_address
        .as_ref()
        .filter(|_| config.metrics);
    let _joined = joined
        .listen(address_of_metrics)
        .await
        .map_err(|error| Error::Listen("the address of NGIT_METRICS_ADDRESS".to_owned(), error))?;
    let watching = tokio::spawn(disks.watch());
    ready(address);
    let face = tokio::spawn(http::serve(face, public, stop.clone(), config.grace));
    // The public face ends by `stop` alone; anything else that ends, ends the process.
    tokio::pin!(
        services, returning, sweeping, expiring, clockwork, healing, leasing, judging, feeding,
        curating, telling, watching, face
    );
    tokio::select! {
        ended = &mut face => ended?,
        ended = &mut services => ended??,
        ended = &mut returning => ended?,
        ended = &mut sweeping => ended?,
        ended = &mut expiring => ended?,
        ended = &mut clockwork => ended?,
        ended = &mut healing => ended?,
        ended = &mut leasing => ended?,
        ended = &mut judging => ended?,
        ended = &mut feeding => ended?,
        ended = &mut curating => ended?,
        ended = &mut telling => ended?,
        ended = &mut watching => ended?,
    }
    internal.cancel();
    Ok(())
}

/// What lies in the data path, if this service may go on with it; `None`: nothing is kept.
async fn look_at_own_data(config: &Config) -> Result<Option<data_path::Found>, Error> {
    if config.backend == Backend::Memory {
        return Ok(None);
    }
    let looked_at = config.clone();
    let look = move || look_at_data(&looked_at);
    Ok(Some(tokio::task::spawn_blocking(look).await??))
}

/// Refuses an empty data path where the git storage has what this service served before. `false`: the
/// process is to stop.
async fn is_first_start_or_known(
    config: &Config,
    found: &data_path::Found,
    git: &dyn Git,
    stop: &CancellationToken,
) -> Result<bool, Error> {
    if !found.is_new() || config.accepted.missing_events {
        return Ok(true);
    }
    if !wait_for_gitd(git, stop).await {
        return Ok(false);
    }
    match has_repositories_of_ours(git).await? {
        false => Ok(true),
        true => Err(DataPathError::NoEvents {
            directory: config.data_path.clone(),
            beside: "repositories of this service",
        }
        .into()),
    }
}

/// Looks at the data path alone, without writing. Blocks.
fn look_at_data(config: &Config) -> Result<data_path::Found, Error> {
    let directory = &config.data_path;
    restoring::check_whole(directory)?;
    let found = data_path::Found::look(directory)?;
    found.judge(directory, &config.domain, config.accepted)?;
    format::check(directory)?;
    Ok(found)
}

/// Refuses a data path that [`run`] would refuse for what lies in it; writes nothing. Blocks.
pub fn check_data_path(config: &Config) -> Result<(), Error> {
    match config.backend {
        Backend::Memory => Ok(()),
        Backend::Lmdb => look_at_data(config).map(drop),
    }
}

/// Whether the git storage has a repository with something in it that a graspd made or adopted.
async fn has_repositories_of_ours(git: &dyn Git) -> Result<bool, GitError> {
    let mut descriptions = git.describe(None, None).await?;
    while let Some(batch) = descriptions.next().await {
        let is_ours = |one: &RepositoryDescription| !one.incarnation.is_empty() && !one.is_empty;
        if batch?.iter().any(is_ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes sure that the events are this domain's, and notes it.
async fn own_data(config: &Config, store: &Store, found: &data_path::Found) -> Result<(), Error> {
    let (directory, domain) = (&config.data_path, &config.domain);
    if found.domain.is_none() && found.has_events {
        let events = store.query(Filter::new().kind(nip34::ANNOUNCEMENT)).await?;
        let events = events.into_iter().map(Arc::new);
        let announcements: Vec<_> = events
            .filter_map(|event| nip34::announcement::Announcement::read(event).ok())
            .collect();
        let archives = config.curation.rules().has_archive();
        data_path::judge_announcements(
            directory,
            &announcements,
            domain,
            archives,
            config.accepted,
        )?;
    }
    let now = domain.to_string();
    let is_same = found.domain.as_ref() == Some(&now);
    if config.accepted.domain_change && is_same {
        tracing::warn!("NGIT_ACCEPT_DOMAIN_CHANGE is set and nothing needs it any more: unset it");
    }
    if config.accepted.missing_events && found.has_events {
        tracing::warn!("NGIT_ACCEPT_MISSING_EVENTS is set and nothing needs it any more: unset it");
    }
    if !is_same {
        if let Some(before) = &found.domain {
            tracing::warn!(
                before,
                now,
                "the data of another domain is this one's from now on"
            );
        }
        data_path::note_domain(directory, domain)?;
    }
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
struct Readiness {
    release: Release,
    disks: Disks,
}

impl Ready for Readiness {
    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            if !self.release.git.serves().await {
                return Err("the git storage does not answer, or is being stopped".to_owned());
            }
            let probe = Filter::new().kind(nip34::ANNOUNCEMENT).limit(1);
            match self.release.store.query(probe).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn shortage(&self) -> Option<String> {
        self.disks.shortage()
    }
}
