//! The service that an operator's command is about, and its relay's Admin service.
//!
//! Every command finds it in the same way. Of the services that this user runs on this machine, known
//! by the notes that they leave ([`crate::run_dir`]), it is the one that fits all settings of
//! [`TELLING`] that are set: the run directory, the data paths, the public address, the domain. One
//! that runs elsewhere is the one whose internal address and token are set.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use grasp_proto::{
    contract::relay::admin_client::AdminClient,
    process::settings::Settings,
    transport::{AuthorizedChannel, Endpoint, Role, Token},
};
use tonic::{Code, Status};

use crate::{
    run_dir::{self, Note},
    text::plain,
};

/// Room for one batch of whatever is listed.
const MAX_MESSAGE: usize = 16 << 20;

const RUN_DIR: &str = "NGIT_RUN_DIR";
const GRPC: &str = "NGIT_RELAY_GRPC_ADDRESS";
const TOKEN: &str = "NGIT_INTERNAL_TOKEN_RELAY";
const TOKEN_FILE: &str = "NGIT_INTERNAL_TOKEN_RELAY_FILE";
const BIND: &str = "NGIT_BIND_ADDRESS";
const DOMAIN: &str = "NGIT_DOMAIN";

/// The settings that say which service is meant, and what each says.
pub const TELLING: [(&str, &str); 8] = [
    (RUN_DIR, "The one with this run directory"),
    ("NGIT_RELAY_DATA_PATH", "The one whose events lie here"),
    ("NGIT_GIT_DATA_PATH", "The one whose repositories lie here"),
    (BIND, "The one that listens on this address"),
    (DOMAIN, "The one with this public name"),
    (
        GRPC,
        "The one whose relay answers internal calls here: http://host:port",
    ),
    (TOKEN, "The relay's credential for such calls"),
    (TOKEN_FILE, "The file that has it"),
];

/// Where a running service is found.
pub struct Service {
    endpoint: Endpoint,
    token: Token,
    /// What it is called in errors.
    name: String,
}

impl Service {
    /// The service that `settings` lead to.
    pub fn find(settings: &Settings) -> anyhow::Result<Self> {
        // What is set for a service whose processes are apart says everything.
        let is_whole = settings.is_set(TOKEN) || settings.is_set(TOKEN_FILE);
        let named = run_directory_note(settings);
        if named.is_none() && settings.is_set(GRPC) && is_whole {
            let endpoint = settings.endpoint(GRPC)?;
            let name = match &endpoint {
                Endpoint::Unix(_) => "the relay".to_owned(),
                endpoint => format!("the relay at {endpoint}"),
            };
            let token = settings.token_of(Role::Relay)?;
            return Ok(Self {
                endpoint,
                token,
                name,
            });
        }
        Self::of_note(&note(settings, named)?)
    }

    fn of_note(note: &Note) -> anyhow::Result<Self> {
        let line = |name: &str| {
            note.get(name)
                .with_context(|| format!("the service has left no {name}"))
        };
        let endpoint = line(GRPC)?.parse().map_err(anyhow::Error::msg);
        let token = Token::parse(line(TOKEN)?).map_err(anyhow::Error::msg);
        Ok(Self {
            endpoint: endpoint?,
            token: token?,
            name: format!("the service {}", called(note)),
        })
    }

    /// Its Admin service.
    pub fn admin(&self) -> AdminClient<AuthorizedChannel> {
        AdminClient::new(self.endpoint.authorized(&self.token))
            .max_decoding_message_size(MAX_MESSAGE)
    }

    /// Why it did not do what it was asked, for the operator.
    pub fn failed(&self, status: &Status) -> anyhow::Error {
        let name = &self.name;
        if is_unreachable(status) {
            return anyhow::anyhow!("{name} does not answer ({})", root_cause(status));
        }
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => anyhow::anyhow!(
                "{name} does not take this credential; set the {TOKEN} that it was started with"
            ),
            Code::Unimplemented => anyhow::anyhow!(
                "{name} is of a version that cannot do this: {}",
                plain(status.message())
            ),
            code => match status.message() {
                "" => anyhow::anyhow!("{name} answered {code:?}"),
                words => anyhow::anyhow!("{name}: {}", plain(words)),
            },
        }
    }
}

/// Whether a call failed before the service has seen it.
fn is_unreachable(status: &Status) -> bool {
    let source = std::error::Error::source(status);
    status.code() == Code::Unavailable && source.is_some()
}

/// The first of the errors that led to this one.
fn root_cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(earlier) = cause.source() {
        cause = earlier;
    }
    plain(&cause.to_string())
}

/// The public listener of the service that `settings` lead to; `None`: no service has left a note.
pub fn listener(settings: &Settings) -> Option<SocketAddr> {
    let note = note(settings, run_directory_note(settings)).ok()?;
    note.get(BIND)?.parse().ok()
}

/// How a service is told from others, for a person.
fn called(note: &Note) -> String {
    let word = |name: &str| note.get(name).map_or("?", String::as_str);
    plain(&format!("{} on {}", word(DOMAIN), word(BIND)))
}

/// The note of the service that runs in the directory that is set.
fn run_directory_note(settings: &Settings) -> Option<Note> {
    let directory = settings.get(RUN_DIR)?;
    run_dir::note_in(Path::new(directory))
}

fn note(settings: &Settings, named: Option<Note>) -> anyhow::Result<Note> {
    let told = Told::read(settings);
    let notes = match (&named, &told.run_dir) {
        (Some(note), _) => vec![note.clone()],
        (None, Some(_)) => Vec::new(),
        (None, None) => run_dir::notes(),
    };
    choose(notes, &told).map_err(anyhow::Error::msg)
}

/// What somebody has said about the service that is meant; what nobody has set says nothing.
#[derive(Debug, Default)]
struct Told {
    run_dir: Option<String>,
    paths: Vec<(&'static str, String)>,
    bind: Option<String>,
    domain: Option<String>,
    grpc: Option<String>,
}

impl Told {
    fn read(settings: &Settings) -> Self {
        let set = |name: &'static str| {
            let value = settings.get(name).filter(|_| settings.is_set(name));
            value.map(str::to_owned)
        };
        let paths = ["NGIT_RELAY_DATA_PATH", "NGIT_GIT_DATA_PATH"];
        Self {
            run_dir: set(RUN_DIR),
            paths: paths
                .into_iter()
                .filter_map(|name| Some((name, set(name)?)))
                .collect(),
            bind: set(BIND),
            domain: set(DOMAIN),
            grpc: set(GRPC),
        }
    }

    fn fits(&self, note: &Note) -> bool {
        let has = |name: &str, fits: &dyn Fn(&str) -> bool| {
            note.get(name).is_some_and(|value| fits(value))
        };
        let all = |told: &Option<String>, name: &str, same: fn(&str, &str) -> bool| {
            told.as_ref()
                .is_none_or(|told| has(name, &|value| same(told, value)))
        };
        self.paths
            .iter()
            .all(|(name, told)| has(name, &|value| is_same_place(told, value)))
            && all(&self.bind, BIND, is_same_listener)
            && all(&self.domain, DOMAIN, |told, value| {
                told.eq_ignore_ascii_case(value)
            })
            && all(&self.grpc, GRPC, |told, value| told == value)
    }

    /// As the command line says it.
    fn words(&self) -> String {
        let flag = |name: &str, value: &String| {
            let flag = name.trim_start_matches("NGIT_").replace('_', "-");
            format!("--{} {}", flag.to_ascii_lowercase(), plain(value))
        };
        let paths = self.paths.iter().map(|(name, value)| flag(name, value));
        let others = [
            (RUN_DIR, &self.run_dir),
            (BIND, &self.bind),
            (DOMAIN, &self.domain),
            (GRPC, &self.grpc),
        ];
        let others = others
            .into_iter()
            .filter_map(|(name, value)| Some(flag(name, value.as_ref()?)));
        paths.chain(others).collect::<Vec<_>>().join(" ")
    }
}

/// Whether two paths are of one directory, however they are written.
fn is_same_place(one: &str, other: &str) -> bool {
    let place = |path: &str| -> Option<PathBuf> {
        let path = Path::new(path);
        path.canonicalize()
            .or_else(|_| std::path::absolute(path))
            .ok()
    };
    place(one).is_some_and(|one| place(other) == Some(one))
}

/// Whether the listener that is meant is this one: one on all addresses is reached at each of them.
fn is_same_listener(told: &str, listener: &str) -> bool {
    match (told.parse::<SocketAddr>(), listener.parse::<SocketAddr>()) {
        (Ok(told), Ok(listener)) => {
            told == listener || (told.port() == listener.port() && listener.ip().is_unspecified())
        }
        _ => told == listener,
    }
}

/// The one service that is meant, or why it cannot be told.
fn choose(notes: Vec<Note>, told: &Told) -> Result<Note, String> {
    let (mut fitting, others): (Vec<Note>, Vec<Note>) =
        notes.into_iter().partition(|note| told.fits(note));
    let listed = |notes: &[Note]| {
        let lines = notes.iter().map(|note| format!("\n  {}", called(note)));
        lines.collect::<String>()
    };
    let words = told.words();
    match (fitting.len(), others.len()) {
        (1, _) => Ok(fitting.remove(0)),
        (0, 0) if words.is_empty() => Err(format!(
            "no service of this user runs on this machine; for one that runs elsewhere, set {GRPC} and {TOKEN}"
        )),
        (0, 0) => Err(format!(
            "no service of this user runs on this machine with {words}"
        )),
        (0, _) => Err(format!(
            "no service that runs here has {words}; there are:{}",
            listed(&others)
        )),
        _ => Err(format!(
            "several services run here; say which with --bind-address, --relay-data-path or --run-dir:{}",
            listed(&fitting)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(bind: &str, domain: &str, path: &str) -> Note {
        [
            (BIND, bind),
            (DOMAIN, domain),
            ("NGIT_RELAY_DATA_PATH", path),
            (GRPC, "unix:/run/secret-place/relay.sock"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    fn told(pairs: &[(&str, &str)]) -> Told {
        let pairs = pairs.iter().map(|(name, value)| (*name, (*value).into()));
        Told::read(&Settings::from_pairs(pairs))
    }

    fn two() -> Vec<Note> {
        vec![
            note("127.0.0.1:1", "a.example", "/data/a"),
            note("0.0.0.0:2", "b.example", "/data/b"),
        ]
    }

    #[test]
    fn a_service_is_meant_by_whatever_tells_it_from_others() {
        for pair in [
            (BIND, "0.0.0.0:2"),
            (BIND, "127.0.0.1:2"),
            (DOMAIN, "B.example"),
            ("NGIT_RELAY_DATA_PATH", "/data/b"),
        ] {
            let found = choose(two(), &told(&[pair])).unwrap();
            assert_eq!(found[DOMAIN], "b.example", "{pair:?}");
        }
        let one = vec![note("127.0.0.1:1", "a.example", "/data/a")];
        assert!(choose(one, &told(&[])).is_ok());
    }

    #[test]
    fn who_is_not_told_apart_is_named_without_sockets() {
        for (notes, pairs, words) in [
            (two(), &[][..], "several services"),
            (
                two(),
                &[(BIND, "127.0.0.1:3")],
                "has --bind-address 127.0.0.1:3",
            ),
            (
                two(),
                &[(BIND, "127.0.0.1:1"), (DOMAIN, "b.example")],
                "a.example on 127.0.0.1:1",
            ),
            (Vec::new(), &[], "no service of this user"),
            (Vec::new(), &[(DOMAIN, "c.example")], "--domain c.example"),
        ] {
            let refused = choose(notes, &told(pairs)).unwrap_err();
            assert!(refused.contains(words), "{refused}");
            assert!(!refused.contains("secret-place"), "{refused}");
        }
    }

    #[test]
    fn a_directory_is_the_same_however_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        std::fs::create_dir(directory.path().join("x")).unwrap();
        assert!(is_same_place(&format!("{path}/x/.."), path));
        assert!(!is_same_place(&format!("{path}/x"), path));
        assert!(is_same_place("/nowhere/y", "/nowhere/y"));
    }
}
