//! What the relay needs from gitd: a small trait, its gRPC implementation, a stand-in for tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use grasp_proto::{
    contract::git::{self as wire, repositories_client::RepositoriesClient},
    transport::{AuthorizedChannel, Endpoint, Token},
    words::{Address, EventId, Identifier, Npub, Oid, RefName, RepoId},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    clock::{Clock, Moment},
    policy::lists::Entry,
};

/// Why gitd did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitError {
    /// Nobody answers, or not in time: nothing is known.
    #[error("the git storage cannot be reached: {0}")]
    Unreachable(String),
    /// There is no such repository.
    #[error("no such repository")]
    NotFound,
    /// A ref was not where it was expected: look again and repeat.
    #[error("{0}")]
    Moved(String),
    /// It cannot be done as things stand: an upload is running, an object is missing.
    #[error("{0}")]
    Refused(String),
    /// It failed.
    #[error("the git storage failed: {0}")]
    Failed(String),
}

impl From<Status> for GitError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                Self::Unreachable(message)
            }
            // What a connection that ends in the middle of an answer looks like.
            Code::Unknown => Self::Unreachable(message),
            Code::NotFound => Self::NotFound,
            Code::Aborted => Self::Moved(message),
            Code::FailedPrecondition => Self::Refused(message),
            _ => Self::Failed(message),
        }
    }
}

/// Some refs of a repository, as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refs {
    /// Name and value.
    pub refs: BTreeMap<RefName, Oid>,
    /// Which of the repositories that ever lay there this is.
    pub incarnation: String,
    /// The branch that HEAD names, there or not; `None`: it names none.
    pub head: Option<RefName>,
}

/// Which objects are not here, or not what they must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Absent(pub BTreeSet<Oid>);

/// What a repository shall look like. By default: no branches and tags, and HEAD as it is.
#[derive(Debug, Clone, Default)]
pub struct Alignment {
    /// The branches and tags, and no others.
    pub refs: Vec<(RefName, Oid)>,
    /// Where HEAD shall point.
    pub head: Option<RefName>,
    /// What was seen and must still be so.
    pub expected: Vec<(RefName, Option<Oid>)>,
    /// Which incarnation is meant; empty: whichever is there.
    pub incarnation: String,
}

/// What lies on disk, a few repositories at a time.
pub type Descriptions = BoxStream<'static, Result<Vec<wire::RepositoryDescription>, GitError>>;

/// The answers to the steps of a snapshot.
pub type SnapshotAnswers = BoxStream<'static, Result<wire::snapshot_response::Answer, GitError>>;

/// The git side, as the relay sees it. Every call ends within a deadline.
pub trait Git: Send + Sync + 'static {
    /// Makes a repository if it is not there; gives its incarnation.
    fn create<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<String, GitError>>;

    /// Makes one that somebody took away. What it showed, of pull requests and of branches and tags, it may
    /// show again.
    fn make_again<'a>(
        &'a self,
        repo: &'a RepoId,
        shown_before: &'a BTreeSet<(Oid, Option<EventId>)>,
    ) -> BoxFuture<'a, Result<(), GitError>>;

    /// Moves a repository aside that was served once.
    fn retire<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<(), GitError>>;

    /// Moves a retired repository back to its place. Refused if another is there.
    fn restore<'a>(
        &'a self,
        repo: &'a RepoId,
        incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>>;

    /// Throws a retired repository away; one in its place is left as it is.
    fn purge<'a>(
        &'a self,
        repo: &'a RepoId,
        incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>>;

    /// The repositories that are retired, with their incarnations.
    fn retired(&self) -> BoxFuture<'_, Result<Vec<(RepoId, String)>, GitError>>;

    /// Deletes a repository that was never served. Refused while an upload into it runs.
    fn delete<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<(), GitError>>;

    /// Deletes a repository that has neither a ref nor an object of its own; otherwise refused, and
    /// while an upload into it runs.
    fn delete_empty<'a>(
        &'a self,
        repo: &'a RepoId,
        incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>>;

    /// What lies on disk of an owner, or of an identifier, or of all, known here or not.
    fn describe(
        &self,
        owner: Option<Npub>,
        identifier: Option<Identifier>,
    ) -> BoxFuture<'_, Result<Descriptions, GitError>>;

    /// Everything on disk at one moment, as `Repositories.Snapshot` has it.
    fn snapshot(
        &self,
        steps: mpsc::Receiver<wire::SnapshotRequest>,
    ) -> BoxFuture<'_, Result<SnapshotAnswers, GitError>>;

    /// The refs of these names, as far as they exist.
    fn refs<'a>(
        &'a self,
        address: &'a Address,
        names: &'a [RefName],
    ) -> BoxFuture<'a, Result<Refs, GitError>>;

    /// Which of the objects are not in the identifier's pool, or are not commits as they must be.
    fn absent<'a>(
        &'a self,
        identifier: &'a Identifier,
        oids: &'a BTreeSet<Oid>,
        commits: &'a BTreeSet<Oid>,
    ) -> BoxFuture<'a, Result<Absent, GitError>>;

    /// Makes branches, tags and HEAD of a repository what they shall be; gives how many refs moved.
    fn align<'a>(
        &'a self,
        repo: &'a RepoId,
        alignment: Alignment,
    ) -> BoxFuture<'a, Result<u32, GitError>>;

    /// Sets a ref under `refs/nostr/`; `signed_for`: what is staged for it belongs in the pool, and a
    /// repository below `/prs/` is made if it is not there.
    fn put_ref<'a>(
        &'a self,
        address: &'a Address,
        name: &'a RefName,
        oid: Oid,
        signed_for: bool,
    ) -> BoxFuture<'a, Result<(), GitError>>;

    /// Deletes a ref under `refs/nostr/` with what is staged for it; a repository below `/prs/` goes
    /// with the last.
    fn delete_ref<'a>(
        &'a self,
        address: &'a Address,
        name: &'a RefName,
    ) -> BoxFuture<'a, Result<(), GitError>>;

    /// Brings a commit that is in the pool of `from`, with all it leads to, into that of `to`.
    fn copy<'a>(
        &'a self,
        from: &'a Identifier,
        to: &'a Identifier,
        commit: Oid,
    ) -> BoxFuture<'a, Result<(), GitError>>;

    /// Takes the objects of an identifier off the disk that nobody can reach; gives how many bytes that
    /// were.
    fn prune<'a>(&'a self, identifier: &'a Identifier) -> BoxFuture<'a, Result<u64, GitError>>;

    /// Just these are not served over HTTP from now on, by whichever way gitd is reached.
    fn withhold(&self, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), GitError>>;

    /// Whether gitd answers.
    fn reachable(&self) -> BoxFuture<'_, bool>;

    /// What gitd's clock says now, by which it checks grants; `None`: it has not been asked.
    fn clock(&self) -> Option<Moment> {
        None
    }

    /// Whether gitd answers and is not on its way out: then it finishes what runs, and lets nobody in.
    fn serves(&self) -> BoxFuture<'_, bool> {
        self.reachable()
    }
}

/// How long gitd may take to say that it is there.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// [`Git`] over gRPC.
#[derive(Debug, Clone)]
pub struct Gitd {
    client: RepositoriesClient<AuthorizedChannel>,
    health: HealthClient<AuthorizedChannel>,
    /// What its clock said then.
    clock: Arc<Mutex<Option<(Moment, Instant)>>>,
}

impl Gitd {
    /// gitd at `endpoint`, called as the bearer of `token`.
    pub fn new(endpoint: &Endpoint, token: &Token) -> Self {
        let channel = endpoint.authorized(token);
        Self {
            client: RepositoriesClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            health: HealthClient::new(channel),
            clock: Arc::default(),
        }
    }
}

impl Gitd {
    /// What it says of itself; `None`: it does not answer.
    async fn health(&self) -> Option<ServingStatus> {
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        request.set_timeout(HEALTH_DEADLINE);
        let answer = self.health.clone().check(request).await.ok()?;
        Some(answer.into_inner().status())
    }

    /// Asks what its clock says: two machines' clocks need not agree.
    async fn ask_clock(&self) {
        let mut request = tonic::Request::new(wire::ClockRequest {});
        request.set_timeout(HEALTH_DEADLINE);
        let asked = Instant::now();
        let Ok(answer) = self.client.clone().clock(request).await else {
            return;
        };
        let said = Moment::from_millis(answer.into_inner().millis);
        let halfway = asked + asked.elapsed() / 2;
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some((said, halfway));
        tell_difference(said + halfway.elapsed());
    }
}

/// Shows by how much gitd's clock is ahead of this machine's.
#[allow(clippy::cast_precision_loss)]
fn tell_difference(gitd: Moment) {
    let ours = Clock::system().wall();
    let (ahead, behind) = (gitd.since(ours), ours.since(gitd));
    let seconds = ahead.as_secs_f64() - behind.as_secs_f64();
    metrics::gauge!("ngit_git_storage_clock_ahead_seconds").set(seconds);
}

/// Room for the refs of the largest state: an event has at most some thousand of them.
const MAX_MESSAGE: usize = 64 << 20;

fn words<T>(result: Result<T, grasp_proto::words::NotAWord>) -> Result<T, GitError> {
    result.map_err(|error| GitError::Failed(format!("an answer makes no sense: {error}")))
}

fn bytes(oids: &BTreeSet<Oid>) -> Vec<Vec<u8>> {
    oids.iter().map(|oid| oid.as_bytes().to_vec()).collect()
}

impl Git for Gitd {
    fn create<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<String, GitError>> {
        let mut client = self.client.clone();
        let repository = Some(repo.into());
        Box::pin(async move {
            let request = wire::CreateRequest {
                repository,
                shown_before: Vec::new(),
            };
            let answer = client.create(request).await?;
            Ok(answer.into_inner().incarnation)
        })
    }

    fn make_again<'a>(
        &'a self,
        repo: &'a RepoId,
        shown_before: &'a BTreeSet<(Oid, Option<EventId>)>,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let shown = |(oid, event): &(Oid, Option<EventId>)| wire::ShownBefore {
            oid: oid.as_bytes().to_vec(),
            event: event.map_or_else(Vec::new, |event| event.as_bytes().to_vec()),
        };
        let request = wire::CreateRequest {
            repository: Some(repo.into()),
            shown_before: shown_before.iter().map(shown).collect(),
        };
        Box::pin(async move {
            client.create(request).await?;
            Ok(())
        })
    }

    fn retire<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let request = wire::RetireRequest {
            repository: Some(repo.into()),
            incarnation: String::new(),
        };
        Box::pin(async move {
            client.retire(request).await?;
            Ok(())
        })
    }

    fn restore<'a>(
        &'a self,
        repo: &'a RepoId,
        incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let request = wire::RestoreRequest {
            repository: Some(repo.into()),
            incarnation: incarnation.to_owned(),
        };
        Box::pin(async move {
            client.restore(request).await?;
            Ok(())
        })
    }

    fn purge<'a>(
        &'a self,
        repo: &'a RepoId,
        incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let request = wire::PurgeRequest {
            repository: Some(repo.into()),
            incarnation: incarnation.to_owned(),
        };
        Box::pin(async move {
            client.purge(request).await?;
            Ok(())
        })
    }

    fn retired(&self) -> BoxFuture<'_, Result<Vec<(RepoId, String)>, GitError>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let request = wire::ListRetiredRequest {};
            let mut stream = client.list_retired(request).await?.into_inner();
            let mut found = Vec::new();
            while let Some(one) = stream.message().await? {
                let repo = grasp_proto::contract::repository(one.repository)?;
                found.push((repo, one.incarnation));
            }
            Ok(found)
        })
    }

    fn delete<'a>(&'a self, repo: &'a RepoId) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let request = wire::DeleteRequest {
            repository: Some(repo.into()),
            ..wire::DeleteRequest::default()
        };
        Box::pin(async move {
            client.delete(request).await?;
            Ok(())
        })
    }

    fn delete_empty<'a>(
        &'a self,
        repo: &'a RepoId,
        incarnation: &'a str,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let request = wire::DeleteRequest {
            repository: Some(repo.into()),
            incarnation: incarnation.to_owned(),
            only_empty: true,
        };
        Box::pin(async move {
            client.delete(request).await?;
            Ok(())
        })
    }

    fn describe(
        &self,
        owner: Option<Npub>,
        identifier: Option<Identifier>,
    ) -> BoxFuture<'_, Result<Descriptions, GitError>> {
        let mut client = self.client.clone();
        let request = wire::DescribeRequest {
            owner: owner.map_or_else(Vec::new, |owner| owner.as_bytes().to_vec()),
            identifier: identifier.map_or_else(String::new, |name| name.to_string()),
        };
        Box::pin(async move {
            let batches = client.describe(request).await?.into_inner();
            let batches = batches.map(|batch| Ok(batch?.repositories));
            Ok(batches.boxed())
        })
    }

    fn snapshot(
        &self,
        steps: mpsc::Receiver<wire::SnapshotRequest>,
    ) -> BoxFuture<'_, Result<SnapshotAnswers, GitError>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let mut steps = tonic::Request::new(ReceiverStream::new(steps));
            // As long as a backup is read.
            steps.set_timeout(Duration::from_secs(7 * 24 * 3600));
            let answers = client.snapshot(steps).await?.into_inner();
            let answers = answers.map(|answer| {
                let answer = answer?.answer;
                answer.ok_or_else(|| GitError::Failed("an answer without words".to_owned()))
            });
            Ok(answers.boxed())
        })
    }

    fn refs<'a>(
        &'a self,
        address: &'a Address,
        names: &'a [RefName],
    ) -> BoxFuture<'a, Result<Refs, GitError>> {
        let mut client = self.client.clone();
        let request = wire::ListRefsRequest {
            repository: Some(address.into()),
            names: names.iter().map(ToString::to_string).collect(),
            prefix: String::new(),
        };
        Box::pin(async move {
            let mut refs = Refs::default();
            let mut stream = client.list_refs(request).await?.into_inner();
            while let Some(batch) = stream.message().await? {
                if !batch.incarnation.is_empty() {
                    refs.incarnation = batch.incarnation;
                }
                refs.head = refs.head.or_else(|| RefName::parse(&batch.head).ok());
                for entry in batch.refs {
                    if let (name, Some(oid)) = words(entry.into_words())? {
                        refs.refs.insert(name, oid);
                    }
                }
            }
            Ok(refs)
        })
    }

    fn absent<'a>(
        &'a self,
        identifier: &'a Identifier,
        oids: &'a BTreeSet<Oid>,
        commits: &'a BTreeSet<Oid>,
    ) -> BoxFuture<'a, Result<Absent, GitError>> {
        let mut client = self.client.clone();
        let request = wire::MissingRequest {
            identifier: identifier.to_string(),
            oids: bytes(oids),
            commits: bytes(commits),
            staged_in: None,
        };
        Box::pin(async move {
            let answer = client.missing(request).await?.into_inner();
            let absent = answer.missing.iter().chain(&answer.not_commits);
            let absent = absent.map(|oid| words(Oid::from_slice(oid)));
            Ok(Absent(absent.collect::<Result<_, _>>()?))
        })
    }

    fn align<'a>(
        &'a self,
        repo: &'a RepoId,
        alignment: Alignment,
    ) -> BoxFuture<'a, Result<u32, GitError>> {
        let mut client = self.client.clone();
        let entry = |(name, oid): &(RefName, Oid)| wire::Ref::new(name, Some(*oid));
        let mut request = tonic::Request::new(wire::AlignRequest {
            repository: Some(repo.into()),
            incarnation: alignment.incarnation,
            refs: alignment.refs.iter().map(entry).collect(),
            head: alignment
                .head
                .map(|head| head.to_string())
                .unwrap_or_default(),
            expected: alignment
                .expected
                .iter()
                .map(|(name, oid)| wire::Ref::new(name, *oid))
                .collect(),
        });
        // Thousands of refs take a while to write.
        request.set_timeout(std::time::Duration::from_secs(120));
        Box::pin(async move {
            let answer = client.align(request).await?;
            Ok(answer.into_inner().changed)
        })
    }

    fn put_ref<'a>(
        &'a self,
        address: &'a Address,
        name: &'a RefName,
        oid: Oid,
        signed_for: bool,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let request = wire::PutRefRequest {
            repository: Some(address.into()),
            incarnation: String::new(),
            r#ref: Some(wire::Ref::new(name, Some(oid))),
            expected: None,
            signed_for,
        };
        Box::pin(async move {
            client.put_ref(request).await?;
            Ok(())
        })
    }

    fn delete_ref<'a>(
        &'a self,
        address: &'a Address,
        name: &'a RefName,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let request = wire::DeleteRefRequest {
            repository: Some(address.into()),
            incarnation: String::new(),
            name: name.to_string(),
            expected: None,
        };
        Box::pin(async move {
            client.delete_ref(request).await?;
            Ok(())
        })
    }

    fn copy<'a>(
        &'a self,
        from: &'a Identifier,
        to: &'a Identifier,
        commit: Oid,
    ) -> BoxFuture<'a, Result<(), GitError>> {
        let mut client = self.client.clone();
        let mut request = tonic::Request::new(wire::CopyRequest {
            from: from.to_string(),
            to: to.to_string(),
            commit: commit.as_bytes().to_vec(),
        });
        // As long as whoever pushed can be made to wait.
        request.set_timeout(Duration::from_secs(60));
        Box::pin(async move {
            client.copy(request).await?;
            Ok(())
        })
    }

    fn prune<'a>(&'a self, identifier: &'a Identifier) -> BoxFuture<'a, Result<u64, GitError>> {
        let mut client = self.client.clone();
        let mut request = tonic::Request::new(wire::PruneRequest {
            identifier: identifier.to_string(),
        });
        // As long as packing a very large pool may take.
        request.set_timeout(Duration::from_secs(24 * 3600));
        Box::pin(async move { Ok(client.prune(request).await?.into_inner().bytes) })
    }

    fn withhold(&self, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), GitError>> {
        const BATCH: usize = 1000;
        let entry = |entry: &Entry| match entry {
            Entry::Owner(owner) => wire::Withheld {
                owner: owner.as_bytes().to_vec(),
                identifier: String::new(),
            },
            Entry::Identifier(identifier) => wire::Withheld {
                owner: Vec::new(),
                identifier: identifier.to_string(),
            },
            Entry::Repository(repo) => wire::Withheld {
                owner: repo.owner.as_bytes().to_vec(),
                identifier: repo.identifier.to_string(),
            },
        };
        let batch = |entries: &[Entry]| wire::WithholdRequest {
            withheld: entries.iter().map(entry).collect(),
        };
        let batches: Vec<_> = entries.chunks(BATCH).map(batch).collect();
        let mut client = self.client.clone();
        Box::pin(async move {
            client.withhold(futures::stream::iter(batches)).await?;
            Ok(())
        })
    }

    fn reachable(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move { tokio::join!(self.health(), self.ask_clock()).0.is_some() })
    }

    fn clock(&self) -> Option<Moment> {
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.map(|(said, then)| said + then.elapsed())
    }

    fn serves(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move { self.health().await == Some(ServingStatus::Serving) })
    }
}
