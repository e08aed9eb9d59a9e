//! What an identifier lacks, and where that may be asked for: gathered afresh for every step, on a
//! thread that may block, and bounded whatever waits. Who is left out has a turn later.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    panic,
    sync::Arc,
};

use grasp_proto::words::{Identifier, Npub, Oid, RepoId};
use nostr::Event;

use super::{
    pending::{Missing, Party, Pending, Rotation, WANTS},
    urls::CloneUrl,
};
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
/// URLs of one identifier for one attempt; of each event the first ones go first.
const URLS: usize = 1_000;
/// Owners of one identifier whose announcements are looked at, those whom what waits concerns first.
const OWNERS: usize = 512;
/// Authors whose stored states are looked at.
const AUTHORS: usize = 1_024;
/// Objects that a server is told we have.
const HAVES: usize = 256;

/// What is known of an identifier when its next step is to be found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// Something waits that may still arrive.
    pub pending: bool,
    /// The objects that are named and not here.
    pub missing: Missing,
    /// Objects that are here with all they lead to.
    pub haves: Vec<Oid>,
    /// Where the missing ones may be asked for, those whose turn it is first.
    pub urls: Vec<CloneUrl>,
}

/// Does what takes a while where nobody else waits for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => panic::resume_unwind(panic),
            // The process is ending.
            Err(_) => std::future::pending().await,
        },
    }
}

/// An owner of the identifier.
#[derive(Debug)]
struct Owner {
    repo: RepoId,
    standing: Standing,
    /// The parties of whom something waits that concerns it.
    parties: Vec<usize>,
}

/// Owners of an identifier, each once.
#[derive(Debug, Default)]
struct Owners {
    /// Of each party in turn the next whom it concerns; then the others.
    all: Vec<Owner>,
    /// How many of them something concerns.
    concerned: usize,
}

impl Owners {
    fn of(
        release: &Release,
        identifier: &Identifier,
        parties: &[Party],
        rotation: Rotation,
    ) -> Self {
        let mut owners = Self::default();
        let mut places = HashMap::new();
        let mut left: Vec<_> = parties
            .iter()
            .enumerate()
            .map(|(place, party)| (place, party.concerned.iter()))
            .collect();
        while !left.is_empty() && owners.all.len() < OWNERS {
            left.retain_mut(|(party, concerned)| {
                let next = concerned.next();
                if let Some((owner, standing)) = next {
                    owners.add(identifier, *owner, *standing, Some(*party), &mut places);
                }
                next.is_some()
            });
        }
        owners.concerned = owners.all.len();
        for standing in [Standing::Active, Standing::Elsewhere, Standing::Waiting] {
            let mut others = release.repositories.owners(identifier, standing);
            let start = rotation.attempts.wrapping_mul(OWNERS as u64);
            rotate(&mut others, start);
            for owner in others.into_iter().take(2 * OWNERS) {
                owners.add(identifier, owner, standing, None, &mut places);
            }
        }
        owners
    }

    fn add(
        &mut self,
        identifier: &Identifier,
        owner: Npub,
        standing: Standing,
        party: Option<usize>,
        places: &mut HashMap<Npub, usize>,
    ) {
        let place = match places.get(&owner) {
            Some(place) => *place,
            None if self.all.len() >= OWNERS => return,
            None => {
                places.insert(owner, self.all.len());
                self.all.push(Owner {
                    repo: RepoId {
                        owner,
                        identifier: identifier.clone(),
                    },
                    standing,
                    parties: Vec::new(),
                });
                self.all.len() - 1
            }
        };
        self.all[place].parties.extend(party);
    }
}

/// From the one at `start` on and round again.
fn rotate<T>(all: &mut [T], start: u64) {
    let start = start.checked_rem(all.len() as u64).unwrap_or_default();
    all.rotate_left(usize::try_from(start).unwrap_or_default());
}

/// The URLs of some events, of each event the first ones first.
fn interleave(of_events: &[Vec<CloneUrl>], seen: &mut HashSet<String>, into: &mut Vec<CloneUrl>) {
    for nth in 0..URLS_OF_AN_EVENT {
        for url in of_events.iter().filter_map(|urls| urls.get(nth)) {
            if seen.insert(url.url.clone()) {
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
    fn read(events: Vec<Event>) -> Self {
        let mut stored = Self::default();
        for event in events {
            let (author, event) = (author_of(&event), Arc::new(event));
            if event.kind == nip34::ANNOUNCEMENT {
                stored.announcements.insert(author, event);
            } else if let Ok(state) = State::read(event) {
                stored.states.insert(author, state);
            }
        }
        stored
    }

    /// The latest state of each owner who is served from here, by the set of their maintainers.
    fn latest(&self, release: &Release, owners: &[Owner]) -> Vec<&State> {
        let active = owners
            .iter()
            .filter(|owner| owner.standing == Standing::Active);
        let latest_of = |owner: &Owner| {
            let authors = release.repositories.maintainers(&owner.repo);
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

/// What is seen before anybody was asked.
struct Gathered {
    pending: Pending,
    owners: Owners,
    /// Whose stored events are of interest.
    authors: BTreeSet<Npub>,
    rotation: Rotation,
}

impl Gathered {
    fn new(release: &Release, identifier: &Identifier, rotation: Rotation) -> Self {
        let pending = Pending::of(release, identifier, rotation);
        let owners = Owners::of(release, identifier, &pending.parties, rotation);
        let mut authors: BTreeSet<Npub> = owners.all.iter().map(|one| one.repo.owner).collect();
        for owner in owners.all.iter().filter(|one| one.standing.is_served()) {
            if authors.len() >= AUTHORS {
                break;
            }
            let maintainers = release.repositories.maintainers(&owner.repo);
            authors.extend(maintainers.into_iter().take(AUTHORS - authors.len()));
        }
        Self {
            pending,
            owners,
            authors,
            rotation,
        }
    }

    /// Where what is missing may be asked for.
    fn urls(
        &self,
        release: &Release,
        ours: &Domain,
        stored: &Stored,
        missing: &mut Missing,
    ) -> Vec<CloneUrl> {
        let of_owner = |owner: &Owner| {
            let waiting = || {
                let entry = release.purgatory.announcements.get(&owner.repo)?;
                Some(entry.announcement)
            };
            let served = || {
                let event = stored.announcements.get(&owner.repo.owner)?.clone();
                Announcement::read(event).ok()
            };
            let announcement = match owner.standing {
                Standing::Waiting => waiting(),
                Standing::Active | Standing::Elsewhere => served(),
            };
            announcement.map_or_else(Vec::new, |known| urls_of(known.clone_urls(), ours))
        };
        let (concerned, others) = self.owners.all.split_at(self.owners.concerned);
        let mut best = Vec::new();
        for owner in concerned {
            let urls = of_owner(owner);
            for url in &urls {
                missing.may_be_at(&url.url, &owner.parties);
            }
            best.push(urls);
        }
        let of_request = |request: &PullRequest| urls_of(all_values(&request.event, "clone"), ours);
        for (place, party) in self.pending.parties.iter().enumerate() {
            for urls in party.requests.iter().map(of_request) {
                for url in &urls {
                    missing.may_be_at(&url.url, &[place]);
                }
                best.push(urls);
            }
        }
        let others: Vec<Vec<CloneUrl>> = others.iter().map(of_owner).collect();
        let (mut seen, mut urls) = (HashSet::new(), Vec::new());
        interleave(&best, &mut seen, &mut urls);
        interleave(&others, &mut seen, &mut urls);
        rotate(&mut urls, self.rotation.urls);
        urls.truncate(URLS);
        urls
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
    rotation: Rotation,
) -> Result<Sight, ReleaseError> {
    let (of, name) = (release.clone(), identifier.clone());
    let gathered = blocking(move || Gathered::new(&of, &name, rotation)).await;
    if gathered.pending.is_nothing() && !healing {
        return Ok(Sight::default());
    }
    let authors = gathered.authors.iter().copied();
    let events = release.store.of_repositories(authors, identifier).await?;
    let of = release.clone();
    let parsed = blocking(move || {
        let stored = Stored::read(events);
        let shown = stored.latest(&of, &gathered.owners.all);
        let shown = shown.into_iter().flat_map(State::objects).map(|(_, o)| o);
        // In their order, so that the latest state's are among those that a server is told.
        let mut haves = Vec::new();
        let mut seen = HashSet::new();
        for oid in shown.take(WANTS) {
            if (healing || haves.len() < HAVES) && seen.insert(oid) {
                haves.push(oid);
            }
        }
        let turn = rotation.attempts.wrapping_add(rotation.fetches);
        let named = gathered.pending.named(turn);
        (gathered, stored, haves, named)
    });
    let (gathered, stored, mut haves, mut named) = parsed.await;
    // Of whatever kind: an object that is here and not what it must be is not to be found elsewhere.
    let wanted = Wanted {
        oids: named.iter().flatten().chain(&haves).copied().collect(),
        commits: BTreeSet::new(),
    };
    let absent = match wanted.is_empty() {
        true => BTreeSet::new(),
        false => release.absent(identifier, &wanted).await?,
    };
    let (of, ours) = (release.clone(), ours.clone());
    let sight = blocking(move || {
        let is_healed = !haves.iter().any(|oid| absent.contains(oid));
        let seen: HashSet<Oid> = haves.iter().copied().collect();
        let also: Vec<Oid> = named.iter().flatten().copied().collect();
        if healing {
            named.push(haves.clone());
        }
        haves.extend(also.into_iter().filter(|oid| !seen.contains(oid)));
        haves.retain(|oid| !absent.contains(oid));
        haves.truncate(HAVES);
        let mut missing = Missing::new(named, |oid| absent.contains(oid));
        let urls = match missing.is_empty() {
            true => Vec::new(),
            false => gathered.urls(&of, &ours, &stored, &mut missing),
        };
        Sight {
            pending: !gathered.pending.is_nothing() || (healing && !is_healed),
            missing,
            haves,
            urls,
        }
    });
    Ok(sight.await)
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

    #[test]
    fn whoever_is_last_is_first_some_time() {
        let mut first = BTreeSet::new();
        for start in 0..5 {
            let mut all = [0, 1, 2, 3, 4];
            rotate(&mut all, start * 7);
            first.insert(all[0]);
        }
        assert_eq!(first.len(), 5);
        rotate::<u8>(&mut [], 3);
    }
}
