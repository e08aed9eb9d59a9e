//! The generated contracts, and the way between their messages and the [words](crate::words).
//!
//! A message that came in is turned into words at once; what cannot be is answered with
//! `INVALID_ARGUMENT` and the reason.

pub mod event_size;

use tonic::Status;

use crate::words::{Address, Endpoint, Identifier, NotAWord, Npub, Oid, RefName, RepoId};

/// As the compiler makes it: nested like the packages are, so that they find each other.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    pub mod relay {
        pub mod v1 {
            tonic::include_proto!("grasp.relay.v1");
        }
    }
    pub mod git {
        pub mod v1 {
            tonic::include_proto!("grasp.git.v1");
        }
    }
}

/// `grasp.git.v1`, served by gitd.
pub use generated::git::v1 as git;
/// `grasp.relay.v1`, served by the relay.
pub use generated::relay::v1 as relay;

/// Descriptors of all contracts, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// One line of a push, in words: move `name` from `old` to `new`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What the pusher saw; [`Oid::ZERO`] for nothing.
    pub old: Oid,
    /// What it shall be; [`Oid::ZERO`] to delete it.
    pub new: Oid,
    /// Which ref.
    pub name: RefName,
}

impl From<NotAWord> for Status {
    fn from(error: NotAWord) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

impl From<&RepoId> for relay::Repository {
    fn from(repo: &RepoId) -> Self {
        Self {
            owner: repo.owner.as_bytes().to_vec(),
            identifier: repo.identifier.to_string(),
            endpoint: relay::Endpoint::Standard.into(),
        }
    }
}

impl From<&Address> for relay::Repository {
    fn from(address: &Address) -> Self {
        let endpoint = match address.endpoint {
            Endpoint::Standard => relay::Endpoint::Standard,
            Endpoint::Prs => relay::Endpoint::Prs,
        };
        Self {
            endpoint: endpoint.into(),
            ..(&address.repo).into()
        }
    }
}

/// The repository a request must name, wherever it is.
pub fn address(message: Option<relay::Repository>) -> Result<Address, Status> {
    let message = message.ok_or_else(|| Status::invalid_argument("repository is missing"))?;
    let endpoint = match relay::Endpoint::try_from(message.endpoint) {
        Ok(relay::Endpoint::Unspecified | relay::Endpoint::Standard) => Endpoint::Standard,
        Ok(relay::Endpoint::Prs) => Endpoint::Prs,
        Err(_) => return Err(Status::invalid_argument("no such endpoint is known")),
    };
    let repo = RepoId {
        owner: Npub::from_slice(&message.owner)?,
        identifier: Identifier::parse(&message.identifier)?,
    };
    Ok(Address { endpoint, repo })
}

/// The repository a request must name, which must be one that can be announced.
pub fn repository(message: Option<relay::Repository>) -> Result<RepoId, Status> {
    let address = address(message)?;
    match address.endpoint {
        Endpoint::Standard => Ok(address.repo),
        Endpoint::Prs => Err(Status::invalid_argument(
            "this cannot be done to a repository below /prs/",
        )),
    }
}

impl From<&Command> for relay::Command {
    fn from(command: &Command) -> Self {
        Self {
            old: command.old.as_bytes().to_vec(),
            new: command.new.as_bytes().to_vec(),
            name: command.name.to_string(),
        }
    }
}

impl TryFrom<relay::Command> for Command {
    type Error = NotAWord;

    fn try_from(message: relay::Command) -> Result<Self, NotAWord> {
        Ok(Self {
            old: Oid::from_slice(&message.old)?,
            new: Oid::from_slice(&message.new)?,
            name: RefName::parse(&message.name)?,
        })
    }
}

impl git::Ref {
    /// A ref with its value; `None` is written as an empty oid.
    pub fn new(name: &RefName, oid: Option<Oid>) -> Self {
        Self {
            name: name.to_string(),
            oid: oid.map(|oid| oid.as_bytes().to_vec()).unwrap_or_default(),
        }
    }

    /// Name and value in words; an empty oid is `None`.
    pub fn into_words(self) -> Result<(RefName, Option<Oid>), NotAWord> {
        let oid = match self.oid.is_empty() {
            true => None,
            false => Some(Oid::from_slice(&self.oid)?),
        };
        Ok((RefName::parse(&self.name)?, oid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_without_words_is_refused() {
        let status = repository(Some(relay::Repository {
            owner: vec![1; 31],
            identifier: "x".into(),
            ..relay::Repository::default()
        }))
        .unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(repository(None).is_err());
    }

    #[test]
    fn where_a_repository_is_goes_with_it() {
        let repo = RepoId {
            owner: Npub::from_bytes([1; 32]),
            identifier: Identifier::parse("x").unwrap(),
        };
        for there in [Address::from(&repo), Address::prs(repo.clone())] {
            let message = Some(relay::Repository::from(&there));
            assert_eq!(address(message.clone()).unwrap(), there);
            assert_eq!(repository(message).is_ok(), !there.is_prs());
        }
        // Nothing said, as by those who knew of no other place.
        let mut message = relay::Repository::from(&repo);
        message.endpoint = 0;
        assert_eq!(repository(Some(message.clone())).unwrap(), repo);
        message.endpoint = 9;
        assert!(address(Some(message)).is_err());
    }
}
