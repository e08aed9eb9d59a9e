//! What is kept alive beyond its deadline because the hunt for it has not had its tries: for how long at
//! most, and how much of it, so that nobody fills purgatory with it. Pure: every method is told the time.
//!
//! In memory alone: after a restart the deadlines are those that they were, and so is the end of the
//! whole; what is due then is asked about again.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use grasp_proto::words::{EventId, Npub, RepoId};

use super::WAITS_FOR;
use crate::{clock::Moment, tally::Tally};

/// How soon what is kept alive is looked at again.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(10 * 60);
/// Entries that are kept alive, of everybody together.
const ENTRIES: usize = 200_000;
/// And their bytes.
const BYTES: usize = 1 << 30;

/// What is kept alive at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptAliveLimits {
    /// How long beyond its deadline; zero: nothing is.
    pub whole: Duration,
    /// Entries of one author.
    pub per_author: usize,
    /// Entries that wait for one domain.
    pub per_domain: usize,
}

impl KeptAliveLimits {
    /// What holds unless it is set.
    pub const DEFAULT: Self = Self {
        whole: Duration::from_secs(3 * 24 * 60 * 60),
        per_author: 20_000,
        per_domain: 20_000,
    };
}

/// One entry of purgatory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WaitingEntry {
    /// The announcement of a repository.
    Announcement(RepoId),
    /// A state.
    State(EventId),
    /// A pull request.
    PullRequest(EventId),
}

/// How far the hunt for an identifier has come, for what waits under it since some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It is not hunted for: a hunt brings nothing, or is over.
    NotHunted,
    /// It has not had its tries since: it is queued, being fetched, or waits for one of these domains.
    Untried(BTreeSet<String>),
    /// It has had them.
    Tried,
}

impl Progress {
    /// Of what waits under several identifiers: untried, if it is under one of them.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Untried(mut these), Self::Untried(those)) => {
                these.extend(those);
                Self::Untried(these)
            }
            (Self::Untried(domains), _) | (_, Self::Untried(domains)) => Self::Untried(domains),
            (Self::Tried, _) | (_, Self::Tried) => Self::Tried,
            (Self::NotHunted, Self::NotHunted) => Self::NotHunted,
        }
    }
}

/// When an entry that is kept alive beyond its deadline is looked at next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptUntil {
    /// Then.
    pub until: Moment,
    /// It has had its tries, and is let go of then.
    pub is_last: bool,
}

/// What becomes of an entry whose deadline has come, or that is looked at again; `None`: it expires.
pub fn judge(
    deadline: Moment,
    kept: Option<KeptUntil>,
    progress: &Progress,
    now: Moment,
    whole: Duration,
) -> Option<KeptUntil> {
    let end = deadline + whole;
    if now >= end {
        return None;
    }
    match (progress, kept) {
        // Of those that were hunted for: it had its tries before its deadline, or its last wait is over.
        (Progress::NotHunted, _)
        | (Progress::Tried, None | Some(KeptUntil { is_last: true, .. })) => None,
        (Progress::Tried, Some(_)) => Some(KeptUntil {
            until: end.min(now + WAITS_FOR),
            is_last: true,
        }),
        (Progress::Untried(_), _) => Some(KeptUntil {
            until: end.min(now + LOOKED_AT_EVERY),
            is_last: false,
        }),
    }
}

#[derive(Debug)]
struct Charge {
    author: Npub,
    domain: Option<String>,
    bytes: usize,
}

/// What is kept alive, charged to its author and to a domain that it waits for.
#[derive(Debug)]
pub struct KeptAlive {
    limits: KeptAliveLimits,
    charges: HashMap<WaitingEntry, Charge>,
    authors: Tally<Npub>,
    domains: Tally<String>,
    bytes: usize,
}

impl KeptAlive {
    /// Nothing is kept alive yet.
    pub fn new(limits: KeptAliveLimits) -> Self {
        Self {
            limits,
            charges: HashMap::new(),
            authors: Tally::default(),
            domains: Tally::default(),
            bytes: 0,
        }
    }

    /// How long beyond its deadline.
    pub fn whole(&self) -> Duration {
        self.limits.whole
    }

    /// How many entries are.
    pub fn len(&self) -> usize {
        self.charges.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.charges.is_empty()
    }

    /// An entry is to be kept alive, or on: whether there is room for it. It waits for one of `domains`;
    /// where none is known, it is queued.
    pub fn keep(
        &mut self,
        entry: &WaitingEntry,
        author: Npub,
        bytes: usize,
        domains: &BTreeSet<String>,
    ) -> bool {
        if let Some(charge) = self.charges.get(entry) {
            let is_charged = match &charge.domain {
                Some(domain) => domains.contains(domain) || domains.is_empty(),
                None => domains.is_empty(),
            };
            if is_charged {
                return true;
            }
            self.forget(entry);
        }
        if self.authors.of(&author) >= self.limits.per_author
            || self.charges.len() >= ENTRIES
            || self.bytes + bytes > BYTES
        {
            return false;
        }
        let has_room = |domain: &&String| self.domains.of(*domain) < self.limits.per_domain;
        let domain = domains.iter().find(has_room).cloned();
        if domain.is_none() && !domains.is_empty() {
            return false;
        }
        self.authors.add(author, 1);
        if let Some(domain) = &domain {
            self.domains.add(domain.clone(), 1);
        }
        self.bytes += bytes;
        let charge = Charge {
            author,
            domain,
            bytes,
        };
        self.charges.insert(entry.clone(), charge);
        true
    }

    /// An entry is kept alive no more.
    pub fn forget(&mut self, entry: &WaitingEntry) {
        if let Some(charge) = self.charges.remove(entry) {
            self.authors.remove(&charge.author, 1);
            if let Some(domain) = &charge.domain {
                self.domains.remove(domain, 1);
            }
            self.bytes -= charge.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEADLINE: Moment = Moment::from_millis(1_000_000_000);
    const WHOLE: Duration = KeptAliveLimits::DEFAULT.whole;

    fn after(minutes: u64) -> Moment {
        DEADLINE + Duration::from_secs(60 * minutes)
    }

    fn entry(n: u8) -> WaitingEntry {
        WaitingEntry::State(EventId::from_bytes([n; 32]))
    }

    fn author(n: u8) -> Npub {
        Npub::from_bytes([n; 32])
    }

    #[test]
    fn it_is_kept_until_it_was_tried_and_as_long_again() {
        let untried = Progress::Untried(BTreeSet::new());
        let judge = |kept, progress: &Progress, now| judge(DEADLINE, kept, progress, now, WHOLE);
        assert_eq!(judge(None, &Progress::Tried, after(0)), None);
        assert_eq!(judge(None, &Progress::NotHunted, after(0)), None);
        let kept = judge(None, &untried, after(0));
        let expected = |minutes, is_last| {
            let until = after(minutes);
            Some(KeptUntil { until, is_last })
        };
        assert_eq!(kept, expected(10, false));
        assert_eq!(judge(kept, &untried, after(10)), expected(20, false));
        let last = judge(kept, &Progress::Tried, after(20));
        assert_eq!(last, expected(50, true));
        assert_eq!(judge(last, &Progress::Tried, after(50)), None);
        // What it waited for has been deleted or has come.
        assert_eq!(judge(kept, &Progress::NotHunted, after(20)), None);
    }

    #[test]
    fn there_is_an_end_to_it() {
        let untried = Progress::Untried(BTreeSet::new());
        let (mut kept, mut now) = (None, DEADLINE);
        while let Some(next) = judge(DEADLINE, kept, &untried, now, WHOLE) {
            (kept, now) = (Some(next), next.until);
        }
        assert_eq!(now, DEADLINE + WHOLE);
        assert_eq!(
            judge(DEADLINE, None, &untried, DEADLINE, Duration::ZERO),
            None
        );
    }

    #[test]
    fn so_much_of_one_author_and_for_one_domain() {
        let mut kept = KeptAlive::new(KeptAliveLimits {
            whole: WHOLE,
            per_author: 2,
            per_domain: 3,
        });
        let domains = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (none, a, both) = (domains(&[]), domains(&["a"]), domains(&["a", "b"]));
        assert!(kept.keep(&entry(1), author(1), 9, &none));
        assert!(kept.keep(&entry(2), author(1), 9, &a));
        assert!(!kept.keep(&entry(3), author(1), 9, &none), "of one author");
        assert!(kept.keep(&entry(2), author(1), 9, &a), "it is already");
        assert!(kept.keep(&entry(4), author(2), 9, &a));
        // It has come to be known what it waits for.
        assert!(kept.keep(&entry(1), author(1), 9, &a));
        assert!(!kept.keep(&entry(5), author(3), 9, &a), "for one domain");
        assert!(kept.keep(&entry(5), author(3), 9, &both));
        kept.forget(&entry(4));
        kept.forget(&entry(4));
        assert!(kept.keep(&entry(6), author(2), 9, &a));
        assert!(!kept.keep(&entry(7), author(4), BYTES, &none), "in bytes");
        assert_eq!((kept.len(), kept.bytes), (4, 36));
    }

    proptest! {
        #[test]
        fn nothing_is_counted_twice_or_left(acts in prop::collection::vec((0u8..20, 0usize..4, any::<bool>()), 1..200)) {
            let limits = KeptAliveLimits { whole: WHOLE, per_author: 4, per_domain: 5 };
            let mut kept = KeptAlive::new(limits);
            for (n, to, stays) in acts {
                let domains: BTreeSet<String> = (0..to).map(|d| format!("d{}", (d + usize::from(n)) % 4)).collect();
                // Each has one author.
                let by = author(n % 3);
                match stays {
                    true => drop(kept.keep(&entry(n), by, usize::from(n), &domains)),
                    false => kept.forget(&entry(n)),
                }
                prop_assert!(kept.authors.amounts().all(|count| (1..=4).contains(&count)));
                prop_assert!(kept.domains.amounts().all(|count| (1..=5).contains(&count)));
                prop_assert_eq!(kept.authors.amounts().sum::<usize>(), kept.len());
                prop_assert_eq!(kept.bytes, kept.charges.values().map(|charge| charge.bytes).sum::<usize>());
            }
        }
    }
}
