//! What goes with an announcement, is held, and comes back with the next one.

use futures::StreamExt;
use grasp_proto::contract::relay::{self as wire, admin_server::Admin};
use grasp_relay::{
    grpc::admin::AdminService,
    holding::{Reason, expiry, give_back},
    policy::deletion,
};

use super::*;

/// An event of some kind that refers to addresses and to events.
pub fn about(seed: u8, kind: u16, at: u64, addresses: &[&RepoId], events: &[&Event]) -> Event {
    let addresses = addresses.iter().map(|repo| tag(&["a", &repo.coordinate()]));
    let events = events.iter().map(|event| tag(&["e", &event.id.to_hex()]));
    let tags: Vec<_> = addresses.chain(events).collect();
    sign(seed, Kind::Custom(kind), at, &tags)
}

pub fn delete_address(seed: u8, at: u64, repo: &RepoId) -> Event {
    sign(
        seed,
        nip34::DELETION,
        at,
        &[tag(&["a", &repo.coordinate()])],
    )
}

pub fn delete(seed: u8, at: u64, event: &Event) -> Event {
    sign(
        seed,
        nip34::DELETION,
        at,
        &[tag(&["e", &event.id.to_hex()])],
    )
}

/// What one owner's repository has around it.
struct Around {
    /// Goes with it.
    own: Vec<Event>,
    /// Stays for another's sake.
    shared: Vec<Event>,
}

impl Inside {
    async fn surround(&self, one: &RepoId, other: &RepoId) -> Around {
        let issue = about(5, 1621, 20, &[one], &[]);
        let comment = about(6, 1111, 21, &[], &[&issue]);
        let answer = about(7, 1111, 22, &[], &[&comment]);
        let reaction = about(8, 7, 23, &[], &[&answer]);
        let closed = about(1, 1632, 24, &[], &[&issue]);
        let request = pull_request(5, 25, &oid(1).to_hex(), one);
        let update = sign(
            5,
            nip34::PULL_REQUEST_UPDATE,
            26,
            &[
                tag(&["c", &oid(1).to_hex()]),
                tag(&["E", &request.id.to_hex()]),
            ],
        );
        let both = about(5, 1621, 27, &[one, other], &[]);
        let on_both = about(6, 1111, 28, &[one], &[&both]);
        let beside = about(6, 1111, 29, &[one], &[&about(5, 1621, 30, &[other], &[])]);
        let theirs = about(5, 1621, 30, &[other], &[]);
        let own = vec![issue, comment, answer, reaction, closed, request, update];
        let shared = vec![both, on_both, theirs, beside];
        for event in own.iter().chain(&shared) {
            self.served(event).await;
        }
        Around { own, shared }
    }

    async fn served_of(&self, events: &[Event]) -> usize {
        let mut count = 0;
        for event in events {
            count += usize::from(self.serves(event).await);
        }
        count
    }

    async fn give_back(&self) {
        give_back::go_on(&self.release, &self.serial, &self.curation).await;
    }
}

#[tokio::test]
async fn just_what_leans_on_it_goes_and_comes_back_with_the_next_announcement() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let other = inside.active(2, "x", &[]).await;
    let Around { own, shared } = inside.surround(&one, &other).await;
    let own_state = state(1, "x", 10, &[("main", 1)]);
    let refs = inside.git.refs_of(&one);
    assert_eq!(refs.len(), 3);
    for round in 0..2 {
        let at = 100 + round * 10;
        inside.served(&delete_address(1, at, &one)).await;
        assert_eq!(inside.served_of(&own).await, 0);
        assert_eq!(inside.served_of(&shared).await, shared.len());
        assert!(!inside.serves(&own_state).await);
        assert!(!inside.git.has(&one) && inside.git.has_retired(&one));
        // Not again what was there before, and served at once: its refs are what it says.
        let before = announcement(1, "x", 10, &[]);
        assert!(!inside.admit(&before).await.ok);
        inside.served(&announcement(1, "x", at + 1, &[])).await;
        inside.give_back().await;
        assert_eq!(inside.served_of(&own).await, own.len());
        assert!(inside.serves(&own_state).await);
        assert_eq!(inside.git.refs_of(&one), refs);
        assert!(inside.release.holding.is_empty());
    }
}

#[tokio::test]
async fn what_was_deleted_meanwhile_stays_away() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    let (kept, gone) = (
        about(6, 1111, 21, &[], &[&issue]),
        about(7, 1111, 22, &[], &[&issue]),
    );
    for event in [&issue, &kept, &gone] {
        inside.served(event).await;
    }
    inside.served(&delete_address(1, 100, &one)).await;
    inside.served(&delete(7, 101, &gone)).await;
    inside.served(&delete(6, 101, &gone)).await;
    inside.served(&announcement(1, "x", 102, &[])).await;
    inside.give_back().await;
    assert!(inside.serves(&issue).await && inside.serves(&kept).await);
    assert!(!inside.serves(&gone).await);
    assert!(inside.release.holding.is_empty());
}

#[tokio::test]
async fn what_two_repositories_held_together_comes_back_with_either() {
    for (first, second) in [(1, 2), (2, 1)] {
        let inside = Inside::new().await;
        let repos = [
            inside.active(1, "x", &[]).await,
            inside.active(2, "y", &[]).await,
        ];
        let both = about(5, 1621, 20, &[&repos[0], &repos[1]], &[]);
        let comment = about(6, 1111, 21, &[], &[&both]);
        inside.served(&both).await;
        inside.served(&comment).await;
        let of = |seed: u8| &repos[usize::from(seed) - 1];
        inside.served(&delete_address(first, 100, of(first))).await;
        assert!(inside.serves(&comment).await);
        inside
            .served(&delete_address(second, 100, of(second)))
            .await;
        assert!(!inside.serves(&both).await && !inside.serves(&comment).await);
        // The one that was taken out of service before it fell.
        let name = of(first).identifier.to_string();
        inside.served(&announcement(first, &name, 101, &[])).await;
        inside.give_back().await;
        assert!(inside.serves(&both).await && inside.serves(&comment).await);
    }
}

#[tokio::test]
async fn a_hold_gets_what_may_come_back_with_it_and_nothing_else_and_not_for_everybody() {
    let inside = Inside::new().await;
    let mut others = Vec::new();
    for n in 0..40 {
        others.push(inside.active(1, &format!("a{n}"), &[]).await);
    }
    let one = inside.active(2, "b", &[]).await;
    let all: Vec<&RepoId> = others.iter().chain([&one]).collect();
    let bridge = about(5, 1621, 20, &all, &[]);
    let on_bridge = about(6, 1111, 21, &[], &[&bridge]);
    let beside = about(5, 1621, 22, &[&one], &[]);
    for event in [&bridge, &on_bridge, &beside] {
        inside.served(event).await;
    }
    for other in &others {
        inside.served(&delete_address(1, 100, other)).await;
    }
    inside.served(&delete_address(2, 100, &one)).await;
    let holding = &inside.release.holding;
    let [bridge_id, on_bridge_id, beside_id] = [&bridge, &on_bridge, &beside].map(nip34::id_of);
    let mut holds = 0;
    for other in &others {
        let held = holding.held_of(other).await.unwrap();
        assert!(!held.contains(&beside_id));
        assert_eq!(held.contains(&bridge_id), held.contains(&on_bridge_id));
        holds += u32::from(held.contains(&bridge_id));
    }
    assert_eq!(holds, 16);
    // The first of them has it, and brings it back.
    let first = others.iter().min().unwrap();
    inside
        .served(&announcement(1, first.identifier.as_str(), 101, &[]))
        .await;
    inside.give_back().await;
    assert!(inside.serves(&bridge).await && inside.serves(&on_bridge).await);
    assert!(!inside.serves(&beside).await);
}

#[tokio::test]
async fn an_announcement_served_for_its_sake_goes_with_it_and_what_names_both() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[2]).await;
    let elsewhere = answer(2, "x", 11, &[1]);
    inside.served(&elsewhere).await;
    let named = about(5, 1621, 20, &[&one, &repo(2, "x")], &[]);
    let by_maintainer = state(2, "x", 12, &[("main", 1)]);
    inside.served(&named).await;
    inside.served(&by_maintainer).await;
    inside.served(&delete_address(1, 100, &one)).await;
    for gone in [&elsewhere, &named, &by_maintainer] {
        assert!(!inside.serves(gone).await);
    }
    inside.served(&announcement(1, "x", 101, &[2])).await;
    inside.give_back().await;
    for back in [&elsewhere, &named, &by_maintainer] {
        assert!(inside.serves(back).await);
    }
    assert!(inside.release.holding.is_empty());
}

#[tokio::test]
async fn threads_of_thousands_fall_and_come_back_whole() {
    const COMMENTS: u64 = 1_200;
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let root = about(5, 1621, 20, &[&one], &[]);
    inside.served(&root).await;
    let mut all = vec![root];
    // A chain, so that each is found by the one before it only.
    for n in 0..COMMENTS {
        let next = about(6, 1111, 21 + n, &[], &[&all[all.len() - 1]]);
        inside.release.store.save(&next).await.unwrap();
        all.push(next);
    }
    inside.served(&delete_address(1, 9_000, &one)).await;
    assert_eq!(inside.served_of(&all).await, 0);
    inside.served(&announcement(1, "x", 9_001, &[])).await;
    inside.give_back().await;
    assert_eq!(inside.served_of(&all).await, all.len());
    assert!(inside.release.holding.is_empty());
}

#[tokio::test]
async fn what_is_held_for_long_enough_is_thrown_away() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    inside.served(&issue).await;
    inside.served(&delete_address(1, 100, &one)).await;
    inside.passes(89 * DAY).await;
    assert!(inside.release.holding.holds(&one));
    inside.clock.advance(DAY);
    inside.git.goes_away(true);
    expiry::sweep(&inside.release, &inside.serial).await;
    assert!(inside.git.has_retired(&one) && inside.release.holding.holds(&one));
    inside.git.goes_away(false);
    inside.passes(Duration::ZERO).await;
    assert!(!inside.git.has_retired(&one) && inside.release.holding.is_empty());
    let held = inside.release.holding.event(&nip34::id_of(&issue)).await;
    assert_eq!(held.unwrap(), None);
    inside.waits(&announcement(1, "x", 101, &[])).await;
}

#[tokio::test]
async fn with_gitd_away_it_is_held_and_comes_back_all_the_same() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    inside.served(&issue).await;
    inside.git.goes_away(true);
    inside.served(&delete_address(1, 100, &one)).await;
    assert!(!inside.serves(&issue).await && inside.git.has(&one));
    inside.waits(&announcement(1, "x", 101, &[])).await;
    inside.git.goes_away(false);
    inside.try_unfinished().await;
    inside.give_back().await;
    assert!(inside.serves(&issue).await && inside.git.has(&one));
    assert!(inside.serves(&announcement(1, "x", 101, &[])).await);
    assert!(inside.release.holding.is_empty());
}

#[tokio::test]
async fn one_announced_again_that_waits_in_vain_is_held_on() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    // No state is left that the new one could be served by.
    inside
        .served(&delete(1, 50, &state(1, "x", 10, &[("main", 1)])))
        .await;
    inside.served(&delete_address(1, 100, &one)).await;
    inside.waits(&announcement(1, "x", 101, &[])).await;
    assert!(inside.git.has(&one) && inside.git.refs_of(&one).is_empty());
    inside.passes(31 * MINUTE).await;
    assert!(inside.git.has_retired(&one) && !inside.git.has(&one));
    assert!(inside.release.holding.holds(&one));
}

#[tokio::test]
async fn what_a_kill_left_half_taken_is_finished_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let git: Arc<StandIn> = StandIn::default().into();
    let store = Store::open(Backend::Memory, Path::new("")).await.unwrap();
    let (journal, _) = Journal::open(&directory.path().join("one")).unwrap();
    let before = Inside::over(store.clone(), journal, &[], git.clone()).await;
    let one = before.active(1, "x", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    let comment = about(6, 1111, 21, &[], &[&issue]);
    before.served(&issue).await;
    before.served(&comment).await;
    let announced = announcement(1, "x", 10, &[]);
    // Killed behind the first step, and behind the first event that went.
    for killed_later in [false, true] {
        let begun = before
            .release
            .holding
            .begin(&one, &announced, Reason::Deleted);
        begun.await.unwrap();
        if killed_later {
            let others = std::collections::HashMap::new();
            let events = [issue.clone(), comment.clone()];
            let falls = before
                .release
                .holding
                .falls(&one, &others, &events, |_| true);
            falls.await.unwrap();
            store.remove([nip34::id_of(&issue)]).await.unwrap();
        }
        let copy = directory.path().join(format!("copy-{killed_later}"));
        std::fs::create_dir(&copy).unwrap();
        let from = directory.path().join("one/data.mdb");
        std::fs::copy(from, copy.join("data.mdb")).unwrap();
        let (journal, records) = Journal::open(&copy).unwrap();
        let after = Inside::over(store.clone(), journal, &records, git.clone()).await;
        after.release.purgatory.restore(records);
        let rules = after.curation.rules();
        let load = grasp_relay::withhold::load_served(
            &after.release.store,
            &after.release.repositories,
            &rules,
        );
        load.await.unwrap();
        sweep::reconcile(&after.release).await.unwrap();
        assert!(!after.serves(&issue).await && !after.serves(&comment).await);
        assert!(!after.serves(&announced).await && git.has_retired(&one));
        let again = announcement(1, "x", if killed_later { 12 } else { 11 }, &[]);
        after.served(&again).await;
        after.give_back().await;
        assert!(after.serves(&issue).await && after.serves(&comment).await);
        assert!(after.release.holding.is_empty());
        // As it was, for the second kill.
        store.remove([nip34::id_of(&again)]).await.unwrap();
        store.save(&announced).await.unwrap();
    }
}

#[tokio::test]
async fn refs_of_a_deleted_pull_request_go_when_gitd_is_back() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let request = pull_request(5, 25, &oid(1).to_hex(), &one);
    inside.served(&request).await;
    assert_eq!(inside.git.refs_of(&one).len(), 2);
    inside.git.goes_away(true);
    inside.served(&delete(5, 26, &request)).await;
    inside.git.goes_away(false);
    assert_eq!(inside.git.refs_of(&one).len(), 2);
    inside.try_unfinished().await;
    assert_eq!(inside.git.refs_of(&one).len(), 1);
}

#[tokio::test]
async fn refs_follow_the_latest_state_that_is_left_when_gitd_is_back() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[2]).await;
    inside.served(&answer(2, "x", 10, &[1])).await;
    let later = state(2, "x", 20, &[("main", 1), ("more", 1)]);
    inside.served(&later).await;
    assert_eq!(inside.git.refs_of(&one).len(), 2);
    inside.git.goes_away(true);
    inside.served(&delete(2, 21, &later)).await;
    inside.git.goes_away(false);
    inside.try_unfinished().await;
    assert_eq!(inside.git.refs_of(&one).len(), 1);
}

fn admin(inside: &Inside) -> AdminService {
    AdminService::new(
        inside.release.clone(),
        inside.serial.clone(),
        inside.hunter.hunt.clone(),
        inside.curation.clone(),
    )
    .with_door(Arc::new(inside.door.clone()))
}

async fn restore(
    admin: &AdminService,
    repo: &RepoId,
    dry_run: bool,
) -> Result<wire::RestoreResponse, tonic::Status> {
    let request = wire::RestoreRequest {
        repository: Some(repo.into()),
        since_millis: 0,
        dry_run,
    };
    let answer = admin.restore(tonic::Request::new(request)).await;
    answer.map(tonic::Response::into_inner)
}

async fn eject(
    admin: &AdminService,
    repo: &RepoId,
    since_millis: u64,
    dry_run: bool,
) -> Result<usize, tonic::Code> {
    let request = wire::EjectRequest {
        repository: Some(repo.into()),
        since_millis,
        dry_run,
    };
    let answer = admin.eject(tonic::Request::new(request)).await;
    let answer = answer.map(|answer| answer.into_inner().held.len());
    answer.map_err(|status| status.code())
}

async fn listed(admin: &AdminService, identifier: &str) -> Vec<wire::Held> {
    let request = wire::HoldingRequest {
        owner: Vec::new(),
        identifier: identifier.to_owned(),
    };
    let mut stream = admin
        .holding(tonic::Request::new(request))
        .await
        .unwrap()
        .into_inner();
    let mut found = Vec::new();
    while let Some(batch) = stream.next().await {
        found.extend(batch.unwrap().held);
    }
    found
}

#[tokio::test]
async fn an_operator_lists_what_is_held_and_brings_it_back() {
    let inside = Inside::new().await;
    let (moved, deleted) = (
        inside.active(1, "moved", &[]).await,
        inside.active(2, "deleted", &[]).await,
    );
    let (on_moved, on_deleted) = (
        about(5, 1621, 20, &[&moved], &[]),
        about(5, 1621, 20, &[&deleted], &[]),
    );
    inside.served(&on_moved).await;
    inside.served(&on_deleted).await;
    assert!(
        !inside
            .admit(&announcement_elsewhere(1, "moved", 30))
            .await
            .ok
    );
    inside.clock.advance(MINUTE);
    inside.served(&delete_address(2, 100, &deleted)).await;
    let admin = admin(&inside);
    let all = listed(&admin, "").await;
    let reasons: Vec<_> = all.iter().map(wire::Held::reason).collect();
    assert_eq!(
        reasons,
        [wire::HeldReason::MovedAway, wire::HeldReason::Deleted]
    );
    // The announcement, its state, the issue.
    assert!(
        all.iter()
            .all(|held| held.events == 3 && !held.incarnation.is_empty())
    );
    assert_eq!(listed(&admin, "deleted").await.len(), 1);

    let refused = restore(&admin, &deleted, false).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("request to delete"), "{refused}");
    let unknown = restore(&admin, &repo(3, "x"), false).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);

    let before = inside.git.calls();
    let would = restore(&admin, &moved, true).await.unwrap();
    assert_eq!(
        (would.events_back, would.events_left, would.served),
        (3, 0, true)
    );
    // It has looked how much it takes, and no more.
    assert!(!inside.serves(&on_moved).await && inside.git.calls() == before + 1);
    let did = restore(&admin, &moved, false).await.unwrap();
    assert_eq!((did.events_back, did.events_left, did.served), (3, 0, true));
    assert!(inside.serves(&on_moved).await && inside.git.has(&moved));
    assert!(inside.serves(&announcement(1, "moved", 10, &[])).await);
    assert_eq!(listed(&admin, "").await.len(), 1);
}

#[tokio::test]
async fn an_operator_throws_away_what_is_held() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    inside.served(&delete_address(1, 100, &one)).await;
    let admin = admin(&inside);
    let since = listed(&admin, "").await[0].since_millis;
    assert_eq!(
        eject(&admin, &one, since + 1, false).await,
        Err(tonic::Code::NotFound)
    );
    assert_eq!(eject(&admin, &one, since, true).await, Ok(1));
    assert!(inside.git.has_retired(&one));
    inside.git.goes_away(true);
    assert_eq!(
        eject(&admin, &one, 0, false).await,
        Err(tonic::Code::Unavailable)
    );
    assert!(inside.release.holding.holds(&one));
    inside.git.goes_away(false);
    assert_eq!(eject(&admin, &one, 0, false).await, Ok(1));
    assert!(!inside.git.has_retired(&one) && inside.release.holding.is_empty());
    assert_eq!(
        eject(&admin, &one, 0, false).await,
        Err(tonic::Code::NotFound)
    );
}

#[tokio::test]
async fn what_was_retired_before_there_were_holds_is_held_from_now_on() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    inside.git.retire(&one).await.unwrap();
    for _ in 0..2 {
        expiry::adopt_retired(&inside.release).await.unwrap();
        assert_eq!(inside.release.holding.incarnations(&one).len(), 1);
    }
    inside.passes(KEEPS_FOR).await;
    assert!(!inside.git.has_retired(&one));
}

#[test]
fn requests_are_not_deleted() {
    assert!(!deletion::can_be_deleted(nip34::DELETION));
    assert!(!deletion::can_be_deleted(nip34::VANISH));
    assert!(deletion::can_be_deleted(nip34::STATE));
}
