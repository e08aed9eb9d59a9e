//! Relay-to-relay sync as workers see it: over real gRPC, with a stand-in for gitd.

use std::collections::{BTreeMap, BTreeSet};

use grasp_proto::{
    contract::relay::{
        self as wire, Level, Method, RelayState, admin_client::AdminClient,
        admin_server::AdminServer, relay_sync_client::RelaySyncClient,
        relay_sync_server::RelaySyncServer, submit_verdict::What,
    },
    process,
    transport::{self, AuthorizedChannel, Endpoint, Guard, Role},
};
use grasp_relay::{
    grpc::{admin::AdminService, relay_sync::RelaySyncService},
    nip34::id_of,
    sync::{Hooks, Overview, Syncing, judge::Judge, rejected::Durations},
    targets::feed::Wanted,
};
use tonic::{Code, Status, Streaming, service::interceptor::InterceptedService};

use super::*;

const LEASE: Duration = Duration::from_secs(20);
const SETTLES: Duration = Duration::from_millis(500);
const ISSUE: Kind = Kind::Custom(1621);
const COMMENT: Kind = Kind::Custom(1111);

/// A relay with its sync, its internal service open until dropped.
struct Open {
    inside: Inside,
    wanted: Wanted,
    judge: Judge,
    syncing: Syncing,
    _directory: tempfile::TempDir,
    endpoint: Endpoint,
    stop: CancellationToken,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

type Client = RelaySyncClient<AuthorizedChannel>;

impl Open {
    async fn new() -> Self {
        let inside = Inside::new().await;
        Self::over(inside, Journal::none(), &[]).await
    }

    async fn over(inside: Inside, journal: Journal, records: &[(Key, Record)]) -> Self {
        let domain = Domain::parse("grasp.example").unwrap();
        let key = GrantKey::new(&inside.tokens);
        let clock = inside.clock.clone();
        let syncing = Syncing::open(LEASE, None, &key, journal, clock.clone(), records);
        let syncing = syncing.await.unwrap();
        let wanted = Wanted::new(domain);
        let durations = Durations {
            hot: Duration::from_secs(120),
            cold: Duration::from_secs(604_800),
        };
        let judge = Judge::new(Arc::new(inside.door.clone()), durations, clock);
        let hooks = Arc::new(Hooks {
            wanted: wanted.clone(),
            judge: judge.clone(),
        });
        inside.release.repositories.tell(hooks.clone());
        inside.release.live.tell(hooks);
        let stop = CancellationToken::new();
        let service = RelaySyncService::new(
            wanted.clone(),
            syncing.clone(),
            judge.clone(),
            inside.release.clone(),
            keys(99),
            stop.clone(),
        );
        let service = RelaySyncServer::new(service).max_decoding_message_size(8 << 20);
        let admin = AdminService::new(inside.release.clone(), inside.hunter.hunt.clone());
        let admin = admin.with_sync(Overview {
            wanted: wanted.clone(),
            syncing: syncing.clone(),
            judge: judge.clone(),
        });
        let guard = Guard::new(&inside.tokens, &[Role::Worker]);
        let routes = transport::standard_routes(&inside.tokens)
            .await
            .add_service(InterceptedService::new(service, guard))
            .add_service(InterceptedService::new(
                AdminServer::new(admin),
                Guard::new(&inside.tokens, &[Role::Relay]),
            ));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        let listener = endpoint.listen().await.unwrap();
        tokio::spawn(transport::serve(listener, routes, stop.clone()));
        Self {
            inside,
            wanted,
            judge,
            syncing,
            _directory: directory,
            endpoint,
            stop,
        }
    }

    fn as_role(&self, role: Role) -> Client {
        let channel = self.endpoint.authorized(self.inside.tokens.of(role));
        RelaySyncClient::new(channel).max_encoding_message_size(64 << 20)
    }

    fn worker(&self, name: &str) -> Worker {
        Worker {
            name: name.to_owned(),
            client: self.as_role(Role::Worker),
        }
    }

    /// A window is over.
    async fn look_up(&self) {
        if self.wanted.look_up(&self.inside.release).await {
            self.wanted.look(|targets| self.syncing.want(targets));
        }
    }

    /// So many relays are wanted.
    async fn want(&self, relays: usize) {
        let urls: Vec<String> = (0..relays).map(|n| format!("wss://r{n}.example")).collect();
        for (n, urls) in (1..).zip(urls.chunks(20)) {
            let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
            self.inside.waits(&named(n, "x", 10, &[], &urls)).await;
        }
        self.look_up().await;
    }

    /// Time passes for leases.
    fn passes(&self, time: Duration) {
        self.inside.clock.advance(time);
        self.syncing.act(|shares, now| shares.tick(now));
    }
}

/// One worker's end of the wire.
struct Worker {
    name: String,
    client: Client,
}

impl Worker {
    async fn lease(&mut self, wait_millis: u32) -> Vec<wire::LeasedRelay> {
        let request = wire::LeaseRelaysRequest {
            worker: self.name.clone(),
            wait_millis,
        };
        let answer = self.client.lease_relays(request).await.unwrap();
        answer.into_inner().relays
    }

    async fn say(&mut self, relays: Vec<wire::RelayReport>) -> Vec<wire::RenewedRelay> {
        let request = wire::RenewRelaysRequest {
            worker: self.name.clone(),
            relays,
        };
        let answer = self.client.renew_relays(request).await.unwrap();
        answer.into_inner().relays
    }

    async fn renew(&mut self, held: &[wire::LeasedRelay]) -> Vec<wire::RenewedRelay> {
        let report = |relay: &wire::LeasedRelay| wire::RelayReport {
            url: relay.url.clone(),
            token: relay.token,
            state: RelayState::Connected.into(),
            ..Default::default()
        };
        self.say(held.iter().map(report).collect()).await
    }

    async fn release(&mut self, relays: Vec<wire::HeldRelay>) {
        let request = wire::ReleaseRelaysRequest {
            worker: self.name.clone(),
            relays,
        };
        self.client.release_relays(request).await.unwrap();
    }

    async fn try_submit(&mut self, events: Vec<String>) -> Result<Vec<(What, String)>, Status> {
        let request = wire::SubmitRequest {
            worker: self.name.clone(),
            url: "wss://r0.example".to_owned(),
            method: Method::Live.into(),
            events,
        };
        let verdicts = self.client.submit(request).await?.into_inner().verdicts;
        Ok(verdicts
            .into_iter()
            .map(|one| (one.what(), one.message))
            .collect())
    }

    async fn submit(&mut self, events: &[&Event]) -> Vec<What> {
        let events = events.iter().map(|event| event.as_json()).collect();
        let verdicts = self.try_submit(events).await.unwrap();
        verdicts.into_iter().map(|(what, _)| what).collect()
    }

    async fn watch(&mut self) -> Streaming<wire::TargetChanges> {
        let answer = self
            .client
            .watch_targets(wire::WatchTargetsRequest {})
            .await;
        answer.unwrap().into_inner()
    }

    async fn inventory(&mut self, filter: &str) -> Result<Vec<(Vec<u8>, u64)>, Status> {
        let filter = filter.to_owned();
        let answer = self
            .client
            .inventory(wire::InventoryRequest { filter })
            .await?;
        let mut parts = answer.into_inner();
        let mut all = Vec::new();
        while let Some(part) = parts.message().await? {
            assert!(part.items.len() <= 5_000);
            all.extend(
                part.items
                    .into_iter()
                    .map(|item| (item.id, item.created_at)),
            );
        }
        Ok(all)
    }

    async fn lacking(&mut self, events: &[&Event]) -> Vec<Vec<u8>> {
        let ids = events
            .iter()
            .map(|event| event.id.as_bytes().to_vec())
            .collect();
        let answer = self
            .client
            .lacking(wire::LackingRequest { ids })
            .await
            .unwrap();
        answer.into_inner().ids
    }
}

fn bytes(event: &Event) -> Vec<u8> {
    event.id.as_bytes().to_vec()
}

/// An announcement that lists the service and other relays.
fn named(seed: u8, name: &str, at: u64, maintainers: &[u8], relays: &[&str]) -> Event {
    let mut listed = tag(&["relays", "wss://grasp.example"]);
    listed.extend(relays.iter().map(|url| (*url).to_owned()));
    let mut set = tag(&["maintainers"]);
    set.extend(maintainers.iter().map(|seed| key_of(*seed).to_hex()));
    let clone = tag(&["clone", "https://grasp.example/x.git"]);
    let tags = [tag(&["d", name]), clone, listed, set];
    sign(seed, nip34::ANNOUNCEMENT, at, &tags)
}

fn issue_on(seed: u8, at: u64, repo: &RepoId) -> Event {
    sign(seed, ISSUE, at, &[tag(&["a", &repo.coordinate()])])
}

fn comment_on(seed: u8, at: u64, parent: &Event) -> Event {
    sign(seed, COMMENT, at, &[tag(&["E", &parent.id.to_hex()])])
}

#[tokio::test]
async fn only_workers_are_served() {
    let open = Open::new().await;
    for role in [Role::Relay, Role::Gitd] {
        let mut client = open.as_role(role);
        let watch = client.watch_targets(wire::WatchTargetsRequest {}).await;
        assert_eq!(watch.unwrap_err().code(), Code::PermissionDenied);
        let submit = client.submit(wire::SubmitRequest::default()).await;
        assert_eq!(submit.unwrap_err().code(), Code::PermissionDenied);
    }
    let strange = open.endpoint.authorized(&Token::random());
    let mut strange = RelaySyncClient::new(strange);
    let lease = strange.lease_relays(wire::LeaseRelaysRequest::default());
    assert_eq!(lease.await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn what_is_wanted_is_told_whole_and_then_as_it_changes() {
    let open = Open::new().await;
    let inside = &open.inside;
    let relays = [
        "WSS://Other.example:443/",
        "ws://GRASP.example:80",
        "http://no.example",
    ];
    inside.waits(&named(1, "x", 10, &[], &relays)).await;
    open.wanted.build(&inside.release).await;
    let mut changes = open.worker("w").watch().await;
    let first = changes.message().await.unwrap().unwrap();
    assert!(first.complete && first.removed.is_empty());
    let [target] = first.targets.as_slice() else {
        panic!("{first:?}");
    };
    assert_eq!(target.level(), Level::StateOnly);
    assert_eq!(target.relays, ["wss://other.example"]);

    inside.git.bring(&identifier("x"), &[oid(1)]);
    inside.served(&state(1, "x", 10, &[("main", 1)])).await;
    open.look_up().await;
    let raised = changes.message().await.unwrap().unwrap();
    assert_eq!(raised.targets[0].level(), Level::Full);
    assert!(!raised.complete);

    let repo = repo(1, "x");
    let issue = issue_on(2, 20, &repo);
    let comment = comment_on(2, 21, &issue);
    inside.served(&issue).await;
    inside.served(&comment).await;
    open.look_up().await;
    let rooted = changes.message().await.unwrap().unwrap();
    assert_eq!(rooted.targets[0].new_roots, [bytes(&issue)]);

    // Who comes later is told the same at once.
    let mut later = open.worker("v").watch().await;
    let all = later.message().await.unwrap().unwrap();
    assert_eq!(all.targets, rooted.targets);

    let deletion = sign(1, nip34::DELETION, 30, &[tag(&["a", &repo.coordinate()])]);
    inside.served(&deletion).await;
    open.look_up().await;
    for stream in [&mut changes, &mut later] {
        let gone = stream.message().await.unwrap().unwrap();
        assert_eq!(gone.removed, [wire::Repository::from(&repo)]);
    }
    assert!(open.wanted.look(|targets| targets.relays().is_empty()));
}

#[tokio::test]
async fn soft_expired_is_still_wanted_and_expired_is_not() {
    let open = Open::new().await;
    open.want(1).await;
    open.inside.passes(31 * MINUTE).await;
    open.look_up().await;
    assert_eq!(open.wanted.look(|targets| targets.all().count()), 1);
    open.inside.passes(DAY).await;
    open.look_up().await;
    assert_eq!(open.wanted.look(|targets| targets.all().count()), 0);
}

#[tokio::test]
async fn a_newer_announcement_changes_the_relays_and_roots_of_before_are_found() {
    let open = Open::new().await;
    let inside = &open.inside;
    let repo = inside.active(1, "x", &[]).await;
    let issue = issue_on(2, 20, &repo);
    inside.served(&issue).await;
    // Everything is looked up from the store, as after a start.
    let wanted = Wanted::new(Domain::parse("grasp.example").unwrap());
    wanted.build(&inside.release).await;
    let known = |wanted: &Wanted| wanted.look(|targets| targets.get(&repo).cloned().unwrap());
    assert_eq!(known(&wanted).roots, BTreeSet::from([id_of(&issue)]));
    inside
        .served(&named(1, "x", 30, &[], &["wss://new.example"]))
        .await;
    open.look_up().await;
    let relays: Vec<String> = known(&open.wanted)
        .relays
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(relays, ["wss://new.example"]);
}

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
async fn verdicts_come_in_the_order_of_the_events() {
    let open = Open::new().await;
    let inside = &open.inside;
    let repo = inside.active(1, "x", &[]).await;
    let list = sign(2, nip34::GRASP_LIST, 10, &[]);
    let waits = named(3, "y", 10, &[], &[]);
    let known = issue_on(2, 20, &repo);
    inside.served(&known).await;
    let no_commit = sign(
        2,
        nip34::PULL_REQUEST,
        11,
        &[tag(&["a", &repo.coordinate()])],
    );
    let unrelated = sign(2, ISSUE, 12, &[]);
    let mut forged = sign(2, ISSUE, 13, &[tag(&["a", &repo.coordinate()])]);
    forged.sig = known.sig;
    let strange = sign(4, nip34::STATE, 14, &[tag(&["d", "nobody's"])]);
    let mut worker = open.worker("w");
    let events = [
        &list, &waits, &known, &no_commit, &unrelated, &forged, &strange,
    ];
    let expected = [
        What::Accepted,
        What::Purgatory,
        What::Duplicate,
        What::Rejected,
        What::KeptForLater,
        What::Forged,
        What::KeptForLater,
    ];
    assert_eq!(worker.submit(&events).await, expected);
    // Told again, nothing is judged anew; and what was forged keeps out nobody.
    assert_eq!(
        worker.submit(&[&unrelated, &no_commit]).await,
        [What::KeptForLater, What::Rejected]
    );
    assert_eq!(worker.lacking(&[&forged]).await, [bytes(&forged)]);
    let garbage = worker
        .try_submit(vec!["[1".to_owned(), String::new()])
        .await
        .unwrap();
    assert!(garbage.iter().all(|(what, _)| *what == What::Forged));
    assert_eq!(worker.submit(&[]).await, []);
}

#[tokio::test]
async fn requests_are_bounded() {
    let open = Open::new().await;
    let mut worker = open.worker("w");
    let invalid = |result: Result<_, Status>| {
        let _: Vec<(What, String)> = match result {
            Err(status) => {
                assert_eq!(status.code(), Code::InvalidArgument);
                return;
            }
            Ok(verdicts) => verdicts,
        };
        panic!("it was taken");
    };
    invalid(worker.try_submit(vec![String::new(); 501]).await);
    invalid(worker.try_submit(vec!["x".repeat(1 << 20); 5]).await);
    let mut client = open.as_role(Role::Worker);
    let ids = vec![vec![0; 32]; 10_001];
    let lacking = client.lacking(wire::LackingRequest { ids }).await;
    assert_eq!(lacking.unwrap_err().code(), Code::InvalidArgument);
    let ids = vec![vec![0; 31]];
    let lacking = client.lacking(wire::LackingRequest { ids }).await;
    assert_eq!(lacking.unwrap_err().code(), Code::InvalidArgument);
    for filter in ["", "{\"kinds\":\"x\"}", &" ".repeat(200_000)] {
        let inventory = worker.inventory(filter).await;
        assert_eq!(inventory.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_maintainers_announcement_may_come_before_the_owners() {
    let open = Open::new().await;
    let mut worker = open.worker("w");
    let maintainers = announcement_elsewhere(2, "x", 10);
    assert_eq!(worker.submit(&[&maintainers]).await, [What::KeptForLater]);
    assert_eq!(worker.lacking(&[&maintainers]).await.len(), 0);
    assert_eq!(open.judge.judge_again().await, 0);
    open.inside.waits(&announcement(1, "x", 10, &[2])).await;
    assert_eq!(open.judge.judge_again().await, 1);
    assert!(open.inside.serves(&maintainers).await);
    // In one batch their order does not matter, nor does that of states.
    let (owners, theirs) = (
        announcement(3, "y", 10, &[4]),
        announcement_elsewhere(4, "y", 9),
    );
    let state = state(4, "y", 8, &[("main", 1)]);
    let verdicts = worker.submit(&[&state, &theirs, &owners]).await;
    assert_eq!(verdicts[0], What::Purgatory);
    open.judge.judge_again().await;
    assert!(open.inside.serves(&theirs).await);
}

#[tokio::test]
async fn what_is_kept_follows_its_parents_step_by_step() {
    let open = Open::new().await;
    let inside = &open.inside;
    let mut worker = open.worker("w");
    let repo = repo(1, "x");
    let issue = issue_on(2, 20, &repo);
    let comment = comment_on(3, 21, &issue);
    let reply = comment_on(2, 22, &comment);
    for event in [&reply, &comment, &issue] {
        assert_eq!(worker.submit(&[event]).await, [What::KeptForLater]);
    }
    inside.waits(&announcement(1, "x", 10, &[])).await;
    open.judge.judge_again().await;
    assert!(!inside.serves(&issue).await);
    inside.git.bring(&identifier("x"), &[oid(1)]);
    inside.served(&state(1, "x", 10, &[("main", 1)])).await;
    open.judge.judge_again().await;
    for event in [&issue, &comment, &reply] {
        assert!(inside.serves(event).await);
    }
    open.look_up().await;
    let target = open
        .wanted
        .look(|targets| targets.get(&repo).cloned().unwrap());
    assert_eq!(target.roots, BTreeSet::from([id_of(&issue)]));
}

#[tokio::test]
async fn what_grew_cold_can_be_fetched_again_when_its_parent_comes() {
    let open = Open::new().await;
    let mut worker = open.worker("w");
    let repo = repo(1, "x");
    let issue = issue_on(2, 20, &repo);
    assert_eq!(worker.submit(&[&issue]).await, [What::KeptForLater]);
    open.inside.clock.advance(3 * MINUTE);
    open.judge.tick();
    assert_eq!(open.judge.sizes(), (0, 1));
    assert_eq!(worker.lacking(&[&issue]).await.len(), 0);
    open.inside.active(1, "x", &[]).await;
    assert_eq!(worker.lacking(&[&issue]).await, [bytes(&issue)]);
    assert_eq!(worker.submit(&[&issue]).await, [What::Accepted]);
}

#[tokio::test]
async fn lacking_is_what_is_neither_held_nor_refused() {
    let open = Open::new().await;
    let inside = &open.inside;
    let mut worker = open.worker("w");
    let repo = inside.active(1, "x", &[]).await;
    let stored = issue_on(2, 20, &repo);
    inside.served(&stored).await;
    let waiting = state(1, "x", 30, &[("main", 2)]);
    inside.waits(&waiting).await;
    let expiring = announcement(5, "z", 10, &[]);
    inside.waits(&expiring).await;
    inside.passes(31 * MINUTE).await;
    inside.passes(DAY).await;
    inside.waits(&waiting).await;
    let deleted = issue_on(2, 21, &repo);
    let request = sign(2, nip34::DELETION, 40, &[tag(&["e", &deleted.id.to_hex()])]);
    inside.served(&request).await;
    assert_eq!(worker.submit(&[&deleted]).await, [What::Rejected]);
    assert_eq!(worker.submit(&[&expiring]).await, [What::KeptForLater]);
    let unknown = issue_on(2, 22, &repo);
    let all = [&stored, &waiting, &expiring, &deleted, &unknown];
    assert_eq!(worker.lacking(&all).await, [bytes(&unknown)]);
}

#[tokio::test]
async fn the_inventory_holds_what_is_served_and_what_waits() {
    let open = Open::new().await;
    let inside = &open.inside;
    let mut worker = open.worker("w");
    let active = inside.active(1, "x", &[]).await;
    let waiting = announcement(2, "y", 11, &[]);
    inside.waits(&waiting).await;
    let request = pull_request(3, 12, &oid(9).to_hex(), &active);
    inside.waits(&request).await;
    let kinds = worker.inventory("{\"kinds\":[30617]}").await.unwrap();
    let served = announcement(1, "x", 10, &[]);
    assert_eq!(kinds, [(bytes(&waiting), 11), (bytes(&served), 10)]);
    let latest = worker
        .inventory("{\"kinds\":[30617],\"limit\":1}")
        .await
        .unwrap();
    assert_eq!(latest, [(bytes(&waiting), 11)]);
    let none = worker
        .inventory("{\"kinds\":[30617],\"limit\":0}")
        .await
        .unwrap();
    assert_eq!(none, []);
    let by_coordinate = format!("{{\"#a\":[\"{}\"]}}", active.coordinate());
    let belonging = worker.inventory(&by_coordinate).await.unwrap();
    assert_eq!(belonging, [(bytes(&request), 12)]);
    for n in 0..5_100 {
        let list = sign(u8::try_from(n % 200 + 1).unwrap(), COMMENT, n, &[]);
        inside.release.store.save(&list).await.unwrap();
    }
    let many = worker.inventory("{\"kinds\":[1111]}").await.unwrap();
    assert_eq!(many.len(), 5_100);
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
        ..report
    };
    worker.say(vec![dead]).await;
    shows("ngit_sync_relay_status{relay=\"wss://Shown.example/\"} 3");
    shows(&format!("{attempts},result=\"failure\"}} 8"));
    // A worker that dies takes its connections along; the series stay.
    open.passes(LEASE);
    shows("ngit_sync_relay_connected{relay=\"wss://Shown.example/\"} 0");
}
