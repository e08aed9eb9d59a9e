//! The budget under every order of events that can be thought of.

use proptest::prelude::*;

use super::*;
use crate::domain::Domain as Service;

const START: Moment = Moment::from_millis(10_000_000);
const LIMITS: Limits = Limits {
    at_once: 5,
    per_minute: 30,
    aside_for: Duration::from_secs(12 * 60 * 60),
};

fn url(text: &str) -> CloneUrl {
    CloneUrl::read(text, &Service::parse("grasp.example").unwrap()).unwrap()
}

fn who(n: usize) -> Identifier {
    Identifier::parse(&format!("r{n}")).unwrap()
}

fn after(seconds: u64) -> Moment {
    START + Duration::from_secs(seconds)
}

#[test]
fn five_at_once_and_a_freed_place_goes_to_who_waits_longest() {
    let mut budget = Budget::new(LIMITS);
    let a = url("https://a.example/x");
    for fetch in 0..5 {
        assert!(budget.has_room_for("a.example", &who(0), START));
        budget.take(fetch, &a, START);
    }
    assert!(!budget.has_room_for("a.example", &who(1), START));
    for n in [1, 2, 3] {
        budget.wait(&who(n), ["a.example"], START);
    }
    assert!(budget.woken().is_empty());
    assert!(budget.free(0, Outcome::Fine, START));
    assert_eq!(budget.woken(), [who(1)].into());
    // Kept for the first: not for the others, nor for who comes now.
    for n in [2, 3, 9] {
        assert!(!budget.has_room_for("a.example", &who(n), START));
    }
    assert!(budget.has_room_for("a.example", &who(1), START));
    // It has found what it looked for elsewhere: the next one's turn.
    budget.leave(&who(1), START);
    assert_eq!(budget.woken(), [who(2)].into());
    // The second of two answers frees nothing.
    assert!(!budget.free(0, Outcome::Fine, START));
    assert_eq!(budget.running("a.example"), 4);
}

#[test]
fn the_minute_slides_and_says_when() {
    let mut budget = Budget::new(LIMITS);
    let a = url("https://a.example/x");
    for second in 0..30 {
        let now = after(second);
        assert!(budget.has_room_for("a.example", &who(0), now));
        budget.take(second, &a, now);
        budget.free(second, Outcome::Fine, now);
    }
    let now = after(30);
    assert!(!budget.has_room_for("a.example", &who(1), now));
    budget.wait(&who(1), ["a.example"], now);
    budget.wait(&who(2), ["a.example"], now);
    assert_eq!(budget.next_moment(), Some(after(60)));
    budget.tick(Moment::from_millis(after(60).as_millis() - 1));
    assert!(budget.woken().is_empty());
    budget.tick(after(60));
    assert_eq!(budget.woken(), [who(1)].into());
    budget.tick(after(61));
    assert_eq!(budget.woken(), [who(1), who(2)].into());
}

#[test]
fn a_domain_that_asks_for_it_is_left_alone() {
    let mut budget = Budget::new(LIMITS);
    let a = url("https://a.example/x");
    budget.take(1, &a, START);
    budget.free(1, Outcome::Busy, START);
    assert!(!budget.has_room_for("a.example", &who(1), after(64)));
    budget.wait(&who(1), ["a.example"], after(1));
    budget.tick(after(64));
    assert!(budget.woken().is_empty());
    budget.tick(after(65));
    assert_eq!(budget.woken(), [who(1)].into());
}

#[test]
fn a_server_that_keeps_failing_is_set_aside_and_comes_back() {
    let mut budget = Budget::new(LIMITS);
    let (a, other) = (url("https://a.example/x"), url("https://a.example:81/x"));
    let ask = |budget: &mut Budget, fetch, outcome, now| {
        budget.take(fetch, &a, now);
        budget.free(fetch, outcome, now);
        budget.tick(now);
    };
    // Often, but not for long; then a success; then long, but not often.
    for n in 0..20 {
        ask(&mut budget, n, Outcome::Broken, after(n));
    }
    assert!(!budget.is_aside(&a, after(20)));
    ask(&mut budget, 20, Outcome::Fine, after(500));
    for n in 1..10 {
        ask(&mut budget, 20 + n, Outcome::Broken, after(500 + n * 100));
    }
    assert!(!budget.is_aside(&a, after(1_400)));
    ask(&mut budget, 30, Outcome::Unknown, after(1_450));
    assert!(!budget.is_aside(&a, after(1_450)));
    ask(&mut budget, 31, Outcome::Broken, after(1_500));
    assert!(budget.is_aside(&a, after(1_500)));
    assert!(!budget.is_aside(&other, after(1_500)));
    assert_eq!(budget.set_aside(), 1);
    let until = after(1_500) + Duration::from_secs(5 * 60);
    let figures = &budget.figures(after(1_501))[0];
    assert_eq!((figures.aside_until, figures.times_aside), (Some(until), 1));
    assert!(budget.to_probe().is_empty());
    budget.tick(until);
    assert_eq!(budget.to_probe(), [a.server.clone()].into());
    // One request finds out whether it is back.
    assert!(!budget.is_aside(&a, until));
    budget.take(32, &a, until);
    assert!(budget.is_aside(&a, until));
    budget.free(32, Outcome::Broken, until);
    let figures = &budget.figures(until)[0];
    let again = until + Duration::from_secs(10 * 60);
    assert_eq!((figures.aside_until, figures.times_aside), (Some(again), 2));
    budget.tick(again);
    budget.take(33, &a, again);
    budget.recovered();
    budget.free(33, Outcome::Fine, again);
    assert_eq!(budget.recovered(), [a.server.clone()].into());
    assert!(!budget.is_aside(&a, again) && budget.set_aside() == 0);
    budget.tick(again + MINUTE);
    assert!(budget.domains.is_empty() && budget.moments.is_empty());
}

#[test]
fn what_is_idle_takes_no_room() {
    let mut budget = Budget::new(LIMITS);
    for n in 0..100 {
        budget.take(n, &url(&format!("https://d{n}.example/x")), START);
        budget.free(n, Outcome::Fine, START);
    }
    assert_eq!(budget.domains.len(), 100);
    budget.tick(after(60));
    assert!(budget.domains.is_empty() && budget.moments.is_empty());
    // Those remembered for their failures alone are bounded.
    for n in 0..(DOMAINS as u64 + 10) {
        let now = after(100 + n);
        budget.take(n, &url(&format!("https://d{n}.example/x")), now);
        budget.free(n, Outcome::Broken, now);
        budget.tick(now);
    }
    // Those that are busy just now are not among the failing ones that give way.
    assert!(budget.idle.len() <= DOMAINS);
    assert!(
        budget.domains.len() <= DOMAINS + 2 * 60,
        "{}",
        budget.domains.len()
    );
    assert!(!budget.domains.contains_key("d0.example"));
    budget.tick(after(2 * DOMAINS as u64 + 100));
    assert!(budget.domains.is_empty() && budget.moments.is_empty() && budget.idle.is_empty());
}

#[test]
fn the_urls_of_a_domain_take_turns() {
    let mut budget = Budget::new(LIMITS);
    let urls = ["a", "b", "c"].map(|name| url(&format!("https://a.example/{name}")));
    let all: Vec<&CloneUrl> = urls.iter().collect();
    let mut asked = Vec::new();
    for fetch in 0..5 {
        let next = budget.next_url("a.example", &all).unwrap();
        budget.take(fetch, next, START);
        asked.push(next.url.chars().last().unwrap());
    }
    assert_eq!(asked, ['a', 'b', 'c', 'a', 'b']);
}

#[test]
fn a_restart_forgets_neither_what_runs_nor_the_last_minute() {
    let mut budget = Budget::new(LIMITS);
    let a = url("https://a.example/x");
    for fetch in 0..4 {
        budget.restore(fetch, &a.domain, &a.server, START);
        budget.restore(fetch, &a.domain, &a.server, START);
    }
    budget.restore_recent("a.example", vec![after(0); 29], after(10));
    assert_eq!(budget.running("a.example"), 4);
    budget.take(9, &a, after(10));
    budget.free(0, Outcome::Fine, after(11));
    assert!(!budget.has_room_for("a.example", &who(1), after(11)));
    assert!(budget.has_room_for("a.example", &who(1), after(60)));
}

#[derive(Debug, Clone)]
enum Act {
    Ask(usize, usize),
    End(usize, Outcome),
    Leave(usize),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let outcome = prop_oneof![
        6 => Just(Outcome::Fine),
        3 => Just(Outcome::Broken),
        1 => Just(Outcome::Busy),
        3 => Just(Outcome::Unknown),
    ];
    prop_oneof![
        8 => (0usize..12, 0usize..2).prop_map(|(who, domain)| Act::Ask(who, domain)),
        6 => (0usize..8, outcome).prop_map(|(which, outcome)| Act::End(which, outcome)),
        1 => (0usize..12).prop_map(Act::Leave),
        4 => (0u64..9_000).prop_map(Act::Pass),
    ]
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_the_budget(acts in prop::collection::vec(act(), 1..400)) {
        let mut budget = Budget::new(LIMITS);
        let urls = [url("https://a.example/x"), url("https://b.example/x")];
        let mut now = START;
        let mut fetch = 0;
        let mut running: Vec<(u64, usize)> = Vec::new();
        let mut asked: [Vec<Moment>; 2] = Default::default();
        // Who waits in which domain, as it must be.
        let mut queues: [Vec<usize>; 2] = Default::default();
        for act in acts {
            match act {
                Act::Ask(n, d) => {
                    let (name, at) = (urls[d].domain.as_str(), who(n));
                    if budget.has_room_for(name, &at, now) {
                        // Nobody who may not goes before who waits.
                        let place = queues[d].iter().position(|w| *w == n);
                        let ahead = place.unwrap_or(queues[d].len());
                        let in_flight = running.iter().filter(|(_, other)| *other == d).count();
                        prop_assert!(ahead < 5 - in_flight);
                        budget.leave(&at, now);
                        for queue in &mut queues {
                            queue.retain(|w| *w != n);
                        }
                        fetch += 1;
                        budget.take(fetch, &urls[d], now);
                        running.push((fetch, d));
                        asked[d].push(now);
                    } else {
                        budget.wait(&at, [name], now);
                        queues[1 - d].retain(|w| *w != n);
                        if !queues[d].contains(&n) {
                            queues[d].push(n);
                        }
                    }
                }
                Act::End(which, outcome) if !running.is_empty() => {
                    let (fetch, _) = running.remove(which % running.len());
                    prop_assert!(budget.free(fetch, outcome, now));
                    prop_assert!(!budget.free(fetch, outcome, now));
                }
                Act::End(..) => {}
                Act::Leave(n) => {
                    budget.leave(&who(n), now);
                    for queue in &mut queues {
                        queue.retain(|w| *w != n);
                    }
                }
                Act::Pass(millis) => {
                    now = now + Duration::from_millis(millis);
                    budget.tick(now);
                }
            }
            for (d, of_domain) in asked.iter().enumerate() {
                let name = &urls[d].domain;
                let in_flight = running.iter().filter(|(_, other)| *other == d).count();
                prop_assert_eq!(budget.running(name), in_flight);
                prop_assert!(in_flight <= 5);
                let last = of_domain.iter().filter(|at| **at + MINUTE > now).count();
                prop_assert!(last <= 30);
            }
        }
        // Whatever happened: when all have ended and time goes by, everybody gets their turn.
        for (fetch, _) in running {
            budget.free(fetch, Outcome::Unknown, now);
        }
        let mut left: BTreeSet<Identifier> = queues.iter().flatten().map(|n| who(*n)).collect();
        let mut guard = 0;
        while !left.is_empty() {
            for one in budget.woken() {
                budget.leave(&one, now);
                left.remove(&one);
            }
            if let Some(next) = budget.next_moment() {
                now = now.max(next);
                budget.tick(now);
            }
            guard += 1;
            prop_assert!(guard < 10_000, "{left:?} wait for ever");
        }
    }
}
