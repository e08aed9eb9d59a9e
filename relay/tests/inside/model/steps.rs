//! What a script is made of: plain data.

/// A key: owners, maintainers, contributors.
pub type Who = u8;
/// An identifier.
pub type Name = char;
/// A commit. Zero: none, where a push deletes a ref.
pub type Commit = u8;
/// What an event is called in its script.
pub type Label = u16;
/// A branch or a tag.
pub type Branch = &'static str;

/// All there are; the last is a tag.
pub const BRANCHES: [Branch; 3] = ["main", "dev", "v1"];
/// Those who announce repositories.
pub const OWNERS: [Who; 4] = [1, 2, 3, 4];
/// Identifiers.
pub const NAMES: [Name; 2] = ['x', 'y'];

/// A repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repo {
    pub owner: Who,
    pub name: Name,
}

/// What happens to a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// An event comes for the first time, from its author or found on another relay.
    Event {
        label: Label,
        is_synced: bool,
        what: What,
    },
    /// One that came before, or is still to come, is sent.
    Again { label: Label, is_synced: bool },
    /// Branches and tags are pushed.
    Push {
        to: Repo,
        refs: Vec<(Branch, Commit)>,
    },
    /// The ref of a pull request is pushed, known or not.
    Offer {
        to: Repo,
        label: Label,
        commit: Commit,
    },
    /// A server elsewhere has these when it is asked.
    Found { name: Name, commits: Vec<Commit> },
    /// So many minutes pass, and the sweeps come by.
    Pass { minutes: u32 },
    /// The relay ends and is started again.
    Restart,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct What {
    pub by: Who,
    /// `created_at`, in seconds of long ago.
    pub at: u32,
    /// NIP-40, in minutes from the beginning of the script.
    pub until: Option<u32>,
    pub kind: Kind,
}

/// And what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Announcement {
        name: Name,
        /// It lists the service.
        is_here: bool,
        is_fork: bool,
        naming: Naming,
    },
    State {
        name: Name,
        refs: Vec<(Branch, Commit)>,
    },
    PullRequest {
        to: Repo,
        commit: Commit,
    },
    /// Kind 5.
    Deletion(Target),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Event(Label),
    /// Its author's own.
    Announcement(Name),
    State(Name),
}

/// Whom an announcement names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// The `maintainers` tag.
    Maintainers(Vec<Who>),
    /// Role tags.
    Roles(Vec<Role>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// `M`, `m` or `o`.
    pub letter: char,
    pub who: Who,
    pub history: History,
}

/// What follows the key in a role tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    Open,
    Since,
    Ended,
    Again,
    Future,
    Deferred,
    Broken,
}

/// All there are, and how a script writes them.
pub const HISTORIES: [(History, &str); 7] = [
    (History::Open, ""),
    (History::Since, ":since"),
    (History::Ended, ":ended"),
    (History::Again, ":again"),
    (History::Future, ":future"),
    (History::Deferred, ":deferred"),
    (History::Broken, ":broken"),
];

impl Step {
    /// For the histogram.
    pub fn kind(&self) -> String {
        match self {
            Self::Event {
                what, is_synced, ..
            } => {
                let kind = match &what.kind {
                    Kind::Announcement { is_here: true, .. } => "announce",
                    Kind::Announcement { .. } => "announce elsewhere",
                    Kind::State { .. } => "state",
                    Kind::PullRequest { .. } => "pull request",
                    Kind::Deletion(Target::Event(_)) => "delete by id",
                    Kind::Deletion(_) => "delete by address",
                };
                format!("{kind}{}", if *is_synced { ", synced" } else { "" })
            }
            Self::Again {
                is_synced: true, ..
            } => "again, synced".to_owned(),
            Self::Again { .. } => "again".to_owned(),
            Self::Push { .. } => "push".to_owned(),
            Self::Offer { .. } => "offer".to_owned(),
            Self::Found { .. } => "found".to_owned(),
            Self::Pass { .. } => "pass".to_owned(),
            Self::Restart => "restart".to_owned(),
        }
    }
}
