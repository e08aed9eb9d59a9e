//! The main job in one command: announce a repository, publish its state, push it, see it
//! released, clone it back and compare; and, if asked, let another service find it there.
//!
//! It speaks to the server as any client would, so it works with every GRASP server. What it published
//! on a server of somebody's is deleted at the end, however that comes, unless it is to be kept.

mod leftovers;
mod relay;
mod repository;
mod service;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use nostr::{
    Event, EventId, Keys,
    event::{EventBuilder, FinalizeEvent, Kind, Tag},
    nips::nip19::ToBech32,
};
use url::Url;

use crate::text::{complain, plain, print};
use leftovers::Leftovers;
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

/// The command line.
pub fn command() -> Command {
    Command::new("demo")
        .about("Announce, push, release and clone a repository, and say how it went")
        .after_help(
            "On a server of somebody's, what was published is deleted at the end (NIP-09), also after a \
             failure or Ctrl-C, unless --keep is given.",
        )
        .arg(
            Arg::new("path")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("A git repository; it is only read. Without it, a small one is made"),
        )
        .arg(
            Arg::new("server")
                .long("server")
                .value_name("URL")
                .value_hint(ValueHint::Url)
                .help("A GRASP server, instead of a temporary one started for this"),
        )
        .arg(
            Arg::new("keep")
                .long("keep")
                .action(ArgAction::SetTrue)
                .requires("server")
                .help("Leave the repository on the server, and print the key that it belongs to"),
        )
        .arg(
            Arg::new("hunt")
                .long("hunt")
                .action(ArgAction::SetTrue)
                .help("Besides, start another service, announce it there, and let it find the data"),
        )
}

/// What is to be shown.
pub struct Demo {
    /// A repository of the user's.
    path: Option<PathBuf>,
    /// A server, instead of a temporary one.
    server: Option<String>,
    /// What was published stays there.
    keep: bool,
    /// Besides, let another service find the repository there.
    hunt: bool,
}

impl From<&ArgMatches> for Demo {
    fn from(given: &ArgMatches) -> Self {
        Self {
            path: given.get_one::<PathBuf>("path").cloned(),
            server: given.get_one::<String>("server").cloned(),
            keep: given.get_flag("keep"),
            hunt: given.get_flag("hunt"),
        }
    }
}

/// Shows it.
pub async fn run(demo: Demo) -> anyhow::Result<()> {
    let temporary = tempfile::Builder::new().prefix("graspd-demo-").tempdir()?;
    let path = temporary.path().to_owned();
    let stop = grasp_proto::process::stop_on_signal(move || {
        let _ = std::fs::remove_dir_all(path);
    })?;
    let leftovers = Leftovers::new(demo.server.is_some() && !demo.keep);
    let outcome = tokio::select! {
        outcome = demonstrate(demo, temporary.path(), &leftovers) => outcome,
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    if outcome.is_err() && !is_closed(&outcome) {
        say_last_words(temporary.path());
    }
    let deleted = leftovers.delete().await;
    match (&outcome, &deleted) {
        // Both are told; what went wrong first is what the command fails of.
        (Err(_), Err(error)) => complain(&format!("graspd: {error:#}")),
        (_, Ok(Some(words))) if !is_closed(&outcome) => print(words.as_bytes())?,
        _ => {}
    }
    outcome.and(deleted.map(|_| ()))
}

/// Whether nobody reads any more what is told.
fn is_closed(outcome: &anyhow::Result<()>) -> bool {
    let closed = |error: &anyhow::Error| error.is::<crate::text::PipeClosed>();
    outcome.as_ref().err().is_some_and(closed)
}

/// What the services that were started wrote into their logs last.
fn say_last_words(temporary: &Path) {
    for name in ["service", "hunter"] {
        let log = std::fs::read_to_string(temporary.join(name).join("log"));
        let log = log.unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        if lines.is_empty() {
            continue;
        }
        complain(&format!("the {name}'s last words:"));
        for line in &lines[lines.len().saturating_sub(20)..] {
            complain(&format!("  {line}"));
        }
    }
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

    fn done(&mut self, what: &str) -> anyhow::Result<()> {
        let now = Instant::now();
        let millis = (now - self.last).as_secs_f64() * 1000.0;
        self.last = now;
        print(format!("{millis:>9.1} ms  {what}\n").as_bytes())
    }

    fn note(what: &str) -> anyhow::Result<()> {
        print(format!("              {what}\n").as_bytes())
    }

    fn said(words: &str) -> anyhow::Result<()> {
        let lines = words.lines().map(plain);
        let lines = lines.map(|line| format!("              server: {line}\n"));
        print(lines.collect::<String>().as_bytes())
    }
}

async fn demonstrate(demo: Demo, temporary: &Path, leftovers: &Leftovers) -> anyhow::Result<()> {
    let Demo {
        path,
        server,
        keep,
        hunt,
    } = demo;
    let mut steps = Steps::begin();
    let began = steps.began;

    let (repository, name) = choose(path, temporary).await?;
    let refs = repository::refs(&repository).await?.with_born_head();
    ensure!(
        !refs.values.is_empty(),
        "the repository has no branch and no tag yet"
    );
    steps.done(&format!("repository {name}: {}", refs.summary()))?;

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
    ))?;

    let keys = Keys::generate();
    leftovers.may_come(&server.relay, &keys);
    let npub = keys.public_key().to_bech32()?;
    let clone_url = server.clone_url(&npub, &name)?;
    steps.done(&format!("key made: {npub}"))?;
    if keep {
        // Now: whatever comes, it is the only way to change or delete what is there.
        let secret = keys.secret_key().to_bech32()?;
        Steps::note(&format!("its secret, which is kept nowhere else: {secret}"))?;
    }

    let root = first_commit(&repository, &refs).await;
    let places = [(clone_url.as_str(), server.relay.as_str())];
    let announcement = announcement(&keys, &name, &places, root.as_deref())?;
    leftovers.add(&announcement);
    publish(
        &mut relay,
        &announcement,
        &mut steps,
        "announcement published (30617)",
    )
    .await?;
    let state = state(&keys, &name, &refs)?;
    leftovers.add(&state);
    publish(&mut relay, &state, &mut steps, "state published (30618)").await?;
    let events = [announcement.id, state.id];
    let early = relay.count(&events).await?;
    steps.done(&format!(
        "before the push the server serves {early} of the 2 events"
    ))?;

    let said = push(&repository, &clone_url, &refs).await?;
    steps.done(&format!("git push {clone_url}"))?;
    Steps::said(&said)?;

    let waited = released(&mut relay, &events).await?;
    steps.done(&format!(
        "released: both events are served, {waited} after the push"
    ))?;

    clone_and_compare(&clone_url, &temporary.join("clone.git"), &refs).await?;
    steps.done(&format!("git clone {clone_url}"))?;
    Steps::note("compared: every branch, every tag and HEAD are equal, nothing is missing")?;

    if hunt {
        let hunter = Service::start(&temporary.join("hunter"), &HUNTER).await?;
        let other = Server::parse(&hunter.url)?;
        steps.done(&format!("another service started: {}", other.web))?;
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
        ))?;
        clone_and_compare(&other_url, &temporary.join("found.git"), &refs).await?;
        steps.done(&format!("git clone {other_url}"))?;
        Steps::note("compared: equal again")?;
        drop(relay);
        hunter.stop().await?;
    }

    drop(relay);
    if let Some(service) = service {
        service.stop().await?;
        steps.done("service stopped")?;
    }
    if keep {
        Steps::note(&format!("kept: {clone_url}"))?;
    }
    let millis = began.elapsed().as_secs_f64() * 1000.0;
    print(format!("{millis:>9.1} ms  in all\n").as_bytes())
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
        let found = repository::open(&path).await;
        let found = found.with_context(|| format!("{} is no git repository", path.display()))?;
        repository::check(&found).await?;
        return Ok((found, identifier(&path)));
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
    steps.done(what)?;
    Steps::said(&format!("OK {} {:?}", verdict.accepted, verdict.message))?;
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
