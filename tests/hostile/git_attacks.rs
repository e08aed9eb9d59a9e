//! Attacks on gitd: its memory, its processor time, its disk, its places.

use std::{fmt::Write as _, io::Write as _, time::Duration};

use flate2::{Compression, write::GzEncoder};
use futures::future::join_all;
use tokio::io::AsyncWriteExt;

use crate::{
    attacker::{Lair, connect, post},
    made_pack::{BASE, BLOB, COMMIT, OFS_DELTA, TAG, TREE, copies, object, pack},
    stage::{Stage, scaled},
    support::{
        Client, Project, Repo, Service, events,
        git::{ZERO, commands, pkt, run_with},
        soon,
    },
};

/// Names an object that nobody has.
const NOWHERE: &str = "1111111111111111111111111111111111111111";

fn lair_name(what: &str) -> String {
    format!("{what}-{}", events::next_second())
}

/// Packs of kilobytes whose objects are gigabytes.
pub async fn bombs(stage: &Stage) {
    const SAYS: &[u8] = &[0; 1000];
    let lair = Lair::new(&stage.service, &lair_name("bombs"), NOWHERE).await;
    let base = object(BLOB, BASE, b"", &vec![b'x'; usize::try_from(BASE).unwrap()]);
    // As packs say how far before a delta its base stands.
    let far = |distance: usize| match distance.checked_sub(128) {
        None => vec![u8::try_from(distance).unwrap()],
        Some(rest) => vec![
            0x80 | u8::try_from(rest >> 7).unwrap(),
            u8::try_from(rest & 0x7f).unwrap(),
        ],
    };
    let delta = |result: u64| {
        let delta = copies(result);
        object(OFS_DELTA, delta.len() as u64, &far(base.len()), &delta)
    };
    let packs = [
        pack(&[base.clone(), delta(1 << 30)]),
        pack(&[base.clone(), delta(31 << 20)]),
        pack(&[vec![base.clone()], vec![delta(30 << 20); 100]].concat()),
        pack(&[object(BLOB, 4 << 30, b"", SAYS)]),
        pack(&[object(TREE, 1 << 30, b"", SAYS)]),
        pack(&[object(COMMIT, 50 << 20, b"", SAYS)]),
        pack(&[object(TAG, 50 << 20, b"", SAYS)]),
        // What no header says: zeros for as long as they last.
        pack(&[object(BLOB, 1000, b"", &vec![0; 100_000_000])]),
    ];
    for _ in 0..scaled(3) {
        let pushes = packs
            .iter()
            .map(|pack| lair.push(&stage.service, NOWHERE, pack));
        for answer in join_all(pushes).await {
            assert!(!answer.contains("unpack ok"), "{answer}");
        }
    }
}

/// A file of very many versions, each a difference to the one before; pushed, and read by several at once.
pub async fn delta_chain(stage: &Stage) {
    let repo = Repo::empty().await;
    let mut stream = String::new();
    let mut text = "a line\n".repeat(500);
    for version in 0..4000 {
        writeln!(text, "version {version}").unwrap();
        let shown = &text[text.len() - 3500..];
        write!(
            stream,
            "commit refs/heads/main\ncommitter A <a@example.org> {version} +0000\ndata 0\n\
             M 100644 inline file\ndata {}\n{shown}\n",
            shown.len()
        )
        .unwrap();
    }
    let import = ["fast-import", "--quiet", "--depth=4000"];
    let (ok, _, said) = run_with(&repo.path(), &import, stream.as_bytes()).await;
    assert!(ok, "{said}");
    let tip = repo.oid("main").await;
    let arguments = [
        "pack-objects",
        "--revs",
        "--stdout",
        "-q",
        "--depth=4000",
        "--window=2",
    ];
    let (ok, pack, said) = run_with(&repo.path(), &arguments, b"main\n").await;
    assert!(ok, "{said}");
    let lair = Lair::new(&stage.service, &lair_name("chain"), &tip).await;
    let answer = lair.push(&stage.service, &tip, &pack).await;
    assert!(answer.contains("ok refs/heads/main"), "{answer}");
    let body = [
        pkt("command=fetch"),
        b"0001".to_vec(),
        pkt(format!("want {tip}\n")),
        pkt("done\n"),
        b"0000".to_vec(),
    ];
    let headers = [
        ("Content-Type", "application/x-git-upload-pack-request"),
        ("Git-Protocol", "version=2"),
    ];
    let path = lair.path("git-upload-pack");
    let reads = (0..scaled(8)).map(|_| post(&stage.service, &path, &headers, body.concat()));
    for answer in join_all(reads).await {
        assert_eq!(answer.expect("an answer").status, 200);
    }
}

/// Pushes that end in the middle of their pack.
pub async fn broken_pushes(stage: &Stage) {
    let service = &stage.service;
    let lair = Lair::new(service, &lair_name("broken"), NOWHERE).await;
    let repo = Repo::empty().await;
    repo.commit_bytes(200_000).await;
    let pack = repo.pack(&["main"]).await;
    let commands = commands(&[(ZERO, NOWHERE, "refs/heads/main")], "report-status");
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-git-receive-pack-request\r\n\
         Content-Length: {}\r\n\r\n",
        lair.path("git-receive-pack"),
        commands.len() + pack.len()
    );
    let break_off = async |number: usize| {
        let mut stream = connect(service, None).await.ok()?;
        stream.write_all(head.as_bytes()).await.ok()?;
        stream.write_all(&commands).await.ok()?;
        let sent = pack.len() * (number % 10) / 10;
        stream.write_all(&pack[..sent]).await.ok()
    };
    for round in 0..scaled(20) {
        join_all((0..15).map(|number| break_off(round + number))).await;
    }
}

/// Requests of a few hundred bytes whose filters git takes apart for seconds.
pub async fn nested_filters(stage: &Stage) {
    let mut client = Client::connect(&stage.service).await;
    let project = Project::active(&stage.service, &mut client, &lair_name("filters")).await;
    let filter = format!("filter {}blob:none\n", "combine:".repeat(8000));
    let tip = project.repo.oid("main").await;
    let body = [
        pkt("command=fetch"),
        b"0001".to_vec(),
        pkt(format!("want {tip}\n")),
        pkt(filter),
        pkt("done\n"),
        b"0000".to_vec(),
    ];
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&body.concat()).unwrap();
    let body = gzip.finish().unwrap();
    assert!(body.len() < 1000);
    let headers = [
        ("Content-Type", "application/x-git-upload-pack-request"),
        ("Content-Encoding", "gzip"),
        ("Git-Protocol", "version=2"),
    ];
    let repository = Service::repository_path(&project.owner, &project.identifier);
    let path = format!("{repository}/git-upload-pack");
    let reads = (0..scaled(40)).map(|_| post(&stage.service, &path, &headers, body.clone()));
    for answer in join_all(reads).await {
        let text = answer.expect("an answer").text();
        assert!(!text.contains("PACK"), "a filter like this is taken");
    }
}

/// Connections whose requests never get beyond their heads, or whose heads are very large.
pub async fn endless_heads(stage: &Stage) {
    let service = &stage.service;
    let drip = async |number: usize| {
        let mut stream = connect(service, None).await.ok()?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
            .await
            .ok()?;
        if number.is_multiple_of(10) {
            // Much more than any head has.
            let large = vec![b'x'; 4 << 20];
            let sent = stream.write_all(&large);
            soon("a large head is refused", sent).await.ok()?;
        }
        for _ in 0..10 {
            stream.write_all(b"x").await.ok()?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Some(())
    };
    join_all((0..scaled(90)).map(drip)).await;
}
