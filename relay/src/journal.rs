//! Durable before OK: what waits in purgatory, on disk.
//!
//! One writer thread commits what has been asked for since its last commit in one transaction, so
//! that a burst of events costs one flush of the disk (group commit). What is asked for is done in
//! order. Whoever needs to know that it is on disk waits for the answer; resets of clocks do not.
//!
//! Records are all read at the start and known in memory from then on. What may be too much for that
//! lies on the [`shelf`], and is looked up.

mod backup;
pub mod shelf;

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use futures::{FutureExt, future::join_all};
use heed::{Database, Env, EnvOpenOptions, RoTxn, types::Bytes};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use self::shelf::{Act, Look, Shelf};
use crate::clock::Moment;

pub use self::backup::{Snapshot, restore};

/// What the journal could not do.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database.
    #[error("the purgatory journal failed: {0}")]
    Database(#[from] heed::Error),
    /// The directory.
    #[error("the purgatory journal's directory: {0}")]
    Directory(#[from] std::io::Error),
    /// The change did not reach the disk.
    #[error("the purgatory journal could not be written")]
    NotWritten,
    /// What the record was to be filed under.
    #[error("a key of {0} bytes is none for the purgatory journal")]
    Key(usize),
    /// The writer ended.
    #[error("the purgatory journal is not being written any more")]
    Ended,
}

/// One thing that waits, as it is kept: events as their JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// An announcement.
    Announcement {
        /// Kind 30617.
        event: String,
        /// When it came.
        created: Moment,
        /// Its deadline.
        expires: Moment,
        /// Its repository has gone.
        soft_expired: bool,
    },
    /// A state.
    State {
        /// Kind 30618.
        event: String,
        /// When it came.
        created: Moment,
        /// Its deadline.
        expires: Moment,
    },
    /// A pull request that waits for its commit.
    PullRequest {
        /// Kind 1618 or 1619.
        event: String,
        /// The repositories it is offered to, where its own tags do not say: as coordinates.
        repositories: Vec<String>,
        /// When it came.
        created: Moment,
        /// Its deadline.
        expires: Moment,
    },
    /// A commit that waits for its pull request.
    Placeholder {
        /// The event's id, in hex.
        id: String,
        /// Where which commits were pushed: coordinate and hex, one for each.
        pushed: Vec<(String, String)>,
        /// What was pushed below `/prs/`, likewise.
        #[serde(default)]
        prs: Vec<(String, String)>,
        /// When it came.
        created: Moment,
        /// Its deadline.
        expires: Moment,
    },
    /// There is, or is about to be, a ref for an event below `/prs/`: until it has gone, whatever
    /// became of the event.
    Contribution {
        /// The event's id, in hex.
        id: String,
        /// Whose space, under which identifier: as a coordinate.
        repository: String,
    },
    /// Likewise in a repository.
    Place {
        /// The event's id, in hex.
        id: String,
        /// Which: as a coordinate.
        repository: String,
    },
    /// A clock that was set anew after the record was made whose key this one's ends with.
    Clock {
        /// The deadline.
        expires: Moment,
        /// The repository has gone.
        soft_expired: bool,
    },
    /// A repository that is to go, and has not been seen to.
    Doomed {
        /// Its coordinate.
        repository: String,
        /// It was served once: it is moved aside, not deleted.
        retire: bool,
    },
    /// The refs of a pull request that is served no more, where they have not been seen to go.
    OwedRefs {
        /// The event's id, in hex.
        id: String,
        /// The repositories they are in: as coordinates.
        repositories: Vec<String>,
    },
    /// The refs of a pull request that the operator's lists withhold.
    WithheldRefs {
        /// The event's id, in hex.
        id: String,
        /// The repositories they are taken out of: as coordinates.
        repositories: Vec<String>,
        /// How far it has come.
        step: WithheldStep,
    },
    /// A repository that the operator's lists took out of service, until it is back with all refs.
    WithheldRepository {
        /// Its coordinate.
        repository: String,
    },
    /// When a served pull request expires (NIP-40), so that its refs go then.
    Expiring {
        /// The event's id, in hex.
        id: String,
        /// When.
        at: Moment,
    },
    /// The state that the refs of a repository were made equal to last.
    AppliedState {
        /// Which repository: its coordinate.
        repository: String,
        /// The state's id, in hex.
        id: String,
        /// Its author, in hex.
        author: String,
        /// Its `created_at`, in seconds.
        created_at: u64,
    },
    /// The rule of maintainers that what is served was decided by.
    MaintainerRule {
        /// Its word.
        rule: String,
    },
    /// An id that expired.
    Expired {
        /// In hex.
        id: String,
        /// When, the last time.
        at: Moment,
        /// How often.
        #[serde(default)]
        times: u32,
        /// Until when sync may not bring it back; absent in records of versions that did not say.
        #[serde(default)]
        until: Option<Moment>,
        /// What it waited under.
        #[serde(default)]
        identifiers: Vec<String>,
    },
    /// How often the relay has started, so that numbers of the hunt are not given twice.
    Run {
        /// Counted up.
        number: u64,
    },
    /// An identifier that a worker hunts for.
    Lease {
        /// Which.
        identifier: String,
        /// The fencing token.
        token: u64,
        /// The worker's name.
        worker: String,
        /// Unless renewed.
        until: Moment,
        /// The fetch that is running.
        fetch: Option<Fetch>,
        /// The fetches that were given under it.
        #[serde(default)]
        given: Vec<u64>,
    },
    /// What the fetch that runs under a lease is for. A lease is written anew with every renewal,
    /// this once.
    Wants {
        /// Of which identifier.
        identifier: String,
        /// The number of the fetch.
        fetch: u64,
        /// The objects asked for, in hex.
        oids: Vec<String>,
    },
    /// How often the relay has started, for the tokens of relay-to-relay sync.
    SyncRun {
        /// Counted up.
        number: u64,
        /// Opened by the credentials of that run only.
        sealed: Vec<u8>,
    },
    /// A remote relay that a worker holds.
    RelayLease {
        /// Which.
        url: String,
        /// The fencing token.
        token: u64,
        /// The worker's name.
        worker: String,
    },
    /// When a remote domain was asked in the last minute.
    Requests {
        /// Which.
        domain: String,
        /// Each request.
        at: Vec<Moment>,
    },
}

/// What is being done with refs that are withheld.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithheldStep {
    /// They are to go.
    Taking,
    /// They have gone.
    Taken,
    /// They are to come back.
    Returning,
}

/// A fetch that a worker was told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Its number.
    pub number: u64,
    /// What is asked.
    pub url: String,
    /// Whose budget it counts in.
    pub domain: String,
    /// Which server answers.
    pub server: String,
}

/// What a record is filed under: 1 to 511 bytes.
pub type Key = Vec<u8>;

/// The key of a record: its kind, and whose it is.
pub fn key(kind: u8, name: &[u8]) -> Key {
    let mut key = vec![kind];
    key.extend_from_slice(name);
    key
}

/// Something that is to be on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// This record.
    Keep(Key, Record),
    /// No record.
    Forget(Key),
}

/// The longest key that the database takes. One that it does not would fail the batch of all who
/// write at the same time.
const LONGEST_KEY: usize = 511;

fn check(key: &Key) -> Result<(), JournalError> {
    match (1..=LONGEST_KEY).contains(&key.len()) {
        true => Ok(()),
        false => Err(JournalError::Key(key.len())),
    }
}

enum Change {
    Put(Key, Vec<u8>, Option<oneshot::Sender<()>>),
    Remove(Key),
    /// On the shelf, together.
    Shelve(Vec<Act>, oneshot::Sender<()>),
    /// Nothing, but whoever waits for it waits for all before it.
    Mark(oneshot::Sender<()>),
}

/// The journal. Cheap to clone; the writer ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Journal {
    /// `None`: nothing is kept (memory backend).
    changes: Option<mpsc::Sender<Change>>,
    /// `None`: likewise.
    kept: Option<(Env, Databases)>,
    shelf: Shelf,
}

/// The databases of one file.
#[derive(Debug, Clone, Copy)]
struct Databases {
    records: Database<Bytes, Bytes>,
    shelf: Database<Bytes, Bytes>,
}

/// Where it lies below the relay's data directory.
pub fn directory(data: &Path) -> PathBuf {
    data.join("purgatory")
}

/// Opens, or makes, the databases in a directory.
fn open(directory: &Path) -> Result<(Env, Databases), JournalError> {
    std::fs::create_dir_all(directory)?;
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_SIZE);
    options.max_dbs(1).max_readers(MOST_READERS);
    // SAFETY: the file is a private one of this process, which opens it once; nothing truncates
    // it while it is mapped.
    #[allow(unsafe_code)]
    let env = unsafe { options.open(directory) }?;
    let mut txn = env.write_txn()?;
    let databases = Databases {
        records: env.create_database(&mut txn, None)?,
        shelf: env.create_database(&mut txn, Some(shelf::NAME))?,
    };
    txn.commit()?;
    Ok((env, databases))
}

/// Those who look at the shelf at once: as many as there may be blocking threads, and some.
const MOST_READERS: u32 = 1024;

/// Enough for some million waiting events; the file grows only as it is used.
const MAP_SIZE: usize = 16 << 30;

impl Journal {
    /// A journal that keeps nothing.
    pub fn none() -> Self {
        Self {
            changes: None,
            kept: None,
            shelf: Shelf::default(),
        }
    }

    /// Opens the journal in `directory`, and gives what it holds. Blocks.
    pub fn open(directory: &Path) -> Result<(Self, Vec<(Key, Record)>), JournalError> {
        let (env, databases) = open(directory)?;
        let records = read_all(&env.read_txn()?, databases.records)?;
        let shelf = Shelf::Disk(env.clone(), databases.shelf);
        let kept = Some((env.clone(), databases));
        let (changes, incoming) = mpsc::channel();
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write_all(&env, databases, &incoming))?;
        let changes = Some(changes);
        let journal = Self {
            changes,
            kept,
            shelf,
        };
        Ok((journal, records))
    }

    /// What is on disk by now of all that was asked for so far.
    pub async fn snapshot(&self) -> Result<Snapshot, JournalError> {
        self.flush().await?;
        let Some((env, databases)) = self.kept.clone() else {
            return Ok(Snapshot(None));
        };
        Ok(Snapshot(Some((env.static_read_txn()?, databases))))
    }

    /// Changes the shelf, all of it or nothing; what is given ends when it is on disk. Asked for,
    /// and so in its order, as soon as this is called.
    pub fn shelve(
        &self,
        acts: Vec<Act>,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        let asked = self.ask_to_shelve(acts);
        async move {
            match asked? {
                Some(kept) => kept.await.map_err(|_| JournalError::NotWritten),
                None => Ok(()),
            }
        }
    }

    fn ask_to_shelve(&self, acts: Vec<Act>) -> Result<Option<oneshot::Receiver<()>>, JournalError> {
        for act in &acts {
            let (Act::Put(key, _) | Act::Remove(key)) = act;
            check(key)?;
        }
        let Some(changes) = &self.changes else {
            self.shelf.change_memory(&acts);
            return Ok(None);
        };
        let (done, kept) = oneshot::channel();
        let sent = changes.send(Change::Shelve(acts, done));
        sent.map_err(|_| JournalError::Ended)?;
        Ok(Some(kept))
    }

    /// Looks at the shelf as it is on disk now, on a thread that may block.
    pub async fn look<T: Send + 'static>(
        &self,
        see: impl FnOnce(&Look<'_>) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let shelf = self.shelf.clone();
        let looked = tokio::task::spawn_blocking(move || shelf.look(see));
        looked.await.map_err(|_| JournalError::Ended)?
    }

    /// Keeps a record; what is given ends when it is on disk. Asked for, and so in its order, as
    /// soon as this is called.
    pub fn keep(
        &self,
        key: Key,
        record: &Record,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        let asked = self.changes.as_ref().map(|changes| {
            check(&key)?;
            let (done, kept) = oneshot::channel();
            let change = Change::Put(key, encode(record), Some(done));
            let sent = changes.send(change).map_err(|_| JournalError::Ended);
            sent.map(|()| kept)
        });
        async move {
            match asked.transpose()? {
                Some(kept) => kept.await.map_err(|_| JournalError::NotWritten),
                None => Ok(()),
            }
        }
    }

    /// Keeps a record, soon.
    pub fn keep_soon(&self, key: Key, record: &Record) {
        match check(&key) {
            Ok(()) => self.send(|| Change::Put(key, encode(record), None)),
            Err(error) => tracing::error!(%error, "a record is not kept"),
        }
    }

    /// Returns when everything asked for so far is on disk.
    pub async fn flush(&self) -> Result<(), JournalError> {
        let Some(changes) = &self.changes else {
            return Ok(());
        };
        let (done, kept) = oneshot::channel();
        changes
            .send(Change::Mark(done))
            .map_err(|_| JournalError::Ended)?;
        kept.await.map_err(|_| JournalError::NotWritten)
    }

    /// Forgets a record, soon. For what was released, losing this is harmless, since it is found in
    /// the store; whoever takes something back waits for [`Journal::flush`].
    pub fn forget(&self, key: Key) {
        // What cannot be there need not go.
        if check(&key).is_ok() {
            self.send(|| Change::Remove(key));
        }
    }

    /// Carries out `writes` in their order; they are on their way when this returns. What is given
    /// ends when all that is to be kept is on disk.
    pub fn write(
        &self,
        writes: Vec<Write>,
    ) -> impl Future<Output = Result<(), JournalError>> + use<> {
        let mut kept = Vec::new();
        for write in writes {
            match write {
                Write::Keep(key, record) => kept.push(self.keep(key, &record)),
                Write::Forget(key) => self.forget(key),
            }
        }
        join_all(kept).map(|all| all.into_iter().collect())
    }

    fn send(&self, change: impl FnOnce() -> Change) {
        if let Some(changes) = &self.changes
            && changes.send(change()).is_err()
        {
            tracing::error!("the purgatory journal is not being written any more");
        }
    }
}

fn encode(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record is plain data")
}

/// All records, in the order of their keys.
fn read_all(
    txn: &RoTxn<'_>,
    database: Database<Bytes, Bytes>,
) -> Result<Vec<(Key, Record)>, JournalError> {
    let mut records = Vec::new();
    for entry in database.iter(txn)? {
        records.extend(decode(entry?));
    }
    Ok(records)
}

/// A record; one that cannot be read is said and left out.
fn decode((key, value): (&[u8], &[u8])) -> Option<(Key, Record)> {
    if key == shelf::NAME.as_bytes() {
        return None;
    }
    match serde_json::from_slice(value) {
        Ok(record) => Some((key.to_vec(), record)),
        Err(error) => {
            tracing::error!(%error, "a record of the purgatory journal is unreadable");
            None
        }
    }
}

/// Changes of one transaction at most, so that nobody waits for a flood's end.
const BATCH: usize = 1_000;

fn write_all(env: &Env, databases: Databases, incoming: &mpsc::Receiver<Change>) {
    while let Ok(first) = incoming.recv() {
        let mut batch = vec![first];
        batch.extend(incoming.try_iter().take(BATCH - 1));
        if let Err(error) = write(env, databases, &batch) {
            tracing::error!(%error, "a batch of the purgatory journal could not be written");
            // One that cannot be written fails its whole batch: the others by themselves.
            batch.retain(|change| write(env, databases, std::slice::from_ref(change)).is_ok());
        }
        for change in batch {
            if let Change::Put(_, _, Some(done)) | Change::Mark(done) | Change::Shelve(_, done) =
                change
            {
                // Whoever waited may have gone; the record is kept all the same. Those whose change
                // was dropped hear that it was.
                let _ = done.send(());
            }
        }
    }
}

fn write(env: &Env, databases: Databases, batch: &[Change]) -> heed::Result<()> {
    let Databases { records, shelf } = databases;
    let mut txn = env.write_txn()?;
    for change in batch {
        match change {
            Change::Put(key, value, _) => records.put(&mut txn, key, value)?,
            Change::Remove(key) => {
                records.delete(&mut txn, key)?;
            }
            Change::Shelve(acts, _) => {
                for act in acts {
                    match act {
                        Act::Put(key, value) => shelf.put(&mut txn, key, value)?,
                        Act::Remove(key) => drop(shelf.delete(&mut txn, key)?),
                    }
                }
            }
            Change::Mark(_) => {}
        }
    }
    txn.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u64) -> Record {
        Record::Expired {
            id: format!("{n:064x}"),
            at: Moment::from_millis(n),
            times: 1,
            until: None,
            identifiers: Vec::new(),
        }
    }

    #[tokio::test]
    async fn what_was_kept_is_there_after_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, before) = Journal::open(directory.path()).unwrap();
        assert_eq!(before, []);
        for n in 0..10 {
            journal.keep_soon(vec![b'x', u8::try_from(n).unwrap()], &record(n));
        }
        journal.forget(vec![b'x', 3]);
        // Order is kept: once this one is on disk, so is everything before it.
        journal.keep(b"last".to_vec(), &record(99)).await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(
            directory.path().join("data.mdb"),
            copy.path().join("data.mdb"),
        )
        .unwrap();
        let (_, after) = Journal::open(copy.path()).unwrap();
        assert_eq!(after.len(), 10);
        let after: Vec<Record> = after.into_iter().map(|(_, record)| record).collect();
        assert!(!after.contains(&record(3)) && after.contains(&record(99)));
    }

    #[tokio::test]
    async fn a_key_that_is_none_fails_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        let before = journal.keep(b"before".to_vec(), &record(1));
        for bad in [vec![], vec![b'x'; LONGEST_KEY + 1]] {
            let length = bad.len();
            let kept = journal.keep(bad.clone(), &record(2)).await;
            assert!(matches!(kept, Err(JournalError::Key(n)) if n == length));
            journal.keep_soon(bad.clone(), &record(2));
            journal.forget(bad);
        }
        let longest = journal.keep(vec![b'y'; LONGEST_KEY], &record(3));
        before.await.unwrap();
        longest.await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        let from = directory.path().join("data.mdb");
        std::fs::copy(from, copy.path().join("data.mdb")).unwrap();
        let (_, after) = Journal::open(copy.path()).unwrap();
        assert_eq!(after.len(), 2);
    }

    #[tokio::test]
    async fn what_is_shelved_is_found_in_memory_and_on_disk_and_is_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let (on_disk, _) = Journal::open(directory.path()).unwrap();
        for journal in [on_disk, Journal::none()] {
            journal.keep(b"k".to_vec(), &record(1)).await.unwrap();
            let put = |key: &[u8]| Act::Put(key.to_vec(), key.to_vec());
            let acts = vec![put(b"aa"), put(b"ab"), put(b"ac"), put(b"b")];
            journal.shelve(acts).await.unwrap();
            let swap = vec![Act::Remove(b"ab".to_vec()), put(b"ad")];
            journal.shelve(swap).await.unwrap();
            let refused = journal.shelve(vec![put(b"ae"), put(b"")]).await;
            assert!(matches!(refused, Err(JournalError::Key(0))));
            let keys = |after: Option<&'static [u8]>, most| {
                let journal = journal.clone();
                async move {
                    let look = journal.look(move |look| look.range(b"a", after, most));
                    let found = look.await.unwrap();
                    let keys = found.into_iter().map(|(key, value)| {
                        assert_eq!(key, value);
                        String::from_utf8(key).unwrap()
                    });
                    keys.collect::<Vec<_>>().join(" ")
                }
            };
            assert_eq!(keys(None, 9).await, "aa ac ad");
            assert_eq!(keys(Some(b"aa"), 1).await, "ac");
            let looked = journal.look(|look| Ok((look.get(b"b")?, look.count(b"a")?)));
            assert_eq!(looked.await.unwrap(), (Some(b"b".to_vec()), 3));
        }
        let copy = tempfile::tempdir().unwrap();
        let from = directory.path().join("data.mdb");
        std::fs::copy(from, copy.path().join("data.mdb")).unwrap();
        let (again, records) = Journal::open(copy.path()).unwrap();
        assert_eq!(records, [(b"k".to_vec(), record(1))]);
        let found = again.look(|look| look.count(b"a")).await.unwrap();
        assert_eq!(found, 3);
    }

    #[tokio::test]
    async fn no_journal_keeps_nothing_and_says_yes() {
        let journal = Journal::none();
        journal.keep(vec![1], &record(1)).await.unwrap();
        journal.forget(vec![1]);
    }
}
