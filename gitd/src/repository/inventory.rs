//! What lies on disk, for an operator who asks: every repository, whoever made it, and what it takes.
//!
//! Nothing here holds a lock: a repository that goes while it is looked at is left out. One call looks
//! into one directory or at one repository, so that whoever lists very many does it step by step.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use grasp_proto::words::{Identifier, Npub, RepoId};

use super::{
    Error, Repositories, every_ref,
    layout::{Layout, REPOSITORY, STAGED},
    pool, read_incarnation,
};

/// Which repositories somebody asks for; without any of both, all.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Only this owner's.
    pub owner: Option<Npub>,
    /// Only those with this identifier.
    pub identifier: Option<Identifier>,
}

/// Where a repository lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where it is served from.
    Served,
    /// Moved aside.
    Retired,
}

/// A directory that has repositories.
#[derive(Debug, Clone)]
pub enum Shelf {
    /// One owner's.
    Owner(Npub),
    /// What was moved aside.
    Retired,
}

impl Shelf {
    /// Which repository a path of this directory is of; `None`: of none.
    fn repository_at(&self, path: &Path) -> Option<RepoId> {
        match self {
            Self::Owner(owner) => {
                let name = path.file_name()?.to_str()?.strip_suffix(".git")?;
                Some(RepoId {
                    owner: *owner,
                    identifier: Identifier::parse(name).ok()?,
                })
            }
            Self::Retired => words_of(path),
        }
    }
}

/// A repository that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which.
    pub repo: RepoId,
    /// Where.
    pub place: Place,
    path: PathBuf,
}

/// What a repository takes, and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Which of those that ever lay there; `None`: another server made it.
    pub incarnation: Option<String>,
    /// What it takes by itself.
    pub bytes: u64,
    /// What its pool takes, and how many lean on that.
    pub pool: (u64, usize),
    /// How many refs it has, of all kinds.
    pub refs: usize,
    /// When a ref last changed, in milliseconds since 1970; 0: not known.
    pub changed_millis: u64,
    /// It has neither a ref nor an object of its own.
    pub is_empty: bool,
}

/// What pools take, so that one that many lean on is looked at once. Bounded by `MOST`.
#[derive(Debug, Default)]
pub struct Sizes(HashMap<Identifier, (u64, usize)>);

impl Sizes {
    const MOST: usize = 10_000;

    fn of(&mut self, layout: &Layout, identifier: &Identifier) -> Result<(u64, usize), Error> {
        if let Some(size) = self.0.get(identifier) {
            return Ok(*size);
        }
        let pool = layout.pool(identifier);
        let size = (
            take(&pool.join("objects"))?,
            pool::views(&pool, usize::MAX).len(),
        );
        if self.0.len() < Self::MOST {
            self.0.insert(identifier.clone(), size);
        }
        Ok(size)
    }
}

/// What all files below a directory take. What goes meanwhile takes nothing.
fn take(directory: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in entries(directory)? {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        sum += match kind.is_dir() {
            true => take(&entry.path())?,
            false => entry.metadata().map_or(0, |file| file.len()),
        };
    }
    Ok(sum)
}

/// What a directory has; one that is not there has nothing.
fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // An entry that cannot be read has gone.
        read => Ok(read?.flatten().collect()),
    }
}

/// Whether objects lie in a repository itself.
fn has_objects(view: &Path) -> io::Result<bool> {
    let is_shelf = |name: &str| name.len() == 2 && name.bytes().all(|b| b.is_ascii_hexdigit());
    for entry in entries(&view.join("objects"))? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if (name == "pack" || is_shelf(&name)) && !entries(&entry.path())?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a repository has neither a ref, nor an object of its own, nor an upload that waits.
pub(super) fn is_empty(view: &Path) -> io::Result<bool> {
    Ok(every_ref::read(view)?.is_empty()
        && !has_objects(view)?
        && entries(&view.join(STAGED))?.is_empty())
}

/// When a file or directory last changed, in milliseconds since 1970.
fn changed(path: &Path) -> u64 {
    let modified = fs::metadata(path).and_then(|file| file.modified());
    let since = modified.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

impl Repositories {
    /// Whether a bare repository, by its path from the data directory, is one of those that are
    /// described: pools, contributors' spaces and what is withheld are not.
    pub(super) fn is_described(&self, name: &Path) -> bool {
        let path = self.layout.root().join(name);
        let shelf = match name.parent() {
            Some(parent) if self.layout.root().join(parent) == self.layout.retired_directory() => {
                Some(Shelf::Retired)
            }
            Some(parent) => parent
                .to_str()
                .and_then(|owner| Npub::from_npub(owner).ok())
                .map(Shelf::Owner),
            None => None,
        };
        shelf.is_some_and(|shelf| shelf.repository_at(&path).is_some())
    }

    /// The directories in which what is asked for may lie.
    pub fn shelves(&self, asked: &Asked) -> Result<Vec<Shelf>, Error> {
        let root = self.layout.root();
        let mut owners: Vec<Npub> = match asked.owner {
            Some(owner) => vec![owner],
            None => entries(root)?
                .iter()
                .filter_map(|entry| Npub::from_npub(entry.file_name().to_str()?).ok())
                .collect(),
        };
        owners.sort_unstable();
        let owners = owners.into_iter().map(Shelf::Owner);
        Ok(owners.chain([Shelf::Retired]).collect())
    }

    /// What is asked for of one directory, ordered.
    pub fn on_shelf(&self, shelf: &Shelf, asked: &Asked) -> Result<Vec<Found>, Error> {
        let is_asked = |repo: &RepoId| {
            asked.owner.is_none_or(|owner| owner == repo.owner)
                && asked.identifier.iter().all(|name| *name == repo.identifier)
        };
        let mut found = Vec::new();
        let directory = match shelf {
            Shelf::Owner(owner) => self.layout.root().join(owner.to_string()),
            Shelf::Retired => self.layout.retired_directory(),
        };
        for entry in entries(&directory)? {
            let path = entry.path();
            let repo = shelf.repository_at(&path);
            let place = match shelf {
                Shelf::Owner(_) => Place::Served,
                Shelf::Retired => Place::Retired,
            };
            if let Some(repo) = repo.filter(is_asked)
                && path.join("HEAD").is_file()
            {
                found.push(Found { repo, place, path });
            }
        }
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// What a repository takes and has; `None`: it has gone meanwhile.
    pub fn describe(&self, found: &Found, sizes: &mut Sizes) -> Result<Option<Description>, Error> {
        let view = &found.path;
        let mut looked = || {
            let alternate = Layout::alternate(&(&found.repo).into());
            let lines = fs::read_to_string(view.join("objects/info/alternates"));
            let leans = lines.is_ok_and(|lines| lines.lines().any(|line| line == alternate));
            let moments = [
                "packed-refs",
                "refs/heads",
                "refs/tags",
                "refs/nostr",
                "HEAD",
            ];
            Ok::<_, Error>(Description {
                incarnation: read_incarnation(view)?,
                bytes: take(view)?,
                pool: match leans {
                    true => sizes.of(&self.layout, &found.repo.identifier)?,
                    false => (0, 0),
                },
                refs: every_ref::read(view)?.len(),
                changed_millis: moments
                    .iter()
                    .map(|name| changed(&view.join(name)))
                    .max()
                    .unwrap_or(0),
                is_empty: is_empty(view)?,
            })
        };
        match looked() {
            Err(_) if !view.join("HEAD").is_file() => Ok(None),
            looked => looked.map(Some),
        }
    }
}

/// The words that a repository that was moved aside once lay under.
fn words_of(path: &Path) -> Option<RepoId> {
    let text = fs::read_to_string(path.join(REPOSITORY)).ok()?;
    let text = format!("/{}", text.trim_end());
    let (repo, rest) = RepoId::from_url_path(&text)?;
    rest.is_empty().then_some(repo)
}
