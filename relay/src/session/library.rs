//! What is stored, as `nostr-relay-builder` answers for it.
//!
//! This is the only place that knows the library. It is an early release, reached the way any
//! client reaches a relay: a websocket, here over an in-memory pipe to a
//! [`LocalRelay`]. A line to it costs some 256 KiB of buffers and breaks on input it does not
//! like, so nobody keeps one: each question takes one from a small store of idle ones and gives it
//! back when the answer is complete. A line whose answer was cut short is thrown away.
//!
//! The library never hears of live events and never sees an `EVENT`: those are not its business
//! here (architecture, "Connections").

mod unexpired;

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use nostr::{EventId, Filter, Timestamp};
use nostr_database::NostrDatabase;
use nostr_relay_builder::{LocalRelay, builder::RateLimit};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{io::DuplexStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role, protocol::WebSocketConfig},
};

use self::unexpired::Unexpired;

/// Lines kept although nobody is asking anything.
const IDLE: usize = 4;
/// Events asked for at once.
const PAGE: usize = 128;
/// What fits into the pipe to the library and back.
const PIPE: usize = 16 << 10;
/// The id under which everything is asked: a line has one question at a time.
const ID: &str = "q";

/// The store could not be asked, or did not answer as it should.
#[derive(Debug, thiserror::Error)]
#[error("the event store did not answer")]
pub struct Unanswered;

/// One stored event.
#[derive(Debug)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// All of it, as JSON.
    pub json: Arc<str>,
}

/// Asks the library.
#[derive(Debug)]
pub struct Library {
    relay: LocalRelay,
    /// Bounded by [`IDLE`].
    idle: Mutex<Vec<Line>>,
}

impl Library {
    /// The library over this store.
    pub fn new(database: Arc<dyn NostrDatabase>) -> Arc<Self> {
        let relay = LocalRelay::builder()
            .database(Unexpired(database))
            // Its own limits are out of the way: ours were applied before it is asked.
            .rate_limit(RateLimit {
                max_reqs: usize::MAX,
                notes_per_minute: u32::MAX,
            })
            .build();
        Arc::new(Self {
            relay,
            idle: Mutex::default(),
        })
    }

    /// The stored events that match this filter, newest first, as many as its limit says.
    pub fn stored(self: &Arc<Self>, filter: Filter) -> Stored {
        Stored {
            library: self.clone(),
            left: filter.limit.unwrap_or(usize::MAX),
            filter,
            at: None,
            seen: HashSet::new(),
            page: PAGE,
            asked: 0,
            arrived: 0,
            new: 0,
            line: None,
            complete: false,
        }
    }

    /// How many stored events match.
    pub async fn count(&self, filter: &Filter) -> Result<usize, Unanswered> {
        #[derive(Deserialize)]
        struct Count {
            count: usize,
        }
        let mut line = self.line().await;
        line.ask(format!(r#"["COUNT","{ID}",{}]"#, filter.as_json()))
            .await?;
        let answer = line.answer().await?;
        let ("COUNT", Some(count)) = answer.parts()? else {
            return Err(Unanswered);
        };
        let Count { count } = serde_json::from_str(count).map_err(|_| Unanswered)?;
        self.give_back(line);
        Ok(count)
    }

    /// Begins a reconciliation (NIP-77) with the client's first message; gives our first answer.
    pub async fn reconcile(
        &self,
        filter: &Filter,
        message: &str,
    ) -> Result<(Reconciliation, String), Unanswered> {
        let mut line = self.line().await;
        let filter = filter.as_json();
        line.ask(format!(r#"["NEG-OPEN","{ID}",{filter},"{message}"]"#))
            .await?;
        let mut reconciliation = Reconciliation { line };
        let answer = reconciliation.answer().await?;
        Ok((reconciliation, answer))
    }

    async fn line(&self) -> Line {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        match idle {
            Some(line) => line,
            None => Line::open(&self.relay).await,
        }
    }

    fn give_back(&self, line: Line) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(line);
        }
    }
}

/// Stored events on their way. The library holds a whole answer in memory until it is read, so it
/// is asked for one page after the other, each beginning in the second in which the last one ended.
#[derive(Debug)]
pub struct Stored {
    library: Arc<Library>,
    filter: Filter,
    /// How many more events the limit allows.
    left: usize,
    /// The oldest second seen, and the events of that second that were given out already.
    at: Option<Timestamp>,
    seen: HashSet<EventId>,
    /// How many new events a page may have; more than usual when one second has more.
    page: usize,
    /// Of the current page: events asked for, events that came, and those that came first here.
    asked: usize,
    arrived: usize,
    new: usize,
    /// The line on which the current page comes.
    line: Option<Line>,
    complete: bool,
}

impl Stored {
    /// The next event; `None` when there are no more.
    pub async fn next(&mut self) -> Result<Option<StoredEvent>, Unanswered> {
        #[derive(Deserialize)]
        struct Named {
            id: EventId,
            created_at: Timestamp,
        }
        loop {
            let Some(line) = &mut self.line else {
                if self.complete || self.left == 0 {
                    return Ok(None);
                }
                self.begin_page().await?;
                continue;
            };
            let answer = line.answer().await?;
            match answer.parts()? {
                ("EVENT", Some(event)) => {
                    let Named { id, created_at } =
                        serde_json::from_str(event).map_err(|_| Unanswered)?;
                    self.arrived += 1;
                    if self.at != Some(created_at) {
                        self.at = Some(created_at);
                        self.seen.clear();
                    }
                    if self.left > 0 && self.seen.insert(id) {
                        self.new += 1;
                        self.left -= 1;
                        let json = event.into();
                        return Ok(Some(StoredEvent { id, json }));
                    }
                }
                ("EOSE", _) => self.end_page().await?,
                _ => return Err(Unanswered),
            }
        }
    }

    async fn begin_page(&mut self) -> Result<(), Unanswered> {
        self.asked = self.page.min(self.left).saturating_add(self.seen.len());
        self.arrived = 0;
        self.new = 0;
        let mut filter = self.filter.clone().limit(self.asked);
        if let Some(at) = self.at {
            filter = filter.until(at);
        }
        let mut line = self.library.line().await;
        line.ask(format!(r#"["REQ","{ID}",{}]"#, filter.as_json()))
            .await?;
        self.line = Some(line);
        Ok(())
    }

    async fn end_page(&mut self) -> Result<(), Unanswered> {
        self.complete = self.arrived < self.asked;
        self.page = if self.new == 0 { self.page * 2 } else { PAGE };
        let Some(mut line) = self.line.take() else {
            return Ok(());
        };
        // When all ids asked for were found, the library has closed the subscription by itself,
        // and says so next; a question that is always answered shows where that ends.
        line.ask(format!(r#"["CLOSE","{ID}"]"#)).await?;
        line.ask(format!(r#"["NEG-MSG","{ID}","61"]"#)).await?;
        while line.answer().await?.parts()?.0 != "NEG-ERR" {}
        self.library.give_back(line);
        Ok(())
    }
}

/// A reconciliation that goes on; it holds its line to the library.
#[derive(Debug)]
pub struct Reconciliation {
    line: Line,
}

impl Reconciliation {
    /// Our answer to the client's next message. After an error the reconciliation is over.
    pub async fn step(&mut self, message: &str) -> Result<String, Unanswered> {
        let question = format!(r#"["NEG-MSG","{ID}","{message}"]"#);
        self.line.ask(question).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<String, Unanswered> {
        let answer = self.line.answer().await?;
        let ("NEG-MSG", Some(message)) = answer.parts()? else {
            return Err(Unanswered);
        };
        serde_json::from_str(message).map_err(|_| Unanswered)
    }
}

/// A message of the library.
struct Answer(String);

impl Answer {
    /// Its verb, and what stands in the third place, as JSON.
    fn parts(&self) -> Result<(&str, Option<&str>), Unanswered> {
        let parts: Vec<&RawValue> = serde_json::from_str(&self.0).map_err(|_| Unanswered)?;
        let verb = parts.first().ok_or(Unanswered)?.get();
        Ok((verb.trim_matches('"'), parts.get(2).map(|part| part.get())))
    }
}

/// How long the library may take to notice that a line is not needed any more.
const PARTING: Duration = Duration::from_secs(2);

/// A connection to the library. Its other end lives in a task that ends with it.
#[derive(Debug)]
struct Line(Option<WebSocketStream<DuplexStream>>);

impl Line {
    async fn open(relay: &LocalRelay) -> Self {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let relay = relay.clone();
        tokio::spawn(async move {
            let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            if let Err(error) = relay.take_connection(theirs, here).await {
                tracing::debug!(%error, "a line to the store ended");
            }
        });
        let config = WebSocketConfig::default()
            .read_buffer_size(PIPE)
            .write_buffer_size(0);
        let role = Role::Client;
        Self(Some(
            WebSocketStream::from_raw_socket(ours, role, Some(config)).await,
        ))
    }

    async fn ask(&mut self, question: String) -> Result<(), Unanswered> {
        let websocket = self.0.as_mut().ok_or(Unanswered)?;
        let sent = websocket.send(Message::Text(question.into())).await;
        sent.map_err(|_| Unanswered)
    }

    async fn answer(&mut self) -> Result<Answer, Unanswered> {
        let websocket = self.0.as_mut().ok_or(Unanswered)?;
        match websocket.next().await {
            Some(Ok(Message::Text(text))) => Ok(Answer(text.as_str().to_owned())),
            _ => Err(Unanswered),
        }
    }
}

impl Drop for Line {
    /// The library takes a line that just ends for an error worth telling the operator.
    fn drop(&mut self) {
        let (Some(mut websocket), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(timeout(PARTING, async move {
            if websocket.close(None).await.is_ok() {
                while let Some(Ok(_)) = websocket.next().await {}
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind, event::FinalizeEvent};
    use nostr_memory::MemoryDatabase;

    use super::*;

    async fn library(events: usize) -> (Arc<Library>, Vec<EventId>) {
        let database = Arc::new(MemoryDatabase::unbounded());
        let keys = Keys::generate();
        let mut ids = Vec::new();
        for number in 0..events {
            let event = EventBuilder::new(Kind::TextNote, number.to_string())
                .finalize(&keys)
                .unwrap();
            database.save_event(&event).await.unwrap();
            ids.push(event.id);
        }
        (Library::new(database), ids)
    }

    async fn all(stored: &mut Stored) -> usize {
        let mut count = 0;
        while stored.next().await.unwrap().is_some() {
            count += 1;
        }
        count
    }

    #[tokio::test]
    async fn answers_are_complete_and_lines_used_again() {
        let (library, ids) = library(600).await;
        let everything = Filter::new();
        for _ in 0..3 {
            let mut stored = library.stored(everything.clone().limit(500));
            assert_eq!(all(&mut stored).await, 500);
            // All ids found: the library closes the subscription itself.
            let named = Filter::new().ids(ids[..5].iter().copied());
            let mut stored = library.stored(named.limit(5));
            assert_eq!(all(&mut stored).await, 5);
            assert_eq!(library.count(&everything).await.unwrap(), 600);
        }
        assert_eq!(library.idle.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_answer_cut_short_harms_no_other() {
        let (library, _) = library(600).await;
        let mut stored = library.stored(Filter::new().limit(500));
        assert!(stored.next().await.unwrap().is_some());
        drop(stored);
        assert!(library.idle.lock().unwrap().is_empty());
        let mut stored = library.stored(Filter::new().limit(500));
        assert_eq!(all(&mut stored).await, 500);
    }

    #[tokio::test]
    async fn a_bad_reconciliation_ends_itself_only() {
        let (library, _) = library(3).await;
        // A version that is not there is answered with the one that is.
        let (mut open, answer) = library.reconcile(&Filter::new(), "62").await.unwrap();
        assert_eq!(answer, "61");
        assert!(library.reconcile(&Filter::new(), "61000007").await.is_err());
        assert_eq!(open.step("62").await.unwrap(), "61");
        assert!(open.step("ff").await.is_err());
        assert_eq!(library.count(&Filter::new()).await.unwrap(), 3);
    }
}
