//! Relay-to-relay sync, the relay's half (GRASP-02): who holds which remote relay, what is held here
//! and what is worth fetching, and what becomes of what was found.
//!
//! [`shares`] decides, purely, which worker a remote relay is leased to, [`rejected`] which rejected
//! events are judged again; [`judge`] brings what was found to the one door. [`Syncing`] is the
//! shares behind their one lock, which is never held across a wait. What is wanted at all is in
//! [`crate::targets`]. Workers are believed nothing: what they bring is verified here, and what they
//! say of themselves is only shown.
//!
//! Tasks: [`Syncing::run`] moves time on, [`judge::Judge::run`] judges again, and
//! [`crate::targets::feed::Wanted::run`] looks up what changed.

pub mod choice;
pub mod holdings;
mod hourly;
pub mod judge;
mod judging;
mod meters;
pub mod records;
pub mod rejected;
pub mod reports;
pub mod shares;

use std::{
    cmp::Reverse,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use grasp_proto::{transport::GrantKey, words::RepoId};
use nostr::Event;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    judge::Judge,
    meters::Meters,
    records::Before,
    reports::{Counts, Health, Report},
    shares::{Leased, Lost, Remote, Renewed, Shares},
};
use crate::{
    clock::{Clock, Moment},
    journal::{Journal, JournalError, Key, Record, Write},
    live::Served,
    repository::{Announced, Standing},
    targets::{
        Level, Targets,
        feed::Wanted,
        relay_url::{Named, RelayUrl},
    },
};

/// The longest a call waits.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Inside {
    shares: Shares,
    meters: Meters,
}

/// Who holds which remote relay, shared. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Syncing {
    inside: Arc<Mutex<Inside>>,
    journal: Journal,
    clock: Clock,
    /// Counts up when somebody may be given more.
    more: Arc<watch::Sender<u64>>,
    /// Time may have something to do sooner than it had.
    sooner: Arc<Notify>,
}

/// What a worker says of a relay that it holds.
#[derive(Debug, Clone)]
pub struct Said {
    /// Which.
    pub url: RelayUrl,
    /// Under which token.
    pub token: u64,
    /// How it is.
    pub report: Report,
    /// What happened since it said so last,
    pub counts: Counts,
    /// or since the lease began.
    pub totals: bool,
}

/// A remote relay, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFigures {
    /// Which.
    pub url: RelayUrl,
    /// The worker that holds it; empty: none.
    pub worker: String,
    /// Configured to sync from.
    pub bootstrap: bool,
    /// Repositories that name it.
    pub targets: usize,
    /// What its worker says of it.
    pub report: Report,
    /// How it is doing.
    pub health: Health,
}

/// All remote relays, as the operator sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Some of them: what most repositories name comes first.
    pub relays: Vec<RemoteFigures>,
    /// How many there are.
    pub all: usize,
    /// Of these: connected.
    pub connected: usize,
}

/// Ends when what was decided is on disk.
type Kept = BoxFuture<'static, Result<(), JournalError>>;

impl Syncing {
    /// Nobody holds anything but what the journal says may still be held. Tokens of this run are
    /// greater than those of every run before.
    pub async fn open(
        lease: Duration,
        bootstrap: Option<&Named>,
        seal: &GrantKey,
        journal: Journal,
        clock: Clock,
        records: &[(Key, Record)],
    ) -> Result<Self, JournalError> {
        let now = clock.now();
        let before = Before::read(records, seal, now);
        let mut shares = Shares::new(lease, before.first_token(), bootstrap);
        for key in before.restore(records, &mut shares, now) {
            journal.forget(key);
        }
        let (key, record) = before.record(seal);
        journal.keep(key, &record).await?;
        let syncing = Self {
            inside: Arc::new(Mutex::new(Inside {
                shares,
                meters: Meters::begin(),
            })),
            journal,
            clock,
            more: Arc::new(watch::Sender::new(0)),
            sooner: Arc::default(),
        };
        syncing.act(|_, _| ());
        Ok(syncing)
    }

    /// Does something with the shares. What is to be on disk is on its way when this returns.
    pub fn act<T>(&self, act: impl FnOnce(&mut Shares, Moment) -> T) -> T {
        self.act_durably(|shares, _, now| act(shares, now)).0
    }

    /// As [`Syncing::act`]; what is given besides ends when it is on disk.
    fn act_durably<T>(&self, act: impl FnOnce(&mut Shares, &mut Meters, Moment) -> T) -> (T, Kept) {
        let now = self.clock.now();
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let Inside { shares, meters } = &mut *inside;
        let result = act(shares, meters, now);
        let writes = shares.writes();
        let keeps = writes.iter().any(|write| matches!(write, Write::Keep(..)));
        // Within the lock: what was decided first is written first.
        let kept = self.journal.write(writes);
        meters.show(shares, now);
        let more = shares.more();
        drop(inside);
        if more {
            self.more
                .send_modify(|count| *count = count.wrapping_add(1));
        }
        if more || keeps {
            self.sooner.notify_one();
        }
        (result, kept.boxed())
    }

    /// These relays are named by what is wanted.
    pub fn want(&self, targets: &Targets) {
        self.act(|shares, _| shares.want(targets.relays()));
        #[allow(clippy::cast_precision_loss)]
        for (level, label) in [(Level::Full, "full"), (Level::StateOnly, "state_only")] {
            let count = targets.count(level) as f64;
            metrics::gauge!("ngit_sync_targets", "level" => label).set(count);
        }
    }

    /// How long a lease holds.
    pub fn lease_time(&self) -> Duration {
        self.act(|shares, _| shares.lease_time())
    }

    /// A worker's share, as far as it does not hold it; waits, up to `wait`, until there is some.
    pub async fn lease(
        &self,
        worker: &str,
        wait: Duration,
        stop: &CancellationToken,
    ) -> Result<Vec<Leased>, JournalError> {
        let until = Instant::now() + wait.min(LONGEST_WAIT);
        let mut more = self.more.subscribe();
        loop {
            more.mark_unchanged();
            let (leased, kept) = self.act_durably(|shares, _, now| shares.lease(worker, now));
            if !leased.is_empty() {
                // A lease that is not on disk might be given again after a restart.
                if let Err(error) = kept.await {
                    let held = leased.into_iter().map(|one| (one.url, one.token));
                    self.act(|shares, now| shares.release(worker, held, now));
                    return Err(error);
                }
                return Ok(leased);
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(Vec::new()),
                () = tokio::time::sleep_until(until) => return Ok(Vec::new()),
                // Ends with this only.
                _ = more.changed() => {}
            }
        }
    }

    /// Keeps what a worker holds and hears what it says of it.
    pub fn renew(&self, worker: &str, said: Vec<Said>) -> Vec<Renewed> {
        let renew = |shares: &mut Shares, meters: &mut Meters, now| {
            let held = said.iter().map(|one| (one.url.clone(), one.token));
            let renewed = shares.renew(worker, held, now);
            for one in said {
                let Said {
                    url,
                    token,
                    report,
                    counts,
                    totals,
                } = one;
                let more = match totals {
                    true => shares.more_counted(&url, worker, token, counts),
                    false => counts,
                };
                let update = |known: &mut Report| known.update(report, &more);
                if shares.report(&url, worker, token, update).is_err() {
                    continue;
                }
                if let Some(remote) = shares.get(&url) {
                    meters.counted(&url, remote, &more);
                }
            }
            renewed
        };
        self.act_durably(renew).0
    }

    /// A worker gives relays back.
    pub fn release(&self, worker: &str, held: Vec<(RelayUrl, u64)>) {
        self.act(|shares, now| shares.release(worker, held, now));
    }

    /// Whether a worker holds a relay.
    pub fn check(&self, url: &RelayUrl, worker: &str, token: u64) -> Result<(), Lost> {
        self.act(|shares, now| shares.check(url, worker, token, now))
    }

    /// What an operator wants to know; `most` relays one by one.
    pub fn figures(&self, most: usize) -> Figures {
        let figures = |(url, remote): (&RelayUrl, &Remote), now| RemoteFigures {
            url: url.clone(),
            worker: remote.worker().unwrap_or_default().to_owned(),
            bootstrap: remote.bootstrap,
            targets: remote.targets,
            health: remote.report.health(now),
            report: remote.report.clone(),
        };
        let all = |shares: &mut Shares, now| -> Vec<RemoteFigures> {
            shares.all().map(|one| figures(one, now)).collect()
        };
        let mut relays = self.act(all);
        let connected = relays.iter().filter(|one| one.report.state.is_connected());
        let (all, connected) = (relays.len(), connected.count());
        relays.sort_by_key(|one| (!one.bootstrap, Reverse(one.targets)));
        relays.truncate(most);
        Figures {
            relays,
            all,
            connected,
        }
    }

    /// Waits until the bootstrap relay has been tried, `wait` at most.
    pub async fn bootstrap_tried(&self, wait: Duration) {
        const LOOK: Duration = Duration::from_millis(10);
        let tried = |remote: &Remote| {
            let counts = remote.report.counts;
            remote.report.state.is_connected() || counts.succeeded + counts.failed > 0
        };
        let looking = async {
            while !self.act(|shares, _| {
                let mut bootstrap = shares.all().filter(|(_, remote)| remote.bootstrap);
                bootstrap.all(|(_, remote)| tried(remote))
            }) {
                tokio::time::sleep(LOOK).await;
            }
        };
        // Not there in time: the service is, all the same.
        let _ = tokio::time::timeout(wait, looking).await;
    }

    /// Moves time on until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        const AT_LEAST: Duration = Duration::from_secs(10);
        loop {
            let wait = self.act(|shares, now| {
                shares.tick(now);
                shares.next_moment(now).map(|moment| moment.since(now))
            });
            // A moment that is past the next tick sees to; never without a breath between.
            let wait = wait.map_or(AT_LEAST, |wait| wait.min(AT_LEAST));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
                () = self.sooner.notified() => {}
            }
        }
    }
}

/// Everything an operator is told figures of. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Overview {
    /// What is wanted.
    pub wanted: Wanted,
    /// Who does it.
    pub syncing: Syncing,
    /// Who judges what was found.
    pub judge: Judge,
}

/// Tells those who sync what is announced and served here.
#[derive(Clone)]
pub struct Hooks {
    /// What is wanted follows.
    pub wanted: Wanted,
    /// What missed it is judged again.
    pub judge: Judge,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

impl Announced for Hooks {
    fn announced(&self, repo: &RepoId, standing: Option<Standing>) {
        // What went may be back before it is looked at; and what was rejected without it is forgotten
        // here, and would be fetched by nobody.
        let forgot = self.judge.announced(repo, standing);
        match standing.is_none() || forgot {
            true => self.wanted.anew(repo),
            false => self.wanted.announced(repo),
        }
    }

    fn is_wanted_anew(&self, repo: &RepoId) {
        self.wanted.anew(repo);
    }
}

impl Served for Hooks {
    fn served(&self, event: &Event) {
        self.wanted.served(event);
        self.judge.served(event);
    }

    fn removed(&self, event: &Event) {
        self.wanted.removed(event);
    }
}
