//! How large an event may be: a state names every ref of its repository, so that it may be larger
//! than others.

use nostr::Kind;

use crate::nip34::STATE;

/// The largest events taken, in bytes of their JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSizeLimits {
    /// Of all kinds but these.
    pub most_kinds: usize,
    /// Kind 30618.
    pub states: usize,
}

impl EventSizeLimits {
    /// The limit of one kind.
    pub fn of(&self, kind: Kind) -> usize {
        match kind == STATE {
            true => self.states,
            false => self.most_kinds,
        }
    }

    /// What an event of no kind may exceed.
    pub fn of_any_kind(&self) -> usize {
        self.most_kinds.max(self.states)
    }
}
