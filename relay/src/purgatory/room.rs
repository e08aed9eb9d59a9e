//! How much memory what waits takes, of each author and of all: who can announce can let wait, and what
//! waits is in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use grasp_proto::words::Npub;

use crate::tally::Tally;

/// The most that may wait, in bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomLimits {
    /// Of all authors.
    pub of_all: usize,
    /// Of one author.
    pub of_author: usize,
}

impl RoomLimits {
    /// Where nothing else is said: in tests.
    pub const DEFAULT: Self = Self {
        of_all: 256 << 20,
        of_author: 64 << 20,
    };
}

/// Nothing more may wait for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Of this author.
    #[error(
        "too much by this author waits in purgatory; push what was announced, or try again later"
    )]
    Author,
    /// Of anybody.
    #[error("purgatory is full, try again later")]
    All,
}

/// The room that entries of one store take. Bounded by what waits.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Tally<Npub>>);

impl Room {
    fn taken(&self) -> MutexGuard<'_, Tally<Npub>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry of so many bytes came in.
    pub(super) fn take(&self, author: Npub, bytes: usize) {
        self.taken().add(author, bytes);
    }

    /// It has gone.
    pub(super) fn give_back(&self, author: Npub, bytes: usize) {
        self.taken().remove(&author, bytes);
    }

    /// What one author takes, and all do.
    pub(super) fn taken_by(&self, author: &Npub) -> (usize, usize) {
        let taken = self.taken();
        (taken.of(author), taken.all())
    }

    /// What all take.
    pub(super) fn taken_by_all(&self) -> usize {
        self.taken().all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back() {
        let room = Room::default();
        let (one, two) = (Npub::from_bytes([1; 32]), Npub::from_bytes([2; 32]));
        room.take(one, 10);
        room.take(two, 5);
        room.take(one, 1);
        assert_eq!(room.taken_by(&one), (11, 16));
        room.give_back(one, 11);
        assert_eq!(room.taken_by(&one), (0, 5));
        assert_eq!(room.taken_by(&two), (5, 5));
        room.give_back(two, 5);
        assert_eq!(room.taken().largest(), None);
    }
}
