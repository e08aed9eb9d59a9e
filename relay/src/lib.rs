//! relay

pub mod config;
pub mod domain;
pub mod verdict;

pub use config::Config;
