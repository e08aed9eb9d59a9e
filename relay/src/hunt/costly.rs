//! URLs that have cost an identifier much and brought it nothing: left alone for a while. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::clock::Moment;

/// How long a costly URL is left alone; doubled each time it is costly again …
const FIRST: Duration = Duration::from_secs(10 * 60);
/// … to this.
const LONGEST: Duration = Duration::from_secs(6 * 60 * 60);
/// A URL that is unwell so often in a row is as good as costly: once or twice is a restart of its
/// server.
const UNWELL: u32 = 3;
/// URLs that are remembered: as many as there are for an identifier.
const URLS: usize = 1_000;

/// What a fetch says of the URL that was asked, for one identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OfUrl {
    /// It brought something.
    Good,
    /// It did not, and cost little.
    #[default]
    Nothing,
    /// It was not really asked: what failed is ours.
    NotAsked,
    /// It is of no use now, and may be soon.
    Unwell,
    /// It cost much for nothing.
    Costly,
}

#[derive(Debug, Default)]
struct Known {
    costly: u32,
    unwell: u32,
    until: Option<Moment>,
}

/// The costly URLs of one identifier.
#[derive(Debug, Default)]
pub struct Costly {
    by_url: BTreeMap<String, Known>,
}

impl Costly {
    /// A fetch from a URL has ended.
    pub fn ended(&mut self, url: &str, of_url: OfUrl, now: Moment) {
        match of_url {
            OfUrl::Good => drop(self.by_url.remove(url)),
            OfUrl::NotAsked => {}
            OfUrl::Nothing => {
                if let Some(known) = self.by_url.get_mut(url) {
                    known.unwell = 0;
                }
            }
            OfUrl::Unwell | OfUrl::Costly => self.counts(url, of_url, now),
        }
    }

    fn counts(&mut self, url: &str, of_url: OfUrl, now: Moment) {
        if !self.by_url.contains_key(url) && self.by_url.len() >= URLS {
            let first_back = self.by_url.iter().min_by_key(|(_, known)| known.until);
            if let Some(gone) = first_back.map(|(url, _)| url.clone()) {
                self.by_url.remove(&gone);
            }
        }
        let known = self.by_url.entry(url.to_owned()).or_default();
        if of_url == OfUrl::Unwell {
            known.unwell = known.unwell.saturating_add(1);
            if known.unwell < UNWELL {
                return;
            }
        }
        let factor = 1_u32.checked_shl(known.costly).unwrap_or(u32::MAX);
        let alone = FIRST.saturating_mul(factor).min(LONGEST);
        known.costly = known.costly.saturating_add(1);
        known.until = Some(now + alone);
        tracing::debug!(url, ?alone, "costly for nothing: left alone");
    }

    /// Whether a URL is to be left alone.
    pub fn is_left_alone(&self, url: &str, now: Moment) -> bool {
        let until = self.by_url.get(url).and_then(|known| known.until);
        until.is_some_and(|until| until > now)
    }

    /// Whether a URL is left alone for having been unwell, and may yet have something.
    pub fn is_unwell(&self, url: &str) -> bool {
        let known = self.by_url.get(url);
        known.is_some_and(|known| known.unwell > 0)
    }

    /// Forgets all but these.
    pub fn keep_only(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.by_url.retain(|url, _| is_kept(url));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_millis(1_000_000_000);

    #[test]
    fn a_costly_url_is_left_alone_longer_each_time_until_it_is_good() {
        let mut costly = Costly::default();
        let mut now = NOW;
        for minutes in [10, 20, 40, 80, 160, 320, 360, 360] {
            costly.ended("u", OfUrl::Costly, now);
            let until = now + Duration::from_secs(minutes * 60);
            assert!(costly.is_left_alone("u", Moment::from_millis(until.as_millis() - 1)));
            assert!(!costly.is_left_alone("u", until), "{minutes}");
            assert!(!costly.is_left_alone("v", now));
            // What costs little is no excuse for before.
            costly.ended("u", OfUrl::Nothing, until);
            now = until;
        }
        costly.ended("u", OfUrl::Good, now);
        costly.ended("u", OfUrl::Costly, now);
        assert!(!costly.is_left_alone("u", now + FIRST));
    }

    #[test]
    fn a_hiccup_is_forgiven_and_an_illness_is_not() {
        let mut costly = Costly::default();
        for of_url in [
            OfUrl::Unwell,
            OfUrl::Unwell,
            OfUrl::Nothing,
            OfUrl::Unwell,
            OfUrl::Unwell,
        ] {
            costly.ended("u", of_url, NOW);
            assert!(!costly.is_left_alone("u", NOW));
        }
        costly.ended("u", OfUrl::Unwell, NOW);
        assert!(costly.is_left_alone("u", NOW));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut costly = Costly::default();
        for n in 0..URLS as u64 + 100 {
            costly.ended(&n.to_string(), OfUrl::Costly, NOW + Duration::from_secs(n));
        }
        assert_eq!(costly.by_url.len(), URLS);
        assert!(!costly.by_url.contains_key("0"));
        costly.keep_only(|url| url == "500");
        assert_eq!(costly.by_url.len(), 1);
    }
}
