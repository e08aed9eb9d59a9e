//! Ids that expired once, so that sync does not bring them back for ever.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use grasp_proto::words::EventId;

/// How many are remembered; the oldest are forgotten first. A forgotten one costs another wait.
const REMEMBERED: usize = 100_000;

/// A bounded memory of ids.
#[derive(Debug, Default)]
pub struct Expired(Mutex<(HashSet<EventId>, VecDeque<EventId>)>);

impl Expired {
    /// Remembers an id; gives the one that is forgotten for it.
    pub fn remember(&self, id: EventId) -> Option<EventId> {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, order) = &mut *guard;
        if !known.insert(id) {
            return None;
        }
        order.push_back(id);
        if order.len() <= REMEMBERED {
            return None;
        }
        let forgotten = order.pop_front()?;
        known.remove(&forgotten);
        Some(forgotten)
    }

    /// Whether an id expired once and is remembered.
    pub fn contains(&self, id: &EventId) -> bool {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_the_oldest_go() {
        let id = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
            EventId::from_bytes(bytes)
        };
        let expired = Expired::default();
        for n in 0..REMEMBERED {
            assert_eq!(expired.remember(id(n)), None);
        }
        assert_eq!(expired.remember(id(0)), None);
        assert_eq!(expired.remember(id(REMEMBERED)), Some(id(0)));
        assert!(!expired.contains(&id(0)) && expired.contains(&id(1)));
    }
}
