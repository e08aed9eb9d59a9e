//! The rules, stated once more: who counts for a repository, which version of two counts, when a push
//! reaches a state. Nothing of the product is used here.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::steps::{Branch, Commit, History, Kind, Name, Naming, Repo, What, Who};

/// The bytes of an id.
pub type Id = [u8; 32];
/// Of two versions the later counts; of two of the same second the one with the lower id.
pub type Version = (u32, Reverse<Id>);
/// Branches and tags.
pub type Refs = BTreeMap<Branch, Commit>;

/// What of an address there is one version of at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    Announcement(Repo),
    State(Repo),
}

/// An event of the script, and its id.
#[derive(Debug, Clone)]
pub struct Fact {
    pub what: What,
    pub id: Id,
}

impl Fact {
    pub fn version(&self) -> Version {
        (self.what.at, Reverse(self.id))
    }

    pub fn address(&self) -> Option<Address> {
        let owner = self.what.by;
        match self.what.kind {
            Kind::Announcement { name, .. } => Some(Address::Announcement(Repo { owner, name })),
            Kind::State { name, .. } => Some(Address::State(Repo { owner, name })),
            Kind::PullRequest { .. } | Kind::Deletion(_) => None,
        }
    }

    /// The repository that is announced.
    pub fn announced(&self) -> Option<Repo> {
        match self.address()? {
            Address::Announcement(repo) => Some(repo),
            Address::State(_) => None,
        }
    }

    /// The identifier a state is of.
    pub fn state_of(&self) -> Option<Name> {
        match self.address()? {
            Address::State(repo) => Some(repo.name),
            Address::Announcement(_) => None,
        }
    }

    pub fn is_here(&self) -> bool {
        matches!(self.what.kind, Kind::Announcement { is_here: true, .. })
    }

    pub fn refs(&self) -> Refs {
        match &self.what.kind {
            Kind::State { refs, .. } => refs.iter().copied().collect(),
            _ => Refs::new(),
        }
    }

    pub fn requested(&self) -> Option<(Repo, Commit)> {
        match self.what.kind {
            Kind::PullRequest { to, commit } => Some((to, commit)),
            _ => None,
        }
    }
}

/// What an announcement says of who maintains.
#[derive(Debug, Clone, Default)]
pub struct Word {
    /// Maintainers and leads in force.
    names: BTreeSet<Who>,
    leads: BTreeSet<Who>,
    /// Its author has a record of its own, and maintains by none.
    has_left: bool,
    is_fork: bool,
}

impl Word {
    pub fn of(what: &What) -> Self {
        let Kind::Announcement {
            is_fork, naming, ..
        } = &what.kind
        else {
            return Self::default();
        };
        let mut word = Self {
            is_fork: *is_fork,
            ..Self::default()
        };
        match naming {
            Naming::Maintainers(named) => word.names.extend(named),
            Naming::Roles(roles) => {
                let in_force = roles.iter().filter(|role| {
                    let is_running = matches!(
                        role.history,
                        History::Open | History::Since | History::Again
                    );
                    role.letter != 'o' && is_running
                });
                for role in in_force.clone() {
                    word.names.insert(role.who);
                    if role.letter == 'M' {
                        word.leads.insert(role.who);
                    }
                }
                let is_own = |role: &&super::steps::Role| role.who == what.by;
                word.has_left = roles.iter().any(|role| is_own(&role))
                    && !in_force.clone().any(|role| is_own(&role));
            }
        }
        word.names.remove(&what.by);
        word
    }
}

/// The words of all who announce one identifier.
pub type Words = BTreeMap<Who, Word>;

/// Who counts in the view of one owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    pub members: BTreeSet<Who>,
    /// Whom the way to the lead goes by.
    pub path: BTreeSet<Who>,
}

/// Who counts for an owner: whoever is at the end of the path of leads, and whoever is named by one who
/// counts and names one who counts.
pub fn view(words: &Words, owner: Who) -> View {
    let mut view = View::default();
    if !words.contains_key(&owner) {
        return view;
    }
    let mut here = owner;
    let root = loop {
        let is_first = view.path.is_empty();
        if !view.path.insert(here) {
            break None;
        }
        let Some(word) = words.get(&here) else {
            break None;
        };
        let leads: Vec<Who> = word.leads.iter().copied().collect();
        match leads[..] {
            // One who leads nobody, or whose announcement is a fork, speaks in its own view alone.
            _ if word.is_fork => break (is_first && !word.has_left).then_some(here),
            [] => break (is_first && !word.has_left).then_some(here),
            [lead] if lead == here => break Some(here),
            [lead] => here = lead,
            _ => break None,
        }
    };
    view.members.extend(root);
    loop {
        let names = |by: &Who, of: &Who| {
            let word = words.get(by);
            word.is_some_and(|word| !word.is_fork && word.names.contains(of))
        };
        let joining: Vec<Who> = words
            .iter()
            .filter(|(key, word)| {
                let members = || view.members.iter();
                !view.members.contains(key)
                    && !word.is_fork
                    && !word.has_left
                    && members().any(|member| names(member, key))
                    && members().any(|member| names(key, member))
            })
            .map(|(key, _)| *key)
            .collect();
        if joining.is_empty() {
            return view;
        }
        view.members.extend(joining);
    }
}

/// Whether somebody else's announcement names a key: its own may be the answer.
pub fn is_invited(words: &Words, key: Who) -> bool {
    let mut others = words.iter().filter(|(by, _)| **by != key);
    others.any(|(_, word)| !word.is_fork && word.names.contains(&key))
}

/// Whether the word of a key is of use to one of the owners that are here: it counts there, the path
/// goes by it, or one who does names it.
pub fn is_wanted(words: &Words, key: Who, here: &BTreeSet<Who>) -> bool {
    here.iter().filter(|owner| **owner != key).any(|owner| {
        let View { members, path } = view(words, *owner);
        let mut involved = members;
        involved.extend(path);
        involved.insert(*owner);
        let names = |by: &Who| {
            let word = words.get(by);
            word.is_some_and(|word| !word.is_fork && word.names.contains(&key))
        };
        involved.contains(&key) || involved.iter().any(names)
    })
}

/// Whether a push makes of the refs that are there what a state says, and moves one of them. What is in
/// `pool` need not be pushed; what the state does not name may be deleted.
pub fn reaches(
    state: &Refs,
    commands: &[(Branch, Commit)],
    now: &Refs,
    pool: &BTreeSet<Commit>,
) -> bool {
    let agrees = |(branch, commit): &(Branch, Commit)| match state.get(branch) {
        Some(wanted) => wanted == commit,
        None => *commit == 0,
    };
    let is_pushed = |branch: &Branch| commands.iter().any(|(one, _)| one == branch);
    let is_there = |(branch, wanted): (&Branch, &Commit)| {
        is_pushed(branch) || now.get(branch) == Some(wanted) || pool.contains(wanted)
    };
    let moves = |(branch, wanted): (&Branch, &Commit)| now.get(branch) != Some(wanted);
    commands.iter().all(agrees) && state.iter().all(is_there) && state.iter().any(moves)
}

/// Whether a push leaves everything as it is.
pub fn changes_nothing(commands: &[(Branch, Commit)], now: &Refs) -> bool {
    let is_idle =
        |(branch, commit): &(Branch, Commit)| now.get(branch).copied().unwrap_or(0) == *commit;
    commands.iter().all(is_idle)
}
