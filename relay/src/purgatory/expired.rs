//! Ids that expired, so that sync does not bring them back over and over: each is refused for a while,
//! which is longer each time it expires again, and not at all once something says that its data may be
//! there now. Pure: every method is told the time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use dashmap::DashMap;
use grasp_proto::words::{EventId, Identifier};

use super::without;
use crate::clock::Moment;

/// How many are remembered; those that expired first are forgotten first.
const REMEMBERED: usize = 100_000;
/// Identifiers of one event that count.
const IDENTIFIERS: usize = 8;
/// How long an id is refused the first time, doubled each further one …
const REFUSED_FIRST: Duration = Duration::from_secs(3 * 60 * 60);
/// … to this.
const REFUSED_LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long an id is refused that has expired so often.
fn refused_for(times: u32) -> Duration {
    let doublings = times.saturating_sub(1);
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    REFUSED_FIRST.saturating_mul(factor).min(REFUSED_LONGEST)
}

/// An id that expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiredId {
    /// How often.
    pub times: u32,
    /// Until when sync may not bring it back.
    pub until: Moment,
    /// What it waited under.
    pub identifiers: BTreeSet<Identifier>,
}

/// A bounded memory of ids.
#[derive(Debug, Default)]
pub struct Expired {
    known: HashMap<EventId, (u64, ExpiredId)>,
    order: BTreeMap<u64, EventId>,
    next: u64,
    /// Those that are refused, as far as is known, by what they waited under.
    refused: DashMap<Identifier, BTreeSet<EventId>>,
}

impl Expired {
    /// An id expires. Gives what is known of it now, and the id that is forgotten for it.
    pub fn expires(
        &mut self,
        id: EventId,
        identifiers: impl IntoIterator<Item = Identifier>,
        now: Moment,
    ) -> (ExpiredId, Option<EventId>) {
        let times = self.known.get(&id).map_or(0, |(_, known)| known.times);
        let times = times.saturating_add(1);
        let known = ExpiredId {
            times,
            until: now + refused_for(times),
            identifiers: identifiers.into_iter().take(IDENTIFIERS).collect(),
        };
        let forgotten = self.remember(id, known.clone());
        (known, forgotten)
    }

    /// What was known of an id, in a version that knew only when it expired: the first time.
    pub fn of_before(at: Moment) -> ExpiredId {
        ExpiredId {
            times: 1,
            until: at + refused_for(1),
            identifiers: BTreeSet::new(),
        }
    }

    /// Remembers what is known of an id; gives the one that is forgotten for it.
    pub fn remember(&mut self, id: EventId, known: ExpiredId) -> Option<EventId> {
        self.forget(&id);
        for identifier in &known.identifiers {
            self.refused
                .entry(identifier.clone())
                .or_default()
                .insert(id);
        }
        self.next += 1;
        self.known.insert(id, (self.next, known));
        self.order.insert(self.next, id);
        if self.known.len() <= REMEMBERED {
            return None;
        }
        let oldest = self.order.first_key_value().map(|(_, id)| *id)?;
        self.forget(&oldest);
        Some(oldest)
    }

    fn forget(&mut self, id: &EventId) {
        if let Some((number, known)) = self.known.remove(id) {
            self.order.remove(&number);
            for identifier in known.identifiers {
                without(&self.refused, identifier, id);
            }
        }
    }

    /// Whether sync may not bring an id back.
    pub fn is_refused(&self, id: &EventId, now: Moment) -> bool {
        let known = self.known.get(id);
        known.is_some_and(|(_, known)| known.until > now)
    }

    /// Something says that the data of what waited under an identifier may be there now: gives the ids
    /// that were refused and are no more, with what is known of them. That they expired is remembered.
    pub fn data_may_be_there(
        &mut self,
        identifier: &Identifier,
        now: Moment,
    ) -> Vec<(EventId, ExpiredId)> {
        let Some((_, ids)) = self.refused.remove(identifier) else {
            return Vec::new();
        };
        let mut freed = Vec::new();
        for id in ids {
            let Some((_, known)) = self.known.get_mut(&id) else {
                continue;
            };
            let was_refused = known.until > now;
            known.until = known.until.min(now);
            for other in &known.identifiers {
                without(&self.refused, other.clone(), &id);
            }
            if was_refused {
                freed.push((id, known.clone()));
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_millis(1_000_000);

    fn id(n: usize) -> EventId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
        EventId::from_bytes(bytes)
    }

    fn named(text: &str) -> Identifier {
        Identifier::parse(text).unwrap()
    }

    #[test]
    fn it_is_refused_longer_each_time() {
        let mut expired = Expired::default();
        let mut now = NOW;
        for hours in [3, 6, 12, 24, 48, 96, 168, 168] {
            expired.expires(id(1), [named("x")], now);
            let until = now + Duration::from_secs(60 * 60 * hours);
            let before = Moment::from_millis(until.as_millis() - 1);
            assert!(expired.is_refused(&id(1), before), "{hours}");
            assert!(!expired.is_refused(&id(1), until), "{hours}");
            now = until;
        }
    }

    #[test]
    fn it_is_let_in_when_its_data_may_be_there_and_the_count_goes_on() {
        let mut expired = Expired::default();
        expired.expires(id(1), [named("x"), named("y")], NOW);
        expired.expires(id(2), [named("y")], NOW);
        let freed = expired.data_may_be_there(&named("x"), NOW);
        assert_eq!((freed.len(), freed[0].0, freed[0].1.times), (1, id(1), 1));
        assert!(!expired.is_refused(&id(1), NOW) && expired.is_refused(&id(2), NOW));
        assert!(expired.data_may_be_there(&named("x"), NOW).is_empty());
        expired.expires(id(1), [named("x")], NOW);
        assert!(expired.is_refused(&id(1), NOW + Duration::from_secs(5 * 60 * 60)));
        assert_eq!(expired.data_may_be_there(&named("y"), NOW).len(), 1);
        expired.data_may_be_there(&named("x"), NOW);
        assert!(expired.refused.is_empty());
    }

    #[test]
    fn it_is_bounded_and_the_oldest_go() {
        let mut expired = Expired::default();
        for n in 0..REMEMBERED {
            assert_eq!(expired.expires(id(n), [named("x")], NOW).1, None);
        }
        assert_eq!(expired.expires(id(0), [named("x")], NOW).1, None);
        assert_eq!(expired.expires(id(REMEMBERED), [], NOW).1, Some(id(1)));
        assert!(!expired.is_refused(&id(1), NOW) && expired.is_refused(&id(0), NOW));
        assert_eq!(
            expired.data_may_be_there(&named("x"), NOW).len(),
            REMEMBERED - 1
        );
    }
}
