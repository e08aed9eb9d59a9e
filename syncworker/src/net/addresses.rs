//! Which addresses and ports belong to the public internet: pure.
//!
//! The rule is the IANA special-purpose registries', and stricter where they leave room: of IPv6 only
//! what is given out as global unicast is taken, and of the ways to wrap IPv4 in it only the two that
//! reach the wrapped address itself, which is then judged in its place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where connections may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Anywhere (`NGIT_SYNC_ALLOW_NON_GLOBAL_TARGETS`).
    pub non_global: bool,
    /// To loopback too (`NGIT_TEST`).
    pub loopback: bool,
}

impl Allowed {
    /// Whether this address may be connected to.
    pub fn permits(self, address: IpAddr) -> bool {
        let loopback = self.loopback && address.to_canonical().is_loopback();
        self.non_global || loopback || is_global(address)
    }
}

/// Whether an address is one of the public internet.
pub fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_global_v4(v4),
        IpAddr::V6(v6) => is_global_v6(v6),
    }
}

fn is_global_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let special = match first {
        // This network; private; loopback; multicast, reserved, broadcast.
        0 | 10 | 127 | 224..=255 => true,
        // Shared with the provider (RFC 6598).
        100 => (64..=127).contains(&second),
        // Link-local, which is where clouds keep their metadata.
        169 => second == 254,
        // Private.
        172 => (16..=31).contains(&second),
        // Protocol assignments, documentation; the way into 6to4, given up (RFC 7526); private.
        192 => matches!((second, third), (0, 0 | 2) | (88, 99) | (168, _)),
        // Benchmarking; documentation.
        198 => matches!((second, third), (18 | 19, _) | (51, 100)),
        // Documentation.
        203 => (second, third) == (0, 113),
        _ => false,
    };
    !special
}

fn is_global_v6(address: Ipv6Addr) -> bool {
    if let Some(wrapped) = wrapped(address) {
        return is_global_v4(wrapped);
    }
    match address.segments() {
        // Protocol assignments, among them Teredo, benchmarking and ORCHID; documentation; 6to4; and
        // ISATAP, an IPv4 address behind any prefix.
        [0x2001, 0..=0x1ff | 0xdb8, ..]
        | [0x2002, ..]
        | [0x3fff, 0..=0xfff, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, ..] => false,
        // Global unicast. Outside it lie unspecified, loopback, v4-compatible, NAT64 for local use,
        // discard, unique and site and link local, multicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// The IPv4 address that a connection to this one ends at: v4-mapped, or NAT64 (RFC 6052), without
/// which a worker that has IPv6 only reaches half of the network.
fn wrapped(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// Ports of services that take lines of text for commands, so that a request whose path an event's
/// author chose could be made to mean something there. The list is the one of browsers (fetch
/// standard, "bad port"), which no git server or relay can be on if a web page is to reach it;
/// `redis` and `memcached` added.
const BAD_PORTS: &[u16] = &[
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101,
    102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427,
    465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990,
    993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6379, 6566, 6665, 6666,
    6667, 6668, 6669, 6679, 6697, 10080, 11211,
];

/// Whether a port may be connected to.
pub fn is_port_allowed(port: u16) -> bool {
    BAD_PORTS.binary_search(&port).is_err()
}

#[cfg(test)]
mod tests {
    use ipnet::{IpNet, Ipv4Net};
    use proptest::prelude::*;

    use super::*;

    /// The registries' blocks that are not globally reachable, and those we refuse besides.
    const REFUSED: &[&str] = &[
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "::1/128",
        "::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001::/32",
        "2001:2::/48",
        "2001:10::/28",
        "2001:20::/28",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
        "2a00:1450:0:0:0:5efe::/96",
    ];

    fn refused() -> Vec<IpNet> {
        REFUSED.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn v4_refused(address: Ipv4Addr) -> bool {
        refused()
            .into_iter()
            .any(|net| net.contains(&IpAddr::V4(address)))
    }

    #[test]
    fn edges_of_every_block() {
        for net in refused() {
            assert!(!is_global(net.network()), "{net}");
            assert!(!is_global(net.broadcast()), "{net}");
        }
        for beside in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "3ffe:ffff::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(is_global(beside.parse().unwrap()), "{beside}");
        }
        for wrapped in [
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::8.8.8.8",
            "2002:7f00:1::",
            "2002:808:808::",
            "2001:0:7f00:1::",
        ] {
            assert!(!is_global(wrapped.parse().unwrap()), "{wrapped}");
        }
    }

    #[test]
    fn what_the_settings_open() {
        let permits = |allowed: Allowed, text: &str| allowed.permits(text.parse().unwrap());
        let loopback = Allowed {
            loopback: true,
            ..Allowed::default()
        };
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(!permits(Allowed::default(), address), "{address}");
            assert!(permits(loopback, address), "{address}");
        }
        for address in ["10.0.0.1", "0.0.0.0", "::", "169.254.169.254", "fe80::1"] {
            assert!(!permits(loopback, address), "{address}");
        }
        let anywhere = Allowed {
            non_global: true,
            ..Allowed::default()
        };
        assert!(permits(anywhere, "10.0.0.1"));
    }

    #[test]
    fn ports() {
        assert!(BAD_PORTS.is_sorted());
        for port in [
            0, 22, 25, 53, 110, 143, 465, 587, 993, 995, 6379, 6667, 11211,
        ] {
            assert!(!is_port_allowed(port), "{port}");
        }
        for port in [80, 443, 3000, 7334, 8080, 8443, 32_768, 65_535] {
            assert!(is_port_allowed(port), "{port}");
        }
    }

    proptest! {
        #[test]
        fn nothing_inside_a_block_is_global(net in prop::sample::select(refused()), bits in any::<u128>()) {
            let address = match net {
                IpNet::V4(net) => {
                    let host = u32::try_from(bits & u128::from(u32::MAX)).unwrap() & u32::from(net.hostmask());
                    IpAddr::V4((u32::from(net.network()) | host).into())
                }
                IpNet::V6(net) => {
                    let host = bits & u128::from(net.hostmask());
                    IpAddr::V6((u128::from(net.network()) | host).into())
                }
            };
            prop_assert!(net.contains(&address));
            prop_assert!(!is_global(address), "{}", address);
        }

        #[test]
        fn v4_is_global_unless_a_block_says_otherwise(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from(bits);
            prop_assert_eq!(is_global(v4.into()), !v4_refused(v4));
        }

        #[test]
        fn a_wrapping_changes_nothing_or_closes(
            bits in any::<u32>(),
            block in prop::sample::select(refused()),
            inside in any::<bool>(),
        ) {
            let v4 = match block {
                IpNet::V4(net) if inside => {
                    let net: Ipv4Net = net;
                    Ipv4Addr::from(u32::from(net.network()) | (bits & u32::from(net.hostmask())))
                }
                _ => Ipv4Addr::from(bits),
            };
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let same = [v4.to_ipv6_mapped(), Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)];
            for wrapping in same {
                prop_assert_eq!(is_global(wrapping.into()), is_global(v4.into()), "{}", wrapping);
            }
            let closed = [
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !high, !low),
                Ipv6Addr::new(0x2a00, 1, 2, 3, 0, 0x5efe, high, low),
            ];
            for wrapping in closed {
                prop_assert!(!is_global(wrapping.into()), "{}", wrapping);
            }
        }

        #[test]
        fn ipv6_outside_global_unicast_is_closed(bits in any::<u128>()) {
            let v6 = Ipv6Addr::from(bits);
            let unicast = bits >> 125 == 1;
            prop_assert!(unicast || wrapped(v6).is_some() || !is_global(v6.into()), "{}", v6);
        }
    }
}
