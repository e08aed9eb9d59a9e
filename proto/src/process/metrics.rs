//! The process's metrics: one recorder, shown as Prometheus text.
//!
//! Labels are words of ours or of what an operator has configured, never of a client: the number of
//! series is bounded, and none of them names a person's address.

mod descriptions;

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

pub use self::descriptions::{DESCRIPTIONS, description_of};

/// How long things take, from a call on this machine to a transfer of hours, in seconds.
const SECONDS: &[f64] = &[
    0.002, 0.01, 0.05, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 1_800.0, 7_200.0,
];

/// The process's metrics, installed when first asked for.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .expect("there are buckets")
            .install_recorder()
            .expect("nothing else installs a metrics recorder");
        for &(name, description) in DESCRIPTIONS {
            // Of which kind a metric is, is known by its use.
            ::metrics::describe_gauge!(name, description);
        }
        handle
    })
}

/// The `HELP` line of a metric that is not made by the recorder; nothing if it has no description.
pub fn help_line(name: &str) -> String {
    description_of(name).map_or_else(String::new, |text| format!("# HELP {name} {text}\n"))
}

/// The metrics as text, with what this process takes of the machine as it is now.
pub fn render_metrics(role: &'static str) -> String {
    let handle = metrics();
    if let Some(bytes) = resident_bytes() {
        gauge("ngit_process_resident_bytes", role, bytes);
        gauge("process_resident_memory_bytes", role, bytes);
    }
    if let Some(seconds) = cpu_seconds() {
        ::metrics::gauge!("process_cpu_seconds_total", "role" => role).set(seconds);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        gauge("process_open_fds", role, open.count() as u64);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limit.current {
        gauge("process_max_fds", role, most);
    }
    if let Ok(threads) = std::fs::read_dir("/proc/self/task") {
        gauge("process_threads", role, threads.count() as u64);
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let tasks = runtime.metrics().num_alive_tasks();
        gauge("ngit_process_tasks", role, tasks as u64);
    }
    handle.run_upkeep();
    handle.render()
}

#[allow(clippy::cast_precision_loss)]
fn gauge(name: &'static str, role: &'static str, value: u64) {
    ::metrics::gauge!(name, "role" => role).set(value as f64);
}

/// Resident memory of this process, in bytes; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Time that this process has computed, in seconds; its children's is not in it.
#[allow(clippy::cast_precision_loss)]
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_what_it_takes_and_durations_have_buckets() {
        metrics();
        ::metrics::histogram!("test_of_buckets_seconds").record(0.3);
        let text = render_metrics("relay");
        for name in [
            "# HELP process_resident_memory_bytes Resident memory of a process, in bytes.",
            "process_resident_memory_bytes{role=\"relay\"}",
            "process_cpu_seconds_total{role=\"relay\"}",
            "process_open_fds{role=\"relay\"}",
            "process_max_fds{role=\"relay\"}",
            "process_threads{role=\"relay\"}",
            "test_of_buckets_seconds_bucket{le=\"0.5\"} 1",
            "test_of_buckets_seconds_bucket{le=\"0.2\"} 0",
        ] {
            assert!(text.contains(name), "{name} is not in {text}");
        }
    }
}
