//! `graspd holding`: what was taken out of service and is held, to come back or to be thrown away.

use clap::{Arg, ArgMatches, Command, value_parser};
use grasp_proto::{
    contract::relay::{EjectRequest, Held, HeldReason, HoldingRequest, RestoreRequest},
    process::settings::Settings,
    words::{Identifier, Npub, RepoId},
};
use serde_json::{Value, json};

use super::{
    dry_run_flag, json_flag, names, read_identifier, read_owner, read_repo, repo_of, with, written,
};
use crate::{
    service::Service,
    text::{bytes, now_millis, plain, table, when},
};

/// The command's name.
pub const COMMAND: &str = "holding";

/// The command.
pub fn command() -> Command {
    let of = |name: &'static str, about: &'static str| {
        Command::new(name)
            .about(about)
            .arg(
                Arg::new("repo")
                    .value_name("REPO")
                    .required(true)
                    .value_parser(read_repo)
                    .help("<npub>/<identifier> or 30617:<hex>:<identifier>"),
            )
            .arg(
                Arg::new("since")
                    .long("since")
                    .value_name("MILLIS")
                    .value_parser(value_parser!(u64).range(1..))
                    .help("Which, if it was taken out of service several times: as --json says"),
            )
            .arg(dry_run_flag())
            .arg(json_flag())
    };
    Command::new(COMMAND)
        .about("What was taken out of service and is held: list it, bring it back, throw it away")
        .subcommand(
            Command::new("list")
                .about("List it (the default)")
                .arg(
                    Arg::new("owner")
                        .long("owner")
                        .value_name("NPUB")
                        .value_parser(read_owner)
                        .help("Only this owner's"),
                )
                .arg(
                    Arg::new("identifier")
                        .long("identifier")
                        .value_name("IDENTIFIER")
                        .value_parser(read_identifier)
                        .help("Only those with this identifier"),
                )
                .arg(json_flag()),
        )
        .subcommand(of(
            "restore",
            "Bring it back: events, refs and git data, without its owner announcing it again",
        ))
        .subcommand(of(
            "eject",
            "Throw it away now: it cannot be brought back then",
        ))
        .arg(json_flag())
}

/// Lists, restores or ejects.
pub async fn run(given: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let service = Service::find(settings)?;
    match given.subcommand() {
        Some(("restore", given)) => restore(&service, given).await,
        Some(("eject", given)) => eject(&service, given).await,
        Some((_, of_list)) => {
            let as_json = given.get_flag("json") || of_list.get_flag("json");
            let given = of_list;
            let owner = given.get_one::<Npub>("owner");
            let identifier = given.get_one::<Identifier>("identifier");
            let request = HoldingRequest {
                owner: owner.map_or_else(Vec::new, |owner| owner.as_bytes().to_vec()),
                identifier: identifier.map_or_else(String::new, ToString::to_string),
            };
            list(&service, request, as_json).await
        }
        None => list(&service, HoldingRequest::default(), given.get_flag("json")).await,
    }
}

fn reason(held: &Held) -> &'static str {
    match held.reason() {
        HeldReason::Unspecified => "unknown",
        HeldReason::Deleted => "deleted",
        HeldReason::MovedAway => "moved away",
        HeldReason::Vanished => "vanished",
        HeldReason::Expired => "expired",
    }
}

fn to_json(held: &Held) -> anyhow::Result<Value> {
    let more = json!({
        "since_millis": held.since_millis,
        "until_millis": held.until_millis,
        "reason": reason(held),
        "events": held.events,
        "incarnation": held.incarnation,
        "git_bytes": held.git_bytes,
    });
    Ok(with(names(&repo_of(held.repository.clone())?), more))
}

fn line(held: &Held, now: u64) -> anyhow::Result<Vec<String>> {
    Ok(vec![
        plain(&written(&repo_of(held.repository.clone())?)),
        reason(held).to_owned(),
        when(held.since_millis, now),
        when(held.until_millis, now),
        held.events.to_string(),
        match held.incarnation.is_empty() {
            true => "none".to_owned(),
            false => bytes(held.git_bytes),
        },
    ])
}

fn lines(held: &[Held]) -> anyhow::Result<String> {
    let now = now_millis();
    let rows: anyhow::Result<Vec<_>> = held.iter().map(|held| line(held, now)).collect();
    let head = ["repository", "why", "since", "thrown away", "events", "git"];
    Ok(table(&head, &rows?))
}

async fn list(service: &Service, request: HoldingRequest, as_json: bool) -> anyhow::Result<()> {
    let failed = |status| service.failed(&status);
    let listed = service.admin().holding(request).await;
    let mut listed = listed.map_err(failed)?.into_inner();
    let mut all = Vec::new();
    while let Some(batch) = listed.message().await.map_err(failed)? {
        all.extend(batch.held);
    }
    let text = match (as_json, all.is_empty()) {
        (true, _) => {
            let held: anyhow::Result<Vec<Value>> = all.iter().map(to_json).collect();
            format!("{:#}\n", json!({"held": held?}))
        }
        (false, true) => "nothing is held\n".to_owned(),
        (false, false) => lines(&all)?,
    };
    crate::print(text.as_bytes())
}

/// Which is meant.
fn meant(given: &ArgMatches) -> anyhow::Result<(RepoId, u64, bool)> {
    let repo = given.get_one::<RepoId>("repo");
    let repo = repo.ok_or_else(|| anyhow::anyhow!("no repository"))?;
    let since = given.get_one::<u64>("since").copied().unwrap_or_default();
    Ok((repo.clone(), since, given.get_flag("dry-run")))
}

async fn restore(service: &Service, given: &ArgMatches) -> anyhow::Result<()> {
    let (repo, since_millis, dry_run) = meant(given)?;
    let request = RestoreRequest {
        repository: Some((&repo).into()),
        since_millis,
        dry_run,
    };
    let answer = service.admin().restore(request).await;
    let answer = answer
        .map_err(|status| service.failed(&status))?
        .into_inner();
    let held = answer.held.unwrap_or_default();
    let text = if given.get_flag("json") {
        let more = json!({
            "dry_run": dry_run,
            "events_back": answer.events_back,
            "events_left": answer.events_left,
            "served": answer.served,
        });
        format!("{:#}\n", with(to_json(&held)?, more))
    } else {
        let (would, is) = match dry_run {
            true => ("would come back", "would be"),
            false => ("came back", "is"),
        };
        let stands = match answer.served {
            true => "served",
            false => "waiting for its git data",
        };
        let left = match answer.events_left {
            0 => String::new(),
            left => format!("; {left} stay out, deleted by their authors or blacklisted"),
        };
        format!(
            "{}: {} events {would}{left}; it {is} {stands}\n",
            plain(&written(&repo)),
            answer.events_back
        )
    };
    crate::print(text.as_bytes())
}

async fn eject(service: &Service, given: &ArgMatches) -> anyhow::Result<()> {
    let (repo, since_millis, dry_run) = meant(given)?;
    let request = EjectRequest {
        repository: Some((&repo).into()),
        since_millis,
        dry_run,
    };
    let answer = service.admin().eject(request).await;
    let answer = answer
        .map_err(|status| service.failed(&status))?
        .into_inner();
    let text = if given.get_flag("json") {
        let held: anyhow::Result<Vec<Value>> = answer.held.iter().map(to_json).collect();
        format!("{:#}\n", json!({"dry_run": dry_run, "held": held?}))
    } else {
        let went = match dry_run {
            true => "would be thrown away:",
            false => "thrown away:",
        };
        format!("{went}\n{}", lines(&answer.held)?)
    };
    crate::print(text.as_bytes())
}
