//! Next, fetch, report: what is done for one identifier, and for many at once.

use std::time::Duration;

use grasp_proto::contract::relay::{Fetch, Wait, failed::Why, next_response::Step};
use grasp_syncworker::hunt::context::CallError;
use tokio::time::{Instant, sleep};

use crate::world::{Entry, World};

#[tokio::test(start_paused = true)]
async fn what_one_server_lacks_is_sought_at_the_next_after_the_report() {
    let world = World::new();
    world.server("https://one.example/x.git", &[1], 5);
    world.server("https://two.example/x.git", &[1, 2], 5);
    world.wanted(
        "x",
        &[1, 2],
        &["https://one.example/x.git", "https://two.example/x.git"],
    );
    let hunt = world.hunt(8);
    world.until("? next", 3).await;
    assert_eq!(
        world.done(),
        [
            "fetch https://one.example/x.git [1, 2]",
            "report 1 arrived [1]",
            "fetch https://two.example/x.git [2]",
            "report 2 arrived [2]",
        ]
    );
    hunt.stop().await;
    // It had ended: there was nothing to hand back.
    assert_eq!(world.done().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_reported_and_the_next_url_tried_until_none_is_left() {
    let world = World::new();
    world.server("https://one.example/x.git", &[], 1);
    world.server("https://two.example/x.git", &[], 1);
    world
        .state()
        .servers
        .get_mut("https://one.example/x.git")
        .unwrap()
        .fails = Some(Why::Server);
    world.wanted(
        "x",
        &[1],
        &["https://one.example/x.git", "https://two.example/x.git"],
    );
    let hunt = world.hunt(8);
    world.until("? next", 3).await;
    world.until("? renew", 3).await;
    assert_eq!(
        world.done(),
        [
            "fetch https://one.example/x.git [1]",
            "report 1 Server",
            "fetch https://two.example/x.git [1]",
            "report 2 arrived []",
        ]
    );
    let counts = world.state().counts;
    assert_eq!((counts.fetches_succeeded, counts.fetches_failed), (1, 1));
    assert_eq!(
        (counts.bytes, counts.fetching, counts.concurrency),
        (20, 0, 8)
    );
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_lease_tried_is_not_tried_again() {
    let world = World::new();
    world.server("https://two.example/x.git", &[1], 1);
    world.entry(
        "x",
        Entry {
            missing: [1].into(),
            urls: ["https://one.example/x.git", "https://two.example/x.git"]
                .map(str::to_owned)
                .into(),
            tried: vec!["https://one.example/x.git".into()],
            ..Entry::default()
        },
    );
    let hunt = world.hunt(1);
    world.until("report", 1).await;
    assert_eq!(world.done()[0], "fetch https://two.example/x.git [1]");
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_domain_without_room_is_waited_for_under_the_lease() {
    let world = World::new();
    world.server("https://one.example/x.git", &[1], 1);
    world.wanted("x", &[1], &["https://one.example/x.git"]);
    let free = Instant::now() + Duration::from_secs(90);
    world.state().entries.get_mut("x").unwrap().busy_until = Some(free);
    let hunt = world.hunt(1);
    world.until("report 1 arrived", 1).await;
    // Longer than a lease lasts, with one call for each wait on the server.
    assert!(Instant::now() >= free);
    assert!(world.times("? next") <= 6);
    assert_eq!(world.state().token, 1);
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_during_a_fetch_is_hunted_for_in_the_same_turn() {
    let world = World::new();
    world.server("https://one.example/x.git", &[1], 10);
    world.server("https://new.example/x.git", &[2], 1);
    world.wanted("x", &[1], &["https://one.example/x.git"]);
    let hunt = world.hunt(1);
    world.until("fetch", 1).await;
    {
        let mut state = world.state();
        let entry = state.entries.get_mut("x").unwrap();
        entry.missing.insert(2);
        entry.urls.push("https://new.example/x.git".into());
    }
    world.until("report", 2).await;
    assert_eq!(world.done()[2], "fetch https://new.example/x.git [2]");
    assert_eq!(world.state().token, 1);
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_report_is_repeated_until_it_is_heard_and_only_then_goes_it_on() {
    let world = World::new();
    world.server("https://one.example/x.git", &[1], 1);
    world.server("https://two.example/x.git", &[2], 1);
    world.wanted(
        "x",
        &[1, 2],
        &["https://one.example/x.git", "https://two.example/x.git"],
    );
    world.state().reports = vec![CallError::Away("restarting".into()); 4].into();
    let hunt = world.hunt(1);
    world.until("report", 2).await;
    assert_eq!(world.times("? unheard report 1"), 4);
    assert_eq!(
        world.done()[1..3],
        [
            "report 1 arrived [1]",
            "fetch https://two.example/x.git [2]"
        ]
    );
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_refused_holds_nothing_up() {
    let world = World::new();
    world.server("https://one.example/x.git", &[1], 1);
    world.wanted("x", &[1], &["https://one.example/x.git"]);
    world.state().reports = [CallError::Refused("no".into())].into();
    let hunt = world.hunt(1);
    world.until("? next", 2).await;
    assert_eq!(world.times("? unheard report 1"), 1);
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_fetched_is_reported_as_ours_and_never_asked_for() {
    let good = Fetch {
        fetch: 70,
        url: "https://one.example/x.git".into(),
        wants: vec![vec![1; 20]],
        ..Fetch::default()
    };
    let bad: [fn(&mut Fetch); 6] = [
        |fetch| fetch.wants = vec![vec![1; 19]],
        |fetch| fetch.wants = vec![],
        |fetch| fetch.haves = vec![vec![1; 21]],
        |fetch| fetch.url = "https://".into(),
        |fetch| fetch.url = "file:///etc/passwd".into(),
        |fetch| fetch.url = String::new(),
    ];
    for change in bad {
        let world = World::new();
        world.wanted("x", &[], &[]);
        let mut fetch = good.clone();
        change(&mut fetch);
        let first = Ok(Step::Fetch(fetch));
        world.state().entries.get_mut("x").unwrap().first = [first].into();
        let hunt = world.hunt(1);
        world.until("? next", 2).await;
        assert_eq!(world.done(), ["report 70 Ours"]);
        hunt.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_answer_makes_it_spin() {
    // Wait, at once, a thousand times; a URL that has been tried, again and again.
    let world = World::new();
    world.wanted("x", &[], &[]);
    world.state().entries.get_mut("x").unwrap().first = vec![Ok(Step::Wait(Wait {})); 1000].into();
    let hunt = world.hunt(1);
    sleep(Duration::from_secs(60)).await;
    assert!(
        (5..40).contains(&world.times("? next")),
        "{}",
        world.times("? next")
    );
    hunt.stop().await;

    let world = World::new();
    world.wanted("x", &[], &[]);
    world.state().entries.get_mut("x").unwrap().first = (0..5000)
        .map(|fetch| {
            Ok(Step::Fetch(Fetch {
                fetch,
                url: format!("nowhere {fetch}"),
                ..Fetch::default()
            }))
        })
        .collect();
    let hunt = world.hunt(1);
    sleep(Duration::from_secs(60)).await;
    assert!(world.times("report") <= 2000);
    // Given up: the lease is not renewed any more.
    world.until("? renew 0", 3).await;
    hunt.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_refuses_the_next_step_is_not_asked_for_ever() {
    let world = World::new();
    world.wanted("x", &[1], &[]);
    let refused = Err(CallError::Refused("nonsense".into()));
    world.state().entries.get_mut("x").unwrap().first = vec![refused; 100].into();
    let hunt = world.hunt(1);
    world.until("? renew 0", 4).await;
    assert_eq!(world.times("? next"), 1);
    hunt.stop().await;
    assert!(world.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn never_more_identifiers_at_once_than_there_are_places() {
    for generous in [false, true] {
        let world = World::new();
        world.state().generous = generous;
        for n in 0..50 {
            let url = format!("https://s{n}.example/x.git");
            world.server(&url, &[1], 1 + n % 7);
            world.wanted(&format!("x{n}"), &[1], &[&url]);
        }
        let hunt = world.hunt(4);
        if generous {
            // Leases beyond the room were handed back.
            world.until("report", 4).await;
            assert_eq!(world.times("release"), 46);
        } else {
            world.until("report", 50).await;
        }
        assert_eq!(world.state().most_transfers, 4);
        hunt.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_holds_up_its_own_identifier_alone() {
    let world = World::new();
    world.server("https://slow.example/x.git", &[1], 3600);
    world.server("https://fast.example/x.git", &[1], 1);
    world.wanted("slow", &[1], &["https://slow.example/x.git"]);
    let hunt = world.hunt(2);
    world.until("fetch", 1).await;
    for n in 0..20 {
        world.wanted(&format!("x{n}"), &[1], &["https://fast.example/x.git"]);
    }
    world.until("report", 20).await;
    assert_eq!(world.state().transfers, 1);
    world.until("report 1 arrived [1]", 1).await;
    hunt.stop().await;
}
