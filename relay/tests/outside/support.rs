//! A face that serves, with an in-memory store, a door that accepts everything, and clients.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
use grasp_proto::process::{Ready, settings::Settings};
use grasp_relay::{
    Config,
    config::Backend,
    http::{Face, serve},
    live::Live,
    session::Patience,
    store::Store,
    verdict::{Door, Origin, Verdict},
};
use nostr::{Event, EventBuilder, Keys, Kind, Tag, event::FinalizeEvent};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Message,
        protocol::{CloseFrame, WebSocketConfig},
    },
};
use tokio_util::sync::CancellationToken;

/// How long anything may take before the test has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Accepts, stores and publishes everything, when the gate lets it.
pub struct StandIn {
    store: Store,
    live: Arc<Live>,
    /// Events get in one by one; closed by taking its permits.
    pub gate: Semaphore,
}

impl StandIn {
    pub async fn take(&self, event: &Event) {
        self.store.save(event).await.unwrap();
        self.live.publish(event);
    }
}

impl Door for StandIn {
    fn admit(&self, event: Event, origin: Origin) -> BoxFuture<'_, Verdict> {
        assert!(matches!(origin, Origin::User(_)));
        async move {
            let _pass = self.gate.acquire().await.unwrap();
            self.take(&event).await;
            Verdict::served()
        }
        .boxed()
    }
}

pub struct Switch(AtomicBool);

impl Ready for Switch {
    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        let ready = self.0.load(Ordering::Relaxed);
        let answer = if ready {
            Ok(())
        } else {
            Err("gitd does not answer".to_owned())
        };
        async { answer }.boxed()
    }
}

impl Switch {
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }
}

pub struct Service {
    pub address: SocketAddr,
    pub door: Arc<StandIn>,
    pub ready: Arc<Switch>,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
}

impl Service {
    pub async fn start() -> Self {
        Self::with(&[], Patience::default()).await
    }

    pub async fn with(settings: &[(&'static str, &str)], patience: Patience) -> Self {
        let token = "0123456789abcdef".to_owned();
        let common = [
            ("NGIT_DOMAIN", "relay.example.com".to_owned()),
            ("NGIT_DATABASE_BACKEND", "memory".to_owned()),
            ("NGIT_RELAY_GRPC_ADDRESS", "unix:/nowhere/r".to_owned()),
            ("NGIT_GITD_GRPC_ADDRESS", "unix:/nowhere/g".to_owned()),
            ("NGIT_GITD_HTTP_ADDRESS", "unix:/nowhere/h".to_owned()),
            ("NGIT_INTERNAL_TOKEN_RELAY", token.clone()),
            ("NGIT_INTERNAL_TOKEN_GITD", token.clone()),
            ("NGIT_INTERNAL_TOKEN_WORKER", token),
            ("NGIT_RELAY_EVENTS_PER_MINUTE", "100000".to_owned()),
        ];
        let own = settings.iter().map(|(n, v)| (*n, (*v).to_owned()));
        let settings = Settings::from_pairs(common.into_iter().chain(own));
        let config = Arc::new(Config::from_settings(&settings).unwrap());
        let live = Arc::new(Live::new());
        let store = Store::open(Backend::Memory, Path::new("")).await.unwrap();
        let door = Arc::new(StandIn {
            store: store.clone(),
            live: live.clone(),
            gate: Semaphore::new(1000),
        });
        let ready = Arc::new(Switch(AtomicBool::new(true)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let face = Face {
            missed: Arc::new(|_| {}),
            config,
            door: door.clone(),
            live,
            database: store.database(),
            ready: ready.clone(),
            patience,
        };
        let task = tokio::spawn(serve(face, listener, stop.clone(), Duration::from_secs(10)));
        Self {
            address,
            door,
            ready,
            stop,
            task,
        }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await.unwrap()
    }

    /// The whole answer to a request, head and body.
    pub async fn http(&self, request: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        in_time(tcp.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }
}

pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    timeout(LIMIT, work).await.expect("this takes too long")
}

pub struct Client(pub WebSocketStream<TcpStream>);

impl Client {
    pub async fn connect(address: SocketAddr) -> Result<Self, String> {
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        // Large read buffers are filled with zeros for every read.
        let config = WebSocketConfig::default().read_buffer_size(4 << 10);
        let url = format!("ws://{address}/");
        let (websocket, _) = in_time(client_async_with_config(url, tcp, Some(config)))
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self(websocket))
    }

    pub async fn text(&mut self, text: &str) {
        in_time(self.0.send(Message::text(text))).await.unwrap();
    }

    pub async fn send(&mut self, message: Value) {
        self.text(&message.to_string()).await;
    }

    pub async fn publish(&mut self, event: &Event) {
        self.send(json!(["EVENT", event])).await;
    }

    /// The next message; `Err`: how the connection ended.
    pub async fn next(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            match in_time(self.0.next()).await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    pub async fn expect(&mut self, verb: &str) -> Value {
        let message = self.next().await.expect("the connection lives");
        assert_eq!(message[0], verb, "{message}");
        message
    }

    /// Messages until one of this verb, itself not included.
    pub async fn until(&mut self, verb: &str) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let message = self.next().await.expect("the connection lives");
            if message[0] == verb {
                return messages;
            }
            messages.push(message);
        }
    }
}

pub fn event(keys: &Keys, kind: u16, content: &str, tags: &[[&str; 2]]) -> Event {
    EventBuilder::new(Kind::from_u16(kind), content)
        .tags(tags.iter().map(|tag| Tag::parse(tag.to_vec()).unwrap()))
        .finalize(keys)
        .unwrap()
}

pub fn note(content: &str) -> Event {
    event(&Keys::generate(), 1, content, &[])
}
