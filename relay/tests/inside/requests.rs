//! Requests to delete, as they age; requests to vanish.

use nostr::Filter;

use super::*;

fn issue(seed: u8, at: u64, about: &RepoId) -> Event {
    let tags = [tag(&["a", &about.coordinate()])];
    sign(seed, Kind::Custom(1621), at, &tags)
}

fn delete(seed: u8, at: u64, event: &Event) -> Event {
    sign(
        seed,
        nip34::DELETION,
        at,
        &[tag(&["e", &event.id.to_hex()])],
    )
}

fn vanish(seed: u8, at: u64, relay: &str) -> Event {
    sign(seed, nip34::VANISH, at, &[tag(&["relay", relay])])
}

const DELETED: &str = "blocked: deleted by its author";
const KNOWN: &str = "duplicate: already have this event";

#[tokio::test]
async fn a_request_without_effect_is_served_a_month_and_a_gate_half_a_year() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let by_id = delete(5, 10, &issue(5, 5, &one));
    let address = format!("30617:{}:y", key_of(5).to_hex());
    let by_address = sign(5, nip34::DELETION, 10, &[tag(&["a", &address])]);
    for request in [&by_id, &by_address] {
        inside.served(request).await;
    }
    inside.passes(29 * DAY).await;
    assert!(inside.serves(&by_id).await);
    inside.passes(DAY).await;
    assert!(!inside.serves(&by_id).await && !inside.serves(&by_address).await);
    // Sent again it is not served anew, by whichever way it comes.
    for verdict in [
        inside.admit(&by_id).await,
        inside.admit_synced(&by_id).await,
    ] {
        assert_eq!(verdict, Verdict::accepted(KNOWN));
    }
    assert!(!inside.serves(&by_id).await);
    inside.passes(180 * DAY).await;
    // Nothing is left of it: it begins anew.
    inside.served(&issue(5, 5, &one)).await;
    inside.served(&by_id).await;
    assert!(!inside.serves(&issue(5, 5, &one)).await);
}

#[tokio::test]
async fn a_gate_that_keeps_something_out_is_served_again_for_a_year() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let target = issue(5, 5, &one);
    let request = delete(5, 10, &target);
    inside.served(&request).await;
    let address = format!("30617:{}:y", key_of(5).to_hex());
    let by_address = sign(5, nip34::DELETION, 10, &[tag(&["a", &address])]);
    inside.served(&by_address).await;
    inside.passes(100 * DAY).await;
    assert!(!inside.serves(&request).await);
    assert_eq!(inside.admit(&target).await, Verdict::rejected(DELETED));
    assert!(inside.serves(&request).await);
    let old = announcement(5, "y", 10, &[]);
    assert_eq!(inside.admit(&old).await, Verdict::rejected(DELETED));
    assert!(inside.serves(&by_address).await);
    inside.waits(&announcement(5, "y", 11, &[])).await;
    inside.passes(364 * DAY).await;
    assert_eq!(
        inside.admit_synced(&target).await,
        Verdict::rejected(DELETED)
    );
    inside.passes(364 * DAY).await;
    assert!(inside.serves(&request).await && !inside.serves(&by_address).await);
    inside.passes(DAY).await;
    assert!(!inside.serves(&request).await);
    inside.served(&target).await;
}

#[tokio::test]
async fn one_that_deleted_something_is_served_for_a_year() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let target = issue(5, 5, &one);
    inside.served(&target).await;
    let request = delete(5, 10, &target);
    inside.served(&request).await;
    inside.passes(364 * DAY).await;
    assert!(inside.serves(&request).await);
    inside.passes(DAY).await;
    assert!(!inside.serves(&request).await);
}

#[tokio::test]
async fn requests_of_before_came_when_they_are_first_seen() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let request = delete(5, 10, &issue(5, 5, &one));
    inside.release.store.save(&request).await.unwrap();
    let Release {
        requests, store, ..
    } = &inside.release;
    requests.adopt(store).await.unwrap();
    inside.passes(29 * DAY).await;
    requests.adopt(store).await.unwrap();
    inside.passes(DAY).await;
    assert!(!inside.serves(&request).await);
}

#[tokio::test]
async fn a_request_half_carried_out_is_finished_at_the_start() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let target = issue(5, 5, &one);
    inside.served(&target).await;
    let request = delete(5, 10, &target);
    // Killed behind the first step, and behind the second.
    let came = inside.release.requests.came(nip34::id_of(&request));
    came.await.unwrap();
    inside.release.store.save(&request).await.unwrap();
    inside.door.resume_requests().await;
    assert!(!inside.serves(&target).await && inside.serves(&request).await);
    let never_stored = delete(6, 10, &target);
    let came = inside.release.requests.came(nip34::id_of(&never_stored));
    came.await.unwrap();
    inside.door.resume_requests().await;
    assert!(inside.release.requests.pending().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_author_vanishes_with_everything() {
    let inside = Inside::new().await;
    let own = inside.active(5, "own", &[]).await;
    let other = inside.active(1, "x", &[]).await;
    let on_own = issue(6, 20, &own);
    let comment = sign(
        5,
        Kind::Custom(1111),
        21,
        &[tag(&["e", &on_own.id.to_hex()])],
    );
    let on_other = issue(5, 22, &other);
    let request = pull_request(5, 23, &oid(1).to_hex(), &other);
    let void = delete(5, 24, &issue(6, 1, &other));
    let later = issue(5, 101, &other);
    for event in [&on_own, &comment, &on_other, &request, &void, &later] {
        inside.served(event).await;
    }
    inside.waits(&announcement(5, "waiting", 25, &[])).await;
    inside
        .waits(&pull_request(5, 26, &oid(9).to_hex(), &other))
        .await;
    let elsewhere = vanish(5, 100, "wss://other.example");
    assert!(!inside.admit(&elsewhere).await.ok);
    assert!(inside.serves(&on_other).await);

    let asked = vanish(5, 100, "wss://GRASP.example/");
    inside.served(&asked).await;
    let author = Filter::new().author(keys(5).public_key());
    let left = inside.release.store.query(author).await.unwrap();
    let mut left: Vec<u64> = left.iter().map(|e| e.created_at.as_secs()).collect();
    left.sort_unstable();
    assert_eq!(left, [100, 101]);
    assert!(!inside.serves(&on_own).await);
    assert!(!inside.git.has(&own) && inside.git.refs_of(&other).len() == 1);
    assert!(inside.release.purgatory.announcements.is_empty());
    assert!(inside.release.purgatory.pull_requests.is_empty());
    // They stay out, whoever brings them.
    for gone in [&comment, &on_other, &void, &vanish(5, 99, "ALL_RELAYS")] {
        assert_eq!(inside.admit(gone).await, Verdict::rejected(DELETED));
        assert_eq!(inside.admit_synced(gone).await, Verdict::rejected(DELETED));
    }
    assert_eq!(inside.admit(&asked).await, Verdict::accepted(KNOWN));
    // Nothing about it ages, and nothing deletes it.
    inside.served(&delete(5, 102, &asked)).await;
    inside.passes(10 * 365 * DAY).await;
    assert!(inside.serves(&asked).await);
    assert_eq!(inside.admit(&on_other).await, Verdict::rejected(DELETED));
}

#[tokio::test]
async fn what_others_wrote_on_what_vanished_comes_back_and_not_the_authors() {
    let inside = Inside::new().await;
    let own = inside.active(5, "own", &[]).await;
    let theirs = issue(6, 20, &own);
    let mine = sign(
        5,
        Kind::Custom(1111),
        21,
        &[tag(&["e", &theirs.id.to_hex()])],
    );
    inside.served(&theirs).await;
    inside.served(&mine).await;
    inside.served(&vanish(5, 100, "ALL_RELAYS")).await;
    assert!(!inside.serves(&theirs).await);
    inside.waits(&announcement(5, "own", 101, &[])).await;
    inside.served(&state(5, "own", 101, &[("main", 1)])).await;
    grasp_relay::holding::give_back::go_on(&inside.release, &inside.serial, &inside.curation).await;
    assert!(inside.serves(&theirs).await && !inside.serves(&mine).await);
    assert!(inside.release.holding.is_empty());
}

#[tokio::test]
async fn a_large_author_vanishes_page_by_page() {
    let inside = Inside::new().await;
    let other = inside.active(1, "x", &[]).await;
    for n in 0..450 {
        // Many of one second, so that pages cannot go by time.
        let event = sign(
            5,
            Kind::Custom(1621),
            20 + n / 300,
            &[
                tag(&["a", &other.coordinate()]),
                tag(&["n", &n.to_string()]),
            ],
        );
        inside.release.store.save(&event).await.unwrap();
    }
    inside.served(&vanish(5, 100, "ALL_RELAYS")).await;
    let author = Filter::new().author(keys(5).public_key());
    assert_eq!(inside.release.store.query(author).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_an_address_deletes_it_keeps_out_and_any_other_spelling_does_neither() {
    let inside = Inside::new().await;
    let plain = sign(3, nip34::GRASP_LIST, 10, &[]);
    let named = sign(4, nip34::GRASP_LIST, 10, &[tag(&["d", "x"])]);
    inside.served(&plain).await;
    inside.served(&named).await;
    let (one, other) = (key_of(3).to_hex(), key_of(4).to_hex());
    let spellings = [
        (3, &plain, format!("10317:{one}"), false),
        (3, &plain, format!("010317:{one}:"), false),
        (3, &plain, format!("10317:{one}:x"), false),
        (3, &plain, format!("10317:{one}:"), true),
        (4, &named, format!("10317:{other}:"), false),
        (4, &named, format!("10317:{other}:x"), true),
    ];
    for (at, (seed, list, address, deletes)) in (20..).zip(spellings) {
        let request = sign(seed, nip34::DELETION, at, &[tag(&["a", &address])]);
        inside.served(&request).await;
        assert_eq!(!inside.serves(list).await, deletes, "{address}");
        assert_eq!(!inside.admit(list).await.ok, deletes, "{address}");
    }
}

#[tokio::test]
async fn a_kill_while_something_is_deleted_loses_no_effect() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let target = issue(5, 5, &one);
    inside.served(&target).await;
    let request = delete(5, 10, &target);
    let mut judging = Box::pin(inside.admit(&request));
    // Killed at the first step behind which the target is gone.
    while inside.serves(&target).await {
        let _ = futures::poll!(&mut judging);
    }
    drop(judging);
    inside.door.resume_requests().await;
    inside.passes(31 * DAY).await;
    assert!(inside.serves(&request).await);
}
