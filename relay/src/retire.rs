//! What goes when an announcement goes: its repository, and everything that was accepted only
//! because of it. To be called in the queue of the identifier only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use grasp_proto::words::{EventId, RepoId};
use nostr::{Event, Filter};

use crate::{
    git::GitError,
    journal::JournalError,
    nip34::{
        self, Meaning, announcement::Announcement, author_of, id_of, pull_request::PullRequest,
    },
    policy::related,
    release::Release,
    repository::Standing,
    store::StoreError,
};

/// Why something could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// The event store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Events one reference is followed to.
const A_STEP: usize = 500;
/// Events looked through for one repository; what is connected with it by more stays.
const LOOKED_THROUGH: usize = 2_000;
/// Rounds in which what stands is found; each finds what stands by the one before, or more.
const ROUNDS: usize = 16;

impl Release {
    /// Takes a waiting announcement out of purgatory, durably, with its repository and the states
    /// that nobody else's announcement authorises.
    pub async fn drop_waiting(&self, repo: &RepoId) -> Result<(), RetireError> {
        self.purgatory.doom(repo, false).await?;
        self.purgatory.remove_announcement(repo);
        self.stand_as_stored(repo).await;
        self.drop_unauthorised_states(repo);
        self.purgatory.flush().await?;
        self.carry_out_doom(repo).await;
        Ok(())
    }

    /// A repository that is here, or was to be, is elsewhere from now on, by an announcement that is
    /// served because its author maintains another's.
    pub async fn move_elsewhere(&self, announcement: &Announcement) -> Result<(), RetireError> {
        let repo = &announcement.repo;
        let standing = self.repositories.standing(repo);
        if standing.is_some_and(Standing::is_here) {
            let was_served = standing.is_some_and(Standing::is_served);
            self.purgatory.doom(repo, was_served).await?;
        }
        self.serve(&announcement.event).await?;
        self.purgatory.remove_announcement(repo);
        self.repositories.set(announcement, Standing::Elsewhere);
        self.drop_unauthorised_states(repo);
        self.purgatory.flush().await?;
        self.carry_out_doom(repo).await;
        Ok(())
    }

    /// Takes the states out of purgatory that no announcement of the identifier authorises.
    fn drop_unauthorised_states(&self, gone: &RepoId) {
        for entry in self.purgatory.states.by_identifier(&gone.identifier) {
            let author = &entry.state.author;
            if self
                .repositories
                .trusting(&gone.identifier, author)
                .is_empty()
            {
                self.purgatory.remove_state(&entry.state.id());
            }
        }
    }

    /// A repository whose announcement does not wait any more stands as the store says: it may
    /// have been announced without us before.
    pub async fn stand_as_stored(&self, repo: &RepoId) {
        self.repositories.remove(repo);
        match self.store.announcement(repo).await {
            Ok(Some(event)) => {
                if let Ok(announcement) = Announcement::read(Arc::new(event)) {
                    self.repositories.set(&announcement, Standing::Elsewhere);
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%repo, %error, "an announcement is forgotten till restart");
            }
        }
    }

    /// Takes a served announcement out of service, with its repository and everything that was
    /// accepted only because of it.
    ///
    /// Repeatable: a start that finds a served repository that is to be retired calls it again.
    pub async fn delist(&self, repo: &RepoId, announcement: &Event) -> Result<(), RetireError> {
        self.purgatory.doom(repo, true).await?;
        let trusting = self.repositories.trusting(&repo.identifier, &repo.owner);
        self.repositories.remove(repo);
        self.remove_dependants(repo, announcement).await?;
        self.store.remove([id_of(announcement)]).await?;
        self.drop_unauthorised_states(repo);
        self.purgatory.flush().await?;
        self.carry_out_doom(repo).await;
        self.maintainers_changed(trusting).await;
        Ok(())
    }

    /// Finishes what [`Release::drop_waiting`] and [`Release::delist`] began, now or, if gitd cannot
    /// be reached or an upload still runs, when it is called again. Says whether the repository has
    /// gone.
    pub async fn carry_out_doom(&self, repo: &RepoId) -> bool {
        let Some(retire) = self.purgatory.is_doomed(repo) else {
            return true;
        };
        if self.repositories.standing(repo) == Some(Standing::Active) {
            // Announced again since, and served: it stays.
            self.purgatory.undoom(repo);
            return true;
        }
        let gone = match retire {
            true => self.git.retire(repo).await,
            false => self.git.delete(repo).await,
        };
        match gone {
            Ok(()) | Err(GitError::NotFound) => {
                self.purgatory.undoom(repo);
                true
            }
            Err(error) => {
                tracing::warn!(%repo, %error, "a repository that is to go is still there");
                false
            }
        }
    }

    /// Removes what was accepted only because of a repository: all that refers to it, and to that,
    /// and so on, or is referred to by it, but for what something else holds.
    async fn remove_dependants(
        &self,
        repo: &RepoId,
        announcement: &Event,
    ) -> Result<(), StoreError> {
        let fallen = self.fallen(repo, announcement).await?;
        for event in fallen.values() {
            if Meaning::of(event.kind) == Meaning::PullRequest
                && let Ok(request) = PullRequest::read(Arc::new(event.clone()))
            {
                let repos = self.repositories_of(&request).await;
                self.take_refs_away(&request.id(), repos).await;
            }
        }
        self.announced_no_more(fallen.values());
        self.store.remove(fallen.keys().copied()).await?;
        for event in fallen.values() {
            self.live.removed(event);
        }
        Ok(())
    }

    /// The announcements among some events are out of service.
    pub fn announced_no_more<'a>(&self, events: impl IntoIterator<Item = &'a Event>) {
        for event in events {
            if event.kind == nip34::ANNOUNCEMENT
                && let Ok(identifier) = nip34::identifier_of(event)
            {
                let owner = author_of(event);
                self.repositories.remove(&RepoId { owner, identifier });
            }
        }
    }

    /// What was accepted only because of a repository, which is announced no more.
    pub async fn fallen(
        &self,
        repo: &RepoId,
        announcement: &Event,
    ) -> Result<BTreeMap<EventId, Event>, StoreError> {
        let mut doubtful = self.dependants(repo, announcement).await?;
        let mut gone: BTreeSet<EventId> = doubtful.keys().copied().collect();
        gone.insert(id_of(announcement));
        // Two that refer to each other hold neither: what stands is found from outside, and then
        // what stands by that. What is not decided after some rounds stays.
        for round in 0.. {
            let mut stood = false;
            for id in doubtful.keys().copied().collect::<Vec<_>>() {
                if round == ROUNDS || self.stands_by_itself(&doubtful[&id], &gone).await? {
                    stood = round < ROUNDS;
                    gone.remove(&id);
                    doubtful.remove(&id);
                }
            }
            if !stood {
                break;
            }
        }
        Ok(doubtful)
    }

    /// Everything that is connected with a repository by references, and so may have been accepted
    /// because of it.
    async fn dependants(
        &self,
        repo: &RepoId,
        announcement: &Event,
    ) -> Result<BTreeMap<EventId, Event>, StoreError> {
        let coordinate = repo.coordinate();
        let mut filters: Vec<Filter> = related::TO_ADDRESSES
            .map(|tag| Filter::new().custom_tag(tag, &coordinate))
            .to_vec();
        filters.extend(related::referring_to(announcement));
        let states = Filter::new()
            .kind(nip34::STATE)
            .identifier(repo.identifier.as_str());
        let maintained = Filter::new()
            .kind(nip34::ANNOUNCEMENT)
            .identifier(repo.identifier.as_str());
        filters.extend([states, maintained]);
        let mut found = BTreeMap::new();
        while let Some(filter) = filters.pop()
            && found.len() < LOOKED_THROUGH
        {
            for event in self.store.query(filter.limit(A_STEP)).await? {
                let id = id_of(&event);
                let own = matches!(
                    Meaning::of(event.kind),
                    Meaning::Deletion | Meaning::GraspList
                );
                if own || found.contains_key(&id) || id == id_of(announcement) {
                    continue;
                }
                filters.extend(related::referring_to(&event));
                let referred = related::events(&event).into_iter();
                let referred: Vec<_> = referred
                    .map(|id| nostr::EventId::from_byte_array(*id.as_bytes()))
                    .collect();
                // No ids at all would ask for everything.
                if !referred.is_empty() {
                    filters.push(Filter::new().ids(referred));
                }
                found.insert(id, event);
            }
        }
        Ok(found)
    }

    /// Whether an event would be accepted now, were it not for what has gone.
    async fn stands_by_itself(
        &self,
        event: &Event,
        gone: &BTreeSet<EventId>,
    ) -> Result<bool, StoreError> {
        let author = author_of(event);
        let trusted = |except: Option<RepoId>| {
            let Ok(identifier) = nip34::identifier_of(event) else {
                return false;
            };
            let trusting = self.repositories.trusting(&identifier, &author);
            trusting
                .into_iter()
                .any(|(repo, standing)| standing.is_served() && Some(&repo) != except.as_ref())
        };
        match Meaning::of(event.kind) {
            Meaning::Deletion | Meaning::GraspList => Ok(true),
            Meaning::State => Ok(trusted(None)),
            Meaning::Announcement => {
                let Ok(identifier) = nip34::identifier_of(event) else {
                    return Ok(false);
                };
                let repo = RepoId {
                    owner: author,
                    identifier,
                };
                match self.repositories.standing(&repo) {
                    Some(Standing::Elsewhere) => Ok(trusted(Some(repo))),
                    standing => Ok(standing.is_some()),
                }
            }
            // Its author's own space has it.
            Meaning::PullRequest if !self.purgatory.contributions.of(&id_of(event)).is_empty() => {
                Ok(true)
            }
            _ => related::is_related(event, &self.repositories, &self.store, gone).await,
        }
    }
}
