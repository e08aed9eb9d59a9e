//! `graspd export`: the events that a running service serves, as lines of JSON.
//!
//! What comes is written as it comes: memory grows with neither their number nor their size. `graspd
//! import` reads it.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use grasp_proto::{contract::relay::ExportRequest, process::settings::Settings, words::Npub};
use tonic::Request;

use crate::{operator::read_owner, service::Service, text::now_millis};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The command line.
pub fn command() -> Command {
    let time = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("TIME")
            .value_parser(read_time)
            .value_hint(ValueHint::Other)
            .help(help)
    };
    Command::new("export")
        .about("Write the events that a running service serves to standard output, as lines of JSON")
        .after_help(
            "The events of one moment, in no order, with the requests to delete that were accepted; without \
             what waits in purgatory, is held or withheld, or has expired. `graspd import` takes them in again. \
             A TIME is in seconds since 1970, or so long ago: 90s, 30m, 12h, 7d.",
        )
        .arg(
            Arg::new("kind")
                .long("kind")
                .value_name("KIND")
                .action(ArgAction::Append)
                .value_delimiter(',')
                .value_parser(value_parser!(u16))
                .value_hint(ValueHint::Other)
                .help("Only events of this kind; may be repeated"),
        )
        .arg(
            Arg::new("author")
                .long("author")
                .value_name("NPUB")
                .action(ArgAction::Append)
                .value_delimiter(',')
                .value_parser(read_owner)
                .value_hint(ValueHint::Other)
                .help("Only events by this author, as npub1… or hex; may be repeated"),
        )
        .arg(time("since", "Only events made then or later"))
        .arg(time("until", "Only events made then or earlier"))
}

/// Writes what is asked for.
pub async fn run(given: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let service = Service::find(settings)?;
    let kinds = given.get_many::<u16>("kind").unwrap_or_default();
    let authors = given.get_many::<Npub>("author").unwrap_or_default();
    let time = |name: &str| given.get_one::<u64>(name).copied();
    let mut request = Request::new(ExportRequest {
        kinds: kinds.copied().map(u32::from).collect(),
        authors: authors.map(|author| author.as_bytes().to_vec()).collect(),
        since: time("since"),
        until: time("until"),
    });
    request.set_timeout(PATIENCE);
    let failed = |status| service.failed(&status);
    let exported = service.admin().export(request).await;
    let mut exported = exported.map_err(failed)?.into_inner();
    while let Some(chunk) = exported.message().await.map_err(failed)? {
        crate::print(&chunk.events)?;
    }
    Ok(())
}

/// Seconds since 1970, also as a time so long ago.
fn read_time(text: &str) -> Result<u64, String> {
    let now = now_millis() / 1000;
    time_at(text, now)
        .ok_or_else(|| "give seconds since 1970, or how long ago: 90s, 30m, 12h, 7d".to_owned())
}

fn time_at(text: &str, now: u64) -> Option<u64> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return text.parse().ok(),
    };
    let count: u64 = text[..text.len() - 1].parse().ok()?;
    Some(now.saturating_sub(count.checked_mul(unit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_moment_or_so_long_ago() {
        for (text, time) in [
            ("0", Some(0)),
            ("1700000000", Some(1_700_000_000)),
            ("90s", Some(999_910)),
            ("2h", Some(992_800)),
            ("7d", Some(395_200)),
            ("99d", Some(0)),
            ("", None),
            ("d", None),
            ("-1", None),
            ("yesterday", None),
            ("7µ", None),
        ] {
            assert_eq!(time_at(text, 1_000_000), time, "{text}");
        }
    }
}
