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
            AuthorizeRequest, CommitRequest, KeepAliveRequest, Objects,
            authorize_response::Outcome, push_client::PushClient,
        },
    },
    transport::{self, AuthorizedChannel, Token},
    words::Address,
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
    },
    /// No, for a reason the git user reads.
    Refused(String),
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

    /// The upload still moves. A lost call is made up for by the next.
    fn keep_alive<'a>(&'a self, push_id: &'a str) -> BoxFuture<'a, ()>;

    /// The objects are in: what became of each command, `None` for done.
    fn commit<'a>(
        &'a self,
        push_id: &'a str,
        push: &'a Push,
    ) -> BoxFuture<'a, Result<Vec<Option<String>>, Unreachable>>;
}

/// How long a relay that is just being restarted is waited for before a pack is read.
const AUTHORIZE_PATIENCE: Duration = Duration::from_secs(2);

/// How long it is waited for once a pack is in.
const COMMIT_PATIENCE: Duration = Duration::from_secs(20);

/// How long one commit may take: it may move the refs of many repositories.
const COMMIT_DEADLINE: Duration = Duration::from_secs(120);

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
async fn repeat<T, F>(patience: Duration, mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let end = Instant::now() + patience;
    loop {
        match call().await {
            Err(status) if worth_repeating(&status) && Instant::now() < end => sleep(PAUSE).await,
            result => return result,
        }
    }
}

fn commands(push: &Push) -> Vec<grasp_proto::contract::relay::Command> {
    push.commands.iter().map(Into::into).collect()
}

impl Relay for GrpcRelay {
    fn authorize<'a>(&'a self, push: &'a Push) -> BoxFuture<'a, Result<Decision, Unreachable>> {
        Box::pin(async move {
            let request = AuthorizeRequest {
                repository: Some((&push.address).into()),
                commands: commands(push),
                incarnation: push.incarnation.clone(),
            };
            let answer = repeat(AUTHORIZE_PATIENCE, || {
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
                        let push_id = granted.push_id;
                        Ok(Decision::Granted { push_id, objects })
                    }
                    Some(Outcome::Refused(refused)) => Ok(Decision::Refused(refused.reason)),
                    None => Err(Unreachable("its answer was empty".to_owned())),
                },
                Err(status) => Err(Unreachable(status.to_string())),
            }
        })
    }

    fn keep_alive<'a>(&'a self, push_id: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let push_id = push_id.to_owned();
            let request = KeepAliveRequest { push_id };
            if let Err(status) = self.client.clone().keep_alive(request).await {
                tracing::warn!(%status, "the relay was not told that an upload still moves");
            }
        })
    }

    fn commit<'a>(
        &'a self,
        push_id: &'a str,
        push: &'a Push,
    ) -> BoxFuture<'a, Result<Vec<Option<String>>, Unreachable>> {
        Box::pin(async move {
            let message = CommitRequest {
                push_id: push_id.to_owned(),
                repository: Some((&push.address).into()),
                commands: commands(push),
                incarnation: push.incarnation.clone(),
            };
            let answer = repeat(COMMIT_PATIENCE, || {
                let mut request = Request::new(message.clone());
                request.set_timeout(COMMIT_DEADLINE);
                let mut client = self.client.clone();
                async move { client.commit(request).await }
            });
            let results = match answer.await {
                Ok(response) => response.into_inner().results,
                Err(status) => return Err(Unreachable(status.to_string())),
            };
            if results.len() != push.commands.len() {
                return Err(Unreachable("its answer was cut short".to_owned()));
            }
            Ok(results
                .into_iter()
                .map(|result| Some(result.refused).filter(|reason| !reason.is_empty()))
                .collect())
        })
    }
}
