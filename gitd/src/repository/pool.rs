//! Pools: the objects of an identifier, once for all its views.
//!
//! **Invariant**: whatever object is in a pool, everything it leads to is there as well. Packs
//! come in through `intake` alone, which checks the links of every object of a pack against what is
//! there; so one look at a pack's own objects proves full connectivity, however long the history.
//! Adoption links another server's repository in whole, and the pool borrows from the stores that
//! that one borrowed from: what lies in them counts as here, is neither copied nor written, and must
//! stay. What is taken out of a pool that has views is what none of them leads to (`prune.rs`):
//! consolidation rewrites packs, it drops no object.
//!
//! Reachability cannot be asked of a pool, since it has no refs. Never run git's `gc` or `prune` in one.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use grasp_proto::words::{Identifier, Oid};

use super::{
    Error, Scratch, alternates, fresh_repository,
    layout::{IDENTIFIER, Layout, Marker, QUARANTINE, ROLLED_UP, VIEWS},
    rename_over_nothing, sync_directory, write_file,
};

/// Makes the pool of an identifier if it is not there. Under the identifier's lock.
pub fn ensure(layout: &Layout, identifier: &Identifier) -> Result<PathBuf, Error> {
    let pool = layout.pool(identifier);
    if !pool.join(VIEWS).is_dir() {
        let scratch = Scratch(layout.scratch());
        let scratch = &scratch.0;
        fresh_repository(scratch)?;
        fs::create_dir(scratch.join(VIEWS))?;
        fs::create_dir(scratch.join(QUARANTINE))?;
        let words = format!("{identifier}\n");
        write_file(&scratch.join(IDENTIFIER), words.as_bytes())?;
        rename_over_nothing(scratch, &pool)?;
    }
    Ok(pool)
}

/// Notes that a view leans on the pool: before the view is seen.
pub fn mark(pool: &Path, marker: &Marker) -> io::Result<()> {
    let path = pool.join(VIEWS).join(marker.name());
    if !path.exists() {
        fs::File::create(path)?;
        sync_directory(&pool.join(VIEWS))?;
    }
    Ok(())
}

/// Notes that a view is gone: after it went. Under the identifier's lock.
pub fn unmark(pool: &Path, marker: &Marker) -> io::Result<()> {
    match fs::remove_file(pool.join(VIEWS).join(marker.name())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes a pool without views out of sight; what has to be thrown away then is given back. Under the
/// identifier's lock.
pub fn drop_if_unused(layout: &Layout, pool: &Path) -> io::Result<Option<PathBuf>> {
    let unused = match fs::read_dir(pool.join(VIEWS)) {
        Ok(mut markers) => markers.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if !unused {
        return Ok(None);
    }
    let scratch = layout.scratch();
    fs::rename(pool, &scratch)?;
    Ok(Some(scratch))
}

/// The views that lean on a pool, at most `most` of them.
pub fn views(pool: &Path, most: usize) -> Vec<Marker> {
    let entries = fs::read_dir(pool.join(VIEWS)).into_iter().flatten();
    entries
        .flatten()
        .filter_map(|entry| Marker::parse(entry.file_name().to_str()?))
        .take(most)
        .collect()
}

/// Lets a pool borrow from stores, relative to the git data directory. Under the identifier's lock.
pub fn borrow(pool: &Path, stores: &BTreeSet<PathBuf>) -> Result<(), Error> {
    let objects = pool.join("objects");
    let mut lines = alternates::lines(&objects)?;
    let known = lines.len();
    for store in stores {
        let line = Layout::alternate_of_pool(store);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.len() > known {
        let text = lines.join("\n") + "\n";
        write_file(&objects.join("info/alternates"), text.as_bytes())?;
    }
    Ok(())
}

/// Links all packs and loose objects of one object directory into a pool. Under the identifier's lock.
pub fn link_objects(from: &Path, pool: &Path) -> Result<(), Error> {
    let to = pool.join("objects");
    // What has nothing in it at all need not have the directory.
    if from.join("pack").is_dir() {
        for pack in packs(&from.join("pack"))? {
            add_pack(pool, &from.join("pack"), &pack)?;
        }
    }
    for shelf in fs::read_dir(from)? {
        let shelf = shelf?;
        let name = shelf.file_name().into_string().unwrap_or_default();
        if name.len() != 2 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            continue;
        }
        let target = to.join(&name);
        fs::create_dir_all(&target)?;
        for entry in fs::read_dir(shelf.path())? {
            let entry = entry?;
            let file = entry.file_name();
            // Temporary files of a git that was killed are no objects.
            if file.to_str().is_some_and(|f| f.len() == 38) {
                link(&entry.path(), &target.join(&file))?;
            }
        }
        sync_directory(&target)?;
    }
    sync_directory(&to)?;
    Ok(())
}

/// The packs of a pool that are about to go: their objects are in others, or for nobody.
pub fn rolled_up(pool: &Path) -> io::Result<HashSet<String>> {
    match fs::read_to_string(pool.join(ROLLED_UP)) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(error),
    }
}

/// Notes that these packs, and no others, are about to go. Under the identifier's lock.
pub fn note_rolled_up(pool: &Path, names: impl IntoIterator<Item = String>) -> io::Result<()> {
    let lines = names.into_iter().map(|name| name + "\n");
    write_file(&pool.join(ROLLED_UP), lines.collect::<String>().as_bytes())
}

/// Puts a pack from a directory into a pool, durably. One that was about to go stays. Under the
/// identifier's lock.
pub fn add_pack(pool: &Path, from: &Path, name: &str) -> io::Result<()> {
    let mut gone = rolled_up(pool)?;
    if gone.remove(name) {
        note_rolled_up(pool, gone)?;
    }
    link_pack(from, &pool.join("objects/pack"), name)
}

/// The files of one pack that are kept, the one that makes it visible last.
const PARTS: [&str; 3] = ["pack", "rev", "idx"];

/// Puts a pack from one `pack` directory into another, by hard link or, across devices, by copy; the
/// index last, durably. One that is there already is left as it is.
pub fn link_pack(from: &Path, to: &Path, name: &str) -> io::Result<()> {
    link_pack_soon(from, to, name)?;
    sync_directory(to)
}

/// The same, not durably.
pub fn link_pack_soon(from: &Path, to: &Path, name: &str) -> io::Result<()> {
    for part in PARTS {
        let file = format!("{name}.{part}");
        match link(&from.join(&file), &to.join(&file)) {
            Err(error) if part == "rev" && error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

/// Behind the name of a file that is being copied.
pub const INCOMING: &str = ".incoming";

/// Hard link, or copy across devices; what is there already stays. Of a symbolic link, what it leads
/// to.
pub fn link(from: &Path, to: &Path) -> io::Result<()> {
    let from = match fs::symlink_metadata(from)?.is_symlink() {
        true => &fs::canonicalize(from)?,
        false => from,
    };
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Err(_) => {
            let mut name = to.as_os_str().to_owned();
            name.push(INCOMING);
            fs::copy(from, &name)?;
            fs::File::open(&name)?.sync_all()?;
            fs::rename(&name, to)
        }
    }
}

/// Removes a pack, the index first. One that is not there is removed already.
pub fn remove_pack(directory: &Path, name: &str) -> io::Result<()> {
    for part in PARTS.iter().rev() {
        match fs::remove_file(directory.join(format!("{name}.{part}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The packs in a directory, by name.
pub fn packs(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let file = entry?.file_name();
        let Some(name) = file.to_str() else { continue };
        if let Some(name) = name.strip_suffix(".idx")
            && name.starts_with("pack-")
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The objects of a pack in order, by its index alone (version 2).
pub fn objects(directory: &Path, name: &str) -> io::Result<impl Iterator<Item = io::Result<Oid>>> {
    let mut index = BufReader::new(fs::File::open(directory.join(format!("{name}.idx")))?);
    let mut head = [0; 8 + 256 * 4];
    index.read_exact(&mut head)?;
    if head[..8] != *b"\xfftOc\0\0\0\x02" {
        return Err(io::Error::other("not an index of version 2"));
    }
    let count = [head[1028], head[1029], head[1030], head[1031]];
    let names = (0..u32::from_be_bytes(count)).map(move |_| {
        let mut oid = [0; 20];
        index.read_exact(&mut oid)?;
        Ok(Oid::from_bytes(oid))
    });
    Ok(names)
}

/// Whether a pack has an object, by its index alone (version 2, the only one still written).
pub fn pack_has(directory: &Path, name: &str, oid: Oid) -> io::Result<bool> {
    let mut file = match fs::File::open(directory.join(format!("{name}.idx"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let mut head = [0; 8 + 256 * 4];
    file.read_exact(&mut head)?;
    if head[..8] != *b"\xfftOc\0\0\0\x02" {
        return Err(io::Error::other("not an index of version 2"));
    }
    let fan = |at: usize| {
        let at = 8 + at * 4;
        u64::from(u32::from_be_bytes([
            head[at],
            head[at + 1],
            head[at + 2],
            head[at + 3],
        ]))
    };
    let first = usize::from(oid.as_bytes()[0]);
    let mut low = if first == 0 { 0 } else { fan(first - 1) };
    let mut high = fan(first);
    let names = head.len() as u64;
    let mut found = [0; 20];
    while low < high {
        let middle = low.midpoint(high);
        file.seek(SeekFrom::Start(names + middle * 20))?;
        file.read_exact(&mut found)?;
        match found.cmp(oid.as_bytes()) {
            std::cmp::Ordering::Equal => return Ok(true),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    Ok(false)
}
