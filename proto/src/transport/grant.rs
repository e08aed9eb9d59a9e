//! Grants: the relay's word to gitd, carried by a worker that can neither read more into it nor make
//! one itself.

use hmac::{Hmac, Mac};
use prost::Message;
use sha2::Sha256;

use super::Tokens;
use crate::contract::git::{Grant, SealedGrant};

/// Why a grant is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the grant is not the relay's")]
pub struct BadGrant;

/// What the relay seals grants with, and gitd checks them by. Never printed.
#[derive(Clone)]
pub struct GrantKey(Hmac<Sha256>);

impl std::fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrantKey(…)")
    }
}

impl GrantKey {
    /// The key that follows from the credentials that relay and gitd share.
    pub fn new(tokens: &Tokens) -> Self {
        Self(tokens.shared_key(b"graspd grant 1\0"))
    }

    /// Seals a grant: an encoded `SealedGrant`.
    pub fn seal(&self, grant: &Grant) -> Vec<u8> {
        let grant = grant.encode_to_vec();
        let seal = self.0.clone().chain_update(&grant).finalize();
        let seal = seal.into_bytes().to_vec();
        SealedGrant { grant, seal }.encode_to_vec()
    }

    /// Opens a sealed grant. Whether it still holds is the caller's to look at.
    pub fn open(&self, sealed: &[u8]) -> Result<Grant, BadGrant> {
        let sealed = SealedGrant::decode(sealed).map_err(|_| BadGrant)?;
        let seal = self.0.clone().chain_update(&sealed.grant);
        seal.verify_slice(&sealed.seal).map_err(|_| BadGrant)?;
        Grant::decode(sealed.grant.as_slice()).map_err(|_| BadGrant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Token;

    fn key() -> GrantKey {
        GrantKey::new(&Tokens {
            relay: Token::random(),
            gitd: Token::random(),
            worker: Token::random(),
        })
    }

    #[test]
    fn only_what_was_sealed_with_the_key_opens() {
        let key = key();
        let grant = Grant {
            identifier: "x".into(),
            max_bytes: 7,
            ..Grant::default()
        };
        let sealed = key.seal(&grant);
        assert_eq!(key.open(&sealed), Ok(grant));
        for at in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[at] ^= 1;
            assert_eq!(key.open(&forged), Err(BadGrant), "byte {at}");
        }
        assert_eq!(self::key().open(&sealed), Err(BadGrant));
        assert_eq!(key.open(&[]), Err(BadGrant));
    }
}
