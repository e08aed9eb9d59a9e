//! Kind 62 carried out: everything of its author goes, stored, waiting and held.

use std::sync::{Arc, atomic::Ordering};

use grasp_proto::words::{EventId, Npub};
use nostr::{Event, Filter, Timestamp};

use super::{Admit, Failed, Wish, known};
use crate::{
    nip34::{ANNOUNCEMENT, DELETION, Meaning, VANISH, author_of, id_of},
    store::{Saved, public_key},
    verdict::Verdict,
};

/// Events of the author read at once.
const PAGE: usize = 200;

impl Admit {
    pub(super) async fn vanish(&self, request: Arc<Event>) -> Result<Verdict, Failed> {
        let (author, id) = (author_of(&request), id_of(&request));
        let requests = &self.release.requests;
        if requests.acts() {
            // The gate first, so that nothing of the author's comes in while the rest goes.
            requests.vanishes(author, request.created_at, id).await?;
            self.deletions.fetch_add(1, Ordering::SeqCst);
        }
        let saved = self.release.serve(&request).await?;
        if requests.acts() {
            // Whoever asked may be gone before it is done: it is done all the same.
            let door = self.clone();
            let work = async move { door.carry_out_vanishing(&request).await };
            tokio::spawn(work).await??;
        }
        Ok(match saved {
            Saved::New => Verdict::served(),
            _ => known(),
        })
    }

    /// Everything of an author that was made no later than the request goes, but for the request.
    /// Repeatable: what is gone already is not there.
    async fn carry_out_vanishing(&self, request: &Event) -> Result<(), Failed> {
        let (author, id, until) = (author_of(request), id_of(request), request.created_at);
        let whole = self.release.store.apart();
        // What leans on the author's repositories is found through what else the author wrote.
        let own = Filter::new().author(public_key(author)).until(until);
        for announcement in whole.items(own.kind(ANNOUNCEMENT)).await? {
            self.delete_id(&announcement.0, author, Wish::Vanish)
                .await?;
        }
        loop {
            let page = Filter::new()
                .author(public_key(author))
                .until(until)
                .limit(PAGE);
            let mut page = whole.query(page).await?;
            page.retain(|event| id_of(event) != id);
            if page.is_empty() {
                break;
            }
            let plain: Vec<EventId> = page.iter().filter(|e| is_plain(e)).map(id_of).collect();
            for event in page.iter().filter(|event| is_plain(event)) {
                self.release.bury(event).await?;
            }
            whole.remove(plain).await?;
            for event in &page {
                match is_plain(event) {
                    true => self.release.live.removed(event),
                    false => {
                        self.delete_id(&id_of(event), author, Wish::Vanish).await?;
                    }
                }
            }
        }
        self.drop_all_waiting(author, until).await?;
        self.release.holding.vanish(author, until).await?;
        Ok(self.release.requests.carried_out(id).await?)
    }

    /// What an author has in purgatory.
    async fn drop_all_waiting(&self, author: Npub, until: Timestamp) -> Result<(), Failed> {
        let purgatory = &self.release.purgatory;
        let mut waiting: Vec<EventId> = purgatory
            .announcements
            .by_owner(&author)
            .into_iter()
            .filter(|entry| entry.announcement.event.created_at <= until)
            .map(|entry| entry.announcement.id())
            .collect();
        let states = purgatory.states.of_author(&author).into_iter();
        let states = states.filter(|entry| entry.state.event.created_at <= until);
        waiting.extend(states.map(|entry| entry.state.id()));
        let requests = purgatory.pull_requests.of_author(&author).into_iter();
        let requests = requests.filter(|request| request.event.created_at <= until);
        waiting.extend(requests.map(|request| request.id()));
        for id in waiting {
            self.delete_id(&id, author, Wish::Vanish).await?;
        }
        Ok(())
    }

    /// Goes on with the requests to delete and to vanish that were being carried out when the process
    /// ended.
    pub async fn resume_requests(&self) {
        let pending = match self.release.requests.pending().await {
            Ok(pending) => pending,
            Err(error) => {
                tracing::error!(%error, "requests that were half carried out stay so");
                return;
            }
        };
        for id in pending {
            if let Err(error) = self.resume_request(id).await {
                tracing::error!(request = %id, %error, "is not carried out to the end");
            }
        }
    }

    async fn resume_request(&self, id: EventId) -> Result<(), Failed> {
        match self.release.store.apart().by_id(&id).await? {
            Some(request) if request.kind == DELETION => {
                self.deletion(Arc::new(request)).await?;
            }
            Some(request) if request.kind == VANISH => {
                self.vanish(Arc::new(request)).await?;
            }
            // It was noted, and did not get into the store: nobody was told that it had.
            _ => self.release.requests.forget(id).await?,
        }
        Ok(())
    }
}

/// Whether nothing but the event itself goes with it.
fn is_plain(event: &Event) -> bool {
    matches!(
        Meaning::of(event.kind),
        Meaning::Other | Meaning::GraspList | Meaning::Vanish
    )
}
