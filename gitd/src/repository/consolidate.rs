//! Pools that have grown: many packs become few, and very many objects get bitmaps.
//!
//! A clone of a repository without bitmaps enumerates its objects one by one, in memory that grows
//! with their number; with them, git sends packs nearly as they lie. They belong to a
//! multi-pack-index of the pool, and git reads that of a view's alternate as it reads its own. Nothing
//! depends on either being there, whole, or new: git looks in the packs beside it for what it
//! does not have, and walks from refs that have moved since. A kill at any moment leaves the old,
//! none or the new one, and temporary files that the start sweeps.
//!
//! A pack that was rolled up stays for a while: a git that has listed packs opens them later, and gives
//! up when too many have gone meanwhile. What is to go is listed in a file of the pool.
//!
//! One pool at a time, behind everything else. Writing bitmaps takes what one clone without them
//! takes. In between, pools are pruned (`prune.rs`).

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use git2::ObjectType;
use grasp_proto::words::{Identifier, Oid};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    Error, Repositories, git, kind_of,
    layout::{IDENTIFIER, ROLLED_UP},
    places::Places,
    pool::{self, note_rolled_up, rolled_up},
    prune, refs,
};
use crate::meters;

/// From this many packs on, a pool is consolidated: every look-up asks each that is in no
/// multi-pack-index.
const MANY_PACKS: usize = 20;

/// From this many packs on in all.
const MOST_PACKS: usize = 100;

/// From this many objects on that are in no multi-pack-index, there is a new one: a clone enumerates
/// them in about 10 MB.
const MANY_OBJECTS: u64 = 20_000;

/// Tips of one pool's views that bitmaps are made for.
const MOST_TIPS: usize = 200_000;

/// Pools that wait at most. A pool that finds no room is seen to when it next grows.
const WAITING: usize = 1024;

/// The multi-pack-index of a directory of packs.
const INDEX: &str = "multi-pack-index";

/// The largest list of packs that is read of a multi-pack-index.
const LARGEST_LIST: u64 = 1 << 20;

/// How often pools are looked through for what nobody can reach any more.
const PRUNED_EVERY: Duration = Duration::from_secs(3600);

/// How long a pack stays after it was rolled up.
const STAYS: Duration = Duration::from_secs(600);

/// What a pool has, and what of it no multi-pack-index covers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Survey {
    /// Its packs but for those that were rolled up, with their objects, the smallest first.
    all: Vec<(u64, String)>,
    /// Those that are not covered.
    packs: usize,
    /// The objects in them.
    objects: u64,
    /// The index covers what was rolled up.
    outdated: bool,
}

impl Survey {
    fn of(pool: &Path) -> io::Result<Self> {
        let directory = pool.join("objects/pack");
        let gone = rolled_up(pool)?;
        let covered = covered(&directory).unwrap_or_default();
        let mut survey = Self {
            outdated: !gone.is_disjoint(&covered),
            ..Self::default()
        };
        for name in pool::packs(&directory)? {
            if gone.contains(&name) {
                continue;
            }
            let objects = objects_in(&directory, &name)?;
            if !covered.contains(&name) {
                survey.packs += 1;
                survey.objects += objects;
            }
            survey.all.push((objects, name));
        }
        survey.all.sort_unstable();
        Ok(survey)
    }

    fn many_packs(&self) -> bool {
        self.packs > MANY_PACKS || self.all.len() > MOST_PACKS
    }

    fn many_objects(&self) -> bool {
        self.objects >= MANY_OBJECTS
    }

    /// How many of the smallest packs become one, so that of what is left each has twice the objects of
    /// the one before: no object is packed again more often than sizes double.
    fn small(&self) -> usize {
        let objects: Vec<u64> = self.all.iter().map(|(objects, _)| *objects).collect();
        let mut count = objects.len();
        while count > 1 && objects[count - 1] >= 2 * objects[count - 2] {
            count -= 1;
        }
        if count < 2 {
            return 0;
        }
        let mut sum: u64 = objects[..count].iter().sum();
        while count < objects.len() && objects[count] < 2 * sum {
            sum += objects[count];
            count += 1;
        }
        count
    }
}

/// Whose objects a pool has.
pub(super) fn identifier_of(pool: &Path) -> Result<Identifier, Error> {
    let text = fs::read_to_string(pool.join(IDENTIFIER))?;
    Identifier::parse(text.trim_end_matches('\n'))
        .map_err(|error| Error::Invalid(error.to_string()))
}

/// Removes packs that were rolled up: `names`, or all. An index that covers any of them goes first, as
/// with git. Blocks.
pub(super) fn remove_rolled_up(pool: &Path, names: Option<&HashSet<String>>) -> io::Result<()> {
    let all = rolled_up(pool)?;
    let (gone, left): (HashSet<_>, HashSet<_>) = all
        .into_iter()
        .partition(|name| names.is_none_or(|names| names.contains(name)));
    if gone.is_empty() {
        return Ok(());
    }
    let directory = pool.join("objects/pack");
    if covered(&directory).is_some_and(|covered| !covered.is_disjoint(&gone)) {
        fs::remove_file(directory.join(INDEX))?;
    }
    for name in &gone {
        pool::remove_pack(&directory, name)?;
    }
    match left.is_empty() {
        true => fs::remove_file(pool.join(ROLLED_UP)),
        false => note_rolled_up(pool, left),
    }
}

/// How many objects a pack has, by the fan-out of its index.
fn objects_in(directory: &Path, name: &str) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let file = match fs::File::open(directory.join(format!("{name}.idx"))) {
        // Rolled up meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        file => file?,
    };
    let mut count = [0; 4];
    file.read_exact_at(&mut count, 8 + 255 * 4)?;
    Ok(u64::from(u32::from_be_bytes(count)))
}

/// The packs that the multi-pack-index covers (gitformat-pack); `None`: there is none that we can read.
fn covered(directory: &Path) -> Option<HashSet<String>> {
    use std::os::unix::fs::FileExt;
    let mut file = fs::File::open(directory.join(INDEX)).ok()?;
    let mut head = [0; 12];
    file.read_exact(&mut head).ok()?;
    if head[..5] != *b"MIDX\x01" {
        return None;
    }
    let mut table = vec![0; (usize::from(head[6]) + 1) * 12];
    file.read_exact(&mut table).ok()?;
    let offset = |entry: &[u8]| Some(u64::from_be_bytes(entry[4..12].try_into().ok()?));
    let mut chunks = table.chunks_exact(12).zip(table[12..].chunks_exact(12));
    let (names, next) = chunks.find(|(chunk, _)| chunk[..4] == *b"PNAM")?;
    let (begin, end) = (offset(names)?, offset(next)?);
    let length = end.checked_sub(begin).filter(|l| *l <= LARGEST_LIST)?;
    let mut list = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut list, begin).ok()?;
    let names = list.split(|byte| *byte == 0);
    let names = names.filter_map(|name| std::str::from_utf8(name).ok()?.strip_suffix(".idx"));
    Some(names.map(str::to_owned).collect())
}

/// Whether objects lie loose in a pool, as another server may have left them.
pub(super) fn has_loose(pool: &Path) -> bool {
    let entries = fs::read_dir(pool.join("objects")).into_iter().flatten();
    entries.flatten().any(|entry| entry.file_name().len() == 2)
}

/// What is to be done to a pool.
#[derive(Debug)]
pub enum Work {
    /// Its packs are many, or without bitmaps.
    Consolidate(PathBuf),
    /// What nobody can reach goes at once; gives how many bytes that were.
    Prune(PathBuf, oneshot::Sender<Result<u64, Error>>),
}

/// Consolidates and prunes pools one at a time, behind everything else.
#[derive(Debug)]
pub struct Consolidator {
    queue: mpsc::Sender<Work>,
    waiting: Mutex<HashSet<PathBuf>>,
}

impl Consolidator {
    /// The consolidator, and what [`Consolidator::work`] takes from.
    pub fn new() -> (Self, mpsc::Receiver<Work>) {
        let (queue, receiver) = mpsc::channel(WAITING);
        let waiting = Mutex::default();
        (Self { queue, waiting }, receiver)
    }

    /// Looks at a pool that may have grown, once refs lead to what came: bitmaps are made for them.
    /// Blocks, shortly.
    pub fn consider(&self, pool: &Path) {
        if !Survey::of(pool).is_ok_and(|s| s.many_packs() || s.many_objects()) {
            return;
        }
        self.consolidate_soon(pool);
    }

    /// A pool has its turn.
    pub(super) fn consolidate_soon(&self, pool: &Path) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let work = Work::Consolidate(pool.to_owned());
        if waiting.insert(pool.to_owned()) && self.queue.try_send(work).is_err() {
            waiting.remove(pool);
        }
    }

    /// Takes what nobody can reach out of a pool, as soon as it has its turn.
    pub(super) async fn prune(&self, pool: PathBuf) -> Result<u64, Error> {
        let stopping = || io::Error::other("the process is stopping");
        let (answer, pruned) = oneshot::channel();
        let sent = self.queue.send(Work::Prune(pool, answer)).await;
        sent.map_err(|_| stopping())?;
        pruned.await.map_err(|_| stopping())?
    }

    /// Works until it is dropped.
    pub async fn work(&self, mut receiver: mpsc::Receiver<Work>, repositories: Arc<Repositories>) {
        let places = Places::new(1);
        let mut pruning = interval(PRUNED_EVERY);
        pruning.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What has to go, the first first. Bounded by what is consolidated while it stays.
        let mut leaving: VecDeque<(Instant, PathBuf, HashSet<String>)> = VecDeque::new();
        loop {
            let next = leaving.front().map(|(when, ..)| *when);
            let work = tokio::select! {
                work = receiver.recv() => match work {
                    Some(work) => work,
                    None => return,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    if let Some((_, pool, names)) = leaving.pop_front() {
                        remove_packs(&repositories, pool, names).await;
                    }
                    continue;
                }
                _ = pruning.tick() => {
                    for pool in prune_what_is_due(&repositories, &places).await {
                        leaving.push_back(stays(&repositories, pool).await);
                    }
                    continue;
                }
            };
            match work {
                Work::Consolidate(pool) => {
                    self.waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .remove(&pool);
                    let begun = Instant::now();
                    let done = consolidate(&pool, &repositories, &places).await;
                    meters::consolidated(done.is_ok() || !pool.exists(), begun.elapsed());
                    if done.is_ok() {
                        tracing::info!(pool = %pool.display(), time = ?begun.elapsed(), "packs consolidated");
                    }
                    report(&pool, "packs not consolidated", done);
                    leaving.push_back(stays(&repositories, pool).await);
                }
                Work::Prune(pool, answer) => {
                    let pruned = prune::prune(&pool, &repositories, &places, true).await;
                    // Whoever asked may have gone.
                    let _ = answer.send(pruned);
                    self.consider(&pool);
                }
            }
        }
    }
}

/// What of a pool has to go after a while.
async fn stays(
    repositories: &Arc<Repositories>,
    pool: PathBuf,
) -> (Instant, PathBuf, HashSet<String>) {
    let place = pool.clone();
    let names = repositories.blocking(move |_| Ok(rolled_up(&place)?)).await;
    (Instant::now() + STAYS, pool, names.unwrap_or_default())
}

/// Removes packs that were rolled up.
async fn remove_packs(repositories: &Arc<Repositories>, pool: PathBuf, names: HashSet<String>) {
    let place = pool.clone();
    let remove = move |this: &Repositories| this.remove_rolled_up(&place, &names);
    report(
        &pool,
        "rolled-up packs stay",
        repositories.blocking(remove).await,
    );
}

/// Prunes the pools where something has run out, one after another; gives them.
async fn prune_what_is_due(repositories: &Arc<Repositories>, places: &Places) -> Vec<PathBuf> {
    let due = match repositories.blocking(Repositories::to_be_pruned).await {
        Ok(due) => due,
        Err(error) => {
            tracing::warn!(%error, "pools are not pruned");
            return Vec::new();
        }
    };
    for pool in &due {
        let pruned = prune::prune(pool, repositories, places, false).await;
        report(pool, "a pool is not pruned", pruned.map(drop));
        repositories.consolidator.consider(pool);
    }
    due
}

/// A pool may have gone with its last view meanwhile: that is no failure.
fn report(pool: &Path, what: &str, done: Result<(), Error>) {
    if let Err(error) = done
        && pool.exists()
    {
        tracing::warn!(pool = %pool.display(), %error, what);
    }
}

async fn consolidate(
    pool: &Path,
    repositories: &Arc<Repositories>,
    places: &Places,
) -> Result<(), Error> {
    let path = pool.to_owned();
    let look = move |_: &Repositories| Ok((Survey::of(&path)?, has_loose(&path)));
    let (survey, loose) = repositories.blocking(look.clone()).await?;
    if survey.many_packs() || loose {
        roll_up(pool, &survey, loose, repositories, places).await?;
    }
    let (survey, _) = repositories.blocking(look).await?;
    if !survey.many_objects() && !survey.outdated {
        return Ok(());
    }
    let path = pool.to_owned();
    let snapshot = repositories.blocking(move |r| r.snapshot(&path)).await?;
    // Nothing leads to the objects yet: what will, makes us look again.
    let (Some(snapshot), Some((_, largest))) = (snapshot, survey.all.last()) else {
        return Ok(());
    };
    let tips = format!("--refs-snapshot={}", snapshot.path().display());
    let preferred = format!("--preferred-pack={largest}.idx");
    let write = [INDEX, "write", "--no-progress", "--stdin-packs", &preferred];
    let bitmaps = [&write[..], &["--bitmap", &tips]].concat();
    let names = survey.all.iter().map(|(_, name)| format!("{name}.idx\n"));
    let names: String = names.collect();
    match run(pool, &bitmaps, &names, places).await {
        // What the pool borrows from elsewhere cannot be in them. Without: not tried again at once.
        Err(git::RunError::Failed(reason)) => {
            tracing::warn!(pool = %pool.display(), reason, "no bitmaps");
            run(pool, &write, &names, places).await?;
        }
        result => drop(result?),
    }
    Ok(())
}

/// Makes one pack of the small ones, and of what lies loose. Drops no object, reachable or not: all that
/// is in the packs that are named is in the new one, or in those that are named with `^`.
async fn roll_up(
    pool: &Path,
    survey: &Survey,
    loose: bool,
    repositories: &Arc<Repositories>,
    places: &Places,
) -> Result<(), Error> {
    let (small, large) = survey.all.split_at(survey.small());
    if small.is_empty() && !loose {
        return Ok(());
    }
    let small_names = small.iter().map(|(_, name)| format!("{name}.pack\n"));
    let large_names = large.iter().map(|(_, name)| format!("^{name}.pack\n"));
    let names: String = small_names.chain(large_names).collect();
    let pack = ["pack-objects", "--stdin-packs", "--unpacked", "--non-empty"];
    let args = [&pack[..], &["-q", "objects/pack/pack"]].concat();
    let made = run(pool, &args, &names, places).await?;
    let made = format!("pack-{}", made.trim());
    let (place, small) = (pool.to_owned(), small.to_vec());
    let note = move |this: &Repositories| {
        if !place.join(format!("objects/pack/{made}.idx")).is_file() {
            return Ok(());
        }
        this.identifiers.hold(&identifier_of(&place)?, || {
            let mut gone = rolled_up(&place)?;
            gone.extend(small.into_iter().map(|(_, name)| name));
            // What is as good as one of them may be that one.
            gone.remove(&made);
            Ok(note_rolled_up(&place, gone)?)
        })
    };
    repositories.blocking(note).await?;
    if loose {
        run(pool, &["prune-packed", "-q"], "", places).await?;
    }
    Ok(())
}

/// Runs one step; gives what it says. Nobody else takes git's locks in a pool: one that is there is a
/// dead process's.
pub(super) async fn run(
    pool: &Path,
    args: &[&str],
    input: &str,
    places: &Places,
) -> Result<String, git::RunError> {
    let lock = pool.join("objects/pack").join(format!("{INDEX}.lock"));
    match fs::remove_file(lock) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut command = git::command(pool);
    command.args(args);
    let (mut running, pipes) = git::spawn(command, places.take().await)?;
    running.be_nice();
    let feed = async {
        let mut stdin = pipes.stdin;
        // A git that stops listening says why.
        let _ = stdin.write_all(input.as_bytes()).await;
    };
    let mut answer = String::new();
    // The name of a pack, never more.
    let mut stdout = pipes.stdout.take(4096);
    let ((), read, said) = tokio::join!(
        feed,
        stdout.read_to_string(&mut answer),
        git::drain_stderr(pipes.stderr, |_| {}),
    );
    read?;
    match running.wait().await? {
        true => Ok(answer),
        false => Err(git::RunError::Failed(git::last_line(&said).to_owned())),
    }
}

impl Repositories {
    /// Removes these packs of a pool if they are still said to be rolled up: one that came again is not.
    fn remove_rolled_up(&self, pool: &Path, names: &HashSet<String>) -> Result<(), Error> {
        let identifier = identifier_of(pool)?;
        let hold = || remove_rolled_up(pool, Some(names));
        Ok(self.identifiers.hold(&identifier, hold)?)
    }

    /// Where the refs of a pool's views point, as a file for git; `None`: nowhere.
    fn snapshot(&self, pool: &Path) -> Result<Option<tempfile::NamedTempFile>, Error> {
        let identifier = identifier_of(pool)?;
        let mut tips = BTreeSet::new();
        for marker in pool::views(pool, usize::MAX) {
            let address = marker.address(&identifier);
            let see = |oid: Oid| {
                if tips.len() < MOST_TIPS {
                    tips.insert(oid);
                }
            };
            let seen = self.view(&address).and_then(|view| {
                let git = refs::open(&view)?;
                refs::tips(&git, see)
            });
            // Retired, or going.
            if let Err(error) = seen {
                tracing::debug!(repo = %address, %error, "no tips");
            }
        }
        let repo = refs::open(pool)?;
        let odb = repo.odb()?;
        let mut file = tempfile::NamedTempFile::new_in(self.layout.new_directory())?;
        let (mut written, mut out) = (false, io::BufWriter::new(file.as_file_mut()));
        for tip in tips {
            // What is staged in a view is not in the pool.
            if let Some(ObjectType::Commit | ObjectType::Tag) = kind_of(&odb, tip)? {
                writeln!(out, "{tip}")?;
                written = true;
            }
        }
        out.flush()?;
        drop(out);
        Ok(written.then_some(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(directory: &Path, args: &[&str], input: &str) -> String {
        use std::process::Stdio;
        let mut command = git::command(directory);
        command.args(args).env("GIT_AUTHOR_NAME", "a");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn sizes_double_when_the_small_are_one() {
        let small = |objects: &[u64]| {
            let all = objects.iter().map(|o| (*o, String::new())).collect();
            Survey {
                all,
                ..Survey::default()
            }
            .small()
        };
        for (objects, expected) in [
            (&[][..], 0),
            (&[5], 0),
            (&[1, 2, 4, 100], 0),
            (&[1, 1, 100], 2),
            (&[1, 1, 3, 100], 3),
            (&[1, 1, 4, 100], 2),
            (&[10, 11, 12, 50, 130], 5),
            (&[3; 30], 30),
        ] {
            assert_eq!(small(objects), expected, "{objects:?}");
        }
    }

    #[test]
    fn what_an_index_covers_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        super::super::fresh_repository(path).unwrap();
        let mut names = Vec::new();
        let pack = |text: &str| {
            let oid = git(path, &["hash-object", "-w", "--stdin"], text);
            let args = ["pack-objects", "-q", "objects/pack/pack"];
            format!("pack-{}", git(path, &args, &format!("{oid}\n")))
        };
        names.extend([pack("one"), pack("two")]);
        let survey = Survey::of(path).unwrap();
        assert_eq!((survey.all.len(), survey.packs, survey.objects), (2, 2, 2));
        assert!(has_loose(path));
        git(path, &[INDEX, "write", "--no-progress"], "");
        let packs = path.join("objects/pack");
        assert_eq!(covered(&packs), Some(names.iter().cloned().collect()));
        pack("three");
        let survey = Survey::of(path).unwrap();
        assert_eq!((survey.all.len(), survey.packs, survey.objects), (3, 1, 1));
        // One that cannot be read covers nothing.
        let index = packs.join(INDEX);
        let whole = fs::read(&index).unwrap();
        fs::remove_file(&index).unwrap();
        for length in [0, 11, 30, 70, 100] {
            fs::write(&index, &whole[..length]).unwrap();
            assert!(covered(&packs).is_none_or(|names| names.len() < 2));
        }
    }
}
