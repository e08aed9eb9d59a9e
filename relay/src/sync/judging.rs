//! Events that are being judged. What hangs – the git side may – is not begun again beside itself:
//! who brings the same event waits for the same verdict, and for so long only.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use grasp_proto::words::EventId;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::judge::{Judged, Outcome};

/// Events that are judged at once, those among them that nobody waits for any more.
const JUDGING: usize = 1_024;

fn failed(why: &str) -> Judged {
    (Outcome::Failed, format!("error: {why}; try again"))
}

/// What is said of an event that there was no time for.
pub fn too_busy() -> Judged {
    failed("too busy")
}

type Result = watch::Receiver<Option<Judged>>;

/// What is being judged, and the verdicts to come: at most `JUDGING`. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Judging(Arc<Mutex<HashMap<EventId, Result>>>);

/// Not being judged any more when dropped.
struct Ticket(Judging, EventId);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.all().remove(&self.1);
    }
}

impl Judging {
    fn all(&self) -> MutexGuard<'_, HashMap<EventId, Result>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins, unless that was done.
    fn begin<F>(&self, id: EventId, judge: impl FnOnce() -> F) -> Option<(Result, bool)>
    where
        F: Future<Output = Judged> + Send + 'static,
    {
        let mut all = self.all();
        if let Some(result) = all.get(&id) {
            return Some((result.clone(), false));
        }
        if all.len() >= JUDGING {
            return None;
        }
        let (tell, result) = watch::channel(None);
        all.insert(id, result.clone());
        drop(all);
        let ticket = Ticket(self.clone(), id);
        let work = judge();
        tokio::spawn(async move {
            let ticket = ticket;
            tell.send_replace(Some(work.await));
            drop(ticket);
        });
        Some((result, true))
    }

    /// The verdict on an event, if there is one before `until`; the judging goes on without.
    pub async fn verdict<F>(&self, id: EventId, until: Instant, judge: impl FnOnce() -> F) -> Judged
    where
        F: Future<Output = Judged> + Send + 'static,
    {
        if Instant::now() >= until {
            return too_busy();
        }
        let Some((mut result, is_first)) = self.begin(id, judge) else {
            return too_busy();
        };
        match timeout_at(until, result.wait_for(Option::is_some)).await {
            Ok(Ok(judged)) => match &*judged {
                // It is new once.
                Some((outcome, _)) if outcome.is_new() && !is_first => {
                    (Outcome::Duplicate, "duplicate: came twice".to_owned())
                }
                Some(judged) => judged.clone(),
                None => failed("it was not judged"),
            },
            Ok(Err(_)) => failed("it was not judged"),
            Err(_) => failed("still being judged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    fn id(n: usize) -> EventId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
        EventId::from_bytes(bytes)
    }

    fn accepted() -> Judged {
        (Outcome::Accepted, String::new())
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_not_begun_again_and_holds_nobody_for_ever() {
        let judging = Judging::default();
        let (end, ended) = oneshot::channel::<()>();
        let until = || Instant::now() + Duration::from_secs(45);
        let hangs = judging.verdict(id(1), until(), || async {
            let _ = ended.await;
            accepted()
        });
        assert_eq!(hangs.await.0, Outcome::Failed);
        let not_begun = || -> std::future::Ready<Judged> { panic!("it was begun twice") };
        let again = judging.verdict(id(1), until(), not_begun);
        assert_eq!(again.await.0, Outcome::Failed);
        // Others are judged meanwhile, and there is a verdict for who waits when it comes.
        let other = judging.verdict(id(2), until(), || async { accepted() });
        assert_eq!(other.await.0, Outcome::Accepted);
        let waits = judging.verdict(id(1), until(), not_begun);
        let (waited, ()) = tokio::join!(waits, async {
            end.send(()).unwrap();
        });
        assert_eq!(waited.0, Outcome::Duplicate);
        while !judging.all().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_judged_at_once_is_bounded_and_a_panic_ends_it() {
        let judging = Judging::default();
        let soon = Instant::now() + Duration::from_secs(1);
        for n in 0..JUDGING {
            drop(judging.begin(id(n), std::future::pending::<Judged>));
        }
        let one_more = judging.verdict(id(JUDGING), soon, || async { accepted() });
        assert_eq!(one_more.await.0, Outcome::Failed);
        let late = judging.verdict(id(0), Instant::now(), || async { accepted() });
        assert_eq!(late.await.0, Outcome::Failed);
        let judging = Judging::default();
        let broken = judging.verdict(id(1), soon, || async { panic!("on purpose") });
        assert_eq!(broken.await.0, Outcome::Failed);
        assert!(judging.all().is_empty());
    }
}
