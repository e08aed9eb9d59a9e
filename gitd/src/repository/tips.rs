//! Where the refs of a pool's views point that the public is shown, remembered until one of them changes.
//!
//! A pool may have a thousand views: reading the refs of all of them for each push would cost more than the
//! push. What changes the refs of a view, or whether it is there, does so through [`Repositories::change`],
//! which forgets them before and after. Whoever reads meanwhile keeps nothing of it.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use grasp_proto::words::{Address, Identifier, Oid};

use super::{Error, Repositories, kind_of, pool, refs};

/// Places in which generations are counted: two identifiers that share one only look again for nothing.
const GENERATIONS: usize = 1024;

/// Tips that are remembered at most, of all views.
const REMEMBERED: usize = 1_000_000;

/// Where refs point, remembered until they change.
#[derive(Debug)]
pub struct Tips {
    generations: Vec<AtomicU64>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    of_view: HashMap<Address, Arc<[Oid]>>,
    /// Of all views together, in order, and in which generation.
    of_pool: HashMap<Identifier, (u64, Arc<[Oid]>)>,
    count: usize,
}

impl Default for Tips {
    fn default() -> Self {
        let generations = (0..GENERATIONS).map(|_| AtomicU64::default()).collect();
        let known = Mutex::default();
        Self { generations, known }
    }
}

impl Tips {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, identifier: &Identifier) -> &AtomicU64 {
        let mut hasher = DefaultHasher::new();
        identifier.hash(&mut hasher);
        let place = hasher.finish() % GENERATIONS as u64;
        &self.generations[usize::try_from(place).unwrap_or_default()]
    }

    fn generation(&self, identifier: &Identifier) -> u64 {
        self.of(identifier).load(Ordering::SeqCst)
    }

    fn forget(&self, address: &Address) {
        let mut known = self.known();
        // Whoever reads now keeps nothing.
        self.of(address.identifier()).fetch_add(1, Ordering::SeqCst);
        if let Some(tips) = known.of_view.remove(address) {
            known.count -= tips.len();
        }
        if let Some((_, tips)) = known.of_pool.remove(address.identifier()) {
            known.count -= tips.len();
        }
    }

    /// What is withheld has changed.
    pub(super) fn forget_pools(&self) {
        let mut known = self.known();
        for generation in &self.generations {
            generation.fetch_add(1, Ordering::SeqCst);
        }
        let pools = std::mem::take(&mut known.of_pool);
        known.count -= pools.values().map(|(_, tips)| tips.len()).sum::<usize>();
    }

    /// Keeps what was read while the generation was this, and is it still.
    fn keep(
        &self,
        identifier: &Identifier,
        generation: u64,
        keep: impl FnOnce(&mut Known) -> usize,
    ) {
        let mut known = self.known();
        if self.generation(identifier) != generation {
            return;
        }
        if known.count > REMEMBERED {
            *known = Known::default();
        }
        let added = keep(&mut known);
        known.count += added;
    }

    /// Does `work`, which changes where the refs of a view point; under its lock.
    pub(super) fn during<T>(&self, address: &Address, work: impl FnOnce() -> T) -> T {
        self.forget(address);
        let result = work();
        self.forget(address);
        result
    }
}

impl Repositories {
    /// Does `work`, which changes where the refs of a view point or whether it is there, under its lock.
    pub(super) fn change<T>(&self, address: &Address, work: impl FnOnce() -> T) -> T {
        self.views.hold(address, || self.tips.during(address, work))
    }

    /// Where the refs of a view point that `odb` has.
    pub(super) fn tips_of_view(
        &self,
        address: &Address,
        odb: &git2::Odb<'_>,
    ) -> Result<Arc<[Oid]>, Error> {
        let all = refs::all_tips(&refs::open(&self.view(address)?)?)?;
        let mut tips = Vec::with_capacity(all.len());
        for oid in all {
            // What is staged in a view is not in the pool, nor what was lost.
            if kind_of(odb, oid)?.is_some() {
                tips.push(oid);
            }
        }
        Ok(tips.into())
    }

    /// Where everything ends that views of a pool show the public, in order. Blocks.
    pub(super) fn public_tips(&self, identifier: &Identifier) -> Result<Arc<[Oid]>, Error> {
        let generation = self.tips.generation(identifier);
        if let Some((of, tips)) = self.tips.known().of_pool.get(identifier)
            && *of == generation
        {
            return Ok(Arc::clone(tips));
        }
        let pool = self.layout.pool(identifier);
        let repo = match refs::open(&pool) {
            Err(Error::NotFound) => return Ok(Arc::default()),
            repo => repo?,
        };
        let odb = repo.odb()?;
        let markers = pool::views(&pool, usize::MAX).into_iter();
        let addresses: BTreeSet<Address> = markers.map(|m| m.address(identifier)).collect();
        let mut all = Vec::new();
        for address in addresses {
            if self.withheld.covers(&address.repo) {
                continue;
            }
            let known = self.tips.known().of_view.get(&address).cloned();
            let tips = match known {
                Some(tips) => tips,
                None => match self.tips_of_view(&address, &odb) {
                    Ok(tips) => {
                        let (of_view, name) = (Arc::clone(&tips), address.clone());
                        self.tips.keep(identifier, generation, |known| {
                            let count = of_view.len();
                            let before = known.of_view.insert(name, of_view);
                            count - before.map_or(0, |before| before.len()).min(count)
                        });
                        tips
                    }
                    // Retired, or going, or not served: what it has is not shown.
                    Err(error) => {
                        tracing::debug!(repo = %address, %error, "no tips");
                        continue;
                    }
                },
            };
            all.extend_from_slice(&tips);
        }
        all.sort_unstable();
        all.dedup();
        let tips: Arc<[Oid]> = all.into();
        let of_pool = Arc::clone(&tips);
        self.tips.keep(identifier, generation, |known| {
            let count = of_pool.len();
            let before = known
                .of_pool
                .insert(identifier.clone(), (generation, of_pool));
            count - before.map_or(0, |(_, before)| before.len()).min(count)
        });
        Ok(tips)
    }
}
