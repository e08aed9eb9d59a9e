//! Scripts as text: what a failure prints is what a test can be made of.
//!
//! ```text
//! 1: announce 1/x @10 here maintainers 2,3
//! 2: announce 2/x @11 elsewhere roles M1 m2:ended fork until 90
//! 3: state 1/x @12 main=1 dev=2
//! 4~ pr 5 @13 for 1/x at 101          (found on another relay)
//! 5: delete 1 @20 event 3             (or: announcement x, state x)
//! again 3
//! synced 3
//! push 1/x main=1 dev=0
//! offer 1/x 4=101
//! found x 1,2
//! pass 31
//! restart
//! ```

use std::fmt;

use super::steps::{
    BRANCHES, Branch, Commit, HISTORIES, Kind, Naming, Repo, Role, Step, Target, What,
};

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

fn listed(numbers: &[u8]) -> String {
    let numbers = numbers.iter().map(u8::to_string);
    numbers.collect::<Vec<_>>().join(",")
}

fn assigned(refs: &[(Branch, Commit)]) -> String {
    let refs = refs
        .iter()
        .map(|(name, commit)| format!(" {name}={commit}"));
    refs.collect()
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maintainers(named) if named.is_empty() => Ok(()),
            Self::Maintainers(named) => write!(f, " maintainers {}", listed(named)),
            Self::Roles(roles) => {
                write!(f, " roles")?;
                for Role {
                    letter,
                    who,
                    history,
                } in roles
                {
                    let written = HISTORIES.iter().find(|(one, _)| one == history);
                    write!(f, " {letter}{who}{}", written.unwrap().1)?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, at, .. } = self;
        match &self.kind {
            Kind::Announcement {
                name,
                is_here,
                is_fork,
                naming,
            } => {
                let place = if *is_here { "here" } else { "elsewhere" };
                let fork = if *is_fork { " fork" } else { "" };
                write!(f, "announce {by}/{name} @{at} {place}{naming}{fork}")?;
            }
            Kind::State { name, refs } => {
                write!(f, "state {by}/{name} @{at}{}", assigned(refs))?;
            }
            Kind::PullRequest { to, commit } => {
                write!(f, "pr {by} @{at} for {to} at {commit}")?;
            }
            Kind::Deletion(target) => match target {
                Target::Event(label) => write!(f, "delete {by} @{at} event {label}")?,
                Target::Announcement(name) => write!(f, "delete {by} @{at} announcement {name}")?,
                Target::State(name) => write!(f, "delete {by} @{at} state {name}")?,
            },
        }
        self.until
            .map_or(Ok(()), |minutes| write!(f, " until {minutes}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event {
                label,
                is_synced,
                what,
            } => write!(f, "{label}{} {what}", if *is_synced { '~' } else { ':' }),
            Self::Again {
                label,
                is_synced: false,
            } => write!(f, "again {label}"),
            Self::Again { label, .. } => write!(f, "synced {label}"),
            Self::Push { to, refs } => write!(f, "push {to}{}", assigned(refs)),
            Self::Offer { to, label, commit } => write!(f, "offer {to} {label}={commit}"),
            Self::Found { name, commits } => write!(f, "found {name} {}", listed(commits)),
            Self::Pass { minutes } => write!(f, "pass {minutes}"),
            Self::Restart => write!(f, "restart"),
        }
    }
}

/// A whole script, a step on each line.
pub fn write(script: &[Step]) -> String {
    script.iter().map(|step| format!("{step}\n")).collect()
}

/// The words of one line that are still to be read.
struct Words<'a> {
    line: &'a str,
    left: std::iter::Peekable<std::str::SplitWhitespace<'a>>,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> &'a str {
        let line = self.line;
        self.left
            .next()
            .unwrap_or_else(|| panic!("too short: {line}"))
    }

    fn number<T: std::str::FromStr>(&self, text: &str) -> T {
        let number = text.parse().ok();
        number.unwrap_or_else(|| panic!("{text} is no number: {}", self.line))
    }

    fn at(&mut self) -> u32 {
        let text = self.next();
        self.number(text.trim_start_matches('@'))
    }

    fn repo(&mut self) -> Repo {
        let (owner, name) = self.next().split_once('/').expect(self.line);
        Repo {
            owner: self.number(owner),
            name: self.number(name),
        }
    }

    fn list(&mut self) -> Vec<u8> {
        let list = self.next().split(',');
        list.map(|one| self.number(one)).collect()
    }

    fn is_next(&mut self, word: &str) -> bool {
        self.left.next_if_eq(&word).is_some()
    }

    fn pairs(&mut self) -> Vec<(&'a str, Commit)> {
        let mut pairs = Vec::new();
        while let Some(word) = self.left.next_if(|word| word.contains('=')) {
            let (name, commit) = word.split_once('=').unwrap();
            pairs.push((name, self.number(commit)));
        }
        pairs
    }

    fn refs(&mut self) -> Vec<(Branch, Commit)> {
        let known = |(name, commit)| {
            let branch = BRANCHES.iter().find(|branch| **branch == name);
            (*branch.expect(name), commit)
        };
        self.pairs().into_iter().map(known).collect()
    }

    fn naming(&mut self) -> Naming {
        if self.is_next("maintainers") {
            return Naming::Maintainers(self.list());
        }
        if !self.is_next("roles") {
            return Naming::Maintainers(Vec::new());
        }
        let mut roles = Vec::new();
        while let Some(word) = self.left.next_if(|word| word.starts_with(['M', 'm', 'o'])) {
            let end = word.find(':').unwrap_or(word.len());
            let history = HISTORIES.iter().find(|(_, text)| *text == &word[end..]);
            roles.push(Role {
                letter: word.chars().next().unwrap(),
                who: self.number(&word[1..end]),
                history: history.expect(word).0,
            });
        }
        Naming::Roles(roles)
    }

    fn what(&mut self) -> What {
        let (by, at, kind);
        match self.next() {
            "announce" => {
                let repo = self.repo();
                (by, at) = (repo.owner, self.at());
                let is_here = self.next() == "here";
                let naming = self.naming();
                kind = Kind::Announcement {
                    name: repo.name,
                    is_here,
                    is_fork: self.is_next("fork"),
                    naming,
                };
            }
            "state" => {
                let repo = self.repo();
                (by, at) = (repo.owner, self.at());
                let refs = self.refs();
                kind = Kind::State {
                    name: repo.name,
                    refs,
                };
            }
            "pr" => {
                by = self.list()[0];
                at = self.at();
                assert!(self.is_next("for"), "{}", self.line);
                let to = self.repo();
                assert!(self.is_next("at"), "{}", self.line);
                let commit = self.list()[0];
                kind = Kind::PullRequest { to, commit };
            }
            "delete" => {
                by = self.list()[0];
                at = self.at();
                let (which, target) = (self.next(), self.next());
                kind = Kind::Deletion(match which {
                    "event" => Target::Event(self.number(target)),
                    "announcement" => Target::Announcement(self.number(target)),
                    _ => Target::State(self.number(target)),
                });
            }
            other => panic!("no event: {other}"),
        }
        let until = self.is_next("until").then(|| {
            let minutes = self.next();
            self.number(minutes)
        });
        What {
            by,
            at,
            until,
            kind,
        }
    }

    fn step(&mut self) -> Step {
        let first = self.next();
        match first {
            "again" | "synced" => {
                let label = self.next();
                Step::Again {
                    label: self.number(label),
                    is_synced: first == "synced",
                }
            }
            "push" => Step::Push {
                to: self.repo(),
                refs: self.refs(),
            },
            "offer" => {
                let (to, (label, commit)) = (self.repo(), self.pairs()[0]);
                let label = self.number(label);
                Step::Offer { to, label, commit }
            }
            "found" => {
                let name = self.next();
                Step::Found {
                    name: self.number(name),
                    commits: self.list(),
                }
            }
            "pass" => {
                let minutes = self.next();
                Step::Pass {
                    minutes: self.number(minutes),
                }
            }
            "restart" => Step::Restart,
            label => Step::Event {
                label: self.number(label.trim_end_matches([':', '~'])),
                is_synced: label.ends_with('~'),
                what: self.what(),
            },
        }
    }
}

/// Reads what [`write`] wrote.
pub fn read(text: &str) -> Vec<Step> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty());
    let step = |line| {
        let left = str::split_whitespace(line).peekable();
        let mut words = Words { line, left };
        let step = words.step();
        assert_eq!(words.left.next(), None, "too long: {line}");
        step
    };
    lines.map(step).collect()
}
