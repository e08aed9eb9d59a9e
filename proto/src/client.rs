//! Who is asking: the true address of a client, and what one client may take.
//!
//! - [`client_address`]: the peer, or, if that is a proxy we trust, whom it forwards for; [`NOBODY`] if it
//!   does not tell
//! - [`ForwardKey`]: the relay tells gitd who is asking, in a way that nobody else can
//! - [`Allowance`], [`Rates`], [`Seats`]: what may be taken, of what comes again with time and of
//!   places, by whom it concerns or by each [`Client`]

mod address;
mod forward;
mod limits;

use std::net::IpAddr;

use ipnet::IpNet;

pub use address::{NOBODY, X_FORWARDED_FOR, client_address};
pub use forward::{FORWARDED_CLIENT, ForwardKey};
pub use limits::{Allowance, Client, Rates, Refused, Seat, Seats};

/// Networks, as settings list them.
#[derive(Debug, Clone, Default)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Networks and single addresses, separated by commas, or `none`; says what would be right if it
    /// is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty() && *part != "none")
            .map(|part| {
                let address = || part.parse::<IpAddr>().map(IpNet::from);
                part.parse::<IpNet>()
                    .or_else(|_| address())
                    .map_err(|_| "networks like 10.0.0.0/8, separated by commas".to_owned())
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether an address is in one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_addresses_are_read() {
        let networks = Networks::parse(" 10.0.0.0/8, 2001:db8::/32,192.0.2.7 ,").unwrap();
        for (address, inside) in [
            ("10.9.9.9", true),
            ("::ffff:10.9.9.9", true),
            ("2001:db8:1::2", true),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::1", false),
        ] {
            assert_eq!(networks.contain(address.parse().unwrap()), inside);
        }
        assert!(Networks::parse("10.0.0.0/40").is_err());
        assert!(
            !Networks::parse("none")
                .unwrap()
                .contain("::1".parse().unwrap())
        );
        assert!(!Networks::default().contain("127.0.0.1".parse().unwrap()));
    }
}
