//! The services the relay serves to the other processes.

pub mod admin;
pub mod hunt;
pub mod push;
