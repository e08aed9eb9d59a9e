//! What was taken out of service, for an operator: to list, to bring back, to throw away.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt, stream, stream::BoxStream};
use grasp_proto::{
    contract::{git::Place, relay as wire, repository},
    words::{EventId, Identifier, Npub, RepoId},
};
use nostr::Event;
use tonic::Status;

use crate::{
    clock::Moment,
    holding::{Hold, Reason, give_back},
    nip34::author_of,
    policy::curation::Curation,
    release::{Release, ReleaseError},
    repository::Standing,
    serial::{Serial, Turn},
    verdict::{Door, Origin},
};

/// Repositories in one message.
const BATCH: usize = 200;

/// Over what is held.
#[derive(Clone)]
pub(super) struct HoldingService {
    pub release: Release,
    pub serial: Serial,
    pub curation: Curation,
    pub door: Arc<dyn Door>,
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn unless_away(error: ReleaseError) -> Status {
    match error.is_unreachable() {
        true => Status::unavailable(error.to_string()),
        false => internal(error),
    }
}

fn reason(reason: Reason) -> wire::HeldReason {
    match reason {
        Reason::Deleted => wire::HeldReason::Deleted,
        Reason::MovedAway => wire::HeldReason::MovedAway,
        Reason::Vanished => wire::HeldReason::Vanished,
        Reason::Expired => wire::HeldReason::Expired,
        Reason::Unknown => wire::HeldReason::Unspecified,
    }
}

/// What the repositories that were moved aside take on disk and no others share, by incarnation.
type Sizes = HashMap<(RepoId, String), u64>;

impl HoldingService {
    /// What is known of it; nothing, where the git storage is away.
    async fn sizes(&self, owner: Option<Npub>, identifier: Option<Identifier>) -> Sizes {
        let mut sizes = Sizes::new();
        let Ok(mut batches) = self.release.git.describe(owner, identifier).await else {
            return sizes;
        };
        while let Some(Ok(batch)) = batches.next().await {
            for one in batch {
                let is_aside = one.place() == Place::Retired;
                let Some(repo) = repository(one.repository).ok().filter(|_| is_aside) else {
                    continue;
                };
                let pool = if one.pool_views == 1 {
                    one.pool_bytes
                } else {
                    0
                };
                sizes.insert((repo, one.incarnation), one.bytes + pool);
            }
        }
        sizes
    }

    async fn describe_one(&self, repo: &RepoId, hold: &Hold) -> Result<wire::Held, Status> {
        let identifier = Some(repo.identifier.clone());
        let sizes = self.sizes(Some(repo.owner), identifier).await;
        self.describe(repo, hold, &sizes).await
    }

    async fn describe(
        &self,
        repo: &RepoId,
        hold: &Hold,
        sizes: &Sizes,
    ) -> Result<wire::Held, Status> {
        let incarnation = hold.incarnations.last().cloned().unwrap_or_default();
        let size = sizes.get(&(repo.clone(), incarnation.clone()));
        let until = self.release.holding.until(hold);
        Ok(wire::Held {
            repository: Some(repo.into()),
            since_millis: hold.since.as_millis(),
            until_millis: until.as_millis(),
            reason: reason(hold.reason).into(),
            events: self
                .release
                .holding
                .events_of(hold)
                .await
                .map_err(internal)?,
            incarnation,
            git_bytes: size.copied().unwrap_or_default(),
        })
    }

    /// All that is held, the oldest first.
    pub(super) async fn list(
        self,
        request: &wire::HoldingRequest,
    ) -> Result<BoxStream<'static, Result<wire::HoldingResponse, Status>>, Status> {
        let owner = match request.owner.is_empty() {
            true => None,
            false => Some(Npub::from_slice(&request.owner)?),
        };
        let identifier = match request.identifier.as_str() {
            "" => None,
            name => Some(Identifier::parse(name)?),
        };
        let sizes = Arc::new(self.sizes(owner, identifier.clone()).await);
        let is_asked_for = move |repo: &RepoId| {
            owner.is_none_or(|owner| repo.owner == owner)
                && identifier.iter().all(|name| *name == repo.identifier)
        };
        let begun: Option<(Moment, RepoId)> = None;
        let pages = stream::try_unfold((self, begun), move |(service, after)| {
            let (is_asked_for, sizes) = (is_asked_for.clone(), sizes.clone());
            async move {
                let page = service.release.holding.from(after.as_ref(), BATCH);
                let Some((last, hold)) = page.last() else {
                    return Ok::<_, Status>(None);
                };
                let after = Some((hold.since, last.clone()));
                let mut held = Vec::new();
                for (repo, hold) in page.iter().filter(|(repo, _)| is_asked_for(repo)) {
                    held.push(service.describe(repo, hold, &sizes).await?);
                }
                Ok(Some((wire::HoldingResponse { held }, (service, after))))
            }
        });
        Ok(pages.boxed())
    }

    /// The hold that is meant.
    fn find(
        &self,
        message: Option<wire::Repository>,
        since_millis: u64,
    ) -> Result<(RepoId, Hold), Status> {
        let repo = repository(message)?;
        let hold = self.release.holding.of(&repo);
        let hold =
            hold.filter(|hold| matches!(since_millis, 0) || hold.since.as_millis() == since_millis);
        match hold {
            None => Err(Status::not_found("nothing of the kind is held")),
            Some(hold) if hold.taking => Err(Status::unavailable(
                "it is being taken out of service; try again",
            )),
            Some(hold) => Ok((repo, hold)),
        }
    }

    async fn announcement(&self, repo: &RepoId, hold: &Hold) -> Result<Event, Status> {
        let gone = |why: &str| Status::failed_precondition(why.to_owned());
        if self
            .release
            .repositories
            .standing(repo)
            .is_some_and(Standing::is_here)
        {
            return Err(gone(
                "it is announced again: what belongs to it comes back by itself",
            ));
        }
        let id = hold.announcement.as_deref();
        let id = id.and_then(|id| EventId::from_hex(id).ok());
        let event = match id {
            Some(id) => self.release.holding.event(&id).await.map_err(internal)?,
            None => None,
        };
        event.ok_or_else(|| {
            gone(match hold.reason {
                Reason::Vanished => "its announcement is not held: its author asked to vanish",
                _ => "its announcement is not held: its owner must announce it again",
            })
        })
    }

    /// How many of the events that are held would come back, by themselves, and how many not.
    async fn forecast(&self, repo: &RepoId, announcement: EventId) -> Result<(u64, u64), Status> {
        let (mut back, mut left) = (0, 0);
        for id in self.release.holding.held_of(repo).await.map_err(internal)? {
            let Some(event) = self.release.holding.event(&id).await.map_err(internal)? else {
                continue;
            };
            let kept_out = self.release.kept_out_by(&event).await.map_err(internal)?;
            let is_banned = self.curation.rules().bans(&author_of(&event));
            match id != announcement && (kept_out.is_some() || is_banned) {
                true => left += 1,
                false => back += 1,
            }
        }
        Ok((back, left))
    }

    /// As if its announcement had never gone.
    pub(super) async fn restore(
        &self,
        request: wire::RestoreRequest,
    ) -> Result<wire::RestoreResponse, Status> {
        let (repo, hold) = self.find(request.repository, request.since_millis)?;
        let held = self.describe_one(&repo, &hold).await?;
        let announcement = self.announcement(&repo, &hold).await?;
        if self
            .release
            .kept_out_by(&announcement)
            .await
            .map_err(internal)?
            .is_some()
        {
            return Err(Status::failed_precondition(
                "its author's request to delete the announcement stands: the author can announce anew",
            ));
        }
        let id = crate::nip34::id_of(&announcement);
        if request.dry_run {
            let (events_back, events_left) = self.forecast(&repo, id).await?;
            return Ok(wire::RestoreResponse {
                events_back,
                events_left,
                served: !hold.incarnations.is_empty(),
                held: Some(held),
            });
        }
        self.release
            .holding
            .may_return(&repo)
            .await
            .map_err(internal)?;
        let verdict = self.door.admit(announcement, Origin::Operator).await;
        if !verdict.ok {
            return Err(Status::failed_precondition(verdict.message.clone()));
        }
        let served = self.release.repositories.standing(&repo) == Some(Standing::Active);
        if served {
            give_back::go_on(&self.release, &self.serial, &self.curation).await;
        }
        let left = match self.release.holding.of(&repo) {
            Some(hold) => self
                .release
                .holding
                .events_of(&hold)
                .await
                .map_err(internal)?,
            None => 0,
        };
        Ok(wire::RestoreResponse {
            events_back: held.events.saturating_sub(left),
            events_left: left,
            served,
            held: Some(held),
        })
    }

    /// Away for good.
    pub(super) async fn eject(
        &self,
        request: wire::EjectRequest,
    ) -> Result<wire::EjectResponse, Status> {
        let (repo, hold) = self.find(request.repository, request.since_millis)?;
        let held = vec![self.describe_one(&repo, &hold).await?];
        if !request.dry_run {
            let (release, queue) = (self.release.clone(), repo.identifier.clone());
            let work = async move { release.eject(&repo).await };
            let ejected = self.serial.run(&queue, Turn::Normal, work).await;
            ejected.map_err(unless_away)?;
        }
        Ok(wire::EjectResponse { held })
    }
}
