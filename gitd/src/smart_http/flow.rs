//! What git makes for a reader, on its way to him.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
    time::timeout,
};

use super::pkt_line::{self, Band, Passing};
use crate::repository::{intake::IDLE, places::Taking};

/// How much is read from git at once: what its pipe holds.
const PIECE: usize = 64 * 1024;
/// How long git may take for the end of a line that it has begun.
const LINE: Duration = Duration::from_secs(1);
/// What a reader is told who hardly moves while somebody waits.
pub const TOO_SLOW: &str =
    "others wait, and hardly anything is taken over this connection; try again later";

/// What has been sent.
#[derive(Debug, Default)]
pub struct Sent {
    /// Bytes.
    pub bytes: u64,
    /// There is no answer, but the client was told why.
    pub complained: bool,
    lines: Passing,
}

/// Why not all of it was sent.
#[derive(Debug)]
pub enum Ended {
    /// The client's side, or git's, broke.
    Broke(String),
    /// Its place is wanted. What is left to say, if that can be said.
    AskedBack(Option<Bytes>),
}

impl Sent {
    /// Notes what was sent before git said anything.
    pub fn note(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.lines.see(piece);
    }

    /// Sends all that git says, as fast as it is taken.
    pub async fn all_of(
        &mut self,
        mut git: impl AsyncRead + Unpin,
        sender: &mpsc::Sender<Bytes>,
        taking: &Taking,
    ) -> Result<(), Ended> {
        let broke = |reason: &str| Ended::Broke(reason.to_owned());
        let mut offered = 0;
        loop {
            taking.offered();
            let room = tokio::select! {
                room = timeout(IDLE, sender.reserve()) => room,
                () = taking.asked_back() => {
                    let words = timeout(LINE, self.last_words(&mut git)).await;
                    return Err(Ended::AskedBack(words.ok().flatten()));
                }
            };
            let room = match room {
                Ok(Ok(room)) => room,
                Ok(Err(_)) => return Err(broke("the client went away")),
                Err(_) => return Err(broke("the client took nothing for too long")),
            };
            taking.took(offered);
            let mut piece = BytesMut::with_capacity(PIECE);
            let read = tokio::select! {
                read = git.read_buf(&mut piece) => read,
                () = sender.closed() => return Err(broke("the client went away")),
            };
            offered = match read {
                Ok(0) => return Ok(()),
                Ok(count) => count as u64,
                Err(error) => return Err(Ended::Broke(error.to_string())),
            };
            // What git complains of itself is an answer.
            self.complained |= self.bytes == 0 && piece.get(4..8) == Some(b"ERR ");
            self.note(&piece);
            room.send(piece.freeze());
        }
    }

    /// The rest of the line that git has begun, and behind it why there is no more.
    async fn last_words(&mut self, git: &mut (impl AsyncRead + Unpin)) -> Option<Bytes> {
        let mut out = BytesMut::new();
        loop {
            let wanted = self.lines.wanted()?;
            if wanted == 0 {
                break;
            }
            let begun = out.len();
            out.resize(begun + wanted, 0);
            git.read_exact(&mut out[begun..]).await.ok()?;
            self.lines.see(&out[begun..]);
        }
        match self.lines.is_banded() {
            true => pkt_line::put_band(&mut out, Band::Error, format!("{TOO_SLOW}\n").as_bytes()),
            false => pkt_line::put(&mut out, format!("ERR {TOO_SLOW}\n").as_bytes()),
        }
        Some(out.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::places::Places;

    /// How it ends with a reader who takes nothing, of what git says without end, while somebody waits.
    async fn asked_back(line: &[u8]) -> Option<Bytes> {
        let places = Places::new(1);
        let place = places.take().await;
        let taking = place.taking();
        let git: Vec<u8> = line.iter().copied().cycle().take(1 << 20).collect();
        let (sender, _unread) = mpsc::channel(1);
        let mut sent = Sent::default();
        let wait = async {
            // Again and again, as they do who are told that we are busy.
            while places.take_soon(None).await.is_err() {}
        };
        tokio::select! {
            ended = sent.all_of(&git[..], &sender, &taking) => match ended {
                Err(Ended::AskedBack(last)) => last,
                ended => panic!("{ended:?}"),
            },
            () = wait => unreachable!("the place is held"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_hardly_moves_is_told_in_the_band_at_the_end_of_a_line() {
        for (length, in_head) in [(1000, false), ((PIECE - 2) / 2 - 5, true)] {
            let mut line = BytesMut::new();
            pkt_line::put_band(&mut line, Band::Data, &vec![7; length]);
            let last = asked_back(&line).await.unwrap();
            let mut words = BytesMut::new();
            pkt_line::put_band(&mut words, Band::Error, format!("{TOO_SLOW}\n").as_bytes());
            let rest = last.strip_suffix(&words[..]).unwrap();
            // One piece is on its way; the line in which it ends is made whole.
            assert_eq!((PIECE + rest.len()) % line.len(), 0);
            assert_eq!(PIECE % line.len() < 4, in_head);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_are_no_bands_there_are_no_words() {
        assert_eq!(asked_back(b"PACK").await, None);
        let words = asked_back(b"0008NAK\n").await.unwrap();
        assert!(words[4..].starts_with(b"ERR others wait"));
    }
}
