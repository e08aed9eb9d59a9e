//! What is kept by the journal and not in memory: looked up on disk when it is asked for.
//!
//! A database of its own beside the records, in the same file and written by the same writer, so
//! that its changes are committed with the others' in the order they were asked for.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use heed::{Database, Env, RoTxn, types::Bytes};

use super::{JournalError, Key};

/// What the shelf's database is called among the records: no record's key begins so.
pub(super) const NAME: &str = "\u{1}shelf";

/// One change; those given together are made together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// This value is under this key from now on.
    Put(Key, Vec<u8>),
    /// Nothing is.
    Remove(Key),
}

/// Where it lies. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Shelf {
    /// Gone with the process.
    Memory(Arc<RwLock<BTreeMap<Key, Vec<u8>>>>),
    /// In the journal's file.
    Disk(Env, Database<Bytes, Bytes>),
}

impl Default for Shelf {
    fn default() -> Self {
        Self::Memory(Arc::default())
    }
}

impl Shelf {
    /// Makes the changes in memory; those on disk are the writer's.
    pub(super) fn change_memory(&self, acts: &[Act]) {
        if let Self::Memory(entries) = self {
            let mut entries = entries.write().unwrap_or_else(PoisonError::into_inner);
            for act in acts {
                match act {
                    Act::Put(key, value) => drop(entries.insert(key.clone(), value.clone())),
                    Act::Remove(key) => drop(entries.remove(key)),
                }
            }
        }
    }

    /// Looks at it as it is now. Blocks.
    pub(super) fn look<T>(
        &self,
        see: impl FnOnce(&Look<'_>) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        match self {
            Self::Memory(entries) => {
                let entries = entries.read().unwrap_or_else(PoisonError::into_inner);
                see(&Look::Memory(&entries))
            }
            Self::Disk(env, database) => {
                let txn = env.read_txn()?;
                see(&Look::Disk(&txn, *database))
            }
        }
    }
}

/// The shelf at one moment.
pub enum Look<'a> {
    /// In memory.
    Memory(&'a BTreeMap<Key, Vec<u8>>),
    /// On disk.
    Disk(&'a RoTxn<'a>, Database<Bytes, Bytes>),
}

impl Look<'_> {
    /// What is under a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, JournalError> {
        Ok(match self {
            Self::Memory(entries) => entries.get(key).cloned(),
            Self::Disk(txn, database) => database.get(txn, key)?.map(<[u8]>::to_vec),
        })
    }

    /// At most `most` entries whose keys begin with `prefix`, in the order of their keys, from
    /// behind the key `after` on.
    pub fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        most: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, JournalError> {
        let from = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (from, Bound::Unbounded);
        let mut found = Vec::new();
        match self {
            Self::Memory(entries) => {
                let within = entries
                    .range::<[u8], _>(bounds)
                    .take_while(|(key, _)| key.starts_with(prefix));
                found.extend(within.take(most).map(|(k, v)| (k.clone(), v.clone())));
            }
            Self::Disk(txn, database) => {
                for entry in database.range(txn, &bounds)? {
                    let (key, value) = entry?;
                    if found.len() >= most || !key.starts_with(prefix) {
                        break;
                    }
                    found.push((key.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(found)
    }

    /// How many keys begin with `prefix`.
    pub fn count(&self, prefix: &[u8]) -> Result<u64, JournalError> {
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(prefix), Bound::Unbounded);
        let mut count = 0;
        match self {
            Self::Memory(entries) => {
                let within = entries.range::<[u8], _>(bounds);
                count += within
                    .take_while(|(key, _)| key.starts_with(prefix))
                    .count() as u64;
            }
            Self::Disk(txn, database) => {
                for entry in database.range(txn, &bounds)? {
                    if !entry?.0.starts_with(prefix) {
                        break;
                    }
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}
