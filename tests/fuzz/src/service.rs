//! What targets need that speak to a service over its port.

use std::{net::SocketAddr, time::Duration};

use grasp_proto::process::settings::Settings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long an answer may take to something that was sent whole. A service that waits for more is
/// told that there is none, and must end.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// Settings of a service that nobody needs.
pub fn settings(own: &[(&'static str, &str)]) -> Settings {
    let token = "0123456789abcdef";
    let common = [
        ("NGIT_DOMAIN", "grasp.example"),
        ("NGIT_DATABASE_BACKEND", "memory"),
        ("NGIT_RELAY_GRPC_ADDRESS", "unix:/nowhere/r"),
        ("NGIT_GITD_GRPC_ADDRESS", "unix:/nowhere/g"),
        ("NGIT_GITD_HTTP_ADDRESS", "unix:/nowhere/h"),
        ("NGIT_INTERNAL_TOKEN_RELAY", token),
        ("NGIT_INTERNAL_TOKEN_GITD", token),
        ("NGIT_INTERNAL_TOKEN_WORKER", token),
    ];
    let all = common.iter().chain(own);
    Settings::from_pairs(all.map(|(name, value)| (*name, (*value).to_owned())))
}

/// Sends bytes, and that there are no more; gives all that is answered.
pub async fn answer(address: SocketAddr, data: &[u8]) -> Vec<u8> {
    let tcp = TcpStream::connect(address).await.expect("a connection");
    let (mut from, mut to) = tcp.into_split();
    let mut answer = Vec::new();
    let sent = async {
        // A service that has heard enough reads no more.
        let _ = to.write_all(data).await;
        let _ = to.shutdown().await;
    };
    let conversation = async {
        let ((), _) = tokio::join!(sent, from.read_to_end(&mut answer));
    };
    let ended = timeout(ANSWERS_WITHIN, conversation).await;
    assert!(ended.is_ok(), "it does not end");
    answer
}

/// An answer, if there is one, is HTTP, and no failure of ours.
pub fn check_http(answer: &[u8]) {
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
    assert!(!answer.starts_with(b"HTTP/1.1 500"), "the service failed");
}
