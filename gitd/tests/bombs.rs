//! Packs of a few kilobytes that stand for gigabytes, pushed and brought by a worker.

mod common;
mod made_pack;

use common::*;
use grasp_proto::words::RepoId;
use made_pack::{BASE, BLOB, COMMIT, OFS_DELTA, TAG, TREE, copies, object, pack};

/// A push of this pack, as one request.
async fn push(service: &Service, repo: &RepoId, pack: &[u8]) -> String {
    let (zero, one) = ("0".repeat(40), "1".repeat(40));
    let command = format!("{zero} {one} refs/heads/main\0 report-status side-band-64k");
    let body = [line(&command).as_bytes(), b"0000", pack].concat();
    post(service, &format!("/{repo}/git-receive-pack"), "", &body).await
}

fn quarantined(service: &Service) -> usize {
    let pools = service.pools();
    let all = pools.iter();
    all.map(|pool| children(&pool.join("quarantine")).len())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_refused_with_words_before_git_has_them() {
    let service = Service::start().await;
    let repo = repo(1, "bombs");
    service.create(&repo).await;
    let base = vec![b'x'; usize::try_from(BASE).unwrap()];
    let base = object(BLOB, BASE, b"", &base);
    // Some offset: it is refused before anybody looks there.
    let far = [0x80, 0x10];
    let delta = copies(2 << 30);
    let small = copies(30 << 20);
    let one_of_many = object(OFS_DELTA, small.len() as u64, &far, &small);
    let cases = [
        // 4 GiB of zeros would be 4 MB of pack; its header is enough.
        ("file", pack(&[object(BLOB, 4 << 30, b"", &[0; 1000])])),
        ("tree", pack(&[object(TREE, 1 << 30, b"", &[0; 1000])])),
        ("commit", pack(&[object(COMMIT, 50 << 20, b"", &[0; 1000])])),
        ("tag", pack(&[object(TAG, 50 << 20, b"", &[0; 1000])])),
        (
            "core.bigFileThreshold",
            pack(&[
                base.clone(),
                object(OFS_DELTA, delta.len() as u64, &far, &delta),
            ]),
        ),
        (
            "when they are unpacked",
            pack(&[vec![base], vec![one_of_many; 200]].concat()),
        ),
        (
            "larger than its header says",
            pack(&[object(BLOB, 10, b"", &vec![0; 100_000])]),
        ),
    ];
    for (words, pack) in cases {
        assert!(pack.len() < 200_000);
        let answer = push(&service, &repo, &pack).await;
        assert!(answer.contains(words), "{words}: {answer}");
        assert!(answer.contains("ng refs/heads/main"), "{answer}");
        assert_eq!(quarantined(&service), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_a_file_of_some_megabytes_are_taken() {
    let service = Service::start().await;
    let repo = repo(1, "large-file");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 1).await;
    // No two pieces of it are alike, and its versions are nearly.
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        format!("{state:016x}\n")
    };
    let mut content: String = (0..400_000).map(|_| next()).collect();
    for version in 0..3 {
        content.push_str(&version.to_string());
        commit(&path, "large", &content).await;
    }
    git(&path, &["repack", "-adq"]).await;
    let output = try_git(&path, &["push", &service.url(&repo), "main"]).await;
    assert!(output.status.success(), "{}", said(&output));
}
