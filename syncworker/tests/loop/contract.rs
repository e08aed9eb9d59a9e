//! The calls themselves, over real gRPC, with stand-ins of relay and gitd on sockets of their own.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use grasp_proto::{
    contract::{
        git::{
            StorePackRequest, StorePackResponse,
            packs_server::{Packs, PacksServer},
            store_pack_request::Part,
        },
        relay::{
            Ended, Fetch, LeaseRequest, LeaseResponse, LeasedIdentifier, NextRequest, NextResponse,
            ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse, RenewedLease,
            ReportRequest, ReportResponse, ended,
            failed::Why,
            hunt_server::{Hunt, HuntServer},
            next_response::Step,
            report_request::Outcome,
        },
    },
    transport::{self, Endpoint, Guard, Role, Token, Tokens},
};
use grasp_syncworker::{
    Config,
    hunt::{
        self,
        context::{Failure, GrpcContext, SyncContext},
        counts::Meter,
        fetch::{FetchError, Wanted},
        transfer::{Chunks, Remote},
    },
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::interceptor::InterceptedService};

use crate::world::oid;

/// What gitd sees of a call.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Grant(String),
    Chunk(usize),
    /// The pack is whole.
    Whole,
    /// Nothing comes any more.
    Gone,
}

/// A gitd that tells what it sees.
#[derive(Clone)]
struct Gitd {
    seen: mpsc::UnboundedSender<Seen>,
    /// What it answers after this many messages, whatever is still to come.
    early: Option<(usize, fn() -> Status)>,
    /// It works on a whole pack until so many messages have come.
    answers_after: usize,
    read: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Packs for Gitd {
    async fn store_pack(
        &self,
        request: Request<Streaming<StorePackRequest>>,
    ) -> Result<Response<StorePackResponse>, Status> {
        let mut stream = request.into_inner();
        let gitd = self.clone();
        // Of its own, so that it sees how the stream ends though the call is dropped.
        let reading = tokio::spawn(async move {
            let (mut messages, mut whole) = (0, false);
            loop {
                let seen = match stream.message().await {
                    Ok(Some(message)) => match message.part.unwrap() {
                        Part::Grant(grant) => Seen::Grant(String::from_utf8(grant).unwrap()),
                        Part::Chunk(chunk) if chunk.is_empty() => Seen::Whole,
                        Part::Chunk(chunk) => Seen::Chunk(chunk.len()),
                    },
                    // Ended, or broken off: tonic tells both alike.
                    Ok(None) | Err(_) => {
                        gitd.seen.send(Seen::Gone).unwrap();
                        return Err(Status::cancelled("gone"));
                    }
                };
                if let Seen::Chunk(bytes) = seen {
                    gitd.read.fetch_add(bytes, SeqCst);
                    // Slower than what sends.
                    for _ in 0..20 {
                        tokio::task::yield_now().await;
                    }
                }
                whole |= seen == Seen::Whole;
                let _ = gitd.seen.send(seen);
                messages += 1;
                if whole && messages >= gitd.answers_after {
                    return Ok(());
                }
                match gitd.early {
                    Some((after, status)) if messages == after => return Err(status()),
                    _ => {}
                }
            }
        });
        reading.await.unwrap()?;
        Ok(Response::new(StorePackResponse {
            arrived: vec![oid(1).as_bytes().to_vec()],
            bytes: 0,
        }))
    }
}

type Chunk = Result<Option<Bytes>, FetchError>;

/// A server whose pack is fed by the test; or, without a feed, one without an end.
#[derive(Clone, Default)]
struct Feed {
    chunks: Arc<Mutex<Option<mpsc::UnboundedReceiver<Chunk>>>>,
    sent: Arc<AtomicUsize>,
    /// What gitd has read of it.
    read: Arc<AtomicUsize>,
    most_on_the_way: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
    opened: Arc<Mutex<Vec<Wanted>>>,
}

struct Coming(Feed, Option<mpsc::UnboundedReceiver<Chunk>>);

impl Remote for Feed {
    fn open<'a>(
        &'a self,
        wanted: &'a Wanted,
    ) -> BoxFuture<'a, Result<Box<dyn Chunks>, FetchError>> {
        Box::pin(async move {
            self.opened.lock().unwrap().push(wanted.clone());
            let chunks = self.chunks.lock().unwrap().take();
            Ok(Box::new(Coming(self.clone(), chunks)) as Box<dyn Chunks>)
        })
    }
}

impl Chunks for Coming {
    fn next(&mut self) -> BoxFuture<'_, Chunk> {
        Box::pin(async move {
            let chunk = match &mut self.1 {
                Some(chunks) => chunks.recv().await.unwrap_or(Ok(None)),
                None => Ok(Some(vec![7; 300_000].into())),
            };
            if let Ok(Some(chunk)) = &chunk {
                let sent = self.0.sent.fetch_add(chunk.len(), SeqCst) + chunk.len();
                let on_the_way = sent - self.0.read.load(SeqCst).min(sent);
                self.0.most_on_the_way.fetch_max(on_the_way, SeqCst);
            }
            chunk
        })
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.closed.store(true, SeqCst);
    }
}

/// gitd and a server to bring packs from, and what brings them.
struct Bridge {
    context: GrpcContext,
    feed: Feed,
    fed: mpsc::UnboundedSender<Chunk>,
    seen: mpsc::UnboundedReceiver<Seen>,
    wanted: Wanted,
    meter: Meter,
    /// Where nobody listens yet.
    relay: Endpoint,
    tokens: Tokens,
    _directory: tempfile::TempDir,
}

fn tokens() -> Tokens {
    Tokens {
        relay: Token::random(),
        gitd: Token::random(),
        worker: Token::random(),
    }
}

fn socket(directory: &tempfile::TempDir, name: &str) -> Endpoint {
    let path = directory.path().join(name);
    format!("unix:{}", path.display()).parse().unwrap()
}

async fn serve_gitd(at: &Endpoint, gitd: Gitd, tokens: &Tokens) {
    let guard = Guard::new(tokens, &[Role::Worker]);
    let service = InterceptedService::new(PacksServer::new(gitd), guard);
    let routes = transport::standard_routes(tokens)
        .await
        .add_service(service);
    let listener = at.listen().await.unwrap();
    tokio::spawn(transport::serve(listener, routes, CancellationToken::new()));
}

fn wanted() -> Wanted {
    Wanted {
        url: "https://one.example/x.git".parse().unwrap(),
        wants: vec![oid(1)],
        haves: vec![],
        max_bytes: 1 << 40,
    }
}

impl Bridge {
    async fn new(early: Option<(usize, fn() -> Status)>) -> Self {
        Self::with(early, 0).await
    }

    async fn with(early: Option<(usize, fn() -> Status)>, answers_after: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (relay, gitd) = (socket(&directory, "relay"), socket(&directory, "gitd"));
        let tokens = tokens();
        let (told, seen) = mpsc::unbounded_channel();
        let (fed, chunks) = mpsc::unbounded_channel();
        let feed = Feed::default();
        *feed.chunks.lock().unwrap() = Some(chunks);
        let stand_in = Gitd {
            seen: told,
            early,
            answers_after,
            read: feed.read.clone(),
        };
        serve_gitd(&gitd, stand_in, &tokens).await;
        let remote = Arc::new(feed.clone());
        Self {
            context: GrpcContext::new("w".into(), &relay, &gitd, &tokens.worker, remote),
            feed,
            fed,
            seen,
            wanted: wanted(),
            meter: Meter::begin(&Arc::default()),
            relay,
            tokens,
            _directory: directory,
        }
    }

    fn feed(&self, bytes: usize) {
        let chunk = Bytes::from(vec![7; bytes]);
        self.fed.send(Ok(Some(chunk))).unwrap();
    }
}

fn grant(text: &'static str) -> (watch::Sender<Bytes>, watch::Receiver<Bytes>) {
    watch::channel(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn the_grant_comes_first_then_the_pack_and_renewed_grants_in_between() {
    let mut bridge = Bridge::new(None).await;
    let (renewed, grants) = grant("one");
    bridge.feed(200_000);
    let Bridge {
        context,
        fed,
        seen,
        wanted,
        meter,
        ..
    } = &mut bridge;
    let whole = context.transfer(wanted, grants, meter);
    let meanwhile = async {
        assert_eq!(seen.recv().await, Some(Seen::Grant("one".into())));
        let mut bytes = 0;
        while bytes < 200_000 {
            let Some(Seen::Chunk(more)) = seen.recv().await else {
                panic!("no chunk")
            };
            assert!(more <= 64 * 1024);
            bytes += more;
        }
        // While the other server is silent.
        renewed.send("two".into()).unwrap();
        assert_eq!(seen.recv().await, Some(Seen::Grant("two".into())));
        fed.send(Ok(Some("last".into()))).unwrap();
        assert_eq!(seen.recv().await, Some(Seen::Chunk(4)));
        fed.send(Ok(None)).unwrap();
        assert_eq!(seen.recv().await, Some(Seen::Whole));
    };
    let (arrived, ()) = tokio::join!(whole, meanwhile);
    assert_eq!(arrived, Ok(vec![oid(1)]));
    assert_eq!(bridge.meter.bytes(), 200_004);
}

#[tokio::test]
async fn a_grant_renewed_before_the_other_server_answered_is_the_one_sent() {
    let mut bridge = Bridge::new(None).await;
    let (renewed, grants) = grant("old");
    renewed.send("new".into()).unwrap();
    bridge.fed.send(Ok(None)).unwrap();
    let arrived = bridge
        .context
        .transfer(&bridge.wanted, grants, &bridge.meter);
    arrived.await.unwrap();
    assert_eq!(bridge.seen.recv().await, Some(Seen::Grant("new".into())));
    assert_eq!(bridge.seen.recv().await, Some(Seen::Whole));
}

#[tokio::test]
async fn a_refusal_in_the_middle_ends_the_pull_at_once() {
    let cases: [(fn() -> Status, Why); 3] = [
        (|| Status::resource_exhausted("too large"), Why::Large),
        (|| Status::invalid_argument("no pack"), Why::BadPack),
        (|| Status::permission_denied("no grant"), Why::Ours),
    ];
    for (status, why) in cases {
        let bridge = Bridge::new(Some((3, status))).await;
        // A pack without an end.
        *bridge.feed.chunks.lock().unwrap() = None;
        let (_renewed, grants) = grant("one");
        let transfer = bridge
            .context
            .transfer(&bridge.wanted, grants, &bridge.meter);
        let failure: Failure = transfer.await.unwrap_err();
        assert_eq!(failure.why, why);
        assert!(failure.detail.contains(status().message()), "{failure}");
        assert!(bridge.feed.closed.load(SeqCst));
        let on_the_way = bridge.feed.most_on_the_way.load(SeqCst);
        assert!(on_the_way < 8 << 20, "{on_the_way}");
    }
}

#[tokio::test]
async fn a_refusal_is_heard_while_the_other_server_is_silent() {
    let refused: fn() -> Status = || Status::deadline_exceeded("it has run out");
    let bridge = Bridge::new(Some((1, refused))).await;
    let (_renewed, grants) = grant("one");
    let transfer = bridge
        .context
        .transfer(&bridge.wanted, grants, &bridge.meter);
    assert_eq!(transfer.await.unwrap_err().why, Why::Ours);
    assert!(bridge.feed.closed.load(SeqCst));
}

#[tokio::test]
async fn a_transfer_that_is_dropped_is_broken_off_at_both_ends_and_never_looks_whole() {
    let mut bridge = Bridge::new(None).await;
    let (_renewed, grants) = grant("one");
    bridge.feed(100);
    {
        let transfer = bridge
            .context
            .transfer(&bridge.wanted, grants, &bridge.meter);
        let some = async {
            assert_eq!(bridge.seen.recv().await, Some(Seen::Grant("one".into())));
            assert_eq!(bridge.seen.recv().await, Some(Seen::Chunk(100)));
        };
        tokio::select! {
            _ = transfer => panic!("it has not ended"),
            () = some => {}
        }
    }
    assert!(bridge.feed.closed.load(SeqCst));
    assert_eq!(bridge.seen.recv().await, Some(Seen::Gone));
}

#[tokio::test]
async fn a_pack_that_breaks_off_is_broken_off() {
    let mut bridge = Bridge::new(None).await;
    let (_renewed, grants) = grant("one");
    bridge.feed(100);
    let Bridge {
        context,
        fed,
        seen,
        wanted,
        meter,
        ..
    } = &mut bridge;
    let transfer = context.transfer(wanted, grants, meter);
    let meanwhile = async {
        assert_eq!(seen.recv().await, Some(Seen::Grant("one".into())));
        assert_eq!(seen.recv().await, Some(Seen::Chunk(100)));
        let slow = FetchError {
            why: Why::Slow,
            detail: "it drips".into(),
        };
        fed.send(Err(slow)).unwrap();
        // And not: it is whole.
        assert_eq!(seen.recv().await, Some(Seen::Gone));
    };
    let (failure, ()) = tokio::join!(transfer, meanwhile);
    assert_eq!(failure.unwrap_err().why, Why::Slow);
}

#[tokio::test]
async fn grants_are_renewed_while_gitd_works_on_a_pack_that_has_all_come() {
    let mut bridge = Bridge::with(None, 4).await;
    let (renewed, grants) = grant("one");
    bridge.feed(100);
    bridge.fed.send(Ok(None)).unwrap();
    let transfer = bridge
        .context
        .transfer(&bridge.wanted, grants, &bridge.meter);
    let seen = &mut bridge.seen;
    let meanwhile = async {
        assert_eq!(seen.recv().await, Some(Seen::Grant("one".into())));
        assert_eq!(seen.recv().await, Some(Seen::Chunk(100)));
        assert_eq!(seen.recv().await, Some(Seen::Whole));
        assert!(bridge.feed.closed.load(SeqCst));
        renewed.send("two".into()).unwrap();
        assert_eq!(seen.recv().await, Some(Seen::Grant("two".into())));
    };
    let (arrived, ()) = tokio::join!(transfer, meanwhile);
    assert_eq!(arrived, Ok(vec![oid(1)]));
}

#[tokio::test]
async fn a_gitd_that_is_away_is_our_own_failure() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = socket(&directory, "nobody");
    let feed = Feed::default();
    let remote = Arc::new(feed.clone());
    let token = Token::random();
    let context = GrpcContext::new("w".into(), &nowhere, &nowhere, &token, remote);
    let (_renewed, grants) = grant("one");
    let meter = Meter::begin(&Arc::default());
    let failure = context
        .transfer(&wanted(), grants, &meter)
        .await
        .unwrap_err();
    assert_eq!(failure.why, Why::Ours);
    assert!(feed.closed.load(SeqCst));
}

#[tokio::test]
async fn nothing_of_the_packs_size_is_held() {
    let bridge = Bridge::new(None).await;
    let (_renewed, grants) = grant("one");
    for _ in 0..640 {
        bridge.feed(100_000);
    }
    bridge.fed.send(Ok(None)).unwrap();
    let transfer = bridge
        .context
        .transfer(&bridge.wanted, grants, &bridge.meter);
    transfer.await.unwrap();
    assert_eq!(bridge.feed.read.load(SeqCst), 64_000_000);
    let on_the_way = bridge.feed.most_on_the_way.load(SeqCst);
    assert!(on_the_way < 8 << 20, "{on_the_way}");
}

/// A relay that leases one identifier and has it fetched from one URL.
#[derive(Default)]
struct Relay {
    leased: AtomicBool,
    reports: Mutex<Vec<ReportRequest>>,
    workers: Mutex<HashSet<String>>,
    traces: Mutex<HashSet<String>>,
    ended: Notify,
    asked: Notify,
}

/// Long enough for a machine that is busy: what waits for it waits for a third.
const VALID: u32 = 6_000;

/// Of the event that the identifier was queued for.
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

impl Relay {
    fn trace<T>(&self, request: &Request<T>) {
        let trace = request.metadata().get("traceparent").unwrap();
        let trace = trace.to_str().unwrap().to_owned();
        self.traces.lock().unwrap().insert(trace);
        assert!(request.metadata().contains_key("grpc-timeout"));
    }
}

#[tonic::async_trait]
impl Hunt for Relay {
    async fn lease(
        &self,
        request: Request<LeaseRequest>,
    ) -> Result<Response<LeaseResponse>, Status> {
        let LeaseRequest { worker, room, .. } = request.into_inner();
        assert!(room > 0);
        self.workers.lock().unwrap().insert(worker);
        self.asked.notify_one();
        if self.leased.swap(true, SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(LeaseResponse {
            leases: vec![LeasedIdentifier {
                identifier: "x".into(),
                token: 5,
                valid_millis: VALID,
                tried: vec!["https://zero.example/x.git".into()],
                traceparent: TRACE.into(),
            }],
        }))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let RenewRequest { leases, worker, .. } = request.into_inner();
        self.workers.lock().unwrap().insert(worker);
        let renewed = leases.into_iter().map(|lease| RenewedLease {
            identifier: lease.identifier,
            token: lease.token,
            valid_millis: VALID,
            grant: "renewed".into(),
        });
        Ok(Response::new(RenewResponse {
            leases: renewed.collect(),
        }))
    }

    async fn next(&self, request: Request<NextRequest>) -> Result<Response<NextResponse>, Status> {
        self.trace(&request);
        let next = request.into_inner();
        assert_eq!((next.identifier.as_str(), next.token), ("x", 5));
        let step = if next.tried == ["https://zero.example/x.git"] {
            Step::Fetch(Fetch {
                fetch: 8,
                url: "https://one.example/x.git".into(),
                wants: vec![oid(1).as_bytes().to_vec()],
                haves: vec![oid(2).as_bytes().to_vec()],
                grant: "first".into(),
                max_bytes: 1000,
            })
        } else {
            assert_eq!(next.tried[1..], ["https://one.example/x.git"]);
            self.ended.notify_one();
            Step::Ended(Ended {
                why: ended::Why::NothingPending.into(),
            })
        };
        Ok(Response::new(NextResponse { step: Some(step) }))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        self.trace(&request);
        self.reports.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ReportResponse::default()))
    }

    async fn release(
        &self,
        _: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        Ok(Response::new(ReleaseResponse {}))
    }
}

async fn serve_relay(at: &Endpoint, relay: Arc<Relay>, tokens: &Tokens) {
    let guard = Guard::new(tokens, &[Role::Worker]);
    let service = InterceptedService::new(HuntServer::from_arc(relay), guard);
    let routes = transport::standard_routes(tokens)
        .await
        .add_service(service);
    let listener = at.listen().await.unwrap();
    tokio::spawn(transport::serve(listener, routes, CancellationToken::new()));
}

#[tokio::test]
async fn a_whole_hunt_in_one_trace_with_a_grant_renewed_on_the_open_call() {
    let mut bridge = Bridge::new(None).await;
    let relay = Arc::new(Relay::default());
    serve_relay(&bridge.relay, relay.clone(), &bridge.tokens).await;
    let stop = CancellationToken::new();
    let hunt = hunt::Hunt::new(Arc::new(bridge.context), 3);
    let running = tokio::spawn(hunt.run(stop.clone(), Duration::from_secs(1)));
    bridge.fed.send(Ok(Some("pack".into()))).unwrap();
    assert_eq!(bridge.seen.recv().await, Some(Seen::Grant("first".into())));
    assert_eq!(bridge.seen.recv().await, Some(Seen::Chunk(4)));
    assert_eq!(
        bridge.seen.recv().await,
        Some(Seen::Grant("renewed".into()))
    );
    bridge.fed.send(Ok(None)).unwrap();
    relay.ended.notified().await;
    stop.cancel();
    running.await.unwrap().unwrap();

    let opened = bridge.feed.opened.lock().unwrap();
    assert_eq!(opened[0].wants, [oid(1)]);
    assert_eq!(opened[0].haves, [oid(2)]);
    assert_eq!(opened[0].max_bytes, 1000);
    let reports = relay.reports.lock().unwrap();
    assert_eq!(reports.len(), 1);
    assert_eq!(
        (reports[0].fetch, reports[0].token, reports[0].bytes),
        (8, 5, 4)
    );
    let Some(Outcome::Arrived(arrived)) = &reports[0].outcome else {
        panic!("{:?}", reports[0])
    };
    assert_eq!(arrived.oids, [oid(1).as_bytes()]);
    let traces = relay.traces.lock().unwrap();
    assert_eq!(*traces, HashSet::from([TRACE.to_owned()]));
    let workers = relay.workers.lock().unwrap();
    assert_eq!(*workers, HashSet::from(["w".to_owned()]));
}

#[tokio::test]
async fn a_relay_and_a_gitd_that_are_not_up_yet_are_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let at = socket(&directory, "relay");
    let tokens = tokens();
    let config = Config {
        relay: at.clone(),
        gitd: socket(&directory, "gitd"),
        metrics: None,
        token: tokens.worker.clone(),
        concurrency: 2,
        allow_non_global: false,
        test: false,
        grace: Duration::from_secs(1),
        relays: grasp_syncworker::relays::Config {
            base_backoff: Duration::from_secs(5),
            max_backoff: Duration::from_secs(3600),
            check_interval: Duration::from_secs(60),
            startup_delay: Duration::from_secs(30),
            startup_jitter: Duration::from_secs(1),
            disable_negentropy: false,
        },
    };
    let stop = CancellationToken::new();
    let worker = tokio::spawn(grasp_syncworker::run(config, stop.clone()));
    let relay = Arc::new(Relay::default());
    relay.leased.store(true, SeqCst);
    // Somebody knocks, and nobody understands.
    let early = at.listen().await.unwrap();
    drop(early.accept().await.unwrap());
    drop(early);
    serve_relay(&at, relay.clone(), &tokens).await;
    relay.asked.notified().await;
    stop.cancel();
    worker.await.unwrap().unwrap();
    let workers = relay.workers.lock().unwrap();
    assert_eq!(workers.len(), 1);
}
