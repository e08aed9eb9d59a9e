//! How a process lives: logging, metrics, signals, and dying with its parent.
//!
//! What it is told lives in [`settings`].

pub mod settings;

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use settings::{BadSetting, Settings};

/// Starts logging to standard error, at the level and in the format of the settings.
pub fn init_logging(settings: &Settings) -> Result<(), BadSetting> {
    let filter = settings.parse_with("NGIT_LOG_LEVEL", |level| {
        EnvFilter::try_new(level).map_err(|error| format!("a log filter ({error})"))
    })?;
    let format = settings.parse_with("NGIT_LOG_FORMAT", |format| match format {
        "text" | "json" => Ok(format.to_owned()),
        _ => Err("text or json".to_owned()),
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // A second call (tests, several roles in one process) leaves the first in place.
    let _ = match format.as_str() {
        "json" => registry.with(layer.json()).try_init(),
        _ => registry.with(layer).try_init(),
    };
    Ok(())
}

/// The process's metrics, installed when first asked for.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        PrometheusBuilder::new()
            .install_recorder()
            .expect("nothing else installs a metrics recorder")
    })
}

/// The metrics as text, with this process's memory and descriptors as they are now.
pub fn render_metrics(role: &'static str) -> String {
    let handle = metrics();
    if let Some(bytes) = resident_bytes() {
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("ngit_process_resident_bytes", "role" => role).set(bytes as f64);
    }
    handle.run_upkeep();
    handle.render()
}

/// Resident memory of this process, in bytes; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// A token that is cancelled by the first SIGTERM or SIGINT.
pub fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(stop)
}

/// The variable by which a parent tells a child whose death it must not survive.
pub const PARENT: &str = "GRASPD_PARENT";

/// If a parent said so, makes the kernel kill this process when that parent dies, however it dies.
/// Ends the process if the parent is gone already. To be called first thing in `main`.
pub fn die_with_parent() {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok()) else {
        return;
    };
    let signal = Some(rustix::process::Signal::KILL);
    if let Err(error) = rustix::process::set_parent_process_death_signal(signal) {
        eprintln!("cannot bind this process's life to its parent's: {error}");
    }
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now != Some(parent) {
        std::process::exit(1);
    }
}

/// Lets the process open as many files as the system allows it to.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Waits for `work` to end, but no longer than `grace`; says whether it did.
pub async fn drain(work: impl Future<Output = ()>, grace: Duration) -> bool {
    tokio::time::timeout(grace, work).await.is_ok()
}
