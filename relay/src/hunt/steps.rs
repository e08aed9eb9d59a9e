//! One step after another: what a worker asks of the hunt, done.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use grasp_proto::{
    contract::git::Grant,
    transport::GrantKey,
    words::{Identifier, Oid, RepoId},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Hunt, budget,
    costly::OfUrl,
    queue::{Answer, Leased, Lost, Reported, Running, Said, Step, Why},
    sight::{Sight, blocking, look},
    urls::CloneUrl,
};
use crate::{
    domain::Domain,
    journal::JournalError,
    policy::satisfiable::Wanted,
    release::{Release, ReleaseError, make_repository},
    repository::Standing,
    serial::{Serial, Turn},
};

/// The longest a call waits.
pub const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// How long a grant outlives the lease it was given under.
const GRANT_MARGIN: Duration = Duration::from_secs(2);
/// How often the git storage is looked for while it is away.
const AWAY: Duration = Duration::from_secs(1);
/// Repositories that are tried to be made so that there is a pool to fetch into.
const MADE: usize = 8;

/// Why a worker's call was not answered.
#[derive(Debug, thiserror::Error)]
pub enum HunterError {
    /// The lease is not the caller's.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// There is no such fetch.
    #[error("no such fetch was given under this lease")]
    UnknownFetch,
    /// What must be durable is not.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A fetch, as the worker is told.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Its number.
    pub number: u64,
    /// What to ask.
    pub url: CloneUrl,
    /// For which objects.
    pub wants: Arc<[Oid]>,
    /// What is here.
    pub haves: Vec<Oid>,
    /// Sealed.
    pub grant: Vec<u8>,
}

/// What comes next for an identifier.
#[derive(Debug, Clone)]
pub enum Next {
    /// This fetch.
    Fetch(Fetch),
    /// Call again.
    Wait,
    /// The lease has ended.
    Ended(Why),
}

/// How a fetch went, as its worker says.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// gitd has taken something in.
    Arrived,
    /// Nothing came; what that says of the one that was asked; for people, why.
    Failed(Said, String),
}

/// What workers ask, answered. Cheap to clone.
#[derive(Clone)]
pub struct Hunter {
    /// The queue.
    pub hunt: Hunt,
    /// What is released when something comes.
    pub release: Release,
    /// The queues of identifiers.
    pub serial: Serial,
    /// What grants are sealed with.
    pub key: GrantKey,
    /// This service, which is not asked.
    pub ours: Domain,
    /// The largest pack that is fetched.
    pub max_pack_bytes: u64,
    /// When it fires, nobody waits any more.
    pub stop: CancellationToken,
}

impl Hunter {
    /// Every identifier under which something waits that may come is in the queue, as after an event
    /// that was found elsewhere: for the start.
    pub fn enqueue_what_waits(&self) {
        let purgatory = &self.release.purgatory;
        let mut identifiers = purgatory.states.identifiers();
        identifiers.extend(purgatory.pull_requests.identifiers());
        for identifier in identifiers {
            self.hunt.enqueue(&identifier, crate::verdict::Origin::Sync);
        }
    }

    /// Leases identifiers; waits until there is one.
    pub async fn lease(&self, worker: &str, room: usize, wait: Duration) -> Vec<Leased> {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        let ready = self.hunt.act(|queue, _| queue.ready_wake());
        loop {
            let mut woken = std::pin::pin!(ready.notified());
            // From here on nothing is missed.
            woken.as_mut().enable();
            let leases = self.hunt.act(|queue, now| queue.lease(worker, room, now));
            if !leases.is_empty() {
                return leases;
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(deadline) => return Vec::new(),
                () = self.stop.cancelled() => return Vec::new(),
            }
        }
    }

    /// Keeps a lease; while a fetch is running, gives a grant for it anew. That it is kept is on disk
    /// when this returns.
    pub async fn renew(&self, identifier: &Identifier, token: u64) -> Result<Vec<u8>, HunterError> {
        let (renewed, kept) = self
            .hunt
            .act_durably(|queue, now| queue.renew(identifier, token, now));
        let fetch = renewed?;
        kept.await?;
        Ok(fetch.map_or_else(Vec::new, |fetch| {
            self.grant(identifier, token, fetch.number, &fetch.wants)
        }))
    }

    fn grant(&self, identifier: &Identifier, lease: u64, fetch: u64, wants: &[Oid]) -> Vec<u8> {
        // By the clock of whoever checks it.
        let now = self.release.git.clock();
        let now = now.unwrap_or_else(|| self.hunt.clock.wall());
        let expires = now + self.hunt.lease_time() + GRANT_MARGIN;
        self.key.seal(&Grant {
            identifier: identifier.to_string(),
            oids: wants.iter().map(|oid| oid.as_bytes().to_vec()).collect(),
            max_bytes: self.max_pack_bytes,
            expires_millis: expires.as_millis(),
            lease,
            fetch,
        })
    }

    /// The next step for a leased identifier; waits for room.
    pub async fn next(
        &self,
        identifier: &Identifier,
        token: u64,
        tried: &HashSet<String>,
        wait: Duration,
    ) -> Result<Next, HunterError> {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        loop {
            let check = |queue: &mut super::Queue, now| queue.check(identifier, token, now);
            let wake = self.hunt.act(check)?;
            let again = match self.step(identifier, token, tried).await {
                Ok(Next::Wait) => None,
                Ok(next) => return Ok(next),
                Err(StepError::Hunter(error)) => return Err(error),
                // The sweep says that the git storage is away.
                Err(StepError::Release(error)) if error.is_unreachable() => Some(AWAY),
                Err(StepError::Release(error)) => {
                    tracing::warn!(%identifier, %error, "nobody knows what is missing");
                    Some(AWAY)
                }
            };
            let again = tokio::time::sleep(again.unwrap_or(LONGEST_WAIT));
            tokio::select! {
                () = wake.notified() => {}
                () = again => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Next::Wait),
                () = self.stop.cancelled() => return Ok(Next::Wait),
            }
        }
    }

    async fn look(&self, identifier: &Identifier) -> Result<Sight, ReleaseError> {
        let (healing, rotation) = self
            .hunt
            .act(|queue, _| (queue.is_healing(identifier), queue.rotation(identifier)));
        look(&self.release, &self.ours, identifier, healing, rotation).await
    }

    /// As [`Hunter::take_in`], when nobody else takes something in under the identifier.
    async fn take_in_turn(&self, identifier: &Identifier) {
        let (hunter, name) = (self.clone(), identifier.clone());
        let work = async move { hunter.take_in(&name).await };
        self.hunt.taking.run(identifier, Turn::Normal, work).await;
    }

    async fn step(
        &self,
        identifier: &Identifier,
        token: u64,
        tried: &HashSet<String>,
    ) -> Result<Next, StepError> {
        let mut sight = self.look(identifier).await?;
        if sight.pending && sight.missing.is_empty() {
            self.take_in_turn(identifier).await;
            sight = self.look(identifier).await?;
        }
        let ended = if !sight.pending {
            match self.hunt.act(|queue, _| queue.has_asked(identifier)) {
                true => tracing::info!(%identifier, "complete: nothing waits for git data"),
                // Somebody pushed it, most likely.
                false => tracing::debug!(%identifier, "nothing waits for git data"),
            }
            Some(Why::NothingPending)
        } else if sight.missing.is_empty() || !self.has_pool(identifier).await {
            Some(Why::NothingLeft)
        } else {
            None
        };
        if let Some(why) = ended {
            let end = |queue: &mut super::Queue, now| queue.end_held(identifier, token, why, now);
            self.hunt.act(end)?;
            return Ok(Next::Ended(why));
        }
        let Sight {
            missing,
            haves,
            urls,
            ..
        } = sight;
        let (step, kept) = self
            .hunt
            .act_durably(|queue, now| queue.step(identifier, token, &urls, tried, now));
        let (number, url) = match step? {
            Step::Wait => return Ok(Next::Wait),
            Step::Ended(why) => {
                tracing::debug!(%identifier, ?why, missing = missing.count(), "a turn ended");
                return Ok(Next::Ended(why));
            }
            Step::Ask(number, url) => (number, url),
        };
        let rotation = self.hunt.act(|queue, _| queue.rotation(identifier));
        let asked = url.url.clone();
        let wants = blocking(move || missing.wants(&asked, rotation)).await;
        let wants: Arc<[Oid]> = wants.into();
        let (given, wants_kept) = self
            .hunt
            .act_durably(|queue, _| queue.wants(identifier, token, number, &wants));
        given?;
        if let Err(error) = kept.await.and(wants_kept.await) {
            self.hunt
                .act(|queue, now| queue.take_back(identifier, token, number, now));
            return Err(HunterError::from(error).into());
        }
        tracing::debug!(%identifier, url = url.url, wants = wants.len(), "to be asked");
        self.hunt.asked(&url.domain);
        Ok(Next::Fetch(Fetch {
            number,
            url,
            grant: self.grant(identifier, token, number, &wants),
            wants,
            haves,
        }))
    }

    /// Whether there is a repository here that can take something in; makes one that should be.
    async fn has_pool(&self, identifier: &Identifier) -> bool {
        let repositories = &self.release.repositories;
        if !repositories.owners(identifier, Standing::Active).is_empty() {
            return true;
        }
        let waiting = repositories.owners(identifier, Standing::Waiting);
        let waiting = waiting.into_iter().map(|owner| RepoId {
            owner,
            identifier: identifier.clone(),
        });
        let is_made = |repo: &RepoId| {
            let entry = self.release.purgatory.announcements.get(repo);
            entry.is_some_and(|entry| entry.repository_made)
        };
        let mut to_make = Vec::new();
        for repo in waiting {
            if is_made(&repo) {
                return true;
            }
            to_make.push(repo);
        }
        for repo in to_make.into_iter().take(MADE) {
            let (release, of) = (self.release.clone(), repo.clone());
            let work = async move { make_repository(&release, &of).await };
            self.serial.run(identifier, Turn::Normal, work).await;
            if is_made(&repo) {
                return true;
            }
        }
        false
    }

    /// How a fetch went: frees its place, and serves what can be. Goes on when the caller goes away.
    pub async fn report(
        &self,
        identifier: &Identifier,
        token: u64,
        number: u64,
        outcome: Outcome,
    ) -> Result<Answer, HunterError> {
        let said = match &outcome {
            Outcome::Arrived => Said {
                server: budget::Outcome::Fine,
                url: OfUrl::Good,
            },
            Outcome::Failed(said, _) => *said,
        };
        let reported = self
            .hunt
            .act(|queue, now| queue.report(identifier, token, number, said, now))?;
        let fetch = match reported {
            Reported::Before(answer) => return Ok(answer),
            Reported::Unknown => return Err(HunterError::UnknownFetch),
            Reported::First(fetch) => Some(fetch),
            Reported::Late => None,
        };
        if let (Some(fetch), Outcome::Failed(said, why)) = (&fetch, &outcome) {
            tell_failure(identifier, fetch, said.server, why);
        }
        let (hunter, name) = (self.clone(), identifier.clone());
        let work = async move {
            // Reported again while the first time was seen to.
            let before = |queue: &mut super::Queue, _| queue.answer(&name, token, number);
            if let Some(answer) = hunter.hunt.act(before) {
                return answer;
            }
            let answer = hunter.follow_up(&name, fetch, &outcome).await;
            hunter
                .hunt
                .act(|queue, _| queue.answered(&name, token, number, answer));
            answer
        };
        // In a task of its own; one after another.
        Ok(self.hunt.taking.run(identifier, Turn::Normal, work).await)
    }

    async fn follow_up(
        &self,
        identifier: &Identifier,
        fetch: Option<Running>,
        outcome: &Outcome,
    ) -> Answer {
        let mut released = 0;
        if matches!(outcome, Outcome::Arrived) {
            if let Some(fetch) = &fetch {
                self.count(identifier, fetch).await;
            }
            released = self.take_in(identifier).await;
        } else if let Some(fetch) = fetch {
            // Nothing came: what was missing still is.
            let missing = u32::try_from(fetch.wants.len()).unwrap_or(u32::MAX);
            return Answer { released, missing };
        }
        let missing = match self.look(identifier).await {
            Ok(sight) => u32::try_from(sight.missing.count()).unwrap_or(u32::MAX),
            Err(error) => {
                tracing::warn!(%identifier, %error, "nobody knows what is missing");
                0
            }
        };
        Answer { released, missing }
    }

    /// Counts what a fetch has really brought.
    async fn count(&self, identifier: &Identifier, fetch: &Running) {
        let wanted = Wanted {
            oids: fetch.wants.iter().copied().collect(),
            commits: BTreeSet::new(),
        };
        match self.release.absent(identifier, &wanted).await {
            Ok(absent) => {
                let came = wanted.oids.len() - absent.len();
                metrics::counter!("purgatory_sync_oids_fetched_total").increment(came as u64);
                let url = &fetch.url.url;
                match came {
                    0 => tracing::warn!(%identifier, url, "nothing came, though a worker says so"),
                    _ => {
                        tracing::info!(%identifier, url, objects = came, "fetched");
                        self.release.data_may_be_there(identifier);
                    }
                }
            }
            Err(error) => tracing::warn!(%identifier, %error, "nobody knows what came"),
        }
    }
}

fn tell_failure(identifier: &Identifier, fetch: &Running, of_server: budget::Outcome, why: &str) {
    let url = &fetch.url.url;
    match of_server {
        budget::Outcome::Fine => tracing::debug!(%identifier, url, ?why, "nothing there"),
        _ => tracing::warn!(%identifier, url, ?why, "a fetch failed"),
    }
}

/// Why there is no next step.
enum StepError {
    Hunter(HunterError),
    Release(ReleaseError),
}

impl From<Lost> for StepError {
    fn from(error: Lost) -> Self {
        Self::Hunter(error.into())
    }
}

impl From<HunterError> for StepError {
    fn from(error: HunterError) -> Self {
        Self::Hunter(error)
    }
}

impl From<ReleaseError> for StepError {
    fn from(error: ReleaseError) -> Self {
        Self::Release(error)
    }
}
