//! A proxy that runs, and the ways through it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::AbortHandle,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use crate::{
    authority::Authority,
    configuration::{Addresses, Configuration},
    support::{service::free_port, until, web},
};

/// How a client speaks to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// HTTP/1.1 without TLS.
    Plain,
    /// HTTP/1.1 over TLS.
    Tls,
    /// HTTP/2 over TLS.
    Http2,
}

/// A running proxy; gone when dropped, its log printed if the test failed.
pub struct Front {
    configuration: Configuration,
    directory: TempDir,
    plain: u16,
    tls: u16,
    /// Leads to `tls` without TLS, for clients that know none.
    bridge: u16,
    bridging: AbortHandle,
    authority: PathBuf,
    _signed: Authority,
    _child: Child,
}

impl Front {
    /// Starts it in front of the relay and, by itself, gitd at these ports.
    pub async fn start(configuration: Configuration, relay: u16, gitd: u16) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("proxies")
            .tempdir()
            .unwrap();
        let signed = Authority::new();
        signed.settings("localhost");
        let (plain, tls) = (free_port(), free_port());
        let text = configuration.text(&Addresses {
            directory: directory.path(),
            plain,
            tls,
            certificate: &signed.path("localhost.cert"),
            key: &signed.path("localhost.key"),
            relay,
            gitd,
        });
        let file = directory.path().join("configuration");
        std::fs::write(&file, text).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let mut command = Command::new(configuration.program().unwrap());
        command
            .env_clear()
            .env("HOME", directory.path())
            .env("XDG_DATA_HOME", directory.path())
            .env("XDG_CONFIG_HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true);
        match configuration.is_caddy() {
            true => command.args(["run", "--adapter", "caddyfile", "--config"]),
            false => command.arg("-c"),
        };
        let child = command.arg(&file).spawn().unwrap();
        let authority = match configuration.is_caddy() {
            true => directory
                .path()
                .join("caddy/pki/authorities/local/root.crt"),
            false => signed.path("ca"),
        };
        let (bridge, bridging) = bridge(tls, authority.clone()).await;
        let front = Self {
            configuration,
            directory,
            plain,
            tls,
            bridge,
            bridging,
            authority,
            _signed: signed,
            _child: child,
        };
        for way in front.ways() {
            let port = front.port(way);
            until("the proxy is up", || async move {
                let ask = web::request("GET", port, "/readyz", &[]);
                web::fetch(port, ask)
                    .await
                    .is_ok_and(|answer| answer.status == 200)
            })
            .await;
        }
        front
    }

    /// The ways that are open.
    pub fn ways(&self) -> Vec<Way> {
        let plain = Some(Way::Plain).filter(|_| self.configuration.is_plain_too());
        plain.into_iter().chain([Way::Tls, Way::Http2]).collect()
    }

    /// The ways on which what git pushes arrives: not HTTP/2 where nginx passes it on as it comes. curl 7.88
    /// stops sending there now and then, whatever server is behind.
    pub fn ways_for_pushes(&self) -> Vec<Way> {
        let mut ways = self.ways();
        ways.retain(|way| *way != Way::Http2 || !self.configuration.streams_requests());
        ways
    }

    /// Where a client that knows neither TLS nor HTTP/2 finds it; over TLS, if it is to.
    pub fn port(&self, way: Way) -> u16 {
        match way {
            Way::Plain => self.plain,
            Way::Tls | Way::Http2 => self.bridge,
        }
    }

    /// The port that speaks HTTP/1.1, in clear if there is one.
    pub fn simplest(&self) -> u16 {
        self.port(self.ways()[0])
    }

    /// The address of a path.
    pub fn url(&self, way: Way, path: &str) -> String {
        match way {
            Way::Plain => format!("http://localhost:{}{path}", self.plain),
            Way::Tls | Way::Http2 => format!("https://localhost:{}{path}", self.tls),
        }
    }

    /// What git is told about it.
    pub fn settings(&self, way: Way) -> [String; 4] {
        let version = match way {
            Way::Plain | Way::Tls => "HTTP/1.1",
            Way::Http2 => "HTTP/2",
        };
        [
            "-c".to_owned(),
            format!("http.sslCAInfo={}", self.authority.display()),
            "-c".to_owned(),
            format!("http.version={version}"),
        ]
    }

    /// Who has signed its certificate.
    pub fn authority(&self) -> &Path {
        &self.authority
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.bridging.abort();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            eprintln!(
                "--- log of {} ---\n{}--- end of the log ---",
                self.configuration.name(),
                log.unwrap_or_default()
            );
        }
    }
}

/// A port without TLS that leads to one with it.
async fn bridge(tls: u16, authority: PathBuf) -> (u16, AbortHandle) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let authority = authority.clone();
            tokio::spawn(async move {
                let mut roots = RootCertStore::empty();
                // It may not be there yet.
                let certificates = CertificateDer::pem_file_iter(&authority)?;
                roots.add_parsable_certificates(certificates.flatten());
                let provider = Arc::new(ring::default_provider());
                let config = ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let name = ServerName::try_from("localhost")?;
                let server = TcpStream::connect(("127.0.0.1", tls)).await?;
                server.set_nodelay(true)?;
                let connector = TlsConnector::from(Arc::new(config));
                let mut server = connector.connect(name, server).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await?;
                Ok::<_, web::Failure>(())
            });
        }
    });
    (port, task.abort_handle())
}
