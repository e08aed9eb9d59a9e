//! The operator's commands against a running service, and what readiness says.

use std::{fs, process::Output};

use serde_json::Value;

use crate::support::{
    Client, Keys, Project, Repo, Service,
    events::{deletion_of, elsewhere},
    git, processes, until,
};

async fn graspd(service: &Service, arguments: &[&str]) -> Output {
    let mut command = service.command(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    output.await.unwrap()
}

/// What a command that succeeds prints, as JSON.
async fn told(service: &Service, arguments: &[&str]) -> Value {
    let output = graspd(service, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// How a command failed: its exit code and its words.
async fn failed(service: &Service, arguments: &[&str]) -> (i32, String) {
    let output = graspd(service, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

fn standing<'a>(listed: &'a Value, project: &Project) -> &'a Value {
    let coordinate = project.coordinate();
    let all = listed["repositories"].as_array().unwrap();
    all.iter()
        .find(|one| one["coordinate"] == coordinate)
        .unwrap_or_else(|| panic!("{coordinate} is not listed: {listed}"))
}

#[tokio::test]
async fn repositories_are_listed_and_empty_ones_that_nobody_wants_go() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let active = Project::active(&service, &mut client, "active").await;
    let waiting = Project::announced(&service, &mut client, "waiting").await;
    let state = waiting.state().await.sign(&waiting.owner);
    client.publish(&state).await.waits();
    // As another server leaves them, without anything in them.
    let stranger = Keys::generate();
    let left = service.repository_directory(&stranger, "left");
    fs::create_dir_all(left.parent().unwrap()).unwrap();
    let path = left.to_str().unwrap();
    let init = ["init", "-q", "--bare", "--template=", path];
    git::run(service.directory(), &init).await.good();

    let listed = told(&service, &["repos", "--json"]).await;
    let one = standing(&listed, &active);
    assert_eq!(
        (&one["standing"], &one["git"]["refs"]),
        (&"active".into(), &1.into())
    );
    assert!(one["git"]["pool_bytes"].as_u64().unwrap() > 0);
    let one = standing(&listed, &waiting);
    assert_eq!(
        (&one["standing"], &one["states_waiting"]),
        (&"waiting".into(), &1.into())
    );
    assert!(one["expires_millis"].as_u64().unwrap() > 0);
    assert_eq!(listed["repositories"].as_array().unwrap().len(), 3);
    let npub = one["npub"].as_str().unwrap();
    let of_owner = told(&service, &["repos", "--json", "--owner", npub]).await;
    assert_eq!(of_owner["repositories"].as_array().unwrap().len(), 1);
    let text = graspd(&service, &["repos"]).await;
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("unannounced") && text.contains("3 repositories, 3 on disk"),
        "{text}"
    );

    let would = told(&service, &["cleanup-empty-repos", "--dry-run", "--json"]).await;
    assert_eq!((&would["gone"], &would["left"]), (&1.into(), &1.into()));
    assert!(left.is_dir());
    let done = told(&service, &["cleanup-empty-repos", "--json"]).await;
    assert_eq!((&done["gone"], &done["left"]), (&1.into(), &1.into()));
    assert!(!left.exists());
    // What waits has not been touched.
    waiting.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn what_is_held_is_listed_brought_back_and_thrown_away() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "held").await;
    let (refs, coordinate) = (project.remote_refs(&service).await, project.coordinate());
    assert_eq!(
        told(&service, &["holding", "--json"]).await["held"],
        Value::Array(Vec::new())
    );

    // Its owner goes elsewhere.
    let gone = elsewhere(&project.identifier);
    client.publish(&gone.sign(&project.owner)).await.rejected();
    let listed = told(&service, &["holding", "list", "--json"]).await;
    let one = &listed["held"][0];
    assert_eq!(
        (&one["coordinate"], &one["reason"], &one["events"]),
        (&coordinate.as_str().into(), &"moved away".into(), &2.into())
    );
    let aside = || async {
        let listed = told(&service, &["holding", "--json"]).await;
        listed["held"][0]["git_bytes"].as_u64() > Some(0)
    };
    until("its git data is moved aside", aside).await;
    let would = ["holding", "restore", &coordinate, "--dry-run", "--json"];
    assert_eq!(told(&service, &would).await["events_back"], 2);
    assert!(!project.hosted(&service).await);
    let done = told(&service, &["holding", "restore", &coordinate, "--json"]).await;
    assert_eq!(done["served"], true, "{done}");
    until("everything is back", || async {
        project.hosted(&service).await && project.remote_refs(&service).await == refs
    })
    .await;

    // Its author does not want it any more, which an operator does not undo.
    let request = deletion_of(&coordinate).sign(&project.owner);
    client.publish(&request).await.served();
    let restore = ["holding", "restore", &coordinate];
    let (code, said) = failed(&service, &restore).await;
    assert!(code == 1 && said.contains("request to delete"), "{said}");
    let would = ["holding", "eject", &coordinate, "--dry-run", "--json"];
    assert_eq!(told(&service, &would).await["held"][0]["reason"], "deleted");
    let eject = ["holding", "eject", &coordinate];
    assert!(graspd(&service, &eject).await.status.success());
    let listed = graspd(&service, &["holding"]).await.stdout;
    assert_eq!(String::from_utf8_lossy(&listed), "nothing is held\n");
    let again = project.announcement(&service);
    client.publish(&again.sign(&project.owner)).await.waits();
}

#[tokio::test]
async fn what_cannot_be_done_is_said_and_shown_by_the_exit_code() {
    let mut service = Service::start().await;
    for bad in [
        &["repos", "--owner", "nobody"][..],
        &["holding", "restore", "x"],
        &["holding", "eject", "30617:00:x"],
        &["cleanup-empty-repos", "--now"],
        &["backup"],
    ] {
        let (code, said) = failed(&service, bad).await;
        assert_eq!(code, 2, "{bad:?}: {said}");
        assert!(!said.trim().is_empty());
    }
    service.terminate();
    service.ended().await;
    for command in [
        &["repos"][..],
        &["holding"],
        &["cleanup-empty-repos"],
        &["backup", "elsewhere"],
    ] {
        let (code, said) = failed(&service, command).await;
        assert_eq!(code, 1, "{command:?}: {said}");
        assert!(said.contains("no service"), "{said}");
    }
}

#[tokio::test]
async fn readiness_tells_of_a_storage_that_is_lost_and_of_one_that_is_back() {
    let mut service = Service::start().await;
    let gitd = service.gitd().unwrap();
    let health = async |service: &Service| graspd(service, &["health"]).await.status.success();
    assert!(health(&service).await);
    // Stopped, not ended: nobody starts another in its place.
    processes::send(gitd, rustix::process::Signal::STOP);
    let own = &service;
    let is_lost = async || {
        own.get("/readyz")
            .await
            .is_ok_and(|answer| answer.status == 503)
    };
    until("a storage that does not answer is told", is_lost).await;
    assert!(!health(&service).await);
    processes::send(gitd, rustix::process::Signal::CONT);
    service.ready().await;
    assert!(health(&service).await);
}

#[tokio::test]
async fn what_was_pushed_away_leaves_the_disk_at_a_word() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "purged").await;
    let secret = project.repo.commit_file("password", b"swordfish\n").await;
    project.update(&service, &mut client, &["main"]).await;
    let view = service.repository_directory(&project.owner, "purged");
    let has = async |oid: &str| git::run(&view, &["cat-file", "-e", oid]).await.ok;
    // All of it is reachable.
    let nothing = told(&service, &["purge", "purged", "--json"]).await;
    assert_eq!(nothing["purged"][0]["bytes"], 0, "{nothing}");
    assert!(has(&secret).await);
    let reset = async |to: &str| {
        project
            .repo
            .git(&["reset", "-q", "--hard", to])
            .await
            .good()
    };
    reset("HEAD~1").await;
    let back = project.state().await.sign(&project.owner);
    client.publish(&back).await.served();
    assert!(has(&secret).await);
    let gone = told(&service, &["purge", "--all", "--json"]).await;
    assert_eq!(gone["purged"][0]["identifier"], "purged");
    assert!(gone["purged"][0]["bytes"].as_u64().unwrap() > 0, "{gone}");
    assert!(!has(&secret).await);
    let (_, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    // The owner goes on, and may have it again.
    reset(&secret).await;
    project.update(&service, &mut client, &["main"]).await;
    assert!(has(&secret).await);
    let (code, said) = failed(&service, &["purge"]).await;
    assert!(code == 2 && said.contains("IDENTIFIER"), "{said}");
}
