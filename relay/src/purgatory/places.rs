//! Where pull requests' refs are, or are about to be, in repositories and below `/prs/` (GRASP-06):
//! noted before each is put, and forgotten when it has gone, whatever became of its event and of the
//! repository's maintainers meanwhile. So none is left behind.

use std::collections::BTreeSet;

use dashmap::{DashMap, Entry};
use grasp_proto::words::{Address, EventId, RepoId};

use super::{
    Purgatory,
    records::{CONTRIBUTION, PLACE, repository_key},
};
use crate::journal::{JournalError, Key, Record, key};

/// Refs of one pull request from which on no more are taken by pushes.
pub const MOST: usize = 256;

/// The refs by their event. Grows by what was pushed and by the repositories that pull requests are
/// offered to; of one event at most [`MOST`] that it is not offered to. Shrinks with the refs.
#[derive(Debug, Default)]
pub struct Places(DashMap<EventId, BTreeSet<Address>>);

impl Places {
    /// Puts one in, as the journal had it; says whether it is new.
    pub(super) fn restore(&self, id: EventId, address: Address) -> bool {
        self.0.entry(id).or_default().insert(address)
    }

    /// Where an event has refs.
    pub fn of(&self, id: &EventId) -> BTreeSet<Address> {
        let places = self.0.get(id);
        places.map(|all| all.value().clone()).unwrap_or_default()
    }

    /// The repositories among them, those below `/prs/` left out.
    pub fn repositories_of(&self, id: &EventId) -> BTreeSet<RepoId> {
        let all = self.of(id).into_iter();
        let repositories = all.filter(|address| !address.is_prs());
        repositories.map(|address| address.repo).collect()
    }

    /// Whether its author's own space has an event's ref.
    pub fn in_a_space(&self, id: &EventId) -> bool {
        let places = self.0.get(id);
        places.is_some_and(|all| all.iter().any(Address::is_prs))
    }

    /// Whether a push may put an event's ref there.
    pub fn has_room_for(&self, id: &EventId, address: &Address) -> bool {
        let places = self.0.get(id);
        places.is_none_or(|all| all.len() < MOST || all.contains(address))
    }

    /// All of them, for the start.
    pub fn all(&self) -> Vec<(EventId, BTreeSet<Address>)> {
        let all = self.0.iter();
        all.map(|entry| (*entry.key(), entry.value().clone()))
            .collect()
    }
}

fn key_of(id: &EventId, address: &Address) -> Key {
    let kind = if address.is_prs() {
        CONTRIBUTION
    } else {
        PLACE
    };
    let name = repository_key(kind, &address.repo);
    let mut key = key(kind, id.as_bytes());
    key.extend_from_slice(&name[1..]);
    key
}

impl Purgatory {
    /// There will be a ref for `id` at `address`: durable when this returns. Says whether that is new.
    pub async fn keep_place(&self, id: &EventId, address: &Address) -> Result<bool, JournalError> {
        if !self.places.restore(*id, address.clone()) {
            return Ok(false);
        }
        let (name, repository) = (id.to_hex(), address.repo.coordinate());
        let record = match address.is_prs() {
            true => Record::Contribution {
                id: name,
                repository,
            },
            false => Record::Place {
                id: name,
                repository,
            },
        };
        let kept = self.journal.keep(key_of(id, address), &record).await;
        if kept.is_err() {
            // Whoever tries again is to note it.
            self.forget_place(id, address);
        }
        kept.map(|()| true)
    }

    /// There is none any more.
    pub fn forget_place(&self, id: &EventId, address: &Address) {
        if let Entry::Occupied(mut places) = self.places.0.entry(*id) {
            if !places.get_mut().remove(address) {
                return;
            }
            if places.get().is_empty() {
                places.remove();
            }
            self.journal.forget(key_of(id, address));
        }
    }
}
