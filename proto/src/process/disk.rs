//! Whether there is room for new data.
//!
//! Below a floor nothing new is taken in, so that what was taken can be finished: refs be moved, events
//! be deleted, packs be consolidated. It goes on by itself when there is room again. What is asked about
//! every chunk of a pack costs nothing: the file system is asked a few times a second at most.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::settings::{BadSetting, Settings};
use crate::transport::Role;

/// For how long a measurement is believed.
const BELIEVED_MS: u64 = 200;
/// How often the metrics are brought up to date by themselves.
const MEASURED_EVERY: Duration = Duration::from_secs(5);

/// There is no room for new data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskFull;

impl fmt::Display for DiskFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk of this server is full: nothing new is taken until there is room, try again later")
    }
}

impl std::error::Error for DiskFull {}

/// The free space of one data directory, and the floor below which nothing new is taken.
#[derive(Debug, Clone)]
pub struct DiskSpace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Whose it is, for metrics and log lines; `None`: another process tells them.
    told_as: Option<Role>,
    /// None: nothing lies on a disk.
    directory: Option<PathBuf>,
    floor: u64,
    begun: Instant,
    /// When it was last measured, in milliseconds since `begun`, plus one; 0: never.
    measured: AtomicU64,
    free: AtomicU64,
    is_full: AtomicBool,
}

impl DiskSpace {
    /// The space of `directory`, which is a role's own; without one there is always room.
    pub fn new(role: Role, directory: Option<PathBuf>, floor: u64) -> Self {
        Self::of(Some(role), directory, floor)
    }

    /// The space of a directory that is another process's, which tells of it in metrics and log.
    pub fn of_another(directory: PathBuf, floor: u64) -> Self {
        Self::of(None, Some(directory), floor)
    }

    /// One that always has room.
    pub fn unlimited() -> Self {
        Self::of(None, None, 0)
    }

    fn of(told_as: Option<Role>, directory: Option<PathBuf>, floor: u64) -> Self {
        Self(Arc::new(Inner {
            told_as,
            directory,
            floor,
            begun: Instant::now(),
            measured: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
            is_full: AtomicBool::new(false),
        }))
    }

    /// The floor that the settings name, in bytes.
    pub fn floor(settings: &Settings) -> Result<u64, BadSetting> {
        settings.parse("NGIT_MIN_FREE_BYTES", "a number of bytes")
    }

    /// Whether there is room for new data.
    pub fn check(&self) -> Result<(), DiskFull> {
        self.free();
        match self.0.is_full.load(Relaxed) {
            true => Err(DiskFull),
            false => Ok(()),
        }
    }

    /// Whether there is room for what makes room: requests to delete. They have half of the floor.
    pub fn check_for_deletion(&self) -> Result<(), DiskFull> {
        match self.free() < self.0.floor / 2 {
            true => Err(DiskFull),
            false => Ok(()),
        }
    }

    /// For operators: why nothing new is taken, if that is so.
    pub fn shortage(&self) -> Option<String> {
        let inner = &self.0;
        let free = self.free();
        let directory = inner.directory.as_ref().filter(|_| self.check().is_err())?;
        Some(format!(
            "new data is refused: {} has {free} bytes free, less than the {} of NGIT_MIN_FREE_BYTES",
            directory.display(),
            inner.floor
        ))
    }

    /// Bytes that are free, as measured a moment ago.
    fn free(&self) -> u64 {
        let inner = &self.0;
        let now = u64::try_from(inner.begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let measured = inner.measured.load(Relaxed);
        if measured == 0 || now.saturating_sub(measured) >= BELIEVED_MS {
            inner.measured.store(now, Relaxed);
            self.measure();
        }
        inner.free.load(Relaxed)
    }

    #[allow(clippy::cast_precision_loss)]
    fn measure(&self) {
        let inner = &self.0;
        let Some(directory) = &inner.directory else {
            return;
        };
        // A directory that is not there is somebody else's error.
        let Ok(found) = rustix::fs::statvfs(directory) else {
            return;
        };
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        inner.free.store(free, Relaxed);
        // A little more than the floor is wanted to go on, so that it does not go to and fro.
        let enough = match inner.is_full.load(Relaxed) {
            true => inner.floor.saturating_add(inner.floor / 20),
            false => inner.floor,
        };
        let is_full = free < enough;
        if let Some(role) = inner.told_as.map(Role::as_str) {
            metrics::gauge!("ngit_disk_free_bytes", "role" => role).set(free as f64);
            metrics::gauge!("ngit_disk_floor_bytes", "role" => role).set(inner.floor as f64);
            metrics::gauge!("ngit_disk_full", "role" => role).set(f64::from(is_full));
        }
        if inner.is_full.swap(is_full, Relaxed) != is_full {
            let (directory, floor) = (directory.display(), inner.floor);
            match is_full {
                // Whose directory it is says so.
                _ if inner.told_as.is_none() => {}
                true => {
                    tracing::error!(%directory, free, floor, "the disk is full: new data is refused");
                }
                false => tracing::info!(%directory, free, floor, "there is room on the disk again"),
            }
        }
    }

    /// Keeps the metrics up to date, and says in the log when the disk fills up and when there is room
    /// again, for as long as the process runs.
    pub async fn watch(self) {
        loop {
            self.free();
            tokio::time::sleep(MEASURED_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_above_the_floor_and_none_below() {
        let directory = tempfile::tempdir().unwrap();
        let space = |floor| DiskSpace::new(Role::Gitd, Some(directory.path().to_owned()), floor);
        let room = space(1);
        assert_eq!(room.check(), Ok(()));
        assert_eq!(room.shortage(), None);
        let full = space(u64::MAX);
        assert_eq!(full.check(), Err(DiskFull));
        let said = full.shortage().unwrap();
        assert!(said.contains("NGIT_MIN_FREE_BYTES"), "{said}");
        // What makes room goes on for longer.
        let free = room.free();
        let near = space(free + free / 2);
        assert_eq!(near.check(), Err(DiskFull));
        assert_eq!(near.check_for_deletion(), Ok(()));
        assert_eq!(DiskSpace::unlimited().check(), Ok(()));
    }
}
