//! What is here: the one question of whether an object may be shown, named or leaned on.
//!
//! A pool has more than anybody may have: what was removed by a force push, what a withheld, deleted or
//! retired repository had, what came and is not signed for yet. That it lies there means nothing. An object is
//! here if the refs lead to it of a view that is served – of the one in question, or of another of its pool –
//! or a mark says that it was brought for this (`marks.rs`). What is not here is not there: it is asked for,
//! has to be brought, and is refused in the words for what nobody has ever seen.
//!
//! Everything asks this: pushes for what they lean on and what they put refs to, `.have` lines, the relay
//! before it releases what waits, refs as they are moved, packs that hunts and copies bring. Readers are shown
//! less, what their view's own refs reach (`reachable.rs`).
//!
//! Where the refs of a pool's views point is remembered (`tips.rs`). So most
//! questions cost a look into a list; for the rest git walks from there, with bitmaps.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use git2::ObjectType;
use grasp_proto::words::{Address, EventId, Identifier, Oid, RefName};

use super::{
    Error, Missing, Repositories, brought,
    fetched::Arrival,
    intake::{Quarantine, Refused},
    kind_of,
    layout::Marker,
    locks::Upload,
    marks::{self, Kind, Mark},
    reachable::{Refusal, Roots, Sought},
    read_incarnation, refs, staging,
};

/// For what something has to be here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum For {
    /// To say whether what waits under an identifier has its objects: what any of its views may show.
    Waiting(Identifier),
    /// For a pack that was brought for signed events of an identifier to lean on.
    Arrival(Identifier),
    /// For a push to a view to lean on, or to put refs to.
    Push(Address),
    /// For the ref of a pull request in a view.
    Request(Address, EventId),
    /// For the branches and tags that a state gives a view.
    State(Address),
}

impl For {
    fn identifier(&self) -> &Identifier {
        match self {
            Self::Waiting(identifier) | Self::Arrival(identifier) => identifier,
            Self::Push(address) | Self::Request(address, _) | Self::State(address) => {
                address.identifier()
            }
        }
    }

    fn view(&self) -> Option<&Address> {
        match self {
            Self::Waiting(_) | Self::Arrival(_) => None,
            Self::Push(address) | Self::Request(address, _) | Self::State(address) => Some(address),
        }
    }

    /// Whether a mark counts for this; `own` is what the pool calls the view.
    fn counts(&self, mark: &Mark, own: Option<&Marker>) -> bool {
        let is_own = own.is_some_and(|own| mark.is_for(own));
        match (self, mark.kind) {
            (Self::Push(_), _) => false,
            (_, Kind::Arrived) => true,
            (Self::Waiting(_), kind) => !matches!(kind, Kind::Offered | Kind::Former),
            (Self::Request(..), Kind::Pushed) => is_own,
            (Self::Request(_, event), Kind::Offered) => is_own && mark.event == Some(*event),
            (Self::Arrival(_) | Self::Request(..), _) => false,
            (Self::State(_), kind) => is_own && kind != Kind::Offered,
        }
    }
}

/// Where the objects of a question are, and where walks for it begin.
struct Ground {
    place: PathBuf,
    tips: Arc<[Oid]>,
}

/// What is known of a question before git is asked.
struct Asked {
    ground: Ground,
    absent: HashSet<Oid>,
    commits: Sought,
    others: Sought,
}

/// Why nobody knows whether something is here.
pub(super) fn not_looked(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Ours(error) => error,
        other => io::Error::other(other.to_string()).into(),
    }
}

/// What a pack is refused with that leads to what it does not bring and what is not here: the same words for
/// what nobody has and for what nobody is shown.
pub const LACKS: &str = "what was pushed leads to objects that are neither in the pack nor here; fetch, and \
                         push again, so that git sends all that is missing";

/// Objects a pack is for that are looked at one by one when not all of them stand.
const ONE_BY_ONE: usize = 256;

impl Repositories {
    /// What the pool calls a view that is there.
    pub(super) fn marker(&self, address: &Address) -> Result<Option<Marker>, Error> {
        let incarnation = read_incarnation(&self.layout.view(address))?;
        Ok(incarnation.map(|incarnation| Marker::new(address, incarnation)))
    }

    /// Where walks for a purpose begin. Blocks.
    fn ground(&self, purpose: &For) -> Result<Ground, Error> {
        let identifier = purpose.identifier();
        let pool = self.layout.pool(identifier);
        let public = self.public_tips(identifier)?;
        let (place, own) = match purpose.view() {
            None => (pool.clone(), None),
            Some(address) => (self.view(address)?, self.marker(address)?),
        };
        let repo = match refs::open(&place) {
            Err(Error::NotFound) => {
                let tips = Arc::default();
                return Ok(Ground { place, tips });
            }
            repo => repo?,
        };
        let odb = repo.odb()?;
        let mut more = Vec::new();
        match purpose {
            For::Request(address, event) => {
                // What waits for another event is not here for this one. Of several commits that wait for
                // it, the ref shows one.
                let pooled = refs::open(&pool)?;
                more.extend_from_slice(&self.tips_of_view(address, &pooled.odb()?)?);
                let shown = refs::resolve(&repo, RefName::nostr(event).as_str())?;
                for oid in staging::commits(&place, event)?.into_iter().chain(shown) {
                    if kind_of(&odb, oid)?.is_some() {
                        more.push(oid);
                    }
                }
            }
            For::Push(address) | For::State(address) => {
                more.extend_from_slice(&self.tips_of_view(address, &odb)?);
            }
            For::Waiting(_) | For::Arrival(_) => {}
        }
        for mark in marks::read(&pool, &self.keep)?.0 {
            if purpose.counts(&mark, own.as_ref()) && kind_of(&odb, mark.oid)?.is_some() {
                more.push(mark.oid);
            }
        }
        more.retain(|oid| public.binary_search(oid).is_err());
        let tips = match more.is_empty() {
            true => public,
            false => {
                more.extend_from_slice(&public);
                more.sort_unstable();
                more.dedup();
                more.into()
            }
        };
        Ok(Ground { place, tips })
    }

    fn asked(&self, purpose: &For, oids: &[Oid]) -> Result<Asked, Error> {
        self.adopt_all(purpose.identifier());
        let ground = self.ground(purpose)?;
        let (mut absent, mut commits, mut others) = (HashSet::new(), Vec::new(), Vec::new());
        let mut left = oids
            .iter()
            .filter(|oid| ground.tips.binary_search(oid).is_err());
        if let Some(first) = left.next() {
            let left = std::iter::once(first).chain(left);
            match refs::open(&ground.place) {
                Err(Error::NotFound) => absent.extend(left),
                repo => {
                    let repo = repo?;
                    let odb = repo.odb()?;
                    for oid in left {
                        match kind_of(&odb, *oid)? {
                            None => {
                                absent.insert(*oid);
                            }
                            Some(ObjectType::Commit) => commits.push(*oid),
                            Some(_) => others.push(*oid),
                        }
                    }
                }
            }
        }
        Ok(Asked {
            ground,
            absent,
            commits: Sought::new(commits),
            others: Sought::new(others),
        })
    }

    /// Of these objects, those that are not here.
    pub async fn not_here(
        self: &Arc<Self>,
        purpose: For,
        oids: Vec<Oid>,
        client: Option<IpAddr>,
    ) -> Result<HashSet<Oid>, Error> {
        let asked = self
            .blocking(move |this| this.asked(&purpose, &oids))
            .await?;
        let mut absent = asked.absent;
        let roots = Roots {
            place: &asked.ground.place,
            tips: &asked.ground.tips,
            places: &self.walks,
            client,
        };
        let unreached = roots.do_not_reach(asked.commits, asked.others).await;
        absent.extend(unreached.map_err(not_looked)?);
        Ok(absent)
    }

    /// Refuses what is not here.
    pub async fn expect_here(self: &Arc<Self>, purpose: For, oids: Vec<Oid>) -> Result<(), Error> {
        let absent = match self.not_here(purpose.clone(), oids.clone(), None).await {
            Err(Error::NotFound) => match purpose.view() {
                // It is made for what has come.
                Some(address) if address.is_prs() => {
                    let anybody = For::Arrival(address.identifier().clone());
                    self.not_here(anybody, oids.clone(), None).await?
                }
                // Whoever goes on says so.
                _ => return Ok(()),
            },
            absent => absent?,
        };
        let absent: Vec<Oid> = oids
            .into_iter()
            .filter(|oid| absent.contains(oid))
            .collect();
        match absent.is_empty() {
            true => Ok(()),
            false => Err(not_here(&absent)),
        }
    }

    /// Which of the objects are not here for what waits under an identifier (or, with what is staged there,
    /// in one of its views).
    pub async fn missing(
        self: &Arc<Self>,
        identifier: &Identifier,
        oids: Vec<Oid>,
        commits: Vec<Oid>,
        staged_in: Option<Address>,
    ) -> Result<Missing, Error> {
        let all: BTreeSet<Oid> = oids.iter().chain(&commits).copied().collect();
        let staged_in = staged_in.filter(|address| self.view(address).is_ok());
        let (purpose, place) = match staged_in {
            Some(address) => {
                let place = self.layout.view(&address);
                (For::Push(address), place)
            }
            None => {
                let pool = self.layout.pool(identifier);
                (For::Waiting(identifier.clone()), pool)
            }
        };
        let absent = self
            .not_here(purpose, all.into_iter().collect(), None)
            .await?;
        let look = move |_: &Self| {
            let mut answer = Missing::default();
            let is_absent = |oid: &Oid| absent.contains(oid);
            let missing = oids.iter().chain(&commits).filter(|oid| is_absent(oid));
            answer.missing.extend(missing);
            let mut here = commits.iter().filter(|oid| !is_absent(oid)).peekable();
            if here.peek().is_some() {
                let repo = refs::open(&place)?;
                let odb = repo.odb()?;
                for oid in here {
                    match kind_of(&odb, *oid)? {
                        Some(ObjectType::Commit) => {}
                        Some(_) => answer.not_commits.push(*oid),
                        None => answer.missing.push(*oid),
                    }
                }
            }
            Ok(answer)
        };
        self.blocking(look).await
    }

    /// What a pack that came for `tips` leans on, and is not here.
    async fn lacks(
        self: &Arc<Self>,
        purpose: &For,
        quarantine: &Quarantine,
        tips: &[Oid],
        client: Option<IpAddr>,
    ) -> Result<HashSet<Oid>, Error> {
        let leans = {
            let (this, purpose) = (Arc::clone(self), purpose.clone());
            let (quarantine, tips) = (quarantine.look(), tips.to_vec());
            let look = move || {
                let ground = this.ground(&purpose)?;
                brought::leans(&quarantine, &ground.place, &tips, &ground.tips)
            };
            let work = tokio::task::spawn_blocking(look).await;
            work.unwrap_or_else(|error| Err(io::Error::other(error).into()))?
        };
        if leans.on.is_empty() {
            return Ok(leans.on);
        }
        let on = leans.on.into_iter().collect();
        self.not_here(purpose.clone(), on, client).await
    }

    /// Refuses a push that does not bring what is not here.
    pub async fn expect_brought(
        self: &Arc<Self>,
        upload: &Upload,
        quarantine: &Quarantine,
        tips: &[Oid],
        client: Option<IpAddr>,
    ) -> Result<(), Refused> {
        let purpose = For::Push(upload.address.clone());
        upload.check_at(self.prunings(upload.address.identifier()));
        let lacks = self.lacks(&purpose, quarantine, tips, client).await?;
        match tips.iter().find(|tip| lacks.contains(tip)) {
            Some(tip) => Err(Refused::Pack(format!(
                "object {tip} is neither in the pack nor here"
            ))),
            None if !lacks.is_empty() => Err(Refused::Pack(LACKS.to_owned())),
            None => Ok(()),
        }
    }

    /// Of the objects that a pack was brought for, those that it has, with all that they lead to and that is
    /// not here.
    pub async fn brought_whole(
        self: &Arc<Self>,
        arrival: &Arrival,
        quarantine: &Quarantine,
        wanted: &[Oid],
    ) -> Result<Vec<Oid>, Error> {
        let purpose = For::Arrival(arrival.identifier().clone());
        arrival.check_at(self.prunings(arrival.identifier()));
        let look = quarantine.look();
        let wanted = wanted.to_vec();
        let has = move |_: &Self| {
            let mut has = Vec::new();
            for oid in wanted {
                if look.has(oid)? {
                    has.push(oid);
                }
            }
            Ok(has)
        };
        let has = self.blocking(has).await?;
        if has.is_empty()
            || self
                .lacks(&purpose, quarantine, &has, None)
                .await?
                .is_empty()
        {
            return Ok(has);
        }
        let mut whole = Vec::new();
        for oid in has.into_iter().take(ONE_BY_ONE) {
            if self
                .lacks(&purpose, quarantine, &[oid], None)
                .await?
                .is_empty()
            {
                whole.push(oid);
            }
        }
        Ok(whole)
    }
}

/// The refusal of what is not here.
fn not_here(oids: &[Oid]) -> Error {
    Error::Precondition(format!("not here: object {}", super::change::named(oids)))
}
