//! The operator's commands against a running service, and what readiness says.

use std::{fs, process::Output};

use serde_json::Value;

use crate::support::{Client, Keys, Project, Service, git, processes, until};

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
