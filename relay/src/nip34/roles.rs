//! What an announcement says about who maintains the repository: role tags, or `maintainers`.
//!
//! NIP-34's roles are tags `M` (lead), `m` (maintainer) and `o` (moderator), each `[role, key, start, end,
//! start, …]`: a history whose last entry says whether the role is in force. `defer` in the place of an
//! end keeps a record for its history alone. Where there is any role tag, `maintainers` is ignored.

use grasp_proto::words::Npub;
use nostr::Event;

use super::{all_values, public_key};

/// Keys of one announcement that count, the first ones. Whoever announces an identifier adds to what
/// is walked for all who share it.
pub const NAMED: usize = 256;

/// How far a role may begin after its announcement was made, in seconds: clocks differ. One that
/// begins later is not in force.
const BEGINS_AHEAD: u64 = 15 * 60;

/// Whom an announcement names, and as what its author sees itself. It is one side of a relation: what
/// follows from all of them is worked out by [`crate::maintainers`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Keys named as lead or maintainer by a record in force, or by `maintainers` where there are no
    /// roles; the author left out; sorted, each once.
    pub names: Vec<Npub>,
    /// Whom `M` records in force name, the author included: more than one is ambiguous.
    pub leads: Vec<Npub>,
    /// The author has a role record of its own and none as lead or maintainer is in force: it has left,
    /// or moderates only.
    pub author_has_left: bool,
    /// It carries a `u` tag: a fork that does not claim the project.
    pub is_fork: bool,
}

impl Listing {
    /// Reads the tags of an announcement by `author`. What is malformed grants nothing.
    pub fn read(event: &Event, author: Npub) -> Self {
        let mut listing = Self {
            is_fork: event.tags.iter().any(|tag| tag.kind() == "u"),
            ..Self::default()
        };
        let (mut has_roles, mut author_has_record, mut author_is_in_force) = (false, false, false);
        let latest_start = event.created_at.as_secs().saturating_add(BEGINS_AHEAD);
        for tag in event.tags.iter() {
            let [role, rest @ ..] = tag.as_slice() else {
                continue;
            };
            if !matches!(role.as_str(), "M" | "m" | "o") {
                continue;
            }
            has_roles = true;
            let [text, history @ ..] = rest else {
                continue;
            };
            // An end that its author wrote in capitals is an end all the same.
            author_has_record |= Npub::from_hex(text).is_ok_and(|key| key == author);
            let Some(key) = public_key(text) else {
                continue;
            };
            if role == "o" || !is_in_force(history, latest_start) {
                continue;
            }
            author_is_in_force |= key == author;
            if role == "M" && !listing.leads.contains(&key) && listing.leads.len() < NAMED {
                listing.leads.push(key);
            }
            if key != author && listing.names.len() < NAMED {
                listing.names.push(key);
            }
        }
        if has_roles {
            listing.author_has_left = author_has_record && !author_is_in_force;
        } else {
            let keys = all_values(event, "maintainers").filter_map(public_key);
            listing.names = keys.filter(|key| *key != author).take(NAMED).collect();
        }
        listing.names.sort_unstable();
        listing.names.dedup();
        listing.leads.sort_unstable();
        listing
    }

    /// Whether it names a key as lead or maintainer, in force.
    pub fn names(&self, key: &Npub) -> bool {
        self.names.binary_search(key).is_ok()
    }
}

/// Whether the history of a role ends with a start, and makes sense.
fn is_in_force(history: &[String], latest_start: u64) -> bool {
    let mut before = 0;
    for text in history {
        match seconds(text) {
            Some(at) if at >= before => before = at,
            // `defer` stands in the place of the last end, so that the role is not in force either.
            _ => return false,
        }
    }
    (history.is_empty() || history.len() % 2 == 1) && before <= latest_start
}

fn seconds(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT,
        testing::{event, keys},
    };

    const MADE_AT: u64 = 1_000_000;

    fn key(seed: u8) -> Npub {
        Npub::from_bytes(keys(seed).public_key().to_bytes())
    }

    fn read(tags: &[&[&str]]) -> Listing {
        let mut all: Vec<&[&str]> = vec![&["d", "x"]];
        all.extend(tags);
        Listing::read(&event(&keys(1), ANNOUNCEMENT, MADE_AT, &all), key(1))
    }

    #[test]
    fn a_role_is_in_force_by_its_history() {
        let other = key(2).to_hex();
        let ahead = (MADE_AT + BEGINS_AHEAD + 1).to_string();
        let cases: [(&[&str], bool); 14] = [
            (&[], true),
            (&["100"], true),
            (&["100", "200"], false),
            (&["100", "200", "300"], true),
            (&["100", "200", "300", "400"], false),
            (&["100", "99999999999"], false),
            (&["100", "defer"], false),
            (&["defer"], false),
            (&["100", "defer", "300"], false),
            (&["soon"], false),
            (&["+1"], false),
            (&[""], false),
            (&["300", "200", "250"], false),
            (&[&ahead], false),
        ];
        for (history, in_force) in cases {
            for role in ["M", "m"] {
                let mut tag = vec![role, &other];
                tag.extend(history);
                assert_eq!(read(&[&tag]).names(&key(2)), in_force, "{role} {history:?}");
            }
        }
    }

    #[test]
    fn where_there_is_any_role_tag_maintainers_is_ignored() {
        let [second, third] = [key(2).to_hex(), key(3).to_hex()];
        let listed: &[&str] = &["maintainers", &second];
        assert_eq!(read(&[listed]).names, [key(2)]);
        assert_eq!(read(&[listed, &["m", &third]]).names, [key(3)]);
        for role in [&["m"] as &[&str], &["M", "nonsense"], &["o", &third]] {
            assert_eq!(read(&[listed, role]).names, [], "{role:?}");
        }
    }

    #[test]
    fn malformed_maintainers_are_ignored_one_by_one() {
        let (other, own) = (key(2).to_hex(), key(1).to_hex());
        let upper = key(3).to_hex().to_uppercase();
        let listed: &[&str] = &["maintainers", "x", &other, &own, &other, &upper];
        assert_eq!(read(&[listed]).names, [key(2)]);
    }

    #[test]
    fn an_author_leaves_by_its_own_record() {
        let (own, upper) = (key(1).to_hex(), key(1).to_hex().to_uppercase());
        let has_left = |tags: &[&[&str]]| read(tags).author_has_left;
        assert!(!has_left(&[&["maintainers"]]));
        assert!(!has_left(&[&["m", &key(2).to_hex()]]));
        assert!(!has_left(&[&["m", &own]]));
        assert!(has_left(&[&["m", &own, "1", "2"]]));
        assert!(has_left(&[&["m", &upper, "1", "2"]]));
        assert!(has_left(&[&["m", &own, "1", "defer"]]));
        assert!(has_left(&[&["M", &own, "soon"]]));
        assert!(has_left(&[&["o", &own]]));
        // From maintainer to lead.
        assert!(!has_left(&[&["m", &own, "1", "2"], &["M", &own, "2"]]));
    }

    #[test]
    fn leads_are_told_apart() {
        let [own, second] = [key(1).to_hex(), key(2).to_hex()];
        let mut both = vec![key(1), key(2)];
        both.sort_unstable();
        let twice = read(&[&["M", &own], &["M", &second], &["M", &second, "1"]]);
        assert_eq!(twice.leads, both);
        assert_eq!(read(&[&["M", &second, "1", "2"]]).leads, []);
        assert!(read(&[&["u", "30617:x:y"]]).is_fork && !twice.is_fork);
    }
}
