//! What the refs of a view reach: all that a reader may have of a pool.
//!
//! A view finds every object of its pool, other owners' too, and git hands out by its id whatever it
//! finds: in v2 always, in older versions whatever is no commit. So what is asked for is checked
//! here, before git is. Tips, all that an ordinary clone or fetch asks for, cost one look at the
//! refs; for the rest git walks from the refs, commits first, newest first.

use std::{net::IpAddr, path::Path};

use git2::ObjectType;
use grasp_proto::words::Oid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};

use super::{
    Error,
    git::{self, Pipes, Places, Running},
    kind_of, refs,
};

/// Why a reader does not get what he asks for.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No ref of the view reaches it. The words are git's own.
    #[error("upload-pack: not our ref {0}")]
    NotOurs(Oid),
    /// Our side failed.
    #[error("the server could not look for what was asked for")]
    Ours(#[source] Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Ours(error.into())
    }
}

/// What a reader asks for, until it is found. Bounded by the largest request.
#[derive(Debug)]
pub struct Wants {
    /// In order, each once.
    oids: Vec<Oid>,
    found: Vec<bool>,
    left: usize,
}

impl Wants {
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
    commits: Wants,
    others: Wants,
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
pub fn beyond_tips(view: &Path, mut wants: Wants) -> Result<Rest, Refusal> {
    let repo = refs::open(view)?;
    refs::tips(&repo, |oid| wants.strike(&oid))?;
    let mut detached = None;
    if !wants.is_empty() && refs::head(&repo).is_empty() {
        detached = refs::resolve(&repo, "HEAD").ok().flatten();
        if let Some(oid) = &detached {
            wants.strike(oid);
        }
    }
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
        commits: Wants::new(commits),
        others: Wants::new(others),
        detached,
    })
}

/// What readers are shown.
const SHOWN: [&str; 3] = ["--branches", "--tags", "--glob=refs/nostr/*"];

/// Looks for what is not a tip. Dropped, it stops looking.
pub async fn look_for(
    view: &Path,
    rest: Rest,
    places: &Places,
    client: Option<IpAddr>,
) -> Result<(), Refusal> {
    let walk = async |args: &[&str]| {
        let place = places.take_for(client).await;
        let mut walk = git::command(view);
        walk.args(["rev-list", "--use-bitmap-index"])
            .args(args)
            .args(SHOWN)
            .args(rest.detached.map(|oid| oid.to_string()));
        git::spawn(walk, place)
    };
    if !rest.commits.is_empty() {
        let walk = walk(&["--stdin", "--not"]).await?;
        look_for_commits(walk, &rest.commits).await?;
    }
    if !rest.others.is_empty() {
        // Without bitmaps, what is newest comes first: what checkouts of partial clones ask for.
        let order = ["--objects", "--no-object-names", "--in-commit-order"];
        look_for_others(walk(&order).await?, rest.others).await?;
    }
    Ok(())
}

/// Nothing may lie between the refs and the commits that the walk is fed.
async fn look_for_commits(walk: (Running, Pipes), commits: &Wants) -> Result<(), Refusal> {
    let (mut running, pipes) = walk;
    let feed = async {
        let mut stdin = BufWriter::new(pipes.stdin);
        for oid in commits.left() {
            // A git that stops listening says why.
            let line = format!("{oid}\n");
            if stdin.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
        let _ = stdin.flush().await;
    };
    let search = async {
        let mut stdout = pipes.stdout;
        if stdout.read(&mut [0]).await? > 0 {
            drop(running);
            return Ok(None);
        }
        running.wait().await.map(Some)
    };
    let said = git::drain_stderr(pipes.stderr, |_| {});
    let ((), searched, said) = tokio::join!(feed, search, said);
    match searched? {
        None => Err(not_ours(commits)),
        Some(true) => Ok(()),
        Some(false) => Err(failed(&said)),
    }
}

/// The walk must come by all of them.
async fn look_for_others(walk: (Running, Pipes), mut others: Wants) -> Result<(), Refusal> {
    let (mut running, pipes) = walk;
    drop(pipes.stdin);
    let search = async {
        let mut lines = BufReader::with_capacity(64 * 1024, pipes.stdout);
        let mut line = String::with_capacity(64);
        while lines.read_line(&mut line).await? > 0 {
            if let Ok(oid) = Oid::from_hex(line.trim_end()) {
                others.strike(&oid);
            }
            if others.is_empty() {
                drop(running);
                return Ok(true);
            }
            line.clear();
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

fn not_ours(wants: &Wants) -> Refusal {
    Refusal::NotOurs(wants.left().next().unwrap_or(Oid::ZERO))
}

fn failed(said: &str) -> Refusal {
    git::RunError::Failed(git::last_line(said).to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wants_are_struck_once() {
        let oid = |byte| Oid::from_bytes([byte; 20]);
        let mut wants = Wants::new(vec![oid(3), oid(1), oid(3), oid(2)]);
        for byte in [1, 1, 9, 3] {
            wants.strike(&oid(byte));
        }
        assert_eq!(wants.left().collect::<Vec<_>>(), [oid(2)]);
        wants.strike(&oid(2));
        assert!(wants.is_empty());
    }
}
