//! Other kinds: accepted when they have to do with what is served here.

use crate::support::{
    Client, Draft, Event, Keys, Project, Service,
    events::{issue, patch, pull_request},
};

fn note() -> Draft {
    Draft::new(1).content("a note")
}

async fn active(name: &str) -> (Service, Client, Project) {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, name).await;
    (service, client, project)
}

async fn accepted(client: &mut Client, event: &Event) {
    client.publish(event).await.served();
    assert!(client.serves(event).await);
}

#[tokio::test]
async fn events_that_reference_an_active_repository_are_accepted() {
    let (_service, mut client, project) = active("referenced").await;
    let keys = Keys::generate();
    let coordinate = project.coordinate();
    accepted(&mut client, &issue(&coordinate).sign(&keys)).await;
    accepted(&mut client, &patch(&coordinate).sign(&keys)).await;
    for name in ["a", "A", "q"] {
        accepted(&mut client, &note().tag([name, &coordinate]).sign(&keys)).await;
    }
}

#[tokio::test]
async fn events_that_reference_a_stored_event_are_accepted() {
    let (_service, mut client, project) = active("comments").await;
    let keys = Keys::generate();
    let root = issue(&project.coordinate()).sign(&keys);
    accepted(&mut client, &root).await;
    for name in ["e", "E", "q"] {
        let comment = Draft::new(1111).tag([name, &root.id.to_hex()]).sign(&keys);
        accepted(&mut client, &comment).await;
    }
}

#[tokio::test]
async fn other_tags_reference_nothing() {
    let (_service, mut client, project) = active("other-tags").await;
    let keys = Keys::generate();
    let root = issue(&project.coordinate()).sign(&keys);
    accepted(&mut client, &root).await;
    for name in ["x", "r", "p", "Q", "alt"] {
        let draft = note()
            .tag([name, &project.coordinate()])
            .tag([name, &root.id.to_hex()]);
        client.publish(&draft.sign(&keys)).await.rejected();
    }
}

#[tokio::test]
async fn an_event_that_a_stored_event_references_by_id_is_accepted() {
    let (_service, mut client, project) = active("by-id").await;
    let keys = Keys::generate();
    for name in ["e", "E", "q"] {
        let parent = note().sign(&keys);
        client.publish(&parent).await.rejected();
        let draft = issue(&project.coordinate()).tag([name, &parent.id.to_hex()]);
        accepted(&mut client, &draft.sign(&keys)).await;
        accepted(&mut client, &parent).await;
    }
}

#[tokio::test]
async fn an_event_that_a_stored_event_references_by_address_is_accepted() {
    let (_service, mut client, project) = active("by-address").await;
    let keys = Keys::generate();
    for name in ["a", "A", "q"] {
        let article = Draft::new(30023)
            .tag(["d", name])
            .content("text")
            .sign(&keys);
        client.publish(&article).await.rejected();
        let address = format!("30023:{}:{name}", keys.public_key().to_hex());
        let draft = issue(&project.coordinate()).tag([name, &address]);
        accepted(&mut client, &draft.sign(&keys)).await;
        accepted(&mut client, &article).await;
    }
}

#[tokio::test]
async fn an_issue_on_a_waiting_repository_is_rejected_and_accepted_after_the_push() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "not-yet").await;
    let event = issue(&project.coordinate()).sign(&Keys::generate());
    client.publish(&event).await.rejected();
    project.update(&service, &mut client, &["main"]).await;
    accepted(&mut client, &event).await;
}

#[tokio::test]
async fn a_comment_on_a_waiting_pull_request_is_rejected() {
    let (_service, mut client, project) = active("waiting-pr").await;
    let keys = Keys::generate();
    let request = pull_request(&project.coordinate(), &"ab".repeat(20)).sign(&keys);
    client.publish(&request).await.waits();
    let comment = Draft::new(1111)
        .tag(["E", &request.id.to_hex()])
        .sign(&keys);
    client.publish(&comment).await.rejected();
}

#[tokio::test]
async fn accepted_events_reach_live_subscribers() {
    let (service, mut client, project) = active("live").await;
    let mut reader = Client::connect(&service).await;
    let filter = serde_json::json!({"#a": [project.coordinate()], "limit": 0});
    let (subscription, stored) = reader.subscribe(filter).await;
    assert_eq!(stored, []);
    let event = issue(&project.coordinate()).sign(&Keys::generate());
    client.publish(&event).await.served();
    assert_eq!(reader.live(&subscription).await, event);
}
