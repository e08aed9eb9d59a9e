//! Hunt: what workers are to look for, and where (see `hunt.proto`). Everything a worker says is
//! bounded, and nothing of it believed.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures::future::join_all;
use grasp_proto::{
    contract::relay::{self as wire, ended, failed, hunt_server, next_response, report_request},
    words::{Identifier, Oid},
};
use tonic::{Request, Response, Status};

use super::{at_most, millis, worker_name};
use crate::hunt::{
    Hunter, HunterError, Next, Outcome, budget,
    costly::OfUrl,
    queue::{Leased, Said, Why},
    workers::Counts,
};

/// URLs that a worker may say it has tried; more than an identifier has.
const TRIED: usize = 2_000;
/// Leases that one call may name.
const LEASES: usize = 4_096;
/// Objects that one report may name.
const ARRIVED: usize = 20_000;
/// The longest text of a failure that is kept, in characters.
const DETAIL: usize = 300;

/// The Hunt service.
#[derive(Clone)]
pub struct HuntService(Hunter);

impl HuntService {
    /// The service over `hunter`.
    pub fn new(hunter: Hunter) -> Self {
        Self(hunter)
    }
}

impl From<HunterError> for Status {
    fn from(error: HunterError) -> Self {
        match error {
            HunterError::Lost(_) => Status::aborted(error.to_string()),
            HunterError::UnknownFetch => Status::invalid_argument(error.to_string()),
            HunterError::Journal(_) => Status::unavailable(error.to_string()),
        }
    }
}

impl From<Why> for ended::Why {
    fn from(why: Why) -> Self {
        match why {
            Why::NothingPending => Self::NothingPending,
            Why::NothingLeft => Self::NothingLeftToTry,
            Why::TurnOver => Self::TurnOver,
            Why::DomainsBusy => Self::DomainsBusy,
        }
    }
}

/// What a failure says of the one that was asked.
fn said(why: failed::Why) -> Said {
    let (server, url) = match why {
        failed::Why::Server => (budget::Outcome::Broken, OfUrl::Nothing),
        failed::Why::Busy => (budget::Outcome::Busy, OfUrl::Nothing),
        failed::Why::NotThere => (budget::Outcome::Fine, OfUrl::Nothing),
        failed::Why::Large | failed::Why::BadPack => (budget::Outcome::Fine, OfUrl::Costly),
        // It does answer.
        failed::Why::Unwell => (budget::Outcome::Fine, OfUrl::Unwell),
        failed::Why::Slow => (budget::Outcome::Unknown, OfUrl::Costly),
        failed::Why::Ours => (budget::Outcome::Unknown, OfUrl::NotAsked),
        failed::Why::Unspecified | failed::Why::Forbidden => {
            (budget::Outcome::Unknown, OfUrl::Nothing)
        }
    };
    Said { server, url }
}

#[tonic::async_trait]
impl hunt_server::Hunt for HuntService {
    async fn lease(
        &self,
        request: Request<wire::LeaseRequest>,
    ) -> Result<Response<wire::LeaseResponse>, Status> {
        let request = request.into_inner();
        worker_name(&request.worker)?;
        if request.room == 0 {
            return Err(Status::invalid_argument("room is 0"));
        }
        let room = usize::try_from(request.room).unwrap_or(usize::MAX);
        let wait = Duration::from_millis(request.wait_millis.into());
        let leases = self.0.lease(&request.worker, room, wait).await;
        let valid_millis = millis(self.0.hunt.lease_time());
        let leased = |lease: Leased| wire::LeasedIdentifier {
            identifier: lease.identifier.to_string(),
            token: lease.token,
            valid_millis,
            tried: lease.tried,
            traceparent: lease.trace.map(|t| t.to_string()).unwrap_or_default(),
        };
        let leases = leases.into_iter().map(leased).collect();
        Ok(Response::new(wire::LeaseResponse { leases }))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let request = request.into_inner();
        worker_name(&request.worker)?;
        at_most(&request.leases, LEASES, "leases")?;
        let counts = request.counts.map(|counts| Counts {
            succeeded: counts.fetches_succeeded,
            failed: counts.fetches_failed,
            bytes: counts.bytes,
            fetching: counts.fetching,
            concurrency: counts.concurrency,
        });
        self.0.hunt.act(|queue, now| {
            queue.workers.seen(&request.worker, now);
            if let Some(counts) = counts {
                queue.workers.counts(&request.worker, counts);
            }
        });
        let valid_millis = millis(self.0.hunt.lease_time());
        // Each once, however often it is named: a grant is large.
        let held: BTreeMap<(String, u64), Identifier> = request
            .leases
            .into_iter()
            .filter_map(|held| {
                let identifier = Identifier::parse(&held.identifier).ok()?;
                Some(((held.identifier, held.token), identifier))
            })
            .collect();
        let renewals = held
            .into_iter()
            .map(|((name, token), identifier)| async move {
                match self.0.renew(&identifier, token).await {
                    Ok(grant) => Ok(Some(wire::RenewedLease {
                        identifier: name,
                        token,
                        valid_millis,
                        grant,
                    })),
                    // One that is lost is left out.
                    Err(HunterError::Lost(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            });
        let renewed: Result<Vec<_>, HunterError> = join_all(renewals).await.into_iter().collect();
        let leases = renewed?.into_iter().flatten().collect();
        Ok(Response::new(wire::RenewResponse { leases }))
    }

    async fn next(
        &self,
        request: Request<wire::NextRequest>,
    ) -> Result<Response<wire::NextResponse>, Status> {
        let request = request.into_inner();
        let identifier = Identifier::parse(&request.identifier)?;
        at_most(&request.tried, TRIED, "URLs")?;
        let tried: HashSet<String> = request.tried.into_iter().collect();
        let wait = Duration::from_millis(request.wait_millis.into());
        let next = self.0.next(&identifier, request.token, &tried, wait);
        let step = match next.await? {
            Next::Fetch(fetch) => next_response::Step::Fetch(wire::Fetch {
                fetch: fetch.number,
                url: fetch.url.url,
                wants: bytes(&fetch.wants),
                haves: bytes(&fetch.haves),
                grant: fetch.grant,
                max_bytes: self.0.max_pack_bytes,
            }),
            Next::Wait => next_response::Step::Wait(wire::Wait {}),
            Next::Ended(why) => next_response::Step::Ended(wire::Ended {
                why: ended::Why::from(why).into(),
            }),
        };
        Ok(Response::new(wire::NextResponse { step: Some(step) }))
    }

    async fn report(
        &self,
        request: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::ReportResponse>, Status> {
        let request = request.into_inner();
        let identifier = Identifier::parse(&request.identifier)?;
        let outcome = match request.outcome {
            Some(report_request::Outcome::Arrived(arrived)) => {
                at_most(&arrived.oids, ARRIVED, "objects")?;
                Outcome::Arrived
            }
            Some(report_request::Outcome::Failed(failed)) => {
                let why = failed.why();
                let detail: String = failed.detail.chars().take(DETAIL).collect();
                let text = format!("{}: {detail}", why.as_str_name());
                Outcome::Failed(said(why), text)
            }
            None => return Err(Status::invalid_argument("outcome is missing")),
        };
        let (bytes, millis) = (request.bytes, request.millis);
        tracing::debug!(%identifier, fetch = request.fetch, bytes, millis, "reported");
        let report = self
            .0
            .report(&identifier, request.token, request.fetch, outcome);
        let answer = report.await?;
        Ok(Response::new(wire::ReportResponse {
            released: answer.released,
            missing: answer.missing,
        }))
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::ReleaseResponse>, Status> {
        let request = request.into_inner();
        worker_name(&request.worker)?;
        at_most(&request.leases, LEASES, "leases")?;
        for held in request.leases {
            if let Ok(identifier) = Identifier::parse(&held.identifier) {
                // One that is lost has been handed back already.
                let _ = self
                    .0
                    .hunt
                    .act(|queue, now| queue.release(&identifier, held.token, now));
            }
        }
        Ok(Response::new(wire::ReleaseResponse {}))
    }
}

fn bytes(oids: &[Oid]) -> Vec<Vec<u8>> {
    oids.iter().map(|oid| oid.as_bytes().to_vec()).collect()
}
