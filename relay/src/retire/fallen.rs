//! What falls with an announcement: everything that was accepted only because of it.
//!
//! From the announcement references are followed, both ways, through what they connect, but never
//! through what stands by itself – what refers to a repository that is still served, a state that an
//! announcement here authorises. So as much is looked at as was accepted because of the announcement,
//! and its nearest neighbours. Of each event its references are kept, not the event. Then what
//! stands lends its standing to its neighbours, and these to theirs, by the rules by which they were
//! accepted ([`related`]); the others fall. What has gone by itself connects as if it were still there
//! ([`crate::holding::tombstones`]).

mod standing;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use grasp_proto::words::{EventId, Identifier, RepoId};
use nostr::{Event, Filter, filter::SingleLetterTag};

use super::RetireError;
use crate::{
    holding::tombstones::{Tombstone, states_of},
    nip34::{self, Meaning, id_of, repository_coordinate},
    policy::{deletion::split_address, related},
    release::Release,
    repository::{Repositories, Standing},
    store::StoreError,
};

/// Events looked through for one announcement; what is connected with it by more stays.
const LOOKED_THROUGH: usize = 500_000;
/// References kept of them; what would go beyond stays, with all it refers to.
const REFERENCES: usize = 4_000_000;
/// Addresses other than repositories' that are followed.
const ADDRESSES: usize = 20_000;
/// Ids or addresses asked for at once.
const AT_ONCE: usize = 100;

/// Other repositories that what falls together may come back with: the first ones count.
const ALSO_HELD_FOR: usize = 16;

/// Events, and the held repositories, other than the one they fall with, that each may come back with.
pub type AlsoHeldFor = HashMap<EventId, Arc<BTreeSet<RepoId>>>;

/// All that falls with an announcement, but the announcement itself.
#[derive(Debug, Default)]
pub struct Fallen {
    /// Events.
    pub events: BTreeSet<EventId>,
    /// Repositories that are announced no more: those that were served for the fallen one's sake.
    pub repositories: BTreeSet<RepoId>,
    /// Events that may come back with other repositories, which are held: those that refer to them,
    /// and what falls with these by their references.
    pub also_held_for: AlsoHeldFor,
}

/// An event, or what is left of one that has gone by itself.
#[derive(Debug)]
struct Node {
    meaning: Meaning,
    /// It has gone already, and connects others.
    is_buried: bool,
    refers_to: Vec<EventId>,
    /// Places in [`Search::addresses`].
    names: Vec<usize>,
    /// The held repositories that it refers to; not of what stands.
    held: Vec<RepoId>,
    stands: bool,
}

impl Node {
    fn new(meaning: Meaning, is_buried: bool, refers_to: Vec<EventId>, stands: bool) -> Self {
        Self {
            meaning,
            is_buried,
            refers_to,
            names: Vec::new(),
            held: Vec::new(),
            stands,
        }
    }

    fn leans(&self) -> bool {
        leans(self.meaning)
    }
}

/// Whether it is accepted for its neighbours' sake: states and announcements are not.
pub(super) fn leans(meaning: Meaning) -> bool {
    matches!(meaning, Meaning::PullRequest | Meaning::Other)
}

/// What is read of an event or of a tombstone.
struct Seen {
    id: EventId,
    node: Node,
    address: Option<String>,
    addresses: Vec<String>,
    repositories: BTreeSet<RepoId>,
}

impl Seen {
    fn event(event: &Event, meaning: Meaning, stands: bool) -> Self {
        let refers_to = related::events(event).into_iter().collect();
        Self {
            id: id_of(event),
            node: Node::new(meaning, false, refers_to, stands),
            address: address_of(event),
            addresses: other_addresses(event),
            repositories: related::repositories(event),
        }
    }

    fn tombstone(id: EventId, tombstone: &Tombstone, stands: bool) -> Self {
        let refers_to = tombstone.events().collect();
        let addresses = tombstone.other_addresses();
        Self {
            id,
            node: Node::new(tombstone.meaning(), true, refers_to, stands),
            address: tombstone.address().map(str::to_owned),
            addresses: addresses.map(str::to_owned).collect(),
            repositories: tombstone.repositories(),
        }
    }
}

struct Search<'a> {
    release: &'a Release,
    gone: BTreeSet<RepoId>,
    nodes: Vec<Node>,
    places: HashMap<EventId, usize>,
    /// Addresses that were seen, and which of the nodes has each.
    addresses: HashMap<String, usize>,
    at_address: Vec<Option<usize>>,
    references: usize,
    unannounced: Unannounced,
    /// Whether repositories have an announcement that is kept, as far as that was looked up.
    kept: HashMap<RepoId, bool>,
    /// The announcements that are kept of an identifier, as far as they were looked up.
    projects: HashMap<Identifier, Repositories>,
}

/// What of an announcement that is in the store and not among what is announced. Such are those that
/// the operator's lists withhold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unannounced {
    /// It stands: off the list it is to be as it was.
    Stands,
    /// It is as if it were not there.
    Ignored,
}

impl Release {
    /// What was accepted only because of a repository, which is announced no more.
    pub async fn fallen(
        &self,
        repo: &RepoId,
        announcement: &Event,
        unannounced: Unannounced,
    ) -> Result<Fallen, RetireError> {
        let mut search = Search::new(self, BTreeSet::from([repo.clone()]), unannounced);
        let mut announcements = vec![announcement.clone()];
        // One that waits may be served without a repository here meanwhile.
        for standing in [Standing::Elsewhere, Standing::Waiting] {
            for owner in self.repositories.owners(&repo.identifier, standing) {
                let identifier = repo.identifier.clone();
                let other = RepoId { owner, identifier };
                if other != *repo
                    && !search.is_wanted_here(&other).await?
                    && let Some(stored) = self.store.announcement(&other).await?
                {
                    announcements.push(stored);
                    search.gone.insert(other);
                }
            }
        }
        search.run(repo, &announcements).await?;
        Ok(search.fallen(repo))
    }

    /// What was accepted only because of such a repository, or of events that fell with it and are out
    /// of the store.
    pub async fn leaning_on(
        &self,
        repo: &RepoId,
        itself: Option<EventId>,
        out: &[EventId],
        unannounced: Unannounced,
    ) -> Result<Fallen, RetireError> {
        let mut search = Search::new(self, BTreeSet::from([repo.clone()]), unannounced);
        let found = search.referring_to(out, &[repo.coordinate()]).await?;
        let found = found.into_iter().collect();
        search.follow(found, &itself.into_iter().collect()).await?;
        Ok(search.fallen(repo))
    }

    /// What was accepted only because of these events, which are kept and not to be served any more;
    /// not these themselves. What an announcement authorises stands by that.
    pub async fn fallen_with(&self, gone: &HashSet<EventId>) -> Result<Vec<EventId>, RetireError> {
        let mut search = Search::new(self, BTreeSet::new(), Unannounced::Ignored);
        search.run_from(gone).await?;
        let fallen = search.decide().into_iter();
        let leans = |id: &EventId| search.nodes[search.places[id]].leans();
        Ok(fallen.filter(leans).collect())
    }
}

impl<'a> Search<'a> {
    fn new(release: &'a Release, gone: BTreeSet<RepoId>, unannounced: Unannounced) -> Self {
        Self {
            release,
            gone,
            nodes: Vec::new(),
            places: HashMap::new(),
            addresses: HashMap::new(),
            at_address: Vec::new(),
            references: 0,
            unannounced,
            kept: HashMap::new(),
            projects: HashMap::new(),
        }
    }

    /// From events that are gone, of which nothing is lent.
    async fn run_from(&mut self, gone: &HashSet<EventId>) -> Result<(), RetireError> {
        let ids: Vec<EventId> = gone.iter().copied().collect();
        for chunk in ids.chunks(AT_ONCE) {
            let mut found = BTreeSet::new();
            let mut addresses = Vec::new();
            for event in self.release.store.by_ids(chunk).await? {
                found.extend(related::events(&event));
                addresses.extend(address_of(&event));
                for address in other_addresses(&event) {
                    found.extend(self.at(&address).await?);
                }
            }
            found.extend(self.referring_to(chunk, &addresses).await?);
            self.follow(found, gone).await?;
        }
        Ok(())
    }

    fn fallen(mut self, repo: &RepoId) -> Fallen {
        let events = self.decide();
        let also_held_for = self.also_held_for();
        self.gone.remove(repo);
        Fallen {
            events,
            repositories: self.gone,
            also_held_for,
        }
    }

    async fn run(&mut self, repo: &RepoId, gone: &[Event]) -> Result<(), RetireError> {
        let mut found: BTreeSet<EventId> = gone[1..].iter().map(id_of).collect();
        let states = Filter::new()
            .kind(nip34::STATE)
            .identifier(repo.identifier.as_str());
        found.extend(self.ids(states).await?);
        let states = [states_of(&repo.identifier)];
        found.extend(self.release.holding.buried_under(&states).await?);
        for event in gone {
            let address: Vec<String> = address_of(event).into_iter().collect();
            found.extend(self.referring_to(&[id_of(event)], &address).await?);
            found.extend(related::events(event));
            for address in other_addresses(event) {
                found.extend(self.at(&address).await?);
            }
        }
        self.follow(found, &HashSet::from([id_of(&gone[0])])).await
    }

    /// Looks at these events and all they are connected with, but for those that are gone.
    async fn follow(
        &mut self,
        mut found: BTreeSet<EventId>,
        gone: &HashSet<EventId>,
    ) -> Result<(), RetireError> {
        while !found.is_empty() {
            let mut next = BTreeSet::new();
            let new: Vec<EventId> = found
                .into_iter()
                .filter(|id| !gone.contains(id) && !self.places.contains_key(id))
                .collect();
            for chunk in new.chunks(AT_ONCE) {
                next.extend(self.look_through(chunk).await?);
            }
            found = next;
        }
        Ok(())
    }

    /// Makes nodes of these events; gives what they are connected with, through those that do not
    /// stand by themselves.
    async fn look_through(&mut self, ids: &[EventId]) -> Result<BTreeSet<EventId>, RetireError> {
        let mut seen = Vec::new();
        for event in self.release.store.by_ids(ids).await? {
            let meaning = Meaning::of(event.kind);
            if !matches!(meaning, Meaning::Deletion | Meaning::Vanish) {
                let stands = self.stands_by_itself(&event).await?;
                seen.push(Seen::event(&event, meaning, stands));
            }
        }
        let found: HashSet<EventId> = seen.iter().map(|one| one.id).collect();
        let ids = ids.iter().copied();
        let gone: Vec<EventId> = ids.filter(|id| !found.contains(id)).collect();
        for (id, tombstone) in self.release.holding.tombstones(&gone).await? {
            let stands = self.stands_though_buried(&tombstone).await?;
            seen.push(Seen::tombstone(id, &tombstone, stands));
        }
        let mut connected = BTreeSet::new();
        let (mut expanded, mut addresses) = (Vec::new(), Vec::new());
        for one in seen {
            let id = one.id;
            let mut node = one.node;
            self.references += node.refers_to.len() + one.addresses.len();
            let too_many = self.nodes.len() >= LOOKED_THROUGH || self.references >= REFERENCES;
            if too_many {
                node.stands = true;
                tracing::warn!(%id, "too much is connected with what goes: it stays");
            }
            for address in one.addresses {
                if let Some(place) = self.place_of(&address) {
                    node.names.push(place);
                    if !node.stands {
                        connected.extend(self.at(&address).await?);
                    }
                }
            }
            let place = self.nodes.len();
            if let Some(address) = one.address.as_ref().filter(|_| !node.is_buried)
                && let Some(known) = self.place_of(address)
            {
                self.at_address[known] = Some(place);
            }
            if !node.stands {
                connected.extend(node.refers_to.iter().copied());
                expanded.push(id);
                addresses.extend(one.address);
                let held = one.repositories.into_iter();
                let held = held.filter(|repo| !self.gone.contains(repo));
                let held = held.filter(|repo| self.release.holding.holds(repo));
                node.held.extend(held.take(ALSO_HELD_FOR));
            }
            self.places.insert(id, place);
            self.nodes.push(node);
        }
        connected.extend(self.referring_to(&expanded, &addresses).await?);
        Ok(connected)
    }

    /// The number of an address, as far as they are followed.
    fn place_of(&mut self, address: &str) -> Option<usize> {
        if let Some(place) = self.addresses.get(address) {
            return Some(*place);
        }
        let place = self.at_address.len();
        if place >= ADDRESSES {
            return None;
        }
        self.at_address.push(None);
        self.addresses.insert(address.to_owned(), place);
        Some(place)
    }

    async fn ids(&self, filter: Filter) -> Result<Vec<EventId>, StoreError> {
        let items = self.release.store.items(filter).await?;
        Ok(items.into_iter().map(|(id, _)| id).collect())
    }

    /// What refers, or referred, to one of these events, by its id or its address.
    async fn referring_to(
        &self,
        ids: &[EventId],
        addresses: &[String],
    ) -> Result<Vec<EventId>, RetireError> {
        let mut found = self.release.holding.buried_under(addresses).await?;
        let hex: Vec<String> = ids.iter().map(EventId::to_hex).collect();
        found.extend(self.release.holding.buried_under(&hex).await?);
        let ways = [
            (related::TO_EVENTS, &hex[..]),
            (related::TO_ADDRESSES, addresses),
        ];
        for (tags, values) in ways {
            for values in values.chunks(AT_ONCE) {
                for tag in tags {
                    found.extend(self.ids(tagged(tag, values)).await?);
                }
            }
        }
        Ok(found)
    }

    /// What has this address.
    async fn at(&self, address: &str) -> Result<Option<EventId>, StoreError> {
        let Some((kind, author, name)) = split_address(address) else {
            return Ok(None);
        };
        let found = self
            .release
            .store
            .version(kind.into(), author, name)
            .await?;
        Ok(found.map(|event| id_of(&event)))
    }

    /// Who else may bring back what falls: what is connected comes back together.
    fn also_held_for(&self) -> AlsoHeldFor {
        let mut together = Together((0..self.nodes.len()).collect());
        for (place, node) in self.nodes.iter().enumerate() {
            let referred = node.refers_to.iter().filter_map(|id| self.places.get(id));
            let named = node.names.iter();
            let named = named.filter_map(|name| self.at_address[*name].as_ref());
            for other in referred.chain(named) {
                if !node.stands && !self.nodes[*other].stands {
                    together.join(place, *other);
                }
            }
        }
        let mut held: HashMap<usize, BTreeSet<RepoId>> = HashMap::new();
        for (place, node) in self.nodes.iter().enumerate() {
            if !node.stands && !node.held.is_empty() {
                let of_all = held.entry(together.root(place)).or_default();
                let room = ALSO_HELD_FOR.saturating_sub(of_all.len());
                of_all.extend(node.held.iter().take(room).cloned());
            }
        }
        let held: HashMap<usize, Arc<BTreeSet<RepoId>>> = held
            .into_iter()
            .map(|(root, repos)| (root, Arc::new(repos)))
            .collect();
        let mut all = AlsoHeldFor::new();
        if !held.is_empty() {
            for (id, place) in &self.places {
                if !self.nodes[*place].stands
                    && let Some(repos) = held.get(&together.root(*place))
                {
                    all.insert(*id, repos.clone());
                }
            }
        }
        all
    }

    /// What falls: what does not stand by itself, nor by what stands.
    fn decide(&mut self) -> BTreeSet<EventId> {
        let mut lends: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (place, node) in self.nodes.iter().enumerate() {
            for other in node.refers_to.iter().filter_map(|id| self.places.get(id)) {
                lends[place].push(*other);
                lends[*other].push(place);
            }
            // A repository's events refer to it by its address; others are held by being named so.
            let named = node.names.iter().filter_map(|name| self.at_address[*name]);
            lends[place].extend(named);
        }
        let standing = self.nodes.iter().enumerate();
        let mut standing: Vec<usize> = standing
            .filter(|(_, node)| node.stands)
            .map(|(place, _)| place)
            .collect();
        while let Some(place) = standing.pop() {
            for other in std::mem::take(&mut lends[place]) {
                let node = &mut self.nodes[other];
                if !node.stands && node.leans() {
                    node.stands = true;
                    standing.push(other);
                }
            }
        }
        let falls = |(id, place): (&EventId, &usize)| {
            let node = &self.nodes[*place];
            (!node.stands && !node.is_buried).then_some(*id)
        };
        self.places.iter().filter_map(falls).collect()
    }
}

/// Which of so many things are connected: a union by their places.
struct Together(Vec<usize>);

impl Together {
    /// The same for all that are connected.
    fn root(&mut self, mut place: usize) -> usize {
        while self.0[place] != place {
            self.0[place] = self.0[self.0[place]];
            place = self.0[place];
        }
        place
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.0[one.max(other)] = one.min(other);
    }
}

fn tagged(tag: SingleLetterTag, values: &[String]) -> Filter {
    Filter::new().custom_tags(tag, values)
}

/// The address of an event that has one.
fn address_of(event: &Event) -> Option<String> {
    event.coordinate().map(|address| address.to_string())
}

/// The addresses an event refers to by which something may be held: not repositories'.
fn other_addresses(event: &Event) -> Vec<String> {
    let all = related::addresses(event).into_iter();
    let others = all.filter(|address| repository_coordinate(address).is_none());
    others.map(str::to_owned).collect()
}
