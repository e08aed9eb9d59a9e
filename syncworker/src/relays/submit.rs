//! From a remote relay's events to the judgement of ours: in batches, checked before they are sent.
//!
//! What waits is bounded in number and bytes, of each connection and of all together: when there is no
//! room, the connection is not read. An event counts as handed over when there is a verdict on it;
//! while our relay is away it waits.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use grasp_proto::{
    contract::{
        event_size::{MAX_BATCH_BYTES, MAX_EVENT_BYTES},
        relay::{Method, submit_verdict::What},
    },
    words::EventId,
};
use nostr::Event;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{Relay, conduct::Conduct};
use crate::hunt::{backoff::Backoff, context::CallError};

/// Most events of one batch: as many as our relay takes,
const BATCH: usize = 500;

/// and the longest that the first of them waits for the others.
const LINGER: Duration = Duration::from_millis(200);

/// Bytes of events that wait or are being submitted, of one connection.
const MOST_BYTES: usize = 2 << 20;

/// What a string takes besides its text, with what the allocator adds,
const STRING: usize = 48;

/// and what a list of them does.
const TAG: usize = 48;

/// Of more live events than this those that are here already are not submitted: a relay that does not
/// know `limit: 0` sends everything it has.
const FEW: usize = 20;

/// How often an event is submitted that our relay cannot judge.
const TRIES: usize = 5;

/// An event that was found, as a remote relay sent it.
struct Found {
    event: Event,
    method: Method,
    room: Room,
}

/// The room an event takes until it is judged: of its connection's, and of all connections'.
struct Room {
    own: OwnedSemaphorePermit,
    _shared: OwnedSemaphorePermit,
}

impl Room {
    fn bytes(&self) -> usize {
        self.own.num_permits()
    }
}

fn texts(event: &Event) -> impl Iterator<Item = &String> {
    let tags = event.tags.iter().flat_map(|tag| tag.as_slice());
    tags.chain([&event.content])
}

/// The memory that an event takes: a tag without text is a few bytes on the wire.
fn weight(event: &Event) -> usize {
    let texts: usize = texts(event).map(|text| text.len() + STRING).sum();
    size_of::<Event>() + texts + event.tags.len() * TAG
}

async fn take(room: &Arc<Semaphore>, bytes: u32) -> OwnedSemaphorePermit {
    let room = room.clone().acquire_many_owned(bytes).await;
    room.expect("nobody closes it")
}

/// What is not judged, and what never will be.
#[derive(Debug, Default)]
struct Unjudged {
    /// Of what waits or is being submitted, in its order: when each was made, if nothing else asks for
    /// it again. Bounded by the queue.
    waiting: VecDeque<Option<u64>>,
    /// How many were given up,
    lost: u64,
    /// and when the earliest was made of those that nothing else asks for again.
    lost_since: Option<u64>,
}

impl Unjudged {
    fn lose(&mut self, count: usize, since: Option<u64>) {
        self.lost += count as u64;
        self.lost_since = self.lost_since.into_iter().chain(since).min();
        metrics::counter!("ngit_relays_events_lost_total").increment(count as u64);
    }
}

fn lock(unjudged: &Mutex<Unjudged>) -> MutexGuard<'_, Unjudged> {
    // Every change is one step.
    unjudged.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end that takes events in.
pub struct Intake {
    queue: mpsc::Sender<Found>,
    room: Arc<Semaphore>,
    /// Of all connections. Whoever waited longest gets it.
    shared: Arc<Semaphore>,
    pushed: AtomicU64,
    done: watch::Receiver<u64>,
    unjudged: Arc<Mutex<Unjudged>>,
    /// Somebody waits for what is there.
    hurry: Arc<Notify>,
}

/// The end that submits them.
pub struct Pump {
    queue: mpsc::Receiver<Found>,
    done: watch::Sender<u64>,
    unjudged: Arc<Mutex<Unjudged>>,
    hurry: Arc<Notify>,
}

/// Both ends of one connection, which shares this room with others.
pub fn channel(shared: Arc<Semaphore>) -> (Intake, Pump) {
    let (sender, queue) = mpsc::channel(2 * BATCH);
    let (done, watched) = watch::channel(0);
    let unjudged: Arc<Mutex<Unjudged>> = Arc::default();
    let hurry = Arc::new(Notify::new());
    let intake = Intake {
        queue: sender,
        room: Arc::new(Semaphore::new(MOST_BYTES)),
        shared,
        pushed: AtomicU64::new(0),
        done: watched,
        unjudged: unjudged.clone(),
        hurry: hurry.clone(),
    };
    (
        intake,
        Pump {
            queue,
            done,
            unjudged,
            hurry,
        },
    )
}

impl Intake {
    /// Takes an event; waits until there is room for it.
    pub async fn push(&self, event: Event, method: Method) {
        // What history brings is asked for again if it is not judged.
        let made = (method == Method::Live).then(|| event.created_at.as_secs());
        // Counted first: whoever looks in between waits for it. If nobody takes it, the connection is
        // at its end.
        self.pushed.fetch_add(1, Relaxed);
        lock(&self.unjudged).waiting.push_back(made);
        let bytes = u32::try_from(weight(&event).min(MOST_BYTES)).unwrap_or(u32::MAX);
        let room = Room {
            own: take(&self.room, bytes).await,
            _shared: take(&self.shared, bytes).await,
        };
        let found = Found {
            event,
            method,
            room,
        };
        let _ = self.queue.send(found).await;
    }

    /// Waits until there is a verdict on everything taken in so far, or it is given up.
    pub async fn judged(&self) {
        let pushed = self.pushed.load(Relaxed);
        self.hurry.notify_one();
        let _ = self.done.clone().wait_for(|done| *done >= pushed).await;
    }

    /// How many were given up.
    pub fn lost(&self) -> u64 {
        lock(&self.unjudged).lost
    }

    /// When the earliest live event was made that was given up since this was asked last.
    pub fn take_lost(&self) -> Option<u64> {
        lock(&self.unjudged).lost_since.take()
    }

    /// When the earliest live event was made that was given up, or is not judged.
    pub fn earliest(&self) -> Option<u64> {
        let unjudged = lock(&self.unjudged);
        let waiting = unjudged.waiting.iter().flatten();
        waiting.chain(&unjudged.lost_since).min().copied()
    }
}

impl Pump {
    /// Submits what is taken in, until that ends. When something is given up, `lost` is woken.
    pub async fn run(mut self, relay: &Relay, conduct: &Conduct, lost: &Notify) {
        while let Some(batch) = self.batch().await {
            let count = batch.len();
            let before = lock(&self.unjudged).lost;
            self.hand_over(relay, conduct, batch).await;
            let all_lost = {
                let mut unjudged = lock(&self.unjudged);
                unjudged.waiting.drain(..count);
                unjudged.lost
            };
            if all_lost > before {
                lost.notify_one();
            }
            self.done.send_modify(|done| *done += count as u64);
        }
    }

    async fn batch(&mut self) -> Option<Vec<Found>> {
        let mut batch = vec![self.queue.recv().await?];
        let until = Instant::now() + LINGER;
        // More would not come if the room is taken by what is here.
        let mut bytes = batch[0].room.bytes();
        while batch.len() < BATCH && bytes < MOST_BYTES / 2 {
            let next = tokio::select! {
                biased;
                found = self.queue.recv() => found,
                () = self.hurry.notified() => break,
                () = sleep_until(until) => break,
            };
            match next {
                Some(found) => {
                    bytes += found.room.bytes();
                    batch.push(found);
                }
                None => break,
            }
        }
        Some(batch)
    }

    async fn hand_over(&self, relay: &Relay, conduct: &Conduct, batch: Vec<Found>) {
        let (mut live, mut reconciled, mut paged) = (Vec::new(), Vec::new(), Vec::new());
        // Their room is taken until they are judged.
        let mut rooms = Vec::with_capacity(batch.len());
        for found in batch {
            rooms.push(found.room);
            match found.method {
                Method::Live | Method::Unspecified => live.push(found.event),
                Method::Negentropy => reconciled.push(found.event),
                Method::Paged => paged.push(found.event),
            }
        }
        let since = live.iter().map(|event| event.created_at.as_secs()).min();
        if live.len() > FEW {
            live = worth_it(relay, live).await;
        }
        if !paged.is_empty() {
            paged = worth_it(relay, paged).await;
        }
        let of_all = [
            (Method::Live, live, since),
            (Method::Negentropy, reconciled, None),
            (Method::Paged, paged, None),
        ];
        for (method, events, since) in of_all {
            let claimed = events.len();
            if claimed == 0 {
                continue;
            }
            let checked = tokio::task::spawn_blocking(move || verified(events)).await;
            let Ok((events, forged)) = checked else {
                lock(&self.unjudged).lose(claimed, since);
                continue;
            };
            conduct.forged(forged);
            for events in batches(events) {
                self.submit(relay, conduct, method, events, since).await;
            }
        }
    }

    /// Submits events until there is a verdict on each; the earliest that nothing else asks for again
    /// was made at `since`.
    async fn submit(
        &self,
        relay: &Relay,
        conduct: &Conduct,
        method: Method,
        mut events: Vec<String>,
        since: Option<u64>,
    ) {
        let mut backoff = Backoff::default();
        let mut tries = 0;
        while !events.is_empty() {
            let turn = relay.world.submits.acquire().await;
            let answer = relay
                .world
                .sync
                .submit(&relay.url, method, events.clone())
                .await;
            drop(turn);
            match answer {
                Ok(verdicts) => {
                    tries += 1;
                    let mut again = Vec::new();
                    for (event, what) in events.into_iter().zip(verdicts) {
                        conduct.judged(what);
                        if what == What::Failed {
                            again.push(event);
                        }
                    }
                    events = again;
                }
                Err(CallError::Away(why)) => {
                    tracing::debug!(relay = relay.url, why, "submit waits");
                }
                Err(error) => {
                    tracing::warn!(relay = relay.url, %error, "events cannot be submitted");
                    tries = TRIES;
                }
            }
            if events.is_empty() {
                return;
            }
            if tries >= TRIES {
                lock(&self.unjudged).lose(events.len(), since);
                return;
            }
            sleep(backoff.wait()).await;
        }
    }
}

/// In batches that our relay takes. An event that is longer than one, as its relay wrote it shorter, is none
/// that any server of our kind takes.
fn batches(events: Vec<String>) -> Vec<Vec<String>> {
    let mut batches: Vec<Vec<String>> = Vec::new();
    let mut bytes = 0;
    for event in events
        .into_iter()
        .filter(|event| event.len() <= MAX_EVENT_BYTES)
    {
        bytes += event.len();
        match batches.last_mut() {
            Some(batch) if bytes <= MAX_BATCH_BYTES => batch.push(event),
            _ => {
                bytes = event.len();
                batches.push(vec![event]);
            }
        }
    }
    batches
}

/// Of these events those that are worth more than their id: pages bring again what is here.
async fn worth_it(relay: &Relay, events: Vec<Event>) -> Vec<Event> {
    let ids = events
        .iter()
        .map(|event| EventId::from_bytes(event.id.to_bytes()));
    match relay.world.sync.lacking(ids.collect()).await {
        Ok(lacking) => {
            let lacking: BTreeSet<EventId> = lacking.into_iter().collect();
            let is_lacking =
                |event: &Event| lacking.contains(&EventId::from_bytes(event.id.to_bytes()));
            events.into_iter().filter(is_lacking).collect()
        }
        // Then all of them are judged.
        Err(_) => events,
    }
}

/// Those whose id and signature are right, once each, as JSON; and how many were not right.
fn verified(events: Vec<Event>) -> (Vec<String>, usize) {
    let claimed = events.len();
    let right = events.into_iter().filter(|event| event.verify().is_ok());
    let right: Vec<Event> = right.collect();
    let forged = claimed - right.len();
    // Several subscriptions bring the same. Only now: what is forged hides nothing.
    let mut seen = BTreeSet::new();
    let once = right.iter().filter(|event| seen.insert(event.id));
    (once.map(|event| event.as_json()).collect(), forged)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use nostr::{EventBuilder, Keys, Tag, event::FinalizeEvent};

    use super::*;

    fn with_tags(tags: impl IntoIterator<Item = Tag>) -> Event {
        let event = EventBuilder::text_note("x").tags(tags);
        event.finalize(&Keys::generate()).unwrap()
    }

    #[test]
    fn what_is_short_on_the_wire_and_long_in_memory_weighs_what_it_takes() {
        let empty = (0..10_000).map(|_| Tag::parse(["t", ""]).unwrap());
        let event = with_tags(empty);
        assert!(event.as_json().len() < 100_000);
        // Two strings and the list of them, of 24 bytes each, and a byte of text.
        assert!(weight(&event) >= 10_000 * (3 * size_of::<String>() + 1));
    }

    #[test]
    fn a_batch_is_as_long_as_our_relay_takes() {
        let event = "x".repeat(MAX_BATCH_BYTES / 4);
        let sizes = |count: usize| -> Vec<usize> {
            let batches = batches(vec![event.clone(); count]);
            batches.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(0), [0; 0]);
        assert_eq!(sizes(4), [4]);
        assert_eq!(sizes(9), [4, 4, 1]);
        assert_eq!(batches(vec!["x".repeat(MAX_EVENT_BYTES); 2]).len(), 2);
        assert!(batches(vec!["x".repeat(MAX_EVENT_BYTES + 1); 2]).is_empty());
    }

    #[tokio::test]
    async fn connections_share_what_room_there_is() {
        let event = with_tags([]);
        let shared = Arc::new(Semaphore::new(weight(&event)));
        let (one, mut taken) = channel(shared.clone());
        let (other, _pump) = channel(shared);
        one.push(event.clone(), Method::Live).await;
        let mut waits = pin!(other.push(event.clone(), Method::Live));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        // It is asked for again if the connection ends now.
        let made = event.created_at.as_secs();
        assert_eq!(other.earliest(), Some(made));
        drop(taken.queue.recv().await.unwrap());
        waits.await;
    }

    #[test]
    fn what_is_forged_hides_nothing() {
        let event = EventBuilder::text_note("x")
            .finalize(&Keys::generate())
            .unwrap();
        let mut forged = event.clone();
        forged.content = "y".to_owned();
        let (right, wrong) = verified(vec![forged, event.clone(), event.clone()]);
        assert_eq!((right, wrong), (vec![event.as_json()], 1));
    }
}
