//! Everything on disk at one moment, for a backup, while uploads and the consolidation of packs go on.
//!
//! Two steps. [`Repositories::begin_snapshot`] links what objects there are into a directory of its own,
//! however long that takes. [`Repositories::take_snapshot`] is the moment: refs and the other small files
//! are read, and what objects came since are linked. It is short, and whoever asks for it sees to it that
//! no ref moves and nothing is deleted meanwhile. Objects need no more than that: packs are never
//! changed, and what the consolidation takes away it has put somewhere else before, so a look that
//! finds every file it listed has found every object.
//!
//! A snapshot knows of no views or pools: it has each bare repository below the data directory, as it
//! lies there, but for what is made anew (indices over packs), means nothing elsewhere (hooks, locks,
//! quarantines), or is not known (see [`small`]). It lies where what is left over goes at the next start.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufWriter, Write},
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    Error, Repositories, Scratch, pool,
    small::{self, Small},
};

/// How deep repositories lie below the data directory.
const DEEPEST: usize = 5;
/// Looks at a directory of packs from which files go while it is looked at.
const LOOKS: usize = 10;
/// How much later than its last change a directory is looked at for that change to be known for sure.
const SETTLED: Duration = Duration::from_secs(2);

/// What was on disk at one moment; gone when dropped.
#[derive(Debug)]
pub struct Snapshot {
    scratch: Scratch,
    /// When each directory of loose objects had changed last when it was linked. Bounded by what lies
    /// loose, which is what another server left.
    settled: HashMap<PathBuf, SystemTime>,
    /// How many repositories there are, pools among them.
    pub repositories: usize,
    /// How many of them are described to an operator.
    pub described: usize,
}

impl Snapshot {
    fn objects(&self) -> PathBuf {
        self.scratch.0.join("objects")
    }

    /// The small files, a line of JSON each.
    pub fn small(&self) -> PathBuf {
        self.scratch.0.join("small")
    }

    /// Where the content of an object file lies, by the name that [`Snapshot::files`] gave it.
    pub fn file(&self, name: &str) -> Result<PathBuf, Error> {
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        match !name.is_empty() && Path::new(name).components().all(is_plain) {
            true => Ok(self.objects().join(name)),
            false => Err(Error::Invalid(format!("{name:?} names no file"))),
        }
    }

    /// The directories that have object files: for [`Snapshot::files`].
    pub fn directories(&self) -> Result<Vec<PathBuf>, Error> {
        let mut found = Vec::new();
        let mut left = vec![self.objects()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    left.push(entry.path());
                }
            }
            found.push(directory);
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The object files in one of the directories, with their sizes, ordered.
    pub fn files(&self, directory: &Path) -> Result<Vec<(String, u64)>, Error> {
        let root = self.objects();
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_file()
                && let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str)
            {
                files.push((name.to_owned(), entry.metadata()?.len()));
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Links the object files of one repository that are not linked yet.
    fn link(&mut self, repository: &Path, name: &Path) -> Result<(), Error> {
        let objects = repository.join("objects");
        let to = self.objects().join(name).join("objects");
        fs::create_dir_all(to.join("pack"))?;
        // Loose ones first: one that is packed meanwhile is in a pack that is listed then.
        for entry in fs::read_dir(&objects)? {
            let entry = entry?;
            let shelf = entry.file_name();
            if shelf.len() == 2 && entry.file_type()?.is_dir() {
                self.link_loose(&entry.path(), &to.join(shelf))?;
            }
        }
        let packs = objects.join("pack");
        let mut whole = !packs.is_dir();
        for _ in 0..LOOKS {
            if whole {
                break;
            }
            // What was rolled up goes between two looks: the next one finds where its objects are.
            whole = pool::packs(&packs)?
                .iter()
                .filter(|pack| !is_strange(&packs.join(format!("{pack}.pack"))))
                .map(|pack| pool::link_pack_soon(&packs, &to.join("pack"), pack))
                .try_fold(true, |whole, linked| match linked {
                    Ok(()) => Ok(whole),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    Err(error) => Err(error),
                })?;
        }
        if !whole {
            let reason = format!("the packs of {} do not stand still", name.display());
            return Err(Error::Aborted(reason));
        }
        Ok(())
    }

    fn link_loose(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let now = SystemTime::now();
        let changed = fs::metadata(from)?.modified()?;
        if self.settled.get(from) == Some(&changed) {
            return Ok(());
        }
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let file = entry.file_name();
            let kind = entry.file_type()?;
            if file.len() == 38 && (kind.is_file() || kind.is_symlink()) {
                match pool::link(&entry.path(), &to.join(&file)) {
                    // Packed meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    linked => linked?,
                }
            }
        }
        if now.duration_since(changed).unwrap_or_default() > SETTLED {
            self.settled.insert(from.to_owned(), changed);
        }
        Ok(())
    }
}

/// Whether there is something that is no file.
fn is_strange(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| !meta.is_file())
}

/// Shows `see` every bare repository below `root`, with its path from there.
fn each_repository(
    root: &Path,
    see: &mut impl FnMut(&Path, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    fn look(
        root: &Path,
        directory: &Path,
        deep: usize,
        see: &mut impl FnMut(&Path, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // What cannot be read would be missing without a word.
            Err(error) => {
                let name = directory.strip_prefix(root).unwrap_or(directory).display();
                let reason = format!("{name}, in the git data directory, cannot be read: {error}");
                return Err(Error::Precondition(reason));
            }
            Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
        };
        entries.sort_unstable_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if !path.is_dir() {
                continue;
            }
            let name = path.strip_prefix(root).unwrap_or(&path);
            if name.to_str().is_none() {
                tracing::warn!(path = %path.display(), "no part of a snapshot: its name is no text");
            } else if path.join("HEAD").is_file() && path.join("objects").is_dir() {
                match see(&path, name) {
                    // It went while it was looked at.
                    Err(_) if !path.join("HEAD").is_file() => {}
                    seen => seen?,
                }
            } else if deep < DEEPEST {
                look(root, &path, deep + 1, see)?;
            }
        }
        Ok(())
    }
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name() != ".new" && entry.path().is_dir() {
            let path = entry.path();
            look(root, &path, 1, see)?;
        }
    }
    Ok(())
}

impl Repositories {
    /// Links what objects there are now: the first step of a snapshot.
    pub fn begin_snapshot(&self) -> Result<Snapshot, Error> {
        let mut snapshot = Snapshot {
            scratch: Scratch(self.layout.scratch()),
            settled: HashMap::new(),
            repositories: 0,
            described: 0,
        };
        fs::create_dir_all(snapshot.objects())?;
        each_repository(self.layout.root(), &mut |path, name| {
            snapshot.link(path, name)
        })?;
        Ok(snapshot)
    }

    /// The moment of a snapshot: refs, and all objects they need.
    pub fn take_snapshot(&self, snapshot: &mut Snapshot) -> Result<(), Error> {
        let root = self.layout.root();
        let mut lines = BufWriter::new(fs::File::create(snapshot.small())?);
        let (mut repositories, mut described) = (0, 0);
        each_repository(root, &mut |path, name| {
            let Some(files) = small::files(root, path)? else {
                tracing::warn!(path = %path.display(), "this is no part of the backup: its HEAD is no file");
                return Ok(());
            };
            for (file, content) in files {
                let small = Small::new(format!("{}/{file}", name.display()), content);
                serde_json::to_writer(&mut lines, &small).map_err(io::Error::from)?;
                lines.write_all(b"\n")?;
            }
            repositories += 1;
            described += usize::from(self.is_described(name));
            snapshot.link(path, name)
        })?;
        lines.flush()?;
        snapshot.repositories = repositories;
        snapshot.described = described;
        Ok(())
    }
}
