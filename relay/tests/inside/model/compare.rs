//! Whether the relay shows what the rules say, and nothing else.

use std::collections::BTreeSet;

use super::{
    ledger::{Ledger, Standing},
    rules::Fact,
    settle::{Seen, SeenRepo},
    steps::{Kind, Label, NAMES, OWNERS, Repo},
};

impl Ledger {
    pub fn compare_events(&self, seen: &Seen) -> Result<(), String> {
        for (label, fact) in &self.facts {
            if matches!(fact.what.kind, Kind::Deletion(_)) {
                continue;
            }
            let is_served = self.served.contains(label);
            if is_served != seen.served.contains(label) {
                let is_to_be = if is_served { "must" } else { "must not" };
                return Err(format!("{label} {is_to_be} be served"));
            }
            let waits = self.waiting.get(label).map(|wait| wait.is_soft);
            if waits != seen.waiting.get(label).copied() {
                let seen = seen.waiting.get(label);
                return Err(format!(
                    "{label} waits (soft-expired?): {waits:?} by the rules, {seen:?} here"
                ));
            }
        }
        Ok(())
    }

    pub fn compare_repositories(&mut self, seen: &Seen) -> Result<(), String> {
        self.refs.clear();
        let repos = NAMES
            .iter()
            .flat_map(|name| OWNERS.map(|owner| Repo { owner, name: *name }));
        for repo in repos {
            let is_here = matches!(
                self.standing(repo),
                Some(Standing::Active | Standing::Waiting { is_soft: false })
            );
            let there = seen.repos.get(&repo);
            if is_here != there.is_some() {
                let is_to_be = if is_here { "must" } else { "must not" };
                return Err(format!("the repository {repo} {is_to_be} be here"));
            }
            let Some(there) = there else { continue };
            let shown = self.shown.entry(repo).or_default();
            if shown.branches != there.branches {
                return Err(format!(
                    "{repo} is at {:?}, and by the rules at {:?}",
                    there.branches, shown.branches
                ));
            }
            self.compare_requested(repo, there)?;
        }
        Ok(())
    }

    /// Whether a pull request belongs into a repository: it is offered to its owner, or to one whom this
    /// one trusts.
    fn belongs_in(&self, label: Label, repo: Repo) -> bool {
        let offered = self.facts.get(&label).and_then(Fact::requested);
        offered.is_some_and(|(to, _)| {
            to == repo || to.name == repo.name && self.view(repo).members.contains(&to.owner)
        })
    }

    fn compare_requested(&mut self, repo: Repo, there: &SeenRepo) -> Result<(), String> {
        let refs = there.requested.iter();
        self.refs
            .extend(refs.map(|(label, commit)| ((repo, *label), *commit)));
        let is_served = self.standing(repo) == Some(Standing::Active);
        for label in self.served.iter().filter(|_| is_served) {
            if self.belongs_in(*label, repo) && !there.requested.contains_key(label) {
                return Err(format!("{repo} lacks the ref of {label}"));
            }
        }
        let mut requested = BTreeSet::new();
        for (label, commit) in &there.requested {
            let is_live = self.served.contains(label) || self.waiting.contains_key(label);
            let offered = self.offered.get(label).and_then(|all| all.get(&repo));
            let is_offered = offered.is_some_and(|one| one.commits[0] == *commit);
            let wanted = self.facts.get(label).and_then(Fact::requested);
            let was_there = self.had.contains(&(repo, *label));
            let is_signed = is_live
                && wanted.is_some_and(|(_, wanted)| wanted == *commit)
                && (was_there || self.served.contains(label) && self.belongs_in(*label, repo));
            if !is_signed && !is_offered {
                return Err(format!("{repo} has a ref for {label} at {commit}"));
            }
            if is_live {
                requested.insert(*label);
                self.had.insert((repo, *label));
            }
        }
        for (label, offered) in &self.offered {
            let Some(one) = offered.get(&repo).filter(|one| one.is_there) else {
                continue;
            };
            if there.requested.get(label) != one.commits.first() {
                return Err(format!("{repo} has lost what was offered for {label}"));
            }
        }
        self.shown.get_mut(&repo).unwrap().requested = requested;
        Ok(())
    }
}
