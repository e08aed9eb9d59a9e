//! The refs of pull requests that the operator's lists withhold: which were taken out of which
//! repositories, so that they come back, whatever the lists were when the process ended.

use grasp_proto::words::{EventId, RepoId};

use super::{
    Purgatory,
    records::{WITHHELD_REFS, WITHHELD_REPOSITORY, repository_key},
};
use crate::journal::{JournalError, Record, WithheldStep, key};

/// What has become of one pull request's refs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithheldRefs {
    /// Where they are not to be.
    pub places: Vec<RepoId>,
    /// How far it has come.
    pub step: WithheldStep,
}

impl WithheldRefs {
    fn record(&self, id: &EventId) -> Record {
        Record::WithheldRefs {
            id: id.to_hex(),
            repositories: self.places.iter().map(RepoId::coordinate).collect(),
            step: self.step,
        }
    }
}

impl Purgatory {
    /// A repository goes out of service by the lists, durably: what is served meanwhile may have refs
    /// that it lacks when it is back.
    pub async fn note_withheld(&self, repo: &RepoId) -> Result<(), JournalError> {
        if !self.withheld_repositories.insert(repo.clone()) {
            return Ok(());
        }
        let repository = repo.coordinate();
        let record = Record::WithheldRepository { repository };
        let name = repository_key(WITHHELD_REPOSITORY, repo);
        self.journal.keep(name, &record).await
    }

    /// It is back, and lacks none; or it has gone.
    pub fn forget_withheld(&self, repo: &RepoId) {
        if self.withheld_repositories.remove(repo).is_some() {
            self.journal
                .forget(repository_key(WITHHELD_REPOSITORY, repo));
        }
    }

    /// The repositories that are, or were, out of service by the lists.
    pub fn withheld_repositories(&self) -> Vec<RepoId> {
        let all = self.withheld_repositories.iter();
        all.map(|repo| repo.key().clone()).collect()
    }

    /// What is known of a pull request's refs, if they are withheld.
    pub fn withheld_refs(&self, id: &EventId) -> Option<WithheldRefs> {
        self.withheld_refs.get(id).map(|entry| entry.clone())
    }

    /// The pull requests whose refs are withheld, all or those with which something is still to be done.
    pub fn withholding_refs(&self, unfinished_only: bool) -> Vec<EventId> {
        let all = self.withheld_refs.iter();
        let wanted = all.filter(|entry| !unfinished_only || entry.step != WithheldStep::Taken);
        wanted.map(|entry| *entry.key()).collect()
    }

    /// What is to be done with a pull request's refs now, durably: the caller does it next.
    pub async fn withhold_refs(&self, id: EventId, refs: WithheldRefs) -> Result<(), JournalError> {
        self.journal
            .keep(key(WITHHELD_REFS, id.as_bytes()), &refs.record(&id))
            .await?;
        self.withheld_refs.insert(id, refs);
        Ok(())
    }

    /// What `refs` says was done. If something else is to be done meanwhile, it still is.
    pub fn withheld_refs_done(&self, id: &EventId, refs: &WithheldRefs) {
        let name = key(WITHHELD_REFS, id.as_bytes());
        let Some(mut entry) = self.withheld_refs.get_mut(id) else {
            return;
        };
        if *entry != *refs {
            return;
        }
        if entry.step == WithheldStep::Returning {
            drop(entry);
            self.withheld_refs.remove(id);
            self.journal.forget(name);
        } else {
            entry.step = WithheldStep::Taken;
            // Were it lost, they would be taken away once more.
            self.journal.keep_soon(name, &entry.record(id));
        }
    }
}
