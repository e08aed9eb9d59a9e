//! What waits to be sent on one connection: one queue, bounded, in order.
//!
//! Two kinds of senders fill it. Live events are put in at once or not at all: if they find no room,
//! the connection is over, and its client is told. Everything else (answers from the store, `OK`,
//! `NOTICE`) waits for room, and is let in only while the queue is short, so that a long answer
//! never takes the place that live events need. Live events that are held until an answer is complete do not
//! make the queue longer: the answer would wait for itself.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use nostr::EventId;
use tokio::sync::Notify;

/// Most messages that wait. With what a kernel takes in besides, a client that reads nothing is
/// found out after some hundred live events more than this.
const MESSAGES: usize = 1024;

/// Most bytes that wait. The events among them are shared with all other connections.
const BYTES: usize = 16 << 20;

/// While this many messages or bytes wait, answers are held back.
const ANSWER_MESSAGES: usize = 64;
const ANSWER_BYTES: usize = 256 << 10;

/// Most bytes of live events that wait for all connections together, each event counted once.
pub(super) const ALL_TEXTS: usize = 64 << 20;

/// How much that is.
#[derive(Debug, Default)]
pub(super) struct TextRoom(AtomicUsize);

impl TextRoom {
    pub(super) fn is_full(&self) -> bool {
        self.taken() > ALL_TEXTS
    }

    pub(super) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// An event as JSON, as long as somebody is to get it.
#[derive(Clone)]
pub struct EventText(Arc<Text>);

struct Text {
    json: Box<str>,
    room: Option<Arc<TextRoom>>,
}

impl EventText {
    /// Of an event that goes to everyone who subscribed to it.
    pub(super) fn live(json: String, room: &Arc<TextRoom>) -> Self {
        room.0.fetch_add(json.len(), Ordering::Relaxed);
        let room = Some(room.clone());
        Self(Arc::new(Text {
            json: json.into(),
            room,
        }))
    }

    /// The event.
    pub fn as_str(&self) -> &str {
        &self.0.json
    }
}

/// Of an event that was stored: it goes to who asked.
impl From<String> for EventText {
    fn from(json: String) -> Self {
        Self(Arc::new(Text {
            json: json.into(),
            room: None,
        }))
    }
}

impl fmt::Debug for EventText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl PartialEq for EventText {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for EventText {}

impl Drop for Text {
    fn drop(&mut self) {
        if let Some(room) = &self.room {
            room.0.fetch_sub(self.json.len(), Ordering::Relaxed);
        }
    }
}

/// One message to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// A whole message.
    Text(String),
    /// `["EVENT", <subscription>, <event>]`, put together when it is sent: the event is shared by
    /// everyone who gets it.
    Event {
        /// The subscription's id, as JSON.
        subscription: Arc<str>,
        /// The event, as JSON.
        event: EventText,
    },
}

impl Outgoing {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Event {
                subscription,
                event,
            } => subscription.len() + event.as_str().len(),
        }
    }

    /// The message as it goes over the wire.
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Event {
                subscription,
                event,
            } => ["[\"EVENT\",", &subscription, ",", event.as_str(), "]"].concat(),
        }
    }
}

/// How a connection is ended from our side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Farewell {
    /// The code of the close frame (RFC 6455).
    pub code: u16,
    /// What the client is told, in a `NOTICE` and in the close frame; at most 123 bytes.
    pub reason: &'static str,
    /// The `ngit_websocket_closed_total` label.
    pub cause: &'static str,
}

/// The queue overflowed.
pub const OVERFLOW: Farewell = Farewell {
    code: 1008,
    reason: "too slow: more live events are waiting for this connection than it may hold",
    cause: "overflow",
};

/// What the writer is to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Send(Outgoing),
    /// Say goodbye.
    End(Farewell),
    /// Nothing at the moment.
    Idle,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Outgoing>,
    /// Live events of subscriptions whose stored events are still being sent.
    held: HashMap<u64, Vec<(EventId, Outgoing)>>,
    held_messages: usize,
    held_bytes: usize,
    /// All of them, those that are held included.
    bytes: usize,
    ending: Option<Farewell>,
}

impl State {
    fn messages(&self) -> usize {
        self.queue.len() + self.held_messages
    }

    fn has_room(&self) -> bool {
        self.queue.len() < ANSWER_MESSAGES && self.bytes - self.held_bytes < ANSWER_BYTES
    }

    fn push(&mut self, message: Outgoing) {
        self.bytes += message.bytes();
        self.queue.push_back(message);
    }

    fn end(&mut self, farewell: Farewell) -> bool {
        let first = self.ending.is_none();
        self.ending.get_or_insert(farewell);
        first
    }

    fn clear(&mut self) {
        // Not `clear`: the room itself is to be given back, too.
        self.queue = VecDeque::new();
        self.held = HashMap::new();
        self.held_messages = 0;
        self.held_bytes = 0;
        self.bytes = 0;
    }

    fn unhold(&mut self, subscription: u64) -> Vec<(EventId, Outgoing)> {
        let held = self.held.remove(&subscription).unwrap_or_default();
        let bytes: usize = held.iter().map(|(_, m)| m.bytes()).sum();
        self.held_messages -= held.len();
        self.held_bytes -= bytes;
        self.bytes -= bytes;
        held
    }
}

/// The queue of one connection. Bounded by `MESSAGES` and `BYTES`; ends with the connection.
#[derive(Debug, Default)]
pub struct Outbox {
    state: Mutex<State>,
    /// Somebody put something in.
    filled: Notify,
    /// Something was taken out.
    room: Notify,
    /// The connection is to end.
    ended: Notify,
}

impl Outbox {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a live event in, or ends the connection if it has no room. Never waits.
    pub fn live(&self, subscription: u64, id: EventId, message: Outgoing) {
        let mut state = self.state();
        if state.ending.is_some() {
            return;
        }
        if state.messages() >= MESSAGES || state.bytes + message.bytes() > BYTES {
            drop(state);
            self.overflow();
            return;
        }
        if let Some(held) = state.held.get_mut(&subscription) {
            let bytes = message.bytes();
            held.push((id, message));
            state.held_messages += 1;
            state.held_bytes += bytes;
            state.bytes += bytes;
            return;
        }
        state.push(message);
        drop(state);
        self.filled.notify_one();
    }

    /// Ends the connection, as more waits for it than there is room for.
    pub fn overflow(&self) {
        self.abort(OVERFLOW);
    }

    /// Puts something in that cannot wait, and comes rarely.
    pub fn tell(&self, message: Outgoing) {
        let mut state = self.state();
        if state.ending.is_some() {
            return;
        }
        state.push(message);
        drop(state);
        self.filled.notify_one();
    }

    /// How many bytes wait.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Whether more waits than an answer may.
    pub fn is_long(&self) -> bool {
        self.bytes() > ANSWER_BYTES
    }

    /// From now on, live events of this subscription wait until [`Outbox::release`].
    pub fn hold(&self, subscription: u64) {
        let mut state = self.state();
        if state.ending.is_none() {
            state.held.entry(subscription).or_default();
        }
    }

    /// Whether events of this subscription are held: it is there, and its answer is not complete.
    pub fn holds(&self, subscription: u64) -> bool {
        self.state().held.contains_key(&subscription)
    }

    /// All stored events were sent: `end` goes out, then what was held and not `sent` already, and
    /// from now on live events at once. Says whether the subscription was still held.
    pub fn release(&self, subscription: u64, end: Outgoing, sent: &HashSet<EventId>) -> bool {
        let mut state = self.state();
        if !state.held.contains_key(&subscription) {
            return false;
        }
        let held = state.unhold(subscription);
        state.push(end);
        for (id, message) in held {
            if !sent.contains(&id) {
                state.push(message);
            }
        }
        drop(state);
        self.filled.notify_one();
        true
    }

    /// The subscription is gone, and what was held for it.
    pub fn forget(&self, subscription: u64) {
        self.state().unhold(subscription);
    }

    /// Puts a message in as soon as the queue is short. `false`: the connection ends instead.
    pub async fn say(&self, message: Outgoing) -> bool {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before looking, so that room made in between is not missed.
            room.as_mut().enable();
            {
                let mut state = self.state();
                if state.ending.is_some() {
                    return false;
                }
                if state.has_room() {
                    state.push(message);
                    drop(state);
                    self.filled.notify_one();
                    return true;
                }
            }
            room.await;
        }
    }

    /// What to send next, without waiting for it.
    pub fn try_next(&self) -> Next {
        let mut state = self.state();
        let next = match (state.queue.pop_front(), &state.ending) {
            (Some(message), _) => {
                state.bytes -= message.bytes();
                Next::Send(message)
            }
            (None, Some(farewell)) => Next::End(farewell.clone()),
            (None, None) => {
                // A burst is over: give its room back.
                if state.queue.capacity() > ANSWER_MESSAGES {
                    state.queue = VecDeque::new();
                }
                Next::Idle
            }
        };
        if state.has_room() {
            self.room.notify_waiters();
        }
        next
    }

    /// Waits until [`Outbox::try_next`] may have something.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Ends the connection after what already waits; the first farewell stands.
    pub fn end(&self, farewell: Farewell) {
        if self.state().end(farewell) {
            self.wake();
        }
    }

    /// Ends the connection at once: what waits is thrown away.
    pub fn abort(&self, farewell: Farewell) {
        let mut state = self.state();
        state.clear();
        state.end(farewell);
        drop(state);
        self.wake();
    }

    /// Waits until the connection is to end.
    pub async fn ended(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.state().ending.is_some() {
                return;
            }
            ended.await;
        }
    }

    fn wake(&self) {
        self.filled.notify_one();
        self.room.notify_waiters();
        self.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn id(number: u8) -> EventId {
        EventId::from_byte_array([number; 32])
    }

    fn text(text: &str) -> Outgoing {
        Outgoing::Text(text.to_owned())
    }

    #[test]
    fn an_overflow_ends_the_connection_and_frees_everything() {
        let outbox = Outbox::new();
        for _ in 0..MESSAGES {
            outbox.live(1, id(1), text("x"));
        }
        assert!(outbox.ended().now_or_never().is_none());
        outbox.live(1, id(1), text("x"));
        assert!(outbox.ended().now_or_never().is_some());
        assert_eq!(outbox.try_next(), Next::End(OVERFLOW));
        assert_eq!(outbox.state().bytes, 0);
        outbox.live(1, id(1), text("x"));
        assert_eq!(outbox.try_next(), Next::End(OVERFLOW));
    }

    #[test]
    fn bytes_are_bounded_and_held_events_count() {
        let outbox = Outbox::new();
        outbox.hold(1);
        let big = EventText::from("x".repeat(BYTES / 4));
        for number in 0..5 {
            let message = Outgoing::Event {
                subscription: "s".into(),
                event: big.clone(),
            };
            outbox.live(1, id(number), message);
        }
        assert_eq!(outbox.try_next(), Next::End(OVERFLOW));
    }

    #[test]
    fn held_events_follow_the_stored_ones_once() {
        let outbox = Outbox::new();
        outbox.hold(7);
        outbox.live(7, id(1), text("one"));
        outbox.live(7, id(2), text("two"));
        outbox.live(8, id(1), text("other"));
        assert!(outbox.release(7, text("eose"), &HashSet::from([id(1)])));
        outbox.live(7, id(3), text("three"));
        for expected in ["other", "eose", "two", "three"] {
            assert_eq!(outbox.try_next(), Next::Send(text(expected)));
        }
        assert_eq!(outbox.try_next(), Next::Idle);
        assert!(!outbox.release(7, text("eose"), &HashSet::new()));
        assert_eq!(outbox.state().bytes, 0);
        assert_eq!(outbox.state().held_messages, 0);
    }

    #[test]
    fn an_answer_does_not_wait_for_the_live_events_that_wait_for_it() {
        let large = "x".repeat(ANSWER_BYTES);
        for (count, live) in [(ANSWER_MESSAGES, "x"), (1, large.as_str())] {
            let outbox = Outbox::new();
            outbox.hold(7);
            for number in (0..=u8::MAX).take(count) {
                outbox.live(7, id(number), text(live));
            }
            assert_eq!(outbox.say(text("stored")).now_or_never(), Some(true));
            assert_eq!(outbox.try_next(), Next::Send(text("stored")));
            assert!(outbox.release(7, text("eose"), &HashSet::new()));
            assert_eq!(outbox.try_next(), Next::Send(text("eose")));
            assert_eq!(outbox.say(text("more")).now_or_never(), None);
            while outbox.try_next() != Next::Idle {}
            let state = outbox.state();
            assert_eq!((state.bytes, state.held_bytes), (0, 0));
        }
    }

    #[test]
    fn answers_wait_while_the_queue_is_long_and_live_events_do_not() {
        let outbox = Outbox::new();
        for _ in 0..ANSWER_MESSAGES {
            outbox.say(text("x")).now_or_never().unwrap();
        }
        let mut waiting = Box::pin(outbox.say(text("later")));
        assert!(waiting.as_mut().now_or_never().is_none());
        outbox.live(1, id(1), text("live"));
        assert!(waiting.as_mut().now_or_never().is_none());
        outbox.try_next();
        outbox.try_next();
        assert!(waiting.as_mut().now_or_never().is_some());
    }

    #[test]
    fn an_end_comes_after_what_waits_and_an_abort_before() {
        let bye = Farewell {
            code: 1001,
            reason: "bye",
            cause: "stop",
        };
        let outbox = Outbox::new();
        outbox.live(1, id(1), text("x"));
        outbox.end(bye.clone());
        assert_eq!(outbox.try_next(), Next::Send(text("x")));
        assert_eq!(outbox.try_next(), Next::End(bye.clone()));
        let outbox = Outbox::new();
        outbox.live(1, id(1), text("x"));
        outbox.abort(bye.clone());
        assert_eq!(outbox.try_next(), Next::End(bye));
    }
}
