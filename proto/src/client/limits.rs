//! What one client may take: of something that comes again with time, and of places.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Clients remembered at once by one [`Rates`]. Beyond it all are forgotten, and begin anew: who can
/// send from so many addresses is not held up by a limit for each.
const REMEMBERED: usize = 1 << 16;

/// One client, as limits tell clients apart: an IPv4 address, or a /64 of IPv6, which is what one
/// line of a provider's gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

impl Client {
    /// The one behind an address.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Ipv6Addr::from_bits(network).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// There is nothing left for this client until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// How long until it may ask again.
    pub wait: Duration,
}

/// So much in so much time.
#[derive(Debug, Clone, Copy)]
struct Rate {
    most: f64,
    per: Duration,
}

impl Rate {
    #[allow(clippy::cast_precision_loss)]
    fn new(most: u64, per: Duration) -> Self {
        let most = most as f64;
        Self { most, per }
    }

    /// What is filled in a second.
    fn speed(self) -> f64 {
        self.most / self.per.as_secs_f64()
    }
}

/// What is left of something that fills again with time, up to what may be taken in all of it. Starts
/// full.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Allowance {
    /// `most` in any time of length `per`.
    pub fn new(most: u64, per: Duration, now: Instant) -> Self {
        Self::full(Rate::new(most, per), now)
    }

    fn full(rate: Rate, at: Instant) -> Self {
        let left = rate.most;
        Self { rate, left, at }
    }

    fn filled(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + passed * self.rate.speed()).min(self.rate.most)
    }

    /// Whether there is anything left, for what is only known afterwards.
    pub fn ask(&mut self, now: Instant) -> Result<(), Refused> {
        self.left = self.filled(now);
        self.at = now;
        if self.left >= 1.0 {
            return Ok(());
        }
        let wait = (1.0 - self.left) / self.rate.speed();
        Err(Refused {
            wait: Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX),
        })
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Refused> {
        self.ask(now)?;
        self.left -= 1.0;
        Ok(())
    }

    /// Takes what was used, even if it is more than was left: it is then owed, up to as much as may
    /// be saved up.
    #[allow(clippy::cast_precision_loss)]
    pub fn charge(&mut self, used: u64, now: Instant) {
        self.left = (self.filled(now) - used as f64).max(-self.rate.most);
        self.at = now;
    }
}

/// An [`Allowance`] for each client.
#[derive(Debug)]
pub struct Rates {
    rate: Rate,
    /// Bounded by [`REMEMBERED`]; those that are full again are dropped as new ones come.
    allowances: Mutex<HashMap<Client, Allowance>>,
}

impl Rates {
    /// At most `most` in any time of length `per`; `None`: no limit.
    pub fn new(most: u64, per: Duration) -> Option<Self> {
        (most > 0).then(|| Self {
            rate: Rate::new(most, per),
            allowances: Mutex::default(),
        })
    }

    fn of<T>(&self, client: Client, now: Instant, change: impl FnOnce(&mut Allowance) -> T) -> T {
        let allowances = self.allowances.lock();
        let mut allowances = allowances.unwrap_or_else(PoisonError::into_inner);
        if allowances.len() >= REMEMBERED && !allowances.contains_key(&client) {
            allowances.retain(|_, allowance| allowance.filled(now) < self.rate.most);
            // Else every further client would look through all of them again.
            if allowances.len() > REMEMBERED / 2 {
                allowances.clear();
            }
        }
        let full = || Allowance::full(self.rate, now);
        change(allowances.entry(client).or_insert_with(full))
    }

    /// [`Allowance::take`] of this client's.
    pub fn take(&self, client: Client, now: Instant) -> Result<(), Refused> {
        self.of(client, now, |allowance| allowance.take(now))
    }

    /// [`Allowance::ask`] of this client's.
    pub fn ask(&self, client: Client, now: Instant) -> Result<(), Refused> {
        self.of(client, now, |allowance| allowance.ask(now))
    }

    /// [`Allowance::charge`] to this client's.
    pub fn charge(&self, client: Client, used: u64, now: Instant) {
        self.of(client, now, |allowance| allowance.charge(used, now));
    }
}

/// Places, of which one client may have so many at once.
#[derive(Debug)]
pub struct Seats {
    most: usize,
    /// Bounded by the places that are taken.
    taken: Mutex<HashMap<Client, usize>>,
}

impl Seats {
    /// At most `most` for one client; `None`: no limit.
    pub fn new(most: usize) -> Option<Arc<Self>> {
        (most > 0).then(|| {
            Arc::new(Self {
                most,
                taken: Mutex::default(),
            })
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, until it is dropped; `None`: the client has all it may have.
    pub fn take(self: &Arc<Self>, client: Client) -> Option<Seat> {
        let mut taken = self.taken();
        match taken.entry(client) {
            Entry::Occupied(entry) if *entry.get() >= self.most => return None,
            Entry::Occupied(mut entry) => *entry.get_mut() += 1,
            Entry::Vacant(entry) => {
                entry.insert(1);
            }
        }
        Some(Seat {
            seats: self.clone(),
            client,
        })
    }
}

/// A client's place.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    client: Client,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        if let Entry::Occupied(mut entry) = taken.entry(self.client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(text: &str) -> Client {
        Client::of(text.parse().unwrap())
    }

    #[test]
    fn a_client_is_an_address_or_a_network_of_ipv6() {
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1:2"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
    }

    #[test]
    fn what_is_taken_comes_again_with_time_and_is_each_clients_own() {
        let rates = Rates::new(60, Duration::from_secs(60)).unwrap();
        let (one, two, start) = (client("192.0.2.1"), client("192.0.2.2"), Instant::now());
        for _ in 0..60 {
            rates.take(one, start).unwrap();
        }
        let refused = rates.take(one, start).unwrap_err();
        assert_eq!(refused.wait, Duration::from_secs(1));
        rates.take(two, start).unwrap();
        let later = start + Duration::from_secs(2);
        rates.take(one, later).unwrap();
        rates.take(one, later).unwrap();
        rates.take(one, later).unwrap_err();
        let much_later = start + Duration::from_secs(6_000);
        for _ in 0..60 {
            rates.take(one, much_later).unwrap();
        }
        rates.take(one, much_later).unwrap_err();
    }

    #[test]
    fn what_is_known_afterwards_is_owed() {
        let rates = Rates::new(1_000, Duration::from_secs(10)).unwrap();
        let (one, start) = (client("192.0.2.1"), Instant::now());
        rates.ask(one, start).unwrap();
        rates.charge(one, 1_500, start);
        let refused = rates.ask(one, start).unwrap_err();
        assert!(refused.wait > Duration::from_secs(5) && refused.wait < Duration::from_secs(6));
        rates.ask(one, start + Duration::from_secs(6)).unwrap();
        rates.charge(one, u64::MAX, start + Duration::from_secs(6));
        let paid = start + Duration::from_secs(6 + 11);
        rates.ask(one, paid).unwrap();
    }

    #[test]
    fn nobody_is_remembered_for_ever() {
        let rates = Rates::new(2, Duration::from_secs(1)).unwrap();
        let start = Instant::now();
        let address = |n: usize| Client::of(Ipv6Addr::from_bits((n as u128) << 64).into());
        for n in 0..3 * REMEMBERED {
            rates.take(address(n), start).unwrap();
            assert!(rates.allowances.lock().unwrap().len() <= REMEMBERED);
        }
        let later = start + Duration::from_secs(5);
        for n in 0..=REMEMBERED {
            rates.take(address(n), later).unwrap();
        }
    }

    #[test]
    fn places_are_given_back() {
        let seats = Seats::new(2).unwrap();
        let (one, two) = (client("192.0.2.1"), client("192.0.2.2"));
        let first = seats.take(one).unwrap();
        let second = seats.take(one).unwrap();
        assert!(seats.take(one).is_none());
        let third = seats.take(two).unwrap();
        drop(second);
        let again = seats.take(one).unwrap();
        drop((first, again, third));
        assert!(seats.taken().is_empty());
    }

    #[test]
    fn nothing_is_no_limit() {
        assert!(Rates::new(0, Duration::from_secs(1)).is_none());
        assert!(Seats::new(0).is_none());
    }

    proptest! {
        #[test]
        fn no_client_takes_more_than_it_may(
            most in 1_u64..50,
            steps in prop::collection::vec(0_u64..2_000, 1..200),
        ) {
            let rates = Rates::new(most, Duration::from_secs(1)).unwrap();
            let (one, start) = (client("192.0.2.1"), Instant::now());
            let mut now = start;
            let mut taken = 0;
            for step in steps {
                now += Duration::from_millis(step);
                if rates.take(one, now).is_ok() {
                    taken += 1;
                }
            }
            let passed = now.saturating_duration_since(start).as_secs_f64();
            #[allow(clippy::cast_precision_loss)]
            let allowed = most as f64 * (1.0 + passed) + 1e-6;
            prop_assert!(f64::from(taken) <= allowed);
        }
    }
}
