//! Refs and HEAD of one view: read, and moved in transactions.
//!
//! Only gitd writes refs, and only under the view's lock, so a value that was just read still
//! holds when it is replaced, and a `.lock` file found there belongs to nobody alive: the git
//! processes that take locks die with us. All functions block.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::Path,
};

use git2::{ErrorCode, ObjectType, Reference, Repository, Signature};
use grasp_proto::words::{Oid, RefName};

use super::{Error, git};

/// One ref as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The full name.
    pub name: String,
    /// Where it points.
    pub oid: Oid,
    /// If that is a tag object: what the tag is of.
    pub peeled: Option<Oid>,
}

/// One ref to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The full name.
    pub name: String,
    /// What it was when the lock was taken.
    pub old: Option<Oid>,
    /// What it shall be.
    pub new: Option<Oid>,
}

/// The parts of the namespace that anybody is shown.
pub const SHOWN: [&str; 3] = ["refs/heads/", "refs/tags/", "refs/nostr/"];

/// From this many changes on, git itself is quicker than a lock file held open for each.
const MANY: usize = 64;

/// From this many deletions on as well: each one rewrites `packed-refs`.
const MANY_DELETIONS: usize = 4;

/// So many loose refs are packed together.
const MANY_LOOSE: usize = 256;

/// libgit2's word for an object id.
pub fn to_git2(oid: Oid) -> git2::Oid {
    git2::Oid::from_bytes(oid.as_bytes()).expect("20 bytes are an object id")
}

/// Our word for libgit2's.
pub fn from_git2(oid: git2::Oid) -> Option<Oid> {
    Oid::from_slice(oid.as_bytes()).ok()
}

/// Opens a repository, whoever owns its files, without looking around for another.
pub fn open(path: &Path) -> Result<Repository, Error> {
    Repository::open_bare(path).map_err(|error| match error.code() {
        ErrorCode::NotFound => Error::NotFound,
        _ => match check_format(path) {
            Ok(()) => error.into(),
            Err(foreign) => foreign,
        },
    })
}

/// Refuses a repository of another kind than ours.
fn check_format(path: &Path) -> Result<(), Error> {
    const EXTENSIONS: [(&str, &str); 2] = [
        ("extensions.objectformat", "sha1"),
        ("extensions.refstorage", "files"),
    ];
    let config = git2::Config::open(&path.join("config"))?;
    for (name, ours) in EXTENSIONS {
        if let Ok(value) = config.get_string(name)
            && !value.eq_ignore_ascii_case(ours)
        {
            return Err(Error::Precondition(format!(
                "this repository has {name} = {value}; only {ours} is known here"
            )));
        }
    }
    Ok(())
}

/// Refuses what must not be linked into a pool: objects of another kind, or with others missing.
pub fn check_adoptable(path: &Path) -> Result<(), Error> {
    check_format(path)?;
    if std::fs::metadata(path.join("shallow")).is_ok_and(|file| file.len() > 0) {
        let reason = "this repository is shallow; fetch the rest of its history into it first";
        return Err(Error::Precondition(reason.to_owned()));
    }
    let config = git2::Config::open(&path.join("config"))?;
    if config.get_string("extensions.partialclone").is_ok() {
        let reason = "this repository is a partial clone; fetch what it lacks into it first";
        return Err(Error::Precondition(reason.to_owned()));
    }
    open(path).map(|_| ())
}

/// What names may begin with: in order, and none begins with another, so that one look says whether a name
/// does, however many there are.
struct Prefixes<'a>(Vec<&'a str>);

impl<'a> Prefixes<'a> {
    fn new(prefixes: &[&'a str]) -> Self {
        let mut prefixes = prefixes.to_vec();
        prefixes.sort_unstable();
        prefixes.dedup_by(|longer, shorter| longer.starts_with(*shorter));
        Self(prefixes)
    }

    /// Whether a name begins with one of them.
    fn begin(&self, name: &str) -> bool {
        let at = self.0.partition_point(|prefix| *prefix <= name);
        at > 0 && name.starts_with(self.0[at - 1])
    }
}

/// The refs whose names begin with one of `prefixes` (and with one of [`SHOWN`]), in the order of
/// their names. A ref that cannot be read is left out.
///
/// Read here and not by libgit2, which takes ten times as long for a large `packed-refs`. Loose refs
/// are read first: one that is being packed meanwhile is then found in one place or the other.
pub fn list(repo: &Repository, prefixes: &[&str], peel: bool) -> Result<Vec<Entry>, Error> {
    let prefixes = Prefixes::new(prefixes);
    let wanted =
        |name: &str| SHOWN.iter().any(|shown| name.starts_with(shown)) && prefixes.begin(name);
    let mut loose = BTreeMap::new();
    for shown in SHOWN {
        read_loose(repo.path(), shown.trim_end_matches('/'), &mut loose)?;
    }
    let packed = match std::fs::read(repo.path().join("packed-refs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        packed => packed?,
    };
    let mut entries: Vec<Entry> = Vec::new();
    let mut all_peeled = false;
    // The entry of the line before, unless that line was left out.
    let mut last = None;
    for line in packed.split(|byte| *byte == b'\n') {
        if line.starts_with(b"#") {
            let text = String::from_utf8_lossy(line);
            all_peeled = text.split(' ').any(|word| word == "fully-peeled");
            continue;
        }
        let before = last.take();
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        if let Some(peeled) = line.strip_prefix('^') {
            if let Some(at) = before {
                let entry: &mut Entry = &mut entries[at];
                entry.peeled = Oid::from_hex(peeled).ok();
            }
            continue;
        }
        let Some((oid, name)) = line.split_once(' ') else {
            continue;
        };
        if !wanted(name) || loose.contains_key(name) {
            continue;
        }
        if let Ok(oid) = Oid::from_hex(oid) {
            last = Some(entries.len());
            entries.push(Entry {
                name: name.to_owned(),
                oid,
                peeled: None,
            });
        }
    }
    let known = if all_peeled { entries.len() } else { 0 };
    for name in loose.keys().filter(|name| wanted(name)) {
        if let Some(oid) = follow(repo, &loose, name) {
            entries.push(Entry {
                name: name.clone(),
                oid,
                peeled: None,
            });
        }
    }
    if peel && entries.len() > known {
        let odb = repo.odb()?;
        for entry in &mut entries[known..] {
            // Elsewhere a tag object is no use to anybody, and each look costs.
            if entry.peeled.is_none()
                && entry.name.starts_with("refs/tags/")
                && let Ok((_, ObjectType::Tag)) = odb.read_header(to_git2(entry.oid))
            {
                entry.peeled = peel_tag(repo, entry.oid);
            }
        }
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Shows `see` every object that one of the [`SHOWN`] refs points to, and what a tag there is of where
/// `packed-refs` says it: nothing is kept of 50,000 refs but what their packed file holds.
pub fn tips(repo: &Repository, mut see: impl FnMut(Oid)) -> Result<(), Error> {
    let wanted = |name: &str| SHOWN.iter().any(|shown| name.starts_with(shown));
    let mut loose = BTreeMap::new();
    for shown in SHOWN {
        read_loose(repo.path(), shown.trim_end_matches('/'), &mut loose)?;
    }
    for name in loose.keys() {
        if let Some(oid) = follow(repo, &loose, name) {
            see(oid);
        }
    }
    let packed = match std::fs::read(repo.path().join("packed-refs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        packed => packed?,
    };
    // Whether the entry of the line before was shown.
    let mut shown = false;
    for line in packed.split(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else {
            shown = false;
            continue;
        };
        let oid = match (line.strip_prefix('^'), line.split_once(' ')) {
            (Some(peeled), _) if shown => peeled,
            (None, Some((oid, name))) if wanted(name) && !loose.contains_key(name) => oid,
            _ => {
                shown = false;
                continue;
            }
        };
        shown = true;
        if let Ok(oid) = Oid::from_hex(oid) {
            see(oid);
        }
    }
    Ok(())
}

/// The same all at once, and HEAD if it is on no branch.
pub fn all_tips(repo: &Repository) -> Result<BTreeSet<Oid>, Error> {
    let mut all = BTreeSet::new();
    tips(repo, |oid| {
        all.insert(oid);
    })?;
    if head(repo).is_empty() {
        all.extend(resolve(repo, "HEAD").ok().flatten());
    }
    Ok(all)
}

/// What the files below a directory of refs say, by name.
fn read_loose(
    repo: &Path,
    directory: &str,
    found: &mut BTreeMap<String, String>,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(repo.join(directory)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(file) = entry.file_name().into_string() else {
            continue;
        };
        let name = format!("{directory}/{file}");
        if entry.file_type()?.is_dir() {
            read_loose(repo, &name, found)?;
        } else if RefName::parse(&name).is_ok() {
            // Gone meanwhile, it was deleted or packed.
            if let Ok(text) = std::fs::read_to_string(entry.path()) {
                found.insert(name, text.trim().to_owned());
            }
        }
    }
    Ok(())
}

/// What a loose ref points to, through another ref if it must.
fn follow(repo: &Repository, loose: &BTreeMap<String, String>, name: &str) -> Option<Oid> {
    let text = loose.get(name)?;
    match text.strip_prefix("ref: ") {
        None => Oid::from_hex(text).ok(),
        Some(_) => target(repo.find_reference(name).ok()?),
    }
}

fn target(reference: Reference<'_>) -> Option<Oid> {
    match reference.target() {
        Some(oid) => from_git2(oid),
        None => reference.resolve().ok()?.target().and_then(from_git2),
    }
}

fn peel_tag(repo: &Repository, oid: Oid) -> Option<Oid> {
    let tag = repo.find_tag(to_git2(oid)).ok()?;
    let mut object = tag.into_object();
    // A tag may be of a tag; the chain is finite, since each is named by its hash.
    while let Some(tag) = object.as_tag() {
        object = tag.target().ok()?;
    }
    from_git2(object.id())
}

/// What one ref points to.
pub fn resolve(repo: &Repository, name: &str) -> Result<Option<Oid>, Error> {
    match repo.find_reference(name) {
        Ok(reference) => Ok(target(reference)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The branch HEAD names, born or not; empty when HEAD is detached or cannot be read.
pub fn head(repo: &Repository) -> String {
    let head = repo.find_reference("HEAD").ok();
    let target = head
        .as_ref()
        .and_then(|head| head.symbolic_target().ok().flatten());
    target.unwrap_or_default().to_owned()
}

/// Points HEAD to a branch, born or not. `false`: it did already.
pub fn set_head(repo: &Repository, branch: &str) -> Result<bool, Error> {
    if head(repo) == branch {
        return Ok(false);
    }
    let path = repo.path().join("HEAD");
    super::write_file(&path, format!("ref: {branch}\n").as_bytes())?;
    Ok(true)
}

/// Moves refs of the view at `path`: deletions that stand in the way of what is made go first, in a
/// transaction of their own. To be called under the view's lock.
pub fn apply(path: &Path, changes: &[Change]) -> Result<(), Error> {
    let in_the_way = in_the_way(changes);
    let (first, rest): (Vec<&Change>, Vec<&Change>) = changes
        .iter()
        .partition(|c| in_the_way.contains(c.name.as_str()));
    for part in [first, rest] {
        if part.is_empty() {
            continue;
        }
        match transaction(path, &part) {
            Err(Error::Locked) => {
                // Of a process that was killed; see the head of this file.
                break_locks(path)?;
                transaction(path, &part)?;
            }
            result => result?,
        }
    }
    Ok(())
}

/// The names of deletions that conflict with something made.
fn in_the_way(changes: &[Change]) -> BTreeSet<&str> {
    let names = |made: bool| -> BTreeSet<&str> {
        let of_kind = changes.iter().filter(|c| c.new.is_some() == made);
        of_kind.map(|change| change.name.as_str()).collect()
    };
    let (made, deleted) = (names(true), names(false));
    let mut found = BTreeSet::new();
    for name in &made {
        found.extend(parents(name).filter(|parent| deleted.contains(parent)));
    }
    for name in &deleted {
        if parents(name).any(|parent| made.contains(parent)) {
            found.insert(*name);
        }
    }
    found
}

/// `refs/heads/a/b` gives `refs/heads/a`, `refs/heads`, `refs`.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..at])
}

fn transaction(path: &Path, changes: &[&Change]) -> Result<(), Error> {
    let deletions = changes.iter().filter(|c| c.new.is_none()).count();
    let by_git =
        changes.len() > MANY || (deletions > MANY_DELETIONS && path.join("packed-refs").exists());
    if by_git {
        return update_ref(path, changes);
    }
    let repo = open(path)?;
    let signature = Signature::new("graspd", "graspd@localhost", &git2::Time::new(0, 0))?;
    let mut transaction = repo.transaction()?;
    for change in changes {
        transaction.lock_ref(&change.name)?;
    }
    for change in changes {
        if resolve(&repo, &change.name)? != change.old {
            return Err(Error::Aborted(format!(
                "{} is not where it was expected",
                change.name
            )));
        }
        match change.new {
            Some(oid) => {
                transaction.set_target(&change.name, to_git2(oid), Some(&signature), "")?;
            }
            None => transaction.remove(&change.name)?,
        }
    }
    transaction.commit()?;
    for change in changes {
        sync_ref(path, &change.name);
    }
    Ok(())
}

/// Makes a moved ref survive a power failure; git's own default does as much.
fn sync_ref(path: &Path, name: &str) {
    let file = path.join(name);
    let _ = File::open(&file).and_then(|file| file.sync_all());
    if let Some(parent) = file.parent() {
        let _ = super::sync_directory(parent);
    }
}

fn update_ref(path: &Path, changes: &[&Change]) -> Result<(), Error> {
    let mut script = Vec::with_capacity(changes.len() * 128);
    let zero = Oid::ZERO;
    for change in changes {
        let old = change.old.unwrap_or(zero);
        let line = match change.new {
            Some(new) => format!("update {}\0{new}\0{old}\0", change.name),
            None => format!("delete {}\0{old}\0", change.name),
        };
        script.extend_from_slice(line.as_bytes());
    }
    run(path, &["update-ref", "--stdin", "-z"], &script)
}

/// Runs a git that takes locks on refs.
fn run(path: &Path, args: &[&str], input: &[u8]) -> Result<(), Error> {
    match git::run(path, args, input) {
        // A `.lock`, or `packed-refs.new`.
        Err(git::RunError::Failed(reason)) if reason.contains("File exists") => Err(Error::Locked),
        result => Ok(result?),
    }
}

/// Removes every lock file a ref transaction of this view may have left. Under the view's lock.
pub fn break_locks(path: &Path) -> io::Result<()> {
    fn walk(directory: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                walk(&entry.path())?;
            } else if entry.path().extension().is_some_and(|e| e == "lock") {
                tracing::warn!(file = %entry.path().display(), "a lock of a dead process removed");
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
    walk(&path.join("refs"))?;
    for file in ["packed-refs.lock", "packed-refs.new", "HEAD.lock"] {
        match std::fs::remove_file(path.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether so many refs of a view lie loose that they should be packed.
pub fn should_pack(path: &Path) -> bool {
    fn count(directory: &Path, found: &mut usize) {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten() {
            if *found >= MANY_LOOSE {
                return;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => count(&entry.path(), found),
                _ => *found += 1,
            }
        }
    }
    let mut found = 0;
    count(&path.join("refs"), &mut found);
    found >= MANY_LOOSE
}

/// Packs the loose refs of a view. To be called under its lock.
pub fn pack(path: &Path) -> Result<(), Error> {
    let pack = || run(path, &["pack-refs", "--all"], b"");
    match pack() {
        Err(Error::Locked) => {
            break_locks(path)?;
            pack()
        }
        result => result,
    }
}

/// The `refs/heads/*` and `refs/tags/*` among `entries`, by name.
pub fn branches_and_tags(entries: Vec<Entry>) -> BTreeMap<String, Oid> {
    let wanted = |name: &str| name.starts_with("refs/heads/") || name.starts_with("refs/tags/");
    let entries = entries.into_iter().filter(|entry| wanted(&entry.name));
    entries.map(|entry| (entry.name, entry.oid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, old: Option<u8>, new: Option<u8>) -> Change {
        let oid = |byte: u8| Oid::from_bytes([byte; 20]);
        let name = name.to_owned();
        let (old, new) = (old.map(oid), new.map(oid));
        Change { name, old, new }
    }

    proptest::proptest! {
        #[test]
        fn a_name_begins_with_one_of_many_or_with_none(
            prefixes in proptest::collection::vec("[ab/]{0,4}", 0..12),
            name in "[ab/]{0,8}",
        ) {
            let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
            let begins = prefixes.iter().any(|prefix| name.starts_with(prefix));
            proptest::prop_assert_eq!(Prefixes::new(&prefixes).begin(&name), begins);
        }
    }

    #[test]
    fn deletions_in_the_way_go_first() {
        let changes = [
            change("refs/heads/a", Some(1), None),
            change("refs/heads/a/b", None, Some(1)),
            change("refs/heads/c/d/e", Some(1), None),
            change("refs/heads/c", None, Some(1)),
            change("refs/heads/cc", Some(1), None),
        ];
        let found: Vec<_> = in_the_way(&changes).into_iter().collect();
        assert_eq!(found, ["refs/heads/a", "refs/heads/c/d/e"]);
    }
}
