//! Push: whether a push is allowed, and what follows from it (see `push.proto`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use dashmap::DashMap;
use grasp_proto::{
    contract::{
        self, Command,
        relay::{self as wire, authorize_response::Outcome, push_server},
    },
    words::{Address, EventId, Identifier, Oid, RefKind, RefName, RepoId},
};
use nostr::Event;
use tonic::{Request, Response, Status};

use crate::{
    clock::Moment,
    git::{GitError, Refs},
    hunt::Hunt,
    meters,
    nip34::{Meaning, announcement::Announcement, later, pull_request::PullRequest, state::State},
    policy::{
        curation::{Curation, KEPT_ELSEWHERE, NOT_TAKEN, READ_ONLY},
        push::{Allowed, Case, Known, Refused, judge},
    },
    purgatory::{AFTER_LAST_BYTE, WAITS_FOR},
    release::{Aim, GoOn, Release, ReleaseError, go_on, release_identifier},
    repository::Standing,
    serial::{Serial, Turn},
    store::StoreError,
};

/// How long a push is remembered after its last sign of life.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// How often pushes that are to be forgotten are looked for.
const LOOKED_FOR_EVERY: Duration = Duration::from_secs(60);
/// How often a commit looks again when a ref was not where it had been seen.
const ATTEMPTS: usize = 3;
/// Commands of one push; git clients send one for each ref.
const COMMANDS: usize = 100_000;

/// A push that was granted.
#[derive(Debug, Clone)]
struct Granted {
    address: Address,
    allowed: Allowed,
    last_seen: Moment,
    /// What was answered to its commit: the same for all commands, empty if they were done.
    answer: Option<String>,
}

/// The Push service.
#[derive(Clone)]
pub struct PushService {
    release: Release,
    serial: Serial,
    curation: Curation,
    /// What looks elsewhere for what pushes bring.
    hunt: Hunt,
    /// Forgotten an hour after their last sign of life, as other pushes come.
    pushes: Arc<DashMap<String, Granted>>,
    /// When those to be forgotten were last looked for.
    looked: Arc<Mutex<Moment>>,
}

/// One push as it was asked about.
#[derive(Debug, Clone)]
struct Asked {
    address: Address,
    commands: Vec<Command>,
    incarnation: String,
}

/// Why a push could not be judged or carried out.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
}

impl From<Failed> for Status {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Git(GitError::Unreachable(why)) => Status::unavailable(why),
            other => Status::internal(other.to_string()),
        }
    }
}

/// A push, judged: by what, and what it rests on.
struct Judged {
    allowed: Allowed,
    current: Refs,
    /// The state that allows it.
    state: Option<State>,
    names: BTreeSet<RefName>,
}

fn asked(
    repository: Option<wire::Repository>,
    commands: Vec<wire::Command>,
    incarnation: String,
) -> Result<Asked, Status> {
    if commands.len() > COMMANDS {
        return Err(Status::invalid_argument("too many commands"));
    }
    let commands = commands.into_iter().map(Command::try_from);
    Ok(Asked {
        address: contract::address(repository)?,
        commands: commands.collect::<Result<_, _>>()?,
        incarnation,
    })
}

impl PushService {
    /// The service over `release`, in the queues of `serial`, where `curation` allows it. What a push has
    /// brought leaves `hunt`.
    pub fn new(release: Release, serial: Serial, curation: Curation, hunt: Hunt) -> Self {
        Self {
            release,
            serial,
            curation,
            hunt,
            pushes: Arc::default(),
            looked: Arc::default(),
        }
    }

    /// The waiting states that may allow a push to a repository, latest first: authorised for its
    /// owner, and not superseded by what is served.
    async fn candidates(&self, repo: &RepoId) -> Result<Vec<State>, StoreError> {
        let authors = self.release.repositories.maintainers(repo);
        let states = &self.release.purgatory.states;
        let waiting = authors
            .iter()
            .flat_map(|author| states.by_author(&repo.identifier, author))
            .map(|entry| entry.state);
        let mut waiting: Vec<State> = waiting.collect();
        if waiting.is_empty() {
            return Ok(waiting);
        }
        if let Some(served) = self.release.latest_stored(repo).await? {
            // One that is served and waits on for other repositories still allows its own push.
            waiting.retain(|state| later(&state.event, &served.event).is_ge());
        }
        waiting.sort_by(|a, b| later(&b.event, &a.event));
        Ok(waiting)
    }

    /// Whether a repository is archived, and what is archived takes no pushes.
    async fn is_read_only(&self, repo: &RepoId) -> Result<bool, StoreError> {
        let rules = self.curation.rules();
        if !rules.refuses_pushes() {
            return Ok(false);
        }
        let announcement = match self.release.purgatory.announcements.get(repo) {
            Some(waiting) => Some(waiting.announcement),
            None => {
                let stored = self.release.store.announcement(repo).await?;
                stored.and_then(|event| Announcement::read(Arc::new(event)).ok())
            }
        };
        Ok(announcement.is_some_and(|one| rules.is_archive(&one)))
    }

    async fn known(&self, asked: &Asked) -> Result<BTreeMap<EventId, Known>, StoreError> {
        let mut known = BTreeMap::new();
        for command in &asked.commands {
            let RefKind::Nostr(id) = command.name.kind() else {
                continue;
            };
            let waiting = self.release.purgatory.pull_requests.get(&id);
            let what = match waiting.and_then(|entry| entry.request) {
                Some(request) => self.belongs(&asked.address, &request, true).await?,
                None => match self.release.store.by_id(&id).await? {
                    Some(event) => match pull_request(event) {
                        Some(request) => self.belongs(&asked.address, &request, false).await?,
                        None => Known::Other,
                    },
                    None => Known::Unknown,
                },
            };
            known.insert(id, what);
        }
        Ok(known)
    }

    /// What a pull request that is known means for a push to `address`.
    async fn belongs(
        &self,
        address: &Address,
        request: &PullRequest,
        waits: bool,
    ) -> Result<Known, StoreError> {
        let Release { spaces, .. } = &self.release;
        if request.has_expired(self.release.purgatory.now()) {
            return Ok(Known::Expired);
        }
        let belongs = match address.is_prs() {
            true => spaces.named_by(&request.event).contains(&address.repo),
            // What waits for a push to its author's own space is nobody else's.
            false => !waits || self.release.is_related(request).await?,
        };
        Ok(match belongs {
            true => Known::Commit(request.commit),
            false => Known::Elsewhere,
        })
    }

    /// Whether a repository takes pushes at all; a refusal says why not.
    async fn is_open(&self, repo: &RepoId) -> Result<(), Failed> {
        let Release {
            purgatory,
            repositories,
            ..
        } = &self.release;
        let refused = |why: &str| Err(Refused(why.to_owned()).into());
        match repositories.standing(repo) {
            Some(Standing::Active) => {}
            Some(Standing::Waiting) => {
                let entry = purgatory.announcements.get(repo);
                if entry.is_none_or(|entry| entry.soft_expired) {
                    return refused("the announcement of this repository has expired");
                }
            }
            Some(Standing::Elsewhere) => return refused(KEPT_ELSEWHERE),
            None => return refused("no announcement of this repository is here"),
        }
        match self.is_read_only(repo).await? {
            true => refused(READ_ONLY),
            false => Ok(()),
        }
    }

    /// Whether a contributor's own space takes pushes.
    fn is_open_space(&self, repo: &RepoId) -> Result<(), Failed> {
        let why = if !self.release.spaces.is_on() {
            "nothing is taken below /prs/ here"
        } else if self.curation.rules().bans(&repo.owner) {
            NOT_TAKEN
        } else {
            return Ok(());
        };
        Err(Refused(why.to_owned()).into())
    }

    /// The refs of these names. A contributor's space without any has no repository.
    async fn refs(&self, address: &Address, names: &[RefName]) -> Result<Refs, GitError> {
        match self.release.git.refs(address, names).await {
            Err(GitError::NotFound) if address.is_prs() => Ok(Refs::default()),
            refs => refs,
        }
    }

    /// Judges a push as things stand now. In the queue of its identifier.
    async fn judge(&self, asked: &Asked) -> Result<Judged, Failed> {
        let Address { repo, .. } = &asked.address;
        if self.curation.rules().blocks(repo) {
            return Err(Refused(NOT_TAKEN.to_owned()).into());
        }
        let states = match asked.address.is_prs() {
            true => {
                self.is_open_space(repo)?;
                Vec::new()
            }
            false => {
                self.is_open(repo).await?;
                self.candidates(repo).await?
            }
        };
        let mut names: BTreeSet<RefName> = asked.commands.iter().map(|c| c.name.clone()).collect();
        for state in &states {
            names.extend(state.refs.keys().cloned());
        }
        let list: Vec<RefName> = names.iter().cloned().collect();
        let current = self.refs(&asked.address, &list).await?;
        if !asked.incarnation.is_empty() && current.incarnation != asked.incarnation {
            return Err(Refused("the repository was deleted and made anew".to_owned()).into());
        }
        let known = self.known(asked).await?;
        let allowed = judge(&Case {
            address: &asked.address,
            commands: &asked.commands,
            current: &current.refs,
            states: &states,
            known: &known,
        })?;
        let places = &self.release.purgatory.places;
        let crowded = allowed.requested.iter();
        let mut crowded = crowded.filter(|(id, _)| !places.has_room_for(id, &asked.address));
        if let Some((id, _)) = crowded.next() {
            let reason = format!("the commit of {id} is in as many repositories as it may be");
            return Err(Refused(reason).into());
        }
        let state = allowed
            .state
            .and_then(|id| states.into_iter().find(|state| state.id() == id));
        Ok(Judged {
            allowed,
            current,
            state,
            names,
        })
    }

    /// What allowed a push lasts until `until` at least.
    fn extend(&self, address: &Address, allowed: &Allowed, until: Moment) {
        let purgatory = &self.release.purgatory;
        if let Some(state) = &allowed.state {
            purgatory.extend_state(state, until);
            let repo = &address.repo;
            if self.release.repositories.standing(repo) == Some(Standing::Waiting) {
                purgatory.prolong_announcement(repo, until);
            }
        }
        for (id, _) in allowed.requested.iter().chain(&allowed.placeholders) {
            purgatory.extend_pull_request(id, until);
        }
    }

    /// Looks for them once a minute at most.
    fn forget_old_pushes(&self) {
        let now = self.release.purgatory.now();
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if *looked + LOOKED_FOR_EVERY > now {
                return;
            }
            *looked = now;
        }
        self.pushes
            .retain(|_, push| push.last_seen + REMEMBERED > now);
    }

    async fn authorize(self, asked: Asked) -> Result<wire::AuthorizeResponse, Failed> {
        let begun = Instant::now();
        let judged = self.judge(&asked).await;
        let result = if judged.is_ok() { "granted" } else { "refused" };
        meters::push_judged(result, begun);
        let judged = match judged {
            Ok(judged) => judged,
            Err(Failed::Refused(Refused(reason))) => {
                metrics::counter!("ngit_pushes_total", "result" => "refused").increment(1);
                tracing::info!(repo = %asked.address, %reason, "push refused");
                return Ok(wire::AuthorizeResponse {
                    outcome: Some(Outcome::Refused(wire::Refused { reason })),
                });
            }
            Err(Failed::Git(GitError::NotFound)) => {
                let reason = "the repository is not here".to_owned();
                metrics::counter!("ngit_pushes_total", "result" => "refused").increment(1);
                tracing::info!(repo = %asked.address, %reason, "push refused");
                return Ok(wire::AuthorizeResponse {
                    outcome: Some(Outcome::Refused(wire::Refused { reason })),
                });
            }
            Err(other) => return Err(other),
        };
        let now = self.release.purgatory.now();
        self.extend(&asked.address, &judged.allowed, now + WAITS_FOR);
        // What is signed for is taken out of the staging as its refs are moved; what came with it and
        // is not stays there.
        let objects = if !judged.allowed.placeholders.is_empty() {
            wire::Objects::Staged
        } else if judged.allowed.changes_nothing() {
            wire::Objects::Unwanted
        } else {
            wire::Objects::SignedFor
        };
        let push_id = format!("{:032x}", rand::random::<u128>());
        self.forget_old_pushes();
        self.pushes.insert(
            push_id.clone(),
            Granted {
                address: asked.address,
                allowed: judged.allowed,
                last_seen: now,
                answer: None,
            },
        );
        Ok(wire::AuthorizeResponse {
            outcome: Some(Outcome::Granted(wire::Granted {
                push_id,
                objects: objects.into(),
            })),
        })
    }

    async fn commit(
        self,
        push_id: String,
        asked: Asked,
    ) -> Result<Vec<wire::CommandResult>, Failed> {
        if let Some(push) = self.pushes.get(&push_id)
            && let Some(answer) = &push.answer
        {
            return Ok(results(&asked, answer));
        }
        let mut attempt = 1;
        let reason = loop {
            match self.carry_out(&asked).await {
                Ok(()) => break None,
                Err(Failed::Refused(Refused(reason))) => break Some(reason),
                Err(
                    Failed::Git(GitError::Moved(_))
                    | Failed::Release(ReleaseError::Git(GitError::Moved(_))),
                ) if attempt < ATTEMPTS => attempt += 1,
                Err(
                    Failed::Git(GitError::Refused(why))
                    | Failed::Release(ReleaseError::Git(GitError::Refused(why))),
                ) => break Some(why),
                Err(other) => {
                    // It may have been half done: whoever it was for gets the other half.
                    let identifier = asked.address.identifier().clone();
                    self.release.unfinished.insert(identifier, ());
                    return Err(other);
                }
            }
        };
        let result = if reason.is_some() {
            "refused"
        } else {
            "accepted"
        };
        metrics::counter!("ngit_pushes_total", "result" => result).increment(1);
        tracing::info!(repo = %asked.address, result, reason, "push");
        let answer = reason.unwrap_or_default();
        if let Some(mut push) = self.pushes.get_mut(&push_id) {
            push.answer = Some(answer.clone());
            push.last_seen = self.release.purgatory.now();
        }
        Ok(results(&asked, &answer))
    }

    /// Judges a push again and does what it is for.
    async fn carry_out(&self, asked: &Asked) -> Result<(), Failed> {
        let judged = self.judge(asked).await?;
        if let Some(state) = judged.state {
            let expected = judged.names.iter().filter(|name| is_branch_or_tag(name));
            let aim = Aim {
                repo: asked.address.repo.clone(),
                expected: expected
                    .map(|name| (name.clone(), judged.current.refs.get(name).copied()))
                    .collect(),
                incarnation: judged.current.incarnation.clone(),
            };
            let released = self.release.state(&state, Some(&aim), None).await?;
            if let Some(so_far) = released.more {
                go_on(&self.release, &self.serial, GoOn { state, so_far });
            }
        }
        for (id, commit) in &judged.allowed.requested {
            self.put_requested(asked, id, *commit).await?;
        }
        for (id, commit) in &judged.allowed.placeholders {
            self.put_placeholder(asked, id, *commit).await?;
        }
        Ok(())
    }

    async fn put_requested(&self, asked: &Asked, id: &EventId, commit: Oid) -> Result<(), Failed> {
        // Known to be here before its ref is: whatever ends the wait takes the ref along.
        let (purgatory, to) = (&self.release.purgatory, &asked.address);
        if purgatory.pull_requests.get(id).is_some() {
            let now = purgatory.now();
            purgatory.pull_requests.pushed(*id, to, commit, now);
            purgatory.keep_pull_request(id).await?;
        }
        purgatory.keep_place(id, to).await?;
        let name = RefName::nostr(id);
        self.release.git.put_ref(to, &name, commit, true).await?;
        self.release.pull_request(id).await?;
        // It may have been deleted meanwhile, in the queue of another identifier.
        Ok(self.release.settle_place(id, to).await?)
    }

    /// The placeholder is durable before its ref is there: a ref that nobody remembers would stay
    /// for ever.
    async fn put_placeholder(
        &self,
        asked: &Asked,
        id: &EventId,
        commit: Oid,
    ) -> Result<(), Failed> {
        let (purgatory, to) = (&self.release.purgatory, &asked.address);
        purgatory
            .pull_requests
            .pushed(*id, to, commit, purgatory.now());
        purgatory.keep_pull_request(id).await?;
        purgatory.keep_place(id, to).await?;
        let name = RefName::nostr(id);
        let put = self.release.git.put_ref(to, &name, commit, false).await;
        if let Err(error) = put {
            if !matches!(error, GitError::Unreachable(_)) {
                purgatory.unpushed(id, std::slice::from_ref(to)).await?;
                purgatory.forget_place(id, to);
            }
            return Err(error.into());
        }
        // The event may have come while the ref was put, under another identifier's queue.
        self.release.pull_request(id).await?;
        Ok(())
    }

    /// Releases what else the objects of a push may have completed, after its pusher was told.
    fn release_others(&self, identifier: Identifier) {
        let service = self.clone();
        tokio::spawn(async move {
            let name = identifier.clone();
            let (release, serial) = (service.release.clone(), service.serial.clone());
            let hunt = service.hunt.clone();
            let work = async move {
                let released = release_identifier(&release, &serial, &name).await;
                hunt.settle(&release, &name).await;
                released
            };
            if let Err(error) = service.serial.run(&identifier, Turn::Normal, work).await {
                service
                    .release
                    .note(&identifier, &error, "nothing else was released");
            }
        });
    }
}

fn results(asked: &Asked, answer: &str) -> Vec<wire::CommandResult> {
    let result = |command: &Command| wire::CommandResult {
        name: command.name.to_string(),
        refused: answer.to_owned(),
    };
    asked.commands.iter().map(result).collect()
}

fn is_branch_or_tag(name: &RefName) -> bool {
    matches!(name.kind(), RefKind::Head | RefKind::Tag)
}

fn pull_request(event: Event) -> Option<PullRequest> {
    let is_one = Meaning::of(event.kind) == Meaning::PullRequest;
    let read = || PullRequest::read(Arc::new(event)).ok();
    is_one.then(read).flatten()
}

#[tonic::async_trait]
impl push_server::Push for PushService {
    async fn authorize(
        &self,
        request: Request<wire::AuthorizeRequest>,
    ) -> Result<Response<wire::AuthorizeResponse>, Status> {
        let request = request.into_inner();
        let asked = asked(request.repository, request.commands, request.incarnation)?;
        let queue = asked.address.identifier().clone();
        let work = self.clone().authorize(asked);
        let answer = self.serial.run(&queue, Turn::Urgent, work).await?;
        Ok(Response::new(answer))
    }

    async fn keep_alive(
        &self,
        request: Request<wire::KeepAliveRequest>,
    ) -> Result<Response<wire::KeepAliveResponse>, Status> {
        let push_id = request.into_inner().push_id;
        let now = self.release.purgatory.now();
        let push = self.pushes.get_mut(&push_id).map(|mut push| {
            push.last_seen = now;
            push.value().clone()
        });
        let push = push.ok_or_else(|| Status::not_found("no such push"))?;
        self.extend(&push.address, &push.allowed, now + AFTER_LAST_BYTE);
        Ok(Response::new(wire::KeepAliveResponse {}))
    }

    async fn commit(
        &self,
        request: Request<wire::CommitRequest>,
    ) -> Result<Response<wire::CommitResponse>, Status> {
        let request = request.into_inner();
        let asked = asked(request.repository, request.commands, request.incarnation)?;
        let identifier = asked.address.identifier().clone();
        let work = self.clone().commit(request.push_id, asked);
        let results = self.serial.run(&identifier, Turn::Urgent, work).await?;
        self.release_others(identifier);
        Ok(Response::new(wire::CommitResponse { results }))
    }
}
