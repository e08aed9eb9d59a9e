//! What no git client would send: a clear answer, nothing left behind, the service alive.

use std::{io::Write, path::PathBuf};

use flate2::{Compression, write::GzEncoder};

use crate::support::{
    Client, Project, Repo, Service,
    git::{ZERO, commands, lines, pkt},
    processes, until,
    web::{self, Answer},
};

const PUSH: &str = "application/x-git-receive-pack-request";
const FETCH: &str = "application/x-git-upload-pack-request";

/// An active project with a waiting state for a commit that is not here, and the files there are.
struct Target {
    service: Service,
    client: Client,
    project: Project,
    old: String,
    new: String,
    files: Vec<PathBuf>,
}

impl Target {
    async fn new(identifier: &str) -> Self {
        let service = Service::start().await;
        let mut client = Client::connect(&service).await;
        let project = Project::active(&service, &mut client, identifier).await;
        let old = project.repo.oid("main").await;
        let new = project.repo.commit_bytes(100_000).await;
        client
            .publish(&project.state().await.sign(&project.owner))
            .await
            .waits();
        let files = processes::files(&service.git_data());
        Self {
            service,
            client,
            project,
            old,
            new,
            files,
        }
    }

    fn path(&self, end: &str) -> String {
        let path = Service::repository_path(&self.project.owner, &self.project.identifier);
        format!("{path}/{end}")
    }

    async fn post(&self, end: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let path = self.path(end);
        let request = web::with_body("POST", self.service.port, &path, headers, web::full(body));
        let answer = crate::support::soon("an answer", self.service.fetch(request)).await;
        answer.unwrap_or_else(|error| panic!("no answer at all: {error}"))
    }

    async fn receive(&self, body: Vec<u8>) -> Answer {
        self.post("git-receive-pack", &[("Content-Type", PUSH)], body)
            .await
    }

    /// The commands of the push that the waiting state allows.
    fn allowed(&self) -> Vec<u8> {
        commands(
            &[(&self.old, &self.new, "refs/heads/main")],
            "report-status",
        )
    }

    async fn pack(&self) -> Vec<u8> {
        self.project.repo.pack(&["main", "^main~1"]).await
    }

    /// Nothing has changed on disk, and the push that is allowed still works.
    async fn unharmed(mut self) {
        until("nothing is left on disk", || async {
            processes::files(&self.service.git_data()) == self.files
        })
        .await;
        let main = self
            .project
            .remote_ref(&self.service, "refs/heads/main")
            .await;
        assert_eq!(main.as_ref(), Some(&self.old));
        self.project.push(&self.service, &["main"]).await.good();
        let main = self
            .project
            .remote_ref(&self.service, "refs/heads/main")
            .await;
        assert_eq!(main.as_ref(), Some(&self.new));
        let state = self.project.state().await.sign(&self.project.owner);
        self.client.publish(&state).await.served();
        let (_, out) = Repo::clone(&self.project.url(&self.service), &[]).await;
        out.good();
    }
}

/// An answer to a push that git can show to its user: a report without success, or an error.
#[track_caller]
fn told(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let report = lines(&answer.body);
    assert!(
        !report.iter().any(|line| line.starts_with("ok ")),
        "{report:?}"
    );
    assert!(
        report.iter().any(|line| {
            line.starts_with("ERR ")
                || line.starts_with("ng ")
                || (line.starts_with("unpack ") && line != "unpack ok")
        }),
        "nothing to read: {report:?} {}",
        answer.text()
    );
}

/// An answer to what is not git's protocol: a reason, in the protocol or beside it.
#[track_caller]
fn clear(answer: &Answer) {
    assert!(
        answer.status == 200 || (400..500).contains(&answer.status),
        "{answer:?}"
    );
    assert!(!answer.body.is_empty(), "{answer:?}");
    let report = lines(&answer.body);
    assert!(
        !report.iter().any(|line| line.starts_with("ok ")),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_truncated_pack_is_refused() {
    let target = Target::new("truncated").await;
    let pack = target.pack().await;
    for length in [0, 3, 12, pack.len() / 2, pack.len() - 1] {
        let mut body = target.allowed();
        body.extend(&pack[..length]);
        told(&target.receive(body).await);
    }
    target.unharmed().await;
}

#[tokio::test]
async fn a_corrupted_pack_is_refused() {
    let target = Target::new("corrupted").await;
    let pack = target.pack().await;
    for at in [0, 5, 11, 12, pack.len() / 2, pack.len() - 1] {
        let mut corrupted = pack.clone();
        corrupted[at] ^= 0x55;
        let mut body = target.allowed();
        body.extend(corrupted);
        told(&target.receive(body).await);
    }
    target.unharmed().await;
}

#[tokio::test]
async fn a_pack_of_other_objects_is_refused() {
    let target = Target::new("other-objects").await;
    let other = Repo::new().await;
    let mut body = target.allowed();
    body.extend(other.pack(&["main"]).await);
    told(&target.receive(body).await);
    target.unharmed().await;
}

#[tokio::test]
async fn a_pack_with_objects_missing_is_refused() {
    let target = Target::new("missing").await;
    // The commit alone, without its tree.
    let input = format!("{}\n", target.new);
    let arguments = ["pack-objects", "--stdout", "-q"];
    let directory = target.project.repo.path();
    let (ok, pack, _) =
        crate::support::git::run_with(&directory, &arguments, input.as_bytes()).await;
    assert!(ok);
    let mut body = target.allowed();
    body.extend(pack);
    told(&target.receive(body).await);
    target.unharmed().await;
}

#[tokio::test]
async fn an_object_that_fsck_refuses_is_refused() {
    let target = Target::new("fsck").await;
    let repo = &target.project.repo;
    // A tree with an entry named `.git`.
    let blob = repo.oid("main:file").await;
    let mut tree = b"100644 .git\0".to_vec();
    let digits: Vec<u8> = blob.bytes().collect();
    for pair in digits.chunks(2) {
        tree.push(u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    }
    let arguments = ["hash-object", "-t", "tree", "-w", "--stdin", "--literally"];
    let (ok, tree, _) = crate::support::git::run_with(&repo.path(), &arguments, &tree).await;
    assert!(ok);
    let tree = String::from_utf8(tree).unwrap().trim().to_owned();
    let evil = repo
        .say(&["commit-tree", "-m", "evil", "-p", "main~1", &tree])
        .await;
    let mut client = Client::connect(&target.service).await;
    let identifier = &target.project.identifier;
    let draft = crate::support::events::state(identifier, &[("refs/heads/main", &evil)]);
    let state = draft.sign(&target.project.owner);
    client.publish(&state).await.waits();
    let mut body = commands(&[(&target.old, &evil, "refs/heads/main")], "report-status");
    let boundary = format!("^{}", target.old);
    body.extend(repo.pack(&[&evil, &boundary]).await);
    told(&target.receive(body).await);
    assert!(!client.serves(&state).await);
    // Back to what the others use.
    let state = target.project.state().await.sign(&target.project.owner);
    client.publish(&state).await.waits();
    target.unharmed().await;
}

#[tokio::test]
async fn commands_without_their_pack_are_refused() {
    let target = Target::new("no-pack").await;
    told(&target.receive(target.allowed()).await);
    target.unharmed().await;
}

#[tokio::test]
async fn garbage_is_answered_clearly() {
    let target = Target::new("garbage").await;
    let garbage: Vec<u8> = (0..5000_u32).map(|n| (n * 7919 % 251) as u8).collect();
    let old = target.old.clone();
    let new = target.new.clone();
    for body in [
        vec![],
        b"0000".to_vec(),
        b"garbage".to_vec(),
        garbage.clone(),
        b"zzzz".to_vec(),
        b"0001".to_vec(),
        b"0003".to_vec(),
        b"fffffff".to_vec(),
        b"0010half".to_vec(),
        pkt("no command at all"),
        [pkt("no command at all"), b"0000".to_vec()].concat(),
        [
            pkt(format!("{old} {new} refs/heads/main\0")),
            b"00".to_vec(),
        ]
        .concat(),
        commands(&[("12", &new, "refs/heads/main")], ""),
        commands(&[(&old, "zz", "refs/heads/main")], ""),
        commands(&[(&old, &new, "")], ""),
        commands(&[(&old, &new, "refs/heads/../../x")], ""),
        commands(&[(&old, &new, "/etc/passwd")], ""),
        commands(&[(&old, &new, "HEAD")], ""),
        commands(&[(&old, &new, "refs/heads/a\nb")], ""),
        commands(
            &[
                (&old, &new, "refs/heads/main"),
                (&old, &new, "refs/heads/main"),
            ],
            "",
        ),
    ] {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let answer = target.receive(body.clone()).await;
        let status = answer.status;
        assert!(
            status == 200 || (400..500).contains(&status),
            "{shown:?}: {answer:?}"
        );
        let report = lines(&answer.body);
        assert!(
            !report.iter().any(|line| line.starts_with("ok ")),
            "{shown:?}: {report:?}"
        );
        for version in ["version=0", "version=1", "version=2"] {
            let headers = [("Content-Type", FETCH), ("Git-Protocol", version)];
            let answer = target.post("git-upload-pack", &headers, body.clone()).await;
            let status = answer.status;
            assert!(
                status == 200 || (400..500).contains(&status),
                "{shown:?}: {answer:?}"
            );
        }
    }
    target.unharmed().await;
}

#[tokio::test]
async fn a_huge_number_of_commands_is_refused() {
    let target = Target::new("huge").await;
    let mut body = Vec::new();
    for number in 0..200_000 {
        let mut line = format!("{ZERO} {} refs/heads/b{number}", target.new);
        if number == 0 {
            line.push_str("\0report-status");
        }
        body.extend(pkt(line));
    }
    body.extend(b"0000");
    let answer = target.receive(body).await;
    clear(&answer);
    target.unharmed().await;
}

#[tokio::test]
async fn commands_that_never_end_are_cut_off() {
    let target = Target::new("endless").await;
    let path = target.path("git-receive-pack");
    let mut upload = web::Upload::start(target.service.port, &path, &[("Content-Type", PUSH)]);
    let line = pkt(format!(
        "{ZERO} {} refs/heads/{}",
        target.new,
        "x".repeat(200)
    ));
    let piece = line.repeat(200);
    // 60 MB, if nobody stops it.
    for _ in 0..1000 {
        if upload.answered() {
            break;
        }
        upload.send(piece.clone()).await;
    }
    until("it is cut off", || async { upload.answered() }).await;
    target.unharmed().await;
}

#[tokio::test]
async fn a_wrong_content_type_is_refused() {
    let target = Target::new("content-type").await;
    let mut body = target.allowed();
    body.extend(target.pack().await);
    for kind in ["text/plain", FETCH] {
        let headers = [("Content-Type", kind)];
        let answer = target
            .post("git-receive-pack", &headers, body.clone())
            .await;
        assert!((400..500).contains(&answer.status), "{kind}: {answer:?}");
        assert!(!answer.body.is_empty(), "{kind}");
    }
    target.unharmed().await;
}

#[tokio::test]
async fn bad_compression_is_answered_clearly() {
    let target = Target::new("compression").await;
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let mut truncated = gzip(&[target.allowed(), target.pack().await].concat());
    truncated.truncate(truncated.len() / 2);
    let bomb = gzip(&vec![b'0'; 64 << 20]);
    assert!(bomb.len() < 100_000);
    for (what, body) in [
        ("no gzip", b"this is no gzip".to_vec()),
        ("truncated", truncated),
        ("bomb", bomb),
        ("empty", vec![]),
    ] {
        for (end, kind) in [("git-receive-pack", PUSH), ("git-upload-pack", FETCH)] {
            let headers = [("Content-Type", kind), ("Content-Encoding", "gzip")];
            let answer = target.post(end, &headers, body.clone()).await;
            let status = answer.status;
            assert!(
                status == 200 || (400..500).contains(&status),
                "{what} {end}: {answer:?}"
            );
            let report = lines(&answer.body);
            assert!(
                !report.iter().any(|line| line.starts_with("ok ")),
                "{what}: {report:?}"
            );
        }
    }
    let headers = [("Content-Type", PUSH), ("Content-Encoding", "br")];
    let answer = target
        .post("git-receive-pack", &headers, target.allowed())
        .await;
    assert!((400..500).contains(&answer.status), "{answer:?}");
    target.unharmed().await;
}

#[tokio::test]
async fn a_refused_push_leaves_no_object() {
    let target = Target::new("refused").await;
    target.project.repo.git(&["branch", "other"]).await.good();
    target
        .project
        .push(&target.service, &["other"])
        .await
        .refused();
    target
        .project
        .push(&target.service, &["main", "other"])
        .await
        .refused();
    target
        .project
        .repo
        .git(&["branch", "-q", "-D", "other"])
        .await
        .good();
    target.unharmed().await;
}

#[tokio::test]
async fn what_upload_pack_cannot_read_is_answered_clearly() {
    let target = Target::new("wants").await;
    let unknown = "12".repeat(20);
    let v0 = [
        pkt(format!("want {unknown}\n")),
        b"0000".to_vec(),
        pkt("done\n"),
    ]
    .concat();
    let headers = [("Content-Type", FETCH)];
    let answer = target.post("git-upload-pack", &headers, v0).await;
    assert!(
        answer.text().contains("ERR ") || answer.status >= 400,
        "{answer:?}"
    );

    let v2 = [("Content-Type", FETCH), ("Git-Protocol", "version=2")];
    for body in [
        [pkt("command=nonsense\n"), b"0000".to_vec()].concat(),
        [
            pkt("command=fetch\n"),
            b"0001".to_vec(),
            pkt(format!("want {unknown}\n")),
            pkt("done\n"),
            b"0000".to_vec(),
        ]
        .concat(),
        [
            pkt("command=fetch\n"),
            b"0001".to_vec(),
            pkt("want zz\n"),
            b"0000".to_vec(),
        ]
        .concat(),
        [
            pkt("command=ls-refs\n"),
            b"0001".to_vec(),
            pkt("nonsense\n"),
            b"0000".to_vec(),
        ]
        .concat(),
        [
            pkt("command=ls-refs\n"),
            pkt("object-format=sha256"),
            b"0000".to_vec(),
        ]
        .concat(),
    ] {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let answer = target.post("git-upload-pack", &v2, body).await;
        assert!(
            answer.text().contains("ERR ") || (400..500).contains(&answer.status),
            "{shown:?}: {answer:?}"
        );
    }
    target.unharmed().await;
}
