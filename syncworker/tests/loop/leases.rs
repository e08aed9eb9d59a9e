//! Leases: kept, lost, and what a relay that is away does to them.

use std::time::Duration;

use grasp_syncworker::hunt::context::CallError;
use tokio::time::sleep;

use crate::world::{Renewals, VALID, World};

const URL: &str = "https://slow.example/x.git";

#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_for_as_long_as_a_fetch_takes_and_its_grants_follow() {
    let world = World::new();
    world.server(URL, &[1], 3600);
    world.wanted("x", &[1], &[URL]);
    let hunt = world.hunt(1);
    world.until("report 1 arrived [1]", 1).await;
    assert_eq!(world.state().token, 1);
    let grants = world.state().grants.clone();
    assert_eq!(grants[0], "first of 1");
    assert!(grants.len() >= 3600 / 10, "{}", grants.len());
    assert!(grants[1..].iter().all(|grant| grant == "renewed of 1"));
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_leases_is_heard_of_three_times_in_the_life_of_one() {
    let world = World::new();
    let hunt = world.hunt(1);
    sleep(10 * VALID).await;
    assert!(world.times("? renew 0") >= 30);
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_ends_its_fetch_before_the_relay_gives_it_away() {
    let away: fn() -> CallError = || CallError::Away("it is away".into());
    let refused: fn() -> CallError = || CallError::Refused("no".into());
    for renewals in [
        Renewals::Unanswered,
        Renewals::Refused(away),
        Renewals::Refused(refused),
    ] {
        let world = World::new();
        world.server(URL, &[1], 3600);
        world.wanted("x", &[1], &[URL]);
        let hunt = world.hunt(1);
        world.until("fetch", 1).await;
        sleep(2 * VALID).await;
        world.state().renewals = Some(renewals);
        world.until("cut", 1).await;
        // By the relay's clock it held still, and not for long.
        let end = world.state().leases["x"].1;
        let left = end - tokio::time::Instant::now();
        assert!(
            left > Duration::from_secs(1) && left < VALID / 2,
            "{left:?}"
        );
        sleep(VALID).await;
        assert_eq!(
            world.done(),
            [format!("fetch {URL} [1]"), format!("cut {URL}")]
        );

        // Its place is free, and the relay is asked again.
        world.state().renewals = None;
        world.server("https://other.example/y.git", &[2], 1);
        world.wanted("y", &[2], &["https://other.example/y.git"]);
        world.until("report 2 arrived [2]", 1).await;
        hunt.stop().await;
        assert_eq!(world.times("report 1"), 0);
        assert_eq!(world.times("release"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_relay_says_is_lost_ends_its_fetch_at_once() {
    let lost: fn() -> CallError = || CallError::Lost;
    for renewals in [Renewals::LeftOut, Renewals::Refused(lost)] {
        let world = World::new();
        world.server(URL, &[1], 3600);
        world.wanted("x", &[1], &[URL]);
        let hunt = world.hunt(1);
        world.until("fetch", 1).await;
        world.until("? renew 1", 1).await;
        let asked = world.times("? renew");
        world.state().renewals = Some(renewals);
        world.until("? renew", asked + 1).await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!(
            world.done(),
            [format!("fetch {URL} [1]"), format!("cut {URL}")]
        );
        hunt.stop().await;
        assert_eq!(world.done().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn many_leases_are_renewed_in_groups_and_none_is_lost_with_another() {
    let world = World::new();
    for n in 0..200 {
        let identifier = format!("x{n:03}");
        world.wanted(&identifier, &[1], &[URL]);
        let busy = tokio::time::Instant::now() + 100 * VALID;
        let mut state = world.state();
        state.entries.get_mut(&identifier).unwrap().busy_until = Some(busy);
    }
    let hunt = world.hunt(200);
    world.until("? renew 64", 6).await;
    sleep(3 * VALID).await;
    let held = || {
        let state = world.state();
        let now = tokio::time::Instant::now();
        state.leases.values().filter(|(_, end)| *end > now).count()
    };
    assert_eq!(held(), 200);
    world.state().renewals = Some(Renewals::RefusedWith("x150"));
    sleep(2 * VALID).await;
    assert!((136..200).contains(&held()), "{}", held());
    let largest = (65..=200).map(|n| world.times(&format!("? renew {n}")));
    assert_eq!(largest.sum::<usize>(), 0);
    world.state().renewals = None;
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_or_report_that_is_aborted_ends_the_hunt_for_its_identifier() {
    let world = World::new();
    world.wanted("x", &[1], &[]);
    world.state().entries.get_mut("x").unwrap().first = vec![Err(CallError::Lost); 9].into();
    world.server(URL, &[1], 1);
    world.wanted("y", &[1, 2], &[URL, "https://two.example/y.git"]);
    world.state().reports = [CallError::Lost].into();
    let hunt = world.hunt(2);
    world.until("? unheard report", 1).await;
    world.until("? renew 0", 2).await;
    assert_eq!(world.times("? next x"), 1);
    assert_eq!(world.times("? next y"), 1);
    hunt.stop().await;
    assert_eq!(world.done(), [format!("fetch {URL} [1, 2]")]);
}

#[tokio::test(start_paused = true)]
async fn the_same_identifier_leased_anew_is_hunted_for_under_the_new_lease_alone() {
    let world = World::new();
    world.server(URL, &[1], 20);
    world.wanted("x", &[1], &[URL]);
    let hunt = world.hunt(2);
    world.until("fetch", 1).await;
    world.wanted("x", &[1], &[URL]);
    world.until("report", 1).await;
    assert_eq!(
        world.done(),
        [
            format!("fetch {URL} [1]"),
            format!("cut {URL}"),
            format!("fetch {URL} [1]"),
            "report 2 arrived [1]".into(),
        ]
    );
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_away_is_waited_for_without_spinning() {
    let world = World::new();
    world.state().away = true;
    world.server(URL, &[1], 1);
    world.wanted("x", &[1], &[URL]);
    let hunt = world.hunt(8);
    sleep(Duration::from_secs(600)).await;
    // Every 2.5 to 5 seconds, when it has been long.
    for what in ["? lease", "? renew"] {
        let calls = world.times(what);
        assert!((600 / 5..600 / 2).contains(&calls), "{what}: {calls}");
    }
    world.state().away = false;
    world.until("report 1 arrived [1]", 1).await;
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_away_for_less_than_a_lease_costs_nothing() {
    let world = World::new();
    world.server(URL, &[1], 10);
    world.wanted("x", &[1], &[URL]);
    let hunt = world.hunt(1);
    world.until("fetch", 1).await;
    world.state().away = true;
    // Longer than the fetch takes: its report meets nobody.
    sleep(Duration::from_secs(20)).await;
    world.state().away = false;
    world.until("report 1 arrived [1]", 1).await;
    assert_eq!(world.state().token, 1);
    assert_eq!(world.times("cut"), 0);
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_what_has_no_name_is_not_taken_and_does_not_spin() {
    let world = World::new();
    for _ in 0..1000 {
        world.wanted("a/b", &[1], &[URL]);
    }
    let hunt = world.hunt(1);
    sleep(Duration::from_secs(60)).await;
    assert!(world.times("? lease") < 40);
    hunt.stop().await;
    assert!(world.done().is_empty());
}
