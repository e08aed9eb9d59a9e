//! Events that an operator hands over: each by the one door, as if a user had sent it.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use grasp_proto::contract::relay as wire;
use tonic::{Status, Streaming};

use crate::{
    event_json::read_event,
    sync::judge::{Outcome, outcome},
    verdict::{Door, Origin},
};

/// Events judged at once; the store takes those in together that come together.
const AT_ONCE: usize = 16;

/// The answers, in the order of the events.
pub type Answers = BoxStream<'static, Result<wire::ImportResponse, Status>>;

/// Judges what comes, and no faster than the answers are taken.
pub fn judge(door: Arc<dyn Door>, events: Streaming<wire::ImportRequest>) -> Answers {
    let answers = events.map(move |request| {
        let door = Arc::clone(&door);
        async move {
            let text = request?.event;
            // What has begun is finished, also for one who has gone away.
            let judged = tokio::spawn(async move { judge_one(&*door, &text).await });
            judged
                .await
                .map_err(|error| Status::internal(error.to_string()))
        }
    });
    answers.buffered(AT_ONCE).boxed()
}

async fn judge_one(door: &dyn Door, text: &str) -> wire::ImportResponse {
    let event = match read_event(text) {
        Ok(event) => event,
        Err(error) => {
            return wire::ImportResponse {
                message: format!("invalid: not an event ({error})"),
                ..wire::ImportResponse::default()
            };
        }
    };
    let verdict = door.admit(event.clone(), Origin::Operator).await;
    let may_come = matches!(
        outcome(&event, &verdict),
        Outcome::KeptForLater | Outcome::Failed
    );
    wire::ImportResponse {
        accepted: verdict.ok,
        message: verdict.message,
        may_come,
    }
}
