//! Whose objects are named, and whose are asked for, whoever else waits.

use std::sync::Arc;

use super::*;
use crate::nip34::{
    PULL_REQUEST, STATE, author_of,
    testing::{event, keys},
};

fn oid(n: u32) -> Oid {
    let mut bytes = [0; 20];
    // The zero id names nothing.
    bytes[16..].copy_from_slice(&(n + 1).to_be_bytes());
    Oid::from_bytes(bytes)
}

fn state(seed: u8, at: u64, oids: std::ops::Range<u32>) -> State {
    let mut tags = vec![vec!["d".to_owned(), "x".to_owned()]];
    tags.extend(oids.map(|n| vec![format!("refs/heads/{n:06}"), oid(n).to_hex()]));
    let tags: Vec<Vec<&str>> = tags
        .iter()
        .map(|tag| tag.iter().map(String::as_str).collect())
        .collect();
    let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
    State::read(Arc::new(event(&keys(seed), STATE, at, &tags))).unwrap()
}

fn party(seed: u8, states: Vec<State>) -> Party {
    let request = |n: u32| {
        let commit = oid(n).to_hex();
        PullRequest::read(Arc::new(event(
            &keys(seed),
            PULL_REQUEST,
            1,
            &[&["c", &commit]],
        )))
        .unwrap()
    };
    Party {
        author: author_of(&event(&keys(seed), STATE, 1, &[])),
        states,
        requests: vec![request(4_000_000_000 + u32::from(seed))],
        concerned: Vec::new(),
    }
}

fn pending(parties: Vec<Party>) -> Pending {
    Pending {
        parties,
        is_whole: true,
    }
}

/// Mallory names the lowest ids there are, in as many versions as may wait; Alice one branch.
fn flood() -> Pending {
    let flood = (0..9).map(|n| state(1, u64::from(n), n * 2_500..(n + 1) * 2_500));
    let high = 3_000_000_000;
    pending(vec![
        party(1, flood.collect()),
        party(2, vec![state(2, 1, high..high + 3)]),
    ])
}

fn at(attempts: u64, fetches: u64) -> Rotation {
    Rotation {
        attempts,
        urls: 0,
        fetches,
    }
}

#[test]
fn nobody_hides_anothers_objects_by_naming_lower_ones() {
    let pending = flood();
    for fetches in 0..4 {
        let named = pending.named(fetches);
        assert_eq!(named[1].len(), 4);
        let distinct: usize = named.iter().map(Vec::len).sum();
        assert!(distinct <= OBJECTS);
        let missing = Missing::new(named, |_| true);
        let wants = missing.wants("u", at(0, fetches));
        assert_eq!(wants.len(), WANTS);
        assert!(wants.contains(&oid(3_000_000_000)));
    }
}

#[test]
fn who_names_more_than_a_share_has_all_of_it_looked_at_in_turn() {
    let many = (0..13).map(|n| state(1, u64::from(n), n * 2_500..(n + 1) * 2_500));
    let pending = pending(vec![party(1, many.collect()), party(2, Vec::new())]);
    let count = 13 * 2_500 + 1;
    let mut seen = HashSet::new();
    for turn in 0..4 {
        seen.extend(pending.named(turn).swap_remove(0));
    }
    assert_eq!(seen.len(), count);
}

#[test]
fn objects_begin_anywhere_and_come_round() {
    let one = party(1, vec![state(1, 2, 0..3), state(1, 1, 3..5)]);
    let all: Vec<Oid> = one.objects_from(0).collect();
    assert_eq!((all.len(), one.count()), (6, 6));
    for start in 0..6 {
        let from: Vec<Oid> = one.objects_from(start).collect();
        let mut expected = all.clone();
        expected.rotate_left(start);
        assert_eq!(from, expected, "{start}");
    }
}

#[test]
fn every_other_attempt_asks_for_one_partys_alone_at_its_own_urls() {
    let pending = flood();
    let mut missing = Missing::new(pending.named(0), |_| true);
    missing.may_be_at("alices", &[1]);
    missing.may_be_at("both", &[0, 1]);
    let alices: HashSet<Oid> = pending.named(0).swap_remove(1).into_iter().collect();
    let is_alices = |attempts, url: &str, fetches| {
        let wants = missing.wants(url, at(attempts, fetches));
        wants.into_iter().collect::<HashSet<_>>() == alices
    };
    assert!(is_alices(1, "alices", 0) && is_alices(3, "alices", 7));
    // At a URL that both name they have their turns, and at one that neither does.
    assert_ne!(is_alices(1, "both", 0), is_alices(3, "both", 0));
    assert_ne!(is_alices(1, "no", 0), is_alices(1, "no", 1));
    assert!(!is_alices(0, "alices", 0) && !is_alices(2, "alices", 0));
}

#[test]
fn who_waits_alone_is_asked_for_everything_every_time() {
    let pending = pending(vec![party(1, vec![state(1, 1, 0..5)])]);
    for attempts in 0..4 {
        let missing = Missing::new(pending.named(attempts), |oid| *oid != self::oid(2));
        assert_eq!(missing.wants("u", at(attempts, 9)).len(), 5);
        assert_eq!(missing.count(), 5);
    }
    assert!(Missing::new(pending.named(0), |_| false).is_empty());
}

#[test]
fn an_attempt_goes_on_where_the_last_one_stopped() {
    let mut rotation = Rotation::default();
    rotation.attempt_ends(256);
    rotation.attempt_ends(744);
    assert_eq!((rotation.attempts, rotation.urls), (2, 1_000));
    assert_eq!(rotation.urls % 1_000, 0);
}
