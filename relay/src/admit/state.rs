//! Kind 30618: accepted how.

use std::{collections::BTreeSet, sync::Arc};

use grasp_proto::words::RepoId;
use nostr::{Event, Filter};

use super::{Admit, Failed, WAITS, gone, malformed, no_room, replaced, waits_already};
use crate::{
    nip34::{ANNOUNCEMENT, STATE, announcement::Announcement, state::State},
    policy::{
        curation::BLOCKED,
        satisfiable::{Wanted, satisfiable},
    },
    purgatory::WAITS_FOR,
    release::{GoOn, Release, ReleaseError, go_on, make_repository},
    repository::Standing,
    serial::Turn,
    verdict::{Origin, Verdict},
};

/// Withheld announcements of one identifier that are looked at.
const WITHHELD: usize = 100;

/// What is said to who is named as a maintainer and counts for nobody so far.
const NOT_ANSWERED: &str = "author not authorized for this repository: who is named as a maintainer \
     counts once an announcement of their own, for the same identifier, names back a maintainer";

impl Admit {
    pub(super) async fn state(self, state: State, origin: Origin) -> Result<Verdict, Failed> {
        let Release {
            store,
            purgatory,
            repositories,
            ..
        } = &self.release;
        let id = state.id();
        if purgatory.states.get(&id).is_some() {
            if !self.revive(&state).await.is_empty() {
                purgatory.extend_state(&id, self.now() + WAITS_FOR);
                self.hunt.enqueue(&state.identifier, origin);
            }
            return Ok(waits_already());
        }
        let trusting = repositories.trusting(&state.identifier, &state.author);
        let own = RepoId {
            owner: state.author,
            identifier: state.identifier.clone(),
        };
        if trusting.is_empty() && self.curation.rules().blocks(&own) {
            return Ok(Verdict::rejected(BLOCKED));
        }
        if !repositories.is_announced(&state.identifier) {
            if self.is_for_what_is_blocked(&state).await? {
                return Ok(Verdict::rejected(BLOCKED));
            }
            return Ok(malformed("no announcement exists for this repository"));
        }
        if trusting.is_empty() {
            return Ok(malformed(match repositories.is_invited(&own) {
                true => NOT_ANSWERED,
                false => "author not authorized for this repository",
            }));
        }
        let stored = store
            .addressable(STATE, &state.author, state.identifier.as_str())
            .await?;
        let objection = self.against_stored(stored.as_ref(), &state.event);
        if let Some(objection) = objection.await? {
            return Ok(objection);
        }
        let holding = &self.release.holding;
        if holding.is_before_a_deleted(&state.event).await? {
            return Ok(gone());
        }
        if let Err(full) = purgatory.has_room_for(&state) {
            return Ok(no_room(full));
        }
        for (repo, standing) in &trusting {
            if *standing == Standing::Waiting {
                purgatory.extend_announcement(repo, self.now() + WAITS_FOR);
                make_repository(&self.release, repo).await;
            }
        }
        if !purgatory.add_state(state.clone()) {
            return Ok(replaced());
        }
        // Durable before a ref is moved for it: whatever happens now, it is gone on with.
        if let Err(error) = purgatory.keep_state(&id).await {
            purgatory.remove_state(&id);
            return Err(error.into());
        }
        if self.release_now(&state).await {
            return Ok(Verdict::served());
        }
        self.hunt.enqueue(&state.identifier, origin);
        Ok(Verdict::accepted(WAITS))
    }

    /// A state came again that is here: the soft-expired announcements that trust its author are revived, as
    /// by one that is new. Gives their repositories.
    async fn revive(&self, state: &State) -> Vec<RepoId> {
        let Release {
            purgatory,
            repositories,
            ..
        } = &self.release;
        let trusting = repositories.trusting(&state.identifier, &state.author);
        let mut revived = Vec::new();
        for (repo, _) in trusting {
            let entry = purgatory.announcements.get(&repo);
            if entry.is_some_and(|entry| entry.soft_expired) {
                purgatory.extend_announcement(&repo, self.now() + WAITS_FOR);
                make_repository(&self.release, &repo).await;
                tracing::info!(%repo, state = %state.id(), "an announcement is revived");
                revived.push(repo);
            }
        }
        revived
    }

    /// A served event was sent again by a user. If it is a state, announcements that soft-expired are
    /// revived by it, and served: its data is here.
    pub(super) async fn sent_again(&self, event: Arc<Event>) -> Result<(), Failed> {
        if event.kind != STATE {
            return Ok(());
        }
        let Ok(state) = State::read(event) else {
            return Ok(());
        };
        let (door, identifier) = (self.clone(), state.identifier.clone());
        let work = async move {
            for repo in door.revive(&state).await {
                let promoted = door.release.promote_if_here(&repo).await;
                if let Err(error) = promoted {
                    let what = "an announcement was not promoted";
                    door.release.note(&repo.identifier, &error, what);
                }
            }
            Ok(())
        };
        self.serial.run(&identifier, Turn::Normal, work).await
    }

    /// Whether its identifier is announced by what a blacklist withholds, and names its author.
    async fn is_for_what_is_blocked(&self, state: &State) -> Result<bool, Failed> {
        let rules = self.curation.rules();
        if rules.blocks_nothing() {
            return Ok(false);
        }
        let withheld = Filter::new()
            .kind(ANNOUNCEMENT)
            .identifier(state.identifier.as_str())
            .limit(WITHHELD);
        let withheld = self.release.store.apart().query(withheld).await?;
        let read = |event| Announcement::read(Arc::new(event)).ok();
        let announced = withheld.into_iter().filter_map(read);
        let mut blocked = announced.filter(|one| rules.blocks(&one.repo));
        Ok(blocked.any(|one| one.listing.names(&state.author)))
    }

    /// Releases a state if its objects are here; says whether it is served.
    pub(super) async fn release_now(&self, state: &State) -> bool {
        let mut wanted = Wanted::default();
        wanted.state(state);
        let attempt = async {
            if state.never_arrives() {
                return Ok(false);
            }
            let absent = match wanted.is_empty() {
                true => BTreeSet::new(),
                false => self.release.absent(&state.identifier, &wanted).await?,
            };
            if !satisfiable(state, &absent) {
                return Ok(false);
            }
            let released = self.release.state(state, None, None).await?;
            if released.more.is_some() {
                let (state, so_far) = (state.clone(), released.more);
                go_on(&self.release, &self.serial, GoOn { state, so_far });
            }
            Ok::<_, ReleaseError>(released.served)
        };
        match attempt.await {
            Ok(served) => served,
            Err(error) => {
                let what = "a state waits though its data may be here";
                self.release.note(&state.identifier, &error, what);
                false
            }
        }
    }
}
