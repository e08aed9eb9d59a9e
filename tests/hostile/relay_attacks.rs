//! Attacks on the relay's memory, time and store.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Map, Value, json};

use crate::{
    attacker::{Socket, publish, read_until, send, socket, try_socket},
    stage::{Stage, scaled},
    support::{Client, Draft, Event, Keys, Project, Service, events},
};

/// How long what has been built up is held.
const HELD: Duration = Duration::from_secs(3);

/// The largest events that are usual.
const LARGE: usize = 50_000;

async fn sockets(service: &Service, number: usize) -> Vec<Socket> {
    join_all((0..number).map(|_| socket(service))).await
}

/// A filter as large as one may be, of values as short as they may be.
fn filter_of_many_values(letter: char) -> Value {
    let digits = |number: usize| format!("{number:x}");
    let values: Vec<String> = (0..2500).map(digits).collect();
    let mut filter = Map::new();
    filter.insert(format!("#{letter}"), values.into());
    Value::Object(filter)
}

/// Subscriptions of more short values than anybody has use for.
pub async fn filters(stage: &Stage) {
    let filters: Vec<Value> = ('a'..='t').map(filter_of_many_values).collect();
    let subscribe = async |mut socket: Socket| {
        for number in 0..13 {
            let mut request = vec![json!("REQ"), json!(format!("s{number}"))];
            request.extend(filters.iter().cloned());
            if !send(&mut socket, &Value::Array(request)).await {
                break;
            }
            if read_until(&mut socket, &["EOSE", "CLOSED", "NOTICE"])
                .await
                .is_none()
            {
                break;
            }
        }
        socket
    };
    let all = sockets(&stage.service, scaled(30)).await;
    let _held = join_all(all.into_iter().map(subscribe)).await;
    tokio::time::sleep(HELD).await;
}

/// Questions about everything, many at once.
pub async fn counts_and_reconciliations(stage: &Stage) {
    // From the first to the last event, of which the client has none.
    const HAS_NOTHING: &str = "6100000200";
    let ask = async |mut socket: Socket| {
        for number in 0..20 {
            let name = format!("s{number}");
            let opening = json!(["NEG-OPEN", name, {}, HAS_NOTHING]);
            let count = json!(["COUNT", name, {}, filter_of_many_values('t')]);
            for (question, answers) in [
                (opening, ["NEG-MSG", "NEG-ERR", "NOTICE"]),
                (count, ["COUNT", "CLOSED", "NOTICE"]),
            ] {
                if !send(&mut socket, &question).await
                    || read_until(&mut socket, &answers).await.is_none()
                {
                    return socket;
                }
            }
        }
        socket
    };
    let all = sockets(&stage.service, scaled(20)).await;
    let _held = join_all(all.into_iter().map(ask)).await;
    tokio::time::sleep(HELD).await;
}

/// A project of somebody honest, and its large issues, which are not published yet.
async fn large_issues(service: &Service, client: &mut Client) -> (Project, Vec<Event>) {
    let name = format!("large-{}", events::next_second());
    let project = Project::active(service, client, &name).await;
    let issue = |number: usize| {
        let text = format!("{number:0LARGE$}");
        events::issue(&project.coordinate())
            .content(text)
            .sign(&project.owner)
    };
    let issues = (0..scaled(200)).map(issue).collect();
    (project, issues)
}

/// Publishes what somebody honest has, over as many connections as the rates of one make useful.
async fn publish_all(service: &Service, events: &[Event]) {
    for some in events.chunks(50) {
        let mut client = Client::connect(service).await;
        for event in some {
            client.publish(event).await.served();
        }
    }
}

/// Connections that ask and take nothing.
async fn subscribe_and_read_nothing(service: &Service, filter: &Value) -> Vec<Socket> {
    let subscribe = async |_| {
        let mut socket = try_socket(service, Some(4096)).await?;
        send(&mut socket, &json!(["REQ", "s", filter]))
            .await
            .then_some(socket)
    };
    let all = join_all((0..50).map(subscribe)).await;
    all.into_iter().flatten().collect()
}

/// All that is stored is asked for, and none of it read.
pub async fn slow_readers(stage: &Stage) {
    let service = &stage.service;
    let mut client = Client::connect(service).await;
    let (project, issues) = large_issues(service, &mut client).await;
    publish_all(service, &issues).await;
    let filter = json!({"#a": [project.coordinate()]});
    let _held = subscribe_and_read_nothing(service, &filter).await;
    tokio::time::sleep(HELD).await;
}

/// All that comes is asked for, and none of it read.
pub async fn slow_subscribers(stage: &Stage) {
    let service = &stage.service;
    let mut client = Client::connect(service).await;
    let (project, issues) = large_issues(service, &mut client).await;
    let filter = json!({"#a": [project.coordinate()]});
    let _held = subscribe_and_read_nothing(service, &filter).await;
    publish_all(service, &issues).await;
    tokio::time::sleep(HELD).await;
}

/// Publishes drafts, each by somebody of whom nothing was heard before, over as many connections as the
/// rates of one make useful. How many were accepted.
async fn publish_as_strangers(service: &Service, drafts: Vec<Draft>) -> usize {
    let publish_some = async |drafts: &[Draft]| {
        let mut socket = socket(service).await;
        let mut accepted = 0;
        for draft in drafts {
            let event = draft.clone().sign(&Keys::generate());
            accepted += usize::from(publish(&mut socket, &event).await);
        }
        accepted
    };
    let accepted = join_all(drafts.chunks(20).map(publish_some)).await;
    accepted.into_iter().sum()
}

/// Large events of the kinds that anybody may store.
pub async fn strangers(stage: &Stage) {
    let deletion = |number: usize| {
        let ids = (0..2500).map(|id| format!("{:064x}", number << 16 | id));
        ids.fold(Draft::new(5), |draft, id| draft.tag(["e", &id]))
    };
    let list = |number: usize| {
        let urls = (0..4000).map(|url| format!("wss://relay-{number}-{url}.example"));
        urls.fold(Draft::new(10317), |draft, url| draft.tag(["g", &url]))
    };
    let drafts = (0..scaled(50)).flat_map(|number| [deletion(number), list(number)]);
    publish_as_strangers(&stage.service, drafts.collect()).await;
}

/// Announcements that wait, each with thousands of addresses.
pub async fn many_urls(stage: &Stage) {
    let service = &stage.service;
    let announcement = |number: usize| {
        let owner = Keys::generate();
        let name = format!("urls-{number}");
        let urls = |scheme: &str, own: String| {
            let others =
                (0..2000).map(|url| format!("{scheme}://server-{number}-{url}.example/x.git"));
            let mut all = vec![own];
            all.extend(others);
            all
        };
        let relays = urls("wss", format!("ws://{}", service.domain()));
        let clones = urls("https", service.public_url(&owner, &name));
        let tag = |name: &str, values: Vec<String>| {
            std::iter::once(name.to_owned())
                .chain(values)
                .collect::<Vec<_>>()
        };
        let draft = events::announcement(service, &owner, &name)
            .without("relays")
            .without("clone")
            .tag(tag("clone", clones))
            .tag(tag("relays", relays));
        draft.sign(&owner)
    };
    let numbers: Vec<usize> = (0..scaled(300)).collect();
    let publish_some = async |numbers: &[usize]| {
        let mut socket = socket(service).await;
        for number in numbers {
            publish(&mut socket, &announcement(*number)).await;
        }
        socket
    };
    let _held = join_all(numbers.chunks(20).map(publish_some)).await;
    tokio::time::sleep(HELD).await;
}

/// Events whose signatures are of something else, and what is no event.
pub async fn forged(stage: &Stage) {
    let event = Draft::new(1621)
        .content("x".repeat(LARGE))
        .sign(&Keys::generate());
    let mut forged = serde_json::to_value(&event).unwrap();
    forged["content"] = "y".repeat(LARGE).into();
    let nested = "[".repeat(30_000);
    let send_all = async |mut socket: Socket| {
        for _ in 0..30 {
            let message = json!(["EVENT", forged]);
            if !send(&mut socket, &message).await {
                return;
            }
            if read_until(&mut socket, &["OK", "NOTICE"]).await.is_none() {
                return;
            }
            let text = tokio_tungstenite::tungstenite::Message::text(nested.clone());
            if futures::SinkExt::send(&mut socket, text).await.is_err()
                || read_until(&mut socket, &["NOTICE"]).await.is_none()
            {
                return;
            }
        }
    };
    let all = sockets(&stage.service, scaled(20)).await;
    join_all(all.into_iter().map(send_all)).await;
}

/// Owners who follow the attacker's states.
const FOLLOWERS: usize = 12;
/// Refs of a state.
const SWAPPED: usize = 2_500;

/// States that make a directory of each of thousands of refs, and a ref of each such directory, in many
/// repositories of the neighbour's identifier.
pub async fn swapped_refs(stage: &Stage) {
    let service = &stage.service;
    let mut client = Client::connect(service).await;
    let lead = Project::active(service, &mut client, "neighbour").await;
    let tip = lead.repo.oid("main").await;
    let followers: Vec<Keys> = (0..scaled(FOLLOWERS)).map(|_| Keys::generate()).collect();
    let named: Vec<&Keys> = followers.iter().collect();
    let mut socket = socket(service).await;
    let invitation = lead.announcement(service).maintainers(&named);
    assert!(publish(&mut socket, &invitation.sign(&lead.owner)).await);
    for follower in &followers {
        let answer =
            events::announcement(service, follower, "neighbour").maintainers(&[&lead.owner]);
        assert!(publish(&mut socket, &answer.sign(follower)).await);
    }
    for round in 0..4 {
        let below = ["", "/x"][round % 2];
        let name = |number| (format!("refs/heads/a{number}{below}"), tip.clone());
        let refs: Vec<(String, String)> = (0..SWAPPED).map(name).collect();
        let state = events::state("neighbour", &refs).sign(&lead.owner);
        assert!(publish(&mut socket, &state).await);
    }
}
