//! What is allowed: decisions over plain data. Who carries them out is elsewhere.

pub mod curation;
pub mod deletion;
pub mod lists;
pub mod prs;
pub mod push;
pub mod related;
pub mod satisfiable;
pub mod vanish;
