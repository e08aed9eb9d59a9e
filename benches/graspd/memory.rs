//! Memory of a process and all it has started, as the kernel counts it.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Memory that belongs to the processes: not the pages of files that they have mapped, which the
/// kernel keeps as long as it likes and shares among all.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    private_kb: u64,
}

impl Memory {
    /// In MB.
    #[allow(clippy::cast_precision_loss)]
    pub fn private_megabytes(self) -> f64 {
        self.private_kb as f64 / 1024.0
    }
}

/// What a process and its descendants take now.
pub fn now(pid: Option<u32>) -> Memory {
    let Some(pid) = pid else {
        return Memory::default();
    };
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = Memory::default();
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        all.private_kb += private_kb(pid).unwrap_or(0);
        left.extend(children.get(&pid).into_iter().flatten());
    }
    all
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

fn private_kb(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some(field("RssAnon:")? + field("RssShmem:")?)
}

/// Looks at memory again and again while something goes on.
pub struct Watch {
    idle: Memory,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    /// From now, when the process is idle.
    pub fn start(pid: u32) -> Self {
        let idle = now(Some(pid));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                most = most.max(now(Some(pid)).private_kb);
                thread::sleep(Duration::from_millis(20));
            }
            most
        });
        Self { idle, stop, thread }
    }

    /// The most that was taken at one time, over idle.
    pub fn over_idle_megabytes(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        let most = self.thread.join().unwrap_or(0);
        let private_kb = most.saturating_sub(self.idle.private_kb);
        Memory { private_kb }.private_megabytes()
    }
}
