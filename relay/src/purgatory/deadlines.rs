//! Which entries come first, without looking at the others: which are due, and which is the oldest.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use crate::clock::Moment;

/// Keys ordered by a moment each has, most often its deadline. As many as the store beside it has
/// entries.
#[derive(Debug)]
pub struct Deadlines<K>(Mutex<BTreeSet<(Moment, K)>>);

impl<K: Ord> Default for Deadlines<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> Deadlines<K> {
    /// The moment of `key` was `old` and is `new`.
    pub fn change(&self, key: &K, old: Option<Moment>, new: Option<Moment>) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = old {
            set.remove(&(old, key.clone()));
        }
        if let Some(new) = new {
            set.insert((new, key.clone()));
        }
    }

    /// The earliest moment of all.
    pub fn first(&self) -> Option<Moment> {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.first().map(|(moment, _)| *moment)
    }

    /// At most `most` keys whose deadline has come, the earliest first.
    pub fn due(&self, now: Moment, most: usize) -> Vec<K> {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(most)
            .map(|(_, key)| key.clone())
            .collect()
    }
}
