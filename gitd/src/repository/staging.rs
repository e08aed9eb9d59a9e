//! Staging: objects that nobody has signed for, seen by one view only.
//!
//! Such packs lie in the view's own `objects/pack`, beside the alternate that leads to the pool. A
//! sidecar for each placeholder (`staged/<event id>` in the view) lists the packs its uploads
//! brought, behind a line `by <payer>` that says who did, and `commit <oid>` that says for which commit: several
//! may wait for one event. It is written before they are and goes after they went, so no pack is ever there
//! without a sidecar that knows it. All functions are called under the view's lock, and block.
//!
//! A staged pack leans on the pool and on its own sidecar's earlier packs only, so a sidecar's packs
//! can always move into the pool together without breaking the pool's invariant.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use grasp_proto::words::{EventId, Oid};

use super::{
    layout::{STAGED, sidecar},
    pool,
    unsigned::{PLACEHOLDER, Payer},
    write_file,
};

/// Placeholders of one view at most, so that what nobody signs for cannot fill the disk.
pub const MOST: usize = 256;

/// Of these one client has so many at most: nobody closes a repository to others.
pub const MOST_OF_ONE: usize = MOST / 4;

/// Commits that one client may bring for one event, of those for which the relay has room.
pub const MOST_COMMITS_OF_ONE: usize = 8;

/// What a line begins with that says who brought the packs behind it,
const BY: &str = "by ";
/// and what one does that says which commit was brought.
const COMMIT: &str = "commit ";

/// The sidecar of a placeholder, as it stands.
fn read(view: &Path, event: &EventId) -> io::Result<Option<String>> {
    match fs::read_to_string(sidecar(view, event)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The packs of one placeholder; `None`: there is no such placeholder.
pub fn packs(view: &Path, event: &EventId) -> io::Result<Option<Vec<String>>> {
    let text = read(view, event)?;
    Ok(text.map(|text| {
        let is_pack = |line: &&str| !line.starts_with(BY) && !line.starts_with(COMMIT);
        let packs = text.lines().filter(is_pack);
        packs.map(str::to_owned).collect()
    }))
}

/// What is staged in a view, by who brought it: each pack that is there once, and something for each
/// placeholder. What an earlier version noted was brought by nobody in particular.
pub fn charges(view: &Path) -> io::Result<BTreeMap<Payer, u64>> {
    let mut charges = BTreeMap::new();
    let mut brought = BTreeMap::new();
    for event in events(view)? {
        let mut payer = Payer::default();
        for line in read(view, &event)?.unwrap_or_default().lines() {
            match line.strip_prefix(BY) {
                Some(by) => payer = Payer::from_hex(by).unwrap_or_default(),
                None if line.starts_with(COMMIT) => {}
                None => drop(brought.entry(line.to_owned()).or_insert(payer)),
            }
        }
        *charges.entry(payer).or_default() += PLACEHOLDER;
    }
    let own = own_packs(view);
    for (pack, payer) in brought {
        // What was claimed is not there.
        if let Ok(file) = fs::metadata(own.join(format!("{pack}.pack"))) {
            *charges.entry(payer).or_default() += file.len();
        }
    }
    Ok(charges)
}

/// The commits that were brought for `event`. The ref shows the first of them.
pub fn commits(view: &Path, event: &EventId) -> io::Result<BTreeSet<Oid>> {
    let text = read(view, event)?.unwrap_or_default();
    let commits = text.lines().filter_map(|line| line.strip_prefix(COMMIT));
    Ok(commits.filter_map(|oid| Oid::from_hex(oid).ok()).collect())
}

/// The placeholders for which somebody has brought something, each with how many commits of theirs.
pub fn brought_by(view: &Path, payer: Payer) -> io::Result<BTreeMap<EventId, usize>> {
    let mut brought = BTreeMap::new();
    for event in events(view)? {
        let mut is_theirs = false;
        for line in read(view, &event)?.unwrap_or_default().lines() {
            if let Some(by) = line.strip_prefix(BY) {
                is_theirs = Payer::from_hex(by) == Some(payer);
            }
            if is_theirs {
                let commits: &mut usize = brought.entry(event).or_default();
                *commits += usize::from(line.starts_with(COMMIT));
            }
        }
    }
    Ok(brought)
}

/// The placeholders of a view.
pub fn events(view: &Path) -> io::Result<BTreeSet<EventId>> {
    let entries = match fs::read_dir(view.join(STAGED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut events = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        if let Some(Ok(event)) = name.to_str().map(EventId::from_hex) {
            events.insert(event);
        }
    }
    Ok(events)
}

/// Notes in the sidecar that `commit` was brought for `event`, in `pack` (or in none), and by whom.
pub fn note(
    view: &Path,
    event: &EventId,
    commit: Oid,
    pack: Option<&str>,
    payer: Payer,
) -> io::Result<()> {
    fs::create_dir_all(view.join(STAGED))?;
    let mut text = read(view, event)?.unwrap_or_default();
    let by = format!("{BY}{payer}");
    if text.lines().rfind(|line| line.starts_with(BY)) != Some(&by) {
        text.push_str(&by);
        text.push('\n');
    }
    let commit = format!("{COMMIT}{commit}");
    if text.lines().all(|line| line != commit) {
        text.push_str(&commit);
        text.push('\n');
    }
    if let Some(pack) = pack.filter(|pack| text.lines().all(|line| line != *pack)) {
        text.push_str(pack);
        text.push('\n');
    }
    write_file(&sidecar(view, event), text.as_bytes())
}

/// The bytes of all packs that are staged in a view.
pub fn bytes(view: &Path) -> io::Result<u64> {
    let mut names = BTreeSet::new();
    for event in events(view)? {
        names.extend(packs(view, &event)?.unwrap_or_default());
    }
    let own = own_packs(view);
    // What was claimed is not there.
    let sizes = names
        .iter()
        .filter_map(|pack| fs::metadata(own.join(format!("{pack}.pack"))).ok());
    Ok(sizes.map(|file| file.len()).sum())
}

fn own_packs(view: &Path) -> PathBuf {
    view.join("objects/pack")
}

/// Moves what was staged for `event` into the pool. The sidecar stays until [`forget`], so that the
/// step can be repeated. Under the identifier's lock.
pub fn claim(view: &Path, pool: &Path, event: &EventId) -> io::Result<()> {
    let own = own_packs(view);
    for pack in packs(view, event)?.unwrap_or_default() {
        // No index: moved by an earlier try or for another placeholder of the same upload, or never
        // all there.
        if own.join(format!("{pack}.idx")).exists() {
            pool::add_pack(pool, &own, &pack)?;
        }
        pool::remove_pack(&own, &pack)?;
    }
    Ok(())
}

/// Removes the sidecar, and the packs that no other sidecar lists.
pub fn forget(view: &Path, event: &EventId) -> io::Result<()> {
    let Some(mine) = packs(view, event)? else {
        return Ok(());
    };
    let mut kept = BTreeSet::new();
    for other in events(view)?.iter().filter(|other| *other != event) {
        kept.extend(packs(view, other)?.unwrap_or_default());
    }
    for pack in mine.iter().filter(|pack| !kept.contains(*pack)) {
        pool::remove_pack(&own_packs(view), pack)?;
    }
    fs::remove_file(sidecar(view, event))
}

/// The placeholders whose packs have the object.
pub fn having(view: &Path, oid: Oid) -> io::Result<Vec<EventId>> {
    let own = own_packs(view);
    let mut found = Vec::new();
    for event in events(view)? {
        for pack in packs(view, &event)?.unwrap_or_default() {
            if pool::pack_has(&own, &pack, oid)? {
                found.push(event);
                break;
            }
        }
    }
    Ok(found)
}
