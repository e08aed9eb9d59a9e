//! What is held, what is worth fetching, and what becomes of what was found.

use super::*;

#[tokio::test]
async fn verdicts_come_in_the_order_of_the_events() {
    let open = Open::new().await;
    let inside = &open.inside;
    let repo = inside.active(1, "x", &[]).await;
    let list = sign(2, nip34::GRASP_LIST, 10, &[]);
    let waits = named(3, "y", 10, &[], &[]);
    let known = issue_on(2, 20, &repo);
    inside.served(&known).await;
    let no_commit = sign(
        2,
        nip34::PULL_REQUEST,
        11,
        &[tag(&["a", &repo.coordinate()])],
    );
    let unrelated = sign(2, ISSUE, 12, &[]);
    let mut forged = sign(2, ISSUE, 13, &[tag(&["a", &repo.coordinate()])]);
    forged.sig = known.sig;
    let strange = sign(4, nip34::STATE, 14, &[tag(&["d", "nobody's"])]);
    let mut worker = open.worker("w");
    let events = [
        &list, &waits, &known, &no_commit, &unrelated, &forged, &strange,
    ];
    let expected = [
        What::Accepted,
        What::Purgatory,
        What::Duplicate,
        What::Rejected,
        What::KeptForLater,
        What::Forged,
        What::KeptForLater,
    ];
    assert_eq!(worker.submit(&events).await, expected);
    // Told again, nothing is judged anew; and what was forged keeps out nobody.
    assert_eq!(
        worker.submit(&[&unrelated, &no_commit]).await,
        [What::KeptForLater, What::Rejected]
    );
    assert_eq!(worker.lacking(&[&forged]).await, [bytes(&forged)]);
    let garbage = worker
        .try_submit(vec!["[1".to_owned(), String::new()])
        .await
        .unwrap();
    assert!(garbage.iter().all(|(what, _)| *what == What::Forged));
    assert_eq!(worker.submit(&[]).await, []);
}

#[tokio::test]
async fn a_maintainers_announcement_may_come_before_the_owners() {
    let open = Open::new().await;
    let mut worker = open.worker("w");
    let maintainers = announcement_elsewhere(2, "x", 10);
    assert_eq!(worker.submit(&[&maintainers]).await, [What::KeptForLater]);
    assert_eq!(worker.lacking(&[&maintainers]).await.len(), 0);
    assert_eq!(open.judge.judge_again().await, 0);
    open.inside.waits(&announcement(1, "x", 10, &[2])).await;
    assert_eq!(open.judge.judge_again().await, 1);
    assert!(open.inside.serves(&maintainers).await);
    // In one batch their order does not matter, nor does that of states.
    let (owners, theirs) = (
        announcement(3, "y", 10, &[4]),
        announcement_elsewhere(4, "y", 9),
    );
    let state = state(4, "y", 8, &[("main", 1)]);
    let verdicts = worker.submit(&[&state, &theirs, &owners]).await;
    assert_eq!(verdicts[0], What::Purgatory);
    open.judge.judge_again().await;
    assert!(open.inside.serves(&theirs).await);
}

#[tokio::test]
async fn what_is_kept_follows_its_parents_step_by_step() {
    let open = Open::new().await;
    let inside = &open.inside;
    let mut worker = open.worker("w");
    let repo = repo(1, "x");
    let issue = issue_on(2, 20, &repo);
    let comment = comment_on(3, 21, &issue);
    let reply = comment_on(2, 22, &comment);
    for event in [&reply, &comment, &issue] {
        assert_eq!(worker.submit(&[event]).await, [What::KeptForLater]);
    }
    inside.waits(&announcement(1, "x", 10, &[])).await;
    open.judge.judge_again().await;
    assert!(!inside.serves(&issue).await);
    inside.git.bring(&identifier("x"), &[oid(1)]);
    inside.served(&state(1, "x", 10, &[("main", 1)])).await;
    open.judge.judge_again().await;
    for event in [&issue, &comment, &reply] {
        assert!(inside.serves(event).await);
    }
    open.look_up().await;
    let target = open
        .wanted
        .look(|targets| targets.get(&repo).cloned().unwrap());
    assert_eq!(target.roots, BTreeSet::from([id_of(&issue)]));
}

#[tokio::test]
async fn what_grew_cold_can_be_fetched_again_when_its_parent_comes() {
    let open = Open::new().await;
    let mut worker = open.worker("w");
    let repo = repo(1, "x");
    let issue = issue_on(2, 20, &repo);
    assert_eq!(worker.submit(&[&issue]).await, [What::KeptForLater]);
    open.inside.clock.advance(3 * MINUTE);
    open.judge.tick();
    assert_eq!(open.judge.sizes(), (0, 1));
    assert_eq!(worker.lacking(&[&issue]).await.len(), 0);
    open.inside.active(1, "x", &[]).await;
    assert_eq!(worker.lacking(&[&issue]).await, [bytes(&issue)]);
    assert_eq!(worker.submit(&[&issue]).await, [What::Accepted]);
}

#[tokio::test]
async fn lacking_is_what_is_neither_held_nor_refused() {
    let open = Open::new().await;
    let inside = &open.inside;
    let mut worker = open.worker("w");
    let repo = inside.active(1, "x", &[]).await;
    let stored = issue_on(2, 20, &repo);
    inside.served(&stored).await;
    let waiting = state(1, "x", 30, &[("main", 2)]);
    inside.waits(&waiting).await;
    let expiring = announcement(5, "z", 10, &[]);
    inside.waits(&expiring).await;
    inside.passes(31 * MINUTE).await;
    inside.passes(DAY).await;
    inside.waits(&waiting).await;
    let deleted = issue_on(2, 21, &repo);
    let request = sign(2, nip34::DELETION, 40, &[tag(&["e", &deleted.id.to_hex()])]);
    inside.served(&request).await;
    assert_eq!(worker.submit(&[&deleted]).await, [What::Rejected]);
    assert_eq!(worker.submit(&[&expiring]).await, [What::KeptForLater]);
    let unknown = issue_on(2, 22, &repo);
    let all = [&stored, &waiting, &expiring, &deleted, &unknown];
    assert_eq!(worker.lacking(&all).await, [bytes(&unknown)]);
}

#[tokio::test]
async fn the_inventory_holds_what_is_served_and_what_waits() {
    let open = Open::new().await;
    let inside = &open.inside;
    let mut worker = open.worker("w");
    let active = inside.active(1, "x", &[]).await;
    let waiting = announcement(2, "y", 11, &[]);
    inside.waits(&waiting).await;
    let request = pull_request(3, 12, &oid(9).to_hex(), &active);
    inside.waits(&request).await;
    let kinds = worker.inventory("{\"kinds\":[30617]}").await.unwrap();
    let served = announcement(1, "x", 10, &[]);
    assert_eq!(kinds, [(bytes(&waiting), 11), (bytes(&served), 10)]);
    let latest = worker
        .inventory("{\"kinds\":[30617],\"limit\":1}")
        .await
        .unwrap();
    assert_eq!(latest, [(bytes(&waiting), 11)]);
    let none = worker
        .inventory("{\"kinds\":[30617],\"limit\":0}")
        .await
        .unwrap();
    assert_eq!(none, []);
    let by_coordinate = format!("{{\"#a\":[\"{}\"]}}", active.coordinate());
    let belonging = worker.inventory(&by_coordinate).await.unwrap();
    assert_eq!(belonging, [(bytes(&request), 12)]);
    for n in 0..5_100 {
        let list = sign(u8::try_from(n % 200 + 1).unwrap(), COMMENT, n, &[]);
        inside.release.store.save(&list).await.unwrap();
    }
    let many = worker.inventory("{\"kinds\":[1111]}").await.unwrap();
    assert_eq!(many.len(), 5_100);
}
