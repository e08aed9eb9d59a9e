//! The operator's commands about repositories: `graspd repos`, `graspd holding`, `graspd purge`,
//! `graspd cleanup-empty-repos`.
//!
//! Each asks the relay of a running service ([`crate::service`]); nothing is looked up or changed
//! behind its back.

mod cleanup;
mod holding;
mod purge;
mod repos;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command};
use grasp_proto::{
    contract::repository,
    process::settings::Settings,
    words::{Identifier, Npub, RepoId},
};
use serde_json::{Value, json};

pub use self::repos::COMMAND as REPOS;
pub use cleanup::COMMAND as CLEANUP;
pub use holding::COMMAND as HOLDING;
pub use purge::COMMAND as PURGE;

/// The commands.
pub fn commands() -> [Command; 4] {
    [
        repos::command(),
        holding::command(),
        purge::command(),
        cleanup::command(),
    ]
}

/// Does what one of the commands says.
pub async fn run(name: &str, given: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    match name {
        REPOS => repos::run(given, settings).await,
        HOLDING => holding::run(given, settings).await,
        PURGE => purge::run(given, settings).await,
        _ => cleanup::run(given, settings).await,
    }
}

fn json_flag() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("As JSON; moments in milliseconds since 1970, sizes in bytes")
}

fn dry_run_flag() -> Arg {
    Arg::new("dry-run")
        .long("dry-run")
        .action(ArgAction::SetTrue)
        .help("Say what would be done, and do nothing")
}

/// `<npub>` or 64 hex digits.
pub fn read_owner(text: &str) -> Result<Npub, String> {
    let hex = Npub::from_hex(text);
    hex.or_else(|_| Npub::from_npub(text))
        .map_err(|_| "give an npub1… or 64 hex digits".to_owned())
}

fn read_identifier(text: &str) -> Result<Identifier, String> {
    Identifier::parse(text).map_err(|error| error.to_string())
}

/// `<npub>/<identifier>` or `30617:<hex>:<identifier>`.
fn read_repo(text: &str) -> Result<RepoId, String> {
    let form = || "give <npub>/<identifier> or 30617:<hex>:<identifier>".to_owned();
    let (owner, identifier) = match text.strip_prefix("30617:") {
        Some(rest) => rest.split_once(':').ok_or_else(form)?,
        None => text.split_once('/').ok_or_else(form)?,
    };
    Ok(RepoId {
        owner: read_owner(owner)?,
        identifier: read_identifier(identifier)?,
    })
}

/// A repository as the operator writes it.
fn written(repo: &RepoId) -> String {
    format!("{}/{}", repo.owner, repo.identifier)
}

/// The repository that an answer must name.
fn repo_of(message: Option<grasp_proto::contract::relay::Repository>) -> anyhow::Result<RepoId> {
    repository(message)
        .map_err(|status| anyhow::anyhow!(status.message().to_owned()))
        .context("an answer of the relay makes no sense")
}

/// What names a repository, in JSON.
fn names(repo: &RepoId) -> Value {
    json!({
        "repository": written(repo),
        "coordinate": repo.coordinate(),
        "npub": repo.owner.to_string(),
        "identifier": repo.identifier.to_string(),
    })
}

/// `more` beside `one`, which are both objects.
fn with(mut one: Value, more: Value) -> Value {
    if let (Value::Object(one), Value::Object(more)) = (&mut one, more) {
        one.extend(more);
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_named_in_either_way() {
        let owner = Npub::from_bytes([7; 32]);
        let identifier = Identifier::parse("a:b/c").unwrap_or(Identifier::parse("a:b").unwrap());
        let repo = RepoId { owner, identifier };
        assert_eq!(read_repo(&written(&repo)).unwrap(), repo);
        assert_eq!(read_repo(&repo.coordinate()).unwrap(), repo);
        for bad in ["", "x", "npub1x/y", "30617:00:x", "30618:x", "/x"] {
            assert!(read_repo(bad).is_err(), "{bad}");
        }
        assert!(read_repo(&format!("{owner}/")).is_err());
    }
}
