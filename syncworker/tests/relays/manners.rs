//! Remote relays that misbehave: none of them holds up another.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use grasp_proto::contract::{
    event_size::{MAX_EVENT_BYTES, MAX_FRAMED_EVENT_BYTES},
    relay::{Level, Method, RelayState, Target},
};
use grasp_syncworker::relays::Config;
use nostr::{Event, Keys};
use serde_json::json;

use crate::{
    good_relay,
    remote::{Manners, Refusal, Remote},
    stand::{IDENTIFIER, Project, Stand, config, event, timing, told, until, work},
};

/// Many repositories, each with one root event, and the last event of each.
fn many(count: u8, url: &str) -> Vec<Target> {
    let keys = Keys::generate();
    (0..count)
        .map(|n| Target {
            repository: Some(grasp_proto::contract::relay::Repository {
                owner: keys.public_key().to_bytes().to_vec(),
                identifier: format!("{n:0>240}"),
                endpoint: grasp_proto::contract::relay::Endpoint::Standard.into(),
            }),
            level: Level::Full.into(),
            relays: vec![url.to_owned()],
            new_roots: vec![vec![n; 32]],
            generation: 1,
        })
        .collect()
}

/// A bad relay and a good one, wanted of one worker; the good one's events arrive.
async fn beside_a_good_one(manners: Manners) -> (Arc<Stand>, Arc<Remote>, crate::stand::Worker) {
    let project = Project::new(30);
    let (_relay, url) = good_relay(&project.all).await;
    let bad = Remote::start(manners, vec![]).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&url, &bad.url])]));
    stand.lease(&bad.url, 1);
    let worker = work(&stand, config(), timing());
    until("the bad one is connected to", || {
        bad.connections.load(SeqCst) > 0
    })
    .await;
    stand.lease(&url, 2);
    until("the other one is synced", || {
        stand.is(&url, RelayState::Connected)
    })
    .await;
    assert!(stand.has(&project.all));
    (stand, bad, worker)
}

#[tokio::test]
async fn one_that_closes_at_once_is_tried_again_and_again() {
    let manners = Manners {
        close_at_once: true,
        ..Manners::default()
    };
    let (stand, bad, _worker) = beside_a_good_one(manners).await;
    until("it is tried again", || bad.connections.load(SeqCst) >= 4).await;
    until("it is said why", || {
        let report = stand.report(&bad.url).unwrap();
        report.last_error.contains("closed the connection")
    })
    .await;
}

#[tokio::test]
async fn one_that_never_says_it_has_sent_everything_is_followed_all_the_same() {
    let manners = Manners {
        never_eose: true,
        ..Manners::default()
    };
    let (stand, bad, _worker) = beside_a_good_one(manners).await;
    let with_failures = RelayState::ConnectedWithFailures;
    until("its history has failed", || {
        stand.is(&bad.url, with_failures)
    })
    .await;
    let live = event(&Keys::generate(), 10317, 1_700_000_000, &[]);
    bad.publish(live.clone());
    until("what is new comes", || stand.has([&live])).await;
    assert_eq!(bad.connections.load(SeqCst), 1);
    bad.manners.lock().unwrap().never_eose = false;
    until("its history is tried again", || {
        stand.is(&bad.url, RelayState::Connected)
    })
    .await;
}

#[tokio::test]
async fn one_that_allows_ten_subscriptions_has_ten_and_misses_nothing() {
    for said in [true, false] {
        let manners = Manners {
            limitation: said.then(|| json!({"max_subscriptions": 4, "max_message_length": 70_000})),
            subscriptions: 4,
            notice: !said,
            ..Manners::default()
        };
        let bad = Remote::start(manners, vec![]).await;
        let stand = Stand::new();
        let targets = many(120, &bad.url);
        stand.tell(told(targets.clone()));
        stand.lease(&bad.url, 1);
        let _worker = work(&stand, config(), timing());
        until("its history is complete", || {
            stand.is(&bad.url, RelayState::Connected)
        })
        .await;
        // Of the first and the last: whatever is not subscribed to is polled.
        let at = nostr::Timestamp::now().as_secs();
        let live: Vec<Event> = [0, 60, 119]
            .into_iter()
            .map(|n: u8| {
                let root = nostr::EventId::from_byte_array([n; 32]).to_hex();
                event(&Keys::generate(), 1111, at, &[["E", &root]])
            })
            .collect();
        for event in &live {
            bad.publish(event.clone());
        }
        until("what is new comes", || stand.has(&live)).await;
        assert!(bad.most.load(SeqCst) <= 4);
        assert_eq!(bad.connections.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn one_that_says_rate_limited_is_left_alone_and_then_asked_again() {
    let project = Project::new(10);
    let manners = Manners {
        rate_limited: 1,
        ..Manners::default()
    };
    let remote = Remote::start(manners, project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("all of it is here", || stand.has(&project.all)).await;
    let asked = remote.asked();
    // What was on its way when it said so may still arrive; after that there is silence.
    let quiet = asked
        .windows(2)
        .map(|two| two[1].at - two[0].at)
        .max()
        .unwrap();
    assert!(quiet >= Duration::from_millis(600), "{quiet:?}");
    let live = asked.iter().filter(|asked| asked.is_live()).count();
    assert!(
        live >= 2,
        "the subscription that it did not hear is sent again"
    );
    assert_eq!(remote.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn one_that_refuses_everything_is_connected_with_failures() {
    let manners = Manners {
        closes: Some("restricted: members only"),
        ..Manners::default()
    };
    let (stand, bad, _worker) = beside_a_good_one(manners).await;
    let with_failures = RelayState::ConnectedWithFailures;
    until("it is said", || stand.is(&bad.url, with_failures)).await;
    let report = stand.report(&bad.url).unwrap();
    assert!(report.last_error.contains("members only"), "{report:?}");
    assert_eq!(report.confirmed, 0);
    assert_eq!(bad.connections.load(SeqCst), 1);
}

/// A synced relay that refuses to be followed, and what it was brought while it did.
async fn not_followed(poll: Duration) -> (Arc<Stand>, Arc<Remote>, crate::stand::Worker, Event) {
    let project = Project::new(4);
    let manners = Manners {
        refuses_live: true,
        ..Manners::default()
    };
    let remote = Remote::start(manners, project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let mut timing = timing();
    timing.poll = poll;
    let worker = work(&stand, config(), timing);
    until("its history is complete", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    let id = project.root.id.to_hex();
    let at = nostr::Timestamp::now().as_secs();
    let new = event(&project.owner, 1111, at, &[["e", &id]]);
    remote.publish(new.clone());
    (stand, remote, worker, new)
}

#[tokio::test]
async fn one_that_refuses_to_be_followed_is_polled() {
    let (stand, remote, _worker, new) = not_followed(Duration::from_millis(300)).await;
    until("what is new comes", || stand.has([&new])).await;
    assert_eq!(remote.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn what_came_while_it_was_not_followed_is_asked_for_when_it_is() {
    let (stand, remote, _worker, new) = not_followed(Duration::from_secs(3600)).await;
    remote.manners.lock().unwrap().refuses_live = false;
    until("what is new comes", || stand.has([&new])).await;
    assert_ne!(stand.known().came[&new.id], Method::Live);
    assert_eq!(remote.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn one_that_names_what_it_does_not_send_is_read_by_pages() {
    let project = Project::new(10);
    let manners = Manners {
        refusal: Refusal::Lies,
        ..Manners::default()
    };
    let remote = Remote::start(manners, project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("its history is complete", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    assert!(stand.has(&project.all));
    let asked = remote.asked();
    let opened = asked
        .iter()
        .filter(|asked| asked.verb == "NEG-OPEN")
        .count();
    let by_id = asked.iter().filter(|asked| {
        let mut filters = asked.filters.iter();
        filters.any(|filter| filter.ids.is_some())
    });
    assert_eq!((opened, by_id.count()), (2, 6), "three times each");
}

#[tokio::test]
async fn what_is_for_the_moment_only_is_not_synced() {
    let project = Project::new(0);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    let id = project.root.id.to_hex();
    let of = |kind| event(&project.owner, kind, 1_800_000_000, &[["e", &id]]);
    let passing = [of(20_000), of(29_999)];
    let lasting = of(1111);
    for event in passing.iter().chain([&lasting]) {
        remote.publish(event.clone());
    }
    until("what lasts comes", || stand.has([&lasting])).await;
    assert!(passing.iter().all(|event| !stand.has([event])));
}

#[tokio::test]
async fn one_that_wants_to_know_who_asks_is_told() {
    let project = Project::new(10);
    let manners = Manners {
        auth: true,
        ..Manners::default()
    };
    let remote = Remote::start(manners, project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("all of it is here", || stand.has(&project.all)).await;
    until("it is said", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    let live = event(&Keys::generate(), 10317, 1_700_000_000, &[]);
    until("it is subscribed to", || {
        remote.publish(live.clone());
        stand.known().came.get(&live.id) == Some(&Method::Live)
    })
    .await;
}

/// Sends `flood` to whoever connects; it is left, and nothing of it is judged by our relay.
async fn flooded(flood: Vec<String>) {
    let manners = Manners {
        floods: flood,
        ..Manners::default()
    };
    let (stand, bad, _worker) = beside_a_good_one(manners).await;
    until("it is left", || {
        let report = stand.report(&bad.url).unwrap();
        bad.open.load(SeqCst) == 0 && report.state() == RelayState::Disconnected
    })
    .await;
    let report = stand.report(&bad.url).unwrap();
    assert_ne!(report.next_attempt_millis, 0);
    let known = stand.known();
    let of_it = known.submitted.iter().filter(|(url, _, _)| *url == bad.url);
    assert_eq!(of_it.map(|(_, _, count)| count).sum::<usize>(), 0);
}

#[tokio::test]
async fn garbage_by_the_ten_thousands_is_left() {
    flooded(vec!["[\"EVENT\", this is no JSON".to_owned(); 20_000]).await;
}

#[tokio::test]
async fn forged_events_by_the_ten_thousands_are_left() {
    // The first live subscription is `l1`, and layer 1 in it.
    let forged = (0..20_000_u32).map(|n| {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let id = nostr::EventId::from_byte_array(id).to_hex();
        let key = Keys::new(nostr::SecretKey::from_slice(&[1; 32]).unwrap()).public_key();
        let event = json!({"id": id, "pubkey": key, "created_at": 1_700_000_000, "kind": 10317,
            "tags": [], "content": "", "sig": "00".repeat(64)});
        json!(["EVENT", "l1", event]).to_string()
    });
    flooded(forged.collect()).await;
}

#[tokio::test]
async fn unrelated_events_by_the_ten_thousands_are_left() {
    let unrelated = event(&Keys::generate(), 1, 1_700_000_000, &[["t", "spam"]]);
    flooded(vec![json!(["EVENT", "l1", unrelated]).to_string(); 20_000]).await;
    flooded(vec![
        json!(["EVENT", "nobody's", unrelated]).to_string();
        20_000
    ])
    .await;
}

/// A project of which one reply is longer than any message that is taken.
fn with_an_overlong_event(replies: u64) -> (Project, Event) {
    let project = Project::new(replies);
    let id = project.root.id.to_hex();
    let content = "ö".repeat(MAX_FRAMED_EVENT_BYTES / 2);
    let at = 1_700_000_001;
    let long = event(&project.owner, 1111, at, &[["e", &id], ["x", &content]]);
    (project, long)
}

#[tokio::test]
async fn an_event_that_is_too_long_is_left_out_and_everything_else_arrives() {
    // In one frame, in frames that split its characters, and in frames that are too long themselves.
    for frames in [None, Some(4_095), Some(MAX_FRAMED_EVENT_BYTES + 1)] {
        let (project, long) = with_an_overlong_event(10);
        let mut all = project.all.clone();
        all.push(long.clone());
        let manners = Manners {
            frames,
            ..Manners::default()
        };
        let remote = Remote::start(manners, all).await;
        let stand = Stand::new();
        stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
        stand.lease(&remote.url, 1);
        let _worker = work(&stand, config(), timing());
        until("its history is complete", || {
            stand.is(&remote.url, RelayState::Connected)
        })
        .await;
        remote.publish(long.clone());
        let live = event(&project.owner, 10317, 1_800_000_000, &[]);
        remote.publish(live.clone());
        until("what is new comes", || stand.has([&live])).await;
        assert!(stand.has(&project.all) && !stand.has([&long]));
        assert_eq!(remote.connections.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn the_largest_events_that_a_relay_can_be_set_to_take_arrive() {
    let mut project = Project::new(1);
    let id = project.root.id.to_hex();
    // With what stands around the text.
    let content = "x".repeat(MAX_EVENT_BYTES - 1000);
    let state = event(
        &project.owner,
        30618,
        1_700_000_001,
        &[["d", IDENTIFIER], ["x", &content]],
    );
    let reply = event(
        &project.owner,
        1111,
        1_700_000_002,
        &[["e", &id], ["x", &content]],
    );
    let all = [&state, &reply].map(nostr::Event::as_json);
    assert!(all.iter().all(|json| json.len() <= MAX_EVENT_BYTES));
    project.all.push(state);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("the state comes", || stand.has(&project.all)).await;
    remote.publish(reply.clone());
    until("what is new comes", || stand.has([&reply])).await;
}

#[tokio::test]
async fn an_event_that_is_too_long_does_not_keep_a_reconciliation_from_its_end() {
    let (project, long) = with_an_overlong_event(10);
    let mut all = project.all.clone();
    all.push(long);
    let (_relay, url) = good_relay(&all).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&url])]));
    stand.lease(&url, 1);
    let _worker = work(&stand, config(), timing());
    until("its history is complete", || {
        stand.is(&url, RelayState::Connected)
    })
    .await;
    let known = stand.known();
    assert!(known.came.values().all(|way| *way == Method::Negentropy));
    assert_eq!(known.came.len(), project.all.len());
}

#[tokio::test]
async fn a_history_without_end_fails_alone() {
    let project = Project::new(0);
    let manners = Manners {
        refusal: Refusal::NegErr,
        cap: 5,
        ignore_until: true,
        ..Manners::default()
    };
    let remote = Remote::start(manners, project.all.clone()).await;
    let id = project.root.id.to_hex();
    for n in 0..20 {
        remote.publish(event(
            &project.owner,
            1111,
            1_700_000_000 + n,
            &[["e", &id]],
        ));
    }
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    // What it sends in spite of `until` was not asked for: it counts as nothing, and ends the paging.
    until("what it shows is here", || stand.known().held.len() >= 7).await;
    until("it comes to an end", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_judged_now_is_left_on_the_wire_and_not_lost() {
    let project = Project::new(0);
    let id = project.root.id.to_hex();
    let content = "x".repeat(10_000);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    stand.known().stuck = Some(remote.url.clone());
    let live: Vec<Event> = (0..1_000)
        .map(|n| {
            event(
                &project.owner,
                1111,
                1_800_000_000 + n,
                &[["e", &id], ["x", &content]],
            )
        })
        .collect();
    for event in &live {
        remote.publish(event.clone());
    }
    let received = || stand.known().events_told;
    until("some of it is read", || received() > 150).await;
    // 2 MiB of it, no more, while another one is synced.
    let other = Project::new(30);
    let (_relay, url) = good_relay(&other.all).await;
    let both = [
        project.target(Level::Full, &[&remote.url]),
        other.target(Level::Full, &[&url]),
    ];
    stand.tell(told(both.into()));
    stand.lease(&url, 2);
    until("the other one is synced", || {
        stand.is(&url, RelayState::Connected)
    })
    .await;
    assert!(stand.has(&other.all));
    let of_other = other.all.len() as u64;
    assert!(received() < 300 + of_other, "{}", received());
    stand.known().stuck = None;
    until("all of it is here", || stand.has(&live)).await;
    assert_eq!(remote.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_large_server_is_synced_within_twenty_subscriptions() {
    let keys = Keys::generate();
    let manners = Manners {
        subscriptions: 20,
        ..Manners::default()
    };
    let remote = Remote::start(manners, vec![]).await;
    let root = |n: u16, k: u16| {
        let mut id = [7; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        id[2..4].copy_from_slice(&k.to_be_bytes());
        id
    };
    let targets = (0..900_u16).map(|n| Target {
        repository: Some(grasp_proto::contract::relay::Repository {
            owner: keys.public_key().to_bytes().to_vec(),
            identifier: format!("repository-{n}"),
            endpoint: grasp_proto::contract::relay::Endpoint::Standard.into(),
        }),
        level: Level::Full.into(),
        relays: vec![remote.url.clone()],
        new_roots: (0..4).map(|k| root(n, k).to_vec()).collect(),
        generation: 1,
    });
    let last = nostr::EventId::from_byte_array(root(899, 3)).to_hex();
    let old = event(&keys, 1111, 1_700_000_000, &[["E", &last]]);
    remote.publish(old.clone());
    let stand = Stand::new();
    stand.tell(told(targets.collect()));
    stand.lease(&remote.url, 1);
    let config = Config {
        disable_negentropy: true,
        ..config()
    };
    let _worker = work(&stand, config, timing());
    until("its history is complete", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    let report = stand.report(&remote.url).unwrap();
    assert_eq!((report.confirmed, report.wanted), (4500, 4500));
    let new = event(&keys, 1111, 1_800_000_000, &[["q", &last]]);
    remote.publish(new.clone());
    until("old and new are here", || stand.has([&old, &new])).await;
    assert!(remote.most.load(SeqCst) <= 20);
    let asked = remote.asked();
    let all = asked.iter().flat_map(|asked| &asked.filters);
    assert!(
        all.into_iter()
            .all(|filter| filter.as_json().len() <= 32 << 10)
    );
}
