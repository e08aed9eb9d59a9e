//! Filters of fetch requests (gitprotocol-v2, `git rev-list --filter`), read before git reads them.
//!
//! What git does with a filter can cost far more than its text: `combine:` in `combine:` is taken apart
//! again at each level. Taken are the forms that clients use, each small by its grammar; nothing else gets
//! to a process. Git reads more than this: other spellings of numbers, `sparse:oid=`.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// The filters that one `combine:` may have.
const COMBINED: usize = 4;
/// The longest filter: [`COMBINED`] of the longest that there are, written in full.
const LONGEST: usize = 512;
/// The most digits of a number: what is more than this does not fit into git's.
const DIGITS: usize = 18;

/// Why a filter is not taken. For the git user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this filter is not known here{shown}: blob:none, blob:limit=<n>[kmg], tree:<n>, \
     object:type=<type> and combine: of at most {COMBINED} of these are"
)]
pub struct UnknownFilter {
    shown: String,
}

impl UnknownFilter {
    fn of(filter: &[u8]) -> Self {
        const SHOWN: usize = 60;
        let is_text = |byte: &u8| byte.is_ascii_graphic();
        let shown = match filter.len() <= SHOWN && filter.iter().all(is_text) {
            true => format!(" ({})", String::from_utf8_lossy(filter)),
            false => String::new(),
        };
        Self { shown }
    }
}

/// Checks the filter of a request: what follows `filter ` in its line.
///
/// # Errors
/// It is none of the forms that are taken.
pub fn check(filter: &[u8]) -> Result<(), UnknownFilter> {
    let is_taken = filter.len() <= LONGEST
        && match filter.strip_prefix(b"combine:") {
            Some(parts) => is_combination(parts),
            None => is_simple(filter),
        };
    match is_taken {
        true => Ok(()),
        false => Err(UnknownFilter::of(filter)),
    }
}

/// Filters with `+` between them, each with its special characters in per cent signs, as git writes them.
fn is_combination(parts: &[u8]) -> bool {
    let parts: Vec<Cow<[u8]>> = parts
        .split(|byte| *byte == b'+')
        .map(|part| percent_decode(part).into())
        .collect();
    parts.len() <= COMBINED && parts.iter().all(|part| is_simple(part))
}

fn is_simple(filter: &[u8]) -> bool {
    let after = |start: &str| filter.strip_prefix(start.as_bytes());
    if let Some(size) = after("blob:limit=") {
        let without_unit = size
            .strip_suffix(b"k")
            .or_else(|| size.strip_suffix(b"K"))
            .or_else(|| size.strip_suffix(b"m"))
            .or_else(|| size.strip_suffix(b"M"))
            .or_else(|| size.strip_suffix(b"g"))
            .or_else(|| size.strip_suffix(b"G"));
        return is_number(without_unit.unwrap_or(size));
    }
    if let Some(depth) = after("tree:") {
        return is_number(depth);
    }
    if let Some(of_type) = after("object:type=") {
        return [&b"blob"[..], b"tree", b"commit", b"tag"].contains(&of_type);
    }
    filter == b"blob:none"
}

fn is_number(text: &[u8]) -> bool {
    (1..=DIGITS).contains(&text.len()) && text.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_ask_for_is_taken() {
        for filter in [
            "blob:none",
            "blob:limit=0",
            "blob:limit=1k",
            "blob:limit=10M",
            "blob:limit=1048576",
            "tree:0",
            "tree:3",
            "object:type=commit",
            "object:type=tag",
            "combine:blob:none",
            "combine:blob:none+tree:0",
            "combine:blob%3anone+tree%3A0+object:type%3dblob+blob:limit=1k",
        ] {
            assert_eq!(check(filter.as_bytes()), Ok(()), "{filter}");
        }
    }

    #[test]
    fn all_else_is_refused() {
        let nested = format!("{}blob:none", "combine:".repeat(8000));
        let encoded_nested = "combine:combine%3ablob%3anone+tree:0";
        let many = format!("combine:{}", ["blob:none"; COMBINED + 1].join("+"));
        let long = format!("combine:tree:{}", "%30".repeat(LONGEST));
        for filter in [
            "",
            "blob",
            "blob:none ",
            "blob:none\0",
            "blob:limit=",
            "blob:limit=k",
            "blob:limit=-1",
            "blob:limit=0x10",
            "blob:limit=1kk",
            "blob:limit=9999999999999999999",
            "tree:",
            "tree:1k",
            "tree: 1",
            "object:type=",
            "object:type=any",
            "sparse:oid=main:x",
            "sparse:path=x",
            "auto",
            "combine:",
            "combine:+",
            "combine:blob:none+",
            "combine:blob:none%00",
            "combine:blob%253anone",
            &nested,
            encoded_nested,
            &many,
            &long,
        ] {
            assert!(check(filter.as_bytes()).is_err(), "{filter}");
        }
    }

    #[test]
    fn a_refusal_repeats_what_is_short_and_fit_to_be_shown() {
        let said = |filter: &[u8]| check(filter).unwrap_err().to_string();
        let told = "this filter is not known here (sparse:oid=x): blob:none, ";
        assert!(said(b"sparse:oid=x").starts_with(told));
        for filter in [&b"a\x1b[31mb"[..], &[b'x'; 100], b""] {
            assert!(!said(filter).contains('\x1b') && said(filter).len() < 200);
        }
    }
}
