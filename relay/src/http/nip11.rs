//! The document about the relay (NIP-11, GRASP-01).

use serde_json::{Value, json};

use crate::{
    config::Config,
    session::{SUBSCRIPTION_ID, max_message_bytes},
};

/// The document's content type.
pub const CONTENT_TYPE: &str = "application/nostr+json";

/// What the relay does, and nothing else.
const NIPS: [u16; 9] = [1, 9, 11, 34, 40, 42, 45, 70, 77];

/// The document.
pub fn document(config: &Config) -> Value {
    let limits = &config.limits;
    json!({
        "name": config.name,
        "description": config.description,
        "pubkey": config.keys.public_key().to_hex(),
        "icon": format!("{}/icon.svg", web_address(config)),
        "software": env!("CARGO_PKG_NAME").replace("grasp-relay", "graspd"),
        "version": env!("CARGO_PKG_VERSION"),
        "supported_nips": NIPS,
        "supported_grasps": ["GRASP-01"],
        "repo_acceptance_criteria": format!(
            "Repositories whose announcement lists {} in both clone and relays, \
             once git data that a maintainer signed for has arrived",
            config.domain
        ),
        "limitation": {
            "max_message_length": max_message_bytes(limits.max_event_bytes),
            "max_subscriptions": limits.max_subscriptions,
            "max_limit": limits.filter_limit,
            "default_limit": limits.filter_limit,
            "max_subid_length": SUBSCRIPTION_ID,
            "auth_required": false,
            "payment_required": false,
            "restricted_writes": true,
        },
    })
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
