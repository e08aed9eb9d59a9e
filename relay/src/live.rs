//! Live events: who wants which, and how they get them.
//!
//! Every websocket connection registers here, with one bounded queue ([`outbox::Outbox`]) for
//! everything it is sent. [`Live::publish`] is called with each event as it becomes served; it puts
//! the event into the queue of every subscription that matches and never waits for anybody. A
//! connection whose queue overflows is ended and its client told; it is never silently skipped.
//!
//! An event is compared only with subscriptions that share something with it: every filter is
//! entered under the values of its most telling field, and an event looks under its own values.

mod filter_room;
pub mod kept_filter;
mod once;
pub mod outbox;

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use grasp_proto::client::Client;
use nostr::{Event, Timestamp};

pub use self::filter_room::Taking;
use self::{
    filter_room::{FilterRoom, Short},
    kept_filter::{KeptFilter, Telling},
    once::Once,
    outbox::{EventText, Outbox, Outgoing, TextRoom},
};
use crate::{meters, nip34::has_expired, session::message};

/// What an entry of the index takes, in bytes: itself, and its share of what a tree leaves empty.
const INDEX_ENTRY: usize = 48;
/// Subscriptions that are ended, one after the other, to make room for one.
const GIVE_WAY: usize = 64;
/// What the client is told whose subscription gives way.
const GAVE_WAY: &str =
    "rate-limited: the relay is short of memory for filters, and this is the largest; ask for less";

/// What an index entry stands for; only its hash is kept. A collision costs one comparison.
#[derive(Hash)]
enum Key<'a> {
    Id(&'a [u8]),
    Tag(char, &'a str),
    Author(&'a [u8]),
    Kind(u16),
    Any,
}

/// One subscription of one connection.
#[derive(Debug)]
pub struct Subscription {
    number: u64,
    /// Its id, as JSON.
    id: Arc<str>,
    filters: Box<[KeptFilter]>,
    /// What it takes, until nobody works with it any more.
    taking: Taking,
    outbox: Arc<Outbox>,
}

impl Subscription {
    /// What tells it from all others, of other connections too.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its id, as JSON.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// What it asks for.
    pub fn filters(&self) -> &[KeptFilter] {
        &self.filters
    }

    fn wants(&self, event: &Event) -> bool {
        self.filters.iter().any(|filter| filter.matches(event))
    }
}

/// All subscriptions, by hash of what they look for, then by number. Bounded by the connections:
/// each may hold so many subscriptions, and so many bytes of filters.
type Index = BTreeMap<(u64, u64), Arc<Subscription>>;

/// Who is told of every event that becomes served, besides those who subscribed. Told by whoever
/// serves it: must neither wait nor ask back.
pub trait Served: fmt::Debug + Send + Sync {
    /// An event is served from now on.
    fn served(&self, event: &Event);

    /// An event is served no more.
    fn removed(&self, event: &Event);
}

/// The subscriptions of all connections.
#[derive(Debug, Default)]
pub struct Live {
    told: OnceLock<Arc<dyn Served>>,
    index: RwLock<Index>,
    hasher: RandomState,
    numbers: AtomicU64,
    ephemeral: Mutex<Once>,
    filter_room: Arc<FilterRoom>,
    text_room: Arc<TextRoom>,
    /// As many as there are.
    connections: Mutex<HashMap<u64, Weak<Inner>>>,
}

impl Live {
    /// Nobody is listening yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `whom` is told of every event. Only the first counts.
    pub fn tell(&self, whom: Arc<dyn Served>) {
        // There is one, and it is told once.
        let _ = self.told.set(whom);
    }

    /// Hands an event, which is served from now on, to everyone who subscribed to it. Never waits;
    /// expired events (NIP-40) go to nobody.
    pub fn publish(&self, event: &Event) {
        if let Some(told) = self.told.get() {
            told.served(event);
        }
        self.hand_out(event);
    }

    /// An event that was served is not any more: those who were told of it are told.
    pub fn removed(&self, event: &Event) {
        if let Some(told) = self.told.get() {
            told.removed(event);
        }
    }

    /// Hands an ephemeral event, which is stored nowhere, to everyone who subscribed to it; says
    /// whether it had not been lately.
    pub fn publish_once(&self, event: &Event) -> bool {
        let ephemeral = self.ephemeral.lock();
        let mut ephemeral = ephemeral.unwrap_or_else(PoisonError::into_inner);
        let is_first = ephemeral.is_first(event.id);
        drop(ephemeral);
        if is_first {
            self.hand_out(event);
        }
        is_first
    }

    fn hand_out(&self, event: &Event) {
        if has_expired(event, Timestamp::now()) {
            return;
        }
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        if index.is_empty() {
            return;
        }
        let mut wanted: BTreeMap<u64, &Arc<Subscription>> = BTreeMap::new();
        for hash in self.hashes_of_event(event) {
            for ((_, number), subscription) in index.range((hash, 0)..=(hash, u64::MAX)) {
                wanted.entry(*number).or_insert(subscription);
            }
        }
        wanted.retain(|_, subscription| subscription.wants(event));
        if wanted.is_empty() {
            return;
        }
        let json = EventText::live(event.as_json(), &self.text_room);
        for (number, subscription) in wanted {
            let message = Outgoing::Event {
                subscription: subscription.id.clone(),
                event: json.clone(),
            };
            subscription.outbox.live(number, event.id, message);
        }
        drop(index);
        drop(json);
        self.make_room_for_texts();
    }

    /// While too much waits for slow readers, over all, the connection for which most waits is ended.
    fn make_room_for_texts(&self) {
        while self.text_room.is_full() {
            let connections = self.connections();
            let outboxes = connections.values().filter_map(Weak::upgrade);
            let outboxes = outboxes.map(|connection| connection.outbox.clone());
            let fullest = outboxes.max_by_key(|outbox| outbox.bytes());
            drop(connections);
            match fullest {
                Some(outbox) if outbox.is_long() => outbox.overflow(),
                _ => return,
            }
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Weak<Inner>>> {
        let connections = self.connections.lock();
        connections.unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection; of a client, if that has limits. It is forgotten, with its subscriptions, when
    /// dropped.
    pub fn connect(self: &Arc<Self>, client: Option<Client>) -> Connection {
        let inner = Arc::new(Inner {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            client,
            outbox: Arc::new(Outbox::new()),
            subscriptions: Mutex::default(),
        });
        let entry = Arc::downgrade(&inner);
        self.connections().insert(inner.number, entry);
        let live = self.clone();
        Connection { live, inner }
    }

    /// Room for filters of a connection: where there is none, the largest subscriptions of whoever takes
    /// most are ended.
    fn take(&self, inner: &Inner, bytes: usize) -> Result<Taking, TooMuch> {
        for _ in 0..GIVE_WAY {
            match self.filter_room.take(inner.number, inner.client, bytes) {
                Ok(taking) => return Ok(taking),
                Err(Short::Refused(reason)) => return Err(reason),
                Err(Short::Before(number)) => {
                    let connection = self.connections().get(&number).and_then(Weak::upgrade);
                    let gave_way = connection.is_some_and(|one| one.gives_way(self));
                    if !gave_way {
                        break;
                    }
                }
            }
        }
        Err(TooMuch::OfAll)
    }

    fn hashes_of_event(&self, event: &Event) -> Vec<u64> {
        let hash = |key: Key| self.hasher.hash_one(key);
        let mut hashes = vec![
            hash(Key::Any),
            hash(Key::Id(event.id.as_bytes())),
            hash(Key::Author(event.pubkey.as_bytes())),
            hash(Key::Kind(event.kind.as_u16())),
        ];
        hashes.extend(event.tags.iter().filter_map(|tag| {
            let (letter, value) = (tag.single_letter_tag()?, tag.content()?);
            Some(hash(Key::Tag(letter.as_char(), value)))
        }));
        hashes
    }

    /// Under what a filter is entered: whatever matches it has one of these.
    fn hashes_of_filter(&self, filter: &KeptFilter) -> Vec<u64> {
        let hash = |key: Key| self.hasher.hash_one(key);
        match filter.telling() {
            Telling::Nothing => Vec::new(),
            Telling::Ids(ids) => ids.iter().map(|id| hash(Key::Id(id))).collect(),
            Telling::Tags(letter, values) => {
                let letter = letter.as_char();
                values.map(|v| hash(Key::Tag(letter, v))).collect()
            }
            Telling::Authors(keys) => keys.iter().map(|key| hash(Key::Author(key))).collect(),
            Telling::Kinds(kinds) => kinds.iter().map(|kind| hash(Key::Kind(*kind))).collect(),
            Telling::Anything => vec![hash(Key::Any)],
        }
    }

    fn enter(&self, subscription: &Arc<Subscription>) {
        let hashes = self.hashes_of(subscription);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for hash in hashes {
            index.insert((hash, subscription.number), subscription.clone());
        }
    }

    fn leave(&self, subscription: &Subscription) {
        let hashes = self.hashes_of(subscription);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for hash in hashes {
            index.remove(&(hash, subscription.number));
        }
    }

    fn hashes_of(&self, subscription: &Subscription) -> Vec<u64> {
        let filters = subscription.filters.iter();
        filters.flat_map(|f| self.hashes_of_filter(f)).collect()
    }
}

/// Why a subscription was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// There are as many as allowed.
    #[error("too many subscriptions; close some first")]
    Subscriptions,
    /// Their filters are as big as allowed.
    #[error("the filters of all subscriptions together are too big; close some first")]
    Filters,
    /// So are those of all connections of a client.
    #[error("the filters of all your connections together are too big; close some first")]
    OfClient,
    /// So are those of all connections, and these would be the largest.
    #[error("the relay is short of memory for filters; ask for less, or try again later")]
    OfAll,
}

type Subscriptions = HashMap<Arc<str>, Arc<Subscription>>;

/// What others may need of a connection.
#[derive(Debug)]
struct Inner {
    number: u64,
    client: Option<Client>,
    outbox: Arc<Outbox>,
    subscriptions: Mutex<Subscriptions>,
}

impl Inner {
    fn subscriptions(&self) -> MutexGuard<'_, Subscriptions> {
        let lock = self.subscriptions.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_subscription(&self, live: &Live, own: &mut Subscriptions, subscription: &Subscription) {
        live.leave(subscription);
        metrics::gauge!("ngit_websocket_subscriptions").decrement(1.0);
        self.outbox.forget(subscription.number);
        own.remove(&subscription.id);
    }

    /// Ends its largest subscription, and tells the client; says whether there was one.
    fn gives_way(&self, live: &Live) -> bool {
        let mut own = self.subscriptions();
        let largest = own.values().max_by_key(|one| one.taking.bytes()).cloned();
        let Some(largest) = largest else { return false };
        self.drop_subscription(live, &mut own, &largest);
        meters::limited("filters");
        let closed = message::closed(&largest.id, GAVE_WAY);
        self.outbox.tell(Outgoing::Text(closed));
        true
    }
}

/// One connection, as far as live events go.
#[derive(Debug)]
pub struct Connection {
    live: Arc<Live>,
    inner: Arc<Inner>,
}

impl Connection {
    /// What is sent on this connection.
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.inner.outbox
    }

    /// Room for a filter that waits to be answered, and is no subscription.
    pub fn take(&self, filter: &KeptFilter) -> Result<Taking, TooMuch> {
        self.live.take(&self.inner, filter.memory())
    }

    /// Subscribes, in the place of the subscription that had this id. Live events that match are
    /// held in the outbox from now on, until it is told that the stored ones were sent. `id` is JSON. If
    /// it is not made, the one that had its id is over all the same.
    pub fn subscribe(
        &self,
        id: &str,
        filters: Box<[KeptFilter]>,
        most: usize,
    ) -> Result<Arc<Subscription>, TooMuch> {
        self.unsubscribe(id);
        let entries = |filter| self.live.hashes_of_filter(filter).len() * INDEX_ENTRY;
        let filters_take = filters.iter().map(|one| one.memory() + entries(one));
        let takes = size_of::<Subscription>() + id.len() + filters_take.sum::<usize>();
        if self.inner.subscriptions().len() >= most {
            return Err(TooMuch::Subscriptions);
        }
        // Without a lock of ours: another's subscriptions may have to give way.
        let taking = self.live.take(&self.inner, takes)?;
        let subscription = Arc::new(Subscription {
            number: self.live.numbers.fetch_add(1, Ordering::Relaxed),
            id: id.into(),
            filters,
            taking,
            outbox: self.inner.outbox.clone(),
        });
        let mut own = self.inner.subscriptions();
        let entry = subscription.clone();
        own.insert(subscription.id.clone(), entry);
        self.inner.outbox.hold(subscription.number);
        metrics::gauge!("ngit_websocket_subscriptions").increment(1.0);
        self.live.enter(&subscription);
        Ok(subscription)
    }

    /// Ends the subscription of this id (as JSON); says whether there was one.
    pub fn unsubscribe(&self, id: &str) -> bool {
        let mut own = self.inner.subscriptions();
        let Some(subscription) = own.get(id).cloned() else {
            return false;
        };
        self.inner
            .drop_subscription(&self.live, &mut own, &subscription);
        true
    }

    /// Ends this very subscription, unless another has taken its place.
    pub fn end(&self, subscription: &Subscription) {
        let mut own = self.inner.subscriptions();
        let current = own.get(&subscription.id);
        if current.is_some_and(|current| current.number == subscription.number) {
            self.inner
                .drop_subscription(&self.live, &mut own, subscription);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.live.connections().remove(&self.inner.number);
        for (_, subscription) in self.inner.subscriptions().drain() {
            self.live.leave(&subscription);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        time::{Duration, Instant},
    };

    use nostr::{
        EventBuilder, Filter, Keys, Kind, Tag, event::FinalizeEvent, filter::MatchEventOptions,
    };
    use proptest::prelude::*;

    use super::{outbox::Next, *};
    use crate::store::matches_nothing;

    fn event(keys: &Keys, kind: u16, tags: &[[&str; 2]]) -> Event {
        EventBuilder::new(Kind::from_u16(kind), "")
            .tags(tags.iter().map(|t| Tag::parse(t.to_vec()).unwrap()))
            .finalize(keys)
            .unwrap()
    }

    fn subscribed(live: &Arc<Live>, filters: &[&str]) -> Connection {
        let connection = live.connect(None);
        let filters = filters.iter().map(|f| Filter::from_json(f).unwrap().into());
        let subscription = connection
            .subscribe("\"s\"", filters.collect(), 10)
            .unwrap();
        let eose = Outgoing::Text("eose".to_owned());
        let outbox = connection.outbox();
        assert!(outbox.release(subscription.number(), eose, &HashSet::new()));
        assert!(matches!(outbox.try_next(), Next::Send(_)));
        connection
    }

    fn got(connection: &Connection) -> usize {
        std::iter::from_fn(|| match connection.outbox().try_next() {
            Next::Send(_) => Some(()),
            _ => None,
        })
        .count()
    }

    #[test]
    fn events_reach_those_who_match_and_once() {
        let live = Arc::new(Live::new());
        let keys = Keys::generate();
        let author = keys.public_key().to_hex();
        let event = event(&keys, 1, &[["e", "x"], ["t", "y"]]);
        let id = event.id.to_hex();
        let matching = [
            r"{}".to_owned(),
            r#"{"kinds":[1,2]}"#.to_owned(),
            format!(r#"{{"authors":["{author}"]}}"#),
            format!(r#"{{"ids":["{id}"]}}"#),
            r##"{"#e":["w","x"],"#t":["y"]}"##.to_owned(),
        ];
        let other = [
            r#"{"kinds":[2]}"#,
            r##"{"#e":["x"],"kinds":[3]}"##,
            r##"{"#e":["x"],"#t":["z"]}"##,
            r##"{"#E":["x"]}"##,
            r#"{"since":99999999999}"#,
            r#"{"ids":[],"kinds":[1]}"#,
            r#"{"authors":[]}"#,
            r#"{"kinds":[]}"#,
            r##"{"kinds":[1],"#e":[]}"##,
            r#"{"since":2,"until":1}"#,
        ];
        let all: Vec<&str> = matching.iter().map(String::as_str).collect();
        let yes: Vec<_> = all.iter().map(|f| subscribed(&live, &[f])).collect();
        let no: Vec<_> = other.iter().map(|f| subscribed(&live, &[f])).collect();
        let once = subscribed(&live, &all);
        live.publish(&event);
        for (connection, filter) in yes.iter().zip(&matching) {
            assert_eq!(got(connection), 1, "{filter}");
        }
        for (connection, filter) in no.iter().zip(other) {
            assert_eq!(got(connection), 0, "{filter}");
        }
        assert_eq!(got(&once), 1);
        drop((yes, no, once));
        assert!(live.index.read().unwrap().is_empty());
    }

    #[test]
    fn expired_events_go_to_nobody() {
        let live = Arc::new(Live::new());
        let connection = subscribed(&live, &["{}"]);
        let past = Timestamp::from_secs(1).to_string();
        live.publish(&event(&Keys::generate(), 1, &[["expiration", &past]]));
        assert_eq!(got(&connection), 0);
    }

    /// Filters with so many short values each.
    fn short_values(filters: usize, values: usize) -> Box<[KeptFilter]> {
        let values: Vec<String> = (0..values).map(|n| format!("\"{n}\"")).collect();
        let text = format!(r##"{{"#t":[{}]}}"##, values.join(","));
        let filter = Filter::from_json(text).unwrap();
        std::iter::repeat_n(KeptFilter::from(filter), filters).collect()
    }

    #[test]
    fn subscriptions_are_bounded_and_replaced() {
        let live = Arc::new(Live::new());
        let connection = live.connect(None);
        let subscribe = |id: &str, filters| {
            let filters = short_values(filters, 2_500);
            connection.subscribe(id, filters, 2).map(drop)
        };
        assert_eq!(subscribe("\"a\"", 1), Ok(()));
        assert_eq!(subscribe("\"b\"", 1), Ok(()));
        assert_eq!(subscribe("\"c\"", 1), Err(TooMuch::Subscriptions));
        // Some sixty bytes a value.
        assert_eq!(subscribe("\"b\"", 40), Err(TooMuch::Filters));
        assert!(!connection.unsubscribe("\"b\""));
        assert_eq!(subscribe("\"b\"", 20), Ok(()));
        assert_eq!(subscribe("\"b\"", 20), Ok(()));
        assert!(connection.unsubscribe("\"b\""));
        assert_eq!(subscribe("\"c\"", 1), Ok(()));
        assert_eq!(live.index.read().unwrap().len(), 5_000);
    }

    #[test]
    fn the_largest_gives_way_and_is_told() {
        let live = Arc::new(Live::new());
        let large: Vec<Connection> = (0..16).map(|_| live.connect(None)).collect();
        for connection in &large {
            for id in ["\"a\"", "\"b\"", "\"c\""] {
                let filters = short_values(8, 2_500);
                connection.subscribe(id, filters, 500).unwrap();
            }
        }
        let small = live.connect(None);
        small
            .subscribe("\"s\"", short_values(8, 2_500), 500)
            .unwrap();
        let told = |connection: &Connection| {
            std::iter::from_fn(|| match connection.outbox().try_next() {
                Next::Send(Outgoing::Text(text)) => Some(text),
                _ => None,
            })
            .any(|text| text.starts_with("[\"CLOSED\",") && text.contains("rate-limited: "))
        };
        assert!(large.iter().any(told));
        assert!(!told(&small));
        drop((large, small));
        assert!(live.index.read().unwrap().is_empty() && live.connections().is_empty());
    }

    #[test]
    fn slow_readers_of_different_events_hold_so_much_together() {
        let live = Arc::new(Live::new());
        let connections: Vec<Connection> = (0..20)
            .map(|n| subscribed(&live, &[&format!(r#"{{"kinds":[{}]}}"#, 1_000 + n)]))
            .collect();
        let keys = Keys::generate();
        let text = "x".repeat(1 << 19);
        for _ in 0..8 {
            for n in 0..20 {
                live.publish(&event(&keys, 1_000 + n, &[["t", &text]]));
                assert!(live.text_room.taken() <= outbox::ALL_TEXTS);
            }
        }
        let ended = |connection: &&Connection| {
            std::iter::from_fn(|| match connection.outbox().try_next() {
                Next::Idle => None,
                next => Some(next),
            })
            .take(100)
            .any(|next| next == Next::End(outbox::OVERFLOW))
        };
        let ended = connections.iter().filter(ended).count();
        assert!((1..20).contains(&ended), "{ended}");
        drop(connections);
        assert_eq!(live.text_room.taken(), 0);
    }

    proptest! {
        /// The index finds whoever a scan would find.
        #[test]
        fn the_index_misses_nobody(
            kind in 0_u16..3,
            tags in proptest::collection::vec(("[eEt]", "[xy]"), 0..3),
            filters in proptest::collection::vec(
                (
                    proptest::option::of(proptest::collection::vec(0_u16..3, 0..3)),
                    proptest::collection::vec(("[eEt]", proptest::collection::vec("[xy]", 0..3)), 0..3),
                ),
                1..4,
            ),
        ) {
            let live = Arc::new(Live::new());
            let tags: Vec<[&str; 2]> = tags.iter().map(|(a, b)| [a.as_str(), b.as_str()]).collect();
            let event = event(&Keys::generate(), kind, &tags);
            let filters: Vec<Filter> = filters
                .into_iter()
                .map(|(kinds, tags)| {
                    let mut filter = Filter::new();
                    filter.kinds = kinds.map(|k| k.into_iter().map(Kind::from_u16).collect());
                    for (letter, values) in tags {
                        let letter = letter.parse().unwrap();
                        filter.generic_tags.insert(letter, values.into_iter().collect());
                    }
                    filter
                })
                .collect();
            let expected = filters
                .iter()
                .any(|f| !matches_nothing(f) && f.match_event(&event, MatchEventOptions::new()));
            let connection = live.connect(None);
            let filters = filters.into_iter().map(KeptFilter::from).collect();
            let subscription = connection.subscribe("1", filters, 1).unwrap();
            let eose = Outgoing::Text(String::new());
            connection.outbox().release(subscription.number(), eose, &HashSet::new());
            live.publish(&event);
            prop_assert_eq!(got(&connection), 1 + usize::from(expected));
        }
    }

    /// Not a benchmark: a bound that only a scan over everything would break.
    #[test]
    fn ten_thousand_other_subscriptions_cost_an_event_nothing() {
        let live = Arc::new(Live::new());
        let connections: Vec<_> = (0..20)
            .map(|c| {
                let connection = live.connect(None);
                for s in 0..500 {
                    let filter = format!(r##"{{"#e":["{c}-{s}"]}}"##);
                    let filters = [Filter::from_json(filter).unwrap().into()];
                    connection
                        .subscribe(&s.to_string(), filters.into(), 500)
                        .unwrap();
                }
                connection
            })
            .collect();
        let event = event(&Keys::generate(), 1, &[["e", "none of them"]]);
        let start = Instant::now();
        for _ in 0..1000 {
            live.publish(&event);
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(connections);
    }
}
