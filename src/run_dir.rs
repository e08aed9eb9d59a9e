//! Directories that live as long as one run of the service: sockets, and repositories that nobody
//! wants to keep.
//!
//! Each holds a lock file that its process has locked. A process that is killed cannot remove its
//! directory; the next start does, and knows by the lock, not by a pid, that nobody is there. The
//! operator's commands find a running service by the note it leaves in the one for sockets.
//!
//! `NGIT_RUN_DIR` names the directory for sockets. It may be there before the run and stay after it,
//! as one that systemd makes: then only the files of the run are removed. The note is left where the
//! commands look by themselves, too.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

const PREFIX: &str = "graspd-run-";
const LOCK: &str = "graspd.lock";
/// What a running service tells the commands of the same user, as lines of `NAME=value`.
const NOTE: &str = "service.env";
/// The sockets of a service whose processes all start together.
pub const RELAY_SOCKET: &str = "relay.sock";
pub const GITD_SOCKET: &str = "gitd.sock";
pub const GIT_HTTP_SOCKET: &str = "git-http.sock";
/// What a run leaves in a directory that stays after it. The lock goes last.
const FILES: [&str; 5] = [NOTE, RELAY_SOCKET, GITD_SOCKET, GIT_HTTP_SOCKET, LOCK];

/// The longest path of a directory in which every socket's path still fits the kernel's 107 bytes.
const DIRECTORY_MAX: usize = 90;
/// The longest base of a directory whose name is made here.
const BASE_MAX: usize = 70;

/// A directory of this run, mode 0700; removed when dropped.
pub struct RunDir {
    place: Place,
    _lock: File,
}

enum Place {
    /// Made for this run under a name of its own.
    Made(TempDir),
    /// Named by the operator.
    Named(NamedDirectory),
}

/// A directory that the operator named. Of what is in it, only the files of the run are ours.
struct NamedDirectory {
    path: PathBuf,
    /// Where the commands look by themselves; `None`: nothing can be left there.
    usual: Option<Box<RunDir>>,
}

impl Drop for NamedDirectory {
    fn drop(&mut self) {
        remove_files_of_run(&self.path);
    }
}

fn remove_files_of_run(directory: &Path) {
    for name in FILES {
        let _ = fs::remove_file(directory.join(name));
    }
    // Fails, as it must, where something else is left, or where its parent is not ours.
    let _ = fs::remove_dir(directory);
}

impl RunDir {
    /// One for sockets: the one that is named, or one whose path is short.
    pub fn for_sockets(named: Option<&str>) -> io::Result<Self> {
        if let Some(named) = named {
            return Self::named(&std::path::absolute(named)?);
        }
        let mut failed = None;
        for base in bases() {
            // A login's runtime directory may be gone, or be somebody else's.
            match Self::under(&base) {
                Ok(made) => return Ok(made),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    /// The directory that the operator named, made if it is not there.
    fn named(directory: &Path) -> io::Result<Self> {
        if directory.as_os_str().len() > DIRECTORY_MAX {
            let reason = format!("its path has more than {DIRECTORY_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, reason));
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory)?;
        let about = fs::metadata(directory)?;
        if !is_ours(about.uid()) || about.mode() & 0o022 != 0 {
            let reason = "others may write into it; it must be this user's alone";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let path = directory.join(LOCK);
        loop {
            let lock = options.open(&path)?;
            match lock.try_lock() {
                // One that ends may have removed the file between the two lines above.
                Ok(()) if is_at(&lock, &path) => {
                    // What a killed run left tells of sockets that nobody listens on.
                    let _ = fs::remove_file(directory.join(NOTE));
                    let place = NamedDirectory {
                        path: directory.to_owned(),
                        usual: Self::for_sockets(None).ok().map(Box::new),
                    };
                    return Ok(Self {
                        place: Place::Named(place),
                        _lock: lock,
                    });
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let reason = "another service that runs uses it";
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, reason));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// One for data, where there is room for it.
    pub fn for_data() -> io::Result<Self> {
        Self::under(&std::env::temp_dir())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::Made(directory) => directory.path(),
            Place::Named(directory) => &directory.path,
        }
    }

    /// Removes what dropping it would, for a process that ends in the middle of its work.
    pub fn remover(&self) -> Box<dyn Fn() + Send + Sync> {
        let path = self.path().to_owned();
        match &self.place {
            Place::Made(_) => Box::new(move || {
                let _ = fs::remove_dir_all(&path);
            }),
            Place::Named(named) => {
                let usual = named.usual.as_ref().map(|usual| usual.remover());
                Box::new(move || {
                    remove_files_of_run(&path);
                    if let Some(remove) = &usual {
                        remove();
                    }
                })
            }
        }
    }

    /// Leaves the note by which the commands of the same user find this service.
    pub fn leave_note(&self, lines: &[(&str, String)]) -> io::Result<()> {
        let text: String = lines
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path().join(NOTE))?;
        file.write_all(text.as_bytes())?;
        match &self.place {
            Place::Named(NamedDirectory {
                usual: Some(usual), ..
            }) => usual.leave_note(lines),
            _ => Ok(()),
        }
    }

    fn under(base: &Path) -> io::Result<Self> {
        sweep(base);
        loop {
            let directory = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in(base)?;
            let path = directory.path().join(LOCK);
            let lock = File::create_new(&path)?;
            // Another start may have swept it between the two lines above and the next.
            if lock.try_lock().is_ok() && path.exists() {
                return Ok(Self {
                    place: Place::Made(directory),
                    _lock: lock,
                });
            }
        }
    }
}

/// Whether an open file is the one at a path.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |about: io::Result<fs::Metadata>| about.map(|about| (about.dev(), about.ino()));
    match (identity(file.metadata()), identity(fs::metadata(path))) {
        (Ok(open), Ok(named)) => open == named,
        _ => false,
    }
}

/// Where directories for sockets may lie, best first.
fn bases() -> Vec<PathBuf> {
    let preferred = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let named = preferred.into_iter().chain([std::env::temp_dir()]);
    let mut bases: Vec<PathBuf> = named
        .filter(|base| base.is_absolute() && base.as_os_str().len() <= BASE_MAX)
        .chain([PathBuf::from("/tmp")])
        .collect();
    bases.dedup();
    bases
}

/// The directories of runs under `base` of those of whom `of` says so, each with its lock file.
fn runs(base: &Path, of: impl Fn(u32) -> bool) -> Vec<(PathBuf, File)> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter(|entry| entry.metadata().is_ok_and(|meta| of(meta.uid())))
        .filter_map(|entry| {
            // Without our mark it is not ours, whatever its name.
            let lock = File::open(entry.path().join(LOCK)).ok()?;
            Some((entry.path(), lock))
        })
        .collect()
}

fn is_ours(user: u32) -> bool {
    user == rustix::process::getuid().as_raw()
}

/// What a running service has left for the commands of the same user, by name.
pub type Note = BTreeMap<String, String>;

/// The notes that running services of the same user have left in directories whose names were made;
/// of any user, for root.
pub fn notes() -> Vec<Note> {
    let is_readable = |user| is_ours(user) || rustix::process::getuid().is_root();
    let living = bases()
        .into_iter()
        .flat_map(|base| runs(&base, is_readable));
    living
        .filter_map(|(path, lock)| living_note(&path, &lock))
        .collect()
}

/// The note of the service that uses a directory; `None`: none does.
pub fn note_in(directory: &Path) -> Option<Note> {
    let lock = File::open(directory.join(LOCK)).ok()?;
    living_note(directory, &lock)
}

/// The note in a directory whose lock somebody holds.
fn living_note(directory: &Path, lock: &File) -> Option<Note> {
    if !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
        return None;
    }
    let text = fs::read_to_string(directory.join(NOTE)).ok()?;
    let lines = text.lines().filter_map(|line| line.split_once('='));
    Some(
        lines
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    )
}

/// Removes what killed runs of the same user left under `base`.
fn sweep(base: &Path) {
    for (path, lock) in runs(base, is_ours) {
        match lock.try_lock() {
            Ok(()) => match fs::remove_dir_all(&path) {
                Ok(()) => tracing::debug!(path = %path.display(), "removed what a dead run left"),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot remove what a dead run left");
                }
            },
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_run_is_swept_and_a_living_one_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let living = RunDir::under(base.path()).unwrap();
        let dead = base.path().join(format!("{PREFIX}dead"));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let strange = base.path().join(format!("{PREFIX}of-somebody"));
        fs::create_dir(&strange).unwrap();

        let second = RunDir::under(base.path()).unwrap();
        assert!(living.path().exists() && second.path().exists() && strange.exists());
        assert!(!dead.exists());
        let mode = fs::metadata(second.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_named_directory_is_one_services_alone_and_keeps_what_is_not_its_own() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/run");
        let named = path.to_str().unwrap();
        let first = RunDir::for_sockets(Some(named)).unwrap();
        first
            .leave_note(&[("NGIT_DOMAIN", "a.example".into())])
            .unwrap();
        assert_eq!(note_in(&path).unwrap()["NGIT_DOMAIN"], "a.example");
        let refused = RunDir::for_sockets(Some(named)).err().unwrap();
        assert!(refused.to_string().contains("another service"), "{refused}");
        fs::write(path.join("of-somebody"), "").unwrap();
        drop(first);
        assert!(note_in(&path).is_none());
        let left: Vec<_> = fs::read_dir(&path).unwrap().collect();
        assert_eq!(left.len(), 1);

        // What a killed run leaves is taken over.
        for name in [LOCK, NOTE, RELAY_SOCKET] {
            fs::write(path.join(name), "").unwrap();
        }
        let second = RunDir::for_sockets(Some(named)).unwrap();
        second
            .leave_note(&[("NGIT_DOMAIN", "b.example".into())])
            .unwrap();
        second.remover()();
        assert!(path.join("of-somebody").exists() && !path.join(NOTE).exists());

        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        drop(second);
        let refused = RunDir::for_sockets(Some(named)).err().unwrap();
        assert!(
            refused.to_string().contains("others may write"),
            "{refused}"
        );
        let long = base.path().join("x".repeat(DIRECTORY_MAX));
        assert!(RunDir::for_sockets(long.to_str()).is_err());
    }
}
