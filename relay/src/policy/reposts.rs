//! Reposts (NIP-18) that carry what its author does not want to be passed on (NIP-70).

use nostr::Event;
use serde::Deserialize;
use serde_json::Value;

/// Kinds whose content is another event.
const REPOSTS: [u16; 2] = [6, 16];
/// Reposts of reposts that are looked into.
const DEPTH: usize = 8;

/// As much of a carried event as matters. It need not be a valid one.
#[derive(Deserialize)]
struct Carried {
    #[serde(default)]
    kind: Value,
    #[serde(default)]
    tags: Value,
    #[serde(default)]
    content: Value,
}

/// Whether an event is a repost whose content is a protected event, or a repost of such a repost.
pub fn carries_protected(event: &Event) -> bool {
    if !REPOSTS.contains(&event.kind.as_u16()) {
        return false;
    }
    let mut content = event.content.clone();
    for _ in 0..DEPTH {
        let Ok(carried) = serde_json::from_str::<Carried>(&content) else {
            return false;
        };
        let tags = carried.tags.as_array().map(Vec::as_slice);
        let is_protection = |tag: &Value| tag.get(0).and_then(Value::as_str) == Some("-");
        if tags.unwrap_or_default().iter().any(is_protection) {
            return true;
        }
        let is_repost = |kind: u64| REPOSTS.iter().any(|repost| u64::from(*repost) == kind);
        match (carried.kind.as_u64(), carried.content) {
            (Some(kind), Value::String(inner)) if is_repost(kind) => content = inner,
            _ => return false,
        }
    }
    // Nobody means that.
    true
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Kind, Tag, event::FinalizeEvent};

    use super::*;
    use crate::nip34::testing::keys;

    fn of(kind: u16, content: &str, tags: &[&[&str]]) -> Event {
        let tags = tags
            .iter()
            .map(|tag| Tag::parse(tag.iter().copied()).unwrap());
        EventBuilder::new(Kind::from_u16(kind), content)
            .tags(tags)
            .finalize(&keys(1))
            .unwrap()
    }

    #[test]
    fn protected_events_are_found_however_deep() {
        let protected = of(1, "mine", &[&["t", "x"], &["-"]]).as_json();
        let free = of(1, "ours", &[&["t", "-"]]).as_json();
        for kind in [6, 16] {
            let repost = of(kind, &protected, &[]);
            assert!(carries_protected(&repost));
            assert!(carries_protected(&of(16, &repost.as_json(), &[])));
            assert!(!carries_protected(&of(kind, &free, &[])));
            assert!(!carries_protected(&of(kind, "", &[&["-"]])));
            assert!(!carries_protected(&of(kind, "[\"-\"]", &[])));
        }
        assert!(!carries_protected(&of(1, &protected, &[])));
        // A pretty-printed one, and one that is no whole event.
        assert!(carries_protected(&of(
            6,
            "{ \"tags\" : [ [ \"-\" ] ] }",
            &[]
        )));
    }
}
