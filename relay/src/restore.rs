//! A relay's data directory made anew from what a backup has. Into an empty directory, which the caller
//! has marked ([`restoring`](grasp_proto::process::restoring)).

use std::{io, path::Path};

use futures::{StreamExt, TryStreamExt, stream};
use nostr::Event;

use crate::{
    config::Backend,
    journal::{self, JournalError},
    store::{Saved, Store, StoreError},
};

/// Events that are being written at once: the store writes in batches.
const AT_ONCE: usize = 256;

/// Why a backup could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup.
    #[error("the backup cannot be read: {0}")]
    Backup(#[from] io::Error),
    /// An event of it.
    #[error("event {0} of the backup is not what it says: {1}")]
    Event(nostr::EventId, String),
    /// The event store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Writes events, a line of JSON each, into the store in `data`; gives how many. What each says of itself
/// is checked, and, if asked for, what its author signed.
pub async fn events(
    data: &Path,
    lines: impl Iterator<Item = io::Result<String>> + Send,
    check_signatures: bool,
) -> Result<u64, RestoreError> {
    let store = Store::open(Backend::Lmdb, data).await?;
    let saved = stream::iter(lines).map(|line| {
        let store = store.clone();
        async move {
            let event: Event = serde_json::from_str(&line?).map_err(io::Error::from)?;
            let wrong = |why: &str| RestoreError::Event(event.id, why.to_owned());
            if !event.verify_id() {
                return Err(wrong("its id is another's"));
            }
            if check_signatures && !event.verify_signature() {
                return Err(wrong("its signature is none"));
            }
            match store.save(&event).await? {
                Saved::New => Ok(()),
                Saved::Known | Saved::Replaced => Err(wrong("another takes its place")),
            }
        }
    });
    let saved = saved.buffer_unordered(AT_ONCE);
    saved
        .try_fold(0, |count, ()| async move { Ok(count + 1) })
        .await
}

/// Writes the records of a journal, a line of JSON each, below `data`; gives how many. Blocks.
pub fn records(
    data: &Path,
    lines: impl Iterator<Item = io::Result<String>>,
) -> Result<u64, RestoreError> {
    Ok(journal::restore(&journal::directory(data), lines)?)
}
