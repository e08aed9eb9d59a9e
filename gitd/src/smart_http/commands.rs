//! What a push begins with: commands, capabilities, options – all of it bounded.

use std::collections::HashSet;

use grasp_proto::{
    contract::Command,
    words::{Oid, RefName},
};
use tokio::io::AsyncBufRead;

use super::{
    pace::Share,
    pkt_line::{self, Packet},
};

/// Commands of one push at most.
const MOST_COMMANDS: usize = 50_000;

/// Bytes of one push's commands and options at most.
const MOST_COMMAND_BYTES: usize = 16 * 1024 * 1024;

/// One line of a push as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The ref's name, well-formed or not.
    pub name: String,
    /// What is to be done, or why it cannot be.
    pub command: Result<Command, String>,
}

/// How a pusher is told what became of each line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Status {
    /// Not at all.
    #[default]
    Untold,
    /// `report-status`: done, or why not.
    Plain,
    /// `report-status-v2`: with what was done where it is not what was asked for.
    WithOptions,
}

/// What a push begins with.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Its lines, in their order.
    pub lines: Vec<Line>,
    /// How it would be told what became of each line.
    pub status: Status,
    /// Reads `side-band-64k`.
    pub sideband: bool,
    /// Wants no progress.
    pub quiet: bool,
    /// All or nothing.
    pub atomic: bool,
}

/// The next packet of a push's head, of which `bytes` have been read.
async fn next(
    body: &mut (impl AsyncBufRead + Unpin),
    bytes: &mut usize,
    share: &mut Share,
) -> Result<Option<Packet>, String> {
    let packet = pkt_line::read(body).await.map_err(|e| e.to_string())?;
    if let Some(Packet::Line(line)) = &packet {
        *bytes += line.len();
    }
    if *bytes > MOST_COMMAND_BYTES {
        return Err("the push has too many bytes of commands".to_owned());
    }
    match share.grow_to(*bytes) {
        true => Ok(packet),
        false => Err("too many large pushes at once, try again in a moment".to_owned()),
    }
}

impl Request {
    /// Reads commands and push options, up to where the pack begins.
    pub async fn read(
        body: &mut (impl AsyncBufRead + Unpin),
        share: &mut Share,
    ) -> Result<Self, String> {
        let mut request = Self::default();
        let (mut bytes, mut first, mut options) = (0, true, false);
        loop {
            let line = match next(body, &mut bytes, share).await? {
                Some(Packet::Line(line)) => line,
                Some(Packet::Flush) => break,
                // An empty body is nothing to be done, like git's probe, which is one flush.
                None if first => return Ok(request),
                _ => return Err("the push ends inside its commands".to_owned()),
            };
            let line = Packet::text(&line);
            if line.starts_with(b"shallow ") {
                continue;
            }
            if line.starts_with(b"push-cert") {
                return Err("signed pushes are not known here; push without --signed".to_owned());
            }
            let (line, capabilities) = match line.iter().position(|byte| *byte == 0) {
                Some(at) => (&line[..at], &line[at + 1..]),
                None => (line, &b""[..]),
            };
            if first {
                options = request.capabilities(&String::from_utf8_lossy(capabilities))?;
                first = false;
            }
            if request.lines.len() == MOST_COMMANDS {
                return Err(format!("a push has at most {MOST_COMMANDS} commands"));
            }
            request.lines.push(Line::parse(line)?);
        }
        // The options themselves mean nothing here; what they are for is decided by events.
        if options {
            loop {
                match next(body, &mut bytes, share).await? {
                    Some(Packet::Line(_)) => {}
                    Some(Packet::Flush) => break,
                    _ => return Err("the push ends inside its options".to_owned()),
                }
            }
        }
        request.refuse_twins();
        Ok(request)
    }

    /// Notes what the client can do; says whether push options follow.
    fn capabilities(&mut self, capabilities: &str) -> Result<bool, String> {
        let mut options = false;
        for capability in capabilities.split_ascii_whitespace() {
            match capability {
                "report-status" if self.status == Status::Untold => self.status = Status::Plain,
                "report-status" => {}
                "report-status-v2" => self.status = Status::WithOptions,
                "side-band-64k" => self.sideband = true,
                "quiet" => self.quiet = true,
                "atomic" => self.atomic = true,
                "push-options" => options = true,
                other => match other.strip_prefix("object-format=") {
                    None | Some("sha1") => {}
                    Some(_) => return Err("only object-format=sha1 is known here".to_owned()),
                },
            }
        }
        Ok(options)
    }

    /// Of several commands for one ref, none can be done.
    fn refuse_twins(&mut self) {
        let mut seen = HashSet::new();
        let twins: HashSet<String> = self
            .lines
            .iter()
            .filter(|line| !seen.insert(line.name.clone()))
            .map(|line| line.name.clone())
            .collect();
        for line in &mut self.lines {
            if twins.contains(&line.name) {
                line.command = Err("this ref is named more than once".to_owned());
            }
        }
    }
}

impl Line {
    /// Reads one line, without its newline and capabilities.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let bad = || "a command cannot be read".to_owned();
        let text = std::str::from_utf8(line)
            .map_err(|_| "a ref name is not UTF-8, which cannot be announced".to_owned())?;
        let mut parts = text.splitn(3, ' ');
        let mut next = || parts.next().ok_or_else(bad);
        let (old, new, name) = (next()?, next()?, next()?);
        let old = Oid::from_hex(old).map_err(|_| bad())?;
        let new = Oid::from_hex(new).map_err(|_| bad())?;
        let command = RefName::parse(name)
            .map(|name| Command { old, new, name })
            .map_err(|error| error.to_string());
        Ok(Self {
            name: name.to_owned(),
            command,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::smart_http::pace::Budget;

    const OLD: &str = "0000000000000000000000000000000000000000";
    const NEW: &str = "1111111111111111111111111111111111111111";

    async fn read(lines: &[&str]) -> Result<Request, String> {
        let mut body = BytesMut::new();
        for line in lines {
            match *line {
                "" => body.extend_from_slice(pkt_line::FLUSH),
                line => pkt_line::put(&mut body, line.as_bytes()),
            }
        }
        Request::read(&mut &body[..], &mut Budget::new(0).share()).await
    }

    #[tokio::test]
    async fn commands_are_read() {
        let first = format!("{OLD} {NEW} refs/heads/a\0 report-status side-band-64k push-options");
        let second = format!("{OLD} {NEW} refs/heads/b c");
        let shallow = format!("shallow {NEW}");
        let request = read(&[&shallow, &first, &second, "", "option", ""]).await;
        let request = request.unwrap();
        assert_eq!(request.status, Status::Plain);
        assert!(request.sideband && !request.atomic);
        assert!(request.lines[0].command.is_ok());
        assert_eq!(request.lines[1].name, "refs/heads/b c");
        assert!(request.lines[1].command.is_err());
    }

    #[tokio::test]
    async fn what_is_no_push_is_refused() {
        assert!(read(&[""]).await.unwrap().lines.is_empty());
        assert!(read(&[]).await.unwrap().lines.is_empty());
        assert!(read(&["push-cert\0x", ""]).await.is_err());
        assert!(read(&["x y", ""]).await.is_err());
        let sha256 = format!("{OLD} {NEW} refs/heads/a\0object-format=sha256");
        assert!(read(&[&sha256, ""]).await.is_err());
        let open = format!("{OLD} {NEW} refs/heads/a\0");
        assert!(read(&[&open]).await.is_err());
        let twice = read(&[&open, &open, ""]).await.unwrap();
        assert!(twice.lines.iter().all(|line| line.command.is_err()));
        // There is no room for more than the small ones.
        let many = vec![open.as_str(); 1000];
        assert!(read(&many).await.unwrap_err().contains("at once"));
    }
}
