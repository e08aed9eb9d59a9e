//! Each ref of a push has its own verdict; branches and tags stand or fall together.

use crate::support::{
    Client, Project, Service,
    events::{self, pull_request, state},
    git::{self, Out, ZERO, commands, lines},
    web,
};

const VERSIONS: [&str; 2] = ["protocol.version=0", "protocol.version=2"];

/// A push that says by line what became of each ref, in one version of the protocol.
async fn push(project: &Project, service: &Service, version: &str, arguments: &[&str]) -> Out {
    let url = project.url(service);
    let mut all = vec!["-c", version, "push", "--porcelain"];
    let (options, specs) =
        arguments.split_at(arguments.iter().take_while(|a| a.starts_with("--")).count());
    all.extend(options);
    all.push(&url);
    all.extend(specs);
    project.repo.git(&all).await
}

/// The line about a ref: its sign and its reason.
#[track_caller]
fn line<'a>(out: &'a Out, name: &str) -> &'a str {
    let end = format!(":{name}\t");
    let found = out.stdout.lines().find(|line| line.contains(&end));
    found.unwrap_or_else(|| panic!("nothing about {name}: {}{}", out.stdout, out.stderr))
}

/// Whether an object lies where the service could find it.
async fn lies_here(project: &Project, service: &Service, oid: &str) -> bool {
    let place = service.repository_directory(&project.owner, &project.identifier);
    git::run(&place, &["cat-file", "-e", oid]).await.ok
}

/// A commit on no branch, and a ref of the pusher to it.
async fn aside(project: &Project, name: &str) -> String {
    let tree = project.repo.oid("main^{tree}").await;
    let oid = project
        .repo
        .say(&["commit-tree", "-p", "main", "-m", name, &tree])
        .await;
    project.repo.git(&["update-ref", name, &oid]).await.good();
    oid
}

#[tokio::test]
async fn a_mirror_push_moves_what_is_signed_and_says_why_the_rest_is_refused() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for version in VERSIONS {
        let project = Project::active(&service, &mut client, "mirror").await;
        let commit = aside(&project, "refs/nostr/local").await;
        let offered = pull_request(&project.coordinate(), &commit).sign(&project.owner);
        client.publish(&offered).await.waits();
        let offer = format!("refs/nostr/{}", offered.id);
        project
            .push(&service, &[&format!("{commit}:{offer}")])
            .await
            .good();
        assert!(client.serves(&offered).await);
        project
            .repo
            .git(&["update-ref", "-d", "refs/nostr/local"])
            .await
            .good();

        let head = project.repo.commit().await;
        project
            .repo
            .git(&["tag", "-a", "-m", "one", "v1"])
            .await
            .good();
        project
            .repo
            .git(&["notes", "add", "-m", "a note", "main"])
            .await
            .good();
        let notes = project.repo.oid("refs/notes/commits").await;
        let pull = aside(&project, "refs/pull/1/head").await;
        let signed = project.state().await.sign(&project.owner);
        client.publish(&signed).await.waits();
        let out = push(&project, &service, version, &["--mirror"]).await;
        assert!(!out.ok, "{}", out.stdout);
        for name in ["refs/heads/main", "refs/tags/v1"] {
            assert!(!line(&out, name).starts_with('!'), "{}", out.stdout);
        }
        for (name, why) in [
            ("refs/notes/commits", "only refs/heads/, refs/tags/"),
            ("refs/pull/1/head", "only refs/heads/, refs/tags/"),
            (&offer, "deletion request (kind 5)"),
        ] {
            let told = line(&out, name);
            assert!(told.starts_with('!') && told.contains(why), "{told}");
        }
        assert!(client.serves(&signed).await);
        assert_eq!(
            project.remote_refs(&service).await,
            project.repo.refs().await
        );
        assert_eq!(project.remote_ref(&service, &offer).await, Some(commit));
        assert_eq!(
            project.remote_ref(&service, "refs/heads/main").await,
            Some(head)
        );
        // What came for the refs that were refused did not come in.
        for oid in [notes, pull] {
            assert!(!lies_here(&project, &service, &oid).await);
        }
        let again = push(&project, &service, version, &["--mirror"]).await;
        assert!(line(&again, "refs/notes/commits").starts_with('!'));
    }
    // Of these the first moved something each time, and the second nothing.
    let metrics = service.get("/metrics").await.unwrap().text();
    for counted in [
        "ngit_git_pushes_total{outcome=\"partial\"} 2",
        "ngit_git_pushes_total{outcome=\"refused\"} 2",
        "ngit_pushes_total{result=\"partial\"} 2",
    ] {
        assert!(
            metrics.lines().any(|line| line == counted),
            "{counted}: {metrics}"
        );
    }
}

#[tokio::test]
async fn an_atomic_push_moves_all_or_nothing_and_each_ref_says_so() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for version in VERSIONS {
        let project = Project::announced(&service, &mut client, "atomic").await;
        let signed = project.state().await.sign(&project.owner);
        client.publish(&signed).await.waits();
        let specs = ["--atomic", "main", "main:refs/notes/x"];
        let out = push(&project, &service, version, &specs).await;
        assert!(!out.ok);
        let told = line(&out, "refs/heads/main");
        assert!(
            told.starts_with('!') && told.contains("atomic, and refs/notes/x is refused"),
            "{told}"
        );
        let told = line(&out, "refs/notes/x");
        assert!(
            told.starts_with('!') && told.contains("only refs/heads/"),
            "{told}"
        );
        assert_eq!(project.remote_refs(&service).await, []);
        let out = push(&project, &service, version, &specs[1..]).await;
        assert!(!out.ok);
        assert!(
            line(&out, "refs/heads/main").starts_with('*'),
            "{}",
            out.stdout
        );
        assert!(client.serves(&signed).await);
    }
}

#[tokio::test]
async fn all_refs_that_are_missing_are_named_at_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "missing").await;
    for name in ["one", "two", "three"] {
        project.repo.git(&["branch", name]).await.good();
    }
    project.repo.commit().await;
    client
        .publish(&project.state().await.sign(&project.owner))
        .await
        .waits();
    for version in VERSIONS {
        let out = push(
            &project,
            &service,
            version,
            &["main", "one", "main:refs/heads/more"],
        )
        .await;
        for (name, own) in [
            ("main", "stand or fall together"),
            ("one", "stand or fall"),
            ("more", "more is not in the state"),
        ] {
            let told = line(&out, &format!("refs/heads/{name}"));
            assert!(told.starts_with('!') && told.contains(own), "{told}");
            for other in [
                "heads/two must be pushed",
                "heads/three must be pushed",
                "heads/more is not in",
            ] {
                assert!(told.contains(other), "{told}");
            }
        }
    }
    assert_eq!(project.remote_refs(&service).await, []);
    // Hundreds do not fit a line and are told line by line.
    let main = project.repo.oid("main").await;
    let names: Vec<String> = (0..300).map(|n| format!("refs/heads/n/{n}")).collect();
    let refs: Vec<(&str, &str)> = names
        .iter()
        .map(|name| (name.as_str(), main.as_str()))
        .collect();
    let many = state("missing", &refs)
        .at(events::now() + 1)
        .sign(&project.owner);
    client.publish(&many).await.waits();
    let text = project
        .push(&service, &["main:refs/heads/n/0"])
        .await
        .refused();
    for name in &names[1..] {
        assert!(
            text.contains(&format!("{name} must be pushed")),
            "{name}: {text}"
        );
    }
}

#[tokio::test]
async fn what_is_here_need_not_be_pushed() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "here").await;
    project.repo.git(&["tag", "v1"]).await.good();
    project.repo.git(&["branch", "stable"]).await.good();
    project.repo.commit().await;
    project.update(&service, &mut client, &["main"]).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_pull_requests_ref_is_not_deleted_and_it_is_said_how_it_is() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "withdrawn").await;
    let commit = project.repo.commit().await;
    let offered = pull_request(&project.coordinate(), &commit).sign(&project.owner);
    let offer = format!("refs/nostr/{}", offered.id);
    project
        .push(&service, &[&format!("main:{offer}")])
        .await
        .good();
    let text = project
        .push(&service, &[&format!(":{offer}")])
        .await
        .refused();
    assert!(text.contains("no event of this id is here"), "{text}");
    client.publish(&offered).await.served();
    let text = project
        .push(&service, &[&format!(":{offer}")])
        .await
        .refused();
    for word in ["kind 5", "kind 1632", "its author"] {
        assert!(text.contains(word), "{text}");
    }
    // As it says.
    client
        .publish(&events::deletion(&[&offered]).sign(&project.owner))
        .await
        .served();
    assert_eq!(project.remote_ref(&service, &offer).await, None);
    project.push(&service, &[&format!(":{offer}")]).await.good();
}

/// Sends commands and a pack as they are; gives the report's lines.
async fn raw(
    service: &Service,
    project: &Project,
    capabilities: &str,
    wanted: &[(&str, &str, &str)],
    pack: &[u8],
) -> Vec<String> {
    let path = Service::repository_path(&project.owner, &project.identifier);
    let mut body = commands(wanted, capabilities);
    body.extend(pack);
    let request = web::with_body(
        "POST",
        service.port,
        &format!("{path}/git-receive-pack"),
        &[("Content-Type", "application/x-git-receive-pack-request")],
        web::full(body),
    );
    let answer = service.fetch(request).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    lines(&answer.body)
}

#[tokio::test]
async fn only_what_is_allowed_must_be_whole() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "whole").await;
    project.repo.commit().await;
    let main = project.repo.oid("main").await;
    let parent = aside(&project, "refs/pull/1/head").await;
    let tree = project.repo.oid("main^{tree}").await;
    let torn = project
        .repo
        .say(&["commit-tree", "-p", &parent, "-m", "torn", &tree])
        .await;
    let signed = project.state().await.sign(&project.owner);
    client.publish(&signed).await.waits();
    // The parent of what is pushed for the pull request is not in the pack.
    let lacking = project.repo.pack(&[&torn, &format!("^{parent}")]).await;
    let pull = (ZERO, torn.as_str(), "refs/pull/2/head");
    let wanted = [(ZERO, main.as_str(), "refs/heads/main"), pull];
    let told = raw(&service, &project, "report-status", &wanted, &lacking).await;
    assert!(
        told[0].starts_with("unpack ") && told[0] != "unpack ok",
        "{told:?}"
    );
    assert!(told[1].starts_with("ng refs/heads/main"), "{told:?}");
    assert!(!client.serves(&signed).await);

    let mut input = project
        .repo
        .say(&["rev-list", "--objects", "--no-object-names", "main"])
        .await;
    input = format!("{input}\n{torn}\n");
    let arguments = ["pack-objects", "--stdout", "-q"];
    let (ok, pack, stderr) =
        git::run_with(&project.repo.path(), &arguments, input.as_bytes()).await;
    assert!(ok, "{stderr}");
    let told = raw(&service, &project, "report-status", &wanted, &pack).await;
    assert_eq!(told[..2], ["unpack ok", "ok refs/heads/main"], "{told:?}");
    assert!(told[2].starts_with("ng refs/pull/2/head"), "{told:?}");
    assert!(client.serves(&signed).await);
    assert!(!lies_here(&project, &service, &torn).await);
    let (_, out) = crate::support::Repo::clone(&project.url(&service), &[]).await;
    out.good();
    // What was left out is missing to whoever builds on it.
    let next = project
        .repo
        .say(&["commit-tree", "-p", &torn, "-m", "next", &tree])
        .await;
    let later = state("whole", &[("refs/heads/main", &next)]).at(events::now() + 1);
    let later = later.sign(&project.owner);
    client.publish(&later).await.waits();
    let pack = project.repo.pack(&[&next, &format!("^{torn}")]).await;
    let wanted = [(main.as_str(), next.as_str(), "refs/heads/main")];
    let told = raw(&service, &project, "report-status", &wanted, &pack).await;
    assert!(told[1].starts_with("ng refs/heads/main"), "{told:?}");
    assert!(!client.serves(&later).await);
}

#[tokio::test]
async fn lines_that_cannot_be_read_are_refused_alone() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "unread").await;
    let main = project.repo.oid("main").await;
    let signed = project.state().await.sign(&project.owner);
    client.publish(&signed).await.waits();
    let pack = project.repo.pack(&["main"]).await;
    let main = main.as_str();
    let wanted = [
        (ZERO, main, "refs/heads/a..b"),
        (ZERO, main, "refs/heads/main"),
        (ZERO, main, "refs/tags/twin"),
        (ZERO, main, "refs/tags/twin"),
    ];
    let told = raw(&service, &project, "report-status atomic", &wanted, &pack).await;
    assert!(
        told[1..5].iter().all(|line| line.starts_with("ng ")),
        "{told:?}"
    );
    let told = raw(&service, &project, "report-status", &wanted, &pack).await;
    assert!(told[1].starts_with("ng refs/heads/a..b "), "{told:?}");
    assert_eq!(told[2], "ok refs/heads/main");
    assert!(
        told[3].contains("more than once") && told[4].contains("more than once"),
        "{told:?}"
    );
    assert!(client.serves(&signed).await);
}

#[tokio::test]
async fn who_asks_for_it_is_told_where_a_ref_was() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "options").await;
    let main = project.repo.oid("main").await;
    let pack = project.repo.pack(&["main"]).await;
    let wanted = [(ZERO, main.as_str(), "refs/heads/main")];
    let plain = raw(&service, &project, "report-status", &wanted, &pack).await;
    assert_eq!(plain[..2], ["unpack ok", "ok refs/heads/main"]);
    assert_eq!(plain.len(), 3, "{plain:?}");
    let told = raw(&service, &project, "report-status-v2", &wanted, &pack).await;
    assert_eq!(told[..2], ["unpack ok", "ok refs/heads/main"]);
    assert_eq!(told[2], format!("option old-oid {main}"));
    // Git asks for it, and reads it.
    let path = Service::repository_path(&project.owner, "options");
    let path = format!("{path}/info/refs?service=git-receive-pack");
    let offered = lines(&service.get(&path).await.unwrap().body);
    assert!(
        offered
            .iter()
            .any(|line| line.contains(" report-status-v2 ")),
        "{offered:?}"
    );
}
