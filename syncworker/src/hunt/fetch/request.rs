//! What is asked, as it goes over the wire: pure.

use bytes::Bytes;
use gix_packetline::blocking_io::encode;
use grasp_proto::words::Oid;

use super::advertisement::{Sideband, V0, V2};

/// How we call ourselves.
pub const AGENT: &str = concat!("graspd/", env!("CARGO_PKG_VERSION"));

/// A request under construction. Nothing it is made of is longer than a line may be, and a vector
/// takes everything: writing cannot fail.
#[derive(Default)]
struct Request(Vec<u8>);

impl Request {
    fn line(&mut self, text: &str) {
        let _ = encode::text_to_write(text.as_bytes(), &mut self.0);
    }

    fn delimiter(&mut self) {
        let _ = encode::delim_to_write(&mut self.0);
    }

    fn flush(&mut self) {
        let _ = encode::flush_to_write(&mut self.0);
    }

    fn command(&mut self, v2: &V2, command: &str) {
        self.line(&format!("command={command}"));
        if v2.agent {
            self.line(&format!("agent={AGENT}"));
        }
        if v2.object_format {
            self.line("object-format=sha1");
        }
        self.delimiter();
    }

    fn each(&mut self, word: &str, oids: &[Oid]) {
        for oid in oids {
            self.line(&format!("{word} {oid}"));
        }
    }

    fn end(self) -> Bytes {
        self.0.into()
    }
}

/// v2: these objects, and all that they lead to and these haves do not. With `done`, the answer is
/// the pack, without negotiation. Progress is not declined: it is what some servers show, while they
/// count, that they are alive.
pub fn fetch_v2(v2: &V2, wants: &[Oid], haves: &[Oid]) -> Bytes {
    let mut request = Request::default();
    request.command(v2, "fetch");
    if !haves.is_empty() {
        request.line("thin-pack");
    }
    request.line("ofs-delta");
    request.each("want", wants);
    request.each("have", haves);
    request.line("done");
    request.flush();
    request.end()
}

/// v2: all refs, tags with what they lead to.
pub fn ls_refs(v2: &V2) -> Bytes {
    let mut request = Request::default();
    request.command(v2, "ls-refs");
    request.line("peel");
    request.flush();
    request.end()
}

/// v0 and v1: the same as [`fetch_v2`].
pub fn fetch_v0(v0: &V0, wants: &[Oid], haves: &[Oid]) -> Bytes {
    let mut capabilities = match v0.sideband {
        Sideband::Large => " side-band-64k",
        Sideband::Small => " side-band",
        Sideband::None => "",
    }
    .to_owned();
    if v0.thin_pack && !haves.is_empty() {
        capabilities += " thin-pack";
    }
    if v0.ofs_delta {
        capabilities += " ofs-delta";
    }
    if v0.agent {
        capabilities += " agent=";
        capabilities += AGENT;
    }
    let mut request = Request::default();
    for want in wants {
        request.line(&format!("want {want}{capabilities}"));
        capabilities.clear();
    }
    request.flush();
    request.each("have", haves);
    request.line("done");
    request.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oid(byte: u8) -> Oid {
        Oid::from_bytes([byte; 20])
    }

    #[test]
    fn as_git_reads_it() {
        let (one, two) = ("11".repeat(20), "22".repeat(20));
        let v2 = V2 {
            object_format: true,
            ..V2::default()
        };
        let asked = fetch_v2(&v2, &[oid(0x11)], &[oid(0x22)]);
        let expected = format!(
            "0012command=fetch\n0017object-format=sha1\n0001000ethin-pack\n000eofs-delta\n\
             0032want {one}\n0032have {two}\n0009done\n0000"
        );
        assert_eq!(asked, expected);

        let v0 = V0 {
            sideband: Sideband::Large,
            thin_pack: true,
            ..V0::default()
        };
        let asked = fetch_v0(&v0, &[oid(0x11), oid(0x22)], &[]);
        let expected = format!("0040want {one} side-band-64k\n0032want {two}\n00000009done\n");
        assert_eq!(asked, expected);
    }
}
