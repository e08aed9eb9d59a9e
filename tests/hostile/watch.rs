//! What an attack costs, as `/proc` and the disk tell.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinHandle};

use crate::{neighbour::Ratios, support::processes};

/// A million bytes.
pub const MB: u64 = 1_000_000;

/// How long after an attack memory may take to be given back.
const GIVEN_BACK: Duration = Duration::from_secs(60);

/// What an attack may cost at most, the machine's speed aside.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Memory of all processes together, at its peak.
    pub peak_bytes: u64,
    /// What of it is more than before, a minute after.
    pub left_bytes: u64,
    /// Processor time of all processes.
    pub cpu_secs: f64,
    /// What is left on the disk.
    pub disk_bytes: u64,
    /// What is left open.
    pub handles: u64,
}

/// What all processes of a service have.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Bytes of memory of their own, not of files.
    pub memory: u64,
    /// Seconds.
    pub cpu: f64,
    pub handles: u64,
    pub threads: u64,
}

impl Sample {
    /// What they have now.
    pub fn of(root: u32) -> Self {
        let mut all = processes::descendants(root);
        all.push(root);
        all.into_iter().fold(Self::default(), |sum, pid| {
            let one = of_process(pid).unwrap_or_default();
            Self {
                memory: sum.memory + one.memory,
                cpu: sum.cpu + one.cpu,
                handles: sum.handles + one.handles,
                threads: sum.threads + one.threads,
            }
        })
    }
}

fn of_process(pid: u32) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let fields: HashMap<&str, &str> = status.lines().filter_map(|l| l.split_once(':')).collect();
    let number =
        |name: &str| -> Option<u64> { fields.get(name)?.split_whitespace().next()?.parse().ok() };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    // utime, stime, and those of children that have ended: fields 14 to 17, of which the state is the third.
    let ticks = rest.split(' ').skip(11).take(4);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    let millis = ticks * 1000 / rustix::param::clock_ticks_per_second();
    Some(Sample {
        memory: (number("RssAnon")? + number("RssShmem")?) * 1024,
        cpu: Duration::from_millis(millis).as_secs_f64(),
        handles: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        threads: number("Threads")?,
    })
}

/// How much lies below a directory, in bytes.
pub fn disk(directory: &Path) -> u64 {
    let files = processes::files(directory);
    let lengths = files
        .iter()
        .filter_map(|file| Some(file.metadata().ok()?.len()));
    lengths.sum()
}

/// What an attack took.
#[derive(Debug)]
pub struct Cost {
    peak: u64,
    left: u64,
    cpu: f64,
    disk: u64,
    handles: u64,
    ratios: Ratios,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "peak {} MB, left {} MB, {:.1} s of processors, disk {} MB, handles {}; neighbour {}",
            self.peak / MB,
            self.left / MB,
            self.cpu,
            self.disk / MB,
            self.handles,
            self.ratios
        )
    }
}

impl Cost {
    /// Fails the test if it was more than it may be.
    pub fn check(&self, bounds: &Bounds) {
        assert!(self.peak <= bounds.peak_bytes, "memory at its peak: {self}");
        assert!(
            self.left <= bounds.left_bytes,
            "memory that is left: {self}"
        );
        assert!(self.cpu <= bounds.cpu_secs, "processor time: {self}");
        assert!(self.disk <= bounds.disk_bytes, "disk: {self}");
        assert!(self.handles <= bounds.handles, "handles: {self}");
    }
}

/// Looks at a service while it is attacked.
pub struct Watch {
    root: u32,
    directory: PathBuf,
    before: Sample,
    disk_before: u64,
    stop: oneshot::Sender<()>,
    looking: JoinHandle<u64>,
}

impl Watch {
    /// Begins to look at the processes below `root`, and at what lies in `directory`.
    pub fn start(root: u32, directory: &Path) -> Self {
        let before = Sample::of(root);
        let (stop, mut stopped) = oneshot::channel();
        let looking = tokio::task::spawn_blocking(move || {
            let mut peak = before.memory;
            while stopped.try_recv().is_err() {
                peak = peak.max(Sample::of(root).memory);
                std::thread::sleep(Duration::from_millis(50));
            }
            peak
        });
        Self {
            root,
            directory: directory.to_owned(),
            before,
            disk_before: disk(directory),
            stop,
            looking,
        }
    }

    /// What it took, once everything has been given back or had the time for it.
    pub async fn end(self, ratios: Ratios, bounds: &Bounds) -> Cost {
        let cpu = Sample::of(self.root).cpu - self.before.cpu;
        let is_back = || {
            let now = Sample::of(self.root);
            now.memory <= self.before.memory + bounds.left_bytes
                && now.handles <= self.before.handles + bounds.handles
        };
        let waiting = async {
            while !is_back() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        // Whether it is back is judged by the cost.
        let _ = tokio::time::timeout(GIVEN_BACK, waiting).await;
        let _ = self.stop.send(());
        let now = Sample::of(self.root);
        Cost {
            peak: self.looking.await.expect("it looks to the end"),
            left: now.memory.saturating_sub(self.before.memory),
            cpu,
            disk: disk(&self.directory).saturating_sub(self.disk_before),
            handles: now.handles.saturating_sub(self.before.handles),
            ratios,
        }
    }
}
