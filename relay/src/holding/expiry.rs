//! What is held is thrown away: when its time has come, when an operator says so, when all of it
//! has come back. Git data first, the hold last.

use grasp_proto::words::RepoId;

use super::{Fate, Holding, STEP, shelved};
use crate::{
    clock::Moment,
    git::GitError,
    journal::{JournalError, shelf::Act},
    release::{Release, ReleaseError},
    serial::{Serial, Turn},
};

/// Repositories that one sweep throws away at most.
const A_SWEEP: usize = 1_000;

impl Holding {
    /// At most `most` repositories whose time has come.
    pub fn due(&self, now: Moment, most: usize) -> Vec<RepoId> {
        let index = self.index();
        let due = index.by_age.iter();
        due.take_while(|(since, _)| *since + self.keeps_for <= now)
            .take(most)
            .map(|(_, repo)| repo.clone())
            .collect()
    }

    fn is_due(&self, repo: &RepoId, now: Moment) -> bool {
        self.of(repo)
            .is_some_and(|hold| !hold.taking && hold.since + self.keeps_for <= now)
    }

    /// A hold goes, with the events nobody else holds.
    async fn end(&self, repo: &RepoId) -> Result<(), JournalError> {
        let Some(hold) = self.of(repo) else {
            return Ok(());
        };
        loop {
            let links = self.links(hold.number, None, STEP).await?;
            if links.is_empty() {
                break;
            }
            let _one_at_a_time = self.unlinking.lock().await;
            let number = hold.number;
            let look = self.journal.look(move |look| {
                let mut acts = Vec::new();
                for link in links {
                    match link.fate {
                        Fate::Dropped => {
                            acts.push(Act::Remove(shelved::link_key(number, &link.id)));
                        }
                        _ => acts.extend(shelved::unlink(look, number, &link.id)?),
                    }
                }
                Ok(acts)
            });
            let acts = look.await?;
            self.journal.shelve(acts).await?;
        }
        let acts = vec![Act::Remove(shelved::hold_key(repo))];
        self.journal.shelve(acts).await?;
        self.index().remove(repo);
        Ok(())
    }
}

impl Release {
    /// Throws away what is held of a repository: its retired git data, its events. In the queue of
    /// its identifier. What is in its place, or served, is left as it is.
    ///
    /// # Errors
    /// The git storage cannot be reached: nothing is thrown away then, or not all.
    pub async fn eject(&self, repo: &RepoId) -> Result<(), ReleaseError> {
        // What is still to be moved aside is moved first.
        if !self.carry_out_doom(repo).await {
            let why = "its repository is not moved aside yet";
            return Err(GitError::Unreachable(why.to_owned()).into());
        }
        for incarnation in self.holding.incarnations(repo) {
            self.git.purge(repo, &incarnation).await?;
        }
        Ok(self.holding.end(repo).await?)
    }
}

/// Repositories that lie aside and that no hold knows of – moved there before there were holds – are
/// held from now on, so that they come back or go as the others. Needs gitd.
pub async fn adopt_retired(release: &Release) -> Result<(), ReleaseError> {
    let mut adopted = 0;
    for (repo, incarnation) in release.git.retired().await? {
        adopted += u32::from(release.holding.adopt(&repo, &incarnation).await?);
    }
    if adopted > 0 {
        tracing::info!(
            adopted,
            "retired repositories of before are held from now on"
        );
    }
    Ok(())
}

/// Throws away whatever has been held for long enough. To be called while gitd can be reached.
pub async fn sweep(release: &Release, serial: &Serial) {
    let now = release.purgatory.now();
    for repo in release.holding.due(now, A_SWEEP) {
        let (release, queue) = (release.clone(), repo.identifier.clone());
        let work = async move {
            // It may have been announced, and deleted again, meanwhile.
            if !release.holding.is_due(&repo, now) {
                return;
            }
            match release.eject(&repo).await {
                Ok(()) => tracing::info!(%repo, "was held for long enough: thrown away"),
                Err(error) => tracing::warn!(%repo, %error, "is held for longer"),
            }
        };
        serial.run(&queue, Turn::Normal, work).await;
    }
}
