//! What stands by itself, whatever falls beside it.

use std::sync::Arc;

use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
use nostr::{Event, Filter};

use super::{Search, Unannounced};
use crate::{
    holding::tombstones::Tombstone,
    nip34::{self, Meaning, announcement::Announcement, author_of, id_of},
    policy::related,
    release::Release,
    repository::{Repositories, Standing},
    store::StoreError,
};

impl Release {
    /// Whether an announcement of a repository that is here, or may be, authorises an author.
    pub fn is_trusted(&self, identifier: &Identifier, author: &Npub) -> bool {
        let trusting = self.repositories.trusting(identifier, author);
        trusting.iter().any(|(_, standing)| standing.is_here())
    }

    /// Whether a served repository shows the refs of a state, whoever its author is to it by now.
    fn is_shown(&self, id: &EventId) -> bool {
        let showing = self.purgatory.showing(id);
        let is_served = |repo| self.repositories.standing(repo) == Some(Standing::Active);
        showing.iter().any(is_served)
    }
}

impl Search<'_> {
    /// Whether it is accepted for its own sake, or a repository's that is kept.
    pub(super) async fn stands_by_itself(&mut self, event: &Event) -> Result<bool, StoreError> {
        let identifier = nip34::identifier_of(event).ok();
        match (Meaning::of(event.kind), identifier) {
            (Meaning::Deletion | Meaning::Vanish | Meaning::GraspList, _)
            | (Meaning::Announcement, None) => Ok(true),
            (Meaning::State, _) if self.release.is_shown(&id_of(event)) => Ok(true),
            (Meaning::State, Some(identifier)) => {
                self.is_trusted(&identifier, &author_of(event)).await
            }
            (Meaning::State, None) => Ok(false),
            (Meaning::Announcement, Some(identifier)) => {
                let owner = author_of(event);
                Ok(!self.gone.contains(&RepoId { owner, identifier }))
            }
            (Meaning::PullRequest, _) if self.is_contributed(event) => Ok(true),
            (Meaning::PullRequest | Meaning::Other, _) => {
                for repo in related::repositories(event) {
                    if self.is_kept(&repo).await? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Whether what an event connected stands as if it were still there.
    pub(super) async fn stands_though_buried(
        &mut self,
        tombstone: &Tombstone,
    ) -> Result<bool, StoreError> {
        if let Some((identifier, author)) = tombstone.state() {
            return self.is_trusted(&identifier, &author).await;
        }
        for repo in tombstone.repositories() {
            if self.is_kept(&repo).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Its author's own space has it.
    fn is_contributed(&self, event: &Event) -> bool {
        let places = &self.release.purgatory.places;
        places.in_a_space(&id_of(event))
    }

    /// Whether an announcement of a repository is served, or withheld.
    async fn is_kept(&mut self, repo: &RepoId) -> Result<bool, StoreError> {
        if self.gone.contains(repo) {
            return Ok(false);
        }
        match self.release.repositories.standing(repo) {
            Some(standing) if standing.is_served() => return Ok(true),
            None if self.unannounced == Unannounced::Ignored => return Ok(false),
            // One that waits may be served without a repository here.
            Some(_) | None => {}
        }
        if let Some(kept) = self.kept.get(repo) {
            return Ok(*kept);
        }
        let kept =
            !self.is_being_taken(repo) && self.release.store.announcement(repo).await?.is_some();
        self.kept.insert(repo.clone(), kept);
        Ok(kept)
    }

    fn is_being_taken(&self, repo: &RepoId) -> bool {
        let hold = self.release.holding.of(repo);
        hold.is_some_and(|hold| hold.taking)
    }

    /// Whether an announcement of a repository that is here, may be, or is withheld, authorises an
    /// author.
    async fn is_trusted(
        &mut self,
        identifier: &Identifier,
        author: &Npub,
    ) -> Result<bool, StoreError> {
        if self.release.is_trusted(identifier, author) {
            return Ok(true);
        }
        let Some(project) = self.project_with_withheld(identifier).await? else {
            return Ok(false);
        };
        let trusting = project.trusting(identifier, author);
        Ok(trusting.iter().any(|(_, standing)| standing.is_here()))
    }

    /// Whether such an announcement, but its own, names the owner of one: for that it may be served
    /// without a repository here.
    pub(super) async fn is_wanted_here(&mut self, repo: &RepoId) -> Result<bool, StoreError> {
        if self.release.repositories.is_wanted_here(repo) {
            return Ok(true);
        }
        let project = self.project_with_withheld(&repo.identifier).await?;
        Ok(project.is_some_and(|project| project.is_wanted_here(repo)))
    }

    async fn project_with_withheld(
        &mut self,
        identifier: &Identifier,
    ) -> Result<Option<&Repositories>, StoreError> {
        if self.unannounced == Unannounced::Ignored {
            return Ok(None);
        }
        if !self.projects.contains_key(identifier) {
            let project = self.project(identifier).await?;
            self.projects.insert(identifier.clone(), project);
        }
        Ok(self.projects.get(identifier))
    }

    /// All announcements of an identifier that wait or are kept, with those that are withheld.
    async fn project(&self, identifier: &Identifier) -> Result<Repositories, StoreError> {
        let project = Repositories::new(self.release.repositories.rule());
        let known = &self.release.repositories;
        for owner in known.owners(identifier, Standing::Waiting) {
            let identifier = identifier.clone();
            let repo = RepoId { owner, identifier };
            if let Some(entry) = self.release.purgatory.announcements.get(&repo) {
                project.set(&entry.announcement, Standing::Waiting);
            }
        }
        let all = Filter::new()
            .kind(nip34::ANNOUNCEMENT)
            .identifier(identifier.as_str());
        for event in self.release.store.query(all).await? {
            let Ok(announcement) = Announcement::read(Arc::new(event)) else {
                continue;
            };
            let repo = &announcement.repo;
            let is_known = project.standing(repo).is_some();
            if is_known || self.gone.contains(repo) || self.is_being_taken(repo) {
                continue;
            }
            let standing = known.standing(repo).unwrap_or(Standing::Active);
            project.set(&announcement, standing);
        }
        Ok(project)
    }
}
