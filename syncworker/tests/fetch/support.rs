//! Servers on loopback under names of the public internet, and repositories to fetch from.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use grasp_proto::{contract::relay::failed::Why, words::Oid};
use grasp_syncworker::{
    hunt::fetch::{self, FetchError, Pack, Wanted},
    net::{Allowed, Net, Resolve, tls},
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::rustls::RootCertStore;

pub use crate::backend::Body;

/// Names and the addresses each look-up of them brings; behind the last, the last again.
#[derive(Default)]
pub struct Names {
    addresses: HashMap<&'static str, Vec<Vec<IpAddr>>>,
    pub lookups: AtomicUsize,
}

impl Names {
    pub fn with(mut self, name: &'static str, lookups: &[&[&str]]) -> Self {
        let parse = |lookup: &&[&str]| lookup.iter().map(|ip| ip.parse().unwrap()).collect();
        let lookups = lookups.iter().map(parse).collect();
        self.addresses.insert(name, lookups);
        self
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, std::io::Result<Vec<IpAddr>>> {
        let turn = self.lookups.fetch_add(1, Ordering::Relaxed);
        let answer = match self.addresses.get(host) {
            None => Err(std::io::Error::other("no such name")),
            Some(lookups) => Ok(lookups[turn.min(lookups.len() - 1)].clone()),
        };
        Box::pin(async { answer })
    }
}

/// A network in which loopback counts as public, and nothing else that is not.
pub fn net_of(names: Names) -> (Net, Arc<Names>) {
    net_with(names, RootCertStore::empty())
}

pub fn net_with(names: Names, roots: RootCertStore) -> (Net, Arc<Names>) {
    let names = Arc::new(names);
    let allowed = Allowed {
        non_global: false,
        loopback: true,
    };
    let tls = Arc::new(tls(roots));
    (Net::with(allowed, Arc::clone(&names) as _, tls), names)
}

pub fn net() -> Net {
    net_of(Names::default()).0
}

pub fn wanted(url: &str, wants: &[Oid]) -> Wanted {
    Wanted {
        url: url.parse().unwrap(),
        wants: wants.to_vec(),
        haves: Vec::new(),
        max_bytes: 1 << 30,
    }
}

pub fn oid(byte: u8) -> Oid {
    Oid::from_bytes([byte; 20])
}

/// All of a pack.
pub async fn whole(mut pack: Pack) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    while let Some(piece) = pack.next().await? {
        bytes.extend_from_slice(&piece);
    }
    assert_eq!(pack.bytes(), bytes.len() as u64);
    Ok(bytes)
}

/// Why a fetch of something fails.
pub async fn failure(net: &Net, url: &str) -> FetchError {
    let wanted = wanted(url, &[oid(1)]);
    match fetch::open(net, &wanted).await {
        Err(error) => error,
        Ok(pack) => whole(pack).await.expect_err(url),
    }
}

pub async fn why(net: &Net, url: &str) -> Why {
    let error = failure(net, url).await;
    println!("{url}: {:?}: {error}", error.why);
    error.why
}

/// Serves HTTP for as long as the runtime lives; its port.
pub async fn serve<F, A>(answer: F) -> u16
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let answered = answer(request);
                    async { Ok::<_, Infallible>(answered.await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    port
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A server that is given each request's head and the connection to do with as it likes.
pub async fn raw<F, A>(behave: F) -> u16
where
    F: Fn(String, TcpStream) -> A + Clone + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let behave = behave.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                    head += &line;
                }
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                behave(head, stream.into_inner()).await;
            });
        }
    });
    port
}

/// What a server saw of requests.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub fn saw(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Git, untouched by whoever runs the tests.
pub fn git() -> Command {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GIT_") {
            command.env_remove(name);
        }
    }
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "a")
        .env("GIT_AUTHOR_EMAIL", "a@example.com")
        .env("GIT_COMMITTER_NAME", "a")
        .env("GIT_COMMITTER_EMAIL", "a@example.com");
    command
}

/// A repository on disk.
pub struct Repository {
    directory: TempDir,
}

impl Repository {
    pub fn new() -> Self {
        Self::of_format("sha1")
    }

    pub fn of_format(format: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository = Self { directory };
        std::fs::create_dir(repository.path()).unwrap();
        let format = format!("--object-format={format}");
        repository.git(&["init", "-q", "-b", "main", &format, "."]);
        repository
    }

    /// Below it lie the repositories that are served.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn path(&self) -> PathBuf {
        self.root().join("repo")
    }

    pub fn git(&self, args: &[&str]) -> String {
        let output = git().current_dir(self.path()).args(args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn oid(&self, name: &str) -> Oid {
        Oid::from_hex(&self.git(&["rev-parse", "--verify", name])).unwrap()
    }

    pub fn commit(&self, file: &str, content: impl AsRef<[u8]>) -> Oid {
        std::fs::write(self.path().join(file), content).unwrap();
        self.git(&["add", file]);
        self.git(&["commit", "-q", "-m", file]);
        self.oid("HEAD")
    }

    /// Takes a pack in as gitd does, and looks whether these objects are there with all they lead to.
    pub fn take(&self, pack: &[u8], oids: &[Oid]) {
        let mut child = git()
            .current_dir(self.path())
            .args(["index-pack", "--stdin", "--fix-thin", "--strict"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(pack).unwrap();
        assert!(child.wait().unwrap().success(), "the pack is bad");
        let oids: Vec<String> = oids.iter().map(Oid::to_hex).collect();
        let mut args = vec!["rev-list", "--objects", "--quiet"];
        args.extend(oids.iter().map(String::as_str));
        self.git(&args);
    }

    pub fn has(&self, oid: &Oid) -> bool {
        let oid = oid.to_hex();
        let mut look = git();
        look.current_dir(self.path()).args(["cat-file", "-e", &oid]);
        look.stderr(Stdio::null()).status().unwrap().success()
    }
}
