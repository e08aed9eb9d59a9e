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
    /// The history is too long for what is asked.
    #[error("looking for what was asked for takes more time than one process may here")]
    TooCostly,
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

    /// What was found, to be looked for anew.
    fn only_found(self) -> Self {
        let pairs = self.oids.into_iter().zip(self.found);
        Self::new(
            pairs
                .filter(|(_, found)| *found)
                .map(|(oid, _)| oid)
                .collect(),
        )
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

/// Every walk is one of these.
const WALK: [&str; 2] = ["rev-list", "--use-bitmap-index"];
/// The same with trees and blobs.
const OBJECTS: [&str; 2] = ["--objects", "--no-object-names"];
/// Without bitmaps, what is newest comes first: what checkouts of partial clones ask for.
const NEWEST_FIRST: &str = "--in-commit-order";

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
    walk.args(WALK)
        .args(args)
        .args(SHOWN)
        .args(detached.map(|oid| oid.to_string()));
    Ok(git::spawn(walk, place)?)
}

/// Where walks begin that do not begin at the refs of one view.
#[derive(Debug)]
pub struct Roots<'a> {
    /// The repository that has the objects.
    pub place: &'a Path,
    /// All of them are there.
    pub tips: &'a [Oid],
    /// Room for the walks, which is waited for.
    pub places: &'a Places,
    /// On whose account.
    pub client: Option<IpAddr>,
}

impl Roots<'_> {
    async fn walk(&self, args: &[&str]) -> Result<(Running, Pipes), Refusal> {
        let place = self.places.take_for(self.client).await;
        let mut walk = git::command(self.place);
        walk.args(WALK).args(args).arg("--stdin");
        Ok(git::spawn(walk, place)?)
    }

    /// Those of these objects, all of which are in the repository, that the roots do not reach.
    pub async fn do_not_reach(&self, commits: Sought, others: Sought) -> Result<Vec<Oid>, Refusal> {
        if self.tips.is_empty() {
            return Ok(commits.left().chain(others.left()).collect());
        }
        let mut unreached = Vec::new();
        if !commits.is_empty() {
            let walk = self.walk(&[]).await?;
            let beyond = beyond(walk, &commits, self.tips).await?;
            unreached.extend(beyond.only_found().left());
        }
        let mut others = others;
        if !others.is_empty() {
            let walk = self.walk(&OBJECTS).await?;
            others = beyond(walk, &others, self.tips).await?.only_found();
        }
        if !others.is_empty() {
            let walk = self.walk(&[&OBJECTS[..], &[NEWEST_FIRST]].concat()).await?;
            unreached.extend(come_by(walk, others, self.tips).await?.left());
        }
        Ok(unreached)
    }
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
    let mut others = rest.others;
    if !others.is_empty() {
        // What bitmaps say costs next to nothing, however far back it lies. Where there are none, or not
        // for what is newest, this finds little, and never anything that is not so.
        let args = [&OBJECTS[..], &BETWEEN[..]].concat();
        let walk = walk(view, &args, rest.detached, places, client).await?;
        others = beyond(walk, &others, &[]).await?.only_found();
    }
    if !others.is_empty() {
        let order = [&OBJECTS[..], &[NEWEST_FIRST]].concat();
        let walk = walk(view, &order, rest.detached, places, client).await?;
        let left = come_by(walk, others, &[]).await?;
        if !left.is_empty() {
            return Err(not_ours(&left));
        }
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
    let walk = walk(view, &BETWEEN, detached, places, client).await?;
    for oid in beyond(walk, &commits, &[]).await?.left() {
        all.strike(&oid);
    }
    Ok(all)
}

/// Those that a walk from them to the refs, and to `roots`, comes by are out of their reach: they are found.
async fn beyond(walk: (Running, Pipes), from: &Sought, roots: &[Oid]) -> Result<Sought, Refusal> {
    let (running, pipes) = walk;
    let mut beyond = from.clone();
    let search = async {
        if strike_lines(pipes.stdout, &mut beyond).await? {
            drop(running);
            return Ok(true);
        }
        end(running).await
    };
    let said = git::drain_stderr(pipes.stderr, |_| {});
    let lines = from.left().map(|oid| format!("{oid}\n"));
    let lines = lines.chain(roots.iter().map(|root| format!("^{root}\n")));
    let ((), searched, said) = tokio::join!(feed(pipes.stdin, lines), search, said);
    match searched? {
        true => Ok(beyond),
        false => Err(failed(&said)),
    }
}

/// Waits until a walk has ended; says whether well.
async fn end(mut running: Running) -> Result<bool, Refusal> {
    let ended_well = running.wait().await?;
    match running.ran_out_of_time() {
        true => Err(Refusal::TooCostly),
        false => Ok(ended_well),
    }
}

/// Gives a walk what to begin with.
async fn feed(stdin: ChildStdin, lines: impl Iterator<Item = String>) {
    let mut stdin = BufWriter::new(stdin);
    for line in lines {
        // A git that stops listening says why.
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
    let (running, pipes) = walk;
    let search = async {
        let mut stdout = pipes.stdout;
        if stdout.read(&mut [0]).await? > 0 {
            drop(running);
            return Ok(None);
        }
        end(running).await.map(Some)
    };
    let said = git::drain_stderr(pipes.stderr, |_| {});
    let lines = commits.left().map(|oid| format!("{oid}\n"));
    let ((), searched, said) = tokio::join!(feed(pipes.stdin, lines), search, said);
    match searched? {
        None => Err(not_ours(commits)),
        Some(true) => Ok(()),
        Some(false) => Err(failed(&said)),
    }
}

/// A walk from the refs, or from `roots`, looks for these: what it comes by is found.
async fn come_by(
    walk: (Running, Pipes),
    mut sought: Sought,
    roots: &[Oid],
) -> Result<Sought, Refusal> {
    let (running, pipes) = walk;
    let lines = roots.iter().map(|root| format!("{root}\n"));
    let search = async {
        if strike_lines(pipes.stdout, &mut sought).await? {
            drop(running);
            return Ok(true);
        }
        end(running).await
    };
    let said = git::drain_stderr(pipes.stderr, |_| {});
    let ((), searched, said) = tokio::join!(feed(pipes.stdin, lines), search, said);
    match searched? {
        true => Ok(sought),
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
        let mut some = Sought::new(vec![oid(1), oid(2)]);
        some.strike(&oid(2));
        assert_eq!(some.only_found().left().collect::<Vec<_>>(), [oid(2)]);
    }

    fn git(directory: &Path, args: &[&str]) -> String {
        let output = std::process::Command::new("git")
            .current_dir(directory)
            .args(["-c", "user.name=A", "-c", "user.email=a@example.org"])
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[tokio::test]
    async fn the_same_is_found_with_bitmaps_and_without() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        git(path, &["init", "-q", "-b", "main"]);
        for n in 0..20 {
            std::fs::create_dir_all(path.join("d")).unwrap();
            std::fs::write(path.join("d/file"), format!("{n}")).unwrap();
            git(path, &["add", "."]);
            git(path, &["commit", "-q", "-m", "x"]);
        }
        git(path, &["tag", "-a", "-m", "one", "v1", "main~5"]);
        git(path, &["checkout", "-q", "-b", "aside", "main~3"]);
        std::fs::write(path.join("d/file"), "hidden").unwrap();
        git(path, &["commit", "-q", "-a", "-m", "x"]);
        git(path, &["tag", "-a", "-m", "two", "v2"]);
        let oid = |name: &str| Oid::from_hex(&git(path, &["rev-parse", name])).unwrap();
        let reached = [
            "main~19:d/file",
            "main~10:d",
            "main~7^{tree}",
            "main~4",
            "v1",
            "main:d/file",
        ];
        let reached: Vec<Oid> = reached.iter().map(|name| oid(name)).collect();
        let hidden = ["aside:d/file", "aside:d", "aside^{tree}", "aside", "v2"];
        let hidden: Vec<Oid> = hidden.iter().map(|name| oid(name)).collect();
        for bitmaps in [false, true] {
            if bitmaps {
                git(path, &["repack", "-q", "-adb"]);
                let packs = std::fs::read_dir(path.join(".git/objects/pack")).unwrap();
                let mut names = packs.map(|file| file.unwrap().path());
                assert!(names.any(|name| name.extension().is_some_and(|e| e == "bitmap")));
            } else {
                // The view of another owner: all its objects are here, and no ref of this one leads there.
                git(path, &["repack", "-q", "-ad"]);
            }
            let view = path.join("view.git");
            git(path, &["init", "-q", "--bare", "view.git"]);
            let objects = path.join(".git/objects");
            let alternate = format!("{}\n", objects.display());
            std::fs::write(view.join("objects/info/alternates"), alternate).unwrap();
            for name in ["refs/heads/main", "refs/tags/v1"] {
                git(&view, &["update-ref", name, &oid(name).to_string()]);
            }
            let places = Places::new(4);
            let ask = async |wants: Vec<Oid>| {
                let rest = beyond_tips(&view, Sought::new(wants))?;
                look_for(&view, rest, &places, None).await
            };
            ask(reached.clone()).await.unwrap();
            for oid in &hidden {
                let mixed = reached.iter().chain([oid]).copied().collect();
                // Of several commits, git does not say which.
                let refused = ask(mixed).await.unwrap_err();
                assert!(matches!(refused, Refusal::NotOurs(_)), "{refused}");
                let refused = ask(vec![*oid]).await.unwrap_err();
                assert!(
                    matches!(refused, Refusal::NotOurs(found) if found == *oid),
                    "{refused}"
                );
            }
        }
    }
}
