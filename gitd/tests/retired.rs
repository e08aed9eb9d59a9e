//! Repositories moved aside, back, and thrown away; killed between any two steps.

mod common;

use std::path::PathBuf;

use common::*;
use grasp_proto::{
    contract::{
        git::{DeleteRequest, ListRetiredRequest, PurgeRequest, RestoreRequest, RetireRequest},
        repository,
    },
    words::RepoId,
};
use tonic::{Code, Status};

fn code<T>(answer: Result<T, Status>) -> Result<(), Code> {
    answer.map(|_| ()).map_err(|status| status.code())
}

async fn retire(service: &Service, repo: &RepoId) {
    let request = RetireRequest {
        repository: Some(repo.into()),
        incarnation: String::new(),
    };
    service.git.clone().retire(request).await.unwrap();
}

async fn restore(service: &Service, repo: &RepoId, incarnation: &str) -> Result<(), Code> {
    let request = RestoreRequest {
        repository: Some(repo.into()),
        incarnation: incarnation.to_owned(),
    };
    code(service.git.clone().restore(request).await)
}

async fn purge(service: &Service, repo: &RepoId, incarnation: &str) -> Result<(), Code> {
    let request = PurgeRequest {
        repository: Some(repo.into()),
        incarnation: incarnation.to_owned(),
    };
    code(service.git.clone().purge(request).await)
}

async fn retired(service: &Service) -> Vec<(RepoId, String)> {
    let listed = service
        .git
        .clone()
        .list_retired(ListRetiredRequest {})
        .await;
    let mut stream = listed.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(one) = stream.message().await.unwrap() {
        let repo = repository(one.repository).unwrap();
        found.push((repo, one.incarnation));
    }
    found
}

/// A repository with two commits, one of them a contributor's; gives its incarnation and where the
/// work lies.
async fn filled(service: &Service, repo: &RepoId) -> (String, PathBuf) {
    let incarnation = service.create(repo).await;
    let path = work(service.directory.path(), "work", 2).await;
    let spec = format!("main:refs/nostr/{}", "ab".repeat(32));
    let url = service.url(repo);
    git(&path, &["push", "-q", &url, "main"]).await;
    git(&path, &["push", "-q", &url, &spec]).await;
    (incarnation, path)
}

async fn clones(service: &Service, repo: &RepoId, name: &str) {
    let directory = service.directory.path();
    let clone = ["clone", "-q", "-b", "main", &service.url(repo), name];
    git(directory, &clone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_repository_is_restored_and_shows_what_a_state_says() {
    let mut service = Service::start().await;
    let repo = repo(1, "größe -x");
    let (incarnation, path) = filled(&service, &repo).await;
    let before = service.refs(&repo).await;
    assert_eq!(before.len(), 2);
    for round in 0..2 {
        retire(&service, &repo).await;
        retire(&service, &repo).await;
        let gone = try_git(&path, &["ls-remote", &service.url(&repo)]).await;
        assert!(!gone.status.success());
        assert_eq!(
            retired(&service).await,
            [(repo.clone(), incarnation.clone())]
        );
        // Its pool outlives a restart.
        service.stop_gitd().await;
        service.start_gitd().await;
        for _ in 0..2 {
            restore(&service, &repo, &incarnation).await.unwrap();
        }
        assert!(retired(&service).await.is_empty());
        // It has its objects, and neither ref nor HEAD before events name them.
        assert_eq!(service.refs(&repo).await, []);
        let head = std::fs::read_to_string(service.view(&repo).join("HEAD")).unwrap();
        assert_eq!(head, "ref: refs/heads/master\n");
        let (name, oid) = &before[0];
        assert!(!service.missing(&repo, *oid, false).await);
        service.align(&repo, &[(name, *oid)], &[]).await.unwrap();
        let (offered, oid) = &before[1];
        let other = format!("refs/nostr/{}", "cd".repeat(32));
        if round == 1 {
            // Nobody else's.
            service.align(&repo, &[], &[]).await.unwrap();
            assert!(service.put_ref(&repo, &other, *oid, true).await.is_err());
        }
        service.put_ref(&repo, offered, *oid, true).await.unwrap();
        service
            .align(&repo, &[(name, before[0].1)], &[])
            .await
            .unwrap();
        assert_eq!(service.refs(&repo).await, before);
        clones(&service, &repo, &format!("clone-{round}")).await;
    }
    assert_eq!(service.create(&repo).await, incarnation);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_over_another() {
    let service = Service::start().await;
    let repo = repo(1, "taken");
    let (incarnation, path) = filled(&service, &repo).await;
    retire(&service, &repo).await;
    let other = service.create(&repo).await;
    assert_ne!(other, incarnation);
    let refused = restore(&service, &repo, &incarnation).await;
    assert_eq!(refused, Err(Code::FailedPrecondition));
    assert_eq!(retired(&service).await.len(), 1);
    let delete = DeleteRequest {
        repository: Some((&repo).into()),
        incarnation: other,
        only_empty: false,
    };
    service.git.clone().delete(delete).await.unwrap();
    restore(&service, &repo, &incarnation).await.unwrap();
    let tip = rev(&path, "main").await;
    let main = [("refs/heads/main", tip)];
    service.align(&repo, &main, &[]).await.unwrap();
    clones(&service, &repo, "clone").await;
    let unknown = restore(&service, &common::repo(2, "taken"), "00ff").await;
    assert_eq!(unknown, Err(Code::NotFound));
    for bad in ["", "../x", "zz"] {
        let refused = restore(&service, &repo, bad).await;
        assert_eq!(refused, Err(Code::InvalidArgument), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_purged_takes_its_pool_along_unless_others_lean_on_it() {
    let service = Service::start().await;
    let (mine, theirs) = (repo(1, "shared"), repo(2, "shared"));
    let (incarnation, path) = filled(&service, &mine).await;
    service.create(&theirs).await;
    git(&path, &["push", "-q", &service.url(&theirs), "main"]).await;
    // What is in its place is no matter of a purge.
    purge(&service, &mine, &incarnation).await.unwrap();
    clones(&service, &mine, "mine").await;
    retire(&service, &mine).await;
    for _ in 0..2 {
        purge(&service, &mine, &incarnation).await.unwrap();
    }
    assert!(retired(&service).await.is_empty());
    assert_eq!(
        restore(&service, &mine, &incarnation).await,
        Err(Code::NotFound)
    );
    clones(&service, &theirs, "theirs").await;
    let theirs_is = service.create(&theirs).await;
    retire(&service, &theirs).await;
    assert_eq!(service.pools().len(), 1);
    purge(&service, &theirs, &theirs_is).await.unwrap();
    assert!(service.pools().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_was_killed_is_finished_at_the_start() {
    let mut service = Service::start().await;
    let repo = repo(1, "killed");
    let (incarnation, _) = filled(&service, &repo).await;
    retire(&service, &repo).await;
    service.stop_gitd().await;
    // Killed behind its first step: out of sight, not yet out of the pool.
    let aside = children(&service.data().join(".retired")).remove(0);
    std::fs::rename(aside, service.data().join(".new/rubbish")).unwrap();
    service.start_gitd().await;
    assert!(retired(&service).await.is_empty());
    assert!(service.pools().is_empty());
    assert!(children(&service.data().join(".new")).is_empty());
    purge(&service, &repo, &incarnation).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_an_upload_that_was_cut_short_do_not_come_back() {
    let service = Service::start().await;
    let repo = repo(1, "locked");
    let (incarnation, _) = filled(&service, &repo).await;
    retire(&service, &repo).await;
    let aside = children(&service.data().join(".retired")).remove(0);
    std::fs::write(aside.join("refs/heads/main.lock"), "").unwrap();
    restore(&service, &repo, &incarnation).await.unwrap();
    assert!(!service.view(&repo).join("refs/heads/main.lock").exists());
    // A directory without a repository in it is not written over either.
    retire(&service, &repo).await;
    std::fs::create_dir_all(service.view(&repo).join("precious")).unwrap();
    assert!(restore(&service, &repo, &incarnation).await.is_err());
    assert_eq!(retired(&service).await.len(), 1);
}
