//! What was found on other relays, judged: each event by the one door, in the order in which they
//! rest on each other, and those that missed something again when it comes.
//!
//! [`Judge::run`] judges again; whoever announces or serves something only wakes it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use futures::{StreamExt, stream};
use grasp_proto::words::{EventId, RepoId};
use nostr::Event;
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinError,
};
use tokio_util::sync::CancellationToken;

use super::{
    meters::lag,
    rejected::{
        Again, Durations, Mark, Rejected, brought_by_announcement, event_came, order, sort,
    },
};
use crate::{
    admit::{UNRELATED, WAITS},
    clock::Clock,
    nip34::{Meaning, id_of},
    repository::Standing,
    verdict::{Door, Origin, Verdict},
};

/// Events judged at once; the store takes those in together that come together.
const AT_ONCE: usize = 16;
/// Requests that are worked on at once, each of a few megabytes.
const REQUESTS: usize = 16;
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
fn outcome(event: &Event, verdict: &Verdict) -> Outcome {
    let by_repository = matches!(
        Meaning::of(event.kind),
        Meaning::Announcement | Meaning::State
    );
    match (verdict.ok, verdict.message.split(':').next()) {
        (true, _) if verdict.message == WAITS => Outcome::Purgatory,
        (true, Some("duplicate")) => Outcome::Duplicate,
        (true, _) => Outcome::Accepted,
        (false, Some("error")) => Outcome::Failed,
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
    /// As many as there are processors.
    verifiers: Arc<Semaphore>,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
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
            verifiers: Arc::new(Semaphore::new(processors)),
        }
    }

    fn rejected(&self) -> MutexGuard<'_, Rejected> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The announcement of a repository stands so now.
    pub fn announced(&self, repo: &RepoId, standing: Option<Standing>) {
        let Some(standing) = standing else {
            return;
        };
        let came = brought_by_announcement(repo, standing.is_served());
        if self.rejected().wake(came) {
            self.wake.notify_one();
        }
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
    /// Goes on when the caller does not wait for it.
    pub async fn submit(
        &self,
        url: &str,
        method: Method,
        events: Vec<String>,
    ) -> Result<Vec<Judged>, JoinError> {
        let permit = self.requests.clone().acquire_owned().await;
        let judge = self.clone();
        let source = self.rejected().source(url);
        let work = async move {
            let _permit = permit;
            judge.judge(source, method, events).await
        };
        tokio::spawn(work).await?
    }

    async fn judge(
        &self,
        source: u64,
        method: Method,
        events: Vec<String>,
    ) -> Result<Vec<Judged>, JoinError> {
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
                        source,
                        tries: 0,
                    };
                    let made = again.event.created_at.as_secs();
                    let result = self.judge_one(again).await;
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

    async fn judge_one(&self, again: Again) -> Judged {
        let event = again.event.clone();
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
            let judging = stream::iter(ready).map(|again| self.judge_one(again));
            let results: Vec<Judged> = judging.buffer_unordered(AT_ONCE).collect().await;
            for (outcome, _) in results {
                count(outcome, Method::Again);
            }
        }
    }

    /// Time has passed.
    pub fn tick(&self) {
        let now = self.clock.now();
        self.rejected().tick(now);
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
        let event = Event::from_json(json).map_err(|error| format!("not an event: {error}"))?;
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
mod tests {
    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT, STATE,
        testing::{event, keys},
    };

    #[test]
    fn verdicts_come_to_outcomes() {
        let state = event(&keys(1), STATE, 1, &[&["d", "x"]]);
        let announcement = event(&keys(1), ANNOUNCEMENT, 1, &[&["d", "x"]]);
        let issue = event(&keys(1), nostr::Kind::Custom(1621), 1, &[]);
        for (event, verdict, expected) in [
            (&issue, Verdict::served(), Outcome::Accepted),
            (&state, Verdict::accepted(WAITS), Outcome::Purgatory),
            (
                &state,
                Verdict::accepted("duplicate: x"),
                Outcome::Duplicate,
            ),
            (
                &state,
                Verdict::rejected("invalid: x"),
                Outcome::KeptForLater,
            ),
            (
                &announcement,
                Verdict::rejected("invalid: x"),
                Outcome::KeptForLater,
            ),
            (&issue, Verdict::rejected(UNRELATED), Outcome::KeptForLater),
            (
                &issue,
                Verdict::rejected("invalid: expired"),
                Outcome::Rejected,
            ),
            (
                &state,
                Verdict::rejected("error: x; try again"),
                Outcome::Failed,
            ),
        ] {
            assert_eq!(outcome(event, &verdict), expected, "{verdict:?}");
        }
    }

    #[test]
    fn forged_events_are_told_apart() {
        let genuine = event(&keys(1), STATE, 1, &[&["d", "x"]]);
        let json = genuine.as_json();
        let wrong_id = json.replace("\"x\"", "\"y\"");
        let mut other = event(&keys(2), STATE, 1, &[&["d", "x"]]);
        other.sig = genuine.sig;
        let verified = verify(&[json, wrong_id, other.as_json(), "{}".to_owned()]);
        let genuine: Vec<bool> = verified.iter().map(Result::is_ok).collect();
        assert_eq!(genuine, [true, false, false, false]);
    }
}
