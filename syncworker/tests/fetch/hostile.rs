//! Servers that break the rules. Where time matters it is set, and passes by itself.

use std::time::Duration;

use grasp_proto::contract::relay::failed::Why;
use grasp_syncworker::hunt::fetch;
use http::{Response, StatusCode, header};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    time::{Instant, sleep},
};

use crate::support::{Names, full, net, net_of, oid, raw, serve, wanted, whole, why};

const ADVERTISED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n";
const RESULT: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-result\r\n";
const CLOSE: &str = "Connection: close\r\n\r\n";
const SPEAKS_V2: &str = "000eversion 2\n000afetch\n0000";

async fn say(stream: &mut TcpStream, parts: &[&[u8]]) {
    for part in parts {
        if stream.write_all(part).await.is_err() {
            return;
        }
    }
}

/// Says the same thing until nobody listens.
async fn repeat(stream: &mut TcpStream, words: &[u8], every: Duration) {
    while stream.write_all(words).await.is_ok() {
        if !every.is_zero() {
            sleep(every).await;
        }
    }
}

/// Waits until the other side hangs up.
async fn hang(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0]).await;
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/repo.git")
}

/// A server that speaks v2 and answers the request for a pack like this, over and over.
async fn packing(begin: &'static [u8], over_and_over: &'static [u8], every: Duration) -> u16 {
    raw(move |head, mut stream| async move {
        if head.starts_with("GET") {
            say(
                &mut stream,
                &[
                    ADVERTISED.as_bytes(),
                    CLOSE.as_bytes(),
                    SPEAKS_V2.as_bytes(),
                ],
            )
            .await;
            return;
        }
        say(&mut stream, &[RESULT.as_bytes(), CLOSE.as_bytes(), begin]).await;
        if !over_and_over.is_empty() {
            repeat(&mut stream, over_and_over, every).await;
        }
    })
    .await
}

/// A piece of a pack, with its sideband.
static PIECE: [u8; 0xea60] = {
    let mut piece = [0; 0xea60];
    (piece[0], piece[1], piece[2], piece[3], piece[4]) = (b'e', b'a', b'6', b'0', 1);
    piece
};

const BEGUN: &[u8] = b"000dpackfile\n0011\x01PACK\0\0\0\x02\0\0\0\x01";

#[tokio::test]
async fn statuses() {
    for (status, expected) in [
        (204, Why::Unwell),
        (304, Why::Unwell),
        (400, Why::NotThere),
        (401, Why::NotThere),
        (403, Why::NotThere),
        (404, Why::NotThere),
        (410, Why::NotThere),
        (429, Why::Busy),
        (500, Why::Unwell),
        (502, Why::Unwell),
        (503, Why::Unwell),
    ] {
        let port = serve(move |_| async move {
            let mut response = Response::new(full("no"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        })
        .await;
        assert_eq!(why(&net(), &url(port)).await, expected, "{status}");
    }
}

#[tokio::test]
async fn answers_of_another_kind() {
    for (name, value, expected) in [
        (header::CONTENT_TYPE, "text/html", Why::NotThere),
        (
            header::CONTENT_TYPE,
            "text/plain; charset=utf-8",
            Why::NotThere,
        ),
        (
            header::CONTENT_TYPE,
            "application/x-git-upload-pack-result",
            Why::NotThere,
        ),
        (header::CONTENT_ENCODING, "gzip", Why::Unwell),
        (header::CONTENT_ENCODING, "br", Why::Unwell),
    ] {
        let port = serve(move |_| {
            let mut response = Response::new(full(SPEAKS_V2));
            let kind = "application/x-git-upload-pack-advertisement"
                .parse()
                .unwrap();
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
                .headers_mut()
                .insert(name.clone(), value.parse().unwrap());
            async { response }
        })
        .await;
        assert_eq!(why(&net(), &url(port)).await, expected, "{value}");
    }
}

/// Ten gigabytes in ten megabytes would be its answer to the request for a pack.
#[tokio::test]
async fn what_is_packed_unasked_is_not_unpacked() {
    let port = raw(|head, mut stream| async move {
        if head.starts_with("GET") {
            say(
                &mut stream,
                &[
                    ADVERTISED.as_bytes(),
                    CLOSE.as_bytes(),
                    SPEAKS_V2.as_bytes(),
                ],
            )
            .await;
            return;
        }
        let packed = b"Content-Encoding: gzip\r\n";
        say(&mut stream, &[RESULT.as_bytes(), packed, CLOSE.as_bytes()]).await;
        repeat(&mut stream, &vec![0x1f; 60_000], Duration::ZERO).await;
    })
    .await;
    assert_eq!(why(&net(), &url(port)).await, Why::Unwell);
}

#[tokio::test]
async fn nobody_is_there() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    assert_eq!(why(&net(), &url(port)).await, Why::Server);
    let (net, _) = net_of(Names::default().with("empty.example", &[&[]]));
    assert_eq!(why(&net, "http://unknown.example/x").await, Why::Server);
    assert_eq!(why(&net, "http://empty.example/x").await, Why::Server);
}

#[tokio::test]
async fn what_has_no_end_is_ended() {
    let header = raw(|_, mut stream| async move {
        say(&mut stream, &[ADVERTISED.as_bytes()]).await;
        repeat(&mut stream, &vec![b'x'; 10_000], Duration::ZERO).await;
    })
    .await;
    assert_eq!(why(&net(), &url(header)).await, Why::Server);

    let headers = raw(|_, mut stream| async move {
        say(&mut stream, &[ADVERTISED.as_bytes()]).await;
        repeat(&mut stream, b"A: b\r\n", Duration::ZERO).await;
    })
    .await;
    assert_eq!(why(&net(), &url(headers)).await, Why::Server);

    let advertisement = raw(|_, mut stream| async move {
        let one = "1".repeat(40);
        let first = format!("0040{one} HEAD\0side-band-64k\n");
        assert_eq!(first.len(), 0x40);
        let mut line = b"ea60".to_vec();
        line.extend_from_slice(&[b'2'; 40]);
        line.push(b' ');
        line.resize(0xea60, b'r');
        say(
            &mut stream,
            &[ADVERTISED.as_bytes(), CLOSE.as_bytes(), first.as_bytes()],
        )
        .await;
        repeat(&mut stream, &line, Duration::ZERO).await;
    })
    .await;
    assert_eq!(why(&net(), &url(advertisement)).await, Why::Unwell);

    let pack = packing(BEGUN, &PIECE, Duration::ZERO).await;
    let mut wanted = wanted(&url(pack), &[oid(1)]);
    wanted.max_bytes = 10 << 20;
    let pack = fetch::open(&net(), &wanted).await.unwrap();
    assert_eq!(whole(pack).await.unwrap_err().why, Why::Large);
}

#[tokio::test]
async fn packs_that_are_none() {
    for (begin, expected) in [
        (&b""[..], Why::Unwell),
        (b"000dpackfile\n", Why::Unwell),
        (BEGUN, Why::Unwell),
        (b"000dpackfile\n0000", Why::Unwell),
        (
            b"000dpackfile\n0011\x01KCAP\0\0\0\x02\0\0\0\x01",
            Why::Unwell,
        ),
        (
            b"000dpackfile\n0011\x01PACK\0\0\0\x02\0\0\0\x010011\x03out of memory",
            Why::Unwell,
        ),
        (b"000dpackfile\n000c\x03no such", Why::NotThere),
        (b"000bERR no\n", Why::NotThere),
        (b"<html>", Why::Unwell),
        (b"\0\0\0\0\0\0\0\0", Why::Unwell),
        (b"ffff", Why::Unwell),
    ] {
        let port = packing(begin, b"", Duration::ZERO).await;
        let text = String::from_utf8_lossy(begin);
        assert_eq!(why(&net(), &url(port)).await, expected, "{text:?}");
    }
    // Shorter than it says.
    let port = raw(|head, mut stream| async move {
        let length = b"Content-Length: 1000\r\n\r\n";
        let (kind, content) = match head.starts_with("GET") {
            true => (ADVERTISED, SPEAKS_V2.as_bytes()),
            false => (RESULT, BEGUN),
        };
        say(&mut stream, &[kind.as_bytes(), length, content]).await;
    })
    .await;
    assert_eq!(why(&net(), &url(port)).await, Why::Unwell);
}

#[tokio::test(start_paused = true)]
async fn silence_ends() {
    let mute = raw(|_, mut stream| async move { hang(&mut stream).await }).await;
    let begun = Instant::now();
    assert_eq!(why(&net(), &url(mute)).await, Why::Server);
    assert!(begun.elapsed() < Duration::from_secs(31));

    let slow_head = raw(|_, mut stream| async move {
        say(&mut stream, &[ADVERTISED.as_bytes()]).await;
        repeat(&mut stream, b"x", Duration::from_secs(1)).await;
    })
    .await;
    assert_eq!(why(&net(), &url(slow_head)).await, Why::Server);

    // It has answered once: it is there.
    let port = packing(b"000dpackfile\n0009", b"", Duration::ZERO).await;
    assert_eq!(why(&net(), &url(port)).await, Why::Unwell);
    let port = raw(|head, mut stream| async move {
        if head.starts_with("GET") {
            let parts = [ADVERTISED, CLOSE, SPEAKS_V2].map(str::as_bytes);
            say(&mut stream, &parts).await;
        }
    })
    .await;
    assert_eq!(why(&net(), &url(port)).await, Why::Unwell);
}

#[tokio::test(start_paused = true)]
async fn drips_end() {
    let port = packing(BEGUN, b"0006\x01x", Duration::from_secs(1)).await;
    let begun = Instant::now();
    assert_eq!(why(&net(), &url(port)).await, Why::Slow);
    assert!(begun.elapsed() < Duration::from_secs(25));
    // Alive, as it says again and again, and nothing else.
    let port = packing(b"000dpackfile\n", b"0005\x01", Duration::from_secs(5)).await;
    let begun = Instant::now();
    assert_eq!(why(&net(), &url(port)).await, Why::Slow);
    assert!(begun.elapsed() <= Duration::from_secs(121));
    // Progress is easily told.
    let port = packing(b"000dpackfile\n", b"0006\x02.", Duration::from_secs(59)).await;
    let begun = Instant::now();
    assert_eq!(why(&net(), &url(port)).await, Why::Slow);
    assert!(begun.elapsed() <= Duration::from_secs(121));
    // A header that goes on and on, as an answer to the request for a pack.
    let port = raw(|head, mut stream| async move {
        if head.starts_with("GET") {
            say(
                &mut stream,
                &[
                    ADVERTISED.as_bytes(),
                    CLOSE.as_bytes(),
                    SPEAKS_V2.as_bytes(),
                ],
            )
            .await;
        } else {
            hang(&mut stream).await;
        }
    })
    .await;
    let begun = Instant::now();
    let why = why(&net(), &url(port)).await;
    assert!(matches!(why, Why::Slow | Why::Unwell), "{why:?}");
    assert!(begun.elapsed() <= Duration::from_secs(121));
}

/// A server that has a pack whole before it says a word, as some do, is waited for.
#[tokio::test(start_paused = true)]
async fn a_late_answer_is_an_answer() {
    let port = raw(|head, mut stream| async move {
        if head.starts_with("GET") {
            say(
                &mut stream,
                &[
                    ADVERTISED.as_bytes(),
                    CLOSE.as_bytes(),
                    SPEAKS_V2.as_bytes(),
                ],
            )
            .await;
            return;
        }
        sleep(Duration::from_secs(100)).await;
        say(
            &mut stream,
            &[RESULT.as_bytes(), CLOSE.as_bytes(), BEGUN, b"0000"],
        )
        .await;
    })
    .await;
    let pack = fetch::open(&net(), &wanted(&url(port), &[oid(1)]))
        .await
        .unwrap();
    assert_eq!(whole(pack).await.unwrap().len(), 12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a server answers, a fetch ends, and not well.
    #[test]
    fn any_answer_ends(
        head in prop::sample::select(vec!["", ADVERTISED, RESULT]),
        answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..3),
        good_head in any::<bool>(),
    ) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let port = raw(move |asked, mut stream| {
                let answer = match asked.starts_with("GET") {
                    true if good_head => SPEAKS_V2.as_bytes().to_vec(),
                    true => answers[0].clone(),
                    false => answers.last().unwrap().clone(),
                };
                async move {
                    let head = match asked.starts_with("GET") && good_head {
                        true => ADVERTISED,
                        false => head,
                    };
                    let end: &[u8] = if head.is_empty() { b"" } else { CLOSE.as_bytes() };
                    say(&mut stream, &[head.as_bytes(), end, &answer]).await;
                }
            })
            .await;
            why(&net(), &url(port)).await;
        });
    }
}
