//! What the demonstration has published on a server of somebody's, and its deletion (NIP-09).

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use nostr::{
    Event, Keys,
    event::{EventBuilder, FinalizeEvent, Kind, Tag},
    nips::nip19::ToBech32,
};
use tokio::time::timeout;

use super::relay::Relay;
use crate::text::plain;

/// How long the deletion may take: somebody may have pressed Ctrl-C.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is to be deleted at the end.
pub struct Leftovers {
    are_deleted: bool,
    published: Mutex<Published>,
}

#[derive(Default)]
struct Published {
    relay: String,
    keys: Option<Keys>,
    events: Vec<Event>,
}

impl Leftovers {
    /// None so far; they stay unless they are to be deleted.
    pub fn new(are_deleted: bool) -> Self {
        Self {
            are_deleted,
            published: Mutex::default(),
        }
    }

    /// Events by this key may be on this relay from now on.
    pub fn may_come(&self, relay: &str, keys: &Keys) {
        let mut published = self.lock();
        relay.clone_into(&mut published.relay);
        published.keys = Some(keys.clone());
    }

    /// This event is about to be published: from now on it may be there, whatever the answer is.
    pub fn add(&self, event: &Event) {
        self.lock().events.push(event.clone());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Published> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes them, and says so; `None`: there was nothing to delete.
    pub async fn delete(self) -> anyhow::Result<Option<String>> {
        let published = self.published.into_inner();
        let published = published.unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = published.keys else {
            return Ok(None);
        };
        if !self.are_deleted || published.events.is_empty() {
            return Ok(None);
        }
        let (relay, events) = (published.relay, published.events);
        let deleted = timeout(PATIENCE, delete(&relay, &keys, &events)).await;
        let deleted = deleted.context("no answer in time").and_then(|done| done);
        match deleted {
            Ok(()) => Ok(Some(format!(
                "              deleted from {relay}: {} events\n",
                events.len()
            ))),
            Err(error) => {
                let secret = keys.secret_key().to_bech32()?;
                Err(error.context(format!(
                    "what was published may still be at {relay}; it can be deleted with its key {secret}"
                )))
            }
        }
    }
}

async fn delete(url: &str, keys: &Keys, events: &[Event]) -> anyhow::Result<()> {
    let mut relay = Relay::connect(url).await?;
    let verdict = relay.publish(&request(keys, events)?).await?;
    ensure!(
        verdict.accepted,
        "the server refused to delete it: {}",
        plain(&verdict.message)
    );
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    let left = relay.count(&ids).await?;
    ensure!(left == 0, "the server still serves {left} of the events");
    Ok(())
}

/// The request to delete these events, as versions and by their addresses, so that none comes back.
fn request(keys: &Keys, events: &[Event]) -> anyhow::Result<Event> {
    let mut tags = Vec::new();
    for event in events {
        let kind = event.kind.as_u16().to_string();
        tags.push(Tag::parse(["e", &event.id.to_hex()])?);
        if let Some(name) = event.tags.identifier() {
            let address = format!("{kind}:{}:{name}", event.pubkey.to_hex());
            tags.push(Tag::parse(["a", &address])?);
        }
        tags.push(Tag::parse(["k", &kind])?);
    }
    Ok(
        EventBuilder::new(Kind::EventDeletion, "graspd demo is over")
            .tags(tags)
            .finalize(keys)?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_each_event_and_its_address() {
        let keys = Keys::generate();
        let event = EventBuilder::new(Kind::Custom(30617), "")
            .tags([Tag::parse(["d", "x"]).unwrap()])
            .finalize(&keys)
            .unwrap();
        let request = request(&keys, std::slice::from_ref(&event)).unwrap();
        let tags: Vec<String> = request
            .tags
            .iter()
            .map(|tag| tag.as_slice().join("="))
            .collect();
        let address = format!("a=30617:{}:x", keys.public_key().to_hex());
        assert_eq!(tags, [format!("e={}", event.id), address, "k=30617".into()]);
    }
}
