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
    /// The branch it says HEAD points to, there or not. See [`State::default_branch`].
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

    /// Whether no push and no fetch can ever fulfil it: it names no ref, or one without an object id.
    pub fn is_unfulfillable(&self) -> bool {
        !self.names_something() || self.never_arrives()
    }

    /// Its refs with their objects; those that never arrive are left out.
    pub fn objects(&self) -> impl Iterator<Item = (&RefName, Oid)> {
        self.refs.iter().filter_map(|(name, target)| match target {
            Target::At(oid) | Target::Follows(oid) => Some((name, *oid)),
            Target::Never => None,
        })
    }

    /// Where HEAD shall point: to the branch that it names. If it names none that is there, then to
    /// `main`, else `master`, else the only branch, else the first, so that a clone always checks
    /// something out. `None`: there are no branches.
    pub fn default_branch(&self) -> Option<&RefName> {
        let usual = || {
            let usual = ["refs/heads/main", "refs/heads/master"];
            usual
                .into_iter()
                .filter_map(|name| RefName::parse(name).ok())
        };
        let is_there = |name: &RefName| self.oid_of(name).is_some();
        let branches = || self.refs.keys().filter(|name| name.kind() == RefKind::Head);
        let named = self.head.clone().into_iter().chain(usual());
        let wanted = named.into_iter().find(is_there);
        match wanted {
            Some(name) => self.refs.get_key_value(&name).map(|(name, _)| name),
            None => branches().find(|name| is_there(name)),
        }
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
    fn head_is_a_branch_that_is_there() {
        let branch = |named: Option<&str>, all: &[&str]| {
            let names: Vec<String> = all
                .iter()
                .map(|name| format!("refs/heads/{name}"))
                .collect();
            let mut tags: Vec<Vec<&str>> =
                names.iter().map(|name| vec![name.as_str(), A]).collect();
            tags.push(vec!["refs/tags/a", A]);
            tags.extend(named.map(|named| vec!["HEAD", named]));
            let tags: Vec<&[&str]> = tags.iter().map(Vec::as_slice).collect();
            let state = read(&tags).unwrap();
            let chosen = state.default_branch().map(ToString::to_string);
            chosen.map(|name| name.trim_start_matches("refs/heads/").to_owned())
        };
        let all = ["dev", "main", "master"];
        for (named, expected) in [
            (Some("ref: refs/heads/dev"), "dev"),
            (Some("refs/heads/master"), "master"),
            (None, "main"),
            (Some(A), "main"),
            (Some("ref: refs/heads/gone"), "main"),
            (Some("ref: refs/tags/a"), "main"),
            (Some(""), "main"),
        ] {
            assert_eq!(branch(named, &all).as_deref(), Some(expected), "{named:?}");
        }
        assert_eq!(branch(None, &["dev", "master"]).as_deref(), Some("master"));
        assert_eq!(branch(None, &["dev"]).as_deref(), Some("dev"));
        assert_eq!(branch(Some(A), &["x", "b", "c"]).as_deref(), Some("b"));
        assert_eq!(branch(Some("refs/heads/main"), &[]), None);
        // A branch that is where no object of ours can be is not there.
        let state = read(&[&["refs/heads/main", "abc"], &["refs/heads/x", A]]).unwrap();
        assert_eq!(state.default_branch(), Some(&name("refs/heads/x")));
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
