//! Framing of git's wire protocol (gitprotocol-common): pkt-lines, and sideband in them.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use crate::repository::intake::piece;

/// The longest payload of one line.
pub const MAX_PAYLOAD: usize = 65_516;

/// What stands before the payload.
pub const HEAD: usize = 4;

/// The flush packet.
pub const FLUSH: &[u8] = b"0000";

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A line, its newline included.
    Line(Vec<u8>),
    /// `0000`: the end of a section.
    Flush,
    /// `0001`: v2 has arguments behind it.
    Delimiter,
    /// `0002`: the end of a response.
    ResponseEnd,
}

impl Packet {
    /// A line's content without its newline.
    pub fn text(line: &[u8]) -> &[u8] {
        line.strip_suffix(b"\n").unwrap_or(line)
    }
}

/// What is no packet.
#[derive(Debug, thiserror::Error)]
pub enum BadPacket {
    /// The length is not four hex digits, is 3, or more than a line may have.
    #[error("a packet's length is not one")]
    Length,
    /// The stream ended inside a packet.
    #[error("the request ends inside a packet")]
    CutShort,
    /// The stream broke.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Reads exactly `want` bytes; fewer only if the stream ended before the first.
async fn exactly(
    body: &mut (impl AsyncBufRead + Unpin),
    want: usize,
) -> Result<Vec<u8>, BadPacket> {
    let mut read = Vec::with_capacity(want);
    while read.len() < want {
        let bytes = piece(body).await?;
        if bytes.is_empty() {
            return match read.is_empty() {
                true => Ok(read),
                false => Err(BadPacket::CutShort),
            };
        }
        let count = bytes.len().min(want - read.len());
        read.extend_from_slice(&bytes[..count]);
        body.consume(count);
    }
    Ok(read)
}

/// What the four digits before a packet say.
fn length(head: &[u8]) -> Result<usize, BadPacket> {
    head.iter().try_fold(0, |length, digit| {
        let digit = char::from(*digit).to_digit(16).ok_or(BadPacket::Length)?;
        Ok(length * 16 + digit as usize)
    })
}

/// Reads one packet; `None` where the stream ends.
pub async fn read(body: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Packet>, BadPacket> {
    let head = exactly(body, 4).await?;
    if head.is_empty() {
        return Ok(None);
    }
    match length(&head)? {
        0 => Ok(Some(Packet::Flush)),
        1 => Ok(Some(Packet::Delimiter)),
        2 => Ok(Some(Packet::ResponseEnd)),
        3 => Err(BadPacket::Length),
        // As git does: longer ones could not be handed on.
        length if length > MAX_PAYLOAD + 4 => Err(BadPacket::Length),
        4 => Ok(Some(Packet::Line(Vec::new()))),
        length => {
            let line = exactly(body, length - 4).await?;
            match line.is_empty() {
                true => Err(BadPacket::CutShort),
                false => Ok(Some(Packet::Line(line))),
            }
        }
    }
}

/// Appends one line. Longer than [`MAX_PAYLOAD`] it is cut: only texts for people can be.
pub fn put(out: &mut BytesMut, payload: &[u8]) {
    put_parts(out, &[payload]);
}

/// Appends one line made of several parts.
pub fn put_parts(out: &mut BytesMut, parts: &[&[u8]]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let length = length.min(MAX_PAYLOAD);
    let total = length + 4;
    for shift in [12, 8, 4, 0] {
        out.put_u8(HEX[(total >> shift) & 15]);
    }
    let mut left = length;
    for part in parts {
        let count = part.len().min(left);
        out.extend_from_slice(&part[..count]);
        left -= count;
    }
}

/// One line by itself.
pub fn line(payload: impl AsRef<[u8]>) -> Bytes {
    let mut out = BytesMut::new();
    put(&mut out, payload.as_ref());
    out.freeze()
}

/// Which band of a sideband a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Band {
    /// What the client's program reads.
    Data = 1,
    /// What the client's user reads.
    Progress = 2,
    /// What the client's user reads last: there is no more.
    Error = 3,
}

/// The most bytes of one sideband packet, after `side-band-64k`.
const BAND_64K: usize = MAX_PAYLOAD - 1;

/// Appends `payload` to a band, in as many packets as it takes.
pub fn put_band(out: &mut BytesMut, band: Band, payload: &[u8]) {
    for chunk in payload.chunks(BAND_64K) {
        put_parts(out, &[&[band as u8], chunk]);
    }
}

/// Where in a stream of lines one is whose bytes pass by.
#[derive(Debug, Default)]
pub struct Passing {
    /// Digits of a length that is not whole yet.
    head: Vec<u8>,
    /// Bytes to the end of the line.
    left: usize,
    /// The first byte of the line comes next.
    is_new: bool,
    is_banded: bool,
    /// These are no lines.
    is_lost: bool,
}

impl Passing {
    /// The next bytes.
    pub fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_lost {
            if self.left == 0 {
                let count = bytes.len().min(4 - self.head.len());
                self.head.extend_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                if self.head.len() == 4 {
                    self.begin();
                }
                continue;
            }
            if std::mem::take(&mut self.is_new) {
                self.is_banded = matches!(bytes[0], 1..=3);
            }
            let count = bytes.len().min(self.left);
            self.left -= count;
            bytes = &bytes[count..];
        }
    }

    fn begin(&mut self) {
        match length(&self.head) {
            Err(_) | Ok(3) => self.is_lost = true,
            Ok(length) => self.left = length.saturating_sub(4),
        }
        self.is_new = self.left > 0;
        self.head.clear();
    }

    /// How many bytes are surely missing to the end of a line that has begun; `None`: these are no lines.
    pub fn wanted(&self) -> Option<usize> {
        let of_head = (4 - self.head.len()) % 4;
        (!self.is_lost).then_some(self.left.max(of_head))
    }

    /// Whether the last line was of a sideband.
    pub fn is_banded(&self) -> bool {
        self.is_banded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::runtime::Builder;

    use super::*;

    fn read_all(mut bytes: &[u8]) -> Result<Vec<Packet>, BadPacket> {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut packets = Vec::new();
            while let Some(packet) = read(&mut bytes).await? {
                packets.push(packet);
            }
            Ok(packets)
        })
    }

    #[test]
    fn special_packets() {
        assert_eq!(
            read_all(b"0000000100020006a\n0004").unwrap(),
            [
                Packet::Flush,
                Packet::Delimiter,
                Packet::ResponseEnd,
                Packet::Line(b"a\n".to_vec()),
                Packet::Line(vec![])
            ]
        );
        for bad in [&b"0003"[..], b"00", b"0006a", b"0006", b"xyz1"] {
            assert!(read_all(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_line_is_longer_than_it_may_be() {
        let line =
            |length: usize| [format!("{length:04x}").as_bytes(), &vec![b'x'; length - 4]].concat();
        assert!(read_all(&line(MAX_PAYLOAD + 4)).is_ok());
        assert!(matches!(
            read_all(&line(MAX_PAYLOAD + 5)),
            Err(BadPacket::Length)
        ));
    }

    proptest! {
        #[test]
        fn what_is_put_is_read(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let mut out = BytesMut::new();
            for line in &lines {
                put(&mut out, line);
            }
            let packets: Vec<_> = lines.into_iter().map(Packet::Line).collect();
            prop_assert_eq!(read_all(&out).unwrap(), packets);
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_all(&bytes);
        }

        #[test]
        fn a_band_carries_everything(length in 0_usize..200_000) {
            let payload = vec![7; length];
            let mut out = BytesMut::new();
            put_band(&mut out, Band::Data, &payload);
            let mut read = Vec::new();
            for packet in read_all(&out).unwrap() {
                let Packet::Line(line) = packet else { panic!() };
                prop_assert_eq!(line[0], 1);
                read.extend_from_slice(&line[1..]);
            }
            prop_assert_eq!(read, payload);
        }
    }
}
