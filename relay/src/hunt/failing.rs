//! Servers that keep failing for reasons of their own: set aside for minutes at first, then probed by
//! one request, and set aside for twice as long each time that this fails too. Pure.

use std::time::Duration;

use crate::clock::Moment;

/// A server is set aside when it failed so often in a row …
const FAILURES: u32 = 10;
/// … over so long.
const FAILING_FOR: Duration = Duration::from_secs(10 * 60);
/// A failure is forgotten when no other followed for so long.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// How long a server is set aside the first time.
const FIRST: Duration = Duration::from_secs(5 * 60);
/// After how long a server is probed again when nothing came of the probe.
const PROBED_AGAIN: Duration = Duration::from_secs(60);

/// A server that is set aside.
#[derive(Debug)]
struct SetAside {
    until: Moment,
    /// How often in a row.
    times: u32,
    /// How long the last time.
    lasts: Duration,
    /// Its time is over, and that has been told.
    is_due: bool,
    /// The request that probes it.
    probe: Option<u64>,
}

/// A server that fails, or is set aside for it.
#[derive(Debug)]
pub struct FailingServer {
    first: Moment,
    last: Moment,
    count: u32,
    aside: Option<SetAside>,
}

impl FailingServer {
    /// One that fails for the first time.
    pub fn new(now: Moment) -> Self {
        Self {
            first: now,
            last: now,
            count: 0,
            aside: None,
        }
    }

    /// When it failed last.
    pub fn last(&self) -> Moment {
        self.last
    }

    /// A request failed for its own reasons; `longest`: for how long it may be set aside. Gives for how
    /// long it is, if it is by this.
    pub fn fails(&mut self, now: Moment, longest: Duration) -> Option<Duration> {
        self.count = self.count.saturating_add(1);
        self.last = now;
        let times = match &self.aside {
            // One that was asked before it was set aside.
            Some(aside) if !aside.is_due => return None,
            Some(aside) => aside.times,
            None if longest.is_zero() => return None,
            None if self.count >= FAILURES && now.since(self.first) >= FAILING_FOR => 0,
            None => return None,
        };
        let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
        let lasts = FIRST.saturating_mul(factor).min(longest);
        self.aside = Some(SetAside {
            until: now + lasts,
            times: times.saturating_add(1),
            lasts,
            is_due: false,
            probe: None,
        });
        Some(lasts)
    }

    /// A request begins: if its time is over, this one probes it.
    pub fn asked(&mut self, fetch: u64) {
        if let Some(aside) = &mut self.aside
            && aside.is_due
        {
            aside.probe.get_or_insert(fetch);
        }
    }

    /// A request ended of which nothing is known. If it was the probe, there is another later.
    pub fn unknown(&mut self, fetch: u64, now: Moment) {
        if let Some(aside) = &mut self.aside
            && aside.probe == Some(fetch)
        {
            aside.probe = None;
            aside.is_due = false;
            aside.until = now + PROBED_AGAIN;
        }
    }

    /// Whether its time is over, told once.
    pub fn is_due(&mut self, now: Moment) -> bool {
        self.aside.as_mut().is_some_and(|aside| {
            let is_due = !aside.is_due && aside.until <= now;
            aside.is_due |= is_due;
            is_due
        })
    }

    /// Whether it is not to be asked: its time is not over, or another request probes it.
    pub fn is_aside(&self, now: Moment) -> bool {
        let aside = self.aside.as_ref();
        aside.is_some_and(|aside| aside.until > now || aside.probe.is_some())
    }

    /// Until when it is set aside, and how often in a row it was; while it is probed until then, which
    /// is over.
    pub fn set_aside(&self) -> Option<(Moment, u32)> {
        let aside = self.aside.as_ref();
        aside.map(|aside| (aside.until, aside.times))
    }

    /// When nobody remembers it any more.
    pub fn forgotten_at(&self) -> Moment {
        match &self.aside {
            Some(aside) => aside.until + aside.lasts.max(REMEMBERED),
            None => self.last + REMEMBERED,
        }
    }

    /// When time alone changes something.
    pub fn next_moment(&self) -> Moment {
        match &self.aside {
            Some(aside) if !aside.is_due => aside.until,
            _ => self.forgotten_at(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::from_millis(1_000_000_000);
    const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);

    /// One that has just been set aside for the first time, and when.
    fn set_aside() -> (FailingServer, Moment) {
        let mut server = FailingServer::new(START);
        let mut now = START;
        for _ in 0..FAILURES - 1 {
            assert_eq!(server.fails(now, LONGEST), None);
            now = now + 2 * FAILING_FOR / FAILURES;
        }
        assert_eq!(server.fails(now, LONGEST), Some(FIRST));
        (server, now)
    }

    #[test]
    fn it_is_set_aside_longer_each_time_up_to_the_longest() {
        let (mut server, mut now) = set_aside();
        for minutes in [10, 20, 40, 80, 160, 320, 640, 720, 720] {
            let (until, _) = server.set_aside().unwrap();
            assert!(server.is_aside(now) && !server.is_aside(until));
            assert!(server.is_due(until) && !server.is_due(until), "told once");
            now = until;
            server.asked(7);
            let lasts = server.fails(now, LONGEST);
            assert_eq!(lasts, Some(Duration::from_secs(60 * minutes)));
        }
        assert_eq!(server.set_aside().unwrap().1, 10);
    }

    #[test]
    fn one_request_probes_it() {
        let (mut server, now) = set_aside();
        // Asked before, answered late: it is set aside once for that.
        server.asked(1);
        assert_eq!(server.fails(now, LONGEST), None);
        let until = now + FIRST;
        assert!(server.is_due(until));
        server.asked(2);
        server.asked(3);
        assert!(server.is_aside(until), "somebody probes it");
        server.unknown(3, until);
        assert!(server.is_aside(until));
        server.unknown(2, until);
        assert!(server.is_aside(until) && !server.is_due(until));
        assert_eq!(server.next_moment(), until + PROBED_AGAIN);
        assert!(server.is_due(until + PROBED_AGAIN));
        assert!(!server.is_aside(until + PROBED_AGAIN));
    }

    #[test]
    fn it_may_be_forbidden_to_set_servers_aside() {
        let mut server = FailingServer::new(START);
        for n in 0..30 {
            let now = START + Duration::from_secs(100 * n);
            assert_eq!(server.fails(now, Duration::ZERO), None);
            assert!(!server.is_due(now) && !server.is_aside(now));
        }
    }
}
