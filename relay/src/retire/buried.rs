//! What goes by itself, deleted or replaced, while others lean on it.

use std::collections::HashSet;

use grasp_proto::words::EventId;
use nostr::{Event, Filter};

use super::{RetireError, fallen::leans};
use crate::{
    holding::tombstones::Tombstone,
    nip34::{Meaning, author_of, id_of, later, repository_coordinate},
    policy::{deletion::split_address, related},
    release::{Release, ReleaseError},
    repository::Standing,
};

impl Release {
    /// An event is about to go by itself: what it connects others with is remembered, if it does.
    pub async fn bury(&self, event: &Event) -> Result<(), RetireError> {
        if related::relates(event.kind) && self.connects(event).await? {
            self.holding.bury(event).await?;
        }
        Ok(())
    }

    /// A later version of an event is about to be stored.
    pub(crate) async fn bury_replaced(&self, event: &Event) -> Result<(), RetireError> {
        let Some(address) = event.coordinate() else {
            return Ok(());
        };
        let author = author_of(event);
        let whole = self.store.apart();
        let before = whole.version(event.kind, author, &address.identifier);
        match before.await? {
            Some(before) if later(event, &before).is_gt() => self.bury(&before).await,
            _ => Ok(()),
        }
    }

    /// Whether something refers to an event by its id, or was accepted because the event refers to it.
    async fn connects(&self, event: &Event) -> Result<bool, RetireError> {
        let (whole, id) = (self.store.apart(), event.id.to_hex());
        for tag in related::TO_EVENTS {
            let referring = Filter::new().custom_tag(tag, &id);
            if related::is_referred_to(event, referring, &whole).await? {
                return Ok(true);
            }
        }
        if !self.holding.buried_under(&[id]).await?.is_empty() {
            return Ok(true);
        }
        let leans = |other: &Event| leans(Meaning::of(other.kind)) && !self.is_of_served(other);
        let referred: Vec<EventId> = related::events(event).into_iter().collect();
        if whole.by_ids(&referred).await?.iter().any(leans) {
            return Ok(true);
        }
        for address in related::addresses(event) {
            if repository_coordinate(address).is_none()
                && let Some((kind, author, name)) = split_address(address)
                && let Some(other) = whole.version(kind.into(), author, name).await?
                && leans(&other)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_of_served(&self, event: &Event) -> bool {
        let repositories = related::repositories(event);
        let mut standings = repositories
            .iter()
            .filter_map(|repo| self.repositories.standing(repo));
        standings.any(Standing::is_served)
    }

    /// Whether an event belongs to something that is served by way of what has gone by itself.
    pub async fn belongs_by_what_is_buried(&self, event: &Event) -> Result<bool, ReleaseError> {
        let mut references = vec![event.id.to_hex()];
        references.extend(event.coordinate().map(|address| address.to_string()));
        let mut to_see = self.holding.buried_under(&references).await?;
        to_see.extend(related::events(event));
        let mut seen = HashSet::from([id_of(event)]);
        while let Some(id) = to_see.pop() {
            if seen.len() > related::FOLLOWED || !seen.insert(id) {
                continue;
            }
            let Some(tombstone) = self.holding.tombstones(&[id]).await?.remove(&id) else {
                continue;
            };
            if self.keeps(&tombstone) {
                return Ok(true);
            }
            for other in tombstone.events() {
                let stored = self.store.by_id(&other).await?;
                if stored.is_some_and(|stored| related::relates(stored.kind)) {
                    return Ok(true);
                }
                to_see.push(other);
            }
            to_see.extend(self.holding.buried_under(&[id.to_hex()]).await?);
        }
        Ok(false)
    }

    /// Whether what it was accepted for is served.
    fn keeps(&self, tombstone: &Tombstone) -> bool {
        if let Some((identifier, author)) = tombstone.state() {
            return self.is_trusted(&identifier, &author);
        }
        let repositories = tombstone.repositories();
        let mut standings = repositories
            .iter()
            .filter_map(|repo| self.repositories.standing(repo));
        standings.any(Standing::is_served)
    }
}
