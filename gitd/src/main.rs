//! gitd as a process of its own.

use std::path::Path;

use grasp_gitd::Config;
use grasp_proto::{
    process::{
        die_with_parent, init_logging, outlive_hangups, raise_file_limit, return_freed_memory,
        settings::Settings, stop_on_signal,
    },
    transport::Role,
};

fn main() -> anyhow::Result<()> {
    return_freed_memory();
    die_with_parent();
    let settings = Settings::load([], Path::new("."))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let within = runtime.enter();
    outlive_hangups();
    let telemetry = init_logging(&settings, Role::Gitd)?;
    drop(within);
    settings.warn();
    raise_file_limit();
    let config = Config::from_settings(&settings)?;
    let ended = runtime
        .block_on(async { anyhow::Ok(grasp_gitd::run(config, stop_on_signal(|| ())?).await?) });
    telemetry.end();
    ended
}
