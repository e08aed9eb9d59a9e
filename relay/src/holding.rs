//! What was taken out of service with an announcement and can come back: events, and which retired
//! repository the git data is.
//!
//! One **hold** for each repository. Its events lie on the journal's shelf, each once, whoever holds
//! it; a *link* says that a hold has an event, and whether that is still to be taken out of the
//! store. In memory are the holds alone: as many as repositories were taken out of service in the
//! retention time.
//!
//! [`crate::retire`] fills a hold, [`give_back`] empties it when its owner has announced again,
//! [`expiry`] throws it away when its time has come or an operator says so. All of them in the
//! queue of its identifier, and each so that it can be called again after a kill between any two
//! steps: a hold is there before anything is taken and goes after everything has.

pub mod expiry;
pub mod give_back;
pub mod left;
mod shelved;
pub mod tombstones;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use grasp_proto::words::{EventId, Npub, RepoId};
use nostr::{Event, Kind, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use self::shelved::Link;
use crate::{
    clock::{Clock, Moment},
    journal::{Journal, JournalError, Key, shelf::Act},
    nip34::id_of,
    retire::fallen::AlsoHeldFor,
};

/// Events looked at in one step; between two of them others may have their turn.
pub const STEP: usize = 500;

/// Why something was taken out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Its author deleted the announcement.
    Deleted,
    /// A newer announcement does not name this service any more.
    MovedAway,
    /// Its author asked to vanish.
    Vanished,
    /// Its announcement expired by its own word (NIP-40).
    Expired,
    /// It was moved aside before there were holds.
    Unknown,
}

/// What is held of one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// What its links are filed under.
    number: u64,
    /// Since when.
    pub since: Moment,
    /// Why.
    pub reason: Reason,
    /// The incarnations of its repository that were, or are about to be, retired. The last one is
    /// the one that was served.
    pub incarnations: Vec<String>,
    /// The announcement that was taken out of service, in hex: held too, unless its author's wish
    /// was that it vanish.
    pub announcement: Option<String>,
    /// It is being taken out of service: what falls with it is not all out yet.
    pub taking: bool,
    /// The version of its announcement that named this service no more, or was deleted, if one was.
    #[serde(default)]
    pub left: Option<left::Version>,
}

/// Of repositories that have been made, retired, and made again without being restored, so many
/// incarnations are remembered; those before stay on disk until an operator sees to them.
const INCARNATIONS: usize = 16;

/// What is to be done with an event that falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is held, and to be taken out of the store.
    Taken,
    /// It is held, and not in the store because of this hold.
    Held,
    /// It is to be taken out of the store, and not held.
    Dropped,
}

#[derive(Debug, Default)]
struct Index {
    holds: BTreeMap<RepoId, Hold>,
    by_age: BTreeSet<(Moment, RepoId)>,
    /// Those that are coming back. Of those in `holds`.
    returning: BTreeMap<RepoId, give_back::Round>,
}

/// All that is held.
#[derive(Debug)]
pub struct Holding {
    journal: Journal,
    clock: Clock,
    keeps_for: Duration,
    index: Mutex<Index>,
    /// Links of one event are counted before they go: one at a time.
    unlinking: tokio::sync::Mutex<()>,
    /// How often something was taken out of the store.
    falls: AtomicU64,
    /// How many tombstones and deleted versions are kept.
    buried: AtomicU64,
    /// Something is to come back.
    work: Notify,
}

impl Holding {
    /// What `journal` has of it, kept for so long.
    pub async fn open(
        journal: Journal,
        clock: Clock,
        keeps_for: Duration,
    ) -> Result<Self, JournalError> {
        let mut index = Index::default();
        let mut after: Option<Key> = None;
        loop {
            let from = after.clone();
            let page = journal
                .look(move |look| look.range(&[shelved::HOLD], from.as_deref(), STEP))
                .await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, value) in page {
                match shelved::read_hold(&key, &value) {
                    Some((repo, hold)) => index.put(&repo, hold),
                    None => tracing::error!("a hold is unreadable"),
                }
            }
        }
        let buried = journal.look(|look| look.count(&[tombstones::AGE]));
        Ok(Self {
            buried: AtomicU64::new(buried.await?),
            journal,
            clock,
            keeps_for,
            index: Mutex::new(index),
            unlinking: tokio::sync::Mutex::default(),
            falls: AtomicU64::new(0),
            work: Notify::new(),
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is held of a repository.
    pub fn holds(&self, repo: &RepoId) -> bool {
        self.index().holds.contains_key(repo)
    }

    /// What is held of a repository.
    pub fn of(&self, repo: &RepoId) -> Option<Hold> {
        self.index().holds.get(repo).cloned()
    }

    /// At most `most` repositories that are held, the oldest first, behind `after`.
    pub fn from(&self, after: Option<&(Moment, RepoId)>, most: usize) -> Vec<(RepoId, Hold)> {
        let index = self.index();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let all = index.by_age.range((from, Bound::Unbounded));
        let entry =
            |(_, repo): &(Moment, RepoId)| Some((repo.clone(), index.holds.get(repo)?.clone()));
        all.take(most).filter_map(entry).collect()
    }

    /// When a hold goes.
    pub fn until(&self, hold: &Hold) -> Moment {
        hold.since + self.keeps_for
    }

    /// The events that are held of a repository, oldest first.
    pub async fn held_of(&self, repo: &RepoId) -> Result<Vec<EventId>, JournalError> {
        match self.of(repo) {
            Some(hold) => Ok(self.oldest_first(&hold).await?.into()),
            None => Ok(Vec::new()),
        }
    }

    /// How many repositories are held.
    pub fn len(&self) -> usize {
        self.index().holds.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The repositories that were being taken out of service when the process ended.
    pub fn half_taken(&self) -> Vec<RepoId> {
        let index = self.index();
        let taking = index.holds.iter().filter(|(_, hold)| hold.taking);
        taking.map(|(repo, _)| repo.clone()).collect()
    }

    /// A hold is there, durably, made if there was none.
    async fn change(
        &self,
        repo: &RepoId,
        change: impl FnOnce(&mut Hold),
    ) -> Result<Hold, JournalError> {
        let mut hold = {
            let index = self.index();
            index.holds.get(repo).cloned().unwrap_or_else(|| Hold {
                number: rand::random(),
                since: self.clock.now(),
                reason: Reason::MovedAway,
                incarnations: Vec::new(),
                announcement: None,
                taking: false,
                left: None,
            })
        };
        change(&mut hold);
        let acts = vec![shelved::put_hold(repo, &hold)];
        self.journal.shelve(acts).await?;
        self.index().put(repo, hold.clone());
        Ok(hold)
    }

    /// A repository is being taken out of service from now on, and held with its announcement unless
    /// its author is to vanish.
    pub async fn begin(
        &self,
        repo: &RepoId,
        event: &Event,
        reason: Reason,
    ) -> Result<(), JournalError> {
        let announcement = (reason != Reason::Vanished).then_some(event);
        let deleted =
            matches!(reason, Reason::Deleted | Reason::Expired).then(|| left::Version::of(event));
        let now = self.clock.now();
        self.index().returning.remove(repo);
        let begun = self.change(repo, |hold| {
            hold.since = now;
            hold.taking = true;
            hold.reason = reason;
            hold.left = hold.left.max(deleted);
            hold.announcement = announcement.map(|event| id_of(event).to_hex());
        });
        let hold = begun.await?;
        if let Some(event) = announcement {
            let acts = shelved::link_all(&[(hold.number, Fate::Held)], event);
            self.journal.shelve(acts).await?;
        }
        Ok(())
    }

    /// How often something was taken out of the store: what was judged since the last time was
    /// judged by what is left.
    pub fn falls_so_far(&self) -> u64 {
        self.falls.load(Ordering::SeqCst)
    }

    /// What was noted to fall is out of the store.
    pub fn fell(&self) {
        self.falls.fetch_add(1, Ordering::SeqCst);
    }

    /// At most [`STEP`] events behind `after` that are linked to a repository's hold.
    pub async fn linked(
        &self,
        repo: &RepoId,
        after: Option<EventId>,
    ) -> Result<Vec<EventId>, JournalError> {
        let Some(hold) = self.of(repo) else {
            return Ok(Vec::new());
        };
        let links = self.links(hold.number, after, STEP).await?;
        Ok(links.iter().map(|link| link.id).collect())
    }

    /// Everything that falls with a repository is out of the store.
    pub async fn taken(&self, repo: &RepoId) -> Result<(), JournalError> {
        self.change(repo, |hold| hold.taking = false).await?;
        Ok(())
    }

    /// Which repository is about to be moved aside.
    pub async fn retiring(&self, repo: &RepoId, incarnation: &str) -> Result<(), JournalError> {
        let known = self.of(repo).is_some_and(|hold| {
            let last = hold.incarnations.last();
            last.is_some_and(|last| last == incarnation)
        });
        if known {
            return Ok(());
        }
        self.change(repo, |hold| {
            hold.incarnations.retain(|other| other != incarnation);
            hold.incarnations.push(incarnation.to_owned());
            if hold.incarnations.len() > INCARNATIONS {
                let forgotten = hold.incarnations.remove(0);
                tracing::warn!(%repo, forgotten, "a retired repository is not remembered");
            }
        })
        .await?;
        Ok(())
    }

    /// A retired repository that no hold knows of is held from now on.
    pub async fn adopt(&self, repo: &RepoId, incarnation: &str) -> Result<bool, JournalError> {
        let known = self.of(repo);
        let is_known = |hold: &Hold| hold.incarnations.iter().any(|other| other == incarnation);
        if known.as_ref().is_some_and(is_known) {
            return Ok(false);
        }
        self.change(repo, |hold| {
            if known.is_none() {
                hold.reason = Reason::Unknown;
            }
            hold.incarnations.insert(0, incarnation.to_owned());
        })
        .await?;
        Ok(true)
    }

    /// The incarnations of a repository that may be moved back, the latest first.
    pub fn incarnations(&self, repo: &RepoId) -> Vec<String> {
        let hold = self.of(repo);
        let all = hold.map(|hold| hold.incarnations).unwrap_or_default();
        all.into_iter().rev().collect()
    }

    /// These events fall with `repo`; what `is_held` says no to is not kept. Other holds may want them
    /// back as well, as far as they have room for it.
    pub async fn falls(
        &self,
        repo: &RepoId,
        also_held_for: &AlsoHeldFor,
        events: &[Event],
        is_held: impl Fn(&Event) -> bool,
    ) -> Result<(), JournalError> {
        let Some(own) = self.of(repo).map(|hold| hold.number) else {
            return Err(JournalError::NotWritten);
        };
        let rooms = self.rooms(also_held_for, events).await?;
        let mut acts = Vec::new();
        for event in events {
            if !is_held(event) {
                acts.extend(shelved::link_all(&[(own, Fate::Dropped)], event));
                continue;
            }
            let (id, mut holds) = (id_of(event), vec![(own, Fate::Taken)]);
            if let Some(others) = also_held_for.get(&id) {
                let others = others.iter().filter(|other| *other != repo);
                let numbers = others.filter_map(|other| Some(self.of(other)?.number));
                let numbers = numbers.take(rooms.get(&id).copied().unwrap_or_default());
                holds.extend(numbers.map(|number| (number, Fate::Held)));
            }
            acts.extend(shelved::link_all(&holds, event));
        }
        self.journal.shelve(acts).await
    }

    /// For how many more holds each of these events has room.
    async fn rooms(
        &self,
        wanted: &AlsoHeldFor,
        events: &[Event],
    ) -> Result<HashMap<EventId, usize>, JournalError> {
        let ids = events.iter().map(id_of);
        let ids: Vec<EventId> = ids.filter(|id| wanted.contains_key(id)).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let look = self.journal.look(move |look| {
            let room = |id| Ok((id, shelved::room_of(look, &id)?));
            ids.into_iter().map(room).collect()
        });
        look.await
    }

    /// At most `most` of a hold's links behind the event `after`.
    async fn links(
        &self,
        number: u64,
        after: Option<EventId>,
        most: usize,
    ) -> Result<Vec<Link>, JournalError> {
        let look = self.journal.look(move |look| {
            let prefix = shelved::links_of(number);
            let after = after.map(|id| shelved::link_key(number, &id));
            look.range(&prefix, after.as_deref(), most)
        });
        let found = look.await?.into_iter();
        Ok(found
            .filter_map(|(key, value)| shelved::read_link(&key, &value))
            .collect())
    }

    /// At most `most` events behind `after` that a repository's fall is still to take out of the
    /// store, and the last that was looked at; `None`: that is all.
    pub async fn to_take(
        &self,
        repo: &RepoId,
        after: Option<EventId>,
    ) -> Result<Option<(Vec<EventId>, EventId)>, JournalError> {
        let Some(hold) = self.of(repo) else {
            return Ok(None);
        };
        let links = self.links(hold.number, after, STEP).await?;
        let Some(last) = links.last().map(|link| link.id) else {
            return Ok(None);
        };
        let to_take = links.iter().filter(|link| link.fate != Fate::Held);
        Ok(Some((to_take.map(|link| link.id).collect(), last)))
    }

    /// These events are out of the store.
    pub async fn out(&self, repo: &RepoId, ids: &[EventId]) -> Result<(), JournalError> {
        let Some(hold) = self.of(repo) else {
            return Ok(());
        };
        let ids: Vec<EventId> = ids.to_vec();
        let number = hold.number;
        let look = self.journal.look(move |look| {
            let mut acts = Vec::new();
            for id in ids {
                let key = shelved::link_key(number, &id);
                let link = look.get(&key)?;
                let link = link.and_then(|value| shelved::read_link(&key, &value));
                acts.extend(link.and_then(|link| match link.fate {
                    Fate::Dropped => Some(Act::Remove(key)),
                    Fate::Taken => Some(Act::Put(key, shelved::link_value(Fate::Held, link.at))),
                    Fate::Held => None,
                }));
            }
            Ok(acts)
        });
        let acts = look.await?;
        self.journal.shelve(acts).await
    }

    /// The event of this id, if it is held.
    pub async fn event(&self, id: &EventId) -> Result<Option<Event>, JournalError> {
        let id = *id;
        let look = self
            .journal
            .look(move |look| look.get(&shelved::event_key(&id)));
        Ok(look.await?.and_then(|json| shelved::read_event(&json)))
    }

    /// Nobody holds these events any more. Says how many were held.
    pub async fn forget(&self, ids: &[EventId]) -> Result<usize, JournalError> {
        let _one_at_a_time = self.unlinking.lock().await;
        let ids = ids.to_vec();
        let look = self.journal.look(move |look| {
            let (mut acts, mut held) = (Vec::new(), 0);
            for id in ids {
                let of_event = shelved::forget_event(look, &id)?;
                held += usize::from(!of_event.is_empty());
                acts.extend(of_event);
            }
            Ok((acts, held))
        });
        let (acts, held) = look.await?;
        if !acts.is_empty() {
            self.journal.shelve(acts).await?;
        }
        Ok(held)
    }

    /// The ids of at most `most` held events of an author, behind `after`; of one kind if it is
    /// given.
    pub async fn of_author(
        &self,
        author: Npub,
        kind: Option<Kind>,
        after: Option<(Kind, EventId)>,
        most: usize,
    ) -> Result<Vec<(Kind, EventId)>, JournalError> {
        let look = self.journal.look(move |look| {
            let prefix = shelved::authors(&author, kind);
            let after = after.map(|(kind, id)| shelved::author_key(&author, kind, &id));
            look.range(&prefix, after.as_deref(), most)
        });
        let found = look.await?.into_iter();
        Ok(found
            .filter_map(|(key, _)| shelved::read_author(&key))
            .collect())
    }

    /// What an author wrote up to a time and is held is gone. Says how much it was.
    pub async fn vanish(&self, author: Npub, until: Timestamp) -> Result<usize, JournalError> {
        let (mut after, mut gone) = (None, 0);
        loop {
            let page = self.of_author(author, None, after, STEP).await?;
            let Some(last) = page.last() else {
                return Ok(gone);
            };
            after = Some(*last);
            let mut ids = Vec::new();
            for (_, id) in page {
                let event = self.event(&id).await?;
                if event.is_some_and(|event| event.created_at <= until) {
                    ids.push(id);
                }
            }
            gone += self.forget(&ids).await?;
        }
    }

    /// How many events are held of a repository, its announcement among them.
    pub async fn events_of(&self, hold: &Hold) -> Result<u64, JournalError> {
        let prefix = shelved::links_of(hold.number);
        self.journal.look(move |look| look.count(&prefix)).await
    }
}

impl Index {
    fn put(&mut self, repo: &RepoId, hold: Hold) {
        let since = hold.since;
        if let Some(old) = self.holds.insert(repo.clone(), hold) {
            self.by_age.remove(&(old.since, repo.clone()));
        }
        self.by_age.insert((since, repo.clone()));
    }

    fn remove(&mut self, repo: &RepoId) {
        self.returning.remove(repo);
        if let Some(old) = self.holds.remove(repo) {
            self.by_age.remove(&(old.since, repo.clone()));
        }
    }
}
