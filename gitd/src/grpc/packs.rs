//! `grasp.git.v1.Packs`, served to the workers: a pack from elsewhere, under a grant of the relay's.
//!
//! One call is one future with three parts side by side: the request is read (chunks go to the
//! intake, one at a time; a later grant takes the place of the one before, also while git works on
//! a pack that has all come), the intake works, the grant's time runs. It stands while the caller
//! waits for us: later grants are behind the chunk that we do not take. The first to fail ends the
//! call; as the future goes, git and its quarantine go too, so a caller that is gone leaves nothing.
//! A pack says itself where it ends: the answer comes when it is in, whether or not the caller has
//! closed his side.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use grasp_proto::{
    contract::git::{StorePackRequest, StorePackResponse, packs_server, store_pack_request::Part},
    transport::GrantKey,
    words::{Identifier, Oid},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{io::StreamReader, sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    clock, meters,
    repository::{
        Repositories,
        fetched::NotStored,
        intake::{IDLE, Intake, Refused},
        places::Places,
    },
};

/// The largest message: a grant with its objects, or a chunk.
pub const LARGEST_MESSAGE: usize = 2 * 1024 * 1024;

/// The most bytes of a pack in one message.
const LARGEST_CHUNK: usize = 1024 * 1024;

/// The service.
pub struct Service {
    /// The repositories.
    pub repositories: Arc<Repositories>,
    /// What grants are opened with.
    pub key: GrantKey,
    /// Room for git processes that take in what workers bring.
    pub places: Places,
    /// The largest pack, whatever is granted.
    pub max_pack_bytes: u64,
    /// Transfers that the stop waits for.
    pub tasks: TaskTracker,
    /// Cancelled when the grace is over.
    pub kill: CancellationToken,
}

impl From<NotStored> for Status {
    fn from(why: NotStored) -> Self {
        let text = why.to_string();
        match why {
            NotStored::Gone => Self::not_found(text),
            NotStored::Late => Self::deadline_exceeded(text),
            NotStored::Unasked => Self::invalid_argument(text),
            NotStored::Failed(error) => error.into(),
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Pack(reason) => Self::invalid_argument(reason),
            Refused::Broken(error) => Self::cancelled(error.to_string()),
            // It goes on by itself.
            Refused::Full(full) => Self::unavailable(full.to_string()),
            Refused::Ours(error) => error.into(),
        }
    }
}

/// A grant in our words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Granted {
    identifier: Identifier,
    oids: Vec<Oid>,
    max_bytes: u64,
    expires: SystemTime,
    /// Lease and fetch: what a later grant has to be for as well.
    fetch: (u64, u64),
}

impl Granted {
    /// Opens a sealed grant; refused if it is not the relay's or says nothing.
    fn open(key: &GrantKey, sealed: &[u8]) -> Result<Self, Status> {
        let grant = key
            .open(sealed)
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        let oids = grant.oids.iter().map(|oid| Oid::from_slice(oid));
        let granted = Self {
            identifier: Identifier::parse(&grant.identifier)?,
            oids: oids.collect::<Result<_, _>>()?,
            max_bytes: grant.max_bytes,
            expires: UNIX_EPOCH
                .checked_add(Duration::from_millis(grant.expires_millis))
                .ok_or_else(|| Status::invalid_argument("a grant that never expires"))?,
            fetch: (grant.lease, grant.fetch),
        };
        if granted.oids.is_empty() {
            return Err(Status::invalid_argument("the grant is for no object"));
        }
        Ok(granted)
    }

    /// Whether `later` may take this one's place.
    fn allows(&self, later: &Self) -> Result<(), Status> {
        match (&self.identifier, self.fetch) == (&later.identifier, later.fetch) {
            true => Ok(()),
            false => Err(Status::permission_denied("the grant is for another fetch")),
        }
    }

    /// How long it holds.
    fn left(&self, now: SystemTime) -> Duration {
        self.expires.duration_since(now).unwrap_or_default()
    }
}

fn ran_out() -> Status {
    Status::deadline_exceeded("the grant has run out")
}

/// The latest grant, and how long its transfer may go on.
///
/// Whether a pack may be seen, the grant alone says, and it runs out when it says so. The transfer has
/// as much longer as its caller waited for us, however long: he ends what he waits for too long.
#[derive(Debug)]
struct Latest {
    granted: Granted,
    until: SystemTime,
    /// Since when he waits for us.
    waits: Option<SystemTime>,
}

impl Latest {
    fn new(granted: Granted) -> Self {
        Self {
            until: granted.expires,
            granted,
            waits: None,
        }
    }

    /// A later grant. That it ran out on its way to us is no reason to end what has not.
    fn renew(&mut self, later: Granted) -> Result<(), Status> {
        self.granted.allows(&later)?;
        self.until = self.until.max(later.expires);
        if later.expires >= self.granted.expires || !later.left(clock::now()).is_zero() {
            self.granted = later;
        }
        Ok(())
    }

    /// The caller waits for us from now on.
    fn stand(&mut self, now: SystemTime) {
        self.waits = Some(now);
    }

    /// We wait for the caller from now on.
    fn go_on(&mut self, now: SystemTime) {
        if let Some(since) = self.waits.take() {
            let stood = now.duration_since(since).unwrap_or_default();
            self.until = self.until.checked_add(stood).unwrap_or(self.until);
        }
    }

    /// How long the transfer may go on; `None` while it is ours that it does not.
    fn left(&self, now: SystemTime) -> Option<Duration> {
        match self.waits {
            Some(_) => None,
            None => Some(self.until.duration_since(now).unwrap_or_default()),
        }
    }
}

/// Comes back when the time of the latest grant has run out.
async fn run_out(mut latest: watch::Receiver<Latest>) {
    loop {
        let left = latest.borrow_and_update().left(clock::now());
        match left {
            Some(Duration::ZERO) => return,
            Some(left) => tokio::select! {
                () = sleep(left) => {}
                Ok(()) = latest.changed() => {}
            },
            None => {
                if latest.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Comes back when there is a grant that holds.
async fn holds(mut latest: watch::Receiver<Latest>) {
    let holding = |latest: &Latest| !latest.granted.left(clock::now()).is_zero();
    // It lives as long as the call.
    let _ = latest.wait_for(holding).await;
}

/// The next part of a request. Grants are signs of life as well: git may work for long on what has
/// all come.
async fn next(stream: &mut Streaming<StorePackRequest>) -> Result<Option<Part>, Status> {
    let message = timeout(IDLE, stream.message())
        .await
        .map_err(|_| Status::deadline_exceeded("nothing came for three minutes"))??;
    match message {
        None => Ok(None),
        Some(StorePackRequest { part: Some(part) }) => Ok(Some(part)),
        Some(StorePackRequest { part: None }) => {
            Err(Status::invalid_argument("a message without a part"))
        }
    }
}

/// Waits until the intake takes a chunk, which is no time of the caller's.
async fn room<'a, T>(
    chunks: &'a mpsc::Sender<T>,
    latest: &watch::Sender<Latest>,
) -> Result<mpsc::Permit<'a, T>, mpsc::error::SendError<()>> {
    if let Ok(place) = chunks.try_reserve() {
        return Ok(place);
    }
    latest.send_modify(|latest| latest.stand(clock::now()));
    let place = chunks.reserve().await;
    latest.send_modify(|latest| latest.go_on(clock::now()));
    place
}

/// What a call is counted as when its future goes, for whatever reason.
struct Tally {
    bytes: AtomicU64,
    outcome: &'static str,
    begun: Instant,
    _running: meters::Running,
}

impl Tally {
    fn begin() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            outcome: "broken",
            begun: Instant::now(),
            _running: meters::operation("store"),
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        metrics::counter!("ngit_git_bytes_total", "direction" => "in").increment(bytes);
        metrics::counter!("ngit_git_packs_total", "outcome" => self.outcome).increment(1);
        meters::took("store", self.outcome, self.begun);
    }
}

impl Service {
    async fn store(
        &self,
        stream: &mut Streaming<StorePackRequest>,
        tally: &AtomicU64,
    ) -> Result<StorePackResponse, Status> {
        let Some(Part::Grant(sealed)) = next(stream).await? else {
            return Err(Status::invalid_argument("the first message is a grant"));
        };
        let first = Granted::open(&self.key, &sealed)?;
        let now = clock::now();
        if first.left(now).is_zero() {
            return Err(ran_out());
        }
        let begin = self.repositories.begin_arrival(first.identifier.clone());
        let (latest, granted) = watch::channel(Latest::new(first));
        latest.send_modify(|latest| latest.stand(now));
        let arrival = begin.await?;
        latest.send_modify(|latest| latest.go_on(clock::now()));
        let (chunks, pack) = mpsc::channel::<io::Result<Bytes>>(1);
        let read = self.read(stream, &latest, chunks, tally);
        tokio::pin!(read);
        let intake = Intake {
            pool: &arrival.pool,
            own: None,
            max_bytes: self.max_pack_bytes,
            limits: &self.repositories.intake,
            places: &self.places,
            client: None,
            disk: &self.repositories.disk,
            part: None,
        };
        let mut pack = StreamReader::new(ReceiverStream::new(pack));
        let quarantine = tokio::select! {
            taken = intake.receive(&mut pack, None) => taken?,
            broken = &mut read => return Err(broken),
            () = run_out(granted.clone()) => return Err(ran_out()),
        };
        // What else comes, nobody takes. A grant that holds may be on its way behind the chunks.
        drop(pack);
        tokio::select! {
            biased;
            () = holds(granted.clone()) => {}
            broken = &mut read => return Err(broken),
            () = run_out(granted.clone()) => return Err(NotStored::Late.into()),
        }
        let oids = granted.borrow().granted.oids.clone();
        let name = arrival.identifier().clone();
        let brought = self
            .repositories
            .brought_whole(&arrival, &quarantine, &oids);
        let whole = tokio::select! {
            whole = brought => whole?,
            broken = &mut read => return Err(broken),
            () = run_out(granted.clone()) => return Err(NotStored::Late.into()),
        };
        let repositories = Arc::clone(&self.repositories);
        // On a thread of its own: what has begun to be seen is seen whole.
        let work = tokio::task::spawn_blocking(move || {
            let allowed = || !granted.borrow().granted.left(clock::now()).is_zero();
            repositories.store(&arrival, quarantine, &whole, allowed)
        });
        let stored = async {
            let bytes = match work.await {
                Ok(stored) => stored?,
                Err(error) => return Err(Status::internal(error.to_string())),
            };
            let missing = self
                .repositories
                .missing(&name, oids.clone(), Vec::new(), None);
            let missing: HashSet<Oid> = missing.await?.missing.into_iter().collect();
            let arrived = oids.iter().filter(|oid| !missing.contains(oid));
            Ok(StorePackResponse {
                arrived: arrived.map(|oid| oid.as_bytes().to_vec()).collect(),
                bytes,
            })
        };
        tokio::select! {
            stored = stored => stored,
            broken = &mut read => Err(broken),
        }
    }

    /// Reads a request until it is dropped; comes back only to say why the call is broken off.
    async fn read(
        &self,
        stream: &mut Streaming<StorePackRequest>,
        latest: &watch::Sender<Latest>,
        chunks: mpsc::Sender<io::Result<Bytes>>,
        tally: &AtomicU64,
    ) -> Status {
        let mut came = 0;
        let mut chunks = Some(chunks);
        loop {
            match next(stream).await {
                Err(status) => return status,
                Ok(None) => break,
                Ok(Some(Part::Grant(sealed))) => {
                    let mut renewed = Ok(());
                    let later = Granted::open(&self.key, &sealed);
                    latest.send_modify(|latest| {
                        renewed = later.and_then(|later| latest.renew(later));
                    });
                    if let Err(status) = renewed {
                        return status;
                    }
                }
                // Grants may follow. If git still waits for the rest of a pack that was cut short, it
                // does so no longer.
                Ok(Some(Part::Chunk(chunk))) if chunk.is_empty() => chunks = None,
                Ok(Some(Part::Chunk(chunk))) => {
                    let Some(chunks) = &chunks else {
                        return Status::invalid_argument("a chunk behind the end of the pack");
                    };
                    if chunk.len() > LARGEST_CHUNK {
                        return Status::invalid_argument("a chunk of more than 1 MiB");
                    }
                    came += chunk.len() as u64;
                    tally.store(came, Ordering::Relaxed);
                    let most = latest.borrow().granted.max_bytes.min(self.max_pack_bytes);
                    if came > most {
                        let reason = format!("the pack is larger than the {most} bytes granted");
                        return Status::resource_exhausted(reason);
                    }
                    // Nobody takes it: the intake is about to say why.
                    let Ok(place) = room(chunks, latest).await else {
                        break;
                    };
                    place.send(Ok(chunk.into()));
                }
            }
        }
        drop(chunks);
        std::future::pending().await
    }
}

#[tonic::async_trait]
impl packs_server::Packs for Service {
    async fn store_pack(
        &self,
        request: Request<Streaming<StorePackRequest>>,
    ) -> Result<Response<StorePackResponse>, Status> {
        let begun = Instant::now();
        let _transfer = self.tasks.token();
        let mut tally = Tally::begin();
        let mut stream = request.into_inner();
        let stored = tokio::select! {
            stored = self.store(&mut stream, &tally.bytes) => stored,
            () = self.kill.cancelled() => Err(Status::unavailable("gitd is going down")),
        };
        tally.outcome = if stored.is_ok() { "ok" } else { "refused" };
        let stored = stored.inspect_err(|status| {
            tracing::info!(code = ?status.code(), reason = status.message(), "a fetched pack was not stored");
        })?;
        let (bytes, arrived) = (stored.bytes, stored.arrived.len());
        tracing::info!(bytes, arrived, time = ?begun.elapsed(), "a fetched pack is stored");
        Ok(Response::new(stored))
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::{
        contract::git::Grant,
        transport::{Token, Tokens},
    };

    use super::*;

    #[test]
    fn a_grant_holds_until_it_expires_and_for_its_fetch_alone() {
        let key = GrantKey::new(&Tokens {
            relay: Token::random(),
            gitd: Token::random(),
            worker: Token::random(),
        });
        let grant = Grant {
            identifier: "x".to_owned(),
            oids: vec![vec![7; 20]],
            max_bytes: 1,
            expires_millis: 5000,
            lease: 2,
            fetch: 3,
        };
        let open = |grant: &Grant| Granted::open(&key, &key.seal(grant));
        let first = open(&grant).unwrap();
        assert_eq!(first.left(UNIX_EPOCH), Duration::from_secs(5));
        assert!(first.left(UNIX_EPOCH + Duration::from_secs(5)).is_zero());
        let changed = |change: fn(&mut Grant)| {
            let mut grant = grant.clone();
            change(&mut grant);
            open(&grant)
        };
        let later = changed(|g| (g.expires_millis, g.max_bytes) = (9000, 9)).unwrap();
        assert!(first.allows(&later).is_ok());
        for change in [
            (|g| g.identifier.push('y')) as fn(&mut Grant),
            |g| g.lease += 1,
            |g| g.fetch += 1,
        ] {
            let other = changed(change).unwrap();
            let refused = first.allows(&other).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        }
        for change in [
            (|g| g.oids.clear()) as fn(&mut Grant),
            |g| g.oids.push(vec![7; 19]),
            |g| g.identifier.clear(),
        ] {
            assert_eq!(
                changed(change).unwrap_err().code(),
                tonic::Code::InvalidArgument
            );
        }
        // As far as clocks go.
        let _ = changed(|g| g.expires_millis = u64::MAX);
    }

    fn granted(expires: SystemTime) -> Granted {
        Granted {
            identifier: Identifier::parse("x").unwrap(),
            oids: vec![Oid::from_bytes([7; 20])],
            max_bytes: 1,
            expires,
            fetch: (2, 3),
        }
    }

    #[test]
    fn a_transfer_does_not_pay_for_time_that_was_ours() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let mut latest = Latest::new(granted(at(22)));
        assert_eq!(latest.left(at(2)), seconds(20));
        latest.stand(at(10));
        assert_eq!(latest.left(at(1000)), None);
        latest.go_on(at(1000));
        assert_eq!(latest.left(at(1000)), seconds(12));
        // The pack may not be seen for that.
        assert!(latest.granted.left(at(1000)).is_zero());
        // One that ran out behind our back changes nothing; the next has its time.
        latest.renew(granted(at(30))).unwrap();
        assert_eq!(latest.left(at(1000)), seconds(12));
        latest.renew(granted(at(1020))).unwrap();
        assert_eq!(latest.left(at(1000)), seconds(20));
        assert_eq!(latest.granted.expires, at(1020));
        assert_eq!(latest.left(at(1020)), seconds(0));
        // Clocks go back.
        latest.stand(at(50));
        latest.go_on(at(40));
        assert_eq!(latest.left(at(1000)), seconds(20));
    }

    #[tokio::test]
    async fn the_clock_stands_while_a_chunk_waits_for_the_intake() {
        let past = clock::now() - Duration::from_secs(1);
        let (latest, seen) = watch::channel(Latest::new(granted(past)));
        let (chunks, mut pack) = mpsc::channel(1);
        room(&chunks, &latest).await.unwrap().send(1);
        let sent = async { room(&chunks, &latest).await.map(|place| place.send(2)) };
        tokio::pin!(sent);
        assert!(futures::poll!(&mut sent).is_pending());
        let ended = run_out(seen.clone());
        tokio::pin!(ended);
        assert!(futures::poll!(&mut ended).is_pending());
        assert_eq!(pack.recv().await, Some(1));
        sent.await.unwrap();
        // And goes on where it stood.
        ended.await;
        // Whoever takes nothing any more is not waited for.
        drop(pack);
        assert!(room(&chunks, &latest).await.is_err());
        run_out(seen).await;
    }
}
