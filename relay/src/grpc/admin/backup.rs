//! `Backup`: events, journal, refs and objects at one moment.
//!
//! The git storage links its objects first, while everything goes on. Then decisions come to rest
//! ([`Serial::rest`]): what runs ends, so that refs, store and journal agree, and nothing begins. In
//! that rest three readings begin – of the store, of the journal, of the refs – and it ends. They are
//! read out afterwards, as fast as the caller takes them. Whoever goes away ends all of it.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream::BoxStream};
use grasp_proto::contract::{
    git::{
        SnapshotBegin, SnapshotList, SnapshotRequest, SnapshotSmall, SnapshotTake,
        snapshot_request::Step, snapshot_response::Answer,
    },
    relay::{
        BackupBeginning, BackupEnd, BackupMoment, BackupRequest, BackupResponse,
        backup_response::Part,
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::lines::Chunks;
use crate::{
    clock::Clock,
    git::{GitError, SnapshotAnswers},
    journal,
    release::Release,
    serial::Serial,
    store,
};

/// How long decisions may take to come to rest, each time it is tried: others wait as long.
const REST_WITHIN: Duration = Duration::from_secs(2);
/// How often it is tried.
const TRIES: usize = 30;
/// How long between two tries what has waited may go on.
const BETWEEN_TRIES: Duration = Duration::from_secs(2);
/// How long the moment may take.
const MOMENT_WITHIN: Duration = Duration::from_secs(30);
/// How long the git storage may be silent.
const SILENT: Duration = Duration::from_secs(60);
/// How long a caller may take for one part, or leave us without a question.
const IDLE: Duration = Duration::from_secs(300);

type Parts = mpsc::Sender<Result<BackupResponse, Status>>;

/// Runs a backup for one caller.
pub(super) fn run(
    release: Release,
    serial: Serial,
    domain: String,
    wants: Streaming<BackupRequest>,
    room: OwnedSemaphorePermit,
) -> BoxStream<'static, Result<BackupResponse, Status>> {
    let (parts, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let begun = Instant::now();
        match work(&release, &serial, domain, wants, &parts).await {
            Ok(paused) => {
                let paused = paused.as_millis();
                tracing::info!(time = ?begun.elapsed(), paused_millis = paused, "a backup was made");
            }
            Err(error) => {
                tracing::warn!(%error, "a backup was not made");
                let _ = parts.send(Err(error)).await;
            }
        }
        drop(room);
    });
    ReceiverStream::new(receiver).boxed()
}

async fn tell(parts: &Parts, part: Part) -> Result<(), Status> {
    let part = BackupResponse { part: Some(part) };
    let told = timeout(IDLE, parts.send(Ok(part))).await;
    let told = told.map_err(|_| Status::deadline_exceeded("nothing is read any more"))?;
    told.map_err(|_| Status::cancelled("the caller is gone"))
}

async fn end(parts: &Parts) -> Result<(), Status> {
    tell(parts, Part::End(BackupEnd {})).await
}

/// The git storage's side.
struct Git {
    steps: mpsc::Sender<SnapshotRequest>,
    answers: SnapshotAnswers,
}

impl Git {
    async fn begin(release: &Release) -> Result<Self, Status> {
        let (steps, receiver) = mpsc::channel(16);
        let answers = release.git.snapshot(receiver).await;
        let answers = answers.map_err(|error| super::git_failed(&error))?;
        let mut git = Self { steps, answers };
        git.ask(Step::Begin(SnapshotBegin {})).await?;
        Ok(git)
    }

    async fn ask(&mut self, step: Step) -> Result<(), Status> {
        let step = SnapshotRequest { step: Some(step) };
        let asked = self.steps.send(step).await;
        asked.map_err(|_| Status::unavailable("the git storage went away"))
    }

    async fn answer(&mut self) -> Result<Answer, Status> {
        let answer = timeout(SILENT, self.answers.next()).await;
        let answer = answer.map_err(|_| Status::aborted("the git storage says nothing"))?;
        let gone = || GitError::Unreachable("it went away".to_owned());
        let answer = answer.unwrap_or_else(|| Err(gone()));
        answer.map_err(|error| super::git_failed(&error))
    }
}

fn out_of_order() -> Status {
    Status::internal("the git storage answered what was not asked")
}

/// What there was at the moment.
struct Moment {
    events: store::Snapshot,
    records: journal::Snapshot,
    repositories: u64,
    listed_repositories: u64,
}

/// In the rest: the three readings begin.
async fn take(release: &Release, git: &mut Git) -> Result<Moment, Status> {
    let ours = |error: &dyn std::error::Error| Status::internal(error.to_string());
    let records = release.purgatory.journal().snapshot().await;
    let records = records.map_err(|error| ours(&error))?;
    let events = release.store.snapshot().await;
    let events = events.map_err(|error| ours(&error))?;
    git.ask(Step::Take(SnapshotTake {})).await?;
    match git.answer().await? {
        Answer::Taken(taken) => Ok(Moment {
            events,
            records,
            repositories: taken.repositories,
            listed_repositories: taken.described,
        }),
        _ => Err(out_of_order()),
    }
}

/// Does work in a rest; says how long others had to wait for it. They do from when it is asked for, also where
/// it does not come.
async fn at_rest<T>(
    serial: &Serial,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<(T, Duration), Status> {
    let mut paused = Duration::ZERO;
    for _ in 0..TRIES {
        let begun = Instant::now();
        let Some(rest) = serial.rest(REST_WITHIN).await else {
            paused += begun.elapsed();
            tokio::time::sleep(BETWEEN_TRIES).await;
            continue;
        };
        let taken = timeout(MOMENT_WITHIN, work).await;
        drop(rest);
        paused += begun.elapsed();
        let slow = || Status::aborted("the git storage took too long for the moment");
        return Ok((taken.map_err(|_| slow())??, paused));
    }
    Err(Status::aborted(
        "decisions did not come to rest; try again when less is being pushed",
    ))
}

async fn work(
    release: &Release,
    serial: &Serial,
    domain: String,
    mut wants: Streaming<BackupRequest>,
    parts: &Parts,
) -> Result<Duration, Status> {
    let mut git = Git::begin(release).await?;
    loop {
        match git.answer().await? {
            Answer::Beginning(_) => tell(parts, Part::Beginning(BackupBeginning {})).await?,
            Answer::Begun(_) => break,
            _ => return Err(out_of_order()),
        }
    }
    let (moment, paused) = at_rest(serial, take(release, &mut git)).await?;
    let said = BackupMoment {
        millis: Clock::system().wall().as_millis(),
        domain,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        repositories: moment.repositories,
        listed_repositories: moment.listed_repositories,
        paused_millis: u64::try_from(paused.as_millis()).unwrap_or(u64::MAX),
    };
    tell(parts, Part::Moment(said)).await?;

    let events = moment.events;
    let lines = move |see: &mut dyn FnMut(String) -> bool| {
        let read = events.each(|event| see(event.as_json()));
        read.map_err(|error| Status::internal(error.to_string()))
    };
    send_lines(parts, Part::Events, lines).await?;
    let records = moment.records;
    let lines = move |see: &mut dyn FnMut(String) -> bool| {
        let read = records.lines(see);
        read.map_err(|error| Status::internal(error.to_string()))
    };
    send_lines(parts, Part::Records, lines).await?;

    git.ask(Step::Small(SnapshotSmall {})).await?;
    pass_on(&mut git, parts, Part::Repositories).await?;
    git.ask(Step::List(SnapshotList {})).await?;
    loop {
        match git.answer().await? {
            Answer::Files(files) => tell(parts, Part::Files(files)).await?,
            Answer::End(_) => break,
            _ => return Err(out_of_order()),
        }
    }
    end(parts).await?;
    loop {
        let want = timeout(IDLE, wants.message()).await;
        let want = want.map_err(|_| Status::deadline_exceeded("nothing is asked any more"))?;
        let Some(want) = want? else {
            return Ok(paused);
        };
        git.ask(Step::Read(want.read)).await?;
        pass_on(&mut git, parts, Part::Content).await?;
    }
}

/// Passes the bytes of one answer on.
async fn pass_on(
    git: &mut Git,
    parts: &Parts,
    part: impl Fn(Vec<u8>) -> Part,
) -> Result<(), Status> {
    loop {
        match git.answer().await? {
            Answer::Bytes(bytes) => tell(parts, part(bytes)).await?,
            Answer::End(_) => return end(parts).await,
            _ => return Err(out_of_order()),
        }
    }
}

/// Sends what `lines` shows, read on a thread that may block, in chunks of whole lines.
async fn send_lines(
    parts: &Parts,
    part: impl Fn(Vec<u8>) -> Part,
    lines: impl FnOnce(&mut dyn FnMut(String) -> bool) -> Result<(), Status> + Send + 'static,
) -> Result<(), Status> {
    let mut chunks = Chunks::read(lines);
    while let Some(chunk) = chunks.next().await {
        tell(parts, part(chunk)).await?;
    }
    chunks.end().await?;
    end(parts).await
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::Identifier;

    use super::*;
    use crate::serial::Turn;

    #[tokio::test]
    async fn the_pause_is_counted_from_when_the_others_have_to_wait() {
        const LASTS: Duration = Duration::from_millis(300);
        let serial = Serial::default();
        let identifier = Identifier::parse("x").unwrap();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let decision = serial.run(&identifier, Turn::Normal, async move {
            let _ = begun.send(());
            tokio::time::sleep(LASTS).await;
        });
        let rest = async {
            begins.await.unwrap();
            let asked = Instant::now();
            let ((), paused) = at_rest(&serial, async { Ok(()) }).await.unwrap();
            (asked.elapsed(), paused)
        };
        let ((), (elapsed, paused)) = tokio::join!(decision, rest);
        assert!(
            paused >= LASTS / 2 && paused <= elapsed,
            "{paused:?} of {elapsed:?}"
        );
    }
}
