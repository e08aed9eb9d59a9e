//! Durable before OK: what waits in purgatory, on disk.
//!
//! One writer thread commits what has been asked for since its last commit in one transaction, so
//! that a burst of events costs one flush of the disk (group commit). What is asked for is done in
//! order. Whoever needs to know that it is on disk waits for the answer; resets of clocks do not.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use futures::{FutureExt, future::join_all};
use heed::{Database, Env, EnvOpenOptions, RoTxn, types::Bytes};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::clock::Moment;

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
        /// Where which commit was pushed: coordinate and hex.
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
    /// An id that expired once.
    Expired {
        /// In hex.
        id: String,
        /// When.
        at: Moment,
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
    /// Nothing, but whoever waits for it waits for all before it.
    Mark(oneshot::Sender<()>),
}

/// The journal. Cheap to clone; the writer ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Journal {
    /// `None`: nothing is kept (memory backend).
    changes: Option<mpsc::Sender<Change>>,
    /// `None`: likewise.
    kept: Option<(Env, Database<Bytes, Bytes>)>,
}

/// What the journal had at one moment. While it lives, the file grows with what is written.
pub struct Snapshot(Option<(RoTxn<'static>, Database<Bytes, Bytes>)>);

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Snapshot(…)")
    }
}

/// A record as a line of a backup.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The key, in hex.
    key: String,
    record: Record,
}

impl Snapshot {
    /// Shows `see` each record as a line of JSON, until it has seen enough. Blocks.
    pub fn lines(&self, mut see: impl FnMut(String) -> bool) -> Result<(), JournalError> {
        let Some((txn, database)) = &self.0 else {
            return Ok(());
        };
        for entry in database.iter(txn)? {
            let Some((key, record)) = decode(entry?) else {
                continue;
            };
            let key = faster_hex::hex_string(&key);
            let line = Line { key, record };
            let line = serde_json::to_string(&line).expect("a record is plain data");
            if !see(line) {
                break;
            }
        }
        Ok(())
    }
}

/// Where it lies below the relay's data directory.
pub fn directory(data: &Path) -> PathBuf {
    data.join("purgatory")
}

/// Makes a journal in `directory` out of the lines of a backup. Gives how many there were. Blocks.
pub fn restore(
    directory: &Path,
    lines: impl Iterator<Item = std::io::Result<String>>,
) -> Result<u64, JournalError> {
    let (env, database) = open(directory)?;
    let mut txn = env.write_txn()?;
    let mut count = 0;
    for line in lines {
        let line: Line = serde_json::from_str(&line?).map_err(std::io::Error::from)?;
        let mut key = vec![0; line.key.len() / 2];
        faster_hex::hex_decode(line.key.as_bytes(), &mut key)
            .map_err(|_| JournalError::Key(line.key.len()))?;
        check(&key)?;
        database.put(&mut txn, &key, &encode(&line.record))?;
        count += 1;
    }
    txn.commit()?;
    Ok(count)
}

/// Opens, or makes, the database in a directory.
fn open(directory: &Path) -> Result<(Env, Database<Bytes, Bytes>), JournalError> {
    std::fs::create_dir_all(directory)?;
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_SIZE);
    // SAFETY: the file is a private one of this process, which opens it once; nothing truncates
    // it while it is mapped.
    #[allow(unsafe_code)]
    let env = unsafe { options.open(directory) }?;
    let mut txn = env.write_txn()?;
    let database: Database<Bytes, Bytes> = env.create_database(&mut txn, None)?;
    txn.commit()?;
    Ok((env, database))
}

/// Enough for some million waiting events; the file grows only as it is used.
const MAP_SIZE: usize = 16 << 30;

impl Journal {
    /// A journal that keeps nothing.
    pub fn none() -> Self {
        Self {
            changes: None,
            kept: None,
        }
    }

    /// Opens the journal in `directory`, and gives what it holds. Blocks.
    pub fn open(directory: &Path) -> Result<(Self, Vec<(Key, Record)>), JournalError> {
        let (env, database) = open(directory)?;
        let records = read_all(&env.read_txn()?, database)?;
        let kept = Some((env.clone(), database));
        let (changes, incoming) = mpsc::channel();
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write_all(&env, database, &incoming))?;
        let changes = Some(changes);
        Ok((Self { changes, kept }, records))
    }

    /// What is on disk by now of all that was asked for so far.
    pub async fn snapshot(&self) -> Result<Snapshot, JournalError> {
        self.flush().await?;
        let Some((env, database)) = self.kept.clone() else {
            return Ok(Snapshot(None));
        };
        Ok(Snapshot(Some((env.static_read_txn()?, database))))
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

fn write_all(env: &Env, database: Database<Bytes, Bytes>, incoming: &mpsc::Receiver<Change>) {
    while let Ok(first) = incoming.recv() {
        let mut batch = vec![first];
        batch.extend(incoming.try_iter().take(BATCH - 1));
        if let Err(error) = write(env, database, &batch) {
            tracing::error!(%error, "a batch of the purgatory journal could not be written");
            // One that cannot be written fails its whole batch: the others by themselves.
            batch.retain(|change| write(env, database, std::slice::from_ref(change)).is_ok());
        }
        for change in batch {
            if let Change::Put(_, _, Some(done)) | Change::Mark(done) = change {
                // Whoever waited may have gone; the record is kept all the same. Those whose change
                // was dropped hear that it was.
                let _ = done.send(());
            }
        }
    }
}

fn write(env: &Env, database: Database<Bytes, Bytes>, batch: &[Change]) -> heed::Result<()> {
    let mut txn = env.write_txn()?;
    for change in batch {
        match change {
            Change::Put(key, value, _) => database.put(&mut txn, key, value)?,
            Change::Remove(key) => {
                database.delete(&mut txn, key)?;
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
    async fn no_journal_keeps_nothing_and_says_yes() {
        let journal = Journal::none();
        journal.keep(vec![1], &record(1)).await.unwrap();
        journal.forget(vec![1]);
    }
}
