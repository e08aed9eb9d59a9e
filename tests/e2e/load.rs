//! Many at once: nothing is lost, nothing happens twice, nobody waits for the others.
//!
//! `GRASPD_E2E_SCALE` multiplies the numbers (1 by default).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use futures::{SinkExt, StreamExt, stream};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Client, Event, Keys, PATIENCE, Repo, Service,
    events::{announcement, elsewhere, issue, state},
    git, processes, soon,
};

fn scaled(number: usize) -> usize {
    let scale = std::env::var("GRASPD_E2E_SCALE")
        .ok()
        .and_then(|text| text.parse().ok());
    number * scale.unwrap_or(1)
}

/// How many objects of the project a repository of `load` shares with the others.
struct Shared {
    repo: Repo,
    first: String,
    second: String,
}

/// One repository's two states, pushed one after the other; every fourth push has a rival.
async fn two_pushes(service: &Service, shared: &Shared, owner: &Keys, number: usize) -> Vec<Event> {
    let mut client = Client::connect(service).await;
    let identifier = format!("load-{number}");
    let url = service.url(owner, &identifier);
    let announced = announcement(service, owner, &identifier).sign(owner);
    client.publish(&announced).await.waits();
    let mut expected = vec![announced];
    for commit in [&shared.first, &shared.second] {
        let signed = state(&identifier, &[("refs/heads/main", commit)]).sign(owner);
        client.publish(&signed).await.waits();
        let spec = format!("{commit}:refs/heads/main");
        let specs = [spec.as_str()];
        if number.is_multiple_of(4) {
            let (one, other) = tokio::join!(
                shared.repo.push(&url, &specs),
                shared.repo.push(&url, &specs)
            );
            one.good();
            other.good();
        } else {
            shared.repo.push(&url, &specs).await.good();
        }
        assert!(client.serves(&signed).await, "{identifier} is not served");
        assert_eq!(
            git::remote_ref(&url, "refs/heads/main").await.as_ref(),
            Some(commit)
        );
        expected.push(signed);
    }
    expected
}

#[tokio::test]
async fn two_hundred_pushes_to_a_hundred_repositories_are_each_released_once() {
    let service = Service::start().await;
    let mut reader = Client::connect(&service).await;
    let filter = json!({"kinds": [30617, 30618], "limit": 0});
    let (subscription, _) = reader.subscribe(filter).await;
    let repo = Repo::new().await;
    let first = repo.oid("main").await;
    let second = repo.commit().await;
    let shared = Arc::new(Shared {
        repo,
        first,
        second,
    });
    let owner = Keys::generate();
    let expected: Vec<Vec<Event>> = stream::iter(0..scaled(100))
        .map(|number| two_pushes(&service, &shared, &owner, number))
        .buffer_unordered(8)
        .collect()
        .await;

    let mut seen: HashMap<String, usize> = HashMap::new();
    for event in reader.live_so_far(&subscription).await {
        *seen.entry(event.id.to_hex()).or_default() += 1;
    }
    for event in expected.iter().flatten() {
        let times = seen.remove(&event.id.to_hex()).unwrap_or(0);
        assert_eq!(times, 1, "kind {} was seen {times} times", event.kind);
    }
    assert!(seen.is_empty(), "events nobody published: {seen:?}");
}

#[tokio::test]
async fn rivals_for_one_ref_leave_it_as_one_of_them_signed() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let (owner, maintainer) = (Keys::generate(), Keys::generate());
    let draft = announcement(&service, &owner, "rivals").maintainers(&[&maintainer]);
    client.publish(&draft.sign(&owner)).await.waits();
    let answer = elsewhere("rivals").maintainers(&[&owner]).sign(&maintainer);
    client.publish(&answer).await.served();
    let url = service.url(&owner, "rivals");
    let repo = Repo::new().await;
    for _ in 0..6 {
        // Two signers, two commits, both pushed at once.
        let base = repo.oid("main").await;
        let mut rivals = Vec::new();
        for keys in [&owner, &maintainer] {
            repo.git(&["reset", "-q", "--hard", &base]).await.good();
            let commit = repo.commit().await;
            let signed = state("rivals", &[("refs/heads/main", &commit)]).sign(keys);
            client.publish(&signed).await.waits();
            rivals.push((commit, signed));
        }
        let specs = rivals
            .iter()
            .map(|(commit, _)| format!("+{commit}:refs/heads/main"));
        let specs: Vec<String> = specs.collect();
        let pushes = specs.iter().map(|spec| async {
            let specs = [spec.as_str()];
            repo.push(&url, &specs).await
        });
        let outs = futures::future::join_all(pushes).await;
        // The later state is the one that counts, whoever came first.
        let (commit, signed) = &rivals[1];
        repo.push(&url, &[&specs[1]]).await.good();
        assert!(outs[1].ok || client.serves(signed).await, "{outs:?}");
        assert!(client.serves(signed).await);
        let refs = git::remote_refs(&url).await;
        assert_eq!(refs, [("refs/heads/main".to_owned(), commit.clone())]);
    }
}

#[tokio::test]
async fn many_announcements_of_one_identifier_hold_up_no_push_and_copy_no_object() {
    const SIZE: usize = 2_000_000;
    let owners = scaled(120);
    // All of them are asked for in one question.
    let service = Service::start_with(&[("NGIT_RELAY_FILTER_LIMIT", "5000")]).await;
    let mut client = Client::connect(&service).await;
    let author = Keys::generate();
    let crowd: Vec<Keys> = (0..owners).map(|_| Keys::generate()).collect();
    // The author has deputies, who name back the others, as many as one announcement may name.
    let deputies: Vec<Keys> = crowd.chunks(200).map(|_| Keys::generate()).collect();
    let named: Vec<&Keys> = deputies.iter().collect();
    let draft = announcement(&service, &author, "crowd").maintainers(&named);
    client.publish(&draft.sign(&author)).await.waits();
    for (deputy, some) in deputies.iter().zip(crowd.chunks(200)) {
        let named: Vec<&Keys> = some.iter().chain([&author]).collect();
        let answer = elsewhere("crowd").maintainers(&named).sign(deputy);
        client.publish(&answer).await.served();
    }
    let repo = Repo::new().await;
    repo.commit_bytes(SIZE).await;
    let main = repo.oid("main").await;
    let signed = state("crowd", &[("refs/heads/main", &main)]).sign(&author);
    client.publish(&signed).await.waits();

    // All the others name the author as a maintainer, and a deputy.
    let by_deputy = deputies.iter().zip(crowd.chunks(200));
    let announcements: Vec<Event> = by_deputy
        .flat_map(|(deputy, some)| some.iter().map(move |keys| (deputy, keys)))
        .map(|(deputy, keys)| {
            let draft = announcement(&service, keys, "crowd").maintainers(&[&author, deputy]);
            draft.sign(keys)
        })
        .collect();
    let mut publisher = Client::connect(&service).await;
    for event in &announcements {
        publisher.send(json!(["EVENT", event])).await;
    }
    let url = service.url(&author, "crowd");
    let clock = Instant::now();
    repo.push(&url, &["main"]).await.good();
    assert!(
        clock.elapsed() < PATIENCE / 3,
        "the push took {:?}",
        clock.elapsed()
    );
    assert!(client.serves(&signed).await);

    for event in &announcements {
        assert!(publisher.verdict(&event.id.to_hex()).await.accepted);
    }
    // Every owner's repository is aligned and every announcement served.
    let (reader, last) = (&mut publisher, json!({"kinds": [30617], "#d": ["crowd"]}));
    let all_served = async {
        while reader.query(last.clone()).await.len() < owners + deputies.len() + 1 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let served = tokio::time::timeout(PATIENCE, all_served).await;
    assert!(served.is_ok(), "not every announcement is served");
    for keys in crowd.iter().step_by(50) {
        let value = git::remote_ref(&service.url(keys, "crowd"), "refs/heads/main").await;
        assert_eq!(value.as_ref(), Some(&main));
    }
    let bytes: u64 = processes::files(&service.git_data())
        .iter()
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    let room = 3 * SIZE + owners * 4096;
    assert!(bytes < room as u64, "{bytes} bytes for a pack of {SIZE}");
}

#[tokio::test]
async fn every_subscriber_sees_every_event_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = crate::support::Project::active(&service, &mut client, "fan-out").await;
    let filter = json!({"kinds": [1621], "limit": 0});
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut reader = Client::connect(&service).await;
        let (subscription, _) = reader.subscribe(filter.clone()).await;
        readers.push((reader, subscription));
    }
    let mut expected = Vec::new();
    for number in 0..200 {
        let draft = issue(&project.coordinate()).content(number.to_string());
        let event = draft.sign(&project.owner);
        client.send(json!(["EVENT", event])).await;
        expected.push(event);
    }
    for event in &expected {
        client.verdict(&event.id.to_hex()).await.served();
    }
    for (reader, subscription) in &mut readers {
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            seen.push(reader.live(subscription).await.id);
        }
        assert_eq!(reader.live_so_far(subscription).await, []);
        seen.sort();
        let mut wanted: Vec<_> = expected.iter().map(|event| event.id).collect();
        wanted.sort();
        assert_eq!(seen, wanted);
    }
}

#[tokio::test]
async fn slow_readers_are_told_and_dropped_and_nobody_else_misses_an_event() {
    const READERS: usize = 8;
    let events = scaled(2000);
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = crate::support::Project::active(&service, &mut client, "slow").await;
    let filter = json!({"kinds": [1621], "limit": 0});
    let mut slow = Vec::new();
    for _ in 0..3 {
        let mut socket = Client::raw_socket(service.port).await;
        let request = json!(["REQ", "slow", filter]).to_string();
        socket.send(Message::text(request)).await.unwrap();
        let answer = socket.next().await.unwrap().unwrap();
        assert!(answer.to_text().unwrap().contains("EOSE"), "{answer}");
        slow.push(socket);
    }
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut reader = Client::connect(&service).await;
        let (subscription, _) = reader.subscribe(filter.clone()).await;
        readers.push(tokio::spawn(async move {
            let mut seen = HashSet::new();
            while seen.len() < events {
                assert!(
                    seen.insert(reader.live_id(&subscription).await),
                    "seen twice"
                );
            }
            seen
        }));
    }
    let mut expected = HashSet::new();
    for number in 0..events {
        let draft = issue(&project.coordinate()).content(format!("{number:06000}"));
        let event = draft.sign(&project.owner);
        client.publish(&event).await.served();
        expected.insert(event.id.to_hex());
    }
    for reader in readers {
        assert_eq!(reader.await.unwrap(), expected);
    }
    for mut socket in slow {
        let mut last = Vec::new();
        while let Some(Ok(message)) = soon("the end of a slow reader", socket.next()).await {
            if !message.is_text() || message.to_text().unwrap().starts_with("[\"NOTICE\"") {
                last.push(message);
            }
        }
        let reason = last.iter().any(|message| match message {
            Message::Close(Some(frame)) => !frame.reason.is_empty(),
            message => message.is_text(),
        });
        assert!(reason, "dropped without a reason: {last:?}");
    }
}
