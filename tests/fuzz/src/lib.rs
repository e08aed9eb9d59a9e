//! Fuzz targets: each takes any bytes, and panics if what reads them breaks a promise.
//!
//! A fuzzer runs them through the executable of this crate; `cargo test` runs them over the inputs in
//! `corpus/`, of which those that once found something never leave. See `README.md`.

mod git;
mod relay;
mod service;
mod words;
mod worker;

use tokio::runtime::{Builder, Runtime};

/// Something that reads what strangers send.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called, and its corpus.
    pub name: &'static str,
    /// Reads these bytes.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("words", words::words),
    target("pkt_lines", git::pkt_lines),
    target("receive_pack_request", git::receive_pack_request),
    target("upload_pack_request", git::upload_pack_request),
    target("pack_intake", git::pack_intake),
    target("git_http", git::http),
    target("relay_http", relay::http),
    target("websocket_frames", relay::websocket_frames),
    target("client_messages", relay::client_messages),
    target("negotiation", relay::negotiation),
    target("filters", relay::filters),
    target("nip34_events", relay::nip34_events),
    target("journal_records", relay::journal_records),
    target("git_server_answers", worker::git_server_answers),
    target("relay_answers", worker::relay_answers),
];

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

/// Text out of any bytes.
fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}
