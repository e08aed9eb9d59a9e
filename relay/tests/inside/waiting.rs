//! What enters purgatory, what lets it out, what ends it.

use super::*;

#[tokio::test]
async fn an_announcement_expires_in_two_steps() {
    let inside = Inside::new().await;
    let event = announcement(1, "x", 10, &[]);
    inside.waits(&event).await;
    assert!(inside.git.has(repo(1, "x")));
    inside.passes(29 * MINUTE).await;
    assert!(inside.git.has(repo(1, "x")));
    inside.passes(2 * MINUTE).await;
    assert!(!inside.git.has(repo(1, "x")) && inside.holds(&event));
    // Nobody brings it back meanwhile, but its author can.
    let again = inside.admit_synced(&event).await;
    assert_eq!(again, Verdict::accepted("duplicate: in purgatory"));
    assert!(!inside.git.has(repo(1, "x")));
    inside.passes(DAY).await;
    assert!(!inside.holds(&event));
    let why = "invalid: previously expired from purgatory without git data";
    assert_eq!(inside.admit_synced(&event).await, Verdict::rejected(why));
    inside.waits(&event).await;
    assert!(inside.git.has(repo(1, "x")));
}

#[tokio::test]
async fn a_state_revives_a_soft_expired_announcement() {
    let inside = Inside::new().await;
    let event = announcement(1, "x", 10, &[]);
    inside.waits(&event).await;
    inside.passes(31 * MINUTE).await;
    assert!(!inside.git.has(repo(1, "x")));
    inside.waits(&state(1, "x", 10, &[("main", 1)])).await;
    assert!(inside.git.has(repo(1, "x")));
    inside.passes(29 * MINUTE).await;
    assert!(inside.git.has(repo(1, "x")));
    inside.passes(2 * MINUTE).await;
    assert!(!inside.git.has(repo(1, "x")));
}

#[tokio::test]
async fn published_again_a_soft_expired_announcement_is_as_if_new() {
    let inside = Inside::new().await;
    let event = announcement(1, "x", 10, &[]);
    inside.waits(&event).await;
    let twice = inside.admit(&event).await;
    assert_eq!(twice, Verdict::accepted("duplicate: in purgatory"));
    inside.passes(31 * MINUTE).await;
    inside.waits(&event).await;
    assert!(inside.git.has(repo(1, "x")));
    inside.passes(29 * MINUTE).await;
    assert!(inside.git.has(repo(1, "x")));
}

#[tokio::test]
async fn a_state_sent_again_revives_whoever_trusts_its_author() {
    let inside = Inside::new().await;
    let (first, second) = (
        announcement(1, "x", 10, &[3]),
        announcement(2, "x", 10, &[3]),
    );
    inside.waits(&first).await;
    inside.waits(&second).await;
    inside.waits(&announcement(3, "x", 10, &[1, 2])).await;
    inside.passes(20 * MINUTE).await;
    let waiting = state(3, "x", 10, &[("main", 1)]);
    inside.waits(&waiting).await;
    // The owners' have run out while the state waits: made so, whatever kept them.
    for owner in [1, 2] {
        let repo = repo(owner, "x");
        inside.git.world().repos.remove(&Address::from(&repo));
        inside.release.purgatory.soft_expire(&repo);
    }
    let duplicate = Verdict::accepted("duplicate: in purgatory");
    assert_eq!(inside.admit(&waiting).await, duplicate);
    assert!(inside.git.has(repo(1, "x")) && inside.git.has(repo(2, "x")));
}

#[tokio::test]
async fn a_served_state_sent_again_revives_whoever_trusts_its_author() {
    let inside = Inside::new().await;
    inside.active(3, "x", &[1]).await;
    let event = announcement(1, "x", 10, &[3]);
    inside.git.world().broken.insert(repo(1, "x"));
    inside.waits(&event).await;
    inside.git.world().broken.clear();
    inside
        .git
        .world()
        .repos
        .remove(&Address::from(&repo(1, "x")));
    inside.release.purgatory.soft_expire(&repo(1, "x"));
    let served = state(3, "x", 10, &[("main", 1)]);
    // Other relays bring it all the time.
    assert!(inside.admit_synced(&served).await.ok);
    assert!(!inside.git.has(repo(1, "x")));
    assert!(inside.admit(&served).await.ok);
    assert!(inside.serves(&event).await);
    assert_eq!(inside.git.refs_of(repo(1, "x")).len(), 1);
}

#[tokio::test]
async fn what_expired_may_come_back_when_its_data_may_be_there() {
    let inside = Inside::new().await;
    let mut at = 20;
    let refused = Verdict::rejected("invalid: previously expired from purgatory without git data");
    let mut expires = async || {
        at += 1;
        let event = state(1, "x", at, &[("main", 9)]);
        assert!(inside.admit_synced(&event).await.ok);
        inside.passes(31 * MINUTE).await;
        assert!(!inside.holds(&event));
        assert_eq!(inside.admit_synced(&event).await, refused);
        event
    };
    let is_back = async |event: &Event| {
        assert_eq!(inside.admit_synced(event).await, Verdict::accepted(WAITS));
        inside.release.purgatory.remove_state(&nip34::id_of(event));
    };
    let repo = inside.active(1, "x", &[]).await;
    // A user sends something of the repository.
    let event = expires().await;
    assert!(inside.admit(&announcement(1, "x", 10, &[])).await.ok);
    assert!(inside.admit(&announcement(1, "x", 11, &[])).await.ok);
    is_back(&event).await;
    // A push.
    let event = expires().await;
    let sent = state(1, "x", 1_000, &[("main", 2)]);
    assert!(inside.admit_synced(&sent).await.ok);
    let commands = [(branch("main"), oid(2))];
    let (id, _) = inside.authorize(&repo, &commands).await.unwrap();
    assert_eq!(inside.admit_synced(&event).await, refused);
    inside.git.bring(&identifier("x"), &[oid(2)]);
    assert_eq!(inside.commit(&id, &repo, &commands).await, [""]);
    assert!(
        !inside
            .release
            .purgatory
            .expired_lately(&nip34::id_of(&event))
    );
}

#[tokio::test]
async fn what_expired_may_come_back_after_a_while_that_grows() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    let event = state(1, "x", 20, &[("main", 2)]);
    for hours in [3, 6, 12] {
        assert_eq!(inside.admit_synced(&event).await, Verdict::accepted(WAITS));
        inside.passes(31 * MINUTE).await;
        assert!(!inside.holds(&event));
        inside.clock.advance((60 * hours - 1) * MINUTE);
        assert!(!inside.admit_synced(&event).await.ok, "{hours}");
        inside.clock.advance(MINUTE);
    }
    // Another server is named.
    assert_eq!(inside.admit_synced(&event).await, Verdict::accepted(WAITS));
    inside.passes(31 * MINUTE).await;
    assert!(!inside.admit_synced(&event).await.ok);
    let mut clone = tag(&["clone", "https://grasp.example/x.git"]);
    clone.push("https://new.example/x.git".to_owned());
    let relays = tag(&["relays", "wss://grasp.example"]);
    let newer = sign(
        1,
        nip34::ANNOUNCEMENT,
        30,
        &[tag(&["d", "x"]), clone, relays],
    );
    assert!(inside.admit_synced(&newer).await.ok);
    assert_eq!(inside.admit_synced(&event).await, Verdict::accepted(WAITS));
}

#[tokio::test]
async fn states_expire_and_are_remembered() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    let event = state(1, "x", 20, &[("main", 2)]);
    inside.waits(&event).await;
    inside.passes(31 * MINUTE).await;
    assert!(!inside.holds(&event));
    assert!(!inside.admit_synced(&event).await.ok);
    inside.waits(&event).await;
}

#[tokio::test]
async fn nothing_expires_untried_or_while_nobody_knows() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    let event = state(1, "x", 20, &[("main", 2)]);
    inside.waits(&event).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    inside.git.goes_away(true);
    inside.passes(31 * MINUTE).await;
    assert!(inside.holds(&event));
    inside.git.goes_away(false);
    inside.passes(MINUTE).await;
    assert!(inside.serves(&event).await);
    assert_eq!(
        inside.git.refs_of(repo(1, "x")).get(&branch("main")),
        Some(&oid(2))
    );
}

#[tokio::test]
async fn a_repository_that_is_uploaded_into_is_not_deleted() {
    let inside = Inside::new().await;
    inside.waits(&announcement(1, "x", 10, &[])).await;
    inside.git.world().uploading.insert(repo(1, "x"));
    inside.passes(31 * MINUTE).await;
    assert!(inside.git.has(repo(1, "x")));
    let entry = inside
        .release
        .purgatory
        .announcements
        .get(&repo(1, "x"))
        .unwrap();
    assert!(!entry.soft_expired);
    inside.git.world().uploading.clear();
    inside.passes(MINUTE).await;
    assert!(!inside.git.has(repo(1, "x")));
}

#[tokio::test]
async fn a_state_resets_the_clock_of_every_announcement_that_trusts_its_author() {
    let inside = Inside::new().await;
    inside.waits(&announcement(1, "x", 10, &[3])).await;
    inside.waits(&announcement(2, "x", 10, &[])).await;
    inside.served(&answer(3, "x", 10, &[1])).await;
    inside.clock.advance(20 * MINUTE);
    inside.waits(&state(3, "x", 10, &[("main", 1)])).await;
    inside.passes(15 * MINUTE).await;
    assert!(inside.git.has(repo(1, "x")));
    assert!(!inside.git.has(repo(2, "x")));
}

#[tokio::test]
async fn a_newer_announcement_resets_its_own_clock_and_its_states() {
    let inside = Inside::new().await;
    let old = announcement(1, "x", 10, &[]);
    let waiting = state(1, "x", 10, &[("main", 1)]);
    inside.waits(&old).await;
    inside.waits(&waiting).await;
    inside.clock.advance(20 * MINUTE);
    let new = announcement(1, "x", 20, &[]);
    inside.waits(&new).await;
    assert!(!inside.holds(&old) && inside.holds(&new));
    inside.passes(20 * MINUTE).await;
    assert!(inside.holds(&waiting) && inside.git.has(repo(1, "x")));
    assert_eq!(inside.admit(&old).await, Verdict::accepted(REPLACED));
}

#[tokio::test]
async fn a_change_of_service_ends_the_wait_and_nobody_elses() {
    let inside = Inside::new().await;
    inside.waits(&announcement(1, "x", 10, &[])).await;
    inside.waits(&announcement(2, "x", 10, &[])).await;
    let (own, other) = (
        state(1, "x", 10, &[("m", 1)]),
        state(2, "x", 10, &[("m", 1)]),
    );
    inside.waits(&own).await;
    inside.waits(&other).await;
    let older = inside.admit(&announcement_elsewhere(1, "x", 5)).await;
    assert_eq!(older, Verdict::accepted(REPLACED));
    assert!(inside.git.has(repo(1, "x")), "an older one changes nothing");
    assert!(!inside.admit(&announcement_elsewhere(1, "x", 20)).await.ok);
    assert!(!inside.git.has(repo(1, "x")) && inside.git.has(repo(2, "x")));
    assert!(!inside.holds(&own) && inside.holds(&other));
}

#[tokio::test]
async fn the_sweep_and_a_promotion_exclude_each_other() {
    let inside = Inside::new().await;
    inside.waits(&announcement(1, "x", 10, &[])).await;
    let waiting = state(1, "x", 10, &[("main", 1)]);
    inside.waits(&waiting).await;
    inside.clock.advance(31 * MINUTE);
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let newer = state(1, "x", 11, &[("main", 1)]);
    let sweep = inside.sweeps();
    let ((), again) = tokio::join!(sweep, inside.admit(&newer));
    assert!(again.ok);
    assert!(inside.git.has(repo(1, "x")));
    assert_eq!(inside.git.refs_of(repo(1, "x")).len(), 1);
}

#[tokio::test]
async fn with_the_git_storage_away_everything_waits_and_follows() {
    let inside = Inside::new().await;
    inside.active(1, "y", &[]).await;
    inside.git.goes_away(true);
    let (first, second) = (
        announcement(1, "x", 10, &[]),
        state(1, "y", 20, &[("dev", 1)]),
    );
    inside.waits(&first).await;
    inside.waits(&second).await;
    inside.git.goes_away(false);
    inside.try_unfinished().await;
    assert!(inside.git.has(repo(1, "x")));
    assert!(inside.serves(&second).await && !inside.holds(&second));
    assert_eq!(inside.git.refs_of(repo(1, "y")).len(), 1);
}

#[tokio::test]
async fn data_releases_whoever_waits_for_it_by_whichever_address() {
    let inside = Inside::new().await;
    let (first, second) = (
        announcement(1, "x", 10, &[2]),
        announcement(2, "x", 10, &[1, 4]),
    );
    let stranger = announcement(3, "x", 10, &[]);
    for event in [&first, &second, &stranger] {
        inside.waits(event).await;
    }
    inside.git.bring(&identifier("x"), &[oid(1)]);
    inside.served(&state(2, "x", 10, &[("main", 1)])).await;
    assert!(inside.serves(&first).await && inside.serves(&second).await);
    assert!(!inside.serves(&stranger).await && inside.holds(&stranger));
    assert_eq!(
        inside.git.refs_of(repo(1, "x")),
        inside.git.refs_of(repo(2, "x"))
    );
    assert!(inside.git.refs_of(repo(3, "x")).is_empty());
    // One that comes later finds its data here.
    inside.served(&announcement(4, "x", 30, &[2])).await;
    assert_eq!(inside.git.refs_of(repo(4, "x")).len(), 1);
}

#[tokio::test]
async fn an_empty_state_promotes_nothing() {
    let inside = Inside::new().await;
    let event = announcement(1, "x", 10, &[]);
    inside.waits(&event).await;
    assert!(!inside.admit(&state(1, "x", 10, &[])).await.ok);
    assert!(inside.holds(&event));
    inside.active(1, "y", &[]).await;
    assert!(!inside.admit(&state(1, "y", 20, &[])).await.ok);
    assert_eq!(inside.git.refs_of(repo(1, "y")).len(), 1);
}

#[tokio::test]
async fn the_latest_authorised_state_is_what_is_shown() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[2]).await;
    inside.served(&answer(2, "x", 10, &[1])).await;
    inside.git.bring(&identifier("x"), &[oid(2), oid(3)]);
    inside.served(&state(2, "x", 30, &[("main", 2)])).await;
    // Older than the other maintainer's: stored, since its objects are here, and moves nothing.
    inside.served(&state(1, "x", 20, &[("main", 3)])).await;
    let main = || {
        inside
            .git
            .refs_of(repo(1, "x"))
            .get(&branch("main"))
            .copied()
    };
    assert_eq!(main(), Some(oid(2)));
    inside.served(&state(1, "x", 40, &[("main", 3)])).await;
    assert_eq!(main(), Some(oid(3)));
}

#[tokio::test]
async fn one_repository_that_cannot_be_aligned_holds_up_no_other() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[2]).await;
    inside.git.world().broken.insert(repo(2, "x"));
    inside.waits(&announcement(2, "x", 10, &[1])).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    let event = state(1, "x", 20, &[("main", 2)]);
    inside.served(&event).await;
    assert_eq!(
        inside.git.refs_of(repo(1, "x")).get(&branch("main")),
        Some(&oid(2))
    );
    assert!(inside.holds(&event), "it is tried again");
    inside.git.world().broken.clear();
    inside.passes(31 * MINUTE).await;
    assert!(!inside.holds(&event));
    assert_eq!(
        inside.git.refs_of(repo(2, "x")).get(&branch("main")),
        Some(&oid(2))
    );
}

#[tokio::test]
async fn many_owners_are_aligned_turn_by_turn() {
    let inside = Inside::new().await;
    let seeds: Vec<u8> = (2..=151).collect();
    for seed in &seeds {
        inside.waits(&announcement(*seed, "x", 10, &[1])).await;
    }
    inside.served(&answer(1, "x", 10, &seeds)).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let event = state(1, "x", 10, &[("main", 1)]);
    inside.served(&event).await;
    // The rest follows in turns of its own; whoever comes now waits for no more than one of them.
    while inside.holds(&event) {
        inside
            .serial
            .run(&identifier("x"), grasp_relay::serial::Turn::Normal, async {
            })
            .await;
    }
    for seed in seeds {
        assert_eq!(inside.git.refs_of(repo(seed, "x")).len(), 1, "{seed}");
    }
}

#[tokio::test]
async fn deleting_what_waits_takes_its_repository_along() {
    let inside = Inside::new().await;
    let event = announcement(1, "x", 10, &[]);
    inside.waits(&event).await;
    let forged = sign(2, nip34::DELETION, 20, &[tag(&["e", &event.id.to_hex()])]);
    inside.served(&forged).await;
    assert!(inside.holds(&event));
    let request = sign(
        1,
        nip34::DELETION,
        20,
        &[tag(&["a", &repo(1, "x").coordinate()])],
    );
    inside.served(&request).await;
    assert!(!inside.holds(&event) && !inside.git.has(repo(1, "x")));
    assert!(!inside.admit(&event).await.ok);
    inside.waits(&announcement(1, "x", 21, &[])).await;
}

#[tokio::test]
async fn what_is_to_go_goes_when_it_can() {
    let inside = Inside::new().await;
    let event = announcement(1, "x", 10, &[]);
    inside.waits(&event).await;
    inside.git.world().uploading.insert(repo(1, "x"));
    let request = sign(1, nip34::DELETION, 20, &[tag(&["e", &event.id.to_hex()])]);
    inside.served(&request).await;
    assert!(!inside.holds(&event) && inside.git.has(repo(1, "x")));
    inside.git.world().uploading.clear();
    inside.try_unfinished().await;
    assert!(!inside.git.has(repo(1, "x")));
}

#[tokio::test]
async fn deleting_a_served_announcement_takes_along_what_it_held() {
    let inside = Inside::new().await;
    let gone = inside.active(1, "x", &[2]).await;
    let kept = inside.active(1, "y", &[]).await;
    let about = |repos: &[&RepoId], at| {
        let tags: Vec<_> = repos.iter().map(|r| tag(&["a", &r.coordinate()])).collect();
        sign(5, Kind::Custom(1621), at, &tags)
    };
    let (issue, both) = (about(&[&gone], 30), about(&[&gone, &kept], 31));
    let comment = sign(
        6,
        Kind::Custom(1111),
        32,
        &[tag(&["e", &issue.id.to_hex()])],
    );
    let elsewhere = announcement_elsewhere(2, "x", 33);
    for event in [&issue, &both, &comment, &elsewhere] {
        inside.served(event).await;
    }
    let request = sign(1, nip34::DELETION, 40, &[tag(&["a", &gone.coordinate()])]);
    inside.served(&request).await;
    for event in [
        &issue,
        &comment,
        &elsewhere,
        &state(1, "x", 10, &[("main", 1)]),
    ] {
        assert!(!inside.serves(event).await, "kind {}", event.kind);
    }
    assert!(inside.serves(&both).await && inside.serves(&request).await);
    assert!(inside.git.has_retired(&gone));
    assert!(inside.git.has(&kept));
}

#[tokio::test]
async fn a_deleted_state_gives_way_to_the_next() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[2]).await;
    inside.served(&answer(2, "x", 10, &[1])).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    let later = state(2, "x", 20, &[("main", 2)]);
    inside.served(&later).await;
    let request = sign(2, nip34::DELETION, 30, &[tag(&["e", &later.id.to_hex()])]);
    inside.served(&request).await;
    assert_eq!(
        inside.git.refs_of(repo(1, "x")).get(&branch("main")),
        Some(&oid(1))
    );
}

#[tokio::test]
async fn what_waits_survives_the_process() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let git: Arc<StandIn> = Arc::default();
    let memory = || Store::open(Backend::Memory, Path::new(""));
    let (journal, _) = Journal::open(data.path()).unwrap();
    let before = Inside::over(memory().await.unwrap(), journal, &[], git.clone()).await;
    let (first, second) = (
        announcement(1, "x", 10, &[]),
        state(1, "x", 10, &[("main", 1)]),
    );
    before.waits(&first).await;
    before.waits(&second).await;
    // As the disk is when the process is killed.
    std::fs::copy(data.path().join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    git.bring(&identifier("x"), &[oid(1)]);
    let (journal, records) = Journal::open(copy.path()).unwrap();
    let after = Inside::over(memory().await.unwrap(), journal, &records, git).await;
    after.release.purgatory.restore(records);
    sweep::reconcile(&after.release).await.unwrap();
    // However late it is: released before anything is swept.
    after.clock.advance(2 * DAY);
    sweep::try_everything(&after.release, &after.serial).await;
    assert!(after.serves(&first).await && after.serves(&second).await);
    assert!(!after.holds(&first) && !after.holds(&second));
}

#[tokio::test]
async fn whose_latest_state_another_change_takes_away_follows_turn_by_turn() {
    let inside = Inside::new().await;
    inside.git.bring(&identifier("x"), &[oid(1), oid(2)]);
    let crowd: Vec<u8> = (1..=100).collect();
    inside.waits(&announcement(250, "x", 10, &crowd)).await;
    inside.served(&state(250, "x", 10, &[("main", 1)])).await;
    for seed in &crowd {
        inside
            .served(&announcement(*seed, "x", 10, &[250, 251]))
            .await;
    }
    inside.served(&answer(251, "x", 10, &crowd)).await;
    let later = state(251, "x", 20, &[("main", 2)]);
    inside.served(&later).await;
    while !inside.release.going_on.is_empty() {
        tokio::task::yield_now().await;
    }
    let aligned = || inside.git.world().aligned;
    let before = aligned();
    let request = sign(251, nip34::DELETION, 21, &[tag(&["e", &later.id.to_hex()])]);
    inside.served(&request).await;
    assert_eq!(aligned() - before, 64);
    inside.try_unfinished().await;
    for seed in 1..=100 {
        let refs = inside.git.refs_of(repo(seed, "x"));
        assert_eq!(refs.get(&branch("main")), Some(&oid(1)));
    }
}

#[tokio::test]
async fn of_a_state_of_many_refs_each_repository_has_a_turn_and_its_authors_is_the_first() {
    let inside = Inside::new().await;
    inside.git.bring(&identifier("x"), &[oid(1), oid(2)]);
    let crowd: Vec<u8> = (1..=5).collect();
    inside.waits(&announcement(250, "x", 10, &crowd)).await;
    inside.served(&state(250, "x", 10, &[("main", 1)])).await;
    for seed in &crowd {
        inside.served(&announcement(*seed, "x", 10, &[250])).await;
    }
    let names: Vec<String> = (0..1200).map(|n| format!("b{n}")).collect();
    let many: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 2)).collect();
    let aligned = || inside.git.world().aligned;
    let before = aligned();
    inside.served(&state(250, "x", 20, &many)).await;
    assert_eq!(aligned() - before, 1);
    assert_eq!(inside.git.refs_of(repo(250, "x")).len(), 1200);
    // What nobody waited for in a turn of its own comes between.
    inside.waits(&announcement(9, "x", 10, &[])).await;
    assert!(!inside.release.going_on.is_empty());
    while !inside.release.going_on.is_empty() {
        tokio::task::yield_now().await;
    }
    for seed in &crowd {
        assert_eq!(inside.git.refs_of(repo(*seed, "x")).len(), 1200);
    }
}

#[tokio::test]
async fn an_earlier_version_waits_no_more_once_a_later_one_is_served() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    let (earlier, latest) = (
        state(1, "x", 20, &[("main", 2)]),
        state(1, "x", 40, &[("main", 2)]),
    );
    inside.waits(&earlier).await;
    inside.waits(&latest).await;
    inside.served(&state(1, "x", 30, &[("main", 1)])).await;
    assert!(!inside.holds(&earlier) && inside.holds(&latest));
}
