//! SIGTERM: nobody new comes in, and who is there may finish.

use std::time::Duration;

use http_body_util::BodyExt;

use crate::support::{
    Client, Project, Service,
    git::{self, ZERO, commands, lines, pkt},
    processes, soon, until,
    web::{self, Upload},
};

/// Larger than what all the buffers between git and a reader can hold.
const SIZE: usize = 40_000_000;

async fn large(service: &Service, client: &mut Client) -> Project {
    let project = Project::announced(service, client, "large").await;
    project.repo.commit_bytes(SIZE).await;
    project.update(service, client, &["main"]).await;
    project
}

fn clone_request(service: &Service, project: &Project, main: &str) -> http::Request<web::Body> {
    let path = Service::repository_path(&project.owner, &project.identifier);
    let mut body = pkt(format!("want {main} no-progress ofs-delta\n"));
    body.extend(b"0000");
    body.extend(pkt("done\n"));
    web::with_body(
        "POST",
        service.port,
        &format!("{path}/git-upload-pack"),
        &[("Content-Type", "application/x-git-upload-pack-request")],
        web::full(body),
    )
}

#[tokio::test]
async fn a_running_clone_finishes_and_new_connections_are_refused() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = large(&service, &mut client).await;
    let main = project.repo.oid("main").await;
    let request = clone_request(&service, &project, &main);
    let mut response = web::open(service.port, request).await.unwrap();
    let mut received = Vec::new();
    let first = soon("the first bytes", response.frame())
        .await
        .unwrap()
        .unwrap();
    received.extend(first.into_data().unwrap());

    service.terminate();
    until("the port is closed", || async { !service.listens().await }).await;
    while let Some(frame) = soon("more of the pack", response.frame()).await {
        received.extend(frame.expect("the pack is cut off").into_data().unwrap());
    }
    // NAK, then the pack.
    assert!(received.starts_with(b"0008NAK\n"));
    let (ok, _, stderr) = git::run_with(
        &project.repo.path(),
        &["index-pack", "--stdin", "--strict"],
        &received[8..],
    )
    .await;
    assert!(ok, "{stderr}");
    assert!(received.len() > SIZE);
    assert!(service.ended().await.success());
}

#[tokio::test]
async fn a_running_push_finishes() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "pushing").await;
    project.repo.commit_bytes(2_000_000).await;
    let main = project.repo.oid("main").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let path = Service::repository_path(&project.owner, "pushing");
    let headers = [("Content-Type", "application/x-git-receive-pack-request")];
    let mut upload = Upload::start(service.port, &format!("{path}/git-receive-pack"), &headers);
    let wanted = [(ZERO, main.as_str(), "refs/heads/main")];
    upload.send(commands(&wanted, "report-status")).await;
    let pack = project.repo.pack(&["main"]).await;
    let (first, rest) = pack.split_at(pack.len() / 2);
    for piece in first.chunks(8192) {
        upload.send(piece.to_vec()).await;
    }
    service.terminate();
    until("the port is closed", || async { !service.listens().await }).await;
    upload.send(rest.to_vec()).await;
    let report = lines(&upload.finish().await.unwrap().body);
    assert_eq!(
        report[..2],
        ["unpack ok", "ok refs/heads/main"],
        "{report:?}"
    );
    assert!(service.ended().await.success());

    service.run().await;
    let mut client = Client::connect(&service).await;
    assert!(client.serves(&state).await);
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn an_idle_service_ends_at_once_and_cleanly() {
    let mut service = Service::start().await;
    let mut client = Client::connect(&service).await;
    client.query(serde_json::json!({"kinds": [1]})).await;
    let children = processes::descendants(service.pid());
    service.terminate();
    // The websocket is told to go, it does not hold up the end.
    let status = tokio::time::timeout(Duration::from_secs(10), service.ended()).await;
    assert!(status.expect("ends before its grace is over").success());
    assert!(!children.iter().any(|pid| processes::alive(*pid)));
    client.closing_code().await;
}

#[tokio::test]
async fn grace_has_an_end() {
    let grace = [("NGIT_SHUTDOWN_GRACE_SECS", "1")];
    let mut service = Service::start_with(&grace).await;
    let mut client = Client::connect(&service).await;
    let project = large(&service, &mut client).await;
    let main = project.repo.oid("main").await;
    let request = clone_request(&service, &project, &main);
    // A reader that reads nothing more.
    let mut response = web::open(service.port, request).await.unwrap();
    soon("the first bytes", response.frame())
        .await
        .unwrap()
        .unwrap();
    let children = processes::descendants(service.pid());
    service.terminate();
    service.ended().await;
    until("no child is left", || async {
        !children.iter().any(|pid| processes::alive(*pid))
    })
    .await;
    drop(response);
}
