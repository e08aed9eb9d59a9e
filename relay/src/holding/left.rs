//! Up to which version of its announcement a repository stays away: the one that did not name this
//! service any more, or that its author deleted.
//!
//! That version is not kept, or not served. But it replaced those before it, which other relays go on
//! bringing, and which anybody can send. So its time and id are noted with the hold, as long as there
//! is one.

use std::cmp::Reverse;

use grasp_proto::words::RepoId;
use nostr::{Event, EventId, Timestamp};
use serde::{Deserialize, Serialize};

use super::Holding;
use crate::{clock::Moment, journal::JournalError, nip34::horizon};

/// A version, ordered as versions of one announcement are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(Timestamp, Reverse<EventId>);

impl Version {
    pub(super) fn of(event: &Event) -> Self {
        Self(event.created_at, Reverse(event.id))
    }

    /// Whether it is this version, or one from before it. Of a version from the future, as was accepted
    /// before that was refused, it counts when it was noted: nobody could ever come after it.
    pub(super) fn is_not_before(&self, event: &Event, noted: Moment) -> bool {
        match self.0 > horizon() {
            true => event.created_at.as_secs() <= noted.as_secs() || *self == Self::of(event),
            false => *self >= Self::of(event),
        }
    }
}

impl Holding {
    /// This version of a repository's announcement does not name this service any more, or is deleted.
    pub async fn leaves(&self, repo: &RepoId, version: &Event) -> Result<(), JournalError> {
        let version = Version::of(version);
        self.change(repo, |hold| hold.left = hold.left.max(Some(version)))
            .await?;
        Ok(())
    }

    /// Whether a version of its announcement is, or was replaced by, one that took the repository away.
    pub fn has_left(&self, repo: &RepoId, version: &Event) -> bool {
        let hold = self.of(repo);
        hold.is_some_and(|hold| {
            hold.left
                .is_some_and(|left| left.is_not_before(version, hold.since))
        })
    }

    /// Whichever version took a repository away, it may come back.
    pub async fn may_return(&self, repo: &RepoId) -> Result<(), JournalError> {
        if self.of(repo).is_some_and(|hold| hold.left.is_some()) {
            self.change(repo, |hold| hold.left = None).await?;
        }
        Ok(())
    }
}
