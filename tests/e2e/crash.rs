//! SIGKILL at every step: what was answered OK is known, and a push has happened or has not.

use std::time::Duration;

use rand::Rng;
use rustix::process::Signal;

use crate::support::{Client, Event, Project, Repo, Service, events::issue, processes, until};

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Main,
    Gitd,
    /// gitd, and before it is back the rest.
    Both,
}

const VICTIMS: [Victim; 3] = [Victim::Main, Victim::Gitd, Victim::Both];

/// Kills, and brings the service back.
async fn kill(service: &mut Service, victim: Victim) {
    match victim {
        Victim::Main => service.crash().await,
        Victim::Gitd => service.kill_gitd().await,
        Victim::Both => {
            if let Some(gitd) = service.gitd() {
                processes::send(gitd, Signal::KILL);
            }
            service.crash().await;
        }
    }
}

#[tokio::test]
async fn an_announcement_that_was_answered_survives() {
    let mut service = Service::start().await;
    for victim in VICTIMS {
        let mut client = Client::connect(&service).await;
        let project = Project::new(&format!("announced-{victim:?}")).await;
        let event = project.announcement(&service).sign(&project.owner);
        client.publish(&event).await.waits();
        kill(&mut service, victim).await;
        let mut client = Client::connect(&service).await;
        let again = client.publish(&event).await;
        assert_eq!(
            (again.accepted, again.message.as_str()),
            (true, "duplicate: in purgatory")
        );
        until("the repository is here", || async {
            project.hosted(&service).await
        })
        .await;
        project.update(&service, &mut client, &["main"]).await;
        assert!(client.serves(&event).await);
    }
}

#[tokio::test]
async fn a_state_that_was_answered_survives() {
    let mut service = Service::start().await;
    for victim in VICTIMS {
        let mut client = Client::connect(&service).await;
        let identifier = format!("state-{victim:?}");
        let project = Project::announced(&service, &mut client, &identifier).await;
        let state = project.state().await.sign(&project.owner);
        client.publish(&state).await.waits();
        kill(&mut service, victim).await;
        project.push(&service, &["main"]).await.good();
        let mut client = Client::connect(&service).await;
        assert!(client.serves(&state).await);
        assert_eq!(
            project.remote_refs(&service).await,
            project.repo.refs().await
        );
    }
}

#[tokio::test]
async fn a_placeholder_and_a_waiting_pull_request_survive() {
    let mut service = Service::start().await;
    for victim in VICTIMS {
        let mut client = Client::connect(&service).await;
        let identifier = format!("pr-{victim:?}");
        let project = Project::active(&service, &mut client, &identifier).await;
        project
            .repo
            .git(&["checkout", "-q", "-b", "topic"])
            .await
            .good();
        let sign = |commit: &str| {
            let draft = crate::support::events::pull_request(&project.coordinate(), commit);
            draft.sign(&project.owner)
        };
        let name = |event: &Event| format!("topic:refs/nostr/{}", event.id.to_hex());
        let git_first = sign(&project.repo.commit().await);
        project.push(&service, &[&name(&git_first)]).await.good();
        let event_first = sign(&project.repo.commit().await);
        client.publish(&event_first).await.waits();
        kill(&mut service, victim).await;

        let mut client = Client::connect(&service).await;
        client.publish(&git_first).await.served();
        project.push(&service, &[&name(&event_first)]).await.good();
        assert!(client.serves(&event_first).await);
    }
}

#[tokio::test]
async fn what_was_pushed_is_served_after_a_crash_right_behind_it() {
    let mut service = Service::start().await;
    for victim in VICTIMS {
        let mut client = Client::connect(&service).await;
        let identifier = format!("pushed-{victim:?}");
        let project = Project::announced(&service, &mut client, &identifier).await;
        let state = project.state().await.sign(&project.owner);
        client.publish(&state).await.waits();
        project.push(&service, &["main"]).await.good();
        kill(&mut service, victim).await;

        let mut client = Client::connect(&service).await;
        assert!(client.serves(&state).await);
        let (clone, out) = Repo::clone(&project.url(&service), &[]).await;
        out.good();
        assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
    }
}

/// A push that is hit after `delay`; afterwards it has happened or it has not, and a second one
/// ends well.
async fn hit(service: &mut Service, project: &Project, victim: Victim, delay: Duration) {
    let mut client = Client::connect(service).await;
    project.repo.commit_bytes(400_000).await;
    let before = project.remote_refs(service).await;
    let after = project.repo.refs().await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let url = project.url(service);
    let (pushed, ()) = tokio::join!(project.repo.push(&url, &["main"]), async {
        tokio::time::sleep(delay).await;
        kill(service, victim).await;
    });

    let mut client = Client::connect(service).await;
    let served = client.serves(&state).await;
    let refs = project.remote_refs(service).await;
    let context = format!("{victim:?} after {delay:?}: {}", pushed.stderr);
    if pushed.ok {
        assert!(
            served,
            "success was told, but the state is not served: {context}"
        );
    }
    if served || refs == after {
        assert_eq!(refs, after, "served without its refs: {context}");
        until("refs that moved are served", || async {
            Client::connect(service).await.serves(&state).await
        })
        .await;
    } else {
        assert_eq!(refs, before, "half done: {context}");
    }

    project.repo.push(&url, &["main"]).await.good();
    assert!(client.serves(&state).await, "{context}");
    assert_eq!(project.remote_refs(service).await, after, "{context}");
    let (_, out) = Repo::clone(&url, &[]).await;
    out.good();
}

async fn hit_again_and_again(victim: Victim) {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "hit").await;
    drop(client);
    // How long a push takes here, so that the blows fall on all of it.
    let clock = std::time::Instant::now();
    project.repo.commit_bytes(400_000).await;
    let mut client = Client::connect(&service).await;
    project.update(&service, &mut client, &["main"]).await;
    let whole = clock.elapsed();
    drop(client);
    for _ in 0..8 {
        let part = rand::rng().random_range(0.0..1.1);
        hit(&mut service, &project, victim, whole.mul_f64(part)).await;
    }
    // Nothing is half done on disk either.
    let directory = service.repository_directory(&project.owner, "hit");
    let fsck = crate::support::git::run(&directory, &["fsck", "--connectivity-only"]).await;
    assert!(fsck.ok, "{}", fsck.stderr);
}

#[tokio::test]
async fn a_push_whose_gitd_is_killed_has_happened_or_has_not() {
    hit_again_and_again(Victim::Gitd).await;
}

#[tokio::test]
async fn a_push_whose_service_is_killed_has_happened_or_has_not() {
    hit_again_and_again(Victim::Main).await;
}

#[tokio::test]
async fn a_push_whose_processes_are_all_killed_has_happened_or_has_not() {
    hit_again_and_again(Victim::Both).await;
}

#[tokio::test]
async fn many_events_answered_before_a_crash_are_all_known_after_it() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let owner = crate::support::Keys::generate();
    let events: Vec<_> = (0..400)
        .map(|number| {
            let identifier = format!("many-{number}");
            crate::support::events::announcement(&service, &owner, &identifier).sign(&owner)
        })
        .collect();
    for event in &events {
        client.send(serde_json::json!(["EVENT", event])).await;
    }
    // The blow falls between two answers.
    let answered = rand::rng().random_range(50..350);
    let mut known = Vec::new();
    for event in &events[..answered] {
        client.verdict(&event.id.to_hex()).await.waits();
        known.push(event);
    }
    service.crash().await;
    let mut client = Client::connect(&service).await;
    for event in known {
        let again = client.publish(event).await;
        assert_eq!(
            (again.accepted, again.message.as_str()),
            (true, "duplicate: in purgatory")
        );
    }
}

#[tokio::test]
async fn stored_events_survive_a_crash() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "stored").await;
    let mut events = Vec::new();
    for _ in 0..20 {
        let event = issue(&project.coordinate()).sign(&project.owner);
        client.publish(&event).await.served();
        events.push(event);
    }
    service.crash().await;
    let mut client = Client::connect(&service).await;
    for event in &events {
        assert!(client.serves(event).await);
    }
}

#[tokio::test]
async fn when_the_service_is_killed_its_port_is_closed_and_no_child_is_left() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "killed").await;
    project.repo.commit_bytes(3_000_000).await;
    project.update(&service, &mut client, &["main"]).await;
    let children = processes::descendants(service.pid());
    assert!(!children.is_empty(), "the service has no children");
    service.kill();
    assert!(
        !service.listens().await,
        "the port is open after the process was reaped"
    );
    until("no child is left", || async {
        !children.iter().any(|pid| processes::alive(*pid))
    })
    .await;
    service.run().await;
    let (_, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
}

#[tokio::test]
async fn a_killed_gitd_is_started_again_and_clones_work_again() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "again").await;
    for _ in 0..3 {
        service.kill_gitd().await;
        let (_, out) = Repo::clone(&project.url(&service), &[]).await;
        out.good();
    }
    // The websocket has lived through it.
    let event = issue(&project.coordinate()).sign(&project.owner);
    client.publish(&event).await.served();
}

#[tokio::test]
async fn events_flow_while_gitd_is_down_and_are_made_good_when_it_is_back() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "down").await;
    let later = Project::new("later").await;
    let old = service.gitd().unwrap();
    processes::send(old, Signal::STOP);
    let event = issue(&project.coordinate()).sign(&project.owner);
    client.publish(&event).await.served();
    processes::send(old, Signal::KILL);
    // With gitd gone nobody can make the repository, but the announcement counts.
    let announcement = later.announcement(&service).sign(&later.owner);
    client.publish(&announcement).await.waits();
    let state = later.state().await.sign(&later.owner);
    client.publish(&state).await.waits();
    until("another gitd runs", || async {
        service.gitd().is_some_and(|new| new != old)
    })
    .await;
    service.ready().await;
    until("its repository is made", || async {
        later.hosted(&service).await
    })
    .await;
    later.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_memory_service_loses_everything_but_repositories() {
    let mut service = Service::start_with(&[("NGIT_DATABASE_BACKEND", "memory")]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "forgotten").await;
    let directory = service.repository_directory(&project.owner, "forgotten");
    service.crash().await;
    assert!(directory.is_dir());
    let mut client = Client::connect(&service).await;
    let announcement = project.announcement(&service).sign(&project.owner);
    assert!(client.publish(&announcement).await.accepted);
    let state = project.state().await.sign(&project.owner);
    assert!(client.publish(&state).await.accepted);
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}
