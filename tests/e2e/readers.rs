//! Everything a git client may read, in every version of the protocol.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Client, Keys, Project, Repo, Service,
    events::announcement,
    git::{self, pkt},
    web::{self, Body, Upload},
};

/// A project with three commits, a branch and an annotated tag.
async fn prepared(identifier: &str) -> (Service, Project) {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, identifier).await;
    project.repo.commit_file("directory", b"not one yet").await;
    project.repo.git(&["branch", "other"]).await.good();
    project.repo.commit().await;
    project
        .repo
        .git(&["tag", "-a", "-m", "tag", "v1"])
        .await
        .good();
    project
        .update(&service, &mut client, &["main", "other", "v1"])
        .await;
    (service, project)
}

#[tokio::test]
async fn clones_work_in_every_version_of_the_protocol() {
    let (service, project) = prepared("versions").await;
    for version in ["0", "1", "2"] {
        let setting = format!("protocol.version={version}");
        let (clone, out) = Repo::clone(&project.url(&service), &["-c", &setting, "clone"]).await;
        out.good();
        clone.git(&["fsck", "--strict"]).await.good();
        assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
        assert_eq!(
            clone.oid("origin/other").await,
            project.repo.oid("other").await
        );
        assert_eq!(clone.oid("v1").await, project.repo.oid("v1").await);
        let listed = clone
            .say(&["-c", &setting, "ls-remote", "--symref", "origin", "HEAD"])
            .await;
        assert!(
            listed.starts_with("ref: refs/heads/main"),
            "version {version}: {listed}"
        );
    }
}

#[tokio::test]
async fn fetches_bring_what_is_new_in_every_version() {
    let (service, project) = prepared("fetch").await;
    let mut client = Client::connect(&service).await;
    for version in ["0", "1", "2"] {
        let setting = format!("protocol.version={version}");
        let (clone, out) = Repo::clone(&project.url(&service), &["-c", &setting, "clone"]).await;
        out.good();
        let new = project.repo.commit().await;
        project.update(&service, &mut client, &["main"]).await;
        clone.git(&["-c", &setting, "fetch", "-q"]).await.good();
        assert_eq!(clone.oid("origin/main").await, new);
    }
}

#[tokio::test]
async fn a_shallow_clone_can_be_deepened() {
    let (service, project) = prepared("shallow").await;
    for version in ["0", "2"] {
        let setting = format!("protocol.version={version}");
        let arguments = ["-c", &setting, "clone", "--depth", "1"];
        let (clone, out) = Repo::clone(&project.url(&service), &arguments).await;
        out.good();
        assert_eq!(clone.say(&["rev-list", "--count", "HEAD"]).await, "1");
        clone
            .git(&["-c", &setting, "fetch", "-q", "--unshallow"])
            .await
            .good();
        assert_eq!(clone.say(&["rev-list", "--count", "HEAD"]).await, "3");
    }
}

#[tokio::test]
async fn partial_clones_leave_objects_out_and_fetch_them_later() {
    let (service, project) = prepared("partial").await;
    for version in ["0", "2"] {
        for filter in ["blob:none", "tree:0"] {
            let setting = format!("protocol.version={version}");
            let filter = format!("--filter={filter}");
            let arguments = ["-c", &setting, "clone", "--no-checkout", &filter];
            let (clone, out) = Repo::clone(&project.url(&service), &arguments).await;
            out.good();
            let missing = ["rev-list", "--objects", "--all", "--missing=print"];
            let listed = clone.say(&missing).await;
            assert!(
                listed.lines().any(|line| line.starts_with('?')),
                "{version} {filter}"
            );
            clone
                .git(&["-c", &setting, "checkout", "-q", "main"])
                .await
                .good();
            assert!(clone.path().join("file").is_file());
        }
    }
}

#[tokio::test]
async fn any_reachable_commit_can_be_fetched_by_its_id() {
    let (service, project) = prepared("by-id").await;
    let middle = project.repo.oid("main~1").await;
    let tip = project.repo.oid("main").await;
    for version in ["0", "2"] {
        for wanted in [&tip, &middle] {
            let empty = Repo::empty().await;
            let setting = format!("protocol.version={version}");
            let url = project.url(&service);
            empty
                .git(&["-c", &setting, "fetch", "-q", &url, wanted])
                .await
                .good();
            assert_eq!(&empty.oid("FETCH_HEAD").await, wanted);
        }
    }
}

#[tokio::test]
async fn the_promised_capabilities_are_told() {
    let (service, project) = prepared("capabilities").await;
    let path = Service::repository_path(&project.owner, "capabilities");
    let path = format!("{path}/info/refs?service=git-upload-pack");
    let answer = service.get(&path).await.unwrap();
    assert_eq!(
        answer.header("content-type"),
        "application/x-git-upload-pack-advertisement"
    );
    assert!(answer.header("cache-control").contains("no-cache"));
    let lines = git::lines(&answer.body);
    assert_eq!(lines[0], "# service=git-upload-pack");
    let first = &lines[2];
    for wanted in [
        "allow-tip-sha1-in-want",
        "allow-reachable-sha1-in-want",
        "filter",
        "shallow",
        "side-band-64k",
        "symref=HEAD:refs/heads/main",
    ] {
        assert!(
            first.split([' ', '\0']).any(|word| word == wanted),
            "{wanted}: {first}"
        );
    }
}

#[tokio::test]
async fn an_empty_repository_can_be_cloned_in_every_version() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "empty").await;
    for version in ["0", "1", "2"] {
        let setting = format!("protocol.version={version}");
        let (_, out) = Repo::clone(&project.url(&service), &["-c", &setting, "clone"]).await;
        let out = out.good();
        assert!(out.stderr.contains("empty repository"), "{}", out.stderr);
    }
}

fn ls_refs() -> Vec<u8> {
    let mut body = pkt("command=ls-refs\n");
    body.extend(pkt("object-format=sha1"));
    body.extend(b"0001");
    body.extend(pkt("ref-prefix refs/heads/\n"));
    body.extend(b"0000");
    body
}

const V2: [(&str, &str); 2] = [
    ("Git-Protocol", "version=2"),
    ("Content-Type", "application/x-git-upload-pack-request"),
];

fn expected(project: &Project, refs: &[(String, String)]) -> Vec<String> {
    assert!(!project.identifier.is_empty());
    let heads = refs
        .iter()
        .filter(|(name, _)| name.starts_with("refs/heads/"));
    let mut lines: Vec<String> = heads.map(|(name, oid)| format!("{oid} {name}")).collect();
    lines.push(String::new());
    lines
}

#[tokio::test]
async fn a_gzipped_request_is_read() {
    let (service, project) = prepared("gzip").await;
    let path = Service::repository_path(&project.owner, "gzip");
    let path = format!("{path}/git-upload-pack");
    let refs = project.repo.refs().await;
    for encoding in ["gzip", "x-gzip"] {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&ls_refs()).unwrap();
        let mut headers = V2.to_vec();
        headers.push(("Content-Encoding", encoding));
        let body = web::full(encoder.finish().unwrap());
        let request = web::with_body("POST", service.port, &path, &headers, body);
        let answer = service.fetch(request).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(git::lines(&answer.body), expected(&project, &refs));
    }
}

/// A request for a pack, gzipped, with a filter.
async fn filtered(service: &Service, project: &Project, version: &str, filter: &str) -> Vec<u8> {
    let tip = project.repo.oid("main").await;
    let pkt = |line: &str| String::from_utf8(pkt(line)).unwrap();
    let filter = pkt(&format!("filter {filter}\n"));
    let request = match version {
        "2" => format!(
            "{}0001{filter}{}{}0000",
            pkt("command=fetch"),
            pkt(&format!("want {tip}\n")),
            pkt("done\n")
        ),
        _ => format!(
            "{}{filter}0000{}",
            pkt(&format!("want {tip} filter\n")),
            pkt("done\n")
        ),
    };
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(request.as_bytes()).unwrap();
    let protocol = format!("version={version}");
    let headers = [
        ("Content-Encoding", "gzip"),
        ("Git-Protocol", protocol.as_str()),
        ("Content-Type", "application/x-git-upload-pack-request"),
    ];
    let path = Service::repository_path(&project.owner, &project.identifier);
    let path = format!("{path}/git-upload-pack");
    let body = web::full(encoder.finish().unwrap());
    let request = web::with_body("POST", service.port, &path, &headers, body);
    let answer = service.fetch(request).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.body.to_vec()
}

#[tokio::test]
async fn filters_that_no_client_has_reach_no_process() {
    let (service, project) = prepared("filters").await;
    let nested = format!("{}blob:none", "combine:".repeat(8_000));
    for version in ["0", "1", "2"] {
        let clock = Instant::now();
        for filter in [
            &nested,
            "combine:combine%3Ablob%3Anone",
            "sparse:oid=main:x",
        ] {
            let answer = filtered(&service, &project, version, filter).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(
                answer.contains("ERR this filter is not known here"),
                "{answer}"
            );
        }
        // Git alone takes seconds for the first.
        assert!(
            clock.elapsed() < Duration::from_secs(2),
            "{:?}",
            clock.elapsed()
        );
        for filter in [
            "combine:blob:none+tree:0",
            "object:type=commit",
            "blob:limit=1k",
        ] {
            let answer = filtered(&service, &project, version, filter).await;
            let has_pack = answer.windows(4).any(|part| part == b"PACK");
            assert!(has_pack, "{filter}: {}", String::from_utf8_lossy(&answer));
        }
    }
}

#[tokio::test]
async fn a_chunked_request_is_read() {
    let (service, project) = prepared("chunked").await;
    let path = Service::repository_path(&project.owner, "chunked");
    let mut upload = Upload::start(service.port, &format!("{path}/git-upload-pack"), &V2);
    for piece in ls_refs().chunks(7) {
        upload.send(piece.to_vec()).await;
    }
    let answer = upload.finish().await.unwrap();
    let refs = project.repo.refs().await;
    assert_eq!(git::lines(&answer.body), expected(&project, &refs));
}

#[tokio::test]
async fn git_may_send_its_push_in_chunks_and_ask_before() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "post-buffer").await;
    project.repo.commit_bytes(300_000).await;
    let state = project.state().await.sign(&project.owner);
    client.publish(&state).await.waits();
    let url = project.url(&service);
    let push = ["-c", "http.postBuffer=1024", "push", &url, "main"];
    project.repo.git(&push).await.good();
    assert!(client.serves(&state).await);
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let (service, project) = prepared("continue").await;
    let path = Service::repository_path(&project.owner, "continue");
    let body = ls_refs();
    let head = format!(
        "POST {path}/git-upload-pack HTTP/1.1\r\nHost: localhost\r\nGit-Protocol: version=2\r\n\
         Content-Type: application/x-git-upload-pack-request\r\nExpect: 100-continue\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", service.port))
        .await
        .unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 12];
    crate::support::soon("100 Continue", stream.read_exact(&mut told))
        .await
        .unwrap();
    assert_eq!(&told, b"HTTP/1.1 100");
    stream.write_all(&body).await.unwrap();
    let mut rest = Vec::new();
    crate::support::soon("the answer", stream.read_to_end(&mut rest))
        .await
        .unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(
        rest.contains("HTTP/1.1 200") && rest.contains("refs/heads/main"),
        "{rest}"
    );
}

fn head_of(request: &str, port: u16, path: &str) -> Request<Body> {
    web::request(request, port, path, &[])
}

#[tokio::test]
async fn head_is_answered_wherever_get_is() {
    let (service, project) = prepared("head").await;
    let path = Service::repository_path(&project.owner, "head");
    let nowhere = Service::repository_path(&Keys::generate(), "nowhere");
    for path in [
        "/".to_owned(),
        "/healthz".to_owned(),
        "/readyz".to_owned(),
        path.clone(),
        format!("{path}/info/refs?service=git-upload-pack"),
        nowhere.clone(),
        "/nothing".to_owned(),
    ] {
        let get = service.get(&path).await.unwrap();
        let head = service
            .fetch(head_of("HEAD", service.port, &path))
            .await
            .unwrap();
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(
            head.header("content-type"),
            get.header("content-type"),
            "{path}"
        );
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn unusual_identifiers_are_announced_pushed_and_cloned() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    for identifier in [
        "mit leerzeichen",
        "größe-日本",
        "-leading",
        "--upload-pack=x",
        ".hidden",
        "...",
        "per%20cent",
        "a+b&c=d?e#f",
        "quote'\"`$(x)",
        "name.git",
        "name:with:colons",
        " ",
    ] {
        let project = Project::active(&service, &mut client, identifier).await;
        let (clone, out) = Repo::clone(&project.url(&service), &[]).await;
        out.good();
        assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
        let directory = service.repository_directory(&project.owner, identifier);
        assert!(directory.is_dir(), "{directory:?}");
    }
}

#[tokio::test]
async fn every_spelling_of_a_path_names_the_same_repository() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let keys = Keys::generate();
    client
        .publish(&announcement(&service, &keys, "ab").sign(&keys))
        .await
        .waits();
    let plain = Service::repository_path(&keys, "ab");
    let spelled = plain.replace("/ab.git", "/%61b%2Egit");
    assert_ne!(plain, spelled);
    for path in [plain, spelled] {
        let path = format!("{path}/info/refs?service=git-upload-pack");
        assert_eq!(service.get(&path).await.unwrap().status, 200, "{path}");
    }
    let outside = Service::repository_path(&keys, "ab").replace("/ab.git", "/%2e%2e%2fab.git");
    let outside = format!("{outside}/info/refs?service=git-upload-pack");
    assert_eq!(service.get(&outside).await.unwrap().status, 404);
}

#[tokio::test]
async fn what_is_not_hosted_is_not_found_for_git() {
    let service = Service::start().await;
    let (_, out) = Repo::clone(&service.url(&Keys::generate(), "nowhere"), &[]).await;
    assert!(
        !out.ok && out.stderr.contains("not found"),
        "{}",
        out.stderr
    );
}

#[tokio::test]
async fn a_clone_while_pushes_go_on_is_whole() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "busy").await;
    let url = project.url(&service);
    let reading = async {
        for _ in 0..8 {
            let (clone, out) = Repo::clone(&url, &[]).await;
            out.good();
            clone
                .git(&["fsck", "--strict", "--connectivity-only"])
                .await
                .good();
        }
    };
    let writing = async {
        for _ in 0..8 {
            project.repo.commit().await;
            project.update(&service, &mut client, &["main"]).await;
        }
    };
    tokio::join!(reading, writing);
}

#[tokio::test]
async fn a_dumb_client_gets_no_files() {
    let (service, project) = prepared("dumb").await;
    let path = Service::repository_path(&project.owner, "dumb");
    for file in [
        "HEAD",
        "config",
        "objects/info/packs",
        "objects/info/alternates",
        "../x",
    ] {
        let status = service.get(&format!("{path}/{file}")).await.unwrap().status;
        assert!((400..500).contains(&status), "{file}: {status}");
    }
}
