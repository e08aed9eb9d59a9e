//! NIP-34 events, read once and carried as types from there.

pub mod announcement;
pub mod bounds;
pub mod pull_request;
pub mod roles;
pub mod state;

use std::{
    cmp::Ordering,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
use nostr::{Event, Kind, Timestamp};

/// Repository announcement.
pub const ANNOUNCEMENT: Kind = Kind::Custom(30617);
/// Repository state.
pub const STATE: Kind = Kind::Custom(30618);
/// Pull request.
pub const PULL_REQUEST: Kind = Kind::Custom(1618);
/// Pull request update.
pub const PULL_REQUEST_UPDATE: Kind = Kind::Custom(1619);
/// User grasp list.
pub const GRASP_LIST: Kind = Kind::Custom(10317);
/// Deletion request (NIP-09).
pub const DELETION: Kind = Kind::Custom(5);

/// Request to vanish (NIP-62).
pub const VANISH: Kind = Kind::Custom(62);

/// What an event means here. ([`Kind`] cannot be matched on by value.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Kind 30617.
    Announcement,
    /// Kind 30618.
    State,
    /// Kinds 1618 and 1619.
    PullRequest,
    /// Kind 10317.
    GraspList,
    /// Kind 5.
    Deletion,
    /// Kind 62.
    Vanish,
    /// Any other kind.
    Other,
}

impl Meaning {
    /// What a kind means.
    pub fn of(kind: Kind) -> Self {
        match kind.as_u16() {
            30617 => Self::Announcement,
            30618 => Self::State,
            1618 | 1619 => Self::PullRequest,
            10317 => Self::GraspList,
            5 => Self::Deletion,
            62 => Self::Vanish,
            _ => Self::Other,
        }
    }
}

/// Why an event is not what its kind says. The text is fit to be shown to its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

/// The id of an event, as a word.
pub fn id_of(event: &Event) -> EventId {
    EventId::from_bytes(event.id.to_bytes())
}

/// The author of an event, as a word.
pub fn author_of(event: &Event) -> Npub {
    Npub::from_bytes(event.pubkey.to_bytes())
}

/// An event id as tags must have it (NIP-01: lower case), so that a search by its text finds it.
pub fn event_id(text: &str) -> Option<EventId> {
    EventId::from_hex(text)
        .ok()
        .filter(|id| id.to_hex() == text)
}

/// A public key as tags must have it.
pub fn public_key(text: &str) -> Option<Npub> {
    Npub::from_hex(text).ok().filter(|key| key.to_hex() == text)
}

/// The identifier an addressable event names itself by. It may name itself by one only.
pub fn identifier_of(event: &Event) -> Result<Identifier, Malformed> {
    let mut tags = values(event, "d");
    let tag = tags
        .next()
        .ok_or_else(|| Malformed("no d tag".to_owned()))?;
    if tags.any(|other| other != tag) {
        return Err(Malformed("more than one d tag".to_owned()));
    }
    Identifier::parse(tag).map_err(|error| Malformed(error.to_string()))
}

/// First values of all tags of one name.
pub fn values<'a>(event: &'a Event, name: &'a str) -> impl Iterator<Item = &'a str> {
    event
        .tags
        .iter()
        .filter(move |tag| tag.kind() == name)
        .filter_map(|tag| tag.content())
}

/// All values of all tags of one name.
pub fn all_values<'a>(event: &'a Event, name: &'a str) -> impl Iterator<Item = &'a str> {
    event
        .tags
        .iter()
        .filter(move |tag| tag.kind() == name)
        .flat_map(|tag| tag.as_slice().iter().skip(1).map(String::as_str))
}

/// Reads `30617:<owner in hex>:<identifier>`; `None` for any other coordinate.
pub fn repository_coordinate(text: &str) -> Option<RepoId> {
    let mut parts = text.splitn(3, ':');
    if parts.next()? != "30617" {
        return None;
    }
    let owner = public_key(parts.next()?)?;
    let identifier = Identifier::parse(parts.next()?).ok()?;
    Some(RepoId { owner, identifier })
}

/// How far an event may be ahead of now, in seconds, as the relay was told.
static AHEAD: AtomicU64 = AtomicU64::new(15 * 60);

/// Events may be so far ahead of now, in this process.
pub fn set_created_at_ahead(ahead: Duration) {
    AHEAD.store(ahead.as_secs(), Relaxed);
}

/// The latest time that an event accepted now can have.
pub fn horizon() -> Timestamp {
    Timestamp::now() + AHEAD.load(Relaxed)
}

/// Which of two versions of one replaceable event is the later: by `created_at`, at equal times the
/// one with the lower id. `Greater`: `a` wins. The one order for store, purgatory, authorisation
/// and alignment.
///
/// One from behind the horizon, as was accepted before there was one, comes before all others: it is
/// served until the next honest version of anybody's.
pub fn later(a: &Event, b: &Event) -> Ordering {
    later_as_of(a, b, horizon())
}

/// The same, with the latest time that counts.
fn later_as_of(a: &Event, b: &Event, horizon: Timestamp) -> Ordering {
    let counts = |event: &Event| event.created_at <= horizon;
    counts(a)
        .cmp(&counts(b))
        .then_with(|| a.created_at.cmp(&b.created_at))
        .then_with(|| b.id.cmp(&a.id))
}

/// When an event expires by its own word (NIP-40).
pub fn expires_at(event: &Event) -> Option<Timestamp> {
    event.tags.expiration()
}

/// Whether it has: from the second on that it names.
pub fn has_expired(event: &Event, now: Timestamp) -> bool {
    expires_at(event).is_some_and(|at| at <= now)
}

#[cfg(test)]
pub(crate) mod testing {
    //! Events for tests.

    use nostr::{
        Event, EventBuilder, Kind, Tag, Timestamp,
        event::FinalizeEvent,
        key::{Keys, SecretKey},
    };

    /// Keys that are the same in every run.
    pub fn keys(seed: u8) -> Keys {
        Keys::new(SecretKey::from_slice(&[seed.max(1); 32]).unwrap())
    }

    /// A signed event.
    pub fn event(keys: &Keys, kind: Kind, at: u64, tags: &[&[&str]]) -> Event {
        let tags = tags
            .iter()
            .map(|tag| Tag::parse(tag.iter().copied()).unwrap());
        EventBuilder::new(kind, "")
            .tags(tags)
            .custom_created_at(Timestamp::from(at))
            .finalize(keys)
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::testing::{event, keys};

    #[test]
    fn of_two_versions_the_later_then_the_lower_id_wins() {
        let old = event(&keys(1), STATE, 10, &[&["d", "x"]]);
        let new = event(&keys(1), STATE, 11, &[&["d", "x"]]);
        assert_eq!(later(&new, &old), Ordering::Greater);
        let twin = event(&keys(1), STATE, 10, &[&["d", "x"], &["t", "y"]]);
        let (low, high) = if old.id < twin.id {
            (&old, &twin)
        } else {
            (&twin, &old)
        };
        assert_eq!(later(low, high), Ordering::Greater);
        assert_eq!(later(low, low), Ordering::Equal);
    }

    #[test]
    fn what_is_made_in_the_future_comes_before_all_others() {
        let at = |at| event(&keys(1), STATE, at, &[&["d", "x"]]);
        let horizon = Timestamp::from(100);
        for honest in [1, 50, 100] {
            for ahead in [101, 1_000_000] {
                let (honest, ahead) = (at(honest), at(ahead));
                assert_eq!(later_as_of(&honest, &ahead, horizon), Ordering::Greater);
                assert_eq!(later_as_of(&ahead, &honest, horizon), Ordering::Less);
            }
        }
        assert_eq!(later_as_of(&at(102), &at(101), horizon), Ordering::Greater);
        let now = Timestamp::now().as_secs();
        assert_eq!(later(&at(now), &at(now * 1000)), Ordering::Greater);
    }

    #[test]
    fn coordinates_may_hold_colons() {
        let owner = "ab".repeat(32);
        let repo = repository_coordinate(&format!("30617:{owner}:a:b")).unwrap();
        assert_eq!(repo.identifier.as_str(), "a:b");
        assert!(repository_coordinate(&format!("30618:{owner}:a")).is_none());
        assert!(repository_coordinate(&format!("30617:{owner}:")).is_none());
    }
}
