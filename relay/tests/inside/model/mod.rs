//! A model: whatever happens in whatever order, the relay serves what it may and must, and its refs are
//! where they must be.
//!
//! [`steps`] says what can happen, [`generate`] makes scripts of it, [`rules`] and [`ledger`] state the rules
//! without a line of the product, [`settle`] compares, [`world`] drives the relay. A script that fails is
//! made short ([`shrink`]) and printed as [`text`], which `keeps_to_the_rules` takes as it is.
//!
//! `MODEL_STEPS` says how many steps are gone (10,000), `MODEL_SEED` by which scripts, `MODEL_THREADS` how
//! many at once (2). `MODEL_HISTOGRAM=1` has what came of them printed; `MODEL_SCRIPT` names a file with a
//! script to be gone through instead, with what is seen after each step.

mod compare;
mod effects;
mod generate;
mod ledger;
mod pushed;
mod random;
mod rules;
mod settle;
mod shrink;
mod signed;
mod steps;
mod text;
mod verdicts;
mod world;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::*;
use ledger::{Done, Ledger, Reply};
use steps::Step;
use world::World;

/// The steps of one script.
const SCRIPT: usize = 100;
/// How many steps are gone unless it is said.
const STEPS: usize = 10_000;

/// Of so many scripts one is gone through with the events on disk, the others in memory.
const ON_DISK: usize = 4;

/// What must come to pass in as many steps: a model of what never happens says nothing.
const OCCURS: [&str; 30] = [
    "announce: served",
    "announce: waits",
    "announce: duplicate",
    "announce: refused",
    "announce elsewhere: served",
    "announce elsewhere: duplicate",
    "announce elsewhere: refused",
    "state: served",
    "state: waits",
    "state: duplicate",
    "state: refused",
    "pull request: served",
    "pull request: waits",
    "pull request: refused",
    "delete by id: served",
    "delete by address: served",
    "again: served",
    "again: waits",
    "again: duplicate",
    "again: refused",
    "again, synced: duplicate",
    "again, synced: refused",
    "push: granted",
    "push: refused",
    "offer: granted",
    "offer: refused",
    "found: done",
    "found: not asked for",
    "pass: done",
    "restart: done",
];

/// What happened how often: steps, and what was answered.
type Histogram = BTreeMap<String, usize>;

/// Where a script left the rules, and how.
#[derive(Debug)]
struct Failure {
    step: usize,
    why: String,
}

fn outcome(step: &Step, done: &Done) -> &'static str {
    match (step, done.reply) {
        (_, Some(Reply::Served)) => "served",
        (_, Some(Reply::Waits)) => "waits",
        (_, Some(Reply::Duplicate)) => "duplicate",
        (Step::Push { .. } | Step::Offer { .. }, None) if done.is_granted => "granted",
        (_, Some(Reply::Refused)) | (Step::Push { .. } | Step::Offer { .. }, None) => "refused",
        (Step::Found { .. }, None) if done.arrived.is_empty() => "not asked for",
        _ => "done",
    }
}

async fn follow(script: &[Step], backend: Backend) -> Result<Histogram, Failure> {
    let mut world = World::new(script, backend).await;
    let mut ledger = Ledger::new(World::facts(script));
    let mut histogram = Histogram::new();
    for (at, step) in script.iter().enumerate() {
        let done = world.go(step).await;
        let seen = world.see().await;
        let time_passed = matches!(step, Step::Pass { .. });
        let kept = ledger.apply(step, &done);
        let kept = kept.and_then(|()| ledger.settle(&seen, time_passed));
        let kept = kept.and_then(|()| ledger.was_answered(step, &done));
        if std::env::var_os("MODEL_SCRIPT").is_some() {
            eprintln!("{step}  –  {}: {seen:?}", outcome(step, &done));
        }
        kept.map_err(|why| Failure { step: at, why })?;
        let what = format!("{}: {}", step.kind(), outcome(step, &done));
        *histogram.entry(what).or_default() += 1;
    }
    Ok(histogram)
}

fn run(script: &[Step], backend: Backend) -> Result<Histogram, Failure> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let ended = |_| {
        let (step, why) = (script.len(), "it panicked".to_owned());
        Err(Failure { step, why })
    };
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(follow(script, backend))
    }));
    ran.unwrap_or_else(ended)
}

/// Fails with the shortest script that leaves the rules as this one does.
fn report(script: &[Step], backend: Backend, failure: &Failure) -> ! {
    let script = &script[..script.len().min(failure.step + 1)];
    let script = shrink::shrink(script.to_vec(), |script| run(script, backend).is_err());
    let why = run(&script, backend).map_or_else(|failure| failure.why, |_| failure.why.clone());
    panic!("{why}\nafter\n{}", text::write(&script));
}

fn keeps_to_the_rules(fault: &str, script: &str) {
    let script = text::read(script);
    for backend in [Backend::Memory, Backend::Lmdb] {
        if let Err(failure) = run(&script, backend) {
            eprintln!("{fault}, {backend:?}");
            report(&script, backend, &failure);
        }
    }
}

fn number<T: FromStr>(variable: &str, default: T) -> T {
    let set = std::env::var(variable).ok();
    set.map_or(default, |text| {
        let number = text.parse().ok();
        number.unwrap_or_else(|| panic!("{variable} is no number: {text}"))
    })
}

#[test]
fn whatever_happens_the_relay_keeps_to_the_rules() {
    if let Some(script) = std::env::var_os("MODEL_SCRIPT") {
        return keeps_to_the_rules("", &std::fs::read_to_string(script).unwrap());
    }
    let (steps, seed) = (number("MODEL_STEPS", STEPS), number("MODEL_SEED", 1_u64));
    let (scripts, next) = (steps.div_ceil(SCRIPT), AtomicUsize::new(0));
    let histogram = Mutex::new(Histogram::new());
    let work = || {
        loop {
            let script = next.fetch_add(1, Ordering::SeqCst);
            if script >= scripts {
                break;
            }
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(script as u64);
            let backend = match script % ON_DISK {
                0 => Backend::Lmdb,
                _ => Backend::Memory,
            };
            let script = generate::script(seed, SCRIPT);
            let ran = run(&script, backend).unwrap_or_else(|failure| {
                // Nothing more is begun.
                next.store(scripts, Ordering::SeqCst);
                eprintln!("seed {seed}, step {}: {}", failure.step, failure.why);
                report(&script, backend, &failure)
            });
            let mut histogram = histogram.lock().unwrap();
            for (what, count) in ran {
                *histogram.entry(what).or_default() += count;
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = number("MODEL_THREADS", 2);
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let histogram = histogram.into_inner().unwrap();
    if std::env::var_os("MODEL_HISTOGRAM").is_some() {
        for (what, count) in &histogram {
            eprintln!("{count:8} {what}");
        }
    }
    if steps >= STEPS {
        let missing = OCCURS.iter().find(|what| !histogram.contains_key(**what));
        assert_eq!(missing, None, "it never happened");
    }
}

#[test]
fn a_script_is_read_as_it_was_written() {
    for seed in 0..100 {
        let script = generate::script(seed, SCRIPT);
        assert_eq!(text::read(&text::write(&script)), script);
    }
}

/// The shortest that were found for faults, most of them made on purpose.
const KEPT: [(&str, &str); 10] = [
    (
        "an older state is taken",
        "
        1: announce 1/x @45 here roles m1
        2: state 1/x @48 main=2
        push 1/x main=2
        3: state 1/x @42 main=1
        ",
    ),
    (
        "what is served is not judged again when its maintainers change",
        "
        1: announce 4/x @18 here maintainers 1
        2: announce 2/x @19 here fork
        3: state 4/x @20 main=1
        push 4/x main=1
        4: state 2/x @47 main=2
        push 2/x main=2
        5: announce 2/x @48 here roles M4
        6: announce 1/x @48 here roles M2 m4
        ",
    ),
    (
        "refs move back when somebody counts no more",
        "
        1: announce 4/x @18 here maintainers 1
        2: state 4/x @20 main=1
        push 4/x main=1
        3: announce 1/x @48 here roles m4
        4: state 1/x @47 main=2
        push 1/x main=2
        5: announce 1/x @51 here
        restart
        6: state 4/x @30 main=3
        found x 3
        ",
    ),
    (
        "who has left counts",
        "
        1: announce 3/x @21 here
        2: state 3/x @26 main=6 dev=101
        push 3/x dev=101 main=6
        3: announce 4/x @47 here roles m1:since m3 o4:broken
        4: announce 1/x @49 here maintainers 4
        5: announce 3/x @44 here maintainers 1
        ",
    ),
    (
        "a state that waited and was deleted is back after a restart",
        "
        1: announce 2/x @10 here fork
        2: state 2/x @12 main=101
        3: delete 2 @13 state x
        restart
        ",
    ),
    (
        "what fell with an announcement does not come back with one that waited by then",
        "
        1: announce 1/x @12 here roles m3
        2: announce 3/x @7 elsewhere
        3: pr 1 @23 for 3/x at 1
        offer 1/x 3=1
        4: announce 3/x @28 elsewhere until 15
        5: announce 3/x @34 here
        pass 1471
        6: state 3/x @35 dev=1
        ",
    ),
    (
        "who comes here is not served by a state that waited",
        "
        1: announce 1/x @23 here roles m4:since
        2: announce 4/x @25 elsewhere roles m3:since
        3: state 4/x @34 main=5
        4: state 1/x @38 dev=5
        found x 1,4,5
        5: announce 4/x @44 here roles o3 fork
        ",
    ),
    (
        "what was offered takes away what was offered before",
        "
        1: announce 1/x @12 here
        2: state 1/x @13 main=3
        push 1/x main=3
        offer 1/x 5=101
        offer 1/x 5=102
        restart
        offer 1/x 5=102
        5: pr 5 @12 for 1/x at 101
        offer 1/x 6=103
        offer 1/x 6=102
        pass 20
        offer 1/x 6=102
        6: pr 5 @13 for 1/x at 102
        ",
    ),
    (
        "a state goes on waiting for what came with a pull request",
        "
        1: announce 1/x @12 here
        2: state 1/x @13 main=3
        push 1/x main=3
        3: announce 3/x @20 here
        4: state 3/x @14 dev=101
        offer 1/x 5=101
        5: pr 5 @12 for 1/x at 101
        ",
    ),
    (
        "what is held of who does not count goes on being held when he counts again",
        "
        6: announce 2/x @6 here roles m1:since
        7: state 2/x @13 main=101
        8: announce 3/x @14 here roles M1 fork
        21: state 3/x @19 main=101 dev=5
        push 3/x dev=5 main=101
        31: announce 1/x @27 elsewhere maintainers 4
        46: state 1/x @36 main=5
        47: announce 2/x @37 elsewhere
        48: announce 4/x @32 here roles m3
        54: announce 3/x @42 elsewhere maintainers 1,2
        56: announce 2/x @42 here maintainers 3
        60: announce 2/x @43 here maintainers 3,4
        ",
    ),
];

#[test]
fn what_once_told_a_fault_keeps_to_the_rules() {
    for (fault, script) in KEPT {
        keeps_to_the_rules(fault, script);
    }
}

#[test]
fn a_script_is_made_as_short_as_it_can_be() {
    let script = generate::script(7, SCRIPT);
    let fails = |script: &[Step]| {
        let names_two = |step: &&Step| matches!(step, Step::Push { refs, .. } if refs.len() > 1);
        script.contains(&Step::Restart) && script.iter().any(|step| names_two(&step))
    };
    assert!(fails(&script));
    let short = shrink::shrink(script, fails);
    assert_eq!(short.len(), 2, "{}", text::write(&short));
    assert!(fails(&short));
}
