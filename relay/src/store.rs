//! Events kept: LMDB or memory. Scans run off the async threads.
//!
//! The database's own handling of deletions (NIP-09) and vanishing (NIP-62) is off: deletions are
//! judged by `admit`, by rules that are ours.

pub mod format;
mod hidden;
mod snapshot;

use std::{
    cmp::Ordering,
    collections::HashSet,
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
};

use grasp_proto::words::{EventId as Id, Identifier, Npub, RepoId};
use nostr::{
    Event, EventId, Filter, Kind, PublicKey, Timestamp,
    filter::{Alphabet, SingleLetterTag},
    util::BoxedFuture,
};
use nostr_database::{
    Backend, DatabaseEventStatus, Events, Features, NostrDatabase, RejectedReason, SaveEventStatus,
    error::Error,
};
use nostr_lmdb::NostrLmdb;
use nostr_memory::MemoryDatabase;

use self::{hidden::Withheld, snapshot::Kept};
use crate::{config, nip34};

pub use self::{
    hidden::{Unseen, matches_nothing},
    snapshot::Snapshot,
};

/// The `d` tag.
const D: SingleLetterTag = SingleLetterTag::lowercase(Alphabet::D);

/// The database failed. Nothing is known about what was asked.
#[derive(Debug, thiserror::Error)]
#[error("the event store failed: {0}")]
pub struct StoreError(#[from] Error);

/// What became of an event that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// It is kept now.
    New,
    /// It was kept before.
    Known,
    /// A later version of it is kept.
    Replaced,
}

/// The events that are served. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    /// With what is withheld.
    whole: Arc<dyn NostrDatabase>,
    database: Arc<dyn NostrDatabase>,
    /// For those outside: what has expired is not there.
    public: Arc<dyn NostrDatabase>,
    withheld: Withheld,
    /// Who knows by their ids which events have expired.
    unseen: Arc<OnceLock<Arc<dyn Unseen>>>,
    /// Where it lies on disk; `None`: in memory.
    kept: Option<Arc<Kept>>,
}

impl Store {
    /// Opens the store of this kind, on disk in `directory`.
    pub async fn open(backend: config::Backend, directory: &Path) -> Result<Self, StoreError> {
        let database: Arc<dyn NostrDatabase> = match backend {
            config::Backend::Lmdb => {
                let lmdb = NostrLmdb::builder(directory)
                    .process_nip09(false)
                    .process_nip62(false);
                let lmdb = Arc::new(lmdb.build().await?);
                let kept = Kept::find(directory).map_err(Error::other)?;
                return Ok(Self::over(lmdb, Some(Arc::new(kept))));
            }
            config::Backend::Memory => Arc::new(
                MemoryDatabase::builder()
                    .process_nip09(false)
                    .process_nip62(false)
                    .build(),
            ),
        };
        Ok(Self::over(database, None))
    }

    fn over(whole: Arc<dyn NostrDatabase>, kept: Option<Arc<Kept>>) -> Self {
        let (withheld, unseen) = (Withheld::default(), Arc::default());
        let inside = OffThread {
            whole: whole.clone(),
            withheld: withheld.clone(),
            unseen: None,
        };
        let outside = OffThread {
            whole: whole.clone(),
            withheld: withheld.clone(),
            unseen: Some(Arc::clone(&unseen)),
        };
        Self {
            database: Arc::new(inside),
            public: Arc::new(outside),
            whole,
            withheld,
            unseen,
            kept,
        }
    }

    /// Everything that is kept by now, what is withheld too.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        match &self.kept {
            Some(kept) => Ok(kept.snapshot().map_err(Error::other)?),
            None => {
                let events = self.whole.query(Filter::new()).await?;
                Ok(Snapshot::of(events.into_iter().collect()))
            }
        }
    }

    /// The same events, for one who withholds others of them, so far none.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self::over(self.whole.clone(), self.kept.clone())
    }

    /// Just these are withheld from now on: kept, but to be found by nobody.
    pub fn withhold(&self, ids: impl IntoIterator<Item = Id>) {
        let ids = ids.into_iter();
        let ids = ids.map(|id| EventId::from_byte_array(*id.as_bytes()));
        self.withheld.replace(ids.collect());
    }

    /// These are withheld as well.
    pub fn withhold_too(&self, ids: impl IntoIterator<Item = Id>) {
        let ids = ids.into_iter();
        let ids = ids.map(|id| EventId::from_byte_array(*id.as_bytes()));
        self.withheld.add(ids);
    }

    /// What is withheld.
    pub fn withheld(&self) -> HashSet<Id> {
        let ids = self.withheld.now();
        ids.iter().map(|id| Id::from_bytes(id.to_bytes())).collect()
    }

    /// Whether anything is withheld.
    pub fn withholds(&self) -> bool {
        !self.withheld.now().is_empty()
    }

    /// The database for those outside, who only read it: what has expired (NIP-40) is not there, also
    /// before it is taken out.
    pub fn database(&self) -> Arc<dyn NostrDatabase> {
        self.public.clone()
    }

    /// From now on `who` says which events have expired, to those who see ids only. Once.
    pub fn hides_expired(&self, who: Arc<dyn Unseen>) {
        // There is one, and it is told once.
        let _ = self.unseen.set(who);
    }

    /// Ids and times of what matches, as those outside see it.
    pub async fn public_items(&self, filter: Filter) -> Result<Vec<(Id, Timestamp)>, StoreError> {
        Ok(words(self.public.negentropy_items(filter).await?))
    }

    /// Whether keeping an event would take another's place that it is no version of: the LMDB back
    /// end tells addresses apart by the first 182 bytes of their `d` tag only.
    pub async fn mistakes(&self, event: &Event) -> Result<bool, StoreError> {
        const TOLD_APART: usize = 182;
        let own = nip34::values(event, "d").next().unwrap_or_default();
        if !event.kind.is_addressable() || own.len() <= TOLD_APART {
            return Ok(false);
        }
        let own_events = Filter::new().author(event.pubkey).kind(event.kind);
        let mistaken = |other: &Event| {
            let name = nip34::values(other, "d").next().unwrap_or_default();
            name != own && name.as_bytes().get(..TOLD_APART) == own.as_bytes().get(..TOLD_APART)
        };
        Ok(self.query(own_events).await?.iter().any(mistaken))
    }

    /// Keeps an event; of a replaceable one only the latest version.
    pub async fn save(&self, event: &Event) -> Result<Saved, StoreError> {
        if self.mistakes(event).await? {
            return Err(Error::other("its d tag begins like that of another event").into());
        }
        let mut status = match self.database.save_event(event).await {
            // One bad event fails its whole batch, that is: others' too. Once more, by itself.
            Err(_) => self.database.save_event(event).await?,
            Ok(status) => status,
        };
        let is_replaced = status == SaveEventStatus::Rejected(RejectedReason::Replaced);
        if is_replaced && self.take_out_from_the_future(event).await? {
            status = self.database.save_event(event).await?;
        }
        match status {
            SaveEventStatus::Success => Ok(Saved::New),
            SaveEventStatus::Rejected(RejectedReason::Duplicate) => Ok(Saved::Known),
            SaveEventStatus::Rejected(RejectedReason::Replaced) => Ok(Saved::Replaced),
            SaveEventStatus::Rejected(reason) => {
                Err(Error::other(format!("it refused the event: {reason:?}")).into())
            }
        }
    }

    /// The database goes by time alone: a version that lies behind the horizon, which comes before all
    /// others, would keep its place. Says whether it was taken out.
    async fn take_out_from_the_future(&self, event: &Event) -> Result<bool, StoreError> {
        let whole = self.apart();
        let name = nip34::values(event, "d").next().unwrap_or_default();
        let stored = whole.version(event.kind, nip34::author_of(event), name);
        match stored.await? {
            Some(stored) if nip34::later(event, &stored).is_gt() => {
                let id = stored.id;
                tracing::warn!(%id, "a version from the future is replaced by one from now");
                whole.remove([nip34::id_of(&stored)]).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The event of this id.
    pub async fn by_id(&self, id: &Id) -> Result<Option<Event>, StoreError> {
        let id = EventId::from_byte_array(*id.as_bytes());
        Ok(self.database.event_by_id(&id).await?)
    }

    /// Whether the event of this id is kept.
    pub async fn has(&self, id: &Id) -> Result<bool, StoreError> {
        let id = EventId::from_byte_array(*id.as_bytes());
        Ok(self.database.check_id(&id).await? == DatabaseEventStatus::Saved)
    }

    /// The events of these ids, as far as they are kept.
    pub async fn by_ids(&self, ids: &[Id]) -> Result<Vec<Event>, StoreError> {
        // No ids at all would ask for everything.
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids = ids
            .iter()
            .map(|id| EventId::from_byte_array(*id.as_bytes()));
        self.query(Filter::new().ids(ids)).await
    }

    /// The version that is kept of what has this kind, author and name; without a name for events
    /// that are replaceable without one.
    pub async fn version(
        &self,
        kind: Kind,
        author: Npub,
        name: &str,
    ) -> Result<Option<Event>, StoreError> {
        if kind.is_addressable() {
            return self.addressable(kind, &author, name).await;
        }
        if !kind.is_replaceable() {
            return Ok(None);
        }
        let own = Filter::new().author(public_key(author)).kind(kind).limit(1);
        Ok(self.query(own).await?.into_iter().next())
    }

    /// What matches, latest first.
    pub async fn query(&self, filter: Filter) -> Result<Vec<Event>, StoreError> {
        Ok(self.database.query(filter).await?.into_iter().collect())
    }

    /// Ids and times of what matches.
    pub async fn items(&self, filter: Filter) -> Result<Vec<(Id, Timestamp)>, StoreError> {
        Ok(words(self.database.negentropy_items(filter).await?))
    }

    /// The addressable event of this author, kind and identifier.
    pub async fn addressable(
        &self,
        kind: Kind,
        author: &Npub,
        identifier: &str,
    ) -> Result<Option<Event>, StoreError> {
        let found = self.by_authors([*author], identifier).await?;
        Ok(found.into_iter().find(|event| event.kind == kind))
    }

    /// The announcement of a repository.
    pub async fn announcement(&self, repo: &RepoId) -> Result<Option<Event>, StoreError> {
        self.addressable(nip34::ANNOUNCEMENT, &repo.owner, repo.identifier.as_str())
            .await
    }

    /// The states by any of these authors, one each at most.
    pub async fn states(
        &self,
        authors: impl IntoIterator<Item = Npub>,
        identifier: &Identifier,
    ) -> Result<Vec<Event>, StoreError> {
        let mut found = self.by_authors(authors, identifier.as_str()).await?;
        found.retain(|event| event.kind == nip34::STATE);
        Ok(found)
    }

    /// Announcements and states by any of these authors, one of each at most.
    pub async fn of_repositories(
        &self,
        authors: impl IntoIterator<Item = Npub>,
        identifier: &Identifier,
    ) -> Result<Vec<Event>, StoreError> {
        let mut found = self.by_authors(authors, identifier.as_str()).await?;
        found.retain(|event| [nip34::ANNOUNCEMENT, nip34::STATE].contains(&event.kind));
        Ok(found)
    }

    /// Everything by these authors with this `d` tag. Without kinds, because with them the database
    /// walks all that an author ever wrote of the kind.
    async fn by_authors(
        &self,
        authors: impl IntoIterator<Item = Npub>,
        identifier: &str,
    ) -> Result<Vec<Event>, StoreError> {
        let authors = authors.into_iter().map(public_key);
        let filter = Filter::new().authors(authors).custom_tag(D, identifier);
        let mut found = self.query(filter).await?;
        found.retain(|event| nip34::values(event, "d").next() == Some(identifier));
        Ok(found)
    }

    /// Deletes these events.
    pub async fn remove(&self, ids: impl IntoIterator<Item = Id>) -> Result<(), StoreError> {
        let ids: Vec<EventId> = ids
            .into_iter()
            .map(|id| EventId::from_byte_array(*id.as_bytes()))
            .collect();
        if !ids.is_empty() {
            self.database.delete(Filter::new().ids(ids)).await?;
        }
        Ok(())
    }
}

fn words(items: Vec<(EventId, Timestamp)>) -> Vec<(Id, Timestamp)> {
    let word = |(id, at): (EventId, Timestamp)| (Id::from_bytes(id.to_bytes()), at);
    items.into_iter().map(word).collect()
}

/// The library's type for a key.
pub fn public_key(key: Npub) -> PublicKey {
    PublicKey::from_byte_array(*key.as_bytes())
}

/// A database whose scans run on blocking threads, and whose answers are right where the library's
/// are not.
struct OffThread {
    whole: Arc<dyn NostrDatabase>,
    withheld: Withheld,
    /// What has expired is hidden; by whom, where only ids are seen.
    unseen: Option<Arc<OnceLock<Arc<dyn Unseen>>>>,
}

impl fmt::Debug for OffThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.whole.fmt(f)
    }
}

impl OffThread {
    /// Drives one of the library's futures where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl for<'a> FnOnce(&'a dyn NostrDatabase) -> BoxedFuture<'a, Result<T, Error>>
        + Send
        + 'static,
    ) -> Result<T, Error> {
        let database = self.whole.clone();
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(work(&*database)))
            .await
            .map_err(Error::other)?
    }

    fn who_knows_expired(&self) -> Option<&Arc<dyn Unseen>> {
        self.unseen.as_ref()?.get()
    }

    /// Whether the event of this id is not to be found.
    fn hides(&self, id: &EventId) -> bool {
        let has_expired = |who: &Arc<dyn Unseen>| who.has_expired(id);
        self.withheld.now().contains(id) || self.who_knows_expired().is_some_and(has_expired)
    }

    /// Whether there is such an event at all.
    fn hides_any(&self) -> bool {
        !self.withheld.now().is_empty() || self.who_knows_expired().is_some_and(|who| who.any_has())
    }

    /// What matches, latest first, what is withheld among it.
    async fn everything(&self, mut filter: Filter) -> Result<Events, Error> {
        let limit = limit_of_ours(&mut filter);
        let ids_only = filter.clone();
        let found = self.blocking(|database| database.query(filter)).await?;
        let Some(limit) = limit else {
            return Ok(found);
        };
        let mut latest = Events::new(&ids_only.limit(limit));
        latest.extend(found.into_iter().take(limit));
        Ok(latest)
    }

    async fn all_items(&self, mut filter: Filter) -> Result<Vec<(EventId, Timestamp)>, Error> {
        let limit = limit_of_ours(&mut filter);
        let mut items = self
            .blocking(|database| database.negentropy_items(filter))
            .await?;
        if let Some(limit) = limit {
            items.sort_unstable_by(latest_first);
            items.truncate(limit);
        }
        Ok(items)
    }
}

/// How many to ask for next when `asked` brought `came`, of which `shown` are not withheld, and
/// `limit` are wanted; `None`: that is all.
fn ask_again(limit: usize, asked: usize, came: usize, shown: usize) -> Option<usize> {
    (shown < limit && came >= asked).then(|| asked.saturating_mul(2).max(1))
}

/// By author, kind and tag together, the LMDB back end goes through events in the order of their
/// ids and stops at the limit, wherever the latest are: the limit must be ours.
fn limit_of_ours(filter: &mut Filter) -> Option<usize> {
    let unordered = filter.authors.is_some() && filter.kinds.is_some();
    match unordered && !filter.generic_tags.is_empty() {
        true => filter.limit.take(),
        false => None,
    }
}

impl NostrDatabase for OffThread {
    fn backend(&self) -> Backend {
        self.whole.backend()
    }

    fn features(&self) -> Features {
        self.whole.features()
    }

    fn save_event<'a>(
        &'a self,
        event: &'a Event,
    ) -> BoxedFuture<'a, Result<SaveEventStatus, Error>> {
        Box::pin(async move {
            let status = self.whole.save_event(event).await?;
            let is_known = status == SaveEventStatus::Rejected(RejectedReason::Duplicate);
            // Accepted for another reason than before: it is there again.
            Ok(match is_known && self.withheld.release(&event.id) {
                true => SaveEventStatus::Success,
                false => status,
            })
        })
    }

    fn check_id<'a>(
        &'a self,
        event_id: &'a EventId,
    ) -> BoxedFuture<'a, Result<DatabaseEventStatus, Error>> {
        match self.hides(event_id) {
            true => Box::pin(async { Ok(DatabaseEventStatus::NotExistent) }),
            false => self.whole.check_id(event_id),
        }
    }

    fn event_by_id<'a>(
        &'a self,
        event_id: &'a EventId,
    ) -> BoxedFuture<'a, Result<Option<Event>, Error>> {
        match self.hides(event_id) {
            true => Box::pin(async { Ok(None) }),
            false => self.whole.event_by_id(event_id),
        }
    }

    fn count(&self, filter: Filter) -> BoxedFuture<'_, Result<usize, Error>> {
        if matches_nothing(&filter) {
            return Box::pin(async { Ok(0) });
        }
        if !self.hides_any() {
            return Box::pin(self.blocking(|database| database.count(filter)));
        }
        Box::pin(async move { Ok(self.negentropy_items(filter).await?.len()) })
    }

    fn query(&self, filter: Filter) -> BoxedFuture<'_, Result<Events, Error>> {
        if matches_nothing(&filter) {
            return Box::pin(async move { Ok(Events::new(&filter)) });
        }
        Box::pin(async move {
            let withheld = self.withheld.now();
            let now = self.unseen.as_ref().map(|_| Timestamp::now());
            let is_hidden = |event: &Event| {
                let has_expired = |now| nip34::has_expired(event, now) || self.hides(&event.id);
                withheld.contains(&event.id) || now.is_some_and(has_expired)
            };
            let limit = filter.limit.unwrap_or(usize::MAX);
            let mut next = filter.limit;
            loop {
                let mut asked = filter.clone();
                asked.limit = next;
                let found = self.everything(asked).await?;
                if !found.iter().any(is_hidden) {
                    return Ok(first_of(&filter, found, limit));
                }
                let came = found.len();
                let mut shown: Vec<Event> = found.into_iter().collect();
                shown.retain(|event| !is_hidden(event));
                next = next.and_then(|asked| ask_again(limit, asked, came, shown.len()));
                if next.is_none() {
                    return Ok(first_of(&filter, shown, limit));
                }
            }
        })
    }

    fn negentropy_items(
        &self,
        filter: Filter,
    ) -> BoxedFuture<'_, Result<Vec<(EventId, Timestamp)>, Error>> {
        if matches_nothing(&filter) {
            return Box::pin(async { Ok(Vec::new()) });
        }
        if !self.hides_any() {
            return Box::pin(self.all_items(filter));
        }
        Box::pin(async move {
            let limit = filter.limit.unwrap_or(usize::MAX);
            let mut next = filter.limit;
            loop {
                let mut asked = filter.clone();
                asked.limit = next;
                let mut items = self.all_items(asked).await?;
                let came = items.len();
                items.retain(|(id, _)| !self.hides(id));
                next = next.and_then(|asked| ask_again(limit, asked, came, items.len()));
                if next.is_none() {
                    items.sort_unstable_by(latest_first);
                    items.truncate(limit);
                    return Ok(items);
                }
            }
        })
    }

    fn delete(&self, filter: Filter) -> BoxedFuture<'_, Result<(), Error>> {
        self.whole.delete(filter)
    }

    fn wipe(&self) -> BoxedFuture<'_, Result<(), Error>> {
        self.whole.wipe()
    }
}

fn first_of(filter: &Filter, found: impl IntoIterator<Item = Event>, limit: usize) -> Events {
    let mut events = Events::new(filter);
    events.extend(found.into_iter().take(limit));
    events
}

fn latest_first(a: &(EventId, Timestamp), b: &(EventId, Timestamp)) -> Ordering {
    b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::testing::{event, keys};

    async fn stores() -> Vec<(Store, Option<tempfile::TempDir>)> {
        let directory = tempfile::tempdir().unwrap();
        let lmdb = Store::open(config::Backend::Lmdb, directory.path())
            .await
            .unwrap();
        let memory = Store::open(config::Backend::Memory, Path::new(""))
            .await
            .unwrap();
        vec![(lmdb, Some(directory)), (memory, None)]
    }

    #[tokio::test]
    async fn of_a_replaceable_event_the_latest_version_is_kept() {
        for (store, _directory) in stores().await {
            let state = |at| event(&keys(1), nip34::STATE, at, &[&["d", "x"]]);
            assert_eq!(store.save(&state(2)).await.unwrap(), Saved::New);
            assert_eq!(store.save(&state(2)).await.unwrap(), Saved::Known);
            assert_eq!(store.save(&state(1)).await.unwrap(), Saved::Replaced);
            assert_eq!(store.save(&state(3)).await.unwrap(), Saved::New);
            let author = nip34::author_of(&state(3));
            let identifier = Identifier::parse("x").unwrap();
            let kept = store.states([author], &identifier).await.unwrap();
            let ids: Vec<EventId> = kept.iter().map(|event| event.id).collect();
            assert_eq!(ids, [state(3).id]);
        }
    }

    #[tokio::test]
    async fn a_version_from_the_future_keeps_out_none_from_now() {
        for (store, _directory) in stores().await {
            let now = Timestamp::now().as_secs();
            let state = |at| event(&keys(1), nip34::STATE, at, &[&["d", "x"]]);
            let list = |at| event(&keys(1), nip34::GRASP_LIST, at, &[]);
            for version in [state as fn(u64) -> Event, list] {
                assert_eq!(store.save(&version(now * 1000)).await.unwrap(), Saved::New);
                assert!(
                    store
                        .has(&nip34::id_of(&version(now * 1000)))
                        .await
                        .unwrap()
                );
                assert_eq!(store.save(&version(now - 9)).await.unwrap(), Saved::New);
                assert_eq!(store.save(&version(now)).await.unwrap(), Saved::New);
                assert_eq!(
                    store.save(&version(now - 1)).await.unwrap(),
                    Saved::Replaced
                );
                assert!(
                    !store
                        .has(&nip34::id_of(&version(now * 1000)))
                        .await
                        .unwrap()
                );
            }
        }
    }

    #[tokio::test]
    async fn deletion_requests_delete_nothing_by_themselves() {
        for (store, _directory) in stores().await {
            let issue = event(&keys(1), Kind::Custom(1621), 1, &[]);
            store.save(&issue).await.unwrap();
            let deletion = event(&keys(1), nip34::DELETION, 2, &[&["e", &issue.id.to_hex()]]);
            store.save(&deletion).await.unwrap();
            assert!(store.has(&nip34::id_of(&issue)).await.unwrap());
            store.remove([nip34::id_of(&issue)]).await.unwrap();
            assert!(!store.has(&nip34::id_of(&issue)).await.unwrap());
            assert_eq!(store.save(&issue).await.unwrap(), Saved::New);
        }
    }

    #[tokio::test]
    async fn a_limit_gives_the_latest() {
        for (store, _directory) in stores().await {
            for at in 1..=40 {
                let comment = event(&keys(1), Kind::Custom(1111), at, &[&["d", "x"]]);
                store.save(&comment).await.unwrap();
            }
            let filter = Filter::new()
                .author(keys(1).public_key())
                .kind(Kind::Custom(1111))
                .identifier("x")
                .limit(3);
            let found = store.query(filter.clone()).await.unwrap();
            let times: Vec<u64> = found.iter().map(|e| e.created_at.as_secs()).collect();
            assert_eq!(times, [40, 39, 38]);
            let items = store.database().negentropy_items(filter).await.unwrap();
            assert_eq!(items.len(), 3);
        }
    }

    #[tokio::test]
    async fn what_is_withheld_is_there_and_not_to_be_found() {
        for (store, _directory) in stores().await {
            let note = |at| event(&keys(1), Kind::Custom(1111), at, &[&["d", "x"]]);
            for at in 1..=40 {
                store.save(&note(at)).await.unwrap();
            }
            let withheld: Vec<Id> = (21..=39).map(|at| nip34::id_of(&note(at))).collect();
            store.withhold(withheld.iter().copied());
            let own = Filter::new().author(keys(1).public_key());
            let times = |events: Vec<Event>| -> Vec<u64> {
                events.iter().map(|e| e.created_at.as_secs()).collect()
            };
            let tagged = own.clone().kind(Kind::Custom(1111)).identifier("x");
            for filter in [own.clone(), tagged] {
                let three = filter.limit(3);
                let found = store.query(three.clone()).await.unwrap();
                assert_eq!(times(found), [40, 20, 19]);
                assert_eq!(store.items(three).await.unwrap().len(), 3);
            }
            assert_eq!(store.query(own.clone()).await.unwrap().len(), 21);
            assert_eq!(store.database().count(own.clone()).await.unwrap(), 21);
            let none = store.query(own.clone().limit(0)).await.unwrap();
            assert!(none.is_empty());
            assert_eq!(store.apart().query(own.clone()).await.unwrap().len(), 40);
            assert!(!store.has(&withheld[0]).await.unwrap());
            assert!(store.by_id(&withheld[0]).await.unwrap().is_none());
            // Accepted anew, it is there again; the others when the list is.
            assert_eq!(store.save(&note(21)).await.unwrap(), Saved::New);
            assert!(store.has(&withheld[0]).await.unwrap());
            assert_eq!(store.withheld().len(), 18);
            store.withhold([]);
            assert_eq!(store.query(own).await.unwrap().len(), 40);
        }
    }

    #[tokio::test]
    async fn empty_lists_match_nothing() {
        for (store, _directory) in stores().await {
            store
                .save(&event(&keys(1), Kind::Custom(1111), 1, &[&["e", "x"]]))
                .await
                .unwrap();
            for filter in [
                r#"{"ids":[]}"#,
                r#"{"authors":[]}"#,
                r#"{"kinds":[]}"#,
                r##"{"#e":[]}"##,
                r##"{"kinds":[1111],"#e":[]}"##,
                r##"{"#e":["x"],"ids":[]}"##,
                r#"{"since":2,"until":1}"#,
            ] {
                let parsed = Filter::from_json(filter).unwrap();
                assert!(
                    store.query(parsed.clone()).await.unwrap().is_empty(),
                    "{filter}"
                );
                assert!(
                    store.items(parsed.clone()).await.unwrap().is_empty(),
                    "{filter}"
                );
                assert_eq!(store.database().count(parsed).await.unwrap(), 0, "{filter}");
            }
            assert_eq!(store.query(Filter::new()).await.unwrap().len(), 1);
            let identifier = Identifier::parse("x").unwrap();
            assert!(store.states([], &identifier).await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn expired_events_are_hidden_from_outside_and_take_nobodys_place() {
        #[derive(Debug)]
        struct All(HashSet<EventId>);
        impl Unseen for All {
            fn has_expired(&self, id: &EventId) -> bool {
                self.0.contains(id)
            }
            fn any_has(&self) -> bool {
                true
            }
        }
        for (store, _directory) in stores().await {
            let mut gone = HashSet::new();
            for at in 1..=100 {
                let note = event(&keys(1), Kind::Custom(1111), at, &[]);
                store.save(&note).await.unwrap();
                if at > 20 {
                    gone.insert(note.id);
                }
            }
            let one = *gone.iter().next().unwrap();
            store.hides_expired(Arc::new(All(gone)));
            let public = store.database();
            for (limit, expected) in [(Some(10), 10), (Some(20), 20), (Some(50), 20), (None, 20)] {
                let mut filter = Filter::new();
                filter.limit = limit;
                let found = public.query(filter.clone()).await.unwrap();
                assert_eq!(found.len(), expected);
                assert_eq!(found.iter().next().unwrap().created_at, Timestamp::from(20));
                let items = public.negentropy_items(filter.clone()).await.unwrap();
                assert_eq!(items.len(), expected);
            }
            assert_eq!(public.count(Filter::new()).await.unwrap(), 20);
            assert!(public.event_by_id(&one).await.unwrap().is_none());
            // Inside they are seen until they are taken out.
            assert_eq!(store.query(Filter::new()).await.unwrap().len(), 100);
            assert!(store.has(&Id::from_bytes(one.to_bytes())).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_snapshot_has_what_was_there_and_nothing_that_came_later() {
        for (store, _directory) in stores().await {
            let note = |at| event(&keys(1), Kind::Custom(1111), at, &[&["d", "x"]]);
            for at in 1..=5 {
                store.save(&note(at)).await.unwrap();
            }
            store.withhold([nip34::id_of(&note(2))]);
            let snapshot = store.snapshot().await.unwrap();
            store.save(&note(6)).await.unwrap();
            store.remove([nip34::id_of(&note(1))]).await.unwrap();
            let mut seen = Vec::new();
            let see = |event: &Event| {
                event.verify().unwrap();
                seen.push(event.created_at.as_secs());
                true
            };
            snapshot.each(see).unwrap();
            seen.sort_unstable();
            assert_eq!(seen, [1, 2, 3, 4, 5]);
            let mut first = 0;
            snapshot
                .each(|_| {
                    first += 1;
                    false
                })
                .unwrap();
            assert_eq!(first, 1);
        }
    }
}
