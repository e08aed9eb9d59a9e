//! What one client may ask for, and take.
//!
//! Readers need no account, so an address is all there is to go by. A client that has used up what it
//! may take is refused when it asks next; what runs is never cut off for it, however long it takes.
//! It is gitd that counts, not the relay, as an edge may lead here directly.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use grasp_proto::{
    client::{Client, ForwardKey, Networks, Rates, Seat, Seats, client_address},
    process::settings::{BadSetting, Settings},
    smart_http::GitService,
    transport::Tokens,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};

use super::{Body, pkt_line, status, typed, whole};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
/// Bytes that are counted at once.
const COUNTED: u64 = 1 << 20;

/// Who is asking, and what of it is granted.
#[derive(Debug)]
pub struct Door {
    /// Peers whose word about the client's address is believed.
    trusted: Networks,
    /// By which the relay tells of its clients.
    relay: ForwardKey,
    /// Whom no limit holds.
    unlimited: Networks,
    requests: Option<Rates>,
    transfers: Option<Arc<Seats>>,
    bytes: Option<Rates>,
}

/// A request that is granted.
#[derive(Debug, Default)]
pub struct Visit {
    seat: Option<Seat>,
    client: Option<Client>,
}

/// Why a request is refused, and for how long.
#[derive(Debug)]
pub struct Refused {
    reason: &'static str,
    wait: Option<Duration>,
    client: Client,
}

/// Marks an answer that refuses: git's users are told in the body of a good one.
#[derive(Debug, Clone, Copy)]
pub struct IsRefused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.wait {
            Some(wait) => write!(
                f,
                "{} from your address, try again in {} s",
                self.reason,
                wait.as_secs() + 1
            ),
            None => write!(f, "{} from your address", self.reason),
        }
    }
}

impl Door {
    /// Reads the settings that concern clients.
    pub fn from_settings(settings: &Settings, tokens: &Tokens) -> Result<Self, BadSetting> {
        let number = |name| settings.parse::<u64>(name, "a number; 0: no limit");
        let transfers = settings.parse("NGIT_GIT_TRANSFERS_PER_IP", "a number; 0: no limit")?;
        Ok(Self {
            trusted: settings.parse_with("NGIT_TRUSTED_PROXY_CIDRS", Networks::parse)?,
            relay: ForwardKey::new(tokens),
            unlimited: settings.parse_with("NGIT_UNLIMITED_CIDRS", Networks::parse)?,
            requests: Rates::new(number("NGIT_GIT_REQUESTS_PER_MINUTE_PER_IP")?, MINUTE),
            transfers: Seats::new(transfers),
            bytes: Rates::new(number("NGIT_GIT_BYTES_PER_HOUR_PER_IP")?, HOUR),
        })
    }

    /// Who is behind a connection. A peer without an address is on this machine's socket, and may
    /// say for whom it asks.
    pub fn client(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let told = || self.relay.open(headers);
        told().or_else(|| peer.map(|peer| client_address(peer, headers, &self.trusted)))
    }

    /// Whether the relay sends this: over this machine's socket, or with its seal. Its word about the
    /// trace is followed, too.
    pub fn is_from_relay(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
        peer.is_none() || self.relay.open(headers).is_some()
    }

    /// Lets a request in, or not.
    pub fn enter<B>(
        &self,
        address: Option<IpAddr>,
        request: &Request<B>,
        now: Instant,
    ) -> Result<Visit, Refused> {
        let limited = address.filter(|address| !self.unlimited.contain(*address));
        let Some(client) = limited.map(Client::of) else {
            return Ok(Visit::default());
        };
        let refused = |limit, reason, wait| {
            metrics::counter!("ngit_limits_refused_total", "limit" => limit).increment(1);
            Err(Refused {
                reason,
                wait,
                client,
            })
        };
        if let Some(Err(too_many)) = self.requests.as_ref().map(|all| all.take(client, now)) {
            return refused("git_requests", "too many requests", Some(too_many.wait));
        }
        if let Some(Err(too_much)) = self.bytes.as_ref().map(|all| all.ask(client, now)) {
            return refused("git_bytes", "too much data was taken", Some(too_much.wait));
        }
        let seat = match &self.transfers {
            Some(seats) if request.method() == Method::POST => {
                let Some(seat) = seats.take(client) else {
                    return refused("git_transfers", "too many transfers at once", None);
                };
                Some(seat)
            }
            _ => None,
        };
        Ok(Visit {
            seat,
            client: Some(client),
        })
    }
}

/// Tells a git user, or a browser, that a request is refused.
pub fn refuse<B>(refused: &Refused, request: &Request<B>) -> Response<Body> {
    let mut response = refusal(refused, request);
    response.extensions_mut().insert(IsRefused);
    response
}

fn refusal<B>(refused: &Refused, request: &Request<B>) -> Response<Body> {
    let error = format!("ERR {refused}\n");
    let path = request.uri().path();
    let announces = GitService::asked_for(request.uri().query());
    let (kind, body) = match announces.filter(|_| path.ends_with("/info/refs")) {
        Some(GitService::UploadPack) => (
            "application/x-git-upload-pack-advertisement",
            announced("git-upload-pack", error),
        ),
        Some(GitService::ReceivePack) => (
            "application/x-git-receive-pack-advertisement",
            announced("git-receive-pack", error),
        ),
        _ if path.ends_with("/git-upload-pack") => (
            "application/x-git-upload-pack-result",
            pkt_line::line(error),
        ),
        // A pusher listens for the side band, in which 3 is a fatal error.
        _ if path.ends_with("/git-receive-pack") => (
            "application/x-git-receive-pack-result",
            pkt_line::line(format!("\u{3}{refused}\n")),
        ),
        _ => {
            let text = whole(format!("{refused}\n"));
            let mut response = typed(status(StatusCode::TOO_MANY_REQUESTS, text), "text/plain");
            if let Some(wait) = refused.wait {
                let seconds = http::HeaderValue::from(wait.as_secs() + 1);
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
            return response;
        }
    };
    typed(status(StatusCode::OK, whole(body)), kind)
}

/// An error where a client expects what a service has.
fn announced(service: &str, error: String) -> Bytes {
    let mut bytes = pkt_line::line(format!("# service={service}\n")).to_vec();
    bytes.extend_from_slice(b"0000");
    bytes.extend_from_slice(&pkt_line::line(error));
    bytes.into()
}

impl Refused {
    /// What counts the bytes of a request that is refused: they came all the same.
    pub fn meter(&self, door: &Arc<Door>) -> Meter {
        Meter::new(door, self.client)
    }
}

impl Visit {
    /// What counts the bytes of the request.
    pub fn meter(&self, door: &Arc<Door>) -> Option<Meter> {
        Some(Meter::new(door, self.client?))
    }

    /// Counts the bytes of the answer, with whose end the place is given back.
    pub fn answered(self, door: &Arc<Door>, body: Body) -> Body {
        match self.meter(door) {
            Some(mut meter) => {
                meter.seat = self.seat;
                Counted { body, meter }.boxed_unsync()
            }
            None => body,
        }
    }
}

/// Counts what a client takes, to the end of what it counts.
#[derive(Debug)]
pub struct Meter {
    door: Arc<Door>,
    client: Client,
    uncounted: u64,
    seat: Option<Seat>,
}

impl Meter {
    fn new(door: &Arc<Door>, client: Client) -> Self {
        Self {
            door: door.clone(),
            client,
            uncounted: 0,
            seat: None,
        }
    }

    /// So many more.
    pub fn count(&mut self, bytes: usize) {
        self.uncounted += bytes as u64;
        if self.uncounted >= COUNTED {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let bytes = std::mem::take(&mut self.uncounted);
        if let Some(all) = self.door.bytes.as_ref().filter(|_| bytes > 0) {
            all.charge(self.client, bytes, Instant::now());
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.settle();
        drop(self.seat.take());
    }
}

struct Counted {
    body: Body,
    meter: Meter,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.meter.count(frame.data_ref().map_or(0, Bytes::len));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(pairs: &[(&'static str, &str)]) -> Arc<Door> {
        let token = || "0123456789abcdef".to_owned();
        let common = [
            ("NGIT_INTERNAL_TOKEN_RELAY", token()),
            ("NGIT_INTERNAL_TOKEN_GITD", token()),
            ("NGIT_INTERNAL_TOKEN_WORKER", token()),
        ];
        let own = pairs
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let settings = Settings::from_pairs(common.into_iter().chain(own));
        let tokens = settings.tokens().unwrap();
        Arc::new(Door::from_settings(&settings, &tokens).unwrap())
    }

    fn fetch() -> Request<()> {
        let path = "/npub1x/y.git/git-upload-pack";
        Request::post(path).body(()).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn told(response: Response<Body>) -> String {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    }

    #[test]
    fn one_client_is_refused_and_no_other() {
        let door = door(&[("NGIT_GIT_REQUESTS_PER_MINUTE_PER_IP", "2")]);
        let now = Instant::now();
        let enter = |text| door.enter(Some(address(text)), &fetch(), now).is_ok();
        assert!(enter("192.0.2.1") && enter("192.0.2.1"));
        assert!(!enter("192.0.2.1"));
        assert!(enter("192.0.2.2"));
        // What is no client of the public internet is the operator's own.
        for _ in 0..9 {
            assert!(enter("10.0.0.1") && enter("::1"));
        }
        let later = now + Duration::from_secs(31);
        assert!(
            door.enter(Some(address("192.0.2.1")), &fetch(), later)
                .is_ok()
        );
    }

    #[tokio::test]
    async fn what_was_taken_is_owed_and_what_runs_goes_on() {
        let door = door(&[("NGIT_GIT_BYTES_PER_HOUR_PER_IP", "1000")]);
        let now = Instant::now();
        let visit = door
            .enter(Some(address("192.0.2.1")), &fetch(), now)
            .unwrap();
        let body = visit.answered(&door, whole(vec![0; 5_000]));
        let other = door
            .enter(Some(address("192.0.2.1")), &fetch(), now)
            .unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 5_000);
        drop(other);
        let refused = door
            .enter(Some(address("192.0.2.1")), &fetch(), now)
            .unwrap_err();
        let words = told(refuse(&refused, &fetch())).await;
        assert!(
            words.contains("ERR too much data was taken from your address"),
            "{words}"
        );
        assert!(
            door.enter(Some(address("192.0.2.2")), &fetch(), now)
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_place_is_held_to_the_end_of_the_answer() {
        let door = door(&[("NGIT_GIT_TRANSFERS_PER_IP", "1")]);
        let enter =
            |request: &Request<()>| door.enter(Some(address("192.0.2.1")), request, Instant::now());
        let body = enter(&fetch()).unwrap().answered(&door, whole("x"));
        assert!(enter(&fetch()).is_err());
        let page = Request::get("/npub1x/y.git").body(()).unwrap();
        assert!(enter(&page).is_ok());
        drop(body);
        assert!(enter(&fetch()).is_ok());
    }

    #[tokio::test]
    async fn everybody_is_refused_in_his_own_language() {
        let refused = || Refused {
            reason: "too many requests",
            wait: Some(Duration::from_secs(7)),
            client: Client::of(address("192.0.2.1")),
        };
        for (request, expected) in [
            (
                Request::get("/n/y.git/info/refs?service=git-upload-pack"),
                "ERR too many requests from your address",
            ),
            (
                Request::get("/n/y.git/info/refs?service=git-receive-pack"),
                "ERR too many requests from your address",
            ),
            (
                Request::post("/n/y.git/git-upload-pack"),
                "ERR too many requests from your address",
            ),
            (Request::post("/n/y.git/git-receive-pack"), "\u{3}too many"),
        ] {
            let response = refuse(&refused(), &request.body(()).unwrap());
            assert_eq!(response.status(), StatusCode::OK);
            assert!(response.extensions().get::<IsRefused>().is_some());
            let words = told(response).await;
            assert!(words.contains(expected), "{words:?}");
        }
        let page = refuse(&refused(), &Request::get("/n/y.git").body(()).unwrap());
        assert_eq!(page.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(page.headers()[header::RETRY_AFTER], "8");
    }

    #[test]
    fn the_relay_is_believed_and_strangers_are_not() {
        let door = door(&[("NGIT_TRUSTED_PROXY_CIDRS", "10.0.0.0/8")]);
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "9.9.9.9, 10.0.0.2".parse().unwrap());
        assert_eq!(
            door.client(Some(address("8.8.8.8")), &headers),
            Some(address("8.8.8.8"))
        );
        assert_eq!(
            door.client(Some(address("10.0.0.1")), &headers),
            Some(address("9.9.9.9"))
        );
        assert_eq!(door.client(None, &headers), None);
        let sealed = door.relay.seal("192.0.2.7".parse().unwrap());
        headers.insert(grasp_proto::client::FORWARDED_CLIENT, sealed);
        assert_eq!(
            door.client(Some(address("8.8.8.8")), &headers),
            Some(address("192.0.2.7"))
        );
        headers.insert(
            grasp_proto::client::FORWARDED_CLIENT,
            "192.0.2.7".parse().unwrap(),
        );
        assert_eq!(
            door.client(Some(address("8.8.8.8")), &headers),
            Some(address("8.8.8.8"))
        );
    }
}
