use nostr::Kind;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::nip34::{
    ANNOUNCEMENT, STATE,
    testing::{event, keys},
};

const HOT: Duration = Duration::from_secs(120);
const COLD: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const COMMENT: Kind = Kind::Custom(1111);
const ISSUE: Kind = Kind::Custom(1621);

fn at(seconds: u64) -> Moment {
    Moment::from_millis(1_000_000_000 + seconds * 1_000)
}

fn index() -> Rejected {
    Rejected::new(Durations {
        hot: HOT,
        cold: COLD,
    })
}

fn again(event: &Event, source: u64) -> Again {
    Again {
        event: Arc::new(event.clone()),
        source,
        tries: 0,
    }
}

fn keep(rejected: &mut Rejected, event: &Event, now: Moment) -> bool {
    let mark = rejected.mark();
    rejected.keep(again(event, 1), mark, now)
}

fn repo(seed: u8, name: &str) -> RepoId {
    let event = event(&keys(seed), ANNOUNCEMENT, 1, &[&["d", name]]);
    let owner = nip34::author_of(&event);
    RepoId {
        owner,
        identifier: Identifier::parse(name).unwrap(),
    }
}

fn ids(again: &[Again]) -> Vec<nostr::EventId> {
    again.iter().map(|one| one.event.id).collect()
}

#[test]
fn any_announcement_of_the_identifier_wakes_announcements_and_states() {
    let mut rejected = index();
    let state = event(&keys(2), STATE, 1, &[&["d", "x"]]);
    let announcement = event(&keys(2), ANNOUNCEMENT, 9, &[&["d", "x"]]);
    let other = event(&keys(2), STATE, 1, &[&["d", "y"]]);
    for one in [&state, &announcement, &other] {
        assert!(keep(&mut rejected, one, at(0)));
        assert!(rejected.contains(&id_of(one)) && rejected.keeps(&id_of(one)));
    }
    assert!(
        rejected
            .wake(brought_by_announcement(&repo(1, "x"), false))
            .ready
    );
    assert_eq!(ids(&rejected.ready(9)), [announcement.id]);
    assert_eq!(ids(&rejected.ready(9)), [state.id]);
    assert!(rejected.ready(9).is_empty());
    assert!(!rejected.contains(&id_of(&state)) && rejected.contains(&id_of(&other)));
    assert!(rejected.is_sound());
}

#[test]
fn what_refers_to_a_repository_waits_until_that_is_served() {
    let mut rejected = index();
    let repo = repo(1, "x");
    let issue = event(&keys(2), ISSUE, 1, &[&["a", &repo.coordinate()]]);
    keep(&mut rejected, &issue, at(0));
    assert_eq!(
        rejected.wake(brought_by_announcement(&repo, false)),
        Woken::default()
    );
    assert!(rejected.wake(brought_by_announcement(&repo, true)).ready);
    assert_eq!(ids(&rejected.ready(9)), [issue.id]);
}

#[test]
fn the_parent_wakes_its_children_and_the_child_its_parent() {
    let mut rejected = index();
    let issue = event(&keys(1), ISSUE, 1, &[]);
    let comment = event(&keys(2), COMMENT, 2, &[&["E", &issue.id.to_hex()]]);
    let reply = event(&keys(2), COMMENT, 3, &[&["e", &comment.id.to_hex()]]);
    for one in [&issue, &comment, &reply] {
        keep(&mut rejected, one, at(0));
    }
    assert!(event_came(&mut rejected, &comment));
    assert_eq!(ids(&rejected.ready(9)), [issue.id]);
    assert_eq!(ids(&rejected.ready(9)), [reply.id]);
    assert!(!rejected.contains(&id_of(&comment)));
    assert!(rejected.is_sound());
}

#[test]
fn a_deletion_request_wakes_nobody() {
    let mut rejected = index();
    let comment = event(&keys(2), COMMENT, 2, &[]);
    keep(&mut rejected, &comment, at(0));
    let id = comment.id.to_hex();
    let deletion = event(&keys(3), nip34::DELETION, 3, &[&["e", &id]]);
    assert!(!event_came(&mut rejected, &deletion));
    let quoting = event(&keys(3), COMMENT, 3, &[&["q", &id]]);
    assert!(event_came(&mut rejected, &quoting));
}

#[test]
fn what_came_while_it_was_judged_is_not_missed() {
    let mut rejected = index();
    let state = event(&keys(2), STATE, 1, &[&["d", "x"]]);
    let mark = rejected.mark();
    rejected.wake(brought_by_announcement(&repo(1, "x"), false));
    assert!(rejected.keep(again(&state, 1), mark, at(0)));
    assert_eq!(ids(&rejected.ready(9)), [state.id]);
    // Long ago is not remembered: judged again rather than left out.
    let mark = rejected.mark();
    for n in 0..=LATELY {
        let id = EventId::from_bytes([u8::try_from(n % 251).unwrap(); 32]);
        rejected.wake([Want::Event(&id)]);
    }
    assert!(rejected.keep(again(&state, 1), mark, at(0)));
    assert_eq!(rejected.ready(9).len(), 1);
    assert!(rejected.is_sound());
}

#[test]
fn whole_for_two_minutes_and_by_id_for_seven_days() {
    let mut rejected = index();
    let state = event(&keys(2), STATE, 1, &[&["d", "x"]]);
    let id = id_of(&state);
    keep(&mut rejected, &state, at(0));
    rejected.tick(at(119));
    assert!(rejected.keeps(&id));
    rejected.tick(at(120));
    assert!(!rejected.keeps(&id) && rejected.contains(&id));
    rejected.tick(at(7 * 24 * 60 * 60 - 1));
    assert!(rejected.contains(&id));
    rejected.tick(at(7 * 24 * 60 * 60));
    assert!(!rejected.contains(&id));
    assert_eq!(rejected.sizes(), (0, 0));
    assert!(rejected.is_sound() && rejected.misses.is_empty());
}

#[test]
fn a_cold_id_is_forgotten_when_what_it_missed_comes() {
    let mut rejected = index();
    let state = event(&keys(2), STATE, 1, &[&["d", "x"]]);
    keep(&mut rejected, &state, at(0));
    rejected.refuse(EventId::from_bytes([7; 32]), at(0));
    rejected.tick(at(600));
    let woken = rejected.wake(brought_by_announcement(&repo(1, "x"), true));
    assert!(woken.forgot && !woken.ready);
    assert!(rejected.ready(9).is_empty());
    assert!(!rejected.contains(&id_of(&state)));
    assert!(rejected.contains(&EventId::from_bytes([7; 32])));
}

#[test]
fn it_is_judged_again_a_bounded_number_of_times() {
    let mut rejected = index();
    let state = event(&keys(2), STATE, 1, &[&["d", "x"]]);
    let mut next = Some(again(&state, 1));
    let mut judged = 0;
    while let Some(again) = next {
        let mark = rejected.mark();
        rejected.keep(again, mark, at(0));
        rejected.wake(brought_by_announcement(&repo(1, "x"), false));
        next = rejected.ready(1).pop();
        judged += usize::from(next.is_some());
    }
    assert_eq!(judged, usize::from(TRIES));
}

#[test]
fn what_could_not_be_judged_is_ready_again_a_while_later() {
    let mut rejected = index();
    let state = event(&keys(2), STATE, 1, &[&["d", "x"]]);
    let mut next = again(&state, 1);
    for tries in 1..TRIES {
        rejected.put_back(next, at(0));
        assert_eq!(rejected.sizes(), (1, 0));
        assert!(!rejected.tick(at(29)) && rejected.ready(1).is_empty());
        assert!(rejected.tick(at(30)) && rejected.is_sound());
        next = rejected.ready(1).remove(0);
        assert_eq!(next.tries, tries);
    }
    // For ever is too long; then it may be fetched again.
    rejected.put_back(next, at(0));
    assert_eq!(rejected.sizes(), (0, 0));
    rejected.limits.whole = 3;
    for n in 0..9 {
        let comment = event(&keys(2), COMMENT, n, &[]);
        rejected.put_back(again(&comment, 1), at(0));
    }
    assert!(rejected.sizes().0 == 3 && rejected.is_sound());
}

#[test]
fn a_list_waits_for_its_author_to_be_known() {
    let mut rejected = index();
    let list = event(&keys(2), nip34::GRASP_LIST, 1, &[]);
    keep(&mut rejected, &list, at(0));
    assert!(!event_came(
        &mut rejected,
        &event(&keys(3), COMMENT, 1, &[])
    ));
    assert!(event_came(&mut rejected, &event(&keys(2), COMMENT, 1, &[])));
    assert_eq!(ids(&rejected.ready(9)), [list.id]);
    keep(&mut rejected, &list, at(0));
    let came = repo(2, "x");
    assert!(rejected.wake(brought_by_announcement(&came, false)).ready);
}

#[test]
fn everything_that_an_event_refers_to_is_missed() {
    let mut rejected = index();
    let issue = event(&keys(1), ISSUE, 1, &[]);
    let id = issue.id.to_hex();
    let repos: Vec<String> = (0..related::FOLLOWED)
        .map(|n| repo(1, &format!("x{n}")).coordinate())
        .collect();
    let mut tags: Vec<Vec<&str>> = repos.iter().map(|repo| vec!["a", repo.as_str()]).collect();
    tags.push(vec!["e", &id]);
    let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
    let comment = event(&keys(2), COMMENT, 2, &tags);
    keep(&mut rejected, &comment, at(0));
    assert!(event_came(&mut rejected, &issue));
    assert_eq!(ids(&rejected.ready(9)), [comment.id]);
}

#[test]
fn who_brings_most_loses_the_oldest() {
    let mut rejected = index();
    rejected.limits.whole_bytes = 10_000;
    let kept = event(&keys(2), STATE, 1, &[&["d", "x"]]);
    let mark = rejected.mark();
    assert!(rejected.keep(again(&kept, 1), mark, at(0)));
    let flood = |n| event(&keys(3), COMMENT, n, &[&["t", "x"]]);
    for n in 0..100 {
        assert!(rejected.keep(again(&flood(n), 2), mark, at(1)));
    }
    assert!(rejected.bytes <= 10_000 && rejected.bytes > 5_000);
    assert!(rejected.keeps(&id_of(&kept)));
    let oldest = id_of(&flood(0));
    assert!(!rejected.keeps(&oldest) && rejected.contains(&oldest));
    assert!(rejected.keeps(&id_of(&flood(99))));
    assert!(rejected.is_sound());
    rejected.limits.whole = 5;
    rejected.keep(again(&flood(100), 2), mark, at(1));
    assert_eq!(rejected.sizes().0, 5);
    assert!(rejected.is_sound());
}

#[test]
fn ids_are_bounded_and_the_oldest_go() {
    let mut rejected = index();
    let id = |n: usize| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
        EventId::from_bytes(bytes)
    };
    rejected.limits.ids = 1_000;
    for n in 0..1_010 {
        rejected.refuse(id(n), at(0));
    }
    assert_eq!(rejected.sizes(), (0, 1_000));
    assert!(!rejected.contains(&id(9)) && rejected.contains(&id(10)));
    assert!(rejected.is_sound());
    rejected.limits.missed = 3;
    for n in 0..9 {
        keep(&mut rejected, &event(&keys(1), COMMENT, n, &[]), at(0));
    }
    assert!(rejected.misses.len() <= 3 && rejected.is_sound());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever happens in whatever order, the index agrees with itself, and what is ready was kept.
    #[test]
    fn it_agrees_with_itself(steps in vec((0u8..7, 0u8..8, 0u64..90), 0..80)) {
        let mut rejected = index();
        let mut now = at(0);
        let names = ["a", "b", "c"];
        for (what, n, time) in steps {
            now = now + Duration::from_secs(time);
            let name = names[usize::from(n) % 3];
            let state = event(&keys(n + 1), STATE, 1, &[&["d", name]]);
            let comment = event(&keys(n + 1), COMMENT, 1, &[&["e", &state.id.to_hex()]]);
            match what {
                0 => drop(keep(&mut rejected, &state, now)),
                1 => drop(keep(&mut rejected, &comment, now)),
                2 => _ = rejected.wake(brought_by_announcement(&repo(1, name), true)),
                3 => drop(event_came(&mut rejected, &state)),
                4 => drop(rejected.tick(now)),
                5 => {
                    for again in rejected.ready(usize::from(n)) {
                        rejected.put_back(again, now);
                    }
                }
                _ => drop(rejected.ready(usize::from(n))),
            }
            prop_assert!(rejected.is_sound());
        }
    }
}
