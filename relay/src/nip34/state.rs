//! Kind 30618: where a maintainer says the refs of a repository are.

use std::{collections::BTreeMap, sync::Arc};

use grasp_proto::words::{EventId, Identifier, Npub, Oid, RefKind, RefName};
use nostr::Event;

use super::{Malformed, author_of, id_of, identifier_of};

/// Where a ref is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// At this object.
    At(Oid),
    /// Where another ref of the state is, at this object: needs none of its own, and need not be
    /// pushed.
    Follows(Oid),
    /// At something that is no object id of ours and so never arrives.
    Never,
}

/// A repository state, read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct State {
    /// The event itself.
    pub event: Arc<Event>,
    /// Who says so.
    pub author: Npub,
    /// Of which repositories.
    pub identifier: Identifier,
    /// `refs/heads/*` and `refs/tags/*`, ordered by name.
    pub refs: Arc<BTreeMap<RefName, Target>>,
    /// The branch HEAD points to, if it says.
    pub head: Option<RefName>,
}

impl State {
    /// Reads an event of kind 30618.
    ///
    /// # Errors
    /// A ref name that git would refuse; two names of which one is a directory of the other.
    pub fn read(event: Arc<Event>) -> Result<Self, Malformed> {
        let mut refs = BTreeMap::new();
        let mut symbolic = Vec::new();
        let mut head = None;
        for tag in event.tags.iter() {
            let (name, value) = (tag.kind(), tag.content().unwrap_or_default());
            if name == "HEAD" {
                head = read_head(value);
                continue;
            }
            let ours = name.starts_with("refs/heads/") || name.starts_with("refs/tags/");
            if !ours || name.ends_with("^{}") {
                continue;
            }
            let name = RefName::parse(name).map_err(|error| Malformed(error.to_string()))?;
            match value.strip_prefix("ref: ") {
                Some(target) => symbolic.push((name, target)),
                None => {
                    let target = Oid::from_hex(value).ok().filter(|oid| !oid.is_zero());
                    refs.insert(name, target.map_or(Target::Never, Target::At));
                }
            }
        }
        // A ref that follows another is where that one is; one that follows nothing needs nothing.
        for (name, followed) in symbolic {
            let followed = RefName::parse(followed).ok();
            if let Some(Target::At(oid)) = followed.and_then(|followed| refs.get(&followed)) {
                refs.insert(name, Target::Follows(*oid));
            }
        }
        refuse_conflicts(&refs)?;
        Ok(Self {
            author: author_of(&event),
            identifier: identifier_of(&event)?,
            refs: Arc::new(refs),
            head,
            event,
        })
    }

    /// Its id.
    pub fn id(&self) -> EventId {
        id_of(&self.event)
    }

    /// Whether it names at least one branch or tag.
    pub fn names_something(&self) -> bool {
        !self.refs.is_empty()
    }

    /// Whether some ref of it is where no object of ours can be.
    pub fn never_arrives(&self) -> bool {
        self.refs.values().any(|target| *target == Target::Never)
    }

    /// Its refs with their objects; those that never arrive are left out.
    pub fn objects(&self) -> impl Iterator<Item = (&RefName, Oid)> {
        self.refs.iter().filter_map(|(name, target)| match target {
            Target::At(oid) | Target::Follows(oid) => Some((name, *oid)),
            Target::Never => None,
        })
    }

    /// Where it says a ref is.
    pub fn oid_of(&self, name: &RefName) -> Option<Oid> {
        match self.refs.get(name) {
            Some(Target::At(oid) | Target::Follows(oid)) => Some(*oid),
            _ => None,
        }
    }
}

fn read_head(value: &str) -> Option<RefName> {
    let name = value.strip_prefix("ref: ").unwrap_or(value).trim();
    RefName::parse(name)
        .ok()
        .filter(|name| name.kind() == RefKind::Head)
}

/// No ref may be a directory of another. Looks up each name's own directories, so the cost is that
/// of the names and not of their pairs.
fn refuse_conflicts(refs: &BTreeMap<RefName, Target>) -> Result<(), Malformed> {
    for name in refs.keys() {
        let mut directory = name.as_str();
        while let Some((parent, _)) = directory.rsplit_once('/') {
            directory = parent;
            let taken = RefName::parse(directory).is_ok_and(|parent| refs.contains_key(&parent));
            if taken {
                return Err(Malformed(format!(
                    "{directory} and {name} cannot both exist"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nip34::{
        STATE,
        testing::{event, keys},
    };

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn read(tags: &[&[&str]]) -> Result<State, Malformed> {
        let mut all: Vec<&[&str]> = vec![&["d", "x"]];
        all.extend_from_slice(tags);
        State::read(Arc::new(event(&keys(1), STATE, 1, &all)))
    }

    fn name(text: &str) -> RefName {
        RefName::parse(text).unwrap()
    }

    #[test]
    fn branches_and_tags_are_read_and_nothing_else() {
        let state = read(&[
            &["refs/heads/main", A],
            &["refs/tags/v1", A],
            &["refs/tags/v1^{}", A],
            &["refs/notes/commits", A],
            &["HEAD", "ref: refs/heads/main"],
        ])
        .unwrap();
        assert_eq!(state.refs.len(), 2);
        assert_eq!(state.head, Some(name("refs/heads/main")));
        assert!(state.names_something() && !state.never_arrives());
    }

    #[test]
    fn head_is_read_with_and_without_its_prefix() {
        let head = |value| read(&[&["HEAD", value]]).unwrap().head;
        assert_eq!(head("refs/heads/x"), Some(name("refs/heads/x")));
        assert_eq!(head("ref: refs/heads/x"), Some(name("refs/heads/x")));
        assert_eq!(head("refs/tags/x"), None);
        assert_eq!(head("main"), None);
    }

    #[test]
    fn what_is_no_object_id_of_ours_never_arrives() {
        for value in ["", "abc", &"a".repeat(64), &"0".repeat(40)] {
            let state = read(&[&["refs/heads/main", value]]).unwrap();
            assert!(state.never_arrives(), "{value}");
            assert_eq!(state.objects().count(), 0);
        }
    }

    #[test]
    fn a_symbolic_value_needs_no_object() {
        let state = read(&[
            &["refs/heads/alias", "ref: refs/heads/main"],
            &["refs/heads/lost", "ref: refs/heads/nowhere"],
            &["refs/heads/main", A],
        ])
        .unwrap();
        assert_eq!(
            state.oid_of(&name("refs/heads/alias")),
            Some(Oid::from_hex(A).unwrap())
        );
        assert_eq!(state.refs.len(), 2);
    }

    #[test]
    fn names_that_git_would_refuse_refuse_the_event() {
        assert!(read(&[&["refs/heads/a..b", A]]).is_err());
        assert!(read(&[&["refs/heads/", A]]).is_err());
        assert!(read(&[&["refs/heads/a", A], &["refs/heads/a/b", A]]).is_err());
        assert!(read(&[&["refs/heads/a", A], &["refs/heads/ab/c", A]]).is_ok());
    }

    proptest! {
        #[test]
        fn conflicts_are_found_whatever_the_order(parts in prop::collection::vec("[ab](/[ab]){0,2}", 1..6)) {
            let names: Vec<RefName> = parts.iter().map(|p| name(&format!("refs/heads/{p}"))).collect();
            let refs = names.iter().map(|n| (n.clone(), Target::Never)).collect();
            let conflict = names.iter().any(|a| names.iter().any(|b| a.conflicts_with(b)));
            prop_assert_eq!(refuse_conflicts(&refs).is_err(), conflict);
        }
    }
}
