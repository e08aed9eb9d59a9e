//! Which pushes to branches and tags are allowed, and what the pusher reads if not.

use crate::support::{
    Client, Keys, Project, Repo, Service,
    events::{announcement, elsewhere, state},
    git::{self, ZERO, commands, lines},
    until, web,
};

#[tokio::test]
async fn the_owners_state_allows_a_push_and_both_events_are_served_at_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("own").await;
    let announcement = project.announcement(&service).sign(&project.owner);
    client.publish(&announcement).await.waits();
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&announcement).await);
    assert!(client.serves(&state).await);
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_co_maintainers_state_allows_a_push() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("co").await;
    let draft = project.announcement(&service).maintainers(&[&maintainer]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    let answer = elsewhere("co").maintainers(&[&project.owner]);
    client.publish(&answer.sign(&maintainer)).await.served();
    let state = project.state().await.sign(&maintainer);
    client.publish(&state).await.waits();
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_maintainers_maintainers_state_allows_a_push() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let [first, second, third] = [Keys::generate(), Keys::generate(), Keys::generate()];
    let project = Project::new("recursive").await;
    let draft = project.announcement(&service).maintainers(&[&first]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    // One link is served, the other waits; the last closes a circle.
    let draft = elsewhere("recursive").maintainers(&[&second, &project.owner]);
    client.publish(&draft.sign(&first)).await.served();
    let draft = announcement(&service, &second, "recursive").maintainers(&[&third, &first]);
    client.publish(&draft.sign(&second)).await.waits();
    let draft = elsewhere("recursive").maintainers(&[&second]);
    client.publish(&draft.sign(&third)).await.served();

    let state = project.state().await.sign(&third);
    client.publish(&state).await.waits();
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_maintainer_who_was_dropped_allows_nothing() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("dropped").await;
    let draft = project.announcement(&service).maintainers(&[&maintainer]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    let answer = elsewhere("dropped").maintainers(&[&project.owner]);
    client.publish(&answer.sign(&maintainer)).await.served();
    let state = project.state().await.sign(&maintainer);
    client.publish(&state).await.waits();
    let without = project.announcement(&service).sign(&project.owner);
    client.publish(&without).await.waits();
    project.push(&service, &["main"]).await.refused();
    assert!(!client.serves(&state).await);
}

#[tokio::test]
async fn a_push_of_another_commit_is_refused_naming_the_ref() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "wrong").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    project.repo.commit().await;
    let text = project.push(&service, &["main"]).await.refused();
    assert!(text.contains("refs/heads/main"), "{text}");
    assert_eq!(project.remote_refs(&service).await, []);
    assert!(!client.serves(&state).await);
    // The right one is still welcome.
    project
        .push(&service, &["main~1:refs/heads/main"])
        .await
        .good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_push_without_a_state_is_refused_saying_so() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "stateless").await;
    let text = project.push(&service, &["main"]).await.refused();
    assert!(text.contains("state"), "{text}");
    assert_eq!(project.remote_refs(&service).await, []);
}

#[tokio::test]
async fn a_large_push_that_is_refused_early_is_told_why() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "large").await;
    project.repo.commit_bytes(8_000_000).await;
    for _ in 0..3 {
        let text = project.push(&service, &["main"]).await.refused();
        assert!(text.contains("state"), "{text}");
    }
}

#[tokio::test]
async fn a_push_to_what_is_not_here_is_not_found() {
    let service = Service::start().await;
    let project = Project::new("nowhere").await;
    let out = project.push(&service, &["main"]).await;
    assert!(!out.ok);
    assert!(out.stderr.contains("not found"), "{}", out.stderr);
}

#[tokio::test]
async fn a_served_state_allows_no_change() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "stored").await;
    let before = project.remote_refs(&service).await;
    project.repo.commit().await;
    project.push(&service, &["main"]).await.refused();
    project
        .push(&service, &["main~1:refs/heads/other"])
        .await
        .refused();
    assert_eq!(project.remote_refs(&service).await, before);
}

#[tokio::test]
async fn a_push_that_reaches_only_part_of_the_state_is_refused() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "part").await;
    project.repo.git(&["branch", "other"]).await.good();
    project.repo.commit().await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let text = project.push(&service, &["main"]).await.refused();
    assert!(text.contains("refs/heads/other"), "{text}");
    assert_eq!(project.remote_refs(&service).await, []);
    project.push(&service, &["main", "other"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_branch_or_tag_that_the_state_does_not_name_is_refused_with_all_others() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "unnamed").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    for extra in ["main:refs/heads/extra", "main:refs/tags/extra"] {
        let text = project.push(&service, &["main", extra]).await.refused();
        let (_, name) = extra.split_once(':').unwrap();
        assert!(text.contains(name), "{text}");
        assert_eq!(project.remote_refs(&service).await, []);
    }
    project.push(&service, &["main"]).await.good();
    for name in [
        "refs/notes/commits",
        "refs/remotes/origin/main",
        "refs/nostr/main",
        "refs/x/y",
    ] {
        project
            .push(&service, &[&format!("main:{name}")])
            .await
            .refused();
    }
}

#[tokio::test]
async fn annotated_tags_are_pushed_with_their_branch() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "tags").await;
    project
        .repo
        .git(&["tag", "-a", "-m", "one", "v1"])
        .await
        .good();
    project.repo.git(&["tag", "light"]).await.good();
    project
        .repo
        .git(&["tag", "-a", "-m", "of a tag", "outer", "v1"])
        .await
        .good();
    project
        .repo
        .git(&["tag", "tree", "main^{tree}"])
        .await
        .good();
    let specs = ["main", "v1", "light", "outer", "tree"];
    project.update(&service, &mut client, &specs).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
    let out = git::run(
        &std::env::temp_dir(),
        &["ls-remote", &project.url(&service)],
    )
    .await
    .good();
    assert!(out.stdout.contains("refs/tags/v1^{}"), "{}", out.stdout);
}

#[tokio::test]
async fn a_later_tag_is_pushed_alone() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "later-tag").await;
    project
        .repo
        .git(&["tag", "-a", "-m", "one", "v1"])
        .await
        .good();
    project.update(&service, &mut client, &["v1"]).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_push_deletes_what_the_state_no_longer_names() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "deletes").await;
    project.repo.git(&["branch", "old"]).await.good();
    project.repo.git(&["branch", "older"]).await.good();
    project
        .update(&service, &mut client, &["main", "old", "older"])
        .await;
    project
        .repo
        .git(&["branch", "-q", "-D", "old", "older"])
        .await
        .good();
    project.repo.commit().await;
    // One is deleted by the push, the other goes when the state is applied.
    project
        .update(&service, &mut client, &["main", ":old"])
        .await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_push_may_not_delete_what_the_state_names() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "keeps").await;
    project.repo.git(&["branch", "kept"]).await.good();
    project
        .update(&service, &mut client, &["main", "kept"])
        .await;
    project.push(&service, &[":kept"]).await.refused();
    project.repo.commit().await;
    client
        .publish(&project.state().await.sign(&project.owner))
        .await
        .waits();
    project.push(&service, &["main", ":kept"]).await.refused();
    project.push(&service, &["main"]).await.good();
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_deletion_that_is_signed_for_needs_no_push() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "signed").await;
    project.repo.git(&["branch", "old"]).await.good();
    project
        .update(&service, &mut client, &["main", "old"])
        .await;
    project
        .repo
        .git(&["branch", "-q", "-D", "old"])
        .await
        .good();
    client
        .publish(&project.state().await.sign(&project.owner))
        .await
        .served();
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_forced_push_rewrites_history_as_signed() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "forced").await;
    let git = ["commit", "-q", "--amend", "-m", "another"];
    project.repo.git(&git).await.good();
    project.update(&service, &mut client, &["-f", "main"]).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_branch_becomes_a_directory_of_branches_and_back() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "directory").await;
    project.repo.git(&["branch", "a"]).await.good();
    project.update(&service, &mut client, &["main", "a"]).await;

    project.repo.git(&["branch", "-q", "-D", "a"]).await.good();
    project.repo.commit().await;
    project.repo.git(&["branch", "a/b"]).await.good();
    project
        .update(&service, &mut client, &["main", "a/b", ":a"])
        .await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );

    project
        .repo
        .git(&["branch", "-q", "-D", "a/b"])
        .await
        .good();
    project.repo.commit().await;
    project.repo.git(&["branch", "a"]).await.good();
    project
        .update(&service, &mut client, &["main", "a", ":a/b"])
        .await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );

    // And by a state alone.
    project.repo.git(&["branch", "-q", "-D", "a"]).await.good();
    project.repo.git(&["branch", "a/b/c"]).await.good();
    client
        .publish(&project.state().await.sign(&project.owner))
        .await
        .served();
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_directory_conflict_is_resolved_without_an_explicit_deletion() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "implicit").await;
    project.repo.git(&["branch", "a"]).await.good();
    project.update(&service, &mut client, &["main", "a"]).await;
    project.repo.git(&["branch", "-q", "-D", "a"]).await.good();
    project.repo.commit().await;
    project.repo.git(&["branch", "a/b"]).await.good();
    project
        .update(&service, &mut client, &["main", "a/b"])
        .await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_second_push_finds_everything_up_to_date() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "twice").await;
    let out = project.push(&service, &["main"]).await.good();
    assert!(out.stderr.contains("up-to-date"), "{}", out.stderr);
}

/// Sends commands and a pack as they are and gives the lines of the report.
async fn raw_push(
    service: &Service,
    project: &Project,
    wanted: &[(&str, &str, &str)],
    pack: &[u8],
) -> Vec<String> {
    let path = Service::repository_path(&project.owner, &project.identifier);
    let mut body = commands(wanted, "report-status");
    body.extend(pack);
    let answer = service
        .fetch(web::with_body(
            "POST",
            service.port,
            &format!("{path}/git-receive-pack"),
            &[("Content-Type", "application/x-git-receive-pack-request")],
            web::full(body),
        ))
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    lines(&answer.body)
}

#[tokio::test]
async fn commands_that_change_nothing_are_ok_even_with_a_stale_old_value() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "stale").await;
    let first = project.repo.oid("main").await;
    let second = project.repo.commit().await;
    project.update(&service, &mut client, &["main"]).await;
    let main = "refs/heads/main";
    for old in [ZERO, &first, &second] {
        let pack = project.repo.pack(&["main"]).await;
        let report = raw_push(&service, &project, &[(old, &second, main)], &pack).await;
        assert_eq!(
            report[..2],
            ["unpack ok", "ok refs/heads/main"],
            "{report:?}"
        );
    }
    let gone = [(first.as_str(), ZERO, "refs/heads/never-was")];
    let report = raw_push(&service, &project, &gone, &[]).await;
    assert_eq!(
        report[..2],
        ["unpack ok", "ok refs/heads/never-was"],
        "{report:?}"
    );
    assert_eq!(project.remote_ref(&service, main).await, Some(second));
}

#[tokio::test]
async fn a_refused_command_is_told_in_the_report() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "report").await;
    let old = project.repo.oid("main").await;
    let new = project.repo.commit().await;
    let pack = project.repo.pack(&["main"]).await;
    let wanted = [(old.as_str(), new.as_str(), "refs/heads/main")];
    let report = raw_push(&service, &project, &wanted, &pack).await;
    let told = report
        .iter()
        .any(|line| line.starts_with("ng refs/heads/main "))
        || report.iter().any(|line| line.starts_with("ERR "));
    assert!(told, "{report:?}");
}

#[tokio::test]
async fn an_atomic_push_and_push_options_are_understood() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "options").await;
    project.repo.git(&["branch", "other"]).await.good();
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let specs = ["--atomic", "-o", "key=value", "main", "other"];
    project.push(&service, &specs).await.good();
    assert!(client.serves(&state).await);
    let mut specs = specs.to_vec();
    specs[4] = "main:refs/heads/nobody-signed";
    project.push(&service, &specs).await.refused();
}

#[tokio::test]
async fn two_owners_of_one_identifier_are_kept_apart() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let first = Project::announced(&service, &mut client, "same").await;
    let second = Project::announced(&service, &mut client, "same").await;
    let mine = first.state().await.sign(&first.owner);
    client.publish(&mine).await.waits();
    // The first owner's word counts for nothing at the second's address.
    let main = "main:refs/heads/main";
    first
        .repo
        .push(&second.url(&service), &[main])
        .await
        .refused();
    assert_eq!(second.remote_refs(&service).await, []);

    first.push(&service, &["main"]).await.good();
    assert!(client.serves(&mine).await);
    assert_eq!(second.remote_refs(&service).await, []);
    second.update(&service, &mut client, &["main"]).await;
    assert_eq!(first.remote_refs(&service).await, first.repo.refs().await);
    assert_eq!(second.remote_refs(&service).await, second.repo.refs().await);
}

#[tokio::test]
async fn of_several_matching_states_the_latest_decides() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("latest").await;
    let draft = project.announcement(&service).maintainers(&[&maintainer]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    let answer = elsewhere("latest").maintainers(&[&project.owner]);
    client.publish(&answer.sign(&maintainer)).await.served();
    let main = project.repo.oid("main").await;
    let older = state("latest", &[("refs/heads/main", &main)]).sign(&project.owner);
    let newer = state("latest", &[("refs/heads/main", &main)]).sign(&maintainer);
    client.publish(&newer).await.waits();
    client.publish(&older).await.waits();
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&newer).await);
    until("the older is served as well", || async {
        Client::connect(&service).await.serves(&older).await
    })
    .await;
}

#[tokio::test]
async fn an_unfinished_history_is_not_taken_in() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "gap").await;
    project.repo.commit().await;
    let main = project.repo.oid("main").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let pack = project.repo.pack(&["main", "^main~1"]).await;
    let wanted = [(ZERO, main.as_str(), "refs/heads/main")];
    let report = raw_push(&service, &project, &wanted, &pack).await;
    assert!(
        !report.iter().any(|line| line.starts_with("ok ")),
        "{report:?}"
    );
    assert!(!client.serves(&state).await);
    assert_eq!(project.remote_refs(&service).await, []);
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_mirror_push_brings_everything_at_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "mirror").await;
    project.repo.git(&["branch", "one/two"]).await.good();
    project
        .repo
        .git(&["tag", "-a", "-m", "tag", "v1"])
        .await
        .good();
    project.repo.commit().await;
    project.update(&service, &mut client, &["--mirror"]).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
    project
        .repo
        .git(&["branch", "-q", "-D", "one/two"])
        .await
        .good();
    project.repo.commit().await;
    project.update(&service, &mut client, &["--mirror"]).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_shallow_clone_can_push() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "shallow").await;
    for _ in 0..3 {
        project.repo.commit().await;
    }
    project.update(&service, &mut client, &["main"]).await;
    let url = project.url(&service);
    let (clone, out) = Repo::clone(&url, &["--depth", "1"]).await;
    out.good();
    let commit = clone.commit().await;
    let signed = state("shallow", &[("refs/heads/main", &commit)]).sign(&project.owner);
    client.publish(&signed).await.waits();
    clone.push(&url, &["main"]).await.good();
    assert!(client.serves(&signed).await);
    let (whole, out) = Repo::clone(&url, &[]).await;
    out.good();
    assert_eq!(whole.say(&["rev-list", "--count", "HEAD"]).await, "5");
}

#[tokio::test]
async fn a_thousand_refs_are_pushed_at_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "thousand").await;
    let main = project.repo.oid("main").await;
    let create = |number| {
        let space = if number % 2 == 0 { "heads" } else { "tags" };
        format!("create refs/{space}/n/{number} {main}\n")
    };
    let input: String = (0..1000).map(create).collect();
    let update = ["update-ref", "--stdin"];
    let (ok, _, stderr) = git::run_with(&project.repo.path(), &update, input.as_bytes()).await;
    assert!(ok, "{stderr}");
    project.update(&service, &mut client, &["--mirror"]).await;
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn what_the_pool_has_is_told_and_need_not_be_sent_again() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "have").await;
    let main = project.repo.oid("main").await;
    let fork = Keys::generate();
    let draft = announcement(&service, &fork, "have");
    client.publish(&draft.sign(&fork)).await.waits();
    let path = Service::repository_path(&fork, "have");
    let path = format!("{path}/info/refs?service=git-receive-pack");
    let told = lines(&service.get(&path).await.unwrap().body);
    let have = format!("{main} .have");
    assert!(told.iter().any(|line| line.starts_with(&have)), "{told:?}");
}
