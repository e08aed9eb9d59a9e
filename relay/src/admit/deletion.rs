//! Kind 5 carried out: what goes, in the queue of its identifier.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use grasp_proto::words::{EventId, Identifier, Npub, RepoId};
use nostr::{Event, Kind, Timestamp};

use super::{Admit, Failed, Wish, known};
use crate::{
    holding::{Reason, STEP},
    nip34::{self, ANNOUNCEMENT, Meaning, STATE, author_of, id_of, pull_request::PullRequest},
    policy::deletion::{self, Target},
    release::Release,
    requests,
    serial::Turn,
    store::{Saved, StoreError},
    verdict::Verdict,
};

impl Admit {
    pub(super) async fn deletion(&self, request: Arc<Event>) -> Result<Verdict, Failed> {
        let (id, requests) = (id_of(&request), &self.release.requests);
        // Noted first, so that a start finds what is not carried out to the end.
        if requests.came(id).await? == requests::Standing::Gate {
            return Ok(known());
        }
        // Stored before its targets go, so that none comes back meanwhile.
        let saved = self.release.serve(&request).await?;
        if requests.acts() {
            self.deletions.fetch_add(1, Ordering::SeqCst);
            self.carry_out(&request).await?;
        }
        requests.carried_out(id).await?;
        Ok(match saved {
            Saved::New => Verdict::served(),
            _ => known(),
        })
    }

    /// Deletes what a request names.
    async fn carry_out(&self, request: &Event) -> Result<(), Failed> {
        let (author, wish) = (author_of(request), Wish::Delete(id_of(request)));
        let mut addresses: BTreeMap<Kind, BTreeSet<String>> = BTreeMap::new();
        for target in deletion::targets(request) {
            match target {
                Target::Id(id) => self.delete_id(&id, author, wish).await?,
                Target::Address {
                    kind,
                    identifier,
                    until,
                } => {
                    let kind = Kind::from(kind);
                    for id in self.versions(kind, author, &identifier, until).await? {
                        self.delete_id(&id, author, wish).await?;
                    }
                    addresses.entry(kind).or_default().insert(identifier);
                }
            }
        }
        for (kind, names) in addresses {
            self.forget_versions(kind, &names, request).await?;
        }
        Ok(())
    }

    /// Something is about to go by a wish. Noted first: what is left after a kill would not show it any
    /// more.
    pub(super) async fn takes_effect(&self, wish: Wish) -> Result<(), Failed> {
        match wish {
            Wish::Delete(request) => Ok(self.release.had_an_effect(request).await?),
            Wish::Vanish | Wish::Expire => Ok(()),
        }
    }

    /// The versions of its author's addresses that are held, made no later than a request, are held no
    /// more. What is held of the kind is looked through once, however many addresses are named.
    async fn forget_versions(
        &self,
        kind: Kind,
        names: &BTreeSet<String>,
        request: &Event,
    ) -> Result<(), Failed> {
        let holding = &self.release.holding;
        let (author, until) = (author_of(request), request.created_at);
        let mut after = None;
        let has_versions = kind.is_addressable() || kind.is_replaceable();
        if !is_forgotten(kind) || !has_versions {
            return Ok(());
        }
        loop {
            let page = holding.of_author(author, Some(kind), after, STEP).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(*last);
            for (_, id) in page {
                let Some(event) = holding.event(&id).await? else {
                    continue;
                };
                let name = nip34::values(&event, "d").next().unwrap_or_default();
                if names.contains(name) && event.created_at <= until {
                    self.takes_effect(Wish::Delete(id_of(request))).await?;
                    holding.forget(&[id]).await?;
                }
            }
        }
    }

    /// The versions of an address that are here, stored or waiting, made no later than `until`.
    pub(super) async fn versions(
        &self,
        kind: Kind,
        author: Npub,
        identifier: &str,
        until: Timestamp,
    ) -> Result<Vec<EventId>, Failed> {
        let Release {
            store, purgatory, ..
        } = &self.release;
        let stored = store.apart().version(kind, author, identifier).await?;
        // One that is replaceable without a name may have one, and is looked for by it from then on.
        let has_name = |event: &Event| {
            let address = event.coordinate();
            address.is_some_and(|address| address.identifier == identifier)
        };
        let stored = stored.filter(has_name);
        // What waits first: what is stored goes with all that leans on it when it alone is left.
        let mut found: Vec<Arc<Event>> = Vec::new();
        if let Ok(identifier) = Identifier::parse(identifier) {
            if kind == STATE {
                let waiting = purgatory.states.by_author(&identifier, &author);
                found.extend(waiting.into_iter().map(|entry| entry.state.event));
            } else if kind == ANNOUNCEMENT {
                let repo = RepoId {
                    owner: author,
                    identifier,
                };
                let waiting = purgatory.announcements.get(&repo);
                found.extend(waiting.into_iter().map(|entry| entry.announcement.event));
            }
        }
        found.extend(stored.map(Arc::new));
        found.retain(|event| event.created_at <= until);
        Ok(found.iter().map(|event| id_of(event)).collect())
    }

    /// Deletes one event, stored, waiting or held, if it is by this author.
    pub(super) async fn delete_id(
        &self,
        id: &EventId,
        author: Npub,
        wish: Wish,
    ) -> Result<(), Failed> {
        let door = self.clone();
        let id = *id;
        let work = async move { door.delete_in_turn(&id, author, wish).await };
        match self.queue_of(&id).await? {
            Some(identifier) => self.serial.run(&identifier, Turn::Normal, work).await?,
            None => work.await?,
        }
        match self.release.holding.event(&id).await? {
            Some(event) if author_of(&event) == author && is_forgotten(event.kind) => {
                self.takes_effect(wish).await?;
                self.release.holding.forget(&[id]).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// An event that has expired by its own word goes with what it carries, wherever it is. Repeatable.
    ///
    /// # Errors
    /// Something of ours failed: it can be tried again.
    pub async fn expire(&self, id: &EventId) -> Result<(), Failed> {
        let Release {
            store, purgatory, ..
        } = &self.release;
        let announced = purgatory.announcements.repo_of(id);
        let waiting = purgatory.states.get(id).map(|entry| entry.state.author);
        let waiting = waiting.or_else(|| announced.map(|repo| repo.owner));
        let requested = purgatory
            .pull_requests
            .get(id)
            .and_then(|entry| entry.request);
        let waiting = waiting.or_else(|| requested.map(|request| request.author));
        let author = match waiting {
            Some(author) => Some(author),
            None => match store.apart().by_id(id).await? {
                Some(stored) => Some(author_of(&stored)),
                None => self
                    .release
                    .holding
                    .event(id)
                    .await?
                    .map(|held| author_of(&held)),
            },
        };
        let Some(author) = author else {
            return Ok(());
        };
        self.delete_id(id, author, Wish::Expire).await?;
        tracing::info!(event = %id, "expired by its own word");
        Ok(())
    }

    /// The identifier in whose queue the event of this id is decided on.
    pub(super) async fn queue_of(&self, id: &EventId) -> Result<Option<Identifier>, StoreError> {
        let purgatory = &self.release.purgatory;
        if let Some(repo) = purgatory.announcements.repo_of(id) {
            return Ok(Some(repo.identifier));
        }
        if let Some(entry) = purgatory.states.get(id) {
            return Ok(Some(entry.state.identifier));
        }
        if let Some(request) = purgatory.pull_requests.get(id).and_then(|e| e.request) {
            return Ok(request.identifiers().into_iter().next());
        }
        let Some(event) = self.release.store.apart().by_id(id).await? else {
            return Ok(None);
        };
        Ok(match Meaning::of(event.kind) {
            Meaning::Announcement | Meaning::State => nip34::identifier_of(&event).ok(),
            // A promotion puts its ref, and is not to do so while it goes.
            Meaning::PullRequest => match PullRequest::read(Arc::new(event)) {
                Ok(mut request) => {
                    request.repositories = self.release.offered_to(&request).await?;
                    request.identifiers().into_iter().next()
                }
                Err(_) => None,
            },
            _ => None,
        })
    }

    /// What the event of this id is now, waiting or stored, is decided here: it may have been
    /// released since it was looked up.
    pub(super) async fn delete_in_turn(
        &self,
        id: &EventId,
        author: Npub,
        wish: Wish,
    ) -> Result<(), Failed> {
        let Release {
            store, purgatory, ..
        } = &self.release;
        if let Some(repo) = purgatory.announcements.repo_of(id)
            && repo.owner == author
        {
            self.takes_effect(wish).await?;
            let holding = &self.release.holding;
            let waiting = purgatory.announcements.get(&repo);
            if let Some(entry) = waiting.filter(|_| holding.holds(&repo)) {
                holding.leaves(&repo, &entry.announcement.event).await?;
            }
            return Ok(self.release.drop_waiting(&repo).await?);
        }
        // What the operator's lists withhold is its author's all the same.
        if let Some(stored) = store.apart().by_id(id).await? {
            let may_go = matches!(wish, Wish::Vanish | Wish::Expire)
                || deletion::can_be_deleted(stored.kind);
            if author_of(&stored) == author && may_go {
                self.takes_effect(wish).await?;
                self.delete_stored(id, &stored, wish).await?;
            }
            return Ok(());
        }
        if let Some(entry) = purgatory.states.get(id)
            && entry.state.author == author
        {
            self.takes_effect(wish).await?;
            self.deletes_version(&entry.state.event, wish).await?;
            purgatory.remove_state(id);
            purgatory.flush().await?;
            if self.release.going_on.contains_key(id) {
                // Refs that its release has moved so far are to move back.
                let (name, author) = (&entry.state.identifier, &entry.state.author);
                let trusting = self.release.repositories.trusting(name, author);
                self.release.realign_all(trusting).await;
            }
            return Ok(());
        }
        let entry = purgatory.pull_requests.get(id);
        let request = entry.and_then(|entry| entry.request);
        if let Some(request) = request.filter(|request| request.author == author) {
            self.takes_effect(wish).await?;
            self.forget_pull_request(&request).await?;
            self.release.settle_refs(id).await;
        }
        Ok(())
    }

    /// Those before it stay out as well: who asks to vanish has that by the request itself.
    async fn deletes_version(&self, event: &Event, wish: Wish) -> Result<(), Failed> {
        match wish {
            Wish::Delete(_) | Wish::Expire => {
                Ok(self.release.holding.delete_version(event).await?)
            }
            Wish::Vanish => Ok(()),
        }
    }

    /// A pull request that is deleted takes along its refs.
    pub(super) async fn forget_pull_request(&self, request: &PullRequest) -> Result<(), Failed> {
        let id = request.id();
        let mut repos = self.release.repositories_of(request).await;
        let waiting = self.release.purgatory.remove_pull_request(&id);
        let pushed = waiting
            .into_iter()
            .flat_map(|entry| entry.pushed.into_keys());
        // Those in its author's own space are noted there.
        let pushed = pushed.filter(|address| !address.is_prs());
        repos.extend(pushed.map(|address| address.repo));
        self.release.purgatory.owe_refs(id, &repos).await?;
        self.release.purgatory.flush().await?;
        Ok(())
    }

    async fn delete_stored(&self, id: &EventId, stored: &Event, wish: Wish) -> Result<(), Failed> {
        let repositories = &self.release.repositories;
        let store = self.release.store.apart();
        let identifier = nip34::identifier_of(stored);
        match (Meaning::of(stored.kind), identifier) {
            (Meaning::Announcement, Ok(identifier)) => {
                let owner = author_of(stored);
                let repo = RepoId { owner, identifier };
                // Served here or elsewhere, withheld, or replaced by one that waits: all goes that leans
                // on it.
                let reason = match wish {
                    Wish::Delete(_) => Reason::Deleted,
                    Wish::Vanish => Reason::Vanished,
                    Wish::Expire => Reason::Expired,
                };
                return Ok(self.release.delist(&repo, stored, reason).await?);
            }
            (Meaning::State, Ok(identifier)) => {
                self.release.bury(stored).await?;
                self.deletes_version(stored, wish).await?;
                self.release.purgatory.remove_state(id);
                store.remove([*id]).await?;
                let trusting = repositories.trusting(&identifier, &author_of(stored));
                self.release.realign_all(trusting).await;
            }
            (Meaning::PullRequest, _) => {
                if let Ok(request) = PullRequest::read(Arc::new(stored.clone())) {
                    self.forget_pull_request(&request).await?;
                }
                self.release.bury(stored).await?;
                store.remove([*id]).await?;
                // Carried out by the sweep if it cannot be now.
                self.release.settle_refs(id).await;
            }
            (Meaning::Deletion, _) => {
                store.remove([*id]).await?;
                self.release.requests.forget(*id).await?;
            }
            _ => {
                self.release.bury(stored).await?;
                store.remove([*id]).await?;
            }
        }
        self.release.live.removed(stored);
        Ok(())
    }
}

/// Whether what is held of a kind goes with its deletion. Announcements stay, so that an operator sees
/// what it was that was deleted; the request keeps them from coming back.
fn is_forgotten(kind: Kind) -> bool {
    kind != ANNOUNCEMENT
}
