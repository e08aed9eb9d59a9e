//! The document about the relay (NIP-11, GRASP-01).

use serde_json::{Value, json};

use grasp_proto::words::Npub;

use crate::{
    config::Config,
    domain::Domain,
    nip34::bounds,
    policy::curation::{Archive, Rules},
    session::{FILTER_VALUES, FILTERS, NEGOTIATIONS, SUBSCRIPTION_ID, max_message_bytes},
};

/// The document's content type.
pub const CONTENT_TYPE: &str = "application/nostr+json";

/// What the relay does whatever it is told.
const NIPS: [u16; 9] = [1, 11, 34, 40, 42, 45, 67, 70, 77];
/// What it does as long as it acts on requests to delete and to vanish.
const REQUESTS: [u16; 2] = [9, 62];

/// The document.
pub fn document(config: &Config) -> Value {
    let limits = &config.limits;
    let rules = config.curation.rules();
    let (about, own_key) = (&config.about, config.keys.public_key());
    let operator = about
        .operator
        .unwrap_or(Npub::from_bytes(own_key.to_bytes()));
    let own_icon = || format!("{}/icon.svg", web_address(config));
    let mut document = json!({
        "name": config.name,
        "description": config.description,
        "self": own_key.to_hex(),
        "pubkey": operator.to_hex(),
        "icon": about.icon.as_ref().map_or_else(own_icon, ToString::to_string),
        // A URL (NIP-11): the service's own page says what it runs.
        "software": format!("{}/#graspd", web_address(config)),
        "version": env!("CARGO_PKG_VERSION"),
        "supported_nips": nips(config),
        "supported_grasps": grasps(config, &rules),
        "repo_acceptance_criteria": criteria(&rules),
        "limitation": {
            "max_message_length": max_message_bytes(&limits.event_sizes),
            "max_event_length": limits.event_sizes.most_kinds,
            "max_state_length": limits.event_sizes.states,
            "max_subscriptions": limits.max_subscriptions,
            "max_filters": FILTERS,
            "max_filter_values": FILTER_VALUES,
            "max_negentropy_sessions": NEGOTIATIONS,
            "max_limit": limits.filter_limit,
            "default_limit": limits.filter_limit,
            "max_urls_per_list": bounds::MAX_URLS,
            "max_url_length": bounds::MAX_URL_BYTES,
            "max_tag_values": bounds::MAX_TAG_VALUES,
            "max_subid_length": SUBSCRIPTION_ID,
            "created_at_upper_limit": limits.created_at_ahead.as_secs(),
            "min_pow_difficulty": 0,
            "auth_required": false,
            "payment_required": false,
            "restricted_writes": true,
        },
    });
    let told = [
        ("contact", about.contact.clone()),
        ("banner", about.banner.as_ref().map(ToString::to_string)),
        (
            "terms_of_service",
            about.terms_of_service.as_ref().map(ToString::to_string),
        ),
    ];
    for (name, value) in told {
        if let Some(value) = value {
            document[name] = value.into();
        }
    }
    if let Some(most) = rate(limits.events_per_minute) {
        document["limitation"]["max_events_per_minute"] = most.into();
    }
    if let Some(curation) = curation(&rules) {
        document["curation"] = curation.into();
    }
    document
}

/// A rate, if there is one.
fn rate(per_minute: u32) -> Option<u32> {
    (per_minute > 0).then_some(per_minute)
}

fn nips(config: &Config) -> Vec<u16> {
    let requests = REQUESTS.into_iter().filter(|_| config.deletions.acted_on);
    let mut all: Vec<u16> = NIPS.into_iter().chain(requests).collect();
    all.sort_unstable();
    all
}

/// What is switched on, exactly.
fn grasps(config: &Config, rules: &Rules) -> Vec<&'static str> {
    let all = [
        ("GRASP-01", true),
        ("GRASP-02", config.hunts),
        ("GRASP-05", rules.archive().is_some()),
        ("GRASP-06", config.spaces.is_on()),
    ];
    let on = all.into_iter().filter(|(_, is_on)| *is_on);
    on.map(|(name, _)| name).collect()
}

/// Which repositories are accepted. Blacklists are nobody else's business: never mentioned.
fn criteria(rules: &Rules) -> String {
    let whose = match rules.is_choosy() {
        true => "Repositories chosen by the operator",
        false => "Repositories",
    };
    let archived = rules.archive().map_or_else(String::new, |archive| {
        format!("; besides, as an archive, {}", archived(archive))
    });
    format!(
        "{whose} whose announcement lists {} in both clone and relays{archived}: \
         once git data that a maintainer signed for has arrived",
        rules.ours()
    )
}

fn archived(archive: &Archive) -> String {
    if archive.all {
        return "all other repositories".to_owned();
    }
    let listed = (!archive.listed.is_empty()).then(|| "those chosen by the operator".to_owned());
    let services = (!archive.services.is_empty()).then(|| {
        let names: Vec<String> = archive.services.iter().map(Domain::to_string).collect();
        format!("those that name {} in clone", names.join(" or "))
    });
    let both: Vec<String> = listed.into_iter().chain(services).collect();
    match both.is_empty() {
        true => "none yet".to_owned(),
        false => both.join(" and "),
    }
}

/// How repositories are chosen; `None`: they are not.
fn curation(rules: &Rules) -> Option<String> {
    let chosen = rules
        .is_choosy()
        .then(|| "Only repositories chosen by the operator are hosted.".to_owned());
    let archive = rules.archive().map(|archive| {
        let manner = match archive.read_only {
            true => "read-only: their data comes from the servers they list",
            false => "and can be pushed to",
        };
        let what = archived(archive);
        format!(
            "Archive (GRASP-05): of repositories that do not list {}, {what} are kept, {manner}.",
            rules.ours()
        )
    });
    let both: Vec<String> = chosen.into_iter().chain(archive).collect();
    (!both.is_empty()).then(|| both.join(" "))
}

/// Where the service is found by browsers and git.
pub fn web_address(config: &Config) -> String {
    let scheme = if config.domain.is_local() {
        "http"
    } else {
        "https"
    };
    format!("{scheme}://{}", config.domain)
}

/// Where the service is found by Nostr clients.
pub fn relay_address(config: &Config) -> String {
    let scheme = if config.domain.is_local() {
        "ws"
    } else {
        "wss"
    };
    format!("{scheme}://{}", config.domain)
}
