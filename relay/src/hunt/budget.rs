//! What remote domains are asked: 5 requests at once, 30 a minute (sliding), of all workers together;
//! in turn, for the identifiers that wait. Pure: every method is told the time.
//!
//! A place that becomes free is kept for those who wait longest. Whoever may go now is put on a list
//! for the caller to collect; when time alone makes room, [`Budget::next_moment`] says when.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    mem,
    time::Duration,
};

use grasp_proto::words::Identifier;

use super::{failing::FailingServer, urls::CloneUrl};
use crate::clock::Moment;

/// What a domain may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests at once.
    pub at_once: usize,
    /// Requests in any minute.
    pub per_minute: usize,
    /// The longest that a server that keeps failing is set aside.
    pub aside_for: Duration,
}

/// How a request went, as far as the one who was asked can help it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered properly, with or without what was asked for.
    Fine,
    /// It failed for reasons of its own.
    Broken,
    /// It asks to be left alone.
    Busy,
    /// Nothing is known of it.
    Unknown,
}

/// The time in which requests are counted.
const MINUTE: Duration = Duration::from_secs(60);
/// How long a domain that asks for it is left alone.
const PAUSE: Duration = Duration::from_secs(65);
/// Failing servers of one domain that are remembered.
const SERVERS: usize = 16;
/// Domains that are remembered for nothing but their failures.
const DOMAINS: usize = 10_000;

#[derive(Debug, Default)]
struct Domain {
    /// Requests that are running.
    running: usize,
    /// When requests began, the oldest first; as many as a minute allows.
    recent: VecDeque<Moment>,
    paused_until: Option<Moment>,
    /// Who waits, the longest first.
    waiting: BTreeMap<u64, Identifier>,
    /// By scheme, host and port; at most `SERVERS`.
    failing: BTreeMap<String, FailingServer>,
    /// The URL that was asked last: the others come before it again.
    cursor: String,
    /// Where it stands among the moments.
    moment: Option<Moment>,
    /// Where it stands among those that are remembered for their failures alone.
    idle: Option<Moment>,
}

impl Domain {
    fn room(&self, limits: &Limits, now: Moment) -> usize {
        if self.paused_until.is_some_and(|until| until > now) {
            return 0;
        }
        let recent = self.recent.iter().filter(|at| **at + MINUTE > now).count();
        let at_once = limits.at_once.saturating_sub(self.running);
        at_once.min(limits.per_minute.saturating_sub(recent))
    }

    /// Lets go of what time has done with; gives the servers whose time aside is over.
    fn age(&mut self, now: Moment) -> Vec<String> {
        // A clock that was set back would count them for ever.
        for at in &mut self.recent {
            *at = (*at).min(now);
        }
        while self.recent.front().is_some_and(|at| *at + MINUTE <= now) {
            self.recent.pop_front();
        }
        self.paused_until = self
            .paused_until
            .filter(|until| *until > now)
            .map(|until| until.min(now + PAUSE));
        self.failing
            .retain(|_, failing| failing.forgotten_at() > now);
        let failing = self.failing.iter_mut();
        let due = failing.filter_map(|(name, server)| server.is_due(now).then(|| name.clone()));
        due.collect()
    }

    /// Servers of it that are set aside, or are probed just now.
    fn set_aside(&self) -> usize {
        let failing = self.failing.values();
        failing
            .filter(|server| server.set_aside().is_some())
            .count()
    }

    fn is_idle(&self) -> bool {
        self.running == 0
            && self.recent.is_empty()
            && self.waiting.is_empty()
            && self.paused_until.is_none()
    }

    /// When time alone changes something.
    fn next_moment(&self) -> Option<Moment> {
        let slides = self.recent.front().map(|at| *at + MINUTE);
        let of_servers = self.failing.values().map(FailingServer::next_moment).min();
        let moments = [slides, self.paused_until, of_servers];
        moments.into_iter().flatten().min()
    }
}

/// A domain, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainFigures {
    /// Which.
    pub domain: String,
    /// Requests that are running.
    pub running: usize,
    /// Requests in the last minute.
    pub last_minute: usize,
    /// Identifiers that wait for it.
    pub waiting: usize,
    /// Until when a server of it is set aside; a moment that is over: until it has been probed.
    pub aside_until: Option<Moment>,
    /// How often in a row that server was set aside.
    pub times_aside: u32,
}

/// The budgets of all domains. A domain nobody asks, waits for or remembers takes no room.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    domains: HashMap<String, Domain>,
    /// Domains by the moment at which time changes something for them.
    moments: BTreeSet<(Moment, String)>,
    /// Those that are remembered for their failures alone, by when they will be forgotten; at most
    /// `DOMAINS`.
    idle: BTreeSet<(Moment, String)>,
    /// Requests that are running: in which domain, at which server.
    running: HashMap<u64, (String, String)>,
    /// Where whom waits, under which number.
    waits: HashMap<Identifier, BTreeMap<String, u64>>,
    last_number: u64,
    /// Who may have room now.
    woken: BTreeSet<Identifier>,
    /// Domains whose requests changed.
    changed: BTreeSet<String>,
    /// Domains whose last minute is empty by now.
    quiet: BTreeSet<String>,
    /// Servers whose time aside is over: one request may show whether they are back.
    to_probe: BTreeSet<String>,
    /// Servers that failed and are back.
    recovered: BTreeSet<String>,
    /// Servers that are set aside.
    set_aside: usize,
}

impl Budget {
    /// Nobody was asked yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            domains: HashMap::new(),
            moments: BTreeSet::new(),
            idle: BTreeSet::new(),
            running: HashMap::new(),
            waits: HashMap::new(),
            last_number: 0,
            woken: BTreeSet::new(),
            changed: BTreeSet::new(),
            quiet: BTreeSet::new(),
            to_probe: BTreeSet::new(),
            recovered: BTreeSet::new(),
            set_aside: 0,
        }
    }

    /// Changes a domain; everything that follows from it follows.
    fn change(&mut self, name: &str, now: Moment, change: impl FnOnce(&mut Domain)) {
        let domain = self.domains.entry(name.to_owned()).or_default();
        let was_quiet = domain.recent.is_empty();
        let were_aside = domain.set_aside();
        change(domain);
        self.to_probe.extend(domain.age(now));
        self.set_aside = self.set_aside + domain.set_aside() - were_aside;
        if !was_quiet && domain.recent.is_empty() {
            self.quiet.insert(name.to_owned());
        }
        let room = domain.room(&self.limits, now);
        self.woken
            .extend(domain.waiting.values().take(room).cloned());
        let moment = domain.next_moment();
        let old = mem::replace(&mut domain.moment, moment);
        let is_done_with = domain.is_idle() && domain.failing.is_empty();
        if old != moment {
            if let Some(old) = old {
                self.moments.remove(&(old, name.to_owned()));
            }
            if let Some(moment) = moment {
                self.moments.insert((moment, name.to_owned()));
            }
        }
        let idle = moment.filter(|_| domain.is_idle());
        if let Some(old) = mem::replace(&mut domain.idle, idle) {
            self.idle.remove(&(old, name.to_owned()));
        }
        if let Some(idle) = idle {
            self.idle.insert((idle, name.to_owned()));
        }
        if is_done_with {
            self.domains.remove(name);
        }
        if self.idle.len() > DOMAINS {
            self.forget_first();
        }
    }

    /// Forgets the domain that would be forgotten first, of those remembered for their failures alone.
    fn forget_first(&mut self) {
        if let Some(gone) = self.idle.pop_first() {
            self.moments.remove(&gone);
            if let Some(domain) = self.domains.remove(&gone.1) {
                self.set_aside -= domain.set_aside();
            }
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        while let Some((moment, name)) = self.moments.first().cloned() {
            if moment > now {
                return;
            }
            self.change(&name, now, |_| {});
        }
    }

    /// When time alone changes something, if nothing else does before.
    pub fn next_moment(&self) -> Option<Moment> {
        self.moments.first().map(|(moment, _)| *moment)
    }

    /// Whether an identifier may ask a domain now: there is room, and nobody before it in the
    /// domain's queue whom it is kept for.
    pub fn has_room_for(&self, domain: &str, who: &Identifier, now: Moment) -> bool {
        let Some(known) = self.domains.get(domain) else {
            return self.limits.at_once.min(self.limits.per_minute) > 0;
        };
        let room = known.room(&self.limits, now);
        known.waiting.values().take(room).any(|first| first == who)
            || (known.waiting.len() < room && !self.is_waiting_for(domain, who))
    }

    fn is_waiting_for(&self, domain: &str, who: &Identifier) -> bool {
        let waits = self.waits.get(who);
        waits.is_some_and(|waits| waits.contains_key(domain))
    }

    /// Of some URLs of one domain the one whose turn it is: round and round.
    pub fn next_url<'a>(&self, domain: &str, urls: &[&'a CloneUrl]) -> Option<&'a CloneUrl> {
        let cursor = self.domains.get(domain).map_or("", |known| &known.cursor);
        let behind = urls.iter().filter(|one| one.url.as_str() > cursor).min();
        behind.or_else(|| urls.iter().min()).copied()
    }

    /// An identifier waits for these domains to have room, and for no others; where it waits already
    /// it keeps its place.
    pub fn wait<'a>(
        &mut self,
        who: &Identifier,
        domains: impl IntoIterator<Item = &'a str>,
        now: Moment,
    ) {
        let wanted: BTreeSet<&str> = domains.into_iter().collect();
        self.leave_all_but(who, &wanted, now);
        for name in wanted {
            if self.is_waiting_for(name, who) {
                continue;
            }
            self.last_number += 1;
            let number = self.last_number;
            let waits = self.waits.entry(who.clone()).or_default();
            waits.insert(name.to_owned(), number);
            self.change(name, now, |domain| {
                domain.waiting.insert(number, who.clone());
            });
        }
    }

    /// An identifier waits no more.
    pub fn leave(&mut self, who: &Identifier, now: Moment) {
        self.leave_all_but(who, &BTreeSet::new(), now);
    }

    fn leave_all_but(&mut self, who: &Identifier, kept: &BTreeSet<&str>, now: Moment) {
        let Some(waits) = self.waits.get_mut(who) else {
            return;
        };
        let mut left = Vec::new();
        waits.retain(|name, number| {
            let keep = kept.contains(name.as_str());
            if !keep {
                left.push((name.clone(), *number));
            }
            keep
        });
        if waits.is_empty() {
            self.waits.remove(who);
        }
        for (name, number) in left {
            self.change(&name, now, |domain| {
                domain.waiting.remove(&number);
            });
        }
    }

    /// Whether an identifier waits for any domain.
    pub fn is_waiting(&self, who: &Identifier) -> bool {
        self.waits.contains_key(who)
    }

    /// The domains that an identifier waits for.
    pub fn waits_for(&self, who: &Identifier) -> impl Iterator<Item = &str> {
        let waits = self.waits.get(who).into_iter();
        waits.flat_map(|waits| waits.keys().map(String::as_str))
    }

    /// A request begins.
    pub fn take(&mut self, fetch: u64, url: &CloneUrl, now: Moment) {
        self.restore(fetch, &url.domain, &url.server, now);
        self.change(&url.domain, now, |domain| {
            domain.recent.push_back(now);
            domain.cursor.clone_from(&url.url);
            if let Some(failing) = domain.failing.get_mut(&url.server) {
                failing.asked(fetch);
            }
        });
    }

    /// A request has been running since before the process.
    pub fn restore(&mut self, fetch: u64, domain: &str, server: &str, now: Moment) {
        let what = (domain.to_owned(), server.to_owned());
        if self.running.insert(fetch, what).is_none() {
            self.change(domain, now, |domain| domain.running += 1);
            self.changed.insert(domain.to_owned());
        }
    }

    /// When a domain was asked before the process began.
    pub fn restore_recent(&mut self, domain: &str, mut at: Vec<Moment>, now: Moment) {
        at.sort_unstable();
        self.change(domain, now, |domain| domain.recent = at.into());
    }

    /// A request has ended. `false`: it had ended before.
    pub fn free(&mut self, fetch: u64, outcome: Outcome, now: Moment) -> bool {
        let Some((name, server)) = self.running.remove(&fetch) else {
            return false;
        };
        let longest = self.limits.aside_for;
        let mut recovered = false;
        self.change(&name, now, |domain| {
            domain.running -= 1;
            if matches!(outcome, Outcome::Unknown | Outcome::Busy)
                && let Some(failing) = domain.failing.get_mut(&server)
            {
                failing.unknown(fetch, now);
            }
            match outcome {
                Outcome::Unknown => {}
                Outcome::Fine => recovered = domain.failing.remove(&server).is_some(),
                Outcome::Busy => domain.paused_until = Some(now + PAUSE),
                Outcome::Broken => fails(domain, &server, now, longest),
            }
        });
        if recovered {
            self.recovered.insert(server);
        }
        self.changed.insert(name);
        true
    }

    /// Whether a request is running.
    pub fn is_running(&self, fetch: u64) -> bool {
        self.running.contains_key(&fetch)
    }

    /// Whether the server of a URL is set aside.
    pub fn is_aside(&self, url: &CloneUrl, now: Moment) -> bool {
        let known = self.domains.get(&url.domain);
        let failing = known.and_then(|domain| domain.failing.get(&url.server));
        failing.is_some_and(|failing| failing.is_aside(now))
    }

    /// Servers that are set aside.
    pub fn set_aside(&self) -> usize {
        self.set_aside
    }

    /// Servers whose time aside is over since this was asked last.
    pub fn to_probe(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.to_probe)
    }

    /// Servers that failed and are back since this was asked last.
    pub fn recovered(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.recovered)
    }

    /// Requests of a domain that are running.
    pub fn running(&self, domain: &str) -> usize {
        self.domains.get(domain).map_or(0, |known| known.running)
    }

    /// When a domain was asked in the last minute.
    pub fn recent(&self, domain: &str) -> Vec<Moment> {
        let known = self.domains.get(domain);
        known.map_or_else(Vec::new, |known| known.recent.iter().copied().collect())
    }

    /// Who may have room since this was asked last.
    pub fn woken(&mut self) -> BTreeSet<Identifier> {
        mem::take(&mut self.woken)
    }

    /// Domains whose requests changed since this was asked last.
    pub fn changed(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.changed)
    }

    /// Domains whose last minute has become empty since this was asked last.
    pub fn quiet(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.quiet)
    }

    /// All domains that are known, the busiest first.
    pub fn figures(&self, now: Moment) -> Vec<DomainFigures> {
        let figures = |(name, domain): (&String, &Domain)| {
            let aside = domain.failing.values();
            let aside = aside.filter_map(FailingServer::set_aside).max();
            DomainFigures {
                domain: name.clone(),
                running: domain.running,
                last_minute: domain
                    .recent
                    .iter()
                    .filter(|at| **at + MINUTE > now)
                    .count(),
                waiting: domain.waiting.len(),
                aside_until: aside.map(|(until, _)| until),
                times_aside: aside.map_or(0, |(_, times)| times),
            }
        };
        let mut all: Vec<DomainFigures> = self.domains.iter().map(figures).collect();
        all.sort_by(|a, b| {
            let busy = |f: &DomainFigures| (f.running, f.waiting, f.last_minute, f.aside_until);
            busy(b).cmp(&busy(a)).then_with(|| a.domain.cmp(&b.domain))
        });
        all
    }
}

/// A server failed for reasons of its own.
fn fails(domain: &mut Domain, server: &str, now: Moment, longest: Duration) {
    if !domain.failing.contains_key(server) && domain.failing.len() >= SERVERS {
        let by_age = domain.failing.iter().min_by_key(|(_, known)| known.last());
        if let Some(oldest) = by_age.map(|(name, _)| name.clone()) {
            domain.failing.remove(&oldest);
        }
    }
    let failing = domain.failing.entry(server.to_owned());
    let failing = failing.or_insert_with(|| FailingServer::new(now));
    if let Some(lasts) = failing.fails(now, longest) {
        metrics::counter!("ngit_hunt_set_aside_total").increment(1);
        tracing::warn!(server, ?lasts, "a failing server is set aside");
    }
}

#[cfg(test)]
mod tests;
