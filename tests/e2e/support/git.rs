//! The real `git`, with nothing of its surroundings, and git's wire for what it would not send.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
};

use rand::RngCore;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, process::Command};

use super::soon;

/// "No object", on the wire.
pub const ZERO: &str = "0000000000000000000000000000000000000000";

/// What a git command printed and how it ended.
#[derive(Debug)]
pub struct Out {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Out {
    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub fn good(self) -> Self {
        assert!(self.ok, "git failed: {}\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails the test unless a push was refused, and in words that reached the user.
    #[track_caller]
    pub fn refused(self) -> String {
        assert!(!self.ok, "git succeeded: {}", self.stderr);
        for bare in [
            "requested URL returned error",
            "RPC failed",
            "hung up",
            "Internal",
        ] {
            assert!(
                !self.stderr.contains(bare),
                "no readable refusal: {}",
                self.stderr
            );
        }
        assert!(
            ["remote rejected", "remote error", "remote:"]
                .iter()
                .any(|word| self.stderr.contains(word)),
            "no readable refusal: {}",
            self.stderr
        );
        self.stderr
    }
}

pub fn command(directory: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", directory)
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "A")
        .env("GIT_AUTHOR_EMAIL", "a@example.org")
        .env("GIT_COMMITTER_NAME", "C")
        .env("GIT_COMMITTER_EMAIL", "c@example.org")
        .args(["-c", "gc.auto=0", "-c", "maintenance.auto=false"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs git in a directory, with input.
pub async fn run_with(
    directory: &Path,
    arguments: &[&str],
    input: &[u8],
) -> (bool, Vec<u8>, String) {
    let mut command = command(directory);
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeding = async move {
        let _ = stdin.write_all(input).await;
    };
    let what = format!("git {arguments:?}");
    let ((), out) = soon(&what, async {
        tokio::join!(feeding, child.wait_with_output())
    })
    .await;
    let out = out.unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    (out.status.success(), out.stdout, stderr)
}

/// Runs git in a directory.
pub async fn run(directory: &Path, arguments: &[&str]) -> Out {
    let (ok, stdout, stderr) = run_with(directory, arguments, &[]).await;
    Out {
        ok,
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr,
    }
}

/// The refs a server shows: name and value, HEAD first if it is born.
pub async fn ls_remote(url: &str) -> Vec<(String, String)> {
    let out = run(&std::env::temp_dir(), &["ls-remote", url]).await.good();
    let line = |line: &str| {
        let (oid, name) = line.split_once('\t').unwrap();
        (name.to_owned(), oid.to_owned())
    };
    out.stdout
        .lines()
        .map(line)
        .filter(|(name, _)| !name.ends_with("^{}"))
        .collect()
}

/// The value of a ref at a server.
pub async fn remote_ref(url: &str, name: &str) -> Option<String> {
    let refs = ls_remote(url).await;
    refs.into_iter()
        .find(|(other, _)| other == name)
        .map(|(_, oid)| oid)
}

/// The branches and tags at a server.
pub async fn remote_refs(url: &str) -> Vec<(String, String)> {
    let mut refs = ls_remote(url).await;
    refs.retain(|(name, _)| name.starts_with("refs/heads/") || name.starts_with("refs/tags/"));
    refs
}

/// Where HEAD points to at a server, when it is born.
pub async fn remote_head(url: &str) -> Option<String> {
    let out = run(
        &std::env::temp_dir(),
        &["ls-remote", "--symref", url, "HEAD"],
    )
    .await
    .good();
    let first = out.stdout.lines().next()?;
    Some(first.strip_prefix("ref: ")?.split('\t').next()?.to_owned())
}

/// A repository on the pusher's side.
pub struct Repo {
    directory: TempDir,
}

impl Repo {
    /// An empty one; its first branch will be `main`.
    pub async fn empty() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("e2e-repo")
            .tempdir()
            .unwrap();
        let repo = Self { directory };
        repo.git(&["init", "-q", "--template=", "-b", "main"])
            .await
            .good();
        repo
    }

    /// One with a commit on `main`.
    pub async fn new() -> Self {
        let repo = Self::empty().await;
        repo.commit().await;
        repo
    }

    /// A clone of what lies at `url`; `arguments` come before the URL.
    pub async fn clone(url: &str, arguments: &[&str]) -> (Self, Out) {
        let directory = tempfile::Builder::new()
            .prefix("e2e-clone")
            .tempdir()
            .unwrap();
        let mut all = arguments.to_vec();
        if !all.contains(&"clone") {
            all.insert(0, "clone");
        }
        all.extend([url, "."]);
        let out = run(directory.path(), &all).await;
        (Self { directory }, out)
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub async fn git(&self, arguments: &[&str]) -> Out {
        run(self.directory.path(), arguments).await
    }

    /// What git prints, without the end of the line.
    pub async fn say(&self, arguments: &[&str]) -> String {
        self.git(arguments)
            .await
            .good()
            .stdout
            .trim_end()
            .to_owned()
    }

    /// The object a revision names.
    pub async fn oid(&self, revision: &str) -> String {
        self.say(&["rev-parse", "--verify", "-q", revision]).await
    }

    /// A new commit, unlike every other, on the branch that is checked out.
    pub async fn commit(&self) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        self.commit_file("file", format!("version {number}\n").as_bytes())
            .await
    }

    /// A new commit that writes one file.
    pub async fn commit_file(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.directory.path().join(name), content).unwrap();
        self.git(&["add", "."]).await.good();
        self.git(&["commit", "-q", "-m", "a commit"]).await.good();
        self.oid("HEAD").await
    }

    /// A new commit of that many bytes that no pack makes smaller.
    pub async fn commit_bytes(&self, size: usize) -> String {
        let mut content = vec![0; size];
        rand::rng().fill_bytes(&mut content);
        self.commit_file("large", &content).await
    }

    /// All branches and tags: name and value.
    pub async fn refs(&self) -> Vec<(String, String)> {
        let format = "--format=%(refname) %(objectname)";
        let out = self
            .say(&["for-each-ref", format, "refs/heads", "refs/tags"])
            .await;
        out.lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, oid)| (name.to_owned(), oid.to_owned()))
            .collect()
    }

    pub async fn push(&self, url: &str, refspecs: &[&str]) -> Out {
        let mut arguments = vec!["push", url];
        arguments.extend(refspecs);
        self.git(&arguments).await
    }

    /// A pack of what the revisions name (`main`, `^older`).
    pub async fn pack(&self, revisions: &[&str]) -> Vec<u8> {
        let arguments = ["pack-objects", "--revs", "--stdout", "-q"];
        let input = format!("{}\n", revisions.join("\n"));
        let (ok, pack, stderr) =
            run_with(self.directory.path(), &arguments, input.as_bytes()).await;
        assert!(ok, "{stderr}");
        pack
    }
}

/// A pkt-line.
pub fn pkt(line: impl AsRef<[u8]>) -> Vec<u8> {
    let line = line.as_ref();
    let mut packet = format!("{:04x}", line.len() + 4).into_bytes();
    packet.extend(line);
    packet
}

/// The commands of a push (old, new, name), as they stand before its pack.
pub fn commands(commands: &[(&str, &str, &str)], capabilities: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, (old, new, name)) in commands.iter().enumerate() {
        let mut line = format!("{old} {new} {name}");
        if index == 0 {
            line.push('\0');
            line.push_str(capabilities);
        }
        bytes.extend(pkt(line));
    }
    bytes.extend(b"0000");
    bytes
}

/// The pkt-lines of an answer, special packets as empty lines; what is none ends it.
pub fn lines(mut bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let length = std::str::from_utf8(&bytes[..4]).ok();
        let Some(length) = length.and_then(|digits| usize::from_str_radix(digits, 16).ok()) else {
            break;
        };
        let end = length.max(4);
        if end > bytes.len() {
            break;
        }
        found.push(
            String::from_utf8_lossy(&bytes[4..end])
                .trim_end()
                .to_owned(),
        );
        bytes = &bytes[end..];
    }
    found
}
