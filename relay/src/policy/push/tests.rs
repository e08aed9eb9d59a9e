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
    let commands = moves(commands);
    let verdict = verdict(current, states, known, &commands, false);
    match verdict.first_reason() {
        None => Ok(verdict.allowed),
        Some(refused) => Err(refused.clone()),
    }
}

fn verdict(
    current: &[(&str, u8)],
    states: &[State],
    known: &[(u8, Known)],
    commands: &[Command],
    atomic: bool,
) -> Verdict {
    judge(&Case {
        address: &address(),
        commands,
        atomic,
        current: &refs(current),
        states,
        here: &BTreeSet::new(),
        known: &known
            .iter()
            .map(|(n, k)| (EventId::from_bytes([*n; 32]), *k))
            .collect(),
        waiting: &BTreeMap::new(),
    })
}

/// Commands with an old value that says nothing.
fn moves(commands: &[(&str, u8)]) -> Vec<Command> {
    commands
        .iter()
        .map(|(n, new)| Command {
            old: oid(99),
            new: oid(*new),
            name: name(n),
        })
        .collect()
}

/// For each command whether it is refused, and why.
fn reasons(verdict: &Verdict) -> Vec<&str> {
    let refused = verdict.refused.iter();
    refused
        .map(|one| one.as_ref().map_or("", |refused| &refused.0))
        .collect()
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
    let beside = push(&[(&r, 2)], &[], &[], &[(&r, 1)]).unwrap();
    assert_eq!(beside.placeholders.len(), 1);
    let right = push(&[(&r, 2)], &[], &k(Some(oid(1))), &[(&r, 1)]).unwrap();
    assert_eq!(right.requested.len(), 1);
    assert!(
        push(&[(&r, 1)], &[], &k(Some(oid(1))), &[(&r, 1)])
            .unwrap()
            .changes_nothing()
    );
}

#[test]
fn several_commits_may_wait_for_an_event_that_is_not_known() {
    let r = nostr(7);
    let judged = |shown: &[(&str, u8)], waiting: usize, new: u8| {
        let waiting = (1..=waiting).map(|n| oid(u8::try_from(n).unwrap()));
        judge(&Case {
            address: &address(),
            commands: &moves(&[(&r, new)]),
            atomic: false,
            current: &refs(shown),
            states: &[],
            here: &BTreeSet::new(),
            known: &BTreeMap::new(),
            waiting: &BTreeMap::from([(EventId::from_bytes([7; 32]), waiting.collect())]),
        })
    };
    let shown = [(r.as_str(), 1)];
    assert_eq!(judged(&shown, 3, 9).allowed.placeholders.len(), 1);
    // One that waits already need not be brought again.
    assert!(judged(&shown, 3, 3).allowed.changes_nothing());
    let full = judged(&shown, MOST_COMMITS, 99);
    let why = full.first_reason().unwrap().to_string();
    assert!(why.contains("publish it first"), "{why}");
    // Where the ref has gone, nothing waits.
    let again = judged(&[], MOST_COMMITS, 3);
    assert_eq!(again.allowed.placeholders.len(), 1);
}

#[test]
fn each_command_has_its_own_verdict() {
    let waiting = [state(1, &[("main", 1), ("refs/tags/v1", 2)])];
    let (known, unknown, deleted) = (nostr(7), nostr(8), nostr(9));
    let commands = moves(&[
        ("main", 1),
        ("refs/notes/commits", 3),
        (&known, 4),
        ("refs/tags/v1", 2),
        (&unknown, 5),
        ("refs/pull/1/head", 3),
        (&deleted, 0),
        ("refs/pull/2/head", 0),
    ]);
    let names = [(7, Known::Commit(None)), (9, Known::Commit(Some(oid(6))))];
    let mixed = verdict(&[(&deleted, 6)], &waiting, &names, &commands, false);
    let told = reasons(&mixed);
    assert!(told[1].contains("only refs/heads/"), "{told:?}");
    assert!(told[2].contains("names no commit of ours"), "{told:?}");
    assert!(told[5].contains("refs/pull/1/head: only"), "{told:?}");
    assert!(
        told[6].contains("kind 5") && told[6].contains("1632"),
        "{told:?}"
    );
    // What is not there need not be deleted.
    for at in [0, 3, 4, 7] {
        assert_eq!(told[at], "", "{told:?}");
    }
    assert_eq!(mixed.allowed.state, Some(waiting[0].id()));
    assert_eq!(mixed.allowed.placeholders.len(), 1);
    assert!(mixed.allowed.requested.is_empty() && !mixed.refuses_all());

    let atomic = verdict(&[(&deleted, 6)], &waiting, &names, &commands, true);
    assert!(atomic.refuses_all() && atomic.allowed == Allowed::default());
    let told = reasons(&atomic);
    assert!(
        told[0].contains("atomic, and refs/notes/commits is refused"),
        "{told:?}"
    );
    assert!(told[5].contains("refs/pull/1/head: only"), "{told:?}");
    let whole = verdict(
        &[],
        &waiting,
        &[],
        &moves(&[("main", 1), ("refs/tags/v1", 2)]),
        true,
    );
    assert_eq!(reasons(&whole), ["", ""]);
}

#[test]
fn twins_are_refused_and_nothing_beside_them() {
    let waiting = [state(1, &[("main", 1)])];
    let r = nostr(7);
    let commands = moves(&[("main", 1), (&r, 2), (&r, 3)]);
    let verdict = verdict(&[], &waiting, &[], &commands, false);
    let told = reasons(&verdict);
    assert_eq!(told[0], "");
    assert!(told[1].contains("more than once") && told[2].contains("more than once"));
    assert!(verdict.allowed.placeholders.is_empty());
}

#[test]
fn all_that_is_missing_is_named_at_once() {
    let waiting = [state(
        1,
        &[("a", 1), ("b", 2), ("c", 3), ("refs/tags/t", 4)],
    )];
    let commands = moves(&[("a", 1), ("b", 9), ("x", 1), ("refs/notes/n", 1)]);
    let refused = verdict(&[], &waiting, &[], &commands, false);
    let told = reasons(&refused);
    for (at, own) in [
        (0, "branches and tags of a push stand or fall together"),
        (1, "refs/heads/b is 0202"),
        (2, "refs/heads/x is not in"),
    ] {
        assert!(told[at].starts_with(own), "{told:?}");
        for name in [
            "heads/b",
            "heads/c must be pushed too",
            "heads/x is not in",
            "tags/t must",
        ] {
            assert!(told[at].contains(name), "{name}: {told:?}");
        }
    }
    assert!(told[3].contains("only refs/heads/"), "{told:?}");
    assert!(refused.remarks.is_empty(), "a line holds all of it");
    // One that is there already is told to be so.
    let commands = moves(&[("a", 1), ("b", 9)]);
    let refused = verdict(&[("a", 1)], &waiting, &[], &commands, false);
    assert_eq!(reasons(&refused)[0], "");
    assert!(!refused.refuses_all());
}

#[test]
fn very_many_that_are_missing_are_counted_in_a_line_and_told_in_remarks() {
    let names: Vec<String> = (0..5000).map(|n| format!("branch-{n}")).collect();
    let all: Vec<(&str, u8)> = names.iter().map(|n| (n.as_str(), 1)).collect();
    let waiting = [state(1, &all)];
    let refused = verdict(&[], &waiting, &[], &moves(&all[1..2]), false);
    let told = reasons(&refused)[0];
    assert!(told.len() < 1000 && told.contains("; and 49"), "{told}");
    assert_eq!(refused.remarks.len(), 1002);
    assert_eq!(refused.remarks[1001], "  and 3999 more");
    // As many commands as differences take no time that grows with both.
    let wrong: Vec<(&str, u8)> = names.iter().map(|n| (n.as_str(), 2)).collect();
    let refused = verdict(&[], &waiting, &[], &moves(&wrong), false);
    assert!(refused.refuses_all());
}

#[test]
fn what_is_here_need_not_be_pushed() {
    let waiting = [state(1, &[("main", 1), ("refs/tags/v1", 2)])];
    let judged = |here: &[u8], commands: &[(&str, u8)]| {
        judge(&Case {
            address: &address(),
            commands: &moves(commands),
            atomic: false,
            current: &BTreeMap::new(),
            states: &waiting,
            here: &here.iter().map(|n| oid(*n)).collect(),
            known: &BTreeMap::new(),
            waiting: &BTreeMap::new(),
        })
    };
    let verdict = judged(&[2], &[("main", 1)]);
    assert_eq!(verdict.allowed.state, Some(waiting[0].id()));
    assert!(judged(&[], &[("main", 1)]).refuses_all());
    // A wrong value is wrong, whatever is here.
    assert!(judged(&[1, 2], &[("main", 3)]).refuses_all());
    assert!(
        judged(&[1, 2], &[("main", 0)]).refused[0].is_none(),
        "it is not there"
    );
}

#[test]
fn a_push_brings_at_most_so_many_placeholders() {
    let names: Vec<String> = (0..=PLACEHOLDERS)
        .map(|n| format!("refs/nostr/{n:064x}"))
        .collect();
    let all: Vec<(&str, u8)> = names.iter().map(|n| (n.as_str(), 1)).collect();
    let verdict = verdict(&[], &[], &[], &moves(&all), false);
    assert_eq!(verdict.allowed.placeholders.len(), PLACEHOLDERS);
    assert!(reasons(&verdict)[PLACEHOLDERS].contains("more than 256"));
}

#[test]
fn what_is_refused_after_all_takes_an_atomic_push_along() {
    let waiting = [state(1, &[("main", 1)])];
    let r = nostr(7);
    let commands = moves(&[("main", 1), (&r, 2)]);
    for atomic in [false, true] {
        let mut verdict = verdict(&[], &waiting, &[], &commands, atomic);
        verdict.refuse(&commands, &name(&r), "crowded", atomic);
        assert_eq!(reasons(&verdict)[1], "crowded");
        assert!(verdict.allowed.placeholders.is_empty());
        assert_eq!(verdict.allowed.state.is_none(), atomic);
        assert_eq!(verdict.refuses_all(), atomic);
    }
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
            atomic: false,
            current: &BTreeMap::new(),
            states: &[],
            here: &BTreeSet::new(),
            known: &BTreeMap::from([(EventId::from_bytes([7; 32]), known)]),
            waiting: &BTreeMap::new(),
        })
    };
    let nostr = format!("refs/nostr/{}", "07".repeat(32));
    let unknown = judged(&nostr, 1, Known::Unknown).allowed;
    assert_eq!(unknown.placeholders.len(), 1);
    let requested = judged(&nostr, 1, Known::Commit(Some(oid(1)))).allowed;
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
        let verdict = judged(what, new, known);
        let reason = reasons(&verdict)[0];
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
