//! Kind 30617: accepted how.

use std::{cmp::Ordering, collections::BTreeSet, sync::Arc};

use super::{Admit, Failed, WAITS, gone, known, malformed, no_room, replaced, waits_already};
use crate::{
    holding::Reason,
    nip34::{announcement::Announcement, bounds::memory, later},
    policy::curation::{Place, Rules},
    release::{Release, make_repository, release_identifier},
    repository::Standing,
    verdict::{Origin, Verdict},
};
use grasp_proto::words::{Npub, RepoId};

/// The rejection of an announcement whose repository is not to be here.
fn elsewhere(rules: &Rules) -> Verdict {
    let ours = rules.ours();
    let must = format!("the announcement must list {ours} in both clone and relays");
    malformed(match rules.archive() {
        Some(_) => format!("{must}, or be of a repository that is archived here"),
        None => must,
    })
}

/// A version that drops what was there is accepted; who wonders later finds it in the log.
fn tell_what_is_dropped(before: Option<&Announcement>, after: &Announcement) {
    let Some(before) = before else { return };
    let (maintainers, clone_urls) = after.drops(before);
    if maintainers.is_empty() && clone_urls == 0 {
        return;
    }
    let shown = maintainers.iter().take(DROPPED_SHOWN).map(Npub::to_string);
    tracing::info!(
        repo = %after.repo,
        maintainers = maintainers.len(),
        dropped = ?shown.collect::<Vec<_>>(),
        clone_urls,
        "an announcement was replaced by one that names fewer maintainers or clone URLs"
    );
}

/// Maintainers that one log line names.
const DROPPED_SHOWN: usize = 8;

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
                Ordering::Equal if waiting.soft_expired && origin.is_meant() => {}
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
            return Ok(gone());
        }
        let standing = repositories.standing(repo);
        let rules = self.curation.rules();
        let before = match &waiting {
            Some(waiting) => Some(waiting.announcement.clone()),
            None => stored
                .clone()
                .and_then(|event| Announcement::read(Arc::new(event)).ok()),
        };
        let place = rules.place(&announcement);
        if let Place::Unwanted(why) = place {
            return Ok(Verdict::rejected(why));
        }
        if matches!(place, Place::Hosted | Place::Archived) {
            if standing == Some(Standing::Active) {
                let verdict = self.keep(&announcement.event).await?;
                self.names_new_servers(before.as_ref(), &announcement);
                repositories.set(&announcement, Standing::Active);
                tell_what_is_dropped(before.as_ref(), &announcement);
                self.settle_after(repo).await;
                // Whose events belonged to nothing when it came back may count for it now.
                self.release.holding.returns(repo);
                self.hunt_on(repo, origin);
                return Ok(verdict);
            }
            self.names_new_servers(before.as_ref(), &announcement);
            let verdict = self.wait_for_data(announcement.clone()).await?;
            tell_what_is_dropped(before.as_ref(), &announcement);
            self.hunt_on(repo, origin);
            return Ok(verdict);
        }
        // One that is invited answers by this.
        if repositories.is_invited(repo) {
            self.release.move_elsewhere(&announcement).await?;
            self.names_new_servers(before.as_ref(), &announcement);
            tell_what_is_dropped(before.as_ref(), &announcement);
            self.settle_after(repo).await;
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
        let replaced = before
            .as_ref()
            .map_or(0, |before| memory(&before.announcement.event));
        let more = memory(&announcement.event).saturating_sub(replaced);
        if let Err(full) = purgatory.has_room(&repo.owner, more) {
            return Ok(no_room(full));
        }
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
        self.settle_after(repo).await;
        // Nobody looked whether the data of those states was here as long as no repository wanted it.
        if repositories.standing(repo) == Some(Standing::Waiting)
            && self.release.authorises_what_waits(repo)
        {
            self.release_what_waits(repo).await;
        }
        Ok(match repositories.standing(repo) {
            Some(Standing::Active) => Verdict::served(),
            _ => Verdict::accepted(WAITS),
        })
    }

    /// The held states of a repository that waits wait with it, and are released if they can be.
    async fn come_back(&self, repo: &RepoId) {
        match self.release.give_back_states(repo, &self.curation).await {
            Ok(true) => self.release_what_waits(repo).await,
            Ok(false) => {}
            Err(error) => {
                let what = "what is held does not come back yet";
                self.release.note(&repo.identifier, &error, what);
            }
        }
    }

    /// What expired for want of data may be on a server that the version `before` did not name.
    fn names_new_servers(&self, before: Option<&Announcement>, announcement: &Announcement) {
        let known: BTreeSet<&str> = before
            .into_iter()
            .flat_map(Announcement::clone_urls)
            .collect();
        if announcement.clone_urls().any(|url| !known.contains(url)) {
            self.release
                .data_may_be_there(&announcement.repo.identifier);
        }
    }

    /// Who is trusted may have changed, and where what is missing may be asked for: what waits is hunted
    /// for by that.
    fn hunt_on(&self, repo: &RepoId, origin: Origin) {
        let name = &repo.identifier;
        if self.release.purgatory.waits_for_release_under(name) {
            self.hunt.enqueue(name, origin);
        }
    }

    /// A change of who maintains what may move refs, here and in others' repositories, and may let
    /// something out.
    pub(super) async fn settle_after(&self, repo: &RepoId) {
        let changed = self.release.judge_changed_sets(&repo.identifier).await;
        if changed.may_release {
            self.release_what_waits(repo).await;
        }
    }

    async fn release_what_waits(&self, repo: &RepoId) {
        let released = release_identifier(&self.release, &self.serial, &repo.identifier);
        if let Err(error) = released.await {
            self.release
                .note(&repo.identifier, &error, "nothing was released");
        }
    }
}
