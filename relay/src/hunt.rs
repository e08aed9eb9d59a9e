//! The hunt for git data that is not here: what is missing, who looks for it, where it may be asked
//! for (GRASP-02).
//!
//! [`queue`] decides, purely: [`entry`] when an attempt is due, [`budget`] what remote domains are
//! asked. [`Hunt`] is the queue behind its one lock, which is never held across a wait; what must
//! outlive the process goes to the journal in the order in which it was decided. [`Hunter`] gathers
//! what decisions rest on ([`pending`]) and does what follows from them. Workers lease, ask and
//! report; they are believed nothing.
//!
//! Tasks: [`Hunt::run`] moves time on, [`heal::run`] finds what is served and lacks objects.

pub mod budget;
pub mod costly;
pub mod entry;
mod failing;
pub mod heal;
mod meters;
pub mod pending;
pub mod queue;
pub mod records;
pub mod sight;
mod steps;
mod take_in;
pub mod tries;
pub mod urls;
pub mod workers;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dashmap::DashMap;
use futures::future::{BoxFuture, FutureExt};
use grasp_proto::{transport::Trace, words::Identifier};
use tokio_util::sync::CancellationToken;

use self::{
    meters::Meters,
    pending::{Pending, Rotation},
    queue::{Queue, Rules},
};
use crate::{
    clock::{Clock, Moment},
    journal::{Journal, JournalError, Key, Record, Write},
    purgatory::kept::Progress,
    release::Release,
    serial::Serial,
    verdict::Origin,
};

pub use steps::{Fetch, Hunter, HunterError, Next, Outcome};

/// Bits of a number that count within one run of the relay.
const BITS_A_RUN: u32 = 32;

#[derive(Debug)]
struct Inside {
    queue: Queue,
    meters: Meters,
}

/// The queue, shared. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hunt {
    inside: Arc<Mutex<Inside>>,
    rules: Rules,
    journal: Journal,
    clock: Clock,
    /// Under each identifier one after another takes in what has come.
    taking: Serial,
    /// Workers are started with the service.
    has_own_workers: bool,
    /// Identifiers that are seen to in the background, each once.
    background: Arc<DashMap<Identifier, ()>>,
}

/// Ends when what was decided is on disk.
type Kept = BoxFuture<'static, Result<(), JournalError>>;

impl Hunt {
    /// The hunt as the journal had it. The numbers of this run are greater than those of every run
    /// before.
    pub async fn open(
        rules: Rules,
        journal: Journal,
        clock: Clock,
        records: &[(Key, Record)],
    ) -> Result<Self, JournalError> {
        let now = clock.now();
        // Where nothing is kept, time counts.
        let run = (records::runs(records) + 1).max(now.as_secs());
        let mut queue = Queue::new(rules, run << BITS_A_RUN);
        queue.restore(records, now);
        let hunt = Self {
            inside: Arc::new(Mutex::new(Inside {
                queue,
                meters: Meters::begin(),
            })),
            rules,
            journal,
            clock,
            taking: Serial::default(),
            has_own_workers: true,
            background: Arc::default(),
        };
        if let Write::Keep(key, record) = Write::run(run) {
            hunt.journal.keep(key, &record).await?;
        }
        hunt.act(|_, _| ());
        Ok(hunt)
    }

    /// No worker is started with the service: until one that is started apart is heard of, nothing is
    /// hunted for.
    #[must_use]
    pub fn without_own_workers(self) -> Self {
        Self {
            has_own_workers: false,
            ..self
        }
    }

    /// Does something with the queue. What is to be on disk is on its way when this returns.
    pub fn act<T>(&self, act: impl FnOnce(&mut Queue, Moment) -> T) -> T {
        self.act_durably(act).0
    }

    /// As [`Hunt::act`]; what is given besides ends when it is on disk.
    fn act_durably<T>(&self, act: impl FnOnce(&mut Queue, Moment) -> T) -> (T, Kept) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let Inside { queue, meters } = &mut *inside;
        let now = self.clock.now();
        let result = act(queue, now);
        // Within the lock: what was decided first is written first.
        let kept = self.journal.write(queue.writes());
        meters.show(queue, now);
        (result, kept.boxed())
    }

    /// An event waits for git data under an identifier.
    pub fn enqueue(&self, identifier: &Identifier, origin: Origin) {
        let delay = self.rules.delays.after(origin);
        // What follows is found by it in the logs of all processes.
        let trace = Trace::current().unwrap_or_else(Trace::begin);
        tracing::debug!(%identifier, ?delay, %trace, "queued for the hunt");
        self.act(|queue, now| queue.enqueue(identifier, now + delay, false, Some(trace)));
    }

    /// What is served under an identifier lacks objects.
    pub fn heal(&self, identifier: &Identifier) {
        let delay = self.rules.delays.after(Origin::Sync);
        self.act(|queue, now| queue.enqueue(identifier, now + delay, true, None));
    }

    /// What waited under an identifier may have been released by a push: if nothing does any more, nothing is
    /// hunted for. Otherwise every push would stand in the queue, for as long as one is waited for.
    pub async fn settle(&self, release: &Release, identifier: &Identifier) {
        let nothing_waits = async || {
            let (release, identifier) = (release.clone(), identifier.clone());
            let look = move || Pending::of(&release, &identifier, Rotation::default()).is_nothing();
            tokio::task::spawn_blocking(look).await.unwrap_or(false)
        };
        if !nothing_waits().await {
            return;
        }
        let due = self.act(|queue, _| queue.settled(identifier));
        // What came in between has been taken out with the rest.
        if let Some(due) = due
            && !nothing_waits().await
        {
            self.act(|queue, _| queue.enqueue(identifier, due, false, None));
        }
    }

    /// How far the hunt has come for what waits under an identifier since then.
    pub fn progress(&self, identifier: &Identifier, since: Moment) -> Progress {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        match self.has_own_workers || inside.queue.workers.was_one_seen() {
            true => inside.queue.progress(identifier, since),
            false => Progress::NotHunted,
        }
    }

    /// How long a lease holds.
    pub fn lease_time(&self) -> Duration {
        self.rules.lease
    }

    /// Does something for an identifier that nobody waits for, unless that is being done.
    fn in_background(
        &self,
        identifier: &Identifier,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        if self.background.insert(identifier.clone(), ()).is_some() {
            return;
        }
        let (background, identifier) = (self.background.clone(), identifier.clone());
        tokio::spawn(async move {
            work.await;
            background.remove(&identifier);
        });
    }

    fn asked(&self, domain: &str) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        inside.meters.asked(domain, now);
    }

    /// Moves time on until `stop`; looks at the queue `every` so often at least.
    pub async fn run(self, every: Duration, stop: CancellationToken) {
        let sooner = self.act(|queue, _| queue.sooner());
        loop {
            let next = self.act(|queue, now| {
                queue.tick(now);
                queue.next_moment().map(|moment| moment.since(now))
            });
            // A moment that is past the next tick sees to; never without a breath between.
            let wait = next.map_or(every, |next| next.min(every));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
                () = sooner.notified() => {}
            }
        }
    }
}
