//! What is hidden is not shown, whoever names it and however: pushes, states, packs from elsewhere.

mod common;
#[allow(dead_code)] // It is made for other tests, too.
mod made_pack;

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::*;
use grasp_proto::{
    contract::git::{
        CreateRequest, Grant, RestoreRequest, RetireRequest, ShownBefore, StorePackRequest,
        StorePackResponse, Withheld, WithholdRequest, store_pack_request::Part,
    },
    transport::Role,
    words::{Oid, RepoId},
};

/// A pack without objects.
const EMPTY_PACK: &[u8] = b"PACK\0\0\0\x02\0\0\0\0\
    \x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e";

/// Runs a command with input; gives what it printed.
fn pipe(directory: &Path, program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .current_dir(directory)
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {args:?}");
    output.stdout
}

fn oid_of(output: Vec<u8>) -> Oid {
    Oid::from_hex(String::from_utf8(output).unwrap().trim()).unwrap()
}

/// A tree of these entries: mode, kind, object, name.
fn tree(path: &Path, entries: &[(&str, &str, Oid, &str)]) -> Oid {
    let lines = entries
        .iter()
        .map(|(mode, kind, oid, name)| format!("{mode} {kind} {oid}\t{name}\n"));
    let lines: String = lines.collect();
    oid_of(pipe(
        path,
        "git",
        &["mktree", "--missing"],
        lines.as_bytes(),
    ))
}

/// A commit of a tree.
fn commit_of(path: &Path, tree: Oid, parents: &[Oid]) -> Oid {
    let parents: String = parents
        .iter()
        .map(|oid| format!("parent {oid}\n"))
        .collect();
    let text = format!(
        "tree {tree}\n{parents}author A <a@b> 1700000000 +0000\ncommitter A <a@b> 1700000000 +0000\n\nx\n"
    );
    let args = [
        "hash-object",
        "-t",
        "commit",
        "-w",
        "--stdin",
        "--literally",
    ];
    oid_of(pipe(path, "git", &args, text.as_bytes()))
}

/// A pack of just these objects.
fn pack_of(path: &Path, oids: &[Oid]) -> Vec<u8> {
    let lines: String = oids.iter().map(|oid| format!("{oid}\n")).collect();
    pipe(
        path,
        "git",
        &["pack-objects", "--stdout", "-q"],
        lines.as_bytes(),
    )
}

/// An object as a pack has it; `base` stands before what a delta says.
fn packed(kind: u8, base: &[u8], content: &[u8]) -> Vec<u8> {
    made_pack::object(kind, content.len() as u64, base, content)
}

/// A pack of objects as they stand.
fn pack_by_hand(objects: &[Vec<u8>]) -> Vec<u8> {
    let mut pack = made_pack::pack(objects);
    pack.truncate(pack.len() - made_pack::CHECKSUM);
    let sum = pipe(Path::new("/"), "sha1sum", &[], &pack);
    let sum = std::str::from_utf8(&sum[..40]).unwrap();
    pack.extend(Oid::from_hex(sum).unwrap().as_bytes());
    pack
}

/// Pushes a pack for some refs; gives the answer.
async fn push(service: &Service, repo: &RepoId, refs: &[(&str, Oid)], pack: &[u8]) -> String {
    let mut body = String::new();
    for (at, (name, oid)) in refs.iter().enumerate() {
        let capabilities = if at == 0 { "\0report-status" } else { "" };
        body.push_str(&line(&format!("{} {oid} {name}{capabilities}", Oid::ZERO)));
    }
    body.push_str("0000");
    let body = [body.as_bytes(), pack].concat();
    post(service, &format!("/{repo}/git-receive-pack"), "", &body).await
}

fn event_ref(byte: &str) -> String {
    format!("refs/nostr/{}", byte.repeat(32))
}

/// One owner's repository whose secret was pushed and pushed away, and a stranger's under the same name.
struct Stage {
    service: Service,
    owner: RepoId,
    stranger: RepoId,
    path: PathBuf,
    base: Oid,
    secret: Oid,
}

impl Stage {
    async fn set() -> Self {
        let service = Service::start().await;
        let (owner, stranger) = (repo(1, "shared"), repo(2, "shared"));
        service.create(&owner).await;
        service.create(&stranger).await;
        let path = work(service.directory.path(), "work", 3).await;
        let url = service.url(&owner);
        let base = rev(&path, "main").await;
        let secret = commit(&path, "secret", &"the password is swordfish\n".repeat(40)).await;
        git(&path, &["tag", "-a", "v1", "-m", "secret", "main"]).await;
        git(&path, &["push", "-q", &url, "main", "v1"]).await;
        let url = url.as_str();
        git(&path, &["push", "-q", "-f", url, "main~1:main", ":v1"]).await;
        Self {
            service,
            owner,
            stranger,
            path,
            base,
            secret,
        }
    }

    async fn rev(&self, name: &str) -> Oid {
        rev(&self.path, name).await
    }

    /// The secret is refused to every reader of both.
    async fn nothing_is_shown(&self) {
        for repo in [&self.owner, &self.stranger] {
            for name in ["main", "main^{tree}", "main:secret", "v1"] {
                let oid = self.rev(name).await.to_string();
                let answer = want(&self.service, repo, 2, &[&oid]).await;
                assert!(answer.contains("not our ref"), "{name}: {answer}");
            }
        }
    }

    /// A push that leans on what is hidden is refused in the words in which one is refused that leans on what
    /// is not there; `pack` is made for both.
    async fn refused_alike(&self, name: &str, hidden: (Oid, Vec<u8>), absent: (Oid, Vec<u8>)) {
        for judgement in [Judgement::Grant, Judgement::GrantAll] {
            for repo in [&self.owner, &self.stranger] {
                self.service.judge(judgement.clone());
                let mut words = Vec::new();
                for (tip, pack) in [&hidden, &absent] {
                    let answer = push(&self.service, repo, &[(name, *tip)], pack).await;
                    assert!(
                        answer.contains("unpack ") && !answer.contains("unpack ok"),
                        "{answer}"
                    );
                    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
                    words.push(body.replace(&tip.to_string(), "TIP"));
                }
                assert_eq!(words[0], words[1], "{judgement:?}");
                assert!(
                    words[0].contains("neither in the pack nor here"),
                    "{}",
                    words[0]
                );
            }
        }
        self.nothing_is_shown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_away_is_not_named_back() {
    let stage = Stage::set().await;
    let absent = Oid::from_bytes([0x11; 20]);
    let empty = || EMPTY_PACK.to_vec();
    let name = event_ref("aa");
    for name_of in ["main", "main^{tree}", "main:secret", "v1"] {
        let hidden = stage.rev(name_of).await;
        for name in [name.as_str(), "refs/heads/x", "refs/tags/x"] {
            stage
                .refused_alike(name, (hidden, empty()), (absent, empty()))
                .await;
        }
        assert!(
            stage.service.missing(&stage.owner, hidden, false).await,
            "{name_of}"
        );
        assert!(
            stage.service.missing(&stage.stranger, hidden, true).await,
            "{name_of}"
        );
    }
    let refused = |status: tonic::Status| status.message().contains("not here: object");
    for repo in [&stage.owner, &stage.stranger] {
        for signed_for in [false, true] {
            let put = stage
                .service
                .put_ref(repo, &name, stage.secret, signed_for)
                .await;
            assert!(refused(put.unwrap_err()));
        }
    }
    for name in ["refs/heads/x", "refs/tags/x"] {
        let aligned = stage
            .service
            .align(&stage.stranger, &[(name, stage.secret)], &[])
            .await;
        assert!(refused(aligned.unwrap_err()));
    }
    stage.nothing_is_shown().await;
    // It is its owner's to have it back, by a state that says so.
    let back = [("refs/heads/main", stage.secret)];
    stage.service.align(&stage.owner, &back, &[]).await.unwrap();
    assert!(
        !stage
            .service
            .missing(&stage.stranger, stage.secret, false)
            .await
    );
    stage
        .service
        .align(&stage.stranger, &back, &[])
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_brings_it_has_it() {
    let stage = Stage::set().await;
    let whole = pack(&stage.path, &["main"]).await;
    let name = event_ref("aa");
    for judgement in [Judgement::Grant, Judgement::GrantAll] {
        stage.service.judge(judgement);
        let answer = push(
            &stage.service,
            &stage.stranger,
            &[(&name, stage.secret)],
            &whole,
        )
        .await;
        assert!(answer.contains(&format!("ok {name}")), "{answer}");
        let secret = stage.secret.to_string();
        let answer = want(&stage.service, &stage.stranger, 2, &[&secret]).await;
        assert!(answer.contains("PACK"), "{answer}");
        stage
            .service
            .delete_ref(&stage.stranger, &name)
            .await
            .unwrap();
        // It was his: it is gone with his ref.
        let answer = push(
            &stage.service,
            &stage.stranger,
            &[(&name, stage.secret)],
            EMPTY_PACK,
        )
        .await;
        assert!(answer.contains("neither in the pack nor here"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_brought_leads_to_what_is_hidden() {
    let stage = Stage::set().await;
    let (path, name) = (&stage.path, event_ref("aa"));
    let gone = Oid::from_bytes([0x11; 20]);
    let (blob, sub) = (
        stage.rev("main:secret").await,
        stage.rev("main^{tree}").await,
    );
    // A file, and a directory.
    for (mode, kind, hidden) in [("100644", "blob", blob), ("040000", "tree", sub)] {
        let made = [hidden, gone].map(|oid| {
            let tree = tree(path, &[(mode, kind, oid, "x")]);
            let tip = commit_of(path, tree, &[stage.base]);
            (tip, pack_of(path, &[tip, tree]))
        });
        let [hidden, absent] = made;
        stage.refused_alike(&name, hidden, absent).await;
    }
    // A parent.
    let base_tree = stage.rev("main~1^{tree}").await;
    let made = [stage.secret, gone].map(|oid| {
        let tip = commit_of(path, base_tree, &[stage.base, oid]);
        (tip, pack_of(path, &[tip]))
    });
    let [hidden, absent] = made;
    stage.refused_alike(&name, hidden, absent).await;
    // A tag of a tag.
    let inner = stage.rev("v1").await;
    let made = [inner, gone].map(|oid| {
        let text =
            format!("object {oid}\ntype tag\ntag v2\ntagger A <a@b> 1700000000 +0000\n\nx\n");
        let args = ["hash-object", "-t", "tag", "-w", "--stdin", "--literally"];
        let tip = oid_of(pipe(path, "git", &args, text.as_bytes()));
        (tip, pack_of(path, &[tip]))
    });
    let [hidden, absent] = made;
    stage.refused_alike("refs/tags/v2", hidden, absent).await;
    // Two histories whose trees answer for each other.
    let made = [blob, gone].map(|oid| {
        let (t, u) = (
            tree(
                path,
                &[("100644", "blob", oid, "x"), ("100644", "blob", oid, "y")],
            ),
            tree(path, &[("100644", "blob", oid, "x")]),
        );
        let (one, two) = (commit_of(path, t, &[]), commit_of(path, u, &[]));
        let (three, four) = (commit_of(path, t, &[two]), commit_of(path, u, &[one]));
        let tip = commit_of(path, base_tree, &[three, four, stage.base]);
        (tip, pack_of(path, &[tip, one, two, three, four, t, u]))
    });
    let [hidden, absent] = made;
    stage.refused_alike(&name, hidden, absent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_delta_is_taken_against_what_is_hidden() {
    let stage = Stage::set().await;
    let (path, name) = (&stage.path, event_ref("aa"));
    let secret = pipe(path, "git", &["cat-file", "blob", "main:secret"], &[]);
    // All of the base, and a letter.
    let made = [stage.rev("main:secret").await, Oid::from_bytes([0x11; 20])].map(|base| {
        let result = [&secret[..], b"!"].concat();
        let blob = oid_of(pipe(
            path,
            "git",
            &["hash-object", "-w", "--stdin"],
            &result,
        ));
        let tree = tree(path, &[("100644", "blob", blob, "x")]);
        let tip = commit_of(path, tree, &[stage.base]);
        let length = u16::try_from(secret.len()).unwrap().to_le_bytes();
        let delta = [
            made_pack::number(secret.len() as u64),
            made_pack::number(result.len() as u64),
            vec![0xb0, length[0], length[1], 1, b'!'],
        ]
        .concat();
        let text =
            |kind: &str, oid: Oid| pipe(path, "git", &["cat-file", kind, &oid.to_string()], &[]);
        let objects = [
            packed(1, &[], &text("commit", tip)),
            packed(2, &[], &text("tree", tree)),
            packed(7, base.as_bytes(), &delta),
        ];
        (tip, pack_by_hand(&objects))
    });
    let [hidden, absent] = made;
    stage.refused_alike(&name, hidden.clone(), absent).await;
    // With a base that is shown it is taken.
    let url = stage.service.url(&stage.owner);
    git(path, &["push", "-q", &url, "main"]).await;
    let answer = push(
        &stage.service,
        &stage.stranger,
        &[(&name, hidden.0)],
        &hidden.1,
    )
    .await;
    assert!(answer.contains(&format!("ok {name}")), "{answer}");
}

/// A pack that a worker brings for these objects.
async fn store(
    service: &Service,
    identifier: &str,
    oids: &[Oid],
    pack: &[u8],
) -> Result<StorePackResponse, tonic::Status> {
    let expires = SystemTime::now() + Duration::from_secs(600);
    let expires = expires.duration_since(UNIX_EPOCH).unwrap().as_millis();
    let grant = Grant {
        identifier: identifier.to_owned(),
        oids: oids.iter().map(|oid| oid.as_bytes().to_vec()).collect(),
        max_bytes: 1 << 30,
        expires_millis: u64::try_from(expires).unwrap(),
        lease: 1,
        fetch: 1,
    };
    let part = |part| StorePackRequest { part: Some(part) };
    let parts = [
        part(Part::Grant(service.grant_key().seal(&grant))),
        part(Part::Chunk(pack.to_vec())),
        part(Part::Chunk(Vec::new())),
    ];
    let mut packs = service.packs(Role::Worker);
    let stored = packs.store_pack(tokio_stream::iter(parts)).await?;
    Ok(stored.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_brings_nothing_that_leads_to_what_is_hidden() {
    let stage = Stage::set().await;
    let (service, path) = (&stage.service, &stage.path);
    let blob = stage.rev("main:secret").await;
    let tree = tree(path, &[("100644", "blob", blob, "x")]);
    let leading = commit_of(path, tree, &[stage.base]);
    let pack = pack_of(path, &[leading, tree]);
    let refused = |stored: Result<StorePackResponse, tonic::Status>| {
        let status = stored.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    };
    refused(store(service, "shared", &[leading], &pack).await);
    // What else it has comes in, and that alone.
    let other = commit_of(path, stage.rev("main~1^{tree}").await, &[stage.base]);
    let pack = pack_of(path, &[leading, tree, other]);
    let stored = store(service, "shared", &[leading, other, blob], &pack)
        .await
        .unwrap();
    assert_eq!(stored.arrived, [other.as_bytes()]);
    assert!(service.missing(&stage.stranger, leading, false).await);
    // The object itself is not in a pack that has none of it.
    refused(store(service, "shared", &[stage.secret], &pack_of(path, &[other])).await);
    stage.nothing_is_shown().await;
    let refs = [("refs/heads/main", other)];
    service.align(&stage.stranger, &refs, &[]).await.unwrap();
    let refs = [("refs/heads/main", leading)];
    assert!(service.align(&stage.stranger, &refs, &[]).await.is_err());
    // Brought in parts, and whole in the end.
    let secret = stage.rev("main^{tree}").await;
    let parts = [
        pack_of(path, &[secret, blob]),
        pack_of(path, &[leading, tree]),
    ];
    store(service, "shared", &[secret], &parts[0])
        .await
        .unwrap();
    store(service, "shared", &[leading], &parts[1])
        .await
        .unwrap();
    service.align(&stage.stranger, &refs, &[]).await.unwrap();
}

async fn withhold(service: &Service, repos: &[&RepoId]) {
    let withheld = repos.iter().map(|repo| Withheld {
        owner: repo.owner.as_bytes().to_vec(),
        identifier: repo.identifier.to_string(),
    });
    let request = WithholdRequest {
        withheld: withheld.collect(),
    };
    let stream = tokio_stream::iter([request]);
    service.git.clone().withhold(stream).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_withheld_or_retired_is_told_to_nobody() {
    let stage = Stage::set().await;
    let url = stage.service.url(&stage.owner);
    git(&stage.path, &["push", "-q", &url, "main"]).await;
    let (tip, name) = (stage.secret, event_ref("aa"));
    let advertised = async |stranger: &RepoId| {
        let path = format!("/{stranger}/info/refs?service=git-receive-pack");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        raw(&stage.service, request.as_bytes()).await
    };
    // Each time one who never had it.
    let number = std::sync::atomic::AtomicU8::new(10);
    let attempt = async |expected: bool| {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let stranger = repo(number, "shared");
        stage.service.create(&stranger).await;
        assert_eq!(
            advertised(&stranger)
                .await
                .contains(&format!("{tip} .have")),
            expected
        );
        assert_eq!(
            stage.service.missing(&stranger, tip, false).await,
            !expected
        );
        let answer = push(&stage.service, &stranger, &[(&name, tip)], EMPTY_PACK).await;
        assert_eq!(answer.contains(&format!("ok {name}")), expected, "{answer}");
        let aligned = stage
            .service
            .align(&stranger, &[("refs/heads/main", tip)], &[])
            .await;
        assert_eq!(aligned.is_ok(), expected);
        stage.service.align(&stranger, &[], &[]).await.unwrap();
        stage.service.delete_ref(&stranger, &name).await.unwrap();
    };
    attempt(true).await;
    withhold(&stage.service, &[&stage.owner]).await;
    attempt(false).await;
    withhold(&stage.service, &[]).await;
    attempt(true).await;
    let incarnation = stage.service.create(&stage.owner).await;
    let repository = Some((&stage.owner).into());
    let retire = RetireRequest {
        repository,
        incarnation: String::new(),
    };
    stage.service.git.clone().retire(retire).await.unwrap();
    attempt(false).await;
    let restore = RestoreRequest {
        repository: Some((&stage.owner).into()),
        incarnation,
    };
    stage.service.git.clone().restore(restore).await.unwrap();
    stage
        .service
        .align(&stage.owner, &[("refs/heads/main", tip)], &[])
        .await
        .unwrap();
    attempt(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_was_taken_away_may_show_what_it_showed_and_nobody_else_may() {
    let stage = Stage::set().await;
    let (service, owner) = (&stage.service, &stage.owner);
    let main = [("refs/heads/main", stage.base)];
    let make = async |repo: &RepoId, oids: &[Oid]| {
        let shown = |oid: &Oid| ShownBefore {
            oid: oid.as_bytes().to_vec(),
            event: Vec::new(),
        };
        let request = CreateRequest {
            repository: Some(repo.into()),
            shown_before: oids.iter().map(shown).collect(),
        };
        service.git.clone().create(request).await.unwrap();
    };
    std::fs::remove_dir_all(service.view(owner)).unwrap();
    // It was not made for this: what it says does not count.
    make(&stage.stranger, &[stage.base]).await;
    make(owner, &[]).await;
    for repo in [owner, &stage.stranger] {
        let refused = service.align(repo, &main, &[]).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    }
    std::fs::remove_dir_all(service.view(owner)).unwrap();
    make(owner, &[stage.base, Oid::from_bytes([7; 20])]).await;
    let refused = service.align(&stage.stranger, &main, &[]).await;
    assert!(refused.is_err());
    service.align(owner, &main, &[]).await.unwrap();
    stage.nothing_is_shown().await;
    let directory = service.directory.path();
    git(directory, &["clone", "-q", &service.url(owner), "clone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_pushes_bring_no_more_than_they_did() {
    let stage = Stage::set().await;
    let (service, path) = (&stage.service, &stage.path);
    let url = service.url(&stage.stranger);
    git(path, &["checkout", "-q", "-B", "fork", "main~1"]).await;
    let objects = |said: &str| -> usize {
        let words = said.split("Writing objects: 100% (").nth(1).unwrap_or("0/");
        words.split('/').next().unwrap().parse().unwrap()
    };
    let push = async |refspec: &str| {
        let args = ["push", "--progress", &url, refspec];
        let output = try_git(path, &args).await;
        assert!(output.status.success(), "{}", said(&output));
        objects(&said(&output))
    };
    // A fork sends its own commit alone; what is moved, put back, or taken from long ago is not sent.
    std::fs::create_dir(path.join("d")).unwrap();
    commit(path, "d/new", "new\n").await;
    assert_eq!(push("fork:main").await, 4);
    git(path, &["mv", "file0", "moved"]).await;
    git(path, &["commit", "-q", "-m", "moved"]).await;
    push("fork:main").await;
    commit(path, "file1", "other\n").await;
    push("fork:main").await;
    git(path, &["revert", "--no-edit", "HEAD"]).await;
    push("fork:main").await;
    git(path, &["mv", "file2", "d/file2"]).await;
    commit(path, "file1", "content 0\n").await;
    push("fork:main").await;
    // Back to where it was, and a branch and a tag at what others have.
    git(path, &["reset", "-q", "--hard", "HEAD~2"]).await;
    push("+fork:main").await;
    let others = format!("{}:refs/heads/theirs", stage.base);
    assert_eq!(push(&others).await, 0);
    let pull = format!("{}:{}", stage.base, event_ref("bb"));
    assert_eq!(push(&pull).await, 0);
    git(path, &["tag", "-a", "v3", "-m", "x", "HEAD~1"]).await;
    git(path, &["tag", "-a", "v4", "-m", "x", "v3"]).await;
    push("v4").await;
    git(
        path,
        &[
            "merge",
            "-q",
            "--no-edit",
            "--allow-unrelated-histories",
            &stage.base.to_string(),
        ],
    )
    .await;
    push("fork:main").await;
    git(service.directory.path(), &["clone", "-q", &url, "clone"]).await;
    let clone = service.directory.path().join("clone");
    assert_eq!(rev(&clone, "HEAD").await, rev(path, "fork").await);
}

/// Everything that these objects lead to, themselves among it.
fn reached(path: &Path, tips: &[Oid]) -> BTreeSet<Oid> {
    let lines: String = tips.iter().map(|oid| format!("{oid}\n")).collect();
    let args = ["rev-list", "--objects", "--no-object-names", "--stdin"];
    let out = String::from_utf8(pipe(path, "git", &args, lines.as_bytes())).unwrap();
    out.lines()
        .map(|line| Oid::from_hex(line).unwrap())
        .collect()
}

/// Everything that the refs of these repositories lead to.
async fn shown(stage: &Stage, repos: &[RepoId], withheld: &[bool]) -> BTreeSet<Oid> {
    let mut tips = Vec::new();
    for (repo, _) in repos
        .iter()
        .zip(withheld)
        .filter(|(_, withheld)| !**withheld)
    {
        tips.extend(
            stage
                .service
                .refs(repo)
                .await
                .into_iter()
                .map(|(_, oid)| oid),
        );
    }
    match tips.is_empty() {
        true => BTreeSet::new(),
        false => reached(&stage.path, &tips),
    }
}

/// Whatever owners push, remove and are kept from showing, nobody makes anything more of it be seen.
#[tokio::test(flavor = "multi_thread")]
async fn no_sequence_of_anonymous_requests_shows_what_no_ref_reaches() {
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
    const STEPS: usize = 60;
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let stage = Stage::set().await;
    let (service, path) = (&stage.service, &stage.path);
    let repos = [
        stage.owner.clone(),
        stage.stranger.clone(),
        repo(3, "shared"),
    ];
    service.create(&repos[2]).await;
    let mut withheld = vec![false; repos.len()];
    // Histories that share some of what they have.
    let mut commits = vec![stage.base, stage.secret];
    let mut all: Vec<Oid> = Vec::new();
    for n in 0..12 {
        let from = commits.choose(&mut random).unwrap().to_string();
        git(path, &["checkout", "-q", "--detach", &from]).await;
        let file = format!("file{}", random.random_range(0..6));
        let content = format!("{} {seed}\n", random.random_range(0..8));
        std::fs::write(path.join(&file), content).unwrap();
        git(path, &["add", "."]).await;
        git(
            path,
            &["commit", "-q", "--allow-empty", "-m", &n.to_string()],
        )
        .await;
        commits.push(rev(path, "HEAD").await);
        git(path, &["tag", "-a", "-m", "x", &format!("t{n}"), "HEAD"]).await;
        all.push(rev(path, &format!("t{n}")).await);
    }
    let tags = all.clone();
    all.extend(reached(path, &commits));
    for step in 0..STEPS {
        let at = random.random_range(0..repos.len());
        let (repo, what) = (&repos[at], random.random_range(0..10));
        let told = format!("seed {seed}, step {step}: {what} in {at}");
        match what {
            // Its owner pushes, over what was there.
            0..=3 if !withheld[at] => {
                service.judge(Judgement::GrantAll);
                let name = ["refs/heads/main", "refs/heads/x", "refs/tags/t"]
                    .choose(&mut random)
                    .unwrap();
                let from = match *name {
                    "refs/tags/t" => tags.choose(&mut random).unwrap(),
                    _ => commits.choose(&mut random).unwrap(),
                };
                let refspec = format!("+{from}:{name}");
                let url = service.url(repo);
                let output = try_git(path, &["push", "-q", &url, &refspec]).await;
                assert!(output.status.success(), "{told}: {}", said(&output));
            }
            // What was there goes.
            4 => drop(service.align(repo, &[], &[]).await.unwrap()),
            5 => {
                for (name, _) in service.refs(repo).await {
                    if name.starts_with("refs/nostr/") {
                        service.delete_ref(repo, &name).await.unwrap();
                    }
                }
            }
            6 => {
                withheld[at] = !withheld[at];
                let entries: Vec<&RepoId> = (0..repos.len())
                    .filter(|at| withheld[*at])
                    .map(|at| &repos[at])
                    .collect();
                withhold(service, &entries).await;
            }
            _ => {}
        }
        let before = shown(&stage, &repos, &withheld).await;
        // Somebody names whatever there is.
        service.judge(Judgement::Grant);
        for _ in 0..4 {
            let (at, oid) = (
                random.random_range(0..repos.len()),
                *all.choose(&mut random).unwrap(),
            );
            if withheld[at] {
                continue;
            }
            let (repo, name) = (
                &repos[at],
                event_ref(&format!("{:02x}", random.random_range(0..4))),
            );
            let answer = push(service, repo, &[(&name, oid)], EMPTY_PACK).await;
            let is_ok = answer.contains(&format!("ok {name}"));
            let is_shown = before.contains(&oid);
            assert!(!is_ok || is_shown, "{told}: {oid}: {answer}");
            assert!(
                is_ok || !is_shown || !commits.contains(&oid),
                "{told}: {oid}: {answer}"
            );
            let version = random.random_range(0..3);
            let answer = want(service, repo, version, &[&oid.to_string()]).await;
            let now = shown(&stage, &repos[at..=at], &[false]).await;
            assert_eq!(
                answer.contains("PACK"),
                now.contains(&oid),
                "{told}: {oid}: {answer}"
            );
        }
        let after = shown(&stage, &repos, &withheld).await;
        assert!(after.is_subset(&before), "{told}");
    }
}
