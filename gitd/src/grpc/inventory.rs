//! `Repositories.Describe`: a walk over what lies on disk, a few repositories at a time, as fast as
//! its caller reads.

use std::{collections::VecDeque, sync::Arc, vec};

use futures::{Stream, stream};
use grasp_proto::{
    contract::git::{self as wire, DescribeRequest, DescribeResponse},
    words::{Identifier, Npub},
};
use tonic::Status;

use crate::repository::{
    Repositories,
    inventory::{Asked, Description, Found, Place, Shelf, Sizes},
};

/// Repositories in one message.
const BATCH: usize = 32;

/// What is asked for, in words.
fn asked(request: DescribeRequest) -> Result<Asked, Status> {
    let owner = match request.owner.as_slice() {
        [] => None,
        owner => Some(Npub::from_slice(owner)?),
    };
    let identifier = match request.identifier.as_str() {
        "" => None,
        identifier => Some(Identifier::parse(identifier)?),
    };
    Ok(Asked { owner, identifier })
}

struct Walk {
    repositories: Arc<Repositories>,
    asked: Asked,
    shelves: vec::IntoIter<Shelf>,
    found: VecDeque<Found>,
    sizes: Sizes,
}

impl Walk {
    async fn step(mut self) -> Result<Option<(DescribeResponse, Self)>, Status> {
        loop {
            if self.found.is_empty() {
                let Some(shelf) = self.shelves.next() else {
                    return Ok(None);
                };
                let asked = self.asked.clone();
                let found = self
                    .repositories
                    .blocking(move |r| r.on_shelf(&shelf, &asked));
                self.found = found.await?.into();
                continue;
            }
            let batch = self.found.len().min(BATCH);
            let batch: Vec<Found> = self.found.drain(..batch).collect();
            let mut sizes = self.sizes;
            let described = self.repositories.blocking(move |repositories| {
                let mut described = Vec::with_capacity(batch.len());
                for found in &batch {
                    if let Some(description) = repositories.describe(found, &mut sizes)? {
                        described.push(message(found, description));
                    }
                }
                Ok((described, sizes))
            });
            let (repositories, sizes) = described.await?;
            self.sizes = sizes;
            if !repositories.is_empty() {
                return Ok(Some((DescribeResponse { repositories }, self)));
            }
        }
    }
}

fn message(found: &Found, description: Description) -> wire::RepositoryDescription {
    let place = match found.place {
        Place::Served => wire::Place::Served,
        Place::Retired => wire::Place::Retired,
    };
    let (pool_bytes, views) = description.pool;
    wire::RepositoryDescription {
        repository: Some((&found.repo).into()),
        place: place.into(),
        incarnation: description.incarnation.unwrap_or_default(),
        bytes: description.bytes,
        pool_bytes,
        pool_views: u32::try_from(views).unwrap_or(u32::MAX),
        refs: description.refs as u64,
        changed_millis: description.changed_millis,
        is_empty: description.is_empty,
    }
}

/// Walks over what is asked for.
pub async fn describe(
    repositories: Arc<Repositories>,
    request: DescribeRequest,
) -> Result<impl Stream<Item = Result<DescribeResponse, Status>> + Send + use<>, Status> {
    let asked = asked(request)?;
    let which = asked.clone();
    let shelves = repositories.blocking(move |r| r.shelves(&which)).await?;
    let walk = Walk {
        repositories,
        asked,
        shelves: shelves.into_iter(),
        found: VecDeque::new(),
        sizes: Sizes::default(),
    };
    Ok(stream::try_unfold(walk, Walk::step))
}
