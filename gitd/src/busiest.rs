//! Which repositories move the most bytes, for `/metrics` to name the first of them.
//!
//! Not every repository is counted: there is room for a few times as many as are named, and who
//! comes when it is full takes over the place, and the count, of the one that moved least (the
//! "space-saving" counter). So a count may be too large, by at most what the smallest of all was; it
//! is never too small, never sinks, and whoever moves much is found.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Mutex, PoisonError},
};

use grasp_proto::{process::help_line, words::Address};

/// Most repositories that are named.
pub const MOST_NAMED: usize = 1000;
/// Repositories counted for each that is named.
const COUNTED_FOR_ONE: usize = 16;
/// The metric.
const NAME: &str = "ngit_repo_bytes_total";

/// Bytes moved, of the repositories that move the most.
#[derive(Debug)]
pub struct Busiest {
    named: usize,
    /// At most [`COUNTED_FOR_ONE`] times `named`.
    counts: Mutex<HashMap<Address, u64>>,
}

impl Busiest {
    /// Names so many; 0: none, and nothing is counted.
    pub fn new(named: usize) -> Self {
        Self {
            named: named.min(MOST_NAMED),
            counts: Mutex::default(),
        }
    }

    /// So many bytes were fetched from a repository, or pushed to it.
    pub fn moved(&self, address: &Address, bytes: u64) {
        if bytes == 0 || self.named == 0 {
            return;
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(address) {
            *count += bytes;
            return;
        }
        let mut taken_over = 0;
        if counts.len() >= self.named * COUNTED_FOR_ONE
            && let Some((least, count)) = counts.iter().min_by_key(|(_, count)| **count)
        {
            taken_over = *count;
            let least = least.clone();
            counts.remove(&least);
        }
        counts.insert(address.clone(), taken_over + bytes);
    }

    /// As Prometheus text: the busiest of those that `is_shown`.
    pub fn render(&self, is_shown: impl Fn(&Address) -> bool) -> String {
        let mut counts: Vec<(Address, u64)> = {
            let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let all = counts.iter();
            all.map(|(address, count)| (address.clone(), *count))
                .collect()
        };
        counts.sort_unstable_by(|(a, more), (b, less)| less.cmp(more).then_with(|| a.cmp(b)));
        let mut text = String::new();
        let shown = counts.iter().filter(|(address, _)| is_shown(address));
        for (address, count) in shown.take(self.named) {
            if text.is_empty() {
                text = help_line(NAME);
                let _ = writeln!(text, "# TYPE {NAME} counter");
            }
            let repo = escaped(&address.to_string());
            let _ = writeln!(text, "{NAME}{{repo=\"{repo}\"}} {count}");
        }
        text
    }
}

/// As it may stand in a label.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::{Identifier, Npub, RepoId};

    use super::*;

    fn address(identifier: &str) -> Address {
        Address::from(RepoId {
            owner: Npub::from_bytes([1; 32]),
            identifier: Identifier::parse(identifier).unwrap(),
        })
    }

    #[test]
    fn the_busiest_are_named_in_their_order_and_no_more_of_them() {
        let busiest = Busiest::new(2);
        for (name, bytes) in [("a", 5), ("b", 7), ("c", 1), ("a", 5), ("idle", 0)] {
            busiest.moved(&address(name), bytes);
        }
        let (a, b) = (address("a"), address("b"));
        let help = help_line(NAME);
        assert!(help.starts_with("# HELP "));
        let expected = format!(
            "{help}# TYPE {NAME} counter\n{NAME}{{repo=\"{a}\"}} 10\n{NAME}{{repo=\"{b}\"}} 7\n"
        );
        assert_eq!(busiest.render(|_| true), expected);
        let without = busiest.render(|address| *address != a);
        assert!(without.contains("/b.git\"} 7\n") && without.contains("/c.git\"} 1\n"));
        assert_eq!(busiest.render(|_| false), "");
        let none = Busiest::new(0);
        none.moved(&a, 5);
        assert_eq!(none.render(|_| true), "");
        assert!(none.counts.lock().unwrap().is_empty());
    }

    #[test]
    fn however_many_come_room_is_bounded_and_the_busy_ones_are_found() {
        let busiest = Busiest::new(3);
        for round in 0..1000 {
            for busy in ["x", "y", "z"] {
                busiest.moved(&address(busy), 1000);
            }
            busiest.moved(&address(&format!("passing-{round}")), 1);
        }
        assert_eq!(busiest.counts.lock().unwrap().len(), 3 * COUNTED_FOR_ONE);
        let text = busiest.render(|_| true);
        for busy in ["x", "y", "z"] {
            assert!(
                text.contains(&format!("/{busy}.git\"}} 1000000\n")),
                "{text}"
            );
        }
        assert_eq!(text.lines().count(), 5);
    }

    #[test]
    fn a_name_cannot_end_its_label() {
        assert_eq!(escaped("a\"} 1\n\\"), "a\\\"} 1\\n\\\\");
    }
}
