//! A remote relay that reads by pages, and has any manners it is told to have.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Instant,
};

use futures::{SinkExt, StreamExt};
use grasp_syncworker::relays::filters::matches;
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use nostr::{Event, Filter};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
};
use tokio_tungstenite::{
    accept_async,
    tungstenite::{
        Message,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

/// How NIP-77 is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Notice,
    NegErr,
    /// For the moment.
    Seats,
    Closed,
    Silence,
    /// Not at all, but what it names is not there.
    Lies,
}

/// The next step of a reconciliation with one that names two thousand events.
fn lie(theirs: &Value) -> String {
    let mut storage = NegentropyStorageVector::new();
    for n in 0..2_000_u64 {
        let mut id = [0xaa; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        storage
            .insert(1_700_000_000, Id::from_byte_array(id))
            .unwrap();
    }
    storage.seal().unwrap();
    let theirs = theirs.as_str().unwrap();
    let mut message = vec![0; theirs.len() / 2];
    faster_hex::hex_decode(theirs.as_bytes(), &mut message).unwrap();
    let mut ours = Negentropy::owned(storage, 0).unwrap();
    faster_hex::hex_string(&ours.reconcile(&message).unwrap())
}

/// What is sent as the `n`th.
pub type Line = fn(usize) -> String;

#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone)]
pub struct Manners {
    pub refusal: Refusal,
    /// The information document's `limitation`.
    pub limitation: Option<Value>,
    pub close_at_once: bool,
    pub never_eose: bool,
    pub cap: usize,
    pub ignore_until: bool,
    /// Subscriptions at once; more are answered with CLOSED.
    pub subscriptions: usize,
    /// Says so with a NOTICE instead.
    pub notice: bool,
    /// The first so many requests are "rate-limited".
    pub rate_limited: usize,
    /// Closes every request with this.
    pub closes: Option<&'static str>,
    /// Closes every live subscription.
    pub refuses_live: bool,
    /// Sent at once, whatever is asked.
    pub floods: Vec<String>,
    /// Asks to authenticate first.
    pub auth: bool,
    /// Takes no connections.
    pub away: bool,
    /// Sends text in frames of so many bytes.
    pub frames: Option<usize>,
    /// Answers the first live subscription with so many of these.
    pub storm: Option<(usize, Line)>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            refusal: Refusal::NegErr,
            limitation: None,
            close_at_once: false,
            never_eose: false,
            cap: 500,
            ignore_until: false,
            subscriptions: usize::MAX,
            notice: false,
            rate_limited: 0,
            closes: None,
            refuses_live: false,
            floods: vec![],
            auth: false,
            away: false,
            frames: None,
            storm: None,
        }
    }
}

/// What was asked, when.
#[derive(Debug, Clone)]
pub struct Asked {
    pub at: Instant,
    pub verb: String,
    pub filters: Vec<Filter>,
}

impl Asked {
    pub fn is_live(&self) -> bool {
        self.verb == "REQ" && self.filters.iter().all(|filter| filter.limit == Some(0))
    }
}

pub struct Remote {
    pub url: String,
    pub manners: Mutex<Manners>,
    pub events: Mutex<Vec<Event>>,
    pub asked: Mutex<Vec<Asked>>,
    pub connections: AtomicUsize,
    pub open: AtomicUsize,
    /// Most subscriptions at once.
    pub most: AtomicUsize,
    news: broadcast::Sender<Event>,
    hang_up: broadcast::Sender<()>,
}

impl Remote {
    pub async fn start(manners: Manners, events: Vec<Event>) -> Arc<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let remote = Arc::new(Self {
            url: format!("ws://{}", listener.local_addr().unwrap()),
            manners: Mutex::new(manners),
            events: Mutex::new(events),
            asked: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            news: broadcast::channel(10_000).0,
            hang_up: broadcast::channel(1).0,
        });
        let serving = remote.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let remote = serving.clone();
                tokio::spawn(async move { remote.serve(stream).await });
            }
        });
        remote
    }

    /// Stores an event and tells whoever subscribed.
    pub fn publish(&self, event: Event) {
        self.events.lock().unwrap().push(event.clone());
        let _ = self.news.send(event);
    }

    /// Ends every connection.
    pub fn hang_up(&self) {
        let _ = self.hang_up.send(());
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn history(&self) -> Vec<Asked> {
        let asked = self.asked();
        asked
            .into_iter()
            .filter(|asked| asked.verb == "REQ" && !asked.is_live())
            .collect()
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut head = vec![0; 2048];
        let n = stream.peek(&mut head).await.unwrap_or_default();
        if !String::from_utf8_lossy(&head[..n])
            .to_lowercase()
            .contains("upgrade: websocket")
        {
            let _ = stream.read(&mut head).await;
            let limitation = self.manners.lock().unwrap().limitation.clone();
            let body = json!({ "name": "test", "limitation": limitation }).to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
        if self.manners.lock().unwrap().away {
            return;
        }
        self.connections.fetch_add(1, SeqCst);
        let Ok(mut socket) = accept_async(stream).await else {
            return;
        };
        if self.manners.lock().unwrap().close_at_once {
            let _ = socket.close(None).await;
            return;
        }
        self.open.fetch_add(1, SeqCst);
        self.talk(&mut socket).await;
        self.open.fetch_sub(1, SeqCst);
    }

    async fn talk(&self, socket: &mut tokio_tungstenite::WebSocketStream<TcpStream>) {
        let mut subscriptions: BTreeMap<String, Vec<Filter>> = BTreeMap::new();
        let mut news = self.news.subscribe();
        let mut hang_up = self.hang_up.subscribe();
        let (floods, auth) = {
            let manners = self.manners.lock().unwrap();
            (manners.floods.clone(), manners.auth)
        };
        let mut authenticated = !auth;
        if auth
            && socket
                .send(text(&json!(["AUTH", "a challenge"])))
                .await
                .is_err()
        {
            return;
        }
        for flood in floods {
            if socket.send(Message::text(flood)).await.is_err() {
                return;
            }
        }
        loop {
            let mut answers: Vec<Value> = Vec::new();
            let mut storm = None;
            tokio::select! {
                _ = hang_up.recv() => return,
                event = news.recv() => {
                    let Ok(event) = event else { continue };
                    for (id, filters) in &subscriptions {
                        if filters.iter().any(|filter| matches(filter, &event)) {
                            answers.push(json!(["EVENT", id, event]));
                        }
                    }
                }
                message = socket.next() => {
                    let Some(Ok(message)) = message else { return };
                    let Message::Text(message) = message else { continue };
                    let message: Vec<Value> = serde_json::from_str(&message).unwrap();
                    answers = self.answer(&message, &mut subscriptions, &mut authenticated);
                    if message[0] == "REQ" && message[1] == "l1" {
                        storm = self.manners.lock().unwrap().storm;
                    }
                }
            }
            let frames = self.manners.lock().unwrap().frames;
            for answer in answers {
                for part in parts(&answer.to_string(), frames) {
                    if socket.send(part).await.is_err() {
                        return;
                    }
                }
            }
            let (count, of) = storm.unwrap_or((0, |_| String::new()));
            for n in 0..count {
                if socket.send(Message::text(of(n))).await.is_err() {
                    return;
                }
            }
        }
    }

    fn answer(
        &self,
        message: &[Value],
        subscriptions: &mut BTreeMap<String, Vec<Filter>>,
        authenticated: &mut bool,
    ) -> Vec<Value> {
        let verb = message[0].as_str().unwrap().to_owned();
        let mut manners = self.manners.lock().unwrap();
        if verb == "AUTH" {
            let event: Event = serde_json::from_value(message[1].clone()).unwrap();
            event.verify().unwrap();
            *authenticated = true;
            return vec![json!(["OK", event.id, true, ""])];
        }
        let id = message[1].as_str().unwrap().to_owned();
        let filters = |from: &[Value]| -> Vec<Filter> {
            from.iter()
                .map(|f| serde_json::from_value(f.clone()).unwrap())
                .collect()
        };
        let filters = match verb.as_str() {
            "REQ" => filters(&message[2..]),
            "NEG-OPEN" => filters(&message[2..3]),
            "CLOSE" => {
                subscriptions.remove(&id);
                return vec![];
            }
            "NEG-MSG" => return vec![json!(["NEG-MSG", id, lie(&message[2])])],
            _ => return vec![],
        };
        let asked = Asked {
            at: Instant::now(),
            verb: verb.clone(),
            filters: filters.clone(),
        };
        self.asked.lock().unwrap().push(asked);
        if !*authenticated {
            return vec![json!(["CLOSED", id, "auth-required: who are you?"])];
        }
        if manners.rate_limited > 0 {
            manners.rate_limited -= 1;
            return vec![json!(["NOTICE", "rate-limited: slow down there chief"])];
        }
        if let Some(why) = manners.closes {
            return vec![json!(["CLOSED", id, why])];
        }
        let live = filters.iter().all(|filter| filter.limit == Some(0));
        if manners.refuses_live && verb == "REQ" && live {
            return vec![json!(["CLOSED", id, "error: not now"])];
        }
        if verb == "NEG-OPEN" {
            return match manners.refusal {
                Refusal::Notice => vec![json!(["NOTICE", "ERROR: bad msg: unknown cmd"])],
                Refusal::NegErr => vec![json!(["NEG-ERR", id, "blocked: this query is too big"])],
                Refusal::Seats => vec![json!(["NEG-ERR", id, "blocked: too many sessions"])],
                Refusal::Closed => vec![json!(["CLOSED", id, "unsupported"])],
                Refusal::Silence => vec![],
                Refusal::Lies => vec![json!(["NEG-MSG", id, lie(&message[3])])],
            };
        }
        if subscriptions.len() >= manners.subscriptions && !subscriptions.contains_key(&id) {
            return match manners.notice {
                true => vec![json!(["NOTICE", "ERROR: too many concurrent REQs"])],
                false => vec![json!(["CLOSED", id, "error: too many subscriptions"])],
            };
        }
        subscriptions.insert(id.clone(), filters.clone());
        self.most.fetch_max(subscriptions.len(), SeqCst);
        let mut answers = Vec::new();
        let mut held = self.events.lock().unwrap().clone();
        held.sort_by_key(|event| (std::cmp::Reverse(event.created_at), event.id));
        for mut filter in filters {
            let limit = filter.limit.unwrap_or(usize::MAX).min(manners.cap);
            if manners.ignore_until {
                filter = filter.remove_until();
            }
            let found = held
                .iter()
                .filter(|event| matches(&filter, event))
                .take(limit);
            answers.extend(found.map(|event| json!(["EVENT", id, event])));
        }
        if !manners.never_eose {
            answers.push(json!(["EOSE", id]));
        }
        answers
    }
}

/// A text message, whole or in frames of so many bytes.
fn parts(text: &str, frames: Option<usize>) -> Vec<Message> {
    let Some(most) = frames else {
        return vec![Message::text(text)];
    };
    let frames: Vec<&[u8]> = text.as_bytes().chunks(most).collect();
    let part = |(n, bytes): (usize, &&[u8])| {
        let code = match n {
            0 => OpCode::Data(Data::Text),
            _ => OpCode::Data(Data::Continue),
        };
        Message::Frame(Frame::message(bytes.to_vec(), code, n + 1 == frames.len()))
    };
    frames.iter().enumerate().map(part).collect()
}

fn text(value: &Value) -> Message {
    Message::text(value.to_string())
}
