//! Things that happen in an unlucky order: crossings, ends in the middle, names taken again.

use grasp_relay::{holding::Reason, withhold};

use super::{holding::delete, *};

#[tokio::test]
async fn what_was_to_go_and_is_announced_again_stays() {
    let inside = Inside::new().await;
    inside.waits(&announcement(1, "x", 10, &[])).await;
    inside.git.world().uploading.insert(repo(1, "x"));
    assert!(!inside.admit(&announcement_elsewhere(1, "x", 11)).await.ok);
    inside.waits(&announcement(1, "x", 12, &[])).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    inside.served(&state(1, "x", 12, &[("main", 1)])).await;
    inside.git.world().uploading.clear();
    inside.try_unfinished().await;
    assert!(inside.git.has(repo(1, "x")));
}

#[tokio::test]
async fn deleting_an_older_version_elsewhere_leaves_the_waiting_one() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[2]).await;
    let old = announcement_elsewhere(2, "x", 20);
    inside.served(&old).await;
    let new = announcement(2, "x", 21, &[]);
    inside.waits(&new).await;
    let request = sign(2, nip34::DELETION, 40, &[tag(&["e", &old.id.to_hex()])]);
    inside.served(&request).await;
    assert!(inside.holds(&new));
    inside.passes(31 * MINUTE).await;
    inside.passes(2 * DAY).await;
    assert!(!inside.holds(&new));
}

#[tokio::test]
async fn a_maintainer_who_moves_away_takes_nobody_along() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[2]).await;
    inside.served(&announcement(2, "x", 10, &[1, 3])).await;
    inside.served(&answer(3, "x", 10, &[2])).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    let third = state(3, "x", 30, &[("main", 2)]);
    inside.served(&third).await;
    let main = || {
        inside
            .git
            .refs_of(repo(1, "x"))
            .get(&branch("main"))
            .copied()
    };
    assert_eq!(main(), Some(oid(2)));
    inside.served(&answer(2, "x", 40, &[1, 3])).await;
    assert!(inside.serves(&third).await);
    assert_eq!(main(), Some(oid(2)));
    assert!(!inside.git.has(repo(2, "x")));
}

#[tokio::test]
async fn refs_follow_when_maintainers_are_named_and_dropped() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    inside.active(2, "x", &[1]).await;
    inside.git.bring(&identifier("x"), &[oid(2), oid(3)]);
    inside.served(&state(2, "x", 30, &[("main", 2)])).await;
    let main = || {
        inside
            .git
            .refs_of(repo(1, "x"))
            .get(&branch("main"))
            .copied()
    };
    inside.served(&announcement(1, "x", 40, &[2])).await;
    assert_eq!(main(), Some(oid(2)));
    // Who is dropped moves nothing back, nor does what is older.
    inside.served(&announcement(1, "x", 50, &[])).await;
    inside.served(&state(1, "x", 29, &[("main", 3)])).await;
    assert_eq!(main(), Some(oid(2)));
    inside.served(&state(1, "x", 60, &[("main", 1)])).await;
    assert_eq!(main(), Some(oid(1)));
}

#[tokio::test]
async fn the_same_event_by_two_connections_at_once_is_accepted_twice() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    for event in [
        announcement(1, "x", 40, &[]),
        state(1, "x", 40, &[("main", 1)]),
        announcement(2, "x", 40, &[]),
    ] {
        let (first, second) = tokio::join!(inside.admit(&event), inside.admit(&event));
        assert!(first.ok && second.ok, "{first:?} {second:?}");
    }
}

#[tokio::test]
async fn long_identifiers_that_begin_alike_take_no_place_of_each_other() {
    let data = tempfile::tempdir().unwrap();
    let store = Store::open(Backend::Lmdb, data.path()).await.unwrap();
    let inside = Inside::over(store, Journal::none(), &[], Arc::default()).await;
    let (one, other) = (
        format!("{}1", "x".repeat(200)),
        format!("{}2", "x".repeat(200)),
    );
    inside.active(1, &one, &[]).await;
    let refused = inside.admit(&announcement(1, &other, 20, &[])).await;
    assert!(refused.message.contains("182 bytes"), "{refused:?}");
    assert!(inside.serves(&announcement(1, &one, 10, &[])).await);
    inside.active(2, &other, &[]).await;
}

#[tokio::test]
async fn an_end_in_the_middle_of_a_removal_is_gone_on_with() {
    let inside = Inside::new().await;
    let gone = inside.active(1, "x", &[]).await;
    let about = sign(
        5,
        Kind::Custom(1621),
        20,
        &[tag(&["a", &gone.coordinate()])],
    );
    inside.served(&about).await;
    let announced = announcement(1, "x", 10, &[]);
    let holding = &inside.release.holding;
    let begun = holding.begin(&gone, &announced, Reason::Deleted);
    begun.await.unwrap();
    inside.release.purgatory.doom(&gone, true).await.unwrap();
    // Killed here, and back.
    sweep::reconcile(&inside.release).await.unwrap();
    sweep::try_everything(&inside.release, &inside.serial).await;
    assert!(!inside.serves(&announcement(1, "x", 10, &[])).await);
    assert!(!inside.serves(&about).await && !inside.git.has(&gone));
}

#[tokio::test]
async fn a_placeholder_that_outlived_its_event_harms_nothing() {
    let inside = Inside::new().await;
    let to = inside.active(1, "x", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(7)]);
    let request = pull_request(5, 20, &oid(7).to_hex(), &to);
    inside.served(&request).await;
    let id = nip34::id_of(&request);
    // As the journal has it if the process ended before the entry was forgotten.
    let (requests, now) = (&inside.release.purgatory.pull_requests, inside.clock.now());
    requests.pushed(id, &(&to).into(), oid(7), now);
    inside.passes(31 * MINUTE).await;
    assert!(inside.git.refs_of(&to).contains_key(&RefName::nostr(&id)));
    assert!(inside.release.purgatory.pull_requests.is_empty());
}

#[tokio::test]
async fn a_deleted_pull_request_takes_its_refs_along() {
    let inside = Inside::new().await;
    let to = inside.active(1, "x", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(7)]);
    let request = pull_request(5, 20, &oid(7).to_hex(), &to);
    inside.served(&request).await;
    let deletion = sign(5, nip34::DELETION, 30, &[tag(&["e", &request.id.to_hex()])]);
    inside.served(&deletion).await;
    assert!(!inside.serves(&request).await);
    assert_eq!(inside.git.refs_of(&to).len(), 1);
}

#[tokio::test]
async fn an_event_and_its_deletion_that_cross_end_with_the_event_gone() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    for at in 20..60 {
        let event = state(1, "x", at, &[("main", 2)]);
        let request = sign(1, nip34::DELETION, 100, &[tag(&["e", &event.id.to_hex()])]);
        let (_, _) = tokio::join!(inside.admit(&event), inside.admit(&request));
        assert!(!inside.holds(&event) && !inside.serves(&event).await);
    }
}

#[tokio::test]
async fn an_event_is_not_served_where_no_ref_could_be_moved() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    inside.git.world().broken.insert(repo);
    let event = state(1, "x", 20, &[("main", 2)]);
    inside.waits(&event).await;
    assert!(!inside.serves(&event).await && inside.holds(&event));
}

#[tokio::test]
async fn clocks_that_were_reset_survive_the_process() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let git: Arc<StandIn> = Arc::default();
    let memory = || Store::open(Backend::Memory, Path::new(""));
    let (journal, _) = Journal::open(data.path()).unwrap();
    let before = Inside::over(memory().await.unwrap(), journal, &[], git.clone()).await;
    before.waits(&announcement(1, "x", 10, &[])).await;
    before.clock.advance(20 * MINUTE);
    before.waits(&state(1, "x", 10, &[("main", 1)])).await;
    before.release.purgatory.flush().await.unwrap();
    std::fs::copy(data.path().join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    let (journal, records) = Journal::open(copy.path()).unwrap();
    let after = Inside::over(memory().await.unwrap(), journal, &records, git).await;
    after.release.purgatory.restore(records);
    let entry = after
        .release
        .purgatory
        .announcements
        .get(&repo(1, "x"))
        .unwrap();
    assert_eq!(entry.expires, before.clock.now() + 30 * MINUTE);
}

#[tokio::test]
async fn a_state_deleted_between_two_turns_of_its_release_is_not_served_again() {
    let inside = Inside::new().await;
    for seed in 1..=200 {
        inside.waits(&announcement(seed, "x", 10, &[250])).await;
    }
    let crowd: Vec<u8> = (1..=200).collect();
    inside.served(&answer(250, "x", 10, &crowd)).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let event = state(250, "x", 10, &[("main", 1)]);
    inside.served(&event).await;
    inside.served(&delete(250, 11, &event)).await;
    while !inside.release.going_on.is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!inside.serves(&event).await && !inside.holds(&event));
}

#[tokio::test]
async fn what_moved_elsewhere_when_the_process_ended_does_not_wait_again() {
    let inside = Inside::new().await;
    let (release, rules) = (&inside.release, inside.curation.rules());
    let waiting = announcement(2, "x", 10, &[]);
    inside.waits(&waiting).await;
    release.purgatory.doom(&repo(2, "x"), false).await.unwrap();
    let elsewhere = announcement_elsewhere(2, "x", 20);
    release.serve(&elsewhere).await.unwrap();
    // Killed here, and back.
    withhold::load_served(&release.store, &release.repositories, &rules)
        .await
        .unwrap();
    sweep::reconcile(release).await.unwrap();
    sweep::try_everything(release, &inside.serial).await;
    assert!(!inside.holds(&waiting) && !inside.git.has(repo(2, "x")));
}
