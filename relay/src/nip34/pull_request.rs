//! Kinds 1618 and 1619: a contributor's commit, offered to repositories.

use std::{collections::BTreeSet, sync::Arc};

use grasp_proto::words::{EventId, Identifier, Npub, Oid, RepoId};
use nostr::Event;

use crate::clock::Moment;

use super::{Malformed, author_of, id_of, repository_coordinate, values};

/// A pull request or an update to one, read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// The event itself.
    pub event: Arc<Event>,
    /// Who offers it.
    pub author: Npub,
    /// The commit its `c` tag names; `None` if that is no object id of ours and so never arrives.
    pub commit: Option<Oid>,
    /// The repositories it is offered to.
    pub repositories: BTreeSet<RepoId>,
}

impl PullRequest {
    /// Reads an event of kind 1618 or 1619.
    ///
    /// # Errors
    /// No `c` tag.
    pub fn read(event: Arc<Event>) -> Result<Self, Malformed> {
        let commit = values(&event, "c")
            .next()
            .ok_or_else(|| Malformed("no c tag".to_owned()))?;
        let commit = Oid::from_hex(commit).ok().filter(|oid| !oid.is_zero());
        Ok(Self {
            author: author_of(&event),
            commit,
            repositories: repositories(&event),
            event,
        })
    }

    /// Its id.
    pub fn id(&self) -> EventId {
        id_of(&self.event)
    }

    /// When it expires by its own word (NIP-40).
    pub fn expires(&self) -> Option<Moment> {
        let at = self.event.tags.expiration()?;
        Some(Moment::from_millis(at.as_secs().saturating_mul(1000)))
    }

    /// Whether it has.
    pub fn has_expired(&self, now: Moment) -> bool {
        self.expires().is_some_and(|at| at <= now)
    }

    /// The identifiers of the repositories it is offered to, each once.
    pub fn identifiers(&self) -> BTreeSet<Identifier> {
        self.repositories
            .iter()
            .map(|repo| repo.identifier.clone())
            .collect()
    }
}

/// The repositories an event's `a` tags name.
pub fn repositories(event: &Event) -> BTreeSet<RepoId> {
    values(event, "a")
        .filter_map(repository_coordinate)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::{
        PULL_REQUEST,
        testing::{event, keys},
    };

    fn read(tags: &[&[&str]]) -> Result<PullRequest, Malformed> {
        PullRequest::read(Arc::new(event(&keys(1), PULL_REQUEST, 1, tags)))
    }

    #[test]
    fn a_commit_is_needed_but_need_not_be_ours() {
        assert!(read(&[]).is_err());
        assert_eq!(read(&[&["c", "abc"]]).unwrap().commit, None);
        assert_eq!(read(&[&["c", &"ab".repeat(32)]]).unwrap().commit, None);
        assert!(read(&[&["c", &"ab".repeat(20)]]).unwrap().commit.is_some());
    }

    #[test]
    fn it_may_be_offered_to_several() {
        let a = format!("30617:{}:x", "ab".repeat(32));
        let b = format!("30617:{}:y", "cd".repeat(32));
        let offered = read(&[&["c", ""], &["a", &a], &["a", &b], &["a", "30023:zz:x"]]).unwrap();
        assert_eq!(offered.repositories.len(), 2);
        assert_eq!(offered.identifiers().len(), 2);
    }
}
