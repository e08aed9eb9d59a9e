//! The small files of a repository: what a backup takes of them, and what a restore takes from one.
//!
//! Files with names that are known, and nothing else: whatever another server or an operator put beside
//! them means nothing to us, and may be of any size and kind.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
};

use rustix::{fs::OFlags, io::Errno};

use super::{
    CONFIG, Error, every_ref, git,
    layout::{BROUGHT, FORMER_CONFIG, IDENTIFIER, INCARNATION, REPOSITORY, STAGED, VIEWS},
};

/// The largest of the small files.
const SMALL: u64 = 16 << 20;
/// Those in a repository itself.
const FILES: [&str; 10] = [
    "HEAD",
    "config",
    "description",
    "packed-refs",
    "shallow",
    BROUGHT,
    FORMER_CONFIG,
    IDENTIFIER,
    INCARNATION,
    REPOSITORY,
];
/// Directories whose files are kept, whatever their names.
const DIRECTORIES: [&str; 3] = [STAGED, VIEWS, "info"];
/// Which other stores it borrows from.
const ALTERNATES: &str = "objects/info/alternates";
/// What is there as a rule, and no part of a backup: nobody is told.
const USUAL: [&str; 9] = [
    "objects",
    "refs",
    "hooks",
    "logs",
    "branches",
    "FETCH_HEAD",
    "ORIG_HEAD",
    super::layout::QUARANTINE,
    super::layout::ROLLED_UP,
];

/// One of the small files, as a line of a backup.
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
    /// One with this content.
    pub fn new(name: String, content: Vec<u8>) -> Self {
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

/// Whether a file of a repository, by its path in it, is one of those.
pub fn is_known(file: &str) -> bool {
    let is_passing = |name: &str| {
        name.ends_with(".lock") || name.starts_with(".grasp-") || name.starts_with("tmp_")
    };
    match file.split_once('/') {
        None => FILES.contains(&file),
        Some((directory, name)) => {
            let is_in_one = DIRECTORIES.contains(&directory) && !name.contains('/');
            file == ALTERNATES || (is_in_one && !is_passing(name))
        }
    }
}

/// What lies at a path.
pub enum Lies {
    /// A file with this content.
    File(Vec<u8>),
    /// Nothing.
    Nothing,
    /// Something that is not read, and why.
    Other(&'static str),
}

/// Reads a file of at most so many bytes. Neither follows a link nor waits for anybody.
pub fn read(path: &Path, most: u64) -> io::Result<Lies> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path);
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lies::Nothing),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Ok(Lies::Other("a symbolic link"));
        }
        // What a socket says.
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
            return Ok(Lies::Other("no file"));
        }
        file => file?,
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(Lies::Other("no file"));
    }
    if meta.len() > most {
        return Ok(Lies::Other("too large"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(Lies::File(content))
}

/// The small files of a repository, by their path in it; its refs as one file of them. `None`: it has no
/// HEAD that can be read, and so is no repository.
pub fn files(root: &Path, repository: &Path) -> Result<Option<BTreeMap<String, Vec<u8>>>, Error> {
    let mut files = BTreeMap::new();
    let mut add = |name: String| -> io::Result<()> {
        match read(&repository.join(&name), SMALL)? {
            Lies::File(content) => drop(files.insert(name, content)),
            // Gone meanwhile, it was nothing that lasts.
            Lies::Nothing => {}
            Lies::Other(what) => left_out(&repository.join(name), what),
        }
        Ok(())
    };
    for entry in fs::read_dir(repository)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            left_out(&entry.path(), "its name is no text");
            continue;
        };
        if USUAL.contains(&name) || name == "packed-refs" {
            continue;
        }
        if DIRECTORIES.contains(&name) && entry.file_type()?.is_dir() {
            for inner in names(&entry.path())? {
                let inner = format!("{name}/{inner}");
                if is_known(&inner) {
                    add(inner)?;
                }
            }
        } else if is_known(name) {
            add(name.to_owned())?;
        } else if !name.starts_with(".grasp-") && !name.ends_with(".lock") {
            left_out(&entry.path(), "nothing that is known");
        }
    }
    if !files.contains_key("HEAD") {
        return Ok(None);
    }
    let refs = every_ref::read(repository)?;
    if !refs.is_empty() {
        files.insert("packed-refs".to_owned(), every_ref::packed(&refs).into());
    }
    let objects = repository.join("objects");
    match read(&repository.join(ALTERNATES), SMALL)? {
        Lies::File(text) => {
            let lines = relative_alternates(root, &objects, &String::from_utf8_lossy(&text));
            files.insert(ALTERNATES.to_owned(), lines.into());
        }
        Lies::Nothing => {}
        Lies::Other(what) => left_out(&repository.join(ALTERNATES), what),
    }
    Ok(Some(files))
}

/// What is in a directory that may go, as far as its names are text.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry?.file_name().into_string());
    }
    Ok(found)
}

fn left_out(path: &Path, what: &str) {
    tracing::warn!(path = %path.display(), what, "this is no part of the backup");
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

/// Of a repository's configuration, what is ours, and what says that it is of a kind that is not.
pub fn own_config(given: &[u8]) -> Result<String, Error> {
    const KINDS: &str = "^extensions\\.(objectformat|refstorage|partialclone)$";
    if given == CONFIG.as_bytes() {
        return Ok(CONFIG.to_owned());
    }
    // Nothing that it includes is read.
    let args = [
        "config",
        "--file",
        "-",
        "--no-includes",
        "--get-regexp",
        KINDS,
    ];
    let mut command = git::command(Path::new("/"));
    command
        .env_remove("GIT_DIR")
        .args(args.map(OsStr::new))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut running = command.spawn()?;
    if let Some(mut stdin) = running.stdin.take() {
        // What it does not want to hear is no configuration.
        let _ = stdin.write_all(given);
    }
    let said = running.wait_with_output()?.stdout;
    let said = String::from_utf8_lossy(&said);
    let mut extensions = String::new();
    for line in said.lines() {
        let Some((name, value)) = line.split_once(' ') else {
            continue;
        };
        let name = name.trim_start_matches("extensions.");
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !value.is_empty() && value.chars().all(is_plain) {
            let _ = writeln!(extensions, "\t{name} = {value}");
        }
    }
    Ok(match extensions.is_empty() {
        true => CONFIG.to_owned(),
        false => {
            let newer =
                CONFIG.replace("repositoryformatversion = 0", "repositoryformatversion = 1");
            format!("{newer}[extensions]\n{extensions}")
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn what_is_strange_is_left_out_and_the_rest_taken() {
        let directory = tempfile::tempdir().unwrap();
        let repository = directory.path().join("x.git");
        for part in ["objects/info", "refs/heads", "info", "lfs", "staged"] {
            fs::create_dir_all(repository.join(part)).unwrap();
        }
        for file in [
            "HEAD",
            "config",
            "info/exclude",
            "lfs/HEAD",
            "stray",
            "staged/a.lock",
        ] {
            fs::write(repository.join(file), "x").unwrap();
        }
        let oid = "1".repeat(40);
        fs::write(repository.join("refs/heads/main"), &oid).unwrap();
        let large = fs::File::create(repository.join("description")).unwrap();
        large.set_len(SMALL + 1).unwrap();
        for fifo in [
            "shallow",
            "stray-fifo",
            "packed-refs",
            "refs/heads/fifo",
            "info/fifo",
            ALTERNATES,
        ] {
            let (mode, here) = (Mode::from_raw_mode(0o600), rustix::fs::CWD);
            mknodat(here, repository.join(fifo), FileType::Fifo, mode, 0).unwrap();
        }
        symlink("/etc/passwd", repository.join("info/linked")).unwrap();
        let found = files(directory.path(), &repository).unwrap().unwrap();
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["HEAD", "config", "info/exclude", "packed-refs"]);
        assert!(String::from_utf8_lossy(&found["packed-refs"]).contains("refs/heads/main"));
        fs::remove_file(repository.join("HEAD")).unwrap();
        assert!(files(directory.path(), &repository).unwrap().is_none());
    }

    #[test]
    fn of_a_configuration_only_its_kind_is_kept() {
        assert_eq!(own_config(CONFIG.as_bytes()).unwrap(), CONFIG);
        let evil = "[include]\n\tpath = /etc/evil\n[core]\n\tworktree = /\n\thooksPath = /tmp\n";
        assert_eq!(own_config(evil.as_bytes()).unwrap(), CONFIG);
        assert_eq!(own_config(b"\xff[[no configuration").unwrap(), CONFIG);
        let other = format!("{evil}[extensions]\n\tobjectFormat = sha256\n\tnoop = 1\n");
        let kept = own_config(other.as_bytes()).unwrap();
        assert!(
            kept.ends_with("[extensions]\n\tobjectformat = sha256\n"),
            "{kept}"
        );
        assert!(kept.contains("repositoryformatversion = 1") && !kept.contains("worktree"));
    }
}
