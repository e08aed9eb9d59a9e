//! What an operator sees: metrics and health of every process, and traces through all of them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::support::{
    Client, Event, PATIENCE, Project, Repo, Service,
    collector::{Collector, Span},
    events,
    host::Host,
    service::free_port,
    until,
    web::{self, Answer},
};

const ROLES: [&str; 3] = ["RELAY", "GITD", "WORKER"];

/// A service each of whose processes has an address for monitoring; gives their ports.
async fn watched(settings: &[(&str, &str)]) -> (Service, [u16; 3]) {
    let ports = ROLES.map(|_| free_port());
    let mut service = Service::prepare(settings).await;
    service.set("NGIT_SYNC_DEFAULT_DELAY_SECS", "0");
    for (role, port) in ROLES.into_iter().zip(ports) {
        let name = format!("NGIT_{role}_METRICS_ADDRESS");
        service.set(&name, &format!("http://127.0.0.1:{port}"));
    }
    service.run().await;
    (service, ports)
}

async fn ask(port: u16, path: &str) -> Option<Answer> {
    web::fetch(port, web::request("GET", port, path, &[]))
        .await
        .ok()
}

/// Announces a project that lies on another server, besides this one, and waits until its state is
/// served.
async fn hunt(service: &Service, client: &mut Client, identifier: &str) -> Event {
    let host = Host::start().await;
    let project = Project::new(identifier).await;
    let url = host.hold("copy", &project.repo, &["main"]).await;
    let ours = service.public_url(&project.owner, identifier);
    let announced = events::announcement(service, &project.owner, identifier)
        .without("clone")
        .tag(vec!["clone".to_owned(), ours, url]);
    client
        .publish(&announced.sign(&project.owner))
        .await
        .waits();
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let served = || async { Client::connect(service).await.serves(&state).await };
    until("what was found is served", served).await;
    state
}

/// The words of a text that are names of metrics.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| {
        ["ngit_", "purgatory_sync_", "purgatory_domain_", "process_"]
            .iter()
            .any(|prefix| word.starts_with(prefix))
    };
    words.filter(ours).map(str::to_owned).collect()
}

/// What `key` holds, anywhere in a document.
fn values_of<'a>(document: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
    match document {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if name == key => found.push(text),
                    _ => values_of(value, key, found),
                }
            }
        }
        serde_json::Value::Array(all) => all.iter().for_each(|one| values_of(one, key, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_metric_of_dashboard_and_alerts_is_there() {
    const RULES: &str = include_str!("../../docs/deploy/prometheus/rules.yml");
    const DASHBOARD: &str = include_str!("../../docs/deploy/grafana/dashboards/graspd.json");
    const PAGE: &str = include_str!("../../docs/observing.md");
    let (service, ports) = watched(&[]).await;
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "pushed").await;
    hunt(&service, &mut client, "hunted").await;

    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut asked = Vec::new();
    values_of(&dashboard, "expr", &mut asked);
    assert!(asked.len() > 50, "{}", asked.len());
    let expressions = RULES
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr:"));
    asked.extend(expressions);
    let mut wanted: BTreeSet<String> = asked.iter().flat_map(|text| metrics_in(text)).collect();
    wanted.extend(metrics_in(PAGE));
    // Only where traces are sent.
    wanted.remove("ngit_trace_spans_total");
    // A file of these deployments.
    wanted.retain(|name| !name.ends_with('_'));
    let missing = || async {
        let mut there = BTreeSet::new();
        let mut pages = Vec::new();
        for port in ports {
            pages.push(ask(port, "/metrics").await.unwrap().text());
        }
        // What dashboards of another server ask for is there alone.
        pages.push(service.get("/metrics").await.unwrap().text());
        for text in pages {
            for line in text.lines().filter(|line| !line.starts_with('#')) {
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                there.insert(name.to_owned());
                for part in ["_bucket", "_sum", "_count"] {
                    there.extend(name.strip_suffix(part).map(str::to_owned));
                }
            }
        }
        wanted.difference(&there).cloned().collect::<Vec<_>>()
    };
    // Some are measured now and then.
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && !missing().await.is_empty() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(missing().await, Vec::<String>::new(), "are nowhere");

    for name in RULES
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(
            PAGE.contains(&format!("### {name}\n")),
            "{name}: what to do"
        );
    }
}

#[tokio::test]
async fn every_process_tells_how_it_does() {
    let (service, ports) = watched(&[]).await;
    for port in ports {
        until("it is ready", || async {
            ask(port, "/readyz")
                .await
                .is_some_and(|answer| answer.status == 200)
        })
        .await;
        assert_eq!(ask(port, "/healthz").await.unwrap().status, 200);
        assert_eq!(ask(port, "/").await.unwrap().status, 404);
    }
    let [relay, gitd, worker] = ports;
    for (port, role) in [(relay, "relay"), (gitd, "gitd"), (worker, "syncworker")] {
        let text = ask(port, "/metrics").await.unwrap().text();
        let own = format!("process_open_fds{{role=\"{role}\"}}");
        assert!(text.contains(&own), "{own}: {text}");
        assert_eq!(text.matches("process_open_fds{").count(), 1, "{text}");
    }
    // The public page tells of the whole service.
    let all = service.get("/metrics").await.unwrap().text();
    for role in ["relay", "gitd"] {
        assert!(
            all.contains(&format!("process_open_fds{{role=\"{role}\"}}")),
            "{all}"
        );
    }
    until("the worker is told of", || async {
        let all = service.get("/metrics").await.unwrap().text();
        all.contains("ngit_worker_leases")
    })
    .await;
}

#[tokio::test]
async fn every_metric_says_what_it_tells() {
    let (service, ports) = watched(&[]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "described").await;
    let (_clone, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    let mut pages = vec![service.get("/metrics").await.unwrap().text()];
    for port in ports {
        pages.push(ask(port, "/metrics").await.unwrap().text());
    }
    for page in pages {
        let named = |what: &str| -> BTreeSet<String> {
            let lines = page.lines().filter_map(|line| line.strip_prefix(what));
            lines
                .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
                .collect()
        };
        let (helped, typed) = (named("# HELP "), named("# TYPE "));
        assert!(typed.len() > 10, "{page}");
        let without: Vec<_> = typed.difference(&helped).collect();
        assert!(without.is_empty(), "{without:?}");
    }
}

#[tokio::test]
async fn the_metrics_of_all_can_have_an_address_of_their_own() {
    let port = free_port();
    let address = format!("http://127.0.0.1:{port}");
    let service = Service::start_with(&[("NGIT_METRICS_ADDRESS", &address)]).await;
    let page = ask(port, "/metrics").await.unwrap().text();
    for role in ["relay", "gitd"] {
        let own = format!("process_open_fds{{role=\"{role}\"}}");
        assert!(page.contains(&own), "{page}");
    }
    assert!(page.contains("ngit_uptime_seconds"), "{page}");
    assert_eq!(ask(port, "/readyz").await.unwrap().status, 200);
    assert_eq!(service.get("/metrics").await.unwrap().status, 404);
    assert_eq!(service.get("/readyz").await.unwrap().status, 200);
}

#[tokio::test]
async fn no_metric_names_a_person() {
    let (service, ports) = watched(&[]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "nobodys").await;
    let (_, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    for port in ports {
        let text = ask(port, "/metrics").await.unwrap().text();
        for private in ["nobodys", "npub1", "127.0.0.1\""] {
            assert!(!text.contains(private), "{private}: {text}");
        }
    }
}

#[tokio::test]
async fn the_repositories_that_move_the_most_are_named_and_no_others() {
    let mut service = Service::start_with(&[("NGIT_METRICS_TOP_N_REPOS", "2")]).await;
    let mut client = Client::connect(&service).await;
    let mut projects = Vec::new();
    for name in ["idle", "busy", "busiest"] {
        projects.push(Project::active(&service, &mut client, name).await);
    }
    for (project, clones) in projects.iter().zip([0, 2, 4]) {
        for _ in 0..clones {
            let (_clone, out) = Repo::clone(&project.url(&service), &[]).await;
            out.good();
        }
    }
    let name = |project: &Project| {
        let path = Service::repository_path(&project.owner, &project.identifier);
        let repo = path.trim_start_matches('/').to_owned();
        format!("ngit_repo_bytes_total{{repo=\"{repo}\"}} ")
    };
    let names: Vec<String> = projects.iter().map(name).collect();
    let named = |text: &str| -> Vec<usize> {
        let lines = text.lines();
        let lines = lines.filter(|line| line.starts_with("ngit_repo_bytes_total{"));
        let place = |line: &str| names.iter().position(|name| line.starts_with(name));
        lines
            .map(|line| place(line).unwrap_or(usize::MAX))
            .collect()
    };
    // A transfer is counted when it has ended, which its client need not wait for.
    let (service_ref, named_ref) = (&service, &named);
    until("the busiest come first", || async move {
        let text = service_ref.get("/metrics").await.unwrap().text();
        named_ref(&text) == [2, 1]
    })
    .await;
    // What is taken out of service is not named either.
    service.set("NGIT_METRICS_TOP_N_REPOS", "3");
    service.set("NGIT_REPOSITORY_BLACKLIST", "busiest");
    service.restart().await;
    for project in &projects[..2] {
        let (_clone, out) = Repo::clone(&project.url(&service), &[]).await;
        out.good();
    }
    let service = &service;
    until("both are named", || async move {
        let text = service.get("/metrics").await.unwrap().text();
        let mut all = named_ref(&text);
        all.sort_unstable();
        all == [0, 1]
    })
    .await;
}

#[tokio::test]
async fn gitd_tells_its_metrics_to_the_relay_alone_where_git_is_served() {
    let direct = free_port();
    let address = format!("http://127.0.0.1:{direct}");
    let service = Service::start_with(&[("NGIT_GITD_HTTP_ADDRESS", &address)]).await;
    assert_eq!(ask(direct, "/metrics").await.unwrap().status, 404);
    let all = service.get("/metrics").await.unwrap().text();
    assert!(all.contains("ngit_git_operations_running"), "{all}");
}

#[tokio::test]
async fn workers_that_share_an_address_are_refused_at_the_start() {
    let service = Service::prepare(&[
        ("NGIT_WORKERS", "2"),
        ("NGIT_WORKER_METRICS_ADDRESS", "http://127.0.0.1:9"),
    ])
    .await;
    let mut command = service.command(&["serve"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("NGIT_WORKER_METRICS_ADDRESS"), "{said}");
}

/// Those that have no parent among them: of a whole trace, the one that it began with.
fn roots(spans: &[Span]) -> Vec<&Span> {
    let ids: BTreeSet<&[u8]> = spans.iter().map(|span| &*span.id).collect();
    let roots = spans.iter().filter(|span| !ids.contains(&*span.parent));
    roots.collect()
}

/// The trace that has all these steps, once what it consists of has come from all these processes.
async fn whole(collector: &Collector, steps: &[&str], from: &[&str]) -> Vec<Span> {
    let whole = || {
        let spans = collector.trace_with(steps)?;
        let from_all = from.iter().copied().eq(services(&spans));
        (from_all && roots(&spans).len() == 1).then_some(spans)
    };
    let waiting = async {
        loop {
            if let Some(spans) = whole() {
                return spans;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(spans) => spans,
        Err(_) => match collector.trace_with(steps) {
            Some(spans) => panic!("{:?}, in parts: {:?}", services(&spans), roots(&spans)),
            None => panic!("no trace with {steps:?}: {:?}", collector.spans()),
        },
    }
}

fn services(spans: &[Span]) -> BTreeSet<&str> {
    spans.iter().map(|span| span.service.as_str()).collect()
}

#[tokio::test]
async fn one_push_is_one_trace_through_relay_and_gitd() {
    let collector = Collector::start();
    let to = collector.address();
    let service = Service::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &to)]).await;
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "traced").await;
    let steps = [
        "git-receive-pack",
        "Push/Authorize",
        "intake",
        "Push/Commit",
        "release",
        "Repositories/Align",
    ];
    let spans = whole(&collector, &steps, &["graspd-gitd", "graspd-relay"]).await;
    // Its log lines are found by it, in both processes.
    let id: String = spans[0]
        .trace
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let log = service.log();
    for role in ["relay", "gitd"] {
        let line = format!("role={role} trace_id={id} span_id=");
        assert!(log.contains(&line), "{line}");
    }
}

#[tokio::test]
async fn one_hunted_event_is_one_trace_through_all_three() {
    let collector = Collector::start();
    let to = collector.address();
    let service = Service::start_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &to),
        ("NGIT_SYNC_DEFAULT_DELAY_SECS", "0"),
    ])
    .await;
    let mut client = Client::connect(&service).await;
    hunt(&service, &mut client, "traced").await;
    let steps = [
        "event",
        "hunt",
        "Hunt/Next",
        "fetch",
        "Packs/StorePack",
        "Hunt/Report",
        "release",
        "Repositories/Align",
    ];
    let from = ["graspd-gitd", "graspd-relay", "graspd-syncworker"];
    whole(&collector, &steps, &from).await;
}

#[tokio::test]
async fn what_a_stranger_says_of_traces_is_linked_to_and_not_followed() {
    let collector = Collector::start();
    let to = collector.address();
    let mut service = Service::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &to)]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "stranger").await;
    let path = Service::repository_path(&project.owner, "stranger");
    let path = format!("{path}/info/refs?service=git-upload-pack");
    let theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("traceparent", theirs)];
    let request = web::request("GET", service.port, &path, &headers);
    assert_eq!(service.fetch(request).await.unwrap().status, 200);
    // What has not been sent goes at the end.
    service.terminate();
    service.ended().await;
    let id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace != id), "{spans:?}");
    let linked = spans
        .iter()
        .filter(|span| span.links.iter().any(|link| *link == id));
    let linked: Vec<_> = linked.collect();
    assert_eq!(linked.len(), 1, "{linked:?}");
    assert_eq!(linked[0].service, "graspd-relay");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_but_a_warning() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut service = Service::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &nobody)]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "away").await;
    project.repo.commit().await;
    project.update(&service, &mut client, &["main"]).await;
    until("it is said", || async {
        service.log().contains("traces are lost")
    })
    .await;
    service.terminate();
    assert!(service.ended().await.success());
    let said = service.log().matches("traces are lost").count();
    assert!(said <= 3, "{said} warnings of three processes");
}
