//! Whose the data directories are: one service's at a time, one domain's, with all their parts.

use std::{fs, process::Output};

use crate::support::{
    Client, Keys, Project, Repo, Service, events, events::pull_request, git, soon, until,
};

async fn run(service: &Service, arguments: &[&str]) -> Output {
    let command = tokio::process::Command::from(service.command(arguments))
        .kill_on_drop(true)
        .output();
    soon("the command ends", command).await.unwrap()
}

/// What a start that is refused says.
async fn refused(service: &Service, arguments: &[&str]) -> String {
    let out = run(service, arguments).await;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "{said}");
    said
}

#[tokio::test]
async fn a_second_service_on_the_same_data_refuses_to_start_and_touches_nothing() {
    let [mut first, mut second] = Service::prepare_several(&[]).await;
    first.run().await;
    let mut client = Client::connect(&first).await;
    let waiting = Project::announced(&first, &mut client, "waits").await;
    let relay = first.directory().join("relay");
    let (relay, git) = (relay.display().to_string(), first.git_data());
    let git = git.display().to_string();
    let own = second.directory().join("own").display().to_string();
    for (relay, git) in [(&relay, &git), (&relay, &own), (&own, &git)] {
        second.set("NGIT_RELAY_DATA_PATH", relay);
        second.set("NGIT_GIT_DATA_PATH", git);
        let said = refused(&second, &["serve"]).await;
        assert!(said.contains("in use by another graspd"), "{said}");
        assert!(said.contains("process "), "{said}");
    }
    // The first goes on with all it had.
    waiting.update(&first, &mut client, &["main"]).await;
    first.restart().await;
    let (_clone, out) = Repo::clone(&waiting.url(&first), &[]).await;
    out.good();
}

#[tokio::test]
async fn a_lock_of_a_dead_process_is_in_nobody_s_way() {
    let mut service = Service::start().await;
    for _ in 0..3 {
        service.crash().await;
    }
    assert!(
        service
            .directory()
            .join("relay/.graspd-relay.lock")
            .exists()
    );
}

#[tokio::test]
async fn data_of_another_domain_asks_for_a_flag() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "moves").await;
    service.terminate();
    service.ended().await;
    service.set("NGIT_DOMAIN", "new.example");
    let said = refused(&service, &["serve"]).await;
    let before = format!("localhost:{}", service.port);
    for word in [&before, "new.example", "--accept-domain-change"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    // A version before noted no domain: the announcements tell.
    let note = service.directory().join("relay/.graspd-domain");
    fs::remove_file(&note).unwrap();
    let said = refused(&service, &["serve"]).await;
    assert!(said.contains(&before), "{said}");

    service.set("NGIT_ACCEPT_DOMAIN_CHANGE", "true");
    service.run().await;
    service.set("NGIT_ACCEPT_DOMAIN_CHANGE", "false");
    service.restart().await;
    assert_eq!(fs::read_to_string(&note).unwrap(), "new.example\n");
}

#[tokio::test]
async fn a_missing_event_store_asks_for_a_flag() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "stays").await;
    service.terminate();
    service.ended().await;
    let relay = service.directory().join("relay");
    let aside = service.directory().join("aside");
    fs::rename(relay.join("data.mdb"), &aside).unwrap();
    let said = refused(&service, &["serve"]).await;
    assert!(said.contains("--accept-missing-events"), "{said}");
    assert!(!relay.join("data.mdb").exists());
    // A disk that is not mounted: all of it is away, and the repositories are not.
    let mounted = service.directory().join("mounted");
    fs::rename(&relay, &mounted).unwrap();
    let said = refused(&service, &["serve"]).await;
    assert!(said.contains("--accept-missing-events"), "{said}");
    assert!(!relay.join("data.mdb").exists());
    // Back, it is as it was.
    fs::remove_dir_all(&relay).unwrap();
    fs::rename(&mounted, &relay).unwrap();
    fs::rename(&aside, relay.join("data.mdb")).unwrap();
    service.run().await;
    let (_clone, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    service.terminate();
    service.ended().await;
    fs::remove_dir_all(&relay).unwrap();
    service.set("NGIT_ACCEPT_MISSING_EVENTS", "true");
    service.run().await;
    service.set("NGIT_ACCEPT_MISSING_EVENTS", "false");
    service.restart().await;
}

#[tokio::test]
#[ignore = "mounts a file system, which only root may: cargo test --test e2e -- --ignored a_full_disk"]
async fn a_full_disk_refuses_what_is_new_with_words_and_goes_on_by_itself() {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .status();
        }
    }
    let mut service = Service::prepare(&[]).await;
    let disk = service.directory().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"])
        .arg(&disk)
        .status();
    assert!(mounted.unwrap().success());
    let mounted = Mounted(disk.clone());
    let path = |name: &str| disk.join(name).display().to_string();
    service.set("NGIT_GIT_DATA_PATH", &path("git"));
    service.set("NGIT_RELAY_DATA_PATH", &path("relay"));
    service.set("NGIT_MIN_FREE_BYTES", "33554432");
    service.run().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "full").await;
    let owner = Keys::generate();
    let announced = events::announcement(&service, &owner, "new").sign(&owner);

    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![0; 70 << 20]).unwrap();
    // What was measured a moment before is believed for one.
    let rejected = || async {
        let mut client = Client::connect(&service).await;
        let said = client.publish(&announced).await.message;
        said.contains("disk of this server is full")
    };
    crate::support::until("events are refused with words", rejected).await;
    project.repo.commit().await;
    let said = project.push(&service, &["main"]).await.refused();
    assert!(said.contains("disk of this server is full"), "{said}");
    let ready = service.get("/readyz").await.unwrap();
    assert_eq!(ready.status, 200);
    assert!(
        ready.text().contains("new data is refused"),
        "{}",
        ready.text()
    );
    let metrics = service.get("/metrics").await.unwrap().text();
    for role in ["relay", "gitd"] {
        assert!(
            metrics.contains(&format!("ngit_disk_full{{role=\"{role}\"}} 1")),
            "{metrics}"
        );
    }
    // What is here is served on.
    let (_clone, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();

    fs::remove_file(&ballast).unwrap();
    let accepted = || async {
        let mut client = Client::connect(&service).await;
        client
            .publish(&announced)
            .await
            .message
            .contains("purgatory")
    };
    crate::support::until("events are taken again", accepted).await;
    project.update(&service, &mut client, &["main"]).await;
    assert_eq!(service.get("/readyz").await.unwrap().text(), "ready\n");
    service.kill();
    drop(mounted);
}

/// A repository that is served, and the ref of a pull request in it.
async fn with_pull_request(service: &Service, client: &mut Client) -> Project {
    let project = Project::active(service, client, "taken").await;
    project
        .repo
        .git(&["checkout", "-q", "-b", "topic"])
        .await
        .good();
    let commit = project.repo.commit().await;
    let contributor = Keys::generate();
    let request = pull_request(&project.coordinate(), &commit).sign(&contributor);
    client.publish(&request).await.waits();
    let spec = format!("topic:refs/nostr/{}", request.id.to_hex());
    project.push(service, &[&spec]).await.good();
    let repo = &project.repo;
    repo.git(&["checkout", "-q", "main"]).await.good();
    repo.git(&["branch", "-q", "-D", "topic"]).await.good();
    project
}

#[tokio::test]
async fn a_repository_that_was_taken_from_the_disk_is_there_again() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = with_pull_request(&service, &mut client).await;
    let shown = git::ls_remote(&project.url(&service)).await;
    assert!(shown.iter().any(|(name, _)| name.contains("refs/nostr/")));
    let path = Service::repository_path(&project.owner, &project.identifier);
    let view = service
        .directory()
        .join("git")
        .join(path.trim_start_matches('/'));
    for _ in 0..2 {
        fs::remove_dir_all(&view).unwrap();
        until("it shows what it showed", || async {
            project.hosted(&service).await && git::ls_remote(&project.url(&service)).await == shown
        })
        .await;
        let (_, out) = Repo::clone(&project.url(&service), &[]).await;
        out.good();
        project.repo.commit().await;
        project.update(&service, &mut client, &["main"]).await;
        project
            .repo
            .git(&["reset", "-q", "--hard", "HEAD~1"])
            .await
            .good();
        let back = project.state().await.sign(&project.owner);
        client.publish(&back).await.served();
    }
}

#[tokio::test]
async fn a_repository_that_was_taken_with_its_pool_is_pushed_again() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "taken").await;
    let refs = project.remote_refs(&service).await;
    let data = service.directory().join("git");
    let path = Service::repository_path(&project.owner, &project.identifier);
    fs::remove_dir_all(data.join(path.trim_start_matches('/'))).unwrap();
    fs::remove_dir_all(data.join(".pools")).unwrap();
    until("it can be pushed to", || async {
        project.hosted(&service).await
    })
    .await;
    project.push(&service, &["main"]).await.good();
    assert_eq!(project.remote_refs(&service).await, refs);
    let (_, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
}
