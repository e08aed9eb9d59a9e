//! Filters (NIP-01), read strictly: what asks for nothing that can be is refused with words, and
//! nothing is read as asking for more than it says.

use std::{fmt, marker::PhantomData};

use nostr::{
    EventId, Filter, Kind, PublicKey, Timestamp,
    filter::{Alphabet, SingleLetterTag},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{VALUES, from_raw};
use crate::event_json::is_lower_hex;

/// The fields of a filter, in their order. serde's own maps keep the last of those that are there
/// twice.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;

        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// A list that is read no further than a filter may have values: its text may hold a million.
struct List<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
            type Value = List<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut values: S) -> Result<Self::Value, S::Error> {
                let mut list = Vec::new();
                while let Some(value) = values.next_element()? {
                    if list.len() == VALUES {
                        return Err(S::Error::custom(too_many_values()));
                    }
                    list.push(value);
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

fn too_many_values() -> String {
    format!("a filter may have {VALUES} values")
}

/// The tags whose values are ids, keys or addresses.
const HEX_TAGS: [SingleLetterTag; 7] = [
    SingleLetterTag::lowercase(Alphabet::A),
    SingleLetterTag::uppercase(Alphabet::A),
    SingleLetterTag::lowercase(Alphabet::E),
    SingleLetterTag::uppercase(Alphabet::E),
    SingleLetterTag::lowercase(Alphabet::P),
    SingleLetterTag::uppercase(Alphabet::P),
    SingleLetterTag::lowercase(Alphabet::Q),
];

/// Whether a value is hex, or an address with hex in it, that is not in lower case: it can match
/// nothing, and whoever asks for it does not mean that.
fn has_upper_case_hex(value: &str) -> bool {
    let hex = value.split(':').nth(1).unwrap_or(value);
    let is_hex = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex && !is_lower_hex(hex, 64)
}

fn read_hex<T, E>(
    name: &str,
    raw: &RawValue,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, String> {
    let List(texts): List<String> = from_raw(raw)?;
    let read = |text: String| {
        let value = is_lower_hex(&text, 64).then(|| read(&text).ok()).flatten();
        value.ok_or_else(|| format!("{name} are 64 hex digits in lower case"))
    };
    texts.into_iter().map(read).collect()
}

/// Reads a filter. The reason why not begins with its machine-readable prefix.
pub fn read_filter(raw: &RawValue) -> Result<Filter, String> {
    let invalid = |reason: String| format!("invalid: {reason}");
    // A list would be read as the filter's fields in their order.
    if !raw.get().starts_with('{') {
        return Err(invalid("a filter is an object".to_owned()));
    }
    let Fields(fields) = from_raw(raw).map_err(invalid)?;
    let mut seen = std::collections::HashSet::new();
    let mut filter = Filter::new();
    for (name, value) in fields {
        if name == "search" {
            return Err("unsupported: search (NIP-50) is not offered here".to_owned());
        }
        read_field(&mut filter, &name, value).map_err(invalid)?;
        if !seen.insert(name) {
            return Err(invalid("a field of the filter is there twice".to_owned()));
        }
        if values_of(&filter) > VALUES {
            return Err(invalid(too_many_values()));
        }
    }
    Ok(filter)
}

/// How many values all lists of a filter have.
fn values_of(filter: &Filter) -> usize {
    let tags = filter.generic_tags.values().map(|values| values.len());
    filter.ids.as_ref().map_or(0, |ids| ids.len())
        + filter.authors.as_ref().map_or(0, |authors| authors.len())
        + filter.kinds.as_ref().map_or(0, |kinds| kinds.len())
        + tags.sum::<usize>()
}

fn read_field(filter: &mut Filter, name: &str, value: &RawValue) -> Result<(), String> {
    match name {
        "ids" => {
            let ids = read_hex(name, value, EventId::from_hex)?;
            filter.ids = Some(ids.into_iter().collect());
        }
        "authors" => {
            let authors = read_hex(name, value, PublicKey::from_hex)?;
            filter.authors = Some(authors.into_iter().collect());
        }
        "kinds" => {
            let List(kinds): List<u16> = from_raw(value)?;
            filter.kinds = Some(kinds.into_iter().map(Kind::from).collect());
        }
        "since" => filter.since = Some(Timestamp::from_secs(from_raw(value)?)),
        "until" => filter.until = Some(Timestamp::from_secs(from_raw(value)?)),
        "limit" => {
            let limit: u64 = from_raw(value)?;
            filter.limit = Some(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        _ => {
            // What nobody knows yet is passed over, but for tags: without them a filter would match
            // what it excludes.
            let Some(letter) = name.strip_prefix('#') else {
                return Ok(());
            };
            let mut letters = letter.chars();
            let tag = match (letters.next(), letters.next()) {
                (Some(letter), None) => SingleLetterTag::from_char(letter).ok(),
                _ => None,
            };
            let tag = tag.ok_or("only tags of one letter can be asked for")?;
            let List(values): List<String> = from_raw(value)?;
            if HEX_TAGS.contains(&tag) && values.iter().any(|value| has_upper_case_hex(value)) {
                return Err(format!("hex in {name} is in lower case"));
            }
            filter
                .generic_tags
                .insert(tag, values.into_iter().collect());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Filter, String> {
        let raw = RawValue::from_string(text.to_owned()).expect(text);
        read_filter(&raw)
    }

    #[test]
    fn what_a_library_writes_is_read_as_it_was() {
        let id = "0a".repeat(32);
        for text in [
            "{}".to_owned(),
            format!(r#"{{"ids":["{id}"],"authors":["{id}"]}}"#),
            r##"{"kinds":[0,1,65535],"#e":["x"],"#d":["","A"],"since":1,"until":2,"limit":3}"##
                .to_owned(),
            r##"{"ids":[],"authors":[],"kinds":[],"#e":[]}"##.to_owned(),
        ] {
            assert_eq!(read(&text).unwrap(), Filter::from_json(&text).unwrap());
        }
    }

    #[test]
    fn what_can_match_nothing_or_is_no_filter_is_refused() {
        let upper = "AB".repeat(32);
        let address = format!("30617:{upper}:x");
        for filter in [
            "1".to_owned(),
            "null".to_owned(),
            "[[]]".to_owned(),
            r#"{"ids":["zz"]}"#.to_owned(),
            format!(r#"{{"ids":["{}"]}}"#, "ab".repeat(31)),
            format!(r#"{{"ids":["{upper}"]}}"#),
            format!(r#"{{"authors":["{upper}"]}}"#),
            format!(r##"{{"#e":["{upper}"]}}"##),
            format!(r##"{{"#E":["x","{upper}"]}}"##),
            format!(r##"{{"#p":["{upper}"]}}"##),
            format!(r##"{{"#q":["{address}"]}}"##),
            format!(r##"{{"#a":["{address}"]}}"##),
            r#"{"ids":null}"#.to_owned(),
            r#"{"kinds":["1"]}"#.to_owned(),
            r#"{"kinds":[-1]}"#.to_owned(),
            r#"{"kinds":[65536]}"#.to_owned(),
            r#"{"kinds":[1.0]}"#.to_owned(),
            r#"{"limit":-1}"#.to_owned(),
            r#"{"limit":"1"}"#.to_owned(),
            r#"{"since":1.5}"#.to_owned(),
            r#"{"until":-1}"#.to_owned(),
            r#"{"until":null}"#.to_owned(),
            r##"{"#e":"x"}"##.to_owned(),
            r##"{"#e":[1]}"##.to_owned(),
            r##"{"#1":["x"]}"##.to_owned(),
            r##"{"#":["x"]}"##.to_owned(),
            r##"{"#alt":["x"]}"##.to_owned(),
            r#"{"authors":1}"#.to_owned(),
            r#"{"kinds":[1],"kinds":[2]}"#.to_owned(),
            r##"{"#e":["x"],"#e":["y"]}"##.to_owned(),
        ] {
            let reason = read(&filter).expect_err(&filter);
            assert!(reason.starts_with("invalid: "), "{filter}: {reason}");
        }
        let values: Vec<String> = (0..=VALUES).map(|n| format!("\"{n}\"")).collect();
        let values = values.join(",");
        assert!(read(&format!(r##"{{"#e":[{values}]}}"##)).is_err());
        // Only where hex is meant.
        assert!(read(&format!(r##"{{"#d":["{upper}"],"#t":["{upper}"]}}"##)).is_ok());
        assert!(read(r#"{"cache":["x"],"since":5,"until":1}"#).is_ok());
        for search in [r#"{"search":"x"}"#, r#"{"search":""}"#] {
            assert!(read(search).unwrap_err().starts_with("unsupported: "));
        }
    }

    proptest! {
        /// What is read means what the library reads in it.
        #[test]
        fn nothing_is_read_as_something_else(text in
            "\\{(\"(ids|#e|kinds|authors)\":\\[(\"?[0-9a-c]{0,2}\"?)?\\]|\"(limit|since|until)\":[0-9]{1,9})?\\}"
        ) {
            let is_json = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            if is_json && let Ok(filter) = read(&text) {
                prop_assert_eq!(filter, Filter::from_json(&text).unwrap());
            }
        }
    }
}
