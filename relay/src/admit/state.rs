//! Kind 30618: accepted how.

use std::{collections::BTreeSet, sync::Arc};

use grasp_proto::words::RepoId;
use nostr::Filter;

use super::{Admit, Failed, WAITS, malformed, replaced, waits_already};
use crate::{
    nip34::{ANNOUNCEMENT, STATE, announcement::Announcement, state::State},
    policy::{
        curation::BLOCKED,
        satisfiable::{Wanted, satisfiable},
    },
    purgatory::WAITS_FOR,
    release::{GoOn, Release, ReleaseError, go_on, make_repository},
    repository::Standing,
    verdict::{Origin, Verdict},
};

/// Withheld announcements of one identifier that are looked at.
const WITHHELD: usize = 100;

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
            return Ok(malformed("author not authorized for this repository"));
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
            return Ok(replaced());
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
        if !state.never_arrives() {
            self.hunt.enqueue(&state.identifier, origin);
        }
        Ok(Verdict::accepted(WAITS))
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
        Ok(blocked.any(|one| one.maintainers.contains(&state.author)))
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
            if let Some(so_far) = released.more {
                let state = state.clone();
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
