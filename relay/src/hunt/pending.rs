//! What waits for git data under an identifier, seen so that nobody's events hide another's: so
//! many authors, each with an equal share, others the next time.

use std::collections::{HashMap, HashSet};

use grasp_proto::words::{Identifier, Npub, Oid, RepoId};

use crate::{
    nip34::{later, pull_request::PullRequest, state::State},
    release::Release,
    repository::Standing,
};

/// Objects that one server is asked for at once; the others are another fetch's.
pub const WANTS: usize = 10_000;
/// Objects that one look asks the git storage for.
pub const OBJECTS: usize = 2 * WANTS;
/// Refs that one look reads for them: many name the same.
const REFS: usize = 10 * WANTS;
/// Authors of states that one look sees; of each as many versions as may wait.
const AUTHORS: usize = 512;
/// Pull requests that one look sees.
const REQUESTS: usize = 1_024;
/// Repositories of one pull request that count.
const OFFERED: usize = 8;
/// Repositories that trust one author and are looked at for where to ask.
const TRUSTING: usize = 64;

/// What has had its turn under an identifier, so that others have theirs: nothing that comes first
/// by its id, key or date comes first for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rotation {
    /// Attempts that ended.
    pub attempts: u64,
    /// URLs that were asked in them.
    pub urls: u64,
    /// Fetches that were given.
    pub fetches: u64,
}

impl Rotation {
    /// An attempt has ended in which so many URLs were asked: the next goes on behind them. If they
    /// were all there are, that is at the first.
    pub fn attempt_ends(&mut self, asked: usize) {
        self.attempts = self.attempts.wrapping_add(1);
        self.urls = self.urls.wrapping_add(asked as u64);
    }
}

/// What waits of one author.
#[derive(Debug)]
pub struct Party {
    /// Who.
    pub author: Npub,
    /// The latest first.
    pub states: Vec<State>,
    /// In the order of their ids.
    pub requests: Vec<PullRequest>,
    /// The repositories it is about and how they stand: those of the author and of those it is
    /// offered to, then those that trust them.
    pub concerned: Vec<(Npub, Standing)>,
}

impl Party {
    fn count(&self) -> usize {
        let of_states: usize = self.states.iter().map(|state| state.refs.len()).sum();
        of_states + self.requests.len()
    }

    /// What it names, from the object at `start` on and round again.
    fn objects_from(&self, start: usize) -> impl Iterator<Item = Oid> {
        self.objects(start).chain(self.objects(0).take(start))
    }

    fn objects(&self, mut skipped: usize) -> impl Iterator<Item = Oid> {
        let commits = self.requests.iter().filter_map(|request| request.commit);
        let states = self.states.iter().flat_map(move |state| {
            let of_this = skipped.min(state.refs.len());
            skipped -= of_this;
            state.objects().skip(of_this).map(|(_, oid)| oid)
        });
        // The commits stand last: skipped when all states are.
        let beyond = skipped.saturating_sub(self.count() - self.requests.len());
        states.chain(commits.skip(beyond))
    }
}

/// What waits for git data under an identifier and can be helped by a hunt: what never arrives is not
/// hunted for, nor is what nobody trusts whose repository is here.
#[derive(Debug, Default)]
pub struct Pending {
    /// By author.
    pub parties: Vec<Party>,
    /// Nobody was left out.
    is_whole: bool,
}

impl Pending {
    /// What waits, as far as one look goes. Blocks.
    pub fn of(release: &Release, identifier: &Identifier, rotation: Rotation) -> Self {
        let purgatory = &release.purgatory;
        let start = rotation.attempts.wrapping_mul(AUTHORS as u64);
        let (authors, count) = purgatory.states.authors_from(identifier, start, AUTHORS);
        let mut is_whole = authors.len() == count;
        let mut parties: Vec<Party> = Vec::new();
        let mut by_author = HashMap::new();
        for versions in authors {
            let states = versions.into_iter().map(|entry| entry.state);
            let mut states: Vec<State> = states.filter(|state| !state.never_arrives()).collect();
            states.sort_by(|a, b| later(&b.event, &a.event));
            let Some(author) = states.first().map(|state| state.author) else {
                continue;
            };
            let concerned = concerned(release, identifier, &[author], rotation);
            // Its author may have an announcement, of a repository elsewhere.
            if concerned.is_empty() || !release.is_trusted(identifier, &author) {
                continue;
            }
            by_author.insert(author, parties.len());
            parties.push(Party {
                author,
                states,
                requests: Vec::new(),
                concerned,
            });
        }
        let start = rotation.attempts.wrapping_mul(REQUESTS as u64);
        let (requests, count) = purgatory.pull_requests.from(identifier, start, REQUESTS);
        is_whole &= requests.len() == count;
        let requests = requests.into_iter().filter_map(|(_, entry)| entry.request);
        let may_arrive =
            |request: &PullRequest| request.commit.is_some() && !waits_for_push(release, request);
        for request in requests.filter(may_arrive) {
            let offered = request.repositories.iter();
            let offered = offered.filter(|repo| repo.identifier == *identifier);
            let owners: Vec<Npub> = offered.map(|repo| repo.owner).take(OFFERED).collect();
            let author = request.author;
            let place = *by_author.entry(author).or_insert_with(|| {
                parties.push(Party {
                    author,
                    states: Vec::new(),
                    requests: Vec::new(),
                    concerned: Vec::new(),
                });
                parties.len() - 1
            });
            let party = &mut parties[place];
            // One author's requests are offered to the same, as a rule.
            if party.requests.len() < OFFERED {
                party
                    .concerned
                    .extend(concerned(release, identifier, &owners, rotation));
            }
            party.requests.push(request);
        }
        Self { parties, is_whole }
    }

    /// Whether nothing waits.
    pub fn is_nothing(&self) -> bool {
        self.parties.is_empty() && self.is_whole
    }

    /// Whether nobody was left out.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The objects that are named, by party: of each party in turn the next, until there are enough.
    /// A party that names more than its share begins elsewhere the next `turn`.
    pub fn named(&self, turn: u64) -> Vec<Vec<Oid>> {
        let mut named: Vec<(Vec<Oid>, HashSet<Oid>)> = Vec::new();
        named.resize_with(self.parties.len(), Default::default);
        let share = (OBJECTS / self.parties.len().max(1)).max(1);
        let from = |party: &Party| {
            let count = party.count();
            let start = match count > share {
                true => turn.wrapping_mul(share as u64) % count as u64,
                false => 0,
            };
            usize::try_from(start).unwrap_or_default()
        };
        let objects = self
            .parties
            .iter()
            .map(|party| party.objects_from(from(party)));
        let mut left: Vec<(usize, _)> = objects.enumerate().collect();
        let mut distinct = HashSet::new();
        let mut read = 0;
        while !left.is_empty() {
            left.retain_mut(|(place, objects)| {
                if distinct.len() >= OBJECTS || read >= REFS {
                    return false;
                }
                let Some(oid) = objects.next() else {
                    return false;
                };
                read += 1;
                let (in_order, seen) = &mut named[*place];
                if seen.insert(oid) {
                    in_order.push(oid);
                    distinct.insert(oid);
                }
                true
            });
        }
        named.into_iter().map(|(in_order, _)| in_order).collect()
    }
}

/// Whether a pull request was accepted because of its author's own space (GRASP-06), where only a
/// push brings its commit: nothing that it is offered to is served here.
fn waits_for_push(release: &Release, request: &PullRequest) -> bool {
    let mut offered = request.repositories.iter();
    let is_served = |repo: &RepoId| {
        let standing = release.repositories.standing(repo);
        standing.is_some_and(Standing::is_served)
    };
    !offered.any(is_served) && !release.spaces.named_by(&request.event).is_empty()
}

/// Whose repositories of an identifier something by, or for, `authors` is about: their own, then those
/// that trust them; each with how it stands.
fn concerned(
    release: &Release,
    identifier: &Identifier,
    authors: &[Npub],
    rotation: Rotation,
) -> Vec<(Npub, Standing)> {
    let repositories = &release.repositories;
    let own = authors.iter().filter_map(|owner| {
        let repo = RepoId {
            owner: *owner,
            identifier: identifier.clone(),
        };
        Some((*owner, repositories.standing(&repo)?))
    });
    let mut concerned: Vec<(Npub, Standing)> = own.collect();
    for author in authors {
        let trusting = repositories.trusting(identifier, author);
        let start = rotation.attempts.wrapping_mul(TRUSTING as u64);
        let start = place(start, trusting.len());
        let trusting = trusting[start..].iter().chain(&trusting[..start]);
        let trusting = trusting.take(TRUSTING);
        concerned.extend(trusting.map(|(repo, standing)| (repo.owner, *standing)));
    }
    concerned
}

/// The objects that are missing, by party, and which parties' may be where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// In the order in which they are to be asked for.
    by_party: Vec<Vec<Oid>>,
    /// Parties that a URL's event is of, or is trusted by.
    near: HashMap<String, Vec<usize>>,
}

impl Missing {
    /// Of what is named, by party, only what is absent.
    pub fn new(mut named: Vec<Vec<Oid>>, is_absent: impl Fn(&Oid) -> bool) -> Self {
        for of_party in &mut named {
            of_party.retain(&is_absent);
        }
        Self {
            by_party: named,
            near: HashMap::new(),
        }
    }

    /// What these parties miss is likely to be at a URL.
    pub fn may_be_at(&mut self, url: &str, parties: &[usize]) {
        /// Of a URL that very many name.
        const PARTIES: usize = 64;
        let near = self.near.entry(url.to_owned()).or_default();
        for party in parties {
            if near.len() < PARTIES && !near.contains(party) {
                near.push(*party);
            }
        }
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.by_party.iter().all(Vec::is_empty)
    }

    /// How many are, as far as was looked.
    pub fn count(&self) -> usize {
        let all: HashSet<&Oid> = self.by_party.iter().flatten().collect();
        all.len()
    }

    /// What a URL is to be asked for. In one attempt of everybody's an equal share, in the next what
    /// one party alone is missing, those in turn whose URL it is: what one party names and nobody has
    /// makes a server refuse the others' only every other time.
    pub fn wants(&self, url: &str, rotation: Rotation) -> Vec<Oid> {
        let lacks = |party: &usize| self.by_party.get(*party).is_some_and(|of| !of.is_empty());
        let all: Vec<usize> = (0..self.by_party.len()).filter(lacks).collect();
        if all.len() > 1 && rotation.attempts % 2 == 1 {
            let near = self.near.get(url).into_iter().flatten().copied();
            let near: Vec<usize> = near.filter(lacks).collect();
            let round = rotation.attempts / 2;
            let (of, turn) = match near.is_empty() {
                true => (&all, round.wrapping_add(rotation.fetches)),
                false => (&near, round),
            };
            let of_party = &self.by_party[of[place(turn, of.len())]];
            return of_party.iter().copied().take(WANTS).collect();
        }
        let start = place(rotation.fetches, all.len());
        let mut left: Vec<_> = all[start..]
            .iter()
            .chain(&all[..start])
            .map(|party| self.by_party[*party].iter())
            .collect();
        let (mut wants, mut seen) = (Vec::new(), HashSet::new());
        while !left.is_empty() {
            left.retain_mut(|objects| {
                // What another has named already costs no share.
                let next = objects.find(|oid| !seen.contains(*oid));
                if let Some(oid) = next.filter(|_| wants.len() < WANTS) {
                    seen.insert(*oid);
                    wants.push(*oid);
                    return true;
                }
                false
            });
        }
        wants
    }
}

fn place(turn: u64, count: usize) -> usize {
    let place = turn.checked_rem(count as u64).unwrap_or_default();
    usize::try_from(place).unwrap_or_default()
}

#[cfg(test)]
mod tests;
