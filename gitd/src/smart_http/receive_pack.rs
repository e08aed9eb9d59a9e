//! Pushers: gitd speaks receive-pack's side of the protocol itself.
//!
//! Commands (bounded) → `Push.Authorize` → the pack, chunk by chunk, into the intake →
//! `Push.Commit` → the report the git user reads. No ref moves here: the relay's commit moves them
//! through our own gRPC service. From the commands on, a push runs in a task of its own: a client
//! that goes away before its pack is in ends it without a trace, one that goes away later changes
//! nothing.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use grasp_proto::{
    contract::Command,
    words::{EventId, Oid, RefKind, RefName, RepoId},
};
use tokio::{
    io::{AsyncBufRead, AsyncRead, ReadBuf},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    Answer, Server,
    pkt_line::{self, Band, Packet},
};
use crate::{
    relay::{Belongs, Decision, Push},
    repository::{
        Upload,
        change::{Destination, too_many_placeholders},
        intake::{self, IDLE, Intake, Progress, Refused},
    },
};

/// Commands of one push at most.
const MOST_COMMANDS: usize = 50_000;

/// Bytes of one push's commands and options at most.
const MOST_COMMAND_BYTES: usize = 16 * 1024 * 1024;

/// How often the relay is told that an upload still moves.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How often a waiting client is shown that we live (as git's `receive.keepAlive`).
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// The longest reason that is told.
const MOST_REASON: usize = 1000;

/// One line of a push as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: String,
    command: Result<Command, String>,
}

/// What a push begins with.
#[allow(clippy::struct_excessive_bools)] // each is a capability of the protocol
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    lines: Vec<Line>,
    report: bool,
    sideband: bool,
    quiet: bool,
    atomic: bool,
}

/// The next packet of a push's head, of which `bytes` have been read.
async fn next(
    body: &mut (impl AsyncBufRead + Unpin),
    bytes: &mut usize,
) -> Result<Option<Packet>, String> {
    let packet = pkt_line::read(body).await.map_err(|e| e.to_string())?;
    if let Some(Packet::Line(line)) = &packet {
        *bytes += line.len();
    }
    match *bytes > MOST_COMMAND_BYTES {
        true => Err("the push has too many bytes of commands".to_owned()),
        false => Ok(packet),
    }
}

impl Request {
    /// Reads commands and push options, up to where the pack begins.
    async fn read(body: &mut (impl AsyncBufRead + Unpin)) -> Result<Self, String> {
        let mut request = Self::default();
        let (mut bytes, mut first, mut options) = (0, true, false);
        loop {
            let line = match next(body, &mut bytes).await? {
                Some(Packet::Line(line)) => line,
                Some(Packet::Flush) => break,
                // An empty body is nothing to be done, like git's probe, which is one flush.
                None if first => return Ok(request),
                _ => return Err("the push ends inside its commands".to_owned()),
            };
            let line = Packet::text(&line);
            if line.starts_with(b"shallow ") {
                continue;
            }
            if line.starts_with(b"push-cert") {
                return Err("signed pushes are not known here; push without --signed".to_owned());
            }
            let (line, capabilities) = match line.iter().position(|byte| *byte == 0) {
                Some(at) => (&line[..at], &line[at + 1..]),
                None => (line, &b""[..]),
            };
            if first {
                options = request.capabilities(&String::from_utf8_lossy(capabilities))?;
                first = false;
            }
            if request.lines.len() == MOST_COMMANDS {
                return Err(format!("a push has at most {MOST_COMMANDS} commands"));
            }
            request.lines.push(Line::parse(line)?);
        }
        // The options themselves mean nothing here; what they are for is decided by events.
        if options {
            loop {
                match next(body, &mut bytes).await? {
                    Some(Packet::Line(_)) => {}
                    Some(Packet::Flush) => break,
                    _ => return Err("the push ends inside its options".to_owned()),
                }
            }
        }
        request.refuse_twins();
        Ok(request)
    }

    /// Notes what the client can do; says whether push options follow.
    fn capabilities(&mut self, capabilities: &str) -> Result<bool, String> {
        let mut options = false;
        for capability in capabilities.split_ascii_whitespace() {
            match capability {
                "report-status" => self.report = true,
                "side-band-64k" => self.sideband = true,
                "quiet" => self.quiet = true,
                "atomic" => self.atomic = true,
                "push-options" => options = true,
                other => match other.strip_prefix("object-format=") {
                    None | Some("sha1") => {}
                    Some(_) => return Err("only object-format=sha1 is known here".to_owned()),
                },
            }
        }
        Ok(options)
    }

    /// Of several commands for one ref, none can be done.
    fn refuse_twins(&mut self) {
        let mut seen = HashSet::new();
        let twins: HashSet<String> = self
            .lines
            .iter()
            .filter(|line| !seen.insert(line.name.clone()))
            .map(|line| line.name.clone())
            .collect();
        for line in &mut self.lines {
            if twins.contains(&line.name) {
                line.command = Err("this ref is named more than once".to_owned());
            }
        }
    }

    /// All commands, or what is to be said about each if any cannot be read.
    fn commands(&self) -> Result<Vec<Command>, Vec<Option<String>>> {
        if self.lines.iter().all(|line| line.command.is_ok()) {
            let commands = self.lines.iter().flat_map(|line| line.command.clone());
            return Ok(commands.collect());
        }
        let other = || "another command of this push cannot be done".to_owned();
        Err(self
            .lines
            .iter()
            .map(|line| Some(line.command.clone().err().unwrap_or_else(other)))
            .collect())
    }
}

impl Line {
    fn parse(line: &[u8]) -> Result<Self, String> {
        let bad = || "a command cannot be read".to_owned();
        let text = std::str::from_utf8(line)
            .map_err(|_| "a ref name is not UTF-8, which cannot be announced".to_owned())?;
        let mut parts = text.splitn(3, ' ');
        let mut next = || parts.next().ok_or_else(bad);
        let (old, new, name) = (next()?, next()?, next()?);
        let old = Oid::from_hex(old).map_err(|_| bad())?;
        let new = Oid::from_hex(new).map_err(|_| bad())?;
        let command = RefName::parse(name)
            .map(|name| Command { old, new, name })
            .map_err(|error| error.to_string());
        Ok(Self {
            name: name.to_owned(),
            command,
        })
    }
}

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

/// An upload whose bytes are counted.
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: AsyncBufRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<R: AsyncBufRead + Unpin> AsyncBufRead for Counted<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().inner).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, count: usize) {
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Pin::new(&mut self.inner).consume(count);
    }
}

/// Answers one push.
pub async fn answer(
    server: Arc<Server>,
    repo: RepoId,
    mut body: impl AsyncBufRead + Unpin + Send + 'static,
) -> Answer {
    let upload = {
        let repo = repo.clone();
        let begin = server.repositories.blocking(move |r| r.begin_upload(&repo));
        match begin.await {
            Ok(upload) => upload,
            Err(error) => return Answer::from_error(&error),
        }
    };
    let request = match Request::read(&mut body).await {
        Ok(request) => request,
        Err(reason) => {
            let line = pkt_line::line(format!("ERR {reason}\n"));
            let most = server.max_pack_bytes;
            let work = async move { intake::drain(&mut body, most).await };
            super::spawn(&server.tasks, work);
            return Answer::Whole(line);
        }
    };
    if request.lines.is_empty() {
        return Answer::Whole(Bytes::new());
    }
    let (sender, receiver) = mpsc::channel(16);
    let tasks = server.tasks.clone();
    let bytes = Arc::new(AtomicU64::new(0));
    let body = Counted {
        inner: body,
        bytes: Arc::clone(&bytes),
    };
    let pusher = Pusher {
        server,
        repo,
        upload: Arc::new(upload),
        request,
        sender,
        bytes,
    };
    super::spawn(&tasks, pusher.serve(body));
    Answer::Stream(receiver)
}

struct Pusher {
    server: Arc<Server>,
    repo: RepoId,
    upload: Arc<Upload>,
    request: Request,
    sender: mpsc::Sender<Bytes>,
    bytes: Arc<AtomicU64>,
}

impl Pusher {
    async fn serve(self, mut body: Counted<impl AsyncBufRead + Unpin>) {
        let begun = Instant::now();
        let running = metrics::gauge!("ngit_git_operations_running", "operation" => "push");
        running.increment(1.0);
        let report = tokio::select! {
            report = self.push(&mut body) => report,
            () = self.server.kill.cancelled() => {
                let reason = "the server is going down, push again in a moment";
                Report::refused(self.request.lines.len(), reason)
            }
        };
        running.decrement(1.0);
        let bytes = self.bytes.load(Ordering::Relaxed);
        metrics::counter!("ngit_git_bytes_total", "direction" => "in").increment(bytes);
        let outcome = if report.done() { "ok" } else { "refused" };
        metrics::counter!("ngit_git_pushes_total", "outcome" => outcome).increment(1);
        let reason = match &report.unpacked {
            Err(reason) => Some(reason),
            Ok(()) => report.results.iter().flatten().next(),
        };
        tracing::info!(
            repo = %self.repo,
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
            () = intake::drain(&mut body, self.server.max_pack_bytes) => {}
            () = self.server.kill.cancelled() => {}
        }
    }

    async fn push(&self, body: &mut Counted<impl AsyncBufRead + Unpin>) -> Report {
        let count = self.request.lines.len();
        let commands = match self.request.commands() {
            Ok(commands) => commands,
            Err(results) => {
                let unpacked = Ok(());
                return Report { unpacked, results };
            }
        };
        let push = Push {
            repository: self.repo.clone(),
            incarnation: self.upload.incarnation.clone(),
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
        let staged: Vec<EventId> = match objects {
            Belongs::Staged => events(&push.commands),
            Belongs::Pool | Belongs::Nowhere => Vec::new(),
        };
        if let Err(error) = self.take_in(body, &push, &push_id, objects, &staged).await {
            if let Refused::Ours(error) = &error {
                tracing::error!(repo = %self.repo, %error, "a pack could not be taken in");
            }
            self.drop_refused(&staged).await;
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
            self.drop_refused(&staged).await;
        }
        Report {
            unpacked: Ok(()),
            results,
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
    async fn drop_refused(&self, staged: &[EventId]) {
        if staged.is_empty() {
            return;
        }
        let (upload, staged) = (Arc::clone(&self.upload), staged.to_owned());
        let dropped = self
            .server
            .repositories
            .blocking(move |r| r.drop_refused(&upload, &staged));
        if let Err(error) = dropped.await {
            tracing::warn!(repo = %self.repo, %error, "staged objects stay");
        }
    }

    /// Takes in what the push carries.
    async fn take_in(
        &self,
        body: &mut Counted<impl AsyncBufRead + Unpin>,
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
            intake::drain(body, self.server.max_pack_bytes).await;
            return Ok(());
        }
        let (max_bytes, destination) = match objects {
            Belongs::Staged if staged.len() != tips.len() => {
                return Err(Refused::Pack("this push cannot be staged".to_owned()));
            }
            Belongs::Staged => {
                let destination = Destination::Staged(staged.to_owned());
                (self.server.max_staged_pack_bytes, destination)
            }
            Belongs::Pool | Belongs::Nowhere => (self.server.max_pack_bytes, Destination::Pool),
        };
        let repositories = &self.server.repositories;
        let (upload, events) = (Arc::clone(&self.upload), staged.to_owned());
        let prepared = repositories.blocking(move |r| {
            let pool = r.pool_for(&upload)?;
            let (view, own) = r.staged_packs(&upload, &events)?;
            Ok((r.room_for(&upload, &events)?, pool, view, own))
        });
        let (room, pool, view, own) = prepared.await?;
        if !room {
            return Err(too_many_placeholders());
        }
        let intake = Intake {
            pool: &pool,
            own: Some((&view, &own)),
            max_bytes,
            places: &self.server.writers,
        };
        let quarantine = {
            let (progress, shown) = mpsc::channel(16);
            let progress = Some(progress).filter(|_| self.request.sideband);
            let quiet = self.request.quiet;
            let receive = async {
                let visible = progress;
                intake.receive(body, visible.as_ref()).await
            };
            let work = async { tokio::join!(receive, self.show(shown, quiet)).0 };
            tokio::select! {
                quarantine = work => quarantine?,
                () = self.keep_alive(push_id) => unreachable!("it goes on for ever"),
            }
        };
        let (upload, pool) = (Arc::clone(&self.upload), pool.clone());
        let work = tokio::task::spawn_blocking({
            let repositories = Arc::clone(repositories);
            move || repositories.take_in(&upload, &pool, quarantine, &destination, &tips, &own)
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

    const OLD: &str = "0000000000000000000000000000000000000000";
    const NEW: &str = "1111111111111111111111111111111111111111";

    async fn read(lines: &[&str]) -> Result<Request, String> {
        let mut body = BytesMut::new();
        for line in lines {
            match *line {
                "" => body.extend_from_slice(pkt_line::FLUSH),
                line => pkt_line::put(&mut body, line.as_bytes()),
            }
        }
        Request::read(&mut &body[..]).await
    }

    #[tokio::test]
    async fn commands_are_read() {
        let first = format!("{OLD} {NEW} refs/heads/a\0 report-status side-band-64k push-options");
        let second = format!("{OLD} {NEW} refs/heads/b c");
        let shallow = format!("shallow {NEW}");
        let request = read(&[&shallow, &first, &second, "", "option", ""]).await;
        let request = request.unwrap();
        assert!(request.report && request.sideband && !request.atomic);
        assert!(request.lines[0].command.is_ok());
        assert_eq!(request.lines[1].name, "refs/heads/b c");
        let results = request.commands().unwrap_err();
        assert!(results.iter().all(Option::is_some));
    }

    #[tokio::test]
    async fn what_is_no_push_is_refused() {
        assert!(read(&[""]).await.unwrap().lines.is_empty());
        assert!(read(&[]).await.unwrap().lines.is_empty());
        assert!(read(&["push-cert\0x", ""]).await.is_err());
        assert!(read(&["x y", ""]).await.is_err());
        let sha256 = format!("{OLD} {NEW} refs/heads/a\0object-format=sha256");
        assert!(read(&[&sha256, ""]).await.is_err());
        let open = format!("{OLD} {NEW} refs/heads/a\0");
        assert!(read(&[&open]).await.is_err());
        let twice = read(&[&open, &open, ""]).await.unwrap();
        assert!(twice.commands().is_err());
    }

    #[test]
    fn reasons_stay_on_their_line() {
        let report = Report::refused(1, "a\nng refs/heads/b c");
        let request = Request {
            lines: vec![Line::parse(format!("{OLD} {NEW} refs/heads/a").as_bytes()).unwrap()],
            report: true,
            ..Request::default()
        };
        let text = String::from_utf8(report.write(&request).to_vec()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}
