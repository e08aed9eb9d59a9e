//! The Nostr side of a GRASP server, as any client sees it: one websocket.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::{SinkExt, StreamExt};
use nostr::{Event, EventId};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a relay.
pub struct Relay {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// How many it was asked.
    questions: usize,
}

/// What a relay says to an event.
pub struct Verdict {
    /// Whether it took it.
    pub accepted: bool,
    /// In its own words.
    pub message: String,
}

impl Relay {
    /// Opens the connection.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let (socket, _) = timeout(PATIENCE, connect_async(url))
            .await
            .context("no answer in time")
            .and_then(|connected| connected.map_err(Into::into))
            .with_context(|| format!("cannot connect to {url}"))?;
        Ok(Self {
            socket,
            questions: 0,
        })
    }

    /// Sends an event and waits for what the relay says to it.
    pub async fn publish(&mut self, event: &Event) -> anyhow::Result<Verdict> {
        self.send(json!(["EVENT", event])).await?;
        let id = event.id.to_hex();
        loop {
            let message = self.receive().await?;
            if message[0] == "OK" && message[1] == id.as_str() {
                return Ok(Verdict {
                    accepted: message[2] == true,
                    message: message[3].as_str().unwrap_or_default().to_owned(),
                });
            }
        }
    }

    /// How many of these events the relay serves.
    pub async fn count(&mut self, ids: &[EventId]) -> anyhow::Result<usize> {
        let hex: Vec<String> = ids.iter().map(EventId::to_hex).collect();
        // A name of its own for each question: some servers close a subscription that they have
        // answered fully, and say so when the next is asked.
        self.questions += 1;
        let name = format!("served-{}", self.questions);
        self.send(json!(["REQ", name, {"ids": hex}])).await?;
        let mut served = 0;
        loop {
            let message = self.receive().await?;
            if message[1] != name.as_str() {
                continue;
            }
            match message[0].as_str() {
                Some("EVENT") => served += 1,
                Some("EOSE") => {
                    self.send(json!(["CLOSE", name])).await?;
                    return Ok(served);
                }
                Some("CLOSED") => bail!("the server closed the request: {}", message[2]),
                _ => {}
            }
        }
    }

    async fn send(&mut self, message: Value) -> anyhow::Result<()> {
        self.socket
            .send(Message::text(message.to_string()))
            .await
            .context("the connection broke")
    }

    async fn receive(&mut self) -> anyhow::Result<Value> {
        loop {
            let frame = timeout(PATIENCE, self.socket.next())
                .await
                .context("the server did not answer in time")?
                .context("the server closed the connection")?
                .context("the connection broke")?;
            match frame {
                Message::Text(text) => {
                    return serde_json::from_str(&text).context("the server sent no JSON");
                }
                Message::Close(frame) => {
                    let why = frame.map_or_else(String::new, |frame| frame.reason.to_string());
                    bail!("the server closed the connection: {why}");
                }
                _ => {}
            }
        }
    }
}
