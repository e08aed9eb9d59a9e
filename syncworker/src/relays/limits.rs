//! What a remote relay allows, as its information document (NIP-11) says it. Pure.

use serde::Deserialize;

use super::filters::LONGEST_FILTER;

/// Subscriptions at once where the document says nothing.
const SUBSCRIPTIONS: usize = 20;

/// The longest message where the document says nothing: what most relays take.
const MESSAGE_BYTES: usize = 128_000;

/// Events asked for at once, by `limit`.
const PAGE: usize = 500;

/// Events asked for at once, by id.
const IDS: usize = 500;

/// What a remote relay allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Subscriptions at once.
    pub subscriptions: usize,
    /// Filters in one subscription.
    pub filters: usize,
    /// Events in one answer.
    pub limit: usize,
    /// The longest message we may send, in bytes.
    pub message_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            subscriptions: SUBSCRIPTIONS,
            filters: 100,
            limit: PAGE,
            message_bytes: MESSAGE_BYTES,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    limitation: Option<Limitation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Limitation {
    #[serde(rename = "max_subscriptions")]
    subscriptions: Option<f64>,
    #[serde(rename = "max_filters")]
    filters: Option<f64>,
    #[serde(rename = "max_limit")]
    limit: Option<f64>,
    #[serde(rename = "max_message_length")]
    message_length: Option<f64>,
}

/// What was said, if it can be meant, between what is useful and what is safe.
fn within(said: Option<f64>, least: usize, most: usize, otherwise: usize) -> usize {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    match said {
        Some(number) if number >= 1.0 => number.min(most as f64).max(least as f64) as usize,
        _ => otherwise,
    }
}

impl Limits {
    /// Reads an information document; what cannot be read says nothing.
    pub fn read(document: &[u8]) -> Self {
        let ours = Self::default();
        let document: Document = serde_json::from_slice(document).unwrap_or_default();
        let said = document.limitation.unwrap_or_default();
        Self {
            subscriptions: within(said.subscriptions, 1, 200, ours.subscriptions),
            filters: within(said.filters, 1, 100, ours.filters),
            limit: within(said.limit, 1, PAGE, ours.limit),
            message_bytes: within(said.message_length, 2048, 512_000, ours.message_bytes),
        }
    }

    /// Live subscriptions at once: one is for history, one to spare where there is.
    pub fn live(&self) -> usize {
        match self.subscriptions {
            0..=2 => 1,
            many => many - 2,
        }
    }

    /// The longest filter.
    pub fn filter_bytes(&self) -> usize {
        LONGEST_FILTER.min(self.message_bytes - 100)
    }

    /// Events asked for at once, by id.
    pub fn ids(&self) -> usize {
        // An id takes 67 bytes of the message.
        IDS.min(self.limit).min((self.filter_bytes() - 200) / 67)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_if_it_can_be_meant() {
        let read = |json: &str| Limits::read(json.as_bytes());
        for nothing in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"limitation":null}"#,
            r#"{"limitation":7}"#,
        ] {
            assert_eq!(read(nothing), Limits::default(), "{nothing}");
        }
        let said = read(
            r#"{"name":"x","limitation":{"max_subscriptions":10,"max_filters":4,"max_limit":100,
            "max_message_length":16384}}"#,
        );
        let expected = Limits {
            subscriptions: 10,
            filters: 4,
            limit: 100,
            message_bytes: 16384,
        };
        assert_eq!(said, expected);
        assert_eq!(
            (said.live(), said.filter_bytes(), said.ids()),
            (8, 16284, 100)
        );
        assert_eq!(
            Limits::default().ids(),
            474,
            "what a filter of 32,000 bytes holds"
        );
        let absurd = read(
            r#"{"limitation":{"max_subscriptions":-1,"max_filters":1e300,"max_limit":0,
            "max_message_length":1}}"#,
        );
        assert_eq!((absurd.subscriptions, absurd.filters), (20, 100));
        assert_eq!((absurd.limit, absurd.message_bytes), (500, 2048));
        assert!(absurd.ids() > 0);
    }
}
