//! One deployment by `docker-compose.yml`, under a name of its own, and what it has accepted.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio::{process::Command, sync::RwLock};

use crate::support::{
    Client, Event, Project, Service, events, git,
    service::free_port,
    web::{self, Answer, Failure},
};

/// How long a container may take to become healthy, a compose command to end, or what another
/// server has to be fetched.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What is set besides `docker-compose.yml`: room for tests that send much in little time and fetch
/// from a server on a private network.
const SETTINGS: [(&str, &str); 4] = [
    ("NGIT_RELAY_EVENTS_PER_MINUTE", "100000"),
    ("NGIT_SYNC_ALLOW_NON_GLOBAL_TARGETS", "true"),
    ("NGIT_SYNC_DEFAULT_DELAY_SECS", "0"),
    ("NGIT_SYNC_MAX_PER_MINUTE_PER_DOMAIN", "100000"),
];

/// What everything that this process makes is called.
fn project() -> String {
    format!("graspd-test-{}", std::process::id())
}

/// What a container is labelled with that is not compose's.
pub fn own_label() -> String {
    format!("graspd.test={}", project())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// How compose is called here.
#[derive(Debug, Clone, Copy)]
pub struct Engine {
    compose: &'static [&'static str],
}

impl Engine {
    /// The engine of this machine, or why there is none.
    pub async fn find() -> Result<Self, String> {
        let answers = async |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).stdin(Stdio::null());
            let output = command.output().await;
            output.is_ok_and(|output| output.status.success())
        };
        if !answers(&["docker", "info"]).await {
            return Err("`docker info` finds no engine".to_owned());
        }
        if !answers(&["tini", "--version"]).await {
            return Err("`tini`, which the base image is made with, is not here".to_owned());
        }
        for compose in [&["docker", "compose"][..], &["docker-compose"]] {
            if answers(&[compose, &["version"]].concat()).await {
                return Ok(Self { compose });
            }
        }
        Err("neither `docker compose` nor `docker-compose` is here".to_owned())
    }
}

/// The running deployment.
pub struct Deployment {
    engine: Engine,
    directory: TempDir,
    /// The image that is deployed now.
    image: Mutex<String>,
    /// Credentials and key are files of the operator's.
    own_secrets: AtomicBool,
    pub port: u16,
    accepted: Mutex<Vec<Accepted>>,
}

/// What the service has said yes to, and must never lose.
pub struct Accepted {
    project: Project,
    events: Vec<Event>,
}

/// Closed while everything is removed, so that nothing is made meanwhile.
static OPEN: RwLock<()> = RwLock::const_new(());

async fn run(command: Command) -> Output {
    let _open = OPEN.read().await;
    run_now(command).await
}

async fn run_now(mut command: Command) -> Output {
    let what = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    output
        .unwrap_or_else(|_| panic!("takes too long: {what}"))
        .unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// What a docker command prints; fails the test if it fails.
pub async fn docker(arguments: &[&str]) -> String {
    let (ok, text) = try_docker(arguments).await;
    assert!(ok, "docker {arguments:?}: {text}");
    text
}

/// Whether a docker command succeeds, and what it prints.
pub async fn try_docker(arguments: &[&str]) -> (bool, String) {
    said(run(docker_command(arguments)).await)
}

fn docker_command(arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(arguments).env("DOCKER_BUILDKIT", "0");
    command
}

fn said(output: Output) -> (bool, String) {
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    (output.status.success(), text)
}

/// Removes whatever this process has made, once the commands that run have ended. No other is begun
/// from then on.
pub async fn remove_everything() {
    std::mem::forget(OPEN.write().await);
    let project = project();
    let label = format!("label=com.docker.compose.project={project}");
    let own = format!("label={}", own_label());
    let image = format!("reference={project}:*");
    for (list, remove) in [
        (&["ps", "-aq", "--filter", &own][..], &["rm", "-fv"][..]),
        (&["ps", "-aq", "--filter", &label], &["rm", "-fv"]),
        (
            &["network", "ls", "-q", "--filter", &label],
            &["network", "rm"],
        ),
        (
            &["volume", "ls", "-q", "--filter", &label],
            &["volume", "rm", "-f"],
        ),
        (&["images", "-q", "--filter", &image], &["rmi", "-f"]),
    ] {
        // What cannot be removed never keeps the rest from going.
        let (_, found) = said(run_now(docker_command(list)).await);
        let mut found: Vec<&str> = found.lines().collect();
        found.dedup();
        if !found.is_empty() {
            run_now(docker_command(&[remove, &found].concat())).await;
        }
    }
}

impl Deployment {
    /// Builds the image, from a base made of this machine's files and the executable under test,
    /// and brings everything up.
    pub async fn start(engine: Engine) -> Self {
        let it = Self {
            engine,
            directory: TempDir::new().unwrap(),
            image: Mutex::new(String::new()),
            own_secrets: AtomicBool::new(false),
            port: free_port(),
            accepted: Mutex::default(),
        };
        std::fs::write(it.path("env"), "").unwrap();
        std::fs::create_dir(it.path("context")).unwrap();
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(it.path("context/graspd"));
        strip.arg(env!("CARGO_BIN_EXE_graspd"));
        let stripped = run(strip).await;
        assert!(stripped.status.success(), "{stripped:?}");
        let mut base = Command::new("sh");
        base.arg("-c")
            .arg("set -e; \"$0\" > \"$1\"; docker import \"$1\" \"$2\"");
        base.arg(root().join("tests/containers/base.sh"));
        base.arg(it.path("base.tar")).arg(Self::tag("base"));
        let made = run(base).await;
        assert!(made.status.success(), "{made:?}");
        it.build("first").await;
        it.compose_up(&[]).await;
        it.healthy("gitd", 1).await;
        it.healthy("relay", 1).await;
        it
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The size of the executable in the image.
    pub fn executable_bytes(&self) -> u64 {
        let executable = self.path("context/graspd").metadata();
        executable.unwrap().len()
    }

    /// The name of an image of this process.
    pub fn tag(name: &str) -> String {
        format!("{}:{name}", project())
    }

    /// Builds an image of this name, which differs from others in its revision, and takes it as the
    /// one to deploy.
    pub async fn build(&self, name: &str) {
        let (tag, base) = (Self::tag(name), Self::tag("base"));
        let dockerfile = root().join("Dockerfile");
        let context = self.path("context");
        docker(&[
            "build",
            "--target=prebuilt",
            "--build-arg",
            &format!("BASE_IMAGE={base}"),
            "--build-arg",
            &format!("REVISION={name}"),
            "-t",
            &tag,
            "-f",
            dockerfile.to_str().unwrap(),
            context.to_str().unwrap(),
        ])
        .await;
        *self.image.lock().unwrap() = tag;
    }

    /// The image that is deployed now.
    pub fn image(&self) -> String {
        self.image.lock().unwrap().clone()
    }

    /// The name of something of this deployment.
    pub fn name(of: &str) -> String {
        format!("{}_{of}", project())
    }

    /// What a compose command prints; fails the test if it fails.
    pub async fn compose(&self, arguments: &[&str]) -> String {
        let words = self.engine.compose;
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        for (name, _) in std::env::vars_os() {
            let ours = ["NGIT_", "GRASPD_", "COMPOSE_"];
            if ours
                .iter()
                .any(|ours| name.to_string_lossy().starts_with(ours))
            {
                command.env_remove(name);
            }
        }
        command
            .env("GRASPD_IMAGE", self.image())
            .env("NGIT_DOMAIN", self.domain())
            .env("NGIT_BIND_ADDRESS", format!("127.0.0.1:{}", self.port))
            .envs(SETTINGS)
            .arg("-p")
            .arg(project())
            .arg("--env-file")
            .arg(self.path("env"));
        let mut files = vec!["docker-compose.yml", "tests/containers/quick.yml"];
        if self.own_secrets.load(Ordering::Relaxed) {
            files.push("docs/deploy/compose/secrets.yml");
        }
        command.env("GRASPD_SECRETS", self.path("secrets"));
        for file in files {
            command.arg("-f").arg(root().join(file));
        }
        let output = run({
            command.args(arguments);
            command
        })
        .await;
        let (out, err) = (output.stdout, output.stderr);
        let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
        assert!(output.status.success(), "compose {arguments:?}: {out}{err}");
        out.trim().to_owned()
    }

    pub async fn compose_up(&self, arguments: &[&str]) {
        let up = ["up", "-d", "--no-build"];
        self.compose(&[&up[..], arguments].concat()).await;
    }

    /// From now on credentials and key are these, or those that the deployment made by itself.
    pub async fn with_secrets(&self, secrets: Option<&[(&str, String)]>) {
        self.own_secrets.store(secrets.is_some(), Ordering::Relaxed);
        let directory = self.path("secrets");
        for (name, secret) in secrets.unwrap_or_default() {
            std::fs::create_dir_all(&directory).unwrap();
            // Whoever asks for them in the container must be able to read them there.
            std::fs::write(directory.join(name), secret).unwrap();
        }
        self.compose_up(&[]).await;
    }

    /// The containers of a service that run.
    pub async fn containers(&self, service: &str) -> Vec<String> {
        let service = format!("label=com.docker.compose.service={service}");
        let project = format!("label=com.docker.compose.project={}", project());
        let running = ["ps", "-q", "--filter", &service, "--filter", &project];
        let found = docker(&running).await;
        found.lines().map(str::to_owned).collect()
    }

    /// The one container of a service.
    pub async fn container(&self, service: &str) -> String {
        let mut found = self.containers(service).await;
        assert_eq!(found.len(), 1, "{service}: {found:?}");
        found.remove(0)
    }

    /// Waits until so many containers of a service are healthy, and no others run.
    pub async fn healthy(&self, service: &str, number: usize) {
        let waiting = async {
            loop {
                let found = self.containers(service).await;
                let mut well = 0;
                for container in &found {
                    well += usize::from(health(container).await == "healthy");
                }
                if well == number && found.len() == number {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "never healthy: {number} of {service}");
    }

    /// Kills graspd in a container, as a crash would, and gives when the container had started.
    pub async fn crash(container: &str) -> String {
        let started = started(container).await;
        // Of what tini runs: its own process cannot be killed from inside.
        let kill = "kill -9 $(cat /proc/1/task/1/children)";
        docker(&["exec", container, "sh", "-c", kill]).await;
        started
    }

    /// Waits until a container runs again that had started at `before`.
    pub async fn started_again(&self, container: &str, before: &str) {
        let waiting = async {
            while started(container).await == before {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{container} does not come back");
    }

    /// Takes a service off the network where the three reach each other.
    pub async fn cut_off(&self, service: &str) {
        let container = self.container(service).await;
        let network = Self::name("inside");
        docker(&["network", "disconnect", &network, &container]).await;
    }

    /// Puts it back.
    pub async fn heal(&self, service: &str) {
        let container = self.container(service).await;
        let network = Self::name("inside");
        docker(&[
            "network", "connect", "--alias", service, &network, &container,
        ])
        .await;
    }

    pub fn domain(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub async fn get(&self, path: &str) -> Result<Answer, Failure> {
        web::fetch(self.port, web::request("GET", self.port, path, &[])).await
    }

    /// A websocket, as soon as there is one.
    pub async fn connect(&self) -> Client {
        let waiting = async {
            loop {
                if let Some(client) = Client::try_connect(self.port).await {
                    return client;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.expect("the relay takes no connection")
    }

    /// Where a project is pushed to and cloned from.
    pub fn url(&self, project: &Project) -> String {
        url(self.port, project)
    }

    /// A new project that is announced here; it has yet to be pushed.
    pub async fn announced(&self, client: &mut Client, identifier: &str) -> (Project, Event) {
        let project = Project::new(identifier).await;
        let announcement = announcement(&project, self.port, &[], &[]).sign(&project.owner);
        client.publish(&announcement).await.waits();
        (project, announcement)
    }

    /// A new project that is announced, signed for, pushed and therefore served.
    pub async fn push_project(&self, identifier: &str) {
        let mut client = self.connect().await;
        let (project, announcement) = self.announced(&mut client, identifier).await;
        let state = project.state().await.sign(&project.owner);
        client.publish(&state).await.waits();
        project
            .repo
            .push(&self.url(&project), &["main"])
            .await
            .good();
        for event in [&announcement, &state] {
            assert!(client.serves(event).await, "pushed, but not served");
        }
        self.keep(project, vec![announcement, state]);
    }

    /// Remembers what must never be lost.
    pub fn keep(&self, project: Project, events: Vec<Event>) {
        let mut accepted = self.accepted.lock().unwrap();
        accepted.push(Accepted { project, events });
    }

    /// Fails the test unless everything that was ever accepted is served: every event, every ref,
    /// and the objects of the oldest and the newest project.
    pub async fn lost_nothing(&self) {
        let accepted = std::mem::take(&mut *self.accepted.lock().unwrap());
        let mut client = self.connect().await;
        for (at, Accepted { project, events }) in accepted.iter().enumerate() {
            let name = &project.identifier;
            for event in events {
                assert!(client.serves(event).await, "{name}: lost {}", event.id);
            }
            let url = self.url(project);
            let refs = git::remote_refs(&url).await;
            assert_eq!(refs, project.repo.refs().await, "refs of {name}");
            if at == 0 || at + 1 == accepted.len() {
                let (clone, out) = crate::support::Repo::clone(&url, &[]).await;
                out.good();
                clone.git(&["fsck", "--full", "--strict"]).await.good();
                assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
            }
        }
        *self.accepted.lock().unwrap() = accepted;
    }

    /// Says what the containers have said last.
    pub async fn tell(&self) {
        let log = self.compose(&["logs", "--no-color", "--tail=40"]).await;
        eprintln!("{}\n{log}", self.compose(&["ps"]).await);
    }
}

/// The address of a project at a server on a port of this machine.
pub fn url(port: u16, project: &Project) -> String {
    let path = Service::repository_path(&project.owner, &project.identifier);
    format!("http://localhost:{port}{path}")
}

/// An announcement that lists the server at a port of this machine, and others too: for cloning, and
/// as relays.
pub fn announcement(
    project: &Project,
    port: u16,
    others: &[&str],
    relays: &[&str],
) -> events::Draft {
    let (url, relay) = (url(port, project), format!("ws://localhost:{port}"));
    let clone = ["clone", &url].into_iter().chain(others.iter().copied());
    let relays = ["relays", &relay].into_iter().chain(relays.iter().copied());
    events::elsewhere(&project.identifier)
        .without("clone")
        .without("relays")
        .tag(clone)
        .tag(relays)
}

async fn started(container: &str) -> String {
    docker(&["inspect", "-f", "{{.State.StartedAt}}", container]).await
}

/// What the engine thinks of a container's health.
pub async fn health(container: &str) -> String {
    docker(&["inspect", "-f", "{{.State.Health.Status}}", container]).await
}
