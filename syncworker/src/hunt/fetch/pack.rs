//! The answer to a request for objects: what precedes the pack, and the pack, taken out of its sideband.

use std::fmt;

use bytes::{Bytes, BytesMut};
use grasp_proto::{contract::relay::failed::Why, words::Oid};

use super::{
    FetchError,
    lines::{Line, Lines, text},
    told,
};

/// Most lines of an answer before its pack.
pub(super) const MOST_LINES: usize = 1000;
/// Most bytes of an answer that are not the pack's: progress, and signs of life.
const MOST_TALK: usize = 16 << 20;
/// A pack's head: its name, version, and how many objects.
pub(super) const PACK_HEAD: usize = 12;

/// How a request for a pack begins to be answered.
pub enum Begun {
    /// As it is wanted.
    Pack(Box<Pack>),
    /// In the server's words.
    Refused(String),
}

/// What an answer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// v2: sections, the pack's last, in a sideband.
    Sections,
    /// v0: `ACK`s and `NAK`s, then a sideband.
    Sideband,
    /// v0 of a server that has no sideband: `ACK`s and `NAK`s, then the pack as it is.
    Plain,
}

/// Reads up to where the pack has begun.
pub async fn begin(lines: Lines, shape: Shape, max: u64) -> Result<Begun, FetchError> {
    match opened(lines, shape, max).await {
        Ok(pack) => Ok(Begun::Pack(Box::new(pack))),
        Err(Trouble::Said(words)) => Ok(Begun::Refused(words)),
        Err(Trouble::Other(error)) => Err(error),
    }
}

async fn opened(mut lines: Lines, shape: Shape, max: u64) -> Result<Pack, Trouble> {
    let first = front(&mut lines, shape).await?;
    let mut bands = Bands {
        lines,
        plain: shape == Shape::Plain,
        first,
        talk: 0,
    };
    let mut head = BytesMut::new();
    while head.len() < PACK_HEAD {
        match bands.next().await? {
            Some(piece) => head.extend_from_slice(&piece),
            None => return Err(FetchError::unwell("the pack ends before it began").into()),
        }
    }
    if !head.starts_with(b"PACK\0\0\0\x02") && !head.starts_with(b"PACK\0\0\0\x03") {
        return Err(FetchError::unwell("what it sends is no pack").into());
    }
    if head[8..PACK_HEAD] == [0; 4] {
        return Err(FetchError::not_there("its pack is empty").into());
    }
    bands.lines.keep_pace();
    let mut pack = Pack {
        bands,
        begun: None,
        bytes: 0,
        max,
        asked: Vec::new(),
        ended: None,
    };
    pack.count(head.len())?;
    pack.begun = Some(head.freeze());
    Ok(pack)
}

/// Reads what precedes the sideband; its first packet, where nothing else tells that it has begun.
async fn front(lines: &mut Lines, shape: Shape) -> Result<Option<Bytes>, Trouble> {
    for _ in 0..MOST_LINES {
        // Its name is no length of a line.
        if shape == Shape::Plain && lines.begin_with(b"PACK").await? {
            return Ok(None);
        }
        let line = match lines.next().await? {
            None => return Err(FetchError::unwell("the answer ends before the pack").into()),
            Some(Line::Data(line)) => line,
            // A section of v2 ends.
            Some(_) => continue,
        };
        if let Some(words) = line.strip_prefix(b"ERR ") {
            return Err(Trouble::Said(told(words)));
        }
        if line.starts_with(b"shallow ") {
            return Err(FetchError::shallow().into());
        }
        if shape == Shape::Sections && text(&line) == b"packfile" {
            return Ok(None);
        }
        // v0 has `ACK`s and `NAK`s in front, and no word for where they end.
        if shape == Shape::Sideband && matches!(line.first(), Some(1..=3)) {
            return Ok(Some(line));
        }
    }
    Err(FetchError::unwell("there is no pack in the answer").into())
}

/// A pack, as it comes. Of it no more than a piece is in memory; nothing of it was looked at.
pub struct Pack {
    bands: Bands,
    /// What came of it already.
    begun: Option<Bytes>,
    bytes: u64,
    max: u64,
    pub(super) asked: Vec<Oid>,
    /// How it ended; asked again, it says so again.
    ended: Option<Result<(), FetchError>>,
}

impl fmt::Debug for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pack")
            .field("bytes", &self.bytes)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

impl Pack {
    /// The next bytes of it, 64 KiB at most. `None`: it is whole. May be dropped while it waits, and
    /// called again.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        if let Some(begun) = self.begun.take() {
            return Ok(Some(begun));
        }
        if let Some(ended) = &self.ended {
            return ended.clone().map(|()| None);
        }
        let next = self.more().await;
        match &next {
            Ok(Some(_)) => {}
            Ok(None) => self.ended = Some(Ok(())),
            Err(error) => self.ended = Some(Err(error.clone())),
        }
        next
    }

    async fn more(&mut self) -> Result<Option<Bytes>, FetchError> {
        let piece = self.bands.next().await.map_err(|trouble| match trouble {
            Trouble::Other(error) => error,
            Trouble::Said(words) => FetchError::unwell(format!("it says: {words}")),
        })?;
        if let Some(piece) = &piece {
            self.count(piece.len())?;
        }
        Ok(piece)
    }

    fn count(&mut self, bytes: usize) -> Result<(), FetchError> {
        self.bytes += bytes as u64;
        if self.bytes > self.max {
            let detail = format!("the pack is larger than {} bytes", self.max);
            return Err(FetchError::new(Why::Large, detail));
        }
        Ok(())
    }

    /// Those of the wanted objects that the server was asked for in the end.
    pub fn asked(&self) -> &[Oid] {
        &self.asked
    }

    /// Bytes of the pack so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Why the sideband ended early.
enum Trouble {
    /// The server says why.
    Said(String),
    Other(FetchError),
}

impl From<FetchError> for Trouble {
    fn from(error: FetchError) -> Self {
        Self::Other(error)
    }
}

/// A sideband (gitprotocol-pack), of which only the pack is of interest.
struct Bands {
    lines: Lines,
    /// It is none, but the pack itself.
    plain: bool,
    /// A packet that was read already.
    first: Option<Bytes>,
    /// Bytes that were not the pack's.
    talk: usize,
}

impl Bands {
    /// The next piece of the pack; `None` at its proper end.
    async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        if self.plain {
            // Whether it is whole, only its reader can tell.
            let piece = self.lines.rest().await?;
            self.lines.came(piece.as_ref().map_or(0, Bytes::len));
            return Ok(piece);
        }
        loop {
            let line = match self.first.take() {
                Some(first) => Some(Line::Data(first)),
                None => self.lines.next().await?,
            };
            let mut line = match line {
                None => return Err(FetchError::unwell("the pack breaks off").into()),
                Some(Line::Data(line)) => line,
                Some(Line::Flush | Line::ResponseEnd) => return Ok(None),
                Some(Line::Delimiter) => {
                    return Err(FetchError::unwell("there is no pack in the answer").into());
                }
            };
            let length = line.len();
            match (!line.is_empty()).then(|| line.split_to(1)[0]) {
                Some(1) if !line.is_empty() => {
                    self.lines.came(line.len());
                    return Ok(Some(line));
                }
                // An empty piece is a sign of life.
                Some(1 | 2) => {}
                Some(3) => return Err(Trouble::Said(told(&line))),
                Some(b'E') if line.starts_with(b"RR ") => {
                    return Err(Trouble::Said(told(&line[3..])));
                }
                _ => return Err(FetchError::unwell("the answer has no such sideband").into()),
            }
            self.talk += 4 + length;
            if self.talk > MOST_TALK {
                return Err(FetchError::unwell("it talks instead of sending a pack").into());
            }
        }
    }
}
