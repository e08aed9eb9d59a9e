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
        let found = said.lines().find(|line| line.contains(name));
        found
            .unwrap_or_else(|| panic!("{name} is not printed: {said}"))
            .to_owned()
    };
    assert!(line("NGIT_DOMAIN").contains("environment"), "{said}");
    assert!(line("NGIT_RELAY_NAME").contains(".env"), "{said}");
    assert!(line("NGIT_RELAY_NAME").contains("from the file"), "{said}");
    assert!(
        line("NGIT_RELAY_MAX_SUBSCRIPTIONS").contains("default"),
        "{said}"
    );
    line("NGIT_RELAY_OWNER_NSEC");
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
    let line = |name: &str| {
        said.lines()
            .find(|line| line.contains(name))
            .unwrap_or_default()
    };
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
