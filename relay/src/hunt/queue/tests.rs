//! The queue under a clock that stands still until it is moved.

use std::collections::BTreeMap;

use grasp_proto::words::Oid;
use proptest::prelude::*;

use super::*;
use crate::{
    domain::Domain,
    hunt::{budget::Outcome, costly::OfUrl, urls::CloneUrl},
    journal::Record,
};

const START: Moment = Moment::from_millis(1_000_000_000);
const RULES: Rules = Rules {
    delays: Delays {
        user: Duration::from_secs(180),
        synced: Duration::from_millis(500),
    },
    lease: Duration::from_secs(20),
    limits: Limits {
        at_once: 5,
        per_minute: 30,
        aside_for: Duration::from_secs(12 * 60 * 60),
    },
};

fn name(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
}

fn url(text: &str) -> CloneUrl {
    CloneUrl::read(text, &Domain::parse("grasp.example").unwrap()).unwrap()
}

fn urls(host: &str, count: usize) -> Vec<CloneUrl> {
    let each = (0..count).map(|n| url(&format!("https://{host}/{n:03}")));
    each.collect()
}

fn wants() -> Arc<[Oid]> {
    Arc::from([Oid::from_bytes([7; 20])])
}

/// A queue and its clock.
struct At {
    queue: Queue,
    now: Moment,
}

impl At {
    fn new() -> Self {
        Self {
            queue: Queue::new(RULES, 100),
            now: START,
        }
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.queue.tick(self.now);
    }

    fn synced(&mut self, identifier: &str) {
        let wanted = self.now + RULES.delays.synced;
        self.queue.enqueue(&name(identifier), wanted, false, None);
    }

    fn lease(&mut self, worker: &str) -> Option<Leased> {
        self.queue.lease(worker, 1, self.now).pop()
    }

    /// Queues an identifier and leases it.
    fn leased(&mut self, identifier: &str) -> Leased {
        self.synced(identifier);
        self.pass(500);
        let lease = self.lease("w").unwrap();
        assert_eq!(lease.identifier, name(identifier));
        lease
    }

    fn step(&mut self, lease: &Leased, urls: &[CloneUrl]) -> Result<Step, Lost> {
        let tried = HashSet::new();
        let (name, token) = (&lease.identifier, lease.token);
        self.step_of(name, token, urls, &tried)
    }

    /// A step of a worker that has tried these.
    fn step_of(
        &mut self,
        name: &Identifier,
        token: u64,
        urls: &[CloneUrl],
        tried: &HashSet<String>,
    ) -> Result<Step, Lost> {
        let step = self.queue.step(name, token, urls, tried, self.now)?;
        if let Step::Ask(number, _) = step {
            self.queue.wants(name, token, number, &wants()).unwrap();
        }
        Ok(step)
    }

    fn ask(&mut self, lease: &Leased, urls: &[CloneUrl]) -> (u64, String) {
        match self.step(lease, urls).unwrap() {
            Step::Ask(number, url) => (number, url.url),
            other => panic!("{other:?}"),
        }
    }

    fn fails(&mut self, lease: &Leased, number: u64) {
        let (name, token) = (&lease.identifier, lease.token);
        let outcome = Outcome::Fine;
        let reported = self.queue.report(name, token, number, outcome, self.now);
        assert!(matches!(reported, Ok(Reported::First(_))), "{reported:?}");
    }
}

#[test]
fn ten_events_in_a_hundred_milliseconds_are_one_attempt() {
    let mut at = At::new();
    for _ in 0..10 {
        at.synced("x");
        at.pass(10);
    }
    at.pass(399);
    assert_eq!(at.lease("w"), None);
    at.pass(1);
    let lease = at.lease("w").unwrap();
    assert_eq!(at.lease("w"), None);
    let end = at
        .queue
        .end_held(&name("x"), lease.token, Why::NothingPending, at.now);
    assert_eq!(end, Ok(Step::Ended(Why::NothingPending)));
    assert!(at.queue.is_empty());
    assert_eq!(at.queue.next_moment(), None);
}

#[test]
fn what_is_settled_is_hunted_for_no_more_unless_somebody_does() {
    let mut at = At::new();
    at.synced("x");
    let due = at.now + RULES.delays.synced;
    assert_eq!(at.queue.settled(&name("x")), Some(due));
    assert!(at.queue.is_empty() && at.queue.next_moment().is_none());
    assert_eq!(at.queue.settled(&name("x")), None);
    let lease = at.leased("x");
    assert_eq!(at.queue.settled(&name("x")), None);
    assert_eq!(at.step(&lease, &[]), Ok(Step::Ended(Why::NothingLeft)));
    assert!(at.queue.settled(&name("x")).is_some());
    at.queue.enqueue(&name("y"), at.now, true, None);
    assert_eq!(at.queue.settled(&name("y")), None);
}

#[test]
fn what_stays_missing_is_tried_again_later_and_later() {
    let mut at = At::new();
    at.synced("x");
    at.pass(500);
    for seconds in [20, 40, 80, 120, 120] {
        let lease = at.lease("w").unwrap();
        assert!(lease.tried.is_empty());
        assert_eq!(at.step(&lease, &[]), Ok(Step::Ended(Why::NothingLeft)));
        at.pass(seconds * 1_000 - 1);
        assert_eq!(at.lease("w"), None);
        at.pass(1);
    }
    // An event begins anew.
    let lease = at.lease("w").unwrap();
    at.synced("x");
    assert_eq!(at.step(&lease, &[]), Ok(Step::Ended(Why::NothingLeft)));
    at.pass(499);
    assert_eq!(at.lease("w"), None);
    at.pass(1);
    let lease = at.lease("w").unwrap();
    at.step(&lease, &[]).unwrap();
    at.pass(20_000);
    assert!(at.lease("w").is_some());
}

#[test]
fn a_users_event_waits_for_a_push_unless_sync_brings_another() {
    let mut at = At::new();
    let wanted = at.now + RULES.delays.user;
    at.queue.enqueue(&name("x"), wanted, false, None);
    at.pass(179_999);
    assert_eq!(at.lease("w"), None);
    at.synced("x");
    at.pass(1);
    assert!(at.lease("w").is_some());
}

#[test]
fn an_event_that_came_after_all_was_looked_at_is_not_lost() {
    let mut at = At::new();
    let lease = at.leased("x");
    at.synced("x");
    let (id, token) = (name("x"), lease.token);
    at.queue
        .end_held(&id, token, Why::NothingPending, at.now)
        .unwrap();
    at.pass(500);
    assert!(at.lease("w").is_some());
}

#[test]
fn two_workers_never_hold_one_identifier() {
    let mut at = At::new();
    let first = at.leased("x");
    assert_eq!(at.lease("v"), None);
    // The first vanishes: its place in the budget comes back once, and the second goes on.
    let (number, asked) = at.ask(&first, &urls("a.example", 1));
    at.pass(19_999);
    assert_eq!(at.lease("v"), None);
    at.pass(1);
    assert_eq!(at.queue.budget.running("a.example"), 0);
    let second = at.lease("v").unwrap();
    assert!(second.token > first.token);
    // What it was asking is asked once more, and no third time if that, too, is never heard of.
    assert!(second.tried.is_empty());
    let late = at
        .queue
        .report(&name("x"), first.token, number, Outcome::Fine, at.now);
    assert!(matches!(late, Err(Lost)));
    assert!(matches!(at.step(&first, &[]), Err(Lost)));
    let one = urls("a.example", 1);
    assert_eq!(at.ask(&second, &one).1, asked);
    assert_eq!(at.queue.budget.running("a.example"), 1);
    at.pass(20_000);
    let third = at.lease("w").unwrap();
    assert_eq!(third.tried, [asked]);
    assert_eq!(at.step(&third, &one), Ok(Step::Ended(Why::NothingLeft)));
}

#[test]
fn a_renewed_lease_holds() {
    let mut at = At::new();
    let lease = at.leased("x");
    let (number, _) = at.ask(&lease, &urls("a.example", 1));
    for _ in 0..100 {
        at.pass(15_000);
        let renewed = at.queue.renew(&name("x"), lease.token, at.now).unwrap();
        assert_eq!(renewed.unwrap().number, number);
    }
    at.fails(&lease, number);
    assert!(
        at.queue
            .renew(&name("x"), lease.token, at.now)
            .unwrap()
            .is_none()
    );
    assert!(at.queue.renew(&name("x"), 1, at.now).is_err());
}

#[test]
fn a_report_counts_once() {
    let mut at = At::new();
    let lease = at.leased("x");
    let (number, _) = at.ask(&lease, &urls("a.example", 9));
    at.fails(&lease, number);
    let mut report = |number| {
        let outcome = Outcome::Broken;
        at.queue
            .report(&name("x"), lease.token, number, outcome, at.now)
            .unwrap()
    };
    assert!(matches!(report(number), Reported::Late));
    assert!(matches!(report(number + 1), Reported::Unknown));
    assert!(matches!(report(lease.token + 1_000), Reported::Unknown));
    assert!(matches!(report(lease.token), Reported::Unknown));
    let answer = Answer {
        released: 2,
        missing: 3,
    };
    at.queue.answered(&name("x"), lease.token, number, answer);
    let again = at
        .queue
        .report(&name("x"), lease.token, number, Outcome::Fine, at.now);
    assert!(matches!(again, Ok(Reported::Before(same)) if same == answer));
    assert_eq!(at.queue.budget.running("a.example"), 0);
}

#[test]
fn a_fetch_that_is_never_reported_gives_its_place_back() {
    let mut at = At::new();
    let lease = at.leased("x");
    let all = urls("a.example", 9);
    let (first, a) = at.ask(&lease, &all);
    let tried = HashSet::from([a.clone()]);
    let step = at.step_of(&name("x"), lease.token, &all, &tried);
    assert!(matches!(step, Ok(Step::Ask(_, url)) if url.url != a));
    assert_eq!(at.queue.budget.running("a.example"), 1);
    let late = at
        .queue
        .report(&name("x"), lease.token, first, Outcome::Fine, at.now);
    assert!(matches!(late, Ok(Reported::Late)));
    assert_eq!(at.queue.budget.running("a.example"), 1);
}

#[test]
fn a_fetch_that_never_reached_its_worker_is_given_once_more() {
    let mut at = At::new();
    let lease = at.leased("x");
    let one = urls("a.example", 1);
    let (first, url) = at.ask(&lease, &one);
    let (second, again) = at.ask(&lease, &one);
    assert!(second > first && url == again);
    assert_eq!(at.queue.budget.running("a.example"), 1);
    // And no third time.
    assert_eq!(at.step(&lease, &one), Ok(Step::Ended(Why::NothingLeft)));
    assert_eq!(at.queue.budget.running("a.example"), 0);
}

#[test]
fn an_attempt_that_finds_ever_new_urls_ends_and_forgets_the_old_ones() {
    let mut at = At::new();
    at.synced("x");
    at.pass(500);
    let (good, mut asked_good, mut turns, mut newest) = (url("https://good.example/x"), 0, 0, 0);
    let mut seen = 0;
    while turns < 2 * TURNS_AN_ATTEMPT {
        let lease = at.lease("w").unwrap();
        assert!(lease.tried.len() <= 21, "{}", lease.tried.len());
        loop {
            // Somebody's URLs are others with every step.
            newest += 1;
            let mut all = vec![good.clone()];
            let new = (0..20).map(|n| url(&format!("https://d{newest}.example/{n}")));
            all.extend(new);
            match at.step(&lease, &all).unwrap() {
                Step::Ask(number, url) => {
                    asked_good += usize::from(url == good);
                    at.fails(&lease, number);
                }
                Step::Ended(Why::TurnOver) => break,
                Step::Ended(Why::NothingLeft) => {
                    at.pass(20_000);
                    break;
                }
                other => panic!("{other:?}"),
            }
            seen = seen.max(at.queue.entries[&name("x")].tried.len());
        }
        turns += 1;
    }
    assert_eq!(asked_good, 2);
    assert!(seen <= 21, "{seen}");
    let rotation = at.queue.rotation(&name("x"));
    assert_eq!(rotation.attempts, 2);
}

#[test]
fn who_has_used_much_goes_behind_the_others_and_is_not_put_off_for_ever() {
    let mut at = At::new();
    // A server drips for five minutes.
    let lease = at.leased("bad");
    let (number, _) = at.ask(&lease, &urls("bad.example", 20));
    for _ in 0..30 {
        at.pass(10_000);
        at.queue.renew(&name("bad"), lease.token, at.now).unwrap();
    }
    at.fails(&lease, number);
    let all = urls("bad.example", 20);
    assert_eq!(at.step(&lease, &all), Ok(Step::Ended(Why::TurnOver)));
    // Long after, there are ever new ones, each due later than it: it waits, and for no more than
    // every fourth lease.
    let mut before = 0;
    loop {
        at.synced(&format!("new{before}"));
        at.synced(&format!("also{before}"));
        at.pass(2_000);
        let lease = at.lease("w").unwrap();
        if lease.identifier == name("bad") {
            break;
        }
        before += 1;
    }
    assert!((1..ONE_IN).contains(&before), "{before}");
    assert_eq!(at.queue.ready.len(), at.queue.overdue.len());
}

#[test]
fn a_url_that_cost_much_is_left_alone_by_this_identifier_only() {
    let mut at = At::new();
    let (x, y) = (at.leased("x"), at.leased("y"));
    let both = [url("https://a.example/big"), url("https://b.example/x")];
    let said = Said {
        server: Outcome::Fine,
        url: OfUrl::Costly,
    };
    let (number, big) = at.ask(&x, &both);
    assert_eq!(big, both[0].url);
    at.queue
        .report(&name("x"), x.token, number, said, at.now)
        .unwrap();
    let (number, _) = at.ask(&x, &both);
    at.fails(&x, number);
    assert_eq!(at.step(&x, &both), Ok(Step::Ended(Why::NothingLeft)));
    at.queue.renew(&name("y"), y.token, at.now).unwrap();
    assert_eq!(at.ask(&y, &both).1, big);
    // Ten minutes.
    at.pass(20_000);
    let x = at.lease("w").unwrap();
    let (number, other) = at.ask(&x, &both);
    assert_eq!(other, both[1].url);
    at.fails(&x, number);
    assert_eq!(at.step(&x, &both), Ok(Step::Ended(Why::NothingLeft)));
    at.pass(600_000);
    let leases = at.queue.lease("w", 9, at.now);
    let x = leases.iter().find(|lease| lease.identifier == name("x"));
    assert_eq!(at.ask(x.unwrap(), &both).1, big);
}

#[test]
fn a_turn_ends_after_sixteen_urls_and_the_next_goes_on_behind_it() {
    let mut at = At::new();
    let all: Vec<CloneUrl> = (0..20)
        .map(|n| url(&format!("https://d{n}.example/x")))
        .collect();
    let mut lease = at.leased("x");
    let mut asked = BTreeSet::new();
    for _ in 0..URLS_A_TURN {
        let (number, url) = at.ask(&lease, &all);
        assert!(asked.insert(url));
        at.fails(&lease, number);
    }
    at.synced("y");
    at.pass(600);
    assert_eq!(at.step(&lease, &all), Ok(Step::Ended(Why::TurnOver)));
    assert_eq!(at.lease("w").unwrap().identifier, name("y"));
    lease = at.lease("w").unwrap();
    assert_eq!(lease.tried.len(), 16);
    for _ in 0..4 {
        let (number, url) = at.ask(&lease, &all);
        assert!(asked.insert(url));
        at.fails(&lease, number);
    }
    assert_eq!(at.step(&lease, &all), Ok(Step::Ended(Why::NothingLeft)));
    at.pass(20_000);
    assert!(at.lease("w").unwrap().tried.is_empty());
}

#[test]
fn a_long_turn_ends_and_sooner_when_others_are_due() {
    let mut at = At::new();
    let all = urls("a.example", 9);
    let lease = at.leased("x");
    let pass = |at: &mut At, seconds: u64| {
        for _ in 0..seconds {
            at.pass(1_000);
            at.queue.renew(&name("x"), lease.token, at.now).unwrap();
        }
    };
    let (number, _) = at.ask(&lease, &all);
    pass(&mut at, 100);
    at.fails(&lease, number);
    let (number, _) = at.ask(&lease, &all);
    pass(&mut at, 199);
    at.fails(&lease, number);
    let (number, _) = at.ask(&lease, &all);
    pass(&mut at, 1);
    at.fails(&lease, number);
    assert_eq!(at.step(&lease, &all), Ok(Step::Ended(Why::TurnOver)));
    let lease = at.lease("w").unwrap();
    let (number, _) = at.ask(&lease, &all);
    at.synced("y");
    for _ in 0..60 {
        at.pass(1_000);
        at.queue.renew(&name("x"), lease.token, at.now).unwrap();
    }
    at.fails(&lease, number);
    assert_eq!(at.step(&lease, &all), Ok(Step::Ended(Why::TurnOver)));
    assert_eq!(at.lease("w").unwrap().identifier, name("y"));
}

#[test]
fn who_waits_for_a_domain_makes_room_for_others_and_keeps_its_turn() {
    let mut at = At::new();
    let one = urls("a.example", 1);
    let mut running = Vec::new();
    for n in 0..5 {
        let lease = at.leased(&format!("r{n}"));
        let (number, _) = at.ask(&lease, &one);
        running.push((lease, number));
    }
    // Nobody else is due: it waits where it is.
    let waits = at.leased("waits");
    let also = at.leased("also");
    assert_eq!(at.step(&waits, &one), Ok(Step::Wait));
    assert_eq!(at.queue.figures(0).waiting, 1);
    // Somebody is.
    at.synced("good");
    at.pass(500);
    assert_eq!(at.step(&waits, &one), Ok(Step::Ended(Why::DomainsBusy)));
    assert_eq!(at.step(&also, &one), Ok(Step::Ended(Why::DomainsBusy)));
    let good = at.lease("w").unwrap();
    assert_eq!(good.identifier, name("good"));
    assert_eq!(at.lease("w"), None);
    at.ask(&good, &urls("b.example", 1));
    // A place is free: the one who waits longest is leased again, and has it.
    let (first, number) = running.pop().unwrap();
    at.fails(&first, number);
    assert_eq!(
        at.step(&first, &urls("a.example", 2)),
        Ok(Step::Ended(Why::DomainsBusy))
    );
    let again = at.lease("w").unwrap();
    assert_eq!(again.identifier, name("waits"));
    at.ask(&again, &one);
    assert_eq!(at.lease("w"), None);
    let (second, number) = running.pop().unwrap();
    at.fails(&second, number);
    assert_eq!(at.lease("w").unwrap().identifier, name("also"));
}

#[test]
fn eight_that_drip_never_stop_a_hundred_good_ones() {
    let mut at = At::new();
    let mut dripping = Vec::new();
    for n in 0..8 {
        let bad = format!("bad{n}");
        let lease = at.leased(&bad);
        at.ask(&lease, &urls(&format!("{bad}.example"), 20));
        dripping.push((lease, bad));
    }
    for n in 0..100 {
        at.synced(&format!("good{n}"));
    }
    at.pass(500);
    // One worker of eight places: when the first dripping transfers are ended, each of the good ones
    // goes before any of the bad ones again.
    let mut served = BTreeSet::new();
    for _ in 0..6 {
        at.pass(10_000);
        for (lease, _) in &dripping {
            let identifier = &lease.identifier;
            at.queue.renew(identifier, lease.token, at.now).unwrap();
        }
    }
    for (lease, bad) in &dripping {
        let all = urls(&format!("{bad}.example"), 20);
        assert_eq!(at.step(lease, &all), Ok(Step::Ended(Why::TurnOver)));
    }
    while served.len() < 100 {
        let lease = at.lease("w").unwrap();
        assert!(lease.identifier.as_str().starts_with("good"));
        at.queue
            .end_held(&lease.identifier, lease.token, Why::NothingPending, at.now)
            .unwrap();
        served.insert(lease.identifier);
    }
    assert!(
        at.lease("w")
            .unwrap()
            .identifier
            .as_str()
            .starts_with("bad")
    );
}

#[test]
fn a_lease_handed_back_is_due_at_once_as_it_stands() {
    let mut at = At::new();
    let all = urls("a.example", 3);
    let lease = at.leased("x");
    let (number, first) = at.ask(&lease, &all);
    at.fails(&lease, number);
    at.ask(&lease, &all);
    at.queue.release(&name("x"), lease.token, at.now).unwrap();
    assert!(at.queue.release(&name("x"), lease.token, at.now).is_err());
    assert_eq!(at.queue.budget.running("a.example"), 0);
    assert_eq!(at.lease("v").unwrap().tried, [first]);
}

#[test]
fn a_server_that_is_set_aside_is_not_asked() {
    let mut at = At::new();
    let one = urls("a.example", 1);
    for n in 0..10 {
        let fetch = 1_000 + n;
        at.queue.budget.take(fetch, &one[0], at.now);
        at.queue.budget.free(fetch, Outcome::Broken, at.now);
        at.pass(70_000);
    }
    let lease = at.leased("x");
    assert_eq!(at.step(&lease, &one), Ok(Step::Ended(Why::NothingLeft)));
}

#[test]
fn a_worker_says_what_it_tried_and_cannot_make_it_grow() {
    let mut at = At::new();
    let lease = at.leased("x");
    let all = urls("a.example", 2);
    let mut tried: HashSet<String> = (0..1_000).map(|n| format!("junk{n}")).collect();
    tried.insert(all[0].url.clone());
    let step = at.step_of(&name("x"), lease.token, &all, &tried);
    assert!(matches!(step, Ok(Step::Ask(_, url)) if url == all[1]));
    assert_eq!(at.queue.entries[&name("x")].tried.len(), 2);
}

/// What the journal would hold, after these writes.
fn journal(writes: Vec<Write>) -> BTreeMap<Vec<u8>, Record> {
    let mut records = BTreeMap::new();
    for write in writes {
        match write {
            Write::Keep(key, record) => drop(records.insert(key, record)),
            Write::Forget(key) => drop(records.remove(&key)),
        }
    }
    records
}

#[test]
fn a_restart_in_the_middle_keeps_leases_and_budgets() {
    let mut at = At::new();
    let one = urls("a.example", 1);
    let mut given = Vec::new();
    for n in 0..4 {
        let lease = at.leased(&format!("r{n}"));
        let (number, _) = at.ask(&lease, &one);
        given.push((lease, number));
    }
    for n in 0..26 {
        let done = at.leased(&format!("done{n}"));
        let (number, _) = at.ask(&done, &urls("a.example", 1));
        at.fails(&done, number);
        at.step(&done, &one).unwrap();
    }
    let records: Vec<_> = journal(at.queue.writes()).into_iter().collect();
    let mut after = At {
        queue: Queue::new(RULES, 1 << 40),
        now: at.now,
    };
    after.queue.restore(&records, after.now);
    assert_eq!(after.queue.budget.running("a.example"), 4);
    assert_eq!(after.queue.figures(0).leased, 4);
    // The minute of before counts on.
    let late = after.leased("late");
    assert!(late.token > given[3].0.token);
    assert_eq!(after.step(&late, &one), Ok(Step::Wait));
    // What was leased is renewed and reported as if nothing had been.
    let (lease, number) = &given[0];
    let identifier = &lease.identifier;
    let running = after
        .queue
        .renew(identifier, lease.token, after.now)
        .unwrap();
    assert_eq!(running.unwrap().wants, wants());
    after.fails(lease, *number);
    let (lease, number) = &given[1];
    let again = after.queue.report(
        &lease.identifier,
        lease.token,
        *number - 1,
        Outcome::Fine,
        after.now,
    );
    assert!(matches!(again, Ok(Reported::Late | Reported::Unknown)));
    // What is not renewed runs out.
    after.pass(RULES.lease.as_millis().try_into().unwrap());
    assert_eq!(after.queue.budget.running("a.example"), 0);
    // A start much later knows nothing of it all.
    let mut much_later = Queue::new(RULES, 1 << 41);
    let now = at.now + Duration::from_secs(120);
    much_later.restore(&records, now);
    assert!(much_later.is_empty());
    assert_eq!(much_later.budget.running("a.example"), 0);
    let mut left: BTreeMap<_, _> = records.into_iter().collect();
    for write in much_later.writes() {
        match write {
            Write::Forget(key) => drop(left.remove(&key)),
            Write::Keep(..) => panic!("nothing is to be kept"),
        }
    }
    assert!(left.is_empty());
}

#[test]
fn a_restart_knows_what_was_given_and_what_was_only_meant_to_be() {
    let mut at = At::new();
    let all = urls("a.example", 3);
    let lease = at.leased("x");
    let (told, _) = at.ask(&lease, &all);
    at.fails(&lease, told);
    // The process ends between the decision and its answer.
    let none = HashSet::new();
    let meant = at.queue.step(&name("x"), lease.token, &all, &none, at.now);
    assert!(matches!(meant, Ok(Step::Ask(..))));
    // Nor is it granted before it is given.
    let renewed = at.queue.renew(&name("x"), lease.token, at.now);
    assert!(matches!(renewed, Ok(None)));
    let records: Vec<_> = journal(at.queue.writes()).into_iter().collect();
    let mut after = At {
        queue: Queue::new(RULES, 1 << 40),
        now: at.now,
    };
    after.queue.restore(&records, after.now);
    assert_eq!(after.queue.budget.running("a.example"), 0);
    assert_eq!(after.queue.budget.recent("a.example").len(), 2);
    let mut report = |number| {
        let outcome = Outcome::Fine;
        let reported = after
            .queue
            .report(&name("x"), lease.token, number, outcome, after.now);
        reported.unwrap()
    };
    // The answer to it may not have arrived.
    assert!(matches!(report(told), Reported::Late));
    assert!(matches!(report(told + 50), Reported::Unknown));
}

#[test]
fn a_renewal_writes_nothing_that_grows_with_what_is_wanted() {
    let mut at = At::new();
    let lease = at.leased("x");
    at.ask(&lease, &urls("a.example", 1));
    at.queue.writes();
    at.queue.renew(&name("x"), lease.token, at.now).unwrap();
    for write in at.queue.writes() {
        assert!(matches!(write, Write::Keep(_, Record::Lease { .. })));
    }
}

#[derive(Debug, Clone)]
enum Act {
    Event(usize),
    Lease(usize),
    Step(usize),
    Report(usize),
    Release(usize),
    Renew(usize),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0usize..12).prop_map(Act::Event),
        4 => (1usize..4).prop_map(Act::Lease),
        8 => (0usize..12).prop_map(Act::Step),
        5 => (0usize..12).prop_map(Act::Report),
        1 => (0usize..12).prop_map(Act::Release),
        3 => (0usize..12).prop_map(Act::Renew),
        4 => (0u64..12_000).prop_map(Act::Pass),
    ]
}

proptest! {
    /// Leases that run out, steps that are never reported, answers that come twice: no place is lost
    /// or given twice, and in the end everybody has had their turn.
    #[test]
    fn no_order_of_calls_loses_a_place(acts in prop::collection::vec(act(), 1..300)) {
        let mut at = At::new();
        let all = [urls("a.example", 3), urls("b.example", 3)].concat();
        let mut held: Vec<(Leased, Option<u64>)> = Vec::new();
        for act in acts {
            let n = match &act {
                Act::Step(n) | Act::Report(n) | Act::Release(n) | Act::Renew(n) => *n,
                _ => 0,
            };
            let holder = if held.is_empty() { None } else { Some(n % held.len()) };
            match (act, holder) {
                (Act::Event(n), _) => at.synced(&format!("r{n}")),
                (Act::Lease(room), _) => {
                    for lease in at.queue.lease("w", room, at.now) {
                        prop_assert!(
                            held.iter().all(|(old, _)| old.token < lease.token)
                        );
                        held.retain(|(old, _)| old.identifier != lease.identifier);
                        held.push((lease, None));
                    }
                }
                (Act::Step(_), Some(n)) => {
                    let lease = held[n].0.clone();
                    match at.step(&lease, &all) {
                        Ok(Step::Ask(number, _)) => held[n].1 = Some(number),
                        Ok(Step::Wait) => held[n].1 = None,
                        Ok(Step::Ended(_)) | Err(Lost) => drop(held.remove(n)),
                    }
                }
                (Act::Report(_), Some(n)) => {
                    if let Some(number) = held[n].1.take() {
                        let (identifier, token) = (held[n].0.identifier.clone(), held[n].0.token);
                        let _ = at.queue.report(&identifier, token, number, Outcome::Fine, at.now);
                    }
                }
                (Act::Release(_), Some(n)) => {
                    let (lease, _) = held.remove(n);
                    let _ = at.queue.release(&lease.identifier, lease.token, at.now);
                }
                (Act::Renew(_), Some(n)) => {
                    let (identifier, token) = (held[n].0.identifier.clone(), held[n].0.token);
                    let _ = at.queue.renew(&identifier, token, at.now);
                }
                (Act::Pass(millis), _) => at.pass(millis),
                _ => {}
            }
            let running = |at: &At| -> usize {
                let leases = at.queue.entries.values().filter_map(leased);
                leases.filter(|lease| lease.fetch.is_some()).count()
            };
            let counted = at.queue.budget.running("a.example") + at.queue.budget.running("b.example");
            prop_assert_eq!(counted, running(&at));
            prop_assert!(at.queue.budget.running("a.example") <= 5);
            let places = at.queue.later.len() + at.queue.ready.len() + at.queue.parked.len()
                + at.queue.leases.len();
            prop_assert_eq!(places, at.queue.entries.len());
            prop_assert_eq!(at.queue.ready.len(), at.queue.overdue.len());
            // Nobody is parked for nothing.
            for parked in &at.queue.parked {
                prop_assert!(at.queue.budget.is_waiting(parked));
            }
        }
        // A worker that does its work, from now on.
        let mut guard = 0;
        while !at.queue.is_empty() {
            at.pass(1_000);
            for lease in at.queue.lease("w", 4, at.now) {
                let why = Why::NothingPending;
                at.queue.end_held(&lease.identifier, lease.token, why, at.now).unwrap();
            }
            guard += 1;
            prop_assert!(guard < 1_000, "{:?}", at.queue.figures(20));
        }
        prop_assert_eq!(at.queue.budget.running("a.example"), 0);
    }
}
