//! Which history of a remote relay is still to be fetched: wanted − pending − confirmed. Pure.
//!
//! An item is confirmed when every filter that asks for it has been answered to its end. What fails
//! is asked for again when [`Plan::retry`] says so; what was missed of it for a while, since when that
//! began; everything, when [`Plan::forget`] says so.
//!
//! Bounded by what is wanted: by what the relay of this service has accepted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nostr::Filter;

use super::filters::{self, Item};

/// One filter whose history is to be fetched.
#[derive(Debug, Clone)]
pub struct Job {
    id: u64,
    /// Without times: reconciled, the whole of it costs no more, and finds what was made long before
    /// it was sent.
    pub filter: Filter,
    since: Option<u64>,
    /// How often it was begun and put back.
    pub tries: u32,
    items: Vec<Item>,
    catching_up: bool,
}

/// What is confirmed and pending at one remote relay.
#[derive(Debug, Default)]
pub struct Plan {
    confirmed: BTreeSet<Item>,
    /// Each with the jobs that must still end well.
    pending: BTreeMap<Item, BTreeSet<u64>>,
    /// Not asked for again before [`Plan::retry`].
    failed: BTreeSet<Item>,
    queue: VecDeque<Job>,
    last_id: u64,
    /// Since when (seconds since 1970) something may be missing of what is confirmed, or asked for in
    /// part.
    gaps: BTreeMap<Item, u64>,
    /// Gaps of what is confirmed that are asked for, each with the jobs that must still end well.
    closing: BTreeMap<Item, (u64, BTreeSet<u64>)>,
}

/// How a history went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// To its end.
    Complete,
    /// Not to its end.
    Failed,
}

impl Job {
    /// As it is read by pages: not from the start, if it is known until when it is complete.
    pub fn paged(&self) -> Filter {
        filters::history(self.filter.clone(), self.since)
    }
}

impl Plan {
    /// Asks for what is wanted and neither confirmed, pending nor failed; forgets what is not wanted
    /// any more. Filters are at most `longest` bytes.
    pub fn want(&mut self, wanted: &BTreeSet<Item>, longest: usize) {
        self.confirmed.retain(|item| wanted.contains(item));
        self.failed.retain(|item| wanted.contains(item));
        self.pending.retain(|item, _| wanted.contains(item));
        let known = |item: &Item| self.confirmed.contains(item) || self.pending.contains_key(item);
        self.gaps.retain(|item, _| known(item));
        self.closing.retain(|item, _| self.confirmed.contains(item));
        let (pending, closing) = (&self.pending, &self.closing);
        self.queue.retain(|job| {
            let waits = |item| match job.catching_up {
                true => closing
                    .get(item)
                    .is_some_and(|(_, jobs)| jobs.contains(&job.id)),
                false => pending.get(item).is_some_and(|jobs| jobs.contains(&job.id)),
            };
            job.items.iter().any(waits)
        });
        let missing: Vec<Item> = wanted
            .iter()
            .filter(|item| {
                !self.confirmed.contains(item)
                    && !self.pending.contains_key(item)
                    && !self.failed.contains(item)
            })
            .cloned()
            .collect();
        for part in filters::parts(&missing, longest) {
            let id = self.next_id();
            for item in &part.items {
                self.pending.entry(item.clone()).or_default().insert(id);
            }
            self.queue.push_back(Job {
                id,
                filter: part.filter,
                since: None,
                tries: 0,
                items: part.items,
                catching_up: false,
            });
        }
    }

    /// Of each of these, what came since then may be missing, unless its history is still to be begun
    /// with.
    pub fn missed(&mut self, items: impl IntoIterator<Item = (Item, u64)>) {
        let queued: BTreeSet<u64> = self.queue.iter().map(|job| job.id).collect();
        for (item, since) in items {
            let begun =
                |jobs: &BTreeSet<u64>| jobs.len() < item.filters() || !jobs.is_subset(&queued);
            if self.confirmed.contains(&item) || self.pending.get(&item).is_some_and(begun) {
                let gap = self.gaps.entry(item).or_insert(since);
                *gap = since.min(*gap);
            }
        }
    }

    /// The same of everything.
    pub fn missed_all(&mut self, since: u64) {
        let all = self.confirmed.iter().chain(self.pending.keys());
        let all: Vec<_> = all.map(|item| (item.clone(), since)).collect();
        self.missed(all);
    }

    /// The connection is lost: nothing is pending any more. What is confirmed may lack what came
    /// since `since`.
    pub fn disconnected(&mut self, since: u64) {
        self.pending.clear();
        self.failed.clear();
        self.queue.clear();
        self.gaps.retain(|item, _| self.confirmed.contains(item));
        let closing = std::mem::take(&mut self.closing).into_iter();
        self.missed(closing.map(|(item, (since, _))| (item, since)));
        self.missed_all(since);
    }

    /// Connected again: what may be missing is asked for if that began at `oldest` or later, else the
    /// whole of it.
    pub fn reconnected(&mut self, oldest: u64, longest: usize) {
        let old = self.gaps.iter().filter(|(_, since)| **since < oldest);
        let old: Vec<Item> = old.map(|(item, _)| item.clone()).collect();
        self.forget_these(&old);
        self.close_gaps(longest);
    }

    /// Asks for what may be missing of what is confirmed; once that is done, for what is missing by
    /// then: there are never more such jobs than there are filters.
    pub fn close_gaps(&mut self, longest: usize) {
        if !self.closing.is_empty() {
            return;
        }
        let gaps = std::mem::take(&mut self.gaps).into_iter();
        let (gaps, later): (BTreeMap<Item, u64>, _) =
            gaps.partition(|(item, _)| self.confirmed.contains(item));
        self.gaps = later;
        for part in filters::parts(gaps.keys(), longest) {
            let id = self.next_id();
            for item in &part.items {
                let closing = (gaps[item], BTreeSet::new());
                let (_, jobs) = self.closing.entry(item.clone()).or_insert(closing);
                jobs.insert(id);
            }
            // Announcements may be served a day after they were made.
            let since = match part.items.contains(&Item::Announcements) {
                true => None,
                false => part.items.iter().map(|item| gaps[item]).min(),
            };
            self.queue.push_back(Job {
                id,
                filter: part.filter,
                since,
                tries: 0,
                items: part.items,
                catching_up: true,
            });
        }
    }

    /// Everything from the start: nothing is confirmed.
    pub fn forget(&mut self) {
        self.confirmed.clear();
        self.failed.clear();
        self.gaps.clear();
        self.closing.clear();
    }

    /// These from the start: what was found of them so far does not count.
    pub fn forget_these<'a>(&mut self, items: impl IntoIterator<Item = &'a Item>) {
        for item in items {
            self.confirmed.remove(item);
            self.pending.remove(item);
            self.failed.remove(item);
            self.gaps.remove(item);
            self.closing.remove(item);
        }
    }

    /// What failed may be asked for again.
    pub fn retry(&mut self) {
        self.failed.clear();
    }

    /// The next history to fetch.
    pub fn next_job(&mut self) -> Option<Job> {
        self.queue.pop_front()
    }

    /// A job that could not be done now comes again, after the others; `counts` if that was not our
    /// own fault.
    pub fn again(&mut self, mut job: Job, counts: bool) {
        job.tries += u32::from(counts);
        self.queue.push_back(job);
    }

    /// A job has ended. Its items that are confirmed by that come back.
    pub fn ended(&mut self, job: &Job, ended: Ended) -> usize {
        let before = self.confirmed.len();
        for item in &job.items {
            match (ended, job.catching_up) {
                (Ended::Complete, true) => {
                    if let Some((_, left)) = self.closing.get_mut(item)
                        && left.remove(&job.id)
                        && left.is_empty()
                    {
                        self.closing.remove(item);
                    }
                }
                // It is to be fetched whole.
                (Ended::Failed, true) => {
                    let closing = self.closing.get(item);
                    if closing.is_some_and(|(_, left)| left.contains(&job.id)) {
                        self.forget_these([item]);
                        self.failed.insert(item.clone());
                    }
                }
                (Ended::Complete, false) => {
                    if let Some(left) = self.pending.get_mut(item) {
                        // A job of an earlier try says nothing about this one.
                        if left.remove(&job.id) && left.is_empty() {
                            self.pending.remove(item);
                            self.confirmed.insert(item.clone());
                        }
                    }
                }
                (Ended::Failed, false) => {
                    if self
                        .pending
                        .get(item)
                        .is_some_and(|left| left.contains(&job.id))
                    {
                        self.pending.remove(item);
                        self.failed.insert(item.clone());
                    }
                }
            }
        }
        self.confirmed.len().saturating_sub(before)
    }

    /// Whether this item's history is complete.
    pub fn is_confirmed(&self, item: &Item) -> bool {
        self.confirmed.contains(item)
    }

    /// Whether some history could not be had.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::relays::filters::LONGEST_FILTER;

    fn item(n: u8) -> Item {
        let repo = |n: u8| {
            Arc::new(RepoId {
                owner: Npub::from_bytes([1; 32]),
                identifier: Identifier::parse(&format!("r{n}")).unwrap(),
            })
        };
        match n % 4 {
            0 if n == 0 => Item::Announcements,
            0 => Item::States(repo(n / 4)),
            1 => Item::Mentions(repo(n / 4)),
            _ => Item::Root(EventId::from_bytes([n; 32])),
        }
    }

    fn drain(plan: &mut Plan) -> Vec<Job> {
        std::iter::from_fn(|| plan.next_job()).collect()
    }

    fn since(job: &Job) -> Option<u64> {
        job.paged().since.map(|since| since.as_secs())
    }

    /// One item is wanted, and confirmed.
    fn confirmed(item: Item) -> (Plan, BTreeSet<Item>) {
        let mut plan = Plan::default();
        let wanted = BTreeSet::from([item]);
        plan.want(&wanted, LONGEST_FILTER);
        for job in drain(&mut plan) {
            plan.ended(&job, Ended::Complete);
        }
        (plan, wanted)
    }

    #[test]
    fn an_item_is_confirmed_by_the_last_of_its_filters() {
        let mut plan = Plan::default();
        let wanted = BTreeSet::from([item(1)]);
        plan.want(&wanted, LONGEST_FILTER);
        let jobs = drain(&mut plan);
        assert_eq!(jobs.len(), 3);
        for job in &jobs {
            assert!(!plan.is_confirmed(&item(1)));
            plan.ended(job, Ended::Complete);
        }
        assert!(plan.is_confirmed(&item(1)));
        plan.want(&wanted, LONGEST_FILTER);
        assert!(plan.next_job().is_none());
    }

    #[test]
    fn a_failure_is_tried_again_whole_and_old_answers_do_not_count() {
        let mut plan = Plan::default();
        let wanted = BTreeSet::from([item(1)]);
        plan.want(&wanted, LONGEST_FILTER);
        let old = drain(&mut plan);
        plan.ended(&old[0], Ended::Failed);
        plan.want(&wanted, LONGEST_FILTER);
        assert!(plan.next_job().is_none() && plan.has_failed());
        plan.retry();
        plan.want(&wanted, LONGEST_FILTER);
        let new = drain(&mut plan);
        assert_eq!(new.len(), 3);
        for job in old[1..].iter().chain(&new[..2]) {
            plan.ended(job, Ended::Complete);
        }
        assert!(!plan.is_confirmed(&item(1)));
        plan.ended(&new[2], Ended::Complete);
        assert!(plan.is_confirmed(&item(1)));
    }

    #[test]
    fn a_short_interruption_is_asked_for_since_and_a_long_one_from_the_start() {
        let (mut plan, wanted) = confirmed(item(4));
        plan.disconnected(1000);
        plan.reconnected(900, LONGEST_FILTER);
        let jobs = drain(&mut plan);
        assert_eq!(jobs.len(), 1);
        assert_eq!((since(&jobs[0]), jobs[0].filter.since), (Some(1000), None));
        // Lost again before it was answered: the gap is as old as before.
        plan.disconnected(2000);
        plan.reconnected(950, LONGEST_FILTER);
        let jobs = drain(&mut plan);
        assert_eq!(since(&jobs[0]), Some(1000));
        plan.ended(&jobs[0], Ended::Complete);
        plan.disconnected(3000);
        plan.reconnected(4000, LONGEST_FILTER);
        plan.want(&wanted, LONGEST_FILTER);
        let jobs = drain(&mut plan);
        assert_eq!((jobs.len(), since(&jobs[0])), (1, None));
    }

    #[test]
    fn announcements_are_always_asked_for_from_the_start() {
        let (mut plan, _) = confirmed(Item::Announcements);
        plan.disconnected(1000);
        plan.reconnected(900, LONGEST_FILTER);
        assert_eq!(since(&plan.next_job().unwrap()), None);
    }

    #[test]
    fn what_is_missed_while_it_is_asked_for_is_asked_for_after_that() {
        let mut plan = Plan::default();
        let wanted = BTreeSet::from([item(1)]);
        plan.want(&wanted, LONGEST_FILTER);
        // Nothing of it was asked for yet.
        plan.missed_all(500);
        let first = plan.next_job().unwrap();
        plan.missed_all(1000);
        plan.close_gaps(LONGEST_FILTER);
        plan.ended(&first, Ended::Complete);
        for job in drain(&mut plan) {
            assert_eq!(since(&job), None);
            plan.ended(&job, Ended::Complete);
        }
        plan.close_gaps(LONGEST_FILTER);
        let closing = drain(&mut plan);
        assert!(closing.len() == 3 && closing.iter().all(|job| since(job) == Some(1000)));
        plan.missed_all(2000);
        plan.close_gaps(LONGEST_FILTER);
        assert!(plan.next_job().is_none());
        for job in &closing {
            plan.ended(job, Ended::Complete);
        }
        plan.close_gaps(LONGEST_FILTER);
        assert_eq!(since(&plan.next_job().unwrap()), Some(2000));
    }

    #[test]
    fn what_cannot_be_caught_up_with_is_fetched_whole() {
        let (mut plan, wanted) = confirmed(item(4));
        plan.missed_all(5);
        plan.close_gaps(LONGEST_FILTER);
        let job = plan.next_job().unwrap();
        assert_eq!(since(&job), Some(5));
        plan.ended(&job, Ended::Failed);
        assert!(!plan.is_confirmed(&item(4)));
        plan.retry();
        plan.want(&wanted, LONGEST_FILTER);
        assert_eq!(since(&plan.next_job().unwrap()), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Want(BTreeSet<u8>),
        Run(bool),
        Again,
        Disconnect,
        Reconnect(bool),
        Retry,
        Forget,
        CatchUp,
        Missed,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => proptest::collection::btree_set(0_u8..24, 0..16).prop_map(Step::Want),
            8 => any::<bool>().prop_map(Step::Run),
            1 => Just(Step::Again),
            1 => Just(Step::Disconnect),
            1 => any::<bool>().prop_map(Step::Reconnect),
            1 => select(vec![Step::Retry, Step::Forget, Step::CatchUp, Step::Missed]),
        ]
    }

    proptest! {
        #[test]
        fn nothing_wanted_is_forgotten_and_nothing_confirmed_is_asked_again(
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            let mut plan = Plan::default();
            let mut wanted = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Want(items) => {
                        wanted = items.into_iter().map(item).collect();
                        plan.want(&wanted, LONGEST_FILTER);
                        // Whatever came before: each wanted item is in exactly one place, nothing
                        // else is in any, and what is pending is in the queue.
                        for item in &wanted {
                            let places = [
                                plan.confirmed.contains(item),
                                plan.pending.contains_key(item),
                                plan.failed.contains(item),
                            ];
                            prop_assert_eq!(places.into_iter().filter(|p| *p).count(), 1);
                        }
                        for (item, jobs) in &plan.pending {
                            prop_assert!(wanted.contains(item) && !jobs.is_empty());
                            for id in jobs {
                                let queued = plan.queue.iter().any(|job| job.id == *id);
                                prop_assert!(queued, "nothing runs between steps");
                            }
                        }
                        prop_assert!(plan.confirmed.is_subset(&wanted));
                        for item in plan.closing.keys() {
                            prop_assert!(plan.confirmed.contains(item));
                        }
                        for item in plan.gaps.keys() {
                            prop_assert!(wanted.contains(item) && !plan.failed.contains(item));
                        }
                        for job in &plan.queue {
                            let still = |item| match job.catching_up {
                                true => plan.closing.get(item).is_some_and(|(_, jobs)| jobs.contains(&job.id)),
                                false => plan.pending.get(item).is_some_and(|jobs| jobs.contains(&job.id)),
                            };
                            prop_assert!(job.items.iter().any(still), "asked for nothing");
                        }
                        let closing = plan.queue.iter().filter(|job| job.catching_up).count();
                        prop_assert!(closing <= 24 * 3);
                    }
                    Step::Run(well) => {
                        if let Some(job) = plan.next_job() {
                            plan.ended(&job, if well { Ended::Complete } else { Ended::Failed });
                        }
                    }
                    Step::Again => {
                        if let Some(job) = plan.next_job() {
                            plan.again(job, true);
                        }
                    }
                    Step::Disconnect => plan.disconnected(100),
                    Step::Reconnect(soon) => {
                        plan.reconnected(if soon { 50 } else { 200 }, LONGEST_FILTER);
                    }
                    Step::Retry => plan.retry(),
                    Step::Forget => plan.forget(),
                    Step::CatchUp => {
                        plan.missed_all(70);
                        plan.close_gaps(LONGEST_FILTER);
                    }
                    Step::Missed => plan.missed_all(70),
                }
            }
            // However it went: run to the end, and all that is wanted is confirmed.
            plan.retry();
            plan.want(&wanted, LONGEST_FILTER);
            for _ in 0..3 {
                while let Some(job) = plan.next_job() {
                    plan.ended(&job, Ended::Complete);
                }
                plan.close_gaps(LONGEST_FILTER);
            }
            prop_assert!(plan.gaps.is_empty() && plan.closing.is_empty());
            for item in &wanted {
                prop_assert!(plan.is_confirmed(item), "{item:?}");
            }
        }
    }
}
