//! What leaves by other ways than the deletion of an announcement that is served with its repository:
//! by a newer version, without a repository, from a blacklist – and what is written meanwhile.

use grasp_relay::{
    holding::{Reason, give_back},
    nip34::announcement::Announcement,
};

use super::{
    holding::{about, delete, delete_address},
    lists::npub,
    *,
};

impl Inside {
    async fn returns(&self) {
        give_back::go_on(&self.release, &self.serial, &self.curation).await;
    }
}

#[tokio::test]
async fn no_version_from_before_it_left_brings_it_back() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    inside.served(&issue).await;
    assert!(!inside.admit(&announcement_elsewhere(1, "x", 100)).await.ok);
    assert!(!inside.serves(&issue).await);
    for at in [10, 99, 100] {
        let older = announcement(1, "x", at, &[at.try_into().unwrap()]);
        // At the same time the lower id counts.
        let is_older = at < 100 || older.id > announcement_elsewhere(1, "x", 100).id;
        for verdict in [
            inside.admit(&older).await,
            inside.admit_synced(&older).await,
        ] {
            assert!(!verdict.ok || !is_older, "{at}: {verdict:?}");
        }
        assert!(!is_older || !inside.holds(&older) && !inside.serves(&older).await);
    }
    inside.served(&announcement(1, "x", 101, &[])).await;
    inside.returns().await;
    assert!(inside.serves(&issue).await && inside.release.holding.is_empty());
}

#[tokio::test]
async fn an_announcement_without_a_repository_takes_along_what_leans_on_it() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[2]).await;
    let theirs = repo(2, "x");
    inside.served(&announcement_elsewhere(2, "x", 11)).await;
    let issue = about(5, 1621, 20, &[&theirs], &[]);
    let comment = about(6, 1111, 21, &[], &[&issue]);
    let both = about(5, 1621, 22, &[&theirs, &one], &[]);
    for event in [&issue, &comment, &both] {
        inside.served(event).await;
    }
    inside.served(&delete_address(2, 100, &theirs)).await;
    assert!(!inside.serves(&issue).await && !inside.serves(&comment).await);
    assert!(inside.serves(&both).await && inside.git.has(&one));
    inside.served(&announcement_elsewhere(2, "x", 101)).await;
    inside.returns().await;
    assert!(inside.serves(&issue).await && inside.serves(&comment).await);
    assert!(inside.release.holding.is_empty());
}

#[tokio::test]
async fn a_maintainer_who_moved_elsewhere_comes_back_with_the_owner() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[2]).await;
    let theirs = inside.active(2, "x", &[]).await;
    let moved = announcement_elsewhere(2, "x", 30);
    inside.served(&moved).await;
    assert!(inside.git.has_retired(&theirs));
    inside.served(&delete_address(1, 100, &one)).await;
    assert!(!inside.serves(&moved).await);
    inside.served(&announcement(1, "x", 101, &[2])).await;
    inside.returns().await;
    assert!(inside.serves(&moved).await);
    // What was moved aside is its owner's, who may announce it here again.
    assert!(inside.git.has_retired(&theirs));
    inside.served(&announcement(2, "x", 102, &[])).await;
    assert!(inside.git.has(&theirs));
}

#[tokio::test]
async fn what_its_author_deletes_from_a_blacklist_does_not_come_off_it_in_pieces() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    let comment = about(6, 1111, 21, &[], &[&issue]);
    for event in [&issue, &comment] {
        inside.served(event).await;
    }
    let listed = format!("{}/x", npub(1));
    let list = [("NGIT_REPOSITORY_BLACKLIST", &*listed)];
    inside.ruled(&list).await;
    inside
        .served(&delete(1, 100, &announcement(1, "x", 10, &[])))
        .await;
    for list in [&list[..], &[]] {
        inside.ruled(list).await;
        assert!(!inside.serves(&issue).await && !inside.serves(&comment).await);
    }
    assert!(inside.git.has_retired(&one));
    inside.served(&announcement(1, "x", 101, &[])).await;
    inside.returns().await;
    assert!(inside.serves(&issue).await && inside.serves(&comment).await);
}

#[tokio::test]
async fn what_is_written_while_it_falls_falls_too() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    inside.served(&issue).await;
    let late = about(6, 1111, 21, &[], &[&issue]);
    let later = about(7, 1111, 22, &[], &[&late]);
    let announced = announcement(1, "x", 10, &[]);
    let holding = &inside.release.holding;
    holding
        .begin(&one, &announced, Reason::Deleted)
        .await
        .unwrap();
    let none = std::collections::HashMap::new();
    let falls = holding.falls(&one, &none, std::slice::from_ref(&issue), |_| true);
    falls.await.unwrap();
    // The issue is noted, and the two come, before it is out of the store and just after.
    let store = &inside.release.store;
    store.save(&late).await.unwrap();
    store.remove([nip34::id_of(&issue)]).await.unwrap();
    store.save(&later).await.unwrap();
    inside.release.finish_taking(&one).await.unwrap();
    assert!(!inside.serves(&late).await && !inside.serves(&later).await);
    inside.served(&announcement(1, "x", 101, &[])).await;
    inside.returns().await;
    for event in [&issue, &late, &later] {
        assert!(inside.serves(event).await);
    }
    assert!(inside.release.holding.is_empty());
}

#[tokio::test]
async fn of_what_is_held_an_address_names_versions_only() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let comment = about(6, 1111, 21, &[&one], &[]);
    let article = |at, name| {
        let tags = [tag(&["d", name]), tag(&["a", &one.coordinate()])];
        sign(6, Kind::Custom(30_023), at, &tags)
    };
    let (kept, gone) = (article(22, "kept"), article(23, "gone"));
    for event in [&comment, &kept, &gone] {
        inside.served(event).await;
    }
    inside.served(&delete_address(1, 100, &one)).await;
    let author = key_of(6).to_hex();
    let address = |kind: u16, name: &str| tag(&["a", &format!("{kind}:{author}:{name}")]);
    let targets = [
        address(1111, ""),
        address(30_023, "gone"),
        address(30_023, "no"),
    ];
    inside
        .served(&sign(6, nip34::DELETION, 101, &targets))
        .await;
    inside.served(&announcement(1, "x", 102, &[])).await;
    inside.returns().await;
    assert!(inside.serves(&comment).await && inside.serves(&kept).await);
    assert!(!inside.serves(&gone).await && inside.release.holding.is_empty());
}

#[tokio::test]
async fn announced_again_and_killed_before_its_states_were_back_it_comes_back() {
    for sent_again in [false, true] {
        let inside = Inside::new().await;
        let one = inside.active(1, "x", &[]).await;
        let issue = about(5, 1621, 20, &[&one], &[]);
        inside.served(&issue).await;
        inside.served(&delete_address(1, 100, &one)).await;
        // As a start finds it: the entry is durable, and no more was done.
        let again = announcement(1, "x", 101, &[]);
        let read = Announcement::read(Arc::new(again.clone())).unwrap();
        let waiting = &inside.release.purgatory.announcements;
        waiting.admit(read.clone(), inside.release.purgatory.now());
        inside.release.repositories.set(&read, Standing::Waiting);
        match sent_again {
            true => assert!(inside.admit(&again).await.ok),
            false => {
                sweep::try_everything(&inside.release, &inside.serial).await;
                give_back::resume(&inside.release);
            }
        }
        inside.returns().await;
        inside.returns().await;
        assert!(inside.serves(&again).await && inside.serves(&issue).await);
        assert!(inside.git.has(&one) && inside.release.holding.is_empty());
    }
}

#[tokio::test]
async fn what_belongs_to_a_blacklisted_repository_too_does_not_fall_with_the_other() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let listed = inside.active(2, "x", &[3]).await;
    let beside = inside.active(2, "y", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    inside.served(&answer(3, "x", 11, &[2])).await;
    let theirs = [
        announcement(2, "x", 10, &[3]),
        state(2, "x", 10, &[("main", 1)]),
        state(3, "x", 12, &[("main", 2)]),
        about(5, 1621, 20, &[&one, &listed], &[]),
        about(5, 1621, 21, &[&one, &beside], &[]),
    ];
    for event in &theirs[2..] {
        inside.served(event).await;
    }
    inside
        .ruled(&[("NGIT_REPOSITORY_BLACKLIST", &npub(2))])
        .await;
    assert!(!inside.serves(&theirs[0]).await);
    inside.served(&delete_address(1, 100, &one)).await;
    assert!(!inside.git.has(&one));
    assert!(!inside.serves(&theirs[3]).await);
    inside.ruled(&[]).await;
    for event in &theirs {
        assert!(inside.serves(event).await, "{event:?}");
    }
}

#[tokio::test]
async fn served_elsewhere_and_waiting_here_goes_as_what_is_stored_says() {
    for by_its_owner in [false, true] {
        let inside = Inside::new().await;
        let one = inside.active(1, "x", &[2]).await;
        let theirs = repo(2, "x");
        let elsewhere = announcement_elsewhere(2, "x", 11);
        inside.served(&elsewhere).await;
        let issue = about(5, 1621, 20, &[&theirs], &[]);
        let comment = about(6, 1111, 21, &[], &[&issue]);
        inside.served(&issue).await;
        inside.served(&comment).await;
        // So that the one here waits.
        inside
            .served(&delete(1, 30, &state(1, "x", 10, &[("main", 1)])))
            .await;
        let here = announcement(2, "x", 31, &[]);
        inside.waits(&here).await;
        assert!(inside.serves(&elsewhere).await);
        let request = match by_its_owner {
            true => delete(2, 40, &elsewhere),
            false => delete_address(1, 40, &one),
        };
        inside.served(&request).await;
        assert!(!inside.serves(&elsewhere).await && !inside.serves(&issue).await);
        assert!(!inside.serves(&comment).await);
        // What waits here goes on waiting, with its repository, and what fell is back when it is served.
        assert!(inside.holds(&here) && inside.git.has(&theirs));
        inside.served(&state(2, "x", 41, &[("main", 1)])).await;
        assert!(inside.serves(&here).await);
        inside.returns().await;
        assert_eq!(inside.serves(&comment).await, by_its_owner);
    }
}

#[tokio::test]
async fn what_is_served_for_a_waiting_ones_sake_goes_with_it() {
    for expires in [false, true] {
        let inside = Inside::new().await;
        inside.waits(&announcement(1, "x", 10, &[2])).await;
        let elsewhere = announcement_elsewhere(2, "x", 11);
        inside.served(&elsewhere).await;
        let issue = about(5, 1621, 20, &[&repo(2, "x")], &[]);
        inside.served(&issue).await;
        match expires {
            true => {
                inside.passes(31 * MINUTE).await;
                assert!(inside.serves(&issue).await);
                inside.passes(DAY).await;
            }
            false => inside.served(&delete_address(1, 100, &repo(1, "x"))).await,
        }
        assert!(!inside.serves(&elsewhere).await && !inside.serves(&issue).await);
        // Wanted again, it is taken again, and what fell comes with it.
        inside.waits(&announcement(1, "x", 101, &[2])).await;
        inside.served(&elsewhere).await;
        inside.returns().await;
        assert!(inside.serves(&issue).await && inside.release.holding.is_empty());
    }
}

#[tokio::test]
async fn no_version_from_before_a_deleted_one_brings_anything_back() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    inside.served(&issue).await;
    let deleted = announcement(1, "x", 30, &[]);
    inside.served(&deleted).await;
    inside.served(&delete(1, 31, &deleted)).await;
    let older = |at| announcement(1, "x", at, &[]);
    for at in [10, 29] {
        for verdict in [
            inside.admit(&older(at)).await,
            inside.admit_synced(&older(at)).await,
        ] {
            assert_eq!(verdict.message, "invalid: replaced by a later version");
        }
    }
    assert!(!inside.serves(&issue).await && inside.git.has_retired(&one));
    // Nor one from before the next that waited and was deleted.
    inside.git.goes_away(true);
    inside.waits(&older(40)).await;
    inside.served(&delete(1, 41, &older(40))).await;
    inside.git.goes_away(false);
    inside.try_unfinished().await;
    assert!(!inside.admit(&older(35)).await.ok && !inside.serves(&issue).await);
    inside.served(&older(42)).await;
    inside.returns().await;
    assert!(inside.serves(&issue).await && inside.release.holding.is_empty());
}

#[tokio::test]
async fn announced_again_it_shows_nothing_by_those_who_have_no_say_any_more() {
    let inside = Inside::new().await;
    let own = repo(1, "x");
    inside.waits(&announcement(1, "x", 10, &[2])).await;
    inside.waits(&announcement(2, "x", 10, &[1])).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    inside.served(&state(2, "x", 10, &[("main", 1)])).await;
    assert_eq!(inside.git.refs_of(&own).len(), 1);
    let request = sign(1, nip34::DELETION, 20, &[tag(&["a", &own.coordinate()])]);
    inside.served(&request).await;
    inside.waits(&announcement(1, "x", 21, &[])).await;
    assert!(inside.git.has(&own) && inside.git.refs_of(&own).is_empty());
    inside.served(&announcement(1, "x", 22, &[2])).await;
    assert_eq!(inside.git.refs_of(&own).len(), 1);
}
