//! What a pack will be once it is inflated, read from its headers as it comes.
//!
//! A few kilobytes of pack can stand for gigabytes: zlib shrinks a thousandfold, and a delta of a few bytes
//! may copy its base again and again. Git allocates what the headers say. So every piece of a pack passes
//! through a [`PackScanner`] before git sees it, and a pack that says too much is refused there.
//!
//! The pack format: `gitformat-pack`. Object headers have the inflated size; the instructions of a delta
//! begin with the size of its base and of its result.

use flate2::{Decompress, FlushDecompress, Status};

/// What a pack may hold. Sizes are bytes after inflation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackLimits {
    /// Most objects.
    pub objects: u32,
    /// Largest blob that is stored whole: git streams it.
    pub blob_bytes: u64,
    /// Largest commit, tree or tag: git holds one in memory.
    pub metadata_bytes: u64,
    /// Largest result of a delta, and largest list of its instructions: git holds both in memory.
    pub delta_bytes: u64,
    /// How much all objects together may be, whatever the pack's own size.
    pub inflated_bytes: u64,
    /// How much more, for each byte of the pack that has come.
    pub inflated_ratio: u64,
}

/// Why a pack is refused before git has it. The text is for the git user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPack {
    /// It does not begin as a pack does.
    #[error("this is not a pack")]
    NotAPack,
    /// A header or a stream that git could not read either.
    #[error("the pack is damaged: {0}")]
    Damaged(&'static str),
    /// More objects than one pack may have.
    #[error("the pack has {count} objects, and one push may bring {most}: push in parts")]
    TooMany {
        /// What it says.
        count: u32,
        /// What is allowed.
        most: u32,
    },
    /// An object that is too large.
    #[error(
        "the pack has a {kind} of {bytes} bytes, and {most} is the most that is taken here{hint}"
    )]
    TooLarge {
        /// What kind of object.
        kind: &'static str,
        /// What it says.
        bytes: u64,
        /// What is allowed.
        most: u64,
        /// What the client can do about it.
        hint: &'static str,
    },
    /// All objects together are too large for what came.
    #[error(
        "the objects of the pack are more than {most} bytes when they are unpacked, which is more than is \
         taken here for a pack of this size"
    )]
    Inflates {
        /// What is allowed.
        most: u64,
    },
}

/// How an object is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Metadata(&'static str),
    Blob,
    DeltaOfOffset,
    DeltaOfId,
}

impl Stored {
    fn from_type(number: u8) -> Result<Self, BadPack> {
        Ok(match number {
            1 => Self::Metadata("commit"),
            2 => Self::Metadata("tree"),
            3 => Self::Blob,
            4 => Self::Metadata("tag"),
            6 => Self::DeltaOfOffset,
            7 => Self::DeltaOfId,
            _ => return Err(BadPack::Damaged("an object of no known type")),
        })
    }

    fn is_delta(self) -> bool {
        matches!(self, Self::DeltaOfOffset | Self::DeltaOfId)
    }
}

/// A number in groups of seven bits, the lowest first, as headers of objects and deltas have it.
#[derive(Debug, Clone, Copy, Default)]
struct Number {
    value: u64,
    shift: u32,
}

impl Number {
    /// Adds the next byte; the number when that was its last.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, BadPack> {
        let bits = u64::from(byte & 0x7f);
        if self.shift > 63 || (bits << self.shift) >> self.shift != bits {
            return Err(BadPack::Damaged("a size that no object has"));
        }
        self.value |= bits << self.shift;
        self.shift += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

/// The two numbers that a delta's instructions begin with.
#[derive(Debug, Clone, Copy, Default)]
struct DeltaHead {
    base: Option<u64>,
    result: Option<u64>,
    number: Number,
}

impl DeltaHead {
    /// Reads on in the instructions; the size of the result when it was read just now.
    fn read(&mut self, instructions: &[u8]) -> Result<Option<u64>, BadPack> {
        for byte in instructions {
            if self.result.is_some() {
                return Ok(None);
            }
            let Some(number) = self.number.push(*byte)? else {
                continue;
            };
            self.number = Number::default();
            if self.base.replace(number).is_some() {
                self.result = Some(number);
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// What the scanner reads next.
#[derive(Debug, Clone, Copy)]
enum Next {
    PackHeader {
        read: [u8; 12],
        length: usize,
    },
    ObjectHeader {
        stored: Option<Stored>,
        size: Number,
    },
    BaseOffset {
        length: usize,
        stored: Stored,
        size: u64,
    },
    BaseId {
        left: usize,
        stored: Stored,
        size: u64,
    },
    Content {
        stored: Stored,
        size: u64,
        inflated: u64,
        delta: DeltaHead,
    },
    Checksum {
        left: usize,
    },
    Nothing,
}

const OBJECT_HEADER: Next = Next::ObjectHeader {
    stored: None,
    size: Number { value: 0, shift: 0 },
};
const CHECKSUM: usize = 20;
const OBJECT_ID: usize = 20;
/// The longest offset of a base, in bytes.
const LONGEST_OFFSET: usize = 10;
/// What is inflated at once, into nothing.
const WINDOW: usize = 32 * 1024;

/// Reads a pack piece by piece. Keeps a window of one object and a few numbers, whatever the pack's size.
pub struct PackScanner {
    limits: PackLimits,
    next: Next,
    objects_left: u32,
    received: u64,
    /// How much had come by the header of the current object.
    received_by_header: u64,
    inflated: u64,
    largest_in_memory: u64,
    inflater: Decompress,
    window: Box<[u8]>,
}

impl PackScanner {
    /// A scanner for one pack.
    pub fn new(limits: PackLimits) -> Self {
        Self {
            limits,
            next: Next::PackHeader {
                read: [0; 12],
                length: 0,
            },
            objects_left: 0,
            received: 0,
            received_by_header: 0,
            inflated: 0,
            largest_in_memory: 0,
            inflater: Decompress::new(true),
            window: vec![0; WINDOW].into_boxed_slice(),
        }
    }

    /// Whether the pack has come to its end. What a body has behind it is no part of it.
    pub fn is_done(&self) -> bool {
        matches!(self.next, Next::Nothing)
    }

    /// The largest object so far, in bytes, that git has to hold in memory as a whole.
    pub fn largest_in_memory(&self) -> u64 {
        self.largest_in_memory
    }

    /// Reads the next piece. After an error the pack is not read on. Takes time in proportion to what the
    /// piece inflates to: for a blocking thread.
    pub fn scan(&mut self, mut piece: &[u8]) -> Result<(), BadPack> {
        while let [byte, rest @ ..] = piece {
            let (byte, rest) = (*byte, rest);
            let step = match self.next {
                Next::Nothing => return Ok(()),
                Next::Content {
                    stored,
                    size,
                    inflated,
                    delta,
                } => {
                    let consumed = self.inflate(piece, stored, size, inflated, delta)?;
                    self.received += consumed as u64;
                    piece = &piece[consumed..];
                    continue;
                }
                Next::PackHeader { mut read, length } => {
                    read[length] = byte;
                    match length + 1 {
                        12 => self.begin(read)?,
                        length => Next::PackHeader { read, length },
                    }
                }
                Next::ObjectHeader {
                    stored: None,
                    mut size,
                } => {
                    // Type and the lowest four bits of the size.
                    let stored = Stored::from_type(byte >> 4 & 7)?;
                    size.value = u64::from(byte & 15);
                    size.shift = 4;
                    match byte & 0x80 {
                        0 => self.begin_object(stored, size.value)?,
                        _ => Next::ObjectHeader {
                            stored: Some(stored),
                            size,
                        },
                    }
                }
                Next::ObjectHeader {
                    stored: Some(stored),
                    mut size,
                } => match size.push(byte)? {
                    Some(size) => self.begin_object(stored, size)?,
                    None => Next::ObjectHeader {
                        stored: Some(stored),
                        size,
                    },
                },
                Next::BaseOffset { length, .. } if length == LONGEST_OFFSET => {
                    return Err(BadPack::Damaged("a base at no offset"));
                }
                Next::BaseOffset {
                    length,
                    stored,
                    size,
                } => match byte & 0x80 {
                    0 => self.content(stored, size),
                    _ => Next::BaseOffset {
                        length: length + 1,
                        stored,
                        size,
                    },
                },
                Next::BaseId { left, stored, size } => match left {
                    1 => self.content(stored, size),
                    left => Next::BaseId {
                        left: left - 1,
                        stored,
                        size,
                    },
                },
                Next::Checksum { left: 1 } => Next::Nothing,
                Next::Checksum { left } => Next::Checksum { left: left - 1 },
            };
            self.next = step;
            self.received += 1;
            piece = rest;
        }
        Ok(())
    }

    fn begin(&mut self, header: [u8; 12]) -> Result<Next, BadPack> {
        let [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, count @ ..] = header else {
            return Err(BadPack::NotAPack);
        };
        let count = u32::from_be_bytes(count);
        if count > self.limits.objects {
            let most = self.limits.objects;
            return Err(BadPack::TooMany { count, most });
        }
        self.objects_left = count;
        Ok(self.next_object())
    }

    fn next_object(&self) -> Next {
        match self.objects_left {
            0 => Next::Checksum { left: CHECKSUM },
            _ => OBJECT_HEADER,
        }
    }

    fn begin_object(&mut self, stored: Stored, size: u64) -> Result<Next, BadPack> {
        self.received_by_header = self.received;
        let limits = self.limits;
        let (kind, most, hint) = match stored {
            Stored::Blob => ("file", limits.blob_bytes, ""),
            Stored::Metadata(kind) => (kind, limits.metadata_bytes, ""),
            Stored::DeltaOfOffset | Stored::DeltaOfId => {
                ("delta", limits.delta_bytes, WITHOUT_DELTAS)
            }
        };
        if size > most {
            return Err(BadPack::TooLarge {
                kind,
                bytes: size,
                most,
                hint,
            });
        }
        if stored != Stored::Blob {
            self.largest_in_memory = self.largest_in_memory.max(size);
        }
        self.count(size)?;
        Ok(match stored {
            Stored::DeltaOfOffset => Next::BaseOffset {
                length: 0,
                stored,
                size,
            },
            Stored::DeltaOfId => Next::BaseId {
                left: OBJECT_ID,
                stored,
                size,
            },
            Stored::Blob | Stored::Metadata(_) => self.content(stored, size),
        })
    }

    /// Counts what git will inflate or put together.
    fn count(&mut self, bytes: u64) -> Result<(), BadPack> {
        self.inflated = self.inflated.saturating_add(bytes);
        let ratio = self.limits.inflated_ratio;
        let for_what_came = ratio.saturating_mul(self.received_by_header);
        let most = self.limits.inflated_bytes.saturating_add(for_what_came);
        match self.inflated > most {
            true => Err(BadPack::Inflates { most }),
            false => Ok(()),
        }
    }

    fn content(&mut self, stored: Stored, size: u64) -> Next {
        self.inflater.reset(true);
        Next::Content {
            stored,
            size,
            inflated: 0,
            delta: DeltaHead::default(),
        }
    }

    /// Inflates some of the current object; how much of the piece that took.
    fn inflate(
        &mut self,
        piece: &[u8],
        stored: Stored,
        size: u64,
        mut inflated: u64,
        mut delta: DeltaHead,
    ) -> Result<usize, BadPack> {
        let (read, written) = (self.inflater.total_in(), self.inflater.total_out());
        let status = self
            .inflater
            .decompress(piece, &mut self.window, FlushDecompress::None)
            .map_err(|_| BadPack::Damaged("an object cannot be inflated"))?;
        let consumed = usize::try_from(self.inflater.total_in() - read).unwrap_or(piece.len());
        let new = self.inflater.total_out() - written;
        inflated += new;
        if inflated > size {
            return Err(BadPack::Damaged("an object is larger than its header says"));
        }
        if stored.is_delta() {
            let new = usize::try_from(new).unwrap_or(WINDOW).min(WINDOW);
            if let Some(result) = delta.read(&self.window[..new])? {
                let most = self.limits.delta_bytes;
                if result > most {
                    return Err(BadPack::TooLarge {
                        kind: "delta that makes an object",
                        bytes: result,
                        most,
                        hint: WITHOUT_DELTAS,
                    });
                }
                self.largest_in_memory = self.largest_in_memory.max(result);
                self.count(result)?;
            }
        }
        self.next = match status {
            Status::StreamEnd => {
                if inflated != size {
                    return Err(BadPack::Damaged(
                        "an object is smaller than its header says",
                    ));
                }
                if stored.is_delta() && delta.result.is_none() {
                    return Err(BadPack::Damaged("a delta without a result"));
                }
                self.objects_left -= 1;
                self.next_object()
            }
            Status::Ok | Status::BufError if consumed == 0 && new == 0 => {
                return Err(BadPack::Damaged("an object cannot be inflated"));
            }
            Status::Ok | Status::BufError => Next::Content {
                stored,
                size,
                inflated,
                delta,
            },
        };
        Ok(consumed)
    }
}

/// What a client with versions of large files can do.
const WITHOUT_DELTAS: &str =
    "; set core.bigFileThreshold to 16m, run `git repack -adF` and push again";

#[cfg(test)]
mod tests;
