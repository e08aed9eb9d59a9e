//! Where a repository of another server borrows objects from, and whether we follow it there.
//!
//! Thin repositories have few objects of their own: `objects/info/alternates` (gitrepository-layout)
//! names the stores that have the rest, which may name others in turn. Git follows such lines
//! wherever they lead, and says little when they lead nowhere; so they are read here, all of them,
//! before a repository is served or its pool borrows what it borrows. They must lead to directories
//! below the git data directory, by no symbolic link out of it. Nothing is ever written in a store.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::{
    Error,
    layout::{Layout, POOLS},
};

/// How deep git follows alternates of alternates.
const DEPTH: usize = 5;
/// Stores that one repository borrows from, in all.
const MOST: usize = 64;
/// The largest file of alternates that is read, in bytes.
const LARGEST: u64 = 64 * 1024;

/// Where one repository borrows from.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lenders {
    /// Stores that stay where they are: object directories, relative to the git data directory.
    pub stores: BTreeSet<PathBuf>,
    /// Object directories of other repositories, which may go: likewise.
    pub repositories: BTreeSet<PathBuf>,
}

fn refused(reason: String) -> Error {
    Error::Precondition(reason)
}

/// The lines of an object directory's file of alternates.
pub fn lines(objects: &Path) -> Result<Vec<String>, Error> {
    let path = objects.join("info/alternates");
    let size = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?.len(),
    };
    let complain = |what: &str| {
        tracing::warn!(path = %path.display(), what, "where objects are borrowed from is not known");
        refused(format!(
            "its objects/info/alternates, or that of a store, {what}"
        ))
    };
    if size > LARGEST {
        return Err(complain("is too large"));
    }
    let text =
        fs::read_to_string(&path).map_err(|error| complain(&format!("cannot be read: {error}")))?;
    let lines = text.lines().map(str::trim_end);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// A path without `.` and `..`, by its words alone.
fn normal(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                found.pop();
            }
            part => found.push(part),
        }
    }
    found
}

/// Where the repository with these `objects` borrows from, `ours` left out: the way to its pool.
pub fn lenders(layout: &Layout, objects: &Path, ours: &str) -> Result<Lenders, Error> {
    let root = fs::canonicalize(layout.root())?;
    let mut found = Lenders::default();
    let mut seen = BTreeSet::from([objects.to_owned()]);
    let mut next = vec![(objects.to_owned(), 0)];
    while let Some((objects, depth)) = next.pop() {
        for line in lines(&objects)? {
            if line == ours && depth == 0 {
                continue;
            }
            // Readers are told what is wrong, and our log where.
            let complain = |what: &str| {
                let from = objects.display();
                tracing::warn!(%from, line, what, "objects are not borrowed from a place");
                refused(format!("it borrows objects from a place {what}"))
            };
            if !line.starts_with(['/', '.']) {
                return Err(complain("which is no path that we read"));
            }
            let target = normal(&objects.join(&line));
            let below = target
                .strip_prefix(layout.root())
                .or_else(|_| target.strip_prefix(&root))
                .map_err(|_| complain("which is outside the git data directory"))?;
            let place = layout.root().join(below);
            if !place.is_dir() {
                return Err(complain("which is not there"));
            }
            if !fs::canonicalize(&place)?.starts_with(&root) {
                return Err(complain("which leads out of the git data directory"));
            }
            if below.starts_with(POOLS) || below.as_os_str().is_empty() {
                return Err(complain("which is no store of another server"));
            }
            if !seen.insert(place.clone()) {
                continue;
            }
            if depth + 1 > DEPTH || seen.len() > MOST {
                return Err(complain("that has them from too many others"));
            }
            let first = below.components().next();
            let name = first.and_then(|part| part.as_os_str().to_str());
            match name.is_some_and(|name| name.starts_with("npub1") || name == "prs") {
                true => found.repositories.insert(below.to_owned()),
                false => found.stores.insert(below.to_owned()),
            };
            next.push((place, depth + 1));
        }
    }
    Ok(found)
}

/// Leads absolute lines that lead nowhere any more, as the data directory was moved, to what lies at the
/// same place below the present one; of `objects`, and of the stores that they lead to. Gives how many
/// lines were healed.
pub fn heal(layout: &Layout, objects: &Path) -> Result<usize, Error> {
    let mut healed = 0;
    let mut seen = BTreeSet::from([objects.to_owned()]);
    let mut next = vec![(objects.to_owned(), 0)];
    while let Some((objects, depth)) = next.pop() {
        let mut changed = false;
        let mut kept = Vec::new();
        for line in lines(&objects)? {
            let line = match moved(layout, &objects, &line) {
                Some(right) => {
                    tracing::info!(from = %objects.display(), line, now = right,
                        "a line of alternates is led to where the data directory is now");
                    (changed, healed) = (true, healed + 1);
                    right
                }
                None => line,
            };
            let target = normal(&objects.join(&line));
            let is_inside = target.starts_with(layout.root()) && target.is_dir();
            if is_inside && depth < DEPTH && seen.len() < MOST && seen.insert(target.clone()) {
                next.push((target, depth + 1));
            }
            kept.push(line);
        }
        if changed {
            let text = kept.join("\n") + "\n";
            super::write_file(&objects.join("info/alternates"), text.as_bytes())?;
        }
    }
    Ok(healed)
}

/// Where an absolute line leads that is of a data directory which lay elsewhere, as a relative one.
fn moved(layout: &Layout, objects: &Path, line: &str) -> Option<String> {
    let path = Path::new(line);
    // What is there is where it is meant to be, or none of ours.
    if !path.is_absolute() || path.starts_with(layout.root()) || path.exists() {
        return None;
    }
    let path = normal(path);
    let parts: Vec<Component<'_>> = path.components().collect();
    // An object directory, in a repository at least.
    if parts.last()?.as_os_str() != "objects" {
        return None;
    }
    let below = (1..parts.len().saturating_sub(1)).find_map(|first| {
        let below: PathBuf = parts[first..].iter().collect();
        let is_ours = !below.starts_with(POOLS) && layout.root().join(&below).is_dir();
        is_ours.then_some(below)
    })?;
    let depth = objects
        .strip_prefix(layout.root())
        .ok()?
        .components()
        .count();
    Some(format!("{}{}", "../".repeat(depth), below.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(root: &Path, name: &str, alternates: &str) -> PathBuf {
        let objects = root.join(name).join("objects");
        fs::create_dir_all(objects.join("info")).unwrap();
        fs::write(objects.join("info/alternates"), alternates).unwrap();
        objects
    }

    fn reason(result: Result<Lenders, Error>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn chains_are_followed_and_cycles_end() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let layout = Layout::new(root.to_owned());
        let absolute = format!("# kept\n\n{}/.grasp/b/objects\n", root.display());
        let a = store(root, ".grasp/a", &absolute);
        store(root, ".grasp/b", "../../a/objects\n../../c/objects");
        store(root, ".grasp/c", "");
        store(root, "npub1x/other.git", "");
        let lines = "../../../.grasp/a/objects\nours\n../../other.git/objects\n";
        let view = store(root, "npub1x/x.git", lines);
        let found = lenders(&layout, &view, "ours").unwrap();
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<BTreeSet<_>>();
        let stores = [".grasp/a/objects", ".grasp/b/objects", ".grasp/c/objects"];
        assert_eq!(found.stores, paths(&stores));
        assert_eq!(found.repositories, paths(&["npub1x/other.git/objects"]));
        assert!(lenders(&layout, &a, "").is_ok());
    }

    #[test]
    fn lines_that_lead_astray_are_refused() {
        let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = directory.path();
        let layout = Layout::new(root.to_owned());
        fs::create_dir_all(root.join(".pools/x")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("link")).unwrap();
        let view = store(root, "npub1x/x.git", "");
        let outside = outside.path().to_str().unwrap();
        let root = root.to_str().unwrap();
        for (line, expected) in [
            (outside, "outside the git data directory"),
            ("../../../../etc", "outside the git data directory"),
            (&*format!("{root}/.grasp/gone"), "not there"),
            (&*format!("{root}/link"), "leads out of"),
            (&*format!("{root}/.pools/x"), "no store of another server"),
            (root, "no store of another server"),
            ("\"/quoted\"", "no path that we read"),
            ("objects", "no path that we read"),
        ] {
            fs::write(view.join("info/alternates"), line).unwrap();
            let said = reason(lenders(&layout, &view, "ours"));
            assert!(said.contains(expected), "{line}: {said}");
        }
        fs::write(view.join("info/alternates"), b"\xff\n").unwrap();
        assert!(reason(lenders(&layout, &view, "")).contains("cannot be read"));
        fs::write(view.join("info/alternates"), vec![b'\n'; 70_000]).unwrap();
        assert!(reason(lenders(&layout, &view, "")).contains("too large"));
    }

    #[test]
    fn what_git_would_not_follow_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let layout = Layout::new(root.to_owned());
        for number in 0..7 {
            let next = format!("../../{}/objects", number + 1);
            store(root, &format!(".grasp/{number}"), &next);
        }
        store(root, ".grasp/7", "");
        let (near, far) = (root.join(".grasp/2/objects"), root.join(".grasp/1/objects"));
        assert_eq!(lenders(&layout, &near, "").unwrap().stores.len(), 5);
        assert!(reason(lenders(&layout, &far, "")).contains("too many"));
    }

    #[test]
    fn lines_of_a_moved_directory_are_healed_and_others_left() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let layout = Layout::new(root.to_owned());
        store(root, ".grasp/deep.git", "");
        let shared = store(
            root,
            ".grasp/shared.git",
            "/srv/before/git/.grasp/deep.git/objects\n",
        );
        let lines_before = "/srv/before/git/.grasp/shared.git/objects\n/srv/before/other/objects\n";
        let view = store(root, "npub1x/x.git", lines_before);
        assert!(reason(lenders(&layout, &view, "")).contains("outside"));
        assert_eq!(heal(&layout, &view).unwrap(), 2);
        assert_eq!(
            lines(&view).unwrap(),
            [
                "../../../.grasp/shared.git/objects",
                "/srv/before/other/objects"
            ]
        );
        assert_eq!(
            lines(&shared).unwrap(),
            ["../../../.grasp/deep.git/objects"]
        );
        assert_eq!(heal(&layout, &view).unwrap(), 0);

        // What is there, or leads to no object directory, or to a pool, is not touched.
        let elsewhere = tempfile::tempdir().unwrap();
        let other = store(elsewhere.path(), ".grasp/shared.git", "");
        fs::create_dir_all(root.join(".pools/x.git/objects")).unwrap();
        for line in [
            other.display().to_string(),
            "/srv/before/git/.grasp/shared.git".to_owned(),
            "/srv/before/git/.pools/x.git/objects".to_owned(),
            "/srv/before/git/.grasp/gone.git/objects".to_owned(),
            "../../gone.git/objects".to_owned(),
        ] {
            fs::write(view.join("info/alternates"), &line).unwrap();
            assert_eq!(heal(&layout, &view).unwrap(), 0, "{line}");
            assert_eq!(lines(&view).unwrap(), [line]);
        }
    }
}
