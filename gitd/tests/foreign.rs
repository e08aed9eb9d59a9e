//! What another server left in the data directory: thin repositories and the stores they borrow from.

mod common;

use std::{collections::BTreeMap, fs, path::Path, time::SystemTime};

use common::*;
use grasp_proto::{
    contract::git::{CreateRequest, DeleteRequest, RestoreRequest, Withheld, WithholdRequest},
    words::{Oid, RepoId},
};
use tonic::Code;

/// All files below a directory, with their contents and when they were written.
fn everything(path: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for child in children(path) {
        if child.is_dir() {
            found.extend(everything(&child));
        } else {
            let written = fs::metadata(&child).unwrap().modified().unwrap();
            let name = child.display().to_string();
            found.insert(name, (fs::read(&child).unwrap(), written));
        }
    }
    found
}

/// A bare repository without objects of its own that borrows from `alternates`.
async fn thin(service: &Service, path: &Path, alternates: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let directory = service.directory.path();
    git(directory, &["init", "-q", "--bare", path.to_str().unwrap()]).await;
    fs::write(path.join("objects/info/alternates"), alternates).unwrap();
}

/// A store in `.grasp` whose newest commit lies loose in it, and the others in another store; gives
/// the working copy and the commit.
async fn stores(service: &Service) -> (std::path::PathBuf, Oid) {
    let directory = service.directory.path();
    let path = work(directory, "work", 4).await;
    let base = service.data().join(".grasp/base.git");
    fs::create_dir_all(base.parent().unwrap()).unwrap();
    let from = format!("file://{}", path.display());
    git(
        directory,
        &["clone", "-q", "--bare", &from, base.to_str().unwrap()],
    )
    .await;
    let near = service.data().join(".grasp/near.git");
    thin(service, &near, "../../base.git/objects\n").await;
    let head = commit(&path, "last", "last").await;
    git(&path, &["push", "-q", near.to_str().unwrap(), "main"]).await;
    assert!(near.join("objects").join(&head.to_string()[..2]).is_dir());
    (path, head)
}

#[tokio::test(flavor = "multi_thread")]
async fn thin_repositories_are_served_as_they_lie_and_borrow_on_when_they_are_adopted() {
    let mut service = Service::start().await;
    service.stop_gitd().await;
    let (path, head) = stores(&service).await;
    let grasp = service.data().join(".grasp");
    let (mine, theirs) = (repo(1, "thin"), repo(2, "thin"));
    let view = service.view(&mine);
    thin(&service, &view, "../../../.grasp/near.git/objects").await;
    let absolute = format!("{}/near.git/objects\n", grasp.display());
    thin(&service, &service.view(&theirs), &absolute).await;
    let pull_request = format!("refs/nostr/{}", "ab".repeat(32));
    for view in [&view, &service.view(&theirs)] {
        git(view, &["update-ref", "refs/heads/main", &head.to_string()]).await;
        git(view, &["pack-refs", "--all"]).await;
        git(view, &["update-ref", &pull_request, &head.to_string()]).await;
        git(view, &["symbolic-ref", "HEAD", "refs/heads/main"]).await;
        // Whatever stands here must have no effect, nor what it includes.
        let included = service.directory.path().join("included");
        fs::write(&included, "[uploadpack]\n\thideRefs = refs/heads/main\n").unwrap();
        for (name, value) in [
            ("include.path", included.to_str().unwrap()),
            ("transfer.hideRefs", "refs/"),
            ("uploadpack.allowFilter", "false"),
            (
                "uploadpack.packObjectsHook",
                "touch /tmp/grasp-hook-ran; false",
            ),
            ("core.fsmonitor", "false-command"),
            ("core.alternateRefsCommand", "false"),
        ] {
            git(view, &["config", "--add", name, value]).await;
        }
        let graft = format!("{head}\n");
        fs::write(view.join("info/grafts"), graft).unwrap();
        for hook in [
            "pre-receive",
            "update",
            "post-receive",
            "reference-transaction",
        ] {
            let hook = view.join("hooks").join(hook);
            fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&hook, mode).unwrap();
        }
    }
    let before = everything(&grasp);
    service.start_gitd().await;

    let directory = service.directory.path().to_owned();
    let url = service.url(&mine);
    for version in ["0", "2"] {
        let protocol = format!("protocol.version={version}");
        let shown = git(
            &directory,
            &["-c", &protocol, "ls-remote", "--symref", &url],
        )
        .await;
        for word in [
            "ref: refs/heads/main\tHEAD",
            &pull_request,
            &head.to_string(),
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        let clone = format!("clone{version}");
        git(&directory, &["-c", &protocol, "clone", "-q", &url, &clone]).await;
        assert_eq!(
            git(&directory.join(&clone), &["rev-list", "--count", "main"]).await,
            "5"
        );
        let partial = format!("partial{version}");
        let filter = ["-c", &protocol, "clone", "-q", "--filter=blob:none"];
        git(&directory, &[&filter[..], &[&url, &partial]].concat()).await;
        assert_eq!(
            fs::read(directory.join(&partial).join("last")).unwrap(),
            b"last"
        );
    }
    let page = format!("GET /{mine} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let page = raw(&service, page.as_bytes()).await;
    assert!(page.starts_with("HTTP/1.1 200"));
    assert!(service.pools().is_empty());

    // Written to, they share a pool, which has nothing of what it borrows.
    for n in 0..21 {
        commit(&path, "more", &n.to_string()).await;
        git(&path, &["push", "-q", &url, "main"]).await;
    }
    let pool = service.pool();
    let lines = fs::read_to_string(pool.join("objects/info/alternates")).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.lines().all(|line| line.starts_with("../")), "{lines}");
    while packs(&pool) > 20 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    service.create(&theirs).await;
    assert!(!service.missing(&theirs, head, false).await);
    let last = rev(&path, "main").await;
    service
        .align(&theirs, &[("refs/heads/main", last)], &[])
        .await
        .unwrap();
    git(&directory, &["clone", "-q", &service.url(&theirs), "other"]).await;
    git(&directory.join("other"), &["fsck", "--strict"]).await;
    assert_eq!(rev(&directory.join("other"), "origin/main").await, last);
    // Swept and started again, nobody has touched the stores.
    service.stop_gitd().await;
    let (lines, aside) = (pool.join("objects/info/alternates"), pool.join("aside"));
    fs::rename(&lines, &aside).unwrap();
    let all = ["cat-file", "--batch-all-objects", "--batch-check"];
    let own = git(&pool, &all).await;
    fs::rename(&aside, &lines).unwrap();
    assert!(own.contains(&last.to_string()));
    for borrowed in git(&path, &["rev-list", &head.to_string()]).await.lines() {
        assert!(!own.contains(borrowed), "{borrowed} was copied");
    }
    service.start_gitd().await;
    git(&directory, &["clone", "-q", &url, "again"]).await;
    assert!(everything(&grasp) == before, "a store was written to");
    assert!(!Path::new("/tmp/grasp-hook-ran").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_left_is_moved_aside_rather_than_deleted() {
    let mut service = Service::start().await;
    service.stop_gitd().await;
    let (_, head) = stores(&service).await;
    let (adopted, untouched) = (repo(1, "left"), repo(2, "left"));
    for repo in [&adopted, &untouched] {
        let view = service.view(repo);
        thin(&service, &view, "../../../.grasp/near.git/objects\n").await;
        fs::write(view.join("refs/heads/main"), format!("{head}\n")).unwrap();
    }
    service.start_gitd().await;
    service.create(&adopted).await;
    for repo in [&adopted, &untouched] {
        let request = DeleteRequest {
            repository: Some(repo.into()),
            ..DeleteRequest::default()
        };
        service.git.clone().delete(request).await.unwrap();
        assert!(!service.view(repo).exists());
    }
    assert_eq!(children(&service.data().join(".retired")).len(), 2);
    // Another in its place has nothing of it; it has, when it is back.
    let name = "refs/heads/main";
    service.create(&adopted).await;
    let aligned = service.align(&adopted, &[(name, head)], &[]).await;
    assert_eq!(aligned.unwrap_err().code(), Code::FailedPrecondition);
    let repository = Some((&adopted).into());
    let request = DeleteRequest {
        repository,
        ..DeleteRequest::default()
    };
    service.git.clone().delete(request).await.unwrap();
    let retired = children(&service.data().join(".retired"));
    let of_adopted = format!("{}-", adopted.owner.to_hex());
    let aside = retired.iter().find(|path| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with(&of_adopted)
    });
    let incarnation = fs::read_to_string(aside.unwrap().join("grasp-incarnation")).unwrap();
    let request = RestoreRequest {
        repository: Some((&adopted).into()),
        incarnation: incarnation.trim().to_owned(),
    };
    service.git.clone().restore(request).await.unwrap();
    service.align(&adopted, &[(name, head)], &[]).await.unwrap();
    let directory = service.directory.path();
    git(
        directory,
        &["clone", "-q", "-b", "main", &service.url(&adopted), "clone"],
    )
    .await;
}

async fn refused(service: &Service, repo: &RepoId, word: &str) {
    let request = CreateRequest {
        repository: Some(repo.into()),
        ..CreateRequest::default()
    };
    let answer = service.git.clone().create(request).await.unwrap_err();
    assert_eq!(answer.code(), Code::FailedPrecondition, "{answer}");
    assert!(answer.message().contains(word), "{word}: {answer}");
    for version in ["0", "2"] {
        let protocol = format!("protocol.version={version}");
        let url = service.url(repo);
        let ask = ["-c", &protocol, "ls-remote", &url];
        let out = try_git(service.directory.path(), &ask).await;
        assert!(!out.status.success());
        assert!(said(&out).contains(word), "{word}: {}", said(&out));
        // Where it lies is nobody's business.
        let place = service.directory.path().to_str().unwrap();
        assert!(!said(&out).contains(place), "{}", said(&out));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_lead_astray_are_refused_with_words_and_others_go_on() {
    let mut service = Service::start().await;
    service.stop_gitd().await;
    let (_, head) = stores(&service).await;
    let outside = service.directory.path().join("work/.git/objects");
    let good = "../../../.grasp/near.git/objects\n";
    let [fine, out, gone, linked] = [1, 2, 3, 4].map(|n| repo(n, "astray"));
    for (repo, line) in [
        (&fine, good),
        (&out, outside.to_str().unwrap()),
        (&gone, "../../../.grasp/gone.git/objects"),
        (&linked, good),
    ] {
        let view = service.view(repo);
        thin(&service, &view, line).await;
        fs::write(view.join("refs/heads/main"), format!("{head}\n")).unwrap();
    }
    // Moved away, with a link in its place.
    let aside = service.data().join("aside");
    fs::rename(service.view(&linked), &aside).unwrap();
    std::os::unix::fs::symlink(&aside, service.view(&linked)).unwrap();
    service.start_gitd().await;
    refused(&service, &out, "outside the git data directory").await;
    refused(&service, &gone, "not there").await;
    refused(&service, &linked, "symbolic link").await;
    // Its name is that of the others.
    service.create(&fine).await;
    let directory = service.directory.path().to_owned();
    git(
        &directory,
        &["clone", "-q", "-b", "main", &service.url(&fine), "clone"],
    )
    .await;
    // Mended, it is served from the next start on.
    fs::write(service.view(&gone).join("objects/info/alternates"), good).unwrap();
    service.stop_gitd().await;
    service.start_gitd().await;
    git(&directory, &["ls-remote", &service.url(&gone)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_where_a_repository_leads_out_of_the_data_directory() {
    let mut service = Service::start().await;
    service.stop_gitd().await;
    let directory = service.directory.path().to_owned();
    let path = work(&directory, "work", 2).await;
    let head = rev(&path, "main~1").await;
    let from = format!("file://{}", path.display());
    git(&directory, &["clone", "-q", "--bare", &from, "outside"]).await;
    let outside = directory.join("outside");
    git(
        &outside,
        &["update-ref", "refs/heads/main", &head.to_string()],
    )
    .await;
    let (shared, linked, heads) = (repo(1, "out"), repo(2, "out"), repo(3, "out"));
    for repo in [&shared, &linked, &heads] {
        let view = service.view(repo);
        thin(&service, &view, "").await;
        fs::remove_dir_all(view.join("objects")).unwrap();
        let copied = ["clone", "-q", "--bare", &from, "copied"];
        git(&directory, &copied).await;
        fs::rename(directory.join("copied/objects"), view.join("objects")).unwrap();
        fs::remove_dir_all(directory.join("copied")).unwrap();
    }
    let lead = outside.to_str().unwrap();
    fs::write(service.view(&shared).join("commondir"), lead).unwrap();
    for (repo, name) in [(&linked, "packed-refs"), (&heads, "refs/heads")] {
        let place = service.view(repo).join(name);
        let _ = fs::remove_dir(&place);
        std::os::unix::fs::symlink(outside.join(name), place).unwrap();
    }
    let before = everything(&outside);
    service.start_gitd().await;
    for (repo, word) in [
        (&shared, "commondir"),
        (&linked, "packed-refs"),
        (&heads, "symbolic link"),
    ] {
        let pushed = try_git(&path, &["push", "-q", &service.url(repo), "main"]).await;
        assert!(!pushed.status.success(), "{}", said(&pushed));
        refused(&service, repo, word).await;
    }
    assert!(everything(&outside) == before, "it was written to");
}

async fn withhold(service: &Service, withheld: Vec<Withheld>) -> Result<u64, Code> {
    let batches = withheld.into_iter().map(|entry| WithholdRequest {
        withheld: vec![entry],
    });
    let batches: Vec<WithholdRequest> = batches.collect();
    let request = futures::stream::iter(batches);
    let answer = service.git.clone().withhold(request).await;
    answer
        .map(|answer| answer.into_inner().entries)
        .map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_withheld_is_not_there_for_readers_and_pushers_also_after_a_new_start() {
    let mut service = Service::start().await;
    let [a, b, c] = [repo(1, "x"), repo(1, "y"), repo(2, "x")];
    for repo in [&a, &b, &c] {
        service.create(repo).await;
    }
    let directory = service.directory.path().to_owned();
    let path = work(&directory, "work", 1).await;
    let there = async |service: &Service, repo: &RepoId| {
        let url = service.url(repo);
        let read = try_git(&directory, &["ls-remote", &url]).await;
        let push = try_git(&path, &["push", "-q", &url, "main"]).await;
        let page = format!("GET /{repo} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let page = raw(service, page.as_bytes()).await;
        let is_there = read.status.success();
        assert_eq!(is_there, push.status.success(), "{}", said(&push));
        assert_eq!(is_there, page.starts_with("HTTP/1.1 200"), "{page}");
        assert!(
            is_there || said(&read).contains("not found"),
            "{}",
            said(&read)
        );
        is_there
    };
    let owner = |n: u8| vec![n; 32];
    let named = |owner: Vec<u8>, identifier: &str| Withheld {
        owner,
        identifier: identifier.to_owned(),
    };
    for (entries, expected) in [
        (
            vec![named(owner(1), "x"), named(owner(9), "")],
            [false, true, true],
        ),
        (vec![named(Vec::new(), "x")], [false, true, false]),
        (vec![named(owner(1), "")], [false, false, true]),
    ] {
        let count = entries.len() as u64;
        assert_eq!(withhold(&service, entries).await, Ok(count));
        for (repo, expected) in [&a, &b, &c].into_iter().zip(expected) {
            assert_eq!(there(&service, repo).await, expected, "{repo}");
        }
    }
    // The relay reaches it, and no new start forgets it.
    assert_eq!(service.refs(&a).await.len(), 0);
    service.stop_gitd().await;
    service.start_gitd().await;
    assert!(!there(&service, &b).await);
    let nonsense = vec![named(Vec::new(), "")];
    assert_eq!(
        withhold(&service, nonsense).await,
        Err(Code::InvalidArgument)
    );
    assert!(!there(&service, &b).await);
    assert_eq!(withhold(&service, Vec::new()).await, Ok(0));
    assert!(there(&service, &b).await);
}
