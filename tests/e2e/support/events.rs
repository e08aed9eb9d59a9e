//! Events to be signed. Each draft is a second younger than the one before it.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use nostr::{EventBuilder, Kind, Tag, Timestamp, event::FinalizeEvent};

pub use nostr::{Event, Keys};

use super::{Repo, Service};

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// A time later than all before it and, for the first hundred thousand, in the past.
pub fn next_second() -> u64 {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(now() - 100_000));
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An event before it is signed.
#[derive(Debug, Clone)]
pub struct Draft {
    kind: u16,
    content: String,
    tags: Vec<Vec<String>>,
    at: u64,
}

impl Draft {
    pub fn new(kind: u16) -> Self {
        Self {
            kind,
            content: String::new(),
            tags: Vec::new(),
            at: next_second(),
        }
    }

    pub fn tag<S: AsRef<str>>(mut self, parts: impl IntoIterator<Item = S>) -> Self {
        self.tags.push(
            parts
                .into_iter()
                .map(|part| part.as_ref().to_owned())
                .collect(),
        );
        self
    }

    /// Takes away the tags of this name.
    pub fn without(mut self, name: &str) -> Self {
        self.tags.retain(|tag| tag[0] != name);
        self
    }

    pub fn content(mut self, content: impl Into<String>) -> Self {
        self.content = content.into();
        self
    }

    pub fn at(mut self, at: u64) -> Self {
        self.at = at;
        self
    }

    pub fn maintainers(self, keys: &[&Keys]) -> Self {
        let hex = keys.iter().map(|keys| keys.public_key().to_hex());
        self.tag(std::iter::once("maintainers".to_owned()).chain(hex))
    }

    pub fn sign(self, keys: &Keys) -> Event {
        let tags = self.tags.into_iter().map(|tag| Tag::parse(tag).unwrap());
        EventBuilder::new(Kind::from(self.kind), self.content)
            .tags(tags)
            .custom_created_at(Timestamp::from(self.at))
            .finalize(keys)
            .unwrap()
    }
}

/// A repository's coordinate.
pub fn coordinate(owner: &Keys, identifier: &str) -> String {
    format!("30617:{}:{identifier}", owner.public_key().to_hex())
}

/// An announcement that lists the service.
pub fn announcement(service: &Service, owner: &Keys, identifier: &str) -> Draft {
    elsewhere(identifier)
        .without("clone")
        .without("relays")
        .tag(["clone", &service.public_url(owner, identifier)])
        .tag(["relays", &format!("ws://{}", service.domain())])
}

/// An announcement that lists some other server.
pub fn elsewhere(identifier: &str) -> Draft {
    Draft::new(30617)
        .tag(["d", identifier])
        .tag(["name", identifier])
        .tag(["clone", "https://git.elsewhere.example/repository.git"])
        .tag(["relays", "wss://relay.elsewhere.example"])
}

/// A state of these refs; the first branch among them is HEAD.
pub fn state<N: AsRef<str>, O: AsRef<str>>(identifier: &str, refs: &[(N, O)]) -> Draft {
    let mut draft = Draft::new(30618).tag(["d", identifier]);
    for (name, oid) in refs {
        draft = draft.tag([name.as_ref(), oid.as_ref()]);
    }
    let branch = refs
        .iter()
        .find(|(name, _)| name.as_ref().starts_with("refs/heads/"));
    match branch {
        Some((name, _)) => draft.tag(["HEAD", &format!("ref: {}", name.as_ref())]),
        None => draft,
    }
}

/// A state of all branches and tags that the repository has now; HEAD is `main`.
pub async fn state_of(identifier: &str, repo: &Repo) -> Draft {
    state(identifier, &repo.refs().await)
        .without("HEAD")
        .tag(["HEAD", "ref: refs/heads/main"])
}

/// A pull request with this tip.
pub fn pull_request(coordinate: &str, commit: &str) -> Draft {
    Draft::new(1618)
        .tag(["a", coordinate])
        .tag(["subject", "a change"])
        .tag(["c", commit])
}

/// An update of a pull request to a new tip.
pub fn pull_request_update(coordinate: &str, root: &Event, commit: &str) -> Draft {
    Draft::new(1619)
        .tag(["a", coordinate])
        .tag(["E", &root.id.to_hex()])
        .tag(["c", commit])
}

pub fn issue(coordinate: &str) -> Draft {
    Draft::new(1621)
        .tag(["a", coordinate])
        .content("it does not work")
}

pub fn patch(coordinate: &str) -> Draft {
    Draft::new(1617)
        .tag(["a", coordinate])
        .content("From 0123\n---\n")
}

/// A deletion of events, by id.
pub fn deletion(targets: &[&Event]) -> Draft {
    targets.iter().fold(Draft::new(5), |draft, target| {
        draft.tag(["e", &target.id.to_hex()])
    })
}

/// A deletion of everything at an address.
pub fn deletion_of(address: &str) -> Draft {
    Draft::new(5).tag(["a", address])
}
