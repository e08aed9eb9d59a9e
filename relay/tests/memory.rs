//! What transfers and idle connections cost. A process of its own, as all of it is measured.

#[allow(dead_code)]
#[path = "outside/support.rs"]
mod support;
#[allow(dead_code)]
#[path = "outside/upstream.rs"]
mod upstream;

use std::time::Duration;

use grasp_relay::session::Patience;
use nostr::{EventBuilder, Keys, Kind, event::FinalizeEvent};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
};

use crate::{
    support::{Service, in_time, note},
    upstream::{NPUB, send, service},
};

/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

fn resident() -> u64 {
    grasp_proto::process::resident_bytes().unwrap()
}

/// A websocket of bare bytes.
async fn websocket(service: &Service) -> TcpStream {
    let handshake = "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let mut client = send(service, handshake).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(in_time(client.read_buf(&mut head)).await.unwrap(), 0);
    }
    client
}

#[tokio::test]
async fn an_upload_waits_for_a_slow_gitd_and_memory_does_not_grow() {
    const SIZE: usize = 256 << 20;
    let _alone = ALONE.lock().await;
    let (service, mut requests) = service(&[]).await;
    let head = format!(
        "POST /{NPUB}/x.git/git-receive-pack HTTP/1.1\r\nContent-Length: {SIZE}\r\nExpect: 100-continue"
    );
    let mut client = send(&service, &head).await;
    let mut upstream = in_time(requests.recv()).await.unwrap();
    let mut line = [0; 25];
    in_time(client.read_exact(&mut line)).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    let before = resident();
    let (mut reading, mut writing) = client.into_split();
    let upload = tokio::spawn(async move {
        let chunk = vec![7; 1 << 16];
        for _ in 0..SIZE / chunk.len() {
            writing.write_all(&chunk).await.unwrap();
        }
        writing
    });
    let mut got = 0;
    let mut chunk = vec![0; 1 << 16];
    let mut most = 0;
    while got < SIZE {
        let read = in_time(upstream.stream.read(&mut chunk)).await.unwrap();
        assert_ne!(read, 0);
        got += read;
        most = most.max(resident().saturating_sub(before));
    }
    let _writing = in_time(upload).await.unwrap();
    // And the same back, in chunks.
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    upstream.stream.write_all(head).await.unwrap();
    let download = tokio::spawn(async move {
        let data = vec![7; 1 << 16];
        for _ in 0..SIZE / data.len() {
            upstream.stream.write_all(b"10000\r\n").await.unwrap();
            upstream.stream.write_all(&data).await.unwrap();
            upstream.stream.write_all(b"\r\n").await.unwrap();
        }
        upstream.stream.write_all(b"0\r\n\r\n").await.unwrap();
    });
    let mut got = 0;
    while got < SIZE {
        let read = in_time(reading.read(&mut chunk)).await.unwrap();
        assert_ne!(read, 0);
        got += read;
        most = most.max(resident().saturating_sub(before));
    }
    in_time(download).await.unwrap();
    println!("over idle: {} KiB", most >> 10);
    assert!(most < 16 << 20, "{most}");
}

/// A text frame of a client, with a mask of zeros.
fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0xff];
    frame.extend_from_slice(&(text.len() as u64).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

#[tokio::test]
async fn readers_of_large_stored_events_that_read_nothing_hold_little() {
    const READERS: usize = 40;
    let _alone = ALONE.lock().await;
    let service = Service::start().await;
    let keys = Keys::generate();
    for number in 0..64 {
        let content = format!("{number}{}", "x".repeat(180_000));
        let event = EventBuilder::new(Kind::TextNote, content);
        service.door.take(&event.finalize(&keys).unwrap()).await;
    }
    let before = resident();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut client = websocket(&service).await;
        client.write_all(&frame(r#"["REQ","s",{}]"#)).await.unwrap();
        readers.push(client);
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let each = resident().saturating_sub(before) / READERS as u64;
    println!("{} KiB for each reader that reads nothing", each >> 10);
    assert!(each < 1 << 20, "{each}");
}

#[tokio::test]
async fn filters_of_many_short_values_hold_what_they_may() {
    const CLIENTS: usize = 16;
    let _alone = ALONE.lock().await;
    let service = Service::start().await;
    let values: Vec<String> = (0..2_500).map(|n| format!("\"{n:x}\"")).collect();
    let filter = format!(r##"{{"#t":[{}]}}"##, values.join(","));
    let filters = vec![filter; 8].join(",");
    let before = resident();
    let (mut clients, mut refused) = (Vec::new(), 0);
    for _ in 0..CLIENTS {
        let mut client = service.client().await;
        for id in ["0", "1", "2", "3", "4"] {
            client.text(&format!(r#"["REQ","{id}",{filters}]"#)).await;
            let answer = loop {
                let answer = client.next().await.unwrap();
                if answer[1].as_str() == Some(id) {
                    break answer;
                }
            };
            if answer[0] == "CLOSED" {
                let words = answer[2].as_str().unwrap();
                assert!(words.starts_with("rate-limited: "), "{words}");
                refused += 1;
            }
        }
        clients.push(client);
    }
    let held = resident().saturating_sub(before);
    println!("{} MiB for filters, {refused} refused", held >> 20);
    assert!(held < 96 << 20, "{held}");
    assert!(refused >= CLIENTS, "{refused}");
}

#[tokio::test]
async fn an_idle_websocket_costs_little() {
    const CLIENTS: usize = 400;
    let _alone = ALONE.lock().await;
    let service = Service::start().await;
    let connect = async || {
        let mut client = websocket(&service).await;
        // A masked text frame with a mask of zeros.
        let text = br#"["REQ","s",{"kinds":[1]}]"#;
        let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
        frame.extend_from_slice(text);
        client.write_all(&frame).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(br#"["EOSE","s",["finish"]]"#) {
            assert_ne!(in_time(client.read_buf(&mut answer)).await.unwrap(), 0);
        }
        client
    };
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(connect().await);
    }
    let before = resident();
    for _ in 0..CLIENTS {
        clients.push(connect().await);
    }
    let each = (resident() - before) / CLIENTS as u64;
    println!("{each} bytes for each websocket with a subscription");
    assert!(each < 64 << 10, "{each}");
}

#[tokio::test]
async fn pings_of_a_client_that_reads_nothing_cost_nothing_and_end() {
    let _alone = ALONE.lock().await;
    let patience = Patience {
        stalled: Duration::from_secs(3),
        farewell: Duration::from_millis(100),
        ..Patience::default()
    };
    let service = Service::with(&[], patience).await;
    let mut other = service.client().await;
    let mut client = websocket(&service).await;
    // 125 bytes, masked with zeros.
    let mut ping = vec![0x89, 0xfd, 0, 0, 0, 0];
    ping.extend_from_slice(&[b'x'; 125]);
    let pings = ping.repeat(500);
    let before = resident();
    let mut most = 0;
    let mut sent = 0;
    let flood = async {
        while client.write_all(&pings).await.is_ok() {
            sent += pings.len();
            most = most.max(resident().saturating_sub(before));
        }
    };
    let others = async {
        loop {
            other.publish(&note("alive")).await;
            assert_eq!(other.expect("OK").await[2], true);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    in_time(async {
        tokio::select! {
            () = flood => {}
            () = others => {}
        }
    })
    .await;
    println!("{} KiB of pings, over idle: {} KiB", sent >> 10, most >> 10);
    assert!(most < 8 << 20, "{most}");
}
