//! The operator's choice: blacklists, whitelist and archive, from settings and from files.

use std::{fs, process::Output};

use nostr::ToBech32;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    Client, Draft, Event, Keys, Project, Repo, Service,
    events::{elsewhere, issue, pull_request},
    processes, until, web,
};

const BANNED: &str = "blocked: events of this author are not taken here";
const BLOCKED: &str = "blocked: this repository is not taken here";
const NOT_CHOSEN: &str = "blocked: only repositories chosen by the operator are taken here";

fn npub(keys: &Keys) -> String {
    keys.public_key().to_bech32().unwrap()
}

async fn nip11(service: &Service) -> Value {
    let accept = [("Accept", "application/nostr+json")];
    let request = web::request("GET", service.port, "/", &accept);
    let answer = service.fetch(request).await.unwrap();
    serde_json::from_slice(&answer.body).unwrap()
}

async fn start_fails(service: &Service, settings: &[(&str, &str)]) -> String {
    let mut command = service.command(&["serve"]);
    command.envs(settings.iter().copied());
    let command = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output();
    let out: Output = crate::support::soon("the start ends", command)
        .await
        .unwrap();
    assert!(!out.status.success(), "it started with {settings:?}");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Whether none of git's ways in knows the repository.
async fn is_gone(service: &Service, project: &Project) -> bool {
    let path = Service::repository_path(&project.owner, &project.identifier);
    for rest in [
        "",
        "/info/refs?service=git-upload-pack",
        "/info/refs?service=git-receive-pack",
    ] {
        let answer = service.get(&format!("{path}{rest}")).await.unwrap();
        if answer.status != 404 {
            return false;
        }
    }
    let (_, out) = Repo::clone(&project.url(service), &[]).await;
    let push = project.push(service, &["main"]).await;
    !out.ok && !push.ok && push.stderr.contains("not found")
}

#[tokio::test]
async fn a_bad_or_contradictory_list_stops_the_start_with_what_to_change() {
    let service = Service::prepare(&[]).await;
    let mut broken = npub(&Keys::generate());
    broken.pop();
    for list in [
        "NGIT_EVENT_BLACKLIST",
        "NGIT_REPOSITORY_BLACKLIST",
        "NGIT_REPOSITORY_WHITELIST",
        "NGIT_ARCHIVE_WHITELIST",
    ] {
        let value = format!("{},{broken}", npub(&Keys::generate()));
        let said = start_fails(&service, &[(list, &value)]).await;
        for word in [list, &broken, "npub1…"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    for (settings, words) in [
        (
            [
                ("NGIT_REPOSITORY_WHITELIST", "a,b"),
                ("NGIT_REPOSITORY_BLACKLIST", "b"),
            ],
            ["NGIT_REPOSITORY_BLACKLIST", "take it from one"],
        ),
        (
            [
                ("NGIT_ARCHIVE_ALL", "true"),
                ("NGIT_ARCHIVE_WHITELIST", "b"),
            ],
            ["NGIT_ARCHIVE_ALL", "unset"],
        ),
        (
            [("NGIT_ARCHIVE_READ_ONLY", "true"), ("NGIT_WORKERS", "1")],
            ["NGIT_ARCHIVE_ALL", "nothing is archived"],
        ),
    ] {
        let said = start_fails(&service, &settings).await;
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

#[tokio::test]
async fn blacklisted_repositories_are_out_of_service_until_they_are_taken_off() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let bad = Project::active(&service, &mut client, "unwanted").await;
    let good = Project::active(&service, &mut client, "good").await;
    let author = Keys::generate();
    let about = issue(&bad.coordinate()).sign(&author);
    let both = issue(&bad.coordinate())
        .tag(["a", &good.coordinate()])
        .sign(&author);
    client.publish(&about).await.served();
    client.publish(&both).await.served();
    let theirs = json!({"authors": [bad.owner.public_key().to_hex()]});
    let before = client.query(theirs.clone()).await;
    assert_eq!(before.len(), 2);

    let name = format!("{}/unwanted", npub(&bad.owner));
    for (list, value, why) in [
        ("NGIT_REPOSITORY_BLACKLIST", name.as_str(), BLOCKED),
        ("NGIT_EVENT_BLACKLIST", &npub(&bad.owner), BANNED),
    ] {
        service.set(list, value);
        service.restart().await;
        let mut client = Client::connect(&service).await;
        assert!(client.query(theirs.clone()).await.is_empty(), "{list}");
        let (of_bad, of_good) = (client.serves(&about).await, client.serves(&both).await);
        assert!(!of_bad && of_good, "{list}");
        assert!(is_gone(&service, &bad).await, "{list}");
        assert!(good.hosted(&service).await);
        let again = bad.announcement(&service).sign(&bad.owner);
        client.publish(&again).await.rejected_as(why);
        let state = bad.state().await.sign(&bad.owner);
        client.publish(&state).await.rejected_as(why);
        client
            .publish(&issue(&bad.coordinate()).sign(&author))
            .await
            .rejected();
        let document = nip11(&service).await;
        assert!(document.get("curation").is_none(), "{document}");
        let said = document.to_string();
        let names = [npub(&bad.owner), "unwanted".to_owned()];
        assert!(!names.iter().any(|name| said.contains(name)), "{said}");
        service.set(list, "");
    }
    service.restart().await;
    let mut client = Client::connect(&service).await;
    let mut after = client.query(theirs).await;
    after.sort_by_key(|event| event.id);
    let mut before = before;
    before.sort_by_key(|event| event.id);
    assert_eq!(after, before);
    assert!(client.serves(&about).await);
    assert_eq!(bad.remote_refs(&service).await, bad.repo.refs().await);
    bad.repo.commit().await;
    bad.update(&service, &mut client, &["main"]).await;
}

#[tokio::test]
async fn only_what_is_on_the_whitelist_is_hosted_and_what_is_hosted_stays() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let old = Project::active(&service, &mut client, "old").await;
    let owner = Keys::generate();
    let list = format!("{}, chosen", npub(&owner));
    service.set("NGIT_REPOSITORY_WHITELIST", &list);
    service.restart().await;
    let mut client = Client::connect(&service).await;
    old.repo.commit().await;
    old.update(&service, &mut client, &["main"]).await;
    let stranger = Project::new("other").await;
    let refused = stranger.announcement(&service).sign(&stranger.owner);
    client.publish(&refused).await.rejected_as(NOT_CHOSEN);
    assert!(!stranger.hosted(&service).await);
    Project::active(&service, &mut client, "chosen").await;
    let mut own = Project::new("whatever").await;
    own.owner = owner;
    let announcement = own.announcement(&service).sign(&own.owner);
    client.publish(&announcement).await.waits();
    let document = nip11(&service).await;
    let said = document["curation"].as_str().unwrap();
    assert!(said.contains("chosen by the operator"), "{said}");
    let criteria = document["repo_acceptance_criteria"].as_str().unwrap();
    assert!(criteria.contains("chosen by the operator"), "{criteria}");
    assert_eq!(
        document["supported_grasps"],
        json!(["GRASP-01", "GRASP-02"])
    );
}

#[tokio::test]
async fn lists_that_are_files_are_read_again_on_sighup_and_no_connection_is_dropped() {
    let mut service = Service::prepare(&[]).await;
    let path = service.directory().join("blacklist");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("# nobody yet\n");
    service.set("NGIT_REPOSITORY_BLACKLIST", "./blacklist");
    service.run().await;
    let mut client = Client::connect(&service).await;
    let bad = Project::active(&service, &mut client, "unwanted").await;
    let good = Project::active(&service, &mut client, "good").await;
    let about = issue(&bad.coordinate()).sign(&Keys::generate());
    client.publish(&about).await.served();
    let (live, _) = client
        .subscribe(json!({"kinds": [1621], "#a": [good.coordinate()]}))
        .await;
    let hang_up = || processes::send(service.pid(), Signal::HUP);

    write(&format!("{}/unwanted # spam\n", npub(&bad.owner)));
    hang_up();
    until("it is out of service", || is_gone(&service, &bad)).await;
    until("its issue is, too", || async {
        !Client::connect(&service).await.serves(&about).await
    })
    .await;
    // The connection from before is the same, and so is its subscription.
    let said = issue(&good.coordinate()).sign(&Keys::generate());
    client.publish(&said).await.served();
    assert_eq!(client.live(&live).await.id, said.id);

    write("npub1nonsense\n");
    hang_up();
    until("the bad file is said", || async {
        let log = service.log();
        let told = |line: &str| line.contains("WARN") && line.contains("npub1nonsense");
        log.lines().any(told)
    })
    .await;
    assert!(is_gone(&service, &bad).await, "the old list stays in force");

    write("");
    hang_up();
    until("it is back", || bad.hosted(&service)).await;
    until("its issue is, too", || async {
        Client::connect(&service).await.serves(&about).await
    })
    .await;
    bad.repo.commit().await;
    bad.update(&service, &mut client, &["main"]).await;
}

#[tokio::test]
async fn a_banned_authors_pull_request_leaves_and_comes_back_with_its_ref() {
    let mut service = Service::prepare(&[]).await;
    let path = service.directory().join("banned");
    fs::write(&path, "").unwrap();
    service.set("NGIT_EVENT_BLACKLIST", path.to_str().unwrap());
    service.run().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "visited").await;
    let [banned, other] = std::array::from_fn(|_| Keys::generate());
    let tip = project.repo.oid("main").await;
    let theirs = pull_request(&project.coordinate(), &tip).sign(&banned);
    let others = pull_request(&project.coordinate(), &tip).sign(&other);
    let comment = Draft::new(1111)
        .tag(["E", &theirs.id.to_hex()])
        .sign(&other);
    for event in [&theirs, &others, &comment] {
        client.publish(event).await.served();
    }
    let name = |event: &Event| format!("refs/nostr/{}", event.id.to_hex());
    let (gone, kept) = (name(&theirs), name(&others));
    let is_here = async |service: &Service, name: &str| {
        project.remote_ref(service, name).await.as_deref() == Some(tip.as_str())
    };
    assert!(is_here(&service, &gone).await && is_here(&service, &kept).await);

    fs::write(&path, format!("{}\n", npub(&banned))).unwrap();
    processes::send(service.pid(), Signal::HUP);
    until("the ref has gone", || async {
        !is_here(&service, &gone).await
    })
    .await;
    assert!(is_here(&service, &kept).await && client.serves(&others).await);
    assert!(!client.serves(&theirs).await && !client.serves(&comment).await);
    // Taken off the list while nothing runs that could see it.
    service.kill();
    fs::write(&path, "").unwrap();
    service.run().await;
    let mut client = Client::connect(&service).await;
    assert!(is_here(&service, &gone).await && is_here(&service, &kept).await);
    for event in [&theirs, &others, &comment] {
        assert!(client.serves(event).await);
    }
}

#[tokio::test]
async fn a_service_archives_another_and_takes_no_pushes_to_it() {
    let eager = [
        ("NGIT_SYNC_STARTUP_DELAY_SECS", "0"),
        ("NGIT_SYNC_STARTUP_JITTER_MS", "0"),
        ("NGIT_SYNC_BASE_BACKOFF_SECS", "1"),
        ("NGIT_SYNC_MAX_BACKOFF_SECS", "2"),
    ];
    let [mut origin, mut archive] = Service::prepare_several::<2>(&eager).await;
    archive.set(
        "NGIT_ARCHIVE_GRASP_SERVICES",
        &origin.domain().to_uppercase(),
    );
    let relay = format!("ws://{}", origin.domain());
    archive.set("NGIT_SYNC_BOOTSTRAP_RELAY_URL", &relay);
    origin.run().await;
    archive.run().await;
    let document = nip11(&archive).await;
    let grasps = json!(["GRASP-01", "GRASP-02", "GRASP-05"]);
    assert_eq!(document["supported_grasps"], grasps);
    let curation = document["curation"].as_str().unwrap();
    assert!(
        curation.contains("GRASP-05") && curation.contains("read-only"),
        "{curation}"
    );
    assert!(curation.contains(&origin.domain()), "{curation}");

    let mut client = Client::connect(&origin).await;
    let project = Project::active(&origin, &mut client, "kept").await;
    let about = issue(&project.coordinate()).sign(&Keys::generate());
    client.publish(&about).await.served();
    let is_same = |refs: Vec<(String, String)>, own| refs == own;
    until("its data is archived", || async {
        project.hosted(&archive).await
            && is_same(
                project.remote_refs(&archive).await,
                project.repo.refs().await,
            )
    })
    .await;
    until("what is said about it, too", || async {
        Client::connect(&archive).await.serves(&about).await
    })
    .await;

    // A newer state waits here, and a push for it is refused all the same.
    project.repo.commit().await;
    let refused = project.push(&archive, &["main"]).await.refused();
    assert!(refused.contains("archived here and read-only"), "{refused}");
    project.update(&origin, &mut client, &["main"]).await;
    until("the newer data is archived", || async {
        is_same(
            project.remote_refs(&archive).await,
            project.repo.refs().await,
        )
    })
    .await;
    // One that lists neither is not archived, and one that lists the archive is hosted.
    let mut client = Client::connect(&archive).await;
    let other = elsewhere("other").sign(&Keys::generate());
    let why = client.publish(&other).await.rejected();
    assert!(why.contains("archived here"), "{why}");
    Project::active(&archive, &mut client, "hosted").await;
}

#[tokio::test]
async fn an_archive_of_everything_hunts_for_what_lists_others_alone() {
    let mut service = Service::prepare(&[("NGIT_ARCHIVE_ALL", "true")]).await;
    service.set("NGIT_SYNC_DEFAULT_DELAY_SECS", "0");
    service.run().await;
    let host = crate::support::host::Host::start().await;
    let project = Project::new("anywhere").await;
    let url = host.hold("anywhere", &project.repo, &["main"]).await;
    let mut client = Client::connect(&service).await;
    let announcement = elsewhere("anywhere")
        .without("clone")
        .tag(["clone", &url])
        .sign(&project.owner);
    client.publish(&announcement).await.waits();
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    until("it is hunted for and served", || async {
        let mut client = Client::connect(&service).await;
        client.serves(&announcement).await && client.serves(&state).await
    })
    .await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
    let why = project
        .push(&service, &["main:refs/heads/x"])
        .await
        .refused();
    assert!(why.contains("read-only"), "{why}");
    let curation = nip11(&service).await["curation"].to_string();
    assert!(curation.contains("all other repositories"), "{curation}");
}

#[tokio::test]
async fn a_hangup_ends_no_process_however_early_it_comes() {
    let mut service = Service::prepare(&[]).await;
    service.start_as(&["serve"]);
    until("gitd is being started", || async {
        service.gitd().is_some()
    })
    .await;
    processes::send(service.pid(), Signal::HUP);
    service.ready().await;
    let gitd = service.gitd().unwrap();
    for pid in [service.pid(), gitd] {
        processes::send(pid, Signal::HUP);
    }
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "x").await;
    assert!(service.gitd() == Some(gitd) && service.log().contains("SIGHUP"));
}
