//! `Packs.StorePack`: packs that workers bring, over real gRPC.

mod common;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::*;
use grasp_proto::{
    contract::git::{
        CopyRequest, DeleteRequest, Grant, StorePackRequest, StorePackResponse,
        store_pack_request::Part,
    },
    transport::Role,
    words::{Oid, RepoId},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tonic::{Code, Status};

const HOLDS: Duration = Duration::from_secs(600);

fn grant(identifier: &str, oids: &[Oid], holds: Duration) -> Grant {
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + holds;
    Grant {
        identifier: identifier.to_owned(),
        oids: oids.iter().map(|oid| oid.as_bytes().to_vec()).collect(),
        max_bytes: 1 << 30,
        expires_millis: u64::try_from(expires.as_millis()).unwrap(),
        lease: 7,
        fetch: 3,
    }
}

/// A call that goes on.
struct Call {
    parts: mpsc::Sender<StorePackRequest>,
    answer: JoinHandle<Result<StorePackResponse, Status>>,
}

impl Call {
    fn begin(service: &Service) -> Self {
        Self::by(service, Role::Worker)
    }

    fn by(service: &Service, role: Role) -> Self {
        let (parts, receiver) = mpsc::channel(1);
        let mut packs = service.packs(role);
        let answer = tokio::spawn(async move {
            let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
            Ok(packs.store_pack(stream).await?.into_inner())
        });
        Self { parts, answer }
    }

    async fn part(&self, part: Part) {
        let part = Some(part);
        // A call that has ended says why in its answer.
        let _ = self.parts.send(StorePackRequest { part }).await;
    }

    async fn grant(&self, service: &Service, grant: &Grant) {
        self.part(Part::Grant(service.grant_key().seal(grant)))
            .await;
    }

    async fn chunks(&self, bytes: &[u8]) {
        for chunk in bytes.chunks(1000) {
            self.part(Part::Chunk(chunk.to_vec())).await;
        }
    }

    /// What came of it, its caller's side still open.
    async fn answer(self) -> Result<StorePackResponse, Status> {
        self.answer.await.unwrap()
    }

    /// What comes of it when its caller has no more to say.
    async fn end(self) -> Result<StorePackResponse, Status> {
        drop(self.parts);
        self.answer.await.unwrap()
    }
}

async fn store(service: &Service, grant: &Grant, pack: &[u8]) -> Result<StorePackResponse, Status> {
    let call = Call::begin(service);
    call.grant(service, grant).await;
    call.chunks(pack).await;
    call.end().await
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

/// A repository without objects, and a clone of nothing with three commits.
async fn begin(identifier: &str) -> (Service, RepoId, std::path::PathBuf, Oid) {
    let service = Service::start().await;
    let repo = repo(1, identifier);
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 3).await;
    let tip = rev(&path, "main").await;
    (service, repo, path, tip)
}

fn quarantines(service: &Service) -> usize {
    let pools = service.pools();
    let quarantined = pools
        .iter()
        .map(|pool| children(&pool.join("quarantine")).len());
    quarantined.sum()
}

/// Waits until a pack is being taken in.
async fn taken_in(service: &Service) {
    while quarantines(service) == 0 {
        tokio::task::yield_now().await;
    }
}

/// Whether a process works below the data directory.
fn git_runs(service: &Service) -> bool {
    let below = service.data();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read_link(process.path().join("cwd")).ok())
        .any(|directory| directory.starts_with(&below))
}

/// Nothing is left of a call: no file, and soon no process.
async fn nothing_left(service: &Service) {
    while quarantines(service) > 0 || git_runs(service) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for pool in service.pools() {
        assert!(children(&pool.join("objects/pack")).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_brings_is_here_and_moves_no_ref() {
    let (service, repo, path, tip) = begin("brought").await;
    let older = rev(&path, "main~1").await;
    let absent = Oid::from_bytes([7; 20]);
    let wanted = grant("brought", &[older, absent], HOLDS);
    let bytes = pack(&path, &["main~1"]).await;
    let stored = store(&service, &wanted, &bytes).await.unwrap();
    assert_eq!(stored.arrived, [older.as_bytes()]);
    assert_eq!(stored.bytes, bytes.len() as u64);
    assert!(!service.missing(&repo, older, false).await);
    // The rest leans on it; what was here before has arrived as well; and the answer comes when the
    // pack is in, not when its sender is silent.
    let thin = pack(&path, &["main", "^main~1"]).await;
    let call = Call::begin(&service);
    let wanted = grant("brought", &[older, tip], HOLDS);
    call.grant(&service, &wanted).await;
    call.chunks(&thin).await;
    let parts = call.parts.clone();
    let arrived = call.answer().await.unwrap().arrived;
    assert_eq!(arrived, [older.as_bytes(), tip.as_bytes()]);
    drop(parts);
    assert!(service.refs(&repo).await.is_empty());
    assert_eq!(quarantines(&service), 0);
    let name = "refs/heads/main";
    service.align(&repo, &[(name, tip)], &[]).await.unwrap();
    let url = service.url(&repo);
    git(
        service.directory.path(),
        &["clone", "-q", "-b", "main", &url, "clone"],
    )
    .await;
    // The whole again: the same pack twice does no harm.
    for _ in 0..2 {
        let whole = pack(&path, &["main"]).await;
        let stored = store(&service, &grant("brought", &[tip], HOLDS), &whole).await;
        assert_eq!(stored.unwrap().arrived, [tip.as_bytes()]);
    }
    git(&service.view(&repo), &["fsck", "--strict"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_packs_for_one_identifier_come_at_once() {
    let (service, repo, path, tip) = begin("two").await;
    let other = work(service.directory.path(), "other", 2).await;
    let foreign = rev(&other, "main").await;
    let packs = [pack(&path, &["main"]).await, pack(&other, &["main"]).await];
    let mut calls = Vec::new();
    for (oid, pack) in [tip, foreign].into_iter().zip(&packs) {
        let call = Call::begin(&service);
        call.grant(&service, &grant("two", &[oid], HOLDS)).await;
        call.chunks(&pack[..100]).await;
        calls.push(call);
    }
    while quarantines(&service) < 2 {
        tokio::task::yield_now().await;
    }
    for (call, pack) in calls.iter().zip(&packs) {
        call.chunks(&pack[100..]).await;
    }
    for call in calls {
        assert_eq!(call.end().await.unwrap().arrived.len(), 1);
    }
    assert!(!service.missing(&repo, tip, false).await);
    assert!(!service.missing(&repo, foreign, false).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_relays_word_lets_a_worker_in() {
    let (service, _, path, tip) = begin("word").await;
    let bytes = pack(&path, &["main"]).await;
    let good = grant("word", &[tip], HOLDS);
    for role in [Role::Relay, Role::Gitd] {
        let call = Call::by(&service, role);
        call.grant(&service, &good).await;
        assert_eq!(code(call.end().await), Code::PermissionDenied, "{role:?}");
    }
    let mut forged = service.grant_key().seal(&good);
    *forged.last_mut().unwrap() ^= 1;
    let call = Call::begin(&service);
    call.part(Part::Grant(forged)).await;
    assert_eq!(code(call.end().await), Code::PermissionDenied);
    let another = Service::start().await;
    let call = Call::begin(&service);
    call.grant(&another, &good).await;
    assert_eq!(code(call.end().await), Code::PermissionDenied);

    let past = grant("word", &[tip], Duration::ZERO);
    let mut foreign = good.clone();
    foreign.fetch += 1;
    let mut elsewhere = good.clone();
    elsewhere.identifier = "elsewhere".to_owned();
    let expected = [
        (past, Code::DeadlineExceeded),
        (grant("word", &[], HOLDS), Code::InvalidArgument),
        (grant("../word", &[tip], HOLDS), Code::InvalidArgument),
        (elsewhere.clone(), Code::NotFound),
    ];
    for (first, expected) in expected {
        assert_eq!(code(store(&service, &first, &bytes).await), expected);
    }
    // Nothing is made for what is not here.
    assert_eq!(service.pools().len(), 1);
    let mut odd = good.clone();
    odd.oids[0].pop();
    assert_eq!(
        code(store(&service, &odd, &bytes).await),
        Code::InvalidArgument
    );
    for later in [foreign, elsewhere] {
        let call = Call::begin(&service);
        call.grant(&service, &good).await;
        call.chunks(&bytes[..50]).await;
        call.grant(&service, &later).await;
        assert_eq!(code(call.answer().await), Code::PermissionDenied);
    }
    let call = Call::begin(&service);
    call.chunks(&bytes).await;
    assert_eq!(code(call.end().await), Code::InvalidArgument);
    nothing_left(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_bad_leaves_nothing() {
    let (service, repo, path, tip) = begin("bad").await;
    let whole = pack(&path, &["main"]).await;
    let good = grant("bad", &[tip], HOLDS);
    let mut tight = good.clone();
    tight.max_bytes = whole.len() as u64 - 1;
    let refused = store(&service, &tight, &whole).await;
    assert_eq!(code(refused), Code::ResourceExhausted);
    let call = Call::begin(&service);
    call.grant(&service, &good).await;
    call.part(Part::Chunk(vec![0; (1 << 20) + 1])).await;
    assert_eq!(code(call.end().await), Code::InvalidArgument);
    let half = pack(&path, &["main", "^main~1"]).await;
    let mut flipped = whole.clone();
    flipped[40] ^= 0xff;
    let mut long = whole.clone();
    long.extend_from_slice(b"junk");
    for (what, bytes) in [
        ("leads to what is not here", half),
        ("cut short", whole[..whole.len() - 1].to_vec()),
        ("flipped", flipped),
        ("nothing", Vec::new()),
        ("no pack", vec![b'x'; 100]),
        ("goes on", long),
    ] {
        let refused = store(&service, &good, &bytes).await;
        assert_eq!(code(refused), Code::InvalidArgument, "{what}");
    }
    let unasked = grant("bad", &[Oid::from_bytes([7; 20])], HOLDS);
    let refused = store(&service, &unasked, &whole).await;
    assert_eq!(code(refused), Code::InvalidArgument);
    nothing_left(&service).await;
    assert!(service.missing(&repo, tip, false).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_ends_too_soon_is_refused_though_its_caller_stays() {
    let (service, _, path, tip) = begin("short").await;
    let grant = grant("short", &[tip], HOLDS);
    let pack = pack(&path, &["main"]).await;
    for (end, expected) in [
        (pack.len() - 21, Some(Code::InvalidArgument)),
        (pack.len(), None),
    ] {
        let call = Call::begin(&service);
        call.grant(&service, &grant).await;
        call.chunks(&pack[..end]).await;
        call.part(Part::Chunk(vec![])).await;
        call.grant(&service, &grant).await;
        // Kept open, as by a worker that has more grants to send.
        let Call { parts, answer } = call;
        assert_eq!(
            answer.await.unwrap().map_err(|status| status.code()).err(),
            expected
        );
        drop(parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_broken_off_leaves_nothing() {
    let (service, _, path, tip) = begin("broken").await;
    let whole = pack(&path, &["main"]).await;
    let call = Call::begin(&service);
    call.grant(&service, &grant("broken", &[tip], HOLDS)).await;
    call.chunks(&whole[..whole.len() - 30]).await;
    taken_in(&service).await;
    while !git_runs(&service) {
        tokio::task::yield_now().await;
    }
    call.answer.abort();
    nothing_left(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_runs_out_ends_its_transfer_and_a_later_one_keeps_it() {
    let (service, repo, path, tip) = begin("expiry").await;
    let whole = pack(&path, &["main"]).await;
    let short = Duration::from_millis(300);
    let call = Call::begin(&service);
    call.grant(&service, &grant("expiry", &[tip], short)).await;
    call.chunks(&whole[..100]).await;
    assert_eq!(code(call.answer().await), Code::DeadlineExceeded);
    nothing_left(&service).await;

    let call = Call::begin(&service);
    call.grant(&service, &grant("expiry", &[tip], short)).await;
    call.chunks(&whole[..100]).await;
    call.grant(&service, &grant("expiry", &[tip], HOLDS)).await;
    tokio::time::sleep(short * 2).await;
    call.chunks(&whole[100..]).await;
    assert_eq!(call.end().await.unwrap().arrived, [tip.as_bytes()]);
    assert!(!service.missing(&repo, tip, false).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_on_its_way_keeps_its_pool_and_no_view() {
    for made_anew in [false, true] {
        let (service, repo, path, tip) = begin("going").await;
        let whole = pack(&path, &["main"]).await;
        let call = Call::begin(&service);
        call.grant(&service, &grant("going", &[tip], HOLDS)).await;
        call.chunks(&whole[..100]).await;
        taken_in(&service).await;
        let request = DeleteRequest {
            repository: Some((&repo).into()),
            ..DeleteRequest::default()
        };
        service.git.clone().delete(request.clone()).await.unwrap();
        assert_eq!(service.pools().len(), 1);
        if made_anew {
            service.create(&repo).await;
        }
        call.chunks(&whole[100..]).await;
        let ended = call.end().await;
        if made_anew {
            assert_eq!(ended.unwrap().arrived, [tip.as_bytes()]);
            assert!(!service.missing(&repo, tip, false).await);
            service.git.clone().delete(request).await.unwrap();
        } else {
            assert_eq!(code(ended), Code::NotFound);
        }
        while !service.pools().is_empty() || git_runs(&service) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = store(&service, &grant("going", &[tip], HOLDS), &whole).await;
        assert_eq!(code(refused), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_waits_for_its_turn_does_not_run_out() {
    let (service, repo, path, tip) = begin("busy").await;
    let whole = pack(&path, &["main"]).await;
    let lasting = grant("busy", &[tip], HOLDS);
    // All places for git.
    let mut others = Vec::new();
    for _ in 0..64 {
        let call = Call::begin(&service);
        call.grant(&service, &lasting).await;
        call.chunks(&whole[..100]).await;
        others.push(call);
    }
    while quarantines(&service) < others.len() {
        tokio::task::yield_now().await;
    }
    let short = Duration::from_secs(1);
    let mut waiting = Vec::new();
    for renewed in [true, false] {
        let call = Call::begin(&service);
        let first = grant("busy", &[tip], short);
        call.grant(&service, &first).await;
        for chunk in whole.chunks(100) {
            call.part(Part::Chunk(chunk.to_vec())).await;
        }
        // One that has run out before its turn, and what came after it.
        call.grant(&service, &first).await;
        if renewed {
            call.grant(&service, &lasting).await;
        }
        waiting.push(call);
    }
    while quarantines(&service) < others.len() + 2 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(short).await;
    assert!(waiting.iter().all(|call| !call.answer.is_finished()));
    for call in others {
        call.answer.abort();
    }
    // What nobody allows any more is not let in for having waited.
    let late = waiting.pop().unwrap();
    assert_eq!(code(late.answer().await), Code::DeadlineExceeded);
    let stored = waiting.pop().unwrap().answer().await.unwrap();
    assert_eq!(stored.arrived, [tip.as_bytes()]);
    assert!(!service.missing(&repo, tip, false).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_goes_from_one_identifiers_pool_to_anothers() {
    let (service, one, path, tip) = begin("one").await;
    let packed = pack(&path, &["main"]).await;
    let granted = grant("one", &[tip], HOLDS);
    store(&service, &granted, &packed).await.unwrap();
    let other = repo(2, "other");
    service.create(&other).await;
    let copy = |from: &str, to: &str, commit: Oid| {
        let request = CopyRequest {
            from: from.to_owned(),
            to: to.to_owned(),
            commit: commit.as_bytes().to_vec(),
        };
        let mut git = service.git.clone();
        async move {
            git.copy(request)
                .await
                .map(|answer| answer.into_inner().bytes)
        }
    };
    let whole = copy("one", "other", tip).await.unwrap();
    assert!(whole > 0);
    let name = format!("refs/nostr/{}", "ab".repeat(32));
    service.put_ref(&other, &name, tip, true).await.unwrap();
    git(&service.view(&other), &["fsck", "--strict"]).await;
    // What is there is not brought again.
    assert_eq!(copy("one", "other", tip).await.unwrap(), 0);
    let later = commit(&path, "more", "more").await;
    let packed = pack(&path, &["main", &format!("^{tip}")]).await;
    let granted = grant("one", &[later], HOLDS);
    store(&service, &granted, &packed).await.unwrap();
    service.put_ref(&one, &name, later, true).await.unwrap();
    let rest = copy("one", "other", later).await.unwrap();
    assert!(0 < rest && rest < whole, "{rest} of {whole}");
    git(
        &service.view(&other),
        &["cat-file", "-e", &later.to_string()],
    )
    .await;
    // Neither from where it is not, nor to where nobody wants it.
    let absent = Oid::from_bytes([9; 20]);
    let refused = copy("one", "other", absent).await;
    assert_eq!(code(refused), Code::FailedPrecondition);
    assert_eq!(code(copy("one", "nobodys", tip).await), Code::NotFound);
    assert_eq!(quarantines(&service), 0);
}
