//! The command line: what can be asked for, what its help shows, and what a shell completes.
//!
//! Every setting is a flag of every command. The help of a command shows those that it is mostly used
//! with; `--help-all` shows all.

use std::ffi::OsString;

use clap::{
    Arg, ArgAction, Command, ValueHint,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
    value_parser,
};
use clap_complete::Shell;
use grasp_proto::process::settings::{self, Variable};

use crate::{backup, config, demo, export, import, operator, service};

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
  graspd export --kind 30617 > announcements    events that are served, as lines of JSON
  graspd repos --sort size                      every repository, what it takes and what waits
  graspd backup /srv/backup/graspd              everything at one moment, while it runs
  graspd config                                 what is in effect, and where it comes from
  graspd completions bash > /etc/bash_completion.d/graspd

Every setting is a flag, an environment variable (NGIT_...) or a line of the file .env, in this
order of precedence. `graspd --help-all` lists them all.";

const WHICH: &str = "\
Which service is meant need not be said where this user runs one. Otherwise any of the flags above says \
it, as long as it tells the service from others. One that runs elsewhere is named by its internal \
address and token.";

/// Lists the settings that all commands share, too.
pub const HELP_ALL: &str = "--help-all";

/// Settings with which the whole service is mostly started.
const MAIN: [&str; 8] = [
    "NGIT_DOMAIN",
    "NGIT_BIND_ADDRESS",
    "NGIT_GIT_DATA_PATH",
    "NGIT_RELAY_DATA_PATH",
    "NGIT_RUN_DIR",
    "NGIT_TRUSTED_PROXY_CIDRS",
    "NGIT_WORKERS",
    "NGIT_LOG_LEVEL",
];

const RELAY: [&str; 10] = [
    "NGIT_DOMAIN",
    "NGIT_BIND_ADDRESS",
    "NGIT_RELAY_DATA_PATH",
    "NGIT_RELAY_GRPC_ADDRESS",
    "NGIT_GITD_GRPC_ADDRESS",
    "NGIT_GITD_HTTP_ADDRESS",
    "NGIT_INTERNAL_TOKEN_RELAY_FILE",
    "NGIT_INTERNAL_TOKEN_GITD_FILE",
    "NGIT_INTERNAL_TOKEN_WORKER_FILE",
    "NGIT_LOG_LEVEL",
];

const GITD: [&str; 9] = [
    "NGIT_DOMAIN",
    "NGIT_GIT_DATA_PATH",
    "NGIT_RELAY_GRPC_ADDRESS",
    "NGIT_GITD_GRPC_ADDRESS",
    "NGIT_GITD_HTTP_ADDRESS",
    "NGIT_INTERNAL_TOKEN_RELAY_FILE",
    "NGIT_INTERNAL_TOKEN_GITD_FILE",
    "NGIT_INTERNAL_TOKEN_WORKER_FILE",
    "NGIT_LOG_LEVEL",
];

const SYNCWORKER: [&str; 5] = [
    "NGIT_RELAY_GRPC_ADDRESS",
    "NGIT_GITD_GRPC_ADDRESS",
    "NGIT_INTERNAL_TOKEN_WORKER_FILE",
    "NGIT_SYNC_WORKER_CONCURRENCY",
    "NGIT_LOG_LEVEL",
];

const HEALTH: [&str; 7] = [
    "NGIT_RUN_DIR",
    "NGIT_BIND_ADDRESS",
    "NGIT_RELAY_GRPC_ADDRESS",
    "NGIT_GITD_GRPC_ADDRESS",
    "NGIT_INTERNAL_TOKEN_RELAY_FILE",
    "NGIT_INTERNAL_TOKEN_GITD_FILE",
    "NGIT_INTERNAL_TOKEN_WORKER_FILE",
];

/// Settings that say where what is restored goes.
const RESTORE: [&str; 2] = ["NGIT_RELAY_DATA_PATH", "NGIT_GIT_DATA_PATH"];

/// What [`HELP_ALL`] asks for is the help of a command with everything shown: whether it is asked for,
/// and the command line that clap is given.
pub fn ask_for_all(line: impl IntoIterator<Item = OsString>) -> (bool, Vec<OsString>) {
    let (mut asked, mut ended) = (false, false);
    let line = line
        .into_iter()
        .map(|word| {
            ended |= word == "--";
            match !ended && word == HELP_ALL {
                true => {
                    asked = true;
                    OsString::from("--help")
                }
                false => word,
            }
        })
        .collect();
    (asked, line)
}

/// The command line; with `all`, the help of every command shows every setting.
pub fn command(all: bool) -> Command {
    let role = |name: &'static str| {
        Command::new(name).about(format!(
            "Run the {name} alone, with internal addresses and tokens as set"
        ))
    };
    let with = |command: Command, shown: &[&str], heading: &'static str| {
        with_settings(command, shown, heading, all)
    };
    let on_service = |command: Command| {
        let shown = service::TELLING.map(|(name, _)| name);
        let command = with(command, &shown, "Which service");
        let command = service::TELLING
            .iter()
            .fold(command, |command, (name, help)| {
                let help = format!("{help} [env: {name}]");
                command.mut_arg(name, |flag| flag.help(help))
            });
        match command.get_after_help() {
            Some(text) => {
                let text = format!("{text}\n\n{WHICH}");
                command.after_help(text)
            }
            None => command.after_help(WHICH),
        }
    };
    let [take, restore] = backup::commands();
    with(
        Command::new("graspd")
            .version(env!("CARGO_PKG_VERSION"))
            .about("A GRASP server: a Nostr relay and a Git smart-HTTP server behind one address")
            .after_help(EXAMPLES),
        &MAIN,
        "Settings",
    )
    .subcommand(with(
        Command::new("serve").about("Start the whole service (the default)"),
        &MAIN,
        "Settings",
    ))
    .subcommand(with(role("relay"), &RELAY, "Settings"))
    .subcommand(with(role("gitd"), &GITD, "Settings"))
    .subcommand(with(role("syncworker"), &SYNCWORKER, "Settings"))
    .subcommand(on_service(status()))
    .subcommand(on_service(import::command()))
    .subcommand(on_service(export::command()))
    .subcommands(operator::commands().map(on_service))
    .subcommand(on_service(take))
    .subcommand(with(restore, &RESTORE, "Where to"))
    .subcommand(with(health(), &HEALTH, "Which process"))
    .subcommand(with(demo::command(), &[], ""))
    .subcommand(with(config::command(), &[], ""))
    .subcommand(with(completions(), &[], ""))
    .subcommand(with(
        Command::new("version").about("Print the version"),
        &[],
        "",
    ))
}

fn status() -> Command {
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
                .value_hint(ValueHint::Other)
                .default_value("20")
                .help("The most lines of each list"),
        )
}

fn health() -> Command {
    Command::new("health")
        .about("Say by the exit code whether a process that runs here does its work")
        .arg(
            Arg::new("role")
                .value_name("ROLE")
                .value_parser(["relay", "gitd", "syncworker"])
                .default_value("relay")
                .help("Which, if it was started apart; the relay speaks for a whole service"),
        )
}

fn completions() -> Command {
    Command::new("completions")
        .about("Print completions for a shell")
        .arg(
            Arg::new("shell")
                .value_name("SHELL")
                .required(true)
                .value_parser(value_parser!(Shell))
                .help("Which"),
        )
}

/// A command with every setting as a flag, of which its help shows some.
fn with_settings(command: Command, shown: &[&str], heading: &'static str, all: bool) -> Command {
    let own = command.arg(
        Arg::new("help-all")
            .long(&HELP_ALL[2..])
            .action(ArgAction::Help)
            .global(true)
            .help("Print help with the settings that all commands share"),
    );
    let flags = settings::flags().map(|flag| {
        let name = flag.get_id().as_str().to_owned();
        let Some(variable) = Variable::named(&name) else {
            return flag;
        };
        let is_shown = shown.contains(&variable.name);
        let flag = flag
            .help(help_of(variable))
            .hide(!is_shown && !all)
            .help_heading(match is_shown {
                true => heading,
                false => "All settings",
            });
        let flag = match offered(variable) {
            Offered::Values(values) => flag
                .value_parser(AnyText(values))
                .hide_possible_values(true),
            Offered::Kind(hint) => flag.value_hint(hint),
        };
        flag.value_name(value_name(variable))
    });
    own.args(flags)
}

/// What a setting means, what it is called in the environment, and what it is unless set.
fn help_of(variable: &Variable) -> String {
    let (meaning, name) = (variable.meaning, variable.name);
    match variable.default {
        Some(default) if !default.is_empty() => {
            format!("{meaning} [env: {name}] [default: {default}]")
        }
        _ => format!("{meaning} [env: {name}]"),
    }
}

/// What a shell may offer for a setting.
enum Offered {
    /// These, though others may be right.
    Values(&'static [&'static str]),
    /// What the shell knows of this kind.
    Kind(ValueHint),
}

fn offered(variable: &Variable) -> Offered {
    const SWITCH: &[&str] = &["true", "false"];
    match variable.name {
        _ if variable.switch => Offered::Values(SWITCH),
        "NGIT_DATABASE_BACKEND" => Offered::Values(&["lmdb", "memory"]),
        "NGIT_LOG_FORMAT" => Offered::Values(&["text", "json"]),
        "NGIT_LOG_LEVEL" => Offered::Values(&["error", "warn", "info", "debug", "trace"]),
        "NGIT_ARCHIVE_READ_ONLY" => Offered::Values(SWITCH),
        "NGIT_BIND_ADDRESS" => Offered::Values(&["127.0.0.1:7334", "0.0.0.0:7334"]),
        "NGIT_DOMAIN" => Offered::Kind(ValueHint::Hostname),
        "OTEL_TRACES_SAMPLER" => Offered::Values(&[
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ]),
        name if name.ends_with("_PATH") || name == "NGIT_RUN_DIR" => {
            Offered::Kind(ValueHint::DirPath)
        }
        name if name.ends_with("_FILE") || name.starts_with("NGIT_INTERNAL_TLS_") => {
            Offered::Kind(ValueHint::FilePath)
        }
        name if name.ends_with("_URL") || name.ends_with("_ENDPOINT") => {
            Offered::Kind(ValueHint::Url)
        }
        _ => Offered::Kind(ValueHint::Other),
    }
}

fn value_name(variable: &Variable) -> &'static str {
    match offered(variable) {
        _ if variable.switch => "BOOL",
        Offered::Kind(ValueHint::DirPath) => "DIRECTORY",
        Offered::Kind(ValueHint::FilePath) => "FILE",
        Offered::Kind(ValueHint::Url) => "URL",
        Offered::Kind(ValueHint::Hostname) => "HOST[:PORT]",
        _ if variable.name.ends_with("_ADDRESS") => "ADDRESS",
        _ => "VALUE",
    }
}

/// Takes any text, and offers some: what is wrong with a value is said by whoever reads the setting.
#[derive(Debug, Clone)]
struct AnyText(&'static [&'static str]);

impl TypedValueParser for AnyText {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Self::Value, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(PossibleValue::new)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(words: &[&str]) -> String {
        let line = words.iter().map(OsString::from);
        let (all, line) = ask_for_all(line);
        let shown = command(all).try_get_matches_from(line).unwrap_err();
        assert_eq!(shown.kind(), clap::error::ErrorKind::DisplayHelp);
        shown.to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        command(false).debug_assert();
        command(true).debug_assert();
    }

    #[test]
    fn help_of_a_command_shows_its_own_options_and_the_rest_when_asked() {
        let status = help(&["graspd", "status", "--help"]);
        for word in [
            "--most",
            "[default: 20]",
            "--run-dir",
            "[env: NGIT_RUN_DIR]",
            "--relay-data-path",
            "The one whose events lie here",
            "--bind-address",
            "--help-all",
        ] {
            assert!(status.contains(word), "{word}: {status}");
        }
        assert!(!status.contains("NGIT_RELAY_FILTER_LIMIT"), "{status}");
        let nested = help(&["graspd", "holding", "restore", "--help"]);
        assert!(nested.contains("--run-dir") && !nested.contains("NGIT_WORKERS"));
        for words in [
            &["graspd", "status", "--help-all"][..],
            &["graspd", "holding", "restore", "--help-all"],
            &["graspd", "import", "--help-all"],
            &["graspd", "--help-all"],
        ] {
            let shown = help(words);
            for variable in settings::VARIABLES {
                assert!(shown.contains(variable.name), "{words:?} {}", variable.name);
            }
        }
        let short = help(&["graspd", "--help"]);
        for word in ["[env: NGIT_DOMAIN]", "[default: ./data/relay]", "Examples"] {
            assert!(short.contains(word), "{word}: {short}");
        }
        assert!(!short.contains("NGIT_RELAY_FILTER_LIMIT"), "{short}");
    }

    #[test]
    fn a_setting_counts_before_and_after_the_command() {
        for words in [
            &["graspd", "--run-dir", "/x", "status"][..],
            &["graspd", "status", "--run-dir", "/x"],
            &["graspd", "--run-dir", "/x", "holding", "list"],
            &["graspd", "holding", "--run-dir", "/x", "list"],
            &["graspd", "holding", "list", "--run-dir", "/x"],
        ] {
            let matches = command(false).try_get_matches_from(words).unwrap();
            let (_, given) = matches.subcommand().unwrap();
            let given = settings::given(given);
            assert_eq!(given, [("NGIT_RUN_DIR", "/x".to_owned())], "{words:?}");
        }
        // What is wrong with a value is said where it is read.
        let any = ["graspd", "--log-format", "yaml"];
        assert!(command(false).try_get_matches_from(any).is_ok());
    }

    #[test]
    fn completions_offer_values() {
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(true), "graspd", &mut script);
            let script = String::from_utf8(script).unwrap();
            for value in ["lmdb", "memory", "syncworker", "always_off", "run-dir"] {
                assert!(script.contains(value), "{shell}: {value}");
            }
        }
    }

    #[test]
    fn help_of_everything_is_no_value() {
        let line = ["graspd", "import", "--", "--help-all"];
        let (all, line) = ask_for_all(line.iter().map(OsString::from));
        assert!(!all && line[3] == "--help-all");
    }
}
