//! Addresses of remote relays, in their normal form: what is one relay is one value.

use std::{fmt, sync::Arc};

use url::Url;

use crate::domain::Domain;

/// The longest address that counts, in bytes.
const LONGEST: usize = 255;

/// A relay's address: `ws` or `wss`, scheme and host in lower case, no default port, no slash at the
/// end of an empty path, nobody's password. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayUrl(Arc<str>);

impl RelayUrl {
    /// Reads an address as strangers write it.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() > LONGEST {
            return None;
        }
        let mut url = Url::parse(text).ok()?;
        if !matches!(url.scheme(), "ws" | "wss") {
            return None;
        }
        let host = url.host_str()?;
        let plain = host.trim_end_matches('.').to_owned();
        if plain.is_empty() {
            return None;
        }
        if plain.len() < host.len() {
            url.set_host(Some(&plain)).ok()?;
        }
        url.set_username("").ok()?;
        url.set_password(None).ok()?;
        url.set_fragment(None);
        let normal = match (url.path(), url.query()) {
            ("/", None) => url.as_str().trim_end_matches('/'),
            _ => url.as_str(),
        };
        // What is not ASCII grows as it is escaped.
        (normal.len() <= LONGEST).then(|| Self(normal.into()))
    }

    /// Whether it leads to the service itself, however it is written.
    pub fn leads_to(&self, service: &Domain) -> bool {
        Domain::of_url(&self.0).is_some_and(|domain| domain.is_same_place(service))
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address together with how it was written first, for those who look for it by that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The relay.
    pub url: RelayUrl,
    /// How it was written, as far as that can be shown.
    pub label: Arc<str>,
}

impl Named {
    /// Reads an address as strangers write it.
    pub fn parse(text: &str) -> Option<Self> {
        let url = RelayUrl::parse(text)?;
        let text = text.trim();
        let shown = text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        let label = match shown && !text.contains('@') {
            true => text.into(),
            false => url.0.clone(),
        };
        Some(Self { url, label })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(text: &str) -> Option<String> {
        RelayUrl::parse(text).map(|url| url.to_string())
    }

    #[test]
    fn what_is_one_relay_is_one_value() {
        for same in [
            "wss://relay.example",
            " WSS://Relay.EXAMPLE/ ",
            "wss://relay.example:443",
            "wss://user:word@relay.example/#top",
            "wss://relay.example./",
        ] {
            assert_eq!(
                normal(same).as_deref(),
                Some("wss://relay.example"),
                "{same}"
            );
        }
        assert_eq!(normal("ws://a:80").as_deref(), Some("ws://a"));
        assert_eq!(normal("ws://a:443/x").as_deref(), Some("ws://a:443/x"));
        assert_eq!(normal("wss://a/x/").as_deref(), Some("wss://a/x/"));
        assert_eq!(normal("wss://a/?q=1").as_deref(), Some("wss://a/?q=1"));
        let long = format!("wss://a/{}", "é".repeat(100));
        for none in ["https://a", "a.example", "wss://", "wss://.", "", &long] {
            assert_eq!(normal(none), None, "{none}");
        }
    }

    #[test]
    fn our_own_address_is_known_under_any_spelling() {
        let ours = Domain::parse("Grasp.Example").unwrap();
        for same in [
            "ws://grasp.example",
            "wss://GRASP.example:443/",
            "ws://grasp.example:80/path",
            "wss://grasp.example.",
        ] {
            assert!(RelayUrl::parse(same).unwrap().leads_to(&ours), "{same}");
        }
        let other = RelayUrl::parse("wss://grasp.example:8443").unwrap();
        assert!(!other.leads_to(&ours));
        let local = Domain::local(7334);
        for same in [
            "ws://127.0.0.1:7334",
            "ws://[::1]:7334",
            "ws://LOCALHOST:7334/",
        ] {
            assert!(RelayUrl::parse(same).unwrap().leads_to(&local), "{same}");
        }
        let neighbour = RelayUrl::parse("ws://127.0.0.1:7335").unwrap();
        assert!(!neighbour.leads_to(&local));
    }

    #[test]
    fn it_is_shown_as_it_was_written() {
        let label = |text| Named::parse(text).unwrap().label.to_string();
        assert_eq!(label("ws://127.0.0.1:99"), "ws://127.0.0.1:99");
        assert_eq!(label("wss://Relay.Example/"), "wss://Relay.Example/");
        assert_eq!(label("wss://me:word@relay.example"), "wss://relay.example");
        assert_eq!(label("wss://a/\"x"), "wss://a/%22x");
    }

    proptest! {
        #[test]
        fn the_normal_form_is_its_own(text in "(ws|wss|WSS)://[a-zA-Z0-9.@:é-]{1,20}(:[0-9]{1,5})?(/[a-zé./?#]{0,9})?") {
            if let Some(url) = RelayUrl::parse(&text) {
                prop_assert_eq!(RelayUrl::parse(url.as_str()), Some(url));
            }
        }
    }
}
