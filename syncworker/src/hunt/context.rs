//! What the hunt needs of the world outside: the relay's `Hunt`, and packs brought from other
//! servers to gitd.
//!
//! [`SyncContext`] is the trait; [`GrpcContext`] speaks the contracts. Every call ends by a deadline,
//! except a transfer, which is judged by whether it moves.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use grasp_proto::{
    contract::{
        git::packs_client::PacksClient,
        relay::{
            Fetch, HeldLease, HuntCounts, LeaseRequest, LeasedIdentifier, NextRequest,
            ReleaseRequest, RenewRequest, RenewedLease, ReportRequest, ReportResponse, failed::Why,
            hunt_client::HuntClient, next_response::Step,
        },
    },
    transport::{AuthorizedChannel, Endpoint, Token},
    words::Oid,
};
use tokio::sync::watch;
use tonic::{Code, Request, Status};
use url::Url;

use super::{
    counts::Meter,
    fetch::{FetchError, Wanted},
    transfer::{self, Remote},
};

/// Why the relay did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The lease is not ours any more.
    #[error("the lease is lost")]
    Lost,
    /// Nobody answers, or not in time: worth asking again.
    #[error("the relay does not answer: {0}")]
    Away(String),
    /// It will not, however often it is asked.
    #[error("the relay refuses: {0}")]
    Refused(String),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let said = format!("{:?}, {}", status.code(), status.message());
        match status.code() {
            Code::Aborted => Self::Lost,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented => Self::Refused(said),
            _ => Self::Away(said),
        }
    }
}

/// Why a fetch brought nothing, as the relay is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why:?}: {detail}")]
pub struct Failure {
    /// Whose fault it is.
    pub why: Why,
    /// For people.
    pub detail: String,
}

impl Failure {
    /// A failure of this service's own.
    pub fn ours(detail: impl Into<String>) -> Self {
        Self {
            why: Why::Ours,
            detail: detail.into(),
        }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self {
            why: error.why,
            detail: error.detail,
        }
    }
}

/// What the relay asks for, checked.
#[derive(Debug)]
pub struct Order {
    /// Names it in the report.
    pub fetch: u64,
    /// What from where.
    pub wanted: Wanted,
    /// For gitd.
    pub grant: Bytes,
}

/// A fetch that cannot be made as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the relay asked for what cannot be fetched: {0}")]
pub struct BadOrder(String);

impl TryFrom<Fetch> for Order {
    type Error = BadOrder;

    fn try_from(fetch: Fetch) -> Result<Self, BadOrder> {
        let oids = |list: &[Vec<u8>]| -> Result<Vec<Oid>, BadOrder> {
            list.iter()
                .map(|oid| Oid::from_slice(oid).map_err(|error| BadOrder(error.to_string())))
                .collect()
        };
        let url = Url::parse(&fetch.url).map_err(|error| BadOrder(format!("its URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(BadOrder("its URL is not http or https".to_owned()));
        }
        if fetch.wants.is_empty() {
            return Err(BadOrder("it names no object".to_owned()));
        }
        Ok(Self {
            fetch: fetch.fetch,
            wanted: Wanted {
                url,
                wants: oids(&fetch.wants)?,
                haves: oids(&fetch.haves)?,
                max_bytes: fetch.max_bytes,
            },
            grant: fetch.grant.into(),
        })
    }
}

/// The world outside.
pub trait SyncContext: Send + Sync + 'static {
    /// Identifiers that are due, `room` at most. Waits on the server.
    fn lease(&self, room: usize) -> BoxFuture<'_, Result<Vec<LeasedIdentifier>, CallError>>;

    /// Keeps leases; those that still hold come back.
    fn renew(
        &self,
        leases: Vec<HeldLease>,
        counts: HuntCounts,
    ) -> BoxFuture<'_, Result<Vec<RenewedLease>, CallError>>;

    /// What to do next under a lease. Waits on the server.
    fn next(&self, lease: HeldLease, tried: Vec<String>) -> BoxFuture<'_, Result<Step, CallError>>;

    /// How a fetch went. May be repeated.
    fn report(&self, report: ReportRequest) -> BoxFuture<'_, Result<ReportResponse, CallError>>;

    /// Hands leases back.
    fn release(&self, leases: Vec<HeldLease>) -> BoxFuture<'_, Result<(), CallError>>;

    /// Brings a pack from another server to gitd, under the newest of `grants`: those of the wanted
    /// objects that are here then. Dropped, it breaks off at both ends, and nothing is left behind.
    fn transfer<'a>(
        &'a self,
        wanted: &'a Wanted,
        grants: watch::Receiver<Bytes>,
        meter: &'a Meter,
    ) -> BoxFuture<'a, Result<Vec<Oid>, Failure>>;
}

/// How long the relay may keep a call waiting.
const WAIT: Duration = Duration::from_secs(20);

/// How much longer than that it may take.
const SPARE: Duration = Duration::from_secs(10);

/// How long a renewal may take.
const RENEWAL: Duration = Duration::from_secs(5);

/// How long a report may take: events are released by it, in many repositories perhaps.
const REPORT: Duration = Duration::from_secs(60);

/// The largest answer: the objects that all states of one identifier can name, with room.
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Relay and gitd over their contracts.
pub struct GrpcContext {
    worker: String,
    hunt: HuntClient<AuthorizedChannel>,
    packs: PacksClient<AuthorizedChannel>,
    remote: Arc<dyn Remote>,
}

impl GrpcContext {
    /// This run of this worker, called `worker`, with its `credential`. Connects when first used.
    pub fn new(
        worker: String,
        relay: &Endpoint,
        gitd: &Endpoint,
        credential: &Token,
        remote: Arc<dyn Remote>,
    ) -> Self {
        let hunt = HuntClient::new(relay.authorized(credential))
            .max_decoding_message_size(LARGEST_MESSAGE);
        let packs = PacksClient::new(gitd.authorized(credential))
            .max_decoding_message_size(LARGEST_MESSAGE);
        Self {
            worker,
            hunt,
            packs,
            remote,
        }
    }
}

impl SyncContext for GrpcContext {
    fn lease(&self, room: usize) -> BoxFuture<'_, Result<Vec<LeasedIdentifier>, CallError>> {
        let request = LeaseRequest {
            worker: self.worker.clone(),
            room: u32::try_from(room).unwrap_or(u32::MAX),
            wait_millis: millis(WAIT),
        };
        let mut hunt = self.hunt.clone();
        Box::pin(async move {
            let answer = hunt.lease(within(WAIT + SPARE, request)).await?;
            Ok(answer.into_inner().leases)
        })
    }

    fn renew(
        &self,
        leases: Vec<HeldLease>,
        counts: HuntCounts,
    ) -> BoxFuture<'_, Result<Vec<RenewedLease>, CallError>> {
        let request = RenewRequest {
            worker: self.worker.clone(),
            leases,
            counts: Some(counts),
        };
        let mut hunt = self.hunt.clone();
        Box::pin(async move {
            let answer = hunt.renew(within(RENEWAL, request)).await?;
            Ok(answer.into_inner().leases)
        })
    }

    fn next(&self, lease: HeldLease, tried: Vec<String>) -> BoxFuture<'_, Result<Step, CallError>> {
        let request = NextRequest {
            identifier: lease.identifier,
            token: lease.token,
            tried,
            wait_millis: millis(WAIT),
        };
        let mut hunt = self.hunt.clone();
        Box::pin(async move {
            let answer = hunt.next(within(WAIT + SPARE, request)).await?;
            let step = answer.into_inner().step;
            step.ok_or_else(|| CallError::Refused("its answer was empty".to_owned()))
        })
    }

    fn report(&self, report: ReportRequest) -> BoxFuture<'_, Result<ReportResponse, CallError>> {
        let mut hunt = self.hunt.clone();
        Box::pin(async move { Ok(hunt.report(within(REPORT, report)).await?.into_inner()) })
    }

    fn release(&self, leases: Vec<HeldLease>) -> BoxFuture<'_, Result<(), CallError>> {
        let request = ReleaseRequest {
            worker: self.worker.clone(),
            leases,
        };
        let mut hunt = self.hunt.clone();
        Box::pin(async move {
            hunt.release(within(SPARE, request)).await?;
            Ok(())
        })
    }

    fn transfer<'a>(
        &'a self,
        wanted: &'a Wanted,
        grants: watch::Receiver<Bytes>,
        meter: &'a Meter,
    ) -> BoxFuture<'a, Result<Vec<Oid>, Failure>> {
        Box::pin(async move {
            let pack = self.remote.open(wanted).await?;
            transfer::store(self.packs.clone(), pack, grants, meter).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch() -> Fetch {
        Fetch {
            fetch: 7,
            url: "https://example.com/x.git".into(),
            wants: vec![vec![1; 20]],
            haves: vec![vec![2; 20]],
            ..Fetch::default()
        }
    }

    #[test]
    fn an_order_is_checked_once() {
        let order = Order::try_from(fetch()).unwrap();
        assert_eq!(order.wanted.wants, [Oid::from_bytes([1; 20])]);
        let bad = |change: fn(&mut Fetch)| {
            let mut fetch = fetch();
            change(&mut fetch);
            assert!(Order::try_from(fetch.clone()).is_err(), "{fetch:?}");
        };
        bad(|fetch| fetch.url = "no url".into());
        bad(|fetch| fetch.url = "file:///etc/passwd".into());
        bad(|fetch| fetch.url = "ssh://example.com/x.git".into());
        bad(|fetch| fetch.wants = vec![]);
        bad(|fetch| fetch.wants = vec![vec![1; 32]]);
        bad(|fetch| fetch.haves = vec![vec![]]);
    }

    #[test]
    fn only_a_lost_lease_is_lost() {
        let of = |code| CallError::from(Status::new(code, "x"));
        assert_eq!(of(Code::Aborted), CallError::Lost);
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown] {
            assert!(matches!(of(code), CallError::Away(_)));
        }
        for code in [Code::Unauthenticated, Code::InvalidArgument] {
            assert!(matches!(of(code), CallError::Refused(_)));
        }
    }
}
