//! What gitd is told.

use std::{path::PathBuf, sync::Arc, time::Duration};

use grasp_proto::{
    process::{
        disk::DiskSpace,
        settings::{BadSetting, Settings},
    },
    transport::{Endpoint, Tokens},
};

use crate::{
    busiest::MOST_NAMED,
    repository::{git::ProcessLimits, marks::Keep, pack_scan::PackLimits, unsigned::Limits},
    smart_http::door::Door,
};

/// The settings of one gitd.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where repositories lie. Absolute: git is started in other directories.
    pub data: PathBuf,
    /// Where our services listen.
    pub grpc: Endpoint,
    /// Where smart HTTP listens.
    pub http: Endpoint,
    /// Where the relay's services are found.
    pub relay: Endpoint,
    /// Where monitoring is answered, if anywhere.
    pub metrics: Option<Endpoint>,
    /// The credentials of internal calls.
    pub tokens: Tokens,
    /// Public `host[:port]`, for the pages.
    pub domain: String,
    /// Who is asking, and what of it is granted.
    pub door: Arc<Door>,
    /// How long transfers may go on after the stop.
    pub grace: Duration,
    /// Largest pack that a signed event wants.
    pub max_pack_bytes: u64,
    /// Largest pack that nobody has signed for.
    pub max_staged_pack_bytes: u64,
    /// What one pack may hold.
    pub pack_limits: PackLimits,
    /// What one git process may take.
    pub process_limits: ProcessLimits,
    /// How long what no ref leads to is kept.
    pub keep: Keep,
    /// How much may lie here that nobody has signed for.
    pub unsigned: Limits,
    /// Free space below which nothing new is taken in, in bytes.
    pub min_free_bytes: u64,
    /// How many repositories are named in the metrics.
    pub named_repositories: usize,
    /// Whether addresses below `/prs/` are answered (GRASP-06).
    pub prs: bool,
}

impl Config {
    /// Reads the settings that concern gitd.
    pub fn from_settings(settings: &Settings) -> Result<Self, BadSetting> {
        const BYTES: &str = "a number of bytes";
        let seconds = |name| {
            let seconds = settings.parse(name, "a number of seconds")?;
            Ok::<_, BadSetting>(Duration::from_secs(seconds))
        };
        settings.check_values()?;
        let data = settings.parse_with("NGIT_GIT_DATA_PATH", |path| {
            std::path::absolute(path).map_err(|error| format!("a path ({error})"))
        })?;
        // An alternates file has one path to a line, and libgit2 takes text.
        if data.to_str().is_none_or(|path| path.contains('\n')) {
            return Err(settings.bad("NGIT_GIT_DATA_PATH", "a path in UTF-8, on one line"));
        }
        let tokens = settings.tokens()?;
        Ok(Self {
            data,
            grpc: settings.endpoint("NGIT_GITD_GRPC_ADDRESS")?,
            http: settings.endpoint("NGIT_GITD_HTTP_ADDRESS")?,
            relay: settings.endpoint("NGIT_RELAY_GRPC_ADDRESS")?,
            metrics: settings.monitoring("NGIT_GITD_METRICS_ADDRESS")?,
            domain: settings
                .get("NGIT_DOMAIN")
                .unwrap_or("localhost")
                .to_owned(),
            door: Arc::new(Door::from_settings(settings, &tokens)?),
            tokens,
            grace: seconds("NGIT_SHUTDOWN_GRACE_SECS")?,
            max_pack_bytes: settings.parse("NGIT_GIT_MAX_PACK_BYTES", BYTES)?,
            max_staged_pack_bytes: settings.parse("NGIT_GIT_MAX_STAGED_PACK_BYTES", BYTES)?,
            pack_limits: PackLimits {
                objects: settings.parse("NGIT_GIT_MAX_PACK_OBJECTS", "a number of objects")?,
                blob_bytes: settings.parse("NGIT_GIT_MAX_FILE_BYTES", BYTES)?,
                metadata_bytes: settings.parse("NGIT_GIT_MAX_METADATA_BYTES", BYTES)?,
                delta_bytes: settings.parse("NGIT_GIT_MAX_DELTA_BYTES", BYTES)?,
                inflated_bytes: settings.parse("NGIT_GIT_MAX_INFLATED_BYTES", BYTES)?,
                inflated_ratio: settings.parse(
                    "NGIT_GIT_MAX_INFLATED_RATIO",
                    "a number of bytes for each byte",
                )?,
            },
            process_limits: ProcessLimits {
                memory_bytes: settings.parse("NGIT_GIT_PROCESS_MEMORY_BYTES", BYTES)?,
                cpu_secs: settings.parse("NGIT_GIT_PROCESS_CPU_SECS", "a number of seconds")?,
            },
            keep: Keep {
                former: seconds("NGIT_GIT_UNREACHABLE_RETENTION_SECS")?,
                offered: seconds("NGIT_GIT_UNREACHABLE_RETENTION_SECS")?
                    .max(seconds("NGIT_ARCHIVE_RETENTION_SECS")?),
            },
            unsigned: Limits {
                all: settings.parse("NGIT_UNSIGNED_MAX_BYTES", BYTES)?,
                of_one: settings.parse("NGIT_UNSIGNED_MAX_BYTES_PER_IP", BYTES)?,
            },
            min_free_bytes: DiskSpace::floor(settings)?,
            named_repositories: settings.parse_with(
                "NGIT_METRICS_TOP_N_REPOS",
                |text| match text.parse() {
                    Ok(count) => Ok(MOST_NAMED.min(count)),
                    Err(_) => Err(format!(
                        "a number, of which {MOST_NAMED} count at most; 0: none"
                    )),
                },
            )?,
            prs: settings.switch("NGIT_GRASP06_ENABLE")?,
        })
    }
}
