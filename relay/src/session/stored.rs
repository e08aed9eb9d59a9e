//! What is stored, as it is read: ids first, a page at a time, and each event when its turn has come. A
//! client that reads slowly holds ids, and one event on its way.
//!
//! Scans take memory while they run, as the database reads all of an event to see whether it matches: few
//! run at once, and each for a page.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    thread::available_parallelism,
};

use nostr::{EventId, Filter, Timestamp};
use nostr_database::NostrDatabase;
use tokio::sync::Semaphore;

use crate::{live::outbox::EventText, nip34::has_expired};

/// Events that one page of an answer may have.
const PAGE: usize = 128;
/// Events that are looked up at once where only ids are kept.
const PAGE_OF_IDS: usize = 1_024;

/// The store could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the event store did not answer")]
pub struct Unanswered(#[from] nostr_database::error::Error);

/// One stored event.
#[derive(Debug)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// All of it, as JSON.
    pub json: EventText,
}

/// An event's id and when it was made.
pub type Item = (EventId, Timestamp);

/// Asks the store, for those outside.
#[derive(Debug)]
pub struct Storage {
    database: Arc<dyn NostrDatabase>,
    scans: Semaphore,
}

impl Storage {
    /// Over this store.
    pub fn new(database: Arc<dyn NostrDatabase>) -> Arc<Self> {
        let scans = available_parallelism().map_or(2, usize::from);
        Arc::new(Self {
            database,
            scans: Semaphore::new(scans),
        })
    }

    /// The stored events that match this filter, newest first, as many as its limit says.
    pub fn stored(self: &Arc<Self>, filter: Filter) -> Stored {
        Stored {
            pages: Pages::new(self.clone(), filter, PAGE),
            ids: VecDeque::new(),
        }
    }

    /// How many stored events match.
    pub async fn count(self: &Arc<Self>, filter: Filter) -> Result<usize, Unanswered> {
        let is_simple = filter.ids.is_none()
            && filter.authors.is_none()
            && filter.kinds.is_none()
            && filter.generic_tags.is_empty();
        if is_simple {
            return Ok(self.database.count(filter).await?);
        }
        let mut pages = Pages::new(self.clone(), filter, PAGE_OF_IDS);
        let mut count = 0;
        while let Some(page) = pages.next().await? {
            count += page.len();
        }
        Ok(count)
    }

    /// Ids and times of all that match, newest first; `None`: there are more than `most`.
    pub async fn items(
        self: &Arc<Self>,
        filter: Filter,
        most: usize,
    ) -> Result<Option<Vec<Item>>, Unanswered> {
        let mut pages = Pages::new(self.clone(), filter, PAGE_OF_IDS);
        let mut items = Vec::new();
        while let Some(page) = pages.next().await? {
            if items.len() + page.len() > most {
                return Ok(None);
            }
            items.extend(page);
        }
        Ok(Some(items))
    }

    /// One look into the store.
    async fn scan(&self, filter: Filter) -> Result<Vec<Item>, Unanswered> {
        // It is never closed.
        let _permit = self.scans.acquire().await;
        Ok(self.database.negentropy_items(filter).await?)
    }
}

/// What matches a filter, newest first, page by page, each beginning in the second in which the last one
/// ended.
#[derive(Debug)]
struct Pages {
    storage: Arc<Storage>,
    filter: Filter,
    /// How many more events the limit allows.
    left: usize,
    /// The oldest second seen, and the events of that second that were given out already.
    at: Option<Timestamp>,
    seen: HashSet<EventId>,
    usual: usize,
    /// How many new events a page may have; more than usual when one second has more.
    page: usize,
    is_complete: bool,
}

impl Pages {
    fn new(storage: Arc<Storage>, filter: Filter, usual: usize) -> Self {
        Self {
            storage,
            left: filter.limit.unwrap_or(usize::MAX),
            filter,
            at: None,
            seen: HashSet::new(),
            usual,
            page: usual,
            is_complete: false,
        }
    }

    /// The next page; `None`: there is none.
    async fn next(&mut self) -> Result<Option<Vec<Item>>, Unanswered> {
        while !self.is_complete && self.left > 0 {
            let page = match self.filter.ids.is_some() {
                true => self.named().await?,
                false => self.matching().await?,
            };
            if !page.is_empty() {
                self.left -= page.len();
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// What is asked for by its ids is one page: which of them are the newest shows when all are found.
    async fn named(&mut self) -> Result<Vec<Item>, Unanswered> {
        self.is_complete = true;
        let ids: Vec<EventId> = self.filter.ids.iter().flatten().copied().collect();
        let mut items = Vec::new();
        for some in ids.chunks(PAGE) {
            let mut filter = self.filter.clone();
            filter.limit = None;
            filter.ids = Some(some.iter().copied().collect());
            items.extend(self.storage.scan(filter).await?);
        }
        items.sort_unstable_by(newest_first);
        items.truncate(self.left);
        Ok(items)
    }

    async fn matching(&mut self) -> Result<Vec<Item>, Unanswered> {
        let asked = self.page.min(self.left).saturating_add(self.seen.len());
        let mut filter = self.filter.clone().limit(asked);
        if let Some(at) = self.at {
            filter = filter.until(at);
        }
        let mut items = self.storage.scan(filter).await?;
        items.sort_unstable_by(newest_first);
        items.truncate(asked);
        self.is_complete = items.len() < asked;
        let mut new = Vec::new();
        for (id, at) in items {
            if self.at != Some(at) {
                self.at = Some(at);
                self.seen.clear();
            }
            if self.seen.insert(id) && new.len() < self.left {
                new.push((id, at));
            }
        }
        self.page = match new.is_empty() {
            true => self.page.saturating_mul(2),
            false => self.usual,
        };
        Ok(new)
    }
}

fn newest_first(a: &Item, b: &Item) -> std::cmp::Ordering {
    b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0))
}

/// Stored events on their way.
#[derive(Debug)]
pub struct Stored {
    pages: Pages,
    /// Those of the page that are still to be read.
    ids: VecDeque<EventId>,
}

impl Stored {
    /// The next event; `None` when there are no more.
    pub async fn next(&mut self) -> Result<Option<StoredEvent>, Unanswered> {
        loop {
            let Some(id) = self.ids.pop_front() else {
                match self.pages.next().await? {
                    Some(page) => self.ids.extend(page.into_iter().map(|(id, _)| id)),
                    None => return Ok(None),
                }
                continue;
            };
            // It may have gone since its id was read, or expire just now.
            let event = self.pages.storage.database.event_by_id(&id).await?;
            if let Some(event) = event.filter(|event| !has_expired(event, Timestamp::now())) {
                let json = event.as_json().into();
                return Ok(Some(StoredEvent { id, json }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind, event::FinalizeEvent};
    use nostr_memory::MemoryDatabase;

    use super::*;

    /// So many events, four of each second.
    async fn storage(events: usize) -> (Arc<Storage>, Vec<EventId>) {
        let database = Arc::new(MemoryDatabase::unbounded());
        let keys = Keys::generate();
        let mut items = Vec::new();
        for number in 0..events {
            let at = Timestamp::from_secs(1_000 + number as u64 / 4);
            let event = EventBuilder::new(Kind::TextNote, number.to_string())
                .custom_created_at(at)
                .finalize(&keys)
                .unwrap();
            database.save_event(&event).await.unwrap();
            items.push((event.id, at));
        }
        items.sort_unstable_by(newest_first);
        let ids = items.into_iter().map(|(id, _)| id).collect();
        (Storage::new(database), ids)
    }

    async fn all(mut stored: Stored) -> Vec<EventId> {
        let mut ids = Vec::new();
        while let Some(event) = stored.next().await.unwrap() {
            ids.push(event.id);
        }
        ids
    }

    #[tokio::test]
    async fn the_newest_come_first_and_each_once() {
        let (storage, ids) = storage(600).await;
        for limit in [0, 1, PAGE - 1, PAGE, PAGE + 1, 500, 600, 601] {
            let stored = storage.stored(Filter::new().limit(limit));
            assert_eq!(all(stored).await, ids[..limit.min(600)], "{limit}");
        }
        let kind = Filter::new().kind(Kind::TextNote);
        assert_eq!(all(storage.stored(kind.clone())).await, ids);
        assert_eq!(storage.count(kind.clone()).await.unwrap(), 600);
        assert_eq!(storage.count(kind.clone().limit(7)).await.unwrap(), 7);
        assert_eq!(storage.count(Filter::new()).await.unwrap(), 600);
        let items = storage.items(kind.clone(), 600).await.unwrap().unwrap();
        let found: Vec<EventId> = items.into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, ids);
        assert!(storage.items(kind, 599).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn of_those_named_the_newest_come_first_too() {
        let (storage, ids) = storage(600).await;
        let named = Filter::new().ids(ids.iter().copied());
        assert_eq!(all(storage.stored(named.clone())).await, ids);
        assert_eq!(all(storage.stored(named.limit(5))).await, ids[..5]);
    }

    #[tokio::test]
    async fn many_of_one_second_are_all_found() {
        let database = Arc::new(MemoryDatabase::unbounded());
        let keys = Keys::generate();
        for number in 0..3 * PAGE {
            let event = EventBuilder::new(Kind::TextNote, number.to_string())
                .custom_created_at(Timestamp::from_secs(7))
                .finalize(&keys)
                .unwrap();
            database.save_event(&event).await.unwrap();
        }
        let storage = Storage::new(database);
        let kind = Filter::new().kind(Kind::TextNote);
        assert_eq!(all(storage.stored(kind)).await.len(), 3 * PAGE);
    }

    #[tokio::test]
    async fn what_goes_meanwhile_is_passed_over() {
        let (storage, ids) = storage(10).await;
        let mut stored = storage.stored(Filter::new().limit(10));
        assert_eq!(stored.next().await.unwrap().unwrap().id, ids[0]);
        let gone = Filter::new().ids([ids[1], ids[2]]);
        storage.database.delete(gone).await.unwrap();
        assert_eq!(all(stored).await, ids[3..]);
    }
}
