//! Smart HTTP (gitprotocol-http), spoken to another server: wanted objects in, a pack's stream out.
//!
//! Of git's protocol only this is needed: what a server has, one question without negotiation, and
//! the sideband taken off the answer. gitoxide's transport brings its own HTTP, credentials and
//! negotiation along; here its `gix-packetline` frames, and [`Net`] carries.
//!
//! - `request`: what is asked
//! - `advertisement`: what a server speaks and has
//! - `pack`: what is answered, the pack taken out of it
//! - `lines`: packets out of an answer; `pace`: how slowly it may come
//!
//! Asked for is what is wanted, and nothing that only might lead to it. A server that will not give
//! one of the objects is asked for the others; a pack that holds some of them is a success.

pub mod advertisement;
pub mod lines;
mod pace;
pub mod pack;
mod request;

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use grasp_proto::{contract::relay::failed::Why, words::Oid};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::timeout;
use url::Url;

pub use pack::Pack;

use crate::net::{
    Net, NetError,
    http::{Ask, Conversation, bare, shown},
};
use advertisement::{Dialect, Found, Sideband};
use lines::Lines;
use pack::{Begun, Shape, begin};

/// How long the head of an answer may take.
const HEAD: Duration = Duration::from_secs(30);
/// How long everything up to the first bytes of the pack may take. A server that counts the objects of
/// a large repository, or makes the pack whole before it says a word, needs a minute or two; that it is
/// alive meanwhile is easily said and proves nothing, so signs of life give it no longer.
const PREPARATION: Duration = Duration::from_secs(120);
/// Most redirects of the first request.
const MOST_REDIRECTS: usize = 5;
/// Most objects asked for at once: a request of half a megabyte. What is left out is still missing
/// behind this fetch, and asked for by the next.
const MOST_WANTS: usize = 10_000;
/// Most objects told to be here.
const MOST_HAVES: usize = 10_000;
/// Most requests for the pack, each without what the server refused in the one before.
const MOST_ROUNDS: usize = 8;
/// Refusals of a single object, behind which the server's refs are consulted instead.
const MOST_NAMED: usize = 4;
/// Most characters told of a server's own words.
const MOST_TOLD: usize = 200;

const GIT_PROTOCOL: HeaderName = HeaderName::from_static("git-protocol");
/// What follows a repository's address, and what must follow it still where a redirect leads.
const INFO_REFS: [&str; 2] = [
    "info/refs?service=git-upload-pack",
    "info/refs&service=git-upload-pack",
];

/// What is to be fetched.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The repository, as an event has it.
    pub url: Url,
    /// Objects nobody here has; with all they lead to.
    pub wants: Vec<Oid>,
    /// Objects that are here with all they lead to.
    pub haves: Vec<Oid>,
    /// The largest pack, in bytes.
    pub max_bytes: u64,
}

/// Why no pack came, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct FetchError {
    /// As the relay is told.
    pub why: Why,
    /// For people; no credentials, no control characters.
    pub detail: String,
}

impl FetchError {
    fn new(why: Why, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { why, detail }
    }

    /// It answers, and not as it should: what is to be said of it, wherever it has answered at all.
    fn unwell(detail: impl Into<String>) -> Self {
        Self::new(Why::Unwell, detail)
    }

    fn not_there(detail: impl Into<String>) -> Self {
        Self::new(Why::NotThere, detail)
    }

    fn slow(detail: impl Into<String>) -> Self {
        Self::new(Why::Slow, detail)
    }

    fn shallow() -> Self {
        Self::not_there("the repository there is shallow: its history has an end")
    }
}

impl From<NetError> for FetchError {
    fn from(error: NetError) -> Self {
        let why = match error {
            NetError::Forbidden(_) => Why::Forbidden,
            NetError::Ours(_) => Why::Ours,
            NetError::Resolve { .. }
            | NetError::Connect { .. }
            | NetError::Tls { .. }
            | NetError::Http(_)
            | NetError::Silent(_) => Why::Server,
        };
        Self::new(why, told(error.to_string().as_bytes()))
    }
}

/// What went wrong with a server that has answered before: it is there, and others may be well served
/// by it.
fn answered_before(error: NetError) -> FetchError {
    let silent = matches!(error, NetError::Http(_) | NetError::Silent(_));
    let error = FetchError::from(error);
    match silent {
        true => FetchError::unwell(error.detail),
        false => error,
    }
}

/// Words of a server, cut, and without what could write over a terminal or a log.
fn told(words: &[u8]) -> String {
    let start = &words[..words.len().min(4 * MOST_TOLD)];
    let words = String::from_utf8_lossy(start);
    let visible = words.chars().map(|c| match c.is_control() {
        true => ' ',
        false => c,
    });
    let visible: String = visible.take(MOST_TOLD).collect();
    visible.trim().to_owned()
}

/// Asks `wanted.url` for the objects. Ends when the pack's first bytes have come.
pub async fn open(net: &Net, wanted: &Wanted) -> Result<Pack, FetchError> {
    match timeout(PREPARATION, find(net, wanted)).await {
        Ok(result) => result,
        Err(_) => Err(FetchError::slow(format!(
            "no pack within {} s",
            PREPARATION.as_secs()
        ))),
    }
}

async fn find(net: &Net, wanted: &Wanted) -> Result<Pack, FetchError> {
    let mut wants = distinct(&wanted.wants, MOST_WANTS);
    let haves = distinct(&wanted.haves, MOST_HAVES);
    let set: HashSet<Oid> = wants.iter().copied().collect();
    let mut peer = Peer::discover(net, &wanted.url, &set).await?;
    let mut found = match peer.gives_unadvertised() {
        true => None,
        false => Some(peer.list(&set).await?),
    };
    let mut named = 0;
    let mut refusal = "it has none of the objects".to_owned();
    for _ in 0..MOST_ROUNDS {
        let ask = narrow(&mut wants, found.as_ref());
        if wants.is_empty() {
            return Err(FetchError::not_there(refusal));
        }
        let words = match peer.ask(&ask, &haves, wanted.max_bytes).await? {
            Begun::Pack(mut pack) => {
                pack.asked = wants;
                return Ok(*pack);
            }
            Begun::Refused(words) => words,
        };
        tracing::debug!(url = shown(&peer.base), %words, "not all of it");
        let refused = objects_in(&words);
        let before = wants.len();
        if found.is_some() || named < MOST_NAMED {
            wants.retain(|want| {
                let ask = found.as_ref().and_then(|found| found.ask_for(want));
                !refused.contains(&ask.unwrap_or(*want))
            });
        }
        refusal = words;
        if wants.len() < before {
            named += 1;
        } else if found.is_none() {
            found = Some(peer.list(&set).await?);
        } else {
            break;
        }
    }
    Err(FetchError::not_there(refusal))
}

/// The first of them, each once.
fn distinct(oids: &[Oid], most: usize) -> Vec<Oid> {
    let mut seen = HashSet::new();
    let fresh = oids.iter().copied().filter(|oid| seen.insert(*oid));
    fresh.take(most).collect()
}

/// Leaves those that the server's refs lead to, where they are known; what to ask for, to get them.
fn narrow(wants: &mut Vec<Oid>, found: Option<&Found>) -> Vec<Oid> {
    let Some(found) = found else {
        return wants.clone();
    };
    wants.retain(|want| found.ask_for(want).is_some());
    let tips: Vec<Oid> = wants
        .iter()
        .filter_map(|want| found.ask_for(want))
        .collect();
    distinct(&tips, tips.len())
}

/// Object ids in a server's words: `upload-pack: not our ref 1234…`.
fn objects_in(words: &str) -> Vec<Oid> {
    words
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|word| word.len() == 40)
        .filter_map(|word| Oid::from_hex(word).ok())
        .collect()
}

/// A server that has answered once.
struct Peer<'n> {
    conversation: Conversation<'n>,
    /// The repository's address, a slash at its end, wherever on the server redirects led.
    base: Url,
    dialect: Dialect,
}

impl<'n> Peer<'n> {
    async fn discover(net: &'n Net, url: &Url, wants: &HashSet<Oid>) -> Result<Self, FetchError> {
        let mut base = bare(url).to_string();
        if !base.ends_with('/') {
            base.push('/');
        }
        // As git does it: a query of the address stays, and is gone on with.
        let tail = INFO_REFS[usize::from(base.contains('?'))];
        let mut headers = usual();
        headers.insert(GIT_PROTOCOL, HeaderValue::from_static("version=2"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        let mut ask = Ask {
            method: Method::GET,
            url: parse(&(base + tail))?,
            headers,
            body: Bytes::new(),
        };
        let mut conversation = net.converse();
        for hop in 0..=MOST_REDIRECTS {
            let response = conversation.send(&ask, HEAD).await.map_err(match hop {
                0 => FetchError::from,
                _ => answered_before,
            })?;
            if let Some(next) = redirect(&response, &ask.url, tail)? {
                ask.url = next;
                continue;
            }
            check(&response, "application/x-git-upload-pack-advertisement")?;
            let mut lines = Lines::new(response.into_body());
            let dialect = advertisement::read(&mut lines, wants).await?;
            lines.end().await;
            let base = ask.url.as_str().strip_suffix(tail).unwrap_or_default();
            return Ok(Self {
                conversation,
                base: parse(base)?,
                dialect,
            });
        }
        Err(FetchError::new(Why::Forbidden, "it redirects too often"))
    }

    async fn post(&mut self, body: Bytes, head: Duration) -> Result<Lines, FetchError> {
        const REQUEST: HeaderValue =
            HeaderValue::from_static("application/x-git-upload-pack-request");
        const RESULT: &str = "application/x-git-upload-pack-result";
        let mut headers = usual();
        headers.insert(header::CONTENT_TYPE, REQUEST);
        headers.insert(header::ACCEPT, HeaderValue::from_static(RESULT));
        if let Dialect::V2(_) = self.dialect {
            headers.insert(GIT_PROTOCOL, HeaderValue::from_static("version=2"));
        }
        let ask = Ask {
            method: Method::POST,
            url: parse(&format!("{}git-upload-pack", self.base))?,
            headers,
            body,
        };
        let answer = self.conversation.send(&ask, head).await;
        let response = answer.map_err(answered_before)?;
        if response.status().is_redirection() {
            let why = "it redirects in the middle of a conversation";
            return Err(FetchError::new(Why::Forbidden, why));
        }
        check(&response, RESULT)?;
        Ok(Lines::new(response.into_body()))
    }

    /// Whether it may give what no ref of its names. In v2 that is found out by asking.
    fn gives_unadvertised(&self) -> bool {
        match &self.dialect {
            Dialect::V2(_) => true,
            Dialect::V0(v0) => v0.unadvertised,
        }
    }

    /// Of the wanted objects, those that refs lead to.
    async fn list(&mut self, wants: &HashSet<Oid>) -> Result<Found, FetchError> {
        match &self.dialect {
            Dialect::V0(v0) => Ok(v0.found.clone()),
            Dialect::V2(v2) if v2.ls_refs => {
                let body = request::ls_refs(v2);
                let mut lines = self.post(body, HEAD).await?;
                let found = advertisement::read_refs(&mut lines, wants).await?;
                lines.end().await;
                Ok(found)
            }
            Dialect::V2(_) => Ok(Found::default()),
        }
    }

    async fn ask(&mut self, ask: &[Oid], haves: &[Oid], max: u64) -> Result<Begun, FetchError> {
        let body = match &self.dialect {
            Dialect::V2(v2) => request::fetch_v2(v2, ask, haves),
            Dialect::V0(v0) => request::fetch_v0(v0, ask, haves),
        };
        // Servers that keep a pack until it is whole begin to answer when it is.
        let lines = self.post(body, PREPARATION).await?;
        let shape = match &self.dialect {
            Dialect::V2(_) => Shape::Sections,
            Dialect::V0(v0) if v0.sideband == Sideband::None => Shape::Plain,
            Dialect::V0(_) => Shape::Sideband,
        };
        begin(lines, shape, max).await
    }
}

fn parse(url: &str) -> Result<Url, FetchError> {
    url.parse()
        .map_err(|_| FetchError::unwell("no URL to ask for"))
}

/// What every request says: who asks, and that the answer is wanted as it is.
fn usual() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(request::AGENT));
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
    headers
}

/// Where an answer says to ask instead: at the same server and scheme only, and for a repository's refs
/// only. The relay counts what it has asked for against the server that it named; what is led to
/// another would be counted against none, and could be aimed at one from everywhere.
fn redirect(
    response: &Response<Incoming>,
    at: &Url,
    tail: &str,
) -> Result<Option<Url>, FetchError> {
    let forbidden = |why: String| FetchError::new(Why::Forbidden, told(why.as_bytes()));
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(header::LOCATION);
    let next = location
        .and_then(|location| location.to_str().ok())
        .and_then(|location| at.join(location).ok())
        .ok_or_else(|| FetchError::unwell("it redirects to nowhere"))?;
    if next.scheme() != at.scheme() {
        let (from, to) = (at.scheme(), next.scheme());
        return Err(forbidden(format!("it redirects from {from} to {to}")));
    }
    let next = bare(&next);
    if next.origin() != at.origin() {
        let to = next.origin().ascii_serialization();
        return Err(forbidden(format!("it redirects to another server, {to}")));
    }
    match next.as_str().ends_with(tail) {
        true => Ok(Some(next)),
        false => Err(forbidden(format!("it redirects to no repository: {next}"))),
    }
}

/// Whether an answer is one of git's.
fn check(response: &Response<Incoming>, kind: &str) -> Result<(), FetchError> {
    let status = response.status();
    if status != StatusCode::OK {
        let detail = format!("it answers {status}");
        return Err(match status.as_u16() {
            429 => FetchError::new(Why::Busy, detail),
            408 => FetchError::unwell(detail),
            // Whatever it is called: there is nothing to be had for us at this address.
            400..=499 => FetchError::not_there(detail),
            _ => FetchError::unwell(detail),
        });
    }
    let value = |name| response.headers().get(name).map(HeaderValue::as_bytes);
    match value(header::CONTENT_ENCODING) {
        None | Some(b"" | b"identity") => {}
        Some(other) => {
            let detail = format!(
                "the answer is packed as {}, which was not asked for",
                told(other)
            );
            return Err(FetchError::unwell(detail));
        }
    }
    let found = value(header::CONTENT_TYPE).unwrap_or_default();
    let essence = found.split(|byte| *byte == b';').next().unwrap_or_default();
    if essence.trim_ascii().eq_ignore_ascii_case(kind.as_bytes()) {
        return Ok(());
    }
    // A web page, most often. The server is well, and set aside for this it would be taken from those
    // who have repositories there.
    let detail = format!("no repository is there, but {}", told(found));
    Err(FetchError::not_there(detail))
}

#[cfg(test)]
mod tests;
