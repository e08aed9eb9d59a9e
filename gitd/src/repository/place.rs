//! Whether a repository that another server left is where it seems to be, all of it.
//!
//! Git follows what leads out of a repository: a `commondir` to where the refs of a whole other one are, and symbolic
//! links. What it would write there, or we, lies outside the git data directory or in somebody
//! else's repository; so it is looked at before git or libgit2 opens the repository, and refused.

use std::{
    fs::{self, FileType},
    io,
    path::Path,
};

use super::{Error, layout::Layout};

/// Files of a repository that are read and written.
const FILES: [&str; 5] = [
    "HEAD",
    "packed-refs",
    "config",
    "config.worktree",
    "shallow",
];
/// Directories in which something is written, or that lead elsewhere.
const DIRECTORIES: [&str; 6] = [
    "objects",
    "objects/info",
    "refs",
    "logs",
    "info",
    "worktrees",
];
/// Directories in which git writes wherever a name leads.
const TREES: [&str; 2] = ["refs", "logs"];
/// How deep names of refs are looked into.
const DEEPEST: usize = 64;

/// Refuses a repository that lies elsewhere than where it seems to: relative ways from it would lead
/// git and us to different places.
pub fn check(layout: &Layout, view: &Path) -> Result<(), Error> {
    if kind(&view.join("commondir"))?.is_some() {
        return Err(Error::Precondition(
            "its commondir leads to another repository; put a whole repository in its place"
                .to_owned(),
        ));
    }
    let linked = |what: &str, put: &str| {
        Err(Error::Precondition(format!(
            "a symbolic link leads to its {what}; put a {put} in its place"
        )))
    };
    for file in FILES {
        match kind(&view.join(file))? {
            Some(kind) if kind.is_symlink() => return linked(file, "file"),
            Some(kind) if !kind.is_file() => {
                return Err(Error::Precondition(format!("its {file} is no file")));
            }
            _ => {}
        }
    }
    for part in DIRECTORIES {
        if kind(&view.join(part))?.is_some_and(|kind| kind.is_symlink()) {
            return linked(part, "directory");
        }
    }
    let root = fs::canonicalize(layout.root())?;
    let below = view.strip_prefix(layout.root()).unwrap_or(view);
    for part in ["objects", "refs"] {
        match fs::canonicalize(view.join(part)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound),
            place => {
                if place? != root.join(below).join(part) {
                    return linked(part, "directory");
                }
            }
        }
    }
    for tree in TREES {
        if leads_out(&view.join(tree), DEEPEST)? {
            return linked(&format!("{tree}, somewhere in it"), "file or directory");
        }
    }
    Ok(())
}

/// What lies there, if anything does.
fn kind(path: &Path) -> io::Result<Option<FileType>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => Ok(Some(found?.file_type())),
    }
}

/// Whether something in a directory is a link, or lies too deep for that to be known.
fn leads_out(directory: &Path, deepest: usize) -> io::Result<bool> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let is_bad = match kind.is_dir() {
            true => deepest == 0 || leads_out(&entry.path(), deepest - 1)?,
            false => !kind.is_file(),
        };
        if is_bad {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What is said of a repository that was changed so.
    fn said(change: impl FnOnce(&Path, &Path)) -> Option<String> {
        let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let view = directory.path().join("npub1x/x.git");
        for part in ["objects/info", "refs/heads/a", "logs/refs", "info", "hooks"] {
            fs::create_dir_all(view.join(part)).unwrap();
        }
        for file in ["HEAD", "config", "refs/heads/a/b", "logs/refs/x"] {
            fs::write(view.join(file), "").unwrap();
            fs::create_dir_all(outside.path().join("refs")).unwrap();
        }
        change(&view, outside.path());
        let layout = Layout::new(directory.path().to_owned());
        let checked = check(&layout, &view);
        checked.err().map(|error| error.to_string())
    }

    #[test]
    fn whatever_leads_elsewhere_is_refused_by_name() {
        assert_eq!(said(|_, _| {}), None);
        // Nobody runs those.
        let hooks = said(|view, outside| {
            fs::remove_dir(view.join("hooks")).unwrap();
            symlink(outside, view.join("hooks")).unwrap();
        });
        assert_eq!(hooks, None);
        let commondir = said(|view, outside| {
            fs::write(view.join("commondir"), outside.to_str().unwrap()).unwrap();
        });
        assert!(commondir.unwrap().contains("commondir"));
        for name in ["HEAD", "packed-refs", "config", "config.worktree"] {
            let words = said(|view, outside| {
                let _ = fs::remove_file(view.join(name));
                symlink(outside.join(name), view.join(name)).unwrap();
            });
            let expected = format!("a symbolic link leads to its {name}; put a file");
            assert!(words.unwrap().starts_with(&expected));
        }
        for name in [
            "objects",
            "refs",
            "objects/info",
            "logs",
            "info",
            "worktrees",
            "refs/tags",
            "refs/heads/a/b",
            "refs/heads/a",
            "logs/HEAD",
        ] {
            let words = said(|view, outside| {
                let _ = fs::remove_file(view.join(name));
                let _ = fs::remove_dir_all(view.join(name));
                symlink(outside, view.join(name)).unwrap();
            });
            assert!(
                words.is_some_and(|words| words.contains("symbolic link")),
                "{name}"
            );
        }
    }

    #[test]
    fn a_place_behind_a_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let layout = Layout::new(root.to_owned());
        for part in ["objects", "refs"] {
            fs::create_dir_all(root.join("npub1x/x.git").join(part)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("npub1x"), root.join("npub1y")).unwrap();
        check(&layout, &root.join("npub1x/x.git")).unwrap();
        assert!(check(&layout, &root.join("npub1y/x.git")).is_err());
    }
}
