//! One leased identifier: next, fetch, report, until there is nothing to do.
//!
//! What was tried is owned here and nowhere else. Whatever is going on is dropped at once when the
//! lease is lost, and nothing is reported then: it is another worker's by now.

use std::{collections::HashSet, sync::Arc, time::Duration};

use grasp_proto::{
    contract::relay::{
        Arrived, Failed, Fetch, ReportRequest, ended, failed::Why, next_response::Step,
        report_request::Outcome,
    },
    transport::Trace,
    words::Oid,
};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::{
    Stopping,
    backoff::Backoff,
    context::{CallError, Failure, Order, SyncContext},
    counts::{Counts, Meter},
    lease::{Held, Taken},
    places::Place,
};

/// How long a worker that stops waits for one last answer.
pub const LAST_CALLS: Duration = Duration::from_secs(2);

/// How often a call that nobody answers is made, while the lease holds.
const ATTEMPTS: u32 = 20;

/// An answer that came sooner than this was not waited for on the server.
pub const SOON: Duration = Duration::from_secs(1);

/// The most URLs one lease can have tried, those of earlier turns included: the relay takes no more.
const MOST_TRIED: usize = 2_000;

/// The most characters of an explanation, which another server may have worded.
const LONGEST_DETAIL: usize = 300;

/// How the hunt for an identifier ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As the relay said.
    Ended(ended::Why),
    /// The lease is lost.
    Lost,
    /// The worker stops: the lease is to be handed back.
    Stopping,
    /// So it is when a fetch took so long that its place is others' now.
    NoPlace,
    /// The relay is not to be understood: the lease is left to run out.
    GivenUp,
}

/// A URL without what may be secret in it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// An explanation that is fit for a log: one line, not too long.
fn told(detail: &str) -> String {
    detail
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_DETAIL)
        .collect()
}

/// A fetch that had to make room for others.
fn no_place(meter: &Meter) -> Failure {
    let rate = meter.speed().rate().unwrap_or_default() >> 10;
    Failure {
        why: Why::Slow,
        detail: format!("others that take long as well are faster than its {rate} KiB a second"),
    }
}

/// One hunt.
struct Hunter<'a> {
    context: &'a dyn SyncContext,
    counts: &'a Arc<Counts>,
    stopping: &'a Stopping,
    lease: &'a Held,
    place: &'a mut Place,
    tried: Vec<String>,
    fetches: u32,
}

/// Hunts for a leased identifier until it is done with, in whatever way.
pub async fn hunt(
    context: &dyn SyncContext,
    counts: &Arc<Counts>,
    stopping: &Stopping,
    lease: Taken,
    mut place: Place,
    tried: Vec<String>,
) {
    let begun = Instant::now();
    let mut hunter = Hunter {
        context,
        counts,
        stopping,
        lease: &lease,
        place: &mut place,
        tried,
        fetches: 0,
    };
    let end = tokio::select! {
        biased;
        () = lease.lost() => End::Lost,
        end = hunter.steps() => end,
    };
    let (identifier, fetches) = (lease.identifier.clone(), hunter.fetches);
    let millis = begun.elapsed().as_millis();
    match end {
        End::Ended(why) => {
            tracing::info!(%identifier, why = why.as_str_name(), fetches, millis, "hunted");
        }
        End::Lost => {
            tracing::warn!(%identifier, fetches, millis, "lost the lease: stopped at once");
        }
        End::GivenUp => {}
        End::Stopping | End::NoPlace => {
            tracing::info!(%identifier, fetches, millis, "handed back");
            let name = lease.name();
            // Not renewed any more.
            drop(lease);
            // Otherwise it runs out by itself.
            match timeout(LAST_CALLS, context.release(vec![name])).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%identifier, %error, "could not hand it back"),
                Err(_) => tracing::debug!(%identifier, "could not hand it back in time"),
            }
        }
    }
}

impl Hunter<'_> {
    async fn steps(&mut self) -> End {
        let mut backoff = Backoff::default();
        loop {
            let asked = Instant::now();
            let step = tokio::select! {
                biased;
                () = self.stopping.asked.cancelled() => return End::Stopping,
                step = patiently(|| self.context.next(self.lease.name(), self.tried.clone())) => step,
            };
            match step {
                Ok(Step::Wait(_)) if asked.elapsed() < SOON => sleep(backoff.wait()).await,
                Ok(Step::Wait(_)) => backoff.reset(),
                Ok(Step::Ended(ended)) => return End::Ended(ended.why()),
                Ok(Step::Fetch(fetch)) => {
                    backoff.reset();
                    match self.fetch(fetch).await {
                        Ok(()) => {}
                        Err(end) => return end,
                    }
                }
                Err(CallError::Lost) => return End::Lost,
                Err(error) => {
                    tracing::warn!(%error, "the hunt is given up, its lease left to run out");
                    return End::GivenUp;
                }
            }
        }
    }

    async fn fetch(&mut self, fetch: Fetch) -> Result<(), End> {
        if self.tried.len() >= MOST_TRIED {
            tracing::warn!("the relay gives URLs without end");
            return Err(End::GivenUp);
        }
        if !self.tried.contains(&fetch.url) {
            self.tried.push(fetch.url.clone());
        }
        self.fetches += 1;
        let begun = Instant::now();
        let meter = Meter::begin(self.counts);
        let number = fetch.fetch;
        let outcome = match Order::try_from(fetch) {
            Ok(order) => {
                let span = tracing::info_span!("fetch", url = shown(&order.wanted.url));
                Trace::within(span, self.carry_out(order, &meter)).await
            }
            Err(error) => Err(Failure::ours(error.to_string())),
        };
        let bytes = meter.bytes();
        drop(meter);
        self.counts
            .ended(outcome.as_ref().err().map(|failure| failure.why));
        let report = ReportRequest {
            identifier: self.lease.identifier.to_string(),
            token: self.lease.token,
            fetch: number,
            outcome: Some(match outcome {
                Ok(arrived) => Outcome::Arrived(Arrived {
                    oids: arrived.iter().map(|oid| oid.as_bytes().to_vec()).collect(),
                }),
                Err(Failure { why, detail }) => Outcome::Failed(Failed {
                    why: why.into(),
                    detail: told(&detail),
                }),
            }),
            bytes,
            millis: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.report(report).await?;
        match self.place.is_short_again() {
            true => Ok(()),
            false => Err(End::NoPlace),
        }
    }

    async fn carry_out(&mut self, order: Order, meter: &Meter) -> Result<Vec<Oid>, Failure> {
        let Order {
            fetch,
            wanted,
            grant,
        } = order;
        let url = shown(&wanted.url);
        tracing::debug!(%url, wants = wanted.wants.len(), haves = wanted.haves.len(), "asking");
        let (fetching, grants) = self.lease.fetching(fetch, grant);
        let mut outcome = tokio::select! {
            biased;
            () = self.stopping.now.cancelled() => Err(Failure::ours("the worker is stopping")),
            outcome = self.context.transfer(&wanted, grants, meter) => outcome,
            () = self.place.keep(meter.speed()) => Err(no_place(meter)),
        };
        drop(fetching);
        match &mut outcome {
            Ok(arrived) => {
                // What was not asked for is no news to the relay, and may be any number.
                let wanted: HashSet<&Oid> = wanted.wants.iter().collect();
                arrived.retain(|oid| wanted.contains(oid));
                tracing::debug!(%url, arrived = arrived.len(), bytes = meter.bytes(), "arrived");
            }
            Err(Failure { why, detail }) => {
                let (why_name, detail) = (why.as_str_name(), told(detail));
                match why {
                    Why::Ours => tracing::warn!(%url, detail, "a fetch failed of ourselves"),
                    _ => tracing::debug!(%url, why = why_name, detail, "did not arrive"),
                }
            }
        }
        outcome
    }

    /// Says how a fetch went, again and again while the lease lasts: events are served because of it.
    async fn report(&self, report: ReportRequest) -> Result<(), End> {
        let last = async {
            self.stopping.asked.cancelled().await;
            sleep(LAST_CALLS).await;
        };
        let said = tokio::select! {
            biased;
            said = patiently(|| self.context.report(report.clone())) => said,
            () = last => return Err(End::Stopping),
        };
        match said {
            Ok(response) => {
                let (released, missing) = (response.released, response.missing);
                tracing::debug!(released, missing, "reported");
                Ok(())
            }
            Err(CallError::Lost) => Err(End::Lost),
            Err(error) => {
                // The next step tells the relay that this fetch is over.
                tracing::warn!(%error, "a fetch could not be reported");
                Ok(())
            }
        }
    }
}

/// Makes a call again while nobody answers it.
async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let mut backoff = Backoff::default();
    for _ in 1..ATTEMPTS {
        match call().await {
            Err(CallError::Away(why)) => {
                tracing::debug!(why, "calling the relay again");
                sleep(backoff.wait()).await;
            }
            answer => return answer,
        }
    }
    call().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_holds_no_secrets_and_is_one_line() {
        let url = "https://user:secret@example.com:8443/x.git?token=secret#secret";
        assert_eq!(
            shown(&url.parse().unwrap()),
            "https://example.com:8443/x.git"
        );
        let told = told(&format!("a\nb\u{1b}[31m{}", "ü".repeat(1000)));
        assert!(told.starts_with("a b [31mü"));
        assert_eq!(told.chars().count(), LONGEST_DETAIL);
    }
}
