//! Data that another server, or an earlier run, has left.

use std::{fs, path::PathBuf};

use crate::support::{Client, Event, Project, Repo, Service, git, processes};

/// A service whose store knows an active project, and whose git data is nothing but a plain bare
/// repository, as another server would have made it. It is stopped.
async fn inherited(identifier: &str) -> (Service, Project, Event) {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, identifier).await;
    project.repo.commit().await;
    project.repo.git(&["branch", "other"]).await.good();
    project
        .repo
        .git(&["tag", "-a", "-m", "tag", "v1"])
        .await
        .good();
    let state = project
        .update(&service, &mut client, &["main", "other", "v1"])
        .await;
    service.terminate();
    service.ended().await;

    fs::remove_dir_all(service.git_data()).unwrap();
    let directory = service.repository_directory(&project.owner, identifier);
    fs::create_dir_all(directory.parent().unwrap()).unwrap();
    let from = project.repo.path();
    let name = directory.to_str().unwrap();
    let clone = [
        "clone",
        "-q",
        "--bare",
        "--no-local",
        from.to_str().unwrap(),
        name,
    ];
    git::run(service.directory(), &clone).await.good();
    git::run(&directory, &["remote", "remove", "origin"])
        .await
        .good();
    (service, project, state)
}

fn contents(files: &[PathBuf]) -> Vec<Vec<u8>> {
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[tokio::test]
async fn a_plain_repository_is_served_as_it_lies_there() {
    let (mut service, project, state) = inherited("plain").await;
    let directory = service.repository_directory(&project.owner, "plain");
    let mut files = processes::files(&directory);
    let before = contents(&files);
    service.run().await;
    let mut client = Client::connect(&service).await;
    assert!(client.serves(&state).await);
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
    for version in ["0", "2"] {
        let setting = format!("protocol.version={version}");
        let (clone, out) = Repo::clone(&project.url(&service), &["-c", &setting, "clone"]).await;
        out.good();
        assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
        assert_eq!(clone.oid("v1").await, project.repo.oid("v1").await);
    }
    assert!(files.iter().all(|file| file.is_file()), "files went away");
    // Once its objects have been asked for, its settings are ours, and its own are kept.
    let former = directory.join("config.before-adoption");
    if former.exists() {
        let config = files
            .iter_mut()
            .find(|file| **file == directory.join("config"));
        *config.unwrap() = former;
    }
    assert!(contents(&files) == before, "files were changed");
}

#[tokio::test]
async fn a_plain_repository_can_be_pushed_to_after_a_new_state() {
    let (mut service, project, _) = inherited("adopted").await;
    service.run().await;
    let mut client = Client::connect(&service).await;
    let (clone, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    project.repo.commit().await;
    project.update(&service, &mut client, &["main"]).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
    clone.git(&["fetch", "-q"]).await.good();
    assert_eq!(
        clone.oid("origin/main").await,
        project.repo.oid("main").await
    );
    let directory = service.repository_directory(&project.owner, "adopted");
    let fsck = git::run(&directory, &["fsck", "--connectivity-only"]).await;
    assert!(fsck.ok, "{}", fsck.stderr);

    service.restart().await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_state_about_the_old_objects_is_applied_at_once() {
    let (mut service, project, _) = inherited("old-objects").await;
    service.run().await;
    let mut client = Client::connect(&service).await;
    let before = project.repo.oid("main~1").await;
    let draft = crate::support::events::state("old-objects", &[("refs/heads/main", &before)]);
    let state = draft.sign(&project.owner);
    client.publish(&state).await.served();
    assert_eq!(
        project.remote_ref(&service, "refs/heads/main").await,
        Some(before)
    );
}

#[tokio::test]
async fn a_co_owner_finds_the_old_objects_too() {
    let (mut service, project, _) = inherited("co-owner").await;
    service.run().await;
    let mut client = Client::connect(&service).await;
    let fork = crate::support::Keys::generate();
    let draft = crate::support::events::announcement(&service, &fork, "co-owner");
    client.publish(&draft.sign(&fork)).await.waits();
    project.repo.commit().await;
    let state = project.state().await.sign(&fork);
    client.publish(&state).await.waits();
    project
        .repo
        .push(&service.url(&fork, "co-owner"), &["main", "other", "v1"])
        .await
        .good();
    let refs = git::remote_refs(&service.url(&fork, "co-owner")).await;
    assert_eq!(refs, project.repo.refs().await);
}

#[tokio::test]
async fn a_stop_and_a_start_change_nothing() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let active = Project::active(&service, &mut client, "active").await;
    let waiting = Project::announced(&service, &mut client, "waiting").await;
    let state = waiting.state().await.sign(&waiting.owner);
    client.publish(&state).await.waits();
    service.restart().await;

    let mut client = Client::connect(&service).await;
    assert_eq!(active.remote_refs(&service).await, active.repo.refs().await);
    let again = client.publish(&state).await;
    assert_eq!(
        (again.accepted, again.message.as_str()),
        (true, "duplicate: in purgatory")
    );
    assert!(!client.serves(&state).await);
    waiting.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
    active.repo.commit().await;
    active.update(&service, &mut client, &["main"]).await;
}
