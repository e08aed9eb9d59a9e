//! What a backup says of itself, and sums.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
    thread,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Its name; a directory without it holds no backup.
const NAME: &str = "manifest.json";
/// The form of backups that this version writes. It reads the one before, too, whose `repositories` counts
/// pools.
const FORMAT: u32 = 2;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The form of the backup.
    pub format: u32,
    /// The version of the relay that gave it.
    pub version: String,
    /// The public name of the service.
    pub domain: String,
    /// The moment, in milliseconds since 1970: also the name of its own directory.
    pub millis: u64,
    /// Repositories, as `graspd repos` lists those on disk; before `bare_repositories` was there, all of
    /// those.
    pub repositories: u64,
    /// Bare repositories of all kinds, pools among them; not in a backup of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bare_repositories: Option<u64>,
    /// Events.
    pub events: u64,
    /// Records of the journal.
    pub records: u64,
    /// Files of objects, and what they take.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// The sums of the files of the moment, by their names in the directory.
    pub sha256: BTreeMap<String, String>,
}

/// Files of a moment.
pub const EVENTS: &str = "events.jsonl";
pub const RECORDS: &str = "records.jsonl";
pub const REPOSITORIES: &str = "repositories.jsonl";
pub const OBJECTS: &str = "objects.sha256";
/// Where the files of objects lie.
pub const OBJECT_DIRECTORY: &str = "objects";

impl Manifest {
    /// One of this form.
    pub fn new(version: String, domain: String, millis: u64) -> Self {
        Self {
            format: FORMAT,
            version,
            domain,
            millis,
            repositories: 0,
            bare_repositories: None,
            events: 0,
            records: 0,
            objects: 0,
            object_bytes: 0,
            sha256: BTreeMap::new(),
        }
    }

    /// That of the backup in a directory; `None`: there is none.
    pub fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let text = match fs::read(directory.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let manifest: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{NAME} in {} is unreadable", directory.display()))?;
        if !(1..=FORMAT).contains(&manifest.format) {
            bail!(
                "the backup in {} has form {}; this version knows 1 to {FORMAT}",
                directory.display(),
                manifest.format
            );
        }
        Ok(Some(manifest))
    }

    /// Makes it that of the directory, in one step, durably.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let new = directory.join(format!("{NAME}.new"));
        let mut file = private(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, directory.join(NAME))?;
        File::open(directory)?.sync_all()?;
        Ok(())
    }

    /// How many bare repositories a backup must have.
    pub fn bare_repositories(&self) -> u64 {
        self.bare_repositories.unwrap_or(self.repositories)
    }

    /// The directory of its moment.
    pub fn moment(&self, directory: &Path) -> PathBuf {
        directory.join(self.millis.to_string())
    }
}

/// The sums of object files, by name, as a backup lists them.
pub fn read_sums(moment: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(moment.join(OBJECTS))?;
    let line = |line: &str| {
        let (sum, path) = line.split_once("  ").context("a line without a sum")?;
        let name = path
            .strip_prefix("../")
            .and_then(|path| path.strip_prefix(OBJECT_DIRECTORY))
            .and_then(|path| path.strip_prefix('/'))
            .context("a line without a name")?;
        Ok((name.to_owned(), sum.to_owned()))
    };
    text.lines().map(line).collect()
}

/// A line of the list of sums: to be checked from the directory of the moment.
pub fn sum_line(name: &str, sum: &str) -> String {
    format!("{sum}  ../{OBJECT_DIRECTORY}/{name}\n")
}

/// Where an object file of a backup lies.
pub fn object(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if name.is_empty() || name.contains('\n') || !Path::new(name).components().all(is_plain) {
        bail!("{name:?} is no name of a file");
    }
    Ok(directory.join(OBJECT_DIRECTORY).join(name))
}

/// A new file that nobody else may read, whatever the directory allows: a backup has what is withheld, and what
/// nobody has signed for.
pub fn private(path: &Path) -> io::Result<File> {
    // One that lay there keeps the rights it had.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Does work on each, as many at once as there are processors.
pub fn each<T: Sync>(
    all: &[T],
    work: impl Fn(&T) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = all.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = all
            .chunks(share)
            .map(|share| scope.spawn(move || share.iter().try_for_each(work)))
            .collect();
        let mut ended = running.into_iter().map(|thread| thread.join());
        ended.try_for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// A file that is being written, and its sum.
pub struct Summed {
    file: io::BufWriter<File>,
    sum: Sha256,
    /// Bytes so far.
    pub bytes: u64,
    /// Lines so far.
    pub lines: u64,
}

impl Summed {
    /// Writes a file anew.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = private(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            file: io::BufWriter::new(file),
            sum: Sha256::new(),
            bytes: 0,
            lines: 0,
        })
    }

    /// The next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.lines += bytes.split(|byte| *byte == b'\n').skip(1).count() as u64;
        self.file.write_all(bytes)
    }

    /// That was all: its sum.
    pub fn end(mut self) -> io::Result<String> {
        self.file.flush()?;
        Ok(hex(&self.sum.finalize()))
    }
}

/// The sum of a file.
pub fn sum_of(path: &Path) -> anyhow::Result<String> {
    let what = || path.display().to_string();
    let mut file = File::open(path).with_context(what)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).with_context(what)?;
        if read == 0 {
            return Ok(hex(&sum.finalize()));
        }
        sum.update(&buffer[..read]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_reads_what_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let (path, manifest) = (directory.path(), Manifest::new("1".into(), "x".into(), 7));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path.join(EVENTS), "from before").unwrap();
        fs::set_permissions(path.join(EVENTS), fs::Permissions::from_mode(0o644)).unwrap();
        manifest.write(path).unwrap();
        Summed::create(&path.join(EVENTS)).unwrap().end().unwrap();
        for name in [NAME, EVENTS] {
            let mode = fs::metadata(path.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn the_first_failure_of_many_is_told() {
        let all: Vec<u32> = (0..100).collect();
        each(&all, |_| Ok(())).unwrap();
        let failed = each(&all, |n| match n {
            70 => bail!("seventy"),
            _ => Ok(()),
        });
        assert_eq!(failed.unwrap_err().to_string(), "seventy");
    }

    #[test]
    fn a_manifest_and_its_sums_are_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(Manifest::read(path).unwrap(), None);
        let mut manifest = Manifest::new("1".into(), "a.example".into(), 7);
        manifest.write(path).unwrap();
        assert_eq!(Manifest::read(path).unwrap().unwrap(), manifest);
        manifest.repositories = 3;
        assert_eq!(manifest.bare_repositories(), 3, "as the version before");
        let moment = manifest.moment(path);
        fs::create_dir(&moment).unwrap();
        let mut list = Summed::create(&moment.join(OBJECTS)).unwrap();
        list.write(sum_line("a  b/c", "00").as_bytes()).unwrap();
        assert_eq!(list.lines, 1);
        let sum = list.end().unwrap();
        assert_eq!(sum_of(&moment.join(OBJECTS)).unwrap(), sum);
        let sums = read_sums(&moment).unwrap();
        assert_eq!(
            sums,
            BTreeMap::from([("a  b/c".to_owned(), "00".to_owned())])
        );
        manifest.format = FORMAT + 1;
        manifest.write(path).unwrap();
        assert!(Manifest::read(path).is_err());
        for bad in ["", "../x", "/x", "a/../../x", "a\nb"] {
            assert!(object(path, bad).is_err(), "{bad}");
        }
    }
}
