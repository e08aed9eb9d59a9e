//! Served pull requests that say when they expire (NIP-40), by that time: their refs go with them, and
//! nobody looks through the others for that.

use dashmap::DashMap;
use grasp_proto::words::EventId;

use super::{Purgatory, deadlines::Deadlines, records::EXPIRING};
use crate::{
    clock::Moment,
    journal::{JournalError, Record, key},
};

/// As many as were served and have not expired, whatever became of them meanwhile.
#[derive(Debug, Default)]
pub struct Expiring {
    moments: DashMap<EventId, Moment>,
    deadlines: Deadlines<EventId>,
}

impl Expiring {
    /// Puts one in, as the journal had it.
    pub(super) fn restore(&self, id: EventId, at: Moment) {
        let old = self.moments.insert(id, at);
        self.deadlines.change(&id, old, Some(at));
    }
}

impl Purgatory {
    /// A pull request that is about to be served expires then: durable when this returns.
    pub async fn note_expiring(&self, id: EventId, at: Moment) -> Result<(), JournalError> {
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
    pub fn expired_requests(&self, now: Moment, most: usize) -> Vec<EventId> {
        self.expiring.deadlines.due(now, most)
    }

    /// One has expired, and nothing of it is left.
    pub fn forget_expiring(&self, id: &EventId) {
        if let Some((_, at)) = self.expiring.moments.remove(id) {
            self.expiring.deadlines.change(id, Some(at), None);
            self.journal.forget(key(EXPIRING, id.as_bytes()));
        }
    }
}
