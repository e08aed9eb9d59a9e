//! Who counts for a repository: naming somebody is an invitation, and answering it gives authority.

use crate::support::{Client, Keys, Project, Repo, Service, events::elsewhere, git, until};

async fn main_of(service: &Service, project: &Project) -> Option<String> {
    project.remote_ref(service, "refs/heads/main").await
}

/// The attack: the first names the second, who never answers, and has an unrelated repository of the
/// same name.
#[tokio::test]
async fn who_is_named_and_does_not_answer_moves_nothing() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let first = Project::new("tools").await;
    let second = Project::new("tools").await;
    let draft = first.announcement(&service).maintainers(&[&second.owner]);
    client.publish(&draft.sign(&first.owner)).await.waits();
    first.update(&service, &mut client, &["main"]).await;
    let before = main_of(&service, &first).await;

    let announced = second.announcement(&service).sign(&second.owner);
    client.publish(&announced).await.waits();
    second.update(&service, &mut client, &["main"]).await;
    second.repo.commit().await;
    let theirs = second.update(&service, &mut client, &["main"]).await;
    let latest = second.repo.oid("main").await;
    assert_eq!(main_of(&service, &second).await.as_ref(), Some(&latest));
    assert!(before.is_some() && before.as_ref() != Some(&latest));
    assert_eq!(main_of(&service, &first).await, before);
    // Nor by the first's address, nor when everything is judged anew.
    second.repo.commit().await;
    let state = second.state().await.sign(&second.owner);
    client.publish(&state).await.waits();
    let to_the_first = second.repo.push(&first.url(&service), &["+main"]).await;
    to_the_first.refused();
    service.crash().await;
    assert_eq!(main_of(&service, &first).await, before);
    let mut client = Client::connect(&service).await;
    assert!(client.serves(&theirs).await);

    // Who answers counts, with what was signed before.
    let draft = second.announcement(&service).maintainers(&[&first.owner]);
    client.publish(&draft.sign(&second.owner)).await.served();
    assert_eq!(main_of(&service, &first).await, Some(latest));
    second.push(&service, &["main"]).await.good();
    let latest = second.repo.oid("main").await;
    assert_eq!(main_of(&service, &first).await, Some(latest));
}

#[tokio::test]
async fn who_is_dropped_moves_nothing_back() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("dropped").await;
    let draft = project.announcement(&service).maintainers(&[&maintainer]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    project.update(&service, &mut client, &["main"]).await;
    let answer = elsewhere("dropped").maintainers(&[&project.owner]);
    client.publish(&answer.sign(&maintainer)).await.served();
    let latest = project.repo.commit().await;
    let state = project.state().await.sign(&maintainer);
    client.publish(&state).await.waits();
    project.push(&service, &["main"]).await.good();

    let without = project.announcement(&service).sign(&project.owner);
    client.publish(&without).await.served();
    assert!(
        service.log().contains("names fewer maintainers"),
        "{}",
        service.log()
    );
    assert_eq!(main_of(&service, &project).await.as_ref(), Some(&latest));
    service.crash().await;
    assert_eq!(main_of(&service, &project).await.as_ref(), Some(&latest));
    let mut client = Client::connect(&service).await;
    assert!(client.serves(&state).await);
    // What it signs for its own repository elsewhere allows nothing here.
    project.repo.commit().await;
    let next = project.state().await.sign(&maintainer);
    client.publish(&next).await.waits();
    project.push(&service, &["main"]).await.refused();
    project.update(&service, &mut client, &["main"]).await;
    let refs = project.remote_refs(&service).await;
    assert_eq!(refs, project.repo.refs().await);
}

#[tokio::test]
async fn a_service_that_takes_up_the_rule_tells_what_changes_and_moves_nothing_back() {
    let mut service = Service::start_with(&[("NGIT_MAINTAINER_RULE", "listed")]).await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("older").await;
    let draft = project.announcement(&service).maintainers(&[&maintainer]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    project.update(&service, &mut client, &["main"]).await;
    let other = Project::active(&service, &mut client, "beside").await;
    // Nobody asked it, and it counts.
    let latest = project.repo.commit().await;
    let state = project.state().await.sign(&maintainer);
    client.publish(&state).await.waits();
    project.push(&service, &["main"]).await.good();

    service.terminate();
    service.ended().await;
    service.set("NGIT_MAINTAINER_RULE", "confirmed");
    service.run().await;
    assert_eq!(main_of(&service, &project).await.as_ref(), Some(&latest));
    let log = service.log();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("another state counts"))
        .collect();
    let [line] = told[..] else {
        panic!("told: {told:?}\n{log}");
    };
    let path = Service::repository_path(&project.owner, "older");
    let npub = path.trim_start_matches('/').split('/').next().unwrap();
    assert!(
        line.contains(npub) && line.contains("refs stay as they are"),
        "{line}"
    );
    // A later state by who counts.
    let mut client = Client::connect(&service).await;
    project.repo.commit().await;
    let next = project.state().await.sign(&maintainer);
    client.publish(&next).await.rejected();
    project.update(&service, &mut client, &["main"]).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
    assert!(other.hosted(&service).await);
}

/// A newer state reaches a repository by a link in between that comes last.
#[tokio::test]
async fn an_answer_in_between_connects_those_at_both_ends() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let first = Project::new("chain").await;
    let between = Keys::generate();
    let draft = first.announcement(&service).maintainers(&[&between]);
    client.publish(&draft.sign(&first.owner)).await.waits();
    first.update(&service, &mut client, &["main"]).await;
    let last = Project {
        owner: Keys::generate(),
        identifier: "chain".to_owned(),
        repo: Repo::clone(&first.url(&service), &[]).await.0,
    };
    let draft = last.announcement(&service).maintainers(&[&between]);
    client.publish(&draft.sign(&last.owner)).await.waits();
    let latest = last.repo.commit().await;
    last.update(&service, &mut client, &["main"]).await;
    assert_ne!(main_of(&service, &first).await.as_ref(), Some(&latest));
    let draft = elsewhere("chain").maintainers(&[&first.owner, &last.owner]);
    client.publish(&draft.sign(&between)).await.served();
    until("the first follows", || async {
        git::remote_ref(&first.url(&service), "refs/heads/main")
            .await
            .as_ref()
            == Some(&latest)
    })
    .await;
}
