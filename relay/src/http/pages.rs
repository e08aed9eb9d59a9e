//! Pages for people.

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use grasp_proto::links;
use http::StatusCode;

use super::nip11;
use crate::config::Config;

/// The picture that the NIP-11 document and the pages show.
pub const ICON: &str = include_str!("../../templates/icon.svg");

#[derive(Template)]
#[template(path = "landing.html")]
struct Landing<'a> {
    name: &'a str,
    description: &'a str,
    web: String,
    relay: String,
    hint: String,
    version: &'a str,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct Problem<'a> {
    title: &'a str,
    path: &'a str,
    advice: &'a str,
}

fn page(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page could not be made");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// What the service is and how it is used.
pub fn landing(config: &Config) -> Response {
    let landing = Landing {
        name: &config.name,
        description: &config.description,
        web: nip11::web_address(config),
        relay: nip11::relay_address(config),
        hint: links::relay_hint(&nip11::relay_address(config)),
        version: env!("CARGO_PKG_VERSION"),
    };
    page(StatusCode::OK, &landing)
}

/// There is nothing at this path.
pub fn not_found(path: &str) -> Response {
    let problem = Problem {
        title: "Not found",
        path,
        advice: "There is nothing here. Repositories lie at /<npub>/<identifier>.git and are here \
                 once their announcement has been accepted.",
    };
    page(StatusCode::NOT_FOUND, &problem)
}

/// What serves this path cannot be reached.
pub fn unavailable(path: &str) -> Response {
    let problem = Problem {
        title: "Out of reach for the moment",
        path,
        advice: "The repository storage is restarting. Try again in a few seconds.",
    };
    page(StatusCode::SERVICE_UNAVAILABLE, &problem)
}
