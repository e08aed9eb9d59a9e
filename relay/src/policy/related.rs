//! References to what is accepted: which events belong to something that is served here.

use std::collections::BTreeSet;

use grasp_proto::words::{EventId, RepoId};
use nostr::{
    Event, Filter, Kind,
    filter::{Alphabet, SingleLetterTag},
};

use crate::{
    nip34::{self, event_id, id_of, repository_coordinate},
    repository::{Repositories, Standing},
    store::{Store, StoreError},
};

const fn lower(letter: Alphabet) -> SingleLetterTag {
    SingleLetterTag::lowercase(letter)
}

const fn upper(letter: Alphabet) -> SingleLetterTag {
    SingleLetterTag::uppercase(letter)
}

/// References to an event: `e`, `E`, `q` = its id.
pub const TO_EVENTS: [SingleLetterTag; 3] =
    [lower(Alphabet::E), upper(Alphabet::E), lower(Alphabet::Q)];
/// References to an address: `a`, `A`, `q` = its coordinate.
pub const TO_ADDRESSES: [SingleLetterTag; 3] =
    [lower(Alphabet::A), upper(Alphabet::A), lower(Alphabet::Q)];

/// References one event is followed up for at most; the first ones count.
pub const FOLLOWED: usize = 200;

fn referenced<'a>(event: &'a Event, tags: &[&str]) -> Vec<&'a str> {
    let all = event.tags.iter().filter(|tag| tags.contains(&tag.kind()));
    all.filter_map(|tag| tag.content()).take(FOLLOWED).collect()
}

/// The repositories an event refers to.
pub fn repositories(event: &Event) -> BTreeSet<RepoId> {
    let values = referenced(event, &["a", "A", "q"]);
    values
        .into_iter()
        .filter_map(repository_coordinate)
        .collect()
}

/// What an event refers to by `a`, `A` or `q` and that may be an address.
pub fn addresses(event: &Event) -> BTreeSet<&str> {
    let values = referenced(event, &["a", "A", "q"]).into_iter();
    values.filter(|value| value.contains(':')).collect()
}

/// Whether events of a kind relate others: deletion requests and requests to vanish do not, as
/// anybody may file one about anything.
pub fn relates(kind: Kind) -> bool {
    kind != nip34::DELETION && kind != nip34::VANISH
}

/// The events an event refers to.
pub fn events(event: &Event) -> BTreeSet<EventId> {
    let values = referenced(event, &["e", "E", "q"]);
    values.into_iter().filter_map(event_id).collect()
}

/// The filters for what refers to an event, by its id or its address.
pub fn referring_to(event: &Event) -> Vec<Filter> {
    let id = event.id.to_hex();
    let by_id = TO_EVENTS.map(|tag| Filter::new().custom_tag(tag, &id));
    let mut filters = by_id.to_vec();
    if let Some(address) = event.coordinate() {
        let address = address.to_string();
        filters.extend(TO_ADDRESSES.map(|tag| Filter::new().custom_tag(tag, &address)));
    }
    filters
}

/// Whether one of the references of an event that count is to another.
fn refers_to(event: &Event, other: &Event) -> bool {
    let address = other.coordinate().map(|address| address.to_string());
    events(event).contains(&id_of(other))
        || address.is_some_and(|address| addresses(event).contains(&*address))
}

/// Whether an event refers to a served repository or a stored event, or is referred to by one.
pub async fn is_related(
    event: &Event,
    repositories_here: &Repositories,
    store: &Store,
) -> Result<bool, StoreError> {
    let served = |repo: &RepoId| {
        repositories_here
            .standing(repo)
            .is_some_and(Standing::is_served)
    };
    if repositories(event).iter().any(served) {
        return Ok(true);
    }
    for id in &events(event) {
        let stored = store.by_id(id).await?;
        if stored.is_some_and(|stored| relates(stored.kind)) {
            return Ok(true);
        }
    }
    for filter in referring_to(event) {
        if is_referred_to(event, filter, store).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Pages of references that are looked through: deletion requests, of which anybody can file many,
/// may come before the one that counts.
const PAGES: usize = 20;

/// Whether something that counts is among what a filter finds and refers to an event.
pub(crate) async fn is_referred_to(
    event: &Event,
    filter: Filter,
    store: &Store,
) -> Result<bool, StoreError> {
    let counts =
        |other: &Event| relates(other.kind) && other.id != event.id && refers_to(other, event);
    let mut page = filter.limit(FOLLOWED);
    for _ in 0..PAGES {
        let referring = store.query(page.clone()).await?;
        if referring.iter().any(counts) {
            return Ok(true);
        }
        match referring.last() {
            Some(oldest) if referring.len() >= FOLLOWED => page = page.until(oldest.created_at),
            _ => break,
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::Backend,
        nip34::testing::{event, keys},
    };

    #[tokio::test]
    async fn references_count_both_ways_up_to_the_same_one() {
        let store = Store::open(Backend::Memory, Path::new("")).await.unwrap();
        let note = |at| event(&keys(1), Kind::Custom(1111), at, &[&["t", "x"]]);
        let ids: Vec<String> = (0..=FOLLOWED as u64)
            .map(|at| note(at).id.to_hex())
            .collect();
        let tags: Vec<[&str; 2]> = ids.iter().map(|id| ["e", id.as_str()]).collect();
        let tags: Vec<&[&str]> = tags.iter().map(|tag| &tag[..]).collect();
        let referring = event(&keys(2), Kind::Custom(1111), 1, &tags);
        store.save(&referring).await.unwrap();
        let none = Repositories::default();
        let last = FOLLOWED as u64 - 1;
        for (at, counts) in [(0, true), (last, true), (last + 1, false)] {
            let related = is_related(&note(at), &none, &store).await.unwrap();
            assert_eq!(related, counts, "{at}");
            assert_eq!(events(&referring).contains(&id_of(&note(at))), counts);
        }
    }
}
