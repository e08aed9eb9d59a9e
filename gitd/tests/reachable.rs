//! Readers get what the refs of a view reach, and nothing else of its pool.

mod common;

use common::*;
use grasp_proto::words::RepoId;

#[tokio::test(flavor = "multi_thread")]
async fn a_view_shows_nothing_of_another_owners() {
    let service = Service::start().await;
    let (mine, theirs) = (repo(1, "shared"), repo(2, "shared"));
    service.create(&mine).await;
    service.create(&theirs).await;
    let directory = service.directory.path();
    let path = work(directory, "work", 3).await;
    git(&path, &["push", "-q", &service.url(&mine), "main"]).await;
    let other = work(directory, "other", 0).await;
    for n in 0..3 {
        commit(&other, &format!("secret{n}"), &format!("hidden {n}\n")).await;
    }
    git(&other, &["tag", "-a", "v1", "-m", "one", "main~1"]).await;
    let url = service.url(&theirs);
    git(&other, &["push", "-q", &url, "main", "v1"]).await;
    // What was pushed away is nobody's.
    let gone = commit(&other, "gone", "gone").await.to_string();
    git(&other, &["push", "-q", &url, "main"]).await;
    git(&other, &["push", "-q", "-f", &url, "main~1:main"]).await;

    let known = rev(&path, "main").await.to_string();
    for version in [0, 1, 2] {
        for name in ["main~1", "main~2", "main~1^{tree}", "main~1:secret0", "v1"] {
            let oid = rev(&other, name).await.to_string();
            for wants in [vec![oid.as_str()], vec![known.as_str(), oid.as_str()]] {
                let answer = want(&service, &mine, version, &wants).await;
                let refusal = format!("ERR upload-pack: not our ref {oid}");
                assert!(answer.contains(&refusal), "{version} {name}: {answer}");
                assert!(!answer.contains("PACK"), "{version} {name}: {answer}");
                if wants.len() == 1 {
                    let answer = want(&service, &theirs, version, &wants).await;
                    assert!(answer.contains("PACK"), "{version} {name}: {answer}");
                }
            }
        }
        for repo in [&mine, &theirs] {
            for oid in [&gone, &"1".repeat(40)] {
                let answer = want(&service, repo, version, &[oid]).await;
                assert!(answer.contains("not our ref"), "{version} {oid}: {answer}");
            }
        }
    }
    // Ways to write a want that git would read as well.
    let oid = rev(&other, "main~1").await.to_string();
    for written in [oid.to_uppercase(), format!("{oid}x"), format!("{oid} x")] {
        let answer = want(&service, &mine, 2, &[&written]).await;
        assert!(answer.contains("not our ref"), "{written}: {answer}");
    }
    for version in ["0", "1", "2"] {
        let protocol = format!("protocol.version={version}");
        let url = service.url(&mine);
        let fetched = try_git(&path, &["-c", &protocol, "fetch", &url, &oid]).await;
        assert!(said(&fetched).contains("not our ref"), "{}", said(&fetched));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_refs_reach_is_given_by_its_id() {
    let service = Service::start().await;
    let repo = repo(1, "reached");
    service.create(&repo).await;
    let directory = service.directory.path();
    let path = work(directory, "work", 12).await;
    git(&path, &["tag", "-a", "v1", "-m", "one", "main~9"]).await;
    git(&path, &["tag", "-a", "v2", "-m", "of a tag", "v1"]).await;
    let url = service.url(&repo);
    git(&path, &["push", "-q", &url, "main", "v2"]).await;
    for packed in [false, true] {
        if packed {
            git(&service.view(&repo), &["pack-refs", "--all"]).await;
        }
        for version in [0, 1, 2] {
            for name in ["main~5", "main~3^{tree}", "main:file0", "v1", "v2", "v1^{}"] {
                let oid = rev(&path, name).await.to_string();
                let answer = want(&service, &repo, version, &[&oid]).await;
                assert!(answer.contains("PACK"), "{version} {name}: {answer}");
            }
        }
    }
    for version in ["0", "2"] {
        let protocol = format!("protocol.version={version}");
        for filter in ["blob:none", "tree:0"] {
            let name = format!("{}{version}", filter.replace(':', "-"));
            let filter = format!("--filter={filter}");
            let clone = ["-c", &protocol, "clone", "-q", "-n", &filter, &url, &name];
            git(directory, &clone).await;
            let clone = directory.join(&name);
            git(&clone, &["config", "protocol.version", version]).await;
            for old in ["main", "main~7"] {
                git(&clone, &["checkout", "-q", &format!("origin/{old}")]).await;
            }
            git(&clone, &["log", "-p", "--all"]).await;
        }
        let name = format!("shallow{version}");
        let clone = ["-c", &protocol, "clone", "-q", "--depth=2", &url, &name];
        git(directory, &clone).await;
        let shallow = directory.join(&name);
        let old = rev(&path, "main~6").await.to_string();
        for fetch in [
            vec!["--deepen=3"],
            vec!["--depth=1", &url, &old],
            vec!["--unshallow"],
        ] {
            let mut args = vec!["-c", &protocol, "fetch", "-q"];
            args.extend(fetch);
            git(&shallow, &args).await;
        }
        git(&shallow, &["fsck"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_head_is_a_tip() {
    let mut service = Service::start().await;
    let repo = repo(1, "detached");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 4).await;
    let url = service.url(&repo);
    git(
        &path,
        &["push", "-q", &url, "main", "main~2:refs/heads/old"],
    )
    .await;
    service.stop_gitd().await;
    let view = service.view(&repo);
    let head = rev(&path, "main").await.to_string();
    git(&view, &["update-ref", "--no-deref", "HEAD", &head]).await;
    git(&view, &["update-ref", "-d", "refs/heads/main"]).await;
    service.start_gitd().await;
    for name in ["main", "main~1", "main~1:file0", "main~1^{tree}"] {
        let oid = rev(&path, name).await.to_string();
        let answer = want(&service, &repo, 2, &[&oid]).await;
        assert!(answer.contains("PACK"), "{name}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_looks_at_objects() {
    let service = Service::start().await;
    let repo = repo(1, "looks");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let url = service.url(&repo);
    git(&path, &["push", "-q", &url, "main"]).await;
    let oid = rev(&path, "main").await;
    let headers = "Git-Protocol: version=2\r\n";
    let post_to = format!("/{repo}/git-upload-pack");
    let info = [line("command=object-info"), line(&format!("oid {oid}"))];
    let info = format!("{}0001{}{}0000", info[0], line("size"), info[1]);
    let behind = format!("{}{info}", line("agent=x"));
    for body in [&info, &behind] {
        let answer = post(&service, &post_to, headers, body.as_bytes()).await;
        assert!(
            answer.contains("ERR this command is not known here"),
            "{answer}"
        );
    }
    let filter = format!("--filter=sparse:oid={}", rev(&path, "main:file0").await);
    let cloned = try_git(
        service.directory.path(),
        &["clone", &filter, &url, "sparse"],
    )
    .await;
    assert!(
        said(&cloned).contains("this filter is not known here"),
        "{}",
        said(&cloned)
    );
}

/// Asks for `tip` as a client that says where its history ends, and how much more it would have.
async fn deepen(
    service: &Service,
    repo: &RepoId,
    version: u8,
    tip: &str,
    more: &[String],
) -> String {
    let mut body = String::new();
    let (mut capabilities, mut more) = (" side-band-64k".to_owned(), more.to_vec());
    if version == 2 {
        body.push_str(&line("command=fetch"));
        body.push_str("0001");
        capabilities.clear();
    } else if more.iter().any(|line| line == "deepen-relative") {
        // A capability there.
        more.retain(|line| line != "deepen-relative");
        capabilities.push_str(" deepen-relative");
    }
    body.push_str(&line(&format!("want {tip}{capabilities}\n")));
    for part in more {
        body.push_str(&line(&format!("{part}\n")));
    }
    if version != 2 {
        body.push_str("0000");
    }
    body.push_str(&line("done\n"));
    if version == 2 {
        body.push_str("0000");
    }
    let headers = format!("Git-Protocol: version={version}\r\n");
    let path = format!("/{repo}/git-upload-pack");
    post(service, &path, &headers, body.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn to_deepen_shows_nothing_that_the_refs_do_not_reach() {
    let service = Service::start().await;
    let (mine, theirs) = (repo(1, "deep"), repo(2, "deep"));
    service.create(&mine).await;
    service.create(&theirs).await;
    let directory = service.directory.path();
    let path = work(directory, "work", 4).await;
    let url = service.url(&mine);
    git(&path, &["push", "-q", &url, "main"]).await;
    let other = work(directory, "other", 0).await;
    for n in 0..3 {
        commit(&other, &format!("secret{n}"), &format!("hidden {n}\n")).await;
    }
    git(&other, &["push", "-q", &service.url(&theirs), "main"]).await;

    let known = rev(&path, "main").await.to_string();
    let older = rev(&path, "main~2").await.to_string();
    let hidden = rev(&other, "main~1").await.to_string();
    let blob = rev(&other, "main~1:secret0").await.to_string();
    for version in [0, 1, 2] {
        // Git would read these as numbers, too.
        for depth in ["0x7fffffff", "017777777777", "1k", "-1"] {
            let deepens = [format!("deepen {depth}"), format!("shallow {hidden}")];
            let answer = deepen(&service, &mine, version, &known, &deepens).await;
            assert!(answer.contains("ERR unexpected line"), "{depth}: {answer}");
        }
        for depth in ["2147483647", "6442450943"] {
            let deepens = format!("deepen {depth}");
            let ask = async |shallow: &str, relative: bool| {
                let mut more = vec![format!("shallow {shallow}"), deepens.clone()];
                more.extend(relative.then(|| "deepen-relative".to_owned()));
                deepen(&service, &mine, version, &known, &more).await
            };
            for relative in [false, true] {
                for written in [&hidden, &hidden.to_uppercase(), &format!("{hidden} x")] {
                    let answer = ask(written, relative).await;
                    assert!(answer.contains("PACK"), "{version} {depth}: {answer}");
                    assert!(!answer.contains("unshallow"), "{version} {depth}: {answer}");
                }
            }
            let answer = ask(&older, false).await;
            let unshallow = format!("unshallow {older}");
            assert!(answer.contains(&unshallow), "{version} {depth}: {answer}");
            let answer = ask(&"1".repeat(40), false).await;
            assert!(answer.contains("PACK"), "{version} {depth}: {answer}");
            // Where it stands makes no difference, and of what else there is nothing is said.
            let swapped = [deepens.clone(), format!("shallow {hidden}")];
            let answer = deepen(&service, &mine, version, &known, &swapped).await;
            assert!(!answer.contains("unshallow"), "{version} {depth}: {answer}");
            let answer = ask(&blob, false).await;
            assert!(answer.contains("PACK"), "{version} {depth}: {answer}");
        }
        for since in [
            "deepen-since 1",
            "deepen-not nothing",
            "deepen 1",
            "deepen 2",
        ] {
            let more = [format!("shallow {hidden}"), since.to_owned()];
            let answer = deepen(&service, &mine, version, &known, &more).await;
            assert!(!answer.contains(&hidden), "{version} {since}: {answer}");
        }
    }

    // A client that has the hidden commit, and would have what is behind it.
    for version in ["0", "2"] {
        let protocol = format!("protocol.version={version}");
        let name = format!("client{version}");
        git(directory, &["clone", "-q", &url, &name]).await;
        let client = directory.join(&name);
        let from = format!("file://{}", other.display());
        git(&client, &["fetch", "-q", "--depth=1", &from, "main"]).await;
        let deepens = ["-c", &protocol, "fetch", "-q", "--depth=2147483647", &url];
        git(&client, &deepens).await;
        let behind = try_git(&client, &["cat-file", "-e", &hidden]).await;
        assert!(!behind.status.success(), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shallow_clone_goes_on_when_its_history_was_pushed_away() {
    let service = Service::start().await;
    let repo = repo(1, "rewritten");
    service.create(&repo).await;
    let directory = service.directory.path();
    let path = work(directory, "work", 8).await;
    let url = service.url(&repo);
    git(&path, &["push", "-q", &url, "main"]).await;
    let fetches: [&[&str]; 5] = [
        &["--depth=1"],
        &["--deepen=1"],
        &["--unshallow"],
        &["--shallow-since=2001-01-01"],
        &[],
    ];
    let mut clients = Vec::new();
    for version in ["0", "2"] {
        for (n, fetch) in fetches.iter().enumerate() {
            for ahead in [false, true] {
                let name = format!("client{version}{n}{ahead}");
                git(directory, &["clone", "-q", "--depth=2", &url, &name]).await;
                let client = directory.join(&name);
                git(&client, &["config", "protocol.version", version]).await;
                if ahead {
                    commit(&client, "own", "own").await;
                    git(&client, &["push", "-q", &url, "HEAD:refs/heads/own"]).await;
                    git(&client, &["push", "-q", &url, ":refs/heads/own"]).await;
                }
                clients.push((client, *fetch));
            }
        }
    }
    // What is new leans on what those clients lack.
    git(&path, &["reset", "-q", "--hard", "main~4"]).await;
    commit(&path, "anew", "anew").await;
    git(&path, &["push", "-q", "-f", &url, "main"]).await;
    let tip = rev(&path, "main").await;
    for (client, fetch) in clients {
        let mut args = vec!["fetch", "-q"];
        args.extend(fetch);
        git(&client, &args).await;
        assert_eq!(rev(&client, "origin/main").await, tip);
        git(&client, &["fsck"]).await;
        let depth = git(&client, &["rev-list", "--count", "origin/main"]).await;
        match *fetch {
            ["--depth=1"] => assert_eq!(depth, "1", "{}", client.display()),
            ["--unshallow"] => assert_eq!(depth, "5", "{}", client.display()),
            _ => {}
        }
    }
}
