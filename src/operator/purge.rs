//! `graspd purge`: git objects that nobody can reach any more leave the disk now.

use std::{collections::BTreeSet, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, Command};
use grasp_proto::{
    contract::relay::{PurgeRequest, RepositoriesRequest},
    process::settings::Settings,
    words::Identifier,
};
use serde_json::json;
use tonic::Code;

use super::{json_flag, read_identifier, repo_of};
use crate::{
    service::Service,
    text::{bytes, plain},
};

/// The command's name.
pub const COMMAND: &str = "purge";

/// How long one identifier may take.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// The command.
pub fn command() -> Command {
    Command::new(COMMAND)
        .about("Take git objects off the disk that nobody can reach any more, now")
        .after_help(
            "What force pushes, deletions and refused pushes left behind, and repositories that went; by itself it \
             goes after NGIT_GIT_UNREACHABLE_RETENTION_SECS. What is held for those who may come back goes by `holding \
             eject`: say that first. Pushes to the identifier wait meanwhile. Backups taken before still have it.",
        )
        .arg(
            Arg::new("identifiers")
                .value_name("IDENTIFIER")
                .value_parser(read_identifier)
                .num_args(1..)
                .required_unless_present("all")
                .help("Of repositories with this identifier, whoever owns them"),
        )
        .arg(
            Arg::new("all")
                .long("all")
                .action(ArgAction::SetTrue)
                .conflicts_with("identifiers")
                .help("Of all repositories"),
        )
        .arg(json_flag())
}

/// Purges one identifier after the other, and says what went.
pub async fn run(given: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let service = Service::find(settings)?;
    let identifiers = match given.get_many::<Identifier>("identifiers") {
        Some(identifiers) => identifiers.cloned().collect(),
        None => all(&service).await?,
    };
    let as_json = given.get_flag("json");
    let (mut purged, mut left) = (Vec::new(), Vec::new());
    for identifier in &identifiers {
        let mut request = tonic::Request::new(PurgeRequest {
            identifier: identifier.to_string(),
        });
        request.set_timeout(PATIENCE);
        let name = identifier.to_string();
        let line = match service.admin().purge(request).await {
            Ok(answer) => {
                let freed = answer.into_inner().bytes;
                purged.push(json!({"identifier": name, "bytes": freed}));
                format!("{}  {} gone\n", plain(&name), bytes(freed))
            }
            // One that cannot be pruned keeps none of the others from it.
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::Aborted) => {
                left.push(json!({"identifier": name, "why": status.message()}));
                format!(
                    "{}  stays as it is: {}\n",
                    plain(&name),
                    plain(status.message())
                )
            }
            Err(status) => return Err(service.failed(&status)),
        };
        if !as_json {
            crate::print(line.as_bytes())?;
        }
    }
    if as_json {
        let text = format!("{:#}\n", json!({"purged": purged, "left": left}));
        crate::print(text.as_bytes())?;
    }
    match left.is_empty() {
        true => Ok(()),
        false => anyhow::bail!("{} of {} were not purged", left.len(), identifiers.len()),
    }
}

/// The identifiers of all repositories.
async fn all(service: &Service) -> anyhow::Result<BTreeSet<Identifier>> {
    let failed = |status| service.failed(&status);
    let listed = service
        .admin()
        .repositories(RepositoriesRequest::default())
        .await;
    let mut listed = listed.map_err(failed)?.into_inner();
    let mut all = BTreeSet::new();
    while let Some(batch) = listed.message().await.map_err(failed)? {
        for one in batch.repositories {
            all.insert(repo_of(one.repository)?.identifier);
        }
    }
    Ok(all)
}
