//! `graspd cleanup-empty-repos`: bare repositories without a ref that nobody announced go.

use clap::{Arg, ArgAction, ArgMatches, Command};
use grasp_proto::{contract::relay::CleanupEmptyRepositoriesRequest, process::settings::Settings};
use serde_json::json;

use super::{dry_run_flag, json_flag, names, repo_of, with, written};
use crate::{service::Service, text::plain};

/// The command's name.
pub const COMMAND: &str = "cleanup-empty-repos";

/// The command.
pub fn command() -> Command {
    Command::new(COMMAND)
        .about("Delete repositories on disk that have no ref and that nobody announced")
        .after_help(
            "Never one that is announced, in purgatory or withheld, nor one into which something is being \
             uploaded or that has objects of its own.",
        )
        .arg(dry_run_flag())
        .arg(
            // What `ngit-grasp` wants to be told; here it is done unless `--dry-run` is said.
            Arg::new("execute")
                .long("execute")
                .action(ArgAction::SetTrue)
                .conflicts_with("dry-run")
                .hide(true),
        )
        .arg(json_flag())
}

/// Cleans up, and says what went.
pub async fn run(given: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let service = Service::find(settings)?;
    let dry_run = given.get_flag("dry-run");
    let failed = |status| service.failed(&status);
    let request = CleanupEmptyRepositoriesRequest { dry_run };
    let cleaned = service.admin().cleanup_empty_repositories(request).await;
    let mut cleaned = cleaned.map_err(failed)?.into_inner();
    let (mut gone, mut left, mut listed) = (0, 0, Vec::new());
    while let Some(one) = cleaned.message().await.map_err(failed)? {
        let described = one.repository.unwrap_or_default();
        let repo = repo_of(described.repository.clone())?;
        match one.goes {
            true => gone += 1,
            false => left += 1,
        }
        if given.get_flag("json") {
            let more = json!({"goes": one.goes, "why": one.why, "bytes": described.bytes});
            listed.push(with(names(&repo), more));
            continue;
        }
        // As it goes: what is said has been done, even if the next fails.
        let what = match (one.goes, dry_run) {
            (true, true) => "would go",
            (true, false) => "gone",
            (false, _) => "stays",
        };
        let line = format!(
            "{what}  {}  ({})\n",
            plain(&written(&repo)),
            plain(&one.why)
        );
        crate::print(line.as_bytes())?;
    }
    let text = match given.get_flag("json") {
        true => format!(
            "{:#}\n",
            json!({"dry_run": dry_run, "gone": gone, "left": left, "repositories": listed})
        ),
        false => {
            let went = if dry_run { "would go" } else { "gone" };
            format!("{gone} empty repositories {went}, {left} stay\n")
        }
    };
    crate::print(text.as_bytes())
}
