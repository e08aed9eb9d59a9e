//! How a process lives: logging, metrics, signals, and dying with its parent.
//!
//! What it is told lives in [`settings`].

pub mod restoring;
pub mod settings;

use std::{io::IsTerminal, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::transport::Role;
use settings::{BadSetting, Settings};

/// Starts logging to standard error, at the level and in the format of the settings. Every line
/// carries the role, so that the lines of processes that share one terminal can be told apart.
pub fn init_logging(settings: &Settings, role: Role) -> Result<(), BadSetting> {
    let filter = settings.parse_with("NGIT_LOG_LEVEL", |level| {
        // The event store tells of a migration of nothing at every first start.
        let quiet = format!("nostr_lmdb=warn,{level}");
        EnvFilter::try_new(quiet).map_err(|error| format!("a log filter ({error})"))
    })?;
    let format = settings.parse_with("NGIT_LOG_FORMAT", |format| match format {
        "text" | "json" => Ok(format.to_owned()),
        _ => Err("text or json".to_owned()),
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // A second call (tests, several roles in one process) leaves the first in place.
    let _ = match format.as_str() {
        "json" => registry
            .with(layer.json().map_event_format(|inner| WithRole {
                inner,
                role: format!("{{\"role\":\"{}\",", role.as_str()),
                instead_of: "{",
            }))
            .try_init(),
        _ => registry
            .with(
                layer
                    .with_ansi(std::io::stderr().is_terminal())
                    .map_event_format(|inner| WithRole {
                        inner,
                        role: format!("role={} ", role.as_str()),
                        instead_of: "",
                    }),
            )
            .try_init(),
    };
    Ok(())
}

/// Puts the role at the head of every line that `inner` writes.
struct WithRole<F> {
    inner: F,
    role: String,
    /// What the role takes the place of.
    instead_of: &'static str,
}

impl<S, N, F> FormatEvent<S, N> for WithRole<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        if self.instead_of.is_empty() {
            write!(writer, "{}", self.role)?;
            return self.inner.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.inner
            .format_event(context, Writer::new(&mut line), event)?;
        let rest = line.strip_prefix(self.instead_of).unwrap_or(&line);
        write!(writer, "{}{rest}", self.role)
    }
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

/// A token that is cancelled by the first SIGTERM or SIGINT. The second one calls `at_once`, for
/// what cannot be left lying about, and ends the process.
pub fn stop_on_signal(
    at_once: impl FnOnce() + Send + 'static,
) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        let mut either = async || {
            tokio::select! {
                _ = terminate.recv() => 128 + 15,
                _ = interrupt.recv() => 128 + 2,
            }
        };
        either().await;
        tracing::info!("stopping; a second signal ends it at once");
        token.cancel();
        let code = either().await;
        at_once();
        std::process::exit(code);
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
