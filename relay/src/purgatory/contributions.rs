//! Which refs there are below `/prs/` (GRASP-06), or are about to be: noted before each is put, and
//! forgotten when it has gone, whatever became of its event meanwhile. So none is left behind.

use std::collections::BTreeSet;

use dashmap::{DashMap, Entry};
use grasp_proto::words::{EventId, RepoId};

use super::{
    Purgatory,
    records::{CONTRIBUTION, repository_key},
};
use crate::journal::{JournalError, Key, Record, key};

/// The refs by their event. Grows by what was pushed there and is served, or waits; shrinks with
/// either.
#[derive(Debug, Default)]
pub struct Contributions(DashMap<EventId, BTreeSet<RepoId>>);

impl Contributions {
    /// Puts one back as the journal had it.
    pub(super) fn restore(&self, id: EventId, repo: RepoId) {
        self.0.entry(id).or_default().insert(repo);
    }

    /// Where an event has refs.
    pub fn of(&self, id: &EventId) -> BTreeSet<RepoId> {
        let repos = self.0.get(id);
        repos.map(|repos| repos.value().clone()).unwrap_or_default()
    }

    /// All of them, for the start.
    pub fn all(&self) -> Vec<(EventId, RepoId)> {
        let of_one = |entry: dashmap::mapref::multiple::RefMulti<'_, EventId, BTreeSet<RepoId>>| {
            let id = *entry.key();
            let repos = entry.value().iter();
            repos.map(|repo| (id, repo.clone())).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of_one).collect()
    }
}

fn key_of(id: &EventId, repo: &RepoId) -> Key {
    let name = repository_key(CONTRIBUTION, repo);
    let mut key = key(CONTRIBUTION, id.as_bytes());
    key.extend_from_slice(&name[1..]);
    key
}

impl Purgatory {
    /// There will be a ref for `id` in the space of `repo`: durable when this returns.
    pub async fn keep_contribution(&self, id: &EventId, repo: &RepoId) -> Result<(), JournalError> {
        self.contributions.restore(*id, repo.clone());
        let record = Record::Contribution {
            id: id.to_hex(),
            repository: repo.coordinate(),
        };
        self.journal.keep(key_of(id, repo), &record).await
    }

    /// There is none any more.
    pub fn forget_contribution(&self, id: &EventId, repo: &RepoId) {
        if let Entry::Occupied(mut repos) = self.contributions.0.entry(*id) {
            repos.get_mut().remove(repo);
            if repos.get().is_empty() {
                repos.remove();
            }
        }
        self.journal.forget(key_of(id, repo));
    }
}
