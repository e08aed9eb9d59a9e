//! A filter as a subscription keeps it: in as little memory as it takes.
//!
//! A few bytes of a client's text are a value, and a set of strings takes ten times as many for each. Here
//! ids and keys lie side by side, sorted, and so do texts. What it takes is known, and is what a client
//! is charged.

use nostr::{Event, EventId, Filter, Kind, PublicKey, Timestamp, filter::SingleLetterTag};

use crate::store::matches_nothing;

type Bytes = [u8; 32];

/// Texts in their order, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Texts {
    all: Box<str>,
    /// Where each ends.
    ends: Box<[u32]>,
}

impl Texts {
    fn new(sorted: impl IntoIterator<Item = String>) -> Self {
        let (mut all, mut ends) = (String::new(), Vec::new());
        for text in sorted {
            all.push_str(&text);
            // A message is shorter than 4 GiB.
            ends.push(u32::try_from(all.len()).unwrap_or(u32::MAX));
        }
        Self {
            all: all.into(),
            ends: ends.into(),
        }
    }

    fn get(&self, at: usize) -> &str {
        let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.all[begin as usize..self.ends[at] as usize]
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|at| self.get(at))
    }

    fn contains(&self, text: &str) -> bool {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.get(middle).cmp(text) {
                std::cmp::Ordering::Equal => return true,
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        false
    }

    fn memory(&self) -> usize {
        self.all.len() + self.ends.len() * size_of::<u32>()
    }
}

/// One filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFilter {
    ids: Option<Box<[Bytes]>>,
    authors: Option<Box<[Bytes]>>,
    kinds: Option<Box<[u16]>>,
    tags: Box<[(SingleLetterTag, Texts)]>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// How many stored events it asks for at most.
    pub limit: Option<usize>,
    matches_nothing: bool,
}

/// The most telling field of a filter: whatever matches it has one of its values.
pub(super) enum Telling<'a> {
    Ids(&'a [Bytes]),
    Tags(SingleLetterTag, Box<dyn Iterator<Item = &'a str> + 'a>),
    Authors(&'a [Bytes]),
    Kinds(&'a [u16]),
    Anything,
    Nothing,
}

/// What sets of the library's hold, in an order of ours.
fn sorted<T: Ord>(all: impl Iterator<Item = T>) -> Box<[T]> {
    let mut all: Vec<T> = all.collect();
    all.sort_unstable();
    all.into()
}

impl From<Filter> for KeptFilter {
    fn from(filter: Filter) -> Self {
        let matches_nothing = matches_nothing(&filter);
        let tags = filter.generic_tags.into_iter();
        Self {
            ids: filter
                .ids
                .map(|all| sorted(all.into_iter().map(|id| id.to_bytes()))),
            authors: filter
                .authors
                .map(|all| sorted(all.into_iter().map(|key| key.to_bytes()))),
            kinds: filter
                .kinds
                .map(|all| sorted(all.into_iter().map(|kind| kind.as_u16()))),
            tags: tags
                .map(|(tag, values)| (tag, Texts::new(values)))
                .collect(),
            since: filter.since,
            until: filter.until,
            limit: filter.limit,
            matches_nothing,
        }
    }
}

impl KeptFilter {
    /// The filter as the store takes it.
    pub fn to_filter(&self) -> Filter {
        let ids = self.ids.as_deref();
        let authors = self.authors.as_deref();
        let kinds = self.kinds.as_deref();
        let mut filter = Filter::new();
        filter.ids = ids.map(|ids| {
            let ids = ids.iter();
            ids.map(|id| EventId::from_byte_array(*id)).collect()
        });
        filter.authors = authors.map(|keys| {
            let keys = keys.iter();
            keys.map(|key| PublicKey::from_byte_array(*key)).collect()
        });
        filter.kinds = kinds.map(|kinds| kinds.iter().map(|kind| Kind::from(*kind)).collect());
        for (tag, values) in &self.tags {
            let values = values.iter().map(str::to_owned);
            filter.generic_tags.insert(*tag, values.collect());
        }
        filter.since = self.since;
        filter.until = self.until;
        filter.limit = self.limit;
        filter
    }

    /// The ids it asks for; `None`: any.
    pub fn ids(&self) -> Option<&[Bytes]> {
        self.ids.as_deref()
    }

    /// Whether an event matches.
    pub fn matches(&self, event: &Event) -> bool {
        let has = |all: &Option<Box<[Bytes]>>, one: &Bytes| {
            all.as_ref()
                .is_none_or(|all| all.binary_search(one).is_ok())
        };
        let kind = event.kind.as_u16();
        !self.matches_nothing
            && has(&self.ids, event.id.as_bytes())
            && has(&self.authors, event.pubkey.as_bytes())
            && self
                .kinds
                .as_ref()
                .is_none_or(|kinds| kinds.binary_search(&kind).is_ok())
            && self.since.is_none_or(|since| event.created_at >= since)
            && self.until.is_none_or(|until| event.created_at <= until)
            && self.tags.iter().all(|(letter, values)| {
                event.tags.iter().any(|tag| {
                    tag.single_letter_tag() == Some(*letter)
                        && tag.content().is_some_and(|value| values.contains(value))
                })
            })
    }

    /// How much memory it takes, in bytes.
    pub fn memory(&self) -> usize {
        let of_bytes = |all: &Option<Box<[Bytes]>>| {
            all.as_ref().map_or(0, |all| all.len() * size_of::<Bytes>())
        };
        let tags = self.tags.iter();
        let of_tag = |(_, values): &(SingleLetterTag, Texts)| {
            size_of::<(SingleLetterTag, Texts)>() + values.memory()
        };
        size_of::<Self>()
            + of_bytes(&self.ids)
            + of_bytes(&self.authors)
            + self.kinds.as_ref().map_or(0, |kinds| kinds.len() * 2)
            + tags.map(of_tag).sum::<usize>()
    }

    /// Its most telling field.
    pub(super) fn telling(&self) -> Telling<'_> {
        if self.matches_nothing {
            return Telling::Nothing;
        }
        if let Some(ids) = &self.ids {
            return Telling::Ids(ids);
        }
        let fewest = self.tags.iter().min_by_key(|(_, v)| v.ends.len());
        if let Some((letter, values)) = fewest {
            return Telling::Tags(*letter, Box::new(values.iter()));
        }
        if let Some(authors) = &self.authors {
            return Telling::Authors(authors);
        }
        match &self.kinds {
            Some(kinds) => Telling::Kinds(kinds),
            None => Telling::Anything,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_of_a_filter_is_lost() {
        let id = "0a".repeat(32);
        for text in [
            "{}".to_owned(),
            format!(r#"{{"ids":["{id}"],"authors":["{id}"],"limit":3}}"#),
            r##"{"kinds":[7,1,65535],"#e":["x","","ab"],"#d":[],"since":1,"until":2}"##.to_owned(),
            r#"{"ids":[],"authors":[],"kinds":[]}"#.to_owned(),
        ] {
            let filter = Filter::from_json(&text).unwrap();
            assert_eq!(KeptFilter::from(filter.clone()).to_filter(), filter);
        }
    }

    #[test]
    fn short_values_take_little() {
        let values: Vec<String> = (0..2_500).map(|n| format!("\"{n}\"")).collect();
        let text = format!(r##"{{"#t":[{}]}}"##, values.join(","));
        let kept = KeptFilter::from(Filter::from_json(&text).unwrap());
        assert!(kept.memory() < 9 * 2_500, "{}", kept.memory());
        assert!(kept.memory() > 7 * 2_500, "{}", kept.memory());
    }

    proptest! {
        #[test]
        fn texts_are_found_as_in_a_set(
            texts in prop::collection::btree_set("[ab]{0,3}", 0..20),
            wanted in "[ab]{0,3}",
        ) {
            let sorted: BTreeSet<String> = texts;
            let kept = Texts::new(sorted.clone());
            prop_assert_eq!(kept.contains(&wanted), sorted.contains(&wanted));
            let all: Vec<&str> = kept.iter().collect();
            let expected: Vec<&str> = sorted.iter().map(String::as_str).collect();
            prop_assert_eq!(all, expected);
        }
    }
}
