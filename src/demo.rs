//! The main job in one command: announce a repository, publish its state, push it, see it
//! released, clone it back and compare; and, if asked, let another service find it there.
//!
//! It speaks to the server as any client would, so it works with every GRASP server.

mod relay;
mod repository;
mod service;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nostr::{
    Event, EventId, Keys,
    event::{EventBuilder, FinalizeEvent, Kind, Tag},
    nips::nip19::ToBech32,
};
use url::Url;

use relay::Relay;
use repository::{Refs, git};
use service::Service;

const ANNOUNCEMENT: Kind = Kind::Custom(30617);
const STATE: Kind = Kind::Custom(30618);

/// How long a server may take from the end of the push, or the event, to serving the events.
const RELEASE: Duration = Duration::from_secs(60);

/// What a temporary service is told that is to find the data by itself: where other servers may be,
/// and not to wait for a push first.
const HUNTER: [(&str, &str); 2] = [
    ("NGIT_SYNC_ALLOW_NON_GLOBAL_TARGETS", "true"),
    ("NGIT_SYNC_DEFAULT_DELAY_SECS", "0"),
];

/// What is to be shown.
pub struct Demo {
    /// A repository of the user's.
    pub path: Option<PathBuf>,
    /// A server, instead of a temporary one.
    pub server: Option<String>,
    /// Besides, let another service find the repository there.
    pub hunt: bool,
}

/// Shows it.
pub async fn run(demo: Demo) -> anyhow::Result<()> {
    let temporary = tempfile::Builder::new().prefix("graspd-demo-").tempdir()?;
    let outcome = tokio::select! {
        outcome = demonstrate(demo, temporary.path()) => outcome,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    if outcome.is_err() {
        for name in ["service", "hunter"] {
            let log = std::fs::read_to_string(temporary.path().join(name).join("log"));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            if lines.is_empty() {
                continue;
            }
            eprintln!("the {name}'s last words:");
            for line in &lines[lines.len().saturating_sub(20)..] {
                eprintln!("  {line}");
            }
        }
    }
    outcome
}

/// Prints each step with the time it took.
struct Steps {
    began: Instant,
    last: Instant,
}

impl Steps {
    fn begin() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            last: now,
        }
    }

    fn done(&mut self, what: &str) {
        let now = Instant::now();
        let millis = (now - self.last).as_secs_f64() * 1000.0;
        println!("{millis:>9.1} ms  {what}");
        self.last = now;
    }

    fn note(what: &str) {
        println!("              {what}");
    }

    fn said(words: &str) {
        for line in words.lines() {
            println!("              server: {line}");
        }
    }
}

async fn demonstrate(demo: Demo, temporary: &Path) -> anyhow::Result<()> {
    let Demo { path, server, hunt } = demo;
    let mut steps = Steps::begin();
    let began = steps.began;

    let (repository, name) = choose(path, temporary).await?;
    let refs = repository::refs(&repository).await?.with_born_head();
    ensure!(
        !refs.values.is_empty(),
        "the repository has no branch and no tag yet"
    );
    steps.done(&format!("repository {name}: {}", refs.summary()));

    let service = match &server {
        Some(_) => None,
        None => Some(Service::start(&temporary.join("service"), &[]).await?),
    };
    let url = match (&server, &service) {
        (Some(given), _) => given,
        (None, Some(service)) => &service.url,
        (None, None) => bail!("no server"),
    };
    let server = Server::parse(url)?;
    let mut relay = Relay::connect(&server.relay).await?;
    let how = if service.is_some() {
        "started"
    } else {
        "reached"
    };
    steps.done(&format!(
        "service {how}: {} and {}",
        server.web, server.relay
    ));

    let keys = Keys::generate();
    let npub = keys.public_key().to_bech32()?;
    let clone_url = server.clone_url(&npub, &name)?;
    steps.done(&format!("key made: {npub}"));

    let root = first_commit(&repository, &refs).await;
    let places = [(clone_url.as_str(), server.relay.as_str())];
    let announcement = announcement(&keys, &name, &places, root.as_deref())?;
    publish(
        &mut relay,
        &announcement,
        &mut steps,
        "announcement published (30617)",
    )
    .await?;
    let state = state(&keys, &name, &refs)?;
    publish(&mut relay, &state, &mut steps, "state published (30618)").await?;
    let events = [announcement.id, state.id];
    let early = relay.count(&events).await?;
    steps.done(&format!(
        "before the push the server serves {early} of the 2 events"
    ));

    let said = push(&repository, &clone_url, &refs).await?;
    steps.done(&format!("git push {clone_url}"));
    Steps::said(&said);

    let waited = released(&mut relay, &events).await?;
    steps.done(&format!(
        "released: both events are served, {waited} after the push"
    ));

    clone_and_compare(&clone_url, &temporary.join("clone.git"), &refs).await?;
    steps.done(&format!("git clone {clone_url}"));
    Steps::note("compared: every branch, every tag and HEAD are equal, nothing is missing");

    if hunt {
        let hunter = Service::start(&temporary.join("hunter"), &HUNTER).await?;
        let other = Server::parse(&hunter.url)?;
        steps.done(&format!("another service started: {}", other.web));
        let other_url = other.clone_url(&npub, &name)?;
        let places = [
            (other_url.as_str(), other.relay.as_str()),
            (clone_url.as_str(), server.relay.as_str()),
        ];
        let announcement = self::announcement(&keys, &name, &places, root.as_deref())?;
        let mut relay = Relay::connect(&other.relay).await?;
        let what = "announcement published there, naming both servers";
        publish(&mut relay, &announcement, &mut steps, what).await?;
        publish(&mut relay, &state, &mut steps, "state published there").await?;
        let waited = released(&mut relay, &[announcement.id, state.id]).await?;
        steps.done(&format!(
            "found and released: it fetched the data from {} by itself, {waited} after the events",
            server.web
        ));
        clone_and_compare(&other_url, &temporary.join("found.git"), &refs).await?;
        steps.done(&format!("git clone {other_url}"));
        Steps::note("compared: equal again");
        drop(relay);
        hunter.stop().await?;
    }

    drop(relay);
    if let Some(service) = service {
        service.stop().await?;
        steps.done("service stopped");
    }
    println!("{:>9.1} ms  in all", began.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}

/// Clones all of what is at `url` into `copy`, and checks that it is what it shall be.
async fn clone_and_compare(url: &str, copy: &Path, refs: &Refs) -> anyhow::Result<()> {
    let target = copy
        .to_str()
        .context("the temporary directory has no readable name")?;
    let parent = copy.parent().unwrap_or(copy);
    git(parent, &["clone", "--quiet", "--mirror", url, target]).await?;
    let cloned = repository::refs(copy).await?;
    if let Some(difference) = refs.difference(&cloned) {
        bail!("the clone differs: {difference}");
    }
    git(copy, &["fsck", "--connectivity-only", "--no-dangling"]).await?;
    Ok(())
}

/// The user's repository, or a small one; with the identifier it is announced under.
async fn choose(path: Option<PathBuf>, temporary: &Path) -> anyhow::Result<(PathBuf, String)> {
    if let Some(path) = path {
        if let Some(found) = repository::open(&path).await {
            repository::check(&found).await?;
            return Ok((found, identifier(&path)));
        }
        println!(
            "{} is no git repository; a small one is made instead",
            path.display()
        );
    }
    let made = temporary.join("hello");
    repository::make(&made).await?;
    Ok((made, "hello".to_owned()))
}

/// A repository's directory's name, in letters that are the same in every URL.
fn identifier(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name
        .trim_end_matches(".git")
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(100)
        .collect();
    match name.trim_matches('-') {
        "" => "repository".to_owned(),
        name => name.to_owned(),
    }
}

/// A server's two faces.
struct Server {
    web: Url,
    relay: String,
}

impl Server {
    /// Of its address in any of the ways people write it.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.trim().trim_end_matches('/');
        let (scheme, rest) = match text.split_once("://") {
            Some(("http" | "ws", rest)) => ("http", rest),
            Some(("https" | "wss", rest)) => ("https", rest),
            Some((other, _)) => bail!("{other}:// leads to no GRASP server; http(s) and ws(s) do"),
            None => ("https", text),
        };
        let mut web = Url::parse(&format!("{scheme}://{rest}"))
            .with_context(|| format!("{text:?} is no address of a server"))?;
        let local = matches!(web.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if local && !text.contains("://") {
            web = Url::parse(&format!("http://{rest}"))?;
        }
        let s = web.scheme().trim_start_matches("http");
        let relay = format!("ws{s}{}", &web.as_str()[web.scheme().len()..]);
        let relay = relay.trim_end_matches('/').to_owned();
        Ok(Self { web, relay })
    }

    fn clone_url(&self, npub: &str, identifier: &str) -> anyhow::Result<String> {
        Ok(self.web.join(&format!("{npub}/{identifier}.git"))?.into())
    }
}

/// The first commit of the default branch, by which copies of a project are told to be of it.
async fn first_commit(repository: &Path, refs: &Refs) -> Option<String> {
    let head = refs.head.as_deref()?;
    let list = ["rev-list", "--max-parents=0", head];
    let (roots, _) = git(repository, &list).await.ok()?;
    roots.lines().last().map(str::to_owned)
}

/// NIP-34: what there is, and where: for each server the address to clone from and its relay.
fn announcement(
    keys: &Keys,
    name: &str,
    places: &[(&str, &str)],
    root: Option<&str>,
) -> anyhow::Result<Event> {
    let tag = |name, values: Vec<&str>| Tag::parse(std::iter::once(name).chain(values));
    let mut tags = vec![
        Tag::parse(["d", name])?,
        Tag::parse(["name", name])?,
        Tag::parse(["description", "shown by graspd demo"])?,
        tag("clone", places.iter().map(|(url, _)| *url).collect())?,
        tag("relays", places.iter().map(|(_, relay)| *relay).collect())?,
    ];
    if let Some(root) = root {
        tags.push(Tag::parse(["r", root, "euc"])?);
    }
    Ok(EventBuilder::new(ANNOUNCEMENT, "")
        .tags(tags)
        .finalize(keys)?)
}

/// NIP-34: where its refs are.
fn state(keys: &Keys, name: &str, refs: &Refs) -> anyhow::Result<Event> {
    let mut tags = vec![Tag::parse(["d", name])?];
    for (name, oid) in &refs.values {
        tags.push(Tag::parse([name, oid])?);
    }
    if let Some(head) = &refs.head {
        tags.push(Tag::parse(["HEAD", &format!("ref: {head}")])?);
    }
    Ok(EventBuilder::new(STATE, "").tags(tags).finalize(keys)?)
}

async fn publish(
    relay: &mut Relay,
    event: &Event,
    steps: &mut Steps,
    what: &str,
) -> anyhow::Result<()> {
    let verdict = relay.publish(event).await?;
    steps.done(what);
    Steps::said(&format!("OK {} {:?}", verdict.accepted, verdict.message));
    ensure!(
        verdict.accepted,
        "the server refused the event: {}",
        verdict.message
    );
    Ok(())
}

/// Pushes what `refs` says from a repository that stays as it is; gives what the server said.
async fn push(repository: &Path, url: &str, refs: &Refs) -> anyhow::Result<String> {
    let mut args = vec![
        "push",
        "--no-verify",
        "--no-signed",
        "--no-follow-tags",
        "--no-recurse-submodules",
        url,
    ];
    // By value, not by name: what was announced is pushed even if the user goes on committing.
    let specs: Vec<String> = refs
        .values
        .iter()
        .map(|(name, oid)| format!("{oid}:{name}"))
        .collect();
    args.extend(specs.iter().map(String::as_str));
    let (_, told) = git(repository, &args).await?;
    let remote = told
        .lines()
        .filter_map(|line| line.strip_prefix("remote: "));
    let said: Vec<&str> = remote.map(str::trim_end).collect();
    Ok(match said.is_empty() {
        // Git servers that have nothing to add say "ok" to each ref, and git says nothing of it.
        true => format!("ok to {} refs", refs.values.len()),
        false => said.join("\n"),
    })
}

/// Waits until both events are served; says how long that took.
async fn released(relay: &mut Relay, events: &[EventId]) -> anyhow::Result<String> {
    let since = Instant::now();
    let mut looks = 0;
    loop {
        let served = relay.count(events).await?;
        looks += 1;
        if served == events.len() {
            return Ok(match looks {
                1 => "at once".to_owned(),
                _ => format!("{:.1} s", since.elapsed().as_secs_f64()),
            });
        }
        ensure!(
            since.elapsed() < RELEASE,
            "{RELEASE:?} after the push the server serves only {served} of {} events",
            events.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_understood_however_it_is_written() {
        for (text, web, relay) in [
            ("localhost:99", "http://localhost:99/", "ws://localhost:99"),
            (
                "ws://127.0.0.1:99/",
                "http://127.0.0.1:99/",
                "ws://127.0.0.1:99",
            ),
            ("git.example", "https://git.example/", "wss://git.example"),
            (
                "wss://git.example",
                "https://git.example/",
                "wss://git.example",
            ),
        ] {
            let server = Server::parse(text).unwrap();
            assert_eq!((server.web.as_str(), server.relay.as_str()), (web, relay));
        }
        assert!(Server::parse("ssh://git.example").is_err());
    }

    #[test]
    fn an_identifier_is_plain() {
        assert_eq!(identifier(Path::new("/x/my project.git")), "my-project");
        assert_eq!(identifier(Path::new("/")), "repository");
    }
}
