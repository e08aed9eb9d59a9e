//! A relay that goes through a script, and what it shows after each step.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::PathBuf,
};

use grasp_proto::{contract::relay as wire, words::EventId};
use grasp_relay::{hunt::Fetch, rule_change};

use super::*;
use super::{
    ledger::{Done, Reply},
    rules::{Fact, Refs},
    settle::{Seen, SeenRepo},
    signed::{BEGIN, commit_of, events_of, id_for, named, ref_name, repo_id},
    steps::{BRANCHES, Commit, Label, NAMES, Name, OWNERS, Repo, Step},
};

/// The first attempt for what a user has sent is due by then.
const UNTIL_HUNTED: Duration = Duration::from_secs(4 * 60);

pub struct World {
    inside: Inside,
    backend: Backend,
    directory: tempfile::TempDir,
    starts: u32,
    events: BTreeMap<Label, Event>,
    ids: BTreeMap<Label, EventId>,
}

impl World {
    pub async fn new(script: &[Step], backend: Backend) -> Self {
        let all = events_of(script);
        let mut ids = BTreeMap::new();
        for step in script {
            if let Step::Offer { label, .. } = step {
                ids.insert(*label, id_for(&BTreeMap::new(), *label));
            }
        }
        ids.extend(
            all.iter()
                .map(|(label, (_, event))| (*label, nip34::id_of(event))),
        );
        let directory = temporary();
        let (journal, records) = Journal::open(&directory.path().join("journal-0")).unwrap();
        let events = directory.path().join("events-0");
        let store = Store::open(backend, &events).await.unwrap();
        let git = Arc::new(StandIn::default());
        let clock = Clock::standing_at(Moment::from_millis(BEGIN * 1000));
        let limits = KeptAliveLimits::DEFAULT;
        let inside = Inside::at(clock, store, journal, &records, git, RULES, limits).await;
        start(&inside, records).await;
        Self {
            inside,
            backend,
            directory,
            starts: 0,
            events: all
                .into_iter()
                .map(|(label, (_, event))| (label, event))
                .collect(),
            ids,
        }
    }

    /// The events of a script as the rules see them.
    pub fn facts(script: &[Step]) -> BTreeMap<Label, Fact> {
        let all = events_of(script).into_iter();
        all.map(|(label, (what, event))| {
            let id = event.id.to_bytes();
            (label, Fact { what, id })
        })
        .collect()
    }

    pub async fn go(&mut self, step: &Step) -> Done {
        let mut done = Done::default();
        match step {
            Step::Event {
                label, is_synced, ..
            }
            | Step::Again { label, is_synced } => {
                if let Some(event) = self.events.get(label) {
                    let origin = if *is_synced {
                        Origin::Sync
                    } else {
                        Origin::User(None)
                    };
                    let verdict = self.inside.door.admit(event.clone(), origin).await;
                    done.reply = Some(reply(&verdict));
                }
            }
            Step::Push { to, refs } => {
                let commands = refs
                    .iter()
                    .map(|(branch, commit)| (ref_name(branch), oid(*commit)));
                done.is_granted = self.push(*to, &commands.collect::<Vec<_>>()).await;
            }
            Step::Offer { to, label, commit } => {
                let command = (RefName::nostr(&self.ids[label]), oid(*commit));
                done.is_granted = self.push(*to, &[command]).await;
            }
            Step::Found { name, commits } => done.arrived = self.found(*name, commits).await,
            Step::Pass { minutes } => self.inside.passes(*minutes * MINUTE).await,
            Step::Restart => self.restart().await,
        }
        self.comes_to_rest().await;
        let begin = Moment::from_millis(BEGIN * 1000);
        let passed = self.inside.clock.now().since(begin).as_millis();
        done.now = u64::try_from(passed).unwrap();
        done
    }

    /// A push as gitd has it; says whether all of it was done.
    async fn push(&self, to: Repo, commands: &[(RefName, Oid)]) -> bool {
        let (inside, repo) = (&self.inside, repo_id(to));
        let Ok((id, objects)) = inside.authorize(&repo, commands).await else {
            return false;
        };
        if objects == wire::Objects::SignedFor {
            let brought = commands.iter().map(|(_, oid)| *oid);
            let brought: Vec<Oid> = brought.filter(|oid| !oid.is_zero()).collect();
            inside.git.bring(&repo.identifier, &brought);
        }
        let results = inside.commit(&id, &repo, commands).await;
        results.iter().all(String::is_empty)
    }

    /// The hunt comes by, and the server elsewhere has these. Gives what it was asked for of them.
    async fn found(&self, name: Name, commits: &[Commit]) -> BTreeSet<(Name, Commit)> {
        let (inside, mut arrived) = (&self.inside, BTreeSet::new());
        let end = inside.clock.now() + UNTIL_HUNTED;
        for _ in 0..2 * TRIES {
            let hunt = &inside.hunter.hunt;
            for lease in hunt.act(|queue, now| queue.lease("found", 64, now)) {
                let has = |fetch: &Fetch| -> Vec<Oid> {
                    let is_had = |oid: &&Oid| commits.contains(&commit_of(**oid));
                    match lease.identifier == named(name) {
                        true => fetch.wants.iter().filter(is_had).copied().collect(),
                        false => Vec::new(),
                    }
                };
                let brought = self.ask(&lease, has).await.into_iter();
                arrived.extend(brought.map(|oid| (name, commit_of(oid))));
            }
            let due = hunt.act(|queue, _| queue.next_moment());
            match due.filter(|due| *due <= end) {
                Some(due) => inside.clock.advance(due.since(inside.clock.now())),
                None => break,
            }
        }
        inside.clock.advance(end.since(inside.clock.now()));
        arrived
    }

    async fn ask(&self, lease: &Leased, has: impl Fn(&Fetch) -> Vec<Oid>) -> Vec<Oid> {
        let (inside, mut arrived) = (&self.inside, Vec::new());
        let (identifier, token) = (&lease.identifier, lease.token);
        let tried: HashSet<String> = lease.tried.iter().cloned().collect();
        loop {
            let next = inside
                .hunter
                .next(identifier, token, &tried, Duration::ZERO);
            match next.await.unwrap() {
                Next::Ended(_) => return arrived,
                Next::Wait => {
                    let release = |queue: &mut Queue, now| queue.release(identifier, token, now);
                    inside.hunter.hunt.act(release).unwrap();
                    return arrived;
                }
                Next::Fetch(fetch) => {
                    let brought = has(&fetch);
                    inside.git.bring(identifier, &brought);
                    let outcome = match brought.is_empty() {
                        true => Outcome::Failed(budget::Outcome::Fine.into(), String::new()),
                        false => Outcome::Arrived,
                    };
                    arrived.extend(brought);
                    let report = inside
                        .hunter
                        .report(identifier, token, fetch.number, outcome);
                    report.await.unwrap();
                }
            }
        }
    }

    /// The relay ends, and one after it finds what was kept.
    async fn restart(&mut self) {
        let inside = &self.inside;
        inside.release.purgatory.flush().await.unwrap();
        let (journal, records) = Journal::open(&self.copied("journal")).unwrap();
        let store = match self.backend {
            Backend::Memory => inside.release.store.apart(),
            Backend::Lmdb => {
                let events = self.copied("events");
                Store::open(self.backend, &events).await.unwrap()
            }
        };
        let git = inside.git.clone();
        let clock = Clock::standing_at(inside.clock.now());
        let limits = KeptAliveLimits::DEFAULT;
        let next = Inside::at(clock, store, journal, &records, git, RULES, limits).await;
        start(&next, records).await;
        self.inside = next;
        self.starts += 1;
    }

    /// Where the next relay finds what this one has kept: one process opens a database once.
    fn copied(&self, what: &str) -> PathBuf {
        let place = |starts: u32| self.directory.path().join(format!("{what}-{starts}"));
        let after = place(self.starts + 1);
        fs::create_dir(&after).unwrap();
        fs::copy(place(self.starts).join("data.mdb"), after.join("data.mdb")).unwrap();
        after
    }

    /// Until nothing goes on by itself any more.
    async fn comes_to_rest(&self) {
        let Inside {
            release,
            serial,
            curation,
            ..
        } = &self.inside;
        for _ in 0..2 {
            for name in NAMES {
                // Whatever was begun behind an answer is in the queue by then, and done after this.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                    serial
                        .run(&named(name), grasp_relay::serial::Turn::Normal, async {})
                        .await;
                }
            }
            while !release.going_on.is_empty() {
                tokio::task::yield_now().await;
            }
            self.inside.try_unfinished().await;
            grasp_relay::holding::give_back::go_on(release, serial, curation).await;
        }
    }

    pub async fn see(&self) -> Seen {
        let mut seen = Seen::default();
        let stored = self.inside.release.store.items(nostr::Filter::new());
        let stored = stored.await.unwrap().into_iter();
        let stored: HashSet<EventId> = stored.map(|(id, _)| id).collect();
        for (label, event) in &self.events {
            if stored.contains(&self.ids[label]) {
                seen.served.insert(*label);
            }
            if self.inside.holds(event) {
                seen.waiting.insert(*label, self.is_soft_expired(event));
            }
        }
        for repo in NAMES
            .iter()
            .flat_map(|name| OWNERS.map(|owner| Repo { owner, name: *name }))
        {
            if self.inside.git.has(repo_id(repo)) {
                seen.repos.insert(repo, self.see_repository(repo));
            }
        }
        seen
    }

    fn is_soft_expired(&self, event: &Event) -> bool {
        let waiting = &self.inside.release.purgatory.announcements;
        let repo = waiting.repo_of(&nip34::id_of(event));
        let entry = repo.and_then(|repo| waiting.get(&repo));
        entry.is_some_and(|entry| entry.soft_expired)
    }

    fn see_repository(&self, repo: Repo) -> SeenRepo {
        let mut refs = self.inside.git.refs_of(repo_id(repo));
        let mut take = |name: &RefName| refs.remove(name).map(commit_of);
        let branches = BRANCHES.into_iter();
        let branches: Refs = branches
            .filter_map(|branch| Some((branch, take(&ref_name(branch))?)))
            .collect();
        let requested = self.ids.iter();
        let requested = requested
            .filter_map(|(label, id)| Some((*label, take(&RefName::nostr(id))?)))
            .collect();
        assert!(refs.is_empty(), "refs of nobody: {refs:?}");
        SeenRepo {
            branches,
            requested,
        }
    }
}

/// As the process does it, in its order.
async fn start(inside: &Inside, records: Vec<(Key, Record)>) {
    let Inside {
        release,
        serial,
        curation,
        ..
    } = inside;
    let rules = curation.rules();
    withhold::load_served(&release.store, &release.repositories, &rules)
        .await
        .unwrap();
    release.purgatory.restore(records);
    release.requests.adopt(&release.store).await.unwrap();
    rule_change::adopt(release, &rules).await.unwrap();
    sweep::reconcile(release).await.unwrap();
    withhold::apply(release, serial, curation).await.unwrap();
    expiry::adopt(release).await.unwrap();
    withhold::settle(release, serial, curation).await;
    grasp_relay::holding::expiry::adopt_retired(release)
        .await
        .unwrap();
    inside.door.resume_requests().await;
    release.repositories.forget_changed();
    sweep::try_everything(release, serial).await;
    grasp_relay::holding::give_back::resume(release);
    inside.hunter.enqueue_what_waits();
}

fn reply(verdict: &Verdict) -> Reply {
    match (verdict.ok, verdict.message.as_str()) {
        (true, "") => Reply::Served,
        (true, WAITS) => Reply::Waits,
        (true, message) if message.starts_with("duplicate: ") => Reply::Duplicate,
        (false, message) if !message.starts_with("error: ") => Reply::Refused,
        _ => panic!("no answer to an event: {verdict:?}"),
    }
}
