//! Views moved aside: out of service, kept with their refs and their hold on the pool, until they are
//! moved back or thrown away.
//!
//! One is named by its words and its incarnation, and lies either in its place or aside, never in
//! both: both ways are one rename.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use grasp_proto::words::{Address, RefKind, RefName, RepoId};

use super::{
    Error, Repositories, alternates, give_incarnation,
    layout::{Layout, Marker, REPOSITORY},
    marks::{Fate, ShownBefore, note_going},
    read_incarnation,
    refs::{self, Change},
    rename_over_nothing, sweep, sync_directory, throw_away, write_file,
};

/// Which of the repositories that ever had a name: part of a file's name, and so checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation(String);

impl Incarnation {
    /// The longest that is taken; ours have 16.
    const LONGEST: usize = 64;

    /// Hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let is_one = (1..=Self::LONGEST).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match is_one {
            true => Ok(Self(text.to_owned())),
            false => Err(Error::Invalid("that is no incarnation".to_owned())),
        }
    }

    fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where HEAD points in a repository that nobody has pushed to.
const UNBORN: &str = "refs/heads/master";

impl Repositories {
    /// Moves a repository aside. One that is not there is retired.
    pub fn retire(&self, repo: &RepoId, incarnation: &str) -> Result<(), Error> {
        let address = Address::from(repo);
        self.change(&address, || {
            match self.expect_incarnation(&address, incarnation) {
                Err(Error::NotFound) => return Ok(()),
                result => result?,
            }
            // What leans on other repositories by relative paths would lose its way.
            match self.adopt(&address) {
                Err(Error::Precondition(reason)) => {
                    tracing::warn!(%repo, reason, "retired as it stands");
                }
                result => drop(result?),
            }
            let view = self.layout.view(&address);
            if !view.join(REPOSITORY).exists() {
                write_file(&view.join(REPOSITORY), format!("{repo}\n").as_bytes())?;
            }
            let incarnation = give_incarnation(&view)?;
            let aside = self.layout.retired(repo, &incarnation);
            rename_over_nothing(&view, &aside)?;
            self.unsigned.nothing_in(&address);
            tracing::info!(%repo, to = %aside.display(), "a repository was retired");
            let _ = view.parent().map(fs::remove_dir);
            Ok(())
        })
    }

    /// Moves a retired repository back to its place, without its refs: it has their objects, and shows those
    /// that events name from now on. One that is there is restored.
    pub fn restore(&self, repo: &RepoId, incarnation: &Incarnation) -> Result<(), Error> {
        let address = Address::from(repo);
        self.change(&address, || {
            let view = self.layout.view(&address);
            if self.view(&address).is_ok() {
                return self.expect_incarnation(&address, incarnation.as_str());
            }
            let aside = self.layout.retired(repo, incarnation.as_str());
            if !aside.join("HEAD").is_file() {
                return Err(Error::NotFound);
            }
            // Whatever worked on it when it went was cut short.
            refs::break_locks(&aside)?;
            sweep::remove_leftovers(&aside)?;
            self.put_out_of_sight(&address, incarnation, &aside)?;
            move_back(&aside, &view)?;
            self.unsigned.recount(&address, &view)?;
            tracing::info!(%repo, "a repository was restored");
            Ok(())
        })
    }

    /// Takes its refs and HEAD off a view that is to come back, and marks what they led to.
    fn put_out_of_sight(
        &self,
        address: &Address,
        incarnation: &Incarnation,
        aside: &Path,
    ) -> Result<(), Error> {
        let lines = alternates::lines(&aside.join("objects"))?;
        if !lines.contains(&Layout::alternate(address)) {
            // Another server's, which could not be adopted: nobody else has its objects.
            return Ok(());
        }
        let git = refs::open(aside)?;
        let shown = refs::list(&git, &[""], false)?;
        let marker = Marker::new(address, incarnation.as_str().to_owned());
        let held: BTreeSet<ShownBefore> = shown
            .iter()
            .map(|entry| ShownBefore {
                oid: entry.oid,
                event: match RefName::parse(&entry.name).map(|name| name.kind()) {
                    Ok(RefKind::Nostr(event)) => Some(event),
                    _ => None,
                },
            })
            .collect();
        let held = held.iter().map(|shown| shown.mark(&marker));
        self.mark(address.identifier(), |_| Fate::Stays, held.collect())?;
        let gone: Vec<Change> = shown
            .into_iter()
            .map(|entry| Change {
                name: entry.name,
                old: Some(entry.oid),
                new: None,
            })
            .collect();
        refs::apply(aside, &gone)?;
        refs::set_head(&git, UNBORN)?;
        Ok(())
    }

    /// Throws a retired repository away, and its pool if it was the last view.
    pub fn purge(&self, repo: &RepoId, incarnation: &Incarnation) -> Result<(), Error> {
        let address = Address::from(repo);
        let rubbish = self.views.hold(&address, || {
            let aside = self.layout.retired(repo, incarnation.as_str());
            if !aside.is_dir() {
                return Ok(Vec::new());
            }
            self.identifiers.hold(&repo.identifier, || {
                let (scratch, pool) = (self.layout.scratch(), self.layout.pool(&repo.identifier));
                let marker = Marker::new(&address, incarnation.as_str().to_owned());
                note_going(&pool, &marker, &aside)?;
                fs::rename(&aside, &scratch)?;
                aside.parent().map(sync_directory).transpose()?;
                super::pool::unmark(&pool, &marker)?;
                let gone = self.drop_pool(&repo.identifier)?;
                tracing::info!(%repo, "a retired repository was purged");
                Ok::<_, Error>(gone.into_iter().chain([scratch]).collect())
            })
        })?;
        for directory in rubbish {
            throw_away(&directory);
        }
        Ok(())
    }

    /// The repositories that are retired, with their incarnations.
    pub fn retired(&self) -> Result<Vec<(RepoId, String)>, Error> {
        let entries = match fs::read_dir(self.layout.retired_directory()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path: PathBuf = entry?.path();
            match words_of(&path)? {
                Some((repo, incarnation)) if self.layout.retired(&repo, &incarnation) == path => {
                    found.push((repo, incarnation));
                }
                _ => tracing::warn!(path = %path.display(), "not a retired repository of ours"),
            }
        }
        Ok(found)
    }
}

/// What a retired view says it is.
fn words_of(path: &Path) -> io::Result<Option<(RepoId, String)>> {
    let words = match fs::read_to_string(path.join(REPOSITORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        words => words?,
    };
    let path_of_url = format!("/{}", words.trim_end_matches('\n'));
    let repo = RepoId::from_url_path(&path_of_url).map(|(repo, _)| repo);
    Ok(repo.zip(read_incarnation(path)?))
}

/// One rename; what lies where it goes stays, and fails it.
fn move_back(from: &Path, to: &Path) -> Result<(), Error> {
    let parent = to.parent().unwrap_or(Path::new("/"));
    loop {
        fs::create_dir_all(parent)?;
        match fs::rename(from, to) {
            Ok(()) => {
                sync_directory(parent)?;
                from.parent().map(sync_directory).transpose()?;
                return Ok(());
            }
            // Its parent went as the last other repository in it was deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound && from.exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
}
