//! Who counts for a repository, and what follows when that changes, at whatever distance.

use grasp_relay::{
    maintainers::MaintainerRule,
    rule_change::{self, RuleChangeError},
    withhold,
};

use super::{holding::delete, *};

impl Inside {
    fn main_of(&self, repo: &RepoId) -> Option<Oid> {
        self.git.refs_of(repo).get(&branch("main")).copied()
    }
}

/// A role tag of one whose key is this.
fn role(letter: &str, seed: u8, history: &[&str]) -> Vec<String> {
    let mut parts = vec![letter.to_owned(), key_of(seed).to_hex()];
    parts.extend(history.iter().map(|at| (*at).to_owned()));
    parts
}

fn with_roles(seed: u8, name: &str, at: u64, is_here: bool, roles: &[Vec<String>]) -> Event {
    let mut tags = vec![tag(&["d", name])];
    if is_here {
        tags.push(tag(&["clone", "https://grasp.example/x.git"]));
        tags.push(tag(&["relays", "wss://grasp.example"]));
    }
    tags.extend(roles.iter().cloned());
    sign(seed, nip34::ANNOUNCEMENT, at, &tags)
}

#[tokio::test]
async fn who_is_named_and_has_not_answered_moves_nothing() {
    let inside = Inside::new().await;
    let first = inside.active(1, "x", &[2]).await;
    // A repository of its own, of another project.
    let second = inside.active(2, "x", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    inside.served(&state(2, "x", 30, &[("main", 2)])).await;
    assert_eq!(inside.main_of(&first), Some(oid(1)));
    assert_eq!(inside.main_of(&second), Some(oid(2)));
    let commands = [(branch("main"), oid(3))];
    inside.waits(&state(2, "x", 40, &[("main", 3)])).await;
    assert!(inside.authorize(&first, &commands).await.is_err());
    assert!(inside.authorize(&second, &commands).await.is_ok());
    // Without a repository of its own it is told what is missing.
    inside.active(1, "y", &[3]).await;
    let verdict = inside.admit(&state(3, "y", 30, &[("main", 1)])).await;
    assert!(
        !verdict.ok && verdict.message.contains("names back"),
        "{verdict:?}"
    );
    assert!(
        verdict
            .message
            .contains("author not authorized for this repository")
    );
}

#[tokio::test]
async fn an_answer_brings_what_was_signed_before_it_at_any_distance() {
    let inside = Inside::new().await;
    let first = inside.active(1, "x", &[2]).await;
    inside.active(3, "x", &[2]).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    inside.served(&state(3, "x", 30, &[("main", 2)])).await;
    assert_eq!(inside.main_of(&first), Some(oid(1)));
    // The second announces for the first time, and names both: the third counts for the first.
    inside.served(&answer(2, "x", 40, &[1, 3])).await;
    assert_eq!(inside.main_of(&first), Some(oid(2)));
    // It is dropped again: what was shown stays, and so it does when the dropped one deletes it.
    inside.served(&answer(2, "x", 50, &[1])).await;
    let theirs = state(3, "x", 30, &[("main", 2)]);
    inside.served(&delete(3, 60, &theirs)).await;
    sweep::try_again(&inside.release, &inside.serial, &identifier("x")).await;
    assert_eq!(inside.main_of(&first), Some(oid(2)));
    inside.served(&state(1, "x", 61, &[("main", 1)])).await;
    assert_eq!(inside.main_of(&first), Some(oid(1)));
}

#[tokio::test]
async fn what_waits_is_released_when_its_author_counts() {
    let inside = Inside::new().await;
    let first = inside.active(1, "x", &[2]).await;
    inside.waits(&announcement(2, "x", 10, &[])).await;
    let theirs = state(2, "x", 30, &[("main", 2)]);
    inside.waits(&theirs).await;
    let commands = [(branch("main"), oid(2))];
    assert!(inside.authorize(&first, &commands).await.is_err());
    inside.served(&announcement(2, "x", 11, &[1])).await;
    let (id, _) = inside.authorize(&first, &commands).await.unwrap();
    inside.git.bring(&identifier("x"), &[oid(2)]);
    assert_eq!(inside.commit(&id, &first, &commands).await, [""]);
    assert!(inside.serves(&theirs).await);
    assert_eq!(inside.main_of(&repo(2, "x")), Some(oid(2)));
}

#[tokio::test]
async fn who_comes_here_is_served_by_a_state_of_before_whose_data_is_here() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[4]).await;
    inside.served(&answer(4, "x", 20, &[])).await;
    let theirs = state(4, "x", 30, &[("main", 5)]);
    inside.waits(&theirs).await;
    inside.git.bring(&identifier("x"), &[oid(5)]);
    inside.served(&announcement(4, "x", 40, &[])).await;
    assert!(inside.serves(&theirs).await);
    assert_eq!(inside.main_of(&repo(4, "x")), Some(oid(5)));
}

#[tokio::test]
async fn an_announcement_that_goes_takes_its_word_along() {
    let inside = Inside::new().await;
    let first = inside.active(1, "x", &[2]).await;
    inside.waits(&announcement(2, "x", 10, &[3])).await;
    inside.served(&answer(3, "x", 11, &[2])).await;
    inside.served(&announcement(1, "x", 12, &[2, 3])).await;
    inside.waits(&state(3, "x", 30, &[("main", 2)])).await;
    assert!(
        inside
            .authorize(&first, &[(branch("main"), oid(2))])
            .await
            .is_err()
    );
    // The second answers: with it the third counts for the first.
    inside.served(&announcement(2, "x", 13, &[1, 3])).await;
    assert!(
        inside
            .authorize(&first, &[(branch("main"), oid(2))])
            .await
            .is_ok()
    );
    inside
        .served(&delete(2, 50, &announcement(2, "x", 13, &[1, 3])))
        .await;
    assert!(
        inside
            .authorize(&first, &[(branch("main"), oid(2))])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn roles_count_by_their_history_and_moderators_sign_nothing() {
    let inside = Inside::new().await;
    let lead = [
        role("M", 1, &["5"]),
        role("m", 2, &["5"]),
        role("o", 3, &[]),
    ];
    inside.waits(&with_roles(1, "x", 10, true, &lead)).await;
    inside
        .git
        .bring(&identifier("x"), &[oid(1), oid(2), oid(3)]);
    inside.served(&state(1, "x", 10, &[("main", 1)])).await;
    let first = repo(1, "x");
    let accepts = [role("M", 1, &["6"]), role("m", 2, &["6"])];
    inside
        .served(&with_roles(2, "x", 11, false, &accepts))
        .await;
    inside.served(&state(2, "x", 20, &[("main", 2)])).await;
    assert_eq!(inside.main_of(&first), Some(oid(2)));
    let moderates = [role("M", 1, &[]), role("o", 3, &[])];
    assert!(
        !inside
            .admit(&with_roles(3, "x", 12, false, &moderates))
            .await
            .ok
    );
    assert!(!inside.admit(&state(3, "x", 21, &[("main", 3)])).await.ok);
    // Its role has an end now.
    let ended = [role("M", 1, &["5"]), role("m", 2, &["5", "15"])];
    inside.served(&with_roles(1, "x", 30, true, &ended)).await;
    assert!(!inside.admit(&state(2, "x", 31, &[("main", 3)])).await.ok);
    assert_eq!(inside.main_of(&first), Some(oid(2)));
    // And begins again.
    let again = [role("M", 1, &["5"]), role("m", 2, &["5", "15", "25"])];
    inside.served(&with_roles(1, "x", 40, true, &again)).await;
    inside.served(&state(2, "x", 41, &[("main", 3)])).await;
    assert_eq!(inside.main_of(&first), Some(oid(3)));
}

#[tokio::test]
async fn a_former_maintainers_repository_follows_the_lead() {
    let inside = Inside::new().await;
    let former = inside.active(2, "x", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(2), oid(3)]);
    inside
        .waits(&with_roles(1, "x", 10, true, &[role("M", 1, &[])]))
        .await;
    inside.served(&state(1, "x", 20, &[("main", 2)])).await;
    assert_eq!(inside.main_of(&former), Some(oid(1)));
    let forwards = [role("M", 1, &["1"]), role("m", 2, &["1", "19"])];
    inside
        .served(&with_roles(2, "x", 30, true, &forwards))
        .await;
    assert_eq!(inside.main_of(&former), Some(oid(2)));
    // Who has left signs nothing, there neither.
    let verdict = inside.admit(&state(2, "x", 31, &[("main", 3)])).await;
    assert!(!verdict.ok, "{verdict:?}");
    inside.served(&state(1, "x", 32, &[("main", 3)])).await;
    assert_eq!(inside.main_of(&former), Some(oid(3)));
    // Two leads are none: nobody counts, and nothing moves.
    let ambiguous = [role("M", 1, &[]), role("M", 3, &[])];
    inside
        .served(&with_roles(2, "x", 33, true, &ambiguous))
        .await;
    inside.served(&state(1, "x", 34, &[("main", 1)])).await;
    assert_eq!(inside.main_of(&former), Some(oid(3)));
}

#[tokio::test]
async fn a_fork_neither_joins_nor_extends_a_set() {
    let inside = Inside::new().await;
    let first = inside.active(1, "x", &[2]).await;
    let fork = announcement(2, "x", 10, &[1]);
    let mut tags: Vec<Vec<String>> = fork
        .tags
        .iter()
        .map(|tag| tag.as_slice().to_vec())
        .collect();
    tags.push(tag(&["u", &first.coordinate()]));
    let fork = sign(2, nip34::ANNOUNCEMENT, 11, &tags);
    inside.waits(&fork).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    inside.served(&state(2, "x", 30, &[("main", 2)])).await;
    assert_eq!(inside.main_of(&first), Some(oid(1)));
    assert_eq!(inside.main_of(&repo(2, "x")), Some(oid(2)));
    inside.served(&state(1, "x", 40, &[("main", 1)])).await;
    assert_eq!(inside.main_of(&repo(2, "x")), Some(oid(2)));
}

#[tokio::test]
async fn a_pull_request_offered_to_one_is_shown_by_those_who_trust_it_from_then_on() {
    let inside = Inside::new().await;
    let first = inside.active(1, "x", &[]).await;
    let second = inside.active(2, "x", &[1]).await;
    inside.git.bring(&identifier("x"), &[oid(7)]);
    let request = pull_request(5, 30, &oid(7).to_hex(), &second);
    inside.served(&request).await;
    let name = RefName::nostr(&nip34::id_of(&request));
    assert!(!inside.git.refs_of(&first).contains_key(&name));
    inside.served(&announcement(1, "x", 40, &[2])).await;
    assert!(inside.git.refs_of(&first).contains_key(&name));
}

/// As the version before left it, where whoever is named counts.
async fn before_the_upgrade() -> (Store, Arc<StandIn>, RepoId) {
    let inside = Inside::new().await;
    let first = inside.active(1, "x", &[2]).await;
    inside.active(1, "y", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    let theirs = state(2, "x", 30, &[("main", 2)]);
    inside.release.store.save(&theirs).await.unwrap();
    let git = inside.git.clone();
    let refs = [(branch("main"), oid(2))].into();
    let address = Address::from(&first);
    git.world().repos.get_mut(&address).unwrap().refs = refs;
    (inside.release.store.clone(), git, first)
}

async fn adopt(inside: &Inside) -> Result<(), RuleChangeError> {
    let rules = inside.curation.rules();
    withhold::load_served(&inside.release.store, &inside.release.repositories, &rules)
        .await
        .unwrap();
    rule_change::adopt(&inside.release, &rules).await
}

#[tokio::test]
async fn an_upgrade_moves_no_refs_back() {
    let (store, git, first) = before_the_upgrade().await;
    let data = tempfile::tempdir().unwrap();
    let (journal, records) = Journal::open(data.path()).unwrap();
    let after = Inside::over(store, journal, &records, git).await;
    after.release.purgatory.restore(records);
    adopt(&after).await.unwrap();
    sweep::try_again(&after.release, &after.serial, &identifier("x")).await;
    after.served(&state(1, "x", 20, &[("main", 1)])).await;
    assert_eq!(after.main_of(&first), Some(oid(2)));
    // It is adopted once: what comes later by the newer rule is not taken for what was served before.
    after.release.purgatory.flush().await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(data.path().join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    let (journal, records) = Journal::open(copy.path()).unwrap();
    let (store, git) = (after.release.store.clone(), after.git.clone());
    let again = Inside::over(store, journal, &records, git).await;
    again.release.purgatory.restore(records);
    let purgatory = &again.release.purgatory;
    assert_eq!(purgatory.maintainer_rule(), Some(MaintainerRule::Confirmed));
    let shown = purgatory.applied_state(&first).unwrap();
    assert_eq!(shown.author, key_of(2));
    adopt(&again).await.unwrap();
    sweep::try_again(&again.release, &again.serial, &identifier("x")).await;
    assert_eq!(again.main_of(&first), Some(oid(2)));
    again.served(&state(1, "x", 40, &[("main", 1)])).await;
    assert_eq!(again.main_of(&first), Some(oid(1)));
}
