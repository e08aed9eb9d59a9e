//! HTTP/1.1 over [`Net`]: what git and relays' information documents are asked with.
//!
//! No redirect is followed here, nothing is unpacked, no cookie or credential is kept or sent. Bodies
//! are streams; what is in memory is what the sockets do not hold.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use url::{Origin, Url};

use super::{Net, NetError, forbidden};

/// The longest head of an answer, in bytes, and the most that is read ahead of a body.
const HEAD_BYTES: usize = 64 << 10;
/// The most lines of it.
const HEAD_LINES: usize = 100;
/// How long a connection may take to be free after an answer that was read to its end.
const FREE: Duration = Duration::from_secs(1);

/// A URL as it may be shown: without the credentials it may hold.
pub fn shown(url: &Url) -> String {
    bare(url).to_string()
}

/// A URL without credentials and fragment: what is asked for.
pub fn bare(url: &Url) -> Url {
    let mut bare = url.clone();
    // Fails only for URLs that can hold none.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    bare.set_fragment(None);
    bare
}

/// What is asked. It must do no harm twice: it is sent again where a connection that was used before
/// turns out to be closed.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Which method.
    pub method: Method,
    /// Of which resource; credentials in it are not sent.
    pub url: Url,
    /// With which headers; `Host` is seen to.
    pub headers: HeaderMap,
    /// And this.
    pub body: Bytes,
}

/// Requests one after the other, over one connection as long as they go to the same place and their
/// answers are read to the end.
#[derive(Debug)]
pub struct Conversation<'n> {
    net: &'n Net,
    open: Option<(Origin, SendRequest<Full<Bytes>>)>,
}

impl Net {
    /// Nothing is dialled yet.
    pub fn converse(&self) -> Conversation<'_> {
        Conversation {
            net: self,
            open: None,
        }
    }
}

impl Conversation<'_> {
    /// Sends one request; ends when the answer's head has come, which may take as long as `head`,
    /// connecting included.
    pub async fn send(
        &mut self,
        ask: &Ask,
        head: Duration,
    ) -> Result<Response<Incoming>, NetError> {
        match timeout(head, self.exchange(ask)).await {
            Ok(result) => result,
            Err(_) => Err(NetError::Silent(head)),
        }
    }

    async fn exchange(&mut self, ask: &Ask) -> Result<Response<Incoming>, NetError> {
        let origin = ask.url.origin();
        if let Some((_, mut sender)) = self.open.take_if(|(at, _)| *at == origin)
            && matches!(timeout(FREE, sender.ready()).await, Ok(Ok(())))
            && let Ok(response) = sender.send_request(request(ask)?).await
        {
            self.open = Some((origin, sender));
            return Ok(response);
        }
        let request = request(ask)?;
        let stream = self.net.connect(&ask.url).await?;
        let (mut sender, connection) = Builder::new()
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEAD_LINES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(no_http)?;
        // Ends by itself, with the answer's body and the sender, or when the server hangs up. What
        // goes wrong there is told to whoever waits for the answer.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(no_http)?;
        self.open = Some((origin, sender));
        Ok(response)
    }
}

fn no_http(error: hyper::Error) -> NetError {
    let mut last: &dyn std::error::Error = &error;
    while let Some(source) = last.source() {
        last = source;
    }
    NetError::Http(format!("the answer is none: {last}"))
}

fn request(ask: &Ask) -> Result<Request<Full<Bytes>>, NetError> {
    let url = &ask.url;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(forbidden(format!("{} is not spoken here", url.scheme())));
    }
    let no_url = || forbidden("no URL to ask for");
    let host = url.host_str().ok_or_else(no_url)?;
    let host = match url.port() {
        None => host.to_owned(),
        Some(port) => format!("{host}:{port}"),
    };
    let path = match url.query() {
        None => url.path().to_owned(),
        Some(query) => format!("{}?{query}", url.path()),
    };
    let mut request = Request::new(Full::new(ask.body.clone()));
    *request.method_mut() = ask.method.clone();
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| no_url())?;
    *request.headers_mut() = ask.headers.clone();
    let host = HeaderValue::try_from(host).map_err(|_| no_url())?;
    request.headers_mut().insert(header::HOST, host);
    Ok(request)
}
