//! Events as JSON, read strictly (NIP-01).
//!
//! Libraries read hex in any case and write it in lower case, so that an event would come out with
//! another id than its author named. Whoever hands over an event – a websocket, a syncworker, an
//! import – has it read here.

use std::borrow::Cow;

use nostr::Event;
use serde::{Deserialize, de::IgnoredAny};

/// How much of what a library says about bad input is passed on, in characters.
const REASON: usize = 200;

/// Why a text is no event. Fit to be shown to whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAnEvent(String);

/// The fields whose text matters, and that none of the others is there twice.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    pubkey: Cow<'a, str>,
    #[serde(borrow)]
    sig: Cow<'a, str>,
    #[serde(rename = "created_at")]
    _created_at: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "tags")]
    _tags: IgnoredAny,
    #[serde(rename = "content")]
    _content: IgnoredAny,
}

/// Whether a text is `digits` hex digits, in lower case.
pub fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The beginning of what a library says, which may repeat all that it was given.
pub fn shortened(text: &str) -> String {
    text.chars().take(REASON).collect()
}

/// Reads one event. Its id and signature are not verified.
///
/// # Errors
/// It is no JSON object with the fields of an event, each once and of its type, or `id`, `pubkey`
/// and `sig` are not lower-case hex of their length.
pub fn read_event(text: &str) -> Result<Event, NotAnEvent> {
    let refused = |error: &dyn std::fmt::Display| NotAnEvent(shortened(&error.to_string()));
    // A list would be read as the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(NotAnEvent("an event is a JSON object".to_owned()));
    }
    let fields: Fields = serde_json::from_str(text).map_err(|error| refused(&error))?;
    for (name, value, digits) in [
        ("id", &fields.id, 64),
        ("pubkey", &fields.pubkey, 64),
        ("sig", &fields.sig, 128),
    ] {
        if !is_lower_hex(value, digits) {
            let reason = format!("{name} must be {digits} hex digits in lower case");
            return Err(NotAnEvent(reason));
        }
    }
    Event::from_json(text).map_err(|error| refused(&error))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::nip34::testing::{event, keys};

    fn sample() -> Value {
        let event = event(&keys(1), nostr::Kind::TextNote, 1, &[&["e", "x"]]);
        serde_json::to_value(event).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let event = event(&keys(1), nostr::Kind::TextNote, 1, &[&["t", "ü\u{2028}"]]);
        assert_eq!(read_event(&event.as_json()).unwrap(), event);
    }

    #[test]
    fn hex_is_in_lower_case_and_whole() {
        for name in ["id", "pubkey", "sig"] {
            let mut upper = sample();
            upper[name] = json!(upper[name].as_str().unwrap().to_uppercase());
            let error = read_event(&upper.to_string()).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
            let mut short = sample();
            short[name] = json!(&short[name].as_str().unwrap()[2..]);
            assert!(read_event(&short.to_string()).is_err());
        }
    }

    #[test]
    fn fields_are_there_once_and_of_their_type() {
        for (name, value) in [
            ("kind", json!(-1)),
            ("kind", json!(65536)),
            ("kind", json!("1")),
            ("kind", json!(1.5)),
            ("created_at", json!(-1)),
            ("created_at", json!(1.5)),
            ("created_at", json!("1")),
            ("created_at", json!(1e30)),
            ("tags", json!([["e", 1]])),
            ("tags", json!([[]])),
            ("tags", json!(["e"])),
            ("tags", json!([["e", null]])),
            ("tags", json!({})),
            ("content", json!(null)),
            ("content", json!(1)),
        ] {
            let mut event = sample();
            event[name] = value.clone();
            assert!(read_event(&event.to_string()).is_err(), "{name} {value}");
            let mut event = sample();
            event.as_object_mut().unwrap().remove(name);
            assert!(read_event(&event.to_string()).is_err(), "without {name}");
        }
        let text = sample().to_string();
        for twice in [r#""kind":1,"#, r#""content":"","#, r#""tags":[],"#] {
            let doubled = text.replacen('{', &format!("{{{twice}"), 1);
            assert!(read_event(&doubled).is_err(), "{doubled}");
        }
        assert!(read_event("[]").is_err());
        // What nobody knows yet is passed over.
        let mut more = sample();
        more["seen_on"] = json!(["a"]);
        assert!(read_event(&more.to_string()).is_ok());
    }
}
