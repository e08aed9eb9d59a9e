//! The relay's inside – admission, purgatory, release, pushes, the sweep – under a clock that the
//! tests set and with a stand-in for gitd.

mod authority;
mod events;
mod holding;
mod hunts;
mod kept_alive;
mod leaving;
mod lists;
mod lost_links;
mod model;
mod operator;
mod orders;
mod prs;
mod pushes;
mod requests;
mod stand_in;
mod strangers;
mod sync;
mod waiting;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use grasp_proto::{
    transport::{GrantKey, Token, Tokens},
    words::{Address, Identifier, Npub, Oid, RefName, RepoId},
};
use grasp_relay::{
    admit::{Admit, EventBounds, REPLACED},
    clock::{Clock, Moment},
    config::Backend,
    domain::Domain,
    expiry,
    git::Git,
    grpc::push::PushService,
    holding::Holding,
    hunt::{
        Hunt, Hunter, Next, Outcome,
        budget::{self, Limits},
        entry::Delays,
        queue::{Leased, Queue, Rules},
        tries::TRIES,
    },
    journal::{Journal, Key, Record},
    live::Live,
    nip34,
    policy::{
        curation::{self, Curation},
        event_size::EventSizeLimits,
        prs::Spaces,
    },
    purgatory::{Purgatory, kept::KeptAliveLimits, room::RoomLimits},
    release::Release,
    repository::{Repositories, Standing},
    requests::Requests,
    serial::Serial,
    store::Store,
    strangers::{COUNTS_FOR, StrangerLimits, Strangers},
    sweep,
    verdict::{Door, Origin, Verdict},
    withhold,
};
use nostr::{
    Event, EventBuilder, Keys, Kind, Tag, Timestamp, event::FinalizeEvent, key::SecretKey,
};
use stand_in::StandIn;
use tokio_util::sync::CancellationToken;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const KEEPS_FOR: Duration = DAY.saturating_mul(90);
/// The service's own key.
const SERVICE: u8 = 200;
const WAITS: &str = "purgatory: won't be served until git data arrives";

/// A relay without its outside.
struct Inside {
    clock: Clock,
    git: Arc<StandIn>,
    release: Release,
    serial: Serial,
    hunter: Hunter,
    door: Admit,
    push: PushService,
    tokens: Tokens,
    curation: Curation,
}

const RULES: Rules = Rules {
    delays: Delays {
        user: Duration::from_secs(180),
        synced: Duration::from_millis(500),
    },
    lease: Duration::from_secs(20),
    limits: Limits {
        at_once: 5,
        per_minute: 30,
        aside_for: Duration::from_secs(12 * 60 * 60),
    },
};

fn keys(seed: u8) -> Keys {
    Keys::new(SecretKey::from_slice(&[seed; 32]).unwrap())
}

fn key_of(seed: u8) -> Npub {
    Npub::from_bytes(keys(seed).public_key().to_bytes())
}

fn identifier(text: &str) -> Identifier {
    Identifier::parse(text).unwrap()
}

fn repo(seed: u8, name: &str) -> RepoId {
    RepoId {
        owner: key_of(seed),
        identifier: identifier(name),
    }
}

fn oid(n: u8) -> Oid {
    Oid::from_bytes([n; 20])
}

/// As much memory as disk, where there is such a place: nobody pulls the plug here.
fn temporary() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let directory = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(directory).unwrap()
}

fn branch(name: &str) -> RefName {
    RefName::parse(&format!("refs/heads/{name}")).unwrap()
}

fn sign(seed: u8, kind: Kind, at: u64, tags: &[Vec<String>]) -> Event {
    let tags = tags.iter().map(|tag| Tag::parse(tag.clone()).unwrap());
    EventBuilder::new(kind, "")
        .tags(tags)
        .custom_created_at(Timestamp::from(at))
        .finalize(&keys(seed))
        .unwrap()
}

fn tag(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

/// An announcement that lists the service.
fn announcement(seed: u8, name: &str, at: u64, maintainers: &[u8]) -> Event {
    let mut named = tag(&["maintainers"]);
    named.extend(maintainers.iter().map(|seed| key_of(*seed).to_hex()));
    let tags = [
        tag(&["d", name]),
        tag(&["clone", "https://grasp.example/x.git"]),
        tag(&["relays", "wss://grasp.example"]),
        named,
    ];
    sign(seed, nip34::ANNOUNCEMENT, at, &tags)
}

fn announcement_elsewhere(seed: u8, name: &str, at: u64) -> Event {
    sign(seed, nip34::ANNOUNCEMENT, at, &[tag(&["d", name])])
}

/// The same of one who was named as a maintainer and names these back.
fn answer(seed: u8, name: &str, at: u64, maintainers: &[u8]) -> Event {
    let mut named = tag(&["maintainers"]);
    named.extend(maintainers.iter().map(|seed| key_of(*seed).to_hex()));
    sign(seed, nip34::ANNOUNCEMENT, at, &[tag(&["d", name]), named])
}

fn state(seed: u8, name: &str, at: u64, branches: &[(&str, u8)]) -> Event {
    let mut tags = vec![tag(&["d", name])];
    for (name, n) in branches {
        tags.push(tag(&[branch(name).as_str(), &oid(*n).to_hex()]));
    }
    sign(seed, nip34::STATE, at, &tags)
}

fn pull_request(seed: u8, at: u64, commit: &str, offered: &RepoId) -> Event {
    let tags = [tag(&["c", commit]), tag(&["a", &offered.coordinate()])];
    sign(seed, nip34::PULL_REQUEST, at, &tags)
}

impl Inside {
    async fn new() -> Self {
        let store = Store::open(Backend::Memory, Path::new("")).await.unwrap();
        Self::over(store, Journal::none(), &[], StandIn::default().into()).await
    }

    async fn over(
        store: Store,
        journal: Journal,
        records: &[(Key, Record)],
        git: Arc<StandIn>,
    ) -> Self {
        Self::with_limits(
            store,
            journal,
            records,
            git,
            RULES,
            KeptAliveLimits::DEFAULT,
        )
        .await
    }

    /// One that hunts by these rules, where so much is kept alive at most.
    async fn with_limits(
        store: Store,
        journal: Journal,
        records: &[(Key, Record)],
        git: Arc<StandIn>,
        rules: Rules,
        limits: KeptAliveLimits,
    ) -> Self {
        let clock = Clock::standing_at(Moment::from_millis(1_000_000_000_000));
        Self::at(clock, store, journal, records, git, rules, limits).await
    }

    /// The same, at this time.
    async fn at(
        clock: Clock,
        store: Store,
        journal: Journal,
        records: &[(Key, Record)],
        git: Arc<StandIn>,
        rules: Rules,
        limits: KeptAliveLimits,
    ) -> Self {
        let hunt = Hunt::open(rules, journal.clone(), clock.clone(), records)
            .await
            .unwrap();
        let domain = Domain::parse("grasp.example").unwrap();
        let holding = Holding::open(journal.clone(), clock.clone(), KEEPS_FOR);
        let strangers = Strangers::open(journal.clone(), clock.clone(), StrangerLimits::DEFAULT);
        let strangers = strangers.await.unwrap();
        let release = Release {
            store,
            holding: Arc::new(holding.await.unwrap()),
            requests: Arc::new(Requests::new(journal.clone(), clock.clone(), true)),
            purgatory: Arc::new(Purgatory::with_limits(
                journal,
                clock.clone(),
                limits,
                RoomLimits::DEFAULT,
            )),
            repositories: Arc::new(Repositories::default()),
            git: git.clone() as Arc<dyn Git>,
            live: Arc::new(Live::new()),
            spaces: Spaces::new(domain.clone(), true),
            going_on: Arc::default(),
            unfinished: Arc::default(),
        };
        release.store.hides_expired(release.purgatory.expiring());
        let serial = Serial::default();
        let tokens = Tokens {
            relay: Token::random(),
            gitd: Token::random(),
            worker: Token::random(),
        };
        let hunter = Hunter {
            hunt: hunt.clone(),
            release: release.clone(),
            serial: serial.clone(),
            key: GrantKey::new(&tokens),
            ours: domain.clone(),
            max_pack_bytes: 1 << 30,
            stop: CancellationToken::new(),
        };
        let curation = Curation::fixed(curation::Rules::none(domain));
        Self {
            door: Admit::new(
                release.clone(),
                serial.clone(),
                hunt.clone(),
                curation.clone(),
                EventBounds {
                    sizes: EventSizeLimits {
                        most_kinds: 196_608,
                        states: 4 << 20,
                    },
                    ahead: Duration::from_secs(15 * 60),
                    service: keys(SERVICE).public_key(),
                },
                Arc::new(strangers),
            ),
            hunter,
            tokens,
            push: PushService::new(release.clone(), serial.clone(), curation.clone(), hunt),
            curation,
            clock,
            git,
            release,
            serial,
        }
    }

    async fn admit(&self, event: &Event) -> Verdict {
        self.door.admit(event.clone(), Origin::User(None)).await
    }

    async fn admit_synced(&self, event: &Event) -> Verdict {
        self.door.admit(event.clone(), Origin::Sync).await
    }

    async fn waits(&self, event: &Event) {
        assert_eq!(self.admit(event).await, Verdict::accepted(WAITS));
    }

    async fn served(&self, event: &Event) {
        assert_eq!(self.admit(event).await, Verdict::served());
    }

    async fn serves(&self, event: &Event) -> bool {
        self.release.store.has(&nip34::id_of(event)).await.unwrap()
    }

    fn holds(&self, event: &Event) -> bool {
        self.release.purgatory.holds(&nip34::id_of(event))
    }

    /// Time passes in which whoever is asked has nothing, and the sweep comes by.
    async fn passes(&self, time: Duration) {
        let end = self.clock.now() + time;
        self.hunts_in_vain(end).await;
        self.clock.advance(end.since(self.clock.now()));
        self.sweeps().await;
        expiry::sweep(&self.door).await;
    }

    async fn sweeps(&self) {
        sweep::sweep(&self.release, &self.serial, &self.hunter.hunt).await;
    }

    /// What is due until then is asked for as often as it takes, and is not there.
    async fn hunts_in_vain(&self, end: Moment) {
        for _ in 0..2 * TRIES {
            // What has been ready before has no moment any more.
            for lease in self
                .hunter
                .hunt
                .act(|queue, now| queue.lease("idle", 64, now))
            {
                self.asks_in_vain(&lease).await;
            }
            let due = self.hunter.hunt.act(|queue, _| queue.next_moment());
            let Some(due) = due.filter(|due| *due <= end) else {
                return;
            };
            self.clock.advance(due.since(self.clock.now()));
        }
    }

    async fn asks_in_vain(&self, lease: &Leased) {
        let (identifier, token) = (&lease.identifier, lease.token);
        let tried = lease.tried.iter().cloned().collect();
        loop {
            let next = self.hunter.next(identifier, token, &tried, Duration::ZERO);
            match next.await.unwrap() {
                Next::Ended(_) => return,
                Next::Wait => {
                    let release = |queue: &mut Queue, now| queue.release(identifier, token, now);
                    return self.hunter.hunt.act(release).unwrap();
                }
                Next::Fetch(fetch) => {
                    let failed = Outcome::Failed(budget::Outcome::Fine.into(), String::new());
                    let report = self.hunter.report(identifier, token, fetch.number, failed);
                    report.await.unwrap();
                }
            }
        }
    }

    async fn try_unfinished(&self) {
        sweep::try_unfinished(&self.release, &self.serial).await;
    }

    /// An owner's repository with `main` at commit 1.
    async fn active(&self, seed: u8, name: &str, maintainers: &[u8]) -> RepoId {
        self.waits(&announcement(seed, name, 10, maintainers)).await;
        self.git.bring(&identifier(name), &[oid(1)]);
        self.served(&state(seed, name, 10, &[("main", 1)])).await;
        let repo = repo(seed, name);
        let standing = self.release.repositories.standing(&repo);
        assert_eq!(standing, Some(Standing::Active));
        repo
    }
}
