//! Git processes: hardened, killed whole, each in a place (see [`places`](super::places)).
//!
//! Nothing of the environment or of a user's or the system's configuration reaches them, no hook
//! runs, no protocol is spoken by them, arguments never begin with what a user wrote. Each is the
//! leader of a process group, so that its helpers go with it.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    process::{Output, Stdio},
    sync::{LazyLock, Mutex, OnceLock, PoisonError, mpsc},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
};

use super::places::Place;
use crate::meters;

/// The oldest git that has what we use (`repack --geometric` that is sound, fsck of packs).
const OLDEST: (u32, u32) = (2, 34);

/// Configuration of every git process. Small windows and caches: what git maps and keeps is
/// memory that a thousand clones multiply.
const CONFIG: &[&str] = &[
    "safe.directory=*",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.bigFileThreshold=1m",
    "core.packedGitWindowSize=1m",
    "core.packedGitLimit=2m",
    "core.deltaBaseCacheLimit=4m",
    "pack.windowMemory=8m",
    "pack.deltaCacheSize=8m",
    "pack.threads=2",
    "pack.writeReverseIndex=true",
    "repack.updateServerInfo=false",
    "protocol.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
];

/// `git` in `directory`, which is the repository unless the caller says otherwise.
pub fn command(directory: &Path) -> std::process::Command {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("git");
    command
        .current_dir(directory)
        .env_clear()
        .env("LC_ALL", "C")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_DIR", ".")
        // What another server left in a repository shows nobody a history that is not there.
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .env("GIT_GRAFT_FILE", "/nonexistent/grafts")
        .env("GIT_NO_LAZY_FETCH", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    for setting in CONFIG {
        command.args(["-c", setting]);
    }
    command
}

/// Git is not there, or too old.
#[derive(Debug, thiserror::Error)]
pub enum BadGit {
    /// It did not start.
    #[error("git cannot be started ({0}); install git {major}.{minor} or later", major = OLDEST.0, minor = OLDEST.1)]
    NotThere(std::io::Error),
    /// It is too old.
    #[error("this is {0:?}; git {major}.{minor} or later is needed", major = OLDEST.0, minor = OLDEST.1)]
    TooOld(String),
}

/// Checks that git is there and new enough.
pub fn check() -> Result<(), BadGit> {
    let output = command(Path::new("/"))
        .arg("version")
        .stdout(Stdio::piped())
        .output()
        .map_err(BadGit::NotThere)?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match version(&text) {
        Some(found) if found >= OLDEST => Ok(()),
        _ => Err(BadGit::TooOld(text)),
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("git version ")?.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

/// A run that failed, with the end of what git said.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started or fed.
    #[error("git: {0}")]
    Io(#[from] std::io::Error),
    /// It ended badly.
    #[error("git: {0}")]
    Failed(String),
}

/// Runs a short git command to its end on this (blocking) thread, `input` on its standard input
/// by way of an unnamed file, so that no pipe can fill up.
pub fn run<A: AsRef<OsStr>>(
    directory: &Path,
    args: impl IntoIterator<Item = A>,
    input: &[u8],
) -> Result<(), RunError> {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile()?;
    file.write_all(input)?;
    file.rewind()?;
    let mut command = command(directory);
    command.args(args).stdin(file).stderr(Stdio::piped());
    die_with_us(&mut command);
    let output: Output = start_for_life(command)?.wait_with_output()?;
    if output.status.success() {
        Ok(())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(RunError::Failed(last_line(&text).to_owned()))
    }
}

/// A command to start, and whom to tell.
type Order = (
    std::process::Command,
    mpsc::Sender<std::io::Result<std::process::Child>>,
);

/// Starts a command from a thread that lives as long as the process: [`die_with_us`] follows the thread,
/// and blocking threads end when they are idle.
fn start_for_life(command: std::process::Command) -> std::io::Result<std::process::Child> {
    static ORDERS: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        let work = move || {
            for (mut command, answer) in taken {
                let _ = answer.send(command.spawn());
            }
        };
        let started = std::thread::Builder::new()
            .name("git-starter".to_owned())
            .spawn(work);
        if let Err(error) = started {
            tracing::error!(%error, "no thread to start git from");
        }
        Mutex::new(orders)
    });
    let gone = || std::io::Error::other("the thread that starts git is gone");
    let (answer, child) = mpsc::channel();
    ORDERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

/// The line of git's complaints that says most.
pub fn last_line(stderr: &str) -> &str {
    let lines = || {
        stderr
            .split(['\n', '\r'])
            .map(str::trim)
            .filter(|l| !l.is_empty())
    };
    // What fsck found says more than that it found something.
    lines()
        .find_map(|line| {
            line.strip_prefix("error: ")
                .filter(|e| e.starts_with("object "))
        })
        .or_else(|| lines().find_map(|line| line.strip_prefix("fatal: ")))
        .or_else(|| lines().find_map(|line| line.strip_prefix("error: ")))
        .or_else(|| lines().next_back())
        .unwrap_or("git ended without saying why")
}

/// Git's words without the places on our disk that they name: for everybody to read.
pub fn without_places(words: &str) -> String {
    let is_quote = |c: char| matches!(c, '\'' | '"' | '`' | '(' | '<');
    let clean = |word: &str| {
        let bare = word.trim_start_matches(is_quote);
        let is_place = bare.len() > 1 && bare.starts_with('/');
        if is_place {
            "…".to_owned()
        } else {
            word.to_owned()
        }
    };
    let words: Vec<String> = words.split(' ').map(clean).collect();
    words.join(" ")
}

/// Whether git failed for want of room on our disk. What it fails of stands at the end of a line, and
/// what a pack holds is not told in such lines.
pub fn ran_out_of_room(stderr: &str) -> bool {
    const WANTS: [&str; 2] = ["No space left on device", "Disk quota exceeded"];
    let mut failures = stderr
        .split(['\n', '\r'])
        .filter_map(|line| line.trim_end().strip_prefix("fatal: "));
    failures.any(|failure| {
        WANTS.iter().any(|want| {
            let rest = failure.strip_suffix(want);
            rest.is_some_and(|rest| rest.ends_with(": "))
        })
    })
}

/// Whether git failed because one process may not take more memory.
pub fn ran_out_of_memory(stderr: &str) -> bool {
    let mut failures = stderr
        .split(['\n', '\r'])
        .filter_map(|line| line.trim_end().strip_prefix("fatal: "));
    failures.any(|failure| {
        failure.starts_with("Out of memory, ") || failure.ends_with(": Cannot allocate memory")
    })
}

/// Whether a helper of a git was ended because it had taken all of the processor's time that it may. What
/// git complains of it is not what a user wrote.
pub fn helper_ran_out_of_time(stderr: &str) -> bool {
    let died = format!(" died of signal {}", Signal::XCPU.as_raw());
    let mut lines = stderr.split(['\n', '\r']);
    lines.any(|line| line.starts_with("error: ") && line.trim_end().ends_with(&died))
}

/// A running git with its pipes. Dropped while it runs, it is killed with all its helpers.
#[derive(Debug)]
pub struct Running {
    child: Child,
    _place: Place,
    _shown: meters::Running,
}

/// The three pipes of a [`Running`] git; whoever has them drains them all at once.
#[derive(Debug)]
pub struct Pipes {
    /// What it is fed.
    pub stdin: ChildStdin,
    /// What it says.
    pub stdout: ChildStdout,
    /// What it complains.
    pub stderr: ChildStderr,
}

/// The most that one git process may take. The last wall: what can be foreseen is refused before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessLimits {
    /// Address space, in bytes.
    pub memory_bytes: u64,
    /// Time of a processor, in seconds.
    pub cpu_secs: u64,
}

static LIMITS: OnceLock<ProcessLimits> = OnceLock::new();

/// Limits every git process from now on. The first call counts.
pub fn limit_processes(limits: ProcessLimits) {
    let _ = LIMITS.set(limits);
}

/// Makes the kernel kill a child when this process dies, however it dies, and limits what the child may take.
/// The signal follows the thread that starts the child: only for threads that live as long as the process.
fn die_with_us(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let limits = LIMITS.get().copied();
    let bind = move || {
        if let Some(limits) = limits {
            let limit = |most, hard| Rlimit {
                current: Some(most),
                maximum: Some(hard),
            };
            setrlimit(
                Resource::As,
                limit(limits.memory_bytes, limits.memory_bytes),
            )?;
            // At the first it is told to end, by SIGXCPU, at the second it is killed.
            setrlimit(Resource::Cpu, limit(limits.cpu_secs, limits.cpu_secs + 5))?;
        }
        Ok(rustix::process::set_parent_process_death_signal(Some(
            Signal::KILL,
        ))?)
    };
    // SAFETY: between fork and exec this makes three system calls and touches no memory of ours.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(bind);
    }
}

/// How much a pipe to or from git holds.
const PIPE: usize = 256 * 1024;

/// Starts `command` with pipes on all three ends.
pub fn spawn(
    mut command: std::process::Command,
    place: Place,
) -> std::io::Result<(Running, Pipes)> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_us(&mut command);
    let mut child = tokio::process::Command::from(command).spawn()?;
    let missing = || std::io::Error::other("a pipe is missing");
    // Fewer switches between git and us. Where the system has no more to give, the usual will do.
    let widen = |pipe: Option<BorrowedFd<'_>>| {
        if let Some(pipe) = pipe {
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
        }
    };
    widen(child.stdin.as_ref().map(AsFd::as_fd));
    widen(child.stdout.as_ref().map(AsFd::as_fd));
    let pipes = Pipes {
        stdin: child.stdin.take().ok_or_else(missing)?,
        stdout: child.stdout.take().ok_or_else(missing)?,
        stderr: child.stderr.take().ok_or_else(missing)?,
    };
    let running = Running {
        child,
        _place: place,
        _shown: meters::process(),
    };
    Ok((running, pipes))
}

impl Running {
    /// Waits until it has ended; says whether well.
    pub async fn wait(&mut self) -> std::io::Result<bool> {
        Ok(self.child.wait().await?.success())
    }

    /// Waits until it has ended; gives its exit code, if it had one.
    pub async fn wait_for_code(&mut self) -> std::io::Result<Option<i32>> {
        Ok(self.child.wait().await?.code())
    }

    /// Whether it was ended because it had taken all of the processor's time that it may. False while it runs.
    pub fn ran_out_of_time(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.try_wait().ok().flatten();
        let signal = status.and_then(|status| status.signal());
        signal == Some(Signal::XCPU.as_raw())
    }

    /// Lets others run first.
    pub fn be_nice(&self) {
        let pid = self.pid();
        if let Some(pid) = pid {
            let _ = rustix::process::setpriority_process(Some(pid), 10);
        }
    }

    /// `None` once it was waited for: the number may belong to another process by then.
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()?).ok()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// How much of git's complaints is kept.
const KEPT: usize = 4096;

/// Reads a child's complaints to their end and gives back the last few thousand bytes; each piece is
/// shown to `see` as it comes.
pub async fn drain_stderr(
    mut stderr: impl AsyncRead + Unpin,
    mut see: impl FnMut(&[u8]),
) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        see(&buffer[..count]);
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::places::Places, *};

    #[test]
    fn versions_are_read() {
        assert_eq!(version("git version 2.47.3"), Some((2, 47)));
        assert_eq!(version("git version 2.39.5 (Apple Git-154)"), Some((2, 39)));
        assert_eq!(version("hg 1.0"), None);
        assert!(check().is_ok());
    }

    #[test]
    fn the_line_that_says_most_is_found() {
        let said = "Resolving deltas:  50%\rResolving deltas: 100%\nfatal: pack is bad\nfoo\n";
        assert_eq!(last_line(said), "pack is bad");
        assert_eq!(last_line("warning: x\nerror: y\n"), "y");
        let said = "error: object 12ab: badEmail: bad\nfatal: fsck error in packed object\n";
        assert_eq!(last_line(said), "object 12ab: badEmail: bad");
    }

    #[test]
    fn places_on_our_disk_are_not_told() {
        let said = "object directory /srv/git/x does not exist; check '/srv/y' / a/b";
        let told = "object directory … does not exist; check … / a/b";
        assert_eq!(without_places(said), told);
    }

    #[test]
    fn a_full_disk_is_told_from_a_bad_pack() {
        for said in [
            "Receiving objects: 5%\rfatal: write error: No space left on device\n",
            "fatal: sha1 file './tmp_idx_1' write error: No space left on device\nx",
            "fatal: unable to write to ./tmp_pack_1: Disk quota exceeded",
        ] {
            assert!(ran_out_of_room(said), "{said}");
        }
        let said = "fatal: Out of memory, malloc failed (tried to allocate 1073741825 bytes)\n";
        assert!(ran_out_of_memory(said) && !ran_out_of_room(said));
        assert!(!ran_out_of_memory("error: Out of memory, it says\n"));
        assert!(helper_ran_out_of_time(
            "error: pack-objects died of signal 24\nfatal: x"
        ));
        assert!(!helper_ran_out_of_time(
            "error: pack-objects died of signal 9\n"
        ));
        for said in [
            "error: object 12: gitmodulesUrl: disallowed submodule url: : No space left on device",
            "fatal: pack is corrupted: No space left on device?",
            "fatal: No space left on device",
            "",
        ] {
            assert!(!ran_out_of_room(said), "{said}");
        }
    }

    #[tokio::test]
    async fn a_dropped_child_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let place = Places::new(1).take().await;
        let mut command = command(directory.path());
        command.args(["hash-object", "--stdin"]);
        let (running, mut pipes) = spawn(command, place).unwrap();
        drop(running);
        let mut said = String::new();
        pipes.stdout.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "");
    }
}
