//! In the place of another GRASP server: its environment, its repositories, its events.

use std::{fs, path::Path, process::Output};

use nostr::ToBech32;
use serde_json::{Value, json};

use crate::support::{
    Client, Draft, Event, Keys, Project, Repo, Service,
    events::{deletion, issue, pull_request},
    git, soon, until, web,
};

fn npub(keys: &Keys) -> String {
    keys.public_key().to_bech32().unwrap()
}

async fn run(service: &Service, arguments: &[&str]) -> Output {
    let command = tokio::process::Command::from(service.command(arguments))
        .kill_on_drop(true)
        .output();
    soon("the command ends", command).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What an import reports, which fails just when something was refused.
async fn import(service: &Service, arguments: &[&str]) -> Value {
    let out = run(service, &[&["import", "--json"], arguments].concat()).await;
    let report: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out.stderr)));
    let refused = report["refused"].as_array().unwrap();
    assert_eq!(out.status.success(), refused.is_empty(), "{report}");
    report
}

/// Every variable that such a deployment may have set, none as it is by default.
fn environment(
    service: &Service,
    owner: &Keys,
    banned: &Keys,
    chosen: &Keys,
) -> Vec<(String, String)> {
    let directory = service.directory().display();
    let pairs = [
        ("DOMAIN", service.domain()),
        ("BIND_ADDRESS", format!("127.0.0.1:{}", service.port)),
        ("GIT_DATA_PATH", format!("{directory}/here/git")),
        ("RELAY_DATA_PATH", format!("{directory}/here/relay")),
        ("DATABASE_BACKEND", "lmdb".into()),
        ("RELAY_NAME", "as it was".into()),
        ("RELAY_DESCRIPTION", "moved in".into()),
        ("RELAY_OWNER_NSEC", owner.secret_key().to_bech32().unwrap()),
        ("OWNER_NPUB", npub(owner)),
        ("TRUSTED_PROXY_CIDRS", "127.0.0.0/8,10.0.0.0/8".into()),
        ("MAX_CONNECTIONS", "2".into()),
        ("RELAY_MAX_SUBSCRIPTIONS", "7".into()),
        ("RELAY_FILTER_LIMIT", "70".into()),
        ("RELAY_MAX_EVENT_SIZE_BYTES", "70000".into()),
        ("RELAY_EVENTS_PER_MINUTE", "1000".into()),
        ("SYNC_BOOTSTRAP_RELAY_URL", "relay.elsewhere.example".into()),
        ("SYNC_BASE_BACKOFF_SECS", "6".into()),
        ("SYNC_MAX_BACKOFF_SECS", "600".into()),
        ("SYNC_DISCONNECT_CHECK_INTERVAL_SECS", "61".into()),
        ("SYNC_STARTUP_DELAY_SECS", "31".into()),
        ("SYNC_STARTUP_JITTER_MS", "900".into()),
        ("SYNC_BATCH_WINDOW_MS", "4000".into()),
        ("SYNC_DISABLE_NEGENTROPY", "true".into()),
        ("SYNC_LOOP_INTERVAL_MS", "900".into()),
        ("SYNC_MAX_CONCURRENT_PER_DOMAIN", "4".into()),
        ("SYNC_MAX_PER_MINUTE_PER_DOMAIN", "29".into()),
        ("SYNC_DEFAULT_DELAY_SECS", "170".into()),
        ("SYNC_IMMEDIATE_DELAY_MS", "400".into()),
        ("SYNC_ALLOW_NON_GLOBAL_TARGETS", "true".into()),
        ("REJECTED_HOT_CACHE_DURATION_SECS", "100".into()),
        ("REJECTED_COLD_INDEX_EXPIRY_SECS", "600000".into()),
        ("REPOSITORY_WHITELIST", npub(chosen)),
        ("REPOSITORY_BLACKLIST", "unwanted".into()),
        ("EVENT_BLACKLIST", npub(banned)),
        ("ARCHIVE_ALL", "false".into()),
        ("ARCHIVE_WHITELIST", "archived".into()),
        ("ARCHIVE_GRASP_SERVICES", "grasp.elsewhere.example".into()),
        ("ARCHIVE_READ_ONLY", "false".into()),
        ("NAUGHTY_LIST_EXPIRATION_HOURS", "11".into()),
        ("GRASP06_ENABLE", "false".into()),
        ("METRICS_ENABLED", "false".into()),
        ("METRICS_TOP_N_REPOS", "9".into()),
        ("METRICS_CONNECTION_PER_IP_ABUSE_THRESHOLD", "9".into()),
        ("LOG_LEVEL", "debug".into()),
        ("LOG_FORMAT", "json".into()),
    ];
    let named = |(name, value): (&str, String)| (format!("NGIT_{name}"), value);
    pairs.into_iter().map(named).collect()
}

#[tokio::test]
async fn the_environment_of_another_server_starts_the_service_and_is_acted_on() {
    let mut service = Service::prepare(&[]).await;
    let [owner, banned, chosen, other] = std::array::from_fn(|_| Keys::generate());
    let environment = environment(&service, &owner, &banned, &chosen);
    let lines = environment
        .iter()
        .map(|(name, value)| format!("{name}=\"{value}\"\n"));
    service.told_by(&lines.collect::<String>());
    let out = run(&service, &["config"]).await;
    let said = text(&out.stdout);
    let lines: Vec<&str> = said.lines().collect();
    for (name, value) in &environment {
        if name == "NGIT_RELAY_OWNER_NSEC" {
            let hidden = format!("# {name} is set (hidden), from .env");
            assert!(lines.contains(&&*hidden) && !said.contains(value), "{said}");
            continue;
        }
        let place = lines.iter().position(|line| {
            let shown = line.strip_prefix(&format!("{name}="));
            shown.is_some_and(|shown| shown.trim_matches('\'') == value)
        });
        let place = place.unwrap_or_else(|| panic!("{name} is not shown: {said}"));
        assert!(lines[place - 1].ends_with(".env:"), "{}", lines[place - 1]);
    }

    service.run().await;
    let log = service.log();
    for line in log.lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).unwrap();
        let message = line.to_string();
        assert!(!message.contains("is not a setting"), "{message}");
        let unknown = message.contains("does not act on it");
        assert!(!unknown || message.contains("GRASP06"), "{message}");
    }
    assert!(log.contains("\"level\":\"DEBUG\""), "{log}");
    let accept = [("Accept", "application/nostr+json")];
    let request = web::request("GET", service.port, "/", &accept);
    let document = service.fetch(request).await.unwrap();
    let document: Value = serde_json::from_slice(&document.body).unwrap();
    assert_eq!(document["name"], "as it was");
    assert_eq!(document["description"], "moved in");
    assert_eq!(document["pubkey"], owner.public_key().to_hex());
    assert_eq!(document["limitation"]["max_subscriptions"], 7);
    assert_eq!(document["limitation"]["max_limit"], 70);
    let grasps = document["supported_grasps"].to_string();
    assert!(grasps.contains("GRASP-05"), "{grasps}");
    assert_eq!(service.get("/metrics").await.unwrap().status, 404);
    assert!(service.directory().join("here/relay/data.mdb").is_file());
    assert!(service.directory().join("here/git").is_dir());

    let mut client = Client::connect(&service).await;
    let announce = |identifier: &str, owner: &Keys| {
        crate::support::events::announcement(&service, owner, identifier).sign(owner)
    };
    client.publish(&announce("wanted", &chosen)).await.waits();
    for (identifier, owner, reason) in [
        ("wanted", &banned, "of this author"),
        ("unwanted", &chosen, "not taken here"),
        ("wanted", &other, "chosen by the operator"),
    ] {
        let said = client
            .publish(&announce(identifier, owner))
            .await
            .rejected();
        assert!(said.contains(reason), "{said}");
    }
    let long = issue("30617:x:y").content("x".repeat(71_000)).sign(&other);
    assert!(client.publish(&long).await.rejected().contains("70000"));
    let _second = Client::connect(&service).await;
    assert!(Client::try_connect(service.port).await.is_none());
}

/// All events that a service has, one to a line.
async fn lines_of(client: &mut Client) -> (Vec<Event>, String) {
    let events = client.query(json!({})).await;
    let lines = events.iter().map(|event| event.as_json() + "\n");
    let lines = lines.collect();
    (events, lines)
}

/// Another server's repositories in the data directory of `to`: full, and thin with what it shares in
/// `.grasp/`.
async fn copy_repository(from: &Service, to: &Service, project: &Project, is_thin: bool) {
    let url = project.url(from);
    let place = to.repository_directory(&project.owner, &project.identifier);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let mirror = |target: &Path| {
        let target = target.to_str().unwrap().to_owned();
        let url = url.clone();
        async move {
            let arguments = ["clone", "-q", "--mirror", &url, &target];
            git::run(&std::env::temp_dir(), &arguments).await.good();
        }
    };
    mirror(&place).await;
    if is_thin {
        let store = to.git_data().join(".grasp/shared.git");
        mirror(&store).await;
        fs::remove_dir_all(place.join("objects/pack")).unwrap();
        fs::create_dir(place.join("objects/pack")).unwrap();
        let alternates = "../../../.grasp/shared.git/objects\n";
        fs::write(place.join("objects/info/alternates"), alternates).unwrap();
    }
}

#[tokio::test]
async fn repositories_are_served_where_they_lie_once_the_events_are_brought_over() {
    let [mut old, mut new] = Service::prepare_several(&[]).await;
    old.run().await;
    let mut client = Client::connect(&old).await;
    let full = Project::active(&old, &mut client, "full").await;
    let thin = Project::active(&old, &mut client, "thin").await;
    let author = Keys::generate();
    let root = issue(&full.coordinate()).sign(&author);
    let mut chain = vec![root];
    for _ in 0..4 {
        let before = chain.last().unwrap().id.to_hex();
        chain.push(Draft::new(1111).tag(["E", &before]).sign(&author));
    }
    let gone = issue(&thin.coordinate()).sign(&author);
    for event in chain.iter().chain([&gone]) {
        client.publish(event).await.served();
    }
    let goes = deletion(&[&gone]).sign(&author);
    client.publish(&goes).await.served();
    let tip = thin.repo.oid("main").await;
    let request = pull_request(&thin.coordinate(), &tip).sign(&author);
    client.publish(&request).await.served();
    let (events, lines) = lines_of(&mut client).await;

    // The new one has the old one's name, disk and environment.
    new.set("NGIT_DOMAIN", &old.domain());
    copy_repository(&old, &new, &full, false).await;
    copy_repository(&old, &new, &thin, true).await;
    let nobody = run(&new, &["import", "nowhere.jsonl"]).await;
    assert!(text(&nobody.stderr).contains("no service"), "{nobody:?}");
    new.run().await;
    let file = new.directory().join("events.jsonl");
    let mut forged: Value = serde_json::from_str(&chain[0].as_json()).unwrap();
    forged["content"] = "changed".into();
    fs::write(&file, format!("{lines}\nno event\n{forged}\n")).unwrap();
    let file = file.to_str().unwrap();
    let report = import(&new, &["--dry-run", file]).await;
    assert_eq!(report["read"], events.len() + 2);
    assert_eq!(report["rejected"].as_object().unwrap().len(), 2, "{report}");
    let mut client = Client::connect(&new).await;
    assert!(client.query(json!({})).await.is_empty());

    let from = format!("ws://localhost:{}", old.port);
    let report = import(&new, &[&from]).await;
    assert_eq!(report["read"], events.len(), "{report}");
    assert_eq!(report["rejected"], json!({}), "{report}");
    assert_eq!(report["accepted"], events.len(), "{report}");
    assert_eq!(report["waiting"], 0, "{report}");
    for event in &events {
        assert!(client.serves(event).await, "{} {event:?}", new.log());
    }
    client.publish(&gone).await.rejected();
    for project in [&full, &thin] {
        assert_eq!(
            project.remote_refs(&new).await,
            project.remote_refs(&old).await
        );
        let (_clone, out) = Repo::clone(&project.url(&new), &[]).await;
        out.good();
        project.repo.commit().await;
        project.update(&new, &mut client, &["main"]).await;
    }
    let name = format!("refs/nostr/{}", request.id.to_hex());
    assert_eq!(
        thin.remote_ref(&new, &name).await.as_deref(),
        Some(tip.as_str())
    );
    // Again, from the file: later states stay, forgeries stay out.
    let report = import(&new, &[file]).await;
    assert_eq!(
        (&report["accepted"], &report["waiting"]),
        (&json!(0), &json!(0)),
        "{report}"
    );
    let rejected = report["rejected"].to_string();
    for reason in ["not an event", "the id is not"] {
        assert!(rejected.contains(reason), "{rejected}");
    }

    // A backup has what the thin ones borrow, too.
    let backup = new.directory().join("backup");
    let backup = backup.to_str().unwrap();
    let out = run(&new, &["backup", backup]).await;
    assert!(out.status.success(), "{}", text(&out.stderr));
    new.terminate();
    new.ended().await;
    for name in ["git", "relay"] {
        fs::remove_dir_all(new.directory().join(name)).unwrap();
    }
    let out = run(&new, &["restore", backup]).await;
    assert!(out.status.success(), "{}", text(&out.stderr));
    new.run().await;
    let mut client = Client::connect(&new).await;
    for project in [&full, &thin] {
        let (clone, out) = Repo::clone(&project.url(&new), &[]).await;
        out.good();
        clone.git(&["fsck", "--strict"]).await.good();
        assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
        project.repo.commit().await;
        project.update(&new, &mut client, &["main"]).await;
    }
    assert_eq!(
        thin.remote_ref(&new, &name).await.as_deref(),
        Some(tip.as_str())
    );
}

#[tokio::test]
async fn a_database_of_another_kind_stops_the_start_and_is_left_as_it_is() {
    let service = Service::prepare(&[]).await;
    let directory = service.directory().join("relay");
    fs::create_dir(&directory).unwrap();
    let database = directory.join("data.mdb");
    fs::write(&database, [7; 8192]).unwrap();
    let out = run(&service, &["serve"]).await;
    assert!(!out.status.success());
    let said = text(&out.stderr);
    for word in [
        "NGIT_RELAY_DATA_PATH",
        directory.to_str().unwrap(),
        "graspd import",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(fs::read(&database).unwrap(), [7; 8192]);
    assert!(!directory.join("lock.mdb").exists());
}

#[tokio::test]
async fn what_is_on_a_blacklist_is_not_served_past_the_relay_either() {
    let mut service = Service::prepare(&[]).await;
    let port = crate::support::service::free_port();
    let list = service.directory().join("list");
    fs::write(&list, "").unwrap();
    service.set(
        "NGIT_GITD_HTTP_ADDRESS",
        &format!("http://127.0.0.1:{port}"),
    );
    service.set("NGIT_REPOSITORY_BLACKLIST", list.to_str().unwrap());
    service.run().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "unwanted").await;
    let path = Service::repository_path(&project.owner, &project.identifier);
    let path = &format!("{path}/info/refs?service=git-upload-pack");
    let status = || async move {
        let request = web::request("GET", port, path, &[]);
        web::fetch(port, request).await.unwrap().status
    };
    assert_eq!(status().await, 200);
    for (entry, expected) in [("unwanted\n", 404), ("other\n", 200)] {
        fs::write(&list, entry).unwrap();
        crate::support::processes::send(service.pid(), rustix::process::Signal::HUP);
        until(
            "gitd was told",
            || async move { status().await == expected },
        )
        .await;
    }
    fs::write(&list, "unwanted\n").unwrap();
    service.restart().await;
    until("gitd was told", || async move { status().await == 404 }).await;
}

#[tokio::test]
async fn what_another_server_left_beside_its_events_is_taken_in_once() {
    let [mut old, mut new] = Service::prepare_several(&[]).await;
    old.run().await;
    let mut client = Client::connect(&old).await;
    let project = Project::active(&old, &mut client, "kept").await;
    let author = Keys::generate();
    let gone = issue(&project.coordinate()).sign(&author);
    client.publish(&gone).await.served();
    client
        .publish(&deletion(&[&gone]).sign(&author))
        .await
        .served();
    old.terminate();
    old.ended().await;

    // Its requests, what waited, what it held and packed.
    new.set("NGIT_DOMAIN", &old.domain());
    let relay = new.directory().join("relay");
    for name in ["tombstones", "holding"] {
        fs::create_dir_all(relay.join(name)).unwrap();
        let from = old.directory().join("relay/data.mdb");
        fs::copy(from, relay.join(name).join("data.mdb")).unwrap();
    }
    fs::create_dir_all(new.git_data().join(".archive/npub1x")).unwrap();
    let waiting = Project::new("waiting").await;
    let announcement = waiting.announcement(&old).sign(&waiting.owner);
    let state = waiting.state().await.sign(&waiting.owner);
    let saved = json!({
        "version": 1,
        "saved_at": {"secs_since_epoch": 1, "nanos_since_epoch": 0},
        "announcement_purgatory": {"x": {"event": announcement, "identifier": "waiting"}},
        "state_events": {"waiting": [{"event": state, "identifier": "waiting"}]},
        "pr_events": {"00": {"event": null, "commit": "00"}},
        "expired_events": {},
    });
    fs::write(
        new.git_data().join("purgatory-state.json"),
        saved.to_string(),
    )
    .unwrap();
    new.run().await;
    let log = new.log();
    for said in [
        "requests to delete that ngit-grasp acted on are taken in",
        "what waited in the purgatory of ngit-grasp is taken in",
        "deleted events that ngit-grasp held are not taken over",
        "deleted repositories that ngit-grasp packed are not taken over",
    ] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
    let mut client = Client::connect(&new).await;
    for event in [&announcement, &state] {
        let said = client.publish(event).await.message;
        assert!(said.contains("duplicate"), "{said}");
    }
    waiting.push(&new, &["main"]).await.good();
    assert!(client.serves(&state).await);
    let active = project.announcement(&old).sign(&project.owner);
    client.publish(&active).await.waits();
    let said = client.publish(&gone).await.rejected();
    assert!(said.contains("deleted"), "{said}");

    new.restart().await;
    assert_eq!(new.log().matches("that ngit-grasp acted on").count(), 1);
}
