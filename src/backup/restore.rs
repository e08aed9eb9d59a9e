//! `graspd restore`: a backup becomes the data directories of a service that does not run.
//!
//! The backup is checked whole before anything is touched. Both directories carry a mark from before
//! their first file until after their last one is on disk: a process does not start on a marked one.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ArgMatches;
use grasp_gitd::repository::restore as git;
use grasp_proto::{
    process::{data_lock::DataLock, restoring, settings::Settings},
    transport::Role,
};
use grasp_relay::restore as relay;
use serde_json::json;

use super::{
    directory,
    manifest::{EVENTS, Manifest, OBJECTS, RECORDS, REPOSITORIES, each, object, read_sums, sum_of},
};

/// What may lie in a data directory that counts as empty: the relay's key, brought there before, what a
/// file system of its own has, and the locks of services that were there.
const IGNORED: [&str; 4] = [
    ".relay-owner.nsec",
    "lost+found",
    ".graspd-relay.lock",
    ".graspd-gitd.lock",
];

/// Restores a backup.
pub async fn run(given: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let directory = directory(given)?.clone();
    let part = given.get_one::<String>("part").map(String::as_str);
    let to_relay = part != Some("git");
    let to_git = part != Some("relay");
    if to_relay && settings.get("NGIT_DATABASE_BACKEND") != Some("lmdb") {
        bail!("NGIT_DATABASE_BACKEND is not lmdb: there is no data directory to restore into");
    }
    let relay_data = to_relay
        .then(|| path_of(settings, "NGIT_RELAY_DATA_PATH"))
        .transpose()?;
    let git_data = to_git
        .then(|| path_of(settings, "NGIT_GIT_DATA_PATH"))
        .transpose()?;
    let manifest = Manifest::read(&directory)?
        .with_context(|| format!("{} holds no whole backup", directory.display()))?;
    let targets: Vec<PathBuf> = [&git_data, &relay_data]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    for target in &targets {
        check_empty(target)?;
    }
    let backup = Backup {
        directory,
        manifest,
    };
    let backup = blocking(move || {
        backup.check(to_git)?;
        Ok(backup)
    })
    .await?;
    let mut locks = Vec::new();
    let roles = [(&relay_data, Role::Relay), (&git_data, Role::Gitd)];
    for (data, role) in roles {
        if let Some(data) = data {
            locks.push(DataLock::take(data, role, Duration::ZERO)?);
        }
    }
    for target in &targets {
        begin(target)?;
    }
    if let Some(data) = &relay_data {
        let check = given.get_flag("verify-signatures");
        restore_relay(&backup, data, check).await?;
    }
    let backup = match git_data {
        None => backup,
        Some(data) => {
            blocking(move || {
                restore_git(&backup, &data)?;
                Ok(backup)
            })
            .await?
        }
    };
    for target in &targets {
        rustix::fs::syncfs(File::open(target)?)?;
    }
    // Each is whole by itself by now, whichever mark goes first.
    for target in &targets {
        restoring::unmark(target)?;
    }
    let manifest = &backup.manifest;
    let text = match given.get_flag("json") {
        true => format!("{:#}\n", json!({"manifest": manifest, "part": part})),
        false => {
            let places: Vec<String> = targets.iter().map(|t| t.display().to_string()).collect();
            format!(
                "restored {}: {} events, {} records, {} repositories, into {}\n",
                manifest.domain,
                manifest.events,
                manifest.records,
                manifest.repositories,
                places.join(" and ")
            )
        }
    };
    crate::print(text.as_bytes())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

fn path_of(settings: &Settings, name: &'static str) -> anyhow::Result<PathBuf> {
    let path = settings.get(name).unwrap_or_default();
    std::path::absolute(path).with_context(|| format!("{name} is no path"))
}

/// What lies in a directory and counts.
fn contents(target: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| target.display().to_string())?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !IGNORED.iter().any(|name| entry.file_name() == *name) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Refuses a directory that has anything but what a restoring that did not end has left.
fn check_empty(target: &Path) -> anyhow::Result<()> {
    if restoring::is_marked(target) || contents(target)?.is_empty() {
        return Ok(());
    }
    bail!(
        "{} is not empty. A backup is restored into empty directories only, of a service that does not run: \
         move what is there aside first",
        target.display()
    )
}

/// Marks a directory, and takes out of it what a restoring that did not end has left.
fn begin(target: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| target.display().to_string())?;
    let left = contents(target)?;
    restoring::mark(target)?;
    for path in left {
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else if !path.ends_with(restoring::MARK) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

struct Backup {
    directory: PathBuf,
    manifest: Manifest,
}

impl Backup {
    fn file(&self, name: &str) -> PathBuf {
        self.manifest.moment(&self.directory).join(name)
    }

    fn open(&self, name: &str) -> anyhow::Result<BufReader<File>> {
        let path = self.file(name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        Ok(BufReader::new(file))
    }

    /// Whether all that is needed is there and is what it was.
    fn check(&self, with_objects: bool) -> anyhow::Result<()> {
        for name in [EVENTS, RECORDS, REPOSITORIES, OBJECTS] {
            let said = self.manifest.sha256.get(name);
            if Some(&sum_of(&self.file(name))?) != said {
                bail!(
                    "{} is not what it was: its sum is another",
                    self.file(name).display()
                );
            }
        }
        if !with_objects {
            return Ok(());
        }
        let sums = read_sums(&self.manifest.moment(&self.directory))?;
        if sums.len() as u64 != self.manifest.objects {
            bail!("the list of objects is not what the manifest says");
        }
        let sums: Vec<(String, String)> = sums.into_iter().collect();
        each(&sums, |(name, sum)| {
            let path = object(&self.directory, name)?;
            if sum_of(&path)? != *sum {
                bail!("{} is not what it was: its sum is another", path.display());
            }
            Ok(())
        })
    }
}

async fn restore_relay(backup: &Backup, data: &Path, check: bool) -> anyhow::Result<()> {
    let events = relay::events(data, backup.open(EVENTS)?.lines(), check).await?;
    if events != backup.manifest.events {
        bail!(
            "{events} events, where the manifest says {}",
            backup.manifest.events
        );
    }
    let (lines, place) = (backup.open(RECORDS)?.lines(), data.to_owned());
    let records = blocking(move || Ok(relay::records(&place, lines)?)).await?;
    if records != backup.manifest.records {
        bail!(
            "{records} records, where the manifest says {}",
            backup.manifest.records
        );
    }
    Ok(())
}

fn restore_git(backup: &Backup, data: &Path) -> anyhow::Result<()> {
    let repositories = git::write_small(data, backup.open(REPOSITORIES)?)?;
    if repositories.len() as u64 != backup.manifest.bare_repositories() {
        bail!(
            "{} repositories, where the manifest says {}",
            repositories.len(),
            backup.manifest.bare_repositories()
        );
    }
    let sums = read_sums(&backup.manifest.moment(&backup.directory))?;
    for name in sums.keys() {
        git::place(data, name, &object(&backup.directory, name)?)?;
    }
    each(&repositories, |repository| {
        Ok(git::check_connectivity(repository)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_empty_or_half_restored_is_restored_into() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        check_empty(&path.join("not/there")).unwrap();
        fs::write(path.join(".relay-owner.nsec"), "mine").unwrap();
        check_empty(path).unwrap();
        fs::create_dir(path.join("half")).unwrap();
        fs::write(path.join("file"), "").unwrap();
        assert!(check_empty(path).is_err());
        restoring::mark(path).unwrap();
        check_empty(path).unwrap();
        begin(path).unwrap();
        assert!(restoring::is_marked(path));
        assert!(!path.join("half").exists() && !path.join("file").exists());
        assert!(path.join(".relay-owner.nsec").exists());
    }
}
