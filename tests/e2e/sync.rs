//! Servers that keep each other whole: events and git data found on one another.

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::json;

use crate::support::{
    Client, Draft, Event, Keys, PATIENCE, Project, Repo, Service,
    events::{self, issue},
    processes,
    quiet_relay::QuietRelay,
    until, until_within,
};

/// Follows other relays from the first second on, and tries again soon.
const EAGER: [(&str, &str); 4] = [
    ("NGIT_SYNC_STARTUP_DELAY_SECS", "0"),
    ("NGIT_SYNC_STARTUP_JITTER_MS", "0"),
    ("NGIT_SYNC_BASE_BACKOFF_SECS", "1"),
    ("NGIT_SYNC_MAX_BACKOFF_SECS", "2"),
];

fn relay_url(service: &Service) -> String {
    format!("ws://{}", service.domain())
}

/// Several services that do not run yet; all but the first are told to begin with the first.
async fn neighbours<const N: usize>(more: &[(&str, &str)]) -> [Service; N] {
    let settings: Vec<_> = EAGER.iter().chain(more).copied().collect();
    let mut services = Service::prepare_several::<N>(&settings).await;
    let first = relay_url(&services[0]);
    for service in &mut services[1..] {
        service.set("NGIT_SYNC_BOOTSTRAP_RELAY_URL", &first);
    }
    services
}

/// An announcement that lists all of these services.
fn announcement(services: &[&Service], owner: &Keys, identifier: &str) -> Draft {
    let urls = services.iter().map(|s| s.public_url(owner, identifier));
    let relays = services.iter().map(|s| relay_url(s));
    events::announcement(services[0], owner, identifier)
        .without("clone")
        .without("relays")
        .tag(std::iter::once("clone".to_owned()).chain(urls))
        .tag(std::iter::once("relays".to_owned()).chain(relays))
}

/// A project that is announced on all of these and pushed to the first.
async fn project(services: &[&Service], identifier: &str) -> (Project, [Event; 2]) {
    let mut client = Client::connect(services[0]).await;
    let project = Project::new(identifier).await;
    let announced = announcement(services, &project.owner, identifier).sign(&project.owner);
    client.publish(&announced).await.waits();
    let state = project.update(services[0], &mut client, &["main"]).await;
    (project, [announced, state])
}

async fn until_served(service: &Service, what: &str, events: &[Event]) {
    for event in events {
        until(what, || async move {
            Client::connect(service).await.serves(event).await
        })
        .await;
    }
}

async fn same_data(project: &Project, service: &Service) {
    assert_eq!(
        project.remote_refs(service).await,
        project.repo.refs().await
    );
    Repo::clone(&project.url(service), &[]).await.1.good();
}

/// The value of a metric with these labels.
async fn metric(service: &Service, name: &str) -> Option<f64> {
    let text = service.get("/metrics").await.unwrap().text();
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

#[tokio::test]
async fn what_one_has_all_have_and_what_is_said_to_one_is_said_to_all() {
    let [mut a, mut b, mut c] = neighbours(&[]).await;
    a.run().await;
    b.run().await;
    c.run().await;
    let (project, published) = project(&[&a, &b, &c], "shared").await;
    for service in [&b, &c] {
        until_served(service, "announcement and state arrive", &published).await;
        same_data(&project, service).await;
    }
    // Live, in every direction.
    for (number, from) in [&b, &c, &a].into_iter().enumerate() {
        let said = issue(&project.coordinate())
            .content(format!("number {number}"))
            .sign(&Keys::generate());
        Client::connect(from).await.publish(&said).await.served();
        for service in [&a, &b, &c] {
            until_served(service, "an issue arrives", std::slice::from_ref(&said)).await;
        }
        let comment = Draft::new(1111)
            .tag(["E", &said.id.to_hex()])
            .tag(["K", "1621"])
            .content("yes")
            .sign(&Keys::generate());
        Client::connect(from).await.publish(&comment).await.served();
        for service in [&a, &b, &c] {
            until_served(service, "a comment arrives", std::slice::from_ref(&comment)).await;
        }
    }
    // A newer state with newer data, pushed to another of them.
    project.repo.commit().await;
    let mut client = Client::connect(&b).await;
    let newer = project.update(&b, &mut client, &["main"]).await;
    for service in [&a, &c] {
        until_served(
            service,
            "the newer state arrives",
            std::slice::from_ref(&newer),
        )
        .await;
        same_data(&project, service).await;
    }
    let connected = format!("ngit_sync_relay_connected{{relay=\"{}\"}}", relay_url(&a));
    until("b says that it follows a", || async {
        metric(&b, &connected).await == Some(3.0)
    })
    .await;
    assert!(metric(&b, "ngit_sync_events_synced_total").await.unwrap() >= 2.0);
    assert!(
        metric(&b, "ngit_sync_relays_connected_total")
            .await
            .unwrap()
            >= 1.0
    );
}

/// What was there before: in full, with what hangs on it.
async fn from_nothing(settings: &[(&str, &str)]) {
    let [mut a, mut b] = neighbours(settings).await;
    a.run().await;
    let (project, published) = project(&[&a, &b], "history").await;
    let mut all = Vec::from(published);
    let mut client = Client::connect(&a).await;
    for number in 0..150 {
        let said = issue(&project.coordinate())
            .content(format!("number {number}"))
            .sign(&Keys::generate());
        client.publish(&said).await.served();
        if number % 10 == 0 {
            let comment = Draft::new(1111)
                .tag(["E", &said.id.to_hex()])
                .tag(["K", "1621"])
                .sign(&Keys::generate());
            client.publish(&comment).await.served();
            all.push(comment);
        }
        all.push(said);
    }
    b.run().await;
    let filter = json!({"kinds": [1111, 1621, 30617, 30618], "limit": 500});
    // Round by round: what refers to what came is asked for next, at a pace that spares the other relay.
    until_within(4 * PATIENCE, "all of it arrives", || async {
        let mut client = Client::connect(&b).await;
        client.query(filter.clone()).await.len() == all.len()
    })
    .await;
    same_data(&project, &b).await;

    // Restarted with nothing: all of it again.
    b.terminate();
    b.ended().await;
    for name in ["git", "relay"] {
        std::fs::remove_dir_all(b.directory().join(name)).unwrap();
    }
    b.run().await;
    until_within(4 * PATIENCE, "all of it arrives again", || async {
        let mut client = Client::connect(&b).await;
        client.query(filter.clone()).await.len() == all.len()
    })
    .await;
    same_data(&project, &b).await;
}

#[tokio::test]
async fn history_is_reconciled() {
    from_nothing(&[]).await;
}

#[tokio::test]
async fn history_is_read_by_pages_where_there_is_no_reconciling() {
    from_nothing(&[("NGIT_SYNC_DISABLE_NEGENTROPY", "true")]).await;
}

#[tokio::test]
async fn the_largest_state_that_is_taken_is_synced() {
    const LARGEST: usize = 6 << 20;
    let size = LARGEST.to_string();
    let [mut a, mut b] = neighbours(&[("NGIT_RELAY_MAX_STATE_SIZE_BYTES", size.as_str())]).await;
    a.run().await;
    b.run().await;
    let mut client = Client::connect(&a).await;
    let project = Project::new("largest").await;
    let announced = announcement(&[&a, &b], &project.owner, "largest").sign(&project.owner);
    client.publish(&announced).await.waits();
    // With what stands around its text.
    let state = project.state().await.content("x".repeat(LARGEST - 2000));
    let state = state.sign(&project.owner);
    assert!((LARGEST - 2000..=LARGEST).contains(&state.as_json().len()));
    client.publish(&state).await.waits();
    project.push(&a, &["main"]).await.good();
    until_served(&b, "announcement and state arrive", &[announced, state]).await;
    same_data(&project, &b).await;
}

#[tokio::test]
async fn what_happened_while_a_neighbour_was_away_is_caught_up_with() {
    let [mut a, mut b] = neighbours(&[]).await;
    a.run().await;
    b.run().await;
    let (project, published) = project(&[&a, &b], "away").await;
    until_served(&b, "announcement and state arrive", &published).await;
    a.terminate();
    a.ended().await;
    let said = issue(&project.coordinate()).sign(&Keys::generate());
    Client::connect(&b).await.publish(&said).await.served();
    a.run().await;
    until_served(&a, "what was said meanwhile arrives", &[said]).await;
}

/// Two workers share the relays; one of them dies.
#[tokio::test]
async fn a_dead_worker_s_relays_are_taken_over() {
    let [mut a, mut b] = neighbours(&[("NGIT_WORKERS", "2")]).await;
    a.run().await;
    b.run().await;
    let (project, published) = project(&[&a, &b], "taken-over").await;
    until_served(&b, "announcement and state arrive", &published).await;
    for pid in b.workers() {
        processes::send(pid, Signal::KILL);
    }
    let said = issue(&project.coordinate()).sign(&Keys::generate());
    Client::connect(&a).await.publish(&said).await.served();
    until_served(&b, "what is said then still arrives", &[said]).await;
}

/// Forty relays among four workers: each with one, shared evenly, through deaths and a relay of ours
/// that stands still.
#[tokio::test]
async fn remote_relays_are_shared_out_and_none_is_followed_twice() {
    let settings: Vec<_> = EAGER.into_iter().chain([("NGIT_WORKERS", "4")]).collect();
    let service = Service::start_with(&settings).await;
    let mut relays = Vec::new();
    for _ in 0..40 {
        relays.push(QuietRelay::start().await);
    }
    let mut client = Client::connect(&service).await;
    for (number, share) in relays.chunks(15).enumerate() {
        let owner = Keys::generate();
        let mut urls = vec!["relays".to_owned(), relay_url(&service)];
        urls.extend(share.iter().map(QuietRelay::url));
        let announced = events::announcement(&service, &owner, &format!("many-{number}"))
            .without("relays")
            .tag(urls);
        client.publish(&announced.sign(&owner)).await.waits();
    }
    let all_followed = || async { relays.iter().all(|relay| relay.open() == 1) };
    let evenly_shared = || async {
        let status = service.status().await;
        let mut shares = BTreeMap::new();
        for relay in status["sync"]["relays"].as_array().unwrap() {
            *shares.entry(relay["worker"].to_string()).or_insert(0) += 1;
        }
        shares.len() == 4 && shares.values().all(|share| *share == 10)
    };
    until("all are followed", all_followed).await;
    until("each worker has its share", evenly_shared).await;

    for worker in &service.workers()[..2] {
        processes::send(*worker, Signal::KILL);
    }
    until("the dead workers' are let go", || async {
        relays.iter().any(|relay| relay.open() == 0)
    })
    .await;
    until("all are followed again", all_followed).await;
    until("each worker has its share again", evenly_shared).await;

    // Its workers cannot reach it: they let go before their leases end.
    processes::send(service.pid(), Signal::STOP);
    until("all are let go", || async {
        relays.iter().all(|relay| relay.open() == 0)
    })
    .await;
    processes::send(service.pid(), Signal::CONT);
    until("all are followed once more", all_followed).await;
    for relay in &relays {
        assert_eq!(relay.most_open(), 1);
    }
}
