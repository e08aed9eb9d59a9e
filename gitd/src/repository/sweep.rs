//! What is done once, at the start, before anybody is served: finishing or throwing away what a
//! killed process left, and noting which repositories another server left.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use grasp_proto::words::{Address, Identifier, Npub, RefName, RepoId};

use super::{
    Error, PoisonError, Repositories, alternates, consolidate,
    layout::{FORMER_CONFIG, Layout, QUARANTINE, STAGED},
    marks, pool, refs, staging,
};

impl Repositories {
    /// Puts the data directory in order.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        fs::create_dir_all(self.layout.pools())?;
        fs::create_dir_all(self.layout.new_directory())?;
        empty(&self.layout.new_directory())?;
        for shelf in directories(&self.layout.pools())? {
            for pool in readable_directories(&shelf) {
                if let Err(error) = self.sweep_pool(&pool) {
                    tracing::warn!(pool = %pool.display(), %error, "a pool is not in order");
                }
            }
        }
        let mut repositories = 0_u32;
        let mut sweep = |address: &Address, view: &Path| {
            repositories += 1;
            if let Err(error) = self.sweep_view(address, view) {
                tracing::warn!(repo = %address, %error, "a repository is not in order");
            }
        };
        let standard = |name: &str| Npub::from_npub(name).ok();
        for_each_view(self.layout.root(), standard, |repo, view| {
            sweep(&repo.into(), view);
        })?;
        if self.layout.prs().is_dir() {
            let of_contributor = |name: &str| {
                let key = Npub::from_hex(name).ok()?;
                (key.to_hex() == name).then_some(key)
            };
            for_each_view(&self.layout.prs(), of_contributor, |repo, view| {
                let address = Address::prs(repo);
                sweep(&address, view);
                if let Err(error) = self.remove_if_empty(&address) {
                    tracing::warn!(repo = %address, %error, "it is not removed");
                }
            })?;
        }
        metrics::gauge!("ngit_git_repositories_at_start").set(f64::from(repositories));
        Ok(())
    }

    /// Markers without view, quarantines, and pools without markers go.
    fn sweep_pool(&self, pool: &Path) -> Result<(), Error> {
        empty(&pool.join(QUARANTINE))?;
        remove_leftovers(pool)?;
        consolidate::remove_rolled_up(pool, None)?;
        // Stores of another server that it borrows from may name others by where they lay before.
        alternates::heal(&self.layout, &pool.join("objects"))?;
        let identifier = consolidate::identifier_of(pool)?;
        for marker in pool::views(pool, usize::MAX) {
            let address = marker.address(&identifier);
            let view = self.layout.view(&address);
            let here = super::read_incarnation(&view)?.as_ref() == Some(&marker.incarnation);
            let retired = self.layout.retired(&address.repo, &marker.incarnation);
            if !here && !retired.is_dir() {
                let gone = vec![marks::Mark::of_anything()];
                marks::change(pool, |_| marks::Fate::Stays, gone)?;
                fs::remove_file(pool.join(super::layout::VIEWS).join(marker.name()))?;
            }
        }
        match pool::drop_if_unused(&self.layout, pool)? {
            Some(rubbish) => fs::remove_dir_all(rubbish)?,
            None => self.consolidator.consider(pool),
        }
        Ok(())
    }

    /// Uploads that were in, but whose push was never answered, go; a view without its pool's line is
    /// another server's.
    fn sweep_view(&self, address: &Address, view: &Path) -> Result<(), Error> {
        let alternate = Layout::alternate(address);
        let objects = view.join("objects");
        let is_ours = alternates::lines(&objects).is_ok_and(|lines| lines.contains(&alternate));
        if !is_ours {
            // Where it is a link, too, which is then refused.
            if fs::symlink_metadata(view.join("HEAD")).is_ok() {
                self.look_at_foreign(address, view);
                self.unadopted
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(address.identifier().clone())
                    .or_default()
                    .push(address.clone());
            }
            return Ok(());
        }
        if view.join(FORMER_CONFIG).exists() {
            alternates::heal(&self.layout, &objects)?;
        }
        refs::break_locks(view)?;
        remove_leftovers(view)?;
        if view.join(STAGED).is_dir() {
            let git = refs::open(view)?;
            for event in staging::events(view)? {
                let name = RefName::nostr(&event);
                if refs::resolve(&git, name.as_str())?.is_none() {
                    staging::forget(view, &event)?;
                }
            }
            self.unsigned.recount(address, view)?;
        }
        Ok(())
    }
}

/// Goes through the views of one directory, which has one for each of those `owner_of` knows.
fn for_each_view(
    directory: &Path,
    owner_of: impl Fn(&str) -> Option<Npub>,
    mut see: impl FnMut(RepoId, &Path),
) -> io::Result<()> {
    fn name(path: &Path) -> Option<&str> {
        path.file_name()?.to_str()
    }
    for of_owner in directories(directory)? {
        let Some(owner) = name(&of_owner).and_then(&owner_of) else {
            continue;
        };
        for view in readable_directories(&of_owner) {
            let identifier = name(&view)
                .and_then(|name| name.strip_suffix(".git"))
                .and_then(|name| Identifier::parse(name).ok());
            if let Some(identifier) = identifier {
                see(RepoId { owner, identifier }, &view);
            }
        }
    }
    Ok(())
}

fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

/// The same of one of many, which must not keep the others from being served.
fn readable_directories(path: &Path) -> Vec<PathBuf> {
    directories(path).unwrap_or_else(|error| {
        tracing::warn!(
            directory = %path.display(), %error,
            "what lies in a directory is not served; let gitd's user read it and start again"
        );
        Vec::new()
    })
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Removes the temporary files that a killed git, or we, left in a view or a pool of ours.
pub(super) fn remove_leftovers(repository: &Path) -> io::Result<()> {
    const LEFT: [&str; 3] = ["tmp_", ".tmp-", ".grasp-"];
    for directory in ["", "objects/info", "objects/pack", STAGED] {
        let entries = match fs::read_dir(repository.join(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let left = LEFT.iter().any(|prefix| name.starts_with(prefix))
                || name.ends_with(pool::INCOMING)
                || name == "multi-pack-index.lock";
            if left && entry.file_type()?.is_file() {
                tracing::info!(file = %entry.path().display(), "a temporary file removed");
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;

    #[test]
    fn a_directory_that_cannot_be_read_keeps_nobody_from_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let owners = [1, 2, 3].map(|byte| Npub::from_bytes([byte; 32]));
        for owner in &owners {
            let view = directory.path().join(owner.to_string()).join("x.git");
            fs::create_dir_all(view).unwrap();
        }
        let unread = directory.path().join(owners[1].to_string());
        fs::set_permissions(&unread, fs::Permissions::from_mode(0o000)).unwrap();
        let mut seen = Vec::new();
        // Root reads whatever it wants; a thread of its may not.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut own = capabilities(None).unwrap();
                own.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
                set_capabilities(None, own).unwrap();
                assert!(fs::read_dir(&unread).is_err());
                let standard = |name: &str| Npub::from_npub(name).ok();
                let see = |repo: RepoId, _: &Path| seen.push(repo.owner);
                for_each_view(directory.path(), standard, see).unwrap();
            });
        });
        fs::set_permissions(&unread, fs::Permissions::from_mode(0o700)).unwrap();
        seen.sort_unstable();
        let mut expected = vec![owners[0], owners[2]];
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }
}
