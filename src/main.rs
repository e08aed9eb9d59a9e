//! graspd: one role, or all of them.
//!
//! Everything of substance is in the crates; this is the door: what was asked for, what is told
//! ([`grasp_proto::process::settings`]), and [`launcher`], which starts the whole service.

mod backoff;
mod backup;
mod demo;
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
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use clap_complete::Shell;
use grasp_proto::{
    process::{
        self,
        settings::{self, BadSetting, Settings},
    },
    transport::Role,
};

const EXAMPLES: &str = "\
Examples:
  graspd demo                                   see it work, on a repository made for it
  graspd demo ~/src/project                     the same with your own, which is only read
  graspd demo --hunt                            besides, a second service finds it on the first
  graspd                                        serve on http://localhost:7334, data in ./data
  NGIT_DOMAIN=git.example.com graspd            serve git.example.com from behind a TLS proxy
  graspd --bind-address 127.0.0.1:0 --database-backend memory
                                                a free port, nothing kept
  graspd status                                 what waits and what is looked for, right now
  graspd import wss://old.example               take over the events of another server
  graspd repos --sort size                      every repository, what it takes and what waits
  graspd backup /srv/backup/graspd              everything at one moment, while it runs
  graspd config                                 what is in effect, and where it comes from
  graspd completions bash > /etc/bash_completion.d/graspd

Every setting is a flag, an environment variable (NGIT_...) or a line of the file .env, in this
order of precedence. `graspd --help` lists them all.";

fn command() -> Command {
    let settings = settings::flags().map(|flag| {
        flag.hide_short_help(true)
            .help_heading("Settings")
            .value_hint(ValueHint::Other)
    });
    let role = |name: &'static str| {
        Command::new(name).about(format!(
            "Run the {name} alone, with internal addresses and tokens as set"
        ))
    };
    Command::new("graspd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A GRASP server: a Nostr relay and a Git smart-HTTP server behind one address")
        .after_help(EXAMPLES)
        .args(settings)
        .subcommand(Command::new("serve").about("Start the whole service (the default)"))
        .subcommand(role("relay"))
        .subcommand(role("gitd"))
        .subcommand(role("syncworker"))
        .subcommand(
            Command::new("status")
                .about("Show what waits, what is hunted for, where, and by whom")
                .arg(
                    Arg::new("json")
                        .long("json")
                        .action(ArgAction::SetTrue)
                        .help("As JSON; moments in milliseconds since 1970"),
                )
                .arg(
                    Arg::new("most")
                        .long("most")
                        .value_name("LINES")
                        .value_parser(value_parser!(u32).range(1..=10_000))
                        .default_value("20")
                        .help("The most lines of each list"),
                ),
        )
        .subcommand(import::command())
        .subcommands(operator::commands())
        .subcommands(backup::commands())
        .subcommand(
            Command::new("health")
                .about("Say by the exit code whether a process that runs here does its work")
                .arg(
                    Arg::new("role")
                        .value_name("ROLE")
                        .value_parser(["relay", "gitd", "syncworker"])
                        .default_value("relay")
                        .help("Which, if it was started apart; the relay speaks for a whole service"),
                ),
        )
        .subcommand(
            Command::new("demo")
                .about("Announce, push, release and clone a repository, and say how it went")
                .arg(
                    Arg::new("path")
                        .value_name("PATH")
                        .value_parser(value_parser!(std::path::PathBuf))
                        .value_hint(ValueHint::DirPath)
                        .help("A git repository; it is only read. Without it, a small one is made"),
                )
                .arg(
                    Arg::new("server")
                        .long("server")
                        .value_name("URL")
                        .value_hint(ValueHint::Url)
                        .help("A GRASP server, instead of a temporary one started for this"),
                )
                .arg(
                    Arg::new("hunt")
                        .long("hunt")
                        .action(ArgAction::SetTrue)
                        .help("Besides, start another service, announce it there, and let it find the data"),
                ),
        )
        .subcommand(
            Command::new("config")
                .about("Print the settings in effect and where each comes from, secrets hidden")
                .arg(
                    Arg::new("reference")
                        .long("reference")
                        .action(ArgAction::SetTrue)
                        .help("Print the reference of all settings, as markdown"),
                ),
        )
        .subcommand(
            Command::new("completions")
                .about("Print completions for a shell")
                .arg(
                    Arg::new("shell")
                        .required(true)
                        .value_parser(value_parser!(Shell)),
                ),
        )
}

fn main() -> ExitCode {
    process::die_with_parent();
    let matches = command().get_matches();
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if is_child() {
                // The parent reads it and says it.
                let _ = writeln!(io::stdout(), "{error:#}");
            } else {
                eprintln!("graspd: {error:#}");
            }
            // As for a wrong flag.
            ExitCode::from(if error.is::<BadSetting>() { 2 } else { 1 })
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
            clap_complete::generate(shell, &mut command(), "graspd", &mut script);
            print(&script)
        }
        Some(("config", given)) if given.get_flag("reference") => {
            print(settings::reference().as_bytes())
        }
        Some(("config", given)) => {
            let mut settings = load(given)?;
            launcher::assume_domain(&mut settings);
            print(effective(&settings).as_bytes())
        }
        Some(("demo", given)) => runtime()?.block_on(demo::run(demo::Demo {
            path: given.get_one::<std::path::PathBuf>("path").cloned(),
            server: given.get_one::<String>("server").cloned(),
            hunt: given.get_flag("hunt"),
        })),
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
        Some((name @ (operator::REPOS | operator::HOLDING | operator::CLEANUP), given)) => {
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

/// As lines for a `.env` file, each with where its value came from.
fn effective(settings: &Settings) -> String {
    settings
        .effective()
        .map(|(variable, value, source)| match value {
            Some(value) => format!("{}={value}  # {source}\n", variable.name),
            None => format!("# {} is not set\n", variable.name),
        })
        .collect()
}

fn print(text: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(text) {
        // `graspd config | head` is nobody's failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_reference_in_docs_is_what_the_code_says() {
        assert_eq!(
            include_str!("../docs/configuration.md"),
            settings::reference(),
            "write it anew: graspd config --reference > docs/configuration.md"
        );
    }
}
