//! All events at one moment, read one by one while others are written.
//!
//! The library has no such reading: it gives what matches a filter, whole, in memory. LMDB has: a
//! transaction that reads sees what was there when it began, for as long as it lives. So the library's
//! environment is found again, which `heed` keeps one of for each directory of a process, and its
//! database of events is read as the library writes it: by id, as flatbuffers.

use std::{fmt, path::Path};

use heed::{Database, Env, EnvFlags, EnvOpenOptions, RoTxn, types::Bytes};
use nostr::Event;
use nostr_database::flatbuffers::FlatBufferDecode;

/// What events are filed under: their ids. The names of other databases, which lie beside them, are
/// shorter.
const ID_BYTES: usize = 32;

/// The environment of an event store on disk.
pub(super) struct Kept(Env);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept(…)")
    }
}

impl Kept {
    /// Finds the environment that the library has opened in `directory`.
    pub(super) fn find(directory: &Path) -> heed::Result<Self> {
        let mut options = EnvOpenOptions::new();
        // SAFETY: the environment is open already, by the library in this process; what is given
        // is another handle to it. The flag is the library's.
        #[allow(unsafe_code)]
        let found = unsafe { options.flags(EnvFlags::NO_TLS).open(directory) };
        match found {
            // The library's other options are its own business.
            Err(heed::Error::BadOpenOptions { env, .. }) => Ok(Self(env)),
            found => found.map(Self),
        }
    }

    /// What is there now.
    pub(super) fn snapshot(&self) -> heed::Result<Snapshot> {
        let txn = self.0.clone().static_read_txn()?;
        let database = self.0.open_database(&txn, None)?;
        Ok(Snapshot(Kind::Kept(txn, database)))
    }
}

enum Kind {
    Kept(RoTxn<'static>, Option<Database<Bytes, Bytes>>),
    Memory(Vec<Event>),
}

/// All events at one moment. While it lives, the file of the store grows with what is written.
pub struct Snapshot(Kind);

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot(…)")
    }
}

/// An event of a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The database.
    #[error("the event store failed: {0}")]
    Database(#[from] heed::Error),
    /// The event.
    #[error("a stored event is unreadable: {0}")]
    Event(String),
}

impl Snapshot {
    pub(super) fn of(events: Vec<Event>) -> Self {
        Self(Kind::Memory(events))
    }

    /// Shows `see` each event, until it has seen enough. Blocks.
    pub fn each(&self, mut see: impl FnMut(&Event) -> bool) -> Result<(), Unreadable> {
        match &self.0 {
            Kind::Memory(events) => {
                let _ = events.iter().all(see);
            }
            Kind::Kept(_, None) => {}
            Kind::Kept(txn, Some(database)) => {
                for entry in database.iter(txn)? {
                    let (id, event) = entry?;
                    if id.len() != ID_BYTES {
                        continue;
                    }
                    let event = <Event as FlatBufferDecode>::decode(event);
                    if !see(&event.map_err(|error| Unreadable::Event(error.to_string()))?) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}
