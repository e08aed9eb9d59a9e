//! What a worker is told.

use std::time::Duration;

use grasp_proto::{
    process::settings::{BadSetting, Settings},
    transport::{Endpoint, Token},
};

use crate::relays;

/// Everything a worker is told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the relay's internal services are found.
    pub relay: Endpoint,
    /// Where gitd's internal services are found.
    pub gitd: Endpoint,
    /// Where monitoring is answered, if anywhere.
    pub metrics: Option<Endpoint>,
    /// Its own credential: all it knows of the three.
    pub token: Token,
    /// Identifiers hunted for at once.
    pub concurrency: usize,
    /// Whether it may connect to addresses that are not on the public internet.
    pub allow_non_global: bool,
    /// Whether it may connect to loopback: the quick clock for tests is set.
    pub test: bool,
    /// How long transfers may go on after a stop.
    pub grace: Duration,
    /// Of relay-to-relay sync.
    pub relays: relays::Config,
}

impl Config {
    /// Reads the settings.
    pub fn from_settings(settings: &Settings) -> Result<Self, BadSetting> {
        const CONCURRENCY: &str = "NGIT_SYNC_WORKER_CONCURRENCY";
        settings.check_values()?;
        let expected = "a number from 1 to 1024";
        let concurrency = settings.parse_with(CONCURRENCY, |text| match text.parse::<usize>() {
            Ok(number @ 1..=1024) => Ok(number),
            _ => Err(expected.to_owned()),
        })?;
        let seconds = |name| Ok(Duration::from_secs(settings.parse(name, "seconds")?));
        // 0 is as soon as it goes.
        let some = |name| {
            let seconds: u64 = settings.parse(name, "seconds")?;
            Ok(Duration::from_secs(seconds.max(1)))
        };
        Ok(Self {
            relay: settings.endpoint("NGIT_RELAY_GRPC_ADDRESS")?,
            gitd: settings.endpoint("NGIT_GITD_GRPC_ADDRESS")?,
            metrics: settings.monitoring("NGIT_WORKER_METRICS_ADDRESS")?,
            token: settings.token_of(grasp_proto::transport::Role::Worker)?,
            concurrency,
            allow_non_global: settings.switch("NGIT_SYNC_ALLOW_NON_GLOBAL_TARGETS")?,
            test: settings.switch("NGIT_TEST")?,
            grace: seconds("NGIT_SHUTDOWN_GRACE_SECS")?,
            relays: relays::Config {
                base_backoff: some("NGIT_SYNC_BASE_BACKOFF_SECS")?,
                max_backoff: seconds("NGIT_SYNC_MAX_BACKOFF_SECS")?,
                check_interval: some("NGIT_SYNC_DISCONNECT_CHECK_INTERVAL_SECS")?,
                startup_delay: seconds("NGIT_SYNC_STARTUP_DELAY_SECS")?,
                startup_jitter: Duration::from_millis(
                    settings.parse("NGIT_SYNC_STARTUP_JITTER_MS", "milliseconds")?,
                ),
                disable_negentropy: settings.switch("NGIT_SYNC_DISABLE_NEGENTROPY")?,
            },
        })
    }
}
