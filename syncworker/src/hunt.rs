//! The hunt for git data that waiting events name and that is not here.
//!
//! - `identifier`: one leased identifier, from its first step to its last
//! - `lease`: the leases that are held, and their ends
//! - `places`: how many hunts there can be, and which gives way when too many take long, by `speed`
//! - `context`: what is needed of relay and gitd, as a trait
//! - [`fetch`]: how another server is asked for a pack
//! - `transfer`: how that pack gets into gitd
//! - `backoff`, `counts`
//!
//! [`Hunt::run`] drives three kinds of tasks: one asks for leases as there is room, one renews those
//! that are held, and each identifier has its own. No identifier waits for another; there are as many
//! as there are places. A worker keeps nothing that matters: whatever ends in the middle is
//! begun again by whoever leases the identifier next.

pub mod backoff;
pub mod context;
pub mod counts;
pub mod fetch;
mod identifier;
pub mod lease;
mod places;
pub mod speed;
pub mod transfer;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use grasp_proto::{
    contract::relay::{HeldLease, LeasedIdentifier},
    transport::Trace,
};
use tokio::{
    task::JoinError,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use backoff::Backoff;
use context::{CallError, SyncContext};
use counts::Counts;
use identifier::{LAST_CALLS, SOON};
use lease::{Leases, Renewal};
use places::{Place, Places};

/// A renewal that is not answered for so long is sent again, whatever the period.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);

/// Calls that renew leases at the same time: their answers can be large.
const GROUPS_AT_ONCE: usize = 4;

/// The two steps of a stop.
#[derive(Debug, Default)]
pub struct Stopping {
    /// Nothing new is begun.
    asked: CancellationToken,
    /// What is running is cut off.
    now: CancellationToken,
}

/// The hunt of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Hunt {
    context: Arc<dyn SyncContext>,
    /// Identifiers hunted for at once, beside those whose fetch takes long.
    concurrency: usize,
    places: Arc<Places>,
    leases: Arc<Leases>,
    counts: Arc<Counts>,
    stopping: Arc<Stopping>,
    tasks: TaskTracker,
}

impl Hunt {
    /// A hunt for up to `concurrency` identifiers at once, and as many more whose fetch takes long.
    pub fn new(context: Arc<dyn SyncContext>, concurrency: usize) -> Self {
        Self {
            context,
            concurrency,
            places: Arc::new(Places::new(concurrency)),
            leases: Arc::default(),
            counts: Arc::default(),
            stopping: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Hunts until `stop`; then lets fetches that are running end, for `grace` at most, and hands
    /// back what is leased.
    ///
    /// # Errors
    /// A task that everything hangs on has died.
    pub async fn run(self, stop: CancellationToken, grace: Duration) -> Result<(), JoinError> {
        let mut renewing = tokio::spawn(self.clone().renew());
        let mut leasing = tokio::spawn(self.clone().lease());
        let died = tokio::select! {
            () = stop.cancelled() => None,
            ended = &mut renewing => Some(ended),
            ended = &mut leasing => Some(ended),
        };
        self.stopping.asked.cancel();
        if let Some(died) = died {
            renewing.abort();
            leasing.abort();
            return died;
        }
        leasing.await?;
        self.tasks.close();
        if timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                left = self.tasks.len(),
                "fetches are cut off: their grace is over"
            );
            self.stopping.now.cancel();
            // One report and one handing back, each bounded by itself.
            let _ = timeout(2 * LAST_CALLS, self.tasks.wait()).await;
        }
        renewing.abort();
        Ok(())
    }

    /// Asks for leases while there is room.
    async fn lease(self) {
        let asked_to_stop = &self.stopping.asked;
        let mut backoff = Backoff::default();
        let mut away = Away::default();
        loop {
            let mut places = tokio::select! {
                biased;
                () = asked_to_stop.cancelled() => return,
                places = self.places.free() => places,
            };
            let asked = Instant::now();
            let answer = tokio::select! {
                biased;
                // A lease that is on its way runs out by itself.
                () = asked_to_stop.cancelled() => return,
                answer = self.context.lease(places.len()) => answer,
            };
            let taken = match answer {
                Ok(leased) => {
                    away.answered();
                    self.take(leased, &mut places)
                }
                Err(error) => {
                    away.failed(&error);
                    0
                }
            };
            drop(places);
            // An answer that brought nothing, and that nobody waited for, is not asked for again at once.
            if taken > 0 || (!away.0 && asked.elapsed() >= SOON) {
                backoff.reset();
                continue;
            }
            tokio::select! {
                biased;
                () = asked_to_stop.cancelled() => return,
                () = sleep(backoff.wait()) => {}
            }
        }
    }

    /// Begins with what was leased; says with how many.
    fn take(&self, leased: Vec<LeasedIdentifier>, places: &mut Vec<Place>) -> usize {
        let mut taken = 0;
        let mut too_many = Vec::new();
        for leased in leased {
            let Some(place) = places.pop() else {
                too_many.push(HeldLease {
                    identifier: leased.identifier,
                    token: leased.token,
                });
                continue;
            };
            match self.leases.take(&leased) {
                Ok(lease) => {
                    taken += 1;
                    let trace = Trace::parse(&leased.traceparent);
                    let span = tracing::info_span!(
                        parent: None,
                        "hunt",
                        identifier = %leased.identifier
                    );
                    let hunt = self.clone();
                    let work = async move {
                        let Hunt {
                            context,
                            counts,
                            stopping,
                            ..
                        } = &hunt;
                        let tried = leased.tried;
                        identifier::hunt(&**context, counts, stopping, lease, place, tried).await;
                    };
                    self.tasks.spawn(Trace::follow(trace, span, work));
                }
                Err(error) => {
                    tracing::warn!(%error, "the relay leased what has no name");
                    places.push(place);
                }
            }
        }
        if !too_many.is_empty() {
            tracing::warn!(
                leases = too_many.len(),
                "the relay leased more than there is room for"
            );
            let context = self.context.clone();
            self.tasks.spawn(async move {
                let _ = timeout(LAST_CALLS, context.release(too_many)).await;
            });
        }
        taken
    }

    /// Renews what is held, and tells the relay that this worker lives.
    async fn renew(self) {
        let mut period = self.leases.period();
        let mut backoff = Backoff::default();
        let mut away = Away::default();
        loop {
            let sent = Instant::now();
            let every = *period.borrow_and_update();
            let groups = self.leases.renewal().groups();
            let calls = groups
                .into_iter()
                .map(|group| self.renew_group(group, every));
            let mut answers = stream::iter(calls).buffer_unordered(GROUPS_AT_ONCE);
            let mut failed = None;
            while let Some(answer) = answers.next().await {
                failed = answer.err().or(failed);
            }
            let mut next = match failed {
                None => {
                    away.answered();
                    backoff.reset();
                    sent + every
                }
                Some(error) => {
                    away.failed(&error);
                    Instant::now() + backoff.wait().min(every / 2)
                }
            };
            // A lease that is shorter than those before is renewed sooner.
            while tokio::select! {
                biased;
                () = sleep_until(next) => false,
                _ = period.changed() => true,
            } {
                next = next.min(sent + *period.borrow_and_update());
            }
        }
    }

    /// Renews some of what is held. The others do not suffer when that fails.
    async fn renew_group(&self, group: Renewal, every: Duration) -> Result<(), CallError> {
        let sent = Instant::now();
        let call = self
            .context
            .renew(group.names(), self.counts.told(self.concurrency));
        match timeout(every.max(SHORTEST_PATIENCE), call).await {
            Ok(Ok(answer)) => {
                self.leases.renewed(&group, sent, answer);
                Ok(())
            }
            Ok(Err(CallError::Lost)) => {
                group.lose();
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CallError::Away("it takes too long".to_owned())),
        }
    }
}

/// Whether the relay was heard the last time; said when that changes.
#[derive(Debug, Default)]
struct Away(bool);

impl Away {
    fn failed(&mut self, error: &CallError) {
        match (self.0, error) {
            (false, CallError::Away(_)) => tracing::info!(%error, "waiting for the relay"),
            (false, _) => tracing::warn!(%error, "trying it again"),
            (true, _) => tracing::debug!(%error, "still"),
        }
        self.0 = true;
    }

    fn answered(&mut self) {
        if self.0 {
            tracing::info!("the relay answers again");
        }
        self.0 = false;
    }
}
