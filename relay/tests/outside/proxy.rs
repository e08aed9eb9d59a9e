//! Git paths, with a stand-in for gitd.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    support::{Service, in_time},
    upstream::{NPUB, send, service},
};

#[tokio::test]
async fn headers_are_rewritten_and_bodies_untouched() {
    let (service, mut requests) = service(&[("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8")]).await;
    let head = format!(
        "POST /{NPUB}/a%20b.git/git-upload-pack?x=y HTTP/1.1\r\nContent-Encoding: gzip\r\n\
         Content-Length: 4\r\nX-Forwarded-For: 6.6.6.6, 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n\
         X-Forwarded-Proto: https\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nGit-Protocol: version=2"
    );
    let mut client = send(&service, &head).await;
    client.write_all(b"\x1f\x8b\x00\xff").await.unwrap();
    let mut upstream = in_time(requests.recv()).await.unwrap();
    let head = &upstream.head;
    assert!(head.starts_with(&format!(
        "post /{NPUB}/a%20b.git/git-upload-pack?x=y http/1.1"
    )));
    for expected in [
        "content-encoding: gzip\r\n",
        "content-length: 4\r\n",
        "x-forwarded-for: 1.2.3.4\r\n",
        "x-forwarded-proto: https\r\n",
        "x-forwarded-host: relay.example.com\r\n",
        "git-protocol: version=2\r\n",
        "traceparent: 00-",
        "host: relay.example.com\r\n",
    ] {
        assert!(head.contains(expected), "{expected}: {head}");
    }
    for gone in ["x-secret", "connection:", "\r\nforwarded:"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    let mut body = [0; 4];
    upstream.stream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"\x1f\x8b\x00\xff");
    let answer =
        b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: nobody\r\nContent-Length: 2\r\n\r\nok";
    upstream.stream.write_all(answer).await.unwrap();
    let mut answer = String::new();
    in_time(client.read_to_string(&mut answer)).await.unwrap();
    assert!(
        answer.contains("access-control-allow-origin: *\r\n"),
        "{answer}"
    );
    assert!(
        !answer.contains("nobody") && answer.ends_with("\r\n\r\nok"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_client_that_goes_ends_the_request() {
    let (service, mut requests) = service(&[]).await;
    // While it waits for an answer: it may have closed its sending side only.
    let client = send(&service, &format!("GET /{NPUB}/x.git/info/refs HTTP/1.1")).await;
    let mut upstream = in_time(requests.recv()).await.unwrap();
    drop(client);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
    upstream.stream.write_all(head).await.unwrap();
    in_time(async { while upstream.stream.write_all(&[7; 1000]).await.is_ok() {} }).await;
    // While it uploads.
    let head = format!("POST /{NPUB}/x.git/git-receive-pack HTTP/1.1\r\nContent-Length: 1000");
    let mut client = send(&service, &head).await;
    client.write_all(b"part").await.unwrap();
    let mut upstream = in_time(requests.recv()).await.unwrap();
    upstream.stream.read_exact(&mut [0; 4]).await.unwrap();
    drop(client);
    assert_eq!(
        in_time(upstream.stream.read(&mut [0])).await.unwrap_or(0),
        0
    );
    // While it downloads.
    let mut client = send(&service, &format!("GET /{NPUB}/x.git HTTP/1.1")).await;
    let mut upstream = in_time(requests.recv()).await.unwrap();
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\npart";
    upstream.stream.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"part") {
        in_time(client.read_buf(&mut answer)).await.unwrap();
    }
    drop(client);
    in_time(async { while upstream.stream.write_all(&[7; 1000]).await.is_ok() {} }).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off() {
    let (service, mut requests) = service(&[]).await;
    let mut client = send(&service, &format!("GET /{NPUB}/x.git HTTP/1.1")).await;
    let mut upstream = in_time(requests.recv()).await.unwrap();
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n";
    upstream.stream.write_all(head).await.unwrap();
    drop(upstream);
    let mut answer = Vec::new();
    let _ = in_time(client.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.contains("part") && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn without_gitd_git_users_read_why() {
    let service = Service::start().await;
    let ask = |head: String| {
        let service = &service;
        async move { service.http(&head).await }
    };
    let answer = ask(format!(
        "GET /{NPUB}/x.git/info/refs?service=git-receive-pack HTTP/1.1"
    ))
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: application/x-git-receive-pack-advertisement"));
    assert!(
        answer.contains("001f# service=git-receive-pack\n0000"),
        "{answer}"
    );
    assert!(
        answer.contains("ERR the repository storage is restarting"),
        "{answer}"
    );
    let answer = ask(format!(
        "POST /{NPUB}/x.git/git-upload-pack HTTP/1.1\r\nContent-Length: 0"
    ))
    .await;
    assert!(
        answer.contains("content-type: application/x-git-upload-pack-result"),
        "{answer}"
    );
    assert!(
        answer.contains("ERR the repository storage is restarting"),
        "{answer}"
    );
    let answer = ask(format!("GET /{NPUB}/x.git HTTP/1.1")).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("Try again in a few seconds"), "{answer}");
}

#[tokio::test]
async fn a_large_upload_hears_that_gitd_is_gone() {
    const SIZE: usize = 8 << 20;
    let service = Service::start().await;
    let head = format!("POST /{NPUB}/x.git/git-receive-pack HTTP/1.1\r\nContent-Length: {SIZE}");
    let mut client = send(&service, &head).await;
    client.write_all(&vec![7; SIZE]).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"seconds\n") {
        assert_ne!(in_time(client.read_buf(&mut answer)).await.unwrap(), 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn an_upload_that_goes_on_is_told_by_the_status() {
    let service = Service::start().await;
    let head = format!("POST /{NPUB}/x.git/git-receive-pack HTTP/1.1\r\nContent-Length: 1000000");
    let (mut reader, mut writer) = send(&service, &head).await.into_split();
    let sending = async {
        while writer.write_all(b"more").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // Fifteen seconds.
    let mut answer = Vec::new();
    let reading = async {
        while !answer.ends_with(b"\r\n\r\n") {
            let byte = in_time(reader.read_u8()).await.unwrap();
            answer.push(byte);
        }
    };
    tokio::select! {
        () = sending => unreachable!("the service answers before it closes"),
        () = reading => {}
    }
    assert!(answer.starts_with(b"HTTP/1.1 503"));
}

#[tokio::test]
async fn metrics_of_gitd_are_joined_to_ours() {
    let (service, mut requests) = service(&[]).await;
    let asking =
        tokio::spawn(async move { (service.http("GET /metrics HTTP/1.1").await, service) });
    let mut upstream = in_time(requests.recv()).await.unwrap();
    assert!(upstream.head.starts_with("get /metrics"));
    let text =
        "# TYPE ngit_process_resident_bytes gauge\nngit_process_resident_bytes{role=\"gitd\"} 5\n";
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    upstream.stream.write_all(answer.as_bytes()).await.unwrap();
    let (answer, _service) = in_time(asking).await.unwrap();
    assert!(
        answer.contains("{role=\"gitd\"} 5\n") && answer.contains("{role=\"relay\"}"),
        "{answer}"
    );
    assert_eq!(
        answer.matches("# TYPE ngit_process_resident_bytes").count(),
        1
    );
}

#[tokio::test]
async fn a_transfer_may_end_after_a_stop() {
    let (service, mut requests) = service(&[]).await;
    let mut client = send(&service, &format!("GET /{NPUB}/x.git HTTP/1.1")).await;
    let mut upstream = in_time(requests.recv()).await.unwrap();
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npart";
    upstream.stream.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"part") {
        in_time(client.read_buf(&mut answer)).await.unwrap();
    }
    service.stop.cancel();
    in_time(async {
        while TcpStream::connect(service.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    upstream.stream.write_all(b"rest").await.unwrap();
    in_time(client.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.ends_with(b"partrest"));
    in_time(service.task).await.unwrap();
}

#[tokio::test]
async fn a_client_that_has_asked_all_it_wants_to_is_answered() {
    let (service, mut requests) = service(&[]).await;
    let mut client = send(&service, &format!("GET /{NPUB}/x.git HTTP/1.1")).await;
    client.shutdown().await.unwrap();
    let mut upstream = in_time(requests.recv()).await.unwrap();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
    upstream.stream.write_all(answer).await.unwrap();
    let mut answer = String::new();
    in_time(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("\r\n\r\ndone"), "{answer}");
}

#[tokio::test]
async fn who_cuts_its_own_request_does_not_hear_of_the_storage() {
    let (service, mut requests) = service(&[]).await;
    let head = format!("POST /{NPUB}/x.git/git-receive-pack HTTP/1.1\r\nContent-Length: 1000");
    let mut client = send(&service, &head).await;
    client.write_all(b"part").await.unwrap();
    let _upstream = in_time(requests.recv()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    in_time(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("cut short"), "{answer}");
}

#[tokio::test]
async fn a_gitd_that_does_not_begin_to_answer_is_not_waited_for() {
    let (service, mut requests) = service(&[]).await;
    let head = format!("GET /{NPUB}/x.git/info/refs?service=git-upload-pack HTTP/1.1");
    let mut client = send(&service, &head).await;
    let mut upstream = in_time(requests.recv()).await.unwrap();
    // Fifteen seconds.
    let mut answer = Vec::new();
    while !answer.ends_with(b"seconds\n") {
        assert_ne!(in_time(client.read_buf(&mut answer)).await.unwrap(), 0);
    }
    assert_eq!(
        in_time(upstream.stream.read(&mut [0])).await.unwrap_or(0),
        0
    );
}
