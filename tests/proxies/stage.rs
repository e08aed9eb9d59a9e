//! A service behind a proxy, and what clients do there.

use std::time::Duration;

use tokio::{process::Child, sync::OnceCell};

use crate::{
    configuration::Configuration,
    front::{Front, Way},
    support::{
        Client, Event, Keys, Out, Repo, Service, events, git, processes,
        service::free_port,
        web::{self, Answer},
    },
};

/// How long one transfer may take, of the default size.
const LONG: Duration = Duration::from_secs(60);

/// A million bytes.
pub const MB: usize = 1_000_000;

/// `GRASPD_PROXIES_SCALE` multiplies what is pushed and cloned (1 by default): 10 for pushes of 200 MB, 50
/// for clones of 1 GB.
pub fn scale() -> usize {
    let scale = std::env::var("GRASPD_PROXIES_SCALE").ok();
    scale.map_or(1, |scale| scale.parse().expect("a number"))
}

/// A service with a proxy in front.
pub struct Stage {
    pub service: Service,
    pub front: Front,
    _roles: Vec<Child>,
}

/// A repository that the service was told of.
pub struct Hosted {
    pub owner: Keys,
    pub identifier: String,
    pub state: Event,
}

impl Hosted {
    pub fn path(&self) -> String {
        Service::repository_path(&self.owner, &self.identifier)
    }

    /// Whether the service serves the state, which it does when all of it is here.
    pub async fn is_served(&self, service: &Service) -> bool {
        Client::connect(service).await.serves(&self.state).await
    }
}

/// Shared by all tests, which only read them.
static SMALL: OnceCell<Repo> = OnceCell::const_new();
static LARGE: OnceCell<Repo> = OnceCell::const_new();

/// A repository of a million bytes.
pub async fn small() -> &'static Repo {
    SMALL.get_or_init(|| made(MB)).await
}

/// A repository of twenty million bytes, or what the scale makes of them.
pub async fn large() -> &'static Repo {
    LARGE.get_or_init(|| made(20 * MB * scale())).await
}

/// Removes what all tests share.
pub fn clean_up() {
    for repo in [&SMALL, &LARGE].into_iter().filter_map(OnceCell::get) {
        let _ = std::fs::remove_dir_all(repo.path());
    }
}

/// A new repository of so many bytes that no pack makes fewer.
pub async fn made(bytes: usize) -> Repo {
    let repo = Repo::empty().await;
    // Nothing makes it smaller, so nothing is tried.
    for (setting, value) in [
        ("core.compression", "0"),
        ("pack.compression", "0"),
        ("core.bigFileThreshold", "1k"),
    ] {
        repo.git(&["config", setting, value]).await.good();
    }
    let piece = 100 * MB;
    for number in 0..bytes.div_ceil(piece) {
        repo.commit_bytes(piece.min(bytes - number * piece)).await;
    }
    repo
}

/// Runs git, for as long as it takes.
pub async fn run(repo: &Repo, arguments: &[&str]) -> Out {
    let mut command = git::command(&repo.path());
    let longest = LONG * u32::try_from(scale()).unwrap();
    let running = tokio::time::timeout(longest, command.args(arguments).output());
    let output = running.await.unwrap_or_else(|_| panic!("{arguments:?}"));
    let output = output.unwrap();
    Out {
        ok: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Stage {
    pub async fn start(configuration: Configuration) -> Self {
        Self::start_with(configuration, &[]).await
    }

    pub async fn start_with(configuration: Configuration, settings: &[(&str, &str)]) -> Self {
        let mut service = Service::prepare(settings).await;
        service.set("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8");
        let mut roles = Vec::new();
        let gitd = free_port();
        match configuration.leads_to_gitd() {
            false => service.run().await,
            true => {
                for (name, port) in [
                    ("NGIT_RELAY_GRPC_ADDRESS", free_port()),
                    ("NGIT_GITD_GRPC_ADDRESS", free_port()),
                    ("NGIT_GITD_HTTP_ADDRESS", gitd),
                ] {
                    service.set(name, &format!("http://127.0.0.1:{port}"));
                }
                for role in ["RELAY", "GITD", "WORKER"] {
                    let token = format!("the-token-of-{role}-in-a-test");
                    service.set(&format!("NGIT_INTERNAL_TOKEN_{role}"), &token);
                }
                roles.push(service.role("gitd", &[]));
                roles.push(service.role("syncworker", &[]));
                service.start_as(&["relay"]);
                service.ready().await;
            }
        }
        let front = Front::start(configuration, service.port, gitd).await;
        Self {
            service,
            front,
            _roles: roles,
        }
    }

    /// Announces a repository that is to get what `repo` has on `main`.
    pub async fn announce(&self, identifier: &str, repo: &Repo) -> Hosted {
        let owner = Keys::generate();
        let announcement = events::announcement(&self.service, &owner, identifier).sign(&owner);
        let mut client = Client::connect(&self.service).await;
        client.publish(&announcement).await.waits();
        let state = events::state_of(identifier, repo).await.sign(&owner);
        Hosted {
            owner,
            identifier: identifier.to_owned(),
            state,
        }
    }

    /// The same, and publishes the state that allows the push.
    pub async fn expect(&self, identifier: &str, repo: &Repo) -> Hosted {
        let hosted = self.announce(identifier, repo).await;
        let mut client = Client::connect(&self.service).await;
        client.publish(&hosted.state).await.waits();
        hosted
    }

    /// The same, and pushes past the proxy.
    pub async fn hold(&self, identifier: &str, repo: &Repo) -> Hosted {
        let hosted = self.expect(identifier, repo).await;
        let url = self.service.url(&hosted.owner, identifier);
        run(repo, &["push", &url, "main"]).await.good();
        assert!(hosted.is_served(&self.service).await);
        hosted
    }

    /// Pushes through the proxy.
    pub async fn push(&self, repo: &Repo, hosted: &Hosted, way: Way, more: &[&str]) -> Out {
        let settings = self.front.settings(way);
        let url = self.front.url(way, &hosted.path());
        let mut arguments: Vec<&str> = settings.iter().map(String::as_str).collect();
        arguments.extend(more);
        arguments.extend(["push", &url, "main"]);
        run(repo, &arguments).await
    }

    /// Clones through the proxy.
    pub async fn clone(&self, hosted: &Hosted, way: Way) -> (Repo, Out) {
        let clone = Repo::empty().await;
        let settings = self.front.settings(way);
        let url = self.front.url(way, &hosted.path());
        let mut arguments: Vec<&str> = settings.iter().map(String::as_str).collect();
        arguments.extend(["pull", "-q", &url, "main"]);
        let out = run(&clone, &arguments).await;
        (clone, out)
    }

    /// Asks the proxy something.
    pub async fn ask(&self, request: http::Request<web::Body>) -> Answer {
        web::fetch(self.front.simplest(), request).await.unwrap()
    }

    /// Whether a pack is on its way in.
    pub fn is_taking_in(&self) -> bool {
        let files = processes::files(&self.service.git_data());
        files.iter().any(|path| {
            path.components()
                .any(|part| part.as_os_str().to_string_lossy().contains("quarantine"))
        })
    }

    /// A git of the service that is at this.
    pub fn git(&self, command: &str) -> Option<u32> {
        let data = self.service.git_data();
        let all = processes::descendants(std::process::id());
        all.into_iter().find(|pid| {
            let directory = std::fs::read_link(format!("/proc/{pid}/cwd"));
            directory.is_ok_and(|directory| directory.starts_with(&data))
                && processes::arguments(*pid)
                    .iter()
                    .any(|argument| argument == command)
        })
    }
}
