//! Which push is allowed (protocol, "Pushes"): pure.

use std::collections::{BTreeMap, HashSet};

use grasp_proto::{
    contract::Command,
    words::{Address, EventId, Oid, RefKind, RefName},
};

use crate::nip34::state::{State, Target};

/// What is known of the pull request that a ref under `refs/nostr/` is named after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// No event of this id is here.
    Unknown,
    /// It is, and this is its commit; `None`: no commit of ours.
    Commit(Option<Oid>),
    /// An event of this id is here and is no pull request.
    Other,
    /// It is, and has expired.
    Expired,
    /// It is, and does not belong where the push goes.
    Elsewhere,
}

/// Everything a push is judged by.
#[derive(Debug)]
pub struct Case<'a> {
    /// Where it goes.
    pub address: &'a Address,
    /// What is to be done, in the pusher's order.
    pub commands: &'a [Command],
    /// Where the refs are that the commands or the states name, as far as they exist.
    pub current: &'a BTreeMap<RefName, Oid>,
    /// The waiting states authorised for this owner that no served one supersedes, latest first.
    pub states: &'a [State],
    /// What is known of the pull requests the commands name.
    pub known: &'a BTreeMap<EventId, Known>,
}

/// Why a push is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The waiting state that it fulfils: branches and tags end up as this one says.
    pub state: Option<EventId>,
    /// Pull requests whose commit it brings.
    pub requested: Vec<(EventId, Oid)>,
    /// Commits for pull requests that are not known yet.
    pub placeholders: Vec<(EventId, Oid)>,
}

impl Allowed {
    /// Whether the push changes nothing.
    pub fn changes_nothing(&self) -> bool {
        self.state.is_none() && self.requested.is_empty() && self.placeholders.is_empty()
    }
}

/// Why a push is not allowed, for the git user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

fn refused<T>(reason: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(reason.into()))
}

/// Commits of one push for pull requests that nobody has signed yet.
const PLACEHOLDERS: usize = 256;

/// Judges a push. Every command must pass.
pub fn judge(case: &Case) -> Result<Allowed, Refused> {
    let mut seen = HashSet::new();
    let mut branches = Vec::new();
    let mut allowed = Allowed {
        state: None,
        requested: Vec::new(),
        placeholders: Vec::new(),
    };
    for command in case.commands {
        if !seen.insert(&command.name) {
            return refused(format!("{} is named twice", command.name));
        }
        let changes = !changes_nothing(command, case.current);
        match command.name.kind() {
            RefKind::Head | RefKind::Tag | RefKind::Other if case.address.is_prs() => {
                return refused(format!(
                    "{}: only refs/nostr/<event id> can be pushed to an address below /prs/",
                    command.name
                ));
            }
            RefKind::Head | RefKind::Tag => branches.push(command),
            RefKind::Nostr(id) if changes => match case.known.get(&id) {
                Some(Known::Commit(commit)) if *commit == Some(command.new) => {
                    allowed.requested.push((id, command.new));
                }
                Some(Known::Commit(commit)) => {
                    let wanted = commit.map_or("no commit of ours".to_owned(), |c| c.to_string());
                    let event = short(&id);
                    return refused(format!(
                        "{}: pull request {event} names {wanted}",
                        command.name
                    ));
                }
                Some(Known::Other) => {
                    return refused(format!("{}: that event is no pull request", command.name));
                }
                Some(Known::Expired) => {
                    let event = short(&id);
                    return refused(format!(
                        "{}: pull request {event} has expired",
                        command.name
                    ));
                }
                Some(Known::Elsewhere) => {
                    let event = short(&id);
                    return refused(match case.address.is_prs() {
                        true => format!(
                            "{}: pull request {event} is not by this author, or does not name this \
                             address in clone and its identifier in an a tag",
                            command.name
                        ),
                        false => format!(
                            "{}: pull request {event} belongs to nothing that is served here: push \
                             to the address below /prs/ that it names",
                            command.name
                        ),
                    });
                }
                _ if command.new.is_zero() => {
                    return refused(format!("{} cannot be deleted by a push", command.name));
                }
                _ => allowed.placeholders.push((id, command.new)),
            },
            RefKind::Nostr(_) => {}
            RefKind::Other => {
                return refused(format!(
                    "{}: only refs/heads/, refs/tags/ and refs/nostr/<event id> can be pushed",
                    command.name
                ));
            }
        }
    }
    if allowed.placeholders.len() > PLACEHOLDERS {
        return refused(format!(
            "more than {PLACEHOLDERS} commits for pull requests that are not known yet"
        ));
    }
    if branches
        .iter()
        .any(|command| !changes_nothing(command, case.current))
    {
        allowed.state = Some(fulfilled(case, &branches)?);
    }
    Ok(allowed)
}

/// Whether a ref is already what a command wants it to be, whatever the pusher believed.
pub fn changes_nothing(command: &Command, current: &BTreeMap<RefName, Oid>) -> bool {
    match current.get(&command.name) {
        Some(oid) => command.new == *oid,
        None => command.new.is_zero(),
    }
}

/// The latest waiting state that the branches and tags fulfil.
fn fulfilled(case: &Case, branches: &[&Command]) -> Result<EventId, Refused> {
    let after: BTreeMap<&RefName, Oid> = branches.iter().map(|c| (&c.name, c.new)).collect();
    let mut first_reason = None;
    for state in case.states {
        match differs(state, &after, case.current) {
            None => return Ok(state.id()),
            Some(reason) => {
                first_reason.get_or_insert((state, reason));
            }
        }
    }
    match first_reason {
        Some((state, reason)) => refused(format!(
            "{reason} (state {} of {})",
            short(&state.id()),
            state.author
        )),
        None => refused(format!(
            "{}: no state event (kind 30618) by a maintainer of {} is waiting for this push; \
             publish one first",
            branches.first().map_or("the push", |c| c.name.as_str()),
            case.address.identifier(),
        )),
    }
}

/// The first thing in which the refs, after the push, are not what the state says. `None`: they are,
/// and the push moved at least one that the state names.
fn differs(
    state: &State,
    after: &BTreeMap<&RefName, Oid>,
    current: &BTreeMap<RefName, Oid>,
) -> Option<String> {
    for (name, new) in after {
        match (state.refs.get(*name), new.is_zero()) {
            (None, false) => return Some(format!("{name} is not in the state")),
            (Some(Target::At(oid) | Target::Follows(oid)), false) if oid != new => {
                return Some(format!("{name} is {oid} in the state, not {new}"));
            }
            (Some(_), true) => {
                return Some(format!("{name} is in the state and cannot be deleted"));
            }
            _ => {}
        }
    }
    let mut moved = false;
    for (name, target) in state.refs.iter() {
        let wanted = match target {
            Target::At(wanted) => wanted,
            Target::Follows(_) => continue,
            Target::Never => return Some(format!("{name} has no object id in the state")),
        };
        let pushed = after.get(name);
        let now = current.get(name);
        if pushed.or(now) != Some(wanted) {
            return Some(format!(
                "{name} must be pushed too: it is {wanted} in the state"
            ));
        }
        moved |= now != Some(wanted);
    }
    (!moved).then(|| "no ref of the state is moved".to_owned())
}

fn short(id: &EventId) -> String {
    id.to_hex()[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use grasp_proto::words::{Identifier, Npub, RepoId};
    use proptest::prelude::*;

    use super::*;
    use crate::nip34::{
        STATE,
        testing::{event, keys},
    };

    fn oid(n: u8) -> Oid {
        match n {
            0 => Oid::ZERO,
            n => Oid::from_bytes([n; 20]),
        }
    }

    fn name(text: &str) -> RefName {
        let full = if text.starts_with("refs/") {
            text.to_owned()
        } else {
            format!("refs/heads/{text}")
        };
        RefName::parse(&full).unwrap()
    }

    fn refs(all: &[(&str, u8)]) -> BTreeMap<RefName, Oid> {
        all.iter().map(|(n, o)| (name(n), oid(*o))).collect()
    }

    fn state(at: u64, all: &[(&str, u8)]) -> State {
        let entries: Vec<[String; 2]> = all
            .iter()
            .map(|(n, o)| [name(n).to_string(), oid(*o).to_hex()])
            .collect();
        let mut tags: Vec<Vec<&str>> = vec![vec!["d", "x"]];
        tags.extend(entries.iter().map(|[n, o]| vec![n.as_str(), o.as_str()]));
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        State::read(Arc::new(event(&keys(1), STATE, at, &tags))).unwrap()
    }

    fn address() -> Address {
        Address::from(RepoId {
            owner: Npub::from_bytes([1; 32]),
            identifier: Identifier::parse("x").unwrap(),
        })
    }

    fn push(
        current: &[(&str, u8)],
        states: &[State],
        known: &[(u8, Known)],
        commands: &[(&str, u8)],
    ) -> Result<Allowed, Refused> {
        let commands: Vec<Command> = commands
            .iter()
            .map(|(n, new)| Command {
                old: oid(99),
                new: oid(*new),
                name: name(n),
            })
            .collect();
        judge(&Case {
            address: &address(),
            commands: &commands,
            current: &refs(current),
            states,
            known: &known
                .iter()
                .map(|(n, k)| (EventId::from_bytes([*n; 32]), *k))
                .collect(),
        })
    }

    fn reason(result: Result<Allowed, Refused>) -> String {
        result.unwrap_err().to_string()
    }

    fn nostr(n: u8) -> String {
        format!("refs/nostr/{}", EventId::from_bytes([n; 32]))
    }

    #[test]
    fn a_push_that_reaches_a_waiting_state_is_allowed() {
        let waiting = [state(1, &[("main", 1), ("refs/tags/v1", 2)])];
        let allowed = push(&[], &waiting, &[], &[("main", 1), ("refs/tags/v1", 2)]).unwrap();
        assert_eq!(allowed.state, Some(waiting[0].id()));
        assert!(!allowed.changes_nothing());
        assert!(push(&[("main", 1)], &waiting, &[], &[("refs/tags/v1", 2)]).is_ok());
    }

    #[test]
    fn it_must_reach_it_fully_and_no_further() {
        let waiting = [state(1, &[("main", 1), ("dev", 2)])];
        let why = reason(push(&[], &waiting, &[], &[("main", 1)]));
        assert!(why.contains("refs/heads/dev must be pushed too"), "{why}");
        let why = reason(push(&[], &waiting, &[], &[("main", 3), ("dev", 2)]));
        assert!(why.contains("refs/heads/main is 0101"), "{why}");
        let why = reason(push(
            &[],
            &waiting,
            &[],
            &[("main", 1), ("dev", 2), ("x", 1)],
        ));
        assert!(why.contains("refs/heads/x is not in the state"), "{why}");
    }

    #[test]
    fn what_the_state_does_not_name_may_be_deleted() {
        let waiting = [state(1, &[("main", 1)])];
        assert!(push(&[("old", 5)], &waiting, &[], &[("main", 1), ("old", 0)]).is_ok());
        assert!(push(&[("main", 5)], &waiting, &[], &[("main", 0)]).is_err());
        // One ref that becomes a directory of another.
        let waiting = [state(1, &[("a/b", 1)])];
        assert!(push(&[("a", 5)], &waiting, &[], &[("a", 0), ("a/b", 1)]).is_ok());
        assert!(push(&[("a", 5)], &waiting, &[], &[("a/b", 1)]).is_ok());
    }

    #[test]
    fn the_latest_that_matches_counts() {
        let waiting = [
            state(3, &[("main", 3)]),
            state(2, &[("main", 2)]),
            state(1, &[("main", 2)]),
        ];
        let allowed = push(&[], &waiting, &[], &[("main", 2)]).unwrap();
        assert_eq!(allowed.state, Some(waiting[1].id()));
    }

    #[test]
    fn without_a_state_only_what_changes_nothing_is_allowed() {
        let why = reason(push(&[], &[], &[], &[("main", 1)]));
        assert!(why.contains("no state event"), "{why}");
        let allowed = push(&[("main", 1)], &[], &[], &[("main", 1), ("gone", 0)]).unwrap();
        assert!(allowed.changes_nothing());
        let why = reason(push(
            &[("main", 1)],
            &[state(1, &[("main", 1)])],
            &[],
            &[("old", 0), ("x", 1)],
        ));
        assert!(why.contains("refs/heads/x is not in the state"), "{why}");
    }

    #[test]
    fn a_pull_requests_commit_must_be_the_one_it_names() {
        let (r, k) = (nostr(7), |c| [(7, Known::Commit(c))]);
        let right = push(&[], &[], &k(Some(oid(1))), &[(&r, 1)]).unwrap();
        assert_eq!(right.requested.len(), 1);
        assert!(push(&[], &[], &k(Some(oid(2))), &[(&r, 1)]).is_err());
        assert!(push(&[], &[], &k(None), &[(&r, 1)]).is_err());
        assert!(push(&[], &[], &[(7, Known::Other)], &[(&r, 1)]).is_err());
        let first = push(&[], &[], &[], &[(&r, 1)]).unwrap();
        assert!(first.requested.is_empty() && first.placeholders.len() == 1);
        assert!(push(&[(&r, 1)], &[], &[], &[(&r, 0)]).is_err());
        assert!(
            push(&[(&r, 1)], &[], &k(Some(oid(1))), &[(&r, 1)])
                .unwrap()
                .changes_nothing()
        );
    }

    #[test]
    fn mixed_pushes_must_pass_for_every_command() {
        let waiting = [state(1, &[("main", 1)])];
        let r = nostr(7);
        assert!(push(&[], &waiting, &[], &[("main", 1), (&r, 2)]).is_ok());
        assert!(
            push(
                &[],
                &waiting,
                &[(7, Known::Commit(None))],
                &[("main", 1), (&r, 2)]
            )
            .is_err()
        );
        assert!(push(&[], &waiting, &[], &[("main", 1), ("refs/notes/x", 2)]).is_err());
        assert!(push(&[], &waiting, &[], &[("main", 1), ("main", 1)]).is_err());
    }

    #[test]
    fn a_space_takes_commits_for_pull_requests_that_name_it_and_nothing_else() {
        let space = Address::prs(address().repo);
        let judged = |what: &str, new: u8, known: Known| {
            judge(&Case {
                address: &space,
                commands: &[Command {
                    old: Oid::ZERO,
                    new: oid(new),
                    name: name(what),
                }],
                current: &BTreeMap::new(),
                states: &[],
                known: &BTreeMap::from([(EventId::from_bytes([7; 32]), known)]),
            })
        };
        let nostr = format!("refs/nostr/{}", "07".repeat(32));
        let unknown = judged(&nostr, 1, Known::Unknown).unwrap();
        assert_eq!(unknown.placeholders.len(), 1);
        let requested = judged(&nostr, 1, Known::Commit(Some(oid(1)))).unwrap();
        assert_eq!(requested.requested.len(), 1);
        for (what, new, known, why) in [
            (nostr.as_str(), 2, Known::Commit(Some(oid(1))), "names"),
            (&nostr, 1, Known::Elsewhere, "not by this author"),
            (&nostr, 1, Known::Other, "no pull request"),
            (&nostr, 1, Known::Expired, "has expired"),
            ("refs/heads/main", 1, Known::Unknown, "below /prs/"),
            ("refs/heads/main", 0, Known::Unknown, "below /prs/"),
            ("refs/tags/v1", 1, Known::Unknown, "below /prs/"),
            ("refs/nostr/abc", 1, Known::Unknown, "below /prs/"),
        ] {
            let Refused(reason) = judged(what, new, known).unwrap_err();
            assert!(reason.contains(why), "{what}: {reason}");
        }
    }

    proptest! {
        /// Whatever is pushed: if a state allowed it, the refs it names are afterwards as it says.
        #[test]
        fn an_allowed_push_ends_as_its_state_says(
            current in prop::collection::vec((0usize..4, 1u8..4), 0..4),
            wanted in prop::collection::vec((0usize..4, 1u8..4), 0..4),
            commands in prop::collection::vec((0usize..4, 0u8..4), 1..5),
        ) {
            const NAMES: [&str; 4] = ["a", "b", "c", "d"];
            let named = |v: Vec<(usize, u8)>| -> Vec<(&str, u8)> {
                let unique: BTreeMap<_, _> = v.into_iter().collect();
                unique.into_iter().map(|(n, o)| (NAMES[n], o)).collect()
            };
            let (current, wanted, commands) = (named(current), named(wanted), named(commands));
            let waiting = state(1, &wanted);
            if let Ok(allowed) = push(&current, std::slice::from_ref(&waiting), &[], &commands) {
                let mut after = refs(&current);
                after.extend(refs(&commands));
                after.retain(|_, oid| !oid.is_zero());
                if allowed.state.is_some() {
                    for (name, oid) in refs(&wanted) {
                        prop_assert_eq!(after.get(&name), Some(&oid));
                    }
                } else {
                    prop_assert_eq!(after, refs(&current));
                }
            }
        }
    }
}
