//! The command line: which service is meant, what is said when something fails, and pipes that close.

use std::{
    io::Read,
    process::{Output, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    Client, Draft, Event, Keys, Project, Repo, Service,
    events::{deletion, issue},
};

async fn run(mut command: std::process::Command) -> Output {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    output.await.unwrap()
}

async fn graspd(service: &Service, arguments: &[&str]) -> Output {
    run(service.command(arguments)).await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command that succeeds prints, as JSON.
async fn told(service: &Service, arguments: &[&str]) -> Value {
    let out = graspd(service, arguments).await;
    assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// A command that is told nothing but what `arguments` say, looking where `service` keeps its notes.
fn untold(service: &Service, arguments: &[&str]) -> std::process::Command {
    let mut command = service.command(arguments);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name != "PATH") {
        command.env_remove(name);
    }
    for name in [
        "NGIT_BIND_ADDRESS",
        "NGIT_DOMAIN",
        "NGIT_GIT_DATA_PATH",
        "NGIT_RELAY_DATA_PATH",
        "NGIT_RUN_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

#[tokio::test]
async fn every_command_is_told_in_one_way_which_service_is_meant() {
    let notes = tempfile::tempdir().unwrap();
    let place = notes.path().to_str().unwrap().to_owned();
    let [mut one, mut other] = Service::prepare_several(&[("TMPDIR", &place)]).await;
    let run_dir = one.directory().join("run");
    let run_dir = run_dir.to_str().unwrap();
    one.set("NGIT_RUN_DIR", run_dir);
    one.run().await;
    other.run().await;
    let mut client = Client::connect(&one).await;
    let project = Project::active(&one, &mut client, "here").await;

    let which = run(untold(&one, &["repos"])).await;
    let said = text(&which.stderr);
    assert_eq!(which.status.code(), Some(1), "{said}");
    for word in [&one.domain(), &other.domain(), "--bind-address"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains(".sock"), "{said}");

    let (git, relay) = (one.git_data(), one.directory().join("relay/../relay"));
    let bind = format!("127.0.0.1:{}", one.port);
    let ways = [
        ("--run-dir", run_dir.to_owned()),
        ("--git-data-path", git.to_str().unwrap().to_owned()),
        ("--relay-data-path", relay.to_str().unwrap().to_owned()),
        ("--bind-address", bind),
        ("--domain", one.domain()),
    ];
    for (flag, value) in &ways {
        let out = run(untold(&one, &["repos", "--json", flag, value])).await;
        assert!(out.status.success(), "{flag}: {}", text(&out.stderr));
        let listed: Value = serde_json::from_slice(&out.stdout).unwrap();
        let found = &listed["repositories"][0]["coordinate"];
        assert_eq!(*found, project.coordinate(), "{flag}");
    }
    // It is the same for the others.
    let backup = one.directory().join("backup");
    for command in [
        &["status"][..],
        &["holding", "list"],
        &["purge", "--all"],
        &["cleanup-empty-repos", "--dry-run"],
        &["export"],
        &["import", "/dev/null"],
        &["backup", backup.to_str().unwrap()],
        &["health"],
    ] {
        let words = [command, &["--run-dir", run_dir]].concat();
        let out = run(untold(&one, &words)).await;
        assert!(out.status.success(), "{command:?}: {}", text(&out.stderr));
    }

    one.terminate();
    one.ended().await;
    assert!(!std::path::Path::new(run_dir).exists());
    for (flag, value) in &ways {
        let out = run(untold(&one, &["status", flag, value])).await;
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{flag}: {said}");
        assert!(said.contains("no service") && said.contains(flag), "{said}");
    }
    // The only one that is left need not be named.
    assert!(run(untold(&one, &["status"])).await.status.success());
}

#[tokio::test]
async fn an_error_names_the_service_and_no_socket() {
    let service = Service::prepare(&[]).await;
    let token = ("NGIT_INTERNAL_TOKEN_RELAY", "0123456789-0123456789");
    for command in [
        &["status"][..],
        &["repos"],
        &["holding"],
        &["purge", "x"],
        &["export"],
        &["import", "/dev/null"],
        &["backup", "backup"],
    ] {
        let mut command = untold(&service, command);
        command
            .env("NGIT_RELAY_GRPC_ADDRESS", "unix:/nowhere/at-all.sock")
            .env(token.0, token.1);
        let out = run(command).await;
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains("the relay does not answer"), "{said}");
        assert!(!said.contains("/nowhere"), "{said}");
    }
}

#[tokio::test]
async fn a_closed_pipe_ends_every_command_quietly() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "piped").await;
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["repos"],
        &["holding"],
        &["cleanup-empty-repos", "--dry-run"],
        &["export"],
        &["import", "--json", "/dev/null"],
        &["backup", "backup"],
        &["config"],
        &["config", "--reference"],
        &["completions", "bash"],
        &["version"],
        &["--version"],
        &["--help"],
        &["--help-all"],
        &["repos", "--help"],
        &["demo"],
    ] {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let mut silent = service.command(command);
        silent.stdout(write.try_clone().unwrap());
        let out = run(silent).await;
        let said = text(&out.stderr);
        assert!(out.status.success(), "{command:?}: {:?} {said}", out.status);
        assert_eq!(said, "", "{command:?}");
        // Nor does one fail over its complaint.
        let mut deaf = service.command(command);
        deaf.stdout(write.try_clone().unwrap()).stderr(write);
        assert!(run(deaf).await.status.success(), "{command:?}");
    }
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let mut bad = service.command(&["import", "nowhere.jsonl"]);
    bad.stdout(Stdio::null()).stderr(write);
    assert_eq!(run(bad).await.status.code(), Some(1));
}

#[tokio::test]
async fn a_service_whose_output_nobody_reads_goes_on() {
    let mut service = Service::prepare(&[]).await;
    let mut command = service.command(&["serve"]);
    let (mut read, write) = std::io::pipe().unwrap();
    command.stdout(write.try_clone().unwrap()).stderr(write);
    let child = command.spawn().unwrap();
    drop(command);
    service.adopt(child);
    let mut first = [0; 1];
    read.read_exact(&mut first).unwrap();
    drop(read);
    service.ready().await;
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "unheard").await;
    service.terminate();
    assert!(service.ended().await.success());
}

#[tokio::test]
async fn the_demo_takes_back_what_it_published_unless_it_is_to_keep_it() {
    let service = Service::start().await;
    let server = format!("http://{}", service.domain());
    let mut client = Client::connect(&service).await;
    let repositories = json!({"kinds": [30617, 30618]});

    let out = graspd(&service, &["demo", "--server", &server]).await;
    let said = text(&out.stdout);
    assert!(out.status.success(), "{said}{}", text(&out.stderr));
    assert!(said.contains("deleted from"), "{said}");
    assert!(!said.contains("nsec1"), "{said}");
    assert!(client.query(repositories.clone()).await.is_empty());

    let out = graspd(&service, &["demo", "--keep", "--server", &server]).await;
    let said = text(&out.stdout);
    assert!(out.status.success(), "{said}{}", text(&out.stderr));
    let kept = client.query(repositories.clone()).await;
    assert_eq!(kept.len(), 2, "{said}");
    let secret = said
        .split_whitespace()
        .find(|word| word.starts_with("nsec1"));
    let keys = Keys::parse(secret.unwrap()).unwrap();
    assert!(kept.iter().all(|event| event.pubkey == keys.public_key()));
    // The key that was printed is the one that deletes it.
    let all: Vec<&Event> = kept.iter().collect();
    let goes = Draft::new(5).tag(["k", "30617"]);
    let goes = all
        .iter()
        .fold(goes, |goes, event| goes.tag(["e", &event.id.to_hex()]));
    client.publish(&goes.sign(&keys)).await.served();
    assert!(client.query(repositories.clone()).await.is_empty());
}

#[tokio::test]
async fn a_demo_that_fails_takes_back_what_it_published_too() {
    let service = Service::start_with(&[("NGIT_GIT_MAX_PACK_BYTES", "1")]).await;
    let server = format!("http://{}", service.domain());
    let out = graspd(&service, &["demo", "--server", &server]).await;
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("deleted from"), "{said}");
    let status = service.status().await;
    let kinds = status["purgatory"]["kinds"].as_array().unwrap();
    assert!(kinds.iter().all(|kind| kind["entries"] == 0), "{status}");
}

#[tokio::test]
async fn the_demo_of_something_else_than_a_repository_fails() {
    let service = Service::prepare(&[]).await;
    for (arguments, code, words) in [
        (&["demo", "nowhere"][..], 1, "nowhere is no git repository"),
        (&["demo", "."], 1, "is no git repository"),
        (&["demo", "--keep"], 2, "--server"),
    ] {
        let out = graspd(&service, arguments).await;
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{said}");
    }
    // One that has no commit has nothing to show.
    let repo = Repo::new().await;
    let empty = repo.path().join("empty");
    repo.git(&["init", "-q", empty.to_str().unwrap()])
        .await
        .good();
    let out = graspd(&service, &["demo", empty.to_str().unwrap()]).await;
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("no branch"));
}

#[tokio::test]
async fn an_import_of_which_anything_is_refused_fails_and_names_it() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "target").await;
    let good = issue(&project.coordinate()).sign(&Keys::generate());
    let stray = issue(&format!(
        "30617:{}:x",
        Keys::generate().public_key().to_hex()
    ))
    .sign(&Keys::generate());
    let mut forged: Value = serde_json::from_str(&good.as_json()).unwrap();
    forged["content"] = "changed".into();
    let file = service.directory().join("events.jsonl");
    let lines = format!(
        "{}\n\nno event\n{}\n{forged}\n",
        good.as_json(),
        stray.as_json()
    );
    std::fs::write(&file, lines).unwrap();
    let file = file.to_str().unwrap();

    let out = graspd(&service, &["import", file]).await;
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    let names = |line: u64, id: &str, reason: &str| {
        let begins = format!("line {line}: {id}: ");
        let found = said.lines().find(|said| said.starts_with(&begins));
        let found = found.unwrap_or_else(|| panic!("{begins}: {said}"));
        assert!(found.contains(reason), "{found}");
    };
    names(3, "no id", "not an event");
    names(4, &stray.id.to_hex(), "");
    names(5, &good.id.to_hex(), "invalid:");
    assert!(said.contains("3 events were refused"), "{said}");
    assert!(
        text(&out.stdout).contains("1 accepted"),
        "{}",
        text(&out.stdout)
    );
    assert!(client.serves(&good).await);

    let out = graspd(&service, &["import", "--json", file]).await;
    assert_eq!(out.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let lines: Vec<u64> = report["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["line"].as_u64().unwrap())
        .collect();
    assert_eq!(lines.len(), 3, "{report}");
    assert!(
        [3, 4, 5].iter().all(|line| lines.contains(line)),
        "{report}"
    );
    assert_eq!(
        (&report["duplicate"], &report["more_refused"]),
        (&json!(1), &json!(0))
    );
    // A dry run finds what it can without a service.
    let out = graspd(&service, &["import", "--dry-run", file]).await;
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("2 events were refused"));
}

#[tokio::test]
async fn what_is_exported_is_what_is_served_and_can_be_imported() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "exported").await;
    let author = Keys::generate();
    let stays = issue(&project.coordinate()).sign(&author);
    let goes = issue(&project.coordinate()).sign(&author);
    let answer = Draft::new(1111)
        .tag(["E", &stays.id.to_hex()])
        .tag(["expiration", "99999999999"])
        .sign(&author);
    for event in [&stays, &goes, &answer] {
        client.publish(event).await.served();
    }
    client
        .publish(&deletion(&[&goes]).sign(&author))
        .await
        .served();
    // What waits is no part of it.
    Project::announced(&service, &mut client, "waits").await;

    let exported = async |service: &Service, arguments: &[&str]| {
        let out = graspd(service, &[&["export"], arguments].concat()).await;
        assert!(out.status.success(), "{}", text(&out.stderr));
        let mut events: Vec<Event> = text(&out.stdout)
            .lines()
            .map(|line| Event::from_json(line).unwrap())
            .collect();
        events.sort_unstable_by_key(|event| event.id);
        events
    };
    let all = exported(&service, &[]).await;
    let mut served = client.query(json!({})).await;
    served.sort_unstable_by_key(|event| event.id);
    assert_eq!(all, served);
    assert_eq!(all.len(), 5);
    for event in &all {
        event.verify().unwrap();
    }
    let ids = |events: &[Event]| events.iter().map(|event| event.id).collect::<Vec<_>>();
    let issues = exported(&service, &["--kind", "1621"]).await;
    assert_eq!(ids(&issues), [stays.id]);
    let npub = nostr::ToBech32::to_bech32(&project.owner.public_key()).unwrap();
    let own = exported(&service, &["--author", &npub, "--kind", "30617,30618,1"]).await;
    assert_eq!(own.len(), 2);
    let at = stays.created_at.as_secs().to_string();
    let then = exported(&service, &["--since", &at, "--until", &at]).await;
    assert_eq!(ids(&then), [stays.id]);
    assert!(exported(&service, &["--since", "1s"]).await.is_empty());
    for bad in [
        &["--kind", "70000"][..],
        &["--author", "x"],
        &["--since", "x"],
    ] {
        let out = graspd(&service, &[&["export"], bad].concat()).await;
        assert_eq!(out.status.code(), Some(2), "{bad:?}");
    }

    // A new store over the same repositories takes all of it in.
    let file = service.directory().join("events.jsonl");
    let lines: Vec<String> = all.iter().map(|event| event.as_json()).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    service.terminate();
    service.ended().await;
    std::fs::remove_dir_all(service.directory().join("relay")).unwrap();
    service.set("NGIT_ACCEPT_MISSING_EVENTS", "true");
    service.run().await;
    let report = told(&service, &["import", "--json", file.to_str().unwrap()]).await;
    assert_eq!(report["accepted"], all.len(), "{report}");
    assert_eq!(exported(&service, &[]).await, all);
    // And once more, nothing.
    let report = told(&service, &["import", "--json", file.to_str().unwrap()]).await;
    assert_eq!(report["duplicate"], all.len(), "{report}");
}

#[tokio::test]
async fn a_backup_counts_repositories_as_they_are_listed() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "one").await;
    Project::announced(&service, &mut client, "two").await;
    // Another owner's, in the same pool.
    Project::active(&service, &mut client, "one").await;
    let gone = deletion(&[]).tag(["a", &project.coordinate()]);
    client.publish(&gone.sign(&project.owner)).await.served();
    crate::support::until("the deleted one is moved aside", || async {
        let listed = told(&service, &["repos", "--json"]).await;
        listed.to_string().contains("\"retired\"")
    })
    .await;
    let listed = told(&service, &["repos", "--json"]).await;
    let done = told(&service, &["backup", "--json", "backup"]).await;
    assert_eq!(
        done["manifest"]["repositories"], listed["on_disk"],
        "{listed}"
    );
    assert_eq!(listed["on_disk"], 3);
    let all = done["manifest"]["bare_repositories"].as_u64().unwrap();
    assert!(all > 3, "pools are in it: {done}");
}

#[tokio::test]
async fn the_version_is_told_and_help_is_short_unless_all_is_asked_for() {
    let service = Service::prepare(&[]).await;
    let version = text(&graspd(&service, &["version"]).await.stdout);
    assert_eq!(
        version,
        text(&graspd(&service, &["--version"]).await.stdout)
    );
    assert!(version.starts_with("graspd "), "{version}");
    let short = text(&graspd(&service, &["backup", "--help"]).await.stdout);
    let all = text(&graspd(&service, &["backup", "--help-all"]).await.stdout);
    assert!(
        short.contains("NGIT_RUN_DIR") && !short.contains("NGIT_WORKERS"),
        "{short}"
    );
    assert!(
        all.contains("NGIT_WORKERS") && all.contains("[default: 500]"),
        "{all}"
    );
}
