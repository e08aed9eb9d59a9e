//! What an operator asks of the storage: what lies there, and all of it at one moment.

mod common;

use std::{collections::BTreeMap, io::Cursor, path::Path};

use common::*;
use grasp_gitd::repository::restore;
use grasp_proto::{
    contract::{
        git::{
            DeleteRequest, DescribeRequest, Place, RepositoryDescription, RetireRequest,
            SnapshotBegin, SnapshotList, SnapshotRequest, SnapshotResponse, SnapshotSmall,
            SnapshotTake, snapshot_request::Step, snapshot_response::Answer,
        },
        repository,
    },
    words::RepoId,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

async fn describe(service: &Service, request: DescribeRequest) -> Vec<RepositoryDescription> {
    let mut described = service.git.clone().describe(request).await.unwrap();
    let mut all = Vec::new();
    while let Some(batch) = described.get_mut().message().await.unwrap() {
        all.extend(batch.repositories);
    }
    all
}

fn of<'a>(all: &'a [RepositoryDescription], repo: &RepoId) -> &'a RepositoryDescription {
    let is_it = |one: &&RepositoryDescription| repository(one.repository.clone()).unwrap() == *repo;
    all.iter().find(is_it).expect("it is described")
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_on_disk_is_described_whoever_made_it() {
    let service = Service::start().await;
    let (mine, theirs, empty) = (repo(1, "one"), repo(2, "one"), repo(1, "empty"));
    for one in [&mine, &theirs, &empty] {
        service.create(one).await;
    }
    let path = work(service.directory.path(), "work", 3).await;
    git(&path, &["push", "-q", &service.url(&mine), "main"]).await;
    // As another server leaves it: not adopted, and one of its refs is none that is served.
    let foreign = repo(3, "foreign");
    let view = service.view(&foreign);
    std::fs::create_dir_all(view.parent().unwrap()).unwrap();
    let from = path.to_str().unwrap();
    let to = view.to_str().unwrap();
    git(
        service.directory.path(),
        &["clone", "-q", "--bare", from, to],
    )
    .await;
    git(&view, &["update-ref", "refs/other/x", "main"]).await;
    let request = RetireRequest {
        repository: Some((&theirs).into()),
        incarnation: String::new(),
    };
    service.git.clone().retire(request).await.unwrap();

    let all = describe(&service, DescribeRequest::default()).await;
    assert_eq!(all.len(), 4);
    let one = of(&all, &mine);
    assert_eq!(
        (one.place(), one.refs, one.pool_views),
        (Place::Served, 1, 2)
    );
    assert!(one.pool_bytes > 0 && !one.is_empty && one.changed_millis > 0);
    assert_eq!(of(&all, &theirs).place(), Place::Retired);
    let one = of(&all, &empty);
    assert!(one.is_empty && one.refs == 0 && !one.incarnation.is_empty());
    let one = of(&all, &foreign);
    assert_eq!(
        (one.refs, one.pool_views, one.incarnation.as_str()),
        (2, 0, "")
    );
    assert!(one.bytes > 0 && !one.is_empty);
    let asked = DescribeRequest {
        identifier: "one".to_owned(),
        ..DescribeRequest::default()
    };
    assert_eq!(describe(&service, asked).await.len(), 2);
    let asked = DescribeRequest {
        owner: mine.owner.as_bytes().to_vec(),
        identifier: "empty".to_owned(),
    };
    assert_eq!(describe(&service, asked).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_empty_is_deleted_as_empty() {
    let service = Service::start().await;
    let (full, staged, empty) = (repo(1, "full"), repo(1, "staged"), repo(1, "empty"));
    let path = work(service.directory.path(), "work", 1).await;
    for one in [&full, &staged, &empty] {
        service.create(one).await;
    }
    git(&path, &["push", "-q", &service.url(&full), "main"]).await;
    let spec = format!("main:refs/nostr/{}", "ab".repeat(32));
    git(&path, &["push", "-q", &service.url(&staged), &spec]).await;
    let delete = async |repo: &RepoId| {
        let request = DeleteRequest {
            repository: Some(repo.into()),
            only_empty: true,
            ..DeleteRequest::default()
        };
        let answer = service.git.clone().delete(request).await;
        answer.map(|_| ()).map_err(|status| status.code())
    };
    for one in [&full, &staged] {
        assert_eq!(delete(one).await, Err(Code::FailedPrecondition));
        assert!(service.view(one).is_dir());
    }
    for _ in 0..2 {
        delete(&empty).await.unwrap();
        assert!(!service.view(&empty).exists());
    }
}

/// A call of Snapshot.
struct Call {
    steps: mpsc::Sender<SnapshotRequest>,
    answers: Streaming<SnapshotResponse>,
}

impl Call {
    async fn begin(service: &Service) -> Self {
        let (steps, receiver) = mpsc::channel(4);
        let call = service.git.clone();
        let answers = { call }
            .snapshot(ReceiverStream::new(receiver))
            .await
            .unwrap();
        let answers = answers.into_inner();
        let mut call = Self { steps, answers };
        call.ask(Step::Begin(SnapshotBegin {})).await;
        while matches!(call.answer().await, Answer::Beginning(_)) {}
        call
    }

    async fn ask(&mut self, step: Step) {
        let step = SnapshotRequest { step: Some(step) };
        self.steps.send(step).await.unwrap();
    }

    async fn answer(&mut self) -> Answer {
        let answer = self.answers.message().await.unwrap().unwrap();
        answer.answer.unwrap()
    }

    async fn take(&mut self) -> u64 {
        self.ask(Step::Take(SnapshotTake {})).await;
        match self.answer().await {
            Answer::Taken(taken) => taken.repositories,
            other => panic!("{other:?}"),
        }
    }

    async fn bytes(&mut self, step: Step) -> Vec<u8> {
        self.ask(step).await;
        let mut all = Vec::new();
        loop {
            match self.answer().await {
                Answer::Bytes(bytes) => all.extend(bytes),
                Answer::End(_) => return all,
                other => panic!("{other:?}"),
            }
        }
    }

    /// All of it, restored into a directory.
    async fn restore(&mut self, root: &Path) {
        let small = self.bytes(Step::Small(SnapshotSmall {})).await;
        self.ask(Step::List(SnapshotList {})).await;
        let mut files = BTreeMap::new();
        loop {
            match self.answer().await {
                Answer::Files(batch) => {
                    files.extend(batch.files.into_iter().map(|file| (file.name, file.size)));
                }
                Answer::End(_) => break,
                other => panic!("{other:?}"),
            }
        }
        std::fs::create_dir_all(root).unwrap();
        let scratch = root.join("scratch");
        let repositories = restore::write_small(root, Cursor::new(small)).unwrap();
        for (name, size) in files {
            let content = self.bytes(Step::Read(name.clone())).await;
            assert_eq!(content.len() as u64, size);
            std::fs::write(&scratch, content).unwrap();
            restore::place(root, &name, &scratch).unwrap();
            std::fs::remove_file(&scratch).unwrap();
        }
        for repository in repositories {
            restore::check_connectivity(&repository).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_has_its_moment_and_restores_what_was_there() {
    let mut service = Service::start().await;
    let (one, two) = (repo(1, "one"), repo(2, "one"));
    service.create(&one).await;
    service.create(&two).await;
    let path = work(service.directory.path(), "work", 3).await;
    git(&path, &["push", "-q", &service.url(&one), "main"]).await;
    // Unsigned, in its own view.
    let spec = format!("main:refs/nostr/{}", "ab".repeat(32));
    commit(&path, "staged", "staged").await;
    git(&path, &["push", "-q", &service.url(&two), &spec]).await;
    let staged = rev(&path, "main").await;
    // Another server's, with an object that lies loose.
    let foreign = repo(3, "foreign");
    let view = service.view(&foreign);
    std::fs::create_dir_all(view.parent().unwrap()).unwrap();
    let to = view.to_str().unwrap();
    git(service.directory.path(), &["init", "-q", "--bare", to]).await;
    git(&path, &["push", "-q", to, "main"]).await;

    let mut call = Call::begin(&service).await;
    // What comes before the moment belongs to it …
    let before = commit(&path, "before", "before").await;
    git(&path, &["push", "-q", &service.url(&one), "main"]).await;
    assert!(call.take().await >= 4);
    // … what comes later, or goes later, does not matter.
    commit(&path, "after", "after").await;
    git(&path, &["push", "-q", &service.url(&one), "main"]).await;
    service
        .delete_ref(&two, &format!("refs/nostr/{}", "ab".repeat(32)))
        .await
        .unwrap();
    let root = service.directory.path().join("restored");
    call.restore(&root).await;
    drop(call);

    service.stop_gitd().await;
    let place = service.data();
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::rename(&root, &place).unwrap();
    service.start_gitd().await;
    assert_eq!(
        service.refs(&one).await,
        [("refs/heads/main".to_owned(), before)]
    );
    assert_eq!(service.refs(&two).await[0].1, staged);
    assert!(!service.missing(&two, staged, true).await);
    for (name, repo) in [("a", &one), ("b", &foreign)] {
        let clone = service.directory.path().join(name);
        let to = clone.to_str().unwrap();
        git(
            service.directory.path(),
            &["clone", "-q", &service.url(repo), to],
        )
        .await;
        git(&clone, &["fsck", "--strict"]).await;
    }
    // And it can be written to.
    git(&path, &["push", "-q", &service.url(&one), "main"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_out_of_order_and_names_that_are_none_are_refused() {
    let service = Service::start().await;
    service.create(&repo(1, "one")).await;
    let mut call = Call::begin(&service).await;
    call.ask(Step::Small(SnapshotSmall {})).await;
    let refused = call.answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for name in ["../small", "/etc/passwd", "", "a/../../small"] {
        let mut call = Call::begin(&service).await;
        call.take().await;
        call.ask(Step::Read(name.to_owned())).await;
        let refused = call.answers.message().await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name}");
    }
    // A call that ended has left nothing.
    assert!(children(&service.data().join(".new")).is_empty());
}
