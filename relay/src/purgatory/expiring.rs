//! Events that say when they expire (NIP-40), by that time, whether they wait or are served: nobody
//! looks through the others for them. Here they are known; [`crate::expiry`] takes them away.

use std::sync::Arc;

use dashmap::DashMap;
use grasp_proto::words::EventId;

use super::{Purgatory, deadlines::Deadlines, records::EXPIRING};
use crate::{
    clock::{Clock, Moment},
    journal::{JournalError, Record, key, shelf::Act},
    store::Unseen,
};

/// On the journal's shelf: what was stored before there was this index is in it.
const ADOPTED: &[u8] = b"x";

/// As many as were accepted and have not expired, whatever became of them meanwhile.
#[derive(Debug)]
pub struct Expiring {
    clock: Clock,
    moments: DashMap<EventId, Moment>,
    deadlines: Deadlines<EventId>,
}

impl Expiring {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            moments: DashMap::new(),
            deadlines: Deadlines::default(),
        }
    }

    /// Puts one in, as the journal had it.
    pub(super) fn restore(&self, id: EventId, at: Moment) {
        let old = self.moments.insert(id, at);
        self.deadlines.change(&id, old, Some(at));
    }
}

impl Unseen for Expiring {
    fn has_expired(&self, id: &nostr::EventId) -> bool {
        let at = self.moments.get(&EventId::from_bytes(id.to_bytes()));
        at.is_some_and(|at| *at <= self.clock.now())
    }

    fn any_has(&self) -> bool {
        let first = self.deadlines.first();
        first.is_some_and(|first| first <= self.clock.now())
    }
}

impl Purgatory {
    /// Who knows which events have expired.
    pub fn expiring(&self) -> Arc<Expiring> {
        self.expiring.clone()
    }

    /// An event that is about to be accepted expires then: durable when this returns.
    pub async fn note_expiring(&self, id: EventId, at: Moment) -> Result<(), JournalError> {
        if self
            .expiring
            .moments
            .get(&id)
            .is_some_and(|known| *known == at)
        {
            return Ok(());
        }
        self.expiring.restore(id, at);
        let record = Record::Expiring {
            id: id.to_hex(),
            at,
        };
        self.journal
            .keep(key(EXPIRING, id.as_bytes()), &record)
            .await
    }

    /// At most `most` that have expired, the earliest first.
    pub fn expired_events(&self, now: Moment, most: usize) -> Vec<EventId> {
        self.expiring.deadlines.due(now, most)
    }

    /// One has expired, and nothing of it is left; or it was not accepted after all.
    pub fn forget_expiring(&self, id: &EventId) {
        if let Some((_, at)) = self.expiring.moments.remove(id) {
            self.expiring.deadlines.change(id, Some(at), None);
            self.journal.forget(key(EXPIRING, id.as_bytes()));
        }
    }

    /// Whether the events that were stored before there was this index are in it.
    pub async fn knows_all_expiring(&self) -> Result<bool, JournalError> {
        let look = self.journal.look(|look| look.get(&key(EXPIRING, ADOPTED)));
        Ok(look.await?.is_some())
    }

    /// They are.
    pub async fn note_all_expiring_known(&self) -> Result<(), JournalError> {
        let note = Act::Put(key(EXPIRING, ADOPTED), Vec::new());
        self.journal.shelve(vec![note]).await
    }
}
