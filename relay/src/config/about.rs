//! What the operator says of the service and of themselves (NIP-11).

use grasp_proto::{
    process::settings::{BadSetting, Settings},
    words::Npub,
};
use url::Url;

/// As told; what is unset is not said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The operator's key.
    pub operator: Option<Npub>,
    /// How else the operator is reached, as a URI.
    pub contact: Option<String>,
    /// A picture of the service, square.
    pub icon: Option<Url>,
    /// A picture of the service, wide.
    pub banner: Option<Url>,
    /// The terms that users agree to.
    pub terms_of_service: Option<Url>,
}

impl About {
    /// Reads the settings.
    ///
    /// # Errors
    /// One of them is no key, or no address of the kind it must be.
    pub fn from_settings(settings: &Settings) -> Result<Self, BadSetting> {
        let is_set = |name| {
            settings
                .get(name)
                .is_some_and(|text| !text.trim().is_empty())
        };
        let page = |name| match is_set(name) {
            true => settings.parse_with(name, read_web_address).map(Some),
            false => Ok(None),
        };
        let (operator, contact) = ("NGIT_OPERATOR_PUBKEY", "NGIT_RELAY_CONTACT");
        Ok(Self {
            operator: match is_set(operator) {
                true => Some(settings.parse_with(operator, read_key)?),
                false => None,
            },
            contact: match is_set(contact) {
                true => Some(settings.parse_with(contact, read_contact)?),
                false => None,
            },
            icon: page("NGIT_RELAY_ICON")?,
            banner: page("NGIT_RELAY_BANNER")?,
            terms_of_service: page("NGIT_RELAY_TERMS_OF_SERVICE")?,
        })
    }
}

fn read_key(text: &str) -> Result<Npub, String> {
    let text = text.trim();
    let key = Npub::from_npub(text).or_else(|_| Npub::from_hex(text));
    key.map_err(|_| "an npub or 64 hex digits".to_owned())
}

fn read_web_address(text: &str) -> Result<Url, String> {
    let address = Url::parse(text.trim()).ok();
    let address = address.filter(|url| matches!(url.scheme(), "http" | "https"));
    address.ok_or_else(|| "an address like https://relay.example/page".to_owned())
}

/// A URI; what looks like a mail address becomes one.
fn read_contact(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_mail = !text.contains([':', '/', ' ']) && text.contains('@');
    let whole = match is_mail {
        true => format!("mailto:{text}"),
        false => text.to_owned(),
    };
    match Url::parse(&whole) {
        Ok(_) => Ok(whole),
        Err(_) => Err("a URI like mailto:admin@relay.example or https://relay.example".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_an_address() {
        assert_eq!(read_contact("a@b.example").unwrap(), "mailto:a@b.example");
        assert_eq!(read_contact("nostr:npub1x").unwrap(), "nostr:npub1x");
        assert!(read_contact("call me").is_err());
        assert!(read_web_address("https://b.example/tos").is_ok());
        assert!(read_web_address("javascript:alert(1)").is_err());
        let key = Npub::from_bytes([7; 32]);
        assert_eq!(read_key(&key.to_hex()).unwrap(), key);
        assert_eq!(read_key(&format!(" {key} ")).unwrap(), key);
    }
}
