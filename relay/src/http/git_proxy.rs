//! Git paths, through to gitd.
//!
//! Both bodies are streams all the way; what is in memory is what the sockets do not hold. When the
//! client goes, which is seen when it was to send or to be sent something, hyper drops the request,
//! and with it the connection to gitd; when gitd breaks off, the answer's body fails, and so does
//! the client's connection.

mod lifeline;

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use grasp_proto::{
    client::{FORWARDED_CLIENT, ForwardKey, X_FORWARDED_FOR},
    process::drain,
    smart_http::GitService,
    transport::{Endpoint, Trace},
    words::RepoId,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Frame;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;
use tower::service_fn;

use self::lifeline::{Io, Lifeline};
use super::pages;
use crate::meters;

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Headers between two neighbours, which end here (RFC 9110, 7.6.1). `Expect` too: the server
/// below us has answered it when the body begins to flow.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// How long a request that cannot be passed on is read to its end: before that neither its client nor
/// what lies between listens for more than the status of an error.
const DRAIN: Duration = Duration::from_secs(15);
/// How long gitd may take to begin the answer to a `GET` or `HEAD`. Others begin when all was sent,
/// which may take any time.
const HEAD: Duration = Duration::from_secs(15);
/// How long gitd may take to tell its metrics.
const METRICS: Duration = Duration::from_millis(250);
/// Most bytes of metrics taken from gitd.
const METRICS_BYTES: usize = 8 << 20;

type Connector = tower::util::BoxCloneSyncService<Uri, Io, io::Error>;

/// A way to gitd's HTTP endpoint, with connections that are used again.
#[derive(Clone)]
pub struct GitProxy {
    client: Client<Connector, Body>,
    key: ForwardKey,
}

impl std::fmt::Debug for GitProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GitProxy").finish_non_exhaustive()
    }
}

/// Who asks, as gitd is told.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// The true client.
    pub address: IpAddr,
    /// Whether the peer's other forwarding headers are believed as well.
    pub proxied: bool,
}

/// Whether a path is gitd's: a repository's, or below `/prs/`.
pub fn is_git_path(path: &str) -> bool {
    RepoId::from_url_path(path).is_some() || path.starts_with("/prs/")
}

impl GitProxy {
    /// To gitd at this endpoint; what is said of clients is sealed with `key`.
    pub fn new(gitd: &Endpoint, key: ForwardKey) -> Self {
        let lifeline = Lifeline::new(gitd);
        let connector = service_fn(move |_: Uri| {
            let lifeline = lifeline.clone();
            async move { lifeline.connect().await }
        });
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(8)
            .build(Connector::new(connector));
        Self { client, key }
    }

    /// Passes a request on, and the answer back.
    pub async fn pass(&self, request: Request<Body>, asker: Asker) -> Response {
        let kind = GitRequest::of(&request);
        let span = tracing::info_span!(
            parent: None,
            "git",
            otel.name = kind.name(),
            otel.kind = "server",
            http.response.status_code = tracing::field::Empty,
        );
        let (headers, ours) = (request.headers().clone(), span.clone());
        let work = async move {
            let response = self.pass_on(kind, request, asker).await;
            let status = response.status().as_u16();
            ours.record("http.response.status_code", status);
            response
        };
        Trace::begin_for(&headers, span, work).await
    }

    async fn pass_on(
        &self,
        kind: GitRequest,
        mut request: Request<Body>,
        asker: Asker,
    ) -> Response {
        let begun = Instant::now();
        let path = request.uri().path().to_owned();
        let trace = Trace::current().unwrap_or_else(Trace::begin);
        rewrite_headers(request.headers_mut(), asker, trace);
        let client = self.key.seal(asker.address);
        request.headers_mut().insert(FORWARDED_CLIENT, client);
        *request.uri_mut() = internal(request.uri().path_and_query().cloned());
        *request.version_mut() = http::Version::HTTP_11;
        let body = SharedBody::new(std::mem::take(request.body_mut()));
        *request.body_mut() = Body::new(body.clone());
        let limit = match *request.method() {
            Method::GET | Method::HEAD => HEAD,
            _ => Duration::MAX,
        };
        match timeout(limit, self.client.request(request)).await {
            Ok(Ok(mut response)) => {
                meters::passed_on(kind.name(), true, begun);
                remove_hop_by_hop(response.headers_mut());
                let is_open_ended = !response.headers().contains_key(header::CONTENT_LENGTH);
                let words = kind.error().filter(|_| is_open_ended);
                let body = |body| Body::new(LastWords::new(body, words));
                return response.map(body).into_response();
            }
            // The client's own doing.
            Ok(Err(_)) if body.was_cut() => {
                return (StatusCode::BAD_REQUEST, "the request was cut short\n").into_response();
            }
            Ok(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a git request could not be passed on"
            ),
            Err(_) => tracing::warn!(path, "gitd did not begin to answer in time"),
        }
        metrics::counter!("ngit_git_proxy_errors_total").increment(1);
        meters::passed_on(kind.name(), false, begun);
        match drain(body.discard(), DRAIN).await {
            true => kind.unavailable(&path),
            false => pages::unavailable(&path),
        }
    }

    /// gitd's own metrics; `None` if it does not tell them in time.
    pub async fn metrics(&self) -> Option<String> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = internal(Some(PathAndQuery::from_static("/metrics")));
        // Our seal alone says who asks: it is for nobody else.
        let client = self.key.seal(IpAddr::from([0, 0, 0, 0]));
        request.headers_mut().insert(FORWARDED_CLIENT, client);
        let ask = async {
            let response = self.client.request(request).await.ok()?;
            if response.status() != StatusCode::OK {
                return None;
            }
            let body = Limited::new(response.into_body(), METRICS_BYTES);
            let bytes = body.collect().await.ok()?.to_bytes();
            String::from_utf8(bytes.into()).ok()
        };
        tokio::time::timeout(METRICS, ask).await.ok()?
    }
}

/// The address of gitd as far as HTTP goes; the connector knows the way.
fn internal(path: Option<PathAndQuery>) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static("gitd.internal"));
    parts.path_and_query = path.or(Some(PathAndQuery::from_static("/")));
    Uri::from_parts(parts).expect("scheme, authority and path are there")
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&listed) {
        headers.remove(name);
    }
}

fn rewrite_headers(headers: &mut HeaderMap, asker: Asker, trace: Trace) {
    remove_hop_by_hop(headers);
    headers.remove(header::FORWARDED);
    let address = asker.address.to_string();
    let text = |text: &str| HeaderValue::from_str(text).expect("visible ASCII");
    headers.insert(X_FORWARDED_FOR, text(&address));
    if !asker.proxied || !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !asker.proxied || !headers.contains_key(X_FORWARDED_HOST) {
        match headers.get(header::HOST).cloned() {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
    headers.insert(TRACEPARENT, text(&trace.to_string()));
}

/// What a git client asked for, as it must be told apart to be answered in its own language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GitRequest {
    /// `GET …/info/refs?service=…`
    Advertisement(&'static str),
    /// `POST …/git-upload-pack` or `…/git-receive-pack`
    Service(&'static str),
    /// A browser, or a dumb client.
    Other,
}

impl GitRequest {
    fn of<B>(request: &Request<B>) -> Self {
        let path = request.uri().path();
        let asked = if request.method() == Method::POST {
            let name = path.rsplit('/').next().unwrap_or_default();
            GitService::named(name).map(|service| Self::Service(service.name()))
        } else if path.ends_with("/info/refs") {
            let service = GitService::asked_for(request.uri().query());
            service.map(|service| Self::Advertisement(service.name()))
        } else {
            None
        };
        asked.unwrap_or(Self::Other)
    }

    /// As it stands in metrics and traces.
    fn name(self) -> &'static str {
        match self {
            Self::Advertisement(_) => "info-refs",
            Self::Service(service) => service,
            Self::Other => "other",
        }
    }

    /// What a git client reads in place of an answer from gitd, without what announces it.
    fn error(self) -> Option<String> {
        const REASON: &str = "the repository storage is restarting, try again in a few seconds";
        Some(pkt_line(&match self {
            Self::Other => return None,
            // A pusher listens for the side band, in which 3 is a fatal error.
            Self::Service("git-receive-pack") => format!("\u{3}{REASON}\n"),
            Self::Service(_) | Self::Advertisement(_) => format!("ERR {REASON}\n"),
        }))
    }

    /// gitd cannot be reached. A git user reads why; a bare status would only be shown as a number.
    fn unavailable(self, path: &str) -> Response {
        let error = self.error().unwrap_or_default();
        let (kind, body) = match self {
            Self::Other => return pages::unavailable(path),
            Self::Advertisement(service) => {
                let announced = pkt_line(&format!("# service={service}\n"));
                let kind = format!("application/x-{service}-advertisement");
                (kind, format!("{announced}0000{error}"))
            }
            Self::Service(service) => (format!("application/x-{service}-result"), error),
        };
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, "no-cache".to_owned()),
        ];
        (headers, body).into_response()
    }
}

/// The body of gitd's answer. If it breaks off before anything of it was sent, the client is told
/// so in the language of its request; later only the end of the connection can tell.
struct LastWords {
    body: Incoming,
    words: Option<String>,
    ended: bool,
}

impl LastWords {
    fn new(body: Incoming, words: Option<String>) -> Self {
        let ended = false;
        Self { body, words, ended }
    }
}

impl http_body::Body for LastWords {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(frame)) = &polled
            && let Some(words) = self.words.take()
            && let Err(error) = frame
        {
            tracing::warn!(%error, "an answer of gitd broke off");
            self.ended = true;
            return Poll::Ready(Some(Ok(Frame::data(words.into()))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

fn pkt_line(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

/// A request's body that can be had back if nobody took it.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Shared>>);

struct Shared {
    body: Body,
    /// The body failed: it has less than its client had announced.
    cut: bool,
}

impl SharedBody {
    fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Shared { body, cut: false })))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_cut(&self) -> bool {
        self.shared().cut
    }

    /// Reads what is left and forgets it.
    async fn discard(mut self) {
        while let Some(Ok(_)) = self.frame().await {}
    }
}

impl http_body::Body for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut shared = self.shared();
        let frame = Pin::new(&mut shared.body).poll_frame(cx);
        shared.cut |= matches!(frame, Poll::Ready(Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.shared().body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.shared().body.size_hint()
    }
}
