//! Addresses as pages show them: to be clicked on, and to be pasted into a shell.
//!
//! Owners choose identifiers, so nothing in one may mean anything to a shell or to HTML.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::words::Address;

/// What no URL, shell or page takes for anything but itself (RFC 3986, unreserved).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Text as one segment of a path, in unreserved characters alone.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

/// A repository's path on this server, without the leading slash: as [`Address`] displays it, but in
/// unreserved characters alone.
pub fn path(address: &Address) -> String {
    let prs = if address.is_prs() { "prs/" } else { "" };
    let name = segment(address.identifier().as_str());
    format!("{prs}{}/{name}.git", address.owner())
}

/// What a `nostr://` URL calls a relay: without its scheme if that is `wss`, as one segment. So ngit and
/// gitworkshop.dev write and read it.
pub fn relay_hint(relay: &str) -> String {
    segment(relay.strip_prefix("wss://").unwrap_or(relay))
}

/// `<npub>/<relay hint>/<identifier>`: a repository for clients that find it by its events, behind
/// `nostr://` or `https://gitworkshop.dev/`.
pub fn nostr_path(address: &Address, relay: &str) -> String {
    let name = segment(address.identifier().as_str());
    format!("{}/{}/{name}", address.owner(), relay_hint(relay))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Identifier, Npub, RepoId};

    #[test]
    fn addresses_say_where_and_nothing_else() {
        let repo = RepoId {
            owner: Npub::from_bytes([7; 32]),
            identifier: Identifier::parse("x;rm$IFS'é").unwrap(),
        };
        let owner = repo.owner.to_string();
        let standard = Address::from(&repo);
        assert_eq!(
            path(&standard),
            format!("{owner}/x%3Brm%24IFS%27%C3%A9.git")
        );
        assert!(path(&Address::prs(repo.clone())).starts_with("prs/npub1"));
        // It leads where it says.
        let written = format!("/{}", path(&standard));
        let (read, rest) = Address::from_url_path(&written).unwrap();
        assert_eq!((read, rest), (standard.clone(), ""));
        assert_eq!(
            nostr_path(&standard, "wss://git.example:8443"),
            format!("{owner}/git.example%3A8443/x%3Brm%24IFS%27%C3%A9")
        );
        assert_eq!(
            relay_hint("ws://localhost:7334"),
            "ws%3A%2F%2Flocalhost%3A7334"
        );
    }
}
