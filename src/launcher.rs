//! The whole service from one start: this process is the relay, gitd its child.
//!
//! What the processes need of each other – sockets, credentials – is made here for the run and
//! handed over in the child's environment, which only its user can read and which leaves nothing
//! on disk. The child asks the kernel to die with this process, however that dies.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::Context;
use grasp_proto::{
    process::{
        self,
        settings::{BadSetting, Settings, Source},
    },
    transport::{Endpoint, Token},
};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

use crate::{run_dir::RunDir, supervisor::Supervisor};

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
    let run = RunDir::for_sockets().context("cannot make a private run directory")?;
    let temporary = forgettable_repositories(&mut settings)?;
    connect_processes(&mut settings, &run);

    let relay = grasp_relay::Config::from_settings(&settings)?;
    // Read here only so that a bad value is said before anything is started.
    grasp_gitd::Config::from_settings(&settings)?;
    let grace = relay.grace;

    let mut gitd = Supervisor::start("gitd", gitd_command(&settings))?;
    let kill_gitd = gitd.killer();
    let directories: Vec<PathBuf> = [Some(&run), temporary.as_ref()]
        .into_iter()
        .flatten()
        .map(|directory| directory.path().to_owned())
        .collect();
    let stop = process::stop_on_signal(move || {
        kill_gitd();
        for directory in directories {
            let _ = std::fs::remove_dir_all(directory);
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
    let outcome = run_relay(relay, stop, reserved).await;
    gitd.stop(grace + KILL_AFTER).await;
    outcome
}

async fn run_relay(
    config: grasp_relay::Config,
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
    grasp_relay::run(config, stop, ready).await?;
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
fn connect_processes(settings: &mut Settings, run: &RunDir) {
    const MADE: Source = Source::Derived("made for this run");
    for (name, socket) in [
        ("NGIT_RELAY_GRPC_ADDRESS", "relay.sock"),
        ("NGIT_GITD_GRPC_ADDRESS", "gitd.sock"),
        ("NGIT_GITD_HTTP_ADDRESS", "git-http.sock"),
    ] {
        if !settings.is_set(name) {
            let path = run.path().join(socket);
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

/// `graspd gitd` of this very executable, even if its file has been replaced meanwhile.
fn gitd_command(settings: &Settings) -> impl Fn() -> Command + Send + 'static {
    // gitd has no use for the service's own key.
    let unneeded = ["NGIT_RELAY_OWNER_NSEC", "NGIT_RELAY_OWNER_NSEC_FILE"];
    let told: Vec<(&str, String)> = settings
        .for_child()
        .filter(|(name, _)| !unneeded.contains(name))
        .map(|(name, value)| (name, value.to_owned()))
        .collect();
    move || {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("graspd").arg("gitd");
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
    fn the_service_s_key_is_not_handed_to_gitd() {
        let pairs = [
            ("NGIT_RELAY_OWNER_NSEC", "secret".to_owned()),
            ("NGIT_DOMAIN", "a.example".to_owned()),
        ];
        let command = gitd_command(&Settings::from_pairs(pairs))();
        let told = |name: &str| command.get_envs().find(|(key, _)| *key == name).unwrap().1;
        assert_eq!(told("NGIT_RELAY_OWNER_NSEC"), None);
        assert_eq!(told("NGIT_DOMAIN").unwrap(), "a.example");
    }
}
