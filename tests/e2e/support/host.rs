//! Other people's git servers: `git http-backend` as it is, and some that mean no good.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::AbortHandle};

use super::{
    Repo,
    backend::{self, Body},
    git,
};

/// How a server behaves.
#[derive(Debug, Clone)]
pub enum Manner {
    /// `git http-backend`.
    Good,
    /// The same, but every answer comes so much later.
    Slow(Duration),
    /// The same, but packs come in drops of a kilobyte, so far apart.
    Dripping(Duration),
    /// A pack that never ends.
    Endless,
    /// Sends everybody elsewhere.
    Redirecting(String),
    /// Fails with this status.
    Failing(u16),
    /// Answers everything with this.
    Saying(&'static str, Bytes),
}

#[derive(Debug, Default)]
struct Log {
    attempts: Vec<Instant>,
    running: usize,
    most_running: usize,
    bytes: u64,
}

/// A git server on a port of its own; gone when dropped.
pub struct Host {
    pub port: u16,
    directory: TempDir,
    manner: Arc<Mutex<Manner>>,
    log: Arc<Mutex<Log>>,
    task: AbortHandle,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Counts an exchange while it lasts.
struct Running(Arc<Mutex<Log>>);

impl Running {
    fn begin(log: &Arc<Mutex<Log>>) -> Self {
        let mut inner = log.lock().unwrap();
        inner.running += 1;
        inner.most_running = inner.most_running.max(inner.running);
        drop(inner);
        Self(log.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().unwrap().running -= 1;
    }
}

impl Host {
    pub async fn start() -> Self {
        Self::with(Manner::Good).await
    }

    pub async fn with(manner: Manner) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let directory = tempfile::Builder::new()
            .prefix("e2e-host")
            .tempdir()
            .unwrap();
        let root = directory.path().to_owned();
        let manner = Arc::new(Mutex::new(manner));
        let log = Arc::new(Mutex::new(Log::default()));
        let (of_task, its_log) = (manner.clone(), log.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = stream.set_nodelay(true);
                let (root, manner, log) = (root.clone(), of_task.clone(), its_log.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let manner = manner.lock().unwrap().clone();
                        let (root, log) = (root.clone(), log.clone());
                        async move { Ok::<_, Infallible>(answer(root, manner, log, request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            port,
            directory,
            manner,
            log,
            task: task.abort_handle(),
        }
    }

    /// From now on it behaves so.
    pub fn behaves(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// The address of a repository on it, there or not.
    pub fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}.git", self.port)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.git"))
    }

    /// Puts branches and tags of a repository on it; gives their address.
    pub async fn hold(&self, name: &str, repo: &Repo, refspecs: &[&str]) -> String {
        let path = self.path(name);
        if !path.exists() {
            let bare = ["init", "-q", "--bare", "-b", "main", path.to_str().unwrap()];
            git::run(self.directory.path(), &bare).await.good();
        }
        repo.push(path.to_str().unwrap(), refspecs).await.good();
        self.url(name)
    }

    /// When there were attempts to fetch so far, oldest first: each begins with `info/refs`.
    pub fn attempts(&self) -> Vec<Instant> {
        self.log.lock().unwrap().attempts.clone()
    }

    /// The most exchanges there ever were at once.
    pub fn most_at_once(&self) -> usize {
        self.log.lock().unwrap().most_running
    }

    /// The most attempts in any minute.
    pub fn most_in_a_minute(&self) -> usize {
        let attempts = self.attempts();
        let within = |from: usize| {
            let until = attempts[from] + Duration::from_secs(60);
            attempts[from..]
                .iter()
                .take_while(|at| **at < until)
                .count()
        };
        (0..attempts.len()).map(within).max().unwrap_or_default()
    }

    /// Bytes of packs that it sent.
    pub fn sent(&self) -> u64 {
        self.log.lock().unwrap().bytes
    }
}

fn whole(status: u16, kind: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(bytes.into()).map_err(|never: Infallible| match never {});
    Response::builder()
        .status(status)
        .header("Content-Type", kind)
        .body(BodyExt::boxed(body))
        .unwrap()
}

async fn answer(
    root: PathBuf,
    manner: Manner,
    log: Arc<Mutex<Log>>,
    request: Request<Incoming>,
) -> Response<Body> {
    let running = Running::begin(&log);
    let path = request.uri().path().to_owned();
    if path.ends_with("/info/refs") {
        log.lock().unwrap().attempts.push(Instant::now());
    }
    let is_pack = path.ends_with("/git-upload-pack");
    match manner {
        Manner::Failing(status) => return whole(status, "text/plain", "no"),
        Manner::Saying(kind, bytes) => return whole(200, kind, bytes),
        Manner::Redirecting(to) => {
            let mut response = whole(302, "text/plain", "");
            let location = format!("{to}{}", request.uri()).parse().unwrap();
            response.headers_mut().insert("Location", location);
            return response;
        }
        Manner::Slow(by) => tokio::time::sleep(by).await,
        Manner::Good | Manner::Dripping(_) | Manner::Endless => {}
    }
    let git = git::command(&root);
    let Ok(response) = backend::answer(git, &root, request).await else {
        return whole(StatusCode::INTERNAL_SERVER_ERROR.as_u16(), "text/plain", "");
    };
    let (head, body) = response.into_parts();
    let drip = match manner {
        Manner::Dripping(apart) if is_pack => Some(apart),
        _ => None,
    };
    let endless = matches!(manner, Manner::Endless) && is_pack;
    let state = (body, Vec::<u8>::new(), running);
    let pieces = futures::stream::unfold(state, move |(mut body, mut kept, running)| {
        let log = log.clone();
        async move {
            if kept.is_empty() {
                match body.frame().await {
                    Some(Ok(frame)) => kept = frame.into_data().ok()?.to_vec(),
                    // A band of the pack after its end, again and again.
                    None if endless => {
                        let mut packet = b"fff0\x01".to_vec();
                        packet.resize(0xfff0, 7);
                        kept = packet;
                    }
                    Some(Err(_)) | None => return None,
                }
                if endless {
                    // The end of the answer is kept back.
                    while kept.ends_with(b"0000") {
                        kept.truncate(kept.len() - 4);
                    }
                }
            }
            let size = match drip {
                Some(apart) => {
                    tokio::time::sleep(apart).await;
                    1024
                }
                None => kept.len(),
            };
            let rest = kept.split_off(size.min(kept.len()));
            log.lock().unwrap().bytes += if is_pack { kept.len() as u64 } else { 0 };
            let frame = Ok(Frame::data(Bytes::from(kept)));
            Some((frame, (body, rest, running)))
        }
    });
    Response::from_parts(head, BodyExt::boxed(StreamBody::new(Box::pin(pieces))))
}
