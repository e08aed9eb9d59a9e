//! Packs that no git would make.

use std::io::Write as _;

use flate2::{Compression, write::ZlibEncoder};

/// Kinds of objects, as packs number them.
pub const COMMIT: u8 = 1;
pub const TREE: u8 = 2;
pub const BLOB: u8 = 3;
pub const TAG: u8 = 4;
/// A delta whose base stands so many bytes before it.
pub const OFS_DELTA: u8 = 6;

/// Seven bits to a byte, the lowest first.
pub fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push((value & 0x7f) as u8);
    bytes
}

/// An object as a pack has it, with what its header says of its size.
pub fn object(kind: u8, says: u64, base: &[u8], content: &[u8]) -> Vec<u8> {
    let first = kind << 4 | (says & 15) as u8;
    let mut out = match says >> 4 {
        0 => vec![first],
        rest => [vec![first | 0x80], number(rest)].concat(),
    };
    out.extend(base);
    let mut zlib = ZlibEncoder::new(out, Compression::best());
    zlib.write_all(content).unwrap();
    zlib.finish().unwrap()
}

/// The length of a pack's checksum, which is its end.
pub const CHECKSUM: usize = 20;

/// These objects as a pack, with a checksum that is none.
pub fn pack(objects: &[Vec<u8>]) -> Vec<u8> {
    let mut pack = b"PACK\0\0\0\x02".to_vec();
    pack.extend(u32::try_from(objects.len()).unwrap().to_be_bytes());
    pack.extend(objects.concat());
    pack.extend([7; CHECKSUM]);
    pack
}

/// What `copies` copy from.
pub const BASE: u64 = 0x1_0000;

/// A delta that copies the [`BASE`] bytes of its base until it has made so many.
pub fn copies(result: u64) -> Vec<u8> {
    // From the start, 64 KiB.
    let copies = vec![0x80; usize::try_from(result / BASE).unwrap()];
    [number(BASE), number(result), copies].concat()
}
