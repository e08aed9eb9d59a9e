//! What the relay counts and times, besides the hunt's and the sync's own. Labels are words of ours: no
//! key, no name and no address is one.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use nostr::Kind;

use crate::{
    nip34::Meaning,
    verdict::{Origin, Verdict},
};

/// What kind of event it is, as far as that matters here.
pub fn class(kind: Kind) -> &'static str {
    match Meaning::of(kind) {
        _ if kind.is_ephemeral() => "ephemeral",
        Meaning::Announcement => "announcement",
        Meaning::State => "state",
        Meaning::PullRequest => "pull_request",
        Meaning::Deletion => "deletion",
        Meaning::Vanish => "vanish",
        Meaning::GraspList => "grasp_list",
        Meaning::Other => "other",
    }
}

/// What was said of an event.
fn result(verdict: &Verdict) -> &'static str {
    match (verdict.ok, verdict.message.split(':').next()) {
        (true, Some("purgatory")) => "purgatory",
        (true, Some("duplicate")) => "duplicate",
        (true, _) => "accepted",
        (false, Some("error")) => "failed",
        (false, _) => "rejected",
    }
}

fn from(origin: Origin) -> &'static str {
    match origin {
        Origin::User(_) | Origin::Operator => "user",
        Origin::Sync => "sync",
    }
}

/// An event was judged.
pub fn judged(kind: Kind, origin: Origin, verdict: &Verdict, begun: Instant) {
    let labels = [
        ("kind", class(kind)),
        ("origin", from(origin)),
        ("result", result(verdict)),
    ];
    metrics::counter!("ngit_events_total", &labels).increment(1);
    let origin = ("origin", from(origin));
    metrics::histogram!("ngit_event_judged_seconds", &[origin]).record(begun.elapsed());
}

/// What waited has been released: how long after it came.
pub fn released(store: &'static str, waited: Duration) {
    metrics::histogram!("ngit_purgatory_waited_seconds", "store" => store).record(waited);
}

/// A release was tried, and took so long.
pub fn release_took(begun: Instant) {
    metrics::histogram!("ngit_release_seconds").record(begun.elapsed());
}

/// A push was judged before its pack was read.
pub fn push_judged(result: &'static str, begun: Instant) {
    metrics::histogram!("ngit_push_judged_seconds", "result" => result).record(begun.elapsed());
}

/// A request was passed on to gitd, which began to answer, or did not.
pub fn passed_on(request: &'static str, answered: bool, begun: Instant) {
    let outcome = if answered { "answered" } else { "unavailable" };
    let labels = [("request", request), ("outcome", outcome)];
    metrics::counter!("ngit_git_proxy_requests_total", &labels).increment(1);
    metrics::histogram!("ngit_git_proxy_seconds", "request" => request).record(begun.elapsed());
}

/// The type of a message between client and relay (NIP-01, NIP-42, NIP-45, NIP-77).
fn message_type(text: &str) -> &'static str {
    let name = text.trim_start().strip_prefix('[').map(str::trim_start);
    let name = name.and_then(|rest| rest.strip_prefix('"')?.split_once('"'));
    let known = |(name, _): (&str, _)| MESSAGES.into_iter().find(|known| *known == name);
    name.and_then(known).unwrap_or("other")
}

const MESSAGES: [&str; 14] = [
    "EVENT",
    "REQ",
    "CLOSE",
    "COUNT",
    "AUTH",
    "NEG-OPEN",
    "NEG-MSG",
    "NEG-CLOSE",
    "NEG-ERR",
    "OK",
    "EOSE",
    "CLOSED",
    "NOTICE",
    "other",
];

/// A client has sent this.
pub fn received(text: &str) {
    let kind = message_type(text);
    metrics::counter!("ngit_websocket_messages_received_total", "type" => kind).increment(1);
}

/// This is sent to a client.
pub fn sent(text: &str) {
    let kind = message_type(text);
    metrics::counter!("ngit_websocket_messages_sent_total", "type" => kind).increment(1);
}

/// Something was refused to a client that has taken all it may.
pub fn limited(limit: &'static str) {
    metrics::counter!("ngit_limits_refused_total", "limit" => limit).increment(1);
}

/// How long the process has run.
pub fn uptime() -> Duration {
    BEGUN.get().map(Instant::elapsed).unwrap_or_default()
}

static BEGUN: OnceLock<Instant> = OnceLock::new();

/// What is looked at before it first happens is there, at 0.
pub fn begin() {
    BEGUN.get_or_init(Instant::now);
    for limit in ["connections", "events", "strangers", "filters"] {
        metrics::counter!("ngit_limits_refused_total", "limit" => limit).absolute(0);
    }
    for kind in ["EVENT", "REQ", "CLOSE"] {
        metrics::counter!("ngit_websocket_messages_received_total", "type" => kind).absolute(0);
    }
    for kind in ["EVENT", "OK", "EOSE"] {
        metrics::counter!("ngit_websocket_messages_sent_total", "type" => kind).absolute(0);
    }
    for origin in [Origin::User(None), Origin::Sync] {
        for (kind, result) in [
            ("announcement", "accepted"),
            ("announcement", "purgatory"),
            ("announcement", "rejected"),
            ("state", "accepted"),
            ("state", "purgatory"),
            ("state", "rejected"),
            ("other", "accepted"),
            ("other", "rejected"),
            ("other", "failed"),
        ] {
            let labels = [("kind", kind), ("origin", from(origin)), ("result", result)];
            metrics::counter!("ngit_events_total", &labels).absolute(0);
        }
        // Being there is all it takes, for these and those below.
        drop(metrics::histogram!("ngit_event_judged_seconds", "origin" => from(origin)));
    }
    for result in ["accepted", "partial", "refused"] {
        metrics::counter!("ngit_pushes_total", "result" => result).absolute(0);
    }
    for cause in [
        "overflow",
        "stalled",
        "silent",
        "too_large",
        "busy",
        "malformed",
    ] {
        metrics::counter!("ngit_websocket_closed_total", "cause" => cause).absolute(0);
    }
    for what in ["announcement", "state", "pull request"] {
        metrics::counter!("ngit_purgatory_expired_total", "what" => what).absolute(0);
    }
    for counter in [
        "ngit_git_proxy_errors_total",
        "ngit_internal_calls_refused_total",
        "ngit_purgatory_promoted_total",
        "ngit_websocket_connections_total",
        "ngit_websocket_refused_total",
    ] {
        metrics::counter!(counter).absolute(0);
    }
    metrics::gauge!("ngit_git_storage_reachable").set(0.0);
    metrics::gauge!("ngit_git_storage_clock_ahead_seconds").set(0.0);
    metrics::gauge!("ngit_purgatory_bytes").set(0.0);
    metrics::gauge!("ngit_purgatory_kept_alive_entries").set(0.0);
    metrics::gauge!("ngit_strangers_bytes").set(0.0);
    metrics::gauge!("ngit_websocket_connections").set(0.0);
    metrics::gauge!("ngit_websocket_filter_bytes").set(0.0);
    metrics::gauge!("ngit_websocket_subscriptions").set(0.0);
    for store in ["announcements", "states", "pull_requests"] {
        drop(metrics::histogram!("ngit_purgatory_waited_seconds", "store" => store));
    }
    drop(metrics::histogram!("ngit_release_seconds"));
    drop(metrics::histogram!(
        "ngit_websocket_connection_duration_seconds"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_of_a_known_type_or_of_none() {
        for (text, expected) in [
            ("[\"REQ\",\"a\",{}]", "REQ"),
            (" [ \"EVENT\", {}]", "EVENT"),
            ("[\"REQUEST\"]", "other"),
            ("[\"", "other"),
            ("", "other"),
        ] {
            assert_eq!(message_type(text), expected, "{text}");
        }
    }

    #[test]
    fn a_verdict_is_counted_as_what_it_says() {
        for (verdict, word) in [
            (Verdict::served(), "accepted"),
            (Verdict::accepted("purgatory: won't be served"), "purgatory"),
            (Verdict::accepted("duplicate: in purgatory"), "duplicate"),
            (Verdict::rejected("blocked: x"), "rejected"),
            (Verdict::rejected("error: disk; try again"), "failed"),
        ] {
            assert_eq!(result(&verdict), word);
        }
        assert_eq!(class(Kind::from(30_617)), "announcement");
        assert_eq!(class(Kind::from(20_001)), "ephemeral");
    }
}
