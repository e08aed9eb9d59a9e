//! The repository that is shown around: the user's own, only read, or a small one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use tokio::process::Command;

/// Of the user's surroundings, what would lead git to another repository than the one meant.
const MISLEADING: [&str; 8] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
];

/// Branches and tags with their values, and the branch that HEAD names.
#[derive(Debug, PartialEq, Eq)]
pub struct Refs {
    /// Full names with object ids.
    pub values: BTreeMap<String, String>,
    /// Full name of the default branch.
    pub head: Option<String>,
    /// The commit that is checked out, on a branch or on none.
    pub commit: Option<String>,
}

impl Refs {
    /// `2 branches, 1 tag, HEAD main`.
    pub fn summary(&self) -> String {
        let count = |prefix: &str, one: &str, more: &str| {
            let names = self.values.keys();
            match names.filter(|name| name.starts_with(prefix)).count() {
                1 => format!("1 {one}"),
                n => format!("{n} {more}"),
            }
        };
        let branches = count("refs/heads/", "branch", "branches");
        let tags = count("refs/tags/", "tag", "tags");
        let head = self.head.as_deref().unwrap_or("nowhere");
        let head = head.trim_start_matches("refs/heads/");
        format!("{branches}, {tags}, HEAD {head}")
    }

    /// The first difference to what `other` has, in words.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.head != other.head {
            return Some(format!("HEAD is {:?}, not {:?}", other.head, self.head));
        }
        let names = self.values.keys().chain(other.values.keys());
        names.into_iter().find_map(|name| {
            let (ours, theirs) = (self.values.get(name), other.values.get(name));
            (ours != theirs).then(|| {
                let shown = |oid: Option<&String>| oid.map_or("missing", |oid| oid).to_owned();
                format!("{name} is {}, not {}", shown(theirs), shown(ours))
            })
        })
    }
}

/// Runs git, to its end, for its standard output and standard error.
pub async fn git(directory: &Path, args: &[&str]) -> anyhow::Result<(String, String)> {
    let mut command = Command::new("git");
    for name in MISLEADING {
        command.env_remove(name);
    }
    let output = command
        .arg("-C")
        .arg(directory)
        .args(args)
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run git; is it installed?")?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        let what = args.iter().find(|arg| !arg.starts_with('-')).unwrap_or(&"");
        bail!("git {what} failed ({}):\n{}", output.status, err.trim());
    }
    Ok((out, err))
}

/// The top of the repository at `path`; `None` if there is none.
pub async fn open(path: &Path) -> Option<PathBuf> {
    let (directory, _) = git(path, &["rev-parse", "--absolute-git-dir"]).await.ok()?;
    Some(PathBuf::from(directory.trim_end_matches('\n')))
}

/// Why this repository cannot be shown around, if it cannot.
pub async fn check(path: &Path) -> anyhow::Result<()> {
    let ask = [
        "rev-parse",
        "--show-object-format",
        "--is-shallow-repository",
    ];
    let (answer, _) = git(path, &ask).await?;
    let mut answer = answer.lines();
    ensure!(
        answer.next() == Some("sha1"),
        "the repository does not use SHA-1 object ids; GRASP servers know no others"
    );
    ensure!(
        answer.next() == Some("false"),
        "the repository is shallow: it lacks history that a server would need (git fetch --unshallow)"
    );
    Ok(())
}

/// What branches and tags there are.
pub async fn refs(path: &Path) -> anyhow::Result<Refs> {
    let list = [
        "for-each-ref",
        "--format=%(objectname) %(refname)",
        "refs/heads",
        "refs/tags",
    ];
    let (list, _) = git(path, &list).await?;
    let values: BTreeMap<String, String> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(oid, name)| (name.to_owned(), oid.to_owned()))
        .collect();
    let head = git(path, &["symbolic-ref", "-q", "HEAD"]).await.ok();
    let head = head.map(|(name, _)| name.trim().to_owned());
    let commit = git(path, &["rev-parse", "-q", "--verify", "HEAD^{commit}"])
        .await
        .ok();
    let commit = commit.map(|(oid, _)| oid.trim().to_owned());
    Ok(Refs {
        values,
        head,
        commit,
    })
}

impl Refs {
    /// With HEAD on a branch that exists: a detached HEAD, or one on a branch without commits,
    /// cannot be published. Where there is no branch at all, as after the checkout of a tag, what is
    /// checked out becomes `main`.
    pub fn with_born_head(mut self) -> Self {
        let usual = ["refs/heads/main", "refs/heads/master"].map(str::to_owned);
        if !self
            .values
            .keys()
            .any(|name| name.starts_with("refs/heads/"))
            && let Some(commit) = self.commit.clone()
        {
            self.values.insert(usual[0].clone(), commit);
        }
        let any = self
            .values
            .keys()
            .find(|name| name.starts_with("refs/heads/"));
        self.head = self
            .head
            .clone()
            .into_iter()
            .chain(usual)
            .chain(any.cloned())
            .find(|name| self.values.contains_key(name));
        self
    }
}

/// A small repository with what repositories have: history, two branches, an annotated tag.
pub async fn make(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path)?;
    let me = [
        "-c",
        "user.name=graspd demo",
        "-c",
        "user.email=demo@localhost",
        "-c",
        "commit.gpgSign=false",
        "-c",
        "tag.gpgSign=false",
        "-c",
        "core.hooksPath=/dev/null",
    ];
    let run = async |args: &[&str]| git(path, &[&me, args].concat()).await;
    run(&["init", "-q", "-b", "main"]).await?;
    for (name, text) in [
        (
            "README.md",
            "# Hello\n\nA repository made by `graspd demo`.\n",
        ),
        ("hello.sh", "#!/bin/sh\necho hello\n"),
        ("LICENSE", "Do as you like.\n"),
    ] {
        std::fs::write(path.join(name), text)?;
        run(&["add", name]).await?;
        run(&["commit", "-q", "-m", &format!("Add {name}")]).await?;
    }
    run(&["tag", "-a", "-m", "First release", "v1.0"]).await?;
    run(&["branch", "next", "main~1"]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_made_repository_is_read_and_compared() {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path()).await.unwrap();
        check(directory.path()).await.unwrap();
        let found = refs(directory.path()).await.unwrap();
        assert_eq!(found.summary(), "2 branches, 1 tag, HEAD main");
        let mut other = refs(directory.path()).await.unwrap();
        assert_eq!(found.difference(&other), None);
        other.values.remove("refs/heads/next");
        let difference = found.difference(&other).unwrap();
        assert!(difference.starts_with("refs/heads/next is missing"));
        assert_eq!(open(&directory.path().join("nowhere")).await, None);
    }

    #[test]
    fn what_is_checked_out_of_no_branch_becomes_one() {
        let refs = Refs {
            values: [("refs/tags/v1".to_owned(), "1".to_owned())].into(),
            head: None,
            commit: Some("2".to_owned()),
        };
        let published = refs.with_born_head();
        assert_eq!(published.head.as_deref(), Some("refs/heads/main"));
        assert_eq!(published.values["refs/heads/main"], "2");
        assert_eq!(published.values.len(), 2);
    }

    #[test]
    fn a_head_without_commits_is_replaced() {
        let refs = Refs {
            values: [("refs/heads/a".to_owned(), "1".to_owned())].into(),
            head: Some("refs/heads/unborn".to_owned()),
            commit: None,
        };
        assert_eq!(refs.with_born_head().head.as_deref(), Some("refs/heads/a"));
    }
}
