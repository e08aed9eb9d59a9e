//! The stop: nothing new, a grace for what runs, and everything handed back.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::world::World;

const SLOW: &str = "https://slow.example/x.git";
const FAST: &str = "https://fast.example/x.git";

#[tokio::test(start_paused = true)]
async fn what_only_waits_is_handed_back_at_once_and_what_is_fetched_when_it_is_in() {
    let world = World::new();
    world.server(FAST, &[1], 40);
    world.wanted("fetched", &[1, 2], &[FAST, SLOW]);
    world.wanted("waiting", &[1], &[SLOW]);
    let busy = Instant::now() + Duration::from_secs(3600);
    world.state().entries.get_mut("waiting").unwrap().busy_until = Some(busy);
    let hunt = world.hunt(3);
    world.until("? next waiting", 1).await;
    world.until("fetch", 1).await;
    let asked = Instant::now();
    hunt.stop.cancel();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(world.done()[1..], ["release waiting"]);
    // Due again at once, but not for a worker that stops.
    let leases = world.times("? lease");
    world.wanted("new", &[1], &[FAST]);
    hunt.stop().await;
    assert_eq!(
        world.done()[1..],
        ["release waiting", "report 1 arrived [1]", "release fetched"]
    );
    assert_eq!(world.times("? lease"), leases);
    // The lease was kept meanwhile, and the grace not used up for nothing.
    assert_eq!(world.state().token, 2);
    let took = asked.elapsed().as_secs();
    assert!((30..=41).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn what_takes_longer_than_the_grace_is_cut_off_reported_and_handed_back() {
    let world = World::new();
    world.server(SLOW, &[1], 3600);
    world.wanted("x", &[1], &[SLOW]);
    let hunt = world.hunt(1);
    world.until("fetch", 1).await;
    let asked = Instant::now();
    hunt.stop().await;
    assert_eq!(
        world.done()[1..],
        [
            format!("cut {SLOW}"),
            "report 1 Ours".into(),
            "release x".into()
        ]
    );
    assert_eq!(asked.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_worker_stops_though_the_relay_is_gone() {
    let world = World::new();
    world.server(FAST, &[1], 10);
    world.wanted("x", &[1], &[FAST]);
    let hunt = world.hunt(1);
    world.until("fetch", 1).await;
    world.state().away = true;
    let asked = Instant::now();
    hunt.stop().await;
    assert!(
        asked.elapsed() < Duration::from_secs(15),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(world.times("report"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_stops_at_once() {
    let world = World::new();
    let hunt = world.hunt(1);
    sleep(Duration::from_secs(30)).await;
    let asked = Instant::now();
    hunt.stop().await;
    assert_eq!(asked.elapsed(), Duration::ZERO);
}
