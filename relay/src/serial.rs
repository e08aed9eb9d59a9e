//! One queue per identifier: what decides on an identifier happens one after another.
//!
//! Each piece of work runs in a task of its own, so that a caller who goes away leaves nothing half
//! done. Work that somebody waits for at a terminal goes before work that can wait: a thousand
//! announcements of one identifier do not hold up a push.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dashmap::{DashMap, Entry};
use grasp_proto::{transport::Trace, words::Identifier};
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock, oneshot},
    time::timeout,
};

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Pushes.
    Urgent,
    /// Everything else.
    Normal,
    /// What goes on from an earlier turn: whoever has had none goes before it.
    Later,
}

#[derive(Debug, Default)]
struct Lane {
    /// By [`Turn`].
    queues: [VecDeque<oneshot::Sender<Pass>>; TURNS],
    /// How many of each have gone since one behind it had its turn.
    in_a_row: [usize; TURNS],
}

const TURNS: usize = 3;

/// Pieces of work that go before one behind them that waits: pushes, which anybody can begin,
/// do not hold up the others for ever.
const IN_A_ROW: usize = 8;

impl Lane {
    fn queue(&mut self, turn: Turn) -> &mut VecDeque<oneshot::Sender<Pass>> {
        &mut self.queues[turn as usize]
    }

    fn next(&mut self) -> Option<oneshot::Sender<Pass>> {
        for turn in 0..TURNS {
            let others_wait = self.queues[turn + 1..]
                .iter()
                .any(|queue| !queue.is_empty());
            if self.in_a_row[turn] >= IN_A_ROW && others_wait {
                self.in_a_row[turn] = 0;
            } else if let Some(next) = self.queues[turn].pop_front() {
                self.in_a_row[turn] += usize::from(others_wait);
                return Some(next);
            }
        }
        None
    }
}

/// The queues. An identifier without work takes no room.
#[derive(Debug, Clone, Default)]
pub struct Serial {
    // Bounded by the connections and calls that wait in them. An entry means: somebody runs.
    lanes: Arc<DashMap<Identifier, Mutex<Lane>>>,
    /// Whoever runs reads; nobody runs while somebody writes.
    rest: Arc<RwLock<()>>,
}

/// Nothing is decided while this lives.
#[derive(Debug)]
pub struct Rest(#[allow(dead_code)] OwnedRwLockWriteGuard<()>);

/// The right to run; passed on when dropped.
#[derive(Debug)]
struct Pass {
    /// `None`: passed on already.
    serial: Option<Serial>,
    identifier: Identifier,
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(serial) = self.serial.take() {
            serial.pass_on(&self.identifier);
        }
    }
}

impl Serial {
    /// Runs `work` when it is its turn under `identifier`, in a task of its own, and gives its
    /// result. Dropping the returned future does not stop the work.
    pub async fn run<T: Send + 'static>(
        &self,
        identifier: &Identifier,
        turn: Turn,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (serial, identifier) = (self.clone(), identifier.clone());
        let work = async move {
            let pass = serial.wait(identifier, turn).await;
            let running = serial.rest.read().await;
            let result = work.await;
            drop((running, pass));
            result
        };
        match tokio::spawn(Trace::carry(work)).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Lets what runs end, under all identifiers, and nothing begin, for as long as what is given
    /// lives; `None`: it does not end `within` that time, and all goes on.
    ///
    /// Not to be called from within work: it would wait for itself.
    pub async fn rest(&self, within: Duration) -> Option<Rest> {
        let rest = timeout(within, self.rest.clone().write_owned()).await;
        rest.ok().map(Rest)
    }

    async fn wait(&self, identifier: Identifier, turn: Turn) -> Pass {
        let receiver = match self.lanes.entry(identifier.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Mutex::default());
                None
            }
            Entry::Occupied(mut occupied) => {
                let lane = occupied.get_mut().get_mut();
                let lane = lane.unwrap_or_else(PoisonError::into_inner);
                let (sender, receiver) = oneshot::channel();
                lane.queue(turn).push_back(sender);
                Some(receiver)
            }
        };
        match receiver {
            None => Pass {
                serial: Some(self.clone()),
                identifier,
            },
            Some(receiver) => receiver.await.expect("a pass is always passed on"),
        }
    }

    fn pass_on(&self, identifier: &Identifier) {
        loop {
            let next = {
                let Entry::Occupied(mut occupied) = self.lanes.entry(identifier.clone()) else {
                    return;
                };
                let lane = occupied.get_mut().get_mut();
                let lane = lane.unwrap_or_else(PoisonError::into_inner);
                match lane.next() {
                    Some(next) => next,
                    None => {
                        occupied.remove();
                        return;
                    }
                }
            };
            let pass = Pass {
                serial: Some(self.clone()),
                identifier: identifier.clone(),
            };
            match next.send(pass) {
                Ok(()) => return,
                // The waiter is gone (the runtime is ending): the next one, and not by recursion.
                Err(mut pass) => pass.serial = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn name(text: &str) -> Identifier {
        Identifier::parse(text).unwrap()
    }

    fn queued(serial: &Serial, identifier: &Identifier) -> usize {
        serial.lanes.get(identifier).map_or(0, |lane| {
            let lane = lane.lock().unwrap();
            lane.queues.iter().map(VecDeque::len).sum()
        })
    }

    #[tokio::test]
    async fn work_on_one_identifier_is_one_after_another() {
        let (serial, x) = (Serial::default(), name("x"));
        let running = Arc::new(AtomicUsize::new(0));
        let work = |_| {
            let running = running.clone();
            serial.run(&x, Turn::Normal, async move {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
            })
        };
        futures::future::join_all((0..50).map(work)).await;
        assert!(serial.lanes.is_empty());
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_leaves_nothing_half_done() {
        let (serial, x) = (Serial::default(), name("x"));
        let (go, gate) = oneshot::channel::<()>();
        let (done, finished) = oneshot::channel();
        let work = async move {
            gate.await.unwrap();
            done.send(()).unwrap();
        };
        let mut caller = Box::pin(serial.run(&x, Turn::Normal, work));
        assert!(futures::poll!(&mut caller).is_pending());
        drop(caller);
        go.send(()).unwrap();
        finished.await.unwrap();
        serial.run(&x, Turn::Normal, async {}).await;
    }

    #[tokio::test(start_paused = true)]
    async fn at_rest_nothing_runs_and_what_does_not_end_is_not_waited_for() {
        let (serial, x) = (Serial::default(), name("x"));
        let (go, gate) = oneshot::channel::<()>();
        let mut running = Box::pin(serial.run(&x, Turn::Normal, async { gate.await.unwrap() }));
        assert!(futures::poll!(&mut running).is_pending());
        let second = Duration::from_secs(1);
        while serial.rest.try_write().is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(serial.rest(second).await.is_none());
        // Another identifier went on all the same.
        serial.run(&name("y"), Turn::Normal, async {}).await;
        go.send(()).unwrap();
        running.await;
        let rest = serial.rest(second).await.unwrap();
        let mut waiting = Box::pin(serial.run(&x, Turn::Urgent, async {}));
        assert!(tokio::time::timeout(second, &mut waiting).await.is_err());
        drop(rest);
        waiting.await;
    }

    #[tokio::test]
    async fn pushes_go_first_and_identifiers_do_not_wait_for_each_other() {
        let serial = Serial::default();
        let (go, gate) = oneshot::channel::<()>();
        let order = Arc::new(Mutex::new(Vec::new()));
        let x = name("x");
        let first = {
            let (serial, x) = (serial.clone(), x.clone());
            tokio::spawn(async move {
                serial
                    .run(&x, Turn::Normal, async { gate.await.unwrap() })
                    .await;
            })
        };
        while serial.lanes.is_empty() {
            tokio::task::yield_now().await;
        }
        let mut waiting = Vec::new();
        let turns = [Turn::Later, Turn::Normal, Turn::Normal, Turn::Urgent];
        for (n, turn) in turns.into_iter().enumerate() {
            let (behind, x, order) = (serial.clone(), x.clone(), order.clone());
            waiting.push(tokio::spawn(async move {
                let work = async move { order.lock().unwrap().push(n) };
                behind.run(&x, turn, work).await;
            }));
            while queued(&serial, &name("x")) < n + 1 {
                tokio::task::yield_now().await;
            }
        }
        serial.run(&name("y"), Turn::Normal, async {}).await;
        go.send(()).unwrap();
        first.await.unwrap();
        for one in waiting {
            one.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [3, 1, 2, 0]);
    }

    #[test]
    fn nobody_is_held_up_for_ever() {
        let mut lane = Lane::default();
        for turn in [Turn::Urgent, Turn::Normal, Turn::Later] {
            for _ in 0..100 {
                lane.queue(turn).push_back(oneshot::channel().0);
            }
        }
        let mut waited = [0_usize; TURNS];
        while lane.queues.iter().all(|queue| !queue.is_empty()) {
            let before = lane.queues.each_ref().map(VecDeque::len);
            lane.next().unwrap();
            for (turn, waited) in waited.iter_mut().enumerate() {
                match lane.queues[turn].len() < before[turn] {
                    true => *waited = 0,
                    false => *waited += 1,
                }
                assert!(*waited <= (IN_A_ROW + 1).pow(2), "turn {turn}");
            }
        }
        while lane.next().is_some() {}
        assert!(lane.queues.iter().all(VecDeque::is_empty));
    }
}
