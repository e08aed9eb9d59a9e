//! The lists of the operator as they are written: repositories in three forms, authors, services.
//! Pure; which list means what is said in [`super::curation`].

use std::collections::BTreeSet;

use grasp_proto::words::{Identifier, Npub, RepoId};

/// What a list of repositories names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// `<npub>`: every repository of this owner.
    Owner(Npub),
    /// `<npub>/<identifier>`: this one.
    Repository(RepoId),
    /// `<identifier>`: every repository of this name, whosoever.
    Identifier(Identifier),
}

impl Entry {
    /// Reads one of the three forms; says what is wrong with anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let identifier = |text: &str| Identifier::parse(text).map_err(|error| error.to_string());
        if let Some((owner, name)) = text.split_once('/') {
            return Ok(Self::Repository(RepoId {
                owner: npub(owner)?,
                identifier: identifier(name)?,
            }));
        }
        if text.starts_with("npub1") {
            return Ok(Self::Owner(npub(text)?));
        }
        // A name could look so, but a key is meant, and would silently match nothing.
        if Npub::from_hex(text).is_ok() {
            return Err("a key is written as npub1… here".to_owned());
        }
        Ok(Self::Identifier(identifier(text)?))
    }
}

fn npub(text: &str) -> Result<Npub, String> {
    Npub::from_npub(text).map_err(|error| error.to_string())
}

/// Reads a key, as npub or hex.
pub fn author(text: &str) -> Result<Npub, String> {
    Npub::from_hex(text).or_else(|_| npub(text))
}

/// A list of repositories. As long as the operator wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepoList(BTreeSet<Entry>);

impl FromIterator<Entry> for RepoList {
    fn from_iter<T: IntoIterator<Item = Entry>>(entries: T) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl RepoList {
    /// Whether a repository is on it, in whichever form.
    pub fn contains(&self, repo: &RepoId) -> bool {
        !self.0.is_empty()
            && (self.0.contains(&Entry::Owner(repo.owner))
                || self.0.contains(&Entry::Identifier(repo.identifier.clone()))
                || self.0.contains(&Entry::Repository(repo.clone())))
    }

    /// Whether everything that an entry names is on it.
    pub fn covers(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Repository(repo) => self.contains(repo),
            other => self.0.contains(other),
        }
    }

    /// What is written on it.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is on it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The entries of a value: separated by commas.
pub fn inline(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|e| !e.is_empty())
}

/// The entries of a file: one a line; `#`, at its begin or behind a space, begins a comment.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let entry = |line: &'_ str| -> usize {
        let comment = |(at, _): &(usize, &str)| *at == 0 || line[..*at].ends_with([' ', '\t']);
        let first = line.match_indices('#').find(comment);
        first.map_or(line.len(), |(at, _)| at)
    };
    text.lines()
        .map(move |line| line[..entry(line)].trim())
        .filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Npub {
        Npub::from_bytes([n; 32])
    }

    fn repo(owner: u8, identifier: &str) -> RepoId {
        RepoId {
            owner: key(owner),
            identifier: Identifier::parse(identifier).unwrap(),
        }
    }

    fn list(entries: &[&str]) -> RepoList {
        entries.iter().map(|e| Entry::parse(e).unwrap()).collect()
    }

    #[test]
    fn each_form_matches_what_it_names_and_nothing_else() {
        let owner = key(1).to_string();
        let by_owner = list(&[&owner]);
        assert!(by_owner.contains(&repo(1, "a")) && !by_owner.contains(&repo(2, "a")));
        let one = list(&[&format!("{owner}/a")]);
        assert!(one.contains(&repo(1, "a")));
        assert!(!one.contains(&repo(1, "b")) && !one.contains(&repo(2, "a")));
        assert!(!one.contains(&repo(1, "A")), "names tell case apart");
        let by_name = list(&["a"]);
        assert!(by_name.contains(&repo(1, "a")) && by_name.contains(&repo(2, "a")));
        assert!(!by_name.contains(&repo(1, "aa")));
        assert!(!RepoList::default().contains(&repo(1, "a")));
    }

    #[test]
    fn a_list_covers_what_it_names_wholly() {
        let owner = key(1).to_string();
        let one = Entry::parse(&format!("{owner}/a")).unwrap();
        assert!(list(&[&owner]).covers(&one) && list(&["a"]).covers(&one));
        assert!(!list(&["b"]).covers(&one));
        let part = list(&[&format!("{owner}/a")]);
        assert!(!part.covers(&Entry::parse(&owner).unwrap()));
        assert!(!part.covers(&Entry::parse("a").unwrap()));
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        let mut broken = key(1).to_string();
        broken.pop();
        let with_name = format!("{broken}/a");
        let nameless = format!("{}/", key(1));
        let deep = format!("{}/a/b", key(1));
        let hex = key(1).to_hex();
        for bad in [&broken, &with_name, &nameless, &deep, &hex, "..", "/a", ""] {
            assert!(Entry::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(author(&hex).unwrap(), key(1));
        assert_eq!(author(&key(1).to_string()).unwrap(), key(1));
        assert!(author(&broken).is_err() && author("a").is_err());
    }

    #[test]
    fn values_and_files_are_taken_apart() {
        assert_eq!(inline(" a, b c ,,d").collect::<Vec<_>>(), ["a", "b c", "d"]);
        let file = "\u{feff}# all of them\r\na # spam\n\n  b c\t#x\nc#sharp\n#d\n   # e\nf,g\n";
        assert_eq!(
            lines(file).collect::<Vec<_>>(),
            ["a", "b c", "c#sharp", "f,g"]
        );
    }
}
