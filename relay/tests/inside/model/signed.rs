//! The events of a script, signed, and what its words are to the relay.

use std::collections::BTreeMap;

use grasp_proto::words::EventId;

use super::steps::{
    Branch, Commit, History, Kind as Said, Label, Name, Naming, Repo, Role, Step, Target, What,
};
use super::*;

/// When every script begins, in seconds: long after its events were made, and after whatever the real clock
/// says, which the database asks whether an event has expired.
pub const BEGIN: u64 = 4_000_000_000;
/// A server that is not this one.
const ELSEWHERE: &str = "https://elsewhere.example/x.git";

pub fn repo_id(repo: Repo) -> RepoId {
    super::super::repo(repo.owner, &repo.name.to_string())
}

pub fn named(name: Name) -> Identifier {
    identifier(&name.to_string())
}

pub fn ref_name(branch: Branch) -> RefName {
    match branch.starts_with('v') {
        true => RefName::parse(&format!("refs/tags/{branch}")).unwrap(),
        false => super::super::branch(branch),
    }
}

pub fn commit_of(oid: Oid) -> Commit {
    oid.as_bytes()[0]
}

fn role_tag(role: Role, at: u32) -> Vec<String> {
    let (key, ahead) = (key_of(role.who).to_hex(), (at + 1_000_000).to_string());
    let history: &[&str] = match role.history {
        History::Open => &[],
        History::Since => &["1"],
        History::Ended => &["1", "2"],
        History::Again => &["1", "2", "3"],
        History::Future => &[&ahead],
        History::Deferred => &["1", "defer"],
        History::Broken => &["soon"],
    };
    let mut parts = vec![role.letter.to_string(), key];
    parts.extend(history.iter().map(|part| (*part).to_owned()));
    parts
}

/// The event that a script means.
fn signed(label: Label, what: &What, ids: &BTreeMap<Label, EventId>) -> Event {
    // No two are the same, whatever they say.
    let mut tags = vec![tag(&["label", &label.to_string()])];
    let kind = match &what.kind {
        Said::Announcement {
            name,
            is_here,
            is_fork,
            naming,
        } => {
            tags.push(tag(&["d", &name.to_string()]));
            match is_here {
                true => {
                    tags.push(tag(&["clone", "https://grasp.example/x.git", ELSEWHERE]));
                    tags.push(tag(&["relays", "wss://grasp.example"]));
                }
                false => tags.push(tag(&["clone", ELSEWHERE])),
            }
            match naming {
                Naming::Maintainers(named) => {
                    let mut all = tag(&["maintainers"]);
                    all.extend(named.iter().map(|who| key_of(*who).to_hex()));
                    tags.push(all);
                }
                Naming::Roles(roles) => {
                    tags.extend(roles.iter().map(|one| role_tag(*one, what.at)));
                }
            }
            if *is_fork {
                tags.push(tag(&["u", &repo(99, "upstream").coordinate()]));
            }
            nip34::ANNOUNCEMENT
        }
        Said::State { name, refs } => {
            tags.push(tag(&["d", &name.to_string()]));
            for (branch, commit) in refs {
                tags.push(tag(&[ref_name(branch).as_str(), &oid(*commit).to_hex()]));
            }
            nip34::STATE
        }
        Said::PullRequest { to, commit } => {
            tags.push(tag(&["c", &oid(*commit).to_hex()]));
            tags.push(tag(&["a", &repo_id(*to).coordinate()]));
            nip34::PULL_REQUEST
        }
        Said::Deletion(target) => {
            let address = |kind: Kind, name: &Name| {
                format!("{}:{}:{name}", kind.as_u16(), key_of(what.by).to_hex())
            };
            tags.push(match target {
                Target::Event(label) => tag(&["e", &id_for(ids, *label).to_hex()]),
                Target::Announcement(name) => tag(&["a", &address(nip34::ANNOUNCEMENT, name)]),
                Target::State(name) => tag(&["a", &address(nip34::STATE, name)]),
            });
            nip34::DELETION
        }
    };
    if let Some(minutes) = what.until {
        let until = BEGIN + u64::from(minutes) * 60;
        tags.push(tag(&["expiration", &until.to_string()]));
    }
    sign(what.by, kind, what.at.into(), &tags)
}

/// The id of an event of the script, or of one that nobody ever sends.
pub fn id_for(ids: &BTreeMap<Label, EventId>, label: Label) -> EventId {
    let [high, low] = label.to_be_bytes();
    let mut never = [0xee; 32];
    (never[0], never[1]) = (high, low);
    let id = ids.get(&label).copied();
    id.unwrap_or_else(|| EventId::from_bytes(never))
}

pub fn events_of(script: &[Step]) -> BTreeMap<Label, (What, Event)> {
    let (mut all, mut ids) = (BTreeMap::new(), BTreeMap::new());
    let is_deletion = |what: &What| matches!(what.kind, Said::Deletion(_));
    // Deletions name the others.
    for deletions in [false, true] {
        for step in script {
            if let Step::Event { label, what, .. } = step
                && is_deletion(what) == deletions
            {
                let event = signed(*label, what, &ids);
                if !deletions {
                    ids.insert(*label, nip34::id_of(&event));
                }
                all.insert(*label, (what.clone(), event));
            }
        }
    }
    all
}
