//! What was found on other relays, judged: each event by the one door, in the order in which they
//! rest on each other, and those that missed something again when it comes.
//!
//! [`Judge::run`] judges again; whoever announces or serves something only wakes it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use futures::{StreamExt, stream};
use grasp_proto::words::{EventId, RepoId};
use nostr::Event;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::JoinError,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    hourly::Hourly,
    judging::{Judging, too_busy},
    meters::lag,
    rejected::{
        Again, Durations, Mark, Rejected, brought_by_announcement, event_came, order, size, sort,
    },
};
use crate::{
    admit::{PROTECTED, REPLACED, UNRELATED, WAITS},
    clock::Clock,
    event_json::read_event,
    nip34::{Meaning, id_of},
    repository::Standing,
    verdict::{Door, Origin, Verdict},
};

/// Events judged at once; the store takes those in together that come together.
const AT_ONCE: usize = 16;
/// Requests that are worked on at once, each of a few megabytes.
const REQUESTS: usize = 16;
/// Of these, those of one remote relay; also while something of them hangs that nobody waits for.
const OF_ONE_SOURCE: usize = 2;
/// After this a request is answered with what is known by then: callers wait for a minute.
const ANSWERED: Duration = Duration::from_secs(45);
/// Events judged again before another look is taken at who is first.
const AGAIN: usize = 64;
/// How often what has grown old is let go of.
const TICK: Duration = Duration::from_secs(1);

/// How an event was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// As it was published.
    Live,
    /// By reconciliation (NIP-77).
    Negentropy,
    /// Page by page.
    Paged,
    /// It was kept here, and what it missed came.
    Again,
}

impl Method {
    /// As metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Negentropy => "negentropy",
            Self::Paged => "paged",
            Self::Again => "again",
        }
    }
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Served.
    Accepted,
    /// It waits for its git data.
    Purgatory,
    /// It was here.
    Duplicate,
    /// For good.
    Rejected,
    /// For want of something that may still come.
    KeptForLater,
    /// No event, or not by whom it says.
    Forged,
    /// Something of ours failed.
    Failed,
}

impl Outcome {
    /// Whether it was not here before, and is now.
    pub fn is_new(self) -> bool {
        matches!(self, Self::Accepted | Self::Purgatory)
    }

    /// As metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Purgatory => "purgatory",
            Self::Duplicate => "duplicate",
            Self::Rejected => "rejected",
            Self::KeptForLater => "kept_for_later",
            Self::Forged => "forged",
            Self::Failed => "failed",
        }
    }
}

/// What became of an event, in words too.
pub type Judged = (Outcome, String);

/// What a verdict of the door comes to: words before a colon are what machines read (NIP-01).
pub fn outcome(event: &Event, verdict: &Verdict) -> Outcome {
    let by_repository = matches!(
        Meaning::of(event.kind),
        Meaning::Announcement | Meaning::State
    );
    match (verdict.ok, verdict.message.split(':').next()) {
        (true, _) if verdict.message == WAITS => Outcome::Purgatory,
        // Not here, nor to come: not fetched again.
        (true, _) if verdict.message == REPLACED => Outcome::Rejected,
        (true, Some("duplicate")) => Outcome::Duplicate,
        (true, _) => Outcome::Accepted,
        (false, Some("error")) => Outcome::Failed,
        (false, _) if verdict.message == PROTECTED => Outcome::Rejected,
        (false, _) if by_repository || verdict.message == UNRELATED => Outcome::KeptForLater,
        (false, _) => Outcome::Rejected,
    }
}

/// Judges what was found elsewhere. Cheap to clone.
#[derive(Clone)]
pub struct Judge {
    door: Arc<dyn Door>,
    rejected: Arc<Mutex<Rejected>>,
    wake: Arc<Notify>,
    clock: Clock,
    requests: Arc<Semaphore>,
    /// Each remote relay's share of them: those that are in use.
    shares: Arc<Mutex<HashMap<u64, Arc<Semaphore>>>>,
    judging: Judging,
    hourly: Arc<Mutex<Hourly>>,
    /// As many as there are processors.
    verifiers: Arc<Semaphore>,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
}

/// Who brought some events, and how.
struct Brought {
    source: u64,
    method: Method,
    share: Option<Arc<OwnedSemaphorePermit>>,
    /// When whoever brought them is answered.
    until: Instant,
}

impl Judge {
    /// A judge who knows nobody yet.
    pub fn new(door: Arc<dyn Door>, durations: Durations, clock: Clock) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            door,
            rejected: Arc::new(Mutex::new(Rejected::new(durations))),
            wake: Arc::default(),
            clock,
            requests: Arc::new(Semaphore::new(REQUESTS)),
            shares: Arc::default(),
            judging: Judging::default(),
            hourly: Arc::default(),
            verifiers: Arc::new(Semaphore::new(processors)),
        }
    }

    fn rejected(&self) -> MutexGuard<'_, Rejected> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hourly(&self) -> MutexGuard<'_, Hourly> {
        self.hourly.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn share_of(&self, source: u64) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|_, share| Arc::strong_count(share) > 1);
        let new = || Arc::new(Semaphore::new(OF_ONE_SOURCE));
        shares.entry(source).or_insert_with(new).clone()
    }

    /// The announcement of a repository stands so now. Says whether events were forgotten that may be
    /// accepted now, if they are fetched again.
    pub fn announced(&self, repo: &RepoId, standing: Option<Standing>) -> bool {
        let Some(standing) = standing else {
            return false;
        };
        let came = brought_by_announcement(repo, standing.is_served());
        let woken = self.rejected().wake(came);
        if woken.ready {
            self.wake.notify_one();
        }
        woken.forgot
    }

    /// An event is served.
    pub fn served(&self, event: &Event) {
        if event_came(&mut self.rejected(), event) {
            self.wake.notify_one();
        }
    }

    /// Whether an event was rejected lately.
    pub fn rejected_lately(&self, id: &EventId) -> bool {
        self.rejected().contains(id)
    }

    /// What is wanted here has changed: what was rejected may be fetched again.
    pub fn forget(&self, durations: Durations) {
        *self.rejected() = Rejected::new(durations);
    }

    /// Whole rejected events, and ids.
    pub fn sizes(&self) -> (usize, usize) {
        self.rejected().sizes()
    }

    /// Judges events that were found at `url`, as JSON; gives what became of each, in their order.
    /// Goes on when the caller does not wait for it. What takes too long is answered as failed, and
    /// one that is brought again meanwhile is not judged twice.
    pub async fn submit(
        &self,
        url: &str,
        method: Method,
        events: Vec<String>,
    ) -> Result<Vec<Judged>, JoinError> {
        let until = Instant::now() + ANSWERED;
        let source = self.rejected().source(url);
        let (share, requests) = (self.share_of(source), self.requests.clone());
        // Its own share first: who waits for that keeps nobody else waiting.
        let permits = async { (share.acquire_owned().await, requests.acquire_owned().await) };
        let Ok((share, permit)) = timeout_at(until, permits).await else {
            return Ok(vec![too_busy(); events.len()]);
        };
        // Never closed.
        let share = share.ok().map(Arc::new);
        let judge = self.clone();
        let work = async move {
            let _permit = permit;
            let brought = Brought {
                source,
                method,
                share,
                until,
            };
            judge.judge(&brought, events).await
        };
        tokio::spawn(work).await?
    }

    async fn judge(
        &self,
        brought: &Brought,
        events: Vec<String>,
    ) -> Result<Vec<Judged>, JoinError> {
        let method = brought.method;
        let mut judged: Vec<Judged> = vec![Default::default(); events.len()];
        let verified = {
            let _permit = self.verifiers.acquire().await;
            tokio::task::spawn_blocking(move || verify(&events)).await?
        };
        let mut genuine = Vec::new();
        for (place, event) in verified.into_iter().enumerate() {
            match event {
                Ok(event) => genuine.push((place, event)),
                Err(why) => judged[place] = (Outcome::Forged, why),
            }
        }
        sort(&mut genuine, |(_, event)| event);
        // Those that others rest on are done before these begin.
        let mut ranks = genuine.into_iter().peekable();
        while let Some((place, event)) = ranks.next() {
            let rank = order(&event).0;
            let mut group = vec![(place, event)];
            while let Some(next) = ranks.next_if(|(_, event)| order(event).0 == rank) {
                group.push(next);
            }
            let results = stream::iter(group)
                .map(|(place, event)| async move {
                    let again = Again {
                        event: Arc::new(event),
                        source: brought.source,
                        tries: 0,
                    };
                    let made = again.event.created_at.as_secs();
                    let share = brought.share.clone();
                    let result = self.judge_one(again, share, brought.until).await;
                    if method == Method::Live && result.0.is_new() {
                        lag(self.clock.now().as_secs().saturating_sub(made));
                    }
                    (place, result)
                })
                .buffer_unordered(AT_ONCE);
            let results: Vec<(usize, Judged)> = results.collect().await;
            for (place, result) in results {
                judged[place] = result;
            }
        }
        for (outcome, _) in &judged {
            count(*outcome, method);
        }
        Ok(judged)
    }

    /// Judges an event, unless that is being done; keeps `share` until it is.
    async fn judge_one(
        &self,
        again: Again,
        share: Option<Arc<OwnedSemaphorePermit>>,
        until: Instant,
    ) -> Judged {
        let id = id_of(&again.event);
        let judge = self.clone();
        let judging = || async move {
            let judged = judge.judge_now(again).await;
            drop(share);
            judged
        };
        self.judging.verdict(id, until, judging).await
    }

    async fn judge_now(&self, again: Again) -> Judged {
        let event = again.event.clone();
        let source = again.source;
        if !self.hourly().has_room(source, self.clock.now()) {
            let why = "error: this relay brought too much within an hour; slow down";
            return (Outcome::Failed, why.to_owned());
        }
        let mark = {
            let rejected = self.rejected();
            let id = id_of(&event);
            if rejected.keeps(&id) {
                return (Outcome::KeptForLater, "kept for later".to_owned());
            }
            if rejected.contains(&id) {
                return (Outcome::Rejected, "rejected before".to_owned());
            }
            rejected.mark()
        };
        let verdict = self.door.admit((*event).clone(), Origin::Sync).await;
        let outcome = self.remember(again, mark, outcome(&event, &verdict));
        if outcome.is_new() {
            self.hourly().took(source, size(&event), self.clock.now());
        }
        (outcome, verdict.message)
    }

    /// Remembers what was rejected; gives what it comes to.
    fn remember(&self, again: Again, mark: Mark, outcome: Outcome) -> Outcome {
        let now = self.clock.now();
        match outcome {
            Outcome::KeptForLater => {
                let mut rejected = self.rejected();
                if rejected.keep(again, mark, now) {
                    self.wake.notify_one();
                    return Outcome::KeptForLater;
                }
                Outcome::Rejected
            }
            // No history holds them, so none brings them again.
            Outcome::Rejected if again.event.kind.is_ephemeral() => outcome,
            Outcome::Rejected => {
                self.rejected().refuse(id_of(&again.event), now);
                outcome
            }
            _ => outcome,
        }
    }

    /// Judges again whatever is ready for it. Says how many were.
    pub async fn judge_again(&self) -> usize {
        let mut all = 0;
        loop {
            let ready = self.rejected().ready(AGAIN);
            if ready.is_empty() {
                return all;
            }
            all += ready.len();
            let until = Instant::now() + ANSWERED;
            let judging = stream::iter(ready).map(|again| async move {
                let (outcome, _) = self.judge_one(again.clone(), None, until).await;
                (outcome, again)
            });
            let results: Vec<_> = judging.buffer_unordered(AT_ONCE).collect().await;
            for (outcome, again) in results {
                count(outcome, Method::Again);
                if outcome == Outcome::Failed {
                    self.rejected().put_back(again, self.clock.now());
                }
            }
        }
    }

    /// Time has passed.
    pub fn tick(&self) {
        let now = self.clock.now();
        if self.rejected().tick(now) {
            self.wake.notify_one();
        }
        self.hourly().tick(now);
        self.measure();
    }

    /// Judges again, and lets go of what is old, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.tick(),
                () = self.wake.notified() => {
                    self.judge_again().await;
                }
            }
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn measure(&self) {
        let (whole, ids) = self.sizes();
        metrics::gauge!("ngit_sync_rejected_events", "index" => "hot").set(whole as f64);
        metrics::gauge!("ngit_sync_rejected_events", "index" => "cold").set(ids as f64);
    }
}

impl Default for Outcome {
    /// Nothing was judged.
    fn default() -> Self {
        Self::Failed
    }
}

fn count(outcome: Outcome, method: Method) {
    let labels = [("outcome", outcome.as_str()), ("method", method.as_str())];
    metrics::counter!("ngit_sync_events_total", &labels).increment(1);
    if outcome.is_new() {
        metrics::counter!("ngit_sync_events_synced_total").increment(1);
    }
}

/// Reads events and checks that they are by whom they say.
fn verify(events: &[String]) -> Vec<Result<Event, String>> {
    let verify = |json: &String| {
        let event = read_event(json).map_err(|error| format!("not an event: {error}"))?;
        if !event.verify_id() {
            return Err("the id is not that of the event".to_owned());
        }
        if !event.verify_signature() {
            return Err("the signature is wrong".to_owned());
        }
        Ok(event)
    };
    events.iter().map(verify).collect()
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
