//! A temporary service: this executable, started for the demonstration and gone with it.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use grasp_proto::process;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// Longest wait for the service to be ready, and for it to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The running service.
pub struct Service {
    child: Child,
    /// `http://localhost:<port>`.
    pub url: String,
}

impl Service {
    /// Starts it on a free port of this machine, with `settings` besides; it keeps nothing.
    /// `directory` is made for it and takes its log.
    ///
    /// To be called on a thread that lives as long as the service shall.
    pub async fn start(directory: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        std::fs::create_dir(directory)?;
        let log = std::fs::File::create(directory.join("log"))?;
        let mut command = Command::new("/proc/self/exe");
        // What the user has set is for a service of the user's own.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NGIT_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .arg0("graspd")
            .arg("serve")
            .env("NGIT_BIND_ADDRESS", "127.0.0.1:0")
            .env("NGIT_DATABASE_BACKEND", "memory")
            .env("NGIT_SHUTDOWN_GRACE_SECS", "2")
            .env(process::PARENT, std::process::id().to_string())
            .envs(settings.iter().copied())
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the service")?;
        let stdout = child.stdout.take().context("the service has no output")?;
        let mut line = String::new();
        timeout(PATIENCE, BufReader::new(stdout).read_line(&mut line))
            .await
            .context("the service did not get ready in time")??;
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("http://"));
        let Some(url) = url.filter(|_| line.starts_with("graspd is ready")) else {
            bail!("the service could not start: {}", line.trim());
        };
        let url = url.to_owned();
        Ok(Self { child, url })
    }

    /// Ends it.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .context("the service did not end in time")??;
        if !status.success() {
            bail!("the service ended badly ({status})");
        }
        Ok(())
    }
}
