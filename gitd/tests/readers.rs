//! Readers who take up room, and those who want some.

mod common;

use std::time::Duration;

use common::*;
use grasp_proto::words::RepoId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

/// A clone that has been asked for and is not read: from an address, as our proxy says.
async fn unread(service: &Service, repo: &RepoId, tip: &str, address: &str) -> TcpStream {
    let body = format!(
        "{}0001{}{}0000",
        line("command=fetch"),
        line(&format!("want {tip}\n")),
        line("done\n")
    );
    let request = format!(
        "POST /{repo}/git-upload-pack HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\
         Content-Type: application/x-git-upload-pack-request\r\nGit-Protocol: version=2\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(service.base.trim_start_matches("http://"))
        .await
        .unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// A repository of a few megabytes that do not get smaller; gives its tip.
async fn large(service: &Service, repo: &RepoId) -> String {
    service.create(repo).await;
    let path = work(service.directory.path(), "large", 1).await;
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..12_000_000)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    std::fs::write(path.join("noise"), noise).unwrap();
    let tip = commit(&path, "last", "last").await;
    git(&path, &["push", "-q", &service.url(repo), "main"]).await;
    tip.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_who_take_all_the_room_there_is_leave_some_to_who_comes_then() {
    let service = Service::with(&[("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8")]).await;
    let repo = repo(1, "x");
    let tip = large(&service, &repo).await;
    let addresses = [1, 2, 3, 4].map(|n| format!("192.0.2.{n}"));
    let mut unreads = Vec::new();
    for address in addresses.iter().cycle().take(4 * 14) {
        let mut stream = unread(&service, &repo, &tip, address).await;
        // The answer has begun behind its head, so the place is taken.
        let mut begun = Vec::new();
        while !begun.windows(8).any(|part| part == b"packfile") {
            assert!(stream.read_buf(&mut begun).await.unwrap() > 0);
        }
        unreads.push(stream);
    }
    for address in addresses.iter().cycle().take(4 * 2) {
        unreads.push(unread(&service, &repo, &tip, address).await);
    }
    // The others take what they can get.
    sleep(Duration::from_secs(2)).await;
    let header = "http.extraHeader=X-Forwarded-For: 198.51.100.1";
    let url = service.url(&repo);
    let args = ["-c", header, "clone", "-q", &url, "clone"];
    let cloned = timeout(
        Duration::from_secs(60),
        git(service.directory.path(), &args),
    );
    cloned.await.expect("a clone of somebody else");
}

/// The head of a request that sends so many bytes.
fn head(repo: &RepoId, bytes: usize, kind: &str) -> String {
    format!(
        "POST /{repo}/git-upload-pack HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\
         Connection: close\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\n\r\n"
    )
}

const FETCH: &str = "application/x-git-upload-pack-request";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_with_a_refused_request_is_counted_too() {
    const BYTES: usize = 3 << 20;
    for (kind, word) in [(FETCH, "too many transfers"), ("text/plain", "415")] {
        let service = Service::with(&[
            ("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8"),
            ("NGIT_GIT_TRANSFERS_PER_IP", "1"),
            ("NGIT_GIT_BYTES_PER_HOUR_PER_IP", "1000000"),
        ])
        .await;
        let repo = repo(1, "x");
        service.create(&repo).await;
        let address = service.base.trim_start_matches("http://").to_owned();
        // The one transfer that is allowed, still to come.
        let mut other = TcpStream::connect(&address).await.unwrap();
        if kind == FETCH {
            other
                .write_all(head(&repo, 100, FETCH).as_bytes())
                .await
                .unwrap();
        }
        let mut request = head(&repo, BYTES, kind).into_bytes();
        request.resize(request.len() + BYTES, b'x');
        let mut answer = String::new();
        while !answer.contains(word) && !answer.contains("too much data") {
            answer = raw(&service, &request).await;
        }
        let ask = format!(
            "GET /{repo}/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\
             X-Forwarded-For: 192.0.2.1\r\nConnection: close\r\n\r\n"
        );
        // It is counted as it is read, behind the answer.
        let refused = async {
            while !raw(&service, ask.as_bytes())
                .await
                .contains("too much data was taken")
            {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let refused = timeout(Duration::from_secs(10), refused).await;
        refused.expect("it is refused for what it has sent");
    }
}
