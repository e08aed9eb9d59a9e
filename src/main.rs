//! graspd: one role, or all of them.
//!
//! Everything of substance is in the crates; this is the door: what was asked for ([`cli`]), what is
//! told ([`grasp_proto::process::settings`]), and [`launcher`], which starts the whole service.

mod backoff;
mod backup;
mod cli;
mod config;
mod demo;
mod export;
mod health;
mod import;
mod launcher;
mod operator;
mod run_dir;
mod service;
mod status;
mod supervisor;
mod text;

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use clap::ArgMatches;
use clap_complete::Shell;
use grasp_proto::{
    process::{
        self,
        settings::{self, BadSetting, Settings},
    },
    transport::Role,
};

use text::print;

fn main() -> ExitCode {
    process::return_freed_memory();
    process::die_with_parent();
    let (all, line) = cli::ask_for_all(std::env::args_os());
    let matches = cli::command(all).get_matches_from(line);
    match run(&matches) {
        // `graspd config | head` is nobody's failure.
        Err(error) if error.is::<text::PipeClosed>() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if is_child() {
                // The parent reads it and says it.
                let _ = writeln!(io::stdout(), "{error:#}");
            } else {
                text::complain(&format!("graspd: {error:#}"));
            }
            // As for a wrong flag.
            let is_setting = error.is::<BadSetting>()
                || error.is::<config::Refused>()
                || error.is::<settings::dot_env::DotEnvError>();
            ExitCode::from(if is_setting { 2 } else { 1 })
        }
    }
}

fn is_child() -> bool {
    std::env::var_os(process::PARENT).is_some()
}

fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("completions", given)) => {
            let shell = *given.get_one::<Shell>("shell").context("no shell")?;
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command(true), "graspd", &mut script);
            print(&script)
        }
        Some(("version", _)) => print(format!("graspd {}\n", env!("CARGO_PKG_VERSION")).as_bytes()),
        Some(("config", given)) => config::run(given),
        Some(("demo", given)) => runtime()?.block_on(demo::run(demo::Demo::from(given))),
        Some(("relay", given)) => role(given, Role::Relay, async |settings| {
            let config = grasp_relay::Config::from_settings(&settings)?;
            let stop = process::stop_on_signal(|| {})?;
            grasp_relay::run(config, stop, |address| {
                tracing::info!("listening on {address}");
            })
            .await?;
            Ok(())
        }),
        Some(("gitd", given)) => role(given, Role::Gitd, async |settings| {
            let config = grasp_gitd::Config::from_settings(&settings)?;
            grasp_gitd::run(config, process::stop_on_signal(|| {})?).await?;
            Ok(())
        }),
        Some(("syncworker", given)) => role(given, Role::Worker, async |settings| {
            let config = grasp_syncworker::Config::from_settings(&settings)?;
            grasp_syncworker::run(config, process::stop_on_signal(|| {})?).await?;
            Ok(())
        }),
        Some(("status", given)) => {
            let most = given.get_one::<u32>("most").copied().unwrap_or_default();
            let settings = load(given)?;
            runtime()?.block_on(status::print(&settings, given.get_flag("json"), most))
        }
        Some(("import", given)) => {
            let settings = load(given)?;
            runtime()?.block_on(import::run(&settings, import::Import::from(given)))
        }
        Some(("export", given)) => {
            let settings = load(given)?;
            runtime()?.block_on(export::run(given, &settings))
        }
        Some((
            name @ (operator::REPOS | operator::HOLDING | operator::PURGE | operator::CLEANUP),
            given,
        )) => {
            let settings = load(given)?;
            runtime()?.block_on(operator::run(name, given, &settings))
        }
        Some(("backup", given)) => {
            let settings = load(given)?;
            runtime()?.block_on(backup::backup(given, &settings))
        }
        Some(("restore", given)) => {
            let settings = load(given)?;
            runtime()?.block_on(backup::restore(given, &settings))
        }
        Some(("health", given)) => {
            let role = given.get_one::<String>("role");
            let role = role.and_then(|name| health::role_named(name));
            let settings = load(given)?;
            runtime()?.block_on(health::check(&settings, role.context("no role")?))
        }
        Some((_, given)) => role(given, Role::Relay, launcher::serve),
        None => role(matches, Role::Relay, launcher::serve),
    }
}

/// Runs one role's main function with what it is told.
fn role(
    given: &ArgMatches,
    role: Role,
    work: impl AsyncFnOnce(Settings) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let within = runtime.enter();
    process::outlive_hangups();
    let settings = if is_child() {
        // The parent has read everything and warned about it.
        Settings::of_child()
    } else {
        load(given)?
    };
    let telemetry = process::init_logging(&settings, role)?;
    drop(within);
    if is_child() {
        // So that `ps` and `top` tell the processes apart.
        let name = std::ffi::CString::new(format!("graspd-{}", role.as_str()))?;
        let _ = rustix::thread::set_name(&name);
    } else {
        settings.warn();
    }
    process::raise_file_limit();
    let ended = runtime.block_on(work(settings));
    telemetry.end();
    ended
}

fn load(given: &ArgMatches) -> anyhow::Result<Settings> {
    Settings::load(settings::given(given), Path::new("")).context("the file .env cannot be used")
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_docs_is_what_the_code_says() {
        assert_eq!(
            include_str!("../docs/configuration.md"),
            settings::reference(),
            "write it anew: graspd config --reference > docs/configuration.md"
        );
    }
}
