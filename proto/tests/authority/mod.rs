//! Somebody who signs certificates, for tests.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Those who sign, and what they signed, as files.
pub struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// DER as PEM, in lines of 64 characters.
fn pem(path: &Path, label: &str, der: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::new();
    for chunk in der.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = (bits >> (18 - 6 * place) & 63) as usize;
            text.push(if place <= chunk.len() {
                ALPHABET[sextet]
            } else {
                b'='
            });
        }
    }
    let mut file = fs::File::create(path).unwrap();
    writeln!(file, "-----BEGIN {label}-----").unwrap();
    for line in text.chunks(64) {
        file.write_all(line).unwrap();
        file.write_all(b"\n").unwrap();
    }
    writeln!(file, "-----END {label}-----").unwrap();
}

impl Authority {
    /// One that has signed nothing yet.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        pem(&directory.path().join("ca"), "CERTIFICATE", issuer.der());
        Self { directory, issuer }
    }

    /// Where one of its files is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The settings of a process whose certificate is for `name`.
    pub fn settings(&self, name: &str) -> Vec<(&'static str, String)> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str| self.path(&format!("{name}.{kind}"));
        pem(&file("cert"), "CERTIFICATE", certificate.der());
        pem(&file("key"), "PRIVATE KEY", &key.serialize_der());
        let text = |path: PathBuf| path.display().to_string();
        vec![
            ("NGIT_INTERNAL_TLS_CERT", text(file("cert"))),
            ("NGIT_INTERNAL_TLS_KEY", text(file("key"))),
            ("NGIT_INTERNAL_TLS_CA", text(self.path("ca"))),
        ]
    }
}
