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
pub mod message;
mod reconciliation;
pub mod socket;
mod stored;
mod writer;

use std::{
    fmt,
    io::ErrorKind,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream::SplitStream};
use grasp_proto::client::{Allowance, Client, Rates, Refused as RateRefused};
use nostr::{Event, Filter, Timestamp};
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

pub use self::{
    answers::NEGOTIATIONS,
    message::{FILTERS, SUBSCRIPTION_ID, VALUES as FILTER_VALUES},
    writer::Patience,
};
use self::{
    answers::{Answers, Ask, Asked, Waiting},
    identity::Identity,
    message::{ClientMessage, Refused},
    socket::{Socket, UnfinishedBudget},
    stored::Storage,
    writer::{FRAGMENT, Pulse, UNWRITTEN, Writer},
};
use crate::{
    config::Config,
    live::{
        Connection, Live,
        kept_filter::KeptFilter,
        outbox::{Farewell, Outbox, Outgoing},
    },
    meters,
    nip34::bounds,
    policy::event_size::EventSizeLimits,
    verdict::{Door, Origin},
};

/// Events of one connection that may wait to be admitted, and questions that may wait.
const PIPELINED: usize = 32;
/// Bytes of memory that these events, and as many that these questions, may take. One that takes more waits
/// alone.
const WAITING_BYTES: usize = 1 << 20;
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
const BUSY: Farewell = Farewell {
    code: 1013,
    reason: "too many long messages are on their way to this relay, try again later",
    cause: "busy",
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
pub fn max_message_bytes(sizes: &EventSizeLimits) -> usize {
    let of_states = sizes.states.saturating_add(sizes.states / 4);
    sizes
        .most_kinds
        .saturating_mul(2)
        .max(of_states)
        .max(128 << 10)
}

/// What all connections have in common.
pub struct Sessions {
    config: Arc<Config>,
    door: Arc<dyn Door>,
    live: Arc<Live>,
    storage: Arc<Storage>,
    /// Ids that reconciliations may hold.
    negotiated: Arc<Semaphore>,
    unfinished: Arc<UnfinishedBudget>,
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
            storage: Storage::new(database),
            negotiated: Arc::new(Semaphore::new(answers::ALL_ITEMS)),
            unfinished: Arc::default(),
            events: Rates::new(config.client_limits.events_per_minute, MINUTE).map(Arc::new),
            config,
            door,
            live,
            patience,
            stop,
        }
    }

    /// The client behind an address, if it has limits.
    fn limited_client(&self, address: IpAddr) -> Option<Client> {
        let is_limited = !self.config.client_limits.unlimited.contain(address);
        is_limited.then(|| Client::of(address))
    }

    /// Serves one websocket, whose handshake is done, until it ends. `read` was read already;
    /// `address` is the client's.
    pub async fn serve(&self, tcp: TcpStream, read: Bytes, address: IpAddr) {
        let (socket, traffic) = Socket::new(tcp, self.unfinished.clone());
        let max = max_message_bytes(&self.config.limits.event_sizes);
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
        let client = self.limited_client(address);

        let connection = Arc::new(self.live.connect(client));
        let outbox = connection.outbox().clone();
        let pulse = Pulse::new(outbox.clone(), traffic, self.patience);
        let (events, admissions) = mpsc::channel(PIPELINED);
        let (asks, questions) = mpsc::channel(PIPELINED);
        let answers = Answers::new(
            connection.clone(),
            self.storage.clone(),
            self.config.limits.filter_limit,
            self.negotiated.clone(),
        );
        let reader = Reader {
            config: &self.config,
            connection,
            events,
            asks,
            event_room: Arc::new(Semaphore::new(WAITING_BYTES)),
            ask_room: Arc::new(Semaphore::new(WAITING_BYTES)),
            allowance: match self.config.limits.events_per_minute {
                0 => None,
                most => Some(Allowance::new(most.into(), MINUTE, Instant::now())),
            },
            of_client: self.events.clone().zip(client),
            identity: Identity::default(),
        };
        let gone = tokio::select! {
            // The order matters: what the pulse has found out is to reach the writer at once.
            biased;
            () = pulse.watch(&self.stop) => false,
            () = Writer::new(&mut sink, &pulse).run() => false,
            () = reader.run(&mut stream, &pulse) => true,
            () = self.admit(admissions, client, &outbox) => false,
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
    async fn admit(
        &self,
        mut admissions: mpsc::Receiver<Admission>,
        client: Option<Client>,
        outbox: &Outbox,
    ) {
        while let Some((event, _room)) = admissions.recv().await {
            let id = event.id.to_hex();
            let door = self.door.clone();
            // A task of its own: a client that goes away must not stop what has begun.
            let origin = Origin::User(client);
            let judged = tokio::spawn(async move { door.admit(*event, origin).await });
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
                Some(Err(Error::Io(error))) if error.kind() == ErrorKind::OutOfMemory => BUSY,
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
        match message::read(text, &limits.event_sizes) {
            Ok(ClientMessage::Event(event)) => self.event(event).await,
            Ok(ClientMessage::Auth(proof)) => {
                let now = Timestamp::now();
                let result = self.identity.prove(&proof, &self.config.domain, now);
                let reason = result.as_ref().err().map_or("", String::as_str);
                let answer = message::ok(&proof.id.to_hex(), result.is_ok(), reason);
                self.say(answer).await;
            }
            Ok(ClientMessage::Req { id, filters }) => {
                let most = limits.max_subscriptions;
                let filters = filters.into_iter().map(KeptFilter::from).collect();
                match self.connection.subscribe(&id, filters, most) {
                    Ok(subscription) => self.ask(Ask::Stored(subscription), size).await,
                    Err(error) => {
                        meters::limited("filters");
                        let reason = format!("rate-limited: {error}");
                        self.say(message::closed(&id, &reason)).await;
                    }
                }
            }
            Ok(ClientMessage::Close { id }) => {
                self.connection.unsubscribe(&id);
            }
            Ok(ClientMessage::Count { id, filter }) => match self.asked(filter) {
                Ok(asked) => self.ask(Ask::Count(id, asked), size).await,
                Err(reason) => self.say(message::closed(&id, &reason)).await,
            },
            Ok(ClientMessage::NegOpen {
                id,
                filter,
                message,
            }) => match self.asked(filter) {
                Ok(asked) => self.ask(Ask::NegOpen(id, asked, message), size).await,
                Err(reason) => self.ask(Ask::NegRefused(id, reason), size).await,
            },
            Ok(ClientMessage::NegMsg { id, message }) => {
                self.ask(Ask::NegMsg(id, message), size).await;
            }
            Ok(ClientMessage::NegClose { id }) => self.ask(Ask::NegClose(id), size).await,
            Err(Refused::Answer(answer)) => self.say(answer).await,
            Err(Refused::Subscription { id, reason }) => {
                // What is refused must not go on under its old filters either.
                self.connection.unsubscribe(&id);
                self.say(message::closed(&id, &reason)).await;
            }
            // In its turn: what it replaces may be open, or about to be.
            Err(Refused::Negotiation { id, reason }) => {
                self.ask(Ask::NegRefused(id, reason), size).await;
            }
        }
    }

    /// A filter that waits to be answered, if there is room for it.
    fn asked(&self, filter: Filter) -> Result<Asked, String> {
        let filter = KeptFilter::from(filter);
        let taking = self.connection.take(&filter).map_err(|error| {
            meters::limited("filters");
            format!("rate-limited: {error}")
        })?;
        Ok(Asked {
            filter,
            _taking: taking,
        })
    }

    /// Whether one more event may be sent, by this connection and by its client.
    fn takes_one(&mut self) -> Result<(), (&'static str, RateRefused)> {
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

    async fn event(&mut self, event: Box<Event>) {
        let id = event.id.to_hex();
        // Before it waits: what its tags take is far more than their text.
        if let Err(error) = bounds::check(&event) {
            self.say(message::ok(&id, false, &format!("invalid: {error}")))
                .await;
            return;
        }
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
        if let Some(room) = room(&self.event_room, bounds::memory(&event)).await {
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
    let size = u32::try_from(size.min(WAITING_BYTES)).ok()?;
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
