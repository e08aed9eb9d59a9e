//! Smart HTTP: which request is whose, what every answer carries, how bodies come and go.
//!
//! Bodies are streams in both directions: nothing here keeps more than a few pieces of one.

pub mod advertise;
pub mod asked;
pub mod body;
pub mod commands;
pub mod door;
pub mod flow;
pub mod lfs;
pub mod metered;
pub mod object_filter;
pub mod pace;
pub mod pkt_line;
pub mod read_ahead;
pub mod receive_pack;
pub mod report;
pub mod stream;
pub mod unread;
pub mod upload_pack;

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::TryStreamExt;
use grasp_proto::{
    process::render_metrics,
    smart_http::{self, GitService, NotHere},
    transport::{Listener, Trace},
    words::Address,
};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{self, HeaderName},
};
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    body::Upload,
    door::{Door, IsRefused},
    pace::Budget,
    unread::{BodyEnd, Patience, Unread},
};
use crate::{
    busiest::Busiest,
    meters,
    relay::Relay,
    repository::{Error, Repositories, places::Places},
    web,
};

/// What answering needs.
pub struct Server {
    /// The repositories.
    pub repositories: Arc<Repositories>,
    /// Whom pushes are judged by.
    pub relay: Arc<dyn Relay>,
    /// Room for git processes that serve readers.
    pub readers: Places,
    /// Room for git processes that take packs in.
    pub writers: Places,
    /// Room for those whose packs nobody has signed for.
    pub stagers: Places,
    /// What the commands of pushes take of memory.
    pub commands: Budget,
    /// And what is read of their packs before these can be taken in.
    pub read_ahead: Budget,
    /// What readers' requests take of the disk until git reads them.
    pub requests: Budget,
    /// Transfers that run on behind their request.
    pub tasks: TaskTracker,
    /// Cancelled when the grace is over: what runs must end.
    pub kill: CancellationToken,
    /// Largest pack that a signed event wants.
    pub max_pack_bytes: u64,
    /// Largest pack that nobody has signed for.
    pub max_staged_pack_bytes: u64,
    /// Whether addresses below `/prs/` are answered (GRASP-06).
    pub prs: bool,
    /// Public `host[:port]`.
    pub domain: String,
    /// Who is asking, and what of it is granted.
    pub door: Arc<Door>,
    /// Which repositories move the most.
    pub busiest: Busiest,
}

/// Which version of the protocol a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The first, or none named.
    V0,
    /// The first, saying so.
    V1,
    /// The second.
    V2,
}

impl Version {
    fn from_headers(headers: &HeaderMap) -> Self {
        let value = headers.get("git-protocol").and_then(|v| v.to_str().ok());
        let versions = value.unwrap_or_default().split(':');
        let highest = versions
            .filter_map(|part| part.trim().strip_prefix("version="))
            .filter_map(|version| version.parse::<u8>().ok())
            .max();
        match highest {
            Some(1) => Self::V1,
            Some(2) => Self::V2,
            _ => Self::V0,
        }
    }

    /// As git's child is told; never what the client wrote.
    fn git_protocol(self) -> Option<&'static str> {
        match self {
            Self::V0 => None,
            Self::V1 => Some("version=1"),
            Self::V2 => Some("version=2"),
        }
    }
}

/// What becomes of a request to a repository.
pub enum Answer {
    /// These bytes.
    Whole(Bytes),
    /// These pieces, made as they are taken.
    Pieces(advertise::Pieces),
    /// What comes out here.
    Stream(stream::Pieces),
    /// There is no such repository.
    NotFound,
    /// Our side failed, and the log knows why.
    Failed,
}

impl Answer {
    fn from_error(error: &Error) -> Self {
        match error {
            Error::NotFound => Self::NotFound,
            // An operator can do something about it, and the client's user can say so. No words of ours
            // tell where something lies on our disk.
            Error::Precondition(reason) => Self::Whole(pkt_line::line(format!("ERR {reason}\n"))),
            error => {
                tracing::error!(%error, "a request failed");
                Self::Failed
            }
        }
    }

    fn from_pieces(pieces: Result<advertise::Pieces, Error>) -> Self {
        match pieces {
            Ok(pieces) => Self::Pieces(pieces),
            Err(error) => Self::from_error(&error),
        }
    }
}

/// Starts a task that outlives its request, in the same trace.
fn spawn(tasks: &TaskTracker, work: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(Trace::carry(work));
}

/// The body of an answer.
type Body = UnsyncBoxBody<Bytes, io::Error>;

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn body_of(answer: Answer) -> Option<Body> {
    let frame = |bytes| Ok(Frame::data(bytes));
    Some(match answer {
        Answer::Whole(bytes) => whole(bytes),
        Answer::Pieces(pieces) => {
            StreamBody::new(futures::stream::iter(pieces.map(frame))).boxed_unsync()
        }
        Answer::Stream(pieces) => StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync(),
        Answer::NotFound | Answer::Failed => return None,
    })
}

/// Connections at once; more wait in the kernel.
const CONNECTIONS: usize = 8192;

/// How long a connection may be idle before and between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Serves until `stop`, then until the running requests have been answered.
pub async fn serve(server: Arc<Server>, listener: Listener, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // Some clients close their side when their request is out, and read on.
        .half_close(true)
        .header_read_timeout(HEAD_TIMEOUT)
        // What hyper holds of one connection in either direction.
        .max_buf_size(128 * 1024);
    loop {
        let accepted = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        let (connection, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = peer.map(|address| address.ip());
        let state = Arc::clone(&server);
        let service = service_fn(move |request: Request<Incoming>| {
            let state = Arc::clone(&state);
            async move { Ok::<_, Infallible>(traced(state, peer, request).await) }
        });
        let connection = http.serve_connection(TokioIo::new(connection), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// What is asked for, as it stands in metrics and traces.
fn kind(method: &Method, path: &str) -> &'static str {
    let Some((_, rest)) = Address::from_url_path(path) else {
        return "other";
    };
    match (rest, method == Method::POST) {
        ("/info/refs", false) => "info-refs",
        ("/git-upload-pack", true) => "git-upload-pack",
        ("/git-receive-pack", true) => "git-receive-pack",
        ("" | "/", false) => "page",
        _ => "other",
    }
}

/// Answers one request in its trace: the relay's, or a new one.
async fn traced(
    server: Arc<Server>,
    peer: Option<IpAddr>,
    request: Request<Incoming>,
) -> Response<Body> {
    let relayed = server.door.is_from_relay(peer, request.headers());
    let kind = kind(request.method(), request.uri().path());
    let span = tracing::info_span!(
        parent: None,
        "request",
        otel.name = kind,
        otel.kind = "server",
        http.request.method = request.method().as_str(),
        http.response.status_code = tracing::field::Empty,
    );
    let headers = request.headers().clone();
    let ours = span.clone();
    let work = async move {
        let response = handle(server, peer, relayed, request).await;
        let status = response.status();
        ours.record("http.response.status_code", status.as_u16());
        match response.extensions().get::<IsRefused>() {
            Some(IsRefused) => meters::request(kind, "refused"),
            None => meters::request(kind, status.as_str()),
        }
        response
    };
    match relayed {
        true => Trace::follow(Trace::from_headers(&headers), span, work).await,
        false => Trace::begin_for(&headers, span, work).await,
    }
}

/// Answers one request.
async fn handle(
    server: Arc<Server>,
    peer: Option<IpAddr>,
    relayed: bool,
    request: Request<Incoming>,
) -> Response<Body> {
    let client = server.door.client(peer, request.headers());
    tracing::debug!(
        method = %request.method(),
        path = request.uri().path(),
        client = client.map(tracing::field::display),
        "request"
    );
    let mut response = if request.method() == Method::OPTIONS {
        status(StatusCode::NO_CONTENT, whole(""))
    } else {
        if relayed && request.uri().path() == "/metrics" {
            // For the relay, which shows them with its own; others ask at the address for that.
            let text = whole(render_metrics("gitd") + &busiest(&server).await);
            return typed(status(StatusCode::OK, text), "text/plain; version=0.0.4");
        }
        admitted(server, client, request).await
    };
    cors(response.headers_mut());
    response
}

/// The repositories that move the most, of those that anybody may see.
async fn busiest(server: &Arc<Server>) -> String {
    let state = Arc::clone(server);
    let work = move |repositories: &Repositories| {
        let is_shown = |address: &Address| {
            !repositories.withheld.covers(&address.repo) && repositories.shown(address).is_ok()
        };
        Ok(state.busiest.render(is_shown))
    };
    server.repositories.blocking(work).await.unwrap_or_default()
}

/// Answers a request if its client may ask it.
async fn admitted(
    server: Arc<Server>,
    client: Option<IpAddr>,
    request: Request<Incoming>,
) -> Response<Body> {
    let door = Arc::clone(&server.door);
    match door.enter(client, &request, Instant::now()) {
        Ok(visit) => {
            let (request, end) =
                Unread::of(request, visit.meter(&door), Patience::SHORT, &server.kill);
            let response = route(server, client, request, &end).await;
            let response = held_until(end, response).await;
            response.map(|body| visit.answered(&door, body))
        }
        Err(refused) => {
            let meter = Some(refused.meter(&door));
            let (request, end) = Unread::of(request, meter, Patience::LONG, &server.kill);
            let response = door::refuse(&refused, &request);
            drop(request);
            held_until(end, response).await
        }
    }
}

/// Holds an answer until its request has ended. If that goes on for too long, an answer without the
/// status of an error gets one: nothing else is heard so early.
async fn held_until(end: BodyEnd, response: Response<Body>) -> Response<Body> {
    let Err(unheard) = end.reached().await else {
        return response;
    };
    let is_refused = response.extensions().get::<IsRefused>().is_some();
    let mut early = match response.status() {
        error if error.is_client_error() || error.is_server_error() => response,
        _ => {
            let code = match is_refused {
                true => StatusCode::TOO_MANY_REQUESTS,
                false => unheard,
            };
            let text = whole("the request is refused, and more of it came than is read for that\n");
            typed(status(code, text), "text/plain")
        }
    };
    if is_refused {
        early.extensions_mut().insert(IsRefused);
    }
    let close = HeaderValue::from_static("close");
    early.headers_mut().insert(header::CONNECTION, close);
    early
}

/// Every answer carries these (GRASP-01).
fn cors(headers: &mut HeaderMap) {
    const CORS: [(HeaderName, &str); 3] = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, Content-Encoding, Git-Protocol, Authorization, Accept, X-Requested-With",
        ),
    ];
    for (name, value) in CORS {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn status(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn typed(mut response: Response<Body>, kind: &'static str) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn page(code: StatusCode, html: String) -> Response<Body> {
    typed(status(code, whole(html)), "text/html; charset=utf-8")
}

/// Nothing is served here: in words for git, in a page for browsers.
fn not_here(why: NotHere, path: &str, headers: &HeaderMap) -> Response<Body> {
    match smart_http::is_read_by_git(path, headers) {
        true => plain(StatusCode::NOT_FOUND, format!("{why}\n")),
        false => page(StatusCode::NOT_FOUND, web::not_found(path)),
    }
}

fn plain(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    typed(status(code, whole(text)), "text/plain")
}

async fn route(
    server: Arc<Server>,
    client: Option<IpAddr>,
    request: Request<Unread>,
    end: &BodyEnd,
) -> Response<Body> {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/healthz" if get => return status(StatusCode::OK, whole("ok\n")),
        _ => {}
    }
    let headers = request.headers().clone();
    let absent = |why| not_here(why, &path, &headers);
    let Some((address, rest)) = Address::from_url_path(&path) else {
        return absent(NotHere::of(&path));
    };
    if address.is_prs() && !server.prs {
        return absent(NotHere::NoSpaces);
    }
    if server.repositories.withheld.covers(&address.repo) {
        return absent(NotHere::Blocked);
    }
    if lfs::is_below(rest) {
        return match server.repositories.shown(&address) {
            Ok(_) => lfs::refuse(),
            Err(_) => lfs::not_here(NotHere::NotAnnounced),
        };
    }
    let version = Version::from_headers(request.headers());
    let (answer, kind) = match (rest, get) {
        ("" | "/", true) => {
            return match server.repositories.shown(&address) {
                Ok(_) => page(StatusCode::OK, web::repository(&server.domain, &address)),
                Err(_) => absent(NotHere::NotAnnounced),
            };
        }
        ("/info/refs", true) => match GitService::asked_for(request.uri().query()) {
            Some(GitService::UploadPack) => (
                info_refs(&server, address, version, false).await,
                "application/x-git-upload-pack-advertisement",
            ),
            Some(GitService::ReceivePack) => (
                info_refs(&server, address, version, true).await,
                "application/x-git-receive-pack-advertisement",
            ),
            None => {
                let text = "only git's smart protocol is spoken here: a git client is needed that \
                            asks for ?service=git-upload-pack\n";
                return plain(StatusCode::NOT_FOUND, text);
            }
        },
        ("/git-upload-pack", false) if request.method() == Method::POST => {
            if !is_of_kind(&request, "application/x-git-upload-pack-request") {
                return unread(&server, &address, absent);
            }
            match request_body(request) {
                Ok(body) => (
                    upload_pack::answer(server, address, client, version, body).await,
                    "application/x-git-upload-pack-result",
                ),
                Err(refused) => return *refused,
            }
        }
        ("/git-receive-pack", false) if request.method() == Method::POST => {
            if !is_of_kind(&request, "application/x-git-receive-pack-request") {
                return unread(&server, &address, absent);
            }
            let length = plain_length(request.headers());
            match request_body(request) {
                Ok(body) => (
                    receive_pack::answer(server, address, client, body, length, end).await,
                    "application/x-git-receive-pack-result",
                ),
                Err(refused) => return *refused,
            }
        }
        _ => return absent(NotHere::NothingBehind),
    };
    if matches!(answer, Answer::NotFound) {
        return absent(NotHere::NotAnnounced);
    }
    match body_of(answer) {
        Some(body) => typed(status(StatusCode::OK, body), kind),
        None => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the server failed; its log says why\n",
        ),
    }
}

/// Whether a request's body is what git sends: a web page cannot make a browser push.
fn is_of_kind<B>(request: &Request<B>, expected: &str) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case(expected))
}

/// The answer to a body of another kind.
fn unread(
    server: &Server,
    address: &Address,
    absent: impl FnOnce(NotHere) -> Response<Body>,
) -> Response<Body> {
    if server.repositories.shown(address).is_err() {
        return absent(NotHere::NotAnnounced);
    }
    let text = "the content type must be the one that git clients send\n";
    plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
}

async fn info_refs(server: &Server, address: Address, version: Version, push: bool) -> Answer {
    let answer = server.repositories.blocking(move |repositories| {
        if push {
            return advertise::receive(repositories, &address, version);
        }
        if version == Version::V2 {
            repositories.shown(&address)?;
            let pieces: advertise::Pieces = Box::new(std::iter::once(advertise::capabilities()));
            return Ok(pieces);
        }
        advertise::upload(repositories, &address, version)
    });
    Answer::from_pieces(answer.await)
}

/// How long a body is that is not packed, if its sender says so.
fn plain_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return None;
    }
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.trim().parse().ok()
}

fn request_body(request: Request<Unread>) -> Result<Upload, Box<Response<Body>>> {
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    let coding = encoding.map_or("", |value| value.to_str().unwrap_or("unreadable"));
    let gzip = match coding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => false,
        "gzip" | "x-gzip" => true,
        _ => {
            let text = "only gzip is known as Content-Encoding\n";
            return Err(Box::new(plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)));
        }
    };
    let stream = BodyDataStream::new(request.into_body()).map_err(io::Error::other);
    Ok(Upload::new(stream, gzip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_and_nothing_else() {
        let version = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("git-protocol", value.parse().unwrap());
            Version::from_headers(&headers)
        };
        assert_eq!(version("version=2"), Version::V2);
        assert_eq!(version("foo:version=1"), Version::V1);
        assert_eq!(version("version=2;rm"), Version::V0);
        assert_eq!(Version::from_headers(&HeaderMap::new()), Version::V0);
    }
}
