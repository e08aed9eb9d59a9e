//! The public face: one address for Nostr clients, git clients, browsers and operators.
//!
//! Every connection is a task; a websocket becomes another when its handshake is done. All of them
//! are known to one tracker, so that a stop can close the listener and the websockets at once and
//! give running transfers their time.

mod former;
mod git_proxy;
mod metrics;
mod nip11;
mod pages;
mod websocket;

use std::{convert::Infallible, fmt, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::future::BoxFuture;
use grasp_proto::{
    client::{Client, ForwardKey, Seats, client_address},
    process::{self, MetricsPage, Ready},
    smart_http::{NotHere, is_read_by_git},
    words::RepoId,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use nostr_database::NostrDatabase;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use self::{
    git_proxy::{Asker, GitProxy},
    websocket::Connections,
};
use crate::{
    config::Config,
    live::Live,
    meters,
    session::{Patience, Sessions, socket},
    verdict::Door,
};

/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// How long a client that is turned away may take to hear it.
const TURNED_AWAY: Duration = Duration::from_secs(2);
/// The longest path and query.
const URI_BYTES: usize = 16 << 10;
/// The most headers of a request, by number and by size.
const HEADERS: usize = 100;
const HEADERS_BYTES: usize = 64 << 10;
/// The largest head that is read at all, and what a connection reads at once. More than is taken,
/// as what hyper refuses by itself has no headers that let a web page read it.
const HEAD_BYTES: usize = 128 << 10;
const READ_HEADERS: usize = 400;

/// What the public face needs of the rest.
#[derive(Clone)]
pub struct Face {
    /// What the relay is told.
    pub config: Arc<Config>,
    /// Where events go.
    pub door: Arc<dyn Door>,
    /// Who gets events as they are served.
    pub live: Arc<Live>,
    /// What is stored.
    pub database: Arc<dyn NostrDatabase>,
    /// Whether the service is ready.
    pub ready: Arc<dyn Ready>,
    /// When a websocket is taken for dead.
    pub patience: Patience,
    /// Told of repositories that were asked for and that gitd does not have.
    pub missed: Missed,
}

/// Told of a repository; must neither wait nor fail.
pub type Missed = Arc<dyn Fn(&RepoId) + Send + Sync>;

impl fmt::Debug for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Face").finish_non_exhaustive()
    }
}

/// What every request may need.
#[derive(Clone)]
struct Context {
    config: Arc<Config>,
    ready: Arc<dyn Ready>,
    sessions: Arc<Sessions>,
    connections: Arc<Connections>,
    git: GitProxy,
    missed: Missed,
    tasks: TaskTracker,
}

/// The peer of a request's connection.
#[derive(Clone, Copy)]
struct Peer(IpAddr);

/// Serves until `stop`: then nothing new is taken, websockets are closed, and what runs has `grace`
/// to end.
pub async fn serve(face: Face, listener: TcpListener, stop: CancellationToken, grace: Duration) {
    let tasks = TaskTracker::new();
    let config = face.config.clone();
    let limits = &config.client_limits;
    let peers = Seats::new(limits.connections);
    let connections = Connections::new(
        config.limits.max_connections,
        limits,
        config.abuse_threshold,
    );
    let git = GitProxy::new(&config.gitd_http, ForwardKey::new(&config.tokens));
    let context = Context {
        connections,
        git,
        config: config.clone(),
        ready: face.ready,
        missed: face.missed,
        sessions: Arc::new(Sessions::new(
            face.config,
            face.door,
            face.live,
            face.database,
            face.patience,
            stop.clone(),
        )),
        tasks: tasks.clone(),
    };
    let router = router(context);
    let kill = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let address = peer.ip();
                // A proxy has its clients' connections, which are counted as theirs.
                let counted = peers.as_ref().filter(|_| {
                    !limits.unlimited.contain(address) && !config.trusted_proxies.contain(address)
                });
                let seat = counted.map(|peers| peers.take(Client::of(address)));
                if let Some(None) = seat {
                    meters::limited("connections");
                    tasks.spawn(kill.clone().run_until_cancelled_owned(turn_away(tcp)));
                    continue;
                }
                let connection = connection(tcp, address, router.clone(), stop.clone());
                let connection = async move {
                    let _seat = seat;
                    connection.await;
                };
                tasks.spawn(kill.clone().run_until_cancelled_owned(connection));
            }
            Err(error) => {
                // Out of file descriptors, most likely: do not spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if !process::drain(tasks.wait(), grace).await {
        tracing::warn!(left = tasks.len(), "connections are cut off");
        kill.cancel();
    }
}

/// Tells a client that has all the connections it may have, without reading what it asks.
async fn turn_away(mut tcp: TcpStream) {
    const ANSWER: &str = "HTTP/1.1 429 Too Many Requests\r\nAccess-Control-Allow-Origin: *\r\n\
                          Content-Type: text/plain\r\nContent-Length: 40\r\n\
                          Connection: close\r\n\r\ntoo many connections from your address\r\n";
    let answer = async {
        tcp.write_all(ANSWER.as_bytes()).await?;
        tcp.shutdown().await?;
        // Closed with something unread, the answer would be lost.
        let mut asked = [0; 512];
        while tcp.read(&mut asked).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(TURNED_AWAY, answer).await;
}

async fn connection(tcp: TcpStream, peer: IpAddr, router: Router, stop: CancellationToken) {
    if let Err(error) = socket::prepare(&tcp) {
        tracing::debug!(%error, "a connection was gone at once");
        return;
    }
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let answer = router.clone().oneshot(request.map(Body::new));
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .max_headers(READ_HEADERS)
        // Who has asked all it wants to may close its sending side. That it went away altogether
        // looks the same, and is found out when something is sent to it.
        .half_close(true)
        .serve_connection(TokioIo::new(tcp), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "a connection broke"
        );
    }
}

fn router(context: Context) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/icon.svg", get(icon))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(public_metrics))
        .fallback(other)
        .layer(middleware::from_fn(bounded))
        .layer(middleware::from_fn(cors))
        .with_state(context)
}

/// Every answer can be read by every web page (GRASP-01); questions about that are answered here.
async fn cors(request: Request, next: Next) -> Response {
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, Content-Encoding, Git-Protocol, Authorization, Accept, X-Requested-With",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests whose head is too large.
async fn bounded(request: Request, next: Next) -> Response {
    let uri = request.uri().path_and_query();
    if uri.is_some_and(|uri| uri.as_str().len() > URI_BYTES) {
        return (StatusCode::URI_TOO_LONG, "the address is too long\n").into_response();
    }
    let headers = request.headers();
    let line = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    if headers.len() > HEADERS || headers.iter().map(line).sum::<usize>() > HEADERS_BYTES {
        let reason = "the headers are too large\n";
        return (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason).into_response();
    }
    next.run(request).await
}

fn asker(context: &Context, request: &Request) -> Asker {
    let peer = request.extensions().get::<Peer>();
    let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |Peer(ip)| *ip);
    let trusted = &context.config.trusted_proxies;
    Asker {
        address: client_address(peer, request.headers(), trusted),
        proxied: trusted.contain(peer),
    }
}

async fn root(State(context): State<Context>, request: Request) -> Response {
    if websocket::is_wanted(&request) {
        let address = asker(&context, &request).address;
        let Context {
            connections,
            sessions,
            tasks,
            ..
        } = &context;
        return websocket::accept(request, address, connections, sessions, tasks);
    }
    let mut response = if accepts_document(request.headers()) {
        let document = nip11::document(&context.config).to_string();
        ([(header::CONTENT_TYPE, nip11::CONTENT_TYPE)], document).into_response()
    } else {
        pages::landing(&context.config)
    };
    // The same address answers differently.
    let vary = HeaderValue::from_static("Accept");
    response.headers_mut().insert(header::VARY, vary);
    response
}

fn accepts_document(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|kind| {
            let kind = kind.split(';').next().unwrap_or_default();
            kind.trim().eq_ignore_ascii_case(nip11::CONTENT_TYPE)
        })
    })
}

async fn icon() -> Response {
    ([(header::CONTENT_TYPE, "image/svg+xml")], pages::ICON).into_response()
}

async fn readyz(State(context): State<Context>) -> Response {
    match process::readiness_text(&*context.ready).await {
        Ok(text) => text.into_response(),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}

/// The metrics of the whole service.
struct MetricsOfAll(GitProxy);

/// The metrics of the whole service, for an address of their own.
pub fn metrics_of_all(config: &Config) -> Arc<dyn MetricsPage> {
    let key = ForwardKey::new(&config.tokens);
    Arc::new(MetricsOfAll(GitProxy::new(&config.gitd_http, key)))
}

impl MetricsPage for MetricsOfAll {
    fn render(&self) -> BoxFuture<'_, String> {
        Box::pin(render_metrics_of_all(&self.0))
    }
}

async fn render_metrics_of_all(git: &GitProxy) -> String {
    let theirs = git.metrics().await.unwrap_or_default();
    let own = process::render_metrics("relay");
    let mut page = metrics::join(&[&own, &theirs]);
    let former = former::names(&page, meters::uptime(), env!("CARGO_PKG_VERSION"));
    page.push_str(&former);
    page
}

async fn public_metrics(State(context): State<Context>) -> Response {
    let Config {
        metrics,
        public_metrics_address: elsewhere,
        ..
    } = &*context.config;
    if !metrics || elsewhere.is_some() {
        return pages::not_found("/metrics");
    }
    let page = render_metrics_of_all(&context.git).await;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], page).into_response()
}

/// Whether a path is that of a repository on a blacklist: nothing is served there.
fn is_blocked(config: &Config, path: &str) -> bool {
    let of_submitter = path
        .strip_prefix("/prs")
        .filter(|rest| rest.starts_with('/'));
    let repo = RepoId::from_url_path(of_submitter.unwrap_or(path));
    repo.is_some_and(|(repo, _)| config.curation.rules().blocks(&repo))
}

async fn other(State(context): State<Context>, request: Request) -> Response {
    let path = request.uri().path();
    let absent = if !git_proxy::is_git_path(path) {
        Some(NotHere::of(path))
    } else if is_blocked(&context.config, path) {
        Some(NotHere::Blocked)
    } else {
        None
    };
    if let Some(why) = absent {
        return match is_read_by_git(path, request.headers()) {
            true => (StatusCode::NOT_FOUND, format!("{why}\n")).into_response(),
            false => pages::not_found(path),
        };
    }
    let asker = asker(&context, &request);
    let repo = RepoId::from_url_path(path)
        .filter(|(_, below)| GIT_PATHS.contains(below))
        .map(|(repo, _)| repo);
    let response = context.git.pass(request, asker).await;
    if response.status() == StatusCode::NOT_FOUND
        && let Some(repo) = repo
    {
        (context.missed)(&repo);
    }
    response
}

/// Where every repository has something, below its address.
const GIT_PATHS: [&str; 3] = ["/info/refs", "/git-upload-pack", "/git-receive-pack"];
