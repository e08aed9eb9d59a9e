//! What is held here – served or waiting – as those need to know it who compare it with what other
//! relays hold. Blocks; to be called on a blocking thread.

use grasp_proto::words::EventId;
use nostr::{Event, Filter, Timestamp, filter::MatchEventOptions};
use tokio::runtime::Handle;

use super::judge::Judge;
use crate::{release::Release, store::StoreError};

/// One event that is held.
pub type Item = (Timestamp, EventId);

/// Ids and times of what is held under a filter, latest first, each once.
pub fn inventory(release: &Release, mut filter: Filter) -> Result<Vec<Item>, StoreError> {
    let limit = filter.limit.take();
    if limit == Some(0) {
        return Ok(Vec::new());
    }
    let stored = Handle::current().block_on(release.store.items(filter.clone()))?;
    let mut items: Vec<Item> = stored.into_iter().map(|(id, at)| (at, id)).collect();
    let mut see = |event: &Event| {
        if filter.match_event(event, MatchEventOptions::new()) {
            items.push((event.created_at, crate::nip34::id_of(event)));
        }
    };
    let purgatory = &release.purgatory;
    purgatory
        .announcements
        .each(|entry| see(&entry.announcement.event));
    purgatory.states.each(|entry| see(&entry.state.event));
    purgatory.pull_requests.each(|entry| {
        if let Some(request) = &entry.request {
            see(&request.event);
        }
    });
    // One that is served may wait on for another repository.
    items.sort_unstable_by(|a, b| b.cmp(a));
    items.dedup();
    items.truncate(limit.unwrap_or(usize::MAX));
    Ok(items)
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
            purgatory.holds(&id) || purgatory.expired_once(&id) || judge.rejected_lately(&id);
        if !is_known && !Handle::current().block_on(release.store.has(&id))? {
            lacking.push(id);
        }
    }
    Ok(lacking)
}
