//! Which of what is wanted no live subscription covers, and since when something of it may be missing.
//! Pure.
//!
//! Such items are polled; when they are covered again, once more. Bounded by what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use super::filters::Item;

/// What is not covered on one connection, each with the time (seconds since 1970) from which on what
/// is new of it has not been asked for.
#[derive(Debug, Default)]
pub struct Coverage {
    uncovered: BTreeMap<Item, u64>,
}

impl Coverage {
    /// This is wanted, and that is covered now. What is not, and was until now, or is new, may lack
    /// something from `since` on. What is covered again comes back.
    pub fn see(
        &mut self,
        wanted: &BTreeSet<Item>,
        covered: &BTreeSet<Item>,
        since: u64,
    ) -> BTreeMap<Item, u64> {
        let mut before = std::mem::take(&mut self.uncovered);
        let mut again = BTreeMap::new();
        for item in wanted {
            let known = before.remove(item);
            match (covered.contains(item), known) {
                (true, None) => {}
                (true, Some(known)) => _ = again.insert(item.clone(), known),
                (false, known) => {
                    let since = known.unwrap_or(since);
                    self.uncovered.insert(item.clone(), since);
                }
            }
        }
        again
    }

    /// These are not surely covered any more.
    pub fn lose<'a>(&mut self, items: impl IntoIterator<Item = &'a Item>, since: u64) {
        for item in items {
            self.uncovered.entry(item.clone()).or_insert(since);
        }
    }

    /// All that is not covered is asked for: the next time from `since` on.
    pub fn poll(&mut self, since: u64) -> BTreeMap<Item, u64> {
        let asked = self.uncovered.clone();
        self.uncovered.values_mut().for_each(|at| *at = since);
        asked
    }

    /// The connection is lost: nothing is covered. What was not before comes back.
    pub fn disconnected(&mut self) -> BTreeMap<Item, u64> {
        std::mem::take(&mut self.uncovered)
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::EventId;
    use proptest::prelude::*;

    use super::*;

    fn items(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<Item> {
        let root = |n| Item::Root(EventId::from_bytes([n; 32]));
        numbers.into_iter().map(root).collect()
    }

    #[test]
    fn what_is_covered_again_lacks_what_came_since_it_was_covered_or_polled_last() {
        let mut coverage = Coverage::default();
        let both = items([1, 2]);
        assert!(coverage.see(&both, &both, 10).is_empty());
        assert!(coverage.see(&both, &items([1]), 20).is_empty());
        assert!(coverage.see(&both, &items([1]), 30).is_empty());
        assert_eq!(coverage.poll(40).into_values().collect::<Vec<_>>(), [20]);
        let again = coverage.see(&both, &both, 50);
        assert_eq!(
            again.into_iter().collect::<Vec<_>>(),
            [(items([2]).pop_first().unwrap(), 40)]
        );
        assert!(coverage.poll(60).is_empty());
        coverage.lose(&items([1]), 70);
        assert_eq!(
            coverage.disconnected().into_values().collect::<Vec<_>>(),
            [70]
        );
    }

    proptest! {
        #[test]
        fn nothing_that_is_wanted_is_neither_covered_nor_asked_for(
            turns in proptest::collection::vec(
                (
                    proptest::collection::btree_set(0_u8..8, 0..8),
                    proptest::collection::btree_set(0_u8..8, 0..8),
                    any::<bool>(),
                ),
                1..40,
            ),
        ) {
            let mut coverage = Coverage::default();
            // For each item, until when it is surely covered or asked for.
            let mut sure: BTreeMap<Item, u64> = BTreeMap::new();
            for (now, (wanted, covered, poll)) in (1..).zip(turns) {
                let (wanted, covered) = (items(wanted), items(covered));
                sure.retain(|item, _| wanted.contains(item));
                let mut asked = coverage.see(&wanted, &covered, now);
                if poll {
                    asked.extend(coverage.poll(now));
                }
                for item in &wanted {
                    let until = sure.get(item).copied().unwrap_or(now);
                    let asked = asked.get(item);
                    if let Some(since) = asked {
                        prop_assert!(*since <= until);
                    }
                    let is_open = coverage.uncovered.get(item).is_some_and(|at| *at <= until);
                    if covered.contains(item) || asked.is_some() {
                        prop_assert!(asked.is_some() || until == now || !is_open);
                        sure.insert(item.clone(), now + u64::from(covered.contains(item)));
                    } else {
                        prop_assert!(is_open);
                        sure.insert(item.clone(), until);
                    }
                }
            }
        }
    }
}
