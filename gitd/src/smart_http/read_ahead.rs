//! A body that is read on while its reader is at work elsewhere: a push waits for the relay, or for a place,
//! with its request's last bytes unread, and its client can be shown nothing before they are
//! (see [`unread`](super::unread)).

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::{Stream, stream::BoxStream};

use super::pace::Share;

/// How much of one body is read on, if there is room for it. What is longer is still being sent.
const MOST: usize = 1024 * 1024;

/// The pieces of a body, as they are wanted or earlier.
pub struct BodyPieces(Arc<Mutex<State>>);

/// Whoever reads a body on. Does not keep it from being dropped.
#[derive(Clone)]
pub struct ReadAhead(Weak<Mutex<State>>);

struct State {
    body: BoxStream<'static, io::Result<Bytes>>,
    /// What was read, in bytes bounded by [`MOST`] and a piece, and not taken yet.
    read: VecDeque<io::Result<Bytes>>,
    bytes: usize,
    has_ended: bool,
    /// The reader, if it waits.
    reader: Option<Waker>,
}

impl State {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let polled = self.body.as_mut().poll_next(cx);
        self.has_ended = matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BodyPieces {
    /// The pieces of `body`.
    pub fn new(body: BoxStream<'static, io::Result<Bytes>>) -> Self {
        Self(Arc::new(Mutex::new(State {
            body,
            read: VecDeque::new(),
            bytes: 0,
            has_ended: false,
            reader: None,
        })))
    }

    /// What reads it on.
    pub fn read_ahead(&self) -> ReadAhead {
        ReadAhead(Arc::downgrade(&self.0))
    }
}

impl Stream for BodyPieces {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = lock(&self.0);
        if let Some(piece) = state.read.pop_front() {
            state.bytes -= piece.as_ref().map_or(0, Bytes::len);
            return Poll::Ready(Some(piece));
        }
        let polled = state.poll_body(cx);
        state.reader = polled.is_pending().then(|| cx.waker().clone());
        polled
    }
}

impl ReadAhead {
    /// Reads what is there by now, as far as `share` has room for it.
    pub fn read(&self, share: &mut Share) {
        let Some(state) = self.0.upgrade() else {
            return;
        };
        let mut state = lock(&state);
        if state.bytes == 0 {
            share.give_back();
        }
        // Whoever waits for the body is woken by it as before.
        let waker = state.reader.clone();
        let mut cx = Context::from_waker(waker.as_ref().unwrap_or(Waker::noop()));
        while state.bytes < MOST && share.grow_to(state.bytes + 1) {
            let Poll::Ready(Some(piece)) = state.poll_body(&mut cx) else {
                break;
            };
            state.bytes += piece.as_ref().map_or(0, Bytes::len);
            state.read.push_back(piece);
        }
        // The piece that came last is here.
        let bytes = state.bytes;
        share.grow_to(bytes);
        if (state.has_ended || !state.read.is_empty())
            && let Some(reader) = state.reader.take()
        {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, channel::mpsc};

    use super::{super::pace::Budget, *};

    fn piece(length: usize) -> Bytes {
        Bytes::from(vec![7; length])
    }

    fn length(piece: Option<io::Result<Bytes>>) -> Option<usize> {
        piece.map(|piece| piece.unwrap().len())
    }

    #[tokio::test]
    async fn what_is_read_on_is_read_in_its_order_and_no_more_of_it_than_there_is_room_for() {
        let budget = Budget::new(512 * 1024);
        let mut share = budget.share();
        let (sender, body) = mpsc::unbounded();
        let mut pieces = BodyPieces::new(body.boxed());
        let ahead = pieces.read_ahead();
        let held = |pieces: &BodyPieces| lock(&pieces.0).bytes;
        for _ in 0..3 {
            sender.unbounded_send(Ok(piece(1000))).unwrap();
        }
        ahead.read(&mut share);
        assert_eq!(held(&pieces), 3000);
        sender.unbounded_send(Ok(piece(5))).unwrap();
        for expected in [1000, 1000, 1000, 5] {
            assert_eq!(length(pieces.next().await), Some(expected));
        }
        for _ in 0..20 {
            sender.unbounded_send(Ok(piece(100_000))).unwrap();
        }
        ahead.read(&mut share);
        let most = 512 * 1024 + 64 * 1024;
        assert!((most..most + 100_000).contains(&held(&pieces)));
        for _ in 0..20 {
            assert_eq!(length(pieces.next().await), Some(100_000));
        }
        // What was taken makes room for others.
        ahead.read(&mut share);
        assert!(budget.share().grow_to(most));
        drop(sender);
        ahead.read(&mut share);
        assert!(pieces.next().await.is_none());
        assert!(pieces.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_waits_hears_of_what_another_has_read() {
        let mut share = Budget::new(0).share();
        let (sender, body) = mpsc::unbounded();
        let mut pieces = BodyPieces::new(body.boxed());
        let ahead = pieces.read_ahead();
        let reader = tokio::spawn(async move { (length(pieces.next().await), pieces) });
        while ahead
            .0
            .upgrade()
            .is_some_and(|state| lock(&state).reader.is_none())
        {
            tokio::task::yield_now().await;
        }
        sender.unbounded_send(Ok(piece(9))).unwrap();
        ahead.read(&mut share);
        let (read, pieces) = reader.await.unwrap();
        assert_eq!(read, Some(9));
        drop(pieces);
        // Nobody keeps a body whose reader has gone.
        assert!(sender.is_closed());
        ahead.read(&mut share);
    }
}
