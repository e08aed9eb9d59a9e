//! What lies on disk: pools, staging, adoption, what is deleted, retired, or left by a kill.

mod common;

use std::path::Path;

use common::*;
use grasp_proto::{
    contract::git::{DeleteRequest, RetireRequest},
    words::{Oid, RepoId},
};
use tonic::Code;

async fn delete(service: &Service, repo: &RepoId, incarnation: &str) -> Result<(), Code> {
    let request = DeleteRequest {
        repository: Some(repo.into()),
        incarnation: incarnation.to_owned(),
        only_empty: false,
    };
    let answer = service.git.clone().delete(request).await;
    answer.map(|_| ()).map_err(|status| status.code())
}

async fn retire(service: &Service, repo: &RepoId) -> Result<(), Code> {
    let request = RetireRequest {
        repository: Some(repo.into()),
        incarnation: String::new(),
    };
    let answer = service.git.clone().retire(request).await;
    answer.map(|_| ()).map_err(|status| status.code())
}

fn nostr(byte: &str) -> String {
    format!("refs/nostr/{}", byte.repeat(32))
}

/// A bare repository as another server leaves it, with two commits, one of them loose.
async fn left_behind(service: &Service, repo: &RepoId) -> Oid {
    let path = work(service.directory.path(), "left", 1).await;
    git(&path, &["gc", "-q"]).await;
    let head = commit(&path, "loose", "loose").await;
    let view = service.view(repo);
    std::fs::create_dir_all(view.parent().unwrap()).unwrap();
    std::fs::rename(path.join(".git"), &view).unwrap();
    git(&view, &["config", "core.bare", "true"]).await;
    head
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_is_claimed_by_its_event() {
    let service = Service::start().await;
    let (mine, theirs) = (repo(1, "staged"), repo(2, "staged"));
    service.create(&mine).await;
    service.create(&theirs).await;
    let path = work(service.directory.path(), "work", 2).await;
    git(&path, &["push", "-q", &service.url(&mine), "main"]).await;
    let tip = commit(&path, "pr", "pull me").await;
    let name = nostr("ab");
    let url = service.url(&mine);
    let spec = format!("main:{name}");
    git(&path, &["push", "-q", &url, &spec]).await;
    // Only its own view sees it, and nothing may lean on it.
    assert_eq!(
        (packs(&service.view(&mine)), packs(&service.pool())),
        (1, 1)
    );
    assert!(service.missing(&mine, tip, false).await);
    assert!(!service.missing(&mine, tip, true).await);
    assert!(service.missing(&theirs, tip, true).await);
    let fetched = try_git(&path, &["fetch", &url, &name]).await;
    assert!(fetched.status.success(), "{}", said(&fetched));
    let mut seen = tokio::net::TcpStream::connect(
        url.trim_start_matches("http://").split('/').next().unwrap(),
    )
    .await
    .unwrap();
    let advertised = {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let request = format!(
            "GET /{mine}/info/refs?service=git-receive-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        );
        seen.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        seen.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(!advertised.contains("refs/nostr"), "{advertised}");
    // The same again changes nothing; the event claims it, as often as it likes.
    git(&path, &["push", "-q", "-f", &url, &spec]).await;
    for _ in 0..2 {
        service.put_ref(&mine, &name, tip, true).await.unwrap();
        assert_eq!(
            (packs(&service.view(&mine)), packs(&service.pool())),
            (0, 2)
        );
        assert!(!service.missing(&theirs, tip, true).await);
        assert!(children(&service.view(&mine).join("staged")).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_signs_for_goes_with_its_placeholder() {
    let service = Service::start().await;
    let repo = repo(1, "expired");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let url = service.url(&repo);
    // Two placeholders of one upload share a pack: it goes with the second.
    let (one, two) = (nostr("aa"), nostr("bb"));
    let specs = (format!("main:{one}"), format!("main:{two}"));
    git(&path, &["push", "-q", &url, &specs.0, &specs.1]).await;
    service.delete_ref(&repo, &one).await.unwrap();
    assert_eq!(
        (packs(&service.view(&repo)), service.refs(&repo).await.len()),
        (1, 1)
    );
    for _ in 0..2 {
        service.delete_ref(&repo, &two).await.unwrap();
        assert_eq!(
            (packs(&service.view(&repo)), service.refs(&repo).await.len()),
            (0, 0)
        );
    }
    // One that the relay refuses after all leaves nothing.
    service.judge(Judgement::RefuseCommit("expired before".into()));
    assert!(
        !try_git(&path, &["push", &url, &specs.0])
            .await
            .status
            .success()
    );
    assert_eq!(packs(&service.view(&repo)), 0);
    assert!(children(&service.view(&repo).join("staged")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_claims_what_is_staged() {
    let service = Service::start().await;
    let repo = repo(1, "claims");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 2).await;
    let tip = rev(&path, "main").await;
    let spec = format!("main:{}", nostr("ab"));
    git(&path, &["push", "-q", &service.url(&repo), &spec]).await;
    let absent = Oid::from_bytes([7; 20]);
    let refused = service
        .align(&repo, &[("refs/heads/main", absent)], &[])
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    service
        .align(&repo, &[("refs/heads/main", tip)], &[])
        .await
        .unwrap();
    assert_eq!(
        (packs(&service.view(&repo)), packs(&service.pool())),
        (0, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_mixed_push_the_branch_claims_what_was_staged() {
    let service = Service::start().await;
    let repo = repo(1, "mixed");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 2).await;
    let tip = rev(&path, "main").await;
    let url = service.url(&repo);
    git(&path, &["checkout", "-q", "-b", "pr"]).await;
    let proposed = commit(&path, "pr", "pr").await;
    let spec = format!("pr:{}", nostr("ab"));
    service.judge(Judgement::Stage);
    git(&path, &["push", "-q", &url, "main", &spec]).await;
    let mut refs = vec![("refs/heads/main".to_owned(), tip), (nostr("ab"), proposed)];
    assert_eq!(service.refs(&repo).await, refs);
    assert_eq!(
        (packs(&service.view(&repo)), packs(&service.pool())),
        (0, 1)
    );
    // The placeholder goes, the branch stays whole.
    service.delete_ref(&repo, &nostr("ab")).await.unwrap();
    refs.pop();
    assert_eq!(service.refs(&repo).await, refs);
    git(service.directory.path(), &["clone", "-q", &url, "clone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn placeholders_are_bounded() {
    let service = Service::with(&[("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8")]).await;
    let repo = repo(1, "bounded");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let url = service.url(&repo);
    let push = async |client: u16, specs: &[String]| {
        let from = format!("http.extraHeader=X-Forwarded-For: 192.0.2.{client}");
        let mut args = vec!["-c", &from, "push", "-q", &url];
        args.extend(specs.iter().map(String::as_str));
        said(&try_git(&path, &args).await)
    };
    let specs = |numbers: std::ops::Range<u16>| -> Vec<String> {
        let spec = |n| format!("main:refs/nostr/{n:064x}");
        numbers.map(spec).collect()
    };
    // One client has a share of them, and all together what there is.
    for client in 0..4 {
        let own = client * 64;
        assert_eq!(push(client, &specs(own..own + 63)).await, "");
        if client == 0 {
            let shown = push(client, &specs(1000..1002)).await;
            assert!(shown.contains("there is to be room for others"), "{shown}");
        }
        assert_eq!(push(client, &specs(own + 63..own + 64)).await, "");
    }
    let shown = push(9, &specs(1000..1001)).await;
    assert!(
        shown.contains("256 uploads that wait for their event"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_commits_wait_for_one_event_and_nobody_takes_all_of_its_room() {
    let service = Service::with(&[("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8")]).await;
    let repo = repo(1, "several");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 9).await;
    let url = service.url(&repo);
    let name = nostr("ab");
    let push = async |client: &str, what: &str| {
        let from = format!("http.extraHeader=X-Forwarded-For: {client}");
        let spec = format!("+{what}:{name}");
        said(&try_git(&path, &["-c", &from, "push", "-q", &url, &spec]).await)
    };
    // What the relay says of each but the first: it waits beside it, and the ref stays.
    assert_eq!(push("192.0.2.1", "main~8").await, "");
    service.judge(Judgement::StageBeside);
    for back in 1..8 {
        assert_eq!(push("192.0.2.1", &format!("main~{back}")).await, "");
    }
    let shown = push("192.0.2.1", "main").await;
    assert!(shown.contains("wait for one event"), "{shown}");
    assert_eq!(push("192.0.2.2", "main").await, "");
    let [first, last] = [rev(&path, "main~8").await, rev(&path, "main").await];
    assert_eq!(service.refs(&repo).await, [(name.clone(), first)]);
    // The event is here, and chooses.
    service.put_ref(&repo, &name, last, true).await.unwrap();
    assert_eq!(service.refs(&repo).await, [(name, last)]);
    git(&service.view(&repo), &["fsck", "--strict"]).await;
    assert!(children(&service.view(&repo).join("staged")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn expectations_are_kept() {
    let service = Service::start().await;
    let repo = repo(1, "expect");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 2).await;
    git(&path, &["push", "-q", &service.url(&repo), "main"]).await;
    let (old, new) = (rev(&path, "main~1").await, rev(&path, "main").await);
    let name = "refs/heads/main";
    for wrong in [Some(old), None] {
        let refused = service.align(&repo, &[(name, old)], &[(name, wrong)]).await;
        assert_eq!(refused.unwrap_err().code(), Code::Aborted);
    }
    let changed = service
        .align(&repo, &[(name, old)], &[(name, Some(new))])
        .await;
    assert_eq!(changed.unwrap(), 1);
    assert_eq!(service.align(&repo, &[(name, old)], &[]).await.unwrap(), 0);
    // A tree is no head; two names of which one is a directory of the other are no refs.
    let tree = rev(&path, "main^{tree}").await;
    let code = |r: Result<u32, tonic::Status>| r.unwrap_err().code();
    assert_eq!(
        code(service.align(&repo, &[(name, tree)], &[]).await),
        Code::FailedPrecondition
    );
    let twice = [(name, old), ("refs/heads/main/x", old)];
    assert_eq!(
        code(service.align(&repo, &twice, &[]).await),
        Code::InvalidArgument
    );
    let other = common::repo(9, "expect");
    assert_eq!(code(service.align(&other, &[], &[]).await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_goes_with_its_last_view() {
    let service = Service::start().await;
    let (a, b) = (repo(1, "pool"), repo(2, "pool"));
    let incarnation = service.create(&a).await;
    assert_eq!(service.create(&a).await, incarnation);
    service.create(&b).await;
    assert_eq!(
        delete(&service, &a, "another").await,
        Err(Code::FailedPrecondition)
    );
    delete(&service, &a, &incarnation).await.unwrap();
    delete(&service, &a, &incarnation).await.unwrap();
    assert_eq!(service.pools().len(), 1);
    assert_ne!(service.create(&a).await, incarnation);
    delete(&service, &a, "").await.unwrap();
    delete(&service, &b, "").await.unwrap();
    assert!(service.pools().is_empty());
    assert!(children(&service.data().join(".new")).is_empty());
    let left = children(&service.data());
    assert!(
        left.iter()
            .all(|path| path.file_name().unwrap().to_str().unwrap().starts_with('.'))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_servers_repository_is_served_as_it_stands_and_adopted_when_written_to() {
    let mut service = Service::start().await;
    service.stop_gitd().await;
    let (mine, theirs) = (repo(1, "left"), repo(2, "left"));
    let head = left_behind(&service, &mine).await;
    service.start_gitd().await;
    let directory = service.directory.path().to_owned();
    git(&directory, &["clone", "-q", &service.url(&mine), "clone"]).await;
    assert!(service.pools().is_empty());
    // Whoever asks for its objects finds them.
    assert!(!service.missing(&theirs, head, false).await);
    let clone = directory.join("clone");
    commit(&clone, "more", "more").await;
    git(&clone, &["push", "-q", &service.url(&mine), "main"]).await;
    // What it had is in the pool, so another owner's view has it too.
    service.create(&theirs).await;
    let name = "refs/heads/main";
    service.align(&theirs, &[(name, head)], &[]).await.unwrap();
    git(&directory, &["clone", "-q", &service.url(&theirs), "other"]).await;
    let other = directory.join("other");
    git(&other, &["fsck", "--strict"]).await;
    assert_eq!(rev(&other, "origin/main").await, head);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_is_put_in_order() {
    let mut service = Service::start().await;
    let repo = repo(1, "killed");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    git(&path, &["push", "-q", &service.url(&repo), "main"]).await;
    let spec = format!("main:{}", nostr("ab"));
    commit(&path, "pr", "pr").await;
    git(&path, &["push", "-q", &service.url(&repo), &spec]).await;
    let view = service.view(&repo);
    git(&view, &["update-ref", "-d", &nostr("ab")]).await;
    service.stop_gitd().await;
    let pool = service.pool();
    // A quarantine, a view half made, a view half deleted, a marker without view, a pool without
    // markers, an upload that was never answered (above), locks of a transaction.
    std::fs::create_dir_all(pool.join("quarantine/x/pack")).unwrap();
    std::fs::create_dir_all(service.data().join(".new/x/objects")).unwrap();
    std::fs::write(
        pool.join("views").join(format!("{}-00", "07".repeat(32))),
        "",
    )
    .unwrap();
    let orphan = service.data().join(".pools/00/0.git");
    std::fs::create_dir_all(orphan.join("views")).unwrap();
    std::fs::create_dir_all(orphan.join("quarantine")).unwrap();
    std::fs::write(orphan.join("grasp-identifier"), "orphan\n").unwrap();
    std::fs::write(view.join("refs/heads/main.lock"), "").unwrap();
    let locks = ["packed-refs.lock", "packed-refs.new"].map(|file| view.join(file));
    let lock = || {
        for file in &locks {
            std::fs::write(file, "").unwrap();
        }
    };
    lock();
    let left = [
        pool.join("objects/pack/tmp_pack_x"),
        pool.join("objects/pack/.tmp-1-pack-x.pack"),
        view.join(".grasp-x"),
    ];
    for file in &left {
        std::fs::write(file, "").unwrap();
    }
    service.start_gitd().await;
    assert!(!left.iter().any(|file| file.exists()));
    assert!(!locks.iter().any(|file| file.exists()));
    assert!(children(&pool.join("quarantine")).is_empty());
    assert!(children(&service.data().join(".new")).is_empty());
    assert_eq!(children(&pool.join("views")).len(), 1);
    assert_eq!(service.pools().len(), 1);
    assert_eq!(packs(&view), 0);
    let more = commit(&path, "more", "more").await;
    git(&path, &["push", "-q", &service.url(&repo), "main"]).await;
    // So many deletions are git's work, which has locks of its own.
    let specs: Vec<String> = (0..6).map(|n| format!("main:refs/heads/b{n}")).collect();
    let url = service.url(&repo);
    let mut args = vec!["push", "-q", &url];
    args.extend(specs.iter().map(String::as_str));
    git(&path, &args).await;
    git(&view, &["pack-refs", "--all"]).await;
    lock();
    let wanted = [("refs/heads/main", more)];
    assert_eq!(service.align(&repo, &wanted, &[]).await.unwrap(), 6);
}

/// An upload that has begun and does not go on.
async fn half_an_upload(service: &Service, repo: &RepoId) -> tokio::net::TcpStream {
    use tokio::io::AsyncWriteExt;
    let address = service.base.trim_start_matches("http://").to_owned();
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let (zero, one) = ("0".repeat(40), "1".repeat(40));
    let line = format!("{zero} {one} refs/heads/main\0report-status side-band-64k");
    let body = format!("{:04x}{line}0000PACK\0\0\0\x02\0\0\0\x05", line.len() + 4);
    let request = format!(
        "POST /{repo}/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\
         Content-Type: application/x-git-receive-pack-request\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // The relay is asked when the commands were read.
    while service.relay.asked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    stream
}

/// The upload that has begun was allowed.
async fn taken_in(service: &Service) {
    while children(&service.pool().join("quarantine")).is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_holds_its_repository() {
    let service = Service::start().await;
    let repo = repo(1, "held");
    service.create(&repo).await;
    let upload = half_an_upload(&service, &repo).await;
    taken_in(&service).await;
    let refused = Err(Code::FailedPrecondition);
    assert_eq!(delete(&service, &repo, "").await, refused);
    drop(upload);
    while delete(&service, &repo, "").await == refused {
        tokio::task::yield_now().await;
    }
    assert!(service.pools().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_holds_nothing() {
    let service = Service::start().await;
    let repo = repo(1, "not-held");
    service.create(&repo).await;
    service.judge(Judgement::Refuse("no".to_owned()));
    let _upload = half_an_upload(&service, &repo).await;
    assert_eq!(delete(&service, &repo, "").await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_does_not_hold_what_is_retired() {
    let service = Service::start().await;
    let repo = repo(1, "retired-under-way");
    service.create(&repo).await;
    let _upload = half_an_upload(&service, &repo).await;
    taken_in(&service).await;
    retire(&service, &repo).await.unwrap();
    assert!(!service.view(&repo).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn creations_and_deletions_race() {
    let service = std::sync::Arc::new(Service::start().await);
    let mut tasks = Vec::new();
    for n in 0..200_u8 {
        let service = std::sync::Arc::clone(&service);
        tasks.push(tokio::spawn(async move {
            let repo = repo(n % 20, "race");
            for round in 0..3 {
                service.create(&repo).await;
                if (n + round) % 3 == 0 {
                    let _ = delete(&service, &repo, "").await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let views: Vec<_> = (0..20)
        .filter(|n| service.view(&repo(*n, "race")).is_dir())
        .collect();
    for pool in service.pools() {
        assert_eq!(children(&pool.join("views")).len(), views.len());
    }
    for n in views {
        delete(&service, &repo(n, "race"), "").await.unwrap();
    }
    assert!(service.pools().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn consolidation_drops_nothing() {
    let mut service = Service::start().await;
    let repo = repo(1, "many packs");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let url = service.url(&repo);
    let list = async |path: &Path| {
        let args = [
            "cat-file",
            "--batch-all-objects",
            "--batch-check=%(objectname) %(objecttype) %(objectsize)",
        ];
        git(path, &args).await
    };
    // Force-pushed over and over: most of what comes is soon reachable from nowhere.
    for n in 0..20 {
        git(&path, &["checkout", "-q", "--orphan", &format!("o{n}")]).await;
        commit(&path, "file", &format!("{n}\n")).await;
        git(&path, &["push", "-q", "-f", &url, "HEAD:refs/heads/main"]).await;
    }
    let pool = service.pool();
    assert_eq!(packs(&pool), 20);
    let before = list(&pool).await;
    git(&path, &["checkout", "-q", "--orphan", "last"]).await;
    let last = commit(&path, "file", "last\n").await;
    git(&path, &["push", "-q", "-f", &url, "HEAD:refs/heads/main"]).await;
    while packs(&pool) > 20 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // Readers that know the old packs find them until the next start; nothing goes with them.
    let files = children(&pool.join("objects/pack")).len();
    service.stop_gitd().await;
    service.start_gitd().await;
    assert!(children(&pool.join("objects/pack")).len() < files);
    assert!(!pool.join("rolled-up").exists());
    let after = list(&pool).await;
    for object in before.lines() {
        assert!(after.contains(object), "{object}");
    }
    assert!(after.contains(&last.to_string()));
    git(service.directory.path(), &["clone", "-q", &url, "clone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_borrowed_is_still_found() {
    let mut service = Service::start().await;
    service.stop_gitd().await;
    let (mine, theirs) = (repo(1, "borrows"), repo(2, "borrows"));
    let head = left_behind(&service, &mine).await;
    // A fork that borrows from the first by a relative path, as some servers make them.
    let lender = service.data().join("lender.git");
    std::fs::rename(service.view(&mine), &lender).unwrap();
    let fork = service.view(&mine);
    git(
        service.directory.path(),
        &["init", "-q", "--bare", &fork.display().to_string()],
    )
    .await;
    std::fs::write(
        fork.join("objects/info/alternates"),
        "../../../lender.git/objects",
    )
    .unwrap();
    git(&fork, &["update-ref", "refs/heads/main", &head.to_string()]).await;
    service.start_gitd().await;
    service.create(&mine).await;
    let lines = std::fs::read_to_string(fork.join("objects/info/alternates")).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    // Through the pool it is every view's, and what is pushed may build on it.
    service.create(&theirs).await;
    let directory = service.directory.path().to_owned();
    git(
        &directory,
        &["clone", "-q", "-b", "main", &service.url(&mine), "clone"],
    )
    .await;
    let clone = directory.join("clone");
    commit(&clone, "more", "more").await;
    git(&clone, &["push", "-q", &service.url(&theirs), "main"]).await;
    git(&service.view(&theirs), &["fsck", "--strict"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_another_kind_is_not_adopted() {
    let mut service = Service::start().await;
    service.stop_gitd().await;
    let (other, shallow, headless) = (repo(1, "kind"), repo(2, "kind"), repo(3, "kind"));
    let place = |repo: &RepoId| {
        let view = service.view(repo);
        std::fs::create_dir_all(view.parent().unwrap()).unwrap();
        view.to_str().unwrap().to_owned()
    };
    let directory = service.directory.path().to_owned();
    let sha256 = place(&other);
    git(
        &directory,
        &["init", "-q", "--bare", "--object-format=sha256", &sha256],
    )
    .await;
    let path = work(&directory, "work", 3).await;
    let from = format!("file://{}", path.display());
    let clone = [
        "clone",
        "-q",
        "--bare",
        "--depth=1",
        &from,
        &place(&shallow),
    ];
    git(&directory, &clone).await;
    git(
        &directory,
        &["clone", "-q", "--bare", &from, &place(&headless)],
    )
    .await;
    std::fs::write(service.view(&headless).join("HEAD"), "").unwrap();
    service.start_gitd().await;
    for repo in [&other, &shallow] {
        let request = grasp_proto::contract::git::CreateRequest {
            repository: Some(repo.into()),
            ..Default::default()
        };
        let refused = service.git.clone().create(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }
    assert!(service.pools().is_empty());
    for version in ["0", "2"] {
        let protocol = format!("protocol.version={version}");
        let ask = ["-c", &protocol, "ls-remote", &service.url(&other)];
        let shown = said(&try_git(&directory, &ask).await);
        assert!(shown.contains("only sha1 is known here"), "{shown}");
        let ask = ["-c", &protocol, "ls-remote", &service.url(&headless)];
        assert!(git(&directory, &ask).await.contains("refs/heads/main"));
    }
}
