//! The one door for events: what is accepted, and what follows from it (protocol, "Which events
//! are accepted").
//!
//! Whoever brings an event – a client's session, a worker's `Submit` – it is judged here. What
//! concerns an identifier is done in its queue. Moderation and curation, once there are lists, stand
//! between what an event says of itself and everything else.

use std::{cmp::Ordering, sync::Arc};

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
                return Ok(Verdict::rejected("blocked: deleted by its author"));
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
        let none = std::collections::BTreeSet::new();
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
        if let Some(stored) = &stored
            && later(stored, &announcement.event) != Ordering::Less
        {
            return Ok(replaced());
        }
        let standing = repositories.standing(repo);
        if announcement.lists(&self.domain) {
            if standing == Some(Standing::Active) {
                let verdict = self.keep(&announcement.event).await?;
                repositories.set(&announcement, Standing::Active);
                self.settle_after(repo).await;
                return Ok(verdict);
            }
            return self.wait_for_data(announcement).await;
        }
        let trusting = repositories.trusting(&repo.identifier, &repo.owner);
        let maintains_another = trusting.iter().any(|(other, _)| other != repo);
        match (standing, stored) {
            (Some(Standing::Waiting), _) => self.release.drop_waiting(repo).await?,
            (Some(Standing::Active), Some(stored)) => self.release.delist(repo, &stored).await?,
            _ => {}
        }
        if !maintains_another {
            return Ok(malformed(format!(
                "the announcement must list {} in both clone and relays",
                self.domain
            )));
        }
        let verdict = self.keep(&announcement.event).await?;
        repositories.set(&announcement, Standing::Elsewhere);
        Ok(verdict)
    }

    /// An announcement that lists us and is not served yet.
    async fn wait_for_data(&self, announcement: Announcement) -> Result<Verdict, Failed> {
        let Release {
            purgatory,
            repositories,
            ..
        } = &self.release;
        let repo = &announcement.repo;
        purgatory
            .announcements
            .admit(announcement.clone(), self.now());
        if let Err(error) = purgatory.keep_announcement(repo).await {
            purgatory.remove_announcement(repo);
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
        if stored.is_some_and(|stored| later(&stored, &state.event) != Ordering::Less) {
            return Ok(replaced());
        }
        for (repo, standing) in &trusting {
            if *standing == Standing::Waiting {
                purgatory.extend_announcement(repo, self.now() + WAITS_FOR);
                self.make_repository(repo).await;
            }
        }
        purgatory.add_state(state.clone());
        if self.release_now(&state).await {
            return Ok(Verdict::served());
        }
        if let Err(error) = purgatory.keep_state(&id).await {
            purgatory.remove_state(&id);
            return Err(error.into());
        }
        Ok(Verdict::accepted(WAITS))
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
                true => std::collections::BTreeSet::new(),
                false => self.release.absent(&state.identifier, &wanted).await?,
            };
            if !satisfiable(state, &absent) {
                return Ok(false);
            }
            let released = self.release.state(state, None, None).await?;
            if let Some(behind) = released.go_on_behind {
                let state = state.clone();
                go_on(&self.release, &self.serial, GoOn { state, behind });
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
        if let Err(error) = purgatory.keep_pull_request(&id).await {
            purgatory.remove_pull_request(&id);
            return Err(error.into());
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
                Target::Id(id) => self.delete_id(&id, &request).await?,
                Target::Address {
                    kind,
                    identifier,
                    until,
                } => {
                    let kind = Kind::from(kind);
                    for id in self.versions(kind, author, &identifier, until).await? {
                        self.delete_id(&id, &request).await?;
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

    /// Deletes one event, stored or waiting, if it is by the author of the request.
    async fn delete_id(&self, id: &EventId, request: &Event) -> Result<(), Failed> {
        let Release {
            store, purgatory, ..
        } = &self.release;
        let author = author_of(request);
        if let Some(stored) = store.by_id(id).await? {
            if author_of(&stored) != author || stored.kind == DELETION {
                return Ok(());
            }
            let identifier = nip34::identifier_of(&stored);
            let what = Meaning::of(stored.kind);
            let (Meaning::Announcement | Meaning::State, Ok(identifier)) = (what, identifier)
            else {
                return Ok(store.remove([*id]).await?);
            };
            let door = self.clone();
            let queue = identifier.clone();
            let work = async move {
                let repo = RepoId {
                    owner: author,
                    identifier,
                };
                door.delete_stored(&repo, &stored).await
            };
            return self.serial.run(&queue, Turn::Normal, work).await;
        }
        if let Some(repo) = purgatory.announcements.repo_of(id)
            && repo.owner == author
        {
            let (release, queue) = (self.release.clone(), repo.identifier.clone());
            let work = async move { release.drop_waiting(&repo).await };
            self.serial.run(&queue, Turn::Normal, work).await?;
        }
        if purgatory
            .states
            .get(id)
            .is_some_and(|entry| entry.state.author == author)
        {
            purgatory.remove_state(id);
        }
        let entry = purgatory.pull_requests.get(id);
        if entry
            .and_then(|entry| entry.request)
            .is_some_and(|r| r.author == author)
        {
            purgatory.remove_pull_request(id);
        }
        Ok(())
    }

    async fn delete_stored(self, repo: &RepoId, stored: &Event) -> Result<(), Failed> {
        if stored.kind == ANNOUNCEMENT {
            // Since it was looked up, a later version may have taken its place.
            let current = self.release.store.announcement(repo).await?;
            if current.is_none_or(|current| current.id != stored.id) {
                return Ok(());
            }
            if self.release.repositories.standing(repo) == Some(Standing::Active) {
                return Ok(self.release.delist(repo, stored).await?);
            }
            self.release.store.remove([id_of(stored)]).await?;
            self.release.repositories.remove(repo);
            return Ok(());
        }
        self.release.store.remove([id_of(stored)]).await?;
        let author = author_of(stored);
        for (repo, standing) in self
            .release
            .repositories
            .trusting(&repo.identifier, &author)
        {
            if standing == Standing::Active
                && let Err(error) = self.release.realign(&repo).await
            {
                let what = "a repository still shows a deleted state";
                self.release.note(&repo.identifier, &error, what);
            }
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
/// in later ones.
pub async fn release_identifier(
    release: &Release,
    serial: &Serial,
    identifier: &Identifier,
) -> Result<(), ReleaseError> {
    for more in release.identifier(identifier).await? {
        go_on(release, serial, more);
    }
    Ok(())
}

/// Goes on with the release of a state that many repositories want, turn by turn, so that whoever
/// is at a terminal goes between.
pub fn go_on(release: &Release, serial: &Serial, from: GoOn) {
    let (release, serial) = (release.clone(), serial.clone());
    tokio::spawn(async move {
        let GoOn { state, behind } = from;
        let identifier = state.identifier.clone();
        let mut behind = Some(behind);
        while let Some(last) = behind {
            let (worker, state) = (release.clone(), state.clone());
            let work = async move { worker.state(&state, None, Some(&last)).await };
            match serial.run(&identifier, Turn::Normal, work).await {
                Ok(released) => behind = released.go_on_behind,
                Err(error) => {
                    // It is still in purgatory: the next release begins anew.
                    release.note(&identifier, &error, "a release stopped half-way");
                    behind = None;
                }
            }
        }
    });
}
