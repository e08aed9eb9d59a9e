//! `Repositories.Snapshot`: a snapshot that lasts as long as its call, and is read as fast as its caller
//! reads.

use std::{io, sync::Arc, time::Duration};

use futures::Stream;
use grasp_proto::contract::git::{
    SnapshotBeginning, SnapshotBegun, SnapshotEnd, SnapshotFile, SnapshotFiles, SnapshotRequest,
    SnapshotResponse, SnapshotTaken, snapshot_request::Step, snapshot_response::Answer,
};
use tokio::{
    fs::File,
    io::AsyncReadExt,
    sync::{OwnedSemaphorePermit, mpsc},
    time::{interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::repository::{Error, Repositories, snapshot::Snapshot};

/// Bytes in one message.
const CHUNK: usize = 256 * 1024;
/// Files in one message.
const BATCH: usize = 1000;
/// How long a caller may leave an answer or us without a question.
const IDLE: Duration = Duration::from_secs(300);
/// How often a caller is told that it is being begun.
const TELL_EVERY: Duration = Duration::from_secs(5);

type Answers = mpsc::Sender<Result<SnapshotResponse, Status>>;

/// Answers the steps of one caller.
pub fn answer(
    repositories: Arc<Repositories>,
    steps: Streaming<SnapshotRequest>,
    room: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<SnapshotResponse, Status>> + Send {
    let (answers, stream) = mpsc::channel(4);
    // Ends with its caller: an answer that nobody takes ends it.
    tokio::spawn(async move {
        let mut snapshot = None;
        let worked = work(&repositories, &mut snapshot, steps, &answers).await;
        // Thousands of files to unlink.
        let dropped = repositories.blocking(move |_| {
            drop(snapshot);
            Ok(())
        });
        if let Err(error) = dropped.await {
            tracing::warn!(%error, "a snapshot stays until the next start");
        }
        drop(room);
        if let Err(error) = worked {
            let _ = answers.send(Err(error)).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn tell(answers: &Answers, answer: Answer) -> Result<(), Status> {
    let message = SnapshotResponse {
        answer: Some(answer),
    };
    let told = timeout(IDLE, answers.send(Ok(message))).await;
    let told = told.map_err(|_| Status::deadline_exceeded("nothing is read any more"))?;
    told.map_err(|_| Status::cancelled("the caller is gone"))
}

/// The snapshot is one thread's at a time, which gives it back.
async fn on_thread<T: Send + 'static>(
    repositories: &Arc<Repositories>,
    snapshot: &mut Option<Snapshot>,
    work: impl FnOnce(&Repositories, &mut Snapshot) -> Result<T, Error> + Send + 'static,
) -> Result<T, Status> {
    let order = || Status::failed_precondition("begin comes first, then take");
    let mut own = snapshot.take().ok_or_else(order)?;
    let worked = repositories.blocking(move |repositories| {
        let done = work(repositories, &mut own)?;
        Ok((done, own))
    });
    let (done, own) = worked.await?;
    *snapshot = Some(own);
    Ok(done)
}

async fn work(
    repositories: &Arc<Repositories>,
    snapshot: &mut Option<Snapshot>,
    mut steps: Streaming<SnapshotRequest>,
    answers: &Answers,
) -> Result<(), Status> {
    let mut is_taken = false;
    loop {
        let step = timeout(IDLE, steps.message()).await;
        let step = step.map_err(|_| Status::deadline_exceeded("nothing is asked any more"))??;
        let Some(step) = step else {
            break;
        };
        let step = step.step;
        let step = step.ok_or_else(|| Status::invalid_argument("a message without a step"))?;
        let is_early = !is_taken && !matches!(step, Step::Begin(_) | Step::Take(_));
        if is_early || (is_taken && matches!(step, Step::Begin(_) | Step::Take(_))) {
            return Err(Status::failed_precondition(
                "begin, take, and then the rest",
            ));
        }
        match step {
            Step::Begin(_) => {
                let beginning = repositories.blocking(Repositories::begin_snapshot);
                tokio::pin!(beginning);
                let mut clock = interval(TELL_EVERY);
                *snapshot = loop {
                    tokio::select! {
                        begun = &mut beginning => break Some(begun?),
                        _ = clock.tick() => {
                            tell(answers, Answer::Beginning(SnapshotBeginning {})).await?;
                        }
                    }
                };
                tell(answers, Answer::Begun(SnapshotBegun {})).await?;
            }
            Step::Take(_) => {
                let taken = |r: &Repositories, own: &mut Snapshot| {
                    r.take_snapshot(own)?;
                    Ok(SnapshotTaken {
                        repositories: own.repositories as u64,
                        described: own.described as u64,
                    })
                };
                let taken = on_thread(repositories, snapshot, taken).await?;
                is_taken = true;
                tell(answers, Answer::Taken(taken)).await?;
            }
            Step::Small(_) => {
                let path = on_thread(repositories, snapshot, |_, own| Ok(own.small()));
                send(&path.await?, answers).await?;
            }
            Step::List(_) => list(repositories, snapshot, answers).await?,
            Step::Read(name) => {
                let path = on_thread(repositories, snapshot, move |_, own| own.file(&name));
                send(&path.await?, answers).await?;
            }
        }
    }
    Ok(())
}

async fn list(
    repositories: &Arc<Repositories>,
    snapshot: &mut Option<Snapshot>,
    answers: &Answers,
) -> Result<(), Status> {
    let directories = on_thread(repositories, snapshot, |_, own| own.directories()).await?;
    for directory in directories {
        let files = on_thread(repositories, snapshot, move |_, own| own.files(&directory));
        for batch in files.await?.chunks(BATCH) {
            let file = |(name, size): &(String, u64)| SnapshotFile {
                name: name.clone(),
                size: *size,
            };
            let files = batch.iter().map(file).collect();
            tell(answers, Answer::Files(SnapshotFiles { files })).await?;
        }
    }
    tell(answers, Answer::End(SnapshotEnd {})).await
}

async fn send(path: &std::path::Path, answers: &Answers) -> Result<(), Status> {
    let ours = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Status::not_found("the snapshot has no such file"),
        _ => Status::from(Error::Io(error)),
    };
    let mut file = File::open(path).await.map_err(ours)?;
    file.set_max_buf_size(CHUNK);
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        let read = file.read_buf(&mut bytes).await.map_err(ours)?;
        if read == 0 {
            return tell(answers, Answer::End(SnapshotEnd {})).await;
        }
        tell(answers, Answer::Bytes(bytes)).await?;
    }
}
