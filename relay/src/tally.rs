//! How much each takes, and all together.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

/// Amounts by whom they are charged to. As long as there are some who take anything.
#[derive(Debug)]
pub(crate) struct Tally<K> {
    of: HashMap<K, usize>,
    all: usize,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self {
            of: HashMap::new(),
            all: 0,
        }
    }
}

impl<K: Eq + Hash> Tally<K> {
    /// It takes so much more.
    pub(crate) fn add(&mut self, key: K, amount: usize) {
        *self.of.entry(key).or_default() += amount;
        self.all += amount;
    }

    /// It takes so much less, at most all that it takes.
    pub(crate) fn remove<Q>(&mut self, key: &Q, amount: usize)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let Some(own) = self.of.get_mut(key) else {
            return;
        };
        let less = amount.min(*own);
        *own -= less;
        self.all -= less;
        if *own == 0 {
            self.of.remove(key);
        }
    }

    /// How much it takes.
    pub(crate) fn of<Q>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.of.get(key).copied().unwrap_or_default()
    }

    /// How much all take.
    pub(crate) fn all(&self) -> usize {
        self.all
    }

    /// What each takes.
    #[cfg(test)]
    pub(crate) fn amounts(&self) -> impl Iterator<Item = usize> {
        self.of.values().copied()
    }

    /// Who takes most, and how much.
    pub(crate) fn largest(&self) -> Option<(&K, usize)> {
        let largest = self.of.iter().max_by_key(|(_, amount)| **amount);
        largest.map(|(key, amount)| (key, *amount))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back() {
        let mut tally = Tally::default();
        tally.add("one", 10);
        tally.add("two", 5);
        tally.add("one", 1);
        assert_eq!((tally.of("one"), tally.all()), (11, 16));
        assert_eq!(tally.largest(), Some((&"one", 11)));
        tally.remove("one", 11);
        assert_eq!((tally.of("one"), tally.all()), (0, 5));
        tally.remove("one", 1);
        assert_eq!((tally.of("two"), tally.all()), (5, 5));
        tally.remove("two", 9);
        assert_eq!((tally.all(), tally.largest()), (0, None));
    }
}
