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

/// Memory of some processes, in MB.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    /// Their own, which nobody else can have meanwhile.
    pub private: f64,
    /// With the pages of files that they have mapped: programs, packs. The kernel keeps these as
    /// long as it likes, and what several have mapped is counted several times.
    pub resident: f64,
}

impl Memory {
    fn each(self, other: Self, of_two: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            private: of_two(self.private, other.private),
            resident: of_two(self.resident, other.resident),
        }
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
        all = all.each(of_process(pid).unwrap_or_default(), |a, b| a + b);
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

#[allow(clippy::cast_precision_loss)]
fn of_process(pid: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kilobytes = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
        Some(kilobytes as f64 / 1024.0)
    };
    Some(Memory {
        private: field("RssAnon:")? + field("RssShmem:")?,
        resident: field("VmRSS:")?,
    })
}

/// Looks at memory again and again while something goes on.
pub struct Watch {
    idle: Memory,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Memory>,
}

impl Watch {
    /// From now, when the process is idle.
    pub fn start(pid: u32) -> Self {
        let idle = now(Some(pid));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut most = idle;
            while !stopped.load(Ordering::Relaxed) {
                most = most.each(now(Some(pid)), f64::max);
                thread::sleep(Duration::from_millis(20));
            }
            most
        });
        Self { idle, stop, thread }
    }

    /// The most that was taken at one time, over idle.
    pub fn over_idle(self) -> Memory {
        self.stop.store(true, Ordering::Relaxed);
        let most = self.thread.join().unwrap_or(self.idle);
        most.each(self.idle, |most, idle| most - idle)
    }
}
