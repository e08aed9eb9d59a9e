//! The relay as a process of its own.

use std::path::Path;

use grasp_proto::{
    process::{
        die_with_parent, init_logging, outlive_hangups, raise_file_limit, return_freed_memory,
        settings::Settings, stop_on_signal,
    },
    transport::Role,
};
use grasp_relay::Config;

fn main() -> anyhow::Result<()> {
    return_freed_memory();
    die_with_parent();
    let settings = Settings::load([], Path::new("."))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let within = runtime.enter();
    outlive_hangups();
    let telemetry = init_logging(&settings, Role::Relay)?;
    drop(within);
    settings.warn();
    raise_file_limit();
    let config = Config::from_settings(&settings)?;
    let ended = runtime.block_on(async {
        let stop = stop_on_signal(|| ())?;
        let ready = |address| tracing::info!("listening on {address}");
        anyhow::Ok(grasp_relay::run(config, stop, ready).await?)
    });
    telemetry.end();
    ended
}
