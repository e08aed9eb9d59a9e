//! Who works on what: locks by name, and the uploads that keep a view from going.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use grasp_proto::words::Address;

/// Locks by name, made when needed and gone when nobody has them: bounded by what is running.
#[derive(Debug)]
pub struct Locks<K>(Mutex<HashMap<K, Arc<Mutex<()>>>>);

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + std::hash::Hash> Locks<K> {
    fn map(&self) -> MutexGuard<'_, HashMap<K, Arc<Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` while nobody else works under the same key. Blocks.
    pub fn hold<T>(&self, key: &K, work: impl FnOnce() -> T) -> T {
        let lock = Arc::clone(self.map().entry(key.clone()).or_default());
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work();
        drop(guard);
        let mut map = self.map();
        // The map's and ours: nobody else waits for it.
        if Arc::strong_count(&lock) == 2 {
            map.remove(key);
        }
        result
    }
}

/// What runs on views, so that none is deleted under an upload. Of a deletion and an upload that begin
/// at once, one finds the other.
#[derive(Debug, Clone, Default)]
pub struct Uploads(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    uploads: HashMap<Address, usize>,
    closing: HashSet<Address>,
}

impl Uploads {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an upload; `None`: the view is on its way out.
    pub fn begin(&self, address: &Address) -> Option<Upload> {
        let mut running = self.running();
        if running.closing.contains(address) {
            return None;
        }
        *running.uploads.entry(address.clone()).or_default() += 1;
        drop(running);
        Some(Upload {
            uploads: self.clone(),
            address: address.clone(),
            incarnation: String::new(),
            checked_at: AtomicU64::default(),
        })
    }

    /// Lets no upload begin any more; `None`: one is running, or somebody else closes.
    pub fn close<'a>(&self, address: &'a Address) -> Option<Closing<'a>> {
        let mut running = self.running();
        let free =
            !running.uploads.contains_key(address) && running.closing.insert(address.clone());
        drop(running);
        free.then(|| Closing {
            uploads: self.clone(),
            address,
        })
    }
}

/// An upload into a view. While it lives, the view is neither deleted nor retired.
#[derive(Debug)]
pub struct Upload {
    uploads: Uploads,
    /// Where to.
    pub address: Address,
    /// Which of the repositories that ever had this name.
    pub incarnation: String,
    checked_at: AtomicU64,
}

impl Upload {
    /// Its pack is checked now, against a pool that was pruned so often.
    pub fn check_at(&self, prunings: u64) {
        self.checked_at.store(prunings, Ordering::SeqCst);
    }

    /// How often the pool was pruned when its pack was checked.
    pub fn checked_at(&self) -> u64 {
        self.checked_at.load(Ordering::SeqCst)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut running = self.uploads.running();
        if let Some(count) = running.uploads.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                running.uploads.remove(&self.address);
            }
        }
    }
}

/// A view on its way out: no upload begins while this lives.
#[derive(Debug)]
pub struct Closing<'a> {
    uploads: Uploads,
    address: &'a Address,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.uploads.running().closing.remove(self.address);
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::{Identifier, Npub, RepoId};

    use super::*;

    #[test]
    fn an_upload_and_a_deletion_exclude_each_other() {
        let repo = RepoId {
            owner: Npub::from_bytes([1; 32]),
            identifier: Identifier::parse("x").unwrap(),
        };
        let repo = Address::from(repo);
        let uploads = Uploads::default();
        let (one, two) = (uploads.begin(&repo), uploads.begin(&repo));
        drop(one);
        assert!(uploads.close(&repo).is_none());
        drop(two);
        let closing = uploads.close(&repo).unwrap();
        assert!(uploads.begin(&repo).is_none() && uploads.close(&repo).is_none());
        drop(closing);
        assert!(uploads.begin(&repo).is_some());
        assert!(uploads.running().uploads.is_empty());
    }
}
