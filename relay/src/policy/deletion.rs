//! Kind 5 (NIP-09), by our rules: a request deletes only its own author's events, a target of
//! somebody else is void and voids no other, and a target that was not seen yet stays out.

use grasp_proto::words::{EventId, Npub};
use nostr::{
    Event, Filter, Kind, Timestamp,
    filter::{Alphabet, SingleLetterTag},
};

use crate::{
    nip34::{self, author_of, id_of, values},
    policy::related,
    store::{Store, StoreError, public_key},
};

/// Targets of one request that count; an event that fits the size limit has fewer.
const TARGETS: usize = 5_000;

/// Events of an author about one target that are looked at for a request to delete it.
const LOOKED_AT: usize = 5_000;

/// What a deletion request names that its author may delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An event of this id, if it is its author's.
    Id(EventId),
    /// Versions of an address of its author's own, up to a time.
    Address {
        /// The kind.
        kind: u16,
        /// The `d` tag; empty for events that are replaceable without one.
        identifier: String,
        /// The request's own time.
        until: Timestamp,
    },
}

/// The targets of a request. Addresses of others are left out.
pub fn targets(request: &Event) -> Vec<Target> {
    let author = author_of(request);
    let ids = values(request, "e")
        .filter_map(nip34::event_id)
        .map(Target::Id);
    let addresses = values(request, "a").filter_map(|address| {
        let (kind, owner, identifier) = split_address(address)?;
        (owner == author).then(|| Target::Address {
            kind,
            identifier: identifier.to_owned(),
            until: request.created_at,
        })
    });
    ids.chain(addresses).take(TARGETS).collect()
}

/// Kind, author and name of an address that is written as events' own are: another spelling would
/// not be found by what looks for it.
pub fn split_address(address: &str) -> Option<(u16, Npub, &str)> {
    let mut parts = address.splitn(3, ':');
    let (kind, owner, name) = (parts.next()?, parts.next()?, parts.next()?);
    let number: u16 = kind.parse().ok()?;
    let is_canonical = number.to_string() == kind;
    is_canonical.then_some((number, nip34::public_key(owner)?, name))
}

/// Whether a request may delete events of a kind: requests themselves stay (NIP-09, NIP-62).
pub fn can_be_deleted(kind: Kind) -> bool {
    kind != nip34::DELETION && kind != nip34::VANISH
}

/// The stored request of an event's author for it to be deleted, made before or after it was.
pub async fn request_for(event: &Event, store: &Store) -> Result<Option<EventId>, StoreError> {
    // By author and tag: the requests of others about this event are not even looked at.
    let requests = |tag, value: &str| {
        let by_author = Filter::new().author(public_key(author_of(event)));
        by_author.custom_tag(tag, value).limit(LOOKED_AT)
    };
    let first = |requests: Vec<Event>| {
        let request = requests.iter().find(|one| one.kind == nip34::DELETION);
        request.map(id_of)
    };
    let by_id = requests(related::TO_EVENTS[0], &id_of(event).to_hex());
    if let Some(request) = first(store.query(by_id).await?) {
        return Ok(Some(request));
    }
    let Some(address) = event.coordinate() else {
        return Ok(None);
    };
    let tag = SingleLetterTag::lowercase(Alphabet::A);
    // One that was made before the event does not reach it.
    let by_address = requests(tag, &address.to_string()).since(event.created_at);
    Ok(first(store.query(by_address).await?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::Backend,
        nip34::{
            DELETION, STATE,
            testing::{event, keys},
        },
    };

    async fn is_deleted(event: &Event, store: &Store) -> bool {
        request_for(event, store).await.unwrap().is_some()
    }

    #[test]
    fn a_target_of_somebody_else_voids_no_other() {
        let (own, other) = (keys(1).public_key().to_hex(), "ab".repeat(32));
        let (own, other) = (format!("30618:{own}:a:b"), format!("30618:{other}:x"));
        let request = event(
            &keys(1),
            DELETION,
            7,
            &[&["a", &other], &["a", &own], &["e", "no"]],
        );
        let expected = Target::Address {
            kind: 30618,
            identifier: "a:b".to_owned(),
            until: Timestamp::from(7),
        };
        assert_eq!(targets(&request), [expected]);
    }

    #[test]
    fn an_address_is_spelt_in_one_way() {
        let key = keys(1).public_key().to_hex();
        let is_read = |address: &str| split_address(address).is_some();
        assert!(is_read(&format!("30617:{key}:x")));
        assert!(is_read(&format!("10317:{key}:")));
        for other in [
            format!("030617:{key}:x"),
            format!("+30617:{key}:x"),
            format!("30617:{}:x", key.to_uppercase()),
            format!("10317:{key}"),
        ] {
            assert!(!is_read(&other), "{other}");
        }
    }

    #[tokio::test]
    async fn a_deleted_target_stays_out_in_whichever_order_requests_come() {
        let store = Store::open(Backend::Memory, Path::new("")).await.unwrap();
        let state = |seed, at| event(&keys(seed), STATE, at, &[&["d", "x"]]);
        let address = format!("30618:{}:x", keys(1).public_key().to_hex());
        for at in [20, 10] {
            let request = event(&keys(1), DELETION, at, &[&["a", &address]]);
            store.save(&request).await.unwrap();
        }
        assert!(is_deleted(&state(1, 20), &store).await);
        assert!(!is_deleted(&state(1, 21), &store).await);
        assert!(!is_deleted(&state(2, 5), &store).await);
        let by_id = event(&keys(2), DELETION, 1, &[&["e", &state(2, 5).id.to_hex()]]);
        store.save(&by_id).await.unwrap();
        assert!(is_deleted(&state(2, 5), &store).await);
        let forged = event(&keys(3), DELETION, 1, &[&["e", &state(1, 21).id.to_hex()]]);
        store.save(&forged).await.unwrap();
        assert!(!is_deleted(&state(1, 21), &store).await);
    }
}
