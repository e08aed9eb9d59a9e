//! What the tests are written in.

mod backend;
pub mod collector;
pub mod events;
pub mod git;
pub mod host;
pub mod nostr;
pub mod processes;
pub mod project;
pub mod quiet_relay;
pub mod service;
pub mod web;

use std::{future::Future, time::Duration};

pub use self::{
    events::{Draft, Event, Keys},
    git::{Out, Repo},
    nostr::Client,
    project::Project,
    service::Service,
};

/// How long something that must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The answer to what goes to purgatory, word for word.
pub const PURGATORY: &str = "purgatory: won't be served until git data arrives";

/// Waits until `condition` holds; fails the test, naming `what`, if it never does.
pub async fn until<F>(what: &str, condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    until_within(PATIENCE, what, condition).await;
}

/// The same of what takes its time: so long at most.
pub async fn until_within<F>(patience: Duration, what: &str, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(patience, waiting).await.is_ok(),
        "never came true: {what}"
    );
}

/// The value of a future that must not take for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("took too long: {what}"))
}
