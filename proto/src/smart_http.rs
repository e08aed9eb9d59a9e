//! What a git client's request says of itself, and what it is told when nothing is there: known to both
//! processes that answer it.
//!
//! Of an error's answer git shows its user only what is plain text, so that is what git gets, and
//! browsers get pages.

use std::fmt;

use http::{HeaderMap, header};
use percent_encoding::percent_decode_str;

use crate::words::{Identifier, Npub};

/// A service of git's smart HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitService {
    /// Readers'.
    UploadPack,
    /// Pushers'.
    ReceivePack,
}

impl GitService {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }

    /// The service of this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::UploadPack, Self::ReceivePack];
        all.into_iter().find(|service| service.name() == name)
    }

    /// Which service the query of `info/refs` asks for, percent-encoded or not, among whatever else it
    /// says. Of several the last counts, as it does for `git http-backend`.
    pub fn asked_for(query: Option<&str>) -> Option<Self> {
        let pairs = query.unwrap_or_default().split('&');
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut from_behind = pairs.rev();
        let (_, service) = from_behind.find(|(name, _)| decoded(name) == "service")?;
        Self::named(&decoded(service))
    }
}

/// A name or value of a query.
fn decoded(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

/// What a git client or one of its helpers asks for below a repository's address.
const FOR_GIT: [&str; 4] = [
    "/info/refs",
    "/git-upload-pack",
    "/git-receive-pack",
    "/objects/info/packs",
];

/// Whether an answer to this request is read by git rather than in a browser.
pub fn is_read_by_git(path: &str, headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT);
    let agent = agent
        .and_then(|agent| agent.to_str().ok())
        .unwrap_or_default();
    let is_git = ["git/", "git-lfs/", "JGit/", "go-git/"];
    FOR_GIT.iter().any(|tail| path.ends_with(tail))
        || is_git.iter().any(|name| agent.starts_with(name))
}

/// Why nothing is served at a path. None of it tells what the operator or an owner would hide: a
/// blacklist is told to everybody whose events it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotHere {
    /// No repository's path.
    NoRepository,
    /// It would be one with `.git` behind the identifier.
    NoSuffix,
    /// What stands where the owner's npub should is none.
    BadNpub,
    /// What stands for the identifier is none.
    BadIdentifier,
    /// A repository's, and there is none: its announcement was not accepted.
    NotAnnounced,
    /// A repository's, which the operator does not serve.
    Blocked,
    /// A contributor's own space, and there are none here.
    NoSpaces,
    /// A repository's, with something behind it that repositories do not have.
    NothingBehind,
}

impl NotHere {
    /// Why a path, still percent-encoded, names no repository. Not for one that does.
    pub fn of(path: &str) -> Self {
        let below = path.strip_prefix("/prs").filter(|p| p.starts_with('/'));
        let mut segments = below.unwrap_or(path).trim_start_matches('/').split('/');
        let (npub, identifier) = (segments.next().unwrap_or_default(), segments.next());
        let is_hex = npub.len() == 64 && npub.bytes().all(|b| b.is_ascii_hexdigit());
        let is_meant = npub
            .get(..5)
            .is_some_and(|head| head.eq_ignore_ascii_case("npub1"));
        let Some(identifier) = identifier.filter(|identifier| !identifier.is_empty()) else {
            return Self::NoRepository;
        };
        let name = percent_decode_str(identifier).decode_utf8().ok();
        let without = name.as_deref().and_then(|name| name.strip_suffix(".git"));
        match Npub::from_npub(npub) {
            Err(_) if is_hex || is_meant || without.is_some() => Self::BadNpub,
            Err(_) => Self::NoRepository,
            Ok(_) if without.is_some_and(|name| Identifier::parse(name).is_ok()) => {
                Self::NothingBehind
            }
            Ok(_)
                if without.is_none()
                    && name.is_some_and(|name| Identifier::parse(&name).is_ok()) =>
            {
                Self::NoSuffix
            }
            Ok(_) => Self::BadIdentifier,
        }
    }
}

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRepository => {
                "this is no repository's address; those are /<npub>/<identifier>.git"
            }
            Self::NoSuffix => "a repository's address ends in .git: /<npub>/<identifier>.git",
            Self::BadNpub => {
                "the owner in this address is no npub, or one with a mistake in it; addresses are \
                 /<npub>/<identifier>.git"
            }
            Self::BadIdentifier => {
                "the identifier in this address is none that a repository can have"
            }
            Self::NotAnnounced => {
                "this repository is not here: no announcement (kind 30617) of this owner and \
                 identifier that names this server has been accepted"
            }
            Self::Blocked => "the operator of this server does not serve this repository",
            Self::NoSpaces => "nothing is served below /prs/ here",
            Self::NothingBehind => "repositories have nothing at this path",
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NPUB: &str = "npub1rwzv24nmzfjypx2a8m264ws9vht3uxp5vpypnluuzl67n4waq78suk0wul";

    #[test]
    fn the_service_is_found_in_any_query() {
        let upload = Some(GitService::UploadPack);
        for (query, expected) in [
            ("service=git-upload-pack", upload),
            ("service=git-upload-pack&x=1", upload),
            ("x=1&service=git-upload-pack", upload),
            ("x&&y=&service=git%2Dupload%2dpack&", upload),
            ("ser%76ice=git-upload-pack", upload),
            ("service=git-receive-pack&service=git-upload-pack", upload),
            (
                "service=git-upload-pack&service=git-receive-pack",
                Some(GitService::ReceivePack),
            ),
            ("service=git-upload-pack&service=", None),
            ("service=git-upload-packs", None),
            ("service=git+upload+pack", None),
            ("xservice=git-upload-pack", None),
            ("service", None),
            ("", None),
        ] {
            assert_eq!(GitService::asked_for(Some(query)), expected, "{query}");
        }
        assert_eq!(GitService::asked_for(None), None);
    }

    #[test]
    fn git_is_told_from_browsers() {
        let mut headers = HeaderMap::new();
        assert!(!is_read_by_git("/npub1x/y.git", &headers));
        assert!(is_read_by_git("/npub1x/y/info/refs", &headers));
        assert!(is_read_by_git("/npub1x/y.git/git-receive-pack", &headers));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("Mozilla/5.0"));
        assert!(!is_read_by_git("/npub1x/y.git", &headers));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("git/2.47.3"));
        assert!(is_read_by_git("/npub1x/y.git", &headers));
    }

    #[test]
    fn what_is_wrong_with_an_address_is_told_apart() {
        let wrong = NPUB.replace("rwzv", "rwzq");
        for (path, expected) in [
            (format!("/{NPUB}/x"), NotHere::NoSuffix),
            (format!("/{NPUB}/x/info/refs"), NotHere::NoSuffix),
            (format!("/prs/{NPUB}/x/info/refs"), NotHere::NoSuffix),
            (format!("/{wrong}/x.git/info/refs"), NotHere::BadNpub),
            (format!("/{}/x.git", "a".repeat(64)), NotHere::BadNpub),
            ("/somebody/x.git/info/refs".to_owned(), NotHere::BadNpub),
            (format!("/{NPUB}/.git"), NotHere::BadIdentifier),
            (format!("/{NPUB}/a%2Fb.git"), NotHere::BadIdentifier),
            (format!("/{NPUB}/x.git/wiki"), NotHere::NothingBehind),
            (format!("/{NPUB}"), NotHere::NoRepository),
            ("/somebody/x/info/refs".to_owned(), NotHere::NoRepository),
            ("/".to_owned(), NotHere::NoRepository),
        ] {
            assert_eq!(NotHere::of(&path), expected, "{path}");
        }
    }
}
