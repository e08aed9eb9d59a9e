//! Which repositories and authors the operator wants here: blacklists, whitelist, archive (GRASP-05).
//!
//! [`Rules`] are pure and checked against each other as they are read. [`Curation`] is how the rest
//! of the relay comes by them: shared, and replaced as a whole when lists that are files are read
//! again.

use std::{
    collections::BTreeSet,
    fmt, fs,
    sync::{Arc, PoisonError, RwLock},
};

use grasp_proto::{
    process::settings::{BadSetting, Settings},
    words::{Npub, RepoId},
};
use nostr::Event;

use super::{
    lists::{self, Entry, RepoList},
    prs::Spaces,
};
use crate::{
    domain::Domain,
    nip34::{announcement::Announcement, pull_request},
};

/// What is said to everything by an author on the event blacklist.
pub const BANNED: &str = "blocked: events of this author are not taken here";
/// What is said to what belongs to a repository on a blacklist.
pub const BLOCKED: &str = "blocked: this repository is not taken here";
/// What is said to an announcement that is not on the whitelist.
pub const NOT_CHOSEN: &str = "blocked: only repositories chosen by the operator are taken here";
/// What a pusher is told of an archived repository.
pub const READ_ONLY: &str = "this repository is archived here and read-only: push to a server that \
                             its announcement lists";
/// What a pusher is told of a repository that is announced for other services.
pub const KEPT_ELSEWHERE: &str = "this repository is not kept here, as its announcement does not list \
                                  this service: push to a server that it lists";
/// What a pusher is told of a repository on a blacklist.
pub const NOT_TAKEN: &str = "this repository is not taken here";

const EVENTS: &str = "NGIT_EVENT_BLACKLIST";
const BLACKLIST: &str = "NGIT_REPOSITORY_BLACKLIST";
const WHITELIST: &str = "NGIT_REPOSITORY_WHITELIST";
const ARCHIVE_ALL: &str = "NGIT_ARCHIVE_ALL";
const ARCHIVE: &str = "NGIT_ARCHIVE_WHITELIST";
const SERVICES: &str = "NGIT_ARCHIVE_GRASP_SERVICES";
const READ_ONLY_SET: &str = "NGIT_ARCHIVE_READ_ONLY";

/// What is archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Everything,
    pub all: bool,
    /// or these,
    pub listed: RepoList,
    /// and what names one of these services in `clone`.
    pub services: Vec<Domain>,
    /// Pushes to what is archived are refused.
    pub read_only: bool,
}

/// Where an announcement belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It lists this service, and is wanted: its repository is here.
    Hosted,
    /// It does not, and is archived: its repository is here.
    Archived,
    /// It does not list this service.
    Elsewhere,
    /// It is not wanted here, for this reason.
    Unwanted(&'static str),
}

/// The operator's rules, as they are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    ours: Domain,
    banned: BTreeSet<Npub>,
    blocked: RepoList,
    /// `None`: everything is wanted that lists this service.
    chosen: Option<RepoList>,
    archive: Option<Archive>,
}

impl Rules {
    /// No rules but the protocol's.
    pub fn none(ours: Domain) -> Self {
        Self {
            ours,
            banned: BTreeSet::new(),
            blocked: RepoList::default(),
            chosen: None,
            archive: None,
        }
    }

    /// Reads the settings, and the files they name, and refuses what contradicts itself.
    pub fn from_settings(settings: &Settings, ours: &Domain) -> Result<Self, BadSetting> {
        let repositories = |name| {
            let form = "npub1…, npub1…/identifier or identifier";
            list(settings, name, form, Entry::parse)
        };
        let authors = list(settings, EVENTS, "npub1… or 64 hex digits", lists::author)?;
        let service = |text: &str| match Domain::parse(text) {
            Some(domain) if domain == *ours => Err("that is this service itself".to_owned()),
            Some(domain) => Ok(domain),
            None => Err("not a domain".to_owned()),
        };
        let services = list(settings, SERVICES, "a domain like grasp.example", service)?;
        let listed = repositories(ARCHIVE)?;
        let chosen = repositories(WHITELIST)?;
        let all = settings.switch(ARCHIVE_ALL)?;
        for (name, set) in [(ARCHIVE, listed.is_some()), (SERVICES, services.is_some())] {
            if all && set {
                let remedy = format!("unset, as {ARCHIVE_ALL} archives everything; or that be");
                return Err(settings.bad(name, remedy));
            }
        }
        let any = all || listed.is_some() || services.is_some();
        let is_said = settings.get(READ_ONLY_SET).is_some();
        let read_only = settings.switch(READ_ONLY_SET)?;
        if read_only && !any {
            let remedy = format!(
                "unset, as nothing is archived; or set {ARCHIVE_ALL}, {ARCHIVE} or {SERVICES}, too"
            );
            return Err(settings.bad(READ_ONLY_SET, remedy));
        }
        let archive = any.then(|| Archive {
            all,
            listed: listed.into_iter().flatten().collect(),
            services: services.unwrap_or_default(),
            read_only: read_only || !is_said,
        });
        let rules = Self {
            ours: ours.clone(),
            banned: authors.into_iter().flatten().collect(),
            blocked: repositories(BLACKLIST)?.into_iter().flatten().collect(),
            chosen: chosen.map(RepoList::from_iter),
            archive,
        };
        rules.check(settings)?;
        Ok(rules)
    }

    /// What a list asks for must not be what another forbids.
    fn check(&self, settings: &Settings) -> Result<(), BadSetting> {
        let wanted = self.chosen.iter().map(|list| (WHITELIST, list));
        let archived = self.archive.iter().map(|one| (ARCHIVE, &one.listed));
        for (name, list) in wanted.chain(archived) {
            for entry in list.entries() {
                let by = match entry {
                    entry if self.blocked.covers(entry) => BLACKLIST,
                    Entry::Owner(owner) if self.banned.contains(owner) => EVENTS,
                    Entry::Repository(repo) if self.banned.contains(&repo.owner) => EVENTS,
                    _ => continue,
                };
                let entry = written(entry);
                let remedy = format!(
                    "without {entry}, which {by} forbids; take it from one of the two lists"
                );
                return Err(settings.bad(name, remedy));
            }
        }
        Ok(())
    }

    /// The service whose rules these are.
    pub fn ours(&self) -> &Domain {
        &self.ours
    }

    /// Whether nothing of this author's is taken.
    pub fn bans(&self, author: &Npub) -> bool {
        self.banned.contains(author)
    }

    /// The authors of whom nothing is taken.
    pub fn banned(&self) -> impl Iterator<Item = &Npub> {
        self.banned.iter()
    }

    /// Whether a repository is on a blacklist, or its owner is.
    pub fn blocks(&self, repo: &RepoId) -> bool {
        self.bans(&repo.owner) || self.blocked.contains(repo)
    }

    /// Whether a pull request is kept out for what it belongs to: all repositories that it is offered
    /// to are on a blacklist, or all the spaces below `/prs/` that it names as its own.
    pub fn blocks_request(&self, event: &Event, spaces: &Spaces) -> bool {
        let all = |repos: &BTreeSet<RepoId>| {
            !repos.is_empty() && repos.iter().all(|repo| self.blocks(repo))
        };
        all(&pull_request::repositories(event)) || all(&spaces.named_by(event))
    }

    /// The repositories that are on a blacklist, or their owners are.
    pub fn blocked(&self) -> Vec<Entry> {
        let owners = self.banned.iter().copied().map(Entry::Owner);
        owners.chain(self.blocked.entries().cloned()).collect()
    }

    /// Whether nobody is on a blacklist.
    pub fn blocks_nothing(&self) -> bool {
        self.banned.is_empty() && self.blocked.is_empty()
    }

    /// Where an announcement belongs: blacklists first, then the whitelist; the archive's rules are
    /// for those that do not list us, or are not chosen.
    pub fn place(&self, announcement: &Announcement) -> Place {
        if self.bans(&announcement.repo.owner) {
            return Place::Unwanted(BANNED);
        }
        if self.blocked.contains(&announcement.repo) {
            return Place::Unwanted(BLOCKED);
        }
        if self.hosts(announcement) {
            return Place::Hosted;
        }
        match (self.archives(announcement), announcement.lists(&self.ours)) {
            (true, _) => Place::Archived,
            (false, true) => Place::Unwanted(NOT_CHOSEN),
            (false, false) => Place::Elsewhere,
        }
    }

    /// Whether it lists this service, and is chosen if only chosen ones are hosted.
    fn hosts(&self, announcement: &Announcement) -> bool {
        let chosen = self.chosen.iter();
        announcement.lists(&self.ours)
            && chosen
                .into_iter()
                .all(|list| list.contains(&announcement.repo))
    }

    /// Whether repositories of other services may be here.
    pub fn has_archive(&self) -> bool {
        self.archive.is_some()
    }

    /// Whether the repository of an announcement, if it is here, is here as an archive.
    pub fn is_archive(&self, announcement: &Announcement) -> bool {
        let is_archived = self.archives(announcement) || !announcement.lists(&self.ours);
        is_archived && !self.hosts(announcement)
    }

    fn archives(&self, announcement: &Announcement) -> bool {
        let Some(archive) = &self.archive else {
            return false;
        };
        let is_there = |url: &str| {
            let domain = Domain::of_url(url);
            domain.is_some_and(|domain| archive.services.contains(&domain))
        };
        archive.all
            || archive.listed.contains(&announcement.repo)
            || (!archive.services.is_empty() && announcement.clone_urls().any(is_there))
    }

    /// Whether the repository of a served announcement is here. One that was accepted before a
    /// whitelist was stays.
    pub fn is_here(&self, announcement: &Announcement) -> bool {
        announcement.lists(&self.ours) || self.archives(announcement)
    }

    /// What is archived, if anything is.
    pub fn archive(&self) -> Option<&Archive> {
        self.archive.as_ref()
    }

    /// Whether pushes to what is archived are refused.
    pub fn refuses_pushes(&self) -> bool {
        self.archive.as_ref().is_some_and(|one| one.read_only)
    }

    /// Whether only chosen repositories are hosted.
    pub fn is_choosy(&self) -> bool {
        self.chosen.is_some()
    }

    /// Says in the log what is ruled.
    pub fn tell(&self) {
        if *self == Self::none(self.ours.clone()) {
            return;
        }
        let archive = self.archive.as_ref();
        tracing::info!(
            banned_authors = self.banned.len(),
            blocked = self.blocked.len(),
            whitelist = self.chosen.as_ref().map(RepoList::len),
            archive_all = archive.map(|one| one.all),
            archived = archive.map(|one| one.listed.len()),
            archived_services = archive.map(|one| one.services.len()),
            read_only = archive.map(|one| one.read_only),
            "the operator's rules"
        );
    }
}

fn written(entry: &Entry) -> String {
    match entry {
        Entry::Owner(owner) => owner.to_string(),
        Entry::Repository(repo) => format!("{}/{}", repo.owner, repo.identifier),
        Entry::Identifier(identifier) => identifier.to_string(),
    }
}

/// The file that a value names, if it is one.
fn file(value: &str) -> Option<&str> {
    let value = value.trim();
    match value.strip_prefix('@') {
        Some(path) => Some(path),
        None => (value.starts_with('/') || value.starts_with("./")).then_some(value),
    }
}

/// The entries of a list, in the value itself or in the file it names; `None`: it is not set.
fn list<T>(
    settings: &Settings,
    name: &'static str,
    form: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<Vec<T>>, BadSetting> {
    let Some(value) = settings.get(name).filter(|v| !v.trim().is_empty()) else {
        return Ok(None);
    };
    let bad = |place: &str, entry: &str, why: String| {
        settings.bad(name, format!("{form}{place}; {entry:?} is not: {why}"))
    };
    let Some(path) = file(value) else {
        let place = ", separated by commas";
        let entries = lists::inline(value)
            .map(|entry| read(entry).map_err(|why| bad(place, entry, why)))
            .collect::<Result<Vec<T>, _>>()?;
        if entries.is_empty() {
            return Err(settings.bad(name, format!("{form}{place}, or not set")));
        }
        return Ok(Some(entries));
    };
    let text = fs::read_to_string(path)
        .map_err(|error| settings.bad(name, format!("a readable file of text ({error})")))?;
    let entries = lists::lines(&text)
        .map(|entry| read(entry).map_err(|why| bad(" on each line of the file", entry, why)));
    Ok(Some(entries.collect::<Result<_, _>>()?))
}

/// The rules in force. Cheap to clone.
#[derive(Clone)]
pub struct Curation {
    settings: Arc<Settings>,
    /// Held for a copy only.
    rules: Arc<RwLock<Arc<Rules>>>,
}

impl fmt::Debug for Curation {
    /// The settings have secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules().fmt(f)
    }
}

impl Curation {
    /// These rules, which never change.
    pub fn fixed(rules: Rules) -> Self {
        Self {
            settings: Arc::default(),
            rules: Arc::new(RwLock::new(Arc::new(rules))),
        }
    }

    /// The rules of the settings.
    pub fn from_settings(settings: &Settings, ours: &Domain) -> Result<Self, BadSetting> {
        let mut curation = Self::fixed(Rules::from_settings(settings, ours)?);
        curation.settings = Arc::new(settings.clone());
        Ok(curation)
    }

    /// The rules as they are now.
    pub fn rules(&self) -> Arc<Rules> {
        let rules = self.rules.read();
        rules.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Other rules from now on.
    pub fn replace(&self, rules: Rules) {
        let mut now = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::new(rules);
    }

    /// Whether some list is a file.
    pub fn has_files(&self) -> bool {
        let lists = [EVENTS, BLACKLIST, WHITELIST, ARCHIVE, SERVICES];
        let is_file = |name| self.settings.get(name).is_some_and(|v| file(v).is_some());
        lists.into_iter().any(is_file)
    }

    /// The rules by the files as they are now. Blocks.
    pub fn read_again(&self) -> Result<Rules, BadSetting> {
        Rules::from_settings(&self.settings, self.rules().ours())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT,
        testing::{event, keys},
    };

    fn read(pairs: &[(&'static str, &str)]) -> Result<Rules, BadSetting> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let ours = Domain::parse("grasp.example").unwrap();
        Rules::from_settings(&Settings::from_pairs(pairs), &ours)
    }

    fn rules(pairs: &[(&'static str, &str)]) -> Rules {
        read(pairs).unwrap()
    }

    fn announced(seed: u8, name: &str, host: &str) -> Announcement {
        let clone = format!("https://{host}/x.git");
        let relay = format!("wss://{host}");
        let tags: [&[&str]; 3] = [&["d", name], &["clone", &clone], &["relays", &relay]];
        Announcement::read(Arc::new(event(&keys(seed), ANNOUNCEMENT, 1, &tags))).unwrap()
    }

    fn ours(seed: u8, name: &str) -> Announcement {
        announced(seed, name, "grasp.example")
    }

    fn other(seed: u8, name: &str) -> Announcement {
        announced(seed, name, "other.example")
    }

    fn npub(seed: u8) -> String {
        ours(seed, "x").repo.owner.to_string()
    }

    #[test]
    fn without_rules_those_are_hosted_that_list_us() {
        let rules = rules(&[]);
        assert_eq!(rules.place(&ours(1, "a")), Place::Hosted);
        assert_eq!(rules.place(&other(1, "a")), Place::Elsewhere);
        assert!(rules.blocks_nothing() && !rules.refuses_pushes());
    }

    #[test]
    fn blacklists_come_before_the_whitelist_and_that_before_nothing() {
        let (one, two) = (npub(1), npub(2));
        let rules = rules(&[
            (EVENTS, &npub(3)),
            (BLACKLIST, &format!("{one}/bad, worse")),
            (WHITELIST, &format!("{one}, {two}/good, chosen")),
        ]);
        for (announcement, place) in [
            (ours(1, "a"), Place::Hosted),
            (ours(1, "bad"), Place::Unwanted(BLOCKED)),
            (ours(1, "worse"), Place::Unwanted(BLOCKED)),
            (ours(2, "good"), Place::Hosted),
            (ours(2, "bad"), Place::Unwanted(NOT_CHOSEN)),
            (ours(4, "chosen"), Place::Hosted),
            (ours(4, "good"), Place::Unwanted(NOT_CHOSEN)),
            (ours(3, "chosen"), Place::Unwanted(BANNED)),
            (other(3, "a"), Place::Unwanted(BANNED)),
            (other(1, "bad"), Place::Unwanted(BLOCKED)),
            (other(1, "a"), Place::Elsewhere),
        ] {
            assert_eq!(rules.place(&announcement), place, "{:?}", announcement.repo);
        }
    }

    #[test]
    fn the_archive_is_for_those_that_do_not_list_us() {
        let all = rules(&[(ARCHIVE_ALL, "true"), (BLACKLIST, "bad")]);
        assert_eq!(all.place(&other(1, "a")), Place::Archived);
        assert_eq!(all.place(&ours(1, "a")), Place::Hosted);
        assert_eq!(all.place(&other(1, "bad")), Place::Unwanted(BLOCKED));
        let one = npub(1);
        let listed = rules(&[(ARCHIVE, &format!("{one}/a, b")), (WHITELIST, "c")]);
        assert_eq!(listed.place(&other(1, "a")), Place::Archived);
        assert_eq!(listed.place(&other(2, "a")), Place::Elsewhere);
        assert_eq!(listed.place(&other(2, "b")), Place::Archived);
        // It may list us as well: being chosen for the archive is enough, and makes it one.
        assert_eq!(listed.place(&ours(1, "a")), Place::Archived);
        assert_eq!(listed.place(&ours(2, "a")), Place::Unwanted(NOT_CHOSEN));
        assert_eq!(listed.place(&ours(2, "c")), Place::Hosted);
        for (announcement, is_archive) in [
            (ours(1, "a"), true),
            (other(1, "a"), true),
            (ours(2, "b"), true),
            // From before there was a whitelist.
            (ours(2, "a"), false),
            (ours(2, "c"), false),
        ] {
            assert_eq!(listed.is_archive(&announcement), is_archive);
        }
        assert!(!all.is_archive(&ours(1, "a")) && all.is_archive(&other(1, "a")));
        let services = rules(&[(SERVICES, "OTHER.example, https://third.example:443/")]);
        for (host, place) in [
            ("other.EXAMPLE", Place::Archived),
            ("third.example", Place::Archived),
            ("other.example:81", Place::Elsewhere),
            ("another.example", Place::Elsewhere),
            ("evil.example/other.example", Place::Elsewhere),
        ] {
            assert_eq!(services.place(&announced(1, "a", host)), place, "{host}");
        }
    }

    #[test]
    fn what_is_archived_is_read_only_unless_said_otherwise() {
        assert!(rules(&[(ARCHIVE_ALL, "1")]).refuses_pushes());
        assert!(rules(&[(ARCHIVE, "a")]).refuses_pushes());
        assert!(rules(&[(SERVICES, "a.example"), (READ_ONLY_SET, "true")]).refuses_pushes());
        assert!(!rules(&[(ARCHIVE, "a"), (READ_ONLY_SET, "false")]).refuses_pushes());
        assert_eq!(rules(&[(READ_ONLY_SET, "false")]), rules(&[]));
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_what_to_change() {
        let one = npub(1);
        let own = format!("{one}/a");
        for (pairs, name, words) in [
            (
                vec![(WHITELIST, "a"), (BLACKLIST, "b,a")],
                WHITELIST,
                BLACKLIST,
            ),
            (vec![(WHITELIST, &own), (BLACKLIST, &one)], WHITELIST, &own),
            (vec![(WHITELIST, &own), (BLACKLIST, "a")], WHITELIST, &own),
            (vec![(WHITELIST, &own), (EVENTS, &one)], WHITELIST, EVENTS),
            (vec![(ARCHIVE, &one), (EVENTS, &one)], ARCHIVE, EVENTS),
            (vec![(ARCHIVE, "a"), (BLACKLIST, "a")], ARCHIVE, BLACKLIST),
            (
                vec![(ARCHIVE, "a"), (ARCHIVE_ALL, "true")],
                ARCHIVE,
                ARCHIVE_ALL,
            ),
            (
                vec![(SERVICES, "a.b"), (ARCHIVE_ALL, "true")],
                SERVICES,
                ARCHIVE_ALL,
            ),
            (vec![(SERVICES, "GRASP.example")], SERVICES, "itself"),
            (vec![(READ_ONLY_SET, "true")], READ_ONLY_SET, ARCHIVE_ALL),
        ] {
            let error = read(&pairs).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains(words), "{error}");
        }
        // A part of what is wanted may be forbidden.
        rules(&[(WHITELIST, &one), (BLACKLIST, &own)]);
        rules(&[(WHITELIST, "a"), (BLACKLIST, &one), (EVENTS, &npub(2))]);
        rules(&[(WHITELIST, "a"), (ARCHIVE_ALL, "true")]);
    }

    #[test]
    fn a_bad_entry_is_named_with_what_would_be_right() {
        for name in [EVENTS, BLACKLIST, WHITELIST, ARCHIVE] {
            let error = read(&[(name, "npub1nonsense")]).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
            assert!(error.contains("\"npub1nonsense\" is not"), "{error}");
            assert!(error.contains("npub1…"), "{error}");
        }
        assert!(read(&[(SERVICES, "a/b")]).is_err());
        assert!(read(&[(BLACKLIST, " , ")]).is_err());
        assert!(read(&[(EVENTS, "a")]).is_err());
        assert!(read(&[(ARCHIVE_ALL, "perhaps")]).is_err());
        assert!(read(&[(BLACKLIST, "@/nowhere/at/all")]).is_err());
    }

    #[test]
    fn files_are_read_again_and_bad_ones_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let write = |text: &str| fs::write(&path, text).unwrap();
        write("# nobody yet\n");
        let value = path.to_str().unwrap().to_owned();
        let settings = Settings::from_pairs([(BLACKLIST, value), (WHITELIST, "good".to_owned())]);
        let domain = Domain::parse("grasp.example").unwrap();
        let curation = Curation::from_settings(&settings, &domain).unwrap();
        assert!(curation.has_files() && curation.rules().blocks_nothing());
        write("bad # since today\n");
        curation.replace(curation.read_again().unwrap());
        assert!(curation.rules().blocks(&ours(1, "bad").repo));
        for wrong in ["npub1nonsense", "good"] {
            write(&format!("worse\n{wrong}\n"));
            let error = curation.read_again().unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
            assert!(curation.rules().blocks(&ours(1, "bad").repo));
            assert!(!curation.rules().blocks(&ours(1, "worse").repo));
        }
        // An empty whitelist is one all the same.
        let settings = Settings::from_pairs([(WHITELIST, format!("@{}", path.display()))]);
        write("");
        let rules = Rules::from_settings(&settings, &domain).unwrap();
        assert_eq!(rules.place(&ours(1, "a")), Place::Unwanted(NOT_CHOSEN));
        let settings = Settings::from_pairs([(WHITELIST, "@list".to_owned())]);
        assert!(Curation::fixed(rules).settings.get(WHITELIST).is_none());
        assert_eq!(file(settings.get(WHITELIST).unwrap()), Some("list"));
        assert_eq!(file("./list"), Some("./list"));
        assert_eq!(file("list"), None);
    }
}
