//! What runs inside: which doors it has, and that they are shut.

use std::os::unix::fs::PermissionsExt;

use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::{Client, Project, Repo, Service, service::free_port, soon, web};

/// The gRPC status that a call is answered with.
async fn call(port: u16, method: &str, token: Option<&str>) -> String {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://127.0.0.1:{port}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    // An empty message.
    let request = request.body(web::full(vec![0_u8; 5])).unwrap();
    let response = soon("an answer", sender.send_request(request))
        .await
        .unwrap();
    let status = response.headers().get("grpc-status");
    status.map_or(String::new(), |status| status.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn internal_calls_without_the_right_credential_are_refused() {
    let (relay, gitd) = (free_port(), free_port());
    let service = Service::start_with(&[
        (
            "NGIT_RELAY_GRPC_ADDRESS",
            &format!("http://127.0.0.1:{relay}"),
        ),
        (
            "NGIT_GITD_GRPC_ADDRESS",
            &format!("http://127.0.0.1:{gitd}"),
        ),
        ("NGIT_INTERNAL_TOKEN_RELAY", "the-token-of-the-relay"),
        ("NGIT_INTERNAL_TOKEN_GITD", "the-token-of-gitd"),
        ("NGIT_INTERNAL_TOKEN_WORKER", "the-token-of-workers"),
    ])
    .await;
    let unauthenticated = "16";
    let denied = "7";
    for token in [
        None,
        Some("nonsense"),
        Some(""),
        Some("the-token-of-workers"),
    ] {
        for (port, method) in [
            (relay, "grasp.relay.v1.Push/Authorize"),
            (relay, "grasp.relay.v1.Push/Commit"),
            (gitd, "grasp.git.v1.Repositories/Create"),
            (gitd, "grasp.git.v1.Repositories/Delete"),
            (gitd, "grasp.git.v1.Repositories/Align"),
        ] {
            let status = call(port, method, token).await;
            assert!(
                status == unauthenticated || status == denied,
                "{method} with {token:?}: {status:?}"
            );
        }
    }
    // Over TCP the service works as it does over sockets.
    let mut client = Client::connect(&service).await;
    Project::active(&service, &mut client, "tcp").await;
}

#[tokio::test]
async fn the_run_directory_is_private_and_goes_at_the_end() {
    let mut service = Service::start().await;
    let runs = || {
        let entries = std::fs::read_dir(service.directory()).unwrap().flatten();
        let run = |entry: &std::fs::DirEntry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("graspd-run-")
        };
        entries.filter(run).collect::<Vec<_>>()
    };
    let before = runs();
    assert_eq!(before.len(), 1);
    let mode = before[0].metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    service.terminate();
    service.ended().await;
    let left = std::fs::read_dir(service.directory()).unwrap().flatten();
    let left = left.filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("graspd-run-")
    });
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn git_paths_that_an_edge_routes_to_gitd_behave_the_same() {
    let direct = free_port();
    let address = format!("http://127.0.0.1:{direct}");
    let service = Service::start_with(&[("NGIT_GITD_HTTP_ADDRESS", &address)]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "edge").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let path = Service::repository_path(&project.owner, "edge");
    let url = format!("{address}{path}");
    project.repo.push(&url, &["main"]).await.good();
    assert!(client.serves(&state).await);
    let (_, out) = Repo::clone(&url, &[]).await;
    out.good();
    for path in [
        path.clone(),
        format!("{path}/info/refs?service=git-upload-pack"),
    ] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            let ask = |port| web::fetch(port, web::request(method, port, &path, &[]));
            let (edge, public) = (ask(direct).await.unwrap(), ask(service.port).await.unwrap());
            assert_eq!(edge.status, public.status);
            assert_eq!(edge.body, public.body);
            for (name, value) in &public.headers {
                if name.as_str().starts_with("access-control-") || name == "content-type" {
                    assert_eq!(
                        edge.headers.get(name),
                        Some(value),
                        "{method} {path} {name}"
                    );
                }
            }
        }
    }
}
