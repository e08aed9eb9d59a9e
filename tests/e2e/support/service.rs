//! The service: the started binary with directories of its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use http::Request;
use nostr::ToBech32;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{
    Keys, PATIENCE, processes, until,
    web::{self, Answer, Body},
};

/// What must not stand in a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// How many services run at once.
static ROOM: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(4)));

/// A port below those the system gives to outgoing connections, so that none takes it in between.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let spread = u16::try_from(std::process::id() % 18_000).unwrap();
        AtomicU16::new(12_000 + spread)
    });
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + port % 20_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running service; killed when dropped, its log printed if the test failed.
pub struct Service {
    pub port: u16,
    directory: TempDir,
    settings: Vec<(String, String)>,
    /// Settings are in a file, and nothing else is said at the start.
    from_file: bool,
    child: Option<Child>,
    _room: OwnedSemaphorePermit,
}

impl Service {
    /// A service on LMDB, ready to be used.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A service with these settings besides the usual ones.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        let mut service = Self::prepare(settings).await;
        service.run().await;
        service
    }

    /// A service that does not run yet.
    pub async fn prepare(settings: &[(&str, &str)]) -> Self {
        let room = ROOM.clone().acquire_owned().await.unwrap();
        Self::in_room(room, settings)
    }

    /// Several that do not run yet. Room for all is taken at once: two tests that each wait for
    /// what the other has would wait for ever.
    pub async fn prepare_several<const N: usize>(settings: &[(&str, &str)]) -> [Self; N] {
        let all = u32::try_from(N).unwrap();
        let mut room = ROOM.clone().acquire_many_owned(all).await.unwrap();
        std::array::from_fn(|_| Self::in_room(room.split(1).unwrap(), settings))
    }

    fn in_room(room: OwnedSemaphorePermit, settings: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new().prefix("e2e").tempdir().unwrap();
        let own = settings
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Self {
            port: free_port(),
            directory,
            settings: own.collect(),
            from_file: false,
            child: None,
            _room: room,
        }
    }

    /// A setting more, or another value, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(other, _)| other != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// From the next start on it is told by the file `.env` in its directory alone, and started without
    /// arguments.
    pub fn told_by(&mut self, file: &str) {
        fs::write(self.path(".env"), file).unwrap();
        self.from_file = true;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where repositories lie.
    pub fn git_data(&self) -> PathBuf {
        self.path("git")
    }

    /// The public name.
    pub fn domain(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// `graspd` with the service's settings, in its directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graspd"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.directory.path())
            .env("TMPDIR", self.directory.path())
            .stdin(Stdio::null());
        if self.from_file {
            return command;
        }
        command
            .env("NGIT_BIND_ADDRESS", format!("127.0.0.1:{}", self.port))
            .env("NGIT_DOMAIN", self.domain())
            .env("NGIT_GIT_DATA_PATH", self.git_data())
            .env("NGIT_RELAY_DATA_PATH", self.path("relay"))
            .env("NGIT_DATABASE_BACKEND", "lmdb")
            .env("NGIT_RELAY_EVENTS_PER_MINUTE", "1000000")
            .env("NGIT_LOG_LEVEL", "info,grasp_relay=debug,grasp_gitd=debug")
            .env("NGIT_TEST", "1");
        for (name, value) in &self.settings {
            command.env(name, value);
        }
        command
    }

    /// Starts the service on whatever is in its directories and waits until it is ready.
    pub async fn run(&mut self) {
        let arguments: &[&str] = if self.from_file { &[] } else { &["serve"] };
        self.start_as(arguments);
        self.ready().await;
    }

    /// Starts what `arguments` say, which is to answer at the public address some time.
    pub fn start_as(&mut self, arguments: &[&str]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let mut command = self.command(arguments);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// A process of the service, in one role, told these settings besides; killed when dropped.
    pub fn role(&self, name: &str, settings: &[(&str, String)]) -> tokio::process::Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let mut command = self.command(&[name]);
        for (name, value) in settings {
            command.env(name, value);
        }
        command.stdout(log.try_clone().unwrap()).stderr(log);
        tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// A service that was started with [`Service::command`] in another way.
    pub fn adopt(&mut self, child: Child) {
        self.child = Some(child);
    }

    /// Waits until the service says that it is ready.
    pub async fn ready(&mut self) {
        let waiting = async {
            loop {
                if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                    panic!("the service ended by itself: {status}");
                }
                if self
                    .get("/readyz")
                    .await
                    .is_ok_and(|answer| answer.status == 200)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(
            tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
            "the service is not ready"
        );
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The process that keeps the repositories, if it runs.
    pub fn gitd(&self) -> Option<u32> {
        processes::descendants(self.pid()).into_iter().find(|pid| {
            processes::arguments(*pid)
                .iter()
                .skip(1)
                .any(|argument| argument == "gitd")
        })
    }

    /// The processes of its workers.
    pub fn workers(&self) -> Vec<u32> {
        let mut children = processes::descendants(self.pid());
        children.retain(|pid| {
            let arguments = processes::arguments(*pid);
            arguments
                .iter()
                .skip(1)
                .any(|argument| argument == "syncworker")
        });
        children
    }

    /// What `graspd status --json` prints.
    pub async fn status(&self) -> serde_json::Value {
        let mut command = self.command(&["status", "--json", "--most", "1000"]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Kills the process that keeps the repositories and waits until another one serves.
    pub async fn kill_gitd(&mut self) {
        let old = self.gitd().expect("gitd runs");
        processes::send(old, Signal::KILL);
        let service = &*self;
        until("gitd is started again and serves", || async move {
            service.gitd().is_some_and(|new| new != old) && service.serves_git().await
        })
        .await;
        self.ready().await;
    }

    /// Whether somebody answers git: that there is no such repository.
    pub async fn serves_git(&self) -> bool {
        let path = Self::repository_path(&Keys::generate(), "nowhere");
        let path = format!("{path}/info/refs?service=git-upload-pack");
        self.get(&path)
            .await
            .is_ok_and(|answer| answer.status == 404)
    }

    pub fn terminate(&self) {
        processes::send(self.pid(), Signal::TERM);
    }

    /// Kills the process that was started and reaps it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until the service has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let waiting = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if let Ok(status) = tokio::time::timeout(PATIENCE, waiting).await {
            return status;
        }
        self.child = Some(child);
        panic!("the service does not end");
    }

    /// SIGTERM, the end, and a new start on the same data.
    pub async fn restart(&mut self) {
        self.terminate();
        self.ended().await;
        self.run().await;
    }

    /// SIGKILL and a new start on the same data.
    pub async fn crash(&mut self) {
        let children = processes::descendants(self.pid());
        self.kill();
        until("no child outlives the service", || async {
            !children.iter().any(|pid| processes::alive(*pid))
        })
        .await;
        self.run().await;
    }

    /// Everything the service has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The public path of a repository.
    pub fn repository_path(owner: &Keys, identifier: &str) -> String {
        let npub = owner.public_key().to_bech32().unwrap();
        format!("/{npub}/{}.git", utf8_percent_encode(identifier, PLAIN))
    }

    /// The address to announce.
    pub fn public_url(&self, owner: &Keys, identifier: &str) -> String {
        format!(
            "http://{}{}",
            self.domain(),
            Self::repository_path(owner, identifier)
        )
    }

    /// The address to push to and clone from.
    pub fn url(&self, owner: &Keys, identifier: &str) -> String {
        let path = Self::repository_path(owner, identifier);
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Where a repository lies on disk.
    pub fn repository_directory(&self, owner: &Keys, identifier: &str) -> PathBuf {
        let npub = owner.public_key().to_bech32().unwrap();
        self.git_data().join(npub).join(format!("{identifier}.git"))
    }

    pub async fn fetch(&self, request: Request<Body>) -> Result<Answer, web::Failure> {
        web::fetch(self.port, request).await
    }

    pub async fn get(&self, path: &str) -> Result<Answer, web::Failure> {
        self.fetch(web::request("GET", self.port, path, &[])).await
    }

    /// What a reader is answered: 200 for a repository that is here, 404 for one that is not.
    pub async fn repository_status(&self, owner: &Keys, identifier: &str) -> u16 {
        let path = Self::repository_path(owner, identifier);
        let path = format!("{path}/info/refs?service=git-upload-pack");
        self.get(&path).await.unwrap().status
    }

    /// Whether the public port takes connections.
    pub async fn listens(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
    }

    /// The service's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!(
                "--- log of the service ---\n{}--- end of the log ---",
                self.log()
            );
        }
    }
}
