//! What nobody can reach any more leaves the disk.
//!
//! Force pushes, deletions, refused pushes and repositories that go leave objects in a pool that no ref
//! leads to. For a while they may be wanted back: marks say what and how long (`marks.rs`). When a mark has
//! run out and no ref leads to what it stands for, the pool is packed anew without that, and the packs of
//! before go, shared or not.
//!
//! Only what the new packs have whole is seen afterwards: packs and refs that come meanwhile are looked
//! through before the old packs go, and who leaned on something that went is told to come again
//! ([`Repositories::prunings`]). A kill at any moment leaves the old packs, or the new ones and the list of
//! the old, which the next start removes.
//!
//! Not pruned are pools that borrow objects from another server's stores: what is whose cannot be told.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use git2::ObjectType;
use grasp_proto::words::{Identifier, Oid};
use tokio::time::Instant;

use super::{
    Error, Repositories, Scratch, alternates,
    consolidate::{has_loose, identifier_of, remove_rolled_up, run},
    fresh_repository, git, kind_of,
    layout::{BROUGHT, Marker},
    marks::{self, Fate, Kind, Mark},
    places::Places,
    pool::{self, note_rolled_up, rolled_up},
    reachable::{Roots, Sought},
    read_incarnation, refs, staging, write_file,
};

/// How often it is tried to put new packs in the place of the old while others come and refs move.
const TRIES: usize = 5;

/// What a pool keeps.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Kept {
    /// Where the refs of all its views lead, served or not, and what marks stand for that hold.
    tips: BTreeSet<Oid>,
    /// Object directories of views that have objects of their own.
    stores: BTreeSet<PathBuf>,
}

/// What was seen before the new pack was made.
struct Before {
    identifier: Identifier,
    kept: Kept,
    packs: BTreeSet<String>,
    /// Marks that hold no more.
    expired: Vec<Mark>,
}

impl Before {
    /// The marks that had run out say nothing any more.
    fn expired_go(&self) -> impl Fn(&Mark) -> Fate {
        let expired: HashSet<&Mark> = self.expired.iter().collect();
        move |mark| Fate::goes_if(expired.contains(mark))
    }
}

impl Repositories {
    /// Pools where a mark has run out. Blocks.
    pub(super) fn to_be_pruned(&self) -> Result<Vec<PathBuf>, Error> {
        let mut due = Vec::new();
        for shelf in fs::read_dir(self.layout.pools())? {
            for pool in fs::read_dir(shelf?.path())? {
                let pool = pool?.path();
                // Those that were never pushed over have no such file.
                if pool.join(BROUGHT).is_file() && !marks::read(&pool, &self.keep)?.1.is_empty() {
                    due.push(pool);
                }
            }
        }
        Ok(due)
    }

    /// How often a pool was pruned since the start: who finds another number than before has checked
    /// against what may be gone.
    pub(super) fn prunings(&self, identifier: &Identifier) -> u64 {
        let pruned = self.pruned.lock().unwrap_or_else(PoisonError::into_inner);
        pruned.get(identifier).copied().unwrap_or_default()
    }

    /// Where a marker's view lies, if it does; aside or not.
    fn place_of(&self, identifier: &Identifier, marker: &Marker) -> Result<Option<PathBuf>, Error> {
        let address = marker.address(identifier);
        let view = self.layout.view(&address);
        if read_incarnation(&view)?.as_ref() == Some(&marker.incarnation) {
            return Ok(Some(view));
        }
        let aside = self.layout.retired(&address.repo, &marker.incarnation);
        Ok(aside.is_dir().then_some(aside))
    }

    /// What is there by now of what is kept: a mark is written before its pack is seen.
    fn kept(&self, identifier: &Identifier, pool: &Path) -> Result<Kept, Error> {
        let mut kept = Kept::default();
        for marker in pool::views(pool, usize::MAX) {
            let Some(view) = self.place_of(identifier, &marker)? else {
                continue;
            };
            let mut tips = refs::all_tips(&refs::open(&view)?)?;
            // Of several commits that wait for one event, its ref shows the first.
            for event in staging::events(&view)? {
                tips.extend(staging::commits(&view, &event)?);
            }
            kept.tips
                .extend(had(&view, tips)?.into_iter().map(|(oid, _)| oid));
            let objects = view.join("objects");
            if objects.join("pack").is_dir() && !pool::packs(&objects.join("pack"))?.is_empty() {
                kept.stores.insert(objects);
            }
        }
        let (marks, _) = marks::read(pool, &self.keep)?;
        let marked = had(pool, marks.iter().map(|mark| mark.oid))?;
        kept.tips.extend(marked.into_iter().map(|(oid, _)| oid));
        Ok(kept)
    }

    /// A repository of nothing but what these object directories have.
    fn over(&self, stores: impl Iterator<Item = PathBuf>) -> Result<Scratch, Error> {
        let scratch = Scratch(self.layout.scratch());
        fresh_repository(&scratch.0)?;
        let lines = stores.map(|store| format!("{}\n", store.display()));
        let lines: String = lines.collect();
        write_file(&scratch.0.join("objects/info/alternates"), lines.as_bytes())?;
        Ok(scratch)
    }

    /// What is there before; `None`: nothing has to go, or it cannot be told. Of what has run out, only
    /// what is still here is looked for.
    fn before_pruning(&self, pool: &Path, at_once: bool) -> Result<Option<Before>, Error> {
        let identifier = identifier_of(pool)?;
        self.adopt_all(&identifier);
        if !alternates::lines(&pool.join("objects"))?.is_empty() {
            let reason = "it borrows objects from another server's stores";
            return Err(Error::Precondition(reason.to_owned()));
        }
        if has_loose(pool) {
            self.consolidator.consolidate_soon(pool);
            return Ok(None);
        }
        if at_once {
            let fate =
                |mark: &Mark| Fate::expires_if(matches!(mark.kind, Kind::Former | Kind::Offered));
            self.mark(&identifier, fate, Vec::new())?;
        }
        let gone = rolled_up(pool)?;
        let packs = pool::packs(&pool.join("objects/pack"))?.into_iter();
        let packs = packs.filter(|name| !gone.contains(name)).collect();
        let (_, expired) = marks::read(pool, &self.keep)?;
        if expired.is_empty() && !at_once {
            return Ok(None);
        }
        Ok(Some(Before {
            kept: self.kept(&identifier, pool)?,
            identifier,
            packs,
            expired,
        }))
    }

    /// Puts the pack `made` in the place of those of before, if it and what came meanwhile have all that
    /// is kept; otherwise says what has to be looked through first.
    fn replace_packs(
        &self,
        pool: &Path,
        before: &Before,
        made: Option<&str>,
        looked_through: Option<&(Kept, BTreeSet<String>)>,
        at_once: bool,
    ) -> Result<Option<(Kept, BTreeSet<String>)>, Error> {
        self.identifiers.hold(&before.identifier, || {
            let directory = pool.join("objects/pack");
            let mut gone = rolled_up(pool)?;
            let now = pool::packs(&directory)?.into_iter();
            let came: BTreeSet<String> = now
                .filter(|name| {
                    !gone.contains(name)
                        && !before.packs.contains(name)
                        && made != Some(name.as_str())
                })
                .collect();
            let kept = self.kept(&before.identifier, pool)?;
            let has = |oid: &Oid| match made {
                Some(made) => pool::pack_has(&directory, made, *oid),
                None => Ok(false),
            };
            let mut all_in_it = came.is_empty();
            for oid in kept.tips.difference(&before.kept.tips) {
                all_in_it = all_in_it && has(oid)?;
            }
            let now = (kept, came);
            if !all_in_it && looked_through != Some(&now) {
                return Ok(Some(now));
            }
            let old = before
                .packs
                .iter()
                .filter(|name| made != Some(name.as_str()));
            gone.extend(old.cloned());
            if let Some(made) = made {
                gone.remove(made);
            }
            note_rolled_up(pool, gone)?;
            marks::change(pool, before.expired_go(), Vec::new())?;
            let mut pruned = self.pruned.lock().unwrap_or_else(PoisonError::into_inner);
            *pruned.entry(before.identifier.clone()).or_default() += 1;
            drop(pruned);
            if at_once {
                remove_rolled_up(pool, None)?;
            }
            Ok(None)
        })
    }

    /// Marks that have run out, and that refs lead to all the same, say nothing.
    fn forget_expired(&self, before: &Before) -> Result<(), Error> {
        self.mark(&before.identifier, before.expired_go(), Vec::new())
    }
}

/// Those of `oids` that a repository has.
fn had(place: &Path, oids: impl IntoIterator<Item = Oid>) -> Result<Vec<(Oid, ObjectType)>, Error> {
    let repo = refs::open(place)?;
    let odb = repo.odb()?;
    let mut had = Vec::new();
    for oid in oids {
        if let Some(kind) = kind_of(&odb, oid)? {
            had.push((oid, kind));
        }
    }
    Ok(had)
}

fn lines(oids: &[Oid]) -> String {
    oids.iter().map(|oid| format!("{oid}\n")).collect()
}

/// What the packs of a pool take that stay, in bytes.
fn bytes_of(pool: &Path) -> Result<u64, Error> {
    let (directory, gone) = (pool.join("objects/pack"), rolled_up(pool)?);
    let packs = pool::packs(&directory)?.into_iter();
    let sizes = packs
        .filter(|name| !gone.contains(name))
        .filter_map(|name| fs::metadata(directory.join(format!("{name}.pack"))).ok());
    Ok(sizes.map(|metadata| metadata.len()).sum())
}

/// Whether the packs of before have anything that the pack `made` has not.
fn goes(pool: &Path, before: &BTreeSet<String>, made: Option<&str>) -> Result<bool, Error> {
    let Some(made) = made else {
        return Ok(!before.is_empty());
    };
    let directory = pool.join("objects/pack");
    for name in before.iter().filter(|name| *name != made) {
        let mut kept = pool::objects(&directory, made)?;
        let mut next = kept.next().transpose()?;
        for oid in pool::objects(&directory, name)? {
            let oid = oid?;
            while next.is_some_and(|next| next < oid) {
                next = kept.next().transpose()?;
            }
            if next != Some(oid) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Takes what nobody can reach out of a pool, once marks for it have run out; `at_once`: whatever marks
/// say that do not stand for something on its way, and packs of before do not stay for readers. Gives how
/// much less the packs take then, in bytes.
pub(super) async fn prune(
    pool: &Path,
    repositories: &Arc<Repositories>,
    places: &Places,
    at_once: bool,
) -> Result<u64, Error> {
    let begun = Instant::now();
    let place = pool.to_owned();
    let look = move |this: &Repositories| {
        let Some(before) = this.before_pruning(&place, at_once)? else {
            return Ok(None);
        };
        let stores = [place.join("objects")].into_iter();
        let scratch = this.over(stores.chain(before.kept.stores.iter().cloned()))?;
        let tips: Vec<Oid> = before.kept.tips.iter().copied().collect();
        let (mut commits, mut others) = (Vec::new(), Vec::new());
        for (oid, kind) in had(&place, before.expired.iter().map(|mark| mark.oid))? {
            match kind {
                ObjectType::Commit => commits.push(oid),
                _ => others.push(oid),
            }
        }
        let bytes = bytes_of(&place)?;
        Ok(Some((before, scratch, tips, commits, others, bytes)))
    };
    let found = repositories.blocking(look).await?;
    let Some((before, scratch, tips, commits, others, bytes)) = found else {
        return Ok(0);
    };
    let before = Arc::new(before);
    let anything = at_once || before.expired.iter().any(Mark::is_of_anything);
    let all_reached = !anything && {
        let roots = Roots {
            place: &scratch.0,
            tips: &tips,
            places: &repositories.walks,
            client: None,
        };
        let unreached = roots.do_not_reach(Sought::new(commits), Sought::new(others));
        unreached
            .await
            .map_err(super::public::not_looked)?
            .is_empty()
    };
    if all_reached {
        let before = Arc::clone(&before);
        let forget = move |this: &Repositories| this.forget_expired(&before);
        repositories.blocking(forget).await?;
        return Ok(0);
    }
    let made = match tips.is_empty() {
        true => None,
        false => {
            let target = pool.join("objects/pack/pack");
            let target = target.to_str().unwrap_or_default();
            // Looking for better deltas is not what this is for.
            let pack = [
                "pack-objects",
                "--revs",
                "--window=0",
                "--delta-base-offset",
                "-q",
            ];
            let pack = [&pack[..], &[target]].concat();
            let made = run(&scratch.0, &pack, &lines(&tips), places).await?;
            Some(format!("pack-{}", made.trim()))
        }
    };
    drop(scratch);
    let goes = {
        let (place, before, made) = (pool.to_owned(), Arc::clone(&before), made.clone());
        let compare = move |_: &Repositories| goes(&place, &before.packs, made.as_deref());
        repositories.blocking(compare).await?
    };
    let mut looked_through = None;
    for _ in 0..TRIES {
        let (place, seen, made_there) = (pool.to_owned(), Arc::clone(&before), made.clone());
        let replace = move |this: &Repositories| {
            let made = made_there.as_deref();
            this.replace_packs(&place, &seen, made, looked_through.as_ref(), at_once)
        };
        let Some((kept, came)) = repositories.blocking(replace).await? else {
            let place = pool.to_owned();
            let now = repositories.blocking(move |_| bytes_of(&place)).await?;
            let bytes = match goes {
                true => bytes.saturating_sub(now),
                false => 0,
            };
            let time = begun.elapsed();
            tracing::info!(pool = %pool.display(), bytes, ?time, "what nobody could reach is gone");
            return Ok(bytes);
        };
        look_through(pool, made.as_deref(), &kept, &came, repositories, places).await?;
        looked_through = Some((kept, came));
    }
    let reason = "refs and packs kept changing while it was pruned";
    Err(Error::Aborted(reason.to_owned()))
}

/// Fails unless the pack `made` and those that `came` have all that is kept.
async fn look_through(
    pool: &Path,
    made: Option<&str>,
    kept: &Kept,
    came: &BTreeSet<String>,
    repositories: &Arc<Repositories>,
    places: &Places,
) -> Result<(), Error> {
    let made = made.map(str::to_owned).into_iter();
    let packs: Vec<String> = made.chain(came.iter().cloned()).collect();
    let (pool, kept) = (pool.to_owned(), kept.clone());
    let prepare = move |this: &Repositories| {
        let scratch = this.over(kept.stores.iter().cloned())?;
        for name in packs {
            let (from, to) = (pool.join("objects/pack"), scratch.0.join("objects/pack"));
            pool::link_pack_soon(&from, &to, &name)?;
        }
        Ok((scratch, kept.tips.into_iter().collect::<Vec<Oid>>()))
    };
    let (scratch, tips) = repositories.blocking(prepare).await?;
    let walk = ["rev-list", "--objects", "--quiet", "--stdin"];
    match run(&scratch.0, &walk, &lines(&tips), places).await {
        // Packs that were about to go came to be wanted meanwhile.
        Err(git::RunError::Failed(reason)) => Err(Error::Aborted(format!(
            "something of what would go is wanted by now: {reason}"
        ))),
        result => Ok(result.map(drop)?),
    }
}
