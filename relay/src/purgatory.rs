//! What is accepted and not served: the three stores as one, and their journal.
//!
//! No operation looks at entries it does not name: every look-up has its index, and the sweep sees
//! only what is due. Everything that is put in here is durable once the `keep_…` method returns;
//! clocks that are reset follow soon after.
//!
//! What expires is decided here, and done by [`crate::sweep`] in the queue of its identifier.

pub mod announcements;
mod deadlines;
pub mod expired;
pub mod pull_requests;
pub mod states;

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use grasp_proto::words::{EventId, Identifier, Npub, Oid, RepoId};
use nostr::Event;

use self::{
    announcements::Announcements, expired::Expired, pull_requests::PullRequests, states::States,
};
use crate::{
    clock::{Clock, Moment},
    journal::{Journal, JournalError, Key, Record},
    nip34::{
        announcement::Announcement, pull_request::PullRequest, repository_coordinate, state::State,
    },
};

/// How long an entry waits for its git data (GRASP-01).
pub const WAITS_FOR: Duration = Duration::from_secs(30 * 60);
/// How long a soft-expired announcement can be revived.
pub const SOFT_EXPIRED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// What an upload is given at least from its last byte on.
pub const AFTER_LAST_BYTE: Duration = Duration::from_secs(15 * 60);

/// The three stores, the ids that once expired, and the journal of it all.
#[derive(Debug)]
pub struct Purgatory {
    /// Announcements without git data.
    pub announcements: Announcements,
    /// States without their objects.
    pub states: States,
    /// Pull requests without their commit, and the other way round.
    pub pull_requests: PullRequests,
    expired: Expired,
    /// Repositories whose announcement has gone and that are still to go; whether each is to be
    /// retired. Empties as gitd answers.
    doomed: DashMap<RepoId, bool>,
    journal: Journal,
    clock: Clock,
}

fn key(kind: u8, name: &[u8]) -> Key {
    let mut key = vec![kind];
    key.extend_from_slice(name);
    key
}

fn repository_key(kind: u8, repo: &RepoId) -> Key {
    let mut key = key(kind, repo.owner.as_bytes());
    key.extend_from_slice(repo.identifier.as_str().as_bytes());
    key
}

fn announcement_record(entry: &announcements::Waiting) -> Record {
    Record::Announcement {
        event: entry.announcement.event.as_json(),
        created: entry.created,
        expires: entry.expires,
        soft_expired: entry.soft_expired,
    }
}

fn state_record(entry: &states::Waiting) -> Record {
    Record::State {
        event: entry.state.event.as_json(),
        created: entry.created,
        expires: entry.expires,
    }
}

fn coordinates<'a>(repos: impl IntoIterator<Item = &'a RepoId>) -> Vec<String> {
    repos.into_iter().map(RepoId::coordinate).collect()
}

/// The records of one entry of the third store: one for each side that is here, under keys of
/// their own.
fn pull_request_records(
    id: &EventId,
    entry: &pull_requests::Waiting,
) -> (Option<Record>, Option<Record>) {
    let request = entry.request.as_ref().map(|request| Record::PullRequest {
        event: request.event.as_json(),
        repositories: coordinates(&request.repositories),
        created: entry.created,
        expires: entry.expires,
    });
    // The commits of one id differ only if somebody tries; the last one counts after a crash.
    let commit = entry.pushed.values().last();
    let placeholder = commit.map(|commit| Record::Placeholder {
        id: id.to_hex(),
        commit: commit.to_hex(),
        repositories: coordinates(
            entry
                .pushed
                .iter()
                .filter(|(_, oid)| *oid == commit)
                .map(|(repo, _)| repo),
        ),
        created: entry.created,
        expires: entry.expires,
    });
    (request, placeholder)
}

impl Purgatory {
    /// An empty purgatory over `journal`.
    pub fn new(journal: Journal, clock: Clock) -> Self {
        Self {
            announcements: Announcements::default(),
            states: States::default(),
            pull_requests: PullRequests::default(),
            expired: Expired::default(),
            doomed: DashMap::new(),
            journal,
            clock,
        }
    }

    /// What time it is for those who wait here.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Puts back what the journal held. Records that make no sense are left out and said.
    pub fn restore(&self, records: Vec<Record>) {
        for record in records {
            if let Err(reason) = self.restore_one(record) {
                tracing::error!(%reason, "a record of the purgatory journal was left out");
            }
        }
    }

    fn restore_one(&self, record: Record) -> Result<(), String> {
        let event = |json: &str| {
            Event::from_json(json)
                .map(Arc::new)
                .map_err(|e| e.to_string())
        };
        let repos = |all: Vec<String>| {
            all.iter()
                .filter_map(|a| repository_coordinate(a))
                .collect::<Vec<_>>()
        };
        match record {
            Record::Announcement {
                event: json,
                created,
                expires,
                soft_expired,
            } => {
                let announcement = Announcement::read(event(&json)?).map_err(|e| e.to_string())?;
                self.announcements.insert(announcements::Waiting {
                    announcement,
                    created,
                    expires,
                    soft_expired,
                    repository_made: false,
                });
            }
            Record::State {
                event: json,
                created,
                expires,
            } => {
                let state = State::read(event(&json)?).map_err(|e| e.to_string())?;
                self.states.insert(states::Waiting {
                    state,
                    created,
                    expires,
                });
            }
            Record::PullRequest {
                event: json,
                repositories,
                created,
                expires,
            } => {
                let mut request = PullRequest::read(event(&json)?).map_err(|e| e.to_string())?;
                request.repositories.extend(repos(repositories));
                let id = request.id();
                let pushed = self.pull_requests.get(&id).map(|entry| entry.pushed);
                let entry = pull_requests::Waiting {
                    request: Some(request),
                    pushed: pushed.unwrap_or_default(),
                    created,
                    expires,
                };
                self.pull_requests.restore(id, entry);
            }
            Record::Placeholder {
                id,
                commit,
                repositories,
                created,
                expires,
            } => {
                let id = EventId::from_hex(&id).map_err(|e| e.to_string())?;
                let commit = Oid::from_hex(&commit).map_err(|e| e.to_string())?;
                let request = self.pull_requests.get(&id).and_then(|entry| entry.request);
                let pushed = repos(repositories).into_iter().map(|repo| (repo, commit));
                let entry = pull_requests::Waiting {
                    request,
                    pushed: pushed.collect(),
                    created,
                    expires,
                };
                self.pull_requests.restore(id, entry);
            }
            Record::Doomed { repository, retire } => {
                let repo = repository_coordinate(&repository).ok_or("no coordinate")?;
                self.doomed.insert(repo, retire);
            }
            Record::Expired { id, .. } => {
                self.expired
                    .remember(EventId::from_hex(&id).map_err(|e| e.to_string())?);
            }
        }
        Ok(())
    }

    /// Whether the event of this id waits here; a soft-expired announcement does, too.
    pub fn holds(&self, id: &EventId) -> bool {
        self.states.get(id).is_some()
            || self.announcements.repo_of(id).is_some()
            || self
                .pull_requests
                .get(id)
                .is_some_and(|entry| entry.request.is_some())
    }

    /// Whether the event of this id expired once.
    pub fn expired_once(&self, id: &EventId) -> bool {
        self.expired.contains(id)
    }

    /// Makes the entry of a repository durable.
    pub async fn keep_announcement(&self, repo: &RepoId) -> Result<(), JournalError> {
        match self.announcements.get(repo) {
            Some(entry) => {
                let record = announcement_record(&entry);
                self.journal.keep(repository_key(b'a', repo), &record).await
            }
            None => Ok(()),
        }
    }

    /// Puts a state in, not yet durable: see [`Purgatory::keep_state`].
    pub fn add_state(&self, state: State) {
        let now = self.now();
        let gave_way = self.states.insert(states::Waiting {
            state,
            created: now,
            expires: now + WAITS_FOR,
        });
        if let Some(id) = gave_way {
            self.journal.forget(key(b's', id.as_bytes()));
        }
    }

    /// Makes the entry of a state durable.
    pub async fn keep_state(&self, id: &EventId) -> Result<(), JournalError> {
        match self.states.get(id) {
            Some(entry) => {
                let key = key(b's', id.as_bytes());
                self.journal.keep(key, &state_record(&entry)).await
            }
            None => Ok(()),
        }
    }

    /// Makes both sides of an entry of the third store durable.
    pub async fn keep_pull_request(&self, id: &EventId) -> Result<(), JournalError> {
        let Some(entry) = self.pull_requests.get(id) else {
            return Ok(());
        };
        let (request, placeholder) = pull_request_records(id, &entry);
        match placeholder {
            Some(record) => self.journal.keep(key(b'q', id.as_bytes()), &record).await?,
            None => self.journal.forget(key(b'q', id.as_bytes())),
        }
        match request {
            Some(record) => self.journal.keep(key(b'p', id.as_bytes()), &record).await,
            None => Ok(()),
        }
    }

    /// Gives an announcement until `until` at least, reviving it if it is soft-expired.
    pub fn extend_announcement(
        &self,
        repo: &RepoId,
        until: Moment,
    ) -> Option<announcements::Waiting> {
        let entry = self.announcements.extend(repo, until)?;
        let record = announcement_record(&entry);
        self.journal.keep_soon(repository_key(b'a', repo), &record);
        Some(entry)
    }

    /// Marks an announcement soft-expired.
    pub fn soft_expire(&self, repo: &RepoId) {
        if let Some(entry) = self.announcements.soft_expire(repo, self.now()) {
            let record = announcement_record(&entry);
            self.journal.keep_soon(repository_key(b'a', repo), &record);
        }
    }

    /// Gives a state until `until` at least.
    pub fn extend_state(&self, id: &EventId, until: Moment) {
        if let Some(entry) = self.states.extend(id, until) {
            let key = key(b's', id.as_bytes());
            self.journal.keep_soon(key, &state_record(&entry));
        }
    }

    /// Gives a pull request or placeholder until `until` at least.
    pub fn extend_pull_request(&self, id: &EventId, until: Moment) {
        if let Some(entry) = self.pull_requests.extend(id, until) {
            let (request, placeholder) = pull_request_records(id, &entry);
            for (kind, record) in [(b'p', request), (b'q', placeholder)] {
                if let Some(record) = record {
                    self.journal.keep_soon(key(kind, id.as_bytes()), &record);
                }
            }
        }
    }

    /// Gives every state under an identifier by one of `authors` 30 minutes from now.
    pub fn extend_states_of(
        &self,
        identifier: &Identifier,
        authors: impl IntoIterator<Item = Npub>,
    ) {
        let until = self.now() + WAITS_FOR;
        for author in authors {
            for entry in self.states.by_author(identifier, &author) {
                self.extend_state(&entry.state.id(), until);
            }
        }
    }

    /// Takes an announcement out.
    pub fn remove_announcement(&self, repo: &RepoId) -> Option<announcements::Waiting> {
        let removed = self.announcements.remove(repo)?;
        self.journal.forget(repository_key(b'a', repo));
        Some(removed)
    }

    /// Takes a state out.
    pub fn remove_state(&self, id: &EventId) -> Option<states::Waiting> {
        let removed = self.states.remove(id)?;
        self.journal.forget(key(b's', id.as_bytes()));
        Some(removed)
    }

    /// Takes a pull request or placeholder out.
    pub fn remove_pull_request(&self, id: &EventId) -> Option<pull_requests::Waiting> {
        let removed = self.pull_requests.remove(id)?;
        self.journal.forget(key(b'p', id.as_bytes()));
        self.journal.forget(key(b'q', id.as_bytes()));
        Some(removed)
    }

    /// A repository is to go, durably: the caller now takes away what kept it, and then it.
    pub async fn doom(&self, repo: &RepoId, retire: bool) -> Result<(), JournalError> {
        let record = Record::Doomed {
            repository: repo.coordinate(),
            retire,
        };
        self.journal
            .keep(repository_key(b'd', repo), &record)
            .await?;
        self.doomed.insert(repo.clone(), retire);
        Ok(())
    }

    /// Whether a repository is to go, and if so, whether it is to be retired.
    pub fn is_doomed(&self, repo: &RepoId) -> Option<bool> {
        self.doomed.get(repo).map(|retire| *retire)
    }

    /// A repository has gone, or is to stay after all.
    pub fn undoom(&self, repo: &RepoId) {
        if self.doomed.remove(repo).is_some() {
            self.journal.forget(repository_key(b'd', repo));
        }
    }

    /// The repositories that are to go.
    pub fn doomed(&self) -> Vec<RepoId> {
        self.doomed
            .iter()
            .map(|entry| entry.key().clone())
            .collect()
    }

    /// Remembers that an event expired.
    pub fn remember_expired(&self, id: EventId) {
        let record = Record::Expired {
            id: id.to_hex(),
            at: self.now(),
        };
        self.journal.keep_soon(key(b'x', id.as_bytes()), &record);
        if let Some(forgotten) = self.expired.remember(id) {
            self.journal.forget(key(b'x', forgotten.as_bytes()));
        }
    }

    /// Every identifier under which something waits.
    pub fn identifiers(&self) -> Vec<Identifier> {
        let mut all = self.states.identifiers();
        all.extend(self.pull_requests.identifiers());
        all.extend(
            self.announcements
                .all()
                .into_iter()
                .map(|repo| repo.identifier),
        );
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT, PULL_REQUEST, STATE,
        testing::{event, keys},
    };

    #[tokio::test]
    async fn everything_comes_back_from_the_journal() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::standing_at(Moment::from_millis(10_000));
        let announcement =
            Announcement::read(Arc::new(event(&keys(1), ANNOUNCEMENT, 1, &[&["d", "x"]]))).unwrap();
        let state = State::read(Arc::new(event(&keys(1), STATE, 1, &[&["d", "x"]]))).unwrap();
        let request =
            PullRequest::read(Arc::new(event(&keys(2), PULL_REQUEST, 1, &[&["c", "?"]]))).unwrap();
        let (repo, oid) = (announcement.repo.clone(), Oid::from_bytes([7; 20]));
        let (placeholder, gone) = (EventId::from_bytes([9; 32]), EventId::from_bytes([8; 32]));
        {
            let (journal, _) = Journal::open(directory.path()).unwrap();
            let purgatory = Purgatory::new(journal, clock.clone());
            purgatory
                .announcements
                .admit(announcement.clone(), purgatory.now());
            purgatory.keep_announcement(&repo).await.unwrap();
            purgatory.soft_expire(&repo);
            purgatory.add_state(state.clone());
            purgatory.keep_state(&state.id()).await.unwrap();
            purgatory
                .pull_requests
                .admit(request.clone(), purgatory.now());
            purgatory.keep_pull_request(&request.id()).await.unwrap();
            purgatory
                .pull_requests
                .pushed(placeholder, &repo, oid, purgatory.now());
            purgatory.remember_expired(gone);
            purgatory.keep_pull_request(&placeholder).await.unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        let from = directory.path().join("data.mdb");
        std::fs::copy(from, copy.path().join("data.mdb")).unwrap();
        let (journal, records) = Journal::open(copy.path()).unwrap();
        let again = Purgatory::new(journal, clock);
        again.restore(records);
        let waiting = again.announcements.get(&repo).unwrap();
        assert!(waiting.soft_expired);
        assert_eq!(waiting.expires, again.now() + SOFT_EXPIRED_FOR);
        assert!(again.holds(&state.id()) && again.holds(&request.id()));
        assert!(!again.holds(&placeholder));
        let pushed = again.pull_requests.get(&placeholder).unwrap().pushed;
        assert_eq!(pushed.get(&repo), Some(&oid));
        assert!(again.expired_once(&gone));
        assert_eq!(again.identifiers().len(), 1);
    }
}
