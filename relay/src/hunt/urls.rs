//! Where git data may be asked for: clone URLs as they stand in events, made comparable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use crate::domain::Domain;

/// The longest URL that is asked; longer ones are nobody's repository.
const LONGEST: usize = 1_024;
/// The longest name of a host: more has no place in the DNS.
const LONGEST_HOST: usize = 253;

/// A URL that may be asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CloneUrl {
    /// As it is asked: normalised, without credentials.
    pub url: String,
    /// Whose budget a request counts in: the host. Several servers under test live on one machine,
    /// so what is not on the public internet – loopback, private and link-local addresses,
    /// `localhost` – is told apart by its port, too.
    pub domain: String,
    /// Who answers: scheme, host and port. What one server does wrong is not another's fault because
    /// they share a host.
    pub server: String,
}

impl CloneUrl {
    /// Reads a `clone` value; `None` if it is no `http` or `https` URL of a repository (one with a
    /// query is none, and may hold a secret), or leads to this service.
    pub fn read(text: &str, ours: &Domain) -> Option<Self> {
        if text.len() > LONGEST || Domain::of_url(text).as_ref() == Some(ours) {
            return None;
        }
        let mut url = Url::parse(text.trim()).ok()?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() {
            return None;
        }
        url.set_username("").ok()?;
        url.set_password(None).ok()?;
        url.set_fragment(None);
        let name = url.host_str()?.trim_end_matches('.').to_owned();
        if name.is_empty() || name.len() > LONGEST_HOST {
            return None;
        }
        if url.host_str() != Some(&name) {
            url.set_host(Some(&name)).ok()?;
        }
        let port = url.port_or_known_default()?;
        let domain = match is_public(&url.host()?) {
            true => name,
            false => format!("{name}:{port}"),
        };
        let server = url.origin().ascii_serialization();
        let mut url = String::from(url);
        url.truncate(url.trim_end_matches('/').len());
        (url.len() <= LONGEST).then_some(Self {
            url,
            domain,
            server,
        })
    }
}

fn is_public(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name != "localhost" && !name.ends_with(".localhost"),
        Host::Ipv4(address) => is_public_v4(*address),
        Host::Ipv6(address) => is_public_v6(*address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let shared = matches!(address.octets(), [100, 64..=127, ..]);
    !(address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_unspecified()
        || shared)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let IpAddr::V4(wrapped) = address.to_canonical() {
        return is_public_v4(wrapped);
    }
    !(address.is_loopback()
        || address.is_unspecified()
        || address.is_unique_local()
        || address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<CloneUrl> {
        CloneUrl::read(text, &Domain::parse("grasp.example").unwrap())
    }

    #[test]
    fn equal_urls_are_equal_and_carry_no_credentials() {
        let plain = read("https://git.example/a/x.git").unwrap();
        for same in [
            "https://GIT.example:443/a/x.git/",
            "https://git.example./a/x.git#top",
            " https://user:secret@git.example/a/x.git",
        ] {
            assert_eq!(read(same), Some(plain.clone()), "{same}");
        }
        assert_eq!(plain.domain, "git.example");
    }

    #[test]
    fn what_cannot_be_asked_is_left_out() {
        let long = format!("https://a.example/{}", "x".repeat(LONGEST));
        let endless = format!("https://{}example/x", "a.".repeat(200));
        for bad in [
            "ssh://git.example/x",
            "git@git.example:x",
            "nostr://npub1x/x",
            "https://grasp.example/npub1x/x.git",
            "http://GRASP.example:80/y",
            "https://git.example/x?private_token=y",
            "",
            &long,
            &endless,
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_domain_is_a_host_and_on_one_machine_a_port() {
        let domain = |text| read(text).unwrap().domain;
        assert_eq!(domain("https://git.example:8443/x"), "git.example");
        assert_eq!(domain("http://1.2.3.4:99/x"), "1.2.3.4");
        assert_eq!(domain("http://127.0.0.1:99/x"), "127.0.0.1:99");
        assert_eq!(domain("http://localhost/x"), "localhost:80");
        assert_eq!(domain("http://10.0.0.9:8/x"), "10.0.0.9:8");
        assert_eq!(domain("http://[::1]:7/x"), "[::1]:7");
        assert_eq!(domain("http://[::ffff:10.0.0.1]:7/x"), "[::ffff:a00:1]:7");
        assert_eq!(domain("http://[2606:4700::1]:7/x"), "[2606:4700::1]");
    }

    #[test]
    fn servers_of_one_host_are_told_apart() {
        let (a, b) = (
            read("https://git.example/x").unwrap(),
            read("https://git.example:81/x").unwrap(),
        );
        assert_eq!(a.domain, b.domain);
        assert_ne!(a.server, b.server);
    }
}
