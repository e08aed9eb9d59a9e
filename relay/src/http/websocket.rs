//! From an HTTP request to a websocket: the handshake, and how many there may be.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{Request, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response;
use tokio_util::task::TaskTracker;

use crate::session::Sessions;

/// The websockets that are open, by client address. Bounded by how many there may be, and by the
/// file descriptors of the process; each entry ends with its connections.
#[derive(Debug)]
pub struct Connections {
    most: Option<usize>,
    suspicious: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    /// Addresses with suspiciously many.
    suspicious: usize,
}

impl Connections {
    /// At most so many, if bounded; an address with `suspicious` of them is counted as such.
    pub fn new(most: Option<usize>, suspicious: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            suspicious,
            open: Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for one more; `None`: all are taken.
    pub fn seat(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let mut open = self.open();
        if self.most.is_some_and(|most| open.all >= most) {
            return None;
        }
        open.all += 1;
        let same = open.by_address.entry(address).or_default();
        *same += 1;
        if *same == self.suspicious {
            open.suspicious += 1;
        }
        open.tell();
        Some(Seat {
            connections: self.clone(),
            address,
        })
    }
}

impl Open {
    #[allow(clippy::cast_precision_loss)]
    fn tell(&self) {
        metrics::gauge!("ngit_websocket_connections").set(self.all as f64);
        metrics::gauge!("ngit_websocket_addresses").set(self.by_address.len() as f64);
        metrics::gauge!("ngit_websocket_suspicious_addresses").set(self.suspicious as f64);
    }
}

/// One connection's place among all.
#[derive(Debug)]
pub struct Seat {
    connections: Arc<Connections>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let suspicious = self.connections.suspicious;
        let mut open = self.connections.open();
        open.all -= 1;
        if let Some(same) = open.by_address.get_mut(&self.address) {
            *same -= 1;
            let left = *same;
            if left + 1 == suspicious {
                open.suspicious -= 1;
            }
            if left == 0 {
                open.by_address.remove(&self.address);
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
    let Some(seat) = connections.seat(address) else {
        metrics::counter!("ngit_websocket_refused_total").increment(1);
        let reason = "too many connections, try again later\n";
        return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
    };
    let sessions = sessions.clone();
    tasks.spawn(async move {
        let _seat = seat;
        let Ok(upgraded) = upgrade.await else { return };
        if let Ok(parts) = Upgraded::downcast::<TokioIo<TcpStream>>(upgraded) {
            sessions.serve(parts.io.into_inner(), parts.read_buf).await;
        }
    });
    handshake.map(|()| Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_counted_and_given_back() {
        let connections = Connections::new(Some(3), 2);
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let one = connections.seat(address(1)).unwrap();
        let two = connections.seat(address(1)).unwrap();
        let three = connections.seat(address(2)).unwrap();
        assert!(connections.seat(address(3)).is_none());
        assert_eq!(connections.open().suspicious, 1);
        drop(two);
        assert_eq!(connections.open().suspicious, 0);
        drop((one, three));
        assert!(connections.open().by_address.is_empty());
        assert!(connections.seat(address(3)).is_some());
    }
}
