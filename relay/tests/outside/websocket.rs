//! One websocket: what it may say, what it is told.

use std::{collections::HashSet, time::Duration};

use futures::SinkExt;
use grasp_relay::session::Patience;
use nostr::{Keys, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Service, event, in_time, note};

#[tokio::test]
async fn malformed_frames_are_answered_and_the_connection_lives() {
    let service = Service::start().await;
    let mut client = service.client().await;
    for text in [
        "",
        "nonsense",
        "[]",
        "{}",
        "[\"NO\"]",
        "[\"REQ\"]",
        "[\"EVENT\",7]",
        "[\"CLOSE\",{}]",
    ] {
        client.text(text).await;
        client.expect("NOTICE").await;
    }
    client.0.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    client.expect("NOTICE").await;
    client.send(json!(["REQ", "s", {"ids": ["zz"]}])).await;
    assert_eq!(client.expect("CLOSED").await[1], "s");
    client
        .send(json!(["EVENT", {"id": "ab", "kind": -1}]))
        .await;
    assert_eq!(client.expect("OK").await[2], false);
    for message in [
        json!(["NEG-OPEN", "n", {}, "zz"]),
        json!(["NEG-MSG", "n", "6"]),
    ] {
        client.send(message).await;
        assert_eq!(client.expect("NEG-ERR").await[1], "n");
    }
    client.send(json!(["NEG-MSG", "n", "61"])).await;
    client.expect("NEG-ERR").await;
    client.send(json!(["AUTH", note("x")])).await;
    assert_eq!(client.expect("OK").await[2], false);
    client.publish(&note("alive")).await;
    assert_eq!(client.expect("OK").await[2], true);
}

#[tokio::test]
async fn stored_and_live_events_arrive_without_gap_or_double() {
    let service = Service::start().await;
    let publisher = service.client().await;
    let events: Vec<_> = (0..1500).map(|n| note(&n.to_string())).collect();
    let (mut sink, mut acknowledged) = {
        use futures::StreamExt;
        publisher.0.split()
    };
    let all = events.clone();
    let publishing = tokio::spawn(async move {
        for event in &all {
            let text = json!(["EVENT", event]).to_string();
            sink.send(Message::text(text)).await.unwrap();
        }
        sink
    });
    let oks = tokio::spawn(async move {
        use futures::StreamExt;
        let mut oks = 0;
        while oks < 1500 {
            let message = acknowledged.next().await.unwrap().unwrap();
            // It is pinged where all of this takes longer than half a minute.
            if let Message::Text(text) = message {
                assert!(text.starts_with("[\"OK\""), "{text}");
                oks += 1;
            }
        }
    });
    // Subscribers come in while events do; the limit is out of the way.
    let mut subscribers = Vec::new();
    for _ in 0..30 {
        let mut client = service.client().await;
        for (number, part) in events.chunks(200).enumerate() {
            let authors: Vec<_> = part.iter().map(|event| event.pubkey).collect();
            let filter = json!({"authors": authors, "limit": 500});
            client
                .send(json!(["REQ", number.to_string(), filter]))
                .await;
        }
        subscribers.push(tokio::spawn(async move {
            let mut seen = HashSet::new();
            while seen.len() < 1500 {
                let message = client.next().await.expect("the connection lives");
                if message[0] == "EVENT" {
                    assert!(seen.insert(message[2]["id"].to_string()), "doubled");
                }
            }
        }));
    }
    for subscriber in subscribers {
        in_time(subscriber).await.unwrap();
    }
    in_time(oks).await.unwrap();
    drop(publishing);
}

#[tokio::test]
async fn stored_events_come_newest_first_as_many_as_allowed() {
    let service = Service::with(&[("NGIT_RELAY_FILTER_LIMIT", "300")], Patience::default()).await;
    let keys = Keys::generate();
    // Many in one second, more than the store is asked for at once.
    for number in 0..400_u64 {
        use nostr::{EventBuilder, Kind, event::FinalizeEvent};
        let event = EventBuilder::new(Kind::TextNote, number.to_string())
            .custom_created_at(Timestamp::from_secs(1000 + number / 150))
            .finalize(&keys)
            .unwrap();
        service.door.take(&event).await;
    }
    let mut client = service.client().await;
    for (filter, expected) in [
        (json!({}), 300),
        (json!({"limit": 1000}), 300),
        (json!({"limit": 7}), 7),
        (json!({"limit": 0}), 0),
        (json!({"until": 1001}), 300),
        (json!({"until": 1000}), 150),
        (json!({"kinds": [2]}), 0),
    ] {
        client.send(json!(["REQ", "s", filter])).await;
        let events = client.until("EOSE").await;
        assert_eq!(events.len(), expected, "{filter}");
        let ids: HashSet<_> = events.iter().map(|m| m[2]["id"].to_string()).collect();
        assert_eq!(ids.len(), expected);
        let times: Vec<_> = events.iter().map(|m| m[2]["created_at"].as_u64()).collect();
        assert!(times.is_sorted_by(|a, b| a >= b));
    }
    client.send(json!(["COUNT", "c", {"kinds": [1]}])).await;
    assert_eq!(client.expect("COUNT").await[2]["count"], 400);
}

#[tokio::test]
async fn a_query_for_ids_is_closed_when_all_are_there() {
    let service = Service::start().await;
    let (known, later) = (note("known"), note("later"));
    service.door.take(&known).await;
    let mut client = service.client().await;
    client.send(json!(["REQ", "a", {"ids": [known.id]}])).await;
    assert_eq!(client.until("EOSE").await.len(), 1);
    assert_eq!(client.expect("CLOSED").await[2], "");
    client
        .send(json!(["REQ", "b", {"ids": [known.id, later.id]}]))
        .await;
    assert_eq!(client.until("EOSE").await.len(), 1);
    client.publish(&later).await;
    assert_eq!(client.expect("EVENT").await[1], "b");
    client.expect("OK").await;
    // Overlapping filters give an event once.
    client
        .send(json!(["REQ", "c", {"kinds": [1]}, {"authors": [known.pubkey]}]))
        .await;
    assert_eq!(client.until("EOSE").await.len(), 2);
    client.send(json!(["CLOSE", "b"])).await;
    client.send(json!(["CLOSE", "c"])).await;
    client.publish(&note("nobody asked")).await;
    client.expect("OK").await;
}

#[tokio::test]
async fn limits_are_those_told() {
    let settings = [
        ("NGIT_RELAY_MAX_SUBSCRIPTIONS", "2"),
        ("NGIT_RELAY_EVENTS_PER_MINUTE", "2"),
        ("NGIT_RELAY_MAX_EVENT_SIZE_BYTES", "2000"),
        ("NGIT_RELAY_MAX_STATE_SIZE_BYTES", "2000"),
        ("NGIT_MAX_CONNECTIONS", "1"),
    ];
    let service = Service::with(&settings, Patience::default()).await;
    let mut client = service.client().await;
    for id in ["a", "b", "a"] {
        client.send(json!(["REQ", id, {}])).await;
        client.expect("EOSE").await;
    }
    client.send(json!(["REQ", "c", {}])).await;
    assert_eq!(client.expect("CLOSED").await[1], "c");
    client.send(json!(["CLOSE", "a"])).await;
    client.send(json!(["CLOSE", "b"])).await;
    client.publish(&note(&"x".repeat(2000))).await;
    let answer = client.expect("OK").await;
    assert!(
        answer[3]
            .as_str()
            .unwrap()
            .starts_with("invalid: too large")
    );
    for ok in [true, true, false] {
        client.publish(&note("x")).await;
        assert_eq!(client.expect("OK").await[2], ok);
    }
    let refused = Client::connect(service.address).await.err().unwrap();
    assert!(refused.contains("503"), "{refused}");
    client.text(&"x".repeat(200_000)).await;
    let frame = loop {
        match client.next().await {
            Ok(message) => assert_eq!(message[0], "NOTICE"),
            Err(frame) => break frame.unwrap(),
        }
    };
    assert_eq!(u16::from(frame.code), 1009);
    drop(client);
    // The seat is free when the connection has ended.
    in_time(async { while Client::connect(service.address).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_slow_verdict_holds_up_nothing_else() {
    let service = Service::start().await;
    let mut client = service.client().await;
    client.send(json!(["REQ", "s", {"limit": 0}])).await;
    client.expect("EOSE").await;
    let closed = service.door.gate.acquire_many(1000).await.unwrap();
    let (first, second) = (note("first"), note("second"));
    client.publish(&first).await;
    client.publish(&second).await;
    let other = note("of somebody else");
    service.door.take(&other).await;
    assert_eq!(client.expect("EVENT").await[2]["id"], json!(other.id));
    client.send(json!(["COUNT", "c", {}])).await;
    client.expect("COUNT").await;
    drop(closed);
    for event in [first, second] {
        assert_eq!(client.expect("EVENT").await[2]["id"], json!(event.id));
        assert_eq!(client.expect("OK").await[1], json!(event.id));
    }
}

#[tokio::test]
async fn reconciliations_are_bounded_and_end() {
    let service = Service::start().await;
    for number in 0..10 {
        service.door.take(&note(&number.to_string())).await;
    }
    let mut client = service.client().await;
    for id in 0..10 {
        client
            .send(json!(["NEG-OPEN", id.to_string(), {}, "62"]))
            .await;
        assert_eq!(client.expect("NEG-MSG").await[2], "61");
    }
    client.send(json!(["NEG-OPEN", "more", {}, "61"])).await;
    let refused = client.expect("NEG-ERR").await;
    assert!(refused[2].as_str().unwrap().starts_with("blocked: "));
    // One that is opened again takes its own place.
    client.send(json!(["NEG-OPEN", "1", {}, "62"])).await;
    assert_eq!(client.expect("NEG-MSG").await[2], "61");
    client.send(json!(["NEG-CLOSE", "0"])).await;
    client.send(json!(["NEG-OPEN", "more", {}, "61"])).await;
    client.expect("NEG-MSG").await;
    // Hex, but no message of the protocol: that reconciliation is over, the connection is not.
    client.send(json!(["NEG-MSG", "more", "ffffff"])).await;
    let refused = client.expect("NEG-ERR").await;
    assert!(refused[2].as_str().unwrap().starts_with("invalid: "));
    client.send(json!(["NEG-MSG", "more", "61"])).await;
    client.expect("NEG-ERR").await;
    client.send(json!(["NEG-MSG", "1", "62"])).await;
    client.expect("NEG-MSG").await;
    // What is opened again badly is over, too.
    for bad in [
        json!(["NEG-OPEN", "1", {}, "ffffff"]),
        json!(["NEG-OPEN", "2", {}]),
        json!(["NEG-OPEN", "3"]),
        json!(["NEG-OPEN", "4", {"kinds": 1}, "61"]),
        json!(["NEG-OPEN", "5", {}, "6"]),
        json!(["NEG-MSG", "6"]),
    ] {
        client.send(bad.clone()).await;
        let refused = client.expect("NEG-ERR").await;
        assert_eq!(refused[1], bad[1]);
        assert!(
            refused[2].as_str().unwrap().starts_with("invalid: "),
            "{bad}"
        );
        client.send(json!(["NEG-MSG", bad[1], "61"])).await;
        let gone = client.expect("NEG-ERR").await;
        assert!(gone[2].as_str().unwrap().starts_with("closed: "), "{bad}");
    }
    client.send(json!(["NEG-MSG", "7", "62"])).await;
    client.expect("NEG-MSG").await;
}

#[tokio::test]
async fn an_end_of_stored_events_says_whether_there_are_more() {
    let service = Service::with(&[("NGIT_RELAY_FILTER_LIMIT", "300")], Patience::default()).await;
    let keys = Keys::generate();
    for number in 0..301 {
        let tag = ["t", if number < 300 { "a" } else { "b" }];
        let event = event(&keys, 1, &number.to_string(), &[tag]);
        service.door.take(&event).await;
    }
    let first = event(&keys, 7, "", &[]);
    service.door.take(&first).await;
    let mut client = service.client().await;
    for (filters, hints) in [
        (vec![json!({})], json!(["more"])),
        (vec![json!({"kinds": [1]})], json!(["more"])),
        (vec![json!({"#t": ["a"]})], json!(["finish"])),
        (vec![json!({"#t": ["a"], "limit": 300})], json!(["finish"])),
        (vec![json!({"#t": ["a"], "limit": 299})], json!(["more"])),
        (vec![json!({"#t": ["b"], "limit": 1})], json!(["finish"])),
        (vec![json!({"kinds": [9]})], json!(["finish"])),
        (vec![json!({"ids": []})], json!(["finish"])),
        (vec![json!({"since": 2, "until": 1})], json!(["finish"])),
        (vec![json!({"ids": [first.id]})], json!(["finish"])),
        (vec![json!({"limit": 0})], json!(null)),
        (vec![json!({"#t": ["b"]}), json!({"limit": 0})], json!(null)),
        (
            vec![json!({"#t": ["b"]}), json!({"#t": ["a"]})],
            json!(["finish"]),
        ),
        (
            vec![json!({"limit": 0}), json!({"limit": 1})],
            json!(["more"]),
        ),
    ] {
        let mut request = vec![json!("REQ"), json!("s")];
        request.extend(filters.clone());
        client.send(json!(request)).await;
        let end = loop {
            let message = client.next().await.unwrap();
            if message[0] == "EOSE" {
                break message;
            }
            assert_eq!(message[0], "EVENT");
        };
        assert_eq!(end[2], hints, "{filters:?}");
        if filters[0]["ids"] == json!([first.id]) {
            client.expect("CLOSED").await;
        }
    }
}

#[tokio::test]
async fn empty_lists_match_nothing_in_every_answer() {
    let service = Service::start().await;
    service
        .door
        .take(&event(&Keys::generate(), 1, "", &[["e", "x"]]))
        .await;
    let mut client = service.client().await;
    for filter in [
        json!({"ids": []}),
        json!({"authors": []}),
        json!({"kinds": []}),
        json!({"#e": []}),
        json!({"kinds": [1], "#t": []}),
        json!({"since": 9, "until": 8}),
    ] {
        client.send(json!(["REQ", "s", filter])).await;
        assert!(client.until("EOSE").await.is_empty(), "{filter}");
        client.send(json!(["COUNT", "c", filter])).await;
        assert_eq!(client.expect("COUNT").await[2]["count"], 0, "{filter}");
        // Nothing on this side: the answer has no range.
        client
            .send(json!(["NEG-OPEN", "n", filter, "6100000200"]))
            .await;
        assert_eq!(client.expect("NEG-MSG").await[2], "6100000200", "{filter}");
        client
            .publish(&event(&Keys::generate(), 1, "", &[["e", "x"]]))
            .await;
        client.expect("OK").await;
    }
    // Beside one that matches, they take nothing away.
    client
        .send(json!(["REQ", "s", {"ids": []}, {"kinds": [1], "limit": 1}]))
        .await;
    assert_eq!(client.until("EOSE").await.len(), 1);
    client.publish(&note("x")).await;
    client.expect("EVENT").await;
}

#[tokio::test]
async fn a_subscription_that_is_refused_does_not_go_on_as_it_was() {
    let service = Service::start().await;
    let mut client = service.client().await;
    client.send(json!(["REQ", "s", {"kinds": [1]}])).await;
    client.until("EOSE").await;
    client.send(json!(["REQ", "s", {"search": "x"}])).await;
    let closed = client.expect("CLOSED").await;
    assert!(closed[2].as_str().unwrap().starts_with("unsupported: "));
    client.publish(&note("x")).await;
    client.expect("OK").await;
    client.send(json!(["COUNT", "c", {"search": ""}])).await;
    client.expect("CLOSED").await;
    client
        .send(json!(["NEG-OPEN", "n", {"search": "x"}, "61"]))
        .await;
    client.expect("NEG-ERR").await;
}

#[tokio::test]
async fn events_that_are_written_wrongly_are_refused_by_their_id() {
    let service = Service::start().await;
    let mut client = service.client().await;
    let good = json!(note("x"));
    for field in ["id", "pubkey", "sig"] {
        let mut bad = good.clone();
        bad[field] = json!(good[field].as_str().unwrap().to_uppercase());
        client.send(json!(["EVENT", bad])).await;
        let answer = client.expect("OK").await;
        assert_eq!((&answer[1], &answer[2]), (&bad["id"], &json!(false)));
        assert!(
            answer[3].as_str().unwrap().starts_with("invalid: "),
            "{answer}"
        );
    }
    for (field, value) in [
        ("kind", json!(70_000)),
        ("kind", json!(-1)),
        ("created_at", json!(1.5)),
        ("tags", json!([["e", 1]])),
        ("tags", json!([[]])),
        ("content", json!(null)),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        client.send(json!(["EVENT", bad])).await;
        let answer = client.expect("OK").await;
        assert_eq!((&answer[1], &answer[2]), (&good["id"], &json!(false)));
    }
    let twice = good.to_string().replacen('{', "{\"kind\":1,", 1);
    client.text(&format!("[\"EVENT\",{twice}]")).await;
    assert_eq!(client.expect("OK").await[2], false);
    client.send(json!(["EVENT", good])).await;
    assert_eq!(client.expect("OK").await[2], true);
}

#[tokio::test]
async fn a_protected_event_is_taken_from_its_author() {
    let service = Service::start().await;
    let mut client = service.client().await;
    let keys = Keys::generate();
    let protected = {
        use nostr::{EventBuilder, Kind, Tag, event::FinalizeEvent};
        EventBuilder::new(Kind::TextNote, "mine")
            .tag(Tag::parse(["-"]).unwrap())
            .finalize(&keys)
            .unwrap()
    };
    client.publish(&protected).await;
    let challenge = client.expect("AUTH").await[1].as_str().unwrap().to_owned();
    assert_eq!(client.expect("OK").await[2], false);
    let tags = [
        ["relay", "wss://relay.example.com"],
        ["challenge", &challenge],
    ];
    client
        .send(json!(["AUTH", event(&keys, 22242, "", &tags)]))
        .await;
    assert_eq!(client.expect("OK").await[2], true);
    client.publish(&protected).await;
    assert_eq!(client.expect("OK").await[2], true);
}

#[tokio::test]
async fn a_stop_is_told() {
    let service = Service::start().await;
    let mut client = service.client().await;
    client.send(json!(["REQ", "s", {}])).await;
    client.expect("EOSE").await;
    service.stop.cancel();
    client.expect("NOTICE").await;
    let frame = client.next().await.unwrap_err().unwrap();
    assert_eq!(u16::from(frame.code), 1001);
    in_time(service.task).await.unwrap();
    assert!(
        tokio::net::TcpStream::connect(service.address)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn large_events_arrive_whole() {
    let service = Service::start().await;
    let mut client = service.client().await;
    client.send(json!(["REQ", "s", {}])).await;
    client.expect("EOSE").await;
    let large = note(&"ü".repeat(80_000));
    client.publish(&large).await;
    assert_eq!(client.expect("EVENT").await[2], json!(large));
    client.expect("OK").await;
}

#[tokio::test]
async fn a_client_that_is_silent_is_told_and_one_that_answers_pings_is_not() {
    let patience = Patience {
        ping: Duration::from_millis(100),
        silent: Duration::from_secs(1),
        ..Patience::default()
    };
    let service = Service::with(&[], patience).await;
    let mut answering = service.client().await;
    let mut silent = service.client().await;
    let answering = tokio::spawn(async move {
        // Reading answers pings.
        answering.expect("EVENT").await;
    });
    // Nothing is read here, so nothing is answered, until the connection is over.
    in_time(async {
        let socket = silent.0.get_ref();
        let mut last = [0; 4096];
        loop {
            socket.readable().await.unwrap();
            let seen = socket.peek(&mut last).await.unwrap();
            if String::from_utf8_lossy(&last[..seen]).contains("nothing was heard") {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let notice = silent.next().await.unwrap();
    assert_eq!(notice[0], "NOTICE");
    assert!(!answering.is_finished());
    answering.abort();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No text frames end a connection.
    #[test]
    fn any_text_leaves_the_connection_alive(frames in proptest::collection::vec(
        prop_oneof![
            "\\PC*",
            "\\[\"(EVENT|REQ|COUNT|CLOSE|AUTH|NEG-OPEN|NEG-MSG|NEG-CLOSE)\"(,[\\[\\]{}\":,a-z0-9#]{0,20}){0,4}\\]",
            "\\[\"(REQ|COUNT|NEG-OPEN)\",\"[a-d]\",\\{(\"(ids|#e|kinds|authors)\":\\[\"?[0-9a-z]{0,4}\"?\\]|\"(limit|since|until)\":-?[0-9]{1,19}|\"search\":\"x\")?\\}(,\"6[0-9a-f]{0,7}\")?\\]",
            "\\[\"NEG-MSG\",\"[a-d]\",\"6[0-9a-f]{0,9}\"\\]",
        ],
        1..20,
    )) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let service = Service::start().await;
            service.door.take(&note("x")).await;
            let mut client = service.client().await;
            for frame in &frames {
                client.text(frame).await;
            }
            let last = note("last");
            client.publish(&last).await;
            loop {
                let message = client.next().await.unwrap_or_else(|_| panic!("{frames:?}"));
                if message[0] == "OK" && message[1] == json!(last.id) {
                    assert_eq!(message[2], true);
                    break;
                }
            }
        });
    }
}

#[tokio::test]
async fn pongs_that_fill_the_buffer_displace_no_message() {
    use futures::StreamExt;
    let service = Service::start().await;
    let mut client = service.client().await;
    client.send(json!(["REQ", "s", {"kinds": [1]}])).await;
    client.expect("EOSE").await;
    let (mut sink, mut stream) = client.0.split();
    let flood = tokio::spawn(async move {
        for _ in 0..200_000 {
            let ping = Message::Ping(vec![7; 125].into());
            sink.feed(ping).await.unwrap();
        }
        sink.flush().await.unwrap();
        sink
    });
    // Long enough for the pongs to fill what the kernel takes, and ours.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..20 {
        service.door.take(&note(&"x".repeat(40_000))).await;
    }
    let mut seen = 0;
    while seen < 20 {
        let message = in_time(stream.next()).await.unwrap().unwrap();
        seen +=
            usize::from(message.is_text() && message.to_text().unwrap().starts_with("[\"EVENT\""));
    }
    let _sink = in_time(flood).await.unwrap();
}

#[tokio::test]
async fn a_message_that_is_never_finished_ends_the_connection() {
    use tokio_tungstenite::tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };
    let patience = Patience {
        silent: Duration::from_secs(1),
        ..Patience::default()
    };
    let service = Service::with(&[], patience).await;
    let fragment =
        |code, text: &'static str| Message::Frame(Frame::message(text, OpCode::Data(code), false));
    // By time, whatever pings come between.
    let mut client = service.client().await;
    in_time(client.0.send(fragment(Data::Text, "[")))
        .await
        .unwrap();
    let frame = loop {
        // What is sent behind the end may fail.
        let _ = client.0.send(fragment(Data::Continue, "")).await;
        let _ = client.0.send(Message::Ping("x".into())).await;
        match tokio::time::timeout(Duration::from_millis(50), client.next()).await {
            Ok(Ok(message)) => assert_eq!(message[0], "NOTICE"),
            Ok(Err(frame)) => break frame.expect("told why"),
            Err(_) => {}
        }
    };
    assert_eq!(u16::from(frame.code), 1008);
    assert!(frame.reason.contains("not finished"), "{frame}");
    // By size.
    let service = Service::with(
        &[
            ("NGIT_RELAY_MAX_EVENT_SIZE_BYTES", "1000"),
            ("NGIT_RELAY_MAX_STATE_SIZE_BYTES", "1000"),
        ],
        Patience::default(),
    )
    .await;
    let mut client = service.client().await;
    in_time(client.0.feed(fragment(Data::Text, "[")))
        .await
        .unwrap();
    for _ in 0..140_000 {
        if client.0.feed(fragment(Data::Continue, " ")).await.is_err() {
            break;
        }
    }
    let _ = client.0.flush().await;
    assert_eq!(
        client.expect("NOTICE").await[1],
        "message too large, see max_message_length in the NIP-11 document"
    );
    let frame = client.next().await.unwrap_err().expect("told why");
    assert_eq!(u16::from(frame.code), 1009);
}
