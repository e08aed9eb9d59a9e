//! The one door for events: what is accepted, and what follows from it (protocol, "Which events
//! are accepted").
//!
//! Whoever brings an event – a client's session, a worker's `Submit` – it is judged here. What
//! concerns an identifier is done in its queue. Moderation and curation stand between what an event
//! says of itself and everything else; whose events are not taken at all is asked first.

mod announcement;
mod deletion;
mod pull_request;
mod state;
mod strangers;
mod vanish;

use std::{
    cmp,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use grasp_proto::{
    transport::Trace,
    words::{EventId, Identifier},
};
use nostr::{Event, PublicKey, Timestamp};

use crate::{
    clock::Moment,
    disks::Disks,
    expiry,
    hunt::Hunt,
    journal::JournalError,
    meters,
    nip34::{
        DELETION, Meaning, announcement::Announcement, author_of, bounds, has_expired, id_of,
        later, pull_request::PullRequest, state::State,
    },
    policy::{
        curation::{BANNED, BLOCKED, Curation},
        event_size::EventSizeLimits,
        related,
        reposts::carries_protected,
        vanish as vanishing,
    },
    purgatory::room::Full,
    release::{Release, ReleaseError},
    requests::{AgeingError, KeptOut},
    retire::RetireError,
    serial::{Serial, Turn},
    store::{Saved, StoreError},
    strangers::Strangers,
    verdict::{Door, Origin, Verdict},
};

/// What is said of everything that goes to purgatory (GRASP-01).
pub const WAITS: &str = "purgatory: won't be served until git data arrives";

/// Of an author's events so many are looked at for one that makes the author known: deletion
/// requests, which anybody can file, do not.
const OWN_EVENTS: usize = 100;

/// What is said of a state that no push and no fetch can ever fulfil.
const UNFULFILLABLE: &str = "a state names at least one branch or tag, and each at an object id";

/// What is said of an event that belongs to nothing served here.
pub const UNRELATED: &str = "blocked: not related to a repository or event that is served here";

/// What is said of an ephemeral event (NIP-01) that was found on another relay.
pub const NOT_SYNCED: &str = "blocked: ephemeral events are taken from clients only";

/// What is said of a version that loses against the one that is here.
pub const REPLACED: &str = "duplicate: a later version of it is here";

/// What is said of a repost that carries a protected event (NIP-70).
const CARRIES_PROTECTED: &str = "blocked: it carries a protected event";

/// What is said of a protected event (NIP-70) that was found on another relay.
pub const PROTECTED: &str = "blocked: a protected event is taken from its author only";

/// Something of ours failed while an event was judged. The event can be sent again.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The event store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is taken out of service.
    #[error(transparent)]
    Retire(#[from] RetireError),
    /// What is released.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Requests to delete and to vanish.
    #[error(transparent)]
    Requests(#[from] AgeingError),
    /// A task of its own.
    #[error("it stopped half-way: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// What every event must keep to, and who may do without belonging to anything.
#[derive(Debug, Clone, Copy)]
pub struct EventBounds {
    /// How large events may be.
    pub sizes: EventSizeLimits,
    /// How far `created_at` may be ahead of now.
    pub ahead: Duration,
    /// The service's own key.
    pub service: PublicKey,
}

/// The door. Cheap to clone.
#[derive(Clone)]
pub struct Admit {
    release: Release,
    serial: Serial,
    hunt: Hunt,
    curation: Curation,
    bounds: EventBounds,
    disks: Disks,
    strangers: Arc<Strangers>,
    /// Requests to delete or to vanish stored so far: while this stands still, none crossed an event.
    deletions: Arc<AtomicU64>,
}

impl Door for Admit {
    fn admit(&self, event: Event, origin: Origin) -> BoxFuture<'_, Verdict> {
        let (id, kind, begun) = (event.id, event.kind, Instant::now());
        let span = tracing::info_span!("event", kind = kind.as_u16(), %id);
        let judging = async move {
            let verdict = match self.judge(Arc::new(event), origin).await {
                Ok(verdict) => verdict,
                Err(error) => {
                    tracing::error!(%id, %error, "an event could not be judged");
                    Verdict::rejected(format!("error: {error}; try again"))
                }
            };
            tracing::debug!(%id, %kind, ok = verdict.ok, message = verdict.message, "judged");
            meters::judged(kind, origin, &verdict, begun);
            verdict
        };
        Box::pin(Trace::within(span, judging))
    }
}

/// Why something is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Its author asked for just that, by this request.
    Delete(EventId),
    /// Its author asked to vanish: what the author wrote is not held, requests go too.
    Vanish,
    /// It has expired by its own word.
    Expire,
}

/// The rejection of an event that says something its kind does not allow.
fn malformed(error: impl std::fmt::Display) -> Verdict {
    Verdict::rejected(format!("invalid: {error}"))
}

/// A version that others of the same address come before: whoever published both has what they want.
fn replaced() -> Verdict {
    Verdict::accepted(REPLACED)
}

/// A version of what was taken out of service by a later one, which is not here.
fn gone() -> Verdict {
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

/// There is no room for it where it would wait.
fn no_room(full: Full) -> Verdict {
    Verdict::rejected(format!("error: {full}"))
}

fn waits_already() -> Verdict {
    Verdict::accepted("duplicate: in purgatory")
}

impl Admit {
    /// The door to what `release` serves; what `hunt` looks for is what waits behind it, and
    /// `curation` says what is wanted at all.
    pub fn new(
        release: Release,
        serial: Serial,
        hunt: Hunt,
        curation: Curation,
        bounds: EventBounds,
        strangers: Arc<Strangers>,
    ) -> Self {
        Self {
            release,
            serial,
            hunt,
            curation,
            bounds,
            strangers,
            disks: Disks::unlimited(),
            deletions: Arc::default(),
        }
    }

    /// What it lets events into.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// The same, where disks may fill up.
    #[must_use]
    pub fn with_disks(mut self, disks: Disks) -> Self {
        self.disks = disks;
        self
    }

    /// What can be said of an event without knowing anything else.
    fn well_formed(&self, event: &Event) -> Option<Verdict> {
        let most = self.bounds.sizes.of(event.kind);
        if event.as_json().len() > most {
            return Some(malformed(format!("larger than {most} bytes")));
        }
        if let Err(error) = bounds::check(event) {
            return Some(malformed(error));
        }
        if !event.verify_id() {
            return Some(malformed("the id is not that of the event"));
        }
        if !event.verify_signature() {
            return Some(malformed("the signature is wrong"));
        }
        let now = Timestamp::from(self.release.purgatory.wall().as_secs());
        if has_expired(event, now) {
            return Some(malformed("expired"));
        }
        if event.created_at > now + self.bounds.ahead {
            return Some(malformed("created_at is too far in the future"));
        }
        if carries_protected(event) {
            return Some(Verdict::rejected(CARRIES_PROTECTED));
        }
        None
    }

    fn now(&self) -> Moment {
        self.release.purgatory.now()
    }

    async fn judge(&self, event: Arc<Event>, origin: Origin) -> Result<Verdict, Failed> {
        if self.curation.rules().bans(&author_of(&event)) {
            return Ok(Verdict::rejected(BANNED));
        }
        if let Some(verdict) = self.well_formed(&event) {
            return Ok(verdict);
        }
        if let Err(full) = self.disks.check_event(&event) {
            return Ok(Verdict::rejected(format!("error: {full}")));
        }
        let deletions = self.deletions.load(Ordering::SeqCst);
        let falls = self.release.holding.falls_so_far();
        let verdict = self.judge_expiring(event.clone(), origin).await?;
        // Its deletion may have come while it was judged, and found nothing to delete.
        if verdict.ok
            && self.deletions.load(Ordering::SeqCst) != deletions
            && let Some(by) = self.release.kept_out_by(&event).await?
        {
            let wish = match by {
                KeptOut::Deleted(request) => Wish::Delete(request),
                KeptOut::Vanished => Wish::Vanish,
            };
            self.takes_effect(wish).await?;
            self.delete_id(&id_of(&event), author_of(&event), wish)
                .await?;
            return Ok(deleted());
        }
        // What it was accepted for may have fallen while it was judged.
        if verdict.ok
            && self.release.holding.falls_so_far() != falls
            && self.is_left_over(&event).await?
        {
            self.release.store.apart().remove([id_of(&event)]).await?;
            self.release.live.removed(&event);
            return Ok(unrelated());
        }
        Ok(verdict)
    }

    /// Judges an event; when it expires is known before it is accepted.
    async fn judge_expiring(&self, event: Arc<Event>, origin: Origin) -> Result<Verdict, Failed> {
        let expires = expiry::moment_of(&event).filter(|_| !event.kind.is_ephemeral());
        let Some(at) = expires else {
            return self.judge_kind(event, origin).await;
        };
        let (id, purgatory) = (id_of(&event), &self.release.purgatory);
        purgatory.note_expiring(id, at).await?;
        let verdict = self.judge_kind(event, origin).await;
        let is_kept = purgatory.holds(&id) || self.release.store.apart().has(&id).await?;
        if !is_kept && self.release.holding.event(&id).await?.is_none() {
            purgatory.forget_expiring(&id);
        }
        verdict
    }

    async fn is_left_over(&self, event: &Event) -> Result<bool, StoreError> {
        Ok(Meaning::of(event.kind) == Meaning::Other
            && self.release.store.has(&id_of(event)).await?
            && !self.belongs(event).await?)
    }

    async fn judge_kind(&self, event: Arc<Event>, origin: Origin) -> Result<Verdict, Failed> {
        let id = id_of(&event);
        if event.kind.is_ephemeral() {
            return match origin {
                Origin::User(_) | Origin::Operator => self.ephemeral(&event).await,
                // No store knows it again: it would go round for ever between services that follow
                // each other.
                Origin::Sync => Ok(Verdict::rejected(NOT_SYNCED)),
            };
        }
        if event.kind != DELETION {
            if self.release.store.has(&id).await? {
                if origin.is_meant() {
                    self.sent_again(event).await?;
                }
                return Ok(known());
            }
            if origin == Origin::Sync && self.release.purgatory.expired_lately(&id) {
                let why = "invalid: previously expired from purgatory without git data";
                return Ok(Verdict::rejected(why));
            }
        }
        if self.release.keeps_out(&event).await? {
            return Ok(deleted());
        }
        // Its author may say so over a connection that is the author's, which no sync is.
        if origin == Origin::Sync && event.is_protected() {
            return Ok(Verdict::rejected(PROTECTED));
        }
        match Meaning::of(event.kind) {
            Meaning::Announcement => match Announcement::read(event) {
                Ok(announcement) if self.curation.rules().blocks(&announcement.repo) => {
                    Ok(Verdict::rejected(BLOCKED))
                }
                Ok(announcement) => {
                    let door = self.clone();
                    let identifier = announcement.repo.identifier.clone();
                    let work = async move { door.announcement(announcement, origin).await };
                    let verdict = self.serial.run(&identifier, Turn::Normal, work).await?;
                    self.was_sent([identifier], &verdict, origin);
                    Ok(verdict)
                }
                Err(error) => Ok(malformed(error)),
            },
            Meaning::State => match State::read(event) {
                Ok(state) if state.is_unfulfillable() => Ok(malformed(UNFULFILLABLE)),
                Ok(state) => {
                    let door = self.clone();
                    let identifier = state.identifier.clone();
                    let work = async move { door.state(state, origin).await };
                    let verdict = self.serial.run(&identifier, Turn::Normal, work).await?;
                    self.was_sent([identifier], &verdict, origin);
                    Ok(verdict)
                }
                Err(error) => Ok(malformed(error)),
            },
            Meaning::PullRequest => match PullRequest::read(event) {
                Ok(request) if request.commit.is_none() => {
                    Ok(malformed("the c tag is no object id"))
                }
                Ok(request) => {
                    let identifiers = request.identifiers();
                    let verdict = self.pull_request_in_turn(request, origin).await?;
                    self.was_sent(identifiers, &verdict, origin);
                    Ok(verdict)
                }
                Err(error) => Ok(malformed(error)),
            },
            Meaning::Deletion => {
                let keep = Box::pin(self.deletion(event.clone()));
                self.of_anybody(event, origin, keep).await
            }
            Meaning::Vanish if vanishing::names(&event, self.curation.rules().ours()) => {
                let keep = Box::pin(self.vanish(event.clone()));
                self.of_anybody(event, origin, keep).await
            }
            // Accepted, whoever sends it, says the protocol; but on other relays anybody can leave as
            // many as he has keys: of what is found there only that of people known here counts.
            Meaning::GraspList if origin == Origin::Sync && !self.is_known(&event).await? => {
                Ok(unrelated())
            }
            Meaning::GraspList => {
                self.of_anybody(event.clone(), origin, Box::pin(self.keep(&event)))
                    .await
            }
            Meaning::Vanish | Meaning::Other => self.other(&event).await,
        }
    }

    /// Whoever sends an event of a repository directly has its data, as a rule: what expired for want of it
    /// may come back.
    fn was_sent(
        &self,
        identifiers: impl IntoIterator<Item = Identifier>,
        verdict: &Verdict,
        origin: Origin,
    ) {
        if origin.is_meant() && verdict.ok {
            for identifier in identifiers {
                self.release.data_may_be_there(&identifier);
            }
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

    /// What the stored version of an addressable event has to say against a new one: it is later,
    /// or the same; or there is none, and the new one would take another's place.
    async fn against_stored(
        &self,
        stored: Option<&Event>,
        event: &Event,
    ) -> Result<Option<Verdict>, StoreError> {
        match stored.map(|stored| later(stored, event)) {
            Some(cmp::Ordering::Greater) => return Ok(Some(replaced())),
            // The same one came by another connection at the same time.
            Some(cmp::Ordering::Equal) => return Ok(Some(known())),
            Some(cmp::Ordering::Less) | None => {}
        }
        let mistaken_for_another = self.release.store.mistakes(event).await?;
        Ok(mistaken_for_another.then(mistaken))
    }

    /// Whether its author announces or maintains something here, or wrote something that is served.
    async fn is_known(&self, event: &Event) -> Result<bool, StoreError> {
        if self.release.repositories.knows(&author_of(event)) {
            return Ok(true);
        }
        let own = nostr::Filter::new().author(event.pubkey).limit(OWN_EVENTS);
        let own = self.release.store.query(own).await?;
        Ok(own.iter().any(|own| related::relates(own.kind)))
    }

    async fn is_related(&self, event: &Event) -> Result<bool, StoreError> {
        related::is_related(event, &self.release.repositories, &self.release.store).await
    }

    /// Whether an event of a kind without a rule of its own has a place here: it belongs to something
    /// that is served, or is the service's own.
    async fn belongs(&self, event: &Event) -> Result<bool, StoreError> {
        Ok(event.pubkey == self.bounds.service || self.is_related(event).await?)
    }

    async fn other(&self, event: &Event) -> Result<Verdict, Failed> {
        match self.belongs(event).await? {
            true => self.keep(event).await,
            false => Ok(unrelated()),
        }
    }

    async fn ephemeral(&self, event: &Event) -> Result<Verdict, Failed> {
        if !self.belongs(event).await? {
            return Ok(unrelated());
        }
        Ok(match self.release.live.publish_once(event) {
            true => Verdict::served(),
            false => known(),
        })
    }
}

fn unrelated() -> Verdict {
    Verdict::rejected(UNRELATED)
}
