//! GRASP-06: contributors' own addresses, and the budget of what nobody has signed for yet.

use std::path::PathBuf;

use rustix::process::Signal;

use crate::support::{
    Client, Draft, Event, Keys, Out, Project, Repo, Service,
    events::{coordinate, pull_request},
    git, processes, until,
};

const ON: (&str, &str) = ("NGIT_GRASP06_ENABLE", "true");

/// A contributor with a commit that nobody has.
struct Contributor {
    keys: Keys,
    repo: Repo,
    commit: String,
    identifier: &'static str,
}

fn name(event: &Event) -> String {
    format!("refs/nostr/{}", event.id.to_hex())
}

impl Contributor {
    async fn new(identifier: &'static str) -> Self {
        let repo = Repo::new().await;
        Self {
            keys: Keys::generate(),
            commit: repo.commit().await,
            repo,
            identifier,
        }
    }

    fn path(&self) -> String {
        let path = Service::repository_path(&self.keys, self.identifier);
        format!("/prs{path}")
    }

    fn url(&self, service: &Service) -> String {
        format!("http://127.0.0.1:{}{}", service.port, self.path())
    }

    fn directory(&self, service: &Service) -> PathBuf {
        let owner = self.keys.public_key().to_hex();
        let below = service.git_data().join("prs").join(owner);
        below.join(format!("{}.git", self.identifier))
    }

    /// A pull request for a repository of somebody's, with this address in `clone`.
    fn offer(&self, service: &Service, to: &str, commit: &str) -> Draft {
        let address = format!("http://{}{}", service.domain(), self.path());
        pull_request(to, commit).without("clone").tag([
            "clone",
            "https://elsewhere.example/x.git",
            &address,
        ])
    }

    async fn push(&self, service: &Service, specs: &[&str]) -> Out {
        self.repo.push(&self.url(service), specs).await
    }

    async fn shows(&self, service: &Service, event: &Event) -> Option<String> {
        git::remote_ref(&self.url(service), &name(event)).await
    }
}

fn nowhere(identifier: &str) -> String {
    coordinate(&Keys::generate(), identifier)
}

#[tokio::test]
async fn switched_off_there_is_nothing() {
    let service = Service::start().await;
    let contributor = Contributor::new("off").await;
    let path = format!("{}/info/refs?service=git-upload-pack", contributor.path());
    assert_eq!(service.get(&path).await.unwrap().status, 404);
    assert!(!contributor.push(&service, &["main"]).await.ok);
    let mut client = Client::connect(&service).await;
    let offer = contributor.offer(&service, &nowhere("off"), &contributor.commit);
    client
        .publish(&offer.sign(&contributor.keys))
        .await
        .rejected();
    let document = document(&service).await;
    assert!(!document.contains("GRASP-06"), "{document}");
}

async fn document(service: &Service) -> String {
    let accept = [("Accept", "application/nostr+json")];
    let request = crate::support::web::request("GET", service.port, "/", &accept);
    service.fetch(request).await.unwrap().text()
}

#[tokio::test]
async fn probing_is_answered_and_leaves_nothing_on_disk() {
    let service = Service::start_with(&[ON]).await;
    assert!(document(&service).await.contains("GRASP-06"));
    let contributor = Contributor::new("größe x").await;
    for service_name in ["git-upload-pack", "git-receive-pack"] {
        let path = format!("{}/info/refs?service={service_name}", contributor.path());
        assert_eq!(service.get(&path).await.unwrap().status, 200);
    }
    let page = service.get(&contributor.path()).await.unwrap();
    assert_eq!(page.status, 200);
    assert!(page.text().contains("git clone"));
    let url = contributor.url(&service);
    for version in ["0", "1", "2"] {
        let version = format!("protocol.version={version}");
        let directory = service.directory();
        let listed = git::run(directory, &["-c", &version, "ls-remote", &url]).await;
        listed.good();
        let repo = Repo::empty().await;
        let fetch = ["-c", &version, "fetch", &url, &contributor.commit];
        assert!(!repo.git(&fetch).await.ok, "nothing can be had there");
    }
    let (clone, out) = Repo::clone(&url, &[]).await;
    out.good();
    assert!(clone.refs().await.is_empty());
    for bad in ["/prs/npub1x/y.git", "/prs", "/prs/", "/prs/x.git/info/refs"] {
        assert_eq!(service.get(bad).await.unwrap().status, 404, "{bad}");
    }
    // Nor does what is refused.
    for refspec in ["main", "main:refs/tags/v1", "main:refs/nostr/short"] {
        let said = contributor.push(&service, &[refspec]).await.refused();
        assert!(said.contains("refs/nostr/"), "{said}");
    }
    assert!(!service.git_data().join("prs").exists());
}

#[tokio::test]
async fn either_side_may_come_first() {
    let service = Service::start_with(&[ON]).await;
    let mut client = Client::connect(&service).await;
    for event_first in [true, false] {
        let contributor = Contributor::new("either").await;
        let offer = contributor.offer(&service, &nowhere("either"), &contributor.commit);
        let event = offer.sign(&contributor.keys);
        let refspec = format!("main:{}", name(&event));
        if event_first {
            client.publish(&event).await.waits();
            assert!(!contributor.directory(&service).exists());
            contributor.push(&service, &[&refspec]).await.good();
        } else {
            contributor.push(&service, &[&refspec]).await.good();
            assert!(!client.serves(&event).await);
            client.publish(&event).await.served();
        }
        assert!(client.serves(&event).await);
        let commit = Some(contributor.commit.clone());
        assert_eq!(contributor.shows(&service, &event).await, commit);
        let (clone, out) = Repo::clone(&contributor.url(&service), &[]).await;
        out.good();
        let fetch = ["fetch", "-q", "origin", &name(&event)];
        clone.git(&fetch).await.good();
        assert_eq!(clone.oid("FETCH_HEAD").await, contributor.commit);
        // Once it is deleted, nothing is left of it.
        let deletion = Draft::new(5).tag(["e", &event.id.to_hex()]);
        client
            .publish(&deletion.sign(&contributor.keys))
            .await
            .served();
        assert!(!contributor.directory(&service).exists());
    }
    assert!(!service.git_data().join("prs").exists());
    let pools = std::fs::read_dir(service.git_data().join(".pools")).unwrap();
    for shelf in pools {
        let left = std::fs::read_dir(shelf.unwrap().path()).unwrap();
        assert_eq!(left.count(), 0, "a pool stays that nobody leans on");
    }
}

#[tokio::test]
async fn what_does_not_agree_is_removed_and_the_event_waits() {
    let service = Service::start_with(&[ON]).await;
    let mut client = Client::connect(&service).await;
    let contributor = Contributor::new("right").await;
    let offer = contributor.offer(&service, &nowhere("right"), &contributor.commit);
    let event = offer.sign(&contributor.keys);
    let other = Contributor::new("right").await;
    let elsewhere = Contributor {
        keys: contributor.keys.clone(),
        ..Contributor::new("wrong").await
    };
    // Another's address, another identifier, another commit.
    let refspec = format!("main:{}", name(&event));
    other.push(&service, &[&refspec]).await.good();
    elsewhere.push(&service, &[&refspec]).await.good();
    let wrong = format!("main~1:{}", name(&event));
    contributor.push(&service, &[&wrong]).await.good();
    client.publish(&event).await.waits();
    for one in [&other, &elsewhere, &contributor] {
        assert!(!one.directory(&service).exists());
        assert_eq!(one.shows(&service, &event).await, None);
    }
    let said = contributor.push(&service, &[&wrong]).await.refused();
    assert!(said.contains("names"), "{said}");
    let said = other.push(&service, &[&refspec]).await.refused();
    assert!(said.contains("not by this author"), "{said}");
    elsewhere.push(&service, &[&refspec]).await.refused();
    for one in [&other, &elsewhere, &contributor] {
        assert!(!one.directory(&service).exists());
    }
    contributor.push(&service, &[&refspec]).await.good();
    assert!(client.serves(&event).await);
}

#[tokio::test]
async fn two_pushes_at_once_both_end_well() {
    let service = Service::start_with(&[ON]).await;
    let mut client = Client::connect(&service).await;
    let contributor = Contributor::new("race").await;
    let sign = |at: &str| {
        let offer = contributor.offer(&service, &nowhere("race"), &contributor.commit);
        offer.tag(["subject", at]).sign(&contributor.keys)
    };
    let (one, two) = (sign("one"), sign("two"));
    let specs = [&one, &one, &two].map(|event| format!("main:{}", name(event)));
    let pushes = specs.each_ref().map(|spec| {
        let contributor = &contributor;
        let service = &service;
        async move { contributor.push(service, &[spec]).await }
    });
    for out in futures::future::join_all(pushes).await {
        out.good();
    }
    for event in [&one, &two] {
        client.publish(event).await.served();
        let commit = Some(contributor.commit.clone());
        assert_eq!(contributor.shows(&service, event).await, commit);
    }
}

#[tokio::test]
async fn a_served_one_is_mirrored_into_the_repository_it_is_offered_to() {
    let service = Service::start_with(&[ON]).await;
    let mut client = Client::connect(&service).await;
    let contributor = Contributor::new("mirror").await;
    let project = Project::announced(&service, &mut client, "mirror").await;
    let offer = contributor.offer(&service, &project.coordinate(), &contributor.commit);
    let event = offer.sign(&contributor.keys);
    client.publish(&event).await.waits();
    let refspec = format!("main:{}", name(&event));
    contributor.push(&service, &[&refspec]).await.good();
    assert!(client.serves(&event).await);
    let name = name(&event);
    assert_eq!(project.remote_ref(&service, &name).await, None);
    // As soon as that is served.
    project.update(&service, &mut client, &["main"]).await;
    let commit = Some(contributor.commit.clone());
    assert_eq!(project.remote_ref(&service, &name).await, commit);
    // The other way round nothing is put.
    let next = contributor.repo.commit().await;
    let draft = contributor.offer(&service, &project.coordinate(), &next);
    let direct = draft.sign(&contributor.keys);
    client.publish(&direct).await.waits();
    let refspec = format!("main:refs/nostr/{}", direct.id.to_hex());
    let url = project.url(&service);
    contributor.repo.push(&url, &[&refspec]).await.good();
    assert!(client.serves(&direct).await);
    assert_eq!(contributor.shows(&service, &direct).await, None);
}

#[tokio::test]
async fn a_kill_leaves_what_was_answered_and_nothing_else() {
    let mut service = Service::start_with(&[ON]).await;
    let contributor = Contributor::new("killed").await;
    let offer = contributor.offer(&service, &nowhere("killed"), &contributor.commit);
    let event = offer.sign(&contributor.keys);
    let refspec = format!("main:{}", name(&event));
    contributor.push(&service, &[&refspec]).await.good();
    // What an upload that was never answered would leave: a view without a ref.
    let orphan = Contributor::new("orphan").await;
    let made = orphan.directory(&service);
    copy(&contributor.directory(&service), &made);
    std::fs::remove_dir_all(made.join("refs/nostr")).unwrap();
    let to_pool = std::fs::read_to_string(made.join("objects/info/alternates")).unwrap();
    assert!(to_pool.starts_with("../../../../.pools/"));
    if let Some(gitd) = service.gitd() {
        processes::send(gitd, Signal::KILL);
    }
    service.crash().await;
    let commit = Some(contributor.commit.clone());
    assert_eq!(contributor.shows(&service, &event).await, commit);
    let mut client = Client::connect(&service).await;
    client.publish(&event).await.served();
    service.crash().await;
    service.kill_gitd().await;
    let mut client = Client::connect(&service).await;
    assert!(client.serves(&event).await);
    assert_eq!(contributor.shows(&service, &event).await, commit);
    let deletion = Draft::new(5).tag(["e", &event.id.to_hex()]);
    client
        .publish(&deletion.sign(&contributor.keys))
        .await
        .served();
    service.crash().await;
    assert!(!contributor.directory(&service).exists());
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &place),
            false => drop(std::fs::copy(entry.path(), place).unwrap()),
        }
    }
}

#[tokio::test]
async fn uploads_that_nobody_signs_for_have_a_budget() {
    let limit = (3 * 1024 * 1024).to_string();
    let settings = [ON, ("NGIT_UNSIGNED_MAX_BYTES_PER_IP", limit.as_str())];
    let mut service = Service::start_with(&settings).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "budget").await;
    let contributor = Contributor::new("budget").await;
    let first = contributor.repo.commit_bytes(2 * 1024 * 1024).await;
    let offer = contributor.offer(&service, &nowhere("budget"), &first);
    let event = offer.sign(&contributor.keys);
    let refspec = format!("main:{}", name(&event));
    contributor.push(&service, &[&refspec]).await.good();
    // On the standard address as well, and after another start.
    let other = Contributor::new("budget").await;
    other.repo.commit_bytes(2 * 1024 * 1024).await;
    let unknown = format!("main:refs/nostr/{}", "ab".repeat(32));
    for round in 0..2 {
        let said = other.push(&service, &[&unknown]).await.refused();
        assert!(said.contains("nobody has signed for"), "{round}: {said}");
        let url = project.url(&service);
        let said = other.repo.push(&url, &[&unknown]).await.refused();
        assert!(said.contains("nobody has signed for"), "{round}: {said}");
        assert!(!other.directory(&service).exists());
        service.crash().await;
    }
    // Signed for, it counts no more.
    let mut client = Client::connect(&service).await;
    client.publish(&event).await.served();
    other.push(&service, &[&unknown]).await.good();
    let metrics = service.get("/metrics").await.unwrap().text();
    assert!(metrics.contains("ngit_git_unsigned_bytes"), "{metrics}");
    until("what is counted is told", || async {
        let text = service.get("/metrics").await.unwrap().text();
        let counted = text
            .lines()
            .find(|l| l.starts_with("ngit_git_unsigned_bytes"));
        let value = counted.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.is_some_and(|bytes| (2e6..3.2e6).contains(&bytes))
    })
    .await;
}
