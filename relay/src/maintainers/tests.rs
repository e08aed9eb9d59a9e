use std::iter;

use proptest::prelude::*;

use super::*;

fn key(n: u8) -> Npub {
    Npub::from_bytes([n; 32])
}

fn keys(all: &[u8]) -> BTreeSet<Npub> {
    all.iter().copied().map(key).collect()
}

/// What an announcement says that names these and leads nobody anywhere.
fn naming(names: &[u8]) -> Listing {
    let mut names: Vec<Npub> = names.iter().copied().map(key).collect();
    names.sort_unstable();
    Listing {
        names,
        ..Listing::default()
    }
}

/// The same with `M` records.
fn led(leads: &[u8], names: &[u8]) -> Listing {
    let leads = leads.iter().copied().map(key).collect();
    Listing {
        leads,
        ..naming(names)
    }
}

fn all(rule: MaintainerRule, listings: &[(u8, Listing)]) -> Maintainers {
    let mut maintainers = Maintainers::new(rule);
    for (owner, listing) in listings {
        maintainers.announce(key(*owner), &Arc::new(listing.clone()));
    }
    maintainers
}

fn confirmed(listings: &[(u8, Listing)]) -> Maintainers {
    all(MaintainerRule::Confirmed, listings)
}

#[test]
fn who_is_named_and_does_not_answer_counts_for_nothing() {
    let mut maintainers = confirmed(&[(1, naming(&[2, 3])), (2, naming(&[4]))]);
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1]));
    assert!(maintainers.is_invited(&key(3)) && !maintainers.is_invited(&key(1)));
    let answered = maintainers.announce(key(2), &Arc::new(naming(&[1])));
    assert_eq!(answered, keys(&[1, 2]));
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1, 2]));
    assert_eq!(maintainers.set_of(&key(2)), keys(&[1, 2]));
    assert_eq!(maintainers.withdraw(&key(2)), keys(&[1, 2]));
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1]));
    assert_eq!(maintainers.set_of(&key(2)), keys(&[]));
}

#[test]
fn a_change_reaches_owners_at_any_distance() {
    let mut maintainers = confirmed(&[
        (1, naming(&[2])),
        (2, naming(&[1, 3])),
        (4, naming(&[3])),
        (5, naming(&[1, 2, 3, 4])),
    ]);
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1, 2]));
    let changed = maintainers.announce(key(3), &Arc::new(naming(&[2])));
    assert_eq!(changed, keys(&[1, 2, 3]));
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1, 2, 3]));
}

#[test]
fn a_clique_of_the_invited_does_not_confirm_itself() {
    let maintainers = confirmed(&[(1, naming(&[2])), (2, naming(&[3])), (3, naming(&[2]))]);
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1]));
}

#[test]
fn one_may_name_back_another_than_the_one_it_was_named_by() {
    let maintainers = confirmed(&[(1, naming(&[2])), (2, naming(&[1, 3])), (3, naming(&[1]))]);
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1, 2, 3]));
    // Not the other way round: nobody whom the third names answers it.
    assert_eq!(maintainers.set_of(&key(3)), keys(&[3]));
}

#[test]
fn a_former_maintainers_view_follows_to_the_lead_and_restores_nobody() {
    let former = Listing {
        author_has_left: true,
        ..led(&[1], &[1])
    };
    let unassigned = led(&[2], &[2]);
    let maintainers = confirmed(&[
        (1, led(&[1], &[4])),
        (4, naming(&[1])),
        (2, former),
        (3, unassigned),
    ]);
    for owner in 1..=4 {
        assert_eq!(maintainers.set_of(&key(owner)), keys(&[1, 4]), "{owner}");
    }
    let trusting: BTreeSet<Npub> = maintainers.owners_trusting(&key(1)).collect();
    assert_eq!(trusting, keys(&[1, 2, 3, 4]));
}

#[test]
fn a_path_that_leads_nowhere_confirms_nobody() {
    let cases: [&[(u8, Listing)]; 5] = [
        &[(1, led(&[2], &[2]))],
        &[(1, led(&[2], &[2])), (2, naming(&[1]))],
        &[(1, led(&[1, 2], &[2])), (2, led(&[2], &[1]))],
        &[(1, led(&[2], &[2])), (2, led(&[1], &[1]))],
        &[(
            1,
            Listing {
                author_has_left: true,
                ..naming(&[])
            },
        )],
    ];
    for listings in cases {
        assert_eq!(
            confirmed(listings).set_of(&key(1)),
            keys(&[]),
            "{listings:?}"
        );
    }
    // The end of the path appears.
    let mut maintainers = confirmed(&[(1, led(&[2], &[2]))]);
    let changed = maintainers.announce(key(2), &Arc::new(led(&[2], &[1])));
    assert_eq!(changed, keys(&[1, 2]));
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1, 2]));
}

#[test]
fn forks_neither_join_nor_extend() {
    let fork = |names: &[u8]| Listing {
        is_fork: true,
        ..naming(names)
    };
    let maintainers = confirmed(&[(1, naming(&[2])), (2, fork(&[1, 3])), (3, naming(&[2, 1]))]);
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1]));
    assert_eq!(maintainers.set_of(&key(2)), keys(&[2]));
    assert!(!maintainers.is_invited(&key(3)));
}

#[test]
fn the_older_rule_asks_nobody() {
    let maintainers = all(
        MaintainerRule::Listed,
        &[(1, naming(&[2])), (2, naming(&[3, 1]))],
    );
    assert_eq!(maintainers.set_of(&key(1)), keys(&[1, 2, 3]));
    assert_eq!(maintainers.set_of(&key(3)), keys(&[]));
    let trusting: BTreeSet<Npub> = maintainers.owners_trusting(&key(3)).collect();
    assert_eq!(trusting, keys(&[1, 2]));
}

/// Thousands who name somebody who does not name them cost that one nothing, and a crowd that names
/// each other is worked off in steps.
#[test]
fn crowds_are_bounded() {
    let many = |n: u16| {
        let mut bytes = [9; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        Npub::from_bytes(bytes)
    };
    let mut maintainers = confirmed(&[(1, naming(&[2])), (2, naming(&[1]))]);
    let hostile = Arc::new(naming(&[1, 2]));
    for n in 0..5_000 {
        let changed = maintainers.announce(many(n), &hostile);
        assert_eq!(changed, BTreeSet::from([many(n)]));
    }
    assert_eq!(maintainers.owners_trusting(&key(1)).count(), 2);
    assert_eq!(maintainers.resting_on[&key(1)].len(), 2);

    let mut crowd = Maintainers::default();
    let hub: Vec<Npub> = (0..128).map(many).collect();
    for n in 0..300 {
        let mut names = hub.clone();
        names.retain(|one| *one != many(n));
        let listing = Listing {
            names,
            ..Listing::default()
        };
        crowd.announce(many(n), &Arc::new(listing));
        assert!(
            crowd
                .views
                .values()
                .all(|view| view.members.len() <= MEMBERS)
        );
    }
    let changed = crowd.withdraw(&many(0));
    assert!(changed.contains(&many(0)) && crowd.has_stale_views());
    let mut steps = 1;
    while crowd.has_stale_views() {
        crowd.work_off();
        steps += 1;
    }
    assert!(steps > 1 && crowd.owners_trusting(&many(0)).count() == 0);
}

/// The rule, once more and without any thought for its cost.
fn stated(rule: MaintainerRule, listings: &BTreeMap<u8, Listing>, owner: u8) -> BTreeSet<u8> {
    let named = |by: u8| -> BTreeSet<u8> {
        let listing = listings.get(&by);
        let says_so = listing.filter(|one| rule == MaintainerRule::Listed || !one.is_fork);
        let names = |one: &Listing| (0..=9).filter(|n| one.names(&key(*n))).collect();
        says_so.map(names).unwrap_or_default()
    };
    let Some(own) = listings.get(&owner) else {
        return BTreeSet::new();
    };
    let mut set = BTreeSet::new();
    if rule == MaintainerRule::Listed || own.is_fork || own.leads.is_empty() {
        if rule == MaintainerRule::Listed || !own.author_has_left {
            set.insert(owner);
        }
    } else {
        // However long the path, it ends within as many steps as there are announcements.
        let next = |at: &u8| {
            let listing = listings.get(at).filter(|one| !one.is_fork)?;
            let [lead] = listing.leads[..] else {
                return None;
            };
            (0..=9).find(|n| key(*n) == lead)
        };
        let path: Vec<u8> = iter::successors(Some(owner), next).take(12).collect();
        let last = path[path.len() - 1];
        if path.len() == 12 && next(&last) == Some(last) {
            set.insert(last);
        }
    }
    loop {
        let joins = |candidate: &u8| {
            let is_named = set.iter().any(|member| named(*member).contains(candidate));
            let answers = listings
                .get(candidate)
                .is_some_and(|one| !one.is_fork && !one.author_has_left);
            let names_back = named(*candidate).iter().any(|one| set.contains(one));
            is_named && (rule == MaintainerRule::Listed || answers && names_back)
        };
        let more: Vec<u8> = (0..=9).filter(|n| !set.contains(n) && joins(n)).collect();
        if more.is_empty() {
            return set;
        }
        set.extend(more);
    }
}

fn listing() -> impl Strategy<Value = Listing> {
    let names = prop::collection::btree_set(0u8..8, 0..4);
    let leads = prop_oneof![
        3 => Just(BTreeSet::new()),
        3 => prop::collection::btree_set(0u8..8, 1..2),
        1 => prop::collection::btree_set(0u8..8, 2..3),
    ];
    let flag = || prop::bool::weighted(0.15);
    (names, leads, flag(), flag()).prop_map(|(mut names, leads, author_has_left, is_fork)| {
        names.extend(&leads);
        let names: Vec<u8> = names.into_iter().collect();
        let leads: Vec<u8> = leads.into_iter().collect();
        Listing {
            author_has_left,
            is_fork,
            ..led(&leads, &names)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_set_is_as_stated_after_every_change(
        rule in prop_oneof![Just(MaintainerRule::Confirmed), Just(MaintainerRule::Listed)],
        changes in prop::collection::vec((0u8..8, prop::option::weighted(0.8, listing())), 1..14),
    ) {
        let mut maintainers = Maintainers::new(rule);
        let mut listings = BTreeMap::new();
        let sets = |listings: &BTreeMap<u8, Listing>| -> Vec<BTreeSet<u8>> {
            (0..8).map(|owner| stated(rule, listings, owner)).collect()
        };
        for (owner, listing) in changes {
            let before = sets(&listings);
            let changed = match listing {
                Some(mut listing) => {
                    listing.names.retain(|one| *one != key(owner));
                    listings.insert(owner, listing.clone());
                    maintainers.announce(key(owner), &Arc::new(listing))
                }
                None => {
                    listings.remove(&owner);
                    maintainers.withdraw(&key(owner))
                }
            };
            let after = sets(&listings);
            for (owner, set) in (0u8..).zip(&after) {
                let stands: Vec<u8> = set.iter().copied().collect();
                prop_assert_eq!(maintainers.set_of(&key(owner)), keys(&stands), "{}", owner);
                let is_changed = before[usize::from(owner)] != *set;
                prop_assert_eq!(changed.contains(&key(owner)), is_changed, "{}", owner);
            }
            for author in 0..8 {
                let trusting: BTreeSet<Npub> = maintainers.owners_trusting(&key(author)).collect();
                let stands: Vec<u8> = (0u8..8)
                    .filter(|owner| after[usize::from(*owner)].contains(&author))
                    .collect();
                prop_assert_eq!(trusting, keys(&stands));
            }
        }
        for owner in 0..8 {
            maintainers.withdraw(&key(owner));
        }
        prop_assert!(maintainers.is_empty() && maintainers.named_by.is_empty());
        prop_assert!(maintainers.resting_on.is_empty() && maintainers.views.is_empty());
    }
}
