//! What the relay is told.

mod about;

use std::{
    fs, io,
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use grasp_proto::{
    client::Networks,
    contract::event_size::MAX_EVENT_BYTES,
    process::{
        disk::DiskSpace,
        settings::{BadSetting, Settings},
    },
    transport::{Endpoint, Tokens},
};
use nostr::{Keys, key::SecretKey};

pub use self::about::About;
use crate::{
    data_path::Accepted,
    domain::Domain,
    hunt::{budget, entry::Delays, queue::Rules},
    maintainers::MaintainerRule,
    policy::{curation::Curation, event_size::EventSizeLimits, prs::Spaces},
    purgatory::{kept::KeptAliveLimits, room::RoomLimits},
    strangers::StrangerLimits,
    sync::rejected::Durations,
    targets::relay_url::Named,
};

/// Where events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// On disk.
    Lmdb,
    /// In memory, events and purgatory both; gone with the process.
    Memory,
}

/// Limits on one connection, told in NIP-11.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most websocket connections at once, if bounded.
    pub max_connections: Option<usize>,
    /// Most subscriptions of one connection.
    pub max_subscriptions: usize,
    /// Most stored events one filter is answered with.
    pub filter_limit: usize,
    /// Largest events.
    pub event_sizes: EventSizeLimits,
    /// How far an event's `created_at` may be ahead of now.
    pub created_at_ahead: Duration,
    /// Most events one connection may send in a minute.
    pub events_per_minute: u32,
}

/// Limits on one client, however many connections it has. 0: none.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// Most connections at once.
    pub connections: usize,
    /// Most events in a minute.
    pub events_per_minute: u64,
    /// Whom they do not hold.
    pub unlimited: Networks,
}

/// Furthest that events may be set to lie ahead: a year.
const MAX_SECONDS_AHEAD: u64 = 365 * 24 * 60 * 60;

fn read_event_size(text: &str) -> Result<usize, String> {
    let expected = format!("a number from 1 to {MAX_EVENT_BYTES}");
    let read = read_positive(text, &expected)?;
    (read <= MAX_EVENT_BYTES).then_some(read).ok_or(expected)
}

fn read_seconds_ahead(text: &str) -> Result<u64, String> {
    let read = text.parse().ok().filter(|secs| *secs <= MAX_SECONDS_AHEAD);
    read.ok_or_else(|| format!("seconds, from 0 to {MAX_SECONDS_AHEAD}"))
}

/// What the hunt for git data goes by.
#[derive(Debug, Clone, Copy)]
pub struct HuntConfig {
    /// Delays, leases and what remote domains are asked.
    pub rules: Rules,
    /// How often the queue is looked at, at least.
    pub look_every: Duration,
    /// The largest pack taken from another server, in bytes.
    pub max_pack_bytes: u64,
}

/// What relay-to-relay sync goes by.
#[derive(Debug, Clone)]
pub struct SyncConfig {
    /// The first relay to sync from.
    pub bootstrap: Option<Named>,
    /// For so long changes are gathered before workers are told.
    pub window: Duration,
    /// How long rejected events are kept.
    pub rejected: Durations,
    /// How long a remote relay stays a worker's unless renewed.
    pub lease: Duration,
    /// Workers begin at once, and the service opens once the first relay has been tried.
    pub begins_at_once: bool,
}

/// The same window under the quick clock, unless it is set.
const QUICK_WINDOW: Duration = Duration::from_millis(200);

impl SyncConfig {
    fn from_settings(settings: &Settings, test: bool) -> Result<Self, BadSetting> {
        const BOOTSTRAP: &str = "NGIT_SYNC_BOOTSTRAP_RELAY_URL";
        const WINDOW: &str = "NGIT_SYNC_BATCH_WINDOW_MS";
        let number = |name, unit: &str| settings.parse::<u64>(name, unit);
        let bootstrap = match settings.get(BOOTSTRAP).map(str::trim) {
            None | Some("") => None,
            Some(_) => Some(settings.parse_with(BOOTSTRAP, read_relay)?),
        };
        let window = match test && !settings.is_set(WINDOW) {
            true => QUICK_WINDOW,
            false => Duration::from_millis(number(WINDOW, "milliseconds")?),
        };
        let hot = number("NGIT_REJECTED_HOT_CACHE_DURATION_SECS", "seconds")?;
        let cold = number("NGIT_REJECTED_COLD_INDEX_EXPIRY_SECS", "seconds")?;
        Ok(Self {
            bootstrap,
            window,
            rejected: Durations {
                hot: Duration::from_secs(hot),
                cold: Duration::from_secs(cold),
            },
            lease: if test { QUICK_LEASE } else { LEASE },
            begins_at_once: number("NGIT_SYNC_STARTUP_DELAY_SECS", "seconds")? == 0,
        })
    }
}

/// A relay's address; without a scheme it is `wss`.
fn read_relay(text: &str) -> Result<Named, String> {
    let text = text.trim();
    let whole = match text.contains("://") {
        true => text.to_owned(),
        false => format!("wss://{text}"),
    };
    Named::parse(&whole)
        .ok_or_else(|| "the address of a relay, like wss://relay.example".to_owned())
}

/// How long a lease holds unless renewed.
const LEASE: Duration = Duration::from_secs(20);
/// The same under the quick clock.
const QUICK_LEASE: Duration = Duration::from_secs(6);

impl HuntConfig {
    fn from_settings(settings: &Settings, test: bool) -> Result<Self, BadSetting> {
        let count = "a number greater than 0";
        let positive = |name| settings.parse_with(name, |text| read_positive(text, count));
        let number = |name, unit: &str| settings.parse::<u64>(name, unit);
        let hours = number("NGIT_NAUGHTY_LIST_EXPIRATION_HOURS", "hours")?;
        let user = number("NGIT_SYNC_DEFAULT_DELAY_SECS", "seconds")?;
        let synced = number("NGIT_SYNC_IMMEDIATE_DELAY_MS", "milliseconds")?;
        let every = positive("NGIT_SYNC_LOOP_INTERVAL_MS")?;
        let rules = Rules {
            delays: Delays {
                user: Duration::from_secs(user),
                synced: Duration::from_millis(synced),
            },
            lease: if test { QUICK_LEASE } else { LEASE },
            limits: budget::Limits {
                at_once: positive("NGIT_SYNC_MAX_CONCURRENT_PER_DOMAIN")?,
                per_minute: positive("NGIT_SYNC_MAX_PER_MINUTE_PER_DOMAIN")?,
                aside_for: Duration::from_secs(hours.saturating_mul(60 * 60)),
            },
        };
        Ok(Self {
            rules,
            look_every: Duration::from_millis(u64::try_from(every).unwrap_or(u64::MAX)),
            max_pack_bytes: u64::try_from(positive("NGIT_SYNC_MAX_PACK_BYTES")?)
                .unwrap_or(u64::MAX),
        })
    }
}

fn kept_alive(settings: &Settings) -> Result<KeptAliveLimits, BadSetting> {
    let number = |name, unit: &str| settings.parse::<u64>(name, unit);
    let entries = |name| settings.parse::<usize>(name, "a number of events");
    let hours = number("NGIT_PURGATORY_KEPT_ALIVE_HOURS", "hours")?;
    Ok(KeptAliveLimits {
        whole: Duration::from_secs(hours.saturating_mul(60 * 60)),
        per_author: entries("NGIT_PURGATORY_KEPT_ALIVE_PER_AUTHOR")?,
        per_domain: entries("NGIT_PURGATORY_KEPT_ALIVE_PER_DOMAIN")?,
    })
}

fn purgatory_room(settings: &Settings) -> Result<RoomLimits, BadSetting> {
    let bytes = |name| settings.parse::<usize>(name, "a number of bytes");
    Ok(RoomLimits {
        of_all: bytes("NGIT_PURGATORY_MAX_BYTES")?,
        of_author: bytes("NGIT_PURGATORY_MAX_BYTES_PER_AUTHOR")?,
    })
}

fn strangers(settings: &Settings) -> Result<StrangerLimits, BadSetting> {
    let bytes = |name| settings.parse::<usize>(name, "a number of bytes");
    Ok(StrangerLimits {
        of_all: bytes("NGIT_STRANGERS_MAX_BYTES")?,
        of_author: bytes("NGIT_STRANGERS_MAX_BYTES_PER_AUTHOR")?,
        of_client: settings.parse("NGIT_STRANGERS_MAX_BYTES_PER_IP", "a number of bytes")?,
    })
}

/// What becomes of what is deleted.
#[derive(Debug, Clone, Copy)]
pub struct Deletions {
    /// How long what is taken out of service is held.
    pub held_for: Duration,
    /// Whether requests to delete and to vanish are acted on.
    pub acted_on: bool,
}

impl Deletions {
    fn from_settings(settings: &Settings) -> Result<Self, BadSetting> {
        let held_for = settings.parse("NGIT_ARCHIVE_RETENTION_SECS", "seconds")?;
        Ok(Self {
            held_for: Duration::from_secs(held_for),
            acted_on: !settings.switch("NGIT_DELETION_REQUEST_DISRESPECTOR")?,
        })
    }
}

/// Everything the relay is told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The service's public name.
    pub domain: Domain,
    /// The public listener.
    pub bind: SocketAddr,
    /// Where events and the journal lie.
    pub data_path: PathBuf,
    /// Where events are kept.
    pub backend: Backend,
    /// NIP-11 name.
    pub name: String,
    /// NIP-11 description.
    pub description: String,
    /// What else NIP-11 says of the service and its operator.
    pub about: About,
    /// The service's own keys.
    pub keys: Keys,
    /// Where they are to be kept, if they were made just now.
    pub new_key_file: Option<PathBuf>,
    /// Peers whose forwarded client address is believed.
    pub trusted_proxies: Networks,
    /// Limits on one connection.
    pub limits: Limits,
    /// Limits on one client.
    pub client_limits: ClientLimits,
    /// The hunt for git data.
    pub hunt: HuntConfig,
    /// What is kept alive in purgatory for its sake.
    pub kept_alive: KeptAliveLimits,
    /// What may be stored of authors who do not belong here.
    pub strangers: StrangerLimits,
    /// How much may wait in purgatory.
    pub purgatory_room: RoomLimits,
    /// Relay-to-relay sync.
    pub sync: SyncConfig,
    /// Which repositories and authors are wanted here.
    pub curation: Curation,
    /// The addresses that contributors have here (GRASP-06).
    pub spaces: Spaces,
    /// What becomes of what is deleted.
    pub deletions: Deletions,
    /// Whose states count for a repository.
    pub maintainer_rule: MaintainerRule,
    /// Workers run, so that what is missing here is looked for elsewhere (GRASP-02).
    pub hunts: bool,
    /// Whether `/metrics` answers.
    pub metrics: bool,
    /// Connections from one address from which on it is suspicious.
    pub abuse_threshold: usize,
    /// The quick clock for tests.
    pub test: bool,
    /// Where the relay's own internal services listen.
    pub grpc: Endpoint,
    /// Where gitd's internal services are found.
    pub gitd_grpc: Endpoint,
    /// Where gitd's smart HTTP is found.
    pub gitd_http: Endpoint,
    /// Where the metrics of the whole service are answered, if not at the public listener.
    pub public_metrics_address: Option<Endpoint>,
    /// What the operator has accepted of the data path.
    pub accepted: Accepted,
    /// Where repositories lie, if that is on this machine: to tell of a disk that is full.
    pub git_data_path: PathBuf,
    /// Free space below which nothing new is taken, in bytes.
    pub min_free_bytes: u64,
    /// Where monitoring is answered besides, if anywhere.
    pub metrics_address: Option<Endpoint>,
    /// The credentials of internal calls.
    pub tokens: Tokens,
    /// How long transfers may go on after a stop.
    pub grace: Duration,
}

impl Config {
    /// Reads the settings. Nothing is written: a key that the service has not had yet is kept by
    /// [`Config::keep_key`].
    pub fn from_settings(settings: &Settings) -> Result<Self, BadSetting> {
        refuse_what_is_not_here(settings)?;
        settings.check_values()?;
        let bind: SocketAddr =
            settings.parse("NGIT_BIND_ADDRESS", "an address like 0.0.0.0:7334")?;
        let domain = match settings.get("NGIT_DOMAIN") {
            Some(_) => settings.parse_with("NGIT_DOMAIN", |text| {
                Domain::parse(text).ok_or_else(|| "host or host:port".to_owned())
            })?,
            None if bind.ip().is_loopback() => Domain::local(bind.port()),
            None => {
                return Err(settings.bad(
                    "NGIT_DOMAIN",
                    "set to the public host[:port], as the listener is not on loopback",
                ));
            }
        };
        let data_path = PathBuf::from(settings.get("NGIT_RELAY_DATA_PATH").unwrap_or_default());
        let backend = settings.parse_with("NGIT_DATABASE_BACKEND", |text| match text {
            "lmdb" => Ok(Backend::Lmdb),
            "memory" => Ok(Backend::Memory),
            _ => Err("lmdb or memory".to_owned()),
        })?;
        let trusted_proxies = settings.parse_with("NGIT_TRUSTED_PROXY_CIDRS", Networks::parse)?;
        let count = "a number greater than 0";
        let positive = |name| settings.parse_with(name, |text| read_positive(text, count));
        let event_size = |name| settings.parse_with(name, read_event_size);
        let unlimited_if_0 = "a number; 0: no limit";
        let max_connections = match settings.get("NGIT_MAX_CONNECTIONS") {
            Some(_) => Some(settings.parse("NGIT_MAX_CONNECTIONS", unlimited_if_0)?),
            None => None,
        };
        let limits = Limits {
            max_connections: max_connections.filter(|most| *most > 0),
            max_subscriptions: positive("NGIT_RELAY_MAX_SUBSCRIPTIONS")?,
            filter_limit: positive("NGIT_RELAY_FILTER_LIMIT")?,
            event_sizes: EventSizeLimits {
                most_kinds: event_size("NGIT_RELAY_MAX_EVENT_SIZE_BYTES")?,
                states: event_size("NGIT_RELAY_MAX_STATE_SIZE_BYTES")?,
            },
            created_at_ahead: Duration::from_secs(
                settings
                    .parse_with("NGIT_RELAY_CREATED_AT_UPPER_LIMIT_SECS", read_seconds_ahead)?,
            ),
            events_per_minute: settings.parse("NGIT_RELAY_EVENTS_PER_MINUTE", unlimited_if_0)?,
        };
        let client_limits = ClientLimits {
            connections: settings.parse("NGIT_MAX_CONNECTIONS_PER_IP", unlimited_if_0)?,
            events_per_minute: settings
                .parse("NGIT_RELAY_EVENTS_PER_MINUTE_PER_IP", unlimited_if_0)?,
            unlimited: settings.parse_with("NGIT_UNLIMITED_CIDRS", Networks::parse)?,
        };
        let name = settings
            .get("NGIT_RELAY_NAME")
            .map_or_else(|| format!("{domain} grasp relay"), str::to_owned);
        let description = settings.get("NGIT_RELAY_DESCRIPTION").map_or_else(
            || format!("Git repositories with Nostr permissions, served at {domain}"),
            str::to_owned,
        );
        let test = settings.switch("NGIT_TEST")?;
        let (keys, new_key_file) = owner_keys(settings, &data_path, backend)?;
        Ok(Self {
            hunt: HuntConfig::from_settings(settings, test)?,
            kept_alive: kept_alive(settings)?,
            purgatory_room: purgatory_room(settings)?,
            strangers: strangers(settings)?,
            sync: SyncConfig::from_settings(settings, test)?,
            curation: Curation::from_settings(settings, &domain)?,
            spaces: Spaces::new(domain.clone(), settings.switch("NGIT_GRASP06_ENABLE")?),
            deletions: Deletions::from_settings(settings)?,
            maintainer_rule: settings.parse_with("NGIT_MAINTAINER_RULE", |text| {
                MaintainerRule::parse(text).ok_or_else(|| "confirmed or listed".to_owned())
            })?,
            // What else may be wrong with it, whoever starts them says.
            hunts: settings.get("NGIT_WORKERS").map(str::trim) != Some("0"),
            about: About::from_settings(settings)?,
            keys,
            new_key_file,
            domain,
            bind,
            data_path,
            backend,
            name,
            description,
            trusted_proxies,
            limits,
            client_limits,
            metrics: settings.switch("NGIT_METRICS_ENABLED")?,
            abuse_threshold: settings.parse(
                "NGIT_METRICS_CONNECTION_PER_IP_ABUSE_THRESHOLD",
                "a number; 0: nobody counts as suspicious",
            )?,
            test,
            grpc: settings.endpoint("NGIT_RELAY_GRPC_ADDRESS")?,
            gitd_grpc: settings.endpoint("NGIT_GITD_GRPC_ADDRESS")?,
            gitd_http: settings.endpoint("NGIT_GITD_HTTP_ADDRESS")?,
            public_metrics_address: settings.monitoring("NGIT_METRICS_ADDRESS")?,
            accepted: Accepted::from_settings(settings)?,
            git_data_path: PathBuf::from(settings.get("NGIT_GIT_DATA_PATH").unwrap_or_default()),
            min_free_bytes: DiskSpace::floor(settings)?,
            metrics_address: settings.monitoring("NGIT_RELAY_METRICS_ADDRESS")?,
            tokens: settings.tokens()?,
            grace: Duration::from_secs(settings.parse("NGIT_SHUTDOWN_GRACE_SECS", "seconds")?),
        })
    }

    /// Keeps the service's key, if it was made just now. To be called once the data directory is this
    /// process's own.
    pub fn keep_key(&self) -> io::Result<()> {
        match &self.new_key_file {
            Some(path) => keep_key(path, &self.keys),
            None => Ok(()),
        }
    }
}

/// What the server before could do and this one cannot, where going on without it would open what was
/// meant to be closed, or be found by nobody.
fn refuse_what_is_not_here(settings: &Settings) -> Result<(), BadSetting> {
    const PRIVATE: &str = "NGIT_PRIVATE_MODE";
    if settings.switch(PRIVATE)? {
        let right = "false: there is no private mode here, everybody would be served";
        return Err(settings.bad(PRIVATE, right));
    }
    settings.parse_with("NGIT_BASE_PATH", |path| match path {
        "/" => Ok(()),
        _ => Err("/: a service is at the root of its domain here".to_owned()),
    })
}

fn read_positive(text: &str, expected: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(expected.to_owned()),
        Ok(number) => Ok(number),
    }
}

/// The file the service's key is kept in.
const OWNER_FILE: &str = ".relay-owner.nsec";

/// The service's keys, and where they are to be kept if they are new.
fn owner_keys(
    settings: &Settings,
    data: &Path,
    backend: Backend,
) -> Result<(Keys, Option<PathBuf>), BadSetting> {
    const NAME: &str = "NGIT_RELAY_OWNER_NSEC";
    let read = |text: &str| {
        SecretKey::parse(text.trim())
            .map(|key| (Keys::new(key), None))
            .map_err(|_| settings.bad(NAME, "an nsec or 64 hex digits"))
    };
    if let Some(text) = settings.secret(NAME, "NGIT_RELAY_OWNER_NSEC_FILE")? {
        return read(&text);
    }
    let kept = data.join(OWNER_FILE);
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let credential = credentials.map(|directory| directory.join("relay_owner_nsec"));
    let files = [PathBuf::from(OWNER_FILE), kept.clone()];
    for path in credential.into_iter().chain(files) {
        match fs::read_to_string(&path) {
            Ok(text) => return read(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A key that is there and cannot be read is not replaced by another.
            Err(error) => {
                let path = path.display();
                let right = format!("set, as the key in {path} cannot be read ({error})");
                return Err(settings.bad(NAME, right));
            }
        }
    }
    Ok((Keys::generate(), (backend == Backend::Lmdb).then_some(kept)))
}

fn keep_key(path: &Path, keys: &Keys) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", keys.secret_key().to_secret_hex())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&'static str, &str)]) -> Settings {
        let token = "0123456789abcdef".to_owned();
        let common = [
            ("NGIT_RELAY_GRPC_ADDRESS", "unix:/tmp/r".to_owned()),
            ("NGIT_GITD_GRPC_ADDRESS", "unix:/tmp/g".to_owned()),
            ("NGIT_GITD_HTTP_ADDRESS", "unix:/tmp/h".to_owned()),
            ("NGIT_INTERNAL_TOKEN_RELAY", token.clone()),
            ("NGIT_INTERNAL_TOKEN_GITD", token.clone()),
            ("NGIT_INTERNAL_TOKEN_WORKER", token),
            ("NGIT_DATABASE_BACKEND", "memory".to_owned()),
        ];
        let own = pairs
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        Settings::from_pairs(common.into_iter().chain(own))
    }

    #[test]
    fn a_domain_is_assumed_on_loopback_only() {
        let local = Config::from_settings(&settings(&[("NGIT_BIND_ADDRESS", "127.0.0.1:99")]));
        assert_eq!(local.unwrap().domain.to_string(), "localhost:99");
        let open = Config::from_settings(&settings(&[("NGIT_BIND_ADDRESS", "0.0.0.0:99")]));
        assert!(open.unwrap_err().to_string().starts_with("NGIT_DOMAIN"));
    }

    #[test]
    fn bad_values_name_themselves() {
        for (name, value) in [
            ("NGIT_RELAY_FILTER_LIMIT", "0"),
            ("NGIT_RELAY_MAX_EVENT_SIZE_BYTES", "100000000"),
            ("NGIT_RELAY_MAX_STATE_SIZE_BYTES", "0"),
            ("NGIT_RELAY_MAX_STATE_SIZE_BYTES", "100000000"),
            ("NGIT_RELAY_CREATED_AT_UPPER_LIMIT_SECS", "-1"),
            ("NGIT_RELAY_CREATED_AT_UPPER_LIMIT_SECS", "99999999999"),
            ("NGIT_OPERATOR_PUBKEY", "npub1nonsense"),
            ("NGIT_RELAY_CONTACT", "call me"),
            ("NGIT_RELAY_ICON", "icon.svg"),
            ("NGIT_RELAY_BANNER", "ftp://relay.example/banner.png"),
            ("NGIT_RELAY_TERMS_OF_SERVICE", "be kind"),
            ("NGIT_SYNC_LOOP_INTERVAL_MS", "0"),
            ("NGIT_SYNC_MAX_CONCURRENT_PER_DOMAIN", "none"),
            ("NGIT_SYNC_MAX_PER_MINUTE_PER_DOMAIN", "0"),
            ("NGIT_SYNC_DEFAULT_DELAY_SECS", "-1"),
            ("NGIT_SYNC_IMMEDIATE_DELAY_MS", "soon"),
            ("NGIT_SYNC_MAX_PACK_BYTES", "0"),
            ("NGIT_NAUGHTY_LIST_EXPIRATION_HOURS", "half"),
            ("NGIT_SYNC_BOOTSTRAP_RELAY_URL", "https://relay.example"),
            ("NGIT_SYNC_BATCH_WINDOW_MS", "soon"),
            ("NGIT_REJECTED_HOT_CACHE_DURATION_SECS", "-1"),
            ("NGIT_REJECTED_COLD_INDEX_EXPIRY_SECS", "never"),
            ("NGIT_SYNC_STARTUP_DELAY_SECS", "x"),
            ("NGIT_ARCHIVE_RETENTION_SECS", "90 days"),
            ("NGIT_DELETION_REQUEST_DISRESPECTOR", "perhaps"),
            ("NGIT_TRUSTED_PROXY_CIDRS", "10.0.0.0/40"),
            ("NGIT_MAX_CONNECTIONS_PER_IP", "many"),
            ("NGIT_RELAY_EVENTS_PER_MINUTE_PER_IP", "-1"),
            ("NGIT_UNLIMITED_CIDRS", "home"),
            ("NGIT_DATABASE_BACKEND", "sqlite"),
            ("NGIT_MAINTAINER_RULE", "Confirmed"),
            ("NGIT_RELAY_OWNER_NSEC", "nsec1nonsense"),
        ] {
            let error = Config::from_settings(&settings(&[(name, value)])).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }

    #[test]
    fn what_would_open_what_was_closed_is_refused() {
        for (name, value) in [("NGIT_PRIVATE_MODE", "true"), ("NGIT_BASE_PATH", "/grasp")] {
            let error = Config::from_settings(&settings(&[(name, value)])).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
        }
        let same = [("NGIT_PRIVATE_MODE", "false"), ("NGIT_BASE_PATH", "/")];
        assert!(Config::from_settings(&settings(&same)).is_ok());
    }

    #[test]
    fn numbers_that_mean_no_limit_elsewhere_do_here() {
        let none = [
            ("NGIT_MAX_CONNECTIONS", "0"),
            ("NGIT_RELAY_EVENTS_PER_MINUTE", "0"),
            ("NGIT_METRICS_CONNECTION_PER_IP_ABUSE_THRESHOLD", "0"),
        ];
        let config = Config::from_settings(&settings(&none)).unwrap();
        assert_eq!(config.limits.max_connections, None);
        assert_eq!(config.limits.events_per_minute, 0);
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(OWNER_FILE)).unwrap();
        let path = directory.path().to_str().unwrap();
        let pairs = [
            ("NGIT_RELAY_DATA_PATH", path),
            ("NGIT_DATABASE_BACKEND", "lmdb"),
        ];
        let error = Config::from_settings(&settings(&pairs)).unwrap_err();
        assert!(error.to_string().contains(OWNER_FILE), "{error}");
    }

    #[test]
    fn the_first_relay_needs_no_scheme_and_the_quick_clock_is_quick() {
        let read = |pairs: &[(&'static str, &str)]| {
            let config = Config::from_settings(&settings(pairs)).unwrap();
            config.sync
        };
        assert!(read(&[]).bootstrap.is_none());
        let named = |text| {
            let sync = read(&[("NGIT_SYNC_BOOTSTRAP_RELAY_URL", text)]);
            sync.bootstrap.unwrap().label.to_string()
        };
        assert_eq!(named("relay.example:8080"), "wss://relay.example:8080");
        assert_eq!(named("ws://127.0.0.1:9"), "ws://127.0.0.1:9");
        assert_eq!(read(&[]).window, Duration::from_secs(5));
        assert_eq!(read(&[("NGIT_TEST", "1")]).window, QUICK_WINDOW);
        let set = [("NGIT_TEST", "1"), ("NGIT_SYNC_BATCH_WINDOW_MS", "900")];
        assert_eq!(read(&set).window, Duration::from_millis(900));
    }

    #[test]
    fn the_key_is_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let pairs = [
            ("NGIT_RELAY_DATA_PATH", path),
            ("NGIT_DATABASE_BACKEND", "lmdb"),
        ];
        let first = Config::from_settings(&settings(&pairs)).unwrap();
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
        first.keep_key().unwrap();
        let again = Config::from_settings(&settings(&pairs)).unwrap();
        assert_eq!(first.keys.public_key(), again.keys.public_key());
        let mode = fs::metadata(directory.path().join(OWNER_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
