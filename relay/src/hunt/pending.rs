//! What an identifier lacks, and where that may be asked for: gathered afresh for every step.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use grasp_proto::words::{Identifier, Npub, Oid, RepoId};
use nostr::Event;

use super::urls::CloneUrl;
use crate::{
    domain::Domain,
    nip34::{
        self, all_values, announcement::Announcement, author_of, later, pull_request::PullRequest,
        state::State,
    },
    policy::satisfiable::{Wanted, latest},
    release::{Release, ReleaseError},
    repository::Standing,
};

/// Clone URLs of one event that count.
const URLS_OF_AN_EVENT: usize = 20;
/// URLs for one identifier; of each event the first ones go first.
const URLS: usize = 1_000;
/// Owners of one identifier whose announcements are looked at, those whom what waits concerns first.
const OWNERS: usize = 512;
/// Authors whose stored states are looked at.
const AUTHORS: usize = 1_024;
/// Objects that a server is told we have.
const HAVES: usize = 256;
/// Objects that one server is asked for at once; the others are the next step's.
pub const WANTS: usize = 10_000;

/// What is known of an identifier when its next step is to be found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// Something waits that may still arrive.
    pub pending: bool,
    /// The objects that are named and not here.
    pub missing: BTreeSet<Oid>,
    /// Objects that are here with all they lead to.
    pub haves: Vec<Oid>,
    /// Where the missing ones may be asked for, the best first.
    pub urls: Vec<CloneUrl>,
}

/// What waits for git data under an identifier and can be helped by a hunt: what never arrives is not
/// hunted for, nor is what nobody trusts.
#[derive(Debug, Default)]
struct Pending {
    states: Vec<State>,
    requests: Vec<PullRequest>,
}

impl Pending {
    fn of(release: &Release, identifier: &Identifier) -> Self {
        let states = release.purgatory.states.by_identifier(identifier);
        let states = states.into_iter().map(|entry| entry.state);
        let is_trusted = |state: &State| {
            let trusting = release.repositories.trusting(identifier, &state.author);
            !trusting.is_empty()
        };
        let requests = release.purgatory.pull_requests.by_identifier(identifier);
        let requests = requests.into_iter().filter_map(|(_, entry)| entry.request);
        Self {
            states: states
                .filter(|state| !state.never_arrives() && is_trusted(state))
                .collect(),
            requests: requests
                .filter(|request| request.commit.is_some())
                .collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.requests.is_empty()
    }

    fn objects(&self) -> BTreeSet<Oid> {
        let of_states = self.states.iter().flat_map(State::objects);
        let of_requests = self.requests.iter().filter_map(|request| request.commit);
        of_states.map(|(_, oid)| oid).chain(of_requests).collect()
    }
}

/// Owners of the identifier, each once: those whom what waits concerns, and how many these are; then
/// the others.
fn owners(
    release: &Release,
    identifier: &Identifier,
    pending: &Pending,
) -> (Vec<(Npub, Standing)>, usize) {
    let repositories = &release.repositories;
    let mut concerned: Vec<Npub> = pending.states.iter().map(|state| state.author).collect();
    let offered = pending.requests.iter().flat_map(|one| &one.repositories);
    concerned.extend(
        offered
            .filter(|repo| repo.identifier == *identifier)
            .map(|repo| repo.owner),
    );
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    let mut add = |owner: Npub, standing: Standing, all: &mut Vec<(Npub, Standing)>| {
        if all.len() < OWNERS && seen.insert(owner) {
            all.push((owner, standing));
        }
    };
    for author in &concerned {
        let repo = RepoId {
            owner: *author,
            identifier: identifier.clone(),
        };
        if let Some(standing) = repositories.standing(&repo) {
            add(*author, standing, &mut all);
        }
    }
    for author in &concerned {
        for (repo, standing) in repositories.trusting(identifier, author) {
            add(repo.owner, standing, &mut all);
        }
    }
    let first = all.len();
    for standing in [Standing::Active, Standing::Elsewhere, Standing::Waiting] {
        for owner in repositories.owners(identifier, standing) {
            add(owner, standing, &mut all);
        }
    }
    (all, first)
}

/// The URLs of some events, of each event the first ones first.
fn interleave(of_events: &[Vec<CloneUrl>], seen: &mut HashSet<String>, into: &mut Vec<CloneUrl>) {
    for nth in 0..URLS_OF_AN_EVENT {
        for url in of_events.iter().filter_map(|urls| urls.get(nth)) {
            if into.len() < URLS && seen.insert(url.url.clone()) {
                into.push(url.clone());
            }
        }
    }
}

fn urls_of<'a>(values: impl Iterator<Item = &'a str>, ours: &Domain) -> Vec<CloneUrl> {
    let urls = values.take(URLS_OF_AN_EVENT);
    urls.filter_map(|text| CloneUrl::read(text, ours)).collect()
}

/// What is stored of an identifier: announcements by owner, states by author.
#[derive(Debug, Default)]
struct Stored {
    announcements: BTreeMap<Npub, Arc<Event>>,
    states: BTreeMap<Npub, State>,
}

impl Stored {
    async fn of(
        release: &Release,
        identifier: &Identifier,
        owners: &[(Npub, Standing)],
    ) -> Result<Self, ReleaseError> {
        let mut authors: BTreeSet<Npub> = owners.iter().map(|(owner, _)| *owner).collect();
        for (owner, _) in owners.iter().filter(|(_, standing)| standing.is_served()) {
            if authors.len() >= AUTHORS {
                break;
            }
            let repo = RepoId {
                owner: *owner,
                identifier: identifier.clone(),
            };
            authors.extend(release.repositories.maintainers(&repo));
        }
        let authors = authors.into_iter().take(AUTHORS);
        let mut stored = Self::default();
        for event in release.store.of_repositories(authors, identifier).await? {
            let (author, event) = (author_of(&event), Arc::new(event));
            if event.kind == nip34::ANNOUNCEMENT {
                stored.announcements.insert(author, event);
            } else if let Ok(state) = State::read(event) {
                stored.states.insert(author, state);
            }
        }
        Ok(stored)
    }

    /// The latest state of each owner who is served from here, by the set of their maintainers.
    fn latest(
        &self,
        release: &Release,
        identifier: &Identifier,
        owners: &[(Npub, Standing)],
    ) -> Vec<&State> {
        let active = owners
            .iter()
            .filter(|(_, standing)| *standing == Standing::Active);
        let latest_of = |(owner, _): &(Npub, Standing)| {
            let repo = RepoId {
                owner: *owner,
                identifier: identifier.clone(),
            };
            let authors = release.repositories.maintainers(&repo);
            let states = authors.iter().filter_map(|author| self.states.get(author));
            let author = latest(states.cloned())?.author;
            self.states.get(&author)
        };
        let mut states: Vec<&State> = active.filter_map(latest_of).collect();
        states.sort_by(|a, b| later(&b.event, &a.event));
        states.dedup_by_key(|state| state.id());
        states
    }
}

/// Looks at an identifier. `healing`: what its served repositories show may be missing, too.
///
/// # Errors
/// The event store or the git storage did not answer: nothing is known.
pub async fn look(
    release: &Release,
    ours: &Domain,
    identifier: &Identifier,
    healing: bool,
) -> Result<Sight, ReleaseError> {
    let pending = Pending::of(release, identifier);
    if pending.is_empty() && !healing {
        return Ok(Sight::default());
    }
    let (owners, first) = owners(release, identifier, &pending);
    let stored = Stored::of(release, identifier, &owners).await?;
    let shown = stored.latest(release, identifier, &owners);
    let shown = shown.into_iter().flat_map(State::objects).map(|(_, o)| o);
    // In their order, so that the latest state's are among those that a server is told.
    let mut haves = Vec::new();
    let mut seen = HashSet::new();
    for oid in shown.take(WANTS) {
        if (healing || haves.len() < HAVES) && seen.insert(oid) {
            haves.push(oid);
        }
    }
    let named = pending.objects();
    // Of whatever kind: an object that is here and not what it must be is not to be found elsewhere.
    let wanted = Wanted {
        oids: named.iter().chain(&haves).copied().collect(),
        commits: BTreeSet::new(),
    };
    let absent = match wanted.is_empty() {
        true => BTreeSet::new(),
        false => release.absent(identifier, &wanted).await?,
    };
    let missing: BTreeSet<Oid> = match healing {
        true => absent.clone(),
        false => named.intersection(&absent).copied().collect(),
    };
    let is_healed = !haves.iter().any(|oid| absent.contains(oid));
    haves.extend(named.iter().copied().filter(|oid| !seen.contains(oid)));
    haves.retain(|oid| !absent.contains(oid));
    haves.truncate(HAVES);
    Ok(Sight {
        pending: !pending.is_empty() || (healing && !is_healed),
        urls: match missing.is_empty() {
            true => Vec::new(),
            false => urls(release, ours, identifier, &pending, &stored, &owners, first),
        },
        missing,
        haves,
    })
}

fn urls(
    release: &Release,
    ours: &Domain,
    identifier: &Identifier,
    pending: &Pending,
    stored: &Stored,
    owners: &[(Npub, Standing)],
    first: usize,
) -> Vec<CloneUrl> {
    let of_owner = |(owner, standing): &(Npub, Standing)| {
        let repo = RepoId {
            owner: *owner,
            identifier: identifier.clone(),
        };
        let waiting = || {
            let entry = release.purgatory.announcements.get(&repo)?;
            Some(entry.announcement)
        };
        let served = || {
            let event = stored.announcements.get(owner)?.clone();
            Announcement::read(event).ok()
        };
        let announcement = match standing {
            Standing::Waiting => waiting(),
            Standing::Active | Standing::Elsewhere => served(),
        };
        announcement.map_or_else(Vec::new, |known| urls_of(known.clone_urls(), ours))
    };
    let mut best: Vec<Vec<CloneUrl>> = owners[..first].iter().map(of_owner).collect();
    let of_request = |request: &PullRequest| urls_of(all_values(&request.event, "clone"), ours);
    best.extend(pending.requests.iter().map(of_request));
    let others: Vec<Vec<CloneUrl>> = owners[first..].iter().map(of_owner).collect();
    let (mut seen, mut urls) = (HashSet::new(), Vec::new());
    interleave(&best, &mut seen, &mut urls);
    interleave(&others, &mut seen, &mut urls);
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(host: &str, path: usize) -> CloneUrl {
        let text = format!("https://{host}/{path}");
        CloneUrl::read(&text, &Domain::parse("grasp.example").unwrap()).unwrap()
    }

    #[test]
    fn of_each_event_the_first_go_first_and_none_twice() {
        let of_events = [
            vec![url("a.example", 1), url("a.example", 2)],
            vec![url("b.example", 1), url("a.example", 1)],
            vec![],
        ];
        let (mut seen, mut urls) = (HashSet::new(), Vec::new());
        interleave(&of_events, &mut seen, &mut urls);
        let expected = [
            url("a.example", 1),
            url("b.example", 1),
            url("a.example", 2),
        ];
        assert_eq!(urls, expected);
    }

    #[test]
    fn of_one_event_twenty_urls_count() {
        let texts: Vec<String> = (0..30).map(|n| format!("https://a.example/{n}")).collect();
        let ours = Domain::parse("grasp.example").unwrap();
        let urls = urls_of(texts.iter().map(String::as_str), &ours);
        assert_eq!(urls.len(), URLS_OF_AN_EVENT);
    }
}
