//! Packs from other servers: into the pool of an identifier, for as long as it has views.
//!
//! No ref moves, and nothing is shown by them alone: readers get what the refs of a view reach
//! (`reachable.rs`). A pack on its way keeps its pool, not a view: the last view may go under it, and
//! the pool then goes when the last [`Arrival`] has ended.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use grasp_proto::words::{Identifier, Oid};

use super::{
    Error, Repositories,
    intake::Quarantine,
    marks::{self, Fate, Kind, Mark},
    pool, throw_away,
};

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
    #[error(
        "the pack holds none of the granted objects, with all that it leads to and is not here"
    )]
    Unasked,
    /// Our side failed.
    #[error(transparent)]
    Failed(#[from] Error),
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
    checked_at: AtomicU64,
}

impl Arrival {
    /// Under which identifier it is taken in.
    pub fn identifier(&self) -> &Identifier {
        &self.identifier
    }

    /// Its pack is checked now, against a pool that was pruned so often.
    pub(super) fn check_at(&self, prunings: u64) {
        self.checked_at.store(prunings, Ordering::SeqCst);
    }
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
                    checked_at: AtomicU64::default(),
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

    /// Makes a checked pack visible for the objects that it brought `whole`, if `allowed` says so to the
    /// last; gives how large it is. Blocks.
    pub fn store(
        &self,
        arrival: &Arrival,
        quarantine: Quarantine,
        whole: &[Oid],
        allowed: impl FnOnce() -> bool,
    ) -> Result<u64, NotStored> {
        let Arrival {
            identifier, pool, ..
        } = arrival;
        if whole.is_empty() {
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
            if self.prunings(identifier) != arrival.checked_at.load(Ordering::SeqCst) {
                let reason = "what this pack builds on has just expired";
                return Err(Error::Precondition(reason.to_owned()).into());
            }
            let arrived = whole.iter().map(|oid| Mark::new(Kind::Arrived, *oid, None));
            let marked = marks::change(pool, |_| Fate::Stays, arrived.collect());
            marked.map_err(Error::from)?;
            Ok(quarantine.publish(pool)?)
        })?;
        self.consolidator.consider(pool);
        Ok(bytes)
    }
}
