//! `grasp.git.v1.Repositories`, served to the relay: messages to words, words to [`Repositories`].
//!
//! What changes something runs on a thread of its own: a caller that goes away does not stop it
//! half-way.

use std::{
    collections::{BTreeSet, HashSet},
    pin::Pin,
    sync::Arc,
};

use futures::Stream;
use grasp_proto::{
    contract::{
        address,
        git::{
            self as wire, AlignRequest, AlignResponse, ClockRequest, ClockResponse, CopyRequest,
            CopyResponse, CreateRequest, CreateResponse, DeleteRefRequest, DeleteRefResponse,
            DeleteRequest, DeleteResponse, DescribeRequest, DescribeResponse, ListRefsRequest,
            ListRefsResponse, ListRetiredRequest, ListRetiredResponse, MissingRequest,
            MissingResponse, PruneRequest, PruneResponse, PurgeRequest, PurgeResponse,
            PutRefRequest, PutRefResponse, Ref, RestoreRequest, RestoreResponse, RetireRequest,
            RetireResponse, SnapshotRequest, SnapshotResponse, WithholdRequest, WithholdResponse,
            repositories_server,
        },
        repository,
    },
    words::{EventId, Identifier, Npub, Oid, RefName, RepoId},
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::{inventory, snapshot};
use crate::{
    clock,
    repository::{
        Repositories,
        change::{self, Alignment, Expected, Put},
        copied::Copier,
        marks::ShownBefore,
        public::For,
        refs::Entry,
        retired::Incarnation,
        withheld,
    },
};

/// The largest message: an alignment of a hundred thousand refs.
pub const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// Refs in one message of a listing.
const BATCH: usize = 1000;

/// Snapshots at once.
const SNAPSHOTS: usize = 2;

/// The service.
pub struct Service {
    repositories: Arc<Repositories>,
    copier: Arc<Copier>,
    snapshots: Arc<Semaphore>,
}

impl Service {
    /// Serves these repositories, and copies between their pools by `copier`.
    pub fn new(repositories: Arc<Repositories>, copier: Copier) -> Self {
        Self {
            repositories,
            copier: Arc::new(copier),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS)),
        }
    }
}

fn oids(list: Vec<Vec<u8>>) -> Result<Vec<Oid>, Status> {
    list.iter().map(|oid| Ok(Oid::from_slice(oid)?)).collect()
}

fn bytes(list: Vec<Oid>) -> Vec<Vec<u8>> {
    list.into_iter()
        .map(|oid| oid.as_bytes().to_vec())
        .collect()
}

/// A ref that must have a value.
fn valued(message: Ref) -> Result<(RefName, Oid), Status> {
    let (name, oid) = message.into_words()?;
    let oid = oid.ok_or_else(|| Status::invalid_argument(format!("{name} has no value")))?;
    Ok((name, oid))
}

/// What a ref is expected to be: absent, anything; empty, nothing.
fn expected(message: Option<Vec<u8>>) -> Result<Expected, Status> {
    Ok(match message.as_deref() {
        None => Expected::Anything,
        Some([]) => Expected::Exactly(None),
        Some(bytes) => Expected::Exactly(Some(Oid::from_slice(bytes)?)),
    })
}

fn shown_before(message: wire::ShownBefore) -> Result<ShownBefore, Status> {
    Ok(ShownBefore {
        oid: Oid::from_slice(&message.oid)?,
        event: match message.event.as_slice() {
            [] => None,
            event => Some(EventId::from_slice(event)?),
        },
    })
}

#[tonic::async_trait]
impl repositories_server::Repositories for Service {
    async fn create(
        &self,
        request: Request<CreateRequest>,
    ) -> Result<Response<CreateResponse>, Status> {
        let request = request.into_inner();
        let repo = repository(request.repository)?;
        let shown_before: BTreeSet<ShownBefore> = request
            .shown_before
            .into_iter()
            .map(shown_before)
            .collect::<Result<_, Status>>()?;
        let shown_before: Vec<ShownBefore> = shown_before.into_iter().collect();
        let made = self
            .repositories
            .blocking(move |r| r.create(&repo, &shown_before));
        let (incarnation, created) = made.await?;
        Ok(Response::new(CreateResponse {
            incarnation,
            created,
        }))
    }

    async fn retire(
        &self,
        request: Request<RetireRequest>,
    ) -> Result<Response<RetireResponse>, Status> {
        let request = request.into_inner();
        let repo = repository(request.repository)?;
        let incarnation = request.incarnation;
        let retired = self
            .repositories
            .blocking(move |r| r.retire(&repo, &incarnation));
        retired.await?;
        Ok(Response::new(RetireResponse {}))
    }

    async fn restore(
        &self,
        request: Request<RestoreRequest>,
    ) -> Result<Response<RestoreResponse>, Status> {
        let request = request.into_inner();
        let repo = repository(request.repository)?;
        let incarnation = Incarnation::parse(&request.incarnation)?;
        let restored = self
            .repositories
            .blocking(move |r| r.restore(&repo, &incarnation));
        restored.await?;
        Ok(Response::new(RestoreResponse {}))
    }

    async fn purge(
        &self,
        request: Request<PurgeRequest>,
    ) -> Result<Response<PurgeResponse>, Status> {
        let request = request.into_inner();
        let repo = repository(request.repository)?;
        let incarnation = Incarnation::parse(&request.incarnation)?;
        let purged = self
            .repositories
            .blocking(move |r| r.purge(&repo, &incarnation));
        purged.await?;
        Ok(Response::new(PurgeResponse {}))
    }

    async fn prune(
        &self,
        request: Request<PruneRequest>,
    ) -> Result<Response<PruneResponse>, Status> {
        let identifier = Identifier::parse(&request.into_inner().identifier)?;
        let bytes = self.repositories.prune(&identifier).await?;
        Ok(Response::new(PruneResponse { bytes }))
    }

    type ListRetiredStream =
        Pin<Box<dyn Stream<Item = Result<ListRetiredResponse, Status>> + Send>>;

    async fn list_retired(
        &self,
        _request: Request<ListRetiredRequest>,
    ) -> Result<Response<Self::ListRetiredStream>, Status> {
        let retired = self.repositories.blocking(Repositories::retired).await?;
        let message = |(repo, incarnation): (RepoId, String)| ListRetiredResponse {
            repository: Some((&repo).into()),
            incarnation,
        };
        let stream = futures::stream::iter(retired.into_iter().map(message).map(Ok));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let request = request.into_inner();
        let repo = repository(request.repository)?;
        let incarnation = request.incarnation;
        let only_empty = request.only_empty;
        let deleted = self.repositories.blocking(move |r| match only_empty {
            true => r.delete_empty(&repo, &incarnation),
            false => r.delete(&repo, &incarnation),
        });
        deleted.await?;
        Ok(Response::new(DeleteResponse {}))
    }

    type ListRefsStream = Pin<Box<dyn Stream<Item = Result<ListRefsResponse, Status>> + Send>>;

    async fn list_refs(
        &self,
        request: Request<ListRefsRequest>,
    ) -> Result<Response<Self::ListRefsStream>, Status> {
        let request = request.into_inner();
        let address = address(request.repository)?;
        for name in &request.names {
            RefName::parse(name)?;
        }
        let listed = self
            .repositories
            .blocking(move |r| r.list(&address, &request.names, &request.prefix));
        let (head, incarnation, entries) = listed.await?;
        let first = ListRefsResponse {
            head,
            incarnation,
            refs: Vec::new(),
        };
        let mut entries = entries.into_iter();
        let batches = std::iter::from_fn(move || {
            let refs: Vec<Ref> = entries.by_ref().take(BATCH).map(message).collect();
            (!refs.is_empty()).then(|| ListRefsResponse {
                refs,
                ..ListRefsResponse::default()
            })
        });
        let stream = futures::stream::iter(std::iter::once(first).chain(batches).map(Ok));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn missing(
        &self,
        request: Request<MissingRequest>,
    ) -> Result<Response<MissingResponse>, Status> {
        let request = request.into_inner();
        let identifier = Identifier::parse(&request.identifier)?;
        let (any, commits) = (oids(request.oids)?, oids(request.commits)?);
        let staged_in = match request.staged_in {
            None => None,
            Some(message) => Some(address(Some(message))?),
        };
        if staged_in
            .as_ref()
            .is_some_and(|address| *address.identifier() != identifier)
        {
            return Err(Status::invalid_argument("two identifiers are named"));
        }
        let found = self
            .repositories
            .missing(&identifier, any, commits, staged_in)
            .await?;
        Ok(Response::new(MissingResponse {
            missing: bytes(found.missing),
            not_commits: bytes(found.not_commits),
        }))
    }

    async fn align(
        &self,
        request: Request<AlignRequest>,
    ) -> Result<Response<AlignResponse>, Status> {
        let request = request.into_inner();
        let repo = repository(request.repository)?;
        let head = match request.head.as_str() {
            "" => None,
            head => Some(RefName::parse(head)?),
        };
        let refs = request.refs.into_iter().map(valued);
        let expected = request.expected.into_iter().map(|r| Ok(r.into_words()?));
        let wanted = Alignment {
            incarnation: request.incarnation,
            refs: refs.collect::<Result<_, Status>>()?,
            head,
            expected: expected.collect::<Result<_, Status>>()?,
        };
        let wanted = Arc::new(wanted);
        let new = {
            let (repo, wanted) = (repo.clone(), Arc::clone(&wanted));
            self.repositories
                .blocking(move |r| r.to_be_shown(&repo, &wanted.refs))
        };
        let purpose = For::State((&repo).into());
        self.repositories.expect_here(purpose, new.await?).await?;
        let aligned = self.repositories.blocking(move |r| r.align(&repo, &wanted));
        let changed = aligned.await?;
        Ok(Response::new(AlignResponse { changed }))
    }

    async fn put_ref(
        &self,
        request: Request<PutRefRequest>,
    ) -> Result<Response<PutRefResponse>, Status> {
        let request = request.into_inner();
        let address = address(request.repository)?;
        let message = request
            .r#ref
            .ok_or_else(|| Status::invalid_argument("ref is missing"))?;
        let (name, oid) = valued(message)?;
        let put = Put {
            incarnation: request.incarnation,
            name,
            oid,
            expected: expected(request.expected)?,
            signed_for: request.signed_for,
        };
        let event = change::event_of(&put.name)?;
        let purpose = For::Request(address.clone(), event);
        self.repositories
            .expect_here(purpose, vec![put.oid])
            .await?;
        let done = self
            .repositories
            .blocking(move |r| r.put_ref(&address, &put));
        done.await?;
        Ok(Response::new(PutRefResponse {}))
    }

    async fn delete_ref(
        &self,
        request: Request<DeleteRefRequest>,
    ) -> Result<Response<DeleteRefResponse>, Status> {
        let request = request.into_inner();
        let address = address(request.repository)?;
        let name = RefName::parse(&request.name)?;
        let expected = expected(request.expected)?;
        let incarnation = request.incarnation;
        let done = self
            .repositories
            .blocking(move |r| r.delete_ref(&address, &incarnation, &name, expected));
        done.await?;
        Ok(Response::new(DeleteRefResponse {}))
    }

    async fn copy(&self, request: Request<CopyRequest>) -> Result<Response<CopyResponse>, Status> {
        let request = request.into_inner();
        let (from, to) = (
            Identifier::parse(&request.from)?,
            Identifier::parse(&request.to)?,
        );
        let commit = Oid::from_slice(&request.commit)?;
        // A caller that goes away stops it: nothing is seen of it before its end.
        let copied = self.repositories.copy(&self.copier, from, to, commit);
        let bytes = copied.await?;
        Ok(Response::new(CopyResponse { bytes }))
    }

    type DescribeStream = Pin<Box<dyn Stream<Item = Result<DescribeResponse, Status>> + Send>>;

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<Self::DescribeStream>, Status> {
        let repositories = Arc::clone(&self.repositories);
        let described = inventory::describe(repositories, request.into_inner()).await?;
        Ok(Response::new(Box::pin(described)))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let room = Arc::clone(&self.snapshots).try_acquire_owned();
        let room = room.map_err(|_| {
            Status::resource_exhausted("a backup is running already; try again when it has ended")
        })?;
        let repositories = Arc::clone(&self.repositories);
        let answers = snapshot::answer(repositories, request.into_inner(), room);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn clock(&self, _: Request<ClockRequest>) -> Result<Response<ClockResponse>, Status> {
        let millis = clock::millis();
        Ok(Response::new(ClockResponse { millis }))
    }

    async fn withhold(
        &self,
        request: Request<Streaming<WithholdRequest>>,
    ) -> Result<Response<WithholdResponse>, Status> {
        let mut stream = request.into_inner();
        let mut entries = HashSet::new();
        while let Some(batch) = stream.message().await? {
            for entry in batch.withheld {
                entries.insert(withheld_entry(&entry)?);
            }
            if entries.len() > withheld::MOST {
                return Err(Status::invalid_argument("too many entries"));
            }
        }
        let count = entries.len() as u64;
        let replaced = self.repositories.blocking(move |r| r.withhold(entries));
        replaced.await?;
        Ok(Response::new(WithholdResponse { entries: count }))
    }
}

fn withheld_entry(message: &wire::Withheld) -> Result<withheld::Entry, Status> {
    let owner = || Npub::from_slice(&message.owner);
    let identifier = || Identifier::parse(&message.identifier);
    match (message.owner.is_empty(), message.identifier.is_empty()) {
        (false, true) => Ok(withheld::Entry::Owner(owner()?)),
        (true, false) => Ok(withheld::Entry::Identifier(identifier()?)),
        (false, false) => Ok(withheld::Entry::Repository(RepoId {
            owner: owner()?,
            identifier: identifier()?,
        })),
        (true, true) => Err(Status::invalid_argument("an entry names nothing")),
    }
}

fn message(entry: Entry) -> Ref {
    Ref {
        name: entry.name,
        oid: entry.oid.as_bytes().to_vec(),
    }
}
