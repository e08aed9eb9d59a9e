//! What clients say (NIP-01, 42, 45, 77), read with care, and what they are told when it cannot be.
//!
//! Nothing here trusts a size, a type or an encoding; the store sees only what came through.

mod filter;

use std::collections::HashSet;

use nostr::{Event, Filter};
use serde::Deserialize;
use serde_json::value::RawValue;

use self::filter::read_filter;
use crate::{
    event_json::{read_event, shortened},
    live::kept_filter::KeptFilter,
    policy::event_size::EventSizeLimits,
};

/// Longest id of a subscription, in characters (NIP-01).
pub const SUBSCRIPTION_ID: usize = 64;
/// Most filters in one `REQ`.
pub const FILTERS: usize = 20;
/// Most values in one filter, all its lists together.
pub const VALUES: usize = 2500;
/// Longest NEG message taken, in hex digits.
const NEGOTIATION: usize = 256 << 10;
/// Longest id that an event which is refused is answered by: one and a half of what it should have.
const ANSWERED_ID: usize = 96;

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

/// What is said to a message that was not taken. The connection lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// This, and nothing follows from it.
    Answer(String),
    /// The subscription of this id, which the message asked for, is over.
    Subscription {
        /// The subscription.
        id: String,
        /// Why.
        reason: String,
    },
    /// The reconciliation of this id is over.
    Negotiation {
        /// The negotiation.
        id: String,
        /// Why.
        reason: String,
    },
}

impl Refused {
    fn notice(text: &str) -> Self {
        Self::Answer(notice(text))
    }

    /// The message that says so.
    pub fn into_answer(self) -> String {
        match self {
            Self::Answer(answer) => answer,
            Self::Subscription { id, reason } => closed(&id, &reason),
            Self::Negotiation { id, reason } => negotiation_error(&id, &reason),
        }
    }
}

/// Reads one text frame.
pub fn read(text: &str, sizes: &EventSizeLimits) -> Result<ClientMessage, Refused> {
    let parts: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| {
        Refused::notice("invalid: a message is a JSON array that begins with a verb")
    })?;
    let Some((verb, rest)) = parts.split_first() else {
        return Err(Refused::notice("invalid: an empty message"));
    };
    let verb: String =
        from_raw(verb).map_err(|_| Refused::notice("invalid: the verb must be a string"))?;
    match (verb.as_str(), rest) {
        ("EVENT", [event, ..]) => {
            let event = read_sized_event(event, sizes)?;
            Ok(ClientMessage::Event(Box::new(event)))
        }
        ("AUTH", [event, ..]) => {
            let event = read_sized_event(event, sizes)?;
            Ok(ClientMessage::Auth(Box::new(event)))
        }
        ("REQ", [id, filters @ ..]) => {
            let id = subscription(id)?;
            match read_filters(filters) {
                Ok(filters) => Ok(ClientMessage::Req { id, filters }),
                Err(reason) => Err(Refused::Subscription { id, reason }),
            }
        }
        ("COUNT", [id, filters @ ..]) => {
            let id = subscription(id)?;
            let [filter] = filters else {
                let reason = "invalid: one filter is counted at a time";
                return Err(Refused::Answer(closed(&id, reason)));
            };
            match read_filter(filter) {
                Ok(filter) => Ok(ClientMessage::Count { id, filter }),
                Err(reason) => Err(Refused::Answer(closed(&id, &reason))),
            }
        }
        ("CLOSE", [id, ..]) => Ok(ClientMessage::Close {
            id: subscription(id)?,
        }),
        ("NEG-OPEN", [id, rest @ ..]) => {
            let id = subscription(id)?;
            match read_opening(rest) {
                Ok((filter, message)) => Ok(ClientMessage::NegOpen {
                    id,
                    filter,
                    message,
                }),
                Err(reason) => Err(Refused::Negotiation { id, reason }),
            }
        }
        ("NEG-MSG", [id, rest @ ..]) => {
            let id = subscription(id)?;
            let message = match rest {
                [message, ..] => read_hex(message),
                [] => Err("invalid: NEG-MSG lacks its message".to_owned()),
            };
            match message {
                Ok(message) => Ok(ClientMessage::NegMsg { id, message }),
                Err(reason) => Err(Refused::Negotiation { id, reason }),
            }
        }
        ("NEG-CLOSE", [id, ..]) => Ok(ClientMessage::NegClose {
            id: subscription(id)?,
        }),
        (
            "EVENT" | "AUTH" | "REQ" | "COUNT" | "CLOSE" | "NEG-OPEN" | "NEG-MSG" | "NEG-CLOSE",
            _,
        ) => {
            let reason = format!("invalid: {verb} lacks what belongs to it");
            Err(Refused::notice(&reason))
        }
        _ => Err(Refused::notice("unsupported: unknown verb")),
    }
}

fn read_sized_event(raw: &RawValue, sizes: &EventSizeLimits) -> Result<Event, Refused> {
    #[derive(Deserialize)]
    struct Kind {
        kind: u16,
    }
    let size = raw.get().len();
    if size > sizes.most_kinds {
        // What is too large for any kind is not looked into.
        let kind = match size > sizes.of_any_kind() {
            true => None,
            false => serde_json::from_str(raw.get()).ok(),
        };
        let most = kind.map_or(sizes.of_any_kind(), |Kind { kind }| sizes.of(kind.into()));
        if size > most {
            let reason = format!("invalid: too large, an event of its kind may have {most} bytes");
            return Err(event_refused(raw, &reason));
        }
    }
    read_event(raw.get()).map_err(|error| event_refused(raw, &format!("invalid: {error}")))
}

/// `OK false` that names the event as it was sent, if it has an id to say it of; else a `NOTICE`.
fn event_refused(raw: &RawValue, reason: &str) -> Refused {
    #[derive(Deserialize)]
    struct Named {
        id: String,
    }
    Refused::Answer(match serde_json::from_str::<Named>(raw.get()) {
        Ok(Named { id }) if id.len() <= ANSWERED_ID => ok(&id, false, reason),
        _ => notice(reason),
    })
}

fn from_raw<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, String> {
    serde_json::from_str(raw.get()).map_err(|error| shortened(&error.to_string()))
}

/// A subscription's id, as JSON.
fn subscription(raw: &RawValue) -> Result<String, Refused> {
    let wrong = || {
        Refused::notice(&format!(
            "invalid: a subscription id is a string of 1 to {SUBSCRIPTION_ID} characters"
        ))
    };
    let id: String = from_raw(raw).map_err(|_| wrong())?;
    if id.is_empty() || id.chars().count() > SUBSCRIPTION_ID {
        return Err(wrong());
    }
    Ok(json(&id))
}

fn read_filters(filters: &[&RawValue]) -> Result<Vec<Filter>, String> {
    if filters.is_empty() || filters.len() > FILTERS {
        return Err(format!("invalid: 1 to {FILTERS} filters are allowed"));
    }
    filters.iter().map(|filter| read_filter(filter)).collect()
}

/// What stands behind the id of a `NEG-OPEN`.
fn read_opening(rest: &[&RawValue]) -> Result<(Filter, String), String> {
    match rest {
        // The older form has the size of ids in the second place.
        [filter, message] | [filter, _, message] => Ok((read_filter(filter)?, read_hex(message)?)),
        _ => Err("invalid: NEG-OPEN has an id, a filter and a message".to_owned()),
    }
}

fn read_hex(raw: &RawValue) -> Result<String, String> {
    let text: String = from_raw(raw).map_err(|error| format!("invalid: {error}"))?;
    if text.len() > NEGOTIATION {
        return Err(format!(
            "invalid: a message may have {NEGOTIATION} hex digits"
        ));
    }
    let hex = text.bytes().all(|b| b.is_ascii_hexdigit());
    if text.is_empty() || text.len() % 2 == 1 || !hex {
        return Err("invalid: the message is not hex".to_owned());
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

/// How much of what is stored was sent (NIP-67).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completeness {
    /// All of it.
    Finish,
    /// There is more.
    More,
    /// Nobody looked.
    Unknown,
}

/// `["EOSE", …]`; the id is JSON.
pub fn end_of_stored(id: &str, completeness: Completeness) -> String {
    match completeness {
        Completeness::Finish => format!(r#"["EOSE",{id},["finish"]]"#),
        Completeness::More => format!(r#"["EOSE",{id},["more"]]"#),
        Completeness::Unknown => format!(r#"["EOSE",{id}]"#),
    }
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
pub fn named_events(filters: &[KeptFilter]) -> Option<usize> {
    let mut named: HashSet<&[u8; 32]> = HashSet::new();
    for filter in filters {
        named.extend(filter.ids().filter(|ids| !ids.is_empty())?);
    }
    Some(named.len())
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind, event::FinalizeEvent};
    use proptest::prelude::*;

    use super::*;

    const SIZES: EventSizeLimits = EventSizeLimits {
        most_kinds: 1000,
        states: 2000,
    };

    fn refused(text: &str) -> String {
        read(text, &SIZES).expect_err(text).into_answer()
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
            "[\"NEG-OPEN\"]",
            "[\"NEG-MSG\"]",
            "[\"NEG-OPEN\",{},\"61\"]",
            "[\"EVENT\",{}",
            "[\"REQ\",\"\\ud800\",{}]",
        ] {
            assert!(refused(text).starts_with("[\"NOTICE\","), "{text}");
        }
        let long = format!("[\"REQ\",\"{}\",{{}}]", "x".repeat(65));
        assert!(refused(&long).starts_with("[\"NOTICE\","));
        let longest = format!("[\"REQ\",\"{}\",{{}}]", "ü".repeat(64));
        assert!(read(&longest, &SIZES).is_ok());
    }

    #[test]
    fn bad_filters_close_the_subscription() {
        let answer = refused("[\"REQ\",\"s\",{\"kinds\":1}]");
        assert!(
            answer.starts_with("[\"CLOSED\",\"s\",\"invalid: "),
            "{answer}"
        );
        let answer = refused("[\"COUNT\",\"s\",{\"search\":\"x\"}]");
        assert!(
            answer.starts_with("[\"CLOSED\",\"s\",\"unsupported: "),
            "{answer}"
        );
        assert!(refused("[\"REQ\",\"s\"]").starts_with("[\"CLOSED\",\"s\""));
        let many = vec!["{}"; FILTERS + 1].join(",");
        assert!(refused(&format!("[\"REQ\",\"s\",{many}]")).starts_with("[\"CLOSED\""));
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
        // Named as it was sent.
        let event = EventBuilder::new(Kind::TextNote, "")
            .finalize(&Keys::generate())
            .unwrap();
        let id = event.id.to_hex();
        let upper = event.as_json().replace(&id, &id.to_uppercase());
        let answer = refused(&format!("[\"EVENT\",{upper}]"));
        let expected = format!("[\"OK\",\"{}\",false,\"invalid: id", id.to_uppercase());
        assert!(answer.starts_with(&expected), "{answer}");
    }

    #[test]
    fn states_may_be_larger() {
        for (kind, size, taken) in [(1, 1500, false), (30618, 1500, true), (30618, 2500, false)] {
            let event = EventBuilder::new(Kind::from_u16(kind), "x".repeat(size - 400))
                .finalize(&Keys::generate())
                .unwrap();
            let result = read(&format!("[\"EVENT\",{}]", event.as_json()), &SIZES);
            assert_eq!(result.is_ok(), taken, "{kind} {size}");
        }
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
        for opening in [
            "",
            ",{}",
            ",[]",
            ",{}",
            ",{},16,\"61\",1",
            ",{\"kinds\":1},\"61\"",
            ",null,\"61\"",
        ] {
            let answer = refused(&format!("[\"NEG-OPEN\",\"n\"{opening}]"));
            assert!(
                answer.starts_with("[\"NEG-ERR\",\"n\",\"invalid: "),
                "{answer}"
            );
        }
        assert!(refused("[\"NEG-MSG\",\"n\"]").starts_with("[\"NEG-ERR\",\"n\",\"invalid: "));
        assert!(read("[\"NEG-OPEN\",\"n\",{},16,\"61\"]", &SIZES).is_ok());
    }

    #[test]
    fn ids_only_filters_name_their_events() {
        let filters = |text: &str| vec![KeptFilter::from(Filter::from_json(text).unwrap())];
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
            if read(&text, &SIZES).is_err() {
                let answer = refused(&text);
                let answer: Vec<serde_json::Value> = serde_json::from_str(&answer).unwrap();
                let verb = answer[0].as_str().unwrap();
                prop_assert!(["NOTICE", "OK", "CLOSED", "NEG-ERR"].contains(&verb));
            }
        }
    }
}
