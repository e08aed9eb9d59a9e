//! Live events: who wants which, and how they get them.
//!
//! Every websocket connection registers here, with one bounded queue ([`outbox::Outbox`]) for
//! everything it is sent. [`Live::publish`] is called with each event as it becomes served; it puts
//! the event into the queue of every subscription that matches and never waits for anybody. A
//! connection whose queue overflows is ended and its client told; it is never silently skipped.
//!
//! An event is compared only with subscriptions that share something with it: every filter is
//! entered under the values of its most telling field, and an event looks under its own values.

mod once;
pub mod outbox;

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use nostr::{Event, Filter, filter::MatchEventOptions};

use self::{
    once::Once,
    outbox::{Outbox, Outgoing},
};

/// Most bytes of filters that one connection's subscriptions may hold, counted as they were sent.
/// A relay that follows a thousand repositories needs about one megabyte.
const FILTER_BYTES: usize = 4 << 20;

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
    filters: Vec<Filter>,
    /// Bytes of the message that made it.
    weight: usize,
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
    pub fn filters(&self) -> &[Filter] {
        &self.filters
    }

    fn wants(&self, event: &Event) -> bool {
        let options = MatchEventOptions::new();
        self.filters.iter().any(|f| f.match_event(event, options))
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
        if event.is_expired() {
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
        let json: Arc<str> = event.as_json().into();
        for (number, subscription) in wanted {
            let message = Outgoing::Event {
                subscription: subscription.id.clone(),
                event: json.clone(),
            };
            subscription.outbox.live(number, event.id, message);
        }
    }

    /// Registers a connection. It is forgotten, with its subscriptions, when dropped.
    pub fn connect(self: &Arc<Self>) -> Connection {
        Connection {
            live: self.clone(),
            outbox: Arc::new(Outbox::new()),
            subscriptions: Mutex::default(),
        }
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
    fn hashes_of_filter(&self, filter: &Filter) -> Vec<u64> {
        let hash = |key: Key| self.hasher.hash_one(key);
        // The library takes an empty list for one that is not there.
        if let Some(ids) = filter.ids.as_ref().filter(|ids| !ids.is_empty()) {
            return ids.iter().map(|id| hash(Key::Id(id.as_bytes()))).collect();
        }
        let fewest = filter.generic_tags.iter().min_by_key(|(_, v)| v.len());
        if let Some((letter, values)) = fewest {
            let letter = letter.as_char();
            return values.iter().map(|v| hash(Key::Tag(letter, v))).collect();
        }
        if let Some(authors) = filter.authors.as_ref().filter(|a| !a.is_empty()) {
            let key = |author: &nostr::PublicKey| hash(Key::Author(author.as_bytes()));
            return authors.iter().map(key).collect();
        }
        if let Some(kinds) = filter.kinds.as_ref().filter(|k| !k.is_empty()) {
            return kinds.iter().map(|k| hash(Key::Kind(k.as_u16()))).collect();
        }
        vec![hash(Key::Any)]
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
}

#[derive(Debug, Default)]
struct Subscriptions {
    by_id: HashMap<Arc<str>, Arc<Subscription>>,
    weight: usize,
}

/// One connection, as far as live events go.
#[derive(Debug)]
pub struct Connection {
    live: Arc<Live>,
    outbox: Arc<Outbox>,
    subscriptions: Mutex<Subscriptions>,
}

impl Connection {
    /// What is sent on this connection.
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    fn subscriptions(&self) -> MutexGuard<'_, Subscriptions> {
        let lock = self.subscriptions.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes, in the place of the subscription that had this id. Live events that match are
    /// held in the outbox from now on, until it is told that the stored ones were sent. `id` is
    /// JSON; `weight` is the size of the message that asked for it.
    pub fn subscribe(
        &self,
        id: &str,
        filters: Vec<Filter>,
        weight: usize,
        most: usize,
    ) -> Result<Arc<Subscription>, TooMuch> {
        let mut own = self.subscriptions();
        let replaced = own.by_id.get(id).cloned();
        let replaced_weight = replaced.as_ref().map_or(0, |old| old.weight);
        if replaced.is_none() && own.by_id.len() >= most {
            return Err(TooMuch::Subscriptions);
        }
        if own.weight - replaced_weight + weight > FILTER_BYTES {
            return Err(TooMuch::Filters);
        }
        if let Some(old) = replaced {
            self.drop_subscription(&mut own, &old);
        }
        let subscription = Arc::new(Subscription {
            number: self.live.numbers.fetch_add(1, Ordering::Relaxed),
            id: id.into(),
            filters,
            weight,
            outbox: self.outbox.clone(),
        });
        own.weight += weight;
        let entry = subscription.clone();
        own.by_id.insert(subscription.id.clone(), entry);
        self.outbox.hold(subscription.number);
        metrics::gauge!("ngit_websocket_subscriptions").increment(1.0);
        self.live.enter(&subscription);
        Ok(subscription)
    }

    /// Ends the subscription of this id (as JSON); says whether there was one.
    pub fn unsubscribe(&self, id: &str) -> bool {
        let mut own = self.subscriptions();
        let Some(subscription) = own.by_id.get(id).cloned() else {
            return false;
        };
        self.drop_subscription(&mut own, &subscription);
        true
    }

    /// Ends this very subscription, unless another has taken its place.
    pub fn end(&self, subscription: &Subscription) {
        let mut own = self.subscriptions();
        let current = own.by_id.get(&subscription.id);
        if current.is_some_and(|current| current.number == subscription.number) {
            self.drop_subscription(&mut own, subscription);
        }
    }

    fn drop_subscription(&self, own: &mut Subscriptions, subscription: &Subscription) {
        self.live.leave(subscription);
        metrics::gauge!("ngit_websocket_subscriptions").decrement(1.0);
        self.outbox.forget(subscription.number);
        own.by_id.remove(&subscription.id);
        own.weight -= subscription.weight;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for subscription in self.subscriptions().by_id.values() {
            self.live.leave(subscription);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        time::{Duration, Instant},
    };

    use nostr::{EventBuilder, Keys, Kind, Tag, Timestamp, event::FinalizeEvent};
    use proptest::prelude::*;

    use super::{outbox::Next, *};

    fn event(keys: &Keys, kind: u16, tags: &[[&str; 2]]) -> Event {
        EventBuilder::new(Kind::from_u16(kind), "")
            .tags(tags.iter().map(|t| Tag::parse(t.to_vec()).unwrap()))
            .finalize(keys)
            .unwrap()
    }

    fn subscribed(live: &Arc<Live>, filters: &[&str]) -> Connection {
        let connection = live.connect();
        let filters = filters.iter().map(|f| Filter::from_json(f).unwrap());
        let subscription = connection
            .subscribe("\"s\"", filters.collect(), 1, 10)
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
            r#"{"ids":[],"kinds":[1]}"#.to_owned(),
        ];
        let other = [
            r#"{"kinds":[2]}"#,
            r##"{"#e":["x"],"kinds":[3]}"##,
            r##"{"#e":["x"],"#t":["z"]}"##,
            r##"{"#E":["x"]}"##,
            r#"{"since":99999999999}"#,
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

    #[test]
    fn subscriptions_are_bounded_and_replaced() {
        let live = Arc::new(Live::new());
        let connection = live.connect();
        let subscribe = |id: &str, weight| {
            connection
                .subscribe(id, vec![Filter::new()], weight, 2)
                .map(drop)
        };
        assert_eq!(subscribe("\"a\"", 1), Ok(()));
        assert_eq!(subscribe("\"b\"", 1), Ok(()));
        assert_eq!(subscribe("\"c\"", 1), Err(TooMuch::Subscriptions));
        assert_eq!(subscribe("\"b\"", FILTER_BYTES), Err(TooMuch::Filters));
        assert_eq!(subscribe("\"b\"", FILTER_BYTES - 1), Ok(()));
        assert!(connection.unsubscribe("\"b\""));
        assert!(!connection.unsubscribe("\"b\""));
        assert_eq!(subscribe("\"c\"", 1), Ok(()));
        assert_eq!(live.index.read().unwrap().len(), 2);
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
                .any(|f| f.match_event(&event, MatchEventOptions::new()));
            let connection = live.connect();
            let subscription = connection.subscribe("1", filters, 1, 1).unwrap();
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
                let connection = live.connect();
                for s in 0..500 {
                    let filter = format!(r##"{{"#e":["{c}-{s}"]}}"##);
                    let filters = vec![Filter::from_json(filter).unwrap()];
                    connection
                        .subscribe(&s.to_string(), filters, 1, 500)
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
