//! The syncworker: the legs of graspd.

pub mod config;

pub use config::Config;
