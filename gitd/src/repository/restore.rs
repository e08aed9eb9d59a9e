//! A git data directory made anew from what a snapshot had: see [`snapshot`](super::snapshot).
//!
//! Into an empty directory, from which nobody is served meanwhile: the caller has marked it
//! ([`restoring`](grasp_proto::process::restoring)).

use std::{
    collections::HashSet,
    fs,
    io::{self, BufRead},
    path::{Component, Path, PathBuf},
    process::Stdio,
};

use super::{
    Error, every_ref, git,
    layout::{IDENTIFIER, QUARANTINE, VIEWS},
    snapshot::Small,
};

/// A name from a backup, as a path below the directory.
fn below(root: &Path, name: &str) -> Result<PathBuf, Error> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    match !name.is_empty() && Path::new(name).components().all(is_plain) {
        true => Ok(root.join(name)),
        false => Err(Error::Invalid(format!("{name:?} is no name of a file"))),
    }
}

/// Writes the small files below `root`, and all the directories that their repositories need. Gives the
/// repositories.
pub fn write_small(root: &Path, lines: impl BufRead) -> Result<Vec<PathBuf>, Error> {
    let mut repositories = Vec::new();
    let mut made = HashSet::new();
    for line in lines.lines() {
        let small: Small = serde_json::from_str(&line?).map_err(io::Error::from)?;
        let path = below(root, &small.name)?;
        let parent = path.parent().unwrap_or(root).to_owned();
        if path.ends_with("HEAD") {
            for directory in ["objects/info", "objects/pack", "refs/heads", "refs/tags"] {
                fs::create_dir_all(parent.join(directory))?;
            }
            repositories.push(parent.clone());
        } else if path.ends_with(IDENTIFIER) {
            fs::create_dir_all(parent.join(VIEWS))?;
            fs::create_dir_all(parent.join(QUARANTINE))?;
        }
        if made.insert(parent.clone()) {
            fs::create_dir_all(&parent)?;
        }
        fs::write(path, small.content())?;
    }
    Ok(repositories)
}

/// Puts a copy of one file of objects in its place: what is done to the backup later is not done to it.
pub fn place(root: &Path, name: &str, from: &Path) -> Result<(), Error> {
    let path = below(root, name)?;
    fs::create_dir_all(path.parent().unwrap_or(root))?;
    fs::copy(from, &path)?;
    Ok(())
}

/// Whether every object that a ref of the repository leads to is there. Blocks for as long as git looks.
pub fn check_connectivity(repository: &Path) -> Result<(), Error> {
    if every_ref::read(repository)?.is_empty() {
        return Ok(());
    }
    let mut command = git::command(repository);
    command.args([
        "fsck",
        "--connectivity-only",
        "--no-dangling",
        "--no-progress",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = format!("{}{said}", String::from_utf8_lossy(&output.stdout));
            let first = said.lines().find(|line| !line.starts_with("notice:"));
            Err(Error::Precondition(format!(
                "{} is not whole: {}",
                repository.display(),
                first.unwrap_or("git fsck failed")
            )))
        }
    }
}
