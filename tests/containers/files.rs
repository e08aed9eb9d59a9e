//! What can be seen from the files alone.

use std::{collections::BTreeSet, process::Command};

const COMPOSE: &str = include_str!("../../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");

/// Set to what containers need, in other forms than the operator's, or of no use to any role.
const NOT_PASSED: [&str; 9] = [
    // As files, made by `init`.
    "NGIT_INTERNAL_TOKEN_RELAY",
    "NGIT_INTERNAL_TOKEN_GITD",
    "NGIT_INTERNAL_TOKEN_WORKER",
    // A path outside the container; docs/deploy/compose/secrets.yml passes it.
    "NGIT_RELAY_OWNER_NSEC_FILE",
    // Nothing that starts apart has one.
    "NGIT_RUN_DIR",
    // Ignored by graspd.
    "NGIT_OWNER_NPUB",
    // Paths too; the networks between containers are their own.
    "NGIT_INTERNAL_TLS_CERT",
    "NGIT_INTERNAL_TLS_KEY",
    "NGIT_INTERNAL_TLS_CA",
];

fn variables(text: &str) -> BTreeSet<&str> {
    let word = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let words = text.split(word);
    let named = |word: &&str| {
        word.strip_prefix("NGIT_")
            .is_some_and(|rest| !rest.is_empty())
    };
    words.filter(named).collect()
}

pub fn settings() {
    let graspd = Command::new(env!("CARGO_BIN_EXE_graspd"))
        .args(["config", "--reference"])
        .output()
        .unwrap();
    assert!(graspd.status.success());
    let reference = String::from_utf8(graspd.stdout).unwrap();
    let (known, passed) = (variables(&reference), variables(COMPOSE));
    let mut expected = known.clone();
    for name in NOT_PASSED {
        assert!(expected.remove(name), "{name} is no setting any more");
    }
    let missing: Vec<_> = expected.difference(&passed).collect();
    assert!(missing.is_empty(), "not in docker-compose.yml: {missing:?}");
    let unknown: Vec<_> = passed.difference(&known).collect();
    assert!(unknown.is_empty(), "no settings of graspd: {unknown:?}");
}

/// Compose v2 takes no file in which a key stands twice; the older one says nothing.
pub fn keys() {
    let mut open: Vec<(usize, BTreeSet<&str>)> = Vec::new();
    for line in COMPOSE.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        let Some((key, _)) = text.split_once(':').filter(|_| !text.starts_with('#')) else {
            continue;
        };
        open.retain(|(outer, _)| *outer <= indent);
        if open.last().is_none_or(|(outer, _)| *outer < indent) {
            open.push((indent, BTreeSet::new()));
        }
        let (_, keys) = open.last_mut().unwrap();
        assert!(keys.insert(key), "twice in docker-compose.yml: {line}");
    }
}

pub fn version() {
    let line = concat!("ARG VERSION=", env!("CARGO_PKG_VERSION"));
    assert!(DOCKERFILE.lines().any(|other| other == line), "no {line}");
}
