//! Whether purgatory costs the same however much waits in it.
//!
//! On the relay's own types, without a journal: what is looked at is whether an operation depends
//! on what else is there, and a disk would hide that.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use grasp_proto::{
    contract::Command,
    words::{self, Oid, RefName, RepoId},
};
use grasp_relay::{
    clock::{Clock, Moment},
    journal::Journal,
    nip34::{announcement::Announcement, state::State},
    policy::push::{Case, judge},
    purgatory::{Purgatory, WAITS_FOR, announcements, states},
    repository::{Repositories, Standing},
};
use nostr::{
    Event, EventId, Keys, PublicKey,
    event::{Kind, Tag},
    prelude::Signature,
    types::Timestamp,
};
use rand::{RngCore, SeedableRng, rngs::StdRng};

use crate::{
    nostr::event,
    report::{Growth, Report},
};

/// Operations that one figure is the mean of, and figures that a row is the median of.
const BATCH: usize = 500;
const BATCHES: usize = 9;

/// Entries that come due in one step of the sweep.
const DUE: usize = 100;

const COMMIT: &str = "1111111111111111111111111111111111111111";

/// Purgatory with what stands beside it, and events to put in.
struct Setting {
    clock: Clock,
    purgatory: Purgatory,
    repositories: Repositories,
    random: StdRng,
    signature: Signature,
}

/// What was put in for one repository.
struct Added {
    repo: RepoId,
    state: words::EventId,
}

impl Setting {
    fn new() -> anyhow::Result<Self> {
        let clock = Clock::standing_at(Moment::from_millis(1_700_000_000_000));
        Ok(Self {
            purgatory: Purgatory::new(Journal::none(), clock.clone()),
            clock,
            repositories: Repositories::default(),
            random: StdRng::seed_from_u64(1),
            signature: event(&Keys::generate(), 1, 0, &[])?.sig,
        })
    }

    /// An event by somebody, as it is after its signature was checked.
    fn event(
        &mut self,
        author: PublicKey,
        kind: u16,
        tags: &[&[&str]],
    ) -> anyhow::Result<Arc<Event>> {
        let mut id = [0; 32];
        self.random.fill_bytes(&mut id);
        let tags = tags.iter().map(|tag| Tag::parse(tag.iter().copied()));
        Ok(Arc::new(Event::new(
            EventId::from_byte_array(id),
            author,
            Timestamp::from_secs(1_700_000_000),
            Kind::Custom(kind),
            tags.collect::<Result<Vec<_>, _>>()?,
            "",
            self.signature,
        )))
    }

    /// An announcement and a state of a repository that is like no other.
    fn pair(&mut self) -> anyhow::Result<(Announcement, State)> {
        let mut key = [0; 32];
        self.random.fill_bytes(&mut key);
        let author = PublicKey::from_slice(&key)?;
        let name = format!("project-{}", self.random.next_u64());
        let url = format!("https://git.example.com/somebody/{name}.git");
        let announcement = self.event(
            author,
            30617,
            &[
                &["d", &name],
                &["clone", &url],
                &["relays", "wss://git.example.com"],
            ],
        )?;
        let state = self.event(
            author,
            30618,
            &[
                &["d", &name],
                &["refs/heads/main", COMMIT],
                &["HEAD", "ref: refs/heads/main"],
            ],
        )?;
        Ok((Announcement::read(announcement)?, State::read(state)?))
    }

    fn pairs(&mut self, count: usize) -> anyhow::Result<Vec<(Announcement, State)>> {
        (0..count).map(|_| self.pair()).collect()
    }

    fn add(&self, announcement: Announcement, state: State, expires: Moment) -> Added {
        let added = Added {
            repo: announcement.repo.clone(),
            state: state.id(),
        };
        let created = self.clock.now();
        self.repositories.set(&announcement, Standing::Waiting);
        self.purgatory.announcements.insert(announcements::Waiting {
            announcement,
            created,
            expires,
            soft_expired: false,
            repository_made: true,
            kept: None,
        });
        self.purgatory.states.insert(states::Waiting {
            state,
            created,
            expires,
            kept: None,
        });
        added
    }

    /// One after the other, as clients send them: each has a later deadline than all before.
    fn arrive(&self, announcement: Announcement, state: State) -> Added {
        self.clock.advance(Duration::from_millis(1));
        let expires = self.clock.now() + WAITS_FOR;
        self.add(announcement, state, expires)
    }

    fn remove(&self, added: &Added) -> anyhow::Result<()> {
        let removed = self.purgatory.remove_state(&added.state);
        removed.context("the state has gone")?;
        self.purgatory.remove_announcement(&added.repo);
        self.repositories.remove(&added.repo);
        Ok(())
    }

    fn look_up(&self, added: &Added) -> anyhow::Result<()> {
        let found = self.purgatory.announcements.get(&added.repo).is_some()
            && self.purgatory.states.get(&added.state).is_some();
        let states = self.purgatory.states.by_identifier(&added.repo.identifier);
        ensure!(found && states.len() == 1, "not found");
        Ok(())
    }

    /// As the relay does when a push is asked about.
    fn authorise(&self, added: &Added, commands: &[Command]) -> anyhow::Result<()> {
        let authors = self.repositories.maintainers(&added.repo);
        let states: Vec<State> = authors
            .iter()
            .flat_map(|author| {
                let states = &self.purgatory.states;
                states.by_author(&added.repo.identifier, author)
            })
            .map(|entry| entry.state)
            .collect();
        let verdict = judge(&Case {
            address: &added.repo.clone().into(),
            commands,
            atomic: false,
            current: &BTreeMap::new(),
            states: &states,
            here: &BTreeSet::new(),
            known: &BTreeMap::new(),
            waiting: &BTreeMap::new(),
        });
        ensure!(verdict.allowed.state.is_some(), "no state allows it");
        Ok(())
    }

    /// What is due goes: the sweep's own part, without what gitd and the journal do.
    fn sweep(&self) -> anyhow::Result<()> {
        let now = self.clock.now();
        let states = self.purgatory.states.due(now, DUE);
        let announcements = self.purgatory.announcements.due(now, DUE);
        ensure!(
            states.len() == DUE && announcements.len() == DUE,
            "not all were due"
        );
        for id in &states {
            self.purgatory.remove_state(id);
        }
        for repo in &announcements {
            self.purgatory.remove_announcement(repo);
            self.repositories.remove(repo);
        }
        Ok(())
    }
}

/// Measures each operation at each number of entries.
pub fn measure(sizes: &[usize], report: &mut Report) -> anyhow::Result<()> {
    let mut setting = Setting::new()?;
    let commands = [Command {
        old: Oid::ZERO,
        new: Oid::from_hex(COMMIT)?,
        name: RefName::parse("refs/heads/main")?,
    }];
    let rows = ["add", "look up", "authorise a push", "sweep step"];
    let mut growth = rows.map(|_| Growth::default());
    let mut waiting = 0;
    let now = setting.clock.now();
    for size in sizes {
        while waiting < *size {
            let (announcement, state) = setting.pair()?;
            setting.arrive(announcement, state);
            waiting += 1;
        }
        let mut figures = [const { Vec::new() }; 4];
        for _ in 0..BATCHES {
            let pairs = setting.pairs(BATCH)?;
            let mut added = Vec::with_capacity(BATCH);
            figures[0].push(mean(BATCH, || {
                for (announcement, state) in pairs {
                    added.push(setting.arrive(announcement, state));
                }
                Ok(())
            })?);
            figures[1].push(mean(BATCH, || {
                let mut added = added.iter();
                added.try_for_each(|added| setting.look_up(black_box(added)))
            })?);
            figures[2].push(mean(BATCH, || {
                let mut added = added.iter();
                added.try_for_each(|added| setting.authorise(black_box(added), &commands))
            })?);
            for added in &added {
                setting.remove(added)?;
            }
            for (announcement, state) in setting.pairs(DUE)? {
                setting.add(announcement, state, now);
            }
            figures[3].push(mean(DUE, || setting.sweep())?);
        }
        for (growth, figures) in growth.iter_mut().zip(figures) {
            growth.add(format!("{size} entries"), figures);
        }
    }
    for (row, growth) in rows.into_iter().zip(growth) {
        report.add_growth(&format!("purgatory: {row}"), growth);
    }
    Ok(())
}

/// Microseconds that one of `count` operations takes.
#[allow(clippy::cast_precision_loss)]
fn mean(count: usize, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1e6 / count as f64)
}
