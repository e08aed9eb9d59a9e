//! Where we may connect, and the one place that does: every connection of a worker to the rest of the
//! network is dialled here.
//!
//! A name is resolved once, by us; every address that came is judged, and a judged address is what is
//! dialled, so that a name that means something else a moment later changes nothing. There is no
//! proxy: nothing here reads one from the environment. [`http`] is what speaks HTTP over it.

mod addresses;
pub mod http;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use rustix::io::Errno;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{self, ClientConfig, RootCertStore, pki_types::ServerName},
};
use tokio_util::either::Either;
use url::Url;

pub use addresses::{Allowed, is_global, is_port_allowed};

/// How long a name may take to be resolved. What the system does for it may go on behind that, on a
/// blocking thread, of which the runtime has a bounded number.
const RESOLVE: Duration = Duration::from_secs(10);
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How long TLS may take to be agreed on.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most addresses of one name that are dialled, one after the other.
const MOST_DIALLED: usize = 4;
/// Most allowed addresses of one name that are looked at for it.
const MOST_KEPT: usize = 64;

/// Why there is no connection, or no answer on it. Texts are for people, and name no credentials.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    /// It may not be connected to.
    #[error("{0}")]
    Forbidden(String),
    /// The name has no addresses.
    #[error("{host} cannot be resolved: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// No address takes connections.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// The last that was tried.
        address: SocketAddr,
        /// What the system said.
        why: String,
    },
    /// TLS cannot be agreed on: the certificate, most often.
    #[error("TLS with {host}: {why}")]
    Tls {
        /// The name the certificate had to be for.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// It speaks no HTTP we understand, or broke off.
    #[error("{0}")]
    Http(String),
    /// The way there is not open to us, or nobody tells us the way: as far as is known it is no fault
    /// of theirs.
    #[error("our own network: {0}")]
    Ours(String),
    /// No answer came in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
}

/// How names become addresses.
pub trait Resolve: Send + Sync + 'static {
    /// All addresses of a name.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Resolve for System {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host, 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}

/// The way out. Cheap to clone.
#[derive(Clone)]
pub struct Net {
    allowed: Allowed,
    resolver: Arc<dyn Resolve>,
    tls: Arc<ClientConfig>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// With the system's resolver and the system's certificates, which are read here: to be called
    /// once, at the start.
    pub fn new(allowed: Allowed) -> Self {
        Self::with(allowed, Arc::new(System), Arc::new(tls(system_roots())))
    }

    /// With another resolver and other certificates.
    pub fn with(allowed: Allowed, resolver: Arc<dyn Resolve>, tls: Arc<ClientConfig>) -> Self {
        Self {
            allowed,
            resolver,
            tls,
        }
    }

    /// A connection to what an `http`, `https`, `ws` or `wss` URL names, in TLS if it says so.
    pub async fn connect(&self, url: &Url) -> Result<Stream, NetError> {
        let secure = match url.scheme() {
            "http" | "ws" => false,
            "https" | "wss" => true,
            other => return Err(forbidden(format!("{other} is not spoken here"))),
        };
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(forbidden("the URL names no host"));
        };
        let stream = self.dial(host, port).await?;
        if !secure {
            return Ok(Either::Left(stream));
        }
        let tls_error = |why: String| NetError::Tls {
            host: host.to_owned(),
            why,
        };
        let name = ServerName::try_from(unbracketed(host).to_owned())
            .map_err(|_| tls_error("no certificate can be for such a name".into()))?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        match timeout(HANDSHAKE, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(Either::Right(Box::new(stream))),
            Ok(Err(error)) => Err(tls_error(error.to_string())),
            Err(_) => Err(tls_error(format!(
                "no answer within {} s",
                HANDSHAKE.as_secs()
            ))),
        }
    }

    /// A connection to `host`, a name or an address, if it may be connected to.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, NetError> {
        if !is_port_allowed(port) {
            return Err(forbidden(format!("port {port} may not be connected to")));
        }
        let host = unbracketed(host);
        let all = self.addresses(host).await?;
        let first = all.first().copied();
        let good = all.into_iter().filter(|ip| self.allowed.permits(*ip));
        let good = in_turn(good.take(MOST_KEPT));
        let mut failed: Option<NetError> = None;
        for ip in good.into_iter().take(MOST_DIALLED) {
            let address = SocketAddr::new(ip, port);
            let why = match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Small requests are not to wait for the acknowledgement of the one before.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                // Where we have one family only, the other's addresses say nothing of the server.
                Ok(Err(error)) if is_ours(&error) => {
                    let why = format!("cannot connect to {address}: {error}");
                    failed.get_or_insert(NetError::Ours(why));
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", CONNECT.as_secs()),
            };
            failed = Some(NetError::Connect { address, why });
        }
        Err(failed.unwrap_or_else(|| {
            let address = first.map(|ip| ip.to_string()).unwrap_or_default();
            let why = format!("{host} ({address}) is not on the public internet");
            forbidden(why)
        }))
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, NetError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        // `fe80::1%eth0` and the like: the resolver would take them.
        if host.is_empty() || host.contains(['%', ':']) {
            return Err(forbidden(format!("{host:?} is no host's name")));
        }
        let resolve_error = |why: String| NetError::Resolve {
            host: host.to_owned(),
            why,
        };
        let ours = |why: &str| NetError::Ours(format!("{host} cannot be resolved: {why}"));
        let addresses = match timeout(RESOLVE, self.resolver.resolve(host)).await {
            Err(_) => return Err(ours("the resolver does not answer")),
            Ok(Err(error)) if is_resolvers(&error) => return Err(ours(&error.to_string())),
            Ok(Err(error)) => return Err(resolve_error(error.to_string())),
            Ok(Ok(addresses)) => addresses,
        };
        match addresses.is_empty() {
            true => Err(resolve_error("it has no addresses".into())),
            false => Ok(addresses),
        }
    }
}

/// Whether a connection failed for want of something on our side of it. A host that cannot be reached
/// may be gone, or our own router: a server that is asked in vain costs little, all servers set aside
/// because our line is down cost much.
fn is_ours(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let kind = matches!(
        error.kind(),
        Kind::NetworkUnreachable
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::AddrNotAvailable
            | Kind::PermissionDenied
            | Kind::OutOfMemory
    );
    let no_more = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS];
    kind || Errno::from_io_error(error).is_some_and(|errno| no_more.contains(&errno))
}

/// Whether it was the resolver that failed, and no name that is not there. `EAI_AGAIN` comes as its
/// text alone, glibc's or musl's; an error with a number is the system's own (`EAI_SYSTEM`).
fn is_resolvers(error: &io::Error) -> bool {
    let text = error.to_string();
    let again = ["Temporary failure in name resolution", "Try again"];
    error.raw_os_error().is_some() || again.iter().any(|again| text.ends_with(again))
}

fn forbidden(why: impl Into<String>) -> NetError {
    NetError::Forbidden(why.into())
}

/// What TLS is spoken with, for these certificates: rustls over ring, named here so that no other
/// provider that some crate brings along takes its place.
pub fn tls(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The certificates that the system trusts, so that an operator's own count here too.
fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "certificates of the system cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::error!("the system has no root certificates: no https and no wss can be reached");
    }
    roots
}

/// An IPv6 address without the brackets it has in a URL.
fn unbracketed(host: &str) -> &str {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host)
}

/// Both families in turn, the one that came first in front: where one of them leads nowhere, the
/// other is not left out.
fn in_turn(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut families = [Vec::new(), Vec::new()];
    let mut first = None;
    for ip in addresses {
        let first = *first.get_or_insert(ip.is_ipv4());
        let family = &mut families[usize::from(ip.is_ipv4() != first)];
        if !family.contains(&ip) {
            family.push(ip);
        }
    }
    let longest = families[0].len().max(families[1].len());
    (0..longest)
        .flat_map(|i| [families[0].get(i).copied(), families[1].get(i).copied()])
        .flatten()
        .collect()
}

/// A connection, without TLS or in it.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

#[cfg(test)]
mod tests;
