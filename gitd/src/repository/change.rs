//! What moves refs and brings objects in: alignment, pull requests, uploads.
//!
//! Refs move only when the relay says so, and only here. All of it is repeatable: objects first,
//! then refs, then HEAD, then what is no longer needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use git2::ObjectType;
use grasp_proto::words::{Address, EventId, Oid, RefKind, RefName, RepoId};

use super::{
    Error, Repositories,
    intake::{Quarantine, Refused},
    kind_of,
    locks::Upload,
    refs::{self, Change},
    staging, throw_away,
    unsigned::{Over, PLACEHOLDER, Payer, Reservation},
};

/// What a state wants of a repository.
#[derive(Debug)]
pub struct Alignment {
    /// Which incarnation; empty: whichever is there.
    pub incarnation: String,
    /// The branches and tags it shall have, and no others.
    pub refs: Vec<(RefName, Oid)>,
    /// Where HEAD shall point; `None`: it stays.
    pub head: Option<RefName>,
    /// What the caller saw.
    pub expected: Vec<(RefName, Option<Oid>)>,
}

/// What the caller of a change believes a ref to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It does not matter.
    Anything,
    /// This, or nothing.
    Exactly(Option<Oid>),
}

impl Expected {
    fn allows(self, now: Option<Oid>) -> bool {
        self == Self::Anything || self == Self::Exactly(now)
    }
}

/// One ref under `refs/nostr/` to be put.
#[derive(Debug)]
pub struct Put {
    /// Which incarnation; empty: whichever is there.
    pub incarnation: String,
    /// The ref.
    pub name: RefName,
    /// Its value.
    pub oid: Oid,
    /// What it must be now.
    pub expected: Expected,
    /// An event wants the objects.
    pub signed_for: bool,
}

/// Where the objects of an upload go.
#[derive(Debug)]
pub enum Destination {
    /// Into the pool: a signed event wants them.
    Pool,
    /// Into the view's staging.
    Staged {
        /// For these placeholders, each with its commit.
        events: Vec<(EventId, Oid)>,
        /// The bytes that may be staged in the view.
        most: u64,
        /// What the upload has of what may be staged anywhere.
        reservation: Reservation,
    },
}

impl From<Over> for Refused {
    fn from(over: Over) -> Self {
        Self::Pack(over.to_string())
    }
}

/// What an upload is refused with whose ground went while it was checked.
const JUST_GONE: &str = "what this upload builds on has just expired, push again";

/// At most so many objects are named in a complaint.
const NAMED: usize = 3;

pub(super) fn named(oids: &[Oid]) -> String {
    let shown: Vec<String> = oids.iter().take(NAMED).map(Oid::to_string).collect();
    let more = oids.len().saturating_sub(NAMED);
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Sees to it that all `wanted` objects are in the pool, claiming what is staged in the view, and
/// that those which must be commits are. Under the view's lock; `staged` moves what is staged for a
/// placeholder into the pool.
fn claim(
    view: &Path,
    pool: &Path,
    wanted: &[(Oid, bool)],
    staged: impl Fn(&EventId) -> io::Result<()>,
) -> Result<(), Error> {
    let mut absent = Vec::new();
    let check = |oid: Oid, must_be_commit: bool, odb: &git2::Odb<'_>| match kind_of(odb, oid)? {
        Some(kind) if must_be_commit && kind != ObjectType::Commit => {
            Err(Error::Precondition(format!("object {oid} is not a commit")))
        }
        kind => Ok(kind.is_some()),
    };
    let repo = refs::open(pool)?;
    let odb = repo.odb()?;
    for (oid, must_be_commit) in wanted {
        if !check(*oid, *must_be_commit, &odb)? {
            absent.push((*oid, *must_be_commit));
        }
    }
    if absent.is_empty() {
        return Ok(());
    }
    for (oid, _) in &absent {
        for event in staging::having(view, *oid)? {
            staged(&event)?;
        }
    }
    let repo = refs::open(pool)?;
    let odb = repo.odb()?;
    let mut missing = Vec::new();
    for (oid, must_be_commit) in absent {
        if !check(oid, must_be_commit, &odb)? {
            missing.push(oid);
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::Precondition(format!(
            "not here: object {}",
            named(&missing)
        ))),
    }
}

impl Repositories {
    /// Makes branches and tags of a repository equal to a state; says how many refs moved.
    pub fn align(&self, repo: &RepoId, wanted: &Alignment) -> Result<u32, Error> {
        let mut desired = BTreeMap::new();
        for (name, oid) in &wanted.refs {
            let head = match name.kind() {
                RefKind::Head => true,
                RefKind::Tag => false,
                _ => return Err(Error::Invalid(format!("{name} is no branch or tag"))),
            };
            if desired.insert(name.to_string(), (*oid, head)).is_some() {
                return Err(Error::Invalid(format!("{name} is named twice")));
            }
        }
        if let Some(name) = conflicting(desired.keys()) {
            return Err(Error::Invalid(format!(
                "{name} would have to be a directory"
            )));
        }
        if let Some(head) = &wanted.head
            && head.kind() != RefKind::Head
        {
            return Err(Error::Invalid(format!("HEAD cannot point to {head}")));
        }
        let address = Address::from(repo);
        self.views.hold(&address, || {
            self.expect_incarnation(&address, &wanted.incarnation)?;
            let pool = self.adopt(&address)?;
            let view = self.view(&address)?;
            let git = refs::open(&view)?;
            let current = refs::branches_and_tags(refs::list(&git, &[""], false)?);
            for (name, expected) in &wanted.expected {
                if current.get(name.as_str()) != expected.as_ref() {
                    return Err(Error::Aborted(format!(
                        "{name} is not where it was expected"
                    )));
                }
            }
            let objects: BTreeSet<(Oid, bool)> = desired.values().copied().collect();
            let objects: Vec<_> = objects.into_iter().collect();
            claim(&view, &pool, &objects, self.claims(&address, &view, &pool))?;
            self.unsigned.recount(&address, &view)?;

            let deleted = current.keys().filter(|name| !desired.contains_key(*name));
            let mut changes: Vec<Change> = deleted
                .map(|name| Change {
                    name: name.clone(),
                    old: current.get(name).copied(),
                    new: None,
                })
                .collect();
            for (name, (oid, _)) in desired {
                let old = current.get(&name).copied();
                if old != Some(oid) {
                    let new = Some(oid);
                    changes.push(Change { name, old, new });
                }
            }
            let head = wanted.head.as_ref().map(RefName::as_str);
            let head = head.filter(|head| refs::head(&git) != *head);
            // Most repositories of a set are as they should be when it is judged again.
            if !changes.is_empty() || head.is_some() {
                self.note_former(&address, &objects, &changes)?;
                self.tips.during(&address, || {
                    refs::apply(&view, &changes)?;
                    head.map_or(Ok(false), |head| refs::set_head(&git, head))
                })?;
            }
            if !changes.is_empty() && refs::should_pack(&view) {
                // What lies loose is as good as what is packed.
                if let Err(error) = refs::pack(&view) {
                    tracing::warn!(%repo, %error, "refs not packed");
                }
            }
            self.note_aligned(&address, &objects)?;
            self.consolidator.consider(&pool);
            Ok(u32::try_from(changes.len()).unwrap_or(u32::MAX))
        })
    }

    /// Of the objects that branches and tags of a repository are to be put to, those that it does not show
    /// there already. Blocks.
    pub fn to_be_shown(&self, repo: &RepoId, refs: &[(RefName, Oid)]) -> Result<Vec<Oid>, Error> {
        let current = match self.view(&Address::from(repo)) {
            Err(Error::NotFound) => BTreeMap::new(),
            view => {
                let git = refs::open(&view?)?;
                refs::branches_and_tags(refs::list(&git, &[""], false)?)
            }
        };
        let new = refs
            .iter()
            .filter(|(name, oid)| current.get(name.as_str()) != Some(oid));
        let oids: BTreeSet<Oid> = new.map(|(_, oid)| *oid).collect();
        Ok(oids.into_iter().collect())
    }

    /// Sets one ref under `refs/nostr/`.
    pub fn put_ref(&self, address: &Address, put: &Put) -> Result<(), Error> {
        let event = event_of(&put.name)?;
        let mut rubbish = Vec::new();
        let done = self.change(address, || {
            if address.is_prs() && put.signed_for {
                self.make(address, &[])?;
            }
            let done = self.put(address, put, &event);
            if done.is_err() && address.is_prs() {
                rubbish = self.take_away_if_empty(address)?;
            }
            done
        });
        for directory in rubbish {
            throw_away(&directory);
        }
        done
    }

    /// What moves the packs that are staged in a view into the pool.
    fn claims(
        &self,
        address: &Address,
        view: &Path,
        pool: &Path,
    ) -> impl Fn(&EventId) -> io::Result<()> {
        let claim = |event: &EventId| staging::claim(view, pool, event);
        move |event| self.identifiers.hold(address.identifier(), || claim(event))
    }

    /// Refuses what was checked against objects of a pool that may be gone. Under the identifier's lock.
    fn expect_unpruned(&self, upload: &Upload) -> Result<(), Error> {
        match self.prunings(upload.address.identifier()) == upload.checked_at() {
            true => Ok(()),
            false => Err(Error::Precondition(JUST_GONE.to_owned())),
        }
    }

    /// Under the view's lock.
    fn put(&self, address: &Address, put: &Put, event: &EventId) -> Result<(), Error> {
        self.expect_incarnation(address, &put.incarnation)?;
        let pool = self.adopt(address)?;
        let view = self.view(address)?;
        let git = refs::open(&view)?;
        let old = refs::resolve(&git, put.name.as_str())?;
        // A repeated call finds its own work done.
        if !put.expected.allows(old) && old != Some(put.oid) {
            return Err(not_where_expected(&put.name));
        }
        if put.signed_for {
            let staged = self.claims(address, &view, &pool);
            staged(event)?;
            claim(&view, &pool, &[(put.oid, true)], staged)?;
        } else {
            match kind_of(&git.odb()?, put.oid)? {
                Some(ObjectType::Commit) => {}
                Some(_) => {
                    let reason = format!("object {} is not a commit", put.oid);
                    return Err(Error::Precondition(reason));
                }
                None => {
                    let reason = format!("not here: object {}", put.oid);
                    return Err(Error::Precondition(reason));
                }
            }
        }
        let mut left: BTreeSet<Oid> = old.into_iter().collect();
        if put.signed_for {
            // They came into the pool with the one that was signed for.
            left.extend(staging::commits(&view, event)?);
        }
        left.remove(&put.oid);
        self.note_left(address, left)?;
        if old != Some(put.oid) {
            let new = Some(put.oid);
            let name = put.name.to_string();
            refs::apply(&view, &[Change { name, old, new }])?;
        }
        self.note_shown(address, put.oid)?;
        if put.signed_for {
            staging::forget(&view, event)?;
            self.unsigned.recount(address, &view)?;
            self.consolidator.consider(&pool);
        }
        Ok(())
    }

    /// Deletes one ref under `refs/nostr/`, and what was staged for it.
    pub fn delete_ref(
        &self,
        address: &Address,
        incarnation: &str,
        name: &RefName,
        expected: Expected,
    ) -> Result<(), Error> {
        let event = event_of(name)?;
        let rubbish = self.change(address, || {
            match self.expect_incarnation(address, incarnation) {
                // What is not there has no such ref.
                Err(Error::NotFound) => return Ok(Vec::new()),
                result => result?,
            }
            let view = self.view(address)?;
            let git = refs::open(&view)?;
            let old = refs::resolve(&git, name.as_str())?;
            // What is gone already was deleted by an earlier try.
            if !expected.allows(old) && old.is_some() {
                return Err(not_where_expected(name));
            }
            if let Some(old) = old {
                if !staging::events(&view).is_ok_and(|staged| staged.contains(&event)) {
                    self.note_withdrawn(address, event, old)?;
                }
                let (name, new) = (name.to_string(), None);
                let old = Some(old);
                refs::apply(&view, &[Change { name, old, new }])?;
            }
            staging::forget(&view, &event)?;
            self.unsigned.recount(address, &view)?;
            match address.is_prs() {
                true => self.take_away_if_empty(address),
                false => Ok(Vec::new()),
            }
        })?;
        for directory in rubbish {
            throw_away(&directory);
        }
        Ok(())
    }

    /// The pool that an upload goes to.
    pub fn pool_for(&self, upload: &Upload) -> Result<PathBuf, Error> {
        let address = &upload.address;
        self.change(address, || self.adopt(address))
    }

    /// What an upload for these placeholders may lean on besides the pool: the packs each of them has
    /// already. Gives the directory and the names.
    pub fn staged_packs(
        &self,
        upload: &Upload,
        events: &[EventId],
    ) -> Result<(PathBuf, Vec<String>), Error> {
        let view = self.view(&upload.address)?;
        self.views.hold(&upload.address, || {
            // What one lacks would be missing when that one is claimed alone.
            let mut common: Option<BTreeSet<String>> = None;
            for event in events {
                let packs = staging::packs(&view, event)?.unwrap_or_default();
                let packs: BTreeSet<String> = packs.into_iter().collect();
                common = Some(match common {
                    None => packs,
                    Some(common) => common.intersection(&packs).cloned().collect(),
                });
            }
            let names = common.unwrap_or_default().into_iter().collect();
            Ok((view.join("objects/pack"), names))
        })
    }

    /// How many of `most` bytes are left in this view for these placeholders of `payer`.
    pub fn room_for(
        &self,
        upload: &Upload,
        events: &[EventId],
        payer: Payer,
        most: u64,
    ) -> Result<u64, Refused> {
        let view = self.view(&upload.address)?;
        let mut all = staging::events(&view).map_err(Error::from)?;
        all.extend(events);
        if all.len() > staging::MOST {
            return Err(too_many_placeholders());
        }
        let mut own = staging::brought_by(&view, payer).map_err(Error::from)?;
        for event in events {
            let commits = own.entry(*event).or_default();
            if *commits >= staging::MOST_COMMITS_OF_ONE {
                return Err(too_many_commits());
            }
        }
        if own.len() > staging::MOST_OF_ONE {
            return Err(too_many_of_one());
        }
        let staged = staging::bytes(&view).map_err(Error::from)?;
        match most.saturating_sub(staged) {
            0 => Err(too_many_bytes()),
            left => Ok(left),
        }
    }

    /// Makes a checked upload visible where it belongs. `tips` are the objects its commands name, each
    /// with whether it must be a commit; `own` the staged packs it may lean on.
    pub fn take_in(
        &self,
        upload: &Upload,
        pool: &Path,
        quarantine: Quarantine,
        destination: Destination,
        tips: &[(Oid, bool)],
        own: &[String],
    ) -> Result<(), Refused> {
        let view = self.view(&upload.address)?;
        match destination {
            Destination::Pool => {
                // What is staged in the view counts: the relay's next call claims it.
                quarantine.check_tips(&view, tips)?;
                self.note_pushed(&upload.address, tips)?;
                self.identifiers.hold(upload.address.identifier(), || {
                    self.expect_unpruned(upload)?;
                    Ok(quarantine.publish(pool)?)
                })
            }
            Destination::Staged {
                events,
                most,
                mut reservation,
            } => self.views.hold(&upload.address, || {
                // Not the view, where other placeholders' objects show: those go with theirs.
                quarantine.check_tips(pool, tips)?;
                // Others may have come meanwhile.
                let bytes = quarantine.bytes()?;
                let ids: Vec<EventId> = events.iter().map(|(event, _)| *event).collect();
                let payer = reservation.payer();
                if self.room_for(upload, &ids, payer, most)? < bytes {
                    return Err(too_many_bytes());
                }
                // What a thin pack leaned on was added to it.
                reservation.cover(charge(&ids, bytes))?;
                let here = |objects: &Path, pack: &String| {
                    objects.join(format!("pack/{pack}.idx")).exists()
                };
                let (own_objects, pooled) = (view.join("objects"), pool.join("objects"));
                if !own
                    .iter()
                    .all(|p| here(&own_objects, p) || here(&pooled, p))
                {
                    return Err(Refused::Pack(JUST_GONE.to_owned()));
                }
                for (event, commit) in &events {
                    staging::note(&view, event, *commit, quarantine.pack(), payer)?;
                }
                self.note_pushed(&upload.address, tips)?;
                self.identifiers.hold(upload.address.identifier(), || {
                    self.expect_unpruned(upload)?;
                    quarantine.stage(&view)
                })?;
                Ok(reservation.spent(&upload.address, &view)?)
            }),
        }
    }

    /// Drops the placeholders of an upload that got no ref after all.
    pub fn drop_refused(&self, upload: &Upload, events: &[EventId]) -> Result<(), Error> {
        let view = self.view(&upload.address)?;
        self.views.hold(&upload.address, || {
            let git = refs::open(&view)?;
            for event in events {
                let name = RefName::nostr(event);
                if refs::resolve(&git, name.as_str())?.is_none() {
                    staging::forget(&view, event)?;
                }
            }
            Ok(self.unsigned.recount(&upload.address, &view)?)
        })
    }

    /// The refs of a view whose objects are staged: nothing may lean on them.
    pub fn staged_refs(&self, view: &Path) -> Result<BTreeSet<String>, Error> {
        let events = staging::events(view)?;
        let names = events.iter().map(|event| RefName::nostr(event).to_string());
        Ok(names.collect())
    }
}

/// What an upload of so many bytes for these placeholders counts as long as nobody signs for it.
pub fn charge(events: &[EventId], bytes: u64) -> u64 {
    bytes + PLACEHOLDER * events.len() as u64
}

/// The refusal of one placeholder too many.
fn too_many_placeholders() -> Refused {
    Refused::Pack(format!(
        "this repository has {} uploads that wait for their event; publish yours first, or try later",
        staging::MOST
    ))
}

/// The refusal of one placeholder of one client too many.
fn too_many_of_one() -> Refused {
    Refused::Pack(format!(
        "{} uploads from your address to this repository wait for their event, and there is to be room for \
         others: publish the events first, or try later",
        staging::MOST_OF_ONE
    ))
}

/// The refusal of one commit too many for one event.
fn too_many_commits() -> Refused {
    Refused::Pack(format!(
        "{} commits from your address wait for one event: publish it first, then push",
        staging::MOST_COMMITS_OF_ONE
    ))
}

/// The refusal of one byte too many.
fn too_many_bytes() -> Refused {
    let reason = "uploads that wait for their event fill this repository's room for them; publish \
                  yours first, or try later";
    Refused::Pack(reason.to_owned())
}

/// Which event a ref under `refs/nostr/` is named after.
pub fn event_of(name: &RefName) -> Result<EventId, Error> {
    match name.kind() {
        RefKind::Nostr(event) => Ok(event),
        _ => Err(Error::Invalid(format!(
            "{name} is not refs/nostr/<event id>"
        ))),
    }
}

fn not_where_expected(name: &RefName) -> Error {
    Error::Aborted(format!("{name} is not where it was expected"))
}

/// A name that another one has as a directory, among names in order.
fn conflicting<'a>(names: impl Iterator<Item = &'a String> + Clone) -> Option<&'a String> {
    let all: BTreeSet<&str> = names.clone().map(String::as_str).collect();
    names.into_iter().find(|name| {
        let mut parents = name.match_indices('/').map(|(at, _)| &name[..at]);
        parents.any(|parent| all.contains(parent))
    })
}
