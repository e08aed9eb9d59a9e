//! The store as if what has expired (NIP-40) were not there.
//!
//! The library leaves expired events out of its answers, but only after the store has counted them
//! towards the limit: enough of them would hide everything older.

use nostr::{Event, EventId, Filter, Timestamp, util::BoxedFuture};
use nostr_database::{
    Backend, DatabaseEventStatus, Events, Features, NostrDatabase, SaveEventStatus, error::Error,
};
use std::sync::Arc;

/// How many times as many events as are wanted are looked at, at most.
const MOST: usize = 16;

/// Hides expired events from queries.
#[derive(Debug)]
pub struct Unexpired(pub Arc<dyn NostrDatabase>);

impl NostrDatabase for Unexpired {
    fn backend(&self) -> Backend {
        self.0.backend()
    }

    fn features(&self) -> Features {
        self.0.features()
    }

    fn save_event<'a>(
        &'a self,
        event: &'a Event,
    ) -> BoxedFuture<'a, Result<SaveEventStatus, Error>> {
        self.0.save_event(event)
    }

    fn check_id<'a>(
        &'a self,
        event_id: &'a EventId,
    ) -> BoxedFuture<'a, Result<DatabaseEventStatus, Error>> {
        self.0.check_id(event_id)
    }

    fn event_by_id<'a>(
        &'a self,
        event_id: &'a EventId,
    ) -> BoxedFuture<'a, Result<Option<Event>, Error>> {
        self.0.event_by_id(event_id)
    }

    fn count(&self, filter: Filter) -> BoxedFuture<'_, Result<usize, Error>> {
        self.0.count(filter)
    }

    fn query(&self, filter: Filter) -> BoxedFuture<'_, Result<Events, Error>> {
        Box::pin(async move {
            let wanted = filter.limit.unwrap_or(usize::MAX);
            let mut asked = wanted;
            loop {
                let mut wider = filter.clone();
                wider.limit = filter.limit.map(|_| asked);
                let found = self.0.query(wider).await?;
                let all = found.len();
                let now = Timestamp::now();
                if !found.iter().any(|event| event.is_expired_at(now)) {
                    return Ok(found);
                }
                let mut valid = Events::new(&filter);
                valid.extend(found.into_iter().filter(|event| !event.is_expired_at(now)));
                if valid.len() >= wanted || all < asked || asked / MOST >= wanted {
                    return Ok(valid);
                }
                asked *= 2;
            }
        })
    }

    fn negentropy_items(
        &self,
        filter: Filter,
    ) -> BoxedFuture<'_, Result<Vec<(EventId, Timestamp)>, Error>> {
        self.0.negentropy_items(filter)
    }

    fn delete(&self, filter: Filter) -> BoxedFuture<'_, Result<(), Error>> {
        self.0.delete(filter)
    }

    fn wipe(&self) -> BoxedFuture<'_, Result<(), Error>> {
        self.0.wipe()
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind, Tag, event::FinalizeEvent};
    use nostr_memory::MemoryDatabase;

    use super::*;

    #[tokio::test]
    async fn expired_events_take_nobodys_place() {
        let database = Arc::new(MemoryDatabase::unbounded());
        let keys = Keys::generate();
        for second in 1..=100_u64 {
            let mut builder = EventBuilder::new(Kind::TextNote, "")
                .custom_created_at(Timestamp::from_secs(second));
            if second > 20 {
                builder = builder.tag(Tag::parse(["expiration", "200"]).unwrap());
            }
            let event = builder.finalize(&keys).unwrap();
            database.save_event(&event).await.unwrap();
        }
        let unexpired = Unexpired(database);
        for (limit, expected) in [(Some(10), 10), (Some(20), 20), (Some(50), 20), (None, 20)] {
            let mut filter = Filter::new();
            filter.limit = limit;
            let found = unexpired.query(filter).await.unwrap();
            assert_eq!(found.len(), expected);
            let newest = found.iter().next().unwrap().created_at;
            assert_eq!(newest, Timestamp::from_secs(20));
        }
    }
}
