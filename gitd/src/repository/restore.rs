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
    small::{self, Small},
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
///
/// A repository is a directory with a HEAD that is in no other. Of its files come those that are known, and of its
/// configuration what is ours: nobody else's words decide what git does here.
pub fn write_small(root: &Path, lines: impl BufRead) -> Result<Vec<PathBuf>, Error> {
    let mut repositories = Vec::new();
    let mut seen: HashSet<PathBuf> = HashSet::new();
    let mut made = HashSet::new();
    for line in lines.lines() {
        let small: Small = serde_json::from_str(&line?).map_err(io::Error::from)?;
        let path = below(root, &small.name)?;
        let parent = path.parent().unwrap_or(root).to_owned();
        let around = parent.ancestors().find(|above| seen.contains(*above));
        let own = around.and_then(|repository| path.strip_prefix(repository).ok()?.to_str());
        if own.is_some_and(|own| !small::is_known(own)) {
            tracing::warn!(name = small.name, "left out: it is nothing that is known");
            continue;
        }
        if path.ends_with("HEAD") && own.is_none() {
            seen.insert(parent.clone());
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
        match own == Some("config") {
            true => fs::write(path, small::own_config(small.content())?)?,
            false => fs::write(path, small.content())?,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_looks_like_a_repository_is_none_and_no_configuration_comes_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let line = |name: &str, text: &str| {
            let small = Small::new(name.to_owned(), text.as_bytes().to_vec());
            serde_json::to_string(&small).unwrap() + "\n"
        };
        let lines: String = [
            ("npub1x/x.git/HEAD", "ref: refs/heads/main\n"),
            ("npub1x/x.git/commondir", "/elsewhere"),
            ("npub1x/x.git/config", "[include]\n\tpath = /elsewhere\n"),
            ("npub1x/x.git/info/HEAD", "kept"),
            ("npub1x/x.git/lfs/HEAD", "not kept"),
            ("npub1x/y.git/HEAD", "ref: refs/heads/main\n"),
        ]
        .map(|(name, text)| line(name, text))
        .concat();
        let restored = write_small(directory.path(), lines.as_bytes()).unwrap();
        let place = |name: &str| directory.path().join("npub1x").join(name);
        assert_eq!(restored, [place("x.git"), place("y.git")]);
        let config = fs::read_to_string(place("x.git/config")).unwrap();
        assert!(!config.contains("elsewhere") && config.contains("bare = true"));
        assert!(place("x.git/info/HEAD").exists());
        assert!(!place("x.git/lfs").exists() && !place("x.git/commondir").exists());
    }
}
