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
//! lies there, but for what is made anew (indices over packs) or means nothing elsewhere (hooks, locks,
//! quarantines). It lies where what is left over goes at the next start.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, BufWriter, Write},
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    Error, Repositories, Scratch, every_ref,
    layout::{QUARANTINE, ROLLED_UP},
    pool,
};

/// How deep repositories lie below the data directory.
const DEEPEST: usize = 5;
/// The largest of the small files.
const SMALL: u64 = 16 << 20;
/// Looks at a directory of packs from which files go while it is looked at.
const LOOKS: usize = 10;
/// How much later than its last change a directory is looked at for that change to be known for sure.
const SETTLED: Duration = Duration::from_secs(2);

/// One of the small files, as a line of [`Snapshot::small`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Small {
    /// Its path below the data directory.
    pub name: String,
    /// What it has, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What it has, where that is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
}

impl Small {
    fn new(name: String, content: Vec<u8>) -> Self {
        let (text, bytes) = match String::from_utf8(content) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(error.into_bytes())),
        };
        Self { name, text, bytes }
    }

    /// What the file has.
    pub fn content(&self) -> &[u8] {
        match (&self.text, &self.bytes) {
            (Some(text), _) => text.as_bytes(),
            (None, bytes) => bytes.as_deref().unwrap_or_default(),
        }
    }
}

/// What was on disk at one moment; gone when dropped.
#[derive(Debug)]
pub struct Snapshot {
    scratch: Scratch,
    /// When each directory of loose objects had changed last when it was linked. Bounded by what lies
    /// loose, which is what another server left.
    settled: HashMap<PathBuf, SystemTime>,
    /// How many repositories there are, pools among them.
    pub repositories: usize,
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
            if file.len() == 38 {
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
            entries => entries?.collect::<Result<Vec<_>, _>>()?,
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

/// The small files of a repository, by their path in it; its refs as one file of them.
fn small_files(root: &Path, repository: &Path) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    const LEFT_OUT: [&str; 8] = [
        "objects",
        "refs",
        "packed-refs",
        "hooks",
        "logs",
        "branches",
        QUARANTINE,
        ROLLED_UP,
    ];
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(repository)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !LEFT_OUT.contains(name)) else {
            continue;
        };
        match entry.path().is_dir() {
            false => add_small(&mut files, &entry.path(), name.to_owned())?,
            true => {
                for inner in fs::read_dir(entry.path())? {
                    let inner = inner?;
                    if let Some(file) = inner.file_name().to_str()
                        && inner.file_type()?.is_file()
                    {
                        add_small(&mut files, &inner.path(), format!("{name}/{file}"))?;
                    }
                }
            }
        }
    }
    let refs = every_ref::read(repository)?;
    if !refs.is_empty() {
        files.insert("packed-refs".to_owned(), every_ref::packed(&refs).into());
    }
    let objects = repository.join("objects");
    match fs::read_to_string(objects.join("info/alternates")) {
        Ok(text) => {
            let lines = relative_alternates(root, &objects, &text);
            files.insert("objects/info/alternates".to_owned(), lines.into());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(files)
}

fn add_small(
    files: &mut BTreeMap<String, Vec<u8>>,
    path: &Path,
    name: String,
) -> Result<(), Error> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    if file.ends_with(".lock") || file.starts_with(".grasp-") || file.starts_with("tmp_") {
        return Ok(());
    }
    match fs::metadata(path) {
        Ok(meta) if meta.len() > SMALL => Err(Error::Precondition(format!(
            "{} is larger than whatever belongs into a repository beside its objects",
            path.display()
        ))),
        // Gone meanwhile, it was nothing that lasts.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => {
            match fs::read(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                content => drop(files.insert(name, content?)),
            }
            Ok(())
        }
    }
}

/// The lines of an alternates file, so that they lead the same way wherever the data directory lies.
fn relative_alternates(root: &Path, objects: &Path, text: &str) -> String {
    let line = |line: &str| {
        let Ok(below) = Path::new(line).strip_prefix(root) else {
            if line.starts_with('/') {
                tracing::warn!(repository = %objects.display(), line,
                    "leans on objects outside the data directory, which are no part of a snapshot");
            }
            return format!("{line}\n");
        };
        let deep = objects
            .strip_prefix(root)
            .map_or(0, |p| p.components().count());
        format!("{}{}\n", "../".repeat(deep), below.display())
    };
    text.lines().map(line).collect()
}

impl Repositories {
    /// Links what objects there are now: the first step of a snapshot.
    pub fn begin_snapshot(&self) -> Result<Snapshot, Error> {
        let mut snapshot = Snapshot {
            scratch: Scratch(self.layout.scratch()),
            settled: HashMap::new(),
            repositories: 0,
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
        let mut repositories = 0;
        each_repository(root, &mut |path, name| {
            for (file, content) in small_files(root, path)? {
                let small = Small::new(format!("{}/{file}", name.display()), content);
                serde_json::to_writer(&mut lines, &small).map_err(io::Error::from)?;
                lines.write_all(b"\n")?;
            }
            repositories += 1;
            snapshot.link(path, name)
        })?;
        lines.flush()?;
        snapshot.repositories = repositories;
        Ok(())
    }
}
