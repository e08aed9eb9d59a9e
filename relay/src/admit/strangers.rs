//! Kinds that anybody may store: what those store who have nothing else here is bounded, and has an end.

use std::sync::Arc;

use futures::future::BoxFuture;
use grasp_proto::words::EventId;
use nostr::{Event, Filter};

use super::{Admit, Failed};
use crate::{
    nip34::{DELETION, GRASP_LIST, author_of, id_of},
    policy::related,
    store::StoreError,
    verdict::{Origin, Verdict},
};

/// Events of an author that are read at once to see whether one makes the author belong here.
const PAGE: usize = 100;
/// So often at most: whoever has stored more of what does not count was let do so.
const PAGES: usize = 10;
/// Events that one sweep sees to at most.
const A_SWEEP: usize = 2_000;

impl Admit {
    /// Whether its author belongs here: by a repository, or by something that is served and that not
    /// everybody may store.
    async fn belongs_by_author(&self, event: &Event) -> Result<bool, StoreError> {
        if event.pubkey == self.bounds.service || self.release.repositories.knows(&author_of(event))
        {
            return Ok(true);
        }
        let counts = |own: &Event| related::relates(own.kind) && own.kind != GRASP_LIST;
        let mut page = Filter::new().author(event.pubkey).limit(PAGE);
        for _ in 0..PAGES {
            let own = self.release.store.query(page.clone()).await?;
            if own.iter().any(counts) {
                return Ok(true);
            }
            match own.last() {
                Some(oldest) if own.len() >= PAGE => page = page.until(oldest.created_at),
                _ => break,
            }
        }
        Ok(false)
    }

    /// Keeps an event of a kind that anybody may store, as `keep` does, if there is room for it.
    pub(super) async fn of_anybody(
        &self,
        event: Arc<Event>,
        origin: Origin,
        keep: BoxFuture<'_, Result<Verdict, Failed>>,
    ) -> Result<Verdict, Failed> {
        let (id, whole) = (id_of(&event), self.release.store.apart());
        let is_free = origin == Origin::Operator
            || whole.has(&id).await?
            || self.belongs_by_author(&event).await?;
        if is_free {
            return keep.await;
        }
        let replaced = match event.kind == GRASP_LIST {
            true => whole.version(GRASP_LIST, author_of(&event), "").await?,
            false => None,
        };
        let replaced = replaced.map(|replaced| id_of(&replaced));
        let taken = self.strangers.take(&event, origin.client(), replaced);
        if let Err(full) = taken.await? {
            return Ok(Verdict::rejected(format!("rate-limited: {full}")));
        }
        let verdict = keep.await;
        if !whole.has(&id).await? {
            self.strangers.give_back(&id).await?;
        }
        if let Some(replaced) = replaced
            && !whole.has(&replaced).await?
        {
            self.strangers.give_back(&replaced).await?;
        }
        verdict
    }

    /// What strangers stored and whose time has come counts no more, and goes if its author is still one.
    pub(crate) async fn let_strangers_go(&self) -> Result<(), Failed> {
        for id in self.strangers.due(A_SWEEP).await? {
            self.let_stranger_go(&id).await?;
            self.strangers.give_back(&id).await?;
        }
        Ok(())
    }

    async fn let_stranger_go(&self, id: &EventId) -> Result<(), Failed> {
        let whole = self.release.store.apart();
        let Some(event) = whole.by_id(id).await? else {
            return Ok(());
        };
        // Requests to delete age by themselves.
        if event.kind == DELETION || self.belongs_by_author(&event).await? {
            return Ok(());
        }
        whole.remove([*id]).await?;
        self.release.live.removed(&event);
        Ok(())
    }
}
