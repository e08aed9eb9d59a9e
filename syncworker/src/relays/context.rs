//! What relay sync needs of this service's relay, as a trait, and over its contract.
//!
//! Every call ends by a deadline; streams are judged by whether they move.

use std::time::Duration;

use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use grasp_proto::{
    contract::relay::{
        AuthenticateRequest, HeldRelay, InventoryItem, InventoryRequest, LackingRequest,
        LeaseRelaysRequest, LeasedRelay, Method, RelayReport, ReleaseRelaysRequest,
        RenewRelaysRequest, RenewedRelay, SubmitRequest, TargetChanges, WatchTargetsRequest,
        relay_sync_client::RelaySyncClient, submit_verdict::What,
    },
    transport::{AuthorizedChannel, Endpoint, Token},
    words::EventId,
};
use tokio::time::timeout;
use tonic::{Request, Streaming};

use crate::hunt::context::CallError;

/// What an answer of the relay is, or why there is none.
pub type Answer<T> = Result<T, CallError>;

/// The relay's side of relay sync.
pub trait RelaySync: Send + Sync + 'static {
    /// Everything that is wanted, then each change of it.
    fn watch(&self) -> BoxFuture<'_, Answer<BoxStream<'static, Answer<TargetChanges>>>>;

    /// A share of the remote relays. Waits on the server.
    fn lease(&self) -> BoxFuture<'_, Answer<Vec<LeasedRelay>>>;

    /// Keeps leases; those that still hold come back.
    fn renew(&self, reports: Vec<RelayReport>) -> BoxFuture<'_, Answer<Vec<RenewedRelay>>>;

    /// Gives leases back.
    fn release(&self, relays: Vec<HeldRelay>) -> BoxFuture<'_, Answer<()>>;

    /// What is held under a filter.
    fn inventory(
        &self,
        filter: String,
    ) -> BoxFuture<'_, Answer<BoxStream<'static, Answer<Vec<InventoryItem>>>>>;

    /// Which of these are worth fetching.
    fn lacking(&self, ids: Vec<EventId>) -> BoxFuture<'_, Answer<Vec<EventId>>>;

    /// Events found on a remote relay; one verdict for each.
    fn submit<'a>(
        &'a self,
        url: &'a str,
        method: Method,
        events: Vec<String>,
    ) -> BoxFuture<'a, Answer<Vec<What>>>;

    /// The answer to a NIP-42 challenge.
    fn authenticate(&self, relay: HeldRelay, challenge: String) -> BoxFuture<'_, Answer<String>>;
}

/// How long the relay may keep a call waiting.
const WAIT: Duration = Duration::from_secs(20);

/// How much longer than that it may take.
const SPARE: Duration = Duration::from_secs(10);

/// How long a renewal may take.
const RENEWAL: Duration = Duration::from_secs(5);

/// How long a batch of events may take: each is judged, and some release others, which waits for
/// gitd. Longer than any call that the relay makes for it.
const SUBMIT: Duration = Duration::from_secs(150);

/// How long the next part of an inventory may take.
const PROGRESS: Duration = Duration::from_secs(30);

/// When the targets are asked for anew, if nothing else ends their stream.
const WATCH: Duration = Duration::from_secs(24 * 3600);

/// The largest answer: part of a stream, ten thousand ids, or a verdict for each event.
const LARGEST_MESSAGE: usize = 16 * 1024 * 1024;

fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn refused(why: impl Into<String>) -> CallError {
    CallError::Refused(why.into())
}

/// The next message of a stream, until it ends or fails, or does not move for `patience`.
fn messages<T: Send + 'static>(
    stream: Streaming<T>,
    patience: Option<Duration>,
) -> BoxStream<'static, Answer<T>> {
    let unfolded = stream::unfold(Some(stream), move |stream| async move {
        let mut stream = stream?;
        let next = match patience {
            None => stream.message().await,
            Some(patience) => match timeout(patience, stream.message()).await {
                Ok(next) => next,
                Err(_) => return Some((Err(CallError::Away("it stalls".to_owned())), None)),
            },
        };
        match next {
            Ok(Some(message)) => Some((Ok(message), Some(stream))),
            Ok(None) => None,
            Err(status) => Some((Err(status.into()), None)),
        }
    });
    unfolded.boxed()
}

/// The relay over its contract.
#[derive(Debug, Clone)]
pub struct GrpcRelaySync {
    worker: String,
    client: RelaySyncClient<AuthorizedChannel>,
}

impl GrpcRelaySync {
    /// For this run of this worker, called `worker`, with its `credential`. Connects when first used.
    pub fn new(worker: String, relay: &Endpoint, credential: &Token) -> Self {
        let client = RelaySyncClient::new(relay.authorized(credential))
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE);
        Self { worker, client }
    }
}

impl RelaySync for GrpcRelaySync {
    fn watch(&self) -> BoxFuture<'_, Answer<BoxStream<'static, Answer<TargetChanges>>>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let answer = client.watch_targets(within(WATCH, WatchTargetsRequest {}));
            Ok(messages(answer.await?.into_inner(), None))
        })
    }

    fn lease(&self) -> BoxFuture<'_, Answer<Vec<LeasedRelay>>> {
        let request = LeaseRelaysRequest {
            worker: self.worker.clone(),
            wait_millis: u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX),
        };
        let mut client = self.client.clone();
        Box::pin(async move {
            let answer = client.lease_relays(within(WAIT + SPARE, request)).await?;
            Ok(answer.into_inner().relays)
        })
    }

    fn renew(&self, reports: Vec<RelayReport>) -> BoxFuture<'_, Answer<Vec<RenewedRelay>>> {
        let request = RenewRelaysRequest {
            worker: self.worker.clone(),
            relays: reports,
        };
        let mut client = self.client.clone();
        Box::pin(async move {
            let answer = client.renew_relays(within(RENEWAL, request)).await?;
            Ok(answer.into_inner().relays)
        })
    }

    fn release(&self, relays: Vec<HeldRelay>) -> BoxFuture<'_, Answer<()>> {
        let request = ReleaseRelaysRequest {
            worker: self.worker.clone(),
            relays,
        };
        let mut client = self.client.clone();
        Box::pin(async move {
            client.release_relays(within(SPARE, request)).await?;
            Ok(())
        })
    }

    fn inventory(
        &self,
        filter: String,
    ) -> BoxFuture<'_, Answer<BoxStream<'static, Answer<Vec<InventoryItem>>>>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let answer = client.inventory(within(WATCH, InventoryRequest { filter }));
            let answer = timeout(PROGRESS, answer)
                .await
                .map_err(|_| CallError::Away("it takes too long".to_owned()))??;
            let parts = messages(answer.into_inner(), Some(PROGRESS));
            Ok(parts.map(|part| Ok(part?.items)).boxed())
        })
    }

    fn lacking(&self, ids: Vec<EventId>) -> BoxFuture<'_, Answer<Vec<EventId>>> {
        let ids = ids.into_iter().map(|id| id.as_bytes().to_vec()).collect();
        let mut client = self.client.clone();
        Box::pin(async move {
            let answer = client
                .lacking(within(PROGRESS, LackingRequest { ids }))
                .await?;
            let ids = answer.into_inner().ids;
            let ids = ids.iter().map(|id| EventId::from_slice(id));
            ids.collect::<Result<_, _>>()
                .map_err(|error| refused(error.to_string()))
        })
    }

    fn submit<'a>(
        &'a self,
        url: &'a str,
        method: Method,
        events: Vec<String>,
    ) -> BoxFuture<'a, Answer<Vec<What>>> {
        let count = events.len();
        let request = SubmitRequest {
            worker: self.worker.clone(),
            url: url.to_owned(),
            method: method.into(),
            events,
        };
        let mut client = self.client.clone();
        Box::pin(async move {
            let answer = client.submit(within(SUBMIT, request)).await?;
            let verdicts = answer.into_inner().verdicts;
            if verdicts.len() != count {
                return Err(refused("it judged another number of events"));
            }
            Ok(verdicts.iter().map(|verdict| verdict.what()).collect())
        })
    }

    fn authenticate(&self, relay: HeldRelay, challenge: String) -> BoxFuture<'_, Answer<String>> {
        let request = AuthenticateRequest {
            worker: self.worker.clone(),
            url: relay.url,
            token: relay.token,
            challenge,
        };
        let mut client = self.client.clone();
        Box::pin(async move {
            let answer = client.authenticate(within(SPARE, request)).await?;
            Ok(answer.into_inner().event)
        })
    }
}
