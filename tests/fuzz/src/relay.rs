//! What Nostr clients send, and what the relay reads from its own disk.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use grasp_proto::process::Ready;
use grasp_relay::{
    Config,
    clock::{Clock, Moment},
    domain::Domain,
    http::{Face, serve},
    journal::{Journal, Record},
    live::{
        Live,
        kept_filter::KeptFilter,
        outbox::{Next, Outgoing},
    },
    nip34::{self, announcement::Announcement, pull_request::PullRequest, state::State},
    policy::{deletion, event_size::EventSizeLimits, prs::Spaces, related},
    purgatory::Purgatory,
    session::{
        Patience,
        message::{self, ClientMessage},
    },
    store::Store,
    verdict::{Door, Origin, Verdict},
};
use nostr::{
    Event, EventBuilder, EventId, Filter, Keys, Kind, Tag, Timestamp, event::FinalizeEvent,
    key::SecretKey,
};
use nostr_database::NostrDatabase;
use nostr_memory::MemoryDatabase;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{runtime, service, text};

/// The largest events that are taken.
const LARGEST_EVENTS: EventSizeLimits = EventSizeLimits {
    most_kinds: 192 << 10,
    states: 4 << 20,
};

/// Serves whatever it is given.
struct TakesAll(Arc<MemoryDatabase>);

impl Door for TakesAll {
    fn admit(&self, event: Event, _: Origin) -> BoxFuture<'_, Verdict> {
        Box::pin(async move {
            let _ = self.0.save_event(&event).await;
            Verdict::served()
        })
    }
}

struct IsReady;

impl Ready for IsReady {
    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// Some events that are stored.
fn events() -> Vec<Event> {
    let tags: [&[&[&str]]; 4] = [
        &[&["d", "x"], &["clone", "https://grasp.example/x.git"]],
        &[
            &["d", "x"],
            &[
                "refs/heads/main",
                "1111111111111111111111111111111111111111",
            ],
        ],
        &[&["e", "00"], &["t", "a"], &["t", "b"]],
        &[],
    ];
    let kinds = [30617, 30618, 1, 7];
    let made = (0..8_u8).map(|number| {
        let key = SecretKey::from_slice(&[number % 2 + 1; 32]).expect("a key");
        let which = usize::from(number) % 4;
        let tags = tags[which]
            .iter()
            .map(|tag| Tag::parse(tag.iter().copied()));
        EventBuilder::new(Kind::from(kinds[which]), "text")
            .tags(tags.map(|tag| tag.expect("a tag")))
            .custom_created_at(Timestamp::from(1000 + u64::from(number)))
            .finalize(&Keys::new(key))
            .expect("an event")
    });
    made.collect()
}

/// What is answered by a relay of some events to bytes on its port.
fn answer(data: &[u8]) -> Vec<u8> {
    let settings = service::settings(&[]);
    let config = Arc::new(Config::from_settings(&settings).expect("settings"));
    runtime().block_on(async {
        let database = Arc::new(MemoryDatabase::unbounded());
        for event in events() {
            database.save_event(&event).await.expect("it is kept");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let face = Face {
            missed: Arc::new(|_| {}),
            config,
            door: Arc::new(TakesAll(database.clone())),
            live: Arc::new(Live::new()),
            database,
            ready: Arc::new(IsReady),
            patience: Patience::default(),
        };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(face, listener, stop.clone(), Duration::ZERO));
        let answer = service::answer(address, data).await;
        stop.cancel();
        serving.abort();
        answer
    })
}

/// Raw bytes to the relay's port.
pub fn http(data: &[u8]) {
    let answer = answer(data);
    // A websocket that was asked for says more, in frames.
    service::check_http(&answer);
}

const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: grasp.example\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// The texts in what a server sends after its handshake.
fn texts(answer: &[u8]) -> Vec<String> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let mut rest = &answer[end.expect("a handshake") + 4..];
    let (mut texts, mut message) = (Vec::new(), Vec::new());
    while let [first, second, more @ ..] = rest {
        assert_eq!(second & 0x80, 0, "a server masks nothing");
        let (length, more) = match second & 0x7f {
            126 => (
                u64::from(u16::from_be_bytes([more[0], more[1]])),
                &more[2..],
            ),
            127 => (
                u64::from_be_bytes(more[..8].try_into().expect("eight")),
                &more[8..],
            ),
            length => (u64::from(length), more),
        };
        let (payload, more) = more.split_at(usize::try_from(length).expect("a length"));
        rest = more;
        match first & 0x0f {
            0..=2 => {
                message.extend_from_slice(payload);
                if first & 0x80 != 0 {
                    let whole = std::mem::take(&mut message);
                    texts.push(String::from_utf8(whole).expect("text"));
                }
            }
            8..=10 => assert!(payload.len() <= 125),
            other => panic!("no frame of kind {other} is sent"),
        }
    }
    texts
}

/// What the relay says is a message of NIP-01, 42, 45 or 77.
fn check_message(text: &str) {
    let message: Vec<Value> = serde_json::from_str(text).expect("an array");
    let verb = message.first().and_then(Value::as_str).unwrap_or_default();
    let known = [
        "EVENT", "OK", "EOSE", "CLOSED", "NOTICE", "AUTH", "COUNT", "NEG-MSG", "NEG-ERR",
    ];
    assert!(known.contains(&verb), "{text}");
}

/// Raw bytes on a websocket.
pub fn websocket_frames(data: &[u8]) {
    let all = [HANDSHAKE, data].concat();
    for text in texts(&answer(&all)) {
        check_message(&text);
    }
}

/// A text as a client frames it.
fn framed(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        short @ 0..=125 => frame.push(0x80 | u8::try_from(short).expect("short")),
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    // A mask of zeros changes nothing.
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Messages of a reconciliation (NIP-77): the bytes up to each `;` one.
pub fn negotiation(data: &[u8]) {
    let mut all = HANDSHAKE.to_vec();
    let mut asked = 0;
    for (number, message) in data.split(|byte| *byte == b';').take(8).enumerate() {
        let message = hex(message);
        let text = match number {
            0 => format!(r#"["NEG-OPEN","n",{{}},"{message}"]"#),
            _ => format!(r#"["NEG-MSG","n","{message}"]"#),
        };
        all.extend(framed(&text));
        asked += 1;
    }
    let mut answers = 0;
    for text in texts(&answer(&all)) {
        check_message(&text);
        if text.starts_with("[\"NEG-") {
            answers += 1;
        }
    }
    assert!(answers <= asked);
}

/// What a client says on its websocket.
pub fn client_messages(data: &[u8]) {
    let text = text(data);
    match message::read(&text, &LARGEST_EVENTS) {
        Err(refused) => {
            let answer = refused.into_answer();
            check_message(&answer);
            assert!(answer.len() <= 2_000, "{answer}");
        }
        Ok(ClientMessage::Req { id, filters }) => {
            check_id(&id);
            assert!((1..=message::FILTERS).contains(&filters.len()));
            filters.iter().for_each(check_filter);
        }
        Ok(ClientMessage::Count { id, filter } | ClientMessage::NegOpen { id, filter, .. }) => {
            check_id(&id);
            check_filter(&filter);
        }
        Ok(
            ClientMessage::Close { id }
            | ClientMessage::NegMsg { id, .. }
            | ClientMessage::NegClose { id },
        ) => check_id(&id),
        Ok(ClientMessage::Event(event) | ClientMessage::Auth(event)) => {
            let again = Event::from_json(event.as_json()).expect("what is written is read");
            assert_eq!(again, *event);
            let _ = (event.verify_id(), event.verify_signature());
            read_event(&event);
        }
    }
}

fn check_id(json: &str) {
    let id: String = serde_json::from_str(json).expect("a string");
    assert!((1..=message::SUBSCRIPTION_ID).contains(&id.chars().count()));
}

fn check_filter(filter: &Filter) {
    let again = Filter::from_json(filter.as_json()).expect("what is written is read");
    assert_eq!(again, *filter);
}

/// A filter: what is stored and what comes live are told apart by it alike.
pub fn filters(data: &[u8]) {
    let asked = format!(r#"["REQ","s",{}]"#, text(data));
    let Ok(ClientMessage::Req { filters, .. }) = message::read(&asked, &LARGEST_EVENTS) else {
        return;
    };
    let events = events();
    let stored = runtime().block_on(async {
        let backend = grasp_relay::config::Backend::Memory;
        let store = Store::open(backend, std::path::Path::new("")).await;
        let store = store.expect("a store");
        for event in &events {
            store.save(event).await.expect("it is kept");
        }
        let mut found = BTreeSet::new();
        for filter in &filters {
            // How many are wanted says nothing of what comes later.
            let mut filter = filter.clone();
            filter.limit = None;
            let matching = store.query(filter).await.expect("an answer");
            found.extend(matching.into_iter().map(|event| event.id));
        }
        // Of versions of one only the last is stored.
        let all = store.query(Filter::new()).await.expect("an answer");
        let all: BTreeSet<EventId> = all.into_iter().map(|event| event.id).collect();
        (found, all)
    });
    let (found, all) = stored;
    let live = Arc::new(Live::new());
    let connection = live.connect(None);
    let filters = filters.into_iter().map(KeptFilter::from).collect();
    let subscription = connection
        .subscribe("\"s\"", filters, 1)
        .expect("a subscription");
    let eose = Outgoing::Text("[\"EOSE\",\"s\"]".to_owned());
    connection
        .outbox()
        .release(subscription.number(), eose, &HashSet::new());
    for event in &events {
        live.publish(event);
    }
    let mut told = BTreeSet::new();
    while let Next::Send(message) = connection.outbox().try_next() {
        let message: Vec<Value> = serde_json::from_str(&message.into_text()).expect("JSON");
        if let Some(event) = message.get(2) {
            let id = event["id"]
                .as_str()
                .and_then(|id| EventId::from_hex(id).ok());
            told.insert(id.expect("an id"));
        }
    }
    told.retain(|id| all.contains(id));
    assert_eq!(told, found, "live and stored differ");
}

/// An event that only its reader looks at: neither its id nor its signature is its own.
fn unsigned(kind: u16, tags: Vec<Vec<String>>) -> Option<Event> {
    let event = json!({
        "id": "00".repeat(32),
        "pubkey": "02".repeat(32),
        "created_at": 1000,
        "kind": kind,
        "tags": tags,
        "content": "",
        "sig": "01".repeat(64),
    });
    Event::from_json(event.to_string()).ok()
}

/// NIP-34: the first line is the kind, each other a tag, its fields apart by tabs.
pub fn nip34_events(data: &[u8]) {
    let text = text(data);
    let mut lines = text.lines();
    let kind = lines
        .next()
        .and_then(|line| line.parse().ok())
        .unwrap_or(30617);
    let tags = lines.map(|line| line.split('\t').map(str::to_owned).collect());
    if let Some(event) = unsigned(kind, tags.collect()) {
        read_event(&event);
    }
}

fn read_event(event: &Event) {
    let ours = Domain::parse("grasp.example").expect("a domain");
    let event = Arc::new(event.clone());
    if let Ok(announcement) = Announcement::read(event.clone()) {
        let named = &announcement.listing.names;
        assert!(named.len() <= 256 && named.is_sorted());
        assert!(!named.contains(&announcement.repo.owner));
        let _ = announcement.lists(&ours);
    }
    if let Ok(state) = State::read(event.clone()) {
        assert!(state.refs.len() <= event.tags.len());
        for (name, oid) in state.objects() {
            assert!(!oid.is_zero() && !name.as_str().ends_with("^{}"));
            for (other, _) in state.objects().take(20) {
                assert!(!name.conflicts_with(other), "{name} and {other}");
            }
        }
        assert_eq!(state.names_something(), !state.refs.is_empty());
    }
    if let Ok(request) = PullRequest::read(event.clone()) {
        let _ = (request.expires(), request.identifiers());
        assert!(request.repositories.len() <= event.tags.len());
    }
    assert!(related::repositories(&event).len() <= related::FOLLOWED);
    let _ = (related::events(&event), related::addresses(&event));
    let _ = deletion::targets(&event);
    let _ = Spaces::new(ours, true).named_by(&event);
    let _ = nip34::identifier_of(&event);
}

/// Records of the journal, one a line, as an earlier version may have left them.
pub fn journal_records(data: &[u8]) {
    let mut records = Vec::new();
    for (number, line) in data.split(|byte| *byte == b'\n').enumerate() {
        let Ok(record) = serde_json::from_slice::<Record>(line) else {
            continue;
        };
        let written = serde_json::to_vec(&record).expect("it is written");
        assert_eq!(
            serde_json::from_slice::<Record>(&written).ok(),
            Some(record.clone())
        );
        let mut key = vec![line.first().copied().unwrap_or_default()];
        key.extend_from_slice(&(number as u64).to_be_bytes());
        records.push((key, record));
    }
    let clock = Clock::standing_at(Moment::from_millis(1_000_000_000_000));
    let purgatory = Purgatory::new(Journal::none(), clock.clone());
    let count = records.len();
    purgatory.restore(records);
    assert!(purgatory.announcements.len() + purgatory.states.len() <= count);
    for identifier in purgatory.identifiers() {
        for entry in purgatory.states.by_identifier(&identifier) {
            assert_eq!(entry.state.identifier, identifier);
            assert!(purgatory.holds(&entry.state.id()));
        }
    }
}
