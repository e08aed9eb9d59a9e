//! What was accepted for the sake of something that has gone by itself, deleted or replaced, while its
//! repository stays: it goes and comes with the repository.

use grasp_relay::holding::give_back;

use super::{
    holding::{about, delete, delete_address},
    *,
};

impl Inside {
    async fn deleted_and_announced_again(&self, at: u64, gone: &[&Event]) {
        let one = repo(1, "x");
        for event in gone {
            assert!(self.serves(event).await);
        }
        self.served(&delete_address(1, at, &one)).await;
        for event in gone {
            assert!(!self.serves(event).await, "{event:?}");
        }
        self.served(&announcement(1, "x", at + 1, &[])).await;
        give_back::go_on(&self.release, &self.serial, &self.curation).await;
        for event in gone {
            assert!(self.serves(event).await, "{event:?}");
        }
        assert!(self.release.holding.is_empty());
    }
}

fn vanish(seed: u8, at: u64) -> Event {
    sign(seed, nip34::VANISH, at, &[tag(&["relay", "ALL_RELAYS"])])
}

#[tokio::test]
async fn comments_below_what_its_author_deleted_go_and_come_with_the_repository() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let other = inside.active(2, "y", &[]).await;
    let issue = about(5, 1621, 20, &[&one], &[]);
    let theirs = about(5, 1621, 20, &[&other], &[]);
    let comment = about(6, 1111, 21, &[], &[&issue]);
    let answer = about(7, 1111, 22, &[], &[&comment]);
    let reaction = about(8, 7, 23, &[], &[&answer]);
    let on_both = about(8, 1111, 24, &[], &[&answer, &theirs]);
    for event in [&issue, &theirs, &comment, &answer, &reaction] {
        inside.served(event).await;
    }
    for (seed, gone) in [(5, &issue), (6, &comment)] {
        inside.served(&delete(seed, 30, gone)).await;
        assert!(inside.serves(&answer).await && inside.serves(&reaction).await);
    }
    for at in [100, 110] {
        inside
            .deleted_and_announced_again(at, &[&answer, &reaction])
            .await;
        assert!(!inside.serves(&issue).await && !inside.serves(&comment).await);
    }
    // What stands by another repository stays, by whatever it is connected.
    inside.served(&on_both).await;
    inside.served(&delete(7, 115, &answer)).await;
    inside.served(&delete_address(1, 120, &one)).await;
    assert!(inside.serves(&on_both).await && inside.serves(&theirs).await);
}

#[tokio::test]
async fn what_refers_to_a_version_that_was_replaced_goes_and_comes_with_the_repository() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    let to_announcement = about(5, 7, 20, &[], &[&announcement(1, "x", 10, &[])]);
    let to_state = about(6, 7, 20, &[], &[&state(1, "x", 10, &[("main", 1)])]);
    inside.served(&to_announcement).await;
    inside.served(&to_state).await;
    inside.served(&announcement(1, "x", 30, &[])).await;
    let later = state(1, "x", 30, &[("main", 1), ("more", 1)]);
    inside.served(&later).await;
    inside
        .deleted_and_announced_again(100, &[&to_announcement, &to_state])
        .await;
    // Nor does it need a state that is still there.
    inside.served(&delete(1, 110, &later)).await;
    inside.served(&delete_address(1, 120, &repo(1, "x"))).await;
    assert!(!inside.serves(&to_announcement).await && !inside.serves(&to_state).await);
}

#[tokio::test]
async fn who_vanishes_takes_along_what_leans_on_the_repositories_and_leaves_the_rest_to_them() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    let other = inside.active(2, "y", &[]).await;
    let comments = [(1, &one, 6), (2, &other, 6), (5, &other, 7), (5, &one, 7)];
    let mut threads = Vec::new();
    for (author, repo, by) in comments {
        let issue = about(author, 1621, 20, &[repo], &[]);
        let comment = about(by, 1111, 21, &[], &[&issue]);
        inside.served(&issue).await;
        inside.served(&comment).await;
        threads.push((issue, comment));
    }
    inside.served(&vanish(5, 50)).await;
    for (issue, comment) in &threads[2..] {
        assert!(!inside.serves(issue).await && inside.serves(comment).await);
    }
    inside.served(&vanish(1, 60)).await;
    for at in [0, 3] {
        assert!(!inside.serves(&threads[at].1).await);
    }
    assert!(inside.serves(&threads[1].1).await && inside.serves(&threads[2].1).await);
    inside.served(&delete_address(2, 70, &other)).await;
    assert!(!inside.serves(&threads[1].1).await && !inside.serves(&threads[2].1).await);
}

#[tokio::test]
async fn no_state_from_before_a_deleted_one_moves_the_refs_back() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    let later = state(1, "x", 20, &[("main", 2)]);
    inside.served(&later).await;
    inside.served(&delete(1, 21, &later)).await;
    let main = || inside.git.refs_of(&one).get(&branch("main")).copied();
    for older in [10, 19] {
        let older = state(1, "x", older, &[("main", 1)]);
        for verdict in [
            inside.admit(&older).await,
            inside.admit_synced(&older).await,
        ] {
            assert_eq!(verdict.message, "invalid: replaced by a later version");
        }
        assert_eq!(main(), Some(oid(2)));
    }
    inside.served(&state(1, "x", 22, &[("main", 1)])).await;
    assert_eq!(main(), Some(oid(1)));
}
