//! What is not served: repositories that the relay's operator has taken out of service.
//!
//! gitd does as it is told and asks for no reason. Kept in a file of the data directory, so that a
//! gitd which starts before the relay is there serves nothing that it must not.

use std::{
    collections::HashSet,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use grasp_proto::words::{Identifier, Npub, RepoId};

use super::{Error, write_file};

/// Entries at most.
pub const MOST: usize = 1_000_000;

/// One entry: what it names is not served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// All repositories of an owner.
    Owner(Npub),
    /// All repositories with an identifier.
    Identifier(Identifier),
    /// One repository.
    Repository(RepoId),
}

impl Entry {
    /// A line of the file.
    fn line(&self) -> String {
        match self {
            Self::Owner(owner) => format!("{}/\n", owner.to_hex()),
            Self::Identifier(identifier) => format!("/{identifier}\n"),
            Self::Repository(repo) => format!("{}/{}\n", repo.owner.to_hex(), repo.identifier),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        // An identifier has no slash.
        let (owner, identifier) = line.split_once('/')?;
        let owner = || Npub::from_hex(owner).ok();
        let named = || Identifier::parse(identifier).ok();
        match (line.starts_with('/'), identifier.is_empty()) {
            (true, _) => Some(Self::Identifier(named()?)),
            (false, true) => Some(Self::Owner(owner()?)),
            (false, false) => Some(Self::Repository(RepoId {
                owner: owner()?,
                identifier: named()?,
            })),
        }
    }
}

/// What is withheld now. As long as the operator's lists, and at most [`MOST`].
#[derive(Debug)]
pub struct Withheld {
    /// Held while it is written.
    file: Mutex<PathBuf>,
    now: RwLock<Arc<HashSet<Entry>>>,
}

impl Withheld {
    /// What the last process was told, from its file.
    pub fn open(file: PathBuf) -> Result<Self, Error> {
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let entries: Option<HashSet<Entry>> = text.lines().map(Entry::parse).collect();
        // Rather nothing than something that must not be.
        let entries = entries.ok_or_else(|| {
            let reason = "is damaged; remove it, and start the relay, which says anew what it said";
            Error::Precondition(format!("{} {reason}", file.display()))
        })?;
        Ok(Self {
            file: Mutex::new(file),
            now: RwLock::new(Arc::new(entries)),
        })
    }

    fn now(&self) -> Arc<HashSet<Entry>> {
        self.now
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether a repository is not to be served.
    pub fn covers(&self, repo: &RepoId) -> bool {
        let now = self.now();
        !now.is_empty()
            && (now.contains(&Entry::Owner(repo.owner))
                || now.contains(&Entry::Identifier(repo.identifier.clone()))
                || now.contains(&Entry::Repository(repo.clone())))
    }

    /// Just these from now on: durable when this returns. Blocks.
    pub fn replace(&self, entries: HashSet<Entry>) -> Result<(), Error> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.now() == entries {
            return Ok(());
        }
        let mut lines: Vec<String> = entries.iter().map(Entry::line).collect();
        lines.sort_unstable();
        write_file(&file, lines.concat().as_bytes())?;
        tracing::info!(entries = entries.len(), "what is withheld has changed");
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(entries);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(owner: u8, identifier: &str) -> RepoId {
        RepoId {
            owner: Npub::from_bytes([owner; 32]),
            identifier: Identifier::parse(identifier).unwrap(),
        }
    }

    #[test]
    fn what_is_withheld_is_remembered_in_all_its_forms() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("withheld");
        let named = Identifier::parse(" größe -x").unwrap();
        let entries = [
            Entry::Owner(Npub::from_bytes([1; 32])),
            Entry::Identifier(named),
            Entry::Repository(repo(2, "x")),
        ];
        let before = Withheld::open(file.clone()).unwrap();
        assert!(!before.covers(&repo(1, "a")));
        before.replace(entries.into_iter().collect()).unwrap();
        for withheld in [before, Withheld::open(file.clone()).unwrap()] {
            for (repo, expected) in [
                (repo(1, "a"), true),
                (repo(2, "x"), true),
                (repo(2, "y"), false),
                (repo(3, "x"), false),
                (repo(3, " größe -x"), true),
            ] {
                assert_eq!(withheld.covers(&repo), expected, "{repo}");
            }
        }
        fs::write(&file, "nonsense\n").unwrap();
        assert!(Withheld::open(file).is_err());
    }
}
