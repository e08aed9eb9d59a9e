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
use crate::journal::JournalError;

/// A version, ordered as versions of one announcement are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(Timestamp, Reverse<EventId>);

impl Version {
    pub(super) fn of(event: &Event) -> Self {
        Self(event.created_at, Reverse(event.id))
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
        let left = self.of(repo).and_then(|hold| hold.left);
        left.is_some_and(|left| left >= Version::of(version))
    }

    /// Whichever version took a repository away, it may come back.
    pub async fn may_return(&self, repo: &RepoId) -> Result<(), JournalError> {
        if self.of(repo).is_some_and(|hold| hold.left.is_some()) {
            self.change(repo, |hold| hold.left = None).await?;
        }
        Ok(())
    }
}
