//! The hunt as workers and operators see it: over real gRPC, with a stand-in for gitd.

use std::collections::BTreeSet;

use grasp_proto::{
    contract::relay::{
        self as wire, admin_client::AdminClient, admin_server::AdminServer, ended, failed,
        hunt_client::HuntClient, hunt_server::HuntServer, next_response::Step, report_request,
    },
    process,
    transport::{self, AuthorizedChannel, Endpoint, Guard, Role, Trace},
};
use grasp_relay::{
    grpc::{admin::AdminService, hunt::HuntService},
    hunt::heal,
    nip34::id_of,
};
use tonic::{Code, Status, service::interceptor::InterceptedService};

use super::*;

/// A worker's (or somebody else's) end of the wire.
struct Wire {
    hunt: HuntClient<AuthorizedChannel>,
    admin: AdminClient<AuthorizedChannel>,
}

/// The relay's internal services, open until dropped.
struct Open {
    _directory: tempfile::TempDir,
    endpoint: Endpoint,
    tokens: Tokens,
    stop: CancellationToken,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Open {
    async fn new(inside: &Inside) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        let tokens = inside.tokens.clone();
        let hunt = HuntServer::new(HuntService::new(inside.hunter.clone()));
        let admin = AdminService::new(
            inside.release.clone(),
            inside.serial.clone(),
            inside.hunter.hunt.clone(),
            inside.curation.clone(),
        );
        let guard = |roles| Guard::new(&tokens, roles);
        let routes = transport::standard_routes(&tokens)
            .await
            .add_service(InterceptedService::new(hunt, guard(&[Role::Worker])))
            .add_service(InterceptedService::new(
                AdminServer::new(admin),
                guard(&[Role::Relay]),
            ));
        let listener = endpoint.listen().await.unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(transport::serve(listener, routes, stop.clone()));
        Self {
            _directory: directory,
            endpoint,
            tokens,
            stop,
        }
    }

    fn as_role(&self, role: Role) -> Wire {
        let channel = self.endpoint.authorized(self.tokens.of(role));
        Wire {
            hunt: HuntClient::new(channel.clone()),
            admin: AdminClient::new(channel),
        }
    }
}

impl Wire {
    async fn lease(&mut self, worker: &str, wait_millis: u32) -> Vec<wire::LeasedIdentifier> {
        let request = wire::LeaseRequest {
            worker: worker.to_owned(),
            room: 8,
            wait_millis,
        };
        self.hunt.lease(request).await.unwrap().into_inner().leases
    }

    async fn one_lease(&mut self) -> wire::LeasedIdentifier {
        let mut leases = self.lease("w", 0).await;
        assert_eq!(leases.len(), 1);
        leases.remove(0)
    }

    async fn try_next(&mut self, lease: &wire::LeasedIdentifier) -> Result<Step, Status> {
        let request = wire::NextRequest {
            identifier: lease.identifier.clone(),
            token: lease.token,
            tried: Vec::new(),
            wait_millis: 0,
        };
        let answer = self.hunt.next(request).await?;
        Ok(answer.into_inner().step.unwrap())
    }

    async fn fetch(&mut self, lease: &wire::LeasedIdentifier) -> wire::Fetch {
        match self.try_next(lease).await.unwrap() {
            Step::Fetch(fetch) => fetch,
            other => panic!("{other:?}"),
        }
    }

    async fn ended(&mut self, lease: &wire::LeasedIdentifier) -> ended::Why {
        match self.try_next(lease).await.unwrap() {
            Step::Ended(ended) => ended.why(),
            other => panic!("{other:?}"),
        }
    }

    async fn report(
        &mut self,
        lease: &wire::LeasedIdentifier,
        fetch: u64,
        outcome: report_request::Outcome,
    ) -> Result<wire::ReportResponse, Status> {
        let request = wire::ReportRequest {
            identifier: lease.identifier.clone(),
            token: lease.token,
            fetch,
            outcome: Some(outcome),
            bytes: 9,
            millis: 9,
        };
        Ok(self.hunt.report(request).await?.into_inner())
    }

    async fn renew(&mut self, lease: &wire::LeasedIdentifier) -> Vec<wire::RenewedLease> {
        let request = wire::RenewRequest {
            worker: "w".to_owned(),
            leases: vec![wire::HeldLease {
                identifier: lease.identifier.clone(),
                token: lease.token,
            }],
            counts: Some(wire::HuntCounts {
                fetches_succeeded: 3,
                fetches_failed: 2,
                bytes: 1_000,
                fetching: 1,
                concurrency: 8,
            }),
        };
        self.hunt.renew(request).await.unwrap().into_inner().leases
    }

    async fn status(&mut self) -> wire::StatusResponse {
        let request = wire::StatusRequest { most: 0 };
        self.admin.status(request).await.unwrap().into_inner()
    }
}

fn arrived(oids: &[Oid]) -> report_request::Outcome {
    let oids = oids.iter().map(|oid| oid.as_bytes().to_vec()).collect();
    report_request::Outcome::Arrived(wire::Arrived { oids })
}

fn failed(why: failed::Why) -> report_request::Outcome {
    report_request::Outcome::Failed(wire::Failed {
        why: why.into(),
        detail: "no\u{1b}[31m luck".to_owned(),
    })
}

/// An announcement that lists the service and these besides.
fn announcement_at(seed: u8, name: &str, urls: &[&str]) -> Event {
    let mut clone = tag(&["clone", "https://grasp.example/x.git"]);
    clone.extend(urls.iter().map(|url| (*url).to_owned()));
    let tags = [
        tag(&["d", name]),
        clone,
        tag(&["relays", "wss://grasp.example"]),
    ];
    sign(seed, nip34::ANNOUNCEMENT, 10, &tags)
}

impl Inside {
    async fn synced(&self, event: &Event) {
        let verdict = self.admit_synced(event).await;
        assert_eq!(verdict, Verdict::accepted(WAITS));
    }

    fn moves(&self, time: Duration) {
        self.clock.advance(time);
        self.hunter.hunt.act(|queue, now| queue.tick(now));
    }

    /// A repository whose state waits for commits, found elsewhere: due now.
    async fn hunted(&self, seed: u8, name: &str, urls: &[&str], commits: &[u8]) -> Event {
        self.synced(&announcement_at(seed, name, urls)).await;
        let branches = ["a", "b", "c", "d"];
        let refs: Vec<_> = branches.into_iter().zip(commits.iter().copied()).collect();
        let event = state(seed, name, 10, &refs);
        self.synced(&event).await;
        self.moves(Duration::from_millis(500));
        event
    }
}

#[tokio::test]
async fn what_is_missing_is_fetched_and_served() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let urls = [
        "https://user:secret@git.example/x.git",
        "ssh://git.example/x",
    ];
    let event = inside.hunted(1, "x", &urls, &[1, 2]).await;
    let lease = worker.one_lease().await;
    assert_eq!(
        (lease.identifier.as_str(), lease.valid_millis),
        ("x", 20_000)
    );
    assert!(worker.lease("v", 0).await.is_empty());
    let fetch = worker.fetch(&lease).await;
    assert_eq!(fetch.url, "https://git.example/x.git");
    assert_eq!((fetch.wants.len(), fetch.max_bytes), (2, 1 << 30));
    assert!(fetch.haves.is_empty());
    let key = GrantKey::new(&inside.tokens);
    let grant = key.open(&fetch.grant).unwrap();
    assert_eq!((grant.identifier.as_str(), grant.lease), ("x", lease.token));
    assert_eq!((grant.fetch, &grant.oids), (fetch.fetch, &fetch.wants));
    let expires = inside.clock.now() + Duration::from_secs(22);
    assert_eq!(grant.expires_millis, expires.as_millis());
    // While it runs, the grant lasts as long as the lease.
    inside.moves(Duration::from_secs(15));
    let renewed = worker.renew(&lease).await;
    let again = key.open(&renewed[0].grant).unwrap();
    assert_eq!(again.expires_millis, grant.expires_millis + 15_000);
    inside.git.bring(&identifier("x"), &[oid(1), oid(2)]);
    let answer = worker
        .report(&lease, fetch.fetch, arrived(&[oid(1), oid(2)]))
        .await
        .unwrap();
    assert_eq!((answer.released, answer.missing), (2, 0));
    assert!(inside.serves(&event).await);
    assert_eq!(inside.git.refs_of(repo(1, "x")).len(), 2);
    // Again: the same answer.
    let again = worker.report(&lease, fetch.fetch, arrived(&[])).await;
    assert_eq!(again.unwrap(), answer);
    assert_eq!(worker.ended(&lease).await, ended::Why::NothingPending);
    assert!(inside.hunter.hunt.act(|queue, _| queue.is_empty()));
    assert!(worker.renew(&lease).await.is_empty());
}

#[tokio::test]
async fn grants_run_out_by_the_clock_of_whoever_checks_them() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let key = GrantKey::new(&inside.tokens);
    let urls = ["https://one.example/x", "https://two.example/x"];
    inside.hunted(1, "x", &urls, &[1]).await;
    let lease = worker.one_lease().await;
    // An hour ahead, and then a year behind: each time as long as the lease.
    for clock in [inside.clock.now() + 60 * MINUTE, Moment::from_millis(1_000)] {
        inside.git.world().clock = Some(clock);
        let fetch = worker.fetch(&lease).await;
        let grant = key.open(&fetch.grant).unwrap();
        let expires = clock + Duration::from_secs(22);
        assert_eq!(grant.expires_millis, expires.as_millis());
        let report = worker.report(&lease, fetch.fetch, failed(failed::Why::NotThere));
        report.await.unwrap();
    }
}

#[tokio::test]
async fn a_part_that_came_is_served_and_the_rest_sought_elsewhere() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let urls = ["https://one.example/x", "https://two.example/x"];
    let newer = inside.hunted(1, "x", &urls, &[1, 2]).await;
    let older = state(1, "x", 9, &[("a", 1)]);
    inside.synced(&older).await;
    let lease = worker.one_lease().await;
    let first = worker.fetch(&lease).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let answer = worker.report(&lease, first.fetch, arrived(&[oid(1)])).await;
    let answer = answer.unwrap();
    assert_eq!((answer.released, answer.missing), (2, 1));
    assert!(inside.serves(&older).await && !inside.serves(&newer).await);
    let second = worker.fetch(&lease).await;
    assert_ne!(first.url, second.url);
    assert_eq!(second.wants, [oid(2).as_bytes().to_vec()]);
    assert_eq!(second.haves, [oid(1).as_bytes().to_vec()]);
    let report = worker.report(&lease, second.fetch, failed(failed::Why::NotThere));
    assert_eq!(report.await.unwrap().missing, 1);
    assert_eq!(worker.ended(&lease).await, ended::Why::NothingLeftToTry);
    inside.moves(Duration::from_secs(19));
    assert!(worker.lease("w", 0).await.is_empty());
    inside.moves(Duration::from_secs(1));
    assert_eq!(worker.one_lease().await.identifier, "x");
}

#[tokio::test]
async fn a_worker_that_lies_wastes_its_time() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let event = inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    let fetch = worker.fetch(&lease).await;
    let foreign = wire::LeasedIdentifier {
        token: lease.token + 1,
        ..lease.clone()
    };
    let code = |result: Result<_, Status>| result.err().map(|status| status.code());
    let lost = worker.report(&foreign, fetch.fetch, arrived(&[])).await;
    assert_eq!(code(lost), Some(Code::Aborted));
    assert_eq!(
        worker.try_next(&foreign).await.unwrap_err().code(),
        Code::Aborted
    );
    let unknown = worker.report(&lease, fetch.fetch + 7, arrived(&[])).await;
    assert_eq!(code(unknown), Some(Code::InvalidArgument));
    let many = vec![oid(1); 30_000];
    let huge = worker.report(&lease, fetch.fetch, arrived(&many)).await;
    assert_eq!(code(huge), Some(Code::InvalidArgument));
    // What it says has come has not.
    let answer = worker.report(&lease, fetch.fetch, arrived(&[oid(1)])).await;
    let answer = answer.unwrap();
    assert_eq!((answer.released, answer.missing), (0, 1));
    assert!(inside.holds(&event) && !inside.serves(&event).await);
    assert!(inside.git.refs_of(repo(1, "x")).is_empty());
    for name in ["", "a b", "\u{e4}", &"x".repeat(65)] {
        let request = wire::LeaseRequest {
            worker: name.to_owned(),
            room: 1,
            wait_millis: 0,
        };
        let status = worker.hunt.lease(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}");
    }
    let request = wire::NextRequest {
        identifier: "a/b".to_owned(),
        ..wire::NextRequest::default()
    };
    let status = worker.hunt.next(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_lost_lease_is_said_and_its_place_is_free_once() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    let fetch = worker.fetch(&lease).await;
    inside.moves(Duration::from_secs(20));
    let late = worker.report(&lease, fetch.fetch, arrived(&[])).await;
    assert_eq!(late.unwrap_err().code(), Code::Aborted);
    assert!(worker.renew(&lease).await.is_empty());
    let domain = open.as_role(Role::Relay).status().await.domains.remove(0);
    assert_eq!((domain.in_flight, domain.last_minute), (0, 1));
    let again = worker.lease("other", 0).await.remove(0);
    assert!(again.token > lease.token);
    // It may not have been the server's fault: asked once more.
    assert_eq!(worker.fetch(&again).await.url, fetch.url);
}

#[tokio::test]
async fn only_workers_hunt_and_only_operators_are_told() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    for role in [Role::Relay, Role::Gitd] {
        let request = wire::LeaseRequest {
            worker: "w".to_owned(),
            room: 1,
            wait_millis: 0,
        };
        let status = open.as_role(role).hunt.lease(request).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
    }
    for role in [Role::Worker, Role::Gitd] {
        let request = wire::StatusRequest::default();
        let status = open.as_role(role).admin.status(request).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn a_lease_waits_until_something_is_due() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let (mut worker, mut other) = (open.as_role(Role::Worker), open.as_role(Role::Worker));
    let hunt = inside.hunter.hunt.clone();
    let waiting = tokio::spawn(async move { worker.lease("w", 20_000).await });
    while hunt.act(|queue, _| queue.workers.all().count()) == 0 {
        tokio::task::yield_now().await;
    }
    inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    assert_eq!(waiting.await.unwrap()[0].identifier, "x");
    assert!(other.lease("v", 0).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn time_goes_on_by_itself() {
    let inside = Inside::new().await;
    let (hunt, stop) = (inside.hunter.hunt.clone(), CancellationToken::new());
    let clockwork = tokio::spawn(hunt.run(Duration::from_secs(1), stop.clone()));
    inside
        .synced(&announcement_at(1, "x", &["https://one.example/x"]))
        .await;
    inside.synced(&state(1, "x", 10, &[("a", 1)])).await;
    inside.clock.advance(Duration::from_millis(500));
    let leases = inside.hunter.lease("w", 1, Duration::from_secs(20)).await;
    assert_eq!(leases[0].identifier, identifier("x"));
    stop.cancel();
    clockwork.await.unwrap();
}

#[tokio::test]
async fn a_step_waits_for_room_and_has_it_at_once() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let mut running = Vec::new();
    for name in ["r1", "r2", "r3", "r4", "r5"] {
        inside
            .hunted(1, name, &["https://one.example/x"], &[1])
            .await;
        let lease = worker.one_lease().await;
        let fetch = worker.fetch(&lease).await;
        running.push((lease, fetch));
    }
    inside
        .hunted(1, "x", &["https://one.example/y"], &[1])
        .await;
    let lease = worker.one_lease().await;
    assert!(matches!(worker.try_next(&lease).await, Ok(Step::Wait(_))));
    let status = open.as_role(Role::Relay).status().await;
    assert_eq!(status.domains[0].waiting, 1);
    assert_eq!(status.queue.unwrap().waiting_for_domains, 1);
    let mut other = open.as_role(Role::Worker);
    let of = lease.clone();
    let waiting = tokio::spawn(async move {
        let request = wire::NextRequest {
            identifier: of.identifier,
            token: of.token,
            tried: Vec::new(),
            wait_millis: 20_000,
        };
        other.hunt.next(request).await.unwrap().into_inner().step
    });
    let (held, fetch) = running.remove(0);
    let report = worker.report(&held, fetch.fetch, failed(failed::Why::Server));
    report.await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Some(Step::Fetch(_))));
}

#[tokio::test]
async fn what_is_pushed_meanwhile_or_never_arrives_is_not_hunted_for() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let event = inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let lease = worker.one_lease().await;
    assert_eq!(worker.ended(&lease).await, ended::Why::NothingPending);
    assert!(inside.serves(&event).await);
    let never = sign(
        1,
        nip34::STATE,
        20,
        &[tag(&["d", "x"]), tag(&["refs/heads/m", "abc"])],
    );
    assert!(!inside.admit_synced(&never).await.ok);
    let offer = pull_request(2, 20, "not an object", &repo(1, "x"));
    assert!(!inside.admit_synced(&offer).await.ok);
    inside.moves(Duration::from_secs(600));
    assert!(worker.lease("w", 0).await.is_empty());
}

#[tokio::test]
async fn a_pull_request_is_sought_where_it_says() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let target = inside.active(1, "x", &[]).await;
    let tags = [
        tag(&["c", &oid(9).to_hex()]),
        tag(&["a", &target.coordinate()]),
        tag(&["clone", "https://fork.example/x"]),
    ];
    let offer = sign(2, nip34::PULL_REQUEST, 30, &tags);
    inside.waits(&offer).await;
    inside.moves(Duration::from_secs(179));
    assert!(worker.lease("w", 0).await.is_empty());
    inside.moves(Duration::from_secs(1));
    let lease = worker.one_lease().await;
    let fetch = worker.fetch(&lease).await;
    assert_eq!(fetch.url, "https://fork.example/x");
    assert_eq!(fetch.haves, [oid(1).as_bytes().to_vec()]);
    inside.git.bring(&identifier("x"), &[oid(9)]);
    let answer = worker.report(&lease, fetch.fetch, arrived(&[oid(9)])).await;
    assert_eq!(answer.unwrap().released, 1);
    let name = RefName::nostr(&id_of(&offer));
    assert_eq!(inside.git.refs_of(&target).get(&name), Some(&oid(9)));
}

#[tokio::test]
async fn twenty_urls_of_an_event_count_the_authors_first() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let flood: Vec<String> = (0..99).map(|n| format!("https://f{n}.example/x")).collect();
    let flood: Vec<&str> = flood.iter().map(String::as_str).collect();
    inside.synced(&announcement_at(9, "x", &flood)).await;
    inside
        .hunted(1, "x", &["https://own.example/x"], &[1])
        .await;
    let mut lease = worker.one_lease().await;
    let mut asked = BTreeSet::new();
    loop {
        match worker.try_next(&lease).await.unwrap() {
            Step::Fetch(fetch) => {
                if asked.is_empty() {
                    assert_eq!(fetch.url, "https://own.example/x");
                }
                assert!(asked.insert(fetch.url));
                let report = worker.report(&lease, fetch.fetch, failed(failed::Why::NotThere));
                report.await.unwrap();
            }
            Step::Ended(ended) if ended.why() == ended::Why::TurnOver => {
                assert_eq!(asked.len(), 16);
                lease = worker.one_lease().await;
                assert_eq!(lease.tried.len(), 16);
            }
            Step::Ended(ended) => {
                assert_eq!(ended.why(), ended::Why::NothingLeftToTry);
                break;
            }
            Step::Wait(_) => panic!("there is room"),
        }
    }
    // The flood's own clone tag has this service first.
    assert_eq!(asked.len(), 1 + 19);
}

#[tokio::test]
async fn with_the_git_storage_away_the_turn_is_kept() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    inside.git.goes_away(true);
    assert!(matches!(worker.try_next(&lease).await, Ok(Step::Wait(_))));
    inside.git.goes_away(false);
    assert_eq!(worker.fetch(&lease).await.url, "https://one.example/x");
}

#[tokio::test]
async fn a_repository_that_was_not_made_is_made_for_the_fetch() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside.git.goes_away(true);
    inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    inside.git.goes_away(false);
    assert!(!inside.git.has(repo(1, "x")));
    let lease = worker.one_lease().await;
    worker.fetch(&lease).await;
    assert!(inside.git.has(repo(1, "x")));
}

#[tokio::test]
async fn a_lease_is_handed_back() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    worker.fetch(&lease).await;
    for _ in 0..2 {
        let held = wire::HeldLease {
            identifier: "x".to_owned(),
            token: lease.token,
        };
        let request = wire::ReleaseRequest {
            worker: "w".to_owned(),
            leases: vec![held],
        };
        worker.hunt.release(request).await.unwrap();
    }
    let again = worker.one_lease().await;
    assert_eq!(worker.fetch(&again).await.url, "https://one.example/x");
}

#[tokio::test]
async fn a_head_that_no_clone_can_check_out_is_healed() {
    let gone = Some("ref: refs/heads/gone");
    let object = oid(1).to_hex();
    for (named, branches, expected) in [
        (Some("ref: refs/heads/dev"), &["dev", "main"][..], "dev"),
        (None, &["dev", "main", "master"], "main"),
        (gone, &["dev", "main", "master"], "main"),
        (Some(&object), &["dev", "main", "master"], "main"),
        (None, &["dev", "master"], "master"),
        (gone, &["dev"], "dev"),
        (None, &["x", "b", "c"], "b"),
    ] {
        let inside = Inside::new().await;
        let announced = announcement_at(1, "x", &["https://one.example/x"]);
        inside.waits(&announced).await;
        inside.git.bring(&identifier("x"), &[oid(1)]);
        let mut tags = vec![tag(&["d", "x"])];
        tags.extend(named.map(|named| tag(&["HEAD", named])));
        let at_one = |name: &&str| tag(&[branch(name).as_str(), &oid(1).to_hex()]);
        tags.extend(branches.iter().map(at_one));
        inside.served(&sign(1, nip34::STATE, 10, &tags)).await;
        let address: Address = repo(1, "x").into();
        let expected = Some(branch(expected));
        assert_eq!(inside.git.world().repos[&address].head, expected);
        // As an earlier version made it, or a restored backup has it: its branches are right.
        for wrong in [None, Some(branch("gone"))] {
            inside.git.world().repos.get_mut(&address).unwrap().head = wrong;
            for _ in 0..2 {
                heal::everything(&inside.hunter.hunt, &inside.release, &inside.serial).await;
            }
            let world = inside.git.world();
            assert_eq!(
                world.repos[&address].head, expected,
                "{named:?} {branches:?}"
            );
        }
        // Each was aligned once, besides by its release.
        assert_eq!(inside.git.world().aligned, 3, "{named:?} {branches:?}");
    }
}

#[tokio::test]
async fn what_is_served_and_lacks_objects_is_healed() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside
        .waits(&announcement_at(1, "x", &["https://one.example/x"]))
        .await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    inside.served(&state(1, "x", 10, &[("main", 1)])).await;
    let heal_all = async || {
        heal::everything(&inside.hunter.hunt, &inside.release, &inside.serial).await;
        inside.moves(Duration::from_millis(500));
    };
    // All is well: nothing is done.
    let aligned = inside.git.world().aligned;
    heal_all().await;
    assert!(worker.lease("w", 0).await.is_empty());
    assert_eq!(inside.git.world().aligned, aligned);
    // Its refs are elsewhere: they are put right. Its objects are gone: they are sought.
    inside
        .git
        .world()
        .repos
        .get_mut(&repo(1, "x").into())
        .unwrap()
        .refs
        .clear();
    heal_all().await;
    assert_eq!(inside.git.refs_of(repo(1, "x")).len(), 1);
    inside.git.world().repos.remove(&repo(1, "x").into());
    inside.git.world().pool.clear();
    heal_all().await;
    let lease = worker.one_lease().await;
    let fetch = worker.fetch(&lease).await;
    assert_eq!(fetch.wants, [oid(1).as_bytes().to_vec()]);
    assert!(fetch.haves.is_empty());
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let report = worker.report(&lease, fetch.fetch, arrived(&[oid(1)]));
    assert_eq!(report.await.unwrap().missing, 0);
    assert_eq!(inside.git.refs_of(repo(1, "x")).len(), 1);
    assert_eq!(worker.ended(&lease).await, ended::Why::NothingPending);
}

#[tokio::test]
async fn a_relay_that_starts_anew_goes_on_with_leases_and_budgets() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let git: Arc<StandIn> = Arc::default();
    let memory = || Store::open(Backend::Memory, Path::new(""));
    let (journal, _) = Journal::open(data.path()).unwrap();
    let before = Inside::over(memory().await.unwrap(), journal, &[], git.clone()).await;
    let open = Open::new(&before).await;
    let mut worker = open.as_role(Role::Worker);
    let event = before
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    let idle = before
        .hunted(1, "y", &["https://one.example/y"], &[1])
        .await;
    let mut leases = worker.lease("w", 0).await;
    leases.retain(|lease| lease.identifier == "x");
    let lease = leases.remove(0);
    let fetch = worker.fetch(&lease).await;
    // As the disk is when the process is killed: the fetch was durable before it was told.
    std::fs::copy(data.path().join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    let (journal, records) = Journal::open(copy.path()).unwrap();
    let after = Inside::over(memory().await.unwrap(), journal, &records, git).await;
    after.release.purgatory.restore(records);
    sweep::reconcile(&after.release).await.unwrap();
    after.hunter.enqueue_what_waits();
    let open = Open::new(&after).await;
    let mut worker = open.as_role(Role::Worker);
    let domain = open.as_role(Role::Relay).status().await.domains.remove(0);
    assert_eq!((domain.in_flight, domain.last_minute), (1, 1));
    let renewed = worker.renew(&lease).await;
    let grant = GrantKey::new(&after.tokens)
        .open(&renewed[0].grant)
        .unwrap();
    assert_eq!((grant.oids, grant.fetch), (fetch.wants, fetch.fetch));
    after.git.bring(&identifier("x"), &[oid(1)]);
    let report = worker.report(&lease, fetch.fetch, arrived(&[oid(1)]));
    assert_eq!(report.await.unwrap().released, 2);
    assert!(after.serves(&event).await);
    // The lease of the other ran on, too: nobody else has it until it is over.
    after.moves(Duration::from_secs(1));
    assert!(worker.lease("v", 0).await.is_empty());
    after.moves(Duration::from_secs(20));
    let mut left = worker.lease("v", 0).await;
    left.retain(|lease| lease.identifier == "y");
    assert!(left[0].token > lease.token);
    assert!(after.holds(&idle));
}

#[tokio::test]
async fn metrics_are_there_from_the_start_and_follow() {
    process::metrics();
    let inside = Inside::new().await;
    let shown = |series: &str| {
        let all = process::render_metrics("relay");
        let line = all.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit_once(' '))
            .map(|(_, value)| value.to_owned())
    };
    for name in [
        "purgatory_sync_queue_size",
        "purgatory_sync_attempts_total",
        "purgatory_sync_oids_fetched_total",
        "purgatory_sync_backoff_seconds_count",
    ] {
        assert!(shown(name).is_some(), "{name}");
    }
    let labelled = |name: &str, domain: &str| shown(&format!("{name}{{domain=\"{domain}\"}}"));
    let zero = Some("0".to_owned());
    for name in [
        "purgatory_domain_in_flight",
        "purgatory_domain_requests_total",
    ] {
        assert_eq!(labelled(name, "other"), zero);
    }
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside
        .hunted(1, "x", &["https://metrics.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    let fetch = worker.fetch(&lease).await;
    let domain = "metrics.example";
    assert_eq!(
        labelled("purgatory_domain_in_flight", domain),
        Some("1".to_owned())
    );
    assert_eq!(
        labelled("purgatory_domain_requests_total", domain),
        Some("1".to_owned())
    );
    let report = worker.report(&lease, fetch.fetch, failed(failed::Why::NotThere));
    report.await.unwrap();
    assert_eq!(labelled("purgatory_domain_in_flight", domain), zero);
}

#[tokio::test]
async fn the_trace_of_an_event_goes_with_its_hunt() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let trace = Trace::begin();
    trace
        .scope(inside.hunted(1, "x", &["https://one.example/x"], &[1]))
        .await;
    let lease = open.as_role(Role::Worker).one_lease().await;
    assert_eq!(lease.traceparent, trace.to_string());
}

#[tokio::test]
async fn an_operator_is_told_what_there_is() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let (mut worker, mut operator) = (open.as_role(Role::Worker), open.as_role(Role::Relay));
    inside.active(1, "served", &[]).await;
    let began = inside.clock.now().as_millis();
    inside.synced(&announcement(2, "gone", 10, &[])).await;
    inside.passes(31 * MINUTE).await;
    let now = inside.clock.now().as_millis();
    inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    worker.fetch(&lease).await;
    worker.renew(&lease).await;
    inside.waits(&state(1, "served", 50, &[("main", 7)])).await;
    let status = operator.status().await;
    assert!(status.git_reachable);
    assert_eq!(status.repositories, 1);
    let purgatory = status.purgatory.unwrap();
    let kind = |name: &str| {
        let kinds = purgatory.kinds.iter();
        kinds.clone().find(|kind| kind.kind == name).unwrap()
    };
    assert_eq!(kind("announcements").entries, 1);
    assert_eq!(kind("announcements").oldest_millis, now);
    assert_eq!(kind("states").entries, 2);
    assert_eq!(kind("states").first_expiry_millis, now + 30 * 60_000);
    let soft = kind("soft-expired announcements");
    assert_eq!((soft.entries, soft.oldest_millis), (1, began));
    assert_eq!(
        kind("placeholders").entries + kind("pull requests").entries,
        0
    );
    assert_eq!(kind("placeholders").oldest_millis, 0);
    let queue = status.queue.unwrap();
    assert_eq!((queue.identifiers, queue.leased, queue.due), (2, 1, 0));
    assert_eq!(queue.entries[0].worker, "w");
    assert_eq!(queue.entries[1].identifier, "served");
    let due = inside.clock.now() + Duration::from_secs(180);
    assert_eq!(queue.entries[1].next_attempt_millis, due.as_millis());
    assert_eq!(status.domains[0].domain, "one.example");
    assert_eq!((status.domains[0].in_flight, status.more_domains), (1, 0));
    let seen = &status.workers[0];
    assert_eq!((seen.worker.as_str(), seen.leases), ("w", 1));
    assert_eq!(seen.counts.unwrap().bytes, 1_000);
    assert_eq!(seen.seen_millis, inside.clock.now().as_millis());
    inside.git.goes_away(true);
    assert!(!operator.status().await.git_reachable);
}

/// A state that names the lowest ids there are, from this one on.
fn flood(seed: u8, at: u64, from: u32, count: u32) -> Event {
    let mut tags = vec![tag(&["d", "x"])];
    tags.extend((from..from + count).map(|n| {
        let name = format!("refs/heads/{n}");
        tag(&[&name, &format!("{n:040x}")])
    }));
    sign(seed, nip34::STATE, at, &tags)
}

#[tokio::test]
async fn a_stranger_who_names_ten_thousand_lower_ids_hides_nobodys() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside
        .synced(&announcement_at(9, "x", &["https://mallory.example/x"]))
        .await;
    for n in 0..6 {
        let event = flood(9, 20 + u64::from(n), 1 + n * 2_000, 2_000);
        inside.synced(&event).await;
    }
    let event = inside
        .hunted(1, "x", &["https://alice.example/x"], &[200, 201])
        .await;
    let mut lease = worker.one_lease().await;
    let alices: Vec<Vec<u8>> = [oid(200), oid(201)]
        .iter()
        .map(|oid| oid.as_bytes().to_vec())
        .collect();
    // Of everybody's a share, wherever it is asked.
    for _ in 0..2 {
        let fetch = worker.fetch(&lease).await;
        assert_eq!(fetch.wants.len(), 10_000);
        assert!(alices.iter().all(|oid| fetch.wants.contains(oid)));
        let report = worker.report(&lease, fetch.fetch, failed(failed::Why::NotThere));
        assert!(report.await.unwrap().missing > 0);
    }
    assert_eq!(worker.ended(&lease).await, ended::Why::NothingLeftToTry);
    // In the next attempt of each only its own.
    inside.moves(Duration::from_secs(20));
    lease = worker.one_lease().await;
    for _ in 0..2 {
        let fetch = worker.fetch(&lease).await;
        let is_alices = fetch.url == "https://alice.example/x";
        assert_eq!(fetch.wants.len(), if is_alices { 2 } else { 10_000 });
        let outcome = match is_alices {
            true => {
                inside.git.bring(&identifier("x"), &[oid(200), oid(201)]);
                arrived(&[oid(200), oid(201)])
            }
            false => failed(failed::Why::NotThere),
        };
        let answer = worker.report(&lease, fetch.fetch, outcome).await.unwrap();
        assert_eq!(answer.released, if is_alices { 2 } else { 0 });
    }
    assert!(inside.serves(&event).await);
}

#[tokio::test]
async fn what_comes_is_served_without_a_look_at_everybody_else() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    for seed in 10..60 {
        inside.synced(&announcement_at(seed, "x", &[])).await;
        inside
            .synced(&state(seed, "x", 10, &[("main", 1), ("other", seed)]))
            .await;
    }
    let event = inside
        .hunted(1, "x", &["https://alice.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    let fetch = worker.fetch(&lease).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let calls = inside.git.calls();
    let answer = worker.report(&lease, fetch.fetch, arrived(&[oid(1)])).await;
    assert_eq!(answer.unwrap().released, 2);
    assert!(inside.serves(&event).await);
    // What came, what is satisfied by it, one repository aligned, what is missing still.
    let calls = inside.git.calls() - calls;
    assert!(calls < 10, "{calls}");
    // Reported again: not seen to again.
    let before = inside.git.calls();
    let again = worker.report(&lease, fetch.fetch, arrived(&[oid(1)])).await;
    assert_eq!((again.unwrap().released, inside.git.calls()), (2, before));
}

#[tokio::test]
async fn one_report_made_many_times_at_once_is_seen_to_once() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    let fetch = worker.fetch(&lease).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let reports = (0..8).map(|_| {
        let (mut worker, lease) = (open.as_role(Role::Worker), lease.clone());
        async move {
            let report = worker.report(&lease, fetch.fetch, arrived(&[oid(1)]));
            report.await.unwrap().released
        }
    });
    let released = futures::future::join_all(reports).await;
    assert_eq!(released, [2; 8]);
    assert_eq!(inside.git.world().aligned, 1);
    // Of what was never given nothing is kept.
    for number in fetch.fetch + 1..fetch.fetch + 100 {
        let status = worker.report(&lease, number, arrived(&[])).await;
        assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn who_is_trusted_anew_is_hunted_for() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside.active(1, "x", &[2]).await;
    inside.served(&answer(2, "x", 10, &[1])).await;
    inside.synced(&state(2, "x", 20, &[("main", 7)])).await;
    // Nobody trusts the author any more: nothing to hunt for.
    inside.admit_synced(&announcement(1, "x", 30, &[])).await;
    inside.moves(Duration::from_millis(500));
    let lease = worker.one_lease().await;
    assert_eq!(worker.ended(&lease).await, ended::Why::NothingPending);
    inside.moves(Duration::from_secs(600));
    assert!(worker.lease("w", 0).await.is_empty());
    // Somebody does again, and says where.
    let mut tags = announcement(1, "x", 40, &[2]);
    tags = {
        let mut all: Vec<Vec<String>> = tags
            .tags
            .iter()
            .map(|tag| tag.as_slice().to_vec())
            .collect();
        all[1].push("https://new.example/x".to_owned());
        sign(1, nip34::ANNOUNCEMENT, 40, &all)
    };
    assert!(inside.admit_synced(&tags).await.ok);
    inside.moves(Duration::from_millis(500));
    let lease = worker.one_lease().await;
    assert_eq!(worker.fetch(&lease).await.url, "https://new.example/x");
    // Published again it is no news.
    worker.lease("w", 0).await;
    let attempts = inside.hunter.hunt.act(|queue, _| queue.figures(1).entries);
    assert!(inside.admit_synced(&tags).await.ok);
    let after = inside.hunter.hunt.act(|queue, _| queue.figures(1).entries);
    assert_eq!(attempts, after);
}

#[tokio::test]
async fn a_lease_that_is_named_often_is_renewed_once() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    inside
        .hunted(1, "x", &["https://one.example/x"], &[1])
        .await;
    let lease = worker.one_lease().await;
    worker.fetch(&lease).await;
    let held = wire::HeldLease {
        identifier: lease.identifier.clone(),
        token: lease.token,
    };
    let request = wire::RenewRequest {
        worker: "w".to_owned(),
        leases: vec![held; 4_096],
        counts: None,
    };
    let renewed = worker.hunt.renew(request).await.unwrap().into_inner();
    assert_eq!(renewed.leases.len(), 1);
}

#[tokio::test]
async fn a_repository_that_is_unwell_says_nothing_of_its_server() {
    let inside = Inside::new().await;
    let open = Open::new(&inside).await;
    let mut worker = open.as_role(Role::Worker);
    let urls = ["https://one.example/x"];
    inside.hunted(1, "x", &urls, &[1]).await;
    // Often, and for long: for a server that cannot be reached it would be enough.
    for attempt in 0..20 {
        let lease = worker.one_lease().await;
        match worker.try_next(&lease).await.unwrap() {
            Step::Fetch(fetch) => {
                let report = worker.report(&lease, fetch.fetch, failed(failed::Why::Unwell));
                report.await.unwrap();
                assert_eq!(worker.ended(&lease).await, ended::Why::NothingLeftToTry);
            }
            // Left alone for now.
            Step::Ended(_) => assert!(attempt > 2),
            Step::Wait(_) => panic!("there is room"),
        }
        inside.moves(Duration::from_secs(120));
    }
    inside
        .hunted(1, "y", &["https://one.example/y"], &[2])
        .await;
    let mut leases = worker.lease("w", 0).await;
    leases.retain(|lease| lease.identifier == "y");
    assert_eq!(worker.fetch(&leases[0]).await.url, "https://one.example/y");
}
