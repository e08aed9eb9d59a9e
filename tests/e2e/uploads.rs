//! Pushes that take their time, and what happens meanwhile.

use crate::support::{
    Client, Project, Service,
    events::{deletion, state},
    git::{ZERO, commands, lines},
    processes,
    service::free_port,
    until,
    web::Upload,
};

const HEADERS: [(&str, &str); 1] = [("Content-Type", "application/x-git-receive-pack-request")];

/// A push of `main` that has sent its commands and half of its pack.
async fn half_done(service: &Service, project: &Project) -> (Upload, Vec<u8>) {
    half_done_at(service.port, project).await
}

/// The same, to whoever listens there.
async fn half_done_at(port: u16, project: &Project) -> (Upload, Vec<u8>) {
    let path = Service::repository_path(&project.owner, &project.identifier);
    let mut upload = Upload::start(port, &format!("{path}/git-receive-pack"), &HEADERS);
    let main = project.repo.oid("main").await;
    let wanted = [(ZERO, main.as_str(), "refs/heads/main")];
    upload.send(commands(&wanted, "report-status")).await;
    let pack = project.repo.pack(&["main"]).await;
    let (first, rest) = pack.split_at(pack.len() / 2);
    for piece in first.chunks(8192) {
        upload.send(piece.to_vec()).await;
    }
    (upload, rest.to_vec())
}

async fn large(service: &Service, client: &mut Client, identifier: &str) -> Project {
    let project = Project::announced(service, client, identifier).await;
    project.repo.commit_bytes(3_000_000).await;
    project
}

#[tokio::test]
async fn a_newer_state_with_the_same_refs_is_served_by_the_upload_it_met() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = large(&service, &mut client, "same-refs").await;
    let older = project.state().await.sign(&project.owner);
    client.publish(&older).await.waits();
    let (mut upload, rest) = half_done(&service, &project).await;
    let newer = project.state().await.sign(&project.owner);
    client.publish(&newer).await.waits();
    upload.send(rest).await;
    let report = lines(&upload.finish().await.unwrap().body);
    assert_eq!(
        report[..2],
        ["unpack ok", "ok refs/heads/main"],
        "{report:?}"
    );
    assert!(client.serves(&newer).await);
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_newer_state_with_other_refs_waits_for_a_push_of_its_own() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = large(&service, &mut client, "other-refs").await;
    let older = project.state().await.sign(&project.owner);
    client.publish(&older).await.waits();
    let (mut upload, rest) = half_done(&service, &project).await;
    let before = project.repo.oid("main").await;
    let main = project.repo.commit().await;
    let newer = state("other-refs", &[("refs/heads/main", &main)]).sign(&project.owner);
    client.publish(&newer).await.waits();
    upload.send(rest).await;
    let report = lines(&upload.finish().await.unwrap().body);
    // Several states may wait, and the older still does.
    assert_eq!(
        report[..2],
        ["unpack ok", "ok refs/heads/main"],
        "{report:?}"
    );
    assert!(client.serves(&older).await);
    assert!(!client.serves(&newer).await);
    let there = project.remote_ref(&service, "refs/heads/main").await;
    assert_eq!(there, Some(before));

    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&newer).await);
    assert!(!client.serves(&older).await);
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_state_deleted_during_the_upload_no_longer_allows_it() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = large(&service, &mut client, "revoked").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let (mut upload, rest) = half_done(&service, &project).await;
    client
        .publish(&deletion(&[&state]).sign(&project.owner))
        .await
        .served();
    upload.send(rest).await;
    let report = lines(&upload.finish().await.unwrap().body);
    assert!(
        !report.iter().any(|line| line.starts_with("ok ")),
        "{report:?}"
    );
    assert_eq!(project.remote_refs(&service).await, []);
    assert!(!client.serves(&state).await);
}

#[tokio::test]
async fn a_push_survives_the_relay_that_granted_it() {
    let (relay, gitd, http) = (free_port(), free_port(), free_port());
    let at = |port: u16| format!("http://127.0.0.1:{port}");
    let mut service = Service::prepare(&[
        ("NGIT_RELAY_GRPC_ADDRESS", &at(relay)),
        ("NGIT_GITD_GRPC_ADDRESS", &at(gitd)),
        ("NGIT_GITD_HTTP_ADDRESS", &at(http)),
        ("NGIT_INTERNAL_TOKEN_RELAY", "the-token-of-the-relay"),
        ("NGIT_INTERNAL_TOKEN_GITD", "the-token-of-gitd"),
        ("NGIT_INTERNAL_TOKEN_WORKER", "the-token-of-workers"),
    ])
    .await;
    let _gitd = service.role("gitd", &[]);
    service.start_as(&["relay"]);
    service.ready().await;
    let mut client = Client::connect(&service).await;
    // One ends its upload when the relay is back, the other while it is away.
    for (name, is_back) in [("back", true), ("away", false)] {
        let project = large(&service, &mut client, name).await;
        let state = project.state().await.sign(&project.owner);
        client.publish(&state).await.waits();
        let (mut upload, rest) = half_done_at(http, &project).await;
        service.kill();
        if is_back {
            service.start_as(&["relay"]);
            service.ready().await;
            upload.send(rest).await;
        } else {
            upload.send(rest).await;
            service.start_as(&["relay"]);
            service.ready().await;
        }
        let report = lines(&upload.finish().await.unwrap().body);
        let expected = ["unpack ok", "ok refs/heads/main"];
        assert_eq!(report[..2], expected, "{report:?}");
        client = Client::connect(&service).await;
        assert!(client.serves(&state).await);
        assert_eq!(
            project.remote_refs(&service).await,
            project.repo.refs().await
        );
    }
}

#[tokio::test]
async fn of_a_push_without_permission_nothing_is_kept_while_it_is_sent() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = large(&service, &mut client, "early").await;
    let before = processes::files(&service.git_data());
    let (mut upload, rest) = half_done(&service, &project).await;
    assert_eq!(processes::files(&service.git_data()), before);
    upload.send(rest).await;
    let report = lines(&upload.finish().await.unwrap().body);
    assert!(
        report.iter().any(|line| line.contains("state")),
        "{report:?}"
    );
    assert!(
        !report.iter().any(|line| line.starts_with("ok ")),
        "{report:?}"
    );
    assert_eq!(processes::files(&service.git_data()), before);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    // The neighbour's push makes whatever the identifier needs on disk.
    Project::active(&service, &mut client, "broken-off").await;
    let project = large(&service, &mut client, "broken-off").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let before = processes::files(&service.git_data());
    let (upload, _) = half_done(&service, &project).await;
    upload.abort().await;
    until("nothing of the upload is left", || async {
        processes::files(&service.git_data()) == before
    })
    .await;
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn uploads_of_the_same_push_may_overlap() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = large(&service, &mut client, "overlap").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let (mut slow, rest) = half_done(&service, &project).await;
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
    // The slow one finds its refs applied: it changes nothing, and that is no failure.
    slow.send(rest).await;
    let report = lines(&slow.finish().await.unwrap().body);
    assert_eq!(
        report[..2],
        ["unpack ok", "ok refs/heads/main"],
        "{report:?}"
    );
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_repository_deleted_during_the_upload_does_not_come_back() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = large(&service, &mut client, "deleted").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let (mut upload, rest) = half_done(&service, &project).await;
    let draft = crate::support::events::deletion_of(&project.coordinate());
    client.publish(&draft.sign(&project.owner)).await.served();
    upload.send(rest).await;
    if let Ok(answer) = upload.finish().await {
        let report = lines(&answer.body);
        assert!(
            !report.iter().any(|line| line.starts_with("ok ")),
            "{report:?}"
        );
    }
    until("the repository is gone", || async {
        !project.hosted(&service).await
    })
    .await;
    assert!(!client.serves(&state).await);
}
