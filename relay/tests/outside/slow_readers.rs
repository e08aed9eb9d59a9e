//! Three hundred subscribers, of whom ten read nothing, under two thousand events.

use std::{collections::HashSet, time::Instant};

use futures::StreamExt;
use nostr::Keys;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{Service, event, in_time};

const SUBSCRIBERS: usize = 300;
const SLOW: usize = 10;
const EVENTS: usize = 2000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_miss_nothing_and_the_others_are_told() {
    let service = Service::start().await;
    let mut readers = JoinSet::new();
    let mut slow = Vec::new();
    for number in 0..SUBSCRIBERS {
        let mut client = service.client().await;
        client.send(json!(["REQ", "s", {"kinds": [1]}])).await;
        client.expect("EOSE").await;
        if number < SLOW {
            slow.push(client);
            continue;
        }
        readers.spawn(async move {
            let mut seen = HashSet::new();
            while seen.len() < EVENTS {
                let message = in_time(client.0.next()).await.unwrap().unwrap();
                if message.is_ping() {
                    continue;
                }
                let text = message.to_text().unwrap();
                assert!(text.starts_with("[\"EVENT\",\"s\","), "{text}");
                let id = text.find("\"id\":\"").unwrap() + 6;
                assert!(seen.insert(text[id..id + 64].to_owned()));
            }
        });
    }
    let keys = Keys::generate();
    let events: Vec<_> = (0..EVENTS)
        .map(|n| event(&keys, 1, &format!("{n} {}", "x".repeat(200)), &[]))
        .collect();
    let mut publisher = service.client().await;
    let start = Instant::now();
    for event in &events {
        publisher.publish(event).await;
        assert_eq!(publisher.expect("OK").await[2], true);
    }
    let published = start.elapsed();
    in_time(readers.join_all()).await;
    println!(
        "published in {published:?}, read by all in {:?}",
        start.elapsed()
    );
    for mut client in slow {
        let mut events = 0;
        let frame = loop {
            match client.next().await {
                Ok(message) if message[0] == "EVENT" => events += 1,
                Ok(message) => assert_eq!(message[0], "NOTICE"),
                Err(frame) => break frame,
            }
        };
        let frame = frame.expect("told why");
        assert_eq!(u16::from(frame.code), 1008);
        assert!(events < EVENTS);
    }
}
