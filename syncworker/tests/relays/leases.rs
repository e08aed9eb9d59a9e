//! Leases: kept, lost, given back.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use grasp_proto::contract::relay::{Level, RelayState};
use grasp_syncworker::relays::Config;

use crate::{
    good_relay,
    remote::{Manners, Remote},
    stand::{Project, Stand, Worker, config, event, timing, told, until, work},
};

async fn synced(valid: Duration) -> (Arc<Stand>, Arc<Remote>, Worker) {
    let project = Project::new(0);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.known().valid = valid;
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let worker = work(&stand, config(), timing());
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    (stand, remote, worker)
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_ends_the_connection_before_it_ends() {
    let (stand, remote, _worker) = synced(Duration::from_secs(4)).await;
    stand.known().away = true;
    let since = Instant::now();
    until("the connection is dropped", || {
        remote.open.load(SeqCst) == 0
    })
    .await;
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(remote.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn nothing_is_connected_to_before_a_lease_is_known_to_hold() {
    let project = Project::new(0);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.known().away = true;
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config(), timing());
    until("it is leased", || !stand.known().leased.is_empty()).await;
    let before = stand.known().unanswered;
    until("it is renewed in vain", || {
        stand.known().unanswered >= before + 3
    })
    .await;
    assert_eq!(remote.connections.load(SeqCst), 0);
    stand.known().away = false;
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
}

#[tokio::test]
async fn a_lost_lease_ends_the_connection_and_a_new_one_makes_another() {
    let (stand, remote, _worker) = synced(Duration::from_secs(3)).await;
    stand.known().leased.clear();
    until("the connection is dropped", || {
        remote.open.load(SeqCst) == 0
    })
    .await;
    assert!(stand.known().released.is_empty());
    stand.lease(&remote.url, 2);
    until("it is connected again", || remote.open.load(SeqCst) == 1).await;
    // A later lease of the same relay takes the place of the earlier one.
    stand.lease(&remote.url, 3);
    until("it is held by the later one", || {
        remote.connections.load(SeqCst) == 3
    })
    .await;
    until("only by that", || remote.open.load(SeqCst) == 1).await;
}

#[tokio::test]
async fn what_is_wanted_back_is_closed_first() {
    let (stand, remote, _worker) = synced(Duration::from_secs(3)).await;
    stand.known().give_back.insert(remote.url.clone());
    until("it is given back", || !stand.known().released.is_empty()).await;
    until("it is closed", || remote.open.load(SeqCst) == 0).await;
    assert_eq!(stand.known().released[0].token, 1);
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_given_back_and_a_bootstrap_relay_is_not() {
    let (stand, remote, _worker) = synced(Duration::from_secs(3)).await;
    let bootstrap = Remote::start(Manners::default(), vec![]).await;
    stand
        .known()
        .to_lease
        .push_back(grasp_proto::contract::relay::LeasedRelay {
            url: bootstrap.url.clone(),
            token: 9,
            valid_millis: 3000,
            bootstrap: true,
        });
    let target = stand.known().targets[0].targets[0].clone();
    stand.tell(grasp_proto::contract::relay::TargetChanges {
        removed: vec![target.repository.unwrap()],
        ..Default::default()
    });
    stand.lease("ws://127.0.0.1:1", 10);
    until("it is given back", || {
        let known = stand.known();
        known.released.iter().any(|relay| relay.url == remote.url)
    })
    .await;
    until("the bootstrap relay is synced", || {
        stand.is(&bootstrap.url, RelayState::Connected)
    })
    .await;
    assert!(
        stand
            .known()
            .released
            .iter()
            .all(|relay| relay.url != bootstrap.url)
    );
}

#[tokio::test]
async fn a_stop_drops_the_connections_and_hands_the_leases_back() {
    let (stand, remote, mut worker) = synced(Duration::from_secs(60)).await;
    worker.stop.cancel();
    worker.task.take().unwrap().await.unwrap();
    assert_eq!(stand.known().released.len(), 1);
    until("it is closed", || remote.open.load(SeqCst) == 0).await;
}

#[tokio::test]
async fn an_address_that_may_not_be_connected_to_is_not() {
    let project = Project::new(0);
    let stand = Stand::new();
    let url = "ws://169.254.169.254";
    stand.tell(told(vec![project.target(Level::Full, &[url])]));
    stand.lease(url, 1);
    stand.known().valid = Duration::from_secs(3);
    let _worker = work(&stand, config(), timing());
    until("it is said why", || {
        let report = stand.report(url);
        report.is_some_and(|report| report.last_error.contains("not on the public internet"))
    })
    .await;
}

#[tokio::test]
async fn another_worker_brings_nothing_that_the_first_one_brought() {
    for disable_negentropy in [false, true] {
        let project = Project::new(700);
        let (_relay, url) = good_relay(&project.all).await;
        let stand = Stand::new();
        stand.tell(told(vec![project.target(Level::Full, &[&url])]));
        stand.lease(&url, 1);
        let config = Config {
            disable_negentropy,
            ..config()
        };
        let mut first = work(&stand, config.clone(), timing());
        until("it is synced", || stand.is(&url, RelayState::Connected)).await;
        assert!(stand.has(&project.all));
        first.stop.cancel();
        first.task.take().unwrap().await.unwrap();
        let brought = || {
            stand
                .known()
                .submitted
                .iter()
                .map(|(_, _, count)| count)
                .sum()
        };
        let before: usize = brought();
        assert_eq!(before, project.all.len());
        stand.lease(&url, 2);
        let _second = work(&stand, config, timing());
        until("it is synced again", || {
            stand.report(&url).is_some_and(|report| report.token == 2)
                && stand.is(&url, RelayState::Connected)
        })
        .await;
        assert_eq!(before, brought());
    }
}

#[tokio::test]
async fn what_changes_is_told_at_once_and_not_too_often() {
    let project = Project::new(0);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    // So that in this test leases are renewed for news alone.
    let hour = Duration::from_secs(3600);
    stand.known().valid = 10 * hour;
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    let mut timing = timing();
    timing.renewal = hour;
    let _worker = work(&stand, config(), timing);
    until("it is asked for leases", || {
        !stand.known().renewals.is_empty()
    })
    .await;
    // The first leases are renewed soon, whatever they last.
    until("nothing is due any more", || {
        stand.known().renewals.len() >= 2
    })
    .await;
    stand.known().renewals.clear();
    stand.lease(&remote.url, 1);
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    for n in 0..200 {
        remote.publish(event(&project.owner, 10317, 1_800_000_000 + n, &[]));
        tokio::task::yield_now().await;
    }
    until("all of them are counted", || {
        stand.known().events_told >= 200
    })
    .await;
    remote.manners.lock().unwrap().away = true;
    remote.hang_up();
    until("it is gone", || {
        stand.is(&remote.url, RelayState::Disconnected)
    })
    .await;
    remote.manners.lock().unwrap().away = false;
    until("it is there again", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    let known = stand.known();
    assert!(known.renewals.len() > 2);
    let gaps = known.renewals.windows(2).map(|two| two[1] - two[0]);
    assert!(gaps.min().unwrap() >= Duration::from_millis(90));
}
