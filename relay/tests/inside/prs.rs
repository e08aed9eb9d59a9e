//! Contributors' own addresses (GRASP-06): event and push, in either order, and what ends them.

use grasp_proto::contract::relay as wire;
use grasp_relay::hunt::pending::{Pending, Rotation};

use super::{
    holding::{delete, delete_address},
    lists::npub,
    pushes::nostr_ref,
    *,
};

fn space(seed: u8, name: &str) -> Address {
    Address::prs(repo(seed, name))
}

/// A pull request by `seed` that names `named` in `clone`, offered to `offered`.
fn contribution(seed: u8, at: u64, commit: u8, named: &Address, offered: &RepoId) -> Event {
    let clone = format!("https://grasp.example/{named}");
    let tags = [
        tag(&["c", &oid(commit).to_hex()]),
        tag(&["a", &offered.coordinate()]),
        tag(&["clone", &clone]),
    ];
    sign(seed, nip34::PULL_REQUEST, at, &tags)
}

impl Inside {
    /// A push of one commit for an event, granted and carried out; else why not.
    async fn pushes(&self, to: &Address, event: &Event, commit: u8) -> Result<(), String> {
        let commands = [(nostr_ref(event), oid(commit))];
        let (id, objects) = self.authorize(to.clone(), &commands).await?;
        assert_ne!(objects, wire::Objects::Unwanted);
        match self.commit(&id, to.clone(), &commands).await.concat() {
            refused if refused.is_empty() => Ok(()),
            refused => Err(refused),
        }
    }

    /// Nothing of what was contributed is left, waiting or on disk.
    fn has_nothing_at(&self, to: &Address) {
        assert!(!self.git.has(to.clone()));
        assert!(self.release.purgatory.pull_requests.is_empty());
        assert!(self.release.purgatory.places.all().is_empty());
    }

    async fn starts_again(&self) {
        sweep::reconcile(&self.release).await.unwrap();
        sweep::try_everything(&self.release, &self.serial).await;
    }
}

#[tokio::test]
async fn the_event_first() {
    let inside = Inside::new().await;
    let (to, nowhere) = (space(5, "x"), repo(1, "x"));
    let event = contribution(5, 20, 7, &to, &nowhere);
    inside.waits(&event).await;
    let why = inside.pushes(&to, &event, 8).await.unwrap_err();
    assert!(why.contains("names"), "{why}");
    inside.pushes(&to, &event, 7).await.unwrap();
    assert!(inside.serves(&event).await);
    assert_eq!(inside.git.refs_of(to.clone()).len(), 1);
    assert!(inside.release.purgatory.pull_requests.is_empty());
    // It stays, and so do sweeps and starts later.
    inside.passes(DAY).await;
    inside.starts_again().await;
    assert!(inside.serves(&event).await && inside.git.has(to));
}

#[tokio::test]
async fn git_first() {
    let inside = Inside::new().await;
    let (to, nowhere) = (space(5, "x"), repo(1, "x"));
    let event = contribution(5, 20, 7, &to, &nowhere);
    inside.pushes(&to, &event, 7).await.unwrap();
    assert!(!inside.serves(&event).await);
    inside.served(&event).await;
    assert_eq!(inside.git.refs_of(to).len(), 1);
}

#[tokio::test]
async fn what_differs_is_removed_and_the_event_waits() {
    let nowhere = repo(1, "x");
    let own = space(5, "x");
    for (to, commit) in [
        // Another commit, author, identifier.
        (own.clone(), 8),
        (space(6, "x"), 7),
        (space(5, "y"), 7),
    ] {
        let inside = Inside::new().await;
        let event = contribution(5, 20, 7, &own, &nowhere);
        inside.pushes(&to, &event, commit).await.unwrap();
        inside.waits(&event).await;
        assert!(!inside.git.has(to.clone()), "{to}");
        assert!(!inside.serves(&event).await);
        // Known by now, it is refused before it is there.
        inside.pushes(&to, &event, commit).await.unwrap_err();
        inside.pushes(&own, &event, 7).await.unwrap();
        assert!(inside.serves(&event).await);
    }
}

#[tokio::test]
async fn what_names_no_space_of_its_authors_is_unrelated_still() {
    let inside = Inside::new().await;
    let nowhere = repo(1, "x");
    for named in [space(6, "x"), space(5, "y"), repo(5, "x").into()] {
        let event = contribution(5, 20, 7, &named, &nowhere);
        inside.pushes(&space(5, "x"), &event, 7).await.unwrap();
        let verdict = inside.admit(&event).await;
        assert!(!verdict.ok && verdict.message.contains("not related"));
    }
}

#[tokio::test]
async fn a_push_without_an_event_goes_after_its_time() {
    let inside = Inside::new().await;
    let (to, nowhere) = (space(5, "x"), repo(1, "x"));
    let event = contribution(5, 20, 7, &to, &nowhere);
    inside.pushes(&to, &event, 7).await.unwrap();
    inside.passes(29 * MINUTE).await;
    assert!(inside.git.has(to.clone()));
    inside.passes(2 * MINUTE).await;
    inside.has_nothing_at(&to);
    // And so does an event without a push.
    inside.waits(&event).await;
    inside.passes(31 * MINUTE).await;
    inside.has_nothing_at(&to);
    assert!(!inside.serves(&event).await);
}

#[tokio::test]
async fn nothing_is_hunted_for_that_belongs_to_nothing_here() {
    let inside = Inside::new().await;
    let event = contribution(5, 20, 7, &space(5, "x"), &repo(1, "x"));
    inside.waits(&event).await;
    inside.clock.advance(10 * MINUTE);
    // By itself it is not even queued; after a start whoever looks finds nothing to look for.
    let lease = |wait| inside.hunter.lease("worker", 9, wait);
    assert!(lease(Duration::ZERO).await.is_empty());
    let (release, name) = (inside.release.clone(), identifier("x"));
    let look = move || Pending::of(&release, &name, Rotation::default()).is_nothing();
    assert!(tokio::task::spawn_blocking(look).await.unwrap());
    // Not even the commit itself, come by another way, serves it: it is not at its address.
    inside.git.bring(&identifier("x"), &[oid(7)]);
    sweep::try_everything(&inside.release, &inside.serial).await;
    assert!(!inside.serves(&event).await);
}

#[tokio::test]
async fn the_ref_is_mirrored_into_what_is_served_and_never_back() {
    let inside = Inside::new().await;
    let to = space(5, "x");
    let served = inside.active(1, "x", &[]).await;
    inside.waits(&announcement(2, "x", 10, &[])).await;
    let waiting = repo(2, "x");
    let event = contribution(5, 20, 7, &to, &waiting);
    inside.waits(&event).await;
    inside.pushes(&to, &event, 7).await.unwrap();
    assert!(inside.serves(&event).await);
    let name = nostr_ref(&event);
    assert!(!inside.git.refs_of(&waiting).contains_key(&name));
    assert!(!inside.git.refs_of(&served).contains_key(&name));
    let other = contribution(5, 21, 8, &to, &served);
    inside.waits(&other).await;
    inside.pushes(&to, &other, 8).await.unwrap();
    assert!(inside.git.refs_of(&served).contains_key(&nostr_ref(&other)));
    // What is promoted later gets what names it.
    inside.served(&state(2, "x", 10, &[("main", 1)])).await;
    assert_eq!(inside.git.refs_of(&waiting).get(&name), Some(&oid(7)));
    // Pushed to the repository itself, it is not put into the space.
    let direct = contribution(5, 22, 9, &to, &served);
    inside.waits(&direct).await;
    inside.pushes(&(&served).into(), &direct, 9).await.unwrap();
    assert!(inside.serves(&direct).await);
    assert!(
        !inside
            .git
            .refs_of(to.clone())
            .contains_key(&nostr_ref(&direct))
    );
    // Until it is pushed there as well.
    inside.pushes(&to, &direct, 9).await.unwrap();
    assert!(inside.git.refs_of(to).contains_key(&nostr_ref(&direct)));
}

#[tokio::test]
async fn what_waits_for_its_space_is_pushed_nowhere_else() {
    let inside = Inside::new().await;
    let served = inside.active(1, "x", &[]).await;
    let event = contribution(5, 20, 7, &space(5, "x"), &repo(2, "x"));
    inside.waits(&event).await;
    let why = inside.pushes(&(&served).into(), &event, 7).await;
    assert!(why.unwrap_err().contains("belongs to nothing"));
}

#[tokio::test]
async fn what_was_pushed_elsewhere_for_it_goes_when_it_is_served() {
    let own = space(5, "x");
    for is_killed in [false, true] {
        let inside = Inside::new().await;
        let served = inside.active(1, "x", &[]).await;
        let event = contribution(5, 20, 7, &own, &repo(2, "x"));
        let name = nostr_ref(&event);
        // Git first, to a repository that the event, as it turns out, has nothing to do with.
        inside.pushes(&(&served).into(), &event, 7).await.unwrap();
        inside.waits(&event).await;
        if is_killed {
            inside.git.world().stuck.insert((&served).into());
        }
        inside.pushes(&own, &event, 7).await.unwrap();
        assert!(inside.serves(&event).await);
        assert_eq!(inside.git.refs_of(&served).contains_key(&name), is_killed);
        inside.git.world().stuck.clear();
        inside.starts_again().await;
        assert!(!inside.git.refs_of(&served).contains_key(&name));
        assert!(inside.release.purgatory.pull_requests.is_empty());
        assert!(inside.serves(&event).await);
        assert_eq!(inside.git.refs_of(own.clone()).len(), 1);
    }
}

#[tokio::test]
async fn a_deletion_takes_the_ref_along_before_and_after() {
    let inside = Inside::new().await;
    let (to, nowhere) = (space(5, "x"), repo(1, "x"));
    for (at, pushed) in [(20, false), (21, true)] {
        let event = contribution(5, at, 7, &to, &nowhere);
        inside.waits(&event).await;
        if pushed {
            inside.pushes(&to, &event, 7).await.unwrap();
        }
        let tags = [tag(&["e", &event.id.to_hex()])];
        inside
            .admit(&sign(5, nip34::DELETION, 30 + at, &tags))
            .await;
        assert!(!inside.serves(&event).await && !inside.holds(&event));
        inside.has_nothing_at(&to);
    }
}

#[tokio::test]
async fn it_outlives_the_repository_that_it_is_offered_to() {
    let inside = Inside::new().await;
    let (to, served) = (space(5, "x"), inside.active(1, "x", &[]).await);
    let own = contribution(5, 20, 7, &to, &served);
    let direct = contribution(5, 21, 8, &to, &served);
    for event in [&own, &direct] {
        inside.waits(event).await;
    }
    inside.pushes(&to, &own, 7).await.unwrap();
    inside.pushes(&(&served).into(), &direct, 8).await.unwrap();
    let tags = [tag(&["a", &served.coordinate()])];
    inside.admit(&sign(1, nip34::DELETION, 40, &tags)).await;
    // Only what its author's space has.
    assert!(inside.serves(&own).await && !inside.serves(&direct).await);
    assert_eq!(inside.git.refs_of(to).len(), 1);
}

#[tokio::test]
async fn an_end_between_two_steps_leaves_no_ref_behind() {
    let inside = Inside::new().await;
    let (to, nowhere) = (space(5, "x"), repo(1, "x"));
    let event = contribution(5, 20, 7, &to, &nowhere);
    let id = nip34::id_of(&event);
    inside.waits(&event).await;
    inside.pushes(&to, &event, 7).await.unwrap();
    // Killed after the event was deleted and before its ref was.
    inside.release.store.remove([id]).await.unwrap();
    inside.starts_again().await;
    inside.has_nothing_at(&to);
    // Killed after it was noted and before there was a ref.
    let purgatory = &inside.release.purgatory;
    purgatory.keep_place(&id, &to).await.unwrap();
    inside.starts_again().await;
    inside.has_nothing_at(&to);
    // Withheld, it is not gone.
    inside.waits(&event).await;
    inside.pushes(&to, &event, 7).await.unwrap();
    inside.release.store.withhold([id]);
    inside.starts_again().await;
    assert!(inside.git.has(to.clone()) && !inside.serves(&event).await);
    // The git storage is away while it is deleted: seen to when it is back.
    inside.release.store.withhold([]);
    inside.git.goes_away(true);
    let tags = [tag(&["e", &event.id.to_hex()])];
    inside.admit(&sign(5, nip34::DELETION, 40, &tags)).await;
    inside.git.goes_away(false);
    assert!(inside.git.has(to.clone()));
    inside.starts_again().await;
    inside.has_nothing_at(&to);
}

#[tokio::test]
async fn switched_off_nothing_is_taken_and_nothing_goes() {
    let mut inside = Inside::new().await;
    let (to, nowhere) = (space(5, "x"), repo(1, "x"));
    let (before, waiting) = (
        contribution(5, 20, 7, &to, &nowhere),
        contribution(5, 21, 8, &to, &nowhere),
    );
    inside.waits(&before).await;
    inside.pushes(&to, &before, 7).await.unwrap();
    inside.waits(&waiting).await;
    let ours = Domain::parse("grasp.example").unwrap();
    let off = Spaces::new(ours, false);
    inside.release.spaces = off;
    inside.push = PushService::new(
        inside.release.clone(),
        inside.serial.clone(),
        inside.curation.clone(),
        inside.hunter.hunt.clone(),
    );
    let why = inside.pushes(&to, &waiting, 8).await.unwrap_err();
    assert!(why.contains("nothing is taken"), "{why}");
    inside.passes(31 * MINUTE).await;
    inside.starts_again().await;
    assert!(inside.serves(&before).await && !inside.holds(&waiting));
    assert_eq!(inside.git.refs_of(to).len(), 1);
}

impl Inside {
    fn shows(&self, repo: &RepoId, event: &Event) -> bool {
        self.git.refs_of(repo).contains_key(&nostr_ref(event))
    }
}

#[tokio::test]
async fn wherever_its_refs_are_they_go_with_it() {
    let inside = Inside::new().await;
    let (offered, same) = (
        inside.active(1, "x", &[2]).await,
        inside.active(2, "x", &[]).await,
    );
    let (beside, other) = (
        inside.active(3, "x", &[]).await,
        inside.active(4, "y", &[]).await,
    );
    let all = [&offered, &same, &beside, &other];
    inside.served(&announcement(2, "x", 11, &[1])).await;
    let first = pull_request(5, 20, &oid(7).to_hex(), &offered);
    // The commit comes first, to a repository that has nothing to do with it.
    inside.pushes(&(&beside).into(), &first, 7).await.unwrap();
    inside.served(&first).await;
    // Served, it can be pushed anywhere.
    inside.pushes(&(&other).into(), &first, 7).await.unwrap();
    assert!(all.iter().all(|repo| inside.shows(repo, &first)));
    // Nobody there maintains what it is offered to any more.
    inside.served(&announcement(2, "x", 21, &[])).await;
    inside.ruled(&[("NGIT_EVENT_BLACKLIST", &npub(5))]).await;
    assert!(!all.iter().any(|repo| inside.shows(repo, &first)));
    inside.ruled(&[]).await;
    assert!(inside.shows(&offered, &first) && !inside.shows(&same, &first));
    inside.pushes(&(&same).into(), &first, 7).await.unwrap();
    inside.pushes(&(&other).into(), &first, 7).await.unwrap();
    inside.served(&delete(5, 30, &first)).await;
    assert!(!all.iter().any(|repo| inside.shows(repo, &first)));
    assert!(inside.release.purgatory.places.all().is_empty());
    // As it was before places were noted.
    let second = pull_request(5, 40, &oid(7).to_hex(), &offered);
    inside.served(&second).await;
    let id = nip34::id_of(&second);
    assert!(inside.shows(&offered, &second));
    let purgatory = &inside.release.purgatory;
    purgatory.forget_place(&id, &(&offered).into());
    inside.served(&delete(5, 41, &second)).await;
    assert!(!inside.shows(&offered, &second));
}

#[tokio::test]
async fn what_comes_back_has_no_ref_of_what_was_deleted_meanwhile() {
    let inside = Inside::new().await;
    let (gone, stays) = (
        inside.active(1, "x", &[]).await,
        inside.active(2, "x", &[]).await,
    );
    let offer = |at, commit| {
        let tags = [
            tag(&["c", &oid(commit).to_hex()]),
            tag(&["a", &gone.coordinate()]),
            tag(&["a", &stays.coordinate()]),
        ];
        sign(5, nip34::PULL_REQUEST, at, &tags)
    };
    let (deleted, kept) = (offer(20, 7), offer(21, 8));
    inside.git.bring(&identifier("x"), &[oid(7), oid(8)]);
    inside.served(&deleted).await;
    inside.served(&kept).await;
    inside.served(&delete_address(1, 30, &gone)).await;
    assert!(!inside.git.has(&gone) && inside.serves(&deleted).await);
    inside.served(&delete(5, 31, &deleted)).await;
    inside.admit(&announcement(1, "x", 40, &[])).await;
    assert!(inside.git.has(&gone));
    assert!(!inside.shows(&gone, &deleted) && inside.shows(&gone, &kept));
}

#[tokio::test]
async fn a_push_that_crosses_the_deletion_leaves_no_ref() {
    let inside = Inside::new().await;
    let (one, other) = (
        inside.active(1, "x", &[]).await,
        inside.active(2, "y", &[]).await,
    );
    let event = pull_request(5, 20, &oid(1).to_hex(), &one);
    inside.served(&event).await;
    let (id, to) = (nip34::id_of(&event), Address::from(&other));
    // Killed after it was noted and put, and the event was deleted before.
    inside.release.purgatory.keep_place(&id, &to).await.unwrap();
    let name = nostr_ref(&event);
    let put = inside.git.put_ref(&to, &name, oid(1), true).await;
    put.unwrap();
    inside.release.store.remove([id]).await.unwrap();
    inside.starts_again().await;
    assert!(!inside.shows(&one, &event) && !inside.shows(&other, &event));
    assert!(inside.release.purgatory.places.all().is_empty());
}

#[tokio::test]
async fn one_offered_to_two_identifiers_gets_into_both() {
    for to_space in [true, false] {
        let inside = Inside::new().await;
        let (x, y) = (
            inside.active(1, "x", &[]).await,
            inside.active(2, "y", &[]).await,
        );
        let to = match to_space {
            true => space(5, "x"),
            false => (&x).into(),
        };
        let offer = |at, commit| {
            let tags = [
                tag(&["c", &oid(commit).to_hex()]),
                tag(&["a", &y.coordinate()]),
                tag(&["a", &x.coordinate()]),
                tag(&["clone", &format!("https://grasp.example/{to}")]),
            ];
            sign(5, nip34::PULL_REQUEST, at, &tags)
        };
        let (first, second) = (offer(20, 7), offer(21, 8));
        inside.waits(&first).await;
        inside.pushes(&to, &first, 7).await.unwrap();
        assert!(inside.shows(&x, &first) && inside.shows(&y, &first));
        assert!(inside.release.purgatory.pull_requests.is_empty());
        // Git first, and it cannot be copied yet: served, and tried again.
        inside.git.world().uncopied = true;
        inside.pushes(&to, &second, 8).await.unwrap();
        inside.served(&second).await;
        assert!(inside.shows(&x, &second) && !inside.shows(&y, &second));
        inside.git.world().uncopied = false;
        inside.passes(31 * MINUTE).await;
        assert!(inside.shows(&y, &second) && inside.serves(&second).await);
        assert!(inside.release.purgatory.pull_requests.is_empty());
    }
}

#[tokio::test]
async fn what_expires_by_its_own_word_takes_its_refs_along() {
    let inside = Inside::new().await;
    let served = inside.active(1, "x", &[]).await;
    let to = space(5, "x");
    // The store goes by the system's clock.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let at = now.unwrap().as_secs() + 600;
    let expiring = |commit| {
        let tags = [
            tag(&["c", &oid(commit).to_hex()]),
            tag(&["a", &served.coordinate()]),
            tag(&["clone", &format!("https://grasp.example/{to}")]),
            tag(&["expiration", &at.to_string()]),
        ];
        sign(5, nip34::PULL_REQUEST, 20, &tags)
    };
    let (event, waiting) = (expiring(7), expiring(8));
    inside.waits(&event).await;
    inside.pushes(&to, &event, 7).await.unwrap();
    inside.waits(&waiting).await;
    inside.passes(9 * MINUTE).await;
    assert!(inside.serves(&event).await && inside.shows(&served, &event));
    let left = at - inside.clock.now().as_secs();
    inside.clock.advance(Duration::from_secs(left));
    let why = inside.pushes(&to, &waiting, 8).await.unwrap_err();
    assert!(why.contains("has expired"), "{why}");
    inside.passes(MINUTE).await;
    assert!(!inside.serves(&event).await && !inside.shows(&served, &event));
    // What was brought for it does not have it served, either.
    inside.git.bring(&identifier("x"), &[oid(8)]);
    inside.starts_again().await;
    assert!(!inside.serves(&waiting).await);
    inside.has_nothing_at(&to);
}
