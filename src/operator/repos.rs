//! `graspd repos`: every repository, who owns it, how it stands, what it takes and what waits.

use std::{cmp::Reverse, collections::HashSet, fmt::Write};

use clap::{Arg, ArgMatches, Command};
use grasp_proto::{
    contract::relay::{KnownRepository, RepositoriesRequest, Standing},
    process::settings::Settings,
    words::{Identifier, Npub, RepoId},
};
use serde_json::{Value, json};

use super::{json_flag, names, read_identifier, read_owner, repo_of, with, written};
use crate::{
    service::Service,
    text::{bytes, now_millis, plain, table, when},
};

/// The command's name.
pub const COMMAND: &str = "repos";

/// The command.
pub fn command() -> Command {
    Command::new(COMMAND)
        .about("List the repositories: size, owner, how they stand, what waits and until when")
        .after_help(
            "Size is what the repository takes by itself; the pool is what it shares with those of the same \
             identifier. `unannounced` lies on disk and nobody announced it.",
        )
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
        .arg(
            Arg::new("sort")
                .long("sort")
                .value_name("BY")
                .value_parser(["name", "size"])
                .default_value("name")
                .help("By identifier and owner, or the largest first"),
        )
        .arg(json_flag())
}

struct Row {
    repo: RepoId,
    known: KnownRepository,
}

impl Row {
    /// What it takes, with its pool.
    fn bytes(&self) -> u64 {
        let git = self.known.git.as_ref();
        git.map_or(0, |git| git.bytes.saturating_add(git.pool_bytes))
    }
}

/// Lists what is asked for.
pub async fn run(given: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let service = Service::find(settings)?;
    let owner = given.get_one::<Npub>("owner");
    let identifier = given.get_one::<Identifier>("identifier");
    let request = RepositoriesRequest {
        owner: owner.map_or_else(Vec::new, |owner| owner.as_bytes().to_vec()),
        identifier: identifier.map_or_else(String::new, ToString::to_string),
    };
    let failed = |status| service.failed(&status);
    let listed = service.admin().repositories(request).await;
    let mut listed = listed.map_err(failed)?.into_inner();
    let mut rows = Vec::new();
    while let Some(batch) = listed.message().await.map_err(failed)? {
        for known in batch.repositories {
            let repo = repo_of(known.repository.clone())?;
            rows.push(Row { repo, known });
        }
    }
    match given.get_one::<String>("sort").map(String::as_str) {
        Some("size") => rows.sort_by_key(|row| Reverse(row.bytes())),
        _ => rows.sort_by(|a, b| {
            let key = |row: &Row| (row.repo.identifier.clone(), row.repo.owner);
            key(a).cmp(&key(b))
        }),
    }
    let text = match given.get_flag("json") {
        true => format!("{:#}\n", to_json(&rows)),
        false => to_text(&rows, now_millis()),
    };
    crate::print(text.as_bytes())
}

fn standing(known: &KnownRepository) -> &'static str {
    match known.standing() {
        Standing::Unspecified => "unknown",
        Standing::Active => "active",
        Standing::Waiting => "waiting",
        Standing::SoftExpired => "soft-expired",
        Standing::Elsewhere => "elsewhere",
        Standing::Withheld => "withheld",
        Standing::Archived => "archived",
        Standing::Unannounced => "unannounced",
        Standing::Retired => "retired",
    }
}

/// Pools are counted once, however many repositories share them.
struct Totals {
    on_disk: usize,
    own: u64,
    pools: u64,
}

fn totals(rows: &[Row]) -> Totals {
    let mut pools = HashSet::new();
    let mut sum = Totals {
        on_disk: 0,
        own: 0,
        pools: 0,
    };
    for row in rows {
        if let Some(git) = &row.known.git {
            sum.on_disk += 1;
            sum.own += git.bytes;
            if pools.insert(&row.repo.identifier) || git.pool_views == 0 {
                sum.pools += git.pool_bytes;
            }
        }
    }
    sum
}

fn waiting(known: &KnownRepository, now: u64) -> String {
    let count = |n: u32, what: &str| match n {
        0 => None,
        1 => Some(format!("1 {what}")),
        n => Some(format!("{n} {what}s")),
    };
    let states = count(known.states_waiting, "state");
    let requests = count(known.pull_requests_waiting, "pull request");
    let mut words: Vec<String> = states.into_iter().chain(requests).collect();
    if known.expires_millis > 0 {
        words.insert(0, "announcement".to_owned());
    }
    if known.is_to_go {
        words.push("is to go".to_owned());
    }
    let until = known.expires_millis.max(known.waits_until_millis);
    match (words.is_empty(), until) {
        (true, _) => "-".to_owned(),
        (false, 0) => words.join(", "),
        (false, until) => format!("{}, expires {}", words.join(", "), when(until, now)),
    }
}

fn to_text(rows: &[Row], now: u64) -> String {
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let git = row.known.git.as_ref();
            let sized = |size: Option<String>| size.unwrap_or_else(|| "-".to_owned());
            vec![
                plain(&written(&row.repo)),
                standing(&row.known).to_owned(),
                sized(git.map(|git| bytes(git.bytes))),
                sized(
                    git.filter(|git| git.pool_views > 0)
                        .map(|git| format!("{} / {}", bytes(git.pool_bytes), git.pool_views)),
                ),
                sized(git.map(|git| git.refs.to_string())),
                sized(git.map(|git| when(git.changed_millis, now))),
                waiting(&row.known, now),
            ]
        })
        .collect();
    let head = [
        "repository",
        "stands",
        "size",
        "pool / shared by",
        "refs",
        "changed",
        "waits",
    ];
    let mut text = table(&head, &lines);
    let sum = totals(rows);
    let _ = writeln!(
        text,
        "{} repositories, {} on disk: {} in pools, {} beside them",
        rows.len(),
        sum.on_disk,
        bytes(sum.pools),
        bytes(sum.own)
    );
    text
}

fn to_json(rows: &[Row]) -> Value {
    let listed = rows.iter().map(|row| {
        let known = &row.known;
        let git = known.git.as_ref().map(|git| {
            json!({
                "bytes": git.bytes,
                "pool_bytes": git.pool_bytes,
                "pool_views": git.pool_views,
                "refs": git.refs,
                "incarnation": git.incarnation,
                "changed_millis": git.changed_millis,
                "is_empty": git.is_empty,
            })
        });
        let more = json!({
            "standing": standing(known),
            "states_waiting": known.states_waiting,
            "pull_requests_waiting": known.pull_requests_waiting,
            "expires_millis": known.expires_millis,
            "waits_until_millis": known.waits_until_millis,
            "is_to_go": known.is_to_go,
            "git": git,
        });
        with(names(&row.repo), more)
    });
    let sum = totals(rows);
    json!({
        "repositories": listed.collect::<Vec<_>>(),
        "on_disk": sum.on_disk,
        "bytes": sum.own,
        "pool_bytes": sum.pools,
    })
}

#[cfg(test)]
mod tests {
    use grasp_proto::contract::git::RepositoryDescription;

    use super::*;

    fn row(owner: u8, standing: Standing, git: Option<RepositoryDescription>) -> Row {
        let repo = RepoId {
            owner: Npub::from_bytes([owner; 32]),
            identifier: Identifier::parse("x").unwrap(),
        };
        let known = KnownRepository {
            standing: standing.into(),
            states_waiting: 2,
            waits_until_millis: 1_061_000,
            git,
            ..KnownRepository::default()
        };
        Row { repo, known }
    }

    #[test]
    fn a_pool_that_is_shared_is_counted_once() {
        let git = RepositoryDescription {
            bytes: 10,
            pool_bytes: 1_000_000,
            pool_views: 2,
            ..RepositoryDescription::default()
        };
        let rows = [
            row(1, Standing::Active, Some(git.clone())),
            row(2, Standing::Waiting, Some(git)),
            row(3, Standing::Elsewhere, None),
        ];
        let text = to_text(&rows, 1_000_000);
        let end = "3 repositories, 2 on disk: 1.0 MB in pools, 20 B beside them\n";
        assert!(text.ends_with(end), "{text}");
        assert!(text.contains("2 states, expires in 61s"), "{text}");
        let json = to_json(&rows);
        assert_eq!(
            (&json["pool_bytes"], &json["bytes"]),
            (&json!(1_000_000), &json!(20))
        );
        assert_eq!(json["repositories"][1]["standing"], "waiting");
        assert!(json["repositories"][2]["git"].is_null());
    }
}
