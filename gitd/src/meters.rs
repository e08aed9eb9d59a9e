//! What gitd counts and times. Labels are words of ours: no repository and no address is one.

use std::time::{Duration, Instant};

/// Work that is shown as running until this is dropped, and as waiting for room before.
#[derive(Debug)]
pub struct Running(metrics::Gauge);

impl Running {
    /// One more of what this gauge shows.
    pub fn begin(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Transfers that run: `fetch`, `push` or `store`.
pub fn operation(operation: &'static str) -> Running {
    Running::begin(metrics::gauge!("ngit_git_operations_running", "operation" => operation))
}

/// A transfer has ended so, after so long.
pub fn took(operation: &'static str, outcome: &'static str, begun: Instant) {
    let labels = [("operation", operation), ("outcome", outcome)];
    metrics::histogram!("ngit_git_operation_seconds", &labels).record(begun.elapsed());
}

/// Git processes that run.
pub fn process() -> Running {
    Running::begin(metrics::gauge!("ngit_git_processes_running"))
}

/// Who waits for a place for a git process.
pub fn waiting() -> Running {
    Running::begin(metrics::gauge!("ngit_git_processes_waiting"))
}

/// Somebody waited so long for a place for a git process.
pub fn waited(waited: Duration) {
    metrics::histogram!("ngit_git_place_wait_seconds").record(waited);
}

/// A reader got no place (`busy`), or lost the one he had to somebody who waited (`slow`).
pub fn place_refused(reason: &'static str) {
    metrics::counter!("ngit_git_place_refused_total", "reason" => reason).increment(1);
}

/// Blocking work on a thread of its own.
pub fn thread() -> Running {
    Running::begin(metrics::gauge!("ngit_git_threads_running"))
}

/// Blocking work that waits for a thread.
pub fn thread_wanted() -> Running {
    Running::begin(metrics::gauge!("ngit_git_threads_waiting"))
}

/// A pack was not taken in.
pub fn pack_refused(reason: &'static str) {
    metrics::counter!("ngit_git_intake_refused_total", "reason" => reason).increment(1);
}

/// A request was answered: with a status of HTTP, or `refused` at the door.
pub fn request(kind: &'static str, status: &str) {
    let labels = [("request", kind.to_owned()), ("status", status.to_owned())];
    metrics::counter!("ngit_git_http_requests_total", &labels).increment(1);
}

/// Packs of a pool were consolidated, or not.
pub fn consolidated(well: bool, took: Duration) {
    let outcome = if well { "ok" } else { "failed" };
    metrics::counter!("ngit_git_consolidations_total", "outcome" => outcome).increment(1);
    metrics::histogram!("ngit_git_consolidation_seconds").record(took);
}

/// What is looked at before it first happens is there, at 0.
pub fn begin() {
    for operation in ["fetch", "push", "store"] {
        metrics::gauge!("ngit_git_operations_running", "operation" => operation).set(0.0);
    }
    for gauge in [
        "ngit_git_processes_running",
        "ngit_git_processes_waiting",
        "ngit_git_threads_running",
        "ngit_git_threads_waiting",
    ] {
        metrics::gauge!(gauge).set(0.0);
    }
    for reason in ["pack", "broken", "full", "ours"] {
        metrics::counter!("ngit_git_intake_refused_total", "reason" => reason).absolute(0);
    }
    for limit in ["git_requests", "git_bytes", "git_transfers"] {
        metrics::counter!("ngit_limits_refused_total", "limit" => limit).absolute(0);
    }
    for reason in ["busy", "slow"] {
        metrics::counter!("ngit_git_place_refused_total", "reason" => reason).absolute(0);
    }
    for outcome in ["ok", "failed"] {
        metrics::counter!("ngit_git_consolidations_total", "outcome" => outcome).absolute(0);
        metrics::counter!("ngit_git_fetches_total", "outcome" => outcome).absolute(0);
    }
    for outcome in ["ok", "partial", "refused"] {
        metrics::counter!("ngit_git_pushes_total", "outcome" => outcome).absolute(0);
    }
    for direction in ["in", "out"] {
        metrics::counter!("ngit_git_bytes_total", "direction" => direction).absolute(0);
    }
    metrics::counter!("ngit_internal_calls_refused_total").absolute(0);
    // Being there is all it takes.
    drop(metrics::histogram!("ngit_git_consolidation_seconds"));
    drop(metrics::histogram!("ngit_git_place_wait_seconds"));
}
