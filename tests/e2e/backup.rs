//! A backup while pushes go on, and a new service from it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::{Value, json};

use crate::support::{Client, Event, Keys, Project, Service, events, git, processes};

async fn graspd(service: &Service, arguments: &[&str]) -> Output {
    let mut command = service.command(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    output.await.unwrap()
}

async fn backup(service: &Service, directory: &Path) -> Value {
    let output = graspd(service, &["backup", "--json", directory.to_str().unwrap()]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Moves the data of a service that does not run aside, so that a backup can take its place.
fn lose_everything(service: &Service) {
    let aside = service.directory().join("aside");
    fs::create_dir(&aside).unwrap();
    for name in ["git", "relay"] {
        fs::rename(service.directory().join(name), aside.join(name)).unwrap();
    }
}

/// The events of a backup.
fn events_of(directory: &Path) -> Vec<Value> {
    let manifest: Value =
        serde_json::from_slice(&fs::read(directory.join("manifest.json")).unwrap()).unwrap();
    let moment = directory.join(manifest["millis"].to_string());
    let text = fs::read_to_string(moment.join("events.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Every state that is served has its refs, and they can be cloned.
async fn states_have_their_refs(service: &Service, projects: &[&Project]) {
    let mut client = Client::connect(service).await;
    for project in projects {
        let author = project.owner.public_key().to_hex();
        let filter = json!({"kinds": [30618], "authors": [author]});
        let states = client.query(filter).await;
        assert_eq!(states.len(), 1);
        let state: Value =
            serde_json::from_str(&serde_json::to_string(&states[0]).unwrap()).unwrap();
        let mut wanted: Vec<(String, String)> = state["tags"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|tag| tag[0].as_str().unwrap().starts_with("refs/"))
            .map(|tag| {
                let word = |at: usize| tag[at].as_str().unwrap().to_owned();
                (word(0), word(1))
            })
            .collect();
        wanted.sort();
        let mut refs = project.remote_refs(service).await;
        refs.sort();
        assert_eq!(refs, wanted);
        let (clone, out) = crate::support::Repo::clone(&project.url(service), &[]).await;
        out.good();
        clone.git(&["fsck", "--strict"]).await.good();
    }
}

#[tokio::test]
async fn a_service_restored_from_a_backup_taken_under_pushes_is_whole() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let pushed = Project::active(&service, &mut client, "pushed").await;
    let still = Project::active(&service, &mut client, "still").await;
    let waiting = Project::announced(&service, &mut client, "waiting").await;
    let waiting_state = waiting.state().await.sign(&waiting.owner);
    client.publish(&waiting_state).await.waits();
    let issue = events::issue(&still.coordinate()).sign(&Keys::generate());
    client.publish(&issue).await.served();

    let directory = service.directory().join("backup");
    let (done, mut is_done) = tokio::sync::watch::channel(false);
    let pushes = async {
        let mut client = Client::connect(&service).await;
        let mut count = 0;
        while !*is_done.borrow_and_update() || count < 3 {
            pushed.repo.commit().await;
            pushed.update(&service, &mut client, &["main"]).await;
            count += 1;
        }
    };
    let backups = async {
        let first = backup(&service, &directory).await;
        // The disk of the backup is not what it was.
        let pack = find_pack(&directory);
        let mut rotten = fs::read(&pack).unwrap();
        rotten[20] ^= 1;
        fs::write(&pack, rotten).unwrap();
        let second = backup(&service, &directory).await;
        done.send(true).unwrap();
        (first, second)
    };
    let ((first, second), ()) = tokio::join!(backups, pushes);
    // The second found most of it there.
    let all = second["manifest"]["objects"].as_u64().unwrap();
    assert!(second["new_objects"].as_u64().unwrap() < all, "{second}");
    assert_eq!(first["new_objects"], first["manifest"]["objects"]);
    assert_eq!(first["rotten_objects"], 0);
    assert_eq!(second["rotten_objects"], 1);
    let sums = second["manifest"]["millis"].to_string();
    let mut check = std::process::Command::new("sha256sum");
    check
        .args(["--quiet", "-c", "objects.sha256"])
        .current_dir(directory.join(sums));
    assert!(check.status().unwrap().success());
    // What comes after the backup is not in it.
    let late = events::issue(&still.coordinate()).sign(&Keys::generate());
    client.publish(&late).await.served();

    // Not over what is there, and not of a backup that was changed.
    let restore = [
        "restore",
        "--verify-signatures",
        directory.to_str().unwrap(),
    ];
    service.terminate();
    service.ended().await;
    let refused = graspd(&service, &restore).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not empty"));
    lose_everything(&service);
    let object = find_pack(&directory);
    let content = fs::read(&object).unwrap();
    let mut changed = content.clone();
    changed[20] ^= 1;
    fs::write(&object, changed).unwrap();
    let refused = graspd(&service, &restore).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not what it was"));
    assert!(!service.git_data().exists());
    fs::write(&object, content).unwrap();

    let restored = graspd(&service, &restore).await;
    let said = String::from_utf8_lossy(&restored.stderr);
    assert!(restored.status.success(), "{said}");
    service.run().await;
    let mut client = Client::connect(&service).await;
    for event in events_of(&directory) {
        if client.query(json!({"ids": [event["id"]]})).await.len() == 1 {
            continue;
        }
        // A state that waited at the moment, with its data complete by then, is released at the start.
        assert_eq!(event["kind"], 30618, "{event}");
        let versions = json!({"kinds": [30618], "authors": [event["pubkey"]]});
        let versions = client.query(versions).await;
        let later = versions
            .iter()
            .any(|version| Some(version.created_at.as_secs()) > event["created_at"].as_u64());
        assert!(later, "{event}: {versions:?}");
    }
    assert!(client.serves(&issue).await && !client.serves(&late).await);
    states_have_their_refs(&service, &[&pushed, &still]).await;
    // Purgatory is as it was, and what waits can still be fulfilled.
    let again = client.publish(&waiting_state).await;
    assert_eq!(again.message, "duplicate: in purgatory");
    waiting.push(&service, &["main"]).await.good();
    assert!(client.serves(&waiting_state).await);
    // And what is active can be pushed to.
    still.repo.commit().await;
    still.update(&service, &mut client, &["main"]).await;
}

fn find_pack(directory: &Path) -> PathBuf {
    let files = processes::files(&directory.join("objects"));
    let is_pack = |path: &PathBuf| path.extension().is_some_and(|end| end == "pack");
    files.into_iter().find(is_pack).expect("there is a pack")
}

#[tokio::test]
async fn a_restore_that_did_not_end_starts_nothing_and_can_be_done_again() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "whole").await;
    let directory = service.directory().join("backup");
    backup(&service, &directory).await;
    service.terminate();
    service.ended().await;
    lose_everything(&service);
    // As a restore leaves it that was killed while it wrote.
    for name in ["git", "relay"] {
        let place = service.directory().join(name);
        fs::create_dir(&place).unwrap();
        fs::write(place.join(".graspd-restoring"), "").unwrap();
        fs::write(place.join("half"), "").unwrap();
    }
    let started = graspd(&service, &["serve"]).await;
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(!started.status.success());
    assert!(said.contains("did not end"), "{said}");
    let restored = graspd(&service, &["restore", directory.to_str().unwrap()]).await;
    assert!(restored.status.success());
    service.run().await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
    let refs = git::remote_refs(&project.url(&service)).await;
    assert!(!refs.is_empty());
}

#[tokio::test]
async fn what_is_published_under_a_backup_is_in_it_whole_or_not_at_all() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "events").await;
    let coordinate = project.coordinate();
    let published: Vec<Event> = (0..50)
        .map(|_| events::issue(&coordinate).sign(&project.owner))
        .collect();
    let directory = service.directory().join("backup");
    let publishing = async {
        for event in &published {
            client.publish(event).await.served();
        }
    };
    let ((), _) = tokio::join!(publishing, backup(&service, &directory));
    let kept = events_of(&directory);
    for event in &kept {
        let event: nostr::Event = serde_json::from_value(event.clone()).unwrap();
        event.verify().unwrap();
    }
    assert!((2..=52).contains(&kept.len()));
}
