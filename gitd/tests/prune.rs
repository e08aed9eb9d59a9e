//! What nobody can reach leaves the disk: by itself after a while, at once on an operator's word; nothing
//! else does.

mod common;

use std::{collections::BTreeSet, path::Path, time::Duration};

use common::*;
use grasp_proto::{
    contract::git::{DeleteRequest, PruneRequest, PurgeRequest, RetireRequest},
    words::{Oid, RepoId},
};

/// How many bytes left the disk.
async fn prune(service: &Service, identifier: &str) -> u64 {
    let identifier = identifier.to_owned();
    let pruned = service.git.clone().prune(PruneRequest { identifier }).await;
    pruned.unwrap().into_inner().bytes
}

/// All objects that are in a pool, reachable or not.
async fn objects_in(pool: &Path) -> BTreeSet<Oid> {
    let args = [
        "cat-file",
        "--batch-all-objects",
        "--unordered",
        "--batch-check=%(objectname)",
    ];
    let listed = git(pool, &args).await;
    listed
        .lines()
        .map(|line| Oid::from_hex(line).unwrap())
        .collect()
}

/// Everything that the refs of a repository lead to.
async fn reached_in(view: &Path) -> BTreeSet<Oid> {
    let args = ["rev-list", "--objects", "--no-object-names", "--all"];
    let listed = git(view, &args).await;
    listed
        .lines()
        .map(|line| Oid::from_hex(line).unwrap())
        .collect()
}

/// Nothing marks stand for holds any more.
fn age_marks(pool: &Path) {
    let path = pool.join("brought");
    let text = std::fs::read_to_string(&path).unwrap();
    let aged = text.lines().map(|line| {
        let (words, _) = line.rsplit_once(' ').unwrap();
        format!("{words} 1\n")
    });
    std::fs::write(&path, aged.collect::<String>()).unwrap();
}

/// The packs that are about to go.
fn rolled_up(pool: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(pool.join("rolled-up")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..3000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

/// One owner's repository with a secret that was pushed away, and another's with what both have and a commit
/// of its own.
struct Stage {
    service: Service,
    owner: RepoId,
    other: RepoId,
    path: std::path::PathBuf,
    secret: Oid,
    own: Oid,
}

impl Stage {
    async fn set() -> Self {
        let service = Service::start().await;
        service.judge(Judgement::GrantAll);
        let (owner, other) = (repo(1, "shared"), repo(2, "shared"));
        service.create(&owner).await;
        service.create(&other).await;
        let path = work(service.directory.path(), "work", 3).await;
        let url = service.url(&owner);
        git(&path, &["push", "-q", &url, "main"]).await;
        git(&path, &["checkout", "-q", "-b", "own"]).await;
        let own = commit(&path, "own", "of the other's own\n").await;
        git(&path, &["push", "-q", &service.url(&other), "own:main"]).await;
        git(&path, &["checkout", "-q", "main"]).await;
        let secret = commit(&path, "secret", &"the password is swordfish\n".repeat(40)).await;
        git(&path, &["push", "-q", &url, "main"]).await;
        git(&path, &["push", "-q", "-f", &url, "main~1:main"]).await;
        Self {
            service,
            owner,
            other,
            path,
            secret,
            own,
        }
    }

    fn pool(&self) -> std::path::PathBuf {
        self.service.pool()
    }

    async fn has(&self, oid: Oid) -> bool {
        objects_in(&self.pool()).await.contains(&oid)
    }

    async fn is_whole(&self, repos: &[&RepoId]) {
        for repo in repos {
            let view = self.service.view(repo);
            git(&view, &["fsck", "--strict", "--connectivity-only"]).await;
            git(&view, &["rev-list", "--objects", "--quiet", "--all"]).await;
        }
    }

    /// The start looks what is due.
    async fn restart(&mut self) {
        self.service.stop_gitd().await;
        self.service.start_gitd().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_an_operators_word_nothing_stays_that_nobody_reaches() {
    let stage = Stage::set().await;
    let blob = rev(&stage.path, "main:secret").await;
    assert!(stage.has(stage.secret).await && stage.has(blob).await);
    assert!(prune(&stage.service, "shared").await > 0);
    assert!(!stage.has(stage.secret).await && !stage.has(blob).await);
    assert_eq!(rolled_up(&stage.pool()), BTreeSet::new());
    stage.is_whole(&[&stage.owner, &stage.other]).await;
    // It is gone for its owner, too, who brings it again.
    let back = [("refs/heads/main", stage.secret)];
    assert!(stage.service.align(&stage.owner, &back, &[]).await.is_err());
    let url = stage.service.url(&stage.owner);
    git(&stage.path, &["push", "-q", &url, "main"]).await;
    stage.is_whole(&[&stage.owner, &stage.other]).await;
    assert_eq!(prune(&stage.service, "shared").await, 0);
    assert_eq!(prune(&stage.service, "nobody's").await, 0);
    assert!(stage.has(stage.secret).await && stage.has(stage.own).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_itself_what_has_run_out_goes_and_nothing_before() {
    let mut stage = Stage::set().await;
    // It might be wanted back.
    stage.restart().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(stage.has(stage.secret).await);
    stage.service.stop_gitd().await;
    age_marks(&stage.pool());
    stage.service.start_gitd().await;
    let pool = stage.pool();
    until("nothing was pruned", || !rolled_up(&pool).is_empty()).await;
    stage.is_whole(&[&stage.owner, &stage.other]).await;
    // For readers that have begun, the packs of before stay a while, or until the next start.
    assert!(stage.has(stage.secret).await);
    assert_eq!(packs(&pool), 1);
    stage.restart().await;
    assert!(!stage.has(stage.secret).await);
    stage.is_whole(&[&stage.owner, &stage.other]).await;
    assert!(!pool.join("brought").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refs_lead_to_all_the_same_is_not_packed_anew() {
    let mut stage = Stage::set().await;
    let url = stage.service.url(&stage.owner);
    git(&stage.path, &["push", "-q", &url, "main"]).await;
    let before = children(&stage.pool().join("objects/pack"));
    stage.service.stop_gitd().await;
    let text = std::fs::read_to_string(stage.pool().join("brought")).unwrap();
    // As a push onto what was there leaves it: the ref was there before.
    assert!(text.contains("former "), "{text}");
    age_marks(&stage.pool());
    stage.service.start_gitd().await;
    let brought = stage.pool().join("brought");
    until("marks stay", || !brought.exists()).await;
    assert_eq!(children(&stage.pool().join("objects/pack")), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_only_a_gone_view_reached_leave_with_it() {
    let mut stage = Stage::set().await;
    let delete = DeleteRequest {
        repository: Some((&stage.other).into()),
        ..DeleteRequest::default()
    };
    stage.service.git.clone().delete(delete).await.unwrap();
    assert!(stage.has(stage.own).await);
    let pool = stage.pool();
    stage.restart().await;
    until("nothing was pruned", || !rolled_up(&pool).is_empty()).await;
    stage.restart().await;
    assert!(!stage.has(stage.own).await);
    // What its owner pushed over is kept for him.
    assert!(stage.has(stage.secret).await);
    stage.is_whole(&[&stage.owner]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_moved_aside_keeps_what_it_has() {
    let stage = Stage::set().await;
    let incarnation = {
        let retire = RetireRequest {
            repository: Some((&stage.other).into()),
            incarnation: String::new(),
        };
        stage.service.git.clone().retire(retire).await.unwrap();
        let aside = children(&stage.service.data().join(".retired"));
        let name = aside[0].file_stem().unwrap().to_str().unwrap().to_owned();
        name.rsplit_once('-').unwrap().1.to_owned()
    };
    prune(&stage.service, "shared").await;
    assert!(stage.has(stage.own).await && !stage.has(stage.secret).await);
    let purge = PurgeRequest {
        repository: Some((&stage.other).into()),
        incarnation,
    };
    stage.service.git.clone().purge(purge).await.unwrap();
    assert!(prune(&stage.service, "shared").await > 0);
    assert!(!stage.has(stage.own).await);
    stage.is_whole(&[&stage.owner]).await;
}

/// A pack that is about to go, and comes again to the byte, stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_comes_again_is_not_taken_away() {
    let mut stage = Stage::set().await;
    stage.service.stop_gitd().await;
    age_marks(&stage.pool());
    stage.service.start_gitd().await;
    let pool = stage.pool();
    until("nothing was pruned", || !rolled_up(&pool).is_empty()).await;
    let going = rolled_up(&pool);
    let url = stage.service.url(&stage.owner);
    git(&stage.path, &["push", "-q", &url, "main"]).await;
    let stays = rolled_up(&pool);
    assert!(stays.is_subset(&going) && stays.len() < going.len());
    stage.restart().await;
    assert!(stage.has(stage.secret).await);
    stage.is_whole(&[&stage.owner, &stage.other]).await;
}

/// What waits for its event leans on what is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_loses_nothing() {
    let stage = Stage::set().await;
    let (service, path) = (&stage.service, &stage.path);
    git(path, &["checkout", "-q", "own"]).await;
    let offered = commit(path, "offered", "to the other\n").await;
    service.judge(Judgement::Stage);
    let name = format!("refs/nostr/{}", "ab".repeat(32));
    let refspec = format!("own:{name}");
    git(path, &["push", "-q", &service.url(&stage.other), &refspec]).await;
    // Somebody else's waits for the same event, and its ref shows that one.
    git(path, &["reset", "-q", "--hard", "HEAD~1"]).await;
    commit(path, "other", "to the same\n").await;
    let refspec = format!("+{refspec}");
    git(path, &["push", "-q", &service.url(&stage.other), &refspec]).await;
    // The branch that they lean on goes.
    service.judge(Judgement::GrantAll);
    let url = service.url(&stage.other);
    git(path, &["push", "-q", "-f", &url, "main~1:main"]).await;
    prune(service, "shared").await;
    stage.is_whole(&[&stage.other]).await;
    service
        .put_ref(&stage.other, &name, offered, true)
        .await
        .unwrap();
    prune(service, "shared").await;
    stage.is_whole(&[&stage.owner, &stage.other]).await;
    assert!(stage.has(stage.own).await && stage.has(offered).await);
    assert_eq!(service.refs(&stage.other).await[1].1, offered);
}

/// Pushes go on while it is pruned: each is taken whole, or told to come again.
#[tokio::test(flavor = "multi_thread")]
async fn pushes_meanwhile_are_taken_whole_or_told_to_come_again() {
    let stage = Stage::set().await;
    let service = &stage.service;
    let mut pushers = Vec::new();
    for (at, repo) in [&stage.owner, &stage.other].into_iter().enumerate() {
        let clone = service.directory.path().join(format!("pusher{at}"));
        let args = ["clone", "-q", &service.url(repo), clone.to_str().unwrap()];
        git(service.directory.path(), &args).await;
        pushers.push((clone, service.url(repo)));
    }
    let push = |(path, url): (std::path::PathBuf, String)| async move {
        let mut refused = 0;
        for n in 0..12 {
            commit(&path, "file", &format!("{n}\n")).await;
            if n % 3 == 0 {
                // What was pushed before is left behind.
                git(&path, &["reset", "-q", "--soft", "HEAD~2"]).await;
                commit(&path, "file", &format!("again {n}\n")).await;
            }
            let output = try_git(&path, &["push", "-q", "-f", &url, "main"]).await;
            if !output.status.success() {
                let said = said(&output);
                assert!(said.contains("has just expired, push again"), "{said}");
                refused += 1;
            }
        }
        refused
    };
    let pushing: Vec<_> = pushers
        .into_iter()
        .map(|to| tokio::spawn(push(to)))
        .collect();
    let mut prunings = 0;
    while !pushing.iter().all(tokio::task::JoinHandle::is_finished) {
        let identifier = "shared".to_owned();
        match service.git.clone().prune(PruneRequest { identifier }).await {
            Ok(_) => prunings += 1,
            Err(status) => assert_eq!(status.code(), tonic::Code::Aborted, "{status}"),
        }
        // Most pushes fit between two of them.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut refused = 0;
    for one in pushing {
        refused += one.await.unwrap();
    }
    assert!(prunings > 3 && refused < 24, "{prunings} {refused}");
    stage.is_whole(&[&stage.owner, &stage.other]).await;
    prune(service, "shared").await;
    let mut all = reached_in(&service.view(&stage.owner)).await;
    all.extend(reached_in(&service.view(&stage.other)).await);
    assert_eq!(objects_in(&stage.pool()).await, all);
}
