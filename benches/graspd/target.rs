//! What is measured: graspd, and what it is measured against.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use nostr::{Event, Keys};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Plan, bridge,
    nostr::{Client, event, npub_of},
    workload::{Repository, git},
};

/// How graspd is called in reports.
pub const OURS: &str = "graspd";

/// What a target is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This repository's service.
    Graspd,
    /// The executable in `GRASP_PEER`, if there is one.
    Peer,
    /// `git http-backend` behind the bridge.
    HttpBackend,
    /// No server: git speaks to `upload-pack` or `receive-pack` through pipes.
    Pipe,
}

/// One of them, running. Ended when dropped, with all it kept.
pub struct Target {
    /// As it stands in reports.
    pub name: String,
    /// The web address; for pipes `file://` and a path.
    pub url: String,
    kind: Kind,
    data: PathBuf,
    child: Option<Child>,
    client: Option<Client>,
    /// Whose repository lies at a URL.
    owners: HashMap<String, Owner>,
}

struct Owner {
    keys: Keys,
    identifier: String,
    /// Later than every event before: two in one second would have no order.
    clock: u64,
}

impl Target {
    /// Starts all of these that there are, after `prepare` has filled the repositories' directory.
    pub fn start_all(
        kinds: &[Kind],
        plan: &Plan,
        row: &str,
        prepare: impl Fn(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Self>> {
        let mut targets = Vec::new();
        for kind in kinds {
            let peer = std::env::var_os("GRASP_PEER").map(PathBuf::from);
            let (name, executable) = match (kind, peer) {
                (Kind::Graspd, _) => (
                    OURS.to_owned(),
                    Some(PathBuf::from(env!("CARGO_BIN_EXE_graspd"))),
                ),
                (Kind::Peer, None) => continue,
                (Kind::Peer, Some(peer)) => {
                    let name = peer.file_name().unwrap_or_default().to_string_lossy();
                    (format!("peer {name}"), Some(peer))
                }
                (Kind::HttpBackend, _) => ("git http-backend".to_owned(), None),
                (Kind::Pipe, _) => ("git over a pipe".to_owned(), None),
            };
            let directory = plan.work.join(format!("{row}-{}", targets.len()));
            if directory.exists() {
                std::fs::remove_dir_all(&directory)?;
            }
            let data = directory.join("git");
            std::fs::create_dir_all(&data)?;
            prepare(&data)?;
            let (url, child) = match (kind, executable) {
                (_, Some(executable)) => start_grasp(&executable, &directory, &[])
                    .with_context(|| format!("cannot start {name}"))?,
                (Kind::HttpBackend, None) => start_bridge(&data, Duration::ZERO)?,
                (_, None) => (format!("file://{}", data.display()), None),
            };
            targets.push(Self::of(name, url, *kind, data, child));
        }
        Ok(targets)
    }

    /// This repository's service with settings of its own.
    pub fn start_ours(plan: &Plan, row: &str, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let directory = plan.work.join(row);
        let data = directory.join("git");
        std::fs::create_dir_all(&data)?;
        let executable = PathBuf::from(env!("CARGO_BIN_EXE_graspd"));
        let (url, child) = start_grasp(&executable, &directory, settings)?;
        Ok(Self::of(OURS.to_owned(), url, Kind::Graspd, data, child))
    }

    /// `git http-backend` over the repositories in `data`, each answer `delay` late.
    pub fn start_backend(data: &Path, delay: Duration) -> anyhow::Result<Self> {
        let (url, child) = start_bridge(data, delay)?;
        let name = "git http-backend".to_owned();
        // What it serves is not its own: it leaves it there.
        let own = PathBuf::new();
        Ok(Self::of(name, url, Kind::HttpBackend, own, child))
    }

    fn of(name: String, url: String, kind: Kind, data: PathBuf, child: Option<Child>) -> Self {
        Self {
            name,
            url,
            kind,
            data,
            child,
            client: None,
            owners: HashMap::new(),
        }
    }

    /// The process to be watched, if it is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Makes a repository that may be pushed to, of its own; gives its address.
    pub fn awaits_push(&mut self, repository: &Repository) -> anyhow::Result<String> {
        // One that shares no objects with others.
        let identifier = format!("it-{}", rand::random::<u64>());
        if matches!(self.kind, Kind::HttpBackend | Kind::Pipe) {
            let path = format!("{identifier}.git");
            let directory = self.data.join(&path);
            std::fs::create_dir(&directory)?;
            git(&directory, &["init", "-q", "--bare", "-b", "main"])?;
            // What a server that is open to all must check.
            git(&directory, &["config", "receive.fsckObjects", "true"])?;
            git(&directory, &["config", "http.receivepack", "true"])?;
            return Ok(format!("{}/{path}", self.url));
        }
        let keys = Keys::generate();
        let url = format!("{}/{}/{identifier}.git", self.url, npub_of(&keys));
        let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() - 3600;
        let tags = [
            vec!["d".to_owned(), identifier.clone()],
            vec!["clone".to_owned(), url.clone()],
            vec!["relays".to_owned(), self.url.replacen("http", "ws", 1)],
        ];
        let announcement = event(&keys, 30617, clock, &tags)?;
        self.publish(&announcement)?;
        self.owners.insert(
            url.clone(),
            Owner {
                keys,
                identifier,
                clock,
            },
        );
        self.awaits_update(&url, repository)?;
        Ok(url)
    }

    /// Publishes the state that the next push brings about.
    pub fn awaits_update(&mut self, url: &str, repository: &Repository) -> anyhow::Result<()> {
        let Some(owner) = self.owners.get_mut(url) else {
            return Ok(());
        };
        owner.clock += 1;
        let mut tags = vec![vec!["d".to_owned(), owner.identifier.clone()]];
        for (name, oid) in repository.refs() {
            tags.push(vec![name.to_owned(), oid.to_owned()]);
        }
        tags.push(vec!["HEAD".to_owned(), "ref: refs/heads/main".to_owned()]);
        let state = event(&owner.keys, 30618, owner.clock, &tags)?;
        self.publish(&state)
    }

    /// An issue about the repository at `url`.
    pub fn issue(&mut self, url: &str) -> anyhow::Result<Event> {
        let owner = self.owners.get_mut(url).context("nobody's repository")?;
        owner.clock += 1;
        let coordinate = format!(
            "30617:{}:{}",
            owner.keys.public_key().to_hex(),
            owner.identifier
        );
        let tags = [
            vec!["a".to_owned(), coordinate],
            vec!["subject".to_owned(), "it".to_owned()],
        ];
        event(&owner.keys, 1621, owner.clock, &tags)
    }

    /// Publishes an event and waits for its OK.
    pub fn publish(&mut self, event: &Event) -> anyhow::Result<()> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::connect(&self.url)?),
        };
        client
            .publish(event)
            .with_context(|| format!("{}: kind {}", self.name, event.kind.as_u16()))
    }

    /// Removes a repository where that needs no more than removing it.
    pub fn forget(&self, url: &str) {
        if matches!(self.kind, Kind::HttpBackend | Kind::Pipe)
            && let Some(path) = url.strip_prefix(&self.url)
        {
            let _ = std::fs::remove_dir_all(self.data.join(path.trim_start_matches('/')));
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            self.client = None;
            let asked = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
            let until = Instant::now() + Duration::from_secs(5);
            while asked && Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(directory) = self.data.parent() {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// Any GRASP server that reads `NGIT_*`.
fn start_grasp(
    executable: &Path,
    directory: &Path,
    settings: &[(&str, String)],
) -> anyhow::Result<(String, Option<Child>)> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    let log = std::fs::File::create(directory.join("log"))?;
    let mut child = Command::new(executable)
        .current_dir(directory)
        .env("NGIT_DOMAIN", &address)
        .env("NGIT_BIND_ADDRESS", &address)
        .env("NGIT_GIT_DATA_PATH", directory.join("git"))
        .env("NGIT_RELAY_DATA_PATH", directory.join("relay"))
        .env("NGIT_DATABASE_BACKEND", "lmdb")
        .env("NGIT_RELAY_EVENTS_PER_MINUTE", "1000000")
        .env("NGIT_LOG_LEVEL", "warn")
        .env("NGIT_SHUTDOWN_GRACE_SECS", "1")
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let until = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(&address).is_err() {
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
            bail!("it ended ({status}): {log}");
        }
        if Instant::now() > until {
            let _ = child.kill();
            bail!("it does not listen");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok((format!("http://{address}"), Some(child)))
}

fn start_bridge(data: &Path, delay: Duration) -> anyhow::Result<(String, Option<Child>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(bridge::ROOT, data)
        .env(bridge::DELAY, delay.as_millis().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut port = String::new();
    let output = child.stdout.take().context("no output")?;
    BufReader::new(output).read_line(&mut port)?;
    Ok((format!("http://127.0.0.1:{}", port.trim()), Some(child)))
}
