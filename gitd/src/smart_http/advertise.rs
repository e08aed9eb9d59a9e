//! Which refs there are: `info/refs` of v0, v1 and v2, and v2's `ls-refs`, without a process.
//!
//! The refs are read once into a list; what is sent is made from it piece by piece as the
//! client takes it.

use bytes::{Bytes, BytesMut};
use grasp_proto::words::{Address, Oid};
use tokio::io::AsyncBufRead;

use super::{
    Version,
    pkt_line::{self, Packet},
};
use crate::repository::{
    Error, Repositories,
    refs::{self, Entry},
};

/// The agent we call ourselves.
pub const AGENT: &str = concat!("agent=graspd/", env!("CARGO_PKG_VERSION"));

/// Capabilities of upload-pack in v0 and v1. What is here, `git upload-pack` does for us.
const UPLOAD_CAPABILITIES: &str = "multi_ack thin-pack side-band side-band-64k ofs-delta shallow \
     deepen-since deepen-not deepen-relative no-progress include-tag multi_ack_detailed \
     allow-tip-sha1-in-want allow-reachable-sha1-in-want no-done filter object-format=sha1";

/// Capabilities of upload-pack in v2.
const V2_CAPABILITIES: &[&str] = &[
    "version 2",
    AGENT,
    "ls-refs=unborn",
    "fetch=shallow wait-for-done filter",
    "server-option",
    "object-format=sha1",
];

/// Capabilities of receive-pack: what `receive_pack.rs` does.
const RECEIVE_CAPABILITIES: &str = "report-status report-status-v2 delete-refs side-band-64k quiet \
     atomic ofs-delta push-options object-format=sha1";

/// About how many bytes are made at once.
const PIECE: usize = 32 * 1024;

/// What `info/refs` says to a reader of v2: nothing of the repository.
pub fn capabilities() -> Bytes {
    let mut out = BytesMut::new();
    for capability in V2_CAPABILITIES {
        pkt_line::put_parts(&mut out, &[capability.as_bytes(), b"\n"]);
    }
    out.extend_from_slice(pkt_line::FLUSH);
    out.freeze()
}

/// Lines of an answer, made as they are taken.
type Lines = Box<dyn Iterator<Item = Line> + Send>;

/// One line of an advertisement.
struct Line {
    oid: Oid,
    name: String,
    /// Behind the name, with its separator.
    tail: String,
}

/// The hex digits of an object id, without the cost of formatting: there may be 50,000.
fn hex(oid: Oid) -> [u8; 40] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 40];
    for (pair, byte) in text.chunks_exact_mut(2).zip(oid.as_bytes()) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 15)];
    }
    text
}

/// Turns lines into pieces of about [`PIECE`] bytes, `head` before the first and a flush behind the
/// last.
fn pieces(head: BytesMut, lines: Lines) -> impl Iterator<Item = Bytes> + Send {
    let mut state = Some((head, lines));
    std::iter::from_fn(move || {
        let (mut out, mut lines) = state.take()?;
        loop {
            let Some(line) = lines.next() else {
                out.extend_from_slice(pkt_line::FLUSH);
                return Some(out.freeze());
            };
            let oid = hex(line.oid);
            let (name, tail) = (line.name.as_bytes(), line.tail.as_bytes());
            pkt_line::put_parts(&mut out, &[&oid, b" ", name, tail, b"\n"]);
            if out.len() >= PIECE {
                state = Some((BytesMut::with_capacity(PIECE + 1024), lines));
                return Some(out.freeze());
            }
        }
    })
}

/// The answer to `info/refs`, in pieces.
pub type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;

fn preamble(service: &str, version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    pkt_line::put(&mut out, format!("# service={service}\n").as_bytes());
    out.extend_from_slice(pkt_line::FLUSH);
    if version == Version::V1 {
        pkt_line::put(&mut out, b"version 1\n");
    }
    out
}

/// Gives the first line the capabilities; without lines there is one for them alone.
fn with_capabilities(
    mut lines: impl Iterator<Item = Line> + Send + 'static,
    capabilities: &str,
) -> Lines {
    let mut first = lines.next().unwrap_or_else(|| Line {
        oid: Oid::ZERO,
        name: "capabilities^{}".to_owned(),
        tail: String::new(),
    });
    first.tail = format!("\0{capabilities} {AGENT}");
    Box::new(std::iter::once(first).chain(lines))
}

/// What a reader of v0 or v1 is told. Blocks.
pub fn upload(
    repositories: &Repositories,
    address: &Address,
    version: Version,
) -> Result<Pieces, Error> {
    let git = refs::open(&repositories.shown(address)?)?;
    let head = refs::head(&git);
    let entries = refs::list(&git, &[""], true)?;
    let born = entries
        .binary_search_by(|entry| entry.name.as_str().cmp(&head))
        .ok()
        .map(|at| entries[at].oid);
    let mut capabilities = UPLOAD_CAPABILITIES.to_owned();
    if born.is_some() {
        capabilities.push_str(" symref=HEAD:");
        capabilities.push_str(&head);
    }
    let head = born.map(|oid| Line {
        oid,
        name: "HEAD".to_owned(),
        tail: String::new(),
    });
    let lines = head
        .into_iter()
        .chain(entries.into_iter().flat_map(with_peeled));
    let lines = with_capabilities(lines, &capabilities);
    Ok(Box::new(pieces(
        preamble("git-upload-pack", version),
        lines,
    )))
}

fn with_peeled(entry: Entry) -> impl Iterator<Item = Line> {
    let peeled = entry.peeled.map(|oid| Line {
        oid,
        name: format!("{}^{{}}", entry.name),
        tail: String::new(),
    });
    let line = Line {
        oid: entry.oid,
        name: entry.name,
        tail: String::new(),
    };
    std::iter::once(line).chain(peeled)
}

/// What a pusher is told: the refs that objects may lean on, and what the pool has beyond. Blocks.
pub fn receive(
    repositories: &Repositories,
    address: &Address,
    version: Version,
) -> Result<Pieces, Error> {
    let view = repositories.shown(address)?;
    let git = refs::open(&view)?;
    let staged = repositories.staged_refs(&view)?;
    let mut entries = refs::list(&git, &[""], false)?;
    entries.retain(|entry| !staged.contains(&entry.name));
    let haves = repositories.haves(address)?.into_iter().map(|oid| Line {
        oid,
        name: ".have".to_owned(),
        tail: String::new(),
    });
    let lines = entries.into_iter().flat_map(with_peeled).chain(haves);
    let lines = with_capabilities(lines, RECEIVE_CAPABILITIES);
    Ok(Box::new(pieces(
        preamble("git-receive-pack", version),
        lines,
    )))
}

/// What a v2 client wants listed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LsRefs {
    symrefs: bool,
    peel: bool,
    unborn: bool,
    prefixes: Vec<String>,
}

/// More prefixes than this mean all refs, as with git.
const PREFIXES: usize = 10_000;

/// The most bytes of one request, its packets' heads among them: a few kilobytes may unpack to any number.
const LARGEST: usize = 2 << 20;

impl LsRefs {
    /// Reads the rest of the request, from behind `command=ls-refs`.
    pub async fn read(body: &mut (impl AsyncBufRead + Unpin)) -> Result<Self, String> {
        let mut request = Self::default();
        let (mut arguments, mut too_many) = (false, false);
        let mut bytes = 0;
        loop {
            let packet = pkt_line::read(body).await.map_err(|e| e.to_string())?;
            bytes += pkt_line::HEAD;
            if let Some(Packet::Line(line)) = &packet {
                bytes += line.len();
            }
            if bytes > LARGEST {
                return Err(format!("a request for refs has {LARGEST} bytes at most"));
            }
            let line = match packet {
                None | Some(Packet::Flush) => break,
                Some(Packet::Delimiter) => {
                    arguments = true;
                    continue;
                }
                Some(Packet::ResponseEnd) => return Err("unexpected packet".to_owned()),
                Some(Packet::Line(line)) => line,
            };
            let text = String::from_utf8_lossy(Packet::text(&line));
            if !arguments {
                match text.strip_prefix("object-format=") {
                    None | Some("sha1") => continue,
                    Some(_) => return Err("only object-format=sha1 is known here".to_owned()),
                }
            }
            match &*text {
                "symrefs" => request.symrefs = true,
                "peel" => request.peel = true,
                "unborn" => request.unborn = true,
                argument => match argument.strip_prefix("ref-prefix ") {
                    Some(prefix) if request.prefixes.len() < PREFIXES => {
                        request.prefixes.push(prefix.to_owned());
                    }
                    Some(_) => too_many = true,
                    None => return Err(format!("unexpected line: '{argument}'")),
                },
            }
        }
        if too_many {
            request.prefixes.clear();
        }
        Ok(request)
    }

    /// The answer. Blocks.
    pub fn answer(self, repositories: &Repositories, address: &Address) -> Result<Pieces, Error> {
        let git = refs::open(&repositories.shown(address)?)?;
        let prefixes: Vec<&str> = match self.prefixes.is_empty() {
            true => vec![""],
            false => self.prefixes.iter().map(String::as_str).collect(),
        };
        let mut out = BytesMut::new();
        if prefixes.iter().any(|prefix| "HEAD".starts_with(prefix)) {
            let head = refs::head(&git);
            let born = refs::resolve(&git, "HEAD").ok().flatten();
            let target = match self.symrefs && !head.is_empty() {
                true => format!(" symref-target:{head}"),
                false => String::new(),
            };
            match born {
                Some(oid) => {
                    pkt_line::put(&mut out, format!("{oid} HEAD{target}\n").as_bytes());
                }
                None if self.unborn && !target.is_empty() => {
                    pkt_line::put(&mut out, format!("unborn HEAD{target}\n").as_bytes());
                }
                None => {}
            }
        }
        let entries = refs::list(&git, &prefixes, self.peel)?;
        let lines = entries.into_iter().map(|entry| Line {
            oid: entry.oid,
            name: entry.name,
            tail: match entry.peeled {
                Some(peeled) => format!(" peeled:{peeled}"),
                None => String::new(),
            },
        });
        Ok(Box::new(pieces(out, Box::new(lines))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_for_refs_is_read_no_further_than_it_may_be_long() {
        let request = |count: usize, prefix: &str| {
            let mut out = BytesMut::new();
            for _ in 0..count {
                pkt_line::put(&mut out, format!("ref-prefix {prefix}").as_bytes());
            }
            out
        };
        let read = async |out: BytesMut| LsRefs::read(&mut &out[..]).await;
        let all = read(request(PREFIXES + 1, "refs/heads/x")).await.unwrap();
        assert!(all.prefixes.is_empty());
        for (count, prefix) in [(LARGEST / 16, "x"), (40, &"x".repeat(60_000))] {
            let refused = read(request(count, prefix)).await.unwrap_err();
            assert!(refused.contains("at most"), "{refused}");
        }
        let none = b"0004".repeat(LARGEST / 4 + 1);
        assert!(LsRefs::read(&mut &none[..]).await.is_err());
    }
}
