//! Which announcements, states and malformed events are accepted, row by row.

use serde_json::json;

use crate::support::{
    Client, Draft, Keys, PURGATORY, Project, Repo, Service,
    events::{announcement, coordinate, elsewhere, now, state},
    git, until,
};

#[tokio::test]
async fn an_event_whose_id_is_wrong_is_invalid() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let mut event =
        serde_json::to_value(announcement(&service, &keys, "wrong-id").sign(&keys)).unwrap();
    let id = "12".repeat(32);
    event["id"] = json!(id);
    let reason = client.publish_value(&id, event).await.rejected();
    assert!(reason.starts_with("invalid:"), "{reason}");
}

#[tokio::test]
async fn an_event_whose_signature_is_wrong_is_invalid() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let good = announcement(&service, &keys, "wrong-signature").sign(&keys);
    let other = announcement(&service, &keys, "other").sign(&keys);
    let mut event = serde_json::to_value(&good).unwrap();
    event["sig"] = serde_json::to_value(&other).unwrap()["sig"].clone();
    let reason = client
        .publish_value(&good.id.to_hex(), event)
        .await
        .rejected();
    assert!(reason.starts_with("invalid:"), "{reason}");
    // The forgery has not spoiled the real one.
    client.publish(&good).await.waits();
}

#[tokio::test]
async fn an_expired_event_is_invalid() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let draft = announcement(&service, &keys, "expired");
    let expired = draft
        .tag(["expiration", &(now() - 5).to_string()])
        .sign(&keys);
    let reason = client.publish(&expired).await.rejected();
    assert!(reason.starts_with("invalid:"), "{reason}");
}

#[tokio::test]
async fn an_event_larger_than_192_kib_is_invalid_and_one_below_is_not() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let large = announcement(&service, &keys, "large")
        .content("x".repeat(197_000))
        .sign(&keys);
    let reason = client.publish(&large).await.rejected();
    assert!(reason.starts_with("invalid:"), "{reason}");
    let fits = announcement(&service, &keys, "large")
        .content("x".repeat(190_000))
        .sign(&keys);
    client.publish(&fits).await.waits();
}

#[tokio::test]
async fn an_announcement_that_lists_us_waits_unserved_with_its_repository_there() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("waits").await;
    let event = project.announcement(&service).sign(&project.owner);
    client.publish(&event).await.waits();
    assert!(!client.serves(&event).await);
    client.send(json!(["COUNT", "c", {"kinds": [30617]}])).await;
    assert_eq!(client.answer(&["COUNT", "NOTICE"]).await[2]["count"], 0);
    assert!(project.hosted(&service).await);
    let directory = service.repository_directory(&project.owner, "waits");
    assert!(
        directory.join("HEAD").is_file(),
        "not on disk: {directory:?}"
    );
}

#[tokio::test]
async fn an_announcement_that_lists_us_as_a_substring_only_is_rejected() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let domain = service.domain();
    for (clone, relay) in [
        (
            format!("https://evil.example/{domain}"),
            format!("wss://evil.example/{domain}"),
        ),
        (
            format!("https://evil.example/?{domain}"),
            format!("wss://evil.example/#{domain}"),
        ),
        (
            format!("https://{domain}@evil.example/"),
            format!("wss://{domain}@evil.example/"),
        ),
        (
            format!("https://{domain}0/a.git"),
            format!("wss://{domain}0"),
        ),
        (
            format!("https://not-{domain}/a.git"),
            format!("wss://not-{domain}"),
        ),
    ] {
        let draft = Draft::new(30617).tag(["d", "substring"]);
        let event = draft
            .tag(["clone", &clone])
            .tag(["relays", &relay])
            .sign(&keys);
        client.publish(&event).await.rejected();
    }
    assert_eq!(service.repository_status(&keys, "substring").await, 404);
}

#[tokio::test]
async fn an_announcement_that_lists_us_in_only_one_of_clone_and_relays_is_rejected() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let full = announcement(&service, &keys, "half");
    client
        .publish(&full.clone().without("relays").sign(&keys))
        .await
        .rejected();
    client
        .publish(&full.without("clone").sign(&keys))
        .await
        .rejected();
    assert_eq!(service.repository_status(&keys, "half").await, 404);
}

#[tokio::test]
async fn scheme_path_and_case_do_not_matter_when_an_announcement_lists_us() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let port = service.port;
    let event = Draft::new(30617)
        .tag(["d", "spelling"])
        .tag(["clone", &format!("HTTPS://LocalHost:{port}/some/where")])
        .tag(["relays", &format!("wss://LOCALHOST:{port}/path?query")])
        .sign(&keys);
    client.publish(&event).await.waits();
}

#[tokio::test]
async fn a_default_port_need_not_be_spelled_out() {
    let service = Service::start_with(&[("NGIT_DOMAIN", "grasp.example")]).await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let event = Draft::new(30617)
        .tag(["d", "ports"])
        .tag(["clone", "https://grasp.example:443/some/where.git"])
        .tag(["relays", "wss://grasp.example:443"])
        .sign(&keys);
    client.publish(&event).await.waits();
    let other = Draft::new(30617)
        .tag(["d", "other-port"])
        .tag(["clone", "https://grasp.example:8443/some/where.git"])
        .tag(["relays", "wss://grasp.example:8443"])
        .sign(&keys);
    client.publish(&other).await.rejected();
}

#[tokio::test]
async fn malformed_entries_of_an_announcement_are_ignored_one_by_one() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let (owner, maintainer) = (Keys::generate(), Keys::generate());
    let url = service.public_url(&owner, "malformed");
    let relay = format!("ws://{}", service.domain());
    let event = Draft::new(30617)
        .tag(["d", "malformed"])
        .tag(["clone", "not a url", "", "http://", &url])
        .tag(["relays", "::::", "http://[::", &relay])
        .tag([
            "maintainers",
            "nonsense",
            "",
            "zz",
            &maintainer.public_key().to_hex(),
        ])
        .sign(&owner);
    client.publish(&event).await.waits();
    let answer = elsewhere("malformed").maintainers(&[&owner]);
    client.publish(&answer.sign(&maintainer)).await.served();
    let oid = "ab".repeat(20);
    let state = state("malformed", &[("refs/heads/main", &oid)]).sign(&maintainer);
    client.publish(&state).await.waits();
}

#[tokio::test]
async fn identifiers_that_are_no_file_names_are_rejected() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let long = "x".repeat(251);
    for identifier in ["", ".", "..", "a/b", "a\\b", "a\u{0}b", "a\nb", &long] {
        let event = announcement(&service, &keys, "d")
            .without("d")
            .tag(["d", identifier])
            .sign(&keys);
        client.publish(&event).await.rejected();
    }
    let longest = "x".repeat(250);
    let event = announcement(&service, &keys, &longest).sign(&keys);
    client.publish(&event).await.waits();
    assert_eq!(service.repository_status(&keys, &longest).await, 200);
}

#[tokio::test]
async fn a_maintainers_announcement_without_us_is_served_but_makes_no_repository() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let (owner, maintainer, stranger) = (Keys::generate(), Keys::generate(), Keys::generate());
    let waiting = announcement(&service, &owner, "shared").maintainers(&[&maintainer]);
    client.publish(&waiting.sign(&owner)).await.waits();

    let theirs = elsewhere("shared").sign(&maintainer);
    client.publish(&theirs).await.served();
    assert!(client.serves(&theirs).await);
    assert_eq!(service.repository_status(&maintainer, "shared").await, 404);

    client
        .publish(&elsewhere("shared").sign(&stranger))
        .await
        .rejected();
    client
        .publish(&elsewhere("not-shared").sign(&maintainer))
        .await
        .rejected();
}

#[tokio::test]
async fn a_maintainer_of_an_active_repository_may_announce_without_us() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("shared").await;
    let draft = project.announcement(&service).maintainers(&[&maintainer]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    project.update(&service, &mut client, &["main"]).await;
    let theirs = elsewhere("shared").sign(&maintainer);
    client.publish(&theirs).await.served();
    assert!(client.serves(&theirs).await);
}

#[tokio::test]
async fn a_newer_announcement_that_drops_us_takes_the_waiting_one_with_it() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "dropped").await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();

    client
        .publish(&elsewhere("dropped").sign(&project.owner))
        .await
        .rejected();
    until("the repository is gone", || async {
        !project.hosted(&service).await
    })
    .await;
    let again = project.state().await.sign(&project.owner);
    let reason = "invalid: no announcement exists for this repository";
    client.publish(&again).await.rejected_as(reason);

    // Its states went as well: a new announcement alone allows no push.
    let back = project.announcement(&service).sign(&project.owner);
    client.publish(&back).await.waits();
    project.push(&service, &["main"]).await.refused();
}

#[tokio::test]
async fn an_older_announcement_without_us_takes_nothing_with_it() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let older = elsewhere("kept");
    let project = Project::announced(&service, &mut client, "kept").await;
    let verdict = client.publish(&older.sign(&project.owner)).await;
    assert!(verdict.accepted && verdict.message.starts_with("duplicate: "));
    assert!(project.hosted(&service).await);
    project.update(&service, &mut client, &["main"]).await;
}

#[tokio::test]
async fn states_stay_when_another_owner_still_waits_under_the_identifier() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let first = Project::announced(&service, &mut client, "twins").await;
    let second = Project::announced(&service, &mut client, "twins").await;
    let state = second.state().await.sign(&second.owner);
    client.publish(&state).await.waits();
    client
        .publish(&elsewhere("twins").sign(&first.owner))
        .await
        .rejected();
    until("the first is gone", || async {
        !first.hosted(&service).await
    })
    .await;
    second.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_newer_announcement_that_drops_us_delists_an_active_repository() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "delisted").await;
    let stays = Project::active(&service, &mut client, "stays").await;
    client
        .publish(&elsewhere("delisted").sign(&project.owner))
        .await
        .rejected();
    until("the repository is gone", || async {
        !project.hosted(&service).await
    })
    .await;
    let author = project.owner.public_key().to_hex();
    let filter = json!({"kinds": [30617], "authors": [author]});
    assert_eq!(client.query(filter).await, []);
    assert!(stays.hosted(&service).await);
}

#[tokio::test]
async fn a_replacement_of_an_active_announcement_is_served_at_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "replaced").await;
    let newer = project
        .announcement(&service)
        .tag(["description", "new"])
        .sign(&project.owner);
    client.publish(&newer).await.served();
    let author = project.owner.public_key().to_hex();
    let filter = json!({"kinds": [30617], "authors": [author]});
    assert_eq!(client.query(filter).await, [newer]);
    assert!(project.hosted(&service).await);
}

#[tokio::test]
async fn an_older_announcement_never_replaces_a_newer_one() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("older").await;
    let older = project
        .announcement(&service)
        .tag(["description", "old"])
        .sign(&project.owner);
    let newer = project
        .announcement(&service)
        .tag(["description", "new"])
        .sign(&project.owner);
    client.publish(&newer).await.waits();
    client.publish(&older).await;
    project.update(&service, &mut client, &["main"]).await;
    client.publish(&older).await;
    let author = project.owner.public_key().to_hex();
    let filter = json!({"kinds": [30617], "authors": [author]});
    assert_eq!(client.query(filter).await, [newer]);
}

#[tokio::test]
async fn a_state_without_an_announcement_is_invalid() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("unannounced").await;
    let state = project.state().await.sign(&project.owner);
    let reason = "invalid: no announcement exists for this repository";
    client.publish(&state).await.rejected_as(reason);
}

#[tokio::test]
async fn a_state_by_nobodys_maintainer_is_invalid() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let waiting = Project::announced(&service, &mut client, "waiting").await;
    let active = Project::active(&service, &mut client, "active").await;
    let stranger = Keys::generate();
    let reason = "invalid: author not authorized for this repository";
    for project in [waiting, active] {
        let state = project.state().await.sign(&stranger);
        client.publish(&state).await.rejected_as(reason);
    }
}

#[tokio::test]
async fn what_waits_already_is_a_duplicate() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::new("duplicate").await;
    let announcement = project.announcement(&service).sign(&project.owner);
    let state = project.state().await.sign(&project.owner);
    for event in [&announcement, &state] {
        client.publish(event).await.waits();
        let verdict = client.publish(event).await;
        assert!(verdict.accepted);
        assert_eq!(verdict.message, "duplicate: in purgatory");
    }
    project.push(&service, &["main"]).await.good();
    for event in [&announcement, &state] {
        let verdict = client.publish(event).await;
        assert!(verdict.accepted, "{verdict:?}");
        assert_ne!(verdict.message, PURGATORY);
    }
}

#[tokio::test]
async fn a_state_whose_objects_are_here_is_applied_and_served_at_once() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "present").await;
    let first = project.repo.oid("main").await;
    project.repo.commit().await;
    project.update(&service, &mut client, &["main"]).await;

    let back = state(
        "present",
        &[("refs/heads/main", &first), ("refs/tags/v1", &first)],
    );
    let back = back.sign(&project.owner);
    client.publish(&back).await.served();
    assert!(client.serves(&back).await);
    let refs = [
        ("refs/heads/main".to_owned(), first.clone()),
        ("refs/tags/v1".to_owned(), first),
    ];
    assert_eq!(project.remote_refs(&service).await, refs);
}

#[tokio::test]
async fn a_state_with_a_ref_name_that_git_refuses_is_rejected() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "names").await;
    let oid = project.repo.oid("main").await;
    for name in [
        "refs/heads/a..b",
        "refs/heads/a.lock",
        "refs/heads/a b",
        "refs/heads/.a",
        "refs/heads/a//b",
        "refs/heads/a~1",
        "refs/heads/@{",
        "refs/tags/a\u{7f}",
        "refs/heads/",
    ] {
        let state = state("names", &[("refs/heads/main", &oid), (name, &oid)]);
        client.publish(&state.sign(&project.owner)).await.rejected();
    }
}

#[tokio::test]
async fn a_state_with_a_ref_inside_another_is_rejected() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "inside").await;
    let oid = project.repo.oid("main").await;
    for names in [
        ["refs/heads/a", "refs/heads/a/b"],
        ["refs/tags/a/b/c", "refs/tags/a"],
    ] {
        let refs = names.map(|name| (name, oid.as_str()));
        let state = state("inside", &refs).sign(&project.owner);
        client.publish(&state).await.rejected();
    }
    let refs = ["refs/heads/a", "refs/heads/ab", "refs/tags/a/b"].map(|name| (name, oid.as_str()));
    client
        .publish(&state("inside", &refs).sign(&project.owner))
        .await
        .waits();
}

#[tokio::test]
async fn peeled_names_in_a_state_are_ignored() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "peeled").await;
    project
        .repo
        .git(&["tag", "-a", "-m", "tag", "v1"])
        .await
        .good();
    let never = "00ff".repeat(10);
    let state = project
        .state()
        .await
        .tag(["refs/tags/v1^{}", &never])
        .sign(&project.owner);
    client.publish(&state).await.waits();
    project.push(&service, &["main", "v1"]).await.good();
    assert!(client.serves(&state).await);
    assert_eq!(
        project.remote_refs(&service).await,
        project.repo.refs().await
    );
}

#[tokio::test]
async fn a_state_with_an_object_id_that_is_none_of_ours_is_refused() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "ids").await;
    let sha256 = "ab".repeat(32);
    for value in ["abc123", &sha256] {
        let refs = [("refs/heads/main", value)];
        let state = state("ids", &refs).sign(&project.owner);
        let why = client.publish(&state).await.rejected();
        assert!(why.starts_with("invalid: "), "{why}");
        project.push(&service, &["main"]).await.refused();
    }
    // It stands in nobody's way.
    project.update(&service, &mut client, &["main"]).await;
}

#[tokio::test]
async fn a_symbolic_value_in_a_state_needs_no_object() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "symbolic").await;
    let state = project
        .state()
        .await
        .without("HEAD")
        .tag(["HEAD", "refs/heads/main"])
        .tag(["refs/heads/alias", "ref: refs/heads/main"])
        .sign(&project.owner);
    client.publish(&state).await.waits();
    project.push(&service, &["main"]).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_branch_that_is_no_commit_is_never_applied() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "tree").await;
    let tree = project.repo.oid("main^{tree}").await;
    let commit = project.repo.oid("main").await;
    let state = state("tree", &[("refs/heads/main", &tree)]).sign(&project.owner);
    client.publish(&state).await;
    assert!(!client.serves(&state).await);
    assert_eq!(
        project.remote_ref(&service, "refs/heads/main").await,
        Some(commit)
    );
}

#[tokio::test]
async fn of_two_equally_old_states_the_one_with_the_lower_id_wins() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for (identifier, lower_first) in [("lower-first", true), ("lower-last", false)] {
        let project = Project::active(&service, &mut client, identifier).await;
        let first = project.repo.oid("main").await;
        project.repo.commit().await;
        project.update(&service, &mut client, &["main"]).await;
        let second = project.repo.oid("main").await;

        // Neither takes away what the other names.
        let one = state(
            identifier,
            &[("refs/heads/main", &first), ("refs/heads/b", &second)],
        );
        let at = crate::support::events::next_second();
        let other = state(
            identifier,
            &[("refs/heads/main", &second), ("refs/heads/b", &first)],
        );
        let mut both = [
            one.at(at).sign(&project.owner),
            other.at(at).sign(&project.owner),
        ];
        both.sort_by_key(|event| event.id.to_hex());
        if !lower_first {
            both.reverse();
        }
        for event in &both {
            client.publish(event).await;
        }
        let lower = &both[usize::from(!lower_first)];
        let author = project.owner.public_key().to_hex();
        let served = client
            .query(json!({"kinds": [30618], "authors": [author]}))
            .await;
        assert_eq!(served, std::slice::from_ref(lower));
        let main = lower
            .tags
            .iter()
            .find(|tag| tag.kind() == "refs/heads/main");
        let main = main.and_then(|tag| tag.content()).map(str::to_owned);
        assert_eq!(project.remote_ref(&service, "refs/heads/main").await, main);
    }
}

#[tokio::test]
async fn of_two_equally_old_waiting_states_the_one_with_the_lower_id_prevails() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for (identifier, lower_first) in [("lower-first", true), ("lower-last", false)] {
        let project = Project::announced(&service, &mut client, identifier).await;
        let first = project.repo.oid("main").await;
        let second = project.repo.commit().await;
        let at = crate::support::events::next_second();
        let sign = |oid: &str| {
            let draft = state(identifier, &[("refs/heads/main", oid)]);
            (
                draft.at(at).sign(&project.owner),
                format!("+{oid}:refs/heads/main"),
            )
        };
        let mut both = [sign(&first), sign(&second)];
        for (event, _) in &both {
            client.publish(event).await.waits();
        }
        both.sort_by_key(|(event, _)| event.id.to_hex());
        let [lower, higher] = both;
        if lower_first {
            project.push(&service, &[&lower.1]).await.good();
            project.push(&service, &[&higher.1]).await.refused();
        } else {
            project.push(&service, &[&higher.1]).await.good();
            project.push(&service, &[&lower.1]).await.good();
        }
        let author = project.owner.public_key().to_hex();
        let served = client
            .query(json!({"kinds": [30618], "authors": [author]}))
            .await;
        assert_eq!(served, std::slice::from_ref(&lower.0));
        let main = project
            .remote_ref(&service, "refs/heads/main")
            .await
            .unwrap();
        assert!(lower.1.contains(&main));
    }
}

#[tokio::test]
async fn a_state_older_than_the_served_one_moves_nothing() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "older-state").await;
    let first = project.repo.oid("main").await;
    let older = state("older-state", &[("refs/heads/main", &first)]).sign(&project.owner);
    let second = project.repo.commit().await;
    let newer = project.update(&service, &mut client, &["main"]).await;
    client.publish(&older).await;
    assert_eq!(
        project.remote_ref(&service, "refs/heads/main").await,
        Some(second)
    );
    let author = project.owner.public_key().to_hex();
    let served = client
        .query(json!({"kinds": [30618], "authors": [author]}))
        .await;
    assert_eq!(served, [newer]);
}

#[tokio::test]
async fn a_user_grasp_list_is_accepted() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let relay = format!("ws://{}", service.domain());
    let older = Draft::new(10317).tag(["g", &relay]).sign(&keys);
    let list = Draft::new(10317).tag(["g", &relay]).sign(&keys);
    client.publish(&list).await.served();
    client.publish(&older).await;
    let author = keys.public_key().to_hex();
    assert_eq!(
        client
            .query(json!({"kinds": [10317], "authors": [author]}))
            .await,
        [list]
    );
}

#[tokio::test]
async fn of_two_equally_old_lists_the_one_with_the_lower_id_is_served() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for lower_first in [true, false] {
        let keys = Keys::generate();
        let at = crate::support::events::next_second();
        let sign = |relay| Draft::new(10317).tag(["g", relay]).at(at).sign(&keys);
        let mut lists = [sign("wss://one.example"), sign("wss://two.example")];
        lists.sort_by_key(|event| event.id.to_hex());
        let lower = lists[0].clone();
        if !lower_first {
            lists.reverse();
        }
        for list in &lists {
            client.publish(list).await;
        }
        let author = keys.public_key().to_hex();
        assert_eq!(
            client
                .query(json!({"kinds": [10317], "authors": [author]}))
                .await,
            [lower]
        );
    }
}

#[tokio::test]
async fn what_is_already_served_is_a_duplicate() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    let list = Draft::new(10317)
        .tag(["g", "wss://one.example"])
        .sign(&keys);
    client.publish(&list).await.served();
    let again = client.publish(&list).await;
    assert!(
        again.accepted && again.message.starts_with("duplicate:"),
        "{again:?}"
    );
}

#[tokio::test]
async fn an_event_that_has_to_do_with_nothing_here_is_rejected() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    client
        .publish(&Draft::new(1).content("hello").sign(&keys))
        .await
        .rejected();
    let nowhere = coordinate(&keys, "nowhere");
    client
        .publish(&Draft::new(1621).tag(["a", &nowhere]).sign(&keys))
        .await
        .rejected();
}

#[tokio::test]
async fn several_waiting_states_are_all_released_when_their_data_comes() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let maintainer = Keys::generate();
    let project = Project::new("several").await;
    let draft = project.announcement(&service).maintainers(&[&maintainer]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    let answer = elsewhere("several").maintainers(&[&project.owner]);
    client.publish(&answer.sign(&maintainer)).await.served();
    let first = project.repo.oid("main").await;
    let older = state("several", &[("refs/heads/main", &first)]).sign(&maintainer);
    client.publish(&older).await.waits();
    let second = project.repo.commit().await;
    let newer = project.update(&service, &mut client, &["main"]).await;
    // The newer push brought what the older names, too.
    until("the older is served as well", || async {
        Client::connect(&service).await.serves(&older).await
    })
    .await;
    assert!(client.serves(&newer).await);
    assert_eq!(
        git::remote_ref(&project.url(&service), "HEAD").await,
        Some(second)
    );
}

#[tokio::test]
async fn the_memory_backend_serves_too() {
    let service = Service::start_with(&[("NGIT_DATABASE_BACKEND", "memory")]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "memory").await;
    let (clone, out) = Repo::clone(&project.url(&service), &[]).await;
    out.good();
    assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
}
