//! Events that have expired by their own word (NIP-40) go, as if their author had asked for that: from
//! purgatory, from the store, and with what they carry.
//!
//! Until then they are in no answer: [`Store::database`](crate::store::Store::database) hides them.

use std::time::Duration;

use grasp_proto::words::EventId;
use tokio_util::sync::CancellationToken;

use crate::{
    admit::Admit,
    clock::Moment,
    nip34::{expires_at, id_of},
    release::{Release, ReleaseError},
    store::StoreError,
};

/// How often it is looked for them.
pub const EVERY: Duration = Duration::from_secs(60);
/// Events that one look takes away at most; the others are due at the next.
const A_SWEEP: usize = 10_000;

/// When an event expires, as the index has it.
pub fn moment_of(event: &nostr::Event) -> Option<Moment> {
    let at = expires_at(event)?;
    Some(Moment::from_millis(at.as_secs().saturating_mul(1000)))
}

/// Takes away what has expired, and what strangers stored for a time. Does nothing while the git storage
/// is away: what goes with it could not.
pub async fn sweep(door: &Admit) {
    let release = door.release();
    if !release.git.reachable().await {
        return;
    }
    let purgatory = &release.purgatory;
    for id in purgatory.expired_events(purgatory.now(), A_SWEEP) {
        match door.expire(&id).await {
            Ok(()) => purgatory.forget_expiring(&id),
            Err(error) => tracing::error!(event = %id, %error, "an expired event does not go yet"),
        }
    }
    if let Err(error) = door.let_strangers_go().await {
        tracing::error!(%error, "what strangers stored does not go yet");
    }
}

/// Takes away what has expired, every `every` until `stop`.
pub async fn run(door: Admit, every: Duration, stop: CancellationToken) {
    let mut sweeps = tokio::time::interval(every);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = sweeps.tick() => sweep(&door).await,
        }
    }
}

/// Enters the events that were stored before there was the index. Once; goes through all that is
/// stored.
pub async fn adopt(release: &Release) -> Result<(), ReleaseError> {
    let purgatory = &release.purgatory;
    if purgatory.knows_all_expiring().await? {
        return Ok(());
    }
    let snapshot = release.store.snapshot().await?;
    let look = tokio::task::spawn_blocking(move || {
        let mut found: Vec<(EventId, Moment)> = Vec::new();
        let see = |event: &nostr::Event| {
            found.extend(moment_of(event).map(|at| (id_of(event), at)));
            true
        };
        snapshot.each(see).map(|()| found)
    });
    let found = look.await.map_err(nostr_database::error::Error::other);
    let found = found.and_then(|found| found.map_err(nostr_database::error::Error::other));
    let found = found.map_err(StoreError::from)?;
    let count = found.len();
    for (id, at) in found {
        purgatory.note_expiring(id, at).await?;
    }
    purgatory.note_all_expiring_known().await?;
    if count > 0 {
        tracing::info!(count, "stored events that expire are noted");
    }
    Ok(())
}
