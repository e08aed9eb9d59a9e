//! What `ngit-grasp`, which this takes the place of, left beside its events.
//!
//! - `tombstones` in the relay's data path, an event database: the requests to delete (NIP-09) and to vanish
//!   (NIP-62) that it acted on. They are taken in, so that what was deleted stays deleted.
//! - `purgatory-state.json` in the git data path: events that waited for their git data. They wait here.
//! - `holding`, an event database, and `.archive`, packed repositories: what was deleted and might come
//!   back. It is not taken over, which the log says once; `docs/coming-from-ngit-grasp.md` says how an
//!   owner gets it back.
//!
//! All of it is read once, before the service opens, and left as it is. [`FILE`] says that it was.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nostr::Event;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::{
    nip34::{DELETION, VANISH, id_of},
    store::{Store, StoreError, format},
    verdict::{Door, Origin},
};

/// Says that what the other server left was taken in.
pub const FILE: &str = ".graspd-took-over";

/// Kinds of events that it made for itself and never served: metadata of what is held and of requests.
const PRIVATE: [u16; 2] = [9_905, 9_907];
/// The largest state of its purgatory that is read, in bytes.
const LARGEST: u64 = 1 << 30;
/// Events that are read ahead.
const AHEAD: usize = 64;

/// Why it was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// One of its databases.
    #[error(transparent)]
    Database(#[from] format::Foreign),
    /// A file.
    #[error("{}, which another server left, cannot be read: {reason}. Mend it or move it away", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The event store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task.
    #[error("a task of the relay ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// One entry of its purgatory, of which the event alone is of use.
#[derive(Deserialize)]
struct Waiting {
    event: Option<serde_json::Value>,
}

/// Its purgatory, as it saves it.
#[derive(Deserialize)]
struct SavedPurgatory {
    #[serde(default)]
    announcement_purgatory: std::collections::BTreeMap<String, Waiting>,
    #[serde(default)]
    state_events: std::collections::BTreeMap<String, Vec<Waiting>>,
    #[serde(default)]
    pr_events: std::collections::BTreeMap<String, Waiting>,
}

/// The events of a saved purgatory, in the order in which they are to come: announcements, states, pull
/// requests. What is no event is left out.
fn waiting_events(text: &str) -> Result<Vec<Event>, serde_json::Error> {
    let saved: SavedPurgatory = serde_json::from_str(text)?;
    let announcements = saved.announcement_purgatory.into_values();
    let states = saved.state_events.into_values().flatten();
    let requests = saved.pr_events.into_values();
    let all = announcements.chain(states).chain(requests);
    Ok(all
        .filter_map(|entry| serde_json::from_value(entry.event?).ok())
        .collect())
}

/// What came of taking in what was left.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    accepted: u64,
    known: u64,
    refused: u64,
}

impl Tally {
    async fn admit(
        &mut self,
        door: &dyn Door,
        store: &Store,
        event: Event,
    ) -> Result<(), StoreError> {
        if store.has(&id_of(&event)).await? {
            self.known += 1;
            return Ok(());
        }
        let id = event.id;
        let verdict = door.admit(event, Origin::Operator).await;
        if verdict.ok {
            self.accepted += 1;
        } else {
            self.refused += 1;
            tracing::warn!(%id, reason = verdict.message, "an event that another server left is not taken");
        }
        Ok(())
    }
}

/// Takes in what another server left in the relay's data path, and in the git data path if that is here,
/// unless that was done before.
pub async fn take_over(
    relay_data: &Path,
    git_data: &Path,
    door: &dyn Door,
    store: &Store,
) -> Result<(), TakeOverError> {
    let done = relay_data.join(FILE);
    if done.exists() {
        return Ok(());
    }
    let tombstones = relay_data.join("tombstones");
    let saved = git_data.join("purgatory-state.json");
    let holding = relay_data.join("holding");
    let archive = git_data.join(".archive");
    let has_database = |directory: &Path| directory.join("data.mdb").is_file();
    let mut found_any = false;
    if has_database(&tombstones) {
        found_any = true;
        let tally = take_requests(tombstones, door, store).await?;
        let Tally {
            accepted,
            known,
            refused,
        } = tally;
        tracing::info!(
            accepted,
            known,
            refused,
            "requests to delete that ngit-grasp acted on are taken in"
        );
    }
    if saved.is_file() {
        found_any = true;
        let mut tally = Tally::default();
        for event in read_saved(saved).await? {
            tally.admit(door, store, event).await?;
        }
        let Tally {
            accepted,
            known,
            refused,
        } = tally;
        tracing::info!(
            accepted,
            known,
            refused,
            "what waited in the purgatory of ngit-grasp is taken in"
        );
    }
    if has_database(&holding) {
        found_any = true;
        let path = holding.clone();
        let events = tokio::task::spawn_blocking(move || count_held(&path)).await??;
        tracing::warn!(
            events,
            path = %holding.display(),
            "deleted events that ngit-grasp held are not taken over: see docs/coming-from-ngit-grasp.md"
        );
    }
    if fs::read_dir(&archive).is_ok_and(|mut entries| entries.next().is_some()) {
        found_any = true;
        tracing::warn!(
            path = %archive.display(),
            "deleted repositories that ngit-grasp packed are not taken over: see docs/coming-from-ngit-grasp.md"
        );
    }
    if found_any {
        let write = || {
            fs::write(
                &done,
                "what ngit-grasp left was taken in; without this file it is again\n",
            )?;
            fs::File::open(relay_data)?.sync_all()
        };
        write().map_err(|error: io::Error| TakeOverError::File {
            path: done.clone(),
            reason: error.to_string(),
        })?;
    }
    Ok(())
}

/// Takes in the requests of a database, as they are read.
async fn take_requests(
    directory: PathBuf,
    door: &dyn Door,
    store: &Store,
) -> Result<Tally, TakeOverError> {
    let (sender, mut requests) = mpsc::channel::<Event>(AHEAD);
    let reading = tokio::task::spawn_blocking(move || {
        format::read_events(&directory, |event| {
            let is_request = [DELETION, VANISH].contains(&event.kind);
            !is_request || sender.blocking_send(event).is_ok()
        })
    });
    let mut tally = Tally::default();
    while let Some(request) = requests.recv().await {
        tally.admit(door, store, request).await?;
    }
    reading.await??;
    Ok(tally)
}

async fn read_saved(path: PathBuf) -> Result<Vec<Event>, TakeOverError> {
    let read = move || {
        let failed = |reason: String| TakeOverError::File {
            path: path.clone(),
            reason,
        };
        let size = fs::metadata(&path)
            .map_err(|error| failed(error.to_string()))?
            .len();
        if size > LARGEST {
            return Err(failed(format!("it has more than {LARGEST} bytes")));
        }
        let text = fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
        waiting_events(&text).map_err(|error| failed(error.to_string()))
    };
    tokio::task::spawn_blocking(read).await?
}

fn count_held(directory: &Path) -> Result<u64, format::Foreign> {
    let mut count = 0;
    format::read_events(directory, |event| {
        count += u64::from(!PRIVATE.contains(&event.kind.as_u16()));
        true
    })?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use nostr::Kind;
    use nostr_database::NostrDatabase;
    use nostr_lmdb::NostrLmdb;

    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT, STATE,
        testing::{event, keys},
    };

    #[test]
    fn a_saved_purgatory_is_read_announcements_first() {
        let announcement = event(&keys(1), ANNOUNCEMENT, 1, &[&["d", "x"]]);
        let state = event(&keys(1), STATE, 1, &[&["d", "x"]]);
        let saved = serde_json::json!({
            "version": 1,
            "saved_at": {"secs_since_epoch": 1, "nanos_since_epoch": 0},
            "state_events": {"x": [{"event": state, "identifier": "x", "source": "Direct"}]},
            "pr_events": {"00": {"event": null, "commit": "00"}},
            "announcement_purgatory": {"k": {"event": announcement, "relays": []}},
            "expired_events": {"00": {"secs_since_epoch": 1, "nanos_since_epoch": 0}},
        });
        let read = waiting_events(&saved.to_string()).unwrap();
        let ids: Vec<_> = read.iter().map(|event| event.id).collect();
        assert_eq!(ids, [announcement.id, state.id]);
        assert!(waiting_events("{\"state_events\": 7}").is_err());
        assert_eq!(waiting_events("{}").unwrap(), []);
    }

    #[tokio::test]
    async fn events_of_a_database_are_read_without_writing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let held = event(&keys(1), ANNOUNCEMENT, 1, &[&["d", "x"]]);
        let private = event(&keys(2), Kind::from(9_905), 1, &[&["e", "x"]]);
        {
            let database = NostrLmdb::builder(&path)
                .process_nip09(false)
                .process_nip62(false)
                .build()
                .await
                .unwrap();
            for event in [&held, &private] {
                database.save_event(event).await.unwrap();
            }
        }
        // The library may have it open for a moment more; another's is open nowhere.
        let copy = tempfile::tempdir().unwrap();
        fs::copy(path.join("data.mdb"), copy.path().join("data.mdb")).unwrap();
        let path = copy.path().to_owned();
        let size = fs::metadata(path.join("data.mdb")).unwrap().len();
        let count = tokio::task::spawn_blocking({
            let path = path.clone();
            move || count_held(&path)
        });
        assert_eq!(count.await.unwrap().unwrap(), 1);
        assert_eq!(fs::metadata(path.join("data.mdb")).unwrap().len(), size);
    }
}
