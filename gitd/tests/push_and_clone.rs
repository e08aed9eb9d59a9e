//! Pushed and cloned with the real `git`, against a running gitd and a stand-in relay.

mod common;

use std::sync::atomic::Ordering;

use common::*;
use grasp_gitd::relay::{Push, Relay};
use grasp_proto::words::RepoId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The head of a push of one new branch.
fn command(name: &str, new: &str, capabilities: &str) -> String {
    let zero = "0".repeat(40);
    let line = format!("{zero} {new} {name}\0{capabilities}");
    format!("{:04x}{line}0000", line.len() + 4)
}

async fn ask(service: &Service, method: &str, path: &str) -> String {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    raw(service, request.as_bytes()).await
}

/// Nothing of an upload is left anywhere.
fn nothing_left(service: &Service) {
    assert!(children(&service.pool().join("quarantine")).is_empty());
    let packs = children(&service.pool().join("objects/pack"));
    assert!(packs.is_empty(), "{packs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_cloned_in_every_version() {
    let service = Service::start().await;
    let repo = repo(1, "größe -x");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 3).await;
    git(&path, &["tag", "-a", "v1", "-m", "one"]).await;
    git(&path, &["tag", "-a", "v2", "-m", "of a tag", "v1"]).await;
    git(
        &path,
        &["push", "-q", &service.url(&repo), "main", "v1", "v2"],
    )
    .await;
    let head = rev(&path, "main").await;
    for version in ["0", "1", "2"] {
        let name = format!("clone{version}");
        let protocol = format!("protocol.version={version}");
        git(
            service.directory.path(),
            &["-c", &protocol, "clone", "-q", &service.url(&repo), &name],
        )
        .await;
        let clone = service.directory.path().join(&name);
        assert_eq!(rev(&clone, "HEAD").await, head);
        assert_eq!(rev(&clone, "v2^{commit}").await, head);
        assert_eq!(git(&clone, &["branch", "--show-current"]).await, "main");
        // What is advertised is what git itself would say.
        let url = service.url(&repo);
        let ours = git(&clone, &["-c", &protocol, "ls-remote", &url]).await;
        let view = service.view(&repo).display().to_string();
        let gits = git(&clone, &["-c", &protocol, "ls-remote", &view]).await;
        assert_eq!(ours, gits);
    }
    let asked = service.relay.asked.lock().unwrap();
    assert!(!asked[0].incarnation.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_repository_is_cloned_with_its_head() {
    let service = Service::start().await;
    let repo = repo(1, "empty");
    service.create(&repo).await;
    for version in ["0", "2"] {
        let protocol = format!("protocol.version={version}");
        let name = format!("clone{version}");
        git(
            service.directory.path(),
            &["-c", &protocol, "clone", "-q", &service.url(&repo), &name],
        )
        .await;
        let clone = service.directory.path().join(name);
        let head = git(&clone, &["symbolic-ref", "HEAD"]).await;
        assert_eq!(head, "refs/heads/master");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_come_in_every_form() {
    let service = Service::start().await;
    let repo = repo(1, "forms");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 40).await;
    let url = service.url(&repo);
    // A small buffer makes git probe with a flush and then send in chunks.
    git(
        &path,
        &["-c", "http.postBuffer=100", "push", "-q", &url, "main"],
    )
    .await;
    commit(&path, "more", "more").await;
    git(
        &path,
        &["push", "-q", "-o", "ci.skip", "--atomic", &url, "main"],
    )
    .await;
    let directory = service.directory.path();
    git(directory, &["clone", "-q", "--depth=3", &url, "shallow"]).await;
    let count = git(&directory.join("shallow"), &["rev-list", "--count", "HEAD"]).await;
    assert_eq!(count, "3");
    git(&directory.join("shallow"), &["fetch", "-q", "--unshallow"]).await;
    for filter in ["blob:none", "tree:0"] {
        let name = filter.replace(':', "-");
        let filter = format!("--filter={filter}");
        git(directory, &["clone", "-q", &filter, &url, &name]).await;
        assert_eq!(
            git(&directory.join(&name), &["status", "--short"]).await,
            ""
        );
    }
    for version in ["0", "2"] {
        // Many haves make git compress its request; an old commit is fetched by its id.
        let protocol = format!("protocol.version={version}");
        let old = rev(&path, "main~5").await.to_string();
        let name = format!("one{version}");
        let one = work(directory, &name, 0).await;
        git(
            &one,
            &["-c", &protocol, "fetch", "-q", "--depth=1", &url, &old],
        )
        .await;
        assert_eq!(rev(&one, "FETCH_HEAD").await.to_string(), old);
        let diverged = work(directory, &format!("far{version}"), 60).await;
        git(&diverged, &["-c", &protocol, "fetch", "-q", &url, "main"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_move_as_they_are_pushed() {
    let service = Service::start().await;
    let repo = repo(1, "moves");
    service.create(&repo).await;
    let url = service.url(&repo);
    let path = work(service.directory.path(), "work", 2).await;
    git(&path, &["push", "-q", &url, "main", "main:refs/heads/a"]).await;
    // `a` has to go before `a/b` can be.
    git(
        &path,
        &["push", "-q", &url, ":refs/heads/a", "main:refs/heads/a/b"],
    )
    .await;
    let names = |refs: Vec<(String, _)>| refs.into_iter().map(|r| r.0).collect::<Vec<_>>();
    assert_eq!(
        names(service.refs(&repo).await),
        ["refs/heads/a/b", "refs/heads/main"]
    );
    git(
        &path,
        &["push", "-q", &url, ":refs/heads/a/b", "main:refs/heads/a"],
    )
    .await;
    assert_eq!(
        names(service.refs(&repo).await),
        ["refs/heads/a", "refs/heads/main"]
    );
    // Rewritten history; a push that only deletes has no pack.
    git(&path, &["commit", "-q", "--amend", "-m", "other"]).await;
    assert!(
        !try_git(&path, &["push", &url, "main"])
            .await
            .status
            .success()
    );
    git(&path, &["push", "-q", "-f", &url, "main"]).await;
    git(&path, &["push", "-q", &url, ":refs/heads/a"]).await;
    let refs = service.refs(&repo).await;
    assert_eq!(
        refs,
        [("refs/heads/main".to_owned(), rev(&path, "main").await)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_shown_and_quiet_is_quiet() {
    let service = Service::start().await;
    let repo = repo(1, "progress");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let text: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    commit(&path, "big", &text).await;
    commit(&path, "big", &text.replace("line 7\n", "other\n")).await;
    let url = service.url(&repo);
    let shown = said(&try_git(&path, &["push", "--progress", &url, "main"]).await);
    assert!(shown.contains("remote: Resolving deltas"), "{shown}");
    let target = "main:refs/heads/quiet";
    commit(&path, "big", &text.replace("line 9\n", "other\n")).await;
    let shown = said(&try_git(&path, &["push", "-q", &url, target]).await);
    assert!(!shown.contains("remote:"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_read_by_the_pusher() {
    let service = Service::start().await;
    let repo = repo(1, "refused");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    // More than any buffer on the way, so that the answer comes while it is being sent.
    let noise: String = (0..400_000_u32)
        .map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761)))
        .collect();
    commit(&path, "big", &noise).await;
    let url = service.url(&repo);
    let push = async |judgement| {
        service.judge(judgement);
        let output = try_git(&path, &["push", &url, "main", "main:refs/heads/b"]).await;
        assert!(!output.status.success());
        said(&output)
    };
    let shown = push(Judgement::Refuse("no state names main".into())).await;
    assert!(
        shown.contains("[remote rejected] main -> main (no state names main)"),
        "{shown}"
    );
    let shown = push(Judgement::RefuseCommit("a newer state came".into())).await;
    assert!(
        shown.contains("[remote rejected] main -> b (a newer state came)"),
        "{shown}"
    );
    assert!(service.refs(&repo).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unwanted_objects_are_thrown_away() {
    let service = Service::start().await;
    let repo = repo(1, "unwanted");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    service.judge(Judgement::Unwanted);
    git(&path, &["push", "-q", &service.url(&repo), "main"]).await;
    nothing_left(&service);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_relay_pushes_are_refused_and_clones_go_on() {
    let mut service = Service::start().await;
    let repo = repo(1, "alone");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let url = service.url(&repo);
    git(&path, &["push", "-q", &url, "main"]).await;
    service.stop_relay().await;
    commit(&path, "x", "x").await;
    let shown = said(&try_git(&path, &["push", &url, "main"]).await);
    assert!(
        shown.contains("the relay cannot be reached, try again"),
        "{shown}"
    );
    git(service.directory.path(), &["clone", "-q", &url, "clone"]).await;
    service.start_relay().await;
    git(&path, &["push", "-q", &url, "main"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_nowhere_is_refused_and_leaves_nothing() {
    let service = Service::start().await;
    let repo = repo(1, "broken");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 3).await;
    let head = rev(&path, "main").await.to_string();
    let url = format!("/{repo}/git-receive-pack");
    let whole = pack(&path, &["main"]).await;
    // The parent of what is sent was never sent.
    let half = pack(&path, &["main", "^main~1"]).await;
    let cut = whole[..whole.len() - 30].to_vec();
    let mut flipped = whole.clone();
    flipped[40] ^= 0xff;
    let mut long = whole.clone();
    long.extend_from_slice(b"junk");
    for (what, bytes) in [
        ("half", half),
        ("cut", cut),
        ("flipped", flipped),
        ("none", Vec::new()),
        ("no pack", vec![b'x'; 100]),
        ("long", long),
    ] {
        let mut body = command("refs/heads/main", &head, "report-status").into_bytes();
        body.extend_from_slice(&bytes);
        let answer = post(&service, &url, "", &body).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{what}: {answer}");
        assert!(
            answer.contains("unpack ") && !answer.contains("unpack ok"),
            "{what}: {answer}"
        );
        assert!(answer.contains("ng refs/heads/main "), "{what}: {answer}");
        nothing_left(&service);
    }
    // An object that is no commit, and one that does not come, are no heads.
    let tree = rev(&path, "main^{tree}").await.to_string();
    for tip in [tree, "1".repeat(40)] {
        let mut body = command("refs/heads/main", &tip, "report-status").into_bytes();
        body.extend_from_slice(&whole);
        let answer = post(&service, &url, "", &body).await;
        assert!(answer.contains("ng refs/heads/main object"), "{answer}");
        nothing_left(&service);
    }
}

/// A pack without objects.
const EMPTY_PACK: &[u8] = b"PACK\0\0\0\x02\0\0\0\0\
    \x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e";

#[tokio::test(flavor = "multi_thread")]
async fn no_placeholder_leans_on_anothers_objects() {
    let service = Service::start().await;
    let repo = repo(1, "leaning");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let tip = rev(&path, "main").await.to_string();
    let [a, b] = ["aa", "bb"].map(|byte| format!("refs/nostr/{}", byte.repeat(32)));
    let spec = format!("main:{a}");
    git(&path, &["push", "-q", &service.url(&repo), &spec]).await;
    let url = format!("/{repo}/git-receive-pack");
    for (name, outcome) in [(&b, "ng"), (&a, "ok")] {
        let mut body = command(name, &tip, "report-status").into_bytes();
        body.extend_from_slice(EMPTY_PACK);
        let answer = post(&service, &url, "", &body).await;
        assert!(answer.contains(&format!("{outcome} {name}")), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_events_has_a_largest_size_together() {
    let service = Service::with(&[("NGIT_GIT_MAX_STAGED_PACK_BYTES", "2000")]).await;
    let repo = repo(1, "together");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let mut failed = 0;
    for n in 0..20 {
        let spec = format!("main:refs/nostr/{}", format!("{n:02x}").repeat(32));
        commit(&path, "x", &n.to_string()).await;
        let shown = try_git(&path, &["push", &service.url(&repo), &spec]).await;
        failed += u32::from(!shown.status.success());
    }
    assert!((1..20).contains(&failed), "{failed}");
    let staged = children(&service.view(&repo).join("objects/pack"));
    let packs = staged
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "pack"));
    let bytes: u64 = packs.map(|pack| pack.metadata().unwrap().len()).sum();
    assert!(bytes <= 2000, "{bytes}");
    // What is signed for needs no such room.
    git(&path, &["push", "-q", &service.url(&repo), "main"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_has_a_largest_size() {
    let service = Service::with(&[("NGIT_GIT_MAX_PACK_BYTES", "1000")]).await;
    let repo = repo(1, "large");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 20).await;
    let shown = said(&try_git(&path, &["push", &service.url(&repo), "main"]).await);
    assert!(shown.contains("maximum allowed size"), "{shown}");
    nothing_left(&service);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_get_clear_answers() {
    let service = Service::start().await;
    let repo = repo(1, "wrong");
    service.create(&repo).await;
    let push = format!("/{repo}/git-receive-pack");
    let fetch = format!("/{repo}/git-upload-pack");
    let one = "1".repeat(40);
    let two = {
        let first = command("refs/heads/a", &one, "report-status atomic");
        let second = command("refs/heads/a..b", &one, "");
        format!("{}{second}", &first[..first.len() - 4])
    };
    for (path, body, expected) in [
        (&push, "0000".to_owned(), "HTTP/1.1 200"),
        (&push, "zzzz".to_owned(), "ERR"),
        (&push, command("refs/heads/a", "xyz", ""), "ERR"),
        (
            &push,
            command("refs/heads/a", &one, "object-format=sha256"),
            "ERR",
        ),
        (
            &push,
            two,
            "ng refs/heads/a this push is atomic, and refs/heads/a..b is refused",
        ),
        (&fetch, "zzzz".to_owned(), "ERR"),
        (&fetch, "0014command=nonsense\n0000".to_owned(), "ERR"),
    ] {
        let answer = post(
            &service,
            path,
            "Git-Protocol: version=2\r\n",
            body.as_bytes(),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(expected), "{body}: {answer}");
    }
    let answer = post(&service, &push, "Content-Encoding: br\r\n", b"0000").await;
    assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
    let answer = post(&service, &push, "Content-Encoding: gzip\r\n", b"0000").await;
    assert!(answer.contains("ERR"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_headers() {
    let service = Service::start().await;
    let repo = repo(1, "page");
    service.create(&repo).await;
    let other = common::repo(2, "page");
    for (method, path, status) in [
        ("GET", format!("/{repo}"), "200"),
        ("HEAD", format!("/{repo}"), "200"),
        (
            "GET",
            format!("/{repo}/info/refs?service=git-upload-pack"),
            "200",
        ),
        (
            "HEAD",
            format!("/{repo}/info/refs?service=git-upload-pack"),
            "200",
        ),
        ("OPTIONS", format!("/{repo}/git-upload-pack"), "204"),
        ("GET", format!("/{repo}/info/refs"), "404"),
        ("GET", format!("/{repo}/HEAD"), "404"),
        ("GET", format!("/{repo}/objects/info/packs"), "404"),
        ("GET", format!("/{other}"), "404"),
        (
            "GET",
            format!("/{other}/info/refs?service=git-receive-pack"),
            "404",
        ),
        ("POST", format!("/{other}/git-receive-pack"), "404"),
        ("POST", format!("/{other}/git-upload-pack"), "404"),
        ("GET", "/a&b".to_owned(), "404"),
        ("GET", "/healthz".to_owned(), "200"),
        // That is the relay's to ask.
        ("GET", "/metrics".to_owned(), "404"),
    ] {
        let answer = ask(&service, method, &path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{method} {path}: {answer}"
        );
        for header in [
            "access-control-allow-origin: *",
            "access-control-allow-methods: GET, POST",
            "access-control-allow-headers: Content-Type",
        ] {
            assert!(answer.contains(header), "{method} {path}: {answer}");
        }
        if method == "HEAD" {
            assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        }
    }
    let page = ask(&service, "GET", &format!("/{repo}")).await;
    assert!(
        page.contains(&format!("git clone {}", service.url(&repo))),
        "{page}"
    );
    assert!(page.contains("https://gitworkshop.dev/npub1"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_owners_have_is_not_sent_again() {
    let service = Service::start().await;
    let (mine, theirs) = (repo(1, "shared"), repo(2, "shared"));
    service.create(&mine).await;
    service.create(&theirs).await;
    let path = work(service.directory.path(), "work", 5).await;
    git(&path, &["push", "-q", &service.url(&theirs), "main"]).await;
    let shown = said(&try_git(&path, &["push", "--progress", &service.url(&mine), "main"]).await);
    // Nothing was packed: the pool has it all.
    assert!(!shown.contains("Writing objects"), "{shown}");
    assert_eq!(service.refs(&mine).await, service.refs(&theirs).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_refs_at_once() {
    let service = Service::start().await;
    let repo = repo(1, "many");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let head = rev(&path, "main").await;
    for n in 0..600 {
        std::fs::create_dir_all(path.join(".git/refs/heads/x")).unwrap();
        std::fs::write(
            path.join(format!(".git/refs/heads/x/{n}")),
            format!("{head}\n"),
        )
        .unwrap();
    }
    let url = service.url(&repo);
    git(&path, &["push", "-q", &url, "refs/heads/*:refs/heads/*"]).await;
    assert_eq!(service.refs(&repo).await.len(), 601);
    let packed = std::fs::read_to_string(service.view(&repo).join("packed-refs")).unwrap();
    assert_eq!(
        packed.lines().filter(|line| line.contains("refs/")).count(),
        601
    );
    let ours = git(&path, &["ls-remote", &url]).await;
    let view = service.view(&repo).display().to_string();
    assert_eq!(ours, git(&path, &["ls-remote", &view]).await);
    // Packed and loose, tags and tags of tags, one ref in both places: as git sees it.
    git(&path, &["tag", "-a", "v1", "-m", "one"]).await;
    git(&path, &["tag", "light"]).await;
    git(&path, &["push", "-q", &url, "v1", "light"]).await;
    let pack = ["pack-refs", "--all"];
    git(&service.view(&repo), &pack).await;
    git(&path, &["tag", "-a", "v2", "-m", "two", "v1"]).await;
    commit(&path, "more", "more").await;
    git(&path, &["push", "-q", &url, "v2", "main"]).await;
    for version in ["protocol.version=0", "protocol.version=2"] {
        let ours = git(&path, &["-c", version, "ls-remote", &url]).await;
        assert!(ours.contains("refs/tags/v1^{}") && ours.contains("refs/tags/v2^{}"));
        assert_eq!(ours, git(&path, &["-c", version, "ls-remote", &view]).await);
    }
    // What older tools packed does not say which tags it has peeled.
    let file = service.view(&repo).join("packed-refs");
    let packed = std::fs::read_to_string(&file).unwrap();
    let bare = packed.lines().filter(|line| !line.starts_with(['#', '^']));
    let bare: String = bare.map(|line| format!("{line}\n")).collect();
    std::fs::write(&file, bare).unwrap();
    let ours = git(&path, &["ls-remote", &url]).await;
    assert!(ours.contains("refs/tags/v1^{}"), "{ours}");
    git(&path, &["push", "-q", &url, ":v1", ":v2", ":light"]).await;
    // Deletions by the hundred, out of `packed-refs`.
    git(&path, &["push", "-q", "--prune", &url, "main:main"]).await;
    git(&path, &["checkout", "-q", "--detach"]).await;
    let spec: Vec<String> = (0..600).map(|n| format!(":refs/heads/x/{n}")).collect();
    let mut args = vec!["push", "-q", &url];
    args.extend(spec.iter().map(String::as_str));
    git(&path, &args).await;
    assert_eq!(service.refs(&repo).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_first_is_told_to_continue() {
    let service = Service::start().await;
    let repo = repo(1, "expect");
    service.create(&repo).await;
    let address = service.base.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /{repo}/git-receive-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/x-git-receive-pack-request\r\n\
         Content-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 25];
    stream.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"0000").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_keeps_nobody_waiting() {
    let service = Service::start().await;
    let repo = repo(1, "silence");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let url = service.url(&repo);
    git(&path, &["push", "-q", &url, "main"]).await;
    let address = service.base.trim_start_matches("http://");
    let mut silent = Vec::new();
    for _ in 0..70 {
        let head = format!(
            "POST /{repo}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\
             Expect: 100-continue\r\n\
             Content-Type: Application/X-Git-Upload-Pack-Request\r\n\r\n0011command=fetch"
        );
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // 100 Continue: the request is being read.
        stream.read_u8().await.unwrap();
        silent.push(stream);
    }
    git(service.directory.path(), &["clone", "-q", &url, "clone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_side_is_answered() {
    let service = Service::start().await;
    let repo = repo(1, "half-closed");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let head = rev(&path, "main").await;
    git(&path, &["push", "-q", &service.url(&repo), "main"]).await;
    let body = format!("0032want {head}\n00000009done\n");
    let request = format!(
        "POST /{repo}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\
         Connection: close\r\nContent-Type: application/x-git-upload-pack-request\r\n\r\n{body}",
        body.len()
    );
    let address = service.base.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"0\r\n\r\n"));
}

/// Processes that work in a directory.
fn at_work_in(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let processes = children(std::path::Path::new("/proc"));
    let there = |process: &std::path::PathBuf| {
        std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == directory)
    };
    processes.into_iter().filter(there).collect()
}

/// A large clone that has begun, and where git works for it.
async fn half_a_clone(
    service: &Service,
    repo: &RepoId,
) -> (tokio::net::TcpStream, std::path::PathBuf) {
    service.create(repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    let mut state = 1_u64;
    let noise: String = (0..1_500_000)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            format!("{:x}", state >> 40)
        })
        .collect();
    let head = commit(&path, "big", &noise).await;
    git(&path, &["push", "-q", &service.url(repo), "main"]).await;
    let body = format!("0032want {head}\n00000009done\n");
    let request = format!(
        "POST /{repo}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\
         Content-Type: application/x-git-upload-pack-request\r\n\r\n{body}",
        body.len()
    );
    let address = service.base.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut some = [0; 4096];
    stream.read_exact(&mut some).await.unwrap();
    (stream, std::fs::canonicalize(service.view(repo)).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_git_did_not_finish_breaks_off() {
    let service = Service::start().await;
    let (mut stream, view) = half_a_clone(&service, &repo(1, "unfinished")).await;
    for process in at_work_in(&view) {
        let id = process.file_name().unwrap().to_str().unwrap();
        // One may be gone already, as the other was.
        try_git(&view, &["-c", &format!("alias.end=!kill -9 {id}"), "end"]).await;
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.ends_with(b"0\r\n\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn git_goes_when_its_client_does() {
    let service = Service::start().await;
    let (stream, view) = half_a_clone(&service, &repo(1, "gone")).await;
    assert!(!at_work_in(&view).is_empty());
    drop(stream);
    while !at_work_in(&view).is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_broken_off_leaves_nothing() {
    let service = Service::start().await;
    let repo = repo(1, "broken off");
    service.create(&repo).await;
    let body = command("refs/heads/main", &"1".repeat(40), "report-status");
    let request = format!(
        "POST /{repo}/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\
         Content-Type: application/x-git-receive-pack-request\r\n\r\n\
         {body}PACK\0\0\0\x02\0\0\0\x05"
    );
    let address = service.base.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let quarantine = service.pool().join("quarantine");
    while children(&quarantine).is_empty() {
        tokio::task::yield_now().await;
    }
    drop(stream);
    while !children(&quarantine).is_empty() {
        tokio::task::yield_now().await;
    }
    let pool = std::fs::canonicalize(service.pool()).unwrap();
    while !at_work_in(&pool).is_empty() {
        tokio::task::yield_now().await;
    }
    nothing_left(&service);
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_race_for_one_branch_and_one_wins_each_time() {
    let service = std::sync::Arc::new(Service::start().await);
    let repo = repo(1, "race");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    git(&path, &["push", "-q", &service.url(&repo), "main"]).await;
    let mut tasks = Vec::new();
    for n in 0..8 {
        let (service, repo, from) = (std::sync::Arc::clone(&service), repo.clone(), path.clone());
        tasks.push(tokio::spawn(async move {
            let directory = service.directory.path();
            let name = format!("clone{n}");
            git(
                directory,
                &["clone", "-q", &from.display().to_string(), &name],
            )
            .await;
            let clone = directory.join(&name);
            commit(&clone, &format!("f{n}"), "x").await;
            git(
                &clone,
                &["push", "-q", "-f", &service.url(&repo), "HEAD:main"],
            )
            .await;
            rev(&clone, "HEAD").await
        }));
    }
    let mut heads = Vec::new();
    for task in tasks {
        heads.push(task.await.unwrap());
    }
    let refs = service.refs(&repo).await;
    assert!(heads.contains(&refs[0].1));
    let view = service.view(&repo);
    git(&view, &["fsck", "--strict"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_relay_is_told_of_a_push_that_runs() {
    let mut service = Service::start().await;
    let repo = repo(1, "told");
    let push = Push {
        address: (&repo).into(),
        incarnation: service.create(&repo).await,
        commands: Vec::new(),
        atomic: false,
    };
    let relay = service.grpc_relay();
    let asked = || service.relay.asked.lock().unwrap().len();
    assert!(relay.keep_alive("granted", &push).await);
    assert_eq!(asked(), 0);
    service.relay.forgot.store(true, Ordering::SeqCst);
    assert!(relay.keep_alive("granted", &push).await);
    let named = service.relay.asked.lock().unwrap().pop().unwrap();
    assert_eq!(named.push_id, "granted");
    assert_eq!(named.incarnation, push.incarnation);
    assert!(relay.keep_alive("granted", &push).await);
    assert_eq!(asked(), 0);
    // One that is not there is told as soon as it is.
    service.stop_relay().await;
    assert!(!relay.keep_alive("granted", &push).await);
}
