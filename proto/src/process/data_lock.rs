//! One process for one data directory: a lock that the kernel gives back however its holder ends.
//!
//! It lies on a file in the directory (`flock`), so that it holds between containers that share a
//! volume, and between machines where the file system knows such locks. The file says who took it, for
//! the words of those who come later; whether it is taken is known by the lock alone.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::transport::Role;

/// How long a holder that is just ending is waited for.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// The most that is read of what a holder wrote.
const HOLDER_BYTES: u64 = 200;

/// Why a directory is not this process's own.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "{} is in use by another graspd ({holder}): two services on the same data would destroy each \
         other's. Stop that one, or set another path", directory.display()
    )]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// What its holder wrote about itself.
        holder: String,
    },
    /// It cannot be made or locked.
    #[error("{} cannot be locked: {error}", directory.display())]
    Io {
        /// The directory.
        directory: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A data directory that is this process's own until this is dropped, or the process ends.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

/// The name of the file that the process of a role locks.
pub fn lock_file(role: Role) -> &'static str {
    match role {
        Role::Relay => ".graspd-relay.lock",
        Role::Gitd => ".graspd-gitd.lock",
        Role::Worker => ".graspd-syncworker.lock",
    }
}

impl DataLock {
    /// Takes the directory of a role, which is made if it is not there, or says who has it. Blocks, for
    /// `patience` at most.
    pub fn take(directory: &Path, role: Role, patience: Duration) -> Result<Self, LockError> {
        let failed = |error| LockError::Io {
            directory: directory.to_owned(),
            error,
        };
        fs::create_dir_all(directory).map_err(failed)?;
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(lock_file(role)))
            .map_err(failed)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if begun.elapsed() < patience => {
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::InUse {
                        directory: directory.to_owned(),
                        holder: read_holder(&file),
                    });
                }
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                    tracing::warn!(
                        directory = %directory.display(),
                        %error,
                        "the file system of this directory has no locks: nothing keeps a second service \
                         from starting on it"
                    );
                    return Ok(Self { _file: file });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        if let Err(error) = write_holder(&mut file) {
            // It is only for others' words; a disk that is full is told of elsewhere.
            tracing::debug!(%error, "the holder of a data directory is not noted");
        }
        Ok(Self { _file: file })
    }
}

/// Whether an error says that the file system has no locks at all.
fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    errno.is_some_and(|errno| matches!(errno, Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS))
}

fn write_holder(file: &mut File) -> io::Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.map_or(0, |since| since.as_secs());
    file.set_len(0)?;
    file.rewind()?;
    writeln!(
        file,
        "process {} on {}, started at {since} in seconds since 1970",
        std::process::id(),
        rustix::system::uname().nodename().to_string_lossy(),
    )
}

fn read_holder(mut file: &File) -> String {
    let mut text = Vec::new();
    let _ = file.rewind();
    let _ = file.take(HOLDER_BYTES).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default().trim();
    let clean: String = line.chars().filter(|c| !c.is_control()).collect();
    match clean.is_empty() {
        true => "it did not say which".to_owned(),
        false => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_process_s_own_until_that_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let first = DataLock::take(&path, Role::Relay, Duration::ZERO).unwrap();
        let refused = DataLock::take(&path, Role::Relay, Duration::ZERO).unwrap_err();
        let said = refused.to_string();
        assert!(said.contains(&path.display().to_string()), "{said}");
        assert!(said.contains(&std::process::id().to_string()), "{said}");
        // One directory may be both roles'.
        DataLock::take(&path, Role::Gitd, Duration::ZERO).unwrap();
        drop(first);
        DataLock::take(&path, Role::Relay, Duration::ZERO).unwrap();
    }

    #[test]
    fn what_a_dead_holder_wrote_stands_in_nobody_s_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let written = "process 1 on elsewhere, with a long tail that is of no use any more";
        fs::write(path.join(lock_file(Role::Gitd)), written.repeat(9)).unwrap();
        let _lock = DataLock::take(path, Role::Gitd, Duration::ZERO).unwrap();
        let text = fs::read_to_string(path.join(lock_file(Role::Gitd))).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(!text.contains("elsewhere"), "{text}");
    }
}
