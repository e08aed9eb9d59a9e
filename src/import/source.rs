//! Where events are taken from: lines, or a relay that is asked page by page.
//!
//! What a relay answers is a stranger's word: messages are bounded, each page must lead further into
//! the past, and one that falls silent is left.

use std::{collections::HashSet, io::BufRead, time::Duration};

use anyhow::{Context, bail};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json, value::RawValue};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use super::{Heap, LONGEST, bounded_line};
use crate::text::{complain, plain};

/// Longest wait for the next message.
const PATIENCE: Duration = Duration::from_secs(60);
/// Events asked for at once. Relays give fewer if they like.
const PAGE: usize = 500;
/// Events of one page at most: no relay has as many for one that asks for [`PAGE`].
const MOST_OF_A_PAGE: usize = 100_000;

/// Takes one event of each line; empty ones are passed over.
pub fn lines(mut input: impl BufRead, heap: &mut Heap) -> anyhow::Result<()> {
    let mut number = 0;
    while let Some(line) = bounded_line(&mut input)? {
        number += 1;
        match line {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => heap.add(number, line.trim())?,
            Err(()) => heap.refuse(number, "invalid: a line that is too long, or no text"),
        }
    }
    Ok(())
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What one page brought.
#[derive(Default)]
struct Page {
    /// Those of its oldest second.
    oldest: HashSet<String>,
    /// That second.
    second: Option<u64>,
    /// Those not seen before, and all.
    new: usize,
    all: usize,
}

/// Takes all that a relay serves, latest first.
pub async fn relay(url: &str, heap: &mut Heap) -> anyhow::Result<()> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LONGEST))
        .max_frame_size(Some(LONGEST));
    let connected = timeout(PATIENCE, connect_async_with_config(url, Some(config), true)).await;
    let (mut socket, _) = connected
        .context("no answer in time")
        .and_then(|connected| connected.map_err(Into::into))
        .with_context(|| format!("cannot connect to {url}"))?;
    let mut until = None;
    let mut seen = HashSet::new();
    for number in 0_u64.. {
        let page = page(&mut socket, number, until, &seen, heap)
            .await
            .with_context(|| format!("{url}, page {number}"))?;
        let Some(second) = page.second else {
            break;
        };
        if until.is_some_and(|until| second > until) {
            bail!("{url} gives later events than it was asked for");
        }
        (until, seen) = match page.new {
            // A second with more events than a page has: those of it that do not come are not here.
            0 => match second.checked_sub(1) {
                Some(before) => (Some(before), HashSet::new()),
                None => break,
            },
            _ => (Some(second), page.oldest),
        };
    }
    let _ = socket.close(None).await;
    Ok(())
}

/// Asks for the latest events until a time, and gives those to the heap that were not seen.
async fn page(
    socket: &mut Socket,
    number: u64,
    until: Option<u64>,
    seen: &HashSet<String>,
    heap: &mut Heap,
) -> anyhow::Result<Page> {
    let name = format!("import-{number}");
    let mut filter = json!({ "limit": PAGE });
    if let Some(until) = until {
        filter["until"] = until.into();
    }
    let request = json!(["REQ", name, filter]).to_string();
    socket.send(Message::text(request)).await?;
    let mut page = Page::default();
    loop {
        let message = timeout(PATIENCE, socket.next()).await;
        let message = message.context("no answer in time")?;
        let text = match message.context("the connection was closed")?? {
            Message::Text(text) => text,
            Message::Close(_) => bail!("the connection was closed"),
            _ => continue,
        };
        let Ok(parts) = serde_json::from_str::<Vec<&RawValue>>(&text) else {
            continue;
        };
        let word =
            |at: usize| -> Option<String> { serde_json::from_str(parts.get(at)?.get()).ok() };
        match word(0).as_deref() {
            Some("EVENT") if word(1).as_deref() == Some(&name) => {
                let event = parts.get(2).map_or("", |event| event.get());
                page.take(event, seen, heap)?;
            }
            Some("EOSE") if word(1).as_deref() == Some(&name) => {
                let close = json!(["CLOSE", name]).to_string();
                socket.send(Message::text(close)).await?;
                return Ok(page);
            }
            Some("CLOSED") if word(1).as_deref() == Some(&name) => {
                bail!("refused: {}", word(2).unwrap_or_default());
            }
            Some("NOTICE") => {
                complain(&plain(&word(1).unwrap_or_default()));
            }
            _ => {}
        }
    }
}

impl Page {
    fn take(&mut self, text: &str, seen: &HashSet<String>, heap: &mut Heap) -> anyhow::Result<()> {
        self.all += 1;
        if self.all > MOST_OF_A_PAGE {
            bail!("it sends more than it was asked for");
        }
        let Ok(event) = serde_json::from_str::<Value>(text) else {
            return Ok(());
        };
        let (Some(id), Some(second)) = (event["id"].as_str(), event["created_at"].as_u64()) else {
            return Ok(());
        };
        if self.second.is_none_or(|oldest| second < oldest) {
            self.second = Some(second);
            self.oldest.clear();
        }
        if self.second == Some(second) {
            self.oldest.insert(id.to_owned());
        }
        if seen.contains(id) {
            return Ok(());
        }
        self.new += 1;
        // The how many-th that the relay gave.
        heap.add(heap.report.read + 1, text)
    }
}
