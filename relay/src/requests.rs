//! Requests to delete (NIP-09) and to vanish (NIP-62), as long as they count: when each came, when
//! it last had an effect, and whom they keep out.
//!
//! A request is served from the day it comes. One that deleted something, or kept something out, is
//! served for a year from then on. One that did not is taken out of the store after a month and is a
//! *gate* for half a year more – it still keeps its targets out, and is not served – and then
//! nothing. Requests to vanish stay for ever.
//!
//! All of it lies on the journal's shelf, since public servers have tens of thousands of requests:
//!
//! ```text
//! q <request id>                              when it came, its last effect, itself if it is a gate
//! t <when it is due> <request id>             to be found by the clock
//! g <author> <digest of a target> <request id>  a gate: up to when, for addresses
//! p <request id>                              not carried out to the end yet
//! v <author>                                  a request to vanish: up to when, its id
//! m                                           what was stored before there were records has one
//! ```

use std::time::Duration;

use grasp_proto::words::{EventId, Npub};
use nostr::{Event, Filter, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    clock::{Clock, Moment},
    journal::{
        Journal, JournalError, Key, key,
        shelf::{Act, Look},
    },
    nip34::{DELETION, author_of, horizon, id_of},
    policy::deletion::{self, Target},
    release::Release,
    store::{Store, StoreError},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long one is served that has no effect.
pub const SERVED_FOR: Duration = DAY.saturating_mul(30);
/// How long it is a gate behind that.
pub const GATE_FOR: Duration = DAY.saturating_mul(180);
/// How long one is served from its last effect on.
pub const EFFECTIVE_FOR: Duration = DAY.saturating_mul(365);
/// An effect so soon after the last is not noted.
const NOTED_EVERY: Duration = DAY;
/// Requests that one sweep sees to at most.
const A_SWEEP: usize = 2_000;
/// Records written at once.
const AT_ONCE: usize = 500;
/// Gates of one target that are looked at.
const GATES: usize = 100;

const RECORD: u8 = b'q';
const DUE: u8 = b't';
const GATE: u8 = b'g';
const PENDING: u8 = b'p';
const VANISHED: u8 = b'v';
const MARK: u8 = b'm';

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    came: Moment,
    effect: Option<Moment>,
    /// The request, of one that is a gate.
    gate: Option<String>,
}

impl Known {
    fn due(&self) -> Moment {
        match (self.effect, &self.gate) {
            (Some(effect), _) => effect + EFFECTIVE_FOR,
            (None, None) => self.came + SERVED_FOR,
            (None, Some(_)) => self.came + SERVED_FOR + GATE_FOR,
        }
    }

    fn put(&self, id: &EventId) -> Act {
        let value = serde_json::to_vec(self).expect("it is plain data");
        Act::Put(key(RECORD, id.as_bytes()), value)
    }

    fn event(&self) -> Option<Event> {
        Event::from_json(self.gate.as_ref()?).ok()
    }
}

fn due_key(at: Moment, id: &EventId) -> Key {
    let mut key = key(DUE, &at.as_millis().to_be_bytes());
    key.extend_from_slice(id.as_bytes());
    key
}

fn read_due(key: &[u8]) -> Option<(Moment, EventId)> {
    let (at, id) = key.get(1..)?.split_at_checked(8)?;
    let at = Moment::from_millis(u64::from_be_bytes(at.try_into().ok()?));
    Some((at, EventId::from_slice(id).ok()?))
}

fn known(look: &Look<'_>, id: &EventId) -> Result<Option<Known>, JournalError> {
    let found = look.get(&key(RECORD, id.as_bytes()))?;
    Ok(
        found.and_then(|value| match serde_json::from_slice(&value) {
            Ok(known) => Some(known),
            Err(error) => {
                tracing::error!(request = %id, %error, "its record is unreadable");
                None
            }
        }),
    )
}

/// The gates of one target begin so.
fn gates_of(author: &Npub, target: &str) -> Key {
    let mut key = key(GATE, author.as_bytes());
    key.extend_from_slice(&Sha256::digest(target.as_bytes()));
    key
}

/// The gates of a request, and up to when each keeps out.
fn gates(request: &Event) -> Vec<(Key, Timestamp)> {
    let (author, id) = (author_of(request), id_of(request));
    let gate = |target: Target| {
        let (target, until) = match target {
            Target::Id(id) => (id.to_hex(), Timestamp::max()),
            Target::Address {
                kind,
                identifier,
                until,
            } => (format!("{kind}:{}:{identifier}", author.to_hex()), until),
        };
        let mut key = gates_of(&author, &target);
        key.extend_from_slice(id.as_bytes());
        (key, until)
    };
    deletion::targets(request).into_iter().map(gate).collect()
}

fn until(value: &[u8]) -> Option<Timestamp> {
    let secs = u64::from_be_bytes(value.get(..8)?.try_into().ok()?);
    Some(Timestamp::from(secs))
}

/// How a request stands that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Served, or to be served now.
    Served,
    /// Known, not served any more, and still keeping out.
    Gate,
}

/// The requests. What they are about is decided elsewhere.
#[derive(Debug)]
pub struct Requests {
    journal: Journal,
    clock: Clock,
    acts: bool,
    /// A record is looked at before it is changed: one at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Requests {
    /// What `journal` has of them. Without `acts`, requests are kept and served like any event, and
    /// neither delete anything nor keep anything out.
    pub fn new(journal: Journal, clock: Clock, acts: bool) -> Self {
        Self {
            journal,
            clock,
            acts,
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// Whether they are acted on.
    pub fn acts(&self) -> bool {
        self.acts
    }

    /// A request came: noted, durably, before it is stored, as one that is to be carried out.
    pub async fn came(&self, id: EventId) -> Result<Standing, JournalError> {
        let found = self.journal.look(move |look| known(look, &id)).await?;
        if found.as_ref().is_some_and(|known| known.gate.is_some()) {
            return Ok(Standing::Gate);
        }
        let mut acts = vec![Act::Put(key(PENDING, id.as_bytes()), Vec::new())];
        if found.is_none() {
            let known = self.new_one();
            acts.push(known.put(&id));
            acts.push(Act::Put(due_key(known.due(), &id), Vec::new()));
        }
        self.journal.shelve(acts).await?;
        Ok(Standing::Served)
    }

    fn new_one(&self) -> Known {
        Known {
            came: self.clock.now(),
            effect: None,
            gate: None,
        }
    }

    /// A request was carried out to the end.
    pub async fn carried_out(&self, id: EventId) -> Result<(), JournalError> {
        let acts = vec![Act::Remove(key(PENDING, id.as_bytes()))];
        self.journal.shelve(acts).await
    }

    /// The requests that were being carried out when the process ended.
    pub async fn pending(&self) -> Result<Vec<EventId>, JournalError> {
        let look = self
            .journal
            .look(|look| look.range(&[PENDING], None, usize::MAX));
        let found = look.await?.into_iter();
        Ok(found
            .filter_map(|(key, _)| EventId::from_slice(&key[1..]).ok())
            .collect())
    }

    /// There is no such request any more.
    pub async fn forget(&self, id: EventId) -> Result<(), JournalError> {
        let look = self.journal.look(move |look| known(look, &id)).await?;
        let mut acts = vec![
            Act::Remove(key(PENDING, id.as_bytes())),
            Act::Remove(key(RECORD, id.as_bytes())),
        ];
        if let Some(known) = look {
            acts.push(Act::Remove(due_key(known.due(), &id)));
            let gates = known.event().map(|event| gates(&event)).unwrap_or_default();
            acts.extend(gates.into_iter().map(|(key, _)| Act::Remove(key)));
        }
        self.journal.shelve(acts).await
    }

    /// A request deleted something, or kept something out. Gives it, if it was a gate and is to be
    /// served again; [`Requests::served_again`] then.
    async fn effect(&self, id: EventId) -> Result<Option<Event>, JournalError> {
        let now = self.clock.now();
        let found = self.journal.look(move |look| known(look, &id)).await?;
        let before = found.unwrap_or_else(|| self.new_one());
        if let Some(event) = before.event() {
            return Ok(Some(event));
        }
        if before
            .effect
            .is_some_and(|last| now.since(last) < NOTED_EVERY)
        {
            return Ok(None);
        }
        let after = Known {
            effect: Some(now),
            ..before.clone()
        };
        let acts = vec![
            after.put(&id),
            Act::Remove(due_key(before.due(), &id)),
            Act::Put(due_key(after.due(), &id), Vec::new()),
        ];
        self.journal.shelve(acts).await?;
        Ok(None)
    }

    /// A gate is stored again: it is none any more.
    async fn served_again(&self, event: &Event) -> Result<(), JournalError> {
        let id = id_of(event);
        let Some(before) = self.journal.look(move |look| known(look, &id)).await? else {
            return Ok(());
        };
        let after = Known {
            came: before.came,
            effect: Some(self.clock.now()),
            gate: None,
        };
        let mut acts = vec![
            after.put(&id),
            Act::Remove(due_key(before.due(), &id)),
            Act::Put(due_key(after.due(), &id), Vec::new()),
        ];
        let gates = gates(event).into_iter();
        acts.extend(gates.map(|(key, _)| Act::Remove(key)));
        self.journal.shelve(acts).await
    }

    /// An author asked to vanish, up to a time: durable before anything of it is carried out. `false`:
    /// a later request of theirs is known.
    pub async fn vanishes(
        &self,
        author: Npub,
        until: Timestamp,
        id: EventId,
    ) -> Result<bool, JournalError> {
        if let Some((known, other)) = self.vanished(author).await?
            && (known, other) > (until, id)
        {
            return Ok(false);
        }
        let mut value = until.as_secs().to_be_bytes().to_vec();
        value.extend_from_slice(id.as_bytes());
        let acts = vec![
            Act::Put(key(VANISHED, author.as_bytes()), value),
            Act::Put(key(PENDING, id.as_bytes()), Vec::new()),
        ];
        self.journal.shelve(acts).await?;
        Ok(true)
    }

    /// Up to when an author asked to vanish, and by which request.
    pub async fn vanished(
        &self,
        author: Npub,
    ) -> Result<Option<(Timestamp, EventId)>, JournalError> {
        let look = self
            .journal
            .look(move |look| look.get(&key(VANISHED, author.as_bytes())));
        let value = look.await?;
        Ok(value.and_then(|value| {
            let id = EventId::from_slice(value.get(8..)?).ok()?;
            Some((until(&value)?, id))
        }))
    }

    /// The gate that keeps an event out.
    async fn gate(&self, event: &Event) -> Result<Option<EventId>, JournalError> {
        let (author, at) = (author_of(event), event.created_at);
        let mut targets = vec![event.id.to_hex()];
        targets.extend(event.coordinate().map(|address| address.to_string()));
        let look = self.journal.look(move |look| {
            for target in targets {
                let gates = look.range(&gates_of(&author, &target), None, GATES)?;
                let keeps = gates
                    .iter()
                    .find(|(_, value)| until(value).is_some_and(|u| u >= at));
                if let Some((key, _)) = keeps {
                    return Ok(EventId::from_slice(&key[1 + 32 + 32..]).ok());
                }
            }
            Ok(None)
        });
        look.await
    }

    /// Requests that were stored before there were records came now. Once.
    pub async fn adopt(&self, store: &Store) -> Result<(), AgeingError> {
        if self.journal.look(|look| look.get(&[MARK])).await?.is_some() {
            return Ok(());
        }
        let stored = store.apart().items(Filter::new().kind(DELETION)).await?;
        let count = stored.len();
        for chunk in stored.chunks(AT_ONCE) {
            let ids: Vec<EventId> = chunk.iter().map(|(id, _)| *id).collect();
            let new_one = self.new_one();
            let look = self.journal.look(move |look| {
                let mut acts = Vec::new();
                for id in ids {
                    if known(look, &id)?.is_none() {
                        acts.push(new_one.put(&id));
                        acts.push(Act::Put(due_key(new_one.due(), &id), Vec::new()));
                    }
                }
                Ok(acts)
            });
            let acts = look.await?;
            self.journal.shelve(acts).await?;
        }
        self.journal
            .shelve(vec![Act::Put(vec![MARK], Vec::new())])
            .await?;
        if count > 0 {
            tracing::info!(count, "deletion requests that were here already are noted");
        }
        Ok(())
    }
}

/// What keeps an event out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptOut {
    /// This request to delete it.
    Deleted(EventId),
    /// Its author asked to vanish.
    Vanished,
}

/// Why a request was not seen to.
#[derive(Debug, thiserror::Error)]
pub enum AgeingError {
    /// The event store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Release {
    /// Whether the author of an event asked for it to be deleted, before or after it was made, or to
    /// vanish. That it is asked counts as an effect of the request.
    pub async fn keeps_out(&self, event: &Event) -> Result<bool, AgeingError> {
        let kept = self.kept_out_by(event).await?;
        if let Some(KeptOut::Deleted(request)) = kept {
            self.had_an_effect(request).await?;
        }
        Ok(kept.is_some())
    }

    /// The same, without any effect.
    pub async fn kept_out_by(&self, event: &Event) -> Result<Option<KeptOut>, AgeingError> {
        if !self.requests.acts() {
            return Ok(None);
        }
        let id = id_of(event);
        if let Some((until, by)) = self.requests.vanished(author_of(event)).await?
            && event.created_at <= until
            && by != id
        {
            return Ok(Some(KeptOut::Vanished));
        }
        if !deletion::can_be_deleted(event.kind) {
            return Ok(None);
        }
        let stored = deletion::request_for(event, &self.store).await?;
        let request = match stored {
            Some(request) => Some(request),
            None => self.requests.gate(event).await?,
        };
        match request {
            Some(request) if !self.is_outlived(request, event).await? => {
                Ok(Some(KeptOut::Deleted(request)))
            }
            _ => Ok(None),
        }
    }

    /// Whether an event was made after a request came that deletes it by its address and lies in the
    /// future, as was accepted before that was refused: nothing could ever come after it.
    async fn is_outlived(&self, request: EventId, event: &Event) -> Result<bool, AgeingError> {
        let look = move |look: &Look<'_>| known(look, &request);
        let noted = self.requests.journal.look(look).await?;
        let stored = match self.store.apart().by_id(&request).await? {
            Some(stored) => Some(stored),
            None => noted.as_ref().and_then(Known::event),
        };
        let (Some(noted), Some(stored)) = (noted, stored) else {
            return Ok(false);
        };
        let names_it = deletion::targets(&stored).contains(&Target::Id(id_of(event)));
        Ok(stored.created_at > horizon()
            && !names_it
            && event.created_at.as_secs() > noted.came.as_secs())
    }

    /// A request deleted something, or kept something out.
    pub async fn had_an_effect(&self, request: EventId) -> Result<(), AgeingError> {
        let _one_at_a_time = self.requests.changing.lock().await;
        if let Some(event) = self.requests.effect(request).await? {
            self.serve(&event).await?;
            self.requests.served_again(&event).await?;
        }
        Ok(())
    }

    /// Sees to the requests whose time has come: at most so many as one sweep has room for.
    pub async fn age_requests(&self) -> Result<(), AgeingError> {
        let now = self.requests.clock.now();
        let look = self
            .requests
            .journal
            .look(move |look| look.range(&[DUE], None, A_SWEEP));
        for (key, _) in look.await? {
            let Some((at, id)) = read_due(&key) else {
                continue;
            };
            if at > now {
                break;
            }
            self.age(key, id, now).await?;
        }
        Ok(())
    }

    async fn age(&self, due: Key, id: EventId, now: Moment) -> Result<(), AgeingError> {
        let Requests {
            journal, changing, ..
        } = &*self.requests;
        let _one_at_a_time = changing.lock().await;
        let Some(known) = journal.look(move |look| known(look, &id)).await? else {
            return Ok(journal.shelve(vec![Act::Remove(due)]).await?);
        };
        let is_due = known.due() <= now;
        let whole = self.store.apart();
        let stored = whole.by_id(&id).await?;
        let known = match (is_due, known.effect, &known.gate, &stored) {
            (true, None, None, Some(event)) => {
                let known = Known {
                    gate: Some(event.as_json()),
                    ..known
                };
                let mut acts = vec![known.put(&id)];
                acts.extend(
                    gates(event)
                        .into_iter()
                        .map(|(key, until)| Act::Put(key, until.as_secs().to_be_bytes().to_vec())),
                );
                journal.shelve(acts).await?;
                known
            }
            (true, ..) => {
                whole.remove([id]).await?;
                self.requests.forget(id).await?;
                journal.shelve(vec![Act::Remove(due)]).await?;
                if let Some(event) = &stored {
                    self.live.removed(event);
                }
                return Ok(());
            }
            (false, ..) => known,
        };
        // A gate is not served; its next time to be seen to is noted when that is so.
        if known.gate.is_some() {
            whole.remove([id]).await?;
            if let Some(event) = &stored {
                self.live.removed(event);
            }
        }
        let acts = vec![
            Act::Remove(due),
            Act::Put(due_key(known.due(), &id), Vec::new()),
        ];
        Ok(journal.shelve(acts).await?)
    }
}
