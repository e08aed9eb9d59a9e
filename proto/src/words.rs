//! The words all processes speak, checked once where they come in and carried as types from there.
//!
//! Nothing here knows what a word is used for. A value of one of these types is well-formed; that
//! it names something which exists, or which its bearer may touch, is for others to say.

use std::{fmt, str::FromStr, sync::Arc};

use bech32::{Bech32, Hrp};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// Why something is not the word it was taken for. The text is fit to be shown to a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word} {reason}")]
pub struct NotAWord {
    word: &'static str,
    reason: &'static str,
}

const fn not(word: &'static str, reason: &'static str) -> NotAWord {
    NotAWord { word, reason }
}

/// A repository's `d` tag: 1 to 250 bytes, no `/`, `\`, NUL or control characters, neither `.` nor
/// `..` (protocol, "Identifier rules"). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identifier(Arc<str>);

impl Identifier {
    /// The longest identifier, in bytes: with `.git` it still is a file name.
    pub const MAX_BYTES: usize = 250;

    /// Checks `text` against the identifier rules.
    pub fn parse(text: &str) -> Result<Self, NotAWord> {
        const WORD: &str = "identifier";
        if text.is_empty() {
            return Err(not(WORD, "is empty"));
        }
        if text.len() > Self::MAX_BYTES {
            return Err(not(WORD, "is longer than 250 bytes"));
        }
        if text == "." || text == ".." {
            return Err(not(WORD, "may not be a relative directory"));
        }
        if text
            .chars()
            .any(|c| c == '/' || c == '\\' || c.is_control())
        {
            return Err(not(WORD, "has a slash, backslash or control character"));
        }
        Ok(Self(text.into()))
    }

    /// The identifier as it stands in the `d` tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Bytes written as lower-case hex.
fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in bytes {
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

/// Bytes, shown as lower-case hex.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(self.0, f)
    }
}

/// Exactly `N` bytes from `2N` hex digits of either case.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal, $word:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// From its hex digits, of either case.
            pub fn from_hex(text: &str) -> Result<Self, NotAWord> {
                unhex(text)
                    .map(Self)
                    .ok_or(not($word, concat!("is not ", $len, " bytes in hex")))
            }

            /// From as many bytes as a message happens to carry.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, NotAWord> {
                bytes
                    .try_into()
                    .map(Self)
                    .map_err(|_| not($word, concat!("is not ", $len, " bytes")))
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Its hex digits, in lower case.
            pub fn to_hex(&self) -> String {
                Hex(&self.0).to_string()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }
    };
}

fixed_bytes!(
    /// A git object id (SHA-1).
    Oid, 20, "object id"
);

impl Oid {
    /// What git writes for "no object": the ref is to be made, or to go.
    pub const ZERO: Self = Self([0; 20]);

    /// Whether this is [`Oid::ZERO`].
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

fixed_bytes!(
    /// The id of a Nostr event.
    EventId, 32, "event id"
);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

fixed_bytes!(
    /// A Nostr public key, shown as `npub1…` (NIP-19).
    Npub, 32, "public key"
);

impl Npub {
    const HRP: Hrp = Hrp::parse_unchecked("npub");

    /// From its NIP-19 form.
    pub fn from_npub(text: &str) -> Result<Self, NotAWord> {
        const WORD: &str = "npub";
        // Every public key takes 63 characters; nothing longer is worth decoding.
        if text.len() != 63 || !text.starts_with("npub1") {
            return Err(not(WORD, "does not look like npub1…"));
        }
        let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32>(text)
            .map_err(|_| not(WORD, "has a wrong checksum"))?;
        let bytes: Vec<u8> = checked.byte_iter().collect();
        Self::from_slice(&bytes)
    }
}

impl fmt::Display for Npub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bech32::encode_lower_to_fmt::<Bech32, _>(f, Self::HRP, &self.0).map_err(|_| fmt::Error)
    }
}

/// What must be escaped in one segment of a URL's path.
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// One repository: an owner's, under an identifier. Displayed as its path in a URL,
/// `<npub>/<identifier>.git`, percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoId {
    /// Whose it is.
    pub owner: Npub,
    /// What it is called.
    pub identifier: Identifier,
}

impl RepoId {
    /// Splits the path of a URL, still percent-encoded, into the repository it names and what
    /// follows: `/<npub>/<identifier>.git/info/refs` gives `/info/refs`. `None`: no repository's
    /// path. Slashes that are percent-encoded stay inside a segment and are then refused.
    pub fn from_url_path(path: &str) -> Option<(Self, &str)> {
        let path = path.strip_prefix('/')?;
        let (npub, rest) = path.split_once('/')?;
        let owner = Npub::from_npub(npub).ok()?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (segment, rest) = rest.split_at(end);
        let name = percent_decode_str(segment).decode_utf8().ok()?;
        let identifier = Identifier::parse(name.strip_suffix(".git")?).ok()?;
        Some((Self { owner, identifier }, rest))
    }

    /// `30617:<owner in hex>:<identifier>`, as `a` tags have it (NIP-34).
    pub fn coordinate(&self) -> String {
        format!("30617:{}:{}", self.owner.to_hex(), self.identifier)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = utf8_percent_encode(self.identifier.as_str(), SEGMENT);
        write!(f, "{}/{name}.git", self.owner)
    }
}

/// By which kind of address a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// `/<npub>/<identifier>.git`: the repository that `npub` announced.
    Standard,
    /// `/prs/<npub>/<identifier>.git`: what `npub` contributes to repositories of that identifier
    /// (GRASP-06).
    Prs,
}

/// A repository and where it is. Displayed as its path in a URL, without the leading slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// By which kind of address.
    pub endpoint: Endpoint,
    /// Whose it is, and what it is called.
    pub repo: RepoId,
}

impl Address {
    /// The contributor's own space for one identifier.
    pub fn prs(repo: RepoId) -> Self {
        Self {
            endpoint: Endpoint::Prs,
            repo,
        }
    }

    /// Whose it is.
    pub fn owner(&self) -> &Npub {
        &self.repo.owner
    }

    /// What it is called.
    pub fn identifier(&self) -> &Identifier {
        &self.repo.identifier
    }

    /// Whether it is below `/prs/`.
    pub fn is_prs(&self) -> bool {
        self.endpoint == Endpoint::Prs
    }

    /// Splits the path of a URL like [`RepoId::from_url_path`], which may also begin with `/prs/`.
    pub fn from_url_path(path: &str) -> Option<(Self, &str)> {
        const PRS: &str = "/prs";
        let below = path.strip_prefix(PRS).filter(|p| p.starts_with('/'));
        let endpoint = match below {
            Some(_) => Endpoint::Prs,
            None => Endpoint::Standard,
        };
        let (repo, rest) = RepoId::from_url_path(below.unwrap_or(path))?;
        Some((Self { endpoint, repo }, rest))
    }
}

impl From<RepoId> for Address {
    fn from(repo: RepoId) -> Self {
        Self {
            endpoint: Endpoint::Standard,
            repo,
        }
    }
}

impl From<&RepoId> for Address {
    fn from(repo: &RepoId) -> Self {
        repo.clone().into()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_prs() {
            f.write_str("prs/")?;
        }
        self.repo.fmt(f)
    }
}

/// A ref's full name, as `git check-ref-format` allows it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName(Arc<str>);

/// Which part of the namespace a ref lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefKind {
    /// `refs/heads/…`
    Head,
    /// `refs/tags/…`
    Tag,
    /// `refs/nostr/<event id>`
    Nostr(EventId),
    /// Anything else.
    Other,
}

impl RefName {
    /// The longest name, in bytes: longer ones are no file names on some systems.
    pub const MAX_BYTES: usize = 1000;

    /// Checks `text` by the rules of `git check-ref-format`, and that it begins with `refs/`.
    pub fn parse(text: &str) -> Result<Self, NotAWord> {
        const WORD: &str = "ref name";
        if text.len() > Self::MAX_BYTES {
            return Err(not(WORD, "is longer than 1000 bytes"));
        }
        if !text.starts_with("refs/") {
            return Err(not(WORD, "does not begin with refs/"));
        }
        let forbidden = |c: char| {
            c.is_ascii_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\')
        };
        if text.chars().any(forbidden) {
            return Err(not(WORD, "has a character that git forbids"));
        }
        if text.contains("..") || text.contains("@{") || text.ends_with('.') {
            return Err(not(WORD, "has a sequence that git forbids"));
        }
        let bad_part =
            |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
        // A file name longer than this cannot be made (NAME_MAX, less `.lock`).
        if text
            .split('/')
            .any(|part| bad_part(part) || part.len() > 250)
        {
            return Err(not(WORD, "has a part that git forbids"));
        }
        Ok(Self(text.into()))
    }

    /// `refs/nostr/<event id>`.
    pub fn nostr(id: &EventId) -> Self {
        Self(format!("refs/nostr/{id}").into())
    }

    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where in the namespace it lives.
    pub fn kind(&self) -> RefKind {
        if self.0.starts_with("refs/heads/") {
            RefKind::Head
        } else if self.0.starts_with("refs/tags/") {
            RefKind::Tag
        } else if let Some(id) = self.0.strip_prefix("refs/nostr/") {
            // Only the canonical spelling: two refs for one event would be two truths.
            match EventId::from_hex(id) {
                Ok(event) if event.to_hex() == id => RefKind::Nostr(event),
                _ => RefKind::Other,
            }
        } else {
            RefKind::Other
        }
    }

    /// Whether one of the two would have to be a directory for the other to exist.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let inside = |outer: &str, inner: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        inside(&self.0, &other.0) || inside(&other.0, &self.0)
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RefName {
    type Err = NotAWord;

    fn from_str(text: &str) -> Result<Self, NotAWord> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_follow_the_rules() {
        for good in [
            "a",
            "...",
            "-x",
            ".hidden",
            "mit leerzeichen",
            "größe",
            "a.git",
        ] {
            assert_eq!(Identifier::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a\\b", "a\0", "a\n", "a\u{85}"] {
            assert!(Identifier::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Identifier::parse(&"x".repeat(250)).is_ok());
        assert!(Identifier::parse(&"x".repeat(251)).is_err());
    }

    #[test]
    fn npub_is_nip_19() {
        let hex = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d";
        let npub = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6";
        assert_eq!(Npub::from_hex(hex).unwrap().to_string(), npub);
        assert_eq!(Npub::from_npub(npub).unwrap().to_hex(), hex);
        let flipped = npub.replace("180c", "180d");
        assert!(Npub::from_npub(&flipped).is_err());
    }

    #[test]
    fn a_path_names_a_repository() {
        let npub = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6";
        let path = format!("/{npub}/a%20b.git/info/refs");
        let (repo, rest) = RepoId::from_url_path(&path).unwrap();
        assert_eq!((repo.identifier.as_str(), rest), ("a b", "/info/refs"));
        for bad in ["a%2Fb.git", "..%2f.git", "a", ".git", "%ff.git", "a%00.git"] {
            assert!(
                RepoId::from_url_path(&format!("/{npub}/{bad}")).is_none(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_path_below_prs_is_another_address() {
        let npub = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6";
        let read = |path: String| {
            let (address, rest) = Address::from_url_path(&path)?;
            Some((address.endpoint, rest.to_owned()))
        };
        let standard = Some((Endpoint::Standard, String::new()));
        assert_eq!(read(format!("/{npub}/x.git")), standard);
        let below = Some((Endpoint::Prs, "/info/refs".to_owned()));
        assert_eq!(read(format!("/prs/{npub}/x.git/info/refs")), below);
        for bad in ["/prs/prs", "/PRS", "/prsx", "//prs", "/prs/"] {
            assert_eq!(read(format!("{bad}/{npub}/x.git")), None, "{bad}");
        }
    }

    #[test]
    fn ref_kinds() {
        let id = "ab".repeat(32);
        let kind = |name: &str| RefName::parse(name).unwrap().kind();
        assert_eq!(kind("refs/heads/main"), RefKind::Head);
        assert_eq!(kind("refs/tags/v1"), RefKind::Tag);
        assert!(matches!(
            kind(&format!("refs/nostr/{id}")),
            RefKind::Nostr(_)
        ));
        assert_eq!(
            kind(&format!("refs/nostr/{}", id.to_uppercase())),
            RefKind::Other
        );
        assert_eq!(kind("refs/nostr/abc"), RefKind::Other);
        assert_eq!(kind("refs/notes/commits"), RefKind::Other);
    }

    proptest! {
        #[test]
        fn a_repository_survives_its_url(name in "\\PC{1,60}", key in any::<[u8; 32]>()) {
            if let Ok(identifier) = Identifier::parse(&name) {
                let repo = RepoId { owner: Npub::from_bytes(key), identifier };
                let path = format!("/{repo}/x");
                prop_assert_eq!(RepoId::from_url_path(&path), Some((repo.clone(), "/x")));
                for address in [Address::from(&repo), Address::prs(repo)] {
                    let path = format!("/{address}/x");
                    prop_assert_eq!(Address::from_url_path(&path), Some((address, "/x")));
                }
            }
        }

        /// Whatever we accept, git accepts: the words are at most stricter.
        #[test]
        fn ref_names_are_gits(tail in "[a-c./@{~^: \\-]{1,12}") {
            let name = format!("refs/heads/{tail}");
            let git = std::process::Command::new("git")
                .args(["check-ref-format", &name])
                .status()
                .unwrap()
                .success();
            prop_assert_eq!(RefName::parse(&name).is_ok(), git, "{}", name);
        }

        #[test]
        fn hex_round_trips(bytes in any::<[u8; 20]>()) {
            let oid = Oid::from_bytes(bytes);
            prop_assert_eq!(Oid::from_hex(&oid.to_hex().to_uppercase()), Ok(oid));
        }
    }
}
