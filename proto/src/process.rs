//! How a process lives: logging, traces, metrics, health, signals, and dying with its parent.
//!
//! What it is told lives in [`settings`].

mod allocator;
pub mod data_lock;
pub mod disk;
mod logging;
mod metrics;
mod operator;
pub mod restoring;
pub mod settings;
pub mod telemetry;

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use self::{
    allocator::return_freed_memory,
    logging::{check_logging, init_logging},
    metrics::{DESCRIPTIONS, description_of, help_line, metrics, render_metrics, resident_bytes},
    operator::{Listening, MetricsPage, Ready, Standing, readiness_text},
};

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

/// From now on SIGHUP does not end the process, whatever else is done about it; each is said in the log.
/// To be called within the runtime, before anything that takes its time.
pub fn outlive_hangups() {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            tracing::error!(%error, "SIGHUP will end this process");
            return;
        }
    };
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            tracing::info!(
                "SIGHUP: lists that are files are the relay's to read again; nothing else is"
            );
        }
    });
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
