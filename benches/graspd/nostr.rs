//! Nostr clients: one that publishes, and a crowd that listens.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context, bail, ensure};
use futures::{SinkExt, StreamExt, future::try_join_all};
use nostr::{
    Event, Keys,
    event::{EventBuilder, FinalizeEvent, Kind, Tag},
    nips::nip19::ToBech32,
    types::Timestamp,
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, runtime::Runtime, sync::mpsc, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const PATIENCE: Duration = Duration::from_secs(120);
const ISSUE: Kind = Kind::Custom(1621);

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"))
}

/// Some public key, as repositories are addressed by.
pub fn npub() -> String {
    npub_of(&Keys::generate())
}

/// A public key, as repositories are addressed by.
pub fn npub_of(keys: &Keys) -> String {
    let Ok(npub) = keys.public_key().to_bech32();
    npub
}

/// A signed event.
pub fn event(keys: &Keys, kind: u16, at: u64, tags: &[Vec<String>]) -> anyhow::Result<Event> {
    let tags = tags.iter().map(Tag::parse).collect::<Result<Vec<_>, _>>()?;
    Ok(EventBuilder::new(Kind::Custom(kind), "")
        .tags(tags)
        .custom_created_at(Timestamp::from_secs(at))
        .finalize(keys)?)
}

async fn connect(url: &str) -> anyhow::Result<Socket> {
    let url = url.replacen("http", "ws", 1);
    let (socket, _) = timeout(PATIENCE, connect_async(&url)).await??;
    Ok(socket)
}

async fn receive(socket: &mut Socket) -> anyhow::Result<Value> {
    loop {
        let frame = timeout(PATIENCE, socket.next())
            .await
            .context("no answer in time")?;
        match frame.context("closed")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => bail!("the server closed the connection"),
            _ => {}
        }
    }
}

/// Publishes, one event after the other.
pub struct Client(Socket);

impl Client {
    /// Connects to the relay at the same address as the web server `url`.
    pub fn connect(url: &str) -> anyhow::Result<Self> {
        runtime().block_on(connect(url)).map(Self)
    }

    /// Sends an event and waits for its OK.
    pub fn publish(&mut self, event: &Event) -> anyhow::Result<()> {
        let id = event.id.to_hex();
        runtime().block_on(async {
            let message = json!(["EVENT", event]).to_string();
            self.0.send(Message::text(message)).await?;
            loop {
                let answer = receive(&mut self.0).await?;
                if answer[0] == "OK" && answer[1] == id.as_str() {
                    ensure!(answer[2] == true, "refused: {}", answer[3]);
                    return Ok(());
                }
            }
        })
    }
}

/// Subscribers, each with a connection of its own.
pub struct Crowd {
    size: usize,
    received: mpsc::UnboundedReceiver<()>,
}

impl Crowd {
    /// Subscribes all of them to issues.
    pub fn subscribe(url: &str, size: usize) -> anyhow::Result<Self> {
        Self::subscribe_to(url, size, ISSUE.as_u16())
    }

    /// Subscribes all of them to a kind of events.
    pub fn subscribe_to(url: &str, size: usize, kind: u16) -> anyhow::Result<Self> {
        let (tell, received) = mpsc::unbounded_channel();
        runtime().block_on(async {
            let sockets = try_join_all((0..size).map(|_| async {
                let mut socket = connect(url).await?;
                let wanted = json!(["REQ", "all", {"kinds": [kind], "limit": 0}]);
                socket.send(Message::text(wanted.to_string())).await?;
                while receive(&mut socket).await?[0] != "EOSE" {}
                anyhow::Ok(socket)
            }))
            .await?;
            for mut socket in sockets {
                let tell = tell.clone();
                tokio::spawn(async move {
                    while let Some(Ok(frame)) = socket.next().await {
                        // Not parsed: a crowd on this machine must not be what is measured.
                        if frame
                            .to_text()
                            .is_ok_and(|text| text.starts_with("[\"EVENT\""))
                        {
                            let _ = tell.send(());
                        }
                    }
                });
            }
            anyhow::Ok(())
        })?;
        Ok(Self { size, received })
    }

    /// Waits until each has received one event.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        self.wait_for(self.size)
    }

    /// Waits until all of them together have received `count` events.
    pub fn wait_for(&mut self, count: usize) -> anyhow::Result<()> {
        runtime().block_on(async {
            for n in 0..count {
                timeout(PATIENCE, self.received.recv())
                    .await
                    .with_context(|| format!("only {n} of {count} events were received"))?;
            }
            Ok(())
        })
    }
}
