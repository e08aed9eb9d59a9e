//! Interruptions of minutes, hours and days, over real sockets, with the clock set forward.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering::SeqCst},
    time::{Duration, SystemTime},
};

use grasp_proto::contract::relay::{Level, RelayState};
use grasp_syncworker::relays::Timing;
use tokio::time::Instant;

use crate::{
    remote::{Manners, Remote},
    stand::{self, Project, Stand, Worker, config, event, told, until, work},
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The time of day, which goes forward with the test's clock.
fn clock() -> SystemTime {
    static BEGIN: OnceLock<(SystemTime, Instant)> = OnceLock::new();
    let (wall, begin) = BEGIN.get_or_init(|| (SystemTime::now(), Instant::now()));
    *wall + Instant::now().duration_since(*begin)
}

/// Sets it forward: what is due until then is due at once.
async fn forward(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

fn seconds() -> u64 {
    let now = clock().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// As configured where it is asked when and from when; a connection is not missed for being silent.
fn timing() -> Timing {
    let real = Timing::default();
    Timing {
        short_interruption: real.short_interruption,
        overlap: real.overlap,
        full_pass: real.full_pass,
        full_pass_jitter: real.full_pass_jitter,
        ping: 1_000 * HOUR,
        idle: 1_000 * HOUR,
        poll: 1_000 * HOUR,
        clock,
        ..stand::timing()
    }
}

async fn synced() -> (Arc<Stand>, Arc<Remote>, Project, Worker) {
    let project = Project::new(4);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let stand = Stand::new();
    stand.known().valid = 1_000 * HOUR;
    stand.tell(told(vec![project.target(Level::Full, &[&remote.url])]));
    stand.lease(&remote.url, 1);
    let worker = work(&stand, config(), timing());
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    assert!(stand.has(&project.all));
    remote.asked.lock().unwrap().clear();
    (stand, remote, project, worker)
}

/// From when on everything but announcements is asked for, after the remote relay was away for so long.
async fn away(how_long: Duration) -> Vec<Option<u64>> {
    let (stand, remote, project, _worker) = synced().await;
    remote.manners.lock().unwrap().away = true;
    remote.hang_up();
    until("it is gone", || {
        stand.is(&remote.url, RelayState::Disconnected)
    })
    .await;
    forward(how_long).await;
    let id = project.root.id.to_hex();
    // Made in the meantime.
    let at = seconds() - how_long.as_secs() / 2;
    let missed = event(&project.owner, 1111, at, &[["e", &id]]);
    remote.events.lock().unwrap().push(missed.clone());
    remote.manners.lock().unwrap().away = false;
    until("what was missed is here", || stand.has([&missed])).await;
    until("it is synced", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    let history = remote.history();
    let filters = history.iter().map(|asked| &asked.filters[0]);
    let since = filters.filter(|filter| !filter.generic_tags.is_empty());
    let since = since.map(|filter| filter.since);
    since.map(|at| at.map(|at| at.as_secs())).collect()
}

#[tokio::test]
async fn after_a_minute_and_after_fourteen_it_is_asked_since() {
    let overlap = timing().overlap.as_secs();
    for minutes in [1, 14] {
        let began = seconds();
        let asked = away(minutes * MINUTE).await;
        assert!(!asked.is_empty());
        for since in asked {
            let since = since.expect("from the start");
            // A while before anything was heard last.
            assert!((began - overlap..seconds() - overlap).contains(&since));
            assert!(since <= seconds() - overlap - u64::from(minutes) * 60);
        }
    }
}

#[tokio::test]
async fn after_twenty_minutes_everything_is_asked_from_the_start() {
    let asked = away(20 * MINUTE).await;
    // One filter of each layer and tag at least.
    assert!(asked.len() >= 7, "{asked:?}");
    assert!(asked.iter().all(Option::is_none), "{asked:?}");
}

#[tokio::test]
async fn once_a_day_everything_is_asked_from_the_start() {
    let (stand, remote, project, _worker) = synced().await;
    // Something that live subscriptions did not bring.
    let id = project.root.id.to_hex();
    let hidden = event(&project.owner, 1111, 1_600_000_000, &[["e", &id]]);
    remote.events.lock().unwrap().push(hidden.clone());
    forward(22 * HOUR).await;
    // A round trip shows that nothing is asked yet.
    let live = event(&project.owner, 10317, 1_800_000_000, &[]);
    remote.publish(live.clone());
    until("what is new comes", || stand.has([&live])).await;
    assert!(remote.history().is_empty() && !stand.has([&hidden]));
    forward(3 * HOUR).await;
    until("what was missed is here", || stand.has([&hidden])).await;
    assert!(
        remote
            .history()
            .iter()
            .all(|asked| asked.filters[0].since.is_none())
    );
    assert_eq!(remote.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn after_a_day_of_failures_it_is_tried_once_a_day() {
    let (stand, remote, _project, _worker) = synced().await;
    remote.manners.lock().unwrap().away = true;
    remote.hang_up();
    until("it fails", || {
        let report = stand.report(&remote.url).unwrap();
        report.last_error.contains("no websocket")
    })
    .await;
    assert!(!stand.report(&remote.url).unwrap().dead);
    forward(24 * HOUR).await;
    until("it is given up for a day", || {
        stand.report(&remote.url).unwrap().dead
    })
    .await;
    let report = stand.report(&remote.url).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let next = report.next_attempt_millis / 1000 - now.unwrap().as_secs();
    assert!((22 * 3600..=25 * 3600).contains(&next), "{next} s");
    remote.manners.lock().unwrap().away = false;
    forward(25 * HOUR).await;
    until("it is tried, and works", || {
        stand.is(&remote.url, RelayState::Connected)
    })
    .await;
    assert!(!stand.report(&remote.url).unwrap().dead);
}
