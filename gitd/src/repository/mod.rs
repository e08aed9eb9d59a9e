//! Repositories: views over pools, made, found, moved aside, deleted, aligned.
//!
//! [`Repositories`] is the only thing that changes what lies in the git data directory. Its methods
//! block; callers go through [`Repositories::blocking`], which bounds how many threads that takes.
//! Locks are held for local work only, never across a call to the relay: one for each view (its
//! refs, its staging) and one for each identifier (which views its pool has), always taken in this
//! order. Every change is made so that a kill between any two steps leaves a state from which the
//! same call, or the sweep at the next start, finishes.

mod adoption;
mod alternates;
mod brought;
pub mod change;
pub mod consolidate;
pub mod copied;
pub mod every_ref;
pub mod fetched;
pub mod git;
pub mod intake;
pub mod inventory;
pub mod layout;
pub mod locks;
pub mod marks;
pub mod pack_scan;
mod place;
pub mod places;
pub mod pool;
mod prs;
mod prune;
pub mod public;
pub mod reachable;
pub mod refs;
pub mod restore;
pub mod retired;
pub mod small;
pub mod snapshot;
pub mod staging;
mod sweep;
mod tips;
pub mod unsigned;
pub mod withheld;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use git2::{ObjectType, OdbLookupFlags};
use grasp_proto::{
    process::{disk::DiskSpace, restoring},
    words::{Address, Identifier, Oid, RepoId},
};
use tokio::sync::Semaphore;

use self::{
    consolidate::Consolidator,
    fetched::Arrivals,
    intake::IntakeLimits,
    layout::{INCARNATION, Layout, Marker, REPOSITORY},
    locks::{Closing, Locks, Upload, Uploads},
    marks::{Fate, Keep, ShownBefore},
    places::Places,
    refs::Entry,
    tips::Tips,
    unsigned::Unsigned,
    withheld::Withheld,
};
use crate::meters;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such repository.
    #[error("there is no such repository")]
    NotFound,
    /// The request itself makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Something is not as it must be for this.
    #[error("{0}")]
    Precondition(String),
    /// Something changed meanwhile: look again.
    #[error("{0}")]
    Aborted(String),
    /// A lock file was in the way.
    #[error("a lock file is in the way")]
    Locked,
    /// The disk.
    #[error("storage: {0}")]
    Io(#[from] io::Error),
    /// libgit2.
    #[error("storage: {0}")]
    Git2(git2::Error),
    /// git.
    #[error("storage: {0}")]
    Git(#[from] git::RunError),
}

impl From<git2::Error> for Error {
    fn from(error: git2::Error) -> Self {
        match error.code() {
            git2::ErrorCode::Locked => Self::Locked,
            _ => Self::Git2(error),
        }
    }
}

/// Makes the entries of a directory durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// What a file is replaced by, with what `content` says.
fn beside(path: &Path, content: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(".grasp-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory_of(path))?;
    file.write_all(content)?;
    Ok(file)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Replaces a file in one step, durably.
fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = beside(path, content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_directory(directory_of(path))
}

/// The same, not durably: a kill of the process leaves the old or the new file, a power failure may leave
/// neither.
fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    beside(path, content)?.persist(path)?;
    Ok(())
}

/// Moves a finished directory to its place, making the place's parents. One that was made there
/// meanwhile stays, and ours goes.
fn rename_over_nothing(from: &Path, to: &Path) -> io::Result<()> {
    let parent = to.parent().unwrap_or(Path::new("/"));
    loop {
        fs::create_dir_all(parent)?;
        match fs::rename(from, to) {
            Ok(()) => return sync_directory(parent),
            // Its parent went as the last other repository in it was deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound && from.exists() => {}
            Err(_) if to.is_dir() => return fs::remove_dir_all(from),
            Err(error) => return Err(error),
        }
    }
}

/// Removes what was moved out of sight. A git that is just being killed may still make a file in it.
fn throw_away(directory: &Path) {
    const TRIES: usize = 3;
    let removed = (0..TRIES).find_map(|_| fs::remove_dir_all(directory).ok());
    if removed.is_none() && directory.exists() {
        tracing::warn!(directory = %directory.display(), "rubbish stays until the next start");
    }
}

/// What is being made: gone when it did not get to its place.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Moved to its place, it is not there.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes an empty bare repository.
fn fresh_repository(path: &Path) -> io::Result<()> {
    for directory in ["objects/info", "objects/pack", "refs/heads", "refs/tags"] {
        fs::create_dir_all(path.join(directory))?;
    }
    fs::write(path.join("HEAD"), "ref: refs/heads/master\n")?;
    fs::write(path.join("config"), CONFIG)
}

/// The configuration of every repository of ours.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n\
                      [gc]\n\tauto = 0\n";

/// What is not here, of what was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Not here.
    pub missing: Vec<Oid>,
    /// Here, but no commit.
    pub not_commits: Vec<Oid>,
}

/// Blocking calls at once: each takes a thread.
const BLOCKING: usize = 16;

/// Walks at once to find out whether something is here.
const WALKS: usize = 4;

/// All repositories of one git data directory.
#[derive(Debug)]
pub struct Repositories {
    layout: Layout,
    views: Locks<Address>,
    identifiers: Locks<Identifier>,
    uploads: Uploads,
    arrivals: Arrivals,
    /// Views of another server that do not lean on a pool yet, by identifier. Bounded by what lay
    /// in the data directory at the start.
    unadopted: Mutex<HashMap<Identifier, Vec<Address>>>,
    /// Those of them that are not served, and why not. Bounded likewise.
    refused: Mutex<HashMap<Address, String>>,
    /// What is not served to anybody. The relay's calls reach it all the same.
    pub withheld: Withheld,
    /// What nobody has signed for yet, counted.
    pub unsigned: Unsigned,
    /// Whether there is room for new data.
    pub disk: DiskSpace,
    /// What packs may hold.
    pub intake: IntakeLimits,
    threads: Arc<Semaphore>,
    consolidator: Arc<Consolidator>,
    /// Where the refs of views point.
    tips: Tips,
    walks: Places,
    keep: Keep,
    /// How often pools were pruned since the start. Bounded by those that were.
    pruned: Mutex<HashMap<Identifier, u64>>,
}

impl Repositories {
    /// The repositories below `root`, which is made if it is not there. What an earlier process left
    /// undone is finished or thrown away.
    pub fn open(
        root: PathBuf,
        consolidator: Arc<Consolidator>,
        limits: unsigned::Limits,
        intake: IntakeLimits,
        keep: Keep,
    ) -> Result<Self, Error> {
        restoring::check_whole(&root).map_err(|error| Error::Precondition(error.to_string()))?;
        // Repositories are opened for one request: a cache would only be memory.
        git2::opts::enable_caching(false);
        let layout = Layout::new(root);
        fs::create_dir_all(layout.root())?;
        let repositories = Self {
            withheld: Withheld::open(layout.withheld())?,
            unsigned: Unsigned::new(limits, unsigned::client_key(&layout.client_key())?),
            intake,
            layout,
            views: Locks::default(),
            identifiers: Locks::default(),
            uploads: Uploads::default(),
            arrivals: Arrivals::default(),
            unadopted: Mutex::default(),
            refused: Mutex::default(),
            disk: DiskSpace::unlimited(),
            threads: Arc::new(Semaphore::new(BLOCKING)),
            consolidator,
            tips: Tips::default(),
            walks: Places::new(WALKS),
            keep,
            pruned: Mutex::default(),
        };
        repositories.sweep()?;
        Ok(repositories)
    }

    /// The same on a disk that has room, or has not.
    #[must_use]
    pub fn with_disk(mut self, disk: DiskSpace) -> Self {
        self.disk = disk;
        self
    }

    /// Runs `work` on a thread that may block.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let waiting = meters::thread_wanted();
        let permit = Arc::clone(&self.threads)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        drop(waiting);
        let this = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            let _held = (permit, meters::thread());
            work(&this)
        });
        work.await
            .unwrap_or_else(|error| Err(io::Error::other(error).into()))
    }

    /// Where what has no name yet can lie.
    pub fn scratch_directory(&self) -> PathBuf {
        self.layout.new_directory()
    }

    /// Where a repository lies, if it is there.
    pub fn view(&self, address: &Address) -> Result<PathBuf, Error> {
        let view = self.layout.view(address);
        // An identifier may be as long as a file name; what follows it is checked by opening.
        if !view.join("HEAD").is_file() {
            return Err(Error::NotFound);
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match refused.get(address) {
            Some(reason) => Err(Error::Precondition(reason.clone())),
            None => Ok(view),
        }
    }

    /// Which of the repositories that ever had this name lies here; given to it now if it has none.
    pub fn incarnation(&self, address: &Address) -> Result<String, Error> {
        let view = self.view(address)?;
        if let Some(incarnation) = read_incarnation(&view)? {
            return Ok(incarnation);
        }
        self.views
            .hold(address, || give_incarnation(&view))
            .map_err(Into::into)
    }

    fn expect_incarnation(&self, address: &Address, wanted: &str) -> Result<(), Error> {
        let found = read_incarnation(&self.view(address)?)?.unwrap_or_default();
        if wanted.is_empty() || wanted == found {
            return Ok(());
        }
        Err(Error::Precondition(
            "another incarnation of this repository is in its place".to_owned(),
        ))
    }

    /// Makes a repository if it is not there; says its incarnation and whether it was made.
    pub fn create(
        &self,
        repo: &RepoId,
        shown_before: &[ShownBefore],
    ) -> Result<(String, bool), Error> {
        let address = repo.into();
        self.change(&address, || self.make(&address, shown_before))
    }

    /// Makes a view if it is not there; says its incarnation and whether it was made. Under the view's
    /// lock.
    fn make(
        &self,
        address: &Address,
        shown_before: &[ShownBefore],
    ) -> Result<(String, bool), Error> {
        match self.view(address) {
            Err(Error::NotFound) => {}
            view => {
                let view = view?;
                self.adopt(address)?;
                return Ok((give_incarnation(&view)?, false));
            }
        }
        self.disk
            .check()
            .map_err(|full| Error::Precondition(full.to_string()))?;
        let incarnation = new_incarnation();
        let scratch = Scratch(self.layout.scratch());
        let scratch = &scratch.0;
        fresh_repository(scratch)?;
        fs::write(scratch.join(INCARNATION), format!("{incarnation}\n"))?;
        fs::write(scratch.join(REPOSITORY), format!("{address}\n"))?;
        let alternate = Layout::alternate(address);
        fs::write(
            scratch.join("objects/info/alternates"),
            format!("{alternate}\n"),
        )?;
        self.identifiers.hold(address.identifier(), || {
            let pool = pool::ensure(&self.layout, address.identifier())?;
            let marker = Marker::new(address, incarnation.clone());
            pool::mark(&pool, &marker)?;
            if !shown_before.is_empty() {
                let marks = shown_before.iter().map(|shown| shown.mark(&marker));
                marks::change(&pool, |_| Fate::Stays, marks.collect())?;
            }
            rename_over_nothing(scratch, &self.layout.view(address))?;
            Ok::<_, Error>(())
        })?;
        Ok((incarnation, true))
    }

    /// Begins an upload into a view.
    pub fn begin_upload(&self, address: &Address) -> Result<Upload, Error> {
        if address.is_prs() {
            return self.begin_contribution(address);
        }
        let mut upload = self.uploads.begin(address).ok_or(Error::NotFound)?;
        // Counted before it is looked at: from here on it cannot go.
        upload.incarnation = self.incarnation(address)?;
        Ok(upload)
    }

    fn close<'a>(&self, repo: &'a Address) -> Result<Closing<'a>, Error> {
        let reason = || "an upload into this repository is running".to_owned();
        self.uploads
            .close(repo)
            .ok_or_else(|| Error::Precondition(reason()))
    }

    /// Deletes a repository, and its pool if it was the last view. One that is not there is deleted.
    /// What another server left may have been served by it, and is moved aside.
    pub fn delete(&self, repo: &RepoId, incarnation: &str) -> Result<(), Error> {
        self.delete_if(repo, incarnation, |_| Ok(()))
    }

    /// Deletes a repository that has no ref and no object of its own, as [`Repositories::delete`] does.
    pub fn delete_empty(&self, repo: &RepoId, incarnation: &str) -> Result<(), Error> {
        self.delete_if(repo, incarnation, |view| match inventory::is_empty(view)? {
            true => Ok(()),
            false => Err(Error::Precondition(
                "this repository is not empty".to_owned(),
            )),
        })
    }

    fn delete_if(
        &self,
        repo: &RepoId,
        incarnation: &str,
        may: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let address = Address::from(repo);
        let _closing = self.close(&address)?;
        match self.was_left(&address) {
            Ok(true) => return self.retire(repo, incarnation),
            Ok(false) | Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        let rubbish = self.change(&address, || {
            match self.expect_incarnation(&address, incarnation) {
                Err(Error::NotFound) => return Ok(Vec::new()),
                result => result?,
            }
            may(&self.layout.view(&address))?;
            self.take_away(&address)
        })?;
        for directory in rubbish {
            throw_away(&directory);
        }
        Ok(())
    }

    /// Takes a view out of sight that is there, and its pool with the last; what has to be thrown away
    /// then is given back. Under the view's lock, closed to uploads.
    fn take_away(&self, address: &Address) -> Result<Vec<PathBuf>, Error> {
        let view = self.layout.view(address);
        let incarnation = read_incarnation(&view)?.unwrap_or_default();
        self.identifiers.hold(address.identifier(), || {
            let (scratch, pool) = (
                self.layout.scratch(),
                self.layout.pool(address.identifier()),
            );
            let marker = Marker::new(address, incarnation);
            marks::note_going(&pool, &marker, &view)?;
            fs::rename(&view, &scratch)?;
            self.unsigned.nothing_in(address);
            // Fails, as it must, when the owner has other repositories.
            let _ = view.parent().map(fs::remove_dir);
            pool::unmark(&pool, &marker)?;
            let gone = self.drop_pool(address.identifier())?;
            Ok(gone.into_iter().chain([scratch]).collect())
        })
    }

    /// Takes what nobody can reach out of the pool of an identifier, whatever it might be wanted for; gives
    /// how many bytes that were.
    pub async fn prune(&self, identifier: &Identifier) -> Result<u64, Error> {
        let pool = self.layout.pool(identifier);
        match pool.is_dir() {
            true => self.consolidator.prune(pool).await,
            false => Ok(0),
        }
    }

    /// Just this is withheld from now on.
    pub fn withhold(&self, entries: HashSet<withheld::Entry>) -> Result<(), Error> {
        let replaced = self.withheld.replace(entries);
        self.tips.forget_pools();
        replaced
    }

    /// HEAD, incarnation and refs of a repository.
    pub fn list(
        &self,
        address: &Address,
        names: &[String],
        prefix: &str,
    ) -> Result<(String, String, Vec<Entry>), Error> {
        let incarnation = self.incarnation(address)?;
        let git = refs::open(&self.view(address)?)?;
        let head = refs::head(&git);
        let entries = if names.is_empty() {
            refs::list(&git, &[prefix], false)?
        } else {
            let names: BTreeSet<&String> = names.iter().collect();
            let mut entries = Vec::with_capacity(names.len());
            for name in names {
                if let Some(oid) = refs::resolve(&git, name)? {
                    entries.push(Entry {
                        name: name.clone(),
                        oid,
                        peeled: None,
                    });
                }
            }
            entries
        };
        Ok((head, incarnation, entries))
    }

    /// Where everything in the pool that a pusher to this repository is told of ends: the refs that objects
    /// may lean on, and what the pool has beyond.
    pub fn told(&self, address: &Address) -> Result<Vec<Oid>, Error> {
        let view = self.view(address)?;
        let staged = self.staged_refs(&view)?;
        let entries = refs::list(&refs::open(&view)?, &[""], false)?;
        let entries = entries
            .into_iter()
            .filter(|entry| !staged.contains(&entry.name));
        let told: BTreeSet<Oid> = entries
            .map(|entry| entry.oid)
            .chain(self.haves(address)?)
            .collect();
        Ok(told.into_iter().collect())
    }

    /// Objects that other views show, for a pusher not to send again: a bounded number of them.
    pub fn haves(&self, address: &Address) -> Result<Vec<Oid>, Error> {
        const TIPS: usize = 256;
        let git = refs::open(&self.shown(address)?)?;
        let mut own = HashSet::new();
        refs::tips(&git, |oid| {
            own.insert(oid);
        })?;
        let public = self.public_tips(address.identifier())?;
        let others = public.iter().filter(|oid| !own.contains(oid)).copied();
        Ok(others.take(TIPS).collect())
    }
}

/// The kind of an object, if it is here.
fn kind_of(odb: &git2::Odb<'_>, oid: Oid) -> Result<Option<ObjectType>, Error> {
    let oid = refs::to_git2(oid);
    // The database was opened a moment ago: looking for new packs at each miss is wasted.
    if !odb.exists_ext(oid, OdbLookupFlags::NO_REFRESH) {
        return Ok(None);
    }
    Ok(Some(odb.read_header(oid)?.1))
}

fn read_incarnation(view: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(view.join(INCARNATION)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn new_incarnation() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// The incarnation of a view, given to it if it has none. Under its lock.
fn give_incarnation(view: &Path) -> io::Result<String> {
    if let Some(incarnation) = read_incarnation(view)? {
        return Ok(incarnation);
    }
    let incarnation = new_incarnation();
    write_file(
        &view.join(INCARNATION),
        format!("{incarnation}\n").as_bytes(),
    )?;
    Ok(incarnation)
}
