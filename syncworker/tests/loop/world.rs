//! A relay and other servers to hunt in, all of them made up, on the tests' own clock.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use grasp_proto::{
    contract::relay::{
        Ended, Fetch, HeldLease, HuntCounts, LeasedIdentifier, RenewedLease, ReportRequest,
        ReportResponse, Wait, ended, failed::Why, next_response::Step, report_request::Outcome,
    },
    words::Oid,
};
use grasp_syncworker::hunt::{
    Hunt,
    context::{CallError, Failure, SyncContext},
    counts::Meter,
    fetch::Wanted,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long leases last here.
pub const VALID: Duration = Duration::from_secs(30);

/// How long the relay keeps a call waiting.
const WAIT: Duration = Duration::from_secs(20);

/// An object, told apart by one byte.
pub fn oid(n: u8) -> Oid {
    Oid::from_bytes([n; 20])
}

/// Another server.
#[derive(Clone)]
pub struct Server {
    /// What it has.
    pub has: BTreeSet<u8>,
    /// How long it takes to say so.
    pub takes: Duration,
    /// Why it does not.
    pub fails: Option<Why>,
    /// How many bytes of its pack come in a second; nothing is known of that.
    pub rate: Option<u64>,
}

/// An identifier that is hunted for.
#[derive(Default, Clone)]
pub struct Entry {
    pub missing: BTreeSet<u8>,
    pub urls: Vec<String>,
    /// Its domain has no room before.
    pub busy_until: Option<Instant>,
    /// Answers of Next that come first, whatever else is so.
    pub first: VecDeque<Result<Step, CallError>>,
    /// Tried in a lease before.
    pub tried: Vec<String>,
}

/// What the relay does with renewals.
#[derive(Clone, Copy)]
pub enum Renewals {
    Granted,
    Refused(fn() -> CallError),
    /// Whatever comes together with this one.
    RefusedWith(&'static str),
    LeftOut,
    Unanswered,
}

#[derive(Default)]
pub struct State {
    pub entries: BTreeMap<String, Entry>,
    pub servers: BTreeMap<String, Server>,
    pub due: VecDeque<String>,
    /// Hands out leases beyond the room there is.
    pub generous: bool,
    /// What is handed back is due again, with what was tried.
    pub again: bool,
    /// Nobody answers but to transfers.
    pub away: bool,
    pub renewals: Option<Renewals>,
    /// What reports are answered with, first.
    pub reports: VecDeque<CallError>,
    pub leases: BTreeMap<String, (u64, Instant)>,
    pub token: u64,
    pub fetch: u64,
    pub transfers: usize,
    pub most_transfers: usize,
    pub grants: Vec<Bytes>,
    pub counts: HuntCounts,
    log: Vec<(Duration, String)>,
}

/// All of it.
pub struct World {
    state: Mutex<State>,
    changed: Notify,
    began: Instant,
}

/// What is under way, and says so if it is dropped before its end.
struct UnderWay<'a>(&'a World, Option<String>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state().transfers -= 1;
        if let Some(url) = self.1.take() {
            self.0.log(format!("cut {url}"));
        }
    }
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Notify::new(),
            began: Instant::now(),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn log(&self, line: String) {
        self.state().log.push((self.began.elapsed(), line));
    }

    /// A server that has this, and says so after so many seconds.
    pub fn server(&self, url: &str, has: &[u8], seconds: u64) {
        let server = Server {
            has: has.iter().copied().collect(),
            takes: Duration::from_secs(seconds),
            fails: None,
            rate: None,
        };
        self.state().servers.insert(url.into(), server);
    }

    /// A server whose pack comes like that for so many seconds.
    pub fn sending(&self, url: &str, has: &[u8], seconds: u64, rate: u64) {
        self.server(url, has, seconds);
        self.state().servers.get_mut(url).unwrap().rate = Some(rate);
    }

    /// An identifier is due.
    pub fn wanted(&self, identifier: &str, missing: &[u8], urls: &[&str]) {
        self.entry(
            identifier,
            Entry {
                missing: missing.iter().copied().collect(),
                urls: urls.iter().map(|url| (*url).to_owned()).collect(),
                ..Entry::default()
            },
        );
    }

    /// An identifier is due, as it stands.
    pub fn entry(&self, identifier: &str, entry: Entry) {
        let mut state = self.state();
        state.entries.insert(identifier.into(), entry);
        state.due.push_back(identifier.into());
        drop(state);
        self.changed.notify_waiters();
    }

    /// Begins a hunt here.
    pub fn hunt(self: &Arc<Self>, concurrency: usize) -> Running {
        let stop = CancellationToken::new();
        let hunt = Hunt::new(self.clone(), concurrency);
        let grace = Duration::from_secs(60);
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { hunt.run(stop, grace).await.unwrap() }
        });
        Running { stop, task }
    }

    /// What was done, without calls that only ask.
    pub fn done(&self) -> Vec<String> {
        let quiet = |line: &&(Duration, String)| !line.1.starts_with('?');
        let state = self.state();
        let lines = state.log.iter().filter(quiet);
        lines.map(|(_, line)| line.clone()).collect()
    }

    /// Whether nothing is missing under an identifier any more.
    pub fn is_done(&self, identifier: &str) -> bool {
        self.state().entries[identifier].missing.is_empty()
    }

    /// How often something was done.
    pub fn times(&self, what: &str) -> usize {
        let state = self.state();
        let is = |line: &&(Duration, String)| line.1.starts_with(what);
        state.log.iter().filter(is).count()
    }

    /// Lets time pass until something has been done so often.
    pub async fn until(&self, what: &str, times: usize) {
        let reached = async {
            while self.times(what) < times {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let patience = Duration::from_secs(2 * 60 * 60);
        let reached = timeout(patience, reached).await;
        reached.unwrap_or_else(|_| panic!("never: {what}, but {:?}", self.done()));
    }

    /// Refuses what is not under a lease that holds.
    fn check(&self, identifier: &str, token: u64) -> Result<(), CallError> {
        let state = self.state();
        if state.away {
            return Err(CallError::Away("it is away".into()));
        }
        match state.leases.get(identifier) {
            Some((current, end)) if *current == token && Instant::now() < *end => Ok(()),
            _ => Err(CallError::Lost),
        }
    }

    fn lease_now(&self, room: usize) -> Vec<LeasedIdentifier> {
        let mut state = self.state();
        let room = if state.generous { usize::MAX } else { room };
        let mut leased = Vec::new();
        while leased.len() < room {
            let Some(identifier) = state.due.pop_front() else {
                break;
            };
            state.token += 1;
            let token = state.token;
            let end = Instant::now() + VALID;
            state.leases.insert(identifier.clone(), (token, end));
            leased.push(LeasedIdentifier {
                tried: state.entries[&identifier].tried.clone(),
                identifier,
                token,
                valid_millis: u32::try_from(VALID.as_millis()).unwrap(),
                ..LeasedIdentifier::default()
            });
        }
        leased
    }

    fn step(&self, identifier: &str, tried: &[String]) -> Option<Result<Step, CallError>> {
        let mut state = self.state();
        let entry = state.entries.get_mut(identifier).unwrap();
        if let Some(first) = entry.first.pop_front() {
            return Some(first);
        }
        if entry.busy_until.is_some_and(|end| Instant::now() < end) {
            return None;
        }
        let url = entry.urls.iter().find(|url| !tried.contains(url)).cloned();
        let wants: Vec<u8> = entry.missing.iter().copied().collect();
        let why = match (wants.is_empty(), url) {
            (true, _) => ended::Why::NothingPending,
            (false, None) => ended::Why::NothingLeftToTry,
            (false, Some(url)) => {
                entry.tried.push(url.clone());
                state.fetch += 1;
                return Some(Ok(Step::Fetch(Fetch {
                    fetch: state.fetch,
                    url,
                    wants: wants.iter().map(|n| oid(*n).as_bytes().to_vec()).collect(),
                    haves: vec![],
                    grant: format!("first of {}", state.fetch).into(),
                    max_bytes: 1000,
                })));
            }
        };
        state.leases.remove(identifier);
        Some(Ok(Step::Ended(Ended { why: why.into() })))
    }
}

/// A hunt that runs.
pub struct Running {
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
}

impl Running {
    /// Stops it, and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

impl SyncContext for World {
    fn lease(&self, room: usize) -> BoxFuture<'_, Result<Vec<LeasedIdentifier>, CallError>> {
        assert!(room > 0);
        self.log(format!("? lease {room}"));
        Box::pin(async move {
            let until = Instant::now() + WAIT;
            loop {
                let changed = self.changed.notified();
                if self.state().away {
                    return Err(CallError::Away("it is away".into()));
                }
                let leased = self.lease_now(room);
                if !leased.is_empty() {
                    return Ok(leased);
                }
                if tokio::time::timeout_at(until, changed).await.is_err() {
                    return Ok(leased);
                }
            }
        })
    }

    fn renew(
        &self,
        leases: Vec<HeldLease>,
        counts: HuntCounts,
    ) -> BoxFuture<'_, Result<Vec<RenewedLease>, CallError>> {
        self.log(format!("? renew {}", leases.len()));
        Box::pin(async move {
            if matches!(self.state().renewals, Some(Renewals::Unanswered)) {
                return std::future::pending().await;
            }
            let mut state = self.state();
            state.counts = counts;
            if state.away {
                return Err(CallError::Away("it is away".into()));
            }
            match state.renewals.unwrap_or(Renewals::Granted) {
                Renewals::Granted | Renewals::Unanswered => {}
                Renewals::Refused(error) => return Err(error()),
                Renewals::RefusedWith(bad) => {
                    if leases.iter().any(|lease| lease.identifier == bad) {
                        return Err(CallError::Refused("no".into()));
                    }
                }
                Renewals::LeftOut => return Ok(vec![]),
            }
            let now = Instant::now();
            let fetch = state.fetch;
            let mut renewed = Vec::new();
            for HeldLease { identifier, token } in leases {
                match state.leases.get_mut(&identifier) {
                    Some((current, end)) if *current == token && now < *end => *end = now + VALID,
                    _ => continue,
                }
                renewed.push(RenewedLease {
                    identifier,
                    token,
                    valid_millis: u32::try_from(VALID.as_millis()).unwrap(),
                    grant: format!("renewed of {fetch}").into(),
                });
            }
            Ok(renewed)
        })
    }

    fn next(&self, lease: HeldLease, tried: Vec<String>) -> BoxFuture<'_, Result<Step, CallError>> {
        self.log(format!("? next {} {tried:?}", lease.identifier));
        Box::pin(async move {
            self.check(&lease.identifier, lease.token)?;
            let until = Instant::now() + WAIT;
            while Instant::now() < until {
                if let Some(step) = self.step(&lease.identifier, &tried) {
                    return step;
                }
                sleep(Duration::from_millis(500)).await;
                self.check(&lease.identifier, lease.token)?;
            }
            Ok(Step::Wait(Wait {}))
        })
    }

    fn report(&self, report: ReportRequest) -> BoxFuture<'_, Result<ReportResponse, CallError>> {
        Box::pin(async move {
            let refused = self.state().reports.pop_front();
            if let Some(error) = refused {
                self.log(format!("? unheard report {}", report.fetch));
                return Err(error);
            }
            self.check(&report.identifier, report.token)?;
            let fetch = report.fetch;
            match report.outcome.unwrap() {
                Outcome::Arrived(arrived) => {
                    let arrived: Vec<u8> = arrived.oids.iter().map(|oid| oid[0]).collect();
                    self.log(format!("report {fetch} arrived {arrived:?}"));
                    let mut state = self.state();
                    let entry = state.entries.get_mut(&report.identifier).unwrap();
                    entry.missing.retain(|n| !arrived.contains(n));
                }
                Outcome::Failed(failed) => {
                    self.log(format!("report {fetch} {:?}", failed.why()));
                }
            }
            Ok(ReportResponse::default())
        })
    }

    fn release(&self, leases: Vec<HeldLease>) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            for lease in leases {
                self.log(format!("release {}", lease.identifier));
                let mut state = self.state();
                state.leases.remove(&lease.identifier);
                if state.again {
                    state.due.push_back(lease.identifier);
                }
            }
            self.changed.notify_waiters();
            Ok(())
        })
    }

    fn transfer<'a>(
        &'a self,
        wanted: &'a Wanted,
        mut grants: watch::Receiver<Bytes>,
        meter: &'a Meter,
    ) -> BoxFuture<'a, Result<Vec<Oid>, Failure>> {
        Box::pin(async move {
            let url = wanted.url.to_string();
            let wants: Vec<u8> = wanted.wants.iter().map(|oid| oid.as_bytes()[0]).collect();
            self.log(format!("fetch {url} {wants:?}"));
            let server = {
                let mut state = self.state();
                state.transfers += 1;
                state.most_transfers = state.most_transfers.max(state.transfers);
                let grant = grants.borrow_and_update().clone();
                state.grants.push(grant);
                state.servers[&url].clone()
            };
            let mut under_way = UnderWay(self, Some(url));
            let end = Instant::now() + server.takes;
            let renewed = async {
                while tokio::time::timeout_at(end, grants.changed()).await.is_ok() {
                    let grant = grants.borrow_and_update().clone();
                    self.state().grants.push(grant);
                }
            };
            let sending = async {
                let Some(rate) = server.rate else {
                    return std::future::pending().await;
                };
                meter.speed().begun();
                loop {
                    meter.speed().waiting(sleep(Duration::from_secs(1))).await;
                    meter.add(usize::try_from(rate).unwrap());
                }
            };
            tokio::select! {
                biased;
                () = renewed => {}
                () = sending => {}
            }
            under_way.1 = None;
            meter.add(10);
            match server.fails {
                Some(why) => Err(Failure {
                    why,
                    detail: "it fails".into(),
                }),
                // As gitd says it: of what was granted; and one that was not, to be ignored.
                None => Ok(wants
                    .iter()
                    .filter(|n| server.has.contains(n))
                    .chain(&[99])
                    .map(|n| oid(*n))
                    .collect()),
            }
        })
    }
}
