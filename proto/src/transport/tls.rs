//! Mutual TLS between processes on different machines.
//!
//! Certificates are the operator's: each side shows one, and believes those alone that the operator's
//! authority has signed. Which role calls is said by the credential in the call, as everywhere: a
//! certificate lets a process in, it opens no service. Nothing falls back to plain text.

use std::{
    fmt, io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{
    Accept, TlsAcceptor, TlsConnector, TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What of it cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// The certificate.
    #[error("a PEM file with a certificate ({0})")]
    Certificate(String),
    /// Its key.
    #[error("a PEM file with the key of the certificate ({0})")]
    Key(String),
    /// Those who sign.
    #[error("a PEM file with the certificates of those who sign ({0})")]
    Authority(String),
}

/// What both sides of an internal connection show each other. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    /// What it was read from.
    certificate: Arc<[CertificateDer<'static>]>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(…)")
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.certificate == other.certificate
    }
}

impl Eq for Tls {}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|error| error.to_string())?;
    match found.is_empty() {
        true => Err("there is none in it".to_owned()),
        false => Ok(found),
    }
}

impl Tls {
    /// Reads certificate, key, and the certificates of those who sign. Blocks, shortly.
    pub fn load(certificate: &Path, key: &Path, authority: &Path) -> Result<Self, BadTls> {
        let chain = certificates(certificate).map_err(BadTls::Certificate)?;
        let key = PrivateKeyDer::from_pem_file(key);
        let key = key.map_err(|error| BadTls::Key(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(authority).map_err(BadTls::Authority)? {
            let added = roots.add(root);
            added.map_err(|error| BadTls::Authority(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|error| BadTls::Authority(error.to_string()))?;
        let mismatch = |error: tokio_rustls::rustls::Error| BadTls::Key(error.to_string());
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(mismatch)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(mismatch)?;
        // As one that was let in before, nobody comes in without showing a certificate again.
        server.send_tls13_tickets = 0;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(mismatch)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key)
            .map_err(mismatch)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
            certificate: chain.into(),
        })
    }

    /// Shakes hands with the server that is found at `host`, whose certificate must be for it.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Secured> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let shaken = timeout(HANDSHAKE, self.connector.connect(name, stream)).await;
        let stream = shaken.map_err(|_| late())??;
        Ok(Secured(State::Open(Box::new(stream.into()))))
    }

    /// Will shake hands with a client, which must show a certificate.
    pub fn accept(&self, stream: TcpStream) -> Secured {
        let accept = Box::new(self.acceptor.accept(stream));
        Secured(State::Shaking(accept, Box::pin(sleep(HANDSHAKE))))
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long")
}

/// An encrypted connection. One that was accepted shakes hands when it is first used, so that a client
/// which does not holds up nobody but itself.
#[derive(Debug)]
pub struct Secured(State);

enum State {
    Shaking(Box<Accept<TcpStream>>, Pin<Box<Sleep>>),
    Open(Box<TlsStream<TcpStream>>),
    Failed,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shaking(..) => "Shaking",
            Self::Open(_) => "Open",
            Self::Failed => "Failed",
        })
    }
}

impl Secured {
    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Pin<&mut TlsStream<TcpStream>>>> {
        if let State::Shaking(accept, end) = &mut self.0 {
            let shaken = match Pin::new(accept).poll(cx) {
                Poll::Ready(shaken) => shaken,
                Poll::Pending => {
                    ready!(end.as_mut().poll(cx));
                    Err(late())
                }
            };
            self.0 = match shaken {
                Ok(stream) => State::Open(Box::new(stream.into())),
                Err(error) => {
                    metrics::counter!("ngit_internal_calls_refused_total").increment(1);
                    tracing::warn!(%error, "an internal connection was refused");
                    self.0 = State::Failed;
                    return Poll::Ready(Err(error));
                }
            };
        }
        Poll::Ready(match &mut self.0 {
            State::Open(stream) => Ok(Pin::new(stream.as_mut())),
            _ => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            State::Open(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            // Nothing was ever said.
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
