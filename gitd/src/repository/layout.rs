//! Words to paths: where views, pools and what is between them lie.
//!
//! ```text
//! <data>/<npub>/<identifier>.git             a view: a bare repository
//! <data>/prs/<hex>/<identifier>.git          a view of what a contributor offers (GRASP-06)
//! <data>/.pools/<2 hex>/<sha256>.git         the pool of an identifier: a bare repository without refs
//! <data>/.pools/<2 hex>/<sha256>.git/views/  one file for each view that leans on it, retired ones too
//! <data>/.pools/…/brought                    what came and is not shown yet, or no more (see marks.rs)
//! <data>/.pools/…/rolled-up                  packs that are about to go, one to a line
//! <data>/.pools/…/quarantine/<random>/       a pack that is being taken in
//! <data>/.retired/<owner>-<sha256>-<incarnation>.git   a view moved aside
//! <data>/.withheld                           what is not served, one entry to a line
//! <data>/.new/<random>                       what is being made or thrown away; empty between runs
//! <data>/.empty.git                          what every address below /prs/ shows that has no view
//! <data>/.client-key                         what clients' addresses are hashed with (see unsigned.rs)
//! ```
//!
//! Views and retired views lie equally deep, so that the relative way to the pool is the same; those
//! below `prs` lie one deeper, and are never retired.

use std::path::{Path, PathBuf};

use grasp_proto::words::{Address, Endpoint, EventId, Identifier, Npub, RepoId};
use sha2::{Digest, Sha256};

/// File of a view: names it among all that ever lie under its words.
pub const INCARNATION: &str = "grasp-incarnation";
/// File of a view: its words, for an operator who finds it moved aside.
pub const REPOSITORY: &str = "grasp-repository";
/// File of a pool: the identifier whose objects it has.
pub const IDENTIFIER: &str = "grasp-identifier";
/// Directory of a view: one file for each unsigned upload, listing its packs.
pub const STAGED: &str = "staged";
/// Directory of a pool: one file for each view.
pub const VIEWS: &str = "views";
/// File of a pool: packs whose objects are all in others, about to go.
pub const ROLLED_UP: &str = "rolled-up";
/// File of a pool: objects that views may yet show, one to a line.
pub const BROUGHT: &str = "brought";
/// All pools, below the git data directory.
pub const POOLS: &str = ".pools";
/// File of a view that was adopted: the configuration that another server gave it. Nobody reads it.
pub const FORMER_CONFIG: &str = "config.before-adoption";
/// Directory of a pool: packs being taken in.
pub const QUARANTINE: &str = "quarantine";

/// The paths below one git data directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

fn digest(identifier: &Identifier) -> String {
    use std::fmt::Write;
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(identifier.as_str().as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

impl Layout {
    /// The layout below `root`, an absolute path.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The git data directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a repository lies.
    pub fn view(&self, address: &Address) -> PathBuf {
        let owner = address.owner();
        let mut path = match address.endpoint {
            Endpoint::Standard => self.root.join(owner.to_string()),
            Endpoint::Prs => self.prs().join(owner.to_hex()),
        };
        path.push(format!("{}.git", address.identifier()));
        path
    }

    /// All views of contributors.
    pub fn prs(&self) -> PathBuf {
        self.root.join("prs")
    }

    /// A repository that has nothing.
    pub fn empty(&self) -> PathBuf {
        self.root.join(".empty.git")
    }

    /// The key that clients' addresses are hashed with.
    pub fn client_key(&self) -> PathBuf {
        self.root.join(".client-key")
    }

    /// All pools.
    pub fn pools(&self) -> PathBuf {
        self.root.join(POOLS)
    }

    /// Where the objects of an identifier lie.
    pub fn pool(&self, identifier: &Identifier) -> PathBuf {
        self.root.join(Self::pool_below_root(identifier))
    }

    fn pool_below_root(identifier: &Identifier) -> String {
        let digest = digest(identifier);
        format!("{POOLS}/{}/{digest}.git", &digest[..2])
    }

    /// The line of a view's `objects/info/alternates` that leads to its pool.
    pub fn alternate(address: &Address) -> String {
        let up = match address.endpoint {
            Endpoint::Standard => "../../..",
            Endpoint::Prs => "../../../..",
        };
        format!(
            "{up}/{}/objects",
            Self::pool_below_root(address.identifier())
        )
    }

    /// The line of a pool's `objects/info/alternates` that leads to what lies at `below` in the git
    /// data directory: relative, so that the directory can be moved.
    pub fn alternate_of_pool(below: &Path) -> String {
        format!("../../../../{}", below.display())
    }

    /// Where a view is moved when it is retired.
    pub fn retired(&self, repo: &RepoId, incarnation: &str) -> PathBuf {
        let digest = &digest(&repo.identifier)[..16];
        let name = format!("{}-{digest}-{incarnation}.git", repo.owner.to_hex());
        self.retired_directory().join(name)
    }

    /// All that was moved aside.
    pub fn retired_directory(&self) -> PathBuf {
        self.root.join(".retired")
    }

    /// What is not served.
    pub fn withheld(&self) -> PathBuf {
        self.root.join(".withheld")
    }

    /// Where things are made before they are seen, and moved before they are thrown away.
    pub fn new_directory(&self) -> PathBuf {
        self.root.join(".new")
    }

    /// A fresh name there.
    pub fn scratch(&self) -> PathBuf {
        self.new_directory()
            .join(format!("{:032x}", rand::random::<u128>()))
    }
}

/// What the name of a contributor's marker begins with.
const PRS: &str = "prs-";

/// What a pool calls one of its views.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Marker {
    /// By which kind of address it is reached.
    pub endpoint: Endpoint,
    /// Whose view.
    pub owner: Npub,
    /// Which of those that ever lay there.
    pub incarnation: String,
}

impl Marker {
    /// The file's name.
    pub fn name(&self) -> String {
        let below = match self.endpoint {
            Endpoint::Standard => "",
            Endpoint::Prs => PRS,
        };
        format!("{below}{}-{}", self.owner.to_hex(), self.incarnation)
    }

    /// For a view and its incarnation.
    pub fn new(address: &Address, incarnation: String) -> Self {
        Self {
            endpoint: address.endpoint,
            owner: *address.owner(),
            incarnation,
        }
    }

    /// Where the view is, in the pool of `identifier`.
    pub fn address(&self, identifier: &Identifier) -> Address {
        Address {
            endpoint: self.endpoint,
            repo: RepoId {
                owner: self.owner,
                identifier: identifier.clone(),
            },
        }
    }

    /// From the file's name.
    pub fn parse(name: &str) -> Option<Self> {
        let (endpoint, name) = match name.strip_prefix(PRS) {
            Some(rest) => (Endpoint::Prs, rest),
            None => (Endpoint::Standard, name),
        };
        let (owner, incarnation) = name.split_once('-')?;
        Some(Self {
            endpoint,
            owner: Npub::from_hex(owner).ok()?,
            incarnation: incarnation.to_owned(),
        })
    }
}

/// The file that lists the packs of an unsigned upload.
pub fn sidecar(view: &Path, event: &EventId) -> PathBuf {
    view.join(STAGED).join(event.to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_pool_is_the_same_from_view_and_retired_view() {
        let layout = Layout::new("/data".into());
        let repo = RepoId {
            owner: Npub::from_bytes([7; 32]),
            identifier: Identifier::parse("größe -x").unwrap(),
        };
        let (standard, below) = (Address::from(&repo), Address::prs(repo.clone()));
        for (address, place) in [
            (&standard, layout.view(&standard)),
            (&standard, layout.retired(&repo, "00ff")),
            (&below, layout.view(&below)),
        ] {
            let relative = Layout::alternate(address);
            let mut path = place.join("objects");
            for part in Path::new(&relative) {
                match part.to_str() {
                    Some("..") => assert!(path.pop()),
                    _ => path.push(part),
                }
            }
            assert_eq!(path, layout.pool(&repo.identifier).join("objects"));
        }
    }

    #[test]
    fn a_marker_is_read_back() {
        let repo = RepoId {
            owner: Npub::from_bytes([7; 32]),
            identifier: Identifier::parse("x").unwrap(),
        };
        for address in [Address::from(&repo), Address::prs(repo.clone())] {
            let marker = Marker::new(&address, "00ff".into());
            assert_eq!(marker.address(&repo.identifier), address);
            assert_eq!(Marker::parse(&marker.name()), Some(marker));
        }
    }
}
