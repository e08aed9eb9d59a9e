//! What a fetch request names, and the request without what git must not hear of.
//!
//! Lines are read as git reads them, or as asking for more: what is behind an id is not looked at, where
//! in the request they stand neither.

use bytes::BytesMut;
use grasp_proto::words::Oid;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};

use super::{
    Version,
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
    let mut short = 0;
    while let Some(packet) = next(&mut request).await? {
        let line = match packet {
            Packet::Line(line) => line,
            _ => Vec::new(),
        };
        short += usize::from(line.len() < SHORT);
        if short > MOST_SHORT {
            return Err("the request has too many lines that name nothing".to_owned());
        }
        // Some versions of git have others, which look at any object.
        if let Some(command) = Packet::text(&line).strip_prefix(b"command=")
            && command != b"fetch"
            && command != b"ls-refs"
        {
            return Err("this command is not known here".to_owned());
        }
        wants.extend(named(&line, b"want "));
        ends |= line.starts_with(END);
        deepens |= line.starts_with(b"deepen");
    }
    Ok(Asked {
        wants: Sought::new(wants),
        deepens: deepens && ends,
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
    async fn any_way_to_deepen_from_an_end_is_one() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let want = format!("want {a} deepen-relative\n");
        let shallow = format!("shallow {b}\n");
        let asked = async |lines: &[&str]| asked(&request(lines)[..]).await.unwrap();
        for deepen in [
            "deepen 1",
            "deepen 0x7fffffff\n",
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
