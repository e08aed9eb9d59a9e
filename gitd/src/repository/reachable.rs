//! What the refs of a view reach: all that a reader may have of a pool.
//!
//! A view finds every object of its pool, other owners' too, and git hands out by its id whatever it
//! finds: in v2 always, in older versions whatever is no commit. So what is asked for is checked
//! here, before git is. Tips, all that an ordinary clone or fetch asks for, cost one look at the
//! refs; for the rest git walks from the refs, commits first, newest first.
//!
//! A request that deepens is believed as well: git sends what is behind the commits where a client says
//! its history ends, whoever reaches them. So git hears there only of what the refs reach, as it would if
//! nothing else were here.

use std::{net::IpAddr, path::Path};

use git2::ObjectType;
use grasp_proto::words::Oid;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter},
    process::{ChildStdin, ChildStdout},
};

use super::{
    Error,
    git::{self, Pipes, Running},
    kind_of,
    places::{Busy, Places},
    refs,
};

/// Why a reader does not get what he asks for.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No ref of the view reaches it. The words are git's own.
    #[error("upload-pack: not our ref {0}")]
    NotOurs(Oid),
    /// There was no place to look from.
    #[error(transparent)]
    Busy(Busy),
    /// Our side failed.
    #[error("the server could not look for what was asked for")]
    Ours(#[source] Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Ours(error.into())
    }
}

/// What a reader names, until it is found. Bounded by the largest request.
#[derive(Debug, Clone)]
pub struct Sought {
    /// In order, each once.
    oids: Vec<Oid>,
    found: Vec<bool>,
    left: usize,
}

impl Sought {
    /// Nothing of it is found yet.
    pub fn new(mut oids: Vec<Oid>) -> Self {
        oids.sort_unstable();
        oids.dedup();
        let left = oids.len();
        let found = vec![false; left];
        Self { oids, found, left }
    }

    /// Whether all was found.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Whether this was looked for and found.
    pub fn found(&self, oid: &Oid) -> bool {
        let at = self.oids.binary_search(oid);
        at.is_ok_and(|at| self.found[at])
    }

    fn strike(&mut self, oid: &Oid) {
        if let Ok(at) = self.oids.binary_search(oid)
            && !self.found[at]
        {
            self.found[at] = true;
            self.left -= 1;
        }
    }

    fn left(&self) -> impl Iterator<Item = Oid> {
        let pairs = self.oids.iter().zip(&self.found);
        pairs.filter(|(_, found)| !**found).map(|(oid, _)| *oid)
    }
}

/// What is not a tip, by how it is looked for.
#[derive(Debug)]
pub struct Rest {
    commits: Sought,
    others: Sought,
    /// HEAD, if it is on no branch.
    detached: Option<Oid>,
}

impl Rest {
    /// Whether there is nothing to be looked for.
    pub fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.others.is_empty()
    }
}

/// Takes the tips out of what is asked for; what is not here at all is refused at once. Blocks.
pub fn beyond_tips(view: &Path, mut wants: Sought) -> Result<Rest, Refusal> {
    let repo = refs::open(view)?;
    let detached = strike_tips(&repo, &mut wants)?;
    let (mut commits, mut others) = (Vec::new(), Vec::new());
    if !wants.is_empty() {
        let odb = repo.odb().map_err(Error::from)?;
        for oid in wants.left() {
            match kind_of(&odb, oid)? {
                None => return Err(Refusal::NotOurs(oid)),
                Some(ObjectType::Commit) => commits.push(oid),
                Some(_) => others.push(oid),
            }
        }
    }
    Ok(Rest {
        commits: Sought::new(commits),
        others: Sought::new(others),
        detached,
    })
}

/// Strikes the tips; gives HEAD, if it is on no branch and there is more to be looked for than branches
/// and tags.
fn strike_tips(repo: &git2::Repository, sought: &mut Sought) -> Result<Option<Oid>, Refusal> {
    refs::tips(repo, |oid| sought.strike(&oid))?;
    if sought.is_empty() || !refs::head(repo).is_empty() {
        return Ok(None);
    }
    let detached = refs::resolve(repo, "HEAD").ok().flatten();
    if let Some(oid) = &detached {
        sought.strike(oid);
    }
    Ok(detached)
}

/// What a client says it has.
#[derive(Debug)]
pub struct Claims {
    all: Sought,
    /// Those that are here and no tips.
    commits: Sought,
    detached: Option<Oid>,
}

/// Takes the tips out of what a client says it has, and what is no commit here. Blocks.
pub fn claims_beyond_tips(view: &Path, mut all: Sought) -> Result<Claims, Refusal> {
    let repo = refs::open(view)?;
    let detached = strike_tips(&repo, &mut all)?;
    let mut commits = Vec::new();
    if !all.is_empty() {
        let odb = repo.odb().map_err(Error::from)?;
        for oid in all.left() {
            if kind_of(&odb, oid)? == Some(ObjectType::Commit) {
                commits.push(oid);
            }
        }
    }
    Ok(Claims {
        all,
        commits: Sought::new(commits),
        detached,
    })
}

/// What readers are shown.
const SHOWN: [&str; 3] = ["--branches", "--tags", "--glob=refs/nostr/*"];

/// Walks from the refs, and from HEAD if it is on none of them.
async fn walk(
    view: &Path,
    args: &[&str],
    detached: Option<Oid>,
    places: &Places,
    client: Option<IpAddr>,
) -> Result<(Running, Pipes), Refusal> {
    let place = places.take_soon(client).await.map_err(Refusal::Busy)?;
    let mut walk = git::command(view);
    walk.args(["rev-list", "--use-bitmap-index"])
        .args(args)
        .args(SHOWN)
        .args(detached.map(|oid| oid.to_string()));
    Ok(git::spawn(walk, place)?)
}

/// From what it is fed to the refs: what is behind one and not the other.
const BETWEEN: [&str; 2] = ["--stdin", "--not"];

/// Looks for what is not a tip. Dropped, it stops looking.
pub async fn look_for(
    view: &Path,
    rest: Rest,
    places: &Places,
    client: Option<IpAddr>,
) -> Result<(), Refusal> {
    if !rest.commits.is_empty() {
        let walk = walk(view, &BETWEEN, rest.detached, places, client).await?;
        look_for_commits(walk, &rest.commits).await?;
    }
    if !rest.others.is_empty() {
        // Without bitmaps, what is newest comes first: what checkouts of partial clones ask for.
        let order = ["--objects", "--no-object-names", "--in-commit-order"];
        let walk = walk(view, &order, rest.detached, places, client).await?;
        look_for_others(walk, rest.others).await?;
    }
    Ok(())
}

/// Those of the claims that the refs reach. Dropped, it stops looking.
pub async fn reached(
    view: &Path,
    claims: Claims,
    places: &Places,
    client: Option<IpAddr>,
) -> Result<Sought, Refusal> {
    let Claims {
        mut all,
        commits,
        detached,
    } = claims;
    if commits.is_empty() {
        return Ok(all);
    }
    let (mut running, pipes) = walk(view, &BETWEEN, detached, places, client).await?;
    // Those that the walk comes by are out of the refs' reach.
    let mut beyond = commits.clone();
    let search = async {
        if strike_lines(pipes.stdout, &mut beyond).await? {
            drop(running);
            return Ok(true);
        }
        running.wait().await
    };
    let said = git::drain_stderr(pipes.stderr, |_| {});
    let ((), searched, said) = tokio::join!(feed(pipes.stdin, &commits), search, said);
    if !searched? {
        return Err(failed(&said));
    }
    for oid in beyond.left() {
        all.strike(&oid);
    }
    Ok(all)
}

/// Gives a walk what to begin with.
async fn feed(stdin: ChildStdin, commits: &Sought) {
    let mut stdin = BufWriter::new(stdin);
    for oid in commits.left() {
        // A git that stops listening says why.
        let line = format!("{oid}\n");
        if stdin.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
    let _ = stdin.flush().await;
}

/// Strikes what a walk comes by; `true`, before its end, when that was all.
async fn strike_lines(stdout: ChildStdout, sought: &mut Sought) -> std::io::Result<bool> {
    let mut lines = BufReader::with_capacity(64 * 1024, stdout);
    let mut line = String::with_capacity(64);
    while lines.read_line(&mut line).await? > 0 {
        if let Ok(oid) = Oid::from_hex(line.trim_end()) {
            sought.strike(&oid);
        }
        if sought.is_empty() {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

/// Nothing may lie between the refs and the commits that the walk is fed.
async fn look_for_commits(walk: (Running, Pipes), commits: &Sought) -> Result<(), Refusal> {
    let (mut running, pipes) = walk;
    let search = async {
        let mut stdout = pipes.stdout;
        if stdout.read(&mut [0]).await? > 0 {
            drop(running);
            return Ok(None);
        }
        running.wait().await.map(Some)
    };
    let said = git::drain_stderr(pipes.stderr, |_| {});
    let ((), searched, said) = tokio::join!(feed(pipes.stdin, commits), search, said);
    match searched? {
        None => Err(not_ours(commits)),
        Some(true) => Ok(()),
        Some(false) => Err(failed(&said)),
    }
}

/// The walk must come by all of them.
async fn look_for_others(walk: (Running, Pipes), mut others: Sought) -> Result<(), Refusal> {
    let (mut running, pipes) = walk;
    drop(pipes.stdin);
    let search = async {
        if strike_lines(pipes.stdout, &mut others).await? {
            drop(running);
            return Ok(true);
        }
        running.wait().await
    };
    let said = git::drain_stderr(pipes.stderr, |_| {});
    let (searched, said) = tokio::join!(search, said);
    match searched? {
        true if others.is_empty() => Ok(()),
        true => Err(not_ours(&others)),
        false => Err(failed(&said)),
    }
}

fn not_ours(wants: &Sought) -> Refusal {
    Refusal::NotOurs(wants.left().next().unwrap_or(Oid::ZERO))
}

fn failed(said: &str) -> Refusal {
    git::RunError::Failed(git::last_line(said).to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_struck_once() {
        let oid = |byte| Oid::from_bytes([byte; 20]);
        let mut wants = Sought::new(vec![oid(3), oid(1), oid(3), oid(2)]);
        for byte in [1, 1, 9, 3] {
            wants.strike(&oid(byte));
        }
        assert_eq!(wants.left().collect::<Vec<_>>(), [oid(2)]);
        wants.strike(&oid(2));
        assert!(wants.is_empty());
        assert!(wants.found(&oid(3)) && !wants.found(&oid(9)));
    }
}
