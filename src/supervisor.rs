//! A child process that is kept running.
//!
//! Each child has a thread of its own that starts it, waits for it and starts it again. The thread
//! lives as long as the launcher: the kernel kills a child that asked for it when the *thread* that
//! started it ends (`PR_SET_PDEATHSIG`), so no thread of a pool may do this.

use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::oneshot;

use crate::backoff::Backoff;

/// Longest reason taken from a child.
const REASON_MAX: u64 = 4096;

/// Keeps one child running. Dropped, it kills it.
pub struct Supervisor {
    name: &'static str,
    shared: Arc<Shared>,
    gave_up: Option<oneshot::Receiver<String>>,
    ended: oneshot::Receiver<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Reaped only under the lock, so that its pid is nobody else's.
    child: Option<Child>,
    served: bool,
    stopping: bool,
}

impl Supervisor {
    /// Starts the child that `command` describes, and its thread.
    pub fn start(
        name: &'static str,
        command: impl Fn() -> Command + Send + 'static,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (tell, gave_up) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name(format!("{name}-watch"))
            .spawn(move || {
                if let Some(reason) = of_thread.keep_running(name, &command) {
                    let _ = tell.send(reason);
                }
                let _ = end.send(());
            })
            .with_context(|| format!("cannot start the thread that watches {name}"))?;
        Ok(Self {
            name,
            shared,
            gave_up: Some(gave_up),
            ended,
        })
    }

    /// Ends when the child ended by itself without ever having served, with its reason: starting
    /// it again would not help.
    pub async fn gave_up(&mut self) -> String {
        if let Some(gave_up) = &mut self.gave_up
            && let Ok(reason) = gave_up.await
        {
            return reason;
        }
        std::future::pending().await
    }

    /// The child has served: whatever it dies of from now on, it is started again.
    pub fn has_served(&self) {
        self.shared.lock().served = true;
    }

    /// What ends the child at once, for good.
    pub fn killer(&self) -> impl FnOnce() + Send + 'static {
        let shared = self.shared.clone();
        move || shared.stop(Signal::KILL)
    }

    /// Asks the child to end.
    pub fn ask_to_stop(&self) {
        self.shared.stop(Signal::TERM);
    }

    /// Asks the child to end, waits for that at most for `grace`, then kills it.
    pub async fn stop(mut self, grace: Duration) {
        self.ask_to_stop();
        let gone = tokio::time::timeout(grace, &mut self.ended).await;
        if gone.is_err() {
            tracing::warn!("{} did not end in {grace:?}; it is killed", self.name);
            self.shared.stop(Signal::KILL);
            let _ = (&mut self.ended).await;
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.stop(Signal::KILL);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, signal: Signal) {
        let mut state = self.lock();
        state.stopping = true;
        if let Some(pid) = state.child.as_ref().and_then(pid_of) {
            let _ = kill_process(pid, signal);
        }
        self.changed.notify_all();
    }

    /// Returns when stopped, or with the reason why the child cannot be kept running.
    fn keep_running(&self, name: &str, command: &impl Fn() -> Command) -> Option<String> {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let (end, reason) = match self.run_once(command) {
                None => return None,
                Some(Ok((status, reason))) => (Some(status), reason),
                Some(Err(error)) => (None, format!("cannot start {name}: {error}")),
            };
            let state = self.lock();
            if state.stopping {
                return None;
            }
            let by_itself = end.is_none_or(|status| status.code().is_some());
            if by_itself && !state.served {
                return Some(if reason.is_empty() {
                    format!("{name} could not start")
                } else {
                    reason
                });
            }
            let wait = backoff.after(started.elapsed());
            let how = end.map_or_else(String::new, |status| format!(" ({status})"));
            let why = if reason.is_empty() { "" } else { ": " };
            tracing::error!("{name} ended{how}{why}{reason}; starting it again in {wait:?}");
            let stopping = |state: &mut State| !state.stopping;
            let _ = self.changed.wait_timeout_while(state, wait, stopping);
        }
    }

    /// Starts the child and waits for its end; `None` if it shall not be started any more.
    fn run_once(&self, command: &impl Fn() -> Command) -> Option<io::Result<(ExitStatus, String)>> {
        let mut state = self.lock();
        if state.stopping {
            return None;
        }
        // A signal that the terminal sends to everyone is for the launcher alone to pass on.
        let spawned = command()
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return Some(Err(error)),
        };
        let pid = pid_of(&child)?;
        let stdout = child.stdout.take();
        state.child = Some(child);
        drop(state);

        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}

        let mut child = self.lock().child.take()?;
        let ended = child.wait();
        Some(ended.map(|status| (status, stdout.map(last_words).unwrap_or_default())))
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// What a child that ended had written to its standard output: why it ended.
fn last_words(stdout: ChildStdout) -> String {
    // Should a process of the child's still hold the other end, there is nothing to wait for.
    if rustix::io::ioctl_fionbio(&stdout, true).is_err() {
        return String::new();
    }
    let mut words = Vec::new();
    let _ = stdout.take(REASON_MAX).read_to_end(&mut words);
    String::from_utf8_lossy(&words).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> impl Fn() -> Command + Send + 'static {
        let script = script.to_owned();
        move || {
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            command
        }
    }

    #[tokio::test]
    async fn a_child_that_cannot_start_is_given_up_with_its_reason() {
        let mut child = Supervisor::start("it", shell("echo no such path; exit 1")).unwrap();
        assert_eq!(child.gave_up().await, "no such path");
    }

    #[tokio::test]
    async fn a_child_that_served_is_started_again_until_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("starts");
        let script = format!(
            "echo x >> {0}; [ $(wc -l < {0}) = 3 ] && sleep 60",
            path.display()
        );
        let child = Supervisor::start("it", shell(&script)).unwrap();
        child.has_served();
        while std::fs::read_to_string(&path).unwrap_or_default().len() < 6 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let before = Instant::now();
        child.stop(Duration::from_secs(30)).await;
        assert!(before.elapsed() < Duration::from_secs(20));
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_request_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("started");
        let script = format!(
            "trap '' TERM; touch {}; while :; do sleep 1; done",
            path.display()
        );
        let child = Supervisor::start("it", shell(&script)).unwrap();
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        child.stop(Duration::from_millis(50)).await;
    }
}
