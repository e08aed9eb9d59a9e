//! How much the tags of an event may hold. Its text is bounded anyway; but a few bytes of it may stand for
//! a string with an allocation of its own, wherever it waits, is read from the store or worked with.

use std::mem::size_of;

use nostr::Event;

use super::{Malformed, Meaning};

/// The URLs of one kind (`clone`, `relays`, `web`, `g`) that one event may name.
pub const MAX_URLS: usize = 100;
/// The longest of them, in bytes.
pub const MAX_URL_BYTES: usize = 1_024;
/// The values that all tags of one event may have together, their names included. The first two of a
/// state's refs, name and object, are as many as the repository has.
pub const MAX_TAG_VALUES: usize = 5_000;

/// Tags whose values are URLs.
const URL_TAGS: [&str; 4] = ["clone", "relays", "web", "g"];

/// Whether an event keeps to it. URLs are counted where they are worked with.
///
/// # Errors
/// It names too much.
pub fn check(event: &Event) -> Result<(), Malformed> {
    let meaning = Meaning::of(event.kind);
    let is_state = meaning == Meaning::State;
    let has_urls = matches!(
        meaning,
        Meaning::Announcement | Meaning::PullRequest | Meaning::GraspList
    );
    let mut values = 0;
    let mut urls = [0; URL_TAGS.len()];
    for tag in event.tags.iter() {
        let tag = tag.as_slice();
        let name = tag.first().map_or("", String::as_str);
        let free = match is_state && name.starts_with("refs/") {
            true => 2,
            false => 0,
        };
        values += tag.len().saturating_sub(free);
        let known = URL_TAGS.iter().position(|known| *known == name);
        let Some(at) = known.filter(|_| has_urls) else {
            continue;
        };
        urls[at] += tag.len() - 1;
        if tag[1..].iter().any(|url| url.len() > MAX_URL_BYTES) {
            return Err(Malformed(format!(
                "a URL in {name} is longer than {MAX_URL_BYTES} bytes"
            )));
        }
    }
    if let Some(at) = urls.iter().position(|count| *count > MAX_URLS) {
        return Err(Malformed(format!(
            "more than {MAX_URLS} URLs in {}",
            URL_TAGS[at]
        )));
    }
    if values > MAX_TAG_VALUES {
        return Err(Malformed(format!(
            "the tags have more than {MAX_TAG_VALUES} values"
        )));
    }
    Ok(())
}

/// What an allocation costs besides what is asked for, and the least that it takes.
const ALLOCATION: usize = 16;

/// About how much memory an event takes, in bytes.
pub fn memory(event: &Event) -> usize {
    let text = |text: &str| size_of::<String>() + text.len().max(ALLOCATION) + ALLOCATION;
    let tags = event.tags.iter().map(|tag| {
        let values = tag.as_slice().iter().map(|value| text(value));
        size_of::<Vec<String>>() + ALLOCATION + values.sum::<usize>()
    });
    size_of::<Event>() + event.content.len() + tags.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nip34::{
        ANNOUNCEMENT, GRASP_LIST, PULL_REQUEST, STATE,
        testing::{event, keys},
    };

    fn refusal(kind: nostr::Kind, tags: &[Vec<String>]) -> String {
        let tags: Vec<Vec<&str>> = tags
            .iter()
            .map(|tag| tag.iter().map(String::as_str).collect())
            .collect();
        let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
        let checked = check(&event(&keys(1), kind, 1, &tags));
        checked.map_or_else(|error| error.to_string(), |()| String::new())
    }

    fn tag(name: &str, values: usize, value: &str) -> Vec<String> {
        let name = std::iter::once(name.to_owned());
        name.chain((0..values).map(|_| value.to_owned())).collect()
    }

    #[test]
    fn urls_are_counted_over_all_tags_of_a_name() {
        for (kind, name) in [
            (ANNOUNCEMENT, "clone"),
            (ANNOUNCEMENT, "relays"),
            (ANNOUNCEMENT, "web"),
            (PULL_REQUEST, "clone"),
            (GRASP_LIST, "g"),
        ] {
            let most = tag(name, MAX_URLS, "wss://relay.example");
            assert_eq!(refusal(kind, std::slice::from_ref(&most)), "");
            let more = refusal(kind, &[most, tag(name, 1, "x")]);
            assert_eq!(more, format!("more than {MAX_URLS} URLs in {name}"));
            let longest = "x".repeat(MAX_URL_BYTES);
            assert_eq!(refusal(kind, &[tag(name, 1, &longest)]), "");
            let longer = refusal(kind, &[tag(name, 1, &format!("{longest}x"))]);
            assert!(longer.contains("longer than"), "{longer}");
        }
    }

    #[test]
    fn values_of_any_tags_are_counted_but_for_the_refs_of_a_state() {
        let many: Vec<_> = (0..MAX_TAG_VALUES).map(|_| tag("a", 0, "")).collect();
        assert_eq!(refusal(ANNOUNCEMENT, &many), "");
        for kind in [ANNOUNCEMENT, PULL_REQUEST, GRASP_LIST, STATE] {
            let more = [&many[..], &[tag("t", 0, "")]].concat();
            assert!(refusal(kind, &more).contains("values"));
            let one = [tag("maintainers", MAX_TAG_VALUES, "")];
            assert!(refusal(kind, &one).contains("values"));
        }
        let refs: Vec<_> = (0..=MAX_TAG_VALUES)
            .map(|n| vec![format!("refs/heads/{n}"), "0".repeat(40)])
            .collect();
        assert_eq!(refusal(STATE, &refs), "");
        assert!(refusal(ANNOUNCEMENT, &refs).contains("values"));
        let longer = tag("refs/heads/x", MAX_TAG_VALUES + 2, "");
        assert!(refusal(STATE, &[longer]).contains("values"));
        let comment = nostr::Kind::Custom(1111);
        assert_eq!(refusal(comment, &[tag("clone", 3000, "")]), "");
        assert!(refusal(comment, &[tag("p", MAX_TAG_VALUES, "")]).contains("values"));
    }

    #[test]
    fn small_values_cost_more_than_their_text() {
        let small: Vec<Vec<String>> = (0..1_000).map(|_| tag("a", 1, "")).collect();
        let tags: Vec<[&str; 2]> = small.iter().map(|_| ["a", ""]).collect();
        let tags: Vec<&[&str]> = tags.iter().map(|tag| &tag[..]).collect();
        let event = event(&keys(1), ANNOUNCEMENT, 1, &tags);
        assert!(memory(&event) > 1_000 * 100);
    }
}
