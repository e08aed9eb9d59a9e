//! A pack on its way from another server into gitd's `StorePack`.
//!
//! Both ways are pulled by the slower: a few chunks are on the way, never the pack. What must be kept
//! in mind when changing this: a call that is broken off can look to gitd like one that ended, so the
//! end of the pack is said (an empty chunk), and only when the remote's pack ended well. Our side of the
//! call stays open behind it: gitd works for long on a large pack, and grants run out meanwhile.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use grasp_proto::{
    contract::{
        git::{StorePackRequest, packs_client::PacksClient, store_pack_request::Part},
        relay::failed::Why,
    },
    transport::AuthorizedChannel,
    words::Oid,
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tonic::{CancellationHandle, Code, Request, Status};

use super::{
    context::Failure,
    counts::Meter,
    fetch::{self, FetchError, Wanted},
};
use crate::net::Net;

/// Where packs come from.
pub trait Remote: Send + Sync + 'static {
    /// Asks for a pack; ends when its first bytes have come.
    fn open<'a>(&'a self, wanted: &'a Wanted)
    -> BoxFuture<'a, Result<Box<dyn Chunks>, FetchError>>;
}

/// A pack that is coming. Dropped, the connection it comes by is closed.
pub trait Chunks: Send {
    /// The next bytes of it; `None` when it is whole.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, FetchError>>;
}

impl Remote for Net {
    fn open<'a>(
        &'a self,
        wanted: &'a Wanted,
    ) -> BoxFuture<'a, Result<Box<dyn Chunks>, FetchError>> {
        Box::pin(async move {
            let pack = fetch::open(self, wanted).await?;
            Ok(Box::new(pack) as Box<dyn Chunks>)
        })
    }
}

impl Chunks for fetch::Pack {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, FetchError>> {
        Box::pin(fetch::Pack::next(self))
    }
}

/// The largest chunk.
const CHUNK: usize = 64 * 1024;

/// How many of them wait for gitd to take them.
const ON_THE_WAY: usize = 4;

/// How long gitd may take nothing while there is something: it has a queue.
const STALL: Duration = Duration::from_secs(300);

/// How long it may take for a pack that has ended: to index it and to follow its links. The largest pack
/// on a slow disk takes hours; whether gitd is there, the connection tells.
const DIGESTION: Duration = Duration::from_secs(6 * 60 * 60);

/// What is put on the call in place of a deadline: whether it moves is looked at here, and a lease
/// that is lost ends it.
const NEVER: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Resets a call when dropped; nothing, if it has ended.
struct Broken(Option<CancellationHandle>);

impl Drop for Broken {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call.cancel();
        }
    }
}

/// The messages of the call. They do not end with their sender: gitd would hear of an end, when what
/// happened is that a transfer was broken off.
fn messages(parts: mpsc::Receiver<Part>) -> impl Stream<Item = StorePackRequest> {
    stream::unfold(parts, |mut parts| async move {
        match parts.recv().await {
            Some(part) => Some((StorePackRequest { part: Some(part) }, parts)),
            None => std::future::pending().await,
        }
    })
}

/// What goes to gitd.
struct Way {
    parts: mpsc::Sender<Part>,
    grants: watch::Receiver<Bytes>,
    /// Nobody renews them any more.
    last: bool,
}

impl Way {
    /// Puts one part on its way.
    async fn put(&self, part: Part) -> Result<(), Failure> {
        match timeout(STALL, self.parts.send(part)).await {
            Ok(Ok(())) => Ok(()),
            // The call has ended: it says why.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => Err(Failure::ours(format!(
                "the git storage took nothing for {} s",
                STALL.as_secs()
            ))),
        }
    }

    /// The newest grant.
    async fn grant(&mut self) -> Result<(), Failure> {
        let grant = self.grants.borrow_and_update().to_vec();
        self.put(Part::Grant(grant)).await
    }

    /// What `work` comes to; grants that are renewed meanwhile go on their way.
    async fn renewing<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                changed = self.grants.changed(), if !self.last => match changed {
                    Ok(()) => self.grant().await?,
                    Err(_) => self.last = true,
                },
                done = &mut work => return Ok(done),
            }
        }
    }
}

/// Carries grants and pack over; comes back only to say why it goes no further.
async fn carry(
    mut pack: Box<dyn Chunks>,
    mut way: Way,
    meter: &Meter,
) -> Result<Infallible, Failure> {
    way.grant().await?;
    let speed = meter.speed();
    speed.begun();
    while let Some(mut chunk) = way.renewing(speed.waiting(pack.next())).await?? {
        meter.add(chunk.len());
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(CHUNK));
            way.put(Part::Chunk(piece.to_vec())).await?;
        }
    }
    // The other server is needed no more.
    speed.ended();
    drop(pack);
    way.put(Part::Chunk(Vec::new())).await?;
    way.renewing(sleep(DIGESTION)).await?;
    Err(Failure::ours(
        "the git storage does not say what became of the pack",
    ))
}

fn failure(status: &Status) -> Failure {
    let why = match status.code() {
        Code::ResourceExhausted => Why::Large,
        Code::InvalidArgument => Why::BadPack,
        _ => Why::Ours,
    };
    let detail = format!("the git storage: {:?}, {}", status.code(), status.message());
    Failure { why, detail }
}

/// Streams a pack into gitd: those of the granted objects that are there then. Ends as soon as gitd
/// answers, whatever is still to come.
pub async fn store(
    mut packs: PacksClient<AuthorizedChannel>,
    pack: Box<dyn Chunks>,
    grants: watch::Receiver<Bytes>,
    meter: &Meter,
) -> Result<Vec<Oid>, Failure> {
    let (parts, received) = mpsc::channel(ON_THE_WAY);
    let mut request = Request::new(messages(received).boxed());
    request.set_timeout(NEVER);
    let _broken = Broken(Some(request.cancellation_handle()));
    let way = Way {
        parts,
        grants,
        last: false,
    };
    let mut call = packs.store_pack(request).boxed();
    let mut carried = carry(pack, way, meter).boxed();
    let answer = tokio::select! {
        biased;
        answer = &mut call => answer,
        Err(failure) = &mut carried => return Err(failure),
    };
    let answer = answer.map_err(|status| failure(&status))?.into_inner();
    let arrived = answer.arrived.iter().map(|oid| Oid::from_slice(oid));
    arrived
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::ours(format!("the git storage: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gitd_says_whose_fault_it_is() {
        let why = |code| failure(&Status::new(code, "x")).why;
        assert_eq!(why(Code::ResourceExhausted), Why::Large);
        assert_eq!(why(Code::InvalidArgument), Why::BadPack);
        for ours in [
            Code::PermissionDenied,
            Code::DeadlineExceeded,
            Code::Unavailable,
            Code::NotFound,
            Code::Internal,
        ] {
            assert_eq!(why(ours), Why::Ours);
        }
    }

    #[tokio::test]
    async fn the_stream_does_not_end_with_its_sender() {
        let (parts, received) = mpsc::channel(4);
        let mut sent = messages(received).boxed();
        parts.send(Part::Chunk(vec![1])).await.unwrap();
        drop(parts);
        assert!(sent.next().await.is_some());
        assert!(futures::poll!(sent.next()).is_pending());
    }
}
