//! Addresses of remote relays, in their normal form: what is one relay is one value.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

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

    /// Whose it is, as far as the address shows: its host; at an address that is nobody's in
    /// particular, host and port.
    pub fn place(&self) -> &str {
        let rest = self.0.split_once("://").map_or(&*self.0, |(_, rest)| rest);
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        let host = match authority.rsplit_once(':') {
            // Colons of an IPv6 address are within brackets.
            Some((host, port)) if !port.contains(']') => host,
            _ => authority,
        };
        match is_nobodys(host) {
            true => authority,
            false => host,
        }
    }

    /// Whether it is a host and nothing behind it, as relays' addresses mostly are.
    pub fn is_plain(&self) -> bool {
        let rest = self.0.split_once("://").map_or(&*self.0, |(_, rest)| rest);
        !rest.contains(['/', '?'])
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether it is loopback, or in a network of the reader's own.
fn is_nobodys(host: &str) -> bool {
    if let Ok(v4) = host.parse::<Ipv4Addr>() {
        return v4.is_loopback() || v4.is_private() || v4.is_link_local();
    }
    let v6 = host.trim_start_matches('[').trim_end_matches(']');
    match v6.parse::<Ipv6Addr>() {
        Ok(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
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
    fn addresses_of_one_host_are_of_one_place() {
        for (text, place, plain) in [
            ("wss://a.example", "a.example", true),
            ("wss://a.example:7777", "a.example", true),
            ("ws://a.example/x?y", "a.example", false),
            ("wss://a.example?y:1", "a.example", false),
            ("wss://1.2.3.4:99/x", "1.2.3.4", false),
            ("wss://[2001:db8::1]:99", "[2001:db8::1]", true),
            ("ws://127.0.0.1:99/x", "127.0.0.1:99", false),
            ("ws://10.0.0.1:99", "10.0.0.1:99", true),
            ("ws://[::1]:99", "[::1]:99", true),
            ("ws://[::1]", "[::1]", true),
            ("ws://localhost:99", "localhost:99", true),
        ] {
            let url = RelayUrl::parse(text).unwrap();
            assert_eq!((url.place(), url.is_plain()), (place, plain), "{text}");
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
