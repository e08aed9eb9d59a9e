//! What waits, as the journal keeps it, and back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use grasp_proto::words::{Address, EventId, Identifier, Npub, Oid, RepoId};
use nostr::Event;

use super::{
    Purgatory, announcements,
    applied::AppliedState,
    expired::{Expired, ExpiredId},
    pull_requests, states,
    withheld_refs::WithheldRefs,
};
use crate::{
    clock::Moment,
    journal::{Key, Record, key},
    maintainers::MaintainerRule,
    nip34::{
        announcement::Announcement, pull_request::PullRequest, repository_coordinate, state::State,
    },
};

pub(super) fn repository_key(kind: u8, repo: &RepoId) -> Key {
    let mut key = key(kind, repo.owner.as_bytes());
    key.extend_from_slice(repo.identifier.as_str().as_bytes());
    key
}

/// The repository that a key, behind its kind, was made from.
pub(super) fn repository_of(name: &[u8]) -> Option<RepoId> {
    let (owner, identifier) = name.split_at_checked(32)?;
    Some(RepoId {
        owner: Npub::from_slice(owner).ok()?,
        identifier: Identifier::parse(std::str::from_utf8(identifier).ok()?).ok()?,
    })
}

pub(super) fn announcement_record(entry: &announcements::Waiting) -> Record {
    Record::Announcement {
        event: entry.announcement.event.as_json(),
        created: entry.created,
        expires: entry.expires,
        soft_expired: entry.soft_expired,
    }
}

pub(super) fn state_record(entry: &states::Waiting) -> Record {
    Record::State {
        event: entry.state.event.as_json(),
        created: entry.created,
        expires: entry.expires,
    }
}

pub(super) fn request_record(entry: &pull_requests::Waiting) -> Option<Record> {
    let request = entry.request.as_ref()?;
    let repositories = request.repositories.iter().map(RepoId::coordinate);
    Some(Record::PullRequest {
        event: request.event.as_json(),
        repositories: repositories.collect(),
        created: entry.created,
        expires: entry.expires,
    })
}

pub(super) fn expired_record(id: &EventId, at: Moment, known: &ExpiredId) -> Record {
    Record::Expired {
        id: id.to_hex(),
        at,
        times: known.times,
        until: Some(known.until),
        identifiers: known.identifiers.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn placeholder_record(id: &EventId, entry: &pull_requests::Waiting) -> Option<Record> {
    let (prs, pushed): (Vec<_>, Vec<_>) = entry.pushed.iter().partition(|(to, _)| to.is_prs());
    let written = |pushed: Vec<(&Address, &BTreeSet<Oid>)>| -> Vec<(String, String)> {
        let each = |(to, commits): (&Address, &BTreeSet<Oid>)| {
            let to = to.repo.coordinate();
            let commits = commits.iter();
            commits
                .map(|oid| (to.clone(), oid.to_hex()))
                .collect::<Vec<_>>()
        };
        pushed.into_iter().flat_map(each).collect()
    };
    (!entry.pushed.is_empty()).then(|| Record::Placeholder {
        id: id.to_hex(),
        pushed: written(pushed),
        prs: written(prs),
        created: entry.created,
        expires: entry.expires,
    })
}

/// The kinds of records, which their keys begin with. A clock's key is its own kind and then the
/// key of what it belongs to, so that clocks come last.
pub(super) const ANNOUNCEMENT: u8 = b'a';
pub(super) const CONTRIBUTION: u8 = b'c';
pub(super) const DOOMED: u8 = b'd';
pub(super) const EXPIRING: u8 = b'e';
pub(super) const OWED_REFS: u8 = b'f';
pub(super) const RULE: u8 = b'i';
pub(super) const APPLIED: u8 = b'k';
pub(super) const REQUEST: u8 = b'p';
pub(super) const PLACEHOLDER: u8 = b'q';
pub(super) const STATE: u8 = b's';
pub(super) const WITHHELD_REFS: u8 = b'u';
pub(super) const WITHHELD_REPOSITORY: u8 = b'v';
pub(super) const EXPIRED: u8 = b'x';
pub(super) const PLACE: u8 = b'y';
pub(super) const CLOCK: u8 = b'z';

impl Purgatory {
    /// Puts back what the journal held. Records that make no sense are left out and said.
    pub fn restore(&self, records: Vec<(Key, Record)>) {
        for (key, record) in records {
            if let Err(reason) = self.restore_one(&key, record) {
                tracing::error!(%reason, "a record of the purgatory journal was left out");
            }
        }
    }

    fn restore_one(&self, key: &[u8], record: Record) -> Result<(), String> {
        let event = |json: &str| {
            Event::from_json(json)
                .map(Arc::new)
                .map_err(|e| e.to_string())
        };
        let repos = |all: Vec<String>| {
            all.iter()
                .filter_map(|a| repository_coordinate(a))
                .collect::<Vec<_>>()
        };
        match record {
            Record::Announcement {
                event: json,
                created,
                expires,
                soft_expired,
            } => {
                let announcement = Announcement::read(event(&json)?).map_err(|e| e.to_string())?;
                self.announcements.insert(announcements::Waiting {
                    announcement,
                    created,
                    expires,
                    kept: None,
                    soft_expired,
                    repository_made: false,
                });
            }
            Record::State {
                event: json,
                created,
                expires,
            } => {
                let state = State::read(event(&json)?).map_err(|e| e.to_string())?;
                self.states.insert(states::Waiting {
                    state,
                    created,
                    expires,
                    kept: None,
                });
            }
            Record::PullRequest {
                event: json,
                repositories,
                created,
                expires,
            } => {
                let mut request = PullRequest::read(event(&json)?).map_err(|e| e.to_string())?;
                request.repositories.extend(repos(repositories));
                let id = request.id();
                let pushed = self.pull_requests.get(&id).map(|entry| entry.pushed);
                let entry = pull_requests::Waiting {
                    request: Some(request),
                    pushed: pushed.unwrap_or_default(),
                    created,
                    expires,
                    kept: None,
                };
                self.pull_requests.restore(id, entry);
            }
            Record::Placeholder {
                id,
                pushed,
                prs,
                created,
                expires,
            } => {
                let id = EventId::from_hex(&id).map_err(|e| e.to_string())?;
                let request = self.pull_requests.get(&id).and_then(|entry| entry.request);
                let read = |(repo, commit): &(String, String)| {
                    Some((repository_coordinate(repo)?, Oid::from_hex(commit).ok()?))
                };
                let pushed = pushed.iter().filter_map(read);
                let pushed = pushed.map(|(repo, commit)| (Address::from(repo), commit));
                let prs = prs.iter().filter_map(read);
                let prs = prs.map(|(repo, commit)| (Address::prs(repo), commit));
                let mut by_address: BTreeMap<Address, BTreeSet<Oid>> = BTreeMap::new();
                for (address, commit) in pushed.chain(prs) {
                    by_address.entry(address).or_default().insert(commit);
                }
                let entry = pull_requests::Waiting {
                    request,
                    pushed: by_address,
                    created,
                    expires,
                    kept: None,
                };
                self.pull_requests.restore(id, entry);
            }
            Record::Contribution { id, repository } => {
                let id = EventId::from_hex(&id).map_err(|e| e.to_string())?;
                let repo = repository_coordinate(&repository).ok_or("no coordinate")?;
                self.places.restore(id, Address::prs(repo));
            }
            Record::Place { id, repository } => {
                let id = EventId::from_hex(&id).map_err(|e| e.to_string())?;
                let repo = repository_coordinate(&repository).ok_or("no coordinate")?;
                self.places.restore(id, repo.into());
            }
            Record::Clock {
                expires,
                soft_expired,
            } => self.restore_clock(key, expires, soft_expired),
            Record::Doomed { repository, retire } => {
                let repo = repository_coordinate(&repository).ok_or("no coordinate")?;
                self.doomed.insert(repo, retire);
            }
            Record::OwedRefs { id, repositories } => {
                let id = EventId::from_hex(&id).map_err(|e| e.to_string())?;
                self.owed_refs.insert(id, repos(repositories));
            }
            Record::WithheldRefs {
                id,
                repositories,
                step,
            } => {
                let id = EventId::from_hex(&id).map_err(|e| e.to_string())?;
                let places = repos(repositories);
                self.withheld_refs.insert(id, WithheldRefs { places, step });
            }
            Record::WithheldRepository { repository } => {
                let repo = repository_coordinate(&repository).ok_or("no coordinate")?;
                self.withheld_repositories.insert(repo);
            }
            Record::Expiring { id, at } => {
                let id = EventId::from_hex(&id).map_err(|e| e.to_string())?;
                self.expiring.restore(id, at);
            }
            Record::Expired {
                id,
                at,
                times,
                until,
                identifiers,
            } => {
                let id = EventId::from_hex(&id).map_err(|e| e.to_string())?;
                let known = match until {
                    None => Expired::of_before(at),
                    Some(until) => ExpiredId {
                        times,
                        until,
                        identifiers: identifiers
                            .iter()
                            .filter_map(|text| Identifier::parse(text).ok())
                            .collect(),
                    },
                };
                self.expired().remember(id, known);
            }
            Record::AppliedState {
                repository,
                id,
                author,
                created_at,
            } => {
                let repo = repository_coordinate(&repository).ok_or("no coordinate")?;
                let state = AppliedState {
                    id: EventId::from_hex(&id).map_err(|e| e.to_string())?,
                    author: Npub::from_hex(&author).map_err(|e| e.to_string())?,
                    created_at,
                };
                self.applied.put(&repo, state);
            }
            Record::MaintainerRule { rule } => {
                let rule = MaintainerRule::parse(&rule).ok_or("no rule of maintainers")?;
                // There is one record of it.
                let _ = self.rule.set(rule);
            }
            // The hunt's and the sync's, not purgatory's.
            Record::Run { .. }
            | Record::Lease { .. }
            | Record::Wants { .. }
            | Record::Requests { .. }
            | Record::SyncRun { .. }
            | Record::RelayLease { .. } => {}
        }
        Ok(())
    }

    /// Sets the clock of what `key`, behind its kind, is the key of.
    fn restore_clock(&self, key: &[u8], expires: Moment, soft_expired: bool) {
        let Some((kind, name)) = key.get(1..).and_then(|of| of.split_first()) else {
            return;
        };
        let id = EventId::from_slice(name);
        match (*kind, id) {
            (STATE, Ok(id)) => drop(self.states.extend(&id, expires)),
            (REQUEST | PLACEHOLDER, Ok(id)) => drop(self.pull_requests.extend(&id, expires)),
            (ANNOUNCEMENT, _) => {
                if let Some(entry) = repository_of(name).and_then(|r| self.announcements.get(&r)) {
                    self.announcements.insert(announcements::Waiting {
                        expires,
                        soft_expired,
                        ..entry
                    });
                }
            }
            _ => {}
        }
    }
}
