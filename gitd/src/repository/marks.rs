//! What came and is not shown yet, or no more: objects that count as here for one purpose all the same.
//!
//! Refs alone say what a view shows. Between a pack's coming and the ref that leads to it, and where one of
//! several packs has come, something has to remember that it was brought, and for whom: it would be taken for
//! hidden otherwise (`public.rs`). A mark stands for the object and all it leads to. It is written before the
//! pack is seen, or the ref is moved that led there; it goes when a ref leads there, and holds for a while at
//! most: a process that is killed in between finds it, and repeats its work.
//!
//! One that holds no more stays where it is until the pool is pruned: what it stands for may be reached by
//! nothing (`prune.rs`).
//!
//! Marks lie in a file of the pool, a line each: kind, object, the view and the event it is for (or `-`), when. All functions
//! are called under the identifier's lock, and block.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use grasp_proto::words::{Address, EventId, Identifier, Oid};

use super::{
    Error, Repositories,
    layout::{BROUGHT, Marker},
    refs::{self, Change},
    replace_file, write_file,
};
use crate::clock;

/// Why something counts though no ref leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A hunt for a signed event brought it, or it was copied for one: for any view.
    Arrived,
    /// A push into the view brought it.
    Pushed,
    /// The view's branches and tags led to it when it was moved aside, or taken away from outside. It is back,
    /// and shows none yet.
    Held,
    /// The ref of a pull request led to it in the view then: for that one alone.
    Offered,
    /// They led to it until they were moved: a signed state that counts again may want it back.
    Former,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Arrived,
        Self::Pushed,
        Self::Held,
        Self::Offered,
        Self::Former,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::Pushed => "pushed",
            Self::Held => "held",
            Self::Offered => "offered",
            Self::Former => "former",
        }
    }
}

/// One mark.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Why it counts.
    pub kind: Kind,
    /// The object.
    pub oid: Oid,
    /// For which view; `None`: for any.
    pub view: Option<Marker>,
    /// For the ref of which pull request; `None`: any.
    pub event: Option<EventId>,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
}

/// An object that a ref of a view led to: of a pull request, or a branch or tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShownBefore {
    /// The object.
    pub oid: Oid,
    /// Of which pull request the ref was, if of one.
    pub event: Option<EventId>,
}

impl ShownBefore {
    /// That it may be shown there again.
    pub fn mark(&self, view: &Marker) -> Mark {
        let kind = self.event.map_or(Kind::Held, |_| Kind::Offered);
        Mark {
            event: self.event,
            ..Mark::new(kind, self.oid, Some(view))
        }
    }
}

impl Mark {
    /// Made now.
    pub fn new(kind: Kind, oid: Oid, view: Option<&Marker>) -> Self {
        Self {
            kind,
            oid,
            view: view.cloned(),
            event: None,
            since: clock::millis(),
        }
    }

    fn line(&self) -> String {
        let view = self.view.as_ref().map_or("-".to_owned(), Marker::name);
        let event = self.event.map_or("-".to_owned(), |event| event.to_hex());
        let (kind, oid, since) = (self.kind.word(), self.oid, self.since);
        format!("{kind} {oid} {view} {event} {since}\n")
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        Some(Self {
            kind: Kind::ALL.into_iter().find(|one| one.word() == kind)?,
            oid: Oid::from_hex(words.next()?).ok()?,
            view: match words.next()? {
                "-" => None,
                name => Some(Marker::parse(name)?),
            },
            event: match words.next()? {
                "-" => None,
                event => Some(EventId::from_hex(event).ok()?),
            },
            since: words.next()?.parse().ok()?,
        })
    }

    /// What holds no more: it only says that something may be reached by nothing.
    pub fn expired(oid: Oid) -> Self {
        Self {
            since: 0,
            ..Self::new(Kind::Former, oid, None)
        }
    }

    /// The same of a whole view that went, and had more refs than marks are made for.
    pub fn of_anything() -> Self {
        Self::expired(Oid::ZERO)
    }

    /// Whether it is such a one.
    pub fn is_of_anything(&self) -> bool {
        self.oid == Oid::ZERO
    }

    /// Whether it holds no more.
    pub fn is_old(&self, keep: &Keep) -> bool {
        let keep = match self.kind {
            Kind::Former => keep.former,
            Kind::Offered => keep.offered,
            Kind::Arrived | Kind::Pushed | Kind::Held => IN_BETWEEN,
        };
        let now = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_millis(self.since).saturating_add(keep) <= now
    }

    /// Whether it is for this view.
    pub fn is_for(&self, view: &Marker) -> bool {
        self.view.as_ref().is_none_or(|of| of == view)
    }
}

/// How long marks hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// Of where refs led: a signed state may want it back.
    pub former: Duration,
    /// Of where the refs of pull requests led: repositories that are held come back with theirs.
    pub offered: Duration,
}

/// The same of what is on its way to a ref.
const IN_BETWEEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// What becomes of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Stays,
    /// Refs lead there, or another mark stands for it.
    Goes,
    /// It holds no more.
    Expires,
}

impl Fate {
    /// Of one that goes if this is so.
    pub fn goes_if(goes: bool) -> Self {
        match goes {
            true => Self::Goes,
            false => Self::Stays,
        }
    }

    /// Of one that expires if this is so.
    pub fn expires_if(expires: bool) -> Self {
        match expires {
            true => Self::Expires,
            false => Self::Stays,
        }
    }
}

/// Marks of one pool at most; the oldest go.
const MOST: usize = 200_000;

/// Refs of a view that goes, that marks are made for.
const MOST_GONE: usize = 4096;

/// Marks of one view's former refs at most, but for those that were moved last.
const MOST_FORMER: usize = 256;

/// The marks of a pool: those that hold, and those that hold no more.
pub fn read(pool: &Path, keep: &Keep) -> io::Result<(Vec<Mark>, Vec<Mark>)> {
    let marks = read_all(pool)?.1;
    Ok(marks.into_iter().partition(|mark| !mark.is_old(keep)))
}

/// All marks, and the text they are read from.
fn read_all(pool: &Path) -> io::Result<(String, Vec<Mark>)> {
    let text = match fs::read_to_string(pool.join(BROUGHT)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    // What cannot be read counts for nothing.
    let marks = text.lines().filter_map(Mark::parse).collect();
    Ok((text, marks))
}

/// Gives the marks of a pool their fate, and adds others. Durably only where what they stand for is held: of
/// the rest, what a power failure takes is pushed or fetched again.
pub fn change(pool: &Path, fate: impl Fn(&Mark) -> Fate, new: Vec<Mark>) -> io::Result<()> {
    let (before, mut marks) = read_all(pool)?;
    marks.retain_mut(|mark| match fate(mark) {
        Fate::Stays => true,
        Fate::Goes => false,
        Fate::Expires => {
            mark.since = 0;
            true
        }
    });
    let same: HashSet<_> = new
        .iter()
        .map(|m| (m.kind, m.oid, m.view.clone(), m.event))
        .collect();
    marks.retain(|mark| !same.contains(&(mark.kind, mark.oid, mark.view.clone(), mark.event)));
    if let Some(view) = new
        .iter()
        .find_map(|m| m.view.as_ref().filter(|_| m.kind == Kind::Former))
    {
        let of_view = |mark: &Mark| {
            mark.since > 0 && mark.kind == Kind::Former && mark.view.as_ref() == Some(view)
        };
        let count = marks.iter().filter(|mark| of_view(mark)).count();
        let over = count.saturating_sub(MOST_FORMER);
        for mark in marks.iter_mut().filter(|mark| of_view(mark)).take(over) {
            mark.since = 0;
        }
    }
    let is_held = |mark: &Mark| matches!(mark.kind, Kind::Held | Kind::Offered);
    let durably = new.iter().any(is_held);
    marks.extend(new);
    let over = marks.len().saturating_sub(MOST);
    let after: String = marks[over..].iter().map(Mark::line).collect();
    if after == before {
        return Ok(());
    }
    let path = pool.join(BROUGHT);
    match after.is_empty() {
        true => fs::remove_file(path),
        false if durably => write_file(&path, after.as_bytes()),
        false => replace_file(&path, after.as_bytes()),
    }
}

/// A view that lies at `place` goes: what only it leads to, by refs or marks, is for nobody any more.
/// Under the identifier's lock.
pub fn note_going(pool: &Path, marker: &Marker, place: &Path) -> Result<(), Error> {
    let mut tips = BTreeSet::new();
    let see = |oid| {
        tips.insert(oid);
    };
    let is_seen = refs::open(place)
        .and_then(|git| refs::tips(&git, see))
        .is_ok();
    let gone = match is_seen && tips.len() <= MOST_GONE {
        true => tips.into_iter().map(Mark::expired).collect(),
        false => vec![Mark::of_anything()],
    };
    let fate = |mark: &Mark| Fate::expires_if(mark.view.as_ref() == Some(marker));
    Ok(change(pool, fate, gone)?)
}

impl Repositories {
    /// Changes what is marked in the pool of an identifier.
    pub(super) fn mark(
        &self,
        identifier: &Identifier,
        fate: impl Fn(&Mark) -> Fate,
        new: Vec<Mark>,
    ) -> Result<(), Error> {
        self.identifiers.hold(identifier, || {
            let pool = self.layout.pool(identifier);
            match pool.is_dir() {
                true => Ok(change(&pool, fate, new)?),
                false => Ok(()),
            }
        })
    }

    /// A push into a view has brought these.
    pub(super) fn note_pushed(&self, address: &Address, tips: &[(Oid, bool)]) -> Result<(), Error> {
        let view = self.marker(address)?;
        let pushed = tips
            .iter()
            .map(|(tip, _)| Mark::new(Kind::Pushed, *tip, view.as_ref()));
        self.mark(address.identifier(), |_| Fate::Stays, pushed.collect())
    }

    /// A push is over: what it brought and no ref leads to was refused.
    pub fn forget_pushed(&self, address: &Address, tips: &[(Oid, bool)]) -> Result<(), Error> {
        let view = self.marker(address)?;
        let tips: HashSet<Oid> = tips.iter().map(|(tip, _)| *tip).collect();
        let fate = |mark: &Mark| {
            let is_pushed = mark.kind == Kind::Pushed && mark.view == view;
            Fate::expires_if(is_pushed && tips.contains(&mark.oid))
        };
        self.mark(address.identifier(), fate, Vec::new())
    }

    /// A ref of a view leads to it.
    pub(super) fn note_shown(&self, address: &Address, oid: Oid) -> Result<(), Error> {
        let view = self.marker(address)?;
        let is_public = !self.withheld.covers(&address.repo);
        let fate = |mark: &Mark| {
            let is_shown = match mark.kind {
                Kind::Arrived => is_public,
                Kind::Pushed => mark.view == view,
                Kind::Held | Kind::Offered | Kind::Former => false,
            };
            Fate::goes_if(is_shown && mark.oid == oid)
        };
        self.mark(address.identifier(), fate, Vec::new())
    }

    /// A ref is to lead there no more, or never did.
    pub(super) fn note_left(
        &self,
        address: &Address,
        oids: impl IntoIterator<Item = Oid>,
    ) -> Result<(), Error> {
        let left: Vec<Mark> = oids.into_iter().map(Mark::expired).collect();
        match left.is_empty() {
            true => Ok(()),
            false => self.mark(address.identifier(), |_| Fate::Stays, left),
        }
    }

    /// The ref of a pull request, which leads there, is to go from a view. Where that goes with a repository, it
    /// comes back with it: the same event's, nobody else's.
    pub(super) fn note_withdrawn(
        &self,
        address: &Address,
        event: EventId,
        oid: Oid,
    ) -> Result<(), Error> {
        let view = self.marker(address)?;
        let offered = Mark {
            event: Some(event),
            ..Mark::new(Kind::Offered, oid, view.as_ref())
        };
        self.mark(address.identifier(), |_| Fate::Stays, vec![offered])
    }

    /// The branches and tags of a view are to be moved from where they lead: a signed state that counts again
    /// may want that back. Of no object that is to be shown.
    pub(super) fn note_former(
        &self,
        address: &Address,
        shown: &[(Oid, bool)],
        moved: &[Change],
    ) -> Result<(), Error> {
        let Some(view) = self.marker(address)? else {
            return Ok(());
        };
        let mut former: HashSet<Oid> = moved.iter().filter_map(|change| change.old).collect();
        for (oid, _) in shown {
            former.remove(oid);
        }
        if former.is_empty() {
            return Ok(());
        }
        let former = former.into_iter();
        let former = former.map(|oid| Mark::new(Kind::Former, oid, Some(&view)));
        self.mark(address.identifier(), |_| Fate::Stays, former.collect())
    }

    /// The branches and tags of a view lead to these.
    pub(super) fn note_aligned(
        &self,
        address: &Address,
        shown: &[(Oid, bool)],
    ) -> Result<(), Error> {
        let Some(view) = self.marker(address)? else {
            return Ok(());
        };
        let is_public = !self.withheld.covers(&address.repo);
        let shown: HashSet<Oid> = shown.iter().map(|(oid, _)| *oid).collect();
        let fate = |mark: &Mark| {
            let is_shown = match mark.kind {
                // Of several states that come back, one may be behind the others.
                Kind::Held | Kind::Offered => false,
                Kind::Arrived => is_public,
                Kind::Pushed | Kind::Former => mark.view.as_ref() == Some(&view),
            };
            Fate::goes_if(is_shown && shown.contains(&mark.oid))
        };
        self.mark(address.identifier(), fate, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use grasp_proto::words::{Npub, RepoId};

    use super::*;

    fn keep(secs: u64) -> Keep {
        let former = Duration::from_secs(secs);
        let offered = 2 * former;
        Keep { former, offered }
    }

    fn read_holding(pool: &Path) -> Vec<Mark> {
        read(pool, &keep(60)).unwrap().0
    }

    #[test]
    fn marks_hold_for_a_while_each_once() {
        let directory = tempfile::tempdir().unwrap();
        let pool = directory.path();
        let view = Marker::new(
            &Address::from(RepoId {
                owner: Npub::from_bytes([7; 32]),
                identifier: Identifier::parse("x").unwrap(),
            }),
            "00ff".to_owned(),
        );
        let oid = |byte| Oid::from_bytes([byte; 20]);
        let arrived = Mark::new(Kind::Arrived, oid(1), None);
        let pushed = Mark::new(Kind::Pushed, oid(2), Some(&view));
        let mut old = Mark::new(Kind::Former, oid(3), Some(&view));
        old.since -= 61_000;
        let mut offered = Mark::new(Kind::Offered, oid(3), Some(&view));
        offered.since -= 61_000;
        let all = vec![
            arrived.clone(),
            pushed.clone(),
            old.clone(),
            offered.clone(),
        ];
        let stay = |_: &Mark| Fate::Stays;
        change(pool, stay, all).unwrap();
        let holding = [arrived.clone(), pushed.clone(), offered];
        assert_eq!(read_holding(pool), holding);
        assert_eq!(read(pool, &keep(60)).unwrap().1, [old]);
        change(pool, stay, vec![pushed.clone()]).unwrap();
        assert_eq!(read_holding(pool).len(), 3);
        assert!(arrived.is_for(&view) && pushed.is_for(&view));
        let of_view = |mark: &Mark| Fate::expires_if(mark.view.is_some());
        change(pool, of_view, Vec::new()).unwrap();
        assert_eq!(read_holding(pool), [arrived]);
        assert_eq!(read(pool, &keep(60)).unwrap().1.len(), 3);
        change(pool, |_| Fate::Goes, Vec::new()).unwrap();
        assert!(!pool.join(BROUGHT).exists());
        fs::write(pool.join(BROUGHT), "nonsense\npushed x - 1\n").unwrap();
        assert_eq!(read_holding(pool), []);
    }

    #[test]
    fn of_former_refs_the_last_ones_hold() {
        let directory = tempfile::tempdir().unwrap();
        let pool = directory.path();
        let view = Marker::parse(&format!("{}-00ff", "07".repeat(32))).unwrap();
        for number in 0..MOST_FORMER + 10 {
            let mut oid = [0; 20];
            oid[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let mark = Mark::new(Kind::Former, Oid::from_bytes(oid), Some(&view));
            change(pool, |_| Fate::Stays, vec![mark]).unwrap();
        }
        let (marks, old) = read(pool, &keep(60)).unwrap();
        assert_eq!((marks.len(), old.len()), (MOST_FORMER + 1, 9));
        assert_eq!(marks[MOST_FORMER].oid.as_bytes()[6..8], [1, 9]);
    }
}
