//! The one door for events: what is accepted, and what follows from it (protocol, "Which events
//! are accepted").
//!
//! Whoever brings an event – a client's session, a worker's `Submit` – it is judged here. What
//! concerns an identifier is done in its queue. Moderation and curation, once there are lists, stand
//! between what an event says of itself and everything else.

use std::{cmp::Ordering, collections::BTreeSet, sync::Arc};

use futures::future::BoxFuture;
use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
use nostr::{Event, Kind, Timestamp};

use crate::{
    clock::Moment,
    deletion::{self, Target},
    domain::Domain,
    journal::JournalError,
    nip34::{
        self, ANNOUNCEMENT, DELETION, Meaning, STATE, announcement::Announcement, author_of, id_of,
        later, pull_request::PullRequest, state::State,
    },
    policy::{
        related,
        satisfiable::{Wanted, satisfiable},
    },
    purgatory::WAITS_FOR,
    release::{GoOn, Release, ReleaseError},
    repository::Standing,
    retire::RetireError,
    serial::{Serial, Turn},
    store::{Saved, StoreError},
    verdict::{Door, Origin, Verdict},
};

/// What is said of everything that goes to purgatory (GRASP-01).
pub const WAITS: &str = "purgatory: won't be served until git data arrives";

/// Something of ours failed while an event was judged. The event can be sent again.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Retire(#[from] RetireError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Admit {
    release: Release,
    serial: Serial,
    domain: Domain,
    max_event_bytes: usize,
}

impl Door for Admit {
    fn admit(&self, event: Event, origin: Origin) -> BoxFuture<'_, Verdict> {
        Box::pin(async move {
            let (id, kind) = (event.id, event.kind);
            let verdict = match self.judge(Arc::new(event), origin).await {
                Ok(verdict) => verdict,
                Err(error) => {
                    tracing::error!(%id, %error, "an event could not be judged");
                    Verdict::rejected(format!("error: {error}; try again"))
                }
            };
            tracing::debug!(%id, %kind, ok = verdict.ok, message = verdict.message, "judged");
            let result = if verdict.ok { "accepted" } else { "rejected" };
            metrics::counter!("ngit_events_total", "result" => result).increment(1);
            verdict
        })
    }
}

/// The rejection of an event that says something its kind does not allow.
fn malformed(error: impl std::fmt::Display) -> Verdict {
    Verdict::rejected(format!("invalid: {error}"))
}

fn replaced() -> Verdict {
    Verdict::rejected("invalid: replaced by a later version")
}

fn known() -> Verdict {
    Verdict::accepted("duplicate: already have this event")
}

fn deleted() -> Verdict {
    Verdict::rejected("blocked: deleted by its author")
}

fn mistaken() -> Verdict {
    malformed("the first 182 bytes of its identifier are those of another of its author's")
}

fn waits_already() -> Verdict {
    Verdict::accepted("duplicate: in purgatory")
}

impl Admit {
    /// The door to what `release` serves.
    pub fn new(release: Release, serial: Serial, domain: Domain, max_event_bytes: usize) -> Self {
        Self {
            release,
            serial,
            domain,
            max_event_bytes,
        }
    }

    /// What can be said of an event without knowing anything else.
    fn well_formed(&self, event: &Event) -> Option<Verdict> {
        if event.as_json().len() > self.max_event_bytes {
            let most = self.max_event_bytes;
            return Some(malformed(format!("larger than {most} bytes")));
        }
        if !event.verify_id() {
            return Some(malformed("the id is not that of the event"));
        }
        if !event.verify_signature() {
            return Some(malformed("the signature is wrong"));
        }
        if event.is_expired_at(Timestamp::from(self.now().as_secs())) {
            return Some(malformed("expired"));
        }
        None
    }

    fn now(&self) -> Moment {
        self.release.purgatory.now()
    }

    async fn judge(&self, event: Arc<Event>, origin: Origin) -> Result<Verdict, Failed> {
        if let Some(verdict) = self.well_formed(&event) {
            return Ok(verdict);
        }
        let verdict = self.judge_kind(event.clone(), origin).await?;
        // Its deletion may have come while it was judged, and found nothing to delete.
        if verdict.ok
            && event.kind != DELETION
            && deletion::is_deleted(&event, &self.release.store).await?
        {
            self.delete_id(&id_of(&event), author_of(&event)).await?;
            return Ok(deleted());
        }
        Ok(verdict)
    }

    async fn judge_kind(&self, event: Arc<Event>, origin: Origin) -> Result<Verdict, Failed> {
        let id = id_of(&event);
        if event.kind.is_ephemeral() {
            return self.ephemeral(&event).await;
        }
        if event.kind != DELETION {
            if self.release.store.has(&id).await? {
                return Ok(known());
            }
            if origin == Origin::Sync && self.release.purgatory.expired_once(&id) {
                let why = "invalid: previously expired from purgatory without git data";
                return Ok(Verdict::rejected(why));
            }
            if deletion::is_deleted(&event, &self.release.store).await? {
                return Ok(deleted());
            }
        }
        match Meaning::of(event.kind) {
            Meaning::Announcement => match Announcement::read(event) {
                Ok(announcement) => {
                    let door = self.clone();
                    let identifier = announcement.repo.identifier.clone();
                    let work = async move { door.announcement(announcement, origin).await };
                    self.serial.run(&identifier, Turn::Normal, work).await
                }
                Err(error) => Ok(malformed(error)),
            },
            Meaning::State => match State::read(event) {
                Ok(state) => {
                    let door = self.clone();
                    let identifier = state.identifier.clone();
                    let work = async move { door.state(state).await };
                    self.serial.run(&identifier, Turn::Normal, work).await
                }
                Err(error) => Ok(malformed(error)),
            },
            Meaning::PullRequest => match PullRequest::read(event) {
                Ok(request) => self.pull_request_in_turn(request).await,
                Err(error) => Ok(malformed(error)),
            },
            Meaning::Deletion => self.deletion(event).await,
            Meaning::GraspList => self.keep(&event).await,
            Meaning::Other => self.other(&event).await,
        }
    }

    /// Stores and serves an event that nothing stands against.
    async fn keep(&self, event: &Event) -> Result<Verdict, Failed> {
        Ok(match self.release.serve(event).await? {
            Saved::New => Verdict::served(),
            Saved::Known => known(),
            Saved::Replaced => replaced(),
        })
    }

    async fn is_related(&self, event: &Event) -> Result<bool, StoreError> {
        let none = BTreeSet::new();
        related::is_related(
            event,
            &self.release.repositories,
            &self.release.store,
            &none,
        )
        .await
    }

    async fn other(&self, event: &Event) -> Result<Verdict, Failed> {
        match self.is_related(event).await? {
            true => self.keep(event).await,
            false => Ok(unrelated()),
        }
    }

    async fn ephemeral(&self, event: &Event) -> Result<Verdict, Failed> {
        if !self.is_related(event).await? {
            return Ok(unrelated());
        }
        self.release.live.publish(event);
        Ok(Verdict::served())
    }

    async fn announcement(
        self,
        announcement: Announcement,
        origin: Origin,
    ) -> Result<Verdict, Failed> {
        let Release {
            store,
            purgatory,
            repositories,
            ..
        } = &self.release;
        let repo = &announcement.repo;
        let waiting = purgatory.announcements.get(repo);
        if let Some(waiting) = &waiting {
            let version = later(&waiting.announcement.event, &announcement.event);
            match version {
                Ordering::Greater => return Ok(replaced()),
                // Published again by its author after its repository has gone: as if new.
                Ordering::Equal if waiting.soft_expired && origin == Origin::User => {}
                Ordering::Equal => return Ok(waits_already()),
                Ordering::Less => {}
            }
        }
        let stored = store.announcement(repo).await?;
        if let Some(stored) = &stored {
            match later(stored, &announcement.event) {
                Ordering::Greater => return Ok(replaced()),
                // The same one came by another connection at the same time.
                Ordering::Equal => return Ok(known()),
                Ordering::Less => {}
            }
        }
        if store.mistakes(&announcement.event).await? {
            return Ok(mistaken());
        }
        let standing = repositories.standing(repo);
        if announcement.lists(&self.domain) {
            if standing == Some(Standing::Active) {
                let before = repositories.trusting(&repo.identifier, &repo.owner);
                let verdict = self.keep(&announcement.event).await?;
                repositories.set(&announcement, Standing::Active);
                self.release.maintainers_changed(before).await;
                self.settle_after(repo).await;
                return Ok(verdict);
            }
            return self.wait_for_data(announcement).await;
        }
        let trusting = repositories.trusting(&repo.identifier, &repo.owner);
        let others: Vec<_> = trusting
            .into_iter()
            .filter(|(other, _)| other != repo)
            .collect();
        if !others.is_empty() {
            self.release.move_elsewhere(&announcement).await?;
            self.release.maintainers_changed(others).await;
            return Ok(Verdict::served());
        }
        match (standing, stored) {
            (Some(Standing::Waiting), _) => self.release.drop_waiting(repo).await?,
            (Some(Standing::Active), Some(stored)) => self.release.delist(repo, &stored).await?,
            _ => {}
        }
        Ok(malformed(format!(
            "the announcement must list {} in both clone and relays",
            self.domain
        )))
    }

    /// An announcement that lists us and is not served yet.
    async fn wait_for_data(&self, announcement: Announcement) -> Result<Verdict, Failed> {
        let Release {
            purgatory,
            repositories,
            ..
        } = &self.release;
        let repo = &announcement.repo;
        let before = purgatory.announcements.get(repo);
        purgatory
            .announcements
            .admit(announcement.clone(), self.now());
        if let Err(error) = purgatory.keep_announcement(repo).await {
            purgatory.remove_announcement(repo);
            if let Some(before) = before {
                purgatory.announcements.insert(before);
            }
            return Err(error.into());
        }
        repositories.set(&announcement, Standing::Waiting);
        // Its states waited for the announcement that it replaces; their clock starts anew with it.
        purgatory.extend_states_of(&repo.identifier, repositories.maintainers(repo));
        self.make_repository(repo).await;
        if let Err(error) = self.release.promote_if_here(repo).await {
            let what = "an announcement waits though its data may be here";
            self.release.note(&repo.identifier, &error, what);
        }
        Ok(match repositories.standing(repo) {
            Some(Standing::Active) => Verdict::served(),
            _ => Verdict::accepted(WAITS),
        })
    }

    /// Makes the repository of a waiting announcement; if gitd cannot be reached, it is made as
    /// soon as it can.
    async fn make_repository(&self, repo: &RepoId) {
        make_repository(&self.release, repo).await;
    }

    /// A change of who maintains what may let something out.
    async fn settle_after(&self, repo: &RepoId) {
        let released = release_identifier(&self.release, &self.serial, &repo.identifier);
        if let Err(error) = released.await {
            self.release
                .note(&repo.identifier, &error, "nothing was released");
        }
    }

    async fn state(self, state: State) -> Result<Verdict, Failed> {
        let Release {
            store,
            purgatory,
            repositories,
            ..
        } = &self.release;
        let id = state.id();
        if purgatory.states.get(&id).is_some() {
            return Ok(waits_already());
        }
        if !repositories.is_announced(&state.identifier) {
            return Ok(malformed("no announcement exists for this repository"));
        }
        let trusting = repositories.trusting(&state.identifier, &state.author);
        if trusting.is_empty() {
            return Ok(malformed("author not authorized for this repository"));
        }
        let stored = store
            .addressable(STATE, &state.author, state.identifier.as_str())
            .await?;
        if let Some(stored) = stored {
            match later(&stored, &state.event) {
                Ordering::Greater => return Ok(replaced()),
                Ordering::Equal => return Ok(known()),
                Ordering::Less => {}
            }
        }
        if store.mistakes(&state.event).await? {
            return Ok(mistaken());
        }
        for (repo, standing) in &trusting {
            if *standing == Standing::Waiting {
                purgatory.extend_announcement(repo, self.now() + WAITS_FOR);
                self.make_repository(repo).await;
            }
        }
        if !purgatory.add_state(state.clone()) {
            return Ok(replaced());
        }
        // Durable before a ref is moved for it: whatever happens now, it is gone on with.
        if let Err(error) = purgatory.keep_state(&id).await {
            purgatory.remove_state(&id);
            return Err(error.into());
        }
        match self.release_now(&state).await {
            true => Ok(Verdict::served()),
            false => Ok(Verdict::accepted(WAITS)),
        }
    }

    /// Releases a state if its objects are here; says whether it is served.
    async fn release_now(&self, state: &State) -> bool {
        let mut wanted = Wanted::default();
        wanted.state(state);
        let attempt = async {
            if state.never_arrives() {
                return Ok(false);
            }
            let absent = match wanted.is_empty() {
                true => BTreeSet::new(),
                false => self.release.absent(&state.identifier, &wanted).await?,
            };
            if !satisfiable(state, &absent) {
                return Ok(false);
            }
            let released = self.release.state(state, None, None).await?;
            if let Some(so_far) = released.more {
                let state = state.clone();
                go_on(&self.release, &self.serial, GoOn { state, so_far });
            }
            Ok::<_, ReleaseError>(released.served)
        };
        match attempt.await {
            Ok(served) => served,
            Err(error) => {
                let what = "a state waits though its data may be here";
                self.release.note(&state.identifier, &error, what);
                false
            }
        }
    }

    async fn pull_request_in_turn(&self, mut request: PullRequest) -> Result<Verdict, Failed> {
        let purgatory = &self.release.purgatory;
        if purgatory
            .pull_requests
            .get(&request.id())
            .is_some_and(|entry| entry.request.is_some())
        {
            return Ok(waits_already());
        }
        if !self.is_related(&request.event).await? {
            return Ok(unrelated());
        }
        request.repositories = self.release.offered_to(&request).await?;
        let door = self.clone();
        // One queue is enough: the other side of the entry is merged, not overwritten, whichever
        // identifier it comes in by.
        let queue = request.identifiers().into_iter().next();
        let work = async move { door.pull_request(request).await };
        match queue {
            Some(identifier) => self.serial.run(&identifier, Turn::Normal, work).await,
            None => work.await,
        }
    }

    async fn pull_request(self, request: PullRequest) -> Result<Verdict, Failed> {
        let purgatory = &self.release.purgatory;
        let (id, identifiers) = (request.id(), request.identifiers());
        purgatory.pull_requests.admit(request, self.now());
        if let Err(error) = purgatory.keep_pull_request(&id).await {
            purgatory.remove_pull_request(&id);
            return Err(error.into());
        }
        match self.release.pull_request(&id).await {
            Ok(true) => return Ok(Verdict::served()),
            Ok(false) => {}
            Err(error) => {
                let what = "a pull request waits though its data may be here";
                for identifier in identifiers {
                    self.release.note(&identifier, &error, what);
                }
            }
        }
        Ok(Verdict::accepted(WAITS))
    }

    async fn deletion(&self, request: Arc<Event>) -> Result<Verdict, Failed> {
        // Stored first, so that no target comes back while the others go; carried out again when
        // it is sent again, so that a crash between leaves nothing undone.
        let saved = self.release.serve(&request).await?;
        let author = author_of(&request);
        for target in deletion::targets(&request) {
            match target {
                Target::Id(id) => self.delete_id(&id, author).await?,
                Target::Address {
                    kind,
                    identifier,
                    until,
                } => {
                    let kind = Kind::from(kind);
                    for id in self.versions(kind, author, &identifier, until).await? {
                        self.delete_id(&id, author).await?;
                    }
                }
            }
        }
        Ok(match saved {
            Saved::New => Verdict::served(),
            _ => known(),
        })
    }

    /// The versions of an address that are here, stored or waiting, made no later than `until`.
    async fn versions(
        &self,
        kind: Kind,
        author: Npub,
        identifier: &str,
        until: Timestamp,
    ) -> Result<Vec<EventId>, Failed> {
        let Release {
            store, purgatory, ..
        } = &self.release;
        let stored = match identifier.is_empty() && kind.is_replaceable() {
            true => {
                let own = nostr::Filter::new().author(crate::store::public_key(author));
                store.query(own.kind(kind)).await?.into_iter().next()
            }
            false => store.addressable(kind, &author, identifier).await?,
        };
        let mut found: Vec<Arc<Event>> = stored.into_iter().map(Arc::new).collect();
        if let Ok(identifier) = Identifier::parse(identifier) {
            if kind == STATE {
                let waiting = purgatory.states.by_author(&identifier, &author);
                found.extend(waiting.into_iter().map(|entry| entry.state.event));
            } else if kind == ANNOUNCEMENT {
                let repo = RepoId {
                    owner: author,
                    identifier,
                };
                let waiting = purgatory.announcements.get(&repo);
                found.extend(waiting.into_iter().map(|entry| entry.announcement.event));
            }
        }
        found.retain(|event| event.created_at <= until);
        Ok(found.iter().map(|event| id_of(event)).collect())
    }

    /// Deletes one event, stored or waiting, if it is by this author.
    async fn delete_id(&self, id: &EventId, author: Npub) -> Result<(), Failed> {
        let door = self.clone();
        let id = *id;
        let work = async move { door.delete_in_turn(&id, author).await };
        match self.queue_of(&id).await? {
            Some(identifier) => self.serial.run(&identifier, Turn::Normal, work).await,
            None => work.await,
        }
    }

    /// The identifier in whose queue the event of this id is decided on.
    async fn queue_of(&self, id: &EventId) -> Result<Option<Identifier>, StoreError> {
        let purgatory = &self.release.purgatory;
        if let Some(repo) = purgatory.announcements.repo_of(id) {
            return Ok(Some(repo.identifier));
        }
        if let Some(entry) = purgatory.states.get(id) {
            return Ok(Some(entry.state.identifier));
        }
        if let Some(request) = purgatory.pull_requests.get(id).and_then(|e| e.request) {
            return Ok(request.identifiers().into_iter().next());
        }
        let stored = self.release.store.by_id(id).await?;
        Ok(stored.and_then(|event| match Meaning::of(event.kind) {
            Meaning::Announcement | Meaning::State => nip34::identifier_of(&event).ok(),
            _ => None,
        }))
    }

    /// What the event of this id is now, waiting or stored, is decided here: it may have been
    /// released since it was looked up.
    async fn delete_in_turn(&self, id: &EventId, author: Npub) -> Result<(), Failed> {
        let Release {
            store, purgatory, ..
        } = &self.release;
        if let Some(repo) = purgatory.announcements.repo_of(id)
            && repo.owner == author
        {
            return Ok(self.release.drop_waiting(&repo).await?);
        }
        if let Some(stored) = store.by_id(id).await? {
            if author_of(&stored) == author && stored.kind != DELETION {
                self.delete_stored(id, &stored).await?;
            }
            return Ok(());
        }
        if let Some(entry) = purgatory.states.get(id)
            && entry.state.author == author
        {
            purgatory.remove_state(id);
            purgatory.flush().await?;
        }
        let entry = purgatory.pull_requests.get(id);
        let request = entry.and_then(|entry| entry.request);
        if let Some(request) = request.filter(|request| request.author == author) {
            self.forget_pull_request(&request).await?;
        }
        Ok(())
    }

    /// A pull request that is deleted takes along its refs.
    async fn forget_pull_request(&self, request: &PullRequest) -> Result<(), Failed> {
        let id = request.id();
        let mut repos = self.release.repositories_of(request).await;
        let waiting = self.release.purgatory.remove_pull_request(&id);
        repos.extend(
            waiting
                .into_iter()
                .flat_map(|entry| entry.pushed.into_keys()),
        );
        self.release.purgatory.flush().await?;
        self.release.take_refs_away(&id, repos).await;
        Ok(())
    }

    async fn delete_stored(&self, id: &EventId, stored: &Event) -> Result<(), Failed> {
        let Release {
            store,
            repositories,
            ..
        } = &self.release;
        let identifier = nip34::identifier_of(stored);
        match (Meaning::of(stored.kind), identifier) {
            (Meaning::Announcement, Ok(identifier)) => {
                let owner = author_of(stored);
                let repo = RepoId { owner, identifier };
                let standing = repositories.standing(&repo);
                if standing == Some(Standing::Active) {
                    return Ok(self.release.delist(&repo, stored).await?);
                }
                let trusting = repositories.trusting(&repo.identifier, &owner);
                store.remove([*id]).await?;
                if standing != Some(Standing::Waiting) {
                    repositories.remove(&repo);
                }
                self.release.maintainers_changed(trusting).await;
            }
            (Meaning::State, Ok(identifier)) => {
                self.release.purgatory.remove_state(id);
                store.remove([*id]).await?;
                let trusting = repositories.trusting(&identifier, &author_of(stored));
                self.release.maintainers_changed(trusting).await;
            }
            (Meaning::PullRequest, _) => {
                if let Ok(request) = PullRequest::read(Arc::new(stored.clone())) {
                    self.forget_pull_request(&request).await?;
                }
                store.remove([*id]).await?;
            }
            _ => store.remove([*id]).await?,
        }
        Ok(())
    }
}

fn unrelated() -> Verdict {
    Verdict::rejected("blocked: not related to a repository or event that is served here")
}

/// Makes the repository of a waiting announcement that has none, after whatever of an earlier one
/// is still to go.
pub async fn make_repository(release: &Release, repo: &RepoId) {
    let waiting = release.purgatory.announcements.get(repo);
    if !waiting.is_some_and(|entry| !entry.soft_expired && !entry.repository_made) {
        return;
    }
    if !release.carry_out_doom(repo).await {
        release.unfinished.insert(repo.identifier.clone(), ());
        return;
    }
    match release.git.create(repo).await {
        Ok(_) => release.purgatory.announcements.made(repo),
        Err(error) => {
            let what = "a repository could not be made yet";
            release.note(&repo.identifier, &error.into(), what);
        }
    }
}

/// Releases whatever can be under an identifier, and what is too much for this turn of its queue
/// in later ones. Gives the events that could not be released though their data is here.
pub async fn release_identifier(
    release: &Release,
    serial: &Serial,
    identifier: &Identifier,
) -> Result<BTreeSet<EventId>, ReleaseError> {
    let left = release.identifier(identifier).await?;
    for more in left.go_on {
        go_on(release, serial, more);
    }
    Ok(left.failed)
}

/// Goes on with the release of a state that many repositories want, turn by turn, so that whoever
/// is at a terminal goes between.
pub fn go_on(release: &Release, serial: &Serial, from: GoOn) {
    let (release, serial) = (release.clone(), serial.clone());
    let id = from.state.id();
    if release.going_on.insert(id, ()).is_some() {
        return;
    }
    tokio::spawn(async move {
        let GoOn { state, so_far } = from;
        let identifier = state.identifier.clone();
        let mut more = Some(so_far);
        while let Some(so_far) = more {
            let (worker, state) = (release.clone(), state.clone());
            let work = async move { worker.state(&state, None, Some(&so_far)).await };
            match serial.run(&identifier, Turn::Normal, work).await {
                Ok(released) => more = released.more,
                Err(error) => {
                    // It is still in purgatory: the next release begins anew.
                    release.note(&identifier, &error, "a release stopped half-way");
                    more = None;
                }
            }
        }
        release.going_on.remove(&id);
    });
}
