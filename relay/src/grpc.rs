//! The services the relay serves to the other processes.

pub mod push;
