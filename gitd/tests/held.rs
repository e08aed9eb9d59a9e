//! Answers begin when their requests have ended: what lies between passes nothing else on.

mod common;

use std::time::Duration;

use common::{Judgement, Service, children, line, repo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const FROM: &str = "X-Forwarded-For: 192.0.2.1\r\n";
const PUSH: &str = "git-receive-pack";
const FETCH: &str = "git-upload-pack";

/// A POST whose body comes in chunks.
async fn begin(service: &Service, path: &str, more: &str) -> TcpStream {
    let address = service.base.trim_start_matches("http://");
    let kind = path.rsplit('/').next().unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\
         Content-Type: application/x-{kind}-request\r\n{more}\r\n"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn send(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let size = format!("{:x}\r\n", bytes.len());
    stream
        .write_all(&[size.as_bytes(), bytes, b"\r\n"].concat())
        .await
}

fn command(name: &str) -> String {
    let (old, new) = ("0".repeat(40), "1".repeat(40));
    let capabilities = "report-status side-band-64k";
    line(&format!("{old} {new} {name}\0{capabilities}")) + "0000"
}

/// What comes, up to the end of `words`.
async fn heard(stream: &mut TcpStream, words: &str) -> String {
    let mut answer = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&answer).contains(words) {
            let read = stream.read_buf(&mut answer).await;
            assert!(matches!(read, Ok(1..)), "{read:?}");
        }
    };
    let read = timeout(Duration::from_secs(20), reading).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(read.is_ok(), "{words} in {answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_when_all_was_sent() {
    let service = Service::with(&[
        ("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8"),
        ("NGIT_GIT_TRANSFERS_PER_IP", "1"),
    ])
    .await;
    let repo = repo(1, "held");
    service.create(&repo).await;
    service.judge(Judgement::Refuse("nobody has signed this".to_owned()));
    let push = command("refs/heads/main");
    let cases = [
        // By the relay, before the pack.
        (PUSH, push.as_str(), "", "nobody has signed this"),
        // By what the commands are.
        (PUSH, "0007xyz", "", "ERR a command cannot be read"),
        (PUSH, "zzzz", "", "ERR "),
        (PUSH, &push, "Content-Encoding: gzip\r\n", "ERR "),
        (FETCH, "0009done\n", "Git-Protocol: version=2\r\n", "ERR "),
        (FETCH, "zzzz", "", "ERR "),
    ];
    for (name, body, more, words) in cases {
        let mut stream = begin(
            &service,
            &format!("/{repo}/{name}"),
            &format!("{FROM}{more}"),
        )
        .await;
        send(&mut stream, body.as_bytes()).await.unwrap();
        for _ in 0..20 {
            send(&mut stream, &vec![7; 64 * 1024]).await.unwrap();
        }
        let early = timeout(Duration::from_millis(300), stream.read_u8()).await;
        assert!(early.is_err(), "{name} {body}: {early:?}");
        // The one transfer that its client may have: refused at the door, told at the end as well.
        let mut second = begin(&service, &format!("/{repo}/{name}"), FROM).await;
        for _ in 0..20 {
            send(&mut second, &vec![7; 64 * 1024]).await.unwrap();
        }
        let early = timeout(Duration::from_millis(300), second.read_u8()).await;
        assert!(early.is_err(), "{name} at the door: {early:?}");
        second.write_all(b"0\r\n\r\n").await.unwrap();
        let answer = heard(&mut second, "too many transfers").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        let answer = heard(&mut stream, words).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // The connection serves on.
        drop(second);
        let page = format!("GET /{repo} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(page.as_bytes()).await.unwrap();
        heard(&mut stream, "HTTP/1.1 200 OK").await;
    }
}

/// Pushes for events that nobody knows which may be taken in at once.
const STAGERS: u8 = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_waits_for_its_place_is_shown_signs_of_life() {
    let service = Service::start().await;
    let repo = repo(1, "crowded");
    service.create(&repo).await;
    let path = format!("/{repo}/{PUSH}");
    // The beginning of a pack of one object.
    let beginning = |number: u8| {
        let name = format!("refs/nostr/{}", format!("{number:02x}").repeat(32));
        [command(&name).as_bytes(), b"PACK\0\0\0\x02\0\0\0\x01"].concat()
    };
    let mut others = Vec::new();
    for number in 0..STAGERS {
        let mut other = begin(&service, &path, "").await;
        send(&mut other, &beginning(number)).await.unwrap();
        others.push(other);
    }
    let quarantines = service.pool().join("quarantine");
    while children(&quarantines).len() < STAGERS.into() {
        tokio::task::yield_now().await;
    }
    let mut stream = begin(&service, &path, "").await;
    send(&mut stream, &beginning(STAGERS)).await.unwrap();
    send(&mut stream, &[7; 100]).await.unwrap();
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    heard(&mut stream, "0005\u{1}").await;
    drop(others);
    // It had not had its place yet.
    heard(&mut stream, "unpack the pack is damaged").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_without_end_is_told_by_the_status() {
    let service = Service::with(&[
        ("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8"),
        ("NGIT_GIT_TRANSFERS_PER_IP", "1"),
        ("NGIT_GIT_MAX_PACK_BYTES", "1000000"),
    ])
    .await;
    let repo = repo(1, "endless");
    service.create(&repo).await;
    service.judge(Judgement::Refuse("nobody has signed this".to_owned()));
    let push = command("refs/heads/main");
    let _other = begin(&service, &format!("/{repo}/{FETCH}"), FROM).await;
    for (path, from, status) in [
        (format!("/{repo}/{PUSH}"), "198.51.100.1", "413"),
        (format!("/{repo}/{PUSH}"), "192.0.2.1", "429"),
        (format!("/{repo}x/{PUSH}"), "198.51.100.1", "404"),
    ] {
        let stream = begin(&service, &path, &format!("X-Forwarded-For: {from}\r\n")).await;
        let (mut reader, mut writer) = stream.into_split();
        let sending = async {
            let first = format!("{:x}\r\n{push}\r\n", push.len());
            let piece = [&b"10000\r\n"[..], &vec![7; 0x1_0000][..], b"\r\n"].concat();
            let mut sent = writer.write_all(first.as_bytes()).await;
            while sent.is_ok() {
                sent = writer.write_all(&piece).await;
            }
            std::future::pending::<()>().await;
        };
        let mut answer = Vec::new();
        let reading = async {
            while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
                assert!(reader.read_buf(&mut answer).await.unwrap() > 0);
            }
        };
        let read = async {
            tokio::select! {
                () = sending => unreachable!("it goes on for ever"),
                () = reading => {}
            }
        };
        timeout(Duration::from_secs(20), read).await.expect(status);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_before_sending_is_refused_at_once() {
    let service = Service::start().await;
    let repo = repo(1, "asks");
    let path = format!("/{repo}/{PUSH}");
    let mut stream = begin(&service, &path, "Expect: 100-continue\r\n").await;
    let answer = heard(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}
