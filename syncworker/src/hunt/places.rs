//! The places of a worker: as many hunts as go on at once.
//!
//! A hunt has one of the short places, of which there are `concurrency`. When a fetch of it takes long,
//! it goes to one of as many long places and leaves its own to others: what takes long holds up nobody
//! who does not. When there is none of these left, the slowest gives way.
//!
//! A hunt does not come back from a long place unless a short one is free at that moment: otherwise its
//! lease is handed back. So there are never more leases than places of both kinds, those aside that are
//! about to be handed back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::speed::Speed;

/// How long a fetch may hold a short place. Nearly all are over by then.
const YOUNG: Duration = Duration::from_secs(60);

/// How often one that waits for a long place looks again: speeds change by themselves.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How many times faster than the slowest a fetch must be to take its place. What has come for the other
/// is lost by it: of those that are alike, the ones that began first go on.
const FASTER: u64 = 2;

/// What happens to a fetch that needs a long place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It takes one that is free.
    In,
    /// It takes that of this one.
    InsteadOf(u64),
    /// It gives way itself.
    Out,
    /// Nobody can be said to be slow: not yet.
    Waits,
}

/// Who gives way. A speed that is not known is no slow one: a pack that has not begun to come begins
/// before long or fails; one that has all come is our own work by now.
fn turn(long: &[(u64, Option<u64>)], most: usize, new: Option<u64>) -> Turn {
    if long.len() < most {
        return Turn::In;
    }
    let Some(new) = new else {
        return Turn::Waits;
    };
    let known = long
        .iter()
        .filter_map(|(id, rate)| Some((*rate.as_ref()?, *id)));
    match known.min() {
        None => Turn::Waits,
        Some((slowest, id)) if slowest.saturating_mul(FASTER) <= new && slowest < new => {
            Turn::InsteadOf(id)
        }
        Some(_) => Turn::Out,
    }
}

/// A fetch in a long place.
#[derive(Debug)]
struct Resident {
    speed: Arc<Speed>,
    out: CancellationToken,
}

/// Those in long places: never more than there are.
#[derive(Debug, Default)]
struct Long {
    last: u64,
    residents: BTreeMap<u64, Resident>,
}

/// All places of a worker.
#[derive(Debug)]
pub struct Places {
    short: Arc<Semaphore>,
    /// Of each kind.
    most: usize,
    long: Mutex<Long>,
    /// A long place has become free.
    freed: Notify,
}

impl Places {
    /// So many of each kind.
    pub fn new(most: usize) -> Self {
        Self {
            short: Arc::new(Semaphore::new(most)),
            most,
            long: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// All short places that are free, one at least.
    pub async fn free(self: &Arc<Self>) -> Vec<Place> {
        let first = self.short.clone().acquire_owned().await;
        let mut places = vec![self.short(first.expect("nobody closes it"))];
        while let Ok(place) = self.short.clone().try_acquire_owned() {
            places.push(self.short(place));
        }
        places
    }

    fn short(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Place {
        Place {
            places: self.clone(),
            kind: Kind::Short(permit),
        }
    }

    /// A long place for a fetch, with what tells it that it has to give way; or what else happens to it.
    fn enter(&self, speed: &Arc<Speed>) -> Result<(u64, CancellationToken), Turn> {
        let mut long = self.long();
        let rates: Vec<_> = long
            .residents
            .iter()
            .map(|(id, resident)| (*id, resident.speed.rate()))
            .collect();
        match turn(&rates, self.most, speed.rate()) {
            Turn::In => {}
            Turn::InsteadOf(slowest) => {
                if let Some(slowest) = long.residents.remove(&slowest) {
                    slowest.out.cancel();
                }
            }
            other => return Err(other),
        }
        long.last += 1;
        let (id, out) = (long.last, CancellationToken::new());
        let resident = Resident {
            speed: speed.clone(),
            out: out.clone(),
        };
        long.residents.insert(id, resident);
        Ok((id, out))
    }

    fn leave(&self, id: u64) {
        if self.long().residents.remove(&id).is_some() {
            self.freed.notify_waiters();
        }
    }

    fn long(&self) -> MutexGuard<'_, Long> {
        // Every change is one insertion or removal: what a panic left behind is whole.
        self.long.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Kind {
    Short(#[allow(dead_code, reason = "held, not read")] OwnedSemaphorePermit),
    Long(u64),
}

/// The place of one hunt. Free again when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    kind: Kind,
}

impl Place {
    /// Looks after the place of a fetch that begins now; comes back only when there is none for it any
    /// more.
    pub async fn keep(&mut self, speed: &Arc<Speed>) {
        sleep(YOUNG).await;
        let places = self.places.clone();
        loop {
            let freed = places.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            match places.enter(speed) {
                Ok((id, out)) => {
                    self.change(Kind::Long(id));
                    out.cancelled().await;
                    return;
                }
                Err(Turn::Waits) => {
                    let _ = timeout(LOOK_AGAIN, freed).await;
                }
                Err(_) => return,
            }
        }
    }

    /// Back to a short place, behind a fetch; `false` where none is free.
    pub fn is_short_again(&mut self) -> bool {
        if let Kind::Long(_) = self.kind {
            let Ok(permit) = self.places.short.clone().try_acquire_owned() else {
                return false;
            };
            self.change(Kind::Short(permit));
        }
        true
    }

    fn change(&mut self, kind: Kind) {
        if let Kind::Long(id) = std::mem::replace(&mut self.kind, kind) {
            self.places.leave(id);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Kind::Long(id) = self.kind {
            self.places.leave(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_slowest_gives_way() {
        let long = [(1, Some(100)), (2, Some(30)), (3, None), (4, Some(50))];
        assert_eq!(turn(&long, 5, Some(0)), Turn::In);
        assert_eq!(turn(&long, 5, None), Turn::In);
        assert_eq!(turn(&long, 4, Some(1000)), Turn::InsteadOf(2));
        assert_eq!(turn(&long, 4, Some(60)), Turn::InsteadOf(2));
        // Not for one that is hardly faster, and never for one that is not.
        assert_eq!(turn(&long, 4, Some(59)), Turn::Out);
        assert_eq!(turn(&long, 4, Some(0)), Turn::Out);
        assert_eq!(turn(&[(1, Some(0))], 1, Some(0)), Turn::Out);
        assert_eq!(turn(&[(1, Some(0))], 1, Some(1)), Turn::InsteadOf(1));
        // What has not begun is not slow.
        assert_eq!(turn(&long, 4, None), Turn::Waits);
        assert_eq!(turn(&[(3, None)], 1, Some(7)), Turn::Waits);
    }

    proptest! {
        #[test]
        fn nobody_gives_way_to_a_slower_one(
            rates in prop::collection::vec(prop::option::of(0_u64..1000), 1..20),
            new in prop::option::of(0_u64..1000),
        ) {
            let long: Vec<_> = (0_u64..).zip(rates).collect();
            if let Turn::InsteadOf(id) = turn(&long, long.len(), new) {
                let (_, gone) = long.iter().find(|(other, _)| *other == id).unwrap();
                prop_assert!(*gone < new && gone.is_some());
                prop_assert!(long.iter().all(|(_, rate)| rate.is_none() || rate >= gone));
            }
        }
    }
}
