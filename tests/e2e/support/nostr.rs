//! A Nostr client that sees every message, in order, and loses none.

use std::{collections::VecDeque, net::Ipv4Addr};

use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::AbortHandle,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use super::{Event, PATIENCE, Service, soon};

type Socket = WebSocketStream<TcpStream>;

enum Incoming {
    Message(Value),
    Closed(Closed),
}

/// How a connection ended: with which code, if the relay gave one.
#[derive(Debug, Clone, Copy)]
struct Closed(Option<u16>);

/// What the relay said to an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub accepted: bool,
    pub message: String,
}

impl Verdict {
    /// Fails the test unless the event was accepted and is served from now on.
    #[track_caller]
    pub fn served(self) {
        assert!(self.accepted, "{self:?}");
        assert!(!self.message.starts_with("purgatory:"), "{self:?}");
        assert!(!self.message.starts_with("duplicate:"), "{self:?}");
    }

    /// Fails the test unless the event went to purgatory.
    #[track_caller]
    pub fn waits(self) {
        assert_eq!(
            (self.accepted, self.message.as_str()),
            (true, super::PURGATORY)
        );
    }

    /// Fails the test unless the event was rejected, with a machine-readable prefix and a reason.
    #[track_caller]
    pub fn rejected(self) -> String {
        assert!(!self.accepted, "{self:?}");
        let (prefix, reason) = self.message.split_once(": ").unwrap_or_default();
        assert!(
            !prefix.is_empty() && prefix.chars().all(|c| c.is_ascii_lowercase() || c == '-'),
            "no prefix: {self:?}"
        );
        assert!(!reason.is_empty(), "no reason: {self:?}");
        self.message
    }

    /// Fails the test unless the event was rejected with just this message.
    #[track_caller]
    pub fn rejected_as(self, message: &str) {
        assert_eq!((self.accepted, self.message.as_str()), (false, message));
    }
}

/// One websocket connection.
pub struct Client {
    sink: SplitSink<Socket, Message>,
    inbox: mpsc::UnboundedReceiver<Incoming>,
    unread: VecDeque<Value>,
    closed: Option<Closed>,
    subscriptions: usize,
    reader: AbortHandle,
}

async fn read(mut stream: SplitStream<Socket>, inbox: mpsc::UnboundedSender<Incoming>) {
    let mut code = None;
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Text(text) => {
                let value = serde_json::from_str(&text).expect("the relay sends JSON");
                if inbox.send(Incoming::Message(value)).is_err() {
                    return;
                }
            }
            Message::Close(frame) => code = frame.map(|frame| frame.code.into()),
            _ => {}
        }
    }
    let _ = inbox.send(Incoming::Closed(Closed(code)));
}

impl Client {
    pub async fn connect(service: &Service) -> Self {
        Self::try_connect(service.port).await.expect("a websocket")
    }

    /// A connection, if the service takes one.
    pub async fn try_connect(port: u16) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let url = format!("ws://localhost:{port}/");
        let (socket, _) = client_async(url, stream).await.ok()?;
        let (sink, stream) = socket.split();
        let (sender, inbox) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read(stream, sender)).abort_handle();
        Some(Self {
            sink,
            inbox,
            unread: VecDeque::new(),
            closed: None,
            subscriptions: 0,
            reader,
        })
    }

    /// Sends a frame as it is.
    pub async fn send_raw(&mut self, message: Message) {
        self.sink.send(message).await.expect("the connection lives");
    }

    pub async fn send(&mut self, message: Value) {
        self.send_raw(Message::text(message.to_string())).await;
    }

    /// The first message, of those unread and those to come, that `pick` takes; `None` when the
    /// connection ends first.
    async fn pick<T>(&mut self, mut pick: impl FnMut(&Value) -> Option<T>) -> Option<T> {
        for at in 0..self.unread.len() {
            if let Some(found) = pick(&self.unread[at]) {
                self.unread.remove(at);
                return Some(found);
            }
        }
        if self.closed.is_some() {
            return None;
        }
        loop {
            match self.inbox.recv().await {
                Some(Incoming::Message(message)) => match pick(&message) {
                    Some(found) => return Some(found),
                    None => self.unread.push_back(message),
                },
                Some(Incoming::Closed(closed)) => {
                    self.closed = Some(closed);
                    return None;
                }
                None => return None,
            }
        }
    }

    async fn wait<T>(&mut self, what: &str, pick: impl FnMut(&Value) -> Option<T>) -> T {
        let found = tokio::time::timeout(PATIENCE, self.pick(pick)).await;
        found.ok().flatten().unwrap_or_else(|| {
            panic!(
                "no {what}; closed: {:?}; unread: {:?}",
                self.closed, self.unread
            )
        })
    }

    /// The code the relay closes the connection with, when it does.
    pub async fn closing_code(&mut self) -> Option<u16> {
        soon("the relay closes", self.pick(|_| None::<()>)).await;
        self.closed.and_then(|Closed(code)| code)
    }

    /// Sends something as an event and waits for the answer that names `id`.
    pub async fn publish_value(&mut self, id: &str, event: Value) -> Verdict {
        self.send(json!(["EVENT", event])).await;
        self.verdict(id).await
    }

    /// The answer to the event of this id.
    pub async fn verdict(&mut self, id: &str) -> Verdict {
        let what = format!("OK for {id}");
        self.wait(&what, |message| {
            (message[0] == "OK" && message[1] == id).then(|| Verdict {
                accepted: message[2] == true,
                message: message[3].as_str().unwrap_or_default().to_owned(),
            })
        })
        .await
    }

    pub async fn publish(&mut self, event: &Event) -> Verdict {
        let value = serde_json::to_value(event).unwrap();
        self.publish_value(&event.id.to_hex(), value).await
    }

    /// Waits for a NOTICE.
    pub async fn notice(&mut self) -> String {
        self.answer(&["NOTICE"]).await[1]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits for a message of one of these kinds.
    pub async fn answer(&mut self, kinds: &[&str]) -> Value {
        let what = format!("one of {kinds:?}");
        self.wait(&what, |message| {
            kinds
                .iter()
                .any(|kind| message[0] == *kind)
                .then(|| message.clone())
        })
        .await
    }

    /// Subscribes; gives the subscription's name and what was stored.
    pub async fn subscribe(&mut self, filter: Value) -> (String, Vec<Event>) {
        self.subscriptions += 1;
        let name = format!("s{}", self.subscriptions);
        self.send(json!(["REQ", name, filter])).await;
        let mut stored = Vec::new();
        while let Some(event) = self.next_stored(&name).await {
            stored.push(event);
        }
        (name, stored)
    }

    async fn next_stored(&mut self, name: &str) -> Option<Event> {
        self.wait("EVENT or EOSE", |message| {
            if message[1] != name {
                return None;
            }
            match message[0].as_str()? {
                "EVENT" => Some(Some(event(&message[2]))),
                "EOSE" => Some(None),
                "CLOSED" => panic!("the relay refused a subscription: {message}"),
                _ => None,
            }
        })
        .await
    }

    /// Everything stored that matches.
    pub async fn query(&mut self, filter: Value) -> Vec<Event> {
        let (name, stored) = self.subscribe(filter).await;
        self.send(json!(["CLOSE", name])).await;
        stored
    }

    /// Whether the event is served now.
    pub async fn serves(&mut self, event: &Event) -> bool {
        let found = self.query(json!({"ids": [event.id.to_hex()]})).await;
        found.iter().any(|other| other.id == event.id)
    }

    /// The next live event of a subscription.
    pub async fn live(&mut self, subscription: &str) -> Event {
        self.wait("a live event", |message| {
            (message[0] == "EVENT" && message[1] == subscription).then(|| event(&message[2]))
        })
        .await
    }

    /// The live events of a subscription that have come by now: all that were sent before the
    /// answer to a question asked now.
    pub async fn live_so_far(&mut self, subscription: &str) -> Vec<Event> {
        self.query(json!({"ids": ["00".repeat(32)]})).await;
        let mine = |message: &Value| message[0] == "EVENT" && message[1] == subscription;
        let (taken, kept) = self.unread.drain(..).partition(mine);
        self.unread = kept;
        let taken: VecDeque<Value> = taken;
        taken.iter().map(|message| event(&message[2])).collect()
    }

    /// The next live event's id, taken as it comes: for readers of very many.
    pub async fn live_id(&mut self, subscription: &str) -> String {
        self.wait("a live event", |message| {
            (message[0] == "EVENT" && message[1] == subscription)
                .then(|| message[2]["id"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    /// The socket itself, with little room in front of it, for what no client would do.
    pub async fn raw_socket(port: u16) -> Socket {
        let stream = TcpSocket::new_v4().unwrap();
        stream.set_recv_buffer_size(4096).unwrap();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let stream = stream.connect(address).await.unwrap();
        let url = format!("ws://localhost:{port}/");
        client_async(url, stream).await.unwrap().0
    }
}

/// The connection ends with its client.
impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn event(value: &Value) -> Event {
    let event: Event = serde_json::from_value(value.clone()).expect("an event");
    event.verify().expect("a valid event");
    event
}
