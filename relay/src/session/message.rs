//! What clients say (NIP-01, 42, 45, 77), read with care, and what they are told when it cannot be.
//!
//! Nothing here trusts a size, a type or an encoding; the library sees only what came through.

use std::collections::HashSet;

use nostr::{Event, EventId, Filter};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Longest id of a subscription, in characters (NIP-01).
pub const SUBSCRIPTION_ID: usize = 64;
/// Most filters in one `REQ`.
pub const FILTERS: usize = 20;
/// Most values in one filter, all its lists together.
pub const VALUES: usize = 2500;
/// Longest NEG message taken, in hex digits.
const NEGOTIATION: usize = 256 << 10;
/// How much of what somebody else's code says about bad input is passed on.
const REASON: usize = 200;

/// One well-formed message of a client. Subscription ids are kept as JSON, as they are sent back.
#[derive(Debug)]
pub enum ClientMessage {
    /// An event to be admitted.
    Event(Box<Event>),
    /// A subscription.
    Req {
        /// The subscription.
        id: String,
        /// What is asked for.
        filters: Vec<Filter>,
    },
    /// How many there are.
    Count {
        /// The query.
        id: String,
        /// What to count.
        filter: Filter,
    },
    /// The end of a subscription.
    Close {
        /// The subscription.
        id: String,
    },
    /// Who the client is.
    Auth(Box<Event>),
    /// The start of a reconciliation.
    NegOpen {
        /// The negotiation.
        id: String,
        /// What is compared.
        filter: Filter,
        /// The client's first message, in hex.
        message: String,
    },
    /// A step of a reconciliation.
    NegMsg {
        /// The negotiation.
        id: String,
        /// The client's message, in hex.
        message: String,
    },
    /// The end of a reconciliation.
    NegClose {
        /// The negotiation.
        id: String,
    },
}

/// Reads one text frame. `Err` is the answer to send: the connection lives on.
pub fn read(text: &str, max_event: usize) -> Result<ClientMessage, String> {
    let parts: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|_| notice("invalid: a message is a JSON array that begins with a verb"))?;
    let Some((verb, rest)) = parts.split_first() else {
        return Err(notice("invalid: an empty message"));
    };
    let verb: String = from_raw(verb).map_err(|_| notice("invalid: the verb must be a string"))?;
    match (verb.as_str(), rest) {
        ("EVENT", [event, ..]) => read_event(event, max_event),
        ("AUTH", [event, ..]) => match from_raw(event) {
            Ok(event) => Ok(ClientMessage::Auth(Box::new(event))),
            Err(reason) => Err(event_refused(event, &format!("invalid: {reason}"))),
        },
        ("REQ", [id, filters @ ..]) => {
            let id = subscription(id)?;
            let refuse = |reason: String| closed(&id, &format!("invalid: {reason}"));
            if filters.is_empty() || filters.len() > FILTERS {
                return Err(refuse(format!("1 to {FILTERS} filters are allowed")));
            }
            let filters = filters.iter().map(|filter| read_filter(filter));
            match filters.collect() {
                Ok(filters) => Ok(ClientMessage::Req { id, filters }),
                Err(reason) => Err(refuse(reason)),
            }
        }
        ("COUNT", [id, filters @ ..]) => {
            let id = subscription(id)?;
            let refuse = |reason: &str| closed(&id, &format!("invalid: {reason}"));
            let [filter] = filters else {
                return Err(refuse("one filter is counted at a time"));
            };
            match read_filter(filter) {
                Ok(filter) => Ok(ClientMessage::Count { id, filter }),
                Err(reason) => Err(refuse(&reason)),
            }
        }
        ("CLOSE", [id, ..]) => Ok(ClientMessage::Close {
            id: subscription(id)?,
        }),
        // The older form has the size of ids in the third place.
        ("NEG-OPEN", [id, filter, message] | [id, filter, _, message]) => {
            let id = subscription(id)?;
            let read = read_filter(filter).and_then(|f| Ok((f, read_hex(message)?)));
            match read {
                Ok((filter, message)) => Ok(ClientMessage::NegOpen {
                    id,
                    filter,
                    message,
                }),
                Err(reason) => Err(negotiation_error(&id, &format!("invalid: {reason}"))),
            }
        }
        ("NEG-MSG", [id, message, ..]) => {
            let id = subscription(id)?;
            match read_hex(message) {
                Ok(message) => Ok(ClientMessage::NegMsg { id, message }),
                Err(reason) => Err(negotiation_error(&id, &format!("invalid: {reason}"))),
            }
        }
        ("NEG-CLOSE", [id, ..]) => Ok(ClientMessage::NegClose {
            id: subscription(id)?,
        }),
        (
            "EVENT" | "AUTH" | "REQ" | "COUNT" | "CLOSE" | "NEG-OPEN" | "NEG-MSG" | "NEG-CLOSE",
            _,
        ) => Err(notice(&format!("invalid: {verb} lacks what belongs to it"))),
        _ => Err(notice("unsupported: unknown verb")),
    }
}

fn read_event(raw: &RawValue, max: usize) -> Result<ClientMessage, String> {
    if raw.get().len() > max {
        let reason = format!("invalid: too large, an event may have {max} bytes");
        return Err(event_refused(raw, &reason));
    }
    match from_raw(raw) {
        Ok(event) => Ok(ClientMessage::Event(Box::new(event))),
        Err(reason) => Err(event_refused(raw, &format!("invalid: {reason}"))),
    }
}

/// `OK false` if the event has an id to say it of, else a `NOTICE`.
fn event_refused(raw: &RawValue, reason: &str) -> String {
    #[derive(Deserialize)]
    struct Named {
        id: String,
    }
    match serde_json::from_str::<Named>(raw.get()) {
        Ok(Named { id }) if id.len() <= 64 => ok(&id, false, reason),
        _ => notice(reason),
    }
}

fn from_raw<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, String> {
    serde_json::from_str(raw.get()).map_err(|error| shortened(&error.to_string()))
}

fn shortened(text: &str) -> String {
    text.chars().take(REASON).collect()
}

/// A subscription's id, as JSON.
fn subscription(raw: &RawValue) -> Result<String, String> {
    let wrong = || {
        notice(&format!(
            "invalid: a subscription id is a string of 1 to {SUBSCRIPTION_ID} characters"
        ))
    };
    let id: String = from_raw(raw).map_err(|_| wrong())?;
    if id.is_empty() || id.chars().count() > SUBSCRIPTION_ID {
        return Err(wrong());
    }
    Ok(json(&id))
}

fn read_filter(raw: &RawValue) -> Result<Filter, String> {
    // A list would be read as the filter's fields in their order.
    if !raw.get().starts_with('{') {
        return Err("a filter is an object".to_owned());
    }
    let filter: Filter = from_raw(raw)?;
    let tags: usize = filter
        .generic_tags
        .values()
        .map(|values| values.len())
        .sum();
    let values = filter.ids.as_ref().map_or(0, |ids| ids.len())
        + filter.authors.as_ref().map_or(0, |authors| authors.len())
        + filter.kinds.as_ref().map_or(0, |kinds| kinds.len())
        + tags;
    if values > VALUES {
        return Err(format!("a filter may have {VALUES} values"));
    }
    Ok(filter)
}

fn read_hex(raw: &RawValue) -> Result<String, String> {
    let text: String = from_raw(raw)?;
    if text.len() > NEGOTIATION {
        return Err(format!("a message may have {NEGOTIATION} hex digits"));
    }
    let hex = text.bytes().all(|b| b.is_ascii_hexdigit());
    if text.is_empty() || text.len() % 2 == 1 || !hex {
        return Err("the message is not hex".to_owned());
    }
    Ok(text)
}

/// Text as JSON.
pub fn json(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

/// `["NOTICE", …]`
pub fn notice(text: &str) -> String {
    format!(r#"["NOTICE",{}]"#, json(text))
}

/// `["OK", …]`
pub fn ok(id: &str, accepted: bool, message: &str) -> String {
    format!(r#"["OK",{},{accepted},{}]"#, json(id), json(message))
}

/// `["CLOSED", …]`; the id is JSON.
pub fn closed(id: &str, message: &str) -> String {
    format!(r#"["CLOSED",{id},{}]"#, json(message))
}

/// `["EOSE", …]`; the id is JSON.
pub fn end_of_stored(id: &str) -> String {
    format!(r#"["EOSE",{id}]"#)
}

/// `["COUNT", …]`; the id is JSON.
pub fn count(id: &str, count: usize) -> String {
    format!(r#"["COUNT",{id},{{"count":{count}}}]"#)
}

/// `["AUTH", …]`
pub fn challenge(challenge: &str) -> String {
    format!(r#"["AUTH",{}]"#, json(challenge))
}

/// `["NEG-MSG", …]`; the id is JSON, the message hex.
pub fn negotiation(id: &str, message: &str) -> String {
    format!(r#"["NEG-MSG",{id},"{message}"]"#)
}

/// `["NEG-ERR", …]`; the id is JSON.
pub fn negotiation_error(id: &str, message: &str) -> String {
    format!(r#"["NEG-ERR",{id},{}]"#, json(message))
}

/// How many different events these filters name by id; `None` if one of them asks for others too.
pub fn named_events(filters: &[Filter]) -> Option<usize> {
    let mut named: HashSet<&EventId> = HashSet::new();
    for filter in filters {
        named.extend(filter.ids.as_ref().filter(|ids| !ids.is_empty())?.iter());
    }
    Some(named.len())
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind, event::FinalizeEvent};
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        read(text, 1000).expect_err(text)
    }

    #[test]
    fn what_is_no_message_gets_a_notice() {
        for text in [
            "",
            "nonsense",
            "{}",
            "[]",
            "[1]",
            "[\"EVENT\"]",
            "[\"EVENT\",1]",
            "[\"EVENT\",{\"kind\":1}]",
            "[\"NO\",1]",
            "[\"REQ\"]",
            "[\"REQ\",1,{}]",
            "[\"REQ\",\"\",{}]",
            "[\"CLOSE\",null]",
            "[\"NEG-OPEN\",\"a\"]",
            "[\"EVENT\",{}",
            "[\"REQ\",\"\\ud800\",{}]",
        ] {
            assert!(refused(text).starts_with("[\"NOTICE\","), "{text}");
        }
        let long = format!("[\"REQ\",\"{}\",{{}}]", "x".repeat(65));
        assert!(refused(&long).starts_with("[\"NOTICE\","));
        let longest = format!("[\"REQ\",\"{}\",{{}}]", "ü".repeat(64));
        assert!(read(&longest, 1000).is_ok());
    }

    #[test]
    fn bad_filters_close_the_subscription() {
        let id = "ab".repeat(31);
        for filter in [
            "1",
            "[[]]",
            "{\"ids\":[\"zz\"]}",
            &format!("{{\"ids\":[\"{id}\"]}}"),
            "{\"kinds\":[\"1\"]}",
            "{\"kinds\":[-1]}",
            "{\"limit\":-1}",
            "{\"since\":1.5}",
            "{\"#e\":\"x\"}",
            "{\"#1\":[\"x\"]}",
            "{\"authors\":1}",
        ] {
            let answer = refused(&format!("[\"REQ\",\"s\",{filter}]"));
            assert!(
                answer.starts_with("[\"CLOSED\",\"s\",\"invalid: "),
                "{filter}: {answer}"
            );
        }
        assert!(refused("[\"REQ\",\"s\"]").starts_with("[\"CLOSED\",\"s\""));
        let many = vec!["{}"; FILTERS + 1].join(",");
        assert!(refused(&format!("[\"REQ\",\"s\",{many}]")).starts_with("[\"CLOSED\""));
        let values: Vec<String> = (0..=VALUES).map(|n| format!("\"{n}\"")).collect();
        let values = values.join(",");
        let answer = refused(&format!("[\"REQ\",\"s\",{{\"#e\":[{values}]}}]"));
        assert!(answer.starts_with("[\"CLOSED\""));
    }

    #[test]
    fn bad_events_are_answered_by_id() {
        let event = EventBuilder::new(Kind::TextNote, "x".repeat(1000))
            .finalize(&Keys::generate())
            .unwrap();
        let answer = refused(&format!("[\"EVENT\",{}]", event.as_json()));
        let expected = format!("[\"OK\",\"{}\",false,\"invalid: too large", event.id);
        assert!(answer.starts_with(&expected), "{answer}");
        let broken = "[\"EVENT\",{\"id\":\"abc\",\"kind\":\"x\"}]";
        assert!(refused(broken).starts_with("[\"OK\",\"abc\",false,\"invalid: "));
    }

    #[test]
    fn negotiations_are_hex() {
        for bad in ["\"zz\"", "\"6\"", "\"\"", "1"] {
            for text in [
                format!("[\"NEG-OPEN\",\"n\",{{}},{bad}]"),
                format!("[\"NEG-MSG\",\"n\",{bad}]"),
            ] {
                let answer = refused(&text);
                assert!(
                    answer.starts_with("[\"NEG-ERR\",\"n\",\"invalid: "),
                    "{text}"
                );
            }
        }
        assert!(read("[\"NEG-OPEN\",\"n\",{},16,\"61\"]", 10).is_ok());
    }

    #[test]
    fn ids_only_filters_name_their_events() {
        let filters = |text: &str| vec![Filter::from_json(text).unwrap()];
        let (a, b) = ("0a".repeat(32), "0b".repeat(32));
        assert_eq!(named_events(&filters("{}")), None);
        let mut both = filters(&format!("{{\"ids\":[\"{a}\",\"{b}\"]}}"));
        assert_eq!(named_events(&both), Some(2));
        both.extend(filters(&format!("{{\"ids\":[\"{a}\"]}}")));
        assert_eq!(named_events(&both), Some(2));
        both.extend(filters("{\"kinds\":[1]}"));
        assert_eq!(named_events(&both), None);
    }

    proptest! {
        /// Whatever comes, the answer is a message to the client, and JSON.
        #[test]
        fn any_text_is_read_or_answered(text in prop_oneof![
            "\\PC*",
            "\\[\"(EVENT|REQ|COUNT|CLOSE|AUTH|NEG-OPEN|NEG-MSG|NEG-CLOSE)\"(,[\\[\\]{}\":,a-z0-9#]{0,20}){0,4}\\]",
            "\\[\"(REQ|COUNT|NEG-OPEN)\",\"\\PC{0,5}\",\\{\"(ids|#e|kinds|limit|since|search)\":(\\[\"?[0-9a-z]{0,4}\"?\\]|-?[0-9.e]{1,9})\\}(,\"[0-9a-f]{0,6}\")?\\]",
        ]) {
            if let Err(answer) = read(&text, 1000) {
                let answer: Vec<serde_json::Value> = serde_json::from_str(&answer).unwrap();
                let verb = answer[0].as_str().unwrap();
                prop_assert!(["NOTICE", "OK", "CLOSED", "NEG-ERR"].contains(&verb));
            }
        }
    }
}
