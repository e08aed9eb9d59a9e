//! What no client should send: a NOTICE, and the connection lives.

use futures::StreamExt;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Draft, Keys, Service, soon};

/// The connection still answers.
async fn lives(client: &mut Client) {
    let keys = Keys::generate();
    let list = Draft::new(10317)
        .tag(["g", "wss://one.example"])
        .sign(&keys);
    client.publish(&list).await.served();
    assert!(client.serves(&list).await);
}

#[tokio::test]
async fn malformed_messages_are_answered_with_a_notice() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let unknown = json!(["UNKNOWN", "x"]).to_string();
    for text in [
        "",
        "nonsense",
        "[",
        "{}",
        "[]",
        "null",
        "42",
        "\"EVENT\"",
        "[\"EVENT\"",
        "[\"EVENT\"]",
        "[\"EVENT\",{}]",
        "[\"EVENT\",null]",
        "[\"EVENT\",\"x\",{\"id\":1}]",
        "[42]",
        "[null,null]",
        "[\"REQ\"]",
        "[\"REQ\",42,{}]",
        "[\"CLOSE\"]",
        "[\"CLOSE\",{}]",
        "[\"AUTH\",{}]",
        "[\"\u{0}\"]",
        &unknown,
    ] {
        client.send_raw(Message::text(text)).await;
        let notice = client.notice().await;
        assert!(!notice.is_empty(), "{text}");
    }
    lives(&mut client).await;
}

#[tokio::test]
async fn filters_that_cannot_be_read_end_only_their_subscription() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for filter in [
        json!({"kinds": "x"}),
        json!({"ids": [1]}),
        json!({"since": "yesterday"}),
        json!({"limit": -1}),
        json!([]),
        json!("x"),
    ] {
        client.send(json!(["REQ", "bad", filter])).await;
        client.answer(&["NOTICE", "CLOSED"]).await;
        client.send(json!(["COUNT", "bad", filter])).await;
        client.answer(&["NOTICE", "CLOSED"]).await;
    }
    lives(&mut client).await;
}

#[tokio::test]
async fn a_binary_message_is_answered_with_a_notice() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for bytes in [
        vec![],
        vec![0, 159, 146, 150],
        b"[\"CLOSE\",\"x\"]".to_vec(),
    ] {
        client.send_raw(Message::binary(bytes)).await;
        client.notice().await;
    }
    lives(&mut client).await;
}

#[tokio::test]
async fn deeply_nested_json_is_answered_with_a_notice() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = 20_000;
        let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for text in [
            nested.clone(),
            format!("[\"EVENT\",{nested}]"),
            format!("[\"REQ\",\"x\",{nested}]"),
            format!("[\"EVENT\",{}", open.repeat(depth)),
        ] {
            client.send_raw(Message::text(text)).await;
            // A field of a filter that nobody knows is passed over, whatever it holds.
            client.answer(&["NOTICE", "CLOSED", "EOSE"]).await;
        }
    }
    lives(&mut client).await;
}

#[tokio::test]
async fn bad_reconciliation_messages_do_not_end_the_connection() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for message in [
        json!(["NEG-OPEN", "n", {}, "zz"]),
        json!(["NEG-OPEN", "n", {}, "6"]),
        json!(["NEG-OPEN", "n", {}, ""]),
        json!(["NEG-OPEN", "n", {}, "6100000100"]),
        json!(["NEG-OPEN", "n"]),
        json!(["NEG-OPEN", "n", "x", "61"]),
        json!(["NEG-MSG", "never-opened", "61"]),
        json!(["NEG-MSG", "never-opened", "zz"]),
    ] {
        client.send(message).await;
        client.answer(&["NOTICE", "NEG-ERR"]).await;
    }
    client.send(json!(["NEG-CLOSE", "never-opened"])).await;
    lives(&mut client).await;
}

#[tokio::test]
async fn reconciliation_answers_what_is_held() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    lives(&mut client).await;
    // Protocol version 1, and the list of what we hold from the beginning to the end: nothing.
    let message = "6100000200";
    client
        .send(json!(["NEG-OPEN", "n", {"kinds": [10317]}, message]))
        .await;
    let answer = client.answer(&["NEG-MSG", "NEG-ERR", "NOTICE"]).await;
    assert_eq!(answer[0], "NEG-MSG", "{answer}");
}

#[tokio::test]
async fn an_oversized_message_ends_its_own_connection_with_a_code() {
    let service = Service::start().await;
    let mut other = Client::connect(&service).await;
    let mut socket = Client::raw_socket(service.port).await;
    // The head of a masked text frame of 256 MiB, and a little of it.
    let mut frame = vec![0x81, 0xff];
    frame.extend((256_u64 << 20).to_be_bytes());
    frame.extend([0; 4]);
    socket.get_mut().write_all(&frame).await.unwrap();
    let code = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Close(frame) = message {
                return frame.map(|frame| u16::from(frame.code));
            }
        }
        None
    };
    assert_eq!(soon("the end of the connection", code).await, Some(1009));
    lives(&mut other).await;
}

#[tokio::test]
async fn a_frame_that_is_none_ends_its_own_connection_only() {
    let service = Service::start().await;
    let mut other = Client::connect(&service).await;
    for frame in [
        // Unmasked, reserved bits, an unknown opcode, invalid UTF-8.
        vec![0x81, 0x02, b'[', b']'],
        vec![0xf1, 0x82, 0, 0, 0, 0, b'[', b']'],
        vec![0x83, 0x82, 0, 0, 0, 0, b'[', b']'],
        vec![0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe],
    ] {
        let mut socket = Client::raw_socket(service.port).await;
        socket.get_mut().write_all(&frame).await.unwrap();
        let ended = soon("the end of the connection", async {
            while let Some(Ok(message)) = socket.next().await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
            }
        });
        ended.await;
    }
    lives(&mut other).await;
}

#[tokio::test]
async fn more_events_than_allowed_are_rate_limited() {
    let limit = [("NGIT_RELAY_EVENTS_PER_MINUTE", "5")];
    let service = Service::start_with(&limit).await;
    let mut client = Client::connect(&service).await;
    let mut other = Client::connect(&service).await;
    let keys = Keys::generate();
    let mut refused = 0;
    for _ in 0..10 {
        let list = Draft::new(10317)
            .tag(["g", "wss://one.example"])
            .sign(&keys);
        let verdict = client.publish(&list).await;
        if !verdict.accepted {
            assert!(verdict.message.starts_with("rate-limited:"), "{verdict:?}");
            refused += 1;
        }
    }
    assert!(refused >= 4, "{refused} of 10 were refused");
    lives(&mut other).await;
}

#[tokio::test]
async fn more_subscriptions_than_allowed_are_closed() {
    let service = Service::start_with(&[("NGIT_RELAY_MAX_SUBSCRIPTIONS", "3")]).await;
    let mut client = Client::connect(&service).await;
    for _ in 0..3 {
        client.subscribe(json!({"kinds": [1], "limit": 0})).await;
    }
    client
        .send(json!(["REQ", "one-too-many", {"kinds": [1]}]))
        .await;
    let answer = client.answer(&["CLOSED", "NOTICE"]).await;
    assert_eq!(answer[0], "CLOSED", "{answer}");
    assert_eq!(answer[1], "one-too-many");
}

#[tokio::test]
async fn more_connections_than_allowed_are_refused() {
    let service = Service::start_with(&[("NGIT_MAX_CONNECTIONS", "2")]).await;
    let mut first = Client::connect(&service).await;
    let second = Client::connect(&service).await;
    assert!(Client::try_connect(service.port).await.is_none());
    drop(second);
    let port = service.port;
    crate::support::until("there is room again", || async move {
        Client::try_connect(port).await.is_some()
    })
    .await;
    lives(&mut first).await;
}

#[tokio::test]
async fn one_filter_is_answered_with_no_more_events_than_told() {
    let service = Service::start_with(&[("NGIT_RELAY_FILTER_LIMIT", "4")]).await;
    let mut client = Client::connect(&service).await;
    for _ in 0..6 {
        let keys = Keys::generate();
        let list = Draft::new(10317)
            .tag(["g", "wss://one.example"])
            .sign(&keys);
        client.publish(&list).await.served();
    }
    assert_eq!(client.query(json!({"kinds": [10317]})).await.len(), 4);
    assert_eq!(
        client
            .query(json!({"kinds": [10317], "limit": 100}))
            .await
            .len(),
        4
    );
    assert_eq!(
        client
            .query(json!({"kinds": [10317], "limit": 2}))
            .await
            .len(),
        2
    );
}
