//! A hundred thousand events at once from one relay: memory is bounded, another one is synced.
//!
//! Memory is a process's: each storm runs in one of its own, which the test starts.

use std::{
    process::Command,
    sync::{OnceLock, atomic::Ordering::SeqCst},
};

use grasp_proto::contract::relay::{Level, RelayState};
use nostr::{EventBuilder, Keys, Kind, Timestamp, event::FinalizeEvent};
use serde_json::json;

use crate::{
    good_relay,
    remote::{Line, Manners, Remote},
    stand::{PASSING, Project, Stand, config, timing, told, until, work},
};

const EVENTS: usize = 100_000;

/// Of valid ones: each is judged, and without optimisation that takes its time.
const FEWER: usize = 5_000;

/// What may be in use more than before, in MiB, the stand-ins on both sides included.
const MOST_MIB: u64 = 32;

fn keys() -> Keys {
    Keys::new(nostr::SecretKey::from_slice(&[1; 32]).unwrap())
}

/// A thousand different ones, again and again.
fn valid(n: usize) -> String {
    static EVENTS: OnceLock<Vec<String>> = OnceLock::new();
    let events = EVENTS.get_or_init(|| {
        let signed = (0..1_000).map(|at| {
            let event = EventBuilder::new(Kind::from_u16(10317), PASSING);
            let event = event.custom_created_at(Timestamp::from_secs(1_700_000_000 + at));
            let event = event.finalize(&keys()).unwrap();
            json!(["EVENT", "l1", event]).to_string()
        });
        signed.collect()
    });
    events[n % events.len()].clone()
}

fn forged(n: usize) -> String {
    let id = format!("{n:064x}");
    let event = json!({"id": id, "pubkey": keys().public_key(), "created_at": 1_700_000_000,
        "kind": 10317, "tags": [], "content": PASSING, "sig": "00".repeat(64)});
    json!(["EVENT", "l1", event]).to_string()
}

fn unrelated(n: usize) -> String {
    let id = format!("{n:064x}");
    let event = json!({"id": id, "pubkey": keys().public_key(), "created_at": 1_700_000_000,
        "kind": 1, "tags": [], "content": PASSING, "sig": "00".repeat(64)});
    json!(["EVENT", "l1", event]).to_string()
}

/// The most memory this process ever had in use, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

async fn storm(count: usize, of: Line, is_left: bool) {
    let project = Project::new(30);
    let (_relay, url) = good_relay(&project.all).await;
    let manners = Manners {
        storm: Some((count, of)),
        ..Manners::default()
    };
    let remote = Remote::start(manners, vec![]).await;
    let stand = Stand::new();
    stand.tell(told(vec![
        project.target(Level::Full, &[&url, &remote.url]),
    ]));
    let before = peak();
    let mut config = config();
    config.base_backoff = std::time::Duration::from_secs(3600);
    config.max_backoff = config.base_backoff;
    stand.lease(&remote.url, 1);
    let _worker = work(&stand, config, timing());
    until("it storms", || remote.connections.load(SeqCst) > 0).await;
    stand.lease(&url, 2);
    until("the other one is synced", || {
        stand.is(&url, RelayState::Connected)
    })
    .await;
    assert!(stand.has(&project.all));
    match is_left {
        true => {
            until("it is left", || remote.open.load(SeqCst) == 0).await;
            assert_eq!(stand.known().passed, 0);
        }
        false => {
            let mut passed = 0;
            while passed < count {
                until("there is more", || stand.known().passed > passed).await;
                passed = stand.known().passed;
            }
            assert_eq!(remote.open.load(SeqCst), 1);
        }
    }
    let more = peak() - before;
    println!("{before} MiB, {more} MiB more at the peak");
    assert!(more <= MOST_MIB, "{more} MiB");
}

#[tokio::test]
#[ignore = "run by the test below, in a process of its own"]
async fn alone_valid() {
    storm(FEWER, valid, false).await;
}

#[tokio::test]
#[ignore = "takes minutes without optimisation"]
async fn alone_valid_all() {
    storm(EVENTS, valid, false).await;
}

#[tokio::test]
#[ignore = "run by the test below, in a process of its own"]
async fn alone_forged() {
    storm(EVENTS, forged, true).await;
}

#[tokio::test]
#[ignore = "run by the test below, in a process of its own"]
async fn alone_unrelated() {
    storm(EVENTS, unrelated, true).await;
}

#[test]
fn a_storm_of_events_takes_no_more_memory_than_a_few() {
    for of in ["valid", "forged", "unrelated"] {
        let name = format!("storm::alone_{of}");
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
        println!("{of}: {said}");
    }
}
