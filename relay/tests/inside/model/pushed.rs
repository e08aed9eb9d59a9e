//! Which pushes are allowed, and what they bring.

use std::collections::BTreeSet;

use super::{
    ledger::{Ledger, Offered, Shown, Standing, WAITS_FOR},
    rules::{self, Fact},
    steps::{Branch, Commit, Label, Repo},
};

impl Ledger {
    /// Whether a repository takes pushes.
    fn is_open(&self, repo: Repo) -> bool {
        matches!(
            self.standing(repo),
            Some(Standing::Active | Standing::Waiting { is_soft: false })
        )
    }

    pub fn push(
        &mut self,
        to: Repo,
        refs: &[(Branch, Commit)],
        is_granted: bool,
    ) -> Result<(), String> {
        let now = self.shown.get(&to).cloned().unwrap_or_default();
        let pool = self.pool.entry(to.name).or_default().clone();
        let is_idle = rules::changes_nothing(refs, &now.branches);
        let fulfilled = self.fulfilled_by(to, refs, &now, &pool);
        let is_allowed = self.is_open(to) && (is_idle || fulfilled.is_some());
        if is_allowed != is_granted {
            let said = if is_granted { "granted" } else { "refused" };
            return Err(format!("a push to {to} was {said}"));
        }
        if let Some(state) = fulfilled.filter(|_| is_granted && !is_idle) {
            self.touched.insert(to.name, self.now);
            let pushed = refs.iter().map(|(_, commit)| *commit);
            let pool = self.pool.entry(to.name).or_default();
            pool.extend(pushed.filter(|commit| *commit != 0));
            self.wait(state);
        }
        Ok(())
    }

    /// The waiting state, authorised and later than what is there, that a push reaches.
    fn fulfilled_by(
        &self,
        to: Repo,
        refs: &[(Branch, Commit)],
        now: &Shown,
        pool: &BTreeSet<Commit>,
    ) -> Option<Label> {
        let members = self.view(to).members;
        let served = self.latest(to).map(|label| self.fact(label).version());
        // Of one who counts no more, and not to be gone behind all the same.
        let retained = now
            .by
            .filter(|(_, by)| !members.contains(by))
            .map(|by| by.0);
        let fulfils = |label: &&Label| {
            let fact = self.fact(**label);
            fact.state_of() == Some(to.name)
                && members.contains(&fact.what.by)
                && served.is_none_or(|served| fact.version() >= served)
                && retained.is_none_or(|retained| fact.version() > retained)
                && rules::reaches(&fact.refs(), refs, &now.branches, pool)
        };
        let waiting = self.waiting.keys().filter(fulfils);
        waiting
            .max_by_key(|label| self.fact(**label).version())
            .copied()
    }

    pub fn offer(
        &mut self,
        to: Repo,
        label: Label,
        commit: Commit,
        is_granted: bool,
    ) -> Result<(), String> {
        let requested = self.facts.get(&label).and_then(Fact::requested);
        let is_known = self.served.contains(&label) || self.waiting.contains_key(&label);
        let belongs = requested.is_some_and(|(of, _)| {
            let standing = self.standing(of);
            self.served.contains(&label)
                || matches!(standing, Some(Standing::Active | Standing::Elsewhere))
        });
        let is_wanted = requested.is_some_and(|(_, wanted)| wanted == commit);
        // Whoever knows the id may push for it, and takes away nothing of what others have.
        let seen = self.refs.get(&(to, label)).copied();
        let there = self.commit_for(to, label).or(seen);
        let is_allowed =
            self.is_open(to) && (there == Some(commit) || !is_known || (belongs && is_wanted));
        if is_allowed != is_granted {
            let said = if is_granted { "granted" } else { "refused" };
            return Err(format!("the offer for {label} to {to} was {said}"));
        }
        let waiting = self.offered.get(&label).and_then(|all| all.get(&to));
        let is_there = |one: &&Offered| one.is_there || one.commits.first() == seen.as_ref();
        let waiting = waiting.filter(is_there).filter(|_| !is_known);
        let mut commits = waiting.map_or_else(Vec::new, |one| one.commits.clone());
        if is_granted && there != Some(commit) && !commits.contains(&commit) {
            self.touched.insert(to.name, self.now);
            commits.push(commit);
            let offered = Offered {
                commits,
                is_there: true,
                until: self.now + WAITS_FOR,
            };
            self.offered.entry(label).or_default().insert(to, offered);
            if is_known {
                self.pool.entry(to.name).or_default().insert(commit);
                let shown = self.shown.entry(to).or_default();
                shown.requested.insert(label);
                self.had.insert((to, label));
            }
        }
        Ok(())
    }

    /// The commit at which a repository has the ref of a pull request.
    pub fn commit_for(&self, repo: Repo, label: Label) -> Option<Commit> {
        let shown = self.shown.get(&repo)?;
        let offered = self.offered.get(&label).and_then(|all| all.get(&repo));
        match shown.requested.contains(&label) {
            true => Some(self.fact(label).requested()?.1),
            false => offered.filter(|one| one.is_there).map(|one| one.commits[0]),
        }
    }
}
