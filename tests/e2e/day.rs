//! A maintainer's and a contributor's whole day, from the first announcement to the deletion.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::{
    Client, Draft, Event, Keys, Project, Repo, Service,
    events::{deletion, issue, pull_request, pull_request_update},
    git,
};

/// A comment (NIP-22) on an event of somebody's repository.
fn comment(on: &Event, text: &str) -> Draft {
    let (id, author) = (on.id.to_hex(), on.pubkey.to_hex());
    let kind = on.kind.as_u16().to_string();
    Draft::new(1111)
        .tag(["E", &id, "", &author])
        .tag(["K", &kind])
        .tag(["P", &author])
        .tag(["e", &id, "", &author])
        .tag(["k", &kind])
        .tag(["p", &author])
        .content(text)
}

/// What a client that opens the repository's page asks for: everything about it.
async fn about(client: &mut Client, project: &Project) -> BTreeSet<String> {
    let address = project.coordinate();
    let mut found = client.query(json!({"#a": [address.clone()]})).await;
    found.extend(
        client
            .query(json!({"#d": [project.identifier.clone()]}))
            .await,
    );
    let ids: Vec<String> = found.iter().map(|event| event.id.to_hex()).collect();
    for tag in ["#e", "#E"] {
        found.extend(client.query(json!({tag: ids.clone()})).await);
    }
    found.iter().map(|event| event.id.to_hex()).collect()
}

fn ids(events: &[&Event]) -> BTreeSet<String> {
    events.iter().map(|event| event.id.to_hex()).collect()
}

#[tokio::test]
async fn a_whole_day_of_a_maintainer_and_a_contributor() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;

    // A new repository.
    let project = Project::new("day").await;
    let announcement = project.announcement(&service).sign(&project.owner);
    client.publish(&announcement).await.waits();
    project.update(&service, &mut client, &["main"]).await;
    assert!(client.serves(&announcement).await);

    // A branch, a tag, a fast-forward.
    project.repo.git(&["switch", "-qc", "feature"]).await.good();
    project.repo.commit().await;
    project
        .repo
        .git(&["tag", "-am", "first", "v1"])
        .await
        .good();
    project.repo.git(&["switch", "-q", "main"]).await.good();
    project.repo.commit().await;
    project
        .update(&service, &mut client, &["main", "feature", "v1"])
        .await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );

    // What is not signed for does not get in, and hurts nothing.
    project.repo.commit().await;
    project.push(&service, &["main"]).await.refused();
    project
        .repo
        .git(&["reset", "-q", "--hard", "HEAD~1"])
        .await
        .good();

    // History is rewritten, and a branch goes.
    project
        .repo
        .git(&["commit", "-q", "--amend", "-m", "better words"])
        .await
        .good();
    project.repo.git(&["branch", "-D", "feature"]).await.good();
    let state = project
        .update(&service, &mut client, &["+main", ":feature"])
        .await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );

    // Somebody clones it, and has something to say.
    let contributor = Keys::generate();
    let (fork, out) = Repo::clone(&project.url(&service), &["clone"]).await;
    out.good();
    let problem = issue(&project.coordinate())
        .content("it does not build here")
        .sign(&contributor);
    client.publish(&problem).await.served();
    let answer = comment(&problem, "which compiler?").sign(&project.owner);
    client.publish(&answer).await.served();

    // A pull request, and a second try.
    let offered = fork.commit().await;
    let request = pull_request(&project.coordinate(), &offered).sign(&contributor);
    client.publish(&request).await.waits();
    let place = format!("HEAD:refs/nostr/{}", request.id);
    fork.push(&project.url(&service), &[&place]).await.good();
    assert!(client.serves(&request).await);
    let better = fork.commit().await;
    let update = pull_request_update(&project.coordinate(), &request, &better).sign(&contributor);
    let place = format!("HEAD:refs/nostr/{}", update.id);
    // Data first, this time.
    fork.push(&project.url(&service), &[&place]).await.good();
    client.publish(&update).await.served();

    // The maintainer fetches it as others would, merges it and closes it.
    let name = format!("refs/nostr/{}", update.id);
    assert_eq!(
        project.remote_ref(&service, &name).await,
        Some(better.clone())
    );
    let url = project.url(&service);
    project.repo.git(&["fetch", "-q", &url, &name]).await.good();
    project
        .repo
        .git(&["merge", "-q", "--no-ff", "-m", "merged", "FETCH_HEAD"])
        .await
        .good();
    let merged = project.update(&service, &mut client, &["main"]).await;
    assert!(!client.serves(&state).await);
    let applied = Draft::new(1631)
        .tag(["e", &request.id.to_hex(), "", "root"])
        .tag(["p", &contributor.public_key().to_hex()])
        .tag(["a", &project.coordinate()])
        .sign(&project.owner);
    client.publish(&applied).await.served();
    let (clone, out) = Repo::clone(&project.url(&service), &["clone"]).await;
    out.good();
    assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
    clone
        .git(&["merge-base", "--is-ancestor", &better, "HEAD"])
        .await
        .good();

    let all = [
        &announcement,
        &merged,
        &problem,
        &answer,
        &request,
        &update,
        &applied,
    ];
    assert_eq!(about(&mut client, &project).await, ids(&all));

    // A comment is taken back: it alone goes.
    client
        .publish(&deletion(&[&answer]).sign(&project.owner))
        .await
        .served();
    assert!(!client.serves(&answer).await && client.serves(&problem).await);

    // The service is updated to a new version meanwhile.
    drop(client);
    let mut service = service;
    service.restart().await;
    let mut client = Client::connect(&service).await;
    let left = [
        &announcement,
        &merged,
        &problem,
        &request,
        &update,
        &applied,
    ];
    assert!(about(&mut client, &project).await.is_superset(&ids(&left)));

    // And the repository goes, with all that was said about it.
    let gone = deletion(&[&announcement]).sign(&project.owner);
    client.publish(&gone).await.served();
    for event in left {
        assert!(!client.serves(event).await, "{event:?}");
    }
    assert!(!project.hosted(&service).await);
    let listed = git::run(service.directory(), &["ls-remote", &url]).await;
    assert!(
        !listed.ok && listed.stderr.contains("not found"),
        "{}",
        listed.stderr
    );
    client.publish(&announcement).await.rejected();
}
