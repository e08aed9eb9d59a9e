//! Names that come from outside.

use grasp_proto::words::{Address, EventId, Identifier, Npub, Oid, RefName};
use grasp_relay::{
    domain::Domain, hunt::urls::CloneUrl, nip34::repository_coordinate,
    targets::relay_url::RelayUrl,
};

use crate::text;

/// Each line as every word it may be: what is taken is written as it was, and leads nowhere else.
pub fn words(data: &[u8]) {
    let ours = Domain::parse("grasp.example").expect("a domain");
    for line in text(data).lines() {
        if let Ok(name) = Identifier::parse(line) {
            assert_eq!(name.as_str(), line);
            assert!(line.len() <= Identifier::MAX_BYTES && !line.contains(['/', '\0']));
        }
        if let Ok(name) = RefName::parse(line) {
            assert_eq!(name.as_str(), line);
            let parts: Vec<&str> = line.split('/').collect();
            assert!(
                parts
                    .iter()
                    .all(|part| !part.is_empty() && !part.starts_with('.'))
            );
            assert!(!line.contains([' ', '\n', '\0']));
        }
        if let Ok(oid) = Oid::from_hex(line) {
            assert_eq!(oid.to_hex(), line.to_ascii_lowercase());
        }
        if let Ok(id) = EventId::from_hex(line) {
            assert_eq!(id.to_hex(), line.to_ascii_lowercase());
        }
        if let Ok(npub) = Npub::from_npub(line) {
            assert_eq!(Npub::from_npub(&npub.to_string()), Ok(npub));
        }
        if let Some((address, rest)) = Address::from_url_path(line) {
            assert!(rest.is_empty() || rest.starts_with('/'));
            let again = format!("/{address}{rest}");
            assert_eq!(Address::from_url_path(&again), Some((address, rest)));
        }
        if let Some(repo) = repository_coordinate(line) {
            assert_eq!(repository_coordinate(&repo.coordinate()), Some(repo));
        }
        if let Some(url) = CloneUrl::read(line, &ours) {
            let authority = url.url.split('/').nth(2).unwrap_or_default();
            assert!(!authority.contains('@') && !authority.is_empty());
            assert!(url.url.starts_with("http://") || url.url.starts_with("https://"));
            assert_ne!(Domain::of_url(&url.url), Some(ours.clone()));
            let again = CloneUrl::read(&url.url, &ours).expect("what was written is read");
            assert_eq!(again.url, url.url);
        }
        if let Some(url) = RelayUrl::parse(line) {
            assert_eq!(RelayUrl::parse(url.as_str()).as_ref(), Some(&url));
        }
        if let Some(domain) = Domain::of_url(line) {
            assert!(!domain.to_string().contains('/'));
        }
    }
}
