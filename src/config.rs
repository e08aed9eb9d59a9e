//! `graspd config`: what is in effect, as lines that can be read back, and whether a start would take it.

use anyhow::bail;
use clap::{Arg, ArgAction, ArgMatches, Command};
use grasp_proto::process::{
    self,
    settings::{self, Settings, Source, dot_env},
};

use crate::launcher;

/// The command line of `graspd config`.
pub fn command() -> Command {
    Command::new("config")
        .about("Print the settings in effect and where each comes from, secrets hidden")
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .conflicts_with("reference")
                .help(
                    "Print what the start would refuse or not know, and fail if there is anything",
                ),
        )
        .arg(
            Arg::new("reference")
                .long("reference")
                .action(ArgAction::SetTrue)
                .help("Print the reference of all settings, as markdown"),
        )
}

/// Prints what was asked for.
pub fn run(given: &ArgMatches) -> anyhow::Result<()> {
    if given.get_flag("reference") {
        return crate::print(settings::reference().as_bytes());
    }
    let mut settings = crate::load(given)?;
    if given.get_flag("check") {
        return check(settings);
    }
    launcher::assume_domain(&mut settings);
    crate::print(effective(&settings).as_bytes())
}

/// Every setting on a line: as it was set, or in a comment where nobody set it or nobody is to see it. The
/// lines of a `.env` file, of compose and of systemd alike, which knows comments on lines of their own
/// only.
fn effective(settings: &Settings) -> String {
    use std::fmt::Write;
    let mut lines = String::from(
        "# What is set, in lines for a .env file, env_file of compose or EnvironmentFile of systemd;\n\
         # in comments what is not set, by its default, and secrets.\n",
    );
    for (variable, value, source) in settings.effective() {
        let name = variable.name;
        let written = match value {
            None => writeln!(lines, "# {name} is not set"),
            Some(_) if variable.secret => {
                writeln!(lines, "# {name} is set (hidden), from {source}")
            }
            Some(value) => {
                let value = dot_env::quote(value);
                match source {
                    Source::Default | Source::Derived(_) => {
                        writeln!(lines, "# {name}={value}  # {source}")
                    }
                    _ => writeln!(lines, "# from {source}:\n{name}={value}"),
                }
            }
        };
        written.expect("writing to a string does not fail");
    }
    lines
}

/// Fails if the start of the whole service would refuse the settings, or not know one of them.
fn check(settings: Settings) -> anyhow::Result<()> {
    let mut found: Vec<String> = settings
        .unknown()
        .map(|name| format!("{name} is not a setting of graspd"))
        .collect();
    let mut note = |result: Result<(), String>| {
        if let Err(problem) = result
            && !found.contains(&problem)
        {
            found.push(problem);
        }
    };
    note(process::check_logging(&settings).map_err(|error| error.to_string()));
    for result in launcher::check(settings) {
        note(result);
    }
    match found.as_slice() {
        [] => crate::print(b"the start would take these settings\n"),
        [one] => bail!(Refused(one.clone())),
        several => bail!(Refused(format!(
            "{} things are wrong:\n{}",
            several.len(),
            several.join("\n")
        ))),
    }
}

/// What the start would not take.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_read_back() {
        let set = [
            ("NGIT_RELAY_NAME", "It's \"our\" relay # one of $2"),
            ("NGIT_RELAY_DESCRIPTION", "two\nlines"),
            ("NGIT_TRUSTED_PROXY_CIDRS", "10.0.0.0/8,::1/128"),
            ("NGIT_RELAY_OWNER_NSEC", "nsec1secret"),
        ];
        let pairs = set.map(|(name, value)| (name, value.to_owned()));
        let lines = effective(&Settings::from_pairs(pairs));
        assert!(!lines.contains("nsec1secret"), "{lines}");
        let read = dot_env::parse(&lines, |_| None).unwrap();
        let mut expected = set[..3].to_vec();
        expected.sort_unstable();
        let mut read: Vec<(&str, &str)> = read.iter().map(|(n, v)| (&**n, &**v)).collect();
        read.sort_unstable();
        assert_eq!(read, expected);
        assert!(
            lines.contains("# NGIT_INTERNAL_TOKEN_RELAY is not set\n"),
            "{lines}"
        );
        assert!(
            lines.contains("# NGIT_LOG_FORMAT=text  # default\n"),
            "{lines}"
        );
    }

    #[test]
    fn what_the_start_would_refuse_or_not_know_is_named_all_at_once() {
        let check_pairs = |pairs: &[(&'static str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()));
            check(Settings::from_pairs(pairs)).map_err(|error| error.to_string())
        };
        let wrong = [
            ("NGIT_DOMIAN", "a.example"),
            ("NGIT_LOG_LEVEL", "verbose"),
            ("NGIT_WORKERS", "300"),
            ("NGIT_RELAY_FILTER_LIMIT", "0"),
            ("NGIT_BIND_ADDRESS", "0.0.0.0:7334"),
        ];
        for wrong in &wrong {
            let said = check_pairs(&[*wrong]).unwrap_err();
            let named = if wrong.0 == "NGIT_BIND_ADDRESS" {
                "NGIT_DOMAIN"
            } else {
                wrong.0
            };
            assert!(said.starts_with(named), "{said}");
        }
        let said = check_pairs(&wrong).unwrap_err();
        assert!(
            said.contains("NGIT_DOMIAN") && said.contains("NGIT_LOG_LEVEL"),
            "{said}"
        );
    }
}
