//! Pushers: gitd speaks receive-pack's side of the protocol itself.
//!
//! Commands (bounded) → `Push.Authorize` → the pack, chunk by chunk, into the intake →
//! `Push.Commit` → the report the git user reads. No ref moves here: the relay's commit moves them
//! through our own gRPC service. From the commands on, a push runs in a task of its own: a client
//! that goes away before its pack is in ends it without a trace, one that goes away later changes
//! nothing.
//!
//! The answer begins when the request has ended (see [`unread`](super::unread)): progress comes after
//! the upload, and of a push that is refused the pack is read into nothing, as its user would not hear why
//! otherwise. Whatever a push waits for, its request is read on meanwhile as far as there is room
//! ([`read_ahead`](super::read_ahead)): from its last byte on its client is shown signs of life.

use std::{
    collections::HashSet,
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
    commands::{Line, Request},
    metered::{Counted, Metered},
    pace::{Pace, Share},
    pkt_line::{self, Band},
    read_ahead::ReadAhead,
    report::{Report, one_line},
    stream::{self, Maker},
    unread::BodyEnd,
};
use crate::{
    meters,
    relay::{Belongs, Decision, Push},
    repository::{
        Error,
        change::{self, Destination},
        intake::{IDLE, Intake, Part, Refused},
        locks,
        unsigned::Reservation,
    },
};

/// How often the relay is told that a push still runs.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How soon it is told again when it did not hear.
const KEEP_ALIVE_AGAIN: Duration = Duration::from_secs(5);

/// How often a waiting client is shown that we live (as git's `receive.keepAlive`).
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// How long the commands of a push may take to come.
const COMMANDS: Duration = Duration::from_secs(60);

/// How much of a push that is refused is read for its user's sake.
const MOST_REFUSED: u64 = 1 << 30;

/// The most refs of a push that its log line names.
const REFS_IN_LOG: usize = 8;

/// Answers one push.
pub async fn answer(
    server: Arc<Server>,
    address: Address,
    client: Option<IpAddr>,
    body: Upload,
    length: Option<u64>,
    end: &BodyEnd,
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
            return Answer::Whole(pkt_line::line(format!("ERR {reason}\n")));
        }
    };
    if request.lines.is_empty() {
        return Answer::Whole(Bytes::new());
    }
    let (maker, pieces) = stream::answer(16);
    let tasks = server.tasks.clone();
    let ahead = body.inner.read_ahead();
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
        ahead,
        end: end.clone(),
    };
    super::spawn(&tasks, pusher.serve(body, maker));
    Answer::Stream(pieces)
}

/// Reads the rest of a push that is refused, so that its user hears why.
async fn discard(server: &Server, body: &mut Upload) {
    body.keep(Pace::STAGED);
    tokio::select! {
        () = body.drain(server.max_pack_bytes.min(MOST_REFUSED)) => {}
        () = server.kill.cancelled() => {}
    }
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
    ahead: ReadAhead,
    /// Where the upload ends, and the answer begins.
    end: BodyEnd,
}

impl Pusher {
    async fn serve(self, mut body: Counted, maker: Maker) {
        let begun = Instant::now();
        let running = meters::operation("push");
        let report = tokio::select! {
            report = self.push(&mut body) => report,
            () = self.sign_of_life() => unreachable!("it goes on for ever"),
            () = self.server.kill.cancelled() => {
                let mut report = Report::on(&self.request);
                report.refuse("the server is going down, push again in a moment");
                report
            }
        };
        drop(running);
        self.leave_nothing_empty().await;
        let bytes = self.bytes.load(Ordering::Relaxed);
        metrics::counter!("ngit_git_bytes_total", "direction" => "in").increment(bytes);
        let outcome = report.outcome();
        if outcome != "refused" {
            self.server.busiest.moved(&self.address, bytes);
        }
        metrics::counter!("ngit_git_pushes_total", "outcome" => outcome).increment(1);
        meters::took("push", outcome, begun);
        self.log(&report, bytes, begun.elapsed());
        let answer = report.write(&self.request);
        // Where it was refused, its client may still be sending.
        discard(&self.server, &mut body.inner).await;
        drop(body);
        if timeout(IDLE, self.sender.send(answer)).await.is_err() {
            return;
        }
        maker.finish();
    }

    /// Says in one line what became of the push.
    fn log(&self, report: &Report, bytes: u64, duration: Duration) {
        let state = report.state().map(tracing::field::display);
        let reason = report.reason().map(|reason| one_line(reason));
        tracing::info!(
            repo = %self.address,
            refs = refs_for_log(&self.request.lines),
            refused = report.refused(),
            outcome = report.outcome(),
            reason,
            bytes,
            ?duration,
            state,
            "push"
        );
    }

    async fn push(&self, body: &mut Counted) -> Report {
        let mut report = Report::on(&self.request);
        let all = report.standing();
        if all.is_empty() {
            return report;
        }
        let mut push = self.asking(&all);
        // What only takes away makes room.
        if !tips(&push.commands).is_empty()
            && let Err(full) = self.server.repositories.disk.check()
        {
            meters::pack_refused("full");
            report.refuse(&full.to_string());
            return report;
        }
        let decision = self.server.relay.authorize(&push).await;
        let (push_id, objects) = match decision {
            Ok(Decision::Granted {
                push_id,
                objects,
                verdicts,
            }) => {
                report.settle(&all, verdicts);
                (push_id, objects)
            }
            Ok(Decision::Refused(verdicts)) => {
                report.settle(&all, verdicts);
                return report;
            }
            Err(error) => {
                tracing::warn!(%error, "the relay was not asked about a push");
                report.refuse("the relay cannot be reached, try again");
                return report;
            }
        };
        let granted = report.standing();
        push.commands = self.asking(&granted).commands;
        // Only what is allowed keeps the repository from being deleted.
        let upload = match self.begin().await {
            Ok(upload) => upload,
            Err(reason) => {
                report.refuse(&reason);
                return report;
            }
        };
        push.incarnation.clone_from(&upload.incarnation);
        // From here on until it is committed: an upload that does not move is ended by the intake.
        tokio::select! {
            () = self.carry_out(body, &upload, &push, &push_id, objects, &mut report) => {}
            () = self.keep_alive(&push_id, &push) => unreachable!("it goes on for ever"),
        }
        report
    }

    /// Takes in what the commands of a push that are granted carry, and has them committed.
    async fn carry_out(
        &self,
        body: &mut Counted,
        upload: &Arc<locks::Upload>,
        push: &Push,
        push_id: &str,
        objects: Belongs,
        report: &mut Report,
    ) {
        let staged: Vec<EventId> = match objects {
            Belongs::Staged => events(&push.commands),
            Belongs::Pool | Belongs::Nowhere => Vec::new(),
        };
        let taken = self.take_in(body, upload, push, objects, &staged);
        if let Err(error) = Trace::within(info_span!("intake"), taken).await {
            meters::pack_refused(error.reason());
            if let Refused::Ours(error) = &error {
                tracing::error!(repo = %self.address, %error, "a pack could not be taken in");
            }
            self.drop_refused(upload, &staged).await;
            self.forget_brought(&push.commands).await;
            report.not_unpacked(&error.to_string());
            return;
        }
        match self.server.relay.commit(push_id, push).await {
            Ok(verdicts) => {
                report.settle(&report.standing(), verdicts);
                self.forget_brought(&push.commands).await;
            }
            Err(error) => {
                tracing::warn!(%error, "the relay did not commit a push");
                report.refuse("the relay went away, push again");
            }
        }
        if !report.is_done() {
            self.drop_refused(upload, &staged).await;
        }
    }

    /// What the relay is asked about the lines at these places.
    fn asking(&self, places: &[usize]) -> Push {
        let commands = places.iter().map(|at| &self.request.lines[*at].command);
        Push {
            address: self.address.clone(),
            incarnation: self.incarnation.clone(),
            commands: commands
                .filter_map(|command| command.clone().ok())
                .collect(),
            atomic: self.request.atomic,
        }
    }

    /// Whether the pack may bring what is only for refs that are refused. What it leads to is not asked
    /// for then, and must not come in.
    fn brings_more_than(&self, granted: &[Command]) -> bool {
        let names: HashSet<&str> = granted.iter().map(|c| c.name.as_str()).collect();
        let tips: HashSet<Oid> = granted.iter().map(|c| c.new).collect();
        let refused = self.request.lines.iter();
        let mut refused = refused.filter(|line| !names.contains(line.name.as_str()));
        refused.any(|line| match &line.command {
            Ok(command) => !command.new.is_zero() && !tips.contains(&command.new),
            Err(_) => true,
        })
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

    /// What was brought is shown by now, or refused.
    async fn forget_brought(&self, commands: &[Command]) {
        let (address, tips) = (self.address.clone(), tips(commands));
        if tips.is_empty() {
            return;
        }
        let repositories = &self.server.repositories;
        let forgotten = repositories.blocking(move |r| r.forget_pushed(&address, &tips));
        if let Err(error) = forgotten.await {
            tracing::warn!(repo = %self.address, %error, "marks of a push stay");
        }
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
        objects: Belongs,
        staged: &[EventId],
    ) -> Result<(), Refused> {
        let tips = tips(&push.commands);
        if tips.is_empty() || objects == Belongs::Nowhere {
            discard(&self.server, &mut body.inner).await;
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
        let payer = reservation.as_ref().map(Reservation::payer);
        let picks = self.brings_more_than(&push.commands);
        let prepared = repositories.blocking(move |r| {
            let pool = r.pool_for(&into)?;
            let (view, own) = r.staged_packs(&into, &events)?;
            let known = match picks {
                true => Some(r.told(&into.address)?),
                false => None,
            };
            let room = match payer {
                None => Ok(max_bytes),
                Some(payer) => r.room_for(&into, &events, payer, max_bytes),
            };
            Ok((room, pool, view, own, known))
        });
        let (room, pool, view, own, known) = prepared.await?;
        let max_bytes = room?;
        let part = known.map(|known| Part {
            tips: tips.iter().map(|(tip, _)| *tip).collect(),
            known,
        });
        let intake = Intake {
            pool: &pool,
            own: Some((&view, &own)),
            max_bytes,
            limits: &repositories.intake,
            places,
            client: self.client,
            disk: &repositories.disk,
            part: part.as_ref(),
        };
        let quarantine = {
            let (progress, shown) = mpsc::channel(16);
            let progress = Some(progress).filter(|_| self.request.sideband);
            let quiet = self.request.quiet;
            let receive = async {
                let visible = progress;
                let received = match &mut reservation {
                    None => intake.receive(body, visible.as_ref()).await?,
                    Some(reservation) => {
                        let mut body = Metered {
                            inner: &mut *body,
                            reservation,
                            taken: change::charge(staged, 0),
                            over: None,
                        };
                        let received = intake.receive(&mut body, visible.as_ref()).await;
                        match body.over {
                            Some(over) => return Err(over.into()),
                            None => received?,
                        }
                    }
                };
                // The pack says itself where it ends; the request may not have, yet.
                discard(&self.server, &mut body.inner).await;
                let wanted: Vec<Oid> = tips.iter().map(|(tip, _)| *tip).collect();
                repositories
                    .expect_brought(upload, &received, &wanted, self.client)
                    .await?;
                intake.keep_part(received).await
            };
            tokio::join!(receive, self.show(shown, quiet)).0?
        };
        let destination = match reservation {
            None => Destination::Pool,
            Some(reservation) => Destination::Staged {
                events: events_with_commits(&push.commands),
                most: self.server.max_staged_pack_bytes,
                reservation,
            },
        };
        let (upload, pool) = (Arc::clone(upload), pool.clone());
        let work = tokio::task::spawn_blocking({
            let repositories = Arc::clone(repositories);
            move || repositories.take_in(&upload, &pool, quarantine, destination, &tips, &own)
        });
        match work.await {
            Ok(result) => result,
            Err(error) => Err(std::io::Error::other(error).into()),
        }
    }

    /// Tells the relay that a push still runs: while its bytes move, and while its pack waits for room,
    /// is indexed, checked, stored and committed.
    async fn keep_alive(&self, push_id: &str, push: &Push) {
        let mut pause = KEEP_ALIVE;
        loop {
            sleep(pause).await;
            pause = match self.server.relay.keep_alive(push_id, push).await {
                true => KEEP_ALIVE,
                false => KEEP_ALIVE_AGAIN,
            };
        }
    }

    /// Shows the client's user what git says about the pack.
    async fn show(&self, mut shown: mpsc::Receiver<Bytes>, quiet: bool) {
        while let Some(text) = shown.recv().await {
            if quiet {
                continue;
            }
            let mut out = BytesMut::with_capacity(text.len() + 8);
            pkt_line::put_band(&mut out, Band::Progress, &text);
            // A client that does not read misses some progress; that is all.
            let _ = self.sender.try_send(out.freeze());
        }
    }

    /// Shows the waiting client now and then that we live, for as long as that may be needed.
    async fn sign_of_life(&self) {
        let mut share = self.server.read_ahead.share();
        loop {
            sleep(SIGN_OF_LIFE).await;
            self.ahead.read(&mut share);
            if self.request.sideband && self.end.is_reached() {
                let sign = Bytes::from_static(&[b'0', b'0', b'0', b'5', 1]);
                let _ = self.sender.try_send(sign);
            }
        }
    }
}

/// The names of the refs of a push, as many as a log line has room for.
fn refs_for_log(lines: &[Line]) -> String {
    let names = lines.iter().take(REFS_IN_LOG);
    let mut names: Vec<String> = names.map(|line| one_line(&line.name)).collect();
    if lines.len() > REFS_IN_LOG {
        names.push(format!("and {} more", lines.len() - REFS_IN_LOG));
    }
    names.join(", ")
}

/// The events whose refs are put.
fn events(commands: &[Command]) -> Vec<EventId> {
    let events = events_with_commits(commands).into_iter();
    events.map(|(event, _)| event).collect()
}

/// And the commits that these are put to.
fn events_with_commits(commands: &[Command]) -> Vec<(EventId, Oid)> {
    let put = commands.iter().filter(|command| !command.new.is_zero());
    put.filter_map(|command| match command.name.kind() {
        RefKind::Nostr(event) => Some((event, command.new)),
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

    #[test]
    fn a_log_line_has_room_for_a_few_refs() {
        let line = |number: usize| {
            let name = format!("refs/heads/{number}");
            let text = format!("{0} {0} {name}", Oid::ZERO);
            Line::parse(text.as_bytes()).unwrap()
        };
        let lines: Vec<Line> = (0..REFS_IN_LOG + 2).map(line).collect();
        assert_eq!(refs_for_log(&lines[..2]), "refs/heads/0, refs/heads/1");
        assert!(refs_for_log(&lines).ends_with("refs/heads/7, and 2 more"));
    }
}
