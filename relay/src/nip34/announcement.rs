//! Kind 30617: who owns what, where it is served, whom it names as maintainers.

use std::{collections::BTreeSet, sync::Arc};

use grasp_proto::words::{EventId, Npub, RepoId};
use nostr::Event;

use super::{Malformed, all_values, author_of, id_of, identifier_of, roles::Listing};
use crate::domain::Domain;

/// A repository announcement, read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The event itself.
    pub event: Arc<Event>,
    /// The repository it announces.
    pub repo: RepoId,
    /// What it says about who maintains the repository.
    pub listing: Arc<Listing>,
}

impl Announcement {
    /// Reads an event of kind 30617. What is malformed of its roles and maintainers grants nothing.
    pub fn read(event: Arc<Event>) -> Result<Self, Malformed> {
        let owner = author_of(&event);
        let identifier = identifier_of(&event)?;
        let listing = Arc::new(Listing::read(&event, owner));
        Ok(Self {
            event,
            repo: RepoId { owner, identifier },
            listing,
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

    /// What the version before it said and this one does not: the maintainers it names no more, and how
    /// many clone URLs.
    pub fn drops(&self, before: &Self) -> (Vec<Npub>, usize) {
        let names_no_more = |key: &&Npub| !self.listing.names(key);
        let dropped = before.listing.names.iter().filter(names_no_more);
        let urls: BTreeSet<&str> = self.clone_urls().collect();
        let before_urls: BTreeSet<&str> = before.clone_urls().collect();
        (
            dropped.copied().collect(),
            before_urls.difference(&urls).count(),
        )
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
    fn what_a_version_drops_is_counted() {
        let (a, b) = ("ab".repeat(32), "cd".repeat(32));
        let before = [
            &["d", "r"] as &[&str],
            &["maintainers", &a, &b],
            &[
                "clone",
                "https://one.example/r.git",
                "https://two.example/r.git",
            ],
        ];
        let before = read(&before).unwrap();
        let role = ["m", &b];
        let after = read(&[&["d", "r"], &role, &["clone", "https://two.example/r.git"]]).unwrap();
        assert_eq!(after.drops(&before), (vec![Npub::from_hex(&a).unwrap()], 1));
        assert_eq!(before.drops(&after), (vec![], 0));
    }

    #[test]
    fn the_identifier_rules_hold() {
        assert!(read(&[&["d", "a/b"]]).is_err());
        assert!(read(&[]).is_err());
    }
}
