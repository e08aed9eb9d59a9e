//! From the pool of one identifier into that of another: a pull request may be offered to both.
//!
//! What goes over is packed by git and comes in like a pack from elsewhere, through the one intake. No
//! ref moves.

use std::{collections::BTreeSet, sync::Arc};

use grasp_proto::words::{Identifier, Oid};
use tokio::io::{AsyncWriteExt, BufReader};

use super::{
    Error, Repositories,
    fetched::NotStored,
    git,
    intake::{Intake, Refused},
    kind_of,
    places::Places,
    refs,
};

/// What a copy needs of the process.
#[derive(Debug)]
pub struct Copier {
    /// Room for those who pack, one of which waits for the intake of what it packs.
    pub packing: Places,
    /// Room for those who take in.
    pub taking_in: Places,
    /// The largest pack.
    pub max_pack_bytes: u64,
}

impl From<NotStored> for Error {
    fn from(error: NotStored) -> Self {
        match error {
            NotStored::Gone => Self::NotFound,
            NotStored::Failed(error) => error,
            other => Self::Precondition(other.to_string()),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Ours(error) => error,
            other => Self::Precondition(other.to_string()),
        }
    }
}

impl Repositories {
    /// Brings a commit of the pool of `from`, with all it leads to, into that of `to`; gives how large
    /// the pack was. Dropped, it stops.
    pub async fn copy(
        self: &Arc<Self>,
        copier: &Copier,
        from: Identifier,
        to: Identifier,
        commit: Oid,
    ) -> Result<u64, Error> {
        let has = async |identifier: Identifier| {
            let found = self
                .missing(&identifier, Vec::new(), vec![commit], None)
                .await?;
            Ok::<_, Error>(found.missing.is_empty() && found.not_commits.is_empty())
        };
        if has(to.clone()).await? {
            return Ok(0);
        }
        if !has(from.clone()).await? {
            let reason = format!("not here: commit {commit}");
            return Err(Error::Precondition(reason));
        }
        // While these live, the pools stay.
        let source = self.begin_arrival(from).await?;
        let target = self.begin_arrival(to.clone()).await?;
        let (place, name) = (source.pool.clone(), to.clone());
        let known = self.blocking(move |this| this.tips_in(&name, &place));
        let known = known.await?;

        let mut command = git::command(&source.pool);
        command.args(["pack-objects", "--revs", "--stdout", "-q"]);
        let (mut running, pipes) = git::spawn(command, copier.packing.take().await)?;
        running.be_nice();
        let known = known.into_iter().map(|tip| format!("^{tip}\n"));
        let asked: String = [format!("{commit}\n")].into_iter().chain(known).collect();
        let feed = async {
            let mut stdin = pipes.stdin;
            // A git that stops listening says why.
            let _ = stdin.write_all(asked.as_bytes()).await;
        };
        let intake = Intake {
            pool: &target.pool,
            own: None,
            max_bytes: copier.max_pack_bytes,
            limits: &self.intake,
            places: &copier.taking_in,
            client: None,
            disk: &self.disk,
            part: None,
        };
        let mut pack = BufReader::new(pipes.stdout);
        let told = async {
            let ((), said) = tokio::join!(feed, git::drain_stderr(pipes.stderr, |_| {}));
            Ok::<_, Refused>(said)
        };
        // A refusal ends it: what is packed then, nobody reads.
        let (said, quarantine) = tokio::try_join!(told, intake.receive(&mut pack, None))?;
        if !running.wait().await? {
            return Err(git::RunError::Failed(git::last_line(&said).to_owned()).into());
        }
        let whole = self.brought_whole(&target, &quarantine, &[commit]).await?;
        let stored =
            self.blocking(move |this| Ok(this.store(&target, quarantine, &whole, || true)?));
        stored.await
    }

    /// Where refs of an identifier's views point that another pool has as well, so many at most: what
    /// these lead to need not be brought. Blocks.
    fn tips_in(
        &self,
        identifier: &Identifier,
        pool: &std::path::Path,
    ) -> Result<BTreeSet<Oid>, Error> {
        const TIPS: usize = 4096;
        let other = refs::open(pool)?;
        let odb = other.odb()?;
        let mut tips = BTreeSet::new();
        for tip in self.public_tips(identifier)?.iter() {
            if tips.len() < TIPS && kind_of(&odb, *tip)?.is_some() {
                tips.insert(*tip);
            }
        }
        Ok(tips)
    }
}
