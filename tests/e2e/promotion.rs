//! How what waits is released by data that came in by another door, and what HEAD says.

use crate::support::{
    Client, Keys, Project, Repo, Service,
    events::{announcement, elsewhere, state, state_of},
    git, web,
};

/// An owner and a maintainer whom the owner names, both of whom list the service; one commit.
struct Pair {
    owner: Keys,
    maintainer: Keys,
    repo: Repo,
    announcements: [crate::support::Event; 2],
}

impl Pair {
    async fn announced(service: &Service, client: &mut Client, identifier: &str) -> Self {
        let (owner, maintainer) = (Keys::generate(), Keys::generate());
        let first = announcement(service, &owner, identifier).maintainers(&[&maintainer]);
        let second = announcement(service, &maintainer, identifier).maintainers(&[&owner]);
        let announcements = [first.sign(&owner), second.sign(&maintainer)];
        for event in &announcements {
            client.publish(event).await.waits();
        }
        let repo = Repo::new().await;
        Self {
            owner,
            maintainer,
            repo,
            announcements,
        }
    }
}

async fn released_by_a_push_to_the_other(identifier: &str, to_owner: bool) {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let pair = Pair::announced(&service, &mut client, identifier).await;
    let (mine, theirs) = if to_owner {
        (&pair.owner, &pair.maintainer)
    } else {
        (&pair.maintainer, &pair.owner)
    };
    // The state is signed by the one whose address is not pushed to.
    let state = state_of(identifier, &pair.repo).await.sign(theirs);
    client.publish(&state).await.waits();
    pair.repo
        .push(&service.url(mine, identifier), &["main"])
        .await
        .good();
    assert!(client.serves(&state).await);
    for event in &pair.announcements {
        assert!(client.serves(event).await, "an announcement still waits");
    }
    for key in [mine, theirs] {
        let refs = git::remote_refs(&service.url(key, identifier)).await;
        assert_eq!(refs, pair.repo.refs().await);
        let head = git::remote_head(&service.url(key, identifier)).await;
        assert_eq!(head.as_deref(), Some("refs/heads/main"));
    }
}

#[tokio::test]
async fn a_push_to_the_owner_releases_the_co_maintainers_announcement() {
    released_by_a_push_to_the_other("to-owner", true).await;
}

#[tokio::test]
async fn a_push_to_a_co_maintainer_releases_the_owners_announcement() {
    released_by_a_push_to_the_other("to-maintainer", false).await;
}

#[tokio::test]
async fn refs_that_a_newer_state_does_not_name_go_from_every_owners_repository() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let pair = Pair::announced(&service, &mut client, "aligned").await;
    pair.repo.git(&["branch", "old"]).await.good();
    let first = state_of("aligned", &pair.repo).await.sign(&pair.owner);
    client.publish(&first).await.waits();
    pair.repo
        .push(&service.url(&pair.owner, "aligned"), &["main", "old"])
        .await
        .good();
    // A ref that belongs to nobody's state must stay.
    let nostr = format!("refs/nostr/{}", "5a".repeat(32));
    let theirs = service.url(&pair.maintainer, "aligned");
    pair.repo
        .push(&theirs, &[&format!("main:{nostr}")])
        .await
        .good();

    pair.repo.git(&["branch", "-q", "-D", "old"]).await.good();
    pair.repo.commit().await;
    let second = state_of("aligned", &pair.repo).await.sign(&pair.owner);
    client.publish(&second).await.waits();
    pair.repo
        .push(&service.url(&pair.owner, "aligned"), &["main"])
        .await
        .good();
    assert_eq!(git::remote_refs(&theirs).await, pair.repo.refs().await);
    assert!(git::remote_ref(&theirs, &nostr).await.is_some());
}

#[tokio::test]
async fn an_owner_whose_set_the_author_is_not_in_keeps_their_refs() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let first = Project::active(&service, &mut client, "separate").await;
    let second = Project::active(&service, &mut client, "separate").await;
    let before = second.remote_refs(&service).await;
    first.repo.commit().await;
    first.update(&service, &mut client, &["main"]).await;
    assert_eq!(second.remote_refs(&service).await, before);
}

#[tokio::test]
async fn an_event_that_comes_after_its_data_is_served_at_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "data-first").await;
    // Somebody else announces the same project: its objects are all here.
    let fork = Keys::generate();
    let announcement = announcement(&service, &fork, "data-first").sign(&fork);
    client.publish(&announcement).await.waits();
    let state = project.state().await.sign(&fork);
    client.publish(&state).await.served();
    assert!(client.serves(&state).await);
    assert!(client.serves(&announcement).await);
    let refs = git::remote_refs(&service.url(&fork, "data-first")).await;
    assert_eq!(refs, project.repo.refs().await);
    let (clone, out) = Repo::clone(&service.url(&fork, "data-first"), &[]).await;
    out.good();
    assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
}

#[tokio::test]
async fn an_announcement_that_comes_after_state_and_data_is_served() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("announcement-last").await;
    let draft = project.announcement(&service).maintainers(&[&maintainer]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    let answer = elsewhere("announcement-last").maintainers(&[&project.owner]);
    client.publish(&answer.sign(&maintainer)).await.served();
    let state = project.state().await.sign(&maintainer);
    client.publish(&state).await.waits();
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);

    let theirs = announcement(&service, &maintainer, "announcement-last").sign(&maintainer);
    assert!(client.publish(&theirs).await.accepted);
    // Nothing has to be pushed: data and an authorised state are here.
    let url = service.url(&maintainer, "announcement-last");
    crate::support::until("the maintainer's announcement is served", || async {
        Client::connect(&service).await.serves(&theirs).await
    })
    .await;
    assert_eq!(git::remote_refs(&url).await, project.repo.refs().await);
}

#[tokio::test]
async fn head_points_to_what_the_state_says_when_that_branch_is_here() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "head").await;
    project.repo.git(&["branch", "dev"]).await.good();
    let head = |name: &str| ["HEAD".to_owned(), format!("ref: refs/heads/{name}")];
    let draft = project.state().await.without("HEAD").tag(head("dev"));
    client.publish(&draft.sign(&project.owner)).await.waits();
    project.push(&service, &["main", "dev"]).await.good();
    let url = project.url(&service);
    assert_eq!(
        git::remote_head(&url).await.as_deref(),
        Some("refs/heads/dev")
    );

    let draft = project.state().await.without("HEAD").tag(head("main"));
    client.publish(&draft.sign(&project.owner)).await.served();
    assert_eq!(
        git::remote_head(&url).await.as_deref(),
        Some("refs/heads/main")
    );

    // A branch that does not exist cannot be HEAD.
    let draft = project.state().await.without("HEAD").tag(head("never"));
    client.publish(&draft.sign(&project.owner)).await;
    let head = git::remote_head(&url).await;
    assert_eq!(head.as_deref(), Some("refs/heads/main"));
}

#[tokio::test]
async fn an_unborn_head_is_told_to_clients_of_version_2() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "unborn").await;
    let path = Service::repository_path(&project.owner, "unborn");
    let version = ("Git-Protocol", "version=2");
    let refs = format!("{path}/info/refs?service=git-upload-pack");
    let answer = service
        .fetch(web::request("GET", service.port, &refs, &[version]))
        .await
        .unwrap();
    let told = git::lines(&answer.body);
    assert!(
        told.iter().any(|line| line.starts_with("ls-refs=unborn")),
        "{told:?}"
    );

    let mut body = git::pkt("command=ls-refs\n");
    body.extend(git::pkt("object-format=sha1"));
    body.extend(b"0001");
    for argument in ["peel\n", "symrefs\n", "unborn\n", "ref-prefix HEAD\n"] {
        body.extend(git::pkt(argument));
    }
    body.extend(b"0000");
    let headers = [
        version,
        ("Content-Type", "application/x-git-upload-pack-request"),
    ];
    let path = format!("{path}/git-upload-pack");
    let request = web::with_body("POST", service.port, &path, &headers, web::full(body));
    let told = git::lines(&service.fetch(request).await.unwrap().body);
    assert_eq!(
        told[0], "unborn HEAD symref-target:refs/heads/master",
        "{told:?}"
    );

    let (clone, out) = Repo::clone(&project.url(&service), &["-c", "protocol.version=2"]).await;
    out.good();
    assert_eq!(
        clone.say(&["symbolic-ref", "HEAD"]).await,
        "refs/heads/master"
    );
}

#[tokio::test]
async fn a_state_without_branch_or_tag_releases_no_announcement() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("empty-state").await;
    let announcement = project.announcement(&service).sign(&project.owner);
    client.publish(&announcement).await.waits();
    let none: [(&str, &str); 0] = [];
    let state = state("empty-state", &none).tag(["HEAD", "ref: refs/heads/main"]);
    client.publish(&state.sign(&project.owner)).await;
    assert!(!client.serves(&announcement).await);
    project.update(&service, &mut client, &["main"]).await;
    assert!(client.serves(&announcement).await);
}
