//! Relay-to-relay sync as workers see it: over real gRPC, with a stand-in for gitd.

mod judged;
mod leases;

use std::collections::{BTreeMap, BTreeSet};

use grasp_proto::{
    contract::{
        event_size::{MAX_EVENT_BYTES, MAX_MESSAGE_BYTES},
        relay::{
            self as wire, Level, Method, RelayState, admin_client::AdminClient,
            admin_server::AdminServer, relay_sync_client::RelaySyncClient,
            relay_sync_server::RelaySyncServer, submit_verdict::What,
        },
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
        let service = RelaySyncServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let admin = AdminService::new(
            inside.release.clone(),
            inside.serial.clone(),
            inside.hunter.hunt.clone(),
            inside.curation.clone(),
        );
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
    assert_eq!(
        known(&wanted).roots,
        BTreeSet::from([(issue.created_at, id_of(&issue))])
    );
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
    let largest = "x".repeat(MAX_EVENT_BYTES);
    let one = worker.try_submit(vec![largest.clone()]).await.unwrap();
    assert_eq!(one[0].0, What::Forged);
    invalid(worker.try_submit(vec![largest, "x".to_owned()]).await);
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
