//! Relay sync against remote relays of all kinds, with a stand-in for the relay it works for.

mod clock;
mod contract;
mod leases;
mod manners;
mod remote;
mod secure;
mod stand;
mod storm;

use std::sync::atomic::Ordering::SeqCst;

use grasp_proto::contract::relay::{Level, Method, RelayState};
use grasp_syncworker::relays::Config;
use nostr_relay_builder::LocalRelay;

use remote::{Manners, Refusal, Remote};
use stand::{Project, Stand, config, event, timing, told, until, work};

async fn good_relay(events: &[nostr::Event]) -> (LocalRelay, String) {
    let relay = LocalRelay::builder().build();
    relay.run().await.unwrap();
    for event in events {
        relay.add_event(event.clone()).await.unwrap();
    }
    let url = relay.url().await.to_string();
    (relay, url)
}

fn hold(stand: &Stand, events: &[nostr::Event]) {
    let events = events.iter().map(|event| (event.id, event.clone()));
    stand.known().held.extend(events);
}

#[tokio::test]
async fn a_good_relay_is_reconciled_and_followed() {
    let project = Project::new(700);
    let (relay, url) = good_relay(&project.all).await;
    let stand = Stand::new();
    hold(&stand, &project.all[1..400]);
    stand.tell(told(vec![project.target(Level::Full, &[&url])]));
    stand.lease(&url, 7);
    let _worker = work(&stand, config(), timing());
    until("all of the past is here", || stand.has(&project.all)).await;
    until("it is said", || stand.is(&url, RelayState::Connected)).await;
    {
        let known = stand.known();
        let brought: usize = known.submitted.iter().map(|(_, _, count)| count).sum();
        assert_eq!(
            brought,
            project.all.len() - 399,
            "only what was lacking is fetched"
        );
        assert!(
            known
                .submitted
                .iter()
                .all(|(_, method, _)| *method == Method::Negentropy)
        );
    }
    let live = event(
        &project.owner,
        1111,
        1_800_000_000,
        &[["e", &project.root.id.to_hex()]],
    );
    relay.add_event(live.clone()).await.unwrap();
    until("what is new comes by itself", || stand.has([&live])).await;
    assert_eq!(stand.known().came[&live.id], Method::Live);
    until("it is told", || stand.known().events_told == 305).await;
    let report = stand.report(&url).unwrap();
    assert_eq!((report.confirmed, report.wanted, report.token), (2, 2, 7));
    assert!(report.subscriptions >= 1 && report.last_error.is_empty());
}

#[tokio::test]
async fn pages_capped_at_a_hundred_bring_everything_too() {
    let project = Project::new(700);
    let manners = Manners {
        cap: 100,
        ..Manners::default()
    };
    let remote = Remote::start(manners, project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let config = Config {
        disable_negentropy: true,
        ..config()
    };
    let _worker = work(&stand, config, timing());
    until("all of the past is here", || stand.has(&project.all)).await;
    until("it is said", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    assert!(remote.asked().iter().all(|asked| asked.verb == "REQ"));
    assert!(
        stand
            .known()
            .came
            .values()
            .all(|method| *method == Method::Paged)
    );
}

#[tokio::test]
async fn whatever_way_reconciliation_is_refused_pages_are_read() {
    for refusal in [
        Refusal::Notice,
        Refusal::NegErr,
        Refusal::Seats,
        Refusal::Closed,
        Refusal::Silence,
    ] {
        let project = Project::new(50);
        let manners = Manners {
            refusal,
            ..Manners::default()
        };
        let remote = Remote::start(manners, project.all.clone()).await;
        let stand = Stand::new();
        stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
        stand.lease(&remote.url, 1);
        let _worker = work(&stand, config(), timing());
        until("all of the past is here", || stand.has(&project.all)).await;
        until("it is said", || {
            stand.is(&remote.url, RelayState::Connected)
        })
        .await;
        let tries = remote
            .asked()
            .iter()
            .filter(|asked| asked.verb == "NEG-OPEN")
            .count();
        if ![Refusal::NegErr, Refusal::Seats].contains(&refusal) {
            assert_eq!(tries, 2, "{refusal:?}: not asked for ever");
        }
        assert_eq!(remote.connections.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn of_a_waiting_announcement_only_states_are_asked_for_until_it_is_promoted() {
    let project = Project::new(10);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::StateOnly, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    assert!(stand.has(&project.all[..2]));
    assert_eq!(stand.known().held.len(), 2);
    let tags = |filter: &nostr::Filter| filter.generic_tags.keys().map(|t| t.as_char()).collect();
    let letters: std::collections::BTreeSet<String> = remote
        .asked()
        .iter()
        .flat_map(|asked| &asked.filters)
        .map(tags)
        .collect();
    assert_eq!(letters, [String::new(), "d".to_owned()].into());

    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    until("everything is here", || stand.has(&project.all)).await;
    let states = remote.history().into_iter().filter(|asked| {
        let filter = &asked.filters[0];
        filter.until.is_none() && filter.generic_tags.keys().any(|tag| tag.as_char() == 'd')
    });
    assert_eq!(
        states.count(),
        1,
        "what was confirmed is not asked for again"
    );
}

#[tokio::test]
async fn a_short_interruption_is_asked_for_since() {
    let project = Project::new(20);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    remote.asked.lock().unwrap().clear();
    let now = nostr::Timestamp::now().as_secs();
    let missed = event(
        &project.owner,
        1111,
        now,
        &[["e", &project.root.id.to_hex()]],
    );
    remote.hang_up();
    remote.events.lock().unwrap().push(missed.clone());
    until("what was missed is here", || stand.has([&missed])).await;
    let history = remote.history();
    let (announcements, others): (Vec<_>, Vec<_>) = history
        .iter()
        .map(|asked| &asked.filters[0])
        .partition(|filter| filter.generic_tags.is_empty());
    assert!(!others.is_empty() && !announcements.is_empty());
    let overlap = timing().overlap.as_secs();
    for filter in others {
        let since = filter.since.unwrap().as_secs();
        assert!((now - overlap - 100..=now - overlap + 100).contains(&since));
    }
    for filter in announcements {
        assert_eq!(
            filter.since, None,
            "it may be served long after it was made"
        );
    }
}

#[tokio::test]
async fn a_long_interruption_and_a_full_pass_begin_from_the_start() {
    let project = Project::new(4);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let mut timing = timing();
    // So that any interruption is a long one.
    timing.short_interruption = std::time::Duration::ZERO;
    timing.full_pass = std::time::Duration::from_secs(6);
    timing.full_pass_jitter = std::time::Duration::ZERO;
    let _worker = work(&stand, config(), timing);
    let whole = || {
        let history = remote.history();
        let lists = history.iter().filter(|asked| {
            let filter = &asked.filters[0];
            filter.kinds.as_ref().is_some_and(|kinds| kinds.len() == 2) && filter.until.is_none()
        });
        assert!(history.iter().all(|asked| asked.filters[0].since.is_none()));
        lists.count()
    };
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    assert_eq!(whole(), 1);
    remote.hang_up();
    until("it is asked from the start", || whole() == 2).await;
    until("once a while everything is", || whole() >= 3).await;
    assert_eq!(remote.connections.load(SeqCst), 2);
}

#[tokio::test]
async fn what_cannot_be_judged_now_is_submitted_again() {
    let project = Project::new(20);
    let (relay, url) = good_relay(&project.all).await;
    let stand = Stand::new();
    stand.known().failing = 10;
    stand.tell(told(vec![project.target(Level::Full, &[&url])]));
    stand.lease(&url, 1);
    let _worker = work(&stand, config(), timing());
    until("all of it is here", || stand.has(&project.all)).await;
    until("it is said", || stand.is(&url, RelayState::Connected)).await;
    drop(relay);
}

#[tokio::test]
async fn what_is_given_up_while_our_relay_fails_is_asked_for_since_when_that_began() {
    let project = Project::new(4);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    remote.asked.lock().unwrap().clear();
    // As often as it is submitted before it is given up.
    stand.known().failing = 5;
    let at = nostr::Timestamp::now().as_secs() - 100;
    let live = event(
        &project.owner,
        1111,
        at,
        &[["e", &project.root.id.to_hex()]],
    );
    remote.publish(live.clone());
    until("it is given up", || stand.known().failing == 0).await;
    assert!(!stand.has([&live]));
    until("it is here", || stand.has([&live])).await;
    assert_ne!(stand.known().came[&live.id], Method::Live);
    let history = remote.history();
    let of_layers = history.iter().map(|asked| &asked.filters[0]);
    let mut others = of_layers.filter(|filter| !filter.generic_tags.is_empty());
    assert!(others.all(|filter| filter.since.unwrap().as_secs() == at));
    assert_eq!(remote.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn many_ids_are_asked_for_at_once() {
    let project = Project::new(1_000);
    let (_relay, url) = good_relay(&project.all).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&url])]));
    stand.lease(&url, 1);
    let _worker = work(&stand, config(), timing());
    until("all of the past is here", || stand.has(&project.all)).await;
    let known = stand.known();
    let largest = known.submitted.iter().map(|(_, _, count)| *count).max();
    assert!(largest.unwrap() > 100, "{largest:?}");
}
