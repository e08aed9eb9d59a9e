//! The whole service from one start: this process is the relay, gitd and the syncworkers its
//! children.
//!
//! What the processes need of each other – sockets, credentials – is made here for the run and
//! handed over in the children's environment, which only their user can read; each is told no more
//! than it needs. The children ask the kernel to die with this process, however that dies.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Context;
use grasp_proto::{
    process::{
        self,
        data_lock::DataLock,
        settings::{BadSetting, Settings, Source},
    },
    transport::{Endpoint, Role, Token},
};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

use crate::{
    run_dir::{self, RunDir},
    supervisor::Supervisor,
};

/// How much longer than its own grace gitd may take to end.
const KILL_AFTER: Duration = Duration::from_secs(2);

/// Starts the whole service and runs it until a signal stops it.
pub async fn serve(mut settings: Settings) -> anyhow::Result<()> {
    let reserved = choose_port(&mut settings)?;
    if assume_domain(&mut settings) {
        let domain = settings.get("NGIT_DOMAIN").unwrap_or_default();
        tracing::warn!("NGIT_DOMAIN is not set: {domain} is assumed, for this machine alone");
    }
    if settings.switch("NGIT_TEST")? {
        tracing::warn!("NGIT_TEST IS SET: quick clocks and open doors, for tests only");
    }
    let run = RunDir::for_sockets(settings.get("NGIT_RUN_DIR"))
        .context("the run directory (NGIT_RUN_DIR) cannot be used")?;
    let temporary = forgettable_repositories(&mut settings)?;
    connect_processes(&mut settings, run.path());

    let relay = grasp_relay::Config::from_settings(&settings)?;
    // Read here only so that a bad value is said before anything is started.
    grasp_gitd::Config::from_settings(&settings)?;
    grasp_syncworker::Config::from_settings(&settings)?;
    let workers = number_of_workers(&settings)?;
    let grace = relay.grace;
    // Before anything is started that would touch what lies there.
    let lock = grasp_relay::lock_data(&relay).await?;
    leave_note(&run, &settings, &relay)?;

    let mut gitd = Supervisor::start("gitd", child_command(Role::Gitd, &settings))?;
    let mut children = vec![gitd.killer()];
    let directories: Vec<_> = [Some(&run), temporary.as_ref()]
        .into_iter()
        .flatten()
        .map(RunDir::remover)
        .collect();
    let workers: Vec<Supervisor> = (0..workers)
        .map(|_| Supervisor::start("syncworker", child_command(Role::Worker, &settings)))
        .collect::<anyhow::Result<_>>()?;
    for worker in &workers {
        // The service is there without it: it is started again, whatever it dies of.
        worker.has_served();
        children.push(worker.killer());
    }
    let stop = process::stop_on_signal(move || {
        for kill in children {
            kill();
        }
        for remove in &directories {
            remove();
        }
    })?;

    // The public port opens last.
    let (grpc, http) = (relay.gitd_grpc.clone(), relay.gitd_http.clone());
    let ready = async {
        answers(&grpc).await;
        answers(&http).await;
    };
    tokio::select! {
        reason = gitd.gave_up() => anyhow::bail!("gitd: {reason}"),
        () = stop.cancelled() => {}
        () = ready => gitd.has_served(),
    }
    // Workers hand their leases back: while the relay is still there to take them.
    let leave = async {
        stop.cancelled().await;
        for worker in &workers {
            worker.ask_to_stop();
        }
        std::future::pending().await
    };
    let outcome = tokio::select! {
        outcome = run_relay(relay, lock, stop.clone(), reserved) => outcome,
        never = leave => never,
    };
    let ends = workers.into_iter().chain([gitd]);
    futures::future::join_all(ends.map(|child| child.stop(grace + KILL_AFTER))).await;
    outcome
}

/// How many syncworkers are to be started.
fn number_of_workers(settings: &Settings) -> Result<usize, BadSetting> {
    let workers = settings.parse("NGIT_WORKERS", "a number from 0 to 256")?;
    if workers > 1 && settings.is_set("NGIT_WORKER_METRICS_ADDRESS") {
        let right = "unset where several workers are started together: they cannot share it";
        return Err(settings.bad("NGIT_WORKER_METRICS_ADDRESS", right));
    }
    Ok(workers)
}

/// What [`serve`] would say of the settings, of each part of the service for itself; nothing is made or
/// started.
pub fn check(mut settings: Settings) -> Vec<Result<(), String>> {
    assume_domain(&mut settings);
    // Where the sockets would lie is found out at the start.
    connect_processes(&mut settings, Path::new("/run/graspd"));
    let told = |result: Result<(), BadSetting>| result.map_err(|error| error.to_string());
    let relay = grasp_relay::Config::from_settings(&settings);
    let data = match &relay {
        Ok(config) => grasp_relay::check_data_path(config).map_err(|error| error.to_string()),
        Err(_) => Ok(()),
    };
    vec![
        told(relay.map(drop)),
        data,
        told(grasp_gitd::Config::from_settings(&settings).map(drop)),
        told(grasp_syncworker::Config::from_settings(&settings).map(drop)),
        told(number_of_workers(&settings).map(drop)),
        grasp_gitd::check_git().map_err(|error| error.to_string()),
    ]
}

/// By which the operator's commands find this service.
fn leave_note(
    run: &RunDir,
    settings: &Settings,
    relay: &grasp_relay::Config,
) -> anyhow::Result<()> {
    let bind = settings.get("NGIT_BIND_ADDRESS").unwrap_or_default();
    let (domain, grpc) = (relay.domain.to_string(), relay.grpc.to_string());
    let mut lines = vec![
        ("NGIT_BIND_ADDRESS", bind.to_owned()),
        ("NGIT_DOMAIN", domain),
        ("NGIT_RELAY_GRPC_ADDRESS", grpc),
        (
            "NGIT_INTERNAL_TOKEN_RELAY",
            relay.tokens.relay.expose().to_owned(),
        ),
    ];
    for name in ["NGIT_RELAY_DATA_PATH", "NGIT_GIT_DATA_PATH"] {
        // A path with a line break in it could not be read back.
        if let Some(Ok(path)) = settings.get(name).map(std::path::absolute)
            && let Some(path) = path.to_str().filter(|path| !path.contains('\n'))
        {
            lines.push((name, path.to_owned()));
        }
    }
    run.leave_note(&lines)
        .context("cannot write into the run directory")
}

async fn run_relay(
    config: grasp_relay::Config,
    lock: Option<DataLock>,
    stop: CancellationToken,
    reserved: Option<TcpSocket>,
) -> anyhow::Result<()> {
    if stop.is_cancelled() {
        return Ok(());
    }
    let domain = config.domain.clone();
    let ready = move |address| {
        drop(reserved);
        announce(&domain.to_string(), domain.is_local(), address);
    };
    grasp_relay::run_on_locked_data(config, lock, stop, ready).await?;
    tracing::info!("stopped");
    Ok(())
}

/// The one line a start prints: where to go.
fn announce(domain: &str, local: bool, address: SocketAddr) {
    use std::io::Write;
    let s = if local { "" } else { "s" };
    // Whoever started us need not be listening.
    let _ = writeln!(
        std::io::stdout(),
        "graspd is ready on {address}: ws{s}://{domain} http{s}://{domain} \
         git clone http{s}://{domain}/<npub>/<identifier>.git"
    );
}

/// With port 0, takes a free port now: the service's name may contain it. The socket that is
/// returned keeps others from being given the same port until the relay listens on it.
fn choose_port(settings: &mut Settings) -> Result<Option<TcpSocket>, BadSetting> {
    const NAME: &str = "NGIT_BIND_ADDRESS";
    let bind: SocketAddr = settings.parse(NAME, "an address like 0.0.0.0:7334")?;
    if bind.port() != 0 {
        return Ok(None);
    }
    let take = || {
        let socket = match bind.ip() {
            IpAddr::V4(_) => TcpSocket::new_v4()?,
            IpAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(bind)?;
        Ok((socket.local_addr()?, socket))
    };
    let (address, socket) = take().map_err(|error: std::io::Error| {
        settings.bad(NAME, format!("an address to listen on ({error})"))
    })?;
    settings.set(NAME, address.to_string(), Source::Derived("a free port"));
    Ok(Some(socket))
}

/// On loopback the service has a name even if nobody gave it one; says whether it was needed.
pub fn assume_domain(settings: &mut Settings) -> bool {
    let bind = settings.get("NGIT_BIND_ADDRESS").map(str::parse);
    match bind {
        Some(Ok::<SocketAddr, _>(bind))
            if bind.ip().is_loopback() && settings.get("NGIT_DOMAIN").is_none() =>
        {
            let name = format!("localhost:{}", bind.port());
            let why = Source::Derived("assumed, the listener is on loopback");
            settings.set("NGIT_DOMAIN", name, why);
            true
        }
        _ => false,
    }
}

/// Where events are only in memory and nobody named a place for repositories, they go too.
fn forgettable_repositories(settings: &mut Settings) -> anyhow::Result<Option<RunDir>> {
    let memory = settings.get("NGIT_DATABASE_BACKEND") == Some("memory");
    if !memory || settings.is_set("NGIT_GIT_DATA_PATH") {
        return Ok(None);
    }
    let directory = RunDir::for_data().context("cannot make a temporary directory")?;
    let path = directory.path().join("git");
    std::fs::create_dir(&path)?;
    tracing::warn!("events are kept in memory: repositories go with them at the end");
    settings.set(
        "NGIT_GIT_DATA_PATH",
        path.display().to_string(),
        Source::Derived("temporary, as events are in memory"),
    );
    Ok(Some(directory))
}

/// Sockets and credentials that nobody set.
fn connect_processes(settings: &mut Settings, run: &Path) {
    const MADE: Source = Source::Derived("made for this run");
    for (name, socket) in [
        ("NGIT_RELAY_GRPC_ADDRESS", run_dir::RELAY_SOCKET),
        ("NGIT_GITD_GRPC_ADDRESS", run_dir::GITD_SOCKET),
        ("NGIT_GITD_HTTP_ADDRESS", run_dir::GIT_HTTP_SOCKET),
    ] {
        if !settings.is_set(name) {
            let path = run.join(socket);
            settings.set(name, format!("unix:{}", path.display()), MADE);
        }
    }
    for (name, file) in [
        (
            "NGIT_INTERNAL_TOKEN_RELAY",
            "NGIT_INTERNAL_TOKEN_RELAY_FILE",
        ),
        ("NGIT_INTERNAL_TOKEN_GITD", "NGIT_INTERNAL_TOKEN_GITD_FILE"),
        (
            "NGIT_INTERNAL_TOKEN_WORKER",
            "NGIT_INTERNAL_TOKEN_WORKER_FILE",
        ),
    ] {
        if !settings.is_set(name) && !settings.is_set(file) {
            settings.set(name, Token::random().expose().to_owned(), MADE);
        }
    }
}

/// What a role has no use for, and therefore is not told.
fn kept_from(role: Role) -> &'static [&'static str] {
    match role {
        Role::Relay => &[],
        Role::Gitd => &["NGIT_RELAY_OWNER_NSEC", "NGIT_RELAY_OWNER_NSEC_FILE"],
        // It alone talks to strangers.
        Role::Worker => &[
            "NGIT_RELAY_OWNER_NSEC",
            "NGIT_RELAY_OWNER_NSEC_FILE",
            "NGIT_INTERNAL_TOKEN_RELAY",
            "NGIT_INTERNAL_TOKEN_RELAY_FILE",
            "NGIT_INTERNAL_TOKEN_GITD",
            "NGIT_INTERNAL_TOKEN_GITD_FILE",
        ],
    }
}

/// `graspd <role>` of this very executable, even if its file has been replaced meanwhile.
fn child_command(role: Role, settings: &Settings) -> impl Fn() -> Command + Send + 'static {
    let unneeded = kept_from(role);
    let told: Vec<(&str, String)> = settings
        .for_child()
        .filter(|(name, _)| !unneeded.contains(name))
        .map(|(name, value)| (name, value.to_owned()))
        .collect();
    move || {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("graspd").arg(role.as_str());
        for name in unneeded {
            command.env_remove(name);
        }
        command.envs(told.iter().map(|(name, value)| (*name, value)));
        command.env(process::PARENT, std::process::id().to_string());
        command
    }
}

/// Ends when somebody listens there.
async fn answers(endpoint: &Endpoint) {
    while endpoint.connect().await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_assumed_only_when_none_is_set_and_the_listener_is_local() {
        let told = |bind: &str, domain: &str| {
            let pairs = [("NGIT_BIND_ADDRESS", bind), ("NGIT_DOMAIN", domain)];
            Settings::from_pairs(pairs.map(|(name, value)| (name, value.to_owned())))
        };
        let mut local = told("127.0.0.1:99", "");
        assert!(assume_domain(&mut local));
        assert_eq!(local.get("NGIT_DOMAIN"), Some("localhost:99"));
        assert!(!assume_domain(&mut told("127.0.0.1:99", "a.example")));
        assert!(!assume_domain(&mut told("0.0.0.0:99", "")));
    }

    #[tokio::test]
    async fn a_chosen_port_can_be_listened_on_while_it_is_kept() {
        let pairs = [("NGIT_BIND_ADDRESS", "127.0.0.1:0".to_owned())];
        let mut settings = Settings::from_pairs(pairs);
        let kept = choose_port(&mut settings).unwrap();
        assert!(kept.is_some());
        let address = settings.get("NGIT_BIND_ADDRESS").unwrap();
        assert!(!address.ends_with(":0"));
        tokio::net::TcpListener::bind(address).await.unwrap();
    }

    #[test]
    fn children_are_told_no_more_than_they_need() {
        let pairs = [
            ("NGIT_RELAY_OWNER_NSEC", "secret".to_owned()),
            ("NGIT_INTERNAL_TOKEN_RELAY", "the relay's".to_owned()),
            ("NGIT_INTERNAL_TOKEN_WORKER", "the worker's".to_owned()),
            ("NGIT_DOMAIN", "a.example".to_owned()),
        ];
        let settings = Settings::from_pairs(pairs);
        let told = |role, name: &str| {
            let command = child_command(role, &settings)();
            let value = command.get_envs().find(|(key, _)| *key == name).unwrap().1;
            value.map(|value| value.to_string_lossy().into_owned())
        };
        for role in [Role::Gitd, Role::Worker] {
            assert_eq!(told(role, "NGIT_RELAY_OWNER_NSEC"), None);
            assert_eq!(told(role, "NGIT_DOMAIN").unwrap(), "a.example");
        }
        assert_eq!(told(Role::Worker, "NGIT_INTERNAL_TOKEN_RELAY"), None);
        assert!(told(Role::Worker, "NGIT_INTERNAL_TOKEN_WORKER").is_some());
        assert!(told(Role::Gitd, "NGIT_INTERNAL_TOKEN_RELAY").is_some());
    }
}
