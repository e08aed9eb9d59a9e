//! What is done to a deployment, one function a test.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, PATIENCE, announcement, docker, health, own_label, try_docker, url},
    support::{
        Client, Event, Keys, Project, Repo, Service, events, git,
        service::free_port,
        until,
        web::{self, Upload},
    },
};

const SERVICES: [&str; 3] = ["gitd", "relay", "syncworker"];

/// The most the image may add to its base and the executable, in bytes.
const SMALL: u64 = 1024 * 1024;

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

pub async fn image(it: &Deployment) {
    let size = async |image: String| -> u64 {
        let size = docker(&["image", "inspect", "-f", "{{.Size}}", &image]).await;
        size.parse().unwrap()
    };
    let executable = it.executable_bytes();
    let base = size(Deployment::tag("base")).await;
    let whole = size(it.image()).await;
    assert!(whole <= base + executable + SMALL, "{whole} bytes");

    let config = docker(&["image", "inspect", "-f", "{{json .Config}}", &it.image()]).await;
    let config = parsed(&config);
    assert_eq!(config["User"], "10001:10001");
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert_eq!(config["Healthcheck"]["Test"][1], "graspd");
    let labels = &config["Labels"];
    assert_eq!(
        labels["org.opencontainers.image.version"],
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(labels["org.opencontainers.image.licenses"], "MIT");
    let environment = config["Env"].to_string();
    assert!(!environment.contains("TOKEN") && !environment.contains("NSEC"));

    for role in ["relay", "gitd", "syncworker"] {
        let label = own_label();
        let run = ["run", "--rm", "--network=none", "--label", &label];
        let image = it.image();
        let words = [&run[..], &[&image, role, "--help"]].concat();
        assert!(docker(&words).await.contains(role));
    }
}

pub async fn main_job(it: &Deployment) {
    let mut demo = tokio::process::Command::new(env!("CARGO_BIN_EXE_graspd"));
    demo.args(["demo", "--server", &format!("http://{}", it.domain())]);
    let output = demo.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    it.push_project("main-job").await;
    it.healthy("syncworker", 1).await;
    let ready = it.get("/readyz").await.unwrap();
    assert_eq!(ready.status, 200);
}

/// Waits until an event is served.
async fn comes_to_be_served(client: &mut Client, event: &Event) {
    let waiting = async {
        while !client.serves(event).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "never served: {}", event.id);
}

/// Whether a line of shell succeeds in a container.
async fn succeeds(container: &str, line: &str) -> bool {
    try_docker(&["exec", container, "sh", "-c", line]).await.0
}

/// Whether a container is on a network that leads out of the machine.
async fn leads_out(container: &Value) -> bool {
    let networks = container["NetworkSettings"]["Networks"].as_object();
    for name in networks.unwrap().keys() {
        let inside = docker(&["network", "inspect", "-f", "{{.Internal}}", name]).await;
        if inside != "true" {
            return true;
        }
    }
    false
}

pub async fn walls(it: &Deployment) {
    for service in SERVICES {
        let container = it.container(service).await;
        let all = parsed(&docker(&["inspect", "-f", "{{json .}}", &container]).await);
        let host = &all["HostConfig"];
        assert_eq!(host["CapDrop"][0], "ALL", "{service}");
        assert_eq!(host["ReadonlyRootfs"], true, "{service}");
        assert_eq!(
            host["SecurityOpt"][0], "no-new-privileges:true",
            "{service}"
        );
        assert!(host["Memory"].as_u64() > Some(0), "{service}");
        assert!(host["PidsLimit"].as_u64() > Some(0), "{service}");
        let ports = host["PortBindings"].as_object().unwrap();
        assert_eq!(ports.len(), usize::from(service == "relay"), "{service}");

        assert_eq!(docker(&["exec", &container, "id", "-u"]).await, "10001");
        assert!(succeeds(&container, ": > /tmp/x && rm /tmp/x").await);
        assert!(!succeeds(&container, ": > /var/lib/graspd/x").await);
        assert_eq!(leads_out(&all).await, service != "gitd", "{service}");

        let reads =
            async |path: &str| succeeds(&container, &format!("cat {path} > /dev/null")).await;
        let data = "/var/lib/graspd";
        let keeps_data = reads(&format!("{data}/relay/.relay-owner.nsec")).await;
        assert_eq!(keeps_data, service == "relay", "{service} reads the key");
        let packs = format!("ls -d {data}/git/npub1*");
        assert_eq!(succeeds(&container, &packs).await, service == "gitd");
        for role in ["relay", "gitd", "worker"] {
            let knows = reads(&format!("{data}/tokens/{role}")).await;
            assert_eq!(knows, service != "syncworker", "{service}: {role}'s token");
        }
        let knows = reads(&format!("{data}/worker-token/worker")).await;
        assert_eq!(
            knows,
            service == "syncworker",
            "{service}: the worker's token"
        );
    }
}

/// Another server, in one container, that only workers and the test reach.
struct Elsewhere {
    name: String,
    port: u16,
}

impl Elsewhere {
    async fn start(it: &Deployment) -> Self {
        let (name, port) = (Deployment::name("elsewhere"), free_port());
        let (label, network) = (own_label(), Deployment::name("outside"));
        let publish = format!("127.0.0.1:{port}:7334");
        let domain = format!("NGIT_DOMAIN=localhost:{port}");
        // To those who look for it, it is many: each relay has a connection of its own, and each git
        // server a budget.
        let git_servers = (0..GIT_SERVERS).map(|number| format!("--network-alias=git-{number}"));
        let relays = (0..RELAYS).map(|number| format!("--network-alias=relay-{number}"));
        let names: Vec<String> = git_servers.chain(relays).collect();
        let run = [
            "run",
            "-d",
            "--name",
            &name,
            "--label",
            &label,
            "--network",
            &network,
            "-p",
            &publish,
            "-e",
            &domain,
            "-e",
            "NGIT_WORKERS=0",
            "-e",
            "NGIT_RELAY_EVENTS_PER_MINUTE=100000",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "-v",
            "/var/lib/graspd/git",
            "-v",
            "/var/lib/graspd/relay",
            "--cap-drop",
            "ALL",
            "--health-interval",
            "1s",
        ];
        let (names, image) = (names.iter().map(String::as_str), it.image());
        let words: Vec<&str> = run.into_iter().chain(names).chain([&*image]).collect();
        docker(&words).await;
        until("the other server is healthy", async || {
            health(&name).await == "healthy"
        })
        .await;
        Self { name, port }
    }

    /// A project that is served there.
    async fn project(&self, client: &mut Client, identifier: &str) -> Project {
        let project = Project::new(identifier).await;
        let announcement = announcement(&project, self.port, &[], &[]).sign(&project.owner);
        client.publish(&announcement).await.waits();
        let state = project.state().await.sign(&project.owner);
        client.publish(&state).await.waits();
        let url = url(self.port, &project);
        project.repo.push(&url, &["main"]).await.good();
        project
    }
}

/// How many other git servers and relays there seem to be.
const GIT_SERVERS: usize = 20;
const RELAYS: usize = 40;

/// How many projects lie elsewhere: some, or as many as are asked for.
fn projects_elsewhere() -> usize {
    std::env::var("GRASPD_PROJECTS").map_or(48, |number| number.parse().expect("a number"))
}

pub async fn workers(it: &Deployment) {
    let elsewhere = Elsewhere::start(it).await;
    let mut there = Client::try_connect(elsewhere.port).await.unwrap();
    let (mut projects, mut issues) = (Vec::new(), Vec::new());
    for number in 0..projects_elsewhere() {
        let name = format!("elsewhere-{number}");
        let project = elsewhere.project(&mut there, &name).await;
        // Only the relay that the announcement names has it.
        let issue =
            events::issue(&events::coordinate(&project.owner, &name)).sign(&Keys::generate());
        there.publish(&issue).await.served();
        projects.push(project);
        issues.push(issue);
    }

    it.healthy("syncworker", 1).await;
    let mut here = it.connect().await;
    let mut events = Vec::new();
    for (number, project) in projects.iter().enumerate() {
        let path = url(0, project);
        let git = path.replace("localhost:0", &format!("git-{}:7334", number % GIT_SERVERS));
        let relay = format!("ws://relay-{}:7334", number % RELAYS);
        let announcement = announcement(project, it.port, &[&git], &[&relay]).sign(&project.owner);
        here.publish(&announcement).await.waits();
        let state = project.state().await.sign(&project.owner);
        let verdict = here.publish(&state).await;
        assert!(verdict.accepted, "{verdict:?}");
        events.push(vec![announcement, state]);
        // More of them while there is work, and then fewer: nobody starts these two again.
        if events.len() == projects.len() / 4 {
            it.compose_up(&["--no-deps", "--scale", "syncworker=4", "syncworker"])
                .await;
            it.healthy("syncworker", 4).await;
        }
        if events.len() == projects.len() / 2 {
            let running = it.containers("syncworker").await;
            docker(&["kill", &running[0], &running[1]]).await;
        }
    }
    for ((project, mut events), issue) in projects.into_iter().zip(events).zip(issues) {
        comes_to_be_served(&mut here, &events[1]).await;
        comes_to_be_served(&mut here, &issue).await;
        events.push(issue);
        it.keep(project, events);
    }
    it.healthy("syncworker", 2).await;
    docker(&["rm", "-fv", &elsewhere.name]).await;
    it.compose_up(&["--no-deps", "--scale", "syncworker=1", "syncworker"])
        .await;
    it.healthy("syncworker", 1).await;
}

pub async fn deaths(it: &Deployment) {
    it.push_project("before-the-deaths").await;
    for service in SERVICES {
        let container = it.container(service).await;
        let before = Deployment::crash(&container).await;
        it.started_again(&container, &before).await;
        it.healthy(service, 1).await;
        it.healthy("relay", 1).await;
        it.lost_nothing().await;
        it.push_project(&format!("after-{service}-died")).await;
    }
}

/// Fails the test unless a push that cannot be done now is told why.
async fn told_why(repo: &Repo, url: &str) {
    let said = repo.push(url, &["main"]).await.refused();
    assert!(
        said.contains("remote error: the repository storage"),
        "{said}"
    );
}

/// A push of `main` that has sent its commands and half of its pack, which git takes in.
async fn half_pushed(it: &Deployment, project: &Project) -> Upload {
    let path = Service::repository_path(&project.owner, &project.identifier);
    let kind = "application/x-git-receive-pack-request";
    let path = format!("{path}/git-receive-pack");
    let mut upload = Upload::start(it.port, &path, &[("Content-Type", kind)]);
    let main = project.repo.oid("main").await;
    let wanted = [(git::ZERO, main.as_str(), "refs/heads/main")];
    let capabilities = "report-status side-band-64k";
    upload.send(git::commands(&wanted, capabilities)).await;
    let pack = project.repo.pack(&["main"]).await;
    let (first, _) = pack.split_at(pack.len() / 2);
    for piece in first.chunks(8192) {
        upload.send(piece.to_vec()).await;
    }
    let gitd = it.container("gitd").await;
    until("git takes the pack in", async || {
        docker(&["top", &gitd]).await.contains("index-pack")
    })
    .await;
    upload
}

/// For how long a cut lasts at least: as long as its test takes, or what is asked for.
async fn lasts() {
    if let Ok(seconds) = std::env::var("GRASPD_CUT_SECS") {
        let seconds = seconds.parse().expect("a number of seconds");
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

pub async fn gitd_cut_off(it: &Deployment) {
    it.push_project("before-the-cut").await;
    let mut client = it.connect().await;
    let (project, announcement) = it.announced(&mut client, "cut").await;
    let (half, half_announced) = it.announced(&mut client, "half-way").await;
    half.repo.commit_bytes(400_000).await;
    let half_state = half.state().await.sign(&half.owner);
    client.publish(&half_state).await.waits();
    let running = half_pushed(it, &half).await;
    it.cut_off("gitd").await;

    // The relay goes on, says what is wrong, and takes what can wait.
    until("the relay knows", async || {
        it.get("/readyz")
            .await
            .is_ok_and(|answer| answer.status == 503)
    })
    .await;
    let state = project.state().await.sign(&project.owner);
    client.send(json!(["EVENT", state])).await;
    told_why(&project.repo, &it.url(&project)).await;
    // It may ask for as long as an internal call may take.
    let verdict = client.verdict(&state.id.to_hex()).await;
    assert!(verdict.accepted, "{verdict:?}");
    // What was on its way does not wait for what will never come.
    until("the push that ran is ended", async || running.answered()).await;
    // What was half sent is answered with an error's status, and a page.
    let said = running.finish().await.expect("an answer").text();
    let said = said.to_lowercase();
    assert!(said.contains("the repository storage is"), "{said}");
    lasts().await;

    it.heal("gitd").await;
    it.healthy("relay", 1).await;
    for (project, announcement, state) in [
        (project, announcement, state),
        (half, half_announced, half_state),
    ] {
        project.repo.push(&it.url(&project), &["main"]).await.good();
        for event in [&announcement, &state] {
            comes_to_be_served(&mut client, event).await;
        }
        it.keep(project, vec![announcement, state]);
    }
    it.healthy("syncworker", 1).await;
}

pub async fn relay_cut_off(it: &Deployment) {
    let mut client = it.connect().await;
    let (project, announcement) = it.announced(&mut client, "alone").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    it.cut_off("relay").await;

    // gitd and the workers are well or not, but nobody needs to be restarted.
    told_why(&project.repo, &it.url(&project)).await;
    let gitd = it.container("gitd").await;
    docker(&["exec", &gitd, "graspd", "health", "gitd"]).await;
    lasts().await;

    it.heal("relay").await;
    it.healthy("relay", 1).await;
    let mut client = it.connect().await;
    project.repo.push(&it.url(&project), &["main"]).await.good();
    for event in [&announcement, &state] {
        assert!(client.serves(event).await, "pushed, but not served");
    }
    it.keep(project, vec![announcement, state]);
    it.healthy("syncworker", 1).await;
}

pub async fn rollout(it: &Deployment) {
    it.push_project("before-the-rollout").await;
    let old = it.image();
    it.build("next").await;
    for service in SERVICES {
        it.compose_up(&["--no-deps", service]).await;
        let container = it.container(service).await;
        let deployed = docker(&["inspect", "-f", "{{.Config.Image}}", &container]).await;
        assert_ne!(deployed, old, "{service}");
        it.healthy(service, 1).await;
        it.healthy("relay", 1).await;
        it.lost_nothing().await;
        it.push_project(&format!("after-the-new-{service}")).await;
    }
}

pub async fn down_and_up(it: &Deployment) {
    it.push_project("before-the-end").await;
    it.compose(&["down"]).await;
    assert!(it.containers("gitd").await.is_empty());
    it.compose_up(&[]).await;
    it.healthy("relay", 1).await;
    it.healthy("syncworker", 1).await;
    it.lost_nothing().await;
    it.push_project("after-the-end").await;
}

pub async fn secrets(it: &Deployment) {
    let key = async || {
        let accept = [("Accept", "application/nostr+json")];
        let request = web::request("GET", it.port, "/", &accept);
        let document = web::fetch(it.port, request).await.unwrap().text();
        parsed(&document)["pubkey"].as_str().unwrap().to_owned()
    };
    let made = key().await;
    let own = Keys::generate();
    let token = |role: &str| format!("{role}-0123456789abcdef\n");
    let secrets = [
        ("token-relay", token("relay")),
        ("token-gitd", token("gitd")),
        ("token-worker", token("worker")),
        ("relay-key", own.secret_key().to_secret_hex()),
    ];
    it.with_secrets(Some(&secrets)).await;
    for service in SERVICES {
        it.healthy(service, 1).await;
    }
    assert_eq!(key().await, own.public_key().to_hex());
    it.push_project("with-secrets").await;
    it.with_secrets(None).await;
    for service in SERVICES {
        it.healthy(service, 1).await;
    }
    assert_eq!(key().await, made);
}
