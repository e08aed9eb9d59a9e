//! What goes with a deleted announcement and comes back with the next one: events, refs, git data; with
//! processes killed meanwhile. Requests to vanish.

use std::time::Duration;

use rand::Rng;
use rustix::process::Signal;

use crate::support::{
    Client, Draft, Event, Keys, Project, Repo, Service,
    events::{deletion_of, issue, pull_request},
    processes, until,
};

/// What surrounds one owner's repository, of which another has a fork.
struct Around {
    own: Vec<Event>,
    shared: Vec<Event>,
}

async fn surround(
    service: &Service,
    client: &mut Client,
    project: &Project,
    fork: &Project,
) -> Around {
    let reader = Keys::generate();
    let (mut own, mut shared) = (Vec::new(), Vec::new());
    let question = issue(&project.coordinate()).sign(&reader);
    let answer = Draft::new(1111)
        .tag(["E", &question.id.to_hex()])
        .sign(&project.owner);
    let reaction = Draft::new(7).tag(["e", &answer.id.to_hex()]).sign(&reader);
    let closed = Draft::new(1632)
        .tag(["e", &question.id.to_hex()])
        .sign(&project.owner);
    own.extend([question, answer, reaction, closed]);
    let both = issue(&project.coordinate())
        .tag(["a", &fork.coordinate()])
        .sign(&reader);
    let on_both = Draft::new(1111)
        .tag(["E", &both.id.to_hex()])
        .tag(["A", &project.coordinate()])
        .sign(&reader);
    let theirs = issue(&fork.coordinate()).sign(&reader);
    shared.extend([both, on_both, theirs]);
    for event in own.iter().chain(&shared) {
        client.publish(event).await.served();
    }
    // A contributor's commit for each.
    for (of, events) in [(project, &mut own), (fork, &mut shared)] {
        project
            .repo
            .git(&["checkout", "-q", "-B", "topic"])
            .await
            .good();
        let commit = project.repo.commit().await;
        let request = pull_request(&of.coordinate(), &commit).sign(&reader);
        client.publish(&request).await.waits();
        let spec = format!("topic:refs/nostr/{}", request.id.to_hex());
        project.repo.push(&of.url(service), &[&spec]).await.good();
        project.repo.git(&["checkout", "-q", "main"]).await.good();
        project
            .repo
            .git(&["branch", "-q", "-D", "topic"])
            .await
            .good();
        events.push(request);
    }
    Around { own, shared }
}

/// A second owner's repository of the same identifier and history.
async fn fork(service: &Service, client: &mut Client, project: &Project) -> Project {
    let (repo, out) = Repo::clone(&project.url(service), &[]).await;
    out.good();
    let fork = Project {
        owner: Keys::generate(),
        identifier: project.identifier.clone(),
        repo,
    };
    let announcement = fork.announcement(service).sign(&fork.owner);
    client.publish(&announcement).await.waits();
    let state = fork.state().await.sign(&fork.owner);
    // All of its objects are here.
    client.publish(&state).await.served();
    fork
}

async fn serves_all(service: &Service, events: &[Event]) -> bool {
    let mut client = Client::connect(service).await;
    for event in events {
        if !client.serves(event).await {
            return false;
        }
    }
    true
}

async fn serves_none(service: &Service, events: &[Event]) -> bool {
    let mut client = Client::connect(service).await;
    for event in events {
        if client.serves(event).await {
            return false;
        }
    }
    true
}

async fn nostr_refs(service: &Service, project: &Project) -> Vec<(String, String)> {
    let mut refs = crate::support::git::ls_remote(&project.url(service)).await;
    refs.retain(|(name, _)| name.contains("refs/nostr/"));
    refs
}

#[tokio::test]
async fn a_repository_with_two_owners_goes_and_comes_back_exactly() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "held").await;
    let fork = fork(&service, &mut client, &project).await;
    let Around { own, shared } = surround(&service, &mut client, &project, &fork).await;
    let refs = project.remote_refs(&service).await;
    let contributed = nostr_refs(&service, &project).await;
    assert_eq!(contributed.len(), 1);

    let request = deletion_of(&project.coordinate()).sign(&project.owner);
    client.publish(&request).await.served();
    assert!(!project.hosted(&service).await && fork.hosted(&service).await);
    assert!(serves_none(&service, &own).await);
    assert!(serves_all(&service, &shared).await);
    let (_, out) = Repo::clone(&fork.url(&service), &[]).await;
    out.good();

    // Served at once: its data is here.
    let again = project.announcement(&service).sign(&project.owner);
    client.publish(&again).await.served();
    until("everything is back", || serves_all(&service, &own)).await;
    assert!(serves_all(&service, &shared).await);
    assert_eq!(project.remote_refs(&service).await, refs);
    assert_eq!(nostr_refs(&service, &project).await, contributed);
    let (clone, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
    // And goes on as if nothing had been.
    project.repo.commit().await;
    project.update(&service, &mut client, &["main"]).await;
}

#[tokio::test]
async fn what_is_held_survives_a_restart() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "restarted").await;
    let fork = fork(&service, &mut client, &project).await;
    let Around { own, .. } = surround(&service, &mut client, &project, &fork).await;
    let request = deletion_of(&project.coordinate()).sign(&project.owner);
    client.publish(&request).await.served();
    service.restart().await;
    let mut client = Client::connect(&service).await;
    assert!(serves_none(&service, &own).await && !project.hosted(&service).await);
    let again = project.announcement(&service).sign(&project.owner);
    client.publish(&again).await.served();
    until("everything is back", || serves_all(&service, &own)).await;
    let (_, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
}

/// What is killed in the middle.
#[derive(Debug, Clone, Copy)]
enum Victim {
    All,
    Gitd,
}

/// Kills after a moment, and brings the service back.
async fn kill(service: &mut Service, victim: Victim) {
    let moment = rand::rng().random_range(0..60);
    tokio::time::sleep(Duration::from_millis(moment)).await;
    match victim {
        Victim::All => service.crash().await,
        Victim::Gitd => service.kill_gitd().await,
    }
}

async fn killed_again_and_again(victim: Victim) {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "killed").await;
    let fork = fork(&service, &mut client, &project).await;
    let Around { own, shared } = surround(&service, &mut client, &project, &fork).await;
    let refs = project.remote_refs(&service).await;
    drop(client);
    for _ in 0..4 {
        for goes in [true, false] {
            let event = match goes {
                true => deletion_of(&project.coordinate()),
                false => project.announcement(&service),
            };
            let event = event.sign(&project.owner);
            let port = service.port;
            let sending = tokio::spawn(async move {
                if let Some(mut client) = Client::try_connect(port).await {
                    client.send(serde_json::json!(["EVENT", event])).await;
                    // Until it is answered, or the connection is cut.
                    client.closing_code().await;
                }
            });
            kill(&mut service, victim).await;
            let mut client = Client::connect(&service).await;
            sending.abort();
            // Whether it had come or not: sent again it is carried out.
            let again = match goes {
                true => deletion_of(&project.coordinate()),
                false => project.announcement(&service),
            };
            assert!(client.publish(&again.sign(&project.owner)).await.accepted);
            let context = format!("{victim:?}, it goes: {goes}");
            until(&context, || async {
                project.hosted(&service).await != goes
                    && match goes {
                        true => serves_none(&service, &own).await,
                        false => serves_all(&service, &own).await,
                    }
            })
            .await;
            assert!(serves_all(&service, &shared).await, "{context}");
            if !goes {
                assert_eq!(project.remote_refs(&service).await, refs, "{context}");
                assert_eq!(nostr_refs(&service, &project).await.len(), 1);
            }
        }
    }
    let (_, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
}

#[tokio::test]
async fn nothing_is_lost_when_the_service_is_killed_meanwhile() {
    killed_again_and_again(Victim::All).await;
}

#[tokio::test]
async fn nothing_is_lost_when_gitd_is_killed_meanwhile() {
    killed_again_and_again(Victim::Gitd).await;
}

#[tokio::test]
async fn an_author_who_asks_this_service_vanishes() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "vanishing").await;
    let other = Project::active(&service, &mut client, "other").await;
    let theirs = issue(&other.coordinate()).sign(&project.owner);
    let on_theirs = issue(&project.coordinate()).sign(&other.owner);
    client.publish(&theirs).await.served();
    client.publish(&on_theirs).await.served();
    let vanish = |relay: &str| Draft::new(62).tag(["relay", relay]).sign(&project.owner);
    client
        .publish(&vanish("wss://relay.elsewhere.example"))
        .await
        .rejected();
    assert!(client.serves(&theirs).await);
    let request = vanish(&format!("ws://{}/", service.domain()));
    client.publish(&request).await.served();
    for round in 0..2 {
        let author = project.owner.public_key().to_hex();
        let found = client.query(serde_json::json!({"authors": [author]})).await;
        let found: Vec<_> = found.iter().map(|event| event.id).collect();
        assert_eq!(found, [request.id], "round {round}");
        assert!(!client.serves(&on_theirs).await);
        assert!(!project.hosted(&service).await && other.hosted(&service).await);
        client.publish(&theirs).await.rejected();
        service.crash().await;
        client = Client::connect(&service).await;
    }
    let later = issue(&other.coordinate()).sign(&project.owner);
    client.publish(&later).await.served();
}

#[tokio::test]
async fn one_who_disrespects_requests_serves_them_and_what_they_name() {
    let settings = [("NGIT_DELETION_REQUEST_DISRESPECTOR", "true")];
    let service = Service::start_with(&settings).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "disrespected").await;
    let author = Keys::generate();
    let question = issue(&project.coordinate()).sign(&author);
    client.publish(&question).await.served();
    let requests = [
        deletion_of(&project.coordinate()).sign(&project.owner),
        crate::support::events::deletion(&[&question]).sign(&author),
        Draft::new(62).tag(["relay", "ALL_RELAYS"]).sign(&author),
    ];
    for request in &requests {
        client.publish(request).await.served();
    }
    assert!(project.hosted(&service).await && client.serves(&question).await);
    for request in &requests {
        assert!(client.serves(request).await);
    }
    let unseen = issue(&project.coordinate()).content("unseen").sign(&author);
    let request = crate::support::events::deletion(&[&unseen]).sign(&author);
    client.publish(&request).await.served();
    client.publish(&unseen).await.served();
}

/// gitd, stopped where it stands until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn new(service: &Service) -> Self {
        let pid = service.gitd().unwrap();
        processes::send(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if processes::alive(self.0) {
            processes::send(self.0, Signal::CONT);
        }
    }
}

#[tokio::test]
async fn with_gitd_hanging_a_repository_goes_and_comes_back() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "hanging").await;
    let question = issue(&project.coordinate()).sign(&Keys::generate());
    client.publish(&question).await.served();
    let head = project.repo.oid("main").await;
    for round in 0..2 {
        let stopped = Stopped::new(&service);
        let request = deletion_of(&project.coordinate()).sign(&project.owner);
        let port = service.port;
        let sending = tokio::spawn(async move {
            let mut client = Client::try_connect(port).await.unwrap();
            client.send(serde_json::json!(["EVENT", request])).await;
            client.closing_code().await
        });
        until("it is not served", || async {
            !Client::connect(&service).await.serves(&question).await
        })
        .await;
        if round == 0 {
            drop(stopped);
            until("it is gone", || async { !project.hosted(&service).await }).await;
            let again = project.announcement(&service).sign(&project.owner);
            assert!(client.publish(&again).await.accepted);
        } else {
            let again = project.announcement(&service).sign(&project.owner);
            client.send(serde_json::json!(["EVENT", again])).await;
            drop(stopped);
            assert!(client.verdict(&again.id.to_hex()).await.accepted);
        }
        until("it is back", || async {
            Client::connect(&service).await.serves(&question).await
                && project.hosted(&service).await
        })
        .await;
        let (clone, out) = Repo::clone(&project.url(&service), &[]).await;
        out.good();
        assert_eq!(clone.oid("HEAD").await, head);
        sending.abort();
    }
}
