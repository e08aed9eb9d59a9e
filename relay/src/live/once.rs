//! Ephemeral events that were passed on lately. Nothing else remembers them: each goes out once,
//! however often it comes.

use std::collections::{HashSet, VecDeque};

use nostr::EventId;

/// How many are remembered, the latest.
const REMEMBERED: usize = 4_096;

/// At most `REMEMBERED` ids.
#[derive(Debug, Default)]
pub(super) struct Once {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl Once {
    /// Whether it comes for the first time, as far as is remembered.
    pub(super) fn is_first(&mut self, id: EventId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> EventId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
        EventId::from_byte_array(bytes)
    }

    #[test]
    fn the_latest_are_remembered_and_no_more() {
        let mut once = Once::default();
        for n in 0..=REMEMBERED {
            assert!(once.is_first(id(n)));
            assert!(!once.is_first(id(n)));
        }
        assert_eq!((once.ids.len(), once.order.len()), (REMEMBERED, REMEMBERED));
        assert!(once.is_first(id(0)));
        assert!(!once.is_first(id(REMEMBERED)));
    }
}
