//! Pushers: gitd speaks receive-pack's side of the protocol itself.
//!
//! Commands (bounded) → `Push.Authorize` → the pack, chunk by chunk, into the intake →
//! `Push.Commit` → the report the git user reads. No ref moves here: the relay's commit moves them
//! through our own gRPC service. From the commands on, a push runs in a task of its own: a client
//! that goes away before its pack is in ends it without a trace, one that goes away later changes
//! nothing.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use grasp_proto::{
    contract::Command,
    transport::Trace,
    words::{Address, EventId, Oid, RefKind},
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::info_span;

use super::{
    Answer, Server,
    body::Upload,
    commands::Request,
    metered::{Counted, Metered},
    pace::{Pace, Share},
    pkt_line::{self, Band},
    stream::{self, Maker},
};
use crate::{
    meters,
    relay::{Belongs, Decision, Push},
    repository::{
        Error,
        change::{self, Destination},
        intake::{IDLE, Intake, Progress, Refused},
        locks,
        unsigned::Reservation,
    },
};

/// How often the relay is told that an upload still moves.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How often a waiting client is shown that we live (as git's `receive.keepAlive`).
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// How long the commands of a push may take to come.
const COMMANDS: Duration = Duration::from_secs(60);

/// The longest reason that is told.
const MOST_REASON: usize = 1000;

/// What the client is told at the end.
struct Report {
    unpacked: Result<(), String>,
    results: Vec<Option<String>>,
}

/// A reason on one line and of bounded length.
fn one_line(reason: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    reason.chars().map(clean).take(MOST_REASON).collect()
}

impl Report {
    fn refused(lines: usize, reason: &str) -> Self {
        Self {
            unpacked: Ok(()),
            results: vec![Some(reason.to_owned()); lines],
        }
    }

    fn not_unpacked(lines: usize, reason: &str) -> Self {
        Self {
            unpacked: Err(reason.to_owned()),
            ..Self::refused(lines, reason)
        }
    }

    fn done(&self) -> bool {
        self.unpacked.is_ok() && self.results.iter().all(Option::is_none)
    }

    fn write(&self, request: &Request) -> Bytes {
        let mut report = BytesMut::new();
        if request.report {
            let unpack = match &self.unpacked {
                Ok(()) => "unpack ok\n".to_owned(),
                Err(reason) => format!("unpack {}\n", one_line(reason)),
            };
            pkt_line::put(&mut report, unpack.as_bytes());
            for (line, result) in request.lines.iter().zip(&self.results) {
                let text = match result {
                    None => format!("ok {}\n", line.name),
                    Some(reason) => format!("ng {} {}\n", line.name, one_line(reason)),
                };
                pkt_line::put(&mut report, text.as_bytes());
            }
            report.extend_from_slice(pkt_line::FLUSH);
        }
        if !request.sideband {
            return report.freeze();
        }
        let mut out = BytesMut::with_capacity(report.len() + 64);
        pkt_line::put_band(&mut out, Band::Data, &report);
        out.extend_from_slice(pkt_line::FLUSH);
        out.freeze()
    }
}

/// Answers one push.
pub async fn answer(
    server: Arc<Server>,
    address: Address,
    client: Option<IpAddr>,
    body: Upload,
    length: Option<u64>,
) -> Answer {
    let incarnation = {
        let address = address.clone();
        let found = server
            .repositories
            .blocking(move |r| r.incarnation(&address));
        found.await
    };
    let incarnation = match incarnation {
        Ok(incarnation) => incarnation,
        // It is made once the push is granted.
        Err(Error::NotFound) if address.is_prs() => String::new(),
        Err(error) => return Answer::from_error(&error),
    };
    let bytes = Arc::new(AtomicU64::new(0));
    let mut body = Counted {
        inner: body,
        bytes: Arc::clone(&bytes),
    };
    let mut share = server.commands.share();
    let request = timeout(COMMANDS, Request::read(&mut body, &mut share)).await;
    let request = match request.unwrap_or_else(|_| Err("the commands came too slowly".to_owned())) {
        Ok(request) => request,
        Err(reason) => {
            let line = pkt_line::line(format!("ERR {reason}\n"));
            let most = server.max_pack_bytes;
            let work = async move { body.inner.drain(most).await };
            super::spawn(&server.tasks, work);
            return Answer::Whole(line);
        }
    };
    if request.lines.is_empty() {
        return Answer::Whole(Bytes::new());
    }
    let (maker, pieces) = stream::answer(16);
    let tasks = server.tasks.clone();
    let pusher = Pusher {
        server,
        address,
        incarnation,
        length: length.map(|length| length.saturating_sub(bytes.load(Ordering::Relaxed))),
        request,
        client,
        _share: share,
        sender: maker.pieces().clone(),
        bytes,
    };
    super::spawn(&tasks, pusher.serve(body, maker));
    Answer::Stream(pieces)
}

struct Pusher {
    server: Arc<Server>,
    address: Address,
    incarnation: String,
    /// How long the pack is, if that was said.
    length: Option<u64>,
    request: Request,
    client: Option<IpAddr>,
    _share: Share,
    sender: mpsc::Sender<Bytes>,
    bytes: Arc<AtomicU64>,
}

impl Pusher {
    async fn serve(self, mut body: Counted, maker: Maker) {
        let begun = Instant::now();
        let running = meters::operation("push");
        let report = tokio::select! {
            report = self.push(&mut body) => report,
            () = self.server.kill.cancelled() => {
                let reason = "the server is going down, push again in a moment";
                Report::refused(self.request.lines.len(), reason)
            }
        };
        drop(running);
        self.leave_nothing_empty().await;
        let bytes = self.bytes.load(Ordering::Relaxed);
        metrics::counter!("ngit_git_bytes_total", "direction" => "in").increment(bytes);
        if report.done() {
            self.server.busiest.moved(&self.address, bytes);
        }
        let outcome = if report.done() { "ok" } else { "refused" };
        metrics::counter!("ngit_git_pushes_total", "outcome" => outcome).increment(1);
        meters::took("push", outcome, begun);
        let reason = match &report.unpacked {
            Err(reason) => Some(reason),
            Ok(()) => report.results.iter().flatten().next(),
        };
        tracing::info!(
            repo = %self.address,
            commands = self.request.lines.len(),
            outcome,
            reason,
            bytes,
            time = ?begun.elapsed(),
            "push"
        );
        let answer = report.write(&self.request);
        if timeout(IDLE, self.sender.send(answer)).await.is_err() {
            return;
        }
        // The answer stays open until all was sent: a client that is still sending reads it then.
        tokio::select! {
            () = body.inner.drain(self.server.max_pack_bytes) => {}
            () = self.server.kill.cancelled() => {}
        }
        maker.finish();
    }

    async fn push(&self, body: &mut Counted) -> Report {
        let count = self.request.lines.len();
        let commands = match self.request.commands() {
            Ok(commands) => commands,
            Err(results) => {
                let unpacked = Ok(());
                return Report { unpacked, results };
            }
        };
        let mut push = Push {
            address: self.address.clone(),
            incarnation: self.incarnation.clone(),
            commands,
        };
        let decision = self.awaiting(self.server.relay.authorize(&push)).await;
        let (push_id, objects) = match decision {
            Ok(Decision::Granted { push_id, objects }) => (push_id, objects),
            Ok(Decision::Refused(reason)) => return Report::refused(count, &reason),
            Err(error) => {
                tracing::warn!(%error, "the relay was not asked about a push");
                return Report::refused(count, "the relay cannot be reached, try again");
            }
        };
        // Only what is allowed keeps the repository from being deleted.
        let upload = match self.begin().await {
            Ok(upload) => upload,
            Err(reason) => return Report::refused(count, &reason),
        };
        push.incarnation.clone_from(&upload.incarnation);
        let staged: Vec<EventId> = match objects {
            Belongs::Staged => events(&push.commands),
            Belongs::Pool | Belongs::Nowhere => Vec::new(),
        };
        let taken = self.take_in(body, &upload, &push, &push_id, objects, &staged);
        if let Err(error) = Trace::within(info_span!("intake"), taken).await {
            meters::pack_refused(error.reason());
            if let Refused::Ours(error) = &error {
                tracing::error!(repo = %self.address, %error, "a pack could not be taken in");
            }
            self.drop_refused(&upload, &staged).await;
            return Report::not_unpacked(count, &error.to_string());
        }
        let committed = self
            .awaiting(self.server.relay.commit(&push_id, &push))
            .await;
        let results = match committed {
            Ok(results) => self.all_or_none(results),
            Err(error) => {
                tracing::warn!(%error, "the relay did not commit a push");
                vec![Some("the relay went away, push again".to_owned()); count]
            }
        };
        if results.iter().any(Option::is_some) {
            self.drop_refused(&upload, &staged).await;
        }
        Report {
            unpacked: Ok(()),
            results,
        }
    }

    /// Begins the upload that the relay allowed; an error is for the git user.
    async fn begin(&self) -> Result<Arc<locks::Upload>, String> {
        let address = self.address.clone();
        let begin = self
            .server
            .repositories
            .blocking(move |r| r.begin_upload(&address));
        // One that comes and goes with its refs was judged by those it has.
        let as_judged = |upload: &locks::Upload| {
            self.address.is_prs() || upload.incarnation == self.incarnation
        };
        match begin.await {
            Ok(upload) if as_judged(&upload) => Ok(Arc::new(upload)),
            Ok(_) => Err("the repository was made anew meanwhile, push again".to_owned()),
            Err(error @ Error::NotFound) => Err(error.to_string()),
            Err(error) => {
                tracing::error!(repo = %self.address, %error, "an upload could not begin");
                Err("the server could not take the push".to_owned())
            }
        }
    }

    fn all_or_none(&self, results: Vec<Option<String>>) -> Vec<Option<String>> {
        if !self.request.atomic || results.iter().all(Option::is_none) {
            return results;
        }
        let atomic = || "another command of this atomic push was refused".to_owned();
        results
            .into_iter()
            .map(|result| Some(result.unwrap_or_else(atomic)))
            .collect()
    }

    /// The placeholders of what was refused go, with their objects.
    async fn drop_refused(&self, upload: &Arc<locks::Upload>, staged: &[EventId]) {
        if staged.is_empty() {
            return;
        }
        let (upload, staged) = (Arc::clone(upload), staged.to_owned());
        let dropped = self
            .server
            .repositories
            .blocking(move |r| r.drop_refused(&upload, &staged));
        if let Err(error) = dropped.await {
            tracing::warn!(repo = %self.address, %error, "staged objects stay");
        }
    }

    /// An address below `/prs/` that got no ref has no repository.
    async fn leave_nothing_empty(&self) {
        if !self.address.is_prs() {
            return;
        }
        let address = self.address.clone();
        let removed = self
            .server
            .repositories
            .blocking(move |r| r.remove_if_empty(&address));
        if let Err(error) = removed.await {
            tracing::warn!(repo = %self.address, %error, "an empty repository stays");
        }
    }

    /// Room for what nobody has signed for yet, as far as is known before it comes.
    fn reserve(&self, staged: &[EventId]) -> Result<Reservation, Refused> {
        let unsigned = &self.server.repositories.unsigned;
        let payer = unsigned.payer(self.client);
        let bytes = self.length.unwrap_or_default();
        Ok(unsigned.reserve(payer, change::charge(staged, bytes))?)
    }

    /// Takes in what the push carries.
    async fn take_in(
        &self,
        body: &mut Counted,
        upload: &Arc<locks::Upload>,
        push: &Push,
        push_id: &str,
        objects: Belongs,
        staged: &[EventId],
    ) -> Result<(), Refused> {
        let tips = tips(&push.commands);
        if tips.is_empty() {
            return Ok(());
        }
        if objects == Belongs::Nowhere {
            body.inner.drain(self.server.max_pack_bytes).await;
            return Ok(());
        }
        let (max_bytes, mut reservation, places) = match objects {
            // What no placeholder has would be nobody's.
            Belongs::Staged if staged.is_empty() => {
                return Err(Refused::Pack("this push cannot be staged".to_owned()));
            }
            Belongs::Staged => {
                body.inner.keep(Pace::STAGED);
                let most = self.server.max_staged_pack_bytes;
                (most, Some(self.reserve(staged)?), &self.server.stagers)
            }
            Belongs::Pool | Belongs::Nowhere => {
                body.inner.keep(Pace::WANTED);
                let most = self.server.max_pack_bytes;
                (most, None, &self.server.writers)
            }
        };
        let repositories = &self.server.repositories;
        let (into, events) = (Arc::clone(upload), staged.to_owned());
        let prepared = repositories.blocking(move |r| {
            let pool = r.pool_for(&into)?;
            let (view, own) = r.staged_packs(&into, &events)?;
            let room = match events.is_empty() {
                true => Ok(max_bytes),
                false => r.room_for(&into, &events, max_bytes),
            };
            Ok((room, pool, view, own))
        });
        let (room, pool, view, own) = prepared.await?;
        let max_bytes = room?;
        let intake = Intake {
            pool: &pool,
            own: Some((&view, &own)),
            max_bytes,
            places,
            client: self.client,
        };
        let quarantine = {
            let (progress, shown) = mpsc::channel(16);
            let progress = Some(progress).filter(|_| self.request.sideband);
            let quiet = self.request.quiet;
            let receive = async {
                let visible = progress;
                let Some(reservation) = &mut reservation else {
                    return intake.receive(body, visible.as_ref()).await;
                };
                let mut body = Metered {
                    inner: body,
                    reservation,
                    taken: change::charge(staged, 0),
                    over: None,
                };
                let received = intake.receive(&mut body, visible.as_ref()).await;
                match body.over {
                    Some(over) => Err(over.into()),
                    None => received,
                }
            };
            let work = async { tokio::join!(receive, self.show(shown, quiet)).0 };
            tokio::select! {
                quarantine = work => quarantine?,
                () = self.keep_alive(push_id) => unreachable!("it goes on for ever"),
            }
        };
        let destination = match reservation {
            None => Destination::Pool,
            Some(reservation) => Destination::Staged {
                events: staged.to_owned(),
                most: self.server.max_staged_pack_bytes,
                reservation,
            },
        };
        let (upload, pool) = (Arc::clone(upload), pool.clone());
        let work = tokio::task::spawn_blocking({
            let repositories = Arc::clone(repositories);
            move || repositories.take_in(&upload, &pool, quarantine, destination, &tips, &own)
        });
        match self.awaiting(work).await {
            Ok(result) => result,
            Err(error) => Err(std::io::Error::other(error).into()),
        }
    }

    /// Tells the relay that the upload moves, for as long as it does.
    async fn keep_alive(&self, push_id: &str) {
        let mut seen = 0;
        loop {
            sleep(KEEP_ALIVE).await;
            let now = self.bytes.load(Ordering::Relaxed);
            if now != seen {
                seen = now;
                self.server.relay.keep_alive(push_id).await;
            }
        }
    }

    /// Shows the client's user what git says about the pack.
    async fn show(&self, mut shown: mpsc::Receiver<Progress>, quiet: bool) {
        let mut working = false;
        loop {
            let piece = tokio::select! {
                piece = shown.recv() => piece,
                () = sleep(SIGN_OF_LIFE), if working => {
                    self.sign_of_life();
                    continue;
                }
            };
            match piece {
                None => return,
                Some(Progress::Working) => working = true,
                Some(Progress::Said(_)) if quiet => {}
                Some(Progress::Said(text)) => {
                    let mut out = BytesMut::with_capacity(text.len() + 8);
                    pkt_line::put_band(&mut out, Band::Progress, &text);
                    // A client that does not read misses some progress; that is all.
                    let _ = self.sender.try_send(out.freeze());
                }
            }
        }
    }

    /// Waits for `work`, showing the client now and then that we live.
    async fn awaiting<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = sleep(SIGN_OF_LIFE) => self.sign_of_life(),
            }
        }
    }

    fn sign_of_life(&self) {
        if self.request.sideband {
            let _ = self
                .sender
                .try_send(Bytes::from_static(&[b'0', b'0', b'0', b'5', 1]));
        }
    }
}

/// The events whose refs are put.
fn events(commands: &[Command]) -> Vec<EventId> {
    let put = commands.iter().filter(|command| !command.new.is_zero());
    put.filter_map(|command| match command.name.kind() {
        RefKind::Nostr(event) => Some(event),
        _ => None,
    })
    .collect()
}

/// The objects that refs are moved to, each with whether it must be a commit.
fn tips(commands: &[Command]) -> Vec<(Oid, bool)> {
    let put = commands.iter().filter(|command| !command.new.is_zero());
    put.map(|command| {
        let commit = matches!(command.name.kind(), RefKind::Head | RefKind::Nostr(_));
        (command.new, commit)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smart_http::commands::Line;

    #[test]
    fn reasons_stay_on_their_line() {
        let report = Report::refused(1, "a\nng refs/heads/b c");
        let request = Request {
            lines: vec![
                Line::parse(format!("{0} {0} refs/heads/a", Oid::ZERO).as_bytes()).unwrap(),
            ],
            report: true,
            ..Request::default()
        };
        let text = String::from_utf8(report.write(&request).to_vec()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}
