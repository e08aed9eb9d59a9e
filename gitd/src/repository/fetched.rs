//! Packs from other servers: into the pool of an identifier, for as long as it has views.
//!
//! No ref moves, and nothing is shown by them alone: readers get what the refs of a view reach
//! (`reachable.rs`). A pack on its way keeps its pool, not a view: the last view may go under it, and
//! the pool then goes when the last [`Arrival`] has ended.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use grasp_proto::words::{Identifier, Oid};

use super::{Error, Repositories, intake::Quarantine, pool, throw_away};

/// Why a pack that was fetched is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// The last view went meanwhile.
    #[error("no repository here has this identifier any more")]
    Gone,
    /// Nobody allows it any longer.
    #[error("the grant ran out before the pack was in")]
    Late,
    /// It is not what it was fetched for.
    #[error("the pack holds none of the granted objects")]
    Unasked,
    /// Our side failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// What came of a pack that was taken in.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// Those of the wanted objects that are here now.
    pub arrived: Vec<Oid>,
    /// How large the pack is.
    pub bytes: u64,
}

/// Packs on their way, by identifier. Bounded by what is running.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<HashMap<Identifier, usize>>);

impl Arrivals {
    fn running(&self) -> MutexGuard<'_, HashMap<Identifier, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pack on its way. While it lives, its pool stays.
#[derive(Debug)]
pub struct Arrival {
    repositories: Arc<Repositories>,
    identifier: Identifier,
    /// Where to.
    pub pool: PathBuf,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let (repositories, identifier) = (Arc::clone(&self.repositories), self.identifier.clone());
        let end = move || repositories.end_arrival(&identifier);
        // It waits for a lock.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(end)),
            Err(_) => end(),
        }
    }
}

impl Repositories {
    /// Begins to take in a pack for an identifier that a repository here has.
    pub async fn begin_arrival(self: &Arc<Self>, identifier: Identifier) -> Result<Arrival, Error> {
        let repositories = Arc::clone(self);
        let begin = move |this: &Self| {
            this.identifiers.hold(&identifier.clone(), || {
                let pool = this.layout.pool(&identifier);
                if pool::views(&pool, 1).is_empty() {
                    return Err(Error::NotFound);
                }
                let mut running = this.arrivals.running();
                *running.entry(identifier.clone()).or_default() += 1;
                drop(running);
                Ok(Arrival {
                    repositories,
                    identifier,
                    pool,
                })
            })
        };
        self.blocking(begin).await
    }

    fn end_arrival(&self, identifier: &Identifier) {
        let dropped = self.identifiers.hold(identifier, || {
            let mut running = self.arrivals.running();
            if let Some(count) = running.get_mut(identifier) {
                *count -= 1;
                if *count == 0 {
                    running.remove(identifier);
                }
            }
            drop(running);
            self.drop_pool(identifier)
        });
        match dropped {
            Ok(Some(rubbish)) => throw_away(&rubbish),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%identifier, %error, "a pool without views stays until the next start");
            }
        }
    }

    /// Takes a pool out of sight that nobody needs any more; what has to be thrown away then is given
    /// back. Under the identifier's lock.
    pub(super) fn drop_pool(&self, identifier: &Identifier) -> std::io::Result<Option<PathBuf>> {
        if self.arrivals.running().contains_key(identifier) {
            return Ok(None);
        }
        pool::drop_if_unused(&self.layout, &self.layout.pool(identifier))
    }

    /// Makes a checked pack visible, if it has one of the `wanted` objects and `allowed` says so to the
    /// last. Blocks.
    pub fn store(
        &self,
        arrival: &Arrival,
        quarantine: Quarantine,
        wanted: &[Oid],
        allowed: impl FnOnce() -> bool,
    ) -> Result<Stored, NotStored> {
        let Arrival {
            identifier, pool, ..
        } = arrival;
        if !quarantine.has_any(wanted)? {
            return Err(NotStored::Unasked);
        }
        let bytes = quarantine.bytes()?;
        self.identifiers.hold(identifier, || {
            if pool::views(pool, 1).is_empty() {
                return Err(NotStored::Gone);
            }
            if !allowed() {
                return Err(NotStored::Late);
            }
            Ok(quarantine.publish(&pool.join("objects"))?)
        })?;
        self.consolidator.consider(pool);
        let missing = self.missing(identifier, wanted, &[], None)?.missing;
        let missing: HashSet<Oid> = missing.into_iter().collect();
        let mut arrived = wanted.to_vec();
        arrived.retain(|oid| !missing.contains(oid));
        Ok(Stored { arrived, bytes })
    }
}
