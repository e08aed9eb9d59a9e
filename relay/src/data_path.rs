//! Whether this service may go on with what lies in its data path.
//!
//! Two mistakes are silent without this: another `NGIT_DOMAIN` over the data of the old one takes every
//! repository out of service that lists the old name, and a disk that is not mounted looks like a first
//! start. Both are asked about before anything is written. The name that the data belongs to lies in
//! [`FILE`], written once it has been found right.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use grasp_proto::process::settings::{BadSetting, Settings};

use crate::{domain::Domain, journal, nip34::announcement::Announcement};

/// Says which domain the data belongs to.
pub const FILE: &str = ".graspd-domain";

/// What the operator has accepted for once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The data of another domain becomes this one's.
    pub domain_change: bool,
    /// The event store begins anew, though there were events.
    pub missing_events: bool,
}

impl Accepted {
    /// Reads the settings.
    pub fn from_settings(settings: &Settings) -> Result<Self, BadSetting> {
        Ok(Self {
            domain_change: settings.switch("NGIT_ACCEPT_DOMAIN_CHANGE")?,
            missing_events: settings.switch("NGIT_ACCEPT_MISSING_EVENTS")?,
        })
    }
}

/// Why the service does not go on with what is there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DataPathError {
    /// The data is another domain's.
    #[error(
        "NGIT_DOMAIN is {now}, and the data in {} belongs to {before}: repositories that list {before} would \
         go out of service. Set NGIT_DOMAIN back, or, if the service has a new name, start once with \
         --accept-domain-change (NGIT_ACCEPT_DOMAIN_CHANGE=true)", directory.display()
    )]
    OtherDomain {
        /// Where it lies.
        directory: PathBuf,
        /// Whose it is.
        before: String,
        /// What is set now.
        now: String,
    },
    /// Events were here and are not.
    #[error(
        "NGIT_RELAY_DATA_PATH is {}, where no events are, beside {beside}: a disk that is not mounted, or a \
         restore that lacks a part. Put the events back (data.mdb, or `graspd restore`), or, to begin \
         without them, start once with --accept-missing-events (NGIT_ACCEPT_MISSING_EVENTS=true)",
        directory.display()
    )]
    NoEvents {
        /// Where they should be.
        directory: PathBuf,
        /// What shows that there were some.
        beside: &'static str,
    },
    /// It cannot be looked at.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What lies in the data path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whose it is, if that was noted.
    pub domain: Option<String>,
    /// There is an event store.
    pub has_events: bool,
    /// There is a journal of what waits.
    pub has_journal: bool,
}

impl Found {
    /// Looks, without writing. Blocks.
    pub fn look(directory: &Path) -> Result<Self, DataPathError> {
        let path = directory.join(FILE);
        let domain = match fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let reason = error.to_string();
                return Err(DataPathError::Unreadable { path, reason });
            }
        };
        // A process that is killed while it makes one leaves an empty file.
        let is_there = |path: PathBuf| fs::metadata(path).is_ok_and(|file| file.len() > 0);
        Ok(Self {
            domain,
            has_events: is_there(directory.join("data.mdb")),
            has_journal: is_there(journal::directory(directory).join("data.mdb")),
        })
    }

    /// Nothing of this service has been here before.
    pub fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the service of `now` may go on.
    pub fn judge(
        &self,
        directory: &Path,
        now: &Domain,
        accepted: Accepted,
    ) -> Result<(), DataPathError> {
        if let Some(before) = &self.domain {
            judge_domain(directory, before, now, accepted)?;
        }
        let beside = match (&self.domain, self.has_journal) {
            (_, true) => "the journal of what waits",
            (Some(_), false) => "the note of which service this is",
            (None, false) => return Ok(()),
        };
        match self.has_events || accepted.missing_events {
            true => Ok(()),
            false => Err(DataPathError::NoEvents {
                directory: directory.to_owned(),
                beside,
            }),
        }
    }
}

fn judge_domain(
    directory: &Path,
    before: &str,
    now: &Domain,
    accepted: Accepted,
) -> Result<(), DataPathError> {
    let is_same = Domain::parse(before).is_some_and(|before| before.is_same_place(now));
    match is_same || accepted.domain_change {
        true => Ok(()),
        false => Err(DataPathError::OtherDomain {
            directory: directory.to_owned(),
            before: before.to_owned(),
            now: now.to_string(),
        }),
    }
}

/// Whether data whose domain was never noted belongs to `now`, as the announcements in it tell: those of
/// one service list it, and its relay, unless they are archived. `archives`: other servers' may be here.
pub fn judge_announcements<'a>(
    directory: &Path,
    announcements: impl IntoIterator<Item = &'a Announcement>,
    now: &Domain,
    archives: bool,
    accepted: Accepted,
) -> Result<(), DataPathError> {
    let mut listed: BTreeMap<String, usize> = BTreeMap::new();
    let mut count = 0;
    for announcement in announcements {
        if announcement.lists(now) {
            return Ok(());
        }
        count += 1;
        let domains = announcement.clone_urls().filter_map(Domain::of_url);
        let domains = domains.filter(|domain| announcement.lists(domain));
        let names: std::collections::BTreeSet<String> =
            domains.map(|domain| domain.to_string()).collect();
        for name in names {
            *listed.entry(name).or_default() += 1;
        }
    }
    if archives || count == 0 {
        return Ok(());
    }
    // Every one of a service's own lists it.
    let before = listed.into_iter().find(|(_, times)| *times == count);
    match before {
        Some((before, _)) => judge_domain(directory, &before, now, accepted),
        None => Ok(()),
    }
}

/// Notes, durably, which domain the data belongs to.
pub fn note_domain(directory: &Path, domain: &Domain) -> Result<(), DataPathError> {
    let path = directory.join(FILE);
    let write = || {
        let new = directory.join(".graspd-domain.new");
        let mut file = fs::File::create(&new)?;
        writeln!(file, "{domain}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|error: io::Error| DataPathError::Unreadable {
        reason: error.to_string(),
        path: path.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use grasp_proto::words::Npub;

    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT,
        testing::{event, keys},
    };

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    fn announcement(identifier: &str, services: &[&str]) -> Announcement {
        let owner = keys(1);
        let npub = Npub::from_hex(&owner.public_key().to_hex()).unwrap();
        let clones: Vec<String> = services
            .iter()
            .map(|service| format!("https://{service}/{npub}/{identifier}.git"))
            .collect();
        let relays: Vec<String> = services.iter().map(|s| format!("wss://{s}")).collect();
        let mut clone = vec!["clone"];
        clone.extend(clones.iter().map(String::as_str));
        let mut relay = vec!["relays"];
        relay.extend(relays.iter().map(String::as_str));
        let tags: [&[&str]; 3] = [&["d", identifier], &clone, &relay];
        Announcement::read(Arc::new(event(&owner, ANNOUNCEMENT, 1, &tags))).unwrap()
    }

    #[test]
    fn the_data_of_another_domain_is_asked_about() {
        let directory = Path::new("/data/relay");
        let found = Found {
            domain: Some("old.example".to_owned()),
            has_events: true,
            has_journal: true,
        };
        let judge = |now, accepted| found.judge(directory, &domain(now), accepted);
        judge("old.example", Accepted::default()).unwrap();
        let said = judge("new.example", Accepted::default())
            .unwrap_err()
            .to_string();
        for word in ["old.example", "new.example", "--accept-domain-change"] {
            assert!(said.contains(word), "{said}");
        }
        let accepted = Accepted {
            domain_change: true,
            ..Accepted::default()
        };
        judge("new.example", accepted).unwrap();
    }

    #[test]
    fn missing_events_are_asked_about_where_there_were_some() {
        let directory = Path::new("/data/relay");
        let now = domain("a.example");
        let found = |domain: Option<&str>, has_events, has_journal| Found {
            domain: domain.map(str::to_owned),
            has_events,
            has_journal,
        };
        let accepted = Accepted {
            missing_events: true,
            ..Accepted::default()
        };
        for (found, is_right) in [
            (found(None, false, false), true),
            (found(None, true, false), true),
            (found(None, true, true), true),
            (found(Some("a.example"), true, true), true),
            (found(None, false, true), false),
            (found(Some("a.example"), false, false), false),
            (found(Some("a.example"), false, true), false),
        ] {
            let judged = found.judge(directory, &now, Accepted::default());
            assert_eq!(judged.is_ok(), is_right, "{found:?}: {judged:?}");
            found.judge(directory, &now, accepted).unwrap();
        }
    }

    #[test]
    fn announcements_tell_whose_the_data_is() {
        let directory = Path::new("/data/relay");
        let judge = |announcements: &[Announcement], now: &str, archives| {
            let accepted = Accepted::default();
            judge_announcements(directory, announcements, &domain(now), archives, accepted)
        };
        let all = [
            announcement("a", &["old.example", "elsewhere.example"]),
            announcement("b", &["old.example"]),
        ];
        judge(&all, "old.example", false).unwrap();
        let said = judge(&all, "new.example", false).unwrap_err().to_string();
        assert!(said.contains("old.example"), "{said}");
        // What is archived lists others.
        judge(&all, "new.example", true).unwrap();
        judge(&[], "new.example", false).unwrap();
        // One that lists this service is enough: the others were served while they did.
        let moved = [
            announcement("a", &["old.example"]),
            announcement("b", &["new.example"]),
        ];
        judge(&moved, "new.example", false).unwrap();
    }

    #[test]
    fn the_domain_is_noted_and_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(Found::look(path).unwrap().is_new());
        note_domain(path, &domain("a.example:8443")).unwrap();
        let found = Found::look(path).unwrap();
        assert_eq!(found.domain.as_deref(), Some("a.example:8443"));
        assert!(!found.is_new() && !found.has_events && !found.has_journal);
    }
}
