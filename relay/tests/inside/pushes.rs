//! Pushes, as gitd asks about them, over the service's own methods.

use grasp_proto::contract::relay::{self as wire, authorize_response::Outcome, push_server::Push};
use grasp_relay::{nip34::announcement::Announcement, purgatory::places};
use tonic::Request;

use super::*;

impl Inside {
    pub(super) async fn authorize(
        &self,
        to: impl Into<Address>,
        commands: &[(RefName, Oid)],
    ) -> Result<(String, wire::Objects), String> {
        let request = wire::AuthorizeRequest {
            repository: Some((&to.into()).into()),
            commands: wire_commands(commands),
            ..Default::default()
        };
        let answer = self.push.authorize(Request::new(request)).await.unwrap();
        match answer.into_inner().outcome.unwrap() {
            Outcome::Granted(granted) => {
                let objects = granted.objects();
                Ok((granted.push_id, objects))
            }
            Outcome::Refused(refused) => Err(refused.reason),
        }
    }

    pub(super) async fn commit(
        &self,
        id: &str,
        to: impl Into<Address>,
        commands: &[(RefName, Oid)],
    ) -> Vec<String> {
        let to = to.into();
        self.git.pushed(&to, commands);
        let request = wire::CommitRequest {
            push_id: id.to_owned(),
            repository: Some((&to).into()),
            commands: wire_commands(commands),
            ..Default::default()
        };
        let answer = self.push.commit(Request::new(request)).await.unwrap();
        let results = answer.into_inner().results.into_iter();
        results.map(|result| result.refused).collect()
    }

    /// As gitd names a push that was granted before.
    async fn authorize_as(
        &self,
        to: &RepoId,
        commands: &[(RefName, Oid)],
        id: &str,
    ) -> Result<String, String> {
        let request = wire::AuthorizeRequest {
            repository: Some((&Address::from(to)).into()),
            commands: wire_commands(commands),
            push_id: id.to_owned(),
            ..Default::default()
        };
        let answer = self.push.authorize(Request::new(request)).await.unwrap();
        match answer.into_inner().outcome.unwrap() {
            Outcome::Granted(granted) => Ok(granted.push_id),
            Outcome::Refused(refused) => Err(refused.reason),
        }
    }

    async fn keep_alive(&self, id: &str) {
        let push_id = id.to_owned();
        let request = Request::new(wire::KeepAliveRequest { push_id });
        self.push.keep_alive(request).await.unwrap();
    }
}

fn wire_commands(commands: &[(RefName, Oid)]) -> Vec<wire::Command> {
    commands
        .iter()
        .map(|(name, new)| wire::Command {
            old: vec![0; 20],
            new: new.as_bytes().to_vec(),
            name: name.to_string(),
        })
        .collect()
}

pub(super) fn nostr_ref(event: &Event) -> RefName {
    RefName::nostr(&nip34::id_of(event))
}

#[tokio::test]
async fn a_push_serves_its_events_before_it_is_answered() {
    let inside = Inside::new().await;
    let (first, second) = (
        announcement(1, "x", 10, &[]),
        state(1, "x", 10, &[("main", 1)]),
    );
    inside.waits(&first).await;
    let commands = [(branch("main"), oid(1))];
    let repo = repo(1, "x");
    let why = inside.authorize(&repo, &commands).await.unwrap_err();
    assert!(why.contains("no state event"), "{why}");
    inside.waits(&second).await;
    let (id, objects) = inside.authorize(&repo, &commands).await.unwrap();
    assert_eq!(objects, wire::Objects::SignedFor);
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let queued = || inside.hunter.hunt.act(|queue, _| queue.len());
    assert_eq!(queued(), 1);
    assert_eq!(inside.commit(&id, &repo, &commands).await, [""]);
    assert!(inside.serves(&first).await && inside.serves(&second).await);
    // Nothing is to be looked for elsewhere any more; that comes behind the answer.
    while queued() > 0 {
        tokio::task::yield_now().await;
    }
    // Again, and the same push anew: both change nothing.
    assert_eq!(inside.commit(&id, &repo, &commands).await, [""]);
    let (_, objects) = inside.authorize(&repo, &commands).await.unwrap();
    assert_eq!(objects, wire::Objects::Unwanted);
    assert_eq!(inside.git.world().aligned, 1);
}

#[tokio::test]
async fn a_slow_upload_keeps_what_allowed_it() {
    let inside = Inside::new().await;
    inside.waits(&announcement(1, "x", 10, &[])).await;
    let event = state(1, "x", 10, &[("main", 1)]);
    inside.waits(&event).await;
    let (repo, commands) = (repo(1, "x"), [(branch("main"), oid(1))]);
    inside.clock.advance(25 * MINUTE);
    let (id, _) = inside.authorize(&repo, &commands).await.unwrap();
    for _ in 0..30 {
        inside.passes(10 * MINUTE).await;
        inside.keep_alive(&id).await;
    }
    inside.passes(14 * MINUTE).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    assert_eq!(inside.commit(&id, &repo, &commands).await, [""]);
    assert!(inside.serves(&event).await);
}

#[tokio::test]
async fn a_push_survives_the_relay_that_granted_it() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let git: Arc<StandIn> = Arc::default();
    let memory = || Store::open(Backend::Memory, Path::new(""));
    let (journal, _) = Journal::open(data.path()).unwrap();
    let before = Inside::over(memory().await.unwrap(), journal, &[], git.clone()).await;
    before.waits(&announcement(1, "x", 10, &[])).await;
    let event = state(1, "x", 10, &[("main", 1)]);
    before.waits(&event).await;
    let (repo, commands) = (repo(1, "x"), [(branch("main"), oid(1))]);
    let (id, _) = before.authorize(&repo, &commands).await.unwrap();
    before.release.purgatory.flush().await.unwrap();
    std::fs::copy(data.path().join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    let (journal, records) = Journal::open(copy.path()).unwrap();
    let after = Inside::over(memory().await.unwrap(), journal, &records, git.clone()).await;
    after.release.purgatory.restore(records);
    sweep::reconcile(&after.release).await.unwrap();
    // It was away for longer than the push was granted for. It is told before it sweeps.
    after.clock.advance(DAY);
    let push_id = id.clone();
    let request = Request::new(wire::KeepAliveRequest { push_id });
    let unknown = after.push.keep_alive(request).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    assert_eq!(
        after.authorize_as(&repo, &commands, &id).await,
        Ok(id.clone())
    );
    for _ in 0..30 {
        after.passes(10 * MINUTE).await;
        after.keep_alive(&id).await;
    }
    git.bring(&identifier("x"), &[oid(1)]);
    assert_eq!(after.commit(&id, &repo, &commands).await, [""]);
    assert!(after.serves(&event).await);
    // Named again by one that did not hear: the same push, with its answer.
    assert_eq!(
        after.authorize_as(&repo, &commands, &id).await,
        Ok(id.clone())
    );
    assert_eq!(after.commit(&id, &repo, &commands).await, [""]);
    assert_eq!(git.world().aligned, 1);
}

#[tokio::test]
async fn a_push_is_judged_again_when_it_is_committed() {
    let inside = Inside::new().await;
    inside.waits(&announcement(1, "x", 10, &[])).await;
    let event = state(1, "x", 10, &[("main", 1)]);
    inside.waits(&event).await;
    let (repo, commands) = (repo(1, "x"), [(branch("main"), oid(1))]);
    let (id, _) = inside.authorize(&repo, &commands).await.unwrap();
    let request = sign(1, nip34::DELETION, 20, &[tag(&["e", &event.id.to_hex()])]);
    inside.served(&request).await;
    inside.git.bring(&identifier("x"), &[oid(1)]);
    let results = inside.commit(&id, &repo, &commands).await;
    assert!(results[0].contains("no state event"), "{results:?}");
    assert!(inside.git.refs_of(&repo).is_empty());
}

#[tokio::test]
async fn a_push_whose_refs_were_just_applied_is_no_failure() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    let event = state(1, "x", 20, &[("main", 2)]);
    inside.waits(&event).await;
    let (repo, commands) = (repo(1, "x"), [(branch("main"), oid(2))]);
    let (id, _) = inside.authorize(&repo, &commands).await.unwrap();
    inside.git.bring(&identifier("x"), &[oid(2)]);
    inside.passes(31 * MINUTE).await;
    assert!(inside.serves(&event).await, "released in the background");
    assert_eq!(inside.commit(&id, &repo, &commands).await, [""]);
}

#[tokio::test]
async fn a_served_state_allows_no_change() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    assert!(
        inside
            .authorize(&repo, &[(branch("main"), oid(2))])
            .await
            .is_err()
    );
    assert!(
        inside
            .authorize(&repo, &[(branch("main"), Oid::ZERO)])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_state_that_another_supersedes_allows_nothing() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[2]).await;
    inside.served(&answer(2, "x", 10, &[1])).await;
    inside.waits(&state(2, "x", 20, &[("main", 2)])).await;
    inside.git.bring(&identifier("x"), &[oid(3)]);
    inside.served(&state(1, "x", 30, &[("main", 3)])).await;
    assert!(
        inside
            .authorize(&repo, &[(branch("main"), oid(2))])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn git_first_then_the_event() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    let right = pull_request(5, 30, &oid(7).to_hex(), &repo);
    let commands = [(nostr_ref(&right), oid(7))];
    let (id, objects) = inside.authorize(&repo, &commands).await.unwrap();
    assert_eq!(objects, wire::Objects::Staged);
    assert_eq!(inside.commit(&id, &repo, &commands).await, [""]);
    assert_eq!(inside.git.refs_of(&repo).get(&commands[0].0), Some(&oid(7)));
    assert!(!inside.holds(&right));
    inside.served(&right).await;
    assert_eq!(inside.git.refs_of(&repo).get(&commands[0].0), Some(&oid(7)));

    let wrong = pull_request(5, 31, &oid(8).to_hex(), &repo);
    let commands = [(nostr_ref(&wrong), oid(7))];
    let (id, _) = inside.authorize(&repo, &commands).await.unwrap();
    inside.commit(&id, &repo, &commands).await;
    inside.waits(&wrong).await;
    assert!(!inside.git.refs_of(&repo).contains_key(&commands[0].0));
    let commands = [(nostr_ref(&wrong), oid(8))];
    let (id, objects) = inside.authorize(&repo, &commands).await.unwrap();
    assert_eq!(objects, wire::Objects::SignedFor);
    inside.git.bring(&identifier("x"), &[oid(8)]);
    assert_eq!(inside.commit(&id, &repo, &commands).await, [""]);
    assert!(inside.serves(&wrong).await);
}

#[tokio::test]
async fn of_several_commits_that_wait_for_an_event_it_chooses_one() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let git: Arc<StandIn> = Arc::default();
    let memory = || Store::open(Backend::Memory, Path::new(""));
    let (journal, _) = Journal::open(data.path()).unwrap();
    let before = Inside::over(memory().await.unwrap(), journal, &[], git.clone()).await;
    let repo = before.active(1, "x", &[]).await;
    let announced = before.release.store.announcement(&repo).await.unwrap();
    let [first, second, neither] = [7, 8, 6].map(|commit| {
        let at = 30 + u64::from(commit);
        pull_request(5, at, &oid(commit).to_hex(), &repo)
    });
    for event in [&first, &second, &neither] {
        let name = nostr_ref(event);
        for commit in [7, 8, 9] {
            let commands = [(name.clone(), oid(commit))];
            let (id, objects) = before.authorize(&repo, &commands).await.unwrap();
            assert_eq!(objects, wire::Objects::Staged);
            assert_eq!(before.commit(&id, &repo, &commands).await, [""]);
        }
        // One that waits already changes nothing, shown or not.
        for commit in [7, 9] {
            let commands = [(name.clone(), oid(commit))];
            let (_, objects) = before.authorize(&repo, &commands).await.unwrap();
            assert_eq!(objects, wire::Objects::Unwanted);
        }
        assert_eq!(git.refs_of(&repo).get(&name), Some(&oid(7)));
    }
    before.served(&first).await;
    assert_eq!(git.refs_of(&repo).get(&nostr_ref(&first)), Some(&oid(7)));
    before.release.purgatory.flush().await.unwrap();
    std::fs::copy(data.path().join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    // The others wait on after a restart.
    let (journal, records) = Journal::open(copy.path()).unwrap();
    let store = before.release.store.apart();
    let after = Inside::over(store, journal, &records, git.clone()).await;
    let announced = Announcement::read(Arc::new(announced.unwrap())).unwrap();
    after.release.repositories.set(&announced, Standing::Active);
    after.release.purgatory.restore(records);
    after.served(&second).await;
    assert_eq!(git.refs_of(&repo).get(&nostr_ref(&second)), Some(&oid(8)));
    after.waits(&neither).await;
    assert!(!git.refs_of(&repo).contains_key(&nostr_ref(&neither)));
}

#[tokio::test]
async fn nobody_uses_up_the_places_of_a_pull_request() {
    let inside = Inside::new().await;
    let (theirs, other) = (
        inside.active(1, "x", &[]).await,
        inside.active(2, "y", &[]).await,
    );
    let request = pull_request(5, 30, &oid(7).to_hex(), &theirs);
    inside.waits(&request).await;
    let purgatory = &inside.release.purgatory;
    for n in 0..places::MOST {
        let elsewhere = repo(3, &format!("r{n}")).into();
        let id = nip34::id_of(&request);
        purgatory.keep_place(&id, &elsewhere).await.unwrap();
    }
    let commands = [(nostr_ref(&request), oid(7))];
    let why = inside.authorize(&other, &commands).await.unwrap_err();
    assert!(why.contains("as many repositories"), "{why}");
    let (id, _) = inside.authorize(&theirs, &commands).await.unwrap();
    inside.git.bring(&identifier("x"), &[oid(7)]);
    assert_eq!(inside.commit(&id, &theirs, &commands).await, [""]);
    assert!(inside.serves(&request).await);
}

#[tokio::test]
async fn what_was_staged_for_a_pull_request_is_there_for_a_state_too() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    let request = pull_request(5, 30, &oid(7).to_hex(), &repo);
    let commands = [(nostr_ref(&request), oid(7))];
    let (id, _) = inside.authorize(&repo, &commands).await.unwrap();
    assert_eq!(inside.commit(&id, &repo, &commands).await, [""]);
    let event = state(1, "x", 40, &[("main", 7)]);
    inside.waits(&event).await;
    inside.served(&request).await;
    inside.try_unfinished().await;
    assert!(inside.serves(&event).await);
    assert_eq!(
        inside.git.refs_of(&repo).get(&branch("main")),
        Some(&oid(7))
    );
}

#[tokio::test]
async fn a_placeholder_expires_with_its_ref() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    let never = pull_request(5, 30, &oid(7).to_hex(), &repo);
    let commands = [(nostr_ref(&never), oid(7))];
    let (id, _) = inside.authorize(&repo, &commands).await.unwrap();
    inside.commit(&id, &repo, &commands).await;
    inside.passes(29 * MINUTE).await;
    assert!(inside.git.refs_of(&repo).contains_key(&commands[0].0));
    inside.passes(2 * MINUTE).await;
    assert!(!inside.git.refs_of(&repo).contains_key(&commands[0].0));
    assert!(inside.release.purgatory.pull_requests.is_empty());
    inside.waits(&never).await;
}

#[tokio::test]
async fn a_pull_request_is_put_wherever_its_owner_is_trusted() {
    let inside = Inside::new().await;
    let first = inside.active(1, "x", &[2, 4]).await;
    inside.served(&announcement(2, "x", 20, &[1])).await;
    inside.waits(&announcement(3, "x", 20, &[])).await;
    inside.git.bring(&identifier("x"), &[oid(7)]);
    let request = pull_request(5, 30, &oid(7).to_hex(), &first);
    inside.served(&request).await;
    let name = nostr_ref(&request);
    assert!(inside.git.refs_of(repo(2, "x")).contains_key(&name));
    assert!(!inside.git.refs_of(repo(3, "x")).contains_key(&name));
    // One promoted later is given it then.
    inside.served(&announcement(4, "x", 40, &[1])).await;
    assert!(inside.git.refs_of(repo(4, "x")).contains_key(&name));
}

#[tokio::test]
async fn a_pull_request_without_a_commit_of_ours_is_refused() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    for commit in ["abc", "", &"0".repeat(40), &"ab".repeat(32)] {
        let verdict = inside.admit(&pull_request(5, 30, commit, &repo)).await;
        assert_eq!(
            verdict,
            Verdict::rejected("invalid: the c tag is no object id")
        );
    }
    assert!(
        !inside
            .admit(&sign(
                5,
                nip34::PULL_REQUEST,
                31,
                &[tag(&["a", &repo.coordinate()])]
            ))
            .await
            .ok
    );
    let unrelated = super::repo(9, "z");
    assert!(
        !inside
            .admit(&pull_request(5, 32, &oid(7).to_hex(), &unrelated))
            .await
            .ok
    );
}

#[tokio::test]
async fn a_failure_of_the_git_side_is_no_refusal_and_is_tried_again() {
    let inside = Inside::new().await;
    inside.waits(&announcement(1, "x", 10, &[])).await;
    let event = state(1, "x", 10, &[("main", 1)]);
    inside.waits(&event).await;
    let (repo, commands) = (repo(1, "x"), [(branch("main"), oid(1))]);
    let (id, _) = inside.authorize(&repo, &commands).await.unwrap();
    inside.git.bring(&identifier("x"), &[oid(1)]);
    inside.git.goes_away(true);
    let request = wire::CommitRequest {
        push_id: id,
        repository: Some((&repo).into()),
        commands: wire_commands(&commands),
        ..Default::default()
    };
    let status = inside.push.commit(Request::new(request)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    inside.git.goes_away(false);
    inside.try_unfinished().await;
    assert!(inside.serves(&event).await);
}
