//! The three processes apart, over TCP with mutual TLS.

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    authority::Authority,
    support::{
        Client, PATIENCE, Project, Repo, Service, host::Host, processes, service::free_port, soon,
        until,
    },
};

/// What a port says to somebody who speaks `bytes` to it, without TLS.
async fn in_the_clear(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut heard = Vec::new();
    let reading = stream.read_to_end(&mut heard);
    let _ = soon("the connection ends", reading).await;
    heard
}

#[tokio::test]
async fn apart_and_over_tcp_only_who_has_a_certificate_takes_part() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ports: [u16; 3] = std::array::from_fn(|_| free_port());
    let [relay_grpc, gitd_grpc, gitd_http] = ports;
    let mut service = Service::prepare(&[
        ("NGIT_SYNC_DEFAULT_DELAY_SECS", "0"),
        ("NGIT_INTERNAL_TOKEN_RELAY", "the-token-of-the-relay"),
        ("NGIT_INTERNAL_TOKEN_GITD", "the-token-of-gitd"),
        ("NGIT_INTERNAL_TOKEN_WORKER", "the-token-of-workers"),
    ])
    .await;
    for (name, port) in [
        ("NGIT_RELAY_GRPC_ADDRESS", relay_grpc),
        ("NGIT_GITD_GRPC_ADDRESS", gitd_grpc),
        ("NGIT_GITD_HTTP_ADDRESS", gitd_http),
    ] {
        service.set(name, &format!("https://127.0.0.1:{port}"));
    }
    // Without a certificate nothing starts, and nothing falls back to plain text.
    let mut bare = service.command(&["relay"]);
    let out = tokio::task::spawn_blocking(move || bare.output().unwrap());
    let out = out.await.unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success() && said.contains("NGIT_INTERNAL_TLS_"),
        "{said}"
    );

    for (name, value) in authority.settings("127.0.0.1") {
        service.set(name, &value);
    }
    let mut gitd = service.role("gitd", &[]);
    service.start_as(&["relay"]);
    // A worker of somebody else knows the tokens, and finds nobody to give them to.
    let foreign = service.role("syncworker", &stranger.settings("127.0.0.1"));
    service.ready().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "sealed").await;
    let (_clone, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    for port in ports {
        for words in [
            &b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        ] {
            let heard = in_the_clear(port, words).await;
            assert!(!heard.starts_with(b"HTTP"), "{port}: {heard:?}");
            // An alert of TLS at most.
            assert!(heard.is_empty() || heard[0] == 21, "{port}: {heard:?}");
        }
    }

    // What is missing here is looked for once a worker of ours is there.
    let host = Host::start().await;
    let elsewhere = Project::new("elsewhere").await;
    let url = host.hold("copy", &elsewhere.repo, &["main"]).await;
    let ours = service.public_url(&elsewhere.owner, "elsewhere");
    let announced =
        elsewhere
            .announcement(&service)
            .without("clone")
            .tag(vec!["clone".to_owned(), ours, url]);
    client
        .publish(&announced.sign(&elsewhere.owner))
        .await
        .waits();
    let state = elsewhere.state().await.sign(&elsewhere.owner);
    client.publish(&state).await.waits();
    assert!(!client.serves(&state).await);
    let worker = service.role("syncworker", &[]);
    let served = || async { Client::connect(&service).await.serves(&state).await };
    until("what was found is served", served).await;
    drop((worker, foreign));

    // gitd comes back, and is found again.
    processes::send(gitd.id().unwrap(), Signal::KILL);
    tokio::time::timeout(PATIENCE, gitd.wait())
        .await
        .unwrap()
        .unwrap();
    let _gitd = service.role("gitd", &[]);
    until("gitd serves", || service.serves_git()).await;
    project.repo.commit().await;
    project.update(&service, &mut client, &["main"]).await;
}
