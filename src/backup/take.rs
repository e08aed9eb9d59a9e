//! `graspd backup`: reads what the relay gives, and writes what is new.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ArgMatches;
use grasp_proto::{
    contract::relay::{BackupMoment, BackupRequest, BackupResponse, backup_response::Part},
    process::settings::Settings,
};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{
    directory,
    manifest::{
        EVENTS, Manifest, OBJECT_DIRECTORY, OBJECTS, RECORDS, REPOSITORIES, Summed, each, object,
        private, read_sums, sum_line, sum_of,
    },
};
use crate::{service::Service, text::bytes};

/// Says that a directory is for backups; locked while one is written.
const MARK: &str = ".graspd-backup";
/// Files that are asked for at once.
const AT_ONCE: usize = 16;
/// How long the relay may be silent. It speaks while it prepares the moment.
const SILENT: Duration = Duration::from_secs(180);
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Behind the name of a file that is being written.
const INCOMING: &str = ".incoming";

/// Takes a backup.
pub async fn run(given: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let directory = directory(given)?;
    let service = Service::find(settings)?;
    let _lock = claim(directory)?;
    let before = Manifest::read(directory)?;
    let known = match &before {
        Some(before) => read_sums(&before.moment(directory))?,
        None => BTreeMap::new(),
    };
    // Before the service is asked, which does not wait for as long as this may take.
    let (place, all) = (directory.clone(), known.len());
    let known = tokio::task::spawn_blocking(move || sound(&place, known)).await??;
    let rotten = all - known.len();
    let (wants, receiver) = mpsc::channel(AT_ONCE);
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.set_timeout(PATIENCE);
    let parts = service.admin().backup(request).await;
    let parts = parts
        .map_err(|status| service.failed(&status))?
        .into_inner();
    let mut source = Source {
        service: &service,
        parts,
    };

    let moment = source.moment().await?;
    let mut manifest = Manifest::new(moment.version, moment.domain, moment.millis);
    (manifest.repositories, manifest.bare_repositories) =
        (moment.listed_repositories, Some(moment.repositories));
    let place = manifest.moment(directory);
    if before.is_some_and(|before| before.millis == manifest.millis) {
        bail!("the clock of the relay stands still: this moment is there already");
    }
    match fs::remove_dir_all(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => DirBuilder::new().mode(0o700).create(&place)?,
    }
    for name in [EVENTS, RECORDS, REPOSITORIES] {
        let mut file = Summed::create(&place.join(name))?;
        source.copy(&mut file).await?;
        match name {
            EVENTS => manifest.events = file.lines,
            RECORDS => manifest.records = file.lines,
            _ => {}
        }
        manifest.sha256.insert(name.to_owned(), file.end()?);
    }
    let files = source.files().await?;
    manifest.objects = files.len() as u64;
    manifest.object_bytes = files.values().sum();
    let (sums, new) = fetch(directory, &mut source, &wants, &files, &known).await?;
    drop(wants);
    let mut list = Summed::create(&place.join(OBJECTS))?;
    for (name, sum) in &sums {
        list.write(sum_line(name, sum).as_bytes())?;
    }
    manifest.sha256.insert(OBJECTS.to_owned(), list.end()?);

    // All of it is on disk before the manifest says so.
    rustix::fs::syncfs(File::open(directory)?)?;
    manifest.write(directory)?;
    let kept: BTreeSet<PathBuf> = sums
        .keys()
        .map(|name| object(directory, name))
        .collect::<Result<_, _>>()?;
    prune(directory, &manifest, &kept)?;
    say(given, &manifest, moment.paused_millis, new, rotten)
}

fn say(
    given: &ArgMatches,
    manifest: &Manifest,
    paused: u64,
    (new, new_bytes): (u64, u64),
    rotten: usize,
) -> anyhow::Result<()> {
    let text = match given.get_flag("json") {
        true => {
            let done = json!({
                "manifest": manifest,
                "new_objects": new,
                "new_object_bytes": new_bytes,
                "rotten_objects": rotten,
                "paused_millis": paused,
            });
            format!("{done:#}\n")
        }
        false => format!(
            "{}: {} events, {} records, {} repositories; {} files of objects ({}), {new} of them new ({}){}; \
             decisions stood still for {paused} ms\n",
            manifest.domain,
            manifest.events,
            manifest.records,
            manifest.repositories,
            manifest.objects,
            bytes(manifest.object_bytes),
            bytes(new_bytes),
            match rotten {
                0 => String::new(),
                _ => format!(
                    "; {rotten} from before were missing or not what they had been: look at the disk of the backup"
                ),
            },
        ),
    };
    crate::print(text.as_bytes())
}

/// Makes the directory, or finds it to be one for backups; nobody else writes into it meanwhile.
fn claim(directory: &Path) -> anyhow::Result<File> {
    let what = || directory.display().to_string();
    // Events that are withheld, and whatever nobody has signed for: not for everybody to read.
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(directory).with_context(what)?;
    let mark = directory.join(MARK);
    if !mark.exists() {
        if fs::read_dir(directory).with_context(what)?.next().is_some() {
            bail!("{} is not empty, and holds no backup", directory.display());
        }
        private(&mark)?;
    }
    let lock = File::open(&mark)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("somebody else writes a backup into {}", directory.display())
        }
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

/// What the relay gives.
struct Source<'a> {
    service: &'a Service,
    parts: Streaming<BackupResponse>,
}

impl Source<'_> {
    async fn part(&mut self) -> anyhow::Result<Part> {
        let part = timeout(SILENT, self.parts.message()).await;
        let part = part.context("the relay says nothing any more")?;
        let part = part.map_err(|status| self.service.failed(&status))?;
        part.and_then(|part| part.part)
            .context("the relay ended in the middle")
    }

    async fn moment(&mut self) -> anyhow::Result<BackupMoment> {
        loop {
            match self.part().await? {
                Part::Beginning(_) => {}
                Part::Moment(moment) => return Ok(moment),
                _ => bail!("the relay does not begin with the moment"),
            }
        }
    }

    /// One part, whole, into a file.
    async fn copy(&mut self, file: &mut Summed) -> anyhow::Result<()> {
        loop {
            match self.part().await? {
                Part::Events(bytes)
                | Part::Records(bytes)
                | Part::Repositories(bytes)
                | Part::Content(bytes) => file.write(&bytes)?,
                Part::End(_) => return Ok(()),
                _ => bail!("the relay gives something else than it was asked"),
            }
        }
    }

    async fn files(&mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut files = BTreeMap::new();
        loop {
            match self.part().await? {
                Part::Files(batch) => {
                    files.extend(batch.files.into_iter().map(|file| (file.name, file.size)));
                }
                Part::End(_) => return Ok(files),
                _ => bail!("the relay gives something else than it was asked"),
            }
        }
    }
}

/// Of the files of a backup before, those that are there and are what they were. Blocks.
fn sound(
    directory: &Path,
    known: BTreeMap<String, String>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let all: Vec<(String, String)> = known.into_iter().collect();
    let found = Mutex::new(BTreeMap::new());
    each(&all, |(name, sum)| {
        // Whatever keeps it from being read: it is fetched again.
        if sum_of(&object(directory, name)?).is_ok_and(|is| is == *sum) {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.insert(name.clone(), sum.clone());
        }
        Ok(())
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Fetches the files that are not there; gives the sums of all, and how many were new.
async fn fetch(
    directory: &Path,
    source: &mut Source<'_>,
    wants: &mpsc::Sender<BackupRequest>,
    files: &BTreeMap<String, u64>,
    known: &BTreeMap<String, String>,
) -> anyhow::Result<(BTreeMap<String, String>, (u64, u64))> {
    let mut sums = BTreeMap::new();
    let mut missing = Vec::new();
    for (name, size) in files {
        let there = fs::metadata(object(directory, name)?);
        let is_there = there.is_ok_and(|file| file.len() == *size);
        match known.get(name).filter(|_| is_there) {
            Some(sum) => drop(sums.insert(name.clone(), sum.clone())),
            None => missing.push((name, *size)),
        }
    }
    let (mut left, mut asked) = (missing.iter(), VecDeque::new());
    let mut new = (0, 0);
    loop {
        while asked.len() < AT_ONCE
            && let Some((name, size)) = left.next()
        {
            let read = (*name).clone();
            let wanted = wants.send(BackupRequest { read }).await;
            wanted.context("the relay ended in the middle")?;
            asked.push_back((*name, *size));
        }
        let Some((name, size)) = asked.pop_front() else {
            return Ok((sums, new));
        };
        let path = object(directory, name)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut incoming = path.clone().into_os_string();
        incoming.push(INCOMING);
        let mut file = Summed::create(Path::new(&incoming))?;
        source.copy(&mut file).await?;
        if file.bytes != size {
            bail!("{name} came with {} bytes instead of {size}", file.bytes);
        }
        sums.insert(name.clone(), file.end()?);
        fs::rename(&incoming, &path)?;
        new = (new.0 + 1, new.1 + size);
    }
}

/// What no backup here needs any more.
fn prune(directory: &Path, manifest: &Manifest, kept: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    let moment = manifest.moment(directory);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_moment = name
            .to_str()
            .is_some_and(|name| name.parse::<u64>().is_ok());
        if is_moment && entry.path() != moment {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let objects = directory.join(OBJECT_DIRECTORY);
    if objects.is_dir() {
        prune_objects(&objects, kept)?;
    }
    Ok(())
}

fn prune_objects(directory: &Path, kept: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            prune_objects(&path, kept)?;
            // Fails, as it must, where something is left.
            let _ = fs::remove_dir(&path);
        } else if !kept.contains(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_else_is_refused_and_two_exclude_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let new = directory.path().join("a/b");
        let lock = claim(&new).unwrap();
        assert!(claim(&new).is_err());
        drop(lock);
        claim(&new).unwrap();
        fs::write(directory.path().join("x"), "").unwrap();
        let refused = claim(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");
    }

    #[test]
    fn what_has_rotted_is_not_taken_for_what_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join(OBJECT_DIRECTORY)).unwrap();
        let mut known = BTreeMap::new();
        for name in ["good", "rotten", "gone"] {
            let file = object(path, name).unwrap();
            fs::write(&file, name).unwrap();
            known.insert(name.to_owned(), sum_of(&file).unwrap());
        }
        fs::write(object(path, "rotten").unwrap(), "rottem").unwrap();
        fs::remove_file(object(path, "gone").unwrap()).unwrap();
        let found = sound(path, known).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["good"]);
    }

    #[test]
    fn only_what_nobody_needs_is_pruned() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let manifest = Manifest::new(String::new(), String::new(), 5);
        for name in ["4", "5", "objects/a", "objects/b", "other"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        for name in [
            "objects/a/kept",
            "objects/a/gone",
            "objects/b/gone",
            "other/file",
        ] {
            fs::write(path.join(name), "").unwrap();
        }
        let kept = BTreeSet::from([object(path, "a/kept").unwrap()]);
        prune(path, &manifest, &kept).unwrap();
        for (name, is_there) in [
            ("4", false),
            ("5", true),
            ("objects/a/kept", true),
            ("objects/a/gone", false),
            ("objects/b", false),
            ("other/file", true),
        ] {
            assert_eq!(path.join(name).exists(), is_there, "{name}");
        }
    }
}
