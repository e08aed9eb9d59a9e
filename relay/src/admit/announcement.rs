//! Kind 30617: accepted how.

use std::cmp::Ordering;

use super::{Admit, Failed, WAITS, known, malformed, replaced, waits_already};
use crate::{
    holding::Reason,
    nip34::{announcement::Announcement, later},
    policy::curation::{Place, Rules},
    release::{Release, make_repository, release_identifier},
    repository::Standing,
    verdict::{Origin, Verdict},
};
use grasp_proto::words::RepoId;

/// The rejection of an announcement whose repository is not to be here.
fn elsewhere(rules: &Rules) -> Verdict {
    let ours = rules.ours();
    let must = format!("the announcement must list {ours} in both clone and relays");
    malformed(match rules.archive() {
        Some(_) => format!("{must}, or be of a repository that is archived here"),
        None => must,
    })
}

impl Admit {
    pub(super) async fn announcement(
        self,
        announcement: Announcement,
        origin: Origin,
    ) -> Result<Verdict, Failed> {
        let Release {
            store,
            purgatory,
            repositories,
            ..
        } = &self.release;
        let repo = &announcement.repo;
        let waiting = purgatory.announcements.get(repo);
        if let Some(waiting) = &waiting {
            let version = later(&waiting.announcement.event, &announcement.event);
            match version {
                Ordering::Greater => return Ok(replaced()),
                // Published again by its author after its repository has gone: as if new.
                Ordering::Equal if waiting.soft_expired && origin == Origin::User => {}
                Ordering::Equal => {
                    // What comes with it may not have come the first time.
                    self.come_back(repo).await;
                    return Ok(match repositories.standing(repo) {
                        Some(Standing::Active) => known(),
                        _ => waits_already(),
                    });
                }
                Ordering::Less => {}
            }
        }
        let stored = store.announcement(repo).await?;
        let objection = self.against_stored(stored.as_ref(), &announcement.event);
        if let Some(objection) = objection.await? {
            return Ok(objection);
        }
        if self.release.holding.has_left(repo, &announcement.event) {
            return Ok(replaced());
        }
        let standing = repositories.standing(repo);
        let rules = self.curation.rules();
        let place = rules.place(&announcement);
        if let Place::Unwanted(why) = place {
            return Ok(Verdict::rejected(why));
        }
        if matches!(place, Place::Hosted | Place::Archived) {
            if standing == Some(Standing::Active) {
                let before = repositories.trusting(&repo.identifier, &repo.owner);
                let verdict = self.keep(&announcement.event).await?;
                repositories.set(&announcement, Standing::Active);
                self.release.maintainers_changed(before).await;
                self.settle_after(repo).await;
                self.hunt_on(repo, origin);
                return Ok(verdict);
            }
            let repo = repo.clone();
            let verdict = self.wait_for_data(announcement).await?;
            self.hunt_on(&repo, origin);
            return Ok(verdict);
        }
        let trusting = repositories.trusting(&repo.identifier, &repo.owner);
        let others: Vec<_> = trusting
            .into_iter()
            .filter(|(other, _)| other != repo)
            .collect();
        if !others.is_empty() {
            self.release.move_elsewhere(&announcement).await?;
            self.release.maintainers_changed(others).await;
            self.hunt_on(repo, origin);
            return Ok(Verdict::served());
        }
        match (standing, stored) {
            (Some(Standing::Waiting), _) => self.release.drop_waiting(repo).await?,
            (Some(Standing::Active), Some(stored)) => {
                let newer = &announcement.event;
                self.release.holding.leaves(repo, newer).await?;
                self.release
                    .delist(repo, &stored, Reason::MovedAway)
                    .await?;
            }
            _ => {}
        }
        Ok(elsewhere(&rules))
    }

    /// An announcement of a repository that is to be here and is not served yet.
    pub(super) async fn wait_for_data(
        &self,
        announcement: Announcement,
    ) -> Result<Verdict, Failed> {
        let Release {
            purgatory,
            repositories,
            ..
        } = &self.release;
        let repo = &announcement.repo;
        let before = purgatory.announcements.get(repo);
        purgatory
            .announcements
            .admit(announcement.clone(), self.now());
        if let Err(error) = purgatory.keep_announcement(repo).await {
            purgatory.remove_announcement(repo);
            if let Some(before) = before {
                purgatory.announcements.insert(before);
            }
            return Err(error.into());
        }
        repositories.set(&announcement, Standing::Waiting);
        // Its states waited for the announcement that it replaces; their clock starts anew with it.
        purgatory.extend_states_of(&repo.identifier, repositories.maintainers(repo));
        make_repository(&self.release, repo).await;
        let what = "an announcement waits though its data may be here";
        if let Err(error) = self.release.promote_if_here(repo).await {
            self.release.note(&repo.identifier, &error, what);
        }
        self.come_back(repo).await;
        Ok(match repositories.standing(repo) {
            Some(Standing::Active) => Verdict::served(),
            _ => Verdict::accepted(WAITS),
        })
    }

    /// The held states of a repository that waits wait with it, and are released if they can be.
    async fn come_back(&self, repo: &RepoId) {
        match self.release.give_back_states(repo, &self.curation).await {
            Ok(true) => self.settle_after(repo).await,
            Ok(false) => {}
            Err(error) => {
                let what = "what is held does not come back yet";
                self.release.note(&repo.identifier, &error, what);
            }
        }
    }

    /// Who is trusted may have changed, and where what is missing may be asked for: what waits is hunted
    /// for by that.
    fn hunt_on(&self, repo: &RepoId, origin: Origin) {
        let (purgatory, name) = (&self.release.purgatory, &repo.identifier);
        if purgatory.states.waits_under(name) || purgatory.pull_requests.waits_under(name) {
            self.hunt.enqueue(name, origin);
        }
    }

    /// A change of who maintains what may let something out.
    pub(super) async fn settle_after(&self, repo: &RepoId) {
        let released = release_identifier(&self.release, &self.serial, &repo.identifier);
        if let Err(error) = released.await {
            self.release
                .note(&repo.identifier, &error, "nothing was released");
        }
    }
}
