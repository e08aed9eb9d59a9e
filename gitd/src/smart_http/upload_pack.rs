//! Readers: v2 commands, and the packs of all versions.
//!
//! `ls-refs` is answered here; everything else is `git upload-pack`, which the request flows into
//! and whose answer flows out as it is written, once it is clear that the refs of the view reach all
//! that is asked for. It is killed, with its helpers, when the client goes away, takes nothing for
//! too long, or hardly anything while others wait.

use std::{net::IpAddr, path::Path, sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use grasp_proto::words::Address;
use tokio::{
    io::{AsyncBufRead, AsyncReadExt},
    sync::mpsc,
    time::timeout,
};

use super::{
    Answer, Server, Version,
    advertise::LsRefs,
    asked::{self, Asked},
    body::Upload,
    flow::{Ended, Sent},
    pace::{self, Kept},
    pkt_line::{self, Packet},
    stream,
};
use crate::{
    meters,
    repository::{
        git,
        intake::IDLE,
        reachable::{self, Refusal, Sought},
    },
};

/// Configuration of upload-pack: what is allowed, and what is shown.
const CONFIG: &[&str] = &[
    "uploadpack.allowFilter=true",
    // Its patterns would be read from any object of the pool.
    "uploadpackfilter.sparse:oid.allow=false",
    "uploadpack.allowTipSHA1InWant=true",
    "uploadpack.allowReachableSHA1InWant=true",
    "uploadpack.keepAlive=5",
    "uploadpack.hideRefs=refs/",
    "uploadpack.hideRefs=!refs/heads/",
    "uploadpack.hideRefs=!refs/tags/",
    "uploadpack.hideRefs=!refs/nostr/",
    // Of a multi-pack-index, its preferred pack may be sent as it lies. `multi`, for all its packs, makes
    // bad packs in git 2.47 where an object is in several, and the bases of thin packs are.
    "pack.allowPackReuse=true",
];

/// The largest request: wants and haves, never a pack.
const LARGEST_REQUEST: u64 = 64 * 1024 * 1024;

/// Answers one request of a reader.
pub async fn answer(
    server: Arc<Server>,
    address: Address,
    client: Option<IpAddr>,
    version: Version,
    mut body: Upload,
) -> Answer {
    let mut begun = BytesMut::new();
    if version == Version::V2 {
        match pkt_line::read(&mut body).await {
            Ok(Some(Packet::Line(line))) if Packet::text(&line) == b"command=ls-refs" => {
                return ls_refs(&server, address, body).await;
            }
            Ok(Some(Packet::Line(line))) => pkt_line::put(&mut begun, &line),
            Ok(Some(Packet::Flush) | None) => return Answer::Whole(Bytes::new()),
            Ok(Some(_)) => return error("unexpected packet"),
            Err(bad) => return error(&bad.to_string()),
        }
    }
    let view = match server.repositories.shown(&address) {
        Ok(view) => view,
        Err(error) => return Answer::from_error(&error),
    };
    // One piece on its way to the client, one being read: more would only be memory.
    let (maker, pieces) = stream::answer(1);
    let tasks = server.tasks.clone();
    let work = async move {
        let begun_at = Instant::now();
        let mut fetch = Fetch {
            sender: maker.pieces(),
            sent: Sent::default(),
            client,
        };
        let running = meters::operation("fetch");
        let outcome = fetch.run(&server, &view, version, &begun, &mut body).await;
        drop(running);
        let (bytes, complained) = (fetch.sent.bytes, fetch.sent.complained);
        // A client that got a part, or nothing, must not take it for all.
        if outcome.is_ok() || complained {
            maker.finish();
        }
        metrics::counter!("ngit_git_bytes_total", "direction" => "out").increment(bytes);
        server.busiest.moved(&address, bytes);
        let label = if outcome.is_ok() { "ok" } else { "failed" };
        metrics::counter!("ngit_git_fetches_total", "outcome" => label).increment(1);
        meters::took("fetch", label, begun_at);
        match outcome {
            Ok(()) => {
                tracing::debug!(repo = %address, bytes, time = ?begun_at.elapsed(), "fetch answered");
            }
            Err(reason) => {
                tracing::info!(repo = %address, bytes, time = ?begun_at.elapsed(), reason, "fetch ended early");
            }
        }
    };
    super::spawn(&tasks, work);
    Answer::Stream(pieces)
}

fn error(message: &str) -> Answer {
    Answer::Whole(pkt_line::line(format!("ERR {message}\n")))
}

async fn ls_refs(server: &Server, address: Address, mut body: impl AsyncBufRead + Unpin) -> Answer {
    let request = match LsRefs::read(&mut body).await {
        Ok(request) => request,
        Err(reason) => return error(&reason),
    };
    let answer = server
        .repositories
        .blocking(move |repositories| request.answer(repositories, &address));
    Answer::from_pieces(answer.await)
}

struct Fetch<'a> {
    sender: &'a mpsc::Sender<Bytes>,
    sent: Sent,
    client: Option<IpAddr>,
}

impl Fetch<'_> {
    /// Runs git to its end; an error says why the client did not get a whole answer from it.
    async fn run(
        &mut self,
        server: &Server,
        view: &Path,
        version: Version,
        begun: &[u8],
        body: &mut Upload,
    ) -> Result<(), String> {
        // Before a place is taken: who is silent waits for himself alone.
        let mut share = server.requests.share();
        let directory = server.repositories.scratch_directory();
        let request = tokio::select! {
            request = pace::read_to_end(body, LARGEST_REQUEST, &mut share, &directory) => request,
            () = self.sender.closed() => return Err("the client went away".to_owned()),
            () = server.kill.cancelled() => return Err("stopped".to_owned()),
        };
        let mut request = match request {
            Ok(request) => request,
            Err(reason) => {
                self.complain(&reason).await;
                body.drain(LARGEST_REQUEST).await;
                return Err(reason);
            }
        };
        let allowed = tokio::select! {
            allowed = self.check(server, view, begun, &mut request) => allowed,
            () = self.sender.closed() => return Err("the client went away".to_owned()),
            () = server.kill.cancelled() => return Err("stopped".to_owned()),
        };
        let claims = match allowed {
            Ok(claims) => claims,
            Err(reason) => {
                self.complain(&reason).await;
                return Err(reason);
            }
        };
        let mut command = git::command(view);
        for setting in CONFIG {
            command.args(["-c", setting]);
        }
        if let Some(version) = version.git_protocol() {
            command.env("GIT_PROTOCOL", version);
        }
        command.args(["upload-pack", "--strict", "--stateless-rpc", "."]);
        let place = tokio::select! {
            place = server.readers.take_soon(self.client) => place,
            () = self.sender.closed() => return Err("the client went away".to_owned()),
            () = server.kill.cancelled() => return Err("stopped".to_owned()),
        };
        let place = match place {
            Ok(place) => place,
            Err(busy) => {
                self.complain(&busy.to_string()).await;
                return Err(busy.to_string());
            }
        };
        let taking = place.taking();
        let (mut running, pipes) = match git::spawn(command, place) {
            Ok(started) => started,
            Err(error) => {
                self.complain("the server cannot start git").await;
                return Err(error.to_string());
            }
        };
        let feed = async {
            let mut stdin = pipes.stdin;
            if let Ok(request) = request.read().await {
                let mut request = AsyncReadExt::chain(begun, request);
                // A git that stops listening has said why.
                match &claims {
                    None => drop(tokio::io::copy(&mut request, &mut stdin).await),
                    Some(claims) => drop(asked::hand_on(request, version, claims, stdin).await),
                }
            }
            Ok(String::new())
        };
        let (sender, sent) = (self.sender, &mut self.sent);
        let flow = async {
            let flowed = sent.all_of(pipes.stdout, sender, &taking).await;
            flowed.map(|()| String::new())
        };
        let said = async { Ok(git::drain_stderr(pipes.stderr, |_| {}).await) };
        let said = tokio::select! {
            done = async { tokio::try_join!(feed, flow, said) } => done,
            () = server.kill.cancelled() => return Err("stopped".to_owned()),
        };
        let said = match said {
            Ok((_, _, said)) => said,
            Err(Ended::Broke(reason)) => return Err(reason),
            Err(Ended::AskedBack(last)) => {
                // Whoever waits does not wait for this one's last words.
                drop(running);
                if let Some(last) = last {
                    let told = timeout(IDLE, self.sender.send(last)).await;
                    self.sent.complained = matches!(told, Ok(Ok(())));
                }
                return Err("the client hardly took anything while others waited".to_owned());
            }
        };
        if let Ok(true) = running.wait().await {
            return Ok(());
        }
        let reason = git::last_line(&said);
        if self.sent.bytes == 0 {
            self.complain(&git::without_places(reason)).await;
        }
        Err(reason.to_owned())
    }

    /// Sees to it that the refs reach all that is asked for; gives the claims to be weighed where git
    /// would send more because of them. An error is for the git user.
    async fn check(
        &self,
        server: &Server,
        view: &Path,
        begun: &[u8],
        request: &mut Kept,
    ) -> Result<Option<Sought>, String> {
        let unread = |error: std::io::Error| {
            tracing::error!(%error, "a request could not be read again");
            "the server could not read the request".to_owned()
        };
        let refused = |refusal: Refusal| {
            if let Refusal::Ours(error) = &refusal {
                tracing::error!(view = %view.display(), %error, "a fetch could not be checked");
            }
            refusal.to_string()
        };
        let again = request.read().await.map_err(unread)?;
        let Asked { wants, deepens } = asked::asked(AsyncReadExt::chain(begun, again)).await?;
        let (place, places) = (view.to_owned(), &server.readers);
        let split = server
            .repositories
            .blocking(move |_| Ok(reachable::beyond_tips(&place, wants)));
        let rest = split.await.map_err(Refusal::from).flatten();
        let rest = rest.map_err(refused)?;
        let looked = reachable::look_for(view, rest, places, self.client).await;
        looked.map_err(refused)?;
        if !deepens {
            return Ok(None);
        }
        let again = request.read().await.map_err(unread)?;
        let claims = asked::claims(AsyncReadExt::chain(begun, again)).await?;
        let place = view.to_owned();
        let split = server
            .repositories
            .blocking(move |_| Ok(reachable::claims_beyond_tips(&place, claims)));
        let claims = split.await.map_err(Refusal::from).flatten();
        let claims = claims.map_err(refused)?;
        let reached = reachable::reached(view, claims, places, self.client).await;
        reached.map(Some).map_err(refused)
    }

    async fn complain(&mut self, reason: &str) {
        let line = pkt_line::line(format!("ERR {reason}\n"));
        self.sent.complained = self.sender.send(line).await.is_ok();
    }
}
