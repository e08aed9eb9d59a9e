//! The leases this worker holds: when each must be let go of, and the grants of what is fetched
//! under it.
//!
//! Nothing here calls anybody. All times are of the clock that never jumps; a lease is counted from
//! before the call that renewed it, and let go of a margin before its end, so that this worker has
//! stopped when the relay hands the identifier to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use grasp_proto::{
    contract::relay::{HeldLease, LeasedIdentifier, RenewedLease},
    words::{Identifier, NotAWord},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// How often the relay hears of a worker that was never told how long a lease lasts.
const FIRST_PERIOD: Duration = Duration::from_secs(5);

/// Never more often than this, whatever the relay says,
const SHORTEST_PERIOD: Duration = Duration::from_millis(200);

/// nor more seldom.
const LONGEST_PERIOD: Duration = Duration::from_secs(20);

/// Most leases that are renewed by one call. A grant comes back with each, which names as many as
/// 10,000 objects: some 14 MB in all, of 64 that an answer may have.
const LARGEST_GROUP: usize = 64;

/// How long before its end a lease is let go of, at most.
const MARGIN: Duration = Duration::from_secs(3);

/// How long of a lease may be used.
fn usable(valid: Duration) -> Duration {
    valid.saturating_sub(MARGIN.min(valid / 4))
}

/// How often leases that last so long are renewed.
fn period(valid: Duration) -> Duration {
    (valid / 3).clamp(SHORTEST_PERIOD, LONGEST_PERIOD)
}

fn millis(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one assignment: what a panic left behind is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fetch that runs under a lease.
#[derive(Debug)]
struct Running {
    fetch: u64,
    grants: watch::Sender<Bytes>,
}

/// One lease.
#[derive(Debug)]
pub struct Held {
    /// Of what.
    pub identifier: Identifier,
    /// Its fencing token.
    pub token: u64,
    /// Until when it may be used.
    end: watch::Sender<Instant>,
    gone: CancellationToken,
    running: Mutex<Option<Running>>,
}

impl Held {
    /// As it is named to the relay.
    pub fn name(&self) -> HeldLease {
        HeldLease {
            identifier: self.identifier.to_string(),
            token: self.token,
        }
    }

    /// It is somebody else's, or nobody knows.
    pub fn lose(&self) {
        self.gone.cancel();
    }

    /// Ends when the lease is lost, or could not be renewed in time.
    pub async fn lost(&self) {
        let mut end = self.end.subscribe();
        loop {
            let until = *end.borrow_and_update();
            tokio::select! {
                biased;
                () = self.gone.cancelled() => return,
                // The sender is `self`: it is there.
                _ = end.changed() => {}
                () = sleep_until(until) => return,
            }
        }
    }

    /// A fetch begins under it, with this grant; what comes out is the grant as it is renewed. To be
    /// told of its end by dropping what comes with it.
    pub fn fetching(&self, fetch: u64, grant: Bytes) -> (Fetching<'_>, watch::Receiver<Bytes>) {
        let (grants, renewed) = watch::channel(grant);
        *lock(&self.running) = Some(Running { fetch, grants });
        (Fetching(self), renewed)
    }
}

/// A fetch that runs under a lease, until this is dropped.
#[derive(Debug)]
pub struct Fetching<'a>(&'a Held);

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) = None;
    }
}

/// All leases of this worker: as many as it has places.
#[derive(Debug)]
pub struct Leases {
    held: Mutex<BTreeMap<Identifier, Arc<Held>>>,
    period: watch::Sender<Duration>,
}

impl Default for Leases {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
            period: watch::Sender::new(FIRST_PERIOD),
        }
    }
}

/// What was put into one renewal.
#[derive(Debug)]
pub struct Renewal(Vec<(Arc<Held>, Option<u64>)>);

impl Renewal {
    /// In groups, one at least, of which none is larger than what one answer can hold.
    pub fn groups(mut self) -> Vec<Self> {
        let mut groups = Vec::new();
        while self.0.len() > LARGEST_GROUP {
            groups.push(Self(self.0.split_off(self.0.len() - LARGEST_GROUP)));
        }
        groups.push(self);
        groups
    }

    /// As the relay is asked.
    pub fn names(&self) -> Vec<HeldLease> {
        self.0.iter().map(|(held, _)| held.name()).collect()
    }

    /// All of it is lost.
    pub fn lose(&self) {
        for (held, _) in &self.0 {
            held.lose();
        }
    }
}

impl Leases {
    /// Takes what has just been leased. An older lease of the same identifier is lost by it.
    pub fn take(self: &Arc<Self>, leased: &LeasedIdentifier) -> Result<Taken, NotAWord> {
        let identifier = Identifier::parse(&leased.identifier)?;
        let valid = millis(leased.valid_millis);
        let held = Arc::new(Held {
            identifier: identifier.clone(),
            token: leased.token,
            end: watch::Sender::new(Instant::now() + usable(valid)),
            gone: CancellationToken::new(),
            running: Mutex::default(),
        });
        let older = self.with(|all| all.insert(identifier, held.clone()));
        if let Some(older) = older {
            older.lose();
        }
        self.period.send_if_modified(|now| {
            let sooner = period(valid) < *now;
            *now = period(valid).min(*now);
            sooner
        });
        let all = self.clone();
        Ok(Taken { held, all })
    }

    /// How often to renew, as it changes.
    pub fn period(&self) -> watch::Receiver<Duration> {
        self.period.subscribe()
    }

    /// All that is held, to be renewed.
    pub fn renewal(&self) -> Renewal {
        let held: Vec<Arc<Held>> = self.with(|all| all.values().cloned().collect());
        let running = |held: &Held| lock(&held.running).as_ref().map(|running| running.fetch);
        let with_fetch = held.into_iter().map(|held| {
            let fetch = running(&held);
            (held, fetch)
        });
        Renewal(with_fetch.collect())
    }

    /// What the relay answered to a renewal that was sent at `sent`: what it left out is lost.
    pub fn renewed(&self, renewal: &Renewal, sent: Instant, answer: Vec<RenewedLease>) {
        let mut answered: BTreeMap<(String, u64), RenewedLease> = answer
            .into_iter()
            .map(|lease| ((lease.identifier.clone(), lease.token), lease))
            .collect();
        let mut periods = BTreeSet::new();
        for (held, fetch) in &renewal.0 {
            let Some(lease) = answered.remove(&(held.identifier.to_string(), held.token)) else {
                held.lose();
                continue;
            };
            let valid = millis(lease.valid_millis);
            periods.insert(period(valid));
            held.end.send_replace(sent + usable(valid));
            // A grant is for the fetch that ran when the relay was asked. If another has begun
            // since, it came with a grant of its own, and gitd would refuse this one.
            match lock(&held.running).as_ref() {
                Some(running) if Some(running.fetch) == *fetch && !lease.grant.is_empty() => {
                    running.grants.send_replace(lease.grant.into());
                }
                _ => {}
            }
        }
        if let Some(shortest) = periods.pop_first() {
            self.period.send_if_modified(|now| {
                let other = *now != shortest;
                *now = shortest;
                other
            });
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<Identifier, Arc<Held>>) -> T) -> T {
        let mut held = lock(&self.held);
        let result = change(&mut held);
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("ngit_hunt_leases").set(held.len() as f64);
        result
    }
}

/// A lease that is renewed until this is dropped.
#[derive(Debug)]
pub struct Taken {
    held: Arc<Held>,
    all: Arc<Leases>,
}

impl std::ops::Deref for Taken {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.held
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.all.with(|all| {
            let mine = all.get(&self.held.identifier);
            if mine.is_some_and(|held| Arc::ptr_eq(held, &self.held)) {
                all.remove(&self.held.identifier);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leased(identifier: &str, token: u64) -> LeasedIdentifier {
        LeasedIdentifier {
            identifier: identifier.into(),
            token,
            valid_millis: 30_000,
            ..LeasedIdentifier::default()
        }
    }

    fn renewed(held: &Held, grant: &[u8]) -> RenewedLease {
        RenewedLease {
            identifier: held.identifier.to_string(),
            token: held.token,
            valid_millis: 30_000,
            grant: grant.to_vec(),
        }
    }

    /// How long until it is lost.
    async fn lasts(held: &Held) -> Duration {
        let from = Instant::now();
        held.lost().await;
        from.elapsed()
    }

    #[test]
    fn a_lease_is_used_up_to_a_margin() {
        let seconds = Duration::from_secs;
        assert_eq!(usable(seconds(60)), seconds(57));
        assert_eq!(usable(seconds(4)), seconds(3));
        assert_eq!(usable(seconds(0)), seconds(0));
        assert_eq!(period(seconds(30)), seconds(10));
        assert_eq!(period(seconds(0)), SHORTEST_PERIOD);
        assert_eq!(period(seconds(3600)), LONGEST_PERIOD);
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_before_the_relay_thinks_so_unless_renewed() {
        let all = Arc::new(Leases::default());
        let lease = all.take(&leased("a", 1)).unwrap();
        let sent = Instant::now();
        let renewal = all.renewal();
        tokio::time::sleep(Duration::from_secs(10)).await;
        // The answer took ten seconds: they are of the lease.
        all.renewed(&renewal, sent, vec![renewed(&lease, b"")]);
        assert_eq!(lasts(&lease).await, Duration::from_secs(17));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_out_is_lost_and_what_came_later_is_not() {
        let all = Arc::new(Leases::default());
        let (a, b) = (all.take(&leased("a", 1)), all.take(&leased("b", 2)));
        let (a, b) = (a.unwrap(), b.unwrap());
        let renewal = all.renewal();
        let c = all.take(&leased("c", 3)).unwrap();
        // An answer about another lease of the same identifier is none about this one.
        let mut other = renewed(&b, b"");
        other.token = 9;
        all.renewed(&renewal, Instant::now(), vec![renewed(&a, b""), other]);
        assert_eq!(lasts(&b).await, Duration::ZERO);
        assert_ne!(lasts(&a).await, Duration::ZERO);
        drop((a, b));
        assert_eq!(all.renewal().names(), [c.name()]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_lease_of_one_identifier_takes_the_place_of_the_earlier() {
        let all = Arc::new(Leases::default());
        let old = all.take(&leased("a", 1)).unwrap();
        let new = all.take(&leased("a", 2)).unwrap();
        assert_eq!(lasts(&old).await, Duration::ZERO);
        drop(old);
        assert_eq!(all.renewal().names(), [new.name()]);
        drop(new);
        assert!(all.renewal().names().is_empty());
    }

    #[test]
    fn a_grant_goes_to_the_fetch_it_is_for() {
        let all = Arc::new(Leases::default());
        let lease = all.take(&leased("a", 1)).unwrap();
        let renew = |renewal: &Renewal, grant: &[u8]| {
            all.renewed(renewal, Instant::now(), vec![renewed(&lease, grant)]);
        };
        let before = all.renewal();
        let (first, grants) = lease.fetching(1, "first".into());
        renew(&before, b"of no fetch");
        assert_eq!(*grants.borrow(), "first");
        let during = all.renewal();
        renew(&during, b"");
        assert_eq!(*grants.borrow(), "first");
        renew(&during, b"first again");
        assert_eq!(*grants.borrow(), "first again");
        drop(first);
        let (_second, grants) = lease.fetching(2, "second".into());
        renew(&during, b"first once more");
        assert_eq!(*grants.borrow(), "second");
    }

    #[test]
    fn no_group_is_too_large_and_none_is_left_out() {
        for count in [0, 1, 63, 64, 65, 128, 300] {
            let all = Arc::new(Leases::default());
            let held: Vec<Taken> = (0..count)
                .map(|n| all.take(&leased(&format!("x{n:03}"), n)).unwrap())
                .collect();
            let groups = all.renewal().groups();
            assert_eq!(groups.len(), held.len().div_ceil(LARGEST_GROUP).max(1));
            assert!(groups.iter().all(|group| group.0.len() <= LARGEST_GROUP));
            let mut tokens: Vec<u64> = groups
                .iter()
                .flat_map(|group| group.names().into_iter().map(|name| name.token))
                .collect();
            tokens.sort_unstable();
            assert_eq!(tokens, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_no_identifier_is_not_taken() {
        let all = Arc::new(Leases::default());
        assert!(all.take(&leased("a/b", 1)).is_err());
        assert!(all.renewal().names().is_empty());
    }
}
