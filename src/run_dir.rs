//! Directories that live as long as one run of the service: sockets, and repositories that nobody
//! wants to keep.
//!
//! Each holds a lock file that its process has locked. A process that is killed cannot remove its
//! directory; the next start does, and knows by the lock, not by a pid, that nobody is there.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

const PREFIX: &str = "graspd-run-";
const LOCK: &str = "graspd.lock";

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
        let preferred = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        for base in preferred.into_iter().chain([std::env::temp_dir()]) {
            if base.is_absolute() && base.as_os_str().len() <= BASE_MAX {
                // A login's runtime directory may be gone, or be somebody else's.
                if let Ok(made) = Self::under(&base) {
                    return Ok(made);
                }
            }
        }
        Self::under(Path::new("/tmp"))
    }

    /// One for data, where there is room for it.
    pub fn for_data() -> io::Result<Self> {
        Self::under(&std::env::temp_dir())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
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

/// Removes what killed runs of the same user left under `base`.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    let ours = rustix::process::getuid().as_raw();
    for entry in entries.flatten() {
        let named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !named || !entry.metadata().is_ok_and(|meta| meta.uid() == ours) {
            continue;
        }
        let path = entry.path();
        // Without our mark it is not ours, whatever its name.
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
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
