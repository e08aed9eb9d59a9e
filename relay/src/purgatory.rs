//! What is accepted and not served: the three stores as one, and their journal.
//!
//! No operation looks at entries it does not name: every look-up has its index, and the sweep sees
//! only what is due. Everything that is put in here is durable once the `keep_…` method returns;
//! clocks that are reset follow soon after.
//!
//! What expires is decided here, and done by [`crate::sweep`] in the queue of its identifier.

pub mod announcements;
pub mod applied;
mod deadlines;
pub mod expired;
mod expiring;
pub mod kept;
pub mod places;
pub mod pull_requests;
mod records;
pub mod room;
pub mod states;
pub mod withheld_refs;

use std::{
    collections::BTreeSet,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use dashmap::{DashMap, DashSet, Entry};
use grasp_proto::words::{Address, EventId, Identifier, Npub, Oid, RepoId};

use self::{
    announcements::Announcements,
    applied::AppliedStates,
    expired::Expired,
    expiring::Expiring,
    kept::{KeptAlive, KeptAliveLimits, Progress, WaitingEntry},
    places::Places,
    pull_requests::PullRequests,
    room::{Full, RoomLimits},
    states::States,
    withheld_refs::WithheldRefs,
};
use crate::{
    clock::{Clock, Moment},
    journal::{Journal, JournalError, Key, Record, key},
    maintainers::MaintainerRule,
    nip34::{author_of, state::State},
    sync::rejected::size,
};

use records::{
    ANNOUNCEMENT, CLOCK, DOOMED, EXPIRED, OWED_REFS, PLACEHOLDER, REQUEST, STATE,
    announcement_record, expired_record, placeholder_record, repository_key, request_record,
    state_record,
};

/// How long an entry waits for its git data (GRASP-01).
pub const WAITS_FOR: Duration = Duration::from_secs(30 * 60);
/// How long a soft-expired announcement can be revived.
pub const SOFT_EXPIRED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// What an upload is given at least from its last byte on.
pub const AFTER_LAST_BYTE: Duration = Duration::from_secs(15 * 60);

/// `most` of `count` things, from the one at `start` on and round again, each once.
fn from_and_round<T>(
    all: impl Iterator<Item = T> + Clone,
    count: usize,
    start: u64,
    most: usize,
) -> impl Iterator<Item = T> {
    let start = start.checked_rem(count as u64).unwrap_or_default();
    let start = usize::try_from(start).unwrap_or_default();
    let before = all.clone().take(start);
    all.skip(start).chain(before).take(most)
}

/// Takes a member out of the set at `key`, and the set with its last member.
fn without<K: Eq + Hash, V: Ord>(index: &DashMap<K, BTreeSet<V>>, key: K, member: &V) {
    if let Entry::Occupied(mut slot) = index.entry(key) {
        slot.get_mut().remove(member);
        if slot.get().is_empty() {
            slot.remove();
        }
    }
}

/// The three stores, the ids that once expired, and the journal of it all.
#[derive(Debug)]
pub struct Purgatory {
    /// Announcements without git data.
    pub announcements: Announcements,
    /// States without their objects.
    pub states: States,
    /// Pull requests without their commit, and the other way round.
    pub pull_requests: PullRequests,
    /// Where the refs of pull requests are, of what waits and of what is served.
    pub places: Places,
    expired: Mutex<Expired>,
    kept_alive: Mutex<KeptAlive>,
    expiring: Arc<Expiring>,
    /// Repositories whose announcement has gone and that are still to go; whether each is to be
    /// retired. Empties as gitd answers.
    doomed: DashMap<RepoId, bool>,
    /// Pull requests that are served no more, and where their refs are still to go. Empties as gitd
    /// answers.
    owed_refs: DashMap<EventId, Vec<RepoId>>,
    /// Pull requests that are withheld, and what has become of their refs. As many as there are stored.
    withheld_refs: DashMap<EventId, WithheldRefs>,
    /// Repositories that the lists took out of service. As many as are stored.
    withheld_repositories: DashSet<RepoId>,
    applied: AppliedStates,
    /// As the journal had it at the start.
    rule: OnceLock<MaintainerRule>,
    room: RoomLimits,
    journal: Journal,
    clock: Clock,
}

impl Purgatory {
    /// An empty purgatory over `journal`.
    pub fn new(journal: Journal, clock: Clock) -> Self {
        Self::with_limits(
            journal,
            clock,
            KeptAliveLimits::DEFAULT,
            RoomLimits::DEFAULT,
        )
    }

    /// The same, where so much waits, and is kept alive, at most.
    pub fn with_limits(
        journal: Journal,
        clock: Clock,
        limits: KeptAliveLimits,
        room: RoomLimits,
    ) -> Self {
        Self {
            announcements: Announcements::default(),
            states: States::default(),
            pull_requests: PullRequests::default(),
            places: Places::default(),
            expired: Mutex::default(),
            kept_alive: Mutex::new(KeptAlive::new(limits)),
            expiring: Arc::new(Expiring::new(clock.clone())),
            doomed: DashMap::new(),
            owed_refs: DashMap::new(),
            withheld_refs: DashMap::new(),
            withheld_repositories: DashSet::new(),
            applied: AppliedStates::default(),
            rule: OnceLock::new(),
            room,
            journal,
            clock,
        }
    }

    /// What all of it is kept in.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Whether so much more by an author may wait. What waits already, also after a start with lower limits,
    /// goes on waiting.
    pub fn has_room(&self, author: &Npub, bytes: usize) -> Result<(), Full> {
        let stores = [
            self.announcements.room(),
            self.states.room(),
            self.pull_requests.room(),
        ];
        let (mut of_author, mut of_all) = (bytes, bytes);
        for (author, all) in stores.map(|room| room.taken_by(author)) {
            of_author += author;
            of_all += all;
        }
        if of_author > self.room.of_author {
            return Err(Full::Author);
        }
        match of_all > self.room.of_all {
            true => Err(Full::All),
            false => Ok(()),
        }
    }

    /// Whether a state may wait.
    pub fn has_room_for(&self, state: &State) -> Result<(), Full> {
        self.has_room(&state.author, states::memory_of(state))
    }

    /// How much memory all that waits takes.
    pub fn memory(&self) -> usize {
        self.announcements.room().taken_by_all()
            + self.states.room().taken_by_all()
            + self.pull_requests.room().taken_by_all()
    }

    /// What time it is for those who wait here.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// What the wall clock says, as those who sign events have it.
    pub fn wall(&self) -> Moment {
        self.clock.wall()
    }

    /// Keeps a clock that was set anew, soon: the event it belongs to is not written again.
    fn keep_clock(&self, of: &[u8], expires: Moment, soft_expired: bool) {
        let record = Record::Clock {
            expires,
            soft_expired,
        };
        self.journal.keep_soon(key(CLOCK, of), &record);
    }

    /// Forgets a record and its clock, soon.
    fn forget(&self, of: Key) {
        self.journal.forget(key(CLOCK, &of));
        self.journal.forget(of);
    }

    /// Returns when everything that was put in, changed or taken out so far is on disk.
    pub async fn flush(&self) -> Result<(), JournalError> {
        self.journal.flush().await
    }

    /// Whether the event of this id waits here; a soft-expired announcement does, too.
    pub fn holds(&self, id: &EventId) -> bool {
        self.states.get(id).is_some()
            || self.announcements.repo_of(id).is_some()
            || self
                .pull_requests
                .get(id)
                .is_some_and(|entry| entry.request.is_some())
    }

    fn expired(&self) -> MutexGuard<'_, Expired> {
        self.expired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept_alive(&self) -> MutexGuard<'_, KeptAlive> {
        self.kept_alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the event of this id expired, and sync may not bring it back yet.
    pub fn expired_lately(&self, id: &EventId) -> bool {
        self.expired().is_refused(id, self.now())
    }

    /// How many entries are kept alive beyond their deadline.
    pub fn kept_alive_count(&self) -> usize {
        self.kept_alive().len()
    }

    /// Whether an entry whose deadline has come is kept alive: because the hunt has not had its tries, of
    /// which `progress` says how far it has come under an identifier since a moment. If so, it is looked
    /// at again.
    pub fn keeps_alive(
        &self,
        entry: &WaitingEntry,
        progress: impl Fn(&Identifier, Moment) -> Progress,
    ) -> bool {
        let now = self.now();
        let waiting = match entry {
            WaitingEntry::Announcement(repo) => self.announcements.get(repo).and_then(|one| {
                let event = &one.announcement.event;
                // By whichever state it was given its time last.
                let since = one.created.max(one.expires.before(WAITS_FOR));
                let progress = progress(&repo.identifier, since);
                let facts = (
                    author_of(event),
                    size(event),
                    one.expires,
                    one.kept,
                    progress,
                );
                (!one.soft_expired).then_some(facts)
            }),
            WaitingEntry::State(id) => self.states.get(id).map(|one| {
                let State {
                    event, identifier, ..
                } = &one.state;
                let progress = progress(identifier, one.created);
                (
                    author_of(event),
                    size(event),
                    one.expires,
                    one.kept,
                    progress,
                )
            }),
            WaitingEntry::PullRequest(id) => self.pull_requests.get(id).and_then(|one| {
                let identifiers = one.identifiers();
                let event = &one.request?.event;
                let of_each = identifiers.iter();
                let progress = of_each
                    .map(|identifier| progress(identifier, one.created))
                    .fold(Progress::NotHunted, Progress::and);
                Some((
                    author_of(event),
                    size(event),
                    one.expires,
                    one.kept,
                    progress,
                ))
            }),
        };
        let Some((author, bytes, expires, kept, progress)) = waiting else {
            return false;
        };
        let mut kept_alive = self.kept_alive();
        let next = kept::judge(expires, kept, &progress, now, kept_alive.whole());
        let next = next.filter(|_| {
            let none = BTreeSet::new();
            let domains = match &progress {
                Progress::Untried(domains) => domains,
                Progress::NotHunted | Progress::Tried => &none,
            };
            kept_alive.keep(entry, author, bytes, domains)
        });
        let Some(next) = next else {
            kept_alive.forget(entry);
            return false;
        };
        drop(kept_alive);
        match entry {
            WaitingEntry::Announcement(repo) => self.announcements.keep_alive(repo, next),
            WaitingEntry::State(id) => self.states.keep_alive(id, next),
            WaitingEntry::PullRequest(id) => self.pull_requests.keep_alive(id, next),
        }
        true
    }

    /// An entry has gone, or has a deadline of its own again.
    fn is_kept_no_more(&self, entry: &WaitingEntry) {
        self.kept_alive().forget(entry);
    }

    /// Makes a record durable; its clock is in it.
    async fn keep(&self, of: Key, record: &Record) -> Result<(), JournalError> {
        self.journal.forget(key(CLOCK, &of));
        self.journal.keep(of, record).await
    }

    /// Makes the entry of a repository durable.
    pub async fn keep_announcement(&self, repo: &RepoId) -> Result<(), JournalError> {
        match self.announcements.get(repo) {
            Some(entry) => {
                // It may have taken the place of one that was.
                self.is_kept_no_more(&WaitingEntry::Announcement(repo.clone()));
                let record = announcement_record(&entry);
                self.keep(repository_key(ANNOUNCEMENT, repo), &record).await
            }
            None => Ok(()),
        }
    }

    /// Puts a state in, not yet durable: see [`Purgatory::keep_state`]. `false`: too many later
    /// versions of it wait already.
    pub fn add_state(&self, state: State) -> bool {
        let (now, id) = (self.now(), state.id());
        let gave_way = self.states.insert(states::Waiting {
            state,
            created: now,
            expires: now + WAITS_FOR,
            kept: None,
        });
        if let Some(id) = gave_way {
            self.forget(key(STATE, id.as_bytes()));
            self.is_kept_no_more(&WaitingEntry::State(id));
        }
        gave_way != Some(id)
    }

    /// Makes the entry of a state durable.
    pub async fn keep_state(&self, id: &EventId) -> Result<(), JournalError> {
        match self.states.get(id) {
            Some(entry) => {
                let record = state_record(&entry);
                self.keep(key(STATE, id.as_bytes()), &record).await
            }
            None => Ok(()),
        }
    }

    /// Makes both sides of an entry of the third store durable: what is here of them.
    pub async fn keep_pull_request(&self, id: &EventId) -> Result<(), JournalError> {
        let Some(entry) = self.pull_requests.get(id) else {
            return Ok(());
        };
        if entry.kept.is_none() {
            self.is_kept_no_more(&WaitingEntry::PullRequest(*id));
        }
        match placeholder_record(id, &entry) {
            Some(record) => self.keep(key(PLACEHOLDER, id.as_bytes()), &record).await?,
            None => self.forget(key(PLACEHOLDER, id.as_bytes())),
        }
        match request_record(&entry) {
            Some(record) => self.keep(key(REQUEST, id.as_bytes()), &record).await,
            None => Ok(()),
        }
    }

    /// Gives an announcement until `until` at least, reviving it if it is soft-expired.
    pub fn extend_announcement(
        &self,
        repo: &RepoId,
        until: Moment,
    ) -> Option<announcements::Waiting> {
        let entry = self.announcements.extend(repo, until)?;
        self.is_kept_no_more(&WaitingEntry::Announcement(repo.clone()));
        let of = repository_key(ANNOUNCEMENT, repo);
        self.keep_clock(&of, entry.expires, entry.soft_expired);
        Some(entry)
    }

    /// Gives an announcement that is not soft-expired until `until` at least.
    pub fn prolong_announcement(&self, repo: &RepoId, until: Moment) {
        let entry = self.announcements.get(repo);
        if entry.is_some_and(|entry| !entry.soft_expired) {
            self.extend_announcement(repo, until);
        }
    }

    /// Marks an announcement soft-expired.
    pub fn soft_expire(&self, repo: &RepoId) {
        if let Some(entry) = self.announcements.soft_expire(repo, self.now()) {
            self.is_kept_no_more(&WaitingEntry::Announcement(repo.clone()));
            let of = repository_key(ANNOUNCEMENT, repo);
            self.keep_clock(&of, entry.expires, entry.soft_expired);
        }
    }

    /// Gives a state until `until` at least.
    pub fn extend_state(&self, id: &EventId, until: Moment) {
        if let Some(entry) = self.states.extend(id, until) {
            self.is_kept_no_more(&WaitingEntry::State(*id));
            self.keep_clock(&key(STATE, id.as_bytes()), entry.expires, false);
        }
    }

    /// Gives a pull request or placeholder until `until` at least.
    pub fn extend_pull_request(&self, id: &EventId, until: Moment) {
        if let Some(entry) = self.pull_requests.extend(id, until) {
            self.is_kept_no_more(&WaitingEntry::PullRequest(*id));
            self.keep_clock(&key(REQUEST, id.as_bytes()), entry.expires, false);
        }
    }

    /// Commits that were pushed there for a pull request have been removed again.
    pub async fn unpushed(&self, id: &EventId, from: &[Address]) -> Result<(), JournalError> {
        self.pull_requests.unpushed(id, from);
        self.keep_what_is_left(id).await
    }

    /// Of what was pushed there for a pull request only this commit is left, durably; `None`: nothing is.
    pub async fn only_pushed(
        &self,
        id: &EventId,
        at: &Address,
        commit: Option<Oid>,
    ) -> Result<(), JournalError> {
        self.pull_requests.only(id, at, commit);
        self.keep_what_is_left(id).await
    }

    async fn keep_what_is_left(&self, id: &EventId) -> Result<(), JournalError> {
        let empty =
            |entry: &pull_requests::Waiting| entry.request.is_none() && entry.pushed.is_empty();
        if self.pull_requests.get(id).as_ref().is_some_and(empty) {
            self.remove_pull_request(id);
        }
        self.keep_pull_request(id).await
    }

    /// Gives every state under an identifier by one of `authors` 30 minutes from now.
    pub fn extend_states_of(
        &self,
        identifier: &Identifier,
        authors: impl IntoIterator<Item = Npub>,
    ) {
        let until = self.now() + WAITS_FOR;
        for author in authors {
            for entry in self.states.by_author(identifier, &author) {
                self.extend_state(&entry.state.id(), until);
            }
        }
    }

    /// Takes an announcement out.
    pub fn remove_announcement(&self, repo: &RepoId) -> Option<announcements::Waiting> {
        let removed = self.announcements.remove(repo)?;
        self.is_kept_no_more(&WaitingEntry::Announcement(repo.clone()));
        self.forget(repository_key(ANNOUNCEMENT, repo));
        Some(removed)
    }

    /// Takes a state out.
    pub fn remove_state(&self, id: &EventId) -> Option<states::Waiting> {
        let removed = self.states.remove(id)?;
        self.is_kept_no_more(&WaitingEntry::State(*id));
        self.forget(key(STATE, id.as_bytes()));
        Some(removed)
    }

    /// Takes a pull request or placeholder out.
    pub fn remove_pull_request(&self, id: &EventId) -> Option<pull_requests::Waiting> {
        let removed = self.pull_requests.remove(id)?;
        self.is_kept_no_more(&WaitingEntry::PullRequest(*id));
        self.forget(key(REQUEST, id.as_bytes()));
        self.forget(key(PLACEHOLDER, id.as_bytes()));
        Some(removed)
    }

    /// A repository is to go, durably: the caller now takes away what kept it, and then it.
    pub async fn doom(&self, repo: &RepoId, retire: bool) -> Result<(), JournalError> {
        let record = Record::Doomed {
            repository: repo.coordinate(),
            retire,
        };
        self.journal
            .keep(repository_key(DOOMED, repo), &record)
            .await?;
        self.doomed.insert(repo.clone(), retire);
        Ok(())
    }

    /// Whether a repository is to go, and if so, whether it is to be retired.
    pub fn is_doomed(&self, repo: &RepoId) -> Option<bool> {
        self.doomed.get(repo).map(|retire| *retire)
    }

    /// A repository has gone, or is to stay after all.
    pub fn undoom(&self, repo: &RepoId) {
        if self.doomed.remove(repo).is_some() {
            self.journal.forget(repository_key(DOOMED, repo));
        }
    }

    /// The repositories that are to go.
    pub fn doomed(&self) -> Vec<RepoId> {
        self.doomed
            .iter()
            .map(|entry| entry.key().clone())
            .collect()
    }

    /// The refs of a pull request are to go from these repositories, durably: the caller now takes
    /// away the event, and then them.
    pub async fn owe_refs(&self, id: EventId, repos: &[RepoId]) -> Result<(), JournalError> {
        if repos.is_empty() {
            return Ok(());
        }
        let record = Record::OwedRefs {
            id: id.to_hex(),
            repositories: repos.iter().map(RepoId::coordinate).collect(),
        };
        self.journal
            .keep(key(OWED_REFS, id.as_bytes()), &record)
            .await?;
        self.owed_refs.insert(id, repos.to_vec());
        Ok(())
    }

    /// Where the refs of a pull request are still to go.
    pub fn owed_refs(&self, id: &EventId) -> Option<Vec<RepoId>> {
        self.owed_refs.get(id).map(|repos| repos.clone())
    }

    /// The refs of a pull request have gone, or are to stay after all.
    pub fn refs_gone(&self, id: &EventId) {
        if self.owed_refs.remove(id).is_some() {
            self.journal.forget(key(OWED_REFS, id.as_bytes()));
        }
    }

    /// The pull requests whose refs are still to go, and one of the repositories they are in.
    pub fn owing_refs(&self) -> Vec<(EventId, Option<RepoId>)> {
        let owing = self.owed_refs.iter();
        owing
            .map(|entry| (*entry.key(), entry.value().first().cloned()))
            .collect()
    }

    /// Remembers that an event expired, which waited under these.
    pub fn remember_expired(&self, id: EventId, under: impl IntoIterator<Item = Identifier>) {
        let now = self.now();
        let (known, forgotten) = self.expired().expires(id, under, now);
        let record = expired_record(&id, now, &known);
        self.journal.keep_soon(key(EXPIRED, id.as_bytes()), &record);
        if let Some(forgotten) = forgotten {
            self.journal.forget(key(EXPIRED, forgotten.as_bytes()));
        }
    }

    /// Whether a state or a pull request waits under an identifier.
    pub fn waits_for_release_under(&self, identifier: &Identifier) -> bool {
        self.states.waits_under(identifier) || self.pull_requests.waits_under(identifier)
    }

    /// Something says that the data of what expired under an identifier may be there now: sync may bring
    /// it back at once. Says whether there was any.
    pub fn data_may_be_there(&self, identifier: &Identifier) -> bool {
        let now = self.now();
        let freed = self.expired().data_may_be_there(identifier, now);
        for (id, known) in &freed {
            let record = expired_record(id, now, known);
            self.journal.keep_soon(key(EXPIRED, id.as_bytes()), &record);
        }
        !freed.is_empty()
    }

    /// Every identifier under which something waits.
    pub fn identifiers(&self) -> Vec<Identifier> {
        let mut all = self.states.identifiers();
        all.extend(self.pull_requests.identifiers());
        all.extend(
            self.announcements
                .all()
                .into_iter()
                .map(|repo| repo.identifier),
        );
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::Oid;

    use super::*;
    use crate::nip34::{
        self, PULL_REQUEST,
        announcement::Announcement,
        pull_request::PullRequest,
        testing::{event, keys},
    };

    #[tokio::test]
    async fn everything_comes_back_from_the_journal() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::standing_at(Moment::from_millis(10_000));
        let announcement = Announcement::read(Arc::new(event(
            &keys(1),
            nip34::ANNOUNCEMENT,
            1,
            &[&["d", "x"]],
        )))
        .unwrap();
        let state =
            State::read(Arc::new(event(&keys(1), nip34::STATE, 1, &[&["d", "x"]]))).unwrap();
        let request =
            PullRequest::read(Arc::new(event(&keys(2), PULL_REQUEST, 1, &[&["c", "?"]]))).unwrap();
        let (repo, oid) = (announcement.repo.clone(), Oid::from_bytes([7; 20]));
        let (placeholder, gone) = (EventId::from_bytes([9; 32]), EventId::from_bytes([8; 32]));
        let space = Address::prs(repo.clone());
        {
            let (journal, _) = Journal::open(directory.path()).unwrap();
            let purgatory = Purgatory::new(journal, clock.clone());
            purgatory
                .announcements
                .admit(announcement.clone(), purgatory.now());
            purgatory.keep_announcement(&repo).await.unwrap();
            purgatory.soft_expire(&repo);
            purgatory.add_state(state.clone());
            purgatory.keep_state(&state.id()).await.unwrap();
            purgatory
                .pull_requests
                .admit(request.clone(), purgatory.now());
            purgatory.keep_pull_request(&request.id()).await.unwrap();
            purgatory
                .pull_requests
                .pushed(placeholder, &(&repo).into(), oid, purgatory.now());
            purgatory
                .pull_requests
                .pushed(placeholder, &space, oid, purgatory.now());
            for id in [&placeholder, &gone] {
                for address in [&space, &(&repo).into()] {
                    assert!(purgatory.keep_place(id, address).await.unwrap());
                    assert!(!purgatory.keep_place(id, address).await.unwrap());
                }
            }
            purgatory.forget_place(&gone, &space);
            purgatory.forget_place(&gone, &(&repo).into());
            purgatory.remember_expired(gone, [repo.identifier.clone()]);
            purgatory.keep_pull_request(&placeholder).await.unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        let from = directory.path().join("data.mdb");
        std::fs::copy(from, copy.path().join("data.mdb")).unwrap();
        let (journal, records) = Journal::open(copy.path()).unwrap();
        let again = Purgatory::new(journal, clock);
        again.restore(records);
        let waiting = again.announcements.get(&repo).unwrap();
        assert!(waiting.soft_expired);
        assert_eq!(waiting.expires, again.now() + SOFT_EXPIRED_FOR);
        assert!(again.holds(&state.id()) && again.holds(&request.id()));
        assert!(!again.holds(&placeholder));
        let pushed = again.pull_requests.get(&placeholder).unwrap().pushed;
        assert_eq!(
            pushed.get(&Address::from(&repo)),
            Some(&BTreeSet::from([oid]))
        );
        assert_eq!(pushed.get(&space), Some(&BTreeSet::from([oid])));
        let both = [space.clone(), (&repo).into()];
        assert_eq!(again.places.all(), [(placeholder, both.into())]);
        assert!(again.expired_lately(&gone));
        assert!(again.data_may_be_there(&repo.identifier) && !again.expired_lately(&gone));
        assert!(!again.data_may_be_there(&repo.identifier));
        assert_eq!(again.identifiers().len(), 1);
    }

    #[test]
    fn what_expired_before_is_read_as_it_was_written() {
        let clock = Clock::standing_at(Moment::from_millis(1_000_000_000));
        let purgatory = Purgatory::new(Journal::none(), clock.clone());
        let id = EventId::from_bytes([8; 32]);
        let at = clock.now().as_millis();
        let written = format!(r#"{{"Expired":{{"id":"{}","at":{at}}}}}"#, id.to_hex());
        let record: Record = serde_json::from_str(&written).unwrap();
        purgatory.restore(vec![(key(EXPIRED, id.as_bytes()), record)]);
        assert!(purgatory.expired_lately(&id));
        clock.advance(Duration::from_secs(4 * 60 * 60));
        assert!(!purgatory.expired_lately(&id));
    }
}
