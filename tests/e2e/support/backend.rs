//! Git's own smart HTTP server: `git http-backend`, run for each request as a web server would.

use std::{path::Path, process::Stdio};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
};
use tokio_util::io::ReaderStream;

pub type Body = BoxBody<Bytes, std::io::Error>;

/// What it answers, for the repositories below `root`. `git` is a plain git command.
pub async fn answer(
    mut git: Command,
    root: &Path,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Body>> {
    let (parts, mut body) = request.into_parts();
    git.arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REMOTE_USER", "somebody")
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    for (name, header) in [
        ("CONTENT_TYPE", "content-type"),
        ("CONTENT_LENGTH", "content-length"),
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
        ("GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = parts.headers.get(header) {
            git.env(name, value.to_str()?);
        }
    }
    let mut child = git.spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && stdin.write_all(&data).await.is_err()
            {
                break;
            }
        }
    });
    let mut output = BufReader::with_capacity(64 << 10, child.stdout.take().context("no output")?);
    let mut response = Response::builder();
    loop {
        let mut line = String::new();
        output.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap_or("500")),
            _ => response.header(name, value),
        };
    }
    // Ends by itself: with its work, or when nobody reads it any more.
    tokio::spawn(async move { child.wait().await });
    let stream = ReaderStream::with_capacity(output, 64 << 10).map_ok(Frame::data);
    response
        .body(BodyExt::boxed(StreamBody::new(stream)))
        .map_err(|error| anyhow!(error))
}
