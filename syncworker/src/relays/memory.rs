//! What is remembered of a remote relay from one connection to the next, while its lease lasts.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{filters::Item, plan::Plan, status::Status};

/// What outlives a connection, but not a lease.
pub(super) struct Memory {
    pub plan: Plan,
    pub wanted: BTreeSet<Item>,
    /// What there is no room for a live subscription for.
    pub left_over: BTreeSet<Item>,
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
            left_over: BTreeSet::new(),
            full_pass,
            lost_since: None,
        }
    }

    /// Plans for what is wanted.
    pub fn refresh(&mut self, longest: usize) {
        self.plan.want(&self.wanted, longest);
    }

    /// Live events made at `since` or later were given up.
    pub fn lost(&mut self, since: u64) {
        self.lost_since = Some(self.lost_since.map_or(since, |lost| lost.min(since)));
    }

    /// The connection is lost. What came since `since` is not known to be judged, nor is what was
    /// given up before.
    pub fn disconnected(&mut self, since: u64) {
        self.lost(since);
        self.plan
            .disconnected(self.lost_since.take().unwrap_or(since));
    }

    /// What failed, and what was given up, is asked for again: from the start if that was before
    /// `oldest`.
    pub fn retry(&mut self, oldest: u64, longest: usize) {
        self.plan.retry();
        if let Some(since) = self.lost_since.take() {
            self.plan.missed(since, oldest, longest);
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
    use super::*;
    use crate::relays::{filters::LONGEST_FILTER, plan::Ended};

    /// Layer 1 is confirmed.
    fn confirmed() -> Memory {
        let mut memory = Memory::new(Instant::now());
        memory.wanted.insert(Item::Announcements);
        memory.refresh(LONGEST_FILTER);
        let job = memory.plan.next_job().unwrap();
        memory.plan.ended(&job, Ended::Complete);
        memory
    }

    fn asked_since(memory: &mut Memory) -> Option<u64> {
        memory.refresh(LONGEST_FILTER);
        let job = memory.plan.next_job().unwrap();
        assert!(memory.plan.next_job().is_none());
        job.filter.since.map(|since| since.as_secs())
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
