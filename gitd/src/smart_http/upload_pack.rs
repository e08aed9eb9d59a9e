//! Readers: v2 commands, and the packs of all versions.
//!
//! `ls-refs` is answered here; everything else is `git upload-pack`, which the request flows into
//! and whose answer flows out as it is written, once it is clear that the refs of the view reach all
//! that is asked for. It is killed, with its helpers, when the client goes away, takes nothing for
//! too long, or hardly anything while others wait.

use std::{
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use grasp_proto::words::Address;
use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncReadExt},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    Answer, Server, Version,
    advertise::LsRefs,
    asked::{self, Asked},
    body::Upload,
    flow::{Ended, Sent},
    pace::{self, Kept},
    pkt_line::{self, Band, Packet},
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
            begun: None,
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
    /// What the answer was begun with before git was asked.
    begun: Option<&'static [u8]>,
    client: Option<IpAddr>,
}

/// How often a waiting client is shown that we live; between us may be a proxy that reads for ten
/// seconds.
const SIGN_OF_LIFE: Duration = Duration::from_secs(4);
/// A line of the side band without anything in it, as git's own `uploadpack.keepAlive` sends it.
const ALIVE: &[u8] = b"0005\x01";

/// Shows a client, whose answer was begun, that we live. One that reads nothing misses it.
fn show_life(sender: &mpsc::Sender<Bytes>, sent: &mut Sent) {
    if sender.try_send(Bytes::from_static(ALIVE)).is_ok() {
        sent.note(ALIVE);
    }
}

/// Takes the beginning of its answer off what git says, as the client has it already.
async fn take_off(
    git: &mut (impl AsyncRead + Unpin),
    beginning: &[u8],
    sender: &mpsc::Sender<Bytes>,
    sent: &mut Sent,
) -> Result<(), Ended> {
    let mut said = vec![0; beginning.len()];
    let read = {
        let read = git.read_exact(&mut said);
        tokio::pin!(read);
        loop {
            tokio::select! {
                read = &mut read => break read,
                () = sleep(SIGN_OF_LIFE) => show_life(sender, sent),
                () = sender.closed() => {
                    return Err(Ended::Broke("the client went away".to_owned()));
                }
            }
        }
    };
    match read {
        Ok(_) if said == beginning => Ok(()),
        _ => Err(Ended::Broke(
            "git does not answer as it was asked".to_owned(),
        )),
    }
}

/// Why git, or the helper that makes its pack, ended badly.
fn why_it_failed(said: &str, git: &mut git::Running) -> String {
    let too_much = if git.ran_out_of_time() || git::helper_ran_out_of_time(said) {
        "time"
    } else if git::ran_out_of_memory(said) {
        "memory"
    } else {
        return git::last_line(said).to_owned();
    };
    format!("the answer takes more {too_much} than one process may here; ask for less at once")
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
        let sender = self.sender;
        let allowed = tokio::select! {
            allowed = self.check(server, view, begun, &mut request) => allowed,
            () = sender.closed() => return Err("the client went away".to_owned()),
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
        let (sender, sent, answered) = (self.sender, &mut self.sent, self.begun);
        let flow = async {
            let mut stdout = pipes.stdout;
            if let Some(beginning) = answered {
                take_off(&mut stdout, beginning, sender, sent).await?;
            }
            let flowed = sent.all_of(stdout, sender, &taking).await;
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
        let reason = why_it_failed(&said, &mut running);
        if self.sent.bytes == 0 {
            self.complain(&git::without_places(&reason)).await;
        }
        Err(reason)
    }

    /// Sees to it that the refs reach all that is asked for; gives the claims to be weighed where git
    /// would send more because of them. An error is for the git user.
    async fn check(
        &mut self,
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
        let Asked {
            wants,
            deepens,
            beginning,
        } = asked::asked(AsyncReadExt::chain(begun, again)).await?;
        let (place, places, client) = (view.to_owned(), &server.readers, self.client);
        let looked = async {
            let split = server
                .repositories
                .blocking(move |_| Ok(reachable::beyond_tips(&place, wants)));
            let rest = split.await.map_err(Refusal::from).flatten()?;
            reachable::look_for(view, rest, places, client).await
        };
        self.awaiting(beginning, looked).await.map_err(refused)?;
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

    /// Waits for `work`. Where that takes long, the answer is begun, if it is known how, and the client
    /// shown that we live.
    async fn awaiting<T>(
        &mut self,
        beginning: Option<&'static [u8]>,
        work: impl Future<Output = T>,
    ) -> T {
        let Some(beginning) = beginning else {
            return work.await;
        };
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = sleep(SIGN_OF_LIFE) => {}
            }
            if self.begun.is_some() {
                show_life(self.sender, &mut self.sent);
            } else if self.sender.try_send(Bytes::from_static(beginning)).is_ok() {
                self.sent.note(beginning);
                self.begun = Some(beginning);
                tokio::task::yield_now().await;
                show_life(self.sender, &mut self.sent);
            }
        }
    }

    async fn complain(&mut self, reason: &str) {
        let line = match self.begun {
            None => pkt_line::line(format!("ERR {reason}\n")),
            // The client listens for the side band, in which 3 is a fatal error.
            Some(_) => {
                let mut line = BytesMut::new();
                pkt_line::put_band(&mut line, Band::Error, format!("{reason}\n").as_bytes());
                line.freeze()
            }
        };
        self.sent.complained = self.sender.send(line).await.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(sender: &mpsc::Sender<Bytes>) -> Fetch<'_> {
        Fetch {
            sender,
            sent: Sent::default(),
            begun: None,
            client: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_long_is_shown_that_we_live() {
        const BEGINNING: &[u8] = b"000dpackfile\n";
        let (sender, mut pieces) = mpsc::channel(1);
        let mut fetch = fetch(&sender);
        let read = async move {
            let mut read = Vec::new();
            while let Some(piece) = pieces.recv().await {
                read.push((tokio::time::Instant::now(), piece));
            }
            read
        };
        let reading = tokio::spawn(read);
        let begun = tokio::time::Instant::now();
        fetch
            .awaiting(Some(BEGINNING), sleep(Duration::from_secs(21)))
            .await;
        fetch.complain("not our ref").await;
        assert!(fetch.sent.complained);
        drop(fetch);
        drop(sender);
        let read = reading.await.unwrap();
        assert_eq!(read[0].1, BEGINNING);
        let mut last = begun;
        for (at, _) in &read {
            assert!(*at - last <= Duration::from_secs(5));
            last = *at;
        }
        let (end, signs) = read[1..].split_last().unwrap();
        assert!(signs.len() >= 4 && signs.iter().all(|(_, piece)| piece == ALIVE));
        assert_eq!(end.1, &b"0011\x03not our ref\n"[..]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_shortly_or_cannot_be_told_is_told_nothing() {
        let (sender, mut pieces) = mpsc::channel(1);
        let mut fetch = fetch(&sender);
        fetch
            .awaiting(Some(b"0008NAK\n"), sleep(Duration::from_secs(3)))
            .await;
        fetch.awaiting(None, sleep(Duration::from_secs(30))).await;
        fetch.complain("no").await;
        drop(fetch);
        drop(sender);
        assert_eq!(pieces.recv().await.unwrap(), "000bERR no\n");
        assert!(pieces.recv().await.is_none());
    }

    #[tokio::test]
    async fn what_was_sent_is_taken_off_what_git_says() {
        let (sender, _pieces) = mpsc::channel(1);
        let mut sent = Sent::default();
        let mut git = &b"0008NAK\n0005\x01"[..];
        take_off(&mut git, b"0008NAK\n", &sender, &mut sent)
            .await
            .unwrap();
        assert_eq!(git, b"0005\x01");
        let mut git = &b"000eERR broken"[..];
        assert!(
            take_off(&mut git, b"0008NAK\n", &sender, &mut sent)
                .await
                .is_err()
        );
    }
}
