//! What is held comes back when its owner has announced again.
//!
//! The states come with the announcement, into purgatory, and from there by the one release: if
//! their refs are there, which they are in what was retired, the announcement is served at once. Then
//! the other events, oldest first, each by the rules by which it would be accepted now; pull requests
//! through purgatory too. What its author deleted meanwhile, and what is there already, is held no
//! more; what belongs to nothing that is served, or whose author is banned, is held on. When nothing
//! is left the hold ends.

use std::{collections::VecDeque, sync::Arc};

use grasp_proto::words::{EventId, RepoId};
use nostr::{Event, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{Fate, Hold, Holding, STEP};
use crate::{
    journal::JournalError,
    nip34::{
        self, Meaning, STATE, announcement::Announcement, id_of, later, pull_request::PullRequest,
        state::State,
    },
    policy::{curation::Curation, related},
    release::{Release, ReleaseError, release_identifier},
    repository::Standing,
    serial::{Serial, Turn},
};

/// How far the return of a hold's events came. Made anew after a restart.
#[derive(Debug, Clone, Default)]
pub(super) struct Round {
    /// Those to be looked at, oldest first: as many as are held of one repository.
    to_see: VecDeque<EventId>,
    /// Those that belonged to nothing so far.
    left: Vec<EventId>,
    /// Something came back since those were looked at: it may be what they belong to.
    progress: bool,
    begun: bool,
}

/// What became of a held event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Became {
    /// Served now.
    Served,
    /// In purgatory now, and still held.
    Waits,
    /// Not to come back.
    Gone,
    /// Nothing: it belongs to nothing that is served.
    Held,
}

impl Holding {
    /// A repository is served again, or waits: what is held of it is to come back, or of what waits its
    /// states, by which it may be served.
    pub fn returns(&self, repo: &RepoId) {
        let mut index = self.index();
        if index.holds.get(repo).is_some_and(|hold| !hold.taking) {
            index.returning.insert(repo.clone(), Round::default());
            self.work.notify_one();
        }
    }

    /// What failed to come back is tried again.
    pub fn try_again(&self) {
        if !self.index().returning.is_empty() {
            self.work.notify_one();
        }
    }

    /// The same as [`Holding::returns`], when whatever comes next, or some time has passed: it has just failed.
    fn returns_later(&self, repo: &RepoId) {
        let mut index = self.index();
        if index.holds.contains_key(repo) {
            index.returning.insert(repo.clone(), Round::default());
        }
    }

    fn returning(&self) -> Vec<RepoId> {
        self.index().returning.keys().cloned().collect()
    }

    fn round(&self, repo: &RepoId) -> Option<Round> {
        self.index().returning.get(repo).cloned()
    }

    fn keep_round(&self, repo: &RepoId, round: Option<Round>) {
        let mut index = self.index();
        match round {
            Some(round) if index.returning.contains_key(repo) => {
                index.returning.insert(repo.clone(), round);
            }
            Some(_) => {}
            None => drop(index.returning.remove(repo)),
        }
    }

    /// The held events of a hold, oldest first.
    pub(super) async fn oldest_first(
        &self,
        hold: &Hold,
    ) -> Result<VecDeque<EventId>, JournalError> {
        let (mut all, mut after): (Vec<(Timestamp, EventId)>, _) = (Vec::new(), None);
        loop {
            let links = self.links(hold.number, after, STEP).await?;
            let Some(last) = links.last() else { break };
            after = Some(last.id);
            let held = links.iter().filter(|link| link.fate == Fate::Held);
            all.extend(held.map(|link| (link.at, link.id)));
        }
        all.sort_unstable();
        Ok(all.into_iter().map(|(_, id)| id).collect())
    }
}

impl Release {
    /// A repository was announced again and waits: the held states that it authorises wait with it.
    /// The caller releases what can be. Says whether there are any.
    pub async fn give_back_states(
        &self,
        repo: &RepoId,
        curation: &Curation,
    ) -> Result<bool, ReleaseError> {
        let mut any = false;
        if !self.holding.holds(repo) {
            return Ok(any);
        }
        for author in self.repositories.maintainers(repo) {
            let mut after = None;
            loop {
                let page = self
                    .holding
                    .of_author(author, Some(STATE), after, STEP)
                    .await?;
                let Some(last) = page.last() else { break };
                after = Some(*last);
                for (_, id) in page {
                    let Some(event) = self.holding.event(&id).await? else {
                        continue;
                    };
                    let is_of_it =
                        nip34::values(&event, "d").next() == Some(repo.identifier.as_str());
                    if is_of_it && !curation.rules().bans(&author) {
                        any |= self.give_back_state(event).await? == Became::Waits;
                    }
                }
            }
        }
        Ok(any)
    }

    /// A held state waits; the release is the caller's.
    async fn give_back_state(&self, event: Event) -> Result<Became, ReleaseError> {
        if self.is_not_to_return(&event).await? {
            return Ok(Became::Gone);
        }
        let Ok(state) = State::read(Arc::new(event)) else {
            return Ok(Became::Gone);
        };
        if !self.is_trusted(&state.identifier, &state.author) {
            return Ok(Became::Held);
        }
        let id = state.id();
        let name = state.identifier.as_str();
        let stored = self.store.addressable(STATE, &state.author, name).await?;
        let is_replaced = stored.is_some_and(|stored| later(&stored, &state.event).is_ge());
        if is_replaced || self.holding.is_before_a_deleted(&state.event).await? {
            return Ok(Became::Gone);
        }
        if self.purgatory.states.get(&id).is_none() && self.purgatory.add_state(state) {
            self.purgatory.keep_state(&id).await?;
        }
        Ok(Became::Waits)
    }

    /// It is there, or its author does not want it to be.
    async fn is_not_to_return(&self, event: &Event) -> Result<bool, ReleaseError> {
        let now = Timestamp::from(self.purgatory.now().as_secs());
        Ok(self.store.apart().has(&id_of(event)).await?
            || nip34::has_expired(event, now)
            || event.created_at > nip34::horizon()
            || self.keeps_out(event).await?)
    }

    /// One held event comes back, if it would be accepted now.
    async fn give_back(&self, event: Event, curation: &Curation) -> Result<Became, ReleaseError> {
        if self.is_not_to_return(&event).await? {
            return Ok(Became::Gone);
        }
        if curation.rules().bans(&nip34::author_of(&event)) {
            return Ok(Became::Held);
        }
        match Meaning::of(event.kind) {
            Meaning::State => self.give_back_state(event).await,
            Meaning::Announcement => self.give_back_announcement(event, curation).await,
            Meaning::PullRequest => {
                let Ok(mut request) = PullRequest::read(Arc::new(event)) else {
                    return Ok(Became::Gone);
                };
                if !self.belongs(&request.event).await? {
                    return Ok(Became::Held);
                }
                request.repositories = self.offered_to(&request).await?;
                let id = request.id();
                self.purgatory
                    .pull_requests
                    .admit(request, self.purgatory.now());
                self.purgatory.keep_pull_request(&id).await?;
                Ok(match self.pull_request(&id).await? {
                    true => Became::Served,
                    false => Became::Waits,
                })
            }
            _ if self.belongs(&event).await? => {
                self.serve(&event).await?;
                Ok(Became::Served)
            }
            _ => Ok(Became::Held),
        }
    }

    async fn belongs(&self, event: &Event) -> Result<bool, ReleaseError> {
        Ok(
            related::is_related(event, &self.repositories, &self.store).await?
                || self.belongs_by_what_is_buried(event).await?,
        )
    }

    /// An announcement of another, that was served for this one's sake.
    async fn give_back_announcement(
        &self,
        event: Event,
        curation: &Curation,
    ) -> Result<Became, ReleaseError> {
        let Ok(announcement) = Announcement::read(Arc::new(event)) else {
            return Ok(Became::Gone);
        };
        let repo = &announcement.repo;
        let standing = self.repositories.standing(repo);
        // It was announced anew, or is the one that was taken out of service.
        if standing.is_some_and(Standing::is_served) {
            return Ok(Became::Gone);
        }
        let is_wanted = self.repositories.is_wanted_here(repo);
        // Its author took it out of service.
        let own = self.holding.of(repo).and_then(|hold| hold.announcement);
        let was_taken = own.is_some_and(|id| id == announcement.id().to_hex())
            || self.holding.has_left(repo, &announcement.event);
        if !is_wanted || curation.rules().blocks(repo) || was_taken {
            return Ok(Became::Held);
        }
        self.serve(&announcement.event).await?;
        if standing.is_none() {
            self.repositories.set(&announcement, Standing::Elsewhere);
        }
        self.judge_changed_sets_and_release_later(&repo.identifier)
            .await;
        Ok(Became::Served)
    }

    /// One step of a repository's return, in the queue of its identifier. Says whether it is to be
    /// called again.
    async fn return_step(
        &self,
        serial: &Serial,
        repo: &RepoId,
        curation: &Curation,
    ) -> Result<bool, ReleaseError> {
        let (Some(hold), Some(mut round)) = (self.holding.of(repo), self.holding.round(repo))
        else {
            return Ok(false);
        };
        let standing = self.repositories.standing(repo);
        if standing == Some(Standing::Waiting) && !hold.taking {
            // Its promotion begins a round anew.
            self.holding.keep_round(repo, None);
            if self.give_back_states(repo, curation).await? {
                release_identifier(self, serial, &repo.identifier).await?;
            }
            return Ok(self.holding.round(repo).is_some());
        }
        if hold.taking || !standing.is_some_and(Standing::is_served) {
            self.holding.keep_round(repo, None);
            return Ok(false);
        }
        if !round.begun {
            round.to_see = self.holding.oldest_first(&hold).await?;
            round.begun = true;
        }
        let (mut gone, mut some_wait) = (Vec::new(), false);
        let count = round.to_see.len().min(STEP);
        for id in round.to_see.drain(..count) {
            let became = match self.holding.event(&id).await? {
                Some(event) => self.give_back(event, curation).await?,
                None => Became::Gone,
            };
            match became {
                Became::Served => {
                    round.progress = true;
                    gone.push(id);
                }
                Became::Gone => gone.push(id),
                Became::Waits => some_wait = true,
                Became::Held => round.left.push(id),
            }
        }
        self.holding.forget(&gone).await?;
        if some_wait {
            release_identifier(self, serial, &repo.identifier).await?;
        }
        if !round.to_see.is_empty() {
            self.holding.keep_round(repo, Some(round));
            return Ok(true);
        }
        if round.progress && !round.left.is_empty() {
            round.to_see = round.left.drain(..).collect();
            round.progress = false;
            self.holding.keep_round(repo, Some(round));
            return Ok(true);
        }
        // What was released by the way is there now, and need not be held.
        let rest = self.holding.oldest_first(&hold).await?;
        let mut held = 0;
        for id in rest {
            match self.store.apart().has(&id).await? {
                true => drop(self.holding.forget(&[id]).await?),
                false => held += 1,
            }
        }
        // Announced without this service, it has no use for the git data that is held; but its owner may.
        let is_done = standing == Some(Standing::Active) || hold.incarnations.is_empty();
        if held == 0 && is_done {
            self.eject(repo).await?;
            tracing::info!(%repo, "all that was held is back");
        } else {
            tracing::info!(%repo, held, "what can be is back; the rest is held on");
        }
        self.holding.keep_round(repo, None);
        Ok(false)
    }
}

/// Gives back whatever can be, turn by turn. What the git storage keeps from coming back stays to be
/// tried again.
pub async fn go_on(release: &Release, serial: &Serial, curation: &Curation) {
    for repo in release.holding.returning() {
        loop {
            let (worker, queues, curation) = (release.clone(), serial.clone(), curation.clone());
            let whose = repo.clone();
            let work = async move { worker.return_step(&queues, &whose, &curation).await };
            match serial.run(&repo.identifier, Turn::Normal, work).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%repo, %error, "what is held does not come back yet");
                    release.holding.returns_later(&repo);
                    break;
                }
            }
        }
    }
}

/// What is announced and held was coming back when the process ended.
pub fn resume(release: &Release) {
    let holding = &release.holding;
    let all = holding.index().holds.keys().cloned().collect::<Vec<_>>();
    for repo in all {
        if release.repositories.standing(&repo).is_some() {
            holding.returns(&repo);
        }
    }
}

/// Gives back what comes to be given back, until `stop`; what failed is tried again `every` so often.
pub async fn run(
    release: Release,
    serial: Serial,
    curation: Curation,
    every: std::time::Duration,
    stop: CancellationToken,
) {
    let work = async {
        loop {
            go_on(&release, &serial, &curation).await;
            // Whatever comes, or enough time for what failed to have passed.
            let _ = tokio::time::timeout(every, release.holding.work.notified()).await;
        }
    };
    stop.run_until_cancelled(work).await;
}
