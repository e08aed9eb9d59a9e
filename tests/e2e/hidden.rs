//! What is hidden stays hidden: removed, withheld, deleted and vanished git data, whoever names it.

use nostr::ToBech32;
use rustix::process::Signal;

use crate::support::{
    Client, Draft, Event, Keys, Project, Repo, Service,
    events::{self, coordinate, deletion, deletion_of, pull_request, state},
    git::{self, ZERO, commands, remote_refs},
    host::Host,
    processes, until, web,
};

/// A pack without objects.
const EMPTY_PACK: &[u8] = b"PACK\0\0\0\x02\0\0\0\0\
    \x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e";

const CONTRIBUTIONS: (&str, &str) = ("NGIT_GRASP06_ENABLE", "true");

/// A stranger who knows ids and has nothing.
struct Stranger {
    keys: Keys,
    identifier: String,
}

impl Stranger {
    fn of(identifier: &str) -> Self {
        Self {
            keys: Keys::generate(),
            identifier: identifier.to_owned(),
        }
    }

    /// Pushes a ref at an object without any object; gives the answer.
    async fn names(&self, service: &Service, path: &str, name: &str, oid: &str) -> String {
        let body = commands(&[(ZERO, oid, name)], "report-status");
        let body = [body, EMPTY_PACK.to_vec()].concat();
        let kind = [("Content-Type", "application/x-git-receive-pack-request")];
        let path = format!("{path}/git-receive-pack");
        let request = web::with_body("POST", service.port, &path, &kind, web::full(body));
        service.fetch(request).await.unwrap().text()
    }

    /// Tries all that a stranger can to have an object shown; gives the states and pull requests he signed.
    async fn tries(
        &self,
        service: &Service,
        client: &mut Client,
        owner: &Keys,
        oid: &str,
    ) -> Vec<Event> {
        let own = events::announcement(service, &self.keys, &self.identifier).sign(&self.keys);
        client.publish(&own).await.waits();
        let named = state(&self.identifier, &[("refs/heads/main", oid)]).sign(&self.keys);
        client.publish(&named).await.waits();
        let offered = pull_request(&coordinate(&self.keys, &self.identifier), oid).sign(&self.keys);
        let _ = client.publish(&offered).await;
        let unknown = format!("refs/nostr/{}", "ab".repeat(32));
        let signed = format!("refs/nostr/{}", offered.id.to_hex());
        let paths = [
            Service::repository_path(owner, &self.identifier),
            Service::repository_path(&self.keys, &self.identifier),
            format!(
                "/prs{}",
                Service::repository_path(&self.keys, &self.identifier)
            ),
        ];
        for path in &paths {
            for name in [unknown.as_str(), &signed, "refs/heads/main"] {
                let said = self.names(service, path, name, oid).await;
                assert!(!said.contains(&format!("ok {name}")), "{path}: {said}");
            }
        }
        vec![named, offered]
    }

    /// Nothing came of it, at any address.
    async fn has_nothing(
        &self,
        service: &Service,
        client: &mut Client,
        owner: &Keys,
        oid: &str,
        events: &[Event],
    ) {
        for event in events {
            assert!(!client.serves(event).await, "{}", event.kind.as_u16());
        }
        let urls = [
            service.url(owner, &self.identifier),
            service.url(&self.keys, &self.identifier),
        ];
        let repo = Repo::new().await;
        for url in &urls {
            for version in ["0", "2"] {
                let protocol = format!("protocol.version={version}");
                let fetched = repo.git(&["-c", &protocol, "fetch", url, oid]).await;
                assert!(!fetched.ok, "{url} gave {oid}");
            }
            for peer in git::run(&std::env::temp_dir(), &["ls-remote", url])
                .await
                .stdout
                .lines()
            {
                assert!(!peer.starts_with(oid), "{url}: {peer}");
            }
        }
        let path = Service::repository_path(&self.keys, &self.identifier);
        let advertised = format!("{path}/info/refs?service=git-receive-pack");
        let advertised = service.get(&advertised).await.unwrap().text();
        assert!(!advertised.contains(oid), "{advertised}");
    }
}

/// A project that is served, and whose last commit is a secret.
async fn with_secret(
    service: &Service,
    client: &mut Client,
    identifier: &str,
) -> (Project, String) {
    let project = Project::active(service, client, identifier).await;
    let secret = project.repo.commit_file("password", b"swordfish\n").await;
    project.update(service, client, &["main"]).await;
    (project, secret)
}

#[tokio::test]
async fn what_was_pushed_away_is_nobodys() {
    let service = Service::start_with(&[CONTRIBUTIONS]).await;
    let mut client = Client::connect(&service).await;
    let (project, secret) = with_secret(&service, &mut client, "removed").await;
    project
        .repo
        .git(&["reset", "-q", "--hard", "HEAD~1"])
        .await
        .good();
    let back = project.state().await.sign(&project.owner);
    client.publish(&back).await.served();
    let stranger = Stranger::of("removed");
    let named = stranger
        .tries(&service, &mut client, &project.owner, &secret)
        .await;
    stranger
        .has_nothing(&service, &mut client, &project.owner, &secret, &named)
        .await;
    // Its owner brings it again, and it is there for everybody.
    project
        .repo
        .git(&["reset", "-q", "--hard", &secret])
        .await
        .good();
    project.update(&service, &mut client, &["main"]).await;
    let (_, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
}

#[tokio::test]
async fn what_a_deleted_repository_had_is_nobodys() {
    let service = Service::start_with(&[CONTRIBUTIONS]).await;
    let mut client = Client::connect(&service).await;
    let (project, secret) = with_secret(&service, &mut client, "deleted").await;
    let request = deletion_of(&project.coordinate()).sign(&project.owner);
    client.publish(&request).await.served();
    until("it is gone", || async { !project.hosted(&service).await }).await;
    let stranger = Stranger::of("deleted");
    let named = stranger
        .tries(&service, &mut client, &project.owner, &secret)
        .await;
    stranger
        .has_nothing(&service, &mut client, &project.owner, &secret, &named)
        .await;
}

#[tokio::test]
async fn what_one_who_vanished_had_is_nobodys() {
    let service = Service::start_with(&[CONTRIBUTIONS]).await;
    let mut client = Client::connect(&service).await;
    let (project, secret) = with_secret(&service, &mut client, "vanished").await;
    let request = Draft::new(62)
        .tag(["relay", "ALL_RELAYS"])
        .sign(&project.owner);
    client.publish(&request).await.served();
    until("it is gone", || async { !project.hosted(&service).await }).await;
    let stranger = Stranger::of("vanished");
    let named = stranger
        .tries(&service, &mut client, &project.owner, &secret)
        .await;
    stranger
        .has_nothing(&service, &mut client, &project.owner, &secret, &named)
        .await;
}

#[tokio::test]
async fn what_a_blacklisted_repository_has_is_nobodys() {
    let mut service = Service::prepare(&[CONTRIBUTIONS]).await;
    let list = service.directory().join("blacklist");
    std::fs::write(&list, "# nobody yet\n").unwrap();
    service.set("NGIT_REPOSITORY_BLACKLIST", "./blacklist");
    service.run().await;
    let mut client = Client::connect(&service).await;
    let (project, secret) = with_secret(&service, &mut client, "blacklisted").await;
    let npub = project.owner.public_key().to_bech32().unwrap();
    std::fs::write(&list, format!("{npub}/blacklisted\n")).unwrap();
    processes::send(service.pid(), Signal::HUP);
    until("it is out of service", || async {
        !project.hosted(&service).await
    })
    .await;
    let stranger = Stranger::of("blacklisted");
    let named = stranger
        .tries(&service, &mut client, &project.owner, &secret)
        .await;
    stranger
        .has_nothing(&service, &mut client, &project.owner, &secret, &named)
        .await;
}

#[tokio::test]
async fn a_hunt_brings_nothing_out_of_what_is_hidden() {
    let settings = [CONTRIBUTIONS, ("NGIT_SYNC_DEFAULT_DELAY_SECS", "0")];
    let service = Service::start_with(&settings).await;
    let mut client = Client::connect(&service).await;
    let (project, secret) = with_secret(&service, &mut client, "hunted").await;
    project
        .repo
        .git(&["reset", "-q", "--hard", "HEAD~1"])
        .await
        .good();
    let back = project.state().await.sign(&project.owner);
    client.publish(&back).await.served();
    // A server of the stranger's that has what was there before it, and something of its own.
    let host = Host::start().await;
    let other = Repo::new().await;
    let url = host.hold("copy", &other, &["main"]).await;
    let keys = Keys::generate();
    let own = events::announcement(&service, &keys, "hunted")
        .without("clone")
        .tag(["clone", &service.public_url(&keys, "hunted"), &url])
        .sign(&keys);
    client.publish(&own).await.waits();
    let main = other.oid("main").await;
    let refs = [
        ("refs/heads/main", main.as_str()),
        ("refs/heads/x", &secret),
    ];
    let named = state("hunted", &refs).sign(&keys);
    client.publish(&named).await.waits();
    until("the server was asked", || async {
        !host.attempts().is_empty()
    })
    .await;
    // What can be found is: a state of it alone is served.
    let found = state("hunted", &refs[..1]).sign(&keys);
    client.publish(&found).await;
    until("what is there is served", || async {
        Client::connect(&service).await.serves(&found).await
    })
    .await;
    let shown = remote_refs(&service.url(&keys, "hunted")).await;
    assert_eq!(shown, [("refs/heads/main".to_owned(), main)]);
    let stranger = Stranger {
        keys,
        identifier: "hunted".to_owned(),
    };
    stranger
        .has_nothing(&service, &mut client, &project.owner, &secret, &[named])
        .await;
}

#[tokio::test]
async fn a_fork_and_a_contribution_send_what_is_new_alone() {
    let service = Service::start_with(&[CONTRIBUTIONS]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "forked").await;
    project.repo.commit_bytes(400_000).await;
    project.update(&service, &mut client, &["main"]).await;
    let (repo, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    let fork = Project {
        owner: Keys::generate(),
        identifier: project.identifier.clone(),
        repo,
    };
    let announcement = fork.announcement(&service).sign(&fork.owner);
    client.publish(&announcement).await.waits();
    fork.repo.commit().await;
    let new = fork.repo.pack(&["main", "^main~1"]).await;
    assert!(new.len() < 1000);
    let state = fork.state().await.sign(&fork.owner);
    client.publish(&state).await.waits();
    fork.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
    // Back by one commit: nothing is sent, and nothing is missing.
    fork.repo
        .git(&["reset", "-q", "--hard", "HEAD~1"])
        .await
        .good();
    let back = fork.state().await.sign(&fork.owner);
    client.publish(&back).await.served();
    let commit = project.repo.oid("main~1").await;
    let offered = pull_request(&project.coordinate(), &commit).sign(&fork.owner);
    client.publish(&offered).await.served();
}

/// How a repository goes.
#[derive(Debug, Clone, Copy)]
enum Goes {
    InOne,
    StateFirst,
    AnnouncementFirst,
    Vanished,
}

#[tokio::test]
async fn what_was_deleted_does_not_come_back_with_the_repository() {
    for (goes, restarted) in [
        (Goes::InOne, false),
        (Goes::StateFirst, true),
        (Goes::AnnouncementFirst, false),
        (Goes::AnnouncementFirst, true),
        (Goes::Vanished, false),
        (Goes::Vanished, true),
    ] {
        let mut service = Service::start().await;
        let mut client = Client::connect(&service).await;
        let project = Project::announced(&service, &mut client, "back").await;
        project
            .repo
            .git(&["branch", "-m", "main", "kept"])
            .await
            .good();
        let refs = project.repo.refs().await;
        let first = state("back", &refs).sign(&project.owner);
        client.publish(&first).await.waits();
        project.push(&service, &["kept"]).await.good();
        let (address, refs_at) = (
            project.coordinate(),
            project.coordinate().replace("30617", "30618"),
        );
        let requests = match goes {
            Goes::InOne => vec![deletion(&[&first]).tag(["a", &address])],
            Goes::StateFirst => vec![deletion(&[&first]), deletion_of(&address)],
            Goes::AnnouncementFirst => vec![deletion_of(&address), deletion_of(&refs_at)],
            Goes::Vanished => vec![Draft::new(62).tag(["relay", "ALL_RELAYS"])],
        };
        for request in requests {
            client.publish(&request.sign(&project.owner)).await.served();
        }
        until("it is gone", || async { !project.hosted(&service).await }).await;
        if restarted {
            service.crash().await;
            client = Client::connect(&service).await;
        }
        let again = project.announcement(&service).sign(&project.owner);
        client.publish(&again).await.waits();
        let url = project.url(&service);
        assert_eq!(remote_refs(&url).await, [], "{goes:?}, {restarted}");
        let repo = Repo::new().await;
        let fetched = repo
            .git(&["fetch", &url, &project.repo.oid("kept").await])
            .await;
        assert!(!fetched.ok, "{goes:?}, {restarted}");
        let path = Service::repository_path(&project.owner, "back");
        for service_name in ["git-upload-pack", "git-receive-pack"] {
            let advertised = format!("{path}/info/refs?service={service_name}");
            let advertised = service.get(&advertised).await.unwrap().text();
            assert!(!advertised.contains("refs/heads/kept"), "{advertised}");
        }
        assert!(!client.serves(&first).await);
        // And it is as good as new.
        project
            .repo
            .git(&["branch", "-m", "kept", "main"])
            .await
            .good();
        project.repo.commit().await;
        project.update(&service, &mut client, &["main"]).await;
        let shown = remote_refs(&url).await;
        assert_eq!(shown, project.repo.refs().await, "{goes:?}, {restarted}");
    }
}
