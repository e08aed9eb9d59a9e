//! One remote relay and its one task: connected, and connected again, until the lease ends.
//!
//! Nothing here waits for another relay. The task holds what must outlive a connection: what is
//! confirmed, and how the relay has been doing.

use std::{sync::Mutex, time::Duration};

use bytes::Bytes;
use grasp_proto::contract::{event_size::MAX_FRAMED_EVENT_BYTES, relay::RelayState};
use http::{HeaderMap, HeaderValue, Method, header::ACCEPT};
use http_body_util::{BodyExt, Limited};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{client::IntoClientRequest, protocol::WebSocketConfig},
};
use url::Url;

use super::{
    Memory, Relay,
    limits::Limits,
    overlong::WithoutOverlong,
    session::{self, End, Socket},
};
use crate::net::http::{Ask, bare};

/// How long the handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// How long the information document may take, and how long it may be.
const DOCUMENT: Duration = Duration::from_secs(10);
const DOCUMENT_BYTES: usize = 128 << 10;

/// Holds the relay until the lease is lost.
pub(super) async fn run(relay: &Relay) {
    let world = &relay.world;
    let memory = Mutex::new(Memory::new(Instant::now() + world.timing.next_full_pass()));
    let mut limits: Option<(Instant, Limits)> = None;
    loop {
        let (next, dead) = {
            let health = relay.health();
            (health.next_attempt(), health.is_dead(Instant::now()))
        };
        relay.status.change(|facts| {
            facts.state = RelayState::Disconnected;
            facts.subscriptions = 0;
            facts.next_attempt = Some(next);
            facts.dead = dead;
        });
        sleep_until(next).await;
        relay.status.change(|facts| {
            facts.state = RelayState::Connecting;
            facts.next_attempt = None;
        });
        let socket = match connect(relay).await {
            Ok(socket) => socket,
            Err(why) => {
                relay.status.attempted(false);
                // The first time it is news.
                match relay.health().has_failed() {
                    false => tracing::warn!(relay = relay.url, why, "cannot connect"),
                    true => tracing::debug!(relay = relay.url, why, "still cannot connect"),
                }
                relay.health().failed(Instant::now(), rand::random());
                relay.status.change(|facts| facts.last_error = why);
                continue;
            }
        };
        relay.status.attempted(true);
        let known = match limits {
            Some((read, known)) if read.elapsed() < world.timing.document => known,
            _ => {
                let known = document(relay).await;
                limits = Some((Instant::now(), known));
                known
            }
        };
        tracing::info!(
            relay = relay.url,
            subscriptions = known.subscriptions,
            "connected"
        );
        relay.status.change(|facts| {
            facts.state = RelayState::Syncing;
            facts.dead = false;
        });
        let end = session::run(relay, known, &memory, socket).await;
        match end {
            End::LeaseLost => return,
            End::Lost(why) => {
                tracing::info!(relay = relay.url, why, "disconnected");
                relay.health().ended(Instant::now(), rand::random());
                relay.status.change(|facts| facts.last_error = why);
            }
            End::Misbehaved(why) => {
                tracing::warn!(relay = relay.url, why, "disconnected: it misbehaves");
                metrics::counter!("ngit_relays_misbehaved_total").increment(1);
                relay.health().misbehaved(Instant::now(), rand::random());
                relay.status.change(|facts| facts.last_error = why);
            }
        }
    }
}

async fn connect(relay: &Relay) -> Result<Socket, String> {
    let url = bare(&relay.address);
    let stream = relay
        .world
        .net
        .connect(&url)
        .await
        .map_err(|error| error.to_string())?;
    let mut request = url
        .as_str()
        .into_client_request()
        .map_err(|error| error.to_string())?;
    let agent = concat!("graspd/", env!("CARGO_PKG_VERSION"));
    let headers = request.headers_mut();
    headers.insert(http::header::USER_AGENT, HeaderValue::from_static(agent));
    // Longer messages are left out.
    let stream = WithoutOverlong::new(stream, MAX_FRAMED_EVENT_BYTES);
    let config = WebSocketConfig::default()
        // With room for what a cut leaves behind.
        .max_message_size(Some(MAX_FRAMED_EVENT_BYTES + 1))
        .max_frame_size(Some(MAX_FRAMED_EVENT_BYTES))
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20);
    match timeout(
        HANDSHAKE,
        client_async_with_config(request, stream, Some(config)),
    )
    .await
    {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(format!("no websocket: {error}")),
        Err(_) => Err("no websocket: it does not answer".to_owned()),
    }
}

/// What the relay says it allows; what we assume where it says nothing, or nothing in time.
async fn document(relay: &Relay) -> Limits {
    let read = async {
        let mut url: Url = relay.address.clone();
        let scheme = if url.scheme() == "wss" {
            "https"
        } else {
            "http"
        };
        url.set_scheme(scheme).ok()?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/nostr+json"));
        let ask = Ask {
            method: Method::GET,
            url,
            headers,
            body: Bytes::new(),
        };
        let mut conversation = relay.world.net.converse();
        let answer = conversation.send(&ask, DOCUMENT).await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        let body = Limited::new(answer.into_body(), DOCUMENT_BYTES)
            .collect()
            .await
            .ok()?;
        Some(Limits::read(&body.to_bytes()))
    };
    timeout(DOCUMENT, read)
        .await
        .ok()
        .flatten()
        .unwrap_or_default()
}
