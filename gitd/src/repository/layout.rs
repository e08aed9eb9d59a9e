//! Words to paths: where views, pools and what is between them lie.
//!
//! ```text
//! <data>/<npub>/<identifier>.git             a view: a bare repository
//! <data>/.pools/<2 hex>/<sha256>.git         the pool of an identifier: a bare repository without refs
//! <data>/.pools/<2 hex>/<sha256>.git/views/  one file for each view that leans on it, retired ones too
//! <data>/.pools/…/rolled-up                  packs that are about to go, one to a line
//! <data>/.pools/…/quarantine/<random>/       a pack that is being taken in
//! <data>/.retired/<owner>-<sha256>-<incarnation>.git   a view moved aside
//! <data>/.withheld                           what is not served, one entry to a line
//! <data>/.new/<random>                       what is being made or thrown away; empty between runs
//! ```
//!
//! Views and retired views lie equally deep, so that the relative way to the pool is the same.

use std::path::{Path, PathBuf};

use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
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
    pub fn view(&self, repo: &RepoId) -> PathBuf {
        let mut path = self.root.join(repo.owner.to_string());
        path.push(format!("{}.git", repo.identifier));
        path
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
    pub fn alternate(identifier: &Identifier) -> String {
        format!("../../../{}/objects", Self::pool_below_root(identifier))
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

/// What a pool calls one of its views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Whose view.
    pub owner: Npub,
    /// Which of those that ever lay there.
    pub incarnation: String,
}

impl Marker {
    /// The file's name.
    pub fn name(&self) -> String {
        format!("{}-{}", self.owner.to_hex(), self.incarnation)
    }

    /// From the file's name.
    pub fn parse(name: &str) -> Option<Self> {
        let (owner, incarnation) = name.split_once('-')?;
        Some(Self {
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
        let relative = Layout::alternate(&repo.identifier);
        for place in [layout.view(&repo), layout.retired(&repo, "00ff")] {
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
        let marker = Marker {
            owner: Npub::from_bytes([7; 32]),
            incarnation: "00ff".into(),
        };
        assert_eq!(Marker::parse(&marker.name()), Some(marker));
    }
}
