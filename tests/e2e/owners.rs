//! Repositories of one project that belong to several owners: what goes and comes back with one of
//! them, and what the others' repositories show meanwhile.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    Client, Draft, Event, Keys, Project, Repo, Service,
    events::{deletion, deletion_of, elsewhere, issue, patch, pull_request, pull_request_update},
    git, until,
};

/// Two owners of one project, one of whom maintains the other's: through a third, who stands between
/// them, since otherwise each would maintain the other's.
struct Pair {
    first: Project,
    second: Project,
    between: Keys,
    announcements: [Event; 2],
}

#[derive(Clone, Copy)]
enum Trusts {
    /// The second owner maintains the first's.
    First,
    /// The first owner maintains the second's.
    Second,
}

impl Pair {
    async fn active(service: &Service, client: &mut Client, name: &str, trusts: Trusts) -> Self {
        let first = Project::new(name).await;
        let second = Project {
            owner: Keys::generate(),
            identifier: name.to_owned(),
            repo: Repo::clone(&format!("file://{}", first.repo.path().display()), &[])
                .await
                .0,
        };
        let between = Keys::generate();
        let announcements = Self::announcements(service, &first, &second, &between, trusts);
        for event in &announcements {
            client.publish(event).await.waits();
        }
        let trusting = match trusts {
            Trusts::First => &first.owner,
            Trusts::Second => &second.owner,
        };
        let answer = elsewhere(name).maintainers(&[trusting]).sign(&between);
        client.publish(&answer).await.served();
        let state = first.state().await.sign(&first.owner);
        client.publish(&state).await.waits();
        first.push(service, &["main"]).await.good();
        let state = second.state().await.sign(&second.owner);
        client.publish(&state).await.served();
        assert!(first.hosted(service).await && second.hosted(service).await);
        Self {
            first,
            second,
            between,
            announcements,
        }
    }

    fn announcements(
        service: &Service,
        first: &Project,
        second: &Project,
        between: &Keys,
        trusts: Trusts,
    ) -> [Event; 2] {
        let (one, other) = (first.announcement(service), second.announcement(service));
        let (one, other) = match trusts {
            Trusts::First => (
                one.maintainers(&[between, &second.owner]),
                other.maintainers(&[between]),
            ),
            Trusts::Second => (
                one.maintainers(&[between]),
                other.maintainers(&[between, &first.owner]),
            ),
        };
        [one.sign(&first.owner), other.sign(&second.owner)]
    }

    fn announced_again(&self, service: &Service, trusts: Trusts) -> Event {
        let Self {
            first,
            second,
            between,
            ..
        } = self;
        let [first, _] = Self::announcements(service, first, second, between, trusts);
        first
    }
}

async fn clones(service: &Service, project: &Project, head: &str) {
    let (clone, out) = Repo::clone(&project.url(service), &[]).await;
    out.good();
    assert_eq!(clone.oid("HEAD").await, head);
}

#[tokio::test]
async fn a_maintainers_state_stays_with_the_other_owner_when_his_repository_goes() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let pair = Pair::active(&service, &mut client, "shared", Trusts::Second).await;
    let (first, second) = (&pair.first, &pair.second);
    let before = first.repo.oid("main").await;
    let latest = first.repo.commit().await;
    let state = first.update(&service, &mut client, &["main"]).await;
    for project in [first, second] {
        until("both show the latest", || async {
            project
                .remote_ref(&service, "refs/heads/main")
                .await
                .as_deref()
                == Some(&latest)
        })
        .await;
    }
    // By its id; by a version that names another service.
    for round in 0..2 {
        let gone = if round == 0 {
            let request = deletion(&[&pair.announcements[0]]).sign(&first.owner);
            client.publish(&request).await.served();
            pair.announcements[0].clone()
        } else {
            let stored = client
                .query(json!({"kinds": [30617], "authors": [first.owner.public_key().to_hex()]}))
                .await;
            let moved = elsewhere(&first.identifier).sign(&first.owner);
            // Its author maintains the second's: it is served without a repository.
            assert!(client.publish(&moved).await.accepted);
            stored[0].clone()
        };
        assert!(!first.hosted(&service).await, "round {round}");
        assert!(!client.serves(&gone).await);
        assert!(client.serves(&state).await, "it is the second's latest");
        clones(&service, second, &latest).await;
        let again = pair.announced_again(&service, Trusts::Second);
        client.publish(&again).await.served();
        clones(&service, first, &latest).await;
        clones(&service, second, &latest).await;
        assert!(client.serves(&state).await && !client.serves(&gone).await);
    }
    // What is left when the state goes is the second's own, and his refs follow; the first has no
    // other, and his stay.
    let request = deletion(&[&state]).sign(&first.owner);
    client.publish(&request).await.served();
    until("the second's refs follow", || async {
        second
            .remote_ref(&service, "refs/heads/main")
            .await
            .as_deref()
            == Some(&before)
    })
    .await;
    assert_eq!(
        first
            .remote_ref(&service, "refs/heads/main")
            .await
            .as_deref(),
        Some(&*latest)
    );
    let refused = {
        first.repo.commit().await;
        first.push(&service, &["main"]).await.refused()
    };
    assert!(refused.contains("state"), "{refused}");
    first.update(&service, &mut client, &["main"]).await;
}

#[tokio::test]
async fn what_the_other_owner_maintains_goes_with_the_announcement_that_says_so() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let pair = Pair::active(&service, &mut client, "named", Trusts::First).await;
    let (first, second) = (&pair.first, &pair.second);
    let latest = second.repo.commit().await;
    let theirs = second.update(&service, &mut client, &["main"]).await;
    until("the first shows the second's", || async {
        first
            .remote_ref(&service, "refs/heads/main")
            .await
            .as_deref()
            == Some(&latest)
    })
    .await;
    let request = deletion_of(&first.coordinate()).sign(&first.owner);
    client.publish(&request).await.served();
    assert!(!first.hosted(&service).await && client.serves(&theirs).await);
    clones(&service, second, &latest).await;
    let further = second.repo.commit().await;
    second.update(&service, &mut client, &["main"]).await;
    let again = pair.announced_again(&service, Trusts::First);
    client.publish(&again).await.served();
    clones(&service, first, &further).await;
    clones(&service, second, &further).await;
}

async fn serves_just(service: &Service, served: &[&Event], not: &[&Event], context: &str) {
    until(context, || async {
        let mut client = Client::connect(service).await;
        for event in served {
            if !client.serves(event).await {
                return false;
            }
        }
        for event in not {
            if client.serves(event).await {
                return false;
            }
        }
        true
    })
    .await;
}

#[tokio::test]
async fn just_what_hangs_on_one_owner_goes_with_him() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let pair = Pair::active(&service, &mut client, "web", Trusts::Second).await;
    let (first, second) = (&pair.first, &pair.second);
    let (one, two) = (Keys::generate(), Keys::generate());
    let about = |kind: u16, events: &[&Event]| {
        let name = match kind {
            1111 => "E",
            _ => "e",
        };
        let tag = |draft: Draft, event: &&Event| draft.tag([name, &event.id.to_hex()]);
        events.iter().fold(Draft::new(kind), tag)
    };
    let mine = issue(&first.coordinate()).sign(&one);
    let theirs = issue(&second.coordinate()).sign(&one);
    let both = issue(&first.coordinate())
        .tag(["a", &second.coordinate()])
        .sign(&two);
    let on_mine = about(1111, &[&mine]).sign(&two);
    let deeper = about(1111, &[&on_mine]).sign(&one);
    let liked = about(7, &[&deeper]).sign(&two);
    let across = about(1111, &[&mine, &theirs]).sign(&two);
    let over_across = about(1111, &[&across]).sign(&one);
    let on_both = about(1111, &[&both]).sign(&one);
    let closed = about(1632, &[&mine])
        .tag(["a", &first.coordinate()])
        .sign(&first.owner);
    let closed_both = about(1632, &[&both])
        .tag(["a", &first.coordinate()])
        .sign(&first.owner);
    let change = patch(&first.coordinate()).sign(&two);
    let on_change = about(1111, &[&change]).sign(&one);
    let list = Draft::new(10317)
        .tag(["g", &format!("wss://{}", service.domain())])
        .sign(&one);
    for event in [
        &mine,
        &theirs,
        &both,
        &on_mine,
        &deeper,
        &liked,
        &across,
        &over_across,
        &on_both,
        &closed,
        &closed_both,
        &change,
        &on_change,
        &list,
    ] {
        client.publish(event).await.served();
    }
    // `across` stands by the second's issue, and holds nothing that it does not refer to – but what it
    // refers to, it does: `mine`, and what hangs on that.
    let lives = [
        &theirs,
        &both,
        &across,
        &over_across,
        &on_both,
        &closed_both,
        &list,
        &mine,
        &on_mine,
        &deeper,
        &liked,
        &closed,
    ];
    let goes = [&change, &on_change];
    let request = deletion_of(&first.coordinate()).sign(&first.owner);
    client.publish(&request).await.served();
    serves_just(&service, &lives, &goes, "deleted").await;
    // Twice in a row.
    let request = deletion_of(&first.coordinate()).sign(&first.owner);
    client.publish(&request).await.served();
    serves_just(&service, &lives, &goes, "deleted twice").await;
    client.publish(&change).await.rejected();
    client.publish(&pair.announcements[0]).await.rejected();
    let request = deletion(&[&on_change]).sign(&one);
    client.publish(&request).await.served();
    let again = pair.announced_again(&service, Trusts::Second);
    client.publish(&again).await.served();
    let mut all: Vec<&Event> = lives.to_vec();
    all.push(&change);
    serves_just(&service, &all, &[&on_change], "back").await;
    let found = client.query(json!({"ids": [change.id.to_hex()]})).await;
    assert_eq!(found.len(), 1);
}

#[tokio::test]
async fn a_maintainer_who_announced_elsewhere_goes_and_comes_back_with_the_owner() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("elsewhere").await;
    let announce = || {
        project
            .announcement(&service)
            .maintainers(&[&maintainer])
            .sign(&project.owner)
    };
    client.publish(&announce()).await.waits();
    project.update(&service, &mut client, &["main"]).await;
    let theirs = elsewhere("elsewhere").maintainers(&[&project.owner]);
    let theirs = theirs.sign(&maintainer);
    client.publish(&theirs).await.served();
    project.repo.commit().await;
    let state = project.state().await.sign(&maintainer);
    client.publish(&state).await.waits();
    project.push(&service, &["main"]).await.good();
    let question = issue(&format!(
        "30617:{}:elsewhere",
        maintainer.public_key().to_hex()
    ))
    .sign(&Keys::generate());
    client.publish(&question).await.served();
    let refs = project.remote_refs(&service).await;
    for round in 0..3 {
        let request = deletion_of(&project.coordinate()).sign(&project.owner);
        client.publish(&request).await.served();
        let all = [&theirs, &state, &question];
        serves_just(&service, &[], &all, &format!("gone {round}")).await;
        client.publish(&announce()).await.served();
        serves_just(&service, &all, &[], &format!("back {round}")).await;
        assert_eq!(project.remote_refs(&service).await, refs);
        clones(&service, &project, &project.repo.oid("main").await).await;
    }
}

#[tokio::test]
async fn a_version_from_before_it_left_does_not_bring_a_repository_back() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("left").await;
    let announced = project.announcement(&service).sign(&project.owner);
    client.publish(&announced).await.waits();
    project.update(&service, &mut client, &["main"]).await;
    let between = project
        .announcement(&service)
        .content("never sent")
        .sign(&project.owner);
    let left = elsewhere("left").sign(&project.owner);
    client.publish(&left).await.rejected();
    assert!(!project.hosted(&service).await);
    client.publish(&announced).await.rejected();
    client.publish(&between).await.rejected();
    assert!(!project.hosted(&service).await && !client.serves(&announced).await);
    let again = project.announcement(&service).sign(&project.owner);
    client.publish(&again).await.served();
    assert!(project.hosted(&service).await);
}

#[tokio::test]
async fn a_repository_goes_while_it_is_pushed_to() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "busy").await;
    for round in 0..4 {
        project.repo.commit_bytes(4_000_000).await;
        let state = project.state().await.sign(&project.owner);
        client.publish(&state).await.waits();
        let push = project.push(&service, &["main"]);
        let port = service.port;
        let request = deletion_of(&project.coordinate()).sign(&project.owner);
        let deleting = async {
            tokio::time::sleep(Duration::from_millis(200 * round)).await;
            let mut client = Client::try_connect(port).await.unwrap();
            client.publish(&request).await
        };
        // It comes through or not.
        let (_, verdict) = tokio::join!(push, deleting);
        verdict.served();
        until("it is gone", || async { !project.hosted(&service).await }).await;
        let again = project.announcement(&service).sign(&project.owner);
        let verdict = client.publish(&again).await;
        assert!(verdict.accepted, "{verdict:?}");
        // Whether the push had come or not.
        let verdict = client
            .publish(&project.state().await.sign(&project.owner))
            .await;
        assert!(verdict.accepted, "{verdict:?}");
        project.push(&service, &["main"]).await.good();
        clones(&service, &project, &project.repo.oid("main").await).await;
    }
}

/// A commit that nobody has yet, offered to a repository and pushed below its name.
async fn offered(service: &Service, client: &mut Client, from: &Project, to: &[&Project]) -> Event {
    from.repo
        .git(&["checkout", "-q", "-B", "topic"])
        .await
        .good();
    let commit = from.repo.commit().await;
    let draft = pull_request(&to[0].coordinate(), &commit);
    let draft = to[1..]
        .iter()
        .fold(draft, |draft, to| draft.tag(["a", &to.coordinate()]));
    let request = draft.sign(&Keys::generate());
    client.publish(&request).await.waits();
    let spec = format!("topic:refs/nostr/{}", request.id.to_hex());
    from.repo.push(&to[0].url(service), &[&spec]).await.good();
    from.repo.git(&["checkout", "-q", "main"]).await.good();
    from.repo.git(&["branch", "-q", "-D", "topic"]).await.good();
    request
}

async fn shows(service: &Service, project: &Project, request: &Event) -> bool {
    let name = format!("refs/nostr/{}", request.id.to_hex());
    git::remote_ref(&project.url(service), &name)
        .await
        .is_some()
}

#[tokio::test]
async fn pull_requests_go_from_everywhere_and_come_back_everywhere() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    // The second's set has the first in it: what is offered to the first is shown there too.
    let pair = Pair::active(&service, &mut client, "offers", Trusts::Second).await;
    let (first, second) = (&pair.first, &pair.second);
    let alone = offered(&service, &mut client, first, &[first]).await;
    let both = offered(&service, &mut client, first, &[first, second]).await;
    let update = pull_request_update(&first.coordinate(), &alone, &first.repo.oid("main").await)
        .sign(&Keys::generate());
    client.publish(&update).await.served();
    for project in [first, second] {
        for event in [&alone, &both] {
            until("it is shown", || shows(&service, project, event)).await;
        }
    }
    let request = deletion_of(&first.coordinate()).sign(&first.owner);
    client.publish(&request).await.served();
    serves_just(&service, &[&both], &[&alone, &update], "gone").await;
    until("its ref has gone", || async {
        !shows(&service, second, &alone).await
    })
    .await;
    assert!(shows(&service, second, &both).await);
    let again = pair.announced_again(&service, Trusts::Second);
    client.publish(&again).await.served();
    serves_just(&service, &[&both, &alone, &update], &[], "back").await;
    for project in [first, second] {
        for event in [&alone, &both] {
            until("it is shown again", || shows(&service, project, event)).await;
        }
    }
}
