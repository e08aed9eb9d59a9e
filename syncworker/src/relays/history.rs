//! How the past is fetched: reconciled (NIP-77) with what is here, or, where the remote relay cannot,
//! read page by page. One question at a time, and no more than one a second.

use std::collections::BTreeSet;

use futures::StreamExt;
use grasp_proto::{
    contract::relay::{Method, RelayState},
    words::EventId,
};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use nostr::{Filter, Timestamp};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    health::asks_for_silence,
    paging::{Paging, Step},
    plan::{Ended, Job},
    session::{Answer, End, Session},
};
use crate::hunt::{backoff::Backoff, context::CallError};

/// How often a job is put back before it has failed.
const TRIES: u32 = 5;

/// Most events of one answer: more than is ever asked for.
const MOST_EVENTS: usize = 5_000;

/// Most ids that one reconciliation may bring,
const MOST_IDS: usize = 200_000;

/// and the most steps it may take.
const MOST_STEPS: usize = 1_000;

/// Most ids of one `Lacking`.
const LACKING: usize = 10_000;

/// So many refusals in a row, and this connection is not asked to reconcile any more.
const REFUSALS: u32 = 2;

/// So many times in a row nothing came of the ids that were asked for, and pages are read.
const EMPTY: usize = 3;

/// Ids asked for at once where more are refused.
const FEW_IDS: usize = 100;

/// The longest message of a reconciliation that we send, in bytes before hex.
const RECONCILIATION: usize = 60_000;

type Storage = Negentropy<'static, NegentropyStorageVector>;

/// Why a history did not come to its end.
enum Failure {
    /// Worth another try soon.
    Again(String),
    /// Our relay is away: as soon as it is back.
    Ours(String),
    /// Not soon.
    Failed(String),
    /// Not this way.
    Refused {
        why: String,
        /// Nor for any other filter.
        everywhere: bool,
    },
}

fn failed<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Failed(why.into()))
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Away(_) => Self::Ours(error.to_string()),
            CallError::Lost | CallError::Refused(_) => Self::Failed(error.to_string()),
        }
    }
}

/// What is due when, besides the jobs.
struct Timers {
    /// Of what failed,
    retry: Option<Instant>,
    /// and of what was given up.
    lost: Option<Instant>,
    poll: Instant,
}

/// What one connection has learned.
#[derive(Default)]
struct Asking {
    /// When the last question was asked.
    last: Option<Instant>,
    refusals: u32,
    /// Many ids at once were refused.
    few_ids: bool,
    /// While our relay is away.
    away: Backoff,
}

impl Session<'_> {
    /// Fetches what the plan says, one after the other.
    pub(super) async fn fetch_history(&self) -> End {
        let timing = &self.relay.world.timing;
        let mut asking = Asking::default();
        let mut timers = Timers {
            retry: None,
            lost: None,
            poll: Instant::now() + timing.poll,
        };
        self.history_wakes.notified().await;
        let mut settled = false;
        loop {
            let next = self.look_at(&mut timers);
            let job = self.memory().plan.next_job();
            if let Some(job) = job {
                settled = false;
                self.state(RelayState::Syncing);
                if !self.run(&mut asking, job).await {
                    timers.retry = Some(Instant::now() + timing.retry);
                }
                continue;
            }
            let has_failed = self.memory().plan.has_failed();
            self.state(match has_failed {
                true => RelayState::ConnectedWithFailures,
                false => RelayState::Connected,
            });
            if !std::mem::replace(&mut settled, true) {
                let facts = self.relay.status.facts();
                tracing::info!(
                    relay = self.relay.url,
                    confirmed = facts.confirmed,
                    wanted = facts.wanted,
                    "{}",
                    match has_failed {
                        true => "history is fetched, but for what failed",
                        false => "history is complete",
                    },
                );
            }
            tokio::select! {
                () = self.history_wakes.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// Plans what is due by now, however long the queue is; when to look again.
    fn look_at(&self, timers: &mut Timers) -> Instant {
        let timing = &self.relay.world.timing;
        let longest = self.limits.filter_bytes();
        let now = Instant::now();
        let mut memory = self.memory();
        if let Some(since) = self.intake.take_lost() {
            memory.lost(since);
            timers.lost.get_or_insert(now + timing.retry);
        }
        let mut is_due = false;
        let again = timers.retry.into_iter().chain(timers.lost).min();
        if again.is_some_and(|at| at <= now) {
            (timers.retry, timers.lost) = (None, None);
            is_due = true;
            memory.retry(timing.oldest(), longest);
        }
        if memory.full_pass <= now {
            tracing::info!(relay = self.relay.url, "everything from the start");
            is_due = true;
            memory.plan.forget();
            memory.full_pass = now + timing.next_full_pass();
        }
        if timers.poll <= now {
            timers.poll = now + timing.poll;
            memory.poll(timing.overlap_begin());
        }
        if is_due {
            memory.refresh(longest);
        }
        memory.plan.close_gaps(longest);
        let next = timers.poll.min(memory.full_pass);
        let again = timers.retry.into_iter().chain(timers.lost).min();
        again.map_or(next, |again| again.min(next))
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, super::Memory> {
        // The plan's changes are checked by what is wanted each time.
        self.memory
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn state(&self, state: RelayState) {
        self.relay.status.change(|facts| facts.state = state);
    }

    /// One job; says whether it did not fail.
    async fn run(&self, asking: &mut Asking, job: Job) -> bool {
        let outcome = self.fetch(asking, &job).await;
        let relay = &self.relay.url;
        let ended = match outcome {
            Ok(()) => {
                asking.away.reset();
                Ended::Complete
            }
            Err(Failure::Again(why)) if job.tries + 1 < TRIES => {
                tracing::debug!(relay, why, "a history is put back");
                self.memory().plan.again(job, true);
                // What refuses at once is not asked in a loop.
                sleep(self.relay.world.timing.request).await;
                return true;
            }
            Err(Failure::Ours(why)) => {
                tracing::debug!(relay, why, "history waits");
                self.memory().plan.again(job, false);
                sleep(asking.away.wait()).await;
                return true;
            }
            Err(Failure::Again(why) | Failure::Failed(why) | Failure::Refused { why, .. }) => {
                tracing::warn!(relay, why, "a history cannot be had");
                self.relay.status.change(|facts| facts.last_error = why);
                Ended::Failed
            }
        };
        let mut memory = self.memory();
        memory.plan.ended(&job, ended);
        memory.tell(&self.relay.status);
        ended == Ended::Complete
    }

    async fn fetch(&self, asking: &mut Asking, job: &Job) -> Result<(), Failure> {
        if !self.relay.world.disable_negentropy && asking.refusals < REFUSALS {
            match self.reconcile(asking, &job.filter).await {
                Err(Failure::Refused { why, everywhere }) => {
                    tracing::debug!(relay = self.relay.url, why, "not reconciled: read by pages");
                    if everywhere {
                        asking.refusals += 1;
                    }
                }
                other => {
                    if other.is_ok() {
                        asking.refusals = 0;
                    }
                    return other;
                }
            }
        }
        self.read_pages(asking, &job.paged()).await
    }

    /// Waits for the turn of one more question.
    async fn turn(&self, asking: &mut Asking) {
        if let Some(last) = asking.last {
            sleep_until(last + self.relay.world.timing.request).await;
        }
        self.quiet().await;
        asking.last = Some(Instant::now());
    }

    /// What a refusal means.
    async fn refusal(&self, why: String) -> Failure {
        if asks_for_silence(&why) {
            return Failure::Again(why);
        }
        if why.starts_with("auth-required") && !self.is_authenticated() {
            self.authentication(self.relay.world.timing.answer).await;
            if self.is_authenticated() {
                return Failure::Again(why);
            }
        }
        Failure::Failed(format!("it refuses: {why}"))
    }

    /// Asks for stored events; what came, when all of it has been judged.
    async fn ask(
        &self,
        asking: &mut Asking,
        filter: Filter,
        of: &Filter,
        method: Method,
    ) -> Result<Vec<(u64, EventId)>, Failure> {
        self.turn(asking).await;
        let lost = self.intake.lost();
        let timing = &self.relay.world.timing;
        let (id, mut answers) = self.question(vec![filter.clone(), of.clone()], method, 256);
        self.send(json!(["REQ", id, filter])).await;
        let mut found = Vec::new();
        let end = Instant::now() + timing.page;
        let result = loop {
            let patience = match self.is_holding_up() {
                true => Instant::now() + timing.answer,
                false => end.min(Instant::now() + timing.answer),
            };
            match timeout_at(patience, answers.recv()).await {
                // It is us who do not listen: nothing is read while what came waits for our relay.
                Err(_) if self.is_holding_up() => {}
                Err(_) | Ok(None) => break failed("it does not say when it has sent everything"),
                Ok(Some(Answer::Event(at, id))) => {
                    found.push((at, id));
                    if found.len() > MOST_EVENTS {
                        break failed("it sends more than it is asked for");
                    }
                }
                Ok(Some(Answer::EndOfStored)) => break Ok(()),
                Ok(Some(Answer::Closed(why))) => break Err(self.refusal(why).await),
                Ok(Some(Answer::Notice(why))) if asks_for_silence(&why) => {
                    break Err(Failure::Again(why));
                }
                Ok(Some(_)) => {}
            }
        };
        self.forget(&id);
        drop(answers);
        self.send(json!(["CLOSE", id])).await;
        result?;
        self.intake.judged().await;
        match self.intake.lost() == lost {
            true => Ok(found),
            false => Err(Failure::Again("events could not be handed over".to_owned())),
        }
    }

    async fn read_pages(&self, asking: &mut Asking, filter: &Filter) -> Result<(), Failure> {
        let limit = self.limits.limit;
        let mut paging = Paging::new(limit);
        let mut page = filter.clone().limit(limit);
        loop {
            let left_out = self.left_out();
            let found = self
                .ask(asking, page.clone(), filter, Method::Paged)
                .await?;
            if found.is_empty() && self.left_out() > left_out {
                // Older ones may be behind them.
                return failed("a page of events that are too long to be taken");
            }
            match paging.took(&found) {
                Step::Until(until) => page = page.until(Timestamp::from_secs(until)),
                Step::Done => return Ok(()),
                Step::Crowded => return failed("one second holds more events than it sends"),
                Step::TooMany => return failed("there is no end to it"),
            }
        }
    }

    /// What is held here under a filter, ready to be compared, and the first message of it.
    async fn ours(&self, filter: &Filter) -> Result<(Storage, Vec<u8>), Failure> {
        let mut parts = self.relay.world.sync.inventory(filter.as_json()).await?;
        // As large as what is held here under one filter.
        let mut storage = NegentropyStorageVector::new();
        while let Some(part) = parts.next().await {
            for item in part? {
                let Ok(id) = item.id.try_into() else {
                    return failed("the inventory has an id that is none");
                };
                let _ = storage.insert(item.created_at, Id::from_byte_array(id));
            }
        }
        let most = RECONCILIATION.min((self.limits.message_bytes / 2).saturating_sub(1_000));
        let begun = tokio::task::spawn_blocking(move || {
            storage.seal()?;
            let mut ours = Negentropy::owned(storage, most.max(4_096) as u64)?;
            let first = ours.initiate()?;
            Ok::<_, negentropy::Error>((ours, first))
        });
        match begun.await {
            Ok(Ok(begun)) => Ok(begun),
            Ok(Err(error)) => failed(error.to_string()),
            Err(error) => failed(error.to_string()),
        }
    }

    async fn reconcile(&self, asking: &mut Asking, filter: &Filter) -> Result<(), Failure> {
        let (ours, first) = self.ours(filter).await?;
        self.turn(asking).await;
        // Two: the step that is being taken, and one that waits.
        let (id, mut answers) = self.question(vec![filter.clone()], Method::Negentropy, 2);
        let first = faster_hex::hex_string(&first);
        self.send(json!(["NEG-OPEN", id, filter, first])).await;
        let result = self.steps(&id, &mut answers, ours).await;
        self.forget(&id);
        drop(answers);
        self.send(json!(["NEG-CLOSE", id])).await;
        let needed: Vec<EventId> = result?.into_iter().collect();
        let (mut missing, mut empty) = (0, 0);
        for some in needed.chunks(LACKING) {
            let lacking = self.relay.world.sync.lacking(some.to_vec()).await?;
            let mut left = lacking.as_slice();
            while !left.is_empty() {
                let most = match asking.few_ids {
                    true => FEW_IDS.min(self.limits.ids()),
                    false => self.limits.ids(),
                };
                let (batch, later) = left.split_at(most.min(left.len()));
                let not_sent = self.ask_by_id(asking, batch, filter).await?;
                missing += not_sent;
                empty = match not_sent == batch.len() {
                    true => empty + 1,
                    false => 0,
                };
                if empty >= EMPTY {
                    return Err(Failure::Refused {
                        why: "of the events it names it sends none".to_owned(),
                        everywhere: true,
                    });
                }
                left = later;
            }
        }
        match missing {
            0 => Ok(()),
            _ => Err(Failure::Refused {
                why: format!("{missing} of the events it named it did not send"),
                everywhere: false,
            }),
        }
    }

    /// The steps of a reconciliation: which ids the remote relay has and we have not.
    async fn steps(
        &self,
        id: &str,
        answers: &mut tokio::sync::mpsc::Receiver<Answer>,
        mut ours: Storage,
    ) -> Result<BTreeSet<EventId>, Failure> {
        let refused = |why: String, everywhere| Err(Failure::Refused { why, everywhere });
        let mut needed = BTreeSet::new();
        for step in 0..MOST_STEPS {
            let patience = self.relay.world.timing.reconciliation;
            let end = Instant::now() + patience;
            let theirs = loop {
                let until = match self.is_holding_up() {
                    true => Instant::now() + patience,
                    false => end,
                };
                match timeout_at(until, answers.recv()).await {
                    Err(_) if self.is_holding_up() => {}
                    Err(_) | Ok(None) => return refused("no answer".to_owned(), true),
                    Ok(Some(Answer::Reconciliation(hex))) => break hex,
                    // Its seats may be taken, or this be too much for it: it may have pages.
                    Ok(Some(Answer::NoReconciliation(why))) => return refused(why, false),
                    Ok(Some(Answer::Closed(why) | Answer::Notice(why)))
                        if asks_for_silence(&why) =>
                    {
                        return Err(Failure::Again(why));
                    }
                    Ok(Some(Answer::Closed(why))) if why.starts_with("auth-required") => {
                        return Err(self.refusal(why).await);
                    }
                    Ok(Some(Answer::Closed(why))) => return refused(why, true),
                    // Relays that do not know the message say so like this.
                    Ok(Some(Answer::Notice(why))) if step == 0 => return refused(why, true),
                    Ok(Some(_)) => {}
                }
            };
            let stepped = tokio::task::spawn_blocking(move || {
                let mut message = vec![0; theirs.len() / 2];
                if faster_hex::hex_decode(theirs.as_bytes(), &mut message).is_err() {
                    return Err("its message is no hex".to_owned());
                }
                let (mut have, mut need) = (Vec::new(), Vec::new());
                let next = ours.reconcile_with_ids(&message, &mut have, &mut need);
                let next = next.map_err(|error| error.to_string())?;
                Ok((ours, next, need))
            });
            let (rest, next, need) = match stepped.await {
                Ok(Ok(stepped)) => stepped,
                Ok(Err(why)) => return refused(why, true),
                Err(error) => return failed(error.to_string()),
            };
            ours = rest;
            needed.extend(
                need.into_iter()
                    .map(|id| EventId::from_bytes(id.to_bytes())),
            );
            if needed.len() > MOST_IDS {
                return refused("it names too many events".to_owned(), false);
            }
            match next {
                None => return Ok(needed),
                Some(message) => {
                    let hex = faster_hex::hex_string(&message);
                    self.send(json!(["NEG-MSG", id, hex])).await;
                }
            }
        }
        refused("it takes too many steps".to_owned(), false)
    }

    /// Asks for events by id, as long as it brings some; says how many did not come.
    async fn ask_by_id(
        &self,
        asking: &mut Asking,
        ids: &[EventId],
        of: &Filter,
    ) -> Result<usize, Failure> {
        let mut left: BTreeSet<EventId> = ids.iter().copied().collect();
        while !left.is_empty() {
            let ids = left
                .iter()
                .map(|id| nostr::EventId::from_byte_array(*id.as_bytes()));
            let filter = Filter::new().ids(ids);
            let left_out = self.left_out();
            let found = match self.ask(asking, filter, of, Method::Negentropy).await {
                Err(Failure::Failed(why) | Failure::Again(why)) if left.len() > FEW_IDS => {
                    // Some relays say nowhere how many they take.
                    asking.few_ids = true;
                    return Err(Failure::Again(why));
                }
                other => other?,
            };
            let left_out = usize::try_from(self.left_out() - left_out).unwrap_or(usize::MAX);
            let before = left.len();
            for (_, id) in found {
                left.remove(&id);
            }
            if left.len() == before {
                // Those that were too long to be taken did come.
                return Ok(before.saturating_sub(left_out));
            }
        }
        Ok(0)
    }
}
