//! The yardstick for smart HTTP: `git http-backend` behind an HTTP server that does nothing else.

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, process::Command};

use crate::{backend, workload::plain_git};

/// The variable that makes this executable the bridge, and says where the repositories lie.
pub const ROOT: &str = "GRASP_BENCH_BRIDGE_ROOT";
/// The variable that says how many milliseconds every answer takes to come, as from far away.
pub const DELAY: &str = "GRASP_BENCH_BRIDGE_DELAY_MS";

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
    let delay = std::env::var(DELAY).ok().and_then(|text| text.parse().ok());
    let delay = Duration::from_millis(delay.unwrap_or_default());
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let root = root.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let root = root.clone();
                async move {
                    tokio::time::sleep(delay).await;
                    backend::answer(Command::from(plain_git()), &root, request).await
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
