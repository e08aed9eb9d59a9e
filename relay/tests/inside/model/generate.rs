//! Scripts from a seed. What comes later refers to what came before, so that much of it matters.

use super::{
    random::Random,
    steps::{
        BRANCHES, Branch, Commit, HISTORIES, History, Kind, Label, NAMES, Name, Naming, OWNERS,
        Repo, Role, Step, Target, What, Who,
    },
};

/// The days that pass in one script at most: nothing that is held goes by its age.
const MOST_MINUTES: u32 = 25 * 24 * 60;
/// Those who offer pull requests.
const CONTRIBUTORS: [Who; 3] = [5, 6, 1];

/// What a script has come to.
struct Writer {
    random: Random,
    steps: Vec<Step>,
    /// All events that came, or are to come, latest last.
    events: Vec<(Label, What)>,
    /// Pull requests whose ref was offered and that are to come.
    owed: Vec<(Label, What)>,
    at: u32,
    minutes: u32,
}

/// A script of so many steps.
pub fn script(seed: u64, steps: usize) -> Vec<Step> {
    let mut writer = Writer {
        random: Random::new(seed),
        steps: Vec::new(),
        events: Vec::new(),
        owed: Vec::new(),
        at: 10,
        minutes: 0,
    };
    while writer.steps.len() < steps {
        writer.write();
    }
    writer.steps
}

type Write = fn(&mut Writer);

impl Writer {
    fn write(&mut self) {
        const WHICH: [(Write, usize); 11] = [
            (Writer::announce, 17),
            (Writer::replace, 13),
            (Writer::state, 18),
            (Writer::push, 18),
            (Writer::pull_request, 6),
            (Writer::offer, 6),
            (Writer::delete, 7),
            (Writer::again, 5),
            (Writer::found, 5),
            (Writer::pass, 7),
            (Writer::restart, 3),
        ];
        let write = self.random.weighed(&WHICH);
        write(self);
    }

    fn name(&mut self) -> Name {
        self.random.weighed(&[(NAMES[0], 85), (NAMES[1], 15)])
    }

    fn owner(&mut self) -> Who {
        let [first, second, third, fourth] = OWNERS;
        self.random
            .weighed(&[(first, 35), (second, 30), (third, 25), (fourth, 10)])
    }

    fn repo(&mut self) -> Repo {
        Repo {
            owner: self.owner(),
            name: self.name(),
        }
    }

    /// Mostly later than all before.
    fn when(&mut self) -> u32 {
        match self.random.below(10) {
            0..7 => {
                self.at += 1;
                self.at
            }
            7 => self.at,
            _ => self.at - u32::try_from(self.random.below(8)).unwrap(),
        }
    }

    fn until(&mut self) -> Option<u32> {
        let minutes = [10, 45, 100, 2_000];
        self.random
            .is(5)
            .then(|| self.minutes + self.random.pick(&minutes))
    }

    fn label(&self) -> Label {
        Label::try_from(self.events.len() + 1).unwrap()
    }

    fn event(&mut self, by: Who, kind: Kind) -> What {
        What {
            by,
            at: self.when(),
            until: self.until(),
            kind,
        }
    }

    fn send(&mut self, what: What) {
        let label = self.label();
        let is_synced = self.random.is(12);
        self.events.push((label, what.clone()));
        self.steps.push(Step::Event {
            label,
            is_synced,
            what,
        });
    }

    fn others(&mut self, than: Who) -> Vec<Who> {
        let others = OWNERS.into_iter().filter(|who| *who != than);
        others.filter(|_| self.random.is(50)).collect()
    }

    fn history(&mut self) -> History {
        match self.random.is(60) {
            true => self.random.pick(&[History::Open, History::Since]),
            false => self.random.pick(&HISTORIES).0,
        }
    }

    fn role(&mut self, who: Who) -> Role {
        Role {
            letter: self.random.weighed(&[('M', 25), ('m', 60), ('o', 15)]),
            who,
            history: self.history(),
        }
    }

    fn naming(&mut self, by: Who) -> Naming {
        if self.random.is(60) {
            return Naming::Maintainers(self.others(by));
        }
        let mut named = self.others(by);
        if self.random.is(50) {
            named.push(by);
        }
        if named.is_empty() {
            named.push(by);
        }
        Naming::Roles(named.into_iter().map(|who| self.role(who)).collect())
    }

    fn announce(&mut self) {
        let Repo { owner, name } = self.repo();
        let kind = Kind::Announcement {
            name,
            is_here: self.random.is(72),
            is_fork: self.random.is(6),
            naming: self.naming(owner),
        };
        let what = self.event(owner, kind);
        self.send(what);
    }

    /// One that was announced before says something else about one key.
    fn replace(&mut self) {
        let is_announcement =
            |(_, what): &&(Label, What)| matches!(what.kind, Kind::Announcement { .. });
        let before = self.events.iter().rev().filter(is_announcement);
        let before: Vec<What> = before.take(6).map(|(_, what)| what.clone()).collect();
        if before.is_empty() {
            return self.announce();
        }
        let before = before[self.random.below(before.len())].clone();
        let mut what = self.event(before.by, before.kind);
        let Kind::Announcement {
            naming, is_here, ..
        } = &mut what.kind
        else {
            unreachable!("it was looked for");
        };
        let whose = self.owner();
        match naming {
            Naming::Maintainers(named) => match named.iter().position(|one| *one == whose) {
                Some(at) => drop(named.remove(at)),
                None => named.push(whose),
            },
            Naming::Roles(roles) => {
                let role = self.role(whose);
                roles.retain(|one| one.who != whose);
                roles.push(role);
            }
        }
        *is_here ^= self.random.is(12);
        self.send(what);
    }

    fn commit(&mut self) -> Commit {
        self.random.pick(&[1, 2, 3, 4, 5, 6, 101])
    }

    fn state(&mut self) {
        let Repo { owner, name } = self.repo();
        let mut refs: Vec<(Branch, Commit)> = Vec::new();
        for (at, branch) in BRANCHES.into_iter().enumerate() {
            if self.random.is([90, 30, 20][at]) {
                refs.push((branch, self.commit()));
            }
        }
        if refs.is_empty() {
            refs.push((BRANCHES[1], self.commit()));
        }
        let what = self.event(owner, Kind::State { name, refs });
        self.send(what);
        // Many push what they have just signed.
        if self.random.is(35) {
            self.push_last(owner, name, 1);
        }
    }

    fn push(&mut self) {
        let Repo { owner, name } = self.repo();
        self.push_last(owner, name, 5);
    }

    /// Pushes to an owner's repository what one of the last states of the identifier says, or something
    /// like it.
    fn push_last(&mut self, owner: Who, name: Name, of: usize) {
        let states = self.events.iter().rev();
        let states = states.filter_map(|(_, what)| match &what.kind {
            Kind::State { name: of, refs } if *of == name => Some((what.by, refs.clone())),
            _ => None,
        });
        let states: Vec<_> = states.take(of).collect();
        let Some((author, mut refs)) = states
            .get(self.random.below(of.min(states.len()).max(1)))
            .cloned()
        else {
            return;
        };
        match self.random.below(20) {
            0..13 => {}
            13 => refs.push((self.random.pick(&BRANCHES), 0)),
            14 | 15 => drop(refs.pop()),
            16 => refs[0].1 = self.commit(),
            17 => refs = vec![(self.random.pick(&BRANCHES), 0)],
            _ => refs.push((self.random.pick(&BRANCHES), self.commit())),
        }
        refs.sort_by_key(|(branch, _)| *branch);
        refs.dedup_by_key(|(branch, _)| *branch);
        if refs.is_empty() {
            return;
        }
        let owner = if self.random.is(50) { author } else { owner };
        let to = Repo { owner, name };
        self.steps.push(Step::Push { to, refs });
    }

    fn requested(&mut self) -> What {
        let to = self.repo();
        let commit = self.random.pick(&[101, 101, 102, 103, 1]);
        let by = self.random.pick(&CONTRIBUTORS);
        self.event(by, Kind::PullRequest { to, commit })
    }

    fn pull_request(&mut self) {
        if let Some((label, what)) = self.owed.pop() {
            let is_synced = false;
            self.steps.push(Step::Event {
                label,
                is_synced,
                what,
            });
            return;
        }
        let what = self.requested();
        self.send(what);
    }

    fn offer(&mut self) {
        let is_request = |(_, what): &&(Label, What)| matches!(what.kind, Kind::PullRequest { .. });
        let known = self.events.iter().rev().filter(is_request).take(4);
        let mut known: Vec<(Label, What)> = known.cloned().collect();
        if known.is_empty() || self.random.is(35) {
            let (label, what) = (self.label(), self.requested());
            self.events.push((label, what.clone()));
            self.owed.push((label, what.clone()));
            known = vec![(label, what)];
        }
        let (label, what) = known[self.random.below(known.len())].clone();
        let Kind::PullRequest { mut to, mut commit } = what.kind else {
            unreachable!("it was looked for");
        };
        if self.random.is(25) {
            to.owner = self.owner();
        }
        if self.random.is(20) {
            commit = self.random.pick(&[101, 102, 103]);
        }
        self.steps.push(Step::Offer { to, label, commit });
    }

    fn recent(&mut self, of: usize) -> Option<(Label, What)> {
        let count = self.events.len().min(of);
        let at = self.events.len().checked_sub(count)? + self.random.below(count.max(1));
        self.events.get(at).cloned()
    }

    fn delete(&mut self) {
        let Some((label, what)) = self.recent(12) else {
            return;
        };
        let target = match &what.kind {
            Kind::Announcement { name, .. } if self.random.is(40) => Target::Announcement(*name),
            Kind::State { name, .. } if self.random.is(40) => Target::State(*name),
            _ => Target::Event(label),
        };
        let by = match self.random.is(88) {
            true => what.by,
            false => self.owner(),
        };
        let mut deletion = self.event(by, Kind::Deletion(target));
        deletion.until = None;
        self.send(deletion);
    }

    fn again(&mut self) {
        let Some((label, _)) = self.recent(15) else {
            return;
        };
        // What was offered for it comes as itself first.
        if self.owed.iter().all(|(owed, _)| *owed != label) {
            let is_synced = self.random.is(40);
            self.steps.push(Step::Again { label, is_synced });
        }
    }

    fn found(&mut self) {
        let name = self.name();
        let mut commits = Vec::new();
        for (_, what) in self.events.iter().rev().take(12) {
            match &what.kind {
                Kind::State { name: of, refs } if *of == name => {
                    commits.extend(refs.iter().map(|(_, commit)| *commit));
                }
                Kind::PullRequest { to, commit } if to.name == name => commits.push(*commit),
                _ => {}
            }
        }
        commits.sort_unstable();
        commits.dedup();
        let commits: Vec<Commit> = commits.into_iter().filter(|_| self.random.is(70)).collect();
        if !commits.is_empty() {
            self.steps.push(Step::Found { name, commits });
        }
    }

    fn pass(&mut self) {
        const DAY: u32 = 24 * 60;
        let weights = [
            (5, 30),
            (20, 20),
            (31, 25),
            (90, 12),
            (DAY + 31, 8),
            (5 * DAY, 3),
        ];
        let minutes = self.random.weighed(&weights);
        if self.minutes + minutes <= MOST_MINUTES {
            self.minutes += minutes;
            self.steps.push(Step::Pass { minutes });
        }
    }

    fn restart(&mut self) {
        self.steps.push(Step::Restart);
    }
}
