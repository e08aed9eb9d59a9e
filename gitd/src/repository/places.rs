//! Room for git processes: who gets a place, who waits, and who must give one back.
//!
//! One client has a quarter of the places at most, and the last few are for clients that have none: so
//! however many places a few of them hold, somebody new is served at once. Where a client decides how
//! long a place is held, it has to keep a pace ([`Taking`]), but only while somebody waits in vain: then
//! the slowest of those that are far too slow loses its place. A slow clone is not punished for
//! being slow; one that hardly moves does not keep others out.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::meters;

/// What a client has to take, in bytes a second, while somebody waits: a quarter of the slowest line that
/// people clone over.
const PACE: u64 = 4 * 1024;
/// For how long it may take nothing. Buffers on the way take much at once and then nothing for long.
const PAUSE: Duration = Duration::from_secs(90);
/// What it may be ahead.
const AHEAD: u64 = PACE * PAUSE.as_secs();
/// How long somebody waits before others must give way to him.
const PATIENT: Duration = Duration::from_secs(10);
/// How often he looks for such others.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a reader waits at all: less than proxies let pass in silence.
const LONGEST: Duration = Duration::from_secs(50);

/// No place came free in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// All are taken.
    #[error("the server is busy, try again in a moment")]
    All,
    /// The client itself has as many as one client may have.
    #[error("too many clones and fetches from your address are running, try again in a moment")]
    Own,
}

/// How far a client is ahead of its pace.
#[derive(Debug)]
struct Credit {
    bytes: u64,
    /// Since when it could have taken something and has not.
    waiting: Option<Instant>,
}

impl Credit {
    /// What is left of it now.
    fn left(&self, now: Instant) -> u64 {
        let waited = self.waiting.map_or(Duration::ZERO, |since| now - since);
        let due = u128::from(PACE) * waited.as_millis() / 1000;
        self.bytes
            .saturating_sub(u64::try_from(due).unwrap_or(u64::MAX))
    }
}

/// How a client takes what a place makes for it. Time in which it waits for us costs it nothing.
#[derive(Debug)]
pub struct Taking {
    credit: Mutex<Credit>,
    asked_back: CancellationToken,
}

impl Taking {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            credit: Mutex::new(Credit {
                bytes: AHEAD,
                waiting: None,
            }),
            asked_back: CancellationToken::new(),
        })
    }

    fn credit(&self) -> MutexGuard<'_, Credit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something to take from now on.
    pub fn offered(&self) {
        self.credit().waiting = Some(Instant::now());
    }

    /// The client has taken so many bytes.
    pub fn took(&self, bytes: u64) {
        let mut credit = self.credit();
        credit.bytes = AHEAD.min(credit.left(Instant::now()) + bytes);
        credit.waiting = None;
    }

    /// Waits until the place is wanted by somebody else, because its client is too slow.
    pub async fn asked_back(&self) {
        self.asked_back.cancelled().await;
    }

    fn is_asked_back(&self) -> bool {
        self.asked_back.is_cancelled()
    }

    /// For how long its client has taken nothing, if it is too slow.
    fn overdue(&self, now: Instant) -> Option<Duration> {
        let credit = self.credit();
        let waited = now - credit.waiting?;
        (!self.is_asked_back() && credit.left(now) == 0).then_some(waited)
    }
}

/// Lets so many git processes of one kind run at once; the others wait in turn.
#[derive(Debug, Clone)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many one client may have.
    share: usize,
    /// How many are for clients that have none.
    reserved: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: usize,
    /// As many as there are places, at most.
    held: Vec<(u64, Option<IpAddr>, Arc<Taking>)>,
    /// How many each client has, of those that have any; all whom an address does not tell
    /// apart are one.
    counts: HashMap<Option<IpAddr>, usize>,
    /// Bounded by the connections there may be.
    waiting: VecDeque<Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    client: Option<IpAddr>,
    answer: oneshot::Sender<Place>,
}

/// A place that was taken, until dropped.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    number: u64,
    taking: Arc<Taking>,
}

impl Place {
    /// How its client takes what is made here.
    pub fn taking(&self) -> Arc<Taking> {
        Arc::clone(&self.taking)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.give_back(self.number);
    }
}

/// Whom an address stands for; `None`: for many. Of IPv6, everybody has a network.
fn client_of(address: IpAddr) -> Option<IpAddr> {
    let address = address.to_canonical();
    // A proxy that we were not told of.
    if address.is_loopback() {
        return None;
    }
    match address {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Some(IpAddr::V6(network.into()))
        }
        IpAddr::V4(_) => Some(address),
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_all_he_may(&self, state: &State, client: Option<IpAddr>) -> bool {
        client.is_some() && state.counts.get(&client).copied().unwrap_or(0) >= self.share
    }

    /// How many places must be free for a client to get one of them.
    fn needed(&self, state: &State, client: Option<IpAddr>) -> usize {
        match state.counts.contains_key(&client) {
            true => self.reserved + 1,
            false => 1,
        }
    }

    fn may_have_one(&self, state: &State, client: Option<IpAddr>) -> bool {
        state.free >= self.needed(state, client) && !self.has_all_he_may(state, client)
    }

    /// Hands out what is free to those who wait, in turn.
    fn hand_out(self: &Arc<Self>) {
        let mut given = Vec::new();
        let mut state = self.state();
        let mut at = 0;
        while state.free > 0 && at < state.waiting.len() {
            if !self.may_have_one(&state, state.waiting[at].client) {
                at += 1;
                continue;
            }
            let Some(waiting) = state.waiting.remove(at) else {
                break;
            };
            let taking = Taking::new();
            state.free -= 1;
            *state.counts.entry(waiting.client).or_default() += 1;
            let held = (waiting.number, waiting.client, Arc::clone(&taking));
            state.held.push(held);
            let place = Place {
                shared: Arc::clone(self),
                number: waiting.number,
                taking,
            };
            given.push((waiting.answer, place));
        }
        drop(state);
        // Whoever has gone meanwhile gives it back, for which the state must not be locked.
        for (answer, place) in given {
            let _ = answer.send(place);
        }
    }

    fn give_back(self: &Arc<Self>, number: u64) {
        let mut state = self.state();
        let at = state.held.iter().position(|(held, ..)| *held == number);
        let Some(at) = at else {
            return;
        };
        let (_, client, _) = state.held.swap_remove(at);
        state.free += 1;
        if let Some(count) = state.counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                state.counts.remove(&client);
            }
        }
        drop(state);
        self.hand_out();
    }

    /// Asks so many places back that a client that waits gets one: of those that are overdue, the ones
    /// that have taken nothing for the longest.
    fn ask_back(&self, for_client: Option<IpAddr>) {
        let now = Instant::now();
        let state = self.state();
        // Others' places are no help to who has all that one may have.
        let own_only = self.has_all_he_may(&state, for_client);
        let helps = |client: Option<IpAddr>| !own_only || client == for_client;
        let helping = || state.held.iter().filter(|(_, client, _)| helps(*client));
        let coming = helping().filter(|(.., taking)| taking.is_asked_back());
        let there = coming.count() + if own_only { 0 } else { state.free };
        let wanted = match own_only {
            true => 1,
            false => self.needed(&state, for_client),
        };
        let overdue = helping().filter_map(|(.., taking)| Some((taking.overdue(now)?, taking)));
        let mut overdue: Vec<_> = overdue.collect();
        overdue.sort_by_key(|(waited, _)| std::cmp::Reverse(*waited));
        for (_, taking) in overdue.into_iter().take(wanted.saturating_sub(there)) {
            meters::place_refused("slow");
            taking.asked_back.cancel();
        }
    }
}

/// Somebody in the queue, who leaves it when he goes away.
struct Queued<'a> {
    shared: &'a Arc<Shared>,
    number: u64,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let number = self.number;
        state.waiting.retain(|waiting| waiting.number != number);
    }
}

impl Places {
    /// Room for `places` processes.
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Shared {
            share: (places / 4).max(1),
            reserved: places / 8,
            state: Mutex::new(State {
                free: places,
                ..State::default()
            }),
        }))
    }

    /// Waits for a place.
    pub async fn take(&self) -> Place {
        self.take_for(None).await
    }

    /// Waits for a place for a client, however long that takes.
    pub async fn take_for(&self, client: Option<IpAddr>) -> Place {
        match self.queue(client, None).await {
            Ok(place) => place,
            Err(_) => unreachable!("it waits for ever"),
        }
    }

    /// Waits for a place for a reader: not for ever, and those who hardly move give way.
    pub async fn take_soon(&self, client: Option<IpAddr>) -> Result<Place, Busy> {
        self.queue(client, Some(LONGEST)).await
    }

    async fn queue(
        &self,
        client: Option<IpAddr>,
        longest: Option<Duration>,
    ) -> Result<Place, Busy> {
        let (_waiting, begun) = (meters::waiting(), Instant::now());
        let client = client.and_then(client_of);
        let (answer, mut place) = oneshot::channel();
        let queued = {
            let mut state = self.0.state();
            let number = state.next;
            state.next += 1;
            state.waiting.push_back(Waiting {
                number,
                client,
                answer,
            });
            Queued {
                shared: &self.0,
                number,
            }
        };
        self.0.hand_out();
        let taken = loop {
            if let Ok(taken) = timeout(LOOK_EVERY, &mut place).await {
                break taken;
            }
            let (Some(longest), waited) = (longest, begun.elapsed()) else {
                continue;
            };
            if waited >= longest {
                drop(queued);
                // It may have come just now.
                if let Ok(place) = place.try_recv() {
                    break Ok(place);
                }
                meters::waited(waited);
                meters::place_refused("busy");
                let own = self.0.has_all_he_may(&self.0.state(), client);
                return Err(if own { Busy::Own } else { Busy::All });
            }
            if waited >= PATIENT {
                self.0.ask_back(client);
            }
        };
        meters::waited(begun.elapsed());
        // Whoever is in the queue is taken from it to be answered.
        taken.map_err(|_| Busy::All)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    fn client(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[tokio::test]
    async fn one_client_leaves_room_for_others() {
        let places = Places::new(8);
        let mut taken = Vec::new();
        for address in ["2001:db8::1", "2001:db8::2"] {
            taken.push(places.take_for(client(address)).await);
        }
        let third = places.take_for(client("2001:db8::3"));
        tokio::pin!(third);
        assert!(futures::poll!(&mut third).is_pending());
        taken.push(places.take_for(client("192.0.2.1")).await);
        for _ in 0..4 {
            taken.push(places.take_for(client("127.0.0.1")).await);
        }
        assert!(futures::poll!(&mut third).is_pending());
        taken.clear();
        third.await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_none_is_served_however_many_the_others_hold_and_who_waits_is_told() {
        let places = Places::new(64);
        let mut taken = Vec::new();
        for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3", "127.0.0.1"] {
            for _ in 0..14 {
                taken.push(places.take_soon(client(address)).await.unwrap());
            }
        }
        let one_more = places.take_soon(client("192.0.2.1"));
        tokio::pin!(one_more);
        assert!(futures::poll!(&mut one_more).is_pending());
        for newcomer in 1..=8 {
            let newcomer = client(&format!("198.51.100.{newcomer}"));
            let place = timeout(Duration::ZERO, places.take_soon(newcomer)).await;
            taken.push(place.unwrap().unwrap());
        }
        let begun = Instant::now();
        let late = places.take_soon(client("198.51.100.9")).await;
        assert_eq!(late.unwrap_err(), Busy::All);
        assert!(begun.elapsed() <= Duration::from_secs(60));
        assert_eq!(one_more.await.unwrap_err(), Busy::All);
        taken.clear();
        for _ in 0..16 {
            taken.push(places.take_soon(client("192.0.2.1")).await.unwrap());
        }
        let more = places.take_soon(client("192.0.2.1")).await;
        assert_eq!(more.unwrap_err(), Busy::Own);
        assert_eq!(places.0.state().waiting.len(), 0);
        drop(taken);
        let state = places.0.state();
        assert!((state.free, state.held.len(), state.counts.len()) == (64, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_hardly_moves_gives_way_and_who_is_slow_does_not() {
        let places = Places::new(4);
        let hold = async |address: &str| places.take_soon(client(address)).await.unwrap();
        let crawler = hold("192.0.2.1").await;
        let (slow, bursts, ours) = (
            hold("192.0.2.2").await,
            hold("192.0.2.3").await,
            hold("192.0.2.4").await,
        );
        let taking = |place: &Place, every: u64, bytes: u64| {
            let taking = place.taking();
            async move {
                loop {
                    taking.offered();
                    sleep(Duration::from_secs(every)).await;
                    taking.took(bytes);
                }
            }
        };
        let crawls = taking(&crawler, 5, 1000);
        let slowly = taking(&slow, 4, 64 * 1024);
        // As it looks from behind large buffers.
        let in_bursts = taking(&bursts, 60, 960 * 1024);
        let (crawling, others) = (crawler.taking(), [&slow, &bursts, &ours].map(Place::taking));
        let scene = async {
            // While nobody waits, all may be as slow as they are.
            sleep(Duration::from_secs(600)).await;
            assert!(!crawling.asked_back.is_cancelled());
            let waits = places.take_soon(client("198.51.100.1"));
            let gives_way = async {
                crawling.asked_back().await;
                drop(crawler);
                std::future::pending::<()>().await;
            };
            let begun = Instant::now();
            tokio::select! {
                place = waits => drop(place.unwrap()),
                () = gives_way => unreachable!(),
            }
            assert!(begun.elapsed() < Duration::from_secs(30));
            let _again = hold("198.51.100.1").await;
            let late = places.take_soon(client("198.51.100.2")).await;
            assert_eq!(late.unwrap_err(), Busy::All);
            for taking in others {
                assert!(!taking.asked_back.is_cancelled());
            }
        };
        tokio::select! {
            () = scene => {}
            () = crawls => unreachable!(),
            () = slowly => unreachable!(),
            () = in_bursts => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_a_place_already_gets_another_from_crawlers_too() {
        let places = Places::new(16);
        let mut held = Vec::new();
        for address in 1..=16 {
            let address = client(&format!("192.0.2.{address}"));
            held.push(places.take_soon(address).await.unwrap());
        }
        for crawler in &held[1..] {
            crawler.taking().offered();
        }
        sleep(PAUSE).await;
        let give_way = held.split_off(1).into_iter().map(async |place| {
            place.taking().asked_back().await;
            drop(place);
        });
        let mut give_way = futures::future::join_all(give_way);
        let another = places.take_soon(client("192.0.2.1"));
        tokio::select! {
            another = another => {
                // No more were asked back than it takes: two are kept for those that have none.
                assert_eq!(places.0.state().free, 2);
                drop(another);
            }
            _ = &mut give_way => unreachable!("so many were not needed"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_is_forgotten_and_keeps_nobody_from_a_place() {
        let places = Places::new(1);
        let place = places.take().await;
        let gone = places.take_for(client("192.0.2.1"));
        assert!(timeout(Duration::from_secs(1), gone).await.is_err());
        let next = places.take_for(client("192.0.2.2"));
        tokio::pin!(next);
        assert!(futures::poll!(&mut next).is_pending());
        drop(place);
        advance(Duration::from_millis(1)).await;
        next.await;
    }
}
