//! What gitd needs of the relay: three questions about a push.
//!
//! [`Relay`] is the trait; [`GrpcRelay`] asks over the contract. Everything here may be called
//! while no lock is held, and nowhere else.

use std::{fmt, time::Duration};

use futures::future::BoxFuture;
use grasp_proto::{
    contract::{
        Command,
        relay::{
            AuthorizeRequest, CommandResult, CommitRequest, KeepAliveRequest, Objects, Refused,
            authorize_response::Outcome, push_client::PushClient,
        },
    },
    transport::{self, AuthorizedChannel, Token},
    words::{Address, EventId, Oid},
};
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Status};

/// One push, as its commands say it.
#[derive(Debug, Clone)]
pub struct Push {
    /// Where to.
    pub address: Address,
    /// Which of the repositories that ever had this name; empty: none is there yet.
    pub incarnation: String,
    /// What it wants moved.
    pub commands: Vec<Command>,
    /// All of it or nothing.
    pub atomic: bool,
}

/// What the relay says to one command of a push.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why not, for the git user; `None`: allowed, or done.
    pub refused: Option<String>,
    /// Where the ref was before, if not where the command says; zero: it was not there.
    pub old: Option<Oid>,
}

/// What the relay says to the commands of a push.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// One for each command, in their order.
    pub commands: Vec<Verdict>,
    /// Lines for the git user besides.
    pub remarks: Vec<String>,
    /// The state event that the push fulfilled.
    pub state: Option<EventId>,
}

impl Verdicts {
    /// The same for every command of a push.
    fn same(push: &Push, refused: Option<&String>) -> Self {
        let verdict = Verdict {
            refused: refused.cloned(),
            old: None,
        };
        Self {
            commands: vec![verdict; push.commands.len()],
            ..Self::default()
        }
    }

    /// What the contract's messages say of a push as it was asked about; a relay that says nothing of
    /// each command says the same of all: why they are `refused`, if they are.
    fn read_or_same(
        push: &Push,
        results: Vec<CommandResult>,
        remarks: Vec<String>,
        refused: Option<&String>,
    ) -> Result<Self, Unreachable> {
        match results.is_empty() {
            true => Ok(Self {
                remarks,
                ..Self::same(push, refused)
            }),
            false => Self::read(push, results, remarks),
        }
    }

    /// What the contract's messages say.
    fn read(
        push: &Push,
        results: Vec<CommandResult>,
        remarks: Vec<String>,
    ) -> Result<Self, Unreachable> {
        if results.len() != push.commands.len() {
            return Err(Unreachable("its answer was cut short".to_owned()));
        }
        let verdict = |result: CommandResult| Verdict {
            refused: Some(result.refused).filter(|reason| !reason.is_empty()),
            old: result.old.and_then(|old| Oid::from_slice(&old).ok()),
        };
        Ok(Self {
            commands: results.into_iter().map(verdict).collect(),
            remarks,
            state: None,
        })
    }
}

/// Where the objects of a granted push belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belongs {
    /// A signed event wants them: into the pool.
    Pool,
    /// Nobody has signed for them yet.
    Staged,
    /// The push changes nothing: away with them.
    Nowhere,
}

/// What the relay says to a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on, under this id.
    Granted {
        /// Names the push in the calls that follow.
        push_id: String,
        /// Where its objects go.
        objects: Belongs,
        /// Which commands may go on; at least one.
        verdicts: Verdicts,
    },
    /// No, for reasons the git user reads.
    Refused(Verdicts),
}

/// The relay gave no answer.
#[derive(Debug, Clone)]
pub struct Unreachable(pub String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The three questions about a push.
pub trait Relay: Send + Sync + 'static {
    /// Whether the push is allowed.
    fn authorize<'a>(&'a self, push: &'a Push) -> BoxFuture<'a, Result<Decision, Unreachable>>;

    /// The push is still being worked on. A relay that was restarted since it granted the push judges
    /// it again. Says whether the relay knows now; if not, the caller tries again soon.
    fn keep_alive<'a>(&'a self, push_id: &'a str, push: &'a Push) -> BoxFuture<'a, bool>;

    /// The objects are in: what became of each command.
    fn commit<'a>(
        &'a self,
        push_id: &'a str,
        push: &'a Push,
    ) -> BoxFuture<'a, Result<Verdicts, Unreachable>>;
}

/// How long a relay that is just being restarted, or comes back to the network, is waited for before a pack
/// is read: longer than one attempt to connect may hang.
const AUTHORIZE_PATIENCE: Duration = Duration::from_secs(8);

/// How long it is waited for once a pack is in: a restart over a large store takes its time, and the
/// pack need not be sent again.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How long one commit may take: it may move the refs of many repositories.
const COMMIT_DEADLINE: Duration = Duration::from_secs(120);

/// How long the relay may take to hear that a push still runs.
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(20);

/// The largest answer: a line for each of the most commands a push can have.
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// The relay over its contract.
#[derive(Clone)]
pub struct GrpcRelay {
    client: PushClient<AuthorizedChannel>,
}

impl GrpcRelay {
    /// The relay at `endpoint`, called with gitd's `credential`. Connects when first used.
    pub fn new(endpoint: &transport::Endpoint, credential: &Token) -> Self {
        Self {
            client: PushClient::new(endpoint.authorized(credential))
                .max_decoding_message_size(LARGEST_MESSAGE),
        }
    }
}

/// Whether the call may have met no relay, or one that was just going.
fn worth_repeating(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted
    )
}

/// Repeats an idempotent call for as long as `patience` lasts.
async fn repeat<T, F>(
    patience: Duration,
    is_worth_it: fn(&Status) -> bool,
    mut call: impl FnMut() -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let end = Instant::now() + patience;
    loop {
        match call().await {
            Err(status) if is_worth_it(&status) && Instant::now() < end => sleep(PAUSE).await,
            result => return result,
        }
    }
}

/// Whether a commit may still be carried out, or nobody has begun with it: its answer is asked for
/// again, under the same id.
fn commit_is_unanswered(status: &Status) -> bool {
    worth_repeating(status) || status.code() == Code::DeadlineExceeded
}

fn commands(push: &Push) -> Vec<grasp_proto::contract::relay::Command> {
    push.commands.iter().map(Into::into).collect()
}

fn authorize_request(push: &Push, push_id: &str) -> AuthorizeRequest {
    AuthorizeRequest {
        repository: Some((&push.address).into()),
        commands: commands(push),
        incarnation: push.incarnation.clone(),
        push_id: push_id.to_owned(),
        atomic: push.atomic,
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(KEEP_ALIVE_DEADLINE);
    request
}

impl Relay for GrpcRelay {
    fn authorize<'a>(&'a self, push: &'a Push) -> BoxFuture<'a, Result<Decision, Unreachable>> {
        Box::pin(async move {
            let request = authorize_request(push, "");
            let answer = repeat(AUTHORIZE_PATIENCE, worth_repeating, || {
                let (mut client, request) = (self.client.clone(), request.clone());
                async move { client.authorize(request).await }
            });
            match answer.await {
                Ok(response) => match response.into_inner().outcome {
                    Some(Outcome::Granted(granted)) => {
                        let objects = match granted.objects() {
                            Objects::SignedFor => Belongs::Pool,
                            Objects::Staged => Belongs::Staged,
                            Objects::Unwanted | Objects::Unspecified => Belongs::Nowhere,
                        };
                        let (push_id, results) = (granted.push_id, granted.results);
                        let verdicts =
                            Verdicts::read_or_same(push, results, granted.remarks, None)?;
                        Ok(Decision::Granted {
                            push_id,
                            objects,
                            verdicts,
                        })
                    }
                    Some(Outcome::Refused(Refused {
                        reason,
                        results,
                        remarks,
                    })) => {
                        let verdicts =
                            Verdicts::read_or_same(push, results, remarks, Some(&reason))?;
                        Ok(Decision::Refused(verdicts))
                    }
                    None => Err(Unreachable("its answer was empty".to_owned())),
                },
                Err(status) => Err(Unreachable(status.to_string())),
            }
        })
    }

    fn keep_alive<'a>(&'a self, push_id: &'a str, push: &'a Push) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let mut client = self.client.clone();
            let request = KeepAliveRequest {
                push_id: push_id.to_owned(),
            };
            let told = match client.keep_alive(timed(request)).await {
                Ok(_) => return true,
                Err(status) if status.code() == Code::NotFound => {
                    let request = authorize_request(push, push_id);
                    client.authorize(timed(request)).await
                }
                Err(status) => Err(status),
            };
            match told.map(|answer| answer.into_inner().outcome) {
                Ok(Some(Outcome::Refused(refused))) => {
                    // The pusher hears it when the push is committed.
                    let reason = refused.reason;
                    tracing::warn!(repo = %push.address, %reason, "a running push is not allowed any more");
                    true
                }
                Ok(_) => {
                    tracing::info!(repo = %push.address, "the restarted relay knows of a running push");
                    true
                }
                Err(status) => {
                    tracing::warn!(%status, "the relay was not told that a push still runs");
                    false
                }
            }
        })
    }

    fn commit<'a>(
        &'a self,
        push_id: &'a str,
        push: &'a Push,
    ) -> BoxFuture<'a, Result<Verdicts, Unreachable>> {
        Box::pin(async move {
            let message = CommitRequest {
                push_id: push_id.to_owned(),
                repository: Some((&push.address).into()),
                commands: commands(push),
                incarnation: push.incarnation.clone(),
                atomic: push.atomic,
            };
            let answer = repeat(COMMIT_PATIENCE, commit_is_unanswered, || {
                let mut request = Request::new(message.clone());
                request.set_timeout(COMMIT_DEADLINE);
                let mut client = self.client.clone();
                async move { client.commit(request).await }
            });
            let response = match answer.await {
                Ok(response) => response.into_inner(),
                Err(status) => return Err(Unreachable(status.to_string())),
            };
            let verdicts = Verdicts::read(push, response.results, response.remarks)?;
            Ok(Verdicts {
                state: EventId::from_slice(&response.state).ok(),
                ..verdicts
            })
        })
    }
}
