//! `graspd import`: the events of another server, or of a file, handed to the one that runs.
//!
//! Everything is gathered first, in unnamed files, by what rests on what ([`Heap`]); then it goes to
//! the relay's Admin service in that order, where each event is judged as if a user had sent it. What
//! is rejected for want of something that may still come is handed over again, as long as that
//! brings anything. Memory does not grow with the number of events; repeated, nothing happens twice.
//! Each event that is refused is named with its place in the source, its id and the reason, and makes
//! the command fail.

mod source;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Seek, Write},
};

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use futures::StreamExt;
use grasp_proto::{
    contract::{
        event_size::MAX_EVENT_BYTES,
        relay::{ImportRequest, ImportResponse},
    },
    process::settings::Settings,
};
use nostr::Event;
use serde_json::json;
use tokio::sync::mpsc;
use tonic::Request;

use crate::{
    service::Service,
    text::{complain, plain},
};

/// The longest line that is read, in bytes: the largest event, with spaces in it.
const LONGEST: usize = MAX_EVENT_BYTES + (1 << 20);
/// Bytes that all events together may take on the disk.
const MOST_BYTES: u64 = 64 << 30;
/// Rounds of what was rejected for want of something: one for each link of a chain of replies whose
/// last comes first.
const ROUNDS: usize = 32;
/// Reasons of rejection that are told apart.
const REASONS: usize = 64;
/// Refused events that the JSON report names.
const NAMED: usize = 10_000;
/// How long an import may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);
/// Events that wait for their answer.
const AHEAD: usize = 64;

/// What is said of an event that waits for git data.
const WAITS: &str = "purgatory:";
/// What is said of one that waited before.
const WAITS_ALREADY: &str = "duplicate: in purgatory";

/// The command line.
pub fn command() -> Command {
    Command::new("import")
        .about("Hand the events of a file or of another server to the service that runs here")
        .after_help(
            "Fails when any event was refused; each is named on standard error, or with --json in the report. \
             What is here already is not refused, and an import can be repeated.",
        )
        .arg(
            Arg::new("from")
                .value_name("FROM")
                .required(true)
                .value_hint(ValueHint::AnyPath)
                .help("A file with one event to a line, `-` for standard input, or ws(s)://relay"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Report as JSON"),
        )
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Read everything, check ids and signatures, and hand over nothing"),
        )
}

/// What was asked for.
#[derive(Debug)]
pub struct Import {
    from: String,
    as_json: bool,
    dry_run: bool,
}

impl From<&ArgMatches> for Import {
    fn from(given: &ArgMatches) -> Self {
        Self {
            from: given.get_one::<String>("from").cloned().unwrap_or_default(),
            as_json: given.get_flag("json"),
            dry_run: given.get_flag("dry-run"),
        }
    }
}

/// One event that was refused.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    /// Its line in the file, or its place in what the relay gave; counted from 1.
    line: u64,
    /// As it was written; empty where there is none.
    id: String,
    reason: String,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    read: u64,
    accepted: u64,
    waiting: u64,
    duplicate: u64,
    rejected: u64,
    /// By reason.
    reasons: BTreeMap<String, u64>,
    /// The first of them.
    refused: Vec<Refused>,
    /// They are told in the report alone.
    is_quiet: bool,
}

impl Report {
    fn add(&mut self, line: u64, event: &str, answer: &ImportResponse) {
        let message = answer.message.as_str();
        match answer.accepted {
            true if message.starts_with(WAITS) || message == WAITS_ALREADY => self.waiting += 1,
            true if message.starts_with("duplicate:") => self.duplicate += 1,
            true => self.accepted += 1,
            false => self.reject(line, event, message),
        }
    }

    /// Names an event that was refused, whose text may be anything.
    fn reject(&mut self, line: u64, event: &str, reason: &str) {
        self.rejected += 1;
        let is_known = self.reasons.contains_key(reason) || self.reasons.len() < REASONS;
        let counted = if is_known { reason } else { "other reasons" };
        *self.reasons.entry(plain(counted)).or_default() += 1;
        let (id, reason) = (id_of(event), plain(reason));
        if !self.is_quiet {
            complain(&format!(
                "line {line}: {}: {reason}",
                match id.as_str() {
                    "" => "no id",
                    id => id,
                }
            ));
        }
        if self.refused.len() < NAMED {
            self.refused.push(Refused { line, id, reason });
        }
    }

    fn to_json(&self, dry_run: bool) -> String {
        let refused = self.refused.iter();
        let refused =
            refused.map(|one| json!({"line": one.line, "id": one.id, "reason": one.reason}));
        let report = json!({
            "dry_run": dry_run,
            "read": self.read,
            "accepted": self.accepted,
            "waiting": self.waiting,
            "duplicate": self.duplicate,
            "rejected": self.reasons,
            "refused": refused.collect::<Vec<_>>(),
            "more_refused": self.rejected - self.refused.len() as u64,
        });
        format!("{report:#}\n")
    }

    fn to_text(&self, dry_run: bool) -> String {
        let rejected = self.rejected;
        let mut lines = vec![format!("{} events read", self.read)];
        match dry_run {
            true => lines.push(format!(
                "  {} are well-formed and signed; nothing was handed over",
                self.read - rejected
            )),
            false => {
                lines.push(format!("  {} accepted and served", self.accepted));
                lines.push(format!("  {} accepted, waiting for git data", self.waiting));
                lines.push(format!("  {} were here", self.duplicate));
            }
        }
        lines.push(format!("  {rejected} rejected"));
        for (reason, count) in &self.reasons {
            lines.push(format!("    {count} {reason}"));
        }
        lines.join("\n") + "\n"
    }
}

/// The id that an event claims to have; empty where it claims none.
fn id_of(event: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Named {
        id: String,
    }
    let named = serde_json::from_str::<Named>(event);
    let id = named.map(|named| named.id).unwrap_or_default();
    plain(&id.chars().take(64).collect::<String>())
}

/// Events in an unnamed file, each behind its place in the source.
struct Lines {
    file: BufWriter<File>,
    count: u64,
}

impl Lines {
    fn new() -> io::Result<Self> {
        Ok(Self {
            file: BufWriter::new(tempfile::tempfile()?),
            count: 0,
        })
    }

    fn push(&mut self, line: u64, event: &str) -> io::Result<()> {
        self.count += 1;
        writeln!(self.file, "{line} {event}")
    }

    /// From the beginning.
    fn read(self) -> io::Result<LinesRead> {
        let file = self.file.into_inner();
        let mut file = file.map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(LinesRead(BufReader::new(file)))
    }
}

/// [`Lines`], read.
struct LinesRead(BufReader<File>);

impl LinesRead {
    /// The next event and its place; `None`: that was all.
    fn next(&mut self) -> anyhow::Result<Option<(u64, String)>> {
        let mut text = String::new();
        if self.0.read_line(&mut text)? == 0 {
            return Ok(None);
        }
        let (line, event) = text.trim_end().split_once(' ').context("a broken file")?;
        Ok(Some((line.parse()?, event.to_owned())))
    }
}

/// Events, by what rests on what.
pub struct Heap {
    parts: [Lines; PARTS],
    bytes: u64,
    dry_run: bool,
    report: Report,
}

/// The parts of a heap: deletions, which keep what they name from coming; announcements; states; what
/// begins a conversation; and everything else.
const PARTS: usize = 5;

/// Which part an event belongs to.
fn part(kind: u16) -> usize {
    match kind {
        5 => 0,
        30617 => 1,
        30618 => 2,
        1617 | 1618 | 1621 | 10317 => 3,
        _ => 4,
    }
}

impl Heap {
    fn new(dry_run: bool, is_quiet: bool) -> io::Result<Self> {
        let new = |_| Lines::new();
        let parts: Vec<Lines> = (0..PARTS).map(new).collect::<io::Result<_>>()?;
        let parts = parts.try_into().map_err(|_| io::Error::other("parts"))?;
        Ok(Self {
            parts,
            bytes: 0,
            dry_run,
            report: Report {
                is_quiet,
                ..Report::default()
            },
        })
    }

    /// Takes one event, as JSON, from this place of the source.
    fn add(&mut self, line: u64, text: &str) -> anyhow::Result<()> {
        self.report.read += 1;
        let Ok(event) = Event::from_json(text) else {
            self.report.reject(line, text, "invalid: not an event");
            return Ok(());
        };
        if self.dry_run {
            if !event.verify_id() || !event.verify_signature() {
                let reason = "invalid: the id or the signature is wrong";
                self.report.reject(line, text, reason);
            }
            return Ok(());
        }
        let json = event.as_json();
        self.bytes += json.len() as u64;
        if self.bytes > MOST_BYTES {
            bail!("more than {MOST_BYTES} bytes of events; import them in parts");
        }
        let kind = event.kind.as_u16();
        Ok(self.parts[part(kind)].push(line, &json)?)
    }

    /// Notes something that is no event.
    fn refuse(&mut self, line: u64, reason: &str) {
        self.report.read += 1;
        self.report.reject(line, "", reason);
    }
}

/// Imports, and prints what came of it.
pub async fn run(settings: &Settings, import: Import) -> anyhow::Result<()> {
    let service = match import.dry_run {
        true => None,
        // Before anything is read: nobody waits for hours to be told that nothing runs.
        false => Some(Service::find(settings)?),
    };
    let heap = Heap::new(import.dry_run, import.as_json);
    let mut heap = heap.context("no room for temporary files")?;
    match import.from.as_str() {
        "-" => source::lines(io::stdin().lock(), &mut heap)?,
        url if url.starts_with("ws://") || url.starts_with("wss://") => {
            source::relay(url, &mut heap).await?;
        }
        path => {
            let file = File::open(path).with_context(|| format!("cannot read {path}"))?;
            source::lines(BufReader::new(file), &mut heap)?;
        }
    }
    let Heap {
        parts, mut report, ..
    } = heap;
    let mut outcome = Ok(());
    if let Some(service) = &service {
        outcome = hand_over(service, parts, &mut report).await;
    }
    let text = match import.as_json {
        true => report.to_json(import.dry_run),
        false => report.to_text(import.dry_run),
    };
    let printed = crate::print(text.as_bytes());
    outcome.context("not everything was handed over; the command can be repeated")?;
    match report.rejected {
        0 => printed,
        1 => bail!("1 event was refused"),
        refused => bail!("{refused} events were refused"),
    }
}

async fn hand_over(
    service: &Service,
    parts: [Lines; PARTS],
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut again, mut waits) = (Lines::new()?, Lines::new()?);
    for part in parts {
        one_round(service, part, &mut again, &mut waits, report).await?;
    }
    for _ in 0..ROUNDS {
        let tried = again.count;
        let mut next = Lines::new()?;
        one_round(service, again, &mut next, &mut waits, report).await?;
        again = next;
        if again.count == tried {
            break;
        }
    }
    // Now whatever is said is the last word: of what waited, too, for what came after it.
    exchange(service, again, |line, event, answer| {
        report.add(line, event, &answer);
        Ok(())
    })
    .await?;
    exchange(service, waits, |line, event, answer| {
        match (answer.accepted, answer.message.as_str()) {
            (true, WAITS_ALREADY) => report.waiting += 1,
            (true, _) => report.accepted += 1,
            (false, reason) => report.reject(line, event, reason),
        }
        Ok(())
    })
    .await
}

/// Hands over all events of `lines`; those that may be accepted later go to `again`, and to `waits`
/// those that wait.
async fn one_round(
    service: &Service,
    lines: Lines,
    again: &mut Lines,
    waits: &mut Lines,
    report: &mut Report,
) -> anyhow::Result<()> {
    exchange(service, lines, |line, event, answer| {
        if answer.may_come {
            again.push(line, event)?;
        } else if answer.accepted && answer.message.starts_with(WAITS) {
            waits.push(line, event)?;
        } else {
            report.add(line, event, &answer);
        }
        Ok(())
    })
    .await
}

/// Sends every line and hears every answer, no more than [`AHEAD`] of them on their way.
async fn exchange(
    service: &Service,
    lines: Lines,
    mut heard: impl FnMut(u64, &str, ImportResponse) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut lines = lines.read()?;
    let (sender, receiver) = mpsc::channel::<ImportRequest>(AHEAD);
    let requests = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|request| (request, receiver))
    });
    let mut request = Request::new(requests);
    request.set_timeout(PATIENCE);
    let mut asked = std::collections::VecDeque::new();
    let failed = |status| service.failed(&status);
    let answers = service.admin().import(request).await;
    let mut answers = answers.map_err(failed)?.into_inner();
    let mut sender = Some(sender);
    loop {
        while asked.len() < AHEAD
            && let Some(to) = &sender
        {
            let Some((line, event)) = lines.next()? else {
                sender = None;
                break;
            };
            let request = ImportRequest {
                event: event.clone(),
            };
            // Who has stopped listening says why below.
            if to.send(request).await.is_err() {
                sender = None;
            }
            asked.push_back((line, event));
        }
        match answers.next().await {
            Some(answer) => {
                let answer = answer.map_err(failed)?;
                let (line, event) = asked
                    .pop_front()
                    .context("an answer that nobody asked for")?;
                heard(line, &event, answer)?;
            }
            None if asked.is_empty() => return Ok(()),
            None => bail!("the relay stopped answering"),
        }
    }
}

/// Reads one line of bounded length; `None`: the end; an empty one: it was too long, or empty.
pub fn bounded_line(input: &mut impl BufRead) -> io::Result<Option<Result<String, ()>>> {
    let mut line = Vec::new();
    let mut too_long = false;
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            let ended = line.is_empty() && !too_long;
            return Ok((!ended).then(|| text_of(line, too_long)));
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        too_long |= line.len() + piece.len() > LONGEST;
        if !too_long {
            line.extend_from_slice(piece);
        }
        let read = end.map_or(bytes.len(), |end| end + 1);
        input.consume(read);
        if end.is_some() {
            return Ok(Some(text_of(line, too_long)));
        }
    }
}

fn text_of(line: Vec<u8>, too_long: bool) -> Result<String, ()> {
    match too_long {
        true => Err(()),
        false => String::from_utf8(line).map_err(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rests_on_something_comes_after_it() {
        let order = [5, 30617, 30618, 1621, 1111];
        assert!(order.map(part).is_sorted());
        assert_eq!(part(1618), part(1617));
    }

    #[test]
    fn answers_are_counted_by_what_they_say() {
        let answer = |accepted, message: &str| ImportResponse {
            accepted,
            message: message.to_owned(),
            may_come: false,
        };
        let event = json!({"id": "ab\u{1b}c", "kind": 1}).to_string();
        let mut report = Report {
            is_quiet: true,
            ..Report::default()
        };
        for (accepted, message) in [
            (true, ""),
            (true, "purgatory: won't be served until git data arrives"),
            (true, "duplicate: already have this event"),
            (false, "blocked: x"),
            (false, "blocked: x"),
        ] {
            report.add(7, &event, &answer(accepted, message));
        }
        let counts = (report.accepted, report.waiting, report.duplicate);
        assert_eq!(counts, (1, 1, 1));
        assert_eq!(report.reasons["blocked: x"], 2);
        let refused = &report.refused[0];
        assert_eq!(
            (refused.line, refused.id.as_str(), refused.reason.as_str()),
            (7, "ab\u{fffd}c", "blocked: x")
        );
        for number in 0..200 {
            report.reject(8, "no event", &number.to_string());
        }
        assert!(report.reasons.len() <= REASONS + 1);
        assert_eq!(report.reasons.values().sum::<u64>(), 202);
        assert_eq!((report.rejected, report.refused[2].id.as_str()), (202, ""));
    }

    #[test]
    fn lines_are_read_to_their_end_however_long() {
        let mut long = vec![b'x'; LONGEST + 1];
        long.extend_from_slice(b"\nshort\n\xff");
        let mut input = BufReader::with_capacity(1000, long.as_slice());
        assert_eq!(bounded_line(&mut input).unwrap(), Some(Err(())));
        let short = bounded_line(&mut input).unwrap();
        assert_eq!(short, Some(Ok("short".to_owned())));
        assert_eq!(bounded_line(&mut input).unwrap(), Some(Err(())));
        assert_eq!(bounded_line(&mut input).unwrap(), None);
    }
}
