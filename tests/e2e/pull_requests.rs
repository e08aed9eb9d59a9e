//! Pull requests and `refs/nostr/`: event first, git first, right, wrong and malformed commits.

use crate::support::{
    Client, Event, Keys, Project, Service,
    events::{coordinate, pull_request, pull_request_update},
    git, until,
};

fn nostr_ref(event: &Event) -> String {
    format!("refs/nostr/{}", event.id.to_hex())
}

/// A service with an active project, on which `topic` has a commit that nobody knows.
async fn prepared(identifier: &str) -> (Service, Client, Project, String) {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, identifier).await;
    project
        .repo
        .git(&["checkout", "-q", "-b", "topic"])
        .await
        .good();
    let commit = project.repo.commit().await;
    (service, client, project, commit)
}

#[tokio::test]
async fn a_pull_request_on_nothing_here_is_rejected() {
    let (_service, mut client, project, commit) = prepared("unreferenced").await;
    let nowhere = coordinate(&Keys::generate(), "nowhere");
    client
        .publish(&pull_request(&nowhere, &commit).sign(&project.owner))
        .await
        .rejected();
    let waiting = pull_request(&nowhere, &commit)
        .without("a")
        .sign(&project.owner);
    client.publish(&waiting).await.rejected();
}

#[tokio::test]
async fn a_pull_request_on_a_waiting_repository_is_rejected() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "waiting").await;
    let commit = project.repo.oid("main").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    client.publish(&event).await.rejected();
}

#[tokio::test]
async fn a_pull_request_without_a_commit_is_rejected() {
    let (_service, mut client, project, commit) = prepared("no-commit").await;
    let event = pull_request(&project.coordinate(), &commit)
        .without("c")
        .sign(&project.owner);
    client.publish(&event).await.rejected();
}

#[tokio::test]
async fn a_pull_request_whose_commit_is_here_is_served_with_its_ref() {
    let (service, mut client, project, _) = prepared("present").await;
    let commit = project.repo.oid("main").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    client.publish(&event).await.served();
    assert!(client.serves(&event).await);
    assert_eq!(
        project.remote_ref(&service, &nostr_ref(&event)).await,
        Some(commit)
    );
}

#[tokio::test]
async fn a_pull_request_waits_for_its_commit_and_is_served_when_pushed() {
    let (service, mut client, project, commit) = prepared("waits").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    client.publish(&event).await.waits();
    assert!(!client.serves(&event).await);
    let again = client.publish(&event).await;
    assert_eq!(
        (again.accepted, again.message.as_str()),
        (true, "duplicate: in purgatory")
    );

    let name = nostr_ref(&event);
    let text = project
        .push(&service, &[&format!("main:{name}")])
        .await
        .refused();
    assert!(text.contains(&name), "{text}");
    project
        .push(&service, &[&format!("topic:{name}")])
        .await
        .good();
    assert!(client.serves(&event).await);
    assert_eq!(project.remote_ref(&service, &name).await, Some(commit));
    // Known now: still only the right commit.
    project
        .push(&service, &["-f", &format!("main:{name}")])
        .await
        .refused();
}

#[tokio::test]
async fn an_update_of_a_pull_request_waits_likewise() {
    let (service, mut client, project, commit) = prepared("update").await;
    let author = Keys::generate();
    let root = pull_request(&project.coordinate(), &commit).sign(&author);
    client.publish(&root).await.waits();
    project
        .push(&service, &[&format!("topic:{}", nostr_ref(&root))])
        .await
        .good();
    let next = project.repo.commit().await;
    let event = pull_request_update(&project.coordinate(), &root, &next).sign(&author);
    client.publish(&event).await.waits();
    let without = pull_request_update(&project.coordinate(), &root, &next).without("c");
    client.publish(&without.sign(&author)).await.rejected();
    project
        .push(&service, &[&format!("topic:{}", nostr_ref(&event))])
        .await
        .good();
    assert!(client.serves(&event).await);
}

#[tokio::test]
async fn a_pull_request_is_released_by_a_push_of_its_commit_to_a_branch() {
    let (service, mut client, project, commit) = prepared("merged").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    client.publish(&event).await.waits();
    project.repo.git(&["checkout", "-q", "main"]).await.good();
    project
        .repo
        .git(&["merge", "-q", "--ff-only", "topic"])
        .await
        .good();
    project
        .repo
        .git(&["branch", "-q", "-d", "topic"])
        .await
        .good();
    project.update(&service, &mut client, &["main"]).await;
    until("the pull request is served", || async {
        Client::connect(&service).await.serves(&event).await
    })
    .await;
    assert_eq!(
        project.remote_ref(&service, &nostr_ref(&event)).await,
        Some(commit)
    );
}

#[tokio::test]
async fn git_first_with_the_right_commit_serves_the_event_at_once() {
    let (service, mut client, project, commit) = prepared("git-first").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    let name = nostr_ref(&event);
    project
        .push(&service, &[&format!("topic:{name}")])
        .await
        .good();
    assert_eq!(
        project.remote_ref(&service, &name).await,
        Some(commit.clone())
    );
    client.publish(&event).await.served();
    assert!(client.serves(&event).await);
    assert_eq!(project.remote_ref(&service, &name).await, Some(commit));
}

#[tokio::test]
async fn git_first_with_another_commit_loses_its_ref_and_the_event_waits() {
    let (service, mut client, project, commit) = prepared("git-wrong").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    let name = nostr_ref(&event);
    project
        .repo
        .git(&["checkout", "-q", "-b", "wrong", "main"])
        .await
        .good();
    project.repo.commit().await;
    project
        .push(&service, &[&format!("wrong:{name}")])
        .await
        .good();
    client.publish(&event).await.waits();
    assert_eq!(project.remote_ref(&service, &name).await, None);
    assert!(!client.serves(&event).await);
    project
        .push(&service, &[&format!("topic:{name}")])
        .await
        .good();
    assert!(client.serves(&event).await);
    assert_eq!(project.remote_ref(&service, &name).await, Some(commit));
}

#[tokio::test]
async fn what_was_pushed_for_an_event_is_not_taken_away_by_who_knows_its_id() {
    let (mut service, mut client, project, commit) = prepared("rivals").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    let name = nostr_ref(&event);
    let right = format!("+topic:{name}");
    let wrong = format!("+main:{name}");
    project.push(&service, &[&right]).await.good();
    project.push(&service, &[&wrong]).await.good();
    assert_eq!(
        project.remote_ref(&service, &name).await.as_ref(),
        Some(&commit)
    );
    client.publish(&event).await.served();
    assert_eq!(
        project.remote_ref(&service, &name).await.as_ref(),
        Some(&commit)
    );

    // The other way round the right one waits beside, also while the service is away, and the event
    // chooses it.
    let next = project.repo.commit().await;
    let event = pull_request(&project.coordinate(), &next).sign(&Keys::generate());
    let name = nostr_ref(&event);
    project
        .push(&service, &[&format!("{commit}:{name}")])
        .await
        .good();
    let right = format!("+topic:{name}");
    project.push(&service, &[&right]).await.good();
    assert_eq!(project.remote_ref(&service, &name).await, Some(commit));
    service.restart().await;
    let mut client = Client::connect(&service).await;
    client.publish(&event).await.served();
    assert_eq!(project.remote_ref(&service, &name).await, Some(next));
}

#[tokio::test]
async fn what_nobody_signed_for_is_seen_in_that_repository_only() {
    let (service, mut client, project, commit) = prepared("staged").await;
    let name = format!("refs/nostr/{}", "7b".repeat(32));
    project
        .push(&service, &[&format!("topic:{name}")])
        .await
        .good();
    // Here it can be fetched …
    let (reader, out) = crate::support::Repo::clone(&project.url(&service), &[]).await;
    out.good();
    reader.git(&["fetch", "-q", "origin", &name]).await.good();
    assert_eq!(reader.oid("FETCH_HEAD").await, commit);
    // … but a neighbour under the same identifier has not got the commit by it.
    let neighbour = Keys::generate();
    let announcement =
        crate::support::events::announcement(&service, &neighbour, "staged").sign(&neighbour);
    client.publish(&announcement).await.waits();
    let state = crate::support::events::state("staged", &[("refs/heads/main", &commit)]);
    client.publish(&state.sign(&neighbour)).await.waits();
}

#[tokio::test]
async fn a_pull_request_with_a_malformed_commit_is_refused_at_once() {
    let (_service, mut client, project, _) = prepared("malformed").await;
    let sha256 = "cd".repeat(32);
    for commit in ["abc", "not hex at all", &sha256, ""] {
        let event = pull_request(&project.coordinate(), commit).sign(&Keys::generate());
        client.publish(&event).await.rejected();
        assert!(!client.serves(&event).await);
    }
}

#[tokio::test]
async fn a_pull_requests_commit_must_be_a_commit() {
    let (_service, mut client, project, _) = prepared("tree").await;
    let tree = project.repo.oid("main^{tree}").await;
    let event = pull_request(&project.coordinate(), &tree).sign(&Keys::generate());
    client.publish(&event).await;
    assert!(!client.serves(&event).await);
}

#[tokio::test]
async fn a_push_may_mix_branches_and_pull_requests_and_each_has_its_own_verdict() {
    let (service, mut client, project, commit) = prepared("mixed").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    client.publish(&event).await.waits();
    let name = nostr_ref(&event);
    project.repo.git(&["checkout", "-q", "main"]).await.good();
    let main = project.repo.commit().await;
    let draft = crate::support::events::state("mixed", &[("refs/heads/main", &main)]);
    let state = draft.sign(&project.owner);
    client.publish(&state).await.waits();

    let before = project.remote_refs(&service).await;
    let wrong = ["--atomic", "main", &format!("main:{name}")];
    project.push(&service, &wrong).await.refused();
    assert_eq!(project.remote_refs(&service).await, before);
    assert!(!client.serves(&state).await);
    let told = project.push(&service, &wrong[1..]).await.refused();
    assert!(told.contains(&name), "{told}");
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await[..1]
    );
    assert!(client.serves(&state).await && !client.serves(&event).await);

    project
        .push(&service, &["main", &format!("topic:{name}")])
        .await
        .good();
    assert!(client.serves(&event).await);
}

#[tokio::test]
async fn a_released_pull_request_is_put_into_the_maintainers_repositories() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let other = Project::new("everywhere").await;
    let project = Project::new("everywhere").await;
    // Each names the other's owner as a maintainer.
    let draft = other.announcement(&service).maintainers(&[&project.owner]);
    client.publish(&draft.sign(&other.owner)).await.waits();
    let draft = project.announcement(&service).maintainers(&[&other.owner]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    project.update(&service, &mut client, &["main"]).await;
    project
        .repo
        .git(&["checkout", "-q", "-b", "topic"])
        .await
        .good();
    let commit = project.repo.commit().await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    client.publish(&event).await.waits();
    let name = nostr_ref(&event);
    project
        .push(&service, &[&format!("topic:{name}")])
        .await
        .good();
    assert_eq!(
        project.remote_ref(&service, &name).await,
        Some(commit.clone())
    );
    let theirs = other.url(&service);
    until("the ref is there as well", || async {
        git::remote_ref(&theirs, &name).await.as_ref() == Some(&commit)
    })
    .await;
}

#[tokio::test]
async fn several_pushers_may_race_for_one_placeholder() {
    let (service, mut client, project, commit) = prepared("race").await;
    let event = pull_request(&project.coordinate(), &commit).sign(&Keys::generate());
    let name = nostr_ref(&event);
    let spec = format!("topic:{name}");
    let specs = [spec.as_str()];
    let pushes = (0..4).map(|_| project.push(&service, &specs));
    let outs = futures::future::join_all(pushes).await;
    assert!(outs.iter().all(|out| out.ok), "{outs:?}");
    client.publish(&event).await.served();
    assert_eq!(project.remote_ref(&service, &name).await, Some(commit));
}
