//! The relay's word to gitd about who is asking.
//!
//! Both listen where others may reach them too, so an address alone does not say that a request
//! came through the relay. What it says of the client is therefore sealed, as grants are.

use std::net::IpAddr;

use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::Sha256;

use crate::{
    transport::Tokens,
    words::{Hex, unhex},
};

/// The header in which the relay tells gitd who is asking.
pub const FORWARDED_CLIENT: HeaderName = HeaderName::from_static("graspd-client");

/// What the relay seals a client's address with, and gitd checks it by. Never printed.
#[derive(Clone)]
pub struct ForwardKey(Hmac<Sha256>);

impl std::fmt::Debug for ForwardKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ForwardKey(…)")
    }
}

impl ForwardKey {
    /// The key that follows from the credentials that relay and gitd share.
    pub fn new(tokens: &Tokens) -> Self {
        Self(tokens.shared_key(b"graspd client 1\0"))
    }

    /// The value of [`FORWARDED_CLIENT`] for a client.
    pub fn seal(&self, address: IpAddr) -> HeaderValue {
        let address = address.to_string();
        let seal = self.0.clone().chain_update(&address).finalize();
        let seal = seal.into_bytes();
        HeaderValue::try_from(format!("{address} {}", Hex(&seal))).expect("visible ASCII")
    }

    /// The client of a request that the relay has passed on; `None`: it has not.
    pub fn open(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let value = headers.get(FORWARDED_CLIENT)?.to_str().ok()?;
        let (address, seal) = value.split_once(' ')?;
        let sealed = self.0.clone().chain_update(address);
        sealed.verify_slice(&unhex::<32>(seal)?).ok()?;
        address.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Token;

    fn key() -> ForwardKey {
        ForwardKey::new(&Tokens {
            relay: Token::random(),
            gitd: Token::random(),
            worker: Token::random(),
        })
    }

    #[test]
    fn only_what_the_relay_has_sealed_is_believed() {
        let (ours, other) = (key(), key());
        for address in ["192.0.2.7", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            let mut headers = HeaderMap::new();
            assert_eq!(ours.open(&headers), None);
            headers.insert(FORWARDED_CLIENT, ours.seal(address));
            assert_eq!(ours.open(&headers), Some(address));
            headers.insert(FORWARDED_CLIENT, other.seal(address));
            assert_eq!(ours.open(&headers), None);
            let sealed = ours.seal(address);
            let moved = format!("203.0.113.1{}", sealed.to_str().unwrap());
            headers.insert(FORWARDED_CLIENT, moved.parse().unwrap());
            assert_eq!(ours.open(&headers), None);
        }
        for value in ["192.0.2.7", "192.0.2.7 ", "192.0.2.7 zz", "", "x y z"] {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED_CLIENT, value.parse().unwrap());
            assert_eq!(ours.open(&headers), None, "{value}");
        }
    }
}
