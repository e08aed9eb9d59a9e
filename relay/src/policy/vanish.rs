//! Kind 62 (NIP-62), by our rules: whom a request to vanish is for.

use nostr::Event;

use crate::{domain::Domain, nip34::values};

/// Instead of a relay: all of them.
const ALL: &str = "ALL_RELAYS";

/// Whether a request to vanish names this service, by host and port, or all relays.
pub fn names(request: &Event, service: &Domain) -> bool {
    values(request, "relay").any(|relay| {
        relay == ALL || Domain::of_url(relay).is_some_and(|named| named.is_same_place(service))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::{
        VANISH,
        testing::{event, keys},
    };

    #[test]
    fn a_service_is_named_by_host_and_port_or_with_all_others() {
        let ours = Domain::parse("relay.example:8080").unwrap();
        let names = |relays: &[&str]| {
            let tags: Vec<Vec<&str>> = relays.iter().map(|relay| vec!["relay", *relay]).collect();
            let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
            names(&event(&keys(1), VANISH, 1, &tags), &ours)
        };
        assert!(names(&["ALL_RELAYS"]));
        assert!(names(&["wss://other.example", "wss://RELAY.example:8080/"]));
        assert!(!names(&["wss://relay.example", "all_relays", ""]));
        assert!(!names(&["wss://evil.example/relay.example:8080"]));
        assert!(!names(&[]));
    }
}
