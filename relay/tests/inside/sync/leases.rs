//! Who holds which remote relay, and what is said of it.

use super::*;

#[tokio::test]
async fn relays_are_shared_among_workers_who_come_and_die() {
    let open = Open::new().await;
    open.want(40).await;
    let mut workers: Vec<Worker> = ["a", "b", "c", "d"].map(|name| open.worker(name)).into();
    let mut held: BTreeMap<String, Vec<wire::LeasedRelay>> = BTreeMap::new();
    for worker in &mut workers[..2] {
        assert!(worker.lease(0).await.is_empty());
    }
    open.passes(SETTLES);
    for worker in &mut workers[..2] {
        let leased = worker.lease(0).await;
        assert_eq!(leased.len(), 20);
        assert!(
            leased
                .iter()
                .all(|relay| relay.valid_millis == 20_000 && !relay.bootstrap)
        );
        held.insert(worker.name.clone(), leased);
    }
    // Two more come: they wait until they are given something.
    let waiting: Vec<_> = workers
        .drain(2..)
        .map(|mut worker| {
            tokio::spawn(async move {
                let mut leased = Vec::new();
                while leased.len() < 10 {
                    leased.extend(worker.lease(10_000).await);
                }
                (worker, leased)
            })
        })
        .collect();
    while open.syncing.act(|shares, _| shares.workers()) < 4 {
        tokio::task::yield_now().await;
    }
    open.passes(SETTLES);
    // They are still there, and so they count.
    while open.syncing.act(|shares, _| shares.counting()) < 4 {
        tokio::task::yield_now().await;
    }
    for worker in &mut workers {
        let own = held.get_mut(&worker.name).unwrap();
        let renewed = worker.renew(own).await;
        let back: Vec<wire::HeldRelay> = renewed
            .into_iter()
            .filter(|relay| relay.give_back)
            .map(|relay| wire::HeldRelay {
                url: relay.url,
                token: relay.token,
            })
            .collect();
        assert_eq!(back.len(), 10);
        own.retain(|relay| back.iter().all(|gone| gone.url != relay.url));
        worker.release(back).await;
    }
    for waiting in waiting {
        let (worker, leased) = waiting.await.unwrap();
        held.insert(worker.name.clone(), leased);
        workers.push(worker);
    }
    let mut urls: Vec<&String> = held.values().flatten().map(|relay| &relay.url).collect();
    urls.sort();
    urls.dedup();
    assert_eq!(urls.len(), 40, "each on one worker");
    // Two die; the others go on.
    open.passes(LEASE / 2);
    for worker in &mut workers[..2] {
        let renewed = worker.renew(&held[&worker.name]).await;
        assert!(renewed.len() == 10 && renewed.iter().all(|relay| !relay.give_back));
        assert!(worker.lease(0).await.is_empty());
    }
    open.passes(LEASE / 2);
    for worker in &mut workers[..2] {
        assert_eq!(worker.lease(0).await.len(), 10);
    }
    let dead = workers.pop().unwrap();
    let mut dead = open.worker(&dead.name);
    assert!(
        dead.renew(&held[&dead.name]).await.is_empty(),
        "what it held is lost"
    );
}

#[tokio::test]
async fn challenges_are_answered_for_relays_that_are_held() {
    let open = Open::new().await;
    open.want(1).await;
    let mut worker = open.worker("w");
    worker.lease(0).await;
    open.passes(SETTLES);
    let leased = worker.lease(0).await.remove(0);
    let request = |token, challenge: &str| wire::AuthenticateRequest {
        worker: "w".to_owned(),
        url: leased.url.clone(),
        token,
        challenge: challenge.to_owned(),
    };
    let answer = worker
        .client
        .authenticate(request(leased.token, "say this"))
        .await;
    let event = Event::from_json(&answer.unwrap().into_inner().event).unwrap();
    assert!(event.verify().is_ok() && event.kind == Kind::Authentication);
    assert_eq!(event.pubkey, keys(99).public_key());
    let tags: Vec<Vec<String>> = event
        .tags
        .iter()
        .map(|tag| tag.as_slice().to_vec())
        .collect();
    assert_eq!(
        tags,
        [
            tag(&["relay", &leased.url]),
            tag(&["challenge", "say this"])
        ]
    );
    let lost = worker
        .client
        .authenticate(request(leased.token + 1, "x"))
        .await;
    assert_eq!(lost.unwrap_err().code(), Code::Aborted);
    let long = "x".repeat(1_025);
    let long = worker
        .client
        .authenticate(request(leased.token, &long))
        .await;
    assert_eq!(long.unwrap_err().code(), Code::InvalidArgument);
    open.passes(LEASE);
    let late = worker.client.authenticate(request(leased.token, "x")).await;
    assert_eq!(late.unwrap_err().code(), Code::Aborted);
}

/// What the journal in a directory holds, as after a crash.
fn crash(directory: &Path) -> (tempfile::TempDir, Journal, Vec<(Key, Record)>) {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(directory.join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    let (journal, records) = Journal::open(copy.path()).unwrap();
    (copy, journal, records)
}

#[tokio::test]
async fn a_restart_gives_nobody_what_another_may_still_hold() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, records) = Journal::open(directory.path()).unwrap();
    let open = Open::over(Inside::new().await, journal, &records).await;
    open.want(2).await;
    let tokens = open.inside.tokens.clone();
    let mut old = open.worker("old");
    old.lease(0).await;
    open.passes(SETTLES);
    let held = old.lease(0).await;
    assert_eq!(held.len(), 2);
    let (_copy, journal, records) = crash(directory.path());

    let mut inside = Inside::new().await;
    inside.tokens = tokens;
    let again = Open::over(inside, journal, &records).await;
    // Workers renew before everything has been looked up.
    let mut early = again.worker("old");
    let renewed = early.renew(&held).await;
    assert_eq!(renewed.len(), 2);
    assert!(renewed.iter().all(|relay| !relay.give_back));
    again.want(3).await;
    let mut new = again.worker("new");
    new.lease(0).await;
    again.passes(SETTLES);
    let leased = new.lease(0).await;
    assert_eq!(leased.len(), 1, "what nobody held before");
    assert!(leased[0].token > held[1].token);
    let mut old = again.worker("old");
    assert_eq!(old.renew(&held[..1]).await.len(), 1);
    again.passes(Duration::from_millis(19_500));
    new.renew(&leased).await;
    old.renew(&held[..1]).await;
    let rest = new.lease(0).await;
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].url, held[1].url);

    // With other credentials the workers of before are gone.
    let (_copy, journal, records) = crash(directory.path());
    let fresh = Open::over(Inside::new().await, journal, &records).await;
    fresh.want(2).await;
    let mut new = fresh.worker("new");
    new.lease(0).await;
    fresh.passes(SETTLES);
    let leased = new.lease(0).await;
    assert_eq!(leased.len(), 2);
    assert!(leased.iter().all(|relay| relay.token > held[1].token));
}

#[tokio::test]
async fn what_workers_say_is_shown() {
    process::metrics();
    let open = Open::new().await;
    let relays = ["wss://Shown.example/", "wss://other.example"];
    open.inside.waits(&named(1, "x", 10, &[], &relays)).await;
    open.look_up().await;
    let shows = |line: &str| {
        let text = process::render_metrics("relay");
        assert!(text.lines().any(|shown| shown == line), "{line} in\n{text}");
    };
    shows("ngit_sync_relay_connected{relay=\"wss://Shown.example/\"} 0");
    let mut worker = open.worker("w");
    worker.lease(0).await;
    open.passes(SETTLES);
    let leased = worker.lease(0).await;
    let shown = leased
        .iter()
        .find(|relay| relay.url.contains("shown"))
        .unwrap();
    let report = wire::RelayReport {
        url: shown.url.clone(),
        token: shown.token,
        state: RelayState::Syncing.into(),
        subscriptions: 7,
        confirmed: 3,
        wanted: 9,
        attempts_succeeded: 1,
        attempts_failed: 4,
        events_live: 5,
        ..Default::default()
    };
    worker.say(vec![report.clone()]).await;
    shows("ngit_sync_relay_connected{relay=\"wss://Shown.example/\"} 2");
    shows("ngit_sync_relay_status{relay=\"wss://Shown.example/\"} 1");
    let attempts = "ngit_sync_connection_attempts_total{relay=\"wss://Shown.example/\"";
    shows(&format!("{attempts},result=\"success\"}} 1"));
    shows(&format!("{attempts},result=\"failure\"}} 4"));
    worker.submit(&[&sign(2, ISSUE, 12, &[])]).await;
    let channel = open.endpoint.authorized(open.inside.tokens.of(Role::Relay));
    let status = AdminClient::new(channel)
        .status(wire::StatusRequest { most: 1 })
        .await;
    let sync = status.unwrap().into_inner().sync.unwrap();
    assert_eq!(
        (
            sync.state_only,
            sync.full,
            sync.remote_relays,
            sync.connected
        ),
        (1, 0, 2, 1)
    );
    assert_eq!((sync.relays.len(), sync.more_relays), (1, 1));
    assert_eq!((sync.rejected_whole, sync.rejected_ids), (1, 1));
    let figures = open.syncing.figures(10).relays.remove(1);
    assert_eq!(
        (figures.url.as_str(), figures.worker.as_str()),
        ("wss://shown.example", "w")
    );
    assert_eq!((figures.report.confirmed, figures.report.wanted), (3, 9));
    let dead = wire::RelayReport {
        state: RelayState::Disconnected.into(),
        dead: true,
        ..report.clone()
    };
    worker.say(vec![dead]).await;
    shows("ngit_sync_relay_status{relay=\"wss://Shown.example/\"} 3");
    shows(&format!("{attempts},result=\"failure\"}} 8"));
    // Totals are told again, until somebody hears.
    let totals = wire::RelayReport {
        totals: true,
        attempts_failed: 5,
        attempts_succeeded: 1,
        ..report.clone()
    };
    for _ in 0..3 {
        worker.say(vec![totals.clone()]).await;
    }
    shows(&format!("{attempts},result=\"failure\"}} 13"));
    // A worker that dies takes its connections along; the series stay.
    open.passes(LEASE);
    shows("ngit_sync_relay_connected{relay=\"wss://Shown.example/\"} 0");
}
