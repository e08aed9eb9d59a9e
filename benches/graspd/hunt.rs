//! The hunt: identifiers whose data lies on other servers, with one, two and four workers.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nostr::Keys;

use crate::{
    Plan,
    memory::Watch,
    nostr::{Crowd, event, npub_of},
    report::{Report, Samples, Unit},
    target::Target,
    workload::Repository,
};

/// How far away the servers are: what every answer takes, as on the real network. Without it the
/// processors of this machine, which run the servers as well, would be what is measured.
const DISTANCE: Duration = Duration::from_millis(250);

/// How long after its event an identifier is hunted for: all events are there by then.
const DELAY: Duration = Duration::from_secs(8);

/// Measures the time from when all are due until all are served, and a large fetch's memory.
pub fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let (identifiers, servers) = plan.hunted;
    let root = plan.work.join("hunted");
    let repository = Repository::make(&root.join("source.git"), 0)?;
    let servers: Vec<Target> = (0..servers)
        .map(|_| Target::start_backend(&root, DISTANCE))
        .collect::<anyhow::Result<_>>()?;
    let mut time = Samples::of(Unit::Milliseconds);
    for workers in [1, 2, 4] {
        let row = format!("hunt-{workers}");
        let mut ours = Target::start_ours(plan, &row, &settings(workers, DELAY))?;
        let mut served = Crowd::subscribe_to(&ours.url, 1, 30618)?;
        let began = Instant::now();
        for number in 0..identifiers {
            let from = format!("{}/source.git", servers[number % servers.len()].url);
            lies_at(&mut ours, &repository, &format!("hunted-{number}"), &from)?;
        }
        // From the middle of the events' arrival on: each is due so much after its own.
        let due = began + began.elapsed() / 2 + DELAY;
        served.wait_for(identifiers)?;
        let taken = due.elapsed().as_secs_f64() * 1000.0;
        time.add(&format!("{workers} workers"), taken);
    }
    let row = format!(
        "hunt, {identifiers} identifiers on {} servers",
        servers.len()
    );
    report.add_scaling(&row, time);
    drop(servers);
    large(plan, report)
}

/// One large repository that lies elsewhere: memory of all processes over idle.
fn large(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let size = plan.size * 5;
    let root = plan.work.join("hunted-large");
    let repository = Repository::make(&root.join("source.git"), size)?;
    let server = Target::start_backend(&root, Duration::ZERO)?;
    let mut ours = Target::start_ours(plan, "hunt-large", &settings(1, Duration::ZERO))?;
    let mut served = Crowd::subscribe_to(&ours.url, 1, 30618)?;
    thread::sleep(Duration::from_secs(1));
    let watch = ours.pid().map(Watch::start);
    let began = Instant::now();
    let from = format!("{}/source.git", server.url);
    lies_at(&mut ours, &repository, "large", &from)?;
    served.wait_for(1)?;
    let mut time = Samples::of(Unit::Milliseconds);
    time.add(&ours.name, began.elapsed().as_secs_f64() * 1000.0);
    report.add(&format!("hunt, {size} MB from one server"), time);
    if let Some(watch) = watch {
        let taken = watch.over_idle();
        let mut resident = Samples::of(Unit::Megabytes);
        resident.add(&ours.name, taken.resident);
        let row = format!("hunt, {size} MB from one server: resident memory, over idle");
        report.add(&row, resident);
    }
    Ok(())
}

fn settings(workers: usize, delay: Duration) -> [(&'static str, String); 3] {
    [
        ("NGIT_WORKERS", workers.to_string()),
        ("NGIT_SYNC_ALLOW_NON_GLOBAL_TARGETS", "true".to_owned()),
        ("NGIT_SYNC_DEFAULT_DELAY_SECS", delay.as_secs().to_string()),
    ]
}

/// Announces a repository whose data is at `from`, and its state.
fn lies_at(
    ours: &mut Target,
    repository: &Repository,
    identifier: &str,
    from: &str,
) -> anyhow::Result<()> {
    let keys = Keys::generate();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() - 3600;
    let url = format!("{}/{}/{identifier}.git", ours.url, npub_of(&keys));
    let tags = [
        vec!["d".to_owned(), identifier.to_owned()],
        vec!["clone".to_owned(), url, from.to_owned()],
        vec!["relays".to_owned(), ours.url.replacen("http", "ws", 1)],
    ];
    ours.publish(&event(&keys, 30617, clock, &tags)?)?;
    let mut tags = vec![vec!["d".to_owned(), identifier.to_owned()]];
    for (name, oid) in repository.refs() {
        tags.push(vec![name.to_owned(), oid.to_owned()]);
    }
    tags.push(vec!["HEAD".to_owned(), "ref: refs/heads/main".to_owned()]);
    ours.publish(&event(&keys, 30618, clock + 1, &tags)?)
}
