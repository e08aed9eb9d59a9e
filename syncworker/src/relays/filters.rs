//! What a remote relay is asked for: three layers of filters. Pure.
//!
//! | layer | filter | for |
//! |---|---|---|
//! | 1 | announcements and user grasp lists | every connection |
//! | 2 | states by `#d`; anything by `#a`, `#A`, `#q` of the coordinate | states: all; the rest: `Full` |
//! | 3 | anything by `#e`, `#E`, `#q` of the root events | `Full` |
//!
//! A filter names a hundred items at most, and is never so long that a relay would refuse it.

use std::{collections::BTreeMap, sync::Arc};

use grasp_proto::words::{EventId, RepoId};
use nostr::{
    Event, Filter, Kind, Timestamp,
    filter::{Alphabet, MatchEventOptions, SingleLetterTag},
};

/// Most items of one filter.
const MOST_ITEMS: usize = 100;

/// The longest filter, as JSON, in bytes.
pub const LONGEST_FILTER: usize = 32_000;

/// What a filter has besides its values, with room: names, kinds, `since`, `until`, `limit`.
const FRAME: usize = 200;

const ANNOUNCEMENT: Kind = Kind::from_u16(30617);
const STATE: Kind = Kind::from_u16(30618);
const GRASP_LIST: Kind = Kind::from_u16(10317);

/// What is synced with a remote relay, in the parts that are asked for, and confirmed, one by one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// Layer 1.
    Announcements,
    /// The states of a repository.
    States(Arc<RepoId>),
    /// What names a repository's coordinate.
    Mentions(Arc<RepoId>),
    /// What names a root event.
    Root(EventId),
}

impl Item {
    /// How many filters ask for it.
    pub fn filters(&self) -> usize {
        match self {
            Self::Announcements | Self::States(_) => 1,
            Self::Mentions(_) | Self::Root(_) => 3,
        }
    }
}

/// One filter, and the items that it asks for, wholly or in part.
#[derive(Debug, Clone)]
pub struct Part {
    /// Without times and limit.
    pub filter: Filter,
    /// What it is for.
    pub items: Vec<Item>,
}

/// The filters that ask for `items`, each at most `longest` bytes long.
pub fn parts<'a>(items: impl IntoIterator<Item = &'a Item>, longest: usize) -> Vec<Part> {
    let mut announcements = Vec::new();
    // States are asked for by identifier, which several owners may use.
    let mut states: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    let mut mentions: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    let mut roots: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    for item in items {
        let values = match item {
            Item::Announcements => {
                announcements.push(Part {
                    filter: Filter::new().kinds([ANNOUNCEMENT, GRASP_LIST]),
                    items: vec![item.clone()],
                });
                continue;
            }
            Item::States(repo) => states.entry(repo.identifier.to_string()),
            Item::Mentions(repo) => mentions.entry(repo.coordinate()),
            Item::Root(id) => roots.entry(id.to_hex()),
        };
        values.or_default().push(item.clone());
    }
    let by = |letter| SingleLetterTag::lowercase(letter);
    let upper = |letter| SingleLetterTag::uppercase(letter);
    let mut all = announcements;
    for group in grouped(states, longest) {
        let filter = Filter::new().kind(STATE);
        all.push(group.asked_by(filter, by(Alphabet::D)));
    }
    let layers = [(mentions, Alphabet::A), (roots, Alphabet::E)];
    for (values, letter) in layers {
        for group in grouped(values, longest) {
            for tag in [by(letter), upper(letter), by(Alphabet::Q)] {
                all.push(group.asked_by(Filter::new(), tag));
            }
        }
    }
    all
}

#[derive(Default)]
struct Group {
    values: Vec<String>,
    items: Vec<Item>,
    bytes: usize,
}

impl Group {
    fn asked_by(&self, filter: Filter, tag: SingleLetterTag) -> Part {
        Part {
            filter: filter.custom_tags(tag, self.values.iter().cloned()),
            items: self.items.clone(),
        }
    }
}

/// The length of a value as JSON, with its comma.
fn json_len(value: &str) -> usize {
    serde_json::to_string(value).map_or(usize::MAX / 4, |json| json.len()) + 1
}

fn grouped(values: BTreeMap<String, Vec<Item>>, longest: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let longest = longest.min(LONGEST_FILTER).saturating_sub(FRAME);
    for (value, items) in values {
        let bytes = json_len(&value);
        match groups.last_mut() {
            Some(group) if group.values.len() < MOST_ITEMS && group.bytes + bytes <= longest => {
                group.values.push(value);
                group.items.extend(items);
                group.bytes += bytes;
            }
            _ => groups.push(Group {
                values: vec![value],
                items,
                bytes,
            }),
        }
    }
    groups
}

/// As a live subscription asks: nothing stored.
pub fn live(filter: Filter) -> Filter {
    filter.limit(0)
}

/// As history is asked for: from `since` on, or from the start.
pub fn history(filter: Filter, since: Option<u64>) -> Filter {
    match since {
        Some(since) => filter.since(Timestamp::from_secs(since)),
        None => filter,
    }
}

/// Whether an event is what a filter asks for.
pub fn matches(filter: &Filter, event: &Event) -> bool {
    // Of several ids, authors or kinds none matches none; the library reads an empty set as no set.
    filter.match_event(event, MatchEventOptions::new())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use grasp_proto::words::{Identifier, Npub};
    use proptest::prelude::*;

    use super::*;

    pub fn repo(owner: u8, identifier: &str) -> Arc<RepoId> {
        Arc::new(RepoId {
            owner: Npub::from_bytes([owner; 32]),
            identifier: Identifier::parse(identifier).unwrap(),
        })
    }

    fn root(n: u32) -> Item {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        Item::Root(EventId::from_bytes(id))
    }

    #[test]
    fn the_layers_are_those_of_the_table() {
        let items = [
            Item::Announcements,
            Item::States(repo(1, "a")),
            Item::States(repo(2, "a")),
            Item::Mentions(repo(1, "a")),
            root(7),
        ];
        let json: Vec<String> = parts(&items, LONGEST_FILTER)
            .iter()
            .map(|part| part.filter.as_json())
            .collect();
        let coordinate = format!("30617:{}:a", "01".repeat(32));
        let id = format!("00000007{}", "0".repeat(56));
        assert_eq!(
            json,
            [
                r#"{"kinds":[10317,30617]}"#.to_owned(),
                r##"{"kinds":[30618],"#d":["a"]}"##.to_owned(),
                format!(r##"{{"#a":["{coordinate}"]}}"##),
                format!(r##"{{"#A":["{coordinate}"]}}"##),
                format!(r##"{{"#q":["{coordinate}"]}}"##),
                format!(r##"{{"#e":["{id}"]}}"##),
                format!(r##"{{"#E":["{id}"]}}"##),
                format!(r##"{{"#q":["{id}"]}}"##),
            ]
        );
        let states = &parts(&items, LONGEST_FILTER)[1];
        assert_eq!(states.items.len(), 2, "two owners, one identifier");
    }

    #[test]
    fn nine_hundred_repositories_and_3600_roots_are_145_filters() {
        let repos: Vec<_> = (0..900)
            .map(|n| repo(1, &format!("repository-{n}")))
            .collect();
        let mut items = vec![Item::Announcements];
        items.extend(repos.iter().cloned().map(Item::States));
        items.extend(repos.into_iter().map(Item::Mentions));
        items.extend((0..3600).map(root));
        assert_eq!(parts(&items, LONGEST_FILTER).len(), 1 + 9 + 27 + 108);
    }

    proptest! {
        #[test]
        fn every_item_is_asked_for_in_filters_that_are_not_too_long(
            names in proptest::collection::btree_set("[a-z\"é]{1,120}", 1..300),
            longest in 1000..40_000_usize,
        ) {
            let items: BTreeSet<Item> = names
                .iter()
                .flat_map(|name| {
                    let repo = repo(1, name);
                    [Item::States(repo.clone()), Item::Mentions(repo)]
                })
                .collect();
            let parts = parts(&items, longest);
            let mut found = BTreeSet::new();
            for part in &parts {
                let filter = history(part.filter.clone(), Some(u64::MAX / 2)).limit(500);
                prop_assert!(filter.as_json().len() <= longest.min(32 << 10));
                prop_assert!(part.items.len() <= MOST_ITEMS);
                found.extend(part.items.iter().cloned());
            }
            prop_assert_eq!(found, items);
        }
    }
}
