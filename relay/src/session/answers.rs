//! Answers from the store, one at a time for each connection.
//!
//! A client that asks much or reads slowly waits for itself; what it holds meanwhile is one answer
//! on its way and a few reconciliations.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use nostr::Filter;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

use super::{
    library::{Library, Reconciliation},
    message,
};
use crate::live::{Connection, Subscription, outbox::Outgoing};

/// Most reconciliations of one connection.
pub const NEGOTIATIONS: usize = 4;
/// Most reconciliations of all connections: each holds the ids it compares.
pub const ALL_NEGOTIATIONS: usize = 128;
/// A reconciliation whose client says nothing for so long is over.
const NEGOTIATION_IDLE: Duration = Duration::from_secs(120);

/// What the store is asked.
#[derive(Debug)]
pub enum Ask {
    /// The stored events of a new subscription.
    Stored(Arc<Subscription>),
    /// How many events match.
    Count(String, Filter),
    /// NIP-77.
    NegOpen(String, Filter, String),
    /// NIP-77.
    NegMsg(String, String),
    /// NIP-77.
    NegClose(String),
}

/// A question that waits its turn, and the room it takes up.
pub type Waiting = (Ask, OwnedSemaphorePermit);

#[derive(Debug)]
struct Negotiation {
    reconciliation: Reconciliation,
    until: Instant,
    _seat: OwnedSemaphorePermit,
}

/// Answers the questions of one connection.
#[derive(Debug)]
pub struct Answers {
    connection: Arc<Connection>,
    library: Arc<Library>,
    filter_limit: usize,
    seats: Arc<Semaphore>,
    /// Bounded by [`NEGOTIATIONS`]; each ends with the connection or when it is idle.
    negotiations: HashMap<String, Negotiation>,
}

impl Answers {
    /// Nothing was asked yet. `seats` are for the reconciliations of all connections.
    pub fn new(
        connection: Arc<Connection>,
        library: Arc<Library>,
        filter_limit: usize,
        seats: Arc<Semaphore>,
    ) -> Self {
        Self {
            connection,
            library,
            filter_limit,
            seats,
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
            Ask::Count(id, filter) => {
                let answer = match self.library.count(&filter).await {
                    Ok(count) => message::count(&id, count),
                    Err(error) => message::closed(&id, &format!("error: {error}")),
                };
                self.say(answer).await;
            }
            Ask::NegOpen(id, filter, first) => {
                let answer = self.open(&id, &filter, &first).await;
                self.say(answer).await;
            }
            Ask::NegMsg(id, next) => {
                let answer = self.step(&id, &next).await;
                self.say(answer).await;
            }
            Ask::NegClose(id) => {
                self.negotiations.remove(&id);
            }
        }
    }

    async fn say(&self, text: String) -> bool {
        self.connection.outbox().say(Outgoing::Text(text)).await
    }

    async fn stored(&self, subscription: &Arc<Subscription>) {
        let (outbox, number) = (self.connection.outbox(), subscription.number());
        let mut sent = HashSet::new();
        for filter in subscription.filters() {
            if filter.limit == Some(0) {
                continue;
            }
            if !outbox.holds(number) {
                // Closed or replaced while it waited its turn.
                return;
            }
            let mut stored = self.library.stored(self.capped(filter));
            loop {
                match stored.next().await {
                    Ok(None) => break,
                    Ok(Some(event)) => {
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
        let end = message::end_of_stored(subscription.id());
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

    fn capped(&self, filter: &Filter) -> Filter {
        let mut filter = filter.clone();
        let named = filter.ids.as_ref().map_or(0, |ids| ids.len());
        filter.limit = Some(match filter.limit {
            Some(limit) => limit.min(self.filter_limit),
            None if named > 0 => named,
            None => self.filter_limit,
        });
        filter
    }

    async fn open(&mut self, id: &str, filter: &Filter, first: &str) -> String {
        self.negotiations.remove(id);
        if self.negotiations.len() >= NEGOTIATIONS {
            let reason = format!("blocked: {NEGOTIATIONS} reconciliations at once are allowed");
            return message::negotiation_error(id, &reason);
        }
        let Ok(seat) = self.seats.clone().try_acquire_owned() else {
            return message::negotiation_error(id, "blocked: too many reconciliations, try later");
        };
        match self.library.reconcile(filter, first).await {
            Ok((reconciliation, answer)) => {
                let negotiation = Negotiation {
                    reconciliation,
                    until: Instant::now() + NEGOTIATION_IDLE,
                    _seat: seat,
                };
                self.negotiations.insert(id.to_owned(), negotiation);
                message::negotiation(id, &answer)
            }
            Err(error) => message::negotiation_error(id, &format!("error: {error}")),
        }
    }

    async fn step(&mut self, id: &str, next: &str) -> String {
        let Some(negotiation) = self.negotiations.get_mut(id) else {
            return message::negotiation_error(id, "closed: no such reconciliation");
        };
        negotiation.until = Instant::now() + NEGOTIATION_IDLE;
        match negotiation.reconciliation.step(next).await {
            Ok(answer) => message::negotiation(id, &answer),
            Err(error) => {
                self.negotiations.remove(id);
                message::negotiation_error(id, &format!("error: {error}"))
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
