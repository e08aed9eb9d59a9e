//! Whose request it is: the peer, or, if that is a proxy we trust, whom it forwards for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::{HeaderMap, HeaderName, header::FORWARDED};

use super::Networks;

/// `X-Forwarded-For`
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Whose address a trusted proxy does not tell. All of these are one client to every limit, and not
/// the proxy, which may be of a network that has none.
pub const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The true client. From the right, as every proxy adds itself there: the first address that is
/// not a trusted proxy's own.
///
/// Of `X-Forwarded-For` and `Forwarded` a proxy writes one and passes the other on as it came. If
/// both are there and say different things, one of them is the client's invention, and neither is
/// believed: whoever does that is [`NOBODY`], as is a client that its proxy does not name.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> IpAddr {
    let trusted = |address| trusted.contain(address);
    let peer = peer.to_canonical();
    if !trusted(peer) {
        return peer;
    }
    let walk = |chain: Vec<Option<IpAddr>>| {
        let mut client = NOBODY;
        for address in chain.into_iter().rev() {
            // What cannot be read was written by nobody we trust to tell more.
            let Some(address) = address else { break };
            client = address;
            if !trusted(address) {
                break;
            }
        }
        client
    };
    let plain = values(headers, &X_FORWARDED_FOR).map(|chain| walk(read_plain(&chain)));
    let standard = values(headers, &FORWARDED).map(|chain| walk(read_forwarded(&chain)));
    match (plain, standard) {
        (Some(a), Some(b)) if a != b => NOBODY,
        (Some(client), _) | (None, Some(client)) => client,
        (None, None) => peer,
    }
}

/// All values of a header, in one line.
fn values(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<&str> = headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap_or("?"))
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn read_plain(chain: &str) -> Vec<Option<IpAddr>> {
    chain.split(',').map(read_address).collect()
}

/// The `for` of every element (RFC 7239).
fn read_forwarded(chain: &str) -> Vec<Option<IpAddr>> {
    chain
        .split(',')
        .map(|element| {
            element.split(';').find_map(|pair| {
                let (name, value) = pair.split_once('=')?;
                let named = name.trim().eq_ignore_ascii_case("for");
                named.then(|| read_address(value)).flatten()
            })
        })
        .collect()
}

/// `1.2.3.4`, `1.2.3.4:5`, `2001:db8::1`, `[2001:db8::1]:5`, quoted or not.
fn read_address(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    bare.unwrap_or(text)
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .map(|address| address.to_canonical())
        .ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(peer: &str, headers: &[(&str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let trusted = Networks::parse("10.0.0.0/8").unwrap();
        client_address(peer.parse().unwrap(), &map, &trusted).to_string()
    }

    #[test]
    fn only_trusted_peers_are_believed() {
        let xff = [("x-forwarded-for", "1.2.3.4")];
        assert_eq!(client("9.9.9.9", &xff), "9.9.9.9");
        assert_eq!(client("10.0.0.1", &xff), "1.2.3.4");
        assert_eq!(client("::ffff:10.0.0.1", &xff), "1.2.3.4");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn the_last_untrusted_address_is_the_client() {
        for (value, expected) in [
            ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
            ("10.0.0.3,10.0.0.2", "10.0.0.3"),
            ("1.2.3.4, nonsense", "0.0.0.0"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("", "0.0.0.0"),
        ] {
            assert_eq!(client("10.0.0.1", &[("x-forwarded-for", value)]), expected);
        }
        let two = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "1.2.3.4"),
        ];
        assert_eq!(client("10.0.0.1", &two), "1.2.3.4");
    }

    #[test]
    fn the_standard_header_is_read_too() {
        for (value, expected) in [
            ("for=1.2.3.4", "1.2.3.4"),
            (
                "for=6.6.6.6, For=\"[2001:db8::1]:47\";proto=https;by=10.0.0.9",
                "2001:db8::1",
            ),
            ("for=_hidden", "0.0.0.0"),
            ("proto=https", "0.0.0.0"),
        ] {
            assert_eq!(client("10.0.0.1", &[("forwarded", value)]), expected);
        }
    }

    #[test]
    fn headers_that_disagree_are_not_believed_and_buy_nothing() {
        let differ = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(client("10.0.0.1", &differ), "0.0.0.0");
        let agree = [("forwarded", "for=1.2.3.4"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(client("10.0.0.1", &agree), "1.2.3.4");
    }

    proptest! {
        #[test]
        fn any_header_is_survived(value in "[ -~]*") {
            for name in ["forwarded", "x-forwarded-for"] {
                client("10.0.0.1", &[(name, &value)]);
            }
        }
    }
}
