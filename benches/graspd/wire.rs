//! Git's protocol, version 2, spoken just well enough to time a server's answers without the
//! work that a git client does with them.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Stdio,
    time::Instant,
};

use anyhow::{Context, ensure};

use crate::workload::plain_git;

/// When things happened, in milliseconds from the request.
pub struct Times {
    /// The first byte of what was looked for.
    pub marked: Option<f64>,
    /// The last byte.
    pub ended: f64,
    /// How many bytes came.
    pub bytes: usize,
}

fn line(text: &str) -> String {
    format!("{:04x}{text}\n", text.len() + 5)
}

/// A request for everything that `tip` leads to.
pub fn fetch(tip: &str) -> Vec<u8> {
    let head = [line("command=fetch"), "0001".to_owned()];
    let wants = [
        line("no-progress"),
        line("ofs-delta"),
        line(&format!("want {tip}")),
        line("done"),
    ];
    format!("{}{}0000", head.concat(), wants.concat()).into_bytes()
}

/// A request for all refs.
pub fn ls_refs() -> Vec<u8> {
    let arguments = [line("peel"), line("symrefs"), line("ref-prefix refs/")];
    format!("{}0001{}0000", line("command=ls-refs"), arguments.concat()).into_bytes()
}

/// Asks over HTTP, or `git upload-pack` itself where the address is a path.
pub fn exchange(url: &str, request: &[u8], mark: &[u8]) -> anyhow::Result<Times> {
    let Some(rest) = url.strip_prefix("http://") else {
        return exchange_through_pipes(url, request, mark);
    };
    let (host, path) = rest.split_once('/').context("no path")?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_nodelay(true)?;
    let head = format!(
        "POST /{path}/git-upload-pack HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Content-Type: application/x-git-upload-pack-request\r\nGit-Protocol: version=2\r\n\
         Content-Length: {}\r\n\r\n",
        request.len()
    );
    let began = Instant::now();
    stream.write_all(&[head.as_bytes(), request].concat())?;
    watch(began, stream, mark)
}

fn exchange_through_pipes(url: &str, request: &[u8], mark: &[u8]) -> anyhow::Result<Times> {
    let path = url.strip_prefix("file://").unwrap_or(url);
    let began = Instant::now();
    let mut child = plain_git()
        .args(["upload-pack", "--stateless-rpc", path])
        .env("GIT_PROTOCOL", "version=2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no input")?.write_all(request)?;
    let times = watch(began, child.stdout.take().context("no output")?, mark)?;
    ensure!(child.wait()?.success(), "git upload-pack failed");
    Ok(times)
}

fn watch(began: Instant, mut stream: impl Read, mark: &[u8]) -> anyhow::Result<Times> {
    let millis = || began.elapsed().as_secs_f64() * 1000.0;
    let mut buffer = vec![0; 64 << 10];
    let (mut kept, mut marked, mut bytes) = (Vec::new(), None, 0);
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        bytes += n;
        if marked.is_none() {
            // Small: the mark is at the beginning of an answer.
            kept.extend_from_slice(&buffer[..n]);
            if kept.windows(mark.len()).any(|window| window == mark) {
                marked = Some(millis());
            }
        }
    }
    ensure!(
        !kept.starts_with(b"HTTP/1.1 ") || kept.starts_with(b"HTTP/1.1 200"),
        "refused: {}",
        String::from_utf8_lossy(&kept[..kept.len().min(300)])
    );
    Ok(Times {
        marked,
        ended: millis(),
        bytes,
    })
}
