//! Who the client has shown to be (NIP-42), which matters for protected events (NIP-70).

use nostr::{Event, Kind, PublicKey, SubscriptionId, Timestamp};

use crate::domain::Domain;

/// How far a proof's time may be from ours, in seconds (NIP-42: about ten minutes).
const DRIFT: u64 = 600;
/// Keys remembered per connection; the oldest is forgotten first.
const KEYS: usize = 8;

/// The keys a connection has proved to hold. Bounded by [`KEYS`].
#[derive(Debug, Default)]
pub struct Identity {
    challenge: Option<String>,
    keys: Vec<PublicKey>,
}

impl Identity {
    /// The connection's challenge, made when first asked for.
    pub fn challenge(&mut self) -> &str {
        self.challenge
            .get_or_insert_with(|| SubscriptionId::generate().to_string())
    }

    /// Whether the client has shown to hold this key.
    pub fn holds(&self, key: &PublicKey) -> bool {
        self.keys.contains(key)
    }

    /// Takes a proof, for the service of this name; what is wrong with it otherwise.
    pub fn prove(&mut self, proof: &Event, domain: &Domain, now: Timestamp) -> Result<(), String> {
        let tag = |name: &str| {
            let tags = proof.tags.iter().map(nostr::Tag::as_slice);
            tags.filter(|tag| tag.len() > 1 && tag[0] == name)
                .map(|tag| tag[1].as_str())
                .next()
        };
        let fault = if proof.kind != Kind::Authentication {
            "the event is not of kind 22242"
        } else if self.challenge.is_none() || tag("challenge") != self.challenge.as_deref() {
            "the challenge is not this connection's"
        } else if tag("relay").and_then(Domain::of_url).as_ref() != Some(domain) {
            "the relay tag names another relay"
        } else if now.as_secs().abs_diff(proof.created_at.as_secs()) > DRIFT {
            "created_at is too far from now"
        } else if proof.verify().is_err() {
            "id or signature is wrong"
        } else {
            if !self.holds(&proof.pubkey) {
                if self.keys.len() == KEYS {
                    self.keys.remove(0);
                }
                self.keys.push(proof.pubkey);
            }
            return Ok(());
        };
        Err(format!("auth-required: {fault}"))
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Tag, event::FinalizeEvent};

    use super::*;

    #[test]
    fn a_proof_is_for_this_service_and_this_connection() {
        let keys = Keys::generate();
        let domain = Domain::parse("relay.example.com").unwrap();
        let proof = |kind: u16, relay: &str, challenge: &str| {
            EventBuilder::new(Kind::from_u16(kind), "")
                .tags([
                    Tag::parse(["relay", relay]).unwrap(),
                    Tag::parse(["challenge", challenge]).unwrap(),
                ])
                .finalize(&keys)
                .unwrap()
        };
        let mut identity = Identity::default();
        let now = Timestamp::now();
        let url = "wss://relay.example.com/";
        assert!(
            identity
                .prove(&proof(22242, url, ""), &domain, now)
                .is_err()
        );
        let challenge = identity.challenge().to_owned();
        for (kind, relay, challenge) in [
            (1, url, challenge.as_str()),
            (22242, "wss://other.example.com", &challenge),
            (22242, url, "another"),
        ] {
            let proof = proof(kind, relay, challenge);
            assert!(identity.prove(&proof, &domain, now).is_err());
        }
        let good = proof(22242, url, &challenge);
        let late = Timestamp::from_secs(now.as_secs() + 2 * DRIFT);
        assert!(identity.prove(&good, &domain, late).is_err());
        assert!(!identity.holds(&keys.public_key()));
        assert_eq!(identity.prove(&good, &domain, now), Ok(()));
        assert!(identity.holds(&keys.public_key()));
    }
}
