//! Something came: whatever became servable is served, and nothing else is looked at.

use std::{collections::BTreeSet, ops::ControlFlow};

use grasp_proto::words::{EventId, Identifier, Npub, RepoId};

use super::{
    Hunter, heal,
    pending::{OBJECTS, Party, Pending},
    sight::blocking,
};
use crate::{
    nip34::{later, pull_request::PullRequest, state::State},
    policy::satisfiable::{Wanted, satisfiable},
    release::{GoOn, Release, ReleaseError, go_on},
    repository::Standing,
    serial::{Serial, Turn},
};

/// Refs that are looked at for what has come; what is left is seen to in the background.
const REFS: usize = 10 * OBJECTS;
/// Events that are released in one turn of the identifier's queue.
const A_TURN: usize = 16;
/// Repositories that are healed while a worker waits for its answer; more are in the background.
const HEALED: usize = 64;

/// Something that waits, all of whose objects are here.
#[derive(Debug, Clone)]
enum Satisfied {
    State(State),
    Request(PullRequest),
}

impl Satisfied {
    fn id(&self) -> EventId {
        match self {
            Self::State(state) => state.id(),
            Self::Request(request) => request.id(),
        }
    }
}

/// What waits, of each party in turn the next, in slices of which each is asked about at once;
/// whether that is all of it.
fn slices(parties: &[Party]) -> (Vec<Vec<Satisfied>>, bool) {
    let of_party = |party: &Party| {
        let states = party.states.iter().cloned().map(Satisfied::State);
        let requests = party.requests.iter().cloned().map(Satisfied::Request);
        states.chain(requests).collect::<Vec<_>>().into_iter()
    };
    let mut left: Vec<_> = parties.iter().map(of_party).collect();
    let (mut slices, mut refs, mut in_slice) = (vec![Vec::new()], 0, 0);
    while !left.is_empty() {
        left.retain_mut(|of_party| {
            let Some(next) = of_party.next() else {
                return false;
            };
            let count = match &next {
                Satisfied::State(state) => state.refs.len(),
                Satisfied::Request(_) => 1,
            };
            if refs + count > REFS {
                refs = usize::MAX / 2;
                return false;
            }
            refs += count;
            in_slice += count;
            if in_slice > OBJECTS {
                slices.push(Vec::new());
                in_slice = count;
            }
            if let Some(slice) = slices.last_mut() {
                slice.push(next);
            }
            true
        });
    }
    (slices, refs <= REFS)
}

/// Those of a slice whose objects are all here.
async fn satisfied(
    release: &Release,
    identifier: &Identifier,
    slice: Vec<Satisfied>,
) -> Result<Vec<Satisfied>, ReleaseError> {
    let prepared = blocking(move || {
        let mut wanted = Wanted::default();
        for one in &slice {
            match one {
                Satisfied::State(state) => wanted.state(state),
                Satisfied::Request(request) => wanted.pull_request(request),
            }
        }
        (wanted, slice)
    });
    let (wanted, slice) = prepared.await;
    let absent = match wanted.is_empty() {
        true => BTreeSet::new(),
        false => release.absent(identifier, &wanted).await?,
    };
    let is_here = move |one: &Satisfied| match one {
        Satisfied::State(state) => satisfiable(state, &absent),
        Satisfied::Request(request) => request.commit.is_some_and(|oid| !absent.contains(&oid)),
    };
    Ok(blocking(move || slice.into_iter().filter(is_here).collect()).await)
}

/// In the queue of `identifier`: releases these, one after another.
async fn release_some(
    release: Release,
    serial: Serial,
    identifier: Identifier,
    some: Vec<Satisfied>,
) -> ControlFlow<()> {
    for one in some {
        // Somebody may have seen to it since, or deleted it.
        if !release.purgatory.holds(&one.id()) {
            continue;
        }
        let result = match &one {
            Satisfied::State(state) => match release.state(state, None, None).await {
                Ok(released) => {
                    if released.more.is_some() {
                        let (state, so_far) = (state.clone(), released.more);
                        go_on(&release, &serial, GoOn { state, so_far });
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Satisfied::Request(request) => release.pull_request(&request.id()).await.map(drop),
        };
        if let Err(error) = result {
            release.note(&identifier, &error, "an event stays in purgatory");
            if error.is_unreachable() {
                return ControlFlow::Break(());
            }
        }
    }
    ControlFlow::Continue(())
}

/// Owners whose announcement waits for one of these.
fn waiting_for(release: &Release, identifier: &Identifier, some: &[Satisfied]) -> BTreeSet<RepoId> {
    let mut authors: BTreeSet<Npub> = BTreeSet::new();
    for one in some {
        if let Satisfied::State(state) = one {
            authors.insert(state.author);
        }
    }
    let trusting = authors
        .iter()
        .flat_map(|author| release.repositories.trusting(identifier, author));
    trusting
        .filter(|(_, standing)| *standing == Standing::Waiting)
        .map(|(repo, _)| repo)
        .collect()
}

/// How many of the events that waited are served now.
async fn served(release: &Release, some: &[Satisfied], waited: &BTreeSet<RepoId>) -> u32 {
    let mut count = 0;
    for one in some {
        let id = one.id();
        if !release.purgatory.holds(&id) && matches!(release.store.has(&id).await, Ok(true)) {
            count += 1;
        }
    }
    let is_served = |repo: &&RepoId| release.repositories.standing(repo) == Some(Standing::Active);
    let announcements = waited.iter().filter(is_served).count();
    u32::try_from(announcements)
        .unwrap_or(u32::MAX)
        .saturating_add(count)
}

impl Hunter {
    /// Serves whatever became servable under an identifier, and gives how many events that are. To be
    /// called in the identifier's turn among those who take something in (`taking`): one at a time.
    pub(super) async fn take_in(&self, identifier: &Identifier) -> u32 {
        let (rotation, healing) = self
            .hunt
            .act(|queue, _| (queue.rotation(identifier), queue.is_healing(identifier)));
        let (release, name) = (self.release.clone(), identifier.clone());
        let gathered = blocking(move || {
            let pending = Pending::of(&release, &name, rotation);
            let seen = slices(&pending.parties);
            (seen, pending.is_whole())
        });
        let ((slices, all_seen), is_whole) = gathered.await;
        if !all_seen {
            // The sweep goes through all of it.
            self.release.unfinished.insert(identifier.clone(), ());
        }
        let mut released = 0;
        for slice in slices {
            match satisfied(&self.release, identifier, slice).await {
                Ok(some) if some.is_empty() => {}
                Ok(some) => match self.release_all(identifier, some).await {
                    ControlFlow::Continue(count) => released += count,
                    ControlFlow::Break(()) => return released,
                },
                Err(error) => {
                    self.release
                        .note(identifier, &error, "nothing was released");
                    return released;
                }
            }
        }
        tracing::debug!(%identifier, released, is_whole, "taken in");
        if healing {
            self.heal(identifier).await;
        }
        released
    }

    async fn release_all(
        &self,
        identifier: &Identifier,
        mut some: Vec<Satisfied>,
    ) -> ControlFlow<(), u32> {
        // States before what is proposed to them, oldest first.
        some.sort_by(|a, b| match (a, b) {
            (Satisfied::State(a), Satisfied::State(b)) => later(&a.event, &b.event),
            (Satisfied::Request(a), Satisfied::Request(b)) => later(&a.event, &b.event),
            (Satisfied::State(_), Satisfied::Request(_)) => std::cmp::Ordering::Less,
            (Satisfied::Request(_), Satisfied::State(_)) => std::cmp::Ordering::Greater,
        });
        let (release, name, all) = (self.release.clone(), identifier.clone(), some.clone());
        let waiting = blocking(move || waiting_for(&release, &name, &all)).await;
        for turn in some.chunks(A_TURN) {
            let work = release_some(
                self.release.clone(),
                self.serial.clone(),
                identifier.clone(),
                turn.to_vec(),
            );
            self.serial.run(identifier, Turn::Normal, work).await?;
        }
        ControlFlow::Continue(served(&self.release, &some, &waiting).await)
    }

    /// Aligns what is served with what has come.
    async fn heal(&self, identifier: &Identifier) {
        let (release, serial) = (self.release.clone(), self.serial.clone());
        let owners = release.repositories.owners(identifier, Standing::Active);
        let name = identifier.clone();
        let many = owners.len() > HEALED;
        let work = async move {
            if let Err(error) = heal::identifier(&release, &serial, &name).await {
                release.note(&name, &error, "nothing was healed");
            }
        };
        match many {
            true => self.hunt.in_background(identifier, work),
            false => work.await,
        }
        // Announcements may wait for what is served already.
        let waiting = Standing::Waiting;
        if !self
            .release
            .repositories
            .owners(identifier, waiting)
            .is_empty()
        {
            self.release.unfinished.insert(identifier.clone(), ());
        }
    }
}
