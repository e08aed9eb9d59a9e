//! How much memory the filters of all connections take: bounded for one connection, for one client and over
//! all. When there is no room for all, whoever takes most gives way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use grasp_proto::client::Client;

use super::TooMuch;
use crate::tally::Tally;

/// The most of one connection, in bytes. A relay that follows a thousand repositories needs about two
/// million.
pub(super) const OF_CONNECTION: usize = 4 << 20;
/// The most of one client.
const OF_CLIENT: usize = 16 << 20;
/// The most of all.
const OF_ALL: usize = 48 << 20;

/// Who takes it: a client that has limits, or a connection of one that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Taker {
    Client(Client),
    Connection(u64),
}

#[derive(Debug, Default)]
struct Taken {
    connections: HashMap<u64, (Option<Client>, usize)>,
    takers: Tally<Taker>,
}

impl Taken {
    fn of_connection(&self, number: u64) -> usize {
        self.connections.get(&number).map_or(0, |(_, bytes)| *bytes)
    }

    #[allow(clippy::cast_precision_loss)]
    fn measure(&self) {
        metrics::gauge!("ngit_websocket_filter_bytes").set(self.takers.all() as f64);
    }
}

fn taker(number: u64, client: Option<Client>) -> Taker {
    client.map_or(Taker::Connection(number), Taker::Client)
}

/// What is taken. Bounded by its limits.
#[derive(Debug, Default)]
pub(super) struct FilterRoom(Mutex<Taken>);

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// And whoever asks takes most, or would.
    Refused(TooMuch),
    /// This connection is to give way first.
    Before(u64),
}

impl FilterRoom {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for so many bytes more on a connection.
    pub(super) fn take(
        self: &Arc<Self>,
        number: u64,
        client: Option<Client>,
        bytes: usize,
    ) -> Result<Taking, Short> {
        let mut taken = self.taken();
        if taken.of_connection(number) + bytes > OF_CONNECTION {
            return Err(Short::Refused(TooMuch::Filters));
        }
        let own = taker(number, client);
        let of_own = taken.takers.of(&own) + bytes;
        if of_own > OF_CLIENT {
            return Err(Short::Refused(TooMuch::OfClient));
        }
        if taken.takers.all() + bytes > OF_ALL {
            let largest = taken.takers.largest();
            let largest = largest.filter(|(taker, bytes)| **taker != own && *bytes >= of_own);
            let of_largest = largest.and_then(|(largest, _)| {
                let connections = taken.connections.iter();
                let its = connections.filter(|(n, (client, _))| taker(**n, *client) == *largest);
                its.max_by_key(|(_, (_, bytes))| *bytes).map(|(n, _)| *n)
            });
            return Err(match of_largest {
                Some(number) => Short::Before(number),
                None => Short::Refused(TooMuch::OfAll),
            });
        }
        taken.connections.entry(number).or_insert((client, 0)).1 += bytes;
        taken.takers.add(own, bytes);
        taken.measure();
        drop(taken);
        Ok(Taking {
            room: self.clone(),
            number,
            bytes,
        })
    }
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub struct Taking {
    room: Arc<FilterRoom>,
    number: u64,
    bytes: usize,
}

impl Taking {
    /// How much.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        let Some((client, of_connection)) = taken.connections.get_mut(&self.number) else {
            return;
        };
        let own = taker(self.number, *client);
        *of_connection -= self.bytes;
        if *of_connection == 0 {
            taken.connections.remove(&self.number);
        }
        taken.takers.remove(&own, self.bytes);
        taken.measure();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> Client {
        Client::of([192, 0, 2, n].into())
    }

    #[test]
    fn a_connection_and_a_client_have_their_bounds_and_give_back() {
        let room = Arc::new(FilterRoom::default());
        let all: Vec<Taking> = (0..4)
            .map(|n| room.take(n, Some(client(1)), OF_CONNECTION).unwrap())
            .collect();
        let refused = |number, client| room.take(number, client, 1).map(drop).unwrap_err();
        assert_eq!(
            refused(0, Some(client(1))),
            Short::Refused(TooMuch::Filters)
        );
        assert_eq!(
            refused(9, Some(client(1))),
            Short::Refused(TooMuch::OfClient)
        );
        drop(room.take(9, Some(client(2)), 1).unwrap());
        drop(all);
        let taken = room.taken();
        assert!(taken.connections.is_empty() && taken.takers.largest().is_none());
        assert_eq!(taken.takers.all(), 0);
    }

    #[test]
    fn when_short_the_largest_gives_way() {
        let room = Arc::new(FilterRoom::default());
        let mut all = Vec::new();
        for n in 0..12 {
            let client = Some(client(u8::try_from(n / 4).unwrap()));
            all.push(room.take(n, client, OF_CONNECTION).unwrap());
        }
        // Of the largest client the largest connection.
        all.remove(5);
        all.push(room.take(12, Some(client(9)), OF_CONNECTION).unwrap());
        let short = room.take(13, Some(client(8)), 2).unwrap_err();
        let Short::Before(number) = short else {
            panic!("{short:?}");
        };
        assert!(
            (0..4).contains(&number) || (8..12).contains(&number),
            "{number}"
        );
        // A client has its bound all the same.
        let mut own = Vec::new();
        all.truncate(8);
        for n in 20..23 {
            own.push(room.take(n, Some(client(7)), OF_CONNECTION).unwrap());
        }
        while let Ok(taking) = room.take(23, Some(client(7)), 1 << 20) {
            own.push(taking);
        }
        assert_eq!(
            room.take(24, Some(client(7)), 2 << 20)
                .map(drop)
                .unwrap_err(),
            Short::Refused(TooMuch::OfClient)
        );
    }
}
