//! graspd from end to end: the real processes, the real `git`, a real websocket client.
//!
//! One module a subject, one test a rule, named as a sentence; [`support`] starts services, speaks
//! both protocols and signs events. Nothing waits for a fixed time: what must come is waited for,
//! what must not come is asked for after something that comes later.

#[path = "../../proto/tests/authority/mod.rs"]
mod authority;
mod support;

mod acceptance;
mod backup;
mod command_line;
mod crash;
mod curation;
mod data;
mod day;
mod deletion;
mod deployment;
mod drop_in;
mod events;
mod git_input;
mod hidden;
mod holding;
mod hunt;
mod internals;
mod limits;
mod load;
mod maintainers;
mod observing;
mod operator;
mod owners;
mod pages;
mod promotion;
mod prs;
mod pull_requests;
mod push;
mod readers;
mod references;
mod settings;
mod shutdown;
mod sync;
mod tls;
mod uploads;
mod verdicts;
mod websocket;
mod wire;
