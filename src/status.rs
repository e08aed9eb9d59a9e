//! `graspd status`: what waits, what is hunted for, where, and by whom.
//!
//! Asks the relay's Admin service ([`crate::service`]).

use std::fmt::Write;

use grasp_proto::{
    contract::relay::{DomainStatus, RelayState, StatusRequest, StatusResponse, SyncStatus},
    process::settings::Settings,
};
use serde_json::{Value, json};

use crate::{
    service::Service,
    text::{bytes, now_millis, plain, table, when},
};

/// Prints the status of the service that `settings` lead to, `most` lines of each list.
pub async fn print(settings: &Settings, as_json: bool, most: u32) -> anyhow::Result<()> {
    let status = ask(settings, most).await?;
    let text = match as_json {
        true => format!("{:#}\n", to_json(&status)),
        false => to_text(&status),
    };
    crate::print(text.as_bytes())
}

async fn ask(settings: &Settings, most: u32) -> anyhow::Result<StatusResponse> {
    let service = Service::find(settings)?;
    let answer = service.admin().status(StatusRequest { most }).await;
    Ok(answer
        .map_err(|status| service.failed(&status))?
        .into_inner())
}

/// How often in a row a server of a domain was set aside.
fn times(domain: &DomainStatus) -> String {
    match domain.times_set_aside {
        1 => "once".to_owned(),
        times => format!("{times} times in a row"),
    }
}

fn to_text(status: &StatusResponse) -> String {
    let now = now_millis();
    let mut text = String::new();
    let storage = match status.git_reachable {
        true => "git storage answers",
        false => "GIT STORAGE DOES NOT ANSWER",
    };
    let _ = writeln!(
        text,
        "{} repositories served, {storage}",
        status.repositories
    );

    let purgatory = status.purgatory.clone().unwrap_or_default();
    let _ = writeln!(text, "\npurgatory");
    let rows: Vec<Vec<String>> = purgatory
        .kinds
        .iter()
        .map(|kind| {
            vec![
                kind.kind.clone(),
                kind.entries.to_string(),
                when(kind.oldest_millis, now),
                when(kind.first_expiry_millis, now),
            ]
        })
        .collect();
    text.push_str(&table(
        &["kind", "entries", "oldest", "first expires"],
        &rows,
    ));
    if purgatory.doomed > 0 {
        let _ = writeln!(text, "  {} repositories are still to go", purgatory.doomed);
    }

    let queue = status.queue.clone().unwrap_or_default();
    let _ = writeln!(
        text,
        "\nhunt: {} identifiers lack git data, {} of them with a worker, {} due, {} waiting for a domain",
        queue.identifiers, queue.leased, queue.due, queue.waiting_for_domains
    );
    if !queue.entries.is_empty() {
        let rows: Vec<Vec<String>> = queue
            .entries
            .iter()
            .map(|entry| {
                vec![
                    plain(&entry.identifier),
                    when(entry.next_attempt_millis, now),
                    entry.attempts.to_string(),
                    plain(&entry.worker),
                ]
            })
            .collect();
        text.push_str(&table(
            &["identifier", "next attempt", "attempts", "worker"],
            &rows,
        ));
        let left = queue.identifiers.saturating_sub(queue.entries.len() as u64);
        if left > 0 {
            let _ = writeln!(text, "  and {left} more");
        }
    }

    if !status.domains.is_empty() {
        let _ = writeln!(text, "\ndomains");
        let rows: Vec<Vec<String>> = status
            .domains
            .iter()
            .map(|domain| {
                vec![
                    plain(&domain.domain),
                    domain.in_flight.to_string(),
                    domain.last_minute.to_string(),
                    domain.waiting.to_string(),
                    match domain.set_aside_until_millis {
                        0 => "-".to_owned(),
                        until if until <= now => format!("being probed ({})", times(domain)),
                        until => format!("{} ({})", when(until, now), times(domain)),
                    },
                ]
            })
            .collect();
        let head = [
            "domain",
            "in flight",
            "last minute",
            "waiting",
            "back from being set aside",
        ];
        text.push_str(&table(&head, &rows));
        if status.more_domains > 0 {
            let _ = writeln!(text, "  and {} more", status.more_domains);
        }
    }

    sync_to_text(&mut text, &status.sync.clone().unwrap_or_default(), now);

    let _ = writeln!(text, "\nworkers");
    if status.workers.is_empty() {
        let _ = writeln!(text, "  none: what is missing is not looked for");
        return text;
    }
    let rows: Vec<Vec<String>> = status
        .workers
        .iter()
        .map(|worker| {
            let counts = worker.counts.unwrap_or_default();
            vec![
                plain(&worker.worker),
                format!("{}/{}", worker.leases, counts.concurrency),
                counts.fetching.to_string(),
                counts.fetches_succeeded.to_string(),
                counts.fetches_failed.to_string(),
                bytes(counts.bytes),
                when(worker.seen_millis, now),
            ]
        })
        .collect();
    let head = [
        "worker", "leases", "fetching", "fetched", "failed", "received", "heard of",
    ];
    text.push_str(&table(&head, &rows));
    text
}

/// How a connection to another relay is, in words.
fn relay_state(state: RelayState) -> &'static str {
    match state {
        RelayState::Unspecified | RelayState::Disconnected => "disconnected",
        RelayState::Connecting => "connecting",
        RelayState::Syncing => "syncing",
        RelayState::Connected => "connected",
        RelayState::ConnectedWithFailures => "connected, history incomplete",
    }
}

fn sync_to_text(text: &mut String, sync: &SyncStatus, now: u64) {
    let _ = writeln!(
        text,
        "\nsync: {} repositories whole, {} by their states, {} root events; {} of {} relays connected",
        sync.full, sync.state_only, sync.roots, sync.connected, sync.remote_relays
    );
    let _ = writeln!(
        text,
        "  rejected: {} events kept to be judged again, {} not fetched again",
        sync.rejected_whole, sync.rejected_ids
    );
    if sync.relays.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = sync
        .relays
        .iter()
        .map(|relay| {
            let events = relay.events_live + relay.events_negentropy + relay.events_paged;
            let next = relay.next_attempt_millis.max(relay.silent_until_millis);
            vec![
                plain(&relay.url),
                relay_state(relay.state()).to_owned(),
                plain(&relay.health),
                format!("{}/{}", relay.confirmed, relay.wanted),
                relay.subscriptions.to_string(),
                events.to_string(),
                when(next, now),
                plain(&relay.worker),
                plain(&relay.last_error),
            ]
        })
        .collect();
    let head = [
        "relay",
        "state",
        "health",
        "history",
        "subscriptions",
        "events",
        "next attempt",
        "worker",
        "last error",
    ];
    text.push_str(&table(&head, &rows));
    if sync.more_relays > 0 {
        let _ = writeln!(text, "  and {} more", sync.more_relays);
    }
}

fn sync_to_json(sync: &SyncStatus) -> Value {
    let relays = sync.relays.iter().map(|relay| {
        json!({
            "url": relay.url,
            "worker": relay.worker,
            "bootstrap": relay.bootstrap,
            "repositories": relay.repositories,
            "state": relay_state(relay.state()),
            "health": relay.health,
            "subscriptions": relay.subscriptions,
            "confirmed": relay.confirmed,
            "wanted": relay.wanted,
            "attempts_succeeded": relay.attempts_succeeded,
            "attempts_failed": relay.attempts_failed,
            "events_live": relay.events_live,
            "events_negentropy": relay.events_negentropy,
            "events_paged": relay.events_paged,
            "next_attempt_millis": relay.next_attempt_millis,
            "silent_until_millis": relay.silent_until_millis,
            "last_error": relay.last_error,
        })
    });
    json!({
        "full": sync.full,
        "state_only": sync.state_only,
        "roots": sync.roots,
        "remote_relays": sync.remote_relays,
        "connected": sync.connected,
        "relays": relays.collect::<Vec<_>>(),
        "more_relays": sync.more_relays,
        "rejected_whole": sync.rejected_whole,
        "rejected_ids": sync.rejected_ids,
    })
}

fn to_json(status: &StatusResponse) -> Value {
    let purgatory = status.purgatory.clone().unwrap_or_default();
    let queue = status.queue.clone().unwrap_or_default();
    let kinds = purgatory.kinds.iter().map(|kind| {
        json!({
            "kind": kind.kind,
            "entries": kind.entries,
            "oldest_millis": kind.oldest_millis,
            "first_expiry_millis": kind.first_expiry_millis,
        })
    });
    let entries = queue.entries.iter().map(|entry| {
        json!({
            "identifier": entry.identifier,
            "next_attempt_millis": entry.next_attempt_millis,
            "attempts": entry.attempts,
            "worker": entry.worker,
        })
    });
    let domains = status.domains.iter().map(|domain| {
        json!({
            "domain": domain.domain,
            "in_flight": domain.in_flight,
            "last_minute": domain.last_minute,
            "waiting": domain.waiting,
            "set_aside_until_millis": domain.set_aside_until_millis,
            "times_set_aside": domain.times_set_aside,
        })
    });
    let workers = status.workers.iter().map(|worker| {
        let counts = worker.counts.unwrap_or_default();
        json!({
            "worker": worker.worker,
            "leases": worker.leases,
            "concurrency": counts.concurrency,
            "fetching": counts.fetching,
            "fetches_succeeded": counts.fetches_succeeded,
            "fetches_failed": counts.fetches_failed,
            "bytes": counts.bytes,
            "seen_millis": worker.seen_millis,
        })
    });
    json!({
        "repositories": status.repositories,
        "git_reachable": status.git_reachable,
        "purgatory": {
            "kinds": kinds.collect::<Vec<_>>(),
            "doomed": purgatory.doomed,
        },
        "queue": {
            "identifiers": queue.identifiers,
            "leased": queue.leased,
            "due": queue.due,
            "waiting_for_domains": queue.waiting_for_domains,
            "entries": entries.collect::<Vec<_>>(),
        },
        "domains": domains.collect::<Vec<_>>(),
        "more_domains": status.more_domains,
        "workers": workers.collect::<Vec<_>>(),
        "sync": sync_to_json(&status.sync.clone().unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use grasp_proto::contract::relay::RemoteRelayStatus;

    use super::*;

    #[test]
    fn the_history_of_each_relay_is_shown() {
        let relay = RemoteRelayStatus {
            url: "wss://relay.example".to_owned(),
            state: RelayState::Syncing.into(),
            health: "healthy".to_owned(),
            confirmed: 3,
            wanted: 9,
            ..Default::default()
        };
        let sync = SyncStatus {
            remote_relays: 2,
            relays: vec![relay],
            more_relays: 1,
            ..Default::default()
        };
        let mut text = String::new();
        sync_to_text(&mut text, &sync, 1_000);
        let line = text
            .lines()
            .find(|line| line.contains("wss://relay.example"));
        let cells: Vec<&str> = line.unwrap().split_whitespace().collect();
        assert_eq!(cells[1..4], ["syncing", "healthy", "3/9"]);
        assert!(text.ends_with("and 1 more\n"));
        assert_eq!(sync_to_json(&sync)["relays"][0]["state"], "syncing");
    }
}
