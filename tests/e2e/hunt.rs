//! Git data that is elsewhere: found, fetched, and served as soon as it is here.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::Signal;

use crate::support::{
    Client, Draft, Event, Keys, Project, Repo, Service,
    events::{self, pull_request, state},
    host::{Host, Manner},
    processes, until,
};

/// A service that hunts for users' events almost at once.
async fn hunting(settings: &[(&str, &str)]) -> Service {
    let mut all = vec![("NGIT_SYNC_DEFAULT_DELAY_SECS", "0")];
    all.extend(settings);
    Service::start_with(&all).await
}

/// An announcement that lists the service and these servers besides.
fn announcement(service: &Service, owner: &Keys, identifier: &str, elsewhere: &[String]) -> Draft {
    let mut urls = vec!["clone".to_owned(), service.public_url(owner, identifier)];
    urls.extend_from_slice(elsewhere);
    events::announcement(service, owner, identifier)
        .without("clone")
        .tag(urls)
}

/// Publishes announcement and state of a project whose data lies elsewhere; gives both.
async fn lies_elsewhere(
    service: &Service,
    client: &mut Client,
    project: &Project,
    elsewhere: &[String],
) -> [Event; 2] {
    let announced = announcement(service, &project.owner, &project.identifier, elsewhere);
    let announced = announced.sign(&project.owner);
    client.publish(&announced).await.waits();
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    [announced, state]
}

async fn served(service: &Service, event: &Event) -> bool {
    Client::connect(service).await.serves(event).await
}

async fn until_served(service: &Service, what: &str, events: &[Event]) {
    for event in events {
        until(what, || served(service, event)).await;
    }
}

/// Files that a pack on its way in leaves while it is.
fn quarantined(service: &Service) -> usize {
    let files = processes::files(&service.git_data());
    let inside = files.iter().filter(|path| {
        path.components()
            .any(|part| part.as_os_str().to_string_lossy().contains("quarantine"))
    });
    inside.count()
}

#[tokio::test]
async fn what_lies_on_another_server_is_found_and_served() {
    let service = hunting(&[]).await;
    let mut client = Client::connect(&service).await;
    let host = Host::start().await;
    let project = Project::new("elsewhere").await;
    project
        .repo
        .git(&["tag", "-a", "-m", "one", "v1"])
        .await
        .good();
    let url = host.hold("copy", &project.repo, &["main", "v1"]).await;
    let published = lies_elsewhere(&service, &mut client, &project, &[url]).await;
    until_served(&service, "what was found is served", &published).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
    let (copy, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    copy.git(&["fsck", "--full"]).await.good();
}

#[tokio::test]
async fn only_the_difference_travels() {
    let service = hunting(&[]).await;
    let mut client = Client::connect(&service).await;
    let host = Host::start().await;
    let project = Project::new("difference").await;
    project.repo.commit_bytes(1_000_000).await;
    let url = host.hold("copy", &project.repo, &["main"]).await;
    let published = lies_elsewhere(&service, &mut client, &project, &[url]).await;
    until_served(&service, "the first data is served", &published).await;
    let before = host.sent();
    assert!(before > 1_000_000, "{before}");

    project.repo.commit().await;
    host.hold("copy", &project.repo, &["main"]).await;
    let newer = project.state().await.sign(&project.owner);
    client.publish(&newer).await.waits();
    until("the newer state is served", || served(&service, &newer)).await;
    let difference = host.sent() - before;
    assert!(
        difference < 10_000,
        "{difference} bytes for one small commit"
    );
}

/// Three maintainers, three states, three servers: one good, one slow, one down.
#[tokio::test]
async fn each_state_is_served_as_soon_as_its_own_data_is_here() {
    let service = hunting(&[]).await;
    let mut client = Client::connect(&service).await;
    let [good, slow, down] = [
        Host::start().await,
        Host::start().await,
        Host::start().await,
    ];
    slow.behaves(Manner::Slow(Duration::from_secs(4)));
    let project = Project::new("split").await;
    let (second, third) = (Keys::generate(), Keys::generate());
    let mut commits = BTreeMap::new();
    for (name, host) in [("one", &good), ("two", &slow), ("three", &down)] {
        project
            .repo
            .git(&["checkout", "-q", "--orphan", name])
            .await
            .good();
        commits.insert(name, project.repo.commit().await);
        host.hold("copy", &project.repo, &[name]).await;
    }
    let urls = [&down, &good, &slow].map(|host| host.url("copy"));
    drop(down);
    let announced = announcement(&service, &project.owner, "split", &urls)
        .maintainers(&[&second, &third])
        .sign(&project.owner);
    client.publish(&announced).await.waits();
    for maintainer in [&second, &third] {
        let answer = events::elsewhere("split").without("clone");
        let answer = answer.maintainers(&[&project.owner]).sign(maintainer);
        client.publish(&answer).await.served();
    }
    let of = |name: &str| {
        let branch = format!("refs/heads/{name}");
        state("split", &[(branch.as_str(), commits[name].as_str())])
    };
    let [first, later, never] = [
        of("one").sign(&project.owner),
        of("two").sign(&second),
        of("three").sign(&third),
    ];
    for event in [&first, &later, &never] {
        client.publish(event).await.waits();
    }
    let published = [announced, first];
    until_served(&service, "the good server's is served", &published).await;
    assert!(
        !served(&service, &later).await,
        "the slow server has answered already: nothing was served before it"
    );
    until("the slow server's is served", || served(&service, &later)).await;
    assert!(!served(&service, &never).await);
}

#[tokio::test]
async fn a_pull_request_is_found_at_its_own_clone_url() {
    let service = hunting(&[]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "upstream").await;
    let host = Host::start().await;
    let (fork, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    let commit = fork.commit().await;
    let url = host.hold("fork", &fork, &["main"]).await;
    let contributor = Keys::generate();
    let request = pull_request(&project.coordinate(), &commit)
        .tag(["clone", &url])
        .sign(&contributor);
    client.publish(&request).await.waits();
    until("the pull request is served", || served(&service, &request)).await;
    let name = format!("refs/nostr/{}", request.id.to_hex());
    assert_eq!(project.remote_ref(&service, &name).await, Some(commit));
}

#[tokio::test]
async fn another_grasp_server_is_a_source() {
    let settings = [("NGIT_SYNC_DEFAULT_DELAY_SECS", "0")];
    let [mut origin, mut service] = Service::prepare_several(&settings).await;
    origin.run().await;
    service.run().await;
    let mut client = Client::connect(&origin).await;
    let project = Project::active(&origin, &mut client, "both").await;
    let mut client = Client::connect(&service).await;
    let url = origin.public_url(&project.owner, "both");
    let published = lies_elsewhere(&service, &mut client, &project, &[url]).await;
    until_served(&service, "what lies at the other is served", &published).await;
}

/// Other servers' words lead nowhere they should not, and the good one is still found.
#[tokio::test]
async fn hostile_servers_waste_their_own_time_only() {
    let service = hunting(&[]).await;
    let mut client = Client::connect(&service).await;
    let good = Host::start().await;
    let innocent = Host::start().await;
    let looping = Host::start().await;
    looping.behaves(Manner::Redirecting(String::new()));
    let advertisement = "application/x-git-upload-pack-advertisement";
    let others = [
        Manner::Endless,
        Manner::Redirecting("file://".to_owned()),
        Manner::Redirecting("http://169.254.169.254".to_owned()),
        Manner::Redirecting("http://[::ffff:10.0.0.1]".to_owned()),
        Manner::Failing(500),
        Manner::Saying(advertisement, vec![b'x'; 1 << 20].into()),
        Manner::Saying("text/html", "<html>".into()),
    ];
    let project = Project::new("hostile").await;
    let other = Repo::new().await;
    let mut urls = vec![
        "file:///etc/passwd".to_owned(),
        format!("http://user:secret@127.0.0.1:{}/copy.git", innocent.port),
        looping.url("copy"),
    ];
    let mut hosts = vec![looping];
    for manner in others {
        let host = Host::with(manner).await;
        // What it has is of no use: the wrong objects.
        urls.push(host.hold("copy", &other, &["main"]).await);
        hosts.push(host);
    }
    urls.push(good.hold("copy", &project.repo, &["main"]).await);
    let published = lies_elsewhere(&service, &mut client, &project, &urls).await;
    until_served(&service, "the good server's is served", &published).await;
    until("nothing is left of what was refused", || async {
        quarantined(&service) == 0
    })
    .await;
    assert!(!service.log().contains("secret"), "credentials are logged");
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_and_leaves_nothing() {
    let service = hunting(&[("NGIT_WORKERS", "2")]).await;
    let mut client = Client::connect(&service).await;
    let host = Host::start().await;
    let project = Project::new("interrupted").await;
    project.repo.commit_bytes(2_000_000).await;
    let url = host.hold("copy", &project.repo, &["main"]).await;
    host.behaves(Manner::Dripping(Duration::from_millis(1)));
    let published = lies_elsewhere(&service, &mut client, &project, &[url]).await;
    until("a pack is on its way in", || async {
        quarantined(&service) > 0
    })
    .await;
    host.behaves(Manner::Good);
    for worker in service.workers() {
        processes::send(worker, Signal::KILL);
    }
    until("what was coming in is gone", || async {
        quarantined(&service) == 0
    })
    .await;
    until_served(&service, "another worker finishes", &published).await;
    assert_eq!(service.workers().len(), 2);
}

/// Many identifiers on few servers, a crash in the middle: all served, no server asked too much.
#[tokio::test]
async fn budgets_hold_through_a_crash() {
    let settings = [
        ("NGIT_WORKERS", "2"),
        ("NGIT_SYNC_MAX_CONCURRENT_PER_DOMAIN", "2"),
        ("NGIT_SYNC_MAX_PER_MINUTE_PER_DOMAIN", "12"),
    ];
    let mut service = hunting(&settings).await;
    let mut client = Client::connect(&service).await;
    let mut hosts = Vec::new();
    for _ in 0..3 {
        hosts.push(Host::with(Manner::Slow(Duration::from_millis(150))).await);
    }
    let project = Project::new("one-of-many").await;
    for host in &hosts {
        host.hold("copy", &project.repo, &["main"]).await;
    }
    let mut published = Vec::new();
    for number in 0..30 {
        let owner = Keys::generate();
        let identifier = format!("of-many-{number}");
        let url = hosts[number % hosts.len()].url("copy");
        let announced = announcement(&service, &owner, &identifier, &[url]).sign(&owner);
        client.publish(&announced).await.waits();
        let refs = project.repo.refs().await;
        let state = state(&identifier, &refs).sign(&owner);
        client.publish(&state).await.waits();
        published.extend([announced, state]);
    }
    until("the hunt has begun", || async {
        hosts.iter().any(|host| host.attempts().len() > 3)
    })
    .await;
    service.crash().await;
    until_served(&service, "all are served", &published).await;
    for host in &hosts {
        assert!(host.most_in_a_minute() <= 12, "{}", host.most_in_a_minute());
        assert!(host.most_at_once() <= 2, "{}", host.most_at_once());
    }
}

#[tokio::test]
async fn the_status_says_what_is_hunted_for() {
    let service = hunting(&[("NGIT_WORKERS", "3")]).await;
    let mut client = Client::connect(&service).await;
    let host = Host::start().await;
    let project = Project::new("never").await;
    let url = host.url("nothing-there");
    lies_elsewhere(&service, &mut client, &project, &[url]).await;
    until("all workers are there, and an attempt was made", || async {
        let status = service.status().await;
        status["workers"].as_array().unwrap().len() == 3
            && status["queue"]["entries"][0]["attempts"] == 1
    })
    .await;
    let status = service.status().await;
    assert_eq!(status["queue"]["identifiers"], 1);
    assert_eq!(status["queue"]["entries"][0]["identifier"], "never");
    let waiting = |kind: &str| {
        let kinds = status["purgatory"]["kinds"].as_array().unwrap();
        kinds.iter().find(|k| k["kind"] == kind).unwrap()["entries"].clone()
    };
    assert_eq!(
        (waiting("announcements"), waiting("states")),
        (1.into(), 1.into())
    );
    let metrics = service.get("/metrics").await.unwrap().text();
    for line in [
        "purgatory_sync_queue_size 1",
        "purgatory_sync_oids_fetched_total 0",
    ] {
        assert!(metrics.contains(line), "{line}:\n{metrics}");
    }
}

#[tokio::test]
async fn what_a_repository_lost_is_hunted_for_again() {
    let mut service = hunting(&[]).await;
    let mut client = Client::connect(&service).await;
    let host = Host::start().await;
    let project = Project::new("lossy").await;
    let url = host.hold("copy", &project.repo, &["main"]).await;
    let published = lies_elsewhere(&service, &mut client, &project, &[url]).await;
    until_served(&service, "what was found is served", &published).await;
    service.terminate();
    service.ended().await;
    for file in processes::files(&service.git_data()) {
        if file
            .extension()
            .is_some_and(|e| e == "pack" || e == "idx" || e == "rev")
        {
            std::fs::remove_file(file).unwrap();
        }
    }
    service.run().await;
    until("it can be cloned again", || async {
        Repo::clone(&project.url(&service), &[]).await.1.ok
    })
    .await;
}

/// A worker that stands still, as one that is cut off would seem to, and then goes on.
#[tokio::test]
async fn a_worker_that_was_cut_off_brings_nothing_in_afterwards() {
    let service = hunting(&[("NGIT_WORKERS", "2")]).await;
    let mut client = Client::connect(&service).await;
    let host = Host::start().await;
    let project = Project::new("cut-off").await;
    project.repo.commit_bytes(8_000_000).await;
    let url = host.hold("copy", &project.repo, &["main"]).await;
    host.behaves(Manner::Dripping(Duration::from_millis(1)));
    let published = lies_elsewhere(&service, &mut client, &project, &[url]).await;
    until("a pack is on its way in", || async {
        quarantined(&service) > 0
    })
    .await;
    let workers = service.workers();
    for worker in &workers {
        processes::send(*worker, Signal::STOP);
    }
    // What is in the sockets' buffers may still go.
    let mut before = 0;
    until("the transfer stands still", || {
        let now = host.sent();
        let still = now == std::mem::replace(&mut before, now);
        async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            still
        }
    })
    .await;
    host.behaves(Manner::Good);
    until(
        "its grant has run out, and nothing is left of it",
        || async { quarantined(&service) == 0 },
    )
    .await;
    assert!(!served(&service, &published[1]).await);
    for worker in &workers {
        processes::send(*worker, Signal::CONT);
    }
    until_served(&service, "it is found all the same", &published).await;
    until("nothing is left", || async { quarantined(&service) == 0 }).await;
}

#[tokio::test]
async fn many_events_at_once_are_one_attempt() {
    let service = hunting(&[("NGIT_SYNC_DEFAULT_DELAY_SECS", "2")]).await;
    let mut client = Client::connect(&service).await;
    let host = Host::start().await;
    let project = Project::new("burst").await;
    let url = host.hold("copy", &project.repo, &["main"]).await;
    let mut published = Vec::from(lies_elsewhere(&service, &mut client, &project, &[url]).await);
    for _ in 0..9 {
        let state = project.state().await.sign(&project.owner);
        client.publish(&state).await.waits();
        published.push(state);
    }
    let last = [published[0].clone(), published[10].clone()];
    until_served(&service, "the last is served", &last).await;
    assert_eq!(host.attempts().len(), 1, "{:?}", host.attempts());
}
