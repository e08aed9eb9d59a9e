//! The operator's lists: what they keep out, take out of service, bring back, and archive.

use grasp_proto::process::settings::Settings;
use grasp_relay::{
    nip34::pull_request::PullRequest,
    policy::curation::{BANNED, BLOCKED, KEPT_ELSEWHERE, NOT_CHOSEN, NOT_TAKEN, READ_ONLY},
    withhold,
};

use super::*;

const EVENTS: &str = "NGIT_EVENT_BLACKLIST";
const BLACKLIST: &str = "NGIT_REPOSITORY_BLACKLIST";
const WHITELIST: &str = "NGIT_REPOSITORY_WHITELIST";
const ARCHIVE: &str = "NGIT_ARCHIVE_WHITELIST";
const ISSUE: Kind = Kind::Custom(1621);

impl Inside {
    /// The operator's rules from now on, as after a reload.
    pub async fn ruled(&self, pairs: &[(&'static str, &str)]) {
        let pairs = pairs.iter().map(|(name, v)| (*name, (*v).to_owned()));
        let domain = Domain::parse("grasp.example").unwrap();
        let rules = curation::Rules::from_settings(&Settings::from_pairs(pairs), &domain).unwrap();
        self.curation.replace(rules);
        withhold::apply(&self.release, &self.serial, &self.curation)
            .await
            .unwrap();
        withhold::settle(&self.release, &self.serial, &self.curation).await;
    }

    async fn rejected(&self, event: &Event, message: &str) {
        let verdict = Verdict::rejected(message);
        assert_eq!(self.admit(event).await, verdict);
        assert_eq!(self.admit_synced(event).await, verdict);
    }

    fn standing(&self, repo: &RepoId) -> Option<Standing> {
        self.release.repositories.standing(repo)
    }
}

pub fn npub(seed: u8) -> String {
    key_of(seed).to_string()
}

fn issue(seed: u8, at: u64, repos: &[&RepoId]) -> Event {
    let about = repos.iter().map(|repo| tag(&["a", &repo.coordinate()]));
    sign(seed, ISSUE, at, &about.collect::<Vec<_>>())
}

/// An announcement of what is kept at another service.
fn archived(seed: u8, name: &str, at: u64) -> Event {
    let tags = [
        tag(&["d", name]),
        tag(&["clone", "https://other.example/x.git"]),
        tag(&["relays", "wss://other.example"]),
    ];
    sign(seed, nip34::ANNOUNCEMENT, at, &tags)
}

#[tokio::test]
async fn nothing_of_a_banned_author_is_taken_whoever_brings_it() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[2]).await;
    inside.ruled(&[(EVENTS, &npub(2))]).await;
    for event in [
        announcement(2, "x", 11, &[]),
        announcement_elsewhere(2, "x", 11),
        state(2, "x", 11, &[("main", 1)]),
        pull_request(2, 11, &oid(1).to_hex(), &repo),
        issue(2, 11, &[&repo]),
        sign(2, nip34::DELETION, 11, &[]),
        sign(2, Kind::Custom(10317), 11, &[]),
        sign(
            2,
            Kind::Custom(20_000),
            11,
            &[tag(&["a", &repo.coordinate()])],
        ),
    ] {
        inside.rejected(&event, BANNED).await;
        assert!(!inside.serves(&event).await && !inside.holds(&event));
    }
    // Before anything else is looked at.
    let mut forged = issue(2, 12, &[&repo]);
    forged.content.push('x');
    inside.rejected(&forged, BANNED).await;
    inside.served(&issue(3, 11, &[&repo])).await;
    inside.ruled(&[]).await;
    inside.served(&issue(2, 11, &[&repo])).await;
}

#[tokio::test]
async fn each_list_says_so_and_those_just_beside_it_are_taken() {
    let inside = Inside::new().await;
    let blacklist = format!("{}/bad, worse, {}", npub(1), npub(2));
    let whitelist = format!("{}, {}/good, chosen", npub(1), npub(3));
    inside
        .ruled(&[(BLACKLIST, &blacklist), (WHITELIST, &whitelist)])
        .await;
    for (seed, name, why) in [
        (1, "bad", BLOCKED),
        (1, "worse", BLOCKED),
        (2, "chosen", BLOCKED),
        (3, "bad", NOT_CHOSEN),
        (4, "good", NOT_CHOSEN),
    ] {
        let event = announcement(seed, name, 10, &[]);
        inside.rejected(&event, why).await;
        assert_eq!(inside.standing(&repo(seed, name)), None);
        assert!(!inside.git.has(repo(seed, name)));
    }
    for (seed, name) in [(1, "other"), (3, "good"), (4, "chosen")] {
        inside.waits(&announcement(seed, name, 10, &[])).await;
    }
    inside
        .rejected(&state(1, "bad", 10, &[("main", 1)]), BLOCKED)
        .await;
    inside
        .rejected(&state(2, "other", 10, &[("main", 1)]), BLOCKED)
        .await;
    // An owner of a blocked repository may maintain another's.
    inside.waits(&announcement(3, "good", 11, &[1, 2])).await;
    inside.served(&answer(1, "good", 10, &[3])).await;
    inside.waits(&state(1, "good", 10, &[("main", 1)])).await;
    // Who has nothing announced here has nothing to answer with.
    inside.rejected(&answer(2, "good", 10, &[3]), BLOCKED).await;
    let theirs = inside.admit(&state(2, "good", 10, &[("main", 1)])).await;
    assert!(!theirs.ok, "{theirs:?}");
}

#[tokio::test]
async fn what_is_blocked_is_out_of_service_with_what_hangs_on_it_and_comes_back() {
    let inside = Inside::new().await;
    let bad = inside.active(1, "bad", &[5]).await;
    let good = inside.active(2, "good", &[]).await;
    let maintained = announcement_elsewhere(5, "bad", 12);
    inside.served(&maintained).await;
    let question = issue(3, 20, &[&bad]);
    let answer = sign(
        4,
        Kind::Custom(1111),
        21,
        &[tag(&["E", &question.id.to_hex()])],
    );
    let both = issue(3, 22, &[&bad, &good]);
    for event in [&question, &answer, &both] {
        inside.served(event).await;
    }
    let own = [
        announcement(1, "bad", 10, &[5]),
        state(1, "bad", 10, &[("main", 1)]),
        maintained,
        question,
        answer,
    ];
    let commands = [(branch("main"), oid(2))];
    for list in [npub(1), format!("{}/bad", npub(1)), "bad".to_owned()] {
        inside.ruled(&[(BLACKLIST, &list)]).await;
        for event in &own {
            assert!(!inside.serves(event).await, "{list}: kind {}", event.kind);
        }
        assert!(inside.serves(&both).await, "it is about another, too");
        assert_eq!(inside.standing(&bad), None);
        assert_eq!(inside.standing(&good), Some(Standing::Active));
        assert!(inside.git.has(&bad), "nothing is deleted");
        let why = inside.authorize(&bad, &commands).await.unwrap_err();
        assert_eq!(why, NOT_TAKEN);
        inside.rejected(&own[0], BLOCKED).await;
        assert!(!inside.admit(&own[3]).await.ok, "its issues neither");
        inside.ruled(&[]).await;
        for event in &own {
            assert!(inside.serves(event).await, "{list}: kind {}", event.kind);
        }
        assert_eq!(inside.standing(&bad), Some(Standing::Active));
        let elsewhere = inside.standing(&repo(5, "bad"));
        assert_eq!(elsewhere, Some(Standing::Elsewhere));
    }
    // A start does the same: what is served is read from the store, and then the lists.
    inside.ruled(&[(EVENTS, &npub(1))]).await;
    assert!(own.len() == 5 && !inside.serves(&own[3]).await);
    let fresh = Inside::over(
        inside.release.store.apart(),
        Journal::none(),
        &[],
        inside.git.clone(),
    )
    .await;
    let rules = fresh.curation.rules();
    let repositories = &fresh.release.repositories;
    withhold::load_served(&fresh.release.store, repositories, &rules)
        .await
        .unwrap();
    fresh.ruled(&[(EVENTS, &npub(1))]).await;
    for event in &own {
        assert!(!fresh.serves(event).await);
    }
    assert_eq!(fresh.standing(&bad), None);
    fresh.ruled(&[]).await;
    for event in &own {
        assert!(fresh.serves(event).await);
    }
}

#[tokio::test]
async fn a_banned_maintainer_authorises_nothing_any_more() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[2]).await;
    inside.served(&answer(2, "x", 10, &[1])).await;
    inside.git.bring(&identifier("x"), &[oid(2)]);
    let theirs = state(2, "x", 20, &[("main", 2)]);
    inside.served(&theirs).await;
    assert_eq!(inside.git.refs_of(&repo)[&branch("main")], oid(2));
    let waiting = state(2, "x", 30, &[("main", 3)]);
    inside.waits(&waiting).await;
    let request = pull_request(2, 30, &oid(4).to_hex(), &repo);
    inside.waits(&request).await;
    inside.ruled(&[(EVENTS, &npub(2))]).await;
    assert!(!inside.serves(&theirs).await);
    assert!(!inside.holds(&waiting) && !inside.holds(&request));
    let commands = [(branch("main"), oid(3))];
    assert!(inside.authorize(&repo, &commands).await.is_err());
    let latest = inside.release.latest_stored(&repo).await.unwrap().unwrap();
    assert_eq!(latest.author, key_of(1));
    inside.ruled(&[]).await;
    let latest = inside.release.latest_stored(&repo).await.unwrap().unwrap();
    assert_eq!(latest.author, key_of(2));
}

#[tokio::test]
async fn refs_of_a_banned_author_leave_the_repositories_of_others_and_come_back() {
    let inside = Inside::new().await;
    let (x, y) = (
        inside.active(1, "x", &[]).await,
        inside.active(3, "y", &[]).await,
    );
    inside.git.bring(&identifier("x"), &[oid(7), oid(8)]);
    let (theirs, others) = (
        pull_request(2, 20, &oid(7).to_hex(), &x),
        pull_request(4, 20, &oid(8).to_hex(), &x),
    );
    for request in [&theirs, &others] {
        inside.served(request).await;
    }
    let name = |event: &Event| RefName::nostr(&nip34::id_of(event));
    let shows = |event: &Event| inside.git.refs_of(&x).contains_key(&name(event));
    assert!(shows(&theirs) && shows(&others));
    let list = [(EVENTS, &*npub(2))];
    // Gone while the git storage is away: as soon as it is back.
    inside.git.goes_away(true);
    inside.ruled(&list).await;
    assert!(!inside.serves(&theirs).await);
    inside.git.goes_away(false);
    assert!(shows(&theirs));
    sweep::try_unfinished(&inside.release, &inside.serial).await;
    assert!(!shows(&theirs) && shows(&others), "and nobody else's");
    // What shows it again meanwhile is put right when the lists are read, and not before.
    inside.ruled(&list).await;
    assert!(!shows(&theirs));
    let know = inside.release.purgatory.withholding_refs(false);
    assert_eq!(know, [nip34::id_of(&theirs)]);
    assert!(inside.release.purgatory.withholding_refs(true).is_empty());
    inside.ruled(&[]).await;
    assert!(inside.serves(&theirs).await && shows(&theirs) && shows(&others));
    assert!(inside.release.purgatory.withholding_refs(false).is_empty());
    assert_eq!(inside.git.refs_of(&x)[&name(&theirs)], oid(7));
    assert!(!inside.git.refs_of(&y).contains_key(&name(&theirs)));
}

#[tokio::test]
async fn refs_that_were_taken_come_back_after_a_start_with_another_list() {
    let data = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(data.path()).unwrap();
    let store = Store::open(Backend::Memory, Path::new("")).await.unwrap();
    let inside = Inside::over(store, journal, &[], StandIn::default().into()).await;
    let x = inside.active(1, "x", &[]).await;
    inside.git.bring(&identifier("x"), &[oid(7)]);
    let theirs = pull_request(2, 20, &oid(7).to_hex(), &x);
    inside.served(&theirs).await;
    let name = RefName::nostr(&nip34::id_of(&theirs));
    inside.ruled(&[(EVENTS, &npub(2))]).await;
    assert!(!inside.git.refs_of(&x).contains_key(&name));
    inside.release.purgatory.flush().await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(data.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let (journal, records) = Journal::open(copy.path()).unwrap();
    let store = inside.release.store.apart();
    let again = Inside::over(store, journal, &records, inside.git.clone()).await;
    again.release.purgatory.restore(records);
    let (release, rules) = (&again.release, again.curation.rules());
    withhold::load_served(&release.store, &release.repositories, &rules)
        .await
        .unwrap();
    again.ruled(&[]).await;
    assert_eq!(again.git.refs_of(&x)[&name], oid(7));
    assert!(release.purgatory.withholding_refs(false).is_empty());
}

#[tokio::test]
async fn what_others_wrote_to_a_banned_authors_events_alone_goes_with_them() {
    let inside = Inside::new().await;
    let repo = inside.active(1, "x", &[]).await;
    let comment = |seed, at, tags: &[Vec<String>]| sign(seed, Kind::Custom(1111), at, tags);
    let to = |event: &Event| tag(&["E", &event.id.to_hex()]);
    let theirs = issue(2, 20, &[&repo]);
    let answer = comment(3, 21, &[to(&theirs)]);
    let answer_to_it = comment(4, 22, &[tag(&["e", &answer.id.to_hex()])]);
    let about_both = comment(3, 23, &[to(&theirs), tag(&["a", &repo.coordinate()])]);
    let anothers = issue(5, 24, &[&repo]);
    let in_anothers = comment(2, 25, &[to(&anothers)]);
    let to_both = comment(3, 26, &[to(&in_anothers), to(&anothers)]);
    let quoting = comment(3, 27, &[tag(&["q", &about_both.id.to_hex()]), to(&theirs)]);
    let go = [&theirs, &answer, &answer_to_it, &in_anothers];
    let stay = [&about_both, &anothers, &to_both, &quoting];
    for event in [
        &theirs,
        &answer,
        &answer_to_it,
        &about_both,
        &anothers,
        &in_anothers,
        &to_both,
        &quoting,
    ] {
        inside.served(event).await;
    }
    inside.ruled(&[(EVENTS, &npub(2))]).await;
    for event in go {
        assert!(!inside.serves(event).await, "{}", event.created_at);
    }
    for event in stay {
        assert!(inside.serves(event).await, "{}", event.created_at);
    }
    assert!(inside.serves(&state(1, "x", 10, &[("main", 1)])).await);
    // As it would be judged if it came now.
    assert!(!inside.admit(&comment(6, 28, &[to(&theirs)])).await.ok);
    inside.ruled(&[]).await;
    for event in go.into_iter().chain(stay) {
        assert!(inside.serves(event).await, "{}", event.created_at);
    }
}

#[tokio::test]
async fn what_waits_and_is_not_wanted_any_more_is_dropped() {
    let inside = Inside::new().await;
    let kept = announcement(1, "kept", 10, &[]);
    inside.waits(&kept).await;
    for (list, name) in [(BLACKLIST, "bad"), (WHITELIST, "kept")] {
        let unwanted = announcement(1, "bad", 10, &[]);
        inside.waits(&unwanted).await;
        inside.waits(&state(1, "bad", 10, &[("main", 1)])).await;
        inside.ruled(&[(list, name)]).await;
        assert!(!inside.holds(&unwanted) && inside.holds(&kept));
        assert!(!inside.git.has(repo(1, "bad")) && inside.git.has(repo(1, "kept")));
        inside.ruled(&[]).await;
    }
    // What is served stays when a whitelist comes, and is not changed any more.
    let served = inside.active(2, "served", &[]).await;
    inside.ruled(&[(WHITELIST, "kept")]).await;
    assert_eq!(inside.standing(&served), Some(Standing::Active));
    inside
        .rejected(&announcement(2, "served", 11, &[]), NOT_CHOSEN)
        .await;
    inside.waits(&state(2, "served", 11, &[("main", 2)])).await;
}

#[tokio::test]
async fn what_is_archived_is_as_if_it_listed_us_and_read_only() {
    let inside = Inside::new().await;
    let must = "invalid: the announcement must list grasp.example in both clone and relays";
    inside.rejected(&archived(1, "x", 10), must).await;
    inside.ruled(&[(ARCHIVE, &format!("{}/x", npub(1)))]).await;
    let or = format!("{must}, or be of a repository that is archived here");
    inside.rejected(&archived(1, "y", 10), &or).await;
    let (announced, first) = (archived(1, "x", 10), state(1, "x", 10, &[("main", 1)]));
    let repo = repo(1, "x");
    assert_eq!(
        inside.admit_synced(&announced).await,
        Verdict::accepted(WAITS)
    );
    assert_eq!(inside.standing(&repo), Some(Standing::Waiting));
    assert!(inside.git.has(&repo));
    assert_eq!(inside.admit_synced(&first).await, Verdict::accepted(WAITS));
    let commands = [(branch("main"), oid(1))];
    let pull = [(RefName::nostr(&nip34::id_of(&first)), oid(1))];
    for push in [&commands[..], &pull[..]] {
        assert_eq!(inside.authorize(&repo, push).await.unwrap_err(), READ_ONLY);
    }
    // Its data is found elsewhere.
    inside.git.bring(&identifier("x"), &[oid(1)]);
    sweep::try_everything(&inside.release, &inside.serial).await;
    assert!(inside.serves(&announced).await && inside.serves(&first).await);
    assert_eq!(inside.git.refs_of(&repo)[&branch("main")], oid(1));
    assert_eq!(
        inside.authorize(&repo, &commands).await.unwrap_err(),
        READ_ONLY
    );
    // Once it lists us it can be pushed to; and is archived again when it does not.
    inside.served(&announcement(1, "x", 11, &[])).await;
    assert!(inside.authorize(&repo, &commands).await.is_ok());
    inside.served(&archived(1, "x", 12)).await;
    assert_eq!(inside.standing(&repo), Some(Standing::Active));
    assert_eq!(
        inside.authorize(&repo, &commands).await.unwrap_err(),
        READ_ONLY
    );
    let writable = [(ARCHIVE, "x"), ("NGIT_ARCHIVE_READ_ONLY", "false")];
    inside.ruled(&writable).await;
    assert!(inside.authorize(&repo, &commands).await.is_ok());
    // Archived no more: served as it stands, and not kept up.
    inside.ruled(&[]).await;
    assert_eq!(inside.standing(&repo), Some(Standing::Elsewhere));
    assert!(inside.authorize(&repo, &commands).await.is_err());
    inside.ruled(&[(ARCHIVE, "x")]).await;
    assert_eq!(inside.standing(&repo), Some(Standing::Active));
}

#[tokio::test]
async fn what_is_hosted_can_be_pushed_to_beside_an_archive() {
    let inside = Inside::new().await;
    inside.ruled(&[("NGIT_ARCHIVE_ALL", "true")]).await;
    let repo = inside.active(1, "x", &[]).await;
    inside.waits(&state(1, "x", 11, &[("main", 2)])).await;
    let commands = [(branch("main"), oid(2))];
    assert!(inside.authorize(&repo, &commands).await.is_ok());
    inside.waits(&archived(2, "x", 10)).await;
    // It left, and nobody archives it: it goes.
    inside.ruled(&[(ARCHIVE, "other")]).await;
    assert!(!inside.admit(&archived(1, "x", 12)).await.ok);
    assert_eq!(inside.standing(&repo), None);
    assert!(inside.git.has_retired(&repo));
}

#[tokio::test(start_paused = true)]
async fn the_git_storage_knows_what_is_withheld_whenever_it_is_there() {
    let inside = Inside::new().await;
    let git = inside.git.clone();
    git.goes_away(true);
    inside
        .ruled(&[(BLACKLIST, "unwanted"), (EVENTS, &npub(7))])
        .await;
    let stop = CancellationToken::new();
    let telling = withhold::tell_git(git.clone(), inside.curation.clone(), stop.clone());
    let telling = tokio::spawn(telling);
    let told = async |count: usize| {
        while git.world().withheld.len() != count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    git.goes_away(false);
    told(2).await;
    inside.ruled(&[(BLACKLIST, "unwanted")]).await;
    told(1).await;
    // Another one in its place knows nothing.
    git.goes_away(true);
    tokio::time::sleep(Duration::from_secs(2)).await;
    git.world().withheld.clear();
    git.goes_away(false);
    told(1).await;
    inside.ruled(&[]).await;
    told(0).await;
    stop.cancel();
    telling.await.unwrap();
}

/// A pull request by `seed` from its author's own space.
fn contribution(seed: u8, at: u64, commit: u8, offered: &[&RepoId], more: &[Vec<String>]) -> Event {
    let first = &offered[0].identifier;
    let space = Address::prs(repo(seed, first.as_str()));
    let mut tags = vec![
        tag(&["c", &oid(commit).to_hex()]),
        tag(&["clone", &format!("https://grasp.example/{space}")]),
    ];
    tags.extend(offered.iter().map(|repo| tag(&["a", &repo.coordinate()])));
    tags.extend_from_slice(more);
    sign(seed, nip34::PULL_REQUEST, at, &tags)
}

#[tokio::test]
async fn a_space_is_no_way_round_the_blacklist() {
    let inside = Inside::new().await;
    let (bad, good) = (
        inside.active(1, "bad", &[]).await,
        inside.active(2, "bad", &[]).await,
    );
    let nowhere = repo(9, "bad");
    let spam = issue(6, 15, &[&bad]);
    inside.served(&spam).await;
    let only = contribution(5, 20, 7, &[&bad], &[]);
    let both = contribution(5, 21, 8, &[&bad, &good], &[]);
    let apart = contribution(5, 22, 9, &[&nowhere], &[]);
    for (event, commit) in [(&only, 7), (&both, 8), (&apart, 9)] {
        inside.waits(event).await;
        inside.push_to_space(event, commit).await;
        assert!(inside.serves(event).await);
    }
    let comment = sign(7, Kind::Custom(1111), 25, &[tag(&["e", &only.id.to_hex()])]);
    inside.served(&comment).await;
    let waiting = contribution(5, 23, 10, &[&bad], &[]);
    inside.waits(&waiting).await;

    let one = npub(1);
    inside.ruled(&[(BLACKLIST, &format!("{one}/bad"))]).await;
    for event in [&only, &comment, &spam] {
        assert!(!inside.serves(event).await);
    }
    assert!(!inside.holds(&waiting));
    assert!(inside.serves(&both).await && inside.serves(&apart).await);
    let about = contribution(5, 30, 11, &[&bad], &[tag(&["e", &spam.id.to_hex()])]);
    for event in [&about, &waiting, &only] {
        inside.rejected(event, BLOCKED).await;
    }
    assert!(!inside.admit(&spam).await.ok && !inside.serves(&spam).await);

    // Its author's space is what is blocked.
    inside
        .ruled(&[(BLACKLIST, &format!("{}/bad", npub(5)))])
        .await;
    for event in [&only, &both, &apart] {
        assert!(!inside.serves(event).await);
    }
    assert!(inside.serves(&spam).await);
    inside
        .rejected(&contribution(5, 31, 12, &[&nowhere], &[]), BLOCKED)
        .await;
    inside.ruled(&[]).await;
    for event in [&only, &both, &apart, &comment, &spam] {
        assert!(inside.serves(event).await);
    }
}

impl Inside {
    async fn push_to_space(&self, event: &Event, commit: u8) {
        let identifier = PullRequest::read(event.clone().into())
            .unwrap()
            .identifiers();
        let owner = nip34::author_of(event);
        let identifier = identifier.into_iter().next().unwrap();
        let to = Address::prs(RepoId { owner, identifier });
        let commands = [(super::pushes::nostr_ref(event), oid(commit))];
        let (id, _) = self.authorize(to.clone(), &commands).await.unwrap();
        assert_eq!(self.commit(&id, to, &commands).await.concat(), "");
    }
}

#[tokio::test]
async fn an_archived_repository_may_come_to_list_this_service_unchosen() {
    let inside = Inside::new().await;
    let rules = [(ARCHIVE, npub(1)), (WHITELIST, "hosted".to_owned())];
    let rules: Vec<_> = rules.iter().map(|(name, v)| (*name, v.as_str())).collect();
    inside.ruled(&rules).await;
    inside.waits(&archived(1, "x", 10)).await;
    inside.git.bring(&identifier("x"), &[oid(1), oid(2)]);
    inside.served(&state(1, "x", 10, &[("main", 1)])).await;
    let repo = repo(1, "x");
    inside.served(&announcement(1, "x", 11, &[])).await;
    assert_eq!(inside.standing(&repo), Some(Standing::Active));
    inside.served(&state(1, "x", 12, &[("main", 2)])).await;
    // As an archive, it takes no pushes.
    let commands = [(branch("main"), oid(2))];
    let refused = inside.authorize(&repo, &commands).await;
    assert_eq!(refused.unwrap_err(), READ_ONLY);
    // The archive is switched off: its announcement is served on, and is another service's.
    inside.waits(&archived(1, "y", 10)).await;
    inside.git.bring(&identifier("y"), &[oid(1)]);
    inside.served(&state(1, "y", 10, &[("main", 1)])).await;
    inside.ruled(&[]).await;
    let other = super::repo(1, "y");
    assert_eq!(inside.standing(&other), Some(Standing::Elsewhere));
    let refused = inside.authorize(&other, &commands).await;
    assert_eq!(refused.unwrap_err(), KEPT_ELSEWHERE);
}

#[tokio::test]
async fn what_is_back_has_the_refs_of_what_was_served_meanwhile() {
    let inside = Inside::new().await;
    let (out, stays) = (
        inside.active(1, "x", &[]).await,
        inside.active(2, "x", &[]).await,
    );
    let one = format!("{}/x", npub(1));
    inside.ruled(&[(BLACKLIST, &one)]).await;
    let tags = [
        tag(&["c", &oid(1).to_hex()]),
        tag(&["a", &out.coordinate()]),
        tag(&["a", &stays.coordinate()]),
    ];
    let event = sign(5, nip34::PULL_REQUEST, 20, &tags);
    inside.served(&event).await;
    let name = super::pushes::nostr_ref(&event);
    let has = |repo: &RepoId| inside.git.refs_of(repo).contains_key(&name);
    assert!(has(&stays) && !has(&out));
    // Back while the git storage is away, it gets them when that is back.
    inside.git.goes_away(true);
    inside.ruled(&[]).await;
    assert!(!has(&out));
    inside.git.goes_away(false);
    inside.try_unfinished().await;
    assert!(has(&out));
    assert!(inside.release.purgatory.withheld_repositories().is_empty());
}
