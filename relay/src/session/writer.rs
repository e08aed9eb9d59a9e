//! The way out of a connection: what waits in its outbox, pings, and the last words.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt, stream::SplitSink};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{
            CloseFrame,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    message,
    socket::{Socket, Traffic},
};
use crate::{
    live::outbox::{Farewell, Next, Outbox},
    meters,
};

/// Longer messages go out in fragments of this size: a websocket's write buffer keeps the size it
/// once had, and most connections are idle.
pub const FRAGMENT: usize = 16 << 10;

/// Most bytes that a websocket holds back. Pongs end up there without our doing; where they find no
/// room, only the latest is kept.
pub const UNWRITTEN: usize = 4 * FRAGMENT;

/// When a connection is taken for dead. Tests are less patient.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How often a client is pinged.
    pub ping: Duration,
    /// How long a client may take no byte of what waits for it.
    pub stalled: Duration,
    /// How long a client may say nothing, not even a pong, and how long it may take to finish a
    /// message.
    pub silent: Duration,
    /// How long we try to say why a connection ends.
    pub farewell: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(30),
            stalled: Duration::from_secs(30),
            silent: Duration::from_secs(100),
            farewell: Duration::from_secs(5),
        }
    }
}

const STALLED: Farewell = Farewell {
    code: 1008,
    reason: "too slow: nothing of what waits for this connection was taken",
    cause: "stalled",
};
const SILENT: Farewell = Farewell {
    code: 1008,
    reason: "nothing was heard from this connection for too long",
    cause: "silent",
};
const UNFINISHED: Farewell = Farewell {
    code: 1008,
    reason: "a message was begun and not finished for too long",
    cause: "unfinished",
};
const STOPPING: Farewell = Farewell {
    code: 1001,
    reason: "the relay is stopping, connect again",
    cause: "stop",
};

/// Whether the connection is still alive.
#[derive(Debug)]
pub struct Pulse {
    outbox: Arc<Outbox>,
    traffic: Arc<Traffic>,
    patience: Patience,
    /// The writer waits for the client to take something.
    sending: AtomicBool,
    /// The reader waits for the client to say something.
    listening: AtomicBool,
    /// The client wants a pong.
    pinged: Notify,
    /// Messages that came in.
    messages: AtomicU64,
}

impl Pulse {
    /// Of a connection that has just begun.
    pub fn new(outbox: Arc<Outbox>, traffic: Arc<Traffic>, patience: Patience) -> Self {
        Self {
            outbox,
            traffic,
            patience,
            sending: AtomicBool::new(false),
            listening: AtomicBool::new(true),
            pinged: Notify::new(),
            messages: AtomicU64::new(0),
        }
    }

    /// Whether silence is the client's, or ours, as we do not listen.
    pub fn listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
    }

    /// The client has said something. Pings and pongs may come between the fragments of a message,
    /// which they do not finish.
    pub fn heard(&self, message: &Message) {
        let read = self.traffic.read();
        let whole = match message {
            Message::Ping(data) | Message::Pong(data) => {
                // Of a short frame, head and mask are six bytes.
                let size = 6 + data.len() as u64;
                read.min(self.traffic.whole() + size)
            }
            _ => {
                self.messages.fetch_add(1, Ordering::Relaxed);
                read
            }
        };
        self.traffic.finished(whole);
        if message.is_ping() {
            self.pinged.notify_one();
        }
    }

    /// Ends the outbox when the client is dead or the service stops. Returns when the connection
    /// has been ended, by whomever, and the time for last words is over.
    pub async fn watch(&self, stop: &CancellationToken) {
        let patience = self.patience;
        let look = patience.stalled.min(patience.silent) / 5;
        let start = Instant::now();
        let (mut written, mut written_at) = (0, start);
        let (mut read, mut read_at) = (0, start);
        let (mut messages, mut finished_at) = (0, start);
        loop {
            tokio::select! {
                () = self.outbox.ended() => break,
                () = stop.cancelled() => self.outbox.end(STOPPING),
                () = sleep(look) => {}
            }
            let now = Instant::now();
            let total = self.traffic.written();
            if total != written || !self.sending.load(Ordering::Relaxed) {
                (written, written_at) = (total, now);
            } else if now - written_at >= patience.stalled {
                self.outbox.abort(STALLED);
            }
            let total = self.traffic.read();
            if total != read || !self.listening.load(Ordering::Relaxed) {
                (read, read_at) = (total, now);
            } else if now - read_at >= patience.silent {
                self.outbox.abort(SILENT);
            }
            let finished = total == self.traffic.whole();
            let count = self.messages.load(Ordering::Relaxed);
            if finished || count != messages || !self.listening.load(Ordering::Relaxed) {
                (messages, finished_at) = (count, now);
            } else if now - finished_at >= patience.silent {
                self.outbox.abort(UNFINISHED);
            }
        }
        self.traffic.last_words();
        sleep(patience.farewell).await;
    }
}

/// The client is gone.
struct Gone;

impl From<Error> for Gone {
    fn from(_: Error) -> Self {
        Self
    }
}

/// Sends what waits in the outbox.
#[derive(Debug)]
pub struct Writer<'a> {
    sink: &'a mut SplitSink<WebSocketStream<Socket>, Message>,
    pulse: &'a Pulse,
}

impl<'a> Writer<'a> {
    /// Sends into this sink.
    pub fn new(
        sink: &'a mut SplitSink<WebSocketStream<Socket>, Message>,
        pulse: &'a Pulse,
    ) -> Self {
        Self { sink, pulse }
    }

    /// Sends until the connection is ended and the client was told, or until the client is gone.
    pub async fn run(mut self) {
        // A client that is gone needs no last words.
        let _: Result<(), Gone> = self.send_all().await;
    }

    async fn send_all(&mut self) -> Result<(), Gone> {
        let pulse = self.pulse;
        let ping = pulse.patience.ping;
        let mut ping = interval_at(Instant::now() + ping, ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushed = true;
        loop {
            match pulse.outbox.try_next() {
                Next::Send(message) => {
                    pulse.sending.store(true, Ordering::Relaxed);
                    self.send(message.into_text()).await?;
                    flushed = false;
                }
                Next::End(farewell) => return self.say_goodbye(&farewell).await,
                Next::Idle if !flushed => {
                    self.flush().await?;
                    pulse.sending.store(false, Ordering::Relaxed);
                    flushed = true;
                }
                Next::Idle => tokio::select! {
                    () = pulse.outbox.filled() => {}
                    // The pong is in the websocket's buffer already. From here on it is seen
                    // whether the client takes it.
                    () = pulse.pinged.notified() => {
                        pulse.sending.store(true, Ordering::Relaxed);
                        flushed = false;
                    }
                    _ = ping.tick() => {
                        pulse.sending.store(true, Ordering::Relaxed);
                        self.feed(Message::Ping(Bytes::new())).await?;
                        flushed = false;
                    }
                },
            }
        }
    }

    async fn send(&mut self, text: String) -> Result<(), Gone> {
        meters::sent(&text);
        if text.len() <= FRAGMENT {
            return self.feed(Message::text(text)).await;
        }
        let mut rest = Bytes::from(text);
        let mut code = OpCode::Data(Data::Text);
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(FRAGMENT));
            let last = rest.is_empty();
            let frame = Frame::message(part, code, last);
            self.feed(Message::Frame(frame)).await?;
            self.flush().await?;
            code = OpCode::Data(Data::Continue);
        }
        Ok(())
    }

    async fn say_goodbye(&mut self, farewell: &Farewell) -> Result<(), Gone> {
        metrics::counter!("ngit_websocket_closed_total", "cause" => farewell.cause).increment(1);
        tracing::debug!(cause = farewell.cause, "a connection is ended");
        self.send(message::notice(farewell.reason)).await?;
        // A close frame that finds no room cannot be sent again.
        self.flush().await?;
        let frame = CloseFrame {
            code: farewell.code.into(),
            reason: farewell.reason.into(),
        };
        self.feed(Message::Close(Some(frame))).await?;
        self.flush().await
    }

    async fn feed(&mut self, message: Message) -> Result<(), Gone> {
        while let Err(error) = poll_fn(|cx| self.sink.poll_ready_unpin(cx)).await {
            self.make_room(error).await?;
        }
        self.sink.start_send_unpin(message)?;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        while let Err(error) = self.sink.flush().await {
            self.make_room(error).await?;
        }
        Ok(())
    }

    /// Pongs have filled the websocket's buffer: what found no room goes in again when the buffer
    /// was written out.
    async fn make_room(&mut self, error: Error) -> Result<(), Gone> {
        let Error::WriteBufferFull(message) = error else {
            return Err(Gone);
        };
        self.sink.flush().await?;
        self.sink.start_send_unpin(*message)?;
        Ok(())
    }
}
