//! The syncworker, the legs: fetches what is missing from the rest of the network.
//!
//! - [`hunt`]: git data that waiting events name, looked for by identifier
//! - [`relays`]: events of other relays, live and from the past
//! - [`net`]: outgoing connections, and where they may go
//! - [`config`]: what we are told
//!
//! [`run`] listens nowhere, but for monitoring where that is set, and keeps nothing: the relay says what to look for, gitd takes it in. Either of
//! them may be away at any time, at the start too, and is waited for. On the stop nothing new is
//! begun, fetches that run may end within their grace, and what is leased is handed back.

pub mod config;
pub mod hunt;
pub mod net;
pub mod relays;

use std::sync::Arc;

use futures::future::BoxFuture;
use grasp_proto::{
    process::{Ready, Standing, metrics},
    transport::{self, AuthorizedChannel, Role},
};
use tokio_util::sync::CancellationToken;

pub use config::Config;
use hunt::{Hunt, context::GrpcContext};
use net::{Allowed, Net};
use relays::{Relays, context::GrpcRelaySync};

/// Why a worker ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task of the process's own.
    #[error("a task of the syncworker ended: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// The listener for monitoring.
    #[error("cannot listen for monitoring (NGIT_WORKER_METRICS_ADDRESS): {0}")]
    Listen(#[from] std::io::Error),
}

/// Ready means: relay and gitd answer to a worker's credential.
struct Reaches {
    relay: AuthorizedChannel,
    gitd: AuthorizedChannel,
}

impl Ready for Reaches {
    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let (relay, gitd) = tokio::join!(
                transport::serves(self.relay.clone()),
                transport::serves(self.gitd.clone()),
            );
            relay.map_err(|why| format!("the relay: {why}"))?;
            gitd.map_err(|why| format!("gitd: {why}"))
        })
    }
}

/// The longest name the relay takes.
const LONGEST_NAME: usize = 64;

/// Names one run of one worker: where it runs, for people, and what no other run is called.
fn name(host: &str) -> String {
    let run = format!("{:016x}", rand::random::<u64>());
    let host: String = host
        .chars()
        .filter(char::is_ascii_graphic)
        .take(LONGEST_NAME - run.len() - 1)
        .collect();
    match host.is_empty() {
        true => format!("worker-{run}"),
        false => format!("{host}-{run}"),
    }
}

/// Runs a worker until `stop`, then lets fetches end within their grace.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    metrics();
    hunt::counts::begin();
    relays::begin_counts();
    let standing = Standing::new(Role::Worker, stop.clone());
    let _listening = standing.listen(config.metrics.as_ref()).await?;
    standing.is_up(Arc::new(Reaches {
        relay: config.relay.authorized(&config.token),
        gitd: config.gitd.authorized(&config.token),
    }));
    if config.allow_non_global {
        tracing::warn!("connecting to addresses that are not on the public internet is allowed");
    }
    if config.test {
        tracing::warn!("NGIT_TEST is set: connecting to this machine is allowed, for tests only");
    }
    let net = Net::new(Allowed {
        non_global: config.allow_non_global,
        loopback: config.test,
    });
    let worker = name(&rustix::system::uname().nodename().to_string_lossy());
    tracing::info!(worker, relay = %config.relay, gitd = %config.gitd, "syncworker is up");
    let sync = GrpcRelaySync::new(worker.clone(), &config.relay, &config.token);
    let relays = Relays::new(Arc::new(sync), net.clone(), config.relays);
    let context = GrpcContext::new(
        worker,
        &config.relay,
        &config.gitd,
        &config.token,
        Arc::new(net),
    );
    let hunt = Hunt::new(Arc::new(context), config.concurrency);
    // One does not go on without the other.
    let stop = stop.child_token();
    let ended = stop.clone().drop_guard();
    let hunting = async {
        let hunted = hunt.run(stop.clone(), config.grace).await;
        drop(ended);
        hunted
    };
    let (hunted, ()) = tokio::join!(hunting, relays.run(stop.clone()));
    Ok(hunted?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_visible_and_of_one_run() {
        for host in ["node-7", "", "ein\u{fc}ber \n", &"x".repeat(300)] {
            let (one, other) = (name(host), name(host));
            assert_ne!(one, other);
            assert!(one.len() <= LONGEST_NAME && one.bytes().all(|b| b.is_ascii_graphic()));
        }
        assert!(name("node-7").starts_with("node-7-"));
        assert!(name("").starts_with("worker-"));
    }
}
