//! Contributors' own addresses, `/prs/<npub>/<identifier>.git` (GRASP-06): which of them an event names:
//! pure.
//!
//! Event and push belong together only if both say the same: whose address it is, under which
//! identifier, and which commit. What an event says of the first two is read here and nowhere else.

use std::collections::BTreeSet;

use grasp_proto::words::{Address, RepoId};
use nostr::Event;
use url::Url;

use crate::{
    domain::Domain,
    nip34::{all_values, author_of, pull_request::repositories},
};

/// The addresses that contributors have here.
#[derive(Debug, Clone)]
pub struct Spaces {
    ours: Domain,
    is_on: bool,
}

impl Spaces {
    /// Those of the service `ours`; whether anything is taken at them.
    pub fn new(ours: Domain, is_on: bool) -> Self {
        Self { ours, is_on }
    }

    /// Whether anything is taken at them. What was taken before stays, and stands.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// The addresses here that a pull request names as its own: by a `clone` URL of exactly this
    /// service, its author and an identifier that an `a` tag carries too.
    pub fn named_by(&self, event: &Event) -> BTreeSet<RepoId> {
        let author = author_of(event);
        let offered = repositories(event);
        let is_offered = |repo: &RepoId| offered.iter().any(|o| o.identifier == repo.identifier);
        all_values(event, "clone")
            .filter_map(|url| self.read(url))
            .filter(|repo| repo.owner == author && is_offered(repo))
            .collect()
    }

    /// Whose space a URL leads to, if it is that and nothing besides.
    fn read(&self, url: &str) -> Option<RepoId> {
        let parsed = Url::parse(url).ok()?;
        let is_plain = matches!(parsed.scheme(), "http" | "https")
            && parsed.username().is_empty()
            && parsed.password().is_none()
            && parsed.query().is_none()
            && parsed.fragment().is_none();
        if !is_plain || Domain::of_url(url).as_ref() != Some(&self.ours) {
            return None;
        }
        match Address::from_url_path(parsed.path())? {
            (address, "") if address.is_prs() => Some(address.repo),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::Identifier;
    use proptest::prelude::*;

    use super::*;
    use crate::nip34::{
        PULL_REQUEST,
        testing::{event, keys},
    };

    fn spaces() -> Spaces {
        Spaces::new(Domain::parse("grasp.example").unwrap(), true)
    }

    fn space(seed: u8, name: &str) -> RepoId {
        RepoId {
            owner: author_of(&event(&keys(seed), PULL_REQUEST, 1, &[])),
            identifier: Identifier::parse(name).unwrap(),
        }
    }

    /// What a pull request by the first key names.
    fn named(clone: &[&str], offered: &[&str]) -> BTreeSet<RepoId> {
        let owner = "ab".repeat(32);
        let coordinates: Vec<String> = offered
            .iter()
            .map(|d| format!("30617:{owner}:{d}"))
            .collect();
        let mut urls = vec!["clone"];
        urls.extend(clone);
        let mut tags: Vec<Vec<&str>> = vec![urls];
        tags.extend(coordinates.iter().map(|a| vec!["a", a.as_str()]));
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        spaces().named_by(&event(&keys(1), PULL_REQUEST, 1, &tags))
    }

    #[test]
    fn author_identifier_and_service_must_agree() {
        let own = Address::prs(space(1, "x"));
        let at = |domain: &str| format!("https://{domain}/{own}");
        let one = BTreeSet::from([space(1, "x")]);
        assert_eq!(named(&[&at("grasp.example")], &["x"]), one);
        assert_eq!(
            named(&["nonsense", &at("GRASP.example:443")], &["y", "x"]),
            one
        );
        assert!(named(&[&at("grasp.example")], &["y"]).is_empty());
        assert!(named(&[&at("grasp.example")], &[]).is_empty());
        assert!(named(&[&at("other.example")], &["x"]).is_empty());
        assert!(named(&[], &["x"]).is_empty());
        let theirs = format!("https://grasp.example/{}", Address::prs(space(2, "x")));
        assert!(named(&[&theirs], &["x"]).is_empty());
    }

    #[test]
    fn nothing_but_the_address_is_the_address() {
        let own = Address::prs(space(1, "x"));
        let bare = own.repo.to_string();
        for url in [
            format!("https://grasp.example/{bare}"),
            format!("https://grasp.example/{own}/"),
            format!("https://grasp.example/{own}/info/refs"),
            format!("https://grasp.example/{own}?a"),
            format!("https://grasp.example/{own}#a"),
            format!("https://me@grasp.example/{own}"),
            format!("wss://grasp.example/{own}"),
            format!("https://grasp.example/x/{own}"),
            format!("https://grasp.example//{own}"),
            format!("https://evil.example/grasp.example/{own}"),
            format!("https://grasp.example.evil.example/{own}"),
            format!("/{own}"),
        ] {
            assert!(named(&[&url], &["x"]).is_empty(), "{url}");
        }
    }

    proptest! {
        /// Whatever the identifier, the address that it makes is the one that is read, and no other.
        #[test]
        fn an_address_is_read_back(name in "\\PC{1,40}", other in "\\PC{1,40}") {
            let (Ok(identifier), Ok(elsewhere)) = (Identifier::parse(&name), Identifier::parse(&other))
            else {
                return Ok(());
            };
            let own = RepoId { identifier, ..space(1, "x") };
            let url = format!("https://grasp.example/{}", Address::prs(own.clone()));
            prop_assert_eq!(named(&[&url], &[&name]), BTreeSet::from([own]));
            if elsewhere.as_str() != name {
                prop_assert!(named(&[&url], &[&other]).is_empty());
            }
        }
    }
}
