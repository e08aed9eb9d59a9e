//! How much one remote relay may bring in an hour: one that makes up events must not fill the disk.
//! Pure: every method is told the time.

use std::{collections::HashMap, time::Duration};

use crate::clock::Moment;

const HOUR: Duration = Duration::from_secs(60 * 60);
/// New events that are taken from one remote relay in an hour: more than a large one holds of all
/// that a service like this one has,
const EVENTS: u64 = 100_000;
/// and their bytes.
const BYTES: u64 = 512 << 20;
/// Remote relays that are counted one by one; what is more than that is counted as one.
const SOURCES: usize = 8_192;

#[derive(Debug)]
struct Taken {
    since: Moment,
    events: u64,
    bytes: u64,
}

/// What each remote relay brought in its current hour.
#[derive(Debug, Default)]
pub struct Hourly {
    /// At most `SOURCES`, and one for all others.
    sources: HashMap<u64, Taken>,
}

impl Hourly {
    fn key(&self, source: u64) -> u64 {
        match self.sources.contains_key(&source) || self.sources.len() < SOURCES {
            true => source,
            false => u64::MAX,
        }
    }

    /// Whether more is taken from a remote relay.
    pub fn has_room(&self, source: u64, now: Moment) -> bool {
        let taken = self.sources.get(&self.key(source));
        taken.is_none_or(|taken| {
            taken.since + HOUR <= now || (taken.events < EVENTS && taken.bytes < BYTES)
        })
    }

    /// A new event was taken from a remote relay.
    pub fn took(&mut self, source: u64, bytes: usize, now: Moment) {
        let fresh = || Taken {
            since: now,
            events: 0,
            bytes: 0,
        };
        let key = self.key(source);
        let taken = self.sources.entry(key).or_insert_with(fresh);
        if taken.since + HOUR <= now {
            *taken = fresh();
        }
        taken.events += 1;
        taken.bytes = taken.bytes.saturating_add(bytes as u64);
        if taken.events == EVENTS || (taken.bytes >= BYTES && taken.bytes - (bytes as u64) < BYTES)
        {
            tracing::warn!("a remote relay brought as much as is taken from one in an hour");
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        self.sources.retain(|_, taken| taken.since + HOUR > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(1_000_000 + seconds * 1_000)
    }

    #[test]
    fn so_much_an_hour_from_each() {
        let mut hourly = Hourly::default();
        for _ in 0..EVENTS {
            assert!(hourly.has_room(1, at(0)));
            hourly.took(1, 100, at(0));
        }
        assert!(!hourly.has_room(1, at(3_599)) && hourly.has_room(2, at(0)));
        assert!(hourly.has_room(1, at(3_600)));
        hourly.took(1, 100, at(3_600));
        hourly.took(2, usize::try_from(BYTES).unwrap(), at(3_600));
        assert!(hourly.has_room(1, at(3_600)) && !hourly.has_room(2, at(3_600)));
        hourly.tick(at(7_200));
        assert!(hourly.sources.is_empty());
    }

    #[test]
    fn those_beyond_count_are_counted_as_one() {
        let mut hourly = Hourly::default();
        for source in 0..2 * SOURCES as u64 {
            hourly.took(source, 1, at(0));
        }
        assert_eq!(hourly.sources.len(), SOURCES + 1);
        hourly.took(SOURCES as u64, usize::try_from(BYTES).unwrap(), at(0));
        assert!(!hourly.has_room(SOURCES as u64 + 1, at(0)));
        assert!(hourly.has_room(0, at(0)));
    }
}
