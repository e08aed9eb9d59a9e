//! Relay-to-relay sync (GRASP-02): the remote relays leased to this worker, each held by a task of
//! its own.
//!
//! - [`context`]: what is needed of this service's relay, as a trait
//! - [`targets`]: what is wanted of which remote relay
//! - `connection`: one remote relay: connecting, and when
//! - `session`: one connection to it; `subscriptions`: how it is followed; `history`: how the past is
//!   fetched; `memory`: what is known from one connection to the next
//! - `overlong`: messages that are too long, left out of what comes
//! - `submit`: what was found, handed over for judgement
//! - `renewal`: leases kept, and how it goes said
//! - [`filters`], [`plan`], [`live`], [`coverage`], [`paging`], [`limits`], [`health`], [`conduct`]: the
//!   decisions, pure
//! - [`status`]: what is told of it
//!
//! [`Relays::run`] drives three tasks besides: one asks for leases, one renews those that are held, one
//! follows the targets. A lease that is lost, or cannot be renewed, ends its task before the relay of
//! this service hands the remote relay to another worker. A worker keeps nothing that matters.

pub mod conduct;
mod connection;
pub mod context;
pub mod coverage;
pub mod filters;
pub mod health;
mod history;
pub mod limits;
pub mod live;
mod memory;
pub mod overlong;
pub mod paging;
pub mod plan;
mod renewal;
mod session;
pub mod status;
mod submit;
mod subscriptions;
pub mod targets;
mod timing;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use grasp_proto::contract::relay::{HeldRelay, LeasedRelay, RelayState};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use crate::{hunt::backoff::Backoff, net::Net};
use context::RelaySync;
use health::Health;
use memory::Memory;
use status::Status;
use targets::{Gathering, Targets};

pub use timing::Timing;

/// What is looked at before it first happens is there, at 0.
pub fn begin_counts() {
    for state in [
        RelayState::Disconnected,
        RelayState::Connecting,
        RelayState::Syncing,
        RelayState::Connected,
        RelayState::ConnectedWithFailures,
    ] {
        status::connections(state).set(0.0);
    }
    for verdict in ["accepted", "purgatory", "rejected", "failed"] {
        metrics::counter!("ngit_relays_verdicts_total", "verdict" => verdict).absolute(0);
    }
    for outcome in ["succeeded", "failed"] {
        metrics::counter!("ngit_relays_attempts_total", "outcome" => outcome).absolute(0);
    }
    metrics::counter!("ngit_relays_misbehaved_total").absolute(0);
    metrics::counter!("ngit_relays_events_lost_total").absolute(0);
    metrics::gauge!("ngit_relays_leases").set(0.0);
}

/// How often the relay hears of a worker that was never told how long a lease lasts.
const FIRST_PERIOD: Duration = Duration::from_secs(5);

/// Never more often than this, whatever the relay says.
const SHORTEST_PERIOD: Duration = Duration::from_millis(100);

/// How long before its end a lease is let go of, at most.
const MARGIN: Duration = Duration::from_secs(3);

/// How long a stop may take: connections are dropped, leases handed back.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// An empty answer that came sooner is not asked for again at once.
const SOON: Duration = Duration::from_millis(200);

/// Batches of events that are submitted at once, of all connections together.
const SUBMITS: usize = 8;

/// Bytes of events that wait or are being submitted, of all connections together: each has a share of
/// its own as well, and waits its turn for this.
const MOST_BYTES: usize = 64 << 20;

/// What is configured.
#[derive(Debug, Clone)]
pub struct Config {
    /// The wait after the first failure,
    pub base_backoff: Duration,
    /// and the longest.
    pub max_backoff: Duration,
    /// How often it is looked for remote relays that nobody wants.
    pub check_interval: Duration,
    /// How long after the start the first is connected to;
    pub startup_delay: Duration,
    /// each other than a bootstrap relay up to so much later.
    pub startup_jitter: Duration,
    /// Whether history is only read by pages.
    pub disable_negentropy: bool,
}

/// What all connections share.
struct World {
    sync: Arc<dyn RelaySync>,
    net: Net,
    targets: Targets,
    timing: Timing,
    disable_negentropy: bool,
    submits: Semaphore,
    /// For events, in bytes.
    room: Arc<Semaphore>,
    /// Some relay does otherwise than a moment ago.
    news: Arc<Notify>,
}

/// One remote relay, while it is leased to this worker.
struct Relay {
    /// In its normal form: as the targets name it.
    url: String,
    address: Url,
    /// The fencing token.
    token: u64,
    bootstrap: bool,
    world: Arc<World>,
    status: Status,
    health: Mutex<Health>,
}

impl Relay {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lease, and the task that lives by it.
struct Held {
    relay: Arc<Relay>,
    end: watch::Sender<Instant>,
    stop: CancellationToken,
    stopped: CancellationToken,
    /// How often it was found that nobody wants it.
    unwanted: u32,
}

impl Held {
    fn name(&self) -> HeldRelay {
        HeldRelay {
            url: self.relay.url.clone(),
            token: self.relay.token,
        }
    }
}

/// The relay sync of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Relays {
    world: Arc<World>,
    config: Arc<Config>,
    started: Instant,
    held: Arc<Mutex<BTreeMap<String, Held>>>,
    period: Arc<watch::Sender<Duration>>,
    tasks: TaskTracker,
}

/// How long of a lease may be used.
fn usable(valid: Duration) -> Duration {
    valid.saturating_sub(MARGIN.min(valid / 4))
}

impl Relays {
    /// Relay sync by `sync`, over `net`.
    pub fn new(sync: Arc<dyn RelaySync>, net: Net, config: Config) -> Self {
        Self::with(sync, net, config, Timing::default())
    }

    /// With another sense of time.
    pub fn with(sync: Arc<dyn RelaySync>, net: Net, config: Config, timing: Timing) -> Self {
        let first = FIRST_PERIOD.min(timing.renewal);
        let world = World {
            sync,
            net,
            targets: Targets::default(),
            timing,
            disable_negentropy: config.disable_negentropy,
            submits: Semaphore::new(SUBMITS),
            room: Arc::new(Semaphore::new(MOST_BYTES)),
            news: Arc::default(),
        };
        Self {
            world: Arc::new(world),
            config: Arc::new(config),
            started: Instant::now(),
            held: Arc::default(),
            period: Arc::new(watch::Sender::new(first)),
            tasks: TaskTracker::new(),
        }
    }

    /// How often leases that last so long are renewed.
    fn period(&self, valid: Duration) -> Duration {
        (valid / 3).clamp(SHORTEST_PERIOD, self.world.timing.renewal)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        // Every change is one insertion or removal.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs until `stop`; then drops all connections and hands back what is leased.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.lease() => {}
            () = self.renew() => {}
            () = self.follow() => {}
            () = self.check() => {}
        }
        let names: Vec<HeldRelay> = {
            let held = self.held();
            held.values().for_each(|held| held.stop.cancel());
            held.values().map(Held::name).collect()
        };
        self.tasks.close();
        let _ = timeout(LAST_CALLS, self.tasks.wait()).await;
        if !names.is_empty() {
            let _ = timeout(LAST_CALLS, self.world.sync.release(names)).await;
        }
    }

    /// Asks for leases, for ever.
    async fn lease(&self) {
        let mut backoff = Backoff::default();
        loop {
            let asked = Instant::now();
            match self.world.sync.lease().await {
                Ok(leased) => {
                    let nothing = leased.is_empty();
                    for leased in leased {
                        self.take(leased).await;
                    }
                    if !nothing || asked.elapsed() >= SOON {
                        backoff.reset();
                        continue;
                    }
                }
                Err(error) => tracing::debug!(%error, "no relays leased"),
            }
            sleep(backoff.wait()).await;
        }
    }

    /// Begins with a leased relay. An older lease of it ends first.
    async fn take(&self, leased: LeasedRelay) {
        let older = self.held().remove(&leased.url);
        if let Some(older) = older {
            older.stop.cancel();
            older.stopped.cancelled().await;
        }
        let address = Url::parse(&leased.url).ok();
        // What holds credentials is shown nowhere, and used nowhere.
        let address = address.filter(|url| url.username().is_empty() && url.password().is_none());
        let Some(address) = address else {
            tracing::warn!("what was leased is no URL of a relay");
            let name = HeldRelay {
                url: leased.url,
                token: leased.token,
            };
            let _ = self.world.sync.release(vec![name]).await;
            return;
        };
        let valid = Duration::from_millis(leased.valid_millis.into());
        let every = self.period(valid);
        self.period.send_if_modified(|now| {
            let sooner = every < *now;
            *now = every.min(*now);
            sooner
        });
        let config = &self.config;
        let jitter = match leased.bootstrap {
            true => Duration::ZERO,
            false => config.startup_jitter.mul_f64(rand::random()),
        };
        let first = (self.started + config.startup_delay).max(Instant::now()) + jitter;
        let relay = Arc::new(Relay {
            url: leased.url.clone(),
            address,
            token: leased.token,
            bootstrap: leased.bootstrap,
            world: self.world.clone(),
            status: Status::telling(self.world.news.clone()),
            health: Mutex::new(Health::new(config.base_backoff, config.max_backoff, first)),
        });
        let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
        let end = watch::Sender::new(Instant::now() + usable(valid));
        let (mut renewed, mut ends) = (end.subscribe(), end.subscribe());
        let task = {
            let (relay, stop, stopped) = (relay.clone(), stop.clone(), stopped.clone());
            async move {
                // However this ends, whoever waits for it is told.
                let _told = stopped.drop_guard();
                let connected = async {
                    // When it was leased is not known here, since the call waits and its answer may
                    // have been on its way: it may have ended. When a renewal was sent is known.
                    if renewed.changed().await.is_ok() {
                        connection::run(&relay).await;
                    }
                };
                let lost = async {
                    loop {
                        let until = *ends.borrow_and_update();
                        tokio::select! {
                            biased;
                            changed = ends.changed() => if changed.is_err() {
                                return;
                            },
                            () = sleep_until(until) => return,
                        }
                    }
                };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = lost => tracing::warn!(relay = relay.url, "its lease is lost"),
                    () = connected => {
                        tracing::warn!(relay = relay.url, "its lease is lost");
                    }
                }
            }
        };
        tracing::debug!(relay = leased.url, bootstrap = leased.bootstrap, "leased");
        self.tasks.spawn(task);
        let held = Held {
            relay: relay.clone(),
            end,
            stop,
            stopped,
            unwanted: 0,
        };
        self.with_held(|all| all.insert(leased.url, held));
        // So that it is renewed at once.
        relay.status.tell();
    }

    fn with_held<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Held>) -> T) -> T {
        let mut held = self.held();
        let result = change(&mut held);
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("ngit_relays_leases").set(held.len() as f64);
        result
    }

    /// Ends what is held under these names, then gives it back.
    async fn give_back(&self, names: Vec<HeldRelay>) {
        let mut given = Vec::new();
        for name in names {
            let held = self.with_held(|all| {
                let ours = all.get(&name.url)?.relay.token == name.token;
                ours.then(|| all.remove(&name.url)).flatten()
            });
            if let Some(held) = held {
                held.stop.cancel();
                held.stopped.cancelled().await;
                given.push(name);
            }
        }
        if !given.is_empty() {
            // Not heard, it runs out.
            let _ = timeout(LAST_CALLS, self.world.sync.release(given)).await;
        }
    }

    /// Follows what is wanted, for ever.
    async fn follow(&self) {
        let mut backoff = Backoff::default();
        loop {
            match self.world.sync.watch().await {
                Ok(mut stream) => {
                    let mut gathering = Gathering::default();
                    while let Some(changes) = stream.next().await {
                        match changes {
                            Ok(changes) => {
                                backoff.reset();
                                gathering.take(&self.world.targets, changes);
                            }
                            Err(error) => {
                                tracing::debug!(%error, "targets are told no more");
                                break;
                            }
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "targets are not told"),
            }
            sleep(backoff.wait()).await;
        }
    }

    /// Gives back what nobody wants, for ever: not at once, since a target may be on its way.
    async fn check(&self) {
        loop {
            sleep(self.config.check_interval).await;
            let unwanted: Vec<HeldRelay> = self.with_held(|all| {
                let unwanted = all.values_mut().filter_map(|held| {
                    let relay = &held.relay;
                    match !relay.bootstrap && self.world.targets.is_unwanted(&relay.url) {
                        true => held.unwanted += 1,
                        false => held.unwanted = 0,
                    }
                    (held.unwanted > 1).then(|| held.name())
                });
                unwanted.collect()
            });
            for name in &unwanted {
                tracing::info!(relay = name.url, "no repository names it: given back");
            }
            self.give_back(unwanted).await;
        }
    }
}
