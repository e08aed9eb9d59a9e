//! Kind 5 carried out: what goes, in the queue of its identifier.

use std::sync::{Arc, atomic::Ordering};

use grasp_proto::words::{Address, EventId, Identifier, Npub, RepoId};
use nostr::{Event, Kind, Timestamp};

use super::{Admit, Failed, known};
use crate::{
    nip34::{
        self, ANNOUNCEMENT, DELETION, Meaning, STATE, author_of, id_of, pull_request::PullRequest,
    },
    policy::deletion::{self, Target},
    release::Release,
    repository::Standing,
    serial::Turn,
    store::{Saved, StoreError},
    verdict::Verdict,
};

impl Admit {
    pub(super) async fn deletion(&self, request: Arc<Event>) -> Result<Verdict, Failed> {
        // Stored first, so that no target comes back while the others go; carried out again when
        // it is sent again, so that a crash between leaves nothing undone.
        let saved = self.release.serve(&request).await?;
        self.deletions.fetch_add(1, Ordering::SeqCst);
        let author = author_of(&request);
        for target in deletion::targets(&request) {
            match target {
                Target::Id(id) => self.delete_id(&id, author).await?,
                Target::Address {
                    kind,
                    identifier,
                    until,
                } => {
                    let kind = Kind::from(kind);
                    for id in self.versions(kind, author, &identifier, until).await? {
                        self.delete_id(&id, author).await?;
                    }
                }
            }
        }
        Ok(match saved {
            Saved::New => Verdict::served(),
            _ => known(),
        })
    }

    /// The versions of an address that are here, stored or waiting, made no later than `until`.
    pub(super) async fn versions(
        &self,
        kind: Kind,
        author: Npub,
        identifier: &str,
        until: Timestamp,
    ) -> Result<Vec<EventId>, Failed> {
        let Release {
            store, purgatory, ..
        } = &self.release;
        let stored = match identifier.is_empty() && kind.is_replaceable() {
            true => {
                let own = nostr::Filter::new().author(crate::store::public_key(author));
                store.query(own.kind(kind)).await?.into_iter().next()
            }
            false => store.addressable(kind, &author, identifier).await?,
        };
        let mut found: Vec<Arc<Event>> = stored.into_iter().map(Arc::new).collect();
        if let Ok(identifier) = Identifier::parse(identifier) {
            if kind == STATE {
                let waiting = purgatory.states.by_author(&identifier, &author);
                found.extend(waiting.into_iter().map(|entry| entry.state.event));
            } else if kind == ANNOUNCEMENT {
                let repo = RepoId {
                    owner: author,
                    identifier,
                };
                let waiting = purgatory.announcements.get(&repo);
                found.extend(waiting.into_iter().map(|entry| entry.announcement.event));
            }
        }
        found.retain(|event| event.created_at <= until);
        Ok(found.iter().map(|event| id_of(event)).collect())
    }

    /// Deletes one event, stored or waiting, if it is by this author.
    pub(super) async fn delete_id(&self, id: &EventId, author: Npub) -> Result<(), Failed> {
        let door = self.clone();
        let id = *id;
        let work = async move { door.delete_in_turn(&id, author).await };
        match self.queue_of(&id).await? {
            Some(identifier) => self.serial.run(&identifier, Turn::Normal, work).await,
            None => work.await,
        }
    }

    /// The identifier in whose queue the event of this id is decided on.
    pub(super) async fn queue_of(&self, id: &EventId) -> Result<Option<Identifier>, StoreError> {
        let purgatory = &self.release.purgatory;
        if let Some(repo) = purgatory.announcements.repo_of(id) {
            return Ok(Some(repo.identifier));
        }
        if let Some(entry) = purgatory.states.get(id) {
            return Ok(Some(entry.state.identifier));
        }
        if let Some(request) = purgatory.pull_requests.get(id).and_then(|e| e.request) {
            return Ok(request.identifiers().into_iter().next());
        }
        let stored = self.release.store.by_id(id).await?;
        Ok(stored.and_then(|event| match Meaning::of(event.kind) {
            Meaning::Announcement | Meaning::State => nip34::identifier_of(&event).ok(),
            _ => None,
        }))
    }

    /// What the event of this id is now, waiting or stored, is decided here: it may have been
    /// released since it was looked up.
    pub(super) async fn delete_in_turn(&self, id: &EventId, author: Npub) -> Result<(), Failed> {
        let Release {
            store, purgatory, ..
        } = &self.release;
        if let Some(repo) = purgatory.announcements.repo_of(id)
            && repo.owner == author
        {
            return Ok(self.release.drop_waiting(&repo).await?);
        }
        if let Some(stored) = store.by_id(id).await? {
            if author_of(&stored) == author && stored.kind != DELETION {
                self.delete_stored(id, &stored).await?;
            }
            return Ok(());
        }
        if let Some(entry) = purgatory.states.get(id)
            && entry.state.author == author
        {
            purgatory.remove_state(id);
            purgatory.flush().await?;
        }
        let entry = purgatory.pull_requests.get(id);
        let request = entry.and_then(|entry| entry.request);
        if let Some(request) = request.filter(|request| request.author == author) {
            self.forget_pull_request(&request).await?;
        }
        Ok(())
    }

    /// A pull request that is deleted takes along its refs.
    pub(super) async fn forget_pull_request(&self, request: &PullRequest) -> Result<(), Failed> {
        let id = request.id();
        let repos = self.release.repositories_of(request).await;
        let mut places: Vec<Address> = repos.into_iter().map(Into::into).collect();
        let waiting = self.release.purgatory.remove_pull_request(&id);
        places.extend(
            waiting
                .into_iter()
                .flat_map(|entry| entry.pushed.into_keys()),
        );
        self.release.purgatory.flush().await?;
        self.release.take_refs_away(&id, places).await;
        Ok(())
    }

    pub(super) async fn delete_stored(&self, id: &EventId, stored: &Event) -> Result<(), Failed> {
        let Release {
            store,
            repositories,
            ..
        } = &self.release;
        let identifier = nip34::identifier_of(stored);
        match (Meaning::of(stored.kind), identifier) {
            (Meaning::Announcement, Ok(identifier)) => {
                let owner = author_of(stored);
                let repo = RepoId { owner, identifier };
                let standing = repositories.standing(&repo);
                if standing == Some(Standing::Active) {
                    return Ok(self.release.delist(&repo, stored).await?);
                }
                let trusting = repositories.trusting(&repo.identifier, &owner);
                store.remove([*id]).await?;
                if standing != Some(Standing::Waiting) {
                    repositories.remove(&repo);
                }
                self.release.maintainers_changed(trusting).await;
            }
            (Meaning::State, Ok(identifier)) => {
                self.release.purgatory.remove_state(id);
                store.remove([*id]).await?;
                let trusting = repositories.trusting(&identifier, &author_of(stored));
                self.release.maintainers_changed(trusting).await;
            }
            (Meaning::PullRequest, _) => {
                if let Ok(request) = PullRequest::read(Arc::new(stored.clone())) {
                    self.forget_pull_request(&request).await?;
                }
                store.remove([*id]).await?;
            }
            _ => store.remove([*id]).await?,
        }
        self.release.live.removed(stored);
        Ok(())
    }
}
