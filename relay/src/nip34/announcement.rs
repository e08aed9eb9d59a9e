//! Kind 30617: who owns what, where it is served, who maintains it.

use std::sync::Arc;

use grasp_proto::words::{EventId, Npub, RepoId};
use nostr::Event;

use super::{Malformed, all_values, author_of, id_of, identifier_of, public_key};
use crate::domain::Domain;

/// Maintainers of one announcement that count, the first ones. Whoever announces an identifier adds
/// to what is walked for all who share it.
const MAINTAINERS: usize = 256;

/// A repository announcement, read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The event itself.
    pub event: Arc<Event>,
    /// The repository it announces.
    pub repo: RepoId,
    /// Well-formed keys of its `maintainers` tag, the owner left out, each once.
    pub maintainers: Vec<Npub>,
}

impl Announcement {
    /// Reads an event of kind 30617. Malformed maintainers are ignored one by one.
    pub fn read(event: Arc<Event>) -> Result<Self, Malformed> {
        let owner = author_of(&event);
        let identifier = identifier_of(&event)?;
        let mut maintainers: Vec<Npub> = all_values(&event, "maintainers")
            .filter_map(public_key)
            .filter(|key| *key != owner)
            .take(MAINTAINERS)
            .collect();
        maintainers.sort_unstable();
        maintainers.dedup();
        Ok(Self {
            event,
            repo: RepoId { owner, identifier },
            maintainers,
        })
    }

    /// Its id.
    pub fn id(&self) -> EventId {
        id_of(&self.event)
    }

    /// Its `clone` URLs, well-formed or not.
    pub fn clone_urls(&self) -> impl Iterator<Item = &str> {
        all_values(&self.event, "clone")
    }

    /// Its `relays`, well-formed or not.
    pub fn relays(&self) -> impl Iterator<Item = &str> {
        all_values(&self.event, "relays")
    }

    /// Whether it lists the service in `clone` and in `relays`, by host and port (GRASP-01).
    pub fn lists(&self, service: &Domain) -> bool {
        let ours = |url: &str| Domain::of_url(url).as_ref() == Some(service);
        self.clone_urls().any(ours) && self.relays().any(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT,
        testing::{event, keys},
    };

    fn read(tags: &[&[&str]]) -> Result<Announcement, Malformed> {
        Announcement::read(Arc::new(event(&keys(1), ANNOUNCEMENT, 1, tags)))
    }

    #[test]
    fn both_tags_must_list_the_service() {
        let ours = Domain::parse("grasp.example").unwrap();
        let clone = ["clone", "nonsense", "https://GRASP.example/npub1x/r.git"];
        let relays = ["relays", "wss://other.example", "wss://grasp.example:443"];
        let elsewhere = ["clone", "https://evil.example/grasp.example"];
        let lists = |tags: &[&[&str]]| read(tags).unwrap().lists(&ours);
        assert!(lists(&[&["d", "r"], &clone, &relays]));
        assert!(!lists(&[&["d", "r"], &clone]));
        assert!(!lists(&[&["d", "r"], &relays]));
        assert!(!lists(&[&["d", "r"], &elsewhere, &relays]));
    }

    #[test]
    fn malformed_maintainers_are_ignored_one_by_one() {
        let (a, owner) = ("ab".repeat(32), keys(1).public_key().to_hex());
        let read = read(&[&["d", "r"], &["maintainers", "x", &a, &owner, &a]]).unwrap();
        assert_eq!(read.maintainers, [Npub::from_hex(&a).unwrap()]);
    }

    #[test]
    fn the_identifier_rules_hold() {
        assert!(read(&[&["d", "a/b"]]).is_err());
        assert!(read(&[]).is_err());
    }
}
