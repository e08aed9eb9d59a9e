//! Pushes, and what becomes of them on the way.

use std::{io::Write, time::Duration};

use flate2::{Compression, write::GzEncoder};
use rustix::process::Signal;
use serde_json::json;
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpStream};

use crate::{
    configuration::Configuration,
    front::Way,
    stage::{Hosted, Stage, large, made, small},
    support::{
        Client, Repo, git,
        git::{ZERO, commands, lines},
        processes, soon, until,
        web::{self, Upload},
    },
};

const PUSH: [(&str, &str); 1] = [("Content-Type", "application/x-git-receive-pack-request")];

/// The body of a push of `main`.
async fn body(repo: &Repo, capabilities: &str) -> (Vec<u8>, Vec<u8>) {
    let main = repo.oid("main").await;
    let wanted = [(ZERO, main.as_str(), "refs/heads/main")];
    (commands(&wanted, capabilities), repo.pack(&["main"]).await)
}

fn upload(stage: &Stage, hosted: &Hosted) -> Upload {
    let path = format!("{}/git-receive-pack", hosted.path());
    Upload::start(stage.front.simplest(), &path, &PUSH)
}

#[track_caller]
fn is_done(body: &[u8]) {
    let report = lines(body);
    assert_eq!(
        report[..2],
        ["unpack ok", "ok refs/heads/main"],
        "{report:?}"
    );
}

pub async fn of_any_size(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    for way in stage.front.ways_for_pushes() {
        for (size, repo) in [("small", small().await), ("large", large().await)] {
            let hosted = stage.expect(&format!("{size}-{way:?}"), repo).await;
            stage.push(repo, &hosted, way, &[]).await.good();
            assert!(hosted.is_served(&stage.service).await);
        }
    }
}

/// git that asks before it sends, as it does where it has to log in.
pub async fn that_ask_first(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    let repo = large().await;
    let asks = ["-c", "http.extraHeader=Expect: 100-continue"];
    for way in stage.front.ways_for_pushes() {
        let hosted = stage.announce(&format!("in-vain-{way:?}"), repo).await;
        let text = stage.push(repo, &hosted, way, &asks).await.refused();
        assert!(text.contains("state"), "{text}");
    }
    // Who is allowed to, and who really waits.
    let hosted = stage.expect("asks", repo).await;
    let way = stage.front.ways()[0];
    stage.push(repo, &hosted, way, &asks).await.good();
    assert!(hosted.is_served(&stage.service).await);
    let repo = small().await;
    let hosted = stage.expect("waits", repo).await;
    let (commands, pack) = body(repo, "report-status").await;
    let head = format!(
        "POST {}/git-receive-pack HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: {}\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        hosted.path(),
        PUSH[0].1,
        commands.len() + pack.len()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", stage.front.simplest()))
        .await
        .unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 12];
    soon("100 Continue", stream.read_exact(&mut told))
        .await
        .unwrap();
    assert_eq!(&told, b"HTTP/1.1 100");
    stream.write_all(&commands).await.unwrap();
    stream.write_all(&pack).await.unwrap();
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    soon("the answer", reading).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("ok refs/heads/main"), "{answer}");
}

/// Nobody has signed for them, which is known before the pack.
pub async fn that_are_refused(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    let repo = large().await;
    for way in stage.front.ways_for_pushes() {
        let hosted = stage.announce(&format!("early-{way:?}"), repo).await;
        let text = stage.push(repo, &hosted, way, &[]).await.refused();
        assert!(text.contains("state"), "{text}");
    }
}

/// One client has what it may have already: refused at the door.
pub async fn that_are_refused_at_the_door(configuration: Configuration) {
    let settings = [
        ("NGIT_GIT_TRANSFERS_PER_IP", "1"),
        ("NGIT_UNLIMITED_CIDRS", "none"),
    ];
    let stage = Stage::start_with(configuration, &settings).await;
    let small = small().await;
    let hosted = stage.expect("door", small).await;
    let (commands, pack) = body(small, "report-status").await;
    // Sent in full, without its end, so that one that is buffered on the way is not heard of: hence past
    // the proxy.
    let path = format!("{}/git-receive-pack", hosted.path());
    let mut other = Upload::start(stage.service.port, &path, &PUSH);
    other.send(commands).await;
    other.send(pack[..pack.len() / 2].to_vec()).await;
    let begun = || async { stage.is_taking_in() };
    until("the other has begun", begun).await;
    for way in stage.front.ways_for_pushes() {
        for repo in [small, large().await] {
            let out = stage.push(repo, &hosted, way, &[]).await;
            assert!(!out.ok);
            let (words, status) = ("too many transfers", "429");
            let told = [words, status].iter().any(|told| out.stderr.contains(told));
            assert!(told, "{}", out.stderr);
        }
    }
    other.send(pack[pack.len() / 2..].to_vec()).await;
    is_done(&other.finish().await.unwrap().body);
}

/// Slower, in all, than a proxy waits for an answer.
pub async fn that_are_slow(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    let repo = small().await;
    let hosted = stage.expect("slow", repo).await;
    let (commands, pack) = body(repo, "report-status").await;
    let mut upload = upload(&stage, &hosted);
    upload.send(commands).await;
    for piece in pack.chunks(pack.len() / 12) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        upload.send(piece.to_vec()).await;
    }
    is_done(&upload.finish().await.unwrap().body);
    assert!(hosted.is_served(&stage.service).await);
}

/// Longer at work, once all has come, than a proxy waits for a sign of life.
pub async fn that_take_long_to_be_checked(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    // What is left of the pack when git stops fits into its pipe.
    let repo = made(40_000).await;
    let hosted = stage.expect("checked", &repo).await;
    let (commands, pack) = body(&repo, "report-status side-band-64k").await;
    let mut upload = upload(&stage, &hosted);
    upload.send(commands).await;
    let (first, rest) = pack.split_at(pack.len() / 2);
    upload.send(first.to_vec()).await;
    let git = || stage.git("index-pack");
    until("git reads the pack", || async { git().is_some() }).await;
    let git = git().unwrap();
    processes::send(git, Signal::STOP);
    upload.send(rest.to_vec()).await;
    // The pack has ended, the request not yet.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answer = async {
        let going_on = async {
            tokio::time::sleep(Duration::from_secs(13)).await;
            processes::send(git, Signal::CONT);
        };
        tokio::join!(upload.finish(), going_on).0
    };
    let answer = answer.await.unwrap();
    let text = answer.text();
    assert!(text.contains("ok refs/heads/main"), "{text}");
    assert!(hosted.is_served(&stage.service).await);
}

pub async fn that_break_off(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    let repo = small().await;
    let hosted = stage.expect("broken", repo).await;
    let (commands, pack) = body(repo, "report-status").await;
    for share in [0, 2, 1] {
        let mut upload = upload(&stage, &hosted);
        upload.send(commands.clone()).await;
        if let Some(part) = pack.len().checked_div(share) {
            upload.send(pack[..part - 20].to_vec()).await;
        }
        upload.abort().await;
        let gone = || async { !stage.is_taking_in() };
        until("nothing is left of the upload", gone).await;
    }
    assert!(!hosted.is_served(&stage.service).await);
    let way = stage.front.ways()[0];
    stage.push(repo, &hosted, way, &[]).await.good();
    assert!(hosted.is_served(&stage.service).await);
}

/// gitd ends in the middle: whoever pushes hears of it, and does not wait for ever.
pub async fn that_lose_gitd(configuration: Configuration) {
    let mut stage = Stage::start(configuration).await;
    let repo = small().await;
    let hosted = stage.expect("lost", repo).await;
    let (commands, pack) = body(repo, "report-status side-band-64k").await;
    let mut upload = upload(&stage, &hosted);
    upload.send(commands).await;
    let (first, rest) = pack.split_at(pack.len() / 2);
    upload.send(first.to_vec()).await;
    stage.service.kill_gitd().await;
    upload.send(rest.to_vec()).await;
    // Where the proxy keeps it all to itself until it is complete, nothing was lost.
    if let Ok(answer) = upload.finish().await {
        let text = answer.text();
        let told = text.contains("restarting") || text.contains("ok refs/heads/main");
        assert!(told || answer.status >= 500, "{answer:?}");
    }
    let way = stage.front.ways()[0];
    if !hosted.is_served(&stage.service).await {
        stage.push(repo, &hosted, way, &[]).await.good();
    }
}

/// A websocket beside hears of what is pushed.
pub async fn beside_a_websocket(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    let repo = large().await;
    for way in stage.front.ways_for_pushes() {
        let hosted = stage.expect(&format!("beside-{way:?}"), repo).await;
        let mut client = Client::try_connect(stage.front.port(way)).await.unwrap();
        let filter = json!({"kinds": [30618], "authors": [hosted.owner.public_key().to_hex()]});
        let (name, stored) = client.subscribe(filter).await;
        assert!(stored.is_empty());
        let (out, heard) = tokio::join!(stage.push(repo, &hosted, way, &[]), client.live(&name),);
        out.good();
        assert_eq!(heard.id, hosted.state.id);
    }
}

pub async fn that_are_compressed(configuration: Configuration) {
    let stage = Stage::start(configuration).await;
    let repo = made(1000).await;
    let hosted = stage.expect("gzip", &repo).await;
    let (commands, pack) = body(&repo, "report-status").await;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&commands).unwrap();
    encoder.write_all(&pack).unwrap();
    let path = format!("{}/git-receive-pack", hosted.path());
    let headers = [PUSH[0], ("Content-Encoding", "gzip")];
    let body = web::full(encoder.finish().unwrap());
    let request = web::with_body("POST", stage.front.simplest(), &path, &headers, body);
    is_done(&stage.ask(request).await.body);
    assert!(hosted.is_served(&stage.service).await);
}

/// Another service, told to look here, finds it through the proxy.
pub async fn that_are_hunted_for(configuration: Configuration) {
    use crate::support::{Service, events};

    let stage = Stage::start(configuration).await;
    let repo = large().await;
    for way in [Way::Plain, Way::Tls] {
        if !stage.front.ways().contains(&way) {
            continue;
        }
        let hosted = stage.hold(&format!("hunted-{way:?}"), repo).await;
        let authority = stage.front.authority().display().to_string();
        let other = Service::start_with(&[
            ("NGIT_SYNC_DEFAULT_DELAY_SECS", "0"),
            ("SSL_CERT_FILE", &authority),
        ])
        .await;
        let (owner, identifier) = (&hosted.owner, &hosted.identifier);
        let urls = [
            "clone".to_owned(),
            other.public_url(owner, identifier),
            stage.front.url(way, &hosted.path()),
        ];
        let announcement = events::announcement(&other, owner, identifier)
            .without("clone")
            .tag(urls);
        let mut client = Client::connect(&other).await;
        client.publish(&announcement.sign(owner)).await.waits();
        client.publish(&hosted.state).await.waits();
        let url = other.url(owner, identifier);
        let found = || async { hosted.is_served(&other).await };
        until("what lies behind the proxy is found", found).await;
        assert_eq!(
            git::remote_ref(&url, "refs/heads/main").await,
            Some(repo.oid("main").await)
        );
    }
}
