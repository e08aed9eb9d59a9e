//! Answers from the store, one at a time for each connection.
//!
//! A client that asks much or reads slowly waits for itself; what it holds meanwhile is one answer
//! on its way and a few reconciliations.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

use super::{
    message::{self, Completeness},
    reconciliation::Reconciliation,
    stored::Storage,
};
use crate::live::{Connection, Subscription, Taking, kept_filter::KeptFilter, outbox::Outgoing};

/// Most reconciliations of one connection.
pub const NEGOTIATIONS: usize = 10;
/// Most ids and times that all reconciliations compare together: each holds its own.
pub const ALL_ITEMS: usize = 1 << 20;
/// Most that one compares.
const ITEMS: usize = ALL_ITEMS / 2;
/// What one holds at least, as such ids.
const LEAST_ITEMS: usize = 1_024;
/// A reconciliation whose client says nothing for so long is over.
const NEGOTIATION_IDLE: Duration = Duration::from_secs(120);

/// A filter that waits, and the room that it takes.
#[derive(Debug)]
pub struct Asked {
    /// What is asked for.
    pub filter: KeptFilter,
    /// What it takes.
    pub _taking: Taking,
}

/// What the store is asked.
#[derive(Debug)]
pub enum Ask {
    /// The stored events of a new subscription.
    Stored(Arc<Subscription>),
    /// How many events match.
    Count(String, Asked),
    /// NIP-77.
    NegOpen(String, Asked, String),
    /// NIP-77.
    NegMsg(String, String),
    /// NIP-77.
    NegClose(String),
    /// A message of NIP-77 that is refused, and why: it ends the reconciliation of its id.
    NegRefused(String, String),
}

/// A question that waits its turn, and the room it takes up.
pub type Waiting = (Ask, OwnedSemaphorePermit);

#[derive(Debug)]
struct Negotiation {
    reconciliation: Reconciliation,
    until: Instant,
    _items: OwnedSemaphorePermit,
}

/// Answers the questions of one connection.
#[derive(Debug)]
pub struct Answers {
    connection: Arc<Connection>,
    storage: Arc<Storage>,
    filter_limit: usize,
    /// Ids that reconciliations of all connections may hold.
    items: Arc<Semaphore>,
    /// Bounded by [`NEGOTIATIONS`]; each ends with the connection or when it is idle.
    negotiations: HashMap<String, Negotiation>,
}

impl Completeness {
    /// That of two filters together: more of one is more of both.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::More, _) | (_, Self::More) => Self::More,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Finish, Self::Finish) => Self::Finish,
        }
    }
}

impl Answers {
    /// Nothing was asked yet. `items` are for the reconciliations of all connections.
    pub fn new(
        connection: Arc<Connection>,
        storage: Arc<Storage>,
        filter_limit: usize,
        items: Arc<Semaphore>,
    ) -> Self {
        Self {
            connection,
            storage,
            filter_limit,
            items,
            negotiations: HashMap::new(),
        }
    }

    /// Answers what comes, in order, until nobody can ask any more.
    pub async fn run(mut self, mut asks: mpsc::Receiver<Waiting>) {
        loop {
            let next = self.negotiations.values().map(|n| n.until).min();
            let asked = match next {
                None => asks.recv().await,
                Some(until) => tokio::select! {
                    asked = asks.recv() => asked,
                    () = tokio::time::sleep_until(until) => {
                        self.end_idle().await;
                        continue;
                    }
                },
            };
            let Some((ask, _room)) = asked else { return };
            // Boxed: idle connections should not have room for all this.
            Box::pin(self.answer(ask)).await;
        }
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Stored(subscription) => self.stored(&subscription).await,
            Ask::Count(id, asked) => {
                let answer = match self.storage.count(asked.filter.to_filter()).await {
                    Ok(count) => message::count(&id, count),
                    Err(error) => message::closed(&id, &format!("error: {error}")),
                };
                self.say(answer).await;
            }
            Ask::NegOpen(id, asked, first) => {
                let answer = self.open(&id, &asked.filter, &first).await;
                self.say(answer).await;
            }
            Ask::NegMsg(id, next) => {
                let answer = self.step(&id, &next);
                self.say(answer).await;
            }
            Ask::NegClose(id) => {
                self.negotiations.remove(&id);
            }
            Ask::NegRefused(id, reason) => {
                self.negotiations.remove(&id);
                self.say(message::negotiation_error(&id, &reason)).await;
            }
        }
    }

    async fn say(&self, text: String) -> bool {
        self.connection.outbox().say(Outgoing::Text(text)).await
    }

    async fn stored(&self, subscription: &Arc<Subscription>) {
        let (outbox, number) = (self.connection.outbox(), subscription.number());
        let mut sent = HashSet::new();
        let mut completeness = Completeness::Finish;
        for filter in subscription.filters() {
            if filter.limit == Some(0) {
                completeness = completeness.and(Completeness::Unknown);
                continue;
            }
            if !outbox.holds(number) {
                // Closed or replaced while it waited its turn.
                return;
            }
            let most = self.most(filter);
            // One more than is sent, to know whether there is one (NIP-67).
            let asked = filter.to_filter().limit(most.saturating_add(1));
            let mut stored = self.storage.stored(asked);
            let mut found = 0;
            loop {
                match stored.next().await {
                    Ok(None) => break,
                    Ok(Some(_)) if found == most => {
                        completeness = completeness.and(Completeness::More);
                        break;
                    }
                    Ok(Some(event)) => {
                        found += 1;
                        if !outbox.holds(number) {
                            return;
                        }
                        // Filters may overlap.
                        if !sent.insert(event.id) {
                            continue;
                        }
                        let message = Outgoing::Event {
                            subscription: subscription.id().clone(),
                            event: event.json,
                        };
                        if !outbox.say(message).await {
                            return;
                        }
                    }
                    Err(error) => {
                        if outbox.holds(number) {
                            self.connection.end(subscription);
                            let reason = format!("error: {error}");
                            self.say(message::closed(subscription.id(), &reason)).await;
                        }
                        return;
                    }
                }
            }
        }
        let end = message::end_of_stored(subscription.id(), completeness);
        let named = message::named_events(subscription.filters());
        if named == Some(sent.len()) && outbox.holds(number) {
            // Everything that was asked for by id is there: nothing can follow.
            self.connection.end(subscription);
            self.say(end).await;
            self.say(message::closed(subscription.id(), "")).await;
        } else {
            outbox.release(number, Outgoing::Text(end), &sent);
        }
    }

    /// How many stored events a filter is answered with at most.
    fn most(&self, filter: &KeptFilter) -> usize {
        let named = filter.ids().map_or(0, <[_]>::len);
        match filter.limit {
            Some(limit) => limit.min(self.filter_limit),
            None if named > 0 => named,
            None => self.filter_limit,
        }
    }

    async fn open(&mut self, id: &str, filter: &KeptFilter, first: &str) -> String {
        self.negotiations.remove(id);
        if self.negotiations.len() >= NEGOTIATIONS {
            let reason = format!("blocked: {NEGOTIATIONS} reconciliations at once are allowed");
            return message::negotiation_error(id, &reason);
        }
        let items = match self.storage.items(filter.to_filter(), ITEMS).await {
            Ok(Some(items)) => items,
            Ok(None) => {
                let reason = format!("blocked: more than {ITEMS} events match; narrow the filter");
                return message::negotiation_error(id, &reason);
            }
            Err(error) => return message::negotiation_error(id, &format!("error: {error}")),
        };
        let held = u32::try_from(items.len().max(LEAST_ITEMS)).unwrap_or(u32::MAX);
        let Ok(held) = self.items.clone().try_acquire_many_owned(held) else {
            return message::negotiation_error(id, "blocked: too many reconciliations, try later");
        };
        match Reconciliation::open(items, first).await {
            Ok((reconciliation, answer)) => {
                let negotiation = Negotiation {
                    reconciliation,
                    until: Instant::now() + NEGOTIATION_IDLE,
                    _items: held,
                };
                self.negotiations.insert(id.to_owned(), negotiation);
                message::negotiation(id, &answer)
            }
            Err(error) => message::negotiation_error(id, &error.reason()),
        }
    }

    fn step(&mut self, id: &str, next: &str) -> String {
        let Some(negotiation) = self.negotiations.get_mut(id) else {
            return message::negotiation_error(id, "closed: no such reconciliation");
        };
        negotiation.until = Instant::now() + NEGOTIATION_IDLE;
        match negotiation.reconciliation.step(next) {
            Ok(answer) => message::negotiation(id, &answer),
            Err(error) => {
                self.negotiations.remove(id);
                message::negotiation_error(id, &error.reason())
            }
        }
    }

    async fn end_idle(&mut self) {
        let now = Instant::now();
        let idle = |(id, n): (&String, &Negotiation)| (n.until <= now).then(|| id.clone());
        let idle: Vec<String> = self.negotiations.iter().filter_map(idle).collect();
        for id in idle {
            self.negotiations.remove(&id);
            let answer = message::negotiation_error(&id, "closed: nothing was said for too long");
            self.say(answer).await;
        }
    }
}
