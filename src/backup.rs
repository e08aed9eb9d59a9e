//! `graspd backup` and `graspd restore`: everything at one moment, in a directory.
//!
//! ```text
//! <directory>/manifest.json              which moment, how much there is, sums; written last
//! <directory>/<moment>/events.jsonl      events, withheld ones too
//! <directory>/<moment>/records.jsonl     what waits, is held, or must be known after a restart
//! <directory>/<moment>/repositories.jsonl   refs and other small files of repositories
//! <directory>/<moment>/objects.sha256    the files of objects, as `sha256sum -c` reads it
//! <directory>/objects/…                  those files: they never change under their names
//! ```
//!
//! A backup into the same directory again fetches only the objects that are not there. Until its
//! manifest takes the place of the one before, that one holds; only then goes what it alone needed. So a
//! directory holds a whole backup at every moment after its first, and a tool that copies it elsewhere
//! sends what is new.
//!
//! All of it comes from the relay, which asks gitd for its part: one address and one credential, also
//! where this runs on a machine or in a container that sees neither's data.

mod manifest;
mod restore;
mod take;

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};

pub use self::{restore::run as restore, take::run as backup};

/// The commands.
pub fn commands() -> [Command; 2] {
    let directory = || {
        Arg::new("directory")
            .value_name("DIRECTORY")
            .required(true)
            .value_parser(value_parser!(PathBuf))
            .value_hint(ValueHint::DirPath)
    };
    let json = || {
        Arg::new("json")
            .long("json")
            .action(ArgAction::SetTrue)
            .help("Say what was done as JSON")
    };
    [
        Command::new("backup")
            .about("Write everything that a running service has, at one moment, into a directory")
            .after_help(
                "The service goes on meanwhile. Into the same directory again, only what is new is written. \
                 The relay's key is not in it: keep that where you keep secrets.",
            )
            .arg(directory().help("A new or empty directory, or one with an earlier backup"))
            .arg(json()),
        Command::new("restore")
            .about("Put a backup into the empty data directories of a service that does not run")
            .arg(directory().help("What `graspd backup` wrote"))
            .arg(
                Arg::new("part")
                    .long("part")
                    .value_name("PART")
                    .value_parser(["all", "relay", "git"])
                    .default_value("all")
                    .help("Only one of the two data directories, where they are on different machines"),
            )
            .arg(
                Arg::new("verify-signatures")
                    .long("verify-signatures")
                    .action(ArgAction::SetTrue)
                    .help("Check the signature of every event, too"),
            )
            .arg(json()),
    ]
}

/// The directory that a command names.
fn directory(given: &ArgMatches) -> anyhow::Result<&PathBuf> {
    let directory = given.get_one::<PathBuf>("directory");
    directory.ok_or_else(|| anyhow::anyhow!("no directory"))
}
