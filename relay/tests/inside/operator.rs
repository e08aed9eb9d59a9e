//! What the operator's commands are answered, over the contract.

use futures::StreamExt;
use grasp_proto::{
    contract::{
        relay::{
            BackupRequest, BackupResponse, CleanupEmptyRepositoriesRequest, RepositoriesRequest,
            Standing as Stands, admin_client::AdminClient, admin_server::AdminServer,
            backup_response::Part,
        },
        repository,
    },
    transport::{self, AuthorizedChannel, Endpoint},
    words::RepoId,
};
use grasp_relay::{grpc::admin::AdminService, serial::Turn};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::*;

/// The Admin service of a relay without its outside, over a real socket.
struct Operated {
    inside: Inside,
    admin: AdminClient<AuthorizedChannel>,
    _directory: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

impl Operated {
    async fn new(inside: Inside) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = format!("unix:{}/s", directory.path().display())
            .parse()
            .unwrap();
        let service = AdminService::new(
            inside.release.clone(),
            inside.serial.clone(),
            inside.hunter.hunt.clone(),
            inside.curation.clone(),
        );
        let routes = transport::standard_routes(&inside.tokens)
            .await
            .add_service(AdminServer::new(service));
        let stop = CancellationToken::new();
        let listener = endpoint.listen().await.unwrap();
        tokio::spawn(transport::serve(listener, routes, stop.clone()));
        let admin = AdminClient::new(endpoint.authorized(&inside.tokens.relay));
        Self {
            inside,
            admin,
            _directory: directory,
            _stop: stop.drop_guard(),
        }
    }

    async fn list(&self, request: RepositoriesRequest) -> Vec<(RepoId, Stands, bool)> {
        let mut listed = self.admin.clone().repositories(request).await.unwrap();
        let mut all = Vec::new();
        while let Some(batch) = listed.get_mut().message().await.unwrap() {
            all.extend(batch.repositories.into_iter().map(|known| {
                let repo = repository(known.repository.clone()).unwrap();
                (repo, known.standing(), known.git.is_some())
            }));
        }
        all.sort_unstable_by_key(|(repo, stands, _)| (repo.clone(), *stands as i32));
        all
    }

    async fn clean(&self, dry_run: bool) -> Vec<(RepoId, bool, String)> {
        let request = CleanupEmptyRepositoriesRequest { dry_run };
        let cleaned = self.admin.clone().cleanup_empty_repositories(request).await;
        let mut cleaned = cleaned.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(one) = cleaned.message().await.unwrap() {
            let described = one.repository.unwrap();
            let repo = repository(described.repository).unwrap();
            all.push((repo, one.goes, one.why));
        }
        all
    }
}

fn expected(mut all: Vec<(RepoId, Stands, bool)>) -> Vec<(RepoId, Stands, bool)> {
    all.sort_unstable_by_key(|(repo, stands, _)| (repo.clone(), *stands as i32));
    all
}

#[tokio::test]
async fn what_is_known_and_what_lies_on_disk_are_listed_as_one() {
    let inside = Inside::new().await;
    let active = inside.active(1, "active", &[2]).await;
    inside.waits(&announcement(2, "waiting", 10, &[])).await;
    inside.waits(&announcement(3, "expired", 10, &[])).await;
    // The co-maintainer's announcement is served for the first one's sake.
    inside
        .served(&announcement_elsewhere(2, "active", 10))
        .await;
    inside.waits(&state(1, "active", 20, &[("main", 9)])).await;
    let left = repo(9, "left");
    inside.git.create(&left).await.unwrap();
    let retired = repo(9, "retired");
    inside.git.create(&retired).await.unwrap();
    inside.git.retire(&retired).await.unwrap();
    inside.passes(31 * MINUTE).await;
    inside.waits(&announcement(2, "waiting", 20, &[])).await;
    let operated = Operated::new(inside).await;

    let all = operated.list(RepositoriesRequest::default()).await;
    let rows = vec![
        (active.clone(), Stands::Active, true),
        (repo(2, "active"), Stands::Elsewhere, false),
        (repo(2, "waiting"), Stands::Waiting, true),
        (repo(3, "expired"), Stands::SoftExpired, false),
        (left.clone(), Stands::Unannounced, true),
        (retired, Stands::Retired, true),
    ];
    assert_eq!(all, expected(rows));
    let of_owner = RepositoriesRequest {
        owner: key_of(2).as_bytes().to_vec(),
        identifier: "active".to_owned(),
    };
    let row = (repo(2, "active"), Stands::Elsewhere, false);
    assert_eq!(operated.list(of_owner).await, [row]);
    operated.inside.git.goes_away(true);
    let refused = operated.admin.clone();
    let refused = { refused }
        .repositories(RepositoriesRequest::default())
        .await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn what_waits_is_told_with_its_time() {
    let inside = Inside::new().await;
    let active = inside.active(1, "x", &[]).await;
    let begun = inside.clock.now();
    inside.waits(&state(1, "x", 20, &[("main", 9)])).await;
    let commit = oid(8).to_hex();
    inside.waits(&pull_request(5, 20, &commit, &active)).await;
    let operated = Operated::new(inside).await;
    let mut listed = operated.admin.clone();
    let listed = listed.repositories(RepositoriesRequest::default()).await;
    let batch = listed
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    let known = &batch.repositories[0];
    assert_eq!((known.states_waiting, known.pull_requests_waiting), (1, 1));
    assert_eq!(known.waits_until_millis, (begun + 30 * MINUTE).as_millis());
    assert_eq!((known.expires_millis, known.is_to_go), (0, false));
}

#[tokio::test]
async fn only_what_is_empty_and_unwanted_is_cleaned_up() {
    let inside = Inside::new().await;
    inside.active(1, "active", &[]).await;
    inside.waits(&announcement(2, "waiting", 10, &[])).await;
    let (left, full, busy) = (repo(7, "left"), repo(7, "full"), repo(7, "busy"));
    for one in [&left, &full, &busy] {
        inside.git.create(one).await.unwrap();
    }
    inside.git.bring(&identifier("full"), &[oid(1)]);
    let name = branch("main");
    inside
        .git
        .put_ref(&(&full).into(), &name, oid(1), true)
        .await
        .unwrap();
    inside.git.world().uploading.insert(busy.clone());
    let operated = Operated::new(inside).await;

    let mut would = operated.clean(true).await;
    would.sort_unstable();
    let nobody = "nobody announced it".to_owned();
    let waits = "its announcement waits for git data".to_owned();
    let mut rows = vec![
        (left.clone(), true, nobody.clone()),
        (busy.clone(), true, nobody),
        (repo(2, "waiting"), false, waits),
    ];
    rows.sort_unstable();
    assert_eq!(would, rows);
    assert!(operated.inside.git.has(&left));

    let done = operated.clean(false).await;
    let gone: Vec<&RepoId> = done.iter().filter(|d| d.1).map(|d| &d.0).collect();
    assert_eq!(gone, [&left]);
    let upload = done.iter().find(|(repo, ..)| *repo == busy).unwrap();
    assert_eq!(upload.2, "an upload is running");
    assert!(!operated.inside.git.has(&left));
    assert!(operated.inside.git.has(&full) && operated.inside.git.has(&busy));
}

/// Takes one part after the other until its end, as text.
async fn part(parts: &mut tonic::Streaming<BackupResponse>) -> String {
    let mut text = Vec::new();
    loop {
        match parts.message().await.unwrap().unwrap().part.unwrap() {
            Part::End(_) => return String::from_utf8(text).unwrap(),
            Part::Events(bytes)
            | Part::Records(bytes)
            | Part::Repositories(bytes)
            | Part::Content(bytes) => text.extend(bytes),
            Part::Files(files) => {
                let names = files.files.into_iter().map(|file| file.name + "\n");
                text.extend(names.collect::<String>().into_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_backup_waits_for_what_runs_and_has_what_was_there_then() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, records) = Journal::open(&directory.path().join("journal")).unwrap();
    let store = Store::open(Backend::Lmdb, &directory.path().join("store"))
        .await
        .unwrap();
    let inside = Inside::over(store, journal, &records, StandIn::default().into()).await;
    inside.active(1, "x", &[]).await;
    let waiting = announcement(2, "y", 10, &[]);
    inside.waits(&waiting).await;
    let operated = Operated::new(inside).await;

    let (go, gate) = oneshot::channel::<()>();
    let (begun, begins) = oneshot::channel();
    let serial = operated.inside.serial.clone();
    let running = tokio::spawn(async move {
        let work = async {
            begun.send(()).unwrap();
            gate.await.unwrap();
        };
        serial.run(&identifier("z"), Turn::Normal, work).await;
    });
    begins.await.unwrap();
    let (wants, receiver) = mpsc::channel(4);
    let mut admin = operated.admin.clone();
    let parts = admin.backup(ReceiverStream::new(receiver)).await;
    let mut parts = parts.unwrap().into_inner();
    let first = parts.next().await.unwrap().unwrap().part.unwrap();
    assert!(matches!(first, Part::Beginning(_)), "{first:?}");
    // A second one is refused, in words.
    let (_wants, none) = mpsc::channel(1);
    let second = operated
        .admin
        .clone()
        .backup(ReceiverStream::new(none))
        .await;
    assert_eq!(second.unwrap_err().code(), tonic::Code::ResourceExhausted);
    go.send(()).unwrap();
    let moment = parts.next().await.unwrap().unwrap().part.unwrap();
    let Part::Moment(moment) = moment else {
        panic!("{moment:?}");
    };
    assert_eq!(moment.domain, "grasp.example");
    running.await.unwrap();
    // Decisions go on while it is read.
    operated
        .inside
        .waits(&announcement(3, "later", 10, &[]))
        .await;

    let events = part(&mut parts).await;
    assert_eq!(events.lines().count(), 2, "{events}");
    for line in events.lines() {
        let event: Event = serde_json::from_str(line).unwrap();
        event.verify().unwrap();
    }
    let records = part(&mut parts).await;
    assert!(records.contains(&waiting.id.to_hex()), "{records}");
    assert!(!records.contains("later"));
    let refs = part(&mut parts).await;
    assert!(
        refs.contains("refs/heads/main") && !refs.contains("later"),
        "{refs}"
    );
    assert_eq!(part(&mut parts).await, "a pack\n");
    for _ in 0..2 {
        let read = "a pack".to_owned();
        wants.send(BackupRequest { read }).await.unwrap();
    }
    assert_eq!(part(&mut parts).await, "a pack");
    assert_eq!(part(&mut parts).await, "a pack");
    drop(wants);
    assert!(parts.next().await.is_none());
}
