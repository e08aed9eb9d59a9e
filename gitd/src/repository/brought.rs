//! What a pack that came leans on: objects that what it is for leads to, and that it did not bring.
//!
//! A pool has objects that nobody is shown. Git, which checks a pack against the pool, finds them all, so a
//! pack could lead to one it does not bring, or have a delta against it, and show it by that. What is brought
//! is what the pack had when it came: the bases that git adds to a thin pack are not. From the objects that
//! the upload is for the walk goes through what was brought, and stops wherever it leaves it.
//!
//! An object that a parent's tree has under the same name is that parent's to answer for, which is brought
//! itself, or leaned on. So of an ordinary push parents alone are left, and objects from further back (files
//! that were put back as they were), which are looked for in the trees of those parents first.

use std::{
    collections::{BinaryHeap, HashMap, HashSet},
    fs, io,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use git2::{ObjectType, Odb, OdbLookupFlags};
use grasp_proto::words::Oid;

use super::{Error, intake::Came, pool, refs};

/// Parents of one commit whose trees answer for what they have.
const PARENTS: usize = 4;

/// Commits that are leaned on whose trees are looked through.
const NEAR: usize = 8;

/// Objects of those trees that are looked at.
const LOOKED_AT: usize = 100_000;

/// Directory of a quarantine: the pack that came, and nothing else.
const ALONE: &str = "alone";

/// What some objects of a pack lean on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leans {
    /// Each once.
    pub on: HashSet<Oid>,
}

/// Looks at what came in a quarantine for `tips`, which `place` (a view, or a pool) may have instead; what
/// is among `known`, in order, need not be looked at. Blocks.
pub fn leans(quarantine: &Came, place: &Path, tips: &[Oid], known: &[Oid]) -> Result<Leans, Error> {
    let is_known = |oid: &Oid| known.binary_search(oid).is_ok();
    let Some(name) = quarantine.pack() else {
        let on = tips.iter().filter(|tip| !is_known(tip)).copied().collect();
        return Ok(Leans { on });
    };
    let packs = quarantine.directory().join("pack");
    let added = added(&packs, name, quarantine.objects())?;
    let alone = quarantine.directory().join(ALONE);
    fs::create_dir_all(alone.join("pack"))?;
    pool::link_pack_soon(&packs, &alone.join("pack"), name)?;
    let came = Odb::new()?;
    came.add_disk_alternate(&text(&alone)?)?;
    let repo = refs::open(place)?;
    let all = repo.odb()?;
    all.add_disk_alternate(&text(quarantine.directory())?)?;
    let mut walk = Walk {
        came,
        all,
        is_known: &is_known,
        leans: Leans::default(),
        near: Vec::new(),
        seen: HashMap::new(),
        stack: Vec::new(),
        added,
        answered: HashSet::new(),
    };
    walk.begin(tips, quarantine.is_self_contained())?;
    walk.go()?;
    let bases = walk.added.difference(&walk.answered);
    walk.leans.on.extend(bases.filter(|base| !is_known(base)));
    walk.look_near()?;
    Ok(walk.leans)
}

fn text(path: &Path) -> Result<String, Error> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::other("a path that is no text").into())
}

/// What git added to a thin pack that came with so many objects: it stands behind them.
fn added(packs: &Path, name: &str, came: u32) -> Result<HashSet<Oid>, Error> {
    let mut index = BufReader::new(fs::File::open(packs.join(format!("{name}.idx")))?);
    let mut head = [0; 8 + 256 * 4];
    index.read_exact(&mut head)?;
    if head[..8] != *b"\xfftOc\0\0\0\x02" {
        return Err(io::Error::other("not an index of version 2").into());
    }
    let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let all = number(&head[head.len() - 4..]);
    let Some(count) = all.checked_sub(came).filter(|count| *count > 0) else {
        return Ok(HashSet::new());
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    // Names, checksums, offsets; then the offsets that are too long for four bytes.
    let (names, all) = (head.len() as u64, u64::from(all));
    let offsets = names + all * 24;
    index.seek(SeekFrom::Start(offsets))?;
    let mut short = vec![0; usize::try_from(all * 4).unwrap_or_default()];
    index.read_exact(&mut short)?;
    let mut long = Vec::new();
    index.read_to_end(&mut long)?;
    let offset = |at: &[u8]| -> u64 {
        let short = number(at);
        if short & 0x8000_0000 == 0 {
            return u64::from(short);
        }
        let at = usize::try_from(short & 0x7fff_ffff).unwrap_or(usize::MAX);
        let bytes = at.checked_mul(8).and_then(|at| long.get(at..at + 8));
        bytes.map_or(u64::MAX, |b| {
            u64::from_be_bytes(b.try_into().unwrap_or([255; 8]))
        })
    };
    let mut last = BinaryHeap::with_capacity(count + 1);
    for (place, at) in short.chunks_exact(4).enumerate() {
        last.push(std::cmp::Reverse((offset(at), place as u64)));
        if last.len() > count {
            last.pop();
        }
    }
    let mut added = HashSet::with_capacity(count);
    for std::cmp::Reverse((_, place)) in last {
        let mut oid = [0; 20];
        index.seek(SeekFrom::Start(names + place * 20))?;
        index.read_exact(&mut oid)?;
        added.insert(Oid::from_bytes(oid));
    }
    Ok(added)
}

/// A tree of a parent, which answers for what it has.
#[derive(Debug, Clone, Copy)]
struct Base {
    tree: Oid,
    /// The parent was not brought: it has to be here.
    is_leaned_on: bool,
}

/// An object that is to be read, with trees that answer for what they have under the same names.
type Step = (Oid, ObjectType, Vec<Base>);

/// How an object of the pack was seen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// But for what the trees of parents answer for.
    Beside,
    /// All of it.
    Whole,
}

struct Walk<'a> {
    /// The pack that came, with what git added.
    came: Odb<'a>,
    added: HashSet<Oid>,
    /// That, and all that it was checked against.
    all: Odb<'a>,
    is_known: &'a dyn Fn(&Oid) -> bool,
    leans: Leans,
    /// Commits that are leaned on, the first so many.
    near: Vec<Oid>,
    /// Commits, trees and tags that were come by. As many as the pack has.
    seen: HashMap<Oid, Seen>,
    stack: Vec<Step>,
    /// Of what git added, what a commit has that is leaned on.
    answered: HashSet<Oid>,
}

impl Walk<'_> {
    fn was_brought(&self, oid: Oid) -> bool {
        // Opened a moment ago: looking for new packs at each miss is wasted.
        let flags = OdbLookupFlags::NO_REFRESH;
        !self.added.contains(&oid) && self.came.exists_ext(refs::to_git2(oid), flags)
    }

    /// `whole`: git found that no object of the pack leads out of it.
    fn begin(&mut self, tips: &[Oid], whole: bool) -> Result<(), Error> {
        let whole = whole && self.added.is_empty();
        for tip in tips {
            if (self.is_known)(tip) {
            } else if !self.was_brought(*tip) {
                self.leans.on.insert(*tip);
            } else if !whole {
                let (_, kind) = self.came.read_header(refs::to_git2(*tip))?;
                self.come_by(*tip, kind, Vec::new());
            }
        }
        Ok(())
    }

    fn come_by(&mut self, oid: Oid, kind: ObjectType, bases: Vec<Base>) {
        if (self.is_known)(&oid) {
            if kind == ObjectType::Commit {
                self.is_near(oid);
            }
        } else if !self.was_brought(oid) {
            if self.leans.on.insert(oid) && kind == ObjectType::Commit {
                self.is_near(oid);
            }
        } else if kind != ObjectType::Blob {
            // Whoever answers for a tree that is met again need not be the same: two could name each other.
            let bases = match self.seen.get(&oid) {
                None => bases,
                Some(Seen::Beside) => Vec::new(),
                Some(Seen::Whole) => return,
            };
            let seen = match bases.is_empty() {
                true => Seen::Whole,
                false => Seen::Beside,
            };
            self.seen.insert(oid, seen);
            self.stack.push((oid, kind, bases));
        }
    }

    fn answers(&mut self, base: Base) {
        if base.is_leaned_on && self.added.contains(&base.tree) {
            self.answered.insert(base.tree);
        }
    }

    fn is_near(&mut self, commit: Oid) {
        if self.near.len() < NEAR && !self.near.contains(&commit) {
            self.near.push(commit);
        }
    }

    fn go(&mut self) -> Result<(), Error> {
        while let Some((oid, kind, bases)) = self.stack.pop() {
            let object = read(&self.all, oid)?;
            match kind {
                ObjectType::Commit => self.commit(&object),
                ObjectType::Tree => self.tree(&object, &bases),
                ObjectType::Tag => self.tag(&object),
                _ => {}
            }
        }
        Ok(())
    }

    fn commit(&mut self, object: &[u8]) {
        let (tree, parents) = links(object);
        let mut bases = Vec::new();
        for parent in parents.iter().take(PARENTS) {
            let Ok(object) = read(&self.all, *parent) else {
                continue;
            };
            if let Some(tree) = links(&object).0 {
                let is_leaned_on = (self.is_known)(parent) || !self.was_brought(*parent);
                bases.push(Base { tree, is_leaned_on });
            }
        }
        for parent in parents {
            self.come_by(parent, ObjectType::Commit, Vec::new());
        }
        for base in &bases {
            self.answers(*base);
        }
        if let Some(tree) = tree
            && !bases.iter().any(|base| base.tree == tree)
        {
            self.come_by(tree, ObjectType::Tree, bases);
        }
    }

    fn tree(&mut self, object: &[u8], bases: &[Base]) {
        let mut beside: HashMap<Vec<u8>, Vec<(Base, Option<ObjectType>)>> = HashMap::new();
        for base in bases {
            let Ok(tree) = read(&self.all, base.tree) else {
                continue;
            };
            for entry in entries(&tree) {
                let of_entry = Base {
                    tree: entry.oid,
                    ..*base
                };
                let of_name = beside.entry(entry.name.to_owned()).or_default();
                of_name.push((of_entry, entry.kind()));
            }
        }
        for entry in entries(object) {
            let Some(kind) = entry.kind() else { continue };
            let same_name = beside.remove(entry.name).unwrap_or_default();
            for (base, _) in &same_name {
                self.answers(*base);
            }
            let is_theirs = |(base, of): &(Base, _)| base.tree == entry.oid && *of == Some(kind);
            if same_name.iter().any(is_theirs) {
                continue;
            }
            let trees = same_name.into_iter();
            let trees = trees.filter(|(_, of)| *of == Some(ObjectType::Tree));
            self.come_by(entry.oid, kind, trees.map(|(base, _)| base).collect());
        }
    }

    fn tag(&mut self, object: &[u8]) {
        let mut lines = object.split(|byte| *byte == b'\n');
        let oid = lines.next().and_then(|line| named(line, b"object "));
        let kind = lines.next().and_then(|line| line.strip_prefix(b"type "));
        let kind = kind.and_then(|kind| ObjectType::from_str(std::str::from_utf8(kind).ok()?));
        if let (Some(oid), Some(kind)) = (oid, kind) {
            self.come_by(oid, kind, Vec::new());
        }
    }

    /// Strikes what the trees of commits have that are leaned on themselves.
    fn look_near(&mut self) -> Result<(), Error> {
        let mut left = self.leans.on.clone();
        for commit in &self.near {
            left.remove(commit);
        }
        let (mut seen, mut looked_at) = (HashSet::new(), 0);
        for commit in std::mem::take(&mut self.near) {
            let Ok(object) = read(&self.all, commit) else {
                continue;
            };
            let mut stack: Vec<Oid> = links(&object).0.into_iter().collect();
            while let Some(tree) = stack.pop() {
                if left.is_empty() || looked_at >= LOOKED_AT {
                    return Ok(());
                }
                if left.remove(&tree) {
                    self.leans.on.remove(&tree);
                }
                if !seen.insert(tree) {
                    continue;
                }
                for entry in entries(&read(&self.all, tree)?) {
                    looked_at += 1;
                    match entry.kind() {
                        Some(ObjectType::Tree) => stack.push(entry.oid),
                        Some(_) if left.remove(&entry.oid) => {
                            self.leans.on.remove(&entry.oid);
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }
}

fn read(odb: &Odb<'_>, oid: Oid) -> Result<Vec<u8>, Error> {
    Ok(odb.read(refs::to_git2(oid))?.data().to_vec())
}

fn named(line: &[u8], word: &[u8]) -> Option<Oid> {
    let oid = line.strip_prefix(word)?;
    Oid::from_hex(std::str::from_utf8(oid).ok()?).ok()
}

/// The tree and the parents of a commit.
fn links(commit: &[u8]) -> (Option<Oid>, Vec<Oid>) {
    let mut lines = commit.split(|byte| *byte == b'\n');
    let tree = lines.next().and_then(|line| named(line, b"tree "));
    let parents = lines.map_while(|line| named(line, b"parent "));
    (tree, parents.collect())
}

/// An entry of a tree.
struct Entry<'a> {
    mode: &'a [u8],
    name: &'a [u8],
    oid: Oid,
}

impl Entry<'_> {
    /// `None`: a commit of another repository.
    fn kind(&self) -> Option<ObjectType> {
        match self.mode {
            b"40000" | b"040000" => Some(ObjectType::Tree),
            b"160000" => None,
            _ => Some(ObjectType::Blob),
        }
    }
}

fn entries(mut tree: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    std::iter::from_fn(move || {
        let space = tree.iter().position(|byte| *byte == b' ')?;
        let end = tree.iter().position(|byte| *byte == 0)?;
        let oid = tree.get(end + 1..end + 21)?;
        let entry = Entry {
            mode: &tree[..space],
            name: tree.get(space + 1..end)?,
            oid: Oid::from_slice(oid).ok()?,
        };
        tree = &tree[end + 21..];
        Some(entry)
    })
}
