//! Pages for people who open a repository's address in a browser.

use askama::Template;
use grasp_proto::words::Address;

#[derive(Template)]
#[template(path = "repository.html")]
struct RepositoryPage<'a> {
    name: &'a str,
    npub: String,
    clone_url: String,
    path: String,
    is_prs: bool,
}

#[derive(Template)]
#[template(path = "not_found.html")]
struct NotFoundPage<'a> {
    path: &'a str,
}

/// The page of a repository that is here.
pub fn repository(domain: &str, address: &Address) -> String {
    let url = address.to_string();
    let page = RepositoryPage {
        name: address.identifier().as_str(),
        npub: address.owner().to_string(),
        clone_url: format!("{}://{domain}/{url}", scheme(domain)),
        path: url.strip_suffix(".git").unwrap_or(&url).to_owned(),
        is_prs: address.is_prs(),
    };
    render(&page)
}

/// The page for everything else.
pub fn not_found(path: &str) -> String {
    render(&NotFoundPage { path })
}

fn render(page: &impl Template) -> String {
    page.render().unwrap_or_else(|error| {
        tracing::error!(%error, "a page was not made");
        String::new()
    })
}

/// A service on this machine has no certificate; every other is behind one.
fn scheme(domain: &str) -> &'static str {
    let host = domain.rsplit_once(':').map_or(domain, |(host, _)| host);
    match host {
        "localhost" | "127.0.0.1" | "[::1]" => "http",
        _ => "https",
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::{Identifier, Npub, RepoId};

    use super::*;

    #[test]
    fn names_and_paths_are_escaped() {
        let repo = RepoId {
            owner: Npub::from_bytes([7; 32]),
            identifier: Identifier::parse("<b>&").unwrap(),
        };
        for (address, path) in [
            (Address::from(&repo), ""),
            (Address::prs(repo.clone()), "prs/"),
        ] {
            let page = repository("localhost:7334", &address);
            assert!(!page.contains("<b>"), "{page}");
            assert!(page.contains(&format!("git clone http://localhost:7334/{path}npub1")));
        }
        assert!(!not_found("/<script>").contains("<script>"));
    }
}
