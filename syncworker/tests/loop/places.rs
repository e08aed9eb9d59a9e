//! What takes long: it leaves its place to others, and gives way where it is the slowest.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::world::World;

const KIB: u64 = 1 << 10;
/// Seconds.
const LONG: u64 = 15 * 60;
/// As the largest pack would take at the first floor.
const EVER: u64 = 48 * 24 * 3600;
/// Just above what a transfer is ended for by itself.
const DRIP: u64 = 65 * KIB;

fn server(n: u64) -> String {
    format!("https://s{n}.example/x.git")
}

#[tokio::test(start_paused = true)]
async fn what_takes_long_leaves_its_place_to_others() {
    let world = World::new();
    for n in 0..2 {
        world.sending(&server(n), &[1], LONG, 500 * KIB);
        world.wanted(&format!("long{n}"), &[1], &[&server(n)]);
    }
    let hunt = world.hunt(2);
    world.until("fetch", 2).await;
    world.server("https://quick.example/x.git", &[1], 5);
    for n in 0..20 {
        world.wanted(&format!("x{n}"), &[1], &["https://quick.example/x.git"]);
    }
    // For a minute nothing goes on beside them.
    sleep(Duration::from_secs(59)).await;
    assert_eq!(world.times("report"), 0);
    world.until("report", 20).await;
    assert_eq!(world.state().transfers, 2);
    assert_eq!(world.state().most_transfers, 4);
    // Never was there room for more leases than there are short places.
    assert_eq!(world.times("? lease 3") + world.times("? lease 4"), 0);
    world.until("report 1 arrived [1]", 1).await;
    world.until("report 2 arrived [1]", 1).await;
    assert_eq!(world.times("cut"), 0);
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn drips_do_not_stop_a_worker() {
    let world = World::new();
    // Far more than there are places, none of which ends by itself.
    for n in 0..40 {
        world.sending(&server(n), &[1], EVER, DRIP);
        world.wanted(&format!("drip{n}"), &[1], &[&server(n)]);
    }
    let hunt = world.hunt(8);
    world.until("fetch", 8).await;
    world.sending("https://large.example/x.git", &[1], LONG, 800 * KIB);
    world.wanted("large", &[1], &["https://large.example/x.git"]);
    world.server("https://quick.example/x.git", &[1], 5);
    for n in 0..20 {
        world.wanted(&format!("x{n}"), &[1], &["https://quick.example/x.git"]);
    }
    let begun = Instant::now();
    while !(0..20).all(|n| world.is_done(&format!("x{n}"))) {
        sleep(Duration::from_secs(1)).await;
    }
    // Forty drips in front of them, eight at a time, a minute each.
    assert!(
        begun.elapsed() < Duration::from_secs(7 * 60),
        "{:?}",
        begun.elapsed()
    );
    while !world.is_done("large") {
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.times("cut https://large.example"), 0);
    assert!(world.state().most_transfers <= 16);
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_slowest_gives_way_and_it_is_said_of_it() {
    let world = World::new();
    let (slow, fast, slower) = (server(1), server(2), server(3));
    world.sending(&slow, &[1], LONG, 100 * KIB);
    world.sending(&fast, &[1], LONG, 1000 * KIB);
    world.sending(&slower, &[1], LONG, 70 * KIB);
    world.wanted("slow", &[1], &[&slow]);
    let hunt = world.hunt(1);
    world.until("fetch", 1).await;
    sleep(Duration::from_secs(70)).await;
    world.wanted("fast", &[1], &[&fast]);
    world.until("report", 1).await;
    world.wanted("slower", &[1], &[&slower]);
    world.until("report", 3).await;
    let done = [
        format!("fetch {slow} [1]"),
        format!("fetch {fast} [1]"),
        format!("cut {slow}"),
        "report 1 Slow".into(),
    ];
    assert_eq!(world.done()[..4], done);
    let later: Vec<String> = world.done().split_off(4);
    assert!(later.contains(&"report 3 Slow".to_owned()), "{later:?}");
    assert!(
        later.contains(&"report 2 arrived [1]".to_owned()),
        "{later:?}"
    );
    assert!(!later.contains(&format!("cut {fast}")), "{later:?}");
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn of_those_that_are_alike_the_first_go_on() {
    let world = World::new();
    for n in 0..2 {
        world.sending(&server(n), &[1], LONG, (500 + n * 100) * KIB);
        world.wanted(&format!("x{n}"), &[1], &[&server(n)]);
    }
    let hunt = world.hunt(1);
    world.until("report 2 Slow", 1).await;
    assert_eq!(world.times(&format!("cut {}", server(0))), 0);
    world.until("report 1 arrived", 1).await;
    hunt.stop().await;
}

/// Nothing is known of how fast these are: a pack that has not begun to come, or one that has all come.
#[tokio::test(start_paused = true)]
async fn what_is_not_slow_does_not_give_way() {
    let world = World::new();
    for n in 0..2 {
        world.server(&server(n), &[1], 600);
        world.wanted(&format!("x{n}"), &[1], &[&server(n)]);
    }
    let hunt = world.hunt(1);
    world.until("report", 2).await;
    assert_eq!(world.times("cut"), 0);
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hunt_that_has_left_its_place_goes_on_when_there_is_room() {
    let world = World::new();
    world.state().again = true;
    world.sending(&server(1), &[1], 100, 500 * KIB);
    world.server(&server(2), &[2], 5);
    world.wanted("x", &[1, 2], &[&server(1), &server(2)]);
    world.server("https://quick.example/y.git", &[1], 50);
    let hunt = world.hunt(1);
    world.until("fetch", 1).await;
    sleep(Duration::from_secs(55)).await;
    world.wanted("y", &[1], &["https://quick.example/y.git"]);
    world.until("report", 3).await;
    // Its place is taken when its fetch ends: it is handed back, and nothing is tried twice.
    let quick = "https://quick.example/y.git";
    assert_eq!(
        world.done(),
        [
            format!("fetch {} [1, 2]", server(1)),
            format!("fetch {quick} [1]"),
            "report 1 arrived [1]".into(),
            "release x".into(),
            "report 2 arrived [1]".into(),
            format!("fetch {} [2]", server(2)),
            "report 3 arrived [2]".into(),
        ]
    );
    world.until("? renew 0", 1).await;
    hunt.stop().await;
}
