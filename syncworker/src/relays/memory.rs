//! What is remembered of a remote relay from one connection to the next, while its lease lasts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use grasp_proto::words::RepoId;
use tokio::time::Instant;

use super::{coverage::Coverage, filters::Item, plan::Plan, status::Status};

/// What outlives a connection, but not a lease.
pub(super) struct Memory {
    pub plan: Plan,
    pub wanted: BTreeSet<Item>,
    /// What no live subscription covers.
    pub coverage: Coverage,
    /// The generation of each wanted repository.
    known: BTreeMap<Arc<RepoId>, u32>,
    /// When everything is asked for from the start.
    pub full_pass: Instant,
    /// Since when (seconds since 1970) live events were given up that have not been asked for again.
    pub lost_since: Option<u64>,
}

impl Memory {
    pub fn new(full_pass: Instant) -> Self {
        Self {
            plan: Plan::default(),
            wanted: BTreeSet::new(),
            coverage: Coverage::default(),
            known: BTreeMap::new(),
            full_pass,
            lost_since: None,
        }
    }

    /// Plans for what is wanted.
    pub fn refresh(&mut self, longest: usize) {
        self.plan.want(&self.wanted, longest);
    }

    /// This is wanted, and that is covered by live subscriptions. What is not, and was until now, may
    /// lack something from `since` on.
    pub fn cover(&mut self, wanted: &BTreeSet<Item>, covered: &BTreeSet<Item>, since: u64) {
        let again = self.coverage.see(wanted, covered, since);
        self.plan.missed(again);
    }

    /// What is not covered is asked for, the next time from `since` on.
    pub fn poll(&mut self, since: u64) {
        self.plan.missed(self.coverage.poll(since));
    }

    /// What our relay says of repositories: of those of which it says something else than before,
    /// nothing that was found so far counts.
    pub fn generations(
        &mut self,
        now: BTreeMap<Arc<RepoId>, u32>,
        items: impl Fn(&RepoId) -> Vec<Item>,
    ) {
        for (repo, generation) in &now {
            let known = self.known.get(repo);
            if known.is_some_and(|known| known != generation) {
                self.plan.forget_these(&items(repo));
            }
        }
        self.known = now;
    }

    /// Live events made at `since` or later were given up.
    pub fn lost(&mut self, since: u64) {
        self.lost_since = Some(self.lost_since.map_or(since, |lost| lost.min(since)));
    }

    /// The connection is lost. What came since `since` is not known to be judged, nor is what was
    /// given up before.
    pub fn disconnected(&mut self, since: u64) {
        self.plan.missed(self.coverage.disconnected());
        self.lost(since);
        self.plan
            .disconnected(self.lost_since.take().unwrap_or(since));
    }

    /// What failed, and what was given up, is asked for again: from the start if that was before
    /// `oldest`.
    pub fn retry(&mut self, oldest: u64, longest: usize) {
        self.plan.retry();
        if let Some(since) = self.lost_since.take() {
            self.plan.missed_all(since);
            self.plan.reconnected(oldest, longest);
        }
    }

    /// Tells how far it is: a repository counts once, when all that is wanted of it is confirmed.
    pub fn tell(&self, status: &Status) {
        let is = |item: &Item| self.plan.is_confirmed(item);
        let (mut confirmed, mut wanted) = (0, 0);
        for item in &self.wanted {
            let complete = match item {
                Item::Announcements | Item::Mentions(_) => continue,
                Item::Root(_) => is(item),
                Item::States(repo) => {
                    let mentions = Item::Mentions(repo.clone());
                    is(item) && (is(&mentions) || !self.wanted.contains(&mentions))
                }
            };
            wanted += 1;
            confirmed += usize::from(complete);
        }
        status.change(|facts| {
            facts.confirmed = confirmed;
            facts.wanted = wanted;
        });
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::{Identifier, Npub};

    use super::*;
    use crate::relays::{filters::LONGEST_FILTER, plan::Ended};

    fn states() -> Item {
        Item::States(Arc::new(RepoId {
            owner: Npub::from_bytes([1; 32]),
            identifier: Identifier::parse("x").unwrap(),
        }))
    }

    /// The states of a repository are confirmed.
    fn confirmed() -> Memory {
        let mut memory = Memory::new(Instant::now());
        memory.wanted.insert(states());
        memory.refresh(LONGEST_FILTER);
        let job = memory.plan.next_job().unwrap();
        memory.plan.ended(&job, Ended::Complete);
        memory
    }

    fn asked_since(memory: &mut Memory) -> Option<u64> {
        memory.refresh(LONGEST_FILTER);
        memory.plan.close_gaps(LONGEST_FILTER);
        let job = memory.plan.next_job().unwrap();
        assert!(memory.plan.next_job().is_none());
        memory.plan.ended(&job, Ended::Complete);
        job.paged().since.map(|since| since.as_secs())
    }

    #[test]
    fn what_was_given_up_is_asked_for_since_the_earliest_of_it() {
        let mut memory = confirmed();
        memory.lost(5_000);
        memory.lost(4_000);
        memory.lost(6_000);
        memory.retry(1_000, LONGEST_FILTER);
        assert_eq!(asked_since(&mut memory), Some(4_000));
        memory.retry(1_000, LONGEST_FILTER);
        memory.refresh(LONGEST_FILTER);
        assert!(memory.plan.next_job().is_none(), "once");
    }

    #[test]
    fn what_no_subscription_covers_is_polled_and_once_more_when_one_does() {
        let mut memory = confirmed();
        let (wanted, nothing) = (memory.wanted.clone(), BTreeSet::new());
        memory.cover(&wanted, &wanted, 1_000);
        memory.poll(1_500);
        memory.plan.close_gaps(LONGEST_FILTER);
        assert!(memory.plan.next_job().is_none());
        memory.cover(&wanted, &nothing, 2_000);
        memory.poll(3_000);
        assert_eq!(asked_since(&mut memory), Some(2_000));
        memory.poll(4_000);
        assert_eq!(asked_since(&mut memory), Some(3_000));
        memory.cover(&wanted, &wanted, 5_000);
        assert_eq!(asked_since(&mut memory), Some(4_000));
        memory.cover(&wanted, &nothing, 6_000);
        memory.disconnected(9_000);
        memory.plan.reconnected(3_000, LONGEST_FILTER);
        assert_eq!(asked_since(&mut memory), Some(6_000));
    }

    #[test]
    fn however_often_it_is_polled_there_is_one_question_at_a_time() {
        let mut memory = confirmed();
        let (wanted, nothing) = (memory.wanted.clone(), BTreeSet::new());
        memory.cover(&wanted, &nothing, 2_000);
        for at in 3..100 {
            memory.poll(at * 1_000);
            memory.plan.close_gaps(LONGEST_FILTER);
        }
        let job = memory.plan.next_job().unwrap();
        assert!(memory.plan.next_job().is_none());
        assert_eq!(job.paged().since.map(|at| at.as_secs()), Some(2_000));
        memory.plan.ended(&job, Ended::Complete);
        assert_eq!(asked_since(&mut memory), Some(3_000));
    }

    #[test]
    fn what_is_found_again_by_our_relay_as_another_repository_is_asked_for_from_the_start() {
        let mut memory = confirmed();
        let Item::States(repo) = states() else {
            unreachable!()
        };
        let of = |generation| BTreeMap::from([(repo.clone(), generation)]);
        let items = |_: &RepoId| vec![states()];
        memory.generations(of(1), items);
        memory.generations(of(1), items);
        memory.refresh(LONGEST_FILTER);
        assert!(memory.plan.next_job().is_none());
        memory.generations(of(2), items);
        assert_eq!(asked_since(&mut memory), None);
    }

    #[test]
    fn a_connection_that_ends_does_not_make_it_forgotten() {
        let mut memory = confirmed();
        memory.lost(4_000);
        memory.disconnected(9_000);
        memory.plan.reconnected(3_000, LONGEST_FILTER);
        assert_eq!(asked_since(&mut memory), Some(4_000));
    }

    #[test]
    fn what_is_older_than_a_short_interruption_is_asked_for_from_the_start() {
        let mut memory = confirmed();
        memory.lost(4_000);
        memory.retry(4_001, LONGEST_FILTER);
        assert_eq!(asked_since(&mut memory), None);
        let mut memory = confirmed();
        memory.lost(4_000);
        memory.disconnected(9_000);
        memory.plan.reconnected(8_000, LONGEST_FILTER);
        assert_eq!(asked_since(&mut memory), None);
    }
}
