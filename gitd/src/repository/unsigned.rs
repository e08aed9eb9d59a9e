//! The budget of what nobody has signed for yet: bytes in all, and of each client.
//!
//! What counts is what lies on disk, as the sidecars of the placeholders have it (`staging.rs`), and
//! what uploads that run have reserved, so that two at once never have more than there is. It is
//! counted anew, view by view, whenever a sidecar has changed, and once at the start: nothing is
//! remembered but what is on disk. What is signed for, or goes, is not counted any more.
//!
//! Clients are told apart by a hash of their address under a key that stays in the data directory; of
//! IPv6 by the first 64 bits, which one subscriber has. No address is kept.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    io::Write,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use grasp_proto::words::Address;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::{staging, sync_directory};

/// What each placeholder counts at least: it takes files, a repository perhaps, and memory of the
/// relay's.
pub const PLACEHOLDER: u64 = 64 * 1024;

/// How many bytes may be there.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of all clients together.
    pub all: u64,
    /// Of one.
    pub of_one: u64,
}

/// Who uploaded something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Payer([u8; 16]);

impl Payer {
    /// From its hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = Some(text).filter(|text| text.len() == 32)?;
        u128::from_str_radix(digits, 16)
            .ok()
            .map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// There is no more room. The text is for the git user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    /// For anybody.
    #[error(
        "uploads that nobody has signed for yet fill this server's room for them: publish the event \
         first and push then, or try later"
    )]
    All,
    /// For this client.
    #[error(
        "what is uploaded from your address and nobody has signed for yet may take {0} bytes: publish \
         the event first and push then, or try later"
    )]
    OfOne(u64),
}

impl Over {
    fn limit(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::OfOne(_) => "client",
        }
    }
}

/// Reads the key that addresses are hashed with; makes it at the first start.
pub fn client_key(path: &Path) -> io::Result<[u8; 32]> {
    if let Ok(kept) = fs::read(path)
        && let Ok(key) = <[u8; 32]>::try_from(kept)
    {
        return Ok(key);
    }
    let key: [u8; 32] = rand::random();
    let directory = path.parent().unwrap_or(Path::new("/"));
    // Nobody else may read it.
    let mut file = tempfile::Builder::new()
        .prefix(".grasp-")
        .tempfile_in(directory)?;
    file.write_all(&key)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_directory(directory)?;
    Ok(key)
}

/// What is counted. Every placeholder counts, so the limits bound how much this holds.
#[derive(Debug, Default)]
struct Counted {
    all: u64,
    of_each: HashMap<Payer, u64>,
    views: HashMap<Address, BTreeMap<Payer, u64>>,
}

impl Counted {
    fn add(&mut self, payer: Payer, bytes: u64) {
        if bytes > 0 {
            self.all += bytes;
            *self.of_each.entry(payer).or_default() += bytes;
        }
    }

    fn take(&mut self, payer: Payer, bytes: u64) {
        self.all -= bytes;
        if let Some(count) = self.of_each.get_mut(&payer) {
            *count -= bytes;
            if *count == 0 {
                self.of_each.remove(&payer);
            }
        }
    }

    fn set(&mut self, address: &Address, charges: BTreeMap<Payer, u64>) {
        let before = self.views.remove(address).unwrap_or_default();
        for (payer, bytes) in before {
            self.take(payer, bytes);
        }
        for (payer, bytes) in &charges {
            self.add(*payer, *bytes);
        }
        if !charges.is_empty() {
            self.views.insert(address.clone(), charges);
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn show(&self) {
        metrics::gauge!("ngit_git_unsigned_bytes").set(self.all as f64);
    }
}

/// The count. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Unsigned {
    limits: Limits,
    key: Arc<[u8; 32]>,
    counted: Arc<Mutex<Counted>>,
}

impl Unsigned {
    /// Nothing is counted yet.
    pub fn new(limits: Limits, key: [u8; 32]) -> Self {
        let unsigned = Self {
            limits,
            key: Arc::new(key),
            counted: Arc::default(),
        };
        unsigned.counted().show();
        for limit in [Over::All, Over::OfOne(0)].map(Over::limit) {
            metrics::counter!("ngit_git_unsigned_refused_total", "limit" => limit).increment(0);
        }
        unsigned
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose count a client's uploads are in. Those without an address are one.
    pub fn payer(&self, client: Option<IpAddr>) -> Payer {
        let mut hash =
            Hmac::<Sha256>::new_from_slice(&*self.key).expect("HMAC takes keys of any length");
        match client.map(|address| address.to_canonical()) {
            None => {}
            Some(IpAddr::V4(address)) => hash.update(&address.octets()),
            Some(IpAddr::V6(address)) => hash.update(&address.octets()[..8]),
        }
        let digest = hash.finalize().into_bytes();
        let mut payer = Payer::default();
        payer.0.copy_from_slice(&digest[..16]);
        payer
    }

    /// Room for so many bytes, until it is dropped.
    pub fn reserve(&self, payer: Payer, bytes: u64) -> Result<Reservation, Over> {
        let mut reservation = Reservation {
            unsigned: self.clone(),
            payer,
            bytes: 0,
        };
        reservation.cover(bytes)?;
        Ok(reservation)
    }

    fn grow(&self, payer: Payer, bytes: u64) -> Result<(), Over> {
        let mut counted = self.counted();
        let fits = |has: u64, limit: u64| has.checked_add(bytes).is_some_and(|sum| sum <= limit);
        let own = counted.of_each.get(&payer).copied().unwrap_or_default();
        if !fits(own, self.limits.of_one) {
            return Err(Over::OfOne(self.limits.of_one));
        }
        if !fits(counted.all, self.limits.all) {
            return Err(Over::All);
        }
        counted.add(payer, bytes);
        counted.show();
        Ok(())
    }

    /// Counts what is staged in a view as it is now. Under the view's lock.
    pub fn recount(&self, address: &Address, view: &Path) -> io::Result<()> {
        let charges = staging::charges(view)?;
        let mut counted = self.counted();
        counted.set(address, charges);
        counted.show();
        Ok(())
    }

    /// The view has gone.
    pub fn nothing_in(&self, address: &Address) {
        let mut counted = self.counted();
        counted.set(address, BTreeMap::new());
        counted.show();
    }
}

/// Room that an upload has, whether it has used it or not.
#[derive(Debug)]
pub struct Reservation {
    unsigned: Unsigned,
    payer: Payer,
    bytes: u64,
}

/// How much more is reserved than is needed at once, if there is as much.
const STEP: u64 = 1024 * 1024;

impl Reservation {
    /// Who pays.
    pub fn payer(&self) -> Payer {
        self.payer
    }

    /// Sees to it that there is room for so many bytes.
    pub fn cover(&mut self, bytes: u64) -> Result<(), Over> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        if self.unsigned.grow(self.payer, more + STEP).is_ok() {
            self.bytes += more + STEP;
            return Ok(());
        }
        let grown = self.unsigned.grow(self.payer, more);
        match &grown {
            Ok(()) => self.bytes += more,
            Err(over) => {
                let limit = over.limit();
                metrics::counter!("ngit_git_unsigned_refused_total", "limit" => limit).increment(1);
            }
        }
        grown
    }

    /// What it was for is on disk: counted as that from now on. Under the view's lock.
    pub fn spent(mut self, address: &Address, view: &Path) -> io::Result<()> {
        let charges = staging::charges(view)?;
        let mut counted = self.unsigned.counted();
        counted.take(self.payer, self.bytes);
        counted.set(address, charges);
        counted.show();
        drop(counted);
        self.bytes = 0;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut counted = self.unsigned.counted();
            counted.take(self.payer, self.bytes);
            counted.show();
        }
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::{EventId, Identifier, Npub, Oid, RepoId};

    use super::*;

    const LIMITS: Limits = Limits {
        all: 10 * STEP,
        of_one: 4 * STEP,
    };

    fn address(name: &str) -> Address {
        Address::prs(RepoId {
            owner: Npub::from_bytes([1; 32]),
            identifier: Identifier::parse(name).unwrap(),
        })
    }

    fn client(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn clients_are_told_apart_and_not_told() {
        let unsigned = Unsigned::new(LIMITS, [7; 32]);
        let of = |text| unsigned.payer(Some(client(text)));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        let other_key = Unsigned::new(LIMITS, [8; 32]);
        assert_ne!(of("192.0.2.1"), other_key.payer(Some(client("192.0.2.1"))));
        let text = of("192.0.2.1").to_string();
        assert_eq!(Payer::from_hex(&text), Some(of("192.0.2.1")));
    }

    #[test]
    fn the_key_stays() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = client_key(&path).unwrap();
        assert_eq!(client_key(&path).unwrap(), key);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_at_once_have_no_more_than_there_is() {
        let unsigned = Unsigned::new(LIMITS, [7; 32]);
        let (one, two) = (
            unsigned.payer(Some(client("192.0.2.1"))),
            unsigned.payer(Some(client("192.0.2.2"))),
        );
        let mut first = unsigned.reserve(one, 2 * STEP).unwrap();
        let second = unsigned.reserve(one, STEP).unwrap();
        // The first had a step more than it needed.
        assert_eq!(first.cover(3 * STEP), Ok(()));
        assert_eq!(first.cover(3 * STEP + 1), Err(Over::OfOne(4 * STEP)));
        drop(second);
        assert_eq!(first.cover(3 * STEP + 1), Ok(()));
        let others: Vec<_> = (3..10)
            .map(|n| unsigned.payer(Some(client(&format!("192.0.2.{n}")))))
            .map_while(|payer| unsigned.reserve(payer, 4 * STEP).ok())
            .collect();
        assert_eq!(others.len(), 1);
        let refused = unsigned.reserve(two, 4 * STEP).unwrap_err();
        assert_eq!(refused, Over::All);
        drop((first, others));
        assert_eq!(unsigned.counted().all, 0);
        assert!(unsigned.counted().of_each.is_empty());
    }

    #[test]
    fn what_is_on_disk_counts_until_it_goes() {
        let unsigned = Unsigned::new(LIMITS, [7; 32]);
        let (one, two) = (
            unsigned.payer(Some(client("192.0.2.1"))),
            unsigned.payer(Some(client("192.0.2.2"))),
        );
        let directory = tempfile::tempdir().unwrap();
        let (view, address) = (directory.path(), address("x"));
        fs::create_dir_all(view.join("objects/pack")).unwrap();
        let pack = format!("pack-{}", "ab".repeat(20));
        fs::write(view.join(format!("objects/pack/{pack}.pack")), [0; 1000]).unwrap();
        let events: Vec<EventId> = (1..=3).map(|n| EventId::from_bytes([n; 32])).collect();
        let reservation = unsigned.reserve(one, 1000).unwrap();
        // One upload for two placeholders is there once; that of another client has a pack, too.
        let commit = |n| Oid::from_bytes([n; 20]);
        staging::note(view, &events[0], commit(1), Some(&pack), one).unwrap();
        staging::note(view, &events[1], commit(1), Some(&pack), one).unwrap();
        staging::note(view, &events[2], commit(1), None, two).unwrap();
        reservation.spent(&address, view).unwrap();
        let count = |unsigned: &Unsigned| {
            let counted = unsigned.counted();
            let of = |payer| counted.of_each.get(&payer).copied().unwrap_or_default();
            (counted.all, of(one), of(two))
        };
        let (mine, theirs) = (2 * PLACEHOLDER + 1000, PLACEHOLDER);
        assert_eq!(count(&unsigned), (mine + theirs, mine, theirs));
        // Another start finds the same.
        let again = Unsigned::new(LIMITS, [7; 32]);
        again.recount(&address, view).unwrap();
        assert_eq!(count(&again), count(&unsigned));
        staging::forget(view, &events[0]).unwrap();
        unsigned.recount(&address, view).unwrap();
        let mine = PLACEHOLDER + 1000;
        assert_eq!(count(&unsigned), (mine + theirs, mine, theirs));
        unsigned.nothing_in(&address);
        assert_eq!(count(&unsigned), (0, 0, 0));
        // One that brings another commit for an event pays for its own, and is told apart.
        for (n, by) in [(1, two), (2, one), (3, one), (3, one)] {
            staging::note(view, &events[2], commit(n), None, by).unwrap();
        }
        let brought = |payer| staging::brought_by(view, payer).unwrap();
        assert_eq!(brought(one), [(events[1], 1), (events[2], 2)].into());
        assert_eq!(brought(two), [(events[2], 1)].into());
        let packs = |event| staging::packs(view, event).unwrap().unwrap();
        assert_eq!((packs(&events[1]).len(), packs(&events[2]).len()), (1, 0));
    }
}
