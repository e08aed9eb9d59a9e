//! A stand-in for this service's relay: what it wants, what it was brought, and its leases.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream, stream::BoxStream};
use grasp_proto::{
    contract::{
        event_size::MAX_BATCH_BYTES,
        relay::{
            HeldRelay, InventoryItem, LeasedRelay, Level, Method, RelayReport, RelayState,
            RenewedRelay, Target, TargetChanges, submit_verdict::What,
        },
    },
    words::EventId,
};
use grasp_syncworker::{
    hunt::context::CallError,
    net::{Allowed, Net, Resolve, System, tls},
    relays::{
        Config, Relays, Timing,
        context::{Answer, RelaySync},
        filters::matches,
    },
};
use nostr::{Event, Filter, Keys, Kind, Tag, Timestamp, event::FinalizeEvent};
use tokio::{sync::watch, task::JoinHandle};
use tokio_rustls::rustls::RootCertStore;
use tokio_util::sync::CancellationToken;

/// The content of events that are judged and not kept.
pub const PASSING: &str = "passing";

pub const IDENTIFIER: &str = "project";

/// What the stand-in knows.
#[derive(Default)]
pub struct Known {
    /// What it holds, by id.
    pub held: BTreeMap<nostr::EventId, Event>,
    /// What it was brought, how, in which batches.
    pub submitted: Vec<(String, Method, usize)>,
    /// By id, how it came.
    pub came: BTreeMap<nostr::EventId, Method>,
    /// Not leased yet.
    pub to_lease: VecDeque<LeasedRelay>,
    /// Leased and neither given back nor lost.
    pub leased: BTreeMap<(String, u64), RelayReport>,
    pub released: Vec<HeldRelay>,
    /// Wanted back.
    pub give_back: BTreeSet<String>,
    /// Does not answer renewals,
    pub away: bool,
    /// and has not answered so many.
    pub unanswered: usize,
    /// Every event is judged "ours failed" so many times more.
    pub failing: usize,
    /// What comes from this relay is not judged, for now.
    pub stuck: Option<String>,
    pub events_told: u64,
    /// When leases were renewed.
    pub renewals: Vec<std::time::Instant>,
    /// Events that were judged and not kept.
    pub passed: usize,
    pub targets: Vec<TargetChanges>,
    pub valid: Duration,
}

pub struct Stand {
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
    pub keys: Keys,
}

impl Stand {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            known: Mutex::new(Known {
                valid: Duration::from_secs(60),
                ..Known::default()
            }),
            changed: watch::Sender::new(0),
            keys: Keys::generate(),
        })
    }

    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// Tells the workers, at once and whenever one asks anew.
    pub fn tell(&self, changes: TargetChanges) {
        self.known().targets.push(changes);
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn lease(&self, url: &str, token: u64) {
        let mut known = self.known();
        let valid_millis = known.valid.as_millis().try_into().unwrap();
        known.to_lease.push_back(LeasedRelay {
            url: url.to_owned(),
            token,
            valid_millis,
            bootstrap: false,
        });
        drop(known);
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn has<'a>(&self, events: impl IntoIterator<Item = &'a Event>) -> bool {
        let known = self.known();
        let mut events = events.into_iter();
        events.all(|event| known.held.contains_key(&event.id))
    }

    pub fn report(&self, url: &str) -> Option<RelayReport> {
        let known = self.known();
        let mut all = known.leased.iter();
        all.find(|((of, _), _)| of == url)
            .map(|(_, report)| report.clone())
    }

    pub fn is(&self, url: &str, state: RelayState) -> bool {
        self.report(url)
            .is_some_and(|report| report.state() == state)
    }

    /// What the relay is judged by, whatever way it was brought.
    pub fn judge(&self, method: Method, json: &str) -> What {
        let Ok(event) = Event::from_json(json) else {
            return What::Forged;
        };
        if event.verify().is_err() {
            return What::Forged;
        }
        let mut known = self.known();
        if known.failing > 0 {
            known.failing -= 1;
            return What::Failed;
        }
        if event.content == PASSING {
            known.passed += 1;
            return What::Rejected;
        }
        known.came.entry(event.id).or_insert(method);
        match known.held.insert(event.id, event) {
            None => What::Accepted,
            Some(_) => What::Duplicate,
        }
    }

    pub fn inventory_of(&self, filter: &str) -> Vec<InventoryItem> {
        let filter = Filter::from_json(filter).unwrap();
        let known = self.known();
        let under = known.held.values().filter(|event| matches(&filter, event));
        under
            .map(|event| InventoryItem {
                id: event.id.to_bytes().to_vec(),
                created_at: event.created_at.as_secs(),
            })
            .collect()
    }

    pub fn renew_all(&self, reports: Vec<RelayReport>) -> Vec<RenewedRelay> {
        let mut known = self.known();
        let valid_millis = known.valid.as_millis().try_into().unwrap();
        known.renewals.push(std::time::Instant::now());
        let mut renewed = Vec::new();
        for report in reports {
            assert!(report.totals);
            let all = |report: &RelayReport| {
                report.events_live + report.events_negentropy + report.events_paged
            };
            let key = (report.url.clone(), report.token);
            let give_back = known.give_back.contains(&report.url);
            let Known {
                leased,
                events_told,
                ..
            } = &mut *known;
            if let Some(last) = leased.get_mut(&key) {
                *events_told += all(&report) - all(last);
                renewed.push(RenewedRelay {
                    url: report.url.clone(),
                    token: report.token,
                    valid_millis,
                    give_back,
                });
                *last = report;
            }
        }
        renewed
    }

    pub fn take_leases(&self) -> Vec<LeasedRelay> {
        let mut known = self.known();
        let leased: Vec<LeasedRelay> = known.to_lease.drain(..).collect();
        for one in &leased {
            let key = (one.url.clone(), one.token);
            known.leased.insert(key, RelayReport::default());
        }
        leased
    }

    /// What was told so far, then what is told from now on.
    pub fn stream(&self) -> BoxStream<'static, TargetChanges> {
        let told = self.known().targets.clone();
        stream::iter(told).chain(stream::pending()).boxed()
    }

    pub async fn wait_for_lease(&self) -> Vec<LeasedRelay> {
        let mut changed = self.changed.subscribe();
        loop {
            let leased = self.take_leases();
            if !leased.is_empty() {
                return leased;
            }
            let _ = changed.changed().await;
        }
    }
}

/// The stand-in behind the trait.
pub struct Direct(pub Arc<Stand>);

impl RelaySync for Direct {
    fn watch(&self) -> BoxFuture<'_, Answer<BoxStream<'static, Answer<TargetChanges>>>> {
        let stand = self.0.clone();
        Box::pin(async move {
            let changed = stand.changed.subscribe();
            let state = (stand, changed, 0);
            let told = stream::unfold(state, |(stand, mut changed, next)| async move {
                loop {
                    let told = stand.known().targets.get(next).cloned();
                    if let Some(told) = told {
                        return Some((Ok(told), (stand, changed, next + 1)));
                    }
                    changed.changed().await.ok()?;
                }
            });
            Ok(told.boxed())
        })
    }

    fn lease(&self) -> BoxFuture<'_, Answer<Vec<LeasedRelay>>> {
        Box::pin(async { Ok(self.0.wait_for_lease().await) })
    }

    fn renew(&self, reports: Vec<RelayReport>) -> BoxFuture<'_, Answer<Vec<RenewedRelay>>> {
        Box::pin(async {
            {
                let mut known = self.0.known();
                if known.away {
                    known.unanswered += 1;
                    return Err(CallError::Away("for the test".into()));
                }
            }
            Ok(self.0.renew_all(reports))
        })
    }

    fn release(&self, relays: Vec<HeldRelay>) -> BoxFuture<'_, Answer<()>> {
        Box::pin(async {
            let mut known = self.0.known();
            for relay in relays {
                known.leased.remove(&(relay.url.clone(), relay.token));
                known.released.push(relay);
            }
            Ok(())
        })
    }

    fn inventory(
        &self,
        filter: String,
    ) -> BoxFuture<'_, Answer<BoxStream<'static, Answer<Vec<InventoryItem>>>>> {
        let items = self.0.inventory_of(&filter);
        Box::pin(async { Ok(stream::iter([Ok(items)]).boxed()) })
    }

    fn lacking(&self, ids: Vec<EventId>) -> BoxFuture<'_, Answer<Vec<EventId>>> {
        assert!(ids.len() <= 10_000);
        let known = self.0.known();
        let here = |id: &EventId| {
            let id = nostr::EventId::from_byte_array(*id.as_bytes());
            known.held.contains_key(&id)
        };
        let lacking = ids.into_iter().filter(|id| !here(id)).collect();
        Box::pin(async { Ok(lacking) })
    }

    fn submit<'a>(
        &'a self,
        url: &'a str,
        method: Method,
        events: Vec<String>,
    ) -> BoxFuture<'a, Answer<Vec<What>>> {
        assert!(
            events.len() <= 500 && events.iter().map(String::len).sum::<usize>() <= MAX_BATCH_BYTES
        );
        if self.0.known().stuck.as_deref() == Some(url) {
            return Box::pin(async { Err(CallError::Away("for the test".into())) });
        }
        let verdicts = events
            .iter()
            .map(|json| self.0.judge(method, json))
            .collect();
        let mut known = self.0.known();
        known.submitted.push((url.to_owned(), method, events.len()));
        Box::pin(async { Ok(verdicts) })
    }

    fn authenticate(&self, relay: HeldRelay, challenge: String) -> BoxFuture<'_, Answer<String>> {
        let tags = [
            Tag::parse(["relay", &relay.url]).unwrap(),
            Tag::parse(["challenge", &challenge]).unwrap(),
        ];
        let event = nostr::EventBuilder::new(Kind::from_u16(22242), "").tags(tags);
        let event = event.finalize(&self.0.keys).unwrap();
        Box::pin(async move { Ok(event.as_json()) })
    }
}

/// Everything quick, but in the same order of size.
pub fn timing() -> Timing {
    let millis = Duration::from_millis;
    Timing {
        renewal: millis(100),
        request: millis(2),
        answer: millis(1_500),
        page: millis(3_000),
        reconciliation: millis(1_000),
        silence: millis(700),
        retry: millis(2_000),
        refused: millis(300),
        poll: millis(300),
        ..Timing::default()
    }
}

pub fn config() -> Config {
    Config {
        base_backoff: Duration::from_millis(20),
        max_backoff: Duration::from_millis(200),
        check_interval: Duration::from_millis(100),
        startup_delay: Duration::ZERO,
        startup_jitter: Duration::ZERO,
        disable_negentropy: false,
    }
}

/// A worker that runs until this is dropped.
pub struct Worker {
    pub stop: CancellationToken,
    pub task: Option<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.stop.cancel();
    }
}

pub fn net() -> Net {
    net_with(Arc::new(System), RootCertStore::empty())
}

pub fn net_with(resolver: Arc<dyn Resolve>, roots: RootCertStore) -> Net {
    let allowed = Allowed {
        loopback: true,
        non_global: false,
    };
    Net::with(allowed, resolver, Arc::new(tls(roots)))
}

pub fn work(stand: &Arc<Stand>, config: Config, timing: Timing) -> Worker {
    work_over(Arc::new(Direct(stand.clone())), config, timing)
}

pub fn work_over(sync: Arc<dyn RelaySync>, config: Config, timing: Timing) -> Worker {
    work_on(net(), sync, config, timing)
}

pub fn work_on(net: Net, sync: Arc<dyn RelaySync>, config: Config, timing: Timing) -> Worker {
    let stop = CancellationToken::new();
    let relays = Relays::with(sync, net, config, timing);
    Worker {
        task: Some(tokio::spawn(relays.run(stop.clone()))),
        stop,
    }
}

/// Looks until it is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One repository and what belongs to it.
pub struct Project {
    pub owner: Keys,
    pub root: Event,
    pub all: Vec<Event>,
}

pub fn event(keys: &Keys, kind: u16, at: u64, tags: &[[&str; 2]]) -> Event {
    let tags = tags.iter().map(|tag| Tag::parse(*tag).unwrap());
    let event =
        nostr::EventBuilder::new(Kind::from_u16(kind), format!("{}", rand::random::<u64>()));
    let event = event.tags(tags).custom_created_at(Timestamp::from_secs(at));
    event.finalize(keys).unwrap()
}

impl Project {
    /// An announcement, a state, an issue, and `replies` to it, two of them each second.
    pub fn new(replies: u64) -> Self {
        let owner = Keys::generate();
        let coordinate = format!("30617:{}:{IDENTIFIER}", owner.public_key().to_hex());
        let at = 1_700_000_000;
        let announcement = event(&owner, 30617, at, &[["d", IDENTIFIER]]);
        let state = event(&owner, 30618, at, &[["d", IDENTIFIER]]);
        let root = event(&owner, 1621, at, &[["a", &coordinate]]);
        let id = root.id.to_hex();
        let other = Keys::generate();
        let replies = (0..replies).map(|n| {
            let tag = ["e", "E", "q"][usize::try_from(n % 3).unwrap()];
            event(&other, 1111, at + n / 2, &[[tag, &id]])
        });
        let mut all = vec![announcement, state, root.clone()];
        all.extend(replies);
        Self { owner, root, all }
    }

    pub fn target(&self, level: Level, relays: &[&str]) -> Target {
        Target {
            repository: Some(grasp_proto::contract::relay::Repository {
                owner: self.owner.public_key().to_bytes().to_vec(),
                identifier: IDENTIFIER.to_owned(),
                endpoint: grasp_proto::contract::relay::Endpoint::Standard.into(),
            }),
            level: level.into(),
            relays: relays.iter().map(|url| (*url).to_owned()).collect(),
            new_roots: match level {
                Level::Full => vec![self.root.id.to_bytes().to_vec()],
                _ => vec![],
            },
            generation: 1,
        }
    }
}

pub fn told(targets: Vec<Target>) -> TargetChanges {
    TargetChanges {
        targets,
        removed: vec![],
        complete: true,
    }
}
