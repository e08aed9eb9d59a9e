//! Kinds 1618 and 1619: accepted how.

use std::collections::BTreeSet;

use super::{Admit, Failed, WAITS, no_room, unrelated, waits_already};
use crate::{
    nip34::{bounds::memory, pull_request::PullRequest},
    policy::curation::BLOCKED,
    serial::Turn,
    verdict::{Origin, Verdict},
};

impl Admit {
    pub(super) async fn pull_request_in_turn(
        &self,
        mut request: PullRequest,
        origin: Origin,
    ) -> Result<Verdict, Failed> {
        let purgatory = &self.release.purgatory;
        if purgatory
            .pull_requests
            .get(&request.id())
            .is_some_and(|entry| entry.request.is_some())
        {
            return Ok(waits_already());
        }
        let (spaces, rules) = (&self.release.spaces, self.curation.rules());
        if rules.blocks_request(&request.event, spaces) {
            return Ok(Verdict::rejected(BLOCKED));
        }
        let is_related = self.is_related(&request.event).await?;
        let has_no_space = || !spaces.is_on() || spaces.named_by(&request.event).is_empty();
        if !is_related && has_no_space() {
            return Ok(unrelated());
        }
        request.repositories = self.release.offered_to(&request).await?;
        let door = self.clone();
        // One queue is enough: the other side of the entry is merged, not overwritten, whichever
        // identifier it comes in by.
        let queue = request.identifiers().into_iter().next();
        let work = async move { door.pull_request(request, is_related, origin).await };
        match queue {
            Some(identifier) => self.serial.run(&identifier, Turn::Normal, work).await,
            None => work.await,
        }
    }

    pub(super) async fn pull_request(
        self,
        request: PullRequest,
        is_related: bool,
        origin: Origin,
    ) -> Result<Verdict, Failed> {
        let purgatory = &self.release.purgatory;
        let (id, identifiers) = (request.id(), request.identifiers());
        if let Err(full) = purgatory.has_room(&request.author, memory(&request.event)) {
            return Ok(no_room(full));
        }
        // What belongs to nothing here waits for its author's push, and is hunted for nowhere.
        let may_arrive = is_related && request.commit.is_some();
        let before = purgatory.pull_requests.get(&id);
        let brought = before.map_or_else(BTreeSet::new, |entry| entry.identifiers());
        purgatory.pull_requests.admit(request, self.now());
        if let Err(error) = purgatory.keep_pull_request(&id).await {
            purgatory.remove_pull_request(&id);
            return Err(error.into());
        }
        match self.release.pull_request(&id).await {
            Ok(true) => {
                // What was staged for it is here now: a state may have waited for the same.
                for identifier in brought {
                    self.release.unfinished.insert(identifier, ());
                }
                return Ok(Verdict::served());
            }
            Ok(false) => {}
            Err(error) => {
                let what = "a pull request waits though its data may be here";
                for identifier in &identifiers {
                    self.release.note(identifier, &error, what);
                }
            }
        }
        if may_arrive {
            for identifier in &identifiers {
                self.hunt.enqueue(identifier, origin);
            }
        }
        Ok(Verdict::accepted(WAITS))
    }
}
