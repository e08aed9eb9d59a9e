//! How fast graspd is, beside what it is measured against, in the same run.
//!
//! Every figure stands beside its yardsticks: plain `git` over a pipe where that is the limit,
//! `git http-backend` behind a bridge that does nothing else, and any other GRASP server named in
//! `GRASP_PEER`. Repetitions are interleaved (A B C A B C …), so that whatever else the machine
//! does meets all of them; the medians are compared.

#[path = "../../tests/e2e/support/backend.rs"]
mod backend;
mod bridge;
mod hunt;
mod memory;
mod nostr;
mod purgatory;
mod report;
mod target;
mod wire;
mod workload;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use memory::Watch;
use report::{Report, Samples, Unit};
use target::{Kind, Target};
use workload::Repository;

/// How much is done.
struct Plan {
    /// Size of the repository that is pushed and cloned, in MB.
    size: usize,
    /// Repetitions of what takes seconds.
    slow: usize,
    /// Repetitions of what takes milliseconds.
    fast: usize,
    /// Numbers of refs to list.
    refs: Vec<usize>,
    /// Subscribers that one event goes to.
    subscribers: usize,
    /// Numbers of entries in purgatory.
    waiting: Vec<usize>,
    /// Identifiers to hunt for, and servers they are on.
    hunted: (usize, usize),
    /// Only rows that contain this.
    only: String,
    /// Where everything happens.
    work: PathBuf,
}

fn command() -> Command {
    Command::new("cargo bench --")
        .about("Measures graspd beside git and, with GRASP_PEER=/path/to/server, beside a peer")
        .arg(
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("Small sizes, few repetitions: whether it works, not how fast"),
        )
        .arg(
            Arg::new("size")
                .long("size")
                .env("GRASP_BENCH_SIZE_MB")
                .value_name("MB")
                .value_parser(value_parser!(usize))
                .help("Size of the repository that is pushed and cloned [default: 200]"),
        )
        .arg(
            Arg::new("repetitions")
                .long("repetitions")
                .env("GRASP_BENCH_REPETITIONS")
                .value_name("N")
                .value_parser(value_parser!(usize))
                .help("Repetitions of pushes and clones [default: 3]"),
        )
        .arg(
            Arg::new("only")
                .default_value("")
                .value_name("WORD")
                .help("Only rows whose name contains this"),
        )
        // Cargo says so to every benchmark.
        .arg(
            Arg::new("bench")
                .long("bench")
                .action(ArgAction::SetTrue)
                .hide(true),
        )
}

fn plan(matches: &ArgMatches, work: &Path) -> Plan {
    let quick = matches.get_flag("quick");
    let number = |name: &str| matches.get_one::<usize>(name).copied();
    Plan {
        size: number("size").unwrap_or(if quick { 10 } else { 200 }),
        slow: number("repetitions").unwrap_or(if quick { 1 } else { 3 }),
        fast: if quick { 5 } else { 30 },
        refs: vec![1_000, if quick { 5_000 } else { 50_000 }],
        subscribers: if quick { 50 } else { 300 },
        waiting: match quick {
            true => vec![1_000, 10_000],
            false => vec![1_000, 100_000, 1_000_000],
        },
        hunted: if quick { (40, 4) } else { (200, 20) },
        only: matches
            .get_one::<String>("only")
            .cloned()
            .unwrap_or_default(),
        work: work.to_owned(),
    }
}

fn main() -> ExitCode {
    // The bridge is this executable too, in a process whose memory can be told from ours.
    if let Ok(root) = std::env::var(bridge::ROOT) {
        bridge::main(Path::new(&root));
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let matches = command().get_matches();
    let executable = std::env::current_exe()?;
    let output = executable
        .ancestors()
        .nth(3)
        .context("the benchmark does not lie in a target directory")?
        .join("bench");
    std::fs::create_dir_all(&output)?;
    let work = tempfile::Builder::new()
        .prefix("work-")
        .tempdir_in(&output)?;
    let plan = plan(&matches, work.path());
    let mut report = Report::new();

    let wanted = |row: &str| row.contains(&plan.only);
    if wanted("idle memory") {
        idle(&plan, &mut report)?;
    }
    let size = format!("{} MB", plan.size);
    let pushes = [1, 4].map(|n| (n, format!("push {size}, {n} at once")));
    let clones = [1, 4].map(|n| (n, format!("clone {size}, {n} at once")));
    let first = format!("first byte of a pack of {size}");
    let large = pushes.iter().chain(&clones).map(|(_, row)| row);
    if large.chain([&first]).any(|row| wanted(row)) {
        let repository = Repository::make(&plan.work.join("source"), plan.size)?;
        for (at_once, row) in pushes.iter().filter(|(_, row)| wanted(row)) {
            push(&plan, &mut report, row, &repository, *at_once)?;
        }
        for (at_once, row) in clones.iter().filter(|(_, row)| wanted(row)) {
            clone(&plan, &mut report, row, &repository, *at_once)?;
        }
        if wanted(&first) {
            first_byte(&plan, &mut report, &first, &repository)?;
        }
    }
    for count in &plan.refs {
        let row = format!("ls-refs, {count} refs");
        if wanted(&row) {
            ls_refs(&plan, &mut report, &row, *count)?;
        }
    }
    if wanted("small push") {
        small_push(&plan, &mut report)?;
    }
    if wanted("publish") {
        publish(&plan, &mut report)?;
    }
    if wanted("fan-out") {
        fan_out(&plan, &mut report)?;
    }
    if wanted("purgatory") {
        purgatory::measure(&plan.waiting, &mut report)?;
    }
    if wanted("hunt") {
        hunt::measure(&plan, &mut report)?;
    }
    let file = output.join("graspd.json");
    report.write(&file)?;
    println!("\nwritten to {}", file.display());
    Ok(())
}

/// Waits until a server does nothing that is left over from before.
fn settle() {
    thread::sleep(Duration::from_millis(500));
}

fn idle(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let mut private = Samples::of(Unit::Megabytes);
    let mut resident = Samples::of(Unit::Megabytes);
    for target in Target::start_all(&[Kind::Graspd, Kind::Peer], plan, "idle", |_| Ok(()))? {
        settle();
        let taken = memory::now(target.pid());
        private.add(&target.name, taken.private);
        resident.add(&target.name, taken.resident);
    }
    report.add("idle memory, all processes: their own", private);
    report.add("idle memory, all processes: resident", resident);
    Ok(())
}

/// `at_once` clients push the same repository, each to one that nobody has pushed to.
fn push(
    plan: &Plan,
    report: &mut Report,
    row: &str,
    repository: &Repository,
    at_once: usize,
) -> anyhow::Result<()> {
    let kinds = [Kind::Graspd, Kind::HttpBackend, Kind::Pipe, Kind::Peer];
    let mut targets = Target::start_all(&kinds, plan, "push", |_| Ok(()))?;
    let mut time = Samples::of(Unit::Milliseconds);
    let mut private = Samples::of(Unit::Megabytes);
    let mut resident = Samples::of(Unit::Megabytes);
    for _ in 0..plan.slow {
        for target in &mut targets {
            let urls = (0..at_once)
                .map(|_| target.awaits_push(repository))
                .collect::<anyhow::Result<Vec<_>>>()?;
            settle();
            let watch = target.pid().map(Watch::start);
            let began = Instant::now();
            together(&urls, |url| repository.push(url))?;
            time.add(&target.name, began.elapsed().as_secs_f64() * 1000.0);
            if let Some(watch) = watch {
                let taken = watch.over_idle();
                private.add(&target.name, taken.private);
                resident.add(&target.name, taken.resident);
            }
            for url in urls {
                target.forget(&url);
            }
        }
    }
    report.add(row, time);
    report.add(&format!("{row}: memory of their own, over idle"), private);
    report.add(&format!("{row}: resident memory, over idle"), resident);
    Ok(())
}

fn clone(
    plan: &Plan,
    report: &mut Report,
    row: &str,
    repository: &Repository,
    at_once: usize,
) -> anyhow::Result<()> {
    let kinds = [Kind::Graspd, Kind::HttpBackend, Kind::Pipe, Kind::Peer];
    let mut targets = Target::start_all(&kinds, plan, "clone", |_| Ok(()))?;
    let urls = with_repository(&mut targets, repository)?;
    let mut time = Samples::of(Unit::Milliseconds);
    let mut private = Samples::of(Unit::Megabytes);
    let mut resident = Samples::of(Unit::Megabytes);
    for _ in 0..plan.slow {
        for (target, url) in targets.iter().zip(&urls) {
            let copies: Vec<PathBuf> = (0..at_once)
                .map(|n| plan.work.join(format!("copy-{n}")))
                .collect();
            settle();
            let watch = target.pid().map(Watch::start);
            let began = Instant::now();
            together(&copies, |copy| workload::clone(url, copy))?;
            time.add(&target.name, began.elapsed().as_secs_f64() * 1000.0);
            if let Some(watch) = watch {
                let taken = watch.over_idle();
                private.add(&target.name, taken.private);
                resident.add(&target.name, taken.resident);
            }
            for copy in copies {
                std::fs::remove_dir_all(copy)?;
            }
        }
    }
    report.add(row, time);
    report.add(&format!("{row}: memory of their own, over idle"), private);
    report.add(&format!("{row}: resident memory, over idle"), resident);
    Ok(())
}

fn first_byte(
    plan: &Plan,
    report: &mut Report,
    row: &str,
    repository: &Repository,
) -> anyhow::Result<()> {
    let kinds = [Kind::Graspd, Kind::HttpBackend, Kind::Pipe, Kind::Peer];
    let mut targets = Target::start_all(&kinds, plan, "first", |_| Ok(()))?;
    let urls = with_repository(&mut targets, repository)?;
    let request = wire::fetch(&repository.tip);
    let mut first = Samples::of(Unit::Milliseconds);
    let mut whole = Samples::of(Unit::Milliseconds);
    for _ in 0..plan.slow.max(plan.fast / 3) {
        for (target, url) in targets.iter().zip(&urls) {
            let times = wire::exchange(url, &request, b"PACK")?;
            first.add(&target.name, times.marked.context("no pack came")?);
            whole.add(&target.name, times.ended);
        }
    }
    report.add(row, first);
    report.add(
        &format!("{row}: the whole, to a client that only reads"),
        whole,
    );
    Ok(())
}

fn ls_refs(plan: &Plan, report: &mut Report, row: &str, count: usize) -> anyhow::Result<()> {
    let kinds = [Kind::Graspd, Kind::HttpBackend, Kind::Peer];
    // As a repository that lay in the data path before: no event could name so many refs.
    let path = format!("{}/many.git", nostr::npub());
    let targets = Target::start_all(&kinds, plan, "refs", |data| {
        workload::with_refs(&data.join(&path), count)
    })?;
    let request = wire::ls_refs();
    let mut time = Samples::of(Unit::Milliseconds);
    for _ in 0..plan.fast {
        for target in &targets {
            let url = format!("{}/{path}", target.url);
            let times = wire::exchange(&url, &request, b"refs/")?;
            anyhow::ensure!(times.bytes > count * 50, "{}: too few refs", target.name);
            time.add(&target.name, times.ended);
        }
    }
    report.add(row, time);
    Ok(())
}

/// One commit on a repository that is there already: from command to prompt.
fn small_push(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let kinds = [Kind::Graspd, Kind::HttpBackend, Kind::Pipe, Kind::Peer];
    let mut targets = Target::start_all(&kinds, plan, "small", |_| Ok(()))?;
    let mut repository = Repository::make(&plan.work.join("small"), 0)?;
    let urls = with_repository(&mut targets, &repository)?;
    let mut time = Samples::of(Unit::Milliseconds);
    for _ in 0..plan.fast {
        repository.commit()?;
        for (target, url) in targets.iter_mut().zip(&urls) {
            target.awaits_update(url, &repository)?;
            let began = Instant::now();
            repository.push(url)?;
            time.add(&target.name, began.elapsed().as_secs_f64() * 1000.0);
        }
    }
    report.add("small push, command to prompt", time);
    Ok(())
}

fn publish(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let mut targets = Target::start_all(&[Kind::Graspd, Kind::Peer], plan, "publish", |_| Ok(()))?;
    let repository = Repository::make(&plan.work.join("publish"), 0)?;
    let urls = with_repository(&mut targets, &repository)?;
    let mut time = Samples::of(Unit::Milliseconds);
    for _ in 0..plan.fast * 10 {
        for (target, url) in targets.iter_mut().zip(&urls) {
            let issue = target.issue(url)?;
            let began = Instant::now();
            target.publish(&issue)?;
            time.add(&target.name, began.elapsed().as_secs_f64() * 1000.0);
        }
    }
    report.add("publish, EVENT to OK", time);
    Ok(())
}

fn fan_out(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let mut targets = Target::start_all(&[Kind::Graspd, Kind::Peer], plan, "fan", |_| Ok(()))?;
    let repository = Repository::make(&plan.work.join("fan"), 0)?;
    let urls = with_repository(&mut targets, &repository)?;
    let mut crowds = targets
        .iter()
        .map(|target| nostr::Crowd::subscribe(&target.url, plan.subscribers))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut time = Samples::of(Unit::Milliseconds);
    for _ in 0..plan.fast {
        for ((target, url), crowd) in targets.iter_mut().zip(&urls).zip(&mut crowds) {
            let issue = target.issue(url)?;
            let began = Instant::now();
            target.publish(&issue)?;
            crowd.wait()?;
            time.add(&target.name, began.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let row = format!(
        "fan-out, EVENT to the last of {} subscribers",
        plan.subscribers
    );
    report.add(&row, time);
    Ok(())
}

/// Puts the repository on every target; gives where it is.
fn with_repository(targets: &mut [Target], repository: &Repository) -> anyhow::Result<Vec<String>> {
    let mut urls = Vec::new();
    for target in targets {
        let url = target.awaits_push(repository)?;
        repository.push(&url)?;
        urls.push(url);
    }
    settle();
    Ok(urls)
}

/// Does it for all of them at the same time.
fn together<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let running: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(|| work(item)))
            .collect();
        running
            .into_iter()
            .try_for_each(|thread| thread.join().expect("the work does not panic"))
    })
}
