//! The yardstick for smart HTTP: `git http-backend`, run for each request as a web server would,
//! behind an HTTP server that does nothing else.

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    process::Command,
};
use tokio_util::io::ReaderStream;

use crate::workload::plain_git;

/// The variable that makes this executable the bridge, and says where the repositories lie.
pub const ROOT: &str = "GRASP_BENCH_BRIDGE_ROOT";

type Body = BoxBody<Bytes, std::io::Error>;

/// Serves until killed. Its first line of output is its port.
pub fn main(root: &Path) -> ! {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let served: Result<Infallible, anyhow::Error> = runtime.block_on(serve(root.to_owned()));
    let Err(error) = served;
    eprintln!("bridge: {error:#}");
    std::process::exit(1)
}

async fn serve(root: PathBuf) -> anyhow::Result<Infallible> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let root = root.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let root = root.clone();
                async move { answer(&root, request).await }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(root: &Path, request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
    let (parts, mut body) = request.into_parts();
    let mut command = Command::from(plain_git());
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REMOTE_USER", "bench")
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
            command.env(name, value.to_str()?);
        }
    }
    let mut child = command.spawn()?;
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
