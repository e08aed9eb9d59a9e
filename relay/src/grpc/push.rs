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
    disks::Disks,
    git::{GitError, Refs},
    hunt::Hunt,
    meters,
    nip34::{Meaning, announcement::Announcement, later, pull_request::PullRequest, state::State},
    policy::{
        curation::{Curation, KEPT_ELSEWHERE, NOT_TAKEN, READ_ONLY},
        push::{Allowed, Case, Known, Refused, Verdict, judge},
        satisfiable::Wanted,
    },
    purgatory::{AFTER_LAST_BYTE, WAITS_FOR},
    release::{Aim, GoOn, Release, ReleaseError, go_on, release_identifier},
    repository::Standing,
    serial::{Serial, Turn},
    store::StoreError,
};

/// How long a push is remembered after its last sign of life.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// The length of a push id.
const PUSH_ID: usize = 32;
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
    /// Some of its refs were refused, and are not committed.
    is_partial: bool,
    /// What was answered to its commit.
    answer: Option<Answered>,
}

/// What became of the commands of a push.
#[derive(Debug, Clone, Default)]
struct Answered {
    /// For each command, in their order.
    results: Vec<wire::CommandResult>,
    /// Lines for the git user besides.
    remarks: Vec<String>,
    /// The state that the push fulfilled.
    fulfilled: Option<EventId>,
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
    disks: Disks,
}

/// One push as it was asked about.
#[derive(Debug, Clone)]
struct Asked {
    address: Address,
    commands: Vec<Command>,
    incarnation: String,
    /// All or nothing.
    atomic: bool,
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
    verdict: Verdict,
    current: Refs,
    /// The state that allows it.
    state: Option<State>,
    names: BTreeSet<RefName>,
}

fn asked(
    repository: Option<wire::Repository>,
    commands: Vec<wire::Command>,
    incarnation: String,
    atomic: bool,
) -> Result<Asked, Status> {
    if commands.len() > COMMANDS {
        return Err(Status::invalid_argument("too many commands"));
    }
    let commands = commands.into_iter().map(Command::try_from);
    Ok(Asked {
        address: contract::address(repository)?,
        commands: commands.collect::<Result<_, _>>()?,
        incarnation,
        atomic,
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
            disks: Disks::unlimited(),
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
        if let Some(retained) = self.release.retained_state(repo).await? {
            waiting.retain(|state| retained.is_before(state));
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
        let unknown = known.iter().filter(|(_, known)| **known == Known::Unknown);
        let waiting = unknown.map(|(id, _)| {
            let requests = &self.release.purgatory.pull_requests;
            (*id, requests.pushed_to(id, &asked.address))
        });
        let waiting = waiting.collect();
        let here = self.here(asked, &states, &current).await?;
        let mut verdict = judge(&Case {
            address: &asked.address,
            commands: &asked.commands,
            atomic: asked.atomic,
            current: &current.refs,
            states: &states,
            here: &here,
            known: &known,
            waiting: &waiting,
        });
        let (places, mut crowded) = (&self.release.purgatory.places, Vec::new());
        for (id, _) in &verdict.allowed.requested {
            let is_free = places.has_room_for(id, &asked.address)
                || self.is_offered_to(id, &asked.address).await?;
            crowded.extend((!is_free).then_some(*id));
        }
        for id in crowded {
            let reason = format!("the commit of {id} is in as many repositories as it may be");
            verdict.refuse(&asked.commands, &RefName::nostr(&id), &reason, asked.atomic);
        }
        let allowed = verdict.allowed.state;
        let state = allowed.and_then(|id| states.into_iter().find(|state| state.id() == id));
        Ok(Judged {
            verdict,
            current,
            state,
            names,
        })
    }

    /// Whether a pull request that is known belongs where it is pushed to: that place is taken by nobody who
    /// pushes it elsewhere.
    async fn is_offered_to(&self, id: &EventId, address: &Address) -> Result<bool, StoreError> {
        let Release {
            purgatory,
            store,
            spaces,
            ..
        } = &self.release;
        let waiting = purgatory.pull_requests.get(id);
        let request = match waiting.and_then(|entry| entry.request) {
            Some(request) => Some(request),
            None => store.by_id(id).await?.and_then(pull_request),
        };
        let Some(mut request) = request else {
            return Ok(false);
        };
        if address.is_prs() {
            return Ok(spaces.named_by(&request.event).contains(&address.repo));
        }
        request.repositories = self.release.offered_to(&request).await?;
        let wanting = self.release.wanting(&request, false);
        Ok(wanting.values().any(|repos| repos.contains(&address.repo)))
    }

    /// Of the objects that the states say of refs which the push does not touch and which are elsewhere,
    /// those that are here. If all of a state were, it would not wait.
    async fn here(
        &self,
        asked: &Asked,
        states: &[State],
        current: &Refs,
    ) -> Result<BTreeSet<Oid>, GitError> {
        let touched: BTreeSet<&RefName> = asked.commands.iter().map(|c| &c.name).collect();
        let mut wanted = Wanted::default();
        for (name, oid) in states.iter().flat_map(State::objects) {
            if current.refs.get(name) != Some(&oid) && !touched.contains(name) {
                match name.kind() {
                    RefKind::Head => wanted.commits.insert(oid),
                    _ => wanted.oids.insert(oid),
                };
            }
        }
        if wanted.is_empty() {
            return Ok(BTreeSet::new());
        }
        let absent = self.release.absent(&asked.address.repo.identifier, &wanted);
        let absent = absent.await?;
        let all = wanted.oids.into_iter().chain(wanted.commits);
        Ok(all.filter(|oid| !absent.contains(oid)).collect())
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

    /// The same, where disks may fill up.
    #[must_use]
    pub fn with_disks(mut self, disks: Disks) -> Self {
        self.disks = disks;
        self
    }

    /// `push_id`: what the push was granted under before, by a relay that has gone since; empty for a
    /// new push.
    async fn authorize(
        self,
        asked: Asked,
        push_id: String,
    ) -> Result<wire::AuthorizeResponse, Failed> {
        let begun = Instant::now();
        let room = match push_id.is_empty() {
            true => self.disks.check_push(),
            // What was granted goes on.
            false => Ok(()),
        };
        let judged = match room {
            Ok(()) => self.judge(&asked).await,
            Err(full) => Err(Refused(full.to_string()).into()),
        };
        let is_granted = |judged: &Judged| !judged.verdict.refuses_all();
        let result = match judged.as_ref().is_ok_and(is_granted) {
            true => "granted",
            false => "refused",
        };
        meters::push_judged(result, begun);
        let judged = match judged {
            Ok(judged) if is_granted(&judged) => judged,
            Ok(judged) => {
                let reason = judged.verdict.first_reason().cloned();
                let reason = reason.map(|Refused(reason)| reason).unwrap_or_default();
                let answered = answered(&asked, &judged);
                return Ok(refuse(&asked, reason, answered));
            }
            Err(Failed::Refused(Refused(reason))) => {
                return Ok(refuse(&asked, reason, Answered::default()));
            }
            Err(Failed::Git(GitError::NotFound)) => {
                let reason = "the repository is not here".to_owned();
                return Ok(refuse(&asked, reason, Answered::default()));
            }
            Err(other) => return Err(other),
        };
        let now = self.release.purgatory.now();
        let answered = answered(&asked, &judged);
        let allowed = judged.verdict.allowed;
        self.extend(&asked.address, &allowed, now + WAITS_FOR);
        // What is signed for is taken out of the staging as its refs are moved; what came with it and
        // is not stays there.
        let objects = if !allowed.placeholders.is_empty() {
            wire::Objects::Staged
        } else if allowed.changes_nothing() {
            wire::Objects::Unwanted
        } else {
            wire::Objects::SignedFor
        };
        let push_id = match push_id.is_empty() {
            true => format!("{:032x}", rand::random::<u128>()),
            false => push_id,
        };
        self.forget_old_pushes();
        // One that is known is known with its answer.
        self.pushes
            .entry(push_id.clone())
            .or_insert_with(|| Granted {
                address: asked.address,
                allowed,
                last_seen: now,
                is_partial: answered.results.iter().any(|one| !one.refused.is_empty()),
                answer: None,
            });
        Ok(wire::AuthorizeResponse {
            outcome: Some(Outcome::Granted(wire::Granted {
                push_id,
                objects: objects.into(),
                results: answered.results,
                remarks: answered.remarks,
            })),
        })
    }

    async fn commit(self, push_id: String, asked: Asked) -> Result<Answered, Failed> {
        if let Some(push) = self.pushes.get(&push_id)
            && let Some(answer) = &push.answer
        {
            return Ok(answer.clone());
        }
        let mut attempt = 1;
        let answer = loop {
            match self.carry_out(&asked).await {
                Ok(answer) => break answer,
                Err(Failed::Refused(Refused(reason))) => break all_refused(&asked, &reason),
                Err(
                    Failed::Git(GitError::Moved(_))
                    | Failed::Release(ReleaseError::Git(GitError::Moved(_))),
                ) if attempt < ATTEMPTS => attempt += 1,
                Err(other) => {
                    // It may have been half done: whoever it was for gets the other half.
                    let identifier = asked.address.identifier().clone();
                    self.release.unfinished.insert(identifier, ());
                    return Err(other);
                }
            }
        };
        let refused = answer.results.iter().filter(|one| !one.refused.is_empty());
        let (refused, reason) = (
            refused.clone().count(),
            refused.map(|one| &one.refused).next(),
        );
        let was_partial = self
            .pushes
            .get(&push_id)
            .is_some_and(|push| push.is_partial);
        let result = match (answer.results.len() - refused, refused) {
            (0, 1..) => "refused",
            (_, 0) if !was_partial => "accepted",
            _ => "partial",
        };
        metrics::counter!("ngit_pushes_total", "result" => result).increment(1);
        // gitd, which knows how long it took and how large it was, says it to the operator.
        tracing::debug!(repo = %asked.address, result, refused, reason, "a push is decided");
        if result != "refused" {
            self.release.data_may_be_there(asked.address.identifier());
        }
        if let Some(mut push) = self.pushes.get_mut(&push_id) {
            push.answer = Some(answer.clone());
            push.last_seen = self.release.purgatory.now();
        }
        Ok(answer)
    }

    /// Judges a push again and does what it is for; says what became of each command.
    async fn carry_out(&self, asked: &Asked) -> Result<Answered, Failed> {
        let judged = self.judge(asked).await?;
        let mut answer = answered(asked, &judged);
        let Judged {
            verdict,
            current,
            state,
            names,
        } = judged;
        if let Some(state) = state {
            let expected = names.iter().filter(|name| is_branch_or_tag(name));
            let aim = Aim {
                repo: asked.address.repo.clone(),
                expected: expected
                    .map(|name| (name.clone(), current.refs.get(name).copied()))
                    .collect(),
                incarnation: current.incarnation.clone(),
            };
            let released = self.release.state(&state, Some(&aim), None).await;
            match refusal(released.map_err(Failed::from))? {
                Ok(released) => {
                    answer.fulfilled = Some(state.id());
                    if released.more.is_some() {
                        let so_far = released.more;
                        go_on(&self.release, &self.serial, GoOn { state, so_far });
                    }
                }
                Err(why) => answer.refuse(asked, is_branch_or_tag, &why),
            }
        }
        for (id, commit) in &verdict.allowed.requested {
            if answer.is_over(asked) {
                break;
            }
            if let Err(why) = refusal(self.put_requested(asked, id, *commit).await)? {
                answer.refuse(asked, |name| *name == RefName::nostr(id), &why);
            }
        }
        for (id, commit) in &verdict.allowed.placeholders {
            if answer.is_over(asked) {
                break;
            }
            let is_first = !current.refs.contains_key(&RefName::nostr(id));
            let put = self.put_placeholder(asked, id, *commit, is_first).await;
            if let Err(why) = refusal(put)? {
                answer.refuse(asked, |name| *name == RefName::nostr(id), &why);
            }
        }
        Ok(answer)
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
    /// for ever. One that is not the first waits beside those that came before, and is shown when its event
    /// says so.
    async fn put_placeholder(
        &self,
        asked: &Asked,
        id: &EventId,
        commit: Oid,
        is_first: bool,
    ) -> Result<(), Failed> {
        let (purgatory, to) = (&self.release.purgatory, &asked.address);
        let requests = &purgatory.pull_requests;
        if is_first {
            // What waited there before went with its ref.
            requests.only(id, to, None);
        }
        requests.pushed(*id, to, commit, purgatory.now());
        purgatory.keep_pull_request(id).await?;
        if is_first {
            purgatory.keep_place(id, to).await?;
            let name = RefName::nostr(id);
            let put = self.release.git.put_ref(to, &name, commit, false).await;
            if let Err(error) = put {
                if !matches!(error, GitError::Unreachable(_)) {
                    purgatory.only_pushed(id, to, None).await?;
                    purgatory.forget_place(id, to);
                }
                return Err(error.into());
            }
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

impl Answered {
    /// Refuses the commands for some refs after all.
    fn refuse(&mut self, asked: &Asked, these: impl Fn(&RefName) -> bool, why: &str) {
        for (command, result) in asked.commands.iter().zip(&mut self.results) {
            if result.refused.is_empty() && these(&command.name) {
                why.clone_into(&mut result.refused);
                result.old = None;
            }
        }
    }

    /// Whether nothing more of an atomic push is to be done: something could not be.
    fn is_over(&self, asked: &Asked) -> bool {
        asked.atomic && self.results.iter().any(|result| !result.refused.is_empty())
    }
}

/// What a push is told as it was judged.
fn answered(asked: &Asked, judged: &Judged) -> Answered {
    let commands = asked.commands.iter().zip(&judged.verdict.refused);
    let result = |(command, refused): (&Command, &Option<Refused>)| {
        let was = judged.current.refs.get(&command.name);
        let was = was.copied().unwrap_or(Oid::ZERO);
        let is_elsewhere = refused.is_none() && was != command.old;
        wire::CommandResult {
            name: command.name.to_string(),
            refused: refused
                .as_ref()
                .map(|one| one.0.clone())
                .unwrap_or_default(),
            old: is_elsewhere.then(|| was.as_bytes().to_vec()),
        }
    };
    Answered {
        results: commands.map(result).collect(),
        remarks: judged.verdict.remarks.clone(),
        fulfilled: None,
    }
}

/// The same for every command.
fn all_refused(asked: &Asked, reason: &str) -> Answered {
    let result = |command: &Command| wire::CommandResult {
        name: command.name.to_string(),
        refused: reason.to_owned(),
        old: None,
    };
    Answered {
        results: asked.commands.iter().map(result).collect(),
        ..Answered::default()
    }
}

/// The answer to a push of which nothing is allowed.
fn refuse(asked: &Asked, reason: String, answered: Answered) -> wire::AuthorizeResponse {
    metrics::counter!("ngit_pushes_total", "result" => "refused").increment(1);
    tracing::debug!(repo = %asked.address, %reason, "a push is refused");
    wire::AuthorizeResponse {
        outcome: Some(Outcome::Refused(wire::Refused {
            reason,
            results: answered.results,
            remarks: answered.remarks,
        })),
    }
}

/// Tells what the git side refuses, which concerns some refs only, from what fails the whole push.
fn refusal<T>(done: Result<T, Failed>) -> Result<Result<T, String>, Failed> {
    match done {
        Ok(done) => Ok(Ok(done)),
        Err(
            Failed::Git(GitError::Refused(why))
            | Failed::Release(ReleaseError::Git(GitError::Refused(why))),
        ) => Ok(Err(why)),
        Err(other) => Err(other),
    }
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
        let asked = asked(
            request.repository,
            request.commands,
            request.incarnation,
            request.atomic,
        )?;
        let push_id = request.push_id;
        if push_id.len() > PUSH_ID {
            return Err(Status::invalid_argument("no push id of ours is so long"));
        }
        let queue = asked.address.identifier().clone();
        let work = self.clone().authorize(asked, push_id);
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
        let push = push.ok_or_else(|| Status::not_found("no such push: authorize it again"))?;
        self.extend(&push.address, &push.allowed, now + AFTER_LAST_BYTE);
        Ok(Response::new(wire::KeepAliveResponse {}))
    }

    async fn commit(
        &self,
        request: Request<wire::CommitRequest>,
    ) -> Result<Response<wire::CommitResponse>, Status> {
        let request = request.into_inner();
        let asked = asked(
            request.repository,
            request.commands,
            request.incarnation,
            request.atomic,
        )?;
        let identifier = asked.address.identifier().clone();
        let work = self.clone().commit(request.push_id, asked);
        let Answered {
            results,
            remarks,
            fulfilled,
        } = self.serial.run(&identifier, Turn::Urgent, work).await?;
        self.release_others(identifier);
        let state = fulfilled.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        Ok(Response::new(wire::CommitResponse {
            results,
            remarks,
            state,
        }))
    }
}
