use proptest::{collection::vec, prelude::*};

use super::*;
use crate::sync::choice::OF_ONE_HOST;

const LEASE: Duration = Duration::from_secs(20);
const SETTLED: Duration = Duration::from_millis(500);

fn at(millis: u64) -> Moment {
    Moment::from_millis(1_000_000 + millis)
}

fn url(n: usize) -> RelayUrl {
    RelayUrl::parse(&format!("wss://r{n:02}.example")).unwrap()
}

fn asked(relays: impl IntoIterator<Item = usize>) -> BTreeMap<RelayUrl, Asked> {
    let asked = |n| {
        let url = url(n);
        let label = url.as_str().into();
        (
            url,
            Asked {
                label,
                targets: 1,
                full: 1,
            },
        )
    };
    relays.into_iter().map(asked).collect()
}

/// What workers do: each knows what it holds, by itself.
struct World {
    shares: Shares,
    now: Moment,
    holds: BTreeMap<String, BTreeMap<RelayUrl, u64>>,
    /// When a worker lets go by itself.
    until: BTreeMap<u64, Moment>,
    last_token: u64,
}

impl World {
    fn new(relays: usize) -> Self {
        let mut shares = Shares::new(LEASE, 100, None);
        shares.want(&asked(0..relays));
        Self {
            shares,
            now: at(0),
            holds: BTreeMap::new(),
            until: BTreeMap::new(),
            last_token: 100,
        }
    }

    /// A worker asks for its share.
    fn lease(&mut self, worker: &str) {
        for leased in self.shares.lease(worker, self.now) {
            assert!(leased.token > self.last_token, "tokens grow");
            self.last_token = leased.token;
            self.until.insert(leased.token, self.now + LEASE);
            let holder = self
                .holds
                .values()
                .find(|held| held.contains_key(&leased.url));
            assert_eq!(holder, None, "two workers on one relay");
            let held = self.holds.entry(worker.to_owned()).or_default();
            held.insert(leased.url, leased.token);
        }
        self.holds.entry(worker.to_owned()).or_default();
    }

    /// A worker renews, and gives back what it is asked for.
    fn renew(&mut self, worker: &str) {
        let held = self.holds.entry(worker.to_owned()).or_default();
        let renewed = self.shares.renew(worker, held.clone(), self.now);
        let kept: BTreeMap<RelayUrl, u64> = renewed
            .iter()
            .map(|renewed| (renewed.url.clone(), renewed.token))
            .collect();
        let until = self.now + LEASE;
        self.until
            .extend(kept.values().map(|token| (*token, until)));
        *held = kept;
        let back: Vec<(RelayUrl, u64)> = renewed
            .into_iter()
            .filter(|renewed| renewed.give_back)
            .map(|renewed| (renewed.url, renewed.token))
            .collect();
        for (url, _) in &back {
            held.remove(url);
        }
        self.shares.release(worker, back, self.now);
    }

    fn passes(&mut self, time: Duration) {
        self.now = self.now + time;
        for held in self.holds.values_mut() {
            held.retain(|_, token| self.until[token] > self.now);
        }
    }

    fn settle(&mut self, workers: &[&str]) {
        self.passes(SETTLED);
        for _ in 0..3 {
            for worker in workers {
                self.renew(worker);
            }
            for worker in workers {
                self.lease(worker);
            }
        }
    }

    fn counts(&self) -> Vec<usize> {
        self.holds.values().map(BTreeMap::len).collect()
    }
}

/// All that one worker gets.
fn leased_by(shares: &mut Shares, worker: &str) -> Vec<Leased> {
    shares.lease(worker, at(0));
    shares.lease(worker, at(500))
}

#[test]
fn those_who_start_together_share_from_the_beginning() {
    let mut world = World::new(40);
    for worker in ["a", "b", "c", "d"] {
        world.lease(worker);
    }
    assert_eq!(world.counts(), [0, 0, 0, 0]);
    world.passes(SETTLED);
    for worker in ["a", "b", "c", "d"] {
        world.lease(worker);
    }
    assert_eq!(world.counts(), [10, 10, 10, 10]);
    let before = world.holds.clone();
    world.settle(&["a", "b", "c", "d"]);
    assert_eq!(world.holds, before, "nothing moves");
}

#[test]
fn who_comes_gets_a_share_and_only_that_moves() {
    let mut world = World::new(7);
    world.settle(&["a"]);
    world.settle(&["a"]);
    assert_eq!(world.counts(), [7]);
    let before = world.holds["a"].clone();
    world.lease("b");
    world.settle(&["a", "b"]);
    assert_eq!(world.counts(), [4, 3]);
    let stayed = before
        .iter()
        .filter(|(url, _)| world.holds["a"].contains_key(*url));
    assert_eq!(stayed.count(), 4);
}

#[test]
fn a_relay_is_not_leased_again_before_it_is_given_back() {
    let mut world = World::new(4);
    world.settle(&["a"]);
    world.settle(&["a"]);
    world.lease("b");
    world.passes(SETTLED);
    world.lease("b");
    // It knows that it shall, and takes its time.
    let held = world.holds["a"].clone();
    let renewed = world.shares.renew("a", held, world.now);
    assert_eq!(
        renewed.iter().filter(|renewed| renewed.give_back).count(),
        2
    );
    world.lease("b");
    assert_eq!(world.counts(), [4, 0]);
    world.settle(&["a", "b"]);
    assert_eq!(world.counts(), [2, 2]);
}

#[test]
fn the_dead_are_taken_over_from_within_a_lease() {
    let mut world = World::new(40);
    let all = ["a", "b", "c", "d"];
    for worker in all {
        world.lease(worker);
    }
    world.settle(&all);
    assert_eq!(world.counts(), [10; 4]);
    for _ in 0..4 {
        world.passes(Duration::from_secs(4));
        world.settle(&["a", "b"]);
    }
    assert_eq!(world.counts(), [10; 4], "not before their leases end");
    world.passes(LEASE);
    world.settle(&["a", "b"]);
    world.settle(&["a", "b"]);
    assert_eq!(world.counts(), [20, 20, 0, 0]);
}

#[test]
fn the_share_of_one_that_stops_is_the_others_at_once() {
    let mut world = World::new(6);
    for worker in ["a", "b"] {
        world.lease(worker);
    }
    world.settle(&["a", "b"]);
    assert_eq!(world.counts(), [3, 3]);
    let held = world.holds.remove("b").unwrap();
    world.shares.release("b", held, world.now);
    world.lease("a");
    assert_eq!(world.counts(), [6]);
    // One that was asked for all it has goes on.
    world.shares.want(&asked([]));
    let held = world.holds.remove("a").unwrap();
    world.shares.release("a", held, world.now);
    assert_eq!(world.shares.workers(), 1);
}

#[test]
fn what_nobody_wants_is_given_back_and_forgotten() {
    let mut world = World::new(3);
    world.settle(&["a"]);
    world.settle(&["a"]);
    world.shares.want(&asked([1, 5]));
    world.settle(&["a"]);
    let held: Vec<RelayUrl> = world.holds["a"].keys().cloned().collect();
    assert_eq!(held, [url(1), url(5)]);
    let known: Vec<&RelayUrl> = world.shares.all().map(|(url, _)| url).collect();
    assert_eq!(known, [&url(1), &url(5)]);
}

#[test]
fn the_bootstrap_relay_comes_first_and_stays() {
    let named = Named::parse("wss://z.example").unwrap();
    let mut shares = Shares::new(LEASE, 0, Some(&named));
    shares.lease("a", at(0));
    let leased = shares.lease("a", at(500));
    assert!(leased[0].bootstrap && leased[0].url == named.url);
    shares.want(&asked([1]));
    shares.want(&BTreeMap::new());
    assert!(shares.get(&named.url).is_some() && shares.get(&url(1)).is_none());
}

#[test]
fn the_number_of_relays_is_bounded_and_served_repositories_come_first() {
    let mut many = asked(0..RELAYS + 100);
    for asked in many.values_mut() {
        asked.full = 0;
    }
    many.insert(url(9_999), asked([9_999])[&url(9_999)].clone());
    let mut shares = Shares::new(LEASE, 0, None);
    shares.want(&many);
    assert_eq!(shares.all().count(), RELAYS);
    assert!(shares.get(&url(9_999)).is_some());
}

#[test]
fn what_waits_makes_room_for_what_is_served_even_when_it_was_there_first() {
    let mut strangers = asked(0..RELAYS);
    for asked in strangers.values_mut() {
        asked.full = 0;
    }
    let mut shares = Shares::new(LEASE, 0, None);
    shares.want(&strangers);
    let leased = leased_by(&mut shares, "a");
    assert_eq!(leased.len(), RELAYS);
    let served = asked(RELAYS..RELAYS + 10);
    let mut all = strangers.clone();
    all.extend(served.clone());
    shares.want(&all);
    assert!(served.keys().all(|url| shares.get(url).is_some()));
    let held = leased.iter().map(|one| (one.url.clone(), one.token));
    let renewed = shares.renew("a", held, at(600));
    let back: Vec<_> = renewed.iter().filter(|one| one.give_back).collect();
    assert_eq!(back.len(), 10);
    let back: Vec<_> = back
        .iter()
        .map(|one| (one.url.clone(), one.token))
        .collect();
    shares.release("a", back, at(600));
    assert_eq!(shares.all().count(), RELAYS);
    // Nothing more moves, and what is served is not pushed out by what is served too.
    let before: Vec<RelayUrl> = shares.all().map(|(url, _)| url.clone()).collect();
    let mut more = all.clone();
    more.extend(asked(0..RELAYS));
    shares.want(&more);
    assert!(served.keys().all(|url| shares.get(url).is_some()));
    shares.want(&all);
    let after: Vec<RelayUrl> = shares.all().map(|(url, _)| url.clone()).collect();
    assert_eq!(after, before);
}

#[test]
fn what_is_on_its_way_back_is_bounded_too() {
    let mut shares = Shares::new(LEASE, 0, None);
    for round in 0..4 {
        shares.want(&asked(round * RELAYS..(round + 1) * RELAYS));
        // The worker gives nothing back.
        leased_by(&mut shares, "a");
        assert!(shares.all().count() <= 2 * RELAYS);
    }
}

#[test]
fn one_host_has_a_few_addresses_and_its_own_is_among_them() {
    let mut many = BTreeMap::new();
    let mut name = |text: &str, full| {
        let label = text.into();
        let targets = 1;
        many.insert(
            RelayUrl::parse(text).unwrap(),
            Asked {
                label,
                targets,
                full,
            },
        );
    };
    for n in 0..100 {
        name(&format!("wss://victim.example/{n}"), 0);
        name(&format!("wss://victim.example:{}/", 1_000 + n), 0);
        name(&format!("ws://127.0.0.1:{}", 1_000 + n), 0);
    }
    name("wss://victim.example/served", 1);
    name("wss://victim.example", 0);
    let mut shares = Shares::new(LEASE, 0, None);
    shares.want(&many);
    let of_victim = |shares: &Shares| -> Vec<String> {
        let all = shares.all().map(|(url, _)| url);
        let of_victim = all.filter(|url| url.place() == "victim.example");
        of_victim.map(ToString::to_string).collect()
    };
    assert_eq!(of_victim(&shares).len(), OF_ONE_HOST);
    assert!(of_victim(&shares).contains(&"wss://victim.example/served".to_owned()));
    assert_eq!(shares.all().count(), OF_ONE_HOST + 100);
    // Its own address comes late, and all the same.
    let late = RelayUrl::parse("wss://victim.example/zzz").unwrap();
    let own = RelayUrl::parse("wss://victim.example").unwrap();
    let mut paths: BTreeMap<RelayUrl, Asked> = many.clone();
    paths.retain(|url, _| !url.is_plain());
    let mut shares = Shares::new(LEASE, 0, None);
    shares.want(&paths);
    assert_eq!(of_victim(&shares).len(), OF_ONE_HOST);
    paths.insert(late.clone(), many[&own].clone());
    paths.insert(own.clone(), many[&own].clone());
    shares.want(&paths);
    assert_eq!(of_victim(&shares).len(), OF_ONE_HOST);
    assert!(shares.get(&own).is_some() && shares.get(&late).is_none());
}

#[test]
fn who_comes_and_goes_takes_nothing_from_those_who_stay() {
    let mut world = World::new(8);
    world.settle(&["a", "b"]);
    world.settle(&["a", "b"]);
    world.settle(&["a", "b"]);
    assert_eq!(world.counts(), [4, 4]);
    let before = world.holds.clone();
    for round in 0..200 {
        // It starts, asks, and falls over.
        world.shares.lease(&format!("broken-{round}"), world.now);
        world
            .shares
            .renew(&format!("broken-{round}"), [], world.now);
        world.passes(Duration::from_millis(200));
        world.renew("a");
        world.renew("b");
        assert!(world.shares.workers() <= 2 + 10);
    }
    assert_eq!(world.holds, before);
    // A relay that comes free is given to one of those who stay.
    world.shares.want(&asked(0..30));
    world.passes(LEASE / ON_TRIAL);
    world.settle(&["a", "b"]);
    assert_eq!(world.counts(), [15, 15]);
}

#[test]
fn who_comes_while_others_settle_does_not_put_it_off() {
    let mut shares = Shares::new(LEASE, 0, None);
    shares.want(&asked(0..4));
    for (n, time) in [0, 200, 400].into_iter().enumerate() {
        assert!(shares.lease(&format!("w{n}"), at(time)).is_empty());
    }
    assert_eq!(shares.lease("w0", at(500)).len(), 2, "a share of three");
    assert_eq!(shares.lease("w1", at(500)).len(), 1);
}

#[test]
fn after_a_start_nothing_is_unwanted_before_it_is_said_what_is_wanted() {
    let mut shares = Shares::new(LEASE, 1_000, None);
    for n in 0..3 {
        shares.restore(&url(n), "old", 7 + n as u64, at(0));
    }
    let held = || (0..3).map(|n| (url(n), 7 + n as u64));
    for time in [100, 700, 1_300] {
        let renewed = shares.renew("old", held(), at(time));
        assert_eq!(renewed.len(), 3);
        assert!(renewed.iter().all(|one| !one.give_back));
        shares.lease("old", at(time));
    }
    shares.want(&asked(0..2));
    let renewed = shares.renew("old", held(), at(2_000));
    let back: Vec<bool> = renewed.iter().map(|one| one.give_back).collect();
    assert_eq!(back, [false, false, true]);
}

#[test]
fn totals_are_counted_once_however_often_they_are_said() {
    let counts = |failed| Counts {
        failed,
        ..Counts::default()
    };
    let mut shares = Shares::new(LEASE, 1_000, None);
    shares.restore(&url(0), "a", 7, at(0));
    shares.want(&asked(0..2));
    let leased = leased_by(&mut shares, "a").remove(0);
    let token = leased.token;
    for (total, more) in [(3, 3), (3, 0), (5, 2)] {
        let counted = shares.more_counted(&leased.url, "a", token, counts(total));
        assert_eq!(counted, counts(more));
    }
    let stranger = shares.more_counted(&leased.url, "b", token, counts(9));
    assert_eq!(stranger, counts(0));
    // What an earlier run was told is not counted again.
    assert_eq!(shares.more_counted(&url(0), "a", 7, counts(8)), counts(0));
    assert_eq!(shares.more_counted(&url(0), "a", 7, counts(9)), counts(1));
}

#[test]
fn a_token_opens_one_lease_only() {
    let mut world = World::new(1);
    world.settle(&["a"]);
    world.settle(&["a"]);
    let (url, token) = world.holds["a"].first_key_value().unwrap();
    let (url, token) = (url.clone(), *token);
    let shares = &mut world.shares;
    assert_eq!(shares.check(&url, "a", token, world.now), Ok(()));
    assert_eq!(shares.check(&url, "b", token, world.now), Err(Lost));
    assert_eq!(shares.check(&url, "a", token - 1, world.now), Err(Lost));
    shares.release("b", [(url.clone(), token)], world.now);
    assert_eq!(shares.check(&url, "a", token, world.now), Ok(()));
    let later = world.now + LEASE;
    assert_eq!(shares.check(&url, "a", token, later), Err(Lost));
    assert!(shares.renew("a", [(url, token)], later).is_empty());
}

#[test]
fn what_was_held_before_a_restart_waits_for_its_holder_for_one_lease() {
    let mut shares = Shares::new(LEASE, 1_000, None);
    shares.restore(&url(0), "old", 7, at(0));
    shares.restore(&url(1), "gone", 8, at(0));
    shares.want(&asked(0..3));
    shares.lease("new", at(0));
    let leased = shares.lease("new", at(500));
    assert_eq!(leased.len(), 1);
    assert!(leased[0].url == url(2) && leased[0].token > 1_000);
    let renewed = shares.renew("old", [(url(0), 7)], at(1_000));
    assert_eq!(renewed.len(), 1);
    assert!(shares.lease("new", at(19_999)).is_empty());
    shares.renew("old", [(url(0), 7)], at(19_999));
    let leased = shares.lease("new", at(20_000));
    assert_eq!(
        leased.iter().map(|leased| &leased.url).collect::<Vec<_>>(),
        [&url(1)]
    );
    assert_eq!(shares.check(&url(0), "old", 7, at(20_000)), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whoever comes, dies or dawdles: no relay has two holders, and when all is quiet the shares
    /// are the same within one.
    #[test]
    fn any_number_of_workers_share_evenly(
        relays in 0usize..30,
        steps in vec((0usize..4, 0u8..4, 0u64..8_000), 0..60),
    ) {
        let names = ["a", "b", "c", "d"];
        let mut world = World::new(relays);
        for (who, what, time) in steps {
            world.passes(Duration::from_millis(time));
            match what {
                0 => world.lease(names[who]),
                1 => world.renew(names[who]),
                2 => world.settle(&names[..=who]),
                _ => {}
            }
        }
        world.passes(LEASE);
        world.settle(&names);
        world.settle(&names);
        let counts = world.counts();
        prop_assert_eq!(counts.iter().sum::<usize>(), relays);
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
    }
}
