//! What connected others with a repository and has gone by itself: deleted, or replaced by a later
//! version.
//!
//! What was accepted for its sake stays as long as the repository does, and is to go and come with it.
//! So of an event that others lean on its references are kept, filed under each of them: a search goes
//! on through them as if the event were still there ([`crate::retire::fallen`]), and what falls with a
//! repository finds its way back by them.
//!
//! Beside them, of each address whose version an author deleted, which that was: earlier ones stay out.
//!
//! Of both together the latest `MOST` are kept, on the journal's shelf:
//!
//! ```text
//! x <event id>                      a tombstone
//! r <digest of a reference> <event id>  a tombstone refers to an id or an address, or has it
//! d <digest of an address>          the latest of its versions that was deleted
//! y <since when> <key of either>    to be found by age
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
use nostr::{Event, Kind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Holding, STEP, left::Version};
use crate::{
    clock::Moment,
    journal::{JournalError, Key, key, shelf::Act},
    nip34::{Meaning, STATE, event_id, id_of, repository_coordinate},
    policy::{deletion::split_address, related},
};

const TOMBSTONE: u8 = b'x';
const FILED: u8 = b'r';
const DELETED: u8 = b'd';
pub(super) const AGE: u8 = b'y';

/// Tombstones and deleted versions that are kept; the oldest give way.
pub(super) const MOST: u64 = 200_000;
/// Tombstones of one reference that are followed.
const OF_ONE: usize = 5_000;

/// What an event referred to that has gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    since: Moment,
    kind: u16,
    /// Its own, if it had one.
    address: Option<String>,
    /// In hex.
    events: Vec<String>,
    addresses: Vec<String>,
}

impl Tombstone {
    /// What is to be remembered of an event.
    fn of(event: &Event, since: Moment) -> Self {
        let addresses = related::addresses(event).into_iter();
        Self {
            since,
            kind: event.kind.as_u16(),
            address: event.coordinate().map(|address| address.to_string()),
            events: related::events(event).iter().map(EventId::to_hex).collect(),
            addresses: addresses.map(str::to_owned).collect(),
        }
    }

    /// What it meant.
    pub fn meaning(&self) -> Meaning {
        Meaning::of(Kind::from(self.kind))
    }

    /// The events it referred to.
    pub fn events(&self) -> impl Iterator<Item = EventId> {
        self.events.iter().filter_map(|id| event_id(id))
    }

    /// Its own address.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// The addresses it referred to that are no repositories'.
    pub fn other_addresses(&self) -> impl Iterator<Item = &str> {
        let all = self.addresses.iter().map(String::as_str);
        all.filter(|address| repository_coordinate(address).is_none())
    }

    /// The repositories it referred to; of an announcement, its own.
    pub fn repositories(&self) -> BTreeSet<RepoId> {
        let own = self.address.iter();
        let all = own.chain(&self.addresses);
        all.filter_map(|address| repository_coordinate(address))
            .collect()
    }

    /// Of a state, which repository's and whose.
    pub fn state(&self) -> Option<(Identifier, Npub)> {
        let (kind, author, name) = split_address(self.address()?)?;
        let identifier = Identifier::parse(name).ok()?;
        (Kind::from(kind) == STATE).then_some((identifier, author))
    }

    /// What it is filed under.
    fn references(&self) -> Vec<String> {
        let mut all = self.events.clone();
        all.extend(self.addresses.iter().cloned());
        all.extend(self.address.clone());
        all.extend(self.state().map(|(identifier, _)| states_of(&identifier)));
        all
    }
}

/// What the states of all authors of an identifier are filed under.
pub fn states_of(identifier: &Identifier) -> String {
    format!("{}::{identifier}", STATE.as_u16())
}

fn digested(kind: u8, text: &str) -> Key {
    key(kind, &Sha256::digest(text.as_bytes()))
}

fn age_key(since: Moment, of: &[u8]) -> Key {
    let mut key = key(AGE, &since.as_millis().to_be_bytes());
    key.extend_from_slice(of);
    key
}

fn acts_to_bury(id: &EventId, tombstone: &Tombstone, remove: bool) -> Vec<Act> {
    let own = key(TOMBSTONE, id.as_bytes());
    let mut keys = vec![age_key(tombstone.since, &own)];
    keys.extend(tombstone.references().iter().map(|reference| {
        let mut key = digested(FILED, reference);
        key.extend_from_slice(id.as_bytes());
        key
    }));
    let act = |key| match remove {
        true => Act::Remove(key),
        false => Act::Put(key, Vec::new()),
    };
    let mut acts: Vec<Act> = keys.into_iter().map(act).collect();
    acts.push(match remove {
        true => Act::Remove(own),
        false => {
            let value = serde_json::to_vec(tombstone).expect("it is plain data");
            Act::Put(own, value)
        }
    });
    acts
}

/// The latest version of an address that its author deleted.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Deleted {
    since: Moment,
    version: Version,
}

impl Holding {
    /// An event that others lean on is about to go by itself.
    pub async fn bury(&self, event: &Event) -> Result<(), JournalError> {
        let id = id_of(event);
        if !self.tombstones(&[id]).await?.is_empty() {
            return Ok(());
        }
        let tombstone = Tombstone::of(event, self.clock.now());
        self.journal
            .shelve(acts_to_bury(&id, &tombstone, false))
            .await?;
        self.make_room().await
    }

    /// The tombstones of these events, as far as there are any.
    pub async fn tombstones(
        &self,
        ids: &[EventId],
    ) -> Result<BTreeMap<EventId, Tombstone>, JournalError> {
        let ids = ids.to_vec();
        let look = self.journal.look(move |look| {
            let mut found = BTreeMap::new();
            for id in ids {
                let value = look.get(&key(TOMBSTONE, id.as_bytes()))?;
                if let Some(one) = value.and_then(|value| serde_json::from_slice(&value).ok()) {
                    found.insert(id, one);
                }
            }
            Ok(found)
        });
        look.await
    }

    /// The events, gone by themselves, that referred to one of these ids or addresses, or had one of
    /// these addresses.
    pub async fn buried_under(&self, references: &[String]) -> Result<Vec<EventId>, JournalError> {
        if self.buried.load(Ordering::Relaxed) == 0 {
            return Ok(Vec::new());
        }
        let keys: Vec<Key> = references
            .iter()
            .map(|text| digested(FILED, text))
            .collect();
        let look = self.journal.look(move |look| {
            let mut found = Vec::new();
            for filed in keys {
                let of_one = look.range(&filed, None, OF_ONE)?.into_iter();
                found.extend(of_one.filter_map(|(key, _)| EventId::from_slice(&key[33..]).ok()));
            }
            Ok(found)
        });
        look.await
    }

    /// Its author deletes this version of an address.
    pub async fn delete_version(&self, event: &Event) -> Result<(), JournalError> {
        let Some(address) = event.coordinate() else {
            return Ok(());
        };
        let own = digested(DELETED, &address.to_string());
        let version = Version::of(event);
        let before = self.deleted_version(own.clone()).await?;
        if before.is_some_and(|before| before.version >= version) {
            return Ok(());
        }
        let since = self.clock.now();
        let deleted = Deleted { since, version };
        let value = serde_json::to_vec(&deleted).expect("it is plain data");
        let mut acts = vec![Act::Put(own.clone(), value)];
        acts.extend(before.map(|before| Act::Remove(age_key(before.since, &own))));
        acts.push(Act::Put(age_key(since, &own), Vec::new()));
        self.journal.shelve(acts).await?;
        match before {
            Some(_) => Ok(()),
            None => self.make_room().await,
        }
    }

    /// Whether a version of an address was replaced by one that its author deleted.
    pub async fn is_before_a_deleted(&self, event: &Event) -> Result<bool, JournalError> {
        let Some(address) = event.coordinate() else {
            return Ok(false);
        };
        let deleted = self.deleted_version(digested(DELETED, &address.to_string()));
        let deleted = deleted.await?;
        Ok(deleted.is_some_and(|deleted| deleted.version.is_not_before(event, deleted.since)))
    }

    async fn deleted_version(&self, own: Key) -> Result<Option<Deleted>, JournalError> {
        let value = self.journal.look(move |look| look.get(&own)).await?;
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
    }

    /// One more is kept: the oldest give way to it if there are too many.
    async fn make_room(&self) -> Result<(), JournalError> {
        if self.buried.fetch_add(1, Ordering::Relaxed) < MOST {
            return Ok(());
        }
        let look = self.journal.look(|look| {
            let mut acts = Vec::new();
            let oldest = look.range(&[AGE], None, STEP)?;
            for (aged, _) in &oldest {
                acts.push(Act::Remove(aged.clone()));
                let Some(own) = aged.get(1 + 8..) else {
                    continue;
                };
                let value = look.get(own)?.unwrap_or_default();
                let tombstone: Option<Tombstone> = serde_json::from_slice(&value).ok();
                match (EventId::from_slice(&own[1..]), tombstone) {
                    (Ok(id), Some(tombstone)) if own.first() == Some(&TOMBSTONE) => {
                        acts.extend(acts_to_bury(&id, &tombstone, true));
                    }
                    _ => acts.push(Act::Remove(own.to_vec())),
                }
            }
            Ok((acts, oldest.len() as u64))
        });
        let (acts, gone) = look.await?;
        self.journal.shelve(acts).await?;
        self.buried.fetch_sub(gone, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock::Clock,
        journal::Journal,
        nip34::{
            ANNOUNCEMENT,
            testing::{event, keys},
        },
    };

    async fn holding() -> (Holding, Clock) {
        let clock = Clock::standing_at(Moment::from_millis(1_000));
        let keeps_for = Duration::from_secs(1);
        let holding = Holding::open(Journal::none(), clock.clone(), keeps_for);
        (holding.await.unwrap(), clock)
    }

    fn note(at: u64, about: &str) -> Event {
        event(&keys(1), Kind::Custom(1111), at, &[&["e", about]])
    }

    #[tokio::test]
    async fn the_oldest_give_way_with_all_they_are_filed_under() {
        let (holding, clock) = holding().await;
        let about = "ab".repeat(32);
        let under = || holding.buried_under(std::slice::from_ref(&about));
        let state = |at| event(&keys(1), STATE, at, &[&["d", "x"]]);
        holding.bury(&note(1, &about)).await.unwrap();
        holding.bury(&note(1, &about)).await.unwrap();
        holding.delete_version(&state(5)).await.unwrap();
        holding.delete_version(&state(4)).await.unwrap();
        assert_eq!(under().await.unwrap(), [id_of(&note(1, &about))]);
        assert!(holding.is_before_a_deleted(&state(5)).await.unwrap());
        assert!(!holding.is_before_a_deleted(&state(6)).await.unwrap());
        assert_eq!(holding.buried.swap(MOST, Ordering::Relaxed), 2);
        clock.advance(Duration::from_secs(1));
        holding.bury(&note(2, &about)).await.unwrap();
        assert!(under().await.unwrap().is_empty());
        assert!(!holding.is_before_a_deleted(&state(5)).await.unwrap());
        let left = holding.journal.look(|look| look.count(&[])).await;
        assert_eq!(left.unwrap(), 0);
    }

    #[test]
    fn a_tombstone_says_what_its_event_belonged_to() {
        let owner = keys(2).public_key().to_hex();
        let repository = format!("30617:{owner}:x");
        let article = format!("30023:{owner}:x");
        let tags: &[&[&str]] = &[&["a", &repository], &["a", &article], &["d", "y"]];
        let of =
            |kind, tags| Tombstone::of(&event(&keys(1), kind, 1, tags), Moment::from_millis(1));
        let one = of(Kind::Custom(30_024), tags);
        assert_eq!(one.repositories().len(), 1);
        assert_eq!(one.other_addresses().collect::<Vec<_>>(), [&article]);
        assert!(one.state().is_none() && one.address().is_some());
        assert_eq!(of(ANNOUNCEMENT, &[&["d", "y"]]).repositories().len(), 1);
        let (identifier, _) = of(STATE, &[&["d", "y"]]).state().unwrap();
        assert_eq!(states_of(&identifier), "30618::y");
    }
}
