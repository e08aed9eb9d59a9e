//! What is allowed: decisions over plain data. Who carries them out is elsewhere.

pub mod deletion;
pub mod push;
pub mod related;
pub mod satisfiable;
