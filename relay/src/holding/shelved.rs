//! What is held, as the journal's shelf keeps it.
//!
//! ```text
//! h <owner> <identifier>          a hold
//! e <event id>                    a held event, as JSON
//! l <hold's number> <event id>    a hold has an event: what is to be done with it, its time
//! b <event id> <hold's number>    the same, to be found by the event
//! a <author> <kind> <event id>    a held event, to be found by its author
//! ```

use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
use nostr::{Event, Kind, Timestamp};

use super::{Fate, Hold};
use crate::{
    journal::{
        JournalError, Key, key,
        shelf::{Act, Look},
    },
    nip34::{author_of, id_of},
};

pub(super) const HOLD: u8 = b'h';
const EVENT: u8 = b'e';
const LINK: u8 = b'l';
const BACK: u8 = b'b';
const AUTHOR: u8 = b'a';

/// Holds of one event at most, but for those of a repository with which it falls again: what more of
/// them would want it back is not linked.
const HOLDS_OF_AN_EVENT: usize = 64;
/// So many are looked at.
const LOOKED_AT: usize = 1_000;

/// A hold has an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub id: EventId,
    pub fate: Fate,
    pub at: Timestamp,
}

pub(super) fn put_hold(repo: &RepoId, hold: &Hold) -> Act {
    let value = serde_json::to_vec(hold).expect("a hold is plain data");
    Act::Put(hold_key(repo), value)
}

pub(super) fn hold_key(repo: &RepoId) -> Key {
    let mut key = key(HOLD, repo.owner.as_bytes());
    key.extend_from_slice(repo.identifier.as_str().as_bytes());
    key
}

pub(super) fn read_hold(key: &[u8], value: &[u8]) -> Option<(RepoId, Hold)> {
    let (owner, identifier) = key.get(1..)?.split_at_checked(32)?;
    let repo = RepoId {
        owner: Npub::from_slice(owner).ok()?,
        identifier: Identifier::parse(std::str::from_utf8(identifier).ok()?).ok()?,
    };
    Some((repo, serde_json::from_slice(value).ok()?))
}

pub(super) fn event_key(id: &EventId) -> Key {
    key(EVENT, id.as_bytes())
}

pub(super) fn read_event(json: &[u8]) -> Option<Event> {
    let event = Event::from_json(std::str::from_utf8(json).ok()?);
    match event {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::error!(%error, "a held event is unreadable");
            None
        }
    }
}

fn put_event(event: &Event) -> [Act; 2] {
    let id = id_of(event);
    let by_author = author_key(&author_of(event), event.kind, &id);
    [
        Act::Put(event_key(&id), event.as_json().into_bytes()),
        Act::Put(by_author, Vec::new()),
    ]
}

pub(super) fn links_of(number: u64) -> Key {
    key(LINK, &number.to_be_bytes())
}

pub(super) fn link_key(number: u64, id: &EventId) -> Key {
    let mut key = links_of(number);
    key.extend_from_slice(id.as_bytes());
    key
}

fn back_key(id: &EventId, number: u64) -> Key {
    let mut key = key(BACK, id.as_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn link_value(fate: Fate, at: Timestamp) -> Vec<u8> {
    let fate = match fate {
        Fate::Taken => b't',
        Fate::Held => b'h',
        Fate::Dropped => b'd',
    };
    key(fate, &at.as_secs().to_be_bytes())
}

/// Links an event to holds, with a copy of it if one of them keeps it.
pub(super) fn link_all(holds: &[(u64, Fate)], event: &Event) -> Vec<Act> {
    let links = holds.iter();
    let mut acts: Vec<Act> = links
        .flat_map(|(number, fate)| link(*number, *fate, event))
        .collect();
    if holds.iter().any(|(_, fate)| *fate != Fate::Dropped) {
        acts.extend(put_event(event));
    }
    acts
}

/// What is not kept has no way back.
fn link(number: u64, fate: Fate, event: &Event) -> Vec<Act> {
    let id = id_of(event);
    let value = link_value(fate, event.created_at);
    let mut acts = vec![Act::Put(link_key(number, &id), value)];
    if fate != Fate::Dropped {
        acts.push(Act::Put(back_key(&id, number), Vec::new()));
    }
    acts
}

pub(super) fn read_link(key: &[u8], value: &[u8]) -> Option<Link> {
    let id = EventId::from_slice(key.get(1 + 8..)?).ok()?;
    let (fate, at) = value.split_first()?;
    let fate = match fate {
        b't' => Fate::Taken,
        b'h' => Fate::Held,
        b'd' => Fate::Dropped,
        _ => return None,
    };
    let at = Timestamp::from(u64::from_be_bytes(at.try_into().ok()?));
    Some(Link { id, fate, at })
}

pub(super) fn authors(author: &Npub, kind: Option<Kind>) -> Key {
    let mut key = key(AUTHOR, author.as_bytes());
    if let Some(kind) = kind {
        key.extend_from_slice(&kind.as_u16().to_be_bytes());
    }
    key
}

pub(super) fn author_key(author: &Npub, kind: Kind, id: &EventId) -> Key {
    let mut key = authors(author, Some(kind));
    key.extend_from_slice(id.as_bytes());
    key
}

pub(super) fn read_author(key: &[u8]) -> Option<(Kind, EventId)> {
    let (kind, id) = key.get(1 + 32..)?.split_at_checked(2)?;
    let kind = u16::from_be_bytes(kind.try_into().ok()?);
    Some((Kind::from(kind), EventId::from_slice(id).ok()?))
}

/// The numbers of the holds that have an event.
fn holds_of(look: &Look<'_>, id: &EventId) -> Result<Vec<u64>, JournalError> {
    let found = look.range(&key(BACK, id.as_bytes()), None, LOOKED_AT)?;
    let number = |key: Key| Some(u64::from_be_bytes(key.get(1 + 32..)?.try_into().ok()?));
    Ok(found
        .into_iter()
        .filter_map(|(key, _)| number(key))
        .collect())
}

/// How many holds more may have an event.
pub(super) fn room_of(look: &Look<'_>, id: &EventId) -> Result<usize, JournalError> {
    Ok(HOLDS_OF_AN_EVENT.saturating_sub(holds_of(look, id)?.len()))
}

fn remove_event(look: &Look<'_>, id: &EventId) -> Result<Vec<Act>, JournalError> {
    let mut acts = vec![Act::Remove(event_key(id))];
    if let Some(event) = look.get(&event_key(id))?.as_deref().and_then(read_event) {
        let by_author = author_key(&author_of(&event), event.kind, id);
        acts.push(Act::Remove(by_author));
    }
    Ok(acts)
}

/// No hold has the event any more; nothing to do if none had.
pub(super) fn forget_event(look: &Look<'_>, id: &EventId) -> Result<Vec<Act>, JournalError> {
    let mut acts = Vec::new();
    for number in holds_of(look, id)? {
        acts.push(Act::Remove(link_key(number, id)));
        acts.push(Act::Remove(back_key(id, number)));
    }
    if !acts.is_empty() {
        acts.extend(remove_event(look, id)?);
    }
    Ok(acts)
}

/// One hold has the event no more; with the last one it goes.
pub(super) fn unlink(look: &Look<'_>, number: u64, id: &EventId) -> Result<Vec<Act>, JournalError> {
    let mut acts = vec![
        Act::Remove(link_key(number, id)),
        Act::Remove(back_key(id, number)),
    ];
    if holds_of(look, id)?.iter().all(|other| *other == number) {
        acts.extend(remove_event(look, id)?);
    }
    Ok(acts)
}
