//! Data directories that are being made anew from a backup: a mark lies in each until all of it is
//! there, and a process that finds the mark in its own does not start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The mark's name.
pub const MARK: &str = ".graspd-restoring";

/// A directory whose restoring did not end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("restoring a backup into {} did not end: run `graspd restore` again, or empty it", .0.display())]
pub struct NotWhole(PathBuf);

/// Refuses a directory whose restoring did not end.
pub fn check_whole(directory: &Path) -> Result<(), NotWhole> {
    match is_marked(directory) {
        false => Ok(()),
        true => Err(NotWhole(directory.to_owned())),
    }
}

/// Whether the restoring of a directory has begun and not ended.
pub fn is_marked(directory: &Path) -> bool {
    directory.join(MARK).exists()
}

/// Marks a directory, durably.
pub fn mark(directory: &Path) -> io::Result<()> {
    fs::File::create(directory.join(MARK))?.sync_all()?;
    fs::File::open(directory)?.sync_all()
}

/// All of it is there, on disk.
pub fn unmark(directory: &Path) -> io::Result<()> {
    fs::remove_file(directory.join(MARK))?;
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_directory_is_refused_until_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        check_whole(path).unwrap();
        mark(path).unwrap();
        let refused = check_whole(path).unwrap_err().to_string();
        assert!(refused.contains("graspd restore"), "{refused}");
        unmark(path).unwrap();
        check_whole(path).unwrap();
    }
}
