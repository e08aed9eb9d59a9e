//! `Export`: the events that are served, read at one moment and given as fast as they are taken.
//!
//! What a client would not be given is left out: withheld events and expired ones (NIP-40).

use std::{collections::HashSet, time::Duration};

use futures::stream::BoxStream;
use grasp_proto::{
    contract::relay as wire,
    words::{EventId, Npub},
};
use nostr::{Event, Filter, Kind, Timestamp, filter::MatchEventOptions};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::lines::Chunks;
use crate::store::{self, Store};

/// How long a caller may take for one chunk. While it is read, the store's file cannot reuse room.
const IDLE: Duration = Duration::from_secs(300);
/// Kinds and authors that may be named.
const MOST_NAMED: usize = 1_000;

/// Which events are wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    filter: Filter,
    withheld: HashSet<EventId>,
    now: Timestamp,
}

impl Wanted {
    /// What a request says, of what is not withheld at this moment.
    pub(super) fn read(
        request: &wire::ExportRequest,
        withheld: HashSet<EventId>,
        now: Timestamp,
    ) -> Result<Self, Status> {
        if request.kinds.len() > MOST_NAMED || request.authors.len() > MOST_NAMED {
            let reason = format!("at most {MOST_NAMED} kinds and authors can be named");
            return Err(Status::invalid_argument(reason));
        }
        let mut filter = Filter::new();
        // One that names none would match nothing.
        if !request.kinds.is_empty() {
            let kind = |kind: &u32| u16::try_from(*kind).map(Kind::from_u16);
            let kinds = request
                .kinds
                .iter()
                .map(kind)
                .collect::<Result<Vec<_>, _>>();
            let kinds = kinds.map_err(|_| Status::invalid_argument("a kind is at most 65535"))?;
            filter = filter.kinds(kinds);
        }
        if !request.authors.is_empty() {
            let author = |author: &Vec<u8>| Npub::from_slice(author).map(store::public_key);
            let authors = request.authors.iter().map(author);
            filter = filter.authors(authors.collect::<Result<Vec<_>, _>>()?);
        }
        if let Some(since) = request.since {
            filter = filter.since(Timestamp::from(since));
        }
        if let Some(until) = request.until {
            filter = filter.until(Timestamp::from(until));
        }
        Ok(Self {
            filter,
            withheld,
            now,
        })
    }

    fn has(&self, event: &Event) -> bool {
        self.filter.match_event(event, MatchEventOptions::new())
            && !event.is_expired_at(self.now)
            && !self
                .withheld
                .contains(&EventId::from_bytes(event.id.to_bytes()))
    }
}

/// Gives what is wanted to one caller, who has `room` for as long as that takes.
pub(super) async fn run(
    store: &Store,
    wanted: Wanted,
    room: OwnedSemaphorePermit,
) -> Result<BoxStream<'static, Result<wire::ExportResponse, Status>>, Status> {
    let events = store.snapshot().await;
    let events = events.map_err(|error| Status::internal(error.to_string()))?;
    let mut chunks = Chunks::read(move |see| {
        let read = events.each(|event| !wanted.has(event) || see(event.as_json()));
        read.map_err(|error| Status::internal(error.to_string()))
    });
    let (answers, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        let _room = room;
        while let Some(events) = chunks.next().await {
            let answer = Ok(wire::ExportResponse { events });
            match timeout(IDLE, answers.send(answer)).await {
                Ok(Ok(())) => {}
                // Gone.
                Ok(Err(_)) => return,
                Err(_) => {
                    tracing::warn!("an export was ended: its caller read nothing for {IDLE:?}");
                    return;
                }
            }
        }
        if let Err(error) = chunks.end().await {
            tracing::warn!(%error, "an export failed");
            let _ = answers.send(Err(error)).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

#[cfg(test)]
mod tests {
    use nostr::{
        Keys, Tag,
        event::{EventBuilder, FinalizeEvent},
    };

    use super::*;

    fn event(keys: &Keys, kind: u16, at: u64, tags: &[[&str; 2]]) -> Event {
        let tags = tags.iter().map(|tag| Tag::parse(*tag).unwrap());
        let builder = EventBuilder::new(Kind::from_u16(kind), "").tags(tags);
        let builder = builder.custom_created_at(Timestamp::from(at));
        builder.finalize(keys).unwrap()
    }

    fn wanted(request: &wire::ExportRequest, withheld: &[&Event]) -> Wanted {
        let ids = withheld.iter();
        let ids = ids.map(|event| EventId::from_bytes(event.id.to_bytes()));
        Wanted::read(request, ids.collect(), Timestamp::from(1_000)).unwrap()
    }

    #[test]
    fn what_is_asked_for_and_served_is_given() {
        let (a, b) = (Keys::generate(), Keys::generate());
        let one = event(&a, 1, 10, &[]);
        let other = event(&b, 30617, 20, &[["d", "x"]]);
        let expired = event(&a, 1, 10, &[["expiration", "999"]]);
        let lasting = event(&a, 1, 10, &[["expiration", "1001"]]);
        let all = wire::ExportRequest::default();
        for (event, given) in [
            (&one, true),
            (&other, true),
            (&expired, false),
            (&lasting, true),
        ] {
            assert_eq!(wanted(&all, &[]).has(event), given);
        }
        assert!(!wanted(&all, &[&one]).has(&one) && wanted(&all, &[&one]).has(&other));
        let author = a.public_key().to_bytes().to_vec();
        for (request, given) in [
            (
                wire::ExportRequest {
                    kinds: vec![1, 7],
                    ..all.clone()
                },
                [true, false],
            ),
            (
                wire::ExportRequest {
                    authors: vec![author],
                    ..all.clone()
                },
                [true, false],
            ),
            (
                wire::ExportRequest {
                    since: Some(20),
                    ..all.clone()
                },
                [false, true],
            ),
            (
                wire::ExportRequest {
                    until: Some(19),
                    ..all.clone()
                },
                [true, false],
            ),
        ] {
            let wanted = wanted(&request, &[]);
            assert_eq!(
                [&one, &other].map(|event| wanted.has(event)),
                given,
                "{request:?}"
            );
        }
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused() {
        let all = wire::ExportRequest::default();
        for bad in [
            wire::ExportRequest {
                kinds: vec![70_000],
                ..all.clone()
            },
            wire::ExportRequest {
                kinds: vec![1; MOST_NAMED + 1],
                ..all.clone()
            },
            wire::ExportRequest {
                authors: vec![vec![1; 31]],
                ..all
            },
        ] {
            let refused = Wanted::read(&bad, HashSet::new(), Timestamp::from(0));
            assert_eq!(refused.unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
