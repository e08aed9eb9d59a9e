//! Kind 5: what it deletes, what it keeps away, and whose it is.

use serde_json::json;

use crate::support::{
    Client, Draft, Keys, Project, Service,
    events::{deletion, deletion_of, issue, next_second, now, pull_request, state},
    until,
};

const NO_ANNOUNCEMENT: &str = "invalid: no announcement exists for this repository";

#[tokio::test]
async fn a_waiting_announcement_is_deleted_by_id() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("by-id").await;
    let event = project.announcement(&service).sign(&project.owner);
    client.publish(&event).await.waits();
    client
        .publish(&deletion(&[&event]).sign(&project.owner))
        .await
        .served();
    until("the repository is gone", || async {
        !project.hosted(&service).await
    })
    .await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.rejected_as(NO_ANNOUNCEMENT);
    client.publish(&event).await.rejected();
}

#[tokio::test]
async fn a_waiting_announcement_is_deleted_by_coordinate() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "by-address").await;
    client
        .publish(&deletion_of(&project.coordinate()).sign(&project.owner))
        .await
        .served();
    until("the repository is gone", || async {
        !project.hosted(&service).await
    })
    .await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.rejected_as(NO_ANNOUNCEMENT);
    // A newer one is welcome.
    let back = project.announcement(&service).sign(&project.owner);
    client.publish(&back).await.waits();
    assert!(project.hosted(&service).await);
}

#[tokio::test]
async fn nobody_else_deletes_a_waiting_announcement() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("not-yours").await;
    let event = project.announcement(&service).sign(&project.owner);
    client.publish(&event).await.waits();
    let stranger = Keys::generate();
    client.publish(&deletion(&[&event]).sign(&stranger)).await;
    client
        .publish(&deletion_of(&project.coordinate()).sign(&stranger))
        .await;
    assert!(project.hosted(&service).await);
    project.update(&service, &mut client, &["main"]).await;
    assert!(client.serves(&event).await);
}

#[tokio::test]
async fn deleting_an_active_announcement_takes_the_repository_and_its_events_along() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let stays = Project::active(&service, &mut client, "stays").await;
    for by_id in [true, false] {
        let identifier = if by_id {
            "gone-by-id"
        } else {
            "gone-by-address"
        };
        let project = Project::new(identifier).await;
        let event = project.announcement(&service).sign(&project.owner);
        client.publish(&event).await.waits();
        let state = project.update(&service, &mut client, &["main"]).await;
        let reader = Keys::generate();
        let question = issue(&project.coordinate()).sign(&reader);
        client.publish(&question).await.served();
        let answer = Draft::new(1111)
            .tag(["E", &question.id.to_hex()])
            .sign(&reader);
        client.publish(&answer).await.served();
        let both = issue(&project.coordinate())
            .tag(["a", &stays.coordinate()])
            .sign(&reader);
        client.publish(&both).await.served();

        let draft = if by_id {
            deletion(&[&event])
        } else {
            deletion_of(&project.coordinate())
        };
        client.publish(&draft.sign(&project.owner)).await.served();
        until("the repository is gone", || async {
            !project.hosted(&service).await
        })
        .await;
        for gone in [&event, &state, &question, &answer] {
            let what = format!("kind {} is no longer served", gone.kind);
            until(&what, || async {
                !Client::connect(&service).await.serves(gone).await
            })
            .await;
        }
        assert!(
            client.serves(&both).await,
            "was accepted because of another repository, too"
        );
    }
    assert!(stays.hosted(&service).await);
}

#[tokio::test]
async fn a_target_of_somebody_else_is_void_and_the_others_are_not() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "targets").await;
    let (one, other) = (Keys::generate(), Keys::generate());
    let mine = issue(&project.coordinate()).sign(&one);
    let theirs = issue(&project.coordinate()).sign(&other);
    client.publish(&mine).await.served();
    client.publish(&theirs).await.served();
    let request = deletion(&[&theirs, &mine])
        .tag(["a", &project.coordinate()])
        .sign(&one);
    client.publish(&request).await.served();
    assert!(!client.serves(&mine).await);
    assert!(client.serves(&theirs).await);
    assert!(project.hosted(&service).await);
    assert!(client.serves(&request).await, "deletions are served");
    client.publish(&mine).await.rejected();
}

#[tokio::test]
async fn a_target_deleted_before_it_was_seen_stays_out() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "unseen").await;
    let author = Keys::generate();
    let event = issue(&project.coordinate()).sign(&author);
    client
        .publish(&deletion(&[&event]).sign(&author))
        .await
        .served();
    client.publish(&event).await.rejected();
    assert!(!client.serves(&event).await);

    let draft = crate::support::events::announcement(&service, &author, "unseen-too");
    let announcement = draft.sign(&author);
    client
        .publish(&deletion(&[&announcement]).sign(&author))
        .await
        .served();
    client.publish(&announcement).await.rejected();
    assert_eq!(service.repository_status(&author, "unseen-too").await, 404);
}

#[tokio::test]
async fn a_deletion_of_somebody_elses_unseen_event_is_void() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "void").await;
    let event = issue(&project.coordinate()).sign(&Keys::generate());
    client
        .publish(&deletion(&[&event]).sign(&Keys::generate()))
        .await;
    client.publish(&event).await.served();
}

#[tokio::test]
async fn an_address_is_deleted_up_to_the_latest_deletions_time_in_either_order() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for latest_first in [true, false] {
        let identifier = format!("versions-{latest_first}");
        let project = Project::new(&identifier).await;
        let oldest = project.announcement(&service).sign(&project.owner);
        let first = deletion_of(&project.coordinate()).sign(&project.owner);
        let between = project.announcement(&service).sign(&project.owner);
        let last = deletion_of(&project.coordinate()).sign(&project.owner);
        let newest = project.announcement(&service).sign(&project.owner);
        let order = if latest_first {
            [&last, &first]
        } else {
            [&first, &last]
        };
        for request in order {
            client.publish(request).await.served();
        }
        client.publish(&oldest).await.rejected();
        client.publish(&between).await.rejected();
        assert!(!project.hosted(&service).await);
        client.publish(&newest).await.waits();
        assert!(project.hosted(&service).await);
    }
}

#[tokio::test]
async fn an_address_deletion_older_than_the_event_leaves_it() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let early = next_second();
    let project = Project::active(&service, &mut client, "survives").await;
    let request = deletion_of(&project.coordinate())
        .at(early)
        .sign(&project.owner);
    client.publish(&request).await.served();
    assert!(project.hosted(&service).await);
    let author = project.owner.public_key().to_hex();
    let found = client
        .query(json!({"kinds": [30617, 30618], "authors": [author]}))
        .await;
    assert_eq!(found.len(), 2);
}

#[tokio::test]
async fn a_deletion_by_id_ignores_times() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "by-id-only").await;
    let author = Keys::generate();
    let early = next_second();
    let event = issue(&project.coordinate()).at(now()).sign(&author);
    client.publish(&event).await.served();
    client
        .publish(&deletion(&[&event]).at(early).sign(&author))
        .await
        .served();
    assert!(!client.serves(&event).await);
}

#[tokio::test]
async fn a_deleted_waiting_state_allows_no_push() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for by_id in [true, false] {
        let identifier = format!("state-{by_id}");
        let project = Project::announced(&service, &mut client, &identifier).await;
        let state = project.state().await.sign(&project.owner);
        client.publish(&state).await.waits();
        let author = project.owner.public_key().to_hex();
        let draft = if by_id {
            deletion(&[&state])
        } else {
            deletion_of(&format!("30618:{author}:{identifier}"))
        };
        client.publish(&draft.sign(&project.owner)).await.served();
        project.push(&service, &["main"]).await.refused();
        client.publish(&state).await.rejected();
        project.update(&service, &mut client, &["main"]).await;
    }
}

#[tokio::test]
async fn a_deleted_waiting_pull_request_does_not_come_with_its_commit() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "deleted-pr").await;
    let author = Keys::generate();
    let commit = project.repo.commit().await;
    let request = pull_request(&project.coordinate(), &commit).sign(&author);
    client.publish(&request).await.waits();
    client
        .publish(&deletion(&[&request]).sign(&author))
        .await
        .served();
    project.update(&service, &mut client, &["main"]).await;
    assert!(!client.serves(&request).await);
    client.publish(&request).await.rejected();
}

#[tokio::test]
async fn a_deleted_repository_can_be_announced_and_pushed_again() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "again").await;
    client
        .publish(&deletion_of(&project.coordinate()).sign(&project.owner))
        .await
        .served();
    until("the repository is gone", || async {
        !project.hosted(&service).await
    })
    .await;
    let announcement = project.announcement(&service).sign(&project.owner);
    assert!(client.publish(&announcement).await.accepted);
    let commit = project.repo.commit().await;
    let state = state("again", &[("refs/heads/main", &commit)]).sign(&project.owner);
    assert!(client.publish(&state).await.accepted);
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&announcement).await);
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn deletions_hold_after_a_restart() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "remembered").await;
    let author = Keys::generate();
    let (seen, unseen) = (
        issue(&project.coordinate()).sign(&author),
        issue(&project.coordinate()).content("unseen").sign(&author),
    );
    client.publish(&seen).await.served();
    client
        .publish(&deletion(&[&seen, &unseen]).sign(&author))
        .await
        .served();
    service.restart().await;
    let mut client = Client::connect(&service).await;
    client.publish(&seen).await.rejected();
    client.publish(&unseen).await.rejected();
}

#[tokio::test]
async fn requests_with_a_thousand_targets_and_about_requests() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "many").await;
    let author = Keys::generate();
    let mut all = Vec::new();
    for number in 0..1_000 {
        let event = issue(&project.coordinate())
            .content(number.to_string())
            .sign(&author);
        client.send(json!(["EVENT", event])).await;
        all.push(event);
    }
    for event in &all {
        client.verdict(&event.id.to_hex()).await.served();
    }
    let request = deletion(&all.iter().collect::<Vec<_>>()).sign(&author);
    client.publish(&request).await.served();
    let left = client
        .query(json!({"authors": [author.public_key().to_hex()], "kinds": [1621]}))
        .await;
    assert!(left.is_empty(), "{} left", left.len());
    let pardon = deletion(&[&request]).sign(&author);
    client.publish(&pardon).await.served();
    assert!(client.serves(&request).await);
    client.publish(&all[7]).await.rejected();
    let at = next_second();
    let early = issue(&project.coordinate())
        .at(at)
        .content("early")
        .sign(&author);
    client
        .publish(&deletion(&[&early]).at(at - 5).sign(&author))
        .await
        .served();
    client.publish(&early).await.rejected();
}
