//! Which numbers a setting may have.

use std::ops::RangeInclusive;

use super::{BadSetting, Settings, VARIABLES};
use crate::contract::event_size::MAX_EVENT_BYTES;

/// Ten years, in seconds.
const TEN_YEARS: u64 = 10 * 365 * 24 * 60 * 60;
/// A day, in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// More bytes than any file has.
const BYTES: u64 = i64::MAX as u64;
/// The largest event.
const EVENT_BYTES: u64 = MAX_EVENT_BYTES as u64;
/// More than anybody counts to here.
const COUNT: u64 = 1_000_000_000;

/// The settings that are numbers, each with the least and the most.
static BOUNDS: &[(&str, RangeInclusive<u64>)] = &[
    ("NGIT_MIN_FREE_BYTES", 0..=BYTES),
    ("NGIT_MAX_CONNECTIONS", 0..=COUNT),
    ("NGIT_RELAY_MAX_SUBSCRIPTIONS", 1..=100_000),
    ("NGIT_RELAY_FILTER_LIMIT", 1..=1_000_000),
    ("NGIT_RELAY_MAX_EVENT_SIZE_BYTES", 512..=EVENT_BYTES),
    ("NGIT_RELAY_MAX_STATE_SIZE_BYTES", 512..=EVENT_BYTES),
    (
        "NGIT_RELAY_CREATED_AT_UPPER_LIMIT_SECS",
        0..=365 * 24 * 60 * 60,
    ),
    ("NGIT_RELAY_EVENTS_PER_MINUTE", 0..=COUNT),
    ("NGIT_MAX_CONNECTIONS_PER_IP", 0..=COUNT),
    ("NGIT_RELAY_EVENTS_PER_MINUTE_PER_IP", 0..=COUNT),
    ("NGIT_GIT_REQUESTS_PER_MINUTE_PER_IP", 0..=COUNT),
    ("NGIT_GIT_TRANSFERS_PER_IP", 0..=COUNT),
    ("NGIT_GIT_BYTES_PER_HOUR_PER_IP", 0..=BYTES),
    ("NGIT_METRICS_TOP_N_REPOS", 0..=1000),
    ("NGIT_METRICS_CONNECTION_PER_IP_ABUSE_THRESHOLD", 0..=COUNT),
    ("NGIT_SHUTDOWN_GRACE_SECS", 0..=24 * 60 * 60),
    ("NGIT_GIT_MAX_PACK_BYTES", 1..=BYTES),
    ("NGIT_GIT_MAX_PACK_OBJECTS", 1..=4_294_967_295),
    ("NGIT_GIT_MAX_FILE_BYTES", 1..=BYTES),
    ("NGIT_GIT_MAX_METADATA_BYTES", 65_536..=BYTES),
    ("NGIT_GIT_MAX_DELTA_BYTES", 65_536..=BYTES),
    ("NGIT_GIT_MAX_INFLATED_BYTES", 1..=BYTES),
    ("NGIT_GIT_MAX_INFLATED_RATIO", 1..=1_000_000),
    // A push that was judged by what is there is over by then.
    ("NGIT_GIT_UNREACHABLE_RETENTION_SECS", 3600..=10 * TEN_YEARS),
    ("NGIT_GIT_PROCESS_MEMORY_BYTES", 268_435_456..=BYTES),
    ("NGIT_GIT_PROCESS_CPU_SECS", 10..=TEN_YEARS),
    ("NGIT_GIT_MAX_STAGED_PACK_BYTES", 1..=BYTES),
    ("NGIT_UNSIGNED_MAX_BYTES", 0..=BYTES),
    ("NGIT_UNSIGNED_MAX_BYTES_PER_IP", 0..=BYTES),
    ("NGIT_WORKERS", 0..=256),
    ("NGIT_SYNC_WORKER_CONCURRENCY", 1..=1024),
    ("NGIT_SYNC_LOOP_INTERVAL_MS", 1..=DAY_MS),
    ("NGIT_SYNC_DEFAULT_DELAY_SECS", 0..=TEN_YEARS),
    ("NGIT_SYNC_IMMEDIATE_DELAY_MS", 0..=DAY_MS),
    ("NGIT_SYNC_MAX_CONCURRENT_PER_DOMAIN", 1..=10_000),
    ("NGIT_SYNC_MAX_PER_MINUTE_PER_DOMAIN", 1..=1_000_000),
    ("NGIT_SYNC_MAX_PACK_BYTES", 1..=BYTES),
    ("NGIT_NAUGHTY_LIST_EXPIRATION_HOURS", 0..=10 * 365 * 24),
    ("NGIT_PURGATORY_KEPT_ALIVE_HOURS", 0..=10 * 365 * 24),
    ("NGIT_PURGATORY_KEPT_ALIVE_PER_AUTHOR", 0..=1_000_000),
    ("NGIT_PURGATORY_KEPT_ALIVE_PER_DOMAIN", 0..=1_000_000),
    ("NGIT_PURGATORY_MAX_BYTES", 1_048_576..=BYTES),
    ("NGIT_PURGATORY_MAX_BYTES_PER_AUTHOR", 1_048_576..=BYTES),
    ("NGIT_STRANGERS_MAX_BYTES", 0..=BYTES),
    ("NGIT_STRANGERS_MAX_BYTES_PER_AUTHOR", 0..=BYTES),
    ("NGIT_STRANGERS_MAX_BYTES_PER_IP", 0..=BYTES),
    ("NGIT_SYNC_BASE_BACKOFF_SECS", 0..=TEN_YEARS),
    ("NGIT_SYNC_MAX_BACKOFF_SECS", 0..=TEN_YEARS),
    ("NGIT_SYNC_DISCONNECT_CHECK_INTERVAL_SECS", 0..=TEN_YEARS),
    ("NGIT_SYNC_STARTUP_DELAY_SECS", 0..=TEN_YEARS),
    ("NGIT_SYNC_STARTUP_JITTER_MS", 0..=DAY_MS),
    ("NGIT_SYNC_BATCH_WINDOW_MS", 0..=DAY_MS),
    ("NGIT_REJECTED_HOT_CACHE_DURATION_SECS", 0..=TEN_YEARS),
    ("NGIT_REJECTED_COLD_INDEX_EXPIRY_SECS", 0..=TEN_YEARS),
    ("NGIT_ARCHIVE_RETENTION_SECS", 0..=10 * TEN_YEARS),
];

/// The least and the most of a setting that is a number.
pub fn bounds_of(name: &str) -> Option<&'static RangeInclusive<u64>> {
    let entry = BOUNDS.iter().find(|(known, _)| *known == name);
    entry.map(|(_, bounds)| bounds)
}

/// What is right for a setting of these bounds.
fn describe(name: &str, bounds: &RangeInclusive<u64>) -> String {
    let unit = match name.rsplit('_').next() {
        Some("SECS") => " of seconds",
        Some("MS") => " of milliseconds",
        Some("HOURS") => " of hours",
        _ if name.contains("_BYTES") => " of bytes",
        _ => "",
    };
    match (bounds.start(), bounds.end()) {
        (1, most) => format!("a number{unit} greater than 0, {most} at most"),
        (least, most) => format!("a number{unit} from {least} to {most}"),
    }
}

impl Settings {
    /// Refuses numbers that are none or out of their bounds, and switches that are neither on nor off,
    /// whichever process they are for.
    pub fn check_values(&self) -> Result<(), BadSetting> {
        for (name, bounds) in BOUNDS {
            if !self.is_set(name) {
                continue;
            }
            self.parse_with(name, |text| match text.parse::<u64>() {
                Ok(number) if bounds.contains(&number) => Ok(()),
                _ => Err(describe(name, bounds)),
            })?;
        }
        let switches = VARIABLES.iter().filter(|variable| variable.switch);
        for variable in switches {
            self.switch(variable.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::settings::Variable;

    #[test]
    fn defaults_keep_their_own_bounds() {
        for (name, bounds) in BOUNDS {
            let variable = Variable::named(name).unwrap_or_else(|| panic!("{name} is no setting"));
            if let Some(default) = variable.default {
                assert!(bounds.contains(&default.parse().unwrap()), "{name}");
            }
        }
    }

    #[test]
    fn every_default_that_is_a_number_has_bounds() {
        let numbers = VARIABLES.iter().filter(|variable| {
            let default = variable.default.unwrap_or_default();
            default.parse::<u64>().is_ok() && variable.name.starts_with("NGIT_")
        });
        for variable in numbers {
            assert!(bounds_of(variable.name).is_some(), "{}", variable.name);
        }
    }

    #[test]
    fn numbers_out_of_their_bounds_and_switches_that_are_none_are_refused() {
        for (name, value) in [
            ("NGIT_ARCHIVE_RETENTION_SECS", "18446744073709551615"),
            ("NGIT_SYNC_BATCH_WINDOW_MS", "99999999999999999999"),
            ("NGIT_NAUGHTY_LIST_EXPIRATION_HOURS", "-1"),
            ("NGIT_METRICS_TOP_N_REPOS", "1001"),
            ("NGIT_WORKERS", "two"),
            ("NGIT_RELAY_MAX_EVENT_SIZE_BYTES", "0"),
            ("NGIT_SYNC_DISABLE_NEGENTROPY", "perhaps"),
        ] {
            let error = Settings::from_pairs([(name, value.to_owned())]).check_values();
            let said = error.unwrap_err().to_string();
            assert!(said.starts_with(name), "{said}");
        }
        Settings::default().check_values().unwrap();
        let largest = BOUNDS
            .iter()
            .map(|(name, bounds)| (*name, bounds.end().to_string()));
        Settings::from_pairs(largest).check_values().unwrap();
    }
}
