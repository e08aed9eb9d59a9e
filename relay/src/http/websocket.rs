//! From an HTTP request to a websocket: the handshake, and how many there may be.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use grasp_proto::client::Client;
use http::{Request, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response;
use tokio_util::task::TaskTracker;

use crate::{config::ClientLimits, meters, session::Sessions};

/// The websockets that are open, by client address. Bounded by how many there may be, and by the
/// file descriptors of the process; each entry ends with its connections.
#[derive(Debug)]
pub struct Connections {
    most: Option<usize>,
    limits: ClientLimits,
    suspicious: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_client: HashMap<Client, usize>,
    /// Addresses with suspiciously many.
    suspicious: usize,
}

impl Connections {
    /// At most so many, if bounded, and of one client as its limits say; one with `suspicious` of
    /// them is counted as such.
    pub fn new(most: Option<usize>, limits: &ClientLimits, suspicious: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            limits: limits.clone(),
            suspicious,
            open: Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for one more, unless all are taken.
    pub fn seat(self: &Arc<Self>, address: IpAddr) -> Result<Seat, Full> {
        let mut open = self.open();
        if self.most.is_some_and(|most| open.all >= most) {
            return Err(Full::ForAll);
        }
        let client = Client::of(address);
        let limits = &self.limits;
        let own = open.by_client.get(&client).copied().unwrap_or_default();
        let is_limited = limits.connections > 0 && !limits.unlimited.contain(address);
        if is_limited && own >= limits.connections {
            return Err(Full::ForClient);
        }
        metrics::counter!("ngit_websocket_connections_total").increment(1);
        open.all += 1;
        let same = open.by_client.entry(client).or_default();
        *same += 1;
        if *same == self.suspicious {
            open.suspicious += 1;
        }
        open.tell();
        Ok(Seat {
            connections: self.clone(),
            client,
            since: Instant::now(),
        })
    }
}

impl Open {
    #[allow(clippy::cast_precision_loss)]
    fn tell(&self) {
        metrics::gauge!("ngit_websocket_connections").set(self.all as f64);
        metrics::gauge!("ngit_websocket_addresses").set(self.by_client.len() as f64);
        metrics::gauge!("ngit_websocket_suspicious_addresses").set(self.suspicious as f64);
    }
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All are taken.
    ForAll,
    /// The client has all it may have.
    ForClient,
}

/// One connection's place among all.
#[derive(Debug)]
pub struct Seat {
    connections: Arc<Connections>,
    client: Client,
    since: Instant,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let lasted = self.since.elapsed();
        metrics::histogram!("ngit_websocket_connection_duration_seconds").record(lasted);
        let suspicious = self.connections.suspicious;
        let mut open = self.connections.open();
        open.all -= 1;
        if let Some(same) = open.by_client.get_mut(&self.client) {
            *same -= 1;
            let left = *same;
            if left + 1 == suspicious {
                open.suspicious -= 1;
            }
            if left == 0 {
                open.by_client.remove(&self.client);
            }
        }
        open.tell();
    }
}

/// Whether a request wants to become a websocket.
pub fn is_wanted<B>(request: &Request<B>) -> bool {
    let upgrade = request.headers().get(header::UPGRADE);
    upgrade.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers the handshake; the websocket is served in a task of its own.
pub fn accept(
    mut request: Request<Body>,
    address: IpAddr,
    connections: &Arc<Connections>,
    sessions: &Arc<Sessions>,
    tasks: &TaskTracker,
) -> Response {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let handshake = create_response(&request.map(drop));
    let (Some(upgrade), Ok(handshake)) = (upgrade, handshake) else {
        return (StatusCode::BAD_REQUEST, "not a websocket handshake\n").into_response();
    };
    let seat = match connections.seat(address) {
        Ok(seat) => seat,
        Err(full) => {
            metrics::counter!("ngit_websocket_refused_total").increment(1);
            let (status, reason) = match full {
                Full::ForAll => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "too many connections, try again later\n",
                ),
                Full::ForClient => {
                    meters::limited("connections");
                    let reason = "too many connections from your address\n";
                    (StatusCode::TOO_MANY_REQUESTS, reason)
                }
            };
            return (status, reason).into_response();
        }
    };
    let sessions = sessions.clone();
    tasks.spawn(async move {
        let _seat = seat;
        let Ok(upgraded) = upgrade.await else { return };
        if let Ok(parts) = Upgraded::downcast::<TokioIo<TcpStream>>(upgraded) {
            let tcp = parts.io.into_inner();
            sessions.serve(tcp, parts.read_buf, address).await;
        }
    });
    handshake.map(|()| Body::empty())
}

#[cfg(test)]
mod tests {
    use grasp_proto::client::Networks;

    use super::*;

    fn limits(connections: usize) -> ClientLimits {
        ClientLimits {
            connections,
            events_per_minute: 0,
            unlimited: Networks::parse("10.0.0.0/8").unwrap(),
        }
    }

    #[test]
    fn seats_are_counted_and_given_back() {
        let connections = Connections::new(Some(3), &limits(0), 2);
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let one = connections.seat(address(1)).unwrap();
        let two = connections.seat(address(1)).unwrap();
        let three = connections.seat(address(2)).unwrap();
        assert_eq!(connections.seat(address(3)).unwrap_err(), Full::ForAll);
        assert_eq!(connections.open().suspicious, 1);
        drop(two);
        assert_eq!(connections.open().suspicious, 0);
        drop((one, three));
        assert!(connections.open().by_client.is_empty());
        assert!(connections.seat(address(3)).is_ok());
    }

    #[test]
    fn one_client_has_no_more_than_its_own() {
        let connections = Connections::new(None, &limits(1), 9);
        let address = |text: &str| text.parse().unwrap();
        let one = connections.seat(address("2001:db8::1")).unwrap();
        let same = connections.seat(address("2001:db8::2"));
        assert_eq!(same.unwrap_err(), Full::ForClient);
        let others = ["192.0.2.1", "10.0.0.1", "10.0.0.1"];
        let others = others.map(|other| connections.seat(address(other)).unwrap());
        drop(one);
        assert!(connections.seat(address("2001:db8::2")).is_ok());
        drop(others);
    }
}
