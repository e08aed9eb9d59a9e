//! What is kept and not to be found: by an operator's lists, as it has expired, or as nobody asked
//! for it.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use nostr::{EventId, Filter};

/// Who knows which events have expired (NIP-40), by their ids alone.
pub trait Unseen: fmt::Debug + Send + Sync {
    /// Whether the event of this id has expired.
    fn has_expired(&self, id: &EventId) -> bool;

    /// Whether any event has expired that is not known to be gone.
    fn any_has(&self) -> bool;
}

/// Whether a filter can match no event: one of its lists is empty (NIP-01 has lists to choose from), or
/// it asks for a time that is none. Databases take an empty list for one that is not there.
pub fn matches_nothing(filter: &Filter) -> bool {
    let no_time = filter
        .since
        .zip(filter.until)
        .is_some_and(|(since, until)| since > until);
    no_time
        || filter.ids.as_ref().is_some_and(|ids| ids.is_empty())
        || filter
            .authors
            .as_ref()
            .is_some_and(|authors| authors.is_empty())
        || filter.kinds.as_ref().is_some_and(|kinds| kinds.is_empty())
        || filter.generic_tags.values().any(|values| values.is_empty())
}

/// Ids of events that are kept and not served, as if they were not there. As many as are kept.
#[derive(Debug, Clone, Default)]
pub(super) struct Withheld(Arc<RwLock<Arc<HashSet<EventId>>>>);

impl Withheld {
    pub(super) fn now(&self) -> Arc<HashSet<EventId>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn replace(&self, ids: HashSet<EventId>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ids);
    }

    pub(super) fn add(&self, more: impl Iterator<Item = EventId>) {
        let mut ids = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut ids).extend(more);
    }

    /// Not withheld any more; says whether it was.
    pub(super) fn release(&self, id: &EventId) -> bool {
        let mut ids = self.0.write().unwrap_or_else(PoisonError::into_inner);
        ids.contains(id) && Arc::make_mut(&mut ids).remove(id)
    }
}
