//! What is held, what is worth fetching, and what becomes of what was found.

use std::collections::HashSet;

use grasp_relay::live::outbox::{Next, Outgoing};

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
    let (owners, theirs) = (announcement(3, "y", 10, &[4]), answer(4, "y", 9, &[3]));
    let state = state(4, "y", 8, &[("main", 1)]);
    worker.submit(&[&state, &theirs, &owners]).await;
    open.judge.judge_again().await;
    assert!(open.inside.serves(&theirs).await);
    assert!(open.inside.holds(&state));
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
    assert_eq!(
        target.roots,
        BTreeSet::from([(issue.created_at, id_of(&issue))])
    );
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

#[tokio::test]
async fn ephemeral_events_are_not_passed_on() {
    let open = Open::new().await;
    let inside = &open.inside;
    let repo = inside.active(1, "x", &[]).await;
    let ephemeral = |at| {
        let tags = [tag(&["a", &repo.coordinate()])];
        sign(2, Kind::Custom(20_001), at, &tags)
    };
    let listener = inside.release.live.connect(None);
    let all = [nostr::Filter::new().into()];
    let subscription = listener.subscribe("\"s\"", all.into(), 1).unwrap();
    let eose = Outgoing::Text(String::new());
    listener
        .outbox()
        .release(subscription.number(), eose, &HashSet::new());
    let told = || {
        let mut told = 0;
        while let Next::Send(_) = listener.outbox().try_next() {
            told += 1;
        }
        told
    };
    told();
    let mut worker = open.worker("w");
    let found = ephemeral(20);
    for _ in 0..2 {
        assert_eq!(worker.submit(&[&found]).await, [What::Rejected]);
    }
    assert_eq!(told(), 0);
    assert_eq!(open.judge.sizes(), (0, 0), "nothing is remembered of it");
    // A client's goes out, once.
    let theirs = ephemeral(21);
    inside.served(&theirs).await;
    for _ in 0..2 {
        assert!(inside.admit(&theirs).await.message.starts_with("duplicate"));
    }
    assert_eq!(told(), 1);
}

#[tokio::test]
async fn protected_events_are_taken_from_their_authors_only() {
    let open = Open::new().await;
    let inside = &open.inside;
    let repo = inside.active(1, "x", &[]).await;
    let protected = |kind, at| {
        let tags = [
            tag(&["a", &repo.coordinate()]),
            tag(&["d", "x"]),
            tag(&["-"]),
        ];
        sign(1, kind, at, &tags)
    };
    let (issue, state) = (protected(ISSUE, 20), protected(nip34::STATE, 21));
    let mut worker = open.worker("w");
    let verdicts = worker.submit(&[&issue, &state]).await;
    assert_eq!(verdicts, [What::Rejected, What::Rejected]);
    assert_eq!(worker.lacking(&[&issue, &state]).await.len(), 0);
    // The session has seen that it is the author's.
    inside.served(&issue).await;
    let known = protected(ISSUE, 22);
    inside.served(&known).await;
    assert_eq!(worker.submit(&[&known]).await, [What::Duplicate]);
}

#[tokio::test]
async fn lists_are_taken_of_those_who_are_known_here() {
    let open = Open::new().await;
    let inside = &open.inside;
    let repo = inside.active(1, "x", &[2]).await;
    inside.served(&issue_on(3, 20, &repo)).await;
    let request = sign(5, nip34::DELETION, 21, &[tag(&["e", &"7".repeat(64)])]);
    inside.served(&request).await;
    let list = |seed| sign(seed, nip34::GRASP_LIST, 30, &[]);
    let mut worker = open.worker("w");
    for known in 1..=3 {
        assert_eq!(worker.submit(&[&list(known)]).await, [What::Accepted]);
    }
    for strange in 4..=5 {
        assert_eq!(worker.submit(&[&list(strange)]).await, [What::KeptForLater]);
    }
    // It becomes known: with an announcement, or with anything that is served.
    inside.waits(&announcement(4, "y", 10, &[])).await;
    inside.served(&issue_on(5, 22, &repo)).await;
    open.judge.judge_again().await;
    assert!(inside.serves(&list(4)).await && inside.serves(&list(5)).await);
    // A client may send any.
    inside.served(&list(6)).await;
}

#[tokio::test]
async fn what_was_forgotten_is_asked_for_again() {
    let open = Open::new().await;
    let inside = &open.inside;
    let mut worker = open.worker("w");
    inside
        .waits(&named(1, "x", 10, &[], &["wss://r.example"]))
        .await;
    open.wanted.build(&inside.release).await;
    let mut changes = worker.watch().await;
    let first = changes.message().await.unwrap().unwrap().targets.remove(0);
    let theirs = state(2, "x", 20, &[("main", 1)]);
    assert_eq!(worker.submit(&[&theirs]).await, [What::KeptForLater]);
    inside.clock.advance(3 * MINUTE);
    open.judge.tick();
    assert_eq!(worker.lacking(&[&theirs]).await.len(), 0);
    // The maintainer is named now, and names back; a worker that asks again gets it.
    inside
        .waits(&named(1, "x", 11, &[2], &["wss://r.example"]))
        .await;
    inside.served(&answer(2, "x", 10, &[1])).await;
    open.look_up().await;
    let again = changes.message().await.unwrap().unwrap().targets.remove(0);
    assert!(again.generation > first.generation);
    assert_eq!(again.relays, first.relays);
    assert_eq!(worker.lacking(&[&theirs]).await, [bytes(&theirs)]);
    assert_eq!(worker.submit(&[&theirs]).await, [What::Purgatory]);
    // Without anything forgotten nothing is asked for again.
    inside
        .waits(&named(1, "x", 12, &[2], &["wss://r.example"]))
        .await;
    open.look_up().await;
    let generation = open.wanted.look(|targets| {
        let (_, target) = targets.all().next().unwrap();
        target.generation
    });
    assert_eq!(generation, again.generation);
}

#[tokio::test]
async fn what_went_and_came_back_within_a_window_is_not_the_same() {
    let open = Open::new().await;
    let inside = &open.inside;
    let repo = inside.active(1, "x", &[]).await;
    let issue = issue_on(2, 20, &repo);
    inside.served(&issue).await;
    open.wanted.build(&inside.release).await;
    let mut changes = open.worker("w").watch().await;
    let first = changes.message().await.unwrap().unwrap().targets.remove(0);
    assert_eq!(first.new_roots, [bytes(&issue)]);
    let deletion = sign(1, nip34::DELETION, 30, &[tag(&["a", &repo.coordinate()])]);
    inside.served(&deletion).await;
    // Its git data is there still.
    inside.served(&announcement(1, "x", 40, &[])).await;
    let later = issue_on(2, 41, &repo);
    inside.served(&later).await;
    open.look_up().await;
    let back = changes.message().await.unwrap().unwrap().targets.remove(0);
    assert!(back.generation > first.generation);
    assert_eq!(back.new_roots, [bytes(&later)], "the other went with it");
}

#[tokio::test]
async fn a_root_event_that_is_deleted_is_no_root_any_more() {
    let open = Open::new().await;
    let inside = &open.inside;
    let repo = inside.active(1, "x", &[]).await;
    let issues: Vec<Event> = (20..40).map(|at| issue_on(2, at, &repo)).collect();
    for issue in &issues {
        inside.served(issue).await;
    }
    open.wanted.build(&inside.release).await;
    let mut changes = open.worker("w").watch().await;
    let first = changes.message().await.unwrap().unwrap();
    assert_eq!(first.targets[0].new_roots.len(), 20);
    let request = sign(
        2,
        nip34::DELETION,
        50,
        &[tag(&["e", &issues[3].id.to_hex()])],
    );
    inside.served(&request).await;
    let more: Vec<Event> = (60..70).map(|at| issue_on(3, at, &repo)).collect();
    for issue in &more {
        inside.served(issue).await;
    }
    open.look_up().await;
    let told = changes.message().await.unwrap().unwrap().targets;
    assert_eq!(told.len(), 1, "a repository is told once");
    assert_eq!(told[0].new_roots.len(), 10);
    let roots = open
        .wanted
        .look(|targets| targets.get(&repo).unwrap().roots.len());
    assert_eq!(roots, 29);
}

#[tokio::test]
async fn the_inventory_of_an_identifier_is_what_waits_under_it() {
    let open = Open::new().await;
    let inside = &open.inside;
    let mut worker = open.worker("w");
    for (seed, name) in [(1, "x"), (2, "x"), (3, "y")] {
        inside.waits(&announcement(seed, name, 10, &[])).await;
        inside.waits(&state(seed, name, 20, &[("main", 1)])).await;
    }
    for (filter, count) in [
        ("{\"kinds\":[30618],\"#d\":[\"x\"]}", 2),
        ("{\"kinds\":[30617],\"#d\":[\"x\"]}", 2),
        ("{\"#d\":[\"x\",\"y\",\"z\",\"/\"]}", 6),
        ("{\"kinds\":[30617,30618]}", 6),
        ("{\"kinds\":[]}", 0),
        ("{\"kinds\":[1618],\"#d\":[\"x\"]}", 0),
        ("{}", 6),
    ] {
        assert_eq!(
            worker.inventory(filter).await.unwrap().len(),
            count,
            "{filter}"
        );
    }
}
