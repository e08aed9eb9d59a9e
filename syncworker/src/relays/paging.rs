//! How history is read page by page, newest first: pure.
//!
//! The next page ends (`until`) in the second in which the last one ended, so that nothing of that
//! second is missed, whatever the relay caps its answers at; what was seen of it already is not new.

use std::collections::BTreeSet;

use grasp_proto::words::EventId;

/// Most events of one history.
const MOST_EVENTS: usize = 200_000;

/// Relays cap their answers at multiples of this, if not at what was asked for.
const ROUND: usize = 50;

/// What to do after a page.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for the next one, up to this second.
    Until(u64),
    /// That was all.
    Done,
    /// That was all that can be had: some second has more events than the relay answers with.
    Crowded,
    /// There is no end to it.
    TooMany,
}

/// One history, page by page. Holds the ids of one second: no more than one page has.
#[derive(Debug, Default)]
pub struct Paging {
    until: Option<u64>,
    seen: BTreeSet<EventId>,
    /// The largest page so far: what the relay caps its answers at, perhaps.
    largest: usize,
    crowded: bool,
    total: usize,
    limit: usize,
}

impl Paging {
    /// Nothing has come yet; pages of `limit` events are asked for.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// A page has come, complete: when its events were made, and their ids.
    pub fn took(&mut self, page: &[(u64, EventId)]) -> Step {
        let Some(oldest) = page.iter().map(|(at, _)| *at).min() else {
            return self.done();
        };
        self.largest = self.largest.max(page.len());
        let known = |(at, id): &(u64, EventId)| Some(*at) == self.until && self.seen.contains(id);
        let new = page.iter().filter(|event| !known(event)).count();
        self.total += new;
        if self.total > MOST_EVENTS {
            return Step::TooMany;
        }
        if new == 0 {
            if page.len() < self.largest || oldest == 0 {
                return self.done();
            }
            // Full of what is known, perhaps: older events hide behind it, and if relays cap their
            // answers at such a number, more of that second too.
            self.crowded |= page.len() >= self.limit || page.len().is_multiple_of(ROUND);
            self.seen.clear();
            self.until = Some(oldest - 1);
            return Step::Until(oldest - 1);
        }
        if self.until != Some(oldest) {
            self.seen.clear();
        }
        let of_oldest = page.iter().filter(|(at, _)| *at == oldest);
        self.seen.extend(of_oldest.map(|(_, id)| *id));
        self.until = Some(oldest);
        Step::Until(oldest)
    }

    fn done(&self) -> Step {
        match self.crowded {
            true => Step::Crowded,
            false => Step::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: usize) -> EventId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        EventId::from_bytes(bytes)
    }

    /// Reads from a relay that holds events of these times and answers with `cap` at most; what was
    /// found, how it ended, and with how many pages.
    fn read(times: &[u64], cap: usize) -> (BTreeSet<EventId>, Step, usize) {
        let mut held: Vec<(u64, EventId)> = times
            .iter()
            .enumerate()
            .map(|(n, at)| (*at, id(n)))
            .collect();
        held.sort_unstable_by_key(|(at, id)| (std::cmp::Reverse(*at), *id));
        let (mut found, mut paging, mut until) = (BTreeSet::new(), Paging::new(500), u64::MAX);
        for pages in 1.. {
            let older = held.iter().filter(|(at, _)| *at <= until);
            let page: Vec<_> = older.take(cap).copied().collect();
            found.extend(page.iter().map(|(_, id)| *id));
            match paging.took(&page) {
                Step::Until(next) => until = next,
                step => return (found, step, pages),
            }
        }
        unreachable!()
    }

    #[test]
    fn one_page_too_many_is_asked_for_and_no_more() {
        assert_eq!(read(&[], 100).2, 1);
        let (found, step, pages) = read(&[5, 4, 3], 100);
        assert_eq!((found.len(), step, pages), (3, Step::Done, 2));
    }

    #[test]
    fn a_second_with_more_events_than_a_page_is_passed_and_said() {
        let mut times = vec![50; 250];
        times.extend([40, 60]);
        let (found, step, _) = read(&times, 100);
        assert_eq!(step, Step::Crowded);
        assert!(found.contains(&id(250)) && found.contains(&id(251)));
    }

    #[test]
    fn a_history_without_end_ends() {
        let mut paging = Paging::new(500);
        let mut step = Step::Until(u64::MAX);
        let mut pages = 0;
        while let Step::Until(_) = step {
            let page: Vec<_> = (0..500).map(|n| (1_000_000_000 - pages, id(n))).collect();
            step = paging.took(&page);
            pages += 1;
            assert!(pages < 1000);
        }
        assert_eq!(step, Step::TooMany);
    }

    proptest! {
        #[test]
        fn everything_is_found_but_in_seconds_that_overflow_a_page(
            times in proptest::collection::vec(0_u64..60, 0..300),
            cap in 1_usize..40,
        ) {
            let (found, step, _) = read(&times, cap);
            prop_assert_eq!(step, Step::Done);
            for (n, at) in times.iter().enumerate() {
                let beside = times.iter().filter(|other| *other == at).count();
                prop_assert!(found.contains(&id(n)) || beside > cap);
            }
        }
    }
}
