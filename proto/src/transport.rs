//! How a contract is reached: endpoints, credentials, deadlines, traces.
//!
//! Every internal call carries the caller's credential, a deadline and a `traceparent`; every
//! service is wrapped in a [`Guard`] that knows which roles may call it. Sockets of the machine,
//! TCP, and TCP with mutual TLS (`tls.rs`) are the same to everything above this file.

mod calls;
mod grant;
mod tls;
mod trace;

use std::{
    fmt, io,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use hmac::{Hmac, Mac};
use hyper_util::rt::TokioIo;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, Routes, interceptor::InterceptedService},
    transport::{Channel, server::Connected},
};
use tonic_health::{
    pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
        health_server::HealthServer,
    },
    server::{HealthReporter, HealthService},
};

pub use grant::{BadGrant, GrantKey};
pub use tls::{BadTls, Tls};
pub use trace::{Outgoing, Trace, TraceLayer, Traced};

/// How long an internal call may take unless its caller says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Where an internal service listens and is found: `http://host:port`, `https://host:port` (mutual
/// TLS) or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `host:port`.
    Tcp(String),
    /// `host:port`, with what both sides show each other.
    Tls(String, Tls),
    /// The path of a socket.
    Unix(PathBuf),
}

/// The longest path of a unix socket the kernel takes, in bytes.
const SOCKET_PATH_MAX: usize = 107;

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, None)
    }
}

/// The forms an address may have.
const FORMS: &str = "http://host:port, https://host:port or unix:/path";

impl Endpoint {
    /// Reads an address; `https` needs certificates.
    pub fn parse(text: &str, tls: Option<&Tls>) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.len() > SOCKET_PATH_MAX {
                return Err(format!(
                    "a socket's path has 1 to {SOCKET_PATH_MAX} bytes, this one {}",
                    path.len()
                ));
            }
            return Ok(Self::Unix(path.into()));
        }
        let (authority, is_tls) = match text.strip_prefix("https://") {
            Some(authority) => (authority, true),
            None => (text.strip_prefix("http://").ok_or(FORMS)?, false),
        };
        let authority = authority.trim_end_matches('/');
        match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {}
            _ => return Err(FORMS.to_owned()),
        }
        match (is_tls, tls) {
            (false, _) => Ok(Self::Tcp(authority.to_owned())),
            (true, Some(tls)) => Ok(Self::Tls(authority.to_owned(), tls.clone())),
            (true, None) => Err(
                "http://host:port or unix:/path, as no NGIT_INTERNAL_TLS_CERT is set".to_owned(),
            ),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Tls(authority, _) => write!(f, "https://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// Opens the listener. The socket file of a dead process is replaced.
    pub async fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Tcp(authority) => Ok(Listener::Tcp(TcpListener::bind(authority).await?)),
            Self::Tls(authority, tls) => {
                let listener = TcpListener::bind(authority).await?;
                Ok(Listener::Tls(listener, tls.clone()))
            }
            Self::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                Ok(Listener::Unix(UnixListener::bind(path)?))
            }
        }
    }

    /// Opens one connection.
    pub async fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream))
            }
            Self::Tls(authority, tls) => {
                let stream = TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                let host = authority.rsplit_once(':').map_or("", |(host, _)| host);
                Ok(Connection::Tls(tls.connect(host, stream).await?))
            }
            Self::Unix(path) => Ok(Connection::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// A channel that connects when it is first used, and again whenever it must.
    pub fn channel(&self) -> Channel {
        let endpoint = self.clone();
        // The name is only for the `:authority` header; the connector decides where to.
        tonic::transport::Endpoint::from_static("http://graspd.internal")
            // A network may swallow what is sent without a word.
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(false)
            .connect_timeout(Duration::from_secs(5))
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let endpoint = endpoint.clone();
                async move { endpoint.connect().await.map(TokioIo::new) }
            }))
    }

    /// A channel whose calls carry `credential`, a deadline and the current trace.
    pub fn authorized(&self, credential: &Token) -> AuthorizedChannel {
        Outgoing(InterceptedService::new(
            self.channel(),
            Caller::new(credential),
        ))
    }
}

/// A channel whose calls carry who is calling.
pub type AuthorizedChannel = Outgoing<InterceptedService<Channel, Caller>>;

/// A listener of either kind.
#[derive(Debug)]
pub enum Listener {
    /// Over the network.
    Tcp(TcpListener),
    /// Over the network, from those who show a certificate.
    Tls(TcpListener, Tls),
    /// On this machine.
    Unix(UnixListener),
}

impl Listener {
    /// The next connection, and who opened it where that is known.
    pub async fn accept(&self) -> io::Result<(Connection, Option<std::net::SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Connection::Tcp(stream), Some(peer)))
            }
            Self::Tls(listener, tls) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Connection::Tls(tls.accept(stream)), Some(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Connection::Unix(stream), None))
            }
        }
    }

    /// Its connections, for tonic. A connection that fails as it is accepted ends nothing.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, |listener| async move {
            let connection = listener.accept().await.map(|(connection, _)| connection);
            if connection.is_err() {
                // Out of file descriptors, most likely: do not spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Some((connection, listener))
        })
    }
}

/// A connection of any kind, without Nagle's delay.
#[derive(Debug)]
pub enum Connection {
    /// Over the network.
    Tcp(TcpStream),
    /// Over the network, encrypted; as an accepted one is first read or written, it shakes hands.
    Tls(tls::Secured),
    /// On this machine.
    Unix(UnixStream),
}

/// The same call of whichever stream it is.
macro_rules! each {
    ($connection:expr, $stream:ident => $call:expr) => {
        match $connection.get_mut() {
            Self::Tcp($stream) => $call,
            Self::Tls($stream) => $call,
            Self::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Who calls: each process has one role and one credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The brain.
    Relay,
    /// The hands.
    Gitd,
    /// The legs.
    Worker,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Relay, Self::Gitd, Self::Worker];

    /// As it stands in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Gitd => "gitd",
            Self::Worker => "syncworker",
        }
    }
}

/// A role's credential. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl Token {
    /// Takes a configured credential: visible ASCII, at least 16 characters.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.len() < 16 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a token has at least 16 visible ASCII characters");
        }
        Ok(Self(text.into()))
    }

    /// Makes a new one, of 256 random bits.
    pub fn random() -> Self {
        let bytes: [u8; 32] = rand::random();
        Self(
            bytes
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
                .into(),
        )
    }

    /// The secret itself, for handing it to a child process.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The credentials a server accepts, one for each role.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// The relay's.
    pub relay: Token,
    /// gitd's.
    pub gitd: Token,
    /// Every syncworker's.
    pub worker: Token,
}

impl Tokens {
    /// The credential of one role.
    pub fn of(&self, role: Role) -> &Token {
        match role {
            Role::Relay => &self.relay,
            Role::Gitd => &self.gitd,
            Role::Worker => &self.worker,
        }
    }

    /// A key for one purpose that follows from the credentials of relay and gitd: both processes
    /// know them, and no worker is told them.
    pub(crate) fn shared_key(&self, purpose: &[u8]) -> Hmac<Sha256> {
        let keyed = |secret: &[u8]| {
            <Hmac<Sha256> as Mac>::new_from_slice(secret).expect("HMAC takes keys of any length")
        };
        let mut derived = keyed(self.relay.expose().as_bytes());
        derived.update(purpose);
        derived.update(self.gitd.expose().as_bytes());
        keyed(&derived.finalize().into_bytes())
    }

    fn role_of(&self, presented: &[u8]) -> Option<Role> {
        Role::ALL
            .into_iter()
            .find(|role| self.of(*role).0.as_bytes().ct_eq(presented).into())
    }
}

/// Lets only calls with the credential of an allowed role through; the others are refused with
/// `UNAUTHENTICATED` or `PERMISSION_DENIED` and counted in `ngit_internal_calls_refused_total`.
#[derive(Debug, Clone)]
pub struct Guard {
    tokens: Tokens,
    allowed: &'static [Role],
}

impl Guard {
    /// A guard that lets `allowed` through.
    pub fn new(tokens: &Tokens, allowed: &'static [Role]) -> Self {
        let tokens = tokens.clone();
        Self { tokens, allowed }
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let role = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
            .and_then(|token| self.tokens.role_of(token));
        let refused = match role {
            Some(role) if self.allowed.contains(&role) => return Ok(request),
            Some(role) => {
                Status::permission_denied(format!("{} may not call this service", role.as_str()))
            }
            None => Status::unauthenticated("no valid credential of an internal role"),
        };
        metrics::counter!("ngit_internal_calls_refused_total").increment(1);
        tracing::warn!(code = ?refused.code(), "internal call refused: {}", refused.message());
        Err(refused)
    }
}

/// Puts credential and deadline on every outgoing call.
#[derive(Clone)]
pub struct Caller {
    authorization: MetadataValue<Ascii>,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caller(…)")
    }
}

impl Caller {
    fn new(token: &Token) -> Self {
        let mut authorization: MetadataValue<Ascii> = format!("Bearer {}", token.expose())
            .parse()
            .expect("a token is visible ASCII");
        authorization.set_sensitive(true);
        Self { authorization }
    }
}

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if request.metadata().get("grpc-timeout").is_none() {
            request.set_timeout(DEADLINE);
        }
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.authorization.clone());
        Ok(request)
    }
}

/// Whether the process behind `channel` says of itself that it serves, or why not.
pub async fn serves(channel: AuthorizedChannel) -> Result<(), String> {
    let mut health = HealthClient::new(channel);
    let answer = health.check(HealthCheckRequest::default()).await;
    let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(format!("says of itself: {}", status.as_str_name())),
    }
}

/// The services every process serves, for every role: health (already serving) and reflection.
/// The process adds its own to them.
pub async fn standard_routes(tokens: &Tokens) -> Routes {
    standard_routes_until(tokens, CancellationToken::new()).await
}

/// The same for a process that is on its way out from `stop` on: it says so at once, while what runs
/// may end.
pub async fn standard_routes_until(tokens: &Tokens, stop: CancellationToken) -> Routes {
    let guard = Guard::new(tokens, &Role::ALL);
    let reporter = HealthReporter::new();
    reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let leaving = reporter.clone();
    // Ends with the runtime, if the process is never told to stop.
    tokio::spawn(async move {
        stop.cancelled().await;
        leaving
            .set_service_status("", tonic_health::ServingStatus::NotServing)
            .await;
    });
    let health = HealthServer::new(HealthService::from_health_reporter(reporter));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::contract::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by our own build");
    Routes::new(InterceptedService::new(health, guard.clone()))
        .add_service(InterceptedService::new(reflection, guard))
}

/// Serves `routes` until `stop`, then lets the calls that are running end.
pub async fn serve(
    listener: Listener,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .layer(TraceLayer)
        .add_routes(routes)
        .serve_with_incoming_shutdown(listener.incoming(), stop.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens {
            relay: Token::random(),
            gitd: Token::random(),
            worker: Token::random(),
        }
    }

    #[test]
    fn endpoints_are_read_and_written() {
        for good in ["http://gitd:7001", "http://[::1]:80", "unix:/run/x.sock"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        let long = format!("unix:/{}", "x".repeat(107));
        // `https` without certificates would be a promise.
        for bad in ["gitd:7001", "http://gitd", "unix:", "https://x:1", &long] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_guard_opens_to_its_roles_alone() {
        let tokens = tokens();
        let mut guard = Guard::new(&tokens, &[Role::Worker]);
        let with = |token: &Token| {
            let mut request = Request::new(());
            let value = format!("Bearer {}", token.expose()).parse().unwrap();
            request.metadata_mut().insert("authorization", value);
            request
        };
        assert!(guard.call(with(&tokens.worker)).is_ok());
        let code = |r: Result<Request<()>, Status>| r.unwrap_err().code();
        assert_eq!(
            code(guard.call(with(&tokens.gitd))),
            tonic::Code::PermissionDenied
        );
        assert_eq!(
            code(guard.call(with(&Token::random()))),
            tonic::Code::Unauthenticated
        );
        assert_eq!(
            code(guard.call(Request::new(()))),
            tonic::Code::Unauthenticated
        );
    }

    #[tokio::test]
    async fn a_process_that_is_told_to_stop_says_so_while_it_still_answers() {
        let directory = tempfile::tempdir().unwrap();
        let socket = format!("unix:{}/s", directory.path().display());
        let endpoint: Endpoint = socket.parse().unwrap();
        let (tokens, stop) = (tokens(), CancellationToken::new());
        let listener = endpoint.listen().await.unwrap();
        let routes = standard_routes_until(&tokens, stop.clone()).await;
        tokio::spawn(serve(listener, routes, CancellationToken::new()));
        let mut client = HealthClient::new(endpoint.authorized(&tokens.worker));
        let mut status = async || {
            let answer = client.check(HealthCheckRequest::default()).await;
            answer.unwrap().into_inner().status()
        };
        assert_eq!(status().await, ServingStatus::Serving);
        stop.cancel();
        while status().await != ServingStatus::NotServing {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn both_kinds_of_endpoint_serve() {
        let directory = tempfile::tempdir().unwrap();
        let socket = format!("unix:{}/s", directory.path().display());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        for endpoint in [socket, format!("http://127.0.0.1:{port}")] {
            let endpoint: Endpoint = endpoint.parse().unwrap();
            let tokens = tokens();
            let stop = CancellationToken::new();
            let server = tokio::spawn(serve(
                endpoint.listen().await.unwrap(),
                standard_routes(&tokens).await,
                stop.clone(),
            ));
            let check = HealthCheckRequest::default();
            let mut client = HealthClient::new(endpoint.authorized(&tokens.gitd));
            client.check(check.clone()).await.unwrap();
            let mut stranger = HealthClient::new(endpoint.authorized(&Token::random()));
            assert!(stranger.check(check).await.is_err());
            drop((client, stranger));
            stop.cancel();
            server.await.unwrap().unwrap();
        }
    }
}
