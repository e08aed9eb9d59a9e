//! What the service is told, and what it says about it.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Output};

use crate::support::{Client, Keys, Project, Repo, Service, processes};

async fn run(service: &Service, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = service.command(arguments);
    for (name, value) in settings {
        command.env(name, value);
    }
    let command = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output();
    crate::support::soon("the command ends", command)
        .await
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `graspd config` says of one setting: its line, and where that came from.
fn told_of(said: &str, name: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let set = format!("{name}=");
    let place = lines.iter().position(|line| line.starts_with(&set));
    match place {
        Some(place) => lines[place - 1..=place].join("\n"),
        None => {
            let comment = lines.iter().find(|line| line.contains(name));
            comment.copied().unwrap_or_default().to_owned()
        }
    }
}

#[tokio::test]
async fn a_bad_value_stops_the_start_with_name_value_and_remedy() {
    let service = Service::prepare(&[]).await;
    for (name, value, remedy) in [
        ("NGIT_BIND_ADDRESS", "nowhere", "address"),
        ("NGIT_DATABASE_BACKEND", "sqlite", "lmdb or memory"),
        ("NGIT_RELAY_FILTER_LIMIT", "0", "greater than 0"),
        ("NGIT_RELAY_EVENTS_PER_MINUTE", "many", "number"),
        ("NGIT_TRUSTED_PROXY_CIDRS", "10.0.0.0/40", "networks"),
        ("NGIT_SHUTDOWN_GRACE_SECS", "soon", "seconds"),
        ("NGIT_METRICS_ENABLED", "perhaps", "true or false"),
        ("NGIT_LOG_FORMAT", "xml", "text or json"),
        ("NGIT_DOMAIN", "http://a b/", "host"),
    ] {
        for arguments in [&["serve"][..], &[]] {
            let out = run(&service, arguments, &[(name, value)]).await;
            assert!(!out.status.success(), "{name}={value}");
            let said = text(&out.stderr);
            assert!(said.contains(name), "{name}: {said}");
            assert!(said.contains(value), "{name}: {said}");
            assert!(said.contains(remedy), "{name}: {said}");
        }
    }
}

#[tokio::test]
async fn a_bad_secret_is_refused_without_being_shown() {
    let service = Service::prepare(&[]).await;
    let secret = [("NGIT_RELAY_OWNER_NSEC", "nsec1verysecret")];
    let out = run(&service, &["serve"], &secret).await;
    assert!(!out.status.success());
    let said = text(&out.stderr);
    assert!(
        said.contains("NGIT_RELAY_OWNER_NSEC") && !said.contains("verysecret"),
        "{said}"
    );
}

#[tokio::test]
async fn a_public_listener_needs_a_domain() {
    let service = Service::prepare(&[]).await;
    let settings = [("NGIT_DOMAIN", ""), ("NGIT_BIND_ADDRESS", "0.0.0.0:0")];
    let out = run(&service, &["serve"], &settings).await;
    assert!(!out.status.success());
    assert!(
        text(&out.stderr).contains("NGIT_DOMAIN"),
        "{}",
        text(&out.stderr)
    );
}

#[tokio::test]
async fn on_loopback_a_domain_is_assumed_and_said() {
    let service = Service::start_with(&[("NGIT_DOMAIN", "")]).await;
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "assumed").await;
    assert!(
        service
            .log()
            .contains(&format!("localhost:{}", service.port)),
        "{}",
        service.log()
    );
}

#[tokio::test]
async fn unknown_settings_are_warned_about_by_name() {
    let service =
        Service::start_with(&[("NGIT_NONSENSE", "1"), ("NGIT_OWNER_NPUB", "npub1")]).await;
    let log = service.log();
    let warned = log
        .lines()
        .any(|line| line.contains("WARN") && line.contains("NGIT_NONSENSE"));
    assert!(warned, "{log}");
    let npub = log
        .lines()
        .any(|line| line.contains("WARN") && line.contains("NGIT_OWNER_NPUB"));
    assert!(!npub, "{log}");
}

#[tokio::test]
async fn the_quick_clock_is_said_loudly() {
    let service = Service::start().await;
    let log = service.log();
    let warned = log
        .lines()
        .any(|line| line.contains("WARN") && line.contains("NGIT_TEST"));
    assert!(warned, "{log}");
}

#[tokio::test]
async fn the_configuration_is_printed_with_sources_and_without_secrets() {
    let service = Service::prepare(&[]).await;
    let keys = Keys::generate();
    let secret = keys.secret_key().to_secret_hex();
    std::fs::write(
        service.directory().join(".env"),
        "NGIT_RELAY_NAME=\"from the file\"\n",
    )
    .unwrap();
    let settings = [
        ("NGIT_RELAY_OWNER_NSEC", secret.as_str()),
        ("NGIT_INTERNAL_TOKEN_WORKER", "0123456789-secret-token"),
    ];
    let out = run(&service, &["config"], &settings).await;
    assert!(out.status.success(), "{}", text(&out.stderr));
    let said = text(&out.stdout);
    assert!(
        !said.contains(&secret) && !said.contains("secret-token"),
        "{said}"
    );
    let line = |name: &str| {
        let found = told_of(&said, name);
        assert!(!found.is_empty(), "{name} is not printed: {said}");
        found
    };
    assert!(line("NGIT_DOMAIN").contains("environment"), "{said}");
    assert!(line("NGIT_RELAY_NAME").contains(".env"), "{said}");
    assert!(line("NGIT_RELAY_NAME").contains("from the file"), "{said}");
    assert!(
        line("NGIT_RELAY_MAX_SUBSCRIPTIONS").contains("default"),
        "{said}"
    );
    let hidden = line("NGIT_RELAY_OWNER_NSEC");
    assert!(
        hidden.contains("is set (hidden), from environment"),
        "{said}"
    );
    let unset = line("NGIT_INTERNAL_TOKEN_GITD");
    assert!(unset.contains("is not set"), "{said}");

    // What is printed says the same when it is read back.
    std::fs::write(service.directory().join(".env"), &said).unwrap();
    let again = run(&service, &["config"], &settings).await;
    let again = text(&again.stdout);
    assert!(
        told_of(&again, "NGIT_RELAY_NAME").contains("from the file"),
        "{again}"
    );
}

#[tokio::test]
async fn what_the_start_would_refuse_or_not_know_fails_the_check() {
    let service = Service::prepare(&[]).await;
    let out = run(&service, &["config", "--check"], &[]).await;
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(processes::files(service.directory()), Vec::<PathBuf>::new());
    for (name, value) in [
        ("NGIT_NONSENSE", "1"),
        ("NGIT_LOG_LEVEL", "verbose"),
        ("NGIT_LOG_FORMAT", "xml"),
        ("NGIT_WORKERS", "many"),
        ("NGIT_RELAY_FILTER_LIMIT", "0"),
        ("NGIT_GIT_MAX_PACK_BYTES", "all"),
        ("NGIT_SYNC_MAX_BACKOFF_SECS", "99999999999999999999"),
        ("NGIT_PRIVATE_MODE", "true"),
        ("NGIT_REPOSITORY_WHITELIST", "./not-there"),
        ("NGIT_RELAY_OWNER_NSEC", "nsec1nonsense"),
        ("NGIT_RELAY_OWNER_NSEC_FILE", "./not-there"),
        ("NGIT_INTERNAL_TOKEN_GITD", "short"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
    ] {
        let out = run(&service, &["config", "--check"], &[(name, value)]).await;
        assert_eq!(out.status.code(), Some(2), "{name}={value}");
        assert!(text(&out.stderr).contains(name), "{}", text(&out.stderr));
    }
}

#[tokio::test]
async fn every_line_begins_with_time_and_level_and_the_start_says_its_version_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "logged").await;
    let served = client.query(serde_json::json!({"kinds": [30618]})).await;
    let state = served[0].id.to_hex();
    let log = service.log();
    let lines: Vec<&str> = log
        .lines()
        // Standard output is in the same file.
        .filter(|line| !line.starts_with("graspd is ready on"))
        .collect();
    for line in &lines {
        let mut words = line.split_whitespace();
        let time = words.next().unwrap_or_default();
        assert!(time.ends_with('Z') && time.contains('T'), "{line}");
        let level = words.next().unwrap_or_default();
        assert!(
            ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"].contains(&level),
            "{line}"
        );
        assert_ne!(level, "ERROR", "{line}");
        assert!(!line.contains("trace_id"), "{line}");
    }
    let started = lines
        .iter()
        .filter(|line| line.contains("graspd is starting"));
    let started: Vec<_> = started.collect();
    assert_eq!(started.len(), 1, "{log}");
    assert!(started[0].contains(env!("CARGO_PKG_VERSION")), "{log}");

    let path = Service::repository_path(&project.owner, "logged");
    let path = path
        .trim_start_matches('/')
        .trim_end_matches(".git")
        .to_owned();
    let pushes = lines.iter().filter(|line| line.contains(": push repo="));
    let pushes: Vec<_> = pushes.collect();
    assert_eq!(pushes.len(), 1, "{log}");
    for part in [
        "refs/heads/main",
        "bytes=",
        "duration=",
        "outcome=\"ok\"",
        &state,
        &path,
    ] {
        assert!(pushes[0].contains(part), "{part}: {}", pushes[0]);
    }
}

#[tokio::test]
async fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let service = Service::prepare(&[]).await;
    let file = "NGIT_RELAY_NAME=file\nNGIT_RELAY_DESCRIPTION=file\n";
    std::fs::write(service.directory().join(".env"), file).unwrap();
    let environment = [
        ("NGIT_RELAY_NAME", "environment"),
        ("NGIT_RELAY_DESCRIPTION", ""),
    ];
    let out = run(&service, &["config", "--relay-name", "flag"], &environment).await;
    let said = text(&out.stdout);
    let line = |name: &str| told_of(&said, name);
    let name = line("NGIT_RELAY_NAME");
    assert!(
        name.contains("flag") && !name.contains("environment"),
        "{said}{}",
        text(&out.stderr)
    );
    assert!(line("NGIT_RELAY_DESCRIPTION").contains("file"), "{said}");
}

#[tokio::test]
async fn the_services_key_is_made_once_and_private() {
    let mut service = Service::start().await;
    let file = service.directory().join("relay/.relay-owner.nsec");
    let before = std::fs::read_to_string(&file).unwrap();
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!service.log().contains(before.trim()));
    service.restart().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
}

#[tokio::test]
async fn help_has_examples_and_completions_can_be_printed() {
    let service = Service::prepare(&[]).await;
    let out = run(&service, &["--help"], &[]).await;
    assert!(out.status.success());
    let said = text(&out.stdout);
    for word in ["Examples", "demo", "config", "NGIT_"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let out = run(&service, &["completions", "bash"], &[]).await;
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("graspd"));
}

#[tokio::test]
async fn two_services_do_not_share_a_port() {
    let service = Service::start().await;
    let other = Service::prepare(&[]).await;
    let address = format!("127.0.0.1:{}", service.port);
    let out = run(&other, &["serve"], &[("NGIT_BIND_ADDRESS", &address)]).await;
    assert!(!out.status.success());
    assert!(
        text(&out.stderr).contains(&address),
        "{}",
        text(&out.stderr)
    );
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "still-here").await;
}

#[tokio::test]
async fn the_demo_does_the_main_job() {
    let service = Service::start().await;
    let server = format!("http://{}", service.domain());
    let out = run(&service, &["demo", "--server", &server], &[]).await;
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(
        said.contains("purgatory"),
        "does not show what the server said: {said}"
    );
}

#[tokio::test]
async fn the_demo_shows_what_is_checked_out_of_no_branch() {
    let service = Service::prepare(&[]).await;
    let repo = Repo::new().await;
    repo.git(&["tag", "v1"]).await.good();
    repo.git(&["checkout", "-q", "--detach"]).await.good();
    for branches in [1, 0] {
        if branches == 0 {
            repo.git(&["branch", "-q", "-D", "main"]).await.good();
        }
        let path = repo.path();
        let out = run(&service, &["demo", path.to_str().unwrap()], &[]).await;
        let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
        assert!(out.status.success(), "{said}");
        assert!(said.contains("HEAD main"), "{said}");
    }
}

#[tokio::test]
async fn the_demo_brings_its_own_service_and_leaves_nothing() {
    let service = Service::prepare(&[]).await;
    let repo = Repo::new().await;
    let before = processes::files(&repo.path());
    let path = repo.path();
    let arguments = ["demo", path.to_str().unwrap(), "--hunt"];
    let out = run(&service, &arguments, &[]).await;
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{said}");
    assert!(said.contains("found and released"), "{said}");
    assert_eq!(
        processes::files(&repo.path()),
        before,
        "the repository is only read"
    );
    assert_eq!(processes::files(service.directory()), Vec::<PathBuf>::new());
}
