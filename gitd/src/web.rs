//! Pages for people who open a repository's address in a browser.

use askama::Template;
use grasp_proto::{links, words::Address};

#[derive(Template)]
#[template(path = "repository.html")]
struct RepositoryPage<'a> {
    name: &'a str,
    npub: String,
    clone_url: String,
    nostr_path: String,
    is_prs: bool,
}

#[derive(Template)]
#[template(path = "not_found.html")]
struct NotFoundPage<'a> {
    path: &'a str,
}

/// The page of a repository that is here.
pub fn repository(domain: &str, address: &Address) -> String {
    let s = if is_local(domain) { "" } else { "s" };
    let page = RepositoryPage {
        name: address.identifier().as_str(),
        npub: address.owner().to_string(),
        clone_url: format!("http{s}://{domain}/{}", links::path(address)),
        nostr_path: links::nostr_path(address, &format!("ws{s}://{domain}")),
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
fn is_local(domain: &str) -> bool {
    let host = domain.rsplit_once(':').map_or(domain, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::{Identifier, Npub, RepoId};

    use super::*;

    #[test]
    fn names_and_paths_are_escaped() {
        let repo = RepoId {
            owner: Npub::from_bytes([7; 32]),
            identifier: Identifier::parse("<b>&;x").unwrap(),
        };
        for (address, path) in [
            (Address::from(&repo), ""),
            (Address::prs(repo.clone()), "prs/"),
        ] {
            let page = repository("localhost:7334", &address);
            assert!(!page.contains("<b>"), "{page}");
            assert!(page.contains(&format!("git clone http://localhost:7334/{path}npub1")));
            assert!(page.contains("%3Cb%3E%26%3Bx.git"), "{page}");
        }
        assert!(!not_found("/<script>").contains("<script>"));
    }

    #[test]
    fn clients_that_go_by_events_are_told_the_relay() {
        let repo = RepoId {
            owner: Npub::from_bytes([7; 32]),
            identifier: Identifier::parse("x").unwrap(),
        };
        let owner = repo.owner.to_string();
        for (domain, clone, hint) in [
            ("git.example", "https://git.example/", "git.example"),
            (
                "localhost:7334",
                "http://localhost:7334/",
                "ws%3A%2F%2Flocalhost%3A7334",
            ),
        ] {
            let page = repository(domain, &Address::from(&repo));
            for text in [
                format!("git clone {clone}{owner}/x.git"),
                format!("git clone nostr://{owner}/{hint}/x"),
                format!("https://gitworkshop.dev/{owner}/{hint}/x\""),
            ] {
                assert!(page.contains(&text), "{text}: {page}");
            }
        }
    }
}
