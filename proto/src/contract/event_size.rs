//! How large an event may be on its way. One rule for all of it: what a websocket can be set to take fits
//! into every message on which events travel, so that it is synced, too.

/// The largest event that a relay can be set to take, in bytes of its JSON.
pub const MAX_EVENT_BYTES: usize = 6 << 20;

/// The longest message of another relay that is read: the largest event, and what it is framed in.
pub const MAX_FRAMED_EVENT_BYTES: usize = MAX_EVENT_BYTES + (64 << 10);

/// Bytes of events in one call: as many as the largest has.
pub const MAX_BATCH_BYTES: usize = MAX_EVENT_BYTES;

/// The longest message between relay and workers: a batch, and what is said of it.
pub const MAX_MESSAGE_BYTES: usize = MAX_BATCH_BYTES + (2 << 20);
