//! Who maintains what: the recursive set (protocol, "Maintainers").
//!
//! The one place that knows the rule. An owner's set is the owner, everyone in the announcement's
//! `maintainers` tag, and, for each of those that has an announcement of the same identifier,
//! everyone in that one's set too.

use std::collections::{BTreeSet, HashMap, VecDeque};

use grasp_proto::words::Npub;

/// Who names whom as maintainer, among all announcements of one identifier. Keeps both directions,
/// so that neither question walks the announcements that have nothing to do with it.
#[derive(Debug, Default)]
pub struct Maintainers {
    names: HashMap<Npub, Vec<Npub>>,
    named_by: HashMap<Npub, BTreeSet<Npub>>,
}

impl Maintainers {
    /// `owner` announces the identifier and names these; what it named before is forgotten.
    pub fn announce(&mut self, owner: Npub, maintainers: &[Npub]) {
        self.withdraw(&owner);
        for maintainer in maintainers {
            self.named_by.entry(*maintainer).or_default().insert(owner);
        }
        self.names.insert(owner, maintainers.to_vec());
    }

    /// `owner` does not announce the identifier any more.
    pub fn withdraw(&mut self, owner: &Npub) {
        for maintainer in self.names.remove(owner).unwrap_or_default() {
            if let Some(by) = self.named_by.get_mut(&maintainer) {
                by.remove(owner);
                if by.is_empty() {
                    self.named_by.remove(&maintainer);
                }
            }
        }
    }

    /// Whom `owner` names, as it stands.
    pub fn named(&self, owner: &Npub) -> &[Npub] {
        self.names.get(owner).map_or(&[], Vec::as_slice)
    }

    /// Whether nobody announces the identifier.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The owner's set; empty if `owner` does not announce the identifier.
    pub fn set_of(&self, owner: &Npub) -> BTreeSet<Npub> {
        if !self.names.contains_key(owner) {
            return BTreeSet::new();
        }
        reach(*owner, |key| self.names.get(key).into_iter().flatten())
    }

    /// The owners whose set `author` is in.
    pub fn owners_trusting(&self, author: &Npub) -> BTreeSet<Npub> {
        // Only those who announce can be named by, so everyone reached but the start is an owner.
        let mut owners = reach(*author, |key| self.named_by.get(key).into_iter().flatten());
        if !self.names.contains_key(author) {
            owners.remove(author);
        }
        owners
    }
}

/// Keys that one set reaches at most, the nearest ones.
const REACH: usize = 2_048;

fn reach<'a, I: Iterator<Item = &'a Npub>>(
    start: Npub,
    next: impl Fn(&Npub) -> I,
) -> BTreeSet<Npub> {
    let mut reached = BTreeSet::from([start]);
    let mut queue = VecDeque::from([start]);
    while let Some(key) = queue.pop_front() {
        for other in next(&key) {
            if reached.len() < REACH && reached.insert(*other) {
                queue.push_back(*other);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> Npub {
        Npub::from_bytes([n; 32])
    }

    fn keys(all: &[u8]) -> BTreeSet<Npub> {
        all.iter().copied().map(key).collect()
    }

    #[test]
    fn sets_are_recursive_and_cycles_end() {
        let mut maintainers = Maintainers::default();
        maintainers.announce(key(1), &[key(2)]);
        assert_eq!(maintainers.set_of(&key(1)), keys(&[1, 2]));
        maintainers.announce(key(2), &[key(3), key(1)]);
        assert_eq!(maintainers.set_of(&key(1)), keys(&[1, 2, 3]));
        assert_eq!(maintainers.set_of(&key(3)), keys(&[]));
        assert_eq!(maintainers.owners_trusting(&key(3)), keys(&[1, 2]));
        maintainers.announce(key(2), &[]);
        assert_eq!(maintainers.owners_trusting(&key(3)), keys(&[]));
        maintainers.withdraw(&key(1));
        maintainers.withdraw(&key(2));
        assert!(maintainers.is_empty() && maintainers.named_by.is_empty());
    }

    proptest! {
        #[test]
        fn both_directions_agree(
            edges in prop::collection::vec((0u8..6, prop::collection::vec(0u8..8, 0..4)), 0..8),
            gone in prop::option::of(0u8..6),
        ) {
            let mut maintainers = Maintainers::default();
            for (owner, named) in edges {
                let named: Vec<_> = named.into_iter().filter(|n| *n != owner).map(key).collect();
                maintainers.announce(key(owner), &named);
            }
            if let Some(gone) = gone {
                maintainers.withdraw(&key(gone));
            }
            for owner in 0..6 {
                for author in 0..8 {
                    prop_assert_eq!(
                        maintainers.set_of(&key(owner)).contains(&key(author)),
                        maintainers.owners_trusting(&key(author)).contains(&key(owner))
                    );
                }
            }
        }
    }
}
