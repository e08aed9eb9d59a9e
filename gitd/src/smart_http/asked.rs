//! What a fetch request names, and the request without what git must not hear of.
//!
//! Lines are read as git reads them, or as asking for more: what is behind an id is not looked at, where
//! in the request they stand neither.

use bytes::BytesMut;
use grasp_proto::words::Oid;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};

use super::{
    Version, object_filter,
    pkt_line::{self, BadPacket, FLUSH, Packet},
};
use crate::repository::reachable::Sought;

/// What a request asks for.
#[derive(Debug)]
pub struct Asked {
    /// What it would have.
    pub wants: Sought,
    /// It says where the client's history ends, and would have it longer. Git sends what is behind
    /// such ends, and how far is a number that it reads in ways of its own: any will do.
    pub deepens: bool,
    /// How the answer to it begins, whatever it is, where that can be known: a pack follows, in the side
    /// band. What comes behind may be told to go on for a while.
    pub beginning: Option<&'static [u8]>,
}

/// In v2, where nothing is negotiated and no history is cut.
const PACK_FOLLOWS: &[u8] = b"000dpackfile\n";
/// In the older versions: the client has nothing that we know of.
const NOTHING_COMMON: &[u8] = b"0008NAK\n";

/// What is seen of a request as far as the beginning of its answer goes.
#[allow(clippy::struct_excessive_bools)] // each is seen by itself
#[derive(Debug, Default)]
struct Simple {
    is_v2: bool,
    is_banded: bool,
    is_done: bool,
    /// There are lines that change how the answer begins.
    is_other: bool,
}

impl Simple {
    fn see(&mut self, line: &[u8]) {
        // What is said of the asker, or of the pack and not of what comes before it.
        const HARMLESS: [&[u8]; 8] = [
            b"agent=",
            b"session-id=",
            b"object-format=sha1",
            b"thin-pack",
            b"no-progress",
            b"include-tag",
            b"ofs-delta",
            b"filter ",
        ];
        if line == b"command=fetch" {
            self.is_v2 = true;
        } else if line == b"done" {
            self.is_done = true;
        } else if named(line, b"want ").is_some() {
            let mut words = line.split(|byte| *byte == b' ');
            self.is_banded |= words.any(|word| word == b"side-band-64k");
        } else {
            self.is_other |= !HARMLESS.iter().any(|start| line.starts_with(start));
        }
    }

    fn beginning(&self) -> Option<&'static [u8]> {
        if self.is_other || !self.is_done {
            return None;
        }
        match self.is_v2 {
            true => Some(PACK_FOLLOWS),
            false => Some(NOTHING_COMMON).filter(|_| self.is_banded),
        }
    }
}

fn named(line: &[u8], word: &[u8]) -> Option<Oid> {
    let oid = line.strip_prefix(word)?.get(..40)?;
    Oid::from_hex(std::str::from_utf8(oid).ok()?).ok()
}

const END: &[u8] = b"shallow ";
const HAVE: &[u8] = b"have ";

/// What the client says it has, all of it or up to there.
fn claimed(line: &[u8]) -> Option<Oid> {
    named(line, END).or_else(|| named(line, HAVE))
}

/// What stands alone on a line.
const ALONE: [&[u8]; 8] = [
    b"command=fetch",
    b"done",
    b"thin-pack",
    b"no-progress",
    b"include-tag",
    b"ofs-delta",
    b"deepen-relative",
    b"wait-for-done",
];
/// What is followed by an object, and perhaps more.
const OF_OBJECTS: [&[u8]; 3] = [b"want ", HAVE, END];
/// What is followed by a number.
const OF_NUMBERS: [&[u8]; 2] = [b"deepen ", b"deepen-since "];
/// What is followed by what we do not read; the last is checked by itself.
const OF_TEXT: [&[u8]; 5] = [
    b"agent=",
    b"session-id=",
    b"server-option=",
    NOT,
    b"filter ",
];
/// What is followed by a ref.
const NOT: &[u8] = b"deepen-not ";
/// So many of these one request has at most: git walks from each.
const MOST_NOT: usize = 100;

/// Whether git is to see a line: what was not offered it may know all the same.
fn is_known(line: &[u8]) -> bool {
    let behind = |words: &[&'static [u8]]| words.iter().find_map(|word| line.strip_prefix(*word));
    ALONE.contains(&line)
        || line == b"object-format=sha1"
        || OF_OBJECTS.iter().any(|word| named(line, word).is_some())
        || behind(&OF_NUMBERS).is_some_and(|number| {
            (1..=10).contains(&number.len()) && number.iter().all(u8::is_ascii_digit)
        })
        || behind(&OF_TEXT).is_some()
}

/// Lines shorter than this name no object.
const SHORT: usize = 40;
/// So many of them, and of other packets, one request has at most. A few kilobytes that unpack to millions of
/// them would cost their sender nothing and us a processor.
const MOST_SHORT: usize = 10_000;

/// Reads a request. An error is for the git user.
pub async fn asked(request: impl AsyncRead + Unpin) -> Result<Asked, String> {
    let mut request = BufReader::new(request);
    let mut wants = Vec::new();
    let (mut ends, mut deepens) = (false, false);
    let (mut short, mut is_filtered, mut excluded) = (0, false, 0);
    let mut simple = Simple::default();
    while let Some(packet) = next(&mut request).await? {
        let line = match packet {
            Packet::Line(line) => line,
            _ => Vec::new(),
        };
        let text = Packet::text(&line);
        if !text.is_empty() {
            simple.see(text);
        }
        short += usize::from(line.len() < SHORT);
        if short > MOST_SHORT {
            return Err("the request has too many lines that name nothing".to_owned());
        }
        if text.starts_with(b"command=") && !is_known(text) {
            return Err("this command is not known here".to_owned());
        }
        if !text.is_empty() && !is_known(text) {
            let shown: String = String::from_utf8_lossy(text).chars().take(100).collect();
            return Err(format!("unexpected line: '{shown}'"));
        }
        excluded += usize::from(text.starts_with(NOT));
        if excluded > MOST_NOT {
            return Err(format!("a request excludes {MOST_NOT} refs at most"));
        }
        if let Some(filter) = text.strip_prefix(b"filter ") {
            if std::mem::replace(&mut is_filtered, true) {
                return Err("a request has one filter at most".to_owned());
            }
            object_filter::check(filter).map_err(|unknown| unknown.to_string())?;
        }
        wants.extend(named(&line, b"want "));
        ends |= line.starts_with(END);
        deepens |= line.starts_with(b"deepen");
    }
    Ok(Asked {
        wants: Sought::new(wants),
        deepens: deepens && ends,
        beginning: simple.beginning(),
    })
}

/// Reads what the client says it has. An error is for the git user.
pub async fn claims(request: impl AsyncRead + Unpin) -> Result<Sought, String> {
    let mut request = BufReader::new(request);
    let mut claims = Vec::new();
    while let Some(packet) = next(&mut request).await? {
        if let Packet::Line(line) = packet {
            claims.extend(claimed(&line));
        }
    }
    Ok(Sought::new(claims))
}

async fn next(request: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Packet>, String> {
    let packet = pkt_line::read(request).await;
    packet.map_err(|bad| bad.to_string())
}

/// Hands a request on, but for claims that were not found. Without the end of a history, what leans on
/// it would be taken for whole: both go. In v2 an id that nothing has stands for what a client has:
/// without any such line it would get another answer than it waits for.
pub async fn hand_on(
    request: impl AsyncRead + Unpin,
    version: Version,
    claims: &Sought,
    git: impl AsyncWrite + Unpin,
) -> Result<(), BadPacket> {
    let (mut request, mut git) = (BufReader::new(request), BufWriter::new(git));
    let mut out = BytesMut::new();
    while let Some(packet) = pkt_line::read(&mut request).await? {
        match packet {
            Packet::Line(line) if claimed(&line).is_some_and(|oid| !claims.found(&oid)) => {
                if version == Version::V2 && line.starts_with(HAVE) {
                    let nothing = format!("have {}\n", Oid::ZERO);
                    pkt_line::put(&mut out, nothing.as_bytes());
                }
            }
            Packet::Line(line) => pkt_line::put(&mut out, &line),
            Packet::Flush => out.extend_from_slice(FLUSH),
            Packet::Delimiter => out.extend_from_slice(b"0001"),
            Packet::ResponseEnd => out.extend_from_slice(b"0002"),
        }
        git.write_all_buf(&mut out).await?;
    }
    Ok(git.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn millions_of_packets_that_ask_for_nothing_are_not_read() {
        for packet in ["0000", "0004", "0001", "0009done\n"] {
            let many = packet.repeat(MOST_SHORT + 1);
            let refused = asked(many.as_bytes()).await.unwrap_err();
            assert!(refused.contains("too many lines"), "{refused}");
        }
        let have = "0032have 1212121212121212121212121212121212121212\n";
        assert!(asked(have.repeat(MOST_SHORT + 1).as_bytes()).await.is_ok());
    }

    #[tokio::test]
    async fn git_sees_no_line_that_we_do_not_know() {
        let oid = "a".repeat(40);
        let want = format!("want {oid}");
        for line in [
            "want-ref refs/heads/a",
            "sideband-all",
            "packfile-uris https",
            "x",
            "want x",
            "have ",
            "shallow of no id",
            "deepen 0x7fffffff",
            "deepen -1",
            "deepen ",
            "deepen-since yesterday",
            "deepen-since 99999999999",
            "object-format=sha256",
            "command=ls-refs",
            "command=object-info",
            "done ",
        ] {
            let refused = asked(&request(&[&want, line])[..]).await.unwrap_err();
            let is_command = line.starts_with("command=");
            let expected = if is_command {
                "not known here"
            } else {
                "unexpected line"
            };
            assert!(refused.contains(expected), "{line}: {refused}");
        }
        let not = ["deepen-not refs/heads/x"; MOST_NOT + 1];
        assert!(asked(&request(&not[1..])[..]).await.is_ok());
        let refused = asked(&request(&not)[..]).await.unwrap_err();
        assert!(refused.contains("100 refs at most"), "{refused}");
    }

    fn request(lines: &[&str]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for line in lines {
            match *line {
                "0000" | "0001" | "0002" => out.extend_from_slice(line.as_bytes()),
                line => pkt_line::put(&mut out, line.as_bytes()),
            }
        }
        out.to_vec()
    }

    #[tokio::test]
    async fn how_an_answer_begins_is_known_of_simple_requests_alone() {
        let oid = "a".repeat(40);
        let want = format!("want {oid}\n");
        let first = format!("want {oid} side-band-64k thin-pack agent=git/2\n");
        let have = format!("have {oid}\n");
        let (want, first, have) = (want.as_str(), first.as_str(), have.as_str());
        let beginning = async |lines: &[&str]| {
            let asked = asked(&request(lines)[..]).await.unwrap();
            asked
                .beginning
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        let v2 = [
            "command=fetch",
            "agent=git/2",
            "object-format=sha1",
            "0001",
            "thin-pack",
            "no-progress",
        ];
        let v2 = |more: &[&'static str]| [&v2[..], more].concat();
        let simple = [
            v2(&["ofs-delta", "filter blob:none\n"]),
            vec![want, "done\n", "0000"],
        ]
        .concat();
        assert_eq!(beginning(&simple).await.as_deref(), Some("000dpackfile\n"));
        for other in [have, "deepen 1\n", "wait-for-done"] {
            let lines = [v2(&[]), vec![other, want, "done\n", "0000"]].concat();
            assert_eq!(beginning(&lines).await, None, "{other}");
        }
        let open = [v2(&[]), vec![want, "0000"]].concat();
        assert_eq!(beginning(&open).await, None);
        let lines = [first, want, "0000", "done\n"];
        assert_eq!(beginning(&lines).await.as_deref(), Some("0008NAK\n"));
        assert_eq!(
            beginning(&[want, "0000", "done\n"]).await,
            None,
            "no side band"
        );
        assert_eq!(beginning(&[first, "0000", have, "done\n"]).await, None);
        let shallow = format!("shallow {oid}");
        assert_eq!(beginning(&[first, &shallow, "0000", "done\n"]).await, None);
    }

    #[tokio::test]
    async fn filters_are_looked_at_wherever_they_stand() {
        let want = format!("want {} filter\n", "a".repeat(40));
        let asked = async |lines: &[&str]| asked(&request(lines)[..]).await.map(drop);
        for filter in ["filter blob:none\n", "filter combine:blob:none+tree:0"] {
            assert_eq!(asked(&[&want, filter, "0000"]).await, Ok(()));
            assert_eq!(
                asked(&["command=fetch", "0001", filter, &want]).await,
                Ok(())
            );
            let refused = asked(&[&want, filter, filter]).await.unwrap_err();
            assert!(refused.contains("one filter"), "{refused}");
        }
        for filter in ["filter sparse:oid=x\n", "filter \n", "filter blob:none\n\n"] {
            for lines in [
                [&want, filter, "0000"],
                ["command=fetch", filter, "0001"],
                [&want, "0000", filter],
            ] {
                let refused = asked(&lines).await.unwrap_err();
                assert!(refused.contains("not known here"), "{refused}");
            }
        }
    }

    #[tokio::test]
    async fn any_way_to_deepen_from_an_end_is_one() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let want = format!("want {a} deepen-relative\n");
        let shallow = format!("shallow {b}\n");
        let asked = async |lines: &[&str]| asked(&request(lines)[..]).await.unwrap();
        for deepen in [
            "deepen 1",
            "deepen 2147483647\n",
            "deepen-since 1",
            "deepen-not x\n",
            "deepen-relative",
        ] {
            assert!(asked(&[&want, &shallow, deepen, "0000"]).await.deepens);
            assert!(asked(&[deepen, "0000", &want, &shallow]).await.deepens);
            assert!(!asked(&[&want, deepen]).await.deepens);
        }
        assert!(!asked(&[&want, &shallow]).await.deepens);
        assert!(!asked(&[&want, &shallow]).await.wants.is_empty());
    }

    #[tokio::test]
    async fn all_but_claims_that_were_not_found_is_handed_on() {
        let (a, b) = ("a".repeat(40), "B".repeat(40));
        let lines = [
            "command=fetch".to_owned(),
            "0001".to_owned(),
            format!("want {a}\n"),
            format!("shallow {b} x\n"),
            format!("have {b}"),
            "deepen 5\n".to_owned(),
            "shallow of no id\n".to_owned(),
            String::new(),
            "0002".to_owned(),
            "done\n".to_owned(),
            "0000".to_owned(),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let whole = request(&lines);
        let claims = claims(&whole[..]).await.unwrap();
        assert!(!claims.is_empty());
        let hand_on = async |request: &[u8], version, claims: &Sought| {
            let mut handed = Vec::new();
            hand_on(request, version, claims, &mut handed)
                .await
                .unwrap();
            handed
        };
        let kept = request(&[&lines[..3], &lines[5..]].concat());
        assert_eq!(hand_on(&whole, Version::V0, &claims).await, kept);
        let nothing = format!("have {}\n", Oid::ZERO);
        let stands = request(&[&lines[..3], &[nothing.as_str()], &lines[5..]].concat());
        assert_eq!(hand_on(&whole, Version::V2, &claims).await, stands);
        let none = Sought::new(Vec::new());
        assert_eq!(hand_on(&kept, Version::V2, &none).await, kept);
    }
}
