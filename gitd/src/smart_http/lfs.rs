//! Git LFS, which is not spoken here: its clients are told so in their own language (git-lfs's
//! `docs/api`), so that their users read a sentence and not a page.
//!
//! To `locks/verify`, asked before every push, 501 has a meaning: git-lfs notes that there are no locks
//! to be had and asks no more.

use grasp_proto::smart_http::NotHere;
use http::{Response, StatusCode};

use super::{Body, status, typed, whole};

/// The type of all its messages.
const JSON: &str = "application/vnd.git-lfs+json";

const NOT_KEPT: &str = "Git LFS is not supported here: this server keeps git objects only. Put large \
                        files somewhere else (git config lfs.url), or commit them to git itself";

/// Whether what stands behind a repository's address is Git LFS's.
pub fn is_below(rest: &str) -> bool {
    let tail = rest.strip_prefix("/info/lfs");
    tail.is_some_and(|tail| tail.is_empty() || tail.starts_with('/'))
}

/// The answer to everything it asks.
pub fn refuse() -> Response<Body> {
    message(StatusCode::NOT_IMPLEMENTED, NOT_KEPT)
}

/// There is not even a repository.
pub fn not_here(why: NotHere) -> Response<Body> {
    message(StatusCode::NOT_FOUND, &why.to_string())
}

fn message(code: StatusCode, text: &str) -> Response<Body> {
    let json = serde_json::json!({ "message": text }).to_string();
    typed(status(code, whole(json)), JSON)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn its_paths_are_told_from_others() {
        for path in [
            "/info/lfs",
            "/info/lfs/objects/batch",
            "/info/lfs/locks/verify",
        ] {
            assert!(is_below(path), "{path}");
        }
        for path in ["/info/lfsx", "/info/refs", "", "/x/info/lfs"] {
            assert!(!is_below(path), "{path}");
        }
    }

    #[tokio::test]
    async fn it_is_answered_in_its_own_language() {
        for (response, code) in [(refuse(), 501), (not_here(NotHere::NotAnnounced), 404)] {
            assert_eq!(response.status(), code);
            assert_eq!(response.headers()["content-type"], JSON);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert!(json["message"].as_str().unwrap().len() > 20);
        }
    }
}
