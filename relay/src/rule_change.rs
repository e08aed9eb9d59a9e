//! The rule of maintainers is another than the one that what is served was decided by: after an upgrade
//! from a version that asked nobody, or by the operator's word.
//!
//! No refs move for it. What each repository shows is noted as it was decided by the rule of before, so that
//! a state which does not count any more stays until a later one that does; the operator is told which
//! repositories those are.

use std::sync::Arc;

use grasp_proto::words::RepoId;
use nostr::Event;

use crate::{
    journal::JournalError,
    maintainers::MaintainerRule,
    nip34::{later, state::State},
    policy::{curation::Rules, satisfiable::latest},
    release::Release,
    repository::{Repositories, Standing},
    store::StoreError,
    withhold,
};

/// Why it could not be seen to.
#[derive(Debug, thiserror::Error)]
pub enum RuleChangeError {
    /// The event store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Notes what is served by the rule of before, and tells what changes, if there is another rule now. Before
/// anything is judged.
///
/// # Errors
/// The store or the journal failed. It is done again at the next start.
pub async fn adopt(release: &Release, rules: &Rules) -> Result<(), RuleChangeError> {
    let now = release.repositories.rule();
    let noted = release.purgatory.maintainer_rule();
    if noted == Some(now) {
        return Ok(());
    }
    // Versions that noted none went by this one.
    let before = noted.unwrap_or(MaintainerRule::Listed);
    let old = announced(release, rules, before).await?;
    let new = announced(release, rules, now).await?;
    let (mut served, mut changed) = (0, 0_usize);
    for repo in old.all() {
        if old.standing(&repo) != Some(Standing::Active) {
            continue;
        }
        served += 1;
        let shown = latest_by(release, &old, &repo).await?;
        if let Some(shown) = &shown
            && release.purgatory.applied_state(&repo).is_none()
        {
            release.purgatory.note_applied(&repo, shown);
        }
        let counts = latest_by(release, &new, &repo).await?;
        if shown.as_ref().map(State::id) != counts.as_ref().map(State::id) {
            changed += 1;
            tell(&repo, shown.as_ref(), counts.as_ref());
        }
    }
    release.purgatory.keep_maintainer_rule(now).await?;
    if served > 0 {
        tracing::info!(
            rule = now.word(),
            before = before.word(),
            served,
            changed,
            "maintainers are by another rule than before; no refs are moved back for it"
        );
    }
    Ok(())
}

/// What is announced, with maintainers by a rule.
async fn announced(
    release: &Release,
    rules: &Rules,
    rule: MaintainerRule,
) -> Result<Repositories, StoreError> {
    let repositories = Repositories::new(rule);
    withhold::load_served(&release.store, &repositories, rules).await?;
    for repo in release.purgatory.announcements.all() {
        let Some(waiting) = release.purgatory.announcements.get(&repo) else {
            continue;
        };
        let stored = release.store.announcement(&repo).await?;
        let is_later = |stored: &Event| later(stored, &waiting.announcement.event).is_ge();
        if !stored.as_ref().is_some_and(is_later) {
            repositories.set(&waiting.announcement, Standing::Waiting);
        }
    }
    Ok(repositories)
}

async fn latest_by(
    release: &Release,
    repositories: &Repositories,
    repo: &RepoId,
) -> Result<Option<State>, StoreError> {
    let authors = repositories.maintainers(repo);
    let stored = release.store.states(authors, &repo.identifier).await?;
    let read = |event| State::read(Arc::new(event)).ok();
    Ok(latest(stored.into_iter().filter_map(read)))
}

fn tell(repo: &RepoId, shown: Option<&State>, counts: Option<&State>) {
    let word = |state: Option<&State>| match state {
        Some(state) => format!("{} of {}", state.id(), state.author),
        None => "none".to_owned(),
    };
    let moves_on = match (shown, counts) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(shown), Some(counts)) => later(&counts.event, &shown.event).is_gt(),
    };
    let what = match moves_on {
        true => "its refs move on to the state that counts now",
        false => "its refs stay as they are until a later state by a maintainer who counts",
    };
    let (before, now) = (word(shown), word(counts));
    tracing::warn!(%repo, before, now, "by the rule of maintainers another state counts: {what}");
}
