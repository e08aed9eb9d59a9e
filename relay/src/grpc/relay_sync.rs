//! RelaySync: what is to be synced with other relays, by whom, and what was found (see
//! `relay_sync.proto`). Everything a worker says is bounded, and nothing of it believed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use grasp_proto::{
    contract::{
        event_size::MAX_BATCH_BYTES,
        relay::{self as wire, relay_sync_server, submit_verdict::What},
    },
    words::{EventId, RepoId},
};
use nostr::{EventBuilder, Filter, Keys, Kind, Tag, Timestamp, event::FinalizeEvent};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{at_most, millis, worker_name};
use crate::{
    clock::Moment,
    release::Release,
    sync::{
        Said, Syncing, choice,
        holdings::{self, Item},
        judge::{Judge, Judged, Method, Outcome},
        reports::{Counts, Report, State},
    },
    targets::{
        Change, Level,
        feed::{News, Wanted},
        relay_url::RelayUrl,
    },
};

/// Relays that one call may name: all there are, and as many that are on their way back.
const RELAYS: usize = 2 * choice::RELAYS;
/// Events in one request.
const EVENTS: usize = 500;
/// Ids in one request.
const IDS: usize = 10_000;
/// The longest filter, in bytes.
const FILTER: usize = 128 << 10;
/// Items in one message of an inventory.
const ITEMS: usize = 5_000;
/// Inventories that are made at once, each with all it lists in memory.
const INVENTORIES: usize = 4;
/// How long an inventory waits for its reader to take the next message.
const READ_ON: Duration = Duration::from_secs(30);
/// The longest challenge, in bytes.
const CHALLENGE: usize = 1 << 10;
/// The longest text of a failure that is kept, in characters.
const DETAIL: usize = 300;

/// The RelaySync service.
#[derive(Clone)]
pub struct RelaySyncService {
    wanted: Wanted,
    syncing: Syncing,
    judge: Judge,
    release: Release,
    keys: Keys,
    inventories: Arc<Semaphore>,
    stop: CancellationToken,
}

impl RelaySyncService {
    /// The service over what is wanted, who does it and who judges; `keys` answer challenges, and
    /// `stop` ends what waits.
    pub fn new(
        wanted: Wanted,
        syncing: Syncing,
        judge: Judge,
        release: Release,
        keys: Keys,
        stop: CancellationToken,
    ) -> Self {
        Self {
            wanted,
            syncing,
            judge,
            release,
            keys,
            inventories: Arc::new(Semaphore::new(INVENTORIES)),
            stop,
        }
    }
}

fn relay_url(text: &str) -> Result<RelayUrl, Status> {
    RelayUrl::parse(text).ok_or_else(|| Status::invalid_argument("not the address of a relay"))
}

fn event_id(bytes: &[u8]) -> Result<EventId, Status> {
    EventId::from_slice(bytes).map_err(|_| Status::invalid_argument("an id has 32 bytes"))
}

fn repository(repo: &RepoId) -> wire::Repository {
    wire::Repository::from(repo)
}

fn target_changes(changes: &[Change]) -> wire::TargetChanges {
    let mut message = wire::TargetChanges::default();
    for change in changes {
        match change {
            Change::Removed(repo) => message.removed.push(repository(repo)),
            Change::Set {
                repo,
                level,
                relays,
                new_roots,
                generation,
            } => message.targets.push(wire::Target {
                repository: Some(repository(repo)),
                level: match level {
                    Level::StateOnly => wire::Level::StateOnly,
                    Level::Full => wire::Level::Full,
                }
                .into(),
                relays: relays.iter().map(RelayUrl::to_string).collect(),
                new_roots: new_roots.iter().map(|id| id.as_bytes().to_vec()).collect(),
                generation: *generation,
            }),
        }
    }
    message
}

/// What a watcher is told: everything, and then what changes, until it does not keep up.
fn watching(
    all: Vec<Vec<Change>>,
    news: broadcast::Receiver<News>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<wire::TargetChanges, Status>> {
    let mut messages: VecDeque<Vec<Change>> = all.into();
    if messages.is_empty() {
        messages.push_back(Vec::new());
    }
    let last = messages.len() - 1;
    let snapshot = stream::iter(messages.into_iter().enumerate()).map(move |(place, message)| {
        Ok(wire::TargetChanges {
            complete: place == last,
            ..target_changes(&message)
        })
    });
    let news = stream::unfold(Some(news), move |news| {
        let stop = stop.clone();
        async move {
            let mut news = news?;
            let told = tokio::select! {
                () = stop.cancelled() => return None,
                told = news.recv() => told,
            };
            match told {
                Ok(changes) => Some((Ok(target_changes(&changes)), Some(news))),
                Err(broadcast::error::RecvError::Closed) => None,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let why = "more changed than was read; call again";
                    Some((Err(Status::aborted(why)), None))
                }
            }
        }
    });
    snapshot.chain(news)
}

fn state(state: wire::RelayState) -> State {
    match state {
        wire::RelayState::Unspecified | wire::RelayState::Disconnected => State::Disconnected,
        wire::RelayState::Connecting => State::Connecting,
        wire::RelayState::Syncing => State::Syncing,
        wire::RelayState::Connected => State::Connected,
        wire::RelayState::ConnectedWithFailures => State::ConnectedWithFailures,
    }
}

fn said(report: wire::RelayReport) -> Option<Said> {
    let moment = |millis: u64| (millis > 0).then(|| Moment::from_millis(millis));
    let url = RelayUrl::parse(&report.url)?;
    Some(Said {
        url,
        token: report.token,
        totals: report.totals,
        counts: Counts {
            succeeded: report.attempts_succeeded,
            failed: report.attempts_failed,
            live: report.events_live,
            negentropy: report.events_negentropy,
            paged: report.events_paged,
        },
        report: Report {
            state: state(report.state()),
            dead: report.dead,
            silent_until: moment(report.silent_until_millis),
            next_attempt: moment(report.next_attempt_millis),
            subscriptions: report.subscriptions,
            confirmed: report.confirmed,
            wanted: report.wanted,
            last_error: report.last_error.chars().take(DETAIL).collect(),
            ..Report::default()
        },
    })
}

fn held(relays: Vec<wire::HeldRelay>) -> Vec<(RelayUrl, u64)> {
    let held = |relay: wire::HeldRelay| Some((RelayUrl::parse(&relay.url)?, relay.token));
    relays.into_iter().filter_map(held).collect()
}

fn verdict((outcome, message): Judged) -> wire::SubmitVerdict {
    let what = match outcome {
        Outcome::Accepted => What::Accepted,
        Outcome::Purgatory => What::Purgatory,
        Outcome::Duplicate => What::Duplicate,
        Outcome::Rejected => What::Rejected,
        Outcome::KeptForLater => What::KeptForLater,
        Outcome::Forged => What::Forged,
        Outcome::Failed => What::Failed,
    };
    wire::SubmitVerdict {
        what: what.into(),
        message,
    }
}

fn method(method: wire::Method) -> Result<Method, Status> {
    match method {
        wire::Method::Live => Ok(Method::Live),
        wire::Method::Negentropy => Ok(Method::Negentropy),
        wire::Method::Paged => Ok(Method::Paged),
        wire::Method::Unspecified => Err(Status::invalid_argument("method is missing")),
    }
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

/// Does what blocks where it may.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(error.to_string()))?
        .map_err(failed)
}

fn inventory_message(items: &[Item]) -> wire::InventoryResponse {
    let item = |(at, id): &Item| wire::InventoryItem {
        id: id.as_bytes().to_vec(),
        created_at: at.as_secs(),
    };
    wire::InventoryResponse {
        items: items.iter().map(item).collect(),
    }
}

/// Sends items as they are read. As long as they are being sent they are in memory, and `kept` is
/// held: not for one who does not read on.
fn sending<T: Send + 'static>(
    items: Vec<Item>,
    kept: T,
) -> impl Stream<Item = Result<wire::InventoryResponse, Status>> {
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        let _kept = kept;
        let messages = items.chunks(ITEMS).map(inventory_message).map(Some);
        // The end is told, too: what is cut off is not taken for all there is.
        for message in messages.chain([None]) {
            let sent = tell.send_timeout(message, READ_ON).await;
            if sent.is_err() {
                return;
            }
        }
    });
    stream::unfold(Some(told), |told| async move {
        let mut told = told?;
        match told.recv().await {
            Some(Some(message)) => Some((Ok(message), Some(told))),
            Some(None) => None,
            None => {
                let why = "the inventory was not read on; call again";
                Some((Err(Status::aborted(why)), None))
            }
        }
    })
}

#[tonic::async_trait]
impl relay_sync_server::RelaySync for RelaySyncService {
    type WatchTargetsStream = BoxStream<'static, Result<wire::TargetChanges, Status>>;
    type InventoryStream = BoxStream<'static, Result<wire::InventoryResponse, Status>>;

    async fn watch_targets(
        &self,
        _: Request<wire::WatchTargetsRequest>,
    ) -> Result<Response<Self::WatchTargetsStream>, Status> {
        let (wanted, stop) = (self.wanted.clone(), self.stop.clone());
        // The caller hears that it is being served before everything has been looked up.
        let watched = stream::once(async move {
            let told = tokio::select! {
                () = stop.cancelled() => None,
                watched = wanted.watch() => Some(watched),
            };
            match told {
                Some((all, news)) => watching(all, news, stop).boxed(),
                None => stream::empty().boxed(),
            }
        });
        Ok(Response::new(watched.flatten().boxed()))
    }

    async fn lease_relays(
        &self,
        request: Request<wire::LeaseRelaysRequest>,
    ) -> Result<Response<wire::LeaseRelaysResponse>, Status> {
        let request = request.into_inner();
        worker_name(&request.worker)?;
        let wait = Duration::from_millis(request.wait_millis.into());
        let leased = self.syncing.lease(&request.worker, wait, &self.stop).await;
        let valid_millis = millis(self.syncing.lease_time());
        let relays = leased.map_err(failed)?.into_iter();
        let relays = relays.map(|leased| wire::LeasedRelay {
            url: leased.url.to_string(),
            token: leased.token,
            valid_millis,
            bootstrap: leased.bootstrap,
        });
        let relays = relays.collect();
        Ok(Response::new(wire::LeaseRelaysResponse { relays }))
    }

    async fn renew_relays(
        &self,
        request: Request<wire::RenewRelaysRequest>,
    ) -> Result<Response<wire::RenewRelaysResponse>, Status> {
        let request = request.into_inner();
        worker_name(&request.worker)?;
        at_most(&request.relays, RELAYS, "relays")?;
        let said = request.relays.into_iter().filter_map(said).collect();
        let renewed = self.syncing.renew(&request.worker, said);
        let valid_millis = millis(self.syncing.lease_time());
        let relays = renewed.into_iter().map(|renewed| wire::RenewedRelay {
            url: renewed.url.to_string(),
            token: renewed.token,
            valid_millis,
            give_back: renewed.give_back,
        });
        let relays = relays.collect();
        Ok(Response::new(wire::RenewRelaysResponse { relays }))
    }

    async fn release_relays(
        &self,
        request: Request<wire::ReleaseRelaysRequest>,
    ) -> Result<Response<wire::ReleaseRelaysResponse>, Status> {
        let request = request.into_inner();
        worker_name(&request.worker)?;
        at_most(&request.relays, RELAYS, "relays")?;
        self.syncing.release(&request.worker, held(request.relays));
        Ok(Response::new(wire::ReleaseRelaysResponse {}))
    }

    async fn inventory(
        &self,
        request: Request<wire::InventoryRequest>,
    ) -> Result<Response<Self::InventoryStream>, Status> {
        let text = request.into_inner().filter;
        if text.len() > FILTER {
            let why = format!("a filter of more than {FILTER} bytes");
            return Err(Status::invalid_argument(why));
        }
        let filter = Filter::from_json(&text)
            .map_err(|error| Status::invalid_argument(format!("not a filter: {error}")))?;
        let permit = self.inventories.clone().acquire_owned().await;
        let release = self.release.clone();
        let items = blocking(move || holdings::inventory(&release, filter)).await?;
        Ok(Response::new(sending(items, permit).boxed()))
    }

    async fn lacking(
        &self,
        request: Request<wire::LackingRequest>,
    ) -> Result<Response<wire::LackingResponse>, Status> {
        let request = request.into_inner();
        at_most(&request.ids, IDS, "ids")?;
        let ids = request.ids.iter().map(|id| event_id(id));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let (release, judge) = (self.release.clone(), self.judge.clone());
        let lacking = blocking(move || holdings::lacking(&release, &judge, ids)).await?;
        let ids = lacking.iter().map(|id| id.as_bytes().to_vec()).collect();
        Ok(Response::new(wire::LackingResponse { ids }))
    }

    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<wire::SubmitResponse>, Status> {
        let request = request.into_inner();
        worker_name(&request.worker)?;
        let url = relay_url(&request.url)?;
        let method = method(request.method())?;
        at_most(&request.events, EVENTS, "events")?;
        if request.events.iter().map(String::len).sum::<usize>() > MAX_BATCH_BYTES {
            let why = format!("more than {MAX_BATCH_BYTES} bytes of events");
            return Err(Status::invalid_argument(why));
        }
        let judged = self.judge.submit(url.as_str(), method, request.events);
        let judged = judged
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let verdicts = judged.into_iter().map(verdict).collect();
        Ok(Response::new(wire::SubmitResponse { verdicts }))
    }

    async fn authenticate(
        &self,
        request: Request<wire::AuthenticateRequest>,
    ) -> Result<Response<wire::AuthenticateResponse>, Status> {
        let request = request.into_inner();
        worker_name(&request.worker)?;
        let url = relay_url(&request.url)?;
        if request.challenge.is_empty() || request.challenge.len() > CHALLENGE {
            let why = format!("a challenge has 1 to {CHALLENGE} bytes");
            return Err(Status::invalid_argument(why));
        }
        let check = self.syncing.check(&url, &request.worker, request.token);
        check.map_err(|lost| Status::aborted(lost.to_string()))?;
        let tags = [["relay", url.as_str()], ["challenge", &request.challenge]];
        let tags =
            tags.map(|tag| Tag::parse(tag).map_err(|error| Status::internal(error.to_string())));
        let tags = tags.into_iter().collect::<Result<Vec<_>, _>>()?;
        let event = EventBuilder::new(Kind::Authentication, "")
            .tags(tags)
            .custom_created_at(Timestamp::now())
            .finalize(&self.keys)
            .map_err(|error| Status::internal(error.to_string()))?;
        let event = event.as_json();
        Ok(Response::new(wire::AuthenticateResponse { event }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(n: u8) -> Change {
        Change::Removed(RepoId {
            owner: grasp_proto::words::Npub::from_bytes([n; 32]),
            identifier: grasp_proto::words::Identifier::parse("x").unwrap(),
        })
    }

    #[tokio::test]
    async fn who_does_not_keep_up_begins_anew_and_holds_up_nobody() {
        let (tell, slow) = broadcast::channel(2);
        let quick = tell.subscribe();
        let watch = |news| {
            let all = vec![vec![removed(1)], vec![removed(2)]];
            Box::pin(watching(all, news, CancellationToken::new()))
        };
        let (mut slow, mut quick) = (watch(slow), watch(quick));
        for complete in [false, true] {
            for stream in [&mut slow, &mut quick] {
                assert_eq!(stream.next().await.unwrap().unwrap().complete, complete);
            }
        }
        for n in 0..3 {
            tell.send(Arc::new(vec![removed(n)])).unwrap();
            let message = quick.next().await.unwrap().unwrap();
            assert_eq!(message.removed, target_changes(&[removed(n)]).removed);
        }
        let cut_off = slow.next().await.unwrap().unwrap_err();
        assert_eq!(cut_off.code(), tonic::Code::Aborted);
        assert!(slow.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_inventory_that_is_not_read_on_is_let_go_of() {
        let items: Vec<Item> = (0..4 * ITEMS as u64)
            .map(|at| (Timestamp::from(at), EventId::from_bytes([1; 32])))
            .collect();
        let kept = Arc::new(());
        let mut read = Box::pin(sending(items.clone(), kept.clone()));
        let mut stuck = Box::pin(sending(items.clone(), kept.clone()));
        let mut all = 0;
        for _ in 0..4 {
            tokio::time::sleep(READ_ON / 2).await;
            all += read.next().await.unwrap().unwrap().items.len();
        }
        assert_eq!(all, items.len());
        assert!(read.next().await.is_none());
        tokio::time::sleep(2 * READ_ON).await;
        assert_eq!(Arc::strong_count(&kept), 1);
        // One message was on its way; the end is not the end of the list.
        assert!(stuck.next().await.unwrap().is_ok());
        let cut_off = stuck.next().await.unwrap().unwrap_err();
        assert_eq!(cut_off.code(), tonic::Code::Aborted);
        assert!(stuck.next().await.is_none());
        let mut none = Box::pin(sending(Vec::new(), ()));
        assert!(none.next().await.is_none());
    }

    #[tokio::test]
    async fn nothing_at_all_is_complete_too() {
        let (_tell, news) = broadcast::channel(2);
        let stop = CancellationToken::new();
        let mut watching = Box::pin(watching(Vec::new(), news, stop.clone()));
        let first = watching.next().await.unwrap().unwrap();
        assert!(first.complete && first.targets.is_empty());
        stop.cancel();
        assert!(watching.next().await.is_none());
    }
}
