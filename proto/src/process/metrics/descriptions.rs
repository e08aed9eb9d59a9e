//! What every metric tells, for the `HELP` lines of all processes.

/// Name and meaning of every metric, in the order of their names.
#[rustfmt::skip]
pub static DESCRIPTIONS: &[(&str, &str)] = &[
    ("ngit_build_info", "Always 1; the version is in its label."),
    ("ngit_disk_floor_bytes", "Free space below which new data is refused (NGIT_MIN_FREE_BYTES), in bytes."),
    ("ngit_disk_free_bytes", "Free space for the data of a process, in bytes."),
    ("ngit_disk_full", "Whether new data is refused for want of space on the disk: 1 or 0."),
    ("ngit_event_judged_seconds", "How long it took to judge an event, by where it came from, in seconds."),
    ("ngit_events_received_total", "Events that came, by kind."),
    ("ngit_events_rejected_total", "Events that were rejected, by kind and reason."),
    ("ngit_events_stored_total", "Events that are served, by kind."),
    ("ngit_events_total", "Events by kind, by who brought them, and by what was said of them."),
    ("ngit_git_bytes_total", "Bytes of git data that were pushed or stored (in) and fetched (out)."),
    ("ngit_git_consolidation_seconds", "How long the packs of a pool took to be consolidated, in seconds."),
    ("ngit_git_consolidations_total", "Consolidations of the packs of a pool, by outcome."),
    ("ngit_git_fetches_total", "Clones and fetches, by outcome."),
    ("ngit_git_http_requests_total", "Requests that gitd answered, by what was asked for and status."),
    ("ngit_git_intake_refused_total", "Packs that were not taken in, by reason."),
    ("ngit_git_operation_seconds", "How long fetches, pushes and stored packs took, by outcome, in seconds."),
    ("ngit_git_operations_running", "Fetches, pushes and packs being stored that run now."),
    ("ngit_git_operations_total", "Clones and pushes, by outcome."),
    ("ngit_git_packs_total", "Packs that workers brought, by outcome."),
    ("ngit_git_place_refused_total", "Readers that got no place for a git process (busy) or lost theirs (slow)."),
    ("ngit_git_place_wait_seconds", "How long a place for a git process was waited for, in seconds."),
    ("ngit_git_processes_running", "Git processes that run now."),
    ("ngit_git_processes_waiting", "Requests that wait for a place for a git process now."),
    ("ngit_git_proxy_errors_total", "Git requests that gitd did not answer."),
    ("ngit_git_proxy_requests_total", "Git requests that were passed on to gitd, by what was asked for and outcome."),
    ("ngit_git_proxy_seconds", "How long gitd took until it began to answer, in seconds."),
    ("ngit_git_push_authorization_total", "Pushes that were authorized or rejected."),
    ("ngit_git_pushes_total", "Pushes as their users saw them end: ok, partial (some refs were refused) or refused."),
    ("ngit_git_repositories_at_start", "Repositories that lay in the git data path when gitd started."),
    ("ngit_git_storage_clock_ahead_seconds", "How far the clock of gitd is ahead of the relay's, in seconds; negative: behind."),
    ("ngit_git_storage_reachable", "Whether the relay reaches gitd: 1 or 0."),
    ("ngit_git_threads_running", "Blocking work on threads of gitd that runs now."),
    ("ngit_git_threads_waiting", "Blocking work that waits for a thread of gitd now."),
    ("ngit_git_top_repos_bytes", "Bytes moved by the repositories that move the most."),
    ("ngit_git_unsigned_bytes", "Bytes of packs that nobody has signed for yet."),
    ("ngit_git_unsigned_refused_total", "Uploads that nobody has signed for and that found no room, by limit."),
    ("ngit_grpc_client_calls_total", "Internal calls made, by method and code."),
    ("ngit_grpc_client_seconds", "How long internal calls took until their answer began, as the caller saw it, in seconds."),
    ("ngit_grpc_server_calls_total", "Internal calls answered, by method and code."),
    ("ngit_grpc_server_seconds", "How long internal calls took until their answer began, as the called saw it, in seconds."),
    ("ngit_held_repositories", "Deleted repositories whose data is held for their owners to announce again."),
    ("ngit_hunt_bytes_total", "Bytes that a worker fetched from other servers."),
    ("ngit_hunt_fetch_seconds", "How long fetches from other servers took, in seconds."),
    ("ngit_hunt_fetches_total", "Fetches from other servers, by outcome."),
    ("ngit_hunt_fetching", "Fetches from other servers that run now."),
    ("ngit_hunt_leases", "Identifiers that a worker hunts for now."),
    ("ngit_hunt_servers_set_aside", "Remote git servers that are set aside because they keep failing."),
    ("ngit_hunt_set_aside_total", "How often a remote git server was set aside because it kept failing."),
    ("ngit_internal_calls_refused_total", "Internal calls and connections without the right credential."),
    ("ngit_limits_refused_total", "What was refused to clients that have taken all they may, by limit."),
    ("ngit_process_resident_bytes", "Resident memory of a process, in bytes."),
    ("ngit_process_tasks", "Tasks of a process that are alive."),
    ("ngit_purgatory_bytes", "Memory that the events in purgatory take, at the last sweep."),
    ("ngit_purgatory_doomed_repositories", "Repositories that are to be deleted as their announcement expired."),
    ("ngit_purgatory_entries", "What was accepted and waits for its git data, by store."),
    ("ngit_purgatory_expired_total", "What expired without its git data, by what it was."),
    ("ngit_purgatory_kept_alive_entries", "Events in purgatory that are kept beyond their deadline because their git data could not be looked for."),
    ("ngit_purgatory_oldest_seconds", "For how long the oldest entry has waited, by store, in seconds."),
    ("ngit_purgatory_promoted_total", "Announcements that are served as their git data came."),
    ("ngit_purgatory_waited_seconds", "How long what was released had waited, by store, in seconds."),
    ("ngit_push_judged_seconds", "How long it took to judge a push before its pack was read, in seconds."),
    ("ngit_pushes_total", "Pushes as the relay judged them: accepted, partial (some refs were refused) or refused."),
    ("ngit_relays_attempts_total", "Attempts of a worker to connect to other relays, by outcome."),
    ("ngit_relays_bad_messages_total", "Messages of other relays that cannot be read, by what is wrong."),
    ("ngit_relays_connections", "Connections of a worker to other relays, by state."),
    ("ngit_relays_events_lost_total", "Events that a worker could not hand to the relay and gave up."),
    ("ngit_relays_events_total", "Events that came from other relays, by method."),
    ("ngit_relays_leases", "Other relays that a worker follows now."),
    ("ngit_relays_misbehaved_total", "Connections to other relays that were ended as they broke the protocol."),
    ("ngit_relays_overlong_messages_total", "Messages of other relays that were too long and left out."),
    ("ngit_relays_verdicts_total", "What the relay said of events that a worker brought, by verdict."),
    ("ngit_release_seconds", "How long it took to release what a push or a fetch completed, in seconds."),
    ("ngit_repo_bytes_total", "Bytes moved by the repositories that move the most."),
    ("ngit_repositories_active", "Repositories that are served."),
    (
        "ngit_repositories_made_again_total",
        "Served repositories that were not in the git storage any more, and were made again.",
    ),
    ("ngit_repositories_total", "Repositories that are served."),
    ("ngit_strangers_bytes", "Bytes of events stored of authors who have nothing else here, as far as they count."),
    ("ngit_sync_connection_attempts_total", "Attempts to connect to other relays, by relay and result."),
    ("ngit_sync_event_lag_seconds", "How old synced events were when they came, in seconds."),
    ("ngit_sync_events_synced_total", "Events of other relays that were new and taken."),
    ("ngit_sync_events_total", "Events of other relays, by outcome and method."),
    ("ngit_sync_rejected_events", "Events of other relays that were rejected and are remembered, by index."),
    ("ngit_sync_relay_backoff_seconds", "How long until another relay is connected to again, in seconds."),
    ("ngit_sync_relay_connected", "State of the connection to another relay: 0 none, 1 connecting, 2 syncing, 3 connected, 4 connected with failures."),
    ("ngit_sync_relay_events_received_total", "Events received from another relay."),
    ("ngit_sync_relay_items_confirmed", "What was asked of another relay and is followed."),
    ("ngit_sync_relay_items_wanted", "What is to be asked of another relay."),
    ("ngit_sync_relay_status", "How another relay does: 1 healthy, more otherwise."),
    ("ngit_sync_relay_subscriptions", "Subscriptions at another relay."),
    ("ngit_sync_relays_connected_total", "Other relays that are connected to."),
    ("ngit_sync_relays_dead_total", "Other relays that have failed for a day."),
    ("ngit_sync_relays_tracked_total", "Other relays that repositories name."),
    ("ngit_sync_subscriptions", "Subscriptions at all other relays."),
    ("ngit_sync_targets", "What is wanted of other relays, by level."),
    ("ngit_trace_spans_total", "Spans for the collector of traces, by whether they were sent or lost."),
    ("ngit_uptime_seconds", "For how long the relay has run, in seconds."),
    ("ngit_websocket_addresses", "Addresses that have websocket connections."),
    ("ngit_websocket_closed_total", "Websocket connections that the relay ended, by cause."),
    ("ngit_websocket_connection_duration_seconds", "How long websocket connections lasted, in seconds."),
    ("ngit_websocket_connections", "Websocket connections that are open."),
    ("ngit_websocket_connections_active", "Websocket connections that are open."),
    ("ngit_websocket_connections_total", "Websocket connections that were opened."),
    ("ngit_websocket_filter_bytes", "Memory that the filters of all connections take."),
    ("ngit_websocket_flagged_abusers", "Addresses with suspiciously many websocket connections."),
    ("ngit_websocket_messages_received_total", "Messages from clients, by type."),
    ("ngit_websocket_messages_sent_total", "Messages to clients, by type."),
    ("ngit_websocket_refused_total", "Websocket connections that were refused."),
    ("ngit_websocket_subscriptions", "Subscriptions of clients."),
    ("ngit_websocket_suspicious_addresses", "Addresses with suspiciously many websocket connections."),
    ("ngit_websocket_unique_ips", "Addresses that have websocket connections."),
    ("ngit_worker_bytes", "Bytes that a worker fetched, as it reported."),
    ("ngit_worker_fetches", "Fetches of a worker by outcome, as it reported."),
    ("ngit_worker_fetching", "Fetches of a worker that run now, as it reported."),
    ("ngit_worker_leases", "Identifiers that a worker hunts for now, as it reported."),
    ("process_cpu_seconds_total", "Time that a process has computed, in seconds."),
    ("process_max_fds", "Files that a process may have open."),
    ("process_open_fds", "Files that a process has open."),
    ("process_resident_memory_bytes", "Resident memory of a process, in bytes."),
    ("process_threads", "Threads of a process."),
    ("purgatory_domain_in_flight", "Requests to another domain that run now."),
    ("purgatory_domain_requests_total", "Requests to another domain."),
    ("purgatory_sync_attempts_total", "Identifiers that were handed to workers."),
    ("purgatory_sync_backoff_seconds", "How long the hunt for an identifier rests after it failed, in seconds."),
    ("purgatory_sync_oids_fetched_total", "Wanted objects that were fetched from other servers."),
    ("purgatory_sync_queue_size", "Identifiers whose git data is looked for elsewhere."),
];

/// What a metric tells.
pub fn description_of(name: &str) -> Option<&'static str> {
    let found = DESCRIPTIONS.binary_search_by_key(&name, |(known, _)| known);
    found.ok().map(|place| DESCRIPTIONS[place].1)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    /// All sources of the workspace, tests left out.
    fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_metric_of_the_sources_is_described() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut files = Vec::new();
        for place in [
            "proto/src",
            "relay/src",
            "gitd/src",
            "syncworker/src",
            "src",
        ] {
            sources(&workspace.join(place), &mut files);
        }
        let mut used = BTreeSet::new();
        for file in files {
            let text = fs::read_to_string(file).unwrap();
            let quoted = text.split('"');
            let is_name = |word: &&str| {
                let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
                ["ngit_", "purgatory_sync_", "purgatory_domain_", "process_"]
                    .iter()
                    .any(|prefix| word.starts_with(prefix) && word.len() > prefix.len())
                    && word.chars().all(is_of_name)
                    && *word != "ngit_grasp"
            };
            used.extend(quoted.filter(is_name).map(str::to_owned));
        }
        assert!(used.len() > 90, "{}", used.len());
        let missing: Vec<&String> = used
            .iter()
            .filter(|name| description_of(name).is_none())
            .collect();
        assert!(missing.is_empty(), "without a description: {missing:?}");
    }

    #[test]
    fn descriptions_are_sentences_in_the_order_of_their_names() {
        assert!(DESCRIPTIONS.is_sorted_by(|a, b| a.0 < b.0));
        for (name, text) in DESCRIPTIONS {
            assert!(text.ends_with('.') && !text.contains('\n'), "{name}");
        }
    }
}
