//! Pools of very many objects: bitmaps behind everything else, and nothing that depends on them.

mod common;

use std::{path::Path, time::Duration};

use common::*;

/// The bitmaps of a pool, once they are there.
async fn bitmaps(pool: &Path) -> Vec<std::path::PathBuf> {
    loop {
        let mut files = children(&pool.join("objects/pack"));
        let is_bitmap = |file: &std::path::PathBuf| file.extension().is_some_and(|e| e == "bitmap");
        if files.iter().any(is_bitmap) && files.iter().any(|f| f.ends_with("multi-pack-index")) {
            files.retain(is_bitmap);
            return files;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// All objects that the branches of a repository reach.
async fn objects(path: &Path) -> String {
    let args = ["rev-list", "--objects", "--no-object-names", "--all"];
    let listed = git(path, &args).await;
    let mut lines: Vec<&str> = listed.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

async fn mirror(service: &Service, repo: &grasp_proto::words::RepoId, name: &str) -> String {
    let directory = service.directory.path();
    git(
        directory,
        &["clone", "-q", "--mirror", &service.url(repo), name],
    )
    .await;
    let clone = directory.join(name);
    git(&clone, &["fsck", "--strict"]).await;
    objects(&clone).await
}

#[tokio::test(flavor = "multi_thread")]
async fn very_many_objects_get_bitmaps_that_nothing_depends_on() {
    let mut service = Service::start().await;
    let (mine, theirs) = (repo(1, "crowd"), repo(2, "crowd"));
    service.create(&mine).await;
    service.create(&theirs).await;
    let directory = service.directory.path().to_owned();
    let crowd = crowd(&directory, "source", 20).await;
    let url = service.url(&mine);
    git(&crowd, &["push", "-q", &url, "main"]).await;
    let pool = service.pool();
    bitmaps(&pool).await;
    // Readers of a view have them, and get the same as without.
    git(&service.view(&mine), &["rev-list", "--test-bitmap", "main"]).await;
    assert_eq!(
        mirror(&service, &mine, "whole").await,
        objects(&crowd).await
    );

    // What comes later is seen at once; what is another view's is not; refs move as they like.
    let older = rev(&crowd, "main~10").await;
    let head = "refs/heads/main";
    service.align(&theirs, &[(head, older)], &[]).await.unwrap();
    git(
        &directory,
        &["clone", "-q", "-b", "main", &service.url(&theirs), "work"],
    )
    .await;
    let path = directory.join("work");
    let secret = commit(&path, "secret", "secret").await.to_string();
    git(&path, &["push", "-q", &service.url(&theirs), "main"]).await;
    let theirs_now = mirror(&service, &theirs, "part").await;
    assert!(theirs_now.contains(&secret));
    assert_eq!(theirs_now, objects(&path).await);
    let absent = rev(&crowd, "main").await.to_string();
    let blob = rev(&path, "main:secret").await.to_string();
    for (repo, oid) in [(&mine, &secret), (&mine, &blob), (&theirs, &absent)] {
        let answer = want(&service, repo, 2, &[oid]).await;
        assert!(answer.contains("not our ref"), "{answer}");
    }
    for name in ["main~3", "main~3:1/1", "main~3^{tree}", "main:7/7"] {
        let oid = rev(&crowd, name).await.to_string();
        let answer = want(&service, &mine, 2, &[&oid]).await;
        assert!(answer.contains("PACK"), "{name}: {answer}");
    }
    git(
        &crowd,
        &["fetch", "-q", &service.url(&theirs), "main:theirs"],
    )
    .await;
    let blobless = ["clone", "-q", "--filter=blob:none", &url, "blobless"];
    git(&directory, &blobless).await;
    git(&directory, &["clone", "-q", "--depth=2", &url, "shallow"]).await;
    git(&directory.join("shallow"), &["fetch", "-q", "--unshallow"]).await;
    git(&directory.join("shallow"), &["fsck"]).await;

    // Packs that are in the index are rolled up with new ones; nothing is lost meanwhile.
    for n in 0..21 {
        commit(&path, "more", &format!("{n}\n")).await;
        git(&path, &["push", "-q", &service.url(&theirs), "main"]).await;
    }
    while packs(&pool) > 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bitmaps(&pool).await;
    assert_eq!(
        mirror(&service, &theirs, "later").await,
        objects(&path).await
    );

    // Without them, and with what a kill leaves, all goes on; the start makes them again.
    service.stop_gitd().await;
    for file in bitmaps(&pool).await {
        std::fs::remove_file(file).unwrap();
    }
    git(&service.view(&mine), &["fsck", "--strict"]).await;
    let index = pool.join("objects/pack/multi-pack-index");
    std::fs::remove_file(&index).unwrap();
    let lock = pool.join("objects/pack/multi-pack-index.lock");
    std::fs::write(&lock, "").unwrap();
    service.start_gitd().await;
    bitmaps(&pool).await;
    assert!(!lock.exists());
    git(&crowd, &["update-ref", "-d", "refs/heads/theirs"]).await;
    assert_eq!(
        mirror(&service, &mine, "again").await,
        objects(&crowd).await
    );
}
