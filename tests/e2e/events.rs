//! What events may not be, and how they end by their own word.

use serde_json::json;

use crate::support::{
    Client, Project, Service,
    events::{Draft, now},
};

#[tokio::test]
async fn what_is_made_in_the_future_or_expires_is_told_and_hidden() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "timely").await;
    let message = "invalid: created_at is too far in the future";
    let issue = |at| Draft::new(1621).tag(["a", &project.coordinate()]).at(at);
    for at in [now() * 1000, now() + 1000] {
        let early = issue(at).sign(&project.owner);
        client.publish(&early).await.rejected_as(message);
        let state = project.state().await.at(at).sign(&project.owner);
        client.publish(&state).await.rejected_as(message);
    }
    let expires = now() + 2;
    let brief = issue(now())
        .tag(["expiration", &expires.to_string()])
        .sign(&project.owner);
    client.publish(&brief).await.served();
    while now() < expires {
        tokio::task::yield_now().await;
        let _ = client.serves(&brief).await;
    }
    assert!(!client.serves(&brief).await);
    let found = client.query(json!({"kinds": [1621]})).await;
    assert!(found.is_empty(), "{found:?}");
}
