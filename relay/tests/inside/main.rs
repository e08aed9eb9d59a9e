//! The relay's inside – admission, purgatory, release, pushes, the sweep – under a clock that the
//! tests set and with a stand-in for gitd.

mod holding;
mod hunts;
mod leaving;
mod lists;
mod lost_links;
mod operator;
mod orders;
mod prs;
mod pushes;
mod requests;
mod stand_in;
mod sync;
mod waiting;

use std::{path::Path, sync::Arc, time::Duration};

use grasp_proto::{
    transport::{GrantKey, Token, Tokens},
    words::{Address, Identifier, Npub, Oid, RefName, RepoId},
};
use grasp_relay::{
    admit::Admit,
    clock::{Clock, Moment},
    config::Backend,
    domain::Domain,
    git::Git,
    grpc::push::PushService,
    holding::Holding,
    hunt::{Hunt, Hunter, budget::Limits, entry::Delays, queue::Rules},
    journal::{Journal, Key, Record},
    live::Live,
    nip34,
    policy::{
        curation::{self, Curation},
        prs::Spaces,
    },
    purgatory::Purgatory,
    release::Release,
    repository::{Repositories, Standing},
    requests::Requests,
    serial::Serial,
    store::Store,
    sweep,
    verdict::{Door, Origin, Verdict},
};
use nostr::{
    Event, EventBuilder, Keys, Kind, Tag, Timestamp, event::FinalizeEvent, key::SecretKey,
};
use stand_in::StandIn;
use tokio_util::sync::CancellationToken;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const KEEPS_FOR: Duration = DAY.saturating_mul(90);
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
        let clock = Clock::standing_at(Moment::from_millis(1_000_000_000_000));
        let hunt = Hunt::open(RULES, journal.clone(), clock.clone(), records)
            .await
            .unwrap();
        let domain = Domain::parse("grasp.example").unwrap();
        let holding = Holding::open(journal.clone(), clock.clone(), KEEPS_FOR);
        let release = Release {
            store,
            holding: Arc::new(holding.await.unwrap()),
            requests: Arc::new(Requests::new(journal.clone(), clock.clone(), true)),
            purgatory: Arc::new(Purgatory::new(journal, clock.clone())),
            repositories: Arc::new(Repositories::default()),
            git: git.clone() as Arc<dyn Git>,
            live: Arc::new(Live::new()),
            spaces: Spaces::new(domain.clone(), true),
            going_on: Arc::default(),
            unfinished: Arc::default(),
        };
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
                196_608,
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
        self.door.admit(event.clone(), Origin::User).await
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

    /// Time passes, and the sweep comes by.
    async fn passes(&self, time: Duration) {
        self.clock.advance(time);
        sweep::sweep(&self.release, &self.serial).await;
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
