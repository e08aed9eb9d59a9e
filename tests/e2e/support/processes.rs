//! Processes, as `/proc` shows them.

use std::{fs, path::PathBuf};

use rustix::process::{Pid, Signal, kill_process};

struct Status {
    pid: u32,
    parent: u32,
    zombie: bool,
}

/// `pid (name) state parent …`, where the name may hold anything.
fn status(pid: u32) -> Option<Status> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some(Status {
        pid,
        zombie: matches!(fields.next()?, "Z" | "X"),
        parent: fields.next()?.parse().ok()?,
    })
}

/// Whether the process still runs.
pub fn alive(pid: u32) -> bool {
    status(pid).is_some_and(|status| !status.zombie)
}

/// Every process below `root`, without itself.
pub fn descendants(root: u32) -> Vec<u32> {
    let all: Vec<Status> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| status(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(|status| !status.zombie)
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(all.iter().filter(|s| s.parent == parent).map(|s| s.pid));
        next += 1;
    }
    found.split_off(1)
}

/// The arguments a process was started with.
pub fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

/// Sends a signal; a process that is gone already is no error.
pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// Every file below a directory, sorted.
pub fn files(root: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}
