//! Who maintains what (protocol, "Maintainers"): the one place that knows the rule.
//!
//! Whom an announcement names is invited, and no more: a key counts for a repository once its own
//! announcement of the same identifier names back, in force, somebody who counts already. That is worked
//! out from the owner on, to the fixed point. Where the owner's announcement forwards by `M` to a lead, it
//! is worked out from the lead at the end of the path; a path that breaks off, forks, or goes in a circle
//! confirms nobody. Forks (`u`) take no part in anybody's set.
//!
//! What follows for every owner is kept, and worked out anew only where a change can have reached: both
//! directions are read from the same. So much is worked out at once at most (`WORK_AT_ONCE`): a
//! crowd that names each other keeps nobody waiting, the rest follows by [`Maintainers::work_off`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use grasp_proto::words::Npub;

use crate::nip34::roles::Listing;

/// Whose word counts for an owner's repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaintainerRule {
    /// Whoever was named and has named back.
    #[default]
    Confirmed,
    /// Whoever is named, by the owner or by one who is: the rule of before, without a say of the named.
    Listed,
}

impl MaintainerRule {
    /// The word that settings and records have for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Listed => "listed",
        }
    }

    /// Reads that word.
    pub fn parse(word: &str) -> Option<Self> {
        let all = [Self::Confirmed, Self::Listed];
        all.into_iter().find(|rule| rule.word() == word)
    }
}

/// Keys that one set holds at most, the nearest ones.
const MEMBERS: usize = 256;
/// Keys that are named by members of one set and looked at, the first ones.
const CANDIDATES: usize = 4_096;
/// Announcements on the path to a lead.
const PATH: usize = 32;
/// Looks at a key after which the views left to be worked out are left for the next time.
const WORK_AT_ONCE: usize = 250_000;

/// What follows for one owner.
#[derive(Debug, Default, PartialEq, Eq)]
struct View {
    /// Whose states count.
    members: BTreeSet<Npub>,
    /// Whom the path to the lead leads through, whether it reaches one or not.
    path: Vec<Npub>,
}

impl View {
    fn rests_on(&self) -> impl Iterator<Item = &Npub> {
        let path = self.path.iter();
        path.filter(|key| !self.members.contains(key))
            .chain(&self.members)
    }
}

/// What all announcements of one identifier say of each other, and what follows for each.
#[derive(Debug, Default)]
pub struct Maintainers {
    rule: MaintainerRule,
    listings: HashMap<Npub, Arc<Listing>>,
    named_by: HashMap<Npub, BTreeSet<Npub>>,
    views: BTreeMap<Npub, View>,
    /// Owners whose view rests on a key.
    resting_on: HashMap<Npub, BTreeSet<Npub>>,
    /// Owners whose view is to be worked out anew.
    stale: BTreeSet<Npub>,
}

impl Maintainers {
    /// Nobody announces anything yet.
    pub fn new(rule: MaintainerRule) -> Self {
        Self {
            rule,
            ..Self::default()
        }
    }

    /// `owner` announces the identifier and says this; what it said before is forgotten. Gives the
    /// owners whose set has changed.
    pub fn announce(&mut self, owner: Npub, listing: &Arc<Listing>) -> BTreeSet<Npub> {
        if self.listings.get(&owner) == Some(listing) {
            return BTreeSet::new();
        }
        self.forget(&owner);
        for named in self.names_of(listing) {
            self.named_by.entry(*named).or_default().insert(owner);
        }
        self.listings.insert(owner, listing.clone());
        let mut reached = self.resting_on.get(&owner).cloned().unwrap_or_default();
        if self.rule == MaintainerRule::Confirmed {
            reached.extend(self.may_be_joined_by(&owner, listing));
        }
        self.stale.extend(reached);
        self.stale.remove(&owner);
        // Its author's own word counts at once, whatever else there is to work out.
        let (own, _) = self.view_anew(owner);
        let mut changed = self.work_off();
        changed.extend(own);
        changed
    }

    /// `owner` does not announce the identifier any more. Gives the owners whose set has changed.
    pub fn withdraw(&mut self, owner: &Npub) -> BTreeSet<Npub> {
        if !self.listings.contains_key(owner) {
            return BTreeSet::new();
        }
        self.forget(owner);
        self.stale.remove(owner);
        let mut changed = BTreeSet::new();
        if let Some(view) = self.views.remove(owner) {
            self.rests_no_more(owner, &view);
            if !view.members.is_empty() {
                changed.insert(*owner);
            }
        }
        let reached = self.resting_on.get(owner).cloned();
        self.stale.extend(reached.unwrap_or_default());
        changed.extend(self.work_off());
        changed
    }

    /// Works out what is left, or as much of it as is done at once; gives the owners whose set has
    /// changed by that.
    pub fn work_off(&mut self) -> BTreeSet<Npub> {
        let (mut changed, mut work) = (BTreeSet::new(), 0);
        while work < WORK_AT_ONCE
            && let Some(owner) = self.stale.pop_first()
        {
            let (one, took) = self.view_anew(owner);
            changed.extend(one);
            work += took;
        }
        changed
    }

    /// Whether some views are still to be worked out anew.
    pub fn has_stale_views(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Whom `owner` names, as it stands.
    pub fn named(&self, owner: &Npub) -> &[Npub] {
        let listing = self.listings.get(owner);
        listing.map_or(&[], |listing| &listing.names)
    }

    /// Whether nobody announces the identifier.
    pub fn is_empty(&self) -> bool {
        self.listings.is_empty()
    }

    /// The owner's set; empty if `owner` does not announce the identifier, or has left it and forwards
    /// to nobody.
    pub fn set_of(&self, owner: &Npub) -> BTreeSet<Npub> {
        let view = self.views.get(owner);
        view.map_or_else(BTreeSet::new, |view| view.members.clone())
    }

    /// Whether `author` is in the owner's set.
    pub fn is_in_set_of(&self, owner: &Npub, author: &Npub) -> bool {
        let view = self.views.get(owner);
        view.is_some_and(|view| view.members.contains(author))
    }

    /// The owners whose set `author` is in.
    pub fn owners_trusting<'a>(&'a self, author: &'a Npub) -> impl Iterator<Item = Npub> + 'a {
        let resting = self.resting_on.get(author).into_iter().flatten();
        resting
            .filter(|owner| self.is_in_set_of(owner, author))
            .copied()
    }

    /// Whether somebody else's announcement names a key in force: it is invited, and its own
    /// announcement is what would answer.
    pub fn is_invited(&self, key: &Npub) -> bool {
        let mut by = self.named_by.get(key).into_iter().flatten();
        by.any(|by| by != key)
    }

    /// Whether a key is named by, or the lead at the end of a path of, one of the owners that
    /// `counts` is true for, or by a member of such a one's set.
    pub fn is_wanted_by(&self, key: &Npub, counts: impl Fn(&Npub) -> bool) -> bool {
        let counts = |owner: &Npub| owner != key && counts(owner);
        let resting = |on: &Npub| self.resting_on.get(on).into_iter().flatten();
        resting(key).any(&counts)
            || self
                .named_by
                .get(key)
                .is_some_and(|by| by.iter().any(|by| counts(by) || resting(by).any(&counts)))
    }

    /// Whom the owner's set and its path name, themselves included: whose announcements matter to it.
    pub fn wanted_by(&self, owner: &Npub) -> BTreeSet<Npub> {
        let Some(view) = self.views.get(owner) else {
            return BTreeSet::new();
        };
        let mut wanted: BTreeSet<Npub> = view.rests_on().copied().collect();
        let members = view.rests_on().chain([owner]);
        wanted.extend(members.flat_map(|member| self.names_in_force(member)));
        wanted
    }

    fn forget(&mut self, owner: &Npub) {
        let Some(listing) = self.listings.remove(owner) else {
            return;
        };
        for named in self.names_of(&listing) {
            if let Some(by) = self.named_by.get_mut(named) {
                by.remove(owner);
                if by.is_empty() {
                    self.named_by.remove(named);
                }
            }
        }
    }

    /// Whom a listing names as the rule has it.
    fn names_of<'a>(&self, listing: &'a Listing) -> &'a [Npub] {
        match self.rule {
            MaintainerRule::Confirmed if listing.is_fork => &[],
            _ => &listing.names,
        }
    }

    fn names_in_force(&self, owner: &Npub) -> &[Npub] {
        let listing = self.listings.get(owner);
        listing.map_or(&[], |listing| self.names_of(listing))
    }

    /// Owners whose set a key may be in that has just named some of its members: one of them must
    /// name it, too.
    fn may_be_joined_by(&self, key: &Npub, listing: &Listing) -> BTreeSet<Npub> {
        let Some(named_by) = self.named_by.get(key) else {
            return BTreeSet::new();
        };
        let named = self.names_of(listing).iter();
        let owners = named.filter_map(|named| self.resting_on.get(named));
        let mut owners: BTreeSet<Npub> = owners.flatten().copied().collect();
        owners.retain(|owner| {
            let members = &self.views[owner].members;
            match members.len() < named_by.len() {
                true => members.iter().any(|member| named_by.contains(member)),
                false => named_by.iter().any(|by| members.contains(by)),
            }
        });
        owners
    }

    /// Works out the view of one owner; gives it back if its set has changed, and how much work that was.
    fn view_anew(&mut self, owner: Npub) -> (Option<Npub>, usize) {
        let (view, work) = match self.rule {
            MaintainerRule::Confirmed => self.confirmed(&owner),
            MaintainerRule::Listed => self.listed(owner),
        };
        let before = self.views.remove(&owner).unwrap_or_default();
        let has_changed = view.members != before.members;
        if view != before {
            self.rests_no_more(&owner, &before);
            for key in view.rests_on() {
                self.resting_on.entry(*key).or_default().insert(owner);
            }
        }
        self.views.insert(owner, view);
        (has_changed.then_some(owner), work)
    }

    fn rests_no_more(&mut self, owner: &Npub, before: &View) {
        for key in before.rests_on() {
            if let Some(owners) = self.resting_on.get_mut(key) {
                owners.remove(owner);
                if owners.is_empty() {
                    self.resting_on.remove(key);
                }
            }
        }
    }

    /// Where an owner's view begins, and whom the path there led through.
    fn root(&self, owner: &Npub) -> (Option<Npub>, Vec<Npub>) {
        let mut path = vec![*owner];
        let mut here = *owner;
        loop {
            let is_forwarded = here != *owner;
            let root = match self.listings.get(&here) {
                None => None,
                Some(listing) if listing.is_fork => {
                    (!is_forwarded && !listing.author_has_left).then_some(here)
                }
                Some(listing) => match listing.leads[..] {
                    [] => (!is_forwarded && !listing.author_has_left).then_some(here),
                    [lead] if lead == here => Some(here),
                    [lead] if path.len() < PATH && !path.contains(&lead) => {
                        path.push(lead);
                        here = lead;
                        continue;
                    }
                    _ => None,
                },
            };
            return (root, path);
        }
    }

    fn confirmed(&self, owner: &Npub) -> (View, usize) {
        let (root, path) = self.root(owner);
        let mut view = View {
            members: BTreeSet::from_iter(root),
            path,
        };
        let mut fresh = VecDeque::from_iter(root);
        // Named by a member; has not named back one so far.
        let mut invited: BTreeSet<Npub> = BTreeSet::new();
        let (mut candidates, mut work) = (0, 1);
        while let Some(member) = fresh.pop_front() {
            let answers = |key: &Npub| {
                let listing = self.listings.get(key)?;
                (!listing.is_fork && !listing.author_has_left).then_some(listing)
            };
            let named = self.names_in_force(&member);
            work += named.len() + invited.len();
            let mut joining: Vec<Npub> = invited
                .iter()
                .filter(|key| answers(key).is_some_and(|listing| listing.names(&member)))
                .copied()
                .collect();
            for key in named {
                if view.members.contains(key) || invited.contains(key) {
                    continue;
                }
                let Some(listing) = answers(key) else {
                    continue;
                };
                candidates += 1;
                if candidates > CANDIDATES {
                    break;
                }
                work += listing.names.len();
                if listing.names.iter().any(|by| view.members.contains(by)) {
                    joining.push(*key);
                } else {
                    invited.insert(*key);
                }
            }
            for key in joining {
                invited.remove(&key);
                if view.members.len() < MEMBERS && view.members.insert(key) {
                    fresh.push_back(key);
                }
            }
        }
        (view, work)
    }

    fn listed(&self, owner: Npub) -> (View, usize) {
        let mut view = View {
            members: BTreeSet::from([owner]),
            path: Vec::new(),
        };
        let (mut fresh, mut work) = (VecDeque::from([owner]), 1);
        while let Some(member) = fresh.pop_front() {
            let named = self.names_in_force(&member);
            work += named.len();
            for key in named {
                if view.members.len() < MEMBERS && view.members.insert(*key) {
                    fresh.push_back(*key);
                }
            }
        }
        (view, work)
    }
}

#[cfg(test)]
mod tests;
