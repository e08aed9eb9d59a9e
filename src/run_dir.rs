//! Directories that live as long as one run of the service: sockets, and repositories that nobody
//! wants to keep.
//!
//! Each holds a lock file that its process has locked. A process that is killed cannot remove its
//! directory; the next start does, and knows by the lock, not by a pid, that nobody is there. The
//! operator's commands find a running service by the note it leaves in the one for sockets.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

const PREFIX: &str = "graspd-run-";
const LOCK: &str = "graspd.lock";
/// What a running service tells the commands of the same user, as lines of `NAME=value`.
const NOTE: &str = "service.env";

/// The longest base under which every socket's path still fits the kernel's 107 bytes.
const BASE_MAX: usize = 70;

/// A directory of this run, mode 0700; removed when dropped.
pub struct RunDir {
    directory: TempDir,
    _lock: File,
}

impl RunDir {
    /// One for sockets: its path is short.
    pub fn for_sockets() -> io::Result<Self> {
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

    /// One for data, where there is room for it.
    pub fn for_data() -> io::Result<Self> {
        Self::under(&std::env::temp_dir())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves the note by which the commands of the same user find this service.
    pub fn leave_note(&self, lines: &[(&str, &str)]) -> io::Result<()> {
        let text: String = lines
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path().join(NOTE))?;
        file.write_all(text.as_bytes())
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
                    directory,
                    _lock: lock,
                });
            }
        }
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

/// The notes that running services of the same user have left; of any, for root.
pub fn notes() -> Vec<BTreeMap<String, String>> {
    let is_readable = |user| is_ours(user) || rustix::process::getuid().is_root();
    let living = bases()
        .into_iter()
        .flat_map(|base| runs(&base, is_readable));
    let living =
        living.filter(|(_, lock)| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
    living
        .filter_map(|(path, _)| fs::read_to_string(path.join(NOTE)).ok())
        .map(|text| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        })
        .collect()
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
}
