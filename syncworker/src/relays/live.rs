//! Which live subscriptions a connection holds, within what the remote relay allows. Pure.
//!
//! What is new is added to what is there: as one more subscription, or, where there is no room for
//! one, to one that is there, which is then sent again. Many small filters make regrouping
//! worthwhile: all of them at once, as few as there can be. What a remote relay has no room for at all
//! is left to polling.

use std::collections::{BTreeMap, BTreeSet};

use nostr::{Filter, filter::SingleLetterTag};

use super::{
    filters::{self, Item, Part},
    health::TooMany,
    limits::Limits,
};

/// More filters than this on one connection are regrouped, if that makes them fewer.
const MANY_FILTERS: usize = 70;

/// Filters in one subscription while there are subscriptions enough.
const FEW_FILTERS: usize = 10;

/// What a REQ has besides its filters, with room.
const FRAME: usize = 64;

/// What is to be sent, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Subscribe; one of this number that is there is replaced.
    Open(u64, Vec<Filter>),
    /// Unsubscribe.
    Close(u64),
}

/// Whether something is closed before what takes its place is open.
pub fn interrupt(changes: &[Change]) -> bool {
    let is_open = |change: &Change| matches!(change, Change::Open(..));
    let closed = changes.iter().position(|change| !is_open(change));
    let opened = changes.iter().rposition(is_open);
    closed
        .zip(opened)
        .is_some_and(|(closed, opened)| closed < opened)
}

#[derive(Debug)]
struct Subscription {
    parts: Vec<Part>,
    bytes: usize,
}

/// The live subscriptions of one connection. Bounded by the remote relay's limits, and by ours.
#[derive(Debug)]
pub struct Live {
    limits: Limits,
    subscriptions: BTreeMap<u64, Subscription>,
    covered: BTreeSet<Item>,
    left_over: BTreeSet<Item>,
    last_number: u64,
}

fn bytes(part: &Part) -> usize {
    filters::live(part.filter.clone()).as_json().len() + 1
}

fn opened(number: u64, parts: &[Part]) -> Change {
    let filters = parts.iter().map(|part| filters::live(part.filter.clone()));
    Change::Open(number, filters.collect())
}

impl Live {
    /// None yet, on a relay with these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            subscriptions: BTreeMap::new(),
            covered: BTreeSet::new(),
            left_over: BTreeSet::new(),
            last_number: 0,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.subscriptions.len()
    }

    fn filters(&self) -> usize {
        self.subscriptions.values().map(|one| one.parts.len()).sum()
    }

    /// What is followed.
    pub fn covered(&self) -> &BTreeSet<Item> {
        &self.covered
    }

    /// What one of them is for.
    pub fn items(&self, number: u64) -> impl Iterator<Item = &Item> {
        let parts = self.subscriptions.get(&number).map(|one| &one.parts);
        parts.into_iter().flatten().flat_map(|part| &part.items)
    }

    /// The remote relay has closed one: what it covered is to be subscribed to again.
    pub fn closed(&mut self, number: u64) {
        if self.subscriptions.remove(&number).is_some() {
            self.left_over.clear();
            self.cover();
        }
    }

    /// The remote relay allows fewer than it said, or than we thought.
    pub fn shrink(&mut self, too_many: TooMany) {
        match too_many {
            TooMany::Subscriptions => {
                self.limits.subscriptions = (self.limits.subscriptions / 2).max(2);
            }
            TooMany::Filters => self.limits.filters = (self.most_filters() / 2).max(1),
        }
    }

    /// Filters of the largest.
    fn most_filters(&self) -> usize {
        let counts = self.subscriptions.values().map(|one| one.parts.len());
        counts.max().unwrap_or_default()
    }

    /// Those once more: they may not have been heard.
    pub fn again(&self, which: impl Fn(u64) -> bool) -> Vec<Change> {
        let all = self.subscriptions.iter();
        all.filter(|(number, _)| which(**number))
            .map(|(number, one)| opened(*number, &one.parts))
            .collect()
    }

    fn cover(&mut self) {
        let parts = self.subscriptions.values().flat_map(|one| &one.parts);
        // An item is covered if all of its filters are; they may be in several subscriptions, and one
        // of them in two.
        let mut asked: BTreeMap<&Item, BTreeSet<Option<SingleLetterTag>>> = BTreeMap::new();
        for part in parts {
            let tag = part.filter.generic_tags.keys().next().copied();
            for item in &part.items {
                asked.entry(item).or_default().insert(tag);
            }
        }
        let covered = asked
            .into_iter()
            .filter(|(item, tags)| tags.len() >= item.filters());
        self.covered = covered.map(|(item, _)| item.clone()).collect();
    }

    /// What to send so that `wanted` is subscribed to.
    pub fn change(&mut self, wanted: &BTreeSet<Item>) -> Vec<Change> {
        self.left_over.retain(|item| wanted.contains(item));
        // What was left over stays so until there is regrouping, or room.
        let missing: Vec<Item> = wanted
            .difference(&self.covered)
            .filter(|item| !self.left_over.contains(item))
            .cloned()
            .collect();
        let stale = self.covered.difference(wanted).count();
        let new = filters::parts(&missing, self.limits.filter_bytes());
        let after = self.filters() + new.len();
        let too_many =
            self.count() > self.limits.live() || self.most_filters() > self.limits.filters;
        let mostly_stale = stale > wanted.len() && stale > 100;
        if !too_many && !mostly_stale && new.is_empty() {
            return Vec::new();
        }
        let scattered = after > MANY_FILTERS && {
            let fewest = filters::parts(wanted, self.limits.filter_bytes()).len();
            after > fewest + MANY_FILTERS / 2
        };
        if too_many || mostly_stale || scattered {
            return self.regroup(wanted, self.last_number);
        }
        let sent = self.last_number;
        let mut changes = Vec::new();
        let mut parts = new.into_iter().peekable();
        while parts.peek().is_some() && self.count() < self.limits.live() {
            let some = self.fill(&mut parts, FEW_FILTERS);
            changes.push(self.open(some));
        }
        let mut touched = BTreeSet::new();
        let mut too_long = Vec::new();
        for part in parts {
            let bytes = bytes(&part);
            let most = self.limits.filters;
            let room = self.limits.message_bytes.saturating_sub(FRAME);
            let emptiest = self
                .subscriptions
                .iter_mut()
                .filter(|(_, one)| one.parts.len() < most && one.bytes + bytes <= room)
                .min_by_key(|(_, one)| one.bytes);
            match emptiest {
                Some((number, one)) => {
                    one.parts.push(part);
                    one.bytes += bytes;
                    touched.insert(*number);
                }
                None => too_long.push(part),
            }
        }
        if !too_long.is_empty() && after > self.fewest(wanted) {
            return self.regroup(wanted, sent);
        }
        let again = touched.iter().map(|number| {
            let one = &self.subscriptions[number];
            opened(*number, &one.parts)
        });
        changes.extend(again);
        self.cover();
        self.left_over = wanted.difference(&self.covered).cloned().collect();
        changes
    }

    fn fewest(&self, wanted: &BTreeSet<Item>) -> usize {
        filters::parts(wanted, self.limits.filter_bytes()).len()
    }

    /// As many parts as one subscription takes, `most` at most.
    fn fill(
        &self,
        parts: &mut std::iter::Peekable<impl Iterator<Item = Part>>,
        most: usize,
    ) -> Subscription {
        let mut some = Subscription {
            parts: Vec::new(),
            bytes: 0,
        };
        let most = most.min(self.limits.filters);
        let room = self.limits.message_bytes.saturating_sub(FRAME);
        while let Some(part) = parts.peek() {
            let bytes = bytes(part);
            let full = some.parts.len() >= most || some.bytes + bytes > room;
            if full && !some.parts.is_empty() {
                break;
            }
            some.bytes += bytes;
            some.parts.extend(parts.next());
        }
        some
    }

    fn open(&mut self, subscription: Subscription) -> Change {
        self.last_number += 1;
        let change = opened(self.last_number, &subscription.parts);
        self.subscriptions.insert(self.last_number, subscription);
        change
    }

    /// All of it anew, in as few filters as there can be. Where both have room, the new ones are
    /// opened before the old are closed, so that nothing is missed in between. Those numbered after
    /// `sent` the remote relay has not heard of.
    fn regroup(&mut self, wanted: &BTreeSet<Item>, sent: u64) -> Vec<Change> {
        let old = std::mem::take(&mut self.subscriptions).into_keys();
        let old: Vec<u64> = old.filter(|number| *number <= sent).collect();
        let parts = filters::parts(wanted, self.limits.filter_bytes());
        let most = FEW_FILTERS.max(parts.len().div_ceil(self.limits.live()));
        let mut parts = parts.into_iter().peekable();
        let mut opening = Vec::new();
        while parts.peek().is_some() && self.count() < self.limits.live() {
            let some = self.fill(&mut parts, most);
            opening.push(self.open(some));
        }
        self.cover();
        self.left_over = wanted.difference(&self.covered).cloned().collect();
        let closing = old.iter().copied().map(Change::Close);
        match old.len() + self.count() <= self.limits.live() {
            true => opening.into_iter().chain(closing).collect(),
            false => closing.chain(opening).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
    use proptest::prelude::*;

    use super::*;

    fn root(n: u32) -> Item {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        Item::Root(EventId::from_bytes(id))
    }

    fn repos(range: std::ops::Range<u32>) -> impl Iterator<Item = Item> {
        range.flat_map(|n| {
            let repo = Arc::new(RepoId {
                owner: Npub::from_bytes([1; 32]),
                identifier: Identifier::parse(&format!("repository-{n}")).unwrap(),
            });
            [Item::States(repo.clone()), Item::Mentions(repo)]
        })
    }

    /// What a remote relay sees: the filters of each subscription that is open.
    #[derive(Default)]
    struct Remote(BTreeMap<u64, Vec<Filter>>, usize);

    impl Remote {
        fn take(&mut self, changes: Vec<Change>) {
            for change in changes {
                match change {
                    Change::Open(number, filters) => {
                        assert!(!filters.is_empty());
                        self.0.insert(number, filters);
                    }
                    Change::Close(number) => assert!(self.0.remove(&number).is_some()),
                }
                self.1 = self.1.max(self.0.len());
            }
        }

        fn asked(&self) -> BTreeSet<String> {
            let filters = self.0.values().flatten();
            filters
                .flat_map(|filter| {
                    let kinds = format!("{:?}", filter.kinds);
                    let tags = filter.generic_tags.iter().flat_map(|(tag, values)| {
                        values.iter().map(move |value| format!("{tag}{value}"))
                    });
                    tags.chain([kinds])
                })
                .collect()
        }
    }

    fn all_of(wanted: &BTreeSet<Item>) -> BTreeSet<String> {
        let mut remote = Remote::default();
        let parts = filters::parts(wanted, filters::LONGEST_FILTER);
        let filters = parts.into_iter().map(|part| part.filter).collect();
        remote.0.insert(0, filters);
        remote.asked()
    }

    #[test]
    fn a_large_server_fits_into_twenty_subscriptions() {
        let mut wanted: BTreeSet<Item> = repos(0..900).chain((0..3600).map(root)).collect();
        wanted.insert(Item::Announcements);
        let mut live = Live::new(Limits::default());
        let mut remote = Remote::default();
        remote.take(live.change(&wanted));
        assert!(remote.1 <= Limits::default().live(), "{}", remote.1);
        assert_eq!(live.covered(), &wanted);
        assert_eq!(remote.asked(), all_of(&wanted));
        assert!(live.change(&wanted).is_empty());
    }

    #[test]
    fn what_trickles_in_is_regrouped_and_stays_within_the_budget() {
        let mut wanted = BTreeSet::from([Item::Announcements]);
        let (mut live, mut remote) = (Live::new(Limits::default()), Remote::default());
        remote.take(live.change(&wanted));
        for n in 0..250 {
            wanted.insert(root(n));
            remote.take(live.change(&wanted));
            assert!(remote.0.len() <= Limits::default().live());
            assert!(live.filters() <= MANY_FILTERS + 3);
        }
        assert_eq!(remote.asked(), all_of(&wanted));
    }

    #[test]
    fn what_there_is_no_room_for_is_left_over_and_said() {
        let limits = Limits {
            subscriptions: 2,
            filters: 2,
            ..Limits::default()
        };
        let mut wanted: BTreeSet<Item> = (0..500).map(root).collect();
        wanted.insert(Item::Announcements);
        let (mut live, mut remote) = (Live::new(limits), Remote::default());
        remote.take(live.change(&wanted));
        assert_eq!(remote.0.len(), limits.live());
        assert!(live.left_over.len() >= 400);
        let covered: BTreeSet<Item> = wanted.difference(&live.left_over).cloned().collect();
        assert_eq!(live.covered(), &covered);
        assert!(live.covered.contains(&Item::Announcements));
    }

    #[test]
    fn a_closed_subscription_is_opened_again_and_fewer_are_held_if_that_is_all() {
        let wanted: BTreeSet<Item> = repos(0..900).collect();
        let (mut live, mut remote) = (Live::new(Limits::default()), Remote::default());
        remote.take(live.change(&wanted));
        let number = *remote.0.keys().next().unwrap();
        remote.0.remove(&number);
        live.closed(number);
        remote.take(live.change(&wanted));
        assert_eq!(remote.asked(), all_of(&wanted));
        live.shrink(TooMany::Subscriptions);
        live.shrink(TooMany::Subscriptions);
        remote.take(live.change(&wanted));
        assert!(remote.0.len() <= 5);
        assert_eq!(remote.asked(), all_of(&wanted));
        live.shrink(TooMany::Filters);
        remote.take(live.change(&wanted));
        assert!(remote.0.len() <= 5);
        let most = remote.0.values().map(Vec::len).max().unwrap();
        assert!(most <= live.limits.filters && !live.left_over.is_empty());
    }

    #[test]
    fn only_what_is_closed_before_its_place_is_taken_is_interrupted() {
        let open = || Change::Open(2, vec![]);
        assert!(interrupt(&[Change::Close(1), open()]));
        assert!(!interrupt(&[open(), Change::Close(1)]));
        assert!(!interrupt(&[Change::Close(1)]) && !interrupt(&[open()]) && !interrupt(&[]));
    }

    #[test]
    fn a_filter_that_is_subscribed_to_twice_does_not_stand_for_another() {
        let limits = Limits {
            filters: 1,
            ..Limits::default()
        };
        let wanted = BTreeSet::from([root(1)]);
        let (mut live, mut remote) = (Live::new(limits), Remote::default());
        remote.take(live.change(&wanted));
        for _ in 0..2 {
            // The subscription that asks by `e`: the latest of them.
            let by_e = remote.0.iter().rev().find(|(_, filters)| {
                let mut tags = filters[0].generic_tags.keys();
                tags.any(|tag| *tag == SingleLetterTag::lowercase(nostr::filter::Alphabet::E))
            });
            let number = *by_e.unwrap().0;
            remote.0.remove(&number);
            live.closed(number);
            assert!(live.covered.is_empty());
            remote.take(live.change(&wanted));
            assert_eq!(remote.asked(), all_of(&wanted));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn whatever_is_wanted_is_subscribed_to_or_said_to_be_left_over(
            steps in proptest::collection::vec((0_u32..300, 0_u32..150, any::<bool>()), 1..8),
            subscriptions in 1_usize..12,
            filters in 1_usize..12,
        ) {
            let limits = Limits { subscriptions, filters, ..Limits::default() };
            let (mut live, mut remote) = (Live::new(limits), Remote::default());
            for (from, count, closed) in steps {
                let range = from..from + count;
                let mut wanted: BTreeSet<Item> = range.clone().map(root).collect();
                wanted.extend(repos(range));
                wanted.insert(Item::Announcements);
                if closed && let Some(number) = remote.0.keys().next().copied() {
                    remote.0.remove(&number);
                    live.closed(number);
                }
                remote.take(live.change(&wanted));
                prop_assert!(remote.0.len() <= limits.live());
                for filters in remote.0.values() {
                    prop_assert!(filters.len() <= limits.filters);
                }
                let asked = remote.asked();
                let covered = wanted.intersection(live.covered()).cloned().collect();
                prop_assert!(all_of(&covered).is_subset(&asked));
                let left_over: BTreeSet<Item> = wanted.difference(&covered).cloned().collect();
                prop_assert_eq!(&left_over, &live.left_over);
            }
            let wanted = BTreeSet::from([Item::Announcements]);
            remote.take(live.change(&wanted));
            remote.take(live.regroup(&wanted, u64::MAX));
            prop_assert_eq!(remote.asked(), all_of(&wanted));
        }
    }
}
