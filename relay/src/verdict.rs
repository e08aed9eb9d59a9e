//! What is said about an event, and to whom it is said.

use futures::future::BoxFuture;
use grasp_proto::client::Client;
use nostr::Event;

/// Who brought an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A client, over its websocket: somebody means it to be here. Which, where limits of clients count.
    User(Option<Client>),
    /// The operator, by a command: an import, what is held or comes from a former server.
    Operator,
    /// A syncworker found it on another relay.
    Sync,
}

impl Origin {
    /// Whether somebody means it to be here.
    pub fn is_meant(self) -> bool {
        self != Self::Sync
    }

    /// Whose limits count.
    pub fn client(self) -> Option<Client> {
        match self {
            Self::User(client) => client,
            Self::Operator | Self::Sync => None,
        }
    }
}

/// The answer to one event: what follows its id in an `OK` message (NIP-01).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Accepted, now or before.
    pub ok: bool,
    /// Empty, or a prefix and a reason.
    pub message: String,
}

impl Verdict {
    /// Accepted and served.
    pub fn served() -> Self {
        Self {
            ok: true,
            message: String::new(),
        }
    }

    /// Accepted, with something to say about it.
    pub fn accepted(message: impl Into<String>) -> Self {
        Self {
            ok: true,
            message: message.into(),
        }
    }

    /// Not accepted, and why.
    pub fn rejected(message: impl Into<String>) -> Self {
        Self {
            ok: false,
            message: message.into(),
        }
    }
}

/// The one door for events, as those outside see it.
pub trait Door: Send + Sync + 'static {
    /// Judges an event and does what follows from that. Id and signature are checked within.
    fn admit(&self, event: Event, origin: Origin) -> BoxFuture<'_, Verdict>;
}
