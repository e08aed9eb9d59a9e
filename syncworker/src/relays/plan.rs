//! Which history of a remote relay is still to be fetched: wanted − pending − confirmed. Pure.
//!
//! An item is confirmed when every filter that asks for it has been answered to its end. What fails
//! is asked for again when [`Plan::retry`] says so; what a short interruption may have hidden, by
//! filters with `since`; everything, when [`Plan::forget`] says so.
//!
//! Bounded by what is wanted: by what the relay of this service has accepted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nostr::Filter;

use super::filters::{self, Item};

/// One filter whose history is to be fetched.
#[derive(Debug, Clone)]
pub struct Job {
    id: u64,
    /// With its `since`, if it has one.
    pub filter: Filter,
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
    /// Since when (seconds since 1970) something may be missing of what is confirmed,
    gap: Option<u64>,
    /// and the jobs that must still end well for it to be closed.
    closing: BTreeSet<u64>,
}

/// How a history went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// To its end.
    Complete,
    /// Not to its end.
    Failed,
}

impl Plan {
    /// Asks for what is wanted and neither confirmed, pending nor failed; forgets what is not wanted
    /// any more. Filters are at most `longest` bytes.
    pub fn want(&mut self, wanted: &BTreeSet<Item>, longest: usize) {
        self.confirmed.retain(|item| wanted.contains(item));
        self.failed.retain(|item| wanted.contains(item));
        self.pending.retain(|item, _| wanted.contains(item));
        let pending = &self.pending;
        self.queue.retain(|job| {
            let waits = |item| pending.get(item).is_some_and(|jobs| jobs.contains(&job.id));
            job.catching_up || job.items.iter().any(waits)
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
                tries: 0,
                items: part.items,
                catching_up: false,
            });
        }
    }

    /// Asks for what may have come since `since` of these confirmed items.
    fn ask_since(&mut self, items: &BTreeSet<Item>, since: u64, longest: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        for part in filters::parts(items, longest) {
            let id = self.next_id();
            ids.push(id);
            self.queue.push_back(Job {
                id,
                filter: filters::history(part.filter, Some(since)),
                tries: 0,
                items: part.items,
                catching_up: true,
            });
        }
        ids
    }

    /// What no live subscription covers: asked for anew from `since` on.
    pub fn poll(&mut self, items: &BTreeSet<Item>, since: u64, longest: usize) {
        let confirmed = items.intersection(&self.confirmed).cloned().collect();
        self.ask_since(&confirmed, since, longest);
    }

    /// The connection is lost: nothing is pending any more. What is confirmed may lack what came
    /// since `since`, and what a gap that is open already hides.
    pub fn disconnected(&mut self, since: u64) {
        self.pending.clear();
        self.failed.clear();
        self.queue.clear();
        self.closing.clear();
        self.open_gap(since);
    }

    fn open_gap(&mut self, since: u64) {
        self.gap = Some(self.gap.map_or(since, |gap| gap.min(since)));
    }

    /// Something that came at `since` or later was missed: as if the connection had been interrupted.
    pub fn missed(&mut self, since: u64, oldest: u64, longest: usize) {
        self.open_gap(since);
        self.reconnected(oldest, longest);
    }

    /// Connected again: closes the gap if it began at `oldest` or later, else forgets what is
    /// confirmed.
    pub fn reconnected(&mut self, oldest: u64, longest: usize) {
        match self.gap {
            Some(since) if since >= oldest => self.catch_up(since, longest),
            Some(_) => {
                self.confirmed.clear();
                self.gap = None;
            }
            None => {}
        }
    }

    /// Asks again for what came since `since` of all that is confirmed.
    fn catch_up(&mut self, since: u64, longest: usize) {
        self.open_gap(since);
        let since = self.gap.unwrap_or(since);
        let confirmed = self.confirmed.clone();
        self.closing = self
            .ask_since(&confirmed, since, longest)
            .into_iter()
            .collect();
        self.close_gap();
    }

    fn close_gap(&mut self) {
        if self.closing.is_empty() {
            self.gap = None;
        }
    }

    /// Everything from the start: nothing is confirmed.
    pub fn forget(&mut self) {
        self.confirmed.clear();
        self.failed.clear();
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
        self.closing.remove(&job.id);
        for item in &job.items {
            match (ended, job.catching_up) {
                (Ended::Complete, true) => {}
                // It is to be fetched whole.
                (Ended::Failed, true) => {
                    if self.confirmed.remove(item) {
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
        if job.catching_up {
            self.close_gap();
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
        let mut plan = Plan::default();
        let wanted = BTreeSet::from([item(0)]);
        plan.want(&wanted, LONGEST_FILTER);
        for job in drain(&mut plan) {
            plan.ended(&job, Ended::Complete);
        }
        plan.disconnected(1000);
        plan.reconnected(900, LONGEST_FILTER);
        let jobs = drain(&mut plan);
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs[0].filter.since.map(|t| t.as_secs()), Some(1000));
        // Lost again before it was answered: the gap is as old as before.
        plan.disconnected(2000);
        plan.reconnected(950, LONGEST_FILTER);
        let jobs = drain(&mut plan);
        assert_eq!(jobs[0].filter.since.map(|t| t.as_secs()), Some(1000));
        plan.ended(&jobs[0], Ended::Complete);
        plan.disconnected(3000);
        plan.reconnected(4000, LONGEST_FILTER);
        plan.want(&wanted, LONGEST_FILTER);
        let jobs = drain(&mut plan);
        assert_eq!((jobs.len(), jobs[0].filter.since), (1, None));
    }

    #[test]
    fn what_cannot_be_caught_up_with_is_fetched_whole() {
        let mut plan = Plan::default();
        let wanted = BTreeSet::from([item(0)]);
        plan.want(&wanted, LONGEST_FILTER);
        let job = plan.next_job().unwrap();
        plan.ended(&job, Ended::Complete);
        plan.catch_up(5, LONGEST_FILTER);
        let job = plan.next_job().unwrap();
        plan.ended(&job, Ended::Failed);
        assert!(!plan.is_confirmed(&item(0)));
        plan.retry();
        plan.want(&wanted, LONGEST_FILTER);
        assert_eq!(plan.next_job().unwrap().filter.since, None);
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
                        for job in plan.queue.iter().filter(|job| !job.catching_up) {
                            let still = |item| plan.pending.get(item).is_some_and(|jobs| jobs.contains(&job.id));
                            prop_assert!(job.items.iter().any(still), "asked for nothing");
                        }
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
                    Step::CatchUp => plan.missed(70, 60, LONGEST_FILTER),
                    Step::Missed => plan.missed(70, 80, LONGEST_FILTER),
                }
            }
            // However it went: run to the end, and all that is wanted is confirmed.
            plan.retry();
            plan.want(&wanted, LONGEST_FILTER);
            while let Some(job) = plan.next_job() {
                plan.ended(&job, Ended::Complete);
            }
            for item in &wanted {
                prop_assert!(plan.is_confirmed(item), "{item:?}");
            }
        }
    }
}
