//! What git and its helpers are told over HTTP: HEAD, queries, and errors in words.

use crate::support::{
    Client, Project, Repo, Service,
    events::{self, state},
    git, web,
};

const VERSIONS: [&str; 2] = ["protocol.version=0", "protocol.version=2"];

/// The branch that a clone checks out.
async fn checked_out(project: &Project, service: &Service, version: &str) -> String {
    let url = project.url(service);
    let (clone, out) = Repo::clone(&url, &["-c", version, "clone", "-q"]).await;
    let out = out.good();
    assert!(!out.stderr.contains("warning"), "{}", out.stderr);
    clone.say(&["symbolic-ref", "--short", "HEAD"]).await
}

#[tokio::test]
async fn a_clone_always_checks_something_out() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for (head, branches, expected) in [
        (None, &["dev", "main", "master"][..], "main"),
        (None, &["dev", "master"], "master"),
        (None, &["only"], "only"),
        (None, &["x", "b"], "b"),
        (Some("refs/heads/gone"), &["dev", "main"], "main"),
        (Some("ref: refs/heads/dev"), &["dev", "main"], "dev"),
        (Some("an object id"), &["dev", "b"], "b"),
    ] {
        let project = Project::announced(&service, &mut client, "head").await;
        let main = project.repo.oid("main").await;
        let names: Vec<String> = branches.iter().map(|b| format!("refs/heads/{b}")).collect();
        let refs: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), main.as_str())).collect();
        let mut draft = state("head", &refs).without("HEAD");
        if let Some(head) = head {
            let value = if head == "an object id" {
                main.as_str()
            } else {
                head
            };
            draft = draft.tag(["HEAD", value]);
        }
        client.publish(&draft.sign(&project.owner)).await.waits();
        let specs: Vec<String> = names.iter().map(|name| format!("main:{name}")).collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        project.push(&service, &specs).await.good();
        for version in VERSIONS {
            let branch = checked_out(&project, &service, version).await;
            assert_eq!(branch, expected, "{head:?} {branches:?} {version}");
        }
    }
}

#[tokio::test]
async fn head_follows_when_its_branch_goes() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "goes").await;
    let main = project.repo.oid("main").await;
    let both = [("refs/heads/dev", &main), ("refs/heads/next", &main)];
    let draft = state("goes", &both)
        .without("HEAD")
        .tag(["HEAD", "ref: refs/heads/next"]);
    client.publish(&draft.sign(&project.owner)).await.waits();
    let specs = ["main:refs/heads/dev", "main:refs/heads/next"];
    project.push(&service, &specs).await.good();
    assert_eq!(checked_out(&project, &service, VERSIONS[1]).await, "next");
    let later = state("goes", &both[..1])
        .without("HEAD")
        .tag(["HEAD", "ref: refs/heads/next"]);
    let later = later.at(events::now() + 1).sign(&project.owner);
    client.publish(&later).await.served();
    for version in VERSIONS {
        assert_eq!(checked_out(&project, &service, version).await, "dev");
    }
}

#[tokio::test]
async fn the_service_is_found_in_any_query() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "query").await;
    let path = Service::repository_path(&project.owner, "query");
    for (query, status) in [
        ("service=git-upload-pack&x=1", 200),
        ("x=1&service=git-upload-pack", 200),
        ("service=git%2Dupload-pack", 200),
        ("service=git-receive-pack&service=git-upload-pack", 200),
        ("service=git-receive-pack&x", 200),
        ("service=git-upload-pack&service=nothing", 404),
        ("service=nothing", 404),
        ("", 404),
    ] {
        let answer = service
            .get(&format!("{path}/info/refs?{query}"))
            .await
            .unwrap();
        assert_eq!(answer.status, status, "{query}");
        if status == 404 {
            assert!(
                answer.header("content-type").starts_with("text/plain"),
                "{query}"
            );
        }
    }
}

/// What git says about a repository that it cannot read.
async fn said(url: &str, version: &str) -> String {
    let out = git::run(&std::env::temp_dir(), &["-c", version, "ls-remote", url]).await;
    assert!(!out.ok, "{}", out.stdout);
    out.stderr
}

#[tokio::test]
async fn git_says_why_nothing_is_here() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "here").await;
    let right = project.url(&service);
    let unknown = right.replace("here.git", "elsewhere.git");
    let mistaken = {
        let at = right.find("npub1").unwrap() + 8;
        let other = if &right[at..=at] == "q" { "p" } else { "q" };
        format!("{}{other}{}", &right[..at], &right[at + 1..])
    };
    let base = format!("http://{}", service.domain());
    for version in VERSIONS {
        for (url, words) in [
            (unknown.clone(), "no announcement (kind 30617)"),
            (right.trim_end_matches(".git").to_owned(), "ends in .git"),
            (mistaken.clone(), "is no npub"),
            (format!("{base}/{}/here.git", "a".repeat(64)), "is no npub"),
            (format!("{base}/somebody/else"), "no repository's address"),
            (
                format!(
                    "{base}/prs/{}",
                    right
                        .rsplitn(3, '/')
                        .take(2)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .rev()
                        .collect::<Vec<_>>()
                        .join("/")
                ),
                "below /prs/",
            ),
        ] {
            let told = said(&url, version).await;
            assert!(
                told.contains("remote: ") && told.contains(words),
                "{url}: {told}"
            );
            assert!(told.contains("not found"), "{url}: {told}");
        }
    }
    // Browsers get a page.
    let path = Service::repository_path(&project.owner, "elsewhere");
    let page = service.get(&path).await.unwrap();
    assert_eq!(page.status, 404);
    assert!(page.header("content-type").starts_with("text/html"));
}

#[tokio::test]
async fn git_says_what_the_operator_does_not_serve() {
    let mut service = Service::prepare(&[]).await;
    service.run().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "banned").await;
    drop(client);
    service.set("NGIT_REPOSITORY_BLACKLIST", "banned");
    service.restart().await;
    let told = said(&project.url(&service), VERSIONS[1]).await;
    assert!(told.contains("the operator of this server"), "{told}");
}

#[tokio::test]
async fn git_lfs_is_told_in_its_own_language() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "lfs").await;
    let path = Service::repository_path(&project.owner, "lfs");
    let lfs = "application/vnd.git-lfs+json";
    for below in [
        "objects/batch",
        "locks",
        "locks/verify",
        "locks/1/unlock",
        "x",
    ] {
        let request = web::with_body(
            "POST",
            service.port,
            &format!("{path}/info/lfs/{below}"),
            &[("Content-Type", lfs), ("Accept", lfs)],
            web::full("{}"),
        );
        let answer = service.fetch(request).await.unwrap();
        assert_eq!(answer.status, 501, "{below}");
        assert_eq!(answer.header("content-type"), lfs);
        let message: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(
            message["message"]
                .as_str()
                .unwrap()
                .contains("not supported"),
            "{message}"
        );
    }
    assert_eq!(
        service
            .get(&format!("{path}/info/lfs/locks"))
            .await
            .unwrap()
            .status,
        501
    );
    let absent = path.replace("lfs.git", "absent.git");
    let answer = service
        .get(&format!("{absent}/info/lfs/locks"))
        .await
        .unwrap();
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("content-type"), lfs);
}

/// Whether the real git-lfs is installed.
async fn has_lfs() -> bool {
    git::run(&std::env::temp_dir(), &["lfs", "version"])
        .await
        .ok
}

#[tokio::test]
#[ignore = "needs git-lfs"]
async fn the_real_git_lfs_says_what_it_is_told_and_asks_for_locks_no_more() {
    assert!(has_lfs().await, "git-lfs is not installed");
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "large").await;
    let url = project.url(&service);
    let repo = &project.repo;
    repo.git(&["lfs", "install", "--local"]).await.good();
    repo.git(&["remote", "add", "origin", &url]).await.good();
    repo.git(&["lfs", "track", "*.bin"]).await.good();
    repo.commit_file("a.bin", &[7; 5000]).await;
    client
        .publish(&project.state().await.sign(&project.owner))
        .await
        .waits();
    let out = repo.git(&["push", "origin", "main"]).await;
    assert!(!out.ok);
    assert!(
        out.stderr.contains("Git LFS is not supported here"),
        "{}",
        out.stderr
    );
    let key = format!("lfs.{url}/info/lfs.locksverify");
    assert_eq!(repo.say(&["config", &key]).await, "false");
    // Whoever has the large files elsewhere pushes as ever.
    repo.git(&["push", "--no-verify", "origin", "main"])
        .await
        .good();
}
