//! What waits does not expire before it was tried: not because very many wait for one domain, not under a
//! fetch that takes hours, not while a server is away. And nobody fills purgatory with it.

use std::collections::{HashSet, VecDeque};

use grasp_relay::{
    hunt::{Fetch, costly::OfUrl, queue::Said},
    nip34::id_of,
};

use super::*;

const HOUR: Duration = MINUTE.saturating_mul(60);

fn author(n: usize) -> Keys {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
    Keys::new(SecretKey::from_slice(&seed).unwrap())
}

fn signed(keys: &Keys, kind: Kind, tags: &[Vec<String>]) -> Event {
    let tags = tags.iter().map(|tag| Tag::parse(tag.clone()).unwrap());
    EventBuilder::new(kind, "")
        .tags(tags)
        .custom_created_at(Timestamp::from(10))
        .finalize(keys)
        .unwrap()
}

/// An announcement and its state, whose commit is at `host`.
fn mirrored(by: &Keys, name: &str, host: &str) -> (Event, Event) {
    let mut clone = tag(&["clone", "https://grasp.example/x.git"]);
    clone.push(format!("https://{host}/{name}.git"));
    let relays = tag(&["relays", "wss://grasp.example"]);
    let announced = [tag(&["d", name]), clone, relays];
    let refs = [
        tag(&["d", name]),
        tag(&[branch("main").as_str(), &oid(1).to_hex()]),
    ];
    (
        signed(by, nip34::ANNOUNCEMENT, &announced),
        signed(by, nip34::STATE, &refs),
    )
}

impl Inside {
    async fn found(&self, event: &Event) {
        let verdict = self.admit_synced(event).await;
        assert_eq!(verdict, Verdict::accepted(WAITS));
    }

    /// As a worker that never gives up: whoever answers is asked whatever may be asked now. Gives how often
    /// it was asked.
    async fn works(&self, answers: impl Fn(&Fetch) -> Outcome) -> usize {
        let mut asked = 0;
        let mut leases: VecDeque<Leased> = VecDeque::new();
        let mut waiting = Vec::new();
        loop {
            let lease = |queue: &mut Queue, now| queue.lease("w", 8, now);
            leases.extend(self.hunter.hunt.act(lease));
            let Some(lease) = leases.pop_front() else {
                break;
            };
            let (identifier, token) = (&lease.identifier, lease.token);
            let tried: HashSet<String> = lease.tried.iter().cloned().collect();
            let next = self.hunter.next(identifier, token, &tried, Duration::ZERO);
            match next.await.unwrap() {
                Next::Ended(_) => {}
                Next::Wait => waiting.push(lease),
                Next::Fetch(fetch) => {
                    asked += 1;
                    let outcome = answers(&fetch);
                    if matches!(outcome, Outcome::Arrived) {
                        self.git.bring(identifier, &[oid(1)]);
                    }
                    let report = self.hunter.report(identifier, token, fetch.number, outcome);
                    report.await.unwrap();
                    leases.push_back(lease);
                }
            }
        }
        for lease in waiting {
            let (identifier, token) = (&lease.identifier, lease.token);
            let release = |queue: &mut Queue, now| queue.release(identifier, token, now);
            self.hunter.hunt.act(release).unwrap();
        }
        asked
    }

    fn waiting(&self) -> (usize, usize) {
        let purgatory = &self.release.purgatory;
        (purgatory.announcements.len(), purgatory.states.len())
    }
}

fn broken(_: &Fetch) -> Outcome {
    Outcome::Failed(budget::Outcome::Broken.into(), "refused".to_owned())
}

fn nothing(_: &Fetch) -> Outcome {
    Outcome::Failed(budget::Outcome::Fine.into(), "not there".to_owned())
}

/// So many of one domain that may be asked so often a minute: it takes hours, and they are all served.
async fn all_of_one_domain_are_served(many: usize, per_minute: usize) {
    // As a service has it: in memory, whose look-ups go through all events, so many would take minutes.
    let directory = temporary();
    let store = Store::open(Backend::Lmdb, directory.path()).await.unwrap();
    let rules = Rules {
        limits: Limits {
            per_minute,
            ..RULES.limits
        },
        ..RULES
    };
    let limits = KeptAliveLimits::DEFAULT;
    let git: Arc<StandIn> = Arc::default();
    let inside = Inside::with_limits(store, Journal::none(), &[], git, rules, limits).await;
    // All of one owner, as a forge's mirror is.
    let owner = author(0);
    let mut states = Vec::new();
    for n in 0..many {
        let (announced, state) = mirrored(&owner, &format!("r{n}"), "forge.example");
        inside.found(&announced).await;
        inside.found(&state).await;
        states.push(state);
    }
    inside.clock.advance(Duration::from_secs(1));
    let (mut minutes, mut asked) = (0, 0);
    while inside.waiting() != (0, 0) {
        asked += inside.works(|_| Outcome::Arrived).await;
        inside.clock.advance(MINUTE);
        inside.sweeps().await;
        minutes += 1;
        assert!(minutes < 200, "{:?} wait", inside.waiting());
    }
    for state in &states {
        assert!(inside.serves(state).await);
    }
    assert_eq!(asked, many);
    assert!(
        minutes >= many / per_minute,
        "more than is allowed in a minute"
    );
    assert_eq!(inside.release.purgatory.kept_alive_count(), 0);
}

#[tokio::test]
async fn many_repositories_of_one_domain_are_all_served_in_the_end() {
    // Almost three hours of turns, five times what an entry has without them.
    all_of_one_domain_are_served(500, 3).await;
}

#[tokio::test]
#[ignore = "the same ten times: minutes go by while 10,000 events are signed and verified without optimisation"]
async fn five_thousand_repositories_of_one_domain_are_all_served_in_the_end() {
    all_of_one_domain_are_served(5_000, 30).await;
}

#[tokio::test]
async fn a_fetch_of_three_hours_is_not_thrown_away_at_its_end() {
    let inside = Inside::new().await;
    let (announced, state) = mirrored(&author(0), "x", "slow.example");
    inside.found(&announced).await;
    inside.found(&state).await;
    inside.clock.advance(Duration::from_secs(1));
    let lease = inside.hunter.lease("w", 1, Duration::ZERO).await.remove(0);
    let (identifier, token) = (&lease.identifier, lease.token);
    let tried = HashSet::new();
    let next = inside
        .hunter
        .next(identifier, token, &tried, Duration::ZERO);
    let Next::Fetch(fetch) = next.await.unwrap() else {
        panic!("it is not asked");
    };
    let repo = RepoId {
        owner: nip34::author_of(&announced),
        identifier: identifier.clone(),
    };
    for second in 0..(3 * HOUR).as_secs() / 10 {
        inside.clock.advance(Duration::from_secs(10));
        inside.hunter.renew(identifier, token).await.unwrap();
        if second % 6 == 0 {
            inside.sweeps().await;
        }
        assert!(inside.git.has(repo.clone()), "its repository has gone");
    }
    inside.git.bring(identifier, &[oid(1)]);
    let report = inside
        .hunter
        .report(identifier, token, fetch.number, Outcome::Arrived);
    assert_eq!(report.await.unwrap().released, 2);
    assert!(inside.serves(&announced).await && inside.serves(&state).await);
}

#[tokio::test]
async fn what_was_announced_while_a_server_is_away_for_a_day_is_served_when_it_is_back() {
    let inside = Inside::new().await;
    let mut states = Vec::new();
    let mut asked = 0;
    for minute in 0..24 * 60 {
        if minute % 60 == 0 {
            let name = format!("r{minute}");
            let (announced, state) = mirrored(&author(minute), &name, "away.example");
            inside.found(&announced).await;
            inside.found(&state).await;
            states.push(state);
        }
        inside.clock.advance(MINUTE);
        asked += inside.works(broken).await;
        inside.sweeps().await;
    }
    assert_eq!(inside.waiting(), (24, 24));
    // Set aside it is asked by one, now and then: not each of them every two minutes.
    assert!(asked < 300, "{asked} requests");
    let figures = |inside: &Inside| {
        inside
            .hunter
            .hunt
            .act(|queue, now| queue.budget.figures(now))
    };
    let until = figures(&inside)[0].aside_until.unwrap();
    assert!(until.since(inside.clock.now()) <= 12 * HOUR);
    // It is back, and found out by the next who probes it.
    let mut minutes = 0;
    while inside.waiting() != (0, 0) {
        inside.clock.advance(MINUTE);
        inside.works(|_| Outcome::Arrived).await;
        inside.sweeps().await;
        minutes += 1;
        assert!(minutes <= 12 * 60, "{:?} wait", inside.waiting());
    }
    assert!(
        inside.clock.now() <= until + 2 * MINUTE,
        "all of them at once"
    );
    for state in &states {
        assert!(inside.serves(state).await);
    }
}

#[tokio::test]
async fn an_answer_that_a_proxy_gives_for_its_server_is_none() {
    let inside = Inside::new().await;
    let (announced, state) = mirrored(&author(0), "x", "proxied.example");
    inside.found(&announced).await;
    inside.found(&state).await;
    let unwell = |_: &Fetch| {
        let said = Said {
            server: budget::Outcome::Fine,
            url: OfUrl::Unwell,
        };
        Outcome::Failed(said, "502".to_owned())
    };
    for _ in 0..24 * 60 {
        inside.clock.advance(MINUTE);
        inside.works(unwell).await;
        inside.sweeps().await;
    }
    assert!(inside.holds(&announced) && inside.holds(&state));
    for _ in 0..12 * 60 {
        inside.clock.advance(MINUTE);
        inside.works(|_| Outcome::Arrived).await;
    }
    assert!(inside.serves(&state).await);
}

#[tokio::test]
async fn what_was_tried_expires_as_ever_and_what_had_to_wait_has_its_time_afterwards() {
    let inside = Inside::new().await;
    let tried = mirrored(&author(0), "x", "one.example");
    inside.found(&tried.0).await;
    inside.found(&tried.1).await;
    inside.passes(31 * MINUTE).await;
    assert!(!inside.holds(&tried.1));
    // All workers are away for two hours.
    let late = mirrored(&author(2), "z", "one.example");
    inside.found(&late.0).await;
    inside.found(&late.1).await;
    for _ in 0..120 {
        inside.clock.advance(MINUTE);
        inside.sweeps().await;
    }
    assert!(inside.holds(&late.1));
    for _ in 0..10 {
        inside.clock.advance(MINUTE);
        inside.works(nothing).await;
        inside.sweeps().await;
    }
    assert!(inside.holds(&late.1));
    for _ in 0..32 {
        inside.clock.advance(MINUTE);
        inside.works(nothing).await;
        inside.sweeps().await;
    }
    assert!(!inside.holds(&late.1));
    assert_eq!(inside.release.purgatory.kept_alive_count(), 0);
}

#[tokio::test]
async fn there_is_an_end_to_what_is_kept_alive_and_a_bound() {
    let limits = KeptAliveLimits {
        whole: DAY,
        per_author: 6,
        per_domain: 8,
    };
    let store = Store::open(Backend::Memory, Path::new("")).await.unwrap();
    let git: Arc<StandIn> = Arc::default();
    let inside = Inside::with_limits(store, Journal::none(), &[], git, RULES, limits).await;
    // Ten repositories of one author, and of five others one each; of each an announcement and a state.
    let mut all = Vec::new();
    for n in 0..10 {
        all.push(mirrored(&author(0), &format!("a{n}"), "a.example"));
    }
    for n in 1..=5 {
        all.push(mirrored(&author(n), &format!("b{n}"), "b.example"));
    }
    for (announced, state) in &all {
        inside.found(announced).await;
        inside.found(state).await;
    }
    let held = || {
        let held = all.iter().flat_map(|(announced, state)| [announced, state]);
        let is_kept = |event: &&Event| {
            let purgatory = &inside.release.purgatory;
            let repo = purgatory.announcements.repo_of(&id_of(event));
            let entry = repo.and_then(|repo| purgatory.announcements.get(&repo));
            inside.holds(event) && entry.is_none_or(|entry| !entry.soft_expired)
        };
        held.filter(is_kept).count()
    };
    for _ in 0..60 {
        inside.clock.advance(MINUTE);
        inside.works(broken).await;
        inside.sweeps().await;
    }
    assert_eq!(inside.release.purgatory.kept_alive_count(), 6 + 8);
    assert_eq!(held(), 6 + 8);
    for _ in 0..24 * 60 {
        inside.clock.advance(MINUTE);
        inside.works(broken).await;
        inside.sweeps().await;
    }
    assert_eq!(held(), 0);
    assert_eq!(inside.release.purgatory.kept_alive_count(), 0);
    assert_eq!(inside.release.purgatory.states.len(), 0);
}

#[tokio::test]
async fn where_nobody_hunts_nothing_is_kept_alive() {
    let mut inside = Inside::new().await;
    inside.hunter.hunt = inside.hunter.hunt.clone().without_own_workers();
    let (announced, state) = mirrored(&author(0), "x", "a.example");
    inside.found(&announced).await;
    inside.found(&state).await;
    inside.clock.advance(31 * MINUTE);
    inside.sweeps().await;
    assert!(!inside.holds(&state));
}

#[tokio::test]
async fn after_a_restart_what_is_due_is_tried_first() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let git: Arc<StandIn> = Arc::default();
    let memory = || Store::open(Backend::Memory, Path::new(""));
    let (journal, _) = Journal::open(data.path()).unwrap();
    let before = Inside::over(memory().await.unwrap(), journal, &[], git.clone()).await;
    let (announced, state) = mirrored(&author(0), "x", "a.example");
    before.found(&announced).await;
    before.found(&state).await;
    std::fs::copy(data.path().join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    let (journal, records) = Journal::open(copy.path()).unwrap();
    let after = Inside::over(memory().await.unwrap(), journal, &records, git).await;
    after.release.purgatory.restore(records);
    sweep::reconcile(&after.release).await.unwrap();
    // The service was away for a day.
    after.clock.advance(DAY);
    after.hunter.enqueue_what_waits();
    after.sweeps().await;
    assert!(after.holds(&state));
    after.clock.advance(MINUTE);
    after.works(|_| Outcome::Arrived).await;
    assert!(after.serves(&announced).await && after.serves(&state).await);
}
