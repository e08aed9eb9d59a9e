//! One connection to a remote relay, from its handshake to its end.
//!
//! Four things go on at once, in one task: what comes is read and handed to whom it is for, what is to
//! be sent is written, live subscriptions are kept (`subscriptions`), and history is fetched
//! (`history`). Whoever of them ends first ends all. What was received and not yet judged is lost then,
//! and asked for again: the next connection asks from a while before the earliest of it, and before
//! anything was heard last on this one.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt, stream::SplitSink, stream::SplitStream};
use grasp_proto::{
    contract::relay::{HeldRelay, Method},
    words::EventId,
};
use nostr::{Event, Filter, RelayMessage};
use serde_json::json;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

use super::{
    Memory, Relay,
    conduct::Conduct,
    filters,
    health::{TooMany, asks_for_silence, is_rate_limited},
    limits::Limits,
    overlong::{CUT, WithoutOverlong},
    submit::{self, Intake},
};
use crate::{hunt::context::CallError, net::Stream};

/// Messages that wait to be written.
const OUTGOING: usize = 32;

/// Most challenges that are answered on one connection.
const MOST_CHALLENGES: usize = 5;

/// The longest challenge.
const LONGEST_CHALLENGE: usize = 1024;

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The network, or the remote relay, ended it.
    Lost(String),
    /// The remote relay broke the rules.
    Misbehaved(String),
    /// The lease is lost.
    LeaseLost,
}

/// What answers one question about history.
#[derive(Debug)]
pub(super) enum Answer {
    /// An event was sent, made then.
    Event(u64, EventId),
    /// All that is stored was sent.
    EndOfStored,
    /// The remote relay will send nothing (more).
    Closed(String),
    /// The next step of a reconciliation, in hex.
    Reconciliation(String),
    /// There will be no reconciliation.
    NoReconciliation(String),
    /// Something was said while this was asked.
    Notice(String),
}

/// Who an answer is for.
pub(super) enum Route {
    /// A live subscription: of any of these.
    Live {
        any: Arc<[Filter]>,
        /// So often it was opened without an answer so far.
        awaited: u32,
    },
    /// A question about history: of all of these.
    History {
        filters: Arc<[Filter]>,
        method: Method,
        answers: mpsc::Sender<Answer>,
    },
}

/// What became of live subscriptions.
#[derive(Default)]
pub(super) struct News {
    /// Closed by the remote relay, each with its reason. No more than there are subscriptions.
    pub closed: Vec<(u64, String)>,
    /// Since when something may be missing of those, and of what was not heard.
    pub since: Option<u64>,
    /// What there is too much of.
    pub too_many: Option<TooMany>,
    /// Some may not have been heard.
    pub unheard: bool,
    /// All of them would be answered otherwise now.
    pub again: bool,
}

/// One connection.
pub(super) struct Session<'a> {
    pub relay: &'a Relay,
    pub limits: Limits,
    pub memory: &'a Mutex<Memory>,
    pub intake: Intake,
    conduct: Conduct,
    outgoing: mpsc::Sender<Message>,
    /// By subscription: the live ones, and one of history.
    pub routes: Mutex<HashMap<String, Route>>,
    last_question: AtomicU64,
    silent_until: watch::Sender<Option<Instant>>,
    pub news: Mutex<News>,
    /// Something happened that live subscriptions depend on,
    pub live_wakes: Notify,
    /// or history.
    pub history_wakes: Notify,
    challenges: mpsc::Sender<String>,
    /// The id of the last answer to a challenge.
    auth_id: Mutex<Option<nostr::EventId>>,
    authenticated: watch::Sender<bool>,
    /// When something came last, in seconds since 1970.
    last_heard: AtomicU64,
    /// Messages that were too long to be taken.
    left_out: Arc<AtomicU64>,
    /// A message came that a relay sends.
    heard: watch::Sender<bool>,
    /// Nothing is read: there is no room for what came.
    holding_up: AtomicBool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one step: what a panic left behind is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which live subscription is called so.
pub(super) fn live_number(id: &str) -> Option<u64> {
    id.strip_prefix('l').and_then(|number| number.parse().ok())
}

pub(super) type Socket = WebSocketStream<WithoutOverlong<Stream>>;

/// Holds a connection until it ends.
pub(super) async fn run(
    relay: &Relay,
    limits: Limits,
    memory: &Mutex<Memory>,
    socket: Socket,
) -> End {
    let (outgoing, to_write) = mpsc::channel(OUTGOING);
    let (challenges, challenged) = mpsc::channel(1);
    let (intake, pump) = submit::channel(relay.world.room.clone());
    let timing = &relay.world.timing;
    let session = Session {
        relay,
        limits,
        memory,
        intake,
        conduct: Conduct::default(),
        outgoing,
        routes: Mutex::default(),
        last_question: AtomicU64::new(0),
        silent_until: watch::Sender::new(None),
        news: Mutex::default(),
        live_wakes: Notify::new(),
        history_wakes: Notify::new(),
        challenges,
        auth_id: Mutex::default(),
        authenticated: watch::Sender::new(false),
        last_heard: AtomicU64::new(timing.seconds_ago(Duration::ZERO)),
        left_out: socket.get_ref().left_out(),
        heard: watch::Sender::new(false),
        holding_up: AtomicBool::new(false),
    };
    let (sink, stream) = socket.split();
    let well = async {
        sleep(timing.well).await;
        let _ = session.heard.subscribe().wait_for(|heard| *heard).await;
        relay.health().well();
        pending::<End>().await
    };
    let pumping = async {
        pump.run(relay, &session.conduct, &session.history_wakes)
            .await;
        pending::<End>().await
    };
    let end = tokio::select! {
        end = session.read(stream) => end,
        end = session.write(sink, to_write) => end,
        end = session.subscribe() => end,
        end = session.fetch_history() => end,
        end = session.authenticate(challenged) => end,
        end = pumping => end,
        end = well => end,
    };
    let heard = session.last_heard.load(Relaxed);
    let since = heard.saturating_sub(timing.overlap.as_secs());
    let unjudged = session.intake.earliest();
    lock(memory).disconnected(unjudged.map_or(since, |at| at.min(since)));
    end
}

impl Session<'_> {
    async fn read(&self, mut stream: SplitStream<Socket>) -> End {
        let timing = &self.relay.world.timing;
        let idle = timing.idle;
        let mut left_out = 0;
        loop {
            let message = match timeout(idle, stream.next()).await {
                Err(_) => return End::Lost(format!("it is silent for {} s", idle.as_secs())),
                Ok(None) => return End::Lost("it closed the connection".to_owned()),
                Ok(Some(Err(tungstenite::Error::Capacity(error)))) => {
                    return End::Misbehaved(error.to_string());
                }
                Ok(Some(Err(error))) => return End::Lost(error.to_string()),
                Ok(Some(Ok(message))) => message,
            };
            let heard = timing.seconds_ago(Duration::ZERO);
            self.last_heard.store(heard, Relaxed);
            let all = self.left_out();
            self.conduct.overlong(all - left_out);
            left_out = all;
            match message {
                Message::Text(text) => self.take(text.as_str()).await,
                Message::Binary(bytes) if bytes.last() == Some(&CUT) => {}
                Message::Binary(bytes) => match std::str::from_utf8(&bytes) {
                    Ok(text) => self.take(text).await,
                    Err(_) => self.conduct.garbage(),
                },
                Message::Close(frame) => {
                    let why = frame.map(|frame| frame.reason.to_string());
                    let why = why.filter(|why| !why.is_empty());
                    return End::Lost(why.map_or_else(
                        || "it closed the connection".to_owned(),
                        |why| format!("it closed the connection: {why}"),
                    ));
                }
                _ => {}
            }
            if !self.conduct.is_tolerable() {
                let why = "it sends what is forged, or what nobody asked for";
                return End::Misbehaved(why.to_owned());
            }
        }
    }

    async fn take(&self, text: &str) {
        let Ok(message) = RelayMessage::from_json(text) else {
            self.conduct.garbage();
            return;
        };
        match message {
            RelayMessage::Event {
                subscription_id,
                event,
            } => {
                let event = event.into_owned();
                self.take_event(subscription_id.as_str(), event).await;
            }
            RelayMessage::EndOfStoredEvents(id) => {
                self.hears();
                self.answer(id.as_str(), Answer::EndOfStored).await;
            }
            RelayMessage::Closed {
                subscription_id,
                message,
            } => self.closed(subscription_id.as_str(), &message).await,
            RelayMessage::Notice(text) => self.notice(&text).await,
            RelayMessage::Auth { challenge } => {
                if challenge.len() <= LONGEST_CHALLENGE {
                    // While one is being answered, others wait for the next connection.
                    let _ = self.challenges.try_send(challenge.into_owned());
                }
            }
            RelayMessage::Ok {
                event_id,
                status,
                message,
            } => {
                if *lock(&self.auth_id) == Some(event_id) {
                    tracing::debug!(relay = self.relay.url, status, %message, "authenticated");
                    self.authenticated.send_replace(status);
                    lock(&self.news).again |= status;
                    self.live_wakes.notify_one();
                }
            }
            RelayMessage::NegMsg {
                subscription_id,
                message,
            } => {
                self.hears();
                let step = Answer::Reconciliation(message.into_owned());
                self.answer(subscription_id.as_str(), step).await;
            }
            RelayMessage::NegErr {
                subscription_id,
                message,
            } => {
                // What else it has too many of, it may say where it can still be asked by pages.
                if is_rate_limited(&message) {
                    self.hush(&message);
                }
                let no = Answer::NoReconciliation(message.into_owned());
                self.answer(subscription_id.as_str(), no).await;
            }
            RelayMessage::Count { .. } => self.conduct.stray(),
        }
    }

    /// It answers as a relay does.
    fn hears(&self) {
        self.heard
            .send_if_modified(|heard| !std::mem::replace(heard, true));
    }

    async fn take_event(&self, id: &str, event: Event) {
        enum For {
            Nobody,
            Unrelated,
            Live,
            History(Method, mpsc::Sender<Answer>),
        }
        let whose = match lock(&self.routes).get(id) {
            None => For::Nobody,
            Some(Route::Live { any, .. }) => {
                match any.iter().any(|filter| filters::matches(filter, &event)) {
                    true => For::Live,
                    false => For::Unrelated,
                }
            }
            Some(Route::History {
                filters: all,
                method,
                answers,
            }) => match all.iter().all(|filter| filters::matches(filter, &event)) {
                true => For::History(*method, answers.clone()),
                false => For::Unrelated,
            },
        };
        let (method, answers) = match whose {
            For::Nobody => return self.conduct.stray(),
            For::Unrelated => return self.conduct.unrelated(),
            For::Live => (Method::Live, None),
            For::History(method, answers) => (method, Some(answers)),
        };
        self.relay.status.received(method);
        let answer = Answer::Event(
            event.created_at.as_secs(),
            EventId::from_bytes(event.id.to_bytes()),
        );
        // Those that are for the moment only are no part of what is synced.
        if !event.kind.is_ephemeral() {
            self.holding_up.store(true, Relaxed);
            self.intake.push(event, method).await;
            self.holding_up.store(false, Relaxed);
        }
        if let Some(answers) = answers {
            let _ = answers.send(answer).await;
        }
    }

    async fn answer(&self, id: &str, answer: Answer) {
        let answers = match lock(&self.routes).get_mut(id) {
            Some(Route::History { answers, .. }) => answers.clone(),
            Some(Route::Live { awaited, .. }) => {
                if matches!(answer, Answer::EndOfStored) {
                    *awaited = awaited.saturating_sub(1);
                }
                return;
            }
            // Relays close what they have answered: after that, nobody waits for it here either.
            None if matches!(answer, Answer::Closed(_)) => return,
            None => return self.conduct.stray(),
        };
        let _ = answers.send(answer).await;
    }

    async fn closed(&self, id: &str, why: &str) {
        if asks_for_silence(why) {
            self.hush(why);
        }
        tracing::debug!(
            relay = self.relay.url,
            id,
            why,
            "subscription closed by the relay"
        );
        match live_number(id) {
            Some(number) => {
                let was = lock(&self.routes).remove(id);
                if was.is_some() {
                    let since = self.relay.world.timing.overlap_begin();
                    let mut news = lock(&self.news);
                    news.since.get_or_insert(since);
                    news.closed.push((number, why.to_owned()));
                    drop(news);
                    self.live_wakes.notify_one();
                }
            }
            None => self.answer(id, Answer::Closed(why.to_owned())).await,
        }
    }

    async fn notice(&self, text: &str) {
        tracing::debug!(relay = self.relay.url, text, "notice");
        if asks_for_silence(text) {
            self.hush(text);
            // It does not say what it did not do.
            let since = self.relay.world.timing.overlap_begin();
            let mut news = lock(&self.news);
            news.since.get_or_insert(since);
            news.unheard = true;
            drop(news);
            self.live_wakes.notify_one();
        }
        let asked = lock(&self.routes).values().find_map(|route| match route {
            Route::History { answers, .. } => Some(answers.clone()),
            Route::Live { .. } => None,
        });
        if let Some(answers) = asked {
            let _ = answers.send(Answer::Notice(text.to_owned())).await;
        }
    }

    /// The remote relay asks for silence.
    fn hush(&self, why: &str) {
        let now = Instant::now();
        let already = self.silent_until.borrow().is_some_and(|until| until > now);
        let until = now + self.relay.world.timing.silence;
        self.silent_until.send_replace(Some(until));
        self.relay.health().silence(until);
        self.relay
            .status
            .change(|facts| facts.silent_until = Some(until));
        if !already {
            tracing::info!(
                relay = self.relay.url,
                why,
                "asked to be left alone for a while"
            );
            // Of a burst that is refused, one counts.
            if let Some(too_many) = TooMany::of(why) {
                lock(&self.news).too_many = Some(too_many);
            }
            self.live_wakes.notify_one();
        }
    }

    /// Waits until the remote relay may be spoken to.
    pub async fn quiet(&self) {
        let mut changes = self.silent_until.subscribe();
        loop {
            let until = *changes.borrow_and_update();
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    async fn write(
        &self,
        mut sink: SplitSink<Socket, Message>,
        mut outgoing: mpsc::Receiver<Message>,
    ) -> End {
        let timing = &self.relay.world.timing;
        let mut ping = interval(timing.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        loop {
            let message = tokio::select! {
                Some(message) = outgoing.recv() => message,
                _ = ping.tick() => Message::Ping(bytes::Bytes::new()),
            };
            match timeout(timing.write, sink.send(message)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return End::Lost(error.to_string()),
                Err(_) => return End::Lost("it does not read".to_owned()),
            }
        }
    }

    /// Puts a message in the queue; whoever is at its other end ends with the connection.
    pub async fn send(&self, message: serde_json::Value) {
        let _ = self.outgoing.send(Message::text(message.to_string())).await;
    }

    /// A question about history: its name, and where its answers come. Events are answers to it if they
    /// match all of `filters`.
    pub fn question(
        &self,
        filters: Vec<Filter>,
        method: Method,
        room: usize,
    ) -> (String, mpsc::Receiver<Answer>) {
        let id = format!("h{}", self.last_question.fetch_add(1, Relaxed));
        let (answers, receiver) = mpsc::channel(room);
        let route = Route::History {
            filters: filters.into(),
            method,
            answers,
        };
        lock(&self.routes).insert(id.clone(), route);
        (id, receiver)
    }

    /// A live subscription is opened, or opened again.
    pub fn route(&self, id: String, filters: Vec<Filter>) {
        let mut routes = lock(&self.routes);
        let before = match routes.get(&id) {
            Some(Route::Live { awaited, .. }) => *awaited,
            _ => 0,
        };
        let route = Route::Live {
            any: filters.into(),
            awaited: before.saturating_add(1),
        };
        routes.insert(id, route);
    }

    /// Nobody waits for an answer any more.
    pub fn forget(&self, id: &str) {
        lock(&self.routes).remove(id);
    }

    /// Whether the remote relay has ever asked for silence.
    pub fn was_hushed(&self) -> bool {
        self.silent_until.borrow().is_some()
    }

    /// How many messages were too long to be taken.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Relaxed)
    }

    /// Whether nothing is read because our relay has not judged what came.
    pub fn is_holding_up(&self) -> bool {
        self.holding_up.load(Relaxed)
    }

    /// Whether a challenge was answered to the remote relay's liking.
    pub fn is_authenticated(&self) -> bool {
        *self.authenticated.borrow()
    }

    /// Waits for that, for a while.
    pub async fn authentication(&self, patience: Duration) {
        let mut authenticated = self.authenticated.subscribe();
        let _ = timeout(patience, authenticated.wait_for(|yes| *yes)).await;
    }

    async fn authenticate(&self, mut challenges: mpsc::Receiver<String>) -> End {
        for _ in 0..MOST_CHALLENGES {
            let Some(challenge) = challenges.recv().await else {
                break;
            };
            let held = HeldRelay {
                url: self.relay.url.clone(),
                token: self.relay.token,
            };
            let event = match self.relay.world.sync.authenticate(held, challenge).await {
                Ok(json) => Event::from_json(json).map_err(|error| error.to_string()),
                Err(CallError::Lost) => return End::LeaseLost,
                Err(error) => Err(error.to_string()),
            };
            match event {
                Ok(event) => {
                    *lock(&self.auth_id) = Some(event.id);
                    self.send(json!(["AUTH", event])).await;
                }
                Err(error) => {
                    tracing::warn!(relay = self.relay.url, error, "cannot answer its challenge");
                }
            }
        }
        pending().await
    }
}
