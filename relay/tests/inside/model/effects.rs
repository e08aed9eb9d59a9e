//! What an event does by itself, when it comes or goes.

use super::{
    ledger::{Ledger, Shown, Standing, WAITS_FOR, Wait},
    rules::Address,
    steps::{Commit, Kind, Label, Name, Repo, Target, Who},
};

impl Ledger {
    fn touch(&mut self, label: Label) {
        let name = match self.fact(label).what.kind {
            Kind::Announcement { name, .. } | Kind::State { name, .. } => name,
            Kind::PullRequest { to, .. } => to.name,
            Kind::Deletion(_) => return,
        };
        self.touched.insert(name, self.now);
    }

    /// It waits, for the time that is given from now on.
    pub fn wait(&mut self, label: Label) {
        let until = self.now + WAITS_FOR;
        let is_soft = false;
        self.waiting.insert(label, Wait { until, is_soft });
    }

    /// An event that is here comes again: a state revives the announcements that trust its author, what is
    /// to be deleted is looked for again.
    pub fn send_again(&mut self, label: Label) {
        self.touch(label);
        let what = self.fact(label).what.clone();
        if let Kind::Deletion(target) = what.kind {
            self.delete(what.by, what.at, target);
        }
        if let Some(name) = self.fact(label).state_of() {
            self.renew_trusting(name, self.fact(label).what.by, true);
        }
    }

    fn renew_trusting(&mut self, name: Name, author: Who, only_soft: bool) {
        for repo in self.trusting(name, author) {
            if let Some(label) = self.waiting_for(repo)
                && (self.waiting[&label].is_soft || !only_soft)
            {
                let before = self.waiting[&label];
                self.wait(label);
                if before.is_soft {
                    self.shown.insert(repo, Shown::default());
                }
            }
        }
    }

    /// The event of a pull request is here: of what was offered for it only the commit that it names stays.
    pub fn choose(&mut self, label: Label, commit: Commit) {
        if let Some(offered) = self.offered.get_mut(&label) {
            offered.retain(|_, one| one.commits.contains(&commit));
            for one in offered.values_mut() {
                one.commits = vec![commit];
            }
        }
    }

    pub fn take(&mut self, label: Label) {
        self.touch(label);
        self.held.remove(&label);
        let fact = self.fact(label).clone();
        match fact.what.kind {
            Kind::Announcement { name, is_here, .. } => {
                let owner = fact.what.by;
                let repo = Repo { owner, name };
                match is_here {
                    true => self.announce_here(label, repo),
                    false => {
                        if self.standing(repo) == Some(Standing::Active) {
                            self.moved.insert(repo);
                        }
                        if let Some(waiting) = self.waiting_for(repo) {
                            self.waiting.remove(&waiting);
                        }
                        self.serve(label);
                        self.remove_repository(repo);
                        self.fell.insert(name);
                        self.announced.insert(repo);
                    }
                }
            }
            Kind::State { name, .. } => {
                self.renew_trusting(name, fact.what.by, false);
                self.wait(label);
            }
            Kind::PullRequest { commit, .. } => {
                self.wait(label);
                self.choose(label, commit);
            }
            Kind::Deletion(target) => {
                self.served.insert(label);
                self.delete(fact.what.by, fact.what.at, target);
            }
        }
    }

    fn announce_here(&mut self, label: Label, repo: Repo) {
        self.announced.insert(repo);
        match self.standing(repo) {
            Some(Standing::Active) => self.serve(label),
            Some(Standing::Waiting { is_soft: false }) => {
                let waiting = self.waiting_for(repo);
                self.waiting.remove(&waiting.unwrap());
                self.wait(label);
            }
            _ => {
                if let Some(waiting) = self.waiting_for(repo) {
                    self.waiting.remove(&waiting);
                }
                self.wait(label);
                self.shown.insert(repo, Shown::default());
            }
        }
        if self.standing(repo) != Some(Standing::Active) {
            let members = self.view(repo).members;
            let waiting = self.waiting.keys().copied().filter(|label| {
                let fact = self.fact(*label);
                fact.state_of() == Some(repo.name) && members.contains(&fact.what.by)
            });
            for state in waiting.collect::<Vec<_>>() {
                self.wait(state);
            }
        }
    }

    /// It is served, in place of the version before.
    pub fn serve(&mut self, label: Label) {
        if let Some(address) = self.fact(label).address()
            && let Some(before) = self.stored(address)
        {
            self.served.remove(&before);
        }
        self.waiting.remove(&label);
        self.served.insert(label);
    }

    pub fn remove_repository(&mut self, repo: Repo) {
        self.shown.remove(&repo);
        for offered in self.offered.values_mut() {
            if let Some(offered) = offered.get_mut(&repo) {
                offered.is_there = false;
            }
        }
    }

    /// A version that does not list the service, by one whom nobody names.
    pub fn move_away(&mut self, label: Label) {
        let fact = self.fact(label).clone();
        let repo = fact.announced().expect("announcements move");
        match self.standing(repo) {
            Some(Standing::Waiting { .. }) => {
                let waiting = self.waiting_for(repo);
                self.drop_waiting(waiting.unwrap());
            }
            Some(Standing::Active) => {
                let stored = self.stored(Address::Announcement(repo));
                self.delist(stored.unwrap());
                self.overtake(Address::Announcement(repo), fact.version());
            }
            Some(Standing::Elsewhere) | None => {}
        }
    }

    /// An announcement that waits goes, and its repository.
    pub fn drop_waiting(&mut self, label: Label) {
        let repo = self.fact(label).announced().expect("an announcement");
        self.waiting.remove(&label);
        self.remove_repository(repo);
        self.fell.insert(repo.name);
    }

    /// A served announcement goes, and its repository unless a later version waits with it.
    pub fn delist(&mut self, label: Label) {
        let repo = self.fact(label).announced().expect("an announcement");
        self.served.remove(&label);
        self.held.insert(label);
        if self.waiting_for(repo).is_none() {
            self.remove_repository(repo);
        }
        self.fell.insert(repo.name);
        self.went_out.insert(repo.name);
        self.delisted_now.insert(repo);
        self.delisted.insert(repo);
    }

    fn delete(&mut self, by: Who, at: u32, target: Target) {
        let named: Vec<Label> = match target {
            Target::Event(label) => {
                self.deleted.insert((label, by));
                self.facts
                    .contains_key(&label)
                    .then_some(label)
                    .into_iter()
                    .collect()
            }
            Target::Announcement(name) | Target::State(name) => {
                let repo = Repo { owner: by, name };
                let address = match target {
                    Target::State(_) => Address::State(repo),
                    _ => Address::Announcement(repo),
                };
                let until = self.deleted_until.entry(address).or_insert(at);
                *until = at.max(*until);
                let versions = self
                    .facts
                    .iter()
                    .filter(|(_, fact)| fact.address() == Some(address) && fact.what.at <= at);
                versions.map(|(label, _)| *label).collect()
            }
        };
        // What waits first.
        for label in &named {
            if self.fact(*label).what.by == by && self.waiting.contains_key(label) {
                self.remove(*label);
            }
        }
        for label in named {
            if self.fact(label).what.by == by {
                self.remove(label);
                self.held.remove(&label);
            }
        }
    }

    /// Its author wants it to be here no more, or it has expired by its own word.
    fn remove(&mut self, label: Label) {
        let fact = self.fact(label).clone();
        let (is_served, waits) = (
            self.served.contains(&label),
            self.waiting.contains_key(&label),
        );
        if !is_served && !waits {
            return;
        }
        match fact.what.kind {
            Kind::Announcement { .. } if waits => {
                self.drop_waiting(label);
                let repo = fact.announced().unwrap();
                let (address, version) = (Address::Announcement(repo), fact.version());
                if self.delisted.contains(&repo) {
                    self.overtake(address, version);
                } else if self.moved.contains(&repo) {
                    self.perhaps_overtake(address, version);
                }
            }
            Kind::Announcement { .. } => {
                self.delist(label);
                self.overtake(fact.address().unwrap(), fact.version());
            }
            Kind::State { .. } => {
                self.served.remove(&label);
                self.waiting.remove(&label);
                self.overtake(fact.address().unwrap(), fact.version());
            }
            Kind::PullRequest { .. } => {
                self.served.remove(&label);
                self.waiting.remove(&label);
                self.offered.remove(&label);
            }
            Kind::Deletion(_) => {}
        }
    }

    pub fn expire_by_their_word(&mut self) {
        let labels: Vec<Label> = self.facts.keys().copied().collect();
        for label in labels {
            if self.has_expired(label) {
                let address = self.fact(label).address();
                if let Some(address @ Address::State(_)) = address
                    && self.waiting.remove(&label).is_some()
                {
                    let version = self.fact(label).version();
                    self.perhaps_overtake(address, version);
                }
                self.remove(label);
                self.held.remove(&label);
            }
        }
    }
}
