//! What the relay must have after each step: what is served, what waits, where refs are. Here is what a
//! step does by itself – events in [`super::verdicts`] and [`super::effects`], pushes in [`super::pushed`];
//! what follows from that, and where the rules leave room, is in [`super::settle`].

use std::collections::{BTreeMap, BTreeSet};

use super::{
    rules::{self, Address, Fact, Refs, Version, View, Word, Words},
    steps::{Commit, Label, Name, OWNERS, Repo, Step, Who},
};

/// How long what waits is given, in milliseconds.
pub const WAITS_FOR: u64 = 30 * 60 * 1000;
/// How long a soft-expired announcement can be revived.
pub const SOFT_FOR: u64 = 24 * 60 * 60 * 1000;

/// What an event is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Served,
    Waits,
    Duplicate,
    Refused,
}

/// What came of a step as far as the relay said so.
#[derive(Debug, Clone, Default)]
pub struct Done {
    pub reply: Option<Reply>,
    /// Of a push.
    pub is_granted: bool,
    /// What the hunt has brought.
    pub arrived: BTreeSet<(Name, Commit)>,
    /// What time it is now, in milliseconds from the beginning.
    pub now: u64,
}

/// Something that waits.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    /// It does not expire before.
    pub until: u64,
    pub is_soft: bool,
}

/// A repository that is there.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    pub branches: Refs,
    /// The state that they are of, and its author.
    pub by: Option<(Version, Who)>,
    /// Pull requests whose ref it has.
    pub requested: BTreeSet<Label>,
}

/// The commits that were pushed for a pull request.
#[derive(Debug, Clone)]
pub struct Offered {
    /// The first is shown until the event chooses one; never empty.
    pub commits: Vec<Commit>,
    /// The repository was there ever since.
    pub is_there: bool,
    pub until: u64,
}

/// How an announcement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Active,
    Waiting { is_soft: bool },
    Elsewhere,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub now: u64,
    pub facts: BTreeMap<Label, Fact>,
    pub served: BTreeSet<Label>,
    pub waiting: BTreeMap<Label, Wait>,
    /// Out of service with an announcement; may come back with the next.
    pub held: BTreeSet<Label>,
    /// With whose announcement each fell, where it was the only one that went by itself.
    pub fell_with: BTreeMap<Label, Repo>,
    pub offered: BTreeMap<Label, BTreeMap<Repo, Offered>>,
    pub pool: BTreeMap<Name, BTreeSet<Commit>>,
    pub shown: BTreeMap<Repo, Shown>,
    /// The refs of pull requests that repositories had: one that was moved aside brings them back.
    pub had: BTreeSet<(Repo, Label)>,
    /// The refs of pull requests as they were after the step before, those too that came back with a
    /// repository that was moved aside.
    pub refs: BTreeMap<(Repo, Label), Commit>,
    /// What their authors asked to delete: by id, and of addresses up to when.
    pub deleted: BTreeSet<(Label, Who)>,
    pub deleted_until: BTreeMap<Address, u32>,
    /// Of an address the latest version that its author took away: those before it do not come again.
    overtaken: BTreeMap<Address, Version>,
    /// The same of versions that expired by their own word while they waited, if not for want of data before,
    /// and of announcements that were taken away while they waited for what had moved elsewhere.
    pub perhaps_overtaken: BTreeMap<Address, Version>,
    /// What has expired once.
    pub expired: BTreeSet<Label>,
    /// When something last came under an identifier.
    pub touched: BTreeMap<Name, u64>,

    /// Of this step: identifiers under which an announcement went, which may take others along …
    pub fell: BTreeSet<Name>,
    /// … or went out of service, and takes them along.
    pub went_out: BTreeSet<Name>,
    /// Pull requests whose commit came while their repository was announced anew and not served: they may
    /// wait for their time to be looked at again.
    pub overlooked: BTreeSet<Label>,
    /// What the relay serves after this step.
    pub seen: BTreeSet<Label>,
    /// Announced here in this step.
    pub announced: BTreeSet<Repo>,
    /// Served before this step, and authorised for some repository here.
    pub was_trusted: BTreeSet<Label>,
    /// Out of service by itself in this step.
    pub delisted_now: BTreeSet<Repo>,
    /// And once.
    pub delisted: BTreeSet<Repo>,
    /// Once served here, and announced elsewhere since.
    pub moved: BTreeSet<Repo>,
}

impl Ledger {
    pub fn new(facts: BTreeMap<Label, Fact>) -> Self {
        Self {
            facts,
            ..Self::default()
        }
    }

    pub fn fact(&self, label: Label) -> &Fact {
        &self.facts[&label]
    }

    fn find(&self, among: impl IntoIterator<Item = Label>, address: Address) -> Option<Label> {
        let mut among = among.into_iter();
        among.find(|label| self.fact(*label).address() == Some(address))
    }

    /// The served event of an address.
    pub fn stored(&self, address: Address) -> Option<Label> {
        self.find(self.served.iter().copied(), address)
    }

    /// The announcement that waits for a repository.
    pub fn waiting_for(&self, repo: Repo) -> Option<Label> {
        self.find(self.waiting.keys().copied(), Address::Announcement(repo))
    }

    pub fn standing(&self, repo: Repo) -> Option<Standing> {
        if let Some(label) = self.waiting_for(repo) {
            let is_soft = self.waiting[&label].is_soft;
            return Some(Standing::Waiting { is_soft });
        }
        let stored = self.stored(Address::Announcement(repo))?;
        Some(match self.fact(stored).is_here() {
            true => Standing::Active,
            false => Standing::Elsewhere,
        })
    }

    /// What everybody who announces an identifier says, in the latest version that is here.
    pub fn words(&self, name: Name) -> Words {
        let mut words = Words::new();
        for owner in OWNERS {
            let repo = Repo { owner, name };
            let stored = self.stored(Address::Announcement(repo));
            if let Some(label) = self.waiting_for(repo).or(stored) {
                words.insert(owner, Word::of(&self.fact(label).what));
            }
        }
        words
    }

    pub fn view(&self, repo: Repo) -> View {
        rules::view(&self.words(repo.name), repo.owner)
    }

    /// The repositories whose owners trust a key.
    pub fn trusting(&self, name: Name, key: Who) -> Vec<Repo> {
        let words = self.words(name);
        let repos = OWNERS.into_iter().map(|owner| Repo { owner, name });
        let trusts = |repo: &Repo| rules::view(&words, repo.owner).members.contains(&key);
        repos.filter(trusts).collect()
    }

    /// Whether one of them is here, or may be.
    pub fn is_trusted_here(&self, name: Name, key: Who) -> bool {
        let trusting = self.trusting(name, key).into_iter();
        let mut standings = trusting.filter_map(|repo| self.standing(repo));
        standings.any(|standing| standing != Standing::Elsewhere)
    }

    /// The owners whose repositories are here, or may be.
    pub fn here(&self, name: Name) -> BTreeSet<Who> {
        let is_here = |owner: &Who| {
            let standing = self.standing(Repo {
                owner: *owner,
                name,
            });
            standing.is_some_and(|standing| standing != Standing::Elsewhere)
        };
        OWNERS.into_iter().filter(is_here).collect()
    }

    /// The latest served state that counts for a repository.
    pub fn latest(&self, repo: Repo) -> Option<Label> {
        let members = self.view(repo).members;
        let counts = |label: &&Label| {
            let fact = self.fact(**label);
            fact.state_of() == Some(repo.name) && members.contains(&fact.what.by)
        };
        let counting = self.served.iter().filter(counts);
        counting
            .max_by_key(|label| self.fact(**label).version())
            .copied()
    }

    pub fn is_deleted(&self, label: Label) -> bool {
        let fact = self.fact(label);
        let address = fact
            .address()
            .and_then(|address| self.deleted_until.get(&address));
        self.deleted.contains(&(label, fact.what.by))
            || address.is_some_and(|until| fact.what.at <= *until)
    }

    pub fn has_expired(&self, label: Label) -> bool {
        let until = self.fact(label).what.until;
        until.is_some_and(|minutes| u64::from(minutes) * 60_000 <= self.now)
    }

    /// Whether a later version of it was taken away by its author.
    pub fn is_overtaken(&self, label: Label) -> bool {
        let fact = self.fact(label);
        let by = fact
            .address()
            .and_then(|address| self.overtaken.get(&address));
        by.is_some_and(|by| fact.version() <= *by)
    }

    pub fn is_perhaps_overtaken(&self, label: Label) -> bool {
        let fact = self.fact(label);
        let address = fact.address();
        let by = address.and_then(|address| self.perhaps_overtaken.get(&address));
        by.is_some_and(|by| fact.version() <= *by)
    }

    pub fn overtake(&mut self, address: Address, version: Version) {
        let latest = self.overtaken.entry(address).or_insert(version);
        *latest = version.max(*latest);
    }

    pub fn perhaps_overtake(&mut self, address: Address, version: Version) {
        let latest = self.perhaps_overtaken.entry(address).or_insert(version);
        *latest = version.max(*latest);
    }

    /// What a step does by itself. What the relay said of it is judged.
    pub fn apply(&mut self, step: &Step, done: &Done) -> Result<(), String> {
        self.fell.clear();
        self.went_out.clear();
        self.delisted_now.clear();
        self.announced.clear();
        let states = self.served.iter().copied();
        let is_trusted = |label: &Label| {
            let fact = self.fact(*label);
            let name = fact.state_of();
            name.is_some_and(|name| self.is_trusted_here(name, fact.what.by))
        };
        self.was_trusted = states.filter(is_trusted).collect();
        self.now = done.now;
        match step {
            Step::Event {
                label, is_synced, ..
            }
            | Step::Again { label, is_synced } => match done.reply {
                Some(reply) => self.send(*label, *is_synced, reply),
                None => Ok(()),
            },
            Step::Push { to, refs } => self.push(*to, refs, done.is_granted),
            Step::Offer { to, label, commit } => self.offer(*to, *label, *commit, done.is_granted),
            Step::Found { .. } => {
                for (name, commit) in &done.arrived {
                    self.pool.entry(*name).or_default().insert(*commit);
                    self.touched.insert(*name, self.now);
                }
                Ok(())
            }
            Step::Pass { .. } => {
                self.expire_by_their_word();
                Ok(())
            }
            Step::Restart => Ok(()),
        }
    }
}
