//! The names by which dashboards made for `ngit-grasp` ask for what is counted here under others.
//!
//! Made from the page of metrics when it is asked for, so that nothing is counted twice. What that has by
//! its former name already is not among them.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    time::Duration,
};

use grasp_proto::process::help_line;

use crate::sync::reports::Health;

/// Samples of a page: name, labels with their braces or nothing, value.
fn samples(page: &str) -> impl Iterator<Item = (&str, &str, f64)> {
    page.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_at(series.find('{').unwrap_or(series.len()));
        (!line.starts_with('#')).then_some((name, labels, value.parse().ok()?))
    })
}

/// The value of a label, as it is written.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = labels.split_once(&format!("{name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

/// What is the same under another name, labels included.
const SAME: [(&str, &str); 5] = [
    (
        "ngit_websocket_connections",
        "ngit_websocket_connections_active",
    ),
    ("ngit_websocket_addresses", "ngit_websocket_unique_ips"),
    (
        "ngit_websocket_suspicious_addresses",
        "ngit_websocket_flagged_abusers",
    ),
    ("ngit_repositories_active", "ngit_repositories_total"),
    ("ngit_repo_bytes_total", "ngit_git_top_repos_bytes"),
];

/// The series that dashboards of `ngit-grasp` read, from a page of ours.
pub fn names(page: &str, uptime: Duration, version: &str) -> String {
    let mut gauges: BTreeMap<(&str, String), f64> = BTreeMap::new();
    let mut counters: BTreeMap<(&str, String), f64> = BTreeMap::new();
    let (given_up, mut dead) = (f64::from(Health::Dead.number()), 0.0);
    for (name, labels, value) in samples(page) {
        if let Some((_, former)) = SAME.iter().find(|(ours, _)| *ours == name) {
            gauges.insert((former, labels.to_owned()), value);
        }
        let mut count = |former, labels| *counters.entry((former, labels)).or_default() += value;
        match name {
            "ngit_events_total" => {
                let kind = label(labels, "kind").unwrap_or("other");
                let of_kind = format!("{{kind=\"{kind}\"}}");
                count("ngit_events_received_total", of_kind.clone());
                match label(labels, "result") {
                    Some("accepted") => count("ngit_events_stored_total", of_kind),
                    Some(reason @ ("rejected" | "failed")) => {
                        let of_kind = format!("{{kind=\"{kind}\",reason=\"{reason}\"}}");
                        count("ngit_events_rejected_total", of_kind);
                    }
                    _ => {}
                }
            }
            "ngit_git_fetches_total" | "ngit_git_pushes_total" => {
                let operation = match name {
                    "ngit_git_pushes_total" => "push",
                    _ => "clone",
                };
                let status = match label(labels, "outcome") {
                    Some("ok" | "partial") => "success",
                    _ => "error",
                };
                let labels = format!("{{operation=\"{operation}\",status=\"{status}\"}}");
                count("ngit_git_operations_total", labels);
            }
            "ngit_pushes_total" => {
                let result = match label(labels, "result") {
                    Some("accepted" | "partial") => "authorized",
                    _ => "rejected",
                };
                let labels = format!("{{result=\"{result}\"}}");
                count("ngit_git_push_authorization_total", labels);
            }
            // It says one of a few small numbers.
            "ngit_sync_relay_status" if (value - given_up).abs() < f64::EPSILON => dead += 1.0,
            _ => {}
        }
    }
    gauges.insert(("ngit_sync_relays_dead_total", String::new()), dead);
    gauges.insert(("ngit_uptime_seconds", String::new()), uptime.as_secs_f64());
    let build = format!("{{version=\"{version}\",commit=\"unknown\"}}");
    gauges.insert(("ngit_build_info", build), 1.0);
    let mut text = String::new();
    let written = write(&mut text, "gauge", &gauges).and(write(&mut text, "counter", &counters));
    written.expect("writing to a string does not fail");
    text
}

fn write(text: &mut String, kind: &str, series: &BTreeMap<(&str, String), f64>) -> fmt::Result {
    let mut current = "";
    for ((name, labels), value) in series {
        if *name != current {
            write!(text, "{}", help_line(name))?;
            writeln!(text, "# TYPE {name} {kind}")?;
            current = name;
        }
        writeln!(text, "{name}{labels} {value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_here_is_told_by_the_former_names() {
        let page = "# TYPE ngit_websocket_connections gauge\nngit_websocket_connections 3\n\
            ngit_repo_bytes_total{repo=\"npub1x/a b\"} 7\n\
            ngit_events_total{kind=\"state\",origin=\"user\",result=\"accepted\"} 2\n\
            ngit_events_total{kind=\"state\",origin=\"sync\",result=\"accepted\"} 1\n\
            ngit_events_total{kind=\"state\",origin=\"sync\",result=\"rejected\"} 4\n\
            ngit_events_total{kind=\"state\",origin=\"sync\",result=\"duplicate\"} 5\n\
            ngit_git_fetches_total{outcome=\"ok\"} 8\nngit_git_pushes_total{outcome=\"refused\"} 9\n\
            ngit_git_pushes_total{outcome=\"ok\"} 2\nngit_git_pushes_total{outcome=\"partial\"} 1\n\
            ngit_pushes_total{result=\"accepted\"} 6\nngit_pushes_total{result=\"partial\"} 1\n\
            ngit_sync_relay_status{relay=\"wss://a\"} 3\nngit_sync_relay_status{relay=\"wss://b\"} 1\n";
        let former = names(page, Duration::from_secs(60), "1.2.3");
        for line in [
            "# TYPE ngit_websocket_connections_active gauge",
            "ngit_websocket_connections_active 3",
            "ngit_git_top_repos_bytes{repo=\"npub1x/a b\"} 7",
            "ngit_events_received_total{kind=\"state\"} 12",
            "ngit_events_stored_total{kind=\"state\"} 3",
            "ngit_events_rejected_total{kind=\"state\",reason=\"rejected\"} 4",
            "ngit_git_operations_total{operation=\"clone\",status=\"success\"} 8",
            "ngit_git_operations_total{operation=\"push\",status=\"error\"} 9",
            "ngit_git_operations_total{operation=\"push\",status=\"success\"} 3",
            "ngit_git_push_authorization_total{result=\"authorized\"} 7",
            "ngit_sync_relays_dead_total 1",
            "ngit_uptime_seconds 60",
            "ngit_build_info{version=\"1.2.3\",commit=\"unknown\"} 1",
        ] {
            assert!(
                former.lines().any(|other| other == line),
                "no {line}\n{former}"
            );
        }
        let types = former.lines().filter(|line| line.starts_with("# TYPE "));
        let mut types: Vec<&str> = types.collect();
        let all = types.len();
        types.dedup();
        assert_eq!(types.len(), all);
    }
}
