//! Clones and fetches.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    configuration::Configuration,
    stage::{Hosted, Stage, large, made, scale, small},
    support::{
        git,
        git::pkt,
        soon, until,
        web::{self, Upload},
    },
};

const FETCH: [(&str, &str); 1] = [("Content-Type", "application/x-git-upload-pack-request")];

fn path(hosted: &Hosted) -> String {
    format!("{}/git-upload-pack", hosted.path())
}

/// A request for all of a repository, without side band: the answer is `NAK` and the pack.
fn everything(main: &str) -> Vec<u8> {
    let mut body = pkt(format!("want {main} no-progress ofs-delta\n"));
    body.extend(b"0000");
    body.extend(pkt("done\n"));
    body
}

/// Fails the test unless this is the answer with a pack that has `main`.
async fn is_whole(answer: &[u8], main: &str) {
    assert!(answer.starts_with(b"0008NAK\n"));
    let clone = made(0).await;
    let (ok, _, said) = git::run_with(
        &clone.path(),
        &["index-pack", "--stdin", "--strict"],
        &answer[8..],
    )
    .await;
    assert!(ok, "{said}");
    let kind = clone.say(&["cat-file", "-t", main]).await;
    assert_eq!(kind, "commit");
}

pub async fn of_any_size(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    for (name, repo) in [("small", small().await), ("large", large().await)] {
        let hosted = stage.hold(name, repo).await;
        for way in stage.front.ways() {
            let (clone, out) = stage.clone(&hosted, way).await;
            out.good();
            assert_eq!(clone.oid("HEAD").await, repo.oid("main").await);
        }
    }
}

/// A reader of 64 KiB a second, for longer than what lies between takes at once.
pub async fn that_are_slow(configuration: Configuration) {
    const PACE: usize = 64 * 1024;
    const LASTS: Duration = Duration::from_secs(8);
    let stage = Stage::start(configuration).await;
    let repo = large().await;
    let hosted = stage.hold("slow", repo).await;
    let main = repo.oid("main").await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let address = ([127, 0, 0, 1], stage.front.simplest()).into();
    let mut stream = socket.connect(address).await.unwrap();
    let body = everything(&main);
    let head = format!(
        "POST {} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        path(&hosted),
        FETCH[0].1,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let mut answer = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < LASTS * u32::try_from(scale()).unwrap() {
        let mut piece = vec![0; PACE / 4];
        let read = soon("more of the pack", stream.read(&mut piece)).await;
        let count = read.unwrap();
        assert!(count > 0, "the pack is cut off");
        answer.extend_from_slice(&piece[..count]);
        let due = Duration::from_millis(u64::try_from(answer.len() * 1000 / PACE).unwrap());
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
    }
    while soon("the rest", stream.read_buf(&mut answer))
        .await
        .unwrap()
        > 0
    {}
    let at = answer
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .expect("the end of the head");
    is_whole(&answer[at + 4..], &main).await;
}

/// A fetch whose request is longer than what a proxy takes at once.
pub async fn that_have_much(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    let repo = small().await;
    let hosted = stage.hold("much", repo).await;
    let main = repo.oid("main").await;
    let mut body = pkt(format!("want {main} no-progress ofs-delta\n"));
    body.extend(b"0000");
    for number in 0..100_000 {
        body.extend(pkt(format!("have {number:040x}\n")));
    }
    body.extend(pkt("done\n"));
    let mut upload = Upload::start(stage.front.simplest(), &path(&hosted), &FETCH);
    for piece in body.chunks(64 * 1024) {
        upload.send(piece.to_vec()).await;
    }
    let answer = upload.finish().await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    is_whole(&answer.body, &main).await;
}

/// A reader who goes leaves no git behind.
pub async fn that_break_off(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    let repo = large().await;
    let hosted = stage.hold("broken", repo).await;
    let body = web::full(everything(&repo.oid("main").await));
    let port = stage.front.simplest();
    let request = web::with_body("POST", port, &path(&hosted), &FETCH, body);
    let mut response = web::open(port, request).await.unwrap();
    let first = soon("the first bytes", response.frame()).await;
    first.unwrap().unwrap();
    drop(response);
    let gone = || async { stage.git("upload-pack").is_none() };
    until("git has gone", gone).await;
}
