//! What anybody can store without belonging here: deletion requests, requests to vanish and grasp lists of
//! authors of whom nothing else is here. How much of it there is, of each author and of all, how much
//! one client brings in a day, and up to when it counts.
//!
//! What counts is noted on the journal's shelf:
//!
//! ```text
//! s <when it is due> <event id>     its author, its size
//! ```
//!
//! When its time has come, [`crate::admit`] takes a grasp list or a request to vanish out of the store, if
//! its author still does not belong here. That the author has vanished stays known; deletion requests
//! age by themselves ([`crate::requests`]).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use grasp_proto::{
    client::{Client, Rates},
    words::{EventId, Npub},
};
use nostr::Event;

use crate::{
    clock::{Clock, Moment},
    journal::{Journal, JournalError, Key, key, shelf::Act},
    meters,
    nip34::{author_of, id_of},
    tally::Tally,
};

/// How long what a stranger stored counts, and how long it is served at least.
pub const COUNTS_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// What one client may bring is counted over this time.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// What a small event counts as, so that there are not too many of them.
const LEAST: usize = 512;

const NOTED: u8 = b's';

/// How much strangers may store, in bytes of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrangerLimits {
    /// All of them.
    pub of_all: usize,
    /// One author.
    pub of_author: usize,
    /// One client, in a day; 0: no limit.
    pub of_client: u64,
}

impl StrangerLimits {
    /// Where nothing else is said: in tests.
    pub const DEFAULT: Self = Self {
        of_all: 32 << 20,
        of_author: 128 << 10,
        of_client: 1 << 20,
    };
}

/// A stranger's event is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The author has stored what it may.
    #[error(
        "its author has nothing else here, and has stored as much as such authors may in a month"
    )]
    Author,
    /// The client has brought what it may.
    #[error(
        "too much was sent from your address by authors who have nothing else here, try again tomorrow"
    )]
    Client,
    /// All together have.
    #[error("authors who have nothing else here have stored as much as they may, try again later")]
    All,
}

#[derive(Debug, Clone, Copy)]
struct Noted {
    author: Npub,
    bytes: usize,
    due: Moment,
}

impl Noted {
    fn key(&self, id: &EventId) -> Key {
        let mut name = self.due.as_millis().to_be_bytes().to_vec();
        name.extend_from_slice(id.as_bytes());
        key(NOTED, &name)
    }

    fn value(&self) -> Vec<u8> {
        let mut value = self.author.as_bytes().to_vec();
        value.extend_from_slice(&(self.bytes as u64).to_be_bytes());
        value
    }

    fn read(key: &[u8], value: &[u8]) -> Option<(EventId, Self)> {
        let due = u64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
        let bytes = u64::from_be_bytes(value.get(32..40)?.try_into().ok()?);
        let noted = Self {
            author: Npub::from_bytes(value.get(..32)?.try_into().ok()?),
            bytes: usize::try_from(bytes).ok()?,
            due: Moment::from_millis(due),
        };
        Some((EventId::from_slice(key.get(9..)?).ok()?, noted))
    }
}

/// Bounded by the limits, as each event counts [`LEAST`].
#[derive(Debug, Default)]
struct Taken {
    events: HashMap<EventId, Noted>,
    authors: Tally<Npub>,
}

impl Taken {
    fn add(&mut self, id: EventId, noted: Noted) {
        self.remove(&id);
        self.authors.add(noted.author, noted.bytes);
        self.events.insert(id, noted);
        self.measure();
    }

    fn remove(&mut self, id: &EventId) -> Option<Noted> {
        let noted = self.events.remove(id)?;
        self.authors.remove(&noted.author, noted.bytes);
        self.measure();
        Some(noted)
    }

    #[allow(clippy::cast_precision_loss)]
    fn measure(&self) {
        metrics::gauge!("ngit_strangers_bytes").set(self.authors.all() as f64);
    }
}

/// What strangers have stored.
#[derive(Debug)]
pub struct Strangers {
    journal: Journal,
    clock: Clock,
    limits: StrangerLimits,
    clients: Option<Rates>,
    taken: Mutex<Taken>,
}

impl Strangers {
    /// What `journal` has of them.
    pub async fn open(
        journal: Journal,
        clock: Clock,
        limits: StrangerLimits,
    ) -> Result<Self, JournalError> {
        let look = journal.look(|look| look.range(&[NOTED], None, usize::MAX));
        let mut taken = Taken::default();
        for (key, value) in look.await? {
            if let Some((id, noted)) = Noted::read(&key, &value) {
                taken.add(id, noted);
            }
        }
        taken.measure();
        Ok(Self {
            journal,
            clock,
            limits,
            clients: Rates::new(limits.of_client, DAY),
            taken: Mutex::new(taken),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stranger's event is about to be stored, in the place of `replaced`, if it may: noted, durably, when
    /// this returns. One that was noted counts once.
    pub async fn take(
        &self,
        event: &Event,
        client: Option<Client>,
        replaced: Option<EventId>,
    ) -> Result<Result<(), Full>, JournalError> {
        let (id, size) = (id_of(event), event.as_json().len());
        let noted = Noted {
            author: author_of(event),
            bytes: size.max(LEAST),
            due: self.clock.now() + COUNTS_FOR,
        };
        {
            let mut taken = self.taken();
            if taken.events.contains_key(&id) {
                return Ok(Ok(()));
            }
            if let Err(full) = self.has_room(&taken, &noted, replaced.as_ref()) {
                meters::limited("strangers");
                return Ok(Err(full));
            }
            if let (Some(clients), Some(client)) = (&self.clients, client) {
                let now = Instant::now();
                if clients.ask(client, now).is_err() {
                    meters::limited("strangers");
                    return Ok(Err(Full::Client));
                }
                clients.charge(client, noted.bytes as u64, now);
            }
            taken.add(id, noted);
        }
        let act = Act::Put(noted.key(&id), noted.value());
        self.journal.shelve(vec![act]).await?;
        Ok(Ok(()))
    }

    fn has_room(
        &self,
        taken: &Taken,
        noted: &Noted,
        replaced: Option<&EventId>,
    ) -> Result<(), Full> {
        let replaced = replaced.and_then(|id| taken.events.get(id));
        let given_back = replaced.map_or(0, |replaced| replaced.bytes);
        let of_author = taken.authors.of(&noted.author) - given_back;
        if of_author + noted.bytes > self.limits.of_author {
            return Err(Full::Author);
        }
        match taken.authors.all() - given_back + noted.bytes > self.limits.of_all {
            true => Err(Full::All),
            false => Ok(()),
        }
    }

    /// An event is not stored, or counts no more.
    pub async fn give_back(&self, id: &EventId) -> Result<(), JournalError> {
        let noted = self.taken().remove(id);
        match noted {
            Some(noted) => self.journal.shelve(vec![Act::Remove(noted.key(id))]).await,
            None => Ok(()),
        }
    }

    /// At most `most` whose time has come.
    pub async fn due(&self, most: usize) -> Result<Vec<EventId>, JournalError> {
        let now = self.clock.now();
        let look = self
            .journal
            .look(move |look| look.range(&[NOTED], None, most));
        let noted = look.await?.into_iter();
        let noted = noted.filter_map(|(key, value)| Noted::read(&key, &value));
        let due = noted.take_while(|(_, noted)| noted.due <= now);
        Ok(due.map(|(id, _)| id).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::{
        DELETION, GRASP_LIST,
        testing::{event, keys},
    };

    const LIMITS: StrangerLimits = StrangerLimits {
        of_all: 6 * LEAST,
        of_author: 3 * LEAST,
        of_client: 2 * LEAST as u64,
    };

    async fn open(journal: &Journal, clock: &Clock) -> Strangers {
        Strangers::open(journal.clone(), clock.clone(), LIMITS)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn each_author_and_all_have_their_room_and_it_is_given_back() {
        let (journal, clock) = (Journal::none(), Clock::standing_at(Moment::from_millis(9)));
        let strangers = open(&journal, &clock).await;
        let request = |seed, at| event(&keys(seed), DELETION, at, &[]);
        let take = async |event: &Event| strangers.take(event, None, None).await.unwrap();
        for at in 0..3 {
            assert_eq!(take(&request(1, at)).await, Ok(()));
            assert_eq!(take(&request(1, at)).await, Ok(()), "it counts once");
        }
        assert_eq!(take(&request(1, 3)).await, Err(Full::Author));
        for at in 0..3 {
            assert_eq!(take(&request(2, at)).await, Ok(()));
        }
        assert_eq!(take(&request(3, 0)).await, Err(Full::All));
        strangers.give_back(&id_of(&request(1, 0))).await.unwrap();
        assert_eq!(take(&request(3, 0)).await, Ok(()));
        // The next process knows it.
        let again = open(&journal, &clock).await;
        assert_eq!(again.taken().authors.all(), 6 * LEAST);
        assert_eq!(
            again.take(&request(4, 0), None, None).await.unwrap(),
            Err(Full::All)
        );
        assert!(again.due(9).await.unwrap().is_empty());
        clock.advance(COUNTS_FOR);
        assert_eq!(again.due(2).await.unwrap().len(), 2);
        for id in again.due(9).await.unwrap() {
            again.give_back(&id).await.unwrap();
        }
        {
            let taken = again.taken();
            assert!(taken.authors.largest().is_none() && taken.authors.all() == 0);
        }
        assert!(again.due(9).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_new_version_takes_the_room_of_the_one_before() {
        let clock = Clock::standing_at(Moment::from_millis(9));
        let strangers = open(&Journal::none(), &clock).await;
        let long = "x".repeat(2 * LEAST);
        let list = |at| event(&keys(1), GRASP_LIST, at, &[&["g", &long]]);
        let (one, two) = (list(1), list(2));
        let take = async |event, replaced| strangers.take(event, None, replaced).await.unwrap();
        assert_eq!(take(&one, None).await, Ok(()));
        assert_eq!(take(&two, None).await, Err(Full::Author));
        assert_eq!(take(&two, Some(id_of(&one))).await, Ok(()));
    }

    #[tokio::test]
    async fn a_client_brings_so_much_whoever_signs() {
        let clock = Clock::standing_at(Moment::from_millis(9));
        let strangers = open(&Journal::none(), &clock).await;
        let client = |n| Some(Client::of([192, 0, 2, n].into()));
        let request = |seed| event(&keys(seed), DELETION, 1, &[]);
        let take = async |seed, n| {
            let event = request(seed);
            strangers.take(&event, client(n), None).await.unwrap()
        };
        assert_eq!(take(1, 1).await, Ok(()));
        assert_eq!(take(2, 1).await, Ok(()));
        assert_eq!(take(3, 1).await, Err(Full::Client));
        assert_eq!(take(3, 2).await, Ok(()));
    }
}
