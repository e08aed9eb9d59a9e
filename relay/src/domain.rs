//! A service's public name, and whether a URL leads there.

use std::fmt;

use url::Url;

/// A host and, unless it is the scheme's own, a port; normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Domain {
    host: String,
    port: Option<u16>,
}

impl Domain {
    /// `host` or `host:port`; a scheme before and a slash behind are forgiven.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_end_matches('/');
        let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
        if bare.is_empty() || bare.contains(['/', '@', '?', '#']) {
            return None;
        }
        Self::of_url(&format!("http://{bare}"))
    }

    /// `localhost:<port>`.
    pub fn local(port: u16) -> Self {
        Self {
            host: "localhost".to_owned(),
            port: Some(port),
        }
    }

    /// Where a URL leads. Ports 80 and 443 are the default whatever the scheme, since an
    /// announcement may name the service as `ws` here and `https` there.
    pub fn of_url(url: &str) -> Option<Self> {
        let url = Url::parse(url.trim()).ok()?;
        // Other schemes have no host in the sense of the web: their hosts are not normalised.
        if !matches!(url.scheme(), "http" | "https" | "ws" | "wss") {
            return None;
        }
        let host = url.host_str()?.trim_end_matches('.');
        if host.is_empty() {
            return None;
        }
        Some(Self {
            host: host.to_owned(),
            port: url.port().filter(|port| !matches!(port, 80 | 443)),
        })
    }

    /// Whether both lead to one place: on loopback a name and its addresses do.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self == other || (self.is_local() && other.is_local() && self.port == other.port)
    }

    /// Whether the service is on this machine's loopback, where there is no TLS.
    pub fn is_local(&self) -> bool {
        self.host == "localhost"
            || self.host == "[::1]"
            || self
                .host
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_compared_by_host_and_port() {
        let ours = Domain::parse("Relay.Example.com").unwrap();
        for same in [
            "https://relay.example.com/npub1x/y.git",
            "wss://RELAY.example.com",
            "ws://relay.example.com:80/",
            "https://relay.example.com:443",
            "http://relay.example.com./x",
        ] {
            assert_eq!(Domain::of_url(same), Some(ours.clone()), "{same}");
        }
        for other in [
            "https://evil.example/relay.example.com",
            "https://relay.example.com.evil.example",
            "https://relay.example.com@evil.example",
            "https://relay.example.com:8443",
            "relay.example.com",
            "ssh://relay.example.com",
            "",
        ] {
            assert_ne!(Domain::of_url(other), Some(ours.clone()), "{other}");
        }
    }

    #[test]
    fn a_domain_is_read_leniently_and_shown_plainly() {
        assert_eq!(
            Domain::parse("LOCALHOST:7334").unwrap().to_string(),
            "localhost:7334"
        );
        assert_eq!(Domain::parse("https://a.b/").unwrap().to_string(), "a.b");
        assert_eq!(Domain::parse("[::1]:99").unwrap().to_string(), "[::1]:99");
        assert!(Domain::parse("a/b").is_none());
        assert!(Domain::parse("").is_none());
    }
}
