//! What is allowed: decisions over plain data. Who carries them out is elsewhere.

pub mod curation;
pub mod deletion;
pub mod event_size;
pub mod lists;
pub mod prs;
pub mod push;
pub mod related;
pub mod reposts;
pub mod satisfiable;
pub mod vanish;
