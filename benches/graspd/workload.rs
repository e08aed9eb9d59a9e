//! Repositories to push and clone, and `git` to do it with.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use rand::{RngCore, SeedableRng, rngs::StdRng};

const BRANCH: &str = "refs/heads/main";
const MEGABYTE: usize = 1 << 20;

/// Size of a file of random bytes.
const FILE: usize = 256 << 10;

/// Runs git without any configuration of the user's.
pub fn git(directory: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = plain_git()
        .arg("-C")
        .arg(directory)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `git`, in surroundings that are the same everywhere.
pub fn plain_git() -> Command {
    let mut command = Command::new("git");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "bench")
        .env("GIT_AUTHOR_EMAIL", "bench@localhost")
        .env("GIT_COMMITTER_NAME", "bench")
        .env("GIT_COMMITTER_EMAIL", "bench@localhost");
    command
}

/// A repository with one branch.
pub struct Repository {
    path: PathBuf,
    /// The branch's commit, in hex.
    pub tip: String,
}

impl Repository {
    /// Bare, packed, of about `megabytes` that cannot be compressed, beside a history of texts.
    pub fn make(path: &Path, megabytes: usize) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        git(path, &["init", "-q", "--bare", "-b", "main"])?;
        let mut import = plain_git()
            .arg("-C")
            .arg(path)
            .args(["fast-import", "--quiet"])
            .stdin(Stdio::piped())
            .spawn()?;
        let stdin = import.stdin.take().context("no standard input")?;
        write_history(&mut std::io::BufWriter::new(stdin), megabytes)?;
        ensure!(import.wait()?.success(), "git fast-import failed");
        git(path, &["repack", "-adq"])?;
        let tip = git(path, &["rev-parse", BRANCH])?;
        let path = path.to_owned();
        Ok(Self { path, tip })
    }

    /// The refs, as a state event names them.
    pub fn refs(&self) -> [(&str, &str); 1] {
        [(BRANCH, &self.tip)]
    }

    /// Pushes the branch.
    pub fn push(&self, url: &str) -> anyhow::Result<()> {
        let refspec = format!("{}:{BRANCH}", self.tip);
        git(&self.path, &["push", "-q", url, &refspec])?;
        Ok(())
    }

    /// One small commit more.
    pub fn commit(&mut self) -> anyhow::Result<()> {
        let tree = format!("{BRANCH}^{{tree}}");
        let commit = ["commit-tree", "-p", BRANCH, "-m", "one more", &tree];
        self.tip = git(&self.path, &commit)?;
        git(&self.path, &["update-ref", BRANCH, &self.tip])?;
        Ok(())
    }
}

fn write_history(to: &mut impl Write, megabytes: usize) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(1);
    let files = megabytes * MEGABYTE / FILE;
    let commits = (files + 20).max(megabytes * 5);
    let mut text = String::from("The beginning.\n");
    let mut noise = vec![0; FILE];
    for n in 0..commits {
        writeln!(text, "Line {n}, {}", random.next_u32())?;
        let message = format!("Commit {n}");
        writeln!(
            to,
            "commit {BRANCH}\ncommitter bench <bench@localhost> {} +0000",
            1_700_000_000 + n
        )?;
        writeln!(to, "data {}\n{message}", message.len())?;
        if text.len() > 10_000 {
            text.drain(..5_000);
        }
        writeln!(
            to,
            "M 100644 inline doc/{}.txt\ndata {}\n{text}",
            n % 50,
            text.len()
        )?;
        if n < files {
            random.fill_bytes(&mut noise);
            writeln!(to, "M 100644 inline data/{}/{n}.bin\ndata {FILE}", n % 30)?;
            to.write_all(&noise)?;
            writeln!(to)?;
        }
    }
    to.flush()?;
    Ok(())
}

/// Clones without a working tree.
pub fn clone(url: &str, to: &Path) -> anyhow::Result<()> {
    let directory = to.parent().context("no directory")?;
    let to = to.to_str().context("no text")?;
    git(directory, &["clone", "-q", "--bare", url, to])?;
    Ok(())
}

/// A bare repository with `count` branches, as servers have them: packed.
pub fn with_refs(path: &Path, count: usize) -> anyhow::Result<()> {
    let repository = Repository::make(path, 0)?;
    let mut packed = String::from("# pack-refs with: peeled fully-peeled sorted \n");
    for n in 0..count {
        writeln!(packed, "{} refs/heads/branch-{n:06}", repository.tip)?;
    }
    writeln!(packed, "{} {BRANCH}", repository.tip)?;
    // What lies loose is the one branch that is in the list as well.
    std::fs::remove_file(path.join(BRANCH))?;
    std::fs::write(path.join("packed-refs"), packed)?;
    Ok(())
}
