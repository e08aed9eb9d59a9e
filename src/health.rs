//! `graspd health`: whether one process does its work, for those who watch over it: container
//! engines, systemd, scripts.
//!
//! Run beside the process and with its settings, it needs no other tool. The relay is asked at its
//! public listener, as it is set or as a service that runs here has noted it ([`crate::service`]); gitd
//! for the standard gRPC health service. A syncworker listens nowhere: what can be told from outside is
//! whether relay and gitd answer to its credential.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};
use grasp_proto::{
    process::settings::{BadSetting, Settings},
    transport::{self, Endpoint, Role},
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::service::listener;

/// How long all of it may take: less than what those who ask are given.
const PATIENCE: Duration = Duration::from_secs(4);

/// The most of a reason that is read.
const REASON_BYTES: usize = 4096;

/// The role of this name.
pub fn role_named(name: &str) -> Option<Role> {
    Role::ALL.into_iter().find(|role| role.as_str() == name)
}

/// Fails with the reason unless the process of this role is well.
pub async fn check(settings: &Settings, role: Role) -> anyhow::Result<()> {
    let checked = tokio::time::timeout(PATIENCE, ask(settings, role)).await;
    checked.context("no answer in time")?
}

async fn ask(settings: &Settings, role: Role) -> anyhow::Result<()> {
    match role {
        Role::Relay => is_ready(public(settings)?).await,
        Role::Gitd => serves(settings, "NGIT_GITD_GRPC_ADDRESS", role).await,
        Role::Worker => {
            serves(settings, "NGIT_RELAY_GRPC_ADDRESS", role).await?;
            serves(settings, "NGIT_GITD_GRPC_ADDRESS", role).await
        }
    }
}

/// The public listener, as it is reached from this machine.
fn public(settings: &Settings) -> Result<SocketAddr, BadSetting> {
    const BIND: &str = "NGIT_BIND_ADDRESS";
    let is_said = settings.is_set(BIND) && !settings.is_set("NGIT_RUN_DIR");
    let noted = if is_said { None } else { listener(settings) };
    let bind: SocketAddr = match noted {
        Some(bind) => bind,
        None => settings.parse(BIND, "an address like 0.0.0.0:7334")?,
    };
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, bind.port()))
}

async fn is_ready(address: SocketAddr) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.with_context(|| format!("nobody listens on {address}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/readyz")
        .header("Host", address.to_string())
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let body = Limited::new(answer.into_body(), REASON_BYTES).collect();
    let body = body.await.map(|body| body.to_bytes()).unwrap_or_default();
    bail!("{status}: {}", String::from_utf8_lossy(&body).trim())
}

/// Asks the health service at the address that `name` holds, as `role`.
async fn serves(settings: &Settings, name: &'static str, role: Role) -> anyhow::Result<()> {
    let endpoint = settings.endpoint(name)?;
    let answer = transport::serves(endpoint.authorized(&settings.token_of(role)?)).await;
    answer
        .map_err(anyhow::Error::msg)
        .with_context(|| match &endpoint {
            Endpoint::Unix(_) => format!("the service at {name}"),
            endpoint => format!("the service at {endpoint} ({name})"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let asked = |bind: &str| {
            let pairs = [("NGIT_BIND_ADDRESS", bind.to_owned())];
            public(&Settings::from_pairs(pairs)).unwrap().to_string()
        };
        assert_eq!(asked("0.0.0.0:7334"), "127.0.0.1:7334");
        assert_eq!(asked("[::]:7334"), "[::1]:7334");
        assert_eq!(asked("10.0.0.1:80"), "10.0.0.1:80");
    }
}
