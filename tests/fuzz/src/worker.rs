//! What other servers answer to a worker.

use std::{collections::HashSet, convert::Infallible, fmt::Write};

use bytes::Bytes;
use futures::stream;
use grasp_proto::words::Oid;
use grasp_syncworker::{
    hunt::fetch::{
        FetchError,
        advertisement::{self, Dialect},
        lines::Lines,
        pack::{self, Begun, Shape},
    },
    relays::{filters, limits::Limits, overlong::WithoutOverlong},
};
use http_body::Frame;
use http_body_util::StreamBody;
use nostr::{Filter, RelayMessage};
use tokio::io::AsyncReadExt;

use crate::{runtime, text};

/// An answer that comes in pieces of this size.
fn lines(data: &[u8], piece: usize) -> Lines {
    let pieces: Vec<Bytes> = data.chunks(piece).map(Bytes::copy_from_slice).collect();
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    Lines::new(StreamBody::new(stream::iter(frames)))
}

/// What is told of a server's failure is fit for a log.
fn check_words(words: &str) {
    assert!(words.chars().count() <= 300, "{words}");
    assert!(!words.chars().any(char::is_control), "{words:?}");
}

fn check<T>(result: Result<T, FetchError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            check_words(&error.detail);
            None
        }
    }
}

/// How a server answers: all that it can be an answer to, in one piece and in small ones.
pub fn git_server_answers(data: &[u8]) {
    let wants: HashSet<Oid> = [Oid::from_bytes([0x11; 20]), Oid::from_bytes([0x22; 20])].into();
    runtime().block_on(async {
        let mut seen = Vec::new();
        for piece in [usize::MAX / 2, 7] {
            let mut told = String::new();
            let read = advertisement::read(&mut lines(data, piece), &wants).await;
            if let Some(dialect) = check(read) {
                let found = match &dialect {
                    Dialect::V0(v0) => wants.iter().filter_map(|oid| v0.found.ask_for(oid)).count(),
                    Dialect::V2(_) => 0,
                };
                let _ = write!(told, "{found} ");
            }
            let refs = advertisement::read_refs(&mut lines(data, piece), &wants).await;
            if let Some(found) = check(refs) {
                let found = wants.iter().filter_map(|oid| found.ask_for(oid)).count();
                let _ = write!(told, "{found} ");
            }
            for shape in [Shape::Sections, Shape::Sideband, Shape::Plain] {
                let begun = pack::begin(lines(data, piece), shape, 1 << 20).await;
                match check(begun) {
                    Some(Begun::Pack(mut pack)) => {
                        let mut bytes = 0;
                        while let Some(Some(more)) = check(pack.next().await) {
                            assert!(!more.is_empty() && more.len() <= 64 << 10);
                            bytes += more.len();
                        }
                        assert!(bytes <= data.len());
                        let _ = write!(told, "{bytes} ");
                    }
                    Some(Begun::Refused(words)) => check_words(&words),
                    None => {}
                }
            }
            seen.push(told);
        }
        assert_eq!(seen[0], seen[1], "how it is cut into pieces matters");
    });
}

/// What passes of what another relay sends.
async fn passed(data: &[u8], piece: usize) -> (Vec<u8>, u64) {
    let (mut ours, theirs) = tokio::io::duplex(1 << 20);
    let mut stream = WithoutOverlong::new(theirs, 300);
    let left_out = stream.left_out();
    let send = async {
        use tokio::io::AsyncWriteExt;
        for piece in data.chunks(piece) {
            ours.write_all(piece).await.expect("a pipe");
            tokio::task::yield_now().await;
        }
        drop(ours);
    };
    let mut passed = Vec::new();
    let ((), read) = tokio::join!(send, stream.read_to_end(&mut passed));
    read.expect("a pipe");
    let left_out = left_out.load(std::sync::atomic::Ordering::Relaxed);
    (passed, left_out)
}

/// How another relay answers: its document, its messages, its frames.
pub fn relay_answers(data: &[u8]) {
    let limits = Limits::read(data);
    assert!((1..=200).contains(&limits.subscriptions) && (1..=100).contains(&limits.filters));
    assert!(limits.limit >= 1 && limits.ids() >= 1 && limits.live() >= 1);
    assert!(limits.filter_bytes() < limits.message_bytes);
    if let Ok(RelayMessage::Event { event, .. }) = RelayMessage::from_json(text(data)) {
        let matches = filters::matches(&Filter::new(), &event);
        assert!(matches, "no condition is met by all");
    }
    runtime().block_on(async {
        let (whole, left_out) = passed(data, usize::MAX / 2).await;
        assert_eq!(passed(data, 3).await, (whole.clone(), left_out));
        assert!(whole.len() <= data.len() * 3 / 2 + 3);
    });
}
