//! Messages that are too long are left out of what a remote relay sends, as if it had not sent them.
//!
//! The websocket library ends a connection that brings one. But a relay whose stored events include
//! one that we would never take would be lost for ever by that, and there are relays without a limit.
//! So frames (RFC 6455) are looked at before the library sees them: their headers only, and nothing of
//! what is left out is kept.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What ends a message whose rest is left out: a byte that is in no text.
pub const CUT: u8 = 0xff;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const FIRST_CONTROL: u8 = 8;
const FIN: u8 = 0x80;

/// The longest header of a frame.
const LONGEST_HEADER: usize = 14;

/// Where in the stream we are.
#[derive(Debug, Clone, Copy)]
enum At {
    /// In the answer to the handshake, with so many bytes of its end seen.
    Handshake(usize),
    /// In the header of a frame.
    Header,
    /// In the payload of a frame, so many bytes before its end.
    Payload { left: u64, kept: bool },
}

/// The decision, without I/O: bytes in, the bytes that are kept out. Holds one header.
#[derive(Debug)]
struct Sieve {
    longest: u64,
    at: At,
    header: Vec<u8>,
    /// The length so far of a message that comes in several frames.
    begun: u64,
    /// Of such a message the rest is left out.
    leaving_out: bool,
    left_out: u64,
}

impl Sieve {
    fn new(longest: usize) -> Self {
        Self {
            longest: longest as u64,
            at: At::Handshake(0),
            header: Vec::with_capacity(LONGEST_HEADER),
            begun: 0,
            leaving_out: false,
            left_out: 0,
        }
    }

    fn pass(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while let Some((first, rest)) = input.split_first() {
            match &mut self.at {
                At::Handshake(seen) => {
                    out.push(*first);
                    let end = b"\r\n\r\n";
                    *seen = match *first == end[*seen] {
                        true => *seen + 1,
                        false => usize::from(*first == end[0]),
                    };
                    if *seen == end.len() {
                        self.at = At::Header;
                    }
                    input = rest;
                }
                At::Header => {
                    self.header.push(*first);
                    input = rest;
                    if let Some(length) = self.length() {
                        let kept = self.keeps(length, out);
                        self.header.clear();
                        self.at = match length {
                            0 => At::Header,
                            left => At::Payload { left, kept },
                        };
                    }
                }
                At::Payload { left, kept } => {
                    let here = usize::try_from(*left).map_or(input.len(), |n| n.min(input.len()));
                    let (payload, rest) = input.split_at(here);
                    if *kept {
                        out.extend_from_slice(payload);
                    }
                    *left -= here as u64;
                    if *left == 0 {
                        self.at = At::Header;
                    }
                    input = rest;
                }
            }
        }
    }

    /// The length of the payload, once the header is complete.
    fn length(&self) -> Option<u64> {
        let second = *self.header.get(1)?;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (more, short) = match second & 0x7f {
            126 => (2, None),
            127 => (8, None),
            length => (0, Some(u64::from(length))),
        };
        if self.header.len() < 2 + more + mask {
            return None;
        }
        let long = self.header[2..2 + more].iter();
        Some(short.unwrap_or_else(|| long.fold(0, |sum, byte| sum << 8 | u64::from(*byte))))
    }

    /// Whether a frame is kept; its header is, then. What breaks the protocol is: the library says so.
    fn keeps(&mut self, length: u64, out: &mut Vec<u8>) -> bool {
        let (last, opcode) = (self.header[0] & FIN != 0, self.header[0] & 0x0f);
        if opcode >= FIRST_CONTROL {
            out.extend_from_slice(&self.header);
            return true;
        }
        let first = opcode != CONTINUATION;
        if first {
            (self.begun, self.leaving_out) = (0, false);
        } else if self.leaving_out {
            self.leaving_out = !last;
            return false;
        }
        if length > self.longest.saturating_sub(self.begun) {
            self.left_out += 1;
            self.leaving_out = !last;
            if !first {
                out.extend_from_slice(&[FIN | CONTINUATION, 1, CUT]);
            }
            return false;
        }
        self.begun += length;
        if first && !last {
            // It may have to be cut, perhaps within a character.
            self.header[0] = self.header[0] & 0xf0 | BINARY;
        }
        out.extend_from_slice(&self.header);
        true
    }
}

/// A connection without the messages that are too long. Text that came in several frames is binary
/// after that; what was cut ends in [`CUT`].
#[derive(Debug)]
pub struct WithoutOverlong<S> {
    stream: S,
    sieve: Sieve,
    /// What passed and is not read yet: one chunk at most.
    passed: Vec<u8>,
    read: usize,
    left_out: Arc<AtomicU64>,
}

impl<S> WithoutOverlong<S> {
    /// For a connection on which the handshake begins now.
    pub fn new(stream: S, longest: usize) -> Self {
        Self {
            stream,
            sieve: Sieve::new(longest),
            passed: Vec::new(),
            read: 0,
            left_out: Arc::default(),
        }
    }

    /// How many messages were left out.
    pub fn left_out(&self) -> Arc<AtomicU64> {
        self.left_out.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WithoutOverlong<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read == this.passed.len() {
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.passed.clear();
            this.read = 0;
            this.sieve.pass(chunk.filled(), &mut this.passed);
            this.left_out.store(this.sieve.left_out, Relaxed);
        }
        let here = (this.passed.len() - this.read).min(buf.remaining());
        buf.put_slice(&this.passed[this.read..this.read + here]);
        this.read += here;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WithoutOverlong<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::{
        Message, WebSocket,
        protocol::{
            Role,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    };

    use super::*;

    const LONGEST: usize = 300;
    const HEAD: &[u8] = b"HTTP/1.1 101 \r\r\n\r\r\n\r\n";

    /// What a server sends: each message in frames of these lengths, pings between them.
    fn sent(messages: &[Vec<usize>]) -> Vec<u8> {
        let mut bytes = HEAD.to_vec();
        for (n, frames) in messages.iter().enumerate() {
            for (i, length) in frames.iter().enumerate() {
                let code = match i {
                    0 => OpCode::Data(Data::Text),
                    _ => OpCode::Data(Data::Continue),
                };
                let payload = vec![b'a' + u8::try_from(n % 26).unwrap(); *length];
                Frame::message(payload, code, i + 1 == frames.len())
                    .format(&mut bytes)
                    .unwrap();
                Frame::ping(vec![]).format(&mut bytes).unwrap();
            }
        }
        bytes
    }

    /// What the library makes of what passes, when it comes in chunks of such lengths.
    fn received(bytes: &[u8], chunks: &[usize]) -> (Vec<Vec<u8>>, u64) {
        let mut sieve = Sieve::new(LONGEST);
        let mut passed = Vec::new();
        let mut rest = bytes;
        for chunk in chunks.iter().cycle() {
            let (chunk, later) = rest.split_at(rest.len().min(*chunk));
            sieve.pass(chunk, &mut passed);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        let passed = passed.strip_prefix(HEAD).unwrap().to_vec();
        let mut socket = WebSocket::from_raw_socket(Cursor::new(passed), Role::Client, None);
        let mut messages = Vec::new();
        while let Ok(message) = socket.read() {
            if matches!(message, Message::Text(_) | Message::Binary(_)) {
                messages.push(message.into_data().to_vec());
            }
        }
        (messages, sieve.left_out)
    }

    proptest! {
        #[test]
        fn what_is_not_too_long_arrives_and_the_rest_is_counted(
            messages in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![0..80_usize, 100..400_usize, Just(70_000)], 1..6),
                0..8,
            ),
            chunks in proptest::collection::vec(1..1000_usize, 1..8),
        ) {
            let (got, left_out) = received(&sent(&messages), &chunks);
            let got: Vec<Vec<u8>> = got.into_iter().filter(|m| m.last() != Some(&CUT)).collect();
            let wanted = messages.iter().enumerate().filter_map(|(n, frames)| {
                let length = frames.iter().sum::<usize>();
                (length <= LONGEST).then(|| vec![b'a' + u8::try_from(n % 26).unwrap(); length])
            });
            let wanted: Vec<Vec<u8>> = wanted.collect();
            prop_assert_eq!(left_out, (messages.len() - wanted.len()) as u64);
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn whatever_comes_no_more_passes_than_came(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let mut sieve = Sieve::new(LONGEST);
            let mut passed = Vec::new();
            sieve.pass(b"\r\n\r\n", &mut passed);
            sieve.pass(&bytes, &mut passed);
            // A frame that is cut off is two bytes at least, and leaves three.
            prop_assert!(passed.len() <= 4 + bytes.len() * 3 / 2 + 3);
            prop_assert!(sieve.header.len() <= LONGEST_HEADER);
        }
    }

    #[test]
    fn a_message_without_end_leaves_nothing_behind() {
        let mut sieve = Sieve::new(LONGEST);
        let mut passed = Vec::new();
        sieve.pass(
            b"\r\n\r\n\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
            &mut passed,
        );
        for _ in 0..1000 {
            sieve.pass(&[b'x'; 1000], &mut passed);
        }
        assert_eq!((passed.len(), sieve.left_out), (4, 1));
    }
}
