//! What goes when an announcement goes: its repository, and everything that was accepted only
//! because of it ([`fallen`]). To be called in the queue of the identifier only.

mod buried;
pub mod fallen;

use std::sync::Arc;

use grasp_proto::words::{EventId, RefName, RepoId};
use nostr::Event;

use self::fallen::{Fallen, Unannounced};
use crate::{
    git::GitError,
    holding::Reason,
    journal::JournalError,
    nip34::{
        self, Meaning, announcement::Announcement, author_of, id_of, pull_request::PullRequest,
    },
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

/// Events read, and taken out of the store, at once.
const A_STEP: usize = 100;

impl Release {
    /// Takes a waiting announcement out of purgatory, durably, with its repository and the states
    /// that nobody else's announcement authorises.
    pub async fn drop_waiting(&self, repo: &RepoId) -> Result<(), RetireError> {
        let was_retired = !self.holding.incarnations(repo).is_empty();
        self.purgatory.doom(repo, was_retired).await?;
        self.waits_no_more(repo).await?;
        self.drop_unauthorised_states(repo);
        self.purgatory.flush().await?;
        self.carry_out_doom(repo).await;
        Ok(())
    }

    /// A waiting announcement is out of purgatory, and so out of service what was served without a
    /// repository here because this one named its owner.
    pub async fn waits_no_more(&self, repo: &RepoId) -> Result<(), RetireError> {
        let served_for_it = self.repositories.elsewhere_for(repo);
        self.purgatory.remove_announcement(repo);
        self.stand_as_stored(repo).await;
        for other in served_for_it {
            if !self.repositories.is_wanted_here(&other)
                && let Some(stored) = self.store.announcement(&other).await?
            {
                self.delist(&other, &stored, Reason::MovedAway).await?;
            }
        }
        self.judge_changed_sets_and_release_later(&repo.identifier)
            .await;
        Ok(())
    }

    /// A repository that is here, or was to be, is elsewhere from now on, by an announcement that is
    /// served because another's names its author.
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
        // What went with it when it was deleted.
        self.holding.returns(repo);
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
    /// accepted only because of it, all of which is held ([`crate::holding`]) – but for what
    /// its author wrote, if the author vanishes.
    ///
    /// Repeatable: a start that finds it half done calls it again. What falls is written down before
    /// the first of it goes, since what is left would not show it any more.
    pub async fn delist(
        &self,
        repo: &RepoId,
        announcement: &Event,
        reason: Reason,
    ) -> Result<(), RetireError> {
        self.holding.begin(repo, announcement, reason).await?;
        let trusting = self.repositories.trusting(&repo.identifier, &repo.owner);
        let stood = self.repositories.standing(repo);
        // Where a newer one waits, the repository is that one's.
        if stood != Some(Standing::Waiting) {
            self.purgatory.doom(repo, true).await?;
        }
        self.announced_no_more([repo]);
        if let Err(error) = self.note_what_falls(repo, announcement, reason).await {
            // It is as it was; whoever asks again finds it so.
            if let Some(stood) = stood.filter(|stood| stood.is_served())
                && let Ok(announcement) = Announcement::read(Arc::new(announcement.clone()))
            {
                self.repositories.set(&announcement, stood);
            }
            return Err(error);
        }
        self.take_all(repo).await?;
        self.store.apart().remove([id_of(announcement)]).await?;
        self.live.removed(announcement);
        self.holding.taken(repo).await?;
        self.drop_unauthorised_states(repo);
        self.purgatory.flush().await?;
        self.carry_out_doom(repo).await;
        self.realign_all(trusting).await;
        self.judge_changed_sets_and_release_later(&repo.identifier)
            .await;
        Ok(())
    }

    /// Finishes what was being taken out of service when the process ended, or the store failed.
    pub async fn finish_taking(&self, repo: &RepoId) -> Result<(), RetireError> {
        let Some(hold) = self.holding.of(repo).filter(|hold| hold.taking) else {
            return Ok(());
        };
        match self.store.apart().announcement(repo).await? {
            Some(stored) => self.delist(repo, &stored, hold.reason).await,
            // It went as the last.
            None => {
                self.take_all(repo).await?;
                self.holding.taken(repo).await?;
                self.drop_unauthorised_states(repo);
                self.carry_out_doom(repo).await;
                Ok(())
            }
        }
    }

    /// Holds what falls with a repository, and notes that it is to be taken out of the store.
    async fn note_what_falls(
        &self,
        repo: &RepoId,
        announcement: &Event,
        reason: Reason,
    ) -> Result<(), RetireError> {
        // What is withheld falls as well: it is to come back with the others, or not at all.
        let whole = Release {
            store: self.store.apart(),
            ..self.clone()
        };
        let all = whole.fallen(repo, announcement, Unannounced::Ignored);
        let mut fallen = all.await?;
        if self.store.withholds() {
            let rest = whole
                .fallen(repo, announcement, Unannounced::Stands)
                .await?;
            // What is left to something on a blacklist alone is withheld with it.
            let kept = fallen.events.difference(&rest.events);
            self.store.withhold_too(kept.copied());
            fallen = rest;
        }
        self.note_fallen(repo, reason, &fallen).await?;
        self.announced_no_more(&fallen.repositories);
        Ok(())
    }

    async fn note_fallen(
        &self,
        repo: &RepoId,
        reason: Reason,
        fallen: &Fallen,
    ) -> Result<(), RetireError> {
        let ids: Vec<EventId> = fallen.events.iter().copied().collect();
        let (owner, whole) = (repo.owner, self.store.apart());
        for chunk in ids.chunks(A_STEP) {
            let events = whole.by_ids(chunk).await?;
            for event in &events {
                self.note_refs(event).await?;
            }
            let vanishes = reason == Reason::Vanished;
            let is_held = |event: &Event| !(vanishes && author_of(event) == owner);
            self.holding
                .falls(repo, &fallen.also_held_for, &events, is_held)
                .await?;
        }
        Ok(())
    }

    /// Takes out of the store what was noted to fall with a repository, and what was accepted for its
    /// sake meanwhile. What is accepted later is judged again by whoever accepts it.
    async fn take_all(&self, repo: &RepoId) -> Result<(), RetireError> {
        loop {
            self.take_what_falls(repo).await?;
            self.holding.fell();
            if !self.note_latecomers(repo).await? {
                return Ok(());
            }
        }
    }

    /// Notes what leans on what is out of the store; says whether there is any of it.
    async fn note_latecomers(&self, repo: &RepoId) -> Result<bool, RetireError> {
        let whole = Release {
            store: self.store.apart(),
            ..self.clone()
        };
        let unannounced = match self.store.withholds() {
            true => Unannounced::Stands,
            false => Unannounced::Ignored,
        };
        let reason = self.holding.of(repo).map(|hold| hold.reason);
        let itself = whole.store.announcement(repo).await?;
        let itself = itself.as_ref().map(id_of);
        let (mut any, mut after) = (false, None);
        loop {
            let out = self.holding.linked(repo, after).await?;
            after = out.last().copied();
            let late = whole.leaning_on(repo, itself, &out, unannounced).await?;
            if !late.events.is_empty() {
                any = true;
                let reason = reason.unwrap_or(Reason::Unknown);
                self.note_fallen(repo, reason, &late).await?;
            }
            if after.is_none() {
                return Ok(any);
            }
        }
    }

    /// The refs of a pull request that is to go are to go, wherever they were put.
    pub async fn note_refs(&self, event: &Event) -> Result<(), RetireError> {
        if Meaning::of(event.kind) == Meaning::PullRequest
            && let Ok(request) = PullRequest::read(Arc::new(event.clone()))
        {
            let repos = self.repositories_of(&request).await;
            self.purgatory.owe_refs(request.id(), &repos).await?;
        }
        Ok(())
    }

    /// Takes out of the store what was noted to fall with a repository.
    async fn take_what_falls(&self, repo: &RepoId) -> Result<(), RetireError> {
        let whole = self.store.apart();
        let mut after = None;
        while let Some((ids, last)) = self.holding.to_take(repo, after).await? {
            after = Some(last);
            for chunk in ids.chunks(A_STEP) {
                let events = whole.by_ids(chunk).await?;
                whole.remove(chunk.iter().copied()).await?;
                for event in &events {
                    self.live.removed(event);
                    if event.kind == nip34::ANNOUNCEMENT
                        && let Ok(identifier) = nip34::identifier_of(event)
                    {
                        let owner = author_of(event);
                        self.announced_no_more([&RepoId { owner, identifier }]);
                    }
                }
                self.holding.out(repo, chunk).await?;
                for id in chunk {
                    self.settle_refs(id).await;
                }
            }
        }
        Ok(())
    }

    /// Takes away the refs that are still to go of a pull request; says whether they have gone.
    pub async fn settle_refs(&self, id: &EventId) -> bool {
        let owed = self.purgatory.owed_refs(id);
        if owed.is_none() && self.purgatory.places.of(id).is_empty() {
            return true;
        }
        let repos = owed.unwrap_or_default();
        // It is served again: they are to stay.
        match self.store.apart().has(id).await {
            Ok(true) => {
                self.purgatory.refs_gone(id);
                return true;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(pull_request = %id, %error, "its refs are still there");
                return false;
            }
        }
        let all = self.take_refs_away(id, repos).await;
        if all {
            self.purgatory.refs_gone(id);
        }
        all
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
            true => self.put_aside(repo).await,
            false => Ok(self.git.delete(repo).await),
        };
        match gone {
            Ok(Ok(()) | Err(GitError::NotFound)) => {
                self.purgatory.undoom(repo);
                self.purgatory.forget_applied(repo);
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(%repo, %error, "a repository that is to go is still there");
                false
            }
            Err(error) => {
                tracing::warn!(%repo, %error, "a repository that is to go is still there");
                false
            }
        }
    }

    /// Moves a repository aside. Which one is noted first, so that it is found again.
    async fn put_aside(&self, repo: &RepoId) -> Result<Result<(), GitError>, JournalError> {
        let any = [RefName::nostr(&EventId::from_bytes([0; 32]))];
        let incarnation = match self.git.refs(&repo.into(), &any).await {
            Ok(refs) => refs.incarnation,
            Err(error) => return Ok(Err(error)),
        };
        self.holding.retiring(repo, &incarnation).await?;
        Ok(self.git.retire(repo).await)
    }

    /// Takes a repository away that waited in vain. One that was retired before is held on.
    pub async fn clear_away(&self, repo: &RepoId) -> Result<(), GitError> {
        match self.holding.incarnations(repo).is_empty() {
            true => self.git.delete(repo).await,
            false => match self.put_aside(repo).await {
                Ok(gone) => gone,
                Err(error) => Err(GitError::Failed(error.to_string())),
            },
        }
    }

    /// Makes a repository if it is not there: the one that is held, if there is one.
    pub async fn make(&self, repo: &RepoId) -> Result<(), GitError> {
        for incarnation in self.holding.incarnations(repo) {
            match self.git.restore(repo, &incarnation).await {
                Ok(()) => return self.settle_refs_in(repo).await,
                Err(GitError::NotFound) => {}
                // Another is in its place: that one is it.
                Err(GitError::Refused(_)) => break,
                Err(error) => return Err(error),
            }
        }
        self.git.create(repo).await.map(drop)
    }

    /// The announcements of these repositories are out of service; newer ones that wait go on waiting.
    pub fn announced_no_more<'a>(&self, repos: impl IntoIterator<Item = &'a RepoId>) {
        for repo in repos {
            if self.repositories.standing(repo) != Some(Standing::Waiting) {
                self.repositories.remove(repo);
            }
        }
    }
}
