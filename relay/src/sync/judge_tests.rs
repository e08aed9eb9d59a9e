use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::nip34::{
    ANNOUNCEMENT, STATE,
    testing::{event, keys},
};

#[test]
fn verdicts_come_to_outcomes() {
    let state = event(&keys(1), STATE, 1, &[&["d", "x"]]);
    let announcement = event(&keys(1), ANNOUNCEMENT, 1, &[&["d", "x"]]);
    let issue = event(&keys(1), nostr::Kind::Custom(1621), 1, &[]);
    for (event, verdict, expected) in [
        (&issue, Verdict::served(), Outcome::Accepted),
        (&state, Verdict::accepted(WAITS), Outcome::Purgatory),
        (
            &state,
            Verdict::accepted("duplicate: x"),
            Outcome::Duplicate,
        ),
        (&state, Verdict::accepted(REPLACED), Outcome::Rejected),
        (
            &state,
            Verdict::rejected("invalid: x"),
            Outcome::KeptForLater,
        ),
        (
            &announcement,
            Verdict::rejected("invalid: x"),
            Outcome::KeptForLater,
        ),
        (&issue, Verdict::rejected(UNRELATED), Outcome::KeptForLater),
        (&state, Verdict::rejected(PROTECTED), Outcome::Rejected),
        (
            &issue,
            Verdict::rejected("invalid: expired"),
            Outcome::Rejected,
        ),
        (
            &state,
            Verdict::rejected("error: x; try again"),
            Outcome::Failed,
        ),
    ] {
        assert_eq!(outcome(event, &verdict), expected, "{verdict:?}");
    }
}

/// A door behind which states hang, or fail, until told otherwise.
struct Hanging {
    open: Semaphore,
    fails: AtomicBool,
    begun: AtomicUsize,
}

impl Hanging {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            open: Semaphore::new(0),
            fails: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
        })
    }
}

impl Door for Hanging {
    fn admit(&self, event: Event, _: Origin) -> futures::future::BoxFuture<'_, Verdict> {
        Box::pin(async move {
            if event.kind == STATE {
                self.begun.fetch_add(1, SeqCst);
                let _ = self.open.acquire().await;
                if self.fails.load(SeqCst) {
                    return Verdict::rejected("error: git; try again");
                }
            }
            Verdict::served()
        })
    }
}

fn judge_over(door: &Arc<Hanging>) -> Judge {
    let durations = Durations {
        hot: Duration::from_secs(120),
        cold: Duration::from_secs(600),
    };
    let clock = Clock::standing_at(crate::clock::Moment::from_millis(1_000_000));
    Judge::new(door.clone(), durations, clock)
}

fn state(n: u8) -> Event {
    event(&keys(n), STATE, 1, &[&["d", "x"]])
}

async fn outcomes(judge: &Judge, url: &str, events: &[&Event]) -> Vec<Outcome> {
    let events = events.iter().map(|event| event.as_json()).collect();
    let judged = judge.submit(url, Method::Paged, events).await.unwrap();
    judged.into_iter().map(|(outcome, _)| outcome).collect()
}

#[tokio::test(start_paused = true)]
async fn what_hangs_is_answered_in_time_and_holds_up_its_own_relay_only() {
    let door = Hanging::new();
    let judge = judge_over(&door);
    let began = Instant::now();
    let comment = event(&keys(1), nostr::Kind::Custom(1111), 1, &[]);
    let (one, two) = (state(1), state(2));
    let (both, alone) = ([&one, &comment], [&two]);
    let (first, second) = tokio::join!(
        outcomes(&judge, "wss://a", &both),
        outcomes(&judge, "wss://a", &alone),
    );
    assert_eq!(first, [Outcome::Failed, Outcome::Failed]);
    assert_eq!(second, [Outcome::Failed]);
    assert_eq!(began.elapsed(), ANSWERED);
    // Its share is still in use.
    let more = outcomes(&judge, "wss://a", &[&comment]).await;
    assert_eq!(more, [Outcome::Failed]);
    assert_eq!(began.elapsed(), 2 * ANSWERED);
    // Another relay's is not; and what hangs is not begun again.
    let other = outcomes(&judge, "wss://b", &[&comment]).await;
    assert_eq!(other, [Outcome::Accepted]);
    assert_eq!(began.elapsed(), 2 * ANSWERED);
    let again = outcomes(&judge, "wss://b", &[&one]).await;
    assert_eq!(again, [Outcome::Failed]);
    assert_eq!(door.begun.load(SeqCst), 2);
    door.open.add_permits(16);
    let after = outcomes(&judge, "wss://a", &[&comment, &two]).await;
    assert_eq!(after, [Outcome::Accepted, Outcome::Accepted]);
}

#[tokio::test(start_paused = true)]
async fn what_fails_when_it_is_judged_again_is_judged_once_more() {
    let door = Hanging::new();
    door.open.add_permits(16);
    door.fails.store(true, SeqCst);
    let judge = judge_over(&door);
    let again = Again {
        event: Arc::new(state(1)),
        source: 1,
        tries: 0,
    };
    judge.rejected().put_back(again, judge.clock.now());
    judge.clock.advance(Duration::from_secs(30));
    judge.tick();
    assert_eq!(judge.judge_again().await, 1);
    judge.tick();
    assert_eq!(judge.judge_again().await, 0, "not at once");
    door.fails.store(false, SeqCst);
    judge.clock.advance(Duration::from_secs(30));
    judge.tick();
    assert_eq!(judge.judge_again().await, 1);
    assert_eq!((judge.sizes(), door.begun.load(SeqCst)), ((0, 0), 2));
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_brings_too_much_is_told_to_slow_down() {
    let door = Hanging::new();
    let judge = judge_over(&door);
    let comment = |n| event(&keys(n), nostr::Kind::Custom(1111), 1, &[]);
    let first = outcomes(&judge, "wss://a", &[&comment(1)]).await;
    assert_eq!(first, [Outcome::Accepted]);
    let source = judge.rejected().source("wss://a");
    judge.hourly().took(source, 1 << 30, judge.clock.now());
    let more = judge.submit("wss://a", Method::Live, vec![comment(2).as_json()]);
    let (outcome, why) = more.await.unwrap().remove(0);
    assert!(outcome == Outcome::Failed && why.contains("slow down"));
    let other = outcomes(&judge, "wss://b", &[&comment(2)]).await;
    assert_eq!(other, [Outcome::Accepted]);
    judge.clock.advance(Duration::from_secs(60 * 60));
    let later = outcomes(&judge, "wss://a", &[&comment(3)]).await;
    assert_eq!(later, [Outcome::Accepted]);
}

#[test]
fn forged_events_are_told_apart() {
    let genuine = event(&keys(1), STATE, 1, &[&["d", "x"]]);
    let json = genuine.as_json();
    let wrong_id = json.replace("\"x\"", "\"y\"");
    let mut other = event(&keys(2), STATE, 1, &[&["d", "x"]]);
    other.sig = genuine.sig;
    let verified = verify(&[json, wrong_id, other.as_json(), "{}".to_owned()]);
    let genuine: Vec<bool> = verified.iter().map(Result::is_ok).collect();
    assert_eq!(genuine, [true, false, false, false]);
}
