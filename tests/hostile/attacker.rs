//! Somebody who means harm, at an address without privileges.

use std::net::Ipv4Addr;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::support::{
    Event, Keys, Service, events,
    git::{ZERO, commands},
    soon,
    web::{self, Answer, Failure},
};

/// Where all attacks come from.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 6, 6, 6);

/// A websocket.
pub type Socket = WebSocketStream<TcpStream>;

/// A connection. So many bytes of what is sent to it wait in the kernel, if that is said.
pub async fn connect(service: &Service, receive_buffer: Option<u32>) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind((ADDRESS, 0).into())?;
    let to = (Ipv4Addr::LOCALHOST, service.port).into();
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a websocket, if the service takes one.
pub async fn try_socket(service: &Service, receive_buffer: Option<u32>) -> Option<Socket> {
    let stream = connect(service, receive_buffer).await.ok()?;
    let url = format!("ws://localhost:{}/", service.port);
    let (socket, _) = client_async(url, stream).await.ok()?;
    Some(socket)
}

/// Opens a websocket that the service must take.
pub async fn socket(service: &Service) -> Socket {
    let socket = try_socket(service, None);
    soon("a websocket", socket).await.expect("a websocket")
}

/// Sends a message; a connection that the service has closed is none to send on.
pub async fn send(socket: &mut Socket, message: &Value) -> bool {
    socket
        .send(Message::text(message.to_string()))
        .await
        .is_ok()
}

/// Reads messages until one begins with one of these words; `None` if the connection ends before.
pub async fn read_until(socket: &mut Socket, words: &[&str]) -> Option<Value> {
    soon("an answer", async {
        while let Some(Ok(message)) = socket.next().await {
            let Message::Text(text) = message else {
                continue;
            };
            let value: Value = serde_json::from_str(&text).expect("the relay sends JSON");
            if words.iter().any(|word| value[0] == *word) {
                return Some(value);
            }
        }
        None
    })
    .await
}

/// Publishes an event; whether it was accepted.
pub async fn publish(socket: &mut Socket, event: &Event) -> bool {
    if !send(socket, &json!(["EVENT", event])).await {
        return false;
    }
    let verdict = read_until(socket, &["OK"]).await;
    verdict.is_some_and(|verdict| verdict[2] == true)
}

/// Sends a request and reads the answer to its end.
pub async fn post(
    service: &Service,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<bytes::Bytes>,
) -> Result<Answer, Failure> {
    let request = web::with_body("POST", service.port, path, headers, web::full(body));
    let stream = connect(service, None).await?;
    web::whole(web::open_on(stream, request).await?).await
}

/// A repository of the attacker's own, into which an object may be pushed that somebody says is its tip.
pub struct Lair {
    pub owner: Keys,
    pub identifier: String,
}

impl Lair {
    /// Announced and signed for.
    pub async fn new(service: &Service, identifier: &str, tip: &str) -> Self {
        let owner = Keys::generate();
        let mut socket = socket(service).await;
        let announcement = events::announcement(service, &owner, identifier).sign(&owner);
        assert!(publish(&mut socket, &announcement).await);
        let state = events::state(identifier, &[("refs/heads/main", tip)]).sign(&owner);
        assert!(publish(&mut socket, &state).await);
        Self {
            owner,
            identifier: identifier.to_owned(),
        }
    }

    /// The path of a service.
    pub fn path(&self, service: &str) -> String {
        let repository = Service::repository_path(&self.owner, &self.identifier);
        format!("{repository}/{service}")
    }

    /// Pushes a pack as what the tip leads to; what the service says.
    pub async fn push(&self, service: &Service, tip: &str, pack: &[u8]) -> String {
        let wanted = [(ZERO, tip, "refs/heads/main")];
        let mut body = commands(&wanted, "report-status");
        body.extend(pack);
        let kind = ("Content-Type", "application/x-git-receive-pack-request");
        match post(service, &self.path("git-receive-pack"), &[kind], body).await {
            Ok(answer) => answer.text(),
            Err(error) => error.to_string(),
        }
    }
}
