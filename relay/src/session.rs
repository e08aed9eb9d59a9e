//! One websocket connection.
//!
//! Each is one task, in which a reader, a writer, an admitter and an answerer take turns, so that
//! none of them waits for another: live events are delivered while an `EVENT` is being judged, and
//! a long answer may be read slowly meanwhile. What they pass on to each other is bounded; where a
//! bound is reached, the client's next message is not read.
//!
//! Everything that goes out goes through the connection's [`Outbox`]. The connection ends when the
//! client goes, or when somebody has ended its outbox: the writer then tells the client why.

mod answers;
mod identity;
mod library;
mod message;
pub mod socket;
mod writer;

use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream::SplitStream};
use grasp_proto::client::{Allowance, Client, Rates, Refused};
use nostr::{Event, Timestamp};
use nostr_database::NostrDatabase;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::CapacityError,
        protocol::{Role, WebSocketConfig},
    },
};
use tokio_util::sync::CancellationToken;

use self::{
    answers::{Answers, Ask, Waiting},
    identity::Identity,
    library::Library,
    message::ClientMessage,
    socket::Socket,
    writer::{FRAGMENT, Pulse, UNWRITTEN, Writer},
};
pub use self::{message::SUBSCRIPTION_ID, writer::Patience};
use crate::{
    config::Config,
    live::{
        Connection, Live,
        outbox::{Farewell, Outbox, Outgoing},
    },
    meters,
    verdict::{Door, Origin},
};

/// Events of one connection that may wait to be admitted, and questions that may wait.
const PIPELINED: usize = 32;
/// What a websocket reads at once; small, as most connections are idle.
const READ_BUFFER: usize = 4 << 10;
/// How long what a client still sends is read after we have ended the connection. Closing while
/// something is unread would take our last words back.
const LINGER: Duration = Duration::from_secs(3);

const MINUTE: Duration = Duration::from_secs(60);

const TOO_LARGE: Farewell = Farewell {
    code: 1009,
    reason: "message too large, see max_message_length in the NIP-11 document",
    cause: "too_large",
};
const NOT_TEXT: Farewell = Farewell {
    code: 1007,
    reason: "a text message was not UTF-8",
    cause: "malformed",
};
const MALFORMED: Farewell = Farewell {
    code: 1002,
    reason: "the websocket protocol was violated",
    cause: "malformed",
};

/// The longest message taken: an event that is too large, but not by far, is still answered by id.
pub fn max_message_bytes(max_event_bytes: usize) -> usize {
    (2 * max_event_bytes).max(128 << 10)
}

/// What all connections have in common.
pub struct Sessions {
    config: Arc<Config>,
    door: Arc<dyn Door>,
    live: Arc<Live>,
    library: Arc<Library>,
    negotiations: Arc<Semaphore>,
    /// Events that one client may send.
    events: Option<Arc<Rates>>,
    patience: Patience,
    stop: CancellationToken,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

/// An event that waits to be admitted, and the room it takes up.
type Admission = (Box<Event>, OwnedSemaphorePermit);

impl Sessions {
    /// Connections that send events to `door`, are answered from `database`, and end with `stop`.
    pub fn new(
        config: Arc<Config>,
        door: Arc<dyn Door>,
        live: Arc<Live>,
        database: Arc<dyn NostrDatabase>,
        patience: Patience,
        stop: CancellationToken,
    ) -> Self {
        Self {
            library: Library::new(database),
            negotiations: Arc::new(Semaphore::new(answers::ALL_NEGOTIATIONS)),
            events: Rates::new(config.client_limits.events_per_minute, MINUTE).map(Arc::new),
            config,
            door,
            live,
            patience,
            stop,
        }
    }

    /// What a client may send, if that is limited.
    fn of_client(&self, address: IpAddr) -> Option<(Arc<Rates>, Client)> {
        let is_limited = !self.config.client_limits.unlimited.contain(address);
        let events = self.events.clone().filter(|_| is_limited)?;
        Some((events, Client::of(address)))
    }

    /// Serves one websocket, whose handshake is done, until it ends. `read` was read already;
    /// `address` is the client's.
    pub async fn serve(&self, tcp: TcpStream, read: Bytes, address: IpAddr) {
        let (socket, traffic) = Socket::new(tcp);
        let max = max_message_bytes(self.config.limits.max_event_bytes);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(FRAGMENT)
            .max_write_buffer_size(UNWRITTEN)
            .max_message_size(Some(max))
            .max_frame_size(Some(max));
        let role = Role::Server;
        let websocket =
            WebSocketStream::from_partially_read(socket, read.into(), role, Some(config)).await;
        let (mut sink, mut stream) = websocket.split();

        let connection = Arc::new(self.live.connect());
        let outbox = connection.outbox().clone();
        let pulse = Pulse::new(outbox.clone(), traffic, self.patience);
        let (events, admissions) = mpsc::channel(PIPELINED);
        let (asks, questions) = mpsc::channel(PIPELINED);
        let answers = Answers::new(
            connection.clone(),
            self.library.clone(),
            self.config.limits.filter_limit,
            self.negotiations.clone(),
        );
        let reader = Reader {
            config: &self.config,
            connection,
            events,
            asks,
            event_room: Arc::new(Semaphore::new(2 * max)),
            ask_room: Arc::new(Semaphore::new(2 * max)),
            allowance: match self.config.limits.events_per_minute {
                0 => None,
                most => Some(Allowance::new(most.into(), MINUTE, Instant::now())),
            },
            of_client: self.of_client(address),
            identity: Identity::default(),
        };
        let gone = tokio::select! {
            // The order matters: what the pulse has found out is to reach the writer at once.
            biased;
            () = pulse.watch(&self.stop) => false,
            () = Writer::new(&mut sink, &pulse).run() => false,
            () = reader.run(&mut stream, &pulse) => true,
            () = self.admit(admissions, &outbox) => false,
            () = answers.run(questions) => false,
        };
        let Ok(mut websocket) = sink.reunite(stream) else {
            return;
        };
        let socket = websocket.get_mut();
        if socket.shutdown().await.is_ok() && !gone {
            let mut rest = [0; 512];
            let silence = async { while matches!(socket.read(&mut rest).await, Ok(1..)) {} };
            let _ = timeout(LINGER, silence).await;
        }
    }

    /// Admits a connection's events, one after the other.
    async fn admit(&self, mut admissions: mpsc::Receiver<Admission>, outbox: &Outbox) {
        while let Some((event, _room)) = admissions.recv().await {
            let id = event.id.to_hex();
            let door = self.door.clone();
            // A task of its own: a client that goes away must not stop what has begun.
            let judged = tokio::spawn(async move { door.admit(*event, Origin::User).await });
            let answer = match judged.await {
                Ok(verdict) => message::ok(&id, verdict.ok, &verdict.message),
                Err(error) => {
                    tracing::error!(%error, event = id, "judging an event failed");
                    message::ok(&id, false, "error: the event could not be judged")
                }
            };
            if !outbox.say(Outgoing::Text(answer)).await {
                return std::future::pending().await;
            }
        }
    }
}

/// Reads what the client says.
struct Reader<'a> {
    config: &'a Config,
    connection: Arc<Connection>,
    events: mpsc::Sender<Admission>,
    asks: mpsc::Sender<Waiting>,
    /// Bytes of events, and of questions, that may wait.
    event_room: Arc<Semaphore>,
    ask_room: Arc<Semaphore>,
    allowance: Option<Allowance>,
    /// What all connections of its client may send.
    of_client: Option<(Arc<Rates>, Client)>,
    identity: Identity,
}

impl Reader<'_> {
    /// Reads until the client is gone. When something it sent ends the connection, the outbox is
    /// ended, and nothing more is read.
    async fn run(mut self, stream: &mut SplitStream<WebSocketStream<Socket>>, pulse: &Pulse) {
        loop {
            pulse.listening(true);
            let message = stream.next().await;
            pulse.listening(false);
            if let Some(Ok(message)) = &message {
                pulse.heard(message);
            }
            let farewell = match message {
                Some(Ok(Message::Text(text))) => {
                    self.take(text.as_str()).await;
                    continue;
                }
                Some(Ok(Message::Binary(_))) => {
                    let answer = "invalid: binary messages are not understood";
                    self.say(message::notice(answer)).await;
                    continue;
                }
                // Pings are answered, and closes returned, below.
                Some(Ok(_)) => continue,
                Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => TOO_LARGE,
                Some(Err(Error::Utf8(_))) => NOT_TEXT,
                Some(Err(Error::Protocol(error))) if !is_gone(&error) => MALFORMED,
                Some(Err(_)) | None => return,
            };
            self.connection.outbox().end(farewell);
            return std::future::pending().await;
        }
    }

    async fn say(&self, text: String) {
        self.connection.outbox().say(Outgoing::Text(text)).await;
    }

    async fn take(&mut self, text: &str) {
        meters::received(text);
        let size = text.len();
        let limits = &self.config.limits;
        match message::read(text, limits.max_event_bytes) {
            Ok(ClientMessage::Event(event)) => self.event(event, size).await,
            Ok(ClientMessage::Auth(proof)) => {
                let now = Timestamp::now();
                let result = self.identity.prove(&proof, &self.config.domain, now);
                let reason = result.as_ref().err().map_or("", String::as_str);
                let answer = message::ok(&proof.id.to_hex(), result.is_ok(), reason);
                self.say(answer).await;
            }
            Ok(ClientMessage::Req { id, filters }) => {
                let most = limits.max_subscriptions;
                match self.connection.subscribe(&id, filters, size, most) {
                    Ok(subscription) => self.ask(Ask::Stored(subscription), size).await,
                    Err(error) => {
                        // What is refused must not go on under its old filters either.
                        self.connection.unsubscribe(&id);
                        let reason = format!("rate-limited: {error}");
                        self.say(message::closed(&id, &reason)).await;
                    }
                }
            }
            Ok(ClientMessage::Close { id }) => {
                self.connection.unsubscribe(&id);
            }
            Ok(ClientMessage::Count { id, filter }) => {
                self.ask(Ask::Count(id, filter), size).await;
            }
            Ok(ClientMessage::NegOpen {
                id,
                filter,
                message,
            }) => self.ask(Ask::NegOpen(id, filter, message), size).await,
            Ok(ClientMessage::NegMsg { id, message }) => {
                self.ask(Ask::NegMsg(id, message), size).await;
            }
            Ok(ClientMessage::NegClose { id }) => self.ask(Ask::NegClose(id), size).await,
            Err(answer) => self.say(answer).await,
        }
    }

    /// Whether one more event may be sent, by this connection and by its client.
    fn takes_one(&mut self) -> Result<(), (&'static str, Refused)> {
        let now = Instant::now();
        if let Some(allowance) = &mut self.allowance {
            let taken = allowance.take(now);
            taken.map_err(|refused| ("on this connection", refused))?;
        }
        if let Some((events, client)) = &self.of_client {
            let taken = events.take(*client, now);
            taken.map_err(|refused| ("from your address", refused))?;
        }
        Ok(())
    }

    async fn event(&mut self, event: Box<Event>, size: usize) {
        let id = event.id.to_hex();
        if let Err((whose, refused)) = self.takes_one() {
            meters::limited("events");
            let wait = refused.wait.as_secs() + 1;
            let reason = format!("rate-limited: too many events {whose}, try again in {wait} s");
            self.say(message::ok(&id, false, &reason)).await;
            return;
        }
        // NIP-70: only its author may publish a protected event.
        if event.is_protected() && !self.identity.holds(&event.pubkey) {
            let challenge = message::challenge(self.identity.challenge());
            self.say(challenge).await;
            let reason = "auth-required: a protected event is taken from its author only";
            self.say(message::ok(&id, false, reason)).await;
            return;
        }
        if let Some(room) = room(&self.event_room, size).await {
            // The admitter lives as long as the reader.
            let _ = self.events.send((event, room)).await;
        }
    }

    async fn ask(&self, ask: Ask, size: usize) {
        if let Some(room) = room(&self.ask_room, size).await {
            let _ = self.asks.send((ask, room)).await;
        }
    }
}

async fn room(semaphore: &Arc<Semaphore>, size: usize) -> Option<OwnedSemaphorePermit> {
    let size = u32::try_from(size).ok()?;
    semaphore.clone().acquire_many_owned(size).await.ok()
}

/// Errors of the protocol that say no more than that the client went without a goodbye.
fn is_gone(error: &tokio_tungstenite::tungstenite::error::ProtocolError) -> bool {
    use tokio_tungstenite::tungstenite::error::ProtocolError;
    matches!(
        error,
        ProtocolError::ResetWithoutClosingHandshake
            | ProtocolError::SendAfterClosing
            | ProtocolError::ReceivedAfterClosing
    )
}
