//! The one way packs come in: quarantine, index and check, links, visible.
//!
//! A pack flows chunk by chunk into `git index-pack` working in a quarantine directory of the pool,
//! where nothing looks for objects. `--strict` checks every object's format and that every link from
//! the pack's objects leads to an object of the pack or of the pool; with the pool's invariant
//! (`pool.rs`) that is full connectivity. What is refused leaves nothing behind: the quarantine
//! goes when [`Quarantine`] is dropped, and those of a killed gitd go at the next start.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use git2::{ObjectType, OdbLookupFlags};
use grasp_proto::{
    process::disk::{DiskFull, DiskSpace},
    words::Oid,
};
use tokio::{
    io::{
        AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt,
        BufReader, BufWriter,
    },
    sync::mpsc,
    time::timeout,
};

use super::{
    Error, git,
    layout::QUARANTINE,
    pack_scan::{BadPack, PackLimits, PackScanner},
    places::{Busy, Place, Places},
    pool,
    public::LACKS,
    refs,
};

/// What fsck finds and hosting servers let pass: old tools wrote it, histories cannot be changed.
const LET_PASS: &str = "badTimezone=ignore,missingSpaceBeforeDate=ignore,zeroPaddedFilemode=ignore";

/// A transfer is ended when no byte came for so long; it is never ended for being slow.
pub const IDLE: Duration = Duration::from_secs(180);

/// A pack without objects: header and SHA-1.
const EMPTY_PACK: usize = 12 + 20;

/// Directory of a quarantine: packs outside the pool that it may lean on.
const OWN: &str = "own";

/// Why a pack was not taken in. The text is for the git user.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The pack itself, or what it leads to.
    #[error("{0}")]
    Pack(String),
    /// The sender went away or stopped.
    #[error("the upload was broken off: {0}")]
    Broken(std::io::Error),
    /// There is no room for it.
    #[error(transparent)]
    Full(#[from] DiskFull),
    /// Our side failed.
    #[error("the server could not take the pack in")]
    Ours(#[source] Error),
}

impl Refused {
    /// As it stands in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Pack(_) => "pack",
            Self::Broken(_) => "broken",
            Self::Full(_) => "full",
            Self::Ours(_) => "ours",
        }
    }
}

impl From<BadPack> for Refused {
    fn from(bad: BadPack) -> Self {
        Self::Pack(bad.to_string())
    }
}

impl From<Busy> for Refused {
    fn from(busy: Busy) -> Self {
        Self::Pack(format!("the pack has large objects: {busy}"))
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self::Ours(error.into())
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        match error {
            // What the repository is; whoever pushes to it should know.
            Error::Precondition(reason) => Self::Pack(reason),
            error => Self::Ours(error),
        }
    }
}

/// What packs may hold, and how many of those that need much memory are put together at once.
#[derive(Debug)]
pub struct IntakeLimits {
    /// What one pack may hold.
    pub pack: PackLimits,
    /// Room for packs with large objects that git has to hold in memory.
    pub large: Places,
}

impl IntakeLimits {
    /// Packs that need much memory, at once: git holds four of its largest objects while it resolves deltas.
    const LARGE_AT_ONCE: usize = 2;

    /// With these limits of one pack.
    pub fn new(pack: PackLimits) -> Self {
        let large = Places::new(Self::LARGE_AT_ONCE);
        Self { pack, large }
    }
}

/// An object of this size or more makes a pack one that needs much memory.
const LARGE_OBJECT: u64 = 4 << 20;

/// Where to take a pack in, and how.
#[derive(Debug)]
pub struct Intake<'a> {
    /// The pool it is checked against.
    pub pool: &'a Path,
    /// Packs outside the pool it may lean on as well: directory and names.
    pub own: Option<(&'a Path, &'a [String])>,
    /// The largest pack.
    pub max_bytes: u64,
    /// What it may hold.
    pub limits: &'a IntakeLimits,
    /// Room for processes.
    pub places: &'a Places,
    /// Whose pack it is.
    pub client: Option<IpAddr>,
    /// Whether there is room.
    pub disk: &'a DiskSpace,
    /// Of a pack that brings more than is allowed, what is.
    pub part: Option<&'a Part>,
}

/// What is taken of a pack: what some objects lead to, and nothing else. The rest is neither checked
/// nor kept.
#[derive(Debug)]
pub struct Part {
    /// What is wanted, with all that it leads to.
    pub tips: Vec<Oid>,
    /// What the pool has with all that it leads to: need not be looked through.
    pub known: Vec<Oid>,
}

/// What is checked as a pack is indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Every object, and that all its links lead to objects of the pack or of the pool.
    All,
    /// That it is a pack.
    Nothing,
}

/// A pack that is in and checked, but not seen by anybody yet.
#[derive(Debug)]
pub struct Quarantine {
    came: Came,
}

/// What lies in a quarantine.
#[derive(Debug, Clone)]
pub struct Came {
    directory: PathBuf,
    pack: Option<String>,
    objects: u32,
    is_self_contained: bool,
}

impl Came {
    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The pack that came, if any did.
    pub fn pack(&self) -> Option<&str> {
        self.pack.as_deref()
    }

    /// How many objects it had as it came. Git has put the bases of its deltas behind them.
    pub fn objects(&self) -> u32 {
        self.objects
    }

    /// Git has found that none of its objects leads out of it.
    pub fn is_self_contained(&self) -> bool {
        self.is_self_contained
    }

    /// Whether the pack has an object, be it one that was put behind it. Blocks.
    pub fn has(&self, oid: Oid) -> Result<bool, Error> {
        match &self.pack {
            Some(name) => Ok(pool::pack_has(&self.directory.join("pack"), name, oid)?),
            None => Ok(false),
        }
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        let directory = &self.came.directory;
        if let Err(error) = fs::remove_dir_all(directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %directory.display(), %error, "a quarantine stays");
        }
    }
}

/// Reads the next piece of an upload; an error when none comes for too long.
pub async fn piece(body: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<&[u8]> {
    match timeout(IDLE, body.fill_buf()).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "no byte came for three minutes",
        )),
    }
}

/// Reads what is left of an upload and throws it away, so that its sender reads our answer. An upload
/// that goes on for more than `most` bytes is not worth it.
pub async fn drain(body: &mut (impl AsyncBufRead + Unpin), most: u64) {
    let mut drained = 0;
    while drained < most {
        match piece(body).await {
            Ok(&[]) | Err(_) => return,
            Ok(bytes) => {
                let count = bytes.len();
                drained += count as u64;
                body.consume(count);
            }
        }
    }
}

impl Intake<'_> {
    /// Takes in the pack that `body` begins with. How long its sender may be silent is the body's to
    /// judge.
    ///
    /// A pack says itself where it ends, so the body may go on behind it. On a refusal that is the
    /// pack's own, it may not have been read to its end. What git says about the pack goes to
    /// `progress`.
    pub async fn receive(
        &self,
        body: &mut (impl AsyncBufRead + Unpin),
        progress: Option<&mpsc::Sender<Bytes>>,
    ) -> Result<Quarantine, Refused> {
        let check = match self.part {
            None => Check::All,
            Some(_) => Check::Nothing,
        };
        self.receive_pack(body, progress, check).await
    }

    /// Of a pack that was received, what is allowed of it. To be called when it is known that it brought what
    /// it leads to: what is picked is as good as the pool has it.
    pub async fn keep_part(&self, whole: Quarantine) -> Result<Quarantine, Refused> {
        let Some(part) = self.part else {
            return Ok(whole);
        };
        let Some(mut picked) = self.pick(&whole, part).await? else {
            return Ok(whole);
        };
        // What is kept goes the way of every pack.
        self.receive_pack(&mut picked, None, Check::All).await
    }

    /// What is wanted of a pack, as a pack of its own; `None`: no pack came.
    async fn pick(
        &self,
        whole: &Quarantine,
        part: &Part,
    ) -> Result<Option<BufReader<tokio::fs::File>>, Refused> {
        let came = &whole.came;
        if came.pack.is_none() {
            return Ok(None);
        }
        let mut command = git::command(self.pool);
        command
            .env("GIT_OBJECT_DIRECTORY", &came.directory)
            .args([
                "pack-objects",
                "--revs",
                "--stdout",
                "-q",
                "--delta-base-offset",
            ])
            // Deltas that came are used; no others are looked for.
            .args(["--window=0", "--threads=1"]);
        let place = self.places.take_for(self.client).await;
        let (mut running, pipes) = git::spawn(command, place)?;
        let feed = async {
            let mut stdin = BufWriter::new(pipes.stdin);
            let wanted = part.tips.iter().map(|tip| format!("{tip}\n"));
            for line in wanted.chain(part.known.iter().map(|tip| format!("^{tip}\n"))) {
                // A git that stops listening says why.
                if stdin.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
            let _ = stdin.flush().await;
        };
        let unnamed = tempfile::tempfile_in(&came.directory)?;
        let mut file = tokio::fs::File::from_std(unnamed);
        let mut stdout = pipes.stdout;
        let ((), copied, said) = tokio::join!(
            feed,
            tokio::io::copy(&mut stdout, &mut file),
            git::drain_stderr(pipes.stderr, |_| {})
        );
        copied?;
        if !running.wait().await? {
            return Err(refusal(&said, &mut running));
        }
        file.rewind().await?;
        Ok(Some(BufReader::with_capacity(64 * 1024, file)))
    }

    async fn receive_pack(
        &self,
        body: &mut (impl AsyncBufRead + Unpin),
        progress: Option<&mpsc::Sender<Bytes>>,
        check: Check,
    ) -> Result<Quarantine, Refused> {
        let mut head = Vec::new();
        while head.len() < 12 {
            let bytes = body.fill_buf().await.map_err(Refused::Broken)?;
            if bytes.is_empty() {
                return Err(Refused::Pack("the pack is missing or cut short".to_owned()));
            }
            let count = bytes.len().min(12 - head.len());
            head.extend_from_slice(&bytes[..count]);
            body.consume(count);
        }
        if head[..4] != *b"PACK" {
            return Err(Refused::Pack("this is not a pack".to_owned()));
        }
        let quarantine = self.open()?;
        if head[8..] == [0; 4] {
            drain(body, EMPTY_PACK as u64).await;
            return Ok(quarantine);
        }
        self.index(quarantine, &head, body, progress, check).await
    }

    /// A quarantine for an upload without a pack.
    pub fn open(&self) -> Result<Quarantine, Error> {
        let directory = self
            .pool
            .join(QUARANTINE)
            .join(format!("{:032x}", rand::random::<u128>()));
        fs::create_dir(&directory)?;
        let quarantine = Quarantine {
            came: Came {
                directory,
                pack: None,
                objects: 0,
                is_self_contained: false,
            },
        };
        let directory = &quarantine.came.directory;
        fs::create_dir(directory.join("pack"))?;
        fs::create_dir(directory.join("info"))?;
        let mut alternates = "../../objects\n".to_owned();
        if let Some((from, packs)) = self.own
            && !packs.is_empty()
        {
            let own = directory.join(OWN).join("pack");
            fs::create_dir_all(&own)?;
            for pack in packs {
                match pool::link_pack(from, &own, pack) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    result => result?,
                }
            }
            alternates.push_str(OWN);
            alternates.push('\n');
        }
        fs::write(directory.join("info/alternates"), alternates)?;
        Ok(quarantine)
    }

    async fn index(
        &self,
        mut quarantine: Quarantine,
        head: &[u8],
        body: &mut (impl AsyncBufRead + Unpin),
        progress: Option<&mpsc::Sender<Bytes>>,
        check: Check,
    ) -> Result<Quarantine, Refused> {
        let mut command = git::command(self.pool);
        command
            .env("GIT_OBJECT_DIRECTORY", &quarantine.came.directory)
            .args(["index-pack", "--stdin", "--fix-thin", "--threads=2"])
            .arg(format!("--max-input-size={}", self.max_bytes));
        if check == Check::All {
            command.arg(format!("--strict={LET_PASS}"));
            // Its exit code says then whether an object leads out of the pack.
            command.arg("--check-self-contained-and-connected");
        }
        if progress.is_some() {
            command.arg("--show-resolving-progress");
        }
        let mut scanner = PackScanner::new(self.limits.pack);
        scanner.scan(head)?;
        let place = self.places.take_for(self.client).await;
        let (mut running, mut pipes) = git::spawn(command, place)?;

        let feed = self.feed(pipes.stdin, head, scanner, body);
        let said = git::drain_stderr(pipes.stderr, |piece| {
            if let Some(progress) = progress {
                // A sender that does not read misses some progress; that is all.
                let _ = progress.try_send(Bytes::copy_from_slice(piece));
            }
        });
        let answer = async {
            let mut answer = String::new();
            // `pack\t<40 hex>\n`, never more.
            let _ = (&mut pipes.stdout)
                .take(64)
                .read_to_string(&mut answer)
                .await;
            answer
        };
        let told = async { tokio::join!(said, answer) };
        tokio::pin!(told);
        let mut _large = None;
        let (said, answer) = tokio::select! {
            // It has ended, whatever still comes.
            told = &mut told => told,
            // On an error the child is killed as `running` drops.
            fed = feed => {
                _large = fed?;
                // The end of the upload, too, is read meanwhile: its sender is shown nothing before that.
                tokio::select! {
                    told = &mut told => told,
                    () = drain(body, BEHIND) => told.await,
                }
            }
        };

        let code = running.wait_for_code().await?;
        let leads_out = check == Check::All && code == Some(LEADS_OUT);
        if code != Some(0) && !leads_out {
            return Err(refusal(&said, &mut running));
        }
        let name = answer
            .split_once('\t')
            .map(|(_, hash)| format!("pack-{}", hash.trim()))
            .filter(|name| name.len() == 45)
            .ok_or_else(|| Refused::Pack("git did not say which pack this is".to_owned()))?;
        let came = &mut quarantine.came;
        came.pack = Some(name);
        came.objects = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        came.is_self_contained = check == Check::All && !leads_out;
        Ok(quarantine)
    }

    /// Hands a pack on to git, each piece once the scanner has let it pass: while git takes one, the next is
    /// scanned. Gives back the place that a pack with large objects needs while git works on it: git has them
    /// all in memory only after the pack's last byte, which waits for the place.
    async fn feed(
        &self,
        mut git: impl AsyncWrite + Unpin,
        head: &[u8],
        mut scanner: PackScanner,
        body: &mut (impl AsyncBufRead + Unpin),
    ) -> Result<Option<Place>, Refused> {
        let mut passed = Bytes::copy_from_slice(head);
        loop {
            self.disk.check()?;
            let scanned = async {
                let bytes = body.fill_buf().await.map_err(Refused::Broken)?;
                let piece = Bytes::copy_from_slice(&bytes[..bytes.len().min(PIECE)]);
                body.consume(piece.len());
                let work = move || {
                    let result = scanner.scan(&piece);
                    (scanner, piece, result)
                };
                let (scanner, piece, result) = tokio::task::spawn_blocking(work)
                    .await
                    .map_err(std::io::Error::other)?;
                result?;
                Ok::<_, Refused>((scanner, piece))
            };
            let (written, scanned) = tokio::join!(git.write_all(&passed), scanned);
            let piece;
            (scanner, piece) = scanned?;
            // A git that stops listening says why.
            if written.is_err() || piece.is_empty() {
                return Ok(None);
            }
            if scanner.is_done() {
                let large = match scanner.largest_in_memory() >= LARGE_OBJECT {
                    true => Some(self.limits.large.take_soon(self.client).await?),
                    false => None,
                };
                let _ = git.write_all(&piece).await;
                return Ok(large);
            }
            passed = piece;
        }
    }
}

/// How much may stand behind a pack, where nothing should, and is read while git works on the pack. Bytes.
const BEHIND: u64 = 64 * 1024;

/// How much of a pack is scanned at once.
const PIECE: usize = 128 * 1024;

/// What a git that was at work on a pack complains of.
fn refusal(said: &str, git: &mut git::Running) -> Refused {
    let reason = git::last_line(said).to_owned();
    if git::ran_out_of_room(said) {
        Refused::Ours(git::RunError::Failed(reason).into())
    } else if git::ran_out_of_memory(said) {
        let reason = "the pack needs more memory than one process may take here";
        Refused::Pack(reason.to_owned())
    } else if git.ran_out_of_time() {
        let reason = "the pack takes more time to check than one process may take here";
        Refused::Pack(reason.to_owned())
    } else if LACKING.iter().any(|words| reason.contains(words)) {
        // Not which one, nor what it is: git would say so as well of what is there and shown to nobody.
        Refused::Pack(LACKS.to_owned())
    } else {
        Refused::Pack(git::without_places(&reason))
    }
}

/// The exit code of an `index-pack` that has put a pack together that leads to objects outside of it.
const LEADS_OUT: i32 = 1;

/// What git says of packs that lead to what is not there, or is not what they say.
const LACKING: [&str; 3] = [
    "did not receive expected object",
    "unresolved delta",
    ": expected type ",
];

impl Quarantine {
    /// The pack that came, if any did.
    pub fn pack(&self) -> Option<&str> {
        self.came.pack()
    }

    /// What lies here, for as long as this lives.
    pub fn look(&self) -> Came {
        self.came.clone()
    }

    /// How large the pack is.
    pub fn bytes(&self) -> Result<u64, Error> {
        let Some(name) = &self.came.pack else {
            return Ok(0);
        };
        let file = self.came.directory.join(format!("pack/{name}.pack"));
        Ok(fs::metadata(file)?.len())
    }

    /// Checks that every tip is here, in the packs this may lean on, or in `repository` (a pool, or a
    /// view whose staged objects count), and that what must be a commit is one. Blocks.
    pub fn check_tips(&self, repository: &Path, tips: &[(Oid, bool)]) -> Result<(), Refused> {
        let repo = refs::open(repository)?;
        let odb = repo.odb().map_err(Error::from)?;
        let directory = &self.came.directory;
        for directory in [directory.clone(), directory.join(OWN)] {
            if let Some(directory) = directory.to_str().filter(|_| directory.is_dir()) {
                odb.add_disk_alternate(directory).map_err(Error::from)?;
            }
        }
        for (tip, must_be_commit) in tips {
            let id = refs::to_git2(*tip);
            if !odb.exists_ext(id, OdbLookupFlags::NO_REFRESH) {
                let reason = format!("object {tip} is neither in the pack nor here");
                return Err(Refused::Pack(reason));
            }
            let (_, kind) = odb.read_header(id).map_err(Error::from)?;
            if *must_be_commit && kind != ObjectType::Commit {
                return Err(Refused::Pack(format!("object {tip} is not a commit")));
            }
        }
        Ok(())
    }

    /// Moves the pack into a pool, its index last. Under the identifier's lock. Blocks.
    pub fn publish(self, pool: &Path) -> Result<(), Error> {
        if let Some(name) = &self.came.pack {
            pool::add_pack(pool, &self.came.directory.join("pack"), name)?;
        }
        Ok(())
    }

    /// Moves the pack to what is staged in a view, its index last. Blocks.
    pub fn stage(self, view: &Path) -> Result<(), Error> {
        if let Some(name) = &self.came.pack {
            let from = self.came.directory.join("pack");
            pool::link_pack(&from, &view.join("objects/pack"), name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_idle_upload_is_ended_and_a_slow_one_is_not() {
        let (mut sender, receiver) = tokio::io::duplex(64);
        let mut body = tokio::io::BufReader::new(receiver);
        for _ in 0..100 {
            tokio::time::sleep(IDLE / 2).await;
            sender.write_all(b"x").await.unwrap();
            assert_eq!(piece(&mut body).await.unwrap(), b"x");
            body.consume(1);
        }
        let ended = piece(&mut body).await.unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::TimedOut);
    }
}
