//! What is held here – served or waiting – as those need to know it who compare it with what other
//! relays hold. Blocks; to be called on a blocking thread.

use grasp_proto::words::{EventId, Identifier, RepoId};
use nostr::{
    Event, Filter, Kind, Timestamp,
    filter::{Alphabet, MatchEventOptions, SingleLetterTag},
};
use tokio::runtime::Handle;

use super::judge::Judge;
use crate::{
    nip34::{ANNOUNCEMENT, PULL_REQUEST, PULL_REQUEST_UPDATE, STATE, has_expired},
    release::Release,
    repository::Standing,
    store::{StoreError, matches_nothing},
};

const D: SingleLetterTag = SingleLetterTag::lowercase(Alphabet::D);

/// One event that is held.
pub type Item = (Timestamp, EventId);

/// Ids and times of what is held under a filter, latest first, each once.
pub fn inventory(release: &Release, mut filter: Filter) -> Result<Vec<Item>, StoreError> {
    let limit = filter.limit.take();
    if limit == Some(0) || matches_nothing(&filter) {
        return Ok(Vec::new());
    }
    let stored = Handle::current().block_on(release.store.public_items(filter.clone()))?;
    let mut items: Vec<Item> = stored.into_iter().map(|(id, at)| (at, id)).collect();
    let now = Timestamp::from(release.purgatory.now().as_secs());
    let mut see = |event: &Event| {
        if !has_expired(event, now) && filter.match_event(event, MatchEventOptions::new()) {
            items.push((event.created_at, crate::nip34::id_of(event)));
        }
    };
    waiting(release, &filter, &mut see);
    // One that is served may wait on for another repository.
    items.sort_unstable_by(|a, b| b.cmp(a));
    items.dedup();
    items.truncate(limit.unwrap_or(usize::MAX));
    Ok(items)
}

/// Shows what waits and may match a filter. What waits is not walked through for kinds that are not
/// asked for, nor for identifiers that are named.
fn waiting(release: &Release, filter: &Filter, see: &mut impl FnMut(&Event)) {
    let purgatory = &release.purgatory;
    let kinds = filter.kinds.as_ref().filter(|kinds| !kinds.is_empty());
    let asked = |kind: &Kind| kinds.is_none_or(|kinds| kinds.contains(kind));
    let identifiers = filter
        .generic_tags
        .get(&D)
        .filter(|names| !names.is_empty());
    // What is none is the name of nothing that waits.
    let identifiers: Option<Vec<Identifier>> = identifiers.map(|names| {
        let names = names.iter().filter_map(|name| Identifier::parse(name).ok());
        names.collect()
    });
    if asked(&ANNOUNCEMENT) {
        match &identifiers {
            Some(identifiers) => {
                for identifier in identifiers {
                    for owner in release.repositories.owners(identifier, Standing::Waiting) {
                        let identifier = identifier.clone();
                        let repo = RepoId { owner, identifier };
                        if let Some(entry) = purgatory.announcements.get(&repo) {
                            see(&entry.announcement.event);
                        }
                    }
                }
            }
            None => purgatory
                .announcements
                .each(|entry| see(&entry.announcement.event)),
        }
    }
    if asked(&STATE) {
        match &identifiers {
            Some(identifiers) => {
                for identifier in identifiers {
                    for entry in purgatory.states.by_identifier(identifier) {
                        see(&entry.state.event);
                    }
                }
            }
            None => purgatory.states.each(|entry| see(&entry.state.event)),
        }
    }
    if asked(&PULL_REQUEST) || asked(&PULL_REQUEST_UPDATE) {
        purgatory.pull_requests.each(|entry| {
            if let Some(request) = &entry.request {
                see(&request.event);
            }
        });
    }
}

/// Which of these are worth fetching. One that its author had deleted is found out when it comes, and
/// remembered then: by its id alone nobody can tell whose it is.
pub fn lacking(
    release: &Release,
    judge: &Judge,
    ids: Vec<EventId>,
) -> Result<Vec<EventId>, StoreError> {
    let purgatory = &release.purgatory;
    let mut lacking = Vec::new();
    for id in ids {
        let is_known =
            purgatory.holds(&id) || purgatory.expired_lately(&id) || judge.rejected_lately(&id);
        if !is_known && !Handle::current().block_on(release.store.has(&id))? {
            lacking.push(id);
        }
    }
    Ok(lacking)
}
