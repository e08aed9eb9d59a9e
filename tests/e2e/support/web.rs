//! HTTP by hand: whole answers, bodies sent and read at the test's own pace.

use bytes::Bytes;
use futures::{SinkExt, StreamExt, channel::mpsc};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle};

use super::soon;

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> String {
        let values: Vec<_> = self
            .headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        values.join(", ")
    }
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    UnsyncBoxBody::new(Full::new(bytes.into()).map_err(|never| match never {}))
}

/// Sends a request on a connection of its own and gives the answer's head and its body to read.
pub async fn open(port: u16, request: Request<Body>) -> Result<http::Response<Incoming>, Failure> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    open_on(stream, request).await
}

/// Sends a request on a connection and gives the answer's head and its body to read.
pub async fn open_on(
    stream: TcpStream,
    request: Request<Body>,
) -> Result<http::Response<Incoming>, Failure> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// Sends a request and reads the whole answer.
pub async fn fetch(port: u16, request: Request<Body>) -> Result<Answer, Failure> {
    whole(open(port, request).await?).await
}

/// Reads the rest of an answer.
pub async fn whole(response: http::Response<Incoming>) -> Result<Answer, Failure> {
    let (head, body) = response.into_parts();
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await?.to_bytes(),
    })
}

/// A request to the service at `port`, without a body.
pub fn request(method: &str, port: u16, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    with_body(method, port, path, headers, full(Bytes::new()))
}

/// A request with a body.
pub fn with_body(
    method: &str,
    port: u16,
    path: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Request<Body> {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("Host", format!("localhost:{port}"));
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body).unwrap()
}

/// A POST whose body is sent piece by piece.
pub struct Upload {
    pieces: Option<mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>>,
    answer: JoinHandle<Result<Answer, Failure>>,
}

impl Upload {
    pub fn start(port: u16, path: &str, headers: &[(&str, &str)]) -> Self {
        let (pieces, receiver) = mpsc::channel(0);
        let body = UnsyncBoxBody::new(StreamBody::new(receiver.map(|piece| piece)));
        let request = with_body("POST", port, path, headers, body);
        Self {
            pieces: Some(pieces),
            answer: tokio::spawn(async move { fetch(port, request).await }),
        }
    }

    /// Sends one piece; an upload that the service has ended already is left alone.
    pub async fn send(&mut self, bytes: impl Into<Bytes>) {
        if let Some(pieces) = &mut self.pieces {
            let piece = Ok(Frame::data(bytes.into()));
            if soon("a piece of the upload", pieces.send(piece))
                .await
                .is_err()
            {
                self.pieces = None;
            }
        }
    }

    /// Whether the service has answered before the end.
    pub fn answered(&self) -> bool {
        self.answer.is_finished()
    }

    /// Ends the body and reads the answer.
    pub async fn finish(mut self) -> Result<Answer, Failure> {
        self.pieces = None;
        soon("the answer to an upload", &mut self.answer).await?
    }

    /// Breaks the connection off in the middle of the body.
    pub async fn abort(mut self) {
        if let Some(pieces) = &mut self.pieces {
            let broken = std::io::Error::other("broken off by the test");
            let _ = pieces.send(Err(broken)).await;
        }
        let _ = soon("the end of an upload", &mut self.answer).await;
    }
}
