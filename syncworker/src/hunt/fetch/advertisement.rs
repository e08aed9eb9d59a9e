//! What a server says it speaks and has: `info/refs` in protocol v2, v1 and v0, and v2's `ls-refs`.
//!
//! It is read line by line, and of the refs only those are kept that lead to what is wanted: what we
//! hold of an advertisement is bounded by what we asked for.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use grasp_proto::words::Oid;

use super::{
    FetchError,
    lines::{Line, Lines, text},
    told,
};

/// The longest advertisement, in bytes: some ten times the largest known.
const MOST_BYTES: usize = 64 << 20;
/// The most lines of one.
const MOST_LINES: usize = 1_000_000;

/// How a server is to be spoken to.
#[derive(Debug)]
pub enum Dialect {
    /// gitprotocol-v2.
    V2(V2),
    /// gitprotocol-pack; v1 differs by its first line only.
    V0(V0),
}

/// What is of interest of the capabilities of v2.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct V2 {
    /// Refs can be listed.
    pub ls_refs: bool,
    /// It wants to know the object format.
    pub object_format: bool,
    /// It wants to know who asks.
    pub agent: bool,
}

/// What a pack of v0 can come in, the best last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sideband {
    /// Nothing: it comes as it is, up to the end of the answer.
    #[default]
    None,
    /// `side-band`
    Small,
    /// `side-band-64k`
    Large,
}

/// What is of interest of an advertisement of v0.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // They are the server's capabilities, word by word.
pub struct V0 {
    /// How it can send a pack.
    pub sideband: Sideband,
    /// Packs may lean on what we have.
    pub thin_pack: bool,
    /// Deltas may name their base by its place.
    pub ofs_delta: bool,
    /// It wants to know who asks.
    pub agent: bool,
    /// Objects that no ref names may be asked for.
    pub unadvertised: bool,
    /// What is wanted of what it advertises.
    pub found: Found,
}

/// The wanted objects that refs lead to: each with what to ask for, which is the tag where only a tag
/// that was peeled leads to it. As many as are wanted, at most.
#[derive(Debug, Clone, Default)]
pub struct Found(HashMap<Oid, Oid>);

impl Found {
    /// What to ask for, to get this one.
    pub fn ask_for(&self, want: &Oid) -> Option<Oid> {
        self.0.get(want).copied()
    }

    fn see(&mut self, wants: &HashSet<Oid>, tip: Oid, peeled: Option<Oid>) {
        if wants.contains(&tip) {
            self.0.insert(tip, tip);
        }
        if let Some(peeled) = peeled.filter(|oid| wants.contains(oid)) {
            self.0.entry(peeled).or_insert(tip);
        }
    }
}

/// Lines, up to a bound.
struct Bounded<'l> {
    lines: &'l mut Lines,
    bytes: usize,
    count: usize,
}

impl<'l> Bounded<'l> {
    fn new(lines: &'l mut Lines) -> Self {
        lines.keep_pace();
        Self {
            lines,
            bytes: 0,
            count: 0,
        }
    }

    /// The next line, an `ERR` being an error; `None` at a flush.
    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        match self.lines.next().await? {
            None => Err(FetchError::unwell("the list of refs breaks off")),
            Some(Line::Flush) => Ok(None),
            Some(Line::Delimiter | Line::ResponseEnd) => {
                Err(FetchError::unwell("the list of refs is none"))
            }
            Some(Line::Data(line)) => {
                self.lines.came(line.len());
                self.bytes += line.len();
                self.count += 1;
                if self.bytes > MOST_BYTES || self.count > MOST_LINES {
                    return Err(FetchError::unwell("the list of refs is too long"));
                }
                if let Some(why) = line.strip_prefix(b"ERR ") {
                    return Err(FetchError::not_there(told(why)));
                }
                Ok(Some(line))
            }
        }
    }
}

fn oid(text: &[u8]) -> Option<Oid> {
    Oid::from_hex(std::str::from_utf8(text).ok()?).ok()
}

/// `<oid> <rest>`
fn oid_and(line: &[u8]) -> Result<(Oid, &[u8]), FetchError> {
    let (first, rest) = line
        .iter()
        .position(|byte| *byte == b' ')
        .map(|at| (&line[..at], &line[at + 1..]))
        .ok_or_else(|| FetchError::unwell("the list of refs is none"))?;
    if first.len() == 64 {
        return Err(FetchError::not_there("its objects are named by SHA-256"));
    }
    let oid = oid(first).ok_or_else(|| FetchError::unwell("the list of refs is none"))?;
    Ok((oid, rest))
}

/// Reads the answer to `info/refs`.
#[allow(clippy::implicit_hasher)] // callers have no other
pub async fn read(lines: &mut Lines, wants: &HashSet<Oid>) -> Result<Dialect, FetchError> {
    let mut lines = Bounded::new(lines);
    let mut first = lines.next().await?;
    if first
        .as_ref()
        .is_some_and(|line| line.starts_with(b"# service="))
    {
        if lines.next().await?.is_some() {
            return Err(FetchError::unwell("the list of refs begins wrongly"));
        }
        first = lines.next().await?;
    }
    match first.as_deref().map(text) {
        Some(b"version 2") => capabilities(lines).await.map(Dialect::V2),
        Some(b"version 1") => {
            let first = lines.next().await?;
            refs(lines, first, wants).await.map(Dialect::V0)
        }
        _ => refs(lines, first, wants).await.map(Dialect::V0),
    }
}

async fn capabilities(mut lines: Bounded<'_>) -> Result<V2, FetchError> {
    let (mut v2, mut fetch) = (V2::default(), false);
    while let Some(line) = lines.next().await? {
        let line = text(&line);
        let name = line.split(|byte| *byte == b'=').next().unwrap_or_default();
        match name {
            b"fetch" => fetch = true,
            b"ls-refs" => v2.ls_refs = true,
            b"agent" => v2.agent = true,
            b"object-format" if line == b"object-format=sha1" => v2.object_format = true,
            b"object-format" => {
                return Err(FetchError::not_there(
                    "its objects are named by another hash",
                ));
            }
            _ => {}
        }
    }
    match fetch {
        true => Ok(v2),
        false => Err(FetchError::unwell("nothing can be fetched from it")),
    }
}

async fn refs(
    mut lines: Bounded<'_>,
    first: Option<Bytes>,
    wants: &HashSet<Oid>,
) -> Result<V0, FetchError> {
    // Nothing at all is what servers before 2.1 say of an empty repository.
    let Some(first) = first else {
        return Ok(V0::default());
    };
    let mut v0 = V0::default();
    let mut parts = text(&first).splitn(2, |byte| *byte == 0);
    let head = parts.next().unwrap_or_default();
    for capability in parts.next().unwrap_or_default().split(|byte| *byte == b' ') {
        match capability {
            b"side-band-64k" => v0.sideband = Sideband::Large,
            b"side-band" => v0.sideband = v0.sideband.max(Sideband::Small),
            b"thin-pack" => v0.thin_pack = true,
            b"ofs-delta" => v0.ofs_delta = true,
            b"allow-tip-sha1-in-want" | b"allow-reachable-sha1-in-want" => v0.unadvertised = true,
            b"object-format=sha256" => {
                return Err(FetchError::not_there("its objects are named by SHA-256"));
            }
            other => v0.agent |= other.starts_with(b"agent="),
        }
    }
    let (mut tip, name) = oid_and(head)?;
    if name != b"capabilities^{}" {
        v0.found.see(wants, tip, None);
    }
    while let Some(line) = lines.next().await? {
        if line.starts_with(b"shallow ") {
            return Err(FetchError::shallow());
        }
        let (oid, name) = oid_and(text(&line))?;
        if name.ends_with(b"^{}") {
            v0.found.see(wants, tip, Some(oid));
        } else {
            v0.found.see(wants, oid, None);
            tip = oid;
        }
    }
    Ok(v0)
}

/// Reads the answer to `ls-refs`, asked to peel.
#[allow(clippy::implicit_hasher)] // callers have no other
pub async fn read_refs(lines: &mut Lines, wants: &HashSet<Oid>) -> Result<Found, FetchError> {
    let (mut lines, mut found) = (Bounded::new(lines), Found::default());
    while let Some(line) = lines.next().await? {
        let line = text(&line);
        if line.starts_with(b"unborn ") {
            continue;
        }
        let (tip, rest) = oid_and(line)?;
        let peeled = rest
            .split(|byte| *byte == b' ')
            .find_map(|attribute| oid(attribute.strip_prefix(b"peeled:")?));
        found.see(wants, tip, peeled);
    }
    Ok(found)
}
