//! Which state or pull request can be released: pure.

use std::{cmp::Ordering, collections::BTreeSet};

use grasp_proto::words::{Oid, RefKind};

use crate::nip34::{later, pull_request::PullRequest, state::State};

/// The objects that what waits is about, sorted by what they must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of any kind.
    pub oids: BTreeSet<Oid>,
    /// Commits.
    pub commits: BTreeSet<Oid>,
}

impl Wanted {
    /// Adds what a state names. A head must be a commit.
    pub fn state(&mut self, state: &State) {
        for (name, oid) in state.objects() {
            match name.kind() {
                RefKind::Head => self.commits.insert(oid),
                _ => self.oids.insert(oid),
            };
        }
    }

    /// Adds what a pull request names.
    pub fn pull_request(&mut self, request: &PullRequest) {
        self.commits.extend(request.commit);
    }

    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        self.oids.is_empty() && self.commits.is_empty()
    }
}

/// Whether every object that a state names is here.
pub fn satisfiable(state: &State, absent: &BTreeSet<Oid>) -> bool {
    !state.never_arrives() && state.objects().all(|(_, oid)| !absent.contains(&oid))
}

/// The latest of some states, by the one order.
pub fn latest(states: impl IntoIterator<Item = State>) -> Option<State> {
    states
        .into_iter()
        .reduce(|best, other| match later(&other.event, &best.event) {
            Ordering::Greater => other,
            _ => best,
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::nip34::{
        STATE,
        testing::{event, keys},
    };

    fn state(seed: u8, at: u64, refs: &[(&str, &str)]) -> State {
        let mut tags: Vec<Vec<&str>> = vec![vec!["d", "x"]];
        tags.extend(refs.iter().map(|(name, value)| vec![*name, *value]));
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        State::read(Arc::new(event(&keys(seed), STATE, at, &tags))).unwrap()
    }

    #[test]
    fn a_state_needs_all_of_its_objects() {
        let (a, b) = ("aa".repeat(20), "bb".repeat(20));
        let both = state(1, 1, &[("refs/heads/m", &a), ("refs/tags/t", &b)]);
        let mut wanted = Wanted::default();
        wanted.state(&both);
        let (a, b) = (Oid::from_hex(&a).unwrap(), Oid::from_hex(&b).unwrap());
        assert_eq!((wanted.commits, wanted.oids), ([a].into(), [b].into()));
        assert!(satisfiable(&both, &BTreeSet::new()));
        assert!(!satisfiable(&both, &BTreeSet::from([b])));
        assert!(!satisfiable(
            &state(1, 1, &[("refs/heads/m", "short")]),
            &BTreeSet::new()
        ));
    }

    proptest! {
        #[test]
        fn the_latest_is_the_same_in_any_order(times in prop::collection::vec((1u8..4, 1u64..4), 1..6)) {
            let states: Vec<State> = times.iter().map(|(seed, at)| state(*seed, *at, &[])).collect();
            let forward = latest(states.iter().cloned()).unwrap().id();
            let backward = latest(states.iter().rev().cloned()).unwrap().id();
            prop_assert_eq!(forward, backward);
        }
    }
}
