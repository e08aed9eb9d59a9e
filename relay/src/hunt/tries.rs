//! Which attempts for an identifier could be made: what waits under it does not expire before it has
//! had its tries. Pure.
//!
//! An attempt could be made if every server that may have something answered for itself: one that is
//! set aside, does not answer, or asks to be left alone is waited for.

use std::collections::{BTreeMap, VecDeque};

use super::urls::CloneUrl;
use crate::clock::Moment;

/// Attempts that an identifier is given before what waits under it may expire.
pub const TRIES: usize = 3;
/// Servers that are remembered to have been out of reach.
const SERVERS: usize = 16;

/// The attempts for one identifier.
#[derive(Debug, Default)]
pub struct Tries {
    /// When the attempt that runs began.
    begun: Option<Moment>,
    /// Servers, and their domains, that could not be asked in the attempt that runs, or in the last.
    out_of_reach: BTreeMap<String, String>,
    /// When the latest attempts began that could be made, the oldest first; at most `TRIES`.
    made: VecDeque<Moment>,
}

impl Tries {
    /// An attempt begins.
    pub fn begin(&mut self, now: Moment) {
        self.begun = Some(now);
        self.out_of_reach.clear();
    }

    /// In the attempt that runs a server could not be asked, or did not answer for itself.
    pub fn is_out_of_reach(&mut self, url: &CloneUrl) {
        if self.out_of_reach.len() < SERVERS {
            self.out_of_reach
                .insert(url.server.clone(), url.domain.clone());
        }
    }

    /// In the attempt that runs a server answered after all.
    pub fn is_in_reach(&mut self, url: &CloneUrl) {
        self.out_of_reach.remove(&url.server);
    }

    /// The attempt has ended.
    pub fn ended(&mut self) {
        let Some(begun) = self.begun.take() else {
            return;
        };
        if self.out_of_reach.is_empty() {
            self.made.push_back(begun);
            if self.made.len() > TRIES {
                self.made.pop_front();
            }
        }
    }

    /// The servers that are waited for.
    pub fn servers(&self) -> impl Iterator<Item = &String> {
        self.out_of_reach.keys()
    }

    /// Their domains.
    pub fn domains(&self) -> impl Iterator<Item = &String> {
        self.out_of_reach.values()
    }

    /// Whether it has had its tries since a moment.
    pub fn made_since(&self, since: Moment) -> bool {
        self.made.len() == TRIES && self.made.front().is_some_and(|begun| *begun >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Domain;

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(1_000_000 + 1_000 * seconds)
    }

    #[test]
    fn only_attempts_that_could_be_made_count() {
        let server = |host: &str| {
            let ours = Domain::parse("grasp.example").unwrap();
            CloneUrl::read(&format!("https://{host}/x"), &ours).unwrap()
        };
        let (a, b) = (server("a.example"), server("b.example"));
        let mut tries = Tries::default();
        let mut attempt = |second: u64, out_of_reach: &[&CloneUrl]| {
            tries.begin(at(second));
            for url in out_of_reach {
                tries.is_out_of_reach(url);
            }
            tries.is_in_reach(&b);
            tries.ended();
            // Once.
            tries.ended();
            tries.made_since(at(10))
        };
        // One began before it came.
        assert!(!attempt(9, &[]));
        assert!(!attempt(10, &[]));
        assert!(!attempt(11, &[&a]));
        assert!(!attempt(12, &[&b]));
        assert!(attempt(13, &[]));
        assert!(attempt(14, &[&a, &b]));
        assert_eq!(tries.domains().collect::<Vec<_>>(), ["a.example"]);
    }
}
