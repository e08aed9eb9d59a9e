//! Which events are accepted, whatever they are about; and how they end by their own word.

use std::path::PathBuf;

use super::{
    holding::{about, delete},
    *,
};

const FUTURE: &str = "invalid: created_at is too far in the future";
/// Far behind what any machine's clock says: stores refuse what has expired by that.
const EXPIRES: u64 = 4_000_000_000;

fn with(event: &Event, seed: u8, more: &[&str]) -> Event {
    let mut tags: Vec<Vec<String>> = event.tags.iter().map(|t| t.as_slice().to_vec()).collect();
    tags.push(tag(more));
    sign(seed, event.kind, event.created_at.as_secs(), &tags)
}

fn expiring(event: &Event, seed: u8) -> Event {
    with(event, seed, &["expiration", &EXPIRES.to_string()])
}

impl Inside {
    /// Time passes until what expires has.
    async fn expires(&self) {
        let left = EXPIRES - self.clock.now().as_secs();
        self.passes(Duration::from_secs(left)).await;
    }
}

#[tokio::test]
async fn what_is_made_in_the_future_is_refused_on_every_way_in() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    let now = inside.clock.now().as_secs();
    let of_each_kind = |at| {
        [
            announcement(1, "x", at, &[]),
            state(1, "x", at, &[("main", 1)]),
            pull_request(2, at, &oid(1).to_hex(), &repo),
            about(2, 1621, at, &[&repo], &[]),
            about(2, 20_001, at, &[&repo], &[]),
            sign(2, nip34::GRASP_LIST, at, &[]),
            sign(2, nip34::DELETION, at, &[tag(&["k", "1"])]),
            sign(2, nip34::VANISH, at, &[tag(&["relay", "ALL_RELAYS"])]),
        ]
    };
    // In milliseconds, and a second too far.
    for at in [now * 1000, u64::MAX, now + 901] {
        for event in of_each_kind(at) {
            assert_eq!(inside.admit(&event).await, Verdict::rejected(FUTURE));
            assert_eq!(inside.admit_synced(&event).await, Verdict::rejected(FUTURE));
        }
    }
    for event in of_each_kind(now + 900) {
        let verdict = inside.admit(&event).await;
        assert!(verdict.ok, "{} {verdict:?}", event.kind);
    }
}

#[tokio::test]
async fn a_version_that_loses_is_a_duplicate() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    let two = |at| {
        let mut two = [
            state(1, "x", at, &[("main", 1)]),
            state(1, "x", at, &[("main", 1), ("other", 1)]),
        ];
        two.sort_by_key(|event| event.id);
        two
    };
    let [lower, higher] = two(20);
    inside.served(&lower).await;
    for event in [&higher, &state(1, "x", 15, &[("main", 1)])] {
        assert_eq!(inside.admit(event).await, Verdict::accepted(REPLACED));
        assert_eq!(
            inside.admit_synced(event).await,
            Verdict::accepted(REPLACED)
        );
        assert!(!inside.serves(event).await && !inside.holds(event));
    }
    assert!(REPLACED.starts_with("duplicate: "));
    let known = inside.admit(&lower).await;
    assert!(known.ok && known.message.starts_with("duplicate: "));
    // Announcements, served and waiting, and what is replaceable without a name.
    assert_eq!(
        inside.admit(&announcement(1, "x", 9, &[])).await,
        Verdict::accepted(REPLACED)
    );
    inside.waits(&announcement(1, "y", 10, &[])).await;
    assert_eq!(
        inside.admit(&announcement(1, "y", 9, &[])).await,
        Verdict::accepted(REPLACED)
    );
    let list = |at| sign(1, nip34::GRASP_LIST, at, &[]);
    inside.served(&list(10)).await;
    assert_eq!(inside.admit(&list(9)).await, Verdict::accepted(REPLACED));
}

#[tokio::test]
async fn a_state_that_nothing_can_fulfil_is_refused() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    let zero = "0".repeat(40);
    let sha256 = "ab".repeat(32);
    let whole = oid(1).to_hex();
    for refs in [
        vec![],
        vec![tag(&["HEAD", "ref: refs/heads/main"])],
        vec![tag(&["refs/tags/v1^{}", &whole])],
        vec![tag(&["refs/notes/x", &whole])],
        vec![tag(&["refs/heads/main", "ref: refs/heads/main"])],
        vec![tag(&["refs/heads/main", &zero])],
        vec![tag(&["refs/heads/main", "abc"])],
        vec![tag(&["refs/heads/main", &sha256])],
        vec![tag(&["refs/heads/main"])],
        vec![
            tag(&["refs/heads/main", &whole]),
            tag(&["refs/tags/v1", &zero]),
        ],
    ] {
        let mut tags = vec![tag(&["d", "x"])];
        tags.extend(refs);
        let event = sign(1, nip34::STATE, 20, &tags);
        let verdict = inside.admit(&event).await;
        assert!(!verdict.ok, "{tags:?}");
        assert!(verdict.message.starts_with("invalid: "), "{verdict:?}");
        assert!(!inside.holds(&event));
    }
}

#[tokio::test]
async fn a_repost_of_a_protected_event_is_refused() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    let free = about(2, 1111, 20, &[&repo], &[]);
    let protected = with(&free, 2, &["-"]);
    for kind in [6, 16] {
        let repost = |content: &Event| {
            EventBuilder::new(Kind::from_u16(kind), content.as_json())
                .tag(Tag::parse(["a", &repo.coordinate()]).unwrap())
                .custom_created_at(Timestamp::from(30))
                .finalize(&keys(3))
                .unwrap()
        };
        let verdict = inside.admit(&repost(&protected)).await;
        assert!(!verdict.ok && verdict.message.starts_with("blocked: "));
        inside.served(&repost(&free)).await;
    }
}

#[tokio::test]
async fn the_services_own_events_need_not_belong_to_anything() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    let profile = sign(SERVICE, Kind::Metadata, 20, &[]);
    let note = sign(SERVICE, Kind::TextNote, 20, &[]);
    let other = sign(9, Kind::TextNote, 20, &[]);
    assert!(!inside.admit(&other).await.ok);
    inside.served(&profile).await;
    inside.served(&note).await;
    assert!(
        inside
            .admit_synced(&sign(SERVICE, Kind::TextNote, 21, &[]))
            .await
            .ok
    );
    // They stay when what they name goes.
    let about_it = about(SERVICE, 1, 22, &[&repo], &[]);
    inside.served(&about_it).await;
    let announced = announcement(1, "x", 10, &[]);
    inside.served(&delete(1, 40, &announced)).await;
    assert!(inside.serves(&note).await && inside.serves(&profile).await);
}

#[tokio::test]
async fn an_announcement_that_expires_takes_along_what_a_deletion_would() {
    let inside = Inside::new().await;
    let announced = expiring(&announcement(1, "x", 10, &[]), 1);
    inside.waits(&announced).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let pushed = state(1, "x", 10, &[("main", 1)]);
    inside.served(&pushed).await;
    let one = repo(1, "x");
    let issue = about(5, 1621, 20, &[&one], &[]);
    let comment = about(6, 1111, 21, &[], &[&issue]);
    inside.served(&issue).await;
    inside.served(&comment).await;
    let other = inside.active(2, "y", &[]).await;
    inside.expires().await;
    for event in [&announced, &pushed, &issue, &comment] {
        assert!(!inside.serves(event).await);
    }
    assert_eq!(inside.release.repositories.standing(&one), None);
    assert!(!inside.git.has(&one) && inside.git.has(&other));
    assert!(!inside.admit(&announced).await.ok);
    // Announced again, it is back.
    inside.served(&announcement(1, "x", 30, &[])).await;
    assert!(inside.serves(&pushed).await);
}

#[tokio::test]
async fn states_requests_and_plain_events_expire_served_or_waiting() {
    let inside = Inside::new().await;
    let one = inside.active(1, "x", &[2]).await;
    inside.served(&answer(2, "x", 10, &[1])).await;
    inside.git.bring(&identifier("x"), &[oid(2), oid(3)]);
    let latest = expiring(&state(2, "x", 20, &[("main", 2)]), 2);
    inside.served(&latest).await;
    let request = expiring(&pull_request(5, 20, &oid(3).to_hex(), &one), 5);
    inside.served(&request).await;
    let issue = expiring(&about(5, 1621, 20, &[&one], &[]), 5);
    inside.served(&issue).await;
    let waiting = expiring(&state(1, "x", 30, &[("main", 9)]), 1);
    let main = || inside.git.refs_of(&one).get(&branch("main")).copied();
    assert_eq!(main(), Some(oid(2)));
    let left = EXPIRES - inside.clock.now().as_secs();
    inside.clock.advance(Duration::from_secs(left - 60));
    inside.waits(&waiting).await;
    inside.passes(Duration::from_secs(59)).await;
    assert!(inside.serves(&latest).await && inside.holds(&waiting));
    // Hidden at once, before anything looks for them.
    inside.clock.advance(Duration::from_secs(1));
    let public = inside.release.store.database();
    let everything = nostr::Filter::new();
    let items = public.negentropy_items(everything.clone()).await.unwrap();
    let found = public.query(everything.clone()).await.unwrap();
    assert_eq!(public.count(everything).await.unwrap(), items.len());
    assert_eq!(found.len(), items.len());
    for event in [&latest, &request, &issue] {
        assert!(!items.iter().any(|(id, _)| *id == event.id));
        assert!(inside.serves(event).await);
    }
    inside.passes(Duration::ZERO).await;
    for event in [&latest, &request, &issue, &waiting] {
        assert!(!inside.serves(event).await && !inside.holds(event));
    }
    // The refs are as the state says that is left, and the request's is gone.
    assert_eq!(main(), Some(oid(1)));
    assert_eq!(inside.git.refs_of(&one).len(), 1);
}

#[tokio::test]
async fn what_was_stored_before_there_was_an_index_expires_too() {
    let directory = tempfile::tempdir().unwrap();
    let open = || async {
        let path: PathBuf = directory.path().join("events");
        Store::open(Backend::Lmdb, &path).await.unwrap()
    };
    let old = expiring(&about(5, 1621, 20, &[&repo(1, "x")], &[]), 5);
    let store = open().await;
    store.save(&old).await.unwrap();
    let (journal, records) = Journal::open(&directory.path().join("journal")).unwrap();
    let inside = Inside::over(store, journal, &records, StandIn::default().into()).await;
    expiry::adopt(&inside.release).await.unwrap();
    inside.passes(Duration::ZERO).await;
    assert!(inside.serves(&old).await);
    inside.expires().await;
    assert!(!inside.serves(&old).await);
    assert!(inside.release.purgatory.knows_all_expiring().await.unwrap());
}

#[tokio::test]
async fn what_an_older_version_took_from_the_future_blocks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Backend::Lmdb, &directory.path().join("events"))
        .await
        .unwrap();
    let now = Timestamp::now().as_secs();
    let ahead = now * 1000;
    let announced = announcement(1, "x", ahead, &[2]);
    let mistaken = state(1, "x", ahead, &[("main", 2)]);
    let list = sign(1, nip34::GRASP_LIST, ahead, &[]);
    for event in [&announced, &mistaken, &list] {
        store.save(event).await.unwrap();
    }
    let one = repo(1, "x");
    let git: Arc<StandIn> = StandIn::default().into();
    git.bring(&identifier("x"), &[oid(1), oid(2), oid(3)]);
    git.create(&one).await.unwrap();
    let inside = Inside::over(store, Journal::none(), &[], git).await;
    let rules = inside.curation.rules();
    let loading =
        withhold::load_served(&inside.release.store, &inside.release.repositories, &rules);
    loading.await.unwrap();
    inside
        .clock
        .advance(Duration::from_secs(now - 1_000_000_000));
    inside.release.realign(&one).await.unwrap();
    let main = || inside.git.refs_of(&one).get(&branch("main")).copied();
    // Served as it was, until there is one from now.
    assert!(inside.serves(&announced).await && inside.serves(&mistaken).await);
    assert_eq!(main(), Some(oid(2)));
    inside.served(&answer(2, "x", now - 90, &[1])).await;
    inside
        .served(&state(2, "x", now - 60, &[("main", 3)]))
        .await;
    assert_eq!(main(), Some(oid(3)), "another maintainer's comes after it");
    inside
        .served(&state(1, "x", now - 30, &[("main", 1)]))
        .await;
    assert_eq!(main(), Some(oid(1)));
    inside.served(&announcement(1, "x", now - 30, &[])).await;
    inside
        .served(&sign(1, nip34::GRASP_LIST, now - 30, &[]))
        .await;
    for event in [&announced, &mistaken, &list] {
        assert!(!inside.serves(event).await);
        assert_eq!(inside.admit(event).await, Verdict::rejected(FUTURE));
    }
    assert_eq!(
        inside.admit(&state(1, "x", now - 31, &[("main", 2)])).await,
        Verdict::accepted(REPLACED)
    );
}
