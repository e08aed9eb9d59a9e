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
use grasp_proto::words::Oid;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

use super::{Error, git, layout::QUARANTINE, places::Places, pool, refs, sync_directory};

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
            Self::Ours(_) => "ours",
        }
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

/// What is shown to the sender while a pack is taken in.
#[derive(Debug)]
pub enum Progress {
    /// A piece of what git says about it.
    Said(Bytes),
    /// The pack has all come; git is still at work.
    Working,
}

/// Where to take a pack in, and how.
#[derive(Debug)]
pub struct Intake<'a> {
    /// The pool it is checked against.
    pub pool: &'a Path,
    /// Packs outside the pool it may lean on as well: directory and names.
    pub own: Option<(&'a Path, &'a [String])>,
    /// The largest pack.
    pub max_bytes: u64,
    /// Room for processes.
    pub places: &'a Places,
    /// Whose pack it is.
    pub client: Option<IpAddr>,
}

/// A pack that is in and checked, but not seen by anybody yet.
#[derive(Debug)]
pub struct Quarantine {
    directory: PathBuf,
    pack: Option<String>,
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %self.directory.display(), %error, "a quarantine stays");
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
    /// pack's own, it may not have been read to its end.
    pub async fn receive(
        &self,
        body: &mut (impl AsyncBufRead + Unpin),
        progress: Option<&mpsc::Sender<Progress>>,
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
        self.index(quarantine, &head, body, progress).await
    }

    /// A quarantine for an upload without a pack.
    pub fn open(&self) -> Result<Quarantine, Error> {
        let directory = self
            .pool
            .join(QUARANTINE)
            .join(format!("{:032x}", rand::random::<u128>()));
        fs::create_dir(&directory)?;
        let quarantine = Quarantine {
            directory,
            pack: None,
        };
        let directory = &quarantine.directory;
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
        progress: Option<&mpsc::Sender<Progress>>,
    ) -> Result<Quarantine, Refused> {
        let mut command = git::command(self.pool);
        command
            .env("GIT_OBJECT_DIRECTORY", &quarantine.directory)
            .args(["index-pack", "--stdin", "--fix-thin", "--threads=2"])
            .arg(format!("--strict={LET_PASS}"))
            .arg(format!("--max-input-size={}", self.max_bytes));
        if progress.is_some() {
            command.arg("--show-resolving-progress");
        }
        let place = self.places.take_for(self.client).await;
        let (mut running, mut pipes) = git::spawn(command, place)?;

        let feed = async {
            let mut stdin = pipes.stdin;
            let mut listening = stdin.write_all(head).await.is_ok();
            while listening {
                let bytes = body.fill_buf().await?;
                let count = bytes.len();
                if count == 0 {
                    break;
                }
                listening = stdin.write_all(bytes).await.is_ok();
                body.consume(count);
            }
            drop(stdin);
            if let Some(progress) = progress {
                let _ = progress.send(Progress::Working).await;
            }
            Ok::<_, std::io::Error>(())
        };
        let said = git::drain_stderr(pipes.stderr, |piece| {
            if let Some(progress) = progress {
                // A sender that does not read misses some progress; that is all.
                let _ = progress.try_send(Progress::Said(Bytes::copy_from_slice(piece)));
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
        let (said, answer) = tokio::select! {
            // It has ended, whatever still comes.
            told = &mut told => told,
            // On an error the child is killed as `running` drops.
            fed = feed => {
                fed.map_err(Refused::Broken)?;
                told.await
            }
        };

        if !running.wait().await? {
            let reason = git::last_line(&said).to_owned();
            return Err(match git::ran_out_of_room(&said) {
                true => Refused::Ours(git::RunError::Failed(reason).into()),
                false => Refused::Pack(git::without_places(&reason)),
            });
        }
        let name = answer
            .split_once('\t')
            .map(|(_, hash)| format!("pack-{}", hash.trim()))
            .filter(|name| name.len() == 45)
            .ok_or_else(|| Refused::Pack("git did not say which pack this is".to_owned()))?;
        quarantine.pack = Some(name);
        Ok(quarantine)
    }
}

impl Quarantine {
    /// The pack that came, if any did.
    pub fn pack(&self) -> Option<&str> {
        self.pack.as_deref()
    }

    /// How large the pack is.
    pub fn bytes(&self) -> Result<u64, Error> {
        let Some(name) = &self.pack else { return Ok(0) };
        let file = self.directory.join(format!("pack/{name}.pack"));
        Ok(fs::metadata(file)?.len())
    }

    /// Whether the pack has one of these objects. Blocks.
    pub fn has_any(&self, oids: &[Oid]) -> Result<bool, Error> {
        let Some(name) = &self.pack else {
            return Ok(false);
        };
        let directory = self.directory.join("pack");
        for oid in oids {
            if pool::pack_has(&directory, name, *oid)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Checks that every tip is here, in the packs this may lean on, or in `repository` (a pool, or a
    /// view whose staged objects count), and that what must be a commit is one. Blocks.
    pub fn check_tips(&self, repository: &Path, tips: &[(Oid, bool)]) -> Result<(), Refused> {
        let repo = refs::open(repository)?;
        let odb = repo.odb().map_err(Error::from)?;
        for directory in [self.directory.clone(), self.directory.join(OWN)] {
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

    /// Moves the pack to where it is seen, its index last. Blocks.
    pub fn publish(self, objects: &Path) -> Result<(), Error> {
        if let Some(name) = &self.pack {
            let from = self.directory.join("pack");
            let to = objects.join("pack");
            pool::link_pack(&from, &to, name)?;
            sync_directory(&to)?;
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
